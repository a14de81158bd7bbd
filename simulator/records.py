"""What goes into a simulation and what comes out: the plain data that its modules share.

Times are seconds of the virtual clock, which begins at 0. Lengths are tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from policies.vocabulary import Contract, StepTimeCoefficients, Tenant

__all__ = ["PREFIX_TOKENS", "Arrival", "Device", "Outcome", "Result", "StepRecord", "Workload"]

#: Tokens that one id of `Arrival.prefix` stands for (the blocks of the Mooncake traces).
PREFIX_TOKENS = 512


class Arrival(msgspec.Struct, frozen=True, array_like=True):
    """One request of a workload. `output_tokens` is what it really generates: only the device knows."""

    id: str
    at_s: float
    tenant: str
    prompt_tokens: int
    output_tokens: int
    max_tokens: int  # that its client asks for, at least `output_tokens`
    #: Ids of the prompt's leading blocks of PREFIX_TOKENS; the last may be cut short by the end of the prompt. Requests
    #: whose ids begin alike share that much of a prefix. Empty: it shares nothing.
    prefix: tuple[int, ...] = ()


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Arrivals in order of time (ties in the order given), and the tenants that they name."""

    name: str
    arrivals: list[Arrival]
    tenants: Mapping[str, Tenant]

    @property
    def duration_s(self) -> float:
        """From 0 to the last arrival."""
        return self.arrivals[-1].at_s if self.arrivals else 0.0

    def contract(self, arrival: Arrival) -> Contract:
        """What the arrival's tenant is promised."""
        return self.tenants[arrival.tenant].contract


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model on a device, as a worker tells it of itself, with its step times as measured or fitted."""

    name: str
    blocks: int  # KV blocks on the device
    host_blocks: int
    block_bytes: int
    slots: int
    tokens_per_step: int
    max_context: int
    swap_bytes_per_s: float  # device to host, each way
    step_time: StepTimeCoefficients
    transfer_bytes_per_s: float = 50e9  # of KV, between workers
    source: str = ""  # where the figures come from


class Outcome(msgspec.Struct, kw_only=True):
    """What became of one arrival. None: it did not come to that."""

    id: str
    tenant: str
    tier: int
    arrived_s: float
    prompt_tokens: int
    output_tokens: int  # that it would generate in full
    ttft_s: float | None  # promised
    tpot_s: float | None  # promised
    decision: str = ""  # admitted | refused | relegated (admitted without its contract) | shed (dropped by a scheduler)
    reason: str = ""  # why refused, relegated or shed
    decided_s: float | None = None  # instant of the decision
    retry_after_s: float | None = None
    predicted_ttft_s: float | None = None
    worker: str = ""
    scheduled_s: float | None = None  # instant of its first slot
    first_token_s: float | None = None  # instant
    finished_s: float | None = None  # instant
    generated: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    longest_gap_s: float = 0.0  # between two of its tokens, as far as preemption caused it

    @property
    def admitted(self) -> bool:
        """Under its contract: relegated ones are not."""
        return self.decision == "admitted"

    @property
    def measured_ttft_s(self) -> float | None:
        """From arrival."""
        return None if self.first_token_s is None else self.first_token_s - self.arrived_s

    @property
    def measured_tpot_s(self) -> float | None:
        """Mean over the outputs after the first; None without a second one."""
        if self.first_token_s is None or self.finished_s is None or self.generated < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.generated - 1)

    @property
    def kept(self) -> tuple[bool | None, bool | None]:
        """Whether its TTFT and its TPOT were kept; None: not promised, or there was no second output."""
        ttft, tpot = self.measured_ttft_s, self.measured_tpot_s
        return (
            None if self.ttft_s is None else ttft is not None and ttft <= self.ttft_s,
            None if self.tpot_s is None or tpot is None else tpot <= self.tpot_s,
        )

    @property
    def met(self) -> bool:
        """Finished in full, and both promises kept. Without a promise, finishing is enough."""
        ttft, tpot = self.measured_ttft_s, self.measured_tpot_s
        if self.finished_s is None or self.generated < self.output_tokens or ttft is None:
            return False
        return (self.ttft_s is None or ttft <= self.ttft_s) and (
            self.tpot_s is None or tpot is None or tpot <= self.tpot_s
        )


class StepRecord(msgspec.Struct, frozen=True, array_like=True):
    """A step as it ran, for charts. Kept only where a simulation is asked to."""

    worker: str
    number: int
    begun_s: float
    ended_s: float
    predicted_s: float  # by the scheduler's step-time model when it was planned
    requests: list[str]  # rows in the step ...
    counts: list[int]  # ... the tokens that each gave to the model ...
    prefill: list[bool]  # ... and whether these were a part of a prompt (or recomputed), not a decode
    waiting: int  # requests without a slot, after planning
    running: int
    used_blocks: int
    swapped_out: int  # blocks
    swapped_in: int


class Result(msgspec.Struct, kw_only=True):
    """A whole run."""

    workload: str
    policy: str
    device: str
    workers: int
    load: float  # the factor by which arrivals were compressed
    seed: int
    outcomes: list[Outcome]  # in order of arrival
    ended_s: float  # virtual instant at which everything was over
    wall_s: float
    steps: int
    busy_s: float  # of all devices
    computed_tokens: int  # given to the model
    lost_tokens: int  # computed, then dropped by preemption
    swapped_bytes: int
    transferred_bytes: int = 0  # of KV, between workers
    step_coverage: float | None = None  # share of steps that took no longer than their predicted P90
    step_error: float | None = None  # mean of |actual / predicted - 1|
    steps_kept: list[StepRecord] = []
