"""The bundled demo model: what the server starts with when no model is named."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """The folder with the demo model's config, weights and tokenizer."""
    return Path(__file__).parent / "model"
