"""The CUDA kernels' own sources, run by the emulator, against float64."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.emulator.emulator import Emulator
from tests.emulator.model import GROUPED, PHI_1_5, PHI_2, Bench, attend64, head64, mix64, project64, step64
from vision_lm.config import TextConfig
from vision_lm.engine.sampling import Row, Sampling, choose
from vision_lm.errors import VisionLMError

BF16, FP16 = torch.bfloat16, torch.float16
# An exactly rounded float32 sum of a few hundred products is wrong by about 1e-6; a half-precision one by 1e-2.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
# Beside integer weights activations are integers of 16 bits: half a step of 1/32512 of the largest of 128 neighbours.
INTEGERS = {"rtol": 5e-5, "atol": 8e-4}
CASES = [
    pytest.param(PHI_1_5, [37], BF16, 16, id="phi-1.5 bf16, one row"),
    pytest.param(PHI_1_5, [0, 31, 32], FP16, 16, id="phi-1.5 fp16, three rows at the edges of pages"),
    pytest.param(PHI_1_5, [5, 16, 0, 63, 64, 65, 17, 1], BF16, 8, id="phi-1.5 int8, eight rows"),
    pytest.param(PHI_1_5, [15, 100], FP16, 4, id="phi-1.5 int4, two rows"),
    pytest.param(PHI_2, [47, 48], BF16, 16, id="phi-2 bf16, two rows"),
    pytest.param(PHI_2, [70], FP16, 8, id="phi-2 int8, one row"),
    pytest.param(PHI_2, [3, 33, 40], BF16, 4, id="phi-2 int4, three rows and a group that is not full"),
    pytest.param(GROUPED, [33, 2, 64], FP16, 16, id="heads of 32, two to a key"),
    pytest.param(GROUPED, [129], BF16, 4, id="heads of 32, int4"),
]


def close(actual: Tensor, expected: Tensor, bits: int) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), **(CLOSE if bits == 16 else INTEGERS))


def live(bench: Bench) -> list[tuple[int, int]]:
    return [(row, length) for row, length in enumerate(bench.inputs.lengths.tolist()) if length >= 0]


@pytest.mark.parametrize(("config", "lengths", "dtype", "bits"), CASES)
class TestKernels:
    def test_k1_projects_rotates_appends_and_activates(
        self, config: TextConfig, lengths: list[int], dtype: torch.dtype, bits: int
    ) -> None:
        bench = Bench.of(config, lengths, dtype, bits)
        bench.scratch.hidden.normal_(generator=torch.Generator().manual_seed(1)).mul_(3).add_(1)
        before = bench.cache.clone()
        bench.run(Emulator(bench.shape), [bench.launches()[3]])  # layer 1
        scale = torch.log2(torch.tensor(torch.e)) / config.head_dim**0.5
        new = []
        for row, length in live(bench):
            hidden = bench.scratch.hidden[row].double()
            queries, key, value, activated = project64(config, bench.truth, 1, hidden, length)
            close(bench.scratch.queries[row], queries.flatten() * scale, bits)
            close(bench.scratch.activated[row], activated, bits)
            new.append(bench.slots(row, length + 1)[-1:])
            for actual, expected in zip(bench.kept(1, new[-1]), (key, value), strict=True):
                torch.testing.assert_close(actual[0], expected, rtol=2**-8, atol=1e-3)
        bench.cache[1][:, torch.cat(new)] = before[1][:, torch.cat(new)]
        assert torch.equal(bench.cache.view(torch.int16), before.view(torch.int16)), (
            "nothing else has changed"
        )

    def test_k2_attends_and_adds_to_the_residual(
        self, config: TextConfig, lengths: list[int], dtype: torch.dtype, bits: int
    ) -> None:
        bench = Bench.of(config, [length + 1 for length in lengths], dtype, bits)
        bench.inputs.lengths[: len(lengths)] -= 1  # K1 has appended the last token
        random = torch.Generator().manual_seed(2)
        s = bench.scratch
        for tensor in (s.hidden, s.queries, s.activated):
            tensor.normal_(generator=random)
        hidden = s.hidden.clone()
        bench.run(Emulator(bench.shape), [bench.launches()[4]])
        scale = torch.log2(torch.tensor(torch.e)) / config.head_dim**0.5
        for row, length in live(bench):
            slots = bench.slots(row, length + 1)
            queries = (s.queries[row] / scale).double().reshape(-1, config.head_dim)
            attended = attend64(queries, *bench.kept(1, slots))
            close(
                s.hidden[row],
                mix64(bench.truth, 1, hidden[row].double(), attended, s.activated[row].double()),
                bits,
            )

    def test_k3_gives_logits_the_best_token_and_its_probability(
        self, config: TextConfig, lengths: list[int], dtype: torch.dtype, bits: int
    ) -> None:
        bench = Bench.of(config, lengths, dtype, bits)
        bench.scratch.hidden.normal_(generator=torch.Generator().manual_seed(3))
        bench.run(Emulator(bench.shape), [bench.launches()[-1]])
        assert bench.inputs.logits is not None
        logits = head64(config, bench.truth, bench.scratch.hidden.double())
        close(bench.inputs.logits, logits, bits)
        assert torch.equal(bench.inputs.next, logits.argmax(1))
        likeliest = logits.log_softmax(1).topk(2).values
        close(bench.inputs.logprobs, likeliest[:, 0], bits)
        close(bench.inputs.rivals, likeliest[:, 1], bits)

    def test_a_step_equals_float64(
        self, config: TextConfig, lengths: list[int], dtype: torch.dtype, bits: int
    ) -> None:
        bench = Bench.of(config, lengths, dtype, bits)
        expected = step64(bench)
        memory = bench.run(Emulator(bench.shape), bench.launches())
        assert bench.inputs.logits is not None
        # The new keys are rounded once here and once there, from sums that differ in their last bits.
        torch.testing.assert_close(
            bench.inputs.logits[: len(lengths)].double(), expected, rtol=1e-3, atol=2e-3
        )
        for matrix in bench.matrices():
            assert np.all(memory.reads_of(matrix.rows) == 1), (
                "a weight is read once in a step, whatever the batch"
            )
            if matrix.scales is not None and bits == 4:
                assert np.all(memory.reads_of(matrix.scales) == 1)


INFINITY, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    "best",
    [
        {70: 2.0, 71: 2.0, 200: 2.0, 300: 2.0},
        {300: 2.0, 70: 2.0},
        {0: 2.0, 1: 1.5, 150: 1.75},  # one warp's own second is not the row's
        {300: 2.0, 298: 1.75},
        dict.fromkeys(range(301), -INFINITY) | {299: 1.0},
        dict.fromkeys(range(301), -INFINITY) | {5: 1.0, 6: 0.5},
        dict.fromkeys(range(301), -INFINITY),
        {17: INFINITY},
        {17: NAN},
        {0: -3000.0, 9: 3000.0},
    ],
    ids=[
        "four equal",
        "two equal",
        "near",
        "last",
        "one alone",
        "two alone",
        "none",
        "infinite",
        "NaN",
        "far",
    ],
)
def test_k3_says_of_any_logits_what_choose_says(best: dict[int, float]) -> None:
    """The lowest of equal ids, the likeliest other token's probability, and no number for what is none."""
    bench = Bench.of(PHI_1_5, [4, 5])
    head = bench.packed.head
    head.rows.zero_()
    head.bias.fill_(-1.0)
    for token, logit in best.items():
        head.bias[token] = logit
    bench.scratch.hidden.normal_(generator=torch.Generator().manual_seed(3))
    bench.run(Emulator(bench.shape), [bench.launches()[-1]])
    row = Row(Sampling(max_tokens=1))
    for expected, token, logprob, rival in zip(
        choose(head.bias[None, :301].expand(2, -1), [row, row]),
        bench.inputs.next.tolist(),
        bench.inputs.logprobs.tolist(),
        bench.inputs.rivals.tolist(),
        strict=True,
    ):
        if isinstance(expected, VisionLMError):
            assert not math.isfinite(logprob)
        else:
            assert token == expected.id
            assert logprob == pytest.approx(expected.logprob, abs=1e-5)
            assert rival == pytest.approx(expected.rival, abs=1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_blocks(blocks: int) -> None:
    lengths = [40, 7, 66]
    together = Bench.of(PHI_1_5, lengths, blocks=3)
    together.run(Emulator(together.shape), together.launches(), seed=1)
    alone = Bench.of(PHI_1_5, lengths[:1], blocks=blocks, pages=together.inputs.table.shape[1])
    alone.inputs.table[0] = together.inputs.table[0]
    alone = dataclasses.replace(alone, cache=together.cache.clone())
    alone.inputs.ids[0] = together.inputs.ids[0]
    alone.run(Emulator(alone.shape), alone.launches(), seed=2)
    assert together.inputs.logits is not None and alone.inputs.logits is not None
    assert torch.equal(alone.inputs.logits[0], together.inputs.logits[0])
