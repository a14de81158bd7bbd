"""The pictures of docs/live-page.md: `python tests/page/screenshots.py [DIRECTORY]`, from a real stack under load."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent.parent / "stack")]

from page_support import Load, browser, open_page, tenants_of  # noqa: E402
from stack_support import Stack  # noqa: E402

_IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
_WARM_UP_S = 130.0
_SLOTS, _KV_MIB, _TIMES = 16, 16, 3.6


def main(images: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        stack = Stack(data, "--device", "mock", "--slots", str(_SLOTS), "--kv-mib", str(_KV_MIB))
        stack.start()
        try:
            keys = tenants_of(stack)
            with stack.admin() as admin:  # so that somebody is refused for a limit of its own
                admin.patch("tenants/nightly", {"concurrency": 8})
            key = (stack.data / "admin.key").read_text().strip()
            load = Load(stack, keys, times=_TIMES, seconds=600.0, outputs=120, prompts=(20, 500), slots=_SLOTS)
            with load, browser() as started:
                begun = time.monotonic()
                with open_page(started, height=1010) as visit:
                    visit.sign_in(stack.admin_url, key)
                    page = visit.page
                    page.wait_for_timeout(1000 * (_WARM_UP_S - (time.monotonic() - begun)))
                    page.screenshot(path=images / "live-light.png")
                    page.emulate_media(color_scheme="dark")
                    page.wait_for_timeout(700)
                    page.screenshot(path=images / "live-dark.png")
                    page.emulate_media(color_scheme="light")
                    row = page.locator("#decisions tr[data-outcome=admitted]").nth(8)
                    row.wait_for()
                    page.get_by_role("button", name="all", exact=True).focus()
                    page.locator("#decisions tr[data-outcome=admitted] button").nth(12).click()
                    page.locator("table.waterfall").wait_for()
                    page.wait_for_timeout(1500)
                    page.locator(".waterfall tbody button").nth(1).click()
                    page.screenshot(path=images / "live-waterfall.png")
                    page.keyboard.press("Escape")
                    page.locator("#tenants button").first.click()
                    page.locator("dialog form").wait_for()
                    page.screenshot(path=images / "live-tenant.png")
                with open_page(started, width=400, height=860) as visit:
                    visit.sign_in(stack.admin_url, key)
                    visit.page.wait_for_timeout(1500)
                    visit.page.screenshot(path=images / "live-narrow.png", full_page=True)
        finally:
            stack.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _IMAGES)
