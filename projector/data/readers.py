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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from projector.data.json_records import Record, iter_records
from projector.data.samples import (
    QA,
    BadRecords,
    Sample,
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
    for record in iter_records(path):
        key, value = record.key, record.value
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
    for record in iter_records(path):
        if record.key is not None:
            raise DataError(f"{path}: is a JSON object; LLaVA conversations are a JSON array of records")
        try:
            sample = _llava_sample(record.value, root, _place(path, record, "id"))
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
        turns.append(QA(question, text_field(messages[i + 1], "value", f"{where}: message {i + 2}")))
    if tags != len(images):
        raise DataError(
            f"{where}: has <image> {tags} times but names {len(images)} images; the two must be equal"
        )
    return Sample(images, tuple(turns), linked=True, source=where)


# COCO captions


def _read_coco(path: Path, root: Path, bad: BadRecords | None) -> Iterator[Sample]:
    images: dict[int, tuple[str, str] | None] = {}  # image id -> file name and place; None where it was bad
    captions: dict[int, list[tuple[str, str]]] = {}  # image id -> text and place of each
    for record in iter_records(path):
        if record.key not in ("images", "annotations"):
            continue
        where = _place(path, record, "id")
        try:
            if record.key == "images":
                image_id = _new_id(images, record.value, "id", where)
                images[image_id] = (_field(record.value, "file_name", str, where), where)
            else:
                image_id = _field(record.value, "image_id", int, where)
                caption = text_field(record.value, "caption", where)
                captions.setdefault(image_id, []).append((caption, where))
        except DataError as error:
            reject(error, bad)

    for image_id, listed in captions.items():
        if image_id not in images:
            for _, where in listed:
                reject(DataError(f"{where}: is about image {image_id}, which 'images' does not list"), bad)
        image = images.get(image_id)
        if image is None:
            continue
        name, where = image
        try:
            pictures = existing_images([name], root, where)
        except DataError as error:
            reject(error, bad)
        else:
            requests = (caption_request(name, index) for index in range(len(listed)))
            turns = (QA(asked, text, "caption") for asked, (text, _) in zip(requests, listed, strict=True))
            yield Sample(pictures, tuple(turns), source=where)


# VQAv2


@dataclass(frozen=True, slots=True)
class _Question:
    image_id: int
    text: str
    where: str


def _read_vqav2(path: Path, annotations: Path, root: Path, bad: BadRecords | None) -> Iterator[Sample]:
    require_file(annotations)
    subset, questions = _read_questions(path, bad)
    turns: dict[int, list[QA]] = {}  # by image id
    for record in iter_records(annotations):
        if record.key == "data_subtype" and record.value != subset:
            raise DataError(
                f"{annotations}: is for {shown(record.value)}, but {path} for {shown(subset)}; take a pair"
            )
        if record.key != "annotations":
            continue
        where = _place(annotations, record, "question_id")
        try:
            question_id = _field(record.value, "question_id", int, where)
            if question_id not in questions:
                raise DataError(f"{where}: there is no such question in {path}, or it is answered already")
            asked = questions.pop(question_id)
            if asked is None:
                continue
            image_id = _field(record.value, "image_id", int, where)
            if image_id != asked.image_id:
                raise DataError(
                    f"{where}: is about image {image_id}, its question about image {asked.image_id}"
                )
            answer = text_field(record.value, "multiple_choice_answer", where)
            kind = _field(record.value, "answer_type", str, where)
            turns.setdefault(image_id, []).append(QA(asked.text, answer, kind))
        except DataError as error:
            reject(error, bad)
    for unanswered in questions.values():
        if unanswered is not None:
            reject(DataError(f"{unanswered.where}: has no answer in {annotations}"), bad)

    for image_id, answered in turns.items():
        where = f"{path}#image_id/{image_id}"
        try:
            images = existing_images([f"COCO_{subset}_{image_id:012d}.jpg"], root, where)
        except DataError as error:
            reject(error, bad)
        else:
            yield Sample(images, tuple(answered), source=where)


def _read_questions(path: Path, bad: BadRecords | None) -> tuple[str, dict[int, _Question | None]]:
    """The name of the subset, and the questions by id, None where one was bad."""
    subset = None
    questions: dict[int, _Question | None] = {}
    for record in iter_records(path):
        if record.key == "data_subtype":
            subset = record.value
        if record.key != "questions":
            continue
        where = _place(path, record, "question_id")
        try:
            question_id = _new_id(questions, record.value, "question_id", where)
            image_id = _field(record.value, "image_id", int, where)
            text = askable(text_field(record.value, "question", where), where)
            questions[question_id] = _Question(image_id, text, where)
        except DataError as error:
            reject(error, bad)
    if not isinstance(subset, str):
        raise DataError(
            f"{path}: 'data_subtype' is missing; VQAv2 names its images by it, such as \"train2014\""
        )
    return subset, questions


# Records and their fields


def _place(path: Path, record: Record, id_name: str) -> str:
    """How messages name a record: by its line, and its id, or its number where it has none."""
    identity = record.value.get(id_name) if isinstance(record.value, dict) else None
    if isinstance(identity, str | int):
        name = shown(identity).strip('"')
        return f"{path}:{record.line}#{record.key}/{name}" if record.key else f"{path}:{record.line}#{name}"
    array = f" of '{record.key}'" if record.key else ""
    return f"{path}:{record.line}: record {record.number}{array}"


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
