"""GET /v1/models, /v1/models/{id} and /health."""

from __future__ import annotations

import pytest
from api_fakes import FakePool, call

from mlx_server.api import DIALECTS
from mlx_server.api.admin import Admin
from mlx_server.errors import ModelLoadError, ModelNotFound, Unavailable

LOADED = {
    "id": "org/loaded",
    "object": "model",
    "created": 1700000000,
    "owned_by": "mlx_server",
    "root": "/m/loaded",
    "max_model_len": 512,
}
ADAPTER = {
    "id": "adapter",
    "object": "model",
    "created": 1700000001,
    "owned_by": "mlx_server",
    "parent": "org/loaded",
}


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_models_lists_every_card(path: str) -> None:
    reply = call(FakePool(), "GET", path)
    assert (reply.status, reply.body) == (200, {"object": "list", "data": [LOADED, ADAPTER]})


@pytest.mark.parametrize("prefix", ["/v1", ""])
def test_a_model_is_found_by_an_id_with_a_slash(prefix: str) -> None:
    route = prefix + "/models/{model:path}"
    path = prefix + "/models/org/loaded"
    reply = call(FakePool(), "GET", path, params={"model": "org/loaded"}, route=route)
    assert (reply.status, reply.body) == (200, LOADED)


def test_an_unknown_model_is_not_found() -> None:
    route = "/v1/models/{model:path}"
    with pytest.raises(ModelNotFound) as caught:
        call(FakePool(), "GET", "/v1/models/none", params={"model": "none"}, route=route)
    assert caught.value.status == 404
    assert Admin().error(caught.value)["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_health_when_ready(path: str) -> None:
    reply = call(FakePool(), "GET", path)
    assert (reply.status, reply.body) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_health_while_loading_is_llama_servers_body(path: str) -> None:
    reply = call(FakePool(not_ready=Unavailable("still loading", retry_after=1)), "GET", path)
    assert reply.status == 503
    assert reply.body == {
        "error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}
    }


def test_health_tells_of_a_failed_load() -> None:
    with pytest.raises(ModelLoadError):
        call(FakePool(not_ready=ModelLoadError("no weights")), "GET", "/health")


def test_no_two_dialects_claim_a_route() -> None:
    routes = [(route.method, route.path) for dialect in DIALECTS for route in dialect.routes]
    assert len(routes) == len(set(routes))
    # /completions without /v1 has llama-server's own bodies.
    owners = {route.path: type(d).__name__ for d in DIALECTS for route in d.routes}
    assert (owners["/completions"], owners["/v1/completions"]) == (
        "LlamaCompletion",
        "OpenAICompletions",
    )
