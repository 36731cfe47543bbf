"""Operations on whole tensors: shapes, slices, joins, gathers, reductions."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mf_deploy.mil.program import integers, parameter, unsupported
from mf_deploy.mil.rules import Kernel, register_function, rule

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Operation

register_function("identity", lambda x: x, moves_only=True)


def _static_shape(operation: "Operation") -> list[int]:
    shape = operation.outputs[0].shape
    if not all(isinstance(size, int) or hasattr(size, "__index__") for size in shape):
        raise unsupported(operation, "its shape is not static")
    return [int(size) for size in shape]


@rule("reshape", "expand_dims", "squeeze", "flatten2d", "reshape_like", moves_only=True)
def _reshape(operation: "Operation") -> Kernel:
    shape = _static_shape(operation)
    return lambda x: x.reshape(shape)


@rule("transpose", moves_only=True)
def _transpose(operation: "Operation") -> Kernel:
    order = integers(operation, "perm") or []
    return lambda x: x.permute(order)


@rule("concat", tensors=("values",), moves_only=True)
def _concat(operation: "Operation") -> Kernel:
    axis = parameter(operation, "axis")
    if parameter(operation, "interleave"):
        shape = _static_shape(operation)
        return lambda *xs: torch.stack(xs, (axis % len(shape)) + 1).reshape(shape)
    return lambda *xs: torch.cat(xs, axis)


@rule("stack", tensors=("values",), moves_only=True)
def _stack(operation: "Operation") -> Kernel:
    axis = parameter(operation, "axis")
    return lambda *xs: torch.stack(xs, axis)


@rule("split", moves_only=True)
def _split(operation: "Operation") -> Kernel:
    axis = parameter(operation, "axis")
    sizes = [int(output.shape[axis]) for output in operation.outputs]
    return lambda x: torch.split(x, sizes, axis)


@rule("tile", moves_only=True)
def _tile(operation: "Operation") -> Kernel:
    repeats = integers(operation, "reps") or []
    return lambda x: x.repeat(repeats)


@rule("reverse", moves_only=True)
def _reverse(operation: "Operation") -> Kernel:
    axes = integers(operation, "axes") or list(range(operation.inputs["x"].rank))
    return lambda x: x.flip(axes)


@rule("slice_by_index", moves_only=True)
def _slice_by_index(operation: "Operation") -> Kernel:
    rank = operation.inputs["x"].rank
    begin, end = integers(operation, "begin") or [], integers(operation, "end") or []
    stride = integers(operation, "stride") or [1] * rank
    masks = {
        name: integers(operation, name) or [0] * rank for name in ("begin_mask", "end_mask", "squeeze_mask")
    }
    index: list[int | slice] = []
    flipped = []
    for axis, size in enumerate(int(size) for size in operation.inputs["x"].shape):
        if masks["squeeze_mask"][axis]:
            index.append(begin[axis])
            continue
        first = None if masks["begin_mask"][axis] else begin[axis]
        last = None if masks["end_mask"][axis] else end[axis]
        chosen = range(size)[first : last : stride[axis]]
        if stride[axis] < 0 and len(chosen):
            flipped.append(len(index) - sum(isinstance(part, int) for part in index))
            chosen = chosen[::-1]
        index.append(slice(chosen.start, chosen.stop, chosen.step))
    key = tuple(index)
    if flipped:
        return lambda x: x[key].flip(flipped)
    return lambda x: x[key]


@rule("slice_by_size", moves_only=True)
def _slice_by_size(operation: "Operation") -> Kernel:
    begin = integers(operation, "begin") or []
    key = tuple(
        slice(start, start + size) for start, size in zip(begin, _static_shape(operation), strict=True)
    )
    return lambda x: x[key]


@rule("gather", tensors=("x", "indices"), moves_only=True)
def _gather(operation: "Operation") -> Kernel:
    if parameter(operation, "batch_dims"):
        raise unsupported(operation, "batch_dims is not supported")
    axis = parameter(operation, "axis") % operation.inputs["x"].rank
    shape, size = _static_shape(operation), int(operation.inputs["x"].shape[axis])

    def run(x: Tensor, indices: Tensor) -> Tensor:
        return torch.index_select(x, axis, indices.reshape(-1) % size).reshape(shape)

    return run


@rule("gather_along_axis", tensors=("x", "indices"), moves_only=True)
def _gather_along_axis(operation: "Operation") -> Kernel:
    axis = parameter(operation, "axis")
    return lambda x, indices: torch.gather(x, axis, indices % x.shape[axis])


@rule("pad", moves_only=True)
def _pad(operation: "Operation") -> Kernel:
    pad = integers(operation, "pad") or []
    flat = [side for start in range(len(pad) - 2, -1, -2) for side in (pad[start], pad[start + 1])]
    mode = parameter(operation, "mode")
    if mode == "constant":
        value = parameter(operation, "constant_val")
        return lambda x: F.pad(x, flat, value=value)
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return lambda x: F.pad(x, flat, mode=mode)


@rule("fill", tensors=(), moves_only=True)
def _fill(operation: "Operation") -> Kernel:
    return partial(torch.full, _static_shape(operation), parameter(operation, "value"))


@rule("fill_like", tensors=(), moves_only=True)
def _fill_like(operation: "Operation") -> Kernel:
    return partial(torch.full, _static_shape(operation), parameter(operation, "value"))


@rule("pixel_shuffle", moves_only=True)
def _pixel_shuffle(operation: "Operation") -> Kernel:
    factor = parameter(operation, "upscale_factor")
    return lambda x: F.pixel_shuffle(x, factor)


@rule("pixel_unshuffle", moves_only=True)
def _pixel_unshuffle(operation: "Operation") -> Kernel:
    factor = parameter(operation, "downscale_factor")
    return lambda x: F.pixel_unshuffle(x, factor)


@rule("band_part", moves_only=True)
def _band_part(operation: "Operation") -> Kernel:
    rows, columns = operation.inputs["x"].shape[-2:]
    lower, upper = parameter(operation, "lower"), parameter(operation, "upper")
    lower, upper = (rows if lower < 0 else lower), (columns if upper < 0 else upper)
    return lambda x: x.tril(upper).triu(-lower)


@rule("cumsum")
def _cumsum(operation: "Operation") -> Kernel:
    if parameter(operation, "exclusive") or parameter(operation, "reverse"):
        raise unsupported(operation, "exclusive and reverse sums are not supported")
    axis = parameter(operation, "axis")
    return lambda x: torch.cumsum(x, axis)


@rule("topk", moves_only=True)
def _topk(operation: "Operation") -> Kernel:
    count, axis = parameter(operation, "k"), parameter(operation, "axis")
    largest = not parameter(operation, "ascending")
    return lambda x: torch.topk(x, count, axis, largest)


_REDUCTIONS = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "reduce_log_sum_exp": torch.logsumexp,
    "reduce_max": torch.amax,
    "reduce_mean": torch.mean,
    "reduce_min": torch.amin,
    "reduce_sum": torch.sum,
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keep),
}


@rule(*_REDUCTIONS)
def _reduce(operation: "Operation") -> Kernel:
    function: Any = _REDUCTIONS[operation.op_type]
    axes = integers(operation, "axes") or list(range(operation.inputs["x"].rank))
    keep = parameter(operation, "keep_dims")
    return lambda x: function(x, axes, keep)


@rule("reduce_argmax", "reduce_argmin", moves_only=True)
def _reduce_arg(operation: "Operation") -> Kernel:
    function = torch.argmax if operation.op_type == "reduce_argmax" else torch.argmin
    axis, keep = parameter(operation, "axis"), parameter(operation, "keep_dims")
    return lambda x: function(x, axis, keep)
