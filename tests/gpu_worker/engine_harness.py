"""Drives an engine by hand: what a scheduler would send, spelled out; and tiny random models to drive it with."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from gpu_worker.engine import StepResult
from gpu_worker.load import load_torch_engine
from gpu_worker.torch_engine import Debug, TorchEngine
from policies.vocabulary import BLOCK_SIZE, NewRow, Sampling, Step, pack_tokens

GREEDY = Sampling(temperature=0.0, ignore_eos=True)
VOCAB = 300

_SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "head_dim": 16,
    "initializer_range": 0.15,  # far from uniform, so that no two logits are near
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
}


def save_model(family: str, directory: Path, **changes: Any) -> Any:
    """A tiny random model of a family, saved in `directory`; biases and norm weights are not what they start as."""
    name, own = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**_SHAPE, **own, **changes})
    torch.manual_seed(7)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter, tensor in model.named_parameters():
            if "norm" in parameter:
                tensor.uniform_(0.5, 1.5)
            elif parameter.endswith("bias"):
                tensor.normal_(0, 0.3)
    model.save_pretrained(directory)
    return model


def load(directory: Path, **options: Any) -> TorchEngine:
    """A small engine on one thread, with every debug switch on."""
    settings: dict[str, Any] = {"device": "cpu", "blocks": 64, "host_blocks": 16, "slots": 8, "threads": 1}
    settings |= {"measure": False, "debug": Debug(poison=True, integrity=True)}
    return load_torch_engine(directory, **{**settings, **options})


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random ids, none of them special."""
    r = random.Random(seed)
    return [r.randrange(3, VOCAB) for _ in range(length)]


def greedy_reference(model: Any, ids: list[int], outputs: int) -> tuple[list[int], torch.Tensor]:
    """The greedy tokens of transformers, and the logits `[outputs, vocabulary]` they were taken from."""
    tokens, logits = list(ids), []
    with torch.no_grad():
        for _ in range(outputs):
            last = model(torch.tensor([tokens])).logits[0, -1]
            logits.append(last)
            tokens.append(int(last.argmax()))
    return tokens[len(ids) :], torch.stack(logits)


@dataclass
class Driver:
    """Numbers steps and keeps what came back, by slot."""

    engine: Any
    number: int = 0
    tokens: dict[int, list[int]] = field(default_factory=dict)
    logits: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    finished: dict[int, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=lambda: list(range(63, -1, -1)))
    blocks: dict[int, list[int]] = field(default_factory=dict)

    def row(
        self,
        slot: int,
        ids: list[int],
        *,
        prompt_tokens: int | None = None,
        outputs: int = 100,
        sampling: Sampling = GREEDY,
        shared: list[int] | None = None,
        computed: int = 0,
        room: int = 100,
    ) -> NewRow:
        """A new row with blocks for its ids and `room` tokens more; `shared` are its first blocks."""
        first = list(shared or [])
        need = -(-(len(ids) + room) // BLOCK_SIZE) - len(first)
        self.blocks[slot] = first + [self.free.pop() for _ in range(need)]
        self.tokens[slot], self.logits[slot], self.finished[slot] = [], [], 0
        n = prompt_tokens or len(ids)
        return NewRow(
            slot, f"request-{slot}", 1, "gateway", pack_tokens(ids), n, outputs, sampling, self.blocks[slot], computed
        )

    def step(self, rows: dict[int, int], **parts: Any) -> Step:
        """The next step: `rows` are slot: tokens."""
        self.number += 1
        lists: dict[str, Any] = {name: parts.get(name, []) for name in ("drop", "swap_out", "swap_in", "new", "grown")}
        return Step(number=self.number, slots=list(rows), counts=list(rows.values()), **lists)

    def run(self, rows: dict[int, int], **parts: Any) -> StepResult:
        """Execute a step, which must not be refused."""
        return self.take(self.engine.execute(self.step(rows, **parts)))

    def take(self, result: StepResult) -> StepResult:
        """Keep a result."""
        assert not result.done.error, result.done.error
        assert result.done.slots == result.rows.slots
        assert result.done.tokens == result.rows.tokens
        kept = getattr(self.engine, "logits", None)
        for i, (slot, token) in enumerate(zip(result.rows.slots, result.rows.tokens, strict=True)):
            self.tokens[slot].append(token)
            self.finished[slot] = result.rows.finished[i]
            if kept is not None and len(kept) == len(result.rows):
                self.logits[slot].append(kept[i].clone())
        return result

    def drop(self, slot: int) -> None:
        """Give a slot's blocks back; the caller sends the drop."""
        self.free += reversed(self.blocks.pop(slot))
