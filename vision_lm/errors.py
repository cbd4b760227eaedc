"""The one family of errors. Every message is one line: what was given, what is allowed, what to do."""

from __future__ import annotations


class VisionLMError(Exception):
    """Anything the caller can put right. The command line prints it in one line and exits 2."""


class ImageError(VisionLMError):
    """A picture that cannot be opened, or that is over a limit."""


class UnsupportedImageError(ImageError):
    """Data that is no picture, or a picture of a kind that is not read."""


class ImageTooLargeError(ImageError):
    """A picture of more bytes or pixels than allowed."""


class RequestError(VisionLMError):
    """A question, prompt or sampling setting that cannot be answered."""


class EngineGoneError(VisionLMError):
    """A request whose engine, in a process of its own, has ended."""

    def __init__(self, message: str = "the engine's process has ended; start the service again") -> None:
        super().__init__(message)


class CheckpointError(VisionLMError):
    """A checkpoint that is missing, damaged, or does not fit its config."""


class DataError(VisionLMError):
    """A training or evaluation file with a bad line; the message names the file and the line."""


class TrainingError(VisionLMError):
    """A recipe or a resumed run that cannot go on as asked."""


class BatchError(VisionLMError):
    """Inputs, settings or an output file with which a batch run cannot begin or go on."""


class EvaluationError(VisionLMError):
    """A task's files, predictions or settings with which an evaluation cannot begin or be scored."""


class ExportError(VisionLMError):
    """A checkpoint that another engine cannot carry unchanged, or a folder that an export cannot be written to."""
