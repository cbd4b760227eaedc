"""Whatever order a GPU may run things in gives the same bits, and a kernel that lacks a wait is found out."""

from __future__ import annotations

import pytest
import torch

from tests.emulator.emulator import Emulator, Mutation
from tests.emulator.model import GROUPED, Bench, step64

SEEDS = range(6)


def bench() -> Bench:
    return Bench.of(GROUPED, [33, 130, 15], torch.float16, blocks=4)  # 130: in two attention items


def test_every_schedule_gives_the_same_bits() -> None:
    first = bench()
    emulator = Emulator(first.shape)
    first.run(emulator, first.launches(), seed=1000)
    for seed in range(20):
        again = bench()
        again.run(emulator, again.launches(), seed)
        assert again.inputs.logits is not None and first.inputs.logits is not None
        assert torch.equal(again.inputs.logits[:3], first.inputs.logits[:3])
        assert torch.equal(again.inputs.next, first.inputs.next)
        assert torch.equal(again.cache.view(torch.int16), first.cache.view(torch.int16))


BEFORE_BEST = (
    "    Activations normed = normalise(step.hidden, stream, shared);\n"
    "    float* sums = reinterpret_cast<float*>(shared + NORM_BYTES);\n    Best"
)
MUTANTS = [
    Mutation(
        "K1 does not wait for K2", "    wait();\n    if (block_index() == 0)", "    if (block_index() == 0)"
    ),
    Mutation(
        "K2's rows do not wait for K1", "    wait();\n    float* sums = reint", "    float* sums = reint"
    ),
    Mutation("attention does not wait for K1", "    wait();\n    for (int turn = 0", "    for (int turn = 0"),
    Mutation("K3 does not wait for K2", f"    wait();\n{BEFORE_BEST}", BEFORE_BEST),
    Mutation("dense does not wait for the heads", "if (thread_index() == 0) wait_for_heads(step);", ""),
    Mutation(
        "only thread 0 waits for the heads",
        "wait_for_heads(step);\n        }\n        sync_streamers();",
        "wait_for_heads(step);\n        }",
    ),
    Mutation(
        "activations are not complete",
        "panel(at), shared);\n        sync_streamers();",
        "panel(at), shared);",
    ),
    Mutation("K2's sums are not complete", "    sync_streamers();\n    residuals.add", "    residuals.add"),
    Mutation("sums of K1 and K3 are not complete", "in, here);\n        sync_streamers();", "in, here);"),
    Mutation(
        "a part is done before its lanes are",
        "{ store(to, value); });\n            sync_warp();  // before lane 0",
        "{ store(to, value); });\n              // before lane 0",
    ),
    Mutation(
        "a part is done before it is released",
        "arrived = add_acquire_release(step.counters + ARRIVED",
        "arrived = add_relaxed(step.counters + ARRIVED",
    ),
    Mutation(
        "a head is done before it is released",
        "add_release(step.counters + HEADS_DONE",
        "add_relaxed(step.counters + HEADS_DONE",
    ),
    Mutation(
        "a head is done before its lanes are", "+ at, x); });\n                sync_warp();", "+ at, x); });"
    ),
    Mutation(
        "activations of one panel are written over by the next",
        "        sync_streamers();  // nobody needs",
        "        // nobody needs",
    ),
    Mutation(
        "partials are not complete",
        "        sync_attenders();\n        if (warp == 0)",
        "        if (warp == 0)",
    ),
    Mutation("partials are written over while they are read", "partials + turn % 2 *", "partials + 0 *"),
    Mutation("the best of a block is not released", "ended = add_acquire_release(", "ended = add_relaxed("),
    Mutation(
        "keys and values are read before they came", "wait_copies<0>();\n        sync_warp();", "sync_warp();"
    ),
    Mutation(
        "those of other lanes are read before they came",
        "wait_copies<0>();\n        sync_warp();",
        "wait_copies<0>();",
    ),
    Mutation(
        "the new token is fetched before K1 wrote it",
        "smaller(LANES, step.lengths[row] - first)",
        "smaller(LANES, step.lengths[row] + 1 - first)",
    ),
    Mutation("weights are read before they came", "wait_copies<RING - 2>();", "wait_copies<RING - 1>();"),
    Mutation(
        "a slot is asked for again too early",
        "        ask();  // into the slot whose words are in `now`\n        fetch();",
        "        ask();\n        ask();\n        fetch();",
    ),
    Mutation(
        "LayerNorm's sums are not complete",
        "    sync_streamers();\n#pragma unroll\n    for (int row = 0; row < BATCH; row++) {\n        values",
        "#pragma unroll\n    for (int row = 0; row < BATCH; row++) {\n        values",
    ),
    Mutation(
        "normed activations are not complete", "    sync_streamers();\n    return out;", "    return out;"
    ),
    Mutation("the counters are not reset", "store(step.counters + i, 0u);", ";"),
    Mutation("the count of blocks is not reset", "store(step.counters + BLOCKS_DONE, 0u), ", ""),
    Mutation("the wrong page", "position / PAGE]", "(position + 1) / PAGE]"),
    Mutation("the wrong place in a page", "position % PAGE)", "(position + 1) % PAGE)"),
    Mutation(
        "the new token is not attended to",
        "smaller(LANES, step.lengths[row] + 1 - first)",
        "smaller(LANES, step.lengths[row] - first)",
    ),
    Mutation(
        "a head reads another's keys", "kv_head = head / (HEADS / KV_HEADS)", "kv_head = head % KV_HEADS"
    ),
    Mutation("no bias in K1 and K3", "bias[r] = panel.matrix->bias[2 * pair + r];", "bias[r] = 0.0f;"),
    Mutation("no bias in K2", " + layer.dense.bias[out]", ""),
    Mutation("gamma and beta are read before they came", "    stream.wait_for_marked();\n", ""),
    Mutation("no rotation", "return {step.cosines[at], step.sines[at]};", "return {1.0f, 0.0f};"),
    Mutation("LayerNorm forgets beta", " + affine[HIDDEN + 4 * four + i]", ""),
]


def test_the_kernels_as_they_are_do_not_fail() -> None:
    emulator = Emulator(bench().shape)
    assert not any(differs(emulator, seed) for seed in SEEDS)


@pytest.mark.parametrize("mutation", MUTANTS, ids=lambda mutation: mutation.name)
def test_mutants_fail(mutation: Mutation) -> None:
    emulator = Emulator(bench().shape, mutation)
    assert any(differs(emulator, seed) for seed in SEEDS)


def differs(emulator: Emulator, seed: int) -> bool:
    """Whether two steps of a mutant end in anything but the right logits."""
    b = bench()
    expected = step64(b)
    for number in range(2):
        if emulator.run(b.launches(), b.memory(), 2 * seed + number) is not None:
            return True
        assert b.inputs.logits is not None
        if not torch.allclose(b.inputs.logits[:3].double(), expected, rtol=1e-3, atol=5e-3):
            return True
        if not torch.equal(b.inputs.next[:3], expected.argmax(1)):
            return True
        b.poison()
        b.inputs.next.fill_(-1)
    return False
