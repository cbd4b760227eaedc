"""The arguments of `vision-lm export`, and what it does with them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DISAGREES = 1  # exit status: the export does not answer as its checkpoint does


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command line."""
    parser.add_argument("model", metavar="MODEL", help="embedded name, folder or hub id")
    parser.add_argument(
        "--to",
        required=True,
        metavar="TARGET",
        help="hf-llava (transformers, vLLM), gguf (llama.cpp), onnx (onnxruntime, transformers.js) or openvino",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the export, which must not exist")
    parser.add_argument(
        "--agreement",
        type=float,
        default=0.95,
        help="share of equal answers to pass with (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-head-bias",
        action="store_true",
        help="hf-llava: leave lm_head.bias as it is (vLLM reads it, transformers drops it)",
    )
    parser.add_argument(
        "--language-only", action="store_true", help="gguf: the language model without its eyes"
    )


def run(options: argparse.Namespace) -> int:
    """Another engine's layout of a checkpoint; 1 if that engine does not agree with it."""
    from vision_lm.errors import ExportError
    from vision_lm.exporters.export import Settings, check_target, export

    for flag, given, target in (
        ("--keep-head-bias", options.keep_head_bias, "hf-llava"),
        ("--language-only", options.language_only, "gguf"),
    ):
        if given and options.to != target:
            raise ExportError(f"{flag} is for --to {target}, not for --to {options.to}; leave it out")
    settings = Settings(
        check_target(options.to),
        options.out,
        options.agreement,
        keep_head_bias=options.keep_head_bias,
        language_only=options.language_only,
    )
    report = export(options.model, settings)
    print(f"{options.out}: written as {settings.target}")
    print(report)
    if report.passed:
        return 0
    print(f"vision-lm: error: {options.out}: does not agree; see export_report.json there", file=sys.stderr)
    return DISAGREES
