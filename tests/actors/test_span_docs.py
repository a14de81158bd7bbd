"""docs/observability.md says of every span which attributes and events it has: no more and no less than the code."""

from __future__ import annotations

import ast
import asyncio
import re
from pathlib import Path

from traced_stack import TracedStack, traced
from virtual_stack import request

from observability.span_store import Span
from policies.config import SchedulerConfig
from policies.vocabulary import Limits, Tenant

ROOT = Path(__file__).resolve().parents[2]
#: Wherever a span is made.
CODE = (
    "actors/admission_spans.py",
    "actors/request_life.py",
    "actors/request_spans.py",
    "actors/step_spans.py",
    "actors/worker_spans.py",
    "gateway/observing.py",
    "gateway/streams.py",
    "gateway/traces.py",
    "observability/span_store.py",
)
_NAME = re.compile(r"(?:headgate|gen_ai|http)\.[a-z_.]+")
_QUOTED = re.compile(r"`([^`]+)`")


def _tables() -> list[list[list[str]]]:
    """The rows of each table of the section, without the head."""
    text = (ROOT / "docs" / "observability.md").read_text()
    section = text.partition("\n## Spans\n")[2].partition("\n## ")[0]
    tables = [part.splitlines() for part in section.split("\n\n") if part.startswith("|")]
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]] for rows in tables]


def _spans() -> dict[str, tuple[set[str], set[str]]]:
    """Attributes and events by the name of the span."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for name, _, _, attributes, events in _tables()[0]:
        (key, *_) = _QUOTED.findall(name)
        found[key] = {n for n in _QUOTED.findall(attributes) if "." in n}, set(_QUOTED.findall(events))
    queue = found["queue"][0]
    for name in ("prefill", "decode"):
        found[name] = found[name][0] | queue, found["decode"][1]
    found["queue"] = queue, found["decode"][1]
    return found


def _events() -> dict[str, set[str]]:
    return {_QUOTED.findall(name)[0]: set(_QUOTED.findall(attributes)) for name, _, attributes in _tables()[1]}


def _attributes() -> set[str]:
    return {name for names, _ in _tables()[2] for name in _QUOTED.findall(names)}


def _constants() -> set[str]:
    """All texts in the code that makes spans."""
    return {
        node.value
        for path in CODE
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_the_attributes_of_the_code_and_of_the_docs_are_the_same() -> None:
    """Every name is explained, and nothing is explained that does not exist."""
    written = {text for text in _constants() if _NAME.fullmatch(text)}
    in_tables = set().union(*(names for names, _ in _spans().values()), *_events().values())
    assert written == _attributes() == in_tables


def test_the_events_of_the_docs_are_in_the_code() -> None:
    """In both tables, and as a text where spans are made."""
    of_spans = set().union(*(events for _, events in _spans().values()))
    assert of_spans == set(_events())
    assert of_spans <= _constants()


def _check(span: Span) -> tuple[set[str], set[str]]:
    name = "chat {model}" if span.name.startswith("chat ") else span.name.replace("chat/completions", "…")
    attributes, events = _spans()[name]
    assert set(span.attributes) <= attributes, span.name
    for event in span.events:
        assert event.name in events, span.name
        assert set(event.attributes) <= _events()[event.name], event.name
    return {f"{name}: {attribute}" for attribute in span.attributes}, {event.name for event in span.events}


def test_the_spans_of_a_running_stack_have_what_the_docs_say(tmp_path: Path) -> None:
    """Served, refused, late, preempted, failed over and cancelled requests: each span within its row, and nearly all
    that is promised is seen."""

    async def scenario(traces: TracedStack) -> None:
        stack = traces.stack
        stack.tenants["free"] = Tenant(name="free", limits=Limits(rpm=1, tpm=100_000))
        served = [request(i, prompt=100, outputs=150, tpot_s=0.5) for i in range(6)]
        serving = [asyncio.create_task(traces.serve(one)) for one in served]
        leaving = asyncio.create_task(traces.serve(request(8, outputs=500), leave_after_s=0.2))
        await asyncio.sleep(0.4)
        await stack.kill("worker", "w0")
        await asyncio.gather(*serving, leaving)
        for number in (20, 21):
            await traces.serve(request(number, tenant="free", ttft_s=5.0))

    options = {"workers": 2, "blocks": 48, "config": SchedulerConfig(force_preempt_every=25)}
    left = traced(tmp_path, scenario, ratio=1.0, steps_every=5, **options)
    spans = [span for number in (*range(9), 20, 21) for span in left.spans(f"r{number}")]
    steps = {link.partition("-")[0] for span in spans for link in span.links}
    spans += [span for step in steps for span in left.trace(step)]
    seen_attributes: set[str] = set()
    seen_events: set[str] = set()
    for span in spans:
        attributes, events = _check(span)
        seen_attributes |= attributes
        seen_events |= events
    promised = {f"{name}: {attribute}" for name, (attributes, _) in _spans().items() for attribute in attributes}
    # All of these got as far as to decode, and the cache had room.
    assert promised - seen_attributes == {"queue: headgate.finish", "prefill: headgate.finish"}
    assert set(_events()) - seen_events <= {"swapped", "reclaimed"}
