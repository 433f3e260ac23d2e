"""A conversation as the text that a model was trained on.

Templates are Jinja, rendered by transformers itself (its sandbox, its functions,
its cache of compiled templates), so a rendering is exactly what
`apply_chat_template` gives. What is added here is that templates differ in what
they accept: some know one system message, some none, some no tools, some silently
leave out what they do not expect. `ChatTemplate` finds out with a few probes when it
is made, and brings a conversation into a form that the template renders in full.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlx_server.core import Message, TextPart, Tool
from mlx_server.errors import RequestError
from mlx_server.text.continuation import check_continues, end_mark
from mlx_server.text.conversation import Conversation, forms_of, to_dicts
from mlx_server.text.effort import SWITCHES, template_variables
from mlx_server.text.generic_tools import SYSTEM_ROLES, completed_form, with_instructions
from mlx_server.text.probes import (
    SystemForms,
    find_system_forms,
    find_tool_call_style,
    find_tool_form,
    knows_developer,
)
from mlx_server.text.tool_history import ToolCallStyle, generic_style

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, for models that come without a template. It writes no beginning-of-text token."""

RESERVED = frozenset(
    {
        "self",
        "messages",
        "conversations",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "return_assistant_tokens_mask",
    }
)
"""Names that the rendering itself sets; template variables cannot."""

_PREFIXES = {
    "user": "USER: ",
    "assistant": "ASSISTANT: ",
    "system": "ASSISTANT's RULE: ",
    "stop": "\n",
}

# Some templates cannot do without variables that others tell apart from their absence.
_VARIABLE_SETS: tuple[Mapping[str, Any], ...] = (
    {},
    {"tools": []},
    {"tools": [], "functions": "[]", "datetime": "unknown"},
)

# Lists are not to be changed in the sandbox. Kimi K2's templates do, to number their calls: they
# assign new ones instead.
_MUTATIONS = (
    (r"set _ = (\w+\.\w+)\.append\((\w+)\)", r"set \1 = \1 + [\2]"),
    (
        r"\{%-?\s*set (\w+) = (\w+\.\w+)\.pop\(0\)\s*-?%\}",
        r"{%- set \1 = \2[0] -%}{%- set \2 = \2[1:] -%}",
    ),
)


def prefixed_text(
    messages: Sequence[Message],
    role_mapping: Mapping[str, str],
    tools: Sequence[Tool] = (),
    *,
    add_generation_prompt: bool = True,
    continue_final: bool = False,
) -> str:
    """Each message behind its role's prefix and before `stop`, then the assistant's prefix.

    mlx-lm's form for models without a chat template; an empty mapping means
    its own prefixes. Tools are told of in the form of `generic_tools`.

    Args:
        add_generation_prompt, continue_final: As `ChatTemplate.render` has them.

    Raises:
        RequestError: There is no message of the assistant to go on with.
    """
    if continue_final:
        check_continues(messages)
    prefixes = role_mapping or _PREFIXES
    stop = prefixes.get("stop", "")
    style = ToolCallStyle()
    if tools:
        messages, style = with_instructions(messages, tools), generic_style(())
    conversation = to_dicts(messages, style)
    turns = [prefixes.get(turn["role"], "") + turn["content"] + stop for turn in conversation]
    if continue_final:
        return "".join(turns).removesuffix(stop)
    return ("".join(turns) + prefixes.get("assistant", "") * add_generation_prompt).rstrip()


