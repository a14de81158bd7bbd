"""A fleet in which some workers prefill and others decode, with the KV sent between them.

When its first output is there, a request leaves the worker that prefilled it. A decode worker is chosen by what it will
be when the KV has come, holds room, and pulls it; until that is done the KV keeps its blocks at the prefill worker
(DistServe: the memory there is the buffer). Where nobody has room, requests wait for it in the order in which their
prefills ended. With `reserve="arrival"` the decode worker is chosen and holds room before the prefill starts, if it can
(Splitwise).

A worker has one link out and one in, each served first come first served (`policies.links`). Workers plan one step
ahead, not two: a simulated device has no round trip, and a second step would decode once more where the prefill was.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from math import inf
from typing import Any, Literal

import msgspec

from policies.admission import Admit, Policy, Reason, Refuse
from policies.catalog import PolicySet
from policies.disaggregation import Coming, DecodeState, Foreseen, choose_decode, kv_bytes, split_workers
from policies.early_rejection import least_load
from policies.events import Event, Finished, FirstToken, Scheduled
from policies.placement import Ask, Placer
from policies.vocabulary import Request
from simulator.errors import BadFleet
from simulator.moving import MovingSimulation
from simulator.records import PREFIX_TOKENS, Device, Workload

__all__ = ["DisaggregatedSimulation"]


class _Passage(msgspec.Struct):
    """A request between its prefill and its decode."""

    request: Request  # as it goes on: with its first output
    tokens: int  # whose KV is there
    prefill: int
    decode: int = -1  # -1: nobody has room yet
    done_s: float = inf


class DisaggregatedSimulation(MovingSimulation):
    """As `Simulation`, on workers of two kinds: the first `PolicySet.prefill_workers` (0: half) prefill.

    :param reserve: when the decode worker makes room.
    Everybody is let in, or Mooncake's early rejection decides (`mooncake`, `mooncake-naive`): by the first token, with
    what is queued at the prefill worker, and by the pace on the best decode worker once the KV is there.

    :raises BadFleet: if either kind has no worker, or for an admission that knows of no such fleets.
    """

    def __init__(
        self,
        workload: Workload,
        device: Device,
        policies: PolicySet,
        *,
        workers: int = 2,
        reserve: Literal["arrival", "prefill-end"] = "prefill-end",
        **options: Any,
    ) -> None:
        try:
            prefill, _ = split_workers(workers, prefill=policies.prefill_workers)
        except ValueError as error:
            raise BadFleet(str(error)) from None
        self._early = policies.admission.kind
        if self._early not in ("none", "mooncake", "mooncake-naive"):
            raise BadFleet(
                f"admission {self._early!r} foresees workers that prefill and decode; "
                "a disaggregated fleet takes none, mooncake or mooncake-naive"
            )
        config = msgspec.structs.replace(policies.scheduler, steps_in_flight=1)
        policies = msgspec.structs.replace(policies, scheduler=config, admission=Policy(kind="none"))
        super().__init__(workload, device, policies, workers=workers, **options)
        self._reserve = reserve
        self._prefill = Placer(policies.placement, seed=self._seed, span=PREFIX_TOKENS)
        self._decode = Placer("least-loaded", seed=self._seed)
        for number, worker in enumerate(self._fleet.workers):
            (self._prefill if number < prefill else self._decode).join(worker.name, worker.scheduler.spec)
        self._prefilling: dict[str, int] = {}  # request → the decode worker that has made room; -1: none yet
        self._waiting: OrderedDict[str, _Passage] = OrderedDict()  # for room at a decode worker
        self._coming: dict[int, dict[str, Coming]] = {number: {} for number in range(workers)}
        self._underway: dict[str, Coming] = {}  # who has no decode worker yet, where somebody asks
        self._sent: list[tuple[float, str, _Passage]] = []  # KV on its way: (instant, request, passage), a heap

    def _due(self, now: float) -> None:
        while self._sent and self._sent[0][0] <= now:
            self._delivered(heappop(self._sent)[2], now)

    def _decided(self, request: Request, verdict: Admit | Refuse, now: float) -> int | None:
        if isinstance(verdict, Refuse):
            return super()._decided(request, verdict, now)
        ask = self._fleet.ask(request)._replace(outputs=0)
        name = self._prefill.place(ask)
        assert name is not None, "no worker prefills"
        refusal = None if self._early == "none" else self._reject_early(request, ask, name, now)
        if refusal is not None:
            return super()._decided(request, refusal, now)
        number = super()._decided(request, msgspec.structs.replace(verdict, worker=name), now)
        if number is not None:
            self._prefill.submitted(ask, name)
            self._prefilling[request.id] = decode = self._make_room(request, now) if self._reserve == "arrival" else -1
            if decode < 0 and self._early == "mooncake":
                at_s = now + self._prefill.book.views[name].first_token_s(0)
                self._underway[request.id] = Coming(at_s, ask.tokens + 1, self._fleet.ask(request).outputs)
        return number

    def _reject_early(self, request: Request, ask: Ask, prefill: str, now: float) -> Refuse | None:
        prefixes = self._prefill.prefixes
        cached = 0 if prefixes is None else prefixes.cached(ask, prefill)
        first_token_s = self._prefill.book.views[prefill].first_token_s(ask.tokens, cached=cached)
        if request.ttft_s is not None and first_token_s > request.ttft_s:
            late_s = first_token_s - request.ttft_s
            return Refuse(
                reason=Reason.ttft_unattainable,
                measured=first_token_s,
                threshold=request.ttft_s,
                retry_after_s=late_s,
                predicted_ttft_s=first_token_s,
            )
        tpot_s = request.tpot_s
        if tpot_s is None:
            return None
        predict = self._fleet.workers[0].step_time.predict

        def load(seen: Foreseen) -> float:
            return predict(seen.running + 1, 0.0, seen.context + ask.tokens, seen.running + 1) / tpot_s

        ends_s = now + first_token_s + self._links.seconds(kv_bytes(ask.tokens, self._device.block_bytes))
        least = least_load(
            self._promised_states(now), load, prefill_ends_s=ends_s, now=now, predicted=self._early == "mooncake"
        )
        if least <= 1:
            return None
        return Refuse(
            reason=Reason.tpot_unattainable,
            measured=least * tpot_s,
            threshold=tpot_s,
            retry_after_s=first_token_s,
            predicted_ttft_s=first_token_s,
        )

    def _take(self, number: int, events: list[Event], now: float) -> None:
        """A request begins, has its first token, and ends once, wherever it is."""
        told: list[Event] = []
        prefilled: dict[str, None] = {}
        for event in events:
            prefilling = event.request in self._prefilling
            (self._prefill if prefilling else self._decode).heard([event])
            if isinstance(event, (Scheduled, FirstToken)) and not prefilling:
                continue
            if isinstance(event, FirstToken):
                prefilled[event.request] = None
            elif isinstance(event, Finished) and prefilling:
                prefilled.pop(event.request, None)
                self._give_up_room(event.request)
            told.append(event)
        self._told(told, now)
        for request in prefilled:
            self._leave(request, number, now)
        ended = any(isinstance(event, Finished) for event in told)
        if self._waiting and (ended or not self._fleet.workers[number].live):
            self._pull_waiting(now)

    def _give_up_room(self, request: str) -> None:
        """It ended where it was prefilled."""
        decode = self._prefilling.pop(request)
        self._underway.pop(request, None)
        if decode >= 0:
            self._fleet.workers[decode].scheduler.abandon(request)
            del self._coming[decode][request]

    def _leave(self, name: str, number: int, now: float) -> None:
        """Its first output is there, and there are more to come: elsewhere."""
        scheduler = self._fleet.workers[number].scheduler
        tokens = scheduler.kv_tokens(name)
        request = scheduler.hand_over(name, now, keep=True)
        assert request is not None, f"{name} is not where it had its first output"
        self._part(name, now)
        self._prefill.ended(name)
        passage = _Passage(request, tokens, number, self._prefilling.pop(name))
        if passage.decode >= 0:
            self._pull(passage, now)
        else:
            self._waiting[name] = passage
            self._pull_waiting(now)

    # Decode workers

    def _make_room(self, request: Request, now: float) -> int:
        """The decode worker that has made room for the request; -1: none has any."""
        tokens = len(request.prompt) // 4
        at_s = now + self._links.seconds(kv_bytes(tokens, self._device.block_bytes))
        if not request.generated:
            at_s += self._fleet.workers[0].step_time.predict(tokens, tokens * tokens / 2, 0, 1)
        seen = choose_decode(self._states(), tokens=tokens, at_s=at_s, now=now)
        if seen is None:
            return -1
        number = self._number[seen.worker]
        if not self._fleet.workers[number].scheduler.expect(request, now, tokens=tokens + 1):
            return -1
        self._underway.pop(request.id, None)
        self._coming[number][request.id] = Coming(at_s, tokens + 1, request.max_tokens - 1)
        return number

    def _states(self) -> list[DecodeState]:
        states = []
        for name, view in self._decode.book.views.items():
            if view.draining:
                continue
            number = self._number[name]
            worker = self._fleet.workers[number]
            load = worker.scheduler.load(self.now, name)
            rows = [(row.context, row.outputs_left) for row in load.requests]
            context = sum(row[0] for row in rows)
            step_s = worker.step_time.predict(len(rows) + 1, 0.0, context, len(rows) + 1)
            states.append(DecodeState(name, load.blocks, load.slots, step_s, rows, list(self._coming[number].values())))
        return states

    def _promised_states(self, now: float) -> list[DecodeState]:
        """As `_states`, with those who prefill or wait, and will come to one or another."""
        states = self._states()
        underway = [self._underway[name] for name in [*self._waiting, *self._prefilling] if name in self._underway]
        for at, state in enumerate(states):
            share = underway[at :: len(states)]
            states[at] = state._replace(coming=[*state.coming, *share])
        return states

    def _pull_waiting(self, now: float) -> None:
        """First come first served: who waits behind one for whom nobody has room waits too."""
        while self._waiting:
            passage = next(iter(self._waiting.values()))
            passage.decode = self._make_room(passage.request, now)
            if passage.decode < 0:
                if not self._revoke():
                    return
                continue
            del self._waiting[passage.request.id]
            self._pull(passage, now)

    def _revoke(self) -> bool:
        """Take back the room that was held last for somebody whose prefill has not ended; False if there is none.

        Who is prefilled goes first. Both may not wait for each other: the one for room here, the other for the memory
        of the prefill worker, which the first one fills.
        """
        for name in reversed(self._prefilling):
            number = self._prefilling[name]
            if number >= 0:
                self._fleet.workers[number].scheduler.abandon(name)
                coming = self._coming[number].pop(name)
                if self._early == "mooncake":
                    self._underway[name] = coming
                self._prefilling[name] = -1
                return True
        return False

    def _pull(self, passage: _Passage, now: float) -> None:
        source, destination = self._fleet.workers[passage.prefill], self._fleet.workers[passage.decode]
        passage.done_s = now
        if source is not destination:
            count = kv_bytes(passage.tokens, self._device.block_bytes)
            passage.done_s = self._links.send(source.name, destination.name, count, now).done_s
        heappush(self._sent, (passage.done_s, passage.request.id, passage))
        self._wake(passage.done_s, passage.decode)

    def _delivered(self, passage: _Passage, now: float) -> None:
        """The KV is there: its blocks at the prefill worker are free, and decoding may begin."""
        request, number = passage.request, passage.decode
        source, worker = self._fleet.workers[passage.prefill], self._fleet.workers[number]
        source.scheduler.abandon(request.id)
        self._touched.add(passage.prefill)
        worker.scheduler.deliver(request, now, computed=passage.tokens)
        self._join(number, request, now)
        del self._coming[number][request.id]
        ask = Ask(request.id, passage.tokens + 1, passage.tokens + request.max_tokens, request.max_tokens - 1)
        self._decode.submitted(ask, worker.name)
