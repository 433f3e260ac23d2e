"""One tiny random model that answers in every family's way.

Its weights and plain tokens are the same for all templates; what changes is the tokenizer,
which has the tags of the template for tokens, as the family's own models do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import json_families
import literal_cases
import tagged_cases
from models import CONFIG, SHARED, make_engine, make_pair
from models import run as run_engine
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from mlx_server.core import ChatPrompt, GenerationRequest, Message, TextPart, Tool
from mlx_server.deltas import CallArguments, CallStarted, Finished, Reasoning, Text, Usage
from mlx_server.engine.engine import Engine
from mlx_server.exchange import EngineRequest, TokenOutput
from mlx_server.replies import ReplyForm, ReplyForms
from mlx_server.sampling_params import SamplingParams
from mlx_server.text.formats import SYNTAXES, choose_format
from mlx_server.text.output import Choice
from mlx_server.text.parsers.lark import ToolRule
from mlx_server.text.tokenizer import Tokenizer

TEMPLATES = SHARED / "templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))

PLAIN_TOKENS = 700
WIDTH = 1024
"""Of the logits: some belong to no token."""
CONTEXT = 16384

BOS, EOS = "<s>", "</s>"
ENDS: Mapping[str, tuple[str, ...]] = {
    "openai-gpt-oss-120b": ("<|return|>", "<|call|>"),
    "upstage-Solar-Open-100B": ("<|flush|>", "<|calls|>"),
    "muse-glimmer": ("<|eot|>",),
    "Kimi-K3": ("<|end_of_msg|>",),
    "google-gemma-4-31B-it": ("<turn|>", "<|tool_response>"),
}
"""Marks with which a reply ends, and which its reader knows besides."""

_TAG = re.compile(r"<[|｜]?/?[\w:▁-]+[|｜]?>|\[/?[A-Z_ ]{3,}\]|<\|\"\|>|\]<\]minimax\[>\[|｜DSML｜")
_END = re.compile(r"</|\[/|[eE][nN][dD]|close|suffix|flush|eom|<tool_call\||<\|\"|[]｜][<D]")
_XML = re.compile(r"</?[\w:]+>")


# ---------------------------------------------------------------- tokenizers


def source_of(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def tags_of(name: str) -> Mapping[str, bool]:
    """The tags that a template speaks of or its family writes, and whether they are special
    tokens: those that do not look like XML are, as in most models."""
    text = source_of(name)
    if any(syntax.matches(text, ()) for syntax in SYNTAXES):
        text += " ".join(choose_format(text, (), knows_tools=True).markup)
    return {tag: not _XML.fullmatch(tag) for tag in sorted({*_TAG.findall(text)} - {BOS, EOS})}


@cache
def _plain() -> str:
    """A byte-level tokenizer without tags, as JSON; its longer tokens span text and markup."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PLAIN_TOKENS,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(map(source_of, NAMES), trainer)
    return backend.to_str()


def make_tokenizer(name: str, tags: Mapping[str, bool]) -> Tokenizer:
    """The tokenizer of a model with this template.

    Args:
        tags: Tags that are tokens, and whether these are special.
    """
    ends = ENDS.get(name, ())
    backend = Backend.from_str(_plain())
    for tag, special in {**tags, **dict.fromkeys(ends, True)}.items():
        backend.add_tokens([AddedToken(tag, special=special, normalized=False)])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS)
    eos = [hf.convert_tokens_to_ids(end) for end in ends]
    return Tokenizer(hf, chat_template=source_of(name), eos_token_ids=eos)


# ---------------------------------------------------------------- the model


@cache
def engine() -> Engine:
    model = make_pair({**CONFIG, "vocab_size": WIDTH, "max_position_embeddings": CONTEXT})[1]
    return make_engine(model, batch=32, chunk=512, prefix_bytes=None)


