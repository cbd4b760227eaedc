"""The HTTP service: OpenAI's chat completions, and plain captions and questions, over the engine."""
