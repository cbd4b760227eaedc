"""Annotations in each layout that the readers know, as files, and the images that they name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from projector.data import readers
from projector.data.readers import BadRecords, read_samples
from projector.data.samples import Sample

JSONL = [
    {"image": "a.png", "question": "What is it?", "answer": "A cube."},
    {"images": [], "turns": [{"question": "Two plus two?", "answer": "Four."}]},
    {
        "images": ["a.png", "b.png"],
        "turns": [
            {"question": "Which is red?", "answer": "the first", "kind": "colour"},
            {"question": "And blue?", "answer": "neither"},
        ],
        "linked": True,
    },
    {"image": "b.png", "caption": "A red cube."},
]
LLAVA: list[dict[str, Any]] = [
    {
        "id": "000000033471",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
            {"from": "gpt", "value": "The bus is white and red."},
            {"from": "human", "value": "Is it moving?"},
            {"from": "gpt", "value": "It is parked."},
        ],
    },
    {
        "id": "wgByO4Y_0",
        "model": "",
        "conversations": [
            {"from": "human", "value": "Name a prime."},
            {"from": "gpt", "value": "Seven."},
        ],
    },
    {
        "id": 7,
        "image": ["a.png", "b.png"],
        "conversations": [
            {"from": "human", "value": "Compare them.\n<image>\n<image>"},
            {"from": "gpt", "value": "They are alike."},
        ],
    },
]
COCO: dict[str, Any] = {
    "info": {"description": "COCO 2014 Dataset", "year": 2014},
    "images": [
        {
            "license": 5,
            "file_name": "COCO_train2014_000000057870.jpg",
            "height": 480,
            "width": 640,
            "id": 57870,
        },
        {"license": 5, "file_name": "b.png", "height": 426, "width": 640, "id": 384029},
    ],
    "licenses": [{"url": "http://example.org/", "id": 5, "name": "Attribution License"}],
    "annotations": [
        {"image_id": 57870, "id": 787980, "caption": "A restaurant has modern wooden tables and chairs."},
        {"image_id": 384029, "id": 819832, "caption": "A man preparing desserts in a kitchen. "},
        {"image_id": 57870, "id": 789366, "caption": "A long restaurant table with rattan chairs."},
    ],
}
QUESTIONS: dict[str, Any] = {
    "info": {"description": "This is v2.0 of the VQA dataset."},
    "task_type": "Open-Ended",
    "data_type": "mscoco",
    "license": {"name": "Creative Commons Attribution 4.0"},
    "data_subtype": "train2014",
    "questions": [
        {"image_id": 57870, "question": "What are the chairs made of?", "question_id": 57870000},
        {"image_id": 9, "question": "How many cookies can be seen?", "question_id": 9002},
        {"image_id": 57870, "question": "Is this a restaurant?", "question_id": 57870001},
    ],
}


def _answer(question_id: int, image_id: int, answer: str, answer_type: str) -> dict[str, Any]:
    votes = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]
    return {
        "question_type": "what",
        "multiple_choice_answer": answer,
        "answers": votes,
        "image_id": image_id,
        "answer_type": answer_type,
        "question_id": question_id,
    }


ANSWERS: dict[str, Any] = {
    "data_subtype": "train2014",
    "annotations": [
        _answer(57870000, 57870, "wicker", "other"),
        _answer(9002, 9, "2", "number"),
        _answer(57870001, 57870, "yes", "yes/no"),
    ],
}
IMAGES = (
    "a.png",
    "b.png",
    "coco/train2017/000000033471.jpg",
    "COCO_train2014_000000057870.jpg",
    "COCO_train2014_000000000009.jpg",
)


def write(folder: Path, layout: str, content: Any) -> Path:
    """Writes `content` in its published layout; that of VQAv2 is the pair (questions, annotations)."""
    if layout == "jsonl":
        path = folder / "data.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in content))
        return path
    path = folder / f"{layout}.json"
    if layout == "vqav2":
        (folder / "answers.json").write_text(json.dumps(content[1]))
        content = content[0]
    path.write_text(json.dumps(content))
    return path


def read(path: Path, format: readers.Format = "auto", bad: BadRecords | None = None) -> list[Sample]:
    annotations = path.parent / "answers.json" if path.name == "vqav2.json" else None
    return list(read_samples(path, format=format, annotations=annotations, bad=bad))


CONTENT: dict[str, Any] = {"jsonl": JSONL, "llava": LLAVA, "coco": COCO, "vqav2": (QUESTIONS, ANSWERS)}
