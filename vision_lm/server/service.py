"""The models by name, and the one way in which a request reaches them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from PIL import Image
from starlette.types import Receive

from vision_lm.answerer import Answerer, Task
from vision_lm.async_model import AsyncAnswer
from vision_lm.images import ImageLimits, ImageSource, open_image
from vision_lm.pictures import Pictures, RecentPictures
from vision_lm.prompts import Turn
from vision_lm.server.admission import Admission
from vision_lm.server.conversation import is_remote
from vision_lm.server.errors import ApiError
from vision_lm.server.schemas import Usage
from vision_lm.server.settings import Settings

T = TypeVar("T")
FEW_WORDS = 2_000  # characters, of which tokens are made in a moment
EXPLAINED_AT_ONCE = 2  # each is a hundred answers: more would only wait for one another


class Service:
    """What every request shares."""

    def __init__(self, models: Mapping[str, Answerer], settings: Settings) -> None:
        """`models` by name; the first answers requests that name none."""
        self.models, self.settings = dict(models), settings
        self.admission = Admission(settings.max_queue)
        self.started = int(time.time())
        self._limits = ImageLimits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels)
        self._recent = {vlm: RecentPictures() for vlm in self.models.values()}
        self._decoding = CapacityLimiter(settings.decoders)
        self._fetching = CapacityLimiter(settings.fetchers)
        self.explaining = CapacityLimiter(EXPLAINED_AT_ONCE)

    def model(self, name: str | None) -> tuple[str, Answerer]:
        """Raises ApiError (404), naming those there are."""
        name = next(iter(self.models)) if name is None else name
        if name not in self.models:
            message = f"there is no model {name[:80]!r}; there are: {', '.join(self.models)}"
            raise ApiError(404, message, "model_not_found", param="model")
        return name, self.models[name]

    def check_max_tokens(self, given: int | None) -> None:
        most = self.settings.max_tokens
        if given is not None and given > most:
            message = f"max_tokens is {given:,}; allowed: up to {most:,}"
            raise ApiError(400, message, "invalid_request", param="max_tokens")

    def pictures(self, vlm: Answerer) -> Pictures:
        """Those of one request: each is read once, within the service's limits, if it was not in a request before."""
        return Pictures(vlm.config.vision, self.settings.allow_url_hosts, self._limits, self._recent[vlm])

    async def submit(
        self, vlm: Answerer, asked: Sequence[tuple[list[Turn], Task]], pictures: Pictures
    ) -> list[AsyncAnswer]:
        """Hand conversations to the engine, each with its task. Raises VisionLMError before they are queued.

        Tokens are counted, then pictures read, in a thread: decoding is work, and fetching is waiting. What is said in a few
        words about pictures of before takes less time than to hand it to a thread and back.
        """

        def begin() -> list[AsyncAnswer]:
            return [AsyncAnswer(vlm.submit(turns, task, pictures)) for turns, task in asked]

        if is_brief(asked, pictures):
            return begin()
        limiter = self._limiter([turn for turns, _ in asked for turn in turns])
        return await in_thread(begin, limiter)

    async def opened(self, turns: list[Turn]) -> list[Turn]:
        """The same conversation with its pictures read, under the service's limits. Raises ImageError."""

        def read() -> list[Turn]:
            return [replace(turn, images=tuple(map(one, turn.images))) for turn in turns]

        def one(source: ImageSource) -> Image.Image:
            return open_image(source, allow_url_hosts=self.settings.allow_url_hosts, limits=self._limits)

        return await in_thread(read, self._limiter(turns))

    def _limiter(self, turns: list[Turn]) -> CapacityLimiter:
        return self._fetching if is_remote(turns) else self._decoding


def is_brief(asked: Sequence[tuple[list[Turn], Task]], pictures: Pictures) -> bool:
    """Whether there is next to nothing to do before the engine has it."""
    turns = [turn for said, _ in asked for turn in said]
    return (
        not any(task.sampling.constraint for _, task in asked)
        and sum(len(turn.question) + len(turn.answer or "") for turn in turns) <= FEW_WORDS
        and all(pictures.recall(image) for turn in turns for image in turn.images)
    )


async def in_thread(
    work: Callable[[], T], limiter: CapacityLimiter, give_up: Callable[[], None] = lambda: None
) -> T:
    """Do it in a thread, which is waited for even where nobody wants the result any more: the limiter counts it till then.

    `give_up` is called in that case, and may make the work shorter. Who still waits for a place is let go at once.
    """
    async with limiter:
        working = asyncio.ensure_future(to_thread.run_sync(work, limiter=CapacityLimiter(1)))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            give_up()
            await asyncio.wait((working,))
            working.cancelled() or working.exception()  # looked at, or it would be reported as forgotten
            raise


async def unless_gone(receive: Receive, work: Awaitable[T], timeout: float) -> T:
    """Do the work; give it up when the client hangs up, or after `timeout` seconds. Raises ApiError then.

    `receive`: of a request whose body has been read. By asyncio alone: a task group costs a short answer more than its words.
    """
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((doing, gone), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        if gone.done():
            raise ApiError(499, "the client closed the connection", "client_gone")
        raise timed_out(timeout)
    finally:
        doing.cancel()
        gone.cancel()
        if not doing.done():
            await asyncio.wait((doing,))  # what it holds is let go before the next request is looked at
        del doing  # its failure's traceback holds this frame: the two would keep each other, and the pictures


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def timed_out(timeout: float) -> ApiError:
    message = f"the answer was not complete after {timeout:g} s; ask for fewer tokens, or try again later"
    return ApiError(504, message, "timeout")


def usage_of(answers: Sequence[AsyncAnswer]) -> Usage:
    """Of finished answers to one prompt; those that never finished count as nothing."""
    prompt = answers[0].prompt_tokens
    completion = sum(len(one.answer.tokens) for one in answers if one.answer)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
