"""Paged attention against an fp32 reference that knows neither pages nor tiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference import Batch, attention_reference, huge_pool, make_batch

MIXED = [(1, 1), (1, 16), (0, 0), (17, 40), (1, 17), (2, 18), (1, 70)]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def attend(kernels: Any, batch: Batch, **options: Any) -> torch.Tensor:
    out: torch.Tensor = kernels.package.paged_attention(
        batch.q,
        batch.kv_pool,
        batch.layer,
        batch.block_tables,
        batch.query_start,
        batch.context_len,
        scale=batch.scale,
        max_query_len=batch.max_query_len,
        max_context_len=batch.max_context_len,
        **options,
    )
    return out


def assert_matches(kernels: Any, batch: Batch, **options: Any) -> None:
    tokens = int(batch.query_start[-1])
    actual, expected = attend(kernels, batch, **options)[:tokens].float().cpu(), attention_reference(batch)[:tokens]
    tolerance = TOLERANCE[batch.q.dtype]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("group", [1, 4, 7, 8])
def test_mixed_batch_of_every_head_shape(kernels: Any, group: int, head_dim: int) -> None:
    """Decode, chunk and empty rows of one batch get the attention of their own context, whatever the head shape."""
    batch = make_batch(MIXED, group=group, kv_heads=1, head_dim=head_dim, device=kernels.device)
    assert_matches(kernels, batch)


@pytest.mark.parametrize("before", [0, 1, 15, 16, 17, 64])
@pytest.mark.parametrize("query_len", [1, 2, 17])
def test_query_lengths_behind_every_page_boundary(kernels: Any, query_len: int, before: int) -> None:
    """A chunk of any length after any context, ending in, at or just past a page, sees exactly what precedes it."""
    batch = make_batch([(query_len, before + query_len)], group=2, kv_heads=1, device=kernels.device)
    assert_matches(kernels, batch)


@pytest.mark.parametrize("before", [0, 33])
def test_chunk_of_512(kernels: Any, before: int) -> None:
    """A chunk over many tiles, beside a decode row, is causal in every one of them."""
    batch = make_batch([(512, 512 + before), (1, 100)], group=2, kv_heads=1, device=kernels.device)
    assert_matches(kernels, batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kernels: Any, dtype: torch.dtype) -> None:
    """Products are accumulated in fp32: the error is that of the inputs' rounding, not of the length."""
    assert_matches(kernels, make_batch([*MIXED, (1, 300)], group=4, kv_heads=2, dtype=dtype, device=kernels.device))


