"""transformers' own Llava with a Phi, saved by transformers, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils.chat_template_utils import render_jinja_template

from tests.conftest import randomise, text_config, train_tokenizer
from tests.importers.parity import (
    PICTURE,
    QUESTION,
    Original,
    assert_parity,
    chunks,
    imported,
    picture,
)
from vision_lm.bench.shapes import PHI_2
from vision_lm.config import PromptConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers.chat_template import prompt_settings
from vision_lm.importers.importing import check
from vision_lm.importers.llava_hf import convert
from vision_lm.importers.source import Source
from vision_lm.phi import phi_config
from vision_lm.prompts import PromptBuilder, Turn

IMAGE_ID = 410
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def llava(vision: Any = None, **changes: Any) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision or CLIPVisionConfig(**SIZES),
        text_config=phi_config(text_config(max_position_embeddings=512)),
        image_token_index=IMAGE_ID,
        **changes,
    )
    model = LlavaForConditionalGeneration(config).eval()
    randomise(model)
    return model


def saved(model: LlavaForConditionalGeneration, folder: Path) -> Path:
    """As transformers saves it, with a processor and a tokenizer that has the token <image>."""
    model.save_pretrained(folder)
    side = model.config.vision_config.image_size
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side).save_pretrained(folder)
    tokenizer = train_tokenizer()
    filler = [f"<filler{n}>" for n in range(IMAGE_ID - tokenizer.get_vocab_size())]
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in [*filler, "<image>"]])
    assert tokenizer.token_to_id("<image>") == IMAGE_ID
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@torch.no_grad()
def original(model: LlavaForConditionalGeneration, side: int = 32) -> Original:
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pixels = processor(picture(), return_tensors="pt")["pixel_values"]
    tower = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    layers = model.config.vision_feature_layer
    features = torch.cat(
        [tower[layer] for layer in ([layers] if isinstance(layers, int) else layers)], dim=-1
    )
    if model.config.vision_feature_select_strategy == "default":
        features = features[:, 1:]
    tokens = torch.stack(list(model.get_image_features(pixels).pooler_output))
    ids = chunks(f"USER: <image>\n{QUESTION} ASSISTANT:", train_tokenizer())
    whole = [one for id_ in ids for one in ([IMAGE_ID] * tokens.shape[1] if id_ == PICTURE else [id_])]
    first, greedy = None, []
    for _ in range(32):
        logits = model(input_ids=torch.tensor([whole + greedy]), pixel_values=pixels).logits[0, -1]
        first = logits if first is None else first
        greedy.append(int(logits.argmax()))
    assert first is not None
    return Original(pixels, features, tokens, ids, first, greedy)


@pytest.mark.parametrize("layer", [-2, 1])
def test_clip(tmp_path: Path, layer: int) -> None:
    model = llava(vision_feature_layer=layer)
    vlm = imported(saved(model, tmp_path / "theirs"), tmp_path / "ours")
    assert vlm.config.prompt.image_token_id == IMAGE_ID  # the token's own row, and no text encodes to it
    assert vlm.prompts.tokenizer.token_to_id("<image>") is None
    assert_parity(vlm, original(model))


def test_preprocessing_as_a_whole_processor_saves_it(tmp_path: Path) -> None:
    """From its version 5 on transformers writes one file for all: what it does to pictures is not lost in it."""
    folder = saved(llava(), tmp_path / "theirs")
    (folder / "preprocessor_config.json").unlink()
    side, levels = {"height": 32, "width": 32}, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    images = CLIPImageProcessor(size=side, do_center_crop=False, resample=2, **levels)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), image_token="<image>")
    LlavaProcessor(images, tokenizer, patch_size=8).save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    vision = imported(folder, tmp_path / "ours").config.vision
    assert (vision.mean, vision.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (vision.resize, vision.interpolation) == ("squash", "bilinear")


def test_names_of_before_transformers_5_6(tmp_path: Path) -> None:
    """With `vision_model.` inside the tower's names, the shape of every checkpoint on the hub."""
    model = llava()
    folder = saved(model, tmp_path / "theirs")
    tensors = load_file(folder / "model.safetensors")
    assert any(name.startswith("vision_tower.encoder.") for name in tensors)
    old = {name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in tensors.items()}
    save_file(old, folder / "model.safetensors")
    assert_parity(imported(folder, tmp_path / "ours"), original(model))


@pytest.mark.parametrize("strategy", ["full", "default"])
def test_siglip(tmp_path: Path, strategy: str) -> None:
    """`default` takes SigLIP's first patch for a class token and drops it."""
    sizes = SIZES | {"image_size": 36}  # four patches a side, and four pixels that none of them sees
    model = llava(SiglipVisionConfig(**sizes), vision_feature_select_strategy=strategy)
    vlm = imported(saved(model, tmp_path / "theirs"), tmp_path / "ours")
    assert vlm.prompts.tokens_per_image == (16 if strategy == "full" else 15)
    assert_parity(vlm, original(model, 36))


