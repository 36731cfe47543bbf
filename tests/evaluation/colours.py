"""A small classifier of colours with real images, a PyTorch reference and ONNX artifacts made from it."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny_artifacts import with_manifest
from torch import nn

from mf_deploy.artifact import Artifact, ModelSource, Quantization, TensorInfo
from mf_deploy.models.stored import save_reference
from mf_deploy.preprocessing import Preprocessing

SIDE, WIDTH = 16, 8
COLOURS = {
    "blue": (60, 60, 190),
    "cyan": (60, 190, 190),
    "green": (60, 190, 60),
    "magenta": (190, 60, 190),
    "red": (190, 60, 60),
    "yellow": (190, 190, 60),
}
PREPROCESSING = Preprocessing(input_size=SIDE, crop_fraction=1.0)


def write_images(folder: Path, per_class: int = 20, seed: int = 0) -> Path:
    """``per_class`` noisy pictures of each colour, as class folders."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = np.array(colour) + rng.normal(0, 60, 3) + rng.normal(0, 40, (SIDE, SIDE, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{name}-{seed}-{index}.png")
    return folder


class ColourNet(nn.Module):
    """Convolution, batch norm, ReLU, mean over the picture, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.act = nn.ReLU()
        self.head = nn.Linear(WIDTH, len(COLOURS))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.norm(self.conv(image))).mean((2, 3)))


def untrained() -> ColourNet:
    """The factory that the run's model.json names."""
    return ColourNet()


def fitted() -> ColourNet:
    """A random convolution, and a head fitted by least squares to the pure colours."""
    generator = torch.Generator().manual_seed(0)
    model = ColourNet().eval().requires_grad_(False)
    model.conv.weight.copy_(torch.randn(model.conv.weight.shape, generator=generator) / 5)
    model.norm.running_var.fill_(4.0)
    model.norm.running_mean.copy_(torch.randn(WIDTH, generator=generator) / 5)
    pure = np.stack([np.broadcast_to(np.uint8(colour), (SIDE, SIDE, 3)) for colour in COLOURS.values()])
    features = model.act(model.norm(model.conv(torch.from_numpy(PREPROCESSING.normalize(pure))))).mean((2, 3))
    model.head.weight.copy_((torch.linalg.pinv(features) @ torch.eye(len(COLOURS)) * 4).T)
    model.head.bias.zero_()
    return model


def write_run(run: Path, model: nn.Module, labels: list[str] | None = None, **source: object) -> Path:
    """The reference of a run: model.safetensors and model.json."""
    save_reference(run, model, model_source(**source), PREPROCESSING, labels)
    return run


def model_source(**changes: object) -> ModelSource:
    fields = {"name": "colours", "factory": "colours:untrained", "num_classes": len(COLOURS)}
    return ModelSource.model_validate(fields | changes)


def write_artifact(
    folder: Path, net: ColourNet, scheme: str = "fp32", noise: float = 0.0, **changes: object
) -> Artifact:
    """``net`` as an ONNX artifact with folded batch norm; ``noise`` is added to the head's weights."""
    folder.mkdir(parents=True)
    onnx.save(_onnx_model(net, noise), str(folder / "model.onnx"))
    usual: dict[str, object] = {
        "target": "onnx",
        "scheme": scheme,
        "model": model_source(),
        "model_file": "model.onnx",
        "input": TensorInfo(name="image", shape=(1, 3, SIDE, SIDE), layout="NCHW", dtype="float32"),
        "outputs": [TensorInfo(name="logits", shape=(1, len(COLOURS)), layout="NC", dtype="float32")],
        "preprocessing": PREPROCESSING,
        "labels": list(COLOURS),
        "quantization": Quantization(macs={"fp32": 1000}, parameters={"fp32": 100}),
    }
    return with_manifest(folder, **(usual | changes))


def _onnx_model(model: ColourNet, noise: float) -> onnx.ModelProto:
    norm = model.norm
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    head = model.head.weight.T
    head = head + noise * torch.randn(head.shape, generator=torch.Generator().manual_seed(1)) * head.std()
    weights = {
        "conv.weight": model.conv.weight * scale[:, None, None, None],
        "conv.bias": norm.bias - norm.running_mean * scale,
        "head.weight": head,
        "head.bias": model.head.bias,
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight", "conv.bias"], ["normed"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["normed"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, SIDE, SIDE))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, len(COLOURS)))],
        [numpy_helper.from_array(value.detach().numpy(), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
