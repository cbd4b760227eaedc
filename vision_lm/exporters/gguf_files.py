"""llama.cpp's two files: the language model (architecture phi2) and the tower with its projector (clip, "mmproj").

Names and settings as llama.cpp reads them (src/models/phi2.cpp, tools/mtmd/clip.cpp and models/llava.cpp). Every tensor
is read back with the `gguf` package and compared; `llama_cpp_runtime` runs the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_lm.checkpoint import Checkpoint
from vision_lm.config import Config, TextConfig, VisionConfig
from vision_lm.errors import ExportError
from vision_lm.exporters.chat_template import chat_template
from vision_lm.exporters.folder import new_folder
from vision_lm.exporters.gguf_tokenizer import add_tokenizer
from vision_lm.exporters.linears import read_mlp
from vision_lm.exporters.tower import Tower, read_tower
from vision_lm.exporters.verify import Report

LANGUAGE, EYES = "model.gguf", "mmproj.gguf"
PADDING = (122, 116, 104)  # llama.cpp's colour
_PHI = {
    "model.embed_tokens": "token_embd",
    "model.final_layernorm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.dense": "attn_output",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_TOWER = {
    "embeddings.patch_embedding": "v.patch_embd",
    "embeddings.position_embedding": "v.position_embd",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_MLP = {"linear_1": "mm.0", "linear_2": "mm.2"}


def write_gguf(checkpoint: Checkpoint, out: Path, *, language_only: bool = False) -> Report:
    """Write the folder `out` and compare what is in it. Raises ExportError for what llama.cpp does not compute."""
    gguf = _library()
    config = checkpoint.config
    phi = {n.removeprefix("phi."): t for n, t in checkpoint.tensors.items() if n.startswith("phi.")}
    files = {LANGUAGE: _renamed(phi, _PHI, "model.layers.", "blk.")}
    notes = []
    if not language_only and not config.projector.tanh_gelu:
        notes.append("GELU by its tanh approximation in the projector, as llama.cpp computes it")
    tower = None
    if not language_only:
        tower = read_tower(config.vision, checkpoint.tensors)
        if tower.kind == "clip":
            raise ExportError(
                "a class token, which llama.cpp puts after the patches and reads one patch less for; "
                "--language-only writes the language model"
            )
        if config.vision.skip_patches:
            raise ExportError("patches that are left out, which llama.cpp does not do")
        notes += _resizing(config.vision)
        if tower.activation == "gelu":
            notes.append("GELU by its tanh approximation in the tower, too")
        files[EYES] = _eyes(tower, read_mlp(config.projector, checkpoint.tensors))
    with new_folder(
        out, {f"{file}/{n}": t for file, part in files.items() for n, t in part.items()}
    ) as folder:
        _write(gguf, folder / LANGUAGE, "phi2", files[LANGUAGE], lambda w: _language(w, checkpoint))
        if tower is not None:
            _write(gguf, folder / EYES, "clip", files[EYES], lambda w: _sight(w, config, tower))
        wrong = [name for file, tensors in files.items() for name in _differing(gguf, folder / file, tensors)]
    return Report(
        target="gguf",
        verified_with=f"gguf {version('gguf')}: {sum(map(len, files.values()))} tensors read back, {len(wrong)} differ",
        notes=tuple(notes),
        passed=not wrong,
    )


def _resizing(vision: VisionConfig) -> list[str]:
    """What llama.cpp, which pads and scales as Pillow's bicubic does, does otherwise than the checkpoint."""
    notes = []
    own = vision.mean if vision.fill is None else vision.fill
    near = all(abs(255 * level - theirs) < 1 for level, theirs in zip(own, PADDING, strict=True))
    if not vision.resize.startswith("pad") or not near:
        notes.append(
            f"a picture that is not square is padded with {PADDING} by llama.cpp; "
            f"the checkpoint's own way is {vision.resize!r}"
        )
    if vision.interpolation != "bicubic":
        notes.append(f"pictures are scaled bicubically by llama.cpp; here it is {vision.interpolation}")
    return notes


