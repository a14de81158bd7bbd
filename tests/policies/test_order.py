"""The waiting queue: tier, deadline, fair share, and nobody last forever."""

from __future__ import annotations

from collections import Counter
from math import ceil

from harness import FixedStepTime, make_request
from hypothesis import given
from hypothesis import strategies as st

from policies.order import DeviceCost
from policies.order.contract import ContractQueue
from policies.rows import Row

COST = DeviceCost(FixedStepTime(), tokens_per_step=64)


class Queue:
    """A waiting queue, with rows made to order."""

    def __init__(self, *, patience_s: float = 1e9, patience_share: int = 8) -> None:
        self.queue = ContractQueue(COST, patience_s=patience_s, patience_share=patience_share)
        self.serial = 0

    def add(
        self,
        name: str,
        *,
        now: float = 0.0,
        tier: int = 1,
        ttft_s: float | None = None,
        tenant: str = "t",
        weight: float = 1.0,
        prompt: int = 4,
        preempted: bool = False,
    ) -> Row:
        self.serial += 1
        request = make_request(name, [1] * prompt, 100, tier=tier, ttft_s=ttft_s, tenant=tenant, weight=weight)
        row = Row(request, sequence=self.serial, now=now)
        row.preemptions = int(preempted)
        self.queue.push(row, now)
        return row

    def start(self, now: float = 0.0) -> str:
        head = self.queue.head(now)
        assert head is not None
        self.queue.started(head[0])
        return head[0].request.id

    def drain(self, now: float = 0.0) -> str:
        return "".join(self.start(now) for _ in range(len(self.queue)))


def test_a_better_tier_goes_first_whatever_the_deadlines() -> None:
    """Tiers are strict."""
    q = Queue()
    q.add("c", tier=2, ttft_s=0.1)
    q.add("b", tier=1, ttft_s=0.2)
    q.add("a", tier=0)
    assert q.drain() == "abc"


def test_inside_a_tier_the_earliest_deadline_goes_first_and_no_deadline_last() -> None:
    """EDF, then those without a contract by arrival."""
    q = Queue()
    q.add("d")
    q.add("b", ttft_s=2.0)
    q.add("e")
    q.add("a", ttft_s=1.0)
    q.add("c", ttft_s=3.0)
    assert q.drain() == "abcde"


def test_the_hopeless_go_behind_those_that_can_still_make_it() -> None:
    """A missed deadline does not make the next one missed too; it still goes before those without any."""
    q = Queue()
    q.add("late", ttft_s=1.0)
    q.add("later", ttft_s=0.5)
    q.add("none")
    q.add("makes it", ttft_s=9.0)
    assert [q.start(now=5.0) for _ in range(4)] == ["makes it", "late", "later", "none"]


def test_who_was_preempted_comes_back_first_in_its_tier() -> None:
    """Its client watches a stream that paused; but a better tier is still better."""
    q = Queue()
    q.add("c", ttft_s=0.1)
    q.add("b", preempted=True)
    q.add("a", tier=0)
    assert q.drain() == "abc"


def test_who_leaves_the_queue_is_not_started() -> None:
    """A cancelled row is gone from every order."""
    q = Queue()
    gone = [q.add("x", ttft_s=1.0), q.add("y"), q.add("z", preempted=True)]
    q.add("a")
    for row in gone:
        q.queue.remove(row)
        q.queue.remove(row)
    assert len(q.queue) == 1
    assert q.drain() == "a"
    assert q.queue.head(0.0) is None


def test_who_is_set_aside_is_looked_past_and_keeps_its_place() -> None:
    """Setting a row aside shows the next; restoring it restores the order."""
    q = Queue()
    for name in "abc":
        q.add(name)
    for expected in "ab":
        head = q.queue.head(0.0)
        assert head is not None
        assert head[0].request.id == expected
        q.queue.set_aside(head[0])
    assert q.start() == "c"
    q.queue.restore(0.0)
    assert q.drain() == "ab"


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([None, 0.01, 50.0])), min_size=1, max_size=10),
)
def test_the_wait_is_bounded_under_any_flood(share: int, ahead: list[tuple[int, float | None]]) -> None:
    """With m rows that wait longer, a patient row starts within share · (m + 1) starts, whatever arrives."""
    q = Queue(patience_s=1.0, patience_share=share)
    for i, (tier, ttft_s) in enumerate(ahead):
        q.add(f"ahead{i}", tier=tier, ttft_s=ttft_s)
    q.add("patient", tier=2)
    now = 10.0
    for starts in range(1, share * (len(ahead) + 1) + 1):
        q.add(f"flood{starts}", now=now, tier=0, ttft_s=1.0)
        if q.start(now) == "patient":
            return
    raise AssertionError(f"not started within {starts} starts")


