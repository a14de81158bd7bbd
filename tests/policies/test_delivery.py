"""KV that comes from another worker, and requests that leave for one."""

from __future__ import annotations

import random

import msgspec
import pytest
from harness import Harness, make_request, worker_spec
from test_scheduler_chaos import draw_config, draw_request

from policies.config import SchedulerConfig
from policies.errors import Unservable
from policies.events import Finished, Preempted, Reclaimed
from policies.vocabulary import BLOCK_SIZE, Request, unpack_tokens


def copy_kv(source: Harness, destination: Harness, name: str, tokens: int) -> None:
    """What a transfer does: the blocks of the first `tokens` tokens, from one device to the other."""
    blocks = -(-tokens // BLOCK_SIZE)
    pairs = zip(source.core.kv_blocks(name)[:blocks], destination.core.kv_blocks(name)[:blocks], strict=True)
    for there, here in pairs:
        destination.worker.device[here] = source.worker.device[there][:]


def pair(config: SchedulerConfig | None = None, **spec: int) -> tuple[Harness, Harness]:
    return Harness(worker_spec(**spec), config), Harness(worker_spec(**spec), config)


def run_steps(harness: Harness, steps: int) -> None:
    for _ in range(steps):
        harness.now += 0.01
        while harness.plan() is not None:
            pass
        harness.execute()
        harness.complete()


def move(source: Harness, destination: Harness, name: str) -> Request:
    """Hand a request over with all its acknowledged KV."""
    tokens = source.core.kv_tokens(name)
    assert destination.core.expect(source.requests[name], destination.now, tokens=tokens)
    handed = source.hand_over(name)
    assert handed is not None
    copy_kv(source, destination, name, tokens)
    source.core.abandon(name)
    handed = msgspec.structs.replace(handed, attempt=handed.attempt + 1)
    destination.deliver(handed, computed=tokens)
    return handed


def test_a_delivered_row_goes_on_where_it_stopped() -> None:
    """It computes its last known token and no other, and its outputs are those of a run alone."""
    source, destination = pair()
    source.submit(make_request("r", [5] * 50, 30))
    run_steps(source, 8)
    handed = move(source, destination, "r")
    known = 50 + len(unpack_tokens(handed.generated))
    step = destination.plan()
    assert step is not None
    assert (step.new[0].computed, step.counts) == (known - 1, [1])
    destination.run()
    destination.check_end()
    source.run()
    source.check_end()
    assert not [event for event in source.events if isinstance(event, Finished)]


def test_a_move_may_overtake_steps_in_flight() -> None:
    """Outputs that were in flight are dropped here and sampled there; the slot's blocks are fenced meanwhile."""
    source, destination = pair()
    source.submit(make_request("r", [5] * 50, 30))
    source.submit(make_request("s", [6] * 50, 30))
    run_steps(source, 5)
    while source.plan() is not None:
        pass
    move(source, destination, "r")
    for harness in (source, destination):
        harness.run()
        harness.check_end()


def test_what_is_expected_counts_as_held_and_comes_back() -> None:
    """Blocks are taken once for the same tokens, more for more, and given back when nobody comes."""
    h, _ = pair(blocks=10)
    request = make_request("r", [5] * 50, 30)
    free = [h.core.load(0.0, "w").free_blocks]
    for tokens in (33, 33, 49):
        assert h.core.expect(request, 0.0, tokens=tokens)
        h.core.check_integrity()
        free.append(h.core.load(0.0, "w").free_blocks)
    assert free == [10, 7, 7, 6]
    assert not h.core.expect(request, 0.0, tokens=161)
    assert len(h.core.kv_blocks("r")) == 4
    h.core.abandon("r")
    h.core.abandon("r")
    h.core.check_integrity()
    assert h.core.load(0.0, "w").free_blocks == 10


def test_nobody_is_expected_in_the_room_that_running_rows_grow_into() -> None:
    """As for a start, one block for each running row and the watermark stay free."""
    h, _ = pair(SchedulerConfig(watermark=0.1), blocks=10)
    h.submit(make_request("running", [5] * 50, 30))
    h.plan()
    request = make_request("r", [6] * 50, 30)
    assert not h.core.expect(request, 0.0, tokens=5 * BLOCK_SIZE)
    assert h.core.expect(request, 0.0, tokens=4 * BLOCK_SIZE)


def test_a_delivered_row_starts_before_those_that_wait() -> None:
    """Its client watches a stream, so it stands with those that come back from preemption."""
    source, destination = pair(slots=1)
    source.submit(make_request("r", [5] * 50, 30))
    run_steps(source, 5)
    for name in ("a", "b"):
        destination.submit(make_request(name, [7] * 20, 3))
    move(source, destination, "r")
    step = destination.plan()
    assert step is not None
    assert [new.request for new in step.new] == ["r"]


def test_what_it_brought_is_taken_before_anybody_is_preempted() -> None:
    """Blocks of a delivered row that still waits are the supply of last resort: tail first, no more than is needed."""
    source, destination = pair(SchedulerConfig(preemption="tail", watermark=0.0), blocks=10, slots=1)
    source.submit(make_request("r", [5] * 70, 30))
    run_steps(source, 6)
    destination.submit(make_request("first", [7] * 70, 60))
    destination.plan()
    destination.execute()
    destination.complete()
    tokens = 60
    assert destination.core.expect(source.requests["r"], 0.0, tokens=tokens)
    handed = source.hand_over("r")
    assert handed is not None
    copy_kv(source, destination, "r", tokens)
    source.core.abandon("r")
    destination.deliver(msgspec.structs.replace(handed, attempt=2), computed=tokens)
    destination.run()
    destination.check_end()
    taken = [event for event in destination.events if isinstance(event, Reclaimed)]
    assert taken
    assert not [event for event in destination.events if isinstance(event, Preempted)]
    assert [event.blocks for event in taken] == [1] * len(taken)
    assert taken[0].lost_tokens == tokens - 3 * BLOCK_SIZE


def test_whom_this_worker_cannot_serve_leaves_nothing_behind() -> None:
    """A refused delivery gives its blocks back, and so does one that is known already."""
    h, _ = pair(max_context=64)
    request = make_request("r", [5] * 50, 30)
    assert h.core.expect(request, 0.0, tokens=50)
    with pytest.raises(Unservable):
        h.core.deliver(request, 0.0, computed=50)
    h.core.check_integrity()
    assert h.core.load(0.0, "w").free_blocks == 64
    known = make_request("known", [5] * 20, 30)
    h.submit(known)
    assert h.core.expect(known, 0.0, tokens=20)
    h.core.deliver(known, 0.0, computed=20)
    h.core.check_integrity()
    assert h.core.load(0.0, "w").free_blocks == 64


def test_a_request_that_is_over_is_not_handed_over() -> None:
    """None says that there is nothing to move."""
    h, _ = pair()
    assert h.core.hand_over("r", 0.0) is None
    h.submit(make_request("r", [5] * 50, 3))
    h.run()
    assert h.core.hand_over("r", 0.0) is None


def test_the_time_left_to_the_first_token_goes_along() -> None:
    """A request that moves before its first output keeps its deadline, as the time that remains."""
    h, _ = pair()
    h.submit(make_request("r", [5] * 50, 3, ttft_s=1.0))
    h.now = 0.25
    handed = h.hand_over("r")
    assert handed is not None
    assert handed.ttft_s == pytest.approx(0.75)
    h.run()
    h.check_end()


class Moves:
    """Requests that go back and forth between two workers, some of them failing on the way."""

    def __init__(self, rnd: random.Random) -> None:
        self.rnd = rnd
        vocabulary = rnd.choice([7, 100, 1000])
        self.workers = [
            Harness(
                worker_spec(
                    blocks=rnd.choice([8, 12, 18, 40]),
                    host_blocks=rnd.choice([0, 8, 40]),
                    slots=rnd.choice([1, 4, 8]),
                    tokens_per_step=rnd.choice([8, 24, 64, 256]),
                ),
                draw_config(rnd),
                vocabulary=vocabulary,
            )
            for _ in range(2)
        ]
        self.blocks = min(worker.spec.blocks for worker in self.workers)
        self.coming: dict[str, tuple[Harness, Harness]] = {}
        self.stopped: dict[str, tuple[Harness, Harness, Request, int]] = {}
        self.delivered = 0
        self.submitted = 0

    def submit(self) -> None:
        self.submitted += 1
        worker = self.rnd.choice(self.workers)
        name = f"r{self.submitted}"
        worker.submit(draw_request(self.rnd, name, blocks=self.blocks, vocabulary=worker.vocabulary))

    def begin(self) -> None:
        """Room is made for a request that runs elsewhere."""
        source, destination = self.rnd.sample(self.workers, 2)
        live = [entry.request for entry in source.core.requests() if entry.request.id not in self.coming]
        if live:
            request = self.rnd.choice(live)
            tokens = source.core.kv_tokens(request.id)
            if tokens and destination.core.expect(request, destination.now, tokens=tokens):
                self.coming[request.id] = (source, destination)

    def stop(self) -> None:
        """It stops there, if there is room for all that it has by now."""
        if not self.coming:
            return
        name = self.rnd.choice(list(self.coming))
        source, destination = self.coming.pop(name)
        tokens, request = source.core.kv_tokens(name), source.requests[name]
        room = tokens > 0 and destination.core.expect(request, destination.now, tokens=tokens)
        handed = source.hand_over(name) if room else None
        if handed is None:
            destination.core.abandon(name)
        else:
            again = msgspec.structs.replace(handed, attempt=handed.attempt + 1)
            self.stopped[name] = (source, destination, again, tokens)

    def arrive(self) -> None:
        """It goes on here, with its KV or, where that was lost, without."""
        if not self.stopped:
            return
        name = self.rnd.choice(list(self.stopped))
        source, destination, request, tokens = self.stopped.pop(name)
        lost = self.rnd.random() < 0.1
        if lost:
            destination.core.abandon(name)
        else:
            copy_kv(source, destination, name, tokens)
        source.core.abandon(name)
        destination.deliver(request, computed=tokens)
        self.delivered += not lost

    def step(self, worker: Harness) -> None:
        rnd = self.rnd
        worker.now += 0.01
        if rnd.random() < 0.02 and worker.requests:
            worker.cancel(rnd.choice(list(worker.requests)))
        if rnd.random() < 0.6:
            worker.plan()
        if rnd.random() < 0.6:
            worker.execute()
        if worker.results and rnd.random() < 0.6:
            worker.complete()

    @property
    def busy(self) -> bool:
        return bool(self.coming or self.stopped) or any(
            worker.core.requests() or worker.core.in_flight for worker in self.workers
        )


@pytest.mark.parametrize("seed", range(60))
def test_requests_that_move_get_their_own_outputs(seed: int) -> None:
    """Whatever moves at whatever moment, under any mode: outputs are those of a run alone, and every block is back."""
    moves = Moves(random.Random(seed))
    rnd = moves.rnd
    while moves.submitted < 20 or moves.busy:
        assert moves.workers[0].now < 80, "some requests never end"
        if moves.submitted < 20 and rnd.random() < 0.3:
            moves.submit()
        for act in (moves.begin, moves.stop, moves.arrive):
            if rnd.random() < 0.2:
                act()
        for worker in moves.workers:
            moves.step(worker)
    for worker in moves.workers:
        worker.check_end()


def test_the_moves_reach_what_they_are_for() -> None:
    """Requests do arrive with their KV in these runs, and lose some of it while they wait."""
    delivered = reclaimed = 0
    for seed in range(12):
        moves = Moves(random.Random(seed))
        while moves.submitted < 20 or moves.busy:
            if moves.submitted < 20:
                moves.submit()
            for act in (moves.begin, moves.stop, moves.arrive):
                act()
            for worker in moves.workers:
                moves.step(worker)
        delivered += moves.delivered
        reclaimed += sum(isinstance(event, Reclaimed) for worker in moves.workers for event in worker.events)
    assert delivered >= 50
    assert reclaimed >= 5
