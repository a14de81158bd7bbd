"""The scheduler actor: the pure cores of all workers of one model, fed with messages.

One scheduler serves one model and holds its lease; a standby waits for it. It owns no stream and no truth: what it
knows of a request, that request's gateway knows too, and submits it again wherever this state is lost.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from actors.facts import Telling
from actors.messages import (
    Accepted,
    Attach,
    Attached,
    Cancel,
    Cancelled,
    HandBack,
    Keep,
    Load,
    Pressed,
    RunStep,
    Stepped,
    StepRefused,
    Submit,
    UsageSettled,
    Where,
    Whereabouts,
)
from actors.request_book import RequestBook
from actors.request_spans import RequestSpans
from actors.runtime import (
    LEASE_TTL_S,
    Actor,
    ActorError,
    Context,
    Death,
    Lease,
    Node,
    Peer,
    Silence,
    Watch,
    handles,
    heartbeat,
)
from actors.scheduler_facts import SchedulerReporter
from actors.step_journal import StepJournal
from actors.step_notes import StepObserver
from actors.step_spans import StepSpans
from actors.worker_link import WorkerLink
from observability.metrics import CacheMetrics, SchedulerMetrics
from observability.tracing import Tracing
from policies.config import SchedulerConfig
from policies.errors import PolicyError, Unservable
from policies.events import Event, Finished, Preempted, Reclaimed, Scheduled
from policies.overload import Level
from policies.placement import Ask, Placer, ask_of
from policies.vocabulary import Finish, Request, WorkerLoad

__all__ = ["SchedulerActor"]

Settle = Callable[[UsageSettled], Coroutine[Any, Any, None]]


class SchedulerActor(Actor):
    """`settle` writes the usage of a request whose gateway died; it must not lose it.

    `placement`: a name of `policies.placement.PLACEMENTS`. Whatever it is, a worker that admission chose is taken while
    it lives. `holder` names this process in the lease, apart from a standby's, which has the same address; by default
    the address itself, for stacks that have no standby.
    """

    role = "scheduler"
    mailbox = 4096
    #: A change of load is told so long after it, together with those that come meanwhile.
    LOAD_SOON_S = 0.01
    #: So long a new scheduler that has found no worker yet tells no load: its predecessor's is nearer to the truth.
    FIND_WORKERS_S = 1.0
    #: A level of overload that admission does not tell again for so long is over.
    PRESSED_S = 3.0

    def __init__(
        self,
        *,
        model: str,
        config: SchedulerConfig,
        metrics: SchedulerMetrics,
        blocks: CacheMetrics,
        tracing: Tracing,
        settle: Settle,
        clock: Callable[[], float] = time.monotonic,
        load_every_s: float = 0.1,
        placement: str = "best-fit",
        observers: Sequence[StepObserver] = (),
        holder: str = "",
    ) -> None:
        self._model = model
        self._holder = holder
        journal = StepJournal()
        self._spans = RequestSpans(tracing)
        self._observers = (*observers, journal, self._spans, StepSpans(tracing, self._spans, model=model))
        self._reporter = SchedulerReporter(model, journal)
        self._config = config
        self._metrics = metrics
        self._blocks = blocks
        self._settle = settle
        self._clock = clock
        self._load_every_s = load_every_s
        self._load_due = False
        self._load_from_s = 0.0
        self._level, self._level_until = Level.calm, 0.0
        self._links: dict[str, WorkerLink] = {}
        self._placer = Placer(placement, report=self._report, used_blocks=self._used_blocks)
        self._draining: set[str] = set()  # workers that are told to end
        self._attaching: dict[str, int] = {}  # the epoch that is being attached
        self._book = RequestBook()
        self._dead_gateways: set[str] = set()
        self._home: dict[str, WorkerLink] = {}  # of the live; absent: waits for a worker
        self._leaving: dict[str, list[asyncio.Future[None]]] = {}
        self._log = structlog.get_logger().bind(model=model)

    # --- life ---------------------------------------------------------------------------------------------------------

    @property
    def links(self) -> list[WorkerLink]:
        """The workers that are attached."""
        return list(self._links.values())

    @property
    def unplaced(self) -> list[Request]:
        """Those that wait for any worker."""
        return self._book.waiting()

    async def on_start(self, node: Node) -> None:
        # A standby waits here, and is not spoken to.
        silence = Silence(self.role, instance=node.instance)
        await silence.start(self)
        holder = self._holder or node.name
        await self.hold(Lease(node, node.name, holder, ttl_s=LEASE_TTL_S, is_deserted=silence))
        await Watch("worker", on_alive=self._worker_alive, on_death=self._worker_died).start(self)
        await Watch("gateway", on_death=self._gateway_died, on_alive=self._gateway_alive).start(self)
        await self.listen("gateway", Keep, self._spans.asked)
        heartbeat(self, info=lambda: {"pid": os.getpid(), "state": "ready", "model": self._model})
        self._load_from_s = self._clock() + self.FIND_WORKERS_S
        self.every(self._load_every_s, self._publish_load)
        self.every(0.1, self._watch_links)
        await Telling(self, self._tell_facts, clock=self._clock).start()
        await self.listen("admission", Pressed, self._heard_pressed)

    # --- requests -----------------------------------------------------------------------------------------------------

    @handles
    def submit(self, msg: Submit, ctx: Context) -> Accepted | None:
        """Idempotent: the same or an older attempt changes nothing.

        Told by admission for a dead gateway, it is dropped: nobody would read it, nor settle it. A gateway asks.
        """
        if not ctx.wants_reply and msg.request.gateway in self._dead_gateways:
            return None
        self._take(msg.request)
        return Accepted() if ctx.wants_reply else None

    def _take(self, request: Request) -> None:
        was_live = request.id in self._book.live
        if not self._book.take(request):
            return
        self._spans.taken(request, self._clock())
        home = self._home.get(request.id)
        if home is not None:
            self._serve(request, home, self._ask(request))  # the core lets the newer attempt replace the older one
        elif not was_live:
            self._place(request)

    def _place(self, request: Request) -> None:
        ask = self._ask(request)
        worker = self._placer.place(ask)
        if worker is None:
            self._book.unplaced.append(request.id)
        else:
            self._serve(request, self._links[worker], ask)

    def _ask(self, request: Request) -> Ask:
        return ask_of(request, prefix=self._placer.prefixes is not None)

    def _report(self, worker: str) -> WorkerLoad:
        return self._links[worker].core.load(self._clock(), worker)

    def _used_blocks(self, worker: str) -> int:
        return self._links[worker].core.census().used_blocks

    def _serve(self, request: Request, link: WorkerLink, ask: Ask) -> None:
        now = self._clock()
        try:
            link.core.submit(request, now)
        except Unservable as error:
            self._forget(request.id)
            back = HandBack(requests=[request.id], attempts=[request.attempt], errors=[str(error)])
            self.node.tell_soon(f"gateway.{request.gateway}", back)
            return
        self._home[request.id] = link
        self._spans.placed(request.id, link.worker)
        self._placer.submitted(ask, link.worker)
        self._drive(link, now)
        self._load_changed()

    @handles(concurrent=True)
    async def cancel(self, msg: Cancel, ctx: Context) -> Cancelled:
        """Answers when no step in flight touches the request any more: its blocks are free by then."""
        self._book.unwanted(msg.request)
        if msg.request in self._book.live:
            left = asyncio.get_running_loop().create_future()
            self._leaving.setdefault(msg.request, []).append(left)
            self._withdraw(msg.request)
            await left
        return Cancelled(request=msg.request, generated=self._book.generated(msg.request))

    def _withdraw(self, request_id: str) -> None:
        link = self._home.get(request_id)
        if link is None:
            self._book.unplaced.remove(request_id)
            self._ended(request_id)
        else:
            now = self._clock()
            link.core.cancel(request_id, now)
            self._drive(link, now)

    @handles
    def where(self, msg: Where, ctx: Context) -> Whereabouts:
        book = self._book
        return Whereabouts(
            attempts=[book.attempt(r) for r in msg.requests], generated=[book.generated(r) for r in msg.requests]
        )

    # --- steps --------------------------------------------------------------------------------------------------------

    @handles
    def stepped(self, msg: Stepped, ctx: Context) -> None:
        link = self._links.get(ctx.sender.partition(".")[2])
        if link is None or msg.session != link.session:
            return
        now = self._clock()
        try:
            events = link.stepped(msg, now)
        except PolicyError as error:
            self._give_up(link, str(error), cause="mismatch")
            return
        self._apply(events, now)
        self._drive(link, now)

    def _drive(self, link: WorkerLink, now: float) -> None:
        """Keep the pipeline full, and hear what planning did."""
        link.pump(now)
        self._apply(link.core.take_events(), now)
        due_in_s = link.due_in_s(now)
        if due_in_s is not None:
            asyncio.get_running_loop().call_later(due_in_s, lambda: self.spawn(self._woken(link)))

    async def _woken(self, link: WorkerLink) -> None:
        """Time alone lets a batch start, or takes the last chance of a request."""
        link.woken()
        if self._links.get(link.worker) is link:
            self._drive(link, self._clock())

    @handles
    def step_refused(self, msg: StepRefused, ctx: Context) -> None:
        link = self._links.get(ctx.sender.partition(".")[2])
        if link is not None and msg.session == link.session:
            link.resend(self._clock())

    def _apply(self, events: list[Event], now: float) -> None:
        self._placer.heard(events)
        for life in self._spans.heard(events):
            self.node.tell_soon(f"gateway.{life.gateway}", Keep(requests=[life.id]))
        for event in events:
            if isinstance(event, Finished):
                self._finished(event, now)
            elif isinstance(event, Preempted):
                self._metrics.preempted(event.kind, lost_tokens=event.lost_tokens, swapped_blocks=event.swapped_blocks)
            elif isinstance(event, Reclaimed):
                self._metrics.reclaimed(lost_tokens=event.lost_tokens, swapped_blocks=event.swapped_blocks)
            elif isinstance(event, Scheduled):
                self._metrics.queued(event.at - event.queued_at)
                self._metrics.prefix_hit(event.cached_tokens)

    def _finished(self, event: Finished, now: float) -> None:
        self._book.produced(event.request, event.generated)
        request = self._book.live.get(event.request)
        if request is None or request.attempt != event.attempt:
            return  # a newer attempt took its place
        if event.finish is Finish.error and event.first_scheduled_at is None and event.request not in self._leaving:
            self._shed(request)
            return
        self._metrics.served(event.tenant, event.prompt_tokens - event.cached_tokens + event.generated)
        self._ended(event.request, event.finish)
        self._load_changed()

    def _shed(self, request: Request) -> None:
        """It never ran, and could not be in time any more."""
        if request.id in self._book.orphans:
            self._ended(request.id)
            return
        self._forget(request.id)
        self._metrics.shed()
        error = f"request {request.id}: its first-token deadline passed, or would, before a worker could serve it"
        back = HandBack(requests=[request.id], attempts=[request.attempt], errors=[error])
        self.node.tell_soon(f"gateway.{request.gateway}", back)
        self._load_changed()

    def _ended(self, request_id: str, finish: Finish = Finish.cancelled) -> None:
        orphan = self._book.ended(self._book.live[request_id], finish)
        self._forget(request_id)
        for left in self._leaving.pop(request_id, []):
            if not left.done():
                left.set_result(None)
        if orphan is not None:
            self.spawn(self._settle(orphan))

    def _forget(self, request_id: str) -> None:
        self._book.live.pop(request_id, None)
        self._home.pop(request_id, None)
        self._spans.forget(request_id)

    # --- workers ------------------------------------------------------------------------------------------------------

    def _worker_alive(self, peer: Peer) -> None:
        if peer.info.get("state") == "draining":
            self._worker_drains(peer)
        if (
            peer.info.get("model") != self._model
            or peer.info.get("state") != "ready"
            or self._attaching.get(peer.instance) == peer.epoch
        ):
            return
        link = self._links.get(peer.instance)
        if link is None or link.epoch != peer.epoch:
            self._attaching[peer.instance] = peer.epoch  # an older one is dead, and would be waited for in vain
            self.spawn(self._attach(peer.instance, peer.epoch))

    def _worker_drains(self, peer: Peer) -> None:
        """It gets nothing new; what it has goes on there until it ends, or until it says goodbye."""
        link = self._links.get(peer.instance)
        if link is not None and link.epoch == peer.epoch and peer.instance not in self._draining:
            self._log.info("worker drains", worker=peer.instance)
            self._draining.add(peer.instance)
            self._placer.drain(peer.instance)
            self._load_changed()

    async def _attach(self, instance: str, epoch: int) -> None:
        try:
            attached = await self.node.ask(f"worker.{instance}", Attach(), want=Attached, timeout_s=5.0)
        except ActorError as error:
            self._log.warning("attach failed", worker=instance, error=str(error))
            return  # the next heartbeat tries again
        finally:
            is_current = self._attaching.get(instance) == epoch
            if is_current:
                del self._attaching[instance]
        if not is_current:
            return
        old = self._links.pop(instance, None)
        if old is not None:
            self._placer.leave(instance)
            self._hand_back(old)
        ref = f"worker.{instance}"

        def send(message: RunStep) -> None:
            self.node.tell_soon(ref, message)

        self._links[instance] = WorkerLink(
            instance,
            attached.spec,
            session=attached.session,
            epoch=epoch,
            config=self._config,
            send=send,
            observers=self._observers,
        )
        self._links[instance].core.relieve(self._level)
        self._draining.discard(instance)
        self._placer.join(instance, attached.spec)
        self._log.info("worker attached", worker=instance, epoch=epoch, blocks=attached.spec.blocks)
        waiting = self._book.waiting()
        self._book.unplaced.clear()
        for request in waiting:
            self._place(request)
        self._load_changed()

    def _worker_died(self, death: Death) -> None:
        link = self._links.get(death.instance)
        if link is not None and link.epoch == death.epoch:
            self._give_up(link, death.reason, cause=death.reason)

    def _give_up(self, link: WorkerLink, why: str, *, cause: str) -> None:
        """Its requests go elsewhere. If it still lives, its next heartbeat attaches it anew."""
        self._log.warning("worker lost", worker=link.worker, why=why)
        del self._links[link.worker]
        self._draining.discard(link.worker)
        self._placer.leave(link.worker)
        self._blocks.gone(model=self._model, worker=link.worker)
        self._metrics.worker_lost(cause)
        self._hand_back(link)
        self._load_changed()

    def _hand_back(self, link: WorkerLink) -> None:
        """Its requests go to their gateways, which know what their clients have seen, and come again from there."""
        backs: dict[str, HandBack] = {}
        for live in link.core.drop_all():
            self._book.produced(live.request.id, len(live.generated) // 4)
        for request_id in [r for r, home in self._home.items() if home is link]:
            request = self._book.live[request_id]
            if request_id in self._leaving or request_id in self._book.orphans:
                self._ended(request_id)
                continue
            self._spans.handed_back(request_id, self._clock(), "its worker is gone")
            self._forget(request_id)
            back = backs.setdefault(request.gateway, HandBack(requests=[], attempts=[], errors=[]))
            back.requests.append(request_id)
            back.attempts.append(request.attempt)
            back.errors.append("")
        for gateway, back in backs.items():
            self.node.tell_soon(f"gateway.{gateway}", back)

    async def _watch_links(self) -> None:
        now = self._clock()
        if self._level is not Level.calm and now > self._level_until:
            self._relieve(Level.calm)
        for link in list(self._links.values()):
            if link.watch(now):
                self._drive(link, now)
            else:
                self._give_up(link, f"no result for {link.STALL_S:.0f} s", cause="stalled")

    def _heard_pressed(self, pressed: Pressed, ctx: Context) -> None:
        if pressed.model == self._model:
            self._relieve(Level(pressed.level))

    def _relieve(self, level: Level) -> None:
        """What every worker gives up, and for how long."""
        now = self._clock()
        self._level, self._level_until = level, now + self.PRESSED_S
        for link in self._links.values():
            link.core.relieve(level)
            self._drive(link, now)

    # --- gateways -----------------------------------------------------------------------------------------------------

    def _gateway_alive(self, peer: Peer) -> None:
        self._dead_gateways.discard(peer.instance)

    def _gateway_died(self, death: Death) -> None:
        """Free what it owned, and settle it: nobody else can."""
        if death.reason != "epoch":  # no successor under its name
            self._dead_gateways.add(death.instance)
        owned = self._book.orphaned(death.instance)
        if owned:
            self._log.warning("gateway lost", gateway=death.instance, why=death.reason, requests=len(owned))
        self._spans.keep_open(owned)
        for request_id in owned:
            self._withdraw(request_id)
        if death.reason != "goodbye":
            self.spawn(self._settle_served(death.instance))

    async def _settle_served(self, gateway: str) -> None:
        """What ended here may have been still unread there. Where it was settled already, the ledger knows."""
        for usage in self._book.unsettled(gateway):
            await self._settle(usage)

    # --- load ---------------------------------------------------------------------------------------------------------

    def _load_changed(self) -> None:
        """Tell admission soon, not only at the next turn: a place that became free may be waited for."""
        if not self._load_due:
            self._load_due = True
            asyncio.get_running_loop().call_later(self.LOAD_SOON_S, lambda: self.spawn(self._publish_load()))

    async def _publish_load(self) -> None:
        self._load_due = False
        now = self._clock()
        if not self._links and now < self._load_from_s:
            return
        loads = [link.core.load(now, name) for name, link in self._links.items() if name not in self._draining]
        for name, link in self._links.items():
            self._blocks.blocks(model=self._model, worker=name, counts=link.core.block_counts())
        await self.node.publish(self.role, Load(model=self._model, workers=loads, unplaced=len(self._book.unplaced)))

    async def _tell_facts(self, whole: bool) -> None:
        facts = self._reporter.report(self._links.values(), self.unplaced, self._clock(), whole=whole)
        await self.node.publish(self.role, facts)
