"""The shapes that can be measured without their weights: layout alone, at true size."""

from __future__ import annotations

from vision_lm.checkpoint import EMBEDDED
from vision_lm.config import Config, ProjectorConfig, PromptConfig, TextConfig, VisionConfig
from vision_lm.errors import RequestError
from vision_lm.model_files import CONFIG

PLACEHOLDER, END = 50_295, 50_256  # the first row that is no token of Phi's tokenizer, and the end of a text

PHI_1_5 = TextConfig(
    vocab_size=51_200,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=2048,
)
PHI_2 = TextConfig(
    vocab_size=51_200,
    hidden_size=2560,
    intermediate_size=10_240,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=2048,
    partial_rotary_factor=0.4,
)
SHAPES = ("mini", "phi-1_5", "phi-2")


def shape_config(name: str) -> Config:
    """The config of a shape; with a real Phi goes ViT-L/14 at 336 pixels. Raises RequestError for an unknown name."""
    if name not in SHAPES:
        raise RequestError(f"shape {name!r} is unknown; give {', '.join(SHAPES)}")
    if name == "mini":
        return Config.load(EMBEDDED / "mini" / CONFIG)
    text = PHI_1_5 if name == "phi-1_5" else PHI_2
    return Config(
        name=name,
        vision=vit_large(),
        projector=ProjectorConfig(1024, text.hidden_size, text.hidden_size),
        text=text,
        prompt=PromptConfig(image_token_id=PLACEHOLDER, eos_token_id=END),
        dtype="bfloat16",
    )


def vit_large() -> VisionConfig:
    """What `vision-lm create --vision ViT-L-14-336/openai` writes."""
    from open_clip import get_model_config, get_pretrained_cfg

    model = get_model_config("ViT-L-14-336-quickgelu")
    published = get_pretrained_cfg("ViT-L-14-336", "openai")
    return VisionConfig(
        embed_dim=model["embed_dim"],
        tower=model["vision_cfg"],
        image_size=336,
        mean=published["mean"],
        std=published["std"],
        quick_gelu=True,
        resize="crop",
    )
