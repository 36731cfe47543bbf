"""A model in its engine: inputs are set first, so that ``invoke`` is the engine's work alone."""

from typing import Any

import numpy as np


def load_engine(name: str) -> None:
    """Import an engine, so that opening a model need not."""
    if name == "onnx":
        import onnxruntime  # noqa: F401
    else:
        import ai_edge_litert.interpreter  # noqa: F401


class OnnxModel:
    """A model in onnxruntime, with ``threads`` compute threads."""

    def __init__(self, path: str, threads: int, profile: str | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def tensors(self) -> dict[str, list[dict[str, Any]]]:
        given = {"inputs": self.session.get_inputs(), "outputs": self.session.get_outputs()}
        return {
            kind: [{"name": of.name, "shape": of.shape, "dtype": _dtype(of.type)} for of in tensors]
            for kind, tensors in given.items()
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


def _dtype(onnx_type: str) -> str:
    """numpy's name of ``tensor(float)`` and the like."""
    inner = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


class TfliteModel:
    """A model in LiteRT's interpreter with its default delegate, XNNPACK."""

    def __init__(self, path: str, threads: int) -> None:
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
                for name, of in tensors.items()
            ]
            for kind, tensors in (("inputs", self.taken), ("outputs", self.given))
        }

    def prepare(self, inputs: list[np.ndarray]) -> None:
        for of, value in zip(self.taken.values(), inputs, strict=True):
            self.interpreter.set_tensor(of["index"], value)

    def invoke(self) -> None:
        self.interpreter.invoke()

    def outputs(self) -> list[np.ndarray]:
        return [self.interpreter.get_tensor(of["index"]) for of in self.given.values()]
