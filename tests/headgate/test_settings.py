"""What a role is started with survives the way from the supervisor to its child."""

from __future__ import annotations

from pathlib import Path

import pytest

from headgate.errors import HeadgateError
from headgate.settings import SETTINGS_VARIABLE, Settings


def test_settings_travel_through_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A child reads exactly what its supervisor wrote."""
    settings = Settings(data=str(tmp_path), workers=3, device="mock", preemption="swap")
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.from_environment() == settings


def test_broken_settings_are_refused_with_their_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable and what it holds."""
    monkeypatch.setenv(SETTINGS_VARIABLE, '{"data": 5}')
    with pytest.raises(HeadgateError, match=r'HEADGATE_SETTINGS=.*"data": 5'):
        Settings.from_environment()


def test_a_model_is_called_by_its_directory_unless_told(tmp_path: Path) -> None:
    """The public name is the one given, else the directory's; the demo model has one of its own."""
    assert Settings(data="d").name == "headgate-demo"
    assert Settings(data="d", model=str(tmp_path / "Qwen3-0.6B")).name == "Qwen3-0.6B"
    assert Settings(data="d", model=str(tmp_path / "x"), model_name="chat").name == "chat"
