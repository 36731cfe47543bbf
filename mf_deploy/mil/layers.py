"""Layers: convolution, linear algebra, normalisation, pooling, resizing, attention."""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mf_deploy.mil.program import integers, parameter, unsupported
from mf_deploy.mil.rules import Kernel, register_function, rule

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Operation

Padding = list[tuple[int, int]]
"""Elements (before, after) each spatial dimension."""

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
_MAX_POOLS = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}
_AVERAGE_POOLS = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}


def _padding(operation: "Operation", kernel: list[int], strides: list[int], dilations: list[int]) -> Padding:
    kind = parameter(operation, "pad_type")
    if kind == "valid":
        return [(0, 0)] * len(kernel)
    if kind == "custom":
        pad = integers(operation, "pad") or []
        return list(zip(pad[::2], pad[1::2], strict=True))
    sides: Padding = []
    sizes = operation.inputs["x"].shape[2:]
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        sides.append((small, large) if kind == "same" else (large, small))
    return sides


def _flat(padding: Padding) -> list[int]:
    """As ``torch.nn.functional.pad`` wants it: last dimension first."""
    return [side for pair in reversed(padding) for side in pair]


def _symmetric(padding: Padding) -> bool:
    return all(before == after for before, after in padding)


@rule("conv", tensors=("x", "weight", "bias"))
def _conv(operation: "Operation") -> Kernel:
    strides, dilations = integers(operation, "strides") or [], integers(operation, "dilations") or []
    padding = _padding(operation, list(operation.inputs["weight"].shape[2:]), strides, dilations)
    convolve = _CONVOLUTIONS[operation.inputs["x"].rank]
    settings = {"stride": strides, "dilation": dilations, "groups": parameter(operation, "groups")}
    if _symmetric(padding):
        return partial(convolve, padding=[before for before, _ in padding], **settings)
    flat = _flat(padding)
    return lambda x, weight, bias: convolve(F.pad(x, flat), weight, bias, **settings)


@rule("conv_transpose", tensors=("x", "weight", "bias"))
def _conv_transpose(operation: "Operation") -> Kernel:
    strides, dilations = integers(operation, "strides") or [], integers(operation, "dilations") or []
    if parameter(operation, "pad_type") not in ("valid", "custom"):
        raise unsupported(operation, f"pad_type {parameter(operation, 'pad_type')} is not supported")
    padding = _padding(operation, list(operation.inputs["weight"].shape[2:]), strides, dilations)
    shape = operation.outputs[0].shape[2:]
    convolve = _TRANSPOSED[operation.inputs["x"].rank]
    groups = parameter(operation, "groups")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        full = convolve(x, weight, bias, stride=strides, groups=groups, dilation=dilations)
        for axis, ((before, _), size) in enumerate(zip(padding, shape, strict=True), start=2):
            missing = before + size - full.shape[axis]
            if missing > 0:
                raise unsupported(operation, "an output_shape beyond the full convolution is not supported")
            full = full.narrow(axis, before, size)
        return full

    return run


@rule("matmul", tensors=("x", "y"))
def _matmul(operation: "Operation") -> Kernel:
    flip_x, flip_y = parameter(operation, "transpose_x"), parameter(operation, "transpose_y")

    def run(x: Tensor, y: Tensor) -> Tensor:
        return torch.matmul(x.mT if flip_x else x, y.mT if flip_y else y)

    return run


@rule("einsum", tensors=("values",))
def _einsum(operation: "Operation") -> Kernel:
    return partial(torch.einsum, parameter(operation, "equation"))


@rule("scaled_dot_product_attention", tensors=("query", "key", "value", "attn_mask"))
def _attention(operation: "Operation") -> Kernel:
    return lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@rule("batch_norm", tensors=("x", "mean", "variance", "gamma", "beta"))
def _batch_norm(operation: "Operation") -> Kernel:
    epsilon = parameter(operation, "epsilon")
    return lambda x, mean, variance, gamma, beta: F.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


