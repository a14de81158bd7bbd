"""Mooncake's oscillation: judging decode by its load of now swings; by that at the end of the prefill it does not."""

from __future__ import annotations

from collections import deque
from math import inf
from random import Random
from statistics import correlation, mean

import pytest

from policies.disaggregation import Coming, DecodeState, Foreseen
from policies.early_rejection import least_load

STEP_S = 0.05
MOST_RUNNING = 40
PREFILL_S = 3.0  # of long prompts
PREFILL_WORKERS = 96
OUTPUTS = 100
MOST_QUEUED_S = 5.0  # a first token later than that is worth nothing


def load(seen: Foreseen) -> float:
    """With one more, of the requests that a worker can bear."""
    return (seen.running + 1) / MOST_RUNNING


class Run:
    """Prefill workers and one decode worker under three times the load that decode bears, in steps of 50 ms."""

    def __init__(self, *, predicted: bool, seconds: float = 300.0, seed: int = 1) -> None:
        random = Random(seed)
        self.running: list[int] = []
        self.prefilling: list[int] = []
        self.too_late = self.served = 0
        free = [0.0] * PREFILL_WORKERS  # instants from which the prefill workers are free
        coming: deque[Coming] = deque()
        rows: list[tuple[int, int]] = []
        arrival = 0.0
        for step in range(round(seconds / STEP_S)):
            now = step * STEP_S
            rows = [(tokens + 1, outputs - 1) for tokens, outputs in rows if outputs > 1]
            while coming and coming[0].at_s <= now:
                one = coming.popleft()
                if len(rows) < MOST_RUNNING:
                    rows.append((one.tokens, one.outputs))
                    self.served += 1
                else:
                    self.too_late += 1  # its prefill was for nothing
            while arrival <= now:
                arrival += random.expovariate(3 * MOST_RUNNING / (OUTPUTS * STEP_S))
                begin = max(now, min(free))
                state = DecodeState("d", 10_000, 1000, STEP_S, rows, list(coming))
                ends = begin + PREFILL_S
                share = least_load([state], load, prefill_ends_s=ends, now=now, predicted=predicted)
                if begin - now <= MOST_QUEUED_S and share <= 1:
                    free[free.index(min(free))] = ends
                    coming.append(Coming(ends, 100, OUTPUTS))
            if now > 60:
                self.running.append(len(rows))
                self.prefilling.append(len(coming))

    def swing(self) -> float:
        """From the least to the most, as a share of what the decode worker can bear."""
        smooth = [mean(self.running[i : i + 20]) for i in range(0, len(self.running), 20)]
        ordered = sorted(smooth)
        return (ordered[-len(ordered) // 20] - ordered[len(ordered) // 20]) / MOST_RUNNING


@pytest.mark.parametrize("seed", range(3))
def test_naive_early_rejection_swings_in_anti_phase_and_the_predicted_does_not(seed: int) -> None:
    """By the load of now, decode swings between empty and full against prefill, and most prefills are for nothing; by
    the load predicted for the end of the prefill, decode stays full and no prefill is wasted."""
    naive, predicted = Run(predicted=False, seed=seed), Run(predicted=True, seed=seed)
    assert naive.swing() > 0.9
    assert correlation(naive.running, naive.prefilling) < -0.3
    assert naive.too_late > naive.served
    assert predicted.swing() < 0.1
    assert predicted.too_late == 0
    assert mean(predicted.running) > 0.95 * MOST_RUNNING
    assert predicted.served > 1.4 * naive.served


def test_what_is_on_its_way_counts_only_in_the_prediction() -> None:
    """A worker that is empty now and promised to the full lets nobody in, unless it is judged by now; and of several,
    the one with the least load decides."""
    full = DecodeState("a", 1000, 8, STEP_S, [], [Coming(1.0, 100, OUTPUTS)] * 4)
    assert least_load([full], load, prefill_ends_s=1.5, now=0.0) == 5 / MOST_RUNNING
    assert least_load([full], load, prefill_ends_s=1.5, now=0.0, predicted=False) == 1 / MOST_RUNNING
    assert least_load([full], load, prefill_ends_s=7.0, now=0.0) == 1 / MOST_RUNNING
    half = DecodeState("b", 1000, 8, STEP_S, [(100, OUTPUTS)] * 2)
    assert least_load([full, half], load, prefill_ends_s=1.5, now=0.0) == 3 / MOST_RUNNING
    assert least_load([], load, prefill_ends_s=1.5, now=0.0) == inf
