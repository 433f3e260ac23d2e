"""Tools as plain text, for templates that know none, and tools as templates want them.

The generic form is the one that Hermes models were trained on and that many others know
(https://github.com/NousResearch/Hermes-Function-Calling): the functions as lines of JSON within
<tools>, a call as JSON within <tool_call>, a result within <tool_response>. A model that is
told of its tools in this way answers in the same form.

Some templates show a model's tools and leave it to the caller to write its calls into the
content: those are written as the model writes them itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlx_server.core import Message, TextPart, Tool, ToolCall

SYSTEM_ROLES = ("system", "developer")

CallWriter = Callable[[Sequence[ToolCall]], str]

_INSTRUCTIONS = """\
You may call functions to help with the user's request. Each line within <tools></tools> \
describes one of them, its parameters as JSON Schema:
<tools>
{tools}
</tools>

To call a function, write its name and its arguments as a JSON object within \
<tool_call></tool_call>; for several calls, write several of these:
<tool_call>
{{"name": <function-name>, "arguments": <arguments-object>}}
</tool_call>
Stop after your calls; what the functions return is then given to you within \
<tool_response></tool_response>."""


# ---------------------------------------------------------------- tools


def functions(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as OpenAI's function objects, every field set."""
    return [
        {
            "name": tool.name,
            "description": tool.description or "",
            "parameters": _parameters(tool.parameters or {}),
        }
        for tool in tools
    ]


def wrapped(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as chat requests carry them, which most templates expect."""
    return [{"type": "function", "function": function} for function in functions(tools)]


def _parameters(schema: Mapping[str, Any]) -> dict[str, Any]:
    missing = {k: v for k, v in {"type": "object", "properties": {}}.items() if k not in schema}
    return {**schema, **missing}


_TYPES = ("string", "number", "integer", "boolean", "array", "object")


def _completed(schema: Any) -> dict[str, Any]:
    """A schema in which everything has a type and a description, and objects say what else
    they hold: Command R+'s template adds these to text without looking whether they are there."""
    schema = dict(schema) if isinstance(schema, Mapping) else {}
    kind = schema.get("type")
    if isinstance(kind, list):
        others = [name for name in kind if name != "null"]
        kind = others[0] if len(others) == 1 else None
    # It writes the type None as Any, and never ends at one that it does not know.
    schema = {"description": "", **schema, "type": kind if kind in _TYPES else None}
    if isinstance(schema.get("properties"), Mapping):
        schema["properties"] = {k: _completed(v) for k, v in schema["properties"].items()}
    if "items" in schema:
        schema["items"] = _completed(schema["items"])
    if schema["type"] == "object":
        schema["additionalProperties"] = _completed(schema.get("additionalProperties"))
    return schema


ToolForm = Callable[[Sequence[Tool]], dict[str, Any]]
"""The variables in which a template is given its tools."""


def wrapped_form(tools: Sequence[Tool]) -> dict[str, Any]:
    """The tools as templates take them that follow OpenAI: {"type": "function", …} each."""
    return {"tools": wrapped(tools)}


def bare_form(tools: Sequence[Tool]) -> dict[str, Any]:
    """The tools as templates take them that want the functions alone."""
    return {"tools": functions(tools)}


def json_form(tools: Sequence[Tool]) -> dict[str, Any]:
    """FireFunction's: one JSON text."""
    return {"functions": json.dumps(functions(tools), indent=4, ensure_ascii=False)}


def completed_form(tools: Sequence[Tool]) -> dict[str, Any]:
    """The wrapped form with nothing left out of the schemas."""
    completed = [{**f, "parameters": _completed(f["parameters"])} for f in functions(tools)]
    return {"tools": [{"type": "function", "function": function} for function in completed]}


TOOL_FORMS: tuple[ToolForm, ...] = (wrapped_form, bare_form, json_form, completed_form)


def with_instructions(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The conversation with the generic form's instructions, at the end of the system
    message that it begins with or in one of their own."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in wrapped(tools))
    text = _INSTRUCTIONS.format(tools=lines)
    if not messages or messages[0].role not in SYSTEM_ROLES:
        return [Message("system", (TextPart(text),)), *messages]
    first = messages[0]
    text = "\n\n" + text if first.text else text
    return [replace(first, parts=(*first.parts, TextPart(text))), *messages[1:]]


# ---------------------------------------------------------------- calls and results in the content


def parsed_arguments(call: ToolCall) -> Any:
    """The arguments as JSON says them, {} for none; what is no JSON stays text."""
    try:
        return json.loads(call.arguments) if call.arguments.strip() else {}
    except (ValueError, RecursionError):
        return call.arguments


def write_generic(calls: Sequence[ToolCall]) -> str:
    """Calls of a past turn as text, in Hermes' form."""
    return "\n".join(f"<tool_call>\n{_call_json(call)}\n</tool_call>" for call in calls)


def _write_granite(calls: Sequence[ToolCall]) -> str:
    return "<|tool_call|>[" + ", ".join(map(_call_json, calls)) + "]"


def _write_lfm2(calls: Sequence[ToolCall]) -> str:
    """Python calls (https://docs.liquid.ai/lfm/key-concepts/tool-use)."""
    written = []
    for call in calls:
        arguments = parsed_arguments(call)
        named = arguments.items() if isinstance(arguments, dict) else [("arguments", arguments)]
        written.append(f"{call.name}({', '.join(f'{k}={_python(v)}' for k, v in named)})")
    return "<|tool_call_start|>[" + ", ".join(written) + "]<|tool_call_end|>"


def _python(value: Any) -> str:
    """A JSON value as Python writes it, with JSON's quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _call_json(call: ToolCall) -> str:
    call_object = {"name": call.name, "arguments": parsed_arguments(call)}
    return json.dumps(call_object, ensure_ascii=False)


_WRITERS: tuple[tuple[str, CallWriter], ...] = (
    ("respond only with <|tool_call|>", _write_granite),
    ("List of tools: ", _write_lfm2),
)


def writer_for(source: str) -> CallWriter:
    """How a model whose template shows its tools but not its calls writes them, known by
    a piece of the template; the generic form if none is known."""
    return next((writer for piece, writer in _WRITERS if piece in source), write_generic)


def with_calls_in_content(message: Message, write: CallWriter) -> Message:
    """The assistant's turn with its calls as text, after what it says."""
    separator = "\n" if message.text else ""
    text = TextPart(separator + write(message.tool_calls))
    return replace(message, parts=(*message.parts, text), tool_calls=())


def results_as_user(messages: Sequence[Message]) -> list[Message]:
    """Every run of tool results as one user message."""
    rewritten: list[Message] = []
    in_run = False
    for message in messages:
        if message.role != "tool":
            in_run = False
            rewritten.append(message)
            continue
        text = f"<tool_response>\n{message.text}\n</tool_response>"
        if in_run:
            last = rewritten[-1]
            rewritten[-1] = replace(last, parts=(*last.parts, TextPart("\n" + text)))
        else:
            rewritten.append(Message("user", (TextPart(text),)))
        in_run = True
    return rewritten
