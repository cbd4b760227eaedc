"""The generation core: prompts in, tokens with log-probabilities out."""

from vision_lm.engine.decoders import make_decoder
from vision_lm.engine.device import choose_device, choose_dtype, tower_dtype
from vision_lm.engine.engine import Engine
from vision_lm.engine.face import AnyEngine
from vision_lm.engine.grammar import Grammars
from vision_lm.engine.quantize import Mode
from vision_lm.engine.request import Generation, Prompt
from vision_lm.engine.sampling import Options, Sampling, Token
from vision_lm.engine.scheduler import Limits
from vision_lm.engine.ticket import Ticket
from vision_lm.engine.torch_decoder import TorchDecoder

__all__ = [
    "AnyEngine",
    "Engine",
    "Generation",
    "Grammars",
    "Limits",
    "Mode",
    "Options",
    "Prompt",
    "Sampling",
    "Ticket",
    "Token",
    "TorchDecoder",
    "choose_device",
    "choose_dtype",
    "make_decoder",
    "tower_dtype",
]
