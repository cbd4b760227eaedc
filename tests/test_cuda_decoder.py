"""The decoder's own Python over emulated kernels: PhiForCausalLM's tokens, any batch, large batches."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import PhiForCausalLM

from tests.emulator.emulator import EmulatedKernels, Emulator
from tests.emulator.model import PHI_1_5, PHI_2, Bench, as_stored, random_weights
from vision_lm.config import TextConfig
from vision_lm.engine import Engine, Generation, Limits, Prompt, TorchDecoder
from vision_lm.engine.cuda.bucket import Draws, Rows
from vision_lm.engine.cuda.decoder import CudaDecoder, bucket_shapes
from vision_lm.engine.cuda.decoder import Limits as GpuLimits
from vision_lm.engine.cuda.errors import CudaDecoderError
from vision_lm.engine.cuda.exchange import Found
from vision_lm.engine.cuda.shape import PAGE, TILE, Shape
from vision_lm.engine.decoders import KernelDecoder
from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.sampling import Row, Sampling, Token, choose
from vision_lm.errors import VisionLMError
from vision_lm.phi import build_phi

CPU = torch.device("cpu")
SMALL = GpuLimits(blocks=2, shared=100 * 1024)  # an RTX 4090's
PROMPTS = [[5, 9, 2, 61, 17], list(range(20, 38)), [3]]


def decoder_of(config: TextConfig, dtype: torch.dtype, bits: int = 16) -> CudaDecoder:
    return CudaDecoder(config, random_weights(config), CPU, dtype, bits, EmulatedKernels, SMALL)  # type: ignore[arg-type]


def oracle(config: TextConfig, dtype: torch.dtype, bits: int = 16) -> PhiForCausalLM:
    phi = build_phi(config).double().eval()
    phi.load_state_dict(as_stored(random_weights(config), dtype, bits))  # type: ignore[arg-type]
    return phi


@dataclasses.dataclass
class Streams:
    """Sequences that decode together; each has pages of its own, scattered over the cache."""

    decoder: CudaDecoder
    cache: KVCache
    pages: list[list[int]]  # of each
    lengths: list[int]

    @classmethod
    def of(cls, decoder: CudaDecoder, rows: int, tokens: int) -> Streams:
        pages = -(-tokens // PAGE)
        order = torch.randperm(rows * pages, generator=torch.Generator().manual_seed(0))
        cache = KVCache(decoder.config, rows * pages, CPU, decoder.dtype)
        cache.memory.fill_(float("nan"))
        return cls(decoder, cache, order.reshape(rows, pages).tolist(), [0] * rows)

    def prompt(self, prompts: list[list[int]]) -> list[int]:
        """Each sequence alone, token by token -> its first own token."""
        first = []
        for row, prompt in enumerate(prompts):
            for token in prompt:
                found = self.step([token], [row])
            first.append(found[0])
        return first

    def step(self, ids: list[int], rows: list[int]) -> list[int]:
        lengths, pages = [self.lengths[row] for row in rows], [self.pages[row] for row in rows]
        found, _, _ = self.decoder.tokens(Rows(ids, lengths, pages), self.cache)
        for row in rows:
            self.lengths[row] += 1
        return found


@pytest.mark.parametrize(
    ("config", "dtype"),
    [(PHI_1_5, torch.float16), (PHI_2, torch.bfloat16)],
    ids=["phi-1.5 fp16", "phi-2 bf16"],
)
def test_greedy_tokens_are_those_of_phi(config: TextConfig, dtype: torch.dtype) -> None:
    prompts = PROMPTS
    streams = Streams.of(decoder_of(config, dtype), rows=3, tokens=40)
    tokens = [streams.prompt(prompts)]
    for _ in range(5):
        tokens.append(streams.step(tokens[-1], [0, 1, 2]))
    phi = oracle(config, dtype)
    for prompt, answer in zip(prompts, zip(*tokens, strict=True), strict=True):
        expected = phi.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None)
        assert list(answer) == expected[0, len(prompt) :].tolist()


def eight_rows(dtype: torch.dtype) -> tuple[Rows, KVCache]:
    """Inputs of a step, and a cache that it can read."""
    bench = Bench.of(PHI_1_5, [5, 16, 0, 40, 33, 32, 17, 1], dtype)
    cache = KVCache(PHI_1_5, 1, CPU, dtype)
    cache.memory = bench.cache
    return bench.rows(), cache


def picked(rows: Rows, places: list[int]) -> Rows:
    return Rows(*([part[place] for place in places] for part in (rows.ids, rows.lengths, rows.pages)))


@pytest.mark.parametrize("bits", [16, 8])
def test_nine_rows_and_seventeen_are_single_rows(bits: int) -> None:
    """Nine rows are two buckets'; seventeen 16-bit ones are cuBLAS's, seventeen int8 ones three buckets'."""
    decoder = decoder_of(PHI_1_5, torch.float16, bits)
    rows, cache = eight_rows(torch.float16)
    alone = torch.cat([decoder.decode(picked(rows, [row]), cache) for row in range(8)])
    for count in (9, 17):
        places = [row % 8 for row in range(count)]
        logits = decoder.decode(picked(rows, places), cache)
        if count == 17 and bits == 16:
            torch.testing.assert_close(logits, alone[places], rtol=1e-2, atol=5e-2)
        else:
            assert torch.equal(logits, alone[places])


