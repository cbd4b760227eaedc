"""What each subcommand of `vision-lm` does. What it needs is imported when it runs: `--help` stays instant."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import vision_lm
from vision_lm.errors import TrainingError, VisionLMError

if TYPE_CHECKING:
    from vision_lm import Answer, VisionLM
    from vision_lm.answer import AnswerStream, Support

BAD_INPUT = 2  # exit status: something in the input has to be put right
IMAGES_AT_ONCE = 16  # of a long list: their lines are printed as soon as these are answered


def caption(options: argparse.Namespace) -> int:
    """One caption for each image."""
    vlm = _load(options, options.allow_url_host)
    return _answer_each(
        options,
        whole=lambda images: vlm.caption(
            images, options.length, support=options.explain, checked=options.check
        ),
        stream=lambda image: vlm.stream_caption(image, options.length),
    )


def ask(options: argparse.Namespace) -> int:
    """One answer for each image."""
    from vision_lm.prompts import check_question

    check_question(options.question)
    vlm = _load(options, options.allow_url_host)
    return _answer_each(
        options,
        whole=lambda images: vlm.ask(images, options.question),
        stream=lambda image: vlm.stream(image, options.question),
    )


def chat(options: argparse.Namespace) -> int:
    """A conversation about all the images together: questions from the terminal, or a line each from stdin."""
    from vision_lm.images import open_image

    images = [open_image(path, allow_url_hosts=options.allow_url_host) for path in options.images]
    vlm = _load(options)
    status = 0
    messages: list[dict[str, Any]] = []
    for question in _questions():
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if not messages:
            content = [{"type": "image", "image": image} for image in images] + content
        messages.append({"role": "user", "content": content})
        try:
            text = _print_stream(vlm.stream_chat(messages))
        except VisionLMError as error:
            messages.pop()
            status = complain(str(error))
        else:
            messages.append({"role": "assistant", "content": text})
    return status


def batch(options: argparse.Namespace) -> int:
    """A row for each of any number of images; 2 if any of them could not be answered."""
    from vision_lm.batch import arguments, run

    settings = arguments.settings(options)
    try:
        summary = run(settings)
    except KeyboardInterrupt:
        print(f"vision-lm: stopped; the same command goes on with {settings.out}", file=sys.stderr)
        raise
    print(summary)
    return BAD_INPUT if summary.failed else 0


def evaluate(options: argparse.Namespace) -> int:
    """Scores with their intervals, and a folder that holds everything behind them."""
    from vision_lm.evaluate import arguments, run

    settings = arguments.settings(options)
    if settings.progress:
        with _extra("eval"):
            import tqdm  # noqa: F401  (before anything is answered)
    try:
        result = run(settings)
    except KeyboardInterrupt:
        print(f"vision-lm: stopped; the same command goes on with {settings.out}", file=sys.stderr)
        raise
    print(result)
    print(f"{settings.out}: scores.json, report.html")
    return 0


def create(options: argparse.Namespace) -> int:
    """Compose a checkpoint with a fresh projector."""
    from vision_lm.create import create as compose

    config = compose(options.vision, options.text, options.out, options.seed)
    print(f"{options.out}: {config.name}")
    print("its projector is UNTRAINED: until `vision-lm train align`, what it says of a picture is noise")
    return 0


def train(options: argparse.Namespace) -> int:
    """Train the projector, or the projector and the language model."""
    overrides = {}
    with _extra("train"):
        import yaml

        from projector.train import main as run

    for setting in options.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise TrainingError(f"--set {setting}: give KEY=VALUE")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise TrainingError(f"--set {setting}: the value is not valid YAML") from None
    folder = run(
        options.recipe, options.stage, resume=options.resume, skip_bad=options.skip_bad, overrides=overrides
    )
    print(f"{folder}: trained")
    return 0


def data(options: argparse.Namespace) -> int:
    """Fetch the packages of the training data and build what training reads."""
    with _extra("data"):
        from projector.data.build import build

        build(options.out)
    print(f"{options.out}: built")
    return 0


def demo(options: argparse.Namespace) -> int:
    """The Gradio page, until it is told to stop."""
    from demo.launch import run

    run(options)
    return 0


def bench(options: argparse.Namespace) -> int:
    """A table of what this machine reaches."""
    from vision_lm.bench import Settings, run
    from vision_lm.bench.settings import counts

    settings = Settings(
        model=options.model or "mini",
        shape=options.shape,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        concurrency=counts(options.concurrency),
        prompt=options.prompt,
        tokens=options.tokens,
        repeat=options.repeat,
    )
    if options.json:
        options.json.touch()  # a file that cannot be written is better known now than after minutes
    report = run(settings)
    print(report.table())
    if options.json:
        options.json.write_text(report.to_json(), encoding="utf-8")
    return 0


def serve(options: argparse.Namespace) -> int:
    """The HTTP service, until it is told to stop."""
    from vision_lm.server import arguments

    sources, settings = arguments.sources(options), arguments.settings(options)
    cluster = arguments.cluster(options)
    if cluster is not None:
        with _extra("serve"), _extra("ray"):
            from vision_lm.server.scale_out import ray_modules, serve_on_ray

            ray_modules()
        serve_on_ray(sources, options.host, options.port, settings, cluster, options.device, options.quantize)
        return 0
    with _extra("serve"):
        from vision_lm.server.serve import serve as run
    run(sources, options.host, options.port, settings, options.device, options.quantize)
    return 0


def _load(options: argparse.Namespace, allow_url_hosts: Sequence[str] = ()) -> VisionLM:
    vlm = vision_lm.load(
        options.model, options.device, quantize=options.quantize, allow_url_hosts=allow_url_hosts
    )
    if not vlm.config.projector_trained:
        print(
            f"vision-lm: warning: the projector of {options.model} is untrained; what it says of a picture is noise",
            file=sys.stderr,
        )
    return vlm


def _answer_each(
    options: argparse.Namespace,
    whole: Callable[[list[Any]], list[Answer | VisionLMError]],
    stream: Callable[[Any], AnswerStream],
) -> int:
    """One line for each image; the error of one that cannot be answered goes to stderr, and the others go on."""
    paths: list[str] = options.images
    second_look = getattr(options, "explain", False) or getattr(options, "check", False)
    if len(paths) == 1 and not options.json and not second_look and sys.stdout.isatty():
        pieces = stream(paths[0])
        _print_stream(pieces)
        _warn_if_unsure(paths[0], pieces.answer, options)
        return 0
    status = 0
    for start in range(0, len(paths), IMAGES_AT_ONCE):
        some = paths[start : start + IMAGES_AT_ONCE]
        for path, answer in zip(some, whole(some), strict=True):
            if isinstance(answer, VisionLMError):
                status = complain(str(answer))
            else:
                print(_line(path, answer, options, alone=len(paths) == 1), flush=True)
                _warn_if_unsure(path, answer, options)
    return status


def _warn_if_unsure(path: str, answer: Answer | None, options: argparse.Namespace) -> None:
    """For who reads; what a program reads (--json) has the flag."""
    from vision_lm.answer import too_unsure

    if answer and too_unsure(answer.text, answer.unanswerable) and not options.json:
        print(
            f"vision-lm: warning: {path}: not sure of this answer ({answer.confidence:.0%}); do not rely on it",
            file=sys.stderr,
        )


def _line(path: str, answer: Answer, options: argparse.Namespace, alone: bool) -> str:
    if options.json:
        values = {
            "image": path,
            "text": answer.text,
            "confidence": round(answer.confidence, 4),
            "finish_reason": answer.finish_reason,
            "tokens": answer.tokens,
            "token_logprobs": [round(logprob, 4) for logprob in answer.token_logprobs],
            "unanswerable": answer.unanswerable,
        }
        if answer.points:
            values["points"] = [one._asdict() for one in answer.points]
        if getattr(options, "check", False):
            values["unconfirmed"] = answer.unconfirmed
        if answer.support is not None:
            values["support"] = [
                {"thing": one.text, "start": one.start}
                | {"seen": round(one.seen, 4), "unseen": round(one.unseen, 4), "support": round(one.value, 4)}
                for one in answer.support
            ]
        return json.dumps(values)
    line = answer.text if alone else f"{path}: {answer.text}"
    return "\n".join([line, *map(_support_line, answer.support or ())])


def _support_line(one: Support) -> str:
    flag = "" if one.supported else "   NOT SUPPORTED by the picture"
    return f"  {one.text:<24} {one.seen:4.0%} with the picture, {one.unseen:4.0%} without{flag}"


def _print_stream(pieces: AnswerStream) -> str:
    text = ""
    for piece in pieces:
        print(piece, end="", flush=True)
        text += piece
    print(flush=True)
    return text


def _questions() -> Iterator[str]:
    """Lines of a terminal until its end (Ctrl-D), or of stdin; blank ones ask nothing."""
    if not sys.stdin.isatty():
        yield from (line for line in map(str.strip, sys.stdin) if line)
        return
    with suppress(ImportError):
        import readline  # noqa: F401  (input() then has editing and a history)

    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line:
            yield line


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Imports that only an optional extra of the package brings."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise VisionLMError(f"{error.name} is not installed; pip install 'vision-lm[{name}]'") from error


def complain(error: str) -> int:
    """Print an error in one line, whatever it quotes, after what was printed before it."""
    sys.stdout.flush()
    print(f"vision-lm: error: {' '.join(error.splitlines())}", file=sys.stderr, flush=True)
    return BAD_INPUT
