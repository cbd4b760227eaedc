"""The benchmark: how fast a model of some shape is on this machine, and how near to what its memory allows."""

from vision_lm.bench.report import Report
from vision_lm.bench.run import run
from vision_lm.bench.settings import Settings

__all__ = ["Report", "Settings", "run"]
