"""Limits of an engine under which no answer may change, for the tests of every decoder."""

from __future__ import annotations

import pytest

LIMITS = [
    pytest.param({}, id="at once"),
    pytest.param({"running": 3}, id="three at once"),
    # Prompts in many pieces, beside those that decode.
    pytest.param({"chunk": 5, "step_tokens": 9, "running": 8}, id="in pieces"),
    # Room for one or two: preempted again and again.
    pytest.param({"cache_tokens": 160, "chunk": 7}, id="short of pages"),
]
