"""Who the tenants of a workload are and what they are promised: a TOML file, since no public trace says.

    [tenants.acme]            # a tenant by name
    tier = "priority"         # priority | default | flex
    ttft_ms = 1000            # promised; absent: no promise
    ttft_per_1k_ms = 200      # more for every 1,000 tokens of the prompt
    tpot_ms = 50
    attainment = 0.99         # share of the admitted that keeps both
    weight = 2.0              # inside its tier
    share = 0.3               # of the arrivals of a trace that names no tenants; relative to the other shares
    rpm = 600                 # limits: rpm, tpm, concurrency, daily_tokens; absent: unlimited
    group = "acme"            # whose prefixes it shares; absent: its own

    [classes.interactive]     # for traces that name many tenants: what a tenant not named above is promised
    share = 0.5               # of the tenants, relative to the other classes
    tier = "priority"         # ... and the keys above, but group

A tenant's class is drawn by a hash of its name and the seed, so it is the same in every window of a trace. A trace with
a tenant that is neither named nor has a class to draw is refused.
"""

from __future__ import annotations

import hashlib
import math
import random
import tomllib
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from policies.vocabulary import Contract, Limits, Tenant, Tier
from simulator.errors import BadTenants

__all__ = ["MIXES", "MixedTenant", "TenantClass", "TenantMix", "load_mix", "mix_names"]

#: The mixes that are shipped, loaded by the names of their files.
MIXES = Path(__file__).parent / "mixes"

_CONTRACT_NUMBERS = ("ttft_ms", "tpot_ms", "ttft_per_1k_ms", "attainment", "weight")
_LIMITS = tuple(field for field in Limits.__struct_fields__)


