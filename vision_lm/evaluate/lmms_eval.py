"""Our checkpoints in the community's harness lmms-eval (github.com/EvolvingLMMs-Lab/lmms-eval).

    pip install "vision-lm[lmms-eval]"
    lmms-eval --model vision_lm --model_args pretrained=mini --tasks pope --batch_size 16

The harness finds this module by the entry point `lmms_eval.models`. `pretrained` is an embedded name, a folder or a hub
id; `dtype` and `quantize` are those of `vision_lm.load`. `--batch_size` is how many requests are under way at once; it
never changes an answer. Pictures are given as pictures, so the placeholder <image> in a task's text is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms

import vision_lm
from vision_lm.answerer import Task
from vision_lm.engine import Options, Prompt, Ticket
from vision_lm.engine.request import Generation
from vision_lm.errors import RequestError
from vision_lm.pictures import Pictures
from vision_lm.prompts import PLACEHOLDER, Turn
from vision_lm.prompts import Prompt as Asked

GENERATED = 1024  # tokens, where a task does not say
UNDER_WAY = 16  # requests, where the command does not say
# What tasks set that changes nothing here: beams and caches are the engine's business.
IGNORED = frozenset(("do_sample", "image_aspect_ratio", "max_new_tokens", "num_beams", "until", "use_cache"))

T = TypeVar("T")


def manifest() -> Any:
    """What the harness is told of us."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("vision_lm", simple_class_path=f"{__name__}.{VisionLMAdapter.__name__}")


class VisionLMAdapter(lmms):
    """One checkpoint, asked by the harness."""

    def __init__(
        self,
        pretrained: str = "mini",
        device: str = "auto",
        dtype: str = "auto",
        quantize: Any = None,
        batch_size: int | str = UNDER_WAY,
        max_batch_size: Any = None,  # the harness hands it to every model
    ) -> None:
        super().__init__()
        self.vlm = vision_lm.load(pretrained, device, dtype, quantize)
        self.batch_size = UNDER_WAY if batch_size == "auto" else int(batch_size)

    @property
    def device(self) -> Any:
        return self.vlm.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers, in the requests' order. Raises RequestError for settings that cannot be followed."""
        pictures = Pictures(self.vlm.config.vision)

        def submit(request: Any) -> Callable[[], str]:
            context, settings, doc_to_visual, number, task, split = request.args
            turn = _turn(context, doc_to_visual(self.task_dict[task][split][number]))
            pending = self.vlm.submit([turn], self._task(settings), pictures)
            return lambda: pending.answer().text

        return list(self._in_order(map(submit, requests)))

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """How likely each continuation is, and whether greedy decoding would say it word for word.

        A target's log-probability, but a choice's negative: the harness takes the choice with the least, as its own
        models give a loss. As a GenerationResult, since version 0.7.3 turns a bare pair into text. A continuation is
        an answer: the checkpoint's template decides about the blank before it.
        """
        pictures = Pictures(self.vlm.config.vision)

        def submit(request: Any) -> Callable[[], GenerationResult]:
            context, said, *where = request.args  # only these two: how likely it is of itself
            sign = -1 if isinstance(said, str) else 1  # a target is a function of the document
            visuals: Sequence[Any] = ()
            if where:
                doc_to_visual, number, task, split = where
                document = self.task_dict[task][split][number]
                visuals = doc_to_visual(document)
                said = said if isinstance(said, str) else said(document)
            ticket = self._say(_turn(context, visuals), str(said).strip(), pictures)
            return lambda: _likelihood(ticket.result(), sign)

        return list(self._in_order(map(submit, requests)))

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise RequestError("tasks of several rounds are not supported; choose tasks that ask once")

    def _task(self, settings: dict[str, Any]) -> Task:
        options: Options = {}
        wanted = {name: value for name, value in settings.items() if value is not None}
        if wanted.get("num_beams", 1) != 1:
            raise RequestError(
                f"num_beams is {wanted['num_beams']}; only greedy decoding and sampling are there: give 1"
            )
        for name, value in wanted.items():
            if name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"):
                options[name] = value  # type: ignore[literal-required]
            elif name not in IGNORED:
                raise RequestError(
                    f"the task sets {name}={value!r}, which is unknown; leave it out of generation_kwargs"
                )
        if wanted.get("do_sample") is False or not options.get("temperature"):
            for name in ("temperature", "top_p", "top_k", "min_p"):
                options.pop(name, None)  # type: ignore[misc]
        until = wanted.get("until", ())
        options["stop"] = [one for one in ((until,) if isinstance(until, str) else until) if one]
        # Not as the option max_tokens: where the prompt leaves less room, less will do.
        return self.vlm.task(int(wanted.get("max_new_tokens", GENERATED)), options)

    def _say(self, turn: Turn, answer: str, pictures: Pictures) -> Ticket:
        builder = self.vlm.prompts
        if turn.question or turn.images:
            asked = builder.build([turn])
        else:  # nothing is asked: the template alone
            asked = Asked(builder.encode(builder.config.question.format(question="")))
        task = self.vlm.given_task(builder.answer_ids(answer)[:-1], top_logprobs=1)
        self.vlm.engine.check(len(asked.ids), task.sampling)
        images = [pictures.open(image) for image in asked.images]
        return self.vlm.engine.submit(Prompt(asked.ids, images), task.sampling)

    def _in_order(self, submitted: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Results of requests, `batch_size` of them under way at once."""
        waiting: deque[Callable[[], T]] = deque()
        for one in submitted:
            waiting.append(one)
            if len(waiting) >= self.batch_size:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()


def _turn(context: str, visuals: Sequence[Any] | None) -> Turn:
    return Turn(context.replace(PLACEHOLDER, "").strip(), tuple(visuals or ()))


def _likelihood(said: Generation, sign: int) -> GenerationResult:
    greedy = all(top[0][0] == token for token, top in zip(said.tokens, said.tops, strict=True))
    return GenerationResult((sign * sum(said.logprobs), greedy))
