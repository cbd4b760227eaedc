"""What a visitor is told when something goes wrong."""

from __future__ import annotations

import logging

from vision_lm.errors import VisionLMError

log = logging.getLogger(__name__)


def told(error: Exception) -> str:
    """One line. What the visitor cannot put right is a fault of ours: its traceback goes to the log."""
    if isinstance(error, VisionLMError):
        return str(error)
    log.error("a request failed", exc_info=error)
    return f"the model failed ({type(error).__name__}); try again, or ask whoever opened this page to look at its log"
