"""`vision-lm info`: what a checkpoint is made of, what it needs, and where it came from."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vision_lm.checkpoint import Checkpoint

MIB = 1 << 20
UNKNOWN = "unknown"


def run(options: argparse.Namespace) -> int:
    """A line for every fact."""
    from vision_lm.checkpoint import EMBEDDED, checkpoint_folder, read_checkpoint
    from vision_lm.model_card import read_licence
    from vision_lm.model_files import CARD
    from vision_lm.origin import read_origin

    checkpoint = read_checkpoint(options.model)
    folder = checkpoint_folder(options.model)
    lines = facts(checkpoint)
    lines["memory"] = ", ".join(
        f"{size / MIB:,.0f} MiB in {kind}" for kind, size in memory(checkpoint).items()
    )
    origin = read_origin(folder)
    stated = read_licence(folder / CARD) or (origin and origin.licence)
    lines["licence"] = stated or UNKNOWN
    lines["origin"] = "part of vision-lm" if folder.parent == EMBEDDED else str(origin or UNKNOWN)
    lines["from"] = str(folder)
    for key, value in lines.items():
        print(f"{key + ':':<14}{value}")
    return 0


def facts(checkpoint: Checkpoint) -> dict[str, str]:
    """Sizes and layers of the parts."""
    config, text = checkpoint.config, checkpoint.config.text
    sizes = {"encoder": 0, "projector": 0, "phi": 0}
    for name, tensor in checkpoint.tensors.items():
        sizes[name.partition(".")[0]] += tensor.numel()
    patches, width = checkpoint.patch_layout
    tower = config.vision.tower.get("timm_model_name") or "ViT of {layers} layers, {width} wide".format(
        **{"layers": 12, "width": 768} | config.vision.tower
    )
    return {
        "name": config.name,
        "weights": f"{config.dtype}, {sum(sizes.values()):,} parameters",
        "encoder": f"{tower}, {config.vision.image_size} pixels a side, {sizes['encoder']:,} parameters",
        "image tokens": f"{patches + config.pooled_tokens}, from patches {width} wide",
        "projector": f"{'trained' if config.projector_trained else 'UNTRAINED'}, {sizes['projector']:,} parameters",
        "language": f"Phi of {text.num_hidden_layers} layers, {text.hidden_size} wide, {sizes['phi']:,} parameters",
        "vocabulary": f"{checkpoint.tokenizer.get_vocab_size():,} tokens in {text.vocab_size:,} rows",
        "context": f"{text.max_position_embeddings:,} tokens",
    }


def memory(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of the weights in memory, by how they are kept; the cache of keys and values comes on top.

    int8 and int4 are the matrices of the language model's layers and head, with a float32 scale a row or a bfloat16
    scale and zero a group of 128 (engine/quantize.py, without its padding); all else is in bfloat16.
    """
    everything = matrices = rows = 0
    for name, tensor in checkpoint.tensors.items():
        everything += tensor.numel()
        if name.startswith("phi.") and tensor.ndim == 2 and "embed_tokens" not in name:
            matrices += tensor.numel()
            rows += tensor.shape[0]
    rest = 2 * (everything - matrices)
    return {
        "bf16": 2 * everything,
        "int8": rest + matrices + 4 * rows,
        "int4": rest + matrices // 2 + 4 * (matrices // 128),
    }
