"""Runs models for the host, one after the other, message by message."""

import ctypes
import gc
import os
import signal
import sys
from typing import IO, Any

import numpy as np
from engines import OnnxModel, TfliteModel, load_engine
from messages import receive, send

REGION = 0x6D66  # the magic prctl option that count.c watches
PR_SET_PDEATHSIG = 1


def open_model(request: dict[str, Any]) -> Any:
    """The model that a request names, with its engine's profiler on if it asks for that."""
    path, threads, profile = request["model"], request["threads"], request["profile"]
    if profile:
        from profiled import ProfiledOnnx, ProfiledTflite

        return {"onnx": ProfiledOnnx, "tflite": ProfiledTflite}[request["engine"]](path, threads, profile)
    return {"onnx": OnnxModel, "tflite": TfliteModel}[request["engine"]](path, threads)


def count(model: Any, inputs: list[np.ndarray], warmup: int, runs: int, calls: int) -> None:
    """Run the model, with a marked region around each inference after the first ``warmup``."""
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    gc.collect()
    gc.disable()
    for run in range(warmup + runs):
        model.prepare(inputs)
        if run >= warmup:
            prctl(REGION, 1, calls, 0, 0)
            model.invoke()
            prctl(REGION, 0, 0, 0, 0)
        else:
            model.invoke()


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer messages until the host hangs up; a model is opened before anything is asked of it.

    ``apart`` goes on in a copy of this process, until ``end``: what a model leaves behind in memory would
    change the counts of the next one.
    """
    model: Any = None
    while True:
        request, inputs = receive(requests)
        if request["do"] == "apart":
            load_engine(request["engine"])
            copy = os.fork()
            if copy:
                end_as(os.waitpid(copy, 0)[1])
            else:
                die_with_parent()
            send(answers, {})
        elif request["do"] == "end":
            os._exit(0)
        elif request["do"] == "open":
            model = open_model(request)
            send(answers, {} if request["profile"] else model.tensors())
        elif request["do"] == "count":
            count(model, inputs, request["warmup"], request["runs"], request["calls"])
            send(answers, {})
        elif request["do"] == "operators":
            send(answers, {"operators": model.operators()})
        else:
            model.prepare(inputs)
            model.invoke()
            send(answers, {}, model.outputs())


def die_with_parent() -> None:
    """Have the kernel end this process when the one that it is a copy of ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_as(status: int) -> None:
    """End this process by the signal that ended the copy, so that the host hears of it."""
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupted host waits for nothing
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an engine prints is no answer
    try:
        serve(sys.stdin.buffer, answers)
    except EOFError:
        pass
    except Exception as error:  # engines raise types of their own; the host makes one line of it
        send(answers, {"error": str(error) or type(error).__name__})


if __name__ == "__main__":
    main()
