"""Readers of published tasks: their own files in, a Task out. Nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vision_lm.errors import EvaluationError
from vision_lm.evaluate.answers import LETTERS, Accuracy, chosen, exact, textvqa_accuracy, vqa_accuracy
from vision_lm.evaluate.captions import CocoCaptions
from vision_lm.evaluate.json_files import by_id, field, read_json, records, require, some
from vision_lm.evaluate.pope import Pope
from vision_lm.evaluate.settings import TaskFiles
from vision_lm.evaluate.tasks import Item, Task


def vqav2(files: TaskFiles) -> Task:
    """VQAv2 (Goyal et al. 2017, arXiv 1612.00837): questions and annotations of one split, images COCO_<split>_<id>.jpg."""
    asked_in = require(files.questions, "--questions", "v2_OpenEnded_mscoco_val2014_questions.json")
    answered_in = require(files.annotations, "--annotations", "v2_mscoco_val2014_annotations.json")
    images = require(files.images, "--images", "the folder val2014 of COCO's pictures")
    asked, answered = read_json(asked_in), read_json(answered_in)
    questions = by_id(asked_in, records(asked_in, asked, "questions"), "question_id")
    annotations = by_id(answered_in, records(answered_in, answered, "annotations"), "question_id")
    split, other = field(asked, "data_subtype", str(asked_in)), answered.get("data_subtype")
    if other is not None and other != split:
        raise EvaluationError(
            f"{answered_in}: is of {other}, but {asked_in} of {split}; give two files of one split"
        )
    _same_ids(asked_in, questions, answered_in, annotations)
    items = []
    for key, record in questions.items():
        where = f"{answered_in}: question_id {key}"
        note = annotations[key]
        references = tuple(str(field(one, "answer", where)) for one in records(answered_in, note, "answers"))
        asking = f"{asked_in}: question_id {key}"
        image = images / f"COCO_{split}_{field(record, 'image_id', asking, int):012d}.jpg"
        text = str(field(record, "question", asking))
        items.append(Item(key, image, references, text, str(note.get("answer_type", ""))))
    return Task("vqav2", tuple(items), Accuracy(vqa_accuracy), (asked_in, answered_in))


def gqa(files: TaskFiles) -> Task:
    """GQA (Hudson and Manning 2019, arXiv 1902.09506): {id: {imageId, question, answer, types}}, images <imageId>.jpg."""
    path = require(
        files.questions, "--questions", "testdev_balanced_questions.json or val_balanced_questions.json"
    )
    images = require(files.images, "--images", "the folder images of GQA's pictures")
    found = read_json(path)
    if not isinstance(found, dict) or not found:
        raise EvaluationError(f"{path}: needs an object of question ids; GQA's *_questions.json is one")
    items = []
    for key, record in found.items():
        where = f"{path}: question {key}"
        types = record.get("types") if isinstance(record, dict) else None
        kind = str(types.get("structural", "")) if isinstance(types, dict) else ""
        image = images / f"{field(record, 'imageId', where)}.jpg"
        text, answer = str(field(record, "question", where)), str(field(record, "answer", where))
        items.append(Item(key, image, (answer,), text, kind))
    return Task("gqa", tuple(items), Accuracy(exact), (path,))


def textvqa(files: TaskFiles) -> Task:
    """TextVQA (Singh et al. 2019, arXiv 1904.08920): {"data": [{question_id, image_id, question, answers}]}."""
    path = require(files.questions, "--questions", "TextVQA_0.5.1_val.json")
    images = require(files.images, "--images", "the folder train_images of TextVQA's pictures")
    items = []
    for key, record in by_id(path, records(path, read_json(path), "data"), "question_id").items():
        where = f"{path}: question_id {key}"
        references = tuple(map(str, field(record, "answers", where, list)))
        if not references:
            raise EvaluationError(
                f"{where}: has no answers; the test split's are not public, give the val split"
            )
        image = images / f"{field(record, 'image_id', where)}.jpg"
        items.append(Item(key, image, references, str(field(record, "question", where))))
    return Task("textvqa", tuple(items), Accuracy(textvqa_accuracy), (path,))


def pope(files: TaskFiles) -> Task:
    """POPE (Li et al. 2023, arXiv 2305.10355): a line {"question_id", "image", "text", "label"} a question."""
    path = require(files.questions, "--questions", "coco_pope_random.json, _popular or _adversarial")
    images = require(files.images, "--images", "the folder val2014 of COCO's pictures")
    items = []
    for key, record in by_id(path, _lines(path), "question_id").items():
        where = f"{path}: question_id {key}"
        label = field(record, "label", where)
        if label not in ("yes", "no"):
            raise EvaluationError(f"{where}: label is {label!r}; it must be yes or no")
        text = str(field(record, "text", where))
        items.append(Item(key, images / str(field(record, "image", where)), (label,), text, label))
    return Task("pope", tuple(items), Pope(), (path,))


def scienceqa(files: TaskFiles) -> Task:
    """ScienceQA's questions with a picture (Lu et al. 2022, arXiv 2209.09513): problems.json, images <split>/<id>/image.png."""
    path = require(files.questions, "--questions", "problems.json")
    images = require(files.images, "--images", "the folder that holds train, val and test")
    splits = files.splits and require(files.splits, "--splits", "pid_splits.json")
    found = read_json(path)
    if not isinstance(found, dict):
        raise EvaluationError(f"{path}: needs an object of problem ids; ScienceQA's problems.json is one")
    wanted = None
    if splits:
        listed = field(read_json(splits), files.split, str(splits), list)
        wanted = set(map(str, listed))
        if unknown := sorted(wanted - found.keys()):
            raise EvaluationError(
                f"{splits}: problems that {path} lacks ({some(unknown)}); give two files of one release"
            )
    items = []
    for key, record in found.items():
        where = f"{path}: problem {key}"
        split = field(record, "split", where)
        if not record.get("image") or (split != files.split if wanted is None else key not in wanted):
            continue
        choices = tuple(map(str, records(path, record, "choices")))
        number = field(record, "answer", where)
        if not isinstance(number, int) or not 0 <= number < len(choices) <= len(LETTERS):
            raise EvaluationError(
                f"{where}: answer is {number!r}; it must be the place of one of its choices"
            )
        lettered = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))
        parts = [str(record.get("hint") or ""), str(field(record, "question", where)), lettered]
        text = "\n".join([part for part in parts if part] + ["Answer with the option's letter."])
        image = images / str(split) / key / str(record["image"])
        items.append(Item(key, image, (LETTERS[number],), text, str(record.get("subject", "")), choices))
    if not items:
        raise EvaluationError(
            f"{path}: no question with a picture is of split {files.split!r}; give train, val or test"
        )
    return Task("scienceqa", tuple(items), Accuracy(chosen), (path, *([splits] if splits else [])))


