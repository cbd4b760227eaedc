"""Our tower, splice and decoder against transformers, in float32 with the same random weights."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaConfig, LlavaForConditionalGeneration

from tests.conftest import VIT, random_checkpoint, random_phi, randomise, text_config
from vision_lm.checkpoint import Checkpoint, read_checkpoint
from vision_lm.config import TextConfig
from vision_lm.encoder import ImageEncoder
from vision_lm.engine import Engine, Prompt, Sampling, TorchDecoder
from vision_lm.engine.cpu.decoder import CpuDecoder
from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.torch_decoder import Chunk, attend_chunk, attend_rows
from vision_lm.model import VisionLM
from vision_lm.phi import build_phi, phi_config
from vision_lm.prompts import Turn

# Head layouts of the models that matter, at reduced width.
LAYOUTS: dict[str, dict[str, Any]] = {
    "mini": {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4},
    "phi-1.5": {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3},
    "phi-2": {
        "hidden_size": 320,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "partial_rotary_factor": 0.4,
    },
    "grouped": {"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 2},
}

DECODERS = ["torch", "kernels"]


def decoder_of(kind: str, config: TextConfig, weights: dict[str, Tensor]) -> TorchDecoder:
    """The reference decoder, or the one with CPU kernels."""
    if kind == "kernels":
        return CpuDecoder(config, weights, torch.float32)
    return TorchDecoder(config, weights, torch.device("cpu"), torch.float32)


def clip_config(*, quick_gelu: bool) -> CLIPVisionConfig:
    """`VIT` as transformers describes it."""
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        hidden_act="quick_gelu" if quick_gelu else "gelu",
    )


def tower_names(clip: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """transformers' CLIP tower under open_clip's names, the first `layers` of it."""
    ours = {
        "class_embedding": clip["embeddings.class_embedding"],
        "positional_embedding": clip["embeddings.position_embedding.weight"],
        "conv1.weight": clip["embeddings.patch_embedding.weight"],
        "ln_pre.weight": clip["pre_layrnorm.weight"],
        "ln_pre.bias": clip["pre_layrnorm.bias"],
    }
    renamed = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for number in range(layers):
        block, layer = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
        for kind in ("weight", "bias"):
            parts = [clip[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            ours[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
            ours |= {f"{block}.{a}.{kind}": clip[f"{layer}.{b}.{kind}"] for a, b in renamed.items()}
    return ours


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Within 1e-4 of the largest value."""
    return bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())


