"""`python -m deploy.rehearsal [--ha] [--keep]`: start, send traffic, check, say what was found. Exit code 1 if anything
is wrong, 2 if this host lacks what it takes."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.rehearsal.checks import CHECKS
from deploy.rehearsal.failover import FAILOVER_CHECKS
from deploy.rehearsal.programs import missing
from deploy.rehearsal.queries import Prometheus
from deploy.rehearsal.scene import Rehearsal
from deploy.rehearsal.stage import Stage
from deploy.rehearsal.traffic import Traffic

__all__ = ["rehearsal"]

_ROOT = Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def rehearsal(directory: Path, *, root: Path = _ROOT, profiles: Sequence[str] = ()) -> Iterator[Rehearsal]:
    """A stack that is up, with traffic that has begun. All of it is gone afterwards, but for what is in `directory`."""
    with Stage(root, directory, profiles=profiles) as stage:
        traffic = Traffic(stage)
        prometheus = Prometheus(stage.url("prometheus", 9090))
        try:
            traffic.wave()
            if not profiles:
                traffic.keep_going()
            yield Rehearsal(stage, traffic, prometheus)
        finally:
            with contextlib.suppress(Exception):  # it was told by the check that ended the traffic
                traffic.stop()
            prometheus.close()


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.rehearsal", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the directory with logs, volumes and configurations")
    parser.add_argument("--ha", action="store_true", help="the profile ha: kill one of each kind, and lose no stream")
    given = parser.parse_args()
    if lacking := missing():
        print(f"this host cannot rehearse: {lacking}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended then too
    directory = Path(tempfile.mkdtemp(prefix="headgate-rehearsal-"))
    began, wrong = time.monotonic(), 0
    try:
        with rehearsal(directory, profiles=["ha"] if given.ha else []) as it:
            healthy = "  ".join(f"{name} {seconds:.1f}" for name, seconds in it.stage.healthy_after_s.items())
            print(f"healthy after seconds: {healthy}", flush=True)
            for title, check in (FAILOVER_CHECKS if given.ha else CHECKS).items():
                started = time.monotonic()
                problems = check(it)
                wrong += bool(problems)
                mark = "wrong" if problems else "ok"
                print(f"{mark:<6}{title} ({time.monotonic() - started:.1f} s)", flush=True)
                for problem in problems:
                    print(f"        {problem}", flush=True)
    finally:
        if given.keep:
            print(f"kept: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    print(f"{time.monotonic() - began:.0f} s", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(_main())
