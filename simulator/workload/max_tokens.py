"""What clients ask for at most: traces tell what was generated, not what was allowed.

Real clients set one round number and keep it. So by default every tenant asks for the power of two from its largest
output up, at least 16: outputs of 3 to 1,000 tokens are all asked for with 1,024. A factor makes the bound follow each
output instead: 1.0 tells it exactly (knowledge that no real scheduler has), 2.0 twice as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from simulator.errors import SimulatorError

__all__ = ["LEAST_CAP", "asked_tokens"]

LEAST_CAP = 16


def asked_tokens(outputs: Iterable[tuple[str, int]], *, factor: float | None = None) -> Callable[[str, int], int]:
    """The rule (tenant, output tokens) -> max_tokens, at least the output.

    :param outputs: (tenant, output tokens) of the whole workload.
    :param factor: on each output, from 1; None: the tenant's round number.
    :raises SimulatorError: the factor is below 1 or not finite.
    """
    if factor is not None:
        if not math.isfinite(factor) or factor < 1:
            raise SimulatorError(f"max_tokens_factor is {factor!r}; a finite factor from 1 is needed, or None")
        by = factor
        return lambda _tenant, output: max(output, math.ceil(output * by))
    largest: dict[str, int] = {}
    for tenant, output in outputs:
        if output > largest.get(tenant, 0):
            largest[tenant] = output
    caps = {tenant: max(LEAST_CAP, 1 << (most - 1).bit_length()) for tenant, most in largest.items()}
    return lambda tenant, _output: caps[tenant]
