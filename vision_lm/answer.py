"""What a model says and how sure it is: from generated tokens to text, whole or piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from vision_lm.captions import cut_caption, sentences_end
from vision_lm.confidence import UNANSWERABLE, Sureness, of_answer, of_caption, sureness
from vision_lm.config import Calibration, PointConfig
from vision_lm.engine import Generation, Token
from vision_lm.engine.stopping import FinishReason
from vision_lm.pointing import Point, is_point, points_of

UNSUPPORTED = 0.5  # below: the picture does not make a named thing likely


@dataclass(frozen=True)
class Support:
    """How much a picture speaks for one thing that a text names."""

    text: str  # "red star"
    start: int  # characters of the answer's text
    end: int
    seen: float  # 0 to 1: the probability of these words, given those before, with the picture
    unseen: float  # the same with a picture of nothing

    @property
    def value(self) -> float:
        """-1 to 1: how much of the probability the picture brings; near 0 or below it brings nothing."""
        return self.seen - self.unseen

    @property
    def supported(self) -> bool:
        """False for what should not be believed without another look: see `UNSUPPORTED`."""
        return self.value >= UNSUPPORTED


@dataclass(frozen=True)
class Answer:
    """One answer. `str(answer)` is its text."""

    text: str
    confidence: float  # 0 to 1, calibrated: see `vision_lm.confidence`
    finish_reason: FinishReason  # "stop", "length", "repetition" or "cancelled"
    # Those that the text is made of, and those that point; a full stop added to a caption has none.
    tokens: tuple[int, ...]
    token_logprobs: tuple[float, ...]  # natural logarithms, one for each token
    # With the option `top_logprobs`: for each token the likeliest ids at its place, with their logarithms.
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    # It says so itself (`UNANSWERABLE`), or is less sure than the checkpoint's threshold, chosen on held-out questions: better
    # say "I do not know".
    unanswerable: bool = False
    # Where in the picture it points, if the checkpoint can: see `vision_lm.pointing`.
    points: tuple[Point, ...] = ()
    support: tuple[Support, ...] | None = None  # of what a caption names, where it was asked for
    # Of a checked caption: what it first named and does not say any more. Tokens and confidence are those of the first text.
    unconfirmed: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


def too_unsure(text: str, unanswerable: bool) -> bool:
    """Whether an answer should not be relied on, though it is given: not where it says itself that there is none."""
    return unanswerable and text != UNANSWERABLE


class AnswerStream(Iterator[str]):
    """The pieces of an answer while it is written. Joined they are the text of `answer`, set at the end."""

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        self._pieces = pieces
        self.answer: Answer | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self.answer = self.answer or end.value
            raise

    def close(self) -> None:
        """Stop here: the rest is never generated."""
        self._pieces.close()


class AnswerWriter:
    """Writes answers with one checkpoint's tokenizer and calibration."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        calibration: Calibration,
        points: PointConfig | None = None,
    ) -> None:
        self.decode = decode
        self.calibration = calibration
        self.points = points

    def whole(self, generation: Generation, *, caption: bool) -> Answer:
        """The answer of a finished generation. A caption ends at a sentence and says none twice."""
        text, reason = self.text(generation.tokens, generation.cut), generation.finish_reason
        count = len(generation.tokens)
        if caption:
            kept, full_stop, reason = cut_caption(text, reason)
            if kept != text:
                count = next(
                    n for n in range(count + 1) if len(self.text(generation.tokens[:n])) >= len(kept)
                )
            text = kept + full_stop
        tokens, logprobs = generation.tokens[:count], generation.logprobs[:count]
        pointing = tuple(is_point(token, self.points) for token in tokens)
        each = zip(logprobs, generation.rivals[:count], pointing, strict=True)
        sure = Sureness(tuple(sureness(p, rival, pointing=points) for p, rival, points in each), pointing)
        confidence = (
            of_caption(text, sure, self.spans(tokens), self.calibration)
            if caption
            else of_answer(text, sure, self.calibration)
        )
        return Answer(
            text,
            confidence,
            reason,
            tokens,
            logprobs,
            generation.tops[:count],
            points=tuple(points_of(tokens, self.points, self.text)),
            unanswerable=not caption and (text == UNANSWERABLE or confidence < self.calibration.unanswerable),
        )

    def pieces(
        self, tokens: Generator[Token, None, Generation], *, caption: bool
    ) -> Generator[str, None, Answer]:
        """The same answer while it is written; a caption by sentences, since what follows may be cut."""
        pieces = Pieces(self, caption=caption)
        while True:
            try:
                piece = pieces.push(next(tokens))
            except StopIteration as end:
                piece, answer = pieces.end(end.value)
                break
            if piece:
                yield piece
        if piece:
            yield piece
        return answer

    def spans(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Where in the text each token's characters begin and end."""
        ends = [len(self.text(tokens[: count + 1])) for count in range(len(tokens))]
        return list(zip([0, *ends], ends, strict=False))

    def text(self, tokens: Sequence[int], cut: int | None = None) -> str:
        """Tokens as text up to `cut`, without blanks around it and without a character whose last bytes are still to come.

        So the text of the first few tokens is always the beginning of the text of all.
        """
        return self.decode(tokens)[:cut].rstrip("\ufffd").strip()


class Pieces:
    """One answer while it is written: a token in, the text that is certain now and was not before out."""

    def __init__(self, writer: AnswerWriter, *, caption: bool) -> None:
        self._writer, self._caption = writer, caption
        self._ids: list[int] = []
        self._sent = 0  # characters

    def push(self, token: Token) -> str:
        """Take the next token. Often nothing is certain yet: half a character, an unfinished sentence."""
        self._ids.append(token.id)
        text = self._writer.text(self._ids)
        return self._next(text, sentences_end(text, finished=False)[0] if self._caption else len(text))

    def end(self, generation: Generation) -> tuple[str, Answer]:
        """What is still to be said, and the whole."""
        answer = self._writer.whole(generation, caption=self._caption)
        return self._next(answer.text, len(answer.text)), answer

    def _next(self, text: str, end: int) -> str:
        piece = text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece
