"""What the kernels refuse before anything is launched.

A wrong shape on a GPU is not an error but a read of somebody else's KV, so every launch function checks what it can
check without asking the device.
"""

from __future__ import annotations

__all__ = ["KernelArgumentError"]


class KernelArgumentError(ValueError):
    """A tensor handed to a kernel has a shape, dtype or stride that the kernel cannot take."""
