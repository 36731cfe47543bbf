"""The native runner: a small C program that times models in the engines' ARM64 builds on a phone.

Its source is beside this file. It brings a C library of its own
(``ld-linux-aarch64.so.1 --library-path .``), so it needs nothing of the phone but a kernel: no app, no NDK.
"""
