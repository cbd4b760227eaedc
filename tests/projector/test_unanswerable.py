"""How readily a checkpoint says that a question has no answer, as far as that can be told without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from projector.data.samples import QA
from projector.output_bias import BIAS
from projector.unanswerable import shares, shifted
from vision_lm.answer import Answer
from vision_lm.checkpoint import read_checkpoint
from vision_lm.confidence import UNANSWERABLE


def test_only_its_first_token_becomes_likelier() -> None:
    """The rest of the word follows by itself; every other word stays as likely beside its like."""
    mini = read_checkpoint("mini")
    moved = shifted(mini, 1.2)
    (token,) = (moved.tensors[BIAS] - mini.tensors[BIAS]).nonzero().flatten().tolist()
    assert UNANSWERABLE.startswith(mini.tokenizer.decode([token]))
    assert all(torch.equal(moved.tensors[name], mini.tensors[name]) for name in mini.tensors if name != BIAS)


def test_what_is_said_of_absent_things_and_of_others() -> None:
    """Counted apart: what is gained on the one is paid on the other."""

    class Says:
        def ask(self, images: Any, questions: list[str]) -> list[Answer]:
            return [Answer(question, 1.0, "stop", (), ()) for question in questions]

    vlm: Any = Says()
    asked = [(Path(), QA(said, right, "x")) for said, right in ((UNANSWERABLE,) * 2, ("red", UNANSWERABLE))]
    asked += [(Path(), QA(UNANSWERABLE, "red", "x"))] + [(Path(), QA("red", "red", "x"))] * 3
    assert shares(vlm, asked) == (0.5, 0.25)
