"""Runs from files to folders, with a model made of rules: what resumes, what is refused, what is marked partial."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vision_lm.evaluate as evaluate_package
import vision_lm.evaluate.results as results
from vision_lm.cli import main
from vision_lm.errors import EvaluationError
from vision_lm.evaluate.evaluation import Model, run_task
from vision_lm.evaluate.predictions import Failure, Prediction
from vision_lm.evaluate.registry import read_task
from vision_lm.evaluate.results import Result
from vision_lm.evaluate.settings import Settings, TaskFiles
from vision_lm.evaluate.tasks import Item

WORDS = ("red", "two", "<b>a cat</b>")


def vqa_files(folder: Path, count: int = 6, split: str = "val2014") -> TaskFiles:
    """Questions about three pictures, in VQAv2's own layout."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    questions, annotations = [], []
    for number in range(count):
        Image.new("RGB", (8, 8), (40 * number, 90, 20)).save(images / f"COCO_{split}_{number // 2:012d}.jpg")
        questions.append({"question_id": number, "image_id": number // 2, "question": f"What is {number}?"})
        answers = [{"answer": WORDS[number % 3], "answer_id": one + 1} for one in range(10)]
        annotations.append(
            {"question_id": number, "image_id": number // 2, "answer_type": "other", "answers": answers}
        )
    asked, answered = folder / "questions.json", folder / "annotations.json"
    asked.write_text(json.dumps({"data_subtype": split, "questions": questions}))
    answered.write_text(json.dumps({"data_subtype": split, "annotations": annotations}))
    return TaskFiles(asked, answered, images)


class Rules:
    """Says "red" to everything, with a confidence, and counts what it is asked. It may be killed, or fail at items."""

    def __init__(self, stop_after: int | None = None, fails: Sequence[str] = ()) -> None:
        self.asked: list[str] = []
        self._stop_after, self._fails = stop_after, fails

    def __call__(self, items: Sequence[Item], blind: bool) -> Iterator[Any]:
        for item in items:
            if self._stop_after == len(self.asked):
                raise KeyboardInterrupt
            self.asked.append(item.id)
            if item.id in self._fails and not blind:
                yield Failure(item.id, f"{item.image}: the JPEG data is truncated; give a complete file")
            else:
                yield Prediction(item.id, "red", 0.25 + 0.1 * int(item.id), "stop")


Evaluate = Callable[..., Result]


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    files = vqa_files(tmp_path)

    def evaluate(rules: Rules | None = None, **changes: Any) -> Result:
        settings = Settings(
            **({"task": "vqav2", "out": tmp_path / "out", "files": files, "resamples": 50} | changes)
        )
        task = read_task(settings.task, settings.files)
        return run_task(settings, task, lambda: Model(rules or Rules(), {"model": "rules"}))

    return evaluate


def refused(evaluate: Evaluate, *words: str, **changes: Any) -> None:
    with pytest.raises(EvaluationError) as caught:
        evaluate(**changes)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_the_folder(evaluate: Evaluate, tmp_path: Path) -> None:
    result = evaluate(command="vision-lm eval vqav2", blind=True)
    out = tmp_path / "out"
    saved = json.loads((out / "scores.json").read_text())
    assert saved["scores"]["accuracy"]["value"] == pytest.approx(1 / 3) and not saved["partial"]
    assert saved["scores"]["accuracy"]["low"] <= 1 / 3 <= saved["scores"]["accuracy"]["high"]
    assert saved["blind"]["accuracy"]["value"] == pytest.approx(1 / 3)
    assert saved["command"] == "vision-lm eval vqav2" and saved["seed"] == 0 and saved["versions"]["numpy"]
    page = (out / "report.html").read_text()
    assert "&lt;b&gt;a cat&lt;/b&gt;" in page and "<b>a cat" not in page
    assert (
        "data:image/jpeg;base64" in page
        and "<svg" in page
        and "http://" not in page
        and "https://" not in page
    )
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 6 and str(result).startswith(
        "vqav2: 6 of 6"
    )


def test_stopped_runs_go_on(evaluate: Evaluate, tmp_path: Path) -> None:
    whole = evaluate(out=tmp_path / "whole").to_json()
    with pytest.raises(KeyboardInterrupt):
        evaluate(Rules(stop_after=2))
    written = tmp_path / "out" / "predictions.jsonl"
    with written.open("a") as file:
        file.write('{"id": "2", "predi')  # a kill in the middle of a line
    second = Rules()
    result = evaluate(second).to_json()
    assert second.asked == ["2", "3", "4", "5"] and len(written.read_text().splitlines()) == 6
    assert result["scores"] == whole["scores"]
    third = Rules()
    evaluate(third)
    assert third.asked == []


def test_rescored_bit_for_bit_whatever_the_order(evaluate: Evaluate, tmp_path: Path) -> None:
    first = evaluate().to_json()
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(reversed(lines)))
    official = tmp_path / "results.json"
    official.write_text(json.dumps([{"question_id": n, "answer": "red"} for n in range(6)]))
    for path in (tmp_path / "out" / "predictions.jsonl", turned, official):
        again = evaluate(predictions=path, out=tmp_path / path.stem).to_json()
        assert json.dumps(again["scores"]) == json.dumps(first["scores"])
        assert json.dumps(again["by kind"]) == json.dumps(first["by kind"])


def test_predictions_that_do_not_fit(evaluate: Evaluate, tmp_path: Path) -> None:
    path = tmp_path / "given.json"

    def give(ids: Sequence[int]) -> dict[str, Any]:
        path.write_text(json.dumps([{"question_id": one, "answer": "red"} for one in ids]))
        return {"predictions": path}

    refused(evaluate, "given.json", "more than once", "1: 3", **give([0, 1, 2, 3, 3, 4, 5]))
    refused(evaluate, "given.json", "2: 77, 78", "does not have", **give([0, 1, 2, 3, 4, 5, 77, 78]))
    refused(evaluate, "given.json", "2: 1, 5", "--skip-missing", **give([0, 2, 3, 4]))
    partial = evaluate(**give([0, 2, 3, 4]), skip_missing=True).to_json()
    assert (
        partial["partial"]
        and partial["missing"]["count"] == 2
        and partial["scores"]["accuracy"]["items"] == 4
    )
    assert "<b>Partial</b>" in (tmp_path / "out" / "report.html").read_text()
    path.write_text('{"id": 1, "answer": "x"}\n{"id": ')
    refused(evaluate, "given.json line 2", "not JSON", predictions=path)


def test_an_unreadable_picture_costs_no_other_answer(evaluate: Evaluate, tmp_path: Path) -> None:
    refused(
        evaluate,
        "1: 4",
        "COCO_val2014_000000000002.jpg",
        "truncated",
        "--skip-missing",
        rules=Rules(fails=["4"]),
    )
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 5
    result = evaluate(Rules(fails=["4"]), skip_missing=True).to_json()
    assert (
        result["partial"]
        and result["missing"]["count"] == 1
        and "truncated" in result["missing"]["first"]["4"]
    )
    (tmp_path / "images" / "COCO_val2014_000000000001.jpg").unlink()
    refused(evaluate, "000000000001.jpg", "--skip-missing", out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_files_that_do_not_fit(evaluate: Evaluate, tmp_path: Path) -> None:
    files = vqa_files(tmp_path)
    other = vqa_files(tmp_path / "train", split="train2014")
    refused(
        evaluate, "train2014", "val2014", files=TaskFiles(files.questions, other.annotations, files.images)
    )
    fewer = vqa_files(tmp_path / "fewer", count=4)
    refused(
        evaluate,
        "lacks questions",
        "2: 4, 5",
        files=TaskFiles(files.questions, fewer.annotations, files.images),
    )
    absent = TaskFiles(tmp_path / "none.json", files.annotations, files.images)
    refused(
        evaluate,
        "none.json",
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "nothing is downloaded",
        files=absent,
    )
    refused(evaluate, "--images", files=TaskFiles(files.questions, files.annotations))
    refused(evaluate, "'vqa3'", "textvqa", task="vqa3")


@pytest.mark.parametrize(
    ("task", "name", "value", "said"),
    [
        ("vqav2", "image_id", "abc", r"question_id 0: image_id is \"abc\"; it must be a number"),
        ("vqav2", "image_id", None, "image_id is null; it must be a number"),
        ("vqav2", "question", ["x"], "question is .*; it must be text or a number"),
        ("textvqa", "answers", "red", r"answers is \"red\"; it must be a list"),
        ("textvqa", "answers", 5, "answers is 5; it must be a list"),
        ("gqa", "question", 5.0, None),
        ("gqa", "types", ["verify"], None),
        ("gqa", "answer", {}, "answer is {}; it must be text or a number"),
    ],
)
def test_a_field_of_another_kind_is_named(
    tmp_path: Path, task: str, name: str, value: Any, said: str | None
) -> None:
    """A file that was edited or is of another task: the record, the field, and what it must be; no traceback."""
    record = {"question_id": 0, "image_id": 0, "imageId": "n1", "question": "What?", "answer": "no"}
    record |= {"answers": ["x"] * 10, name: value}
    whole: dict[str, Any] = {
        "vqav2": {"data_subtype": "val2014", "questions": [record]},
        "textvqa": {"data": [record]},
        "gqa": {"07": record},
    }
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps(whole[task]))
    answered = vqa_files(tmp_path, count=1).annotations
    files = TaskFiles(asked, answered, tmp_path)
    if said is None:
        assert len(read_task(task, files).items) == 1
        return
    with pytest.raises(EvaluationError, match=said) as caught:
        read_task(task, files)
    assert "\n" not in str(caught.value) and str(asked) in str(caught.value)


def test_another_runs_folder(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate()
    refused(evaluate, "prompt", "--overwrite", prompt="{question} Briefly.")
    evaluate(prompt="{question} Briefly.", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    refused(evaluate, "no result folder", out=tmp_path / "mine")
    refused(evaluate, "{question}", prompt="hello")


def test_scores_of_given_predictions_take_no_other_runs_folder(evaluate: Evaluate, tmp_path: Path) -> None:
    """A file that is only scored must not end beside another's answers, nor in place of another task's scores."""
    evaluate()
    own, other = tmp_path / "out" / "predictions.jsonl", tmp_path / "other.jsonl"
    other.write_text(own.read_text())
    refused(evaluate, "predictions of another run", "--out", predictions=other)
    refused(evaluate, "predictions of another run", predictions=other, overwrite=True)
    assert evaluate(predictions=own).to_json()["scores"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["model"] == "rules", (
        "it is still the run's"
    )
    scored = {"predictions": other, "out": tmp_path / "scored"}
    evaluate(**scored)
    (tmp_path / "scored" / "run.json").write_text(json.dumps({"scored": "gqa"}))
    refused(evaluate, "scores of gqa, now vqav2", "--overwrite", **scored)
    evaluate(**scored, overwrite=True)
    assert json.loads((tmp_path / "scored" / "run.json").read_text()) == {"scored": "vqav2"}


def test_a_run_goes_on_only_under_the_versions_that_it_began_with(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The versions in scores.json are those of every answer."""
    with pytest.raises(KeyboardInterrupt):
        evaluate(Rules(stop_after=2))
    installed = results.version
    monkeypatch.setattr(results, "version", lambda name: "9.9" if name == "torch" else installed(name))
    refused(evaluate, "torch version: then", "now '9.9'", "--overwrite")
    monkeypatch.undo()
    rules = Rules()
    evaluate(rules)
    assert len(rules.asked) == 4


def test_a_limit_is_partial_and_chosen_by_the_seed(evaluate: Evaluate, tmp_path: Path) -> None:
    asked = []
    for number, seed in enumerate((0, 0, 1, 2)):
        rules = Rules()
        result = evaluate(rules, limit=3, seed=seed, out=tmp_path / str(number))
        assert result.partial and result.to_json()["missing"]["count"] == 0
        asked.append(rules.asked)
    assert all(len(one) == 3 for one in asked)
    assert asked[0] == asked[1] and asked[0] not in asked[2:]


def test_the_other_published_layouts(tmp_path: Path) -> None:
    def written(name: str, value: Any) -> Path:
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    gqa = {
        "07": {"imageId": "n1", "question": "Is it red?", "answer": "no", "types": {"structural": "verify"}}
    }
    (item,) = read_task("gqa", TaskFiles(written("gqa.json", gqa), images=tmp_path)).items
    assert item == Item("07", tmp_path / "n1.jpg", ("no",), "Is it red?", "verify")

    text = {"data": [{"question_id": 5, "image_id": "ab", "question": "What?", "answers": ["x"] * 10}]}
    (item,) = read_task("textvqa", TaskFiles(written("text.json", text), images=tmp_path)).items
    assert item.image == tmp_path / "ab.jpg" and len(item.references) == 10

    pope = '{"question_id": 1, "image": "COCO_1.jpg", "text": "Is there a dog?", "label": "no"}\n'
    (item,) = read_task("pope", TaskFiles(written("pope.json", pope), images=tmp_path)).items
    assert item.references == ("no",) and item.image.name == "COCO_1.jpg"

    base = {
        "question": "Which?",
        "choices": ["iron", "wood"],
        "answer": 1,
        "split": "test",
        "hint": "",
        "subject": "s",
    }
    problems = {
        "1": base | {"image": "image.png"},
        "2": base | {"image": None},
        "3": base | {"split": "val", "image": "image.png"},
    }
    task = read_task("scienceqa", TaskFiles(written("problems.json", problems), images=tmp_path))
    assert [one.id for one in task.items] == ["1"] and task.items[0].references == ("B",)
    assert task.items[0].image == tmp_path / "test" / "1" / "image.png" and "B. wood" in str(
        task.items[0].question
    )

    captions = {
        "images": [{"id": 9, "file_name": "9.jpg"}],
        "annotations": [{"image_id": 9, "caption": "A cat."}, {"image_id": 9, "caption": "One cat."}],
    }
    (item,) = read_task("coco", TaskFiles(annotations=written("coco.json", captions), images=tmp_path)).items
    assert item.references == ("A cat.", "One cat.") and item.question is None


def test_the_public_call_twice_in_one_process(tmp_path: Path) -> None:
    """`vision_lm.evaluate.run` is a function before and after its first call; other things it reads must not hide it."""
    files = vqa_files(tmp_path)
    predictions = tmp_path / "given.json"
    predictions.write_text(json.dumps([{"question_id": number, "answer": "red"} for number in range(6)]))
    scores = [
        evaluate_package.run(
            Settings("vqav2", tmp_path / f"out-{number}", files, predictions=predictions, resamples=20)
        ).seeing.overall
        for number in range(2)
    ]
    assert scores[0] == scores[1]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`vision-lm eval` asks a checkpoint, prints its scores and leaves the folder; a mistake is one line and status 2."""
    files = vqa_files(tmp_path, count=3)
    ask = ["eval", "vqav2", "--questions", str(files.questions), "--annotations", str(files.annotations)]
    ask += ["--images", str(files.images), "--resamples", "20"]
    assert main([*ask, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "vqav2: 3 of 3 items" in printed.out and "accuracy" in printed.out
    assert {"predictions.jsonl", "scores.json", "report.html"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert main(["eval", "gqa", "--questions", "none.json", "--out", str(tmp_path / "other")]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "error" in one]
    assert "none.json: no such file" in line
