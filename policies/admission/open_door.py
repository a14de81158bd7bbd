"""No admission control: whatever has a worker goes in as it is, as serving systems do by default (vLLM, SGLang)."""

from __future__ import annotations

import msgspec

from policies.admission.glance import admit_as_it_is
from policies.admission.situation import Situation
from policies.admission.verdict import Admit, Candidate
from policies.step_time import step_time

__all__ = ["open_door"]


def open_door(candidate: Candidate, situation: Situation) -> Admit:
    """Wherever it is placed. What it predicts is a cheap estimate for the emptiest worker, and no promise. O(1)."""
    load = situation.loads[0]
    own = step_time(load.step_time, candidate.prompt_tokens, 0.0, 0.0, 1)
    admit = admit_as_it_is(
        candidate, situation, load.worker, first_token_s=situation.wait_s + own, step_s=situation.step_s
    )
    return msgspec.structs.replace(admit, worker="")
