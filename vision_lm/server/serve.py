"""Run the service: take the port, load the models, answer until told to stop, and then finish what runs."""

from __future__ import annotations

import gc
import logging
import socket
import threading
import time
import warnings
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from vision_lm.errors import EngineGoneError
from vision_lm.images import ImageWarning
from vision_lm.server.admission import Admission
from vision_lm.server.arguments import KEY_REMEDY
from vision_lm.server.engine_process import EngineProcess, Order
from vision_lm.server.head_limit import head_limited
from vision_lm.server.listen import check_reach, take_port
from vision_lm.server.log_lines import log_to_stderr
from vision_lm.server.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vision_lm.engine.quantize import Mode

log = logging.getLogger("vision_lm.server")
# Seconds that an idle connection is kept: longer than the minute after which proxies commonly end theirs, so that a request
# seldom meets one that is just being closed.
KEEP_ALIVE = 65
LAST_SECONDS = 2  # for connections to close, after what runs is finished or given up


def serve(
    sources: Mapping[str, str],
    host: str,
    port: int,
    settings: Settings,
    device: str = "auto",
    quantize: Mode = None,
) -> None:
    """Serve checkpoints by name until SIGTERM or SIGINT. Raises VisionLMError before anything is served."""
    engines: dict[str, EngineProcess] = {}
    ended = threading.Event()  # one of them has, though nobody told it to
    listener = take_port(host, port)  # first: to load models for a port that is taken would be a waste
    try:
        check_reach(listener, settings.api_key is not None, "API key", KEY_REMEDY)
        for name, source in sources.items():
            engines[name] = EngineProcess(Order(source, device, quantize, settings.cache_tokens))
        # While they load their models: importing these takes as long.
        from vision_lm.server.apart import ApartModel
        from vision_lm.server.app import create_app

        models = {name: ApartModel(engine, ended.set) for name, engine in engines.items()}
        log_to_stderr()
        warnings.simplefilter("ignore", ImageWarning)
        app = create_app(models, settings)
        server = DrainingServer(
            connections(app, settings), app.state.service.admission, settings.drain_timeout, ended
        )
        for name, vlm in models.items():
            fields = {"model": name, "device": vlm.device, "trained": vlm.config.projector_trained}
            log.info("model loaded", extra={"fields": fields | {"engine_pid": engines[name].pid}})
            if not vlm.config.projector_trained:
                log.warning(
                    "the projector is untrained: answers are noise", extra={"fields": {"model": name}}
                )
        server.run(sockets=[listener])
    finally:
        listener.close()
        for engine in engines.values():
            engine.close()
    if ended.is_set():
        raise EngineGoneError
    log.info("stopped")


def connections(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn is to treat those who connect."""
    return uvicorn.Config(
        app,
        http=head_limited(settings.head_timeout),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LAST_SECONDS,
        timeout_keep_alive=KEEP_ALIVE,
    )


class DrainingServer(uvicorn.Server):
    """At the first signal nothing new begins, and what runs is finished; at the second everything ends.

    It ends, too, when nobody is there to compute any more: whatever watches over it starts it again.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        admission: Admission,
        drain_timeout: float,
        engine_ended: threading.Event | None = None,
    ) -> None:
        super().__init__(config)
        self._engine_ended = engine_ended or threading.Event()
        self._admission, self._drain_timeout = admission, drain_timeout
        self._deadline: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # The libraries and the models stay until the end: no collection need look through them while every client waits.
        gc.collect()
        gc.freeze()
        for one in sockets or ():  # only now: before, a client that reads the log would be refused
            address, port = one.getsockname()[:2]
            log.info("listening", extra={"fields": {"host": address, "port": port}})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._deadline is not None:
            self.should_exit = self.force_exit = True
            return
        self._deadline = time.monotonic() + self._drain_timeout
        self._admission.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._deadline is not None and (not self._admission.taken or time.monotonic() > self._deadline):
            self.should_exit = True
        if self._engine_ended.is_set():
            self.should_exit = True
        return await super().on_tick(counter)
