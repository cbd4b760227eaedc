"""The overlay that shows where an answer comes from, as a figure with its words."""

from __future__ import annotations

import html

from demo.picture import jpeg
from vision_lm.explain import Explanation

LONGEST_SIDE = 720  # pixels
NOT_LOOKED = "<p class='hint'>After an answer, see which parts of the picture it comes from.</p>"


def figure(found: Explanation) -> str:
    """HTML. The picture is in it, so that no file is left behind."""
    words = html.escape(str(found))
    legend = (
        " <span>Red brings the answer; what is dark does not matter to it.</span>" if found.decisive else ""
    )
    return (
        f'<figure class="looked"><img src="{jpeg(found.overlay(LONGEST_SIDE))}" alt="{words}">'
        f"<figcaption>{words}{legend}</figcaption></figure>"
    )
