"""Open the page: take the port, load the models, show it until it is told to stop, and leave nothing behind."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demo import arguments
from demo.backend import Backend
from vision_lm.errors import VisionLMError
from vision_lm.images import ImageLimits
from vision_lm.server.arguments import api_key
from vision_lm.server.listen import check_reach, take_port

Accounts = Sequence[tuple[str, str]]


def run(options: argparse.Namespace) -> None:
    """The page, until SIGINT or SIGTERM. Raises VisionLMError before anything is shown."""
    accounts = arguments.accounts(options)
    with _stopped_by_signals() as stopped, own_folder():
        port = free_port(options.host, options.port, accounts)  # first: it takes no time, and models do
        if options.share and not accounts:
            raise VisionLMError(
                "--share gives the page an address for everyone, and no --auth is set; set --auth-file or "
                f"{arguments.AUTH_VARIABLE}"
            )
        backend = backend_of(options)
        with opened(backend, options.host, port, accounts, share=options.share) as addresses:
            print(f"{' and '.join(addresses)}: the page is open; Ctrl-C ends it", flush=True)
            stopped.wait()


def backend_of(options: argparse.Namespace) -> Backend:
    """Raises VisionLMError: no such checkpoint, no such server."""
    if options.server is not None:
        if options.device != "auto" or options.quantize:
            raise VisionLMError(
                "--device and --quantize are the server's own affair; leave them out, or --server"
            )
        from demo.over_http import Server

        return Server(options.server, api_key(options.api_key_file))
    if options.api_key_file is not None:
        raise VisionLMError("--api-key-file is the key of a server; give --server URL, or leave the key out")
    import vision_lm
    from demo.in_process import InProcess

    sources = dict.fromkeys(options.models or ["mini"])  # each once, in order
    models = {source: vision_lm.load(source, options.device, quantize=options.quantize) for source in sources}
    for source, vlm in models.items():
        if not vlm.config.projector_trained:
            print(
                f"vision-lm: warning: the projector of {source} is untrained; what it says of a picture is noise",
                file=sys.stderr,
            )
    return InProcess(models)


@contextlib.contextmanager
def opened(
    backend: Backend, host: str, port: int, accounts: Accounts = (), *, share: bool = False
) -> Iterator[list[str]]:
    """The page is open while the block lasts, at these addresses."""
    from starlette.middleware import Middleware

    from demo import style
    from demo.examples import FOLDER
    from demo.guard import OwnPageOnly
    from demo.page import build

    page = build(backend)
    try:
        try:
            _, local, public = page.launch(
                server_name=host,
                server_port=port,
                share=share,
                auth=list(accounts) or None,
                app_kwargs={} if accounts else {"middleware": [Middleware(OwnPageOnly)]},
                theme=style.theme(),
                css_paths=style.STYLE_SHEET,
                allowed_paths=[str(FOLDER)],
                max_file_size=ImageLimits.max_bytes,
                footer_links=[],
                run_history=False,  # it would keep visitors' pictures in their browser
                enable_monitoring=False,
                ssr_mode=False,
                inline=False,
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:  # the port was taken in the meantime
            raise VisionLMError(f"{host}:{port} cannot be served ({error}); choose another --port") from error
        if share and not public:
            raise VisionLMError("--share: Gradio's service gave no address; try again, or leave --share out")
        yield [address for address in (local, public) if address]
    finally:
        page.close(verbose=False)


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """Visitors' files go to a folder of this process alone, which goes with it; old ones are deleted before.

    Gradio keeps every upload for ever in a folder that all its pages share (gradio #4620: 24 GB).
    """
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    with tempfile.TemporaryDirectory(prefix="vision-lm-demo-", ignore_cleanup_errors=True) as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def free_port(host: str, port: int, accounts: Accounts) -> int:
    """The port, if it can be served; for 0 one that can. Raises VisionLMError."""
    listener = take_port(host, port)
    try:
        check_reach(listener, bool(accounts), "--auth", f"--auth-file or {arguments.AUTH_VARIABLE}")
        return int(listener.getsockname()[1])
    finally:
        listener.close()


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, also while models are loading: then with a KeyboardInterrupt."""
    stopped = threading.Event()

    def stop(*_: Any) -> None:
        stopped.set()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
