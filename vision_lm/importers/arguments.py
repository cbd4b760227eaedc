"""The arguments of `vision-lm import`, and what it does with them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="folder or hub id")
    parser.add_argument("--out", required=True, type=Path, help="folder of the new checkpoint")
    parser.add_argument("--base", help="of LoRA weights: the language model, if not the one that they name")
    parser.add_argument(
        "--tower", help="of weights without their image tower: the tower, if not the one that they name"
    )


def run(options: argparse.Namespace) -> int:
    """Another project's checkpoint in our own layout."""
    from vision_lm.importers.importing import import_checkpoint
    from vision_lm.origin import REPORT

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    import_checkpoint(options.source, options.out, base=options.base, tower=options.tower, progress=progress)
    print(f"{options.out}: imported; {REPORT} tells where each tensor comes from")
    return 0
