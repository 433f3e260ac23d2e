"""A conversation as the text that a model was trained on.

Templates are Jinja, rendered by transformers itself (its sandbox, its functions,
its cache of compiled templates), so a rendering is exactly what
`apply_chat_template` gives. What is added here is that templates differ in what
they accept: some know one system message, some none, some silently leave out
what they do not expect. `ChatTemplate` finds out with a few probes when it is
made, and brings a conversation into a form that the template renders in full.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_server.core import ImagePart, Message, TextPart, ToolCall
from mlx_server.errors import RequestError

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, for models that come without a template. It writes no beginning-of-text token."""

RESERVED = frozenset(
    {
        "self",
        "messages",
        "conversations",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "return_assistant_tokens_mask",
    }
)
"""Names that the rendering itself sets; template variables cannot."""

_PREFIXES = {
    "user": "USER: ",
    "assistant": "ASSISTANT: ",
    "system": "ASSISTANT's RULE: ",
    "stop": "\n",
}

# Some templates cannot do without variables that others tell apart from their absence.
_VARIABLE_SETS: tuple[Mapping[str, Any], ...] = (
    {},
    {"tools": []},
    {"tools": [], "functions": "[]", "datetime": "unknown"},
)

_SYSTEM_ROLES = ("system", "developer")
_PROBES = (1, 2, 5)

Conversation = list[dict[str, Any]]


# ---------------------------------------------------------------- messages as templates expect them


@dataclass(frozen=True, slots=True)
class ToolCallStyle:
    """How a template reads a turn of tool calls: `arguments` as the object or
    as its JSON text, and the `content` of a turn that has none."""

    parse_arguments: bool = True
    no_content: str | None = ""


_TOOL_CALL_STYLES = (
    ToolCallStyle(),
    ToolCallStyle(parse_arguments=False),
    ToolCallStyle(parse_arguments=False, no_content=None),
    ToolCallStyle(no_content=None),
)


