"""The C++ kernels against float64 and the torch decoder."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import random_phi, text_config
from tests.forced_steps import CPU, LAYOUTS, filled_cache, steps
from vision_lm.engine import TorchDecoder
from vision_lm.engine.cpu import compile as compiling
from vision_lm.engine.cpu.decoder import CpuDecoder
from vision_lm.engine.cpu.errors import CpuKernelError
from vision_lm.engine.cpu.library import Team
from vision_lm.engine.cpu.linear import NativeLinear
from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.pages import pages_for
from vision_lm.engine.torch_decoder import Chunk

NATIVE = compiling.NATIVE
X86 = "x86-64" in subprocess.check_output(["uname", "-m"], text=True).replace("_", "-")
# The code of other machines, run on this one: without AVX-512, with it but no integer products, and with no more than
# every x86 has, which is the code of all other processors.
PLAIN = "-march=x86-64-v3" if X86 else NATIVE
OTHERS = [
    *([PLAIN, "-march=skylake-avx512"] if "avx512vl" in compiling.processor() else []),
    *(["-march=x86-64"] if X86 else []),
]
SHAPES = [(256, 64), (130, 2048), (4, 128), (7, 4160)]  # N, K
STORED: list[Any] = [
    (None, torch.float32),
    (None, torch.bfloat16),
    (None, torch.float16),
    ("int8", torch.float32),
    ("int4", torch.float32),
]


@pytest.fixture(scope="module", params=[NATIVE, *OTHERS])
def team(request: pytest.FixtureRequest) -> Team:
    return Team.start(2, request.param)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mode", "dtype"), STORED)
def test_products_against_float64(team: Team, shape: tuple[int, int], mode: Any, dtype: torch.dtype) -> None:
    """Every way to store a weight: within float32's rounding of sums, and the rounding of activations that some need."""
    torch.manual_seed(0)
    weight, bias, x = torch.randn(shape), torch.randn(shape[0]), torch.randn(9, shape[1])
    layer = NativeLinear.pack(team, weight, bias, mode, dtype)
    exact = layer.dequantised()
    size = x.double().abs() @ exact.abs().t()  # what a relative error of every product adds up to
    bound = 4 * shape[1] ** 0.5 * 2.0**-24 * size + 1e-6
    if dtype == torch.bfloat16:  # tiles take an activation as two bfloat16 numbers
        bound += 2.0**-17 * size
    if mode is not None:
        bound += 0.51 * x.double().abs().amax(1, keepdim=True) / 32_767 * exact.abs().sum(1)
    y = layer(x)
    assert y.dtype == torch.float32
    assert ((y.double() - (x.double() @ exact.t() + bias.double())).abs() <= bound).all()


@pytest.mark.parametrize(("mode", "dtype"), STORED)
@pytest.mark.parametrize("outputs", [70, 200])  # 200: tiles of every width that the kernels have
def test_a_row_does_not_depend_on_those_beside_it(
    team: Team, mode: Any, dtype: torch.dtype, outputs: int
) -> None:
    """To the last bit, in any number of rows, wherever it stands."""
    torch.manual_seed(1)
    layer = NativeLinear.pack(team, torch.randn(outputs, 256), torch.randn(outputs), mode, dtype)
    x = torch.randn(130, 256)
    x[::3] = x[::3].bfloat16().float()  # what tiles multiply by half as many products
    alone = torch.cat([layer(row[None]) for row in x])
    for count in (2, 3, 5, 64, 130):
        assert torch.equal(layer(x[:count]), alone[:count])
        assert torch.equal(layer(x[-count:]), alone[-count:])


@pytest.mark.skipif("amx_bf16" not in compiling.processor(), reason="this processor has no tiles")
def test_tiles_are_used_where_the_processor_has_them() -> None:
    """The library says so, and a weight of bfloat16 is then laid out for them; else, with AVX-512, it stays as torch has it."""
    weight = torch.randn(40, 64)
    for target, shape in ((NATIVE, (3, 32, 16, 2)), ("-march=skylake-avx512", (40, 64))):
        packed = NativeLinear.pack(Team.start(1, target), weight, None, None, torch.bfloat16)
        assert packed.weight.shape == shape


@pytest.mark.parametrize(("mode", "dtype"), STORED)
@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_none(team: Team, mode: Any, dtype: torch.dtype, odd: float) -> None:
    """A damaged activation reaches every result of its row, and no other row: it must not be rounded away."""
    torch.manual_seed(2)
    layer = NativeLinear.pack(team, torch.randn(8, 128), None, mode, dtype)
    x = torch.randn(3, 128)
    x[1, 77] = odd
    y = layer(x)
    assert not torch.isfinite(y[1]).any()
    assert torch.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("shape", [(130, 2048), (7, 4160), (500, 8192)])  # the last in several blocks