def _library() -> Any:
    try:
        return import_module("gguf")
    except ModuleNotFoundError:
        raise ExportError("no writer here: pip install 'vision-lm[export]'") from None


def _renamed(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], blocks: str, short: str
) -> dict[str, Tensor]:
    """`blocks`N.NAME.weight -> `short`N.ITS NAME.weight; any tensor without a name there is refused."""
    renamed = {}
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        lead = ""
        if name.startswith(blocks):
            number, _, stem = stem.removeprefix(blocks).partition(".")
            lead = f"{short}{number}."
        if stem not in names:
            raise ExportError(f"the tensor {name}, which has no name in a gguf file")
        renamed[f"{lead}{names[stem]}.{leaf}"] = tensor
    return renamed


def _eyes(tower: Tower, mlp: Mapping[str, Tensor]) -> dict[str, Tensor]:
    unread = ("post_layernorm.weight", "post_layernorm.bias")  # llama.cpp would apply it to the last layer
    own = {name: tensor for name, tensor in tower.tensors.items() if name not in unread}
    return _renamed(own, _TOWER, "encoder.layers.", "v.blk.") | _renamed(mlp, _MLP, "layers.", "")


def _language(writer: Any, checkpoint: Checkpoint) -> None:
    config, text = checkpoint.config, checkpoint.config.text
    writer.add_name(config.name)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_layer_norm_eps(text.layer_norm_eps)
    _rotary(writer, text)
    add_tokenizer(writer, checkpoint.tokenizer, text.vocab_size, config.prompt.eos_token_id)
    end = checkpoint.tokenizer.id_to_token(config.prompt.eos_token_id) or ""
    writer.add_chat_template(chat_template(config.prompt, end, marked=True))


def _rotary(writer: Any, text: TextConfig) -> None:
    writer.add_rope_dimension_count(text.rotary_dim)
    writer.add_rope_freq_base(text.rope_theta)


def _sight(writer: Any, config: Config, tower: Tower) -> None:
    writer.add_name(config.name)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(tower.image_size)
    writer.add_vision_patch_size(tower.patch_size)
    writer.add_vision_embedding_length(tower.width)
    writer.add_vision_feed_forward_length(tower.inner)
    writer.add_vision_projection_dim(config.text.hidden_size)
    writer.add_vision_block_count(tower.layers)
    writer.add_vision_head_count(tower.heads)
    writer.add_vision_attention_layernorm_eps(tower.eps)
    writer.add_vision_image_mean(list(config.vision.mean))
    writer.add_vision_image_std(list(config.vision.std))
    writer.add_vision_use_gelu(True)
    # Counted from the embeddings, 0; without it llama.cpp leaves the last layer out.
    writer.add_array("clip.vision.feature_layer", [tower.layers + 1 + layer for layer in tower.read])


def _write(gguf: Any, path: Path, kind: str, tensors: Mapping[str, Tensor], describe: Any) -> None:
    writer = gguf.GGUFWriter(path, kind)
    describe(writer)
    for name, tensor in tensors.items():
        values = tensor.detach().float().contiguous().numpy()
        # Biases, norms and what is added or convolved must be float32 there; products keep their type.
        plain = tensor.ndim != 2 or name.endswith("position_embd.weight") or tensor.dtype == torch.float32
        half = (
            gguf.GGMLQuantizationType.BF16
            if tensor.dtype == torch.bfloat16
            else gguf.GGMLQuantizationType.F16
        )
        if plain:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, half), raw_dtype=half)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _differing(gguf: Any, path: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that a reader does not find as they are here, in number and in kind."""
    found = {}
    for one in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(one.data, one.tensor_type)
        found[one.name] = torch.from_numpy(values.reshape(*reversed(one.shape.tolist())).copy())
    wrong = [name for name, t in tensors.items() if name in found and not torch.equal(found[name], t.float())]
    return sorted({*wrong, *(found.keys() ^ tensors.keys())})
