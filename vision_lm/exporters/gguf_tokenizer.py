"""A byte-level BPE in the words of llama.cpp."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from vision_lm.errors import ExportError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's kinds of tokens


def add_tokenizer(writer: Any, tokenizer: Tokenizer, rows: int, end: int) -> None:
    """Every token at its id; rows without one are unused. Raises ExportError for a tokenizer that is not GPT-2's kind."""
    saved = json.loads(tokenizer.to_str())
    splits = saved["pre_tokenizer"] or {}
    gpt2 = (
        splits.get("type") == "ByteLevel" and splits.get("use_regex", True) and not splits["add_prefix_space"]
    )
    if saved["model"]["type"] != "BPE" or saved["normalizer"] or not gpt2:
        raise ExportError("a tokenizer that is not GPT-2's byte-level BPE, as Phi's is")
    added = {one["id"]: one["special"] for one in saved["added_tokens"]}
    texts = {number: text for text, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    kinds = [_kind(number, texts, added) for number in range(rows)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("phi-2")  # GPT-2's splitting
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(rows)])
    writer.add_token_types(kinds)
    merges = saved["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)


def _kind(number: int, texts: dict[int, str], added: dict[int, bool]) -> int:
    if number not in texts:
        return UNUSED
    if number not in added:
        return NORMAL
    return CONTROL if added[number] else USER_DEFINED
