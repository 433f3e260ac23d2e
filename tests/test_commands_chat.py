"""`mlx_server chat` against the real server, and against one that goes wrong."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from canned import DONE, Answer, Canned, chunk, serving, text
from hypothesis import given
from hypothesis import strategies as st
from typed import Typed

from mlx_server import commands
from mlx_server.commands import chat
from mlx_server.commands.client import Address
from mlx_server.commands.conversation import SETTINGS, Conversation, Reply
from mlx_server.commands.failures import ChatError
from mlx_server.commands.slash import COMMANDS
from mlx_server.commands.sse import Event, EventReader
from mlx_server.commands.terminal import printable
from mlx_server.flags import COMMANDS as WORDS
from mlx_server.server.http import HttpServer


@pytest.fixture(scope="module")
def server(serve: Callable[..., HttpServer]) -> HttpServer:
    return serve()


def run(*argv: str, stdin: str | bytes = b"", **environ: str) -> subprocess.CompletedProcess[str]:
    """The command away from any terminal, in this process; its output as text."""
    given = io.BytesIO(stdin.encode() if isinstance(stdin, str) else stdin)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        for name in chat.KEY_VARIABLES:
            patch.delenv(name, raising=False)
        for name, value in environ.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stdin", io.TextIOWrapper(given))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        try:
            code = commands.dispatch(["chat", *argv])
        except SystemExit as ended:
            code = ended.code
        texts = [stream.buffer.getvalue().decode() for stream in (out, err) if not stream.flush()]
    return subprocess.CompletedProcess(argv, code, *texts)


def said(canned: Canned, *argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    return run("--url", canned.url, *argv, **options)


# ---------------------------------------------------------------- one answer, the real server


def test_streamed_and_whole_are_the_same_text(server: HttpServer) -> None:
    flags = ("--url", server.url, "--temperature", "0", "--max-tokens", "40")
    command = [sys.executable, "-m", "mlx_server", "chat", *flags, "How do I set the port?"]
    streamed = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    whole = run(*flags, "--no-stream", "How do I set the port?")
    assert (streamed.returncode, streamed.stderr, whole.returncode) == (0, "", 0)
    assert streamed.stdout == whole.stdout and len(streamed.stdout.strip()) > 10
    assert streamed.stdout.endswith("\n") and not streamed.stdout.endswith("\n\n")


def test_a_message_and_the_standard_input_are_both_sent() -> None:
    with serving(Answer(text("ok"))) as canned:
        assert said(canned, "write a", "commit message", stdin="+ a line\n").stdout == "ok\n"
        assert said(canned, stdin="only this").returncode == 0
        assert said(canned, "only this").returncode == 0
        assert said(canned, "--system", "Be brief.", "--", "-5 + 3").returncode == 0
    questions = [body["messages"] for body in canned.chats()]
    assert questions[0] == [{"role": "user", "content": "write a commit message\n\n+ a line\n"}]
    assert questions[1] == questions[2] == [{"role": "user", "content": "only this"}]
    assert [m["content"] for m in questions[3]] == ["Be brief.", "-5 + 3"]


def test_flags_reach_the_request() -> None:
    flags = ["--temp", "0.5", "--top-p", "0.9", "-n", "7", "-m", "some", "--api-key", "k"]
    with serving(Answer(text("ok"))) as canned:
        said(canned, "first", *flags, "then")  # flags may stand between the words
        said(canned, "--no-stream", "x")
    path, headers, body = canned.requests[0]
    assert path == "/v1/chat/completions" and headers["authorization"] == "Bearer k"
    assert body.pop("messages")[0]["content"] == "first then"
    assert body == {
        "model": "some", "temperature": 0.5, "top_p": 0.9, "max_tokens": 7,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert canned.chats()[1].keys() == {"messages"}
    assert "authorization" not in canned.requests[1][1]


@pytest.mark.parametrize(
    ("environ", "flags", "key"),
    [
        ({"OPENAI_API_KEY": "a"}, [], "a"),
        ({"OPENAI_API_KEY": "a", "MLX_SERVER_API_KEY": "b,c"}, [], "b"),
        ({"OPENAI_API_KEY": "a"}, ["--api-key", "d"], "d"),
        ({"OPENAI_API_KEY": ""}, [], None),
    ],
)
def test_where_the_key_comes_from(environ: dict, flags: list[str], key: str | None) -> None:
    found = chat._key(chat.parser().parse_args(flags), environ)
    assert found == key


def test_bytes_that_are_no_text_do_no_harm() -> None:
    with serving(Answer(text("ok"))) as canned:
        assert said(canned, stdin=b"a\xffb").returncode == 0
    assert canned.chats()[0]["messages"][0]["content"] == "a\ufffdb"


def test_the_pipe_gets_the_text_as_it_is() -> None:
    told = [{"reasoning_content": "hm"}, {"content": "a\x1b[31m\r\nb ü"}]
    stream = "".join(map(chunk, told)) + chunk(reason="stop") + DONE
    with serving(Answer(stream)) as canned:
        done = said(canned, "x")
    assert (done.stdout, done.stderr) == ("a\x1b[31m\r\nb ü\n", "")


def test_a_reply_that_was_cut_is_noted_beside_it() -> None:
    with serving(Answer(chunk({"content": "a"}) + chunk(reason="length") + DONE)) as canned:
        done = said(canned, "x")
    assert (done.returncode, done.stdout) == (0, "a\n") and "cut off" in done.stderr


def test_a_call_goes_beside_the_reply() -> None:
    call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": '{"a":'}}
    more = {"index": 0, "function": {"arguments": "1}"}}
    stream = chunk({"tool_calls": [call]}) + chunk({"tool_calls": [more]}, "tool_calls") + DONE
    with serving(Answer(stream)) as canned:
        done = said(canned, "x")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", '[call] f {"a":1}\n')


# ---------------------------------------------------------------- what goes wrong


CUT = "ended in the middle"


@pytest.mark.parametrize(
    ("answer", "stdout", "message"),
    [
        (Answer(chunk({"content": "a b"})), "a b\n", CUT),
        (Answer([chunk({"content": "a b"})], ends=False), "a b\n", CUT),
        (Answer([chunk({"content": "a b"})]), "a b\n", CUT),
        (Answer(chunk({"content": "a"}) + 'data: {"choi'), "a\n", "broke the reply off"),
        (Answer(chunk({"content": "a"}) + 'data: {"error": {"message": "no memory"}}\n\n'),
         "a\n", "no memory"),
        (Answer(chunk({"content": "a"}) + 'event: error\ndata: {"message": "lost"}\n\n'),
         "a\n", "lost"),
        (Answer('error: {"message": "lost"}\n\n'), "", "lost"),
        (Answer("data: [1]\n\n"), "", "broke the reply off"),
        (Answer(""), "", CUT),
        (Answer("<html><b>hello</b>", kind="text/html"), "", "text/html, which is no reply"),
        (Answer("<html>", 502, "text/html"), "", "502 Bad Gateway with text/html"),
        (Answer("", 500, ""), "", "500 Internal Server Error"),
        (Answer('{"choices": [', kind="application/json"), "", "no reply"),
        (Answer('{"error": {"message": "no such model"}}', 404, "application/json"),
         "", "no such model (HTTP 404)"),
        (Answer('{"error": "short"}', 400, "application/json"), "", "short (HTTP 400)"),
        (Answer('{"error": {"message": "late"}}', 200, "application/json"), "", "late"),
        (Answer('{"error": {"message": "Who?"}}', 401, "application/json"),
         "", "asks for a key (Who?): give it with --api-key"),
        (Answer("", 403, "text/plain"), "", "--api-key"),
        (Answer("", 308, headers=("Location: https://x/",)), "", "leads to https://x/"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_and_exit_code_1(
    answer: Answer, stdout: str, message: str
) -> None:
    with serving(answer) as canned:
        done = said(canned, "x")
    assert (done.returncode, done.stdout) == (1, stdout)
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert done.stderr.startswith("mlx_server chat: ")


def test_a_stream_that_ends_behind_its_reason_is_whole() -> None:
    with serving(Answer(chunk({"content": "a"}) + chunk(reason="stop"))) as canned:
        done = said(canned, "x")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n", "")


def test_a_key_that_is_wrong_says_so() -> None:
    with serving(Answer("", 401, "text/plain")) as canned:
        assert (
            "does not accept the key; check --api-key" in said(canned, "x", "--api-key", "k").stderr
        )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--url", "ftp://x"], "http://127.0.0.1:8080"),
        (["--url", "http://"], "http://127.0.0.1:8080"),
        (["--url", "http://h:99999"], "--url"),
        (["--url", "http://key@host"], "--api-key"),
        (["--top-p", "2"], "between 0 and 1"),
        (["--max-tokens", "0"], "at least 1"),
        (["--temperature", "warm"], "number"),
        (["--timeout", "0"], "between"),
        (["--api-key", "schlüssel"], "--api-key"),
        (["--insecure"], "--insecure is for https"),
        (["--url", "https://x", "--cacert", "/no/such"], "--cacert /no/such"),
        (["--url", "https://x", "--cacert", __file__], "PEM"),
        (["--no-such"], "--no-such"),
        ([], "nothing to ask"),
    ],
)
def test_wrong_flags_are_one_line(argv: list[str], message: str, capfd, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit) as error:
        chat.main([*argv, "x"] if argv else [])
    assert error.value.code == 2
    assert message in (err := capfd.readouterr().err) and err.count("\n") == 1


def test_no_server_says_how_to_start_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = run("--url", f"127.0.0.1:{port}", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"start one with `mlx_server --port {port}`" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "h" * 70])
def test_no_host(host: str) -> None:
    done = run("--url", host, "x")
    assert done.returncode == 1 and f"no host '{host}'; check --url" in done.stderr


def test_a_silent_server_is_given_up() -> None:
    with serving(Answer(chunk({"content": "a"}), stays=True)) as canned:
        done = said(canned, "x", "--timeout", "0.3")
    assert (done.returncode, done.stdout) == (1, "a\n") and "--timeout" in done.stderr


def test_it_waits_while_the_model_loads() -> None:
    loading = Answer('{"error": {"message": "Loading model", "code": 503}}', 503,
                     "application/json")  # fmt: skip
    ready = Answer('{"status": "ok"}', kind="application/json")
    with serving([loading, Answer(text("ok"))], health=[loading, loading, ready]) as canned:
        done = said(canned, "x")
    assert (done.returncode, done.stdout) == (0, "ok\n")
    assert done.stderr == "the model is loading, waiting …\n"


def test_it_tries_again_where_the_server_is_full() -> None:
    full = Answer('{"error": {"message": "The queue is full."}}', 503, "application/json",
                  ("Retry-After: 0",))  # fmt: skip
    ready = Answer('{"status": "ok"}', kind="application/json")
    with serving([full, full, Answer(text("ok"))], health=ready) as canned:
        done = said(canned, "x")
    assert (done.returncode, done.stdout) == (0, "ok\n")
    assert done.stderr == "the server is busy, trying again …\n" * 2
    with serving(full, health=ready) as canned:
        done = said(canned, "x")
    assert done.returncode == 1 and len(canned.chats()) == 6 and "queue is full" in done.stderr


def test_a_reader_that_has_enough_is_no_error_message() -> None:
    with serving(Answer(text(*["many words\n"] * 5000))) as canned:
        done = subprocess.run(
            f"{sys.executable} -m mlx_server chat --url {canned.url} x </dev/null | head -1",
            shell=True, capture_output=True, text=True,
        )  # fmt: skip
    assert (done.stdout, done.stderr) == ("many words\n", "")


# ---------------------------------------------------------------- https


@pytest.fixture(scope="module")
def secure(serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of a server with a certificate, and the authority that made that."""
    trustme = pytest.importorskip("trustme")
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(folder / "key.pem")
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    server = serve(
        ssl_key_file=str(folder / "key.pem"), ssl_cert_file=str(folder / "cert.pem"),
        api_key=("sesame",),
    )  # fmt: skip
    return server.url, str(folder / "ca.pem")


