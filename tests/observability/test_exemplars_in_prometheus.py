"""Exemplars, from a request to a real Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from headgate.ops import ops_port
from headgate.readiness import Readiness
from observability.metrics import EdgeMetrics, Metrics

TRACE = "0123456789abcdef" * 2


@contextlib.asynccontextmanager
async def prometheus(directory: Path, target: int) -> AsyncIterator[str]:
    """Scrapes `target` four times a second, as it does in the compose file but for its pace. Gives its address."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    config = directory / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 250ms, scrape_timeout: 250ms}\n"
        f"scrape_configs: [{{job_name: headgate, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}]\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=error",
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


async def test_prometheus_leads_from_a_slow_bucket_to_its_trace(tmp_path: Path) -> None:
    """It asks for OpenMetrics by itself, takes what we answer, and keeps the trace id beside the value."""
    metrics = Metrics("gateway", "g0")
    edge = EdgeMetrics(metrics)
    edge.finished(tenant="t", tier="flex", model="m", outcome="stop", duration_s=3.0, ttft_s=2.25, trace_id=TRACE)
    report = Readiness("gateway", "g0").report
    async with (
        ops_port("127.0.0.1", 0, report=report, metrics=metrics.render) as port,
        prometheus(tmp_path, port) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as http,
    ):
        query = {"query": "headgate_ttft_seconds_bucket", "start": "0", "end": "4102444800"}
        found: list[dict[str, object]] = []
        async with asyncio.timeout(30.0):
            while not found:
                await asyncio.sleep(0.1)
                with contextlib.suppress(httpx.TransportError):
                    answer = (await http.get("/api/v1/query_exemplars", params=query)).json()
                    found = [one for series in answer.get("data", ()) for one in series["exemplars"]]
    assert found[0]["labels"] == {"trace_id": TRACE}
    assert float(str(found[0]["value"])) == 2.25
