"""The proxy as it is shipped, by a real HAProxy in front of servers that tell what reached them."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from deploy.rehearsal.translation import Translation

_CONFIG = Path(__file__).resolve().parent.parent.parent / "deploy" / "haproxy" / "haproxy.cfg"
_HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

pytestmark = pytest.mark.skipif(_HAPROXY is None, reason="no haproxy: apt-get install haproxy")


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the request that came, as one text."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(head), head))
        await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()


class Proxy:
    def __init__(self, address: str) -> None:
        self.address = address

    async def ask(self, port: int, target: str, *headers: str) -> str:
        reader, writer = await asyncio.open_connection(self.address, port)
        lines = [f"GET {target} HTTP/1.1", "host: stack", "connection: close", *headers, "", ""]
        writer.write("\r\n".join(lines).encode())
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        return answer


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    pid = os.getpid()
    at = {
        name: f"127.{100 + pid % 97}.{pid // 97 % 250}.{n}" for n, name in enumerate(("proxy", "gateway", "grafana"), 2)
    }
    config = tmp_path / "haproxy.cfg"
    config.write_text(Translation(at).haproxy(_CONFIG.read_text(), of="proxy"))
    async with AsyncExitStack() as stack:
        for name, port in (("gateway", 8080), ("gateway", 8081), ("gateway", 9464), ("grafana", 3000)):
            await stack.enter_async_context(await asyncio.start_server(_echo, at[name], port))
        assert _HAPROXY is not None
        process = await asyncio.create_subprocess_exec(_HAPROXY, "-db", "-f", str(config))
        made = Proxy(at["proxy"])
        try:
            async with asyncio.timeout(20):
                for port, target in ((8080, "/"), (8081, "/"), (8081, "/grafana/")):
                    while True:
                        try:
                            if " 200 " in (await made.ask(port, target)).partition("\r\n")[0]:
                                break
                        except OSError:
                            assert process.returncode is None, "haproxy does not take the configuration"
                        await asyncio.sleep(0.05)
            yield made
        finally:
            process.kill()
            await process.wait()


async def test_clients_do_not_read_the_metrics(proxy: Proxy) -> None:
    """However they spell the path: a gateway reads it decoded. They name every tenant."""
    assert "GET /v1/models " in await proxy.ask(8080, "/v1/models")
    for target in (
        "/metrics",
        "/metrics?x=1",
        "/%6detrics",
        "/m%65trics?x",
        "/%6D%65%74%72%69%63%73",
        "http://stack/metrics",
    ):
        assert " 404 " in (await proxy.ask(8080, target)).partition("\r\n")[0], target
    assert " 200 " not in (await proxy.ask(8080, "/metrics#x")).partition("\r\n")[0]


async def test_the_session_of_the_live_page_does_not_reach_grafana(proxy: Proxy) -> None:
    """Both are at one address, so the browser sends both cookies to both; what is Grafana's own goes through."""
    for cookies in ("headgate_1a2b=secret; grafana_session=g", "a=b; headgate_1a2b=secret; grafana_session=g"):
        answer = await proxy.ask(8081, "/grafana/api/health", f"cookie: {cookies}")
        assert "grafana_session=g" in answer
        assert "secret" not in answer
    assert "secret" not in await proxy.ask(8081, "/grafana/", "cookie: headgate_1=secret")
    assert "headgate_1a2b=secret" in await proxy.ask(8081, "/", "cookie: headgate_1a2b=secret")


def test_clients_leave_connections_for_operators() -> None:
    """Where all that the proxy may have are taken, nobody could look why; nor would it be found healthy."""
    text = _CONFIG.read_text()
    frontend = text[text.index("frontend clients") : text.index("frontend operators")]
    limits = [
        int(line.split()[1])
        for part in (text[: text.index("defaults")], frontend)
        for line in part.splitlines()
        if line.strip().startswith("maxconn")
    ]
    assert len(limits) == 2
    assert limits[0] - limits[1] >= 128
