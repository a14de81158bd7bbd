"""What a stack or a role is started with: one frozen object, made by the command line, passed down.

The supervisor hands it to its children as JSON in an environment variable, so that `serve` and `run` cannot drift
apart.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from headgate.errors import HeadgateError

__all__ = ["ROLES", "SETTINGS_VARIABLE", "Settings"]

#: Every kind of process that a stack is made of, in the order of starting.
ROLES = ("ledger", "admission", "scheduler", "worker", "gateway")

SETTINGS_VARIABLE = "HEADGATE_SETTINGS"

_DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo" / "model"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Paths are absolute strings. 0 for a port picks a free one; 0 for a size lets the engine choose."""

    data: str
    model: str = str(_DEMO_MODEL)
    model_name: str = ""  # as clients call it; empty: the name of the model's directory
    nats: str = ""  # empty: a nats-server of our own
    host: str = "127.0.0.1"
    port: int = 8080
    admin_port: int = 8081
    workers: int = 1
    device: str = "auto"  # auto | cpu | cuda | mock
    dtype: str = "auto"
    slots: int = 0
    tokens_per_step: int = 0
    kv_mib: int = 0
    threads: int = 0  # of a CPU worker
    mock_step_ms: float = 0.0  # of every step of the mock device; 0: what its timing model says
    mock_profile: str = ""  # device model that the mock takes its sizes and step times from: a name or a file
    preemption: str = "hybrid"  # none | recompute | swap | tail | hybrid
    force_preempt_every: int = 0
    sample_ratio: float = 1.0

    @property
    def name(self) -> str:
        """The model's public name."""
        return self.model_name or ("headgate-demo" if Path(self.model) == _DEMO_MODEL else Path(self.model).name)

    @property
    def data_dir(self) -> Path:
        return Path(self.data)

    def to_environment(self) -> dict[str, str]:
        return {SETTINGS_VARIABLE: msgspec.json.encode(self).decode()}

    @classmethod
    def from_environment(cls) -> Settings:
        """Raises HeadgateError where the variable is missing or wrong."""
        text = os.environ.get(SETTINGS_VARIABLE, "")
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise HeadgateError(f"{SETTINGS_VARIABLE}={text!r} is not a settings object: {error}") from error
