"""Our own tasks, on what `vision-lm data build` made: easy-VQA, scenes, names of drawings, and hallucination."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from projector.data import easy_vqa as package
from projector.data.caption_objects import hallucinated, named_things
from projector.data.corpus import CAPTION_REQUESTS, HELD_OUT_HANDS, LINE_HANDS, MORE_HANDS, SCENE_STYLES
from projector.data.held_out import reported_part
from projector.data.imagenet_names import CLASSES
from projector.data.photographs import photographs as pictured
from projector.data.pictures import load_pictures
from projector.data.samples import Sample, iter_jsonl
from projector.data.scene_grammar import with_article
from projector.data.scene_vocabulary import Scene, Thing
from vision_lm.errors import EvaluationError
from vision_lm.evaluate.answers import Accuracy, exact, listed
from vision_lm.evaluate.settings import TaskFiles
from vision_lm.evaluate.tasks import Item, Measured, Scores, Task, mean

NOWHERE = (0.0, 0.0, 0.0, 0.0)  # the box of a thing that only counts as there


def easy_vqa(files: TaskFiles) -> Task:
    """easy-VQA's official test split, which its package has inside."""
    items = tuple(
        Item(str(number), Path(one.image), (one.answer,), one.question, one.kind)
        for number, one in enumerate(package.test())
    )
    return Task("easy-vqa", items, Accuracy(exact), (), blind=True)


def scenes(files: TaskFiles) -> Task:
    """Questions about drawn scenes of seeds that were never trained; lists in any order."""
    path = _held_out(files, "scenes.jsonl")
    return Task("scenes", scene_questions(path), Accuracy(listed), (path,), blind=True)


def absent(files: TaskFiles) -> Task:
    """Questions about what is not in the scene: it is right to say so."""
    path = _held_out(files, "absent.jsonl")
    return Task("absent", scene_questions(path), Accuracy(exact), (path,), blind=True)


def scene_questions(path: Path) -> tuple[Item, ...]:
    """What a held-out file asks about scenes, in the part that no choice was made by."""
    return tuple(
        Item(f"{number}/{place}", sample.images[0], (turn.answer,), turn.question, turn.kind)
        for number, sample in _reported(path)
        for place, turn in enumerate(sample.turns)
        if turn.kind != "caption"
    )


def dialogues(files: TaskFiles) -> Task:
    """What is asked next about a scene ("and what colour is it?"), after the right answers to what came first."""
    path = _held_out(files, "dialogues.jsonl")
    items = tuple(
        Item(
            f"{number}/{place}",
            sample.images[0],
            (turn.answer,),
            turn.question,
            turn.kind,
            before=tuple((one.question, one.answer) for one in sample.turns[:place]),
        )
        for number, sample in _reported(path)
        for place, turn in enumerate(sample.turns)
        if place
    )
    return Task("dialogues", items, Accuracy(listed), (path,), blind=True)


def names(files: TaskFiles) -> Task:
    """Drawings in a style never trained, of things whose name was; an alias is right, too."""
    path = _held_out(files, "drawings.jsonl")
    return Task("names", tuple(_named(files, _reported(path), "name")), Accuracy(exact), (path,), blind=True)


def hands(files: TaskFiles) -> Task:
    """The same of artists by whom nothing was trained, calibrated or chosen: every picture counts."""
    paths = {hand: _held_out(files, f"{hand}.jsonl") for hand in HELD_OUT_HANDS}
    items: list[Item] = []
    for hand, path in paths.items():
        samples = ((f"{hand}/{number}", sample) for number, sample in enumerate(iter_jsonl(path)))
        items += _named(files, samples, hand)
    return Task("hands", tuple(items), Accuracy(exact), tuple(paths.values()), blind=True)


