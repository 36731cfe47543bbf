"""The network behind a camera: scaling and normalisation become part of the graph."""

import torch
from torch import Tensor, nn

from mf_deploy.preprocessing import Preprocessing


class PictureInput(nn.Module):
    """Takes (N, H, W, 3) pictures of any dtype, where ``network`` takes normalised NCHW.

    The picture's bytes in [0, 255], or those minus ``shift``.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, shift: int = 0) -> None:
        super().__init__()
        self.network = network
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64) - shift / 255
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("offset", (-mean / std).float())

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network((pictures.float() * self.scale + self.offset).permute(0, 3, 1, 2))


class HalfPrecision(nn.Module):
    """float32 in and out around a float16 network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.half()).float()
