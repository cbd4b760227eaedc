"""The hands that draw emoji and icons here, and what each of them means something else by.

The two Fluent styles are one designer's drawings, modelled and flat, Noto's first edition is a kin of its second, and Emoji
One's monotone edition of its coloured one: all others are other hands. The sets of icons draw in one ink, and what they
call a mouse is a computer's. Seen on contact sheets.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vendor:
    """One hand's drawings of the emoji: what their style is called here, and which package holds them."""

    style: str
    folder: str  # under DIR/packages
    misnamed: frozenset[str] = frozenset()  # CLDR's names of emoji whose name shows something else there


_THEN = ("water pistol", "cricket")  # a real pistol, and the game

COLOUR_VENDORS = (
    Vendor("fluent-3d", "fluent-emoji-3d"),
    Vendor("noto", "noto"),
    Vendor("fluent-flat", "fluent-emoji-flat"),
    Vendor("noto-v1", "noto-v1", frozenset(_THEN)),
    Vendor("emojione", "emojione", frozenset(_THEN)),
    Vendor("fxemoji", "fxemoji", frozenset({"water pistol", "laptop"})),  # a computer of then
    Vendor("streamline", "streamline-emojis", frozenset({"water pistol", "turkey"})),  # the country's flag
    Vendor("twemoji", "twemoji"),
    Vendor("openmoji", "openmoji"),
)

# A computer's mouse, a seal on a letter, a fault in a program, a roast, arrows up and down, a tub with nobody in it, …
_BUTTONS = (
    *(
        "mouse",
        "seal",
        "bug",
        "cricket",
        "turkey",
        "chicken",
        "sunrise",
        "sunset",
        "person taking bath",
        "joker",
    ),
    *(
        "person walking",
        "police car light",
        "world map",
        "anchor",
        "compass",
        "wedding",
        "rock",
        "seat",
        "ring",
    ),
)

LINE_VENDORS = (
    Vendor("emojione-monotone", "emojione-monotone", frozenset(_THEN)),
    Vendor("game-icons", "game-icons", frozenset({"ram", "salt", "sunset"})),
    Vendor(
        "icon-park-outline",
        "icon-park-outline",
        frozenset(_BUTTONS).union(
            (
                "cook",
                "person playing water polo",
                "cooking",
                "pie",
                "clamp",
                "trumpet",
                "telescope",
                "bowling",
            ),
            ("fireworks", "family", "bank", "treasure chest", "briefcase", "shovel", "badminton", "envelope"),
            ("keyboard",),
        ),
    ),
    Vendor("ph", "ph", frozenset(_BUTTONS)),
    Vendor("tabler", "tabler", frozenset(_BUTTONS).union(("rosette", "school", "butterfly"))),
    Vendor(
        "hugeicons",
        "hugeicons",
        frozenset(_BUTTONS).union(
            ("test tube", "abacus", "sunglasses", "clipboard", "bar chart", "satellite", "snail", "locked"),
            ("person playing water polo",),
        ),
    ),
)
VENDORS = (*COLOUR_VENDORS, *LINE_VENDORS)
