"""What a quantization aims for."""

from dataclasses import dataclass

from mf_deploy.artifact import SCHEMES
from mf_deploy.errors import MfDeployError, nearest

QUANTIZED_SCHEMES = ("w8a8", "w8", "fp16")


@dataclass(frozen=True)
class QuantPolicy:
    """``scheme``: w8a8 (weights and activations in int8), w8 (weights only) or fp16."""

    scheme: str = "w8a8"

    def __post_init__(self) -> None:
        if self.scheme not in QUANTIZED_SCHEMES:
            why = "not built yet" if self.scheme in SCHEMES else "it is not supported"
            raise MfDeployError(
                f"Unknown scheme {self.scheme!r}", why, nearest(self.scheme, list(QUANTIZED_SCHEMES))
            )
