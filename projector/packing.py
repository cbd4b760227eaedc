"""Samples into training tensors: many questions about one picture, packed behind its image tokens.

The picture is encoded and attended once; every independent question sees the picture and itself, never its
neighbours (a block mask), at the positions it would have alone. So one packed row teaches exactly what its
questions would teach as rows of their own, at a fraction of the cost.

An answer of n tokens counts as the root of n: by the token a caption would drown twenty a "yes", by the answer its
words would hardly be learnt (square averaging, InternVL 2.5, arXiv 2412.05271).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from projector.data.samples import Sample
from vision_lm.errors import DataError
from vision_lm.prompts import PromptBuilder, Turn

IGNORED = -100  # label of tokens that are not to be predicted
PADDING = -1  # segment of padding
SHARED = 0  # segment of the picture, seen by all
HIDDEN = -1e9  # score of what is not seen


@dataclass(frozen=True)
class Row:
    """One packed sample, as Python lists of one length T. At least one token of an answer is to be learnt."""

    ids: list[int]
    positions: list[int]
    segments: list[int]
    labels: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Packed:
    """A batch of packed samples."""

    ids: Tensor  # (B, T)
    positions: Tensor  # (B, T)
    segments: Tensor  # (B, T)
    labels: Tensor  # (B, T): the token to predict AT this position's output, or IGNORED
    weights: Tensor  # (B, T): how much that token counts

    def attention_mask(self) -> Tensor:
        """(B, 1, T, T), added to the scores: causal, within the own segment or on the shared picture."""
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).tril()
        rows, columns = self.segments[:, :, None], self.segments[:, None, :]  # (B, T, 1), (B, 1, T)
        seen = causal & ((columns == rows) | (columns == SHARED))  # (B, T, T)
        return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, HIDDEN)[:, None]


def pack_sample(sample: Sample, prompts: PromptBuilder, max_tokens: int) -> Row:
    """Lay out one sample: the pictures once, then its turns, each its own segment unless they are one dialogue.

    The first turn whose answer begins within `max_tokens` is kept, cut if need be; a later one that does not fit is
    left out, and with it the rest of a dialogue. Raises DataError where no answer begins in time.
    """
    opening = prompts.question_ids(Turn(sample.turns[0].question, sample.images), first=True)
    pictures = [place for place, one in enumerate(opening) if one == prompts.config.image_token_id]
    prefix = opening[: pictures[-1] + 1] if pictures else []
    ids, positions = list(prefix), list(range(len(prefix)))
    segments, labels, weights = [SHARED] * len(prefix), [IGNORED] * len(prefix), [0.0] * len(prefix)
    position = len(prefix)
    for number, turn in enumerate(sample.turns, start=1):
        if sample.linked and number > 1:
            question = prompts.question_ids(Turn(turn.question))
        else:
            question = prompts.question_ids(Turn(turn.question, sample.images), first=True)[len(prefix) :]
        answer = prompts.answer_ids(turn.answer, turn.points)
        turn_ids = question + answer
        needed = turn_ids if len(ids) > len(prefix) else question
        if len(ids) + len(needed) > max_tokens:
            if sample.linked:
                break
            continue
        start = position if sample.linked else len(prefix)
        ids += turn_ids
        positions += range(start, start + len(turn_ids))
        segments += [1 if sample.linked else number] * len(turn_ids)
        # The output at the question's last token predicts the answer's first.
        labels += [IGNORED] * (len(question) - 1) + answer + [IGNORED]
        weights += [len(answer) ** -0.5] * len(turn_ids)
        position = start + len(turn_ids)
    if len(ids) == len(prefix):
        raise DataError(
            f"{sample.source}: {len(pictures)} image tokens and a question leave no room for an answer; "
            f"max_tokens is {max_tokens}, raise it in the recipe"
        )
    columns = (ids, positions, segments, labels, weights)
    return Row(*(column[:max_tokens] for column in columns))  # type: ignore[arg-type]


def collate(rows: Sequence[Row]) -> Packed:
    """Pad rows to one length."""
    length = max(len(row.ids) for row in rows)

    def padded(name: str, value: float) -> Tensor:
        lists = [getattr(row, name) for row in rows]
        return torch.tensor([values + [value] * (length - len(values)) for values in lists])

    return Packed(
        ids=padded("ids", 0),
        positions=padded("positions", 0),
        segments=padded("segments", PADDING),
        labels=padded("labels", IGNORED),
        weights=padded("weights", 0.0),
    )
