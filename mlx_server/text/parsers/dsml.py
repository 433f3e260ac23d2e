"""DeepSeek's calls from V3.2 on: tags with DSML, and each value says whether it is text.

    <｜DSML｜function_calls>                                 (V4: tool_calls)
    <｜DSML｜invoke name="get_weather">
    <｜DSML｜parameter name="city" string="true">Bern</｜DSML｜parameter>
    <｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜function_calls>

https://huggingface.co/deepseek-ai/DeepSeek-V3.2 (encoding/encoding_dsv32.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_server.text.parsers import typed
from mlx_server.text.parsers.events import CallPiece
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source
from mlx_server.text.parsers.tagged import Tagged
from mlx_server.text.parsers.tags import CUT, Tags, schema_of

BEFORE = "\n\n"
TEXT, VALUE = '" string="true', '" string="false'
"""What stands between a parameter's name and the end of its tag."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DSML(Tagged):
    """
    Args:
        empty: What stands in a call without arguments.
    """

    empty: str = ""

    def _parameter(
        self, source: Source, tags: Tags, tool: ToolRule | None, opening: str
    ) -> Parse[str | None]:
        key, found = yield from source.collect((tags.key_end,))
        if found is None:
            return CUT
        allowed = typed.ALL_KINDS
        if key.endswith(TEXT):
            key, allowed = key.removesuffix(TEXT), typed.STRING
        elif key.endswith(VALUE):
            key, allowed = key.removesuffix(VALUE), typed.ALL_KINDS - typed.STRING
        elif tool is not None:
            allowed = typed.kinds(*schema_of(tool, key))
        yield CallPiece(f"{opening}{json.dumps(key, ensure_ascii=False)}: ")
        mark = yield from self._value(source, tags, allowed)
        return (yield from self._next(source, tags)) if mark == tags.value_end else mark

    def calls(self, lark: Lark, tools: Sequence[ToolRule], several: bool = True) -> str:
        # The template writes an empty line before them, in whatever place.
        calls = super().calls(lark, tools, several)
        return f"({lark.literal(BEFORE)})? {calls}"

    def _written(self, lark: Lark, tool: ToolRule) -> str:
        call = super()._written(lark, tool)
        if not self.empty or tool.required:
            return call
        tags = self.form
        bare = lark.literal(f"{tags.call}{tool.name}{tags.name_end}{self.empty}{tags.call_end}")
        return lark.either((call, bare))

    def _written_parameter(self, lark: Lark, key: str, name: str, tool: ToolRule) -> str:
        tags = self.form
        schema, root = schema_of(tool, name)
        end = lark.literal(tags.value_end)
        listed = typed.enumerated(schema, root)
        allowed = typed.kinds(schema, root)
        values = []
        if listed is not None:
            for value in listed:
                is_text = isinstance(value, str)
                text = value if is_text else json.dumps(value, ensure_ascii=False)
                kind = TEXT if is_text else VALUE
                values.append(lark.literal(kind + tags.key_end + text + tags.value_end))
        else:
            if "string" in allowed:
                text = self._written_text(lark, typed.size(schema, root))
                values.append(f"{lark.literal(TEXT + tags.key_end)} {text}")
            if rest := sorted(allowed - typed.STRING):
                plain = typed.standing_alone(schema, root) if "string" not in allowed else {}
                plain = plain or {"type": rest}
                values.append(f"{lark.literal(VALUE + tags.key_end)} {lark.json(plain)} {end}")
        return lark.rule(f"{lark.literal(tags.key)} {key} {lark.either(values)}")


def _dsml(name: str, section: str, empty: str = "") -> DSML:
    return DSML(
        name=name,
        form=Tags(
            section=f"<｜DSML｜{section}>\n",
            section_end=f"</｜DSML｜{section}>",
            call='<｜DSML｜invoke name="',
            name_end='">\n',
            call_end="</｜DSML｜invoke>\n",
            key='<｜DSML｜parameter name="',
            key_end='">',
            value_end="</｜DSML｜parameter>\n",
        ),
        signs=lambda template: "'｜DSML｜'" in template and f"dsml_token + '{section}>" in template,
        repeats=False,
        empty=empty,
    )


DEEPSEEK_V3_2 = _dsml("deepseek-v3.2", "function_calls")
DEEPSEEK_V4 = _dsml("deepseek-v4", "tool_calls", "\n")
