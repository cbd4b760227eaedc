"""An export of graphs as the verification asks it: one prompt at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vision_lm.exporters.graph_model import GraphModel
from vision_lm.exporters.verify import TOKENS, Reply, Sample


class GraphRuntime:
    """onnxruntime or openvino with the folder's graphs, on the CPU in float32."""

    def __init__(self, folder: Path) -> None:
        """Raises ExportError where the runtime is not installed."""
        self.model = GraphModel(folder)
        self.name = self.model.runtime

    def reply(self, sample: Sample) -> Reply:
        """What the graphs say about a picture."""
        assert sample.image is not None
        (said,) = self.model.answer([sample.image], [sample.question], TOKENS)
        logits = torch.from_numpy(said.logits.copy())
        return Reply(said.prompt, logits, said.tokens, said.finish_reason == "stop")

    def pixels(self, image: Image.Image) -> Tensor:
        """(3, S, S)"""
        return torch.from_numpy(self.model.pixels(image))
