"""The loss and learning rate of runs that follow each other as a picture, from the curves that training wrote.

python benchmarks/training_curve.py --run build/mini build/mini-reason --out docs/images/mini_training.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--run",
        type=Path,
        nargs="+",
        required=True,
        help="the folders that the recipes name as `out`, in order",
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    figure, (loss, rate) = plt.subplots(
        2, 1, figsize=(8, 5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    for axes, name, scale in ((loss, "loss", "log"), (rate, "learning_rate", "linear")):
        before = 0  # steps of the runs that went before
        for run in options.run:
            steps, values = curve(run, name)
            axes.plot([before + step for step in steps], values, linewidth=1.2, label=run.name)
            before += steps[-1]
        axes.set_yscale(scale)
        axes.set_ylabel(name.replace("_", " "))
        axes.grid(alpha=0.3, which="both")
    if len(options.run) > 1:
        loss.legend()
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())  # labels of every digit would run into each other
    rate.set_xlabel("step")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)


def curve(run: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one curve. A resumed run has several files; where they overlap, the newest counts."""
    points: dict[int, float] = {}
    for file in sorted(run.rglob("events.out.tfevents*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        if name in events.Tags()["scalars"]:
            points |= {event.step: event.value for event in events.Scalars(name)}
    if not points:
        raise SystemExit(f"{run}: no curve named {name}; give a folder that training wrote")
    steps = sorted(points)
    return steps, [points[step] for step in steps]


if __name__ == "__main__":
    main()
