"""VisionLM: pictures and a question in, an answer out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_lm.answerer import Answerer, grammars
from vision_lm.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vision_lm.encoder import ImageEncoder, feature_width
from vision_lm.engine import (
    Engine,
    Mode,
    choose_device,
    choose_dtype,
    make_decoder,
    tower_dtype,
)
from vision_lm.folding import fold
from vision_lm.images import ImageSource
from vision_lm.model_card import ModelCard, write_card
from vision_lm.model_files import CARD
from vision_lm.pictures import PictureEncoder
from vision_lm.prompts import PromptBuilder
from vision_lm.skeleton import build_on_meta


class VisionLM(Answerer):
    """A vision-language model in this process: its weights, and everything that can be asked of it."""

    engine: Engine

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "auto",
        dtype: str = "auto",
        quantize: Mode = None,
        *,
        cache_tokens: int | None = None,
        allow_url_hosts: Collection[str] = (),
    ) -> None:
        """`device`: auto, cpu, cuda, cuda:1, ...; `dtype`: auto, float32, bfloat16 or float16.

        `quantize`: int8 or int4 keeps the language model's weights in so few bits.

        `cache_tokens`: size of the key-value cache in tokens, shared by running requests and kept prefixes; None: chosen
        by device, see docs/engine.md. Raises RequestError for less than 1.

        `allow_url_hosts`: the hosts from which pictures given as http(s) URLs are fetched; see `vision_lm.fetch`.
        """
        self.checkpoint, config = checkpoint, checkpoint.config
        self.device = choose_device(device)
        parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
        self.dtype = choose_dtype(dtype, config.dtype, parameters, self.device)
        picture_dtype = tower_dtype(dtype, self.dtype, self.device)
        encoder, projector = build_on_meta(config)
        tokens_per_image = feature_width(encoder)[0] + config.pooled_tokens
        if any(name not in encoder.state_dict() for name, _ in encoder.named_buffers()):
            encoder = ImageEncoder(config.vision)  # it has buffers that only its constructor can compute
        self.encoder = self._filled(encoder, "encoder.", picture_dtype)
        fold(self.encoder)
        self.projector = self._filled(projector, "projector.", picture_dtype)
        prompts = PromptBuilder(checkpoint.tokenizer, config.prompt, tokens_per_image)
        engine = Engine(
            make_decoder(config.text, self._tensors("phi."), self.device, self.dtype, quantize),
            PictureEncoder(self.encoder, self.projector),
            config.prompt.image_token_id,
            grammars=grammars(config, checkpoint.tokenizer),
            decode=prompts.decode,
            cache_tokens=cache_tokens,
        )
        super().__init__(config, prompts, engine, allow_url_hosts=allow_url_hosts)

    def _tensors(self, prefix: str) -> dict[str, Tensor]:
        found = self.checkpoint.tensors.items()
        return {name.removeprefix(prefix): tensor for name, tensor in found if name.startswith(prefix)}

    def _filled(self, module: Any, prefix: str, dtype: torch.dtype) -> Any:
        module.load_state_dict(self._tensors(prefix), assign=True)
        return module.to(self.device, dtype).eval().requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        device: str = "auto",
        dtype: str = "auto",
        quantize: Mode = None,
        *,
        revision: str | None = None,
        cache_tokens: int | None = None,
        allow_url_hosts: Collection[str] = (),
    ) -> VisionLM:
        """From an embedded name ("mini"), a folder, or a hub id ("owner/name"). Raises CheckpointError.

        `revision`: a branch, a tag or a commit of the hub's repository; "owner/name@revision" says the same.
        """
        if revision is not None:
            source = f"{os.fspath(source)}@{revision}"
        return cls(
            read_checkpoint(source),
            device,
            dtype,
            quantize,
            cache_tokens=cache_tokens,
            allow_url_hosts=allow_url_hosts,
        )

    def save_pretrained(self, folder: str | os.PathLike[str], card: ModelCard | None = None) -> None:
        """Write the checkpoint that this model was made from, in its own dtype, and a model card.

        A card that is there already is left as it is, unless a new one is given.
        """
        write_checkpoint(folder, self.config, self.checkpoint.tensors, self.checkpoint.tokenizer)
        path = Path(folder) / CARD
        if card is not None or not path.exists():
            path.write_text(write_card(self.checkpoint, card or ModelCard()), encoding="utf-8")

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, card: ModelCard | None = None
    ) -> str:
        """Upload the checkpoint to the Hugging Face hub, to a new repository if need be; returns its URL.

        A model card that is there already is left as it is, unless a new one is given.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, card)
            kept = [CARD] if card is None and api.file_exists(repo_id, CARD) else None
            api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=kept)
        return address

    def encode_images(self, images: Sequence[ImageSource]) -> list[Tensor]:
        """The image tokens (M, Dt) of each picture, as the language model sees them. Raises ImageError."""
        pictures = self._pictures()
        return self.engine.images.get([pictures.open(image) for image in images])