def coco(files: TaskFiles) -> Task:
    """COCO captions (Chen et al. 2015, arXiv 1504.00325): {"images": [{id, file_name}], "annotations": [{image_id, caption}]}."""
    path = require(files.annotations, "--annotations", "captions_val2014.json")
    images = require(files.images, "--images", "the folder val2014 of COCO's pictures")
    found = read_json(path)
    pictures = by_id(path, records(path, found, "images"), "id")
    captions: dict[str, list[str]] = {key: [] for key in pictures}
    strange = []
    for number, record in enumerate(records(path, found, "annotations"), start=1):
        where = f"{path}: annotation {number}"
        key = str(field(record, "image_id", where))
        if key in captions:
            captions[key].append(str(field(record, "caption", where)))
        else:
            strange.append(key)
    bare = [key for key, texts in captions.items() if not texts]
    if strange or bare:
        what = (
            f"captions of images that it does not list ({some(strange)})"
            if strange
            else f"no caption for images ({some(bare)})"
        )
        raise EvaluationError(f"{path}: has {what}; give the whole file of one split")
    items = [
        Item(key, images / str(field(record, "file_name", f"{path}: image {key}")), tuple(captions[key]))
        for key, record in pictures.items()
    ]
    return Task("coco", tuple(items), CocoCaptions(), (path,), length="short")


def _same_ids(first: Path, questions: dict[str, Any], second: Path, annotations: dict[str, Any]) -> None:
    without = [key for key in questions if key not in annotations]
    strange = [key for key in annotations if key not in questions]
    if without or strange:
        what = f"lacks questions ({some(without)})" if without else f"has unknown questions ({some(strange)})"
        raise EvaluationError(f"{second}: {what} of {first}; give two files of one split")


def _lines(path: Path) -> list[Any]:
    found: list[Any] = []
    number = 0
    try:
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            number += 1  # also known where reading fails
            if line.strip():
                found.append(json.loads(line))
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{path} line {number}: not JSON ({error}); POPE has an object a line"
        ) from error
    if not found:
        raise EvaluationError(f"{path}: is empty; fetch it again")
    return found
