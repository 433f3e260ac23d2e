"""Grammars that clients send: what they let through, what is said of those that do not compile,
and that none of them holds up or ends the process."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from guiding import (
    EOS,
    LONGER,
    SPECIALS,
    TOKENS,
    WIDTH,
    client,
    encode,
    lark,
    make_grammars,
    schema,
)
from models import SHARED
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

import mlx_server.demo
from mlx_server.errors import RequestError
from mlx_server.sampling import grammar as grammar_module
from mlx_server.sampling.grammar import Grammars, Vocabulary
from mlx_server.text.tokenizer import Tokenizer

GRAMMARS = make_grammars()


def compiled(kind: str, text: str | dict) -> str:
    return GRAMMARS.compile(client(kind, text))


def accepts(text: str, reply: str, grammars: Grammars = GRAMMARS) -> bool:
    matcher = grammars.matcher(text)
    return matcher.try_accept(grammars.vocabulary.encode(reply)) and matcher.complete


def refused(kind: str, text: str | dict) -> str:
    with pytest.raises(RequestError) as caught:
        compiled(kind, text)
    assert caught.value.param == "grammar"
    return str(caught.value)


# ---------------------------------------------------------------- GBNF

JSON_GBNF = r"""
root   ::= object  # any object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
    string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,3})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""

GBNF = {
    "alternates": ('root ::= "yes" | "no"', ["yes", "no"], ["maybe", ""]),
    "alternates over lines": ('root ::= "a" |\n  "b" |\n  "c"', ["a", "c"], ["d"]),
    "a group over lines": ('root ::= (\n  "a" # first\n  "b"\n)', ["ab"], ["a"]),
    "comments": ('# top\nroot ::= a # tail\n\n# between\na ::= "x"\n# end', ["x"], ["a"]),
    "Windows line ends": ('root ::= a\r\na ::= "x" |\r\n  "y"\r\n', ["x", "y"], ["a"]),
    "classes": (r"root ::= [a-c_] [^0-9] [\n\t]", ["az\n", "_é\t"], ["a1\n", "d!\n"]),
    "class of marks": (r"root ::= [\]\\/^#-]+", ["]\\/^#-"], ["a"]),
    "any character": ("root ::= . .", ["ab", "é😀"], ["a", "abc"]),
    "escapes": (r'root ::= "\x41\u00e9\U0001F600\t\n\r\"\\"', ['Aé😀\t\n\r"\\'], ["A"]),
    "code points in a class": (
        r"root ::= [\u0041-\u005a\U0001F600-\U0001F64F]",
        ["Q", "😂"],
        ["a"],
    ),
    "repetition": (
        'root ::= "a"* "b"+ "c"? "d"{2} "e"{1,2} "f"{1,}',
        ["bddef", "aabbcddeefff"],
        ["ddef", "bdef", "bddeeef"],
    ),
    "a repeated group": ('root ::= ("a" | "b" "c"){2,3}', ["aa", "abc", "bcbcbc"], ["a", "aaaa"]),
    "an empty alternate": ('root ::= "a" ("b" | "")', ["a", "ab"], ["b"]),
    "names": ('root ::= ab-c Def\nab-c ::= "x"\nDef ::= "y"', ["xy"], ["x"]),
    "recursion": ('root ::= "(" root ")" | "x"', ["x", "((x))"], ["(x", "x)"]),
    "left recursion": ('root ::= root "a" | "b"', ["b", "baa"], ["a", "ab"]),
    "left recursion by another": ('root ::= r "x" | "y"\nr ::= root | "z"', ["yx", "zx"], ["x"]),
    "more than a terminal takes": ('root ::= w "end"\nw ::= [a-z]+', ["xend", "endend"], ["end"]),
    "the last rule of a name": ('root ::= a\na ::= "x"\na ::= "y"', ["y"], ["x"]),
    "JSON": (JSON_GBNF, ['{"a": [1, -2.5, "x\\n"], "b": {}}', "{}"], ["[1]", '{"a":}']),
}


@pytest.mark.parametrize("text, replies, others", GBNF.values(), ids=GBNF)
def test_gbnf_is_held_to(text: str, replies: list[str], others: list[str]) -> None:
    grammar = compiled("gbnf", text)
    assert [reply for reply in replies if not accepts(grammar, reply)] == []
    assert [reply for reply in others if accepts(grammar, reply)] == []


