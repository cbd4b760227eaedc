"""A port to serve on, taken before anything else is done: by the service, and by the demo's page."""

from __future__ import annotations

import ipaddress
import socket

from vision_lm.errors import VisionLMError


def take_port(host: str, port: int) -> socket.socket:
    """A bound socket, on which nobody can connect yet. Raises VisionLMError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"{host}:{port} cannot be served ({reason}); stop what uses it, or choose another --port or --host"
        raise VisionLMError(message) from error
    return listener


def is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def check_reach(listener: socket.socket, guarded: bool, guard: str, remedy: str) -> None:
    """Raises VisionLMError for a port that other machines can reach and nothing guards."""
    if not guarded and not is_loopback(listener):
        raise VisionLMError(
            f"{listener.getsockname()[0]} can be reached from other machines, and no {guard} is set; set {remedy}, "
            "or serve on 127.0.0.1"
        )
