"""The wire formats. A dialect is one file here and one line in `DIALECTS`."""

from __future__ import annotations

from mlx_server.api.admin import Admin
from mlx_server.api.base import Dialect
from mlx_server.api.openai_chat import OpenAIChat
from mlx_server.api.openai_completions import OpenAICompletions

DIALECTS: tuple[Dialect, ...] = (OpenAIChat(), OpenAICompletions(), Admin())
"""Every dialect that is served; the first one's error form is the server's own."""
