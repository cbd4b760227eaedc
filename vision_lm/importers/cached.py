"""Another project's checkpoint as if it were ours: imported once, and kept where the next call finds it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from vision_lm.importers.importing import import_checkpoint, open_whole
from vision_lm.importers.source import ADAPTER, FIRST_SIZES, Source, read_json
from vision_lm.model_files import CONFIG

UNFINISHED = ".importing-"
A_DAY = 24 * 3600  # seconds: no import takes so long
READ = (".json", ".txt", ".safetensors", ".bin", ".pt")  # what an import may read, by its suffix
VERSION = 2  # of what an import writes: raised when that changes


# What says of a folder whose it is.
DESCRIPTIONS = (CONFIG, FIRST_SIZES, ADAPTER)


def is_foreign(folder: Path) -> bool:
    """Whether its config.json is of transformers' kind, and not ours, or it has none, as moondream1's first release and
    LoRA weights. A broken one is neither."""
    if not (folder / CONFIG).exists():
        return any((folder / name).is_file() for name in (FIRST_SIZES, ADAPTER))
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(raw, dict) and "projector" not in raw and ("model_type" in raw or "architectures" in raw)
    )


def imported_folder(source: str | os.PathLike[str]) -> Path:
    """The folder of this source's import, made now or before. Raises CheckpointError.

    It lies in XDG_CACHE_HOME, else ~/.cache, under vision-lm/imports; a source whose files change, or those of the
    language model or tower that it names on this machine, is imported anew.
    """
    opened = open_whole(source)
    kept = _cache() / f"{opened.folder.resolve().name[:40]}-{_digest([opened.folder, *_beside(opened)])}"
    if (kept / CONFIG).is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    for left in kept.parent.glob(f"{UNFINISHED}*"):  # by an import that was killed
        if time.time() - left.stat().st_mtime > A_DAY:
            shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(dir=kept.parent, prefix=UNFINISHED))
    try:
        import_checkpoint(source, new, progress=lambda line: print(line, file=sys.stderr, flush=True))
        if not (kept / CONFIG).is_file():  # another process may have been as quick
            shutil.rmtree(kept, ignore_errors=True)
            new.replace(kept)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return kept


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vision-lm" / "imports"


def _beside(source: Source) -> list[Path]:
    """What an import reads beside its source, as far as it lies on this machine under a name of its own."""
    named = [source.config.get("mm_vision_tower")]
    if (source.folder / ADAPTER).is_file():
        named.append(read_json(source.folder / ADAPTER).get("base_model_name_or_path"))
    places = [Path(name).expanduser() for name in named if isinstance(name, str) and name]
    return [place for place in places if place.exists()]


def _digest(places: Sequence[Path]) -> str:
    """Of the name, size and time of every file that may be read: cheap, and another when anything changed."""
    whole = [path for place in places for path in (place.resolve(), *place.resolve().rglob("*"))]
    files = sorted(path for path in whole if path.suffix in READ and path.is_file())
    seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((VERSION, seen)).encode()).hexdigest()[:16]
