"""Tiny checkpoints, tokenizers, pictures and messages about them that the tests share."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Where tests run side by side (pytest-xdist) each has one thread, for itself and the programs it starts: threads of several that
# wait for work keep each other from it. Before torch, which reads it once.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

import vision_lm
from projector.module import Projector
from tests.picture_files import BLUE, GREEN, RED, WHITE
from vision_lm.checkpoint import Checkpoint
from vision_lm.config import Config, ProjectorConfig, PromptConfig, TextConfig, VisionConfig
from vision_lm.encoder import ImageEncoder, feature_width
from vision_lm.model import VisionLM
from vision_lm.phi import build_phi
from vision_lm.pointing import Point
from vision_lm.prompts import PromptBuilder, Turn

SENTENCES = [
    "Describe the image. Describe the image briefly. Describe the image in detail.",
    "Question: What colour is the cube? Answer: The cube is red.",
    "Question: How many cats are there? Answer: There are two cats, 2, and a dog. Ça va, naïve café!",
]

VIT = VisionConfig(
    embed_dim=24,
    tower={"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16, "mlp_ratio": 2.0},
    image_size=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
# A convolutional trunk read at two stages, with the class logits of the whole view and of its centre.
TRUNK = VisionConfig(
    embed_dim=10,
    tower={"timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": "", "image_size": 96},
    image_size=96,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    features=(-2, -1),
    pooled=("subject", "all", "centre"),
)

Pictures = list[Image.Image]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


@pytest.fixture(scope="session")
def mini_tokenizer() -> Tokenizer:
    weights = Path(vision_lm.__file__).parent / "weights" / "mini"
    return Tokenizer.from_file(str(weights / "tokenizer.json"))


@pytest.fixture(scope="session")
def vit_checkpoint() -> Checkpoint:
    """Random weights: an open_clip ViT of 16 patches and a 2-layer Phi."""
    return random_checkpoint(VIT)


@pytest.fixture(scope="session")
def trunk_checkpoint() -> Checkpoint:
    """Random weights: a timm trunk of 9 patches and three pooled tokens, and a 2-layer Phi."""
    return random_checkpoint(TRUNK, seed=2)  # of pictures that differ it says different things


@pytest.fixture(scope="session", params=["vit", "trunk"])
def tiny_checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    """Each kind of tower in turn, for what must hold of both."""
    return request.getfixturevalue(f"{request.param}_checkpoint")


@pytest.fixture(scope="session")
def vlm(vit_checkpoint: Checkpoint) -> VisionLM:
    """A model that says nonsense, but always the same nonsense."""
    return VisionLM(vit_checkpoint, device="cpu")


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    """Eight different pictures of different sizes."""
    noise = np.random.default_rng(0)
    sizes = [(40 + 9 * n, 70 - 5 * n) for n in range(8)]
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture
def picture() -> Image.Image:
    """3 x 2 pixels, no two rows, columns or corners alike."""
    image = Image.new("RGB", (3, 2))
    image.putdata([RED, GREEN, BLUE, WHITE, (0, 0, 0), (255, 255, 0)])
    return image


def message(question: str, images: Sequence[Any]) -> dict[str, Any]:
    """A user's message with pictures."""
    return {"role": "user", "content": [*({"type": "image", "image": i} for i in images), question]}


def scripted(
    checkpoint: Checkpoint, script: str, *, endless: bool = False, points: Sequence[Point] = ()
) -> Checkpoint:
    """The same model, doctored to answer anything with `script` and to stop, or with `endless` to begin it anew.

    Attention and MLP add nothing, so each token alone decides the next one; none may stand in the script twice.
    """
    prompts = PromptBuilder(checkpoint.tokenizer, checkpoint.config.prompt, 0)
    first = prompts.question_ids(Turn("?"))[-1]
    ids = prompts.answer_ids(script, points)[:-1] if points else prompts.encode(script)
    chain = [first, *ids, ids[0] if endless else checkpoint.config.prompt.eos_token_id]
    assert len(set(chain[:-1])) == len(chain) - 1, "a token stands in the script twice"
    tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    for name, tensor in tensors.items():
        if name.startswith("phi.") and (
            "dense" in name or "fc2" in name or "embed" in name or "head" in name
        ):
            tensor.zero_()
    for place, (token, following) in enumerate(itertools.pairwise(chain)):
        tensors["phi.model.embed_tokens.weight"][token, place] = 1.0
        tensors["phi.lm_head.weight"][following, place] = 10.0
    return dataclasses.replace(checkpoint, tensors=tensors)


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE with one special token, as GPT-2's and Phi's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def text_config(**changes: Any) -> TextConfig:
    """A small Phi; by default with grouped key-value heads."""
    sizes: dict[str, Any] = {
        "vocab_size": 416,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    return TextConfig(**(sizes | changes))


def random_phi(config: TextConfig, *, head_bias: bool = True) -> torch.nn.Module:
    """transformers' Phi with weights large enough to tell answers apart, biases and all."""
    phi = build_phi(config).eval()
    with torch.no_grad():
        for name, weight in phi.named_parameters():
            if "norm" not in name:
                weight.normal_(std=0.12 if weight.ndim == 2 else 0.3)
        phi.lm_head.weight.normal_(std=0.4)
        if not head_bias:
            phi.lm_head.bias.zero_()
    return phi


def settled(encoder: ImageEncoder) -> ImageEncoder:
    """An untrained trunk whose batch norms know its activations; otherwise all pictures look the same to it."""
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    size = encoder.config.image_size
    with torch.no_grad():
        encoder.train()(torch.randn(16, 3, size, size))
    return encoder.eval()


def randomise(module: nn.Module) -> None:
    """Random values everywhere, also where a fresh module has zeros and ones; large enough to tell answers apart."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.normal_(std=0.2)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1.0)


def random_checkpoint(vision: VisionConfig, text: TextConfig | None = None, seed: int = 0) -> Checkpoint:
    """A whole checkpoint of random weights."""
    text = text or text_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = settled(ImageEncoder(vision))
        patches, width = feature_width(encoder)
        projector_config = ProjectorConfig(
            in_features=width,
            hidden_features=48,
            out_features=text.hidden_size,
            pooled_features=vision.embed_dim if vision.pooled else 0,
            pooled_softmax=bool(vision.pooled),
            standardise=bool(vision.pooled),
            positions=patches if vision.pooled else 0,
        )
        modules = {
            "encoder": encoder,
            "projector": Projector(**dataclasses.asdict(projector_config)),
            "phi": random_phi(text),
        }
        for weight in modules["projector"].parameters():
            torch.nn.init.normal_(weight, std=0.2)  # so that what a picture shows changes the answer
        tensors = {
            f"{prefix}.{name}": tensor.detach().clone()
            for prefix, module in modules.items()
            for name, tensor in module.state_dict().items()
        }
    config = Config(
        name="tiny",
        vision=vision,
        projector=projector_config,
        text=text,
        prompt=PromptConfig(image_token_id=text.vocab_size - 1, eos_token_id=0),
    )
    return Checkpoint(config, tensors, train_tokenizer())
