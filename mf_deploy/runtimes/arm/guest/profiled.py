"""The same models with their engines' own profilers on, to learn which operators run, and in what order."""

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from engines import OnnxModel


class ProfiledOnnx(OnnxModel):
    """onnxruntime's profiler: the nodes of the optimised graph. It writes what it knows to a file."""

    def operators(self) -> list[dict[str, Any]]:
        events = json.loads(Path(self.session.end_profiling()).read_bytes())
        runs = [i for i, event in enumerate(events) if event["name"] == "model_run"]
        nodes = [event for event in events[runs[-2] :] if event["cat"] == "Node"]
        return [
            {
                "kind": node["args"]["op_name"],
                "name": node["name"].removesuffix("_kernel_time"),
                "shape": _first_shape(node["args"]["output_type_shape"]),
            }
            for node in nodes
        ]


def _first_shape(outputs: list[dict[str, list[int]]]) -> list[int]:
    return list(next(iter(outputs[0].values()))) if outputs else []


class _Event(ctypes.Structure):
    """ProfiledEventData of LiteRT 2.x (litert/c/litert_profiler_event.h)."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_uint64 * 6),
        ("index", ctypes.c_uint64),
        ("extra", ctypes.c_uint64),
        ("source", ctypes.c_int),
    )


_OPERATOR, _DELEGATED_OPERATOR = 1 << 1, 1 << 3  # event types


class ProfiledTflite:
    """LiteRT's compiled-model API, which has a profiler where the interpreter's has none.

    Its C functions are called directly, because its Python module cannot switch the profiler on.
    """

    def __init__(self, path: str, threads: int, profile: str) -> None:
        import ai_edge_litert

        self.library = ctypes.CDLL(str(Path(ai_edge_litert.__file__).with_name("libLiteRt.so")))
        self.environment = self._new("CreateEnvironment", 0, None)
        model = self._new("CreateModelFromFile", self.environment, path.encode())
        self.compiled = self._new("CreateCompiledModel", self.environment, model, self._options(threads))
        self.signature = self._new("GetModelSignature", model, _size(0))
        self.inputs, self.given = self._buffers("Input"), self._buffers("Output")
        self.profiler = self._new("CompiledModelGetProfiler", self.compiled)

    def prepare(self, inputs: list[np.ndarray]) -> None:
        for buffer, value in zip(self.inputs, inputs, strict=True):
            memory = self._new("LockTensorBuffer", ctypes.c_void_p(buffer), write=1)
            ctypes.memmove(memory, value.tobytes(), value.nbytes)
            self._call("UnlockTensorBuffer", ctypes.c_void_p(buffer))
        self._call("StartProfiler", self.profiler)  # which forgets the run before

    def invoke(self) -> None:
        inputs, outputs = self.inputs, self.given
        sizes = _size(len(inputs)), _size(len(outputs))
        self._call("RunCompiledModel", self.compiled, _size(0), sizes[0], inputs, sizes[1], outputs)

    def operators(self) -> list[dict[str, Any]]:
        number = ctypes.c_int()
        self._call("GetNumProfilerEvents", self.profiler, ctypes.byref(number))
        events = (_Event * number.value)()
        self._call("GetProfilerEvents", self.profiler, number, events)
        return list(_litert_operators(events))

    def _options(self, threads: int) -> ctypes.c_void_p:
        options = self._new("CreateOptions")
        self._call("SetOptionsHardwareAccelerators", options, 1)  # the CPU
        self.kept = [ctypes.create_string_buffer(f"num_threads = {threads}\n".encode())]
        self.kept += [ctypes.create_string_buffer(b"enable_profiling = true\n")]
        self.keep = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda payload: None)
        for name, text in zip((b"xnnpack", b"runtime_options_string"), self.kept, strict=True):
            self._call("AddOpaqueOptions", options, self._new("CreateOpaqueOptions", name, text, self.keep))
        return options

    def _buffers(self, kind: str) -> "ctypes.Array[ctypes.c_void_p]":
        number = ctypes.c_size_t()
        self._call(f"GetNumSignature{kind}s", self.signature, ctypes.byref(number))
        buffers = (ctypes.c_void_p * number.value)()
        for i in range(number.value):
            tensor = self._new(f"GetSignature{kind}TensorByIndex", self.signature, _size(i))
            tensor_type = ctypes.create_string_buffer(512)  # LiteRtRankedTensorType, which is opaque to us
            self._call("GetRankedTensorType", tensor, tensor_type)
            needs = self._new(f"GetCompiledModel{kind}BufferRequirements", self.compiled, _size(0), _size(i))
            create = "CreateManagedTensorBufferFromRequirements"
            buffers[i] = self._new(create, self.environment, tensor_type, needs).value
        return buffers

    def _new(self, function: str, *arguments: Any, write: int | None = None) -> ctypes.c_void_p:
        """Call a function whose last argument is where it puts its result (before ``write``, if given)."""
        result = ctypes.c_void_p()
        self._call(function, *arguments, ctypes.byref(result), *([] if write is None else [write]))
        return result

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self.library, f"LiteRt{function}")(*arguments)
        if status:
            raise RuntimeError(f"LiteRt{function} failed with status {status}")


def _size(number: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(number)


def _litert_operators(events: Any) -> Iterator[dict[str, Any]]:
    """Operators in order: those of XNNPACK, whose numbers start at 0 in each partition, and LiteRT's own.

    ``opens``: the clock is read before the operator; for the others, the one before has just read it.
    """
    for event in events:
        if event.type in (_OPERATOR, _DELEGATED_OPERATOR):
            yield {
                "kind": event.tag.decode(),
                "name": "",
                "shape": [],
                "elapsed_us": event.elapsed_us,
                "opens": event.type == _OPERATOR or event.index == 0,
            }
