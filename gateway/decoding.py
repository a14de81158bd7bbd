"""From the bytes of a body to a checked Struct, with errors that name the field, its value and what would be right."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from gateway.errors import BadRequest

__all__ = ["JsonBody", "nesting"]

T = TypeVar("T")

_CHOICES = {
    "role": "system, developer, user, assistant",
    "service_tier": "auto, default, flex, priority",
    "type": "text",
}

_OPENING = (b"[", b"{")
_ONLY_STRUCTURE = bytes(code for code in range(256) if code not in b'"[]{}')
_PATH = re.compile(r" - at `\$(?P<path>.*?)`$")
_STEP = re.compile(r"\.(?P<key>[^.\[\]]+)|\[(?P<index>\d+)\]")
_NAME = re.compile(r"`(?P<name>[^`]*)`")
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
# A larger body is not decoded a second time just to quote the value in the message.
_QUOTABLE_BYTES = 64 * 1024
_QUOTED_CHARS = 80

#: Fields that Headgate sets by itself, because a client that could would reach other tenants' caches or places in line.
_OURS = {"cache_salt", "request_id", "priority"}


def nesting(body: bytes, limit: int) -> bool:
    """Whether arrays and objects nest deeper than `limit`, in a few passes at memory speed, never one step a byte."""
    if sum(map(body.count, _OPENING)) <= limit:
        return False
    text = body
    if b"\\" in text:
        text = text.replace(rb"\\", b"").replace(rb"\"", b"")
    structure = text.translate(None, _ONLY_STRUCTURE)
    # Every second piece between quotes is outside of strings.
    brackets = b"".join(structure.split(b'"')[::2])
    for _ in range(limit):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets) and sum(map(brackets.count, _OPENING)) > 0


class JsonBody:
    """Decodes bodies of one type."""

    def __init__(self, type: type[T], *, max_depth: int) -> None:  # noqa: A002 - the word of msgspec for it
        self._decoder = msgspec.json.Decoder(type)
        self._max_depth = max_depth

    def decode(self, body: bytes) -> Any:
        """The Struct.

        :raises BadRequest: not UTF-8, not JSON, nested too deep, an unknown field, a wrong type.
        """
        if not body:
            raise BadRequest("The body is empty: a JSON object is expected.")
        if not body.isascii():
            try:
                body.decode()
            except UnicodeDecodeError as error:
                raise BadRequest(f"The body is not UTF-8: {error.reason} at byte {error.start}.") from None
        if nesting(body, self._max_depth):
            raise BadRequest(f"The body nests arrays and objects more than {self._max_depth} deep.")
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise _explain(str(error), body) from None
        except msgspec.DecodeError as error:
            raise BadRequest(_malformed(str(error), body)) from None
        except RecursionError:
            raise BadRequest("The body nests arrays and objects too deep.") from None


def _malformed(message: str, body: bytes) -> str:
    if "truncated" in message:
        if half := _HALF_PAIR.search(body):
            return f"The body has half of a surrogate pair, {half.group().decode()}, near byte {half.start()}."
        return f"The body is not JSON: it ends too early, at byte {len(body)}."
    return f"The body is not JSON: {message.removeprefix('JSON is malformed: ')}."


def _explain(message: str, body: bytes) -> BadRequest:
    """Turn `Expected `int`, got `str` - at `$.max_tokens`` into an answer with `param` and the value."""
    path = ""
    if found := _PATH.search(message):
        path = found["path"].removeprefix(".")
        message = message[: found.start()]
    named = _NAME.search(message)
    name = named["name"] if named else ""
    inner = f"{path}.{name}" if path else name
    if message.startswith("Object contains unknown field"):
        if inner in _OURS:
            return BadRequest(f"`{inner}` is not taken from clients, Headgate sets it: leave it out.", param=inner)
        return BadRequest(f"`{inner}` is unknown or not supported: leave it out.", param=inner)
    if message.startswith("Object missing required field"):
        return BadRequest(f"`{inner}` is missing.", param=inner)
    if not path:
        return BadRequest(f"The body is wrong: {message[:1].lower()}{message[1:]}.")
    message = _right(path.rpartition(".")[2], message)
    quoted = _value(path, body)
    given = f"`{path}` is {quoted}" if quoted else f"`{path}` is wrong"
    return BadRequest(f"{given}: {message[:1].lower()}{message[1:]}.", param=path.removesuffix("[...]"))


def _right(field: str, message: str) -> str:
    """The decoder's words, or better ones where it does not say what would be right."""
    if message.startswith("Invalid") and field in _CHOICES:
        return f"it must be one of {_CHOICES[field]}"
    if message.startswith("Expected `null`"):
        return "this is not supported: leave it out, or null"
    return message


def _value(path: str, body: bytes) -> str:
    """The value at a path, as JSON, shortened; empty where the path does not lead to one."""
    if len(body) > _QUOTABLE_BYTES or "[...]" in path:
        return ""
    try:
        value = msgspec.json.decode(body)
        for step in _STEP.finditer("." + path if not path.startswith("[") else path):
            value = value[step["key"]] if step["key"] else value[int(step["index"])]
        text = msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, LookupError, TypeError, RecursionError, ValueError):
        return ""
    return text if len(text) <= _QUOTED_CHARS else text[:_QUOTED_CHARS] + "…"
