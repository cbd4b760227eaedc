"""OpenAI's own client, unchanged, against the service: what it reads is what the Python API says."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import pytest

from tests.server.conftest import QUESTION, Running, asked
from vision_lm.model import VisionLM

openai = pytest.importorskip("openai")

SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}, "cat": {"type": "boolean"}},
    "required": ["count", "cat"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def test_a_question_about_a_data_url(client: Any, vlm: VisionLM, png: bytes, data_url: str) -> None:
    """Text, finish reason, token counts and confidence are the Python API's."""
    answer = vlm.ask(png, QUESTION)
    done = client.chat.completions.create(model="tiny", messages=user(asked(data_url)))
    (choice,) = done.choices
    assert choice.message.content == answer.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == ("length" if answer.finish_reason == "length" else "stop")
    assert choice.confidence == pytest.approx(answer.confidence, abs=1e-5)
    assert choice.unanswerable == answer.unanswerable
    assert done.usage.completion_tokens == len(answer.tokens)
    assert done.usage.prompt_tokens > 16  # a picture's patches are counted
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert (done.object, done.model) == ("chat.completion", "tiny")


def test_a_picture_alone_asks_for_a_caption(client: Any, vlm: VisionLM, png: bytes, data_url: str) -> None:
    """A message without a word is the request for a normal caption."""
    picture = [{"type": "image_url", "image_url": {"url": data_url, "detail": "auto"}}]
    done = client.chat.completions.create(model="tiny", messages=user(picture))
    assert done.choices[0].message.content == vlm.ask(png, vlm.prompts.caption_question("normal")).text


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_stream_is_the_answer_in_pieces(client: Any, data_url: str, seed: int) -> None:
    """Pieces joined are the whole answer; the last chunks have the finish reason and, if wanted, the usage."""
    wanted: dict[str, Any] = {
        "model": "tiny",
        "messages": user(asked(data_url)),
        "temperature": 1.5,
        "seed": seed,
    }
    whole = client.chat.completions.create(**wanted)
    chunks = list(
        client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True})
    )
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 5


def test_log_probabilities(client: Any, vlm: VisionLM, png: bytes, data_url: str) -> None:
    """Whole and streamed: the tokens' bytes spell the answer, greedy is the likeliest, and alternatives are as many as asked."""
    wanted: dict[str, Any] = {"model": "tiny", "messages": user(asked(data_url)), "max_tokens": 12}
    wanted |= {"logprobs": True, "top_logprobs": 3}
    answer = vlm.ask(png, QUESTION, max_tokens=12)
    content = client.chat.completions.create(**wanted).choices[0].logprobs.content
    assert [one.logprob for one in content] == pytest.approx(answer.token_logprobs, abs=1e-4)
    spelt = b"".join(bytes(one.bytes) for one in content)
    assert spelt.decode(errors="replace") == vlm.prompts.decode(answer.tokens)
    for one in content:
        assert len(one.top_logprobs) == 3
        assert (one.top_logprobs[0].token, one.top_logprobs[0].bytes) == (one.token, one.bytes)
        assert sum(math.exp(top.logprob) for top in one.top_logprobs) <= 1 + 1e-6
    streamed = []
    for chunk in client.chat.completions.create(**wanted, stream=True):
        logprobs = chunk.choices[0].logprobs
        streamed += logprobs.content if logprobs else []
    assert [one.bytes for one in streamed] == [one.bytes for one in content]


@pytest.mark.parametrize("strict", [True, None])
def test_json_by_a_schema(client: Any, data_url: str, strict: bool | None) -> None:
    """What comes back is valid under the schema, by an independent validator."""
    form: dict[str, Any] = {"name": "scene", "schema": SCHEMA} | ({"strict": strict} if strict else {})
    done = client.chat.completions.create(
        model="tiny",
        messages=user(asked(data_url)),
        max_tokens=80,
        response_format={"type": "json_schema", "json_schema": form},
    )
    assert done.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(done.choices[0].message.content), SCHEMA)


