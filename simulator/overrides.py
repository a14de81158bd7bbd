"""A named policy with single parts of it changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from policies.catalog import PolicySet, policy_set
from simulator.door import Knowledge
from simulator.errors import SimulatorError

__all__ = ["BadOverride", "changed_policies", "label"]

_WHOLE = ("placement", "roles")


class BadOverride(SimulatorError):
    """A part of a policy that there is not, or that cannot have this value."""


def changed_policies(name: str, changes: Mapping[str, Any]) -> PolicySet:
    """The policy of that name, with `changes`: fields of `SchedulerConfig`, `placement`, `roles`, `admission` (its
    kind), and `admission.FIELD` for the fields of an admission `Policy`. `knowledge` is no part of a policy, and is
    left alone: with it, what admission knows of lengths can be named among the changes, and compared like them.

    The result is named after what was changed.

    :raises BadOverride: if there is no such policy or part, or a value is impossible.
    """
    try:
        base = policy_set(name)
    except ValueError as error:
        raise BadOverride(str(error)) from error
    tables: dict[str, Any] = msgspec.to_builtins(base)
    scheduler, admission = tables["scheduler"], tables["admission"]
    for key, value in changes.items():
        part, _, field = key.partition(".")
        if key == "knowledge":
            if value not in get_args(Knowledge):
                raise BadOverride(
                    f"policy {name}: knowledge {value!r} is not known; there are {', '.join(get_args(Knowledge))}"
                )
        elif key in _WHOLE:
            tables[key] = value
        elif part == "admission" and (field or "kind") in admission:
            admission[field or "kind"] = value
        elif key in scheduler:
            scheduler[key] = value
        else:
            known = [*scheduler, *_WHOLE, "knowledge", "admission", *(f"admission.{field}" for field in admission)]
            raise BadOverride(f"policy {name}: there is no part {key!r}; there are {', '.join(known)}")
    tables["name"] = label(name, changes)
    try:
        return msgspec.convert(tables, PolicySet)
    except msgspec.ValidationError as error:
        raise BadOverride(f"policy {tables['name']}: {error}") from error


def label(name: str, changes: Mapping[str, Any]) -> str:
    """How such a policy is called: `headgate[order=fcfs]`."""
    if not changes:
        return name
    return f"{name}[{','.join(f'{key}={value}' for key, value in changes.items())}]"
