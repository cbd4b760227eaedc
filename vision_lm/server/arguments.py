"""The command line of `vision-lm serve`. Imports nothing heavy: `--help` stays instant."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from vision_lm.errors import VisionLMError
from vision_lm.server.settings import Cluster, Settings

KEY_VARIABLE = "VISION_LM_API_KEY"
KEY_REMEDY = f"{KEY_VARIABLE} or --api-key-file"
LIMITS = {
    "max_queue": "answers under way or waiting at once; beyond it 429",
    "max_body_bytes": "of a request",
    "max_images": "of a request",
    "max_pixels": "of an image, width x height",
    "max_tokens": "of an answer",
    "timeout": "seconds for a request",
    "drain_timeout": "seconds that running requests get after SIGTERM",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every limit of `Settings` that is worth a choice, with its default."""
    parser.add_argument(
        "--model",
        dest="models",
        metavar="NAME=PATH",
        action="append",
        help="serve this embedded name, folder or hub id as NAME; may be repeated (default: mini=mini)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    parser.add_argument(
        "--quantize", choices=("int8", "int4"), help="keep the language models' weights in so few bits"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default: %(default)s)")
    parser.add_argument("--port", type=port, default=8000, help="0: any that is free (default: %(default)s)")
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=Path,
        help=f"its first line is the key that clients must send; or set the variable {KEY_VARIABLE}",
    )
    parser.add_argument("--api-key", type=_never, help=argparse.SUPPRESS)
    parser.add_argument(
        "--allow-url-host",
        metavar="HOST",
        action="append",
        default=[],
        help="fetch images given as http(s) URLs from this host (example.com, example.com:8080); may be repeated",
    )
    parser.add_argument(
        "--ray",
        action="store_true",
        help="serve replicas on Ray, on this machine or on a cluster (pip install 'vision-lm[ray]')",
    )
    parser.add_argument(
        "--replicas",
        type=_replicas,
        metavar="N|MIN-MAX",
        help="how many; with MIN-MAX as many as the load asks for (default: 1)",
    )
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of a Ray cluster; without it Ray is started here and stopped",
    )
    parser.add_argument(
        "--replica-cpus", type=_count, metavar="N", help="cores for each replica (default: an even share)"
    )
    parser.add_argument("--replica-gpus", type=_gpus, metavar="N", help="GPUs for each replica (default: 0)")
    for name, meaning in LIMITS.items():
        default = getattr(Settings, name)
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=_seconds if isinstance(default, float) else _count,
            default=default,
            metavar="N",
            help=f"{meaning} (default: {default:,.10g})",
        )

    parser.add_argument(
        "--cache-tokens",
        type=_count,
        metavar="N",
        help="tokens whose keys and values each model keeps, its memory budget (default: as memory allows)",
    )


def sources(options: argparse.Namespace) -> dict[str, str]:
    """Name -> checkpoint. Raises VisionLMError."""
    found: dict[str, str] = {}
    for given in options.models or ["mini=mini"]:
        name, equals, source = given.partition("=")
        if not equals or not source or not re.fullmatch(r"[\w./:-]{1,128}", name, re.ASCII):
            raise VisionLMError(
                f"--model {given!r}: give NAME=PATH, NAME of letters, digits and ._-:/ (mini=mini, ours=./folder)"
            )
        if name in found:
            raise VisionLMError(f"--model {name} is given twice; give each model a name of its own")
        found[name] = source
    return found


def settings(options: argparse.Namespace) -> Settings:
    """Raises VisionLMError for a key that cannot be read."""
    limits = {name: getattr(options, name) for name in LIMITS}
    return Settings(
        api_key=api_key(options.api_key_file),
        allow_url_hosts=tuple(options.allow_url_host),
        cache_tokens=options.cache_tokens,
        **limits,
    )


def cluster(options: argparse.Namespace) -> Cluster | None:
    """Where replicas run; None without --ray. Raises VisionLMError for settings that only make sense with it."""
    names = ("replicas", "ray_address", "replica_cpus", "replica_gpus")
    given = [name for name in names if getattr(options, name) is not None]
    if not options.ray:
        if given:
            raise VisionLMError(
                f"--{given[0].replace('_', '-')} is for replicas on Ray; add --ray, or leave it out"
            )
        return None
    least, most = options.replicas or (1, 1)
    return Cluster(options.ray_address, least, most, options.replica_cpus, options.replica_gpus or 0)


def api_key(file: Path | None) -> str | None:
    """From the file, else from the environment. Never from the command line, which everyone on a machine can see.

    None where neither is given. Raises VisionLMError for a key that cannot be read or is unfit.
    """
    if file is None:
        where, key = KEY_VARIABLE, os.environ.get(KEY_VARIABLE)
        if key is None:
            return None
    else:
        where = str(file)
        try:
            key = (file.read_text(encoding="utf-8").splitlines() or [""])[0]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise VisionLMError(
                f"--api-key-file {file}: cannot be read ({reason}); give a text file"
            ) from error
    key = key.strip()
    if not re.fullmatch(r"[\x21-\x7e]{8,}", key):
        raise VisionLMError(
            f"the API key in {where} is unfit; give at least 8 printable ASCII characters, no blanks"
        )
    return key


def _never(_: str) -> str:
    raise argparse.ArgumentTypeError(
        f"everyone on this machine can read a command line; use --api-key-file or the variable {KEY_VARIABLE}"
    )


def port(text: str) -> int:
    """An argument's type. 0: any that is free."""
    return _number(text, 0, 65_535, "a port from 0 to 65535")


def _count(text: str) -> int:
    return _number(text, 1, 2**40, "a whole number of at least 1")


def _replicas(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    found = _count(least), _count(most or least)
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: the least is more than the most; give MIN-MAX (1-4)")
    return found


def _gpus(text: str) -> float:
    try:
        if 0 <= float(text) <= 64:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is no number of GPUs from 0 to 64 (0.5: two replicas share one)"
    )


def _seconds(text: str) -> float:
    try:
        if 0 < float(text) < 1e6:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")


def _number(text: str, least: int, most: int, allowed: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
    return int(text)
