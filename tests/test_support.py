"""What of a caption comes from the picture: against Phi itself, and on models that look or do not look."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import random_phi, scripted, text_config
from vision_lm.answer import UNSUPPORTED, Support
from vision_lm.checkpoint import Checkpoint
from vision_lm.cli import main
from vision_lm.engine import Engine, Prompt, Sampling, TorchDecoder
from vision_lm.errors import ImageError
from vision_lm.model import VisionLM
from vision_lm.noun_phrases import noun_phrases
from vision_lm.phi import build_phi
from vision_lm.pictures import Picture, PictureEncoder
from vision_lm.prompts import Turn


def test_given_tokens_are_as_likely_as_phi_says() -> None:
    """Any tokens, loops and the stop token among them, in batches and after shared prefixes: transformers' own logits."""
    torch.manual_seed(0)
    config = text_config()
    phi = random_phi(config)
    decoder = TorchDecoder(config, phi.state_dict(), torch.device("cpu"), torch.float32)
    engine = Engine(decoder, lambda _: [], image_token_id=-1, cache_tokens=2048)
    start = torch.randint(400, (40,)).tolist()
    prompts = [Prompt([*start, number]) for number in range(6)]
    given = [torch.randint(400, (3 + 7 * number,)).tolist() for number in range(5)] + [[7] * 60]
    found = engine.generate(prompts, [Sampling(len(ids), given=tuple(ids), top_logprobs=1) for ids in given])
    for prompt, ids, one in zip(prompts, given, found, strict=True):
        assert list(one.tokens) == ids
        with torch.inference_mode():
            logits = phi(torch.tensor([[*prompt.ids, *ids]])).logits[0, len(prompt.ids) - 1 : -1]
        logs = logits.log_softmax(-1)  # (T, V)
        expected = logs.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.logprobs), expected, atol=1e-3, rtol=1e-3)
        assert [top[0][0] for top in one.tops] == logs.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        ("A photo of an Egyptian cat.", ["Egyptian cat"]),
        ("A red circle is left of two blue stars.", ["red circle", "blue stars"]),
        ("A man riding a wave on top of a surfboard.", ["man", "wave", "surfboard"]),
        ("A bowl of oranges, bananas and 3 apples.", ["bowl", "oranges", "bananas", "apples"]),
        (
            'On a white background, the word "a dog" is written beside a large striped ring.',
            ["large striped ring"],
        ),
        ("A group of people sitting in a waiting room.", ["people", "waiting room"]),
        ("Their two small children stand in front of the old building.", ["small children", "old building"]),
        ("Nothing.", []),
        ("", []),
    ],
)
def test_what_a_caption_names(caption: str, things: list[str]) -> None:
    found = noun_phrases(caption)
    assert [one.text for one in found] == things
    assert [caption[one.start : one.end] for one in found] == things


def test_the_support_is_the_drop_without_the_picture(
    vit_checkpoint: Checkpoint, pictures: list[Image.Image]
) -> None:
    """By hand with transformers' Phi: the caption after the prompt with the picture, and with its mean colour."""
    vlm = VisionLM(vit_checkpoint, device="cpu", dtype="float32")
    answer = vlm.caption(pictures[0], choices=["The cube is red. There are two cats"], support=True)
    assert answer.support and [one.text for one in answer.support] == ["cube", "cats"]
    phi = build_phi(vit_checkpoint.config.text).eval()
    tensors = vit_checkpoint.tensors.items()
    phi.load_state_dict({name[4:]: tensor for name, tensor in tensors if name.startswith("phi.")})
    ids = vlm.prompts.build([Turn(vlm.prompts.caption_question("normal"), (0,))]).ids
    pixels = vlm.encoder.preprocess(pictures[0])  # (3, S, S)
    flat = pixels.mean((1, 2), keepdim=True).expand_as(pixels)
    for shown, side in ((pixels, "seen"), (flat, "unseen")):
        (tokens,) = PictureEncoder(vlm.encoder, vlm.projector)([Picture(shown, b"")])
        with torch.inference_mode():
            embedded = phi.model.embed_tokens(torch.tensor([*ids, *answer.tokens]))
            embedded[: len(ids)][torch.tensor(ids) == vit_checkpoint.config.prompt.image_token_id] = tokens
            logs = phi(inputs_embeds=embedded[None]).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        for one in answer.support:
            own = [
                n
                for n, id in enumerate(answer.tokens)
                if vlm.prompts.decode([id]).strip() in one.text.split()
            ]
            assert own, "the tokenizer knows both nouns as one token each"
            expected = sum(float(logs[n, answer.tokens[n]]) for n in own)
            assert math.log(getattr(one, side)) == pytest.approx(expected, abs=1e-3)
            assert one.value == one.seen - one.unseen


def test_a_list_of_captions_has_the_support_that_each_has_alone(
    vlm: VisionLM, pictures: list[Image.Image]
) -> None:
    options = {"choices": ["The cube is red.", "There are two cats."]}
    found = vlm.caption([pictures[0], "nowhere.png", pictures[1]], support=True, **options)
    assert isinstance(found[1], ImageError)
    for picture, one in zip((pictures[0], pictures[1]), (found[0], found[2]), strict=True):
        alone = vlm.caption(picture, support=True, **options)
        assert one == alone and one.support
    assert vlm.caption(pictures[0], **options).support is None


def test_what_a_blind_model_names_is_flagged(
    vit_checkpoint: Checkpoint,
    pictures: list[Image.Image],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the shell: a line for each thing, and `--json` has the numbers. It says the same without the picture."""
    VisionLM(scripted(vit_checkpoint, " The cube is red."), device="cpu").save_pretrained(tmp_path / "blind")
    pictures[0].save(tmp_path / "a.png")
    command = ["caption", str(tmp_path / "a.png"), "--model", str(tmp_path / "blind"), "--explain"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The cube is red." and lines[1].split()[0] == "cube"
    assert lines[1].endswith("NOT SUPPORTED by the picture")
    assert main([*command, "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["support"]
    assert one["thing"] == "cube" and one["start"] == 4 and abs(one["support"]) < 1e-3 < one["seen"]


def test_supported() -> None:
    assert Support("cat", 2, 5, UNSUPPORTED + 0.1, 0.0).supported
    assert not Support("cat", 2, 5, 0.9, 0.95 - UNSUPPORTED + 0.1).supported
