"""Fetch a picture's bytes from a permitted http(s) host, so that no URL can reach anything else.

At every hop the host must be permitted, its name is resolved once, each address must be public, and the
connection goes to that very address: a name that later answers otherwise (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from vision_lm.errors import ImageError, ImageTooLargeError

Resolve = Callable[[str, int], list[str]]  # host, port -> the addresses that may be connected to

UNKNOWN_TYPES = (
    "application/octet-stream",
    "binary/octet-stream",
)  # for a file whose name tells a server nothing
_MAX_REDIRECTS = 3
_DEFAULT_PORT = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_URL_SYNTAX = "/%:@!$&'()*+,;=~"  # what stays as it is when the rest is percent-encoded


@dataclass(frozen=True)
class _Request:
    name: str  # for messages: the URL without its query, which may hold a secret
    scheme: str
    host: str
    port: int
    target: str  # path and query


def fetch_url(
    url: str,
    *,
    allow_hosts: Collection[str],
    max_bytes: int,
    timeout: float = 10.0,
    resolve: Resolve | None = None,
) -> bytes:
    """The body of `url`: at most `max_bytes` bytes, in `timeout` seconds from first hop to last byte.

    `allow_hosts` holds exact hosts: "example.com" permits the scheme's own port, "example.com:8080" that one.
    `resolve` replaces `resolve_public`. Proxies are not used; the look-up has the system's own timeout.
    Raises `ImageError` for a host, address, status or size that is not allowed, and for a network that fails.
    """
    allowed = {host.lower() for host in ([allow_hosts] if isinstance(allow_hosts, str) else allow_hosts)}
    deadline = time.monotonic() + timeout
    for _ in range(_MAX_REDIRECTS + 1):
        request = _permitted(url, allowed)
        addresses = (resolve or resolve_public)(request.host, request.port)
        try:
            body, location = _get(request, addresses, max_bytes, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            if time.monotonic() >= deadline:
                reason = f"not complete after {timeout:g} s"
            raise ImageError(f"{request.name}: cannot be fetched ({reason}); download it first") from error
        if location is None:
            return body
        try:
            url = urljoin(url, location)
        except ValueError as error:
            raise ImageError(
                f"{request.name}: redirects to what is no URL ({error}); download it first"
            ) from None
    raise ImageError(f"{request.name}: more than {_MAX_REDIRECTS} redirects; give the picture's own URL")


def resolve_public(host: str, port: int) -> list[str]:
    """Look `host` up once; `ImageError` unless every address is public: not private, loopback, link-local."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ImageError(f"{host}: the host name cannot be resolved ({error}); check the URL") from error
    addresses = [str(address[0]) for *_, address in found]
    for address in addresses:
        if not _is_public(address):
            raise ImageError(f"{host}: its address {address} is not public; allowed: public addresses only")
    return addresses


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):  # an IPv4 address may travel inside
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF) if ip in _NAT64 else ip.sixtofour or ip
    return ip.is_global and not ip.is_multicast


def _permitted(url: str, allowed: set[str]) -> _Request:
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme, parts.hostname or ""
        port = parts.port or _DEFAULT_PORT.get(scheme, 0)
        path = quote(parts.path or "/", safe=_URL_SYNTAX)
        query = "?" + quote(parts.query, safe=_URL_SYNTAX + "?") if parts.query else ""
    except ValueError as error:  # half a character is one, too
        raise ImageError(f"{url[:100]!a}: not a valid URL ({error}); allowed: https://HOST/PATH") from None
    name = f"{scheme}://{host}{path}"[:200]
    if scheme not in _DEFAULT_PORT or not host:
        raise ImageError(f"{name}: cannot be fetched; allowed: a path, http://HOST/PATH or https://HOST/PATH")
    permission = host if port == _DEFAULT_PORT[scheme] else f"{host}:{port}"
    if permission not in allowed:
        permit = f"permit its host with allow_url_hosts=[{permission!r}] (--allow-url-host {permission})"
        raise ImageError(f"{name}: not fetched without permission; {permit}, or download the picture first")
    return _Request(name, scheme, host, port, path + query)


def _get(
    request: _Request, addresses: list[str], max_bytes: int, deadline: float
) -> tuple[bytes, str | None]:
    """One GET over a connection to one of `addresses`: the body, or where it redirects to."""
    sock = _connect(addresses, request.port, deadline)
    connection = http.client.HTTPConnection(request.host, request.port)
    with contextlib.ExitStack() as at_end:
        at_end.callback(sock.close)
        if request.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(request.host, request.port, context=context)
            sock = context.wrap_socket(sock, server_hostname=request.host, do_handshake_on_connect=False)
            at_end.callback(sock.close)
        connection.sock = sock  # http.client would look the name up again, but only where it has no socket
        # A socket's timeout bounds one read; against a server that drips bytes only a clock helps.
        watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), _cut_off, [sock])
        watchdog.daemon = True
        watchdog.start()
        at_end.callback(watchdog.cancel)
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        connection.request("GET", request.target, headers={"Accept": "image/*", "Connection": "close"})
        response = at_end.enter_context(contextlib.closing(connection.getresponse()))
        if response.status in (301, 302, 303, 307, 308) and (location := response.getheader("Location")):
            return b"", location
        if response.status != 200:
            status = f"{response.status} {response.reason}"[:60]
            raise ImageError(f"{request.name}: the server answers {status}; check the URL")
        kind = response.headers.get_content_type() if "Content-Type" in response.headers else UNKNOWN_TYPES[0]
        if not kind.startswith("image/") and kind not in UNKNOWN_TYPES:  # a page about the picture, mostly
            raise ImageError(
                f"{request.name}: the server sends {kind[:60]}; give the URL of a picture itself"
            )
        encoding = response.getheader("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):  # how large it is would only be known after the work
            raise ImageError(
                f"{request.name}: the server sends it compressed ({encoding[:60]}); download it first"
            )
        return _read_body(response, request.name, max_bytes, deadline), None


def _connect(addresses: list[str], port: int, deadline: float) -> socket.socket:
    failure = OSError("the host has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), max(0.001, deadline - time.monotonic()))
        except OSError as error:
            failure = error
    raise failure


def _cut_off(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed meanwhile
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # SSLSocket's own would drop the reader's TLS state


def _read_body(response: http.client.HTTPResponse, name: str, max_bytes: int, deadline: float) -> bytes:
    declared = response.length or 0  # 0: not known
    body = bytearray()
    if declared <= max_bytes:
        while len(body) <= max_bytes and (piece := response.read1(65_536)):
            body += piece
    if max(declared, len(body)) > max_bytes:
        raise ImageTooLargeError(f"{name}: larger than allowed: {max_bytes:,} bytes; give a smaller picture")
    if time.monotonic() >= deadline:
        raise TimeoutError  # where the length is not known, the cut-off looks like the end
    if len(body) < declared:
        raise ConnectionError(f"the connection closed after {len(body):,} of {declared:,} bytes")
    return bytes(body)
