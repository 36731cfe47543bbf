"""The MIL interpreter against coremltools' own evaluation of constants, and against torch."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mf_deploy.errors import MfDeployError
from mf_deploy.mil import Interpreter, MilProgram, load_package, quiet_coremltools, read_program

with quiet_coremltools():
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

SHAPE = (2, 4, 6, 5)

# Each takes one tensor of SHAPE. coremltools evaluates it on a constant with its own NumPy formula.
EVALUATED: dict[str, Callable[[Any], Any]] = {
    "abs": lambda x: mb.abs(x=x),
    "add": lambda x: mb.add(x=x, y=np.float32(0.25)),
    "band_part": lambda x: mb.band_part(x=x, lower=1, upper=0),
    "cast": lambda x: mb.cast(x=mb.cast(x=x, dtype="int32"), dtype="fp32"),
    "ceil": lambda x: mb.ceil(x=x),
    "clip": lambda x: mb.clip(x=x, alpha=-0.5, beta=0.75),
    "concat": lambda x: mb.concat(values=[x, x, x], axis=-2),
    "cumsum": lambda x: mb.cumsum(x=x, axis=2),
    "elu": lambda x: mb.elu(x=x, alpha=0.7),
    "erf": lambda x: mb.erf(x=x),
    "exp": lambda x: mb.exp(x=x),
    "expand_dims": lambda x: mb.expand_dims(x=mb.reduce_sum(x=x, axes=[0]), axes=[0, 2]),
    "fill": lambda x: mb.add(x=mb.fill(shape=SHAPE, value=0.5), y=x),
    "floor": lambda x: mb.floor(x=x),
    "gather": lambda x: mb.gather(x=x, indices=np.int32([[2, 0], [3, 3]]), axis=1),
    "gather_scalar": lambda x: mb.gather(x=x, indices=np.int32(2), axis=2),
    "gather_along_axis": lambda x: mb.gather_along_axis(
        x=x, indices=np.int32(np.arange(2 * 4 * 3 * 5).reshape(2, 4, 3, 5) % 6), axis=2
    ),
    "gelu": lambda x: mb.gelu(x=x, mode="EXACT"),
    "gelu_tanh": lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
    "gelu_sigmoid": lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
    "greater": lambda x: mb.cast(x=mb.greater(x=x, y=np.float32(0.1)), dtype="fp32"),
    "inverse": lambda x: mb.inverse(x=mb.add(x=mb.abs(x=x), y=np.float32(1))),
    "leaky_relu": lambda x: mb.leaky_relu(x=x, alpha=0.1),
    "linear_activation": lambda x: mb.linear_activation(x=x, alpha=2.0, beta=0.5),
    "log": lambda x: mb.log(x=mb.abs(x=x), epsilon=0.01),
    "matmul": lambda x: mb.matmul(x=x, y=x, transpose_y=True),
    "maximum": lambda x: mb.maximum(x=x, y=mb.mul(x=x, y=np.float32(-0.5))),
    "minimum": lambda x: mb.minimum(x=x, y=np.float32(0.3)),
    "pad": lambda x: mb.pad(x=x, pad=[1, 0, 2, 3], constant_val=1.5),
    "pad_reflect": lambda x: mb.pad(x=x, pad=[0, 0, 0, 0, 2, 1, 1, 3], mode="reflect"),
    "pad_replicate": lambda x: mb.pad(x=x, pad=[1, 2, 0, 1], mode="replicate"),
    "pow": lambda x: mb.pow(x=mb.abs(x=x), y=np.float32(1.5)),
    "prelu": lambda x: mb.prelu(x=x, alpha=np.float32([0.1, 0.2, 0.3, 0.4])),
    "real_div": lambda x: mb.real_div(x=x, y=np.float32(3)),
    "reduce_argmax": lambda x: mb.cast(x=mb.reduce_argmax(x=x, axis=1), dtype="fp32"),
    "reduce_l2_norm": lambda x: mb.reduce_l2_norm(x=x, axes=[1, 2]),
    "reduce_max": lambda x: mb.reduce_max(x=x, axes=[-1]),
    "reduce_mean": lambda x: mb.reduce_mean(x=x, axes=[2, 3], keep_dims=True),
    "reduce_mean_all": lambda x: mb.reduce_mean(x=x, keep_dims=True),
    "reduce_min": lambda x: mb.reduce_min(x=x, axes=[0]),
    "reduce_sum": lambda x: mb.reduce_sum(x=x, axes=[1]),
    "reduce_sum_square": lambda x: mb.reduce_sum_square(x=x, axes=[1]),
    "relu": lambda x: mb.relu(x=x),
    "relu6": lambda x: mb.relu6(x=mb.mul(x=x, y=np.float32(5))),
    "reshape": lambda x: mb.reshape(x=x, shape=[4, -1, 3]),
    "reverse": lambda x: mb.reverse(x=x, axes=[1, 3]),
    "round": lambda x: mb.round(x=x),
    "rsqrt": lambda x: mb.rsqrt(x=mb.abs(x=x), epsilon=0.01),
    "select": lambda x: mb.select(cond=mb.less(x=x, y=np.float32(0)), a=x, b=mb.square(x=x)),
    "sigmoid": lambda x: mb.sigmoid(x=x),
    "sigmoid_hard": lambda x: mb.sigmoid_hard(x=x, alpha=0.3, beta=0.4),
    "sign": lambda x: mb.sign(x=x),
    "slice_by_index": lambda x: mb.slice_by_index(
        x=x, begin=[0, 1, -4, 0], end=[2, 4, 6, -1], stride=[1, 2, 3, 1]
    ),
    "slice_backwards": lambda x: mb.slice_by_index(
        x=x, begin=[0, 3, 5, 0], end=[2, 0, 0, 5], stride=[1, -1, -2, 1], end_mask=[False, False, True, False]
    ),
    "slice_squeeze": lambda x: mb.slice_by_index(
        x=x, begin=[0, 2, 0, 1], end=[0] * 4, squeeze_mask=[False, True, False, False], end_mask=[True] * 4
    ),
    "slice_by_size": lambda x: mb.slice_by_size(x=x, begin=[0, 1, 2, 0], size=[2, 2, -1, 3]),
    "softmax": lambda x: mb.softmax(x=x, axis=1),
    "softplus": lambda x: mb.softplus(x=x),
    "softsign": lambda x: mb.softsign(x=x),
    "split": lambda x: mb.concat(values=mb.split(x=x, num_splits=2, axis=1)[::-1], axis=0),
    "split_sizes": lambda x: mb.split(x=x, split_sizes=[1, 3], axis=1)[1],
    "sqrt": lambda x: mb.sqrt(x=mb.abs(x=x)),
    "square": lambda x: mb.square(x=x),
    "squeeze": lambda x: mb.squeeze(x=mb.reduce_max(x=x, axes=[0, 3], keep_dims=True), axes=[0]),
    "stack": lambda x: mb.stack(values=[x, mb.relu(x=x)], axis=2),
    "sub": lambda x: mb.sub(x=np.float32(1), y=x),
    "tanh": lambda x: mb.tanh(x=x),
    "threshold": lambda x: mb.threshold(x=x, alpha=0.2),
    "thresholded_relu": lambda x: mb.thresholded_relu(x=x, alpha=-0.4),
    "tile": lambda x: mb.tile(x=x, reps=[1, 2, 1, 3]),
    "transpose": lambda x: mb.transpose(x=x, perm=[2, 0, -1, 1]),
    "quantize": lambda x: mb.dequantize(
        input=mb.quantize(input=x, scale=np.float32(0.013), zero_point=np.int8(-7), output_dtype="int8"),
        scale=np.float32(0.013),
        zero_point=np.int8(-7),
    ),
    "quantize_channels": lambda x: mb.dequantize(
        input=mb.quantize(input=x, scale=np.float32([0.01, 0.02, 0.03, 0.3]), output_dtype="uint8", axis=1),
        scale=np.float32([0.01, 0.02, 0.03, 0.3]),
        axis=1,
    ),
}


def build(body: Callable[[Any], Any], shape: tuple[int, ...] = SHAPE, dtype: Any = types.fp32) -> MilProgram:
    """A program of one input ``x``; whatever ``body`` returns is its output."""

    @mb.program(input_specs=[mb.TensorSpec(shape=shape, dtype=dtype)], opset_version=ct.target.iOS17)
    def program(x: Any) -> Any:
        return body(x)

    main = program.functions["main"]
    outputs = tuple(variable.name for variable in main.outputs)
    return MilProgram("test", tuple(main.inputs), outputs, tuple(main.operations))


def run(program: MilProgram, x: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(program)
    return interpreter.run({program.inputs[0]: x})[program.outputs[0]]


def sample(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", EVALUATED)
def test_operation_equals_coremltools_own_evaluation(name: str) -> None:
    body, x = EVALUATED[name], sample()
    evaluated = []

    @mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=ct.target.iOS17)
    def constant_program(unused: Any) -> Any:
        result = body(mb.const(val=x))
        evaluated.append(result.op.materialized_val_inference() if result.val is None else result.val)
        return mb.identity(x=unused)

    assert evaluated[0] is not None, "coremltools has no formula for it: test it against torch"
    expected = np.asarray(evaluated[0], dtype=np.float32)
    actual = run(build(body), x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def converted(module: nn.Module, x: torch.Tensor, precision: str = "FLOAT32") -> MilProgram:
    program = torch.export.export(module.eval(), (x,)).run_decompositions({})
    with quiet_coremltools():
        model = ct.convert(
            program,
            inputs=[ct.TensorType(name="image", shape=tuple(x.shape), dtype=np.float32)],
            outputs=[ct.TensorType(name="logits", dtype=np.float32)],
            compute_precision=ct.precision[precision],
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )
    return read_program(model, "test")


class Convolutions(nn.Module):
    """Strided, dilated, grouped, asymmetrically padded, transposed, one-dimensional."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False)
        self.uneven = nn.Conv2d(8, 6, 2, padding="same")
        self.upward = nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1)
        self.line = nn.Conv1d(4, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(self.upward(self.uneven(self.grouped(self.strided(x)))).flatten(2))


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.instance = nn.InstanceNorm2d(3, affine=True)
        self.batch = nn.BatchNorm2d(3)
        self.layer = nn.LayerNorm(16)
        self.batch.running_mean = torch.tensor([0.1, -0.2, 0.3])
        self.batch.running_var = torch.tensor([0.5, 1.5, 2.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.batch(torch.relu(self.instance(x))))


class Pools(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False)
        counted = F.avg_pool2d(x, 3, 2, padding=1)
        highest = F.max_pool2d(x - 3, 3, 2, padding=1)
        ceiled = F.max_pool2d(x, 3, 2, ceil_mode=True)
        return torch.cat([mean, counted, highest, ceiled], 1)


class Resizes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half_pixel = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        corners = F.interpolate(x, size=(32, 32), mode="bilinear", align_corners=True)
        nearest = F.interpolate(x, scale_factor=2, mode="nearest")
        return half_pixel + corners * nearest + F.pixel_shuffle(torch.cat([x, x, x, x], 1), 2)


class Attention(nn.Module):
    """Products, gates and the activations of mobile networks."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project = nn.Linear(16, 32), nn.Linear(32, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2)[..., :16]
        scores = torch.einsum("btc,bsc->bts", tokens, tokens) / 4
        mixed = scores.softmax(-1) @ tokens
        gated = self.project(
            F.hardswish(self.expand(mixed)) * F.hardsigmoid(F.silu(mixed).mean(-1, keepdim=True))
        )
        return F.scaled_dot_product_attention(gated, tokens, tokens) + F.relu6(gated)


@pytest.mark.parametrize("module", [Convolutions, Norms, Pools, Resizes, Attention])
def test_layers_equal_torch(module: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network, x = module().eval(), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = network(x).numpy()
    np.testing.assert_allclose(run(converted(network, x), x.numpy()), expected, rtol=1e-4, atol=1e-5)


def test_fp16_results_are_rounded_to_fp16_after_each_operation() -> None:
    program = build(lambda x: mb.sub(x=mb.add(x=x, y=np.float16(2048)), y=np.float16(2048)), (4,), types.fp16)
    x = np.float32([0.25, 1.0, 1.5, 3.0])
    expected = (x.astype(np.float16) + np.float16(2048)) - np.float16(2048)
    np.testing.assert_array_equal(run(program, x), expected.astype(np.float32))
    assert not np.array_equal(expected, x)


def test_fp16_overflows_as_on_a_phone() -> None:
    program = build(lambda x: mb.mul(x=x, y=np.float16(300)), (1,), types.fp16)
    assert np.isinf(run(program, np.float32([300])))[0]


def test_compressed_weights_are_expanded() -> None:
    def body(x: Any) -> Any:
        weight = mb.constexpr_affine_dequantize(
            quantized_data=np.int8([[10, -20], [30, 40], [5, 0]]),
            zero_point=np.int8([0, 1, 2]),
            scale=np.float32([0.5, 0.25, 2.0]),
            axis=0,
        )
        return mb.linear(x=x, weight=weight)

    expected = np.float32([[10 * 0.5, -20 * 0.5], [29 * 0.25, 39 * 0.25], [3 * 2.0, -2 * 2.0]])
    np.testing.assert_allclose(run(build(body, (2, 2)), np.eye(2, dtype=np.float32)), expected.T)


def test_only_what_the_outputs_need_is_compiled() -> None:
    def body(x: Any) -> Any:
        return mb.relu(x=x, name="wanted"), mb.random_normal(shape=[2], name="not_wanted")

    program = build(body, (2,))
    logits = Interpreter(program, ["wanted"]).run({"x": np.float32([-1, 1])})["wanted"]
    np.testing.assert_array_equal(logits, [0, 1])


def test_an_unknown_operation_is_named_in_one_line() -> None:
    program = build(lambda x: mb.random_normal(shape=[2]), (2,))
    with pytest.raises(MfDeployError, match="'random_normal'") as caught:
        Interpreter(program)
    assert "\n" not in str(caught.value)


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(MfDeployError, match="no tensor called probabilities"):
        Interpreter(build(lambda x: mb.relu(x=x)), ["probabilities"])


def test_tensors_are_freed_after_their_last_use() -> None:
    def body(x: Any) -> Any:
        for _ in range(10):
            x = mb.exp(x=mb.mul(x=x, y=np.float32(-1)))
        return x

    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def watch(name: str, value: torch.Tensor) -> None:
        nonlocal most
        alive.append(weakref.ref(value))
        most = max(most, sum(reference() is not None for reference in alive))

    gc.collect()
    Interpreter(build(body)).run({"x": sample()}, watch)
    assert len(alive) == 20
    assert most <= 2


def test_quantized_integers_are_not_shown_as_activations() -> None:
    seen: dict[str, torch.Tensor] = {}
    program = build(EVALUATED["quantize"])
    Interpreter(program).run({"x": sample()}, lambda name, value: seen.update({name: value}))
    assert len(seen) == 1
    assert max(value.abs().max().item() for value in seen.values()) < 2


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_damaged_package_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    package = tmp_path / "model.mlpackage"
    if content is not None:
        (package / "Data/com.apple.CoreML").mkdir(parents=True)
        (package / "Data/com.apple.CoreML/model.mlmodel").write_bytes(content)
    with pytest.raises(MfDeployError, match="not a Core ML ML Program") as caught:
        load_package(package)
    assert "\n" not in str(caught.value)


def test_quiet_puts_logging_and_progress_bars_back() -> None:
    import logging

    import tqdm

    logger, before = logging.getLogger("coremltools"), tqdm.tqdm.__init__
    with quiet_coremltools():
        assert not logger.isEnabledFor(logging.WARNING)
        assert logger.isEnabledFor(logging.ERROR)
    assert tqdm.tqdm.__init__ is before
    assert logger.isEnabledFor(logging.WARNING)
