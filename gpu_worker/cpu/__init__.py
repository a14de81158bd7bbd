"""The CPU device: kernels compiled by numba, run on torch's own OpenMP threads, beside oneDNN's linear layers."""
