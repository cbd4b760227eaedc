"""An engine in a process of its own: the same answers, the same refusals, and an end that is noticed on both sides."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.patience import until
from tests.server.conftest import QUESTION
from vision_lm.async_model import AsyncAnswer
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.engine import Prompt, Sampling
from vision_lm.engine.album import Album, Known
from vision_lm.errors import CheckpointError, EngineGoneError, RequestError, VisionLMError
from vision_lm.model import VisionLM
from vision_lm.pictures import FittedPicture
from vision_lm.prompts import Turn
from vision_lm.server.apart import ApartModel
from vision_lm.server.engine_process import EngineProcess, Order

ENDLESS = Sampling(1900, temperature=2.0, seed=1)  # greedy, it would soon repeat itself


@pytest.fixture(scope="module")
def folder(vit_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for long answers, of which none ends by itself."""
    bias = vit_checkpoint.tensors["phi.lm_head.bias"].clone()
    bias[vit_checkpoint.config.prompt.eos_token_id] = -1e4
    text = dataclasses.replace(vit_checkpoint.config.text, max_position_embeddings=2048)
    config = dataclasses.replace(vit_checkpoint.config, text=text)
    path = tmp_path_factory.mktemp("apart") / "tiny"
    write_checkpoint(
        path, config, vit_checkpoint.tensors | {"phi.lm_head.bias": bias}, vit_checkpoint.tokenizer
    )
    return path


@pytest.fixture(scope="module")
def here(folder: Path) -> VisionLM:
    return VisionLM.from_pretrained(folder, "cpu")


@pytest.fixture(scope="module")
def there(folder: Path) -> Iterator[ApartModel]:
    process = EngineProcess(Order(str(folder), "cpu"))
    yield ApartModel(process)
    process.close()


def test_the_answers_are_the_same(here: VisionLM, there: ApartModel, pictures: list[Image.Image]) -> None:
    """Whole and in pieces, alone and many, greedy and drawn, in a form, with alternatives, checked and explained."""
    asked = [(picture, f"{QUESTION} {number}") for number, picture in enumerate(pictures * 2)]
    for options in (
        {},
        {"temperature": 1.0, "seed": 3},
        {"choices": ["red", "two cats"]},
        {"top_logprobs": 2},
    ):
        images, questions = [list(one) for one in zip(*asked, strict=True)]
        assert there.ask(images, questions, **options) == here.ask(images, questions, **options)  # type: ignore[call-overload]
    assert there.caption(pictures[0], checked=True) == here.caption(pictures[0], checked=True)
    assert there.caption(pictures[0], support=True) == here.caption(pictures[0], support=True)
    stream = there.stream(pictures[0], QUESTION, stop="zz")
    assert "".join(stream) == here.ask(pictures[0], QUESTION).text
    maps = [model.explain(pictures[1], QUESTION, answer="red", grid=2).map for model in (here, there)]
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-6)
    assert there.engine.counts().running == 0


def test_asyncio_readers_get_it_too(here: VisionLM, there: ApartModel) -> None:
    """Many at once in one event loop."""
    task = there.task(16, {})

    async def ask(number: int) -> str:
        answer = AsyncAnswer(there.submit([Turn(f"{QUESTION} {number}")], task, there._pictures()))
        return "".join([piece.text async for piece in answer.pieces()])

    async def ask_all() -> list[str]:
        return await asyncio.gather(*map(ask, range(20)))

    assert asyncio.run(ask_all()) == [
        here.ask(None, f"{QUESTION} {number}", max_tokens=16).text for number in range(20)
    ]


def test_refusals_come_before_anything_is_sent(there: ApartModel) -> None:
    """By the caller's own process, with the words that an engine beside it would have used."""
    before = there.engine.counts()
    with pytest.raises(RequestError, match="leave room for"):
        there.ask(None, QUESTION, max_tokens=5000)
    with pytest.raises(RequestError, match="regex is"):
        there.ask(None, QUESTION, regex="(")
    with pytest.raises(RequestError, match="the prompt is empty"):
        there.engine.submit(Prompt([]), Sampling(1))
    assert there.engine.counts() == before


def test_a_failure_in_the_middle_is_its_own_requests(there: ApartModel) -> None:
    """What the engine's process raises arrives as the same error; the next request is answered."""
    broken = FittedPicture(np.zeros((5, 5, 3), np.uint8), b"of another size")
    prompt = there.prompts.build([Turn(QUESTION, (Image.new("RGB", (8, 8)),))])
    with pytest.raises(Exception, match=r"size|shape|position"):
        there.engine.submit(Prompt(prompt.ids, [broken]), Sampling(4)).result()
    assert there.ask(None, QUESTION, max_tokens=4).text


