"""Does an export answer as the checkpoint does? The same 32 prompts for both, and a report of what differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.pages import pages_for
from vision_lm.engine.torch_decoder import Chunk
from vision_lm.model import VisionLM
from vision_lm.prompts import Turn

TOKENS = 16  # of each answer
ROWS = 2  # of pixels, at full contrast: what two ways of resizing and padding may differ by
QUESTIONS = (
    "What is this?",
    "What colour is the shape?",
    "How many shapes are there?",
    "Describe the image.",
)
_SIZE = (320, 240)
_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")


@dataclass(frozen=True)
class Sample:
    """One picture, or none, and what is asked about it."""

    image: Image.Image | None
    question: str


@dataclass(frozen=True)
class Reply:
    """What one side says to a sample."""

    prompt: list[int]  # ids, a picture's tokens among them
    logits: Tensor | None  # (V,), float32: after the prompt, of the very same pixels on both sides
    tokens: list[int]  # greedy, without the one that ends the answer; the side opens the picture itself
    stopped: bool  # whether that one came
    likely: dict[int, float] | None = (
        None  # log-probabilities of the first token's candidates, without logits
    )


class Runtime(Protocol):
    """The engine that an export is for, with the export loaded."""

    name: str

    def reply(self, sample: Sample) -> Reply:
        """Answer in TOKENS tokens at most, greedily."""

    def pixels(self, image: Image.Image) -> Tensor | None:
        """What its own preprocessing makes of a picture of any size: (3, S, S); None where that cannot be had."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How an export compares with its checkpoint; `export_report.json`. What is None was not or cannot be compared."""

    target: str
    verified_with: str  # the runtime and its version; or what was compared instead of answers
    notes: tuple[str, ...]  # what the target does not carry as it is
    prompts: int = 0
    equal_prompts: float | None = None  # share whose token ids are the same
    largest_logit_difference: float | None = None  # of the first token, the same pixels given to both
    largest_logit: float | None = None  # what to hold it against
    largest_log_probability_difference: float | None = None  # of a runtime without logits
    equal_answers: float | None = None  # share; each side opens the pictures, of the tower's own size
    largest_pixel_difference: float | None = None  # of 255, mean over a picture that must be resized
    agreement: float = 1.0  # the share of equal answers that was asked for
    passed: bool

    def save(self, folder: Path) -> None:
        (folder / "export_report.json").write_text(
            json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8"
        )

    def __str__(self) -> str:
        lines = [f"verified with {self.verified_with}"]
        if self.largest_logit_difference is not None:
            lines.append(
                f"largest logit difference: {self.largest_logit_difference:.3g} (largest logit {self.largest_logit:.3g})"
            )
        if self.largest_log_probability_difference is not None:
            lines.append(f"largest log-probability difference: {self.largest_log_probability_difference:.3g}")
        if self.largest_pixel_difference is not None:
            lines.append(
                f"pixels after resizing: {self.largest_pixel_difference:.2g} of 255 apart at most, on a picture's average"
            )
        if self.equal_answers is not None:
            lines.append(
                f"equal answers: {self.equal_answers:.1%} of {self.prompts} prompts; asked for: {self.agreement:.1%}"
            )
        return "\n".join([*self.notes, *lines])


def samples(count: int = 32, size: int | None = None) -> Iterator[Sample]:
    """Drawn pictures of different sizes, or all `size` pixels a side, and each question about them in turn."""
    for number in range(count):
        width, height = _SIZE[0] + 16 * (number % 5), _SIZE[1] + 24 * (number % 3)
        image = Image.new("RGB", (width, height), _COLOURS[(number * 3 + 1) % len(_COLOURS)])
        draw = ImageDraw.Draw(image)
        for place in range(1 + number % 4):
            left, top = 20 + 70 * place, 20 + 12 * (number % 7)
            box = (left, top, left + 60, top + 60 + 8 * (number % 5))
            shape = draw.ellipse if (number + place) % 2 else draw.rectangle
            shape(box, fill=_COLOURS[(number + place) % len(_COLOURS)])
        yield Sample(image.resize((size, size)) if size else image, QUESTIONS[number % len(QUESTIONS)])


