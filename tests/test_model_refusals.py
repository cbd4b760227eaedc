"""What VisionLM refuses in one line: a request among good ones, in its place; a call or a model, as a whole."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Pictures, message
from vision_lm.answer import Answer
from vision_lm.checkpoint import Checkpoint
from vision_lm.errors import ImageError, RequestError, VisionLMError
from vision_lm.images import ImageWarning
from vision_lm.model import VisionLM


def test_one_bad_picture_costs_only_its_own_answer(vlm: VisionLM, pictures: Pictures, tmp_path: Path) -> None:
    """In a list the error stands in its place; alone it is raised."""
    bad = tmp_path / "text.png"
    bad.write_text("no picture")
    images: list[Any] = [pictures[0], bad, pictures[1], tmp_path / "missing.png"]
    captions = vlm.caption(images)
    assert [isinstance(caption, ImageError) for caption in captions] == [False, True, False, True]
    assert "text.png" in str(captions[1])
    assert [str(captions[0]), str(captions[2])] == [str(vlm.caption(image)) for image in pictures[:2]]
    with pytest.raises(ImageError, match=r"missing\.png"):
        vlm.caption(images[3])
    with pytest.raises(ImageError, match=r"missing\.png"):
        vlm.stream(images[3], "what?")


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("why " * 25_000, "characters"),
        ("what is <image> here?", "<image>"),
        ("what is \ud83d here?", r"'\\ud83d' at place 9"),
        (None, "not text"),
    ],
)
def test_a_bad_question_is_refused(vlm: VisionLM, pictures: Pictures, question: Any, said: str) -> None:
    """Alone it raises, in a list it stands in its place, and the message is one short line."""
    with pytest.raises(RequestError, match=said) as caught:
        vlm.ask(pictures[0], question)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    good, bad = vlm.ask(pictures[0], ["what?", question])
    assert isinstance(good, Answer)
    assert isinstance(bad, RequestError)
    conversations = vlm.chat([[message("what?", [])], [message(question, [])], [{"role": "assistant"}]])
    assert [isinstance(reply, Answer) for reply in conversations] == [True, False, False]


def test_half_a_character_in_an_earlier_answer_is_refused(vlm: VisionLM) -> None:
    """What a client sends back as the assistant's words is checked like the question, alone and in a list."""
    messages = [message("what?", []), {"role": "assistant", "content": "a \udcff"}, message("how many?", [])]
    with pytest.raises(RequestError, match=r"the answer has '\\udcff' at place 3"):
        vlm.chat(messages)
    bad, good = vlm.chat([messages, [message("what?", [])]])
    assert isinstance(bad, RequestError)
    assert isinstance(good, Answer)


def test_too_many_pictures_are_refused_with_the_numbers(vlm: VisionLM, pictures: Pictures) -> None:
    """Sixteen patches a picture: 20 pictures are beyond 256 positions, and the picture files are not even read."""
    with pytest.raises(RequestError, match=r"the prompt has 3\d\d tokens"):
        vlm.chat([message("how many?", ["missing.png"] * 20)])


def test_our_own_token_limit_yields_to_a_long_prompt(vlm: VisionLM, pictures: Pictures) -> None:
    """Without max_tokens a caption takes the room there is; a max_tokens that does not fit is refused."""
    messages = [message("how many?", pictures[:8] + pictures[:6])]
    assert isinstance(vlm.chat(messages), Answer)
    with pytest.raises(RequestError, match="max_tokens 64"):
        vlm.chat(messages, max_tokens=64)


def test_a_typed_special_token_is_ordinary_text(vlm: VisionLM) -> None:
    """Nobody ends the model's turn, or places a picture, from inside a question."""
    prompt = vlm.config.prompt
    for text in ("<|endoftext|>", "a<|endoftext|>b", "<|endoftext|>" * 3):
        ids = vlm.prompts.encode(text)
        assert prompt.eos_token_id not in ids
        assert prompt.image_token_id not in ids
        assert vlm.prompts.decode(ids) == text
        assert isinstance(vlm.ask(None, text), Answer)


@pytest.mark.parametrize(
    ("options", "said"), [({"max_tokens": 0}, "max_tokens"), ({"temprature": 1}, "temprature.*allowed.*seed")]
)
def test_a_wrong_option_is_refused(vlm: VisionLM, options: Any, said: str) -> None:
    """Even for a list: the whole call is wrong."""
    with pytest.raises(RequestError, match=said):
        vlm.ask([None], "what?", **options)


def test_an_animation_warns(vlm: VisionLM, pictures: Pictures, tmp_path: Path) -> None:
    """Only the first frame is read, which is said once however often the file is used."""
    path = tmp_path / "moving.gif"
    pictures[0].save(path, save_all=True, append_images=[pictures[1].resize(pictures[0].size)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vlm.ask(path, ["what?", "how many?"], max_tokens=2)
    assert [one.category for one in caught] == [ImageWarning]


def test_a_wrong_device_or_dtype_is_refused(vit_checkpoint: Checkpoint) -> None:
    """One line each, with what is allowed."""
    with pytest.raises(RequestError, match="device 'abacus'"):
        VisionLM(vit_checkpoint, device="abacus")
    with pytest.raises(RequestError, match="dtype 'int3' is unknown; give auto, float32"):
        VisionLM(vit_checkpoint, device="cpu", dtype="int3")


def test_damaged_weights_are_an_error(vit_checkpoint: Checkpoint) -> None:
    """Not-a-number logits never become an answer."""
    tensors = vit_checkpoint.tensors | {"phi.lm_head.bias": torch.full((416,), torch.nan)}
    vlm = VisionLM(Checkpoint(vit_checkpoint.config, tensors, vit_checkpoint.tokenizer), device="cpu")
    with pytest.raises(VisionLMError, match="not a number"):
        vlm.ask(None, "what?")
