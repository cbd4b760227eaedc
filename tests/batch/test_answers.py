"""What the rows say: the same as `VisionLM.caption` and `ask`, from every kind of input, into every kind of output."""

from __future__ import annotations

import io
import json
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tests.batch.conftest import Answer, csv_rows, draw, json_rows
from vision_lm.cli import main
from vision_lm.model import VisionLM


def test_rows_are_the_answers_of_caption_and_ask(
    answer: Answer, mini: VisionLM, photos: Path, tmp_path: Path
) -> None:
    """Decoding in other processes, another batch, a shared prefix: none of it changes what is said."""
    question = "What colour is the background?"
    summary = answer(photos, tmp_path / "out.jsonl", caption="normal", ask=(question,))
    paths = sorted(photos.iterdir())
    rows = json_rows(tmp_path / "out.jsonl")
    assert [row["image"] for row in rows] == list(map(str, paths))
    for row, path in zip(rows, paths, strict=True):
        caption, asked = mini.caption(path), mini.ask(path, question)
        assert (row["caption"], row["caption_finish_reason"]) == (caption.text, caption.finish_reason)
        assert row["caption_confidence"] == pytest.approx(caption.confidence, abs=1e-3)
        assert (row["answer_1"], row["answer_1_question"]) == (asked.text, question)
        assert row["answer_1_confidence"] == pytest.approx(asked.confidence, abs=1e-3)
        assert row["answer_1_unanswerable"] is asked.unanswerable
        assert row["open_seconds"] > 0 and row["answer_seconds"] > 0 and row["error"] is None
    assert (summary.pictures, summary.answered, summary.failed) == (6, 6, 0)
    assert len(summary.slowest) == 5


def test_checked_captions(answer: Answer, mini: VisionLM, photos: Path, tmp_path: Path) -> None:
    """What is taken back stands beside the caption in every output but a text; kept answers still have it."""
    (photos / "bad.png").write_bytes(b"no picture")
    asked = {"caption": "long", "checked": True}
    answer(photos, tmp_path / "out.jsonl", **asked)
    rows = json_rows(tmp_path / "out.jsonl")
    captions = [mini.caption(path, "long", checked=True) for path in sorted(photos.glob("0*.png"))]
    assert any(one.unconfirmed for one in captions) and any(not one.unconfirmed for one in captions)
    assert [row["caption"] for row in rows] == [*(one.text for one in captions), None]
    assert [row["caption_unanswerable"] for row in rows] == [*(one.unanswerable for one in captions), None]
    taken_back = [list(one.unconfirmed) for one in captions]
    assert [row["caption_unconfirmed"] for row in rows] == [*taken_back, None]

    again = answer(photos, tmp_path / "out.jsonl", **asked, sheet=tmp_path / "sheet.html")
    assert again.kept == 6
    assert [row["caption_unconfirmed"] for row in json_rows(tmp_path / "out.jsonl")] == [*taken_back, None]
    for names in filter(None, taken_back):
        assert f"Not confirmed: {', '.join(names)}" in (tmp_path / "sheet.html").read_text()
    answer(photos, tmp_path / "out.parquet", **asked, ask=("Is it red?",))
    parquet = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [json.loads(row["caption_unconfirmed"] or "null") for row in parquet] == [*taken_back, None]
    assert "answer_1_unconfirmed" not in parquet[0]
    answer(photos, tmp_path / "texts", **asked)
    assert (tmp_path / "texts" / "0000.txt").read_text() == captions[0].text + "\n"


