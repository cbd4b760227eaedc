"""Linear kernels on this CPU at a language model's shapes: the engine's own, the torch decoder's, and all that torch has.

    python benchmarks/linear_kernels.py [--shapes 2048x14336,10240x2048,2048x51200] [--batches 1,4,16]
                                        [--dtype bfloat16] [--cold 128] [--rounds 30] [--out FILE.json]

A decoding step reads every weight once, from memory. So a kernel turns over copies of its weight that together are
larger than the caches, and is judged by its bytes of weight a second beside a plain read of memory in the same run
(--cold 0: one copy each, as a small model's weights stay in the caches).
Kernels take turns, one call each a round, so that a busy machine slows all of them alike. Prints a table (medians)
and, with --out, writes every time. W8A8 kernels also round the activations to 8 bits, which weight-only ones do not.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_lm.engine.cpu.errors import CpuKernelError
from vision_lm.engine.cpu.library import Team
from vision_lm.engine.cpu.linear import NativeLinear
from vision_lm.engine.device import DTYPES
from vision_lm.engine.quantize import Mode, quantised
from vision_lm.engine.rounding import GROUP, int4_groups, int8_rows

PROBE = 64_000_000  # float32 values that the memory probe reads
SLOWEST = 5e-9  # seconds a weight at batch 1: a kernel that needs more runs a reference loop, and is left out
CPU = torch.device("cpu")
aten, mkldnn, onednn = torch.ops.aten, torch.ops.mkldnn, torch.ops.onednn


@dataclass(frozen=True)
class Kernel:
    name: str
    bits: float  # of a weight
    pack: Callable[[Tensor], Any]  # weight (N, K) -> what the kernel holds
    call: Callable[[Tensor, Any], Any]  # x (B, K), what it holds -> (B, N)


def kernels(dtype: torch.dtype) -> list[Kernel]:
    """Every way to multiply activations of `dtype` by a weight."""
    bits = 8 * dtype.itemsize
    dense = [
        Kernel("F.linear", bits, lambda w: w.to(dtype, copy=True), F.linear),
        Kernel("F.linear, weight (K, N)", bits, lambda w: w.to(dtype).t().contiguous().t(), F.linear),
        Kernel(
            "oneDNN packed",
            bits,
            lambda w: mkldnn._reorder_linear_weight(w.to(dtype), 1),
            lambda x, w: mkldnn._linear_pointwise(x, w, None, "none", [], ""),
        ),
    ]
    rounded = [
        Kernel(
            "_weight_int8pack_mm", 8, _int8, lambda x, w: aten._weight_int8pack_mm(x, w[0], w[1].to(dtype))
        ),
        Kernel("_weight_int4pack_mm_for_cpu", 4.25, lambda w: _int4(w, dtype), _int4_product),
        Kernel(
            "W8A8 qlinear_pointwise, x int8", 8, _onednn8, lambda x, w: _onednn8_product(x, w, signed=True)
        ),
        Kernel(
            "W8A8 qlinear_pointwise, x uint8", 8, _onednn8, lambda x, w: _onednn8_product(x, w, signed=False)
        ),
        Kernel("W8A8 _int_mm", 8, _int8, lambda x, w: _int_mm(x, w[0].t(), w[1])),
        Kernel("W8A8 _int_mm, weight (K, N)", 8, _int8_turned, lambda x, w: _int_mm(x, *w)),
    ]
    modes: tuple[Mode, ...] = (None, "int8", "int4")
    try:
        team = Team.start(torch.get_num_threads())
        own = [
            _ours("engine", lambda w, m: NativeLinear.pack(team, w, None, m, dtype), m, dtype) for m in modes
        ]
    except CpuKernelError as error:
        print(f"engine: {error}")
        own = []
    plain = [_ours("torch decoder", lambda w, m: quantised(w, None, m, dtype, CPU), m, dtype) for m in modes]
    return [*own, *plain, *dense, *rounded]


def _ours(whose: str, pack: Callable[[Tensor, Mode], Any], mode: Mode, dtype: torch.dtype) -> Kernel:
    return Kernel(
        name=f"{whose}, {mode or str(dtype).removeprefix('torch.')}",
        bits={None: 8 * dtype.itemsize, "int8": 8, "int4": 4.25}[mode],
        pack=lambda w: pack(w, mode),
        call=lambda x, layer: layer(x),
    )


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    return int8_rows(weight)


def _int8_turned(weight: Tensor) -> tuple[Tensor, Tensor]:
    codes, scale = int8_rows(weight)
    return codes.t().contiguous(), scale


def _onednn8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale = int8_rows(weight)
    return onednn.qlinear_prepack(codes, None), scale, torch.zeros(len(scale), dtype=torch.long)


def _onednn8_product(x: Tensor, held: tuple[Tensor, Tensor, Tensor], signed: bool) -> Tensor:
    codes, step = _eight_bits(x)
    zero = 0 if signed else 128
    codes = codes.to(torch.int8) if signed else (codes + zero).to(torch.uint8)
    y = onednn.qlinear_pointwise(codes, 1.0, zero, *held, None, 1.0, 0, torch.float32, "none", [], "")
    return (y * step).to(x.dtype)


def _int_mm(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    codes, step = _eight_bits(x)
    return (torch._int_mm(codes.to(torch.int8), weight) * scale * step).to(x.dtype)


def _eight_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127, (B, K), and the step (B, 1)."""
    step = x.float().abs().amax(1, keepdim=True) / 127
    return (x / step).round_(), step


