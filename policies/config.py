"""What an operator may choose about scheduling. The defaults are meant to be right."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["SchedulerConfig"]


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of one `Scheduler`."""

    steps_in_flight: int = 2  # planned ahead of results; 1 leaves the device idle for a round trip a step
    time_budget: bool = True  # chunks keep the tightest pace among the running rows
    min_chunk: int = 64  # tokens of prompts a step takes at least, whatever the pace
    watermark: float = 0.01  # share of the blocks that a start leaves free while others run
    preemption: Literal["auto", "swap", "recompute"] = "auto"
    max_preemptions: int = 2  # of one request; 0: never, worst case reserved (Orca)
    preempt_for_tier: bool = True  # a waiting row of a strictly higher class takes the room of lower ones
    min_run_steps: int = 16  # before a row gives way to a higher class
    single_flight_tokens: int = 128  # of an uncached prefix that another row computes: from there, wait for it
    new_tokens_per_step: int = 65_536  # of new rows in a plan, which bounds its size; a single row may exceed it
    patience_s: float = 30.0  # waiting longer than this ...
    patience_share: int = 8  # ... claims one start in so many
    force_preempt_every: int = 0  # debug: preempt a row every so many steps
