"""What a checkpoint's `config.json` says: the tower, the projector, the language model, the prompt.

Everything that differs between the embedded mini and a real-size model stands here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
import math
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vision_lm.errors import CheckpointError
from vision_lm.typed_fields import FieldReader

FORMAT = 1

# How a picture becomes a square: stretched; its centre cut out of it; scaled and then padded, all three as open_clip
# does. `crop_floor` cuts where transformers cuts, which differs where the margin is odd. `pad_first` pads at full
# size and then scales, as LLaVA does: the edge of the picture blends with the padding.
Resize = Literal["squash", "crop", "pad", "crop_floor", "pad_first"]


@dataclass(frozen=True)
class Crops:
    """How a picture is also seen in parts, each at the tower's full resolution; see `vision_lm.crop_sheet`.

    The parts' features stand beside those of the whole picture, so a patch is twice as wide and none is added.
    `grid`: 1 or 2 parts high and wide. `overlap`: as many as its size calls for, each reaching into the next.
    """

    kind: Literal["grid", "overlap"]
    smallest: int = 0  # grid: a picture whose longer side has fewer pixels is seen as a whole alone
    most: int = 4  # overlap: parts of one picture
    margin: int = 0  # overlap: patches at each side of a part that its neighbour sees too


@dataclass(frozen=True)
class VisionConfig:
    """An image tower and which of its features the projector sees."""

    embed_dim: int  # width of the CLIP embedding (open_clip's "embed_dim")
    tower: dict[str, Any]  # open_clip's "vision_cfg", word for word; a SigLIP's too is described in its words
    image_size: int  # pixels a side, S
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    quick_gelu: bool = False  # OpenAI's CLIP weights were trained with it
    resize: Resize = "squash"
    fill: tuple[float, float, float] | None = None  # what "pad" pads with, 0 to 1; None: the mean
    interpolation: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    features: tuple[int, ...] = (-2,)  # hidden states, concatenated on the coarsest grid
    # CLIP embeddings added as tokens of their own: the whole picture's, its centre's, and, of class logits, their mixture
    pooled: tuple[Literal["subject", "all", "centre"], ...] = ()
    # siglip: no class token, a patch embedding with a bias; eva: patches turned by their places, SwiGLU
    kind: Literal["open_clip", "siglip", "eva"] = "open_clip"
    normed: bool = False  # the tower's last LayerNorm is applied to the features
    skip_patches: int = 0  # the first patches that the projector never sees
    crops: Crops | None = None  # None: a picture is seen as a whole alone


@dataclass(frozen=True)
class ProjectorConfig:
    """Sizes of the trained projection from tower features to the language model's embeddings."""

    in_features: int  # Dv
    hidden_features: int
    out_features: int  # Dt
    pooled_features: int = 0  # width E of a pooled token, 0 for none
    pooled_softmax: bool = False  # the pooled embedding is class logits: project probabilities instead
    # Of the first pooled token's classes, added up by noun, so many of the likeliest nouns get a token each.
    likeliest: int = 0
    # The checkpoint knows the features' means and spreads: (x - mean) / spread comes first.
    standardise: bool = False
    positions: int = 0  # N, if every patch's place is to have a learned embedding; 0 for none
    residual_features: int = 0  # hidden width of a second MLP, added after a LayerNorm; 0 for none
    tanh_gelu: bool = False  # GELU by its tanh approximation


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
    # What a token sees: those before it; or, of a prompt that opens with a picture, the picture's tokens and those
    # before them (the first token) also see each other, in both directions.
    attention: Literal["causal", "prefix"] = "causal"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.partial_rotary_factor)


@dataclass(frozen=True)
class PointConfig:
    """Tokens with which an answer points at a place in the picture before it names what is there.

    One for each cell of a grid that is laid over the picture, row by row; see `vision_lm.pointing`.
    """

    first_token_id: int  # the top left cell's, the others' follow; special tokens of the tokenizer
    grid: int  # cells a side


