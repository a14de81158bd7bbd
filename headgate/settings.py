"""What a stack or a role is started with: one frozen object, made by the command line, passed down.

The supervisor hands it to its children as JSON in an environment variable, so that `serve` and `run` cannot drift
apart.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from headgate.errors import HeadgateError
from policies.catalog import CATALOG, DEFAULT, PolicySet, policy_set

__all__ = ["ROLES", "SETTINGS_VARIABLE", "Settings", "live_policies"]

#: Every kind of process that a stack is made of, in the order of starting.
ROLES = ("ledger", "admission", "scheduler", "worker", "gateway")

SETTINGS_VARIABLE = "HEADGATE_SETTINGS"

#: Parts of a policy that are fields of its `SchedulerConfig`.
_PARTS = ("batching", "order", "preemption")

_DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo" / "model"


def live_policies() -> list[PolicySet]:
    """Those that a running stack can serve by: requests stay where they are placed."""
    return [policies for policies in CATALOG.values() if policies.roles == "mixed" and not policies.migration]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Paths are absolute strings. 0 for a port picks a free one; 0 for a size lets the engine choose."""

    data: str
    model: str = str(_DEMO_MODEL)
    model_name: str = ""  # as clients call it; empty: the name of the model's directory
    instance: str = ""  # what makes this process unique in its role; empty: host and process id
    nats: str = ""  # empty: a nats-server of our own
    nats_monitor: str = ""  # URLs of the HTTP monitors of NATS servers, commas between; empty: nobody asks them
    nats_password_file: str = ""  # of the user in `nats`; empty: the URL has it
    host: str = "127.0.0.1"
    port: int = 8080
    admin_port: int = 8081
    ops_port: int | None = None  # health, readiness and metrics of this very process; None: not served
    drain_s: float = 8.0  # so long may what is under way go on after SIGTERM
    ledger: str = ""  # URL of a PostgreSQL database; empty: SQLite in `data`
    ledger_password_file: str = ""
    jaeger_url: str = ""  # query API of a Jaeger; empty: the spans in `data`
    workers: int = 1
    device: str = "auto"  # auto | cpu | cuda | mock
    dtype: str = "auto"
    slots: int = 0
    tokens_per_step: int = 0
    kv_mib: int = 0
    threads: int = 0  # of a CPU worker
    mock_step_ms: float = 0.0  # of every step of the mock device; 0: what its timing model says
    mock_profile: str = ""  # device model that the mock takes its sizes and step times from: a name or a file
    policy: str = DEFAULT  # a name of policies.catalog ...
    batching: str | None = None  # ... with these parts of it changed; None: as it has them
    order: str | None = None
    admission: str | None = None
    preemption: str | None = None
    force_preempt_every: int = 0
    sample_ratio: float = 1.0

    @property
    def name(self) -> str:
        """The model's public name."""
        return self.model_name or ("headgate-demo" if Path(self.model) == _DEMO_MODEL else Path(self.model).name)

    @property
    def policies(self) -> PolicySet:
        """How requests are decided on.

        :raises HeadgateError: there is no such policy, or it cannot serve live.
        """
        try:
            base = policy_set(self.policy)
        except ValueError as error:
            raise HeadgateError(str(error)) from None
        if base not in live_policies():
            raise HeadgateError(
                f"policy {base.name!r} moves requests between workers, which is only simulated yet (headgate simulate "
                f"--policy {base.name}): KV does not travel between live workers"
            )
        tables: dict[str, Any] = msgspec.to_builtins(base)
        tables["scheduler"] |= {name: value for name in _PARTS if (value := getattr(self, name)) is not None}
        tables["scheduler"]["force_preempt_every"] = self.force_preempt_every
        if self.admission is not None:
            tables["admission"]["kind"] = self.admission
        try:
            return msgspec.convert(tables, PolicySet)
        except msgspec.ValidationError as error:
            raise HeadgateError(f"policy {base.name!r}: {error}") from None

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
