"""What a checkpoint's `config.json` says: the tower, the projector, the language model, the prompt.

Everything that differs between the embedded mini and a real-size model stands here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vision_lm.errors import CheckpointError

FORMAT = 1


@dataclass(frozen=True)
class VisionConfig:
    """An open_clip image tower and which of its features the projector sees."""

    embed_dim: int  # width of the CLIP embedding (open_clip's "embed_dim")
    tower: dict[str, Any]  # open_clip's "vision_cfg", word for word
    image_size: int  # pixels a side, S
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    quick_gelu: bool = False  # OpenAI's CLIP weights were trained with it
    resize: Literal["squash", "crop", "pad"] = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    features: tuple[int, ...] = (-2,)  # hidden states, concatenated on the coarsest grid
    pooled: tuple[Literal["all", "centre"], ...] = ()  # CLIP embeddings added as tokens of their own


@dataclass(frozen=True)
class ProjectorConfig:
    """Sizes of the trained projection from tower features to the language model's embeddings."""

    in_features: int  # Dv
    hidden_features: int
    out_features: int  # Dt
    pooled_features: int = 0  # width E of a pooled token, 0 for none
    pooled_softmax: bool = False  # the pooled embedding is class logits: project probabilities instead
    standardise: bool = (
        False  # the checkpoint knows the features' means and spreads: (x - mean) / spread first
    )
    positions: int = 0  # N, if every patch's place is to have a learned embedding; 0 for none


@dataclass(frozen=True)
class TextConfig:
    """Phi's architecture, in the field names of transformers' PhiConfig."""

    vocab_size: int
    hidden_size: int  # Dt
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    partial_rotary_factor: float = 0.5
    layer_norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.partial_rotary_factor)


@dataclass(frozen=True)
class PromptConfig:
    """How a conversation becomes text. `{question}` and `{answer}` are filled in."""

    image_token_id: int  # a free embedding row: no text encodes to it
    eos_token_id: int
    question: str = "Question: {question}\n\nAnswer:"
    answer: str = " {answer}"
    caption_short: str = "Describe the image briefly."
    caption_normal: str = "Describe the image."
    caption_long: str = "Describe the image in detail."


@dataclass(frozen=True)
class Calibration:
    """Platt scaling of the length-normalised answer probability p: sigmoid(scale * logit(p) + shift)."""

    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class Config:
    """A whole checkpoint."""

    name: str
    vision: VisionConfig
    projector: ProjectorConfig
    text: TextConfig
    prompt: PromptConfig
    calibration: Calibration = field(default_factory=Calibration)
    projector_trained: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the stored weights
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def save(self, path: Path) -> None:
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read and check a config file. Raises CheckpointError naming the first key that is wrong."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error.strerror}); a checkpoint folder holds config.json"
            ) from None
        except ValueError as error:
            raise CheckpointError(
                f"{path}: not valid JSON ({error}); the file is damaged or half-written, fetch it again"
            ) from None
        config = _build(cls, raw, f"{path}")
        if config.format != FORMAT:
            raise CheckpointError(
                f"{path}: format {config.format}, this version reads {FORMAT}; update vision-lm"
            )
        config.check(str(path))
        return config

    def check(self, where: str) -> None:
        """Sizes that must agree with each other."""
        text, projector, vision = self.text, self.projector, self.vision
        wrong = None
        if projector.out_features != text.hidden_size:
            wrong = (
                f"projector.out_features {projector.out_features} is not text.hidden_size {text.hidden_size}"
            )
        elif text.hidden_size % text.num_attention_heads:
            wrong = (
                f"text.hidden_size {text.hidden_size} is not divisible by {text.num_attention_heads} heads"
            )
        elif text.num_attention_heads % text.num_key_value_heads:
            wrong = (
                f"{text.num_attention_heads} heads cannot share {text.num_key_value_heads} key-value heads"
            )
        elif bool(vision.pooled) != bool(projector.pooled_features):
            wrong = f"vision.pooled {list(vision.pooled)} and projector.pooled_features {projector.pooled_features} disagree"
        elif not 0 <= self.prompt.image_token_id < text.vocab_size:
            wrong = f"prompt.image_token_id {self.prompt.image_token_id} is outside the {text.vocab_size} embedding rows"
        if wrong:
            raise CheckpointError(f"{where}: {wrong}; the config does not describe one model")


def _build(kind: Any, raw: Any, where: str) -> Any:
    """Fill a dataclass from JSON, refusing unknown keys, missing keys and wrong types."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(raw, dict):
            raise CheckpointError(f"{where}: expected an object, found {type(raw).__name__}")
        fields = {f.name: f for f in dataclasses.fields(kind)}
        hints = typing.get_type_hints(kind)
        for key in raw:
            if key not in fields:
                raise CheckpointError(f"{where}: unknown key {key!r}; allowed: {', '.join(fields)}")
        for key, f in fields.items():
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if required and key not in raw:
                raise CheckpointError(f"{where}: key {key!r} is missing")
        return kind(**{key: _build(hints[key], value, f"{where}: {key}") for key, value in raw.items()})  # type: ignore[operator]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if raw not in args:
            raise CheckpointError(f"{where}: {raw!r} is not one of {', '.join(map(repr, args))}")
        return raw
    if origin is tuple:
        if not isinstance(raw, list) or (args[-1] is not Ellipsis and len(raw) != len(args)):
            raise CheckpointError(
                f"{where}: expected a list of {'values' if args[-1] is Ellipsis else len(args)}, found {raw!r}"
            )
        return tuple(_build(args[0], value, where) for value in raw)
    if origin in (typing.Union, types.UnionType):
        return None if raw is None else _build(args[0], raw, where)
    wanted = dict if origin is dict else kind
    if wanted is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if not isinstance(raw, wanted) or (wanted is int and isinstance(raw, bool)):
        raise CheckpointError(f"{where}: expected {wanted.__name__}, found {raw!r}")
    return raw
