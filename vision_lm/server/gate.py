"""What is refused by a request's head alone, before a byte of its body is read; and how a body is read."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vision_lm.server.admission import Admission
from vision_lm.server.errors import ApiError
from vision_lm.server.settings import Settings

OPEN = {"/healthz", "/readyz", "/openapi.json"}  # asked without a key
JSON, FORM = "application/json", "multipart/form-data"
WORK = {
    "/v1/chat/completions": (JSON,),
    "/v1/caption": (JSON, FORM),
    "/v1/ask": (JSON, FORM),
    "/v1/explain": (JSON,),
}


class Gate:
    """ASGI middleware, the cheapest check first: host, key, media type, length, queue."""

    def __init__(self, app: ASGIApp, settings: Settings, admission: Admission) -> None:
        self.app, self.settings, self.admission = app, settings, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_caller(scope["path"], headers)
            self._check_length(headers)
            receive = limited(receive, self.settings)
            if scope["method"] == "POST" and scope["path"] in WORK:
                check_media_type(headers, WORK[scope["path"]])
                with self.admission.enter() as slot:
                    scope["state"]["slot"] = slot
                    await self.app(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        except ApiError as error:
            await error.response(scope, receive, send)

    def _check_caller(self, path: str, headers: Headers) -> None:
        if self.settings.api_key is None:
            # A page in a browser can have its own name lead to this machine, and would then read the answers.
            host = headers.get("host", "")
            if not is_this_machine(host):
                message = "the Host header is no address and not localhost; use those, or set an API key"
                raise ApiError(403, message, "host_not_allowed")
            # It need not read the answers to do harm: a form of any page may be sent here, and would keep the model busy.
            if "origin" in headers and not is_own_page(headers["origin"], host):
                message = "a page of another origin sends this; open one of this machine, or set an API key"
                raise ApiError(403, message, "origin_not_allowed")
        elif path not in OPEN and not is_key(headers.get("authorization", ""), self.settings.api_key):
            message = "the API key is missing or wrong; send the header Authorization: Bearer KEY"
            raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.settings.max_body_bytes:
            raise too_large(self.settings.max_body_bytes)


def is_key(authorization: str, key: str) -> bool:
    """Compared in the same time whatever is given."""
    scheme, _, given = authorization.partition(" ")
    digests = (hashlib.sha256(one.encode(errors="surrogateescape")).digest() for one in (given.strip(), key))
    return hmac.compare_digest(*digests) and scheme.lower() == "bearer"


def is_this_machine(host: str) -> bool:
    """Whether a Host header holds an address or localhost: no name that someone else's DNS answers for."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower() == "localhost"
    return True


def is_own_page(origin: str, host: str) -> bool:
    """Whether a browser's Origin header names a page of this machine, or of the very address that was asked."""
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    try:
        local = ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = name == "localhost"
    return local or parts.netloc.lower() == host.lower()


def check_media_type(headers: Headers, allowed: tuple[str, ...]) -> None:
    """A compressed body is refused too: how large it is would only be known after the work."""
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in allowed:
        message = f"Content-Type is {given[:60]!r}; allowed: {' or '.join(allowed)}"
        raise ApiError(415, message, "unsupported_media_type")
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        message = f"Content-Encoding is {encoding[:60]!r}; send the body uncompressed"
        raise ApiError(415, message, "unsupported_content_encoding")


def limited(receive: Receive, settings: Settings) -> Receive:
    """`receive` that gives up on a body beyond its size or its time."""
    deadline = asyncio.get_running_loop().time() + settings.body_timeout
    total, complete = 0, False

    async def receive_limited() -> Message:
        nonlocal total, complete
        if complete:  # what comes now is the end of the connection, whenever that may be
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            message_text = f"the body was not complete after {settings.body_timeout:g} s; send it faster"
            raise ApiError(408, message_text, "body_timeout", headers={"Connection": "close"}) from None
        total += len(message.get("body", b""))
        if total > settings.max_body_bytes:
            raise too_large(settings.max_body_bytes)
        complete = not message.get("more_body", False)
        return message

    return receive_limited


def too_large(limit: int) -> ApiError:
    message = f"the body is too large; allowed: {limit:,} bytes (scale pictures down, or send fewer)"
    return ApiError(413, message, "body_too_large", headers={"Connection": "close"})
