"""Linear layers with rounded weights, against float64 products with the weights that they say they hold.

Three roundings make the tolerances: of the activations (int8: two base-256 digits, half a step of max|x| / 32,639;
int4: bfloat16), of float32 sums, and of the result to its dtype. Each bound is computed, none is tuned.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vision_lm.engine import quantize
from vision_lm.engine.quantize import Linear, quantised
from vision_lm.engine.rounding import GROUP, int4_groups, int8_rows
from vision_lm.errors import RequestError

CPU = torch.device("cpu")
MODES: list[Any] = ["int8", "int4"]
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(192, 256), (96, 320), (77, 100), (1, 1), (130, 129)]  # N, K
HALF_ULP = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["kernel", "floats"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With torch's kernels where they work, and as on a machine that has none."""
    if request.param == "floats":
        monkeypatch.setattr(quantize, "_multiplies_bytes", lambda: False)
        monkeypatch.setattr(quantize, "_reads_tiles", lambda: False)
    return request.param


def error_bound(layer: Linear, mode: str, x: Tensor, bias: Tensor) -> Tensor:
    """How far an output (R, N) may be from the float64 product of x (R, K)."""
    weight = layer.dequantised()
    size = x.double().abs() @ weight.abs().t()  # (R, N): what a relative error of every product adds up to
    output = x.double() @ weight.t()
    bound = (
        2 * HALF_ULP[x.dtype] * (output.abs() + bias.abs() + 1e-6)
    )  # the result, twice: before and after the bias
    bound += (
        4 * x.shape[1] ** 0.5 * 2.0**-24 * size
    )  # sums in float32; their errors add up like a random walk
    if mode == "int8" and quantize._multiplies_bytes():  # not before VNNI, whatever the path
        step = x.double().abs().amax(1, keepdim=True) / 32_639
        return bound + 0.51 * step * weight.abs().sum(1)  # the digits; 0.01 is for float32's part in the step
    if mode == "int4":
        bound += HALF_ULP[torch.bfloat16] * (size + 2 * output.abs())  # x and the product, in bfloat16
    if mode == "int4" or x.dtype == torch.bfloat16:
        bound += 1.01 * HALF_ULP[torch.bfloat16] * size  # the dequantised weight, in bfloat16
    return bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_layer_computes_the_product_with_its_dequantised_weight(
    mode: Any, shape: tuple[int, int], dtype: torch.dtype, path: str
) -> None:
    bias = torch.randn(shape[0]).to(dtype)
    layer = quantised(torch.randn(shape), bias, mode, dtype, CPU)
    for rows in (1, 2, 3, 40, quantize.LONG + 1):
        x = torch.randn(rows, shape[1]).to(dtype)
        y = layer(x)
        assert y.dtype == dtype and y.shape == (rows, shape[0])
        reference = x.double() @ layer.dequantised().t() + bias.double()
        bound = error_bound(layer, mode, x, bias.double())
        assert ((y.double() - reference).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 7, 40])
