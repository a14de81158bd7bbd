"""Placement by name: each rule's choice, what all share, and that the book behind them never drifts."""

from __future__ import annotations

import copy
from math import inf

import msgspec
import pytest
from harness import COEFFICIENTS, FixedStepTime, make_request, worker_spec
from hypothesis import given
from hypothesis import strategies as st
from toy_worker import ToyWorker

from policies.config import SchedulerConfig
from policies.events import Finished, FirstToken, Scheduled
from policies.placement import PLACEMENTS, PREFIX_SPAN, Ask, Copying, Placer, ask_of, freeness, virtual_usage
from policies.scheduler import Scheduler
from policies.vocabulary import Finish, Request, WorkerSpec

SPEC = worker_spec(blocks=1000, slots=8, tokens_per_step=512, max_context=8000)


def ask(name: str, tokens: int = 100, outputs: int = 50, *, tier: int = 1, worker: str = "", prefix: int = 0) -> Ask:
    """A request; its first `prefix` spans are those of every other with a prefix."""
    names = tuple(range(prefix))
    return Ask(name, tokens, tokens + outputs, outputs, tier, worker, names)


def fleet(rule: str, size: int, *, spec: WorkerSpec = SPEC, copying: Copying | None = None, seed: int = 0) -> Placer:
    placer = Placer(rule, seed=seed, copying=copying)
    for i in range(size):
        placer.join(f"w{i}", spec)
    return placer


def put(placer: Placer, what: Ask) -> str:
    worker = placer.place(what)
    assert worker is not None
    placer.submitted(what, worker)
    return worker


def scheduled(name: str, cached: int = 0) -> Scheduled:
    return Scheduled(name, 1, "t", "g", 0.0, 0.0, cached, 1)


def first_token(name: str) -> FirstToken:
    return FirstToken(name, 1, "t", "g", 0.0, 0.0, 0.0, None)


def finished(name: str) -> Finished:
    return Finished(name, 1, "t", "g", Finish.stop, 1, 1, 0, 0, 0.0, 0.0, 0.0, 0.0)


def test_round_robin_gives_everybody_a_turn() -> None:
    """Each of n workers has one of n requests, and the order repeats."""
    placer = fleet("round-robin", 4)
    turns = [put(placer, ask(f"r{i}")) for i in range(8)]
    assert sorted(turns[:4]) == ["w0", "w1", "w2", "w3"]
    assert turns[4:] == turns[:4]


def test_least_loaded_counts_tokens_and_not_requests() -> None:
    """Three short requests are less than a long one (Splitwise's join the shortest queue)."""
    placer = fleet("least-loaded", 2)
    long = put(placer, ask("long", 4000))
    assert {put(placer, ask(f"r{i}")) for i in range(3)} == {"w0", "w1"} - {long}


def test_what_is_computed_is_not_pending_any_more() -> None:
    """After its first token only a request's outputs are still to come, and after its end nothing."""
    placer = fleet("least-loaded", 1)
    put(placer, ask("r", 100, 50))
    view = placer.book.views["w0"]
    assert view.pending == 150
    placer.heard([scheduled("r", cached=64)])
    assert (view.pending, view.running, len(view.waiting)) == (36 + 50, 1, 0)
    placer.heard([first_token("r")])
    assert (view.pending, view.queued) == (50, 0)
    placer.heard([finished("r")])
    assert (view.pending, view.running, view.used_blocks, view.context) == (0, 0, 0, 0)


def test_a_shared_prefix_is_worth_a_detour_but_not_a_queue() -> None:
    """Requests with a common prefix gather on its holder while its queue is short, and spread when it is long."""
    placer = fleet("prefix-aware", 4)
    home = put(placer, ask("a", 1100, prefix=8))
    placer.heard([scheduled("a"), first_token("a"), finished("a")])
    assert put(placer, ask("b", 1100, prefix=8)) == home
    placer.submitted(ask("queue", 6000), home)
    assert placer.place(ask("c", 1100, prefix=8)) != home


