"""What every engine does with a step besides computing it: refuses, ends, overruns. Real and mock alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from engine_harness import GREEDY, Driver, load, prompt

from gpu_worker.errors import DeviceFailed, EngineError, IntegrityError
from gpu_worker.mock import MockEngine
from gpu_worker.torch_engine import TorchEngine
from policies.vocabulary import Finish, Sampling, Step

Models = dict[str, tuple[Any, Path]]


@pytest.fixture(params=["cpu", "mock"])
def driver(request: pytest.FixtureRequest, models: Models) -> Driver:
    """Either engine, with 64 blocks, 16 on the host, 8 slots, 128 tokens a step."""
    directory = models["llama"][1]
    if request.param == "cpu":
        return Driver(load(directory, tokens_per_step=128))
    mock = MockEngine.load(directory, blocks=64, host_blocks=16, slots=8, tokens_per_step=128)
    return Driver(MockEngine(mock.spec, vocab_size=300, eos_ids=(2,), sleep=lambda seconds: None))


def refused(driver: Driver, rows: dict[int, int], words: str, **parts: Any) -> None:
    """The step is refused for the reason, and gives nothing."""
    result = driver.engine.execute(driver.step(rows, **parts))
    assert words in result.done.error
    assert not result.done.slots
    assert not len(result.rows)


def test_max_tokens_ends_a_request(driver: Driver) -> None:
    """The last output says `length`; indices count outputs from 0."""
    result = driver.run({0: 20}, new=[driver.row(0, prompt(20), outputs=3)])
    assert result.rows.indices == [0]
    assert (result.rows.requests, result.rows.attempts, result.rows.gateways) == (["request-0"], [1], ["gateway"])
    assert driver.run({0: 1}).rows.finished == [Finish.none]
    last = driver.run({0: 1})
    assert (last.rows.indices, last.rows.finished) == ([2], [Finish.length])


def test_rows_of_a_request_that_is_over_give_nothing(driver: Driver) -> None:
    """A row planned before the end was known is absent from the result, and harms nobody."""
    driver.run({0: 20, 1: 20}, new=[driver.row(0, prompt(20), outputs=1), driver.row(1, prompt(20, 1))])
    overrun = driver.run({0: 1, 1: 1})
    assert overrun.rows.slots == [1]
    assert driver.run({1: 1}, drop=[0]).rows.slots == [1]


def test_an_overrun_launched_before_a_stop_is_collected_is_absent(driver: Driver) -> None:
    """A stop token found at collection ends the request, though its next step is on its way."""
    probe = driver.run({0: 20}, new=[driver.row(0, prompt(20), sampling=GREEDY)])
    token = probe.rows.tokens[0]
    driver.drop(0)
    stopping = msgspec.structs.replace(GREEDY, ignore_eos=False, stop_token_ids=(token,))
    ahead = driver.engine.launch(driver.step({1: 20}, drop=[0], new=[driver.row(1, prompt(20), sampling=stopping)]))
    after = driver.engine.launch(driver.step({1: 1}))
    assert driver.engine.collect(ahead).rows.finished == [Finish.stop]
    assert not len(driver.engine.collect(after).rows)


def test_a_stop_token_before_min_tokens_does_not_end(models: Models) -> None:
    """Before `min_tokens` outputs a stop token cannot be drawn; then it ends the request."""
    driver = Driver(load(models["llama"][1]))
    driver.run({0: 20}, new=[driver.row(0, prompt(20))])
    for _ in range(5):
        driver.run({0: 1})
    likely = driver.tokens[0]
    sampling = msgspec.structs.replace(GREEDY, ignore_eos=False, stop_token_ids=tuple(set(likely)), min_tokens=4)
    driver.drop(0)
    driver.run({1: 20}, drop=[0], new=[driver.row(1, prompt(20), sampling=sampling)])
    while not driver.finished[1]:
        driver.run({1: 1})
        assert len(driver.tokens[1]) < 90
    assert not set(driver.tokens[1][:4]) & set(likely)
    assert len(driver.tokens[1]) > 4
    assert driver.finished[1] == Finish.stop


def test_ignore_eos_ignores_the_models_eos_and_no_other_stop_token(driver: Driver) -> None:
    """`ignore_eos` takes the model's EOS ids out of the stop tokens that the gateway added them to."""
    token = driver.run({0: 20}, new=[driver.row(0, prompt(20))]).rows.tokens[0]
    assert token != 2
    for slot, (eos, ignored, finish) in enumerate(
        [((token,), False, Finish.stop), ((token, 2), True, Finish.stop), ((2,), True, Finish.none)], start=1
    ):
        sampling = Sampling(temperature=0.0, stop_token_ids=eos, ignore_eos=ignored)
        result = driver.run({slot: 20}, new=[driver.row(slot, prompt(20), sampling=sampling)])
        assert result.rows.finished == [finish]


