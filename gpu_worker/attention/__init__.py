"""What the model needs besides linear layers, behind one interface: attention over paged KV, and what is fused to it.

`cpu` is numba and oneDNN, `triton` the kernels of `gpu_worker.kernels`, `reference` plain torch: slow, obvious, the
oracle of the other two.
"""

from gpu_worker.attention.interface import Backend

__all__ = ["Backend"]
