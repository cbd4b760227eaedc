"""Captions split into words: by Stanford's PTB tokenizer, as COCO does it, or by a plain rule where there is no Java."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vision_lm.errors import EvaluationError

_SHORT_FORM = re.compile(r"(n't|'(?:s|m|d|ll|re|ve))\b")


def ptb_tokens(texts: Sequence[str]) -> list[str]:
    """Each text in lower case, its words parted by one blank, without punctuation. Raises EvaluationError.

    One Java process reads all texts, a line each, so a line end inside a text is a blank.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = {number: [{"caption": " ".join(text.split())}] for number, text in enumerate(texts)}
    try:
        found = PTBTokenizer().tokenize(lines)
    except OSError as error:
        raise EvaluationError(
            f"the PTB tokenizer cannot run ({error}); install Java, or take it off the PATH"
        ) from error
    if len(found) != len(texts):
        raise EvaluationError(
            f"the PTB tokenizer gave {len(found):,} lines for {len(texts):,} captions; look for unusual characters in them"
        )
    return [found[number][0] for number in range(len(texts))]


def plain_tokens(text: str) -> str:
    """The same for ordinary English, up to rare signs: "The man's hat, 3." -> "the man 's hat 3"."""
    words = re.findall(r"[\w'&$%-]*\w[\w'%-]*", _SHORT_FORM.sub(r" \1", text.lower().replace("’", "'")))
    return " ".join(words)
