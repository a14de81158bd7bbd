"""How a stack is told what policy it serves by."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from headgate.__main__ import main
from headgate.errors import HeadgateError
from headgate.settings import Settings
from policies.catalog import CATALOG

LIVE = [policies.name for policies in CATALOG.values() if policies.roles == "mixed" and not policies.migration]


@pytest.mark.parametrize("name", LIVE)
def test_every_policy_that_can_serve_is_found_by_its_name(name: str) -> None:
    """With its own choices, where nothing else is asked for."""
    assert Settings(data="d", policy=name).policies == CATALOG[name]


def test_single_parts_are_changed_beside_the_name() -> None:
    """What is not named stays as the policy has it."""
    settings = Settings(
        data="d", policy="sarathi", order="edf", admission="contract", preemption="swap", force_preempt_every=9
    )
    policies = settings.policies
    assert (policies.scheduler.batching, policies.scheduler.chunk_tokens) == ("chunked", 512)
    assert (policies.scheduler.order, policies.scheduler.preemption) == ("edf", "swap")
    assert policies.scheduler.force_preempt_every == 9
    assert policies.admission.kind == "contract"


@pytest.mark.parametrize("name", ["disaggregated", "llumnix"])
def test_a_policy_that_is_only_simulated_is_refused_with_the_way_to_simulate_it(name: str) -> None:
    """Workers for prefill alone, and requests that migrate, need KV to travel, which it does not live."""
    with pytest.raises(HeadgateError, match=f"headgate simulate --policy {name}"):
        _ = Settings(data="d", policy=name).policies


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"policy": "fastest"}, "'fastest' is not known; there are headgate, static"), ({"order": "lifo"}, "lifo")],
)
def test_what_there_is_not_is_refused_by_name(changes: dict[str, str], told: str) -> None:
    """Also where it came through the environment, past the command line."""
    with pytest.raises(HeadgateError, match=told):
        _ = Settings(data="d", **changes).policies  # type: ignore[arg-type]


@pytest.mark.parametrize("command", [["serve"], ["run", "scheduler", "--nats", "nats://x"]])
@pytest.mark.parametrize("name", ["disaggregated", "fastest"])
def test_the_command_line_refuses_before_anything_starts(command: list[str], name: str) -> None:
    """As a wrong option, with the reason."""
    result = CliRunner().invoke(main, [*command, "--policy", name], prog_name="headgate")
    assert result.exit_code == 2
    assert "--policy" in result.output
    assert name in result.output


@pytest.mark.parametrize("command", ["serve", "run"])
def test_help_says_what_each_policy_is(command: str) -> None:
    """A line or two each."""
    text = " ".join(CliRunner().invoke(main, [command, "--help"], prog_name="headgate").output.split())
    for name in LIVE:
        assert f"{name} {' '.join(CATALOG[name].about.split())}" in text
