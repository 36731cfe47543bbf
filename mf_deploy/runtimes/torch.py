"""PyTorch modules as sessions: the reference that everything else is compared with."""

from typing import Literal

import numpy as np
import torch
from torch import nn

from mf_deploy.artifact import TensorInfo
from mf_deploy.preprocessing import Preprocessing
from mf_deploy.runtimes.session import Session


class TorchSession(Session):
    """A module from normalised (batch, 3, H, W) images to logits, run on the CPU in float32."""

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Preprocessing,
        batch: int = 1,
        threads: int = 1,
        name: str = "pytorch-fp32",
    ) -> None:
        side = preprocessing.input_size
        layout: Literal["NCHW"] = "NCHW"
        info = TensorInfo(name="image", shape=(batch, 3, side, side), layout=layout, dtype="float32")
        super().__init__(name, info, preprocessing)
        self.module, self.threads = module.eval(), threads

    def _infer(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return {"logits": self.module(torch.from_numpy(prepared)).numpy()}
