"""The Gradio page: `vision-lm demo`."""
