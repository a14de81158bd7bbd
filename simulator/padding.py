"""What padding costs: a batch whose rows are all made as long as its longest, against one whose rows are as long as
they are.

Request-level batching with rectangular tensors computes `rows x longest` tokens of prompts, and goes on decoding every
row until the longest output of the batch is over. A padded run here is a run of the padded requests on the same
scheduler and device: what it computes is what such a system computes, and what is of use is in the original workload.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from simulator.errors import SimulatorError
from simulator.records import Arrival, Workload

__all__ = ["padded_tokens", "padded_workload", "ragged_tokens"]


def padded_tokens(lengths: Sequence[int]) -> int:
    """Tokens that a batch of these lengths takes as a rectangle."""
    return len(lengths) * max(lengths, default=0)


def ragged_tokens(lengths: Sequence[int]) -> int:
    """Tokens that it takes row after row."""
    return sum(lengths)


def padded_workload(workload: Workload, batch: int) -> Workload:
    """Every `batch` arrivals, in their order, are given the longest prompt and the longest output among them.

    Run it under a policy that takes them in batches of that size in order of arrival (`static`); an incomplete last
    batch is padded too. Nothing is shared: padding moves the positions of a prefix.

    :raises SimulatorError: the batch is not at least 1.
    """
    if batch < 1:
        raise SimulatorError(f"batch is {batch}; at least one request is needed")
    arrivals: list[Arrival] = []
    for begin in range(0, len(workload.arrivals), batch):
        members = workload.arrivals[begin : begin + batch]
        prompt = max(each.prompt_tokens for each in members)
        output = max(each.output_tokens for each in members)
        arrivals += [
            replace(
                each,
                prompt_tokens=prompt,
                output_tokens=output,
                max_tokens=max(each.max_tokens, output),
                prefix=(),
            )
            for each in members
        ]
    return replace(workload, name=f"{workload.name} padded", arrivals=arrivals)