class ChatTemplate:
    """A compiled template and what is known about it. Safe to share between threads.

    Attributes:
        source: The Jinja template.
        knows_tools: Whether the template tells a model of its tools in the model's own way;
            else they are told of in the form of `generic_tools`, and answered in that.

    Args:
        source: The Jinja template.
        variables: Variables of every rendering (special tokens, the server's own).

    Raises:
        jinja2.TemplateSyntaxError: The template does not compile.
        ValueError: A variable has a reserved name.
    """

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        if reserved := RESERVED & variables.keys():
            raise ValueError(f"{sorted(reserved)[0]!r} cannot be set by a template variable")
        for mutation, assignment in _MUTATIONS:
            source = re.sub(mutation, assignment, source)
        self.source = source
        self._variables = self._find_variables(variables)
        self._knows_developer = knows_developer(source, self._try)
        roles = SYSTEM_ROLES if self._knows_developer else ("system",)
        self._plain_forms = find_system_forms(roles, self._try)
        tool_form = find_tool_form(source, roles, self._try)
        self.knows_tools = tool_form is not None
        self._tool_form, self._tool_forms = tool_form or (completed_form, self._plain_forms)
        self._style = find_tool_call_style(source, self._try)
        self._generic_style = generic_style(self._style.reasoning_names)

    def render(
        self,
        messages: Sequence[Message],
        template_args: Mapping[str, Any] | None = None,
        *,
        tools: Sequence[Tool] = (),
        reasoning_effort: str | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
    ) -> str:
        """The prompt up to where the assistant's reply begins.

        The conversation is rendered as it was sent where the template takes
        it. Else all system messages become one at the start; else their text
        goes into the first user message; in each case, if nothing else helps,
        with neighbours of one role merged and what is missing between them or
        within them filled in. Tools, calls and results that the template
        refuses are told of in the generic form.

        Args:
            template_args: Variables for the template; they come before everything else.
            tools: The functions that the model is told of.
            reasoning_effort: See `template_variables`.
            add_generation_prompt: End with the mark that the assistant's turn begins.
            continue_final: End with the text of the last message, the assistant's, which is
                not ended (transformers' `continue_final_message`).

        Raises:
            RequestError: The template refuses every form (the message is the
                template's own, for the first form), a part is an image, a
                variable's name is reserved, or there is no message of the assistant to
                go on with.
        """
        if continue_final:
            return self._continued(messages, template_args, tools, reasoning_effort)
        args = template_args or {}
        if reserved := RESERVED & args.keys():
            raise RequestError(
                f"{sorted(reserved)[0]!r} cannot be set by a template variable.",
                param="chat_template_kwargs",
            )
        thinking = template_variables(self.source, reasoning_effort)
        if args.keys() & set(SWITCHES):  # the client turned one itself: another must not oppose it
            thinking = {name: value for name, value in thinking.items() if name not in SWITCHES}
        args = {**thinking, **args}
        first_error: Exception | None = None
        for conversation, variables in self._candidates(messages, tools):
            text = self._try(conversation, {**variables, **args}, add_generation_prompt)
            if isinstance(text, str):
                return text
            first_error = first_error or text
        raise RequestError(
            f"The model's chat template does not accept these messages: {first_error}",
            param="messages",
        )

    def _continued(
        self,
        messages: Sequence[Message],
        template_args: Mapping[str, Any] | None,
        tools: Sequence[Tool],
        reasoning_effort: str | None,
    ) -> str:
        """The conversation up to the end of its last message's text."""
        check_continues(messages)
        *before, last = messages
        mark = end_mark(messages)
        # The mark also keeps spaces at the end, which many templates trim.
        marked = replace(last, parts=(*last.parts, TextPart(mark)))
        text = self.render(
            [*before, marked],
            template_args,
            tools=tools,
            reasoning_effort=reasoning_effort,
            add_generation_prompt=False,
        )
        end = text.rfind(mark)
        if end >= 0:
            return text[:end]
        # A template that leaves out what it does not expect there.
        opening = self.render(before, template_args, tools=tools, reasoning_effort=reasoning_effort)
        return opening + last.text

    # ------------------------------------------------------------ what to try

    def _candidates(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> Iterator[tuple[Conversation, Mapping[str, Any]]]:
        """What to render and with which variables, the best first. Only what
        raises is followed by the next."""
        messages = self._with_known_roles(messages)
        if tools and self.knows_tools:
            told = self._with_filler(messages)
            # Some templates fail at schemas in which something is left out.
            for form in dict.fromkeys((self._tool_form, completed_form)):
                for conversation in self._formed(told, self._style, self._tool_forms):
                    yield conversation, form(tools)
        has_history = any(message.tool_calls or message.role == "tool" for message in messages)
        if tools:
            messages = with_instructions(messages, tools)
        else:
            for conversation in self._formed(messages, self._style, self._plain_forms):
                yield conversation, {}
        if tools or has_history:
            for conversation in self._formed(messages, self._generic_style, self._plain_forms):
                yield conversation, {}

    def _formed(
        self, messages: Sequence[Message], style: ToolCallStyle, forms: SystemForms
    ) -> Iterator[Conversation]:
        conversation = to_dicts(messages, style)
        yield from forms_of(conversation, forms.first_for(conversation))

    def _with_known_roles(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Developer messages stay where the template knows them and there are no system ones."""
        roles = {message.role for message in messages}
        if "developer" not in roles or (self._knows_developer and "system" not in roles):
            return messages
        return [replace(m, role="system") if m.role == "developer" else m for m in messages]

    def _with_filler(self, messages: Sequence[Message]) -> Sequence[Message]:
        """With the system message that the template needs if it is to show tools."""
        filler = self._tool_forms.filler
        if filler is None or any(message.role in SYSTEM_ROLES for message in messages):
            return messages
        return [Message("system", (TextPart(filler),)), *messages]

    # ------------------------------------------------------------ rendering

    def _find_variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables, with those that the template cannot do without."""
        from jinja2 import TemplateSyntaxError

        self._variables = dict(variables)
        for extra in _VARIABLE_SETS:
            text = self._try([{"role": "user", "content": "probe"}], extra)
            if isinstance(text, TemplateSyntaxError):
                raise text
            if isinstance(text, str):
                return {**extra, **variables}
        return dict(variables)

    def _try(
        self,
        conversation: Conversation,
        variables: Mapping[str, Any],
        add_generation_prompt: bool = True,
    ) -> str | Exception:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered: Any = render_jinja_template(
                [conversation],
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                **{**self._variables, **variables},
            )
            ((text,), _) = rendered
        # A template is a program: besides its own raise_exception it can fail in any way.
        except Exception as error:
            return error
        return text
