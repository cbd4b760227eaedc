"""How sure a checkpoint is before it names a thing in a caption, as far as that can be told without training."""

from __future__ import annotations

import torch

from projector.caution import shifted
from projector.output_bias import BIAS
from vision_lm.checkpoint import read_checkpoint


def test_only_the_general_words_become_likelier() -> None:
    """Mini's own tokenizer has each as one token; every other word stays as likely beside its like."""
    mini = read_checkpoint("mini")
    moved = shifted(mini, -1.5)
    changed = (moved.tensors[BIAS] - mini.tensors[BIAS]).nonzero().flatten().tolist()
    assert {mini.tokenizer.decode([token]).strip() for token in changed} == {"drawing", "shape", "shapes"}
    assert all(torch.equal(moved.tensors[name], mini.tensors[name]) for name in mini.tensors if name != BIAS)
