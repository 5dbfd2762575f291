"""The engines: OpenAI-compatible servers that hold the experts."""
