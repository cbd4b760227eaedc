"""A person's visits to the page, in a real browser: talking about pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demo.examples import EXAMPLES
from demo.in_process import InProcess
from tests.conftest import scripted
from tests.demo.conftest import QUESTION, Visiting, plain, serving
from vision_lm.checkpoint import Checkpoint
from vision_lm.model import VisionLM

pytestmark = pytest.mark.slow


def turn(text: str, *files: Path) -> dict[str, Any]:
    return {"role": "user", "content": [*({"type": "image", "image": one} for one in files), text]}


def test_a_picture_a_question_and_a_follow_up(
    visiting: Visiting, address: str, looking: VisionLM, files: list[Path]
) -> None:
    """The page says what the Python API says, with its confidence, and remembers what was said before."""
    first, second = QUESTION, "How many cats are there?"
    with visiting(address) as visit:
        visit.add(files[0])
        visit.ask(first)
        expected = looking.ask(files[0], first)
        assert visit.answered(1) == [plain(expected.text)]
        meter = visit.page.get_by_role("meter", name="Confidence")
        assert meter.get_attribute("aria-valuenow") == str(round(100 * expected.confidence))
        assert visit.page.get_by_role("img", name="Picture 1: apple.png").is_visible()
        assert visit.box.input_value() == ""
        visit.ask(second)
        answer = looking.chat(
            [turn(first, files[0]), {"role": "assistant", "content": expected.text}, turn(second)]
        )
        assert visit.answered(2) == [plain(expected.text), plain(answer.text)]
        visit.button("New chat").click()
        visit.page.get_by_text("Add a picture, then ask about it.").wait_for()


def test_captions_of_three_lengths_of_an_example(visiting: Visiting, address: str, looking: VisionLM) -> None:
    """A click on an example, a click on each length: each is `vlm.caption`, and a question after it is `vlm.ask`."""
    cat = EXAMPLES[0]
    with visiting(address) as visit:
        visit.page.get_by_role("button", name=cat.shows).click()
        visit.page.locator("#box").get_by_role("button", name="Remove file").wait_for()
        assert visit.box.input_value() == cat.question
        expected = []
        for number, length in enumerate(("short", "normal", "long"), start=1):
            visit.button(length.capitalize()).click()
            expected.append(plain(looking.caption(cat.path, length).text))  # type: ignore[arg-type]
            assert visit.answered(number) == expected
        assert visit.box.input_value() == cat.question  # it was not asked yet
        visit.box.press("Enter")
        expected.append(plain(looking.ask(cat.path, cat.question).text))
        assert visit.answered(4) == expected


def test_what_a_caption_names_is_checked(
    visiting: Visiting, trunk_checkpoint: Checkpoint, files: list[Path]
) -> None:
    """Ticked with the keyboard, in either tab: what the model does not find stands in a line below the caption."""
    vlm = VisionLM(scripted(trunk_checkpoint, "A cube, two cats and the dog with an image."), device="cpu")
    answer = vlm.caption(files[0], "short", checked=True)
    below = f"Not confirmed: {', '.join(answer.unconfirmed)}"
    with serving(InProcess({"naming": vlm})) as address, visiting(address) as visit:
        visit.add(files[0])
        visit.button("Short").click()
        visit.answered(1)
        assert visit.page.get_by_text("Not confirmed").count() == 0
        check = visit.page.locator("#check").get_by_role("checkbox", name="Check what the caption names")
        check.focus()
        visit.page.keyboard.press("Space")
        visit.button("Short").click()
        assert visit.answered(2)[1] == answer.text
        assert visit.page.locator("#conversation").get_by_text(below).is_visible()
        assert visit.serious_violations() == []
        visit.page.get_by_role("tab", name="Many pictures").click()
        visit.page.locator("#files input[type=file]").set_input_files(files)
        visit.page.locator("#files").get_by_text("cube").first.wait_for()
        visit.page.locator("#batch-check").get_by_role("checkbox").check()
        visit.button("Start").click()
        visit.page.get_by_text("3 of 3 pictures: done.").wait_for()
        assert visit.page.locator("#answers").get_by_text(below).count() == 3
        assert visit.serious_violations() == []


def test_several_pictures_are_talked_about_together(
    visiting: Visiting, address: str, looking: VisionLM, files: list[Path]
) -> None:
    """Two pictures with one question, and where it looked in either."""
    with visiting(address) as visit:
        visit.add(*files[:2])
        visit.ask(QUESTION)
        assert visit.answered(1) == [plain(looking.chat([turn(QUESTION, *files[:2])]).text)]
        assert visit.page.get_by_role("img", name="Picture 2: boat.png").is_visible()
        visit.page.get_by_label("1: apple.png").check()
        visit.button("Show where it looked").click()
        overlay = visit.page.locator("figure.looked img")
        overlay.wait_for()
        found = looking.explain_chat([turn(QUESTION, *files[:2])], 0)
        assert overlay.get_attribute("alt") == str(found)
        width, height = overlay.evaluate("image => [image.naturalWidth, image.naturalHeight]")
        assert (width, height) == found.image.size


def test_a_stream_that_is_watched_stopped_and_tried_again(
    visiting: Visiting, slow: VisionLM, files: list[Path]
) -> None:
    """The answer grows before one's eyes; Stop ends it at once, and the model's work too; Retry begins it anew."""
    with serving(InProcess({"slow": slow})) as address, visiting(address) as visit:
        visit.page.get_by_role("button", name="Settings").click()
        for name, value in (
            ("Temperature", "2"),
            ("Longest answer", "512"),
        ):  # greedy, it would soon repeat itself
            visit.page.get_by_label(f"number input for {name}").fill(value)
            visit.page.get_by_label(f"number input for {name}").press("Tab")
        visit.add(files[0])
        already = slow.engine.stats.generated_tokens  # other tests ask this model too
        visit.ask(QUESTION)
        lengths = [0]
        for _ in range(3):
            longer = visit.page.wait_for_function(
                "least => { const said = document.querySelector('#conversation .bot-row .message-content');"
                " return said && said.textContent.length > least && said.textContent.length }",
                arg=lengths[-1],
            )
            lengths.append(longer.json_value())
        visit.button("Stop").focus()
        visit.page.keyboard.press("Enter")
        visit.button("Retry").and_(visit.page.locator(":enabled")).wait_for()
        slow.engine.wait()  # it has nothing to do any more
        stopped = visit.texts()
        assert len(stopped) == 1 and slow.engine.stats.generated_tokens - already < 500
        before = slow.engine.stats.generated_tokens
        visit.button("Retry").click()
        visit.button("Stop").and_(visit.page.locator(":enabled")).wait_for()
        visit.page.wait_for_function(
            "document.querySelector('#conversation .bot-row .message-content')?.textContent.length > 0"
        )
        visit.button("Stop").click()
        visit.button("Retry").and_(visit.page.locator(":enabled")).wait_for()
        assert slow.engine.stats.generated_tokens > before


def test_a_file_that_is_no_picture(
    visiting: Visiting, address: str, looking: VisionLM, files: list[Path], no_picture: Path
) -> None:
    """A message names it; the question stays until there is a picture; the other files are answered."""
    with visiting(address) as visit:
        visit.add(no_picture)
        visit.ask(QUESTION)
        notice = visit.page.locator("#notice")
        notice.get_by_text("notes.png: this is text, not a picture that can be read").wait_for()
        assert visit.box.input_value() == QUESTION
        assert notice.locator("[aria-live=assertive] p").is_visible()  # a screen reader says it at once
        visit.add(files[1], no_picture)
        visit.box.press("Enter")
        assert visit.answered(1) == [plain(looking.ask(files[1], QUESTION).text)]
        assert notice.get_by_text("notes.png").is_visible()
        visit.ask("x" * 9_000)
        notice.get_by_text("the question has 9,000 characters, at most 8,000 are allowed").wait_for()
        assert visit.box.input_value() == "x" * 9_000 and len(visit.texts()) == 1


def test_a_visit_without_a_mouse(visiting: Visiting, address: str, files: list[Path]) -> None:
    """Everything is reached with Tab, in the order in which it stands, and what has the focus is seen to have it."""
    with visiting(address) as visit:
        visit.add(files[0])
        visit.box.focus()
        visit.page.keyboard.type(QUESTION)
        visit.page.keyboard.press("Enter")
        visit.answered(1)
        visit.box.focus()
        reached = []
        while len(reached) < 30:
            visit.page.keyboard.press("Tab")
            name, outline = visit.page.evaluate(
                "() => { const one = document.activeElement;"
                " const name = one.ariaLabel ?? (one.closest('label') ?? one).textContent.trim();"
                " return [name, getComputedStyle(one).outlineStyle] }"
            )
            if outline == "none":  # it has left the page, or cannot be seen
                break
            reached.append(name)
        names = ["Short", "Normal", "Long", "Retry", "New chat", "Check what the caption names"]
        names += [one.shows for one in EXAMPLES]
        places = [reached.index(name) for name in (*names, "Show where it looked")]
        assert places == sorted(places)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_nothing_stands_in_the_way_of_anyone(
    visiting: Visiting, address: str, files: list[Path], no_picture: Path, width: int, dark: bool
) -> None:
    """axe-core finds nothing serious, and nothing reaches beyond the screen: empty, answered, with the overlay, and batch."""
    fits = "() => document.documentElement.scrollWidth <= innerWidth"
    with visiting(address, width, 844, dark) as visit:
        visit.box.wait_for()
        assert visit.serious_violations() == []
        visit.add(files[0], no_picture)
        visit.ask(QUESTION)
        visit.answered(1)
        visit.button("Show where it looked").click()
        visit.page.locator("figure.looked img").wait_for()
        visit.page.get_by_role("button", name="Settings").click()
        visit.page.get_by_label("Temperature").first.wait_for()
        assert visit.serious_violations() == []
        assert visit.page.evaluate(fits)
        visit.page.get_by_role("tab", name="Many pictures").click()
        visit.button("Start").wait_for()
        assert visit.serious_violations() == []
        assert visit.page.evaluate(fits)


def test_only_for_those_who_may(visiting: Visiting, looking: VisionLM) -> None:
    """With --auth a visitor sees nothing before the password."""
    with (
        serving(InProcess({"looking": looking}), [("ada", "secret word")]) as address,
        visiting(address) as visit,
    ):
        visit.page.get_by_label("username").fill("ada")
        visit.page.get_by_label("password").fill("secret word")
        assert not visit.box.is_visible()
        visit.page.get_by_role("button", name="Login").click()
        visit.box.wait_for()
        visit.complaints.clear()  # the browser tells of the page that was refused before