@pytest.mark.parametrize("how", ["cancelled", "forgotten"])
def test_what_nobody_waits_for_is_stopped(there: ApartModel, how: str) -> None:
    """Its pages are free soon after, and far fewer tokens were computed than it might have had."""
    before = there.engine.counts().generated_tokens
    ticket = there.engine.submit(Prompt(there.prompts.build([Turn(QUESTION)]).ids), ENDLESS)
    arrived = ticket.mailbox.tokens
    until(lambda: arrived)
    if how == "cancelled":
        ticket.cancel()
    del ticket
    until(lambda: there.engine.counts().running == 0)
    assert there.engine.counts().pages_used == 0
    assert there.engine.counts().generated_tokens - before < 1900


def test_the_cache_is_as_large_as_the_order_says(folder: Path) -> None:
    """`vision-lm serve --cache-tokens`."""
    process = EngineProcess(Order(str(folder), "cpu", cache_tokens=160))
    assert process.ready().room.cache_tokens == 160
    process.close()


def test_quantised_weights_are_those_of_the_process(folder: Path) -> None:
    """`vision-lm serve --quantize`: the process loads what `vision_lm.load(quantize=...)` loads, and says as much."""
    process = EngineProcess(Order(str(folder), "cpu", "int8"))
    model = ApartModel(process)
    options = {"max_tokens": 8, "top_logprobs": 4}
    logprobs = {}
    for name, one in (
        ("apart", model),
        ("int8", VisionLM.from_pretrained(folder, "cpu", quantize="int8")),
        ("whole", VisionLM.from_pretrained(folder, "cpu")),
    ):
        logprobs[name] = one.ask(None, QUESTION, **options).token_logprobs
    process.close()
    assert logprobs["apart"] == pytest.approx(logprobs["int8"], abs=1e-5)
    assert logprobs["apart"] != pytest.approx(logprobs["whole"], abs=1e-5)


def test_a_damaged_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    """What `load` says, with its class; of a process that dies while it loads, that it did."""
    processes = [
        EngineProcess(Order(str(tmp_path / "nowhere"), "cpu")),
        EngineProcess(Order(str(folder), "quantum")),
    ]
    killed = EngineProcess(Order(str(folder), "cpu"))
    os.kill(killed.pid, signal.SIGKILL)
    with pytest.raises(CheckpointError, match="nowhere"):
        processes[0].ready()
    with pytest.raises(VisionLMError, match="quantum"):
        processes[1].ready()
    with pytest.raises(VisionLMError, match=r"status -9 while it loaded .*tiny"):
        killed.ready()
    for process in (*processes, killed):
        process.close()


def test_when_the_process_dies_nobody_waits_for_ever(folder: Path) -> None:
    """What ran ends with an error, and so does what comes later; the owner is told."""
    told = threading.Event()
    process = EngineProcess(Order(str(folder), "cpu"))
    model = ApartModel(process, told.set)
    ticket = model.engine.submit(Prompt([1, 2, 3]), ENDLESS)
    until(lambda: ticket.mailbox.tokens)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineGoneError, match="start the service again"):
        ticket.result()
    assert told.wait(10)
    with pytest.raises(EngineGoneError):
        model.ask(None, QUESTION)
    process.close()


def test_it_ends_with_the_process_that_started_it(folder: Path) -> None:
    """Killed, so that nothing of its own could end it; and signals for both are the other one's business."""
    program = (
        "import sys, time; from vision_lm.server.engine_process import EngineProcess, Order\n"
        "process = EngineProcess(Order(sys.argv[1], 'cpu')); process.ready()\n"
        "print(process.pid, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    engine = int(owner.stdout.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(engine, number)
    time.sleep(0.5)
    os.kill(engine, 0)  # still there
    owner.kill()
    owner.wait()
    until(lambda: ended(engine))


def ended(process: int) -> bool:
    """Gone, or a zombie that nobody has asked about yet."""
    try:
        return "Z" in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_both_albums_keep_the_same_pictures() -> None:
    """Random prompts about fewer pictures than fit, and more: the other end always has what is not sent again."""
    chance = np.random.default_rng(0)
    drawn = [FittedPicture(np.full((size, 10, 3), size, np.uint8), bytes([size])) for size in range(1, 40)]
    ours, theirs = Album(budget=6_000), Album(budget=6_000)
    sent = 0
    for _ in range(3_000):
        images = [drawn[place] for place in chance.integers(0, 39 if chance.random() < 0.5 else 5, 3)]
        packed = ours.packed(Prompt([1], images))
        sent += sum(not isinstance(one, Known) for one in packed.images)
        assert theirs.unpacked(packed).images == images
    assert 39 < sent < 7_000
