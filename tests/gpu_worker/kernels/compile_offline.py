"""Compile every kernel for a GPU that is not here, and print what each compiled variant uses.

The interpreter accepts programs that the compiler refuses (types that change in a loop, a shape that is no power of
two) and knows nothing of shared memory or registers. This script launches the real host functions in a process whose
Triton driver compiles for `--capability` and then drops the launch. One JSON line a compiled variant.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from gpu_worker.kernels import paged_attention, rms_norm, rope_and_write_kv, silu_mul, tiles, write_kv

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class OfflineDriver:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack (spills) of a cubin, by the cuobjdump that comes with triton; {} if none does."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        dump = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    words = dump.stdout.replace("\n", " ").split()
    used = dict(word.split(":") for word in words if word.count(":") == 1 and word.split(":")[1].isdigit())
    return {"registers": int(used["REG"]), "stack": int(used["STACK"])}


def record(compiled: Any, head_dim: int, group: int, dtype: str) -> None:
    ptx = compiled.asm["ptx"]
    sys.stdout.write(
        json.dumps(
            {
                "kernel": compiled.metadata.name,
                "head_dim": head_dim,
                "group": group,
                "dtype": dtype,
                "shared": compiled.metadata.shared,
                "wide_async_loads": sum("cp.async.cg" in line and "0x10" in line for line in ptx.splitlines()),
                "tensor_core_products": ptx.count("wgmma.mma_async") + ptx.count("mma.sync") + ptx.count("tcgen05.mma"),
                **resources(compiled.asm["cubin"]),
            }
        )
        + "\n"
    )


def launch_all(head_dim: int, group: int, dtype: torch.dtype) -> None:
    """Call every host function once, attention in both regimes and with a split context."""
    kv_heads, layers, rows = 2, 2, 4
    heads = kv_heads * group
    pool = torch.zeros(8, layers, 2, kv_heads, 16, head_dim, dtype=dtype)
    tokens = torch.zeros(rows, heads, head_dim, dtype=dtype)
    tables = torch.zeros(rows, 16, dtype=torch.int32)
    starts = torch.arange(rows + 1, dtype=torch.int32)
    context = torch.ones(rows, dtype=torch.int32)
    for longest, splits in ((1, 1), (1, 8), (512, 1)):
        paged_attention(
            tokens, pool, 1, tables, starts, context,
            scale=0.125, max_query_len=longest, max_context_len=4096, num_splits=splits,
        )  # fmt: skip
    slots = torch.arange(rows)
    write_kv(tokens[:, :kv_heads], tokens[:, :kv_heads], pool, 1, slots)
    qkv = torch.zeros(rows, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    norm = torch.ones(head_dim, dtype=dtype)
    rope_and_write_kv(qkv, torch.zeros(64, head_dim), slots, pool, 1, slots, num_heads=heads, q_norm=norm, k_norm=norm)
    rope_and_write_kv(qkv, torch.zeros(64, head_dim), slots, pool, 1, slots, num_heads=heads)
    hidden = torch.zeros(rows, heads * head_dim, dtype=dtype)
    rms_norm(hidden, hidden[0], 1e-6, hidden)
    silu_mul(hidden)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--capability", type=int, default=90)
    arguments.add_argument("--case", action="append", required=True, help="head_dim,group,dtype", metavar="D,G,DTYPE")
    options = arguments.parse_args()
    triton.runtime.driver.set_active(OfflineDriver(options.capability))
    tiles.arch_of.cache_clear()
    capability = divmod(options.capability, 10)
    vars(tiles)["arch_of"] = lambda device: capability
    case = (0, 0, "")
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        record(compiled, *case)
        return compiled

    JITFunction.run = compile_only
    for text in options.case:
        head_dim, group, dtype = text.split(",")
        case = (int(head_dim), int(group), dtype)
        launch_all(int(head_dim), int(group), DTYPES[dtype])
    return 0


if __name__ == "__main__":
    sys.exit(main())
