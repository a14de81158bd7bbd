"""From a model directory to an engine that is ready to run: weights, pools, kernels, self-benchmark."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from gpu_worker.attention.interface import Backend
from gpu_worker.attention.reference import ReferenceBackend
from gpu_worker.calibrate import calibrate
from gpu_worker.checkpoint import Checkpoint
from gpu_worker.config import ModelConfig, read_config
from gpu_worker.engine import Progress
from gpu_worker.errors import DeviceFailed, UnsupportedModel
from gpu_worker.kv import KvPools
from gpu_worker.linear import packing_works
from gpu_worker.model import load_model
from gpu_worker.rope import rope_table
from gpu_worker.sampling import Sampler, TorchSampler
from gpu_worker.sizes import choose_blocks, choose_dtype
from gpu_worker.torch_engine import Debug, MakeSampler, TorchEngine
from policies.vocabulary import BLOCK_SIZE, StepTimeCoefficients, WorkerSpec

__all__ = ["load_torch_engine"]

#: Before it is measured: a second a step, which no scheduler would plan with.
_UNKNOWN = StepTimeCoefficients(floor_s=1.0, base_s=1.0, per_token_s=0.0)


def load_torch_engine(
    directory: Path,
    *,
    device: str,
    dtype: str = "auto",
    model: str | None = None,
    kv_bytes: int | None = None,
    blocks: int | None = None,
    host_blocks: int | None = None,
    slots: int = 64,
    tokens_per_step: int | None = None,
    max_context: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    backend: str = "auto",
    measure: bool = True,
    debug: Debug | None = None,
) -> TorchEngine:
    """See `gpu_worker.engine.load_engine`. Beyond it, for tests:

    :param backend: ``auto`` is ``cpu`` or ``triton``, by the device; ``reference`` is plain torch.
    :param measure: whether to run the self-benchmark; without it the spec's times mean nothing.
    :param debug: by default from HEADGATE_ENGINE_DEBUG, e.g. ``poison,integrity``.
    """
    watch = _Watch()
    config = read_config(directory)
    where = _device(device)
    if where.type == "cpu":
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    if max_context is not None and max_context > config.max_context:
        raise UnsupportedModel(f"max_context {max_context} is beyond the model's {config.max_context}")
    checkpoint = Checkpoint(directory, progress)
    kind = choose_dtype(dtype, checkpoint.dtype(), where)
    packed = where.type == "cpu" and packing_works(kind)
    weights = load_model(config, checkpoint, dtype=kind, device=where, packed=packed)
    watch.lap("weights")
    context = max_context or config.max_context
    blocks, host_blocks = choose_blocks(
        config, kind, where, slots=slots, context=context, kv_bytes=kv_bytes, blocks=blocks, host_blocks=host_blocks
    )
    context = min(context, blocks * BLOCK_SIZE)
    pools = KvPools(config, blocks=blocks, host_blocks=host_blocks, dtype=kind, device=where)
    watch.lap("pools")
    operations, make_sampler = _backend(backend, config, pools, rope_table(config.rope, config.head_dim, context + 1))
    watch.lap("kernels")
    spec = WorkerSpec(
        model=model or directory.resolve().name,
        device=where.type,
        blocks=blocks,
        host_blocks=host_blocks,
        block_bytes=pools.block_bytes,
        slots=slots,
        tokens_per_step=tokens_per_step or (512 if where.type == "cpu" else 8192),
        max_context=context,
        swap_bytes_per_s=0.0,
        step_time=_UNKNOWN,
    )
    engine = TorchEngine(
        spec,
        weights,
        operations,
        pools,
        eos_ids=frozenset(config.eos_token_ids),
        make_sampler=make_sampler,
        debug=debug or Debug.from_environment(),
    )
    if measure:
        engine.spec = calibrate(engine)
        watch.lap("self_benchmark")
    engine.load_times_s = watch.laps
    return engine


@dataclass(slots=True)
class _Watch:
    """Seconds of each part of loading."""

    laps: dict[str, float]
    last: float

    def __init__(self) -> None:
        self.laps, self.last = {}, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceFailed("device cuda was asked for, but torch finds none; use cpu or auto")
    return torch.device(name)


def _backend(name: str, config: ModelConfig, pools: KvPools, rope: torch.Tensor) -> tuple[Backend, MakeSampler]:
    """The operations of a device, and its sampler. Each backend is imported where it is chosen: triton is not
    installed everywhere, and reads TRITON_INTERPRET when it is imported."""
    pool = pools.device_pool
    rope = rope.to(pool.device)
    if name == "auto":
        name = "triton" if pool.device.type == "cuda" else "cpu"
    if name == "reference":
        return ReferenceBackend(config, pool, rope), TorchSampler
    if name == "triton":
        from gpu_worker.attention.triton import TritonBackend

        return TritonBackend(config, pool, rope), TorchSampler
    if name != "cpu":
        raise UnsupportedModel(f"backend {name!r} is unknown; use auto, cpu, triton or reference")
    from gpu_worker.attention.cpu import CpuBackend
    from gpu_worker.cpu.compiled import compile_kernels
    from gpu_worker.cpu.sampler import CpuSampler
    from gpu_worker.cpu.threads import Team

    kernels, team = compile_kernels(pool.dtype), Team()

    def make_sampler(table: torch.Tensor, stride: int) -> Sampler:
        return CpuSampler(table, stride, kernels, team)

    return CpuBackend(config, pool, rope, kernels, team), make_sampler
