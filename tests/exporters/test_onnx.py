"""Exports of graphs, run without torch and judged by our own answers and by transformers' Phi."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import VIT, random_checkpoint, scripted
from vision_lm.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vision_lm.cli import main
from vision_lm.config import Crops
from vision_lm.errors import ExportError, RequestError
from vision_lm.exporters.export import Settings, export
from vision_lm.exporters.graph_model import GraphModel
from vision_lm.exporters.graph_runtime import GraphRuntime
from vision_lm.exporters.onnx_files import write_graphs
from vision_lm.exporters.verify import compare
from vision_lm.model import VisionLM
from vision_lm.phi import build_phi

ROOT = Path(__file__).parents[2]
BARE = "import sys; sys.modules |= dict.fromkeys(['torch', 'transformers', 'open_clip', 'timm']); "
QUICK = dataclasses.replace(VIT, quick_gelu=True, resize="crop", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))

# 34 pixels are four patches and two pixels that are not seen; the first patch is left out.
SIGLIP = dataclasses.replace(
    VIT,
    kind="siglip",
    tower={**VIT.tower, "image_size": 34, "act_kwargs": {"approximate": "tanh"}},
    image_size=34,
    features=(-1,),
    normed=True,
    skip_patches=1,
    resize="pad",
    fill=(0.1, 0.9, 0.2),
)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as ONNX."""
    out = tmp_path_factory.mktemp("mini") / "mini-onnx"
    assert main(["export", "mini", "--to", "onnx", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def clip() -> Checkpoint:
    """A CLIP of QuickGELU and a Phi with grouped keys and values and a bias in its head."""
    return random_checkpoint(QUICK)


@pytest.fixture(scope="module")
def clip_folder(clip: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It as ONNX, with the weights in files of their own, as a large model's are."""
    out = tmp_path_factory.mktemp("clip") / "out"
    write_graphs(clip, out, "onnx", single_file=0)
    return out


def test_a_hundred_answers_of_mini_are_equal(mini: Path) -> None:
    """onnxruntime, with three feature maps, pooled tokens, places and the head's bias in its graphs, says what we say."""
    report = json.loads((mini / "export_report.json").read_text())
    assert (report["prompts"], report["equal_answers"], report["passed"]) == (32, 1.0, True)
    assert report["verified_with"].startswith("onnxruntime ")
    vlm = VisionLM(read_checkpoint("mini"), "cpu", "float32")
    assert vlm.checkpoint.tensors["phi.lm_head.bias"].any()
    hundred = compare(vlm, GraphRuntime(mini), "onnx", [], 1.0, count=100)
    assert (hundred.equal_prompts, hundred.equal_answers, hundred.passed) == (1.0, 1.0, True)
    assert hundred.largest_logit_difference is not None
    assert hundred.largest_logit is not None
    assert hundred.largest_logit_difference <= 1e-4 * hundred.largest_logit


def test_the_example_of_the_docs_runs(mini: Path, tmp_path: Path) -> None:
    """onnxruntime, numpy, tokenizers and pillow are all it takes; and our own loop does not need torch either."""
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(import json\nimport numpy as np\n.*?)```", text, re.DOTALL)
    (tmp_path / "mini-onnx").symlink_to(mini)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    alone = BARE + "sys.modules['vision_lm'] = None\n"
    said = subprocess.run(
        [sys.executable, "-c", alone + example], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    ours = """
from pathlib import Path
from PIL import Image
from vision_lm.exporters.graph_model import GraphModel
image = Image.open("demo/examples/cat.jpg").convert("RGB")
print(GraphModel(Path("mini-onnx")).answer([image], ["Describe the image."])[0].text)
"""
    again = subprocess.run(
        [sys.executable, "-c", BARE + ours],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    vlm = VisionLM(read_checkpoint("mini"), "cpu", "float32")
    wanted = str(vlm.ask(ROOT / "demo/examples/cat.jpg", "Describe the image."))
    assert said.stdout.strip() == again.stdout.strip() == wanted != ""


def test_rows_of_a_batch_answer_as_if_alone(
    clip: Checkpoint, clip_folder: Path, pictures: list[Image.Image]
) -> None:
    """Eight pictures, eight questions of different lengths, all in one batch: token for token ours."""
    assert clip.tensors["phi.lm_head.bias"].abs().max() > 0.5
    questions = ["What?", "How many cats are there?", "Describe the image in detail.", "Ça va?"] * 2
    vlm = VisionLM(clip, "cpu", "float32")
    ours = vlm.ask(pictures, questions, max_tokens=12)
    theirs = GraphModel(clip_folder).answer(pictures, questions, max_tokens=12)
    for own, said in zip(ours, theirs, strict=True):
        assert not isinstance(own, Exception)
        assert list(own.tokens) == said.tokens[: len(own.tokens)]
        assert own.finish_reason in (said.finish_reason, "repetition")
        if own.finish_reason != "repetition":
            assert own.text == said.text
    assert len({said.text for said in theirs}) > 4, "they differ with the picture and the question"
    with pytest.raises(RequestError, match="allowed: 255; shorten it"):
        GraphModel(clip_folder).answer(pictures[:1], ["a cat " * 200])


def test_the_decoder_is_transformers_phi(clip: Checkpoint, clip_folder: Path) -> None:
    """Logits of padded rows, and of the same tokens in two pieces through the cache, are PhiForCausalLM's to 1e-4."""
    import onnxruntime

    phi = build_phi(clip.config.text).eval()
    phi.load_state_dict({n[4:]: t for n, t in clip.tensors.items() if n.startswith("phi.")})
    graph = onnxruntime.InferenceSession(clip_folder / "onnx" / "decoder_model_merged.onnx")
    noise = np.random.default_rng(3)
    lengths, count = (9, 4, 1), 9
    inputs = noise.standard_normal((3, count, clip.config.text.hidden_size), dtype=np.float32)
    mask = np.array([[0] * (count - length) + [1] * length for length in lengths])
    positions = (mask.cumsum(1) - 1).clip(0)
    names = [one.name for one in graph.get_inputs()[3:]]
    assert names[:2] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert [one.name for one in graph.get_outputs()[:2]] == ["logits", "present.0.key"]
    cache = dict.fromkeys(names, np.zeros((3, 2, 0, 16), np.float32))
    pieces = []
    for start, end in ((0, 6), (6, 7), (7, 9)):
        feeds = {
            "inputs_embeds": inputs[:, start:end],
            "attention_mask": mask[:, :end],
            "position_ids": positions[:, start:end],
        }
        logits, *present = graph.run(None, feeds | cache)
        cache = dict(zip(names, present, strict=True))
        pieces.append(logits)
    found = torch.from_numpy(np.concatenate(pieces, axis=1))
    for row, length in enumerate(lengths):
        with torch.inference_mode():
            wanted = phi(inputs_embeds=torch.from_numpy(inputs[row, count - length :])[None]).logits[0]
        assert torch.allclose(found[row, count - length :], wanted, atol=1e-4 * float(wanted.abs().max()))


def test_large_weights_lie_beside_their_graph(clip: Checkpoint, clip_folder: Path) -> None:
    """Under the name, and with the setting, by which transformers.js finds them; and no path of this machine is in there."""
    names = {path.name for path in (clip_folder / "onnx").iterdir()}
    graphs = {"vision_encoder.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx"}
    assert names == graphs | {f"{name}_data" for name in graphs}
    settings = json.loads((clip_folder / "config.json").read_text())
    assert settings["transformers.js_config"]["use_external_data_format"] == dict.fromkeys(graphs, 1)
    size = sum(tensor.numel() for tensor in clip.tensors.values())
    beside = sum((clip_folder / "onnx" / f"{name}_data").stat().st_size for name in graphs)
    assert beside / 4 == pytest.approx(size, rel=0.05)
    for name in graphs:
        assert str(ROOT).encode() not in (clip_folder / "onnx" / name).read_bytes()


def test_settings_count_a_pictures_tokens(mini: Path, clip_folder: Path) -> None:
    """As transformers.js counts them: (S // patch)^2 and so many more."""
    for folder, tokens in ((mini, 69), (clip_folder, 16)):
        pictures = json.loads((folder / "preprocessor_config.json").read_text())
        counted = json.loads((folder / "processor_config.json").read_text())
        side = pictures["crop_size"]["height"] // counted["patch_size"]
        assert side**2 + counted["num_additional_image_tokens"] == tokens
        assert json.loads((folder / "config.json").read_text())["image_seq_length"] == tokens


def test_without_onnxruntime_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And with it back, what a Llava has no settings for is done as the checkpoint says: a first token, a text that ends."""
    plain = scripted(random_checkpoint(SIGLIP), "The cube is red.")
    prompt = dataclasses.replace(plain.config.prompt, bos_token_id=0, stop=("red",))
    config = dataclasses.replace(plain.config, prompt=prompt)
    write_checkpoint(tmp_path / "m", config, plain.tensors, plain.tokenizer)
    command = ["export", str(tmp_path / "m"), "--to", "onnx", "--out", str(tmp_path / "out")]
    with monkeypatch.context() as blocked:
        blocked.setitem(sys.modules, "onnxscript", None)
        assert main(command) == 2
        assert "onnxscript is missing; pip install 'vision-lm[export]'" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    with monkeypatch.context() as blocked:
        blocked.setitem(sys.modules, "onnxruntime", None)
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert "answers were NOT compared: onnxruntime is not installed" in printed
        assert "3 graphs are well formed" in printed
        assert "no chat template, for a prompt that begins with a token of its own" in printed
        assert "no preprocessor_config.json" in printed
        with pytest.raises(ExportError, match="onnxruntime is not installed"):
            GraphModel(tmp_path / "out")
    image = Image.new("RGB", (60, 30), "blue")
    (said,) = GraphModel(tmp_path / "out").answer([image], ["What colour is it?"])
    ours = VisionLM(read_checkpoint(tmp_path / "m"), "cpu", "float32").ask(image, "What colour is it?")
    assert (said.text, said.tokens, said.finish_reason) == (ours.text, list(ours.tokens), ours.finish_reason)
    assert said.text == "The cube is"
    pixels = GraphModel(tmp_path / "out").pixels(image)
    seen = GraphModel(tmp_path / "out").eyes({"pixel_values": pixels[None]})[0]  # (1, 15, Dt)
    (wanted,) = VisionLM(read_checkpoint(tmp_path / "m"), "cpu", "float32").encode_images([image])
    assert seen.shape == (1, 15, 64)
    assert torch.allclose(torch.from_numpy(seen[0]), wanted, atol=1e-4)


def test_bad_input_is_one_line(clip: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown target, a folder that is there, a disk that is too small, a folder that is no export: nothing is written."""
    out = tmp_path / "out"
    assert main(["export", "mini", "--to", "onxx", "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert printed.strip().endswith("--to onxx: allowed: hf-llava, gguf, onnx, openvino")
    assert printed.count("\n") == 1
    vast = {**clip.tensors, "phi.model.embed_tokens.weight": torch.zeros(1).expand(1 << 50)}
    with pytest.raises(ExportError, match=r"needs 4,503,599,[\d,]+ bytes and .* has [\d,]+ free; make room"):
        write_graphs(dataclasses.replace(clip, tensors=vast), out, "onnx")
    parts = dataclasses.replace(clip.config.vision, crops=Crops("grid"))
    seen = dataclasses.replace(clip, config=dataclasses.replace(clip.config, vision=parts))
    with pytest.raises(ExportError, match="parts of a picture beside the whole"):
        write_graphs(seen, out, "onnx")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ExportError, match=r"no vision_lm\.json there"):
        GraphModel(tmp_path)
    out.mkdir()
    with pytest.raises(ExportError, match="exists already"):
        export("mini", Settings("onnx", out))
    assert list(out.iterdir()) == []
