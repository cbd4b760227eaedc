"""The command line of `vision-lm eval`. Imports nothing heavy: `--help` stays instant."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from vision_lm.evaluate.registry import OWN, PUBLISHED
from vision_lm.evaluate.settings import Settings, TaskFiles

FILES = {
    "questions": "the task's questions",
    "annotations": "the task's answers or captions",
    "images": "folder of its pictures",
    "splits": "ScienceQA's pid_splits.json",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `Settings` holds."""
    parser.epilog = (
        "docs/evaluation.md names each task's published files. Stopped, the same command goes on. "
        "The folder holds predictions.jsonl, scores.json and report.html."
    )
    parser.add_argument("task", metavar="TASK", choices=PUBLISHED + OWN, help=", ".join(PUBLISHED + OWN))
    parser.add_argument("--out", required=True, type=Path, help="the result folder")
    for name, meaning in FILES.items():
        parser.add_argument(f"--{name}", type=Path, metavar="PATH", help=meaning)
    parser.add_argument("--split", default="test", help="of ScienceQA (default: %(default)s)")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="of our own tasks: what `vision-lm data build` made"
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="score this file and run no model: JSON Lines or a results JSON",
    )
    parser.add_argument(
        "--blind",
        action=argparse.BooleanOptionalAction,
        help="answer without the pictures, too (default: for our own tasks)",
    )
    parser.add_argument("--skip-missing", action="store_true", help="score what is there, and count the rest")
    parser.add_argument("--limit", type=_count, metavar="N", help="so many items, chosen by the seed")
    parser.add_argument("--prompt", default="{question}", help='such as "{question} Answer briefly."')
    parser.add_argument("--length", choices=("short", "normal", "long"), help="of captions")
    parser.add_argument("--max-tokens", type=_count, metavar="N", help="of an answer")
    parser.add_argument(
        "--batch",
        type=_count,
        default=Settings.under_way,
        metavar="N",
        help="requests under way at once; in float32 never changes an answer (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default=Settings.dtype,
        help="of the computation (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the intervals and of --limit (default: 0)")
    parser.add_argument(
        "--resamples", type=_count, default=Settings.resamples, help="of the bootstrap (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew where --out holds another run")
    parser.add_argument("--no-progress", action="store_true", help="no bar, even on a terminal")


def settings(options: argparse.Namespace) -> Settings:
    return Settings(
        task=options.task,
        out=options.out,
        files=TaskFiles(
            options.questions,
            options.annotations,
            options.images,
            options.splits,
            options.split,
            options.data,
        ),
        predictions=options.predictions,
        blind=options.blind,
        skip_missing=options.skip_missing,
        limit=options.limit,
        prompt=options.prompt,
        length=options.length,
        max_tokens=options.max_tokens,
        under_way=options.batch,
        seed=options.seed,
        resamples=options.resamples,
        overwrite=options.overwrite,
        model=options.model,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        progress=sys.stderr.isatty() and not options.no_progress,
        command=shlex.join(["vision-lm", *sys.argv[1:]]),
    )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
