"""Readers of the published layouts of image-and-text data: a file in, checked Samples out.

    jsonl   our own lines (samples.py)
    llava   LLaVA conversations: a JSON array of {"id", "image", "conversations": [{"from", "value"}]}
    coco    COCO captions: {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}
    vqav2   VQAv2: a questions file {"data_subtype", "questions"} and its annotations file {"annotations"}

Files are parsed once and one record at a time, so that a JSON file of a gigabyte is never held whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from projector.data.json_records import iter_records
from projector.data.samples import (
    BadRecords,
    Sample,
    Turn,
    askable,
    caption_request,
    existing_images,
    iter_jsonl,
    reject,
    require_file,
    require_some,
    shown,
    text_field,
)
from vision_lm.errors import DataError

Format = Literal["auto", "jsonl", "llava", "coco", "vqav2"]
T = TypeVar("T")
_IMAGE_TAG = re.compile(r"\s*<image>\s*")
_TYPE_NAMES = {int: "a whole number", str: "text in quotes", list: "a list"}


def read_samples(
    path: Path | str,
    *,
    format: Format = "auto",
    image_root: Path | str | None = None,
    annotations: Path | str | None = None,
    bad: BadRecords | None = None,
) -> Iterator[Sample]:
    """Reads the samples of one file, in the file's order.

    `image_root` is the folder that image names start from (default: the file's own); `annotations` is the
    second file of VQAv2. Without `bad` the first bad record raises DataError; with it, bad records are
    collected there and skipped. What spoils the whole file (missing, empty, cut short, of an unknown format)
    raises in either case.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    if format not in get_args(Format):
        raise DataError(f"{path}: unknown format {format!r}; the formats are {', '.join(get_args(Format))}")
    require_file(path)
    layout = _detect_format(path) if format == "auto" else format
    if annotations is not None and layout != "vqav2":
        raise DataError(
            f"{path}: is read as {layout}, which has no annotations file; only vqav2 takes {annotations}"
        )
    if layout == "jsonl":
        return iter_jsonl(path, root, bad)
    if layout == "llava":
        return require_some(path, _read_llava(path, root, bad), bad)
    if layout == "coco":
        return require_some(path, _read_coco(path, root, bad), bad)
    if annotations is None:
        raise DataError(f"{path}: VQAv2 keeps the answers in a second file; give it as the annotations")
    return require_some(path, _read_vqav2(path, Path(annotations), root, bad), bad)


def _detect_format(path: Path) -> Format:
    """Tells the format from the first telling key, reading no further."""
    if path.suffix == ".jsonl":  # so that even a first line that is not JSON is reported as a line
        return "jsonl"
    for key, _, value in iter_records(path):
        keys = value.keys() if isinstance(value, dict) else ()
        if key is None and "conversations" in keys:
            return "llava"
        if key == "questions" and "question_id" in keys:
            return "vqav2"
        if key == "annotations" and "question_id" in keys:
            raise DataError(
                f"{path}: holds VQAv2 answers; give the questions file here and this one as annotations"
            )
        if (key == "images" and "file_name" in keys) or (key == "annotations" and "caption" in keys):
            return "coco"
        if key in ("image", "turns", "question", "caption") or (key == "images" and isinstance(value, str)):
            return "jsonl"
        if key in (None, "images", "annotations", "questions"):
            break
    raise DataError(
        f"{path}: cannot tell its format from its content; name it: jsonl (an object a line with 'image'), "
        "llava (an array with 'conversations'), coco ('images', 'annotations') or vqav2 ('questions')"
    )


# LLaVA conversations


def _read_llava(path: Path, root: Path, bad: BadRecords | None) -> Iterator[Sample]:
    for key, number, record in iter_records(path):
        if key is not None:
            raise DataError(f"{path}: is a JSON object; LLaVA conversations are a JSON array of records")
        try:
            sample = _llava_sample(record, root, _record_name(path, key, record, "id", number))
        except DataError as error:
            reject(error, bad)
        else:
            yield sample


def _llava_sample(record: Any, root: Path, where: str) -> Sample:
    messages = _field(record, "conversations", list, where)
    for number, message in enumerate(messages, start=1):
        role = _field(message, "from", str, f"{where}: message {number}")
        expected = "human" if number % 2 else "gpt"
        if role not in ("human", "gpt"):
            raise DataError(f"{where}: message {number} is from {shown(role)}; the roles are human and gpt")
        if role != expected:
            raise DataError(
                f"{where}: message {number} is from {role}, not {expected}; human and gpt must alternate"
            )
    if not messages or len(messages) % 2:
        raise DataError(f"{where}: has {len(messages)} messages; each of human's needs an answer of gpt's")

    named = record.get("image")
    if named is None:  # a record of text alone
        named = []
    images = existing_images([named] if isinstance(named, str) else named, root, where)
    tags = 0
    turns = []
    for i in range(0, len(messages), 2):
        asked = text_field(messages[i], "value", f"{where}: message {i + 1}")
        tags += asked.count("<image>")
        question = askable(_IMAGE_TAG.sub(" ", asked), f"{where}: message {i + 1}")
        turns.append(Turn(question, text_field(messages[i + 1], "value", f"{where}: message {i + 2}")))
    if tags != len(images):
        raise DataError(
            f"{where}: has <image> {tags} times but names {len(images)} images; the two must be equal"
        )
    return Sample(images, tuple(turns), linked=True, source=where)


# COCO captions


def _read_coco(path: Path, root: Path, bad: BadRecords | None) -> Iterator[Sample]:
    names: dict[int, str | None] = {}  # image id -> file name; None where the entry was bad
    captions: dict[int, list[tuple[str, str]]] = {}  # image id -> caption and name in messages, of each
    for key, number, record in iter_records(path):
        if key not in ("images", "annotations"):
            continue
        where = _record_name(path, key, record, "id", number)
        try:
            if key == "images":
                image_id = _new_id(names, record, "id", where)
                names[image_id] = _field(record, "file_name", str, where)
            else:
                image_id = _field(record, "image_id", int, where)
                caption = text_field(record, "caption", where)
                captions.setdefault(image_id, []).append((caption, where))
        except DataError as error:
            reject(error, bad)

    for image_id, listed in captions.items():
        if image_id not in names:
            for _, where in listed:
                reject(DataError(f"{where}: is about image {image_id}, which 'images' does not list"), bad)
        name = names.get(image_id)
        if name is None:
            continue
        where = f"{path}#images/{image_id}"
        try:
            images = existing_images([name], root, where)
        except DataError as error:
            reject(error, bad)
        else:
            requests = (caption_request(name, index) for index in range(len(listed)))
            turns = (Turn(asked, text, "caption") for asked, (text, _) in zip(requests, listed, strict=True))
            yield Sample(images, tuple(turns), source=where)


# VQAv2


def _read_vqav2(path: Path, annotations: Path, root: Path, bad: BadRecords | None) -> Iterator[Sample]:
    require_file(annotations)
    subset, questions = _read_questions(path, bad)
    turns: dict[int, list[Turn]] = {}  # by image id
    for key, number, record in iter_records(annotations):
        if key == "data_subtype" and record != subset:
            raise DataError(
                f"{annotations}: is for {shown(record)}, but {path} for {shown(subset)}; take a pair"
            )
        if key != "annotations":
            continue
        where = _record_name(annotations, key, record, "question_id", number)
        try:
            question_id = _field(record, "question_id", int, where)
            if question_id not in questions:
                raise DataError(f"{where}: there is no such question in {path}, or it is answered already")
            asked = questions.pop(question_id)
            if asked is None:
                continue
            image_id, question = asked
            if _field(record, "image_id", int, where) != image_id:
                raise DataError(
                    f"{where}: is about image {record['image_id']}, its question about image {image_id}"
                )
            answer = text_field(record, "multiple_choice_answer", where)
            kind = _field(record, "answer_type", str, where)
            turns.setdefault(image_id, []).append(Turn(question, answer, kind))
        except DataError as error:
            reject(error, bad)
    for question_id, unanswered in questions.items():
        if unanswered is not None:
            reject(DataError(f"{path}#questions/{question_id}: has no answer in {annotations}"), bad)

    for image_id, answered in turns.items():
        where = f"{path}#image_id/{image_id}"
        try:
            images = existing_images([f"COCO_{subset}_{image_id:012d}.jpg"], root, where)
        except DataError as error:
            reject(error, bad)
        else:
            yield Sample(images, tuple(answered), source=where)


def _read_questions(path: Path, bad: BadRecords | None) -> tuple[str, dict[int, tuple[int, str] | None]]:
    """The name of the subset, and question id -> (image id, question), or None where the question was bad."""
    subset = None
    questions: dict[int, tuple[int, str] | None] = {}
    for key, number, record in iter_records(path):
        if key == "data_subtype":
            subset = record
        if key != "questions":
            continue
        where = _record_name(path, key, record, "question_id", number)
        try:
            question_id = _new_id(questions, record, "question_id", where)
            image_id = _field(record, "image_id", int, where)
            questions[question_id] = (image_id, askable(text_field(record, "question", where), where))
        except DataError as error:
            reject(error, bad)
    if not isinstance(subset, str):
        raise DataError(
            f"{path}: 'data_subtype' is missing; VQAv2 names its images by it, such as \"train2014\""
        )
    return subset, questions


# Records and their fields


def _record_name(path: Path, key: str | None, record: Any, id_name: str, number: int) -> str:
    """How messages name a record: by its id, or by its place (from 1) where it has none."""
    identity = record.get(id_name) if isinstance(record, dict) else None
    if isinstance(identity, str | int):
        name = shown(identity).strip('"')
        return f"{path}#{key}/{name}" if key else f"{path}#{name}"
    return f"{path}: record {number} of '{key}'" if key else f"{path}: record {number}"


def _field(record: Any, name: str, kind: type[T], where: str) -> T:
    if not isinstance(record, dict):
        raise DataError(f"{where}: {shown(record)} is not a JSON object")
    if name not in record:
        raise DataError(f"{where}: '{name}' is missing")
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: '{name}' is {shown(value)}; it must be {_TYPE_NAMES[kind]}")
    return value


def _new_id(known: dict[int, Any], record: Any, name: str, where: str) -> int:
    """The record's id, entered in `known` as None: met, but unusable until the rest proves good."""
    identity = _field(record, name, int, where)
    if identity in known:
        raise DataError(f"{where}: a second record with this '{name}'; each must have its own")
    known[identity] = None
    return identity
