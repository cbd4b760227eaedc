"""The training corpus of `mini`: pictures on disk, and JSON Lines files that ask about them.

    scenes.jsonl     synthetic scenes of shapes and cut-outs: independent questions and captions
    dialogues.jsonl  the same pictures, as short follow-up chats
    reasoning.jsonl  the same pictures: more questions of the kinds that need two looks
    naming.jsonl     the same pictures: what is where, captions and lists
    absent.jsonl     every third of them: questions about what is not there, beside a few about what is
    drawings.jsonl   one emoji or clip-art drawing a picture, on any ground
    restyled.jsonl   the same drawings in the manner of other artists
    hands.jsonl      the drawings of more hands, as in drawings.jsonl
    hands_restyled.jsonl  the same in the manner of other artists
    line_art.jsonl   drawings in one ink, as lines, coloured in, and as buttons
    hands_scenes.jsonl, hands_scenes_naming.jsonl, …  scenes of their cut-outs, and the files beside them
    textures.jsonl   busy pictures of nothing, which lend their patches to class evidence
    easy_vqa.jsonl   easy-VQA's train split

Held out, under `held_out/`: scenes of other seeds and of colour-shape pairs that training never draws, and every
drawing of one style (HELD_OUT_STYLE) and of hands that nothing else here is by (HELD_OUT_HANDS). Every unit of work has
a seed of its own, so the corpus is the same whatever the number of processes. Files that are there already are kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from projector.data import drawings, easy_vqa, scenes
from projector.data.line_art import drawn_in_ink
from projector.data.pictures import Picture, load_pictures
from projector.data.restyle import restyle, without_colour_names
from projector.data.samples import QA, Sample, write_jsonl
from projector.data.scenes import HeldOut, Scene, Sprite
from projector.data.textures import texture
from projector.data.vendors import LINE_VENDORS
from vision_lm.config import PromptConfig
from vision_lm.prompts import CaptionLength

SCENE_STYLES = ("fluent-3d", "noto", "openclipart")  # of scenes, drawings and restyled ones
MORE_HANDS = ("noto-v1", "emojione", "fxemoji", "streamline")
LINE_HANDS = tuple(vendor.style for vendor in LINE_VENDORS)
HELD_OUT_STYLE = "fluent-flat"
HELD_OUT_HANDS = ("twemoji", "openmoji", "tuxpaint")
UNIT = 200  # pictures to a unit of work
SIZE = 256  # pixels a side
CAPTION_SHARE = 0.7  # of the scenes that carry captions beside their questions
BESIDE = ("dialogues", "reasoning", "naming", "absent")  # files of the same pictures
ABSENT_EVERY = 3  # of the training scenes
_PROMPT = PromptConfig(image_token_id=0, eos_token_id=0)
CAPTION_REQUESTS: dict[CaptionLength, str] = {
    "short": _PROMPT.caption_short,
    "normal": _PROMPT.caption_normal,
    "long": _PROMPT.caption_long,
}


@dataclass(frozen=True)
class Sizes:
    """How many pictures of each sort."""

    scenes: int = 60_000  # so many that training sees each but once or twice
    drawings: int = 3  # pictures of each drawing
    restyled: int = 2  # of each, in other manners
    hands_scenes: int = 6_000
    textures: int = 1_200
    held_out_scenes: int = 1_000  # of new seeds, and as many again of pairs never seen together


def build_corpus(root: Path, sizes: Sizes, processes: int = 2) -> Path:
    """Write the corpus of the pictures under `root` to root/corpus; → that folder."""
    out = root / "corpus"
    jobs: list[tuple[Path, list[Callable[[], list[Part]]]]] = [
        (
            out / "scenes.jsonl",
            _units(_scenes, sizes.scenes, out / "scenes", root, SCENE_STYLES, "avoid", "train"),
        ),
        (
            out / "drawings.jsonl",
            _drawing_units(_drawings, root, out / "drawings", SCENE_STYLES, sizes.drawings),
        ),
        (
            out / "restyled.jsonl",
            _drawing_units(_restyled, root, out / "restyled", SCENE_STYLES, sizes.restyled),
        ),
        (out / "hands.jsonl", _drawing_units(_drawings, root, out / "hands", MORE_HANDS, sizes.drawings)),
        (
            out / "hands_restyled.jsonl",
            _drawing_units(_restyled, root, out / "hands_restyled", MORE_HANDS, sizes.restyled),
        ),
        (
            out / "line_art.jsonl",
            _drawing_units(
                partial(_restyled, manner=drawn_in_ink), root, out / "line_art", LINE_HANDS, sizes.drawings
            ),
        ),
        (
            out / "hands_scenes.jsonl",
            _units(_scenes, sizes.hands_scenes, out / "hands_scenes", root, MORE_HANDS, "avoid", "hands"),
        ),
        (
            out / "textures.jsonl",
            [partial(_textures, out / "textures", start) for start in range(0, sizes.textures, UNIT)],
        ),
        (
            out / "held_out" / "scenes.jsonl",
            _units(
                _scenes,
                sizes.held_out_scenes,
                out / "held_out" / "scenes",
                root,
                SCENE_STYLES,
                "ignore",
                "held out",
            ),
        ),
        (
            out / "held_out" / "pairs.jsonl",
            _units(_scenes, sizes.held_out_scenes, out / "held_out" / "pairs", root, (), "require", "pairs"),
        ),
        (
            out / "held_out" / "drawings.jsonl",
            _drawing_units(_drawings, root, out / "held_out" / "drawings", [HELD_OUT_STYLE], 1),
        ),
        *(
            (
                out / "held_out" / f"{hand}.jsonl",
                _drawing_units(_drawings, root, out / "held_out" / hand, [hand], 1),
            )
            for hand in HELD_OUT_HANDS
        ),
    ]
    with ProcessPoolExecutor(processes) as pool:
        for path, units in jobs:
            if path.exists():
                continue
            futures = [pool.submit(unit) for unit in units]
            progress = tqdm(futures, desc=path.stem, unit="unit")
            try:
                write_parts(path, [part for future in progress for part in future.result()])
            except BaseException:  # of which nothing would be heard before all the other units are done
                pool.shutdown(cancel_futures=True)
                raise
    if not (out / "easy_vqa.jsonl").exists():
        write_jsonl(out / "easy_vqa.jsonl", _easy_vqa())
    return out


@dataclass(frozen=True)
class Part:
    """A sample, and the file it goes to: "" for the main one, or one of BESIDE for one beside it."""

    beside: str
    sample: Sample


def write_parts(path: Path, parts: Sequence[Part]) -> None:
    """The main samples to `path`, the others beside it: dialogues.jsonl for scenes, pairs_dialogues.jsonl for pairs.

    The main ones last: where their file is, all are.
    """
    for beside in (*BESIDE, ""):
        some = [part.sample for part in parts if part.beside == beside]
        stem = beside if path.stem == "scenes" else f"{path.stem}_{beside}"
        if some:
            write_jsonl(path.with_stem(stem) if beside else path, some)


def _units(
    work: Callable[..., list[Part]],
    count: int,
    folder: Path,
    root: Path,
    styles: Sequence[str],
    pairs: HeldOut,
    name: str,
) -> list[Callable[[], list[Part]]]:
    starts = range(0, count, UNIT)
    return [
        partial(work, folder, root, styles, pairs, name, start, min(UNIT, count - start)) for start in starts
    ]


def _scenes(
    folder: Path, root: Path, styles: Sequence[str], pairs: HeldOut, name: str, start: int, count: int
) -> list[Part]:
    """One unit of scenes: pictures written, their samples returned.

    Every picture and every file about it has a state of its own: questions can change and every picture stay as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = load_pictures(root, styles) if styles else []
    some = random.Random(f"cut-outs/{name}/{start}").sample(pictures, min(len(pictures), 2 * UNIT))
    cut_outs = [_sprite(picture) for picture in some]
    names = sorted({picture.name for picture in pictures})
    parts: list[Part] = []
    for number in range(start, start + count):
        composing, asking, chatting, reasoning, naming, missing = (
            random.Random(f"{what}/{name}/{number}") for what in ("scene", "scenes", *BESIDE)
        )
        chosen = composing.sample(cut_outs, min(8, len(cut_outs))) if composing.random() < 0.55 else []
        scene, picture = scenes.compose(composing, size=SIZE, sprites=chosen, held_out_pairs=pairs)
        path = folder / f"{number:06d}.png"
        picture.save(path, compress_level=1)
        # Held-out captions name everything: they say what is there.
        unnamed = scenes.left_unnamed(scene, naming) if pairs == "avoid" else frozenset()
        others = asking.sample(names, min(20, len(names)))
        turns = scenes.questions(scene, asking, 14, absent_names=others)
        if asking.random() < CAPTION_SHARE:
            turns += _captions(scene, asking, unnamed)
        parts.append(Part("", Sample((path,), tuple(turns))))
        chat = scenes.dialogue(scene, chatting)
        if len(chat) > 1:
            parts.append(Part("dialogues", Sample((path,), tuple(chat), linked=True)))
        if len(scene.things) > 1:
            if hard := scenes.reasoning(scene, reasoning, 14):
                parts.append(Part("reasoning", Sample((path,), tuple(hard))))
            named = scenes.naming(scene, naming, 8) + _captions(scene, naming, unnamed)
            parts.append(Part("naming", Sample((path,), tuple(named))))
        parts += absent_part(path, scene, missing, names, training=pairs == "avoid", number=number)
    return parts


