from __future__ import annotations

import datetime
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from headgate.__main__ import COMMANDS, main
from headgate.client_options import Duration, Instant

OURS = ["tenants", "keys", "top", "usage", "audit", "trace"]
LEAVES = [
    ["tenants", "create"],
    ["tenants", "show"],
    ["tenants", "list"],
    ["tenants", "set"],
    ["tenants", "delete"],
    ["keys", "create"],
    ["keys", "list"],
    ["keys", "rotate"],
    ["keys", "revoke"],
    ["top"],
    ["usage"],
    ["audit"],
    ["trace"],
]


def _help(*arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments, "--help"], prog_name="headgate")
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("arguments", LEAVES, ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(arguments: list[str]) -> None:
    """The example begins with the command itself."""
    text = " ".join(_help(*arguments).split())
    assert f"Example: headgate {' '.join(arguments)}" in text
    assert "--json" in text
    assert "--data" in text


def test_help_lists_every_command() -> None:
    """In the order in which one needs them."""
    text = _help()
    assert [name for name in COMMANDS if f"\n  {name} " in text] == list(COMMANDS)


def test_help_imports_no_command() -> None:
    """It must answer at once, and without the parts that are not installed."""
    program = (
        "import sys\n"
        "from headgate.__main__ import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = [name for name in ('httpx', 'rich', 'opentelemetry', 'torch', 'starlette') if name in sys.modules]\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("name", OURS)
def test_clients_of_a_stack_never_load_the_engine(name: str) -> None:
    """They work where it is not installed."""
    program = f"import sys, headgate.commands.{name}; sys.exit('torch' in sys.modules or 'gpu_worker' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1.5h", 5400), ("30d", 2_592_000), ("2w", 1_209_600), ("0", 0)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    """A number and a unit; 0 needs none."""
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "-1h", "1 h", "1y", "nan", "inf", "9" * 30 + "d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """With the forms that would be right."""
    with pytest.raises(click.BadParameter, match="such as 90s"):
        Duration().convert(text, None, None)


def test_instants_are_read_in_utc_where_they_have_no_zone() -> None:
    """A date is its midnight; a duration is from now."""
    assert Instant().convert("2027-01-01", None, None) == datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
    assert Instant().convert("2027-01-01T02:00+02:00", None, None).timestamp() == 1798761600.0
    ahead = Instant().convert("2h", None, None) - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(minutes=119) < ahead <= datetime.timedelta(hours=2)


@pytest.mark.parametrize("text", ["soon", "2027-13-01", "999999999w"])
def test_what_is_no_instant_is_refused(text: str) -> None:
    """Also one beyond the calendar."""
    with pytest.raises(click.BadParameter, match="such as 2027-01-01"):
        Instant().convert(text, None, None)
