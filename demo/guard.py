"""Who may use a page without accounts: this machine alone, and no other page that is open in its browser."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vision_lm.server.gate import is_own_page, is_this_machine


class OwnPageOnly:
    """ASGI middleware. Another site's page could send files here all day, or, by a name that leads here, read the answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        refused = ""
        if not is_this_machine(host):
            refused = (
                "the Host header is no address and not localhost; open the page by those, or set accounts"
            )
        elif origin is not None and not is_own_page(origin, host):
            refused = "a page of another origin sends this; open this page itself, or set accounts"
        if refused:
            await PlainTextResponse(refused, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)
