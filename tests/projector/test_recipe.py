"""A recipe says what it means, or one line says which key does not, what was given, and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from projector.recipe import Recipe
from projector.train import check_stage
from vision_lm.errors import TrainingError

PLAIN = {"checkpoint": "a", "out": "b", "sources": "[{path: c}]"}
RECIPES = sorted((Path(__file__).parents[2] / "projector" / "recipes").glob("*.yaml"))


def write(folder: Path, **keys: str) -> Path:
    """A recipe file with these keys, each value as it would be typed."""
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in (PLAIN | keys).items()))
    return path


def test_values_are_read_as_they_were_meant(tmp_path: Path) -> None:
    """YAML 1.1 takes `1e-3` for text and a plain `no` for false; a recipe does not."""
    path = write(
        tmp_path, learning_rate="1e-3", clip="2", precision="no", sources="[{path: c, weight: 5e-1}]"
    )
    recipe = Recipe.load(path)
    assert (recipe.learning_rate, recipe.clip, recipe.precision) == (1e-3, 2.0, "no")
    assert recipe.sources[0].weight == 0.5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lerning_rate", "1", "unknown key 'lerning_rate'; allowed: checkpoint, .*learning_rate"),
        ("steps", '"x"', "steps: expected a whole number, found 'x'"),
        ("steps", "1.5", "steps: expected a whole number, found 1.5"),
        ("steps", "yes", "steps: expected a whole number, found True"),
        ("steps", "0", "steps is 0, it must be at least 1"),
        ("learning_rate", "fast", "learning_rate: expected a number, found 'fast'"),
        ("learning_rate", ".nan", "learning_rate is nan, it must be above 0"),
        ("checkpoint", "", "checkpoint: expected text, found None"),
        ("language_model", "lroa", "language_model: 'lroa' is not one of 'frozen', 'lora', 'full'"),
        ("optimizer", "adam", "optimizer: 'adam' is not one of 'adamw', 'muon'"),
        ("precision", "yes", "precision: True is not one of 'auto', 'bf16', 'no'"),
        ("clip", "-1", "clip is -1.0, it must be above 0"),
        ("warmup", "-0.1", "warmup is -0.1, it must be a share of the steps, from 0 to 1"),
        ("weight_decay", "-1", "weight_decay is -1.0, it must be 0 or more"),
        ("lora_rank", "-8", "lora_rank is -8, it must be at least 1"),
        ("max_tokens", "-1", "max_tokens is -1, it must be at least 1"),
        ("sources", "null", "sources: expected a list of values, found None"),
        ("sources", "[]", "names no sources"),
        ("sources", "[c]", "sources 1: expected an object, found 'c'"),
        ("sources", "[{path: c}, {pth: d}]", "sources 2: unknown key 'pth'; allowed: path"),
        ("sources", "[{path: c, format: csv}]", "sources 1: format: 'csv' is not one of 'auto'"),
        ("sources", "[{path: c, evidence: 1}]", "sources 1: evidence: expected true or false, found 1"),
        ("sources", "[{path: c, weight: 0}]", "the weight of c is 0.0, it must be above 0"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, key: str, value: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message) as raised:
        Recipe.load(write(tmp_path, **{key: value}))
    assert "\n" not in str(raised.value)


def test_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    """What `--set` gives replaces the file's value, and null takes a key out: it has its default, if there is one."""
    path = write(tmp_path, steps="5", feature_cache="features", clip="2")
    recipe = Recipe.load(path, {"steps": 7, "feature_cache": None, "clip": None, "learning_rate": "1e-4"})
    assert (recipe.steps, recipe.feature_cache, recipe.clip, recipe.learning_rate) == (7, None, 1.0, 1e-4)
    with pytest.raises(TrainingError, match="key 'out' is missing"):
        Recipe.load(path, {"out": None})
    with pytest.raises(TrainingError, match="unknown key 'path'"):
        Recipe.load(path, {"path": None})


@pytest.mark.parametrize(
    ("stage", "keys", "message"),
    [
        ("align", {"language_model": "full"}, "align trains the projector alone"),
        ("align", {"tower": "full"}, "align trains the projector alone"),
        ("align", {"projector": "frozen"}, "set projector to full"),
        ("instruct", {}, "set language_model to lora or full"),
    ],
)
def test_a_recipe_fits_its_stage(tmp_path: Path, stage: str, keys: dict[str, str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        check_stage(Recipe.load(write(tmp_path, **keys)), stage)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_our_own_recipes_are_good(path: Path) -> None:
    """Each fits its stage, and those of mini start from what `vision-lm data build --out data` or a run before makes."""
    name, _, stage = path.stem.partition("_")
    before = {
        "reason": "build/mini",
        "naming": "build/mini-reason",
        "unsure": "build/mini-naming",
        "pointing": "build/mini-points",  # their mean
        "settled": "build/mini-pointed",  # two runs of that
        "photographs": "build/mini-settled",
        "evidence": "build/mini-photographs",
        "whole": "build/mini-subject",  # the mean of those three runs' ends
        "styles": "build/mini-landed",  # the weights embedded before
        "hands": "build/mini-styled",  # and those after that
        "lines": "build/mini-handed",  # and those after these
        "honest": "build/mini-lined",  # the mean of both
        "lent": "build/mini-sure",  # the mean of the two runs before
        "absent": "build/mini-lent-mean",  # the mean of both
        "ranked": "build/mini-ranked",  # the mean of both, with tokens of the likeliest nouns
        "crisp": "build/mini-likeliest-mean",  # the mean of that run's start and end
    }  # mini's later instruct runs
    recipe = Recipe.load(path)
    check_stage(recipe, "instruct" if stage in before else stage)  # type: ignore[arg-type]
    if name == "mini":
        assert recipe.checkpoint == before.get(stage, "data/mini-start")
