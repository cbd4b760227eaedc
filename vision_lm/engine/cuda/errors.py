"""The one error of the CUDA decoder."""

from __future__ import annotations

from vision_lm.errors import VisionLMError


class CudaDecoderError(VisionLMError):
    """The CUDA decoder cannot be had here: no GPU, a failed build, a shape it is not made for.

    Its caller logs it in one line and decodes in torch.
    """
