"""English for scene descriptions: articles, plurals, numbers and lists."""

from __future__ import annotations

from collections.abc import Sequence

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_IRREGULAR = {
    "man": "men", "woman": "women", "person": "people", "child": "children", "foot": "feet", "tooth": "teeth",
    "mouse": "mice", "goose": "geese", "ox": "oxen", "leaf": "leaves", "knife": "knives", "wolf": "wolves",
    "loaf": "loaves", "fireman": "firemen", "snowman": "snowmen", "potato": "potatoes", "tomato": "tomatoes",
    "fish": "fish", "sheep": "sheep", "deer": "deer", "shrimp": "shrimp", "squid": "squid",
}  # fmt: skip
_SINGULAR_ENDINGS = ("ss", "us", "sis", "xis")
_SINGULAR_IN_S = {
    "gas", "lens", "news", "iris", "canvas", "atlas", "christmas", "pancreas", "tennis", "mantis",
    "chrysalis", "trellis", "series", "texas", "kansas", "pelvis",
}  # fmt: skip
_SINGULAR_IN_IE = {
    "cookie",
    "pie",
    "tie",
    "movie",
    "zombie",
    "brownie",
    "genie",
    "smoothie",
    "selfie",
    "hoodie",
}
_PLURAL_WITHOUT_S = {"people", "men", "women", "children", "dice", "feet", "teeth"}
_VOWEL_SOUND_EXCEPTIONS = ("uni", "use", "usa", "one", "eu", "uk", "ufo", "uro", "uku")


def is_plural(phrase: str) -> bool:
    """Whether the phrase is plural as it stands ("grapes", "glasses"), so that it takes no "a"."""
    head = _head(phrase)
    if head in _PLURAL_WITHOUT_S:
        return True
    return head.endswith("s") and not head.endswith(_SINGULAR_ENDINGS) and head not in _SINGULAR_IN_S


def with_article(phrase: str) -> str:
    """ "red star" → "a red star", "orange heart" → "an orange heart", "grapes" → "grapes"."""
    if is_plural(phrase):
        return phrase
    lowered = phrase.lower()
    vowel = lowered[:1] in tuple("aeiou") and not lowered.startswith(_VOWEL_SOUND_EXCEPTIONS)
    return f"{'an' if vowel else 'a'} {phrase}"


def plural(phrase: str) -> str:
    """ "red star" → "red stars", "cup of tea" → "cups of tea"; a plural stays as it is."""
    if is_plural(phrase):
        return phrase
    before, head, after = _split_head(phrase)
    return before + _plural_word(head) + after


def singular(phrase: str) -> str:
    """ "red stars" → "red star", "cups of tea" → "cup of tea": what `plural` makes into the phrase, or the phrase."""
    before, head, after = _split_head(phrase)
    irregular = [one for one, many in _IRREGULAR.items() if many == head.lower()]
    hissing = head.endswith(("xes", "ches", "shes", "sses", "zes"))  # unlike "houses"
    regular = head.removesuffix("es" if hissing else "s")
    if head.endswith("ies") and regular.lower() not in _SINGULAR_IN_IE:
        regular = head.removesuffix("ies") + "y"
    for one in (*irregular, regular):
        if one != head and plural(before + one + after) == phrase:
            return before + one + after
    return phrase


def counted(phrase: str, count: int) -> str:
    """ "star", 1 → "a star"; "star", 3 → "three stars"."""
    if count == 1:
        return with_article(phrase)
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} {plural(phrase)}"


def listed(phrases: Sequence[str]) -> str:
    """ "a", "b", "c" → "a, b and c"."""
    if len(phrases) < 2:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def sentence(text: str) -> str:
    """The text with a capital first letter and a full stop."""
    return text[:1].upper() + text[1:] + "."


def _split_head(phrase: str) -> tuple[str, str, str]:
    """The phrase as (words before, head noun, words after): the head stands before "of", "with", "in" …"""
    words = phrase.split(" ")
    ends = [i for i, word in enumerate(words) if i and word in ("of", "with", "in", "on", "and", "at", "for")]
    at = (ends[0] if ends else len(words)) - 1
    before = "".join(f"{word} " for word in words[:at])
    after = "".join(f" {word}" for word in words[at + 1 :])
    return before, words[at], after


def _head(phrase: str) -> str:
    return _split_head(phrase)[1].lower()


def _plural_word(word: str) -> str:
    if word.lower() in _IRREGULAR:
        return _IRREGULAR[word.lower()]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + "s"
