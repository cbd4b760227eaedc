"""What a synthetic scene is made of: its things, and the words for their colours, shapes and materials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from vision_lm.pointing import Point

COLOURS = (
    "red", "orange", "yellow", "green", "teal", "blue",
    "purple", "pink", "brown", "black", "white", "gray",
)  # fmt: skip
SHAPES = (
    "circle", "square", "triangle", "rectangle", "star", "heart",
    "diamond", "hexagon", "cross", "ring", "crescent", "arrow",
)  # fmt: skip
MATERIALS = ("striped", "dotted", "outlined")
SIZES = ("small", "large")

# Never drawn for training, so that a model can be judged on pairs that it has to put together itself. Every
# colour and every shape occurs exactly once. None is a pair of easy-VQA or a common emoji ("green heart"):
# those would show the pair in training by another way.
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("pink", "circle"),
        ("gray", "square"),
        ("purple", "triangle"),
        ("orange", "rectangle"),
        ("red", "star"),
        ("teal", "heart"),
        ("green", "diamond"),
        ("brown", "hexagon"),
        ("white", "cross"),
        ("blue", "ring"),
        ("black", "crescent"),
        ("yellow", "arrow"),
    }
)

# easy-VQA's own vocabulary (https://github.com/vzhou842/easy-VQA): one flat shape on a very pale ground.
EASY_VQA_BACKGROUND = "very pale"
EASY_VQA_COLOURS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
EASY_VQA_SHAPES = ("circle", "rectangle", "triangle")

# Each background with the colours that would be hard to tell from it; those are never drawn there.
BACKGROUNDS: Mapping[str, frozenset[str]] = {
    "white": frozenset({"white"}),
    "light gray": frozenset({"white", "gray"}),
    "pale yellow": frozenset({"white", "yellow"}),
    "pale pink": frozenset({"white", "pink"}),
    "pale green": frozenset({"white"}),
    "pale blue": frozenset({"white"}),
    "pale purple": frozenset({"white", "pink"}),
    "black": frozenset({"black", "brown"}),
    "dark gray": frozenset({"black", "gray", "brown", "teal"}),
    "dark blue": frozenset({"black", "blue", "purple"}),
    "dark green": frozenset({"black", "green", "teal", "brown"}),
    "dark purple": frozenset({"black", "purple", "brown", "blue"}),
    "dark red": frozenset({"black", "red", "brown", "purple"}),
    EASY_VQA_BACKGROUND: frozenset(COLOURS) - frozenset(EASY_VQA_COLOURS),
}

WORDS = (
    "art", "back", "ball", "bank", "best", "bike", "book", "bread", "cafe", "clean", "cold", "come", "dance",
    "door", "down", "east", "exit", "farm", "fast", "film", "food", "free", "fresh", "game", "gift", "gold",
    "good", "happy", "hello", "help", "home", "hot", "hotel", "ice", "join", "jump", "king", "left", "love",
    "map", "milk", "moon", "music", "new", "next", "now", "open", "park", "play", "rain", "road", "sale",
    "shop", "slow", "stop", "sun", "taxi", "tea", "time", "up", "wait", "water", "west", "win", "work", "zoo",
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One thing of a scene: a drawn shape, or a cut-out picture (then colour and material are None)."""

    noun: str
    colour: str | None
    size: str
    material: str | None  # None is solid
    box: tuple[float, float, float, float]  # pixels: x0, y0, x1, y1

    @property
    def is_shape(self) -> bool:
        return self.colour is not None

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box (x, y) in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Scene:
    """Everything that there is to say about one drawn picture, `side` pixels wide and high."""

    things: tuple[Thing, ...]
    background: str  # a key of BACKGROUNDS
    word: str | None
    side: int = 256


@dataclass(frozen=True)
class Sprite:
    """A cut-out picture with a transparent ground; `name` is a noun phrase without article."""

    name: str
    image: Image.Image  # RGBA


@dataclass(frozen=True)
class Asked:
    """A question as a template ("{picture}" is filled in and the spelling varied later), with its answer."""

    question: str
    answer: str
    points: tuple[Point, ...] = ()


def yes_or_no(true: bool) -> str:
    return "yes" if true else "no"


def colours_on(background: str) -> tuple[str, ...]:
    """The colours that a thing on this background may have."""
    return tuple(colour for colour in COLOURS if colour not in BACKGROUNDS[background])


def shapes_on(background: str) -> tuple[str, ...]:
    """The shapes that a scene with this background may hold."""
    return EASY_VQA_SHAPES if background == EASY_VQA_BACKGROUND else SHAPES


def materials_of(shape: str, colour: str) -> tuple[str, ...]:
    """The patterns that leave this shape and colour plain to see (solid is always possible).

    An outlined circle would be a ring, thin parts hold no pattern, and a second tone makes black, white and
    gray doubtful.
    """
    patterned = () if colour in ("black", "white", "gray") else ("striped", "dotted")
    if shape in ("ring", "cross", "arrow", "crescent"):
        return ()
    return patterned if shape == "circle" else (*patterned, "outlined")
