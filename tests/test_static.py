"""Static files: what is served of a folder, and above all what is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from test_http import Client, Running, serving

from mlx_server.config import Config
from mlx_server.flags import read_command
from mlx_server.server.http import HttpServer
from mlx_server.server.static import BUILT_IN, PIECE
from mlx_server.server.tls import SetupError

SECRET = "nobody may read this"
BIG = os.urandom(3 * PIECE + 17)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text(SECRET)
    (outside / "index.html").write_text(SECRET)
    folder = outside / "pages"
    folder.mkdir()
    (folder / "index.html").write_text("<p>große Seite</p>", "utf-8")
    (folder / "app.js").write_text("export default 1")
    (folder / "mit Leer+zeichen ü.txt").write_text("da")
    (folder / "data.bin").write_bytes(BIG)
    (folder / "empty.css").write_bytes(b"")
    (folder / "health").write_text("a route has this path")
    (folder / ".env").write_text(SECRET)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text(SECRET)
    (folder / ".well-known").mkdir()
    (folder / ".well-known" / "x.txt").write_text("known")
    for name in ("sub", "bare", "leading out"):
        (folder / name).mkdir()
    (folder / "sub" / "index.html").write_text("sub")
    (folder / "leading out" / "index.html").symlink_to(outside / "index.html")
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "outside").symlink_to(outside)
    (folder / "inside.js").symlink_to(folder / "app.js")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    (folder / "locked.txt").write_text(SECRET)
    (folder / "locked.txt").chmod(0)
    return folder


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    with serving(path=str(folder), api_key=("key",)) as running:
        yield running


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    client = Client(running.server.port)
    yield client
    client.close()


def get(client: Client, path: str, method: str = "GET", *headers: str):
    lines = "\r\n".join([f"{method} {path} HTTP/1.1", *headers, "", ""])
    client.send(lines.encode("latin-1"))
    return client.answer(has_body=method != "HEAD")


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/", "text/html; charset=utf-8", "<p>große Seite</p>".encode()),
        ("/?key=1", "text/html; charset=utf-8", "<p>große Seite</p>".encode()),
        ("/index.html", "text/html; charset=utf-8", "<p>große Seite</p>".encode()),
        ("/app.js", "text/javascript; charset=utf-8", b"export default 1"),
        ("//app.js", "text/javascript; charset=utf-8", b"export default 1"),
        ("/%61pp.js?v=2", "text/javascript; charset=utf-8", b"export default 1"),
        ("http://host/app.js", "text/javascript; charset=utf-8", b"export default 1"),
        ("/inside.js", "text/javascript; charset=utf-8", b"export default 1"),
        ("/" + quote("mit Leer+zeichen ü.txt"), "text/plain; charset=utf-8", b"da"),
        ("/data.bin", "application/octet-stream", BIG),
        ("/empty.css", "text/css; charset=utf-8", b""),
        ("/sub/", "text/html; charset=utf-8", b"sub"),
        ("/sub/index.html", "text/html; charset=utf-8", b"sub"),
        ("/.well-known/x.txt", "text/plain; charset=utf-8", b"known"),
    ],
)
def test_files_are_served_without_a_key(
    client: Client, path: str, content_type: str, body: bytes
) -> None:
    for _ in range(2):  # the connection stays usable
        answer = get(client, path)
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["content-type"] == content_type
        assert answer.headers["content-length"] == str(len(body))
        assert answer.headers["x-content-type-options"] == "nosniff"
        head = get(client, path, "HEAD")
        assert head.headers["content-length"] == str(len(body))


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/sub/../../secret.txt",
        "/sub/../app.js",
        "/%2e%2e/secret.txt",
        "/%2E%2E%2Fsecret.txt",
        "/..%2fsecret.txt",
        "/..%5csecret.txt",
        "/%252e%252e/secret.txt",
        "/sub%2findex.html",
        "/./app.js",
        "/app.js%00.html",
        "/%00",
        "/link.txt",
        "/outside/secret.txt",
        "/outside/",
        "/leading%20out/",
        "/loop",
        "/pipe",
        "/locked.txt" if os.geteuid() else "/.env",
        "/.env",
        "/.git/config",
        "/%2egit/config",
        "/bare",
        "/bare/",
        "/app.js/",
        "/app.js/x",
        "/nowhere.html",
        "/" + "x" * 300,
        "/" + "a/" * 3000,
        "/%ff",
        "/%",
        "/~root",
        "/C:%5cwindows",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_plain_file_of_the_folder_is_not_found(client: Client, path: str) -> None:
    answer = get(client, path)
    assert answer.status in (400, 404)
    assert SECRET.encode() not in answer.body
    assert get(client, "/app.js").status == 200


def test_an_absolute_path_is_below_the_folder_too(client: Client, folder: Path) -> None:
    for path in (f"/{folder}/app.js", f"/{quote(str(folder / 'app.js'), safe='')}"):
        assert get(client, path).status == 404


@pytest.mark.parametrize(("path", "to"), [("/sub", "/sub/"), ("//sub", "/sub/")])
def test_a_folder_without_its_slash_is_a_redirect_within(
    client: Client, path: str, to: str
) -> None:
    answer = get(client, path)
    assert (answer.status, answer.headers["location"]) == (301, to)


def test_routes_come_first_and_other_methods_go_to_them(client: Client) -> None:
    assert get(client, "/health").json() == {"status": "ok"}
    assert get(client, "/app.js", "DELETE").status == 404
    assert get(client, "/echo").status == 405
    refused = client.post("/app.js").answer()
    assert refused.status == 404


def test_a_file_that_shrinks_ends_the_connection(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "shrinks.bin"
    path.write_bytes(b"x" * (64 * 2**20))
    with serving(path=str(tmp_path)) as other:
        client = other.client().send("GET /shrinks.bin HTTP/1.1\r\n\r\n")
        head = client.head()
        os.truncate(path, 100)
        received = client.file.read()
        assert len(received) < int(head.headers["content-length"])


def test_a_file_is_of_its_size_when_it_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "grows.txt"
    path.write_bytes(b"x" * 100)
    with serving(path=str(tmp_path)) as running:
        client = running.client()
        assert get(client, "/grows.txt").body == b"x" * 100
        path.write_bytes(b"y" * 200)
        assert get(client, "/grows.txt").body == b"y" * 200


def test_a_page_that_nobody_reads_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"x" * (64 * 2**20))
    with serving(path=str(tmp_path), read_timeout=0.3) as running:
        client = running.client().send("GET /big.bin HTTP/1.1\r\n\r\n")
        assert client.head().status == 200
        while len(running.server._open):
            pass_time(running)


def pass_time(running: Running) -> None:
    with running.server._state:
        running.server._state.wait_for(lambda: not running.server._open, 10)


# ---------------------------------------------------------------- what is built in

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
PAGES = {"/": "index.html", "/engine/": "engine/index.html"}


@pytest.fixture(scope="module")
def bare() -> Iterator[Running]:
    """Nothing but what is built in, behind a key."""
    with serving(api_key=("key",)) as running:
        yield running


def built_in_files() -> list[str]:
    return sorted(p.relative_to(BUILT_IN).as_posix() for p in BUILT_IN.rglob("*") if p.is_file())


def test_completion_js_is_always_there_unless_the_folder_has_its_own(tmp_path: Path) -> None:
    built_in = (BUILT_IN / "completion.js").read_bytes()
    for settings in ({}, {"webui": False}, {"path": str(tmp_path)}):
        with serving(**settings) as running:
            answer = get(running.client(), "/completion.js")
            assert answer.body == built_in
            assert answer.headers["content-type"].startswith("text/javascript")
            for path in ("/../static.py", "/..%2fstatic.py", "/app/..%2f..%2fstatic.py"):
                assert get(running.client(), path).status == 404
    with serving(path=str(tmp_path)) as running:
        (tmp_path / "completion.js").write_text("mine")
        assert get(running.client(), "/completion.js").body == b"mine"


@pytest.mark.parametrize("path", PAGES)
def test_our_pages_are_sent_with_a_policy(bare: Running, path: str) -> None:
    answer = get(bare.client(), path)
    assert (answer.status, answer.body) == (200, (BUILT_IN / PAGES[path]).read_bytes())
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy == POLICY
    assert answer.headers["referrer-policy"] == "no-referrer"
    head = get(bare.client(), path, "HEAD")
    assert {**head.headers, "date": ""} == {**answer.headers, "date": ""}


def test_the_engines_page_has_its_slash(bare: Running) -> None:
    answer = get(bare.client(), "/engine")
    assert (answer.status, answer.headers["location"]) == (301, "/engine/")


@pytest.mark.parametrize("name", built_in_files())
def test_every_file_of_the_pages_is_served_without_a_key(bare: Running, name: str) -> None:
    answer = get(bare.client(), f"/{name}")
    assert (answer.status, answer.body) == (200, (BUILT_IN / name).read_bytes())
    assert ("content-security-policy" in answer.headers) == name.endswith(".html")
    # Script and style elements are refused by browsers where the type is another.
    kind = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
    wanted = kind.get(Path(name).suffix)
    assert wanted is None or answer.headers["content-type"] == f"{wanted}; charset=utf-8"


def test_without_webui_the_pages_are_gone(tmp_path: Path) -> None:
    with serving(webui=False) as running:
        names = [*PAGES, "/engine", *(f"/{name}" for name in built_in_files())]
        gone = {name for name in names if get(running.client(), name).status == 404}
        # "/" is the tests' own route here.
        assert set(names) - gone == {"/", "/completion.js"}
        assert get(running.client(), "/").json() == {"status": "ok"}
    (tmp_path / "index.html").write_text("mine")
    with serving(webui=False, path=str(tmp_path)) as running:
        assert get(running.client(), "/").body == b"mine"


@pytest.mark.parametrize(
    ("line", "environ", "expected"),
    [
        ("", {}, True),
        ("--no-webui", {}, False),
        ("--no-ui", {}, False),
        ("--ui", {"MLX_SERVER_WEBUI": "false"}, True),
        ("", {"MLX_SERVER_WEBUI": "off"}, False),
        ("", {"LLAMA_ARG_UI": "0"}, False),
        ("", {"LLAMA_ARG_WEBUI": "disabled"}, False),
        ("", {"LLAMA_ARG_WEBUI": "1"}, True),
    ],
)
def test_how_the_pages_are_turned_off(line: str, environ: dict[str, str], expected: bool) -> None:
    config, ignored = read_command(line.split(), environ)
    assert (config.webui, ignored) == (expected, [])


def test_the_folder_comes_first_and_gets_no_policy(client: Client, tmp_path: Path) -> None:
    answer = get(client, "/")
    assert answer.body == "<p>große Seite</p>".encode()
    assert not {"content-security-policy", "referrer-policy"} & answer.headers.keys()
    # What it lacks is there still.
    ours = get(client, "/engine/")
    assert ours.body == (BUILT_IN / "engine" / "index.html").read_bytes()
    assert "content-security-policy" in ours.headers


# ---------------------------------------------------------------- what a client has already


@pytest.mark.parametrize("path", ["/", "/app.js", "/engine/", "/completion.js"])
def test_what_a_client_has_is_not_sent_again(client: Client, path: str) -> None:
    first = get(client, path)
    tag = first.headers["etag"]
    for having in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        for method in ("GET", "HEAD"):
            again = get(client, path, method, f"If-None-Match: {having}")
            assert (again.status, again.body) == (304, b"")
            assert not {"content-length", "content-type"} & again.headers.keys()
            kept = ("etag", "cache-control", "content-security-policy")
            assert [again.headers.get(n) for n in kept] == [first.headers.get(n) for n in kept]
    other = get(client, path, "GET", 'If-None-Match: "other"')
    assert (other.status, other.body) == (200, first.body)
    assert get(client, path).status == 200  # the connection is in step


def test_what_has_changed_is_sent_again(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("one")
    with serving(path=str(tmp_path)) as running:
        client = running.client()
        tag = get(client, "/page.html").headers["etag"]
        assert get(client, "/page.html", "GET", f"If-None-Match: {tag}").status == 304
        file.write_text("two")  # as long as before
        os.utime(file, ns=(1, 1))
        answer = get(client, "/page.html", "GET", f"If-None-Match: {tag}")
        assert (answer.status, answer.body) == (200, b"two")
        assert answer.headers["etag"] != tag


def test_a_missing_file_is_no_304(client: Client) -> None:
    assert get(client, "/nowhere.html", "GET", "If-None-Match: *").status == 404


@pytest.mark.parametrize("name", ["nowhere", "file.txt"])
def test_a_folder_that_is_none_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(SetupError, match=r"--path .*no such folder"):
        HttpServer(Config(port=0, path=str(tmp_path / name)), [], None)
