"""What a chat does with what a visitor does, without a page: a backend that says what the test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from demo.backend import Reply, Settings, Writing
from demo.batch import Job, Row, run, to_csv, to_jsonl
from demo.batch_table import table
from demo.chat import NO_ANSWER, NO_PICTURE, NO_QUESTION, Chat, Draft, View
from demo.conversation import Conversation
from demo.meter import meter
from demo.stopping import Stops, until_stopped
from vision_lm.errors import RequestError
from vision_lm.explain import Explanation
from vision_lm.prompts import CaptionLength, Turn

SETTINGS = Settings("told")


@dataclass
class Told:
    """Answers in two pieces, and remembers what it was asked. `refuses` the questions that hold this text."""

    asked: list[list[Turn]] = field(default_factory=list)
    refuses: str = "\0"
    waits: threading.Event | None = None  # before the second piece
    models: Sequence[str] = ("told",)
    place: str = "nowhere"

    def caption(self, picture: Path, length: CaptionLength, settings: Settings) -> Writing:
        if self.refuses in picture.name:
            raise RequestError(f"{picture.name} is refused")
        if settings.checked:
            yield Reply(f"{length} of something", 0.5, "stop", unconfirmed=("<dog>", picture.name))
        else:
            yield from self._said(f"{length} of {picture.name}")

    def answer(self, turns: Sequence[Turn], settings: Settings) -> Writing:
        if self.refuses in turns[-1].question:
            raise RequestError("that is refused")
        self.asked.append(list(turns))
        yield from self._said(f"answer {len(turns)}")

    def explain(self, turns: Sequence[Turn], picture: int, answer: str, settings: Settings) -> Explanation:
        raise RequestError(f"asked of picture {picture} of {[turn.question for turn in turns]}, {answer}")

    def explain_caption(
        self, picture: Path, length: CaptionLength, caption: str, settings: Settings
    ) -> Explanation:
        raise RequestError(f"asked of {picture.name}, {caption}")

    def _said(self, text: str) -> Writing:
        yield Reply(text[:3])
        if self.waits:
            self.waits.wait(30)
        yield Reply(text, 0.5, "stop")


def last(views: Iterator[View]) -> View:
    *_, view = views
    assert not view.busy
    return view


def test_captions_stand_outside_the_conversation_and_their_pictures_inside(files: list[Path]) -> None:
    """What was described is asked about next, as if it had been given with the question."""
    told = Told()
    chat = Chat(told)
    view = last(chat.describe(Draft("later", (files[0],)), Conversation(), "long", SETTINGS, "me"))
    assert view.conversation.last.reply.text == "long of apple.png"
    view = last(chat.send(Draft("One?", (files[1],)), view.conversation, SETTINGS, "me"))
    view = last(chat.describe(Draft(), view.conversation, "short", SETTINGS, "me"))
    assert view.conversation.last.reply.text == "short of boat.png"  # the newest
    view = last(chat.send(Draft("Two?"), view.conversation, SETTINGS, "me"))
    assert told.asked[-1] == [Turn("One?", tuple(files[:2]), "answer 1"), Turn("Two?")]
    assert [one["role"] for one in view.conversation.messages()] == ["user", "assistant"] * 4
    with pytest.raises(RequestError, match=r"picture 1 of \['One\?', 'Two\?'\], answer 2"):
        chat.explain(view.conversation, 1, SETTINGS)


def test_pictures_without_a_question_are_described_one_by_one(files: list[Path]) -> None:
    """If one of them is refused, it and those after it go back into the box."""
    chat = Chat(Told())
    view = last(chat.send(Draft("", tuple(files)), Conversation(), SETTINGS, "me"))
    texts = [one.reply.text for one in view.conversation.exchanges]
    assert texts == ["normal of apple.png", "normal of boat.png", "normal of cube.png"]
    with pytest.raises(RequestError, match="asked of cube.png, normal of cube.png"):
        chat.explain(view.conversation, 0, SETTINGS)
    view = last(Chat(Told(refuses="boat")).send(Draft("", tuple(files)), Conversation(), SETTINGS, "me"))
    assert len(view.conversation.exchanges) == 1 and view.notices == ("boat.png is refused",)
    assert view.draft == Draft("", tuple(files[1:]))


def test_what_a_check_took_back_is_said_under_the_caption(files: list[Path]) -> None:
    """In the chat, in the table and in the files; a name is text there. Nothing is said where nothing was taken back."""
    settings = replace(SETTINGS, checked=True)
    chat = Chat(Told())
    for conversation in (
        last(chat.describe(Draft("", (files[0],)), Conversation(), "short", settings, "me")).conversation,
        last(chat.send(Draft("", (files[0],)), Conversation(), settings, "me")).conversation,
    ):
        text, below = conversation.messages()[-1]["content"]
        assert text.endswith(" of something") and "Not confirmed: &lt;dog&gt;, apple.png<" in below.value
    again = last(chat.retry(conversation, SETTINGS, "me")).conversation.messages()[-1]["content"]
    assert again[0] == "normal of apple.png" and "Not confirmed" not in again[1].value

    *_, now = run(Told(), files[:1], Job(settings, length="short"), threading.Event())
    assert "short of something<p" in table(now.rows) and "Not confirmed: &lt;dog&gt;, apple" in table(
        now.rows
    )
    assert to_csv(now.rows).splitlines()[1].endswith(',False,"[""<dog>"", ""apple.png""]",')
    assert '"unconfirmed": ["<dog>", "apple.png"], "error": null}' in to_jsonl(now.rows)


def test_nothing_is_lost_when_something_is_refused(files: list[Path], no_picture: Path) -> None:
    chat = Chat(Told(refuses="bad"))
    assert last(chat.send(Draft("Why?"), Conversation(), SETTINGS, "me")) == View(
        Conversation(), Draft("Why?"), (NO_PICTURE,)
    )
    assert last(chat.send(Draft(" "), Conversation(), SETTINGS, "me")).notices == (NO_QUESTION,)
    assert last(chat.describe(Draft("x"), Conversation(), "short", SETTINGS, "me")).draft == Draft("x")
    assert last(chat.retry(Conversation(), SETTINGS, "me")).notices == (NO_QUESTION,)
    with pytest.raises(RequestError, match=NO_ANSWER):
        chat.explain(Conversation(), 0, SETTINGS)
    view = last(chat.send(Draft("bad", (files[0], no_picture)), Conversation(), SETTINGS, "me"))
    assert view.draft == Draft("bad", (files[0],))
    assert view.notices[0].startswith("notes.png: this is text") and view.notices[1] == "that is refused"
    good = last(chat.send(Draft("good", (files[0],)), Conversation(), SETTINGS, "me"))
    chat.backend.refuses = "good"  # type: ignore[attr-defined]
    again = last(chat.retry(good.conversation, SETTINGS, "me"))
    assert again.conversation == good.conversation and again.notices == ("that is refused",)


def test_a_fault_of_ours_leaves_a_page_that_works(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The visitor reads one line, the log has the reason, and the question is still there."""

    def broken(*_: object) -> Writing:
        raise ZeroDivisionError("secret")
        yield

    told = Told()
    monkeypatch.setattr(told, "answer", broken)
    view = last(Chat(told).send(Draft("Now?", (files[0],)), Conversation(), SETTINGS, "me"))
    assert view.draft == Draft("Now?", (files[0],))
    assert view.notices[0].startswith("the model failed (ZeroDivisionError); try again")
    assert "secret" in caplog.text and "secret" not in view.notices[0]
    *_, now = run(told, files, Job(SETTINGS, question="What?"), threading.Event())
    assert all("ZeroDivisionError" in row.error for row in now.rows)


