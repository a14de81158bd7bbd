"""Traces: the formats, what is drawn for them, and what is said of broken ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import BadTenants, BadTrace, SimulatorError
from simulator.records import PREFIX_TOKENS
from simulator.workload import load_mix, load_trace
from simulator.workload.tenants import mix_from_tables

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:46.6805901,396,109
2023-11-16 18:16:00.0000000,879,55
"""
PLAIN = "arrival_s,tenant,prompt_tokens,output_tokens\n0.5,a,10,3\n0.5,b,20,100\n2,a,30,17\n"


def written(tmp_path: Path, text: str | bytes, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def mooncake(*stamps: int, hash_ids: list[int] | None = None) -> str:
    return "".join(
        json.dumps({"timestamp": at, "input_length": 600, "output_length": 5, "hash_ids": hash_ids or [0, i + 1]})
        + "\n"
        for i, at in enumerate(stamps)
    )


def test_azure_stamps_become_seconds_after_the_first(tmp_path: Path) -> None:
    """100 ns are told apart, and the date is not in the way."""
    arrivals = load_trace(written(tmp_path, AZURE)).arrivals
    assert [each.at_s for each in arrivals] == pytest.approx([0.0, 1e-7, 13.31941], abs=1e-9)
    assert [(each.prompt_tokens, each.output_tokens) for each in arrivals] == [(374, 44), (396, 109), (879, 55)]
    assert [each.id for each in arrivals] == ["2", "3", "4"]


def test_azure_of_2024_has_offsets_and_whole_seconds(tmp_path: Path) -> None:
    """The same columns with a time zone, and without a fraction where it is zero."""
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"
        "2024-05-10 00:00:01+00:00,2399,6\n2024-05-10 02:00:01.5+02:00,76,15\n"
    )
    assert [each.at_s for each in load_trace(written(tmp_path, text)).arrivals] == pytest.approx([0, 0.99007, 1.49007])


def test_plain_csv_keeps_instants_tenants_and_the_order_of_equal_arrivals(tmp_path: Path) -> None:
    """Equal arrivals are legal; instants are taken as they stand; only named tenants are in the workload."""
    workload = load_trace(written(tmp_path, PLAIN))
    assert [(each.at_s, each.tenant) for each in workload.arrivals] == [(0.5, "a"), (0.5, "b"), (2.0, "a")]
    assert sorted(workload.tenants) == ["a", "b"]
    assert workload.name == "trace"
    assert workload.duration_s == 2.0


def test_a_csv_may_come_as_spreadsheets_write_it(tmp_path: Path) -> None:
    """A byte-order mark, CRLF, quotes, other columns, blank lines, counts as 10.0: all mean the same."""
    text = '\ufeffother,"Output_Tokens",prompt_tokens,ARRIVAL_S\r\n"x, y","3.0",10,0\r\n\r\nz,4,11, 1.5 \r\n\r\n'
    arrivals = load_trace(written(tmp_path, text)).arrivals
    assert [(each.at_s, each.prompt_tokens, each.output_tokens) for each in arrivals] == [(0, 10, 3), (1.5, 11, 4)]
    assert [each.id for each in arrivals] == ["2", "4"]


@pytest.mark.parametrize("text", [AZURE, PLAIN, mooncake(0, 3000, 6000)])
def test_gzip_is_the_same_trace(tmp_path: Path, text: str) -> None:
    """Compression is recognised by content, whatever the file is called."""
    plain = load_trace(written(tmp_path, text, "trace.csv"))
    packed = load_trace(written(tmp_path, gzip.compress(text.encode()), "trace.csv.gz"))
    misnamed = load_trace(written(tmp_path, gzip.compress(text.encode()), "trace"))
    assert packed == plain
    assert misnamed.arrivals == plain.arrivals


def test_mooncake_prefixes_come_with_the_arrivals(tmp_path: Path) -> None:
    """hash_ids are the prefix; a trace without them shares nothing."""
    arrivals = load_trace(written(tmp_path, mooncake(0, 27, 95))).arrivals
    assert [each.prefix for each in arrivals] == [(0, 1), (0, 2), (0, 3)]
    bare = '{"timestamp": 5, "input_length": 3, "output_length": 1}\n'
    assert load_trace(written(tmp_path, bare)).arrivals[0].prefix == ()


