"""What every runtime has in common: pictures go in, float logits come out."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

from mf_deploy.artifact import TensorInfo
from mf_deploy.errors import MfDeployError
from mf_deploy.preprocessing import Preprocessing


class Session(ABC):
    """An open model. ``run`` may be called from several threads; calls are then serialised.

    A subclass runs one batch of exactly ``input.shape`` in ``_infer``; everything that a caller
    should not have to know (layout, normalisation, padding the last batch) happens here.
    """

    name: str
    input: TensorInfo
    preprocessing: Preprocessing
    device: str = "host"
    remark: str | None = None
    """What a reader of its results should know of how they came about."""

    def __init__(self, name: str, input: TensorInfo, preprocessing: Preprocessing) -> None:
        self.name, self.input, self.preprocessing = name, input, preprocessing
        self._lock = threading.Lock()

    @property
    def batch_size(self) -> int:
        return self.input.shape[0]

    def prepare(self, batch: np.ndarray) -> np.ndarray:
        """Pictures (N, H, W, 3) uint8, or normalised (N, 3, H, W) float32, as the model's own input."""
        side = self.preprocessing.input_size
        if batch.dtype == np.uint8 and batch.shape[1:] == (side, side, 3):
            if self.input.dtype in ("uint8", "int8"):
                pictures = batch if self.input.dtype == "uint8" else (batch ^ 0x80).view(np.int8)
                return pictures if self.input.layout == "NHWC" else pictures.transpose(0, 3, 1, 2)
            batch = self.preprocessing.normalize(batch)
        elif batch.dtype != np.float32 or batch.shape[1:] != (3, side, side):
            raise MfDeployError(
                f"Cannot run {self.name}",
                f"got {batch.dtype} {batch.shape}",
                f"Give (N, {side}, {side}, 3) uint8 pictures or (N, 3, {side}, {side}) float32.",
            )
        elif self.input.dtype in ("uint8", "int8"):
            raise MfDeployError(
                f"Cannot run {self.name}", "it takes pictures, not normalised floats", "Give uint8 pictures."
            )
        if self.input.layout == "NHWC":
            batch = batch.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(batch.astype(self.input.dtype, copy=False))

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Run any number of samples; every output comes back as float32 with N rows.

        Args:
            batch: (N, H, W, 3) uint8 RGB pictures, or (N, 3, H, W) float32, already normalised.
        """
        prepared = self.prepare(batch)
        size = self.batch_size
        parts: list[dict[str, np.ndarray]] = []
        for start in range(0, len(prepared), size):
            chunk = prepared[start : start + size]
            padding = size - len(chunk)
            if padding:
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], padding, axis=0)])
            with self._lock:
                outputs = self._infer(np.ascontiguousarray(chunk))
            parts.append({name: value[: size - padding] for name, value in outputs.items()})
        return {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in parts[0]}

    def run_prepared(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        """One inference on an input from ``prepare``, with nothing around it: what a benchmark times."""
        with self._lock:
            return self._infer(prepared)

    def intermediates(self, batch: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Every float tensor inside the model, by name, for one inference after the other.

        Quantized tensors come as the floats that they stand for. Fused kernels are taken apart for it, so
        the last digits may differ from those of ``run``.

        Args:
            batch: as for ``run``; the number of samples is a multiple of ``batch_size``.

        Raises:
            MfDeployError: this runtime cannot show what is inside a model.
        """
        raise MfDeployError(
            f"Cannot look inside {self.name}",
            f"{type(self).__name__} shows outputs only",
            "Look inside an artifact of another target.",
        )

    def _chunks(self, batch: np.ndarray) -> Iterator[np.ndarray]:
        """``batch`` as inputs of exactly ``batch_size`` samples each."""
        prepared = self.prepare(batch)
        for start in range(0, len(prepared) - self.batch_size + 1, self.batch_size):
            yield np.ascontiguousarray(prepared[start : start + self.batch_size])

    @abstractmethod
    def _infer(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        """Run one batch of the model's own shape, layout and dtype; outputs as float arrays."""