def test_https_and_keys(secure: tuple[str, str]) -> None:
    url, authority = secure
    trusted = run("--url", url, "--cacert", authority, "--api-key", "sesame", "-n", "4", "hello")
    assert trusted.returncode == 0 and trusted.stdout.strip()
    unchecked = run("--url", url, "--insecure", "-n", "4", "hello", MLX_SERVER_API_KEY="sesame")
    assert unchecked.returncode == 0 and unchecked.stdout.strip()
    stranger = run("--url", url, "hello")
    assert stranger.returncode == 1 and "--cacert FILE" in stranger.stderr
    assert "give it with --api-key" in run("--url", url, "--insecure", "hello").stderr
    plain = run("--url", url.replace("https", "http"), "hello")
    assert plain.returncode == 1 and plain.stderr.count("\n") == 1


def test_plain_http_is_not_https(server: HttpServer) -> None:
    done = run("--url", server.url.replace("http", "https"), "hello")
    assert done.returncode == 1 and "does not speak HTTPS" in done.stderr


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("url", "address", "shown"),
    [
        ("http://127.0.0.1:8080", Address(False, "127.0.0.1", 8080), None),
        ("localhost:9000", Address(False, "localhost", 9000), "http://localhost:9000"),
        ("http://h:1/v1", Address(False, "h", 1), "http://h:1"),
        ("https://h/a/v1/", Address(True, "h", 443, "/a"), "https://h/a"),
        ("http://[::1]:5", Address(False, "::1", 5), None),
    ],
)
def test_addresses(url: str, address: Address, shown: str | None) -> None:
    assert Address.read(url) == address
    assert address.url == (shown or url)


