"""`tools` and `tool_choice`, and their older forms `functions` and `function_call`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field

from mlx_server.api.constraints import schema_object
from mlx_server.api.described import accepting
from mlx_server.api.fields import (
    OptionalFlag,
    OptionalText,
    at_most,
    checked,
    one_of,
    optional,
    path,
    required,
    wrong,
)
from mlx_server.core import Grammar, Tool, ToolUse
from mlx_server.errors import RequestError

MAX_TOOLS = 512

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_NAMES_TOLD = 20


# ---------------------------------------------------------------- fields


@accepting(Annotated[str, Field(pattern=f"^{_NAME.pattern}$")])
def function_name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            "must be a name of 1 to 64 letters (a to z), digits, underscores, dots and dashes"
        )
    return value


@accepting(Literal["none", "auto", "required"] | dict[str, Any])
def _tool_choice(value: Any) -> str | dict[str, Any]:
    if isinstance(value, dict) or value in ("none", "auto", "required"):
        return value
    raise ValueError('must be "none", "auto", "required" or an object')


@accepting(Literal["none", "auto"] | dict[str, Any])
def _function_call(value: Any) -> str | dict[str, Any]:
    if isinstance(value, dict) or value in ("none", "auto"):
        return value
    raise ValueError('must be "none", "auto" or an object with a `name`')


class _Function(BaseModel):
    name: Annotated[str, required(function_name)]
    description: OptionalText = None
    parameters: Annotated[dict[str, Any] | None, optional(schema_object)] = None
    strict: OptionalFlag = None  # calls are held to the schema either way

    def to_core(self) -> Tool:
        return Tool(self.name, self.description, self.parameters)


class _Tool(BaseModel):
    type: Annotated[str, required(one_of("function"))] = "function"
    function: _Function


class ToolFields(BaseModel):
    """The fields that say which functions there are and which of them are to be called."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    tools: Annotated[
        list[_Tool],
        FailFast(),
        BeforeValidator(at_most(MAX_TOOLS), json_schema_input_type=list[_Tool] | None),
    ] = []
    tool_choice: Annotated[str | dict[str, Any] | None, optional(_tool_choice)] = None
    parallel_tool_calls: OptionalFlag = None  # without a meaning where there are no tools
    functions: Annotated[
        list[_Function],
        FailFast(),
        BeforeValidator(at_most(MAX_TOOLS), json_schema_input_type=list[_Function] | None),
    ] = []
    function_call: Annotated[str | dict[str, Any] | None, optional(_function_call)] = None

    def tooling(self) -> Tooling:
        """Raises RequestError that names the field at fault."""
        new = [name for name in ("tools", "tool_choice") if getattr(self, name) not in (None, [])]
        old = [
            name for name in ("functions", "function_call") if getattr(self, name) not in (None, [])
        ]
        if new and old:
            raise RequestError(
                f"`{old[0]}` is of the older form and cannot be given beside `{new[0]}`.",
                param=old[0],
            )
        if old:
            tools = tuple(function.to_core() for function in self.functions)
            _refuse_twins(tools, "functions[{}].name")
            use = _read_function_call(self.function_call, tools)
            return Tooling(tools if use else (), use, "function_call")
        tools = tuple(tool.function.to_core() for tool in self.tools)
        _refuse_twins(tools, "tools[{}].function.name")
        use = _read_tool_choice(self.tool_choice, tools, self.parallel_tool_calls is not False)
        return Tooling(tools if use else (), use, "tool_choice")


# ---------------------------------------------------------------- what they mean


@dataclass(frozen=True, slots=True)
class Tooling:
    """What the fields come to.

    Args:
        told: The functions that the prompt tells the model of. They are all of them where
            the choice allows some only, so that the prompt repeats an earlier one.
        use: Which calls the reply may hold.
        choice_field: The field that says so, for errors.
    """

    told: tuple[Tool, ...]
    use: ToolUse | None
    choice_field: str

    @property
    def legacy(self) -> bool:
        """Whether the reply has the older form too."""
        return self.use is not None and self.choice_field == "function_call"

    def constraint(self, grammar: Grammar | None) -> Grammar | None:
        """What the reply's content follows, beside its calls.

        Raises:
            RequestError: The reply must be a call, so that no content can follow the grammar.
        """
        if grammar is None or self.use is None or not self.use.required:
            return grammar
        if grammar.param.startswith("response_format"):
            # langchain sends it for the answer that follows when the calls are done.
            return None
        raise RequestError(
            f"`{grammar.param}` cannot be given where `{self.choice_field}` asks for a call: "
            "a call follows its function's schema.",
            param=grammar.param,
        )


