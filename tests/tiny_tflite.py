"""A network that litert-torch converts in seconds, with the shapes that classifiers are made of."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.artifact import ModelSource
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.models.stored import ModelRecord
from mf_deploy.preprocessing import Preprocessing

SIDE, CLASSES = 32, 5
LABELS = ["cat", "dog", "a  bird", "fish", "frog"]


class TinyNet(nn.Module):
    """Stride-2 stem, depthwise, a dead 1×1 convolution (never above zero), and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.dead = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, CLASSES)
        nn.init.constant_(self.dead.bias, -100)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu6(self.depthwise(F.relu(self.stem(images))))
        features = features + F.relu6(self.dead(features))
        return self.head(features.mean((2, 3)))


def tiny_graph(batch: int = 1) -> DeployGraph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = TinyNet().eval().requires_grad_(False)
    record = ModelRecord(
        source=ModelSource(name="tiny", num_classes=CLASSES),
        preprocessing=Preprocessing(input_size=SIDE),
        labels=LABELS,
        weights_sha256="0" * 64,
    )
    return DeployGraph(module, record, batch)
