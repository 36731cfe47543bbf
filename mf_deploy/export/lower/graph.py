"""The graph that goes to the exporters, and what a rewrite of it is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from mf_deploy.models.stored import ModelRecord


@dataclass(frozen=True)
class DeployGraph:
    """A module in eval mode with a static batch, and how it came about.

    ``module`` maps (batch, 3, H, W) float32, normalised, to (batch, classes) logits.
    """

    module: nn.Module
    record: ModelRecord
    batch: int = 1
    kind: Literal["deploy", "reference"] = "deploy"
    rewrites: tuple[str, ...] = ()

    def example(self) -> torch.Tensor:
        """A seeded normal input of the graph's shape."""
        side = self.record.preprocessing.input_size
        return torch.randn(self.batch, 3, side, side, generator=torch.Generator().manual_seed(0))

    def rewritten(self, name: str, module: nn.Module) -> "DeployGraph":
        """The same graph with another module, ``name`` added to its rewrites."""
        return replace(self, module=module, rewrites=(*self.rewrites, name))

    def recast(
        self, name: str, kinds: Mapping[type, type], fits: Callable[[Any], bool] = lambda _: True
    ) -> "DeployGraph":
        """The same graph whose modules of exactly these classes, where they fit, compute as others do.

        The graph itself where there are none.
        """
        found = [module for module in self.module.modules() if type(module) in kinds and fits(module)]
        for module in found:
            module.__class__ = kinds[type(module)]
        return self.rewritten(name, self.module) if found else self


class Rewrite(ABC):
    """One exact change of the graph. ``apply`` may change the module in place: it is a private copy."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def apply(self, graph: DeployGraph) -> DeployGraph:
        """The rewritten graph, or ``graph`` itself where there is nothing to rewrite."""
