"""Prefill and the image tower on a real GPU, eagerly and by graphs. Skipped without one."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from projector.module import Projector
from tests.conftest import TRUNK, VIT, settled
from tests.emulator.model import GROUPED, PHI_1_5, PHI_2, as_stored, config_of, random_weights
from tests.test_cuda_prefill import CALLS, PAGES, Part, normal, ulp
from vision_lm.config import TextConfig, VisionConfig
from vision_lm.encoder import ImageEncoder, feature_width
from vision_lm.engine.cuda.decoder import CudaDecoder
from vision_lm.engine.cuda.recent_graphs import RecentGraphs
from vision_lm.engine.decoders import KernelDecoder
from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.torch_decoder import Chunk, TorchDecoder
from vision_lm.pictures import FittedPicture, PictureEncoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
GPU = torch.device("cuda")
BF16, FP16 = torch.bfloat16, torch.float16
WIDE = dataclasses.replace(
    config_of(width=2048, heads=32, kv_heads=32, ffn=8192, vocab=1001, layers=2, rotary=0.5),
    max_position_embeddings=2048,
)


def decoders_of(config: TextConfig, dtype: torch.dtype) -> tuple[KernelDecoder, TorchDecoder]:
    """Ours, and float64 over the same rounded weights."""
    weights = random_weights(config)
    ours = KernelDecoder(CudaDecoder(config, weights, GPU, dtype), weights)
    return ours, TorchDecoder(config, as_stored(weights, dtype, 16), GPU, torch.float64)


def chunks_of(parts: list[Part], cache: KVCache) -> list[Chunk]:
    return [
        Chunk(start, count, cache.slots(PAGES[name], start + count), complete, prefix)
        for name, start, count, complete, prefix in parts
    ]


@pytest.mark.parametrize("calls", [calls for _, calls in CALLS], ids=[name for name, _ in CALLS])
@pytest.mark.parametrize(
    ("config", "dtype"),
    [(PHI_1_5, BF16), (PHI_1_5, FP16), (PHI_2, BF16), (GROUPED, FP16)],
    ids=["64 bf16", "64 fp16", "80", "32, grouped"],
)
def test_prefill_is_the_torch_decoders(
    config: TextConfig, dtype: torch.dtype, calls: list[list[Part]]
) -> None:
    """Four times the same: the first is eager, the second is captured, the others are replayed; all to the last bit."""
    ours, truth = decoders_of(config, dtype)
    true_cache = KVCache(config, 16, GPU, torch.float64)
    our_cache = KVCache(config, 16, GPU, dtype)
    our_cache.memory.fill_(float("nan"))
    true_cache.memory.fill_(float("nan"))
    text = {
        name: normal(96, config.hidden_size, seed=seed, dtype=dtype).to(GPU)
        for seed, name in enumerate("abc")
    }
    rounds = []
    for _ in range(4):
        found = []
        for parts in calls:
            embeddings = torch.cat([text[name][start : start + count] for name, start, count, *_ in parts])
            logits = ours.prefill(embeddings, chunks_of(parts, our_cache), our_cache)
            expected = truth.prefill(embeddings.double(), chunks_of(parts, true_cache), true_cache)
            torch.testing.assert_close(logits.double(), expected.double(), rtol=0, atol=40 * ulp(dtype))
            found.append(logits)
        rounds.append((found, our_cache.memory.clone()))
    torch.testing.assert_close(
        our_cache.memory.double(), true_cache.memory, rtol=0, atol=20 * ulp(dtype), equal_nan=True
    )
    for found, memory in rounds[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found, rounds[0][0], strict=True))
        assert torch.equal(memory.view(torch.int16), rounds[0][1].view(torch.int16))


def test_lengths_that_share_a_graph_are_told_apart() -> None:
    """608 tokens of phi-1.5's width and lengths below, each with its own text, other pages, and logits of its own."""
    ours, truth = decoders_of(WIDE, BF16)
    our_cache, true_cache = KVCache(WIDE, 120, GPU, BF16), KVCache(WIDE, 120, GPU, torch.float64)
    for number, count in enumerate([608, 601, 577, 608, 590]):
        pages = torch.randperm(120, generator=torch.Generator().manual_seed(number))[:38].tolist()
        embeddings = normal(count, 2048, seed=number, dtype=BF16).to(GPU)
        found, expected = (
            decoder.prefill(given, [Chunk(0, count, cache.slots(pages, count), complete=True)], cache)
            for decoder, given, cache in (
                (ours, embeddings, our_cache),
                (truth, embeddings.double(), true_cache),
            )
        )
        error = (found.double() - expected.double()).norm() / expected.double().norm()
        assert error < 0.03