@pytest.mark.parametrize("rows", [3, 9, 16])
def test_tokens_are_drawn_from_the_logits(rows: int) -> None:
    decoder = decoder_of(PHI_1_5, torch.float16)
    eight, cache = eight_rows(torch.float16)
    step = picked(eight, [row % 8 for row in range(rows)])
    logits = decoder.decode(step, cache)
    samplings = [Sampling(1, temperature=row % 3 * 0.7, top_k=row + 2, top_p=0.9) for row in range(rows)]
    draws = torch.rand(rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    settings = [
        [one.temperature, one.top_p, one.min_p, draw] for one, draw in zip(samplings, draws, strict=True)
    ]
    top_k = torch.arange(rows, dtype=torch.int32) + 2
    drawn = decoder.tokens(step, cache, Draws(torch.tensor(settings), top_k))
    same(drawn, choose(logits, [Row(one, draw) for one, draw in zip(samplings, draws, strict=True)]))
    same(decoder.tokens(step, cache), choose(logits, [Row(Sampling(1))] * rows))


def same(found: Found, expected: list[Token | VisionLMError]) -> None:
    for token, logprob, rival, other in zip(*found, expected, strict=True):
        assert isinstance(other, Token)
        assert token == other.id
        assert logprob == pytest.approx(other.logprob, abs=1e-4)
        assert rival == pytest.approx(other.rival, abs=1e-4)


def test_rows_that_are_no_numbers_have_no_token() -> None:
    """The others have theirs: by a bucket, and by cuBLAS."""
    kernels = KernelDecoder(decoder_of(PHI_1_5, torch.float16), random_weights(PHI_1_5))
    rows, cache = eight_rows(torch.float16)
    page = rows.pages[3][0]
    cache.memory[:, :, page * PAGE : (page + 1) * PAGE] = float("nan")
    for count in (4, 17):
        some = picked(rows, [row % 8 for row in range(count)])
        found = kernels.decode_greedy(some.ids, some.lengths, some.pages, cache)
        for row, (token, expected) in enumerate(
            zip(found, choose(kernels.kernels.decode(some, cache), [Row(Sampling(1))] * count), strict=True)
        ):
            assert isinstance(token, VisionLMError) == (row % 8 == 3)
            assert str(token) == str(expected) if row % 8 == 3 else token[0] == expected[0]  # type: ignore[index]


def test_what_the_kernels_are_not_made_for_is_one_error() -> None:
    config = dataclasses.replace(PHI_1_5, num_attention_heads=2, num_key_value_heads=2)
    with pytest.raises(CudaDecoderError, match="head size 128"):
        decoder_of(config, torch.bfloat16)
    with pytest.raises(CudaDecoderError, match="float32"):
        decoder_of(PHI_1_5, torch.float32)
    with pytest.raises(CudaDecoderError, match="needs? an NVIDIA GPU"):
        CudaDecoder(PHI_1_5, {}, CPU, torch.bfloat16)
    with pytest.raises(CudaDecoderError, match="shared memory"):
        Shape.of(PHI_1_5, torch.bfloat16, batch=8).fitting(blocks=2, shared=20_000)


def test_shared_memory_is_what_the_kernels_count() -> None:
    for bits, batch in ((16, 1), (16, 8), (4, 2)):
        shape = dataclasses.replace(Shape.of(PHI_2, torch.bfloat16, bits, batch), warps=2, attention_warps=1)  # type: ignore[arg-type]
        emulator = Emulator(shape)
        assert shape.project_bytes == emulator.constant("PROJECT_BYTES")
        assert shape.sample_bytes == emulator.constant("SAMPLE_BYTES")
        tiles = -(-shape.hidden // TILE // 3)
        assert shape.mix_bytes(3) == emulator.constant("MIX_BYTES") + tiles * emulator.constant(
            "mix_sums_bytes(1)"
        )


def test_real_shapes_fit_the_gpus_they_are_for() -> None:
    for hidden, ffn, heads in ((256, 1024, 4), (2048, 8192, 32), (2560, 10240, 32)):
        config = dataclasses.replace(
            PHI_1_5,
            hidden_size=hidden,
            intermediate_size=ffn,
            num_attention_heads=heads,
            num_key_value_heads=heads,
        )
        for limits in (
            GpuLimits(132, 227 << 10),
            GpuLimits(108, 163 << 10),
            GpuLimits(128, 99 << 10),
        ):  # H100, A100, RTX 4090
            for bits in (16, 8, 4):
                shapes = bucket_shapes(Shape.of(config, torch.bfloat16, bits), limits)  # type: ignore[arg-type]
                # On the smallest, eight rows of phi-2 are two buckets' of four.
                assert shapes[-1].batch >= (8 if limits.shared > 100 << 10 else 4)
                warps = {(one.warps, one.attention_warps, one.chunks) for one in shapes}
                assert len(warps) == 1, "a row's bits depend on them"


def test_greedy_steps_need_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside requests that need them, and without: token by token what `choose` says of the logits."""
    kernels = KernelDecoder(decoder_of(PHI_1_5, torch.bfloat16), random_weights(PHI_1_5))
    prompts = [Prompt([*range(3, 20 + number)]) for number in range(4)]
    greedy = Sampling(max_tokens=12)
    others = [
        Sampling(max_tokens=6, temperature=0.8, seed=1),
        Sampling(max_tokens=6, repetition_penalty=1.3),
        Sampling(max_tokens=6, top_logprobs=2),
        Sampling(max_tokens=6, given=(5, 9, 7, 5, 1, 2)),
    ]

    def answers() -> list[Generation]:
        engine = Engine(kernels, lambda _: [], image_token_id=-1, cache_tokens=512)
        alone = engine.generate(prompts, greedy)
        beside = [one for other in others for one in engine.generate(prompts[:2], [greedy, other])]
        return alone + beside

    steps: list[str] = []

    def counted(name: str) -> None:
        method = getattr(kernels.kernels, name)
        monkeypatch.setattr(kernels.kernels, name, lambda *args: (steps.append(name), method(*args))[1])

    counted("decode")
    counted("tokens")
    without = answers()
    assert "decode" not in steps[:11]  # of the greedy ones alone, whose first token is prefill's
    assert "decode" in steps and "tokens" in steps[11:]  # which go on when those beside them have ended
    monkeypatch.setattr(kernels, "decode_greedy", lambda *_: None)
    for ours, theirs in zip(without, answers(), strict=True):
        assert ours.tokens == theirs.tokens
        # Prompts that arrive together are prefilled together, and bfloat16 rounds their products otherwise.
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=2e-2)
        assert ours.rivals == pytest.approx(theirs.rivals, abs=2e-2)


def test_the_engine_over_the_kernels_says_what_it_says_over_torch() -> None:
    """Prefill in torch and decode by the kernels share a cache: prompts in pieces, shared pages, preemption."""
    weights = random_weights(PHI_1_5)
    plain = TorchDecoder(PHI_1_5, weights, CPU, torch.bfloat16)
    kernels = KernelDecoder(decoder_of(PHI_1_5, torch.bfloat16), weights)
    start = list(range(3, 40))
    prompts = [Prompt([*start, 5 + number]) for number in range(6)] + [Prompt([7, 8])]
    answers = []
    for decoder in (plain, kernels):
        engine = Engine(
            decoder, lambda _: [], image_token_id=-1, limits=Limits(running=4, chunk=16), cache_tokens=160
        )
        answers.append(engine.generate(prompts, Sampling(max_tokens=8)))
        assert engine.scheduler.shared_tokens > 0
    for ours, theirs in zip(*answers, strict=True):
        assert ours.logprobs[0] == pytest.approx(theirs.logprobs[0], abs=0.05)
        same = [a == b for a, b in zip(ours.tokens, theirs.tokens, strict=False)]
        assert all(same[:2])  # bfloat16 rounds differently in the two: later tokens may part
