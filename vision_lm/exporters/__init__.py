"""Checkpoints in the layouts of other engines, each checked in the engine itself where it is installed."""
