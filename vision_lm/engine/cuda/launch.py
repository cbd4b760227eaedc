"""What the kernels are given: their parameter structs, their scratch memory, and the chain that one step is."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from vision_lm.engine.cuda.pack import PackedMatrix, PackedModel
from vision_lm.engine.cuda.shape import Shape

Struct = ctypes.Array[ctypes.c_uint64]


@dataclass(frozen=True)
class Launch:
    """One kernel of a step."""

    kernel: str
    blocks: int
    threads: int
    shared: int  # bytes
    parameters: tuple[Struct, ...]
    cooperative: bool = False  # all blocks at once, for a grid barrier


class Kernels(Protocol):
    """The kernels of one shape: on a GPU, or in the emulator."""

    def run(self, launches: Sequence[Launch]) -> None: ...


@dataclass(frozen=True)
class Inputs:
    """What a step reads and writes at fixed addresses, so that a graph of it can be replayed."""

    ids: Tensor  # (B,) int64
    lengths: Tensor  # (B,) int32: tokens in the cache; -1 is an empty row
    table: Tensor  # (B, P) int32
    logits: Tensor | None  # (B, V) float32
    next: Tensor  # (B,) int64
    logprobs: Tensor  # (B,) float32
    rivals: Tensor  # (B,) float32


@dataclass(frozen=True)
class Scratch:
    """What the kernels of a step hand each other."""

    hidden: Tensor  # (B, Dt), like all here but the counters float32
    queries: Tensor  # (B, Hq hd)
    activated: Tensor  # (B, F)
    attended: Tensor  # (B, Hq hd)
    parts: Tensor
    best: Tensor  # (blocks, B, 4)
    counters: Tensor  # int32, zero before the first step

    @classmethod
    def of(cls, shape: Shape, pages: int, blocks: int, device: torch.device) -> Scratch:
        def floats(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float32, device=device)

        return cls(
            hidden=floats(shape.batch, shape.hidden),
            queries=floats(shape.batch, shape.queries),
            activated=floats(shape.batch, shape.ffn),
            attended=floats(shape.batch, shape.queries),
            parts=floats(shape.part_floats(pages, shape.batch)),
            best=floats(blocks, shape.batch, 4),
            counters=torch.zeros(shape.counters_of(shape.batch), dtype=torch.int32, device=device),
        )


Field: TypeAlias = Tensor | PackedMatrix | int | None  # of a struct in model.cuh


def struct(*fields: Field) -> Struct:
    """Pointers and 64-bit integers, in the order of a struct in model.cuh."""
    values: list[int] = []
    for field in fields:
        if isinstance(field, PackedMatrix):
            values += [pointer(field.rows), pointer(field.scales), pointer(field.bias)]
        else:
            values.append(field if isinstance(field, int) else pointer(field))
    return (ctypes.c_uint64 * len(values))(*values)


def pointer(tensor: Tensor | None) -> int:
    if tensor is None:
        return 0
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def step_launches(
    shape: Shape,
    model: PackedModel,
    inputs: Inputs,
    scratch: Scratch,
    memory: Tensor,
    blocks: int,
    persistent: bool = False,
) -> Iterator[Launch]:
    """embed, then K1 and K2 of every layer, then K3; or all of it as one kernel.

    `memory` is the cache's: keys, then values, (L, 2 Hkv, slots, hd).
    """
    s = scratch
    step = struct(
        *(
            shape.batch,
            inputs.ids,
            inputs.lengths,
            inputs.table,
            inputs.table.shape[1],
            memory.shape[2],
            model.cosines,
            model.sines,
        ),
        *(s.hidden, s.queries, s.activated, s.attended, s.parts, s.counters),
    )
    head_fields = (
        *(model.gamma, model.beta, model.head, model.embedding),
        *(inputs.logits, s.best, inputs.next, inputs.logprobs, inputs.rivals),
    )
    layers: list[tuple[Field, ...]] = [
        (w.gamma, w.beta, w.into, w.dense, w.fc2, *memory[number].chunk(2))
        for number, w in enumerate(model.layers)
    ]
    if persistent:
        every = [field for layer in layers for field in layer]
        parameters = (struct(*head_fields, *every), step)
        yield Launch("step_kernel", blocks, shape.threads, shape.step_bytes(blocks), parameters, True)
        return
    head = struct(*head_fields)
    yield Launch("embed_kernel", shape.batch, shape.streamers, 0, (head, step))
    for fields in layers:
        layer = struct(*fields)
        yield Launch("project_kernel", blocks, shape.streamers, shape.project_bytes, (layer, step))
        yield Launch("mix_kernel", blocks, shape.threads, shape.mix_bytes(blocks), (layer, step))
    yield Launch("choose_kernel", blocks, shape.streamers, shape.project_bytes, (head, step))
