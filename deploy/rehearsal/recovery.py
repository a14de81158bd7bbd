"""Checks that kill: health checks must turn red, and what was killed must come back and serve."""

from __future__ import annotations

import time

from deploy.rehearsal.scene import HEADGATE_SERVICES, Rehearsal
from deploy.rehearsal.traffic import wait_until

__all__ = ["health_tells_of_dependencies", "health_turns_red", "serves_again"]

_SERVED_AGAIN_S = 20.0


def health_turns_red(it: Rehearsal) -> list[str]:
    """The health check of a role that was killed fails; started again it recovers, and requests are served."""
    found = []
    for name in HEADGATE_SERVICES:
        service = it.stage.services[name]
        service.kill()
        if not service.check():
            found.append(f"{name} was killed, and its health check passes")
        service.start()
    for name in HEADGATE_SERVICES:
        it.stage.services[name].wait_healthy()
    return found + serves_again(it)


def health_tells_of_dependencies(it: Rehearsal) -> list[str]:
    """A ledger without its database, and everybody without NATS, is alive and not well."""
    found = []
    for dependency, ill in (("postgres", ("ledger",)), ("nats", HEADGATE_SERVICES)):
        it.stage.services[dependency].kill()
        for name in ill:
            try:
                wait_until(
                    it.stage.services[name].check, timeout_s=20.0, what=f"{name} is not well without {dependency}"
                )
            except TimeoutError as error:
                found.append(str(error))
        it.stage.services[dependency].start()
        for name in (dependency, *ill):
            it.stage.services[name].wait_healthy()
    return found + serves_again(it)


def serves_again(it: Rehearsal, when: str = "") -> list[str]:
    """Ask for streams until one is served whole: whoever was killed may have to be found out, and elected anew."""
    until = time.monotonic() + _SERVED_AGAIN_S
    while True:
        try:
            answer = it.traffic.stream()
        except Exception as error:
            if time.monotonic() > until:
                return [f"nothing is served again {when}: {error}"]
            time.sleep(0.2)
        else:
            right = answer.finish == "stop" and answer.is_right
            return [] if right else [f"a stream {when} ended with {answer.finish!r}, or was not right"]
