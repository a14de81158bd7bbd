"""Policies by name: the systems of the literature as choices of the same small parts, and ours.

`headgate serve --policy NAME` and `headgate simulate --policy NAME` take these; single parts can be changed beside.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from policies.admission.verdict import Policy
from policies.config import SchedulerConfig

__all__ = ["CATALOG", "DEFAULT", "Placement", "PolicySet", "policy_set"]

Placement = Literal["round-robin", "least-loaded", "prefix-aware", "best-fit", "freeness"]


class PolicySet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is decided about requests of one model."""

    name: str
    about: str
    scheduler: SchedulerConfig = SchedulerConfig()
    admission: Policy = Policy()
    placement: Placement = "best-fit"
    roles: Literal["mixed", "disaggregated", "pooled"] = "mixed"  # pooled: workers help the other side
    prefill_workers: int = 0  # disaggregated: of the workers, so many prefill; 0: half, the odd one decodes
    migration: bool = False  # requests move between workers while they run


_OPEN = Policy(kind="none")
#: vLLM V1: chunked prefills under a token budget, first come first served, recompute, the latest gives way.
_CHUNKED = SchedulerConfig(
    batching="chunked", order="fcfs", preemption="recompute", preempt_for_tier=False, chunk_tokens=2048
)


def _with(config: SchedulerConfig, **changes: object) -> SchedulerConfig:
    return msgspec.structs.replace(config, **changes)


_SETS = (
    PolicySet(
        name="headgate", about="contract admission, time-budgeted chunks, deadline and fair order, hybrid preemption"
    ),
    PolicySet(
        name="static",
        about="a batch starts when it is full and ends with its longest (FasterTransformer)",
        scheduler=_with(_CHUNKED, batching="static", batch_size=32, preemption="none", chunk_tokens=0),
        admission=_OPEN,
    ),
    PolicySet(
        name="dynamic",
        about="as static, but a batch also starts when its oldest has waited (Triton, TorchServe)",
        scheduler=_with(_CHUNKED, batching="dynamic", batch_size=32, preemption="none", chunk_tokens=0),
        admission=_OPEN,
    ),
    PolicySet(
        name="continuous",
        about="iteration-level batches, whole prefills, worst case reserved (Orca)",
        scheduler=_with(_CHUNKED, batching="continuous", preemption="none", chunk_tokens=0),
        admission=_OPEN,
    ),
    PolicySet(name="chunked", about="chunked prefills, FCFS, recompute (vLLM V1)", scheduler=_CHUNKED, admission=_OPEN),
    PolicySet(
        name="sarathi",
        about="stall-free batches of a fixed token budget (Sarathi-Serve)",
        scheduler=_with(_CHUNKED, chunk_tokens=512),
        admission=_OPEN,
    ),
    PolicySet(
        name="splitfuse",
        about="every step filled to exactly F tokens (DeepSpeed-FastGen)",
        scheduler=_with(_CHUNKED, batching="splitfuse", chunk_tokens=512),
        admission=_OPEN,
    ),
    PolicySet(
        name="time-budgeted",
        about="the largest chunk that keeps the tightest pace, FCFS, everybody admitted",
        scheduler=_with(_CHUNKED, batching="time-budgeted"),
        admission=_OPEN,
    ),
    PolicySet(
        name="priority",
        about="classes with aging, chunked (vLLM's priority policy)",
        scheduler=_with(_CHUNKED, order="priority", preempt_for_tier=True, preempt_promised=True),
        admission=_OPEN,
    ),
    PolicySet(
        name="edf", about="earliest deadline first, chunked", scheduler=_with(_CHUNKED, order="edf"), admission=_OPEN
    ),
    PolicySet(
        name="edf-drop",
        about="earliest deadline first; who cannot be in time is dropped",
        scheduler=_with(_CHUNKED, order="edf", shed_hopeless=True),
        admission=_OPEN,
    ),
    PolicySet(
        name="least-slack",
        about="least slack first, chunked",
        scheduler=_with(_CHUNKED, order="least-slack"),
        admission=_OPEN,
    ),
    PolicySet(
        name="mlfq",
        about="skip-join multi-level feedback queue with proactive offload (FastServe)",
        scheduler=_with(_CHUNKED, order="mlfq", preemption="swap", offload_share=0.2),
        admission=_OPEN,
    ),
    PolicySet(
        name="vtc",
        about="fair share between tenants by virtual counters (VTC)",
        scheduler=_with(_CHUNKED, order="vtc"),
        admission=_OPEN,
    ),
    PolicySet(
        name="lpm",
        about="longest prefix match, with a guard against starvation (SGLang)",
        scheduler=_with(_CHUNKED, order="lpm"),
        admission=_OPEN,
        placement="prefix-aware",
    ),
    PolicySet(
        name="vtc-edf",
        about="fair share across tenants, earliest deadline within; everybody admitted",
        scheduler=_with(_CHUNKED, batching="time-budgeted", order="vtc-edf", preemption="hybrid"),
        admission=_OPEN,
    ),
    PolicySet(
        name="no-evict",
        about="admitted only if its worst case fits the KV pool (Orca, TensorRT-LLM GUARANTEED_NO_EVICT)",
        scheduler=_with(_CHUNKED, preemption="none"),
        admission=Policy(kind="no-evict"),
    ),
    PolicySet(
        name="token-budget",
        about="refused while too many tokens are queued (vLLM's gate)",
        scheduler=_CHUNKED,
        admission=Policy(kind="token-budget"),
    ),
    PolicySet(
        name="mooncake-naive",
        about="early rejection by the load of now (Mooncake, naive)",
        scheduler=_CHUNKED,
        admission=Policy(kind="mooncake-naive"),
        placement="prefix-aware",
    ),
    PolicySet(
        name="mooncake",
        about="early rejection by the decode load predicted for the end of the prefill (Mooncake)",
        scheduler=_CHUNKED,
        admission=Policy(kind="mooncake"),
        placement="prefix-aware",
    ),
    PolicySet(
        name="llumnix",
        about="to the worker with the most free memory for each request, and live migration between them (Llumnix)",
        scheduler=_CHUNKED,
        admission=_OPEN,
        placement="freeness",
        migration=True,
    ),
    PolicySet(
        name="disaggregated",
        about="prefill and decode on workers of their own (DistServe)",
        scheduler=_with(_CHUNKED, batching="continuous", chunk_tokens=0),
        admission=_OPEN,
        placement="least-loaded",
        roles="disaggregated",
    ),
    PolicySet(
        name="splitwise",
        about="prefill and decode apart, with workers lent to the side whose queue is long (Splitwise)",
        scheduler=_with(_CHUNKED, batching="continuous", chunk_tokens=0),
        admission=_OPEN,
        placement="least-loaded",
        roles="pooled",
    ),
)

CATALOG = {policies.name: policies for policies in _SETS}
DEFAULT = "headgate"


def policy_set(name: str) -> PolicySet:
    """The named set.

    :raises ValueError: if there is none of that name.
    """
    try:
        return CATALOG[name]
    except KeyError:
        raise ValueError(f"policy {name!r} is not known; there are {', '.join(CATALOG)}") from None
