"""A tokenizer from whichever files a checkpoint brings: `tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from vision_lm.errors import CheckpointError
from vision_lm.importers.source import read_json
from vision_lm.model_files import TOKENIZER, one_line, read_tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether there is one."""
    return any((place / name).is_file() for place in _places(folder) for name in (TOKENIZER, "merges.txt"))


def find_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, or of its folder `tokenizer`. Raises CheckpointError."""
    for place in _places(folder):
        if (place / TOKENIZER).is_file():
            return read_tokenizer(place / TOKENIZER)
        if (place / "vocab.json").is_file() and (place / "merges.txt").is_file():
            return _from_vocabulary(place)
    raise CheckpointError(
        f"{folder}: no {TOKENIZER}, nor vocab.json with merges.txt; fetch the tokenizer too"
    )


def _places(folder: Path) -> tuple[Path, Path]:
    return folder, folder / "tokenizer"


def _from_vocabulary(folder: Path) -> Tokenizer:
    """A byte-level BPE as CodeGen's and GPT-2's: no prefix space, special tokens matched before all else."""
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:  # all that tokenizers raises
        raise CheckpointError(
            f"{folder}: not a tokenizer ({one_line(error)}); the files are damaged"
        ) from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {name for name in ("<|endoftext|>",) if tokenizer.token_to_id(name) is not None}
    tokenizer.add_special_tokens(sorted(special))
    path = folder / "added_tokens.json"
    added = read_json(path) if path.is_file() else {}
    for text, number in sorted(added.items(), key=lambda item: item[1]):
        # CodeGen's are runs of blanks and tabs: ordinary text, each one token.
        tokenizer.add_tokens([AddedToken(text, normalized=True, special=False)])
        if tokenizer.token_to_id(text) != number:
            raise CheckpointError(
                f"{path}: {text!r} should be token {number}, but is {tokenizer.token_to_id(text)}; the files do not fit"
            )
    return tokenizer


def without_token(tokenizer: Tokenizer, text: str) -> Tokenizer:
    """The tokenizer without this added token: its id is then free for the image placeholder."""
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [one for one in raw["added_tokens"] if one["content"] != text]
    if raw["model"]["type"] == "BPE":  # some writers keep it there too
        raw["model"]["vocab"].pop(text, None)
    return Tokenizer.from_str(json.dumps(raw))
