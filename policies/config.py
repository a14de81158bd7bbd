"""What an operator may choose about scheduling. The defaults are meant to be right.

`policies.catalog` has named sets of these choices: the systems of the literature, and ours.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Batching", "Order", "Preemption", "SchedulerConfig"]

Batching = Literal["static", "dynamic", "continuous", "chunked", "splitfuse", "time-budgeted"]
Order = Literal["contract", "fcfs", "priority", "edf", "least-slack", "mlfq", "vtc", "lpm", "vtc-edf"]
Preemption = Literal["none", "recompute", "swap", "tail", "hybrid"]


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of one `Scheduler`."""

    steps_in_flight: int = 2  # planned ahead of results; 1 leaves the device idle for a round trip a step

    batching: Batching = "time-budgeted"
    batch_size: int = 0  # rows at once, at most; 0: the slots of the worker
    batch_timeout_s: float = 0.05  # dynamic: how long the oldest waits for others
    chunk_tokens: int = 0  # chunked, splitfuse: tokens of a step; 0: what the worker takes
    max_chunk: int = 0  # of one row in a step; 0: no bound
    min_chunk: int = 16  # time-budgeted: tokens of prompts a step takes at least, whatever the pace

    order: Order = "contract"
    aging_s: float = 10.0  # priority: waiting so long is worth a class
    mlfq_quantum_s: float = 0.01  # of the highest queue; that of each next one is twice as long
    mlfq_levels: int = 12
    starvation_s: float = 3.0  # mlfq: idle for so long, a row goes to the highest queue
    patience_s: float = 30.0  # contract, edf, least-slack, lpm, vtc-edf: waiting longer than this ...
    patience_share: int = 8  # ... claims one start in so many, and then one step in so many for its prompt
    shed_hopeless: bool = False  # drop waiting rows whose first-token deadline cannot be met any more

    watermark: float = 0.01  # share of the blocks that a start leaves free while others run
    preemption: Preemption = "hybrid"
    max_preemptions: int = 2  # of one request, then it is immune; 0 (as with "none"): worst cases are reserved (Orca)
    preempt_for_tier: bool = True  # a waiting row of a strictly higher class takes the room of lower ones
    preempt_promised: bool = False  # also rows whose pace is promised; admission counts on it that they are not
    min_run_steps: int = 16  # before a row gives way to a higher class
    offload_share: float = 0.0  # of the link to the host, for copying ahead of need; 0: off
    flex_slots: float = 1.0  # of the slots: when so many are taken, nothing without a contract starts
    flex_yields: bool = False  # rows without a contract sit out steps that would break a running pace

    prefix_cache: bool = True
    single_flight_tokens: int = 128  # of an uncached prefix that another row computes: from there, wait for it
    new_tokens_per_step: int = 65_536  # of new rows in a plan, which bounds its size; a single row may exceed it
    force_preempt_every: int = 0  # debug: preempt a row every so many steps