def _read_tool_choice(
    choice: str | dict[str, Any] | None, tools: tuple[Tool, ...], parallel: bool
) -> ToolUse | None:
    if choice == "none" or (not tools and choice in (None, "auto")):
        return None
    if not tools:
        raise _without_tools("tool_choice", "tools")
    if not isinstance(choice, dict):
        return ToolUse(tools, choice == "required", parallel)
    kind = checked(one_of("function", "allowed_tools"), choice.get("type"), "tool_choice", "type")
    if kind == "function":
        return ToolUse((_tool_of(choice, tools, "tool_choice"),), required=True, parallel=False)
    if "allowed_tools" in choice:
        return _allowed_tools(
            choice["allowed_tools"], tools, parallel, "tool_choice", "allowed_tools"
        )
    return _allowed_tools(choice, tools, parallel, "tool_choice")  # as in the Responses API


def _allowed_tools(choice: Any, tools: tuple[Tool, ...], parallel: bool, *location: str) -> ToolUse:
    if not isinstance(choice, dict):
        raise wrong(path(location), "must be an object with `mode` and `tools`", choice)
    mode = checked(one_of("auto", "required"), choice.get("mode"), *location, "mode")
    entries = choice.get("tools")
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_TOOLS:
        allowed = f"must be a list of 1 to {MAX_TOOLS} tools"
        raise wrong(path((*location, "tools")), allowed, entries)
    names = set()
    for i, entry in enumerate(entries):
        where: tuple[str | int, ...] = (*location, "tools", i)
        if not isinstance(entry, dict):
            raise wrong(path(where), "must be an object", entry)
        checked(one_of("function"), entry.get("type"), *where, "type")
        names.add(_tool_of(entry, tools, *where).name)
    return ToolUse(
        tuple(tool for tool in tools if tool.name in names), mode == "required", parallel
    )


def _tool_of(value: dict[str, Any], tools: Sequence[Tool], *location: str | int) -> Tool:
    """The tool named in {"function": {"name": …}} or {"name": …}."""
    if "function" not in value and "name" in value:
        return _named(value["name"], tools, "tools", *location, "name")
    function = value.get("function")
    if not isinstance(function, dict):
        raise wrong(path((*location, "function")), "must be an object with a `name`", function)
    return _named(function.get("name"), tools, "tools", *location, "function", "name")


def _read_function_call(
    choice: str | dict[str, Any] | None, functions: tuple[Tool, ...]
) -> ToolUse | None:
    if choice == "none" or (not functions and choice in (None, "auto")):
        return None
    if not functions:
        raise _without_tools("function_call", "functions")
    if not isinstance(choice, dict):
        return ToolUse(functions, parallel=False)
    function = _named(choice.get("name"), functions, "functions", "function_call", "name")
    return ToolUse((function,), required=True, parallel=False)


def _named(name: Any, tools: Sequence[Tool], field: str, *location: str | int) -> Tool:
    """The tool of that name. Raises RequestError that tells the names there are."""
    for tool in tools:
        if tool.name == name:
            return tool
    known = ", ".join(f'"{tool.name}"' for tool in tools[:_NAMES_TOLD])
    known += ", …" if len(tools) > _NAMES_TOLD else ""
    raise wrong(path(location), f"must be a name in `{field}` ({known})", name)


def _without_tools(choice: str, tools: str) -> RequestError:
    return RequestError(f"`{choice}` asks for a call, but `{tools}` has none.", param=choice)


def _refuse_twins(tools: Sequence[Tool], place: str) -> None:
    """Raises RequestError for the second tool of one name."""
    places: dict[str, str] = {}
    for i, tool in enumerate(tools):
        here = place.format(i)
        first = places.setdefault(tool.name, here)
        if first != here:
            raise wrong(here, f"must differ from `{first}`", tool.name)
