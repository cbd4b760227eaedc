"""What the readers refuse, record by record or as a whole file, and how they say so."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projector.data.readers import BadRecords, read_samples
from tests.projector.annotation_files import ANSWERS, COCO, CONTENT, JSONL, LLAVA, QUESTIONS, read, write
from vision_lm.errors import DataError


def _set(*keys: str | int, to: Any) -> Callable[[Any], None]:
    """A change to a copy of the content: the value at `keys` becomes `to`."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


def _drop(*keys: str | int) -> Callable[[Any], None]:
    """A change to a copy of the content: what is at `keys` goes."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def _append(*keys: str | int, value: Any) -> Callable[[Any], None]:
    """A change to a copy of the content: the list at `keys` gets one more element."""

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content.append(value)

    return change


# layout, a change that spoils a record, the record as the message names it, what is said, samples left
BAD_RECORDS = [
    ("jsonl", _set(0, to=[1]), "data.jsonl:1", "[1] is not a JSON object", 3),
    ("jsonl", _drop(0, "image"), "data.jsonl:1", "needs either 'image' or 'images'", 3),
    ("jsonl", _drop(0, "question"), "data.jsonl:1", "'question' with 'answer', 'caption', or 'turns'", 3),
    ("jsonl", _set(0, "caption", to="A cube."), "data.jsonl:1", "needs exactly one of 'question'", 3),
    ("jsonl", _drop(0, "answer"), "data.jsonl:1", "'answer' is missing", 3),
    ("jsonl", _set(0, "answer", to=" "), "data.jsonl:1", "'answer' is empty", 3),
    ("jsonl", _set(0, "answer", to=4), "data.jsonl:1", "'answer' is 4; it must be text", 3),
    ("jsonl", _set(0, "answer", to="\ud83d"), "data.jsonl:1", "half of a surrogate pair", 3),
    ("jsonl", _set(0, "question", to="<image> What?"), "data.jsonl:1", "contains '<image>'", 3),
    ("jsonl", _set(0, "question", to="why " * 9999), "data.jsonl:1", "characters, at most", 3),
    ("jsonl", _set(0, "image", to="gone.png"), "data.jsonl:1", 'image "gone.png" is not a file in', 3),
    ("jsonl", _set(0, "image", to=3), "data.jsonl:1", "image 3 is not a file name", 3),
    ("jsonl", _set(2, "images", to="a.png"), "data.jsonl:3", "must be a list of file names", 3),
    ("jsonl", _set(2, "turns", to=[]), "data.jsonl:3", "at least one turn", 3),
    ("jsonl", _set(2, "turns", 1, "answer", to=""), "data.jsonl:3", "turn 2: 'answer' is empty", 3),
    ("jsonl", _set(2, "linked", to=1), "data.jsonl:3", "'linked' is 1; it must be true or false", 3),
    ("jsonl", _set(2, "turns", 0, "kind", to=None), "data.jsonl:3", "'kind' is null", 3),
    ("jsonl", _set(3, "caption", to=""), "data.jsonl:4", "'caption' is empty", 3),
    ("llava", _set(1, to="text"), "llava.json:1: record 2", '"text" is not a JSON object', 2),
    ("llava", _drop(1, "conversations"), "llava.json:1#wgByO4Y_0", "'conversations' is missing", 2),
    ("llava", _set(1, "conversations", to=[]), "llava.json:1#wgByO4Y_0", "has 0 messages", 2),
    ("llava", _drop(0, "conversations", 3), "llava.json:1#000000033471", "has 3 messages", 2),
    ("llava", _drop(0, "conversations", 1), "llava.json:1#000000033471", "human and gpt must alternate", 2),
    (
        "llava",
        _set(0, "conversations", 0, "from", to="user"),
        "#000000033471",
        "the roles are human and gpt",
        2,
    ),
    ("llava", _set(0, "conversations", 1, "value", to=""), "#000000033471", "message 2: 'value' is empty", 2),
    ("llava", _set(0, "conversations", 0, "value", to="<image>\n"), "#000000033471", "question is empty", 2),
    (
        "llava",
        _set(0, "conversations", 0, "value", to="Hm?"),
        "#000000033471",
        "<image> 0 times but names 1",
        2,
    ),
    ("llava", _drop(0, "image"), "#000000033471", "<image> 1 times but names 0", 2),
    ("llava", _set(2, "image", 1, to="gone.png"), "llava.json:1#7", '"gone.png" is not a file', 2),
    ("llava", _set(2, to={"id": "a\n" * 99}), "llava.json:1#a\\na", "'conversations' is missing", 2),
    (
        "coco",
        _drop("images", 1),
        "coco.json:1#annotations/819832",
        "is about image 384029, which 'images'",
        1,
    ),
    ("coco", _drop("images", 1, "file_name"), "coco.json:1#images/384029", "'file_name' is missing", 1),
    (
        "coco",
        _set("images", 1, "file_name", to="c.png"),
        "coco.json:1#images/384029",
        '"c.png" is not a file',
        1,
    ),
    ("coco", _set("images", 1, "id", to="x"), "#images/x", "'id' is \"x\"; it must be a whole number", None),
    ("coco", _append("images", value=COCO["images"][0]), "#images/57870", "second record with this 'id'", 2),
    ("coco", _drop("annotations", 1, "caption"), "coco.json:1#annotations/819832", "'caption' is missing", 1),
    ("coco", _set("annotations", 1, to=None), "record 2 of 'annotations'", "null is not a JSON object", 1),
    ("vqav2", _drop(1, "annotations", 1), "vqav2.json:1#questions/9002", "has no answer in", 1),
    ("vqav2", _drop(0, "questions", 1), "answers.json:1#annotations/9002", "there is no such question in", 1),
    (
        "vqav2",
        _set(0, "questions", 1, "question", to=""),
        "vqav2.json:1#questions/9002",
        "'question' is empty",
        1,
    ),
    ("vqav2", _set(0, "questions", 2, "question_id", to=9002), "#questions/9002", "a second record", None),
    (
        "vqav2",
        _set(1, "annotations", 1, "image_id", to=8),
        "answers.json:1#annotations/9002",
        "image 8, its",
        1,
    ),
    ("vqav2", _drop(1, "annotations", 1, "multiple_choice_answer"), "#annotations/9002", "is missing", 1),
    ("vqav2", _drop(1, "annotations", 1, "question_id"), "record 2 of 'annotations'", "is missing", None),
    ("vqav2", _set(1, "annotations", 1, "question_id", to=True), "#annotations/true", "is true; it", None),
    ("vqav2", _append(1, "annotations", value=ANSWERS["annotations"][1]), "#annotations/9002", "already", 2),
]


@pytest.mark.parametrize(("layout", "change", "name", "problem", "left"), BAD_RECORDS)
def test_a_bad_record_is_named_or_skipped(
    folder: Path, layout: str, change: Callable[[Any], None], name: str, problem: str, left: int | None
) -> None:
    """Strict: one line with the record, the fault and the way on. Skipping: counted once, the rest kept."""
    content = copy.deepcopy(CONTENT[layout])
    change(content)
    path = write(folder, layout, content)
    with pytest.raises(DataError) as raised:
        read(path, layout)  # type: ignore[arg-type]
    message = str(raised.value)
    assert name in message and problem in message
    assert "--skip-bad" in message and "\n" not in message

    bad = BadRecords()
    samples = read(path, layout, bad)  # type: ignore[arg-type]
    if left is not None:  # None: the fault makes a second record bad too, such as an annotation left alone
        assert (bad.count, len(samples)) == (1, left)
    assert name in bad.problems[0] and problem in bad.report()


def test_a_fault_is_counted_once_over_both_files(folder: Path) -> None:
    """A bad question is no reason to complain of its answer as well, nor of its having none."""
    for answers in (ANSWERS["annotations"], ANSWERS["annotations"][:1]):
        content = copy.deepcopy((QUESTIONS, {"annotations": answers}))
        content[0]["questions"][1]["question"] = content[0]["questions"][2]["question"] = ""
        bad = BadRecords()
        read(write(folder, "vqav2", content), bad=bad)
        assert bad.count == 2


def test_lines_that_are_not_json_are_skipped_one_by_one(folder: Path) -> None:
    """A broken line costs that line alone; blank lines and a byte order mark cost nothing."""
    good = json.dumps(JSONL[0]).encode()
    path = folder / "data.jsonl"
    nested = b"[" * 100_000
    lines = [
        b"\xef\xbb\xbf" + good,
        b"",
        b'{"image": "a.png", "question" "x"}',
        b'"\xff"',
        nested,
        good + b"\r",
        b"{",
    ]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"data\.jsonl:3: not JSON: Expecting ':' delimiter at column 31 "):
        read(path)
    bad = BadRecords()
    assert [sample.source for sample in read(path, bad=bad)] == [f"{path}:1", f"{path}:6"]
    assert [problem.removeprefix(f"{path}:")[0] for problem in bad.problems] == ["3", "4", "5", "7"]
    assert bad.report(most=1).splitlines()[0] == "4 bad records skipped"
    assert bad.report(most=1).splitlines()[-1] == "  and 3 more"


@pytest.mark.parametrize(
    ("content", "format", "message"),
    [
        ("", "auto", "the file is empty"),
        ("\n \n", "jsonl", "holds no record"),
        (" \n", "auto", "data.json:2: not JSON: expecting [ or { at column 1"),
        ("[]", "llava", "holds no record"),
        ("{}", "coco", "holds no record"),
        ("hello", "auto", "data.json:1: not JSON: expecting [ or {"),
        ('[{"id": 1}]', "auto", "cannot tell its format from its content; name it: jsonl"),
        ('{"images": [{"id": 1}]}', "auto", "cannot tell its format"),
        ('{"annotations": [{"question_id": 1}]}', "auto", "give the questions file"),
        ('{"questions": [{"question_id": 1}]}', "auto", "VQAv2 keeps the answers in a second file"),
        ('{"image": "a.png"}', "llava", "is a JSON object"),
        ('[{"id": 1}]', "csv", "unknown format 'csv'; the formats are auto, jsonl, llava, coco, vqav2"),
        (
            json.dumps(LLAVA, indent=1)[:-40],
            "llava",
            "data.json:51: not JSON: Expecting property name enclosed in double quotes at column 5",
        ),
        (json.dumps(LLAVA) + "]", "llava", "data.json:1: not JSON: text after the end"),
        ('[{"id": 1},\n  {"id" 2}]', "llava", "data.json:2: not JSON: Expecting ':' delimiter at column 9"),
        ('[{"id": ' + "[" * 100_000, "llava", "data.json:1: not JSON: "),
        ('[{"id": "\udcff"}]', "llava", "not UTF-8 text"),
    ],
)
def test_a_spoilt_file_raises_even_when_skipping(
    folder: Path, content: str, format: Any, message: str
) -> None:
    """Nothing is learnt from a file that is empty, cut short or not what it was taken for."""
    path = folder / "data.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as raised:
        read(path, format, BadRecords())
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_files_that_do_not_fit_together(folder: Path) -> None:
    """A missing file, a folder, a stray or mismatched second file, and a file with no good record, raise."""
    path = write(folder, "vqav2", (QUESTIONS, ANSWERS | {"data_subtype": "val2014"}))
    with pytest.raises(DataError, match=r'is for "val2014", but .* for "train2014"'):
        read(path)
    with pytest.raises(DataError, match=r"nothing\.json: no such file"):
        list(read_samples(path, annotations=folder / "nothing.json"))
    with pytest.raises(DataError, match="a folder, not a file"):
        read(folder)
    with pytest.raises(DataError, match="only vqav2 takes"):
        read_samples(write(folder, "coco", COCO), annotations=path)
    hopeless = write(folder, "jsonl", [{}, {}])
    with pytest.raises(DataError, match=r"none of its 2 records is usable; first .*data\.jsonl:1: needs"):
        read(hopeless, bad=BadRecords(["other.jsonl:1: a bad record of the file before"]))
