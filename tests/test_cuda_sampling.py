"""The sampling kernel draws what `choose` draws from the same uniform numbers."""

from __future__ import annotations

import pytest
import torch

from tests.emulator.emulator import Emulator, Memory
from tests.emulator.model import PHI_1_5, Bench
from vision_lm.engine.cuda.launch import Launch, struct
from vision_lm.engine.sampling import Row, Sampling, choose

SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.3, "top_k": 1},
    {"temperature": 1.5, "top_k": 7},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 2.0, "min_p": 0.1},
    {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.01, "top_p": 0.999},
]


@pytest.mark.parametrize("ties", [False, True], ids=["all different", "many equal"])
def test_the_kernel_draws_what_choose_draws(ties: bool) -> None:
    random = torch.Generator().manual_seed(0)
    vocab, rows = PHI_1_5.vocab_size, len(SETTINGS)
    bench = Bench.of(PHI_1_5, [3] * rows)
    emulator = Emulator(bench.shape)
    for draw in torch.rand(12, generator=random, dtype=torch.float64).tolist():
        logits = torch.randn(rows, vocab, generator=random) * 3
        if ties:
            logits = logits.round()
        samplings = [Sampling(max_tokens=1, **one) for one in SETTINGS]  # type: ignore[arg-type]
        expected = choose(logits, [Row(one, draw) for one in samplings])
        best = logits.max(1)
        found, logprobs = best.indices.clone(), best.values - logits.logsumexp(1)
        rivals = logits.topk(2).values[:, 1] - logits.logsumexp(1)
        settings = torch.tensor([[one.temperature, one.top_p, one.min_p, draw] for one in samplings])
        top_k = torch.tensor([one.top_k or vocab for one in samplings], dtype=torch.int32)
        step = bench.launches()[0].parameters[1]
        launch = Launch(
            kernel="sample_kernel",
            blocks=rows,
            threads=bench.shape.streamers,
            shared=emulator.constant("SAMPLE_BYTES"),
            parameters=(struct(logits, settings, top_k, found, logprobs, rivals), step),
        )
        memory = Memory([logits, settings, top_k], [found, logprobs, rivals])
        assert emulator.run([launch], memory, seed=1) is None
        for row, token in enumerate(expected):
            assert not isinstance(token, Exception)
            assert int(found[row]) == token.id, SETTINGS[row]
            assert float(logprobs[row]) == pytest.approx(token.logprob, abs=1e-4)
            assert float(rivals[row]) == pytest.approx(token.rival, abs=1e-4)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_of_what_is_no_number_nothing_is_drawn(wrong: float) -> None:
    """Every setting meets a damaged row: no access goes astray, and the row stays one without a probability."""
    vocab, rows = PHI_1_5.vocab_size, len(SETTINGS)
    bench = Bench.of(PHI_1_5, [3] * rows)
    emulator = Emulator(bench.shape)
    samplings = [Sampling(max_tokens=1, **one) for one in SETTINGS]  # type: ignore[arg-type]
    logits = torch.full((rows, vocab), wrong)
    found, logprobs, rivals = (
        torch.zeros(rows, dtype=torch.int64),
        torch.full((rows,), wrong),
        torch.zeros(rows),
    )
    settings = torch.tensor([[one.temperature, one.top_p, one.min_p, 0.5] for one in samplings])
    top_k = torch.tensor([one.top_k or vocab for one in samplings], dtype=torch.int32)
    parameters = (struct(logits, settings, top_k, found, logprobs, rivals), bench.launches()[0].parameters[1])
    shared = emulator.constant("SAMPLE_BYTES")
    launch = Launch("sample_kernel", rows, bench.shape.streamers, shared, parameters)
    assert (
        emulator.run([launch], Memory([logits, settings, top_k], [found, logprobs, rivals]), seed=1) is None
    )
    assert not logprobs.isfinite().any() and found.tolist() == [0] * rows
