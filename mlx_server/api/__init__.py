"""The wire formats. A dialect is one file here and one line in `APIS`."""

from __future__ import annotations

from mlx_server.api.admin import Admin
from mlx_server.api.base import Dialect
from mlx_server.api.docs import Docs
from mlx_server.api.embeddings import LlamaEmbedding, OpenAIEmbeddings
from mlx_server.api.engine import EngineFigures
from mlx_server.api.llama_completion import LlamaCompletion
from mlx_server.api.llama_props import LlamaProps
from mlx_server.api.llama_slots import LlamaSlots
from mlx_server.api.llama_text import LlamaText
from mlx_server.api.mlc import Mlc
from mlx_server.api.openai_chat import OpenAIChat
from mlx_server.api.openai_completions import OpenAICompletions
from mlx_server.api.rerank import Rerank

APIS: tuple[Dialect, ...] = (
    OpenAIChat(),
    OpenAICompletions(),
    OpenAIEmbeddings(),
    LlamaCompletion(),
    LlamaText(),
    LlamaEmbedding(),
    Rerank(),
    LlamaSlots(),
    LlamaProps(),
    Mlc(),
    Admin(),
    EngineFigures(),
)

DIALECTS: tuple[Dialect, ...] = (*APIS, Docs(APIS))
"""Every dialect that is served; the first one's error form is the server's own."""
