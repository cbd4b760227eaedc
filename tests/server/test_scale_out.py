"""Ray Serve with two local replicas, and Ray Data with two copies of the model: the answers of one process."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.patience import until
from tests.server.conftest import QUESTION, asked, refusal
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.cli import main
from vision_lm.errors import BatchError, RequestError
from vision_lm.model import VisionLM

# Not imported here: how its ports are guarded is decided at the import.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
KEY = {"Authorization": "Bearer a-key-of-tests"}


@pytest.fixture(scope="module")
def folder(vit_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "tiny"
    write_checkpoint(path, vit_checkpoint.config, vit_checkpoint.tensors, vit_checkpoint.tokenizer)
    return path


@pytest.mark.slow
def test_two_replicas_answer_as_one_process(
    folder: Path, vlm: VisionLM, png: bytes, data_url: str, tmp_path: Path
) -> None:
    """Both take part, each with the gate, limits and answers of `vision-lm serve`; SIGTERM ends it with success."""
    log = tmp_path / "log"
    command = ["vision_lm", "serve", "--ray", "--replicas", "2", "--port", "0", "--model", f"tiny={folder}"]
    environment = os.environ | {"VISION_LM_API_KEY": "a-key-of-tests"}
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    try:
        until(lambda: server.poll() is not None or 'event": "listening' in log.read_text(), 300)
        assert server.poll() is None, log.read_text()[-2000:]
        port = re.findall(r'"port": ([0-9]+)', log.read_text())[-1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            refusal(client.get("/v1/models"), 401)
            client.headers.update(KEY)
            body = {"messages": [{"role": "user", "content": asked(data_url)}]}

            def answer(_: int) -> str:
                return str(
                    client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
                )

            with ThreadPoolExecutor(8) as threads:
                answers = set(threads.map(answer, range(32)))
            assert answers == {vlm.ask(png, QUESTION).text}
            with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
                lines = [line for line in response.iter_lines() if line]
            assert lines[-1] == "data: [DONE]" and len(lines) > 2

            def both_took_part() -> bool:
                answer(0)  # one that starts late has had none of those above
                return len(set(re.findall(r"\(ServeReplica\S* pid=([0-9]+)\)", log.read_text()))) == 2

            until(both_took_part, 120)
            missing = client.post("/v1/chat/completions", json=body | {"model": "other"})
            assert "there are: tiny" in refusal(missing, 404)["message"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(90) == 0, log.read_text()[-2000:]
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def ray_data() -> Any:
    from vision_lm.server.scale_out import ray_modules

    ray, _ = ray_modules()
    ray.init("local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield ray.data
    ray.shutdown()


@pytest.mark.slow
def test_a_dataset_is_answered_by_two_copies(ray_data: Any, folder: Path, vlm: VisionLM) -> None:
    """Row by row what one process says; a picture that is none has its error, and the other columns stay."""
    from vision_lm.batch.ray_data import answer

    chance = np.random.default_rng(0)
    pictures = [Image.fromarray(chance.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(6)]
    rows: list[dict[str, Any]] = [
        {"number": n, "image": encoded(one), "thing": "cup"} for n, one in enumerate(pictures)
    ]
    rows.append({"number": 6, "image": b"no picture", "thing": "cup"})
    dataset = ray_data.from_items(rows, override_num_blocks=4)
    answered = answer(
        dataset,
        caption="short",
        checked=True,
        ask={"colour": "What colour is the {thing}?"},
        model=str(folder),
        replicas=2,
    )
    found = sorted(answered.take_all(), key=lambda row: row["number"])
    assert [row["thing"] for row in found] == ["cup"] * 7
    captions = vlm.caption(pictures, "short", checked=True)
    assert [row["caption"] for row in found[:6]] == [one.text for one in captions]
    taken_back = [row["caption_unconfirmed"] and json.loads(row["caption_unconfirmed"]) for row in found]
    assert taken_back == [*(list(one.unconfirmed) for one in captions), None]
    expected = vlm.ask(pictures, "What colour is the cup?")
    assert [row["colour"] for row in found[:6]] == [one.text for one in expected]
    assert [row["colour_confidence"] for row in found[:6]] == pytest.approx(
        [one.confidence for one in expected], abs=1e-3
    )
    assert found[6]["caption"] is None and "no picture" not in found[6]["error"] and found[6]["error"]
    assert all(row["error"] is None for row in found[:6])


@pytest.mark.slow
def test_what_a_dataset_cannot_be_asked(ray_data: Any) -> None:
    """Refused before a model is loaded, each in one line."""
    from vision_lm.batch.ray_data import answer

    dataset = ray_data.from_items([{"image": b"", "caption": ""}])
    for wrong, message in (
        ({"caption": "short", "image": "file"}, "no column 'file'; it has: image, caption"),
        ({}, "nothing is asked"),
        ({"ask": "What?"}, "give a list"),
        ({"ask": ["Is there {a}?"]}, "no column 'a'"),
        ({"caption": "short"}, "'caption' is there already"),
        ({"ask": [""]}, "empty"),
        ({"ask": ["What?"], "checked": True}, "checked is about a caption; give caption="),
    ):
        with pytest.raises((BatchError, RequestError), match=re.escape(message)):
            answer(dataset, **wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "2"], "--replicas is for replicas on Ray; add --ray"),
        (["--ray", "--replicas", "3-2"], "the least is more than the most"),
        (["--ray", "--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines, and no API key is set"),
        (["--ray", "--ray-address", "127.0.0.1:1"], "Ray at 127.0.0.1:1 does not answer"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit 2, before a replica starts."""
    try:
        status = main(["serve", "--port", "0", *arguments])
    except SystemExit as error:
        status = int(str(error.code))
    assert status == 2
    assert message in capsys.readouterr().err


def encoded(picture: Image.Image) -> bytes:

    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