@pytest.mark.parametrize("decode", [True, False])
def test_each_row_is_computed_by_one_regime(kernels: Any, decode: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a mixed batch the decode launch leaves the long rows to the prefill launch, and the other way round."""
    attention = kernels.module("attention")
    launch = attention._launch

    def launch_one_regime(*args: Any, **kwargs: Any) -> None:
        if kwargs["decode"] is decode:
            launch(*args, **kwargs)

    monkeypatch.setattr(attention, "_launch", launch_one_regime)
    batch = make_batch([(1, 20), (17, 30), (2, 9), (9, 70)], group=2, device=kernels.device)
    out = torch.full_like(batch.q, 7.0)
    attend(kernels, batch, out=out, num_splits=1)
    untouched = (out == 7.0).all(2).all(1).cpu()
    short = torch.tensor([True] * 1 + [False] * 17 + [True] * 2 + [False] * 9)
    assert torch.equal(untouched, short ^ decode)


def test_shared_pages(kernels: Any) -> None:
    """Rows that share the blocks of a prefix read them as if each had its own."""
    batch = make_batch([(1, 40), (1, 33), (20, 52), (1, 5)], shared_blocks=2, device=kernels.device)
    assert batch.block_tables[0, 0] == batch.block_tables[1, 0] == batch.block_tables[2, 0]
    assert_matches(kernels, batch)


def test_unused_memory_is_never_used(kernels: Any) -> None:
    """Nothing outside the contexts changes a bit of the result: not NaN in a page's free slots, nor in other blocks."""
    batch = make_batch(MIXED, device=kernels.device)
    assert batch.kv_pool.isnan().any()
    zeroed = replace(batch, kv_pool=batch.kv_pool.nan_to_num(0.0))
    for splits in (1, 4):
        poisoned = attend(kernels, batch, num_splits=splits)
        assert not poisoned.isnan().any()
        assert torch.equal(poisoned, attend(kernels, zeroed, num_splits=splits))


@pytest.mark.parametrize("splits", [2, 3, 64])
@pytest.mark.parametrize(
    "rows", [[(1, 1), (1, 129), (0, 0), (1, 65)], [(2, 65), (1, 200), (2, 2)], [(2, 97), (40, 80)]]
)
def test_split_context_equals_whole(kernels: Any, rows: list[tuple[int, int]], splits: int) -> None:
    """Splitting contexts over programs changes rounding alone, also where a query sees nothing of the last split."""
    batch = make_batch(rows, group=4, kv_heads=2, device=kernels.device)
    whole = attend(kernels, batch, num_splits=1)
    torch.testing.assert_close(attend(kernels, batch, num_splits=splits), whole, atol=2e-6, rtol=1e-5)
    assert_matches(kernels, batch, num_splits=splits)


def test_one_split_is_written_without_a_merge(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the programs fill the device unsplit, nothing is merged and no scratch is taken."""
    monkeypatch.setattr(kernels.module("attention"), "merge_kernel", None)
    assert_matches(kernels, make_batch([(1, 100), (1, 20)], device=kernels.device), num_splits=1)


def test_short_rows_of_a_split_launch_skip_the_merge(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a launch that may split, a row too short for it is written at once: the merge finds nothing to do."""
    attention = kernels.module("attention")
    monkeypatch.setattr(attention, "choose_splits", lambda *_: 4)
    batch = make_batch([(1, 100), (1, 250)], device=kernels.device)

    class Skipped:
        def __getitem__(self, grid: object) -> Any:
            return lambda *args, **kwargs: None

    monkeypatch.setattr(attention, "merge_kernel", Skipped())
    assert_matches(kernels, batch)


def test_long_rows_are_split_by_themselves(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone long context is split over the idle processors of a device, short rows beside it are not."""
    monkeypatch.setattr(kernels.module("attention"), "processors_of", lambda device: 132)
    batch = make_batch([(1, 700), (1, 3)], kv_heads=1, device=kernels.device)
    assert kernels.module("attention").choose_splits(2, batch.max_context_len, 132) > 1
    assert_matches(kernels, batch)


def test_nothing_but_empty_rows(kernels: Any) -> None:
    """A padded graph with no request in it runs and writes nothing."""
    batch = make_batch([(0, 0), (0, 0)], padding_tokens=2, device=kernels.device)
    out = torch.full_like(batch.q, 7.0)
    for longest in (1, 64):
        attend(kernels, replace(batch, max_query_len=longest, max_context_len=4096), out=out, num_splits=4)
    assert (out == 7.0).all()


def test_padding_tokens_are_not_written(kernels: Any) -> None:
    """Tokens behind the last row, and rows behind the last request, leave the output alone."""
    batch = make_batch([(1, 20), (17, 30), (0, 0)], padding_tokens=5, device=kernels.device)
    out = torch.full_like(batch.q, 7.0)
    attend(kernels, batch, out=out)
    assert (out[18:] == 7.0).all()
    assert_matches(kernels, batch)


def test_query_without_context_is_zero(kernels: Any) -> None:
    """A padding row that has a query but no context reads nothing and gives zeros."""
    batch = make_batch([(1, 20), (1, 1)], device=kernels.device)
    batch = replace(batch, context_len=torch.tensor([20, 0], dtype=torch.int32, device=kernels.device))
    for splits in (1, 4):
        assert (attend(kernels, batch, num_splits=splits)[1] == 0).all()


def test_strided_queries(kernels: Any) -> None:
    """Queries may be a view of the fused projection they came from."""
    batch = make_batch([(1, 20), (17, 30)], device=kernels.device)
    wide = torch.full((batch.q.shape[0], 9, batch.q.shape[2]), float("nan"), device=kernels.device)
    wide[:, 2:6] = batch.q
    assert_matches(kernels, replace(batch, q=wide[:, 2:6]))


def test_offsets_beyond_2_to_the_31(kernels: Any) -> None:
    """Blocks whose elements start past 2^31 are found: offsets are 64-bit."""
    kv_heads, head_dim, context = 1, 64, 40
    blocks = 2**31 // (2 * kv_heads * 16 * head_dim) + 8
    if kernels.device.type == "cuda":
        pool = torch.empty((blocks, 1, 2, kv_heads, 16, head_dim), dtype=torch.float16, device=kernels.device)
    else:
        pool = huge_pool(blocks, kv_heads, head_dim)
    small = make_batch([(1, context), (17, context)], kv_heads=kv_heads, dtype=torch.float16, device=kernels.device)
    shift = blocks - small.kv_pool.shape[0]
    pool[shift:, 0] = small.kv_pool[:, small.layer]
    assert shift * pool.stride(0) >= 2**31 - 8 * pool.stride(0)
    assert (small.block_tables.max() + shift) * pool.stride(0) > 2**31
    far = kernels.package.paged_attention(
        small.q,
        pool,
        0,
        small.block_tables + shift,
        small.query_start,
        small.context_len,
        scale=small.scale,
        max_query_len=17,
        max_context_len=context,
    )
    assert torch.equal(far, attend(kernels, small))


def test_launch_needs_no_data(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids come from padded sizes alone: launching works on tensors without data, so no length was waited for."""
    grids: list[tuple[int, ...]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return lambda *args, **kwargs: None

    attention = kernels.module("attention")
    monkeypatch.setattr(attention, "attention_kernel", Recorder())
    monkeypatch.setattr(attention, "merge_kernel", Recorder())
    batch = make_batch(MIXED, group=4, kv_heads=2)
    empty: dict[str, Any] = {
        name: getattr(batch, name).to("meta") for name in ("q", "kv_pool", "block_tables", "query_start", "context_len")
    }
    attend(kernels, replace(batch, **empty), num_splits=4)
    rows, tokens = len(MIXED), batch.q.shape[0]
    assert grids[:2] == [(rows * 2, 4), (rows * 4, 8)]
    assert grids[2][0] == (tokens // (32 // 4) + rows) * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 4, 48)}, "one head_dim"),
        ({"q": torch.zeros(3, 3, 64)}, "multiple of 2 KV heads"),
        ({"q": torch.zeros(3, 4, 64, dtype=torch.float16)}, "must be equal"),
        ({"q": torch.zeros(3, 4, 128)[:, :, ::2]}, "contiguous"),
        ({"kv_pool": torch.zeros(4, 2, 2, 2, 8, 64)}, "block_size 8"),
        ({"context_len": torch.zeros(3, dtype=torch.int32)}, "query_start needs 4"),
        ({"context_len": torch.zeros(2, dtype=torch.int64)}, "context_len must be contiguous int32"),
    ],
)
def test_what_does_not_fit_is_refused(kernels: Any, change: dict[str, Any], message: str) -> None:
    """Shapes that would read beyond a tensor are refused before a launch, with the value and what would be right."""
    batch = replace(make_batch([(1, 20), (2, 30)]), **change)
    with pytest.raises(kernels.package.KernelArgumentError, match=message):
        attend(kernels, batch)


@pytest.mark.parametrize(
    ("programs", "context", "splits"),
    [(512, 32768, 1), (264, 32768, 1), (8, 32768, 64), (8, 300, 1), (8, 1024, 4), (128, 32768, 8), (1, 10**6, 64)],
)
def test_splits_fill_the_device_and_no_more(kernels: Any, programs: int, context: int, splits: int) -> None:
    """Contexts are split only where programs are too few for the processors, never into parts below 256 tokens."""
    assert kernels.module("attention").choose_splits(programs, context, 132) == splits
