"""Made-up workloads, and changes of load."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import BadSynthetic, BadTrace, BadWindow
from simulator.records import Workload
from simulator.workload import (
    Synthetic,
    at_load,
    from_client_windows,
    generate,
    load_synthetic,
    split,
    thinned,
    window,
)
from simulator.workload.lengths import Constant, Empirical, Exponential, Lengths, Lognormal, Uniform
from simulator.workload.processes import Process
from simulator.workload.synthetic import Burst, Flood, Prefixes
from simulator.workload.tenants import mix_from_tables

TWO = mix_from_tables("two", {"tenants": {"calm": {"share": 3}, "loud": {"share": 1}}})


def spec(**changes: Any) -> Synthetic:
    plain = Synthetic(rate_rps=20, duration_s=500, prompt=Constant(tokens=100), output=Constant(tokens=10))
    return msgspec.structs.replace(plain, **changes)


def count(workload: Workload, from_s: float, until_s: float, tenant: str | None = None) -> int:
    return sum(from_s <= each.at_s < until_s and tenant in (None, each.tenant) for each in workload.arrivals)


@pytest.mark.parametrize(
    ("process", "cv", "measured"),
    [("poisson", 1, 1), ("gamma", 3, 3), ("gamma", 0.3, 0.3), ("weibull", 2, 2), ("constant", 1, 0)],
)
def test_arrivals_have_their_rate_and_variation(process: Process, cv: float, measured: float) -> None:
    """The process keeps the mean rate, and the coefficient of variation of its gaps."""
    workload = generate(spec(process=process, cv=cv, duration_s=2000.0), seed=1)
    gaps = [b.at_s - a.at_s for a, b in zip(workload.arrivals, workload.arrivals[1:], strict=False)]
    assert len(workload.arrivals) == pytest.approx(40_000, rel=0.05)
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(measured, rel=0.12, abs=1e-6)


def test_a_bursty_process_does_not_begin_with_a_burst() -> None:
    """Over many seeds the first seconds have as many arrivals as any: the process has run before."""
    bursty = spec(process="gamma", cv=6.0, duration_s=20.0)
    first = statistics.fmean(count(generate(bursty, seed=seed), 0, 2) for seed in range(300))
    assert first == pytest.approx(40, rel=0.3)  # one that began at 0 would have 17 more


def test_a_burst_is_a_burst_of_everybody() -> None:
    """Between its edges the rate is multiplied; before and after it is as ever, also for a constant process."""
    burst = (Burst(from_s=100, until_s=200, factor=3),)
    workload = generate(spec(process="constant", bursts=burst), seed=0)
    assert [count(workload, at, at + 100) for at in (0, 100, 200, 300, 400)] == [2000, 6000, 2000, 2000, 2000]
    loud = generate(spec(bursts=burst), tenants=TWO, seed=0)
    for tenant in ("calm", "loud"):
        assert count(loud, 100, 200, tenant) == pytest.approx(3 * count(loud, 0, 100, tenant), rel=0.2)


def test_a_flood_leaves_the_others_as_they_were() -> None:
    """One tenant sends ten times as much; every other request is there as without it, to the token."""
    lengths: dict[str, Any] = {"prompt": Lognormal(median=500, sigma=1), "output": Exponential(mean=100, cap=500)}
    prefixes = (Prefixes(share=0.5, groups=3, tokens=1024),)
    calm = generate(spec(prefixes=prefixes, **lengths), tenants=TWO, seed=5, max_tokens_factor=1)
    flood = (Flood(tenant="loud", from_s=200, until_s=300, factor=10),)
    flooded = generate(spec(prefixes=prefixes, floods=flood, **lengths), tenants=TWO, seed=5, max_tokens_factor=1)
    assert [each for each in flooded.arrivals if not each.id.startswith("flood")] == calm.arrivals
    extra = [each for each in flooded.arrivals if each.id.startswith("flood")]
    assert {each.tenant for each in extra} == {"loud"}
    assert all(200 <= each.at_s < 300 for each in extra)
    assert len(extra) == pytest.approx(9 * 5 * 100, rel=0.1)
    assert len({each.id for each in flooded.arrivals}) == len(flooded.arrivals)
    of_loud = {each.prefix for each in calm.arrivals if each.tenant == "loud"}
    assert {each.prefix for each in extra} == of_loud  # the flood is of the tenant's own prompts


def test_prefixes_are_shared_inside_a_tenant_only() -> None:
    """A share of the requests begins with one of its tenant's prefixes, which comes before its own prompt."""
    workload = generate(spec(prefixes=(Prefixes(share=0.5, groups=4, tokens=1024),)), tenants=TWO, seed=0)
    with_prefix = [each for each in workload.arrivals if each.prefix]
    assert len(with_prefix) == pytest.approx(len(workload.arrivals) / 2, rel=0.05)
    assert {each.prompt_tokens for each in with_prefix} == {1124}
    groups = {name: {each.prefix for each in with_prefix if each.tenant == name} for name in ("calm", "loud")}
    assert [len(groups[name]) for name in ("calm", "loud")] == [4, 4]
    blocks = [block for prefixes in groups.values() for prefix in prefixes for block in prefix]
    assert len(blocks) == len(set(blocks)) == 16


