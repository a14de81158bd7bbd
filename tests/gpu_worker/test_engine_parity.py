"""The engine computes what transformers computes, however the work is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import Driver, greedy_reference, load, prompt, save_model

Models = dict[str, tuple[Any, Path]]
OUTPUTS = 12
TOLERANCE = 1e-4


def check(driver: Driver, slot: int, expected: tuple[list[int], torch.Tensor], skip: int = 0) -> None:
    """Tokens are identical, and logits where they were kept."""
    tokens, logits = expected
    assert driver.tokens[slot] == tokens[skip : skip + len(driver.tokens[slot])]
    if driver.logits[slot]:
        found = torch.stack(driver.logits[slot])
        assert (found - logits[skip : skip + len(found)]).abs().max() < TOLERANCE


def start(directory: Path, **options: Any) -> Driver:
    engine = load(directory, **options)
    engine.keep_logits = True
    return Driver(engine)


def decode(driver: Driver, slot: int, steps: int) -> None:
    for _ in range(steps):
        driver.run({slot: 1})


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "qwen2"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_whole_prefill_then_decode_matches(models: Models, family: str, backend: str) -> None:
    """Every family gives transformers' logits and greedy tokens, with the fast backend and with the plain one."""
    model, directory = models[family]
    ids = prompt(75)
    driver = start(directory, backend=backend)
    driver.run({0: 75}, new=[driver.row(0, ids)])
    decode(driver, 0, OUTPUTS - 1)
    assert len(driver.logits[0]) == OUTPUTS
    check(driver, 0, greedy_reference(model, ids, OUTPUTS))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_of_any_size_match(models: Models, family: str, chunk: int) -> None:
    """A prompt computed in chunks gives what it gives at once, and samples only at its end."""
    model, directory = models[family]
    ids = prompt(80, seed=chunk)
    driver = start(directory)
    done = 0
    while done < len(ids):
        count = min(chunk, len(ids) - done)
        result = driver.run({0: count}, new=[driver.row(0, ids)] if not done else [])
        done += count
        assert len(result.rows) == (done == len(ids))
    decode(driver, 0, 4)
    check(driver, 0, greedy_reference(model, ids, 5))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_mixed_batches_match(models: Models, family: str) -> None:
    """Decodes, chunks of other prompts and new prompts in one step do not touch each other."""
    model, directory = models[family]
    prompts = {slot: prompt(length, seed=slot) for slot, length in enumerate((20, 90, 33, 150))}
    expected = {slot: greedy_reference(model, ids, 6) for slot, ids in prompts.items()}
    driver = start(directory, tokens_per_step=512)
    new = {slot: driver.row(slot, ids, room=8) for slot, ids in prompts.items()}
    driver.run({0: 20, 1: 40}, new=[new[0], new[1]])
    driver.run({0: 1, 1: 5, 2: 33}, new=[new[2]])
    driver.run({2: 1, 1: 45, 0: 1, 3: 100}, new=[new[3]])
    driver.run({1: 1, 0: 1, 3: 50, 2: 1})
    for _ in range(2):
        driver.run({0: 1, 1: 1, 2: 1, 3: 1})
    for slot, reference in expected.items():
        assert len(driver.tokens[slot]) >= 3
        check(driver, slot, reference)


def test_a_prefix_hit_matches(models: Models) -> None:
    """A request that begins on blocks another one filled gives what it gives alone."""
    model, directory = models["qwen3"]
    shared = prompt(48)
    first, second = shared + prompt(20, seed=1), shared + prompt(9, seed=2)
    driver = start(directory)
    driver.run({0: 68}, new=[driver.row(0, first)])
    hit = driver.row(1, second, shared=driver.blocks[0][:3], computed=48)
    driver.run({0: 1, 1: 9}, new=[hit])
    for _ in range(4):
        driver.run({0: 1, 1: 1})
    check(driver, 0, greedy_reference(model, first, 6))
    check(driver, 1, greedy_reference(model, second, 5))


def test_blocks_swapped_out_and_back_elsewhere_match(models: Models) -> None:
    """A request preempted by swap goes on where it was, in other blocks and another slot; its old blocks are NaN."""
    model, directory = models["llama"]
    ids = prompt(40)
    driver = start(directory)
    driver.run({0: 40}, new=[driver.row(0, ids, room=8)])
    decode(driver, 0, 4)
    seen, used = driver.tokens[0], driver.blocks[0][:3]
    driver.run({}, swap_out=list(zip(used, (3, 4, 9), strict=True)), drop=[0])
    poisoned = driver.engine.pools.device_pool[used[0]]
    assert poisoned.isnan().all()
    back = driver.row(2, ids + seen, prompt_tokens=40, computed=44)
    driver.run({2: 1}, swap_in=list(zip((3, 4, 9), driver.blocks[2][:3], strict=True)), new=[back])
    decode(driver, 2, 4)
    check(driver, 2, greedy_reference(model, ids, 10), skip=5)


