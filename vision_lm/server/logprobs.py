"""Log-probabilities as OpenAI's clients read them: each token as text and as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from vision_lm.answer import Answer
from vision_lm.engine import Token
from vision_lm.pointing import is_point
from vision_lm.prompts import PromptBuilder
from vision_lm.server.schemas import Logprobs, TokenLogprob, TopLogprob


def logprobs_of(tokens: Iterable[Token], prompts: PromptBuilder) -> Logprobs:
    """The tokens' own log-probabilities, with the alternatives that were asked for; those of the text alone, which they spell."""

    def entry(token_id: int, logprob: float) -> TopLogprob:
        data = token_bytes(prompts.tokenizer, token_id)
        return TopLogprob(token=data.decode(errors="replace"), logprob=logprob, bytes=list(data))

    return Logprobs(
        content=[
            TokenLogprob(
                **entry(token.id, token.logprob).model_dump(),
                top_logprobs=[entry(*alternative) for alternative in token.top],
            )
            for token in tokens
            if not is_point(token.id, prompts.config.points)
        ]
    )


def tokens_of(answer: Answer) -> list[Token]:
    """A finished answer's tokens, as they came."""
    tops: Sequence[tuple[tuple[int, float], ...]] = answer.top_logprobs or ((),) * len(answer.tokens)
    return [Token(*one) for one in zip(answer.tokens, answer.token_logprobs, tops, strict=True)]


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """What a token of a byte-level BPE (GPT-2's, Phi's, ours) stands for; it may be half a character."""
    spelling = tokenizer.id_to_token(token_id) or ""
    if all(character in _BYTES for character in spelling):
        return bytes(_BYTES[character] for character in spelling)
    return spelling.encode()  # a special token


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others by the next free code points from 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()
