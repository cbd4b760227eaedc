"""VisionLM's promises: one request or many, with and without pictures, whole or in pieces, good or bad."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vision_lm
from tests.conftest import VIT, random_checkpoint, scripted
from vision_lm.answer import Answer, confidence, contest, sureness
from vision_lm.checkpoint import Checkpoint
from vision_lm.config import Calibration
from vision_lm.encoder import ImageEncoder
from vision_lm.engine import device
from vision_lm.errors import ImageError, RequestError, VisionLMError
from vision_lm.images import ImageWarning
from vision_lm.model import VisionLM

Pictures = list[Image.Image]


def message(question: str, images: Sequence[Any]) -> dict[str, Any]:
    """A user's message with pictures."""
    return {"role": "user", "content": [*({"type": "image", "image": i} for i in images), question]}


def mixed_requests(pictures: Pictures) -> list[list[dict[str, Any]]]:
    """64 conversations of one or two questions, of 2 to 60 words, about none to three pictures."""
    chance = random.Random(0)
    words = ["cube", "cats", "image", "colour", "how", "many", "is", "the", "red", "two"]
    conversations = []
    for number in range(64):
        question = " ".join(chance.choices(words, k=chance.choice([2, 5, 12, 30, 60])))
        messages = [message(question, chance.sample(pictures, number % 4))]
        if number % 5 == 0:
            messages += [{"role": "assistant", "content": "two cats"}, message("how many?", [])]
        conversations.append(messages)
    return conversations


@pytest.fixture(scope="module")
def one_by_one(vlm: VisionLM, pictures: Pictures) -> list[Answer]:
    """The answer to each mixed request alone."""
    return [vlm.chat(messages, max_tokens=12) for messages in mixed_requests(pictures)]


@pytest.mark.parametrize("size", [2, 7, 64])
def test_batching_changes_no_answer(
    vlm: VisionLM, pictures: Pictures, one_by_one: list[Answer], size: int
) -> None:
    """Each of 64 mixed requests has the same greedy tokens alone and in any batch, in any order."""
    requests = mixed_requests(pictures)
    order = list(range(64))
    random.Random(size).shuffle(order)
    for start in range(0, 64, size):
        numbers = order[start : start + size]
        for number, answer in zip(
            numbers, vlm.chat([requests[n] for n in numbers], max_tokens=12), strict=True
        ):
            alone = one_by_one[number]
            assert isinstance(answer, Answer)
            assert (answer.tokens, answer.text) == (alone.tokens, alone.text)
            assert answer.finish_reason == alone.finish_reason
            assert answer.token_logprobs == pytest.approx(alone.token_logprobs, abs=1e-4)


def test_the_requests_that_are_batched_differ(one_by_one: list[Answer]) -> None:
    """The test above would mean little if the random model always said the same."""
    assert len({answer.tokens for answer in one_by_one}) > 48


def test_a_picture_changes_the_answer(tiny_checkpoint: Checkpoint, pictures: Pictures) -> None:
    """Both kinds of tower reach the language model."""
    vlm = VisionLM(tiny_checkpoint, device="cpu")
    answers = vlm.ask(pictures, "What colour is the cube?", max_tokens=16)
    assert len({str(answer) for answer in answers}) > 4


def test_lists_pair_and_spread(vlm: VisionLM, pictures: Pictures) -> None:
    """Lists are paired; one picture or one question serves all; None is no picture; unequal lists are refused."""
    first, second = pictures[:2]
    pairs = [vlm.ask(first, "how many?"), vlm.ask(second, "what colour?")]
    assert [str(a) for a in vlm.ask([first, second], ["how many?", "what colour?"])] == [
        str(a) for a in pairs
    ]
    assert str(vlm.ask([first, second], "how many?")[0]) == str(pairs[0])
    assert str(vlm.ask(first, ["what?", "how many?"])[1]) == str(pairs[0])
    assert str(vlm.ask([None, first], "how many?")[0]) == str(vlm.ask(None, "how many?"))
    assert vlm.caption([]) == []
    with pytest.raises(RequestError, match="2 images, 3 questions"):
        vlm.ask([first, second], ["a?", "b?", "c?"])


