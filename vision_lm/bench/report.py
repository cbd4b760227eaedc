"""What was measured: as a table for people, as JSON for everything else."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from vision_lm.bench.machine import Bandwidth, Machine
from vision_lm.bench.measure import Streams
from vision_lm.bench.roofline import Roofline
from vision_lm.engine import Mode


@dataclass(frozen=True)
class Measured:
    """The model that was measured."""

    name: str
    parameters: int
    dtype: str  # that it computes in
    quantize: Mode
    image_tokens: int
    prompt_tokens: int  # of every prompt, the picture's included
    answer_tokens: int


@dataclass(frozen=True)
class Latency:
    """Seconds of one request alone, medians."""

    first_token_s: float  # of a new picture and a question about it, the picture in memory
    first_token_same_picture_s: float  # of another question about it
    token_s: float
    overhead: float  # share of the engine's time that is not spent in the model


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    weights: int  # as they are kept
    cache: int  # the key-value cache's budget
    peak_resident: int  # of the whole process
    peak_cuda: int | None  # of the GPU's memory, None without one


@dataclass(frozen=True)
class Report:
    """One run."""

    command: str
    machine: Machine
    model: Measured
    bandwidth: Bandwidth
    latency: Latency
    roofline: Roofline
    streams: tuple[Streams, ...]
    memory: Memory

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def table(self) -> str:
        """Lines of what was measured, in the units people use."""
        model, latency, roofline, memory = self.model, self.latency, self.roofline, self.memory
        kind = model.dtype if model.quantize is None else f"{model.quantize} weights, {model.dtype}"
        text = model.prompt_tokens - model.image_tokens
        cuda = "" if memory.peak_cuda is None else f", {gigabytes(memory.peak_cuda)} of the GPU's"
        again = latency.first_token_same_picture_s / latency.first_token_s
        rows = {
            "first token": f"{duration(latency.first_token_s)}   new picture ({model.image_tokens} tokens), question ({text})",
            "": f"{duration(latency.first_token_same_picture_s)}   another question about it: {again:.0%} of the first",
            "a token": f"{duration(latency.token_s)}   {1 / latency.token_s:.1f} tokens/s; engine overhead {latency.overhead:.1%}",
            "memory read": f"{self.bandwidth.bytes_per_s / 1e9:>7.1f} GB/s {self.bandwidth.how}",
            "roofline": f"{duration(roofline.least_token_s)}   for the {gigabytes(roofline.bytes_per_token)} of a token "
            f"after {roofline.context}: {roofline.share:.0%} reached",
            "memory": f"weights {gigabytes(memory.weights)}, cache {gigabytes(memory.cache)}, "
            f"peak {gigabytes(memory.peak_resident)}{cuda}",
        }
        lines = [
            f"{model.name}, {model.parameters / 1e6:,.1f} M parameters, {kind}",
            f"{self.machine.device}, {self.machine.threads} threads; {self.machine.packages}; {self.machine.date}",
            "",
            *(f"{name:<13}{row}" for name, row in rows.items()),
            "",
            f"{'streams':<9}{'tokens/s':>10}{'decoding':>10}{'seconds':>10}{'tokens':>8}{'overhead':>10}",
            *(
                f"{one.streams:<9}{one.tokens_per_second:>10.1f}{one.decode_tokens_per_second:>10.1f}"
                f"{one.seconds:>10.2f}{one.tokens:>8}{one.overhead:>10.1%}"
                for one in self.streams
            ),
        ]
        return "\n".join(lines)


def duration(seconds: float) -> str:
    """In s, ms or µs, ten characters wide."""
    for unit, size in (("s ", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:>7.2f} {unit}"
    return f"{seconds / 1e-6:>7.0f} µs"


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
