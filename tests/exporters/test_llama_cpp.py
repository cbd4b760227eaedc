"""gguf exports, judged by llama.cpp itself: the same prompts, log-probabilities and answers."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import random_checkpoint, text_config
from tests.exporters.tiny_siglip import SIGLIP
from tests.patience import until
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.cli import main
from vision_lm.errors import ExportError
from vision_lm.exporters import gguf_files
from vision_lm.exporters.gguf_files import LANGUAGE, PADDING, write_gguf
from vision_lm.exporters.llama_cpp_runtime import LlamaCpp, llama_cpp
from vision_lm.exporters.verify import QUESTIONS, Report, Sample, compare, samples
from vision_lm.model import VisionLM

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

CLOSE = 0.02  # of a log-probability; 0.004 was measured


@pytest.fixture(scope="module")
def siglip() -> Checkpoint:
    """Random weights; a head with a bias, grouped keys and values."""
    return random_checkpoint(SIGLIP)


def saved(checkpoint: Checkpoint, folder: Path) -> Path:
    write_checkpoint(folder, checkpoint.config, checkpoint.tensors, checkpoint.tokenizer)
    return folder


def compared(checkpoint: Checkpoint, out: Path, count: int) -> Report:
    """Written to `out` and asked."""
    write_gguf(checkpoint, out)
    vlm = VisionLM(checkpoint, "cpu", "float32")
    with llama_cpp(out, vlm.config.prompt.image_token_id, vlm.prompts.tokens_per_image) as runtime:
        return compare(vlm, runtime, "gguf", [], 1.0, count=count)


def test_the_command_verifies_itself(
    siglip: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp says the same about 32 pictures, and of pictures that differ it says different things."""
    out = tmp_path / "out"
    assert main(["export", str(saved(siglip, tmp_path / "m")), "--to", "gguf", "--out", str(out)]) == 0
    report = json.loads((out / "export_report.json").read_text())
    assert report["verified_with"].startswith("llama.cpp in xllamacpp ")
    assert (report["prompts"], report["equal_prompts"]) == (32, 1.0)
    assert report["equal_answers"] >= 0.95
    assert report["largest_log_probability_difference"] < CLOSE
    assert report["largest_logit_difference"] is report["largest_pixel_difference"] is None
    printed = capsys.readouterr().out
    assert "largest log-probability difference" in printed
    assert "logit difference" not in printed and "pixels" not in printed
    images = [one.image for one in samples(32, 32)]
    vlm = VisionLM(siglip, "cpu", "float32")
    for question in QUESTIONS:
        answers = vlm.ask(images, question, max_tokens=16)
        assert len({tuple(one.tokens) for one in answers}) > 4, "pictures do not matter to this checkpoint"


@pytest.mark.parametrize("features", [(-1,), (-3, -1)], ids=["last layer", "two layers"])
def test_every_layer_is_the_one_we_read(features: tuple[int, ...], tmp_path: Path) -> None:
    """A tower read at its last layer, and at two."""
    checkpoint = random_checkpoint(dataclasses.replace(SIGLIP, features=features))
    report = compared(checkpoint, tmp_path / "out", 8)
    assert (report.equal_prompts, report.equal_answers) == (1.0, 1.0)
    assert report.largest_log_probability_difference is not None
    assert report.largest_log_probability_difference < CLOSE


def test_a_picture_stands_where_the_checkpoint_has_it(siglip: Checkpoint, tmp_path: Path) -> None:
    """llama.cpp writes a picture into the question's text; the template puts it in its place, with what is around it."""
    prompt = dataclasses.replace(
        siglip.config.prompt,
        question="Question: {images}\n{question} Answer:",
        image="a cat, {image}, ",
        system="Describe. ",
    )
    checkpoint = dataclasses.replace(siglip, config=dataclasses.replace(siglip.config, prompt=prompt))
    report = compared(checkpoint, tmp_path / "out", 8)
    assert (report.equal_prompts, report.equal_answers) == (1.0, 1.0)


def test_pictures_are_padded_as_the_note_says(siglip: Checkpoint, tmp_path: Path) -> None:
    """A picture twice as wide as high is to llama.cpp what it is scaled by Pillow and padded."""
    notes = write_gguf(siglip, tmp_path / "out").notes
    assert any(f"padded with {PADDING}" in note for note in notes)
    wide = next(iter(samples(1))).image
    assert wide is not None
    wide = wide.resize((128, 64))
    padded = Image.new("RGB", (32, 32), PADDING)
    padded.paste(wide.resize((32, 16), Image.Resampling.BICUBIC), (0, 8))
    with llama_cpp(tmp_path / "out", siglip.config.prompt.image_token_id, 16) as runtime:
        assert apart(runtime, wide, padded) < CLOSE
        assert apart(runtime, wide, wide.resize((32, 32), Image.Resampling.BICUBIC)) > 10 * CLOSE


def apart(runtime: LlamaCpp, one: Image.Image, other: Image.Image) -> float:
    """By how much log-probabilities differ."""
    first, second = (runtime.reply(Sample(image, QUESTIONS[0])).likely for image in (one, other))
    assert first and second
    return max(abs(first[number] - second[number]) for number in first.keys() & second.keys())


def test_minis_language_model_answers_as_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without pictures, which llama.cpp does not see with its eyes."""
    out = tmp_path / "out"
    assert main(["export", "mini", "--to", "gguf", "--language-only", "--out", str(out)]) == 0
    report = json.loads((out / "export_report.json").read_text())
    assert (report["prompts"], report["equal_prompts"], report["passed"]) == (32, 1.0, True)
    assert report["equal_answers"] >= 0.95
    assert "75 tensors read back, 0 differ" in capsys.readouterr().out


def test_an_export_that_answers_otherwise_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries under the name of keys: every tensor is read back as it was written, and only the answers are wrong."""
    model = saved(random_checkpoint(SIGLIP, text_config(num_key_value_heads=4)), tmp_path / "m")
    monkeypatch.setitem(gguf_files._PHI, "self_attn.q_proj", "attn_k")
    monkeypatch.setitem(gguf_files._PHI, "self_attn.k_proj", "attn_q")
    out = tmp_path / "out"
    assert main(["export", str(model), "--to", "gguf", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "0 differ" in said.out
    assert "does not agree" in said.err
    assert not json.loads((out / "export_report.json").read_text())["passed"]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_nothing_is_left_behind(siglip: Checkpoint, tmp_path: Path) -> None:
    """No thread but the one of llama.cpp's log; Ctrl-C is its owner's again; a file that is not loaded is one line."""
    out, token = tmp_path / "out", siglip.config.prompt.image_token_id
    write_gguf(siglip, out)
    heard = []
    owner = signal.signal(signal.SIGINT, lambda *_: heard.append(True))
    with llama_cpp(out, token, 16):
        pass
    before = threads()
    try:
        with llama_cpp(out, token, 16):
            assert threads() > before
            signal.raise_signal(signal.SIGINT)
        assert heard
        until(lambda: threads() <= before)  # one that was joined may be counted a moment longer
        (out / LANGUAGE).write_bytes((out / LANGUAGE).read_bytes()[:1000])
        with pytest.raises(ExportError, match="does not load it") as caught, llama_cpp(out, token, 16):
            pass
        assert "\n" not in str(caught.value)
    finally:
        signal.signal(signal.SIGINT, owner)


def threads() -> int:
    """Those of this process, llama.cpp's own among them."""
    return len(list(Path("/proc/self/task").iterdir()))