def _int4(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    codes, scale, zero = int4_groups(weight)
    packed = aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    return packed, torch.stack([scale.t(), zero.t()], -1).to(dtype)


def _int4_product(x: Tensor, held: tuple[Tensor, Tensor]) -> Tensor:
    return aten._weight_int4pack_mm_for_cpu(x, held[0], GROUP, held[1])


def seconds(call: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


@torch.inference_mode()
def measure(
    weight: Tensor, batches: list[int], dtype: torch.dtype, cold: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Rows of the table for one weight (N, K), whose copies take `cold` bytes together."""
    outputs, inputs = weight.shape
    memory = torch.ones(PROBE)
    copies = {}  # of the weight, for every kernel that can be timed
    for kernel in kernels(dtype):
        try:
            first = kernel.pack(weight)
            x = torch.randn(1, inputs).to(dtype)
            quickest = min(seconds(kernel.call, x, first) for _ in range(2))
        except RuntimeError as error:
            print(f"{kernel.name}: {str(error).splitlines()[0][:90]}")
            continue
        if quickest > SLOWEST * weight.numel():
            print(f"{kernel.name}: {quickest * 1e6:.0f} µs at batch 1, left out")
            continue
        more = int(cold // (weight.numel() * kernel.bits / 8))
        copies[kernel] = [first, *(kernel.pack(weight) for _ in range(more))]
    for batch in batches:
        x = torch.randn(batch, inputs).to(dtype)
        reads: list[float] = []
        times: dict[Kernel, list[float]] = {kernel: [] for kernel in copies}
        for turn in range(rounds):
            if turn % 10 == 0:  # seldom, for it empties the caches
                reads.append(seconds(memory.sum))
            for kernel, held in copies.items():
                times[kernel].append(seconds(kernel.call, x, held[turn % len(held)]))
        read = memory.nbytes / statistics.median(reads) / 1e9
        for kernel, values in times.items():
            median = statistics.median(values)
            speed = weight.numel() * kernel.bits / 8 / median / 1e9
            yield {
                "kernel": kernel.name,
                "inputs": inputs,
                "outputs": outputs,
                "batch": batch,
                "median_us": median * 1e6,
                "min_us": min(values) * 1e6,
                "weight_GB_s": speed,
                "read_GB_s": read,
                "share_of_read": speed / read,
                "times_us": [value * 1e6 for value in values],
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", default="2048x14336,10240x2048,2048x51200", help="inputs x outputs")
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--cold", type=int, default=128, help="MB of copies of a weight, 0 for one copy")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    torch.manual_seed(0)
    batches = [int(batch) for batch in options.batches.split(",")]
    rows = []
    print(f"{'kernel':<34}{'K x N':>14}{'batch':>6}{'µs':>9}{'min':>9}{'GB/s':>7}{'of read':>9}")
    for shape in options.shapes.split(","):
        inputs, outputs = (int(side) for side in shape.split("x"))
        weight = torch.randn(outputs, inputs) * 0.02
        for row in measure(weight, batches, DTYPES[options.dtype], options.cold * 10**6, options.rounds):
            rows.append(row)
            print(
                f"{row['kernel']:<34}{shape:>14}{row['batch']:>6}{row['median_us']:>9.0f}{row['min_us']:>9.0f}"
                f"{row['weight_GB_s']:>7.1f}{row['share_of_read']:>9.0%}"
            )
    if options.out:
        about = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": cpu_name(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "dtype": options.dtype,
            "cold_MB": options.cold,
        }
        options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def cpu_name() -> str:
    """The processor's name; Linux keeps it in /proc."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


if __name__ == "__main__":
    main()