def test_a_dense_layer_is_the_plain_product(rows: int, dtype: torch.dtype) -> None:
    weight, bias, x = (
        torch.randn(96, 320).to(dtype),
        torch.randn(96).to(dtype),
        torch.randn(rows, 320).to(dtype),
    )
    layer = quantised(weight, bias, None, dtype, CPU)
    assert torch.equal(layer.dequantised(), weight.double())
    assert layer.nbytes == weight.nbytes
    product, size = x.double() @ weight.double().t(), x.double().abs() @ weight.double().abs().t()
    bound = torch.finfo(dtype).eps * (product.abs() + bias.double().abs()) + 320**0.5 * 2.0**-22 * size
    assert layer(x).dtype == dtype
    assert ((layer(x).double() - product - bias.double()).abs() <= bound).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_rounds_a_weight_by_half_a_step_of_its_row_at_most(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    layer = quantised(weight, None, "int8", torch.float32, CPU)
    step = weight.abs().amax(1, keepdim=True).double() / 127
    assert ((layer.dequantised() - weight).abs() <= 0.5001 * step).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_int4_rounds_a_weight_by_half_a_step_of_its_group_at_most(
    shape: tuple[int, int], shift: float
) -> None:
    weight = torch.randn(shape) + shift
    layer = quantised(weight, None, "int4", torch.float32, CPU)
    _, scale, _ = int4_groups(weight)  # (N, G)
    step = scale.double().repeat_interleave(GROUP, dim=1)[:, : shape[1]]
    # 1/30 of a step: a zero is at most 8.5 steps from 0, and bfloat16 holds it within 2**-8 of itself.
    assert ((layer.dequantised() - weight).abs() <= (0.5001 + 1 / 30) * step).all()


def test_int4_is_nearer_than_a_symmetric_code_and_than_levels_from_end_to_end() -> None:
    weight = torch.randn(64, 1024)
    groups = weight.view(64, -1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)

    def error(step: Tensor, zero: Tensor) -> float:
        return (((groups - zero) / step).round() * step + zero - groups).square().mean().item()

    ours = quantised(weight, None, "int4", torch.float32, CPU).dequantised()
    found = (ours - weight).square().mean().item()
    assert found < 0.95 * error((high - low) / 15, low)
    assert found < 0.80 * error(groups.abs().amax(-1, keepdim=True) / 7, torch.zeros(()))


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_zeros_and_rows_with_an_outlier(mode: Any, path: str) -> None:
    weight = torch.randn(8, 256) * 0.01
    weight[0] = 0
    weight[1, 5] = 100
    weight[2] = 0
    weight[2, 7] = -3
    layer = quantised(weight, None, mode, torch.float32, CPU)
    held = layer.dequantised()
    assert (held[0] == 0).all()
    assert abs(held[1, 5] - 100) < 100 / 28
    held[2, 7] = 0
    assert (held[2] == 0).all()  # an outlier does not move the zeros beside it
    x = torch.randn(3, 256)
    assert (layer(x)[:, 0] == 0).all()
    assert layer(x).isfinite().all()


@pytest.mark.parametrize("mode", [None, *MODES])
def test_activations_of_zero_give_the_bias_and_broken_ones_are_not_hidden(mode: Any) -> None:
    bias = torch.randn(32)
    layer = quantised(torch.randn(32, 128), bias, mode, torch.float32, CPU)
    x = torch.randn(3, 128)
    x[0] = 0
    x[1, 4] = torch.nan
    y = layer(x)
    torch.testing.assert_close(y[0], bias)
    assert y[1].isnan().all()
    assert y[2].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_row_does_not_depend_on_the_rows_beside_it(mode: Any, dtype: torch.dtype) -> None:
    layer = quantised(torch.randn(96, 320), torch.randn(96), mode, dtype, CPU)
    x = torch.randn(40, 320).to(dtype)
    x[1:] *= 1000
    alone, first = layer(x[:1]), layer(x)[:1]
    if mode == "int8" and quantize._multiplies_bytes():
        assert torch.equal(alone, first)  # integer sums
    # int4 rounds the product to bfloat16, and both the product and the sum with the bias in bfloat16 models
    torch.testing.assert_close(alone, first, rtol=4 * 2.0**-8, atol=1e-2)


@pytest.mark.parametrize("mode", [None, *MODES])
def test_inputs_keep_their_leading_dimensions(mode: Any) -> None:
    for dtype in DTYPES:
        layer = quantised(torch.randn(48, 64), torch.randn(48), mode, dtype, CPU)
        x = torch.randn(2, 3, 64).to(dtype)
        assert layer(x).shape == (2, 3, 48)
        torch.testing.assert_close(layer(x)[1, 2], layer(x[1, 2]), rtol=2.0**-6, atol=1e-2)
        assert layer(x[:, :0]).shape == (2, 0, 48)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", [None, *MODES])
def test_a_weight_may_be_any_view(mode: Any, dtype: torch.dtype) -> None:
    wide = torch.randn(128, 2 * 96)
    view = wide.t()[::2]  # (96, 128), no stride of it 1 in the last place
    x = torch.randn(3, 128).to(dtype)
    of_view, of_copy = (quantised(weight, None, mode, dtype, CPU) for weight in (view, view.contiguous()))
    assert torch.equal(of_view.dequantised(), of_copy.dequantised())
    assert torch.equal(of_view(x), of_copy(x))


def test_a_layer_reads_about_a_half_and_a_quarter_of_bfloat16() -> None:
    weight = torch.randn(256, 1280)
    dense, half, quarter = (quantised(weight, None, m, torch.bfloat16, CPU).nbytes for m in (None, *MODES))
    assert dense == 2 * weight.numel()
    assert half / dense == pytest.approx(1 / 2, rel=0.01)
    assert quarter / dense == pytest.approx(1 / 4 + 1 / 64, rel=0.01)  # 4 bytes of scale and zero a group


def test_codes_use_their_whole_range() -> None:
    weight = torch.randn(32, 256)
    codes, _ = int8_rows(weight)
    assert (codes.abs().amax(1) == 127).all()
    codes, scale, zero = int4_groups(weight)
    assert codes.amin() == 0 and codes.amax() == 15
    assert scale.shape == zero.shape == (32, 2)


@pytest.mark.parametrize("mode", ["int3", "INT8", "", 8, True, ["int4"]])
def test_an_unknown_mode_is_refused_in_one_line(mode: Any) -> None:
    with pytest.raises(RequestError) as refusal:
        quantised(torch.randn(4, 4), None, mode, torch.float32, CPU)
    message = str(refusal.value)
    assert repr(mode) in message and "int8" in message and "int4" in message and "\n" not in message
