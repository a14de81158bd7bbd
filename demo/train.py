"""Train the demo model: a small Llama that answers exact tasks, from nothing but text that this package makes up.

    python -m demo.train --out demo/model --seed 0
    python -m demo.train --resume demo/model --out demo/model --seed 1 --rate 1.5e-3

Reproducible: the seed fixes tokenizer, initial weights and data (the arithmetic also depends on machine and thread
count). The matrices are trained with Muon (Jordan et al., 2024), the rest with AdamW. The learning rate is warmed up,
held, and cooled down linearly, since the exact tasks only become exact as its noise goes. Training stops early when
every kind of task is answered well enough on held-out questions.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from demo.batches import ROW_TOKENS, Batch, conversation, documents, pack
from demo.tasks import KINDS, sample
from demo.tokenizer import BEGIN, END, MAX_LENGTH, PAD, save_tokenizer, train_tokenizer

__all__ = ["build_model", "main"]

_ROWS = 11
_TOKENS_A_STEP = _ROWS * ROW_TOKENS
_TARGET = 0.995
_WARMUP_STEPS = 100
_COOLDOWN_SHARE = 0.6
_CHECK_EVERY = 250
_HELD_OUT_A_KIND = 200

# How often a kind is drawn, before the share that training still gets wrong is taken into account. Counts and stories
# are easy and ten times as long as the others, so a few of them are enough.
_DIFFICULTY = {
    "add": 10.0,
    "sort": 6.0,
    "copy": 4.0,
    "reverse": 4.0,
    "spell": 2.0,
    "date": 1.0,
    "day_after": 2.0,
    "count": 0.8,
    "story": 0.4,
}


def build_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """The untrained model: 4 layers of width 256, 4 query heads over 2 key-value heads of 64, tied embeddings."""
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
        use_cache=True,
    )
    return LlamaForCausalLM(config)


class _Weights:
    """The share of each kind in the data: its difficulty, times how much of it training still gets wrong."""

    def __init__(self) -> None:
        self._right = dict.fromkeys(KINDS, 0.0)
        self.shares = dict(_DIFFICULTY)

    def observe(self, kinds: Sequence[str], right: Sequence[bool]) -> None:
        for kind, answered in zip(kinds, right, strict=True):
            # Some of every story's words are drawn at random, so that training can never get all of them right.
            if kind != "story":
                self._right[kind] += 0.005 * (answered - self._right[kind])
                self.shares[kind] = _DIFFICULTY[kind] * (0.15 + (1 - self._right[kind]) ** 0.5)


def _logits(model: LlamaForCausalLM, batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[answer tokens, vocabulary]` in float32 and their targets `[answer tokens]`."""
    document = batch.document.to(device)
    allowed = (document[:, :, None] == document[:, None, :]).tril()
    mask = torch.zeros(allowed.shape, device=device).masked_fill(~allowed, torch.finfo(torch.float32).min)
    target = batch.target.to(device)
    wanted = target >= 0
    with torch.autocast(device.type, torch.bfloat16):
        hidden = model.model(
            batch.ids.to(device),
            attention_mask=mask[:, None],
            position_ids=batch.position.to(device),
            use_cache=False,
        ).last_hidden_state[wanted]
        logits = model.lm_head(hidden)
    return logits.float(), target[wanted]


def _right_documents(batch: Batch, logits: torch.Tensor, target: torch.Tensor) -> list[bool]:
    """Which conversations have every answer token right: just those that greedy decoding would answer right."""
    right = torch.ones(len(batch.kinds), dtype=torch.bool)
    document = batch.document[batch.target >= 0]
    right[document[(logits.argmax(-1) != target).cpu()]] = False
    return right.tolist()


def _held_out_accuracy(model: LlamaForCausalLM, tokenizer: Tokenizer, device: torch.device) -> dict[str, float]:
    """Share of held-out questions answered right, by kind; a story counts as right if it is the canonical one."""
    rng = Random("held out")
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    questions = [sample(kind, rng, held_out=True) for kind in KINDS for _ in range(_HELD_OUT_A_KIND)]
    pending = [conversation(tokenizer, [(task.prompt, task.answer)], kind=task.kind) for task in questions]
    with torch.inference_mode():
        while pending:
            batch = pack(iter(pending), _ROWS)
            pending = pending[len(batch.kinds) :]
            for kind, answered in zip(
                batch.kinds, _right_documents(batch, *_logits(model, batch, device)), strict=True
            ):
                right[kind].append(answered)
    return {kind: sum(answers) / len(answers) for kind, answers in right.items()}


def _optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    inside = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _train(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    *,
    rng: Random,
    rate: float,
    steps: int,
    minutes: float,
    device: torch.device,
) -> None:
    weights = _Weights()
    source = documents(tokenizer, rng, weights.shares)
    optimizers = _optimizers(model, rate)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = [group["lr"] for group in groups]
    started = time.monotonic()
    spent = 0.0
    for step in range(1, steps + 1):
        # Where time runs out before the steps do, the cool-down follows the clock.
        progress = max(step / steps, spent / minutes)
        batch = pack(source, _ROWS)
        logits, target = _logits(model, batch, device)
        loss = nn.functional.cross_entropy(logits, target)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = max(0.0, min(1.0, step / _WARMUP_STEPS, (1 - progress) / _COOLDOWN_SHARE))
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        weights.observe(batch.kinds, _right_documents(batch, logits.detach(), target))
        spent = (time.monotonic() - started) / 60
        if step % _CHECK_EVERY and progress < 1:
            continue
        accuracy = _held_out_accuracy(model, tokenizer, device)
        speed = step * _TOKENS_A_STEP / (spent * 60)
        listing = " ".join(f"{kind} {share:.1%}" for kind, share in accuracy.items())
        print(f"step {step} loss {loss.item():.4f} {spent:.1f} min {speed:,.0f} tokens/s | {listing}", flush=True)
        if progress >= 1 or min(accuracy.values()) >= _TARGET:
            return


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train and write a model directory in the Hugging Face layout, weights in bfloat16."""
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model", help="directory to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="directory of a model to train on, with its tokenizer")
    parser.add_argument("--rate", type=float, default=4e-3, help="learning rate before the cool-down")
    parser.add_argument("--steps", type=int, default=3000, help="at most so many steps")
    parser.add_argument("--minutes", type=float, default=25.0, help="at most about so long")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.resume is None:
        tokenizer = train_tokenizer(options.seed)
        model = build_model(tokenizer)
    else:
        tokenizer = Tokenizer.from_file(str(options.resume / "tokenizer.json"))
        model = LlamaForCausalLM.from_pretrained(options.resume, dtype=torch.float32)
    nn.Module.to(model, device)  # the stub of transformers loses `self`
    size = sum(weight.numel() for weight in model.parameters())
    print(f"{size / 1e6:.2f} M parameters, {tokenizer.get_vocab_size()} tokens, on {device}", flush=True)
    _train(
        model,
        tokenizer,
        rng=Random(options.seed),
        rate=options.rate,
        steps=options.steps,
        minutes=options.minutes,
        device=device,
    )
    save_tokenizer(tokenizer, options.out)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.cpu().bfloat16().save_pretrained(options.out)
    # save_pretrained gives the weights to their owner alone.
    (options.out / "model.safetensors").chmod(0o644)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
