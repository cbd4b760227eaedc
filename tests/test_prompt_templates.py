"""Prompts of other projects: pictures inside the question, text around them, a system text, a first token, stop texts."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from projector.data.samples import QA, Sample
from projector.packing import IGNORED, pack_sample
from tests.conftest import VIT, scripted, train_tokenizer
from vision_lm.checkpoint import Checkpoint
from vision_lm.config import PromptConfig
from vision_lm.errors import CheckpointError
from vision_lm.model import VisionLM
from vision_lm.preprocess import fit
from vision_lm.prompts import PromptBuilder, Turn

PICTURE, END, N = 415, 0, 3
VICUNA = PromptConfig(
    PICTURE, END, question="USER: {images}{question} ASSISTANT:", image="{image}\n", system="A chat. "
)
TAGGED = PromptConfig(
    PICTURE,
    END,
    question="{images}\n\nQuestion: {question}\n\nAnswer:",
    image="<image>{image}</image>",
    bos_token_id=END,
)


def ids(*pieces: str | None) -> list[int]:
    """Each text for itself; None is a picture."""
    tokenizer = train_tokenizer()
    return [
        one
        for piece in pieces
        for one in ([PICTURE] * N if piece is None else tokenizer.encode(piece, add_special_tokens=False).ids)
    ]


def built(config: PromptConfig, *turns: Turn) -> list[int]:
    return PromptBuilder(train_tokenizer(), config, N).build(turns).ids


def test_pictures_stand_inside_the_question() -> None:
    """Only a picture parts the text: what stands before, between and after is encoded in one."""
    assert built(VICUNA, Turn("A cat?", ("x", "y"))) == ids(
        "A chat. USER: ", None, "\n", None, "\nA cat? ASSISTANT:"
    )
    assert built(VICUNA, Turn("A cat?")) == ids("A chat. USER: A cat? ASSISTANT:")
    assert built(TAGGED, Turn("A cat?", ("x",))) == [
        END,
        *ids("<image>", None, "</image>\n\nQuestion: A cat?\n\nAnswer:"),
    ]


def test_a_conversation_is_opened_once() -> None:
    said = [Turn("A cat?", ("x",), "Yes."), Turn("Where?")]
    expected = [
        *ids("A chat. USER: ", None, "\nA cat? ASSISTANT:", " Yes."),
        END,
        *ids("USER: Where? ASSISTANT:"),
    ]
    assert built(VICUNA, *said) == expected


@pytest.mark.parametrize("config", [VICUNA, TAGGED, PromptConfig(PICTURE, END)])
@pytest.mark.parametrize("linked", [True, False])
def test_training_sees_the_prompts_of_inference(config: PromptConfig, linked: bool) -> None:
    """What a packed turn sees, its own segment and the shared one, is what `build` makes of it."""
    prompts = PromptBuilder(train_tokenizer(), config, N)
    turns = (QA("A cat?", "Yes."), QA("How many?", "two"))
    row = pack_sample(Sample((Path("x"),), turns, linked=linked), prompts, 500)
    first = prompts.build([Turn("A cat?", ("x",))]).ids + prompts.answer_ids("Yes.")
    if linked:
        whole = prompts.build([Turn("A cat?", ("x",), "Yes."), Turn("How many?")]).ids
        assert row.ids == whole + prompts.answer_ids("two")
        return
    second = prompts.build([Turn("How many?", ("x",))]).ids + prompts.answer_ids("two")
    shared = min(row.segments)
    for number, expected in ((1, first), (2, second)):
        seen = [place for place, one in enumerate(row.segments) if one in (shared, number)]
        assert [row.ids[place] for place in seen] == expected
        assert [row.positions[place] for place in seen] == list(range(len(expected)))
    learnt = [label for label in row.labels if label != IGNORED]
    assert learnt == prompts.answer_ids("Yes.") + prompts.answer_ids("two")


def test_a_checkpoints_own_stop_text_ends_its_answers(
    vit_checkpoint: Checkpoint, pictures: list[Image.Image]
) -> None:
    """Beside those of a request; the text itself is no part of the answer."""
    checkpoint = scripted(vit_checkpoint, " red<END> cube.")
    prompt = dataclasses.replace(checkpoint.config.prompt, stop=("<END>",))
    config = dataclasses.replace(checkpoint.config, prompt=prompt)
    vlm = VisionLM(dataclasses.replace(checkpoint, config=config), device="cpu")
    assert vlm.ask(pictures[0], "?").text == "red"
    assert vlm.ask(pictures[0], "?", stop=["d<"]).text == "re"
    many = [f"never {number}" for number in range(16)]  # as many as a caller may give
    assert vlm.ask(pictures[0], "?", stop=many).text == "red"
    assert VisionLM(checkpoint, device="cpu").ask(pictures[0], "?").text == "red<END> cube."


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"question": "{question}{images}"}, "{images} before it"),
        ({"question": "{images}"}, "prompt.question"),
        ({"image": "<image>"}, "{image}"),
        ({"stop": ("",)}, "prompt.stop"),
        ({"bos_token_id": 999}, "bos_token_id 999"),
    ],
)
def test_a_template_that_loses_something_is_refused(
    changes: dict[str, Any], named: str, vit_checkpoint: Checkpoint
) -> None:
    prompt = dataclasses.replace(vit_checkpoint.config.prompt, **changes)
    with pytest.raises(CheckpointError, match=re.escape(named)):
        dataclasses.replace(vit_checkpoint.config, prompt=prompt).check("here")


@pytest.mark.parametrize(("part", "key"), [("vision", "skip_patches"), ("projector", "residual_features")])
def test_sizes_below_zero_are_refused(part: str, key: str, vit_checkpoint: Checkpoint) -> None:
    config = vit_checkpoint.config
    changed = dataclasses.replace(getattr(config, part), **{key: -1})
    with pytest.raises(CheckpointError, match=f"{part}.{key} is -1"):
        dataclasses.replace(config, **{part: changed}).check("here")


def test_a_strip_is_padded_at_a_size_that_memory_holds() -> None:
    """1 x 60,000 pixels: padded at full size they would be 10 gigabytes."""
    strip = Image.new("RGB", (60_000, 1), "red")
    pixels = torch.from_numpy(
        fit(strip, dataclasses.replace(VIT, resize="pad_first", fill=(0.0, 0.0, 0.0))).copy()
    )
    assert pixels.shape == (32, 32, 3) and pixels[0].max() == 0
