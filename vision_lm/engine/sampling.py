"""What a caller may ask for, and how the next token of each row is chosen."""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_lm.engine.grammar import Constraint
from vision_lm.errors import RequestError, VisionLMError

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 200
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class Sampling:
    """One request's settings. Raises RequestError for a value that makes no sense."""

    max_tokens: int
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0  # choose among the likeliest tokens that together have this probability
    top_k: int | None = None  # and among no more than so many
    min_p: float = 0.0  # and among those at least so likely as this share of the likeliest one's probability
    repetition_penalty: float = 1.0  # above 1: tokens of the question and the answer so far are less likely
    seed: int | None = None  # the same seed gives the same answer, in any batch; None gives another each time
    stop: Sequence[str] = ()  # the answer ends before any of these texts; one text alone, or a list, will do
    top_logprobs: int = 0  # so many of the likeliest tokens are reported at each place
    # The answer's form, at most one: JSON by a schema (True: any object), text that a regular expression matches
    # as a whole (in the syntax of Rust's regex), or one of some texts.
    json_schema: dict[str, Any] | bool | str | None = field(default=None, compare=False)
    regex: str | None = field(default=None, compare=False)
    choices: Sequence[str] | None = field(default=None, compare=False)
    constraint: Constraint | None = field(init=False, default=None)  # whichever of the three is given
    stop_ids: frozenset[int] = frozenset()
    own_stop: tuple[str, ...] = ()  # the model's own texts of this kind, beside the caller's
    given: tuple[int, ...] = ()  # what is to be said, token by token: only its log-probabilities are wanted

    def __post_init__(self) -> None:
        for name, ok, allowed in (
            ("max_tokens", _is_int(self.max_tokens, 1), "an integer of at least 1"),
            ("temperature", _is_number(self.temperature, 0), "0 (greedy) or a number above it"),
            ("top_p", _is_number(self.top_p, 0, 1) and self.top_p > 0, "a number above 0 and up to 1"),
            ("top_k", self.top_k is None or _is_int(self.top_k, 1), "an integer of at least 1, or None"),
            ("min_p", _is_number(self.min_p, 0, 1), "a number from 0 to 1"),
            # Outside these bounds a logit could overflow; nobody uses more than 2.
            (
                "repetition_penalty",
                _is_number(self.repetition_penalty, 0.01, 100),
                "a number from 0.01 to 100",
            ),
            ("seed", self.seed is None or _is_int(self.seed, 0), "an integer of at least 0, or None"),
            (
                "top_logprobs",
                _is_int(self.top_logprobs, 0, MAX_TOP_LOGPROBS),
                f"an integer from 0 to {MAX_TOP_LOGPROBS}",
            ),
            (
                "stop_ids",
                isinstance(self.stop_ids, frozenset) and all(_is_int(one, 0) for one in self.stop_ids),
                "a frozenset of token ids",
            ),
        ):
            if not ok:
                raise RequestError(f"{name} is {str(getattr(self, name))[:40]!r}; give {allowed}")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "constraint", Constraint.of(self.json_schema, self.regex, self.choices))


class Options(TypedDict, total=False):
    """What a caller may set of a `Sampling`; the tokens that end an answer are the model's own business."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int | None
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: Sequence[str]
    top_logprobs: int
    json_schema: dict[str, Any] | bool | str | None
    regex: str | None
    choices: Sequence[str] | None


@dataclass(frozen=True, eq=False)
class Row:
    """One request's place in a batch of logits (B, V)."""

    sampling: Sampling
    draw: float = 0.0  # in [0, 1), from the request's own generator: randomness never comes from the batch
    seen: Tensor | None = None  # (V,), bool: the question's and the answer's tokens, to be penalised
    allowed: Tensor | None = None  # (V,), bool: the tokens that the form asked for allows here