@dataclass(frozen=True)
class PromptConfig:
    """How a conversation becomes text. `{question}` and `{answer}` are filled in.

    The tokens of the turn's pictures stand where the question's template has `{images}`, or before all of it. `image`
    is the text around the tokens of one picture, which stand in it as `{image}`.
    """

    image_token_id: int  # a free embedding row: no text encodes to it
    eos_token_id: int
    question: str = "Question: {question}\n\nAnswer:"
    answer: str = " {answer}"
    caption_short: str = "Describe the image briefly."
    caption_normal: str = "Describe the image."
    caption_long: str = "Describe the image in detail."
    image: str = "{image}"
    system: str = ""  # before the first question
    bos_token_id: int | None = None  # before everything
    stop: tuple[str, ...] = ()  # texts that end an answer, beside the token
    points: PointConfig | None = None  # None: answers do not point


@dataclass(frozen=True)
class PlattScaling:
    """From p, what `vision_lm.confidence` makes of the tokens, to a confidence: sigmoid(scale * logit(p) + shift)."""

    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class Calibration(PlattScaling):
    """How sure an answer may be called, by its form: a word, more of them, or words that point, which err differently."""

    unanswerable: float = 0.0  # answers less sure than this count as none; see `projector.calibrate`
    word: PlattScaling | None = None  # for an answer of one token, such as yes; None: as for more
    pointing: tuple[PlattScaling, ...] = ()  # for one place, for two, and so on; the last also for more
    # Of a caption's least sure thing, for one that names one, two, more; (): as for more words.
    caption: tuple[PlattScaling, ...] = ()
    none: PlattScaling | None = None  # for the answer that there is none; None: as for more words

    def scaling(self, words: int, places: int) -> PlattScaling:
        """For an answer of so many tokens that points at so many places."""
        if places and self.pointing:
            return self.pointing[min(places, len(self.pointing)) - 1]
        return self.word if self.word and words == 1 else self


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

    @property
    def pooled_tokens(self) -> int:
        """Tokens of a picture beside those of its patches."""
        return len(self.vision.pooled) + self.projector.likeliest

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
        config = FieldReader(CheckpointError).read(cls, raw, str(path))
        if config.format != FORMAT:
            raise CheckpointError(
                f"{path}: format {config.format}, this version reads {FORMAT}; update vision-lm"
            )
        config.check(str(path))
        return config

    def check(self, where: str) -> None:
        """Values that make sense, and sizes that agree with each other. Raises CheckpointError for the first that is wrong."""
        for wrong in self._problems():
            raise CheckpointError(f"{where}: {wrong}; put the config right, or fetch the checkpoint again")

    def _problems(self) -> Iterator[str]:
        """What is wrong, the foundations first: what comes later may divide by what comes before."""
        text, projector, vision, prompt = self.text, self.projector, self.vision, self.prompt
        for part, names in _POSITIVE.items():
            for name in names:
                if not getattr(getattr(self, part), name) > 0:  # so that not-a-number is refused too
                    yield f"{part}.{name} is {getattr(getattr(self, part), name)}, allowed: above 0"
        for name in ("pooled_features", "likeliest", "positions", "residual_features"):
            if getattr(projector, name) < 0:
                yield f"projector.{name} is {getattr(projector, name)}, allowed: 0 (none) and above"
        if vision.skip_patches < 0:
            yield f"vision.skip_patches is {vision.skip_patches}, allowed: 0 (none) and above"
        if vision.crops is not None:
            yield from _crops_problems(vision, vision.crops)
        if vision.kind != "open_clip" and vision.pooled:
            yield f"vision.pooled is {list(vision.pooled)}, allowed for a tower of kind {vision.kind}: none"
        if not all(spread > 0 for spread in vision.std):
            yield f"vision.std is {list(vision.std)}, allowed: above 0"
        if not all(0 <= level <= 1 for level in vision.fill or ()):
            yield f"vision.fill is {list(vision.fill or ())}, allowed: 0 to 1"
        calibration = self.calibration
        others = (one for one in (calibration.word, calibration.none) if one)
        for one in (calibration, *calibration.pointing, *calibration.caption, *others):
            if not all(map(math.isfinite, (one.scale, one.shift))):
                yield f"calibration is {one.scale}, {one.shift}, allowed: finite numbers"
        if not 0 <= self.calibration.unanswerable <= 1:
            yield f"calibration.unanswerable is {self.calibration.unanswerable}, allowed: 0 to 1"
        if not text.partial_rotary_factor <= 1:
            yield f"text.partial_rotary_factor is {text.partial_rotary_factor}, allowed: up to 1"
        if projector.out_features != text.hidden_size:
            yield f"projector.out_features {projector.out_features} is not text.hidden_size {text.hidden_size}"
        if text.hidden_size % text.num_attention_heads:
            yield f"text.hidden_size {text.hidden_size} is not divisible by {text.num_attention_heads} heads"
        if text.num_attention_heads % text.num_key_value_heads:
            yield f"{text.num_attention_heads} heads cannot share {text.num_key_value_heads} key-value heads"
        if text.rotary_dim % 2:
            yield f"text.partial_rotary_factor turns {text.rotary_dim} of a head's {text.head_dim} values, allowed: an even number"
        if "subject" in vision.pooled and not projector.pooled_softmax:
            yield "vision.pooled has 'subject', allowed where projector.pooled_softmax is true: it mixes class probabilities"
        most = projector.pooled_features if vision.pooled[:1] == ("subject",) else 0
        if projector.likeliest > most:
            yield f"projector.likeliest is {projector.likeliest}, allowed with pooled {list(vision.pooled)}: up to {most}"
        if bool(vision.pooled) != bool(projector.pooled_features):
            yield f"vision.pooled {list(vision.pooled)} and projector.pooled_features {projector.pooled_features} disagree"
        for name in ("image_token_id", "eos_token_id", "bos_token_id"):
            token = getattr(prompt, name)
            if token is not None and not 0 <= token < text.vocab_size:
                yield f"prompt.{name} {token} is outside the {text.vocab_size} embedding rows"
        if prompt.points is not None:
            yield from _points_problems(prompt.points, self)
        if not all(prompt.stop):
            yield f"prompt.stop is {list(prompt.stop)}, allowed: texts that are not empty"
        for name, fields in _TEMPLATES.items():
            template = getattr(prompt, name)
            if _blanks(template) not in fields:
                other = " but {images} before it" if len(fields) > 1 else ""
                yield f"prompt.{name} is {template[:60]!r}, allowed: text with {{{name}}} once and no other field{other}"


