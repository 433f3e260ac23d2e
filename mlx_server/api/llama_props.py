"""/props, /lora-adapters and /metrics, as in llama.cpp's HTTP server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, RootModel

from mlx_server import __version__
from mlx_server.api.base import HttpRequest, Json, JsonReply, Pool, RawReply, Route
from mlx_server.api.fields import INT32_MAX, OptionalText, integer, number, required, text
from mlx_server.api.llama import LlamaDialect
from mlx_server.api.llama_options import DEFAULTS, settings_body
from mlx_server.api.schema import validate
from mlx_server.config import Config
from mlx_server.errors import NotSupported, RequestError
from mlx_server.services import ModelProps, SystemPrompt

BUILD_INFO = f"mlx_server-{__version__}"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


# ---------------------------------------------------------------- bodies


def _as_object(value: Any) -> Any:
    """A string is the prompt alone."""
    return {"prompt": text(value)} if isinstance(value, str) else value


class SystemPromptFields(BaseModel):
    """
    Attributes:
        prompt: What every /completion prompt begins with.
        anti_prompt: What ends a reply; /props gives it as `user_name`.
        assistant_name: For clients, which write prompts with it.
    """

    prompt: OptionalText = None
    anti_prompt: OptionalText = None
    assistant_name: OptionalText = None

    def to_core(self) -> SystemPrompt:
        return SystemPrompt(self.prompt or "", self.anti_prompt or "", self.assistant_name or "")


class PropsBody(BaseModel):
    system_prompt: Annotated[
        SystemPromptFields,
        BeforeValidator(_as_object, json_schema_input_type=str | SystemPromptFields),
    ]


class AdapterScale(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: Annotated[int, required(integer(0, INT32_MAX))]
    scale: Annotated[float, required(number(-1000, 1000))] = 0.0


class AdapterScales(RootModel[list[AdapterScale]]):
    root: Annotated[list[AdapterScale], FailFast()]


# ---------------------------------------------------------------- the routes


class LlamaProps(LlamaDialect):
    def __init__(self) -> None:
        self.routes = (
            Route("GET", "/props", self.props, "The server's settings"),
            Route("POST", "/props", self.set_props, "Set the system prompt", PropsBody),
            Route("GET", "/lora-adapters", self.adapters, "The adapters and their scales"),
            Route(
                "POST",
                "/lora-adapters",
                self.set_adapters,
                "Set the adapters' scales for later requests",
                AdapterScales,
            ),
            Route("GET", "/metrics", self.metrics, "Figures in Prometheus' text format"),
        )

    def props(self, http: HttpRequest, pool: Pool) -> JsonReply:
        return JsonReply(props_body(pool.props(), pool.config, pool.system_prompt))

    def set_props(self, http: HttpRequest, pool: Pool) -> JsonReply:
        if not pool.config.props:
            raise NotSupported(
                "This server does not support changing global properties. Start it with `--props`"
            )
        given = validate(PropsBody, http.json()).system_prompt.to_core()
        pool.check_ready()  # before that, --system-prompt-file would come after it
        pool.system_prompt = given
        return JsonReply({"success": True})

    def adapters(self, http: HttpRequest, pool: Pool) -> JsonReply:
        return JsonReply(
            [
                {"id": adapter.id, "path": adapter.path, "scale": adapter.scale}
                for adapter in pool.adapters()
            ]
        )

    def set_adapters(self, http: HttpRequest, pool: Pool) -> JsonReply:
        entries = _adapter_scales(http.body)
        scales: dict[int, float] = {}
        for i, entry in enumerate(entries):
            if entry.id in scales:
                raise RequestError(
                    f"`[{i}].id` names the adapter {entry.id} again; send each once.",
                    param=f"[{i}].id",
                )
            scales[entry.id] = entry.scale
        pool.set_adapter_scales(scales)
        return JsonReply({"success": True})

    def metrics(self, http: HttpRequest, pool: Pool) -> RawReply:
        if not pool.config.metrics:
            raise NotSupported("This server does not support metrics endpoint.")
        return RawReply(pool.metrics(), METRICS_TYPE)


def _adapter_scales(body: bytes) -> list[AdapterScale]:
    """The list that /lora-adapters takes. Raises RequestError that says what is wrong."""
    try:
        value = json.loads(body)
    except RecursionError:
        raise RequestError("The body is nested too deeply.") from None
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {error}") from None
    if not isinstance(value, list):
        raise RequestError(
            'The body must be a list of adapters and scales, as in [{"id": 0, "scale": 0.5}].'
        )
    return validate(AdapterScales, value).root


def props_body(props: ModelProps, config: Config, system: SystemPrompt) -> Json:
    """The document's form and today's. `default_generation_settings` are /completion's."""
    defaults: Mapping[str, Any] = {**DEFAULTS, "n_keep": config.keep, **props.defaults}
    breakers = [text for text in config.dry_sequence_breaker if text != "none"]
    settings = settings_body(
        defaults,
        context_length=props.context_length,
        model=props.path,
        grammar=config.json_schema or config.grammar,
        dry_sequence_breakers=breakers if config.dry_sequence_breaker else None,
    )
    return {
        "assistant_name": system.assistant_name,
        "user_name": system.anti_prompt,
        "system_prompt": system.prompt,
        "default_generation_settings": {**settings, "params": settings},
        "total_slots": props.num_slots,
        "n_ctx": props.context_length,
        "model_path": props.path,
        "model_alias": props.alias,
        "chat_template": props.chat_template,
        "bos_token": props.bos_token,
        "eos_token": props.eos_token,
        "modalities": {"vision": False, "audio": False},
        "build_info": BUILD_INFO,
        "endpoint_slots": config.slots,
        "endpoint_props": config.props,
        "endpoint_metrics": config.metrics,
    }
