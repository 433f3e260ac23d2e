"""The official JSON Schema test suite: what is held to at all is held to exactly.

MLX_SERVER_TEST_SCHEMA_SUITE is its folder `tests`, as in a source distribution of jsonschema
(`pip download --no-deps --no-binary jsonschema jsonschema`, then json/tests in it).
https://github.com/json-schema-org/JSON-Schema-Test-Suite
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from guiding import client, encode, make_grammars

from mlx_server.errors import RequestError

SUITE = os.environ.get("MLX_SERVER_TEST_SCHEMA_SUITE")
DRAFTS = ("draft4", "draft6", "draft7", "draft2019-09", "draft2020-12")

GRAMMARS = make_grammars()

pytestmark = pytest.mark.skipif(not SUITE, reason="MLX_SERVER_TEST_SCHEMA_SUITE is not set")


def compiled(schema: Any) -> str | None:
    """The schema's grammar; None where it is refused."""
    try:
        return GRAMMARS.compile(client("json_schema", json.dumps(schema)))
    except RequestError:
        return None


def accepts(grammar: str, instance: Any) -> bool:
    matcher = GRAMMARS.matcher(grammar)
    return matcher.try_accept(encode(json.dumps(instance, ensure_ascii=False))) and matcher.complete


def files(draft: str) -> list[Path]:
    return sorted((Path(SUITE or "") / draft).glob("*.json"))


@pytest.mark.parametrize("draft", DRAFTS)
def test_nothing_that_is_invalid_is_allowed(draft: str) -> None:
    wrong, counted = [], Counter()
    for path in files(draft):
        for case in json.loads(path.read_text("utf-8")):
            grammar = compiled(case["schema"])
            counted["held" if grammar else "refused"] += 1
            for test in case["tests"] if grammar else ():
                allowed = accepts(grammar, test["data"])
                counted[test["valid"], allowed] += 1
                if allowed and not test["valid"]:
                    wrong.append(f"{path.stem}: {case['description']}: {test['description']}")
    print(draft, dict(counted))
    assert not wrong
    # Refusing everything would be no way to pass.
    assert counted["held"] > counted["refused"]
    assert counted[True, True] > 4 * counted[True, False]
