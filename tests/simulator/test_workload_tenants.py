"""Tenants and contracts from TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.vocabulary import Contract, Limits, Tier
from simulator.errors import BadTenants
from simulator.workload import load_mix, mix_names
from simulator.workload.tenants import mix_from_tables

FULL = """
[tenants.acme]
tier = "priority"
ttft_ms = 1000
ttft_per_1k_ms = 200.5
tpot_ms = 50
attainment = 0.95
weight = 2
share = 0.3
rpm = 600
tpm = 100000
concurrency = 8
daily_tokens = 1000000
group = "shared"

[tenants.plain]

[classes.batch]
share = 1
tier = "flex"
rpm = 5
"""


def test_every_key_reaches_the_tenant(tmp_path: Path) -> None:
    """Contract, limits, group and share are as the file says; what it leaves out has the usual defaults."""
    path = tmp_path / "mine.toml"
    path.write_text(FULL)
    mix = load_mix(path)
    acme = mix.tenants["acme"]
    assert acme.share == 0.3
    assert acme.tenant.contract == Contract(
        tier="priority", ttft_ms=1000, ttft_per_1k_ms=200.5, tpot_ms=50, attainment=0.95, weight=2
    )
    assert acme.tenant.limits == Limits(rpm=600, tpm=100_000, concurrency=8, daily_tokens=1_000_000)
    assert acme.tenant.group == "shared"
    assert mix.tenants["plain"].tenant.contract == Contract()
    other = mix.tenant("someone", seed=0)
    assert other is not None
    assert (other.name, other.contract.tier, other.limits.rpm) == ("someone", "flex", 5)


@pytest.mark.parametrize("name", mix_names())
def test_shipped_mixes_serve_any_trace(name: str) -> None:
    """Every shipped mix has tenants to draw, a class for any other, and only tiers that exist."""
    mix = load_mix(name)
    assert mix.drawer(seed=0)() in mix.tenants
    drawn = mix.tenant("whoever", seed=0)
    assert drawn is not None
    tiers = {each.tenant.contract.tier for each in mix.tenants.values()} | {each.contract.tier for each in mix.classes}
    assert tiers <= set(Tier.__members__)


def test_the_default_mix_is_the_documented_one() -> None:
    """Ten tenants whose shares fall like 1 / rank, and classes of 50, 30 and 20 % of the tenants."""
    mix = load_mix("default")
    shares = [each.share for each in mix.tenants.values()]
    assert shares == pytest.approx([1 / rank for rank in range(1, 11)], abs=1e-4)
    assert [(each.name, each.share) for each in mix.classes] == [
        ("interactive", 0.5),
        ("standard", 0.3),
        ("batch", 0.2),
    ]


def test_classes_are_drawn_by_share_and_stay_with_their_tenants() -> None:
    """Of many tenants each class has its share; a tenant's class depends on its name and the seed alone."""
    mix = load_mix("default")
    names = [f"tenant {i}" for i in range(4000)]
    drawn = [mix.class_of(name, seed=1) for name in names]
    counts = {each.name: sum(one is each for one in drawn) / len(names) for each in mix.classes}
    assert counts == pytest.approx({"interactive": 0.5, "standard": 0.3, "batch": 0.2}, abs=0.03)
    assert [mix.class_of(name, seed=1) for name in reversed(names)] == drawn[::-1]
    assert [mix.class_of(name, seed=2) for name in names] != drawn


def test_a_class_without_a_share_is_never_drawn() -> None:
    """Share 0 is none, wherever the class stands."""
    mix = mix_from_tables("m", {"classes": {"a": {"share": 0}, "b": {"share": 1}, "c": {"share": 0}}})
    assert {mix.class_of(str(i), seed=0).name for i in range(500)} == {"b"}  # type: ignore[union-attr]


