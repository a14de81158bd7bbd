"""Drive an engine of this process with traffic of all kinds, and tell what its steps cost: a process of its own.

`python -m headgate.self_profile '<Order as JSON>'` prints a `headgate.device_file.Measured`. Whoever asks stays without
torch, and gets the memory of the engine back. The engine's own self-benchmark looks at a handful of steps; here the
real scheduler makes them, of mixed sizes, and the same model that serves is fitted to them.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol

import msgspec

from gpu_worker.engine import StepResult, load_engine
from gpu_worker.errors import EngineError
from headgate.device_file import Measured
from policies.config import SchedulerConfig
from policies.scheduler import Scheduler
from policies.step_time import Features, StepTimeModel
from policies.vocabulary import BLOCK_SIZE, Request, Sampling, Step, StepTimeCoefficients, WorkerSpec, pack_tokens

__all__ = ["Drivable", "Order", "profile"]

#: Steps with about so many requests at once; then another number of them.
_EPISODE_STEPS = 24
_OUTPUTS = (4, 48)
#: What was measured is learned again so often, every kind of step as often as the others: most steps only decode, and
#: in the order in which they ran, a few large chunks would hardly count.
_REPLAYS = 10_000
_MEMORY_STEPS = 1000  # the device does not change while it is profiled
_SHORTEST_PROMPT = 16


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to load, as in `gpu_worker.engine.load_engine`, and how long to drive it."""

    model: str | None
    device: str = "auto"
    dtype: str = "auto"
    slots: int = 64
    tokens_per_step: int | None = None
    kv_bytes: int | None = None
    threads: int | None = None
    mock_step_s: float | None = None
    seconds: float = 20.0


class Drivable(Protocol):
    """What of a `gpu_worker.engine.Engine` is needed here."""

    @property
    def spec(self) -> WorkerSpec: ...

    def execute(self, step: Step) -> StepResult: ...

    def reset(self) -> None: ...


def profile(
    engine: Drivable, *, seconds: float, clock: Callable[[], float] = time.monotonic, seed: int = 0
) -> Measured:
    """Serve requests of log-uniform lengths, of which a log-uniform number runs at once, for so long.

    :raises EngineError: a step failed.
    """
    spec, rng = engine.spec, random.Random(seed)
    seen = _Seen(spec.step_time)
    # Copies would hide what computing costs.
    config = SchedulerConfig(steps_in_flight=1, preemption="recompute")
    core = Scheduler(spec, config=config, step_time=seen)
    end, number, at_once, steps = clock() + seconds, 0, 1, 0
    while clock() < end:
        if steps % _EPISODE_STEPS == 0:
            at_once = round(_log_uniform(rng, 1, spec.slots))
        census = core.census()
        for _ in range(at_once - census.running - census.waiting):
            number += 1
            core.submit(_request(spec, number, rng), clock())
        step = core.plan(clock())
        if step is None:
            break
        done = engine.execute(step).done
        if done.error:
            raise EngineError(f"step {done.number} was refused: {done.error}")
        core.complete(done, clock())
        core.take_events()
        steps += 1
    engine.reset()
    fit = seen.replayed(rng)
    fitted = msgspec.structs.replace(spec, step_time=fit.coefficients)
    ratios = fit.ratios()
    return Measured("", fitted, (ratios.p50, ratios.p90, ratios.p95), seen.count)


class _Seen(StepTimeModel):
    """Keeps what it observes, by strata of tokens."""

    def __init__(self, seed: StepTimeCoefficients) -> None:
        super().__init__(seed, memory_steps=_MEMORY_STEPS)
        self.count = 0
        self._kept: dict[int, list[tuple[Features, float]]] = {}

    def observe(self, features: Features, actual_s: float) -> None:
        super().observe(features, actual_s)
        self.count += 1
        self._kept.setdefault(bisect_left(self.STRATA, features.tokens), []).append((features, actual_s))

    def replayed(self, rng: random.Random) -> StepTimeModel:
        """A model that has learned from all strata alike."""
        model, strata = StepTimeModel(self.coefficients, memory_steps=_MEMORY_STEPS), list(self._kept.values())
        for _ in range(_REPLAYS if strata else 0):
            model.observe(*rng.choice(rng.choice(strata)))
        return model


def _request(spec: WorkerSpec, number: int, rng: random.Random) -> Request:
    room = min(spec.max_context, spec.blocks * BLOCK_SIZE // 2)
    prompt = min(round(_log_uniform(rng, _SHORTEST_PROMPT, max(_SHORTEST_PROMPT, room - _OUTPUTS[1]))), room - 1)
    return Request(
        id=str(number),
        attempt=1,
        tenant="",
        model=spec.model,
        gateway="",
        prompt=pack_tokens([1] * prompt),
        max_tokens=min(round(_log_uniform(rng, *_OUTPUTS)), room - prompt),
        sampling=Sampling(temperature=0.0, ignore_eos=True),
        salt=str(number).encode(),  # all prompts are alike, and none is to be found in the cache
    )


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())


def _main(text: str) -> int:
    order = msgspec.json.decode(text, type=Order)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # whatever libraries say while they load
            engine = load_engine(
                order.model,
                device=order.device,
                dtype=order.dtype,
                slots=order.slots,
                tokens_per_step=order.tokens_per_step,
                kv_bytes=order.kv_bytes,
                threads=order.threads,
                mock_step_s=order.mock_step_s,
            )
            measured = profile(engine, seconds=order.seconds)
            engine.close()
    except EngineError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(msgspec.json.encode(measured).decode())
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1]))
