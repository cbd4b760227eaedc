"""The page answers through Gradio's own client as the Python API does."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vision_lm.model import VisionLM

gradio = pytest.importorskip("gradio")


@pytest.mark.slow
def test_the_page_gives_the_models_answer(vlm: VisionLM, tmp_path: Path, pictures: list[Image.Image]) -> None:
    """Upload, question, streamed answer and confidence arrive unchanged; an empty question is a readable error."""
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    from demo.app import build

    pictures[0].save(tmp_path / "picture.png")
    page = build(vlm)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        client = Client(address, verbose=False)
        image = handle_file(str(tmp_path / "picture.png"))
        text, label = client.predict(image, "What colour is it?", api_name="/ask")
        expected = vlm.ask(tmp_path / "picture.png", "What colour is it?")
        assert text == expected.text
        assert label["confidences"][0]["confidence"] == pytest.approx(expected.confidence, abs=0.01)
        text, _ = client.predict(image, "short", api_name="/caption")
        assert text == vlm.caption(tmp_path / "picture.png", length="short").text
        with pytest.raises(AppError, match="question is empty"):
            client.predict(image, " ", api_name="/ask")
    finally:
        page.close()
