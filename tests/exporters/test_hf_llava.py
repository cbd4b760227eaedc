"""hf-llava exports, judged by transformers: the same tensors, pixels, prompts, logits and answers."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import Environment
from jinja2.nodes import For, Name
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import VIT, random_checkpoint, text_config
from tests.exporters.tiny_siglip import SIGLIP
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.cli import main
from vision_lm.config import VisionConfig
from vision_lm.errors import ExportError
from vision_lm.exporters.export import Settings, export
from vision_lm.exporters.hf_llava import write_hf_llava
from vision_lm.exporters.linears import fold_head_bias
from vision_lm.exporters.transformers_runtime import TransformersLlava
from vision_lm.exporters.verify import allowed_apart, apart, compare, samples
from vision_lm.model import VisionLM

QUICK = dataclasses.replace(VIT, quick_gelu=True, resize="crop", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def wide() -> Checkpoint:
    """A CLIP of QuickGELU whose features are standardised, and a head with a bias."""
    return random_checkpoint(QUICK, text_config(num_key_value_heads=4))


def saved(checkpoint: Checkpoint, folder: Path) -> Path:
    write_checkpoint(folder, checkpoint.config, checkpoint.tensors, checkpoint.tokenizer)
    return folder


def standardised(checkpoint: Checkpoint) -> Checkpoint:
    """The same model with features that have a mean and a spread."""
    projector = dataclasses.replace(checkpoint.config.projector, standardise=True)
    width = projector.in_features
    noise = torch.Generator().manual_seed(5)
    extra = {
        "projector.mean": torch.randn(width, generator=noise),
        "projector.spread": 0.5 + torch.rand(width, generator=noise),
    }
    config = dataclasses.replace(checkpoint.config, projector=projector)
    return dataclasses.replace(checkpoint, config=config, tensors=checkpoint.tensors | extra)


def test_a_hundred_answers_are_equal(wide: Checkpoint, tmp_path: Path) -> None:
    """transformers, with the folder and nothing of ours, says the same to 100 questions: the bias is folded, not lost."""
    checkpoint = standardised(wide)
    assert checkpoint.tensors["phi.lm_head.bias"].abs().max() > 0.5
    write_hf_llava(checkpoint, tmp_path / "out")
    vlm = VisionLM(checkpoint, "cpu", "float32")
    runtime = TransformersLlava(tmp_path / "out", vlm.encoder)
    report = compare(vlm, runtime, "hf-llava", [], 1.0, count=100)
    assert (report.equal_prompts, report.equal_answers, report.passed) == (1.0, 1.0, True)
    assert report.largest_logit_difference is not None
    assert report.largest_logit is not None
    assert report.largest_logit_difference <= 1e-4 * report.largest_logit
    dropped = fold_head_bias({n[4:]: t for n, t in checkpoint.tensors.items() if n.startswith("phi.")})
    assert not dropped["lm_head.bias"].any()


@pytest.mark.parametrize(
    "vision",
    [
        VIT,
        dataclasses.replace(VIT, features=(-3, -1)),
        dataclasses.replace(VIT, resize="pad"),
        SIGLIP,
        dataclasses.replace(SIGLIP, features=(-1,)),
    ],
    ids=["last but one", "two layers", "padded", "siglip", "siglip's last"],
)
def test_every_tower_sees_the_same(vision: VisionConfig, tmp_path: Path) -> None:
    """Logits of the same pixels are ours to 1e-4, for each kind of tower, layer and preprocessing."""
    checkpoint = random_checkpoint(vision)
    write_hf_llava(checkpoint, tmp_path / "out")
    vlm = VisionLM(checkpoint, "cpu", "float32")
    report = compare(vlm, TransformersLlava(tmp_path / "out", vlm.encoder), "", [], 1.0, count=4)
    assert report.equal_prompts == 1.0
    assert report.largest_logit_difference is not None
    assert report.largest_logit is not None
    assert report.largest_logit_difference <= 1e-4 * report.largest_logit


def test_pixels_are_those_of_our_preprocessing(tmp_path: Path) -> None:
    """transformers' processor, from the folder alone, brings pictures to size as we do, to a pixel."""
    from transformers import AutoProcessor

    for resize in ("squash", "crop", "pad"):
        checkpoint = random_checkpoint(dataclasses.replace(QUICK, resize=resize))
        write_hf_llava(checkpoint, tmp_path / resize)
        processor = AutoProcessor.from_pretrained(tmp_path / resize)
        encoder = VisionLM(checkpoint, "cpu").encoder
        for image in (sample.image for sample in samples(5)):
            theirs = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
            levels = 255 * torch.tensor(QUICK.std)[:, None, None]
            assert apart(theirs * levels, encoder.preprocess(image) * levels) < allowed_apart(32), resize