def photographs(files: TaskFiles) -> Task:
    """Photographs that come with packages: of what one of ImageNet's classes is, and of what none is."""
    taken = pictured(files.data)
    paths = tuple(one.path for one in taken)
    for path in paths:
        _there(files, path)
    items = tuple(
        Item(
            one.path.name,
            one.path,
            _with_articles(one.names),
            "What is this?",
            "in ImageNet" if one.in_imagenet else "not in ImageNet",
        )
        for one in taken
    )
    return Task("photographs", items, Accuracy(exact), paths, blind=True)


def _with_articles(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({form for one in names for form in (one, with_article(one))}))


def _named(files: TaskFiles, samples: Iterable[tuple[int | str, Sample]], kind: str) -> Iterator[Item]:
    """What each of these pictures is, where something of that name was trained: a drawing, or one of ImageNet's classes.

    Of a class the noun that people say is right, too: a monarch butterfly is a butterfly.
    """
    aliases: dict[str, set[str]] = defaultdict(set)
    trained = {entry.basic for entry in CLASSES}
    for entry in CLASSES:
        aliases[entry.noun] |= {entry.noun, entry.basic}
    for picture in load_pictures(files.data):
        aliases[picture.name] |= {picture.name, *picture.aliases}
        if picture.style in SCENE_STYLES + MORE_HANDS + LINE_HANDS:
            trained.add(picture.name)
    for place, sample in samples:
        name = next((turn.answer for turn in sample.turns if turn.kind == "name"), "")
        name = name.removeprefix("a ").removeprefix("an ")
        names = {name, *aliases[name]}
        if not trained.isdisjoint(names):
            yield Item(str(place), sample.images[0], _with_articles(names), "What is this?", kind)


def hallucination(files: TaskFiles) -> Task:
    """Captions of scenes: which of the objects that they name are there."""
    path = _held_out(files, "scenes.jsonl")
    vocabulary = frozenset(picture.name for picture in load_pictures(files.data))
    items = []
    for number, sample in _reported(path):
        truth = [turn.answer for turn in sample.turns if turn.question == CAPTION_REQUESTS["normal"]]
        if truth:
            items.append(Item(str(number), sample.images[0], (truth[0],)))
    return Task("hallucination", tuple(items), NamedObjects(vocabulary), (path,), blind=True)


class NamedObjects:
    """Objects that captions name against those that a caption known to name everything names.

    After CHAIR (Rohrbach et al. 2018, arXiv 1809.02156), with counts and colours: "three red stars" names three.
    """

    headline = ""

    def __init__(self, vocabulary: Collection[str]) -> None:
        self._vocabulary = vocabulary

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Measured:
        """Counts: objects named, of these not there, objects there, of these named, captions with one not there, 1."""
        rows = []
        for item, answer in zip(items, answers, strict=True):
            truth = named_things(item.references[0], self._vocabulary)
            things = tuple(
                Thing(one.noun, one.colour, "", None, NOWHERE) for one in truth for _ in range(one.count)
            )
            named, wrong = hallucinated(answer, Scene(things, "white", None), self._vocabulary)
            said = {(one.colour, one.noun) for one in named_things(answer, self._vocabulary)}
            found = sum((thing.colour, thing.noun) in said for thing in things)
            rows.append([named, wrong, len(things), found, wrong > 0, 1])
        counts = np.array(rows, dtype=float)
        return Measured(counts, 1 - counts[:, 4])

    def combine(self, sums: np.ndarray) -> Scores:
        return {
            "objects not there": mean(sums, 1, 0),
            "captions with one": mean(sums, 4, 5),
            "objects found": mean(sums, 3, 2),
            "objects a caption": mean(sums, 0, 5),
        }


def _held_out(files: TaskFiles, name: str) -> Path:
    return _there(files, files.data / "corpus" / "held_out" / name)


def _there(files: TaskFiles, path: Path) -> Path:
    if not path.is_file():
        raise EvaluationError(
            f"--data {files.data}: lacks {path}; `vision-lm data build --out {files.data}` makes it"
        )
    return path


def _reported(path: Path) -> list[tuple[int, Sample]]:
    """Numbered by their lines."""
    return list(reported_part(list(enumerate(iter_jsonl(path)))))
