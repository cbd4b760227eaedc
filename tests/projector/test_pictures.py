"""Pictures from drawings: how they are drawn, and what a build counts as drawn, repeated or left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from projector.data import emoji
from projector.data.pictures import INDEX, STYLES, build_pictures, load_pictures
from projector.data.rasterise import LONG_SIDE, Drawing, Renderer, rasterise
from projector.data.vendors import LINE_VENDORS, VENDORS
from vision_lm.errors import DataError


def svg(body: str, page: str = 'viewBox="0 0 100 100"') -> str:
    """An SVG document."""
    return f'<svg xmlns="http://www.w3.org/2000/svg" {page}>{body}</svg>'


def drawing(document: str) -> Drawing:
    """A drawing of nothing in particular."""
    return Drawing("thing", (), "object", "noto", "thing", "thing", "MIT", svg=document)


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
    """Tiny packages in the layout of the real ones: three emoji in each vendor's form, and some clip-art.

    Some sets list no code points: one calls the drawings by CLDR's names, one by Unicode's own, one numbers them.
    """
    folder = root / "packages"
    shapes = {
        "cat": '<circle cx="8" cy="8" r="5"/>',
        "black-cat": '<circle cx="8" cy="8" r="5" stroke="red"/>',
        "automobile": '<rect width="9" height="5"/>',
    }
    older = {
        "aubergine": '<rect width="3" height="9"/>',
        "pistol": '<rect width="9" height="9"/>',
        "bug": '<rect width="4" height="7"/>',
    }
    codes = {"1F408": "cat", "1f408-200d-2b1b": "black-cat", "1F697-FE0F": "automobile"}
    listed = {"🐈": "cat", "🐈‍⬛": "black cat", "🚗": "automobile", "🔫": "water pistol", "🍆": "eggplant"}
    listed["🐛"] = "bug"
    undrawn = sorted({entry.unicode_name for entry in emoji.read_names()} - set(listed.values()))
    listed |= {chr(0xF0000 + number): name for number, name in enumerate(undrawn)}
    names = {character: {"name": name} for character, name in listed.items()}
    contents: dict[str, object] = {"unicode-emoji-json/data-by-emoji.json": names}
    spelt = {
        "noto-v1": {"cat": "cat", "automobile": "automobile"},
        "emojione": {"cat": "cat", "automobile": "automobile"},
        "fxemoji": {"cat": "cat", "automobile": "automobile", "pistol": "pistol", "aubergine": "aubergine"},
        "streamline-emojis": {"cat-1": "cat", "cat-2": "black-cat", "automobile": "automobile"},
        "tabler": {"cat": "cat", "bug": "bug"},
    }
    for vendor in VENDORS[1:]:
        slugs = spelt.get(vendor.folder, dict(zip(shapes, shapes, strict=True)))
        contents[f"{vendor.folder}/chars.json"] = {} if vendor.folder in spelt else codes
        contents[f"{vendor.folder}/icons.json"] = {
            "icons": {slug: {"body": (shapes | older)[shape]} for slug, shape in slugs.items()}
        }
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

    stamps = folder / "tuxpaint-stamps" / "usr" / "share" / "tuxpaint" / "stamps"
    for stamp, sentence in (
        ("animals/frogs/frog-1", "A sleeping frog."),
        ("animals/foal", "A baby."),  # of a horse: what lies there is an animal
        ("animals/frogs/frog-1_mirror", "A sleeping frog."),
        ("household/jeans", "A pair of blue jeans."),
        ("household/thing", "It belongs to a neighbour!"),
        ("symbols/money/cent", "A cat."),
    ):
        (stamps / stamp).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (40, 30), "blue" if "jeans" in stamp else "green").save(stamps / f"{stamp}.png")
        (stamps / f"{stamp}.txt").write_text(f"{sentence}\nde.utf8=Ein Ding.\n")
    (stamps / "household" / "owl.svg").write_text(svg('<circle cx="50" cy="50" r="40"/>'))
    (stamps / "household" / "owl.txt").write_text("An owl.\n")


def test_a_build_names_what_it_has_and_counts_what_it_lacks(tmp_path: Path) -> None:
    """Unfree, nameless and repeated clip-art stays out, and building again changes nothing."""
    packages(tmp_path)
    built = build_pictures(tmp_path)
    emoji_count = len(emoji.read_names())
    assert built.pictures == Counter(
        {
            **{"fluent-3d": 2, "openclipart": 2, "noto-v1": 2, "emojione": 2, "streamline": 3},
            **dict.fromkeys(("noto", "fluent-flat", "twemoji", "openmoji"), 3),
            "fxemoji": 3,  # not the pistol, which is a water pistol now
            **{vendor.style: 3 for vendor in LINE_VENDORS},
            "tuxpaint": 3,  # a frog, jeans, an owl
            "tabler": 1,  # not the bug, which is a fault in a program there
        }
    )
    assert built.without["fluent-3d"] == emoji_count - 2
    assert built.without["noto"] == built.without["fluent-flat"] == emoji_count - 3
    assert built.without["openclipart"] == 2  # the GPL fox, and the dog whose file is not XML
    assert built.repeated["openclipart"] == 1
    assert built.without["tuxpaint"] == 2  # of which nobody knows what they are
    assert built.shared_by_vendors == 2  # cat, car

    pictures = load_pictures(tmp_path)
    assert [picture.name for picture in pictures if picture.style == "openclipart"] == ["cat", "owl"]
    assert {picture.name for picture in load_pictures(tmp_path, ["tuxpaint"])} == {"frog", "jeans", "owl"}
    assert {picture.name for picture in load_pictures(tmp_path, ["noto"])} == {"cat", "car"}
    assert {picture.name for picture in load_pictures(tmp_path, ["fxemoji"])} == {"cat", "car", "eggplant"}
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
    with pytest.raises(DataError, match="'noto2'.*fluent-3d, noto, fluent-flat, .*openclipart"):
        load_pictures(tmp_path, ["noto2"])
