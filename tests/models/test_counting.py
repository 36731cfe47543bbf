"""Counts against sums done by hand."""

import pytest
import torch
from torch import Tensor, nn

from mf_deploy.models.counting import count_macs, count_parameters, summarize
from mf_deploy.models.empty import build_empty
from mf_deploy.models.registry import get_spec


class Attention(nn.Module):
    """A grouped convolution, self-attention over its 16 positions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(self.conv(images)).flatten(2).transpose(1, 2)
        tokens = (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens
        return self.head(tokens.mean(1))


def test_macs_by_hand() -> None:
    convolution = 6 * 4 * 4 * (3 * 3 * 1)
    attention = 2 * (16 * 16 * 6)
    assert count_macs(Attention(), 8) == convolution + attention + 6 * 5


def test_parameters_by_hand() -> None:
    assert count_parameters(Attention()) == 6 * 9 + 2 * 6 + (6 * 5 + 5)


def test_counting_leaves_the_model_as_it_was() -> None:
    model = Attention().train()
    model.norm.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_macs(model, 8)
    assert model.training
    assert model.conv.training
    assert not model.norm.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_failing_model_keeps_its_mode() -> None:
    model = Attention().train()
    model.conv = nn.Conv2d(7, 7, 1)
    with pytest.raises(RuntimeError):
        count_macs(model, 8)
    assert model.training


@pytest.mark.parametrize("name", ["mobile_former_26m", "mobile_former_96m_spatial", "mobilenet_v3_small"])
def test_device_does_not_matter(name: str) -> None:
    """Kernels differ by device; the operators that are counted must not."""
    spec = get_spec(name)
    assert summarize(spec).macs == count_macs(build_empty(spec, 1000), 224)


@pytest.mark.parametrize("variant", ["26m", "52m", "96m", "151m", "214m", "294m", "508m"])
def test_mobile_former_has_the_published_size(variant: str) -> None:
    summary = summarize(get_spec(f"mobile_former_{variant}"))
    assert summary.published_params_m == round(summary.params / 1e6, 1)
    assert summary.published_macs_m is not None
    assert 0.9 < summary.macs / 1e6 / summary.published_macs_m < 1.0
