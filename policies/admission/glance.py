"""The state of a worker in a few sums, as the simple kinds of admission look at it: no classes, no deadlines."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from policies.admission.situation import Situation
from policies.admission.verdict import Admit, Candidate
from policies.admission.worker_state import Reservation
from policies.step_time import step_time
from policies.vocabulary import BLOCK_SIZE, WorkerLoad

__all__ = ["Glance", "admit_as_it_is", "allowed_s"]


class Glance:
    """One worker: its report, and what was let in since. Step times are the typical ones. O(n) in the requests."""

    __slots__ = ("context", "load", "queued_tokens", "rows", "worst_blocks")

    def __init__(self, load: WorkerLoad, reserved: Iterable[Reservation]) -> None:
        self.load = load
        self.queued_tokens = self.rows = self.context = self.worst_blocks = 0
        for r in load.requests:
            if r.prefill_left > 1:
                self.queued_tokens += r.prefill_left
            else:
                self.rows += 1
                self.context += r.context
            self.worst_blocks += _blocks(r.context + r.prefill_left + r.outputs_left)
        for reservation in reserved:
            self.queued_tokens += reservation.prompt_tokens
            self.worst_blocks += _blocks(reservation.prompt_tokens + reservation.max_tokens)

    def step_s(self, rows: float, context: float, prompt_tokens: float = 0.0) -> float:
        """A step with so many rows, their contexts in all, and so many tokens of prompts."""
        return step_time(self.load.step_time, rows + prompt_tokens, 0.0, context, rows) * self.load.ratio_p50

    def prompt_s(self, tokens: float) -> float:
        """To compute so many tokens of prompts beside what runs, in full steps."""
        room = max(1, self.load.tokens_per_step - self.rows)
        return tokens / room * self.step_s(self.rows, self.context, min(room, tokens))


def admit_as_it_is(
    candidate: Candidate, situation: Situation, worker: str, *, first_token_s: float, step_s: float
) -> Admit:
    """Let it in with its own class and deadlines, which nobody has promised. `first_token_s` is from now."""
    waited = situation.now - candidate.arrived_s
    return Admit(
        worker=worker,
        tier=candidate.tier,
        ttft_s=None if candidate.ttft_s is None else candidate.ttft_s - waited,
        tpot_s=candidate.tpot_s,
        predicted_ttft_s=waited + first_token_s,
        predicted_tpot_s=step_s,
        headroom_s=inf if candidate.ttft_s is None else candidate.ttft_s - waited - first_token_s,
    )


def allowed_s(candidate: Candidate) -> float:
    """From its arrival to its first token, or to its start where it has no deadline."""
    return candidate.max_wait_s if candidate.ttft_s is None else candidate.ttft_s


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE)
