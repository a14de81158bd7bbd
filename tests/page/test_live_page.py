"""The page as an operator uses it: headless Chromium at a stack with the mock device, under a real overload."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from page_support import CHROMIUM, ELSEWHERE, SLOTS, STEP_MS, TENANTS, Load, Visit, browser, open_page, tenants_of
from playwright.sync_api import Browser, expect
from stack_support import Stack

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(
        not CHROMIUM, reason="needs Chromium: apt-get install chromium, or name one in HEADGATE_CHROMIUM"
    ),
]

#: What gets a request through in an overload.
_FIRST = {"tier": "priority", "ttft_ms": 3_000}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    one = Stack(
        tmp_path_factory.mktemp("page") / "data",
        "--device",
        "mock",
        "--slots",
        str(SLOTS),
        "--mock-step-ms",
        str(STEP_MS),
    )
    try:
        one.start()
        yield one
    finally:
        one.end()


@pytest.fixture(scope="module")
def keys(stack: Stack) -> dict[str, str]:
    return tenants_of(stack)


@pytest.fixture(scope="module")
def admin_key(stack: Stack) -> str:
    return (stack.data / "admin.key").read_text().strip()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def overload(stack: Stack, keys: dict[str, str]) -> Iterator[None]:
    """Twice what the device can do, for as long as the tests of this module last."""
    with Load(stack, keys, times=2.0, seconds=300.0):
        yield


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    """A page that, whatever is done with it, complains of nothing and breaks no policy."""
    with open_page(chromium) as one:
        yield one
        assert one.violations() == []
        assert one.complaints == []


@pytest.fixture(scope="module")
def cookies(chromium: Browser, stack: Stack, admin_key: str) -> list[Any]:
    """Those of one login, for all visits that are not about the login."""
    with open_page(chromium) as visit:
        visit.sign_in(stack.admin_url, admin_key)
        return list(visit.context.cookies())


@pytest.fixture
def operator(visit: Visit, stack: Stack, cookies: list[Any]) -> Visit:
    visit.context.add_cookies(cookies)
    visit.page.goto(f"{stack.admin_url}/")
    visit.page.locator("#connection[data-state=live]").wait_for()
    return visit


def ask(stack: Stack, key: str, **fields: object) -> httpx.Response:
    """One request to the public API."""
    body = {"model": stack.model, "prompt": "count: 1 to 3", "max_tokens": 4} | fields
    return httpx.post(
        f"{stack.api}/v1/completions",
        json=body,
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
        trust_env=False,
    )


def test_signing_in_works_from_another_machine_over_http(chromium: Browser, stack: Stack, admin_key: str) -> None:
    """There a browser does not say which site a form is of, but in its Origin: the page must let it tell that."""
    with open_page(chromium) as visit:
        visit.sign_in(stack.admin_url.replace("127.0.0.1", ELSEWHERE), admin_key)
        visit.page.get_by_role("button", name="Sign out").click()
        visit.page.get_by_label("Admin key").wait_for()


def test_login_and_logout(visit: Visit, stack: Stack, admin_key: str) -> None:
    """A wrong key is told where it was typed, the right one opens; after the logout nothing is shown any more."""
    page = visit.page
    page.goto(stack.admin_url)
    expect(page).to_have_url(f"{stack.admin_url}/login")
    page.get_by_label("Admin key").fill("sk-hg-admin-wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not the admin key")
    visit.complaints.clear()  # Chromium logs the 401
    visit.sign_in(stack.admin_url, admin_key)
    assert admin_key not in page.url + page.content()
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{stack.admin_url}/login")
    page.goto(f"{stack.admin_url}/")
    expect(page).to_have_url(f"{stack.admin_url}/login")


def test_a_forged_request_is_refused(operator: Visit, stack: Stack) -> None:
    """With the cookie and from the page itself, but without the token: nothing is created."""
    page = operator.page
    status = page.evaluate(
        """async () => (await fetch("/admin/v1/tenants", {method: "POST", body: '{"name": "forged"}'})).status"""
    )
    assert status == 403
    operator.complaints.clear()  # Chromium logs the 403
    with stack.admin() as admin:
        assert "forged" not in {tenant["name"] for tenant in admin.get("tenants")["tenants"]}


def test_a_login_in_another_tab_does_not_break_this_one(operator: Visit, stack: Stack, admin_key: str) -> None:
    """The page notices that its token is of an older session, and goes on with the newer one."""
    page = operator.page
    operator.context.request.post(f"{stack.admin_url}/login", form={"key": admin_key})
    tenant = stack.tenant("tabs")
    page.keyboard.press("t")
    page.locator("dialog").get_by_role("button", name=tenant.name).click()
    page.get_by_label("Weight").fill("3")
    page.get_by_role("button", name="Change contract …").click()
    page.get_by_role("button", name="Change contract", exact=True).click()
    expect(page.locator("#toasts")).to_contain_text("is changed")
    operator.complaints.clear()  # Chromium logs the 403 before the second try


def test_the_cookie_is_secure_behind_a_proxy_with_tls(stack: Stack, admin_key: str) -> None:
    """A proxy on loopback, which is believed by default, says that the browser came by https."""
    for scheme, is_secure in (("http", False), ("https", True)):
        headers = {"x-forwarded-proto": scheme}
        answer = httpx.post(f"{stack.admin_url}/login", data={"key": admin_key}, headers=headers, trust_env=False)
        assert answer.status_code == 303
        assert ("secure" in answer.headers["set-cookie"].lower()) is is_secure


def test_no_other_host_is_asked(visit: Visit, stack: Stack, admin_key: str) -> None:
    """Every request of the page goes to the gateway it came from."""
    hosts: set[str] = set()
    visit.page.on("request", lambda request: hosts.add("/".join(request.url.split("/")[:3])))
    visit.sign_in(stack.admin_url, admin_key)
    visit.page.locator("#model", has_text=stack.model).wait_for()
    assert hosts == {stack.admin_url}


def test_a_tenant_is_created_and_gets_a_key(operator: Visit, stack: Stack) -> None:
    """A mistake is told at its field; the change is confirmed; the key is shown once and works; all is in the audit."""
    page = operator.page
    page.get_by_role("button", name="Tenants and keys").click()
    page.get_by_role("button", name="Create a tenant").click()
    page.get_by_label("Name *").fill("umbrella")
    page.get_by_label("Promised share").fill("7")
    page.get_by_role("button", name="Create …").click()
    page.get_by_role("button", name="Create tenant", exact=True).click()
    field = page.get_by_label("Promised share")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".field", has=field).get_by_role("alert")).not_to_be_empty()
    operator.complaints.clear()  # Chromium logs the 400
    field.fill("0.9")
    page.get_by_label("Tier", exact=True).select_option("priority")
    page.get_by_label("First token, ms").fill("20000")
    page.get_by_role("button", name="Create …").click()
    page.get_by_role("button", name="Create tenant", exact=True).click()
    page.get_by_role("button", name="Create a key …").click()
    page.get_by_role("button", name="Create key …").click()
    page.get_by_role("button", name="Create key", exact=True).click()
    key = page.get_by_label("The key", exact=True).input_value()
    page.keyboard.press("Escape")
    expect(page.get_by_label("The key", exact=True)).to_have_count(0)
    assert key not in page.content()
    with stack.admin() as admin:
        made = admin.get("tenants/umbrella")
        assert (made["ttft_ms"], made["attainment"]) == (20_000, 0.9)
        until = time.monotonic() + 10
        while sum("/session:" in row["actor"] for row in admin.get("audit")["audit"]) < 2:  # the ledger follows
            assert time.monotonic() < until, "the audit does not say that the session did it"
            page.wait_for_timeout(50)
    assert ask(stack, key).status_code == 200


def test_a_contract_is_changed(operator: Visit, stack: Stack) -> None:
    """What was and what will be are shown before; only what differs is sent."""
    tenant = stack.tenant("changing", tier="default", ttft_ms=4000, tpot_ms=100)
    page = operator.page
    page.locator("#tenants").get_by_role("button", name=tenant.name).click()
    page.get_by_label("First token, ms").fill("3000")
    page.get_by_role("button", name="Change contract …").click()
    changes = page.locator("table.changes tbody tr")
    expect(changes).to_have_count(1)
    expect(changes).to_contain_text("4000")
    expect(changes).to_contain_text("3000")
    page.get_by_role("button", name="Change contract", exact=True).click()
    expect(page.locator("#toasts")).to_contain_text("is changed")
    with stack.admin() as admin:
        found = admin.get(f"tenants/{tenant.name}")
        assert (found["ttft_ms"], found["tpot_ms"]) == (3000, 100)


def test_a_key_is_rotated_and_revoked(operator: Visit, stack: Stack) -> None:
    """A rotation gives a new secret; a revocation wants the key's id typed, and then no request gets through."""
    tenant = stack.tenant("leaving", **_FIRST)
    page = operator.page
    page.locator("#tenants").get_by_role("button", name=tenant.name).click()
    page.get_by_role("button", name=re.compile("Rotate key")).click()
    page.get_by_label("Seconds").fill("60")
    page.get_by_role("button", name="Rotate key …").click()
    page.get_by_role("button", name="Rotate key", exact=True).click()
    rotated = page.get_by_label("The key", exact=True).input_value()
    page.keyboard.press("Escape")
    assert rotated != tenant.key
    assert [ask(stack, key).status_code for key in (rotated, tenant.key)] == [200, 200]
    page.get_by_role("button", name=re.compile("Revoke key")).click()
    go = page.get_by_role("button", name="Revoke key", exact=True)
    expect(go).to_be_disabled()
    page.get_by_label(re.compile("to go on")).fill("something else")
    expect(go).to_be_disabled()
    page.get_by_label(re.compile("to go on")).fill(rotated.split("-")[2])
    go.click()
    expect(page.locator("dialog .tag", has_text="revoked")).to_be_visible()
    assert [ask(stack, key).status_code for key in (rotated, tenant.key)] == [401, 401]


def test_explain_tells_what_would_be_decided(operator: Visit, stack: Stack) -> None:
    """A dry run, with the numbers."""
    tenant = stack.tenant("asking", tier="default", ttft_ms=1)
    page = operator.page
    page.keyboard.press("e")
    page.get_by_label("Tenant *").select_option(tenant.name)
    page.get_by_role("button", name="Explain", exact=True).last.click()
    expect(page.locator("#explained")).to_contain_text("refused")
    expect(page.locator("#explained")).to_contain_text("ttft_unattainable")


@pytest.mark.usefixtures("keys")
def test_everything_is_reached_by_keyboard(visit: Visit, stack: Stack, admin_key: str) -> None:
    """Sign in, read the help, go to a tenant, open and leave its dialog; and the focus is always seen."""
    page = visit.page
    page.goto(stack.admin_url)
    expect(page.get_by_label("Admin key")).to_be_focused()
    page.keyboard.type(admin_key)
    page.keyboard.press("Enter")
    page.locator("#connection[data-state=live]").wait_for()
    page.locator("#tenants tr").first.wait_for()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Keyboard")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.keyboard.press("1")
    expect(page.locator("#panel-1")).to_be_focused()
    reached: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        where = page.evaluate(
            """() => {
              const focused = document.activeElement;
              const seen = getComputedStyle(focused).outlineStyle !== "none";
              return [focused.closest("section")?.id ?? focused.tagName, focused.textContent.trim(), seen];
            }"""
        )
        assert where[2], f"the focus is not seen at {where}"
        reached.append(where[0])
        if where[0] == "panel-1" and where[1] == "acme":
            break
    else:
        pytest.fail(f"the tenant acme is not reached: {reached}")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Tenant acme")
    expect(dialog.get_by_label("Tier")).to_be_focused()
    for _ in range(40):
        page.keyboard.press("Tab")
        inside = page.evaluate(
            "document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
        )
        assert inside, "the focus left the dialog"
    page.keyboard.press("Escape")
    expect(page.locator("#tenants").get_by_role("button", name="acme")).to_be_focused()


