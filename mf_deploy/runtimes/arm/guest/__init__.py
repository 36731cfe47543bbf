"""What runs on the emulated CPU: scripts for an ARM Python that has numpy and the engines, nothing else.

``runner.py`` is started as a script, so these modules import each other by their bare names.
"""
