"""The file format of a step-exact workload, and what a schedule of it is.

A time step `t` is the interval [t, t + 1). All labels are inclusive: who finishes at 11 is over at instant 12. A
request that arrives at `a` is seen by the decision at the beginning of step `a`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from simulator.errors import SimulatorError

__all__ = ["BadSteps", "Schedule", "Served", "StepRequest", "StepWorkload", "Strategy", "example_names", "load_steps"]

#: The workloads that are shipped, loaded by the names of their files.
EXAMPLES = Path(__file__).parent / "examples"
Strategy = Literal["static", "dynamic", "continuous", "chunked", "disaggregated"]


class BadSteps(SimulatorError):
    """A step-exact workload that cannot be read, with the key that is wrong."""


class StepRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request: `prefill` columns for its prompt, then `decode` columns."""

    arrive: Annotated[int, msgspec.Meta(ge=0)]
    prefill: Annotated[int, msgspec.Meta(ge=1)]
    decode: Annotated[int, msgspec.Meta(ge=0)]


class StepWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """A workload and the few figures of its schedules. Other keys of the file (labels, known schedules) are left alone.

    `transfer` and `serial_prefill` are of the disaggregated schedule: the columns that KV takes from the prefill to the
    decode instance, and whether prompts are prefilled one by one instead of together.
    """

    workload: Annotated[dict[str, StepRequest], msgspec.Meta(min_length=1)]
    batch: Annotated[int, msgspec.Meta(ge=1)]
    timeout: Annotated[int, msgspec.Meta(ge=0)] = 2
    transfer: Annotated[int, msgspec.Meta(ge=0)] = 0
    serial_prefill: bool = False

    def in_order(self) -> list[tuple[str, StepRequest]]:
        """By arrival; ties as in the file."""
        return sorted(self.workload.items(), key=lambda item: item[1].arrive)


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of one request. None: it has no such column."""

    arrive: int
    start: int
    prefill_end: int
    first_decode: int | None
    finish: int
    queue: int  # columns before its first
    ttft: int  # to the end of its prefill, which samples the first output
    ttft_decode: int | None  # to the end of its first decode column
    e2e: int
    holes: int  # columns in which it was stalled


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Who ran when. A row begins at column 0: blank before the arrival, then one mark a column.

    `P` prefill, `d` decode, `.` waiting, `#` running but stalled by the prefill of another, `x` its KV is on the way.
    """

    strategy: str
    batch: int
    rows: dict[str, str]
    req: dict[str, Served | None]  # None: never served

    @property
    def makespan(self) -> int:
        """Columns until the last is over."""
        return max((served.finish + 1 for served in self.req.values() if served), default=0)

    @property
    def useful_share(self) -> float:
        """Of all slots in all columns, those in which a request was served."""
        useful = sum(row.count("P") + row.count("d") for row in self.rows.values())
        return useful / (self.batch * self.makespan) if self.makespan else 0.0


def example_names() -> list[str]:
    """Names of the workloads that are shipped."""
    return sorted(path.stem for path in EXAMPLES.glob("*.json"))


def load_steps(name_or_path: str | Path) -> StepWorkload:
    """A workload that is shipped, by its name, or one from a file (JSON).

    :raises BadSteps: if it cannot be read, with the key that is wrong.
    """
    shipped = EXAMPLES / f"{name_or_path}.json"
    path = shipped if str(name_or_path) in example_names() else Path(name_or_path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadSteps(f"{path}: cannot be read: {error.strerror}; shipped are {', '.join(example_names())}") from error
    try:
        return msgspec.json.decode(data, type=StepWorkload)
    except msgspec.DecodeError as error:
        raise BadSteps(f"{path}: {error}; a workload is {_EXAMPLE}") from error


def _example() -> str:
    example: dict[str, Any] = {"workload": {"A": {"arrive": 0, "prefill": 2, "decode": 4}}, "batch": 4, "timeout": 2}
    return msgspec.json.encode(example).decode()


_EXAMPLE = _example()