@pytest.mark.parametrize(
    ("lengths", "low", "high", "median"),
    [
        (Constant(tokens=7), 7, 7, 7),
        (Uniform(low=10, high=20), 10, 20, 15),
        (Exponential(mean=100, cap=300), 1, 300, 69),
        (Lognormal(median=900, sigma=1.0, cap=4000), 1, 4000, 900),
        (Empirical(values=(3, 3, 9)), 3, 9, 3),
    ],
)
def test_lengths_follow_their_distribution(lengths: Lengths, low: int, high: int, median: float) -> None:
    """Draws stay within their bounds, reach caps, and have the median that the parameters say."""
    drawn = [each.output_tokens for each in generate(spec(output=lengths), seed=2).arrivals]
    assert min(drawn) >= low
    assert max(drawn) == high
    assert statistics.median(drawn) == pytest.approx(median, rel=0.05)


@given(st.integers(0, 2**32))
def test_a_seed_is_a_workload(seed: int) -> None:
    """The same seed gives the same workload, in order, within its time, with tenants that are known."""
    made = spec(duration_s=5.0, process="weibull", cv=2.0, bursts=(Burst(from_s=1, until_s=2, factor=0.5),))
    workload = generate(made, seed=seed)
    assert generate(made, seed=seed) == workload
    instants = [each.at_s for each in workload.arrivals]
    assert instants == sorted(instants)
    assert 0 <= instants[0] <= instants[-1] < 5
    assert {each.tenant for each in workload.arrivals} == set(workload.tenants)
    assert all(each.output_tokens <= each.max_tokens for each in workload.arrivals)


FILE = """
rate_rps = 4
duration_s = 60
process = "gamma"
cv = 2.0
prompt = {distribution = "lognormal", median = 900, sigma = 1.0}
output = {distribution = "exponential", mean = 128, cap = 1024}
bursts = [{from_s = 10, until_s = 20, factor = 3}]
[[floods]]
tenant = "acme"
from_s = 30
until_s = 40
factor = 10
[[prefixes]]
share = 0.5
groups = 4
tokens = 1024
[tenants.acme]
share = 1
tier = "priority"
[tenants.other]
share = 2
"""


