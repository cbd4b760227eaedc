"""Pictures by URL: the service fetches as `vision_lm.fetch` does, from permitted hosts alone, and opens no path."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.conftest import QUESTION, Running, asked, refusal, running
from tests.test_fetch import Site, red_png
from vision_lm.fetch import resolve_public
from vision_lm.model import VisionLM
from vision_lm.server.settings import Settings

PERMITTED = (
    *("127.0.0.1", "localhost", "169.254.169.254", "10.0.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0"),
    *("::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "2130706433"),
)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture(scope="module")
def fetching(vlm: VisionLM, site: Site) -> Iterator[Running]:
    """A server that permits the site, and, as no one should, addresses of the inside."""
    settings = Settings(allow_url_hosts=(site.host, "evil.test", *PERMITTED), max_body_bytes=10_000)
    with running({"tiny": vlm}, settings) as one:
        yield one


@pytest.fixture(autouse=True)
def names(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """pictures.test leads to the site on this machine; everything else is looked up as ever."""

    def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "pictures.test" else resolve_public(host, port)

    monkeypatch.setattr("vision_lm.fetch.resolve_public", resolve)


def test_a_permitted_picture_is_fetched(fetching: Running, site: Site, vlm: VisionLM) -> None:
    """The answer is that of the picture's bytes; a redirect on the same host is followed."""
    expected = vlm.ask(red_png(), QUESTION).text
    for path in ("/red.png", "/to//red.png"):
        url = f"http://{site.host}{path}"
        assert fetching.chat(asked(url)).json()["choices"][0]["message"]["content"] == expected
        body = {"image": url, "question": QUESTION}
        assert fetching.client.post("/v1/ask", json=body).json()["text"] == expected


def test_without_permission_nothing_is_fetched(server: Running, site: Site) -> None:
    """By default no host is permitted, and none is asked."""
    before = list(site.log)
    error = refusal(server.chat(asked(f"http://{site.host}/red.png?key=SECRET")), 400)
    assert "not fetched without permission" in error["message"]
    assert "SECRET" not in error["message"]
    assert site.log == before


@pytest.mark.parametrize(
    "url",
    [
        *(f"http://[{host}]/a" if ":" in host else f"http://{host}/a" for host in PERMITTED),
        "http://pictures.test@127.0.0.1/a",
        "http://169.254.169.254/latest/meta-data/",
        "HTTP://LOCALHOST/a",
    ],
)
def test_the_inside_is_never_reached(fetching: Running, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Private, loopback, link-local and metadata addresses, also inside IPv6 and behind a user name: no connection."""
    monkeypatch.setattr("vision_lm.fetch._connect", lambda *_: pytest.fail("it connected"))
    assert "is not public" in refusal(fetching.chat(asked(url)), 400)["message"]


@pytest.mark.parametrize(
    "url",
    [
        *(
            "file:///etc/passwd",
            "file:/etc/passwd",
            "FILE:///etc/passwd",
            "/etc/passwd",
            "etc/passwd",
            "../a.png",
        ),
        *(
            "gopher://127.0.0.1:70/_",
            "ftp://127.0.0.1/a",
            "//127.0.0.1/a",
            "\\\\host\\share",
            "jar:http://a!/b",
            " ",
        ),
    ],
)
def test_no_other_scheme_and_no_path(fetching: Running, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client names is never opened as a file of this machine."""
    monkeypatch.setattr("vision_lm.images._read_file", lambda *_: pytest.fail("it opened a file"))
    assert "allowed: data:image/TYPE;base64" in refusal(fetching.chat(asked(url)), 400)["message"]
    response = fetching.client.post("/v1/caption", json={"image": url})
    assert "allowed: data:image/TYPE;base64" in refusal(response, 400)["message"]


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/to/http://127.0.0.1/red.png", 400, "is not public"),
        ("/to/http://169.254.169.254/latest", 400, "is not public"),
        ("/to/http://other.test/red.png", 400, "not fetched without permission"),
        ("/to/file:///etc/passwd", 400, "cannot be fetched"),
        ("/declares-too-much", 413, "larger than allowed: 10,000 bytes"),
        ("/bomb", 400, "the server sends it compressed (gzip)"),
        ("/endless", 413, "larger than allowed: 10,000 bytes"),
        ("/nothing", 400, "404"),
    ],
)
def test_what_a_permitted_host_may_not_do(
    fetching: Running, site: Site, path: str, status: int, said: str
) -> None:
    """Send us elsewhere, or send more than a body may have."""
    assert said in refusal(fetching.chat(asked(f"http://{site.host}{path}")), status)["message"]