def test_stopping_does_not_wait_for_the_model(files: list[Path]) -> None:
    """The answer so far stays, and can be asked for again."""
    told = Told(waits=threading.Event())
    chat = Chat(told)
    views = chat.send(Draft("Now?", (files[0],)), Conversation(), SETTINGS, "me")
    while not next(views).conversation.last.reply.text:
        pass
    threading.Timer(0.2, chat.stops.stop, ["me"]).start()
    began = time.monotonic()
    view = last(views)
    assert time.monotonic() - began < 10
    assert view.conversation.last.reply == Reply("ans", finish_reason="cancelled")
    told.waits.set()  # type: ignore[union-attr]
    view = last(chat.retry(view.conversation, SETTINGS, "me"))
    assert view.conversation.last.reply == Reply("answer 1", 0.5, "stop")


def test_one_visitors_stop_is_not_anothers() -> None:
    stops = Stops()
    mine, yours = stops.begin("me"), stops.begin("you")
    stops.stop("me")
    stops.stop("nobody")
    assert mine.is_set() and not yours.is_set()
    newer = stops.begin("you")
    assert yours.is_set() and not newer.is_set()


def test_work_is_closed_when_its_reader_leaves_and_its_errors_arrive() -> None:
    closed = threading.Event()

    def work() -> Iterator[int]:
        try:
            for number in range(10_000):
                yield number
                time.sleep(0.001)
        finally:
            closed.set()

    items = until_stopped(work(), threading.Event())  # type: ignore[arg-type]
    first = next(items)
    assert next(items) > first
    items.close()  # type: ignore[attr-defined]
    assert closed.wait(30)

    def failing() -> Iterator[int]:
        yield 1
        raise RequestError("no")

    with pytest.raises(RequestError, match="no"):
        list(until_stopped(failing(), threading.Event()))  # type: ignore[arg-type]


