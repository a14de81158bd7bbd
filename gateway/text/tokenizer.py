"""The text side of a model: what a Hugging Face directory says about characters, and nothing about weights."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from gateway.errors import ContextTooLong, ModelTextError
from gateway.text.chat_template import ChatTemplate
from gateway.text.detokenize import ByteDetokenizer, ByteTable, Detokenizer, WindowDetokenizer, byte_table

__all__ = ["ModelText", "load_model_text"]

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class ModelText:
    """Tokens of one model. Encoding and rendering may be called from any thread; the rest is cheap.

    `eos_ids` end a generation; `max_context` bounds prompt and output together, in tokens.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        *,
        max_context: int,
        eos_ids: Sequence[int] = (),
        template: str | None = None,
        variables: Mapping[str, str] | None = None,
        created_unix_s: int | None = None,
    ) -> None:
        self.name = name
        self.max_context = max_context
        self.eos_ids = tuple(sorted(set(eos_ids)))
        self.created_unix_s = int(time.time()) if created_unix_s is None else created_unix_s
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(index for index, token in added.items() if token.special)
        control = [token.content for token in added.values() if token.special]
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise ModelTextError(f"the tokenizer of model {name} has an empty vocabulary")
        self.vocabulary_size = max(vocabulary.values()) + 1
        self._table: ByteTable | None = None
        if _is_byte_level(tokenizer):
            self._table = byte_table(tokenizer, self._special)
        spelled = [token.encode() for token in vocabulary] if self._table is None else self._table
        self.longest_token_bytes = max(len(token) for token in (*spelled, *(text.encode() for text in control)))
        self.template = ChatTemplate(template, variables=variables or {}, control=control) if template else None

    def check_length(self, texts: Sequence[str], *, param: str) -> None:
        """Refuse a text that cannot fit whatever its tokens are, for the price of its length.

        :raises ContextTooLong: it has more bytes than a full context of the longest tokens.
        """
        limit = self.max_context * self.longest_token_bytes
        size = sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
        if size > limit:
            raise ContextTooLong(
                f"`{param}` has {size} bytes; the context of {self.name} is {self.max_context} tokens, "
                f"which is {limit} bytes at most.",
                param=param,
            )

    def encode(self, parts: Sequence[str], *, add_special_tokens: bool) -> list[int]:
        """Ids of the parts, one after the other. A special token is recognised only inside a part, never across two."""
        encoded = self._tokenizer.encode_batch_fast(list(parts[:1]), add_special_tokens=add_special_tokens)
        if len(parts) > 1:
            encoded += self._tokenizer.encode_batch_fast(list(parts[1:]), add_special_tokens=False)
        return [index for encoding in encoded for index in encoding.ids]

    def detokenizer(self) -> Detokenizer:
        """A fresh stream of text."""
        if self._table is not None:
            return ByteDetokenizer(self._table)
        return WindowDetokenizer(self._tokenizer, self._special)

    def token_bytes(self, token: int) -> bytes:
        """What one token stands for by itself, special tokens spelled out. Empty for ids that have no text."""
        if token in self._special or self._table is None:
            return self._tokenizer.decode([token], skip_special_tokens=False).encode()
        return self._table[token] if 0 <= token < len(self._table) else b""


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether the decoder is `ByteLevel` and nothing else: then a token is exactly its bytes."""
    if tokenizer.decoder is None:
        return False
    # Its pickled state is its JSON; that of the whole tokenizer would be megabytes.
    decoder = msgspec.json.decode(tokenizer.decoder.__getstate__())
    if decoder.get("type") == "Sequence":
        inner = decoder["decoders"]
        decoder = inner[0] if len(inner) == 1 else {}
    return bool(decoder.get("type") == "ByteLevel")


def load_model_text(directory: Path | str, *, name: str | None = None, max_context: int | None = None) -> ModelText:
    """Read tokenizer.json, tokenizer_config.json, chat_template.jinja, config.json and generation_config.json.

    `name` defaults to the directory's. `max_context` is what the worker serves, if that is less than the
    configuration says.

    :raises ModelTextError: a file is missing or malformed.
    """
    path = Path(directory)
    try:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the library raises a bare Exception
        raise ModelTextError(f"cannot read {path / 'tokenizer.json'}: {error}") from error
    config = _read(path / "config.json")
    settings = _read(path / "tokenizer_config.json")
    generation = _read(path / "generation_config.json")
    variables = {
        key: token
        for key in _SPECIAL_NAMES
        if (token := _spelling(settings.get(key, _read(path / "special_tokens_map.json").get(key))))
    }
    context = config.get("max_position_embeddings", settings.get("model_max_length"))
    if not isinstance(context, int) or context < 2:
        raise ModelTextError(f"{path / 'config.json'} has no max_position_embeddings of at least 2, it has {context!r}")
    eos: list[int] = []
    for source in (generation, config):
        value = source.get("eos_token_id")
        eos += [value] if isinstance(value, int) else value or []
    if (eos_token := tokenizer.token_to_id(variables.get("eos_token", ""))) is not None:
        eos.append(eos_token)
    return ModelText(
        name or path.resolve().name,
        tokenizer,
        max_context=min(context, max_context or context),
        eos_ids=eos,
        template=_template(path, settings),
        variables=variables,
        created_unix_s=int((path / "tokenizer.json").stat().st_mtime),
    )


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, OSError) as error:
        raise ModelTextError(f"cannot read {path}: {error}") from error


def _spelling(token: Any) -> str | None:
    """A special token is written as a string or as an object with `content`."""
    return token.get("content") if isinstance(token, dict) else token


def _template(path: Path, settings: dict[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config's: a string, or a list of named ones of which `default` is taken."""
    file = path / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default") or next(iter(named.values()), None)
    return template
