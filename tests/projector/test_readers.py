"""What the readers accept, what they refuse, and how they say so."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projector.data import json_records, readers
from projector.data.readers import BadRecords, read_samples
from projector.data.samples import (
    CAPTION_WORDINGS,
    QA,
    Sample,
    caption_request,
    iter_jsonl,
    write_jsonl,
)
from vision_lm.errors import DataError

JSONL = [
    {"image": "a.png", "question": "What is it?", "answer": "A cube."},
    {"images": [], "turns": [{"question": "Two plus two?", "answer": "Four."}]},
    {
        "images": ["a.png", "b.png"],
        "turns": [
            {"question": "Which is red?", "answer": "the first", "kind": "colour"},
            {"question": "And blue?", "answer": "neither"},
        ],
        "linked": True,
    },
    {"image": "b.png", "caption": "A red cube."},
]
LLAVA: list[dict[str, Any]] = [
    {
        "id": "000000033471",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
            {"from": "gpt", "value": "The bus is white and red."},
            {"from": "human", "value": "Is it moving?"},
            {"from": "gpt", "value": "It is parked."},
        ],
    },
    {
        "id": "wgByO4Y_0",
        "model": "",
        "conversations": [
            {"from": "human", "value": "Name a prime."},
            {"from": "gpt", "value": "Seven."},
        ],
    },
    {
        "id": 7,
        "image": ["a.png", "b.png"],
        "conversations": [
            {"from": "human", "value": "Compare them.\n<image>\n<image>"},
            {"from": "gpt", "value": "They are alike."},
        ],
    },
]
COCO: dict[str, Any] = {
    "info": {"description": "COCO 2014 Dataset", "year": 2014},
    "images": [
        {
            "license": 5,
            "file_name": "COCO_train2014_000000057870.jpg",
            "height": 480,
            "width": 640,
            "id": 57870,
        },
        {"license": 5, "file_name": "b.png", "height": 426, "width": 640, "id": 384029},
    ],
    "licenses": [{"url": "http://example.org/", "id": 5, "name": "Attribution License"}],
    "annotations": [
        {"image_id": 57870, "id": 787980, "caption": "A restaurant has modern wooden tables and chairs."},
        {"image_id": 384029, "id": 819832, "caption": "A man preparing desserts in a kitchen. "},
        {"image_id": 57870, "id": 789366, "caption": "A long restaurant table with rattan chairs."},
    ],
}
QUESTIONS: dict[str, Any] = {
    "info": {"description": "This is v2.0 of the VQA dataset."},
    "task_type": "Open-Ended",
    "data_type": "mscoco",
    "license": {"name": "Creative Commons Attribution 4.0"},
    "data_subtype": "train2014",
    "questions": [
        {"image_id": 57870, "question": "What are the chairs made of?", "question_id": 57870000},
        {"image_id": 9, "question": "How many cookies can be seen?", "question_id": 9002},
        {"image_id": 57870, "question": "Is this a restaurant?", "question_id": 57870001},
    ],
}


def _answer(question_id: int, image_id: int, answer: str, answer_type: str) -> dict[str, Any]:
    votes = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]
    return {
        "question_type": "what",
        "multiple_choice_answer": answer,
        "answers": votes,
        "image_id": image_id,
        "answer_type": answer_type,
        "question_id": question_id,
    }


ANSWERS: dict[str, Any] = {
    "data_subtype": "train2014",
    "annotations": [
        _answer(57870000, 57870, "wicker", "other"),
        _answer(9002, 9, "2", "number"),
        _answer(57870001, 57870, "yes", "yes/no"),
    ],
}
IMAGES = (
    "a.png",
    "b.png",
    "coco/train2017/000000033471.jpg",
    "COCO_train2014_000000057870.jpg",
    "COCO_train2014_000000000009.jpg",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the images that the files above name; readers only look whether they are there."""
    for name in IMAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"not opened by readers")
    return tmp_path


def _write(folder: Path, layout: str, content: Any) -> Path:
    """Writes `content` in its published layout; that of VQAv2 is the pair (questions, annotations)."""
    if layout == "jsonl":
        path = folder / "data.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in content))
        return path
    path = folder / f"{layout}.json"
    if layout == "vqav2":
        (folder / "answers.json").write_text(json.dumps(content[1]))
        content = content[0]
    path.write_text(json.dumps(content))
    return path


def _read(path: Path, format: readers.Format = "auto", bad: BadRecords | None = None) -> list[Sample]:
    annotations = path.parent / "answers.json" if path.name == "vqav2.json" else None
    return list(read_samples(path, format=format, annotations=annotations, bad=bad))


CONTENT: dict[str, Any] = {"jsonl": JSONL, "llava": LLAVA, "coco": COCO, "vqav2": (QUESTIONS, ANSWERS)}


