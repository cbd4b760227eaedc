"""One decoding step of the CUDA kernels alone, without the engine: how much of the memory's speed each form reaches.

    python benchmarks/cuda_step.py [--shape phi-1_5] [--context 640] [--bits 16,8,4] [--rows 1] [--dtype bfloat16]
                                   [--variants "warps=12 ring=6,attention_warps=8"] [--parts] [--out FILE.json]

A step is captured in a graph and replayed; weights are random, and far larger than the caches. Forms of a step: the
chain of kernels, each starting while the one before ends; the same without that overlap; one persistent kernel. They
take turns, and a plain read of memory stands between them. --variants builds them with other numbers of warps and
buffers (fields of engine/cuda/shape.py; with whole=1 the one kernel), --parts times the chain's kernels apart. Prints
a table (medians) and a line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from vision_lm.bench.machine import BandwidthProbe, Machine
from vision_lm.bench.roofline import Roofline
from vision_lm.bench.shapes import shape_config
from vision_lm.config import TextConfig
from vision_lm.engine import Mode
from vision_lm.engine.cuda.compile import GpuKernels
from vision_lm.engine.cuda.decoder import Limits
from vision_lm.engine.cuda.launch import Inputs, Launch, Scratch, step_launches
from vision_lm.engine.cuda.pack import PackedModel, pack
from vision_lm.engine.cuda.shape import PAGE, Bits, Shape
from vision_lm.engine.device import DTYPES
from vision_lm.engine.kv_cache import KVCache
from vision_lm.skeleton import phi_shapes

ROUNDS, REPLAYS = 9, 10
MODES: dict[int, Mode] = {16: None, 8: "int8", 4: "int4"}
DEVICE = torch.device("cuda")


@dataclass(frozen=True)
class Row:
    """One form of the step: median time, and the share of the time that the bytes need at the speed of the probe."""

    bits: int
    rows: int
    form: str
    step_us: float
    share: float
    bytes_per_s: float


def random_weights(config: TextConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """PhiForCausalLM's state dict, drawn on the GPU."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def drawn(name: str, shape: torch.Size) -> Tensor:
        tensor = torch.randn(shape, generator=generator, device=DEVICE, dtype=dtype).mul_(0.02)
        return tensor.add_(1) if name.endswith("layernorm.weight") else tensor

    return {name: drawn(name, shape) for name, shape in phi_shapes(config).items()}


