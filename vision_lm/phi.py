"""The language model as transformers builds it: for training, and as the oracle of our own decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vision_lm.config import TextConfig

if TYPE_CHECKING:
    from transformers import PhiConfig, PhiForCausalLM


def phi_config(config: TextConfig) -> PhiConfig:
    """Our text config as transformers' PhiConfig, whichever way this version keeps the rotary settings."""
    from transformers import PhiConfig

    rotary: dict[str, Any] = {
        "rope_theta": config.rope_theta,
        "partial_rotary_factor": config.partial_rotary_factor,
    }
    return PhiConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.max_position_embeddings,
        layer_norm_eps=config.layer_norm_eps,
        rope_parameters={"rope_type": "default", **rotary},
        tie_word_embeddings=False,
        hidden_act="gelu_pytorch_tanh",  # gelu_new as one fused kernel: the same function, faster
        bos_token_id=None,
        eos_token_id=None,
        **rotary,
    )


def text_config(config: PhiConfig) -> TextConfig:
    """transformers' PhiConfig as ours. transformers 5 keeps rotary settings in `rope_parameters`, 4 beside the rest."""
    rotary = getattr(config, "rope_parameters", None) or {}
    return TextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads or config.num_attention_heads,
        max_position_embeddings=config.max_position_embeddings,
        rope_theta=float(rotary.get("rope_theta") or config.rope_theta),
        partial_rotary_factor=float(rotary.get("partial_rotary_factor") or config.partial_rotary_factor),
        layer_norm_eps=config.layer_norm_eps,
    )


def build_phi(config: TextConfig) -> PhiForCausalLM:
    """A PhiForCausalLM of these sizes with fresh random weights."""
    from transformers import PhiForCausalLM

    return PhiForCausalLM(phi_config(config))
