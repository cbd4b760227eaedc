"""Fetching pictures by URL: only from permitted hosts on public addresses, within size and time."""

from __future__ import annotations

import io
import shutil
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vision_lm import fetch
from vision_lm.errors import ImageError
from vision_lm.fetch import fetch_url, resolve_public
from vision_lm.images import ImageLimits, open_image

PUBLIC = "93.184.215.14"


def red_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (255, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def packed_zeros(count: int) -> bytes:
    """So many bytes of nothing, as gzip packs them: to a thousandth."""
    packer = zlib.compressobj(9, wbits=31)  # as gzip
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(count >> 20)), packer.flush()])


class Pictures(BaseHTTPRequestHandler):
    """Answers by path; `log` collects the host and path of every request."""

    log: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.log.append((self.headers["Host"], self.path))
        path = self.path.partition("?")[0]
        if path == "/red.png":
            self.answer(200, {"Content-Length": str(len(red_png()))}, red_png())
        elif path == "/unsized.png":
            self.answer(200, {}, red_png())
        elif path == "/declares-too-much":  # and sends nothing: waiting for the body would time out
            self.answer(200, {"Content-Length": str(2**40)}, b"")
            time.sleep(3)
        elif path in ("/page", "/file"):  # a page, endless, and a picture that the server knows nothing of
            kind = "text/html; charset=utf-8" if path == "/page" else "application/octet-stream"
            self.answer(200, {"Content-Type": kind}, b"<html>" if path == "/page" else red_png())
            while path == "/page":
                self.wfile.write(bytes(65_536))
        elif path == "/bomb":  # 256 MiB, were it unpacked
            self.answer(200, {"Content-Type": "image/png", "Content-Encoding": "GZIP"}, packed_zeros(2**28))
        elif path in ("/identity", "/no-encoding"):
            self.answer(200, {"Content-Encoding": "identity" if path == "/identity" else ""}, red_png())
        elif path == "/endless":
            self.answer(200, {}, b"")
            while True:
                self.wfile.write(bytes(65_536))
        elif path == "/short":
            self.answer(200, {"Content-Length": "1000"}, b"only this")
        elif path == "/drips-headers":
            for _ in range(60):
                self.wfile.write(b"H")
                time.sleep(0.05)
        elif path == "/drips-body":
            self.answer(200, {}, b"")
            for _ in range(60):
                self.wfile.write(b"B")
                time.sleep(0.05)
        elif path == "/to-half-an-address":
            self.answer(302, {"Location": "http://[bad"}, b"")
        elif path.startswith("/to/"):
            self.answer(302, {"Location": path.removeprefix("/to/")}, b"")
        else:
            self.answer(404, {}, b"")

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients hang up on purpose here


class Site:
    """A server on loopback, reached as pictures.test through a resolver that stands in for the DNS."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.log: list[tuple[str, str]] = []
        self.looked_up: list[str] = []
        self.server = Server(("127.0.0.1", 0), type("Handler", (Pictures,), {"log": self.log}))
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.host = f"pictures.test:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()

    def resolve(self, host: str, port: int) -> list[str]:
        self.looked_up.append(host)
        return ["127.0.0.1"] if host.endswith(".test") else resolve_public(host, port)

    def fetch(self, path: str, scheme: str = "http", max_bytes: int = 10_000, timeout: float = 5.0) -> bytes:
        url = f"{scheme}://{self.host}{path}"
        hosts = {self.host, "127.0.0.1", "localhost"}
        return fetch_url(url, allow_hosts=hosts, max_bytes=max_bytes, timeout=timeout, resolve=self.resolve)

    def refusal(self, path: str, **options: object) -> str:
        with pytest.raises(ImageError) as caught:
            self.fetch(path, **options)  # type: ignore[arg-type]
        message = str(caught.value)
        assert message.isprintable() and len(message) < 400
        return message


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def test_a_permitted_url_opens_as_a_picture(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way from URL to pixels; the resolved address is asked under the URL's own host."""
    monkeypatch.setattr(fetch, "fetch_url", partial(fetch_url, resolve=site.resolve))
    image = open_image(f"HTTP://{site.host.upper()}/red.png?size=1 2#top", allow_url_hosts=[site.host])
    assert image.getpixel((1, 1)) == (255, 0, 0)
    assert site.log == [(site.host, "/red.png?size=1%202")]
    with pytest.raises(ImageError, match="larger than allowed: 50 bytes"):
        limits = ImageLimits(max_bytes=50)
        open_image(f"http://{site.host}/red.png", allow_url_hosts=site.host, limits=limits)