def test_many_rows_in_16_bits(team: Team, mode: Any, shape: tuple[int, int]) -> None:
    """A prompt by rounded weights: within what bfloat16 makes of each weight and of each result."""
    torch.manual_seed(8)
    layer = NativeLinear.pack(team, torch.randn(shape), torch.randn(shape[0]), mode, torch.bfloat16)
    x = torch.randn(130, shape[1]).bfloat16()
    exact, bias = layer.dequantised(), layer.bias[: shape[0]].double()
    truth = x.double() @ exact.t() + bias
    y = layer(x)
    assert y.dtype == torch.bfloat16
    bound = 2.0**-8 * (x.double().abs() @ exact.abs().t() + truth.abs() + bias.abs())
    error = y.double() - truth
    assert (error.abs() <= bound).all()
    assert error.square().mean() <= (0.005 * truth.std()) ** 2


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_sums_of_the_largest_codes(team: Team, mode: Any) -> None:
    """Integers hold the sums of products that are all as large as they can be, in either direction."""
    rows = torch.ones(20, 4224)
    rows[10:] = -1
    x = torch.ones(9, 4224)
    x[4:] = -1
    layer = NativeLinear.pack(team, rows, None, mode, torch.float32)
    exact = x.double() @ layer.dequantised().t()
    assert ((layer(x).double() - exact).abs() <= 1e-6 * exact.abs()).all()


def test_the_smallest_exact_copy_is_kept() -> None:
    """A float32 weight that came from float16 is kept in 16 bits, another in 32."""
    team = Team.start(1)
    weight = torch.randn(8, 64)
    assert NativeLinear.pack(team, weight, None, None, torch.float32).weight.dtype == torch.float32
    assert (
        NativeLinear.pack(team, weight.half().float(), None, None, torch.float32).weight.dtype
        == torch.float16
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "mode", "tolerance"),
    [
        (torch.float32, None, 1e-5),
        (torch.bfloat16, None, 0.04),  # keys and values are kept in 16 bits; with tiles a prompt is torch's
        (torch.float16, None, 0.005),
        (torch.float32, "int8", 1e-3),
        (torch.float32, "int4", 0.05),  # torch's int4 rounds activations to bfloat16
        (torch.bfloat16, "int8", 0.04),
        (torch.bfloat16, "int4", 0.09),
    ],
)
def test_steps_against_the_torch_decoder(
    team: Team, layout: str, dtype: torch.dtype, mode: Any, tolerance: float
) -> None:
    """Ragged sequences over scattered pages in a cache full of NaNs, as the torch decoder sees them: in float32, with the
    weights rounded to where they are kept in 16 bits, since the kernels round no activation.
    """
    torch.manual_seed(2)
    config = text_config(**LAYOUTS[layout], intermediate_size=384)
    weights = random_phi(config).state_dict()
    prompts = [torch.randn(length, config.hidden_size).to(dtype) for length in (5, 16, 40, 31)]
    ours = steps(config, CpuDecoder(config, weights, dtype, mode, team), prompts, 20)
    rounded = {name: weight.to(dtype).float() for name, weight in weights.items()}
    reference = TorchDecoder(config, rounded, CPU, torch.float32, mode)
    theirs = steps(config, reference, [prompt.float() for prompt in prompts], 20)
    assert torch.isfinite(ours).all()
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("prefix", [0, 20])
@pytest.mark.parametrize("mode", [None, "int8", "int4"])
def test_a_prompt_is_the_same_whole_in_pieces_and_with_others(team: Team, mode: Any, prefix: int) -> None:
    """To the last bit, its logits and what decoding goes on with; and as the torch decoder has it, also where the first
    tokens see each other in both directions.
    """
    torch.manual_seed(5)
    config = text_config(**LAYOUTS["shared keys"], intermediate_size=384)
    weights = random_phi(config).state_dict()
    prompts = [torch.randn(length, config.hidden_size) for length in (150, 33, 21, 64)]
    pages = [list(range(11 * number, 11 * number + pages_for(170)))[::-1] for number in range(len(prompts))]

    def read(decoder: TorchDecoder, pieces: list[list[tuple[int, int, int]]]) -> tuple[Tensor, Tensor]:
        """Steps of pieces (prompt, start, stop) -> logits (B, V) after the prompts and (B, V) after one token more."""
        cache = KVCache(config, 44, CPU, torch.float32)
        cache.memory.fill_(float("nan"))
        found: dict[int, Tensor] = {}
        for step in pieces:
            chunks = [
                Chunk(start, stop - start, cache.slots(pages[one], stop), stop == len(prompts[one]), prefix)
                for one, start, stop in step
            ]
            rows = torch.cat([prompts[one][start:stop] for one, start, stop in step])
            done = [one for one, _, stop in step if stop == len(prompts[one])]
            found |= dict(zip(done, decoder.prefill(rows, chunks, cache), strict=True))
        after = decoder.decode([7, 8, 9, 10], [len(prompt) for prompt in prompts], pages, cache)
        return torch.stack([found[one] for one in range(len(prompts))]), after

    whole = [[(one, 0, len(prompt))] for one, prompt in enumerate(prompts)]
    mixed = [[(0, 0, 40), (3, 0, 64), (2, 0, 20)], [(2, 20, 21), (0, 40, 41)], [(1, 0, 33), (0, 41, 150)]]
    decoder = CpuDecoder(config, weights, torch.float32, mode, team)
    alone = read(decoder, whole)
    assert torch.isfinite(torch.stack(alone)).all()
    for ours, same in zip(read(decoder, mixed), alone, strict=True):
        assert torch.equal(ours, same)
    tolerance = {None: 1e-5, "int8": 1e-3, "int4": 0.05}[mode]
    for ours, theirs in zip(
        alone, read(TorchDecoder(config, weights, CPU, torch.float32, mode), whole), strict=True
    ):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_key_that_is_no_number_is_not_passed_over(team: Team, odd: float) -> None:
    """One number of one key, as an overflow leaves it: whoever sees it gets nothing finite, and others what they had."""
    torch.manual_seed(6)
    config = text_config(**LAYOUTS["heads of 32"])
    decoder = CpuDecoder(config, random_phi(config).state_dict(), torch.float32, team=team)
    prompts = [torch.randn(21, config.hidden_size), torch.randn(30, config.hidden_size)]
    cache, pages = filled_cache(config, decoder, prompts)
    before = decoder.decode([7, 8], [21, 30], pages, cache)
    cache.memory[0, 1, cache.slots(pages[0], 6)[5], 3] = odd
    after = decoder.decode([7, 8], [21, 30], pages, cache)
    assert not torch.isfinite(after[0]).any()
    assert torch.equal(after[1], before[1])


