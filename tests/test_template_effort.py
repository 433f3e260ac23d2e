"""How much to think, in the variables that templates know."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_server.text.effort import template_variables

LEVEL = "{{ 'Reasoning: ' + reasoning_effort }}"
LISTED = "{% if reasoning_effort not in ['high', 'low', 'no_think'] %}{{ x }}{% endif %}"
UP_TO_MAX = "{% if thinking_effort not in ['low', 'high', 'max'] %}{{ x }}{% endif %}"
MINIMAL = "{% if reasoning_effort in [\"low\", 'minimal'] %}{{ x }}{% endif %}"


@pytest.mark.parametrize(
    ("source", "effort", "expected"),
    [
        (LEVEL, None, {}),
        (LEVEL, "none", {"reasoning_effort": "low"}),
        (LEVEL, "minimal", {"reasoning_effort": "low"}),
        (LEVEL, "medium", {"reasoning_effort": "medium"}),
        (LEVEL, "xhigh", {"reasoning_effort": "high"}),
        (LEVEL, "max", {"reasoning_effort": "high"}),
        (LEVEL, "unheard", {"reasoning_effort": "unheard"}),
        (LISTED, "none", {"reasoning_effort": "no_think"}),
        (LISTED, "minimal", {"reasoning_effort": "low"}),
        (LISTED, "medium", {"reasoning_effort": "high"}),
        (LISTED, "xhigh", {"reasoning_effort": "high"}),
        (UP_TO_MAX, "none", {"thinking_effort": "low"}),
        (UP_TO_MAX, "xhigh", {"thinking_effort": "max"}),
        (MINIMAL, "none", {"reasoning_effort": "minimal"}),
        (MINIMAL, "medium", {"reasoning_effort": "medium"}),
        (
            "{% set x = reasoning_strength | default('high') %}",
            "low",
            {"reasoning_strength": "low"},
        ),
        ("{% if enable_thinking %}a{% endif %}", "none", {"enable_thinking": False}),
        ("{% if enable_thinking %}a{% endif %}", "low", {"enable_thinking": True}),
        ("{%- if not thinking is defined -%}a{%- endif -%}", "high", {"thinking": True}),
        ("{{ 'a' if thinking_mode == 'disabled' }}", "none", {"thinking_mode": "disabled"}),
        ("{{ 'a' if thinking_mode == 'disabled' }}", "low", {"thinking_mode": "enabled"}),
        ("{% if thinking_budget == 0 %}a{% endif %}", "none", {"thinking_budget": 0}),
        ("{% if thinking_budget == 0 %}a{% endif %}", "high", {}),
        # Words that are no variables: text, strings, comments, fields.
        ("Is thinking good? {{ 'thinking' }} {# thinking #} {{ m.thinking }}", "low", {}),
        ("{{ 'it\\'s thinking' }}{# don't #}{{ \"enable_thinking\" }}", "low", {}),
        ("{{ '{\"a\": {}}' }}{{ enable_thinking }}", "none", {"enable_thinking": False}),
    ],
)
def test_the_variables_that_a_template_knows(
    source: str, effort: str | None, expected: dict[str, Any]
) -> None:
    assert template_variables(source, effort) == expected
