"""Device models: those that are shipped, files of others, and the fit of step times."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.mock import MockEngine
from policies.step_time import Features, step_time
from policies.vocabulary import BLOCK_SIZE, StepTimeCoefficients
from simulator.devices import device_from_tables, device_names, load_device, scaled_kv
from simulator.devices.fit import Measured, errors_of, fit, main, medians, read_measurements
from simulator.errors import BadDevice, BadTrace
from simulator.records import Device

GOOD = {
    "name": "d",
    "blocks": 100,
    "host_blocks": 0,
    "block_bytes": 1024,
    "slots": 4,
    "tokens_per_step": 256,
    "max_context": 1600,
    "swap_bytes_per_s": 1e9,
    "step_time": {"floor_s": 0.01, "base_s": 0.0, "per_token_s": 1e-4},
}


def toml(device: Device) -> str:
    """The documented form, as another program would write it."""
    tables = msgspec.to_builtins(device)
    tables["step_time"] = msgspec.structs.asdict(device.step_time)
    step_times = tables.pop("step_time")
    lines = [f"{name} = {json.dumps(value)}" for name, value in tables.items()]
    return "\n".join([*lines, "[step_time]", *(f"{name} = {value!r}" for name, value in step_times.items())])


@pytest.mark.parametrize("name", device_names())
def test_shipped_devices_load_under_their_own_names(name: str) -> None:
    """Every shipped file is sound, and its name is that of its file."""
    device = load_device(name)
    assert device.name == name
    assert device.source
    assert device.max_context <= device.blocks * BLOCK_SIZE


def test_the_devices_of_the_experiments_are_shipped() -> None:
    """These names are used by experiments and documents."""
    assert {"mock", "llama2-70b-h100-tp4", "llama2-70b-h100-tp8", "llama2-70b-a100-tp8", "opt-13b-a100"} <= set(
        device_names()
    )


def test_the_mock_is_the_mock_engine() -> None:
    """The shipped mock is what a mock worker tells of itself by default."""
    spec, device = MockEngine.load().spec, load_device("mock")
    for field in ("blocks", "host_blocks", "block_bytes", "slots", "tokens_per_step", "max_context", "step_time"):
        assert getattr(device, field) == getattr(spec, field), field
    assert device.swap_bytes_per_s == spec.swap_bytes_per_s


@pytest.mark.parametrize(
    ("name", "gpus", "parameters", "token_bytes"),
    [
        ("llama2-70b-h100-tp4", 4, 68.98e9, 2 * 80 * 8 * 128 * 2),
        ("llama2-70b-h100-tp8", 8, 68.98e9, 2 * 80 * 8 * 128 * 2),
        ("llama2-70b-a100-tp8", 8, 68.98e9, 2 * 80 * 8 * 128 * 2),
        ("bloom-176b-h100-tp8", 8, 176.25e9, 2 * 70 * 112 * 128 * 2),
        ("opt-13b-a100", 1, 12.85e9, 2 * 40 * 40 * 128 * 2),
    ],
)
def test_kv_is_what_memory_leaves_beside_the_weights(name: str, gpus: int, parameters: float, token_bytes: int) -> None:
    """Blocks are those of 90 % of the GPUs' memory less the weights, as the heads of the files say."""
    device = load_device(name)
    assert device.block_bytes == token_bytes * BLOCK_SIZE
    assert device.blocks == int((0.9 * gpus * 80 * 2**30 - 2 * parameters) // device.block_bytes)


def test_opt_13b_keeps_to_the_published_formulas() -> None:
    """The fit of mixed steps stays near DistServe's separate formulas for prefills and decodes."""
    c = load_device("opt-13b-a100").step_time
    for length in (128, 512, 1024, 2048):
        published = (18.1025 + 0.101912 * length + 7.12226e-6 * length**2) / 1e3
        assert step_time(c, length, length**2 / 2, 0, 1) == pytest.approx(published, rel=0.04)
    for rows in (1, 16, 64):
        published = (19.9347 + 6.26936e-4 * rows * 512 + 0.038507 * rows) / 1e3
        assert step_time(c, rows, 0, rows * 512, rows) == pytest.approx(published, rel=0.08)


def test_the_devices_of_one_role_are_the_published_formulas() -> None:
    """Prefills exactly, decodes to the 8 % that the two published slopes of context differ."""
    prefill, decode = load_device("opt-13b-a100-prefill").step_time, load_device("opt-13b-a100-decode").step_time
    lengths = (100, 700)
    published = (18.1025 + 0.101912 * sum(lengths) + 7.12226e-6 * sum(n * n for n in lengths)) / 1e3
    assert step_time(prefill, 800, sum(n * n / 2 for n in lengths), 0, 2) == pytest.approx(published, rel=1e-4)
    assert step_time(decode, 50, 0, 20_000, 50) == pytest.approx(
        (19.9347 + 6.26936e-4 * 20_000 + 0.038507 * 50) / 1e3, rel=1e-4
    )
    assert step_time(decode, 200, 0, 20_000, 200) == pytest.approx(
        (7.16619 + 5.798e-4 * 20_000 + 0.158311 * 200) / 1e3, rel=0.03
    )


coefficients = st.floats(0, 1, allow_nan=False).map(lambda value: round(value, 12))


@given(
    st.builds(
        Device,
        name=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
        blocks=st.integers(1, 10**6),
        host_blocks=st.integers(0, 10**6),
        block_bytes=st.integers(1, 10**8),
        slots=st.integers(1, 4096),
        tokens_per_step=st.integers(1, 10**5),
        max_context=st.integers(1, BLOCK_SIZE),
        swap_bytes_per_s=st.floats(1, 1e13),
        transfer_bytes_per_s=st.floats(1, 1e13),
        step_time=st.builds(
            StepTimeCoefficients,
            st.floats(1e-6, 1),
            coefficients,
            coefficients,
            coefficients,
            coefficients,
            coefficients,
        ),
    )
)
def test_a_device_comes_back_from_its_file(tmp_path_factory: pytest.TempPathFactory, device: Device) -> None:
    """What is written in the documented form is read as it was, from TOML and from JSON."""
    path = tmp_path_factory.mktemp("device") / "file"
    path.write_text(toml(device))
    assert load_device(path) == device
    tables = msgspec.to_builtins(device) | {"step_time": msgspec.structs.asdict(device.step_time)}
    path.write_text(json.dumps(tables))
    assert load_device(path) == device


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks": 0}, "blocks is 0"),
        ({"blocks": True}, "blocks is True"),
        ({"slots": 1.5}, "slots is 1.5"),
        ({"slots": "many"}, "slots is 'many'"),
        ({"swap_bytes_per_s": 0}, "swap_bytes_per_s is 0"),
        ({"swap_bytes_per_s": float("nan")}, "swap_bytes_per_s is nan"),
        ({"transfer_bytes_per_s": float("inf")}, "transfer_bytes_per_s is inf"),
        ({"max_context": 1601}, "max_context is 1601; 100 blocks hold at most 1600"),
        ({"name": 3}, "name is 3"),
        ({"block": 3}, "unknown key block"),
        ({"step_time": 3}, "step_time is 3"),
        ({"step_time": {"floor_s": 1.0, "base_s": 0.0}}, "step_time: per_token_s is missing"),
        ({"step_time": {"floor_s": 1.0, "base_s": 0.0, "per_token_s": -1.0}}, "step_time.per_token_s is -1.0"),
        ({"step_time": {"floor_s": 0.0, "base_s": 0.0, "per_token_s": 0.0}}, "no time"),
        ({"step_time": {"floor": 0.0, "base_s": 0.0, "per_token_s": 0.0}}, "step_time: unknown key floor"),
    ],
)
def test_what_is_wrong_with_a_device_is_named(change: dict[str, object], said: str) -> None:
    """A wrong device file is refused with the key and the value."""
    with pytest.raises(BadDevice, match=said):
        device_from_tables("mine.toml", GOOD | change)


