"""The bodies of the admin API, in and out, and what makes one valid.

A tenant is flat here, as in the configuration: its contract and limits side by side. In a change a field that is absent
stays, and null takes a promise or a limit away.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from actors.messages import Decision
from gateway.errors import BadRequest
from gateway.keys import KeyRecord, key_state
from gateway.tenancy import NAME, iso
from policies.vocabulary import Contract, Request, Sampling, Tenant, Tier, WorkerLoad

__all__ = [
    "ExplainQuestion",
    "KeyOrder",
    "RotateOrder",
    "TenantChange",
    "TenantOrder",
    "changed_tenant",
    "decision_view",
    "decode_body",
    "explained_request",
    "given_fields",
    "key_view",
    "new_tenant",
    "tenant_view",
    "worker_view",
]

T = TypeVar("T")

_TierName = Literal["priority", "default", "flex"]
_Milliseconds = Annotated[float, Meta(gt=0, le=3_600_000)]
_MillisecondsMore = Annotated[float, Meta(ge=0, le=3_600_000)]
_Attainment = Annotated[float, Meta(gt=0, lt=1)]
_Weight = Annotated[float, Meta(gt=0, le=1000)]
_Count = Annotated[int, Meta(ge=1, le=2**53)]
_Group = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
_ModelName = Annotated[str, Meta(min_length=1, max_length=200)]
_Models = Annotated[list[_ModelName], Meta(min_length=1, max_length=100)]

_CONTRACT = ("tier", "ttft_ms", "ttft_per_1k_ms", "tpot_ms", "attainment", "weight")
_LIMITS = ("rpm", "tpm", "concurrency", "daily_tokens")


class TenantChange(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """PATCH of a tenant."""

    tier: _TierName | UnsetType = UNSET
    ttft_ms: _Milliseconds | UnsetType | None = UNSET
    ttft_per_1k_ms: _MillisecondsMore | UnsetType = UNSET
    tpot_ms: _Milliseconds | UnsetType | None = UNSET
    attainment: _Attainment | UnsetType = UNSET
    weight: _Weight | UnsetType = UNSET
    rpm: _Count | UnsetType | None = UNSET
    tpm: _Count | UnsetType | None = UNSET
    concurrency: _Count | UnsetType | None = UNSET
    daily_tokens: _Count | UnsetType | None = UNSET
    group: _Group | UnsetType | None = UNSET


class TenantOrder(TenantChange, forbid_unknown_fields=True, kw_only=True):
    """POST of a tenant: what is absent has its default."""

    name: str


class KeyOrder(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """POST of a key."""

    tenant: str
    expires: Annotated[datetime.datetime, Meta(tz=True)] | None = None
    models: _Models | None = None
    tier_ceiling: _TierName | None = None


class RotateOrder(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """POST of a rotation."""

    grace_s: Annotated[float, Meta(ge=0, le=30 * 86_400)] = 3600.0


class ExplainQuestion(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request that somebody might send."""

    tenant: str
    model: _ModelName
    prompt_tokens: Annotated[int, Meta(ge=1, le=100_000)]
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 256


def decode_body(body: bytes, kind: type[T]) -> T:
    """:raises BadRequest: not JSON, an unknown field, or a value of the wrong type or range; `param` names it."""
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        param = path.rstrip("`").removeprefix("$").lstrip(".") or None
        raise BadRequest(f"{message}{f' in `{param}`' if param else ''}.", param=param) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON: {error}.") from None


def new_tenant(order: TenantOrder) -> Tenant:
    """:raises BadRequest: no good name, or a contract that contradicts itself."""
    if NAME.fullmatch(order.name) is None:
        raise BadRequest(
            f"The name {order.name[:100]!r} must be 1 to 63 letters, digits, - and _, with a letter or digit first.",
            param="name",
        )
    return changed_tenant(Tenant(name=order.name), order)


def changed_tenant(tenant: Tenant, change: TenantChange) -> Tenant:
    """:raises BadRequest: the contract would contradict itself."""
    given = given_fields(change)
    contract = msgspec.structs.replace(tenant.contract, **{name: given[name] for name in _CONTRACT if name in given})
    if contract.tier == Tier.flex.name and (contract.ttft_ms is not None or contract.tpot_ms is not None):
        raise BadRequest(
            f"Tier flex has no contract, but ttft_ms is {contract.ttft_ms} and tpot_ms is {contract.tpot_ms}: "
            "take them away, or choose another tier.",
            param="tier",
        )
    return msgspec.structs.replace(
        tenant,
        contract=contract,
        limits=msgspec.structs.replace(tenant.limits, **{name: given[name] for name in _LIMITS if name in given}),
        group=given.get("group", tenant.group),
    )


def given_fields(change: TenantChange) -> dict[str, Any]:
    """What a change names."""
    return {
        name: getattr(change, name) for name in (*_CONTRACT, *_LIMITS, "group") if getattr(change, name) is not UNSET
    }


def tenant_view(tenant: Tenant, revision: int | None = None) -> dict[str, object]:
    """A tenant as the API shows it."""
    view: dict[str, object] = {"name": tenant.name}
    view |= msgspec.to_builtins(tenant.contract) | msgspec.to_builtins(tenant.limits)
    view |= {"group": tenant.group, "created": tenant.created}
    return view if revision is None else view | {"revision": revision}


def key_view(record: KeyRecord, now_unix_s: float) -> dict[str, object]:
    """A key as the API shows it: never a secret, nor a digest."""
    rotating = key_state(record, now_unix_s) == "rotating"
    return {
        "id": record.id,
        "tenant": record.tenant,
        "state": str(key_state(record, now_unix_s)),
        "created": iso(record.created_unix_s),
        "expires": iso(record.expires_unix_s),
        "revoked": iso(record.revoked_unix_s),
        "rotated": iso(record.rotated_unix_s),
        "grace_until": iso(record.grace_until_unix_s) if rotating else None,
        "models": None if record.models is None else list(record.models),
        "tier_ceiling": record.tier_ceiling,
    }


def explained_request(question: ExplainQuestion, tenant: Tenant, *, request_id: str, gateway: str) -> Request:
    """The request that the question stands for: its prompt is zeros, so that no cached prefix is counted on."""
    contract: Contract = tenant.contract
    return Request(
        id=request_id,
        attempt=1,
        tenant=tenant.name,
        model=question.model,
        gateway=gateway,
        prompt=bytes(4 * question.prompt_tokens),
        max_tokens=question.max_tokens,
        sampling=Sampling(temperature=0.0),
        tier=Tier[contract.tier],
        ttft_s=contract.ttft_s(question.prompt_tokens),
        tpot_s=None if contract.tpot_ms is None else contract.tpot_ms / 1000,
    )


def decision_view(decision: Decision) -> dict[str, object]:
    """A decision as the API shows it."""
    view: dict[str, object] = msgspec.to_builtins(msgspec.structs.asdict(decision) | {"quota": None})
    view["quota"] = None if decision.quota is None else msgspec.structs.asdict(decision.quota)
    return view


def worker_view(load: WorkerLoad) -> dict[str, object]:
    """A worker as the API shows it: its sizes, and its step times as they were refitted, with named coefficients."""
    view = msgspec.structs.asdict(load) | {"step_time": msgspec.structs.asdict(load.step_time)}
    del view["requests"]
    return view
