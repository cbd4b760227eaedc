"""Everything that can be asked of a model, whichever process its engine runs in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar, Unpack, overload

from PIL import Image
from tokenizers import Tokenizer

from vision_lm.answer import Answer, AnswerStream, AnswerWriter
from vision_lm.checking import checked as confirmed
from vision_lm.config import Config
from vision_lm.engine import AnyEngine, Grammars, Options, Prompt, Sampling, Ticket
from vision_lm.errors import RequestError, VisionLMError
from vision_lm.explain import GRID, Explanation, explain
from vision_lm.images import ImageSource, open_image
from vision_lm.pictures import Pictures
from vision_lm.prompts import CaptionLength, PromptBuilder, Turn, turns_from_messages
from vision_lm.support import with_support

ANSWER_TOKENS = 64
CAPTION_TOKENS: dict[CaptionLength, int] = {"short": 48, "normal": 96, "long": 192}
WINDOW = 64  # requests of a list that are under way at once, with their pictures in memory

T = TypeVar("T")
Messages: TypeAlias = list[dict[str, Any]]
Reply: TypeAlias = Answer | VisionLMError  # in a list, a bad request's error stands in its place


@dataclass(frozen=True)
class Task:
    """How the answers of one call are to be written."""

    sampling: Sampling
    caption: bool
    shorten: bool  # max_tokens is our own default: where the prompt leaves less room, less will do


@dataclass(frozen=True)
class Pending:
    """A request that the engine is at work on."""

    ticket: Ticket
    caption: bool
    writer: AnswerWriter
    prompt_tokens: int  # those of pictures included

    def answer(self) -> Answer:
        """Wait for it."""
        return self.writer.whole(self.ticket.result(), caption=self.caption)


class Answerer:
    """A vision-language model that captions, answers and chats: one request, or a list of them batched.

    A list gives a list, in which a bad request's error stands in its place; a bad request alone raises it.
    Every method takes the options of `engine.sampling.Options`: `max_tokens`, `temperature`, `top_p`, `top_k`,
    `min_p`, `repetition_penalty`, `seed`, `stop`, `top_logprobs`, and one of `json_schema`, `regex` and `choices`
    for the answer's form. Without them it is greedy. Any thread may ask: requests are batched as they come.
    """

    def __init__(
        self,
        config: Config,
        prompts: PromptBuilder,
        engine: AnyEngine,
        *,
        allow_url_hosts: Collection[str] = (),
    ) -> None:
        """`engine`: what computes, in this process or another one.

        `allow_url_hosts`: the hosts from which pictures given as http(s) URLs are fetched; see `vision_lm.fetch`.
        """
        self.config, self.prompts, self.engine = config, prompts, engine
        self.allow_url_hosts = allow_url_hosts
        self.writer = AnswerWriter(prompts.decode, config.calibration, config.prompt.points)

    @overload
    def caption(
        self,
        image: list[Any],
        length: CaptionLength = ...,
        *,
        support: bool = ...,
        checked: bool = ...,
        **options: Unpack[Options],
    ) -> list[Reply]: ...
    @overload
    def caption(
        self,
        image: ImageSource,
        length: CaptionLength = ...,
        *,
        support: bool = ...,
        checked: bool = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    def caption(
        self,
        image: Any,
        length: CaptionLength = "normal",
        *,
        support: bool = False,
        checked: bool = False,
        **options: Unpack[Options],
    ) -> Any:
        """Describe a picture, or each of a list, in whole sentences. `length`: short, normal or long.

        `checked`: take back what the model does not find when it is asked for it; see `vision_lm.checking`.
        `support`: also say how much the picture speaks for each thing that is named, in `answer.support`; see
        `vision_lm.support`. Each takes about as long again.
        """
        if support and checked:
            raise RequestError(
                "support and checked are both asked for; give one: what is checked is taken back"
            )
        question, task = self.caption_task(length, options)
        images = image if isinstance(image, list) else [image]
        turns = [[Turn(question, (one,))] for one in images]
        pictures = self._pictures()  # one for both looks: a file or a URL is read once
        if isinstance(image, list):
            replies = self.replies(turns, task, pictures)
        else:
            replies = [self.submit(turns[0], task, pictures).answer()]
        if support:
            replies = self._supported(turns, replies, pictures)
        if checked:
            replies = self._checked(images, replies, pictures, forced=task.sampling.constraint is not None)
        return replies if isinstance(image, list) else replies[0]

    @overload
    def ask(self, image: list[Any], question: str | list[str], **options: Unpack[Options]) -> list[Reply]: ...
    @overload
    def ask(self, image: Any, question: list[str], **options: Unpack[Options]) -> list[Reply]: ...
    @overload
    def ask(self, image: ImageSource | None, question: str, **options: Unpack[Options]) -> Answer: ...
    def ask(self, image: Any, question: Any, **options: Unpack[Options]) -> Any:
        """Answer a question about a picture, or about none (None).

        Lists are paired, picture by question; a single picture or question serves a whole list of the other.
        """
        task = self.task(ANSWER_TOKENS, options)
        count = next((len(one) for one in (image, question) if isinstance(one, list)), None)
        if count is None:
            return self._reply([_turn(image, question)], task)
        images = image if isinstance(image, list) else [image] * count
        questions = question if isinstance(question, list) else [question] * count
        if len(images) != len(questions):
            raise RequestError(
                f"{len(images)} images, {len(questions)} questions; give as many, or one for all"
            )
        conversations = [[_turn(*pair)] for pair in zip(images, questions, strict=True)]
        return self.replies(conversations, task, self._pictures())

    @overload
    def chat(self, messages: Messages, **options: Unpack[Options]) -> Answer: ...
    @overload
    def chat(self, messages: list[Messages], **options: Unpack[Options]) -> list[Reply]: ...
    def chat(self, messages: Any, **options: Unpack[Options]) -> Any:
        """Answer a conversation's last message, or that of each of a list; see `turns_from_messages`."""
        task = self.task(ANSWER_TOKENS, options)
        if messages and all(isinstance(one, list) for one in messages):
            conversations = [_attempt(turns_from_messages, one) for one in messages]
            return self.replies(conversations, task, self._pictures())
        return self._reply(turns_from_messages(messages), task)

    def stream(self, image: ImageSource | None, question: str, **options: Unpack[Options]) -> AnswerStream:
        """`ask` one question: the answer's text in pieces, while it is written."""
        return self._stream([_turn(image, question)], self.task(ANSWER_TOKENS, options))

    def stream_caption(
        self, image: ImageSource, length: CaptionLength = "normal", **options: Unpack[Options]
    ) -> AnswerStream:
        """`caption` one picture, sentence by sentence."""
        question, task = self.caption_task(length, options)
        return self._stream([Turn(question, (image,))], task)

    def stream_chat(self, messages: Messages, **options: Unpack[Options]) -> AnswerStream:
        """`chat` in one conversation: the answer's text in pieces, while it is written."""
        return self._stream(turns_from_messages(messages), self.task(ANSWER_TOKENS, options))

    def explain(
        self, image: ImageSource, question: str, *, answer: str | None = None, grid: int = GRID
    ) -> Explanation:
        """Where in a picture the answer to a question comes from: see `vision_lm.explain`.

        `answer`: a text to explain instead of the model's own; `grid`: cells a side. Costs 2 (grid + 1)^2 + 2 answers.
        Raises RequestError and ImageError.
        """
        return explain(self, [_turn(image, question)], 0, answer, grid, self.task(ANSWER_TOKENS, {}))

    def explain_chat(
        self, messages: Messages, picture: int = 0, *, answer: str | None = None, grid: int = GRID
    ) -> Explanation:
        """The same for the answer to a conversation's last message, in one of its pictures, counted from 0."""
        turns = turns_from_messages(messages)
        return explain(self, turns, picture, answer, grid, self.task(ANSWER_TOKENS, {}))

    def open_image(self, source: ImageSource) -> Image.Image:
        """A picture as upright RGB, from a URL only if its host is permitted. Raises ImageError."""
        return open_image(source, allow_url_hosts=self.allow_url_hosts)

    def _pictures(self) -> Pictures:
        return Pictures(self.config.vision, self.allow_url_hosts)

    def caption_task(self, length: CaptionLength, options: Options) -> tuple[str, Task]:
        """The question that asks for a caption, and how it is to be written."""
        question = self.prompts.caption_question(length)
        return question, self.task(CAPTION_TOKENS[length], options, caption=True)

    def task(self, max_tokens: int, options: Options, *, caption: bool = False) -> Task:
        """How answers are to be written by these options. `max_tokens`: unless they say otherwise."""
        if unknown := options.keys() - Options.__annotations__.keys():
            allowed = ", ".join(Options.__annotations__)
            raise RequestError(f"unknown option {min(unknown)!r}; allowed: {allowed}")
        settings: Options = {"max_tokens": max_tokens, **options}
        prompt = self.config.prompt
        sampling = Sampling(
            **settings, stop_ids=frozenset([prompt.eos_token_id]), own_stop=tuple(prompt.stop)
        )
        return Task(sampling, caption, shorten="max_tokens" not in options)

    def given_task(self, ids: Sequence[int], *, top_logprobs: int = 0) -> Task:
        """Say these tokens and nothing else: for how likely the model finds them (teacher forcing)."""
        sampling = Sampling(len(ids), top_logprobs=top_logprobs, given=tuple(ids))
        return Task(sampling, caption=False, shorten=False)

    def _reply(self, turns: Sequence[Turn], task: Task) -> Answer:
        return self.submit(turns, task, self._pictures()).answer()

    def replies(
        self, conversations: Sequence[Sequence[Turn] | VisionLMError], task: Task, pictures: Pictures
    ) -> list[Reply]:
        """Of each conversation the answer, or its error."""
        replies: list[Reply] = []
        waiting: deque[Pending | VisionLMError] = deque()
        for one in conversations:
            waiting.append(
                one if isinstance(one, VisionLMError) else _attempt(self.submit, one, task, pictures)
            )
            if len(waiting) > WINDOW:  # the engine computes while the next picture is opened
                replies.append(_reply_of(waiting.popleft()))
        replies += map(_reply_of, waiting)
        return replies

    def _supported(
        self, turns: Sequence[Sequence[Turn]], replies: Sequence[Reply], pictures: Pictures
    ) -> list[Reply]:
        fine = [(asked, one) for asked, one in zip(turns, replies, strict=True) if isinstance(one, Answer)]
        found = iter(with_support(self, [pair[0] for pair in fine], [pair[1] for pair in fine], pictures))
        return [next(found) if isinstance(one, Answer) else one for one in replies]

    def _checked(
        self, images: Sequence[ImageSource], replies: Sequence[Reply], pictures: Pictures, *, forced: bool
    ) -> list[Reply]:
        fine = [(image, one) for image, one in zip(images, replies, strict=True) if isinstance(one, Answer)]
        described, captions = [pair[0] for pair in fine], [pair[1] for pair in fine]
        found = iter(confirmed(self, described, captions, pictures, forced=forced))
        return [next(found) if isinstance(one, Answer) else one for one in replies]

    def _stream(self, turns: Sequence[Turn], task: Task) -> AnswerStream:
        pending = self.submit(turns, task, self._pictures())  # now: a bad one raises before the first piece
        return AnswerStream(self.writer.pieces(iter(pending.ticket), caption=task.caption))

    def submit(self, turns: Sequence[Turn], task: Task, pictures: Pictures) -> Pending:
        """Check a conversation, cheapest first (the picture files are read last), and hand it to the engine."""
        prompt = self.prompts.build(turns)
        sampling = task.sampling
        if task.shorten:
            room = self.config.text.max_position_embeddings - len(prompt.ids)
            sampling = replace(sampling, max_tokens=max(1, min(sampling.max_tokens, room)))
        self.engine.check(len(prompt.ids), sampling)
        images = [pictures.open(image) for image in prompt.images]
        ticket = self.engine.submit(Prompt(prompt.ids, images), sampling)
        return Pending(ticket, task.caption, self.writer, len(prompt.ids))


def grammars(config: Config, tokenizer: Tokenizer) -> Grammars:
    """The forms that a checkpoint's answers can have."""
    lead = config.prompt.answer.partition("{answer}")[0]
    return Grammars(tokenizer, config.text.vocab_size, [config.prompt.eos_token_id], lead=lead)


def _turn(image: ImageSource | None, question: str) -> Turn:
    return Turn(question, () if image is None else (image,))


def _reply_of(one: Pending | VisionLMError) -> Reply:
    return one if isinstance(one, VisionLMError) else _attempt(one.answer)


def _attempt(function: Callable[..., T], *arguments: Any) -> T | VisionLMError:
    """What the function returns, or the error as a value, free of tracebacks that would keep the call's memory."""
    try:
        return function(*arguments)
    except VisionLMError as error:
        if error.__cause__:
            error.__cause__.with_traceback(None)
        return error.with_traceback(None)