def test_patience_takes_no_more_than_its_share() -> None:
    """However many wait too long in a lower tier, most starts stay with the order."""
    q = Queue(patience_s=1.0, patience_share=4)
    for i in range(50):
        q.add(f"flex{i}", tier=2)
    for i in range(50):
        q.add(f"priority{i}", tier=0, now=5.0)
    started = Counter(q.start(now=5.0)[:4] for _ in range(40))
    assert started == {"prio": 30, "flex": 10}


def test_tenants_share_by_the_work_they_cause_not_by_requests() -> None:
    """With equal weights, a tenant of long prompts starts fewer of them."""
    q = Queue()
    for _ in range(40):
        q.add("long", tenant="long", prompt=300)
        q.add("short", tenant="short", prompt=100)
    started = Counter(q.start() for _ in range(40))
    assert started["short"] == 30
    assert started["long"] == 10


def test_weights_scale_the_share() -> None:
    """A tenant of weight 3 gets three times the service of one of weight 1."""
    q = Queue()
    for _ in range(40):
        q.add("heavy", tenant="heavy", weight=3.0)
        q.add("light", tenant="light")
    assert Counter(q.start() for _ in range(40)) == {"heavy": 30, "light": 10}


def test_a_tenant_that_was_away_has_saved_nothing() -> None:
    """Lift: coming back, a tenant starts level with those that waited, instead of taking everything at once."""
    q = Queue()
    q.add("b", tenant="b")
    q.start()
    for _ in range(30):
        q.add("a", tenant="a")
    for _ in range(20):
        q.start()
    for _ in range(20):
        q.add("b", tenant="b")
    assert Counter(q.start() for _ in range(10)) == {"a": 5, "b": 5}


def test_outputs_are_charged_while_they_come() -> None:
    """A tenant whose running row has produced much waits longer with its next one."""
    q = Queue()
    running = q.add("b", tenant="b")
    q.start()
    assert running.generated == 0
    running.tokens.extend([1] * 20)
    for _ in range(20):
        q.add("a", tenant="a", prompt=64)
        q.add("b", tenant="b", prompt=64)
    q.queue.settle([running])
    behind = ceil((COST.outputs_s(20, 24, 1) + COST.prompt_s(4, 0)) / COST.prompt_s(64, 0))
    assert [q.start() for _ in range(behind + 1)] == ["a"] * behind + ["b"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), min_size=30, max_size=120), st.data())
def test_the_bound_of_vtc_holds(arrivals: list[tuple[str, int]], data: st.DataObject) -> None:
    """Device-seconds of two tenants that both wait all the time differ by at most twice the most of one request."""
    q = Queue()
    waiting: Counter[str] = Counter()
    served = dict.fromkeys("abc", 0.0)
    for tenant, prompt in arrivals:
        q.add(tenant, tenant=tenant, prompt=prompt)
        waiting[tenant] += 1
    while all(waiting[tenant] for tenant in "abc" if tenant in served):
        head = q.queue.head(0.0)
        assert head is not None
        row = head[0]
        q.queue.started(row)
        cost = COST.prompt_s(len(row.tokens), 0)
        outputs = data.draw(st.integers(0, 12))
        row.tokens.extend([1] * outputs)
        q.queue.charge(row)
        served[row.request.tenant] += cost + COST.outputs_s(outputs, len(row.tokens), 1)
        waiting[row.request.tenant] -= 1
        bound_s = 2 * (COST.prompt_s(50, 0) + COST.outputs_s(12, 62, 1))
        assert max(served.values()) - min(served.values()) <= bound_s + 1e-9
