"""A sheet of wrong answers: the picture, what was asked, what was said, what is right.

    python benchmarks/failure_sheet.py --data data --model mini --out docs/images/mini_failures.jpg

Held-out scenes and drawings are asked in an order drawn from a fixed seed; the first failures are shown, the surest
first, since those are the ones that mislead.
"""

from __future__ import annotations

import argparse
import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import vision_lm
from vision_lm.answer import Answer
from vision_lm.evaluate import own
from vision_lm.evaluate.answers import listed
from vision_lm.evaluate.settings import TaskFiles
from vision_lm.evaluate.tasks import Item
from vision_lm.model import VisionLM

SIDE, MARGIN, TEXT = 200, 10, 92  # pixels: a picture, around it, and the lines under it
COLUMNS = 5
FONT = ImageFont.load_default(13)


@dataclass(frozen=True)
class Failure:
    """One wrong answer."""

    item: Item
    said: Answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--asked", type=int, default=300, help="questions asked of each task")
    parser.add_argument("--shown", type=int, default=5, help="failures shown of each task")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    vlm = vision_lm.load(options.model)
    files = TaskFiles(data=options.data)
    tasks = [
        own.scenes(files).items,
        own.scene_questions(options.data / "corpus" / "held_out" / "pairs.jsonl"),
        own.names(files).items,
    ]
    shown = [failure for items in tasks for failure in failures(vlm, items, options.asked)[: options.shown]]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(shown).save(options.out, quality=88)
    print(f"{options.out}: {len(shown)} wrong answers")


def failures(vlm: VisionLM, items: Sequence[Item], asked: int) -> list[Failure]:
    """The wrong answers among `asked` of the items, the surest first."""
    chosen = random.Random(0).sample(list(items), min(asked, len(items)))
    replies = vlm.ask([item.image for item in chosen], [item.question or "" for item in chosen])
    wrong = [
        Failure(item, reply)
        for item, reply in zip(chosen, replies, strict=True)
        if isinstance(reply, Answer) and not listed(item, reply.text)
    ]
    return sorted(wrong, key=lambda failure: -failure.said.confidence)


def sheet(shown: Sequence[Failure]) -> Image.Image:
    """All of them in rows of COLUMNS."""
    rows = -(-len(shown) // COLUMNS)
    width, height = SIDE + 2 * MARGIN, SIDE + TEXT + 2 * MARGIN
    page = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    draw = ImageDraw.Draw(page)
    for place, failure in enumerate(shown):
        x, y = place % COLUMNS * width + MARGIN, place // COLUMNS * height + MARGIN
        with Image.open(failure.item.image) as picture:
            page.paste(picture.convert("RGB").resize((SIDE, SIDE)), (x, y))
        right = min(failure.item.references, key=len)
        draw.multiline_text((x, y + SIDE + 4), wrapped(failure.item.question or ""), "black", FONT)
        said = f"said: {failure.said.text} ({failure.said.confidence:.0%})"
        draw.multiline_text((x, y + SIDE + 38), wrapped(said), "firebrick", FONT)
        draw.multiline_text((x, y + SIDE + 72), wrapped(f"right: {right}", 1), "darkgreen", FONT)
    return page


def wrapped(text: str, lines: int = 2) -> str:
    return "\n".join(textwrap.wrap(text, 30, max_lines=lines, placeholder=" …"))


if __name__ == "__main__":
    main()
