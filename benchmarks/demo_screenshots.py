"""Pictures of the demo for the documentation: `python benchmarks/demo_screenshots.py` writes docs/images/demo_*.png.

It needs Debian's chromium and the package playwright (the extra `test`).
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

import vision_lm
from demo.examples import EXAMPLES, FOLDER
from demo.in_process import InProcess
from demo.launch import free_port, opened, own_folder

IMAGES = Path(__file__).parents[1] / "docs" / "images"
MOST_BYTES = 300_000  # of a file; beyond it a palette has to do


@dataclass(frozen=True)
class Shot:
    name: str
    width: int
    height: int
    dark: bool = False
    many: bool = False  # the tab for many pictures


SHOTS = (
    Shot("demo_1280", 1280, 900),
    Shot("demo_390", 390, 844),
    Shot("demo_dark_1280", 1280, 900, dark=True),
    Shot("demo_batch_1280", 1280, 640, many=True),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="some of the shots (default: all)")
    names = parser.parse_args().names
    program = shutil.which("chromium")
    if program is None:
        print("there is no chromium; install Debian's package of this name", file=sys.stderr)
        return 2
    backend = InProcess({"mini": vision_lm.load()})
    port = free_port("127.0.0.1", 0, ())
    with own_folder(), opened(backend, "127.0.0.1", port) as (address,), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for shot in SHOTS:
            if shot.name in names or not names:
                page = browser.new_page(
                    viewport={"width": shot.width, "height": shot.height},
                    color_scheme="dark" if shot.dark else "light",
                )
                page.set_default_timeout(120_000)
                page.goto(address)
                (many_pictures if shot.many else talk)(page)
                save(page.screenshot(full_page=True), IMAGES / f"{shot.name}.png")
        browser.close()
    return 0


def talk(page: Any) -> None:
    """A conversation about the coloured shapes, and where the last answer comes from."""
    shapes = next(one for one in EXAMPLES if one.file == "shapes.png")
    page.get_by_role("button", name=shapes.shows).click()
    page.locator("#box").get_by_role("button", name="Remove file").wait_for()
    box = page.get_by_role("textbox", name="Question about the pictures")
    for number, question in enumerate(("How many shapes are there?", shapes.question), start=1):
        box.fill(question)
        box.press("Enter")
        page.get_by_role("meter").nth(number - 1).wait_for()
        page.locator("button:enabled", has_text="Retry").wait_for()
    page.get_by_role("button", name="Show where it looked").click()
    page.locator("figure.looked img").wait_for()
    page.mouse.click(2, 2)  # nothing has the focus
    page.evaluate("() => scrollTo(0, 0)")
    page.wait_for_timeout(1_000)


def many_pictures(page: Any) -> None:
    """The examples, described."""
    page.get_by_role("tab", name="Many pictures").click()
    page.locator("#files input[type=file]").set_input_files([FOLDER / one.file for one in EXAMPLES])
    page.locator("#files").get_by_text(Path(EXAMPLES[-1].file).stem).first.wait_for()
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text(f"{len(EXAMPLES)} of {len(EXAMPLES)} pictures").wait_for()
    page.wait_for_timeout(1_000)


def save(png: bytes, path: Path) -> None:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        image.quantize(256).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    sys.exit(main())
