"""The engine on torch: a step goes in, its tokens come out.

    plan ─▶ swap, enter, grow ─▶ batch ─▶ forward ─▶ sample ─▶ token table ─▶ copy back ─▶ stop or go on

Token ids of all slots lie in one table on the device. What a step samples is written there and read from there by the
next step, so that a step may be launched before the one before it is collected.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gpu_worker.attention.interface import Backend
from gpu_worker.batch import BatchBuilder
from gpu_worker.engine import SampledRows, StepResult
from gpu_worker.errors import DeviceFailed, EngineError, IntegrityError, StepRefused
from gpu_worker.kv import KvPools
from gpu_worker.model import Model
from gpu_worker.sampling import Sampled, Sampler, TorchSampler
from gpu_worker.slots import Row, Slot, SlotTable, StepPlan
from policies.vocabulary import Step, StepDone, WorkerSpec

__all__ = ["Debug", "MakeSampler", "TorchEngine"]

#: Of the flat token table and its tokens a slot.
MakeSampler = Callable[[torch.Tensor, int], Sampler]


@dataclass(slots=True)
class _Launched:
    """A step under way."""

    number: int
    rows: list[Row]  # those that sample
    sampled: Sampled | None = None  # on the host, once `ready` is
    error: str = ""
    duration_s: float = 0.0
    began: torch.cuda.Event | None = None
    ready: torch.cuda.Event | None = None


@dataclass(slots=True, kw_only=True)
class Debug:
    """Switches that make hidden mistakes show. Each costs time."""

    poison: bool = False  # freed blocks become NaN, and token ids that are not known -1
    integrity: bool = False  # check the bookkeeping after every step

    @classmethod
    def from_environment(cls) -> Debug:
        """As HEADGATE_ENGINE_DEBUG says, a list of names with commas."""
        names = os.environ.get("HEADGATE_ENGINE_DEBUG", "").split(",")
        return cls(poison="poison" in names, integrity="integrity" in names)


class TorchEngine:
    """See `gpu_worker.engine.Engine`. `gpu_worker.load.load_torch_engine` makes one."""

    def __init__(
        self,
        spec: WorkerSpec,
        model: Model,
        backend: Backend,
        pools: KvPools,
        *,
        eos_ids: frozenset[int],
        make_sampler: MakeSampler = TorchSampler,
        debug: Debug | None = None,
    ) -> None:
        self.spec = spec
        self.model = model
        self.pools = pools
        self._backend = backend
        self._debug = debug or Debug()
        self._device = pools.device_pool.device
        self._cuda = self.asynchronous = self._device.type == "cuda"
        self._slots = SlotTable(
            slots=spec.slots,
            blocks=spec.blocks,
            host_blocks=spec.host_blocks,
            tokens_per_step=spec.tokens_per_step,
            max_context=spec.max_context,
            vocab_size=model.config.vocab_size,
            eos_ids=eos_ids,
        )
        self._batches = BatchBuilder(slots=spec.slots, max_context=spec.max_context, device=self._device)
        empty = -1 if self._debug.poison else 0
        self._tokens = torch.full((spec.slots * self._batches.stride,), empty, dtype=torch.int32, device=self._device)
        self._sampler = make_sampler(self._tokens, self._batches.stride)
        self._launched: deque[_Launched] = deque()
        self.logits: torch.Tensor | None = None  # of the newest step, where a test set `keep_logits`
        self.keep_logits = False
        self.load_times_s: dict[str, float] = {}

    def reset(self) -> None:
        """See `Engine.reset`. Steps under way are finished and forgotten."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
        self._launched.clear()
        self._slots.reset()

    def close(self) -> None:
        """See `Engine.close`."""
        self.reset()
        empty = self.pools.device_pool.new_empty(0)
        self.pools.device_pool, self.pools.host_pool = empty, empty.cpu()

    def execute(self, step: Step) -> StepResult:
        """See `Engine.execute`."""
        return self.collect(self.launch(step))

    @torch.inference_mode()
    def launch(self, step: Step) -> _Launched:
        """See `Engine.launch`."""
        began = time.perf_counter()
        launched = _Launched(step.number, [])
        self._launched.append(launched)
        replaced: list[tuple[Slot, torch.Tensor]] = []
        try:
            plan = self._slots.plan(step)
            self._check_tokens(plan)
            launched.rows = [row for row in plan.rows if row.samples]
            self._run(plan, launched, replaced)
        except StepRefused as refusal:
            launched.error = str(refusal)
        except (torch.OutOfMemoryError, MemoryError) as error:
            launched.error = f"out-of-memory: step {step.number} does not fit: {error}"
        except RuntimeError as error:
            if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
                raise DeviceFailed(f"step {step.number} failed on {self._device}: {error}") from error
            launched.error = f"out-of-memory: step {step.number} does not fit: {error}"
        else:
            self._slots.commit(plan)
            if self._debug.poison:
                self._poison(plan)
        if launched.error:
            launched.rows = []
            self._restore(replaced)
        launched.duration_s = time.perf_counter() - began
        return launched

    def _check_tokens(self, plan: StepPlan) -> None:
        """An id outside the vocabulary would read beside the embedding."""
        vocab = self.model.config.vocab_size
        for slot, new in plan.entered:
            ids = np.frombuffer(new.tokens, "<i4")
            if ids.min() < 0 or ids.max() >= vocab:
                raise StepRefused(
                    f"protocol: request {slot.request!r} has token ids from {ids.min()} to {ids.max()}; "
                    f"the vocabulary has {vocab}"
                )

    def _run(self, plan: StepPlan, launched: _Launched, replaced: list[tuple[Slot, torch.Tensor]]) -> None:
        """All of a step on the device. Nothing here changes the slot table, and what it writes nobody reads if it
        fails: blocks and tokens beyond what their slots have computed and known. But for slots that are dropped and
        taken in one step: what they held goes to `replaced`."""
        if self._cuda:
            launched.began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            launched.began.record()
        self.pools.swap(plan.step.swap_out, plan.step.swap_in)
        for slot, new in plan.entered:
            self.pools.before_use(slot.blocks)
            self._batches.set_blocks(slot.index, slot.blocks)
            begin = slot.index * self._batches.stride
            before = self._slots.table[slot.index]
            if before is not None:
                replaced.append((before, self._tokens[begin : begin + self._batches.stride].clone()))
            if self._debug.poison:
                self._tokens[begin : begin + self._batches.stride].fill_(-1)
            ids = torch.from_numpy(np.frombuffer(new.tokens, "<i4").astype(np.int32))
            if self._cuda:
                ids = ids.pin_memory()
            self._tokens[begin : begin + len(ids)].copy_(ids, non_blocking=True)
        self.pools.before_use(block for _, block in plan.grown)
        appended: dict[int, int] = {}
        for slot, block in plan.grown:
            at = len(slot.blocks) + appended.get(slot.index, 0)
            self._batches.grow(slot.index, at, block)
            appended[slot.index] = appended.get(slot.index, 0) + 1
        if plan.rows:
            self._forward(plan, launched)
        if self._cuda:
            launched.ready = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            launched.ready.record()

    def _restore(self, replaced: list[tuple[Slot, torch.Tensor]]) -> None:
        """Undo the entering of a refused step's rows."""
        for slot, tokens in replaced:
            begin = slot.index * self._batches.stride
            self._tokens[begin : begin + self._batches.stride].copy_(tokens)
            self._batches.set_blocks(slot.index, slot.blocks)

    def _forward(self, plan: StepPlan, launched: _Launched) -> None:
        batch = self._batches.build(plan.rows)
        tokens = self._tokens.index_select(0, batch.token_index)
        if self._debug.poison and int(tokens.min()) < 0:
            raise IntegrityError(f"step {launched.number} reads a token id before it is known")
        logits = self.model.forward(tokens, batch, self._backend)
        if self.keep_logits:
            self.logits = logits.clone()
        if launched.rows:
            sampled = self._sampler.sample(logits, launched.rows)
            self._tokens.index_copy_(0, batch.target.long(), sampled.tokens)
            launched.sampled = self._to_host(sampled)

    def _to_host(self, sampled: Sampled) -> Sampled:
        """Start the copies to the host; on a CPU there is nothing to copy."""
        if not self._cuda:
            return sampled

        def host(x: torch.Tensor | None) -> torch.Tensor | None:
            if x is None:
                return None
            return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)

        tokens = host(sampled.tokens)
        assert tokens is not None
        return Sampled(
            tokens, sampled.logprob_rows, host(sampled.chosen), host(sampled.top_values), host(sampled.top_tokens)
        )

    def is_done(self, handle: _Launched) -> bool:
        """See `Engine.is_done`."""
        return handle.ready is None or bool(handle.ready.query())  # type: ignore[no-untyped-call]

    def collect(self, handle: _Launched) -> StepResult:
        """See `Engine.collect`.

        :raises EngineError: `handle` is not the oldest launched step.
        """
        if not self._launched or self._launched[0] is not handle:
            raise EngineError(f"step {handle.number} is collected out of order, or for the second time")
        self._launched.popleft()
        if handle.began is not None and handle.ready is not None:
            try:
                handle.ready.synchronize()
                handle.duration_s = handle.began.elapsed_time(handle.ready) * 1e-3
            except RuntimeError as error:
                raise DeviceFailed(f"step {handle.number} failed on {self._device}: {error}") from error
        rows = self._sampled_rows(handle)
        if self._debug.integrity:
            self._slots.check_integrity()
        done = StepDone(handle.number, rows.slots, rows.tokens, rows.finished, handle.duration_s, handle.error)
        return StepResult(done, rows)

    def _sampled_rows(self, handle: _Launched) -> SampledRows:
        out = SampledRows()
        if handle.sampled is None or handle.error:
            return out
        tokens: list[int] = handle.sampled.tokens.tolist()
        logprobs = _logprobs(handle.sampled, handle.rows, tokens)
        for i, (row, token) in enumerate(zip(handle.rows, tokens, strict=True)):
            slot = row.slot
            if slot.finish:  # an overrun: the step was launched before the end was known
                continue
            if self._debug.integrity and not 0 <= token < self.model.config.vocab_size:
                raise IntegrityError(f"slot {slot.index} sampled token {token}")
            finish = self._slots.finish(row, token)
            out.slots.append(slot.index)
            out.requests.append(slot.request)
            out.attempts.append(slot.attempt)
            out.gateways.append(slot.gateway)
            out.indices.append(row.start + row.count - slot.prompt_tokens)
            out.tokens.append(token)
            out.finished.append(int(finish))
            out.logprobs.append(logprobs.get(i))
        return out

    def _poison(self, plan: StepPlan) -> None:
        """After a step: blocks that nobody holds any more are NaN, ids of slots that ended -1."""
        held = self._slots.held()
        self.pools.poison(b for slot in plan.dropped for b in slot.blocks if b not in held)
        entered = {slot.index for slot, _ in plan.entered}
        for slot in plan.dropped:
            if slot.index not in entered:
                begin = slot.index * self._batches.stride
                self._tokens[begin : begin + self._batches.stride].fill_(-1)

    def check_integrity(self) -> None:
        """:raises IntegrityError: the bookkeeping contradicts itself. For when the engine is idle."""
        self._slots.check_integrity()


def _logprobs(sampled: Sampled, rows: list[Row], tokens: list[int]) -> dict[int, list[tuple[int, float]]]:
    """Row of the step: its log-probabilities, as `SampledRows` has them."""
    if sampled.chosen is None:
        return {}
    found = {}
    for i, row in enumerate(sampled.logprob_rows):
        found[row] = [(tokens[row], float(sampled.chosen[i]))]
        n = rows[row].slot.sampling.logprobs
        if n and sampled.top_values is not None and sampled.top_tokens is not None:
            found[row] += zip(sampled.top_tokens[i, :n].tolist(), sampled.top_values[i, :n].tolist(), strict=True)
    return found