def test_recompute_after_preemption_matches(models: Models) -> None:
    """A request dropped and sent again with its tokens so far goes on with the same tokens and the right indices."""
    model, directory = models["qwen3"]
    ids = prompt(40)
    driver = start(directory)
    driver.run({0: 40}, new=[driver.row(0, ids)])
    decode(driver, 0, 4)
    seen = driver.tokens[0]
    driver.drop(0)
    again = driver.row(1, ids + seen, prompt_tokens=40)
    result = driver.run({1: 45}, drop=[0], new=[again])
    assert result.rows.indices == [5]
    decode(driver, 1, 3)
    check(driver, 1, greedy_reference(model, ids, 9), skip=5)


def test_steps_launched_before_the_last_is_collected_match(models: Models) -> None:
    """A token is read by the next step where it was sampled: nothing of a result is needed to launch ahead."""
    model, directory = models["llama"]
    ids = prompt(30)
    driver = start(directory)
    driver.engine.keep_logits = False
    ahead = [driver.engine.launch(driver.step({0: 30}, new=[driver.row(0, ids)]))]
    for _ in range(7):
        ahead.append(driver.engine.launch(driver.step({0: 1})))
        driver.take(driver.engine.collect(ahead.pop(0)))
    driver.take(driver.engine.collect(ahead.pop(0)))
    assert len(driver.tokens[0]) == 8
    check(driver, 0, greedy_reference(model, ids, 8))


def test_a_table_grows_block_by_block(models: Models) -> None:
    """Blocks granted as a request grows are used in the order they are granted."""
    model, directory = models["llama"]
    ids = prompt(31)
    driver = start(directory)
    driver.run({0: 31}, new=[driver.row(0, ids, room=1)])
    for position in range(31, 50):
        grown = [(0, driver.free.pop())] if position % 16 == 0 else []
        driver.run({0: 1}, grown=grown)
    check(driver, 0, greedy_reference(model, ids, 20))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ],
    ids=lambda rope: str(rope["rope_type"]),
)
def test_stretched_rope_matches(tmp_path: Path, rope: dict[str, Any]) -> None:
    """Each way to stretch the context gives transformers' logits."""
    model = save_model("llama", tmp_path, rope_parameters={"rope_theta": 500.0, **rope})
    ids = prompt(100)
    driver = start(tmp_path)
    driver.run({0: 100}, new=[driver.row(0, ids)])
    decode(driver, 0, 3)
    check(driver, 0, greedy_reference(model, ids, 4))


def test_biases_and_odd_shapes_match(tmp_path: Path) -> None:
    """Attention and MLP biases, a group of three heads, a head size no kernel is unrolled for."""
    shape = {"hidden_size": 72, "num_attention_heads": 6, "head_dim": 24, "attention_bias": True}
    model = save_model("llama", tmp_path, mlp_bias=True, **shape)
    ids = prompt(70)
    driver = start(tmp_path)
    driver.run({0: 70}, new=[driver.row(0, ids)])
    decode(driver, 0, 5)
    check(driver, 0, greedy_reference(model, ids, 6))


def test_a_sharded_checkpoint_is_read(models: Models, tmp_path: Path) -> None:
    """Shards with an index hold the same model as one file; progress is reported up to the whole."""
    model, _ = models["llama"]
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    seen: list[tuple[int, int]] = []
    driver = start(tmp_path, progress=lambda done, total: seen.append((done, total)))
    ids = prompt(20)
    driver.run({0: 20}, new=[driver.row(0, ids)])
    check(driver, 0, greedy_reference(model, ids, 1))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] > 0.9 * seen[-1][1]


def test_bfloat16_is_near(models: Models, tmp_path: Path) -> None:
    """In bfloat16 the logits are transformers' within what the type can hold."""
    model = save_model("qwen3", tmp_path, head_dim=64).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    ids = prompt(100)
    driver = start(tmp_path, dtype="bfloat16")
    assert driver.engine.pools.device_pool.dtype == torch.bfloat16
    driver.run({0: 60}, new=[driver.row(0, ids)])
    driver.run({0: 40})
    driver.run({0: 1})
    expected = greedy_reference(model.float(), ids + driver.tokens[0][:1], 1)[1][0]
    found = driver.logits[0][1].float()
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_two_threads_match_one(models: Models) -> None:
    """Kernels share out their work without stepping on each other."""
    model, directory = models["qwen3"]
    ids = prompt(120)
    try:
        driver = start(directory, threads=2)
        driver.run({0: 120}, new=[driver.row(0, ids)])
        decode(driver, 0, 5)
        check(driver, 0, greedy_reference(model, ids, 6))
    finally:
        torch.set_num_threads(1)
