"""What a run comes to: counts, failures by cause, the slowest pictures."""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass, field
from pathlib import Path

from vision_lm.batch.records import Done

SLOWEST = 5
CAUSES = 1_000  # told apart; all others are one
SHOWN_CAUSES = 10


@dataclass(frozen=True)
class Failures:
    """Pictures that failed in the same way."""

    cause: str  # the message without names and numbers
    count: int
    example: str  # the first one's whole message


@dataclass(frozen=True)
class Slow:
    """One of the slowest pictures."""

    image: str
    open_seconds: float  # read, decoded and brought to size
    answer_seconds: float  # encoded and answered, together with others


@dataclass(frozen=True)
class Summary:
    """A finished run. `str()` of it is what the command prints."""

    out: Path
    pictures: int
    answered: int  # by the model, in this run
    kept: int  # answers of an earlier run, whose pictures have not changed
    duplicates: int  # have an earlier picture's answers
    failed: int
    given_twice: int  # pictures that were named again, and are one row
    cut_off: int  # pictures of which an answer came to its longest length
    more_frames: int  # pictures of several frames or pages, of which the first was read
    seconds: float  # without loading the model
    failures: tuple[Failures, ...]  # the most frequent first
    slowest: tuple[Slow, ...]
    sheet: Path | None = None

    @property
    def rate(self) -> float:
        """Pictures a second, those that were only kept left out."""
        return (self.pictures - self.kept) / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        lines = [f"{self.out}: {self.pictures:,} pictures, {self.seconds:.1f} s, {self.rate:.1f} a second"]
        for count, name in (
            (self.answered, "answered"),
            (self.kept, "kept from an earlier run"),
            (self.duplicates, "duplicates of others"),
            (self.failed, "failed"),
            (self.given_twice, "named twice, one row each"),
            (self.cut_off, "cut off at the longest length of an answer"),
            (self.more_frames, "with several frames or pages, the first was read"),
        ):
            if count:
                lines.append(f"  {count:>9,}  {name}")
        if self.failures:
            lines.append("failures by cause:")
            lines += [
                f"  {one.count:>9,}  {one.cause}: {one.example}" for one in self.failures[:SHOWN_CAUSES]
            ]
            if rest := sum(one.count for one in self.failures[SHOWN_CAUSES:]):
                lines.append(f"  {rest:>9,}  of other causes")
        if self.slowest:
            lines.append("slowest, seconds to open and to answer:")
            lines += [
                f"  {one.open_seconds:>9.2f}  {one.answer_seconds:.2f}  {one.image}" for one in self.slowest
            ]
        if self.sheet:
            lines.append(f"{self.sheet}: contact sheet")
        return "\n".join(lines)


@dataclass
class Tally:
    """Counts rows as they are written."""

    run: int
    pictures: int = 0
    answered: int = 0
    kept: int = 0
    duplicates: int = 0
    failed: int = 0
    cut_off: int = 0
    more_frames: int = 0
    _causes: dict[str, tuple[int, str]] = field(default_factory=dict)
    _slowest: list[tuple[float, int, Slow]] = field(default_factory=list)  # a heap, the least slow first

    def add(self, done: Done) -> None:
        result, image = done.result, done.planned.item.image
        self.pictures += 1
        self.more_frames += result.more_frames
        self.cut_off += any(one.finish_reason == "length" for one in result.answers)
        if result.error is not None:
            self.failed += 1
            cause = _cause(result.error, image)
            cause = cause if cause in self._causes or len(self._causes) < CAUSES else "another cause"
            count, example = self._causes.get(cause, (0, result.error))
            self._causes[cause] = count + 1, example
        elif result.duplicate_of is not None:
            self.duplicates += 1
        elif result.answered < self.run:
            self.kept += 1
        else:
            self.answered += 1
        if result.answers and result.answered < self.run:
            return  # its times are those of an earlier run
        slow = Slow(image, round(result.open_seconds, 4), round(result.answer_seconds, 4))
        entry = slow.open_seconds + slow.answer_seconds, -done.planned.position, slow
        (heapq.heappush if len(self._slowest) < SLOWEST else heapq.heappushpop)(self._slowest, entry)

    def summary(self, out: Path, given_twice: int, seconds: float, sheet: Path | None) -> Summary:
        causes = sorted(self._causes.items(), key=lambda one: -one[1][0])
        return Summary(
            out,
            self.pictures,
            self.answered,
            self.kept,
            self.duplicates,
            self.failed,
            given_twice,
            self.cut_off,
            self.more_frames,
            seconds,
            tuple(Failures(cause, count, example) for cause, (count, example) in causes),
            tuple(slow for *_, slow in sorted(self._slowest, reverse=True)),
            sheet,
        )


def _cause(message: str, image: str) -> str:
    """A message without the picture's name, its numbers and its remedy: the same for all that failed the same way."""
    bare = re.split(r"[;(]", message.replace(f"{image}: ", ""), maxsplit=1)[0].strip()
    return re.sub(r"\d[\d,.]*", "N", bare)[:100]
