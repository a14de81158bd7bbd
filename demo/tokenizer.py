"""The tokenizer of the demo model: byte-level BPE whose merges are only ever words that follow a space.

Copying, reversing and spelling are about letters, adding about digits. So a text without spaces is split into
characters before BPE sees it, and only words of running text become tokens of their own. What is not ASCII stays bytes:
"é" is two tokens and "🦊" four.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from demo.tasks import KINDS, sample

__all__ = ["BEGIN", "CHAT_TEMPLATE", "END", "MAX_LENGTH", "PAD", "SPECIAL_TOKENS", "save_tokenizer", "train_tokenizer"]

MAX_LENGTH = 2048
PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL_TOKENS = (PAD, BEGIN, END, *ROLES)

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- set role = 'system' if message['role'] == 'developer' else message['role'] -%}
{%- if role not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('roles are system, user and assistant, not ' ~ role) -}}
{%- endif -%}
{{- '<|' ~ role ~ '|>' ~ (message['content'] | trim) ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""
"""`<|begin|>`, then each message as `<|role|>text<|end|>`, then `<|assistant|>` where an answer is asked for."""

# The space after a colon belongs to no word: "spell: river" must reach the model as letters. Oniguruma syntax.
_PIECES = r"(?<=:) | [A-Za-z]+|[\s\S]"
_VOCABULARY = 640


def train_tokenizer(seed: int) -> Tokenizer:
    """Train on the words of sampled tasks. The same seed gives the same tokenizer, byte for byte."""
    rng = Random(seed)
    texts = [text for kind in KINDS for _ in range(400) for text in _texts(kind, rng)]
    words = [word for text in texts for word in re.findall(r"(?<!:) [A-Za-z]+", text)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` in the Hugging Face layout, creating `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": list(ROLES),
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _texts(kind: str, rng: Random) -> tuple[str, str]:
    task = sample(kind, rng, held_out=False)
    return task.prompt, task.answer
