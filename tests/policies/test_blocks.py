"""The block pool: counts, order of reuse, fences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.blocks import BlockPool
from policies.errors import InvariantBroken, OutOfBlocks


def test_what_is_taken_is_held_until_released_as_often() -> None:
    """A block is free only after as many releases as holders."""
    pool = BlockPool(4)
    (block,) = pool.take(1)
    pool.share(block)
    pool.release([block], fence=0)
    assert pool.held == 1
    pool.release([block], fence=0)
    assert (pool.held, pool.free) == (0, 4)
    pool.check()


def test_more_than_are_free_are_refused_whole() -> None:
    """An allocation that fails takes nothing."""
    pool = BlockPool(3)
    pool.take(2)
    with pytest.raises(OutOfBlocks, match="2 blocks asked for, 1 of 3 are free"):
        pool.take(2)
    assert pool.free == 1


def test_a_block_is_never_released_twice() -> None:
    """A double free is an error at once, not a corruption later."""
    pool = BlockPool(2)
    blocks = pool.take(1)
    pool.release(blocks, fence=0)
    with pytest.raises(InvariantBroken, match="nobody holds it"):
        pool.release(blocks, fence=0)


def test_a_fenced_block_waits_for_its_step() -> None:
    """What step 3 touches is handed out after step 3 is acknowledged, and counts as not held before."""
    pool = BlockPool(2)
    blocks = pool.take(2)
    pool.release(blocks, fence=3)
    assert (pool.free, pool.fenced, pool.held) == (0, 2, 0)
    pool.acknowledge(2)
    assert pool.free == 0
    pool.acknowledge(3)
    assert (pool.free, pool.fenced) == (2, 0)
    pool.check()


def test_a_fence_that_is_already_acknowledged_holds_nothing_back() -> None:
    """Releasing behind a step that is done frees at once."""
    pool = BlockPool(1)
    pool.acknowledge(5)
    pool.release(pool.take(1), fence=5)
    assert pool.free == 1


def test_a_parked_block_that_is_shared_again_stays_held() -> None:
    """A prefix hit on a fenced block takes it back; its old fence frees nothing."""
    pool = BlockPool(1)
    (block,) = pool.take(1)
    pool.kept[block] = 1
    pool.release([block], fence=1)
    pool.share(block)
    pool.acknowledge(1)
    assert (pool.held, pool.free, pool.fenced) == (1, 0, 0)
    pool.check()


def test_kept_blocks_are_reused_last_and_the_tail_of_a_request_first() -> None:
    """Reuse goes: never kept, then the longest free, and within a request from its end."""
    forgotten: list[int] = []
    pool = BlockPool(6, on_reuse=forgotten.extend)
    first, second, plain = pool.take(2), pool.take(2), pool.take(2)
    for block in (*first, *second):
        pool.kept[block] = 1
    pool.release(reversed(first), fence=0)
    pool.release(reversed(second), fence=0)
    pool.release(plain, fence=0)
    assert set(pool.take(2)) == set(plain)
    assert pool.take(4) == [first[1], first[0], second[1], second[0]]
    assert forgotten == [first[1], first[0], second[1], second[0]]


def test_only_known_content_may_be_taken_from_the_free_list() -> None:
    """Sharing a free block that no index keeps is an error: its content is anybody's."""
    with pytest.raises(InvariantBroken, match="no index knows"):
        BlockPool(1).share(0)


@given(st.data())
def test_blocks_are_conserved(data: st.DataObject) -> None:
    """Free + fenced + held is the size, and the list is sound, after any sequence of operations."""
    pool = BlockPool(data.draw(st.integers(1, 9)))
    held: list[int] = []
    step = 0
    for _ in range(data.draw(st.integers(0, 40))):
        match data.draw(st.integers(0, 3)):
            case 0:
                count = data.draw(st.integers(0, pool.free))
                taken = pool.take(count)
                assert not set(taken) & set(held)
                held += taken
                for block in taken:
                    pool.kept[block] = data.draw(st.booleans())
            case 1 if held:
                step = max(step, pool.acknowledged + data.draw(st.integers(0, 2)))
                pool.release([held.pop(data.draw(st.integers(0, len(held) - 1)))], fence=step)
            case 2:
                known = [block for block, kept in enumerate(pool.kept) if kept]
                if known:
                    block = data.draw(st.sampled_from(known))
                    pool.share(block)
                    held.append(block)
            case _:
                pool.acknowledge(pool.acknowledged + 1)
        assert pool.held == len(set(held))
        pool.check()
