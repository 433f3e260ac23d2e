"""An OpenAI-compatible server for language models on MLX."""

__version__ = "0.1.0"