BAD_GBNF = {
    "empty": ("", "No 'root' rule found"),
    "no root": ('top ::= "a"', "No 'root' rule found"),
    "an undefined rule": ("root ::= foo", "Rule 'foo' not found"),
    "an open literal": ('root ::= "a', "Unexpected end of input at line 1"),
    "an open class": ("root ::= [a", "Unexpected end of input"),
    "no definition": ('root = "a"', "Expected ::= at line 1"),
    "an unknown escape": (r"root ::= [\d]", r"Invalid escape sequence \d"),
    "nothing matches": (r"root ::= [^\x00-\U0010FFFF]", "nothing follows it"),
    # What llama.cpp takes and the translator does not:
    "tokens": ('root ::= <think> "a"', "Expected name"),
    "two names that become one": ('root ::= a-b a_b\na-b ::= "a"\na_b ::= "b"', "already exists"),
    "a rule called start": ('root ::= start\nstart ::= "a"', "'start' already exists"),
    "a name with a digit first": ('root ::= 2b\n2b ::= "b"', "Expected value"),
    "a repeated repetition": ('root ::= ("a"*)*', "Expected value"),
    "no times": ('root ::= "a"{0} "b"', "cannot be 0"),
}


@pytest.mark.parametrize("text, reason", BAD_GBNF.values(), ids=BAD_GBNF)
def test_gbnf_that_does_not_compile_is_refused_with_what_the_translator_says(
    text: str, reason: str
) -> None:
    assert reason in refused("gbnf", text)


# ---------------------------------------------------------------- regular expressions, Lark

REGEX = {
    "digits": (r"[a-c]{2}\d", ["ab1"], ["ab", "ab12"]),
    "a slash": (r"a/b\/c", ["a/b/c"], ["a"]),
    "a line end": ("a\nb", ["a\nb"], ["ab"]),
    "quotes": ('"\\\\"', ['"\\"'], ['"']),
    "anchors": ("^ab$", ["ab"], ["a"]),
    "a flag": ("(?i)ab", ["aB"], ["b"]),
    "beyond ASCII": ("é+→", ["éé→"], ["e→"]),
    "any character": (".+", ["a!"], ["a\n", ""]),
    "nothing": ("", [""], ["a"]),
}


@pytest.mark.parametrize("text, replies, others", REGEX.values(), ids=REGEX)
def test_a_regular_expression_is_held_to(text: str, replies: list[str], others: list[str]) -> None:
    grammar = compiled("regex", text)
    assert [reply for reply in replies if not accepts(grammar, reply)] == []
    assert [reply for reply in others if accepts(grammar, reply)] == []


@pytest.mark.parametrize(
    "text, reason",
    [
        ("(a", "unclosed group"),
        ("(?=a)a", "look-around"),
        (r"(a)\1", "backreferences"),
        (r"\bab", "lookarounds not supported"),
        ("a^b", "lookarounds not supported"),
        (r"[^\s\S]", "nothing follows it"),
    ],
)
def test_a_regular_expression_that_cannot_be_held_to_is_refused(text: str, reason: str) -> None:
    assert reason in refused("regex", text)


LARK = {
    "rules": ('start: x ("," x)*\nx: /[0-9]+/', ["1", "1,22"], ["1,", ""]),
    "left recursion": ('start: start "a" | "b"', ["baa"], ["a"]),
    "an ambiguous one": ('start: start start | "a"', ["a", "aaaaa"], ["b"]),
    "terminals": ("start: T\nT: /[a-z]/ & ~/b/", ["a"], ["b"]),
    "common terminals": ("start: NUMBER\n%import common.NUMBER", ["12"], ["a"]),
    "blanks": ('start: "a" "b"\n%ignore / +/', ["a  b", "ab"], ["a"]),
    "JSON": ('start: "x" %json {"type": "integer"}', ["x12"], ["x"]),
}


@pytest.mark.parametrize("text, replies, others", LARK.values(), ids=LARK)
def test_lark_is_held_to(text: str, replies: list[str], others: list[str]) -> None:
    grammar = compiled("lark", text)
    assert [reply for reply in replies if not accepts(grammar, reply)] == []
    assert [reply for reply in others if accepts(grammar, reply)] == []


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "no start rule"),
        ('foo: "a"', "no start rule"),
        ("start: foo", 'unknown name: "foo"'),
        ('start: "a', "lexer error"),
        ("start: T\nT: /a/ & /b/", "nothing follows it"),
        ("start: <nope>", 'unknown special token: "<nope>"'),
        ("start: @other", "unknown grammar @other"),
        ("start: X\n%import .other.X", "Unknown common regex"),  # no files are read
        ("start: X\n%import /etc/passwd (X)", "Expected name"),
        ('start: %json {"$ref": "file:///etc/passwd"}', "does not fetch"),
        ('start: %json {"uniqueItems": true}', "uniqueItems"),
    ],
)
def test_lark_that_does_not_compile_is_refused(text: str, reason: str) -> None:
    assert reason in refused("lark", text)


