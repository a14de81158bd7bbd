"""`headgate profile` without a stack: an engine is driven with the real scheduler, and what it costs is found."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from gpu_worker.mock import MOCK_STEP_TIME, MockEngine
from headgate.__main__ import main
from headgate.device_file import device_of, to_toml
from headgate.self_profile import profile
from policies.step_time import Features, step_time
from policies.vocabulary import StepTimeCoefficients
from simulator.devices import load_device


class Engine:
    """A mock on a clock that passes only while it works. It tells the seed that it is given, whatever is true of it."""

    def __init__(self, seed: StepTimeCoefficients = MOCK_STEP_TIME) -> None:
        self.now = 0.0
        truth = MockEngine.load(blocks=4096).spec
        self.spec = msgspec.structs.replace(truth, step_time=seed)
        mock = MockEngine(truth, clock=self.clock, sleep=self._sleep)
        self.execute, self.reset = mock.execute, mock.reset

    def clock(self) -> float:
        return self.now

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_costs_of_a_device_are_found() -> None:
    """From a seed that is off by half and knows nothing of attention, steps of any kind are predicted within 2 %."""
    engine = Engine(seed=StepTimeCoefficients(0.009, 0.006, 4e-5))
    measured = profile(engine, seconds=30.0, clock=engine.clock)
    assert measured.steps > 1000
    for probe in (
        Features(1, 0.0, 50, 1),
        Features(64, 0.0, 90_000, 64),
        Features(2000, 2e6, 0, 1),
        Features(600, 9e5, 4000, 20),
    ):
        assert step_time(measured.spec.step_time, *probe) == pytest.approx(step_time(MOCK_STEP_TIME, *probe), rel=0.02)
    assert measured.ratios[1] < 1.01


def test_the_file_reads_back_as_the_device(tmp_path: Path) -> None:
    """TOML with the fields of a device model, whatever the name of the model is made of."""
    engine = Engine()
    measured = profile(engine, seconds=0.5, clock=engine.clock)
    device = device_of(measured, name='Llä"ma\\3\n', source="a test")
    read = tomllib.loads(to_toml(device, measured))
    path = tmp_path / "device.toml"
    path.write_text(to_toml(device, measured), encoding="utf-8")
    assert load_device(path) == device
    assert read == msgspec.structs.asdict(device) | {"step_time": msgspec.structs.asdict(device.step_time)}


def test_an_engine_is_profiled_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The command writes the file and prints it; an engine that cannot load is one line on stderr."""
    path = tmp_path / "mock.toml"
    arguments = ["profile", "--device", "mock", "--slots", "4", "--seconds", "0.3", "--output", str(path), "--json"]
    result = CliRunner().invoke(main, arguments, prog_name="headgate")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["device"]["slots"] == 4
    assert tomllib.loads(path.read_text()) == told["device"]
    assert "Only" in result.stderr
    refused = CliRunner().invoke(main, ["profile", "--model", str(tmp_path), "--device", "cpu"], prog_name="headgate")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "config.json" in refused.stderr


def test_the_command_does_not_load_the_engine() -> None:
    """torch is loaded by the process that is profiled, not by the one that prints."""
    code = "import sys, headgate.commands.profile; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
