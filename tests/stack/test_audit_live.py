"""Who changed what, and who used how much, as commands print it."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import Any

from stack_support import Stack, counting, eventually, headgate


def printed(stack: Stack, *arguments: str) -> str:
    done = headgate(*arguments, "--data", str(stack.data))
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_changes_are_listed_newest_first_by_whoever_they_concern(stack: Stack) -> None:
    """With actor, target and details, as a table, JSON or CSV; of one tenant with those of its keys."""
    first, second = stack.tenant("audited", rpm=77), stack.tenant("other")
    with stack.admin() as admin:
        key_id = admin.get("keys", tenant="audited")["keys"][0]["id"]
        admin.delete(f"keys/{key_id}")

    async def entries() -> list[dict[str, Any]] | None:
        text = await asyncio.to_thread(printed, stack, "audit", "--tenant", "audited", "--json")
        found: list[dict[str, Any]] = json.loads(text)
        return found if len(found) == 3 else None

    found = await eventually(entries, timeout_s=15.0, every_s=0.1, what="three entries")
    assert [entry["action"] for entry in found] == ["key.revoke", "key.create", "tenant.create"]
    assert [entry["target"] for entry in found] == [key_id, key_id, "audited"]
    assert found[-1]["details"]["limits"]["rpm"] == 77
    assert found[0]["actor"].startswith("admin:")
    assert all(set(entry) == {"time", "actor", "action", "target", "details"} for entry in found)
    assert first.key not in json.dumps(found)
    rows = list(csv.DictReader(io.StringIO(printed(stack, "audit", "--tenant", "audited", "--csv"))))
    assert [row["action"] for row in rows] == ["key.revoke", "key.create", "tenant.create"]
    assert json.loads(rows[-1]["details"]) == found[-1]["details"]
    latest = json.loads(printed(stack, "audit", "--limit", "2", "--json"))
    assert len(latest) == 2
    table = printed(stack, "audit", "--tenant", "other")
    assert "tenant.create" in table
    assert "audited" not in table
    assert second.name == "other"


async def test_usage_is_exported_as_csv(stack: Stack) -> None:
    """With the names of the fields in its first line, by what was asked for."""
    tenant = stack.tenant("exported")
    async with tenant.client() as client:
        answers = [await tenant.ask(client, counting(1, 9)), await tenant.ask(client, counting(1, 12))]
    await tenant.settled(answers)
    text = printed(stack, "usage", "--tenant", "exported", "--since", "2020-01-01", "--by", "day", "--csv")
    assert text.splitlines()[0] == "tenant,day,requests,prompt_tokens,output_tokens,cached_tokens,unsettled"
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["tenant"], row["requests"]) == ("exported", "2")
    assert int(row["output_tokens"]) == sum(answer.output_tokens for answer in answers)
    nothing = printed(stack, "usage", "--tenant", "nobody", "--csv")
    assert nothing == "tenant,requests,prompt_tokens,output_tokens,cached_tokens,unsettled\n"


def test_csv_and_json_exclude_each_other(stack: Stack) -> None:
    """Both were asked for by mistake."""
    for command in ("usage", "audit"):
        refused = headgate(command, "--csv", "--json", "--data", str(stack.data))
        assert (refused.returncode, "not both" in refused.stderr) == (2, True)