def test_a_step_out_of_order_is_refused(driver: Driver) -> None:
    """Numbers are consecutive from 1, and from 1 again after a reset."""
    driver.number = 4
    refused(driver, {}, "step 5 came where 1 was due")
    driver.engine.reset()
    driver.number = 0
    driver.run({})


def test_a_refused_step_changes_nothing(driver: Driver) -> None:
    """After a refusal slots and blocks are as before, even those that the step's first parts touched."""
    driver.run({0: 20}, new=[driver.row(0, prompt(20))])
    before = driver.engine._slots.held()
    again = driver.row(3, prompt(10))
    refused(driver, {3: 10, 7: 1}, "runs slot 7, which is empty", drop=[0], new=[again])
    assert driver.engine._slots.held() == before
    assert driver.run({0: 1}).rows.slots == [0]


@pytest.mark.parametrize(
    ("rows", "parts", "words"),
    [
        ({5: 1}, {}, "runs slot 5, which is empty"),
        ({9: 1}, {}, "slot 9; there are 8"),
        ({0: 2}, {}, "runs 2 tokens of slot 0 from 20, but 21 are known"),
        ({0: 0}, {}, "runs 0 tokens"),
        ({}, {"drop": [4]}, "drops slot 4, which is empty"),
        ({}, {"grown": [(4, 50)]}, "grows slot 4, which is empty"),
        ({}, {"grown": [(0, 64)]}, "device block 64; there are 64"),
        ({}, {"swap_out": [(0, 16)]}, "host block 16; there are 16"),
        ({}, {"swap_out": [(64, 0)]}, "device block 64; there are 64"),
        ({}, {"swap_in": [(3, 60)]}, "host block 3, which was never written"),
    ],
)
def test_what_the_protocol_forbids_is_refused(
    driver: Driver, rows: dict[int, int], parts: dict[str, Any], words: str
) -> None:
    """Each refusal names the step, the value and the rule."""
    driver.run({0: 20}, new=[driver.row(0, prompt(20))])
    refused(driver, rows, words, **parts)


def test_a_block_has_one_writer(driver: Driver) -> None:
    """A block that a slot holds is given to no other to write, by no way; once it is dropped it is."""
    driver.run({0: 20}, new=[driver.row(0, prompt(20), room=4)])
    mine = driver.blocks[0]
    new = driver.row(1, prompt(20))
    refused(driver, {}, "another holds it", new=[msgspec.structs.replace(new, blocks=mine)])
    refused(driver, {}, "another holds it", grown=[(0, mine[0])])
    refused(driver, {}, "still being written", new=[msgspec.structs.replace(new, blocks=[mine[1], 63], computed=16)])
    driver.run({}, swap_out=[(mine[0], 0)])
    refused(driver, {}, "which is in use", swap_in=[(0, mine[0])])
    result = driver.run({1: 20}, drop=[0], swap_in=[(0, 60)], new=[msgspec.structs.replace(new, blocks=mine)])
    assert result.rows.slots == [1]


def test_a_full_block_is_copied_while_its_row_runs_on(driver: Driver) -> None:
    """A copy ahead of need is taken in any step of its row, and is as good as one at the end of it."""
    ids = prompt(20)
    driver.run({0: 20}, new=[driver.row(0, ids)])
    driver.run({0: 1}, swap_out=[(driver.blocks[0][0], 3)])
    for _ in range(3):
        driver.run({0: 1})
    known = [*ids, *driver.tokens[0][:2]]
    block = driver.free.pop()
    new = driver.row(1, known, prompt_tokens=20, shared=[block], computed=16)
    driver.run({1: len(known) - 16}, drop=[0], swap_in=[(3, block)], new=[new])
    for _ in range(2):
        driver.run({1: 1})
    assert driver.tokens[1] == driver.tokens[0][2:]


def test_new_rows_are_checked(driver: Driver) -> None:
    """A row must fit its slot, its blocks, the context, and have something left to do."""
    good = driver.row(0, prompt(20))
    for change, words in (
        ({"computed": 20, "blocks": good.blocks}, "the last must be left"),
        ({"prompt_tokens": 21}, "21 prompt tokens of 20"),
        ({"max_tokens": 1000}, "a context holds 512"),
        ({"prompt_tokens": 15, "max_tokens": 5}, "has all its 5 outputs"),
        ({"blocks": good.blocks[:1], "computed": 19}, "19 computed tokens in 1 blocks"),
        ({"blocks": good.blocks[:1]}, "to token 20 in 1 blocks"),
        ({"blocks": list(range(40))}, "gives slot 0 40 blocks; a context of 512 takes 33"),
    ):
        refused(driver, {0: 1 if "computed" in change else 20}, words, new=[msgspec.structs.replace(good, **change)])
    driver.run({0: 20}, new=[good])
    refused(driver, {}, "slot 0, which is taken", new=[driver.row(0, prompt(5))])


