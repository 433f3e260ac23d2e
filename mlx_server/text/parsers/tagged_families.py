"""The families with tagged parameters, by their tags.

What each writes was read off its chat template.
"""

from __future__ import annotations

from mlx_server.text.parsers.tagged import Tagged
from mlx_server.text.parsers.tags import Tags

# ---------------------------------------------------------------- <function=name>

_FUNCTION = Tags(
    section="<tool_call>\n",
    call="<function=",
    name_end=">\n",
    key="<parameter=",
    key_end=">\n",
    value_end="\n</parameter>\n",
    call_end="</function>\n",
    section_end="</tool_call>",
)


def _has_functions(template: str) -> bool:
    signs = ("<tool_call>", "<function=", "<parameter=")
    return all(sign in template for sign in signs) and "<seed:" not in template


def _on_lines(template: str) -> bool:
    """Calls stand on lines of their own, whichever of the two writes the line end."""
    return r"'\n<tool_call>" in template or r"</tool_call>\n'" in template


QWEN_CODER = Tagged(
    name="qwen3-coder",
    form=_FUNCTION,
    signs=lambda template: _has_functions(template) and _on_lines(template),
    python=True,
)
"""Qwen3-Coder, Qwen3.5 and Nemotron 3 (https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct)."""

STEPFUN = Tagged(
    name="stepfun",
    form=_FUNCTION,
    signs=lambda template: _has_functions(template) and not _on_lines(template),
    between="",
    python=True,
)
"""Step 3.5: the same, one call directly behind the other."""

SEED = Tagged(
    name="seed-oss",
    form=Tags(
        section="<seed:tool_call>\n",
        call="<function=",
        name_end=">\n",
        key="<parameter=",
        key_end=">",
        value_end="</parameter>\n",
        call_end="</function>\n",
        section_end="</seed:tool_call>",
    ),
    signs=lambda template: "<seed:tool_call>" in template and "<function=" in template,
    python=True,
)
"""ByteDance Seed-OSS."""

MINICPM = Tagged(
    name="minicpm5",
    form=Tags(
        call='<function name="',
        name_end='">',
        key='<param name="',
        key_end='">',
        value_end="</param>",
        call_end="</function>",
    ),
    signs=lambda template: '<function name="' in template and '<param name="' in template,
    python=True,
    cdata=True,
)
"""OpenBMB MiniCPM5."""

# ---------------------------------------------------------------- <arg_key>

_ARGUMENT_LINES = (
    "</arg_key>\n<arg_value>{{",
    r'"</arg_key>\n"',
)
_VALUES_ON_LINES = r"'\n<arg_value>'"

GLM_LINES = Tagged(
    name="glm-lines",
    form=Tags(
        call="<tool_call>",
        name_end="\n",
        key="<arg_key>",
        key_end="</arg_key>\n",
        value="<arg_value>",
        value_end="</arg_value>\n",
        call_end="</tool_call>",
    ),
    signs=lambda template: any(sign in template for sign in _ARGUMENT_LINES),
)
"""GLM 4.5 and 4.6, Laguna XS: each part on a line of its own."""

LING = Tagged(
    name="ling",
    form=Tags(
        call="<tool_call>",
        name_end="\n",
        key="<arg_key>",
        key_end="</arg_key>\n",
        value="<arg_value>",
        value_end="</arg_value>",
        call_end="\n</tool_call>",
    ),
    signs=lambda template: "<arg_key>" in template and _VALUES_ON_LINES in template,
)
"""inclusionAI Ling 3: values on lines of their own."""

GLM = Tagged(
    name="glm",
    form=Tags(
        call="<tool_call>",
        key="<arg_key>",
        key_end="</arg_key>",
        value="<arg_value>",
        value_end="</arg_value>",
        call_end="</tool_call>",
    ),
    signs=lambda template: (
        "<arg_key>" in template
        and not any(sign in template for sign in (*_ARGUMENT_LINES, _VALUES_ON_LINES))
    ),
    between="",
)
"""GLM 4.7, Laguna S, Spark 2.5: everything on one line."""

HUNYUAN = Tagged(
    name="hunyuan3",
    form=Tags(
        section="<tool_calls:opensource>\n",
        call="<tool_call:opensource>",
        name_end="<tool_sep:opensource>\n",
        key="<arg_key:opensource>",
        key_end="</arg_key:opensource>\n",
        value="<arg_value:opensource>",
        value_end="</arg_value:opensource>\n",
        call_end="</tool_call:opensource>\n",
        section_end="</tool_calls:opensource>",
    ),
    signs=lambda template: "<arg_key{}>" in template and "HYTK = ':opensource'" in template,
    repeats=False,
)
"""Tencent Hy3; the tags' suffix tells the published weights from others."""

# ---------------------------------------------------------------- <invoke name="name">

MINIMAX_M2 = Tagged(
    name="minimax-m2",
    form=Tags(
        section="<minimax:tool_call>\n",
        call='<invoke name="',
        name_end='">\n',
        key='<parameter name="',
        key_end='">',
        value_end="</parameter>\n",
        call_end="</invoke>\n",
        section_end="</minimax:tool_call>",
    ),
    signs=lambda template: "<minimax:tool_call>" in template and "<parameter name=" in template,
    repeats=False,
)
"""MiniMax M2 and M2.x."""