def test_streams_are_the_answers(tiny_checkpoint: Checkpoint, pictures: Pictures) -> None:
    """Pieces joined are the text, also where characters are split over tokens, and the answer comes with them."""
    vlm = VisionLM(tiny_checkpoint, device="cpu")
    several = 0
    for picture in pictures:
        messages = [message("how many cats?", [picture, pictures[0]])]
        pairs = [
            (vlm.stream(picture, "what colour?"), vlm.ask(picture, "what colour?")),
            (
                vlm.stream(picture, "what?", temperature=2.0, seed=1),
                vlm.ask(picture, "what?", temperature=2.0, seed=1),
            ),
            (vlm.stream_chat(messages), vlm.chat(messages)),
            (vlm.stream_caption(picture, "long"), vlm.caption(picture, "long")),
        ]
        for stream, answer in pairs:
            pieces = list(stream)
            assert "".join(pieces) == answer.text
            assert stream.answer is not None
            assert (stream.answer.text, stream.answer.tokens) == (answer.text, answer.tokens)
            assert stream.answer.token_logprobs == pytest.approx(answer.token_logprobs, abs=1e-4)
            assert all(pieces)
            several += len(pieces) > 2
    assert several > len(pictures)


def test_characters_are_streamed_whole(vit_checkpoint: Checkpoint) -> None:
    """A character of four bytes in four tokens arrives as one piece."""
    vlm = VisionLM(scripted(vit_checkpoint, " 🦊 is"), device="cpu")
    assert len(vlm.prompts.encode("🦊")) > 1
    assert [piece for piece in vlm.stream(None, "what?") if piece.strip()][0] == "🦊"
    assert str(vlm.ask(None, "what?")) == "🦊 is"
    assert str(vlm.ask(None, "what?", max_tokens=3)) == ""  # three of the four bytes are no character


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


def test_seeded_sampling_repeats(vlm: VisionLM, pictures: Pictures) -> None:
    """A seed gives one answer, other seeds give others, and none is greedy's."""
    answers = [vlm.ask(pictures[0], "what?", temperature=1.5, seed=seed).text for seed in range(6)]
    assert answers == [vlm.ask(pictures[0], "what?", temperature=1.5, seed=seed).text for seed in range(6)]
    assert len({*answers, vlm.ask(pictures[0], "what?").text}) == 7


def test_a_picture_is_encoded_once(vit_checkpoint: Checkpoint, pictures: Pictures) -> None:
    """The same picture many times, from several sources, in several calls, is encoded once; so is its prompt."""
    vlm = VisionLM(vit_checkpoint, device="cpu")
    tokens = vlm.encode_images([pictures[0], pictures[1], pictures[0].copy()])
    assert vlm.engine.images.encoded == 2
    assert [tuple(one.shape) for one in tokens] == [(16, 64)] * 3
    assert torch.equal(tokens[0], tokens[2])
    assert not torch.equal(tokens[0], tokens[1])
    vlm.ask([pictures[0], pictures[0].copy()] * 50, "what?", max_tokens=1)
    assert vlm.engine.images.encoded == 2
    assert vlm.engine.scheduler.shared_tokens == 99 * 16  # a page of image tokens


def test_answers_take_the_form_that_is_asked_for(vlm: VisionLM, pictures: Pictures) -> None:
    """Choices, a regular expression and a JSON schema hold, alone and in one batch; streams say the same."""
    schema = {
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}, "cat": {"type": "boolean"}},
        "required": ["count", "cat"],
        "additionalProperties": False,
    }
    chosen = vlm.ask(pictures, "which?", choices=["red", "green", "teal"])
    assert {str(one) for one in chosen} <= {"red", "green", "teal"}
    assert all(isinstance(one, Answer) and one.finish_reason == "stop" for one in chosen)
    assert re.fullmatch(r"[0-9]{2}-[a-f]+", str(vlm.ask(pictures[0], "which?", regex=r"[0-9]{2}-[a-f]{1,3}")))
    answer = vlm.ask(pictures[0], "what?", json_schema=schema, max_tokens=60)
    assert set(json.loads(answer.text)) == {"count", "cat"}
    assert "".join(vlm.stream(pictures[0], "what?", json_schema=schema, max_tokens=60)) == answer.text
    with pytest.raises(RequestError, match="json_schema is .*; give"):
        vlm.ask(pictures[0], "what?", json_schema={"type": "no such type"})


