"""Runs one model for the host, message by message; executed by the ARM Python under emulation.

It needs numpy and the model's engine only. The host imports ``send`` and ``receive`` from here, so that
both ends speak the same language: a message is a length (4 bytes, little-endian), so many bytes of JSON,
and the arrays that its ``arrays`` describes, raw, in order.
"""

import ctypes
import gc
import json
import os
import signal
import struct
import sys
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

REGION = 0x6D66  # the magic prctl option that count.c watches


def send(stream: IO[bytes], header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Write one message."""
    described = [{"dtype": array.dtype.str, "shape": array.shape} for array in arrays]
    text = json.dumps({**header, "arrays": described}).encode()
    stream.write(struct.pack("<I", len(text)) + text)
    for array in arrays:
        stream.write(np.ascontiguousarray(array).data)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read one message; EOFError when the other end is gone."""
    header: dict[str, Any] = json.loads(_exactly(stream, *struct.unpack("<I", _exactly(stream, 4))))
    arrays = []
    for described in header.pop("arrays"):
        dtype, shape = np.dtype(described["dtype"]), tuple(described["shape"])
        data = _exactly(stream, dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
        arrays.append(np.frombuffer(data, dtype).reshape(shape))
    return header, arrays


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


class OnnxModel:
    """A model in onnxruntime; ``prepare`` binds inputs, so that ``invoke`` is the engine's work alone."""

    def __init__(self, path: str, threads: int, profile: str | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def tensors(self) -> dict[str, list[dict[str, Any]]]:
        sizes = {"inputs": self.session.get_inputs(), "outputs": self.session.get_outputs()}
        return {
            kind: [
                {"name": of.name, "shape": of.shape, "dtype": _ORT_DTYPES.get(of.type, of.type)}
                for of in all_
            ]
            for kind, all_ in sizes.items()
        }

    def prepare(self, inputs: list[np.ndarray]) -> None:
        self.binding = self.session.io_binding()
        for of, value in zip(self.session.get_inputs(), inputs, strict=True):
            self.binding.bind_cpu_input(of.name, np.ascontiguousarray(value))
        for of in self.session.get_outputs():
            self.binding.bind_output(of.name)

    def invoke(self) -> None:
        self.session.run_with_iobinding(self.binding)

    def outputs(self) -> list[np.ndarray]:
        return list(self.binding.copy_outputs_to_cpu())

    def end_profiling(self) -> str:
        return str(self.session.end_profiling())


_ORT_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


class TfliteModel:
    """A model in LiteRT's interpreter, with its default delegate (XNNPACK)."""

    def __init__(self, path: str, threads: int, profile: str | None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_path=path, num_threads=threads)
        self.interpreter.allocate_tensors()
        if self.interpreter.get_signature_list():
            runner = self.interpreter.get_signature_runner()
            self.taken, self.given = runner.get_input_details(), runner.get_output_details()
        else:
            self.taken = {of["name"]: of for of in self.interpreter.get_input_details()}
            self.given = {of["name"]: of for of in self.interpreter.get_output_details()}

    def tensors(self) -> dict[str, list[dict[str, Any]]]:
        return {
            kind: [
                {
                    "name": name,
                    "shape": [int(size) for size in of["shape"]],
                    "dtype": np.dtype(of["dtype"]).name,
                    "quantization": [float(of["quantization"][0]), int(of["quantization"][1])],
                }
                for name, of in all_.items()
            ]
            for kind, all_ in (("inputs", self.taken), ("outputs", self.given))
        }

    def prepare(self, inputs: list[np.ndarray]) -> None:
        for of, value in zip(self.taken.values(), inputs, strict=True):
            self.interpreter.set_tensor(of["index"], value)

    def invoke(self) -> None:
        self.interpreter.invoke()

    def outputs(self) -> list[np.ndarray]:
        return [self.interpreter.get_tensor(of["index"]) for of in self.given.values()]


ENGINES: dict[str, Any] = {"onnx": OnnxModel, "tflite": TfliteModel}


def count(model: Any, inputs: list[np.ndarray], warmup: int, runs: int) -> None:
    """Run the model, with a marked region around each inference after the first ``warmup``."""
    libc = ctypes.CDLL(None)
    gc.collect()
    gc.disable()
    for run in range(warmup + runs):
        model.prepare(inputs)
        if run >= warmup:
            libc.prctl(REGION, 1, 0, 0, 0)
            model.invoke()
            libc.prctl(REGION, 0, 0, 0, 0)
        else:
            model.invoke()


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Load the model that the first message names, then answer the others until the host hangs up."""
    request, _ = receive(requests)
    model = ENGINES[request["engine"]](request["model"], request["threads"], request.get("profile"))
    send(answers, model.tensors())
    while True:
        request, inputs = receive(requests)
        if request["do"] == "count":
            count(model, inputs, request["warmup"], request["runs"])
            send(answers, {})
        elif request["do"] == "end_profiling":
            send(answers, {"profile": model.end_profiling()})
        else:
            model.prepare(inputs)
            model.invoke()
            send(answers, {}, model.outputs())


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the host ends this process when it is interrupted
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
