"""Measure a demo model: greedy answers to held-out questions, through its own chat template and plain `transformers`.

    python -m demo.evaluate [MODEL_DIRECTORY]

Exits with 1 when fewer than 98 % of the exact questions are answered right.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.tasks import EXACT_KINDS, KINDS, Task, check, sample

__all__ = ["REQUIRED_ACCURACY", "answers", "main"]

REQUIRED_ACCURACY = 0.98
_BATCH = 256
_MAX_NEW_TOKENS = 400


def answers(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Greedy answers of a `transformers` model to single user messages, in the order of `prompts`."""
    tokenizer.padding_side = "left"
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]
    found: list[str] = []
    for start in range(0, len(texts), _BATCH):
        inputs = tokenizer(
            texts[start : start + _BATCH], return_tensors="pt", padding=True, add_special_tokens=False
        ).to(model.device)
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=_MAX_NEW_TOKENS)
        found += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: print accuracy by kind and overall; 1 when the exact tasks are below 98 %."""
    parser = argparse.ArgumentParser(prog="python -m demo.evaluate", description=main.__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-kind", type=int, default=150, help="held-out questions of each kind")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--errors", type=int, default=5, help="print at most so many wrong answers of each kind")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    rng = Random(options.seed)
    started = time.monotonic()
    right: dict[str, int] = {}
    for kind in KINDS:
        questions = _questions(kind, rng, options.per_kind)
        # One batch per kind: the questions of a kind have answers of similar length, so few rows wait for others.
        told = answers(model, tokenizer, [task.prompt for task in questions])
        wrong = [(task, text) for task, text in zip(questions, told, strict=True) if not check(task, text)]
        right[kind] = len(questions) - len(wrong)
        print(f"{kind:10} {right[kind] / len(questions):7.2%} of {len(questions)}", flush=True)
        for task, text in wrong[: options.errors]:
            print(f"    {task.prompt!r} -> {text!r}, not {task.answer!r}")
    asked = options.per_kind * len(EXACT_KINDS)
    accuracy = sum(right[kind] for kind in EXACT_KINDS) / asked
    print(
        f"{'exact':10} {accuracy:7.2%} of {asked} held-out questions, {time.monotonic() - started:.0f} s; "
        f"required {REQUIRED_ACCURACY:.0%}"
    )
    return 0 if accuracy >= REQUIRED_ACCURACY else 1


def _questions(kind: str, rng: Random, count: int) -> list[Task]:
    return [sample(kind, rng, held_out=True) for _ in range(count)]


if __name__ == "__main__":
    sys.exit(main())
