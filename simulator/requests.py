"""Arrivals as requests: what a scheduler is told of them, and names for their blocks without a single token.

A prompt is zeros of the right length. Its blocks are named by what the workload says is shared, so that prefixes hit
as they would with real tokens, at a twentieth of the cost of hashing these. Names are opaque to the prefix index: here
they are integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from policies.rows import Row
from policies.vocabulary import BLOCK_SIZE, Contract, Request, Sampling, Tenant, Tier
from simulator.records import PREFIX_TOKENS, Arrival

__all__ = ["MODEL", "BlockNames", "make_request", "promised_ttft_s"]

MODEL = "simulated"
_BLOCKS_PER_ID = PREFIX_TOKENS // BLOCK_SIZE
_MOST_BLOCKS = 1 << 20  # of one request
_MORE_BLOCKS = 16  # named ahead of need
_SAMPLING = Sampling(seed=0)


def promised_ttft_s(contract: Contract, prompt_tokens: int) -> float | None:
    """To the first token of a prompt of that length, from arrival; None: no promise."""
    if contract.ttft_ms is None:
        return None
    return (contract.ttft_ms + contract.ttft_per_1k_ms * prompt_tokens / 1000) / 1000


def make_request(arrival: Arrival, tenant: Tenant) -> Request:
    """The request as its gateway would submit it, at the moment of its arrival."""
    contract = tenant.contract
    return Request(
        arrival.id,
        1,
        arrival.tenant,
        MODEL,
        "",
        bytes(4 * arrival.prompt_tokens),
        arrival.max_tokens,
        _SAMPLING,
        Tier[contract.tier],
        promised_ttft_s(contract, arrival.prompt_tokens),
        None if contract.tpot_ms is None else contract.tpot_ms / 1000,
        b"",
        b"",
        "",
        contract.weight,
    )


class BlockNames:
    """Names of blocks, by request id. A `NameBlocks`; immutable, so that forks share it.

    Block b of a prompt has the name of its leading PREFIX_TOKENS block, its place in there and the tenant's group; what
    no id of the arrival covers, and all outputs, are named for the request alone.
    """

    def __init__(self, arrivals: Sequence[Arrival], tenants: Mapping[str, Tenant]) -> None:
        groups: dict[str, int] = {}
        self._group_of = {
            name: groups.setdefault(tenant.group or f"tenant {name}", len(groups)) for name, tenant in tenants.items()
        }
        self._groups = max(1, len(groups))
        self._serials = {arrival.id: serial for serial, arrival in enumerate(arrivals)}
        self._arrivals = arrivals

    def __deepcopy__(self, memo: object) -> BlockNames:
        return self

    def __call__(self, row: Row, blocks: int) -> None:
        """Append to `row.chain` until it names the first `blocks` blocks, and some more that the row may fill, since
        these names wait for no token."""
        chain = cast("list[int]", row.chain)
        serial = self._serials[row.request.id]
        arrival = self._arrivals[serial]
        blocks = max(blocks, min(blocks + _MORE_BLOCKS, row.end // BLOCK_SIZE))
        if arrival.prefix:
            chain.extend(self._shared(arrival, len(chain), blocks))
        chain.extend(range(serial * _MOST_BLOCKS + len(chain), serial * _MOST_BLOCKS + blocks))

    def leading(self, arrival: Arrival) -> list[int]:
        """Names of the blocks of a prompt that others may share."""
        return self._shared(arrival, 0, len(arrival.prefix) * _BLOCKS_PER_ID)

    def _shared(self, arrival: Arrival, start: int, blocks: int) -> list[int]:
        prefix, group, groups = arrival.prefix, self._group_of[arrival.tenant], self._groups
        end = min(blocks, len(prefix) * _BLOCKS_PER_ID, arrival.prompt_tokens // BLOCK_SIZE)
        return [
            -2 - (prefix[block // _BLOCKS_PER_ID] * _BLOCKS_PER_ID + block % _BLOCKS_PER_ID) * groups - group
            for block in range(start, end)
        ]
