"""Training samples: pictures with the turns asked about them, and the JSON Lines files that hold them.

One line of a file is one sample, with image paths relative to the file's folder (or to `image_root`):

    {"image": "a.png", "question": "What is it?", "answer": "A cube."}
    {"image": "a.png", "caption": "A red cube on a table."}
    {"images": ["a.png", "b.png"], "turns": [{"question": "…", "answer": "…", "kind": "…"}], "linked": false}

A question with one picture may also have "points": [[at, x, y], …], where in the picture the answer points, left to right
and top to bottom from 0 to 1, and after how many of its characters: [[0, 0.5, 0.2]] before all of it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vision_lm.errors import DataError, RequestError
from vision_lm.pointing import Point
from vision_lm.prompts import check_question

CAPTION_WORDINGS = (
    "Describe the image.",
    "What is in the picture?",
    "Write a caption for this image.",
    "What does the picture show?",
    "Describe what you see.",
    "Give a short description of the image.",
)


@dataclass(frozen=True, slots=True)
class QA:
    """A question, the answer to be learnt, and what kind of question it is (free text, for reports)."""

    question: str
    answer: str
    kind: str = ""
    points: tuple[Point, ...] = ()  # in the order of their places in the answer


@dataclass(frozen=True, slots=True)
class Sample:
    """Zero to a few pictures and at least one turn about them."""

    images: tuple[Path, ...]
    turns: tuple[QA, ...]
    linked: bool = False  # True: one dialogue, later turns see earlier ones; False: independent questions
    source: str = ""  # "file:line", perhaps with "#id", for error messages


@dataclass
class BadRecords:
    """Collects what is wrong with each skipped record, for a reader that is not to stop at the first."""

    problems: list[str] = field(default_factory=list)  # "file:line: …"
    _seen: set[str] = field(default_factory=set, init=False, repr=False)

    def add(self, problem: str) -> None:
        """Each problem counts once, however often its record is read or drawn."""
        if problem not in self._seen:
            self._seen.add(problem)
            self.problems.append(problem)

    @property
    def count(self) -> int:
        return len(self.problems)

    def report(self, most: int = 20) -> str:
        """The count, then up to `most` problems, one a line."""
        lines = [f"{self.count} bad record{'' if self.count == 1 else 's'} skipped"]
        lines += [f"  {problem}" for problem in self.problems[:most]]
        if self.count > most:
            lines.append(f"  and {self.count - most} more")
        return "\n".join(lines)


def caption_request(image_name: str, index: int = 0) -> str:
    """The request that a caption answers: fixed by the picture's file name and the caption's index."""
    start = zlib.crc32(Path(image_name).name.encode("utf-8", "surrogatepass"))
    return CAPTION_WORDINGS[(start + index) % len(CAPTION_WORDINGS)]


def write_jsonl(path: Path | str, samples: Iterable[Sample], image_root: Path | str | None = None) -> int:
    """Writes one sample a line and returns how many; image paths are made relative to `image_root`.

    The file appears under its name only when it is whole.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    unfinished = path.with_name(path.name + ".unfinished")
    count = 0
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        for sample in samples:
            record = {
                "images": [Path(os.path.relpath(image, root)).as_posix() for image in sample.images],
                "turns": [_turn_record(turn) for turn in sample.turns],
                "linked": sample.linked,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    unfinished.replace(path)
    return count


def _turn_record(turn: QA) -> dict[str, Any]:
    record: dict[str, Any] = {"question": turn.question, "answer": turn.answer}
    if turn.kind:
        record["kind"] = turn.kind
    if turn.points:
        record["points"] = [(one.at, round(one.x, 4), round(one.y, 4)) for one in turn.points]
    return record


def iter_jsonl(
    path: Path | str, image_root: Path | str | None = None, bad: BadRecords | None = None
) -> Iterator[Sample]:
    """Reads the samples of a JSON Lines file; blank lines are passed over.

    Raises DataError at the first bad line, or, given `bad`, collects bad lines there and goes on; in both
    cases when the file cannot be opened or holds no usable sample.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    return require_some(path, _iter_lines(path, root, bad), bad)


def _iter_lines(path: Path, root: Path, bad: BadRecords | None) -> Iterator[Sample]:
    require_file(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                sample = sample_from_record(_parse_line(line, where), root, where)
            except DataError as error:
                reject(error, bad)
            else:
                yield sample


def _parse_line(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig").strip())
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 text: byte 0x{line[error.start]:02x} at byte {error.start + 1}"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets without end
        raise DataError(f"{where}: not usable JSON: {error}") from None


def sample_from_record(record: Any, root: Path, where: str) -> Sample:
    """Checks one parsed line and turns it into a Sample; raises DataError that begins with `where`."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: {shown(record)} is not a JSON object")
    pictures = [key for key in ("image", "images") if key in record]
    if len(pictures) != 1:
        raise DataError(f"{where}: needs either 'image' or 'images' (an empty list for text alone)")
    names = [record["image"]] if pictures == ["image"] else record["images"]
    if [key in record for key in ("turns", "caption", "question")].count(True) != 1:
        raise DataError(f"{where}: needs exactly one of 'question' with 'answer', 'caption', or 'turns'")

    images = existing_images(names, root, where)
    if "caption" in record:
        if not images:
            raise DataError(f"{where}: a caption needs an image")
        turns = [QA(caption_request(images[0].name), text_field(record, "caption", where), "caption")]
    elif "question" in record:
        turns = [_turn_from_record(record, where)]
    else:
        listed = record["turns"]
        if not isinstance(listed, list) or not listed:
            raise DataError(f"{where}: 'turns' is {shown(listed)}; it must be a list of at least one turn")
        turns = [_turn_from_record(turn, f"{where}: turn {i}") for i, turn in enumerate(listed, start=1)]
    linked = record.get("linked", False)
    if not isinstance(linked, bool):
        raise DataError(f"{where}: 'linked' is {shown(linked)}; it must be true or false")
    return Sample(images, tuple(turns), linked, where)


