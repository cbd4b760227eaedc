"""Records out of a JSON file piece by piece: wherever the pieces end, and never all of it in memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from projector.data import json_records
from projector.data.readers import read_samples
from tests.projector.annotation_files import LLAVA
from vision_lm.errors import DataError

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
