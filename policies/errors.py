"""What the decisions refuse. Each message says what was wrong, the value, and what would be right."""

from __future__ import annotations

__all__ = ["InvariantBroken", "OutOfBlocks", "PolicyError", "StepRefused", "Unservable", "WorkerMismatch"]


class PolicyError(Exception):
    """Root of everything that `policies` raises."""


class Unservable(PolicyError):
    """A request that this worker could never serve, however long it waited."""


class OutOfBlocks(PolicyError):
    """More KV blocks were asked for than are free: the caller was to look first."""


class StepRefused(PolicyError):
    """The worker refused a step whole, so it is not in the state planned for: hand everything back, attach anew."""


class WorkerMismatch(PolicyError):
    """A result that cannot belong to the steps in flight: hand everything back, attach anew."""


class InvariantBroken(PolicyError):
    """A bookkeeping error inside a policy, found by an integrity check."""
