"""The command line of `vision-lm demo`. Imports nothing heavy: `--help` stays instant."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from vision_lm.errors import VisionLMError
from vision_lm.server.arguments import KEY_VARIABLE, port

AUTH_VARIABLE = "VISION_LM_DEMO_AUTH"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, for whom, and where."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--model",
        dest="models",
        metavar="MODEL",
        action="append",
        help="embedded name, folder or hub id; repeated, the page offers a choice (default: mini)",
    )
    where.add_argument(
        "--server", metavar="URL", help="ask a running `vision-lm serve` instead (http://127.0.0.1:8000)"
    )
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=Path,
        help=f"its first line is the key of --server; or set the variable {KEY_VARIABLE}",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    parser.add_argument(
        "--quantize", choices=("int8", "int4"), help="keep the language model's weights in so few bits"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address of the page (default: %(default)s)")
    parser.add_argument("--port", type=port, default=7860, help="0: any that is free (default: %(default)s)")
    parser.add_argument(
        "--share", action="store_true", help="a public address, through Gradio's service; it needs --auth"
    )
    access = parser.add_mutually_exclusive_group()
    access.add_argument(
        "--auth",
        metavar="USER:PASSWORD",
        help="who may see the page; everyone on this machine can read it here, so rather --auth-file",
    )
    access.add_argument(
        "--auth-file",
        metavar="FILE",
        type=Path,
        help=f"a USER:PASSWORD a line; or set the variable {AUTH_VARIABLE} to one",
    )


def accounts(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Users and their passwords; none where everyone may see the page. Raises VisionLMError."""
    if options.auth_file is not None:
        where = f"--auth-file {options.auth_file}"
        try:
            lines = options.auth_file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise VisionLMError(f"{where}: cannot be read ({reason}); give a text file") from error
        given = [line.rstrip("\r") for line in lines if line.strip()]
        if not given:
            raise VisionLMError(f"{where}: it is empty; write a USER:PASSWORD a line")
    elif options.auth is not None:
        where, given = "--auth", [options.auth]
    elif AUTH_VARIABLE in os.environ:
        where, given = AUTH_VARIABLE, [os.environ[AUTH_VARIABLE]]
    else:
        return []
    found = []
    for number, line in enumerate(given, start=1):
        user, _, password = line.partition(":")
        if not user.strip() or not password:  # what was given is not repeated: it may be a password
            raise VisionLMError(
                f"{where}: entry {number} is not USER:PASSWORD; give a name, a colon, a password"
            )
        found.append((user, password))
    return found
