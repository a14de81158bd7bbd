"""The schedules of the textbook, column by column (tests/simulator/data/table51.json)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from simulator.textbook.schedules import make_schedule
from simulator.textbook.text import as_text
from simulator.textbook.workload import BadSteps, StepRequest, StepWorkload, Strategy, load_steps

_FILE = Path(__file__).parent / "data" / "table51.json"
_KNOWN: dict[str, Any] = msgspec.json.decode(_FILE.read_bytes())["schedules"]
_MIXED: list[Strategy] = ["static", "dynamic", "continuous", "chunked"]


def _check(workload: StepWorkload, strategy: Strategy, known: dict[str, Any]) -> None:
    schedule = make_schedule(workload, strategy)
    assert schedule.rows == known["rows"]
    assert msgspec.to_builtins(schedule.req) == known["req"]


@pytest.mark.parametrize("strategy", _MIXED)
def test_the_real_scheduler_makes_the_schedules_of_the_textbook(strategy: Strategy) -> None:
    """Every column of every request, and every figure of the table."""
    _check(load_steps(_FILE), strategy, _KNOWN[strategy])


@pytest.mark.parametrize(
    ("transfer", "serial", "known"),
    [
        (0, False, "disagg_x0"),
        (1, False, "disagg_x1"),
        (0, True, "disagg_x0_serial_prefill"),
        (1, True, "disagg_x1_serial_prefill"),
    ],
)
def test_two_schedulers_make_the_disaggregated_schedules(transfer: int, serial: bool, known: str) -> None:
    """One prefills and hands over, the other gets the KV and decodes."""
    workload = msgspec.structs.replace(load_steps(_FILE), transfer=transfer, serial_prefill=serial)
    _check(workload, "disaggregated", _KNOWN[known])


def test_decodes_of_disaggregated_requests_never_stall() -> None:
    """Each column of transfer is one more for everybody, as long as there are slots."""
    base = load_steps(_FILE)
    before = make_schedule(base, "disaggregated")
    for transfer in (1, 2, 5):
        schedule = make_schedule(msgspec.structs.replace(base, transfer=transfer), "disaggregated")
        for name, served in schedule.req.items():
            at_once = before.req[name]
            assert served is not None
            assert at_once is not None
            assert served.finish == at_once.finish + transfer
            assert served.holes == 0


def test_a_request_without_decodes_is_over_where_it_was_prefilled() -> None:
    """Nothing is transferred for it, and others wait for a decode slot with their KV delivered."""
    requests = {
        "a": StepRequest(arrive=0, prefill=1, decode=3),
        "b": StepRequest(arrive=0, prefill=1, decode=0),
        "c": StepRequest(arrive=0, prefill=1, decode=1),
    }
    schedule = make_schedule(StepWorkload(workload=requests, batch=1, transfer=1), "disaggregated")
    assert schedule.rows == {"a": "Pxddd", "b": "P", "c": "Px...d"}


def test_one_at_a_time_is_the_sum_of_all() -> None:
    """With a batch of one there is nobody to stall: a request after the other."""
    workload = msgspec.structs.replace(load_steps(_FILE), batch=1)
    schedule = make_schedule(workload, "continuous")
    assert schedule.makespan == sum(request.prefill + request.decode for request in workload.workload.values())
    assert schedule.useful_share == 1
    assert "#" not in "".join(schedule.rows.values())


def test_prompts_of_different_lengths_end_together_unless_they_are_chunked() -> None:
    """A whole prefill lasts as long as the longest of the iteration; the shorter one is stalled for the rest."""
    requests = {
        "long": StepRequest(arrive=0, prefill=4, decode=1),
        "short": StepRequest(arrive=0, prefill=1, decode=2),
        "tiny": StepRequest(arrive=1, prefill=1, decode=0),
    }
    workload = StepWorkload(workload=requests, batch=3)
    assert make_schedule(workload, "continuous").rows == {"long": "PPPPd", "short": "P###dd", "tiny": " ...P"}
    assert make_schedule(workload, "chunked").rows == {"long": "PPPPd", "short": "Pdd", "tiny": " P"}


def test_long_prompts_share_nothing() -> None:
    """Prompts of many blocks are computed in full, whoever came before."""
    requests = {name: StepRequest(arrive=i, prefill=40, decode=1) for i, name in enumerate("ab")}
    rows = make_schedule(StepWorkload(workload=requests, batch=2), "chunked").rows
    assert rows == {"a": "P" * 40 + "d", "b": " " + "P" * 40 + "d"}


def test_the_workload_of_the_textbook_is_shipped() -> None:
    """By name."""
    shipped, known = load_steps("textbook"), load_steps(_FILE)
    assert (shipped.workload, shipped.batch, shipped.timeout) == (known.workload, known.batch, known.timeout)


def test_the_text_has_a_character_a_step() -> None:
    """And says who never starts."""
    text = as_text(make_schedule(load_steps(_FILE), "static"))
    lines = text.splitlines()
    assert lines[0].split() == ["step", *map(str, range(13))]
    assert lines[1] == "A       .  .  .  .  P  P  d  d  d  d"
    assert "E     never starts" in lines
    assert lines[-1] == "over after 12 steps, mean TTFT 4.50, mean end to end 8.75, slots used 52.1%"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "truncated"),
        ("{", "truncated"),
        ('{"workload": {}, "batch": 4}', r"length >= 1 - at `\$.workload`"),
        ('{"workload": {"A": {"arrive": 0, "prefill": 2, "decode": 1}}}', "missing required field `batch`"),
        ('{"workload": {"A": {"arrive": -1, "prefill": 2, "decode": 1}}, "batch": 4}', ">= 0"),
        ('{"workload": {"A": {"arrive": 0, "prefill": 0, "decode": 1}}, "batch": 4}', ">= 1"),
        ('{"workload": {"A": {"arrive": 0, "prefil": 2, "decode": 1}}, "batch": 4}', "prefil"),
        ('{"workload": {"A": {"arrive": 0.5, "prefill": 2, "decode": 1}}, "batch": 4}', "Expected `int`"),
        ('{"workload": {"A": {"arrive": 0, "prefill": 2, "decode": 1}}, "batch": 0}', r"\$.batch"),
    ],
)
def test_a_wrong_workload_is_refused_with_its_key(tmp_path: Path, text: str, problem: str) -> None:
    """And with an example of a right one."""
    file = tmp_path / "w.json"
    file.write_text(text)
    with pytest.raises(BadSteps, match=problem) as caught:
        load_steps(file)
    assert str(file) in str(caught.value)
    assert '"arrive":0' in str(caught.value)


def test_a_missing_workload_is_refused(tmp_path: Path) -> None:
    """With its path."""
    with pytest.raises(BadSteps, match=r"none\.json: cannot be read"):
        load_steps(tmp_path / "none.json")