def test_lark_may_name_special_tokens_and_text_that_looks_like_them_is_none() -> None:
    matcher = GRAMMARS.matcher(compiled("lark", 'start: <think> "a" </think>'))
    assert matcher.try_accept([SPECIALS["<think>"], ord("a"), SPECIALS["</think>"]])
    assert matcher.complete
    assert not accepts(compiled("lark", 'start: <think> "a"'), "<think>a")
    assert accepts(compiled("lark", 'start: "<think>" "a"'), "<think>a")


ENDLESS = {
    "terminals": 'start: W V\nW: "a"+\nV: "ab"',  # W takes every "a", so V never begins
    "terminals, with forcing asked for": '%llguidance {"no_forcing": false}\nstart: W V\n'
    'W: "a"+\nV: "ab"',
    "recursion": 'start: "a" start',
}


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize("around", [None, "start: @reply"])
def test_a_grammar_that_never_ends_forces_nothing(text: str, around: str | None) -> None:
    grammar = GRAMMARS.compile(client("lark", text), around)
    matcher = GRAMMARS.matcher(grammar)
    for _ in range(50):
        assert matcher.forced() == [] and not matcher.complete
        matcher.allowed()
        matcher.accept(ord("a"))


def test_what_a_client_sends_is_quoted_from_the_field_it_came_in() -> None:
    with pytest.raises(RequestError, match=r"`guided_regex` cannot be used: .*unclosed") as caught:
        GRAMMARS.compile(client("regex", "(a", "guided_regex"))
    assert caught.value.param == "guided_regex" and caught.value.status == 400


# ---------------------------------------------------------------- huge ones


def nested(depth: int) -> dict:
    found: dict = {"type": "string"}
    for _ in range(depth):
        found = {"type": "object", "properties": {"a": found}, "required": ["a"]}
    return found


