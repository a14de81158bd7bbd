"""What is simulated: traces of real services, synthetic workloads, their tenants, and changes of their load."""

from simulator.workload.tenants import TenantMix, load_mix, mix_names
from simulator.workload.traces import load_trace

__all__ = ["TenantMix", "load_mix", "load_trace", "mix_names"]
