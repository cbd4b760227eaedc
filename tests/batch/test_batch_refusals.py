"""What cannot work is said in one line, before anything is answered, and with exit status 2."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.batch.conftest import Answer, json_rows
from vision_lm.cli import main
from vision_lm.errors import BatchError, RequestError

CASES = {
    "unknown suffix": ("photos --caption short --out o.xlsx", "o.xlsx", ".parquet"),
    "no pictures in a folder": ("empty --caption short --out o.csv", "empty: no pictures", ".png"),
    "no such input": ("nowhere --caption short --out o.csv", "nowhere: no such file or folder", "give one"),
    "a glob of nothing": ("photos/*.gif --caption short --out o.csv", "photos/*.gif: no pictures", "allowed"),
    "nothing is asked": ("photos --out o.csv", "nothing is asked", "--caption"),
    "a check of nothing": ("photos --check --ask What? --out o.csv", "--check is about", "give --caption"),
    "an empty question": ("photos --ask= --out o.csv", "the question is empty", "write"),
    "unknown column": (
        "list.csv --questions q.txt --out o.csv",
        "column 'thing' is unknown",
        "image, name, stem",
    ),
    "no plain column": ("list.csv --questions code.txt --out o.csv", "{a.__class__}", "write {column}"),
    "no questions file": ("photos --questions none.txt --out o.csv", "none.txt: cannot be read", "give"),
    "a taken name": ("photos --questions taken.json --out o.csv", "'error' cannot head a column", "letters"),
    "no column of paths": ("other.csv --caption short --out o.csv", "it has id, name", "--image-column"),
    "no archive": ("broken.zip --caption short --out o.csv", "cannot be read as a zip", "fetch it again"),
    "a name that is no text": (
        "names.zip --caption short --out o.csv",
        "cannot be read as a zip",
        "fetch it again",
    ),
    "no JSON": ("photos --json-schema q.txt --out o.csv", "q.txt: cannot be read", "give a JSON file"),
    "no checkpoint": ("photos --caption short --out o.csv --model ./none", "no such folder", "give a folder"),
    "someone's file": ("photos --caption short --out mine.csv", "mine.csv: exists", "--overwrite"),
    "no page": (
        "photos --caption short --out o.csv --sheet q.txt",
        "q.txt: a contact sheet",
        "ends in .html",
    ),
    "someone's page": (
        "photos --caption short --out o.csv --sheet mine.html",
        "exists and is no contact",
        "another",
    ),
    "no number": (
        "photos --caption short --out o.csv --workers 0",
        "'0' is not a whole number",
        "at least 1",
    ),
}


@pytest.mark.parametrize(("arguments", "given", "remedy"), CASES.values(), ids=CASES)
def test_one_line_and_status_2(
    arguments: str,
    given: str,
    remedy: str,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says what was given and what to do, and leaves nothing behind."""
    monkeypatch.chdir(photos.parent)
    Path("empty").mkdir()
    Path("list.csv").write_text("image,object\nphotos/0000.png,cat\n")
    Path("other.csv").write_text("id,name\n1,a\n")
    Path("q.txt").write_text("Is there a {thing}?\n")
    Path("code.txt").write_text("Is there {a.__class__}?\n")
    Path("taken.json").write_text('{"error": "Is there a cat?"}')
    Path("broken.zip").write_bytes(b"PK\x03\x04 and no more")
    with zipfile.ZipFile("names.zip", "w") as archive:
        archive.writestr("é.png", b"")
    Path("names.zip").write_bytes(Path("names.zip").read_bytes().replace("é".encode(), b"\xff\xfe"))
    Path("mine.csv").write_text("mine")
    Path("mine.html").write_text("mine")
    before = sorted(Path().rglob("*"))
    try:
        status = main(["batch", *arguments.split(" ")])
    except SystemExit as end:  # argparse
        status = end.code
    printed = capsys.readouterr()
    assert status == 2 and printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("vision-lm: error: ") and given in line and remedy in line
    assert sorted(Path().rglob("*")) == before
    assert Path("mine.csv").read_text() == Path("mine.html").read_text() == "mine"


def test_other_settings_are_refused_with_the_way_out(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """Rows of two runs must not be mixed: other questions, or dedupe. --overwrite begins anew."""
    out = tmp_path / "out.jsonl"
    answer(photos, out)
    rows = out.read_bytes()
    for changes in (
        {"caption": "long"},
        {"ask": ("Is it red?",)},
        {"dedupe": "exact"},
        {"max_tokens": 5},
        {"checked": True},
    ):
        with pytest.raises(BatchError, match=r"other settings \(.*\); give these, .* or --overwrite"):
            answer(photos, out, **changes)
        assert out.read_bytes() == rows
    summary = answer(photos, out, caption="long", overwrite=True)
    assert (summary.answered, summary.kept) == (6, 0)
    assert answer(photos, out, caption="long").kept == 6


def test_other_inputs_do_not_drop_rows(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """Answers about pictures that are still there would vanish from the output: more inputs are fine, others are not."""
    out = tmp_path / "out.jsonl"
    one, two = photos / "0000.png", photos / "0001.png"
    answer(one, out)
    with pytest.raises(BatchError, match=r"not among these inputs, 1 of them .*--overwrite"):
        answer(two, out)
    assert [row["image"] for row in json_rows(out)] == [str(one)]
    summary = answer([two, one, one], out)
    assert (summary.answered, summary.kept, summary.given_twice) == (1, 1, 1)
    assert [row["image"] for row in json_rows(out)] == [str(two), str(one)]


def test_texts_do_not_take_each_others_place(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """Nor that of a text that someone wrote."""
    (photos / "0000.jpg").write_bytes((photos / "0000.png").read_bytes())
    with pytest.raises(BatchError, match="and of another picture"):
        answer(photos, tmp_path / "texts")
    (photos / "0000.jpg").unlink()
    (photos / "0000.txt").write_text("mine")
    with pytest.raises(BatchError, match="is not of this run"):
        answer(photos, photos)
    assert (photos / "0000.txt").read_text() == "mine"


def test_a_form_that_makes_no_sense(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """Refused at once, not picture by picture."""
    with pytest.raises(RequestError):
        answer(photos, tmp_path / "out.jsonl", json_schema={"type": "nonsense"})
    with pytest.raises(RequestError, match="max_tokens"):
        answer(photos, tmp_path / "out.jsonl", max_tokens=100_000)


def test_members_that_lie_about_their_size(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """A zip bomb is never unpacked beyond the limit of a picture's file."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", b"\0" * (65 << 20))
    answer(tmp_path / "bomb.zip", tmp_path / "out.jsonl")
    data = bytearray((tmp_path / "bomb.zip").read_bytes())
    place = data.index(b"PK\x01\x02") + 24  # the size in the directory
    data[place : place + 4] = (1000).to_bytes(4, "little")
    (tmp_path / "liar.zip").write_bytes(data)
    answer(tmp_path / "liar.zip", tmp_path / "liar.jsonl")
    assert "is too large" in json_rows(tmp_path / "out.jsonl")[0]["error"]
    assert json_rows(tmp_path / "liar.jsonl")[0]["cause"] == "ImageError"
