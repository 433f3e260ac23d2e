from __future__ import annotations

import pytest

from mlx_server.errors import AuthenticationError
from mlx_server.server.security import Cors, check_key


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer two"},
        {"authorization": "bearer   two "},
        {"x-api-key": "one"},
        {"authorization": "Bearer wrong", "x-api-key": "one"},
        {"authorization": "Bearer " + "schlüssel".encode().decode("latin-1")},
    ],
)
def test_any_of_the_keys_opens(headers: dict[str, str]) -> None:
    check_key(headers, ("one", "two", "schlüssel"))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": "Bearer on"},
        {"authorization": "Bearer onee"},
        {"authorization": "Basic one"},
        {"authorization": "one"},
        {"x-api-key": ""},
        {"x-api-key": "ÿ\u0100"},
    ],
)
def test_without_a_right_key_the_door_stays_shut(headers: dict[str, str]) -> None:
    with pytest.raises(AuthenticationError):
        check_key(headers, ("one", "two"))


def test_without_keys_everybody_may_ask() -> None:
    check_key({}, ())


ORIGIN, CREDENTIALS = "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"


@pytest.mark.parametrize("origin", [None, "https://a.example", "null"])
def test_any_origin_without_credentials_is_a_star(origin: str | None) -> None:
    assert Cors(("*",), False).headers(origin) == {ORIGIN: "*"}


def test_credentials_come_only_with_an_echoed_origin() -> None:
    cors = Cors(("*",), True)
    assert cors.headers("https://a.example") == {
        "Vary": "Origin",
        ORIGIN: "https://a.example",
        CREDENTIALS: "true",
    }
    assert cors.headers(None) == {"Vary": "Origin"}
    assert cors.headers("null") == {"Vary": "Origin"}


@pytest.mark.parametrize("credentials", [False, True])
def test_only_listed_origins_are_echoed(credentials: bool) -> None:
    cors = Cors(("https://a.example/", "http://localhost:3000"), credentials)
    assert cors.headers("https://a.example")[ORIGIN] == "https://a.example"
    assert (CREDENTIALS in cors.headers("http://localhost:3000")) is credentials
    for refused in ("https://evil.example", "https://a.example.evil", "null", None):
        assert cors.headers(refused) == {"Vary": "Origin"}


def test_a_preflight_echoes_the_headers_asked_for() -> None:
    asked = {
        "origin": "https://a",
        "access-control-request-headers": "authorization,x-thing, ,b ad",
    }
    answer = Cors(("*",), False).preflight(asked, ("GET", "POST"))
    assert answer["Access-Control-Allow-Headers"] == "authorization, x-thing"
    assert answer["Access-Control-Allow-Methods"] == "GET, POST"
    assert int(answer["Access-Control-Max-Age"]) > 0


@pytest.mark.parametrize("headers", [("*",), ("X-Thing", "authorization")])
def test_a_preflight_leaves_out_what_is_not_allowed(headers: tuple[str, ...]) -> None:
    asked = {"origin": "https://a", "access-control-request-headers": "x-thing,x-other"}
    cors = Cors(("https://a",), False, ("GET", "delete"), headers)
    answer = cors.preflight(asked, ("GET", "HEAD", "POST"))
    assert answer["Access-Control-Allow-Methods"] == "GET"
    expected = "x-thing, x-other" if headers == ("*",) else "x-thing"
    assert answer["Access-Control-Allow-Headers"] == expected


@pytest.mark.parametrize("origin", ["https://b", "null", None])
def test_a_preflight_from_elsewhere_allows_nothing(origin: str | None) -> None:
    asked = {} if origin is None else {"origin": origin}
    assert set(Cors(("https://a",), True).preflight(asked, ("GET",))) == {"Vary"}


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost", True),
        ("https://localhost:3000", True),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:1", True),
        ("http://localhost.evil.example", False),
        ("http://evil.example/localhost", False),
        ("http://127.0.0.10", False),
        ("null", False),
    ],
)
def test_localhost_stands_for_pages_of_this_machine(origin: str, allowed: bool) -> None:
    assert (ORIGIN in Cors(("localhost",), False).headers(origin)) is allowed