EVENTS = (
    ": comment\r\n\r\nevent: a\r\ndata: one\r\ndata:two\r\n\r\n"
    "data: ü\n\nid: 5\nretry: 3\n\nerror: broken\n\ndata: last"
).encode()


@given(st.lists(st.integers(0, len(EVENTS)), max_size=8))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(EVENTS)]
    reader = EventReader()
    found = []
    for start, end in itertools.pairwise(places):
        found += reader.feed(EVENTS[start:end])
    found += reader.flush()
    assert found == [
        Event("a", "one\ntwo"), Event("message", "ü"), Event("error", "broken"),
        Event("message", "last"),
    ]  # fmt: skip


def test_a_line_without_end_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("mlx_server.commands.sse.MAX_EVENT_BYTES", 100)
    reader = EventReader()
    with pytest.raises(ChatError, match="without end"):
        reader.feed(b"x" * 101)


PIECES = [{"reasoning": "a"}, {"reasoning_content": "b"}, {"content": "c"}, {"content": None},
          {"tool_calls": [{"index": 1, "id": "i", "function": {"name": "f"}}]},
          {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}]  # fmt: skip


def test_a_reply_is_the_fold_of_its_chunks() -> None:
    streamed, whole = Reply(), Reply()
    for delta in PIECES:
        streamed.add({"choices": [{"delta": delta}]})
    call = {"id": "i", "function": {"name": "f", "arguments": "{}"}}
    message = {"content": "c", "reasoning_content": "ab", "tool_calls": [call]}
    whole.add({"choices": [{"message": message, "finish_reason": "stop"}]})
    assert streamed.message() == whole.message() == {
        "role": "assistant", "content": "c\nf {}", "reasoning_content": "ab",
    }  # fmt: skip