def spoken(count: int = 32) -> Iterator[Sample]:
    """Questions without a picture."""
    for number in range(count):
        colour = _COLOURS[number // len(QUESTIONS) % len(_COLOURS)]
        yield Sample(None, f"Is it {colour}? {QUESTIONS[number % len(QUESTIONS)]}")


def first_logits(vlm: VisionLM, sample: Sample) -> tuple[list[int], Tensor]:
    """Our prompt ids and the logits (V,) after them, in one prefill."""
    images = () if sample.image is None else (sample.image,)
    prompt = vlm.prompts.build([Turn(sample.question, images)])
    decoder, count = vlm.engine.decoder, len(prompt.ids)
    embeddings = decoder.embed(prompt.ids).clone()  # (T, Dt)
    places = torch.tensor(prompt.ids, device=embeddings.device) == vlm.config.prompt.image_token_id
    for features in vlm.encode_images(images):
        embeddings[places] = features.to(embeddings)
    cache = KVCache(vlm.config.text, pages_for(count), decoder.device, decoder.dtype)
    chunk = Chunk(0, count, cache.slots(list(range(pages_for(count))), count), True)
    return prompt.ids, decoder.prefill(embeddings, [chunk], cache)[0].cpu()


def compare(
    vlm: VisionLM,
    runtime: Runtime,
    target: str,
    notes: Sequence[str],
    agreement: float,
    count: int = 32,
    pictures: bool = True,
) -> Report:
    """Ask both sides everything. `agreement`: the share of equal answers with which the export passes.

    `pictures`: whether the questions are about any; the language model alone can be asked without.

    Answers are about pictures of the tower's own size. Two libraries resize others a little differently, which here
    and there turns a near-tie; how much they differ is measured apart.
    """
    asked = list(samples(count, vlm.config.vision.image_size) if pictures else spoken(count))
    answers = vlm.ask([one.image for one in asked], [one.question for one in asked], max_tokens=TOKENS)
    prompts = same = 0
    differences, largest, likely = [], 0.0, []
    for sample, answer in zip(asked, answers, strict=True):
        if isinstance(answer, Exception):
            raise answer
        ids, logits = first_logits(vlm, sample)
        reply = runtime.reply(sample)
        prompts += reply.prompt == ids
        largest = max(largest, float(logits.abs().max()))
        if reply.logits is not None:
            differences.append(float((reply.logits - logits).abs().max()))
        if reply.likely is not None:
            ours = logits.log_softmax(-1)
            likely.append(max(abs(float(ours[number]) - theirs) for number, theirs in reply.likely.items()))
        own = list(answer.tokens)  # cut short where an answer goes round in circles
        ended = answer.finish_reason == "stop"
        same += reply.tokens[: len(own)] == own and (not ended or (reply.stopped and reply.tokens == own))
    share, distance = same / len(asked), _pixels_apart(vlm, runtime) if pictures else None
    return Report(
        target=target,
        verified_with=runtime.name,
        notes=tuple(notes),
        prompts=len(asked),
        equal_prompts=prompts / len(asked),
        largest_logit_difference=max(differences, default=None),
        largest_logit=largest if differences else None,
        largest_log_probability_difference=max(likely, default=None),
        equal_answers=share,
        largest_pixel_difference=distance,
        agreement=agreement,
        passed=share >= agreement
        and (distance is None or distance <= allowed_apart(vlm.config.vision.image_size)),
    )


def _pixels_apart(vlm: VisionLM, runtime: Runtime) -> float | None:
    """The largest mean difference of the pixels of a picture that has to be resized, in levels of 255."""
    levels = 255 * torch.tensor(vlm.config.vision.std)[:, None, None]
    largest = None
    for image in (sample.image for sample in samples(5)):
        theirs = None if image is None else runtime.pixels(image)
        if theirs is None:
            return None
        distance = apart(theirs * levels, vlm.encoder.preprocess(image) * levels)
        largest = max(largest or 0.0, distance)
    return largest


def allowed_apart(size: int) -> float:
    """The mean difference, of 255, that pictures of this size may have."""
    return 255 * ROWS / size


def apart(theirs: Tensor, ours: Tensor) -> float:
    """Mean difference of pictures (3, S, S) where they match best: one may lie a pixel aside.

    Where a cut leaves an odd number of pixels out, open_clip rounds and transformers does not.
    """
    inner = ours[:, 1:-1, 1:-1]
    shifts = (theirs.roll((down, right), (1, 2)) for down in (-1, 0, 1) for right in (-1, 0, 1))
    return min(float((shifted[:, 1:-1, 1:-1] - inner).abs().mean()) for shifted in shifts)
