"""Compiles the kernels, or takes them from the cache.

Compiling takes seconds, a cached kernel milliseconds. Numba keys its cache by the file a function is in, but not by
the files of what it calls, so the directory is named for a hash of all of them: an upgrade never runs a stale kernel.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import torch

from gpu_worker.cpu import decode_attention, elementwise, prefill_attention, sample
from gpu_worker.cpu.dialect import KERNEL

__all__ = ["Kernels", "compile_kernel", "compile_kernels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Addresses of the kernels for one dtype."""

    rms_norm: int
    rope: int
    silu_mul: int
    gather: int
    decode: int
    pack: int
    softmax: int
    unpack: int
    sample: int
    owners: tuple[object, ...]  # the compiled functions: an address is good as long as its owner lives


def compile_kernels(dtype: torch.dtype) -> Kernels:
    """The kernels for float32 or bfloat16. Works without a writable cache directory too, at the price of compiling."""
    directory = _cache_directory()
    if directory is not None:
        numba.config.CACHE_DIR = directory
    suffix = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]

    owners: list[object] = []

    def address(module: object, name: str) -> int:
        compiled = compile_kernel(getattr(module, f"{name}_{suffix}"), cached=directory is not None)
        owners.append(compiled)
        return int(compiled.address)

    return Kernels(
        rms_norm=address(elementwise, "rms_norm"),
        rope=address(elementwise, "rope"),
        silu_mul=address(elementwise, "silu_mul"),
        decode=address(decode_attention, "decode"),
        gather=address(prefill_attention, "gather"),
        pack=address(prefill_attention, "pack"),
        softmax=address(prefill_attention, "softmax"),
        unpack=address(prefill_attention, "unpack"),
        sample=address(sample, "sample"),
        owners=tuple(owners),
    )


def compile_kernel(function: Callable[..., Any], *, cached: bool) -> Any:
    """The compiled function; its `address` is good as long as it lives."""
    return numba.cfunc(KERNEL, cache=cached, fastmath=True, error_model="numpy")(function)


def _cache_directory() -> str | None:
    """The first that can be written: in NUMBA_CACHE_DIR, in the user's cache, in the temporary folder."""
    sources = hashlib.sha256(numba.__version__.encode() + platform.processor().encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(path.read_bytes())
    name = f"kernels-{sources.hexdigest()[:16]}"
    user = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    temporary = str(Path(tempfile.gettempdir()) / f"headgate-{os.getuid() if hasattr(os, 'getuid') else 'user'}")
    for base in (os.environ.get("NUMBA_CACHE_DIR"), str(Path(user) / "headgate"), temporary):
        if not base:
            continue
        directory = Path(base) / name
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(directory, os.W_OK) and _ours(directory):
            return str(directory)
    return None


def _ours(directory: Path) -> bool:
    """A cache holds code that will be run: one that belongs to somebody else is not used."""
    return not hasattr(os, "getuid") or directory.stat().st_uid == os.getuid()