def test_an_answer_ends_before_a_stop_string(vlm: VisionLM, pictures: Pictures) -> None:
    """Whole and streamed, the text is that of the free answer up to the first stop string in it."""
    for picture in pictures:
        free = vlm.ask(picture, "what?", temperature=1.5, seed=3, max_tokens=40)
        stop = free.text[7:9]
        cut = vlm.ask(picture, "what?", temperature=1.5, seed=3, max_tokens=40, stop=[stop, "never said"])
        assert cut.text == free.text[: free.text.index(stop)].rstrip("\ufffd").strip()
        assert cut.finish_reason == "stop"
        stream = vlm.stream(picture, "what?", temperature=1.5, seed=3, max_tokens=40, stop=stop)
        assert "".join(stream) == cut.text


def test_alternatives_come_with_the_answer(vlm: VisionLM, pictures: Pictures) -> None:
    """With `top_logprobs` each token has so many likeliest ones, the greedy one first, at its own log-probability."""
    answer = vlm.ask(pictures[0], "what?", top_logprobs=3, max_tokens=8)
    assert [len(top) for top in answer.top_logprobs] == [3] * len(answer.tokens)
    assert tuple(top[0] for top in answer.top_logprobs) == tuple(
        zip(answer.tokens, answer.token_logprobs, strict=True)
    )
    assert vlm.ask(pictures[0], "what?", max_tokens=8).top_logprobs == ()


