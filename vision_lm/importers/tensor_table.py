"""The table of an import: for every tensor of ours, the tensors of theirs that it is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vision_lm.errors import CheckpointError


@dataclass(frozen=True)
class From:
    """Their tensors, and what makes ours of them; one tensor alone is taken as it is."""

    names: tuple[str, ...]
    make: Callable[[Sequence[Tensor]], Tensor] | None = None
    what: str = ""  # the same in words, for the report


Table = dict[str, From]


def copy(name: str) -> From:
    """Their tensor, unchanged."""
    return From((name,))


def stacked(*names: str) -> From:
    """Their tensors, one below the other."""
    return From(names, lambda tensors: torch.cat(list(tensors)), "stacked")


def part(name: str, start: int, stop: int) -> From:
    """Some rows of their tensor."""
    return From((name,), lambda tensors: tensors[0][start:stop], f"rows {start} to {stop - 1}")


def shaped(name: str, *shape: int) -> From:
    """Their tensor in another shape."""
    return From((name,), lambda tensors: tensors[0].reshape(shape), f"as {list(shape)}")


def zeros(like: str) -> From:
    """A bias that their model lacks: a zero for every row of this weight of theirs."""
    return From((like,), lambda tensors: torch.zeros_like(tensors[0][:, 0]), "zeros: they have no bias")


def one_row_more(source: From, fill: float) -> From:
    """The same with a last row of this value."""

    def longer(tensors: Sequence[Tensor]) -> Tensor:
        rows = source.make(tensors) if source.make else tensors[0]
        return torch.cat([rows, torch.full_like(rows[:1], fill)])

    return From(source.names, longer, f"{source.what}, a row of {fill:g} added".removeprefix(", "))


def make(name: str, table: Mapping[str, From], theirs: Mapping[str, Tensor], where: str) -> Tensor:
    """One tensor of ours. Raises CheckpointError where theirs are not what the table takes them for."""
    source = table[name]
    tensors = [theirs[one] for one in source.names]
    try:
        return tensors[0] if source.make is None else source.make(tensors)
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(f"{one} {list(theirs[one].shape)}" for one in source.names)
        raise CheckpointError(f"{where}: {shapes} cannot become {name}; the file is damaged") from error


def check_all_used(
    table: Mapping[str, From], theirs: Iterable[str], unused: Mapping[str, str], where: str
) -> None:
    """Every tensor of theirs is used, or one that is known to be of no use. Raises CheckpointError naming the others.

    `unused`: regular expressions of whole names, and why the tensors are of no use.
    """
    theirs = set(theirs)
    needed = {name for source in table.values() for name in source.names}
    if missing := sorted(needed - theirs):
        raise CheckpointError(f"{where}: missing tensors: {_some(missing)}; fetch the checkpoint again")
    left = sorted(name for name in theirs - needed if not any(re.fullmatch(one, name) for one in unused))
    if left:
        raise CheckpointError(
            f"{where}: left over: {_some(left)}; this is not quite the layout that it seemed to be, and what "
            "these tensors do would be lost"
        )


def _some(names: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