def decode(
    decoder: TorchDecoder, prompts: list[Tensor], steps: int, prefix: int = 0
) -> tuple[Tensor, list[list[int]]]:
    """Greedy logits (steps, B, V) and tokens, B rows of one ragged batch whose pages lie mixed up in the cache.

    `prefix`: of each prompt, how many tokens see each other in both directions.
    """
    cache = KVCache(decoder.config, 64, decoder.device, decoder.dtype)
    pages = [list(range(63 - row, -1, -len(prompts))) for row in range(len(prompts))]
    lengths = [len(prompt) for prompt in prompts]
    slots = [cache.slots(*pair) for pair in zip(pages, lengths, strict=True)]
    chunks = [Chunk(0, length, slots, True, prefix) for length, slots in zip(lengths, slots, strict=True)]
    all_logits = [decoder.prefill(torch.cat(prompts), chunks, cache)]
    ids = [all_logits[0].argmax(-1).tolist()]
    for step in range(steps - 1):
        all_logits.append(decoder.decode(ids[-1], [length + step for length in lengths], pages, cache))
        ids.append(all_logits[-1].argmax(-1).tolist())
    return torch.stack(all_logits), [list(row) for row in zip(*ids, strict=True)]


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_tower_features_equal_clips_hidden_state(quick_gelu: bool) -> None:
    """Patch features are CLIP's hidden state -2 without the class token, for both of CLIP's activations."""
    torch.manual_seed(1)
    clip = CLIPVisionModel(clip_config(quick_gelu=quick_gelu)).eval()
    randomise(clip)
    encoder = ImageEncoder(dataclasses.replace(VIT, quick_gelu=quick_gelu, features=(-2,))).eval()
    encoder.tower.load_state_dict(tower_names(clip.state_dict(), layers=2))
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        theirs = clip(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        ours = encoder(pixels).patches
    assert ours.shape == (3, 16, 32)
    assert close(ours, theirs)


def test_a_subjects_evidence_is_the_mean_of_its_views(trunk_checkpoint: Checkpoint) -> None:
    """One third of the whole picture's class probabilities and two of its centre's, by float64 on timm's own head."""
    encoder = VisionLM(trunk_checkpoint, device="cpu").encoder
    trunk, pixels = encoder.tower.trunk.double(), torch.randn(2, 3, 96, 96, dtype=torch.float64)
    final = trunk.forward_features(pixels)  # (2, C, 3, 3)
    views = (final, final[:, :, 1:-1, 1:-1])
    whole, centre = (trunk.forward_head(view).softmax(-1) for view in views)  # (2, 10)
    subject = encoder(pixels).pooled[:, 0].softmax(-1)
    torch.testing.assert_close(subject, whole / 3 + centre * 2 / 3, rtol=1e-12, atol=1e-14)


def test_spliced_logits_equal_llava() -> None:
    """Two pictures and a question through the whole model give Llava's logits, in prefill and in every step."""
    torch.manual_seed(2)
    text = text_config()
    config = LlavaConfig(
        vision_config=clip_config(quick_gelu=False),
        text_config=phi_config(text),
        image_token_index=text.vocab_size - 1,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    llava = LlavaForConditionalGeneration(config).eval()
    randomise(llava)
    theirs = llava.state_dict()

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in theirs.items() if name.startswith(prefix)}

    checkpoint = random_checkpoint(VIT, text)
    tensors = {f"encoder.tower.{name}": t for name, t in tower_names(part("model.vision_tower."), 2).items()}
    for layer, linear in (("patches.0", "linear_1"), ("patches.2", "linear_2")):
        for kind in ("weight", "bias"):
            tensors[f"projector.{layer}.{kind}"] = theirs[f"model.multi_modal_projector.{linear}.{kind}"]
    tensors |= {f"phi.model.{name}": t for name, t in part("model.language_model.").items()}
    tensors["phi.lm_head.weight"] = theirs["lm_head.weight"]
    tensors["phi.lm_head.bias"] = torch.zeros(text.vocab_size)  # Llava has none
    projector = dataclasses.replace(checkpoint.config.projector, hidden_features=text.hidden_size)
    sizes = dataclasses.replace(checkpoint.config, projector=projector)
    vlm = VisionLM(dataclasses.replace(checkpoint, config=sizes, tensors=tensors), device="cpu")

    noise = np.random.default_rng(3)
    images = [Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(2)]
    content = [{"type": "image", "image": image} for image in images]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "How many cats?"}]}]
    answer = vlm.chat(messages, max_tokens=12)

    ids = [text.vocab_size - 1] * 32 + vlm.prompts.question_ids(Turn("How many cats?"))
    embeddings = vlm.engine.decoder.embed(ids)
    embeddings = embeddings.index_copy(0, torch.arange(32), torch.cat(vlm.encode_images(images)))
    ours, tokens = decode(vlm.engine.decoder, [embeddings], 12)
    assert answer.tokens == tuple(tokens[0])
    pixels = torch.stack([vlm.encoder.preprocess(image) for image in images])
    with torch.no_grad():
        logits = llava(input_ids=torch.tensor([ids + tokens[0]]), pixel_values=pixels).logits[0]
    assert close(ours[:, 0], logits[len(ids) - 1 : -1])


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_and_greedy_tokens_equal_phi(layout: str, kind: str) -> None:
    """With a head bias and a ragged batch, prefill and steps give PhiForCausalLM's logits and its 32 greedy tokens."""
    torch.manual_seed(4)
    config: TextConfig = text_config(**LAYOUTS[layout])
    phi: Any = random_phi(config)
    decoder = decoder_of(kind, config, phi.state_dict())
    prompts = [torch.randn(length, config.hidden_size) for length in (5, 19, 12)]
    logits, tokens = decode(decoder, prompts, 32)
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            theirs = phi.generate(
                inputs_embeds=prompt[None],
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=32,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        assert tokens[row] == theirs.sequences[0].tolist()
        assert close(logits[:, row], torch.cat(theirs.logits))


def test_float16_scores_do_not_overflow() -> None:
    """Phi-2's attention scores pass 65,504 (transformers #28163): in float16 they must still mix the values right."""
    torch.manual_seed(5)
    queries = (60 + torch.randn(2, 6, 80)).half()  # (H, T, hd)
    keys = (60 + 0.03 * torch.randn(2, 6, 80)).half()
    values = torch.randn(2, 6, 80).half()
    scores = queries.double() @ keys.double().mT
    assert scores.min() > 65_504
    weights = (scores / 80**0.5).softmax(-1)
    assert 0.02 < weights.median() < 0.3
    expected = (weights @ values.double())[:, -1]  # of the last token, which sees all
    chunk = attend_chunk(queries.transpose(0, 1), keys, values, None)
    row = attend_rows(queries[:, -1][None], keys, values, None)
    torch.testing.assert_close(chunk[-1].double(), expected, atol=0.01, rtol=0.01)
    torch.testing.assert_close(row[0].double(), expected, atol=0.01, rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("layout", [*LAYOUTS, "mini itself"])
def test_greedy_answers_to_200_prompts_equal_phi(layout: str, kind: str) -> None:
    """Every token that the engine chose, in batches, pages and shared prefixes, is what PhiForCausalLM would choose."""
    torch.manual_seed(6)
    if layout == "mini itself":
        checkpoint = read_checkpoint("mini")
        config = checkpoint.config.text
        phi: Any = build_phi(config)
        tensors = checkpoint.tensors.items()
        phi.load_state_dict({name[4:]: t.float() for name, t in tensors if name.startswith("phi.")})
    else:
        config = text_config(**LAYOUTS[layout])
        phi = random_phi(config)
    phi.eval()
    decoder = decoder_of(kind, config, phi.state_dict())
    chance = random.Random(7)
    starts = [[chance.randrange(400) for _ in range(40)] for _ in range(3)]
    prompts = [
        Prompt([*starts[number % 3], *(chance.randrange(400) for _ in range(1 + number % 50))])
        for number in range(200)
    ]
    engine = Engine(decoder, lambda _: [], image_token_id=-1, cache_tokens=2048)
    answers = engine.generate(prompts, Sampling(max_tokens=16))
    assert engine.scheduler.shared_tokens > 1000
    different = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits = phi(torch.tensor([[*prompt.ids, *answer.tokens]])).logits[0, len(prompt.ids) - 1 : -1]
        best = logits.max(-1).values
        chosen = logits.gather(-1, torch.tensor(answer.tokens)[:, None])[:, 0]
        torch.testing.assert_close(chosen, best, atol=1e-4, rtol=0)  # the best, or as good within rounding
        different += sum(a != b for a, b in zip(answer.tokens, logits.argmax(-1).tolist(), strict=True))
        expected = logits.log_softmax(-1).max(-1).values
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-3, rtol=1e-3)
    assert different <= 2  # of 3,200: ties that the last bit decides
