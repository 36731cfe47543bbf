"""MIL programs, the inside of a Core ML package: read one, run it on torch, count what it holds."""

from mf_deploy.mil.counting import count_package
from mf_deploy.mil.interpreter import Interpreter, Watch
from mf_deploy.mil.program import MilProgram, load_package, quiet_coremltools, read_program

__all__ = [
    "Interpreter",
    "MilProgram",
    "Watch",
    "count_package",
    "load_package",
    "quiet_coremltools",
    "read_program",
]
