"""Calls whose parameters stand in tags of their own, their strings without quotes.

    <tool_call>                              section
    <function=get_weather>                   call  name  name_end
    <parameter=city>                         key  …  key_end  value
    Bern
    </parameter>                             value_end
    </function>                              call_end
    </tool_call>                             section_end

One machine for all such families; `Tags` says how one writes them. They are written with
the template's own line ends and read with any.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_server.text.parsers import json_text, typed
from mlx_server.text.parsers.base import Syntax
from mlx_server.text.parsers.events import CallPiece, CallStart, Content
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import SPACE, Parse, Source
from mlx_server.text.parsers.tags import (
    CUT,
    Tags,
    cut_within,
    name_text,
    next_tag,
    open_ended,
    schema_of,
    text_value,
)

_CDATA, _CDATA_END = "<![CDATA[", "]]>"
_PYTHON = (("boolean", "True"), ("boolean", "False"), ("null", "None"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Tagged(Syntax):
    """A family with tagged parameters.

    Args:
        name: The family's.
        form: How it writes its calls.
        signs: Whether a chat template is the family's.
        between, repeats: As of `Syntax`; without `repeats` one section holds all calls.
        python: The template writes what is no string as Python does (`True`, `None`).
        cdata: Strings with markup or line ends stand in a CDATA section.
        tools: What the request's tools are, by name.
    """

    name: str
    form: Tags
    signs: Callable[[str], bool]
    between: str = "\n"
    repeats: bool = True
    python: bool = False
    cdata: bool = False
    tools: Mapping[str, ToolRule] = field(default_factory=dict)

    @property
    def marks(self) -> tuple[str, ...]:  # type: ignore[override]
        found = (self.form.section.strip(), self.form.call.strip())
        return tuple(filter(None, found))

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return self.signs(template)

    def for_tools(self, tools: Sequence[ToolRule]) -> Tagged:
        return replace(self, tools={tool.name: tool for tool in tools})

    # ------------------------------------------------------------ reading

    def read(self, source: Source, mark: str) -> Parse[None]:
        found: str | None
        tags = self.form.bare()
        start = source.hold()
        begun = mark == tags.call or (yield from next_tag(source, tags.call)) == tags.call
        end = (yield from self._call(source, tags)) if begun else None
        if end is None:
            source.go_back(start)
            yield from self._other(source, tags, mark, start)
        while end in (tags.call, tags.call_end):  # another call may follow
            start = source.hold()
            if end == tags.call_end:
                found = yield from next_tag(source, tags.section_end, tags.call)
                if found != tags.call:
                    if found is None:
                        source.go_back(start)
                    break
            previous, end = end, (yield from self._call(source, tags))
            if end is None:
                source.go_back(start)
                if previous == tags.call:
                    yield Content(tags.call)
        source.release()

    def _other(self, source: Source, tags: Tags, mark: str, start: int) -> Parse[None]:
        """What the tag of a call begins, that is none of the family's form."""
        # Models that also know Hermes' calls may write one.
        if (yield from json_text.call(source)):
            yield from source.skip_space()
            yield from source.accept(*filter(None, (tags.section_end, tags.call_end)))
        else:
            source.go_back(start)
            yield Content(mark)

    def _call(self, source: Source, tags: Tags) -> Parse[str | None]:
        """A call from its name on.

        Returns:
            The tag that ended it, which is read; CUT where the text ends within it, or
            where something else stands in it; None if it is none, and nothing was given.
        """
        yield from source.skip_space()
        name = yield from name_text(source)
        if not name or source.ended:
            return None
        body = (tags.key, tags.call_end, tags.section_end)
        mark = yield from next_tag(source, tags.name_end, *body)
        if mark and mark == tags.name_end:
            mark = yield from next_tag(source, *body)
        if mark is None and (yield from source.peek()) != "{":
            return None
        source.release()
        yield CallStart(name)
        if mark is None:
            return (yield from self._json_arguments(source, tags))
        return (yield from self._arguments(source, tags, self.tools.get(name), mark))

    def _json_arguments(self, source: Source, tags: Tags) -> Parse[str]:
        """Arguments that the model wrote as one JSON object after all."""
        yield from json_text.value(source, CallPiece)
        return (yield from next_tag(source, tags.call_end, tags.section_end)) or CUT

    def _arguments(
        self, source: Source, tags: Tags, tool: ToolRule | None, mark: str | None
    ) -> Parse[str]:
        opening = "{"
        while mark and mark in (tags.key, tags.value_end):
            if mark == tags.key:
                mark = yield from self._parameter(source, tags, tool, opening)
                opening = ", "
            else:  # a second end of a value
                mark = yield from self._next(source, tags)
        if mark != CUT:
            yield CallPiece("{}" if opening == "{" else "}")
        return mark or CUT

    def _next(self, source: Source, tags: Tags) -> Parse[str | None]:
        """What may stand behind a parameter, a call that nobody closed included."""
        return (
            yield from next_tag(
                source, tags.key, tags.value_end, tags.call_end, tags.section_end, tags.call
            )
        )

    def _parameter(
        self, source: Source, tags: Tags, tool: ToolRule | None, opening: str
    ) -> Parse[str | None]:
        """A parameter from its name on; returns the tag behind it, as `next_tag` does."""
        ends = tuple(filter(None, (tags.key_end, tags.value)))
        key, found = yield from source.collect(ends)
        if found is None:
            return CUT
        if tags.value and found == tags.key_end:
            yield from next_tag(source, tags.value)
        key = key.strip()
        yield CallPiece(f"{opening}{json.dumps(key, ensure_ascii=False)}: ")
        allowed = typed.ALL_KINDS if tool is None else typed.kinds(*schema_of(tool, key))
        mark = yield from self._value(source, tags, allowed)
        if mark == tags.value_end:
            mark = yield from self._next(source, tags)
        return mark

    def _value(self, source: Source, tags: Tags, allowed: frozenset[str]) -> Parse[str | None]:
        """A value and its end; returns the tag that ended it."""
        stops = self._stops(tags)
        if self.cdata:
            wrapped = yield from source.accept(_CDATA)
            if cut_within(source, _CDATA):
                return CUT
            if wrapped:
                ended = yield from text_value(source, (_CDATA_END,), allowed)
                return (yield from next_tag(source, tags.value_end)) if ended else CUT
        if self.form.value_end[0] in SPACE:
            yield from source.accept("\n", "\r\n")
        mark = yield from text_value(source, tuple(stops), allowed)
        return stops[mark] if mark else CUT

    def _stops(self, tags: Tags) -> dict[str, str]:
        """What ends a value, and the tag that this is or ends with.

        Its own end tag, or, where the model forgot that, what comes after it and hardly
        stands in a text: the next parameter on a line of its own, or the end of the call
        and the section.
        """
        stops = {tags.value_end: tags.value_end, f"\n{tags.key}": tags.key}
        if tags.section_end:
            for space in ("", "\n"):
                stops[f"{tags.call_end}{space}{tags.section_end}"] = tags.section_end
        else:
            stops |= {tags.key: tags.key, tags.call_end: tags.call_end}
        if self.form.value_end[0] in SPACE:
            stops |= {f"\n{stop}": tag for stop, tag in stops.items() if stop[0] != "\n"}
        return stops

    # ------------------------------------------------------------ writing

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        tags = self.form
        call = lark.either(self._written(lark, tool) for tool in tools)
        calls = f"{call} ({call})*" if several and not self.repeats else call
        if not tags.section:
            return calls
        begin, end = self._literal(lark, tags.section), self._literal(lark, tags.section_end)
        return f"{begin} {calls} {end}"

    def _literal(self, lark: Lark, text: str) -> str:
        """A text with markup in it."""
        return lark.literal(text)

    def _written(self, lark: Lark, tool: ToolRule) -> str:
        """A call of the tool."""
        tags = self.form
        parts = [self._literal(lark, f"{tags.call}{tool.name}{tags.name_end}")]
        names = [*tool.properties, *sorted(tool.required - set(tool.properties))]
        for name in names:
            parameter = self._written_parameter(lark, lark.literal(name), name, tool)
            parts.append(parameter if name in tool.required else f"({parameter})?")
        if not names and open_ended(tool):
            free = lark.regex(r"[A-Za-z0-9_.-]{1,64}")
            parts.append(f"({self._written_parameter(lark, free, '', tool)})*")
        return " ".join([*parts, self._literal(lark, tags.call_end)])

    def _written_parameter(self, lark: Lark, key: str, name: str, tool: ToolRule) -> str:
        tags = self.form
        value = self._written_value(lark, *schema_of(tool, name))
        key_end = lark.literal(tags.key_end + tags.value)
        return lark.rule(f"{lark.literal(tags.key)} {key} {key_end} {value}")

    def _written_value(self, lark: Lark, schema: Any, root: Mapping[str, Any]) -> str:
        """A value and its end tag."""
        end = lark.literal(self.form.value_end)
        listed = typed.enumerated(schema, root)
        if listed is not None:
            texts = [text for value in listed for text in self._spelled(value)]
            return f"{lark.either(map(lark.literal, texts))} {end}"
        allowed = typed.kinds(schema, root)
        if "string" in allowed:
            return self._written_text(lark, typed.size(schema, root))
        words = [w for kind, w in _PYTHON if self.python and kind in allowed]
        value = lark.json(typed.standing_alone(schema, root))
        return f"{lark.either([value, *map(lark.literal, words)])} {end}"

    def _written_text(self, lark: Lark, size: typed.Size) -> str:
        """Any text of that size and its end tag."""
        if self.cdata:
            many = f"{{{size[0]},{'' if size[1] is None else size[1]}}}"
            plain, wrapped = lark.regex(rf"[^<&\n]{many}"), lark.until(_CDATA_END, size=size)
            text = lark.either([plain, f"{lark.literal(_CDATA)} {wrapped}"])
            return f"{text} {lark.literal(self.form.value_end)}"
        # The end tag ends the text wherever it stands, so space before it is the text's.
        end = self.form.value_end.strip()
        behind = self.form.value_end.lstrip()[len(end) :]
        text = lark.until(end, size=size, stripped=True)
        return f"{text} {lark.literal(behind)}" if behind else text

    def _spelled(self, value: Any) -> list[str]:
        if isinstance(value, str):
            quote = self.cdata and re.search(r"[<&\n]", value)
            return [f"{_CDATA}{value}{_CDATA_END}" if quote else value]
        plain = json.dumps(value, ensure_ascii=False)
        return [plain, str(value)] if self.python else [plain]
