"""`headgate bench`: a workload against the running stack, judged as a simulation is."""

from __future__ import annotations

import json
from pathlib import Path

from stack_support import Stack, headgate

_TENANTS = """\
[tenants.bench-gold]
share = 1
tier = "priority"
ttft_ms = 20000
tpot_ms = 2000
"""


def test_a_trace_is_played_and_judged(stack: Stack, tmp_path: Path) -> None:
    """Tenants are created, every request is answered in the length asked for, and the keys of the run are revoked."""
    trace, tenants, outcomes = tmp_path / "trace.csv", tmp_path / "tenants.toml", tmp_path / "out.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0.0,20,5\n0.1,40,6\n0.2,30,4\n")
    tenants.write_text(_TENANTS)
    run = headgate(
        *("bench", "--trace", str(trace), "--tenants", str(tenants), "--data", str(stack.data)),
        *("--csv", str(outcomes), "--json"),
    )
    assert run.returncode == 0, run.stderr
    contract = json.loads(run.stdout)["contract"]
    assert (contract["offered"], contract["admitted"], contract["met"]) == (3, 3, 3)
    assert len(outcomes.read_text().splitlines()) == 4
    with stack.admin() as admin:
        assert not [key for key in admin.get("keys", tenant="bench-gold")["keys"] if not key.get("revoked")]


def test_a_trace_that_cannot_be_read_is_one_line(stack: Stack, tmp_path: Path) -> None:
    """What is wrong with a trace is told with its line, before anything is sent."""
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0.0,20,5\n0.1,-4,6\n")
    run = headgate("bench", "--trace", str(trace), "--data", str(stack.data))
    assert run.returncode == 1
    assert "line 3" in run.stderr
    assert "-4" in run.stderr
    assert "Traceback" not in run.stderr
