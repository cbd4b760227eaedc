"""The training loop: `vision-lm train align|instruct RECIPE`, one process or many under `accelerate launch`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from projector.assemble import open_for_training, save_trained
from projector.batches import BatchMaker
from projector.data.samples import BadRecords, reject
from projector.feature_cache import FeatureCache
from projector.mixture import read_mixture
from projector.optimizer import build_optimizers, cosine
from projector.recipe import Recipe
from projector.vision_language import VisionLanguage
from vision_lm.checkpoint import read_checkpoint
from vision_lm.errors import DataError, TrainingError
from vision_lm.prompts import PromptBuilder

Stage = Literal["align", "instruct"]
STATE = "state"  # folder of a run that can be resumed


def main(
    recipe_path: Path,
    stage: Stage,
    *,
    resume: bool = False,
    skip_bad: bool = False,
    overrides: dict[str, Any] | None = None,
) -> Path:
    """Train as the recipe says and return the folder of the finished checkpoint.

    Raises TrainingError for a recipe that does not fit the stage or the run being resumed, DataError for bad data.
    """
    recipe = Recipe.load(recipe_path, **(overrides or {}))
    check_stage(recipe, stage)
    bad = BadRecords() if skip_bad else None
    out = Path(recipe.out)
    if (out / STATE).exists() and not resume:
        raise TrainingError(
            f"{out}: holds a run already; add --resume to go on with it, or choose another 'out'"
        )
    accelerator = Accelerator(mixed_precision=recipe.precision, log_with="tensorboard", project_dir=out)
    run = Run(recipe, accelerator, bad)
    if resume:
        run.restore()
    run.train()
    if bad is not None and bad.count:
        accelerator.print(bad.report())
    return out


def check_stage(recipe: Recipe, stage: Stage) -> None:
    """Stage 1 trains the projector alone; stage 2 trains the language model too."""
    if stage == "align" and (recipe.language_model != "frozen" or recipe.tower != "frozen"):
        raise TrainingError(
            "align trains the projector alone; set language_model and tower to frozen, or run instruct"
        )
    if stage == "instruct" and recipe.language_model == "frozen":
        raise TrainingError(
            "instruct trains the language model; set language_model to lora or full, or run align"
        )


class Run:
    """One training run: model, optimiser, data position, and how they are saved and restored."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator, bad: BadRecords | None = None) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.accelerator = recipe, accelerator
        mixture = read_mixture(recipe, bad)
        self.checkpoint = read_checkpoint(recipe.checkpoint)
        model = open_for_training(self.checkpoint, recipe)
        cache = None
        if recipe.feature_cache:
            with accelerator.main_process_first():  # it encodes the pictures, the others find them done
                cache = FeatureCache(
                    Path(recipe.feature_cache), model.encoder.to(accelerator.device), accelerator.device
                )
                unreadable = cache.add(mixture.pictures())
            for path in unreadable:
                reject(DataError(f"{path}: cannot be read as a picture"), bad)
            mixture = mixture.without(unreadable)
        tokens = tokens_per_image(model, cache)
        prompts = PromptBuilder(self.checkpoint.tokenizer, self.checkpoint.config.prompt, tokens)
        self.batches = BatchMaker(mixture, prompts, model.encoder, cache, recipe.max_tokens, bad)
        optimizers = build_optimizers(model, recipe)
        self.schedules = [LambdaLR(optimizer, lambda step: cosine(step, recipe)) for optimizer in optimizers]
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)
        accelerator.register_for_checkpointing(*self.schedules)
        self.step = 0
        self.state_folder = Path(recipe.out) / STATE

    def train(self) -> None:
        """All remaining steps, with a progress bar, curves, and a saved state every so often."""
        recipe, accelerator = self.recipe, self.accelerator
        accelerator.init_trackers("curves")
        progress = tqdm(
            total=recipe.steps,
            initial=self.step,
            desc="training",
            unit="step",
            disable=not accelerator.is_main_process,
        )
        recent: list[float] = []
        while self.step < recipe.steps:
            loss = self.advance()
            recent.append(loss)
            progress.update()
            if self.step % recipe.log_every == 0 or self.step == recipe.steps:
                mean = sum(recent) / len(recent)
                learning_rate = self.schedules[0].get_last_lr()[0]
                progress.set_postfix(loss=f"{mean:.4f}", lr=f"{learning_rate:.1e}")
                accelerator.log({"loss": mean, "learning_rate": learning_rate}, step=self.step)
                recent = []
            if self.step % recipe.save_every == 0 or self.step == recipe.steps:
                self.save()
        progress.close()
        accelerator.end_training()

    def advance(self) -> float:
        """One optimiser step over `accumulate` batches; returns the mean loss of this process."""
        recipe, accelerator = self.recipe, self.accelerator
        total = 0.0
        for part in range(recipe.accumulate):
            batch = self.batches.make(self._numbers(part)).to(accelerator.device)
            last = part == recipe.accumulate - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    loss = self.model(batch.packed, batch.pixels, batch.features)
                accelerator.backward(loss / recipe.accumulate)
            total += float(loss.detach())
        if not math.isfinite(total):
            raise TrainingError(
                f"the loss became {total} at step {self.step}; lower learning_rate or look at the data"
            )
        accelerator.clip_grad_norm_(self.model.parameters(), recipe.clip)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        self.step += 1
        return total / recipe.accumulate

    def save(self) -> None:
        """The checkpoint and everything a resume needs. The old state is kept until the new one is whole."""
        accelerator = self.accelerator
        accelerator.wait_for_everyone()
        fresh = self.state_folder.with_name("state.new")
        accelerator.save_state(str(fresh))
        if accelerator.is_main_process:
            torch.save({"step": self.step, "recipe": fixed_settings(self.recipe)}, fresh / "run.pt")
            save_trained(accelerator.unwrap_model(self.model), self.checkpoint, Path(self.recipe.out))
            if self.state_folder.exists():
                shutil.rmtree(self.state_folder)
            fresh.rename(self.state_folder)
        accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Go on exactly where the last saved state stopped."""
        fresh = self.state_folder.with_name("state.new")
        if not self.state_folder.exists() and (fresh / "run.pt").exists():
            fresh.rename(self.state_folder)  # killed between removing the old state and naming the new one
        if not self.state_folder.exists():
            raise TrainingError(f"{self.recipe.out}: no saved run to resume; start without --resume")
        saved = torch.load(self.state_folder / "run.pt", weights_only=True)
        wanted = fixed_settings(self.recipe)
        changed = [name for name, value in saved["recipe"].items() if wanted.get(name) != value]
        if changed:
            raise TrainingError(
                f"{self.recipe.out}: resumed with another {', '.join(changed)} than it began with; "
                "restore the recipe or choose another 'out'"
            )
        self.accelerator.load_state(str(self.state_folder))
        self.step = saved["step"]

    def _numbers(self, part: int) -> range:
        """The numbers of the samples of this process's next batch: no sample twice, whatever the process count."""
        recipe, accelerator = self.recipe, self.accelerator
        batch = (self.step * recipe.accumulate + part) * accelerator.num_processes + accelerator.process_index
        return range(batch * recipe.batch_size, (batch + 1) * recipe.batch_size)


def fixed_settings(recipe: Recipe) -> dict[str, Any]:
    """What must not change between a run and its resumption: all but where and how often things are written."""
    settings = dataclasses.asdict(recipe)
    for free in ("out", "save_every", "log_every", "feature_cache"):
        settings.pop(free)
    settings["sources"] = [list(source.values()) for source in settings["sources"]]
    return settings


def tokens_per_image(model: VisionLanguage, cache: FeatureCache | None) -> int:
    """P + N, from the tower itself."""
    if cache is not None:
        return cache.shapes["patches"][0] + cache.shapes.get("pooled", [0])[0]
    from vision_lm.encoder import feature_width

    return feature_width(model.encoder)[0] + len(model.encoder.config.pooled)
