"""A tokenizer from GPT-2's files, as CodeGen's (Phi's) slow tokenizer saves it, is the one from `tokenizer.json`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from tests.conftest import SENTENCES, train_tokenizer
from vision_lm.errors import CheckpointError
from vision_lm.importers.tokenizer_files import find_tokenizer, without_token


def with_blanks() -> Tokenizer:
    """Runs of blanks are tokens of their own, as in CodeGen."""
    tokenizer = train_tokenizer()
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (4, 3)])
    return tokenizer


def as_gpt2(tokenizer: Tokenizer, folder: Path, **added: int) -> None:
    folder.mkdir()
    tokenizer.model.save(str(folder))
    (folder / "added_tokens.json").write_text(json.dumps(added))


@pytest.mark.parametrize("place", ["", "tokenizer"])
def test_vocabulary_and_merges(tmp_path: Path, place: str) -> None:
    whole = with_blanks()
    number = train_tokenizer().get_vocab_size()
    folder = tmp_path / "it"
    if place:
        folder.mkdir()
    as_gpt2(train_tokenizer(), folder / place, **{" " * 4: number, " " * 3: number + 1})
    found = find_tokenizer(folder)
    for text in (*SENTENCES, "x    y   z", "\n\n", "Çé 你<|endoftext|>a"):
        ids = whole.encode(text, add_special_tokens=False).ids
        assert found.encode(text, add_special_tokens=False).ids == ids
        assert found.decode(ids) == whole.decode(ids)


def test_added_tokens_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    as_gpt2(train_tokenizer(), tmp_path / "it", **{" " * 4: 9_000})
    with pytest.raises(CheckpointError, match="should be token 9000"):
        find_tokenizer(tmp_path / "it")


@pytest.mark.parametrize("in_vocabulary", [False, True])
def test_a_word_for_pictures_is_taken_out(in_vocabulary: bool) -> None:
    """Some writers keep it in the vocabulary too; all other ids stay."""
    plain = train_tokenizer()
    raw = json.loads(plain.to_str())
    number = plain.get_vocab_size()
    if in_vocabulary:
        raw["model"]["vocab"]["<image>"] = number
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    tokenizer.add_special_tokens([AddedToken("<image>", special=True)])
    assert tokenizer.token_to_id("<image>") == number
    cleared = without_token(tokenizer, "<image>")
    assert cleared.id_to_token(number) is None
    assert cleared.get_vocab() == plain.get_vocab()