class Token(NamedTuple):
    """The next token, and how likely it and others were to the model itself, whatever the settings."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the likeliest ids and their log-probabilities, in order
    rival: float = -math.inf  # the log-probability of the likeliest other token


@torch.inference_mode()
def choose(logits: Tensor, rows: Sequence[Row]) -> list[Token | VisionLMError]:
    """The next token of each row of logits (B, V), float32. What is wrong with a row stands in its place.

    Each row is chosen as if it were alone. A GPU is waited for once, at the end.
    """
    log_probs = logits.log_softmax(-1)  # (B, V)
    scores = _scores(logits, rows)  # (B, V)
    ids = scores.argmax(-1)  # (B,)
    kinds = [Truncation.of(row.sampling) for row in rows]
    for truncation in Truncation:
        group = [n for n, kind in enumerate(kinds) if kind is truncation]
        if group and truncation is not Truncation.GREEDY:
            places = _index(group, logits)
            ids[places] = _draw(scores[places], [rows[n] for n in group], truncation)
    chosen = ids[:, None]  # (B, 1)
    found = [ids, log_probs.gather(-1, chosen), scores.gather(-1, chosen).isfinite()]
    asking = [n for n, row in enumerate(rows) if row.sampling.top_logprobs]
    # Always as many, so that which of equal ones are found is the same in any batch.
    width = min(MAX_TOP_LOGPROBS, logits.shape[-1])
    top = log_probs[_index(asking, logits)].topk(width) if asking else []  # values and ids, (W, 20)
    found.append(log_probs.scatter_(-1, chosen, -math.inf).amax(-1))  # the last use of log_probs
    told = torch.cat([part.flatten().double() for part in (*found, *top)]).cpu()
    each, likeliest = told.split([4 * len(rows), 2 * len(asking) * width])
    tops = {
        n: _in_order(*pairs)
        for n, *pairs in zip(asking, *likeliest.view(2, len(asking), width).tolist(), strict=True)
    }
    return [
        token_or_error(int(token), logprob, rival, tops.get(n, ())[: row.sampling.top_logprobs])
        if fine or not math.isfinite(logprob)
        else RequestError("no token can go on in the form that is asked for; give a form that text can have")
        for n, (row, token, logprob, fine, rival) in enumerate(
            zip(rows, *each.view(4, len(rows)).tolist(), strict=True)
        )
    ]


def token_or_error(
    token: int, logprob: float, rival: float, top: tuple[tuple[int, float], ...] = ()
) -> Token | VisionLMError:
    """The token, if the model's output was a number."""
    if math.isfinite(logprob):
        return Token(token, logprob, top, rival)
    return VisionLMError(
        "the model's output is not a number; its weights are damaged, or its dtype is too narrow"
    )


class Truncation(Enum):
    """How much of the order among the tokens a row needs: sorting them all is what costs most."""

    GREEDY = "the first"
    NONE = "none"
    FEW = "the first top_k"
    ALL = "all"

    @classmethod
    def of(cls, sampling: Sampling) -> Truncation:
        if sampling.temperature == 0:
            return cls.GREEDY
        if sampling.top_k is not None:
            return cls.FEW
        return cls.ALL if sampling.top_p < 1 or sampling.min_p > 0 else cls.NONE