def test_jsonl_lines_become_samples(folder: Path) -> None:
    """Plain, caption and wider lines, with the line number as the source."""
    path = _write(folder, "jsonl", JSONL)
    a, b = folder / "a.png", folder / "b.png"
    assert _read(path) == [
        Sample((a,), (QA("What is it?", "A cube."),), False, f"{path}:1"),
        Sample((), (QA("Two plus two?", "Four."),), False, f"{path}:2"),
        Sample(
            (a, b),
            (QA("Which is red?", "the first", "colour"), QA("And blue?", "neither")),
            True,
            f"{path}:3",
        ),
        Sample((b,), (QA(caption_request("b.png"), "A red cube.", "caption"),), False, f"{path}:4"),
    ]


def test_llava_conversations_become_dialogues(folder: Path) -> None:
    """Image tags leave the text, turns are linked, text-only and several-image records are read."""
    path = _write(folder, "llava", LLAVA)
    turns = (
        QA("What are the colors of the bus?", "The bus is white and red."),
        QA("Is it moving?", "It is parked."),
    )
    assert _read(path) == [
        Sample((folder / "coco/train2017/000000033471.jpg",), turns, True, f"{path}:1#000000033471"),
        Sample((), (QA("Name a prime.", "Seven."),), True, f"{path}:1#wgByO4Y_0"),
        Sample(
            (folder / "a.png", folder / "b.png"),
            (QA("Compare them.", "They are alike."),),
            True,
            f"{path}:1#7",
        ),
    ]
    (text_only,) = _read(_write(folder, "llava", [LLAVA[1] | {"image": None}]))
    assert text_only.images == ()


def test_coco_captions_are_grouped_by_image(folder: Path) -> None:
    """One sample an image, its captions in the file's order, each with a different request."""
    restaurant, kitchen = _read(_write(folder, "coco", COCO))
    assert restaurant.images == (folder / "COCO_train2014_000000057870.jpg",)
    assert [turn.answer for turn in restaurant.turns] == [
        "A restaurant has modern wooden tables and chairs.",
        "A long restaurant table with rattan chairs.",
    ]
    assert [turn.answer for turn in kitchen.turns] == ["A man preparing desserts in a kitchen."]
    assert not restaurant.linked
    requests = [turn.question for turn in restaurant.turns]
    assert len(set(requests)) == 2
    assert set(requests) <= set(CAPTION_WORDINGS)


def test_vqav2_questions_are_grouped_by_image(folder: Path) -> None:
    """Answers meet their questions by id; the image's name comes from subset and image id."""
    path = _write(folder, "vqav2", (QUESTIONS, ANSWERS))
    assert _read(path) == [
        Sample(
            (folder / "COCO_train2014_000000057870.jpg",),
            (
                QA("What are the chairs made of?", "wicker", "other"),
                QA("Is this a restaurant?", "yes", "yes/no"),
            ),
            False,
            f"{path}#image_id/57870",
        ),
        Sample(
            (folder / "COCO_train2014_000000000009.jpg",),
            (QA("How many cookies can be seen?", "2", "number"),),
            False,
            f"{path}#image_id/9",
        ),
    ]


@pytest.mark.parametrize("layout", CONTENT)
@pytest.mark.parametrize("image_root", ["pictures", None])
def test_format_is_told_from_the_content(
    folder: Path, layout: readers.Format, image_root: str | None
) -> None:
    """Naming the format or not gives the same samples, wherever the images are."""
    written = _write(folder, layout, CONTENT[layout])
    expected = [[image.relative_to(folder) for image in sample.images] for sample in _read(written, layout)]
    path = written.rename(folder / "anything.json")
    if image_root:
        (folder / "sub").mkdir()
        path = path.rename(folder / "sub" / "anything.json")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # the byte order mark that some editors add
    annotations = folder / "answers.json" if layout == "vqav2" else None
    samples = read_samples(path, image_root=folder if image_root else None, annotations=annotations)
    assert [[image.relative_to(folder) for image in sample.images] for sample in samples] == expected


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
    path = _write(folder, layout, content)
    with pytest.raises(DataError) as raised:
        _read(path, layout)  # type: ignore[arg-type]
    message = str(raised.value)
    assert name in message and problem in message
    assert "--skip-bad" in message and "\n" not in message

    bad = BadRecords()
    samples = _read(path, layout, bad)  # type: ignore[arg-type]
    if left is not None:  # None: the fault makes a second record bad too, such as an annotation left alone
        assert (bad.count, len(samples)) == (1, left)
    assert name in bad.problems[0] and problem in bad.report()