def absent_part(
    path: Path, scene: Scene, rng: random.Random, names: Sequence[str], *, training: bool, number: int
) -> list[Part]:
    """What is asked about things that are not there: in training beside as much about those that are."""
    if training and number % ABSENT_EVERY:
        return []
    others = rng.sample(names, min(20, len(names)))
    turns = scenes.absent(scene, rng, 6, others)
    if training:
        turns += scenes.questions(scene, rng, 6, absent_names=others)
    return [Part("absent", Sample((path,), tuple(turns)))] if turns else []


def _captions(scene: Scene, rng: random.Random, unnamed: Collection[str]) -> list[QA]:
    """One of each length."""
    said = ((ask, scenes.caption(scene, length, rng, unnamed)) for length, ask in CAPTION_REQUESTS.items())
    return [QA(ask, text, "caption", points) for ask, (text, points) in said]


def _sprite(picture: Picture) -> Sprite:
    with Image.open(picture.path) as image:
        return Sprite(picture.name, image.convert("RGBA"))


def _drawing_units(
    work: Callable[..., list[Part]], root: Path, folder: Path, styles: Sequence[str], copies: int
) -> list[Callable[[], list[Part]]]:
    count = len(load_pictures(root, styles))
    return [partial(work, folder, root, styles, copies, start) for start in range(0, count, UNIT)]


