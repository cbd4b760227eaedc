"""Pictures inside zip and tar archives. Nothing is ever extracted: a member is found once and read where it lies."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from vision_lm.errors import BatchError, ImageError, ImageTooLargeError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
COLUMN_BYTES = 1 << 16  # of a sample's text; a longer one is no column
OPEN_ARCHIVES = 4  # that a worker keeps open
# How a tar's file starts, and what reads the tar inside.
_COMPRESSIONS: dict[bytes, Callable[[str], IO[bytes] | gzip.GzipFile]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    name: str
    size: int  # bytes, unpacked
    place: int  # in a zip's directory; in a tar the first byte, unpacked


def is_archive(path: str) -> bool:
    return path.lower().endswith((".zip", *TAR_SUFFIXES))


def zip_members(path: str, wanted: Callable[[str], bool]) -> Iterator[tuple[Member, dict[str, str]]]:
    """The wanted files of a zip, in its order. Raises BatchError for a file that is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            for place, info in enumerate(archive.infolist()):
                if not info.is_dir() and wanted(info.filename):
                    yield Member(info.filename, info.file_size, place), {}
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:  # a name may be no UTF-8
        raise _broken(path, "zip", error) from error


def tar_members(
    path: str, wanted: Callable[[str], bool], *, columns: bool
) -> Iterator[tuple[Member, dict[str, str]]]:
    """The wanted files of a tar, in its order, with `columns` those of their WebDataset sample.

    Files that follow each other with the same name up to its first dot are a sample: its .txt and .cls are columns of
    these names, its .json gives one for each plain value. Raises BatchError for a file that is no tar.
    """
    sample, pictures, texts = None, list[Member](), dict[str, str]()
    try:
        with tarfile.open(path, "r:*") as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would remember every one
                if not info.isreg() or info.issparse():
                    continue
                folder, name = os.path.split(info.name)
                stem, _, extension = name.partition(".")
                if (folder, stem) != sample:
                    yield from ((member, texts) for member in pictures)
                    sample, pictures, texts = (folder, stem), [], {}
                if wanted(info.name):
                    pictures.append(Member(info.name, info.size, info.offset_data))
                elif columns and info.size <= COLUMN_BYTES and extension in ("txt", "cls", "json"):
                    file = archive.extractfile(info)
                    texts |= _columns(extension, file.read() if file else b"")
        yield from ((member, texts) for member in pictures)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _broken(path, "tar", error) from error


def _columns(extension: str, data: bytes) -> dict[str, str]:
    text = data.decode("utf-8", "replace")
    if extension != "json":
        return {extension: text.strip()}
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    plain = raw.items() if isinstance(raw, dict) else ()
    return {_plain(key): str(value) for key, value in plain if isinstance(value, (str, int, float))}


def _plain(key: str) -> str:
    """Half a character, which JSON can hold, can be no column's name."""
    return key.encode("utf-8", "backslashreplace").decode()


class Archives:
    """Reads members; the archives used last stay open. A compressed tar is read forwards, as its members come."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, zipfile.ZipFile | IO[bytes] | gzip.GzipFile] = OrderedDict()

    def read(self, path: str, member: Member, name: str, max_bytes: int) -> bytes:
        """A member's bytes; `name` is what messages call it. Raises ImageError."""
        if member.size > max_bytes:
            raise ImageTooLargeError(
                f"{name}: {member.size:,} bytes is too large; allowed: {max_bytes:,} bytes (scale it down)"
            )
        try:
            archive = self._archive(path)
            if isinstance(archive, zipfile.ZipFile):
                with archive.open(archive.infolist()[member.place]) as file:
                    data = file.read(max_bytes + 1)  # a zip may understate a member's size
            else:
                archive.seek(member.place)
                data = archive.read(member.size)
            if len(data) != member.size:
                raise EOFError(f"{len(data):,} of {member.size:,} bytes")
            return data
        # RuntimeError: a password; IndexError: the archive has changed.
        except (
            zipfile.BadZipFile,
            OSError,
            EOFError,
            RuntimeError,
            IndexError,
            zlib.error,
            lzma.LZMAError,
        ) as error:
            self._open.pop(path, None)
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise ImageError(f"{name}: cannot be read from its archive ({reason}); pack it again") from error

    def _archive(self, path: str) -> zipfile.ZipFile | IO[bytes] | gzip.GzipFile:
        if path not in self._open:
            self._open[path] = zipfile.ZipFile(path) if path.lower().endswith(".zip") else _open_tar(path)
            if len(self._open) > OPEN_ARCHIVES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return self._open[path]


def _open_tar(path: str) -> IO[bytes] | gzip.GzipFile:
    with open(path, "rb") as file:
        start = file.read(6)
    opened = next((opener for magic, opener in _COMPRESSIONS.items() if start.startswith(magic)), None)
    return opened(path) if opened else open(path, "rb")


def _broken(path: str, kind: str, error: Exception) -> BatchError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return BatchError(f"{path}: cannot be read as a {kind} archive ({reason}); make or fetch it again")
