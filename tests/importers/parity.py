"""What every imported checkpoint must share with the original: features, tokens, prompt, logits, greedy answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from tests.conftest import train_tokenizer
from tests.test_oracles import decode
from vision_lm.checkpoint import read_checkpoint
from vision_lm.importers.importing import import_checkpoint
from vision_lm.model import VisionLM
from vision_lm.prompts import Turn

QUESTION = "How many cats are there?"
PICTURE = -200  # in an oracle's prompt: here stand the tokens of the picture


@dataclass(frozen=True)
class Original:
    """What the original says of one picture and QUESTION, in float32."""

    pixels: Tensor  # (1, 3, S, S), or of a sheet with the picture's parts
    features: Tensor  # (1, N, Dv), the parts' beside the whole's
    tokens: Tensor  # (1, N, Dt)
    ids: list[int]  # of the prompt, PICTURE for the picture
    logits: Tensor  # (V,), of the first token
    greedy: list[int]  # 32 tokens


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 70, 3), dtype=np.uint8))


def save(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], **files: dict[str, Any]) -> Path:
    """A checkpoint in another project's layout: its config, one safetensors file, a tokenizer."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    train_tokenizer().save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def imported(source: Path, out: Path) -> VisionLM:
    import_checkpoint(source, out)
    return VisionLM(read_checkpoint(out), device="cpu", dtype="float32")


def chunks(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """A prompt's ids as LLaVA and its kin make them: each text between two pictures for itself."""
    ids: list[int] = []
    for number, text in enumerate(prompt.split("<image>")):
        ids += [PICTURE] * (number > 0) + tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def spliced(phi: Any, ids: list[int], tokens: Tensor) -> Tensor:
    """Embeddings (1, T, Dt) of a prompt with the picture's tokens (1, N, Dt) in place."""
    embed = phi.get_input_embeddings()
    parts = [tokens[0] if one == PICTURE else embed(torch.tensor([one])) for one in ids]
    return torch.cat(parts)[None]


def said(phi: Any, ids: list[int], tokens: Tensor) -> tuple[Tensor, list[int]]:
    """First-step logits (V,) and 32 greedy tokens of transformers' Phi."""
    embeddings = spliced(phi, ids, tokens)
    first = phi(inputs_embeds=embeddings).logits[0, -1]
    greedy: list[int] = []
    for _ in range(32):
        greedy.append(int(phi(inputs_embeds=embeddings).logits[0, -1].argmax()))
        new = phi.get_input_embeddings()(torch.tensor([[greedy[-1]]]))
        embeddings = torch.cat([embeddings, new], dim=1)
    return first, greedy


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Within 1e-4 of the largest value."""
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())


def assert_parity(
    vlm: VisionLM,
    original: Original,
    head_bias: Tensor | float = 0.0,
    rounded: float = 1e-3,
    image: Image.Image | None = None,
    stop: tuple[str, ...] = (),
) -> None:
    """Each stage on its own and the whole. `head_bias`: what our logits have that the original's lack.

    `rounded`: the share of pixels that may be one level of 255 apart; `image`: what the original was shown, if not `picture`.
    `stop`: the texts that end its answers, beside the token.
    """
    assert vlm.config.prompt.eos_token_id == train_tokenizer().token_to_id("<|endoftext|>")
    assert vlm.config.prompt.stop == stop
    image = image or picture()
    pixels = vlm.encoder.preprocess(image)[None]
    level = 1 / 255 / min(vlm.config.vision.std)
    difference = (pixels - original.pixels).abs()
    # Where a value lies between two levels of 255, its rounding may go either way.
    assert difference.max() <= 1.01 * level and (difference > 1e-5).float().mean() <= rounded
    features = vlm.encoder(original.pixels).patches
    assert close(features, original.features)
    tokens = vlm.projector(features)
    assert close(tokens, original.tokens)

    placeholder = vlm.config.prompt.image_token_id
    prompt = vlm.prompts.build([Turn(QUESTION, (image,))]).ids
    assert prompt.count(placeholder) == tokens.shape[1]
    expected = [
        one for id_ in original.ids for one in ([placeholder] * tokens.shape[1] if id_ == PICTURE else [id_])
    ]
    assert prompt == expected

    embeddings = vlm.engine.decoder.embed(prompt)
    places = torch.tensor([place for place, one in enumerate(prompt) if one == placeholder])
    opened = int(places[-1]) + 1 if vlm.config.text.attention == "prefix" else 0
    ours, greedy = decode(vlm.engine.decoder, [embeddings.index_copy(0, places, tokens[0])], 32, opened)
    size = len(original.logits)
    assert close(ours[0, 0, :size], original.logits + head_bias)
    if isinstance(head_bias, Tensor):
        return
    assert greedy[0] == original.greedy
    if not difference.any():
        answer = vlm.ask(image, QUESTION, max_tokens=32)
        assert answer.tokens and list(answer.tokens) == original.greedy[: len(answer.tokens)]
