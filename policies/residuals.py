"""What steps really take, over what was predicted: upper quantiles by kind of step.

Split conformal prediction (Vovk), with the finite-sample correction, in cells (Mondrian): a device whose prompts are
noisier than its decodes, or that slows down as its KV fills, has a P90 for each. A cell is the kind of step, its tokens
and the context that it reads, so that load, KV in use and prefix hits all have their own; one that has seen little
takes the quantiles of its kind, that those of all steps with about as many tokens, and these those of all. The level of
each is steered online so that coverage holds under drift too (adaptive conformal inference, Gibbs and Candès 2021).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import ceil
from typing import NamedTuple

__all__ = ["Features", "Ratios", "Residuals", "cell_of"]

#: Ratios that a cell or stratum must have before its own quantiles are taken.
_ENOUGH = 40
_ENOUGH_IN_ALL = 20
#: Steps that are judged together: what a prompt waits for and what a pace is the mean of are sums of steps, whose noise
#: evens out as far as it is independent from step to step. How far that is, only the sums themselves tell.
RUN = 16
_RUNS = 64
_ENOUGH_RUNS = 5


class Features(NamedTuple):
    """What a step does, as far as its duration goes."""

    tokens: int  # given to the model, all rows together
    attended: float  # Σ over prefill rows of chunk · (context + chunk / 2)
    context: int  # Σ over decode rows of their context
    rows: int


class Ratios(NamedTuple):
    """Quantiles of actual over predicted step time."""

    p50: float
    p90: float
    p95: float
    run_p90: float = 0.0  # of RUN steps in a row together; 0: too few are known


def cell_of(tokens: float, attended: float, context: float, rows: float) -> tuple[int, int]:
    """The kind of a step (0: decode alone, 1: a prompt from its start, 2: behind a context, a prefix hit or a later
    chunk), and the power of two of the context that its decodes read."""
    kind = 0
    if attended:
        chunk = tokens - rows + 1
        kind = 1 if attended <= 0.75 * chunk * chunk else 2
    return kind, int(context).bit_length()


class Residuals:
    """Windows of the last ratios. `strata` are the bounds, in tokens, that steps are told apart by."""

    #: Ratios before any were seen: what a self-benchmark on an otherwise idle device typically misses by.
    PRIOR = Ratios(1.0, 1.15, 1.3)

    def __init__(self, strata: tuple[int, ...], *, window: int) -> None:
        self._bounds = strata
        self._size = window
        self._pooled = _Window(window)
        self._runs = _Window(_RUNS)
        self._run_actual = self._run_predicted = 0.0
        self._in_run = 0
        self._strata = [_Window(window) for _ in range(len(strata) + 1)]
        self._kinds: dict[tuple[int, int], _Window] = {}  # by stratum and kind
        self._cells: dict[tuple[int, int, int], _Window] = {}  # and by context

    def __len__(self) -> int:
        return len(self._pooled)

    def add(self, features: Features, ratio: float, predicted_s: float) -> int:
        """Remember the ratio of a step, which was to take so long. The index of its stratum."""
        self._run_actual += ratio * predicted_s
        self._run_predicted += predicted_s
        self._in_run += 1
        if self._in_run == RUN:
            self._runs.add(self._run_actual / self._run_predicted)
            self._run_actual = self._run_predicted = 0.0
            self._in_run = 0
        stratum = bisect_left(self._bounds, features[0])
        kind, context = cell_of(*features)
        cell = self._cells.get((stratum, kind, context))
        if cell is None:
            cell = self._cells[stratum, kind, context] = _Window(self._size)
            self._kinds.setdefault((stratum, kind), _Window(self._size))
        cell.add(ratio)
        self._kinds[stratum, kind].add(ratio)
        self._strata[stratum].add(ratio)
        self._pooled.add(ratio)
        return stratum

    def of_step(self, tokens: float, attended: float, context: float, rows: float) -> Ratios:
        """Of steps like this one."""
        stratum, (kind, read) = bisect_left(self._bounds, tokens), cell_of(tokens, attended, context, rows)
        for window in (self._cells.get((stratum, kind, read)), self._kinds.get((stratum, kind))):
            if window is not None and len(window) >= _ENOUGH:
                return window.ratios()
        return self.of_tokens(tokens)

    def of_tokens(self, tokens: float) -> Ratios:
        """Of steps of about so many tokens."""
        stratum = self._strata[bisect_left(self._bounds, tokens)]
        return stratum.ratios() if len(stratum) >= _ENOUGH else self.of_all()

    def of_all(self) -> Ratios:
        """Of all steps; PRIOR while hardly any is known."""
        if len(self._pooled) < _ENOUGH_IN_ALL:
            return self.PRIOR
        run_p90 = self._runs.ratios().p90 if len(self._runs) >= _ENOUGH_RUNS else 0.0
        return self._pooled.ratios()._replace(run_p90=run_p90)


class _Window:
    """The last `size` ratios, sorted, with upper quantiles whose level is steered to their target coverage."""

    __slots__ = ("_levels", "_recent", "_size", "_sorted")

    _TARGETS = (0.9, 0.95)
    _GAIN = 0.01  # a level moves by the whole miscoverage in 100 steps

    def __init__(self, size: int) -> None:
        self._size = size
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._levels = list(self._TARGETS)

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, ratio: float) -> None:
        known = self._sorted
        n = len(known)
        if n >= _ENOUGH_IN_ALL:
            levels = self._levels
            for i, target in enumerate(self._TARGETS):
                level = levels[i]
                index = ceil(level * (n + 1))
                covered = ratio <= known[(n if index > n else index) - 1]
                level += self._GAIN * (target - covered)
                levels[i] = 0.995 if level > 0.995 else 0.5 if level < 0.5 else level
        self._recent.append(ratio)
        insort(known, ratio)
        if n >= self._size:
            del known[bisect_left(known, self._recent.popleft())]

    def _at(self, level: float) -> float:
        n = len(self._sorted)
        return self._sorted[min(n, ceil(level * (n + 1))) - 1]

    def ratios(self) -> Ratios:
        p50, p90 = self._sorted[len(self._sorted) // 2], self._at(self._levels[0])
        return Ratios(p50, max(p50, p90), max(p50, p90, self._at(self._levels[1])))
