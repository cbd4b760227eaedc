"""The command `vision-lm`: its arguments, and how its errors and warnings look."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from demo.arguments import add_arguments as add_demo_arguments
from vision_lm import __version__, commands, describe
from vision_lm.batch.arguments import add_arguments as add_batch_arguments
from vision_lm.commands import complain
from vision_lm.errors import VisionLMError
from vision_lm.evaluate.arguments import add_arguments as add_eval_arguments
from vision_lm.exporters.arguments import add_arguments as add_export_arguments
from vision_lm.exporters.arguments import run as run_export
from vision_lm.importers.arguments import add_arguments as add_import_arguments
from vision_lm.importers.arguments import run as run_import
from vision_lm.server.arguments import add_arguments as add_serve_arguments

INTERRUPTED, BROKEN_PIPE = 130, 141  # exit statuses, as shells report these signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status: 0, or 2 where something in the input has to be put right."""
    options = _parser().parse_args(arguments)
    try:
        with _quiet_libraries():
            status: int = options.run(options)
            sys.stdout.flush()
            return status
    except VisionLMError as error:
        return complain(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return BROKEN_PIPE
    except OSError as error:  # a full disk, a folder that may not be written, a port that is taken
        return complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Our own warnings in one line, once each; none of the libraries': their readers are programmers."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be any bytes
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # so may a question, which is then refused
    logging.getLogger().setLevel(logging.ERROR)
    ours = logging.getLogger("vision_lm")
    ours.setLevel(logging.WARNING)
    ours.handlers = [_OurLog()]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("once", module="vision_lm")
        warnings.showwarning = _show_warning
        yield


class _OurLog(logging.Handler):
    """What the engine has to say, as our other warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        _show_warning(record.getMessage())


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"vision-lm: warning: {message}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as every other error."""
        self.exit(complain(f"{message}; see `{self.prog} --help`"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vision-lm", description="Captions of pictures, and answers to questions about them."
    )
    parser.add_argument("--version", action="version", version=f"vision-lm {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        added.set_defaults(run=run)
        return added

    captioned = command("caption", commands.caption, "describe each image in a line")
    captioned.add_argument("images", metavar="IMAGE", nargs="+")
    captioned.add_argument("--length", choices=("short", "normal", "long"), default="normal")
    doubts = captioned.add_mutually_exclusive_group()
    doubts.add_argument(
        "--check",
        action="store_true",
        help='ask the model about each thing that it names, and call "something" what it does not find',
    )
    doubts.add_argument(
        "--explain",
        action="store_true",
        help="say how sure the picture makes each thing that is named, and flag what it does not support",
    )

    asked = command("ask", commands.ask, "answer a question about each image")
    asked.add_argument("images", metavar="IMAGE", nargs="+")
    asked.add_argument("question", metavar="QUESTION")

    chatted = command("chat", commands.chat, "talk about one or more images together")
    chatted.add_argument("images", metavar="IMAGE", nargs="+")

    batched = command("batch", commands.batch, "answer about any number of images into one file, resumably")
    add_batch_arguments(batched)

    evaluated = command("eval", commands.evaluate, "score a model on a published task or one of our own")
    add_eval_arguments(evaluated)

    for one in (captioned, asked, chatted, batched, evaluated):
        one.add_argument(
            "--model", default="mini", help="embedded name, folder or hub id (default: %(default)s)"
        )
        one.add_argument(
            "--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)"
        )
        one.add_argument(
            "--quantize", choices=("int8", "int4"), help="keep the language model's weights in so few bits"
        )
    for one in (captioned, asked, chatted, batched):
        one.add_argument(
            "--allow-url-host",
            metavar="HOST",
            action="append",
            default=[],
            help="fetch images given as http(s) URLs from this host (example.com, example.com:8080); may be repeated",
        )
    for one in (captioned, asked):
        one.add_argument(
            "--json", action="store_true", help="a JSON object a line, with confidence and tokens"
        )

    created = command("create", commands.create, "compose a checkpoint of any size, its projector untrained")
    created.add_argument(
        "--vision", required=True, help="open_clip model and tag (ViT-L-14-336/openai), folder, or hub id"
    )
    created.add_argument("--text", required=True, help="a Phi: hub id (microsoft/phi-1_5) or folder")
    created.add_argument("--out", required=True, type=Path, help="folder of the new checkpoint")
    created.add_argument("--seed", type=int, default=0, help="of the projector's random weights")

    exported = command(
        "export", run_export, "write a checkpoint in another engine's layout, and verify it there"
    )
    add_export_arguments(exported)

    taken = command("import", run_import, "bring in another project's Phi with eyes: see docs/checkpoints.md")
    add_import_arguments(taken)

    trained = command("train", commands.train, "train a checkpoint's projector, and its language model")
    trained.add_argument(
        "stage", choices=("align", "instruct"), help="the projector alone, or the language model too"
    )
    trained.add_argument("recipe", metavar="RECIPE", type=Path, help="a YAML file")
    trained.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    trained.add_argument("--skip-bad", action="store_true", help="leave bad records out, and list them")
    trained.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change a key of the recipe"
    )

    built = command("data", commands.data, "build the training data of the embedded model")
    built.add_argument("action", choices=("build",))
    built.add_argument("--out", required=True, type=Path, help="folder of the data")

    shown = command("demo", commands.demo, "open a page to chat about pictures in the browser")
    add_demo_arguments(shown)

    measured = command("bench", commands.bench, "measure latency, throughput and memory on this machine")
    which = measured.add_mutually_exclusive_group()
    which.add_argument("--model", help="embedded name, folder or hub id (default: mini)")
    which.add_argument("--shape", help="mini, phi-1_5 or phi-2: random weights of that layout, no file")
    measured.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)"
    )
    measured.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    measured.add_argument("--quantize", help="int8 or int4")
    measured.add_argument("--concurrency", default="1,4,16", help="streams at once (default: %(default)s)")
    measured.add_argument(
        "--prompt",
        type=int,
        help="tokens of a prompt, its picture included (default: 32 more than the picture's)",
    )
    measured.add_argument(
        "--tokens", type=int, default=32, help="generated for each prompt (default: %(default)s)"
    )
    measured.add_argument(
        "--repeat", type=int, default=3, help="measure so many times, for the median (default: %(default)s)"
    )
    measured.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")

    served = command("serve", commands.serve, "answer over HTTP, to OpenAI's clients and plain ones")
    add_serve_arguments(served)

    described = command("info", describe.run, "say what a checkpoint is made of")
    described.add_argument("model", metavar="MODEL", nargs="?", default="mini")
    return parser


if __name__ == "__main__":
    sys.exit(main())
