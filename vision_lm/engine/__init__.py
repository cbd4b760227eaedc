"""The generation core: prompt embeddings in, tokens with log-probabilities out."""

from vision_lm.engine.device import choose_device, choose_dtype
from vision_lm.engine.engine import Engine, Generation, Token
from vision_lm.engine.sampling import Options, Sampling
from vision_lm.engine.torch_decoder import TorchDecoder

__all__ = [
    "Engine",
    "Generation",
    "Sampling",
    "Options",
    "Token",
    "TorchDecoder",
    "choose_device",
    "choose_dtype",
]