def test_a_head_bias_on_disk_is_kept(tmp_path: Path) -> None:
    """transformers' Llava has none and drops it; the language model was trained with it."""
    model = llava()
    folder = saved(model, tmp_path / "theirs")
    torch.manual_seed(1)
    bias = torch.randn(416)
    save_file(
        load_file(folder / "model.safetensors") | {"language_model.lm_head.bias": bias},
        folder / "model.safetensors",
    )
    vlm = imported(folder, tmp_path / "ours")
    assert torch.equal(vlm.checkpoint.tensors["phi.lm_head.bias"], bias)
    assert_parity(vlm, original(model), head_bias=bias)


def test_several_layers(tmp_path: Path) -> None:
    """Read side by side: the projector sees them as one wide feature."""
    model = llava(vision_feature_layer=[-3, -1])
    vlm = imported(saved(model, tmp_path / "theirs"), tmp_path / "ours")
    assert_parity(vlm, original(model))


TEMPLATES = {
    "llava-hf's": (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}"
        "{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "a system text": (
        "{{ 'You help. {}' }}{% for message in messages %}{% if message['role'] == 'user' %}{{ ' USER: ' }}"
        "{% else %}{{ ' ' }}{% endif %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{% if message['role'] == 'user' %}{{ ' ASSISTANT:' }}{% else %}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "pictures first": (
        "{% for message in messages %}{% for part in message['content'] if part['type'] == 'image' %}"
        "{{ '<image>' }}{% endfor %}{% for part in message['content'] if part['type'] == 'text' %}"
        "{% if message['role'] == 'user' %}{{ 'Question: ' + part['text'] + '\\n\\nAnswer:' }}"
        "{% else %}{{ ' ' + part['text'] + eos_token }}{% endif %}{% endfor %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_becomes_the_prompt(name: str) -> None:
    """What transformers renders of a first question, our prompt builder makes too, token by token."""
    tokenizer = train_tokenizer()
    settings = prompt_settings(Source("it", Path("it"), {}), TEMPLATES[name], "<|endoftext|>")
    builder = PromptBuilder(tokenizer, PromptConfig(IMAGE_ID, 0, **settings), 1)
    for content in (
        [{"type": "image"}, {"type": "text", "text": QUESTION}],
        [{"type": "text", "text": QUESTION}],
    ):
        theirs, _ = render_jinja_template(
            [[{"role": "user", "content": content}]],
            chat_template=TEMPLATES[name],
            add_generation_prompt=True,
            eos_token="<|endoftext|>",
        )
        ids = [IMAGE_ID if one == PICTURE else one for one in chunks(theirs[0], tokenizer)]
        assert builder.build([Turn(QUESTION, ("x",) * (len(content) - 1))]).ids == ids
    messages = [("user", "A cat?"), ("assistant", "Yes."), ("user", QUESTION)]
    theirs, _ = render_jinja_template(
        [[{"role": role, "content": [{"type": "text", "text": text}]} for role, text in messages]],
        chat_template=TEMPLATES[name],
        add_generation_prompt=True,
        eos_token="<|endoftext|>",
    )
    if "eos_token" in TEMPLATES[name]:
        tokenizer.encode_special_tokens = False
        assert (
            builder.build([Turn("A cat?", (), "Yes."), Turn(QUESTION)]).ids == tokenizer.encode(theirs[0]).ids
        )


def test_a_template_that_our_prompts_cannot_say_is_refused() -> None:
    with pytest.raises(CheckpointError, match="chat template"):
        prompt_settings(Source("it", Path("it"), {}), "{{ messages[0]['content'][1]['text'] }}<image>", "")
    with pytest.raises(CheckpointError, match="cannot be used"):
        prompt_settings(Source("it", Path("it"), {}), "{{ ''.__class__.__mro__[1].__subclasses__() }}", "")


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_every_tensor_of_the_public_sizes_is_used(tower: str) -> None:
    """CLIP-L/14-336 or SigLIP-SO400M-384 with phi-2, on the meta device: all names and shapes are consumed."""
    kind: Any = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[tower]
    sizes = {
        "clip": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "image_size": 336},
        "siglip": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "image_size": 384,
        },
    }[tower]
    config = LlavaConfig(
        vision_config=kind(**sizes, num_attention_heads=16, patch_size=14),
        text_config=phi_config(PHI_2),
        image_token_index=51_000,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
    )
    with torch.device("meta"):
        tensors = on_disk(LlavaForConditionalGeneration(config).state_dict())
    raw = json.loads(config.to_json_string())
    source = Source("full", Path("full"), raw)
    converted = convert(source, tensors, train_tokenizer())
    check(converted, source)
    assert converted.config.text == PHI_2


def on_disk(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that `save_pretrained` gives a state dict."""
    renamed = {
        "lm_head.": "language_model.lm_head.",
        "model.language_model.": "language_model.model.",
        "model.": "",
    }

    def of(name: str) -> str:
        start = next(one for one in renamed if name.startswith(one))
        return renamed[start] + name.removeprefix(start)

    return {of(name): tensor for name, tensor in state.items()}