def test_an_animation_warns(vlm: VisionLM, pictures: Pictures, tmp_path: Path) -> None:
    """Only the first frame is read, which is said once however often the file is used."""
    path = tmp_path / "moving.gif"
    pictures[0].save(path, save_all=True, append_images=[pictures[1].resize(pictures[0].size)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vlm.ask(path, ["what?", "how many?"], max_tokens=2)
    assert [one.category for one in caught] == [ImageWarning]


def test_what_is_pushed_to_the_hub_is_the_model(
    vlm: VisionLM, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The uploaded folder loads and answers as the model does; repository, privacy and token reach the hub's client."""
    calls: list[Any] = []

    class Hub:
        def __init__(self, token: str | None) -> None:
            calls.append(token)

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
            calls.append((repo_id, private, exist_ok))
            return f"https://hub.example/{repo_id}"

        def upload_folder(self, *, repo_id: str, folder_path: str) -> None:
            shutil.copytree(folder_path, tmp_path / repo_id)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert vlm.push_to_hub("me/model", private=True, token="t") == "https://hub.example/me/model"
    assert calls == ["t", ("me/model", True, True)]
    loaded = vision_lm.load(tmp_path / "me/model", device="cpu")
    assert str(loaded.ask(pictures[0], "what?", max_tokens=8)) == str(
        vlm.ask(pictures[0], "what?", max_tokens=8)
    )


def test_a_saved_model_answers_as_before(
    tiny_checkpoint: Checkpoint, pictures: Pictures, tmp_path: Path
) -> None:
    """save_pretrained and from_pretrained lose nothing, and load() finds the folder."""
    vlm = VisionLM(tiny_checkpoint, device="cpu")
    vlm.save_pretrained(tmp_path / "saved")
    loaded = vision_lm.load(tmp_path / "saved", device="cpu")
    assert loaded.config == vlm.config
    before, after = (model.ask(pictures[0], "what colour?") for model in (vlm, loaded))
    assert after.tokens == before.tokens
    assert after.token_logprobs == pytest.approx(before.token_logprobs, abs=1e-5)


def test_buffers_that_no_checkpoint_holds_are_computed(pictures: Pictures) -> None:
    """Some towers compute buffers when they are built, such as relative positions: they must not stay empty."""
    tower = {"timm_model_name": "test_vit_relpos", "timm_pool": "avg", "timm_proj": "", "image_size": 160}
    config = dataclasses.replace(VIT, embed_dim=10, tower=tower, image_size=160)
    checkpoint = random_checkpoint(config)
    encoder = ImageEncoder(config).eval()
    assert any(name not in encoder.state_dict() for name, _ in encoder.named_buffers())
    prefix = "encoder."
    weights = {n.removeprefix(prefix): t for n, t in checkpoint.tensors.items() if n.startswith(prefix)}
    encoder.load_state_dict(weights)
    vlm = VisionLM(checkpoint, device="cpu")
    pixels = encoder.preprocess(pictures[0])[None]
    with torch.no_grad():
        torch.testing.assert_close(vlm.encoder(pixels).patches, encoder(pixels).patches)


def test_a_wrong_device_or_dtype_is_refused(vit_checkpoint: Checkpoint) -> None:
    """One line each, with what is allowed."""
    with pytest.raises(RequestError, match="device 'abacus'"):
        VisionLM(vit_checkpoint, device="abacus")
    with pytest.raises(RequestError, match="dtype 'int3' is unknown; give auto, float32"):
        VisionLM(vit_checkpoint, device="cpu", dtype="int3")


def test_other_dtypes_answer(vit_checkpoint: Checkpoint, pictures: Pictures) -> None:
    """bfloat16 and float16 run on a CPU and mostly agree with float32."""
    exact = VisionLM(vit_checkpoint, device="cpu").ask(pictures[0], "what colour?", max_tokens=1)
    for dtype in ("bfloat16", "float16"):
        rough = VisionLM(vit_checkpoint, device="cpu", dtype=dtype).ask(
            pictures[0], "what colour?", max_tokens=1
        )
        assert rough.token_logprobs == pytest.approx(exact.token_logprobs, abs=0.2)


@pytest.mark.parametrize(
    ("flags", "dtype", "computed"),
    [
        ("flags : avx2 fma f16c", "auto", torch.float32),
        ("flags : avx512f avx512_bf16", "auto", torch.bfloat16),
        ("flags : amx_tile amx_bf16", "auto", torch.bfloat16),
        ("flags : avx2 fma f16c", "bfloat16", torch.bfloat16),
    ],
)
def test_a_tower_is_computed_where_the_processor_is_fast(
    vit_checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    pictures: Pictures,
    flags: str,
    dtype: str,
    computed: torch.dtype,
) -> None:
    """A large model's weights stay in bfloat16; its tower is in float32 on a CPU that does not multiply these, unless asked."""
    monkeypatch.setattr(device, "processor", lambda: flags)
    monkeypatch.setattr(device, "SMALL", 0)
    config = dataclasses.replace(vit_checkpoint.config, dtype="bfloat16")
    large = dataclasses.replace(vit_checkpoint, config=config)
    vlm = VisionLM(large, device="cpu", dtype=dtype)
    assert vlm.dtype == torch.bfloat16
    assert {one.dtype for one in [*vlm.encoder.parameters(), *vlm.projector.parameters()]} == {computed}
    assert vlm.ask(pictures[0], "what colour?", max_tokens=2).tokens


def test_confidence_is_a_calibrated_probability() -> None:
    """Of each token something between its probability and its share against its likeliest rival, of those that point a
    little; of a phrase all together, of sentences their words' geometric mean. Without calibration as it is, with it
    Platt's sigmoid; always within 0 and 1.
    """
    assert math.exp(contest(math.log(0.6), math.log(0.2))) == pytest.approx(0.75)
    assert math.exp(contest(math.log(0.2), math.log(0.6))) == pytest.approx(0.25)
    assert contest(-0.5, -math.inf) == 0
    assert math.exp(2 * sureness(math.log(0.6), math.log(0.2))) == pytest.approx(0.6 * 0.75)
    assert math.exp(10 * sureness(math.log(0.6), math.log(0.2), pointing=True)) == pytest.approx(0.75)
    assert confidence([-0.1, -0.3], Calibration()) == pytest.approx(2.718281828**-0.4)
    assert confidence([-0.1, -0.3], Calibration(), phrase=False) == pytest.approx(2.718281828**-0.2)
    assert confidence([-0.1, -0.3], Calibration(), points=[-0.2]) == pytest.approx(2.718281828**-0.6)
    assert confidence([-0.6931472], Calibration(scale=2.0, shift=1.0)) == pytest.approx(0.7310586)
    for logprobs in ([0.0], [-1e4], [-0.5] * 3, []):
        for calibration in (Calibration(), Calibration(50, -300), Calibration(50, 300)):
            assert 0 <= confidence(logprobs, calibration) <= 1


def test_damaged_weights_are_an_error(vit_checkpoint: Checkpoint) -> None:
    """Not-a-number logits never become an answer."""
    tensors = vit_checkpoint.tensors | {"phi.lm_head.bias": torch.full((416,), torch.nan)}
    vlm = VisionLM(Checkpoint(vit_checkpoint.config, tensors, vit_checkpoint.tokenizer), device="cpu")
    with pytest.raises(VisionLMError, match="not a number"):
        vlm.ask(None, "what?")


def test_imports_stay_light() -> None:
    """`import vision_lm` brings no heavy library, and inference never brings transformers by itself."""
    code = (
        "import sys, vision_lm; assert not {'torch', 'numpy', 'PIL'} & sys.modules.keys(); "
        "vision_lm.VisionLM; assert not {'transformers', 'open_clip', 'timm'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
