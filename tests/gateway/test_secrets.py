from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.keys import new_admin_key, parse_admin_key
from gateway.secrets import ADMIN_KEY_FILE, BadSecret, check_admin_key, load_secrets


def test_the_first_start_makes_the_secrets_and_the_next_reads_them(tmp_path: Path) -> None:
    """Else a restart would invalidate every key."""
    first = load_secrets(tmp_path / "data", environ={})
    assert load_secrets(tmp_path / "data", environ={}) == first
    assert first != load_secrets(tmp_path / "other", environ={})
    assert parse_admin_key(first.admin_key)
    assert len({first.pepper, first.cache_salt, first.admin_key.encode()}) == 3


def test_the_files_may_be_read_by_their_owner_alone(tmp_path: Path) -> None:
    """Mode 0600, and nothing half-made is left beside them."""
    load_secrets(tmp_path, environ={})
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {
        ADMIN_KEY_FILE: 0o600,
        "pepper.key": 0o600,
        "cache-salt.key": 0o600,
    }


def test_a_file_that_others_may_read_stops_the_start(tmp_path: Path) -> None:
    """It may have been read already; the message says what to do and not what is in it."""
    secret = load_secrets(tmp_path, environ={}).admin_key
    (tmp_path / ADMIN_KEY_FILE).chmod(0o644)
    with pytest.raises(BadSecret, match="chmod 600") as caught:
        load_secrets(tmp_path, environ={})
    assert secret not in str(caught.value)


def test_the_environment_comes_first_and_writes_no_file(tmp_path: Path) -> None:
    """Secrets from a manager must not be copied to disk."""
    admin = new_admin_key()
    environ = {
        "HEADGATE_PEPPER": "0123456789abcdef" * 2,
        "HEADGATE_CACHE_SALT": "fedcba9876543210" * 2,
        "HEADGATE_ADMIN_KEY": admin,
    }
    loaded = load_secrets(tmp_path, environ=environ)
    assert (loaded.pepper, loaded.admin_key) == (environ["HEADGATE_PEPPER"].encode(), admin)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variable", ["HEADGATE_PEPPER", "HEADGATE_CACHE_SALT", "HEADGATE_ADMIN_KEY"])
@pytest.mark.parametrize("weak", ["", "secret", "a" * 64, "abc" * 20])
def test_weak_secrets_stop_the_start(tmp_path: Path, variable: str, weak: str) -> None:
    """An empty variable too: it must not fall back to a file in silence."""
    with pytest.raises(BadSecret):
        load_secrets(tmp_path, environ={variable: weak})


@pytest.mark.parametrize(
    "weak",
    ["admin", "sk-hg-admin-", "sk-hg-admin-password", "sk-hg-admin-" + "a" * 50, "sk-hg-0123456789ab-" + "x" * 49],
)
def test_weak_admin_keys_are_refused_without_being_repeated(weak: str) -> None:
    """Guessable, or of the tenants' class; logs must not hold it."""
    with pytest.raises(BadSecret) as caught:
        check_admin_key(weak)
    secret = weak.removeprefix("sk-hg-admin-")
    assert secret in ("", "admin") or secret not in str(caught.value)


def test_an_admin_key_of_the_operators_own_is_taken(tmp_path: Path) -> None:
    """If it is long and varied."""
    check_admin_key("sk-hg-admin-5d41402abc4b2a76b9719d911017c592")


def test_secrets_do_not_show_when_printed(tmp_path: Path) -> None:
    """A traceback or a log line may hold the object."""
    secrets = load_secrets(tmp_path, environ={})
    assert secrets.admin_key not in repr(secrets)
    assert secrets.pepper.decode() not in repr(secrets)


def test_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    """The first link wins, the others read it."""
    program = (
        "from gateway.secrets import load_secrets; "
        f"s = load_secrets({str(tmp_path)!r}, environ={{}}); print(s.admin_key, s.pepper)"
    )
    started = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({process.communicate(timeout=60)[0] for process in started}) == 1
    assert [process.returncode for process in started] == [0, 0, 0]