@pytest.mark.parametrize(
    "chunk",
    [{}, {"choices": None}, {"choices": []}, {"choices": [1]}, {"choices": [{}]},
     {"choices": [{"delta": {"tool_calls": [None, {"function": 1}], "content": 5}}]},
     {"usage": 1, "timings": [], "model": None, "choices": {"a": 1}}],
)  # fmt: skip
def test_odd_chunks_bring_nothing(chunk: dict) -> None:
    reply = Reply()
    assert [piece for piece in reply.add(chunk) if piece.text] == []
    assert (reply.text, reply.usage, reply.timings) == ("", {}, {})


def test_figures() -> None:
    reply = Reply(started=10.0, first=10.25, ended=12.25)
    assert reply.figures() == "first token 0.25 s"
    reply.usage = {"prompt_tokens": 50, "completion_tokens": 21,
                   "prompt_tokens_details": {"cached_tokens": 40}}  # fmt: skip
    assert reply.figures() == "21 tokens, prompt 50 (40 cached), first token 0.25 s, 10.0 tok/s"
    reply.timings = {"predicted_per_second": 33.33}
    assert reply.figures(stream=False) == "21 tokens, prompt 50 (40 cached), 2.25 s, 33.3 tok/s"


def test_a_model_does_not_steer_the_terminal() -> None:
    steering = "a\x1b]52;c;eA==\x07b\x9b2J\x7f\r\n\tü"
    assert printable(steering) == "a␛]52;c;eA==␇b\ufffd2J␡\n\tü"