@pytest.mark.parametrize("key", list(GOOD))
def test_a_missing_key_is_named(key: str) -> None:
    """Only `source` and the link between workers may be absent."""
    with pytest.raises(BadDevice, match=f"mine.toml: {key} is missing"):
        device_from_tables("mine.toml", {name: value for name, value in GOOD.items() if name != key})


def test_an_unknown_device_is_told_which_there_are(tmp_path: Path) -> None:
    """A name that is neither shipped nor a file is answered with the names; a broken file with where it breaks."""
    with pytest.raises(BadDevice, match="llama2-70b-h100-tp4"):
        load_device("llama3")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n")
    with pytest.raises(BadDevice, match="line 1"):
        load_device(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(BadDevice, match="cannot be read"):
        load_device(broken)
    with pytest.raises(BadDevice, match="cannot be read"):
        load_device(tmp_path)


def test_kv_is_scaled_with_the_context_that_fits() -> None:
    """A quarter of the blocks; context no longer than they hold; everything else as it was."""
    device = load_device("opt-13b-a100")
    quarter = scaled_kv(device, 0.25)
    assert quarter.blocks == round(device.blocks / 4)
    assert quarter.max_context == quarter.blocks * BLOCK_SIZE
    assert (quarter.slots, quarter.step_time, quarter.host_blocks) == (
        device.slots,
        device.step_time,
        device.host_blocks,
    )
    assert scaled_kv(device, 1) == device
    for share in (0, -1, float("nan"), float("inf")):
        with pytest.raises(BadDevice, match="factor above 0"):
            scaled_kv(device, share)


TRUE = StepTimeCoefficients(0.03, 0.01, 1e-4, 6e-9, 1e-7, 2e-4)


def measured_steps() -> list[Measured]:
    """Prefills and decodes that take exactly what TRUE says."""
    prefills = [Features(rows * n, rows * n * n / 2, 0, rows) for n in (64, 512, 2048, 8192) for rows in (1, 2)]
    decodes = [Features(rows, 0.0, rows * n, rows) for n in (128, 4096) for rows in (1, 8, 64, 400)]
    return [Measured(each, step_time(TRUE, *each)) for each in prefills + decodes]


def test_the_fit_finds_the_coefficients_that_made_the_steps() -> None:
    """Without noise the coefficients come back, the floor among them."""
    found = fit(measured_steps())
    assert found.mape < 1e-3
    for name in TRUE.__struct_fields__:
        assert getattr(found.coefficients, name) == pytest.approx(getattr(TRUE, name), rel=0.02), name


def test_the_fit_keeps_the_least_cost_of_context() -> None:
    """Where steps do not tell rows from context apart, reading KV still costs what the memory allows."""
    alike = [each for each in measured_steps() if not each.decode or each.features.context < 128 * 401]
    found = fit(alike, least_per_context_s=5e-7)
    assert found.coefficients.per_context_s >= 5e-7


def write_measurements(path: Path) -> None:
    """Lines in the form of the published measurements."""
    lines = ["model,hardware,prompt_size,batch_size,token_size,prompt_time,token_time,tensor_parallel"]
    for prompt in (128, 512, 2048):
        for batch in (1, 2, 16):
            prompt_s = step_time(TRUE, batch * prompt, batch * prompt**2 / 2, 0, batch)
            token_s = step_time(TRUE, batch, 0, batch * (prompt + 64), batch)
            lines += [f"m,h,{prompt},{batch},128,{prompt_s * 1e3},{token_s * 1e3},4"] * 2
    path.write_text("\n".join(lines) + "\n")


def test_measurements_become_steps_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line is a prefill and a decode, but for prefills beyond the bound; the command prints a table that loads."""
    path = tmp_path / "m.csv"
    write_measurements(path)
    steps = read_measurements(path, model="m", hardware="h", tensor_parallel=4, max_tokens=4096)
    assert len(steps) == 18 + 14  # the prefills of 16 x 512 and 16 x 2,048 tokens are too long
    assert len(medians(steps)) == 9 + 7
    assert errors_of(TRUE, steps) < 1e-12
    main([str(path), "--model", "m", "--hardware", "h", "--tensor-parallel", "4"])
    printed = capsys.readouterr().out
    assert "MAPE: prefill 0.0%" in printed
    file = tmp_path / "d.toml"
    plain = {name: value for name, value in GOOD.items() if name != "step_time"}
    file.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in plain.items()) + "\n" + printed)
    assert load_device(file).step_time.floor_s == pytest.approx(TRUE.floor_s, rel=0.02)


def test_measurements_without_the_configuration_say_which_there_are(tmp_path: Path) -> None:
    """A configuration that was not measured, and a table without a column, are refused."""
    path = tmp_path / "m.csv"
    write_measurements(path)
    with pytest.raises(BadTrace, match="there are m h 4"):
        read_measurements(path, model="m", hardware="h", tensor_parallel=8)
    path.write_text("model,hardware\nm,h\n")
    with pytest.raises(BadTrace, match="prompt_size"):
        read_measurements(path, model="m", hardware="h", tensor_parallel=4)