def test_a_prompt_in_another_dtype_and_its_pieces_in_any_order() -> None:
    """As the torch decoder takes them: embeddings in 16 bits, and of one sequence two tokens, the later one first."""
    torch.manual_seed(7)
    config = text_config(**LAYOUTS["heads of 32"])
    weights = random_phi(config).state_dict()
    prompt = torch.randn(21, config.hidden_size).bfloat16()

    def read(decoder: TorchDecoder) -> Tensor:
        cache = KVCache(config, 2, CPU, torch.float32)
        cache.memory.fill_(float("nan"))
        slots = cache.slots([1, 0], 21)
        first = decoder.prefill(prompt[:19], [Chunk(0, 19, slots[:19], True)], cache)
        chunks = [Chunk(20, 1, slots, True), Chunk(19, 1, slots[:20], True)]
        return torch.cat([first, decoder.prefill(prompt[[20, 19]], chunks, cache)])

    theirs = read(TorchDecoder(config, weights, CPU, torch.float32))
    ours = read(CpuDecoder(config, weights, torch.float32, team=Team.start(2)))
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_a_step_is_the_same_in_any_batch_and_with_any_number_of_threads() -> None:
    """To the last bit: sequences alone, with others, in another order, computed by 1, 2, 3 or 5 threads."""
    torch.manual_seed(4)
    config = text_config(**LAYOUTS["heads of 64"])
    weights = random_phi(config).state_dict()
    prompts = [torch.randn(3 + 5 * number, config.hidden_size) for number in range(7)]
    decoder = CpuDecoder(config, weights, torch.float32, team=Team.start(2))
    alone = torch.cat([steps(config, decoder, [prompt], 6) for prompt in prompts], dim=1)
    assert torch.equal(steps(config, decoder, prompts, 6), alone)
    assert torch.equal(steps(config, decoder, prompts[::-1], 6), alone.flip(1))
    for threads in (1, 3, 5):
        other = CpuDecoder(config, weights, torch.float32, team=Team.start(threads))
        assert torch.equal(steps(config, other, prompts, 6), alone)


def test_shapes_that_the_kernels_do_not_know() -> None:
    """A head or width of another size is refused with a line that names it."""
    narrow = text_config(hidden_size=320, num_attention_heads=4, num_key_value_heads=4, intermediate_size=384)
    with pytest.raises(CpuKernelError, match="whole 128s, not 320"):
        CpuDecoder(narrow, random_phi(narrow).state_dict(), torch.float32, "int4")
    config = text_config(hidden_size=40, num_attention_heads=2, num_key_value_heads=2)
    with pytest.raises(CpuKernelError, match="heads of 20"):
        CpuDecoder(config, random_phi(config).state_dict(), torch.float32)
