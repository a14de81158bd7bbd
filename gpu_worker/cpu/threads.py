"""Runs compiled kernels on the OpenMP threads that torch already has.

Numba brings a thread pool of its own. Two pools on the same cores are a disaster: the threads of one spin at a barrier
while the other's wait for the core (measured on two cores: a region of 3 µs takes 8 ms at the 90th percentile). So a
kernel is a C function, and `GOMP_parallel`, the entry that every program compiled with gcc -fopenmp calls, is looked up
in the very library that torch is linked to. A region costs 1.4 µs. Where there is no such library, kernels run on one
thread.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["Team", "double_bits"]


def double_bits(value: float) -> int:
    """The bit pattern of a double, as kernels take it among their integers."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _gomp_parallel() -> Callable[..., None] | None:
    """`GOMP_parallel(function, argument, threads, flags)` of torch's OpenMP library, if it has one."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        entry = ctypes.CDLL(str(library)).GOMP_parallel  # found in what libtorch_cpu is linked to
    except (OSError, AttributeError):
        return None
    entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    entry.restype = None
    return entry


class Team:
    """The threads that kernels run on: as many as torch uses when this is made."""

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        self._parallel = _gomp_parallel() if self.threads > 1 else None
        self._single = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    def run(self, kernel: int, *arguments: int, alone: bool = False) -> None:
        """Call the kernel at address `kernel` on every thread, and wait for all; on one only if `alone`.

        It gets a pointer to int64: a counter at 0, from which threads take work, then the arguments.
        """
        block = (ctypes.c_int64 * (len(arguments) + 1))(0, *arguments)
        if self._parallel is None:
            self._single(kernel)(ctypes.addressof(block))
        else:
            self._parallel(kernel, ctypes.addressof(block), 1 if alone else self.threads, 0)