def _scores(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Logits (B, V) after the repetition penalty (Keskar et al. 2019), and only of tokens that are allowed."""
    penalised = [
        n for n, row in enumerate(rows) if row.seen is not None and row.sampling.repetition_penalty != 1
    ]
    masked = [n for n, row in enumerate(rows) if row.allowed is not None]
    if not penalised and not masked:
        return logits
    scores = logits.clone()
    if penalised:
        places = _index(penalised, logits)
        seen = _stack([rows[n].seen for n in penalised], logits)  # (P, V)
        penalty = _column([rows[n].sampling.repetition_penalty for n in penalised], logits).float()  # (P, 1)
        some = scores[places]  # (P, V)
        less = torch.where(some < 0, some * penalty, some / penalty)
        scores[places] = torch.where(seen, less, some)
    if masked:
        places = _index(masked, logits)
        allowed = _stack([rows[n].allowed for n in masked], logits)  # (M, V)
        scores[places] = scores[places].masked_fill(~allowed, -math.inf)
    return scores


def _draw(scores: Tensor, rows: Sequence[Row], truncation: Truncation) -> Tensor:
    """One token of each row of scores (S, V) -> (S,): the first at which the kept weights' sum passes the draw."""
    settings = [row.sampling for row in rows]
    temperature = _column([one.temperature for one in settings], scores)  # (S, 1)
    weights = _weights(scores, scores.max(-1, keepdim=True).values, temperature)  # (S, V)
    if truncation is not Truncation.NONE:
        weights *= _kept(scores, temperature, settings, truncation)
    sums = weights.cumsum(-1)  # (S, V)
    total = sums[:, -1:]  # (S, 1)
    target = _column([row.draw for row in rows], total) * total
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    # The clamp is for rows that are not numbers; they are reported, not used.
    return torch.searchsorted(sums, target, right=True)[:, 0].clamp(max=sums.shape[-1] - 1)


def _weights(scores: Tensor, best: Tensor, temperature: Tensor) -> Tensor:
    """Probabilities (S, V), float64, up to a factor: the likeliest token's is 1."""
    return ((scores.double() - best) / temperature).exp()


def _kept(
    scores: Tensor, temperature: Tensor, settings: Sequence[Sampling], truncation: Truncation
) -> Tensor:
    """Which tokens (S, V) top-k, then top-p, then min-p keep: each keeps the likeliest so many.

    Of equal ones at the end those of lower id stay.
    """
    width = scores.shape[-1]
    if truncation is Truncation.FEW:
        width = min(width, max(one.top_k or 0 for one in settings))
    ranked = scores.topk(width).values  # (S, K), the largest first
    weights = _weights(ranked, ranked[:, :1], temperature)  # (S, K)
    top_k = _column([min(one.top_k or width, width) for one in settings], weights)  # (S, 1)
    top_p = _column([one.top_p for one in settings], weights)
    min_p = _column([one.min_p for one in settings], weights)
    among = torch.arange(width, device=scores.device) < top_k  # (S, K)
    sums = (weights * among).cumsum(-1)
    likelier = F.pad(sums[:, :-1], (1, 0))  # what the tokens before it weigh
    among &= ((likelier < top_p * sums[:, -1:]) | (top_p == 1)) & (weights >= min_p)
    count = among.sum(-1, keepdim=True).clamp(min=1)  # (S, 1)
    least = ranked.gather(-1, count - 1)
    more, equal = scores > least, scores == least  # (S, V)
    room = count - more.sum(-1, keepdim=True)
    return more | (equal & (equal.cumsum(-1) <= room))


def _in_order(values: Sequence[float], ids: Sequence[float]) -> tuple[tuple[int, float], ...]:
    """The likeliest first, and of equal ones the lowest id."""
    pairs = sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return tuple((int(one), value) for one, value in pairs)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """One float64 value for each row, on the other tensor's device: (S, 1)."""
    return _beside(torch.tensor(values, dtype=torch.float64), like)[:, None]


def _index(rows: Sequence[int], like: Tensor) -> Tensor | slice:
    """To take these of the other tensor's rows; all are taken as they lie."""
    return slice(None) if len(rows) == len(like) else _beside(torch.tensor(rows), like)


def _stack(masks: Sequence[Tensor | None], like: Tensor) -> Tensor:
    return _beside(torch.stack([mask for mask in masks if mask is not None]), like)


def _beside(small: Tensor, like: Tensor) -> Tensor:
    """On the other tensor's device. A GPU is not waited for: it copies from pinned memory when it comes to it."""
    return small.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else small


def _stop_strings(stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    fine = (
        isinstance(strings, (list, tuple))
        and len(strings) <= MAX_STOP_STRINGS
        and all(isinstance(one, str) and 1 <= len(one) <= MAX_STOP_CHARACTERS for one in strings)
    )
    if not fine:
        raise RequestError(
            f"stop is {reprlib.repr(stop)}; give up to {MAX_STOP_STRINGS} texts, each of 1 to {MAX_STOP_CHARACTERS} characters"
        )
    return tuple(strings)


def _is_int(value: Any, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any, least: float, most: float = sys.float_info.max) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