def picture_encoder(config: VisionConfig, dtype: torch.dtype) -> PictureEncoder:
    """The same random weights at every call."""
    torch.manual_seed(0)
    encoder = settled(ImageEncoder(config)).requires_grad_(False)
    pooled = config.embed_dim if config.pooled else 0
    projector = Projector(feature_width(encoder)[1], 48, 64, pooled).eval().requires_grad_(False)
    return PictureEncoder(encoder.to(GPU, dtype), projector.to(GPU, dtype))


def pictures_of(config: VisionConfig, count: int, seed: int) -> list[FittedPicture]:
    side = config.image_size
    pixels = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    pixels.setflags(write=False)  # as Pillow gives them
    return [FittedPicture(one, bytes([seed, number])) for number, one in enumerate(pixels)]


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize("config", [VIT, TRUNK], ids=["vit", "trunk"])
def test_the_tower_by_a_graph_is_the_eager_one_bit_by_bit(config: VisionConfig, dtype: torch.dtype) -> None:
    graphed = picture_encoder(config, dtype)
    one, other = graphed(pictures_of(config, 2, seed=9))
    assert not torch.equal(one, other)
    for count in (1, 2, 4, 5):
        for seed in range(4):  # eager, captured, replayed, replayed
            pictures = pictures_of(config, count, seed)
            found = graphed(pictures)
            eager = picture_encoder(config, dtype)(pictures)  # it has met none before
            assert all(torch.equal(one, other) for one, other in zip(found, eager, strict=True))
            normalised = picture_encoder(config, dtype)([one.ready(config) for one in pictures])
            assert all(torch.equal(one, other) for one, other in zip(found, normalised, strict=True))


def test_threads_may_encode_at_once() -> None:
    encode = picture_encoder(VIT, BF16)
    batches = [pictures_of(VIT, 1 + seed % 4, seed) for seed in range(64)]
    alone = [picture_encoder(VIT, BF16)(batch) for batch in batches]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(encode, batches))
    for one, other in zip(itertools.chain(*together), itertools.chain(*alone), strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_captured_stays_eager(caplog: pytest.LogCaptureFixture) -> None:
    graphs = RecentGraphs(GPU, most=2)

    def waits(x: Tensor) -> Tensor:
        return x * float(x.sum())  # the host asks for a number

    with caplog.at_level(logging.WARNING):
        for value in (1.0, 2.0, 3.0, 4.0):
            found = graphs.run("key", waits, torch.full((2,), value, device=GPU))
            assert found.tolist() == [2 * value * value] * 2
    assert [record.message.startswith("no CUDA graph") for record in caplog.records] == [True]
    for value in (5.0, 6.0, 7.0):  # and others still can be
        assert graphs.run("other", torch.neg, torch.full((1,), value, device=GPU)).tolist() == [-value]


def test_only_the_latest_graphs_are_kept() -> None:
    """More shapes than graphs, each again and again: every result is right, and a result is the caller's own."""
    graphs = RecentGraphs(GPU, most=2)
    results = []
    for turn in range(4):
        for size in (1, 2, 2, 3, 3, 1):
            given = torch.full((size,), float(turn + size), device=GPU)
            results.append((graphs.run(size, torch.exp, given), given.exp()))
    for found, expected in results:
        assert torch.equal(found, expected)