def test_a_hot_prefix_is_replicated_by_copying_where_that_is_sooner() -> None:
    """Mooncake's conductor: an idle worker gets a copy when the transfer is shorter than computing the prefix again."""
    fast, slow = (fleet("prefix-aware", 2, copying=Copying(s)) for s in (1e-7, 1.0))
    for placer, copied in ((fast, 8 * PREFIX_SPAN), (slow, 0)):
        assert placer.prefixes is not None
        placer.submitted(ask("a", 1100, prefix=8), "w0")
        placer.heard([scheduled("a"), first_token("a"), finished("a")])
        placer.submitted(ask("queue", 6000), "w0")
        choice = placer.prefixes.conduct(ask("b", 1100, prefix=8), lambda view: True)
        assert choice is not None
        assert (choice.worker, choice.copied, choice.source) == ("w1", copied, "w0" if copied else "")


def test_a_small_cache_forgets_tails_before_what_they_stand_on() -> None:
    """Of more prefixes than fit, the least recently used go, and what is left still begins at the first span."""
    placer = Placer("prefix-aware")
    placer.join("w0", worker_spec(blocks=6 * PREFIX_SPAN // 16, max_context=4000))
    placer.submitted(Ask("a", 600, 700, 100, prefix=("a1", "a2", "a3", "a4")), "w0")
    placer.submitted(Ask("b", 600, 700, 100, prefix=("b1", "b2", "b3", "b4")), "w0")
    assert placer.prefixes is not None
    assert placer.prefixes.cached(Ask("c", 600, 700, 100, prefix=("b1", "b2", "b3", "b4")), "w0") == 4 * PREFIX_SPAN
    assert placer.prefixes.cached(Ask("c", 600, 700, 100, prefix=("a1", "a2", "a3", "a4")), "w0") == 2 * PREFIX_SPAN


def test_requests_name_their_prefix_by_content_and_group() -> None:
    """Equal beginnings have equal names as far as they are equal; another tenant group's have none in common."""
    base = [*range(PREFIX_SPAN * 2)]
    one = ask_of(make_request("a", [*base, *[7] * PREFIX_SPAN], 10, salt=b"g"), prefix=True).prefix
    two = ask_of(make_request("b", [*base, *[8] * PREFIX_SPAN], 10, salt=b"g"), prefix=True).prefix
    other = ask_of(make_request("c", [*base, *[7] * PREFIX_SPAN], 10, salt=b"h"), prefix=True).prefix
    assert (len(one), one[:2] == two[:2], one[2] == two[2]) == (3, True, False)
    assert not set(one) & set(other)


def test_freeness_is_the_steps_that_memory_lasts() -> None:
    """F = (M - Σ virtual usage) / B; the head of the queue counts as held, the priority tier has headroom."""
    placer = fleet("freeness", 1)
    view = placer.book.views["w0"]
    assert freeness(view) == 1000
    for name in ("a", "b"):
        placer.submitted(ask(name, 1600), "w0")
        placer.heard([scheduled(name)])
    assert freeness(view) == (1000 - 200) / 2
    placer.submitted(ask("head", 3200), "w0")
    placer.submitted(ask("behind", 3200), "w0")
    assert freeness(view) == (1000 - 200 - 200) / 2
    placer.submitted(ask("p", 1600, tier=0), "w0")
    placer.heard([scheduled("p")])
    assert virtual_usage(view, headroom_blocks=50) == 100 * 3 + 200 + 50
    placer.drain("w0")
    assert freeness(view) == -inf


def test_memory_in_use_is_what_schedulers_say() -> None:
    """Blocks that outputs took since count too, although nobody reported an event."""
    used = {"w0": 0, "w1": 0}
    placer = Placer("freeness", used_blocks=used.__getitem__)
    placer.join("w0", SPEC)
    placer.join("w1", SPEC)
    first = put(placer, ask("a"))
    second = put(placer, ask("b"))
    placer.heard([scheduled("a"), scheduled("b")])
    assert {first, second} == {"w0", "w1"}
    for grown, other in (("w0", "w1"), ("w1", "w0")):
        used[grown], used[other] = 500 + used[other], used[other]
        assert placer.place(ask("c")) == other


def test_best_fit_takes_what_admission_chose_and_else_the_soonest() -> None:
    """Without a worker named by admission, the one where the first token comes soonest."""
    placer = fleet("best-fit", 3)
    placer.submitted(ask("long", 4000), "w0")
    placer.submitted(ask("other", 4000), "w1")
    assert placer.place(ask("r")) == "w2"
    assert placer.place(ask("r", worker="w0")) == "w0"


@pytest.mark.parametrize("rule", PLACEMENTS)
def test_a_worker_that_admission_chose_is_taken_while_it_lives(rule: str) -> None:
    """It was tested for this request; once it is gone, draining, or another's size, the rule decides."""
    placer = fleet(rule, 4)
    assert placer.place(ask("r", worker="w3")) == "w3"
    placer.drain("w3")
    assert placer.place(ask("r", worker="w3")) in {"w0", "w1", "w2"}
    placer.drain("w3", draining=False)
    placer.leave("w3")
    assert placer.place(ask("r", worker="w3")) in {"w0", "w1", "w2"}
    placer.join("w3", worker_spec(max_context=10))
    assert placer.place(ask("r", worker="w3")) in {"w0", "w1", "w2"}


@pytest.mark.parametrize("rule", PLACEMENTS)
def test_every_rule_passes_over_what_is_too_small(rule: str) -> None:
    """Only workers that could hold it at its longest; where none can, the roomiest says why."""
    placer = fleet(rule, 3, spec=worker_spec(blocks=8, max_context=200))
    placer.join("large", SPEC)
    assert all(put(placer, ask(f"r{i}", 500)) == "large" for i in range(4))
    assert placer.place(ask("impossible", 10**6)) == "large"
    assert Placer(rule).place(ask("nowhere")) is None


@pytest.mark.parametrize("rule", PLACEMENTS)
def test_equals_are_ordered_by_the_seed(rule: str) -> None:
    """The same seed gives the same placements, whatever the order in which workers came."""

    def run(order: list[int], seed: int) -> list[str]:
        placer = Placer(rule, seed=seed)
        for i in order:
            placer.join(f"w{i}", SPEC)
        return [put(placer, ask(f"r{i}", 100 + i)) for i in range(12)]

    if rule != "round-robin":
        assert run([0, 1, 2, 3], 1) == run([3, 1, 0, 2], 1)
        assert len({tuple(run([0, 1, 2, 3], seed)) for seed in range(8)}) > 1
    assert run([0, 1, 2, 3], 1) == run([0, 1, 2, 3], 1)


@pytest.mark.parametrize("rule", PLACEMENTS)
def test_a_copy_goes_its_own_way(rule: str) -> None:
    """What a copy of a placer is told changes nothing for the original: simulations fork."""
    used = _Used()
    placer = Placer(rule, used_blocks=used.blocks)
    for i in range(3):
        placer.join(f"w{i}", SPEC)
    put(placer, ask("a", 300, prefix=2))
    copied, used_there = copy.deepcopy((placer, used))
    rest = [ask(f"r{i}", 300 + i, prefix=i % 3) for i in range(9)]
    alone = [put(copy.deepcopy(placer), rest[0])]
    for i in range(3):
        used_there.used[f"w{i}"] = 900 - i
    for one in rest:
        put(copied, one)
    copied.drain("w0")
    assert [put(placer, rest[0])] == alone
    assert not placer.book.views["w0"].draining
    assert placer.book.home("r5") is None


class _Used:
    def __init__(self) -> None:
        self.used: dict[str, int] = {}

    def blocks(self, worker: str) -> int:
        return self.used.get(worker, 0)


def test_an_unknown_rule_is_refused_with_those_there_are() -> None:
    """The message names every placement."""
    with pytest.raises(ValueError, match=r"'best' is not known; there are round-robin, least-loaded, .* freeness"):
        Placer("best")


@pytest.mark.parametrize("rule", PLACEMENTS)
def test_a_thousand_workers_cost_no_more_than_a_few(rule: str) -> None:
    """A request looks at a handful of workers, however many there are."""
    placer = fleet(rule, 1000)
    looked = 0

    def accept(view: object) -> bool:
        nonlocal looked
        looked += 1
        return True

    for i in range(200):
        one = ask(f"r{i}", 600 + i, prefix=4)
        worker = placer._rule.choose(one, accept)
        assert worker is not None
        placer.submitted(one, worker)
        placer.heard([scheduled(one.id), first_token(one.id)])
        if i % 2:
            placer.heard([finished(one.id)])
    assert looked <= 200 * 24


Op = tuple[str, int, int]
OPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "start", "first", "end", "drain", "undrain", "die", "join", "again"]),
        st.integers(0, 11),
        st.integers(1, 900),
    ),
    max_size=60,
)


