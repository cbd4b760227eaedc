"""The training loop: `vision-lm train align|instruct RECIPE`, one process or many under `accelerate launch`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from projector import run_state
from projector.assemble import open_for_training, save_trained
from projector.batches import BatchMaker
from projector.data.samples import BadRecords, shown
from projector.feature_cache import FeatureCache
from projector.mixture import Mixture, read_mixture
from projector.optimizer import build_optimizers, cosine
from projector.recipe import Recipe
from projector.vision_language import VisionLanguage
from vision_lm.checkpoint import read_checkpoint
from vision_lm.engine.device import choose_device, multiplies_bfloat16
from vision_lm.errors import TrainingError
from vision_lm.prompts import PromptBuilder

Stage = Literal["align", "instruct"]


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
    recipe = Recipe.load(recipe_path, overrides)
    check_stage(recipe, stage)
    bad = BadRecords() if skip_bad else None
    out = Path(recipe.out)
    if run_state.saved_run(out) and not resume:
        raise TrainingError(
            f"{out}: holds a run already; add --resume to go on with it, or choose another 'out'"
        )
    accelerator = Accelerator(mixed_precision=precision(recipe), log_with="tensorboard", project_dir=out)
    try:
        run = Run(recipe, accelerator, bad)
        if resume:
            run.restore()
        run.train()
    finally:  # a run that fails may fail by what was skipped
        if bad is not None and bad.count:
            print(bad.report(), flush=True)
    return out


def precision(recipe: Recipe) -> Literal["bf16", "no"]:
    """In which numbers this machine trains: `auto` is bfloat16 where it multiplies them."""
    if recipe.precision == "auto":
        return "bf16" if multiplies_bfloat16(choose_device("auto")) else "no"
    return recipe.precision


def check_stage(recipe: Recipe, stage: Stage) -> None:
    """Stage 1 trains the projector alone; stage 2 trains the language model too."""
    if stage == "align" and (recipe.language_model != "frozen" or recipe.tower != "frozen"):
        raise TrainingError(
            "align trains the projector alone; set language_model and tower to frozen, or run instruct"
        )
    if stage == "align" and recipe.projector == "frozen":
        raise TrainingError(
            "align trains the projector, which the recipe keeps frozen; set projector to full"
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
                count = recipe.steps * recipe.accumulate * recipe.batch_size * accelerator.num_processes
                unreadable = cache.add(mixture.pictures(count))
            mixture = mixture.without(unreadable, bad)
        if bad is not None and not accelerator.is_main_process:
            bad.problems.clear()  # every process has read the same files: the main one alone reports them
        self.identity = identity(recipe, mixture, accelerator.num_processes)
        tokens = tokens_per_image(model, cache)
        prompts = PromptBuilder(self.checkpoint.tokenizer, self.checkpoint.config.prompt, tokens)
        self.batches = BatchMaker(mixture, prompts, model.encoder, cache, recipe.max_tokens, bad)
        muon_dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        optimizers = build_optimizers(model, recipe, muon_dtype)
        self.schedules = [LambdaLR(optimizer, lambda step: cosine(step, recipe)) for optimizer in optimizers]
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)
        accelerator.register_for_checkpointing(*self.schedules)
        self.step = 0
        self.recent: list[float] = []  # losses since the curve's last point

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
        while self.step < recipe.steps:
            self.recent.append(self.advance())
            progress.update()
            if self.step % recipe.log_every == 0 or self.step == recipe.steps:
                mean = sum(self.recent) / len(self.recent)
                learning_rate = self.schedules[0].get_last_lr()[0]
                progress.set_postfix(loss=f"{mean:.4f}", lr=f"{learning_rate:.1e}")
                accelerator.log({"loss": mean, "learning_rate": learning_rate}, step=self.step)
                self.recent = []
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
        accelerator, out = self.accelerator, Path(self.recipe.out)
        if accelerator.is_main_process:
            run_state.begin(out)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(out / run_state.FRESH))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            # The checkpoint first: a state that says the run is at its end must not outlive it.
            save_trained(accelerator.unwrap_model(self.model), self.checkpoint, out)
            run_state.finish(out, {"step": self.step, "recipe": self.identity, "recent": self.recent})
        accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Go on exactly where the last saved state stopped. Raises TrainingError for what would be another run."""
        out = Path(self.recipe.out)
        if self.accelerator.is_main_process:
            run_state.settle(out)
        self.accelerator.wait_for_everyone()
        if not run_state.saved_run(out):
            raise TrainingError(f"{out}: no saved run to resume; start without --resume")
        saved = run_state.load(out)
        changed = [
            f"{name} (now {shown(self.identity.get(name))}, then {shown(value)})"
            for name, value in saved["recipe"].items()
            if self.identity.get(name) != value
        ]
        if changed:
            raise TrainingError(
                f"{out}: resumed with another {', '.join(changed)} than it began with; "
                "restore what it began with, or choose another 'out'"
            )
        self.accelerator.load_state(str(out / run_state.STATE))
        self.step, self.recent = saved["step"], saved.get("recent", [])

    def _numbers(self, part: int) -> range:
        """The numbers of the samples of this process's next batch: no sample twice, whatever the process count."""
        recipe, accelerator = self.recipe, self.accelerator
        batch = (self.step * recipe.accumulate + part) * accelerator.num_processes + accelerator.process_index
        return range(batch * recipe.batch_size, (batch + 1) * recipe.batch_size)


def identity(recipe: Recipe, mixture: Mixture, processes: int) -> dict[str, Any]:
    """What must not change between a run and its resumption: all but where and how often things are written."""
    settings = dataclasses.asdict(recipe)
    for free in ("out", "save_every", "log_every", "feature_cache"):
        settings.pop(free)
    settings["sources"] = [list(source.values()) for source in settings["sources"]]
    contents = {f"content of {part.source.path}": part.fingerprint() for part in mixture.parts}
    return settings | contents | {"number of processes": processes}


def tokens_per_image(model: VisionLanguage, cache: FeatureCache | None) -> int:
    """L + P + N, from the tower itself."""
    likeliest = model.projector.likeliest
    if cache is not None:
        return cache.shapes["patches"][0] + cache.shapes.get("pooled", [0])[0] + likeliest
    from vision_lm.encoder import feature_width

    return feature_width(model.encoder)[0] + len(model.encoder.config.pooled) + likeliest
