"""Token ids to text, a few at a time, never half a character.

Two ways, chosen once per model from its decoder:

- A byte-level vocabulary gives each token as bytes, so the stream is an incremental UTF-8 decoder over a table: exact
  for any split, and a fraction of a microsecond a token.
- Any other decoder (byte fallback, word pieces) is asked to decode a short window: the tokens since the last point
  where the text was complete, with the ones before it as context. Prefix and read offsets move on, so a token costs
  the same anywhere in the text. The scheme is that of text-generation-inference and vLLM, with the window bounded
  here.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol

from tokenizers import Tokenizer

__all__ = ["ByteDetokenizer", "ByteTable", "Detokenizer", "WindowDetokenizer", "byte_table"]

_REPLACEMENT = "�"
# A character has 4 bytes at most, so no text is incomplete for longer than this: what still looks so is not text.
_LONGEST_HOLD = 8

#: For each id its bytes; empty for special tokens, which are not part of the text.
ByteTable = list[bytes]


class Detokenizer(Protocol):
    """The text of one sequence of tokens."""

    def feed(self, tokens: Sequence[int]) -> str:
        """The characters that are complete with these tokens, after those returned before."""
        ...

    def finish(self) -> str:
        """What is left: U+FFFD in place of characters that never became complete."""
        ...


def _byte_of_char() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: printable Latin-1 stands for itself, the other bytes for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(0x100) if byte not in set(printable))
    table.update({chr(0x100 + offset): byte for offset, byte in enumerate(others)})
    return table


def byte_table(tokenizer: Tokenizer, special: Iterable[int]) -> ByteTable:
    """The bytes of every id of a byte-level vocabulary (its decoder is `ByteLevel`)."""
    of_char = _byte_of_char()
    skipped = set(special)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        if index in skipped:
            continue
        try:
            table[index] = bytes(of_char[char] for char in token)
        except KeyError:  # an added token is spelled out, not in the alphabet: the decoder takes it as it is
            table[index] = token.encode()
    return table


class ByteDetokenizer:
    """For byte-level vocabularies."""

    __slots__ = ("_decode", "_table")

    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def feed(self, tokens: Sequence[int]) -> str:
        table = self._table
        # Ids past the vocabulary are rows of a padded embedding; they have no text.
        return self._decode(b"".join([table[token] for token in tokens if token < len(table)]))

    def finish(self) -> str:
        return self._decode(b"", True)


class WindowDetokenizer:
    """For every other decoder."""

    __slots__ = ("_prefix_chars", "_read", "_special", "_tokenizer", "_window")

    def __init__(self, tokenizer: Tokenizer, special: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._window: list[int] = []  # context, then the tokens that are read but not complete
        self._read = 0  # how many of the window are context
        self._prefix_chars = 0  # length of the context's text

    def feed(self, tokens: Sequence[int]) -> str:
        parts = []
        for token in tokens:
            if token in self._special:
                continue
            self._window.append(token)
            behind = self._tokenizer.decode(self._window)[self._prefix_chars :]
            held = len(self._window) - self._read
            if (behind and not behind.endswith(_REPLACEMENT)) or held > _LONGEST_HOLD:
                parts.append(behind)
                # What is complete becomes the context, and the context before it is forgotten.
                del self._window[: self._read]
                self._read = held
                self._prefix_chars = len(self._tokenizer.decode(self._window))
        return "".join(parts)

    def finish(self) -> str:
        return self._tokenizer.decode(self._window)[self._prefix_chars :]
