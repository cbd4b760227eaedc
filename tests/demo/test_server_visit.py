"""A person's visit to a page whose models are those of a running service."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.over_http import Server
from tests.demo.conftest import QUESTION, Visiting, plain, serving
from tests.patience import until
from tests.server.conftest import running
from vision_lm.model import VisionLM

pytestmark = pytest.mark.slow


def test_captions_questions_and_where_it_looked(
    visiting: Visiting, looking: VisionLM, files: list[Path]
) -> None:
    """The page says what the Python API says of the same model."""
    with (
        running({"looking": looking}) as service,
        serving(Server(service.url)) as address,
        visiting(address) as visit,
    ):
        visit.add(files[0])
        visit.button("Short").click()
        expected = [plain(looking.caption(files[0], "short").text)]
        assert visit.answered(1) == expected
        visit.ask(QUESTION)
        answer = looking.ask(files[0], QUESTION)
        expected.append(plain(answer.text))
        assert visit.answered(2) == expected
        meter = visit.page.get_by_role("meter", name="Confidence").last
        assert meter.get_attribute("aria-valuenow") == str(round(100 * answer.confidence))
        visit.button("Show where it looked").click()
        overlay = visit.page.locator("figure.looked img")
        overlay.wait_for()
        assert overlay.get_attribute("alt") == str(looking.explain(files[0], QUESTION))


def test_stop_ends_the_services_work(visiting: Visiting, slow: VisionLM, files: list[Path]) -> None:
    """Of an answer, which streams, and of a caption, which comes in one piece: the service is told, and stops too."""
    with (
        running({"slow": slow}) as service,
        serving(Server(service.url)) as address,
        visiting(address) as visit,
    ):

        def hung_up(path: str) -> bool:
            lines = service.client.get("/metrics").text.splitlines()
            return any('status="499"' in line and f'path="{path}"' in line for line in lines)

        visit.page.get_by_role("button", name="Settings").click()
        for name, value in (("Temperature", "2"), ("Longest answer", "512")):
            visit.page.get_by_label(f"number input for {name}").fill(value)
            visit.page.get_by_label(f"number input for {name}").press("Tab")
        visit.add(files[0])
        for path in ("/v1/caption", "/v1/chat/completions"):
            before = slow.engine.stats.generated_tokens
            if path == "/v1/caption":
                visit.button("Long").click()
            else:
                visit.ask(QUESTION)
            until(lambda before=before: slow.engine.stats.generated_tokens > before)  # type: ignore[misc]
            visit.button("Stop").click()
            visit.button("Retry").and_(visit.page.locator(":enabled")).wait_for()
            until(lambda path=path: hung_up(path))  # type: ignore[misc]
            until(lambda: not slow.engine.scheduler.busy)
