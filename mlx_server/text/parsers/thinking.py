"""How families mark their reasoning.

Families whose `Syntax` itself `thinks` (gpt-oss, Muse, Solar) are not here.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

from mlx_server.text.parsers.base import Thinking

_READ = r"""(?:split\(|\bin\b)\s*['"]MARK|['"]MARK['"]\s*(?:not )?in\b"""


@dataclass(frozen=True, slots=True)
class Marking:
    """A family's marks.

    Args:
        opening, closing: Around the reasoning.
        signs: Parts of a chat template; one of them is enough. Empty: one of the marks.
        lead, tail: As of `Thinking`; None: as the template has it.
    """

    opening: str
    closing: str
    signs: tuple[str, ...] = ()
    lead: str | None = ""
    tail: str | None = ""

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        """By the template, or because both marks are tokens of the model."""
        if any(sign in template for sign in self.signs or (self.opening, self.closing)):
            return True
        return self.opening in vocabulary and self.closing in vocabulary

    def thinking(self, template: str) -> Thinking:
        """The marks with the white space that this template writes around them."""
        lead, tail = self.lead, self.tail
        return Thinking(
            self.opening,
            self.closing,
            _line_ends(template, self.opening, "\n")[:1] if lead is None else lead,
            _line_ends(template, self.closing, "\n\n") if tail is None else tail,
        )


THINKING: tuple[Marking, ...] = (
    # The first that matches is taken.
    Marking("<|channel>thought", "<channel|>", lead="\n"),  # Gemma 4
    Marking(  # Kimi K3
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        ("'<|open|>' + tag",),
        tail="<|open|>response<|sep|>",
    ),
    Marking("<seed:think>", "</seed:think>", tail="\n"),
    Marking("<mm:think>", "</mm:think>"),  # MiniMax M3
    Marking("<think:opensource>", "</think:opensource>", ("'<think{}>'.format(HYTK)",)),  # Hy3
    Marking("<longcat_think>", "</longcat_think>", lead="\n", tail="\n"),
    Marking("[THINK]", "[/THINK]"),  # Mistral
    Marking("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    Marking("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Marking(  # Apriel: the prompt has the opening, or the model writes it
        "Here are my reasoning steps:",
        "[BEGIN FINAL RESPONSE]",
        lead="\n",
        tail="\n",
    ),
    Marking("<think>", "</think>", lead=None, tail=None),
)
"""A new family's line goes here."""


def find_thinking(template: str, vocabulary: Container[str]) -> Thinking | None:
    """The marks of a model with this chat template and these tokens; None: it has none."""
    for marking in THINKING:
        if marking.matches(template, vocabulary):
            return marking.thinking(template)
    return None


def _line_ends(template: str, mark: str, default: str) -> str:
    """The line ends that the template writes behind a mark, the most it does; the default
    where it only looks for the mark."""
    reads = re.compile(_READ.replace("MARK", re.escape(mark)))
    written = re.findall(re.escape(mark) + r"((?:\\n)*)", reads.sub("", template))
    return max((found.replace("\\n", "\n") for found in written), default=default)
