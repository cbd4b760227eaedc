"""The benchmark: that its figures are complete and mean what they say. How large they are is no test's business."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import text_config
from vision_lm.bench.measure import Meter
from vision_lm.bench.roofline import stored_bytes, weight_bytes
from vision_lm.bench.settings import Settings
from vision_lm.bench.shapes import PHI_1_5, shape_config
from vision_lm.bench.weights import counting, counting_phi
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.cli import main
from vision_lm.engine import TorchDecoder
from vision_lm.engine.quantize import quantised
from vision_lm.model import VisionLM
from vision_lm.phi import build_phi
from vision_lm.skeleton import phi_shapes

TOKENS, PICTURE, POSITIONS = (
    6,
    16,
    256,
)  # of the tiny checkpoint: a picture's tokens, and the most of a prompt


@pytest.fixture(autouse=True, scope="module")
def small_probe() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vision_lm.bench.machine.PROBE_BYTES", {"cpu": 1 << 20})
        yield


@pytest.fixture(scope="module")
def folder(vit_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, vit_checkpoint.config, vit_checkpoint.tensors, vit_checkpoint.tokenizer)
    return str(folder)


def numbers(value: Any) -> Iterator[float]:
    """Every number in a JSON document."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, (int, float)):
        yield value


@pytest.fixture(scope="module")
def figures(folder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of one run."""
    path = tmp_path_factory.mktemp("out") / "bench.json"
    options = ["--concurrency", "1,3", "--tokens", str(TOKENS), "--repeat", "2", "--device", "cpu"]
    assert main(["bench", "--model", folder, *options, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_every_figure_is_there_and_finite(figures: dict[str, Any], folder: str) -> None:
    """Device, versions, date and command say whose the figures are; all but the GPU's memory are numbers."""
    assert figures.keys() == {
        *("command", "machine", "model", "bandwidth", "latency", "roofline", "streams", "memory")
    }
    assert f"--model {folder}" in figures["command"]
    assert "--concurrency 1,3" in figures["command"]
    machine = figures["machine"]
    assert machine["device"]
    assert machine["threads"] == torch.get_num_threads()
    assert machine["versions"].keys() >= {"vision-lm", "torch"}
    assert machine["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert figures["memory"].pop("peak_cuda") is None
    assert all(math.isfinite(one) for one in numbers(figures))
    for part in ("bandwidth", "roofline", "memory"):
        assert all(one > 0 for one in numbers(figures[part]))
    latency = figures["latency"]
    assert all(latency[name] > 0 for name in ("first_token_s", "first_token_same_picture_s", "token_s"))


def test_streams_add_up(figures: dict[str, Any]) -> None:
    """Tokens a second times seconds are the tokens that were asked for; no overhead is more than the whole."""
    assert [one["streams"] for one in figures["streams"]] == [1, 3]
    for one in figures["streams"]:
        assert one["tokens"] == one["streams"] * TOKENS
        assert one["tokens_per_second"] * one["seconds"] == pytest.approx(one["tokens"])
        assert 0 <= one["overhead"] < 1


def test_bytes_are_those_of_the_checkpoint(figures: dict[str, Any], vit_checkpoint: Checkpoint) -> None:
    """Of the embedding one row, of all else everything, in float32; and both halves of the cache."""
    config, roofline = vit_checkpoint.config.text, figures["roofline"]
    read = sum(
        tensor.numel() if "embed_tokens" not in name else tensor.shape[1]
        for name, tensor in vit_checkpoint.tensors.items()
        if name.startswith("phi.")
    )
    assert roofline["weight_bytes"] == 4 * read
    assert figures["model"]["prompt_tokens"] == PICTURE + 32
    assert roofline["context"] == PICTURE + 32 + TOKENS // 2
    kept = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert roofline["cache_bytes"] == roofline["context"] * kept
    assert roofline["bytes_per_token"] == roofline["weight_bytes"] + roofline["cache_bytes"]
    least = roofline["bytes_per_token"] / figures["bandwidth"]["bytes_per_s"]
    assert roofline["least_token_s"] == pytest.approx(least)
    assert roofline["share"] == pytest.approx(least / figures["latency"]["token_s"])
    whole = sum(tensor.numel() for tensor in vit_checkpoint.tensors.values())
    assert figures["memory"]["weights"] == 4 * whole
    assert figures["model"]["parameters"] == whole


def test_the_table_says_it_to_people(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for the model, one for the machine, one for each number of streams."""
    assert main(["bench", "--model", folder, "--concurrency", "2", "--tokens", "2", "--repeat", "1"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].startswith("tiny, ")
    for name in ("first token", "a token", "memory read", "roofline", "memory", "streams", "2 "):
        assert any(line.startswith(name) for line in lines), name
    assert "nan" not in printed
    assert "inf" not in printed


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_bytes_of_rounded_weights(mode: Any) -> None:
    """As many as the packed layer says of itself."""
    weight = torch.randn(128, 384)
    layer = quantised(weight, None, mode, torch.float32, torch.device("cpu"))
    assert stored_bytes(weight.shape, torch.float32, mode) == layer.nbytes
    assert stored_bytes(torch.Size([128]), torch.float32, mode) == 512  # biases and norms stay


@pytest.mark.parametrize("mode", [None, "int8", "int4"])
def test_bytes_of_a_decoder(mode: Any) -> None:
    """As many as the decoder says it reads, but for norms and biases, and scales of matrices that it joins."""
    config = text_config(vocab_size=512, hidden_size=256, intermediate_size=512)
    decoder = TorchDecoder(
        config, counting_phi(config, torch.float32), torch.device("cpu"), torch.float32, mode
    )
    vectors = sum(4 * shape.numel() for shape in phi_shapes(config).values() if len(shape) == 1)
    assert weight_bytes(config, torch.float32, mode) - vectors == pytest.approx(decoder.step_bytes, rel=0.01)


def test_phi_1_5_streams_the_weights_that_it_is_known_for() -> None:
    """1.418 G parameters (its model card says 1.3 B), of which a token reads all but the embedding table."""
    assert shape_config("phi-1_5").text == PHI_1_5
    assert weight_bytes(PHI_1_5, torch.bfloat16, None) // 2 == 1_418_270_720 - 51_200 * 2048


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_count(dtype: torch.dtype) -> None:
    """In transformers' own Phi the likeliest token after t is t + 1, whatever stands before."""
    config = text_config()
    phi = build_phi(config).eval()
    phi.load_state_dict(counting_phi(config, dtype), assign=True)
    ids = torch.randint(0, config.vocab_size, (4, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        following = phi(input_ids=ids).logits.argmax(-1)
    assert torch.equal(following, (ids + 1) % config.vocab_size)


def test_peers_do_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, ours rounded, transformers' generate and the gpt-fast style decoder all count on from each prompt."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from gpt_fast import StaticPhi, decode
    from peer_engines import peers

    config, cpu = text_config(), torch.device("cpu")
    weights = counting_phi(config, torch.float32)
    prompts = torch.randint(0, config.vocab_size, (3, 7), generator=torch.Generator().manual_seed(0))
    expected = (prompts[:, -1:] + 1 + torch.arange(5)) % config.vocab_size
    built = peers(config, weights, cpu, torch.float32, batch=3, length=12, quantize="int8")
    for name in ("ours", "ours, int8", "transformers, eager"):
        first, last, tokens = built[name]()(prompts, 5)
        assert first < last, name
        assert torch.equal(tokens, expected), name
    phi = StaticPhi.load(config, weights, batch=3, length=12)
    assert torch.equal(torch.cat(list(decode(phi, phi, prompts, 5)), dim=1), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llama_cpp_does_the_same_work(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """From a file of the same weights it counts on from each prompt of a batch, twice; its first tokens come before the last."""
    pytest.importorskip("xllamacpp")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from peer_engines import peers

    config = text_config()
    built = peers(config, counting_phi(config, dtype), torch.device("cpu"), dtype, 3, 12, None)
    peer = built["llama.cpp (xllamacpp)"]()
    for seed in range(2):
        prompts = torch.randint(0, 400, (3, 7), generator=torch.Generator().manual_seed(seed))
        start = time.perf_counter()
        first, last, tokens = peer(prompts, 5)
        assert start < first < last
        assert torch.equal(tokens, prompts[:, -1:] + 1 + torch.arange(5))


def test_a_second_question_finds_the_picture(vit_checkpoint: Checkpoint) -> None:
    """What is measured as the same picture is one that was encoded once and stands in the prefix cache."""
    vlm = VisionLM(counting(vit_checkpoint), device="cpu")
    meter = Meter(vlm, prompt=PICTURE + 8, tokens=4)
    picture = meter.picture()
    answered = meter.answer(picture, tokens=4)
    assert len(answered.token_s) == 3
    meter.answer(picture, tokens=2)
    assert vlm.engine.images.encoded == 1
    assert vlm.engine.scheduler.shared_tokens == PICTURE
    assert vlm.engine.stats.prompt_tokens == PICTURE + 8 + 8
    meter.answer(meter.picture(), tokens=2)
    assert vlm.engine.images.encoded == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--concurrency", "0"], "--concurrency is 0; give at least 1"),
        (["--concurrency", "1,-4"], "--concurrency is -4"),
        (["--concurrency", "a,b"], "--concurrency is 'a,b'"),
        (["--concurrency", ""], "--concurrency is ''"),
        (["--tokens", "1"], "--tokens is 1; give at least 2"),
        (["--tokens", "100000"], f"more than the model's {POSITIONS} positions"),
        (["--tokens", "many"], "invalid int value: 'many'"),
        (["--prompt", str(PICTURE)], f"the picture alone takes {PICTURE} tokens"),
        (["--prompt", str(POSITIONS)], f"more than the model's {POSITIONS} positions"),
        (["--repeat", "0"], "--repeat is 0"),
        (["--quantize", "int3"], "--quantize 'int3' is unknown; give int8 or int4"),
        (["--dtype", "int3"], "dtype 'int3' is unknown"),
        (["--device", "abacus"], "abacus"),
        (["--json", "nowhere/at/all.json"], "nowhere/at/all.json: No such file or directory"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    folder: str, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    """Nothing is measured, and stderr says what to put right."""
    assert _status(["bench", "--model", folder, *options]) == 2
    _one_line(capsys, expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--shape", "phi-9"], "shape 'phi-9' is unknown; give mini, phi-1_5, phi-2"),
        (["--shape", "phi-1_5", "--tokens", "2000"], "more than the model's 2,048 positions"),
        (["--shape", "mini", "--model", "mini"], "not allowed with argument"),
        (["--model", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_models_that_cannot_be_measured(
    capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    """Known before any weight is drawn."""
    assert _status(["bench", *options]) == 2
    _one_line(capsys, expected)


def _status(arguments: list[str]) -> object:
    try:
        return main(arguments)
    except SystemExit as exit:
        return exit.code


def _one_line(capsys: pytest.CaptureFixture[str], expected: str) -> None:
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("vision-lm: error: ")
    assert expected in line


def test_a_shape_needs_no_file(tmp_path: Path) -> None:
    """Random weights of the embedded model's layout, encoder included, are measured as a checkpoint is."""
    path = tmp_path / "shape.json"
    options = ["--concurrency", "1", "--tokens", "2", "--repeat", "1", "--device", "cpu"]
    assert main(["bench", "--shape", "mini", *options, "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert figures["model"]["image_tokens"] == 69
    assert "--shape mini" in figures["command"]
    assert "--model" not in figures["command"]


def test_the_command_says_how_to_measure_again() -> None:
    """Every option that matters, quoted for a shell."""
    settings = Settings(model="a b", quantize="int8", concurrency=(1, 2), prompt=40)
    assert settings.command == (
        "vision-lm bench --model 'a b' --device auto --dtype auto --quantize int8 --concurrency 1,2 "
        "--prompt 40 --tokens 32 --repeat 3"
    )
