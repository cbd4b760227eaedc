"""Composing a checkpoint from open_clip's and transformers' own layouts, as they write them themselves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import VIT, random_phi, text_config, train_tokenizer
from vision_lm.checkpoint import read_checkpoint
from vision_lm.cli import main
from vision_lm.create import create
from vision_lm.errors import CheckpointError
from vision_lm.importers.open_clip import read_tower, trained_model
from vision_lm.model import VisionLM
from vision_lm.skeleton import build_encoder_on_meta

MODEL: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESSING = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A whole CLIP of random weights that needs QuickGELU, as open_clip saves one for the hub."""
    folder = tmp_path / "tiny-clip"
    folder.mkdir()
    model = MODEL | {"quick_gelu": True}
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**model).state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": model, "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def phi_folder(tmp_path: Path) -> Path:
    """A Phi of random weights, float16 and in several files, as transformers saves one."""
    return save_phi(tmp_path / "tiny-phi")


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8))


def save_phi(folder: Path, vocab_size: int = 416) -> Path:
    torch.manual_seed(1)
    phi = random_phi(text_config(vocab_size=vocab_size)).half()
    phi.save_pretrained(folder, max_shard_size="100KB")
    train_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def phi_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_tensor_is_the_original(clip_folder: Path, phi_folder: Path, tmp_path: Path) -> None:
    """The tower as far as it is read, and the whole Phi with its lm_head.bias, bit for bit and under their own names."""
    create(str(clip_folder), str(phi_folder), tmp_path / "out")
    tensors = read_checkpoint(tmp_path / "out").tensors

    assert len(list(phi_folder.glob("model-*.safetensors"))) > 1
    phi = phi_tensors(phi_folder)
    assert phi["lm_head.bias"].abs().min() > 0
    for name, tensor in phi.items():
        assert torch.equal(tensors[f"phi.{name}"], tensor), name
        assert tensors[f"phi.{name}"].dtype == torch.float16

    clip = load_file(clip_folder / "open_clip_model.safetensors")
    tower = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.tower.")}
    for name, tensor in tower.items():
        assert torch.equal(tensor, clip[name.replace("encoder.tower.", "visual.")]), name
    blocks = {name.split(".")[4] for name in tower if "resblocks" in name}
    assert blocks == {"0", "1"}, "the last layer is never read"
    assert {name.split(".")[0] for name in tensors} == {"encoder", "phi", "projector"}


def test_the_config_says_what_the_sources_say(clip_folder: Path, phi_folder: Path, tmp_path: Path) -> None:
    """Activation, preprocessing, sizes, special tokens and the untrained projector all reach the config."""
    config = create(str(clip_folder), str(phi_folder), tmp_path / "out")
    assert config == read_checkpoint(tmp_path / "out").config
    assert config.name == "tiny-clip+tiny-phi"
    assert config.vision.quick_gelu
    assert config.vision.mean == (0.4, 0.5, 0.6)
    assert config.vision.std == (0.2, 0.3, 0.4)
    assert (config.vision.resize, config.vision.interpolation) == ("crop", "bilinear")
    assert config.text == text_config()
    assert (config.projector.in_features, config.projector.hidden_features) == (32, 64)
    assert config.dtype == "float16"
    assert not config.projector_trained
    tokenizer = train_tokenizer()
    assert config.prompt.image_token_id == tokenizer.get_vocab_size()
    assert config.prompt.eos_token_id == tokenizer.token_to_id("<|endoftext|>")


def test_features_are_open_clips_own(clip_folder: Path, phi_folder: Path, tmp_path: Path) -> None:
    """open_clip, given the same folder, sees the same pixels and computes the same features."""
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    create(str(clip_folder), str(phi_folder), tmp_path / "out")
    encoder = VisionLM.from_pretrained(tmp_path / "out", "cpu", "float32").encoder
    with torch.no_grad():
        expected = clip.visual.forward_intermediates(
            preprocess(image)[None], indices=[1]
        )  # the second of three layers
        features = encoder(encoder.preprocess(image)[None])
    expected = expected["image_intermediates"][0].flatten(2).transpose(1, 2)  # (1, N, Dv)
    torch.testing.assert_close(encoder.preprocess(image), preprocess(image), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.patches, expected, atol=1e-4, rtol=1e-4)


