"""How coremltools converts the operations that our rewrites add to PyTorch's."""

from functools import cache
from typing import Any

import numpy as np

from mf_deploy.export.lower.channel_norm import OPERATION


@cache
def register_operations() -> None:
    """Tell coremltools of them, once; within ``quiet_coremltools``."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op

    @register_torch_op(torch_alias=[OPERATION])
    def mf_deploy_channel_norm(context: Any, node: Any) -> None:
        x, weight, bias, eps = _get_inputs(context, node, expected=4)
        norm = mb.layer_norm(
            x=x, axes=[1], gamma=weight, beta=bias, epsilon=np.float32(eps.val), name=node.name
        )
        context.add(norm)