@pytest.mark.parametrize("path", ["/unsized.png", "/to//red.png", "/to//to//to//red.png"])
def test_bodies_without_a_length_and_redirects(path: str, site: Site) -> None:
    """A body that ends with the connection is whole, and up to three redirects are followed."""
    assert site.fetch(path) == red_png()


def test_each_hop_is_resolved_once(site: Site) -> None:
    """One look-up a connection: a name that answers differently the second time is never asked twice."""
    site.fetch("/to//red.png")
    assert site.looked_up == ["pictures.test", "pictures.test"]


@pytest.fixture
def rebinding(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """pictures.test, whose DNS answers with a public address once and from then on with this machine's.

    What is returned grows by each address that is connected to; behind the public one is the site.
    """
    usual, connect = socket.getaddrinfo, socket.socket.connect
    answers = iter([PUBLIC])
    connected: list[str] = []

    def look_up(host: Any, *rest: Any, **more: Any) -> Any:
        return usual(next(answers, "127.0.0.1") if host == "pictures.test" else host, *rest, **more)

    def lead(self: socket.socket, address: Any) -> None:
        connected.append(address[0])
        connect(self, ("127.0.0.1", *address[1:]))

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket.socket, "connect", lead)
    return connected


def test_a_name_that_answers_otherwise_the_second_time(site: Site, rebinding: list[str]) -> None:
    """DNS rebinding: the connection goes to the address that was found public, and to no other."""
    assert open_image(f"http://{site.host}/red.png", allow_url_hosts=[site.host]).size == (2, 2)
    assert rebinding == [PUBLIC] and site.log == [(site.host, "/red.png")]


def test_a_name_that_answers_otherwise_after_a_redirect(site: Site, rebinding: list[str]) -> None:
    """The second hop is looked up anew, and its private address refused before any connection."""
    with pytest.raises(ImageError, match="its address 127.0.0.1 is not public"):
        open_image(f"http://{site.host}/to//red.png", allow_url_hosts=[site.host])
    assert rebinding == [PUBLIC] and len(site.log) == 1


def test_without_permission_nothing_is_looked_up_or_sent(site: Site) -> None:
    """The message says how to permit the host and keeps the query, which may hold a key, to itself."""
    with pytest.raises(ImageError) as caught:
        open_image(f"http://{site.host}/red.png?key=SECRET")
    assert "http://pictures.test/red.png: not fetched without permission" in str(caught.value)
    assert f"allow_url_hosts=['{site.host}']" in str(caught.value) and "SECRET" not in str(caught.value)
    assert site.log == [] and site.looked_up == []


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.test:8080/",
        "https://pictures.test:80/",
        "http://sub.pictures.test/",
        "http://pictures.test.evil.test/",
        "http://pictures.test@evil.test/",
        "http://evil.test/pictures.test",
        "http://evil.test#@pictures.test/",
        "http://pictures.tes/",
        "http://pictures.test./",
    ],
)
@pytest.mark.parametrize("allow_hosts", [["pictures.test"], "pictures.test"])
def test_only_the_exact_host_is_permitted(url: str, allow_hosts: object) -> None:
    """No other port, subdomain, look-alike or part of the name passes; a lone string is one host."""

    def never(host: str, port: int) -> list[str]:
        raise AssertionError(f"{host} was looked up")

    with pytest.raises(ImageError, match="without permission"):
        fetch_url(url, allow_hosts=allow_hosts, max_bytes=1, resolve=never)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url", ["ftp://pictures.test/a", "file:///etc/passwd", "http:///a", "http://[::1/", "http://a:b/"]
)
def test_urls_that_are_none_of_ours(url: str) -> None:
    """Other schemes and malformed URLs are refused in one line, whatever is permitted."""
    with pytest.raises(ImageError, match="allowed: .*HOST/PATH"):
        open_image(url, allow_url_hosts=["pictures.test", "", "a"])


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "2130706433", "0x7f.1"),
        *("::1", "::", "fe80::1", "fd00::1", "ff0e::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
    ],
)
def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    """Private, loopback, link-local and the like, in every spelling, also as IPv4 inside IPv6."""
    with pytest.raises(ImageError, match="is not public"):
        resolve_public(host, 80)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07::1", "64:ff9b::5db8:d70e"])
def test_public_addresses_pass(address: str) -> None:
    """Ordinary addresses of the Internet, also those behind NAT64, are not refused."""
    assert resolve_public(address, 443) == [address]


