"""Freeness: for how many more steps the memory of a worker lasts (Llumnix, OSDI'24).

F = (M - Σ virtual usage) / B, with M the blocks of a worker and B the requests that run on it. The virtual usage of a
running request is what it holds. That of the request at the head of the queue is what it needs, so that a worker whose
memory is in shreds looks full and is relieved. The running of the priority tier share a headroom that keeps others
away. A worker that is to end has infinite usage, so it gets nothing and everything leaves it.
"""

from __future__ import annotations

from math import inf

from policies.placement.view import WorkerView

__all__ = ["freeness", "virtual_usage"]


def virtual_usage(view: WorkerView, *, headroom_blocks: int = 0) -> float:
    """Blocks in use, as dispatch and migration are to see them. inf: the worker is draining."""
    if view.draining:
        return inf
    head = next(iter(view.waiting.values()), 0)
    return view.used_blocks + head + (headroom_blocks if view.priority else 0)


def freeness(view: WorkerView, *, headroom_blocks: int = 0) -> float:
    """Blocks that are free for each running request, so the steps (times the block size) that they last.

    Negative if the head of the queue does not fit; -inf for a draining worker.
    """
    return (view.spec.blocks - virtual_usage(view, headroom_blocks=headroom_blocks)) / max(1, view.running)
