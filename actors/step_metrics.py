"""Steps as metrics: what was in them, and how well their time was foreseen.

A `StepObserver` on the hot path of the scheduler, so it counts in plain ints (0.6 µs a step of 64 rows, 1.5 with a
chunk of a prompt in it) and makes metrics of them when somebody scrapes.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from actors.step_notes import StepNote
from observability.metrics import Tally
from observability.metrics.buckets import CHUNK_TOKENS, ROWS, STEP_RATIO, STEP_S

__all__ = ["StepMetrics"]

#: Workers that are told of, at most; the one that came first is forgotten for a new one.
_MOST_WORKERS = 256
_LABELS = ("model", "worker")


class _Steps:
    """Of one worker."""

    __slots__ = ("chunks", "decode", "predicted", "prefill", "ratio", "rows", "steps")

    def __init__(self) -> None:
        self.steps = self.decode = self.prefill = 0
        self.rows = Tally(ROWS)
        self.chunks = Tally(CHUNK_TOKENS)
        self.predicted = Tally(STEP_S)
        self.ratio = Tally(STEP_RATIO)


class StepMetrics:
    """Observes steps, and is a collector for the registry of the process."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._workers: dict[str, _Steps] = {}

    def stepped(self, note: StepNote) -> None:
        of = self._workers.get(note.worker) or self._new(note.worker)
        of.steps += 1
        of.rows.add(note.rows)
        of.decode += note.decode_tokens
        prefill = note.prefill_tokens
        if prefill:
            of.prefill += prefill
            for _, tokens in note.chunks():
                of.chunks.add(tokens)
        predicted = note.predicted_s
        of.predicted.add(predicted)
        if predicted > 0 and note.actual_s > 0:
            of.ratio.add(note.actual_s / predicted)

    def _new(self, worker: str) -> _Steps:
        if len(self._workers) >= _MOST_WORKERS:
            del self._workers[next(iter(self._workers))]
        steps = self._workers[worker] = _Steps()
        return steps

    def collect(self) -> Iterator[Metric]:
        steps = CounterMetricFamily("headgate_steps", "Steps that came back.", labels=_LABELS)
        tokens = CounterMetricFamily(
            "headgate_step_tokens", "Tokens computed in steps, by phase.", labels=(*_LABELS, "phase")
        )
        for worker, of in self._workers.items():
            steps.add_metric((self._model, worker), of.steps)
            tokens.add_metric((self._model, worker, "prefill"), of.prefill)
            tokens.add_metric((self._model, worker, "decode"), of.decode)
        yield steps
        yield tokens
        for name, of_what, documentation in (
            ("headgate_step_rows", "rows", "Requests that ran in a step."),
            ("headgate_chunk_tokens", "chunks", "Tokens of a chunk of a prompt."),
            ("headgate_step_predicted_seconds", "predicted", "What a step was predicted to take on the device."),
            ("headgate_step_prediction_ratio", "ratio", "Actual over predicted time of a step."),
        ):
            yield self._histogram(name, of_what, documentation)

    def _histogram(self, name: str, of_what: str, documentation: str) -> Metric:
        family = HistogramMetricFamily(name, documentation, labels=_LABELS)
        for worker, of in self._workers.items():
            tally: Tally = getattr(of, of_what)
            family.add_metric((self._model, worker), buckets=tally.buckets(), sum_value=tally.total)
        return family
