"""What can be seen of the service: its log, its metrics, its description; and what must never be seen."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.patience import until
from tests.server.conftest import Running, asked, events, refusal, running
from vision_lm.model import VisionLM
from vision_lm.server.log_lines import JSONLines

CHAT = "/v1/chat/completions"
SECRET = "my neighbour's unusual question"


def metrics(server: Running) -> Callable[..., float]:
    """A function of name and label values, in any order, that gives the value, or 0."""
    families = text_string_to_metric_families(server.client.get("/metrics").text)
    values = {
        (one.name, frozenset(one.labels.values())): one.value for family in families for one in family.samples
    }
    return lambda name, *labels: values.get((name, frozenset(labels)), 0.0)


def test_metrics_count(vlm: VisionLM, data_url: str) -> None:
    """Requests by path and status, tokens by kind, first tokens, prefix hits and pages, each by what was done."""
    with running({"tiny": vlm}) as server:
        before = metrics(server)
        for _ in range(3):
            done = server.chat(asked(data_url, SECRET), max_tokens=5).json()
        events(server.chat(SECRET, stream=True, max_tokens=5))
        server.client.get("/v1/models")
        server.client.get("/invented/" + "x" * 100)
        server.chat("")
        seconds = ("vision_lm_request_seconds_count", CHAT)
        until(lambda: metrics(server)(*seconds) == before(*seconds) + 5)
        after = metrics(server)

    def grown(*key: str) -> float:
        return after(*key) - before(*key)

    assert grown("vision_lm_requests_total", CHAT, "200") == 4
    assert grown("vision_lm_requests_total", CHAT, "400") == 1
    assert grown("vision_lm_requests_total", "other", "404") == 1
    assert grown("vision_lm_requests_total", "/v1/models", "200") == 1
    assert grown("vision_lm_request_seconds_count", CHAT) == 5
    assert grown("vision_lm_time_to_first_token_seconds_count", "tiny") == 4
    assert grown("vision_lm_tokens_total", "tiny", "generated") >= 4 * 5
    asked_for = done["usage"]["prompt_tokens"]
    assert grown("vision_lm_tokens_total", "tiny", "shared") >= 2 * (asked_for - 16)
    assert grown("vision_lm_tokens_total", "tiny", "prompt") < 3 * asked_for
    assert after("vision_lm_kv_pages", "tiny", "used") == 0
    assert after("vision_lm_kv_pages", "tiny", "available") == vlm.engine.pages.count
    assert after("vision_lm_queue_places_taken") == 0
    assert after("vision_lm_queue_places") == 256
    assert after("vision_lm_engine_requests", "tiny", "waiting") == 0
    assert after("process_resident_memory_bytes") > 0
    assert after("vision_lm_engine_resident_memory_bytes", "tiny") > 0


def test_the_log_says_what_happened_and_not_what_was_asked(
    server: Running, data_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One JSON line a request with its id; no prompt, picture, answer, query or key in any of them."""
    caplog.set_level(logging.DEBUG, logger="vision_lm")
    headers = {"X-Request-ID": "mine-1", "Authorization": "Bearer hidden-key"}
    body = {"messages": [{"role": "user", "content": asked(data_url, SECRET)}], "max_tokens": 5}
    done = server.client.post(f"{CHAT}?token=hidden-query", json=body, headers=headers)
    events(server.client.post(CHAT, json=body | {"stream": True}, headers=headers))
    until(lambda: len(caplog.records) == 2)  # a line is written when all is sent: perhaps after it was read
    server.client.post(CHAT, json=body | {"model": "nowhere"}, headers=headers)
    until(lambda: len(caplog.records) == 3)
    server.client.post("/v1/ask", json={"image": data_url, "question": SECRET, "max_tokens": "x"})
    until(lambda: len(caplog.records) == 4)
    written = [JSONLines().format(record) for record in caplog.records if record.name.startswith("vision_lm")]
    lines = [json.loads(line) for line in written]
    assert [(line["event"], line["status"]) for line in lines] == [
        ("request", s) for s in (200, 200, 404, 422)
    ]
    for line in lines[:2]:
        assert (line["request_id"], line["path"], line["method"]) == ("mine-1", CHAT, "POST")
        assert (line["model"], line["images"], line["completion_tokens"]) == ("tiny", 1, 5)
        assert 0 < line["first_token_seconds"] <= line["seconds"]
    answer = done.json()["choices"][0]["message"]["content"]
    for word in (SECRET, data_url[30:60], answer, "hidden"):
        assert word not in "".join(written)


def test_a_failure_is_logged_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    """An exception may quote what was asked: its type and place are logged, not its words."""
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("vision_lm.server").exception("it failed")
    line = json.loads(JSONLines().format(caplog.records[-1]))
    assert line["exception"] == "ValueError"
    assert "test_observed.py" in line["stack"][0]
    assert SECRET not in json.dumps(line)


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 200, "{}", "é"])
def test_a_request_without_a_proper_id_gets_one(server: Running, given: str | None) -> None:
    """So that nobody writes into the log what is no id."""
    headers = {} if given is None else {"X-Request-ID": given.encode()}
    ids = {server.client.get("/healthz", headers=headers).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(len(one) == 32 for one in ids)


def test_the_description_describes(server: Running) -> None:
    """/openapi.json names every way in, with examples that are answered and refusals in our shape."""
    document = server.client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        *(CHAT, "/v1/caption", "/v1/ask", "/v1/explain", "/v1/models", "/v1/models/{name}"),
        *("/healthz", "/readyz", "/metrics"),
    }
    for path in (CHAT, "/v1/caption", "/v1/ask", "/v1/explain"):
        post = document["paths"][path]["post"]
        schema = resolved(post["requestBody"]["content"]["application/json"]["schema"], document)
        for example in schema["examples"]:
            assert server.client.post(path, json=example | {"model": "tiny"}).status_code == 200
        for status in ("400", "401", "413", "415", "422", "429"):
            refused = post["responses"][status]["content"]["application/json"]["schema"]
            assert refused == {"$ref": "#/components/schemas/ErrorBody"}
    for path in ("/docs", "/redoc"):  # pages that would load scripts from elsewhere
        refusal(server.client.get(path), 404)


def resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = document["components"]["schemas"][name] if name else schema
    return found


def test_health(server: Running) -> None:
    """Alive and ready, said without a key and without a body to read."""
    assert server.client.get("/healthz").json() == {"status": "ok"}
    assert server.client.get("/readyz").json() == {"status": "ready"}
    assert httpx.get(f"{server.url}/readyz").status_code == 200