def _turn_from_record(record: Any, where: str) -> QA:
    if not isinstance(record, dict):
        raise DataError(f"{where}: {shown(record)} is not an object with 'question' and 'answer'")
    kind = record.get("kind", "")
    if not isinstance(kind, str):
        raise DataError(f"{where}: 'kind' is {shown(kind)}; it must be text")
    question, answer = (
        askable(text_field(record, "question", where), where),
        text_field(record, "answer", where),
    )
    return QA(question, answer, kind, _points(record.get("points", []), answer, where))


def _points(listed: Any, answer: str, where: str) -> tuple[Point, ...]:
    """What is listed as the answer's points, if it is that."""
    points: list[Point] = []
    for one in listed if isinstance(listed, list) else [listed]:
        numbers = isinstance(one, list) and len(one) == 3 and all(type(n) in (int, float) for n in one)
        if not numbers or type(one[0]) is not int or not 0 <= one[1] <= 1 or not 0 <= one[2] <= 1:
            raise DataError(
                f"{where}: 'points' has {shown(one)}; it must be a list of [characters before it, x, y], x and y from 0 to 1"
            )
        if not (points[-1].at if points else 0) <= one[0] <= len(answer):
            raise DataError(
                f"{where}: 'points' has one after {one[0]} characters; they must be in order, and within the answer's {len(answer)}"
            )
        points.append(Point(*one))
    return tuple(points)


def askable(question: str, where: str) -> str:
    """The question as a prompt takes it; raises DataError where a prompt would refuse it."""
    try:
        return check_question(question)
    except RequestError as error:
        raise DataError(f"{where}: {error}") from None


def text_field(record: dict[str, Any], name: str, where: str) -> str:
    """The text under `name` without the white space around it; raises DataError when there is none."""
    if name not in record:
        raise DataError(f"{where}: '{name}' is missing")
    text = record[name]
    if not isinstance(text, str):
        raise DataError(f"{where}: '{name}' is {shown(text)}; it must be text in quotes")
    if not text.strip():
        raise DataError(f"{where}: '{name}' is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON may spell half of a surrogate pair, which no tokenizer accepts
        raise DataError(
            f"{where}: '{name}' holds half of a surrogate pair, which is not a character"
        ) from None
    return text.strip()


def existing_images(names: Any, root: Path, where: str) -> tuple[Path, ...]:
    """The paths of the named pictures under `root`; raises DataError when one is no file. Opens none."""
    if not isinstance(names, list):
        raise DataError(f"{where}: the images are {shown(names)}; they must be a list of file names")
    paths = []
    for name in names:
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: image {shown(name)} is not a file name")
        if not os.path.isfile(root / name):
            raise DataError(f"{where}: image {shown(name)} is not a file in {root}")
        paths.append(root / name)
    return tuple(paths)


def require_file(path: Path) -> None:
    """Raises DataError unless `path` is a file with something in it."""
    if not path.is_file():
        raise DataError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: no permission to read it")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; it must hold at least one record")


def require_some(path: Path, samples: Iterable[Sample], bad: BadRecords | None) -> Iterator[Sample]:
    """Passes samples on and raises DataError at the end when there was not one."""
    known = bad.count if bad is not None else 0
    empty = True
    for sample in samples:
        empty = False
        yield sample
    if not empty:
        return
    if bad is not None and bad.count > known:
        raise DataError(
            f"{path}: none of its {bad.count - known} records is usable; first {bad.problems[known]}"
        )
    raise DataError(f"{path}: holds no record; it must hold at least one")


def reject(error: DataError, bad: BadRecords | None) -> None:
    """Stops at a bad record, or, given `bad`, only notes it there."""
    if bad is None:
        raise DataError(f"{error} (--skip-bad counts and lists bad records and goes on)") from None
    bad.add(str(error))


def shown(value: Any) -> str:
    """A value as an error message shows it: on one line and short."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
