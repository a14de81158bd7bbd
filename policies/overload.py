"""What to give up first when there is too much: a ladder, climbed a rung at a time and left with hysteresis.

| level    | what is given up, beside all before it                                                     | where     |
| -------- | ------------------------------------------------------------------------------------------ | --------- |
| shrink   | rows at once: nothing without a contract starts in the last quarter of the slots, so that  | scheduler |
|          | steps stay fast and who has a contract finds a slot                                        |           |
| defer    | the queue in front of workers, for requests without a contract: they wait at admission     | admission |
| relegate | contracts of tenants above their fair line: best effort, where the policy lets relegate    | admission |
| refuse   | newcomers without a contract, relegated ones included: refused at once                     | admission |
| offload  | memory for slack: KV of rows that are ahead is copied to the host before it must be        | scheduler |

The signal is the pressure of what has a contract: requests without one fill a device to the brim whenever they come,
and yield by themselves. A level changes by one, and stays for `dwell_s` whatever comes: so it cannot flap, neither
around a threshold (a rung is left well below where it is entered) nor with a signal that jumps.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import msgspec

from policies.config import SchedulerConfig
from policies.step_time import step_time
from policies.vocabulary import BLOCK_SIZE, Tier, WorkerLoad

__all__ = ["Ladder", "Level", "Rungs", "demand", "pressure", "strain", "under"]


class Level(IntEnum):
    """How far up the ladder. Each includes those below it."""

    calm = 0
    shrink = 1
    defer = 2
    relegate = 3
    refuse = 4
    offload = 5


class Rungs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`enter[n]` is the pressure from which level n + 1 is entered; it is left below `enter[n] - gap`."""

    enter: tuple[float, float, float, float, float] = (0.6, 0.7, 0.8, 0.9, 1.0)
    gap: float = 0.15
    dwell_s: float = 0.5  # at least so long a level stays


class Ladder:
    """The state machine. Times are seconds, and never go back."""

    __slots__ = ("_changed_at", "_level", "_rungs")

    def __init__(self, rungs: Rungs | None = None) -> None:
        """:raises ValueError: the thresholds do not rise, or the gap or the dwell is not positive."""
        self._rungs = rungs or Rungs()
        enter = self._rungs.enter
        if list(enter) != sorted(set(enter)) or self._rungs.gap <= 0 or self._rungs.dwell_s <= 0:
            raise ValueError(f"{self._rungs}: thresholds must rise, gap and dwell_s be positive")
        self._level = Level.calm
        self._changed_at = float("-inf")

    def level(self, now: float, pressure: float) -> Level:
        """The level from now on, at this pressure: at most one from that before, and that for a dwell at least."""
        if now - self._changed_at < self._rungs.dwell_s:
            return self._level
        level, enter = self._level, self._rungs.enter
        if level < Level.offload and pressure >= enter[level]:
            self._change(level + 1, now)
        elif level > Level.calm and pressure < enter[level - 1] - self._rungs.gap:
            self._change(level - 1, now)
        return self._level

    def _change(self, level: int, now: float) -> None:
        self._level, self._changed_at = Level(level), now


def pressure(loads: Iterable[WorkerLoad], tightest_ttft_s: float | None) -> float:
    """How close what has a contract is to the capacity: 1 is at it.

    The worse of two shares, on the worker where it is least: of its blocks, those that rows under contract hold or that
    their prompts will; of the tightest promise of a first token (None: none), the time that these prompts take. O(n) in
    the requests; 0 without a worker.
    """
    return min((strain(*demand(load), tightest_ttft_s) for load in loads), default=0.0)


def demand(load: WorkerLoad) -> tuple[float, float]:
    """What has a contract on a worker: the share of the blocks that it wants, and the seconds that its prompts take."""
    rows = context = prompts = held = 0
    for r in load.requests:
        if r.prefill_left <= 1:
            rows += 1
            context += r.context
        if r.tier < Tier.flex:
            held += r.context + r.prefill_left
            if r.prefill_left > 1:
                prompts += r.prefill_left
    memory = held / BLOCK_SIZE / load.blocks if load.blocks else 1.0
    room = max(1, load.tokens_per_step - rows)
    step = step_time(load.step_time, rows + min(room, prompts), 0.0, context, rows) * load.ratio_p50
    return memory, prompts / room * step


def strain(memory: float, prompts_s: float, tightest_ttft_s: float | None) -> float:
    """The pressure of such a demand."""
    return max(memory, prompts_s / tightest_ttft_s) if tightest_ttft_s else memory


def under(level: Level, config: SchedulerConfig) -> SchedulerConfig:
    """The options of a scheduler at that level."""
    changes: dict[str, float] = {}
    if level >= Level.shrink:
        changes["flex_slots"] = min(config.flex_slots, 0.75)
    if level >= Level.offload:
        changes["offload_share"] = max(config.offload_share, 0.2)
    return msgspec.structs.replace(config, **changes) if changes else config
