"""Samples a step's rows with the kernel of `gpu_worker.cpu.sample`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.cpu.compiled import Kernels
from gpu_worker.cpu.sample import ROW_WIDTH
from gpu_worker.cpu.threads import Team, double_bits
from gpu_worker.sampling import Sampled, add_logprobs, noise_key
from gpu_worker.slots import Row

__all__ = ["CpuSampler"]


class CpuSampler:
    """As `TorchSampler`."""

    def __init__(self, token_table: torch.Tensor, stride: int, kernels: Kernels, team: Team) -> None:
        self._table = token_table
        self._stride = stride
        self._kernels = kernels
        self._team = team

    def sample(self, logits: torch.Tensor, rows: list[Row]) -> Sampled:
        """As `TorchSampler.sample`."""
        logits = logits.contiguous()
        fields = np.zeros((len(rows), ROW_WIDTH), np.int64)
        ids: list[int] = []
        values: list[float] = []
        plain_only = True
        for i, row in enumerate(rows):
            if row.slot.plain_greedy:
                fields[i, 0] = 1
            else:
                plain_only = False
                self._describe(fields[i], row, ids, values)
        packed_ids, packed_values = np.array(ids or [0], np.int32), np.array(values or [0], np.float32)
        tokens = torch.empty(len(rows), dtype=torch.int32)
        self._team.run(
            self._kernels.sample,
            logits.data_ptr(),
            tokens.data_ptr(),
            len(rows),
            logits.shape[1],
            fields.ctypes.data,
            self._table.data_ptr(),
            packed_ids.ctypes.data,
            packed_values.ctypes.data,
            plain_only,
        )
        sampled = Sampled(tokens, [i for i, row in enumerate(rows) if row.slot.sampling.logprobs >= 0])
        if sampled.logprob_rows:
            add_logprobs(sampled, logits, rows)
        return sampled

    def _describe(self, fields: npt.NDArray[np.int64], row: Row, ids: list[int], values: list[float]) -> None:
        """The fields of a row that is not plainly greedy, its biases and banned tokens."""
        slot, s = row.slot, row.slot.sampling
        known = row.start + row.count
        begin = len(ids)
        ids += [token for token, _ in s.logit_bias]
        values += [bias for _, bias in s.logit_bias]
        middle = len(ids)
        if known - slot.prompt_tokens < s.min_tokens:
            ids += sorted(slot.stop_ids)
            values += [0.0] * len(slot.stop_ids)
        fields[1:16] = (
            double_bits(s.temperature),
            s.top_k,
            double_bits(s.top_p),
            double_bits(s.min_p),
            *noise_key(s.seed, known),
            slot.index * self._stride,
            slot.prompt_tokens,
            known,
            double_bits(s.repetition_penalty),
            double_bits(s.frequency_penalty),
            double_bits(s.presence_penalty),
            begin,
            middle,
            len(ids),
        )
