"""Prefill over packed weights, with emulated kernels: against float64 and against the torch decoder."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.emulator.emulator import EmulatedKernels, Emulator, Memory
from tests.emulator.model import GROUPED, PHI_1_5, PHI_2, as_stored, config_of, random_weights, rotate
from vision_lm.config import TextConfig
from vision_lm.engine.cuda.decoder import CudaDecoder
from vision_lm.engine.cuda.decoder import Limits as GpuLimits
from vision_lm.engine.cuda.launch import Launch, struct
from vision_lm.engine.cuda.pack import rotary_pairs, rotary_table
from vision_lm.engine.cuda.shape import Shape
from vision_lm.engine.decoders import KernelDecoder
from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.torch_decoder import Chunk, TorchDecoder

CPU = torch.device("cpu")
BF16, FP16 = torch.bfloat16, torch.float16
ODD = config_of(width=128, heads=4, kv_heads=4, ffn=256, vocab=96, layers=2, rotary=0.4)  # 12 of 32 turn
ALL = config_of(width=128, heads=2, kv_heads=1, ffn=264, vocab=96, layers=2, rotary=1.0)  # all of 64 turn
SHAPES = [
    pytest.param(PHI_1_5, BF16, id="phi-1.5 bf16"),
    pytest.param(PHI_1_5, FP16, id="phi-1.5 fp16"),
    pytest.param(PHI_2, BF16, id="phi-2: heads of 80"),
    pytest.param(GROUPED, FP16, id="heads of 32, two to a key"),
    pytest.param(ODD, BF16, id="12 of 32 dimensions turn"),
    pytest.param(ALL, FP16, id="all dimensions turn"),
]


def ulp(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps)


def shape_of(config: TextConfig, dtype: torch.dtype) -> Shape:
    return dataclasses.replace(Shape.of(config, dtype), warps=2, attention_warps=1, ring=4, activation_kib=2)


def normal(*size: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("blocks", [2, 5])
@pytest.mark.parametrize(("config", "dtype"), SHAPES)
def test_rows_are_turned_kept_and_activated(config: TextConfig, dtype: torch.dtype, blocks: int) -> None:
    """Five tokens, one of which is padding, against float64; nothing else of the cache is touched."""
    shape, heads, keys = shape_of(config, dtype), config.num_attention_heads, config.num_key_value_heads
    size = config.head_dim
    given = normal(5, shape.into_rows, seed=0, dtype=dtype) * 2
    q, k, v, fc1 = given.split([shape.queries, shape.keys, shape.keys, shape.ffn], dim=1)
    paired = [rotary_pairs(part.T, size, config.rotary_dim).T for part in (q, k)]
    rows = torch.cat([*paired, v, fc1], dim=1).contiguous()
    positions, places = torch.tensor([0, 1, 7, 200, 9]), torch.tensor([3, 40, 17, 16, -1])
    cache = torch.full((2 * keys, 48, size), float("nan"), dtype=dtype)
    before = cache.clone()
    tables = rotary_table(config, CPU)
    launch = Launch(
        "finish_kernel",
        blocks,
        shape.streamers,
        0,
        (struct(rows, *cache.chunk(2)), struct(5, positions, places, 48, *tables)),
    )
    memory = Memory([positions, places, *tables], [rows, cache])
    failure = Emulator(shape).run([launch], memory, seed=1)
    assert failure is None, failure

    close = {"rtol": ulp(dtype), "atol": 2e-5}  # a rounding
    new_q, new_k, new_v, activated = rows.split([shape.queries, shape.keys, shape.keys, shape.ffn], dim=1)
    for token, position in enumerate(positions.tolist()):
        for found, part, count in ((new_q, q, heads), (new_k, k, keys)):
            expected = rotate(part[token].double().reshape(count, size), position, config)
            torch.testing.assert_close(found[token].double().reshape(count, size), expected, **close)
    assert torch.equal(new_v, v)
    x = fc1.double()
    expected = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(activated.double(), expected, **close)
    kept = torch.cat([new_k, new_v], dim=1)[:4].unflatten(1, (-1, size)).transpose(0, 1)
    assert torch.equal(cache[:, places[:4]], kept)
    cache[:, places[:4]] = before[:, places[:4]]
    assert torch.equal(cache.view(torch.int16), before.view(torch.int16)), "nothing else has changed"


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("config", "dtype"), SHAPES)
def test_the_residual_gets_its_biases_and_is_normalised(
    config: TextConfig, dtype: torch.dtype, biased: bool
) -> None:
    width = config.hidden_size
    hidden = normal(5, width, seed=0, dtype=dtype) * 3 + 1
    biases, gamma, beta = (normal(width, seed=seed) for seed in (1, 2, 3))
    normed = torch.full_like(hidden, float("nan"))
    truth = hidden.double() + (biases.double() if biased else 0.0)
    residual = struct(hidden, biases if biased else None, gamma, beta, normed)
    launch = Launch("norm_kernel", 2, 32, 0, (residual, struct(5, *[None] * 5)))
    failure = Emulator(shape_of(config, dtype)).run(
        [launch], Memory([biases, gamma, beta], [hidden, normed]), 1
    )
    assert failure is None, failure
    torch.testing.assert_close(hidden.double(), truth, rtol=ulp(dtype) / 2, atol=1e-6)
    expected = torch.nn.functional.layer_norm(
        truth, (width,), gamma.double(), beta.double(), config.layer_norm_eps
    )
    torch.testing.assert_close(normed.double(), expected, rtol=ulp(dtype) / 2, atol=1e-5)


# ---- the whole of it, against the torch decoder in float64 over the same rounded weights ----

SMALL = GpuLimits(blocks=2, shared=100 * 1024)


def decoder_of(config: TextConfig, dtype: torch.dtype) -> KernelDecoder:
    weights = random_weights(config)
    return KernelDecoder(CudaDecoder(config, weights, CPU, dtype, 16, EmulatedKernels, SMALL), weights)


def truth_of(config: TextConfig, dtype: torch.dtype) -> TorchDecoder:
    return TorchDecoder(config, as_stored(random_weights(config), dtype, 16), CPU, torch.float64)


def cache_of(config: TextConfig, dtype: torch.dtype) -> KVCache:
    cache = KVCache(config, 16, CPU, dtype)
    cache.memory.fill_(float("nan"))
    return cache


PAGES = {"a": [5, 0, 9, 2, 7, 14], "b": [3, 11, 1], "c": [8]}
Part = tuple[str, int, int, bool, int]  # sequence, start, count, complete, prefix
CALLS: list[tuple[str, list[list[Part]]]] = [
    ("one chunk", [[("a", 0, 37, True, 0)]]),
    ("one token", [[("c", 0, 1, True, 0)]]),
    ("a whole multiple", [[("a", 0, 64, True, 0)]]),
    ("in pieces", [[("a", 0, 33, False, 0)], [("a", 33, 1, False, 0)], [("a", 34, 30, True, 0)]]),
    ("in pieces, and nobody has written page 0", [[("b", 0, 17, False, 0)], [("b", 17, 20, True, 0)]]),
    ("a prefix", [[("a", 0, 50, True, 20)]]),
    ("nothing but a prefix", [[("a", 0, 21, False, 21)], [("a", 21, 9, True, 21)]]),
    ("a prefix whose beginning is cached", [[("a", 0, 50, True, 20)], [("a", 16, 40, True, 20)]]),
    (
        "several at once",
        [
            [("a", 0, 18, True, 0), ("b", 0, 40, False, 17), ("c", 0, 5, True, 5)],
            [("b", 40, 3, True, 17), ("a", 18, 30, False, 0)],
        ],
    ),
]


@pytest.mark.parametrize("calls", [calls for _, calls in CALLS], ids=[name for name, _ in CALLS])
@pytest.mark.parametrize(
    ("config", "dtype"), [(PHI_1_5, FP16), (PHI_2, BF16), (GROUPED, FP16)], ids=["64", "80", "32, grouped"]
)
def test_prefill_is_the_torch_decoders(
    config: TextConfig, dtype: torch.dtype, calls: list[list[Part]]
) -> None:
    ours, truth = decoder_of(config, dtype), truth_of(config, dtype)
    our_cache, true_cache = cache_of(config, dtype), cache_of(config, torch.float64)
    text = {name: normal(96, config.hidden_size, seed=seed, dtype=dtype) for seed, name in enumerate("abc")}
    for parts in calls:
        chunks = [
            Chunk(start, count, our_cache.slots(PAGES[name], start + count), complete, prefix)
            for name, start, count, complete, prefix in parts
        ]
        embeddings = torch.cat([text[name][start : start + count] for name, start, count, *_ in parts])
        given = embeddings.clone()
        logits = ours.prefill(embeddings, chunks, our_cache)
        assert logits.dtype == torch.float32
        assert torch.equal(embeddings, given), "the caller's embeddings stay as they are"
        expected = truth.prefill(embeddings.double(), chunks, true_cache)
        loose = 40 * ulp(dtype)  # a few roundings, of logits up to 10
        torch.testing.assert_close(logits.double(), expected.double(), rtol=0, atol=loose)
        torch.testing.assert_close(
            our_cache.memory.double(), true_cache.memory, rtol=0, atol=loose / 2, equal_nan=True
        )


def test_the_weights_are_there_once() -> None:
    """A 16-bit model has no second copy of its layers for torch."""
    decoder = decoder_of(PHI_1_5, BF16)
    assert not hasattr(decoder, "layers") and not hasattr(decoder, "head")
    assert decoder.embed([3, 5]).data_ptr() != 0
    assert torch.equal(
        decoder.embed([3, 5]), random_weights(PHI_1_5)["model.embed_tokens.weight"][[3, 5]].to(BF16)
    )
