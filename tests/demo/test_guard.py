"""A page without accounts is for this machine's own browser, and for no other page that is open in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from demo.in_process import InProcess
from demo.launch import free_port, opened, own_folder
from vision_lm.model import VisionLM

ELSEWHERE = {"Origin": "https://elsewhere.example"}


def page(vlm: VisionLM, accounts: Any) -> Iterator[str]:
    with (
        own_folder(),
        opened(InProcess({"tiny": vlm}), "127.0.0.1", free_port("127.0.0.1", 0, accounts), accounts) as urls,
    ):
        yield urls[0].rstrip("/")


@pytest.fixture(scope="module")
def open_page(vlm: VisionLM) -> Iterator[str]:
    yield from page(vlm, ())


def upload(url: str, **headers: str) -> int:
    files = {"files": ("a.png", b"x" * 1000)}
    return httpx.post(f"{url}/gradio_api/upload", files=files, headers=headers, timeout=60).status_code


def test_another_page_cannot_send_files(open_page: str) -> None:
    """A form of any page may be sent to this machine, all day long, and would fill its disk."""
    assert upload(open_page) == 200 and upload(open_page, Origin=open_page) == 200
    assert upload(open_page, **ELSEWHERE) == 403
    assert upload(open_page, Origin="null") == 403


def test_another_name_for_this_machine_reads_nothing(open_page: str) -> None:
    """Somebody else's DNS may lead any name here: the browser would take the page for theirs, and let them read it."""
    assert httpx.get(open_page, timeout=60).status_code == 200
    refused = httpx.get(open_page, headers={"Host": "elsewhere.example"}, timeout=60)
    assert refused.status_code == 403 and "localhost" in refused.text


def test_accounts_let_in_by_any_name(vlm: VisionLM) -> None:
    """Who knows a password may come from wherever the page is reached."""
    for url in page(vlm, [("ada", "secret")]):
        found = httpx.get(url, headers={"Host": "pictures.example"} | ELSEWHERE, timeout=60)
        assert found.status_code == 200
