"""The C++ library's functions and structures, as Python sees them."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vision_lm.engine.cpu.compile import NATIVE, load

Pointer = ctypes.c_void_p
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INT8, INT4 = 3, 4


class Matrix(ctypes.Structure):
    """`Matrix` of matrix.h."""

    _fields_ = [
        ("weight", Pointer),
        ("scale", Pointer),
        ("zero", Pointer),
        ("bias", Pointer),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("panels", ctypes.c_int32),
        ("unpacked", ctypes.c_int32),
    ]


class Norm(ctypes.Structure):
    _fields_ = [("weight", Pointer), ("bias", Pointer)]


class Layer(ctypes.Structure):
    _fields_ = [("norm", Norm), ("into", Matrix), ("out", Matrix)]


class Model(ctypes.Structure):
    """`Model` of model.h."""

    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        ("count", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("key_heads", ctypes.c_int32),
        ("head_width", ctypes.c_int32),
        ("turned", ctypes.c_int32),
        ("norm", Norm),
        ("head", Matrix),
        ("embedding", Pointer),
        ("embedding_kind", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("rotary", Pointer),
        ("positions", ctypes.c_int64),
    ]


class Batch(ctypes.Structure):
    """`Batch` of model.h."""

    _fields_ = [
        ("rows", ctypes.c_int32),
        ("logit_rows", ctypes.c_int32),
        ("table_width", ctypes.c_int32),
        ("together", ctypes.c_int32),
        ("ids", Pointer),
        ("embeddings", Pointer),
        ("sequences", Pointer),
        ("positions", Pointer),
        ("seen", Pointer),
        ("table", Pointer),
        ("cache", Pointer),
        ("slots", ctypes.c_int64),
        ("cache_kind", ctypes.c_int32),
        ("last", Pointer),
        ("logits", Pointer),
    ]


@dataclass(frozen=True, eq=False)
class Team:
    """The library and its threads. Any thread may call; calls wait for one another."""

    library: ctypes.CDLL
    handle: Pointer
    busy: threading.Lock = field(default_factory=threading.Lock)

    @property
    def tiles(self) -> bool:
        """Whether it multiplies bfloat16 weights by tiles (AMX), which then lie in panels."""
        return bool(self.library.vlm_tiles())

    @property
    def rows(self) -> bool:
        """Whether weights of 16 bits lie row by row, as torch has them, where they are not in tiles."""
        return bool(self.library.vlm_rows())

    @classmethod
    def start(cls, threads: int, target: str = NATIVE) -> Team:
        """Raises CpuKernelError where the library cannot be built or loaded."""
        library = load(target)
        for name in ("vlm_team", "vlm_decoder"):
            getattr(library, name).restype = Pointer
        team = cls(library, Pointer(library.vlm_team(ctypes.c_int(threads))))
        weakref.finalize(team, library.vlm_team_end, team.handle).atexit = False
        return team

    def product(self, matrix: Matrix, x: Tensor) -> Tensor:
        """x float32 (M, K) -> x @ weight.T + bias, float32 (M, N). Raises MemoryError."""
        y = torch.empty(len(x), matrix.outputs)
        self.call(
            "vlm_product", self.handle, ctypes.byref(matrix), address(x), ctypes.c_int64(len(x)), address(y)
        )
        return y

    def decoder(self, model: Model) -> Decoder:
        handle = Pointer(self.library.vlm_decoder(ctypes.byref(model), self.handle))
        decoder = Decoder(self, handle)
        weakref.finalize(decoder, self.library.vlm_decoder_end, handle).atexit = False
        return decoder

    def call(self, name: str, *arguments: object) -> None:
        with self.busy:
            failed = getattr(self.library, name)(*arguments)
        if failed:
            raise MemoryError("the CPU kernels cannot allocate memory for a step's activations")


@dataclass(frozen=True, eq=False)
class Decoder:
    team: Team  # must outlive it
    handle: Pointer

    def step(self, batch: Batch) -> None:
        """Raises MemoryError."""
        self.team.call("vlm_step", self.handle, ctypes.byref(batch))


def address(tensor: Tensor) -> Pointer:
    """Of a contiguous tensor, which the caller keeps alive."""
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError("the CPU kernels read contiguous tensors in main memory")
    return Pointer(tensor.data_ptr())


def layers_array(layers: Sequence[Layer]) -> ctypes.Array[Layer]:
    return (Layer * len(layers))(*layers)