def test_a_siglip_tower_is_read_as_timm_reads_it(
    phi_folder: Path, tmp_path: Path, picture: Image.Image
) -> None:
    """SigLIP's layout in open_clip: a timm ViT with attention pooling. Features, and an answer."""
    folder = tmp_path / "tiny-siglip"
    folder.mkdir()
    vision = {
        "image_size": 160,
        "timm_model_name": "test_vit3",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    model = {"embed_dim": 96, "vision_cfg": vision, "text_cfg": MODEL["text_cfg"]}
    torch.manual_seed(0)
    clip = open_clip.CLIP(**model).eval()
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    settings = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model, "preprocess_cfg": settings})
    )
    create(str(folder), str(phi_folder), tmp_path / "out")
    vlm = VisionLM.from_pretrained(tmp_path / "out", "cpu", "float32")
    pixels = vlm.encoder.preprocess(picture)[None]
    trunk: Any = clip.visual.trunk
    with torch.no_grad():
        hidden = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(pixels)))
        for block in trunk.blocks[:-1]:
            hidden = block(hidden)
        ours = vlm.encoder(pixels).patches
    torch.testing.assert_close(ours, hidden[:, trunk.num_prefix_tokens :], atol=1e-5, rtol=1e-4)
    assert vlm.ask(picture, "what?", max_tokens=4).finish_reason in ("length", "stop")


@pytest.mark.parametrize(
    "settings",
    [
        {"resize_mode": "shortest"},
        {"resize_mode": "squash"},
        {"resize_mode": "longest"},
        {"resize_mode": "longest", "fill_color": 200},
        {"resize_mode": "longest", "fill_color": [10, 200, 30]},
    ],
)
def test_pictures_are_fitted_as_open_clip_fits_them(
    clip_folder: Path, settings: dict[str, Any], picture: Image.Image
) -> None:
    """A picture of 70 x 40 pixels cut, stretched, or padded with the fill colour: the pixels of open_clip's transform."""
    preprocessing = PREPROCESSING | settings
    change(clip_folder / "open_clip_config.json", preprocess_cfg=preprocessing)
    encoder = build_encoder_on_meta(read_tower(str(clip_folder)).config)
    if isinstance(color := settings.get("fill_color"), list):
        preprocessing["fill_color"] = tuple(color)  # torchvision's pad takes no list
    theirs = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(32, **preprocessing), False
    )
    torch.testing.assert_close(encoder.preprocess(picture), theirs(picture), atol=1e-5, rtol=0)


def test_without_a_fill_colour_a_picture_is_padded_with_the_mean(picture: Image.Image) -> None:
    """As in LLaVA: the padding is zero once it is normalised, up to the rounding to 8 bits."""
    config = dataclasses.replace(VIT, resize="pad", mean=(0.4, 0.5, 0.6))
    pixels = build_encoder_on_meta(config).preprocess(picture)  # (3, S, S)
    assert pixels[:, 0].abs().max() < 0.01


def test_the_seed_draws_the_projector_and_nothing_else(
    clip_folder: Path, phi_folder: Path, tmp_path: Path
) -> None:
    """The same seed gives the same file; another seed gives another projector, whatever the global generator did."""
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(name) + seed * 17)
        create(str(clip_folder), str(phi_folder), tmp_path / name, seed)
    files = [(tmp_path / name / "model.safetensors") for name in "abc"]
    assert files[0].read_bytes() == files[1].read_bytes()
    first, other = load_file(files[0]), load_file(files[2])
    differ = {name for name in first if not torch.equal(first[name], other[name])}
    assert differ == {name for name in first if name.startswith("projector.")}


