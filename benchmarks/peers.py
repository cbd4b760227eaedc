"""Our engine beside others that decode the same model: same weights, same prompts, same number of tokens, one run.

    python benchmarks/peers.py [--shapes mini,phi-1_5] [--batches 1,16] [--quantize int8] [--out FILE.json]

Weights are random and count (vision_lm/bench/weights.py): after token t every engine must say t + 1, and none may end
early. Engines take turns, one call each a round, so that a busy machine slows all of them alike; each round has new
prompts, so that no cache knows them. llama.cpp comes with the extra "export" and reads a file that is written for it. A
peer that is not installed, or cannot be compiled here, is left out with a line. Prints a table (medians) and a line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peer_engines import Peer, peers
from torch import Tensor

from vision_lm.bench.machine import BandwidthProbe, Machine
from vision_lm.bench.roofline import Roofline
from vision_lm.bench.shapes import SHAPES, shape_config
from vision_lm.bench.weights import counting_phi
from vision_lm.config import TextConfig
from vision_lm.engine import Mode, choose_device, choose_dtype
from vision_lm.skeleton import phi_shapes

PEERS = ("xllamacpp", "optimum-intel", "openvino")  # whose versions are told
# By shape: tokens of an answer and rounds, so that a phi-1_5 takes minutes and a mini more than milliseconds.
TOKENS, ROUNDS = {"mini": 64}, {"mini": 9}


@dataclass(frozen=True)
class Row:
    """One engine at one batch size: medians."""

    shape: str
    dtype: str
    batch: int
    engine: str
    first_token_s: float  # of the whole batch
    step_s: float  # from then on, a token for each of the batch
    decode_tokens_per_second: float  # of the whole batch together
    tokens_per_second: float  # the prompt's time counted in
    ours_is_faster: float  # our tokens per second, decoding, for one of this engine's
    roofline_share: float  # of the bytes that a step of unrounded weights must read


@dataclass(frozen=True)
class Timed:
    """One batch of prompts: seconds until each has its first token, and until each has all."""

    first_s: float
    whole_s: float

    def step_s(self, tokens: int) -> float:
        return (self.whole_s - self.first_s) / (tokens - 1)


def timed(peer: Peer, prompts: Tensor, tokens: int, vocabulary: int) -> Timed:
    """One batch of prompts (B, T). Raises ValueError if the engine did other work than was asked for."""
    start = time.perf_counter()
    first, last, answers = peer(prompts, tokens)  # answers (B, tokens)
    expected = (prompts[:, -1:] + 1 + torch.arange(tokens)) % vocabulary
    if not torch.equal(answers, expected):
        raise ValueError("its tokens are not those of the weights")
    return Timed(first - start, last - start)


def measure(
    shape: str, batch: int, prompt: int, tokens: int, rounds: int, device: torch.device, quantize: Mode
) -> Iterator[Row]:
    """Every engine that is here, at one batch size."""
    config = shape_config(shape).text
    parameters = sum(one.numel() for one in phi_shapes(config).values())
    dtype = choose_dtype("auto", "bfloat16", parameters, device)
    weights = {name: tensor.to(device) for name, tensor in counting_phi(config, dtype).items()}
    generator = torch.Generator().manual_seed(0)

    def prompts() -> Tensor:  # (B, T)
        drawn = torch.randint(0, config.vocab_size, (batch, prompt), generator=generator)
        # No answer counts past the last token to the first, where a text ends for those who know of an end.
        drawn[:, -1] %= config.vocab_size - tokens
        return drawn

    running: dict[str, Peer] = {}
    for name, build in peers(config, weights, device, dtype, batch, prompt + tokens, quantize).items():
        peer = attempt(name, build, lambda peer: timed(peer, prompts(), tokens, config.vocab_size))
        if peer is not None:
            running[name] = peer
    times: dict[str, list[Timed]] = {name: [] for name in running}
    probe = BandwidthProbe(device)
    for _ in range(rounds):
        probe.read()
        asked = prompts()
        for name, peer in running.items():
            times[name].append(timed(peer, asked, tokens, config.vocab_size))
    yield from medians(shape, config, dtype, batch, prompt, tokens, times, probe.result().bytes_per_s)


def attempt(name: str, build: Callable[[], Peer], warm: Callable[[Peer], object]) -> Peer | None:
    """A peer that has run once, compiled and all, or None after a line that says why not."""
    try:
        peer = build()
        warm(peer)
        return peer
    except ImportError as error:
        print(f"{name}: not installed ({error.name or error})", flush=True)
    except Exception as error:  # compilers and exporters raise nearly anything
        reason = " ".join(str(error).split())[:120]
        print(f"{name}: left out ({type(error).__name__}: {reason})", flush=True)
    return None


def medians(
    shape: str,
    config: TextConfig,
    dtype: torch.dtype,
    batch: int,
    prompt: int,
    tokens: int,
    times: dict[str, list[Timed]],
    bytes_per_s: float,
) -> Iterator[Row]:
    """Medians, ours first; the others are compared with it."""
    ours = statistics.median(one.step_s(tokens) for one in times["ours"])
    for name, runs in times.items():
        first = statistics.median(one.first_s for one in runs)
        whole = statistics.median(one.whole_s for one in runs)
        step = statistics.median(one.step_s(tokens) for one in runs)
        context = batch * (prompt + tokens // 2)
        roofline = Roofline.of(config, dtype, None, context, bytes_per_s, step)
        yield Row(
            shape=shape,
            dtype=str(dtype).removeprefix("torch."),
            batch=batch,
            engine=name,
            first_token_s=first,
            step_s=step,
            decode_tokens_per_second=batch / step,
            tokens_per_second=batch * tokens / whole,
            ours_is_faster=step / ours,
            roofline_share=roofline.share,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", default="mini,phi-1_5", help=", ".join(SHAPES))
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, help="of each answer (default: 16; mini 64)")
    parser.add_argument("--rounds", type=int, help="default: 3; mini 9")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="our engine with rounded weights, too")
    parser.add_argument("--out", type=Path, help="write the JSON to this file, too")
    options = parser.parse_args()

    shapes = options.shapes.split(",")
    if unknown := set(shapes) - set(SHAPES):
        parser.error(f"--shapes: {min(unknown)!r} is unknown; give some of {', '.join(SHAPES)}")
    device = choose_device(options.device)
    machine = Machine.of(device, PEERS)
    print(f"{machine.device}, {machine.threads} threads; {machine.packages}; {machine.date}")
    print(
        f"prompts of {options.prompt} tokens; 'ours' is how many times faster our engine decodes than this one\n"
        f"{'shape':<9}{'batch':>5}  {'engine':<32}{'first s':>9}{'step ms':>9}{'tokens/s':>10}{'ours':>9}{'of read':>9}"
    )
    found: list[Row] = []
    for shape in shapes:
        tokens = options.tokens or TOKENS.get(shape, 16)
        rounds = options.rounds or ROUNDS.get(shape, 3)
        for batch in map(int, options.batches.split(",")):
            for row in measure(shape, batch, options.prompt, tokens, rounds, device, options.quantize):
                found.append(row)
                print(
                    f"{row.shape:<9}{row.batch:>5}  {row.engine:<32}{row.first_token_s:>9.3f}{row.step_s * 1e3:>9.2f}"
                    f"{row.decode_tokens_per_second:>10.1f}{row.ours_is_faster:>8.2f}x{row.roofline_share:>9.0%}",
                    flush=True,
                )
            torch.compiler.reset()  # one batch's models and graphs are gone before the next one's are made
            gc.collect()
    rows = [dataclasses.asdict(row) for row in found]
    report = {"machine": dataclasses.asdict(machine), "options": vars(options), "rows": rows}
    text = json.dumps(report, default=str)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
