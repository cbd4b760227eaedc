"""Wherever a run is killed it goes on as if nothing had happened, and it goes on as nothing but itself."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from projector import run_state
from projector.train import Run, main
from tests.projector.colour_run import recipe, recipe_file, run
from vision_lm.errors import TrainingError


def assert_same_weights(ours: Run, theirs: Run) -> None:
    for (name, weight), other in zip(
        ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True
    ):
        assert torch.equal(weight, other), name


@pytest.mark.parametrize(
    ("cached", "settings"),
    [
        (False, {"optimizer": "adamw"}),
        (True, {"optimizer": "muon"}),
        (False, {"language_model": "lora"}),
        (False, {"accumulate": 2, "tower": "full", "tower_learning_rate": 1e-3}),
    ],
)
def test_resume_is_exact(
    start: Path, data: Path, tmp_path: Path, cached: bool, settings: dict[str, Any]
) -> None:
    """A run stopped after three steps and resumed has the losses and the weights of one that saved there and went on."""
    cache = settings | ({"feature_cache": str(tmp_path / "features")} if cached else {})
    straight = run(recipe(start, data, **cache))
    expected = [straight.advance() for _ in range(3)]
    straight.save()
    expected += [straight.advance() for _ in range(3)]
    first = run(recipe(start, data, **cache))
    losses = [first.advance() for _ in range(3)]
    first.save()
    del first
    second = run(recipe(start, data, **cache))
    second.restore()
    losses += [second.advance() for _ in range(3)]
    assert losses == expected
    assert_same_weights(second, straight)


def curve(folder: Path) -> dict[int, float]:
    """The losses that TensorBoard shows."""
    events = EventAccumulator(str(next(folder.rglob("events.out.tfevents*")).parent)).Reload()
    return {one.step: one.value for one in events.Scalars("loss")}


def test_a_resumed_run_draws_the_same_curve(
    start: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its points is the mean of as many losses, also where the kill came between two of them."""
    often = {"steps": 8, "save_every": 3, "log_every": 4}
    straight = main(recipe_file(start, data, out=str(tmp_path / "straight"), **often), "instruct")
    path = recipe_file(start, data, **often)
    with monkeypatch.context() as patch:
        patch.setattr(run_state, "finish", saving_once(run_state.finish))
        with pytest.raises(Killed):
            main(path, "instruct")
    resumed = main(path, "instruct", resume=True)
    assert sorted(curve(straight)) == [4, 8]
    assert curve(resumed) == curve(straight)


def saving_once(finish: Callable[..., None]) -> Callable[..., None]:
    """A death right after the first saved state."""

    def dying(*arguments: Any) -> None:
        finish(*arguments)
        raise Killed

    return dying


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours may catch it."""


def kill_at(patch: pytest.MonkeyPatch, operation: int) -> None:
    """Let the process die at the given operation on files, counted from 0: before a renaming, or half way in writing
    or deleting (all but what says that the folder is whole, the worst case).
    """
    count = itertools.count()
    save, delete = torch.save, shutil.rmtree

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if next(count) < operation:
                return real(*arguments, **keywords)
            if real is save:
                Path(arguments[1]).write_bytes(b"PK")
            if real is delete and Path(arguments[0]).exists():
                for file in Path(arguments[0]).iterdir():
                    if file.name != run_state.RUN:
                        file.unlink()
            raise Killed

        return call

    for module, name in ((torch, "save"), (os, "rename"), (os, "replace"), (shutil, "rmtree")):
        patch.setattr(module, name, dying(getattr(module, name)))


@pytest.mark.parametrize("saved_before", [True, False])
def test_a_kill_at_any_moment_of_saving_loses_nothing(
    start: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_before: bool
) -> None:
    """The old state, if there is one, or the new one is found whole, and ends in the weights of a run that was never
    killed.
    """
    straight = run(recipe(start, data))
    for _ in range(4):
        straight.advance()
    killed, resumed = run(recipe(start, data)), run(recipe(start, data))
    (tmp_path / "out").mkdir()
    killed.advance()
    if saved_before:
        killed.save()
    killed.advance()
    (tmp_path / "out").rename(tmp_path / "before")
    reached = []
    for operation in itertools.count():
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(tmp_path / "before", tmp_path / "out")
        with monkeypatch.context() as patch:
            kill_at(patch, operation)
            try:
                killed.save()
                break  # every operation has had its turn
            except Killed:
                pass
        if not saved_before and run_state.saved_run(tmp_path / "out") is None:
            continue  # as if it had never been started
        with pytest.raises(TrainingError, match="holds a run already; add --resume"):
            main(recipe_file(start, data), "instruct")
        resumed.restore()
        reached.append(resumed.step)
        while resumed.step < 4:
            resumed.advance()
        assert_same_weights(resumed, straight)
        resumed.save()  # over what the kill left
    assert reached == sorted(reached)
    assert set(reached) == ({1, 2} if saved_before else {2})


@pytest.mark.parametrize(
    ("change", "named"),
    [("recipe", r"learning_rate \(now 0\.0001, then 0\.003\)"), ("data", r"content of .*train\.jsonl")],
)
def test_a_changed_run_is_not_resumed(start: Path, data: Path, change: str, named: str) -> None:
    """With other settings or other samples it would be another run: refused in one line that says what differs."""
    run(recipe(start, data)).save()
    if change == "data":
        data.write_text(data.read_text().replace('"blue"', '"navy"'))
    other = run(recipe(start, data, learning_rate=1e-4 if change == "recipe" else 3e-3))
    with pytest.raises(TrainingError, match=named) as raised:
        other.restore()
    assert "\n" not in str(raised.value)


def test_another_number_of_processes_is_not_resumed(
    start: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process draws its own samples: more of them would skip some, fewer would repeat some."""
    run(recipe(start, data)).save()
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    other = run(recipe(start, data))
    with pytest.raises(TrainingError, match=r"number of processes \(now 2, then 1\)"):
        other.restore()
