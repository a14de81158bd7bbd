"""Chat templates as Hugging Face renders them, in a sandbox.

A template is a Jinja2 program that comes with the model, so it runs in `ImmutableSandboxedEnvironment`, with the same
options and helpers that the models' authors tested with: `trim_blocks`, `lstrip_blocks`, loop controls, `tojson`
without HTML escapes, `raise_exception`, `strftime_now`.

What a user writes never becomes a control token. Where a message spells one (`<|im_end|>`), a noncharacter is put into
the spelling before rendering, and `render` returns the text cut at those places; its parts are tokenised one by one,
and none of them contains the control token. A text that spells none, which is nearly every one, comes back whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.errors import GatewayError, ModelTextError

__all__ = ["ChatTemplate", "TemplateFailed"]

#: Unicode's noncharacters for internal use: they mean nothing in any text, so one that the messages lack marks the
#: cuts.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class TemplateFailed(GatewayError):
    """The template refused these messages, with its reason."""


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, separators: tuple[str, str] | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


class ChatTemplate:
    """One model's template. Rendering is thread-safe.

    `variables` are the special tokens that templates name (`bos_token`, `eos_token`, …); `control` are the spellings
    that only the template may write.

    :raises ModelTextError: the source is not a template.
    """

    def __init__(self, source: str, *, variables: Mapping[str, str], control: Iterable[str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ModelTextError(f"the chat template has a mistake in line {error.lineno}: {error.message}") from error
        self._variables = dict(variables)
        # Longest first, so that a spelling which contains another is cut as a whole.
        self._control = sorted((text for text in control if len(text) > 1), key=len, reverse=True)

    def render(self, messages: Sequence[Mapping[str, str]]) -> list[str]:
        """The prompt of a conversation, up to where the assistant begins to speak, in parts to be tokenised separately.

        :raises TemplateFailed: the template does not take these messages.
        """
        marked, mark = self._mark(messages)
        try:
            text = self._template.render(
                messages=marked, add_generation_prompt=True, tools=None, documents=None, **self._variables
            )
        except Exception as error:  # whatever a template's code raises on messages that it was not written for
            raise TemplateFailed(str(error) or type(error).__name__) from error
        return [part for part in text.split(mark) if part] if mark else [text]

    def _mark(self, messages: Sequence[Mapping[str, str]]) -> tuple[Sequence[Mapping[str, str]], str]:
        contents = [message["content"] for message in messages]
        if not any(spelling in content for spelling in self._control for content in contents):
            return messages, ""
        mark = next((mark for mark in _MARKS if not any(mark in content for content in contents)), None)
        if mark is None:
            raise TemplateFailed(
                "the messages contain every noncharacter from U+FDD0 to U+FDEF, and none is left to quote with"
            )
        return [{**message, "content": self._quote(message["content"], mark)} for message in messages], mark

    def _quote(self, content: str, mark: str) -> str:
        for spelling in self._control:
            content = content.replace(spelling, spelling[0] + mark + spelling[1:])
        return content
