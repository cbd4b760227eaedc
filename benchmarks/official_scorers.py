"""Our scores of one predictions file beside those of the official programs, which must agree to four decimals.

    git clone https://github.com/GT-Vision-Lab/VQA
    git clone https://github.com/tylin/coco-caption
    python benchmarks/official_scorers.py vqa --code VQA
    python benchmarks/official_scorers.py coco --results coco-caption/results/captions_val2014_fakecap_results.json

With the publishers' files it compares on those: `--questions`, `--annotations` and `--results` of VQA, `--annotations`
and `--results` of COCO. What is not given is made up: 20,000 questions with ten answers each, full of punctuation,
articles, numbers and contractions; references of a caption from other captions of the same file. VQA's program is for
Python 2: its prints and tabs are rewritten as it is read, and nothing else. COCO's is `pycocoevalcap` with its own
`COCOEvalCap`, which differs from coco-caption only in what Python 3 asks for. Exits 1 if a score differs.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import random
import re
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from vision_lm.evaluate import Settings, run
from vision_lm.evaluate.settings import TaskFiles

DECIMALS = 4
QUESTIONS, ANNOTATORS, REFERENCES = 20_000, 10, 5
PIECES = re.findall(
    r"\S+",
    "a an the The none None zero one two Three ten 10 1,000 3.5 2.0 10:30 $5 100% red, white dog cat man's t-shirt x_y"
    " don't dont Isnt isn't couldnt've somebody'd its it's yes no Yes. (left) left/right [x] a.m. U.S. e-mail @home ?",
)
JOINS = (" ", " ", " ", ", ", ",", "-", "/", " - ", "  ", "\t", "\n", ". ", ".", "'s ")
OURS = {
    "Bleu_1": "BLEU-1",
    "Bleu_2": "BLEU-2",
    "Bleu_3": "BLEU-3",
    "Bleu_4": "BLEU-4",
    "METEOR": "METEOR",
    "ROUGE_L": "ROUGE-L",
    "CIDEr": "CIDEr-D",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=("vqa", "coco"))
    parser.add_argument("--code", type=Path, help="a checkout of GT-Vision-Lab/VQA")
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of what is made up (default: 0)")
    given = parser.parse_args()
    needed = given.code if given.task == "vqa" else given.results
    if needed is None:
        parser.error("vqa needs --code" if given.task == "vqa" else "coco needs --results")
    with tempfile.TemporaryDirectory() as folder:
        official, ours = (_vqa if given.task == "vqa" else _coco)(given, Path(folder))
    apart = 0.0
    for name, value in official.items():
        apart = max(apart, abs(value - ours[name]))
        print(f"{name:<14} official {value:.6f}   ours {ours[name]:.6f}")
    print(f"{len(official)} scores, at most {apart:.1e} apart")
    return int(apart > 0.5 * 10**-DECIMALS)


def _vqa(given: argparse.Namespace, folder: Path) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Overall and by type of answer; and each question by itself, of which the largest difference counts."""
    rng = random.Random(given.seed)
    questions, annotations = given.questions, given.annotations
    if annotations is None:
        questions, annotations = _made_up_questions(rng, folder)
    results = given.results or _made_up_answers(rng, annotations, folder)
    helper = _python_2(given.code / "PythonHelperTools" / "vqaTools" / "vqa.py")
    program = _python_2(given.code / "PythonEvaluationTools" / "vqaEvaluation" / "vqaEval.py")
    with redirect_stdout(io.StringIO()):
        truth = helper.VQA(str(annotations), str(questions))
        judge = program.VQAEval(truth, truth.loadRes(str(results), str(questions)), n=10)
        judge.evaluate()
    result = run(
        Settings("vqav2", folder / "ours", TaskFiles(questions, annotations, folder), predictions=results)
    )
    each = {
        item.id: float(right) for item, right in zip(result.seeing.items, result.seeing.right, strict=True)
    }
    worst = max(judge.evalQA, key=lambda one: abs(judge.evalQA[one] / 100 - each[str(one)]))
    official = {"overall": judge.accuracy["overall"] / 100, f"question {worst}": judge.evalQA[worst] / 100}
    ours = {"overall": result.seeing.overall["accuracy"].value, f"question {worst}": each[str(worst)]}
    for kind, value in judge.accuracy["perAnswerType"].items():
        official[kind], ours[kind] = value / 100, result.seeing.by_kind[kind].value
    return official, ours