def test_a_row_is_added_where_every_row_is_a_token(clip_folder: Path, tmp_path: Path) -> None:
    """Without a free embedding row the placeholder gets one of its own, which is never generated."""
    size = train_tokenizer().get_vocab_size()
    phi = save_phi(tmp_path / "full-phi", vocab_size=size)
    config = create(str(clip_folder), str(phi), tmp_path / "out")
    assert (config.text.vocab_size, config.prompt.image_token_id) == (size + 1, size)
    bias, old = (
        read_checkpoint(tmp_path / "out").tensors["phi.lm_head.bias"],
        phi_tensors(phi)["lm_head.bias"],
    )
    assert torch.equal(bias[:-1], old)
    assert bias[-1] < -1000


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"qk_layernorm": True}, "qk_layernorm True"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True"),
        ({"num_hidden_layers": 3}, "missing tensors: model.layers.2."),
        ({"intermediate_size": 96}, "wrong shapes: model.layers.0.mlp.fc1.bias is [128], expected [96]"),
    ],
)
def test_a_language_model_that_we_do_not_compute_is_refused(
    clip_folder: Path, phi_folder: Path, tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    """Another architecture, or a Phi with settings that our decoder lacks, is refused rather than computed wrongly."""
    change(phi_folder / "config.json", **changes)
    with pytest.raises(CheckpointError) as caught:
        create(str(clip_folder), str(phi_folder), tmp_path / "out")
    assert expected in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rotary_settings_of_transformers_4(clip_folder: Path, phi_folder: Path, tmp_path: Path) -> None:
    """Published configs keep rotary settings beside the rest, newer ones in `rope_parameters`; both are read."""
    path = phi_folder / "config.json"
    raw = json.loads(path.read_text())
    assert raw.pop("rope_parameters")["partial_rotary_factor"] == 0.5
    path.write_text(json.dumps(raw | {"partial_rotary_factor": 0.25, "rope_theta": 5000.0}))
    text = create(str(clip_folder), str(phi_folder), tmp_path / "out").text
    assert (text.partial_rotary_factor, text.rope_theta) == (0.25, 5000.0)


@pytest.mark.parametrize(
    ("name", "tag", "quick_gelu"),
    [
        ("ViT-L-14-336", "openai", True),
        ("ViT-L-14-336-quickgelu", "openai", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-16", "dfn2b", True),
    ],
)
def test_quick_gelu_follows_the_weights(name: str, tag: str, quick_gelu: bool) -> None:
    """The activation is the one that the tag's weights were trained with, whichever config was named."""
    assert bool(trained_model(name, tag).get("quick_gelu")) is quick_gelu


def test_quick_gelu_mismatches_are_refused() -> None:
    """Where no config of open_clip has the weights' activation, nothing is guessed."""
    with pytest.raises(CheckpointError, match="trained with GELU"):
        trained_model("roberta-ViT-B-32", "laion2b_s12b_b32k")


@pytest.mark.parametrize(
    ("vision", "expected"),
    [
        ("ViT-L-14-336/laion2b", "'laion2b' is no folder and no tag of ViT-L-14-336; its tags: openai"),
        ("ViT-L-14-336", "no tag of ViT-L-14-336"),
        ("ViT-L-14-336/openai", "the hub cannot be reached"),
        ("nobody/nothing", "the hub cannot be reached"),
        ("nothing", "no such folder"),
    ],
)
def test_vision_sources_that_are_not_there(
    phi_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vision: str, expected: str
) -> None:
    """An unknown model or tag names what there is; without a network a known one says so."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(CheckpointError) as caught:
        create(vision, str(phi_folder), tmp_path / "out")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_creates_and_says_that_the_projector_is_untrained(
    clip_folder: Path, phi_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line: create, caption with a warning, and refuse to write over a checkpoint."""
    out, image = str(tmp_path / "out"), str(tmp_path / "grey.png")
    Image.new("RGB", (40, 30), "grey").save(image)
    arguments = ["create", "--vision", str(clip_folder), "--text", str(phi_folder), "--out", out]
    assert main(arguments) == 0
    assert "UNTRAINED" in capsys.readouterr().out
    for command in (["caption", image], ["ask", image, "What is it?"]):
        assert main([*command, "--model", out]) == 0
        printed = capsys.readouterr()
        assert len(printed.out.splitlines()) == 1
        assert "untrained" in printed.err
    assert main(arguments) == 2
    assert "holds a checkpoint already" in capsys.readouterr().err


def test_the_command_without_a_network_is_one_line(
    clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub id that is not on this machine: what cannot be had, and what to do."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    out = str(tmp_path / "out")
    assert main(["create", "--vision", str(clip_folder), "--text", "microsoft/phi-1_5", "--out", out]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(
        "vision-lm: error: microsoft/phi-1_5: not on this machine, and the hub cannot be reached"
    )
    assert not (tmp_path / "out").exists()


def test_the_command_into_a_place_that_cannot_be_written_is_one_line(
    clip_folder: Path, phi_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the system refuses is said like every other mistake."""
    (tmp_path / "file").write_text("")
    arguments = [
        "--vision",
        str(clip_folder),
        "--text",
        str(phi_folder),
        "--out",
        str(tmp_path / "file" / "out"),
    ]
    assert main(["create", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line == f"vision-lm: error: {tmp_path / 'file' / 'out'}: Not a directory"
