"""An hf-llava export in transformers itself, as its users load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vision_lm.encoder import ImageEncoder
from vision_lm.exporters.verify import TOKENS, Reply, Sample


class TransformersLlava:
    """LlavaForConditionalGeneration and its processor, on the CPU in float32."""

    def __init__(self, folder: Path, encoder: ImageEncoder, *, restore_head_bias: bool = False) -> None:
        """`encoder` gives the pixels that both sides' logits are compared with.

        `restore_head_bias`: put back the bias that transformers drops, so that the rest can be compared.
        """
        import transformers
        from transformers import AutoProcessor, LlavaForConditionalGeneration
        from transformers.utils import logging

        self.name = f"transformers {transformers.__version__}"
        self.encoder = encoder
        level = logging.get_verbosity()
        logging.set_verbosity_error()  # it reports the bias in a table
        logging.disable_progress_bar()
        try:
            self.processor: Any = AutoProcessor.from_pretrained(folder)
            self.model: Any = LlavaForConditionalGeneration.from_pretrained(
                folder, dtype=torch.float32
            ).eval()
        finally:
            logging.set_verbosity(level)
            logging.enable_progress_bar()
        if restore_head_bias:
            from safetensors import safe_open

            self.name += " with the lm_head.bias that it drops put back"
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                bias = file.get_tensor("language_model.lm_head.bias").float()
            self.model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)

    @torch.inference_mode()
    def reply(self, sample: Sample) -> Reply:
        """What transformers says about a picture."""
        assert sample.image is not None
        content = [{"type": "image"}, {"type": "text", "text": sample.question}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = self.processor(images=sample.image, text=text, return_tensors="pt")
        pixels = self.encoder.preprocess(sample.image)[None].float()  # (1, 3, S, S)
        logits = self.model(**{**inputs, "pixel_values": pixels}).logits[0, -1]  # (V,)
        count = inputs["input_ids"].shape[1]
        made = self.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, count:].tolist()
        end = self.model.generation_config.eos_token_id
        stopped = end in made
        tokens = made[: made.index(end)] if stopped else made
        return Reply(inputs["input_ids"][0].tolist(), logits, tokens, stopped)

    def pixels(self, image: Image.Image) -> Tensor:
        """(3, S, S)"""
        pixels: Tensor = self.processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels
