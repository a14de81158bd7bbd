"""A stack under load and a browser at its live page, for the tests and for the pictures of the documentation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from stack_support import Stack

from headgate.replay import Target, replay
from policies.vocabulary import Contract, Tenant
from simulator.records import Arrival, Workload

__all__ = [
    "CHROMIUM",
    "ELSEWHERE",
    "SLOTS",
    "STEP_MS",
    "TENANTS",
    "Load",
    "Visit",
    "browser",
    "open_page",
    "tenants_of",
]

#: Debian's browser, or the one that is named.
CHROMIUM = os.environ.get("HEADGATE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
#: The stack under a name that is not that of this machine: over http a browser trusts it less than loopback.
ELSEWHERE = "stack.test"

STEP_MS, SLOTS, _OUTPUTS = 20, 8, 16
TENANTS = {
    "acme": Tenant(
        name="acme", contract=Contract(tier="priority", ttft_ms=1000, tpot_ms=40, attainment=0.95, weight=4)
    ),
    "globex": Tenant(
        name="globex", contract=Contract(tier="default", ttft_ms=3000, tpot_ms=60, attainment=0.95, weight=2)
    ),
    "initech": Tenant(name="initech", contract=Contract(tier="default", ttft_ms=6000, attainment=0.9, weight=1)),
    "nightly": Tenant(name="nightly", contract=Contract(tier="flex")),
}
_WEIGHTS = (4, 3, 2, 3)

#: What a page did that it may not, collected where the page cannot hide it.
_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""


def tenants_of(stack: Stack) -> dict[str, str]:
    """Create the tenants; their keys by name."""
    keys = {}
    with stack.admin() as admin:
        for name, tenant in TENANTS.items():
            contract = tenant.contract
            promised = {
                "tier": contract.tier,
                "ttft_ms": contract.ttft_ms,
                "tpot_ms": contract.tpot_ms,
                "attainment": contract.attainment,
                "weight": contract.weight,
            }
            admin.post("/tenants", {"name": name, **{k: v for k, v in promised.items() if v is not None}})
            keys[name] = str(admin.post("/keys", {"tenant": name})["key"])
    return keys


class Load:
    """Requests of all tenants at a multiple of what the device can do, from a thread, until `end` is called."""

    def __init__(
        self,
        stack: Stack,
        keys: dict[str, str],
        *,
        times: float,
        seconds: float,
        outputs: int = _OUTPUTS,
        prompts: tuple[int, int] = (20, 120),
        slots: int = SLOTS,
        seed: int = 5,
    ) -> None:
        draw, at_s = Random(seed), 0.0
        capacity = slots / ((outputs + 1) * STEP_MS / 1000)
        arrivals: list[Arrival] = []
        while (at_s := at_s + draw.expovariate(times * capacity)) < seconds:
            tokens = draw.randint(outputs // 2, outputs + outputs // 2)
            tenant = draw.choices(list(TENANTS), weights=_WEIGHTS)[0]
            arrivals.append(Arrival(str(len(arrivals)), at_s, tenant, draw.randint(*prompts), tokens, tokens))
        self._workload = Workload(name="page", arrivals=arrivals, tenants=TENANTS)
        self._target = Target(url=stack.api, model=stack.model, keys=keys, vocabulary=600)
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[object] | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(replay(self._workload, self._target))
        self._started.set()
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._loop.close()

    def __enter__(self) -> Load:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._task is not None
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()


@dataclass(slots=True)
class Visit:
    """A page, its context, and everything that it complained about."""

    page: Page
    context: BrowserContext
    complaints: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        found: list[str] = self.page.evaluate("window.violations")
        return found

    def sign_in(self, url: str, key: str) -> None:
        self.page.goto(f"{url}/")
        self.page.get_by_label("Admin key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.locator("#connection[data-state=live]").wait_for()


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
            ],
        )
        try:
            yield started
        finally:
            started.close()


@contextmanager
def open_page(started: Browser, *, width: int = 1280, height: int = 960, dark: bool = False) -> Iterator[Visit]:
    context = started.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    context.set_default_timeout(15_000)
    context.add_init_script(_WATCH)
    page = context.new_page()
    visit = Visit(page, context)

    page.on("console", lambda said: visit.complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    try:
        yield visit
    finally:
        context.close()
