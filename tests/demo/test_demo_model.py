"""The model directory that ships with Headgate, read by plain `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from demo.tasks import EXACT_KINDS, check, sample

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
evaluate = pytest.importorskip("demo.evaluate")
tokenizing = pytest.importorskip("demo.tokenizer")

DIRECTORY = Path(evaluate.__file__).parent / "model"
_PER_KIND = 8


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(DIRECTORY)


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype=torch.float32).eval()


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, ask: bool = True) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    assert isinstance(text, str)
    return text


def _answer(model: Any, tokenizer: Any, text: str) -> str:
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=400)
    decoded = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert isinstance(decoded, str)
    return decoded


def test_the_directory_is_complete_and_small() -> None:
    """Everything that a loader of Hugging Face directories looks for is there, in 10 MB or less."""
    files = {path.name: path.stat().st_size for path in DIRECTORY.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= set(files)
    assert sum(files.values()) <= 10_000_000
    config = json.loads((DIRECTORY / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 2048
    assert config["num_key_value_heads"] < config["num_attention_heads"]


def test_weights_are_bfloat16() -> None:
    """The shipped weights take two bytes each."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(DIRECTORY)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}


def test_the_tokenizer_is_the_one_that_the_script_trains(tmp_path: Path) -> None:
    """Training the tokenizer again gives the shipped files."""
    tokenizing.save_tokenizer(tokenizing.train_tokenizer(0), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((DIRECTORY / name).read_text())


def test_the_chat_template_round_trips(tokenizer: Any) -> None:
    """Tokenising a rendered chat and decoding it gives the same text, each message between its own markers."""
    messages = [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": "spell: river"},
        {"role": "assistant", "content": "r-i-v-e-r"},
        {"role": "user", "content": " 37+58= "},
    ]
    text = _rendered(tokenizer, messages)
    assert text == (
        "<|begin|><|system|>Be exact.<|end|><|user|>spell: river<|end|><|assistant|>r-i-v-e-r<|end|>"
        "<|user|>37+58=<|end|><|assistant|>"
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert [ids[0], ids[-1]] == tokenizer.convert_tokens_to_ids(["<|begin|>", "<|assistant|>"])


def test_a_developer_message_is_a_system_message_and_other_roles_are_refused(tokenizer: Any) -> None:
    """The template knows the roles of the chat API and says so when it meets another."""
    assert "<|system|>Be exact." in _rendered(tokenizer, [{"role": "developer", "content": "Be exact."}])
    with pytest.raises(Exception, match="roles are system, user and assistant, not tool"):
        _rendered(tokenizer, [{"role": "tool", "content": "42"}])


def test_training_writes_what_the_chat_template_writes(tokenizer: Any) -> None:
    """A training conversation has the tokens of the rendered template, and counts its answers alone."""
    batches = pytest.importorskip("demo.batches")
    turns = [("37+58=", "95"), ("copy: xkq7", "xkq7")]
    document = batches.conversation(tokenizer.backend_tokenizer, turns, kind="copy", system="Be exact.")
    messages = [{"role": "system", "content": "Be exact."}]
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    assert tokenizer.decode(document.ids) == _rendered(tokenizer, messages, ask=False)
    answered = [token for token, counts in zip(document.ids, document.answered, strict=True) if counts]
    assert tokenizer.decode(answered) == "95<|end|>xkq7<|end|>"


@pytest.mark.parametrize("text", ["Zoé met 🦊🐻 at the café", "tabs\tand\nlines", "", "“ä” 漢字 \u200d", "a  b   c"])
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    """Encoding and decoding gives the text back, byte for byte."""
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_characters_outside_ascii_take_several_tokens(tokenizer: Any) -> None:
    """A token may be part of a character, so that whoever streams has to wait for the rest."""
    assert len(tokenizer("é", add_special_tokens=False)["input_ids"]) == 2
    assert len(tokenizer("🦊", add_special_tokens=False)["input_ids"]) == 4


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_held_out_questions_are_answered_right(model: Any, tokenizer: Any, kind: str) -> None:
    """Of a fixed handful of each kind at most one is wrong; the model is right about 99 times in 100, not always."""
    rng = Random(f"fixed {kind}")
    questions = [sample(kind, rng, held_out=True) for _ in range(_PER_KIND)]
    told = evaluate.answers(model, tokenizer, [task.prompt for task in questions])
    wrong = [(task.prompt, text) for task, text in zip(questions, told, strict=True) if not check(task, text)]
    assert len(wrong) <= 1, wrong


@pytest.mark.parametrize("hero", ["fox", "snail"])
def test_a_story_is_told_to_its_end(model: Any, tokenizer: Any, hero: str) -> None:
    """A story is grammatical, about its hero, stops by itself, and takes 60 to 150 tokens."""
    rng = Random(0)
    task = next(task for task in iter(lambda: sample("story", rng), None) if task.identity == hero)
    (text,) = evaluate.answers(model, tokenizer, [task.prompt])
    assert check(task, text)
    assert 60 <= len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 150


def test_system_messages_and_earlier_turns_do_not_disturb_the_answer(model: Any, tokenizer: Any) -> None:
    """The last question is answered right after a system message and an earlier turn."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "count: 1 to 12"},
        {"role": "assistant", "content": "1 2 3 4 5 6 7 8 9 10 11 12"},
        {"role": "user", "content": "37+58="},
    ]
    assert _answer(model, tokenizer, _rendered(tokenizer, messages)) == "95"


def test_text_completion_works_without_the_template(model: Any, tokenizer: Any) -> None:
    """After `<|begin|>`, a question and a line feed, the plain continuation is the answer."""
    assert _answer(model, tokenizer, "<|begin|>reverse: abcd\n") == "dcba"
