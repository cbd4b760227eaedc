"""An evaluation from its settings to its result folder."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_lm.errors import EvaluationError
from vision_lm.evaluate.json_files import read_json, some
from vision_lm.evaluate.predictions import Prediction, PredictionFile, read_predictions
from vision_lm.evaluate.registry import read_task
from vision_lm.evaluate.report import write_report
from vision_lm.evaluate.results import ANSWERING, Result, Scored, score, versions, write_scores, write_whole
from vision_lm.evaluate.settings import Settings
from vision_lm.evaluate.tasks import Item, Task

if TYPE_CHECKING:
    from vision_lm.evaluate.asking import Ask
    from vision_lm.model import VisionLM

PREDICTIONS, BLIND, RUN = "predictions.jsonl", "blind.jsonl", "run.json"


@dataclass(frozen=True)
class Model:
    """How items are asked, and what of the model the answers depend on."""

    ask: Ask
    identity: dict[str, Any]


def run(settings: Settings, vlm: VisionLM | None = None) -> Result:
    """See `vision_lm.evaluate.run`."""
    _check(settings)
    task = read_task(settings.task, settings.files)
    return run_task(settings, task, lambda: _model(settings, task, vlm))


def run_task(settings: Settings, task: Task, model: Callable[[], Model]) -> Result:
    """Answer, where no predictions are given, score, and write the folder. `model` is made only if it is needed."""
    _check(settings)
    items = task.items
    if settings.limit is not None and settings.limit < len(items):
        chosen = set(random.Random(settings.seed).sample(range(len(items)), settings.limit))
        items = tuple(item for place, item in enumerate(items) if place in chosen)
    record: dict[str, Any] = {
        "command": settings.command or repr(settings),
        "files": {str(path): _sha256(path) for path in task.files},
        "seed": settings.seed,
        "resamples": settings.resamples,
    }
    failures: dict[str, str] = {}
    if settings.predictions is not None:
        seen, unseen = _given(settings.predictions, task)
        _check_folder(settings.out)
        _same_predictions(settings, settings.predictions, task.name)
        record["predictions"] = {str(settings.predictions): _sha256(settings.predictions)}
    else:
        seen, unseen = _answered(settings, task, items, model, failures, record)
    missing = {item.id: failures.get(item.id, "no prediction") for item in items if item.id not in seen}
    if missing and not settings.skip_missing:
        raise EvaluationError(_lacking(settings, missing))
    if len(missing) == len(items):
        raise EvaluationError(
            f"{settings.out}: no item has a prediction ({some(list(missing))}); nothing to score"
        )
    result = Result(
        task.name,
        score(task, items, seen, settings.seed, settings.resamples),
        _blind_scores(settings, task, items, unseen),
        len(task.items),
        missing,
        record,
    )
    settings.out.mkdir(parents=True, exist_ok=True)
    if settings.predictions is not None and not (settings.out / PREDICTIONS).exists():
        write_whole(settings.out / RUN, json.dumps({"scored": task.name}) + "\n")
    write_scores(settings.out / "scores.json", result)
    write_report(settings.out / "report.html", result)
    return result


def _blind_scores(
    settings: Settings, task: Task, items: Sequence[Item], unseen: dict[str, Prediction] | None
) -> Scored | None:
    if not unseen or not any(item.id in unseen for item in items):
        return None
    return score(task, items, unseen, settings.seed, settings.resamples)


def _check(settings: Settings) -> None:
    for name, value in (
        ("limit", settings.limit),
        ("batch", settings.under_way),
        ("resamples", settings.resamples),
    ):
        if value is not None and value < 1:
            raise EvaluationError(f"--{name} {value}: give a whole number of at least 1")
    if "{question}" not in settings.prompt:
        raise EvaluationError(
            f"--prompt {settings.prompt!r}: it must hold {{question}}, where the question goes"
        )


def _given(path: Path, task: Task) -> tuple[dict[str, Prediction], dict[str, Prediction] | None]:
    """A file to be scored, and the answers without pictures that a run left beside it."""
    known = {item.id for item in task.items}
    seen = read_predictions(path, known)
    beside = path.with_name(BLIND)
    return seen, read_predictions(beside, known) if path.name == PREDICTIONS and beside.exists() else None


def _answered(
    settings: Settings,
    task: Task,
    items: Sequence[Item],
    model: Callable[[], Model],
    failures: dict[str, str],
    record: dict[str, Any],
) -> tuple[dict[str, Prediction], dict[str, Prediction] | None]:
    """Answers of earlier runs and of this one, with pictures and, where wanted, without."""
    absent = sorted({str(item.image) for item in items if not item.image.is_file()})
    if absent and not settings.skip_missing:
        raise EvaluationError(
            f"pictures that are not there ({some(absent)}); put them there, or --skip-missing to leave them out"
        )
    _check_folder(settings.out)
    made = model()
    blind = task.blind if settings.blind is None else settings.blind
    identity = made.identity | {
        "task": task.name,
        "files": list(record["files"].values()),
        "prompt": settings.prompt,
        "length": settings.length or task.length,
        "max tokens": settings.max_tokens or task.max_tokens,
        "quantize": settings.quantize,
    }
    identity |= {f"{name} version": one for name, one in versions(ANSWERING).items()}
    _same_run(settings, identity)
    record["model"] = identity
    known = {item.id for item in task.items}
    found: list[dict[str, Prediction] | None] = []
    for name, wanted, without in ((PREDICTIONS, True, False), (BLIND, blind, True)):
        file = PredictionFile(settings.out / name)
        done = file.read(known) if wanted else None
        if done is not None:
            left = [item for item in items if item.id not in done]
            label = f"{task.name}{', blind' * without}"
            with_bar = _progress(
                made.ask(left, without), label, len(items), len(items) - len(left), settings.progress
            )
            file.append(_kept(with_bar, done, failures if not without else {}))
        found.append(done)
    return found[0] or {}, found[1]


def _kept(
    outcomes: Iterator[Any], done: dict[str, Prediction], failures: dict[str, str]
) -> Iterator[Prediction]:
    for one in outcomes:
        if isinstance(one, Prediction):
            done[one.id] = one
            yield one
        else:
            failures[one.id] = one.error


def _progress(outcomes: Iterator[Any], label: str, total: int, done: int, shown: bool) -> Iterator[Any]:
    if not shown:
        return outcomes
    from tqdm import tqdm

    return iter(tqdm(outcomes, desc=label, total=total, initial=done, unit="item"))


def _same_run(settings: Settings, identity: dict[str, Any]) -> None:
    """Begin a run in the folder, or find that it is the one that began there. Raises EvaluationError."""
    path = settings.out / RUN
    identity = json.loads(json.dumps(identity))
    if path.exists() and not settings.overwrite and (settings.out / PREDICTIONS).exists():
        before = read_json(path)
        changed = [key for key in identity if before.get(key) != identity[key]]
        if changed:
            what = f"{changed[0]}: then {before.get(changed[0])!r}, now {identity[changed[0]]!r}"
            raise EvaluationError(
                f"{settings.out}: holds another run ({what}); give its settings, another --out, or --overwrite to begin anew"
            )
    settings.out.mkdir(parents=True, exist_ok=True)
    if settings.overwrite:
        for name in (PREDICTIONS, BLIND):
            (settings.out / name).unlink(missing_ok=True)
    write_whole(path, json.dumps(identity, indent=1) + "\n")


def _same_predictions(settings: Settings, given: Path, task: str) -> None:
    """The folder's own predictions, or none, and its scores, if any, of this task. Raises EvaluationError."""
    out = settings.out
    held = out / PREDICTIONS
    if held.exists() and not held.samefile(given):
        raise EvaluationError(f"--out {out}: holds the predictions of another run; give another --out")
    before = read_json(out / RUN) if (out / RUN).exists() else {}
    kept = before.get("task") or before.get("scored")
    if kept not in (None, task) and not settings.overwrite:
        raise EvaluationError(
            f"--out {out}: holds scores of {kept}, now {task}; give another --out, or --overwrite"
        )


def _check_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / RUN).exists())):
        raise EvaluationError(f"--out {out}: exists and is no result folder; give a new or an empty folder")


def _lacking(settings: Settings, missing: dict[str, str]) -> str:
    first = next(iter(missing.values()))
    where = settings.predictions or settings.out / PREDICTIONS
    return (
        f"{where}: items without a prediction ({some(list(missing))}; {first}); put that right and give the same command, "
        "or --skip-missing to score the others"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model(settings: Settings, task: Task, vlm: VisionLM | None) -> Model:
    import vision_lm
    from vision_lm.evaluate.asking import Asking, identity

    vlm = vlm or vision_lm.load(settings.model, settings.device, settings.dtype, quantize=settings.quantize)
    length, tokens = settings.length or task.length, settings.max_tokens or task.max_tokens
    return Model(Asking(vlm, settings.prompt, length, tokens, settings.under_way), identity(vlm))