def test_names_are_those_that_transformers_writes(wide: Checkpoint, tmp_path: Path) -> None:
    """transformers misses nothing and finds nothing unexpected but the bias; what it saves again is what we wrote."""
    from transformers import LlavaForConditionalGeneration

    write_hf_llava(wide, tmp_path / "out", keep_head_bias=True)
    model, loading = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["mismatched_keys"]
    assert loading["unexpected_keys"] == {"lm_head.bias"}
    model.save_pretrained(tmp_path / "again")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    bias = ours.pop("language_model.lm_head.bias")
    assert torch.equal(bias, wide.tensors["phi.lm_head.bias"]), "kept as it is"
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    phi = {n.replace("phi.", "language_model."): t for n, t in wide.tensors.items() if n.startswith("phi.")}
    assert all(torch.equal(ours[name], phi[name]) for name in phi.keys() & ours.keys())


def test_the_pipeline_works(wide: Checkpoint, tmp_path: Path, pictures: list[Image.Image]) -> None:
    """`pipeline("image-text-to-text")` takes the folder as it takes any model, and answers as we do."""
    from transformers import pipeline

    write_hf_llava(wide, tmp_path / "out")
    pipe: Any = pipeline("image-text-to-text", model=str(tmp_path / "out"), device="cpu")
    image = pictures[0].resize((32, 32))
    content = [{"type": "image", "image": image}, {"type": "text", "text": "How many cats?"}]
    messages = [{"role": "user", "content": content}]
    said = pipe(text=messages, max_new_tokens=4, do_sample=False, return_full_text=False)
    ours = VisionLM(wide, "cpu", "float32").ask(image, "How many cats?", max_tokens=4)
    assert said[0]["generated_text"].strip() == str(ours).strip() != ""


def test_a_conversation_is_written_as_ours(wide: Checkpoint, tmp_path: Path) -> None:
    """Two pictures and two turns through the chat template give the ids of our own prompt."""
    from transformers import AutoProcessor

    write_hf_llava(wide, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    messages: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": " A cat? "}],
        },
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "What colour is it?"},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    ids = processor(images=images, text=text)["input_ids"][0]
    vlm = VisionLM(wide, "cpu")
    from vision_lm.prompts import Turn

    ours = vlm.prompts.build([Turn("A cat?", tuple(images), "A dog."), Turn("What colour is it?")])
    assert list(ids) == ours.ids


def test_the_settings_that_only_vllm_reads(tmp_path: Path) -> None:
    """The width of its MLP by vLLM's name, and a loop over `content`, without which vLLM puts a line break into prompts."""
    checkpoint = random_checkpoint(VIT, text_config(intermediate_size=96))
    write_hf_llava(checkpoint, tmp_path / "out")
    text = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    assert text["n_inner"] == text["intermediate_size"] == 96
    template = Environment().parse((tmp_path / "out" / "chat_template.jinja").read_text())
    assert "content" in {loop.iter.name for loop in template.find_all(For) if isinstance(loop.iter, Name)}


def test_the_command_verifies_itself(
    wide: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints what it found, writes the report, and fails below the agreement asked for."""
    model, out = saved(wide, tmp_path / "model"), tmp_path / "out"
    assert main(["export", str(model), "--to", "hf-llava", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    report = json.loads((out / "export_report.json").read_text())
    assert report["prompts"] == 32
    assert report["passed"]
    assert report["equal_answers"] >= 0.95
    assert "largest logit difference" in printed
    assert "lm_head.bias is folded" in printed
    assert not (tmp_path / "out.partial").exists()

    # A file that was damaged after it was written: the same verification notices.
    tensors = load_file(out / "model.safetensors")
    from safetensors.torch import save_file

    tensors["multi_modal_projector.linear_2.weight"] = tensors["multi_modal_projector.linear_2.weight"].flip(
        0
    )
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    vlm = VisionLM(wide, "cpu", "float32")
    assert not compare(vlm, TransformersLlava(out, vlm.encoder), "", [], 0.95, count=8).passed


def test_what_a_llava_cannot_carry_is_refused(trunk_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The embedded model's parts, each by its name, in one line, and nothing is written."""
    for source, part in (("mini", "pooled tokens"), (str(saved(trunk_checkpoint, tmp_path / "m")), "pooled")):
        with pytest.raises(ExportError, match=part) as caught:
            export(source, Settings("hf-llava", tmp_path / "out"))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    vision = dataclasses.replace(VIT, tower={**VIT.tower, "ls_init_value": 0.1})
    with pytest.raises(ExportError, match="vision.tower.ls_init_value"):
        write_hf_llava(random_checkpoint(vision), tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="exists already"):
        export(saved(random_checkpoint(VIT), tmp_path / "vit"), Settings("hf-llava", tmp_path / "out"))


def test_every_projector_is_exact_or_refused(wide: Checkpoint, tmp_path: Path) -> None:
    """Narrower inside than the language model: padded with nothing. Wider: refused."""
    width = wide.config.projector.hidden_features
    assert width < wide.config.text.hidden_size, "all other tests pad"
    projector = dataclasses.replace(wide.config.projector, hidden_features=80)
    config = dataclasses.replace(wide.config, projector=projector)
    with warnings.catch_warnings(), pytest.raises(ExportError, match="80 wide inside"):
        write_hf_llava(dataclasses.replace(wide, config=config), tmp_path / "out")