@given(rule=st.sampled_from(PLACEMENTS), ops=OPS, seed=st.integers(0, 3))
def test_draining_workers_get_nothing_and_the_book_balances(rule: str, ops: list[Op], seed: int) -> None:
    """Whatever joins, drains, dies and ends: no rule dispatches to a draining worker, no request is on two, and when
    all are over every figure is back at zero."""
    placer = fleet(rule, 4, seed=seed)
    draining: set[str] = set()
    alive = {f"w{i}" for i in range(4)}
    for number, (what, who, size) in enumerate(ops):
        name, worker = f"r{who}", f"w{who % 5}"
        if what in ("put", "again"):
            one = ask(name if what == "put" else f"r{number}", size, tier=size % 3, prefix=size // PREFIX_SPAN)
            chosen = placer.place(one)
            assert (chosen is None) == (alive <= draining)
            if chosen is not None:
                assert chosen in alive - draining
                placer.submitted(one, chosen)
                assert placer.book.home(one.id) == chosen
        elif what in ("start", "first", "end"):
            event = scheduled(name) if what == "start" else first_token(name) if what == "first" else finished(name)
            placer.heard([event])
        elif what == "die":
            placer.leave(worker)
            alive.discard(worker)
            draining.discard(worker)
        elif what == "join":
            placer.join(worker, SPEC)
            alive.add(worker)
            draining.discard(worker)
        else:
            placer.drain(worker, draining=what == "drain")
            (draining.add if what == "drain" and worker in alive else draining.discard)(worker)
    for i in range(len(ops) + 12):
        placer.ended(f"r{i}")
    for view in placer.book.views.values():
        left = (view.queued, view.outputs, view.running, view.context, view.priority, view.used_blocks, view.waiting)
        assert left == (0, 0, 0, 0, 0, 0, {})


def test_the_book_follows_real_schedulers() -> None:
    """Fed with what schedulers report, views count what their loads show."""
    spec = worker_spec(blocks=64, slots=4, tokens_per_step=32)
    cores = {
        name: Scheduler(spec, config=SchedulerConfig(steps_in_flight=1), step_time=FixedStepTime(COEFFICIENTS))
        for name in ("w0", "w1")
    }
    workers = {name: ToyWorker(spec, vocabulary=1000, salts={}, outputs={}) for name in cores}
    placer = Placer("least-loaded", used_blocks=lambda name: cores[name].census().used_blocks)
    for name in cores:
        placer.join(name, spec)
    for i in range(12):
        request = make_request(f"r{i}", [i + 1] * (10 + 5 * i), 6)
        worker = put(placer, ask_of(request))
        cores[worker].submit(request, 0.0)
        workers[worker].salts[request.id] = b""
    for step in range(200):
        for name, core in cores.items():
            plan = core.plan(step / 100)
            placer.heard(core.take_events())
            if plan is not None:
                placer.heard(core.complete(workers[name].execute(plan), step / 100))
            view, census = placer.book.refresh(placer.book.views[name]), core.census()
            assert (view.running, len(view.waiting)) == (census.running, census.waiting)
            assert view.used_blocks == census.used_blocks
    assert not any(core.requests() for core in cores.values())
    assert all(view.pending == 0 for view in placer.book.views.values())


def test_the_admitted_worker_travels_at_the_end_of_a_request() -> None:
    """A request of a process that does not know the field is read, and one with it is read by such a process."""
    request = msgspec.structs.replace(make_request("r", [1, 2], 5), worker="w7")
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(request))
    place = Request.__struct_fields__.index("worker")
    assert fields[place] == "w7"
    old = msgspec.msgpack.decode(msgspec.msgpack.encode(fields[:place]), type=Request)
    assert old == msgspec.structs.replace(request, worker="")
    newer = msgspec.msgpack.decode(msgspec.msgpack.encode([*fields, "unknown"]), type=Request)
    assert newer == request
