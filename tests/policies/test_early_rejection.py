"""Mooncake's oscillation: judging decode by its load of now swings; by that at the end of the prefill it does not."""

from __future__ import annotations

from collections import deque
from random import Random
from statistics import correlation, mean

import pytest

from policies.disaggregation import Coming, DecodeState, Foreseen
from policies.early_rejection import decode_load, lets_in

STEP_S = 0.05
MOST_RUNNING = 40
PREFILL_S = 3.0  # of long prompts
PREFILL_WORKERS = 96
OUTPUTS = 100
MOST_QUEUED_S = 5.0  # a first token later than that is worth nothing


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
                if begin - now <= MOST_QUEUED_S and lets_in(
                    [state], most_running=MOST_RUNNING, prefill_ends_s=begin + PREFILL_S, now=now, predicted=predicted
                ):
                    free[free.index(min(free))] = begin + PREFILL_S
                    coming.append(Coming(begin + PREFILL_S, 100, OUTPUTS))
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


def test_load_is_that_of_the_scarcer_of_pace_and_memory() -> None:
    """1 is full, by either."""
    assert decode_load(Foreseen("d", 10, 90, 0), most_running=40, blocks=100) == 0.25
    assert decode_load(Foreseen("d", 10, 20, 0), most_running=40, blocks=100) == 0.8


def test_what_is_on_its_way_counts_only_in_the_prediction() -> None:
    """A worker that is empty now and promised to the full lets nobody in, unless it is judged by now."""
    state = DecodeState("d", 1000, 8, STEP_S, [], [Coming(1.0, 100, OUTPUTS)] * 4)
    assert not lets_in([state], most_running=4, prefill_ends_s=1.5, now=0.0)
    assert lets_in([state], most_running=4, prefill_ends_s=1.5, now=0.0, predicted=False)
    assert lets_in([state], most_running=4, prefill_ends_s=7.0, now=0.0)