def test_a_fault_is_counted_once_over_both_files(folder: Path) -> None:
    """A bad question is no reason to complain of its answer as well, nor of its having none."""
    for answers in (ANSWERS["annotations"], ANSWERS["annotations"][:1]):
        content = copy.deepcopy((QUESTIONS, {"annotations": answers}))
        content[0]["questions"][1]["question"] = content[0]["questions"][2]["question"] = ""
        bad = BadRecords()
        _read(_write(folder, "vqav2", content), bad=bad)
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
        _read(path)
    bad = BadRecords()
    assert [sample.source for sample in _read(path, bad=bad)] == [f"{path}:1", f"{path}:6"]
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
        _read(path, format, BadRecords())
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_files_that_do_not_fit_together(folder: Path) -> None:
    """A missing file, a folder, a stray or mismatched second file, and a file with no good record, raise."""
    path = _write(folder, "vqav2", (QUESTIONS, ANSWERS | {"data_subtype": "val2014"}))
    with pytest.raises(DataError, match=r'is for "val2014", but .* for "train2014"'):
        _read(path)
    with pytest.raises(DataError, match=r"nothing\.json: no such file"):
        list(read_samples(path, annotations=folder / "nothing.json"))
    with pytest.raises(DataError, match="a folder, not a file"):
        _read(folder)
    with pytest.raises(DataError, match="only vqav2 takes"):
        read_samples(_write(folder, "coco", COCO), annotations=path)
    hopeless = _write(folder, "jsonl", [{}, {}])
    with pytest.raises(DataError, match=r"none of its 2 records is usable; first .*data\.jsonl:1: needs"):
        _read(hopeless, bad=BadRecords(["other.jsonl:1: a bad record of the file before"]))


TRICKY = {
    "deep": [{"a": [[{}], []], 'b\\"\n': "\u00e9\U0001f600"}, {"\U0001f600]": "} , ]"}, "", []],
    "flat": [12345, -1.5e-07, True, None, "x" * 50, 0],
    "none": [],
    "alone": {"k": [1, 2]},
    "number": 17,
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("indent", [None, 30])
def test_records_do_not_depend_on_the_chunk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, ascii: bool, indent: int | None
) -> None:
    """Wherever chunks end, a file gives what the json module gives, and is refused if cut short."""
    monkeypatch.setattr(json_records, "CHUNK", chunk)
    path = folder / "tricky.json"
    text = json.dumps(TRICKY, ensure_ascii=ascii, indent=indent)
    path.write_text(text, encoding="utf-8")
    expected = [
        (key, number, value)
        for key, values in json.loads(text).items()
        for number, value in enumerate(values if isinstance(values, list) else [values], start=1)
    ]
    records = list(json_records.iter_records(path))
    assert [(record.key, record.number, record.value) for record in records] == expected
    for record in records:
        begins = json.dumps(record.value, ensure_ascii=ascii, indent=indent).splitlines()[0]
        line = text.splitlines()[record.line - 1]
        assert line.strip(" ,").endswith(begins) if indent else record.line == 1
    for end in range(0, len(text), 1 if indent is None else 11):
        path.write_text(text[:end], encoding="utf-8")
        with pytest.raises(DataError, match=r"tricky\.json:\d+: not JSON: "):
            list(json_records.iter_records(path))


@pytest.mark.parametrize("faulty", [1, 3001])
def test_a_large_file_is_never_held_whole(folder: Path, faulty: int) -> None:
    """Reading 24 MB of conversations up to a fault in the first or the last takes a few chunks of memory."""
    path = folder / "large.json"
    record = json.dumps({"id": 1, "conversations": LLAVA[1]["conversations"], "padding": "x" * 8000})
    records = [record] * 3001
    records[faulty - 1] = '{"id" 1}'
    path.write_text("[" + ",\n".join(records) + "]")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"large\.json:{faulty}: not JSON: Expecting ':' delimiter"):
            for _ in read_samples(path, format="llava"):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20, f"{peak / 2**20:.1f} MiB"


def test_written_samples_read_back(folder: Path) -> None:
    """What is written is what is read, in the same bytes each time, with paths relative to file or root."""
    samples = [
        Sample((folder / "a.png",), (QA("Wo?", "Über dem Würfel.\nDort.", "place"), QA("b", "c"))),
        Sample((folder / "coco/train2017/000000033471.jpg", folder / "b.png"), (QA("d", "e"),), linked=True),
        Sample((), (QA("f", "g"),)),
    ]
    (folder / "sub").mkdir()
    path = folder / "sub" / "data.jsonl"
    assert write_jsonl(path, samples) == 3
    first = path.read_bytes()
    write_jsonl(path, samples)
    assert path.read_bytes() == first
    assert "Über dem Würfel.".encode() in first
    assert json.loads(first.splitlines()[0])["images"] == ["../a.png"]
    assert list(path.parent.iterdir()) == [path]

    def content(sample: Sample) -> tuple[Any, ...]:
        return [image.resolve() for image in sample.images], sample.turns, sample.linked

    assert [content(sample) for sample in iter_jsonl(path)] == [content(sample) for sample in samples]
    write_jsonl(path, samples, image_root=folder)
    assert b'"images": ["a.png"]' in path.read_bytes()
    read = list(iter_jsonl(path, image_root=folder))
    assert [sample.images for sample in read] == [sample.images for sample in samples]


def test_caption_requests_are_fixed_by_the_name(folder: Path) -> None:
    """The same file name asks the same in every process and folder; many names use every request."""
    assert caption_request("a.png") == "Give a short description of the image."
    assert caption_request("elsewhere/a.png") == caption_request("a.png")
    assert {caption_request(f"{n}.png") for n in range(100)} == set(CAPTION_WORDINGS)
    assert [caption_request("a.png", index) for index in range(6)] != [caption_request("a.png")] * 6