@rule("instance_norm", tensors=("x", "gamma", "beta"))
def _instance_norm(operation: "Operation") -> Kernel:
    epsilon = parameter(operation, "epsilon")
    return lambda x, gamma, beta: F.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


@rule("layer_norm", tensors=("x", "gamma", "beta"))
def _layer_norm(operation: "Operation") -> Kernel:
    x, epsilon = operation.inputs["x"], parameter(operation, "epsilon")
    axes = sorted(axis % x.rank for axis in integers(operation, "axes") or range(x.rank))
    shape = [int(x.shape[axis]) for axis in axes]
    last = list(range(x.rank - len(axes), x.rank))

    def run(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        return F.layer_norm(x.movedim(axes, last), shape, gamma, beta, epsilon).movedim(last, axes)

    return run


@rule("l2_norm")
def _l2_norm(operation: "Operation") -> Kernel:
    epsilon = parameter(operation, "epsilon")
    return lambda x: x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


def _pool_geometry(operation: "Operation") -> tuple[list[int], list[int], Padding, bool]:
    kernel = integers(operation, "kernel_sizes") or []
    strides = integers(operation, "strides") or kernel
    return (
        kernel,
        strides,
        _padding(operation, kernel, strides, [1] * len(kernel)),
        parameter(operation, "ceil_mode"),
    )


@rule("max_pool", moves_only=True)
def _max_pool(operation: "Operation") -> Kernel:
    kernel, strides, padding, ceil = _pool_geometry(operation)
    pool, flat = _MAX_POOLS[operation.inputs["x"].rank], _flat(padding)
    return lambda x: pool(F.pad(x, flat, value=-torch.inf), kernel, strides, ceil_mode=ceil)


@rule("avg_pool")
def _avg_pool(operation: "Operation") -> Kernel:
    kernel, strides, padding, ceil = _pool_geometry(operation)
    pool = _AVERAGE_POOLS[operation.inputs["x"].rank]
    counts_padding = not parameter(operation, "exclude_padding_from_average")
    if _symmetric(padding):
        sides = [before for before, _ in padding]
        return lambda x: pool(x, kernel, strides, sides, ceil_mode=ceil, count_include_pad=counts_padding)
    flat = _flat(padding)

    def run(x: Tensor) -> Tensor:
        mean = pool(F.pad(x, flat), kernel, strides, ceil_mode=ceil)
        if counts_padding:
            return mean
        return mean / pool(F.pad(torch.ones_like(x), flat), kernel, strides, ceil_mode=ceil)

    return run


_ALIGNED = {"ALIGN_CORNERS": True, "STRICT_ALIGN_CORNERS": True, "UNALIGN_CORNERS": False}


@rule(
    "upsample_bilinear", "resize_bilinear", "upsample_nearest_neighbor", "resize_nearest_neighbor", "resize"
)
def _resize(operation: "Operation") -> Kernel:
    size = [int(side) for side in operation.outputs[0].shape[-2:]]
    mode = str(parameter(operation, "interpolation_mode") or operation.op_type).upper()
    sampling = parameter(operation, "sampling_mode")
    if "NEAREST" in mode:
        if operation.op_type == "resize" and sampling != "UNALIGN_CORNERS":
            raise unsupported(operation, f"nearest-neighbour sampling_mode {sampling} is not supported")
        return lambda x: F.interpolate(x, size, mode="nearest")
    if sampling is None:
        aligned = parameter(operation, "align_corners")
        if not aligned and parameter(operation, "half_pixel_centers") is False:
            raise unsupported(operation, "half_pixel_centers=False is not supported")
    elif sampling in _ALIGNED:
        aligned = _ALIGNED[sampling]
    else:
        raise unsupported(operation, f"sampling_mode {sampling} is not supported")
    return lambda x: F.interpolate(x, size, mode="bilinear", align_corners=aligned)


register_function("linear", F.linear, "x", "weight", "bias")
