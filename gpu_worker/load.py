"""From a model directory to an engine that is ready to run."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from gpu_worker.attention.cpu import CpuBackend
from gpu_worker.attention.interface import Backend
from gpu_worker.attention.reference import ReferenceBackend
from gpu_worker.checkpoint import Checkpoint
from gpu_worker.config import ModelConfig, read_config
from gpu_worker.cpu.compiled import compile_kernels
from gpu_worker.cpu.threads import Team
from gpu_worker.engine import Progress
from gpu_worker.errors import DeviceFailed, DeviceOutOfMemory, UnsupportedModel
from gpu_worker.kv import KvPools
from gpu_worker.linear import packing_works
from gpu_worker.model import load_model
from gpu_worker.rope import rope_table
from gpu_worker.torch_engine import TorchEngine
from policies.vocabulary import BLOCK_SIZE, StepTimeCoefficients, WorkerSpec

__all__ = ["load_torch_engine"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
) -> TorchEngine:
    """See `gpu_worker.device.load_engine`."""
    config = read_config(directory)
    where = _device(device)
    if where.type == "cpu":
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    checkpoint = Checkpoint(directory, progress)
    kind = _dtype(dtype, checkpoint.dtype(), where)
    packed = where.type == "cpu" and packing_works(kind)
    weights = load_model(config, checkpoint, dtype=kind, device=where, packed=packed)
    context = min(max_context or config.max_context, config.max_context)
    if max_context is not None and max_context > config.max_context:
        raise UnsupportedModel(f"max_context {max_context} is beyond the model's {config.max_context}")
    block_bytes = config.kv_elements_per_block(BLOCK_SIZE) * kind.itemsize
    blocks = blocks or _default_blocks(config, kv_bytes, block_bytes, where, slots, context)
    host_blocks = (
        min(blocks, _free_bytes(torch.device("cpu")) // 4 // block_bytes) if host_blocks is None else host_blocks
    )
    context = min(context, blocks * BLOCK_SIZE)
    pools = KvPools(config, blocks=blocks, host_blocks=host_blocks, dtype=kind, device=where)
    table = rope_table(config.rope, config.head_dim, context + 1).to(where)
    spec = WorkerSpec(
        model=model or directory.resolve().name,
        device=where.type,
        blocks=blocks,
        host_blocks=host_blocks,
        block_bytes=block_bytes,
        slots=slots,
        tokens_per_step=tokens_per_step or (512 if where.type == "cpu" else 8192),
        max_context=context,
        swap_bytes_per_s=1e9,
        step_time=StepTimeCoefficients(0.0, 1e-3, 1e-3),
    )
    backend: Backend
    if os.environ.get("HEADGATE_BACKEND") == "reference":
        backend = ReferenceBackend(config, pools.device_pool, table)
    else:
        backend = CpuBackend(config, pools.device_pool, table, compile_kernels(kind), Team())
    return TorchEngine(spec, weights, backend, pools, eos_ids=frozenset(config.eos_token_ids))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceFailed("device cuda was asked for, but torch finds none; use cpu or auto")
    return torch.device(name)


def _dtype(name: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """:raises UnsupportedModel: a dtype that is unknown, or float16 on a CPU, which has no fast path for it."""
    if name != "auto":
        if name not in _DTYPES:
            raise UnsupportedModel(f"dtype {name!r} is unknown; use auto, {', '.join(_DTYPES)}")
        if name == "float16" and device.type == "cpu":
            raise UnsupportedModel("float16 on a CPU takes minutes for what takes seconds in bfloat16 or float32")
        return _DTYPES[name]
    if device.type == "cpu" and stored != torch.float32:
        return torch.bfloat16 if fast_bfloat16() else torch.float32
    return stored


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512_BF16 or AMX)."""
    capabilities = torch.backends.cpu.get_capabilities() if hasattr(torch.backends.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or _bf16_in_cpuinfo())


def _bf16_in_cpuinfo() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30


def _default_blocks(
    config: ModelConfig, kv_bytes: int | None, block_bytes: int, device: torch.device, slots: int, context: int
) -> int:
    """As many as `kv_bytes` hold; by default nine tenths of a GPU's free memory or a quarter of the host's, and no more
    than all slots could use at full context."""
    if kv_bytes is None:
        free = _free_bytes(device)
        kv_bytes = free * 9 // 10 if device.type == "cuda" else free // 4
        kv_bytes = min(kv_bytes, slots * -(-context // BLOCK_SIZE) * block_bytes)
    if kv_bytes < block_bytes:
        raise DeviceOutOfMemory(f"{kv_bytes} bytes for KV hold no block; one takes {block_bytes}")
    return kv_bytes // block_bytes