class Steps:
    """A model on the GPU with `rows` sequences of `context` tokens, and the step that follows."""

    def __init__(
        self, config: TextConfig, model: PackedModel, rows: int, context: int, dtype: torch.dtype
    ) -> None:
        self.model, self.rows = model, rows
        pages = -(-context // PAGE)
        self.cache = KVCache(config, rows * pages, DEVICE, dtype)
        self.cache.memory.normal_()
        self.inputs = Inputs(
            ids=torch.arange(rows, device=DEVICE),
            lengths=torch.full((rows,), context - 1, dtype=torch.int32, device=DEVICE),
            table=torch.randperm(rows * pages, device=DEVICE).int().reshape(rows, pages),
            logits=torch.zeros(rows, config.vocab_size, device=DEVICE),
            next=torch.zeros(rows, dtype=torch.int64, device=DEVICE),
            logprobs=torch.zeros(rows, device=DEVICE),
            rivals=torch.zeros(rows, device=DEVICE),
        )
        self.blocks = Limits.of(DEVICE).blocks

    def launches(self, shape: Shape, persistent: bool = False) -> list[Launch]:
        scratch = Scratch.of(shape, self.inputs.table.shape[1], self.blocks, DEVICE)
        self._kept = scratch  # its memory must outlive the graph
        parts = (shape, self.model, self.inputs, scratch, self.cache.memory, self.blocks)
        return list(step_launches(*parts, persistent))


def graph_of(kernels: GpuKernels, launches: list[Launch], scratch: object) -> Callable[[], None]:
    """A replay of the launches."""
    kernels.run(launches)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.run(launches)

    def replay(kept: object = (launches, scratch)) -> None:
        graph.replay()

    return replay


def forms(
    steps: Steps, shape: Shape, variants: list[str], parts: bool
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every form that this GPU can run; a line says why one cannot be had."""
    limits = Limits.of(DEVICE)

    def built(
        name: str, shape: Shape, persistent: bool, overlaps: bool, only: str = ""
    ) -> Iterator[tuple[str, Callable[[], None]]]:
        try:
            kernels = GpuKernels(shape, DEVICE)
            kernels._overlaps = kernels._overlaps and overlaps
            launches = [one for one in steps.launches(shape, persistent) if only in one.kernel]
            yield name, graph_of(kernels, launches, steps._kept)
        except Exception as error:
            print(f"{name}: left out ({' '.join(str(error).split())[:160]})", flush=True)

    base = shape.fitting(limits.blocks, limits.shared)
    whole = dataclasses.replace(shape, persistent=True).fitting(limits.blocks, limits.shared)
    yield from built("chain", base, False, True)
    yield from built("chain, no overlap", base, False, False)
    yield from built("one kernel", whole, True, False)
    if parts:  # mix_kernel alone would wait for the counters that project_kernel sets
        yield from built("project only", base, False, True, "project")
        yield from built("choose only", base, False, True, "choose")
    for variant in variants:
        changed = {name: int(value) for name, value in (one.split("=") for one in variant.split())}
        one_kernel = bool(changed.pop("whole", 0))
        other = dataclasses.replace(whole if one_kernel else base, **changed)  # type: ignore[arg-type]
        yield from built(f"{'one kernel' if one_kernel else 'chain'}, {variant}", other, one_kernel, True)


def replays_us(replay: Callable[[], None]) -> float:
    """Microseconds of one replay, of some in a row."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPLAYS):
        replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / REPLAYS


def measure(
    config: TextConfig,
    bits: Bits,
    rows: int,
    context: int,
    dtype: torch.dtype,
    variants: list[str],
    parts: bool,
) -> Iterator[Row]:
    steps = Steps(
        config, pack(config, random_weights(config, dtype), DEVICE, dtype, bits), rows, context, dtype
    )
    running = dict(forms(steps, Shape.of(config, dtype, bits, rows), variants, parts))
    probe = BandwidthProbe(DEVICE)
    times: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(ROUNDS):
        probe.read()
        for name, replay in running.items():
            times[name].append(replays_us(replay))
    speed = probe.result().bytes_per_s
    for name, some in times.items():
        step = statistics.median(some)
        share = Roofline.of(config, dtype, MODES[bits], rows * context, speed, step * 1e-6).share
        yield Row(bits, rows, name, step, share, speed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="phi-1_5")
    parser.add_argument("--context", type=int, default=640, help="tokens, the step's own included")
    parser.add_argument("--bits", default="16,8,4")
    parser.add_argument("--rows", default="1", help="sequences of a step: some of 1, 2, 4, 8")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    parser.add_argument(
        "--variants", default="", help="comma-separated; fields of a variant are separated by spaces"
    )
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--out", type=Path, help="write the JSON to this file, too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("the CUDA kernels need an NVIDIA GPU")
    config, variants = (
        shape_config(options.shape).text,
        [one.strip() for one in options.variants.split(",") if one.strip()],
    )
    print(f"{'bits':>4}{'rows':>5}  {'form':<48}{'step, us':>10}{'share':>8}")
    found: list[Row] = []
    for bits in map(int, options.bits.split(",")):
        for rows in map(int, options.rows.split(",")):
            width = cast(Bits, bits)
            dtype = DTYPES[options.dtype]
            for row in measure(config, width, rows, options.context, dtype, variants, options.parts):
                found.append(row)
                print(
                    f"{row.bits:>4}{row.rows:>5}  {row.form:<48}{row.step_us:>10.1f}{row.share:>8.1%}",
                    flush=True,
                )
    print(f"memory read at {found[-1].bytes_per_s / 1e12:.2f} TB/s")
    report = {
        "machine": dataclasses.asdict(Machine.of(DEVICE)),
        "rows": [dataclasses.asdict(row) for row in found],
    }
    text = json.dumps(report)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
