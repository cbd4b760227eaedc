"""Other projects' layouts in: what they publish, as our configs and tensors."""
