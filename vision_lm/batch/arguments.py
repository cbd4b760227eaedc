"""The command line of `vision-lm batch`. Imports nothing heavy: `--help` stays instant."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vision_lm.batch.settings import Settings
from vision_lm.errors import BatchError

# Of `Settings`, as argparse has them.
AS_GIVEN = (
    "out",
    "caption",
    "checked",
    "questions",
    "max_tokens",
    "image_column",
    "dedupe",
    "order",
    "overwrite",
    "sheet",
    "sheet_pictures",
    "model",
    "device",
    "quantize",
    "threads",
)
EPILOG = """\
inputs: folders, glob patterns, pictures, http(s) URLs, .zip and .tar archives (WebDataset shards too), lists
(.txt, .csv, .tsv, .parquet; a relative path begins where the list is), or - for paths on stdin.

Stopped or killed, the same command goes on: what it has done is in a journal beside the output.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `Settings` holds."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="see below")
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        help=".jsonl, .csv, .parquet, .sqlite or .db; or a folder for a .txt of each picture",
    )
    parser.add_argument("--caption", choices=("short", "normal", "long"), help="describe each picture")
    parser.add_argument(
        "--check",
        dest="checked",
        action="store_true",
        help='ask the model about each thing that a caption names, and call "something" what it does not find',
    )
    parser.add_argument(
        "--ask", metavar="QUESTION", action="append", default=[], help="about each picture; may be repeated"
    )
    parser.add_argument(
        "--questions",
        metavar="FILE",
        type=Path,
        help='a question a line, or .json {"name": "question"}; {column} stands for a list\'s column, or for '
        "image, name, stem or folder",
    )
    parser.add_argument(
        "--json-schema", metavar="FILE", type=Path, help="the form of every answer that is no caption"
    )
    parser.add_argument("--max-tokens", type=_count, metavar="N", help="of an answer")
    parser.add_argument("--image-column", metavar="NAME", help="of lists: the column with the paths")
    parser.add_argument(
        "--dedupe",
        nargs="?",
        choices=("exact", "perceptual"),
        const="perceptual",
        help="answer the same picture once; perceptual (the default of this option): also what looks the same",
    )
    parser.add_argument(
        "--order",
        choices=("input", "completed"),
        default="input",
        help="of the rows; completed: as soon as they are there (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew where --out is of another run")
    parser.add_argument("--sheet", metavar="FILE", type=Path, help="write an HTML contact sheet, too")
    parser.add_argument(
        "--sheet-pictures",
        type=_count,
        metavar="N",
        default=Settings.sheet_pictures,
        help="at most so many on it (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=_count, metavar="N", help="processes that open pictures (default: one a core)"
    )
    parser.add_argument(
        "--threads",
        type=_count,
        metavar="N",
        help="of the encoder, and of the language model beside it, on a CPU (default: all cores)",
    )
    parser.add_argument("--no-progress", action="store_true", help="no bar, even on a terminal")


def settings(options: argparse.Namespace) -> Settings:
    """Raises BatchError for a schema that cannot be read."""
    given: dict[str, Any] = {name: getattr(options, name) for name in AS_GIVEN}
    if options.workers is not None:
        given["workers"] = options.workers
    return Settings(
        inputs=tuple(options.inputs),
        ask=tuple(options.ask),
        json_schema=None if options.json_schema is None else _schema(options.json_schema),
        allow_url_hosts=tuple(options.allow_url_host),
        progress=sys.stderr.isatty() and not options.no_progress,
        **given,
    )


def _schema(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BatchError(f"--json-schema {path}: cannot be read ({reason}); give a JSON file") from error


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
