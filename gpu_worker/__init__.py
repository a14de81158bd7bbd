"""The engine: weights, paged KV pools, kernels, swap, sampling. Executes a `Step` and decides nothing.

Importing this package does not import torch: a worker with the `mock` device runs without it.
"""
