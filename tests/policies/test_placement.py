"""Placement: soonest first token, then affinity."""

from __future__ import annotations

from harness import COEFFICIENTS
from harness import make_request as request_of

from policies.placement import Ask, ask_of, best_fit, first_token_s, place
from policies.vocabulary import RequestLoad, WorkerLoad


def make_request(name: str, prompt: list[int], max_tokens: int, *, tier: int = 1, salt: bytes = b"") -> Ask:
    return ask_of(request_of(name, prompt, max_tokens, tier=tier, salt=salt))


def worker_load(
    name: str,
    *,
    requests: list[RequestLoad] | None = None,
    blocks: int = 100,
    free_blocks: int = 100,
    free_slots: int = 8,
    max_context: int = 1000,
) -> WorkerLoad:
    return WorkerLoad(
        name, "m", blocks, free_blocks, 8, free_slots, 64, max_context, COEFFICIENTS, 1.0, 1.1, 1.2, requests or []
    )


def row(name: str, *, prefill_left: int = 1, context: int = 50, outputs_left: int = 20, tier: int = 1) -> RequestLoad:
    return RequestLoad(name, tier, prefill_left, context, 1, outputs_left, None, None, 0.0)


def test_the_worker_with_less_prefill_ahead_is_taken() -> None:
    """A long queue of prompts sends the next one elsewhere."""
    busy = worker_load("busy", requests=[row("a", prefill_left=600, context=0)])
    assert place(make_request("r", [1] * 100, 10), [busy, worker_load("idle")]) == "idle"


def test_prompts_of_a_lower_class_do_not_count() -> None:
    """A priority request goes before flex prompts, so they are no reason to avoid a worker."""
    flex = worker_load("w", requests=[row("a", prefill_left=600, context=0, tier=2)])
    empty = worker_load("w")
    request = make_request("r", [1] * 100, 10, tier=0)
    assert first_token_s(flex, request) < 1.5 * first_token_s(empty, request)


def test_a_full_worker_counts_the_time_until_something_ends() -> None:
    """Without a free slot the wait is that for the shortest of the running."""
    full = worker_load("full", free_slots=0, requests=[row("a", outputs_left=50)])
    assert place(make_request("r", [1] * 10, 10), [full, worker_load("free")]) == "free"
    longer = worker_load("full", free_slots=0, requests=[row("a", outputs_left=90)])
    request = make_request("r", [1] * 10, 10)
    assert first_token_s(longer, request) > first_token_s(full, request)


def test_requests_that_begin_alike_share_a_worker_among_equals() -> None:
    """The same first block leads to the same worker, in any order of reports; groups are spread."""
    loads = [worker_load(f"w{i}") for i in range(4)]
    prefix = [9] * 32
    places = {place(make_request("r", [*prefix, i], 10, salt=b"g"), loads[i % 4 :] + loads[: i % 4]) for i in range(8)}
    assert len(places) == 1
    assert len({place(make_request("r", prefix, 10, salt=bytes([i])), loads) for i in range(20)}) == 4


def test_a_worker_too_small_is_passed_over() -> None:
    """Only workers whose context and pool hold the request at its longest are looked at."""
    small, few = worker_load("small", max_context=50), worker_load("few", blocks=2)
    request = make_request("r", [1] * 60, 10)
    assert place(request, [small, few, worker_load("large", requests=[row("a", prefill_left=900)])]) == "large"


def test_what_no_worker_can_hold_goes_where_it_is_explained() -> None:
    """The roomiest worker's scheduler refuses it with the reason; without any worker there is no place."""
    request = make_request("r", [1] * 2000, 10)
    assert place(request, [worker_load("a", max_context=50), worker_load("b")]) == "b"
    assert place(request, []) is None


def test_best_fit_leaves_the_large_room_whole() -> None:
    """The least headroom that is not negative wins."""
    assert best_fit([("a", 0.5), ("b", 0.1), ("c", -0.1)]) == "b"
    assert best_fit([("c", -0.1)]) is None
