"""Names of pictures: those that people say, the same in all sources."""

from __future__ import annotations

import re

import pytest

from projector.data import clipart, clipart_titles, emoji
from projector.data.imagenet_names import CLASSES


def test_imagenet_names_follow_timms_class_order() -> None:
    """A table shifted by one line would teach a thousand wrong names."""
    info = pytest.importorskip("timm.data").ImageNetInfo()
    assert [one.index for one in CLASSES] == list(range(1000))
    assert [one.synset for one in CLASSES] == info.label_names()


@pytest.mark.parametrize(
    ("words", "basic", "others"),
    [
        (r"breeds? of|terrier|spaniel|hound|sheepdog|\bdogs?\b", "dog", {"cat", "rabbit", "wild dog"}),
        (r"\bcats?\b", "cat", {"cheetah"}),
        (r"\bsnakes?\b|viper|python", "snake", {"mongoose"}),  # it preys on them
        (r"\bmonkeys?\b", "monkey", set()),
        (r"\bbirds?\b|finch|thrush", "bird", {"dog"}),  # a bird dog
        (r"\bantelopes?\b", "antelope", set()),
        (r"\bbutterfl", "butterfly", {"fish"}),  # a butterflyfish
        (r"\bsharks?\b", "shark", set()),
        (r"\blizards?\b", "lizard", set()),
        (r"turtle", "turtle", set()),
    ],
)
def test_imagenet_nouns_agree_with_wordnets_definitions(words: str, basic: str, others: set[str]) -> None:
    """WordNet's definitions, which the table was not written from, name the kind that the table names."""
    info = pytest.importorskip("timm.data").ImageNetInfo()
    defined = {
        one: info.index_to_description(one.index, detailed=True).split(": ", 1)[1].lower()
        for one in CLASSES
        if one.group == "animal"
    }
    found = {one for one, definition in defined.items() if re.search(words, definition)}
    assert len(found) >= 3
    assert {one.basic for one in found} <= {basic, *others}, found


@pytest.mark.parametrize(
    ("first", "last", "basic"),
    [(151, 268, "dog"), (281, 285, "cat"), (52, 68, "snake"), (294, 297, "bear"), (370, 382, "monkey")],
)
def test_imagenet_ranges_have_one_basic_noun(first: int, last: int, basic: str) -> None:
    """The classes of one kind stand together in ImageNet, and their neighbours are of another kind."""
    assert {one.basic for one in CLASSES[first : last + 1]} == {basic}
    assert basic not in (CLASSES[first - 1].basic, CLASSES[last + 1].basic)


def test_imagenet_birds_are_birds() -> None:
    """The 59 birds stand in three runs: cock to owl, grouse to black swan, stork to albatross."""
    runs = [*range(7, 25), *range(80, 101), *range(127, 147)]
    assert [one.index for one in CLASSES if one.basic == "bird"] == runs


def test_imagenet_names_of_the_promised_photographs() -> None:
    """The words that the captions of well-known photographs need."""
    named = {one.synset: (one.basic, one.group) for one in CLASSES}
    assert named["n02123159"] == ("cat", "animal")  # tiger cat
    assert named["n07920052"] == ("coffee", "food")  # espresso
    assert named["n07930864"] == named["n03063599"] == ("cup", "container")  # cup, coffee mug
    assert named["n03773504"] == named["n04008634"] == ("rocket", "vehicle")  # missile, projectile
    assert named["n04266014"] == ("space shuttle", "vehicle")
    people = [one for one in CLASSES if one.person_likely]
    assert {one.noun for one in people} >= {"groom", "scuba diver", "baseball player", "suit", "wig"}
    assert {one.group for one in people}.isdisjoint(("animal", "food", "plant", "building"))


def test_a_name_has_one_category_in_every_source() -> None:
    """A cat may not be an animal in the photographs and an object among the emoji."""
    words = [noun for place in vars(clipart_titles.curated()).values() for noun in place.values() if noun]
    found: dict[str, set[str]] = {}
    for name, category in [
        *((entry.name, entry.category) for entry in emoji.read_names()),
        *((noun.name, noun.category) for noun in words),
        *((one.basic, one.group) for one in CLASSES),
    ]:
        found.setdefault(name, set()).add(category)
    assert {name: categories for name, categories in found.items() if len(categories) > 1} == {}


def test_emoji_names_are_plain_nouns() -> None:
    """People's words: cat's face, cat and black cat are cats; a hot beverage is a cup of coffee."""
    named = {entry.unicode_name: entry for entry in emoji.read_names()}
    assert len(named) == len(emoji.read_names()) > 1000
    assert {named[one].name for one in ("cat", "cat face", "black cat", "grinning cat")} == {"cat"}
    assert named["hot beverage"].name == "cup of coffee"
    assert named["automobile"].name == "car"
    assert "apple" in (named["red apple"].name, *named["red apple"].aliases)
    for entry in named.values():
        assert entry.name == entry.name.strip()
        assert entry.category
        assert not set(entry.name) & set(":;_()“”"), entry
        assert entry.name not in entry.aliases


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Coffee (B and W)", "cup of coffee"),
        ("Coffee_Cup-01", None),  # neither "coffee" nor a cup for certain: not in the vocabulary
        ("A simple pig", "pig"),
        ("soft blue couch", "couch"),
        ("Gatto Nero", "cat"),
        ("owl on branch", "owl"),
        ("Raccoon Opening Box", "raccoon"),  # not the box
        ("kubek herbaty - mug of tea", "cup of tea"),
        ("Elephant Outline", "elephant"),
        ("CayennePepperRevisited", "chili pepper"),
        ("traffic light: red", "traffic light"),
        ("horse#2", "horse"),
        ("corn dog", None),
        ("Coat of Arms", None),
        ("Architetto Francesco Rollandin", None),
        ("untitled 3", None),
        ("", None),
    ],
)
def test_clipart_titles(title: str, name: str | None) -> None:
    """The head noun of a title, in the words of the other sources, or nothing."""
    noun = clipart_titles.noun_of(title, clipart.title_vocabulary(emoji.read_names()))
    assert (noun.name if noun else None) == name
