"""The prefix index: names chain, salts separate, contents are final."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from policies.prefix import PrefixIndex, extend_chain
from policies.vocabulary import BLOCK_SIZE


def chain_of(tokens: list[int], *, salt: bytes = b"", blocks: int | None = None) -> list[bytes]:
    chain: list[bytes] = []
    extend_chain(chain, array("i", tokens), salt, len(tokens) // BLOCK_SIZE if blocks is None else blocks)
    return chain


@given(
    st.lists(st.integers(0, 3), min_size=BLOCK_SIZE, max_size=5 * BLOCK_SIZE),
    st.lists(st.integers(0, 3), min_size=BLOCK_SIZE, max_size=5 * BLOCK_SIZE),
)
def test_names_are_equal_exactly_as_far_as_the_tokens_are(one: list[int], other: list[int]) -> None:
    """Block i has the same name in two chains if and only if all tokens up to its end are the same."""
    for i, (a, b) in enumerate(zip(chain_of(one), chain_of(other), strict=False)):
        end = (i + 1) * BLOCK_SIZE
        assert (a == b) == (one[:end] == other[:end])


def test_a_block_after_a_different_prefix_has_another_name() -> None:
    """The same 16 tokens at the same place are not the same block behind another beginning."""
    tail = [7] * BLOCK_SIZE
    assert chain_of([1] * BLOCK_SIZE + tail)[1] != chain_of([2] * BLOCK_SIZE + tail)[1]


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_salts_separate(one: bytes, other: bytes) -> None:
    """Two groups share no name for the same tokens."""
    tokens = [5] * (2 * BLOCK_SIZE)
    shared = set(chain_of(tokens, salt=one)) & set(chain_of(tokens, salt=other))
    assert bool(shared) == (one == other)


def test_a_chain_grows_as_it_would_have_been_built_at_once() -> None:
    """Names of later blocks do not depend on when they were asked for."""
    tokens = array("i", range(4 * BLOCK_SIZE))
    chain: list[bytes] = []
    for blocks in (1, 3, 4):
        extend_chain(chain, tokens, b"s", blocks)
    assert chain == chain_of(list(tokens), salt=b"s")


def test_match_ends_at_the_first_block_that_is_not_resident() -> None:
    """A hole ends the prefix, and the limit bounds it."""
    names = chain_of(list(range(4 * BLOCK_SIZE)))
    index = PrefixIndex()
    assert index.put([names[0], names[1], names[3]], [5, 2, 7]) == [5, 2, 7]
    assert index.match(names, 4) == [5, 2]
    assert index.match(names, 1) == [5]
    index.check()


def test_the_first_block_with_a_content_is_kept() -> None:
    """A second block with the same content stays anonymous, so forgetting it forgets nothing."""
    (name,) = chain_of([1] * BLOCK_SIZE)
    index = PrefixIndex()
    assert index.put([name], [0]) == [0]
    assert index.put([name], [1]) == []
    index.forget([1])
    assert index.match([name], 1) == [0]
    index.forget([0])
    assert index.match([name], 1) == []
    assert len(index) == 0
    index.check()
