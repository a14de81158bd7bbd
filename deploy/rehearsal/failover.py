"""Checks of the profile `ha`: whoever is killed, streams go on, since another one is there."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from deploy.rehearsal.recovery import serves_again
from deploy.rehearsal.scene import HEADGATE_SERVICES, Check, Rehearsal
from deploy.rehearsal.traffic import Answer, wait_until

__all__ = ["FAILOVER_CHECKS"]

_NATS = ("nats", "nats-2", "nats-3")
_PAIRS = (("scheduler", "scheduler-standby"), ("admission", "admission-standby"))
#: Longer than the lease of a scheduler that was killed.
_TAKEN_OVER_S = 15.0
_CLIENTS = 4


def jetstream_is_kept_by_three(it: Rehearsal) -> list[str]:
    """Every bucket and stream has three replicas, and a leader."""
    found = []
    asked = {"streams": "1", "config": "1"}
    accounts = [
        account
        for name in _NATS
        for account in _get(it.stage.url(name, 8222) + "/jsz", **asked).get("account_details", ())
    ]
    streams = {stream["name"]: stream for account in accounts for stream in account.get("stream_detail", ())}
    if len(streams) < 5:
        found.append(f"only {sorted(streams)} are there")
    return found + [
        f"{name}: {stream['config']['num_replicas']} replicas, cluster {stream.get('cluster')}"
        for name, stream in streams.items()
        if stream["config"]["num_replicas"] != 3 or not stream.get("cluster", {}).get("leader")
    ]


def prometheus_finds_all(it: Rehearsal) -> list[str]:
    """Both gateways and the standbys too."""
    wanted = len(HEADGATE_SERVICES) + 3

    def up() -> bool:
        found = {target: health for target, health in it.prometheus.targets().items() if target.startswith("headgate ")}
        return list(found.values()) == ["up"] * wanted

    try:
        wait_until(up, timeout_s=20.0, what=f"{wanted} processes are up")
    except TimeoutError as error:
        return [f"{error}: {it.prometheus.targets()}"]
    return []


def one_works_and_one_stands_by(it: Rehearsal) -> list[str]:
    """Of each pair, and both are healthy."""
    states = {name: _state(it, name) for pair in _PAIRS for name in pair}
    return [f"{pair}: {states}" for pair in _PAIRS if sorted(states[name] for name in pair) != ["ready", "standby"]]


def standbys_take_over(it: Rehearsal) -> list[str]:
    """The one that works is killed in the middle of a stream: the stream goes on, and the standby works."""
    found = []
    for pair in _PAIRS:
        working, standby = sorted(pair, key=lambda name: _state(it, name) != "ready")
        found += _killed_during_stream(it, working)
        try:
            wait_until(
                lambda standby=standby: _state(it, standby) == "ready",
                timeout_s=_TAKEN_OVER_S,
                what=f"{standby} works after {working} was killed",
            )
        except TimeoutError as error:
            found.append(str(error))
        found += serves_again(it, f"after {working} was killed")
        it.stage.services[working].start()
        it.stage.services[working].wait_healthy()
        if _state(it, working) != "standby":
            found.append(f"{working} came back as {_state(it, working)}")
    return found


def a_nats_server_may_die(it: Rehearsal) -> list[str]:
    """Any one of the three, also the one that all connected to first."""
    found = []
    for name in _NATS:
        found += _killed_during_stream(it, name)
        found += serves_again(it, f"without {name}")
        it.stage.services[name].start()
        it.stage.services[name].wait_healthy()
    return found


def a_gateway_may_die(it: Rehearsal) -> list[str]:
    """Its own streams break; the proxy has the other one serve whoever comes next."""
    found = []
    for name in ("gateway", "gateway-2"):
        it.stage.services[name].kill()
        found += serves_again(it, f"without {name}")
        it.stage.services[name].start()
        it.stage.services[name].wait_healthy()
        wait_until(lambda: not it.stage.services["proxy"].check(), timeout_s=5.0, what="the proxy has a gateway")
    return found


def a_gateway_may_be_replaced(it: Rehearsal) -> list[str]:
    """Told to end, it finishes its streams, and the proxy sends whoever comes next to the other one."""
    found = []
    for name in ("gateway", "gateway-2"):
        service = it.stage.services[name]
        ended, begun = threading.Event(), [threading.Event() for _ in range(_CLIENTS)]
        with ThreadPoolExecutor(_CLIENTS) as pool:
            clients = [pool.submit(_streams_until, it, ended, first) for first in begun]
            for first in begun:
                first.wait(30.0)
            service.stop(timeout_s=30.0)
            ended.set()
            streams = [problem for client in clients for problem in client.result()]
        if service.exit_code != 0:
            found.append(f"{name} ended with {service.exit_code}")
        found += [f"while {name} was replaced, {problem}" for problem in streams]
        service.start()
        service.wait_healthy()
    return found


FAILOVER_CHECKS: Mapping[str, Check] = {
    "JetStream is kept by three": jetstream_is_kept_by_three,
    "Prometheus finds all": prometheus_finds_all,
    "one works and one stands by": one_works_and_one_stands_by,
    "a standby takes over in the middle of a stream": standbys_take_over,
    "any NATS server may die": a_nats_server_may_die,
    "a gateway may be replaced, and no stream is lost": a_gateway_may_be_replaced,
    "a gateway may die": a_gateway_may_die,
}


def _streams_until(it: Rehearsal, ended: threading.Event, begun: threading.Event) -> list[str]:
    """One stream after the other, until one has begun after the event.

    The client tries again as it does by default: for a quarter of a second the proxy does not know yet that a gateway
    takes nothing new.
    """
    problems: list[str] = []
    is_last = False
    while not is_last:
        is_last = ended.is_set()
        try:
            problems += _wrong(it.traffic.stream(begun=begun, retries=2), "of a client that tries again")
        except Exception as error:
            problems.append(str(error))
            begun.set()
    return problems


def _killed_during_stream(it: Rehearsal, name: str) -> list[str]:
    """Kill it when a stream has begun; what is wrong with the rest of the stream. It is left dead."""
    begun, done = threading.Event(), []
    problems: list[str] = []

    def run() -> None:
        try:
            done.append(it.traffic.stream(begun=begun))
        except Exception as error:
            problems.append(f"the stream during which {name} was killed: {error}")
        finally:
            begun.set()

    thread = threading.Thread(target=run, name="stream")
    thread.start()
    begun.wait(10.0)
    it.stage.services[name].kill()
    thread.join()
    return problems + [problem for answer in done for problem in _wrong(answer, f"while {name} was killed")]


def _wrong(answer: Answer, when: str) -> list[str]:
    return [] if answer.finish == "stop" and answer.is_right else [f"a stream {when} ended with {answer.finish!r}"]


def _state(it: Rehearsal, name: str) -> str:
    return str(_get(it.stage.url(name, 9464) + "/ready")["state"])


def _get(url: str, **query: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(url, params=query, trust_env=False, timeout=5.0).json()
    return found