def test_a_batch_answers_every_file(files: list[Path], no_picture: Path) -> None:
    """In the files' order, whichever was done first; CSV and JSON Lines say the same."""
    paths = [no_picture, *files]
    *_, now = run(Told(refuses="boat"), paths, Job(SETTINGS, length="short"), threading.Event())
    assert [row.image for row in now.rows] == [path.name for path in paths] and now.total == 4
    assert [bool(row.error) for row in now.rows] == [True, False, True, False]
    assert to_csv(now.rows).splitlines()[2:] == [
        "apple.png,short of apple.png,0.5,stop,False,,",
        "boat.png,,,,,,boat.png is refused",
        "cube.png,short of cube.png,0.5,stop,False,,",
    ]
    assert to_jsonl(now.rows).splitlines()[2] == (
        '{"image": "boat.png", "text": "", "confidence": null, "finish_reason": null, "unanswerable": null, '
        '"unconfirmed": null, "error": "boat.png is refused"}'
    )
    with pytest.raises(RequestError, match="the question is empty"):
        next(run(Told(), paths, Job(SETTINGS, question=" "), threading.Event()))


def test_a_batch_that_is_left_stops(files: list[Path]) -> None:
    told, stop = Told(waits=threading.Event()), threading.Event()
    progress = run(told, files * 20, Job(SETTINGS, question="What?"), stop)
    assert next(progress).rows == ()
    threading.Thread(target=lambda: (stop.wait(30), told.waits.set())).start()  # type: ignore[union-attr]
    progress.close()  # type: ignore[attr-defined]
    assert stop.is_set() and len(told.asked) < 60


def test_names_and_answers_are_shown_as_text() -> None:
    """A file's name or an answer may hold anything, and is never part of the page's own code."""
    evil = "<img src=x onerror=alert(1)>\"'${alert(1)}"
    shown = table([Row(evil, Reply(evil, 0.5, "stop")), Row("b", error=evil)])
    assert "<img src=x" not in shown and shown.count("&lt;img src=x onerror=alert(1)&gt;&quot;&#x27;") == 5


def test_the_meter_is_read_aloud() -> None:
    shown = meter(0.876)
    assert 'role="meter"' in shown and 'aria-valuenow="88"' in shown and "88% sure<" in shown
    assert '88 percent, too little to rely on"' in meter(0.876, unsure=True)