def test_a_conversation_is_saved_and_restored() -> None:
    one = Conversation("m", "s", [{"role": "user", "content": "x"}], {"top_p": 0.5})
    two = Conversation("other")
    two.restore(json.loads(json.dumps(one.saved())))
    assert two == one


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([], "no conversation"),
        ({"messages": [{"role": "cat", "content": "x"}]}, r"messages\[0\] has no role"),
        ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\] has no text"),
        ({"messages": [], "system": 1}, "system"),
        ({"messages": [], "settings": {"heat": 1}}, "temperature"),
    ],
)
def test_what_was_not_saved_here_is_refused(saved: object, message: str) -> None:
    conversation = Conversation(messages=[{"role": "user", "content": "kept"}])
    with pytest.raises(ValueError, match=message):
        conversation.restore(saved)
    assert conversation.messages[0]["content"] == "kept"


def test_every_setting_is_a_field_of_the_server(server: HttpServer) -> None:
    values = {"stop": '["x"]', "reasoning_effort": "low", "max_tokens": "2", "top_p": "0.5",
              "min_p": "0.5"}  # fmt: skip
    settings = {name: read(values.get(name, "1")) for name, read in SETTINGS.items()}
    conversation = Conversation(None, None, [{"role": "user", "content": "hi"}], settings)
    client = chat.Client(Address.read(server.url))
    chunks = list(client.chat(conversation.body(), pytest.fail))
    assert chunks[-1]["usage"]["completion_tokens"] <= 2


def test_help_names_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlx_server", "--help"], capture_output=True, text=True
    )
    assert all(f"mlx_server {word}" in done.stdout for word in ("chat", "list"))
    assert "[serve]" in done.stdout and set(WORDS) == {"serve", "chat", "list"}
    assert len(run("--help").stdout.splitlines()) < 40