def _drawings(folder: Path, root: Path, styles: Sequence[str], copies: int, start: int) -> list[Part]:
    """One unit of single drawings on plain or busy grounds."""
    rng = random.Random(f"drawings/{'+'.join(styles)}/{start}")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = load_pictures(root, styles)
    parts = []
    for number in range(start, min(start + UNIT, len(pictures))):
        picture = pictures[number]
        with Image.open(picture.path) as file:
            cut_out = file.convert("RGBA")
        for copy in range(copies):
            path = folder / f"{number:05d}-{copy}.png"
            drawings.place(cut_out, SIZE, rng, plain=copies == 1).save(path, compress_level=1)
            asked = tuple(drawings.turns(picture, pictures, CAPTION_REQUESTS, rng))
            parts.append(Part("", Sample((path,), asked)))
    return parts


def _restyled(
    folder: Path,
    root: Path,
    styles: Sequence[str],
    copies: int,
    start: int,
    manner: Callable[[Image.Image, random.Random], Image.Image] = restyle,
) -> list[Part]:
    """One unit of the same drawings in other manners, but for those that are called by their colours."""
    rng = random.Random(f"restyled/{'+'.join(styles)}/{start}")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = load_pictures(root, styles)
    colourless = [one for one in map(without_colour_names, pictures) if one]
    parts = []
    for number, picture in enumerate(pictures[start : start + UNIT], start):
        if (named := without_colour_names(picture)) is None:
            continue
        with Image.open(picture.path) as file:
            cut_out = file.convert("RGBA")
        for copy in range(copies):
            path = folder / f"{number:05d}-{copy}.png"
            drawings.place(manner(cut_out, rng), SIZE, rng).save(path, compress_level=1)
            asked = tuple(drawings.turns(named, colourless, CAPTION_REQUESTS, rng))
            parts.append(Part("", Sample((path,), asked)))
    return parts


def _textures(folder: Path, start: int) -> list[Part]:
    """One unit of textures; their one turn is replaced by what is said of the evidence."""
    rng = random.Random(f"textures/{start}")
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number in range(start, start + UNIT):
        path = folder / f"{number:05d}.png"
        texture(rng, SIZE).save(path, compress_level=1)
        parts.append(Part("", Sample((path,), (QA("What is this?", "nothing", "name"),))))
    return parts


def _easy_vqa() -> Iterator[Sample]:
    turns: dict[Path, list[QA]] = {}
    for image, question, answer, kind in easy_vqa.train():
        turns.setdefault(Path(image), []).append(QA(question, answer, kind))
    for image, asked in turns.items():
        yield Sample((image,), tuple(asked))
