"""What is simulated: traces of real services, made-up workloads, their tenants, and changes of their load."""

from simulator.workload.client_windows import from_client_windows
from simulator.workload.scaling import at_load, split, thinned, window
from simulator.workload.synthetic import Synthetic, generate, load_synthetic
from simulator.workload.tenants import TenantMix, load_mix, mix_names
from simulator.workload.traces import load_trace

__all__ = [
    "Synthetic",
    "TenantMix",
    "at_load",
    "from_client_windows",
    "generate",
    "load_mix",
    "load_synthetic",
    "load_trace",
    "mix_names",
    "split",
    "thinned",
    "window",
]
