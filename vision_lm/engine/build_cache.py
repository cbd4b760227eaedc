"""Compiled kernels on disk: built at first use, and read back by the hash of what they were built from."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

DIGEST = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """Where builds are kept: XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vision-lm" / "kernels"


def build_key(*parts: object) -> str:
    """A name for what is built from these parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def read_build(path: Path) -> bytes | None:
    """A kept build, or None where there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:DIGEST], content[DIGEST:]
    return code if code and hashlib.sha256(code).digest() == digest else None


def write_build(path: Path, code: bytes) -> None:
    """Whole or not at all. A folder that cannot be written costs the next process a build, no more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, path)
    except OSError:
        return