def to_dicts(
    messages: Sequence[Message], style: ToolCallStyle = _TOOL_CALL_STYLES[0]
) -> Conversation:
    """The messages as Hugging Face templates expect them.

    Raises:
        RequestError: A part is an image.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_to_dict(message, style, names) for message in messages]


def _to_dict(message: Message, style: ToolCallStyle, names: Mapping[str, str]) -> dict[str, Any]:
    if any(isinstance(part, ImagePart) for part in message.parts):
        raise RequestError(
            "This server does not support images; send text parts only.", param="messages"
        )
    content: str | None = message.text
    if message.tool_calls and not content:
        content = style.no_content
    turn: dict[str, Any] = {"role": message.role, "content": content}
    # Clients name a tool's result by the call's id alone, some templates want the tool's name.
    name = message.name or names.get(message.tool_call_id or "")
    if name is not None:
        turn["name"] = name
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [_tool_call(call, style) for call in message.tool_calls]
    return turn


def _tool_call(call: ToolCall, style: ToolCallStyle) -> dict[str, Any]:
    arguments: Any = call.arguments
    if style.parse_arguments:
        try:
            parsed = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else call.arguments
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def prefixed_text(messages: Sequence[Message], role_mapping: Mapping[str, str]) -> str:
    """Each message behind its role's prefix and before `stop`, then the assistant's prefix.

    mlx-lm's form for models without a chat template; an empty mapping means
    its own prefixes.
    """
    prefixes = role_mapping or _PREFIXES
    stop = prefixes.get("stop", "")
    turns = [prefixes.get(turn["role"], "") + turn["content"] + stop for turn in to_dicts(messages)]
    return ("".join(turns) + prefixes.get("assistant", "")).rstrip()


# ---------------------------------------------------------------- forms of a conversation


def as_sent(conversation: Conversation) -> Conversation:
    return conversation


def merged_system(conversation: Conversation) -> Conversation:
    """One system message, at the start."""
    system, others = _split_system(conversation)
    return [{"role": system[0]["role"], "content": _joined(system)}, *others] if system else others


def folded_system(conversation: Conversation) -> Conversation:
    """No system message: its text begins the first user message."""
    system, others = _split_system(conversation)
    if not system:
        return others
    for index, turn in enumerate(others):
        if turn["role"] == "user":
            folded = {**turn, "content": _joined([*system, turn])}
            return [*others[:index], folded, *others[index + 1 :]]
    return [{"role": "user", "content": _joined(system)}, *others]


def merged_runs(conversation: Conversation) -> Conversation:
    """Neighbours of the same role, user or assistant, made one (tool calls stay apart)."""
    merged: Conversation = []
    for turn in conversation:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last["role"] == turn["role"]
            and turn["role"] in ("user", "assistant")
            and not ("tool_calls" in last or "tool_calls" in turn)
        ):
            merged[-1] = {**last, **turn, "content": _joined([last, turn])}
        else:
            merged.append(turn)
    return merged


def _split_system(conversation: Conversation) -> tuple[Conversation, Conversation]:
    system = [turn for turn in conversation if turn["role"] in _SYSTEM_ROLES]
    return system, [turn for turn in conversation if turn["role"] not in _SYSTEM_ROLES]


def _joined(turns: Conversation) -> str:
    return "\n\n".join(turn["content"] for turn in turns if turn["content"])


_FORMS: tuple[Callable[[Conversation], Conversation], ...] = (as_sent, merged_system, folded_system)


# ---------------------------------------------------------------- the template


class ChatTemplate:
    """A compiled template and what is known about it. Safe to share between threads.

    Args:
        source: The Jinja template.
        variables: Variables of every rendering (special tokens, the server's own).

    Raises:
        jinja2.TemplateSyntaxError: The template does not compile.
        ValueError: A variable has a reserved name.
    """

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        from jinja2 import TemplateSyntaxError

        if reserved := RESERVED & variables.keys():
            raise ValueError(f"{sorted(reserved)[0]!r} cannot be set by a template variable")
        self.source = source
        self._variables = dict(variables)
        for extra in _VARIABLE_SETS:
            text = self._try([{"role": "user", "content": "probe"}], extra)
            if isinstance(text, TemplateSyntaxError):
                raise text
            if isinstance(text, str):
                self._variables = {**extra, **variables}
                break
        self._knows_developer = "developer" in source and self._shows(_probe("developer", 2))
        self._first_form = {
            (role, length): self._find_form(_probe(role, length))
            for role in _SYSTEM_ROLES
            for length in _PROBES
        }
        self._style = self._find_tool_call_style()

    def render(
        self, messages: Sequence[Message], template_args: Mapping[str, Any] | None = None
    ) -> str:
        """The prompt up to where the assistant's reply begins.

        The conversation is rendered as it was sent where the template takes
        it. Else all system messages become one at the start; else their text
        goes into the first user message; in each case with neighbours of one
        role merged if nothing else helps.

        Raises:
            RequestError: The template refuses every form (the message is the
                template's own, for the first form), a part is an image, or a
                variable's name is reserved.
        """
        args = template_args or {}
        if reserved := RESERVED & args.keys():
            raise RequestError(
                f"{sorted(reserved)[0]!r} cannot be set by a template variable.",
                param="chat_template_kwargs",
            )
        first_error: Exception | None = None
        for conversation in self._candidates(to_dicts(messages, self._style)):
            text = self._try(conversation, args)
            if isinstance(text, str):
                return text
            first_error = first_error or text
        raise RequestError(
            f"The model's chat template does not accept these messages: {first_error}",
            param="messages",
        )

    def _candidates(self, conversation: Conversation) -> Iterator[Conversation]:
        """The forms to try, each different one once."""
        roles = {turn["role"] for turn in conversation}
        if "developer" in roles and not (self._knows_developer and "system" not in roles):
            conversation = [
                {**turn, "role": "system"} if turn["role"] == "developer" else turn
                for turn in conversation
            ]
        role = "developer" if self._knows_developer and "developer" in roles else "system"
        if not roles - set(_SYSTEM_ROLES):
            length = 1
        else:
            length = 5 if any(t["role"] in _SYSTEM_ROLES for t in conversation[1:]) else 2
        tried: list[Conversation] = []
        for form in _FORMS[self._first_form[role, length] :]:
            for candidate in (form(conversation), merged_runs(form(conversation))):
                if candidate not in tried:
                    tried.append(candidate)
                    yield candidate

    def _find_form(self, probe: Conversation) -> int:
        """The first form in which the template shows every message."""
        for index, form in enumerate(_FORMS):
            if self._shows(form(probe)):
                return index
        return 0

    def _shows(self, conversation: Conversation) -> bool:
        text = self._try(conversation)
        return isinstance(text, str) and all(turn["content"] in text for turn in conversation)

    def _find_tool_call_style(self) -> ToolCallStyle:
        call = ToolCall("call00001", "probe_name", '{"probe_key": "probe_value"}')
        messages = (
            Message("user", (TextPart("probe"),)),
            Message("assistant", tool_calls=(call,)),
            Message("tool", (TextPart("probe_result"),), tool_call_id=call.id),
        )
        for style in _TOOL_CALL_STYLES:
            text = self._try(to_dicts(messages, style))
            if isinstance(text, str) and "probe_name" in text and "probe_value" in text:
                return style
        return _TOOL_CALL_STYLES[0]

    def _try(
        self, conversation: Conversation, args: Mapping[str, Any] | None = None
    ) -> str | Exception:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            (text,), _ = render_jinja_template(
                [conversation],
                chat_template=self.source,
                add_generation_prompt=True,
                **{**self._variables, **(args or {})},
            )
        # A template is a program: besides its own raise_exception it can fail in any way.
        except Exception as error:
            return error
        return text


def _probe(role: str, length: int) -> Conversation:
    """A system message alone (1), before a user's (2), and again later on (5)."""
    roles = (role, "user", "assistant", role, "user")[:length]
    return [{"role": r, "content": f"probe {i}"} for i, r in enumerate(roles)]
