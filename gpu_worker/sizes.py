"""What to run in and how much memory to take, where the caller did not say."""

from __future__ import annotations

from pathlib import Path

import torch

from gpu_worker.config import ModelConfig
from gpu_worker.errors import DeviceOutOfMemory, UnsupportedModel
from policies.vocabulary import BLOCK_SIZE

__all__ = ["choose_blocks", "choose_dtype"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_dtype(name: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to compute in; `auto` as `load_engine` says.

    :raises UnsupportedModel: a dtype that is unknown, or float16 on a CPU, which has no fast path for it.
    """
    if name != "auto":
        if name not in _DTYPES:
            raise UnsupportedModel(f"dtype {name!r} is unknown; use auto, {', '.join(_DTYPES)}")
        if name == "float16" and device.type == "cpu":
            raise UnsupportedModel("float16 on a CPU takes minutes for what takes seconds in bfloat16 or float32")
        return _DTYPES[name]
    if device.type == "cpu" and stored != torch.float32:
        return torch.bfloat16 if _multiplies_bfloat16() else torch.float32
    return stored


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has AVX512_BF16, AMX or Arm's BF16. Without, bfloat16 is emulated and slower than float32."""
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


def choose_blocks(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    slots: int,
    context: int,
    kv_bytes: int | None,
    blocks: int | None,
    host_blocks: int | None,
) -> tuple[int, int]:
    """Blocks of the device and of the host pool.

    By default nine tenths of a GPU's free memory, or a quarter of the host's for a CPU, and no more than all slots
    could use at full context; for the host pool as many again, within a quarter of the host's free memory.

    :raises DeviceOutOfMemory: not one block fits in `kv_bytes`.
    """
    block_bytes = config.kv_elements_per_block(BLOCK_SIZE) * dtype.itemsize
    if blocks is None:
        if kv_bytes is None:
            kv_bytes = _free_bytes(device) * 9 // 10 if device.type == "cuda" else _free_bytes(device) // 4
            kv_bytes = min(kv_bytes, slots * -(-context // BLOCK_SIZE) * block_bytes)
        blocks = kv_bytes // block_bytes
    if blocks < 1:
        raise DeviceOutOfMemory(f"{kv_bytes} bytes for KV hold no block; one takes {block_bytes}")
    if host_blocks is None:
        host_blocks = min(blocks, _free_bytes(torch.device("cpu")) // 4 // block_bytes)
    return blocks, host_blocks
