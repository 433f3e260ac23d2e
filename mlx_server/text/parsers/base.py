"""How a family of models writes its replies.

    reply    <think> reasoning </think> content <tool_call> call </tool_call> content
             Thinking                           Syntax

A `Syntax` has both directions of a family's calls: `read` finds them in a reply,
`section` is the grammar by which one is made. What a reply may hold besides (other
markup around the answer) is its business too. Both are sans-IO; how a text was cut
into pieces never matters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from dataclasses import dataclass

from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source


@dataclass(frozen=True, slots=True)
class Thinking:
    """The marks around a model's reasoning.

    Args:
        opening: What begins it ("<think>").
        closing: What ends it ("</think>").
        lead: What the family writes behind the opening.
        tail: What the family writes behind the closing, before the answer.
    """

    opening: str
    closing: str
    lead: str = "\n"
    tail: str = "\n\n"


@dataclass(frozen=True, slots=True)
class Trigger:
    """A text that begins a call, as `section` writes it.

    Args:
        leading: Only where the content begins with it.
    """

    mark: str
    leading: bool = False


class Syntax(ABC):
    """A family's calls.

    Attributes:
        name: The family's, for logs and tests.
        marks: Texts that begin a section of calls, wherever in the content they come.
        leading_marks: Texts that begin one only where the content begins with them
            (families that write bare JSON).
        repeats: A reply may hold several sections, one after the other.
        between: What stands between two sections.
        always: The reply has markup of the family's even where it holds no call, so it
            is read in this way without any tools, too.
        reasoning: Families that `think`: the marks around it.
        thinks: `read` gives the reasoning itself: no `Thinking` is to be looked for around
            what it reads.
        ends_thinking: A section ends the reasoning that it stands in: the family's models
            call before they have closed it.
        tags: Texts of the family's markup that reading looks for and neither `marks` nor
            its grammar have.
    """

    name: str = ""
    marks: tuple[str, ...] = ()
    leading_marks: tuple[str, ...] = ()
    repeats: bool = True
    between: str = ""
    always: bool = False
    thinks: bool = False
    reasoning: Thinking | None = None
    ends_thinking: bool = False
    tags: tuple[str, ...] = ()

    @property
    def triggers(self) -> tuple[Trigger, ...]:
        """Where it is certain that a call begins, so that from there on it can be held to
        the grammar of `section`: the marks, unless other things begin with them as well."""
        return (
            *(Trigger(mark) for mark in self.marks),
            *(Trigger(mark, leading=True) for mark in self.leading_marks),
        )

    @abstractmethod
    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        """Whether a model with this chat template and these tokens is of the family."""

    def for_tools(self, tools: Sequence[ToolRule]) -> Syntax:
        """The syntax for one request, where reading a call depends on the tools' schemas."""
        return self

    @abstractmethod
    def read(self, source: Source, mark: str) -> Parse[None]:
        """The events of the section that `mark` begins; the mark is read already.

        Ends where content goes on. A text that ends within it gives what it has. What
        turns out to be no call is given as Content, the mark included.
        """

    @abstractmethod
    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        """A grammar's expression for one section, from its mark to its end.

        Args:
            several: It may hold more than one call, where the family writes them so.
        """

    def calls(self, lark: Lark, tools: Sequence[ToolRule], several: bool = True) -> str:
        """A grammar's expression for a reply that is calls and nothing else."""
        section = self.section(lark, tools, several)
        if not (self.repeats and several):
            return section
        again = f"{lark.literal(self.between)} {section}" if self.between else section
        return f"{section} ({again})*"

    def answer(self, lark: Lark, body: str) -> str:
        """The same for a reply whose content is `body`, with the family's markup around it."""
        return body

    def thought(self, lark: Lark, most: int | None) -> str:
        """The same for reasoning before either, if the model likes, in families that `think`.

        Args:
            most: Tokens that it may have; None sets no bound.
        """
        marks = self.reasoning
        if not self.thinks or marks is None or most == 0:
            return ""
        text = lark.reasoning(marks.closing, most=most)
        return f"({lark.literal(marks.opening)} {text} {lark.literal(marks.tail)})?"
