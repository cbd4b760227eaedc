"""Where captions end: at a sentence, whatever the model did, and nothing in them said again and again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Pictures, scripted
from vision_lm.captions import cut_caption, sentences_end
from vision_lm.checkpoint import Checkpoint
from vision_lm.model import VisionLM


@pytest.mark.parametrize(
    ("text", "reason", "caption", "said"),
    [
        # What the model ended by itself stays, and gets the full stop that it forgot.
        ("A cat. It sleeps.", "stop", "A cat. It sleeps.", "stop"),
        ("A cat. It sleeps", "stop", "A cat. It sleeps.", "stop"),
        ("The lights are on", "stop", "The lights are on.", "stop"),
        ('A sign says "STOP"', "stop", 'A sign says "STOP".', "stop"),
        ("A cat; and", "stop", "A cat.", "stop"),
        ("No. 5 and no. 6 are red. No. 7 is not.", "stop", "No. 5 and no. 6 are red. No. 7 is not.", "stop"),
        ("", "stop", "", "stop"),
        # A sentence that was cut off goes.
        ("A cat. It sle", "length", "A cat.", "length"),
        ("A cat. It sle", "repetition", "A cat.", "repetition"),
        ("Is it a cat? Yes! It", "length", "Is it a cat? Yes!", "length"),
        ('It says "Stop." Then', "length", 'It says "Stop."', "length"),
        # If it is the only one, it stays as far as it makes sense.
        ("A cat on a", "length", "A cat.", "length"),
        ("A cat, a dog and a bi", "length", "A cat, a dog.", "length"),
        ("A man in a red hat, sitting next to a", "length", "A man in a red hat, sitting.", "length"),
        ("A red cube to the left of a blu", "length", "A red cube to the left.", "length"),
        ("A cup which is on a ta", "length", "A cup.", "length"),
        ("It costs 3.50 and", "length", "It costs 3.50.", "length"),
        ("A large brown", "length", "A large brown.", "length"),
        # The engine found a loop and left one round of it.
        ("a red cube and", "repetition", "a red cube.", "repetition"),
        ("A dog on a chair", "repetition", "A dog on a chair.", "repetition"),
        # Sentences said twice.
        ("A cat. A dog. A cat. A bird.", "stop", "A cat. A dog.", "repetition"),
        ("A cat.  a CAT. A dog.", "stop", "A cat.", "repetition"),
        ("Cat. Cat. Cat.", "stop", "Cat.", "repetition"),
        ("A cat. A dog. A cat", "stop", "A cat. A dog.", "repetition"),
        # Words that loop, too briefly for the engine's own rule.
        ("a dog, a dog, a dog.", "stop", "a dog.", "repetition"),
        ("A dog, a dog and a dog", "stop", "A dog.", "repetition"),
        ("A cube on a cube on a cube on a", "length", "A cube.", "repetition"),
        ("a red cube and a red cube and a red cube and", "length", "a red cube.", "repetition"),
        ("A room. A dog, a dog, a dog.", "stop", "A room.", "repetition"),
        ("A dog, a dog, a dog. A room.", "stop", "A dog.", "repetition"),
        # No loops: two of a kind, a list, a number that is read out.
        ("a dog and a dog.", "stop", "a dog and a dog.", "stop"),
        ("two cubes, two balls and two cones.", "stop", "two cubes, two balls and two cones.", "stop"),
        ("A very very big 1.1.1.1.", "stop", "A very very big 1.1.1.1.", "stop"),
    ],
)
def test_a_caption_ends_at_a_sentence_and_says_nothing_again(
    text: str, reason: Any, caption: str, said: str
) -> None:
    """The rule, case by case; what is kept is the beginning of the text, and only a full stop is ever added."""
    kept, full_stop, found = cut_caption(text, reason)
    assert (kept + full_stop, found) == (caption, said)
    assert text.startswith(kept)
    assert full_stop in ("", ".")


def test_an_unfinished_text_does_not_end_at_its_last_full_stop() -> None:
    """While streaming, "3." may become "3.5": only a full stop with something behind it ends a sentence."""
    assert sentences_end("A cat. It costs 3.", finished=False) == (6, False)
    assert sentences_end("A cat. It costs 3.", finished=True) == (18, False)


@pytest.mark.parametrize(
    ("script", "endless", "max_tokens", "expected"),
    [
        (" The cube is red and", True, 96, "The cube is red."),
        (" The cube is red and", True, 7, "The cube is red."),
        (" The cube", False, 96, "The cube."),
        (" The cube, How image", False, 4, "The cube."),
    ],
)
def test_an_added_full_stop_has_no_token(
    vit_checkpoint: Checkpoint, script: str, endless: bool, max_tokens: int, expected: str
) -> None:
    """The tokens are those of the text without it, each has its log-probability, and the pieces are the caption."""
    vlm = VisionLM(scripted(vit_checkpoint, script, endless=endless), device="cpu")
    caption = vlm.caption("demo/examples/cat.jpg", max_tokens=max_tokens)
    assert caption.text == expected
    assert vlm.prompts.decode(caption.tokens).strip().rstrip(",") == expected.removesuffix(".")
    assert len(caption.token_logprobs) == len(caption.tokens)
    stream = vlm.stream_caption("demo/examples/cat.jpg", max_tokens=max_tokens)
    assert "".join(stream) == expected
    assert stream.answer == caption


def test_a_looping_caption_is_cut(vit_checkpoint: Checkpoint, pictures: Pictures) -> None:
    """A model that says one sentence for ever gives it once, with the log-probabilities of its tokens."""
    vlm = VisionLM(scripted(vit_checkpoint, " The cube is.", endless=True), device="cpu")
    caption = vlm.caption(pictures[0])
    assert (caption.text, caption.finish_reason) == ("The cube is.", "repetition")
    assert vlm.prompts.decode(caption.tokens).strip() == caption.text
    assert len(caption.token_logprobs) == len(caption.tokens)
    assert "".join(vlm.stream_caption(pictures[0])) == caption.text


def test_a_truncated_caption_ends_at_its_sentence(vit_checkpoint: Checkpoint, pictures: Pictures) -> None:
    """When the tokens run out, a caption drops its unfinished sentence; an answer keeps it."""
    vlm = VisionLM(scripted(vit_checkpoint, " The cube is. Answer image"), device="cpu")
    whole = vlm.caption(pictures[0])
    assert (whole.text, whole.finish_reason) == ("The cube is. Answer image.", "stop")
    count = len(whole.tokens) - 1
    cut = vlm.caption(pictures[0], max_tokens=count)
    assert (cut.text, cut.finish_reason) == ("The cube is.", "length")
    assert vlm.prompts.decode(cut.tokens).strip() == cut.text
    assert vlm.ask(None, "what?", max_tokens=count).text == "The cube is. Answer"
    assert list(vlm.stream_caption(pictures[0])) == ["The cube is.", " Answer image."]


def test_a_streamed_caption_takes_nothing_back(vit_checkpoint: Checkpoint, pictures: Pictures) -> None:
    """The point of "3.5" ends no sentence, although for one token "3." looks like an end."""
    vlm = VisionLM(scripted(vit_checkpoint, " The cube is! How 3.5 image"), device="cpu")
    count = len(vlm.caption(pictures[0]).tokens) - 1
    stream = vlm.stream_caption(pictures[0], max_tokens=count)
    assert list(stream) == ["The cube is!"]
    assert stream.answer == vlm.caption(pictures[0], max_tokens=count)
