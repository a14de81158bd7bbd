"""No admission control: whatever has a worker goes in as it is, as serving systems do by default (vLLM, SGLang)."""

from __future__ import annotations

from math import inf

from policies.admission.situation import Situation
from policies.admission.verdict import Admit, Candidate
from policies.step_time import step_time

__all__ = ["open_door"]


def open_door(candidate: Candidate, situation: Situation) -> Admit:
    """To the emptiest worker. What it predicts is the estimate by which workers are compared, and no promise. O(1)."""
    load = situation.loads[0]
    cached = min(candidate.cached.get(load.worker, 0), candidate.prompt_tokens - 1)
    own = step_time(load.step_time, candidate.prompt_tokens - cached, 0.0, 0.0, 1)
    return Admit(
        worker=load.worker,
        tier=candidate.tier,
        ttft_s=None if candidate.ttft_s is None else candidate.ttft_s - (situation.now - candidate.arrived_s),
        tpot_s=candidate.tpot_s,
        predicted_ttft_s=situation.now - candidate.arrived_s + situation.wait_s + own,
        predicted_tpot_s=situation.step_s,
        headroom_s=inf,
    )
