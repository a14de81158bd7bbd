"""The mock device: no torch, modelled time, tokens that can be predicted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_harness import Driver, prompt

from gpu_worker.engine import load_engine
from gpu_worker.errors import BadModelDirectory
from gpu_worker.mock import MockEngine, mock_token
from policies.step_time import step_time
from policies.vocabulary import Sampling, StepTimeCoefficients

Models = dict[str, tuple[Any, Path]]
COEFFICIENTS = StepTimeCoefficients(0.010, 0.002, 0.001, 1e-5, 1e-6, 1e-4)


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    """See Clock."""
    return Clock()


@pytest.fixture
def driver(clock: Clock) -> Driver:
    """A mock of 64 blocks on that clock."""
    spec = MockEngine.load(blocks=64, host_blocks=64, step_time=COEFFICIENTS).spec
    return Driver(MockEngine(spec, clock=clock, sleep=clock.sleep))


def test_it_runs_without_torch_and_numpy() -> None:
    """A process that loads the mock through the common entry has neither."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from gpu_worker.engine import load_engine\n"
        "from policies.vocabulary import NewRow, Sampling, Step, pack_tokens\n"
        "engine = load_engine(None, device='mock')\n"
        "row = NewRow(0, 'r', 1, 'g', pack_tokens([1, 2]), 2, 4, Sampling(), [0], 0)\n"
        "print(len(engine.execute(Step(1, [], [], [], [row], [0], [2], [])).rows))\n"
        "print(sorted({'torch', 'numpy', 'numba', 'triton'} & set(sys.modules)))\n"
    )
    root = str(Path(__file__).parents[2])
    found = subprocess.run([sys.executable, "-c", program, root], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["1", "[]"]


def test_a_step_takes_its_modelled_time(driver: Driver, clock: Clock) -> None:
    """Dense work above the floor, attention by context, and a share for each row."""
    result = driver.run({0: 40}, new=[driver.row(0, prompt(40))])
    expected = 0.002 + 0.040 + 1e-5 * 40 * 20 + 1e-4
    assert result.done.duration_s == pytest.approx(expected)
    assert clock.now == pytest.approx(100 + expected)
    assert driver.run({0: 1}).done.duration_s == pytest.approx(0.010 + 1e-6 * 41 + 1e-4)


def test_steps_queue_on_the_device(driver: Driver, clock: Clock) -> None:
    """Two steps launched at once end one after the other, and is_done tells when."""
    first = driver.engine.launch(driver.step({0: 40}, new=[driver.row(0, prompt(40))]))
    second = driver.engine.launch(driver.step({0: 1}))
    assert not driver.engine.is_done(first)
    driver.engine.collect(first)
    assert not driver.engine.is_done(second)
    driver.engine.collect(second)
    assert clock.now == pytest.approx(100 + first.duration_s + second.duration_s)


def test_tokens_depend_on_seed_and_position_alone(driver: Driver) -> None:
    """A stream can be checked, and goes on the same after recompute in another slot."""
    sampling = Sampling(seed=77)
    driver.run({0: 20}, new=[driver.row(0, prompt(20), sampling=sampling)])
    for _ in range(3):
        driver.run({0: 1})
    expected = [mock_token(77, position, 32000) for position in range(20, 28)]
    assert driver.tokens[0] == expected[:4]
    driver.drop(0)
    back = driver.row(5, prompt(20) + driver.tokens[0], prompt_tokens=20, sampling=sampling)
    driver.run({5: 24}, drop=[0], new=[back])
    for _ in range(3):
        driver.run({5: 1})
    assert driver.tokens[5] == expected[4:]


def test_copies_take_the_links_time(driver: Driver) -> None:
    """A step that only copies lasts as long as its bytes take."""
    driver.run({0: 20}, new=[driver.row(0, prompt(20))])
    result = driver.run({}, swap_out=[(driver.blocks[0][0], 0), (driver.blocks[0][1], 1)])
    spec = driver.engine.spec
    assert result.done.duration_s == pytest.approx(2 * spec.block_bytes / spec.swap_bytes_per_s)


def test_it_takes_its_shape_from_a_model_directory(models: Models, tmp_path: Path) -> None:
    """Vocabulary, context and block size are the model's; a directory without a config is refused."""
    directory = models["qwen3"][1]
    engine = load_engine(directory, device="mock", model="x", slots=3)
    assert (engine.spec.model, engine.spec.slots, engine.spec.max_context) == ("x", 3, 512)
    assert engine.spec.block_bytes == 3 * 2 * 2 * 16 * 16 * 2
    with pytest.raises(BadModelDirectory):
        load_engine(tmp_path, device="mock")


def test_logprobs_have_the_asked_for_shape(driver: Driver) -> None:
    """Chosen first, then n, falling."""
    result = driver.run({0: 20}, new=[driver.row(0, prompt(20), sampling=Sampling(logprobs=3))])
    found = result.rows.logprobs[0]
    assert found is not None
    assert len(found) == 4
    assert found[0] == found[1]
    assert [p for _, p in found[1:]] == sorted((p for _, p in found[1:]), reverse=True)


def test_steps_of_a_constant_length_can_be_asked_for() -> None:
    """With `mock_step_s` a step takes that long, whether it has one token or many."""
    spec = load_engine(None, device="mock", mock_step_s=0.003).spec
    assert step_time(spec.step_time, 1, 0, 1, 1) == step_time(spec.step_time, 2000, 1e6, 1000, 64) == 0.003