class MixedTenant(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant that its mix names, with its share of a trace that names none."""

    tenant: Tenant
    share: float = 0.0


class TenantClass(msgspec.Struct, frozen=True, kw_only=True):
    """What a share of the tenants is promised."""

    name: str
    share: float
    contract: Contract
    limits: Limits


class TenantMix(msgspec.Struct, frozen=True, kw_only=True):
    """Tenants by name, and classes for all others."""

    name: str
    tenants: Mapping[str, MixedTenant] = {}
    classes: tuple[TenantClass, ...] = ()

    def class_of(self, tenant: str, *, seed: int) -> TenantClass | None:
        """The class drawn for a tenant; None without classes. It does not depend on which other tenants there are."""
        if not self.classes:
            return None
        digest = hashlib.blake2b(f"{seed}\0{tenant}".encode(), digest_size=8).digest()
        point = int.from_bytes(digest, "big") / 2**64 * math.fsum(each.share for each in self.classes)
        for each in self.classes:
            point -= each.share
            if point < 0:
                return each
        return self.classes[-1]

    def tenant(self, name: str, *, seed: int) -> Tenant | None:
        """The tenant of that name, of its class if the mix does not name it; None if there is no class either."""
        named = self.tenants.get(name)
        if named is not None:
            return named.tenant
        drawn = self.class_of(name, seed=seed)
        return None if drawn is None else Tenant(name=name, contract=drawn.contract, limits=drawn.limits)

    def drawer(self, *, seed: int) -> Callable[[], str]:
        """Draws the tenants of a trace that names none, by share.

        :raises BadTenants: no tenant of the mix has a share.
        """
        names = [name for name, each in self.tenants.items() if each.share > 0]
        if not names:
            raise BadTenants(
                f"mix {self.name}: the trace names no tenants, and no [tenants.NAME] of the mix has a share to draw "
                "them by; give at least one a share above 0"
            )
        cumulative = list(accumulate(self.tenants[name].share for name in names))
        choices = random.Random(f"tenants {seed}").choices
        return lambda: choices(names, cum_weights=cumulative)[0]

    def scaled(self, slo: float) -> TenantMix:
        """The same mix with every promised time multiplied by `slo` (2.0: twice as lax)."""
        if not slo > 0 or not math.isfinite(slo):
            raise BadTenants(f"slo scale {slo!r}; a finite factor above 0 is needed")

        def relaxed(contract: Contract) -> Contract:
            return msgspec.structs.replace(
                contract,
                ttft_ms=None if contract.ttft_ms is None else contract.ttft_ms * slo,
                tpot_ms=None if contract.tpot_ms is None else contract.tpot_ms * slo,
                ttft_per_1k_ms=contract.ttft_per_1k_ms * slo,
            )

        return TenantMix(
            name=self.name,
            tenants={
                name: MixedTenant(
                    tenant=msgspec.structs.replace(each.tenant, contract=relaxed(each.tenant.contract)),
                    share=each.share,
                )
                for name, each in self.tenants.items()
            },
            classes=tuple(msgspec.structs.replace(each, contract=relaxed(each.contract)) for each in self.classes),
        )


def mix_names() -> list[str]:
    """Names of the mixes that are shipped."""
    return sorted(path.stem for path in MIXES.glob("*.toml"))


def load_mix(name_or_path: str | Path) -> TenantMix:
    """A shipped mix by its name, or one from a file.

    :raises BadTenants: there is none, a key is unknown, or a value is impossible.
    """
    shipped = MIXES / f"{name_or_path}.toml"
    path = shipped if str(name_or_path) in mix_names() else Path(name_or_path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadTenants(
            f"{name_or_path}: no such file, and no mix of that name; the mixes are {', '.join(mix_names())}"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadTenants(f"{path}: cannot be read as TOML: {error}") from error
    return mix_from_tables(path.stem, tables)


def mix_from_tables(name: str, tables: Mapping[str, Any]) -> TenantMix:
    """A mix from the tables `tenants` and `classes`.

    :raises BadTenants: as `load_mix`.
    """
    unknown = sorted(set(tables) - {"tenants", "classes"})
    if unknown:
        raise BadTenants(f"mix {name}: unknown key {unknown[0]}; a mix has [tenants.NAME] and [classes.NAME]")
    tenants: dict[str, MixedTenant] = {}
    for key, table in _tables(name, tables, "tenants"):
        where = f"mix {name}: tenants.{key}"
        _known(where, table, ("tier", "share", "group", *_CONTRACT_NUMBERS, *_LIMITS))
        group = table.get("group")
        if group is not None and (not isinstance(group, str) or not group):
            raise BadTenants(f"{where}.group is {group!r}; a name is needed")
        tenant = Tenant(name=key, contract=_contract(where, table), limits=_limits(where, table), group=group)
        tenants[key] = MixedTenant(tenant=tenant, share=_share(where, table))
    classes = []
    for key, table in _tables(name, tables, "classes"):
        where = f"mix {name}: classes.{key}"
        _known(where, table, ("tier", "share", *_CONTRACT_NUMBERS, *_LIMITS))
        if "share" not in table:
            raise BadTenants(f"{where}.share is missing; say which share of the tenants is of this class")
        classes.append(
            TenantClass(
                name=key, share=_share(where, table), contract=_contract(where, table), limits=_limits(where, table)
            )
        )
    if not tenants and not classes:
        raise BadTenants(f"mix {name}: is empty; it has [tenants.NAME] or [classes.NAME]")
    if classes and not any(each.share > 0 for each in classes):
        raise BadTenants(f"mix {name}: no class has a share above 0; the shares are relative to each other")
    return TenantMix(name=name, tenants=tenants, classes=tuple(classes))


def _tables(mix: str, tables: Mapping[str, Any], kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    group = tables.get(kind, {})
    if not isinstance(group, Mapping):
        raise BadTenants(f"mix {mix}: {kind} is {group!r}; tables [{kind}.NAME] are needed")
    for key, table in group.items():
        if not key.strip():
            raise BadTenants(f"mix {mix}: [{kind}.{key!r}] has no name")
        if not isinstance(table, Mapping):
            raise BadTenants(f"mix {mix}: {kind}.{key} is {table!r}; a table [{kind}.{key}] is needed")
    return list(group.items())


def _known(where: str, table: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in table:
        if key not in keys:
            raise BadTenants(f"{where}: unknown key {key}; the keys are {', '.join(keys)}")


def _number(where: str, table: Mapping[str, Any], key: str, *, zero: bool = False) -> float:
    value = table[key]
    right = "0 or more" if zero else "above 0"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadTenants(f"{where}.{key} is {value!r}; a finite number {right} is needed")
    if value < 0 or (value == 0 and not zero):
        raise BadTenants(f"{where}.{key} is {value}; a number {right} is needed")
    return float(value)


def _share(where: str, table: Mapping[str, Any]) -> float:
    return _number(where, table, "share", zero=True) if "share" in table else 0.0


def _contract(where: str, table: Mapping[str, Any]) -> Contract:
    tier = table.get("tier", "default")
    if tier not in Tier.__members__:
        raise BadTenants(f"{where}.tier is {tier!r}; it is one of {', '.join(Tier.__members__)}")
    numbers = {
        key: _number(where, table, key, zero=key == "ttft_per_1k_ms") for key in _CONTRACT_NUMBERS if key in table
    }
    if numbers.get("attainment", 0.5) >= 1:
        raise BadTenants(f"{where}.attainment is {numbers['attainment']}; a share above 0 and below 1 is needed")
    if numbers.get("ttft_per_1k_ms") and "ttft_ms" not in numbers:
        raise BadTenants(f"{where}.ttft_per_1k_ms adds to ttft_ms, which is missing")
    return Contract(tier=tier, **numbers)


def _limits(where: str, table: Mapping[str, Any]) -> Limits:
    limits = {}
    for key in _LIMITS:
        if key in table:
            value = table[key]
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadTenants(f"{where}.{key} is {value!r}; a whole number from 1 is needed")
            limits[key] = value
    return Limits(**limits)
