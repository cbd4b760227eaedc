"""The persistent kernel: the same bits as the chain of kernels, and its grid barrier is needed in every part."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.emulator.emulator import Emulator, Mutation
from tests.emulator.model import GROUPED, PHI_1_5, Bench, step64
from vision_lm.config import TextConfig


@pytest.mark.parametrize(
    ("config", "lengths", "bits"),
    [(PHI_1_5, [37], 16), (PHI_1_5, [5, 64, 20], 4), (GROUPED, [33, 70], 8)],
    ids=["phi-1.5 bf16", "phi-1.5 int4, three rows", "heads of 32, int8"],
)
def test_one_kernel_gives_the_bits_of_many(config: TextConfig, lengths: list[int], bits: int) -> None:
    chain, whole = (Bench.of(config, lengths, bits=bits) for _ in range(2))
    emulator = Emulator(chain.shape)
    chain.run(emulator, chain.launches())
    for seed in range(4):
        whole.run(emulator, whole.launches(persistent=True), seed)
        assert whole.inputs.logits is not None and chain.inputs.logits is not None
        live = slice(0, len(lengths))
        assert torch.equal(whole.inputs.logits[live], chain.inputs.logits[live])
        assert torch.equal(whole.inputs.next[live], chain.inputs.next[live])
        whole.poison()


def test_gamma_and_beta_come_even_where_a_warp_has_less_to_do_than_its_ring_holds() -> None:
    chain, whole = (Bench.of(PHI_1_5, [37], bits=4, blocks=12) for _ in range(2))
    for bench in (chain, whole):
        bench.shape = dataclasses.replace(bench.shape, ring=11)
    emulator = Emulator(chain.shape)
    chain.run(emulator, chain.launches())
    for seed in range(3):
        whole.run(emulator, whole.launches(persistent=True), seed)
        assert whole.inputs.logits is not None and chain.inputs.logits is not None
        assert torch.equal(whole.inputs.logits, chain.inputs.logits)
        whole.poison()


MUTANTS = [
    Mutation("nobody waits", "while (load_acquire(count) < all) relax();", ";"),
    Mutation(
        "a block's other threads do not wait",
        "        if (streams())\n            sync_streamers();\n        else\n            sync_attenders();\n",
        "",
    ),
    Mutation(
        "a block arrives before its threads",
        "        sync_block();\n        arrived++;",
        "        arrived++;",
    ),
    Mutation("arrival is not released", "add_release(count, 1)", "add_relaxed(count, 1)"),
    Mutation(
        "K1 does not wait",
        "project(layer, step, stream, affine, wait)",
        "project(layer, step, stream, affine, [] {})",
    ),
    Mutation("K2's rows do not wait", "step, stream, rows, wait)", "step, stream, rows, [] {})"),
    Mutation(
        "attention does not wait", "                barrier.wait();\n            });", "            });"
    ),
    Mutation(
        "K3 does not wait",
        "choose(whole.head, step, stream, affine, wait)",
        "choose(whole.head, step, stream, affine, [] {})",
    ),
    Mutation("K2 works where the next gamma and beta come", "rows = affine + AFFINE_BYTES", "rows = affine"),
    Mutation(
        "attention works where K1 does",
        "attention = rows + larger(ROWS_BYTES - AFFINE_BYTES, mix_rows_bytes())",
        "attention = rows",
    ),
    Mutation("the barrier is not reset", ", store(step.counters + BARRIER, 0u);", ";"),
]


def test_the_kernel_as_it_is_does_not_fail() -> None:
    emulator = Emulator(Bench.of(GROUPED, [33, 70]).shape)
    assert not any(differs(emulator, seed) for seed in range(6))


@pytest.mark.parametrize("mutation", MUTANTS, ids=lambda mutation: mutation.name)
def test_mutants_fail(mutation: Mutation) -> None:
    emulator = Emulator(Bench.of(GROUPED, [33, 70]).shape, mutation)
    assert any(differs(emulator, seed) for seed in range(6))


def differs(emulator: Emulator, seed: int) -> bool:
    bench = Bench.of(GROUPED, [33, 70])
    expected = step64(bench)
    for number in range(2):
        if emulator.run(bench.launches(persistent=True), bench.memory(), 2 * seed + number) is not None:
            return True
        assert bench.inputs.logits is not None
        if not torch.allclose(bench.inputs.logits.double(), expected, rtol=1e-3, atol=2e-2):
            return True
        bench.poison()
    return False
