from __future__ import annotations

import pytest

from mlx_server.api.base import Dialect, HttpRequest, Json, JsonReply, Pool, Route
from mlx_server.errors import MethodNotAllowed, NotFound, ServerError
from mlx_server.server.router import Router


def endpoint(http: HttpRequest, pool: Pool) -> JsonReply:
    return JsonReply({})


def dialect(*routes: str) -> Dialect:
    class Plain(Dialect):
        def error(self, error: ServerError) -> Json:
            return {"error": error.message}

    made = Plain()
    made.routes = tuple(Route(*route.split(), endpoint) for route in routes)
    return made


ROUTES = (
    "GET /",
    "GET /v1/models",
    "GET /v1/models/{model:path}",
    "POST /v1/models/load",
    "GET /slots/{id}",
    "POST /slots/{id}",
    "GET /slots/all",
)


@pytest.mark.parametrize(
    ("method", "path", "route", "params"),
    [
        ("GET", "/", "/", {}),
        ("GET", "/v1/models", "/v1/models", {}),
        ("GET", "/v1/models/", "/v1/models", {}),
        ("GET", "/v1//models", "/v1/models", {}),
        ("GET", "/v1/models/org%2Fname", "/v1/models/{model:path}", {"model": "org/name"}),
        ("GET", "/v1/models/org/name", "/v1/models/{model:path}", {"model": "org/name"}),
        ("GET", "/v1/models/%2Fhome%2Fm", "/v1/models/{model:path}", {"model": "/home/m"}),
        ("GET", "/v1/models//home/m", "/v1/models/{model:path}", {"model": "/home/m"}),
        ("GET", "//v1//models/org/name/", "/v1/models/{model:path}", {"model": "org/name"}),
        ("GET", "/v1/models/m%C3%BCll%20x", "/v1/models/{model:path}", {"model": "müll x"}),
        ("GET", "/slots/a%2Fb", "/slots/{id}", {"id": "a/b"}),
        ("GET", "/slots/all", "/slots/all", {}),
        ("POST", "/slots/all", "/slots/{id}", {"id": "all"}),
        ("GET", "/v1/models/load", "/v1/models/{model:path}", {"model": "load"}),
        ("POST", "/v1/models/load", "/v1/models/load", {}),
        ("HEAD", "/v1/models", "/v1/models", {}),
    ],
)  # fmt: skip
def test_a_path_finds_its_most_specific_route(
    method: str, path: str, route: str, params: dict[str, str]
) -> None:
    only = dialect(*ROUTES)
    found, matched, values = Router([only]).match(method, path)
    assert found is only
    assert (matched.path, values) == (route, params)


@pytest.mark.parametrize("path", ["/v1", "/v1/model", "/slots", "/slots/a/b", "/v1%2Fmodels"])
def test_an_unknown_path_is_not_found(path: str) -> None:
    with pytest.raises(NotFound):
        Router([dialect(*ROUTES)]).match("GET", path)


def test_a_known_path_names_the_methods_it_has() -> None:
    router = Router([dialect(*ROUTES)])
    with pytest.raises(MethodNotAllowed) as caught:
        router.match("DELETE", "/slots/7")
    assert caught.value.allow == ("GET", "HEAD", "OPTIONS", "POST")
    assert router.allowed("/nowhere") == ()


def test_the_dialect_of_the_route_is_found() -> None:
    one, two = dialect("GET /a"), dialect("POST /a", "GET /b")
    router = Router([one, two])
    assert router.match("GET", "/a")[0] is one
    assert router.match("POST", "/a")[0] is two
    assert router.match("GET", "/b")[0] is two


@pytest.mark.parametrize("other", ["GET /x/{name}", "GET /x/{id}/"])
def test_two_dialects_cannot_claim_one_route(other: str) -> None:
    with pytest.raises(ValueError, match="claimed by both"):
        Router([dialect("GET /x/{id}"), dialect(other)])


def test_only_the_last_placeholder_takes_the_rest() -> None:
    with pytest.raises(ValueError, match="last placeholder"):
        Router([dialect("GET /{model:path}/info")])