def test_a_file_says_it_all(tmp_path: Path) -> None:
    """The documented file becomes its spec and its tenants."""
    path = tmp_path / "storm.toml"
    path.write_text(FILE)
    made, mix = load_synthetic(path)
    assert made == Synthetic(
        name="storm",
        rate_rps=4,
        duration_s=60,
        process="gamma",
        cv=2,
        prompt=Lognormal(median=900, sigma=1),
        output=Exponential(mean=128, cap=1024),
        bursts=(Burst(from_s=10, until_s=20, factor=3),),
        floods=(Flood(tenant="acme", from_s=30, until_s=40, factor=10),),
        prefixes=(Prefixes(share=0.5, groups=4, tokens=1024),),
    )
    assert sorted(mix.tenants) == ["acme", "other"]
    assert sorted(generate(made, tenants=mix).tenants) == ["acme", "other"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rate_rps = 4", "", "rate_rps"),
        ("rate_rps = 4", "rate_rps = 0", "rate_rps is 0"),
        ("rate_rps = 4", "rate_rps = inf", "rate_rps is inf"),
        ("rate_rps = 4", 'rate_rps = "4"', "rate_rps"),
        ("duration_s = 60", "duration_s = -1", "duration_s is -1"),
        ("duration_s = 60", "duration_s = 60\nlength = 3", "length"),
        ('"gamma"', '"pareto"', "pareto"),
        ("cv = 2.0", "cv = 100", "cv is 100"),
        ('"lognormal"', '"normal"', "normal"),
        ("median = 900", "median = 0", "prompt.median is 0"),
        ("sigma = 1.0", "sigma = -1", "prompt.sigma is -1"),
        ("cap = 1024", "cap = 0", "output.cap is 0"),
        ("until_s = 20", "until_s = 5", "bursts from 10.0 s until 5.0 s"),
        ("from_s = 30", "from_s = 70", "floods from 70.0 s"),
        ("factor = 10", "factor = 1", "floods.factor is 1"),
        ("factor = 3", "factor = nan", "bursts.factor is nan"),
        ("tokens = 1024", "tokens = 1000", "prefixes.tokens is 1000; a multiple of 512"),
        ("share = 0.5", "share = 1.5", "prefixes.share is 1.5"),
        ("groups = 4", "groups = 0", "prefixes.groups is 0"),
        ("rate_rps = 4", 'rate_rps = 4\nmix = "default"', "one of the two"),
        ("rate_rps = 4", "rate_rps =", "TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    """A wrong file is refused with the key and the value, before anything is drawn."""
    path = tmp_path / "storm.toml"
    assert old in FILE
    path.write_text(FILE.replace(old, new, 1))
    with pytest.raises(BadSynthetic) as caught:
        load_synthetic(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_flood_needs_its_tenant() -> None:
    """A flood of somebody without a share is a mistake of the file."""
    with pytest.raises(BadSynthetic, match="'nobody'"):
        generate(spec(floods=(Flood(tenant="nobody", from_s=1, until_s=2, factor=2),)), tenants=TWO)
    with pytest.raises(BadSynthetic, match="no arrival"):
        generate(spec(rate_rps=1e-9))


BASE = generate(spec(duration_s=100.0, prompt=Uniform(low=1, high=1000)), seed=9)


@given(st.floats(0.1, 50))
def test_load_divides_the_gaps(factor: float) -> None:
    """The same requests in the same order, in 1 / factor of the time; and back."""
    loaded = at_load(BASE, factor)
    assert [each.id for each in loaded.arrivals] == [each.id for each in BASE.arrivals]
    assert loaded.duration_s == pytest.approx(BASE.duration_s / factor)
    back = at_load(loaded, 1 / factor)
    assert [each.at_s for each in back.arrivals] == pytest.approx([each.at_s for each in BASE.arrivals])
    assert at_load(BASE, 1) == BASE


@given(st.floats(0, 99), st.floats(0.5, 120))
def test_a_window_begins_at_zero_and_loses_nothing_inside(from_s: float, length_s: float) -> None:
    """A window, what is before it and what is after it are the whole."""
    inside = window(BASE, from_s, from_s + length_s)
    assert len(inside.arrivals) == count(BASE, from_s, from_s + length_s)
    assert all(0 <= each.at_s < length_s + 1e-9 for each in inside.arrivals)
    assert {each.tenant for each in inside.arrivals} == set(inside.tenants)


def test_a_split_is_a_partition() -> None:
    """Tuning has what is before the instant, the rest begins there at 0."""
    tuning, rest = split(BASE, 40)
    assert [each.id for each in tuning.arrivals + rest.arrivals] == [each.id for each in BASE.arrivals]
    assert tuning.duration_s < 40
    assert rest.arrivals[0].at_s < 2
    assert (tuning.name, rest.name) == ("synthetic tuning", "synthetic rest")


@pytest.mark.parametrize("factor", [0.25, 1.0, 2.3])
def test_thinning_changes_the_number_alone(factor: float) -> None:
    """So many times the requests, in the same time; repetitions have ids of their own; the seed decides."""
    changed = thinned(BASE, factor, seed=1)
    assert len(changed.arrivals) == pytest.approx(len(BASE.arrivals) * factor, rel=0.06)
    assert len({each.id for each in changed.arrivals}) == len(changed.arrivals)
    assert changed.duration_s <= BASE.duration_s
    assert [each.at_s for each in changed.arrivals] == sorted(each.at_s for each in changed.arrivals)
    originals = {each.id: each for each in BASE.arrivals}
    for each in changed.arrivals:
        first = originals[each.id.partition("+")[0]]
        assert (each.prompt_tokens, each.tenant) == (first.prompt_tokens, first.tenant)
        assert 0 <= each.at_s - first.at_s <= 1
    assert thinned(BASE, factor, seed=1) == changed


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
def test_impossible_factors_are_refused(factor: float) -> None:
    """Neither load nor thinning takes a factor that is not above 0."""
    with pytest.raises(BadWindow, match="factor above 0"):
        at_load(BASE, factor)
    with pytest.raises(BadWindow, match="factor above 0"):
        thinned(BASE, factor)


def test_an_empty_window_is_refused() -> None:
    """A window past the end, or backwards, and a split that leaves nothing."""
    for span in ((200, 300), (50, 50), (50, 20), (-1, 5), (float("nan"), 5)):
        with pytest.raises(BadWindow, match="window from"):
            window(BASE, *span)
    with pytest.raises(BadWindow):
        split(BASE)  # it is shorter than 20 minutes
    with pytest.raises(BadWindow, match="leaves none"):
        thinned(BASE, 1e-9)


WINDOWS = "client,window_start_s,rate_rps,iat_cv,iat_family,shape,scale\n"
LENGTHS: tuple[Lengths, Lengths] = (Constant(tokens=100), Uniform(low=1, high=50))


def client_windows(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "windows.csv"
    path.write_text(text)
    return path


def test_clients_keep_their_published_rates(tmp_path: Path) -> None:
    """Every client sends its rate in its window, however bursty, and at another total the ratios stay."""
    path = client_windows(
        tmp_path,
        WINDOWS
        + "x,600,5,8.0,Weibull,0,0\ny,600,2,0.05,Gamma,0,0\nx,1200,10,1,Exponential,0,0\nz,1800,9,1,Gamma,0,0\n",
    )
    workload = from_client_windows(path, from_s=600, until_s=1800, lengths=LENGTHS, seed=4)
    assert count(workload, 0, 600, "x") == pytest.approx(3000, rel=0.06)
    assert count(workload, 0, 600, "y") == pytest.approx(1200, rel=0.1)
    assert count(workload, 600, 1200, "x") == pytest.approx(6000, rel=0.05)
    assert sorted(workload.tenants) == ["x", "y"]
    assert [each.at_s for each in workload.arrivals] == sorted(each.at_s for each in workload.arrivals)
    half = from_client_windows(path, from_s=600, until_s=1800, lengths=LENGTHS, rate_rps=4.25, seed=4)
    assert len(half.arrivals) == pytest.approx(5100, rel=0.05)
    assert count(half, 600, 1200, "x") == pytest.approx(3000, rel=0.07)


def test_lengths_of_clients_may_come_in_pairs_from_a_workload(tmp_path: Path) -> None:
    """Then every request has the prompt and the output of one of that workload's."""
    path = client_windows(tmp_path, WINDOWS + "x,0,5,1,Gamma,0,0\n")
    workload = from_client_windows(path, until_s=600, lengths=BASE)
    pairs = {(each.prompt_tokens, each.output_tokens) for each in BASE.arrivals}
    assert {(each.prompt_tokens, each.output_tokens) for each in workload.arrivals} <= pairs


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", None, "empty"),
        ("client,rate_rps\n", 1, "window_start_s, iat_cv, iat_family is missing"),
        (WINDOWS + "x,0,five,1,Gamma,0,0\n", 2, "rate_rps is 'five'"),
        (WINDOWS + "x,0,-5,1,Gamma,0,0\n", 2, "rate_rps is -5"),
        (WINDOWS + "x,0,5,1,Pareto,0,0\n", 2, "iat_family is 'Pareto'"),
        (WINDOWS + "x,-600,5,1,Gamma,0,0\n", 2, "window_start_s is -600"),
        (WINDOWS + ",0,5,1,Gamma,0,0\n", 2, "client is empty"),
        (WINDOWS + "x,0,5,1\n", 2, "4 fields"),
    ],
)
def test_broken_windows_are_refused_with_their_line(tmp_path: Path, text: str, line: int | None, said: str) -> None:
    """As with traces: the file, the line, the value, what would be right."""
    with pytest.raises(BadTrace) as caught:
        from_client_windows(client_windows(tmp_path, text), until_s=600, lengths=LENGTHS)
    assert said in str(caught.value)
    assert caught.value.line == line


def test_a_span_without_clients_is_refused(tmp_path: Path) -> None:
    """No window in the span, a span that is none, and a rate that is none."""
    path = client_windows(tmp_path, WINDOWS + "x,0,5,1,Gamma,0,0\n")
    with pytest.raises(BadSynthetic, match="no client sends"):
        from_client_windows(path, from_s=600, until_s=1200, lengths=LENGTHS)
    with pytest.raises(BadSynthetic, match="a span from 0"):
        from_client_windows(path, from_s=5, until_s=5, lengths=LENGTHS)
    with pytest.raises(BadSynthetic, match="rate_rps is 0"):
        from_client_windows(path, until_s=600, lengths=LENGTHS, rate_rps=0)
