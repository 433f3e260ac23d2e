"""Runs what a program asks of the server, and tells what came of it as a line of JSON.

The scripts beside this file run in the environment of the program that they use, not in that
of the tests: they get the server's address and a key in the environment, and only import what
is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

BASE = os.environ["OPENAI_BASE_URL"]
KEY = os.environ["OPENAI_API_KEY"]
MODEL = os.environ["MODEL"]


def tell(*calls: Callable[[], Any]) -> None:
    """Print {function's name: {"value": what it returned} or {"error": its class and text}}."""
    told = {}
    for call in calls:
        try:
            told[call.__name__] = {"value": call()}
        except Exception as error:
            told[call.__name__] = {"error": f"{type(error).__name__}: {error}"}
    # On a line of its own, the last: some libraries print, too.
    print("\n" + json.dumps(told, default=str), flush=True)


def kind_of(call: Callable[[], Any]) -> list[str]:
    """The names of the classes of what the call raises, the most exact one first."""
    try:
        value = call()
    except Exception as error:
        return [kind.__name__ for kind in type(error).__mro__[:-2]] + [str(error)]
    return ["nothing was raised", repr(value)]