def test_a_step_beyond_its_token_budget_is_refused(driver: Driver) -> None:
    """The budget is what scratch memory was made for."""
    refused(driver, {0: 129}, "runs 129 tokens; 128 are the most", new=[driver.row(0, prompt(140))])


def test_ids_outside_the_vocabulary_are_refused(models: Models) -> None:
    """They would read beside the embedding."""
    driver = Driver(load(models["llama"][1]))
    refused(driver, {0: 3}, "token ids from 5 to 300; the vocabulary has 300", new=[driver.row(0, [5, 300, 7])])
    refused(driver, {0: 2}, "token ids from -1 to 5", new=[driver.row(0, [5, -1])])


def test_results_are_collected_in_order(driver: Driver) -> None:
    """A handle is collected once, oldest first."""
    first = driver.engine.launch(driver.step({0: 20}, new=[driver.row(0, prompt(20))]))
    second = driver.engine.launch(driver.step({0: 1}))
    with pytest.raises(EngineError, match="out of order"):
        driver.engine.collect(second)
    driver.engine.collect(first)
    driver.engine.collect(second)
    with pytest.raises(EngineError, match="second time"):
        driver.engine.collect(second)


def test_running_out_of_memory_refuses_the_step_whole(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that does not fit is refused; the next one runs as if it had not been sent."""
    driver = Driver(load(models["llama"][1]))
    driver.run({0: 20}, new=[driver.row(0, prompt(20))])
    alone = Driver(load(models["llama"][1]))
    alone.run({0: 20}, new=[alone.row(0, prompt(20))])

    def fail(*_: Any) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")

    held = driver.blocks[0]
    with monkeypatch.context() as patch:
        patch.setattr(type(driver.engine.model), "forward", fail)
        refused(driver, {0: 1, 1: 20}, "out-of-memory: step 2", new=[driver.row(1, prompt(20))])
        driver.drop(1)
        seen = driver.tokens[0]
        refused(driver, {0: 30}, "out-of-memory: step 3", drop=[0], new=[driver.row(0, prompt(30, 9))])
    driver.tokens[0], driver.blocks[0] = seen, held
    for d in (driver, alone):
        d.run({0: 1})
        d.run({0: 1})
    assert driver.tokens[0] == alone.tokens[0]


def test_a_device_error_is_raised(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not memory ends the engine."""
    driver = Driver(load(models["llama"][1]))

    def fail(*_: Any) -> torch.Tensor:
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(type(driver.engine.model), "forward", fail)
    with pytest.raises(DeviceFailed, match="device-side assert"):
        driver.engine.launch(driver.step({0: 20}, new=[driver.row(0, prompt(20))]))


def test_integrity_is_checked(models: Models) -> None:
    """A block table that was tampered with is found."""
    driver = Driver(load(models["llama"][1]))
    driver.run({0: 20}, new=[driver.row(0, prompt(20))])
    driver.engine.check_integrity()
    slot = driver.engine._slots.table[0]
    assert slot is not None
    slot.blocks.append(63)
    with pytest.raises(IntegrityError, match=r"\[63\]"):
        driver.engine.check_integrity()


def test_reading_a_token_before_it_is_known_is_found(models: Models) -> None:
    """With poison on, ids that nobody wrote are -1, and a step that reads one raises."""
    engine: TorchEngine = load(models["llama"][1])
    driver = Driver(engine)
    driver.run({0: 20}, new=[driver.row(0, prompt(20))])
    engine._tokens[20] = -1
    with pytest.raises(IntegrityError, match="before it is known"):
        driver.run({0: 1})


def test_logprobs_come_with_the_tokens(models: Models) -> None:
    """The chosen token first, then the most likely; nothing for those who did not ask."""
    driver = Driver(load(models["llama"][1]))
    driver.engine.keep_logits = True
    asked = msgspec.structs.replace(GREEDY, logprobs=3)
    result = driver.run({0: 20, 1: 20}, new=[driver.row(0, prompt(20), sampling=asked), driver.row(1, prompt(20, 1))])
    found = result.rows.logprobs[0]
    assert found is not None
    assert result.rows.logprobs[1] is None
    values, tokens = driver.logits[0][0].log_softmax(-1).topk(3)
    assert [token for token, _ in found] == [result.rows.tokens[0], *tokens.tolist()]
    assert [value for _, value in found] == pytest.approx([values[0].item(), *values.tolist()], abs=1e-5)


def test_close_gives_memory_back(models: Models) -> None:
    """Twice is once."""
    engine = load(models["llama"][1])
    engine.close()
    engine.close()
    assert engine.pools.device_pool.numel() == 0


def test_a_step_may_only_copy(driver: Driver) -> None:
    """A step without rows runs, for its swaps."""
    driver.run({0: 20}, new=[driver.row(0, prompt(20))])
    result = driver.engine.execute(Step(2, [], [(driver.blocks[0][0], 1)], [], [], [], [], []))
    assert result.done.error == ""
    assert not len(result.rows)