@given(st.floats(0.1, 10))
def test_promises_are_scaled_together(slo: float) -> None:
    """A scale stretches every promised time of tenants and classes, and makes no promise where there was none."""
    mix = load_mix("long-prompts")
    scaled = mix.scaled(slo)
    pairs = [(mix.tenants[name].tenant.contract, each.tenant.contract) for name, each in scaled.tenants.items()]
    pairs += [(before.contract, after.contract) for before, after in zip(mix.classes, scaled.classes, strict=True)]
    for before, after in pairs:
        for key in ("ttft_ms", "tpot_ms", "ttft_per_1k_ms"):
            old, new = getattr(before, key), getattr(after, key)
            assert new is None if old is None else new == pytest.approx(old * slo)
        assert (after.tier, after.weight, after.attainment) == (before.tier, before.weight, before.attainment)


@pytest.mark.parametrize("slo", [0, -1, float("nan"), float("inf")])
def test_an_impossible_scale_is_refused(slo: float) -> None:
    """Promises cannot become nothing, or infinite."""
    with pytest.raises(BadTenants, match="slo scale"):
        load_mix("default").scaled(slo)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({}, "is empty"),
        ({"tenant": {}}, "unknown key tenant"),
        ({"tenants": 3}, "tenants is 3"),
        ({"tenants": {"a": 3}}, "tenants.a is 3"),
        ({"tenants": {"a": {"ttft": 3}}}, "tenants.a: unknown key ttft"),
        ({"classes": {"a": {"share": 1, "group": "g"}}}, "classes.a: unknown key group"),
        ({"classes": {"a": {}}}, "classes.a.share is missing"),
        ({"classes": {"a": {"share": 0}}}, "no class has a share"),
        ({"tenants": {"a": {"tier": "gold"}}}, "tenants.a.tier is 'gold'; it is one of priority, default, flex"),
        ({"tenants": {"a": {"ttft_ms": 0}}}, "tenants.a.ttft_ms is 0; a number above 0"),
        ({"tenants": {"a": {"tpot_ms": -5}}}, "tenants.a.tpot_ms is -5"),
        ({"tenants": {"a": {"tpot_ms": "50"}}}, "tenants.a.tpot_ms is '50'"),
        ({"tenants": {"a": {"weight": float("inf")}}}, "tenants.a.weight is inf"),
        ({"tenants": {"a": {"weight": True}}}, "tenants.a.weight is True"),
        ({"tenants": {"a": {"attainment": 1}}}, "tenants.a.attainment is 1"),
        ({"tenants": {"a": {"share": -1}}}, "tenants.a.share is -1"),
        ({"tenants": {"a": {"share": float("nan")}}}, "tenants.a.share is nan"),
        ({"tenants": {"a": {"rpm": 0}}}, "tenants.a.rpm is 0"),
        ({"tenants": {"a": {"tpm": 1.5}}}, "tenants.a.tpm is 1.5"),
        ({"tenants": {"a": {"group": ""}}}, "tenants.a.group is ''"),
        ({"tenants": {"a": {"ttft_per_1k_ms": 5}}}, "ttft_per_1k_ms adds to ttft_ms, which is missing"),
    ],
)
def test_what_is_wrong_with_tenants_is_named(tables: dict[str, Any], said: str) -> None:
    """A wrong mix is refused with its key and value, before any trace is read."""
    with pytest.raises(BadTenants) as caught:
        mix_from_tables("mine", tables)
    assert said in str(caught.value)
    assert "mine" in str(caught.value)


def test_an_unknown_mix_is_told_which_there_are(tmp_path: Path) -> None:
    """A name that is neither shipped nor a file; and a file that is not TOML, with its line."""
    with pytest.raises(BadTenants, match="the mixes are default"):
        load_mix("gold")
    path = tmp_path / "broken.toml"
    path.write_text("[tenants.a]\ntier = priority\n")
    with pytest.raises(BadTenants, match="line 2"):
        load_mix(path)
    path.write_bytes(b"\xff")
    with pytest.raises(BadTenants, match="TOML"):
        load_mix(path)
