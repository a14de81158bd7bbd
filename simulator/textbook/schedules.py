"""The schedules of a step-exact workload under the five strategies that every text on serving draws.

The real scheduler decides, configured as each of them:

- **static**: starts when `batch` requests wait; the next batch when the last member is over (FasterTransformer).
- **dynamic**: also starts when the oldest has waited for `timeout` (Triton, TorchServe).
- **continuous**: who waits starts at the next iteration, with its whole prompt (Orca).
- **chunked**: a prompt advances by one column an iteration, beside the decodes (Sarathi-Serve).
- **disaggregated**: one instance prefills, all that wait together or one by one; the KV takes `transfer` columns to a
  second one, which decodes (DistServe, Splitwise).
"""

from __future__ import annotations

from math import inf

import msgspec

from policies.config import SchedulerConfig
from policies.events import FirstToken
from policies.vocabulary import Request
from simulator.textbook.instance import Instance, make_request
from simulator.textbook.workload import Schedule, Served, StepRequest, StepWorkload, Strategy

__all__ = ["make_schedule"]

_CONFIG = SchedulerConfig(
    steps_in_flight=1,
    order="fcfs",
    preemption="none",
    preempt_for_tier=False,
    watermark=0.0,
    prefix_cache=False,
)


def make_schedule(workload: StepWorkload, strategy: Strategy) -> Schedule:
    """Run a workload under a strategy."""
    rows, unserved_until = _disaggregated(workload) if strategy == "disaggregated" else _mixed(workload, strategy)
    marks = {name: _fill(request, rows.get(name, {}), unserved_until) for name, request in workload.workload.items()}
    return Schedule(
        strategy=strategy,
        batch=workload.batch,
        rows={name: " " * workload.workload[name].arrive + marks[name] for name in marks},
        req={name: _served(request, marks[name]) for name, request in workload.workload.items()},
    )


_Rows = dict[str, dict[int, str]]


def _mixed(workload: StepWorkload, strategy: Strategy) -> tuple[_Rows, int]:
    """The marks of each request by column, and the column of the last decision."""
    config = msgspec.structs.replace(
        _CONFIG,
        batching=strategy,
        batch_size=workload.batch,
        batch_timeout_s=float(workload.timeout),
        max_chunk=1 if strategy == "chunked" else 0,
    )
    instance = Instance(workload, slots=workload.batch, config=config)
    arrivals = list(enumerate(workload.in_order()))
    column = 0
    while True:
        instance.complete(column)
        while arrivals and arrivals[0][1][1].arrive <= column:
            number, (name, request) = arrivals.pop(0)
            instance.core.submit(make_request(name, number, request), float(column))
        instance.begin(column)
        if not (arrivals or instance.running or instance.core.wake_at(float(column)) < inf):
            break
        column += 1
    return {name: dict(marks) for name, marks in instance.marks.items()}, column


class _Transfer:
    """KV on its way: it sets off when the decode instance holds blocks for it."""

    def __init__(self, request: Request, tokens: int) -> None:
        self.request = request
        self.tokens = tokens
        self.arrives_at: int | None = None


def _disaggregated(workload: StepWorkload) -> tuple[_Rows, int]:
    config = msgspec.structs.replace(_CONFIG, batching="continuous")
    together = 1 if workload.serial_prefill else len(workload.workload)
    prefill = Instance(workload, slots=together, config=config)
    decode = Instance(workload, slots=workload.batch, config=config)
    arrivals = list(enumerate(workload.in_order()))
    transfers: list[_Transfer] = []
    rows: _Rows = {name: {} for name in workload.workload}
    column = 0
    while True:
        decode.complete(column)
        prefilled = [event.request for event in prefill.complete(column) if isinstance(event, FirstToken)]
        leaving = (prefill.hand_over(name, column) for name in prefilled)
        transfers += [_Transfer(one, workload.workload[one.id].prefill) for one in leaving if one is not None]
        while arrivals and arrivals[0][1][1].arrive <= column:
            number, (name, request) = arrivals.pop(0)
            prefill.core.submit(make_request(name, number, request), float(column))
        transfers = [one for one in transfers if not _carry(one, workload.transfer, prefill, decode, column)]
        for one in transfers:
            if one.arrives_at is not None:
                rows[one.request.id][column] = "x"
        prefill.begin(column)
        decode.begin(column)
        if not (arrivals or transfers or prefill.running or decode.running):
            break
        column += 1
    for instance in (prefill, decode):
        for name, marks in instance.marks.items():
            rows[name].update(marks)
    return rows, column


def _carry(one: _Transfer, columns: int, prefill: Instance, decode: Instance, column: int) -> bool:
    """Send KV off, or deliver it. True if it has arrived."""
    now = float(column)
    if one.arrives_at is None and decode.core.expect(one.request, now, tokens=one.tokens):
        one.arrives_at = column + columns
    if one.arrives_at is None or one.arrives_at > column:
        return False
    decode.core.deliver(one.request, now, computed=one.tokens)
    prefill.core.abandon(one.request.id)
    return True


def _fill(request: StepRequest, marks: dict[int, str], unserved_until: int) -> str:
    """The marks from arrival to the end, with the waiting between them."""
    if not marks:
        return "." * (unserved_until + 1 - request.arrive)
    last = max(column for column, mark in marks.items() if mark != "#")
    return "".join(marks.get(column, ".") for column in range(request.arrive, last + 1))


def _served(request: StepRequest, marks: str) -> Served | None:
    arrive = request.arrive
    if "P" not in marks:
        return None
    start, prefill_end, finish = arrive + marks.index("P"), arrive + marks.rindex("P"), arrive + len(marks) - 1
    first_decode = arrive + marks.index("d") if "d" in marks else None
    return Served(
        arrive=arrive,
        start=start,
        prefill_end=prefill_end,
        first_decode=first_decode,
        finish=finish,
        queue=start - arrive,
        ttft=prefill_end + 1 - arrive,
        ttft_decode=None if first_decode is None else first_decode + 1 - arrive,
        e2e=finish + 1 - arrive,
        holes=marks.count("#"),
    )