@dataclass
class Reply:
    """What the deltas of a choice amount to."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    reason: str = ""
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Answer:
    """One generated reply: its tokens, and how they are read."""

    tokenizer: Tokenizer
    request: EngineRequest
    form: ReplyForm
    tokens: Sequence[int]
    reason: str

    def read(self, *, at_once: bool = False) -> Reply:
        """Fold the deltas of the tokens.

        Args:
            at_once: They come in one output; else each in one of its own.
        """
        ids = self.tokens
        pieces = [tuple(ids)] if at_once else [(i,) for i in ids]
        choice = Choice(
            0, self.request, self.tokenizer, parser=self.form.parser(), shown=self.form.shown
        )
        reply = Reply()
        for number, piece in enumerate(pieces, 1):
            reason = self.reason if number == len(pieces) else None
            for delta in choice.feed(TokenOutput("r", 0, piece, finish_reason=reason)):
                match delta:
                    case Text(_, text):
                        reply.content += text
                    case Reasoning(_, text):
                        reply.reasoning += text
                    case CallStarted(_, call, _, called):
                        assert call == len(reply.calls)
                        reply.calls.append((called, ""))
                    case CallArguments(_, call, text):
                        called, given = reply.calls[call]
                        reply.calls[call] = (called, given + text)
                    case Finished(_, reason, _, usage):
                        reply.reason, reply.usage = reason, usage
        return reply


@dataclass(frozen=True)
class Family:
    """The model with a template."""

    name: str
    tokenizer: Tokenizer

    @cached_property
    def replies(self) -> ReplyForms:
        return ReplyForms(self.tokenizer, WIDTH)

    @cached_property
    def bias(self) -> tuple[tuple[int, float], ...]:
        """Makes ends so likely that neither texts nor lists go on for long."""
        table, eos = self.tokenizer.table, self.tokenizer.eos_token_ids
        tags = {text: i for text, i in self.tokenizer.markup_tokens.items() if i not in eos}
        thinking = self.tokenizer.format.thinking
        if thinking is not None:  # that ends with its budget
            tags.pop(thinking.closing, None)
        ends = {i for text, i in tags.items() if _END.search(text)}
        weights = {i: 6.0 for i, text in enumerate(table) if text in (b"'", b'"', b"]")}
        if "｜DSML｜" in tags:  # its end tags begin with plain text
            weights[table.index(b"</")] = 8.0
        weights |= dict.fromkeys(ends, 8.0) | dict.fromkeys(eos, 10.0)
        return tuple(sorted(weights.items()))

    def prepare(self, request: GenerationRequest) -> tuple[EngineRequest, ReplyForm]:
        (prompt,) = request.prompts
        ids = self.tokenizer.encode_prompt(prompt)
        form = self.replies.of(request, prompt, ids)
        made = EngineRequest(
            id=request.id,
            token_ids=tuple(ids),
            params=SamplingParams(**{"max_tokens": 600, "seed": 0} | dict(request.options)),
            eos_token_ids=self.tokenizer.eos_token_ids,
            guide=form.guide,
        )
        return made, form

    def state(self, request: GenerationRequest) -> str:
        """How the request's prompt stands to the reasoning, as of `OutputFormat.state`."""
        return self.tokenizer.format.state(self.tokenizer.render(request.prompts[0]))

    def answers(self, requests: Sequence[GenerationRequest]) -> dict[str, Answer]:
        """The replies to requests that run together, by the requests' ids."""
        prepared = [self.prepare(request) for request in requests]
        found = run_engine(engine(), *(made for made, _ in prepared))
        assert not found.errors
        return {
            made.id: Answer(
                self.tokenizer, made, form, found.tokens(made.id), found.reason(made.id)
            )
            for made, form in prepared
        }


@cache
def family(name: str) -> Family:
    return Family(name, make_tokenizer(name, tags_of(name)))


def prompt(tools: Sequence[Tool] = (), **template_args: Any) -> ChatPrompt:
    asked = Message("user", (TextPart("What about Bern?"),))
    return ChatPrompt((asked,), template_args, tools=tuple(tools))


# ---------------------------------------------------------------- what templates render


@cache
def written(name: str) -> tuple[tuple[ToolRule, ...], list[str]] | None:
    """The tools, and turns with calls of theirs as the template renders them."""
    if name in tagged_cases.FAMILIES:
        turns = [tagged_cases.written(name, turn) for turn in ("strings", "two", "empty")]
        return tagged_cases.TOOLS, turns
    for found in json_families.FAMILIES:
        if found.template == name:
            both = [json_families.SHORT, json_families.NESTED][: found.most]
            turns = [found.as_forced(calls) for calls in (both, [json_families.EMPTY])]
            return json_families.RULES, turns
    for found in literal_cases.FAMILIES.values():
        if found.template == name:
            some = ["quotes", "nested", *(["two"] if found.most > 1 else [])]
            turns = [found.written(literal_cases.TURNS[turn]) for turn in some]
            return literal_cases.TOOLS, turns
    return None
