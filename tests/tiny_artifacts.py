"""Artifacts that take milliseconds to make: real ONNX models of a few convolutions."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mf_deploy.artifact import (
    MANIFEST_NAME,
    Artifact,
    Manifest,
    ModelSource,
    Parity,
    Quantization,
    TensorInfo,
    list_files,
)
from mf_deploy.preprocessing import Preprocessing

SIDE, CHANNELS, CLASSES = 32, 16, 10


def write_tiny_artifact(
    folder: Path,
    target: str = "onnx",
    scheme: str = "fp32",
    depth: int = 1,
    model: str | ModelSource = "tiny",
    **changes: object,
) -> Artifact:
    """An artifact at ``folder`` whose cost grows with ``depth``; off ONNX its file is only a placeholder."""
    folder.mkdir(parents=True)
    if target == "onnx":
        onnx.save(convolutions(depth), str(folder / "model.onnx"))
    else:
        (folder / f"model.{target}").write_bytes(f"{folder.name} {depth}".encode())
    fields: dict[str, object] = {
        "target": target,
        "scheme": scheme,
        "model": ModelSource(name=model, num_classes=CLASSES) if isinstance(model, str) else model,
        "model_file": "model.onnx" if target == "onnx" else f"model.{target}",
        "input": TensorInfo(name="image", shape=(1, 3, SIDE, SIDE), layout="NCHW", dtype="float32"),
        "outputs": [TensorInfo(name="logits", shape=(1, CLASSES), layout="NC", dtype="float32")],
        "preprocessing": Preprocessing(input_size=SIDE),
        "quantization": Quantization(macs={"fp32": 1000 * depth}, parameters={"fp32": 100 * depth}),
    }
    return with_manifest(folder, **(fields | changes))


def with_manifest(folder: Path, **fields: object) -> Artifact:
    """The artifact whose model file lies in ``folder``: ``fields``, and what most tests do not care about."""
    usual: dict[str, object] = {
        "scheme": "fp32",
        "graph": "deploy",
        "labels": None,
        "rewrites": ["FoldBatchNorm"],
        "parity": Parity(
            inputs="seeded normal",
            samples=4,
            max_abs_error=1e-6,
            logits_range=2.0,
            agreement=1.0,
            sqnr_db=120.0,
            tolerance=1e-4,
        ),
        "tools": {"onnx": onnx.__version__},
        "created": "2026-01-01T00:00:00+00:00",
        "files": list_files(folder),
    }
    (folder / MANIFEST_NAME).write_text(Manifest.model_validate(usual | fields).model_dump_json())
    return Artifact.open(folder)


def convolutions(depth: int) -> onnx.ModelProto:
    """``depth`` convolutions, the mean over the picture, a linear layer: image -> logits."""
    generator = np.random.default_rng(depth)
    weights, nodes, value = [], [], "image"
    for index in range(depth):
        shape = (CHANNELS, CHANNELS if index else 3, 3, 3)
        weight = (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [value, f"w{index}"], [f"x{index}"], pads=[1, 1, 1, 1]))
        value = f"x{index}"
    head = generator.standard_normal((CHANNELS, CLASSES)).astype(np.float32)
    weights.append(numpy_helper.from_array(head, "head"))
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    nodes.append(helper.make_node("MatMul", ["features", "head"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, SIDE, SIDE))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, CLASSES))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
