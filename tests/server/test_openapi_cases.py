"""schemathesis reads /openapi.json and asks whatever it permits, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import Running

pytest.importorskip("schemathesis")
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = pytest.mark.slow

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def document(server: Running) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


WAYS = [
    *(
        ("/v1/chat/completions", "POST"),
        ("/v1/caption", "POST"),
        ("/v1/ask", "POST"),
        ("/v1/explain", "POST"),
    ),
    *(("/v1/models", "GET"), ("/v1/models/{name}", "GET"), ("/metrics", "GET"), ("/readyz", "GET")),
]
CASES = [(*way, GenerationMode.POSITIVE) for way in WAYS]
CASES += [
    (*way, GenerationMode.NEGATIVE) for way in WAYS if way[1] == "POST"
]  # a GET has no body to get wrong


@pytest.mark.parametrize(("path", "method", "mode"), CASES)
def test_every_answer_is_as_described(document: Any, path: str, method: str, mode: GenerationMode) -> None:
    """No 5xx, no status, media type or body that the document does not name; every error has a code and a message."""
    operation = document[path][method]

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            error = response.json()["error"]
            assert error["code"] and error["message"]

    check()
