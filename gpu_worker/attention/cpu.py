"""The CPU backend: decode attention in place, prefill attention by torch's flash kernel, the rest fused.

Rows of few new tokens (decodes, tails of chunks) go token by token through the decode kernel; longer ones go to
`scaled_dot_product_attention`, on the step's own keys and values where the row begins in it, else on its context
gathered once a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention

from gpu_worker.batch import Batch
from gpu_worker.config import ModelConfig
from gpu_worker.cpu.compiled import Kernels
from gpu_worker.cpu.threads import Team, double_bits

__all__ = ["CpuBackend"]

#: Rows of so many new tokens or fewer take the decode kernel.
FEW = 8
#: Work below this many elements is done on one thread: a parallel region costs more.
_SMALL = 4096

Int32 = npt.NDArray[np.int32]


@dataclass(slots=True)
class _Decodes:
    """Query tokens for the decode kernel, longest context first. Holds the arrays whose addresses it passes."""

    count: int
    arrays: tuple[Int32, ...]
    tail: tuple[int, ...]  # arguments from `tables` on


@dataclass(slots=True)
class _Prefill:
    """A row for the flash kernel."""

    begin: int
    end: int
    context: int
    table: Int32
    mask: torch.Tensor | None


class CpuBackend:
    """See `Backend`. `pool` is the KV pool, `rope` the float32 table of `rope_table`."""

    def __init__(
        self, config: ModelConfig, pool: torch.Tensor, rope: torch.Tensor, kernels: Kernels, team: Team
    ) -> None:
        self._config = config
        self._pool = pool
        self._rope = rope
        self._kernels = kernels
        self._team = team
        self._stride_block, self._stride_layer = pool.stride(0), pool.stride(1)
        self._eps = double_bits(config.norm_eps)
        self._scale = double_bits(config.head_dim**-0.5)
        self._scratch: dict[str, torch.Tensor] = {}
        self._all = self._sampling = _Decodes(0, (), ())
        self._prefills: list[_Prefill] = []
        self._qkv = torch.empty(0)

    def _buffer(self, name: str, rows: int, width: int) -> torch.Tensor:
        """Memory that is used again at every call: fresh memory of this size costs a page fault for each 4 KiB."""
        kept = self._scratch.get(name)
        if kept is None or len(kept) < rows or kept.shape[1] != width:
            kept = self._scratch[name] = torch.empty((rows, width), dtype=self._pool.dtype)
        return kept[:rows]

    def _turn(self, tokens: int) -> int:
        """Tokens that a thread takes at a time."""
        return max(1, min(16, tokens // (4 * self._team.threads)))

    def begin(self, batch: Batch) -> None:
        rows, counts = batch.all, np.diff(batch.all.host_query_start)
        few = counts <= FEW
        of_row = np.repeat(np.arange(rows.rows, dtype=np.int32), counts)
        tokens = np.flatnonzero(few[of_row]).astype(np.int32)
        self._all = self._decodes(
            rows.host_block_tables, of_row[tokens], batch.host_positions[tokens] + 1, tokens, tokens
        )
        last = np.arange(len(batch.host_last), dtype=np.int32)
        if not batch.everything_samples and len(last):
            s = batch.sampling
            self._sampling = self._decodes(s.host_block_tables, last, s.host_context_len, batch.host_last, last)
        self._prefills = [
            self._prefill(*map(int, rows.host_query_start[row : row + 2]), rows.host_block_tables[row], context)
            for row, context in enumerate(rows.host_context_len.tolist())
            if not few[row]
        ]

    def _decodes(self, tables: Int32, table_of: Int32, context: Int32, source: Int32, target: Int32) -> _Decodes:
        order = np.argsort(-context, kind="stable")
        arrays = (np.ascontiguousarray(tables), *(np.take(a, order).astype(np.int32) for a in (table_of, context)))
        arrays += tuple(np.take(a, order).astype(np.int32) for a in (source, target))
        addresses = [a.ctypes.data for a in arrays]
        return _Decodes(len(context), arrays, (addresses[0], tables.shape[1], *addresses[1:]))

    def _prefill(self, begin: int, end: int, table: Int32, context: int) -> _Prefill:
        queries = end - begin
        mask = None
        if context != queries:
            mask = torch.zeros((queries, context), dtype=self._pool.dtype)
            after = torch.ones((queries, queries), dtype=torch.bool).triu_(1)
            mask[:, context - queries :].masked_fill_(after, float("-inf"))
        return _Prefill(begin, end, context, np.ascontiguousarray(table), mask)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, hidden = x.shape
        add = residual is not None
        if residual is None:
            residual = self._buffer("residual", tokens, hidden)
        y = self._buffer("norm", tokens, hidden)
        self._team.run(
            self._kernels.rms_norm,
            x.data_ptr(),
            residual.data_ptr(),
            weight.data_ptr(),
            y.data_ptr(),
            tokens,
            hidden,
            double_bits(eps),
            self._turn(tokens),
            add,
            alone=tokens * hidden < _SMALL,
        )
        return y, residual

    def rope_and_write_kv(
        self, qkv: torch.Tensor, layer: int, batch: Batch, q_norm: torch.Tensor | None, k_norm: torch.Tensor | None
    ) -> torch.Tensor:
        c, tokens = self._config, len(qkv)
        normed = q_norm is not None and k_norm is not None
        self._team.run(
            self._kernels.rope,
            qkv.data_ptr(),
            self._pool.data_ptr(),
            q_norm.data_ptr() if q_norm is not None else 0,
            k_norm.data_ptr() if k_norm is not None else 0,
            self._rope.data_ptr(),
            batch.positions.data_ptr(),
            batch.slot_mapping.data_ptr(),
            tokens,
            c.heads,
            c.kv_heads,
            c.head_dim,
            self._stride_block,
            layer * self._stride_layer,
            normed,
            self._eps,
            self._turn(tokens),
            alone=qkv.numel() < _SMALL,
        )
        self._qkv = qkv
        return qkv[:, : c.heads * c.head_dim].view(tokens, c.heads, c.head_dim)

    def attention(self, q: torch.Tensor, layer: int, batch: Batch, *, last: bool = False) -> torch.Tensor:
        rows = batch.sampling.rows if last else len(q)
        out = self._buffer("attention", rows, q.shape[1] * q.shape[2])
        self._decode(q, layer, self._sampling if last else self._all, out)
        if not last:
            for prefill in self._prefills:
                self._flash(q, layer, prefill, out)
        return out

    def _decode(self, q: torch.Tensor, layer: int, decodes: _Decodes, out: torch.Tensor) -> None:
        c = self._config
        if decodes.count:
            self._team.run(
                self._kernels.decode,
                q.data_ptr(),
                self._pool.data_ptr(),
                out.data_ptr(),
                c.head_dim,
                c.heads // c.kv_heads,
                decodes.count * c.kv_heads,
                c.kv_heads,
                q.stride(0),
                self._stride_block,
                layer * self._stride_layer,
                self._scale,
                *decodes.tail,
            )

    def _flash(self, q: torch.Tensor, layer: int, row: _Prefill, out: torch.Tensor) -> None:
        c = self._config
        queries = q[row.begin : row.end].transpose(0, 1)[None]
        if row.mask is None:
            at, width = c.heads * c.head_dim, c.kv_heads * c.head_dim
            own = self._qkv[row.begin : row.end, at:].view(row.context, 2, c.kv_heads, c.head_dim)
            k, v = own[:, 0].transpose(0, 1)[None], own[:, 1].transpose(0, 1)[None]
            assert width * 2 + at == self._qkv.shape[1]
        else:
            k, v = self._gather(layer, row)
        found = scaled_dot_product_attention(
            queries, k, v, attn_mask=row.mask, is_causal=row.mask is None, enable_gqa=c.heads != c.kv_heads
        )
        out[row.begin : row.end].view(-1, c.heads, c.head_dim).copy_(found[0].transpose(0, 1))

    def _gather(self, layer: int, row: _Prefill) -> tuple[torch.Tensor, torch.Tensor]:
        c = self._config
        kv = self._buffer("gathered", 2 * c.kv_heads * row.context, c.head_dim)
        self._team.run(
            self._kernels.gather,
            self._pool.data_ptr(),
            kv.data_ptr(),
            row.table.ctypes.data,
            row.context,
            c.kv_heads,
            c.head_dim,
            self._stride_block,
            layer * self._stride_layer,
        )
        kv = kv.view(2, 1, c.kv_heads, row.context, c.head_dim)
        return kv[0], kv[1]

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = self._buffer("silu", tokens, width)
        self._team.run(
            self._kernels.silu_mul,
            gate_up.data_ptr(),
            out.data_ptr(),
            tokens,
            width,
            self._turn(tokens),
            alone=out.numel() < _SMALL,
        )
        return out