TICKS = [3000 * (i // 10) - (i // 10) % 2 * (i > 9) for i in range(400)]  # every other tick is 1 ms early


def test_coarse_stamps_are_spread_over_their_ticks(tmp_path: Path) -> None:
    """Requests of a tick of 3 s arrive anywhere in it, in order; the same for the same seed and without for none."""
    path = written(tmp_path, mooncake(*TICKS))
    literal = load_trace(path, jitter=False).arrivals
    assert [each.at_s for each in literal] == [at / 1e3 for at in TICKS]
    spread = load_trace(path, seed=1).arrivals
    assert [each.at_s for each in spread] == sorted(each.at_s for each in spread)
    moved = {each.id: each.at_s for each in spread}
    shifts = [moved[each.id] - each.at_s for each in literal]
    assert all(0 <= shift < 3.001 for shift in shifts)
    assert sum(shifts) / len(shifts) == pytest.approx(1.5, abs=0.2)
    assert load_trace(path, seed=1).arrivals == spread
    assert load_trace(path, seed=2).arrivals != spread


def test_a_limit_does_not_change_what_is_drawn(tmp_path: Path) -> None:
    """The first requests of a trace have the tenants and instants that they have in the whole of it."""
    path = written(tmp_path, mooncake(*TICKS))
    whole = {each.id: each for each in load_trace(path).arrivals}
    part = load_trace(path, limit=50).arrivals
    assert sorted(int(each.id) for each in part) == list(range(1, 51))
    assert all(whole[each.id] == each for each in part)


@pytest.mark.parametrize("stamps", [[0, 0, 15, 15, 47, 90], [0, 2311, 3105, 9731], [7, 7, 7]])
def test_clock_readings_are_not_moved(tmp_path: Path, stamps: list[int]) -> None:
    """Stamps that are on no coarse grid, or never repeat, are taken at their word."""
    arrivals = load_trace(written(tmp_path, mooncake(*stamps))).arrivals
    assert [each.at_s for each in arrivals] == [at / 1e3 for at in stamps]


def test_a_part_of_a_trace(tmp_path: Path) -> None:
    """`limit` counts requests, `until_s` leaves out what comes then or later; an empty part is an error."""
    path = written(tmp_path, PLAIN)
    assert len(load_trace(path, limit=2).arrivals) == 2
    assert len(load_trace(path, until_s=2).arrivals) == 2
    with pytest.raises(BadTrace, match="no request is left"):
        load_trace(path, until_s=0.5)
    with pytest.raises(SimulatorError, match="limit is 0"):
        load_trace(path, limit=0)


def test_clients_ask_for_a_round_number_of_tokens(tmp_path: Path) -> None:
    """By default the power of two from a tenant's largest output up, from 16; with a factor, one for each output."""
    path = written(tmp_path, PLAIN)
    assert [each.max_tokens for each in load_trace(path).arrivals] == [32, 128, 32]
    assert [each.max_tokens for each in load_trace(path, limit=1).arrivals] == [16]
    assert [each.max_tokens for each in load_trace(path, max_tokens_factor=1).arrivals] == [3, 100, 17]
    assert [each.max_tokens for each in load_trace(path, max_tokens_factor=1.5).arrivals] == [5, 150, 26]
    for factor in (0.5, float("nan"), float("inf")):
        with pytest.raises(SimulatorError, match="max_tokens_factor"):
            load_trace(path, max_tokens_factor=factor)


def test_a_trace_without_tenants_gets_those_of_the_mix_by_share(tmp_path: Path) -> None:
    """Each arrival is drawn a tenant; the shares hold; the seed decides."""
    text = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},5,5\n" for i in range(3000))
    path = written(tmp_path, text)
    mix = mix_from_tables("m", {"tenants": {"big": {"share": 3}, "small": {"share": 1}, "idle": {}}})
    arrivals = load_trace(path, tenants=mix, seed=3).arrivals
    assert sum(each.tenant == "big" for each in arrivals) == pytest.approx(2250, abs=100)
    assert load_trace(path, tenants=mix, seed=3).arrivals == arrivals
    assert load_trace(path, tenants=mix, seed=4).arrivals != arrivals
    assert sorted(load_trace(path, tenants=mix).tenants) == ["big", "small"]
    assert set(load_trace(path).tenants) == set(load_mix("default").tenants)
    with pytest.raises(BadTenants, match="share above 0"):
        load_trace(path, tenants=mix_from_tables("m", {"tenants": {"idle": {}}}))


def test_unknown_tenants_are_refused_with_their_line(tmp_path: Path) -> None:
    """A file of tenants without classes knows those it names, and no other."""
    mix = mix_from_tables("m", {"tenants": {"a": {"tier": "priority"}}})
    with pytest.raises(BadTrace, match=r"line 3: tenant 'b' is not in mix m; it has a") as caught:
        load_trace(written(tmp_path, PLAIN), tenants=mix)
    assert caught.value.line == 3


HEADER = "arrival_s,tenant,prompt_tokens,output_tokens\n"
ENTRY = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", None, "empty"),
        ("\n \n", None, "empty"),
        (HEADER, None, "header but no request"),
        ("arrival_s,tenant,prompt_tokens\n1,a,3\n", 1, "output_tokens is missing"),
        ("TIMESTAMP,GeneratedTokens\n", 1, "contexttokens is missing"),
        ("1.0,a,3,4\n", 1, "arrival_s, prompt_tokens, output_tokens is missing"),
        ("arrival_s,arrival_s,prompt_tokens,output_tokens\n", 1, "arrival_s is there twice"),
        (HEADER + "0,a,5,5\n1,a,five,5\n", 3, "prompt_tokens is 'five'"),
        (HEADER + "0,a,5,5\n\n1,a,5,\n", 4, "output_tokens is empty"),
        (HEADER + "0,a,-5,5\n", 2, "prompt_tokens is -5; a number of tokens cannot be negative"),
        (HEADER + "0,a,0,5\n", 2, "the prompt has 0 tokens"),
        (HEADER + "0,a,5,0\n", 2, "the output has 0 tokens"),
        (HEADER + "0,a,5,5.5\n", 2, "output_tokens is '5.5'"),
        (HEADER + "0,a,nan,5\n", 2, "prompt_tokens is 'nan'"),
        (HEADER + "0,a,5,1_0\n", 2, "output_tokens is '1_0'"),
        (HEADER + "0,a,99999999999,5\n", 2, "wrong unit"),
        (HEADER + f"0,a,{'9' * 400},5\n", 2, "prompt_tokens is '999"),
        (HEADER + "inf,a,5,5\n", 2, "arrival_s is 'inf'"),
        (HEADER + "-1,a,5,5\n", 2, "arrival_s is -1.0; an arrival is at 0 or later"),
        (HEADER + "0,a,5,5\n2,a,5,5\n1.5,a,5,5\n", 4, "arrival_s 1.5 comes after 2"),
        (HEADER + "0,,5,5\n", 2, "tenant is empty"),
        (HEADER + "0,a,5\n", 2, "3 fields"),
        (HEADER + "0,a,5,5,5\n", 2, "5 fields"),
        (HEADER + '0,"a,5,5\n', 2, "close what is quoted"),
        (HEADER.encode() + b"0,a,5,5\n0,\xff,5,5\n", 3, "not UTF-8"),
        (AZURE + "2023-11-16 18:15:59.9,1,1\n", 5, "timestamp 2023-11-16 18:15:59.9 comes after"),
        (AZURE + "yesterday,1,1\n", 5, "timestamp is 'yesterday'"),
        (AZURE + "2023-11-16 18:16:00.,1,1\n", 5, "timestamp is '2023-11-16 18:16:00.'"),
        (AZURE + "2023-11-16,1,1\n", 5, "timestamp is '2023-11-16'"),
        (ENTRY + "{'timestamp': 1}\n", 2, "not JSON"),
        (ENTRY + "[0, 1]\n", 2, "no JSON object"),
        (ENTRY + "17\n", 2, "no JSON object"),
        ('{"timestamp": 0, "input_length": 600}\n', 1, "output_length is missing"),
        (ENTRY.replace("600", '"600"'), 1, "input_length is '600'"),
        (ENTRY.replace("600", "-6"), 1, "input_length is -6"),
        (ENTRY.replace("600", "true"), 1, "input_length is True"),
        (ENTRY.replace(": 5,", ": 0,"), 1, "the output has 0 tokens"),
        (ENTRY.replace(": 5,", ": 2.5,"), 1, "output_length is 2.5"),
        (ENTRY.replace("[0, 1]", "[0, 1, 2]"), 1, "3 blocks of 512 tokens"),
        (ENTRY.replace("[0, 1]", '[0, "1"]'), 1, "hash_ids has '1'"),
        (ENTRY.replace("[0, 1]", "[0, 1.5]"), 1, "hash_ids has 1.5"),
        (ENTRY.replace("[0, 1]", "7"), 1, "hash_ids is 7"),
        (ENTRY.replace(": 0,", ': "0",'), 1, "timestamp is '0'"),
        (ENTRY.replace(": 0,", ": -3,"), 1, "timestamp is -3.0"),
        (ENTRY.replace(": 0,", ": 1" + "0" * 400 + ","), 1, "timestamp is 1"),
        ("[" * 100_000, 1, "not JSON"),
        (ENTRY + "\x00\n", 2, "not JSON"),
        (HEADER + "0,a,5,5\n\x00,a,5,5\n", 3, "arrival_s is '\\x00'"),
        (HEADER + f'0,"{"a" * 200_000}",5,5\n', 2, "no line of CSV"),
        (mooncake(0, 3000, 6000, 4500), 4, "timestamp 4500 comes after 6000"),
    ],
)
def test_a_broken_trace_is_refused_with_its_line(
    tmp_path: Path, text: str | bytes, line: int | None, said: str
) -> None:
    """The error has the file, the line of the offender, its value, and what would be right."""
    path = written(tmp_path, text)
    with pytest.raises(BadTrace) as caught:
        load_trace(path)
    assert said in str(caught.value)
    assert caught.value.line == line
    assert str(path) in str(caught.value)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    """No file, a folder, and gzip that is cut short or damaged."""
    with pytest.raises(BadTrace, match="No such file"):
        load_trace(tmp_path / "none.csv")
    with pytest.raises(BadTrace, match="cannot be read"):
        load_trace(tmp_path)
    packed = gzip.compress((HEADER + "".join(f"{i},a,{i % 97 + 1},5\n" for i in range(5000))).encode())
    with pytest.raises(BadTrace, match="ends in the middle") as caught:
        load_trace(written(tmp_path, packed[: len(packed) // 2]))
    assert caught.value.line is not None
    assert caught.value.line > 1
    with pytest.raises(BadTrace, match="gzip"):
        load_trace(written(tmp_path, packed[:500] + bytes(100) + packed[600:]))
    with pytest.raises(BadTrace, match="gzip"):
        load_trace(written(tmp_path, packed[:-8] + bytes(8)))  # the checksum


def test_empty_requests_can_be_left_out(tmp_path: Path) -> None:
    """Some services record requests that generated nothing."""
    path = written(tmp_path, HEADER + "0,a,5,0\n1,a,0,5\n2,a,5,5\n")
    assert [each.id for each in load_trace(path, skip_empty=True).arrivals] == ["4"]


requests = st.lists(
    st.tuples(
        st.integers(0, 10**9),
        st.sampled_from(["a", "b,c", 'q"uote', "ü 1"]),
        st.integers(1, 10**6),
        st.integers(1, 10**5),
    ),
    min_size=1,
    max_size=30,
).map(lambda entries: sorted(entries, key=lambda entry: entry[0]))


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@given(requests)
def test_plain_csv_comes_back_as_written(tmp_path_factory: pytest.TempPathFactory, entries: list[tuple]) -> None:  # type: ignore[type-arg]
    """Whatever a valid trace says is in the workload, in the order of the file."""
    rows = "".join(f"{at / 1e3!r},{quoted(who)},{prompt},{output}\n" for at, who, prompt, output in entries)
    arrivals = load_trace(written(tmp_path_factory.mktemp("t"), HEADER + rows)).arrivals
    assert [(each.at_s, each.tenant, each.prompt_tokens, each.output_tokens) for each in arrivals] == [
        (at / 1e3, *rest) for at, *rest in entries
    ]
    assert all(each.max_tokens >= each.output_tokens for each in arrivals)


@given(requests)
def test_mooncake_comes_back_as_written(tmp_path_factory: pytest.TempPathFactory, entries: list[tuple]) -> None:  # type: ignore[type-arg]
    """Lengths, prefixes and (without jitter) instants are those of the file."""
    lines = [
        {
            "timestamp": at,
            "input_length": n,
            "output_length": out,
            "hash_ids": list(range(min(9, -(-n // PREFIX_TOKENS)))),
        }
        for at, _, n, out in entries
    ]
    text = "".join(json.dumps(each) + "\n" for each in lines)
    arrivals = load_trace(written(tmp_path_factory.mktemp("t"), text), jitter=False).arrivals
    assert [[each.at_s, each.prompt_tokens, each.output_tokens, list(each.prefix)] for each in arrivals] == [
        [each["timestamp"] / 1e3, each["input_length"], each["output_length"], each["hash_ids"]]  # type: ignore[operator]
        for each in lines
    ]


@given(st.binary(max_size=300), st.sampled_from([AZURE, PLAIN, mooncake(0, 3000), ""]), st.integers(0, 200))
def test_damage_is_a_bad_trace_or_a_trace(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes, text: str, where: int
) -> None:
    """Whatever is in the file, the answer is a sound workload or BadTrace, never another error."""
    content = text.encode()
    path = written(tmp_path_factory.mktemp("t"), content[:where] + damage + content[where + len(damage) :])
    try:
        workload = load_trace(path)
    except BadTrace:
        return
    assert workload.arrivals == sorted(workload.arrivals, key=lambda each: each.at_s)
    for each in workload.arrivals:
        assert each.prompt_tokens >= 1
        assert 1 <= each.output_tokens <= each.max_tokens
        assert each.tenant in workload.tenants
