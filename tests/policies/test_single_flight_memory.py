"""Single flight lets go of what is over."""

from __future__ import annotations

import gc

from harness import Harness, make_request, worker_spec

from policies.rows import Row


def test_rows_that_are_over_are_let_go() -> None:
    """However many requests come one after another, only a few of their rows stay in memory."""
    h = Harness(worker_spec())
    for i in range(600):
        h.submit(make_request(f"r{i}", [i % 997, i // 997, *range(64)], 2))
        h.run()
    gc.collect()
    # `type`, not isinstance: that asks lazy proxies of other libraries for a __class__, which warns.
    assert sum(type(thing) is Row for thing in gc.get_objects()) < 300