def _python_2(path: Path) -> types.ModuleType:
    """An official file as a module: tabs as blanks, `print x` as `print(x)`."""
    text = re.sub(r"(?m)^(\s*)print (.+)$", r"\1print(\2)", path.read_text(encoding="utf-8").expandtabs(8))
    module = types.ModuleType(path.stem)
    sys.modules.setdefault("matplotlib.pyplot", types.ModuleType("matplotlib.pyplot"))  # it would only draw
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def _made_up_questions(rng: random.Random, folder: Path) -> tuple[Path, Path]:
    """Files in VQAv2's format. Annotators agree often enough that every number of them occurs."""
    asked: list[dict[str, Any]] = []
    answered: list[dict[str, Any]] = []
    for number in range(QUESTIONS):
        said = [_phrase(rng) for _ in range(rng.choice((1, 2, 2, 3, 5)))]
        answers = [{"answer_id": one + 1, "answer": rng.choice(said)} for one in range(ANNOTATORS)]
        place = {"question_id": number, "image_id": number // 3}
        asked.append(place | {"question": "What?"})
        kind = rng.choice(("yes/no", "number", "other"))
        answered.append(place | {"answers": answers, "answer_type": kind, "question_type": "what"})
    about = {
        "info": {},
        "license": {},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "data_subtype": "val2014",
    }
    questions, annotations = folder / "questions.json", folder / "annotations.json"
    questions.write_text(json.dumps(about | {"questions": asked}), encoding="utf-8")
    annotations.write_text(json.dumps(about | {"annotations": answered}), encoding="utf-8")
    return questions, annotations


def _made_up_answers(rng: random.Random, annotations: Path, folder: Path) -> Path:
    """An annotator's answer mostly, as it is, in other letters or with another mark."""
    found = []
    for one in json.loads(annotations.read_text(encoding="utf-8"))["annotations"]:
        said = rng.choice(one["answers"])["answer"] if rng.random() < 0.8 else _phrase(rng)
        said = rng.choice((said, said, said.upper(), said + ".", "the " + said, said.replace("'", "")))
        found.append({"question_id": one["question_id"], "answer": said})
    path = folder / "results.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def _phrase(rng: random.Random) -> str:
    pieces = rng.choices(PIECES, k=rng.choice((1, 1, 2, 3)))
    return "".join(piece + rng.choice(JOINS) for piece in pieces[:-1]) + pieces[-1]


def _coco(given: argparse.Namespace, folder: Path) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """All scores but SPICE's, whose parser's files no package brings."""
    from pycocotools.coco import COCO

    annotations = given.annotations or _made_up_references(random.Random(given.seed), given.results, folder)
    official = importlib.import_module("pycocoevalcap.eval")
    vars(official)["Spice"] = _NoSpice
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        found = truth.loadRes(str(given.results))
        judge = official.COCOEvalCap(truth, found)
        judge.params["image_id"] = found.getImgIds()
        judge.evaluate()
    files = TaskFiles(annotations=annotations, images=folder)
    settings = Settings("coco", folder / "ours", files, predictions=given.results, skip_missing=True)
    scores = run(settings).seeing.overall
    return {ours: judge.eval[name] for name, ours in OURS.items()}, {
        ours: scores[ours].value for ours in OURS.values()
    }


class _NoSpice:
    """In the place of a score that is left out."""

    def method(self) -> str:
        return "SPICE, left out"

    def compute_score(self, truth: Mapping[int, Any], said: Any) -> tuple[float, Sequence[float]]:
        return 0.0, [0.0] * len(truth)


def _made_up_references(rng: random.Random, results: Path, folder: Path) -> Path:
    """A file in COCO's format: for each picture captions of others, and its own with words changed."""
    captions = json.loads(results.read_text(encoding="utf-8"))
    texts = [one["caption"] for one in captions]
    notes: list[dict[str, Any]] = []
    for one in captions:
        for _ in range(REFERENCES):
            words = (one["caption"] if rng.random() < 0.4 else rng.choice(texts)).split()
            words[rng.randrange(len(words))] = rng.choice(rng.choice(texts).split())
            text = rng.choice((" ".join(words), ", ".join((" ".join(words[:3]), " ".join(words[3:])))))
            text = rng.choice((text, text.capitalize() + ".", f"The man's {text}!", f'{text} (a "photo")'))
            notes.append({"id": len(notes), "image_id": one["image_id"], "caption": text})
    images = [{"id": one["image_id"], "file_name": f"{one['image_id']}.jpg"} for one in captions]
    path = folder / "references.json"
    about: dict[str, Any] = {"info": {}, "licenses": [], "type": "captions"}
    path.write_text(json.dumps(about | {"images": images, "annotations": notes}), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
