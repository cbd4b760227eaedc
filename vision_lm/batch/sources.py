"""From what is named on a command line to single pictures, one after the other."""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from vision_lm.batch.archives import Member, is_archive, tar_members, zip_members
from vision_lm.batch.lists import LIST_SUFFIXES, Record, read_lines, read_list
from vision_lm.errors import BatchError

# What is a picture in a folder or an archive. The last three cannot be read, and have a row that says so.
PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".jxl"),
)


@dataclass(frozen=True)
class Source:
    """Where a picture's bytes are: a file, a URL, or a member of an archive."""

    path: str  # of the file or archive; or the URL
    member: Member | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Source:
        raw = json.loads(text)
        return cls(raw["path"], Member(**raw["member"]) if raw["member"] else None)

    @property
    def exists(self) -> bool:
        """Whether its file or archive is still there; nobody knows of a URL."""
        return "://" in self.path or os.path.exists(self.path)


@dataclass(frozen=True)
class Item:
    """One picture to answer about."""

    image: str  # what the row calls it: printable
    source: Source
    relative: str  # where a file of the same name may be written, below the output folder
    columns: dict[str, str] = field(default_factory=dict)
    sample: bool = False  # its columns are its own, not those of a whole list
    problem: str | None = None  # why it cannot be answered, known before it is opened


def expand(inputs: tuple[str, ...], image_column: str | None, *, columns: bool) -> Iterator[Item]:
    """The pictures that the inputs name, in their order, folders by name. Raises BatchError.

    `columns`: whether the columns of WebDataset samples, which cost a look into each, are wanted.
    """
    if not inputs:
        raise BatchError("no pictures are given; give folders, globs, pictures, archives or lists of paths")
    for given in inputs:
        found = False
        for item in _one(given, image_column, columns):
            found = True
            yield item
        if not found:
            raise BatchError(f"{printable(given)}: no pictures in it; allowed: {', '.join(PICTURES)}")


def printable(path: str) -> str:
    """A path as rows and messages show it: valid text without control characters, whatever bytes it is made of."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _one(given: str, image_column: str | None, columns: bool) -> Iterator[Item]:
    if given == "-":
        yield from (_listed(record, "") for record in read_lines(sys.stdin, "stdin"))
    elif _is_url(given):
        yield _url(given, {})
    elif os.path.isdir(given):
        yield from _folder(given)
    elif not os.path.lexists(given) and re.search(r"[*?\[]", given):
        yield from _glob(given, columns)
    elif not os.path.exists(given):
        raise BatchError(f"{printable(given)}: no such file or folder; give one that exists")
    elif given.lower().endswith(LIST_SUFFIXES):
        for record in read_list(Path(given), image_column):
            yield _listed(record, os.path.dirname(given))
    else:
        yield from _file(given, os.path.basename(given), columns)


def _folder(root: str) -> Iterator[Item]:
    """Pictures and folders by name, whatever order the disk has them in; hidden ones are left out."""

    def refuse(error: OSError) -> None:
        raise BatchError(
            f"{printable(str(error.filename))}: cannot be read ({error.strerror}); make it readable, or leave it out"
        )

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if is_picture(name):
                path = os.path.join(folder, name)
                yield _picture(path, os.path.relpath(path, root))


def _glob(pattern: str, columns: bool) -> Iterator[Item]:
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if os.path.isfile(path) and (is_picture(path) or is_archive(path)):
            yield from _file(path, os.path.basename(path), columns)


def _file(path: str, relative: str, columns: bool) -> Iterator[Item]:
    if not is_archive(path):
        yield _picture(path, relative)
        return
    members = (
        zip_members(path, is_picture)
        if path.lower().endswith(".zip")
        else tar_members(path, is_picture, columns=columns)
    )
    for member, sample in members:
        yield _archived(path, member, sample)


def _archived(archive: str, member: Member, sample: dict[str, str]) -> Item:
    image = f"{printable(archive)}/{printable(member.name)}"
    inside = PurePosixPath(member.name)
    problem = None
    if inside.is_absolute() or ".." in inside.parts or "\\" in member.name:
        problem = f"{image}: its name leads out of the archive; pack the archive again with plain names"
    return Item(
        image,
        Source(os.path.abspath(archive), member),
        member.name if problem is None else "",
        _built_in(image, member.name) | sample,
        sample=not archive.lower().endswith(".zip"),
        problem=problem,
    )


def _listed(record: Record, base: str) -> Item:
    """A line of a list. A relative path begins where the list is, one of stdin's where we are."""
    if _is_url(record.path):
        return _url(record.path, record.columns)
    relative = record.path
    if os.path.isabs(relative) or ".." in Path(relative).parts:
        relative = os.path.basename(
            relative.rstrip("/")
        )  # a folder is no picture, but its text has a place of its own
    return _picture(os.path.join(base, record.path), relative, record.columns)


def _picture(path: str, relative: str, columns: dict[str, str] | None = None) -> Item:
    image = printable(path)
    return Item(image, Source(os.path.abspath(path)), relative, _built_in(image, path) | (columns or {}))


def _url(url: str, columns: dict[str, str]) -> Item:
    bare = re.split(r"[?#]", url, maxsplit=1)[0]  # a query may hold a secret
    name = os.path.basename(bare.rstrip("/"))
    return Item(printable(bare), Source(url), name, _built_in(printable(bare), name) | columns)


def _built_in(image: str, path: str) -> dict[str, str]:
    folder, name = os.path.split(path)
    folder = os.path.basename(folder or os.path.dirname(os.path.abspath(name)))
    name = printable(name)
    return {"image": image, "name": name, "stem": os.path.splitext(name)[0], "folder": printable(folder)}


def is_picture(name: str) -> bool:
    """By its suffix; hidden files, and what macOS adds to its archives, are none."""
    base = os.path.basename(name)
    return base.lower().endswith(PICTURES) and not base.startswith(".") and not name.startswith("__MACOSX/")


def _is_url(given: str) -> bool:
    return re.match(r"https?://", given, re.IGNORECASE) is not None