def test_it_needs_nothing_heavy() -> None:
    code = (
        "import sys, mlx_server.cli, mlx_server.commands.chat; "
        "heavy = {'mlx', 'numpy', 'huggingface_hub', 'shtab', 'pydantic'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- on a terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Typed]]:
    with contextlib.ExitStack() as stack:

        def start(url: str, *argv: str, **environ: str) -> Typed:
            found = Typed("mlx_server", "chat", "--url", url, *argv, home=tmp_path, **environ)
            stack.callback(found.close)
            return found

        yield start


def test_a_conversation(server: HttpServer, terminal) -> None:
    talk = terminal(server.url, "--temp", "0", "--max-tokens", "20")
    assert "demo at http://127.0.0.1" in talk.expect("> ")
    first = talk.ask("hello there")
    assert "tokens, prompt " in first and "first token" in first and "tok/s" in first
    assert "1 reply, " in talk.ask("/stats")
    assert " cached)" in talk.ask("and again")
    assert "2 replies, " in talk.ask("/stats")
    talk.ask("/clear")
    assert "tokens at the last reply" in talk.ask("/stats")  # and not that it is full now
    talk.type("\x04")
    assert talk.wait() == 0


def test_commands(terminal, tmp_path: Path) -> None:
    answers = [Answer(text(f"answer {i}")) for i in range(6)]
    file = tmp_path / "saved.json"
    with serving(answers) as canned:
        talk = terminal(canned.url, NO_COLOR="1")
        talk.expect("> ")
        assert all(command.name in (shown := talk.ask("/help")) for command in COMMANDS), shown
        assert "answer 0" in talk.ask("one")
        assert "answer 1" in talk.ask("/retry")
        assert "answer 2" in talk.ask("two")
        assert talk.ask("/undo") == "taken back: two"
        assert talk.ask("/system Be brief.") == "system: Be brief."
        assert talk.ask("/set temperature 0.5") == "temperature 0.5"
        assert talk.ask("/set stop a b") == 'stop ["a b"]'
        assert "between 0 and 1" in talk.ask("/set top_p 7")
        assert "there are temperature" in talk.ask("/set heat 7")
        assert "no command /nothing" in talk.ask("/nothing")
        assert talk.ask("/models") == "* canned"
        assert "does not list" in talk.ask("/model other")
        assert "2 messages" in talk.ask(f"/save {file}")
        assert "answer 3" in talk.ask("three")
        assert talk.ask("/clear") == "The conversation begins anew."
        assert "2 messages" in talk.ask(f"/load {file}")
        assert "answer 4" in talk.ask("four")
        assert "no saved conversation" in talk.ask(f"/save {__file__}")
        assert "cannot be read" in talk.ask("/load /no/such")
        assert "Give a file" in talk.ask("/save")
        talk.type("/exit\n")
        assert talk.wait() == 0
    assert "\x1b[2m" not in talk.screen
    messages = [[m["content"] for m in body["messages"]] for body in canned.chats()]
    kept = ["Be brief.", "one", "answer 1"]
    assert messages == [["one"], ["one"], ["one", "answer 1", "two"], [*kept, "three"],
                        [*kept, "four"]]  # fmt: skip
    last = canned.chats()[-1]
    assert (last["temperature"], last["stop"], last["model"]) == (0.5, ["a b"], "other")


def test_ctrl_c_stops_the_reply_and_what_came_stays(terminal) -> None:
    begun = Answer([chunk({"content": "half of"})], ends=False, stays=True)
    with serving([begun, Answer(text("ok"))]) as canned:
        talk = terminal(canned.url)
        talk.expect("> ")
        talk.type("one\n")
        talk.expect("half of")
        talk.type("\x03")
        assert "(stopped)" in talk.expect("\n> ")
        assert canned.gone.wait(5)  # the request is cancelled
        assert "ok" in talk.ask("two")
    contents = [message["content"] for message in canned.chats()[1]["messages"]]
    assert contents == ["one", "half of", "two"]


def test_ctrl_c_before_anything_came_takes_the_question_back(terminal) -> None:
    with serving([Answer("", stays=True), Answer(text("ok"))]) as canned:
        talk = terminal(canned.url)
        talk.expect("> ")
        talk.type("one\n")
        while not canned.chats():
            threading.Event().wait(0.02)
        talk.type("\x03")
        talk.expect("\n> ")
        assert "ok" in talk.ask("/retry")
    assert [m["content"] for m in canned.chats()[1]["messages"]] == ["one"]


def test_ctrl_c_at_the_prompt(terminal) -> None:
    with serving(Answer(text("ok"))) as canned:
        talk = terminal(canned.url)
        talk.expect("> ")
        talk.ready()
        talk.type("begun")
        talk.expect("begun")
        talk.interrupt()
        talk.expect("\n> ")
        talk.ask("begun\\", prompt="… ")
        talk.interrupt()
        talk.expect("\n> ")
        talk.interrupt()
        assert talk.wait() == 0
    assert canned.chats() == []


def test_messages_of_several_lines(terminal) -> None:
    with serving(Answer(text("ok"))) as canned:
        talk = terminal(canned.url)
        talk.expect("> ")
        talk.ask("a\\", prompt="… ")
        talk.ask("b")
        talk.ask('"""', prompt="… ")
        talk.ask("c\\", prompt="… ")
        talk.type("\n")
        talk.expect("… ")
        talk.ask('d"""')
        # Pasted where the terminal does not mark what is pasted.
        talk.type("e\nf\\\ng\n")
        talk.expect("ok")
        talk.expect("\n> ")
    contents = [body["messages"][-1]["content"] for body in canned.chats()]
    assert contents == ["a\nb", "c\\\n\nd", "e\nf\\\ng"]


def test_history_is_kept_for_the_next_time(terminal, tmp_path: Path) -> None:
    with serving(Answer(text("ok"))) as canned:
        for keys in ("first words\n", "\x1b[A\n"):
            talk = terminal(canned.url)
            talk.expect("> ")
            talk.type(keys)
            talk.expect("ok")
            talk.expect("\n> ")
            talk.type("\x04")
            talk.wait()
    assert [b["messages"][-1]["content"] for b in canned.chats()] == ["first words"] * 2
    file = tmp_path / ".local/state/mlx_server/chat_history"
    assert file.stat().st_mode & 0o777 == 0o600


def test_tab_completes_commands(terminal) -> None:
    with serving(Answer(text("ok"))) as canned:
        talk = terminal(canned.url)
        talk.expect("> ")
        talk.type("/sta\t\n")
        assert "/stats" in talk.expect("0 replies")
        talk.type("/model can\t\n")
        talk.expect("model: canned")


@pytest.mark.parametrize(
    ("environ", "colour"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_reasoning_and_calls_are_shown_dimmed(terminal, environ: dict, colour: bool) -> None:
    call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}
    deltas = [{"reasoning_content": "think"}, {"content": "an\x1bswer"}, {"tool_calls": [call]}]
    stream = "".join(map(chunk, deltas)) + chunk(reason="stop") + DONE
    with serving(Answer(stream)) as canned:
        talk = terminal(canned.url, **environ)
        talk.expect("> ")
        shown = talk.ask("x").replace("\r\n", "\n")
    if colour:
        dim = "\x1b[2m{}\x1b[0m".format
        call_shown = dim("[call] ") + dim("f") + dim(" ") + dim("{}")
        assert shown.startswith(f"{dim('think')}\n\nan␛swer\n\n{call_shown}\n")
    else:
        assert shown.startswith("[reasoning] think\n\nan␛swer\n\n[call] f {}\n")


def test_a_failure_ends_a_reply_and_not_the_chat(terminal) -> None:
    broken = Answer(chunk({"content": "half"}), ends=False)
    refused = Answer('{"error": {"message": "no room"}}', 400, "application/json")
    with serving([broken, refused, Answer(text("ok"))]) as canned:
        talk = terminal(canned.url)
        talk.expect("> ")
        assert "ended in the middle" in talk.ask("one")
        assert "no room (HTTP 400)" in talk.ask("two")
        assert "ok" in talk.ask("/retry")
    contents = [m["content"] for m in canned.chats()[-1]["messages"]]
    assert contents == ["one", "half", "two"]


def test_wrong_bytes_that_are_typed_do_no_harm(terminal) -> None:
    with serving(Answer(text("ok"))) as canned:
        talk = terminal(canned.url)
        talk.expect("> ")
        os.write(talk.master, b"a\xffb\n")
        talk.expect("ok")
    assert canned.chats()[0]["messages"][0]["content"] == "a\ufffdb"


def test_no_server_ends_it_at_once(terminal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    talk = terminal(f"127.0.0.1:{port}")
    assert talk.wait() == 1 and "start one with" in talk.screen


def test_one_message_on_a_terminal_shows_figures(terminal) -> None:
    with serving(Answer(text("an ", "answer"))) as canned:
        talk = terminal(canned.url, "hello")
        assert talk.wait() == 0
    assert "an answer\r\n\x1b[2m(first token " in talk.screen
