"""Who is served next. `waiting_queue` makes the order that `SchedulerConfig.order` names."""

from __future__ import annotations

from collections.abc import Callable

from policies.chunks import StepTime
from policies.config import SchedulerConfig
from policies.order.contract import ContractQueue, rank
from policies.order.cost import DeviceCost
from policies.order.fair_queues import FairDeadlineQueue, FairQueue
from policies.order.keyed import ArrivalQueue, DeadlineQueue, PriorityQueue, SlackQueue
from policies.order.mlfq import FeedbackQueue
from policies.order.prefix import PrefixQueue
from policies.order.queue import Rank, WaitingQueue
from policies.rows import Row

__all__ = ["DeviceCost", "Rank", "WaitingQueue", "rank", "waiting_queue"]

#: Orders that would let somebody wait forever.
_PATIENT: dict[str, Callable[..., WaitingQueue]] = {
    "contract": ContractQueue,
    "edf": DeadlineQueue,
    "least-slack": SlackQueue,
    "lpm": PrefixQueue,
    "vtc-edf": FairDeadlineQueue,
}


def waiting_queue(
    config: SchedulerConfig, step_time: StepTime, *, tokens_per_step: int, resident: Callable[[Row], int]
) -> WaitingQueue:
    """An empty queue in the order that `config.order` names.

    `resident` tells how many tokens of a waiting row need not be computed: the prefix cache has them, or the host.
    """
    cost = DeviceCost(step_time, tokens_per_step=tokens_per_step)
    shed = config.shed_hopeless
    if (patient := _PATIENT.get(config.order)) is not None:
        return patient(
            cost,
            resident=resident,
            shed_hopeless=shed,
            patience_s=config.patience_s,
            patience_share=config.patience_share,
        )
    if config.order == "priority":
        return PriorityQueue(cost, aging_s=config.aging_s, resident=resident, shed_hopeless=shed)
    if config.order == "mlfq":
        return FeedbackQueue(
            cost,
            quantum_s=config.mlfq_quantum_s,
            levels=config.mlfq_levels,
            starvation_s=config.starvation_s,
            resident=resident,
            shed_hopeless=shed,
        )
    simple = FairQueue if config.order == "vtc" else ArrivalQueue
    return simple(cost, resident=resident, shed_hopeless=shed)
