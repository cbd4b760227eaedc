"""The adapter through lmms-eval's own requests. Skipped where the harness is not installed: its extra is large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from vision_lm.checkpoint import Checkpoint
from vision_lm.errors import RequestError
from vision_lm.model import VisionLM

instances = pytest.importorskip("lmms_eval.api.instance")
QUESTIONS = ["What colour is the cube?", "How many cats are there?", "Describe the image.", "Is there a dog?"]


@pytest.fixture
def adapter(vit_checkpoint: Checkpoint, pictures: list[Image.Image], tmp_path: Path) -> Any:
    from vision_lm.evaluate.lmms_eval import VisionLMAdapter

    VisionLM(vit_checkpoint, device="cpu").save_pretrained(tmp_path)
    adapter = VisionLMAdapter(str(tmp_path), device="cpu", batch_size="3")
    adapter.task_dict = {"task": {"test": list(zip(pictures, QUESTIONS, strict=False))}}
    return adapter


def request(kind: str, context: str, second: Any, number: int) -> Any:
    arguments = (context, second, lambda document: [document[0]], number, "task", "test")
    return instances.Instance(kind, arguments, 0, {"task": "task", "doc_id": number, "repeats": 1})


def said_of(adapter: Any, requests: list[Any]) -> list[tuple[float, bool]]:
    """As the harness unwraps what a model gives."""
    return [instances.unwrap_generation_output(one)[0] for one in adapter.loglikelihood(requests)]


def test_answers_are_the_models_own(adapter: Any, pictures: list[Image.Image]) -> None:
    settings = {
        "max_new_tokens": 12,
        "temperature": 0,
        "top_p": None,
        "num_beams": 1,
        "do_sample": False,
        "until": ["\n\n"],
    }
    asked = [request("generate_until", f"<image>\n{text}", settings, n) for n, text in enumerate(QUESTIONS)]
    expected = adapter.vlm.ask(pictures[:4], QUESTIONS, max_tokens=12, stop=["\n\n"])
    assert adapter.generate_until(asked) == [one.text for one in expected]
    assert len(set(adapter.generate_until(asked))) > 1


def test_what_it_would_say_is_greedy_and_as_likely_as_it_said(
    adapter: Any, pictures: list[Image.Image]
) -> None:
    """Choices of a task come with a blank before them; one that the model would not say is less likely, and not greedy."""
    said = adapter.vlm.ask(pictures[:4], QUESTIONS, max_tokens=1)
    own = [request("loglikelihood", text, f" {said[n].text}", n) for n, text in enumerate(QUESTIONS)]
    other = [request("loglikelihood", text, " naïve café", n) for n, text in enumerate(QUESTIONS)]
    for (unlikely, greedy), answer in zip(said_of(adapter, own), said, strict=True):
        if adapter.vlm.prompts.answer_ids(answer.text)[:-1] == list(answer.tokens):
            assert greedy and unlikely == pytest.approx(-sum(answer.token_logprobs), abs=1e-3)
    assert not any(greedy for _, greedy in said_of(adapter, other))
    targets = [
        request("loglikelihood", text, lambda document: "naïve café", n) for n, text in enumerate(QUESTIONS)
    ]
    as_choice, as_target = said_of(adapter, other), said_of(adapter, targets)
    assert [-value for value, _ in as_choice] == [value for value, _ in as_target]
    alone = instances.Instance("loglikelihood", ("", "red"), 0, {"task": "task", "doc_id": 0, "repeats": 1})
    ((unlikely, _),) = said_of(adapter, [alone])
    assert unlikely > 0


@pytest.mark.parametrize("settings", [{"num_beams": 5}, {"penalty_alpha": 0.6}])
def test_what_cannot_be_followed_is_refused(adapter: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(settings))):
        adapter.generate_until([request("generate_until", "Describe the image.", settings, 0)])


TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {folder}/rows.jsonl
test_split: train
doc_to_visual: !function shown.visual
doc_to_text: !function shown.text
doc_to_target: answer
"""
GENERATE = """output_type: generate_until
generation_kwargs: {max_new_tokens: 16, temperature: 0, num_beams: 1, do_sample: false}
process_results: !function shown.results
metric_list:
  - {metric: exact, aggregation: !function shown.mean, higher_is_better: true}
"""
CHOOSE = """output_type: multiple_choice
doc_to_choice: ["red", "blue", "green", "yellow"]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
SHOWN = """from PIL import Image
def visual(doc): return [Image.open(doc["image"]).convert("RGB")]
def text(doc, lmms_eval_specific_kwargs=None): return "<image>\\n" + doc["question"]
def results(doc, results): return {"exact": float(results[0] == doc["answer"])}
def mean(items): return sum(items) / len(items)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not entry_points(group="lmms_eval.models", name="vision_lm"), reason="vision-lm is not installed"
)
def test_the_harness_itself(tmp_path: Path) -> None:
    """`python -m lmms_eval` finds the adapter and runs two tasks, offline: mini knows four circles' colours."""
    rows = []
    for colour in ("red", "blue", "green", "yellow"):
        image = Image.new("RGB", (256, 256), (235, 235, 235))
        ImageDraw.Draw(image).ellipse((80, 80, 170, 170), fill=colour)
        image.save(tmp_path / f"{colour}.png")
        row = {
            "image": str(tmp_path / f"{colour}.png"),
            "question": "What colour is the circle?",
            "answer": colour,
        }
        rows.append(json.dumps(row))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "shown.py").write_text(SHOWN)
    for name, kind in (("tiny_generate", GENERATE), ("tiny_choice", CHOOSE)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, folder=tmp_path) + kind)
    options = {
        "--model": "vision_lm",
        "--model_args": "pretrained=mini",
        "--tasks": "tiny_generate,tiny_choice",
        "--include_path": str(tmp_path),
        "--batch_size": "3",
        "--output_path": str(tmp_path / "out"),
    }
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "lmms_eval", *(word for pair in options.items() for word in pair)]
    subprocess.run(command, check=True, env=os.environ | offline, timeout=600)
    (found,) = (tmp_path / "out").rglob("*results.json")
    scores = json.loads(found.read_text())["results"]
    assert scores["tiny_generate"]["exact,none"] == 1 and scores["tiny_choice"]["acc,none"] == 1