def _crops_problems(vision: VisionConfig, crops: Crops) -> Iterator[str]:
    """What is wrong with a picture's parts."""
    patch = vision.tower.get("patch_size")
    if not isinstance(patch, int) or patch < 1 or vision.image_size % patch:
        yield f"vision.crops need a tower of whole patches, found patches of {patch!r} in {vision.image_size} pixels"
        return
    if vision.pooled or vision.skip_patches or vision.resize != "squash":
        yield "vision.crops is given, allowed beside it: no pooled tokens, no skipped patches, resize 'squash'"
    side = vision.image_size // patch
    if not 0 <= crops.margin < side / 2:
        yield f"vision.crops.margin is {crops.margin}, allowed: 0 to less than half of {side} patches"
    if crops.most < 1 or crops.smallest < 0:
        yield f"vision.crops: most is {crops.most} and smallest {crops.smallest}, allowed: from 1 and from 0 on"


def _points_problems(points: PointConfig, config: Config) -> Iterator[str]:
    """What is wrong with the tokens that point."""
    rows = config.text.vocab_size
    if points.grid < 1:
        yield f"prompt.points.grid is {points.grid}, allowed: from 1 on"
    elif not 0 <= points.first_token_id <= rows - points.grid**2:
        last = points.first_token_id + points.grid**2 - 1
        yield f"prompt.points are the tokens {points.first_token_id} to {last}, allowed: within the {rows} embedding rows"
    if config.vision.resize != "squash":
        yield f"prompt.points is given and vision.resize is {config.vision.resize!r}, allowed beside points: 'squash'"


# What each template is filled with, in this order.
_TEMPLATES = {
    "question": (["question"], ["images", "question"]),
    "answer": (["answer"],),
    "image": (["image"],),
}

# Must be above zero.
_POSITIVE = {
    "vision": ("embed_dim", "image_size"),
    "projector": ("in_features", "hidden_features", "out_features"),
    "text": (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rope_theta",
        "partial_rotary_factor",
        "layer_norm_eps",
    ),
}


def _blanks(template: str) -> list[str]:
    """What `template.format()` would fill in, each as it is written between its braces."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError:  # a single brace
        return []
    return [
        name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        for _, name, spec, conversion in pieces
        if name is not None
    ]
