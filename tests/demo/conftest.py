"""A real browser on the real page, with tiny models that say nonsense."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from demo.backend import Backend
from demo.in_process import InProcess
from demo.launch import free_port, opened, own_folder
from tests.conftest import VIT, random_checkpoint, text_config
from vision_lm.checkpoint import Checkpoint
from vision_lm.model import VisionLM

QUESTION = "What colour is the cube?"
PATIENCE = 60_000  # milliseconds: a machine may be busy
SERIOUS = ("serious", "critical")  # axe's own words


@pytest.fixture(scope="session")
def looking(trunk_checkpoint: Checkpoint) -> VisionLM:
    """A model that says different nonsense of different pictures."""
    return VisionLM(trunk_checkpoint, device="cpu")


@pytest.fixture(scope="session")
def slow() -> VisionLM:
    """A model whose answers never end by themselves, at about twenty tokens a second."""
    checkpoint = random_checkpoint(VIT, text_config(max_position_embeddings=4096))
    bias = checkpoint.tensors["phi.lm_head.bias"].clone()
    bias[checkpoint.config.prompt.eos_token_id] = -1e4
    tensors = checkpoint.tensors | {"phi.lm_head.bias": bias}
    vlm = VisionLM(dataclasses.replace(checkpoint, tensors=tensors), device="cpu")
    decode = vlm.engine.decoder.decode

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.05)
        return decode(*arguments)

    vlm.engine.decoder.decode = slowly  # type: ignore[method-assign]
    return vlm


@pytest.fixture
def files(tmp_path: Path, pictures: list[Image.Image]) -> list[Path]:
    """Three pictures, as files."""
    paths = [tmp_path / f"{name}.png" for name in ("apple", "boat", "cube")]
    for path, picture in zip(paths, pictures, strict=False):
        picture.save(path)
    return paths


@pytest.fixture
def no_picture(tmp_path: Path) -> Path:
    path = tmp_path / "notes.png"
    path.write_text("I am no picture")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium. For a module alone: it keeps an event loop running, which other tests could not have."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no chromium on this machine; install Debian's package of this name")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@dataclass
class Visit:
    """One person's visit to the page, and everything that the browser complained of."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    @property
    def box(self) -> Any:
        return self.page.get_by_role("textbox", name="Question about the pictures")

    def add(self, *files: Path) -> None:
        """Pictures into the box, as from the file dialogue of the clip; wait until they are there."""
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Upload a file").first.click()
        chooser.value.set_files(list(files))
        self.page.locator("#box").get_by_role("button", name="Remove file").nth(len(files) - 1).wait_for()

    def ask(self, question: str) -> None:
        self.box.fill(question)
        self.box.press("Enter")

    def answered(self, count: int) -> list[str]:
        """The texts of the answers, once there are so many and the last one is complete."""
        self.page.get_by_role("meter", name="Confidence").nth(count - 1).wait_for()
        self.button("Stop").and_(self.page.locator("[disabled]")).wait_for()
        return self.texts()

    def texts(self) -> list[str]:
        """The texts of the answers so far, blanks made alike as a browser shows them."""
        parts = self.page.locator("#conversation .bot-row .message-content").all_text_contents()
        return [plain(one) for one in parts]

    def button(self, name: str) -> Any:
        return self.page.locator(".tabitem:visible").get_by_role("button", name=name, exact=True)

    def serious_violations(self) -> list[str]:
        """What axe-core finds wrong for people who see, hear or move otherwise."""
        axe = pytest.importorskip(
            "axe_playwright_python.sync_playwright", reason="axe is not installed"
        ).Axe()
        found = axe.run(self.page).response["violations"]
        return [
            f"{one['id']}: {one['help']}: {node['html'][:200]}"
            for one in found
            if one["impact"] in SERIOUS
            for node in one["nodes"]
        ]


def plain(text: str) -> str:
    return " ".join(text.split())


@contextmanager
def serving(backend: Backend, accounts: Any = ()) -> Iterator[str]:
    """The page's address, while the block lasts."""
    port = free_port("127.0.0.1", 0, accounts)
    with own_folder(), opened(backend, "127.0.0.1", port, accounts) as addresses:
        yield addresses[0]


Visiting = Callable[..., Any]


@pytest.fixture(scope="module")
def visiting(browser: Any) -> Visiting:
    """`with visiting(address) as visit`: at the end nothing was complained of, and nothing asked of elsewhere."""

    @contextmanager
    def visit(address: str, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Visit]:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
        )
        context.set_default_timeout(PATIENCE)
        here = Visit(context.new_page())

        def listen(request: Any) -> None:
            if not request.url.startswith((address, "data:", "blob:")):
                here.complaints.append(f"asked elsewhere: {request.url}")

        here.page.on("request", listen)
        here.page.on("pageerror", lambda error: here.complaints.append(f"error: {error}"))
        here.page.on(
            "console",
            lambda said: here.complaints.append(f"console: {said.text}") if said.type == "error" else None,
        )
        try:
            here.page.goto(address)
            yield here
            assert here.complaints == []
        finally:
            context.close()

    return visit


@pytest.fixture(scope="module")
def address(looking: VisionLM) -> Iterator[str]:
    """The page of the model that looks, with two names for it."""
    with serving(InProcess({"looking": looking, "same": looking})) as one:
        yield one