def test_permission_does_not_open_the_local_network(site: Site) -> None:
    """A permitted name that leads to loopback is refused before a connection is made."""
    host = f"127.0.0.1:{site.server.server_port}"
    with pytest.raises(ImageError, match="127.0.0.1 is not public"):
        open_image(f"http://{host}/red.png", allow_url_hosts=[host])
    assert site.log == []


@pytest.mark.parametrize(
    "target, said",
    [
        ("http://evil.test/red.png", "without permission"),
        ("http://127.0.0.1/red.png", "is not public"),
        ("http://localhost/red.png", "is not public"),
        ("file:///etc/passwd", "cannot be fetched"),
        ("/to//to//to//to//red.png", "more than 3 redirects"),
    ],
)
def test_every_redirect_is_checked_again(target: str, said: str, site: Site) -> None:
    """A permitted host cannot send us on to one that is not, nor round in circles."""
    assert said in site.refusal(f"/to/{target}")


def test_a_redirect_to_what_is_no_url(site: Site) -> None:
    """An open redirect on a permitted host is enough to send one."""
    assert "redirects to what is no URL" in site.refusal("/to-half-an-address")


@pytest.mark.parametrize("path", ["/declares-too-much", "/endless"])
def test_the_size_limit_stops_a_body_early(path: str, site: Site) -> None:
    """A declared length is refused before the body, an undeclared one while it streams."""
    start = time.monotonic()
    assert "larger than allowed: 10,000 bytes" in site.refusal(path)
    assert time.monotonic() - start < 2


def test_what_is_no_picture_by_its_type_is_not_read(site: Site) -> None:
    """The page about a picture is refused by its head; a type that says nothing is let pass."""
    said = site.refusal("/page", max_bytes=2**40)
    assert "the server sends text/html; give the URL of a picture itself" in said
    assert site.fetch("/file") == red_png()


def test_what_is_compressed_is_never_unpacked(site: Site) -> None:
    """Small on the wire and huge in memory: refused by its head. To say that nothing is compressed is no offence."""
    assert len(packed_zeros(2**28)) < 300_000
    tracemalloc.start()
    said = site.refusal("/bomb", max_bytes=300_000)
    assert "the server sends it compressed (gzip)" in said
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
    assert site.fetch("/identity") == site.fetch("/no-encoding") == red_png()


def test_a_body_of_exactly_the_limit_is_whole(site: Site) -> None:
    """The limit itself is allowed, with and without a declared length."""
    for path in ("/red.png", "/unsized.png"):
        assert site.fetch(path, max_bytes=len(red_png())) == red_png()
        assert "larger than allowed" in site.refusal(path, max_bytes=len(red_png()) - 1)


@pytest.mark.parametrize("path", ["/drips-headers", "/drips-body"])
def test_the_time_limit_holds_against_a_dripping_server(path: str, site: Site) -> None:
    """Bytes that keep coming, one at a time, do not keep the fetch alive."""
    start = time.monotonic()
    assert "not complete after 0.3 s" in site.refusal(path, timeout=0.3)
    assert time.monotonic() - start < 2


def test_failures_of_the_network_are_one_line(site: Site) -> None:
    """A missing page, a cut connection, a refused one and a server without TLS each say what happened."""
    assert "the server answers 404 Not Found" in site.refusal("/nothing.png")
    assert "closed after 9 of 1,000 bytes" in site.refusal("/short")
    assert "cannot be fetched" in site.refusal("/red.png", scheme="https")
    site.server.server_close()
    assert "cannot be fetched" in site.refusal("/red.png")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with the openssl command")
def test_https_checks_the_name_in_the_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting to an address keeps TLS honest: the certificate must be trusted and must be the host's."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=pictures.test", "-addext", "subjectAltName=DNS:pictures.test"]
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*new, *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site = Site(context)
    assert "certificate verify failed" in site.refusal("/red.png", scheme="https")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert site.fetch("/red.png", scheme="https") == red_png()
    site.host = site.host.replace("pictures", "others")
    assert "certificate verify failed" in site.refusal("/red.png", scheme="https")
    site.server.shutdown()
    site.server.server_close()


@pytest.mark.parametrize(
    "url", ["http://pictures.test/\ud800", "http://pictures.test/?\udcff", "http://[bad/"]
)
def test_what_is_no_url(url: str) -> None:
    """Half a character, or half an address: one line that can be printed."""
    with pytest.raises(ImageError, match="not a valid URL") as caught:
        fetch_url(url, allow_hosts=["pictures.test"], max_bytes=1)
    assert str(caught.value).encode()
