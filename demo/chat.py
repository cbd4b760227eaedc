"""What happens in a chat: pictures and words in, and everything that is shown out. Nothing here is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from demo.backend import Backend, Settings
from demo.conversation import CaptionRequest, Conversation, Question
from demo.failures import told
from demo.picture import open_pictures
from demo.stopping import Stops, until_stopped
from vision_lm.errors import RequestError
from vision_lm.explain import Explanation
from vision_lm.prompts import CaptionLength

NO_PICTURE = "There is no picture yet. Add one with the clip, drop it on the box, or choose an example."
NO_QUESTION = "There is nothing to ask. Write a question, or choose a caption."
NO_ANSWER = "There is no answer yet. Ask something first, then see where the model looked."


@dataclass(frozen=True)
class Draft:
    """What stands in the box, still to be sent."""

    text: str = ""
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class View:
    """What is shown."""

    conversation: Conversation
    draft: Draft | None = None  # None: whatever the visitor has written in the meantime stays
    notices: tuple[str, ...] = ()
    busy: bool = False


class Chat:
    """One page's chats. Each method is one thing that a visitor does, and shows what comes of it as it comes."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.stops = Stops()

    def send(
        self, draft: Draft, conversation: Conversation, settings: Settings, session: str
    ) -> Iterator[View]:
        """Ask the question about all pictures so far; pictures without a question are described."""
        if not draft.text.strip() and draft.files:
            yield from self.describe(draft, conversation, "normal", settings, session)
            return
        pictures, notices = open_pictures(draft.files)
        kept = replace(draft, files=tuple(one.path for one in pictures))
        if not draft.text.strip():
            yield View(conversation, kept, (NO_QUESTION,))
        elif not pictures and not conversation.pictures:
            yield View(conversation, kept, notices or (NO_PICTURE,))
        else:
            asked = Question(draft.text.strip(), pictures)
            yield from self._ask([asked], conversation, kept, Draft(), settings, session, notices)

    def describe(
        self,
        draft: Draft,
        conversation: Conversation,
        length: CaptionLength,
        settings: Settings,
        session: str,
    ) -> Iterator[View]:
        """A caption of each new picture, or else of the newest one there is. The box's text stays."""
        pictures, notices = open_pictures(draft.files)
        kept = replace(draft, files=tuple(one.path for one in pictures))
        wanted = [CaptionRequest(picture, length, new=True) for picture in pictures]
        if not wanted and conversation.pictures:
            wanted = [CaptionRequest(conversation.pictures[-1], length, new=False)]
        if wanted:
            rest = Draft(draft.text)
            yield from self._ask(wanted, conversation, kept, rest, settings, session, notices)
        else:
            yield View(conversation, kept, notices or (NO_PICTURE,))

    def retry(self, conversation: Conversation, settings: Settings, session: str) -> Iterator[View]:
        """Ask the last thing again. If that fails the old answer stays."""
        if not conversation.exchanges:
            yield View(conversation, notices=(NO_QUESTION,))
            return
        wanted = [conversation.last.asked]
        for view in self._ask(wanted, conversation.before, None, None, settings, session):
            answered = len(view.conversation.exchanges) == len(conversation.exchanges)
            yield view if answered else replace(view, conversation=conversation)

    def explain(self, conversation: Conversation, picture: int, settings: Settings) -> Explanation:
        """Where in one of the pictures `asked_about`, counted from 0, the last answer comes from.

        Raises VisionLMError.
        """
        if not conversation.exchanges or not conversation.last.reply.text:
            raise RequestError(NO_ANSWER)
        return conversation.explain(picture, self.backend, settings)

    def _ask(
        self,
        wanted: Sequence[Question | CaptionRequest],
        conversation: Conversation,
        draft: Draft | None,
        rest: Draft | None,
        settings: Settings,
        session: str,
        notices: tuple[str, ...] = (),
    ) -> Iterator[View]:
        """One answer after the other. The box holds the `rest` meanwhile; a `draft` that fails goes back into it."""
        stop = self.stops.begin(session)
        for number, asked in enumerate(wanted):
            before, conversation = conversation, conversation.ask(asked)
            yield View(conversation, rest if number == 0 else None, notices, busy=True)
            try:
                for reply in until_stopped(conversation.write(self.backend, settings), stop):
                    conversation = conversation.reply(reply)
                    yield View(conversation, None, notices, busy=True)
            except Exception as error:  # whatever it is: a page that stays busy would be of no use any more
                kept = None if draft is None else replace(draft, files=draft.files[number:])
                yield View(before, kept, (*notices, told(error)))
                return
            if stop.is_set():
                break
        if conversation.last.reply.finish_reason is None:
            conversation = conversation.reply(replace(conversation.last.reply, finish_reason="cancelled"))
        yield View(conversation, None, notices)