def test_every_kind_of_input_is_read(answer: Answer, mini: VisionLM, tmp_path: Path) -> None:
    """Folder, glob, picture, text, CSV and TSV lists, Parquet, zip, plain and compressed tar, in this order."""
    drawn = [draw(tmp_path / "drawn" / f"{n}.png", n) for n in range(12)]
    data = [path.read_bytes() for path in drawn]

    def put(relative: str, number: int) -> Path:
        path = tmp_path / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[number])
        return path

    put("folder/b/1.png", 1)
    put("folder/a.PNG", 0)
    put("folder/.hidden.png", 2)
    put("folder/notes.txt", 2)
    put("globbed/one/2.png", 2)
    put("alone", 3)
    for name, number in (("text", 4), ("csv", 5), ("tsv", 6), ("parquet", 7)):
        put(f"lists/{name} ä,.png", number)
    (tmp_path / "lists/list.txt").write_text("text ä,.png\n\n", encoding="utf-8")
    (tmp_path / "lists/list.csv").write_text('id,path\n1,"csv ä,.png"\n', encoding="utf-8-sig")
    (tmp_path / "lists/list.tsv").write_text("id\tfile\n1\ttsv ä,.png\n", encoding="utf-8")
    table = pyarrow.table({"id": [1], "image": ["parquet ä,.png"]})
    pyarrow.parquet.write_table(table, tmp_path / "lists/list.parquet")
    with zipfile.ZipFile(tmp_path / "some.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("deep/8.png", data[8])
        archive.writestr("__MACOSX/deep/._8.png", b"no picture")
        archive.writestr("readme.md", b"no picture")
    for name, mode, numbers in (("plain.tar", "w", (9,)), ("packed.tar.gz", "w:gz", (10, 11))):
        with tarfile.open(tmp_path / name, mode) as tar:
            for number in numbers:
                info = tarfile.TarInfo(f"shard/{number}.png")
                info.size = len(data[number])
                tar.addfile(info, io.BytesIO(data[number]))

    inputs = [
        "folder",
        "globbed/**/*.png",
        "alone",
        *(f"lists/list.{kind}" for kind in ("txt", "csv", "tsv")),
    ]
    inputs += ["lists/list.parquet", "some.zip", "plain.tar", "packed.tar.gz"]
    answer([tmp_path / one for one in inputs], tmp_path / "out.csv")
    rows = csv_rows(tmp_path / "out.csv")
    assert [row["error"] for row in rows] == [""] * 12
    assert [row["caption"] for row in rows] == [mini.caption(path, "short").text for path in drawn]
    assert rows[8]["image"] == f"{tmp_path}/some.zip/deep/8.png"


def test_every_kind_of_output_is_read_back_by_others(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """By json, csv, pyarrow and sqlite3: the same columns, the same rows, the same types."""
    (photos / "bad.png").write_bytes(b"no picture")
    for suffix in ("jsonl", "csv", "parquet", "sqlite"):
        summary = answer(photos, tmp_path / f"out.{suffix}", ask=("Is there a circle?",))
        assert (summary.answered, summary.failed) == (6, 1)
    answer(photos, tmp_path / "texts", ask=("Is there a circle?",))

    lines = json_rows(tmp_path / "out.jsonl")
    read = {
        "csv": csv_rows(tmp_path / "out.csv"),
        "parquet": pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist(),
    }
    with sqlite3.connect(tmp_path / "out.sqlite") as db:
        db.row_factory = sqlite3.Row
        read["sqlite"] = [dict(row) for row in db.execute("SELECT * FROM answers")]
    for kind, rows in read.items():
        assert [list(row) for row in rows] == [list(row) for row in lines], kind
        for row, line in zip(rows, lines, strict=True):
            for key in ("image", "caption", "answer_1", "error"):
                assert (row[key] or None) == line[key], (kind, key)
            if line["error"] is None:
                assert float(row["caption_confidence"]) == pytest.approx(line["caption_confidence"], abs=1e-3)
    texts = {path.name: path.read_text() for path in (tmp_path / "texts").glob("*.txt")}
    assert texts == {
        f"{Path(line['image']).stem}.txt": f"caption: {line['caption']}\nanswer_1: {line['answer_1']}\n"
        for line in lines
        if line["error"] is None
    }
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("inside", [False, True], ids=["from elsewhere", "from inside the folder"])
def test_a_text_for_each_picture_beside_it(
    answer: Answer, photos: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    """The layout that trainers of image models read: a.png, a.txt. Nobody's own text is written over."""
    draw(photos / "deep" / "x.jpg", 9)
    if inside:
        monkeypatch.chdir(photos)
    answer(*[Path() if inside else photos] * 2)
    assert (photos / "deep" / "x.txt").read_text().strip()
    assert len(list(photos.rglob("*.txt"))) == 7


def test_templates_over_columns(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """Of a list's columns, and of those that every picture has; a brace is doubled."""
    (tmp_path / "list.csv").write_text(
        "image,thing,note\nphotos/0000.png,circle,a\nphotos/0001.png,square,b\n"
    )
    (tmp_path / "questions.json").write_text(
        json.dumps({"there": "Is there a {thing}?", "file": "Is {stem} in {folder} {{so}}?"})
    )
    answer(tmp_path / "list.csv", tmp_path / "out.jsonl", caption=None, questions=tmp_path / "questions.json")
    rows = json_rows(tmp_path / "out.jsonl")
    assert [row["there_question"] for row in rows] == ["Is there a circle?", "Is there a square?"]
    assert rows[0]["file_question"] == "Is 0000 in photos {so}?"
    assert all(row["there"] and row["file"] for row in rows)


def test_columns_of_a_webdataset_sample(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """What stands beside a picture in a shard can be asked about; a sample without it has a row that says so."""
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        members = {
            "a.json": b'{"thing": "circle", "deep": {}}',
            "a.png": (photos / "0000.png").read_bytes(),
            "b.png": (photos / "0001.png").read_bytes(),
            "b.json": b'{"thing": "square"}',
            "c.png": (photos / "0002.png").read_bytes(),
            "c.json": b'{"a\\ud800": 1, "deep": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
            "d.png": (photos / "0003.png").read_bytes(),
            "d.json": b'{"a\\ud800": 1}',
        }
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "questions.txt").write_text("# about each\nIs there a {thing}?\n")
    answer(tmp_path / "shard.tar", tmp_path / "out.jsonl", caption=None, questions=tmp_path / "questions.txt")
    rows = json_rows(tmp_path / "out.jsonl")
    assert [row["answer_1_question"] for row in rows] == [
        "Is there a circle?",
        "Is there a square?",
        None,
        None,
    ]
    assert "has no 'thing'" in rows[2]["error"]
    assert "it has a\\ud800, folder" in rows[3]["error"]  # half a character, as JSON writes it


def test_answers_of_a_json_schema(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """They are objects in JSON Lines, and text elsewhere."""
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    answer(photos / "0000.png", tmp_path / "out.jsonl", caption=None, json_schema=schema)
    answer(photos / "0000.png", tmp_path / "out.csv", caption=None, json_schema=schema)
    (row,) = json_rows(tmp_path / "out.jsonl")
    assert row["json"]["colour"] in ("red", "blue", "green")
    assert json.loads(csv_rows(tmp_path / "out.csv")[0]["json"]) == row["json"]


def test_duplicates_are_answered_once(answer: Answer, tmp_path: Path) -> None:
    """Exact: the same pixels in another file. Perceptual: saved again or scaled; never the same shapes in other colours."""
    first = draw(tmp_path / "in" / "1.png", 3, size=(200, 200))
    image = Image.open(first)
    image.save(tmp_path / "in" / "2-same.bmp")
    image.resize((150, 150)).save(tmp_path / "in" / "3-smaller.jpg", quality=80)
    red, green, blue = image.split()
    Image.merge("RGB", (blue, red, green)).save(tmp_path / "in" / "4-recoloured.png")
    draw(tmp_path / "in" / "5.png", 4)

    found = {}
    for dedupe in (None, "exact", "perceptual"):
        out = tmp_path / f"{dedupe}.jsonl"
        summary = answer(tmp_path / "in", out, dedupe=dedupe)
        rows = json_rows(out)
        found[dedupe] = [Path(row["image"]).name[0] for row in rows if row["duplicate_of"]]
        assert summary.duplicates == len(found[dedupe]) and summary.answered == 5 - summary.duplicates
        for row in rows:
            if row["duplicate_of"]:
                assert row["duplicate_of"] == str(first)
                assert row["caption"] == rows[0]["caption"]
    assert found == {None: [], "exact": ["2"], "perceptual": ["2", "3"]}


def test_rows_as_they_are_completed(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """The same rows in another order."""
    answer(photos, tmp_path / "input.jsonl")
    answer(photos, tmp_path / "completed.jsonl", order="completed")
    rows = {name: json_rows(tmp_path / f"{name}.jsonl") for name in ("input", "completed")}
    captions = {name: {row["image"]: row["caption"] for row in its} for name, its in rows.items()}
    assert captions["input"] == captions["completed"]
    assert len(rows["completed"]) == 6


def test_what_cannot_be_opened_has_a_row(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """A corrupt file, a URL without permission, a name that leads out of its archive: each says what to do."""
    half = (photos / "0000.png").read_bytes()[:100]
    (photos / "0003.png").write_bytes(half)
    (photos / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../evil.png", (photos / "0000.png").read_bytes())
    (tmp_path / "list.txt").write_text("missing.png\nhttp://example.com/a.png?key=secret\n")
    summary = answer([photos, tmp_path / "evil.zip", tmp_path / "list.txt"], tmp_path / "out.jsonl")
    errors = {
        Path(row["image"]).name: row["error"] for row in json_rows(tmp_path / "out.jsonl") if row["error"]
    }
    assert list(errors) == ["0003.png", "phone.heic", "evil.png", "missing.png", "a.png"]
    for name, part in {
        "0003.png": "give a complete file",
        "phone.heic": "this is HEIC",
        "evil.png": "leads out of the archive",
        "missing.png": "no such file",
        "a.png": "--allow-url-host example.com",
    }.items():
        assert part in errors[name] and "secret" not in errors[name]
    assert (summary.answered, summary.failed) == (5, 5)
    assert sum(one.count for one in summary.failures) == 5


def test_a_worker_that_ends_costs_its_picture(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """Killed, for lack of memory or of time: the others go on, and the row says so."""
    summary = answer(sorted(photos.iterdir())[:2], tmp_path / "out.jsonl", picture_timeout=0.001)
    assert summary.failed == 2
    assert {row["cause"] for row in json_rows(tmp_path / "out.jsonl")} == {"WorkerError"}
    assert "ended with signal 9" in json_rows(tmp_path / "out.jsonl")[0]["error"]


def test_the_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its summary goes to stdout; a failure is exit status 2, and so is no other row."""
    arguments = [
        "batch",
        str(photos),
        "--caption",
        "short",
        "--out",
        str(tmp_path / "out.jsonl"),
        "--device",
        "cpu",
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "6 pictures" in printed.out and "slowest" in printed.out and printed.err == ""
    (photos / "bad.png").write_bytes(b"")
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "6  kept from an earlier run" in printed.out and "1  the file is empty" in printed.out