def test_any_json_object(client: Any) -> None:
    """json_object gives an object, or says that the tokens ran out; text gives text."""
    for seed in range(4):
        done = client.chat.completions.create(
            model="tiny",
            messages=user(QUESTION),
            max_tokens=100,
            temperature=1.0,
            seed=seed,
            response_format={"type": "json_object"},
        )
        text = done.choices[0].message.content
        assert text.startswith("{")
        if done.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(text), dict)
    plain = client.chat.completions.create(
        model="tiny", messages=user(QUESTION), response_format={"type": "text"}
    )
    assert plain.choices[0].message.content


def test_several_answers(client: Any) -> None:
    """`n` answers differ, repeat with their seed, and streamed interleaved are the same."""
    wanted: dict[str, Any] = {"model": "tiny", "messages": user(QUESTION), "n": 3, "seed": 5}
    wanted |= {"temperature": 1.5, "max_tokens": 20}
    texts = [choice.message.content for choice in client.chat.completions.create(**wanted).choices]
    again = client.chat.completions.create(**wanted)
    assert [choice.message.content for choice in again.choices] == texts
    assert len(set(texts)) == 3
    assert again.usage.completion_tokens > 20
    streamed = [""] * 3
    for chunk in client.chat.completions.create(**wanted, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_stop_strings(client: Any, vlm: VisionLM) -> None:
    """The answer ends before the stop string, whole and streamed."""
    free = vlm.ask(None, QUESTION, temperature=1.5, seed=3, max_tokens=40).text
    wanted: dict[str, Any] = {"model": "tiny", "messages": user(QUESTION), "stop": [free[7:9], "never"]}
    wanted |= {"temperature": 1.5, "seed": 3, "max_completion_tokens": 40, "logprobs": True}
    done = client.chat.completions.create(**wanted).choices[0]
    assert done.message.content == free[: free.index(free[7:9])].rstrip("\ufffd").strip()
    assert done.finish_reason == "stop"
    chunks = list(client.chat.completions.create(**wanted, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == done.message.content
    content = [
        one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content
    ]
    assert [one.token for one in content] == [one.token for one in done.logprobs.content]


def test_a_conversation_and_its_system_message(client: Any, vlm: VisionLM, png: bytes, data_url: str) -> None:
    """A system message stands before the question after it; what the client got may be sent back as it is."""
    first = client.chat.completions.create(model="tiny", messages=user(asked(data_url, "how many?")))
    said = first.choices[0].message
    messages = [*user(asked(data_url, "how many?")), said.model_dump(), *user("what colour?")]
    done = client.chat.completions.create(
        model="tiny", messages=[{"role": "system", "content": "Be brief."}, *messages]
    )
    expected = vlm.chat(
        [
            {"role": "user", "content": ["Be brief.\nhow many?", {"type": "image", "image": png}]},
            {"role": "assistant", "content": said.content},
            {"role": "user", "content": "what colour?"},
        ]
    )
    assert done.choices[0].message.content == expected.text


def test_models_and_errors(client: Any) -> None:
    """The client lists and retrieves models, and raises its own error for one there is not, naming those there are."""
    assert [model.id for model in client.models.list()] == ["tiny", "same"]
    assert client.models.retrieve("same").id == "same"
    with pytest.raises(openai.NotFoundError, match="'gpt-4'; there are: tiny, same"):
        client.chat.completions.create(model="gpt-4", messages=user("hello"))
    with pytest.raises(openai.BadRequestError, match="base64"):
        client.chat.completions.create(model="tiny", messages=user(asked("data:image/png;base64,!")))


def test_an_error_in_a_stream_reaches_the_client(client: Any, vlm: VisionLM, monkeypatch: Any) -> None:
    """What fails after the first byte is told in the stream, and the client raises it."""
    monkeypatch.setattr(vlm.engine.decoder, "decode", lambda *_: 1 / 0)
    with pytest.raises(openai.APIError, match="the server failed"):
        list(client.chat.completions.create(model="tiny", messages=user("hello"), stream=True))
