"""Training rows: conversations about tasks, packed so that next to nothing is spent on padding.

A conversation is short (20 tokens) or long (300), so several share a row and a mask keeps them apart. Most are one
question and its answer; some begin with a system message or an earlier turn, and a few are plain completions without a
template.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer

from demo import stories
from demo.tasks import KINDS, Task, sample
from demo.tokenizer import BEGIN, END

__all__ = ["ROW_TOKENS", "Batch", "Document", "conversation", "documents", "pack"]

ROW_TOKENS = 384

_SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a careful assistant. Answer with the result only.",
    "Answer briefly.",
    "Be exact.",
    "You are the demo model of Headgate.",
    "Reply in one line, without any explanation.",
)


@dataclass(frozen=True, slots=True)
class Document:
    """A conversation in tokens: `ids[i]` is trained on where `answered[i]`; `kind` is that of its last question."""

    ids: list[int]
    answered: list[bool]
    kind: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows, all `[rows, ROW_TOKENS]`.

    `ids` (int64), `document` (int64: which conversation of the batch, -1 is padding), `position` (int64: from 0 in each
    conversation), `target` (int64: the next token, or -100 where it is not part of an answer). `kinds[d]` is the kind
    of conversation d.
    """

    ids: torch.Tensor
    document: torch.Tensor
    position: torch.Tensor
    target: torch.Tensor
    kinds: list[str]


def conversation(
    tokenizer: Tokenizer,
    turns: Sequence[tuple[str, str]],
    *,
    kind: str,
    system: str | None = None,
    plain: bool = False,
) -> Document:
    """Tokens of question-and-answer `turns` as the chat template writes them.

    With `plain`, the text-completion form instead: `<|begin|>question`, a line feed, `answer<|end|>`.
    """
    parts: list[tuple[str, bool]] = [(BEGIN, False)]
    if system is not None:
        parts.append((f"<|system|>{system}{END}", False))
    for question, answer in turns:
        asked = f"{question}\n" if plain else f"<|user|>{question}{END}<|assistant|>"
        parts += [(asked, False), (f"{answer}{END}", True)]
    ids: list[int] = []
    answered: list[bool] = []
    for (_, counts), encoding in zip(
        parts, tokenizer.encode_batch([text for text, _ in parts], add_special_tokens=False), strict=True
    ):
        ids += encoding.ids
        answered += [counts] * len(encoding.ids)
    return Document(ids, answered, kind)


def documents(tokenizer: Tokenizer, rng: Random, weights: dict[str, float]) -> Iterator[Document]:
    """Training conversations without end. `weights` (kind -> share) is read anew for each, so it may change."""
    while True:
        kind = rng.choices(KINDS, [weights[kind] for kind in KINDS])[0]
        tasks = [sample(kind, rng, held_out=False)]
        style = rng.random()
        while style < 0.25 and len(tasks) < 3 and rng.random() < 0.7:
            tasks.insert(0, sample(rng.choice(KINDS), rng, held_out=False))
        document = conversation(
            tokenizer,
            [(task.prompt, _told(task, rng)) for task in tasks],
            kind=kind,
            system=rng.choice(_SYSTEM_MESSAGES) if rng.random() < 0.15 and style < 0.9 else None,
            plain=style > 0.93,
        )
        if len(document.ids) <= ROW_TOKENS:
            yield document


def _told(task: Task, rng: Random) -> str:
    if task.kind == "story":
        return stories.tell(*task.identity.split(","), rng=rng)
    return task.answer


def pack(source: Iterator[Document], rows: int) -> Batch:
    """Fill `rows` rows from `source`, until it ends or a conversation fits in none of them (that one is dropped)."""
    ids = torch.zeros(rows, ROW_TOKENS, dtype=torch.long)
    document = torch.full_like(ids, -1)
    position = torch.zeros_like(ids)
    target = torch.full_like(ids, -100)
    kinds: list[str] = []
    used = [0] * rows
    for item in source:
        length = len(item.ids)
        row = next((row for row in range(rows) if used[row] + length <= ROW_TOKENS), None)
        if row is None:
            break
        span = slice(used[row], used[row] + length)
        ids[row, span] = torch.tensor(item.ids)
        document[row, span] = len(kinds)
        position[row, span] = torch.arange(length)
        following = [token if counts else -100 for token, counts in zip(item.ids[1:], item.answered[1:], strict=True)]
        target[row, span] = torch.tensor([*following, -100])
        kinds.append(item.kind)
        used[row] += length
    return Batch(ids, document, position, target, kinds)
