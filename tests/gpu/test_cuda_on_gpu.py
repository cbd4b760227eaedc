"""The kernels on a real GPU, by the comparisons that the emulator makes. Skipped without one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.emulator.model import GROUPED, PHI_1_5, PHI_2, Bench, as_stored, random_weights, step64
from vision_lm.config import TextConfig
from vision_lm.engine.cuda.bucket import Rows
from vision_lm.engine.cuda.compile import GpuKernels
from vision_lm.engine.cuda.decoder import CudaDecoder, Limits
from vision_lm.engine.cuda.errors import CudaDecoderError
from vision_lm.engine.decoders import KernelDecoder, make_decoder
from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.sampling import Row, Sampling, Token, choose
from vision_lm.phi import build_phi

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
BF16, FP16 = torch.bfloat16, torch.float16
CASES = [
    pytest.param(PHI_1_5, [37], BF16, 16, id="phi-1.5 bf16, one row"),
    pytest.param(PHI_1_5, [0, 31, 32], FP16, 16, id="phi-1.5 fp16, three rows"),
    pytest.param(PHI_1_5, [5, 16, 0, 63, 64, 65, 17, 1], BF16, 8, id="phi-1.5 int8, eight rows"),
    pytest.param(PHI_1_5, [15, 100], FP16, 4, id="phi-1.5 int4, two rows"),
    pytest.param(PHI_2, [47, 48], BF16, 16, id="phi-2 bf16, two rows"),
    pytest.param(PHI_2, [3, 33, 40], BF16, 4, id="phi-2 int4, three rows"),
    pytest.param(GROUPED, [33, 2, 64], FP16, 16, id="heads of 32, two to a key"),
]


def moved(value: Any, device: str) -> Any:
    """The same dataclass with every tensor on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [moved(one, device) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: moved(getattr(value, field.name), device) for field in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **fields)
    return value


@pytest.mark.parametrize("persistent", [False, True], ids=["chain", "one kernel"])
@pytest.mark.parametrize(("config", "lengths", "dtype", "bits"), CASES)
def test_a_step_equals_float64_and_repeats_bit_by_bit(
    config: TextConfig, lengths: list[int], dtype: torch.dtype, bits: Any, persistent: bool
) -> None:
    bench = Bench.of(config, lengths, dtype, bits, blocks=Limits.of(torch.device("cuda")).blocks)
    expected = step64(bench)
    truth, bench = bench.truth, moved(dataclasses.replace(bench, truth={}), "cuda")
    assert truth and bench.inputs.logits is not None
    kernels = GpuKernels(bench.shape, torch.device("cuda"))
    found = []
    for _ in range(20):
        bench.poison()
        kernels.run(bench.launches(persistent))
        torch.cuda.synchronize()
        found.append(bench.inputs.logits[: len(lengths)].cpu())
    torch.testing.assert_close(found[0].double(), expected, rtol=2e-3, atol=5e-3)
    assert all(torch.equal(one, found[0]) for one in found)
    assert bench.inputs.next[: len(lengths)].tolist() == found[0].argmax(1).tolist()


@pytest.mark.parametrize(("config", "dtype"), [(PHI_1_5, BF16), (PHI_2, FP16)], ids=["phi-1.5", "phi-2"])
def test_greedy_tokens_by_graphs_are_those_of_phi(config: TextConfig, dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    decoder = CudaDecoder(config, random_weights(config), device, dtype)
    cache = KVCache(config, pages=4, device=device, dtype=dtype)
    pages = [[2, 0, 3, 1]]
    prompt, answer = [5, 9, 2, 61, 17], list[int]()
    for length, token in enumerate(prompt):
        found, _, _ = decoder.tokens(Rows([token], [length], pages), cache)
    for length in range(len(prompt), 50):
        answer += found
        found, _, _ = decoder.tokens(Rows(found, [length], pages), cache)
    phi = build_phi(config).double().eval()
    phi.load_state_dict(as_stored(random_weights(config), dtype, 16))  # type: ignore[arg-type]
    expected = phi.generate(torch.tensor([prompt]), max_new_tokens=45, do_sample=False, eos_token_id=None)  # type: ignore[operator]
    assert answer == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 17, 64])
def test_any_batch_gives_a_rows_logits(rows: int) -> None:
    bench = Bench.of(PHI_1_5, [5, 16, 0, 40, 33, 32, 17, 1], BF16)
    expected = step64(bench)
    device = torch.device("cuda")
    decoder = CudaDecoder(PHI_1_5, random_weights(PHI_1_5), device, BF16)
    cache = KVCache(PHI_1_5, pages=1, device=device, dtype=BF16)
    cache.memory = bench.cache.to(device)
    eight, places = bench.rows(), [row % 8 for row in range(rows)]
    step = Rows(*([part[place] for place in places] for part in (eight.ids, eight.lengths, eight.pages)))
    logits = decoder.decode(step, cache)
    found = decoder.tokens(step, cache)
    for token, *probabilities, expected_token in zip(
        *found, choose(logits, [Row(Sampling(1))] * rows), strict=True
    ):
        assert isinstance(expected_token, Token) and token == expected_token.id
        assert probabilities == pytest.approx([expected_token.logprob, expected_token.rival], abs=1e-4)
    tolerance = 2e-1 if rows >= 16 else 5e-3  # cuBLAS's inputs are rounded to bfloat16
    torch.testing.assert_close(logits.cpu().double(), expected[places], rtol=2e-2, atol=tolerance)


def test_a_gpu_that_is_too_old_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(CudaDecoderError, match="sm_75"):
        CudaDecoder(PHI_1_5, random_weights(PHI_1_5), torch.device("cuda"), BF16)


@pytest.mark.parametrize("mode", [None, "int8", "int4"])
def test_a_decoder_that_is_tried_out_decodes(mode: Any) -> None:
    """Every kernel starts when the decoder is made, and `make_decoder` keeps it."""
    weights = random_weights(PHI_1_5)
    assert isinstance(make_decoder(PHI_1_5, weights, torch.device("cuda"), BF16, mode), KernelDecoder)
