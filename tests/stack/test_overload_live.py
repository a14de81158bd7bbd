"""Three times what the device can do, from tenants with contracts: those who are let in get what they were promised."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from stack_support import Stack

from headgate.replay import Target, replay
from policies.vocabulary import Contract, Tenant
from simulator.records import Arrival, Outcome, Workload

_STEP_S, _SLOTS, _OUTPUTS = 0.020, 8, 16
#: Requests a second that the device completes when all slots are always taken.
_CAPACITY = _SLOTS / ((_OUTPUTS + 1) * _STEP_S)
_SECONDS = 15.0
_TENANTS = {
    "gold": Tenant(name="gold", contract=Contract(tier="priority", ttft_ms=1000, tpot_ms=35)),
    "silver": Tenant(name="silver", contract=Contract(tier="default", ttft_ms=4000, tpot_ms=50)),
    "free": Tenant(name="free", contract=Contract(tier="flex")),
}


def overload(times: float, seed: int = 5) -> Workload:
    """Poisson arrivals at that multiple of the capacity; outputs between half and one and a half of the mean."""
    draw, at_s = Random(seed), 0.0
    arrivals: list[Arrival] = []
    while (at_s := at_s + draw.expovariate(times * _CAPACITY)) < _SECONDS:
        outputs = draw.randint(_OUTPUTS // 2, _OUTPUTS + _OUTPUTS // 2)
        tenant = draw.choices(list(_TENANTS), weights=(3, 4, 3))[0]
        arrivals.append(Arrival(str(len(arrivals)), at_s, tenant, draw.randint(20, 120), outputs, outputs))
    return Workload(name="overload", arrivals=arrivals, tenants=_TENANTS)


def attainment(outcomes: list[Outcome]) -> float:
    """The share of the admitted whose contract was kept, as their clients saw it."""
    admitted = [outcome for outcome in outcomes if outcome.admitted]
    return sum(outcome.met for outcome in admitted) / len(admitted)


async def test_the_admitted_are_kept_at_three_times_the_load(new_stack: Callable[..., Stack]) -> None:
    """At 3x load 99 % of the admitted keep their contract, and every refusal says when to come back."""
    stack = new_stack(
        "--device", "mock", "--slots", str(_SLOTS), "--mock-step-ms", str(1000 * _STEP_S), "--sample-ratio", "0"
    )
    keys = {}
    with stack.admin() as admin:
        for name, tenant in _TENANTS.items():
            promised: dict[str, object] = {"tier": tenant.contract.tier}
            if tenant.contract.ttft_ms is not None:
                promised |= {"ttft_ms": tenant.contract.ttft_ms, "tpot_ms": tenant.contract.tpot_ms}
            admin.post("/tenants", {"name": name, **promised})
            keys[name] = str(admin.post("/keys", {"tenant": name})["key"])
    workload = overload(3.0)
    result = await replay(workload, Target(url=stack.api, model=stack.model, keys=keys, vocabulary=600))
    by_tenant = {name: [o for o in result.outcomes if o.tenant == name] for name in _TENANTS}
    assert attainment([*by_tenant["gold"], *by_tenant["silver"]]) >= 0.99
    assert min(attainment(by_tenant[name]) for name in ("gold", "silver")) >= 0.95
    refused = [outcome for outcome in result.outcomes if outcome.decision == "refused"]
    assert len(refused) >= len(result.outcomes) / 5, (
        "three times the load cannot be served; only flex may wait for long"
    )
    assert all(outcome.retry_after_s and outcome.retry_after_s > 0 for outcome in refused)
    served = sum(outcome.generated for outcome in result.outcomes)
    assert served * _STEP_S / _SLOTS >= 0.6 * _SECONDS, "the device was left idle while requests were refused"
