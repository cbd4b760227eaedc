"""A model whose engine computes in a process of its own.

The process that asks needs a checkpoint's config and tokenizer alone; the weights are read where they are used.
"""

from __future__ import annotations

from collections.abc import Callable

from vision_lm.answerer import Answerer, grammars
from vision_lm.checkpoint import checkpoint_folder, read_config_and_tokenizer
from vision_lm.engine.remote import RemoteEngine
from vision_lm.prompts import PromptBuilder
from vision_lm.server.engine_process import EngineProcess


class ApartModel(Answerer):
    """All that can be asked of a checkpoint, of the process that loads it."""

    def __init__(self, process: EngineProcess, gone: Callable[[], None] = lambda: None) -> None:
        """Wait until it is loaded. Raises CheckpointError and whatever else `vision_lm.load` raises.

        `gone` is called, in a thread, when the process ends although nobody closed it.
        """
        ready = process.ready()
        config, tokenizer = read_config_and_tokenizer(checkpoint_folder(process.order.source))
        self.device = ready.device
        engine = RemoteEngine(
            process.to_engine,
            process.from_engine,
            ready.room,
            ready.counts,
            grammars(config, tokenizer),
            process.pid,
            lambda: None if process.closing else gone(),
        )
        super().__init__(config, PromptBuilder(tokenizer, config.prompt, ready.tokens_per_image), engine)
