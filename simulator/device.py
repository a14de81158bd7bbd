"""The device of a simulated worker: takes steps as a worker does, and alone knows where each output ends.

A step begins when the one before it ends, and lasts as long as its `StepTimeCoefficients` say, times noise. Copies run
beside the computing, so a step is as long as the longer of both. A row that has ended but is still in a step that was
launched before that was known costs its part and samples nothing, as on a real device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from copy import deepcopy
from math import inf
from random import Random
from typing import Any, NamedTuple

from policies.vocabulary import Finish, Step, StepDone
from simulator.records import Arrival, Device

__all__ = ["STRAGGLER", "Foreseen", "Launched", "Noise", "SimulatedDevice"]


#: How much longer a straggling step takes.
STRAGGLER = 5.0


class Noise(NamedTuple):
    """What makes steps last longer or shorter than the model of the device says."""

    sigma: float = 0.0  # of a lognormal factor on each step
    stragglers: float = 0.0  # share of the steps that take STRAGGLER times as long

    def factor(self, random: Random) -> float:
        """That of one step."""
        factor = random.lognormvariate(0.0, self.sigma) if self.sigma else 1.0
        if self.stragglers and random.random() < self.stragglers:
            factor *= STRAGGLER
        return factor

    def __bool__(self) -> bool:
        return self.sigma > 0 or self.stragglers > 0


class Launched(NamedTuple):
    """A step on the device, with what it will give."""

    done: StepDone
    begun_s: float
    due_s: float


class Foreseen:
    """Results that come unless something else does, with those of the steps on the device first. Of `most` a result can
    be taken; `taken` are."""

    __slots__ = ("dues", "durations_s", "most", "slots", "state", "taken")

    def __init__(
        self, slots: list[int], dues: list[float], durations_s: list[float], most: int, state: tuple[Any, ...] | None
    ) -> None:
        self.slots, self.dues, self.durations_s, self.most = slots, dues, durations_s, most
        self.state = state  # of the random numbers before
        self.taken = 0

    def __deepcopy__(self, memo: dict[int, object]) -> Foreseen:
        """The figures never change."""
        other = memo[id(self)] = Foreseen(self.slots, self.dues, self.durations_s, self.most, self.state)
        other.taken = self.taken
        return other


class SimulatedDevice:
    """Slots and the steps that were launched. `arrivals` tells the true lengths, by request id."""

    def __init__(self, device: Device, arrivals: Mapping[str, Arrival], *, noise: Noise, random: Random) -> None:
        c = device.step_time
        self._floor, self._base, self._per_token = c.floor_s, c.base_s, c.per_token_s
        self._per_attended, self._per_context, self._per_row = c.per_attended_s, c.per_context_s, c.per_row_s
        self._block_bytes, self._swap_bytes_per_s = device.block_bytes, device.swap_bytes_per_s
        self._arrivals = arrivals
        self.noise, self._noisy = noise, bool(noise)
        self.random = random
        slots = min(device.slots, device.tokens_per_step)
        self.position = [0] * slots  # tokens computed, by slot, with those of launched steps
        self.end = [0] * slots  # the position from which the last output is sampled; 0 until it samples at all
        self._known = [0] * slots  # the position from which every step samples
        self._last = [0] * slots  # what `end` will be
        self._limited = [False] * slots  # whether max_tokens ends it, not a stop token
        self.launched: deque[Launched] = deque()
        self.busy_until_s = 0.0

    def __deepcopy__(self, memo: dict[int, object]) -> SimulatedDevice:
        """Independent; launched steps never change."""
        other = memo[id(self)] = object.__new__(SimulatedDevice)
        other.__dict__.update(
            {name: value[:] if isinstance(value, list) else value for name, value in self.__dict__.items()}
        )
        other.launched, other.random = self.launched.copy(), deepcopy(self.random)
        return other

    def launch(self, step: Step, now: float) -> Launched:
        """Queue a step behind those on the device."""
        for new in step.new:
            self._enter(new.slot, self._arrivals[new.request], new.computed, len(new.tokens) // 4, new.prompt_tokens)
        slots = step.slots
        moved = (len(step.swap_out) + len(step.swap_in)) * self._block_bytes
        seconds = moved / self._swap_bytes_per_s if moved else 0.0
        tokens, attended, context, special = self._give(slots, step.counts)
        if slots:
            computing = self.seconds(tokens, attended, context, len(slots))
            if self._noisy:
                computing *= self.noise.factor(self.random)
            seconds = max(computing, seconds)
        done = self._done(step.number, slots, special, seconds)
        begun = max(now, self.busy_until_s)
        self.busy_until_s = begun + seconds
        launched = Launched(done, begun, self.busy_until_s)
        self.launched.append(launched)
        return launched

    def seconds(self, tokens: int, attended: float, context: int, rows: int) -> float:
        """How long computing takes, without noise."""
        dense = self._base + self._per_token * tokens
        if dense < self._floor:
            dense = self._floor
        return dense + (self._per_attended * attended + self._per_context * context + self._per_row * rows)

    def decodes_ahead(self, slots: list[int], in_flight: int) -> int:
        """How many results can be taken until one of these rows ends, if every step gives each of them one token."""
        position, end = self.position, self.end
        return min([end[slot] - position[slot] for slot in slots]) + in_flight - 1

    def foresee(self, slots: list[int], most: int, until_s: float = inf) -> Foreseen:
        """How `most` results come, the oldest first, with another step of the same rows launched after each; only those
        that are there before `until_s`. Nothing changes but the random numbers, until `take` and `forget`."""
        launched, rows, noise, noisy = self.launched, len(slots), self.noise, self._noisy
        dense = max(self._floor, self._base + self._per_token * rows)
        per_context, of_rows = self._per_context, self._per_row * rows
        context, busy_until = sum([self.position[slot] for slot in slots]), self.busy_until_s
        dues = [step.due_s for step in launched]
        durations_s = [step.done.duration_s for step in launched]
        state = self.random.getstate() if noisy else None
        for number in range(most):
            if dues[number] >= until_s:
                most = number
                break
            context += rows
            seconds = dense + (per_context * context + of_rows)
            if noisy:
                seconds *= noise.factor(self.random)
            busy_until += seconds
            dues.append(busy_until)
            durations_s.append(seconds)
        return Foreseen(slots, dues, durations_s, most, state)

    def take(self, foreseen: Foreseen, count: int, following: int) -> list[float]:
        """The next `count` results of these come, and as many steps are launched, from number `following` on. Returns
        how long the steps took whose results came."""
        slots, begin, position = foreseen.slots, foreseen.taken, self.position
        foreseen.taken = end = begin + count
        for slot in slots:
            position[slot] += count
        ahead = slice(end, end + len(self.launched))
        due = deque(zip(foreseen.dues[ahead], foreseen.durations_s[ahead], strict=True))
        self._relaunch(slots, following + count, due)
        self.busy_until_s = due[-1][0]
        return foreseen.durations_s[begin:end]

    def forget(self, foreseen: Foreseen) -> None:
        """The rest of it does not come."""
        if foreseen.state is not None and foreseen.taken < foreseen.most:
            self.random.setstate(foreseen.state)
            for _ in range(foreseen.taken):
                self.noise.factor(self.random)

    def _relaunch(self, slots: list[int], following: int, due: deque[tuple[float, float]]) -> None:
        """The steps before number `following` are those on the device; the results of some may be known already."""
        launched = self.launched
        begun = launched[0].begun_s
        known = {step.done.number: step for step in launched}
        launched.clear()
        for number, (due_s, seconds) in enumerate(due, following - len(due)):
            if (step := known.get(number)) is None:
                back = following - 1 - number
                special = [i for i, slot in enumerate(slots) if self.position[slot] - back >= self.end[slot]]
                step = Launched(self._done(number, slots, special, seconds, back), begun, due_s)
            launched.append(step)
            begun = due_s

    def _enter(self, slot: int, arrival: Arrival, computed: int, known: int, prompt_tokens: int) -> None:
        self.position[slot] = computed
        self._known[slot] = known
        self.end[slot] = 0
        self._last[slot] = prompt_tokens + min(arrival.output_tokens, arrival.max_tokens) - 1
        self._limited[slot] = arrival.output_tokens >= arrival.max_tokens

    def _give(self, slots: list[int], counts: list[int]) -> tuple[int, float, int, list[int]]:
        """Tokens, attended and context, as they count for the time; and which rows, by their place in the step, may
        sample nothing, or their last output."""
        position, end = self.position, self.end
        tokens, attended, context, special = sum(counts), 0.0, 0, []
        chunks = len(slots)
        while chunks and counts[chunks - 1] > 1:
            chunks -= 1
        if tokens - sum(counts[chunks:]) > chunks:
            chunks = 0  # some stand between rows that decode
        for i, slot in enumerate(slots[:chunks] if chunks < len(slots) else slots):
            position[slot] = at = position[slot] + 1
            context += at
            if at >= end[slot]:
                special.append(i)
        for i in range(chunks, len(slots)):
            count, slot = counts[i], slots[i]
            start = position[slot]
            position[slot] = at = start + count
            if count > 1:
                attended += count * (start + count / 2)
            else:
                context += at
            if at >= end[slot]:
                special.append(i)
        return tokens, attended, context, special

    def _done(self, number: int, slots: list[int], special: list[int], seconds: float, back: int = 0) -> StepDone:
        """The result of a step. `special` are those of `_give`; since then, every row went on by `back`."""
        finished = [0] * len(slots)
        absent = []
        for i in special:
            slot = slots[i]
            at = self.position[slot] - back
            if at >= self._known[slot]:
                self.end[slot] = self._last[slot]
            if at < self._known[slot] or at > self._last[slot]:
                absent.append(i)
            elif at == self._last[slot]:
                finished[i] = int(Finish.length if self._limited[slot] else Finish.stop)
        if absent:
            slots = slots[:]
            for i in reversed(absent):
                del slots[i], finished[i]
        return StepDone(number, slots, [0] * len(slots), finished, seconds)
