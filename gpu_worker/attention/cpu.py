"""The CPU backend: decode attention in place, prefill attention by matrix products, the rest fused.

Rows of few new tokens (decodes, tails of chunks) go token by token through the decode kernel. For longer ones the
context is gathered once a layer, and blocks of queries are multiplied with it. In bfloat16 the scores are rounded to it
between the products, as in transformers' eager attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.batch import Batch
from gpu_worker.config import ModelConfig
from gpu_worker.cpu.compiled import Kernels
from gpu_worker.cpu.threads import Team, double_bits

__all__ = ["CpuBackend"]

#: Rows of so many new tokens or fewer take the decode kernel.
FEW = 8
#: Work below this many elements is done on one thread: a parallel region costs more.
_SMALL = 4096

#: Contexts and query blocks are padded to multiples of these: oneDNN makes a kernel for each new shape (0.3 to 0.8 ms).
_PAD = 64
_PAD_QUERIES = 16
#: Queries at a time, and scores at a time: 4 MiB in bfloat16.
_QUERIES = 128
_SCORE_ELEMENTS = 1 << 21

Int32 = npt.NDArray[np.int32]


@dataclass(slots=True)
class _Decodes:
    """Query tokens for the decode kernel, longest context first. Holds the arrays whose addresses it passes."""

    count: int
    arrays: tuple[Int32, ...]
    tail: tuple[int, ...]  # arguments from `tables` on


@dataclass(slots=True)
class _Prefill:
    """A row that is done by matrix products."""

    begin: int
    end: int
    context: int
    table: Int32


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
        self._sums = torch.empty(0)

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
            _Prefill(
                int(rows.host_query_start[row]),
                int(rows.host_query_start[row + 1]),
                context,
                np.ascontiguousarray(rows.host_block_tables[row]),
            )
            for row, context in enumerate(rows.host_context_len.tolist())
            if not few[row]
        ]

    def _decodes(self, tables: Int32, table_of: Int32, context: Int32, source: Int32, target: Int32) -> _Decodes:
        order = np.argsort(-context, kind="stable")
        arrays = (np.ascontiguousarray(tables), *(np.take(a, order).astype(np.int32) for a in (table_of, context)))
        arrays += tuple(np.take(a, order).astype(np.int32) for a in (source, target))
        addresses = [a.ctypes.data for a in arrays]
        return _Decodes(len(context), arrays, (addresses[0], tables.shape[1], *addresses[1:]))

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
        return qkv[:, : c.heads * c.head_dim].view(tokens, c.heads, c.head_dim)

    def attention(self, q: torch.Tensor, layer: int, batch: Batch, *, last: bool = False) -> torch.Tensor:
        rows = batch.sampling.rows if last else len(q)
        out = self._buffer("attention", rows, q.shape[1] * q.shape[2])
        self._decode(q, layer, self._sampling if last else self._all, out)
        if not last:
            for prefill in self._prefills:
                self._attend(q, layer, prefill, out)
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

    def _attend(self, q: torch.Tensor, layer: int, row: _Prefill, out: torch.Tensor) -> None:
        """One row, a block of queries and KV heads at a time: scores, softmax, values."""
        c, group = self._config, self._config.heads // self._config.kv_heads
        padded_context = -(-row.context // _PAD) * _PAD
        k, v = self._gather(layer, row, padded_context)
        queries = row.end - row.begin
        heads, block = self._block(queries, padded_context)
        for at in range(0, queries, block):
            tokens = min(block, queries - at)
            padded = -(-tokens // _PAD_QUERIES) * _PAD_QUERIES
            position = row.context - queries + at
            keys = min(padded_context, -(-(position + tokens) // _PAD) * _PAD)
            for head in range(0, c.kv_heads, heads):
                n = min(heads, c.kv_heads - head)
                rows = padded * group
                packed = self._buffer("packed", n * rows, c.head_dim).view(n, rows, c.head_dim)
                scores = self._buffer("scores", n * rows * keys, 1).view(n, rows, keys)
                inverse = self._inverse(n * rows)
                first = row.begin + at
                self._team.run(
                    self._kernels.pack,
                    q.data_ptr() + first * q.stride(0) * q.element_size(),
                    packed.data_ptr(),
                    tokens,
                    padded,
                    group * c.head_dim,
                    n,
                    head,
                    q.stride(0),
                )
                torch.bmm(packed, k[head : head + n, :keys].transpose(1, 2), out=scores)
                self._team.run(
                    self._kernels.softmax,
                    scores.data_ptr(),
                    inverse,
                    n * rows,
                    keys,
                    rows,
                    group,
                    position,
                    self._scale,
                    8,
                )
                values = torch.bmm(scores, v[head : head + n, :keys], out=packed)
                self._team.run(
                    self._kernels.unpack,
                    values.data_ptr(),
                    out.data_ptr() + first * out.stride(0) * out.element_size(),
                    inverse,
                    tokens,
                    padded,
                    group,
                    c.head_dim,
                    n,
                    head,
                    out.stride(0),
                )

    def _block(self, queries: int, context: int) -> tuple[int, int]:
        """KV heads and queries to do at a time, so that their scores stay in the cache."""
        group = self._config.heads // self._config.kv_heads
        room = _SCORE_ELEMENTS // (context * group)  # queries x heads
        block = min(-(-queries // _PAD_QUERIES) * _PAD_QUERIES, max(_PAD_QUERIES, min(_QUERIES, room)))
        block -= block % _PAD_QUERIES
        return max(1, min(self._config.kv_heads, room // block)), block

    def _inverse(self, rows: int) -> int:
        if len(self._sums) < rows:
            self._sums = torch.empty(rows, dtype=torch.float32)
        return self._sums.data_ptr()

    def _gather(self, layer: int, row: _Prefill, padded: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a row's context, `[kv_heads, padded, head_dim]` each."""
        c = self._config
        kv = self._buffer("gathered", 2 * c.kv_heads * padded, c.head_dim)
        self._team.run(
            self._kernels.gather,
            self._pool.data_ptr(),
            kv.data_ptr(),
            row.table.ctypes.data,
            row.context,
            padded,
            c.kv_heads,
            c.head_dim,
            self._stride_block,
            layer * self._stride_layer,
        )
        kv = kv.view(2, c.kv_heads, padded, c.head_dim)
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