def chain(size: int) -> dict:
    links = {
        f"d{i}": {"anyOf": [{"type": "null"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(size)
    }
    return {"$defs": {**links, f"d{size}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def named(size: int, **more: object) -> dict:
    return {"properties": {f"p{i}": {"type": "string"} for i in range(size)}, **more}


HUGE = {
    # (kind, text, whether it works)
    "a regex of 1 MiB": ("regex", "a" * 2**20, False),
    "a regex of 32 KiB": ("regex", "[a-z0-9]" * 2**12, True),
    "counts within counts": ("regex", "a{1000}{1000}", False),
    "a long count": ("regex", ".{1,100000}", True),
    "a regex that explodes as an automaton": ("regex", "(a|b)*a(a|b){20}", True),
    "a regex of groups": ("regex", "(" * 3000 + "a" + ")" * 3000, False),
    "an enum of 30,000": ("json_schema", {"enum": [f"value {i}" for i in range(30_000)]}, True),
    "an enum of 100,000": ("json_schema", {"enum": [f"v{i}" for i in range(100_000)]}, False),
    "60 levels": ("json_schema", nested(60), True),
    "400 levels": ("json_schema", nested(400), False),
    "900 properties": ("json_schema", named(900), True),
    "2,000 that are required": (
        "json_schema",
        named(2000, type="object", required=[f"p{i}" for i in range(2000)]),
        True,
    ),
    "5,000 optional properties": ("json_schema", named(5000), False),
    "patterns for properties": (
        "json_schema",
        {"patternProperties": {f"^p{i}_": {} for i in range(300)}},
        False,
    ),
    "a million items": ("json_schema", {"type": "array", "minItems": 10**6}, True),
    "a trillion characters": ("json_schema", {"type": "string", "maxLength": 10**12}, False),
    "branches that multiply": (
        "json_schema",
        {
            "allOf": [
                {"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(14)
            ]
        },
        False,
    ),
    "a chain of 1,500 definitions": ("json_schema", chain(1500), True),
    "a chain of 8,000 rules": (
        "lark",
        "start: r0\n"
        + "\n".join(f'r{i}: "a" r{i + 1} | "b"' for i in range(8000))
        + '\nr8000: "z"',
        True,
    ),
    "counts of counts of rules": ("lark", 'start: (("a"{1,99}){1,99}){1,99}', True),
    "GBNF of 3,000 groups": ("gbnf", "root ::= " + "(" * 3000 + '"a"' + ")" * 3000, False),
    "GBNF of 10,000 words": (
        "gbnf",
        "root ::= " + " | ".join(f'"w{i}"' for i in range(10_000)),
        True,
    ),
    "Lark of 1 MiB": ("lark", 'start: "' + "a" * 2**20 + '"', False),
}


@pytest.mark.parametrize("kind, text, works", HUGE.values(), ids=HUGE)
def test_a_huge_grammar_works_or_is_refused(kind: str, text: str | dict, works: bool) -> None:
    grammars = make_grammars()  # so that it is freed with the test
    if not works:
        with pytest.raises(RequestError, match="cannot be used"):
            grammars.compile(client(kind, text))
        return
    matcher = grammars.matcher(grammars.compile(client(kind, text)))
    for _ in range(20):
        bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")
        options = [i for i in np.flatnonzero(bits).tolist() if i != EOS]
        if not options:
            break
        matcher.accept(options[-1])


# ---------------------------------------------------------------- what is kept


def test_a_grammar_is_compiled_once(monkeypatch) -> None:
    grammars, built = make_grammars(), []
    build = grammars._build
    monkeypatch.setattr(grammars, "_build", lambda text: built.append(text) or build(text))
    for _ in range(3):
        text = grammars.compile(client("regex", "[ab]+c"))
        assert accepts(text, "abc", grammars)
    assert built == [text]


def test_matchers_of_one_grammar_are_apart() -> None:
    text = lark('start: "a" "b"')
    first, second = GRAMMARS.matcher(text), GRAMMARS.matcher(text)
    first.accept(ord("a"))
    first.accept(ord("b"))
    assert first.ended and not second.complete and second.try_accept([ord("a"), ord("b")])


def test_the_grammar_that_was_used_longest_ago_is_dropped(monkeypatch) -> None:
    monkeypatch.setattr(grammar_module, "MAX_GRAMMARS", 3)
    grammars = make_grammars()
    texts = [lark(f'start: "{name}"') for name in "abcd"]
    for text in texts[:3]:
        assert grammars.problem(text) is None
    assert grammars.problem(texts[0]) is None
    assert grammars.problem(texts[3]) is None
    assert list(grammars._compiled) == [texts[2], texts[0], texts[3]]


def test_large_grammars_are_not_all_kept(monkeypatch) -> None:
    monkeypatch.setattr(grammar_module, "MAX_KEPT_BYTES", 1000)
    grammars = make_grammars()
    texts = [lark(f'start: "{name * 400}"') for name in "abc"]
    for text in texts:
        assert grammars.problem(text) is None
    assert list(grammars._compiled) == texts[-2:]
    large = lark(f'start: "{"d" * 2000}"')
    assert grammars.problem(large) is None and list(grammars._compiled) == [large]


def test_many_threads_compile_and_match_at_once() -> None:
    grammars = make_grammars()

    def work(i: int) -> list[bool]:
        texts = [grammars.compile(client("regex", f"{(i + j) % 6}[ab]+")) for j in range(12)]
        return [accepts(text, f"{(i + j) % 6}ab", grammars) for j, text in enumerate(texts)]

    with ThreadPoolExecutor(8) as threads:
        assert all(all(found) for found in threads.map(work, range(8)))


# ---------------------------------------------------------------- vocabularies


def bits_of(grammars: Grammars, text: str) -> np.ndarray:
    words = grammars.matcher(text).allowed()
    assert words.dtype == np.uint32 and len(words) == -(-grammars.vocabulary.width // 32)
    return np.unpackbits(words.view(np.uint8), bitorder="little")


@pytest.mark.parametrize("width", [len(TOKENS), len(TOKENS) + 1, 288, 320, 1000])
def test_a_mask_is_as_wide_as_the_logits_and_allows_no_token_that_is_none(width: int) -> None:
    grammars = Grammars(Vocabulary(TOKENS, SPECIALS, frozenset({EOS}), width, encode))
    bits = bits_of(grammars, lark("start: /(?s:.+)/"))
    assert not bits[len(TOKENS) :].any() and bits[ord("a")] and not bits[EOS]


@pytest.mark.parametrize("ends", [(), (EOS,), (EOS, SPECIALS["<call>"])])
def test_a_grammar_ends_the_reply_with_any_end_token_or_by_itself(ends: tuple[int, ...]) -> None:
    grammars = Grammars(Vocabulary(TOKENS, SPECIALS, frozenset(ends), WIDTH, encode))
    matcher = grammars.matcher(lark("start: /a{1,2}/"))
    matcher.accept(ord("a"))
    bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")[:WIDTH]
    assert set(np.flatnonzero(bits)) == {ord("a"), *ends}
    matcher.accept(ord("a"))
    assert matcher.ended and matcher.complete


def test_what_does_not_compile_is_not_compiled_again_with_each_request(monkeypatch) -> None:
    grammars = Grammars(Vocabulary(TOKENS, SPECIALS, frozenset({EOS}), WIDTH, encode))
    build, built = grammars._build, []
    monkeypatch.setattr(grammars, "_build", lambda text: built.append(text) or build(text))
    wrong, right = lark("start: nothing"), lark('start: "a"')
    problems = [grammars.problem(text) for text in (wrong, right, wrong, right)]
    assert problems[0] and problems == [problems[0], None] * 2
    assert built == [wrong, right]


def grammars_of(tokenizer: Tokenizer) -> Grammars:
    return Grammars(
        Vocabulary(
            tokens=tokenizer.table,
            specials=tokenizer.markup_tokens,
            eos_token_ids=tokenizer.eos_token_ids,
            width=tokenizer.vocab_size,
            encode=tokenizer.encode_within,
        )
    )


@pytest.fixture(scope="module")
def word_pieces(tmp_path_factory) -> Path:
    """A tokenizer whose tokens say nothing of their bytes by themselves."""
    words = ["[UNK]", "[EOS]", *'{}":,. abcdefghijklmnopqrstuvwxyz0123456789']
    words += [f"##{word}" for word in words[2:]] + ["true", "##true"]
    hf = HfTokenizer(WordPiece(dict(zip(words, range(len(words)), strict=True)), unk_token="[UNK]"))
    hf.pre_tokenizer = pre_tokenizers.Split(" never ", "isolated")
    hf.decoder = decoders.WordPiece(cleanup=False)
    folder = tmp_path_factory.mktemp("pieces")
    PreTrainedTokenizerFast(tokenizer_object=hf, eos_token="[EOS]").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("which", ["sentencepiece", "byte_level", "other"])
def test_vocabularies_of_every_kind_write_what_the_grammar_says(which: str, word_pieces) -> None:
    folders = {
        "sentencepiece": SHARED / "models/stories260k-chat",
        "byte_level": Path(mlx_server.demo.__file__).parent / "model",
        "other": word_pieces,
    }
    if not folders[which].is_dir():
        pytest.skip("../shared is absent")
    tokenizer = Tokenizer.load(folders[which])
    grammars = grammars_of(tokenizer)
    text = schema(
        {"type": "object", "properties": {"a b": {"enum": [True, 7]}}, "required": ["a b"]}
    )
    reply = '{"a b": true}'
    ids = tokenizer.encode_within(reply)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == reply
    matcher = grammars.matcher(text)
    written: list[int] = []
    for token in ids:
        bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")
        assert bits[token], tokenizer.token_text(token)
        matcher.accept(token)
        written.append(token)
    assert matcher.complete
    # Whatever other tokens are taken, what they spell is the grammar's as well.
    rng = np.random.default_rng(0)
    for _ in range(5):
        matcher, spelled = grammars.matcher(lark('start: "{" /[a-c0-3 ]{5}/ "}"')), b""
        while not matcher.ended:
            bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")
            token = int(rng.choice(np.flatnonzero(bits)))
            matcher.accept(token)
            spelled += tokenizer.token_bytes(token)
        assert len(spelled) == 7 and spelled[:1] + spelled[-1:] == b"{}"
        assert set(spelled[1:-1]) <= set(b"abc0123 ")


def test_forced_tokens_are_those_of_the_vocabularys_own_encoding() -> None:
    matcher = GRAMMARS.matcher(schema({"const": {"name": "true"}}))
    forced = matcher.forced()
    assert b"".join(TOKENS[i] for i in forced) == b'{"name": "true"}'
    assert {TOKENS[i] for i in forced} & set(LONGER)


def test_a_schema_and_its_text_are_one_grammar() -> None:
    value = {"type": "object", "properties": {"b": {}, "a": {"type": "integer"}}}
    assert compiled("json_schema", value) == compiled("json_schema", json.dumps(value, indent=2))
