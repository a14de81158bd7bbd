"""Runs the schedulers and admission of `policies` on a virtual clock: what would become of a workload.

The same objects decide here as in a running stack; only the clock, the network and the device are modelled.
"""