def test_light_and_dark(visit: Visit, stack: Stack, admin_key: str) -> None:
    """It follows the system until the switch is used, whose choice is kept; text stays readable in both."""
    page = visit.page
    ground = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    visit.sign_in(stack.admin_url, admin_key)
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert dark != light
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(ground) == dark
    page.reload()
    page.locator("#connection[data-state=live]").wait_for()
    assert page.evaluate(ground) == dark
    for theme in ("dark", "light"):
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        for name in ("ink", "muted", "good", "bad", "warn", "accent"):
            assert _contrast(page.evaluate(_COLOURS, name)) >= 4.5, f"{name} in {theme}"


_COLOURS = """(name) => {
  const probe = document.createElement("p");
  document.body.append(probe);
  probe.style.color = `var(--${name})`;
  probe.style.background = "var(--panel)";
  const style = getComputedStyle(probe);
  const found = [style.color, style.backgroundColor].map((text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number));
  probe.remove();
  return found;
}"""


def _contrast(colours: list[list[float]]) -> float:
    """The ratio of WCAG 2."""

    def luminance(colour: list[float]) -> float:
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(luminance(colour) for colour in colours)
    return (light + 0.05) / (dark + 0.05)


def test_a_hidden_tab_takes_no_stream(operator: Visit) -> None:
    """It pauses, says so, and goes on when it is seen again."""
    page = operator.page
    hide = """(hidden) => {
      Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    expect(page.locator("#connection-text")).to_have_text("paused")
    page.evaluate(hide, False)
    expect(page.locator("#connection-text")).to_have_text("live")


def test_old_facts_are_said_to_be_old(operator: Visit) -> None:
    """When the gateway is not reached any more, the page says so and how old it is; and it comes back by itself."""
    page = operator.page
    page.locator("#model", has_text="headgate").wait_for()
    operator.context.set_offline(True)
    page.evaluate("() => { document.dispatchEvent(new Event('visibilitychange')); }")
    page.wait_for_timeout(100)
    offline = """() => {
      Object.defineProperty(document, "hidden", {value: true, configurable: true});
      document.dispatchEvent(new Event("visibilitychange"));
      Object.defineProperty(document, "hidden", {value: false, configurable: true});
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(offline)
    expect(page.locator("#connection-text")).to_have_text("reconnecting")
    expect(page.locator("#frozen")).to_contain_text(re.compile(r"\d+ s old"), timeout=10_000)
    operator.context.set_offline(False)
    expect(page.locator("#connection-text")).to_have_text("live", timeout=15_000)
    expect(page.locator("#frozen")).to_be_hidden()
    operator.complaints.clear()  # Chromium logs each try


def test_the_wheel_has_the_page() -> None:
    """Every file of the page is of a kind that is packaged and served."""
    static = Path(__file__).resolve().parents[2] / "gateway" / "page" / "static"
    assert {file.suffix for file in static.iterdir()} == {".css", ".html", ".js", ".svg"}


# --- under the overload, which goes on until the last of these


@pytest.mark.usefixtures("overload")
def test_an_overload_is_seen_live(operator: Visit) -> None:
    """All panels show it, and the figures go on changing by themselves."""
    page = operator.page
    for tenant in TENANTS:
        expect(page.locator("#tenants tr", has_text=tenant)).to_be_visible()
    expect(page.locator("#tenants tr", has_text="acme")).to_contain_text("kept", timeout=20_000)
    expect(page.locator("#headline-text")).to_contain_text(re.compile("contracts?"))
    expect(page.locator("#batch tr").first).to_be_visible()
    expect(page.locator("#workers tr")).to_contain_text("of 8")
    expect(page.locator("#queue tr").first).to_be_visible()
    expect(page.locator("#memory")).to_contain_text("in use")
    expect(page.locator("#steps-note")).to_contain_text("tokens/s")
    expect(page.locator("#decisions tr").nth(10)).to_be_attached()
    seen: set[str | None] = set()
    until = time.monotonic() + 10
    while len(seen) < 4:
        assert time.monotonic() < until, "the steps stand still"
        seen.add(page.locator("#steps-tokens").get_attribute("aria-label"))
        page.wait_for_timeout(100)
    painted = page.evaluate(
        """() => {
          const canvas = document.getElementById("steps-tokens");
          const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          const colours = new Set();
          for (let at = 0; at < pixels.length; at += 4)
            if (pixels[at + 3] === 255) colours.add(pixels.slice(at, at + 3).join());
          return colours.size;
        }"""
    )
    assert painted >= 2, "prefill and decode are of two colours"


@pytest.mark.usefixtures("overload")
def test_a_refusal_is_seen_within_a_second(operator: Visit, stack: Stack) -> None:
    """With its tenant, its reason and its numbers; and the headline counts it."""
    page = operator.page
    tenant = stack.tenant("limited", rpm=1, **_FIRST)
    assert ask(stack, tenant.key).status_code == 200
    page.get_by_role("button", name="refused", exact=True).click()
    refused = ask(stack, tenant.key)
    at = time.monotonic()
    assert refused.status_code == 429
    row = page.locator("#decisions tr", has_text=tenant.name)
    row.first.wait_for(timeout=5000)
    took_s = time.monotonic() - at
    assert took_s <= 1.0, f"it took {took_s:.2f} s"
    expect(row.first).to_contain_text("✗ refused")
    expect(row.first).to_contain_text("the limit of 1 requests a minute is used up")
    expect(row.first).to_contain_text("requests_per_minute")
    expect(page.locator("#tenants tr", has_text=tenant.name).locator(".refusals")).to_have_text("1")
    expect(page.locator("#headline-more")).to_contain_text("in the last 5 minutes")


@pytest.mark.usefixtures("overload")
def test_a_request_has_a_waterfall(operator: Visit, stack: Stack) -> None:
    """Its spans from all actors, in order; one of them tells its attributes."""
    page = operator.page
    tenant = stack.tenant("traced", **_FIRST)
    request = ask(stack, tenant.key).headers["x-request-id"]
    button = page.locator("#decisions tr", has_text=tenant.name).first.get_by_role("button")
    button.wait_for()
    button.focus()  # the list holds still
    page.keyboard.press("Enter")
    table = page.locator("table.waterfall")
    table.wait_for()
    expect(page.locator("dialog h2")).to_contain_text(request)
    for role in ("gateway", "admission", "scheduler", "worker"):
        expect(table.locator("small", has_text=role).first).to_be_visible()
    table.get_by_role("button", name="admission").click()
    expect(page.locator("dialog .detail")).to_contain_text(tenant.name)
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    expect(button).to_be_focused()


@pytest.mark.usefixtures("overload")
@pytest.mark.parametrize("width", [400, 1280])
def test_no_page_scrolls_sideways(chromium: Browser, stack: Stack, admin_key: str, width: int) -> None:
    """At the width of a phone and of a small screen, also with a dialog open; and nothing is cut off inside a panel."""
    with open_page(chromium, width=width, height=860) as visit:
        visit.sign_in(stack.admin_url, admin_key)
        page = visit.page
        page.locator("#batch tr").first.wait_for()
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) == 0
        cut = page.evaluate(
            "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth + 1)"
            ".map((one) => [one.getAttribute('aria-labelledby'), one.scrollWidth, one.clientWidth])"
        )
        assert cut == []
        page.locator("#tenants").get_by_role("button", name="acme").click()
        page.locator("dialog form").wait_for()
        assert page.evaluate(wide) == 0
        assert (
            page.evaluate(
                "(() => { const box = document.querySelector('dialog'); return box.scrollWidth - box.clientWidth; })()"
            )
            == 0
        )
        assert visit.violations() == visit.complaints == []
