"""The files of a model that its tokenizer and its chat template are read from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mlx_server.errors import ModelLoadError
from mlx_server.gguf import is_gguf
from mlx_server.text.gguf_tokenizer import load_gguf

_VOCABULARY_FILES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")


def load_hf(path: Path, trust_remote_code: bool) -> Any:
    """The tokenizer of a model's folder or .gguf file, as transformers has it.

    Raises:
        ModelLoadError: Says in one line what is missing or wrong.
    """
    from transformers import AutoTokenizer

    if is_gguf(path):
        return load_gguf(path)
    if not trust_remote_code and not any(
        found for pattern in _VOCABULARY_FILES for found in path.glob(pattern)
    ):
        raise ModelLoadError(
            f"{path} has no tokenizer (no tokenizer.json, tokenizer.model or vocabulary): "
            "copy the tokenizer's files there."
        )
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    # tokenizers raises a bare Exception for a file that it cannot read.
    except Exception as error:
        reason = " ".join(str(error).split())
        if not trust_remote_code and "trust_remote_code" in reason:
            raise ModelLoadError(
                f"The tokenizer in {path} brings its own code; start with --trust-remote-code "
                "if you trust it."
            ) from None
        raise ModelLoadError(
            f"The tokenizer in {path} cannot be loaded: its files are damaged, incomplete or of "
            f"an unknown kind; download them again ({reason[:200]})."
        ) from None


def read_template(given: str) -> str:
    """The template in a file, or `given` itself if it is one.

    Raises:
        ModelLoadError: The file cannot be read.
    """
    if "{{" in given or "{%" in given:
        return given
    try:
        return Path(os.path.expanduser(given)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(
            f"--chat-template {given}: {getattr(error, 'strerror', None) or error}; "
            "give a readable file or the template itself."
        ) from None


def own_template(hf: Any, path: Path) -> str | None:
    """The chat template that came with the model; None: it has none.

    Raises:
        ModelLoadError: chat_template.json is damaged.
    """
    template = hf.chat_template
    if template is None and (path / "chat_template.json").is_file():
        try:
            template = json.loads((path / "chat_template.json").read_text(encoding="utf-8"))
            template = template["chat_template"]
        except (ValueError, KeyError, TypeError):
            raise ModelLoadError(
                f"{path / 'chat_template.json'} is damaged: download it again or give another "
                "with --chat-template."
            ) from None
    if isinstance(template, dict):  # several, by name
        template = template.get("default") or next(iter(template.values()), None)
    return template
