"""What `headgate top` draws fits its terminal, and says what a frame says."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from gateway.live.frame import (
    DecisionRow,
    Frame,
    KvRow,
    Promise,
    Promised,
    QueueRow,
    RunningRow,
    Slack,
    StepRow,
    TenantRow,
    WorkerRow,
)
from headgate.errors import HeadgateError
from headgate.top.screen import drawn, printed
from headgate.top.state import Follower, Known
from headgate.top.strokes import bar, share_line, sparkline, stacked_bar


def tenant(name: str, *, kept: bool | None = True, refused: int = 0, share: float | None = 1.0) -> TenantRow:
    promise = Promise(judged=10, kept=9, share=share, p50_ms=100.0, p95_ms=400.0)
    return TenantRow(
        name=name,
        tier="priority",
        weight=4.0,
        contract=Promised(ttft_ms=500.0, ttft_per_1k_ms=0.0, tpot_ms=50.0, attainment=0.95),
        ttft=promise,
        tpot=promise,
        kept=kept,
        running=3,
        waiting=1,
        admitted=20,
        deferred=2,
        refused={"ttft_unattainable": refused} if refused else {},
        service_share=0.5,
        history=[None] * 50 + [1.0] * 5 + [0.6] * 5,
    )


def refusal(sequence: int = 1) -> DecisionRow:
    return DecisionRow(
        sequence=sequence,
        at=1_000_000.0 + sequence,
        request=f"req-{sequence}",
        tenant="acme",
        tier="priority",
        model="m",
        outcome="refused",
        reason="ttft_unattainable",
        message="the first token would come after 1.175 s, the contract allows 0.500 s",
        measured=1.175,
        threshold=0.5,
        predicted_ttft_ms=1175.0,
        predicted_tpot_ms=25.0,
        deadline_ms=500.0,
        retry_after_ms=800.0,
        deferred_ms=None,
        prompt_tokens=106,
        max_tokens=543,
    )


def step(number: int) -> StepRow:
    return StepRow(
        model="m",
        worker="w0",
        number=number,
        at=1_000_000.0 + number * 0.025,
        prefill_tokens=64 if number % 7 == 0 else 0,
        decode_tokens=12,
        rows=12,
        predicted_ms=25.0,
        actual_ms=26.0,
    )


def worker(name: str, state: str = "ready") -> WorkerRow:
    return WorkerRow(
        model="m",
        worker=name,
        instance=name,
        epoch=7,
        heartbeat_age_ms=50.0,
        state=state,
        steps_per_s=39.9,
        rows=12,
        slots=12,
        device="mock",
    )


def frame(**changes: Any) -> Frame:
    parts: dict[str, Any] = {
        "at": 1_000_000.0,
        "gateway": "g0",
        "full": True,
        "models": ["m"],
        "tenants": [tenant("acme"), tenant("globex-with-a-very-long-name-indeed", kept=False, refused=77)],
        "decisions": [refusal(i) for i in range(1, 60)],
        "steps": [step(i) for i in range(1, 400)],
        "kv": [
            KvRow(model="m", worker="w0", states={"used": 30, "free": 70, "cached": 9, "host": 0}, owners={"a": 30})
        ],
        "queue": [QueueRow(model="m", tier="priority", waiting=3, slack_ms=Slack(min=-441.2, p50=10.0))],
        "running": [
            RunningRow(
                request="req-01a1fcdda6596ff45c20cb95405069db-0",
                tenant="acme",
                tier="priority",
                model="m",
                worker="w0",
                phase="preempted",
                prompt_tokens=100,
                computed=120,
                generated=20,
                slack_ms=-3.2,
            )
        ],
        "workers": [worker("w0"), worker("w1", "silent")],
        "processes": [],
    }
    return Frame(**(parts | changes))


def known(**changes: Any) -> Known:
    one = frame(**changes)
    return Known(one, tuple(one.steps), tuple(one.decisions))


def lines(what: Any, *, width: int, height: int) -> list[str]:
    """What a terminal of that size shows."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=False, legacy_windows=False)
    console.print(what, end="")
    return out.getvalue().split("\n")


@pytest.mark.parametrize(
    ("width", "height"),
    [(80, 24), (80, 50), (100, 30), (112, 30), (120, 40), (159, 60), (160, 24), (200, 50), (40, 10)],
)
@pytest.mark.parametrize("tenants", [0, 2, 40])
def test_the_screen_is_never_exceeded(width: int, height: int, tenants: int) -> None:
    """However much there is to show, and however little room."""
    state = known(tenants=[tenant(f"tenant-{i}") for i in range(tenants)], workers=[worker(f"w{i}") for i in range(20)])
    shown = lines(drawn(state, width=width, height=height), width=width, height=height)
    assert len([line for line in shown if line]) <= height
    assert max(cell_len(line) for line in shown) <= width


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 50)])
def test_one_screen_answers_the_three_questions(width: int, height: int) -> None:
    """Is every contract kept; who is refused and why; what is in the batch now. From 80x24 up."""
    text = "\n".join(lines(drawn(known(), width=width, height=height), width=width, height=height))
    assert "1 of 2 contracts broken: globex" in text
    assert "✗" in text
    assert "90.0/95%" in text or "100.0/95%" in text
    assert "77" in text
    assert "refused" in text
    assert "ttft_unattainable" in text
    assert "retry in 0.8 s" in text if width != 120 else "1.175 s" in text
    for part in ("tenants", "decisions", "steps", "queue", "workers"):
        assert f"{part} ─" in text
    assert "12 tokens" in text
    assert "26.0 ms of 25.0" in text
    assert "3 waiting" in text
    assert "-441" in text
    assert "silent" in text
    assert "30% of 100" in text


def test_a_broken_contract_is_shown_first() -> None:
    """Then the busiest; of those that do not fit it is said how many they are."""
    tenants = [tenant(f"t{i:02}") for i in range(30)] + [tenant("zz-broken", kept=False)]
    shown = lines(drawn(known(tenants=tenants), width=80, height=24), width=80, height=24)
    assert any("zz-broken" in line for line in shown[2:4])
    assert any("more" in line and "…" in line for line in shown)


def test_the_newest_decision_is_on_top() -> None:
    """As they happen."""
    shown = lines(drawn(known(), width=200, height=50), width=200, height=50)
    at = [i for i, line in enumerate(shown) if "refused  acme" in line]
    assert len(at) > 10
    newest, oldest = shown[at[0]], shown[at[-1]]
    assert newest.split()[0] > oldest.split()[0]


def test_a_lost_connection_is_said_above_what_was_known() -> None:
    """The last frame stays, and does not look fresh."""
    state = known()
    lost = Known(state.frame, state.steps, state.decisions, "no stack answers")
    shown = lines(drawn(lost, width=80, height=24), width=80, height=24)
    assert "no connection" in shown[0]
    assert any("acme" in line for line in shown)


def test_nothing_known_yet_is_drawn_too() -> None:
    """Before the first frame, and of a stack in which nothing has happened."""
    for state in (Known(), known(tenants=[], steps=[], decisions=[], kv=[], queue=[], running=[], workers=[])):
        text = "\n".join(lines(drawn(state, width=80, height=24), width=80, height=24))
        assert "no step yet" in text
        assert "no decision yet" in text
        assert "\n".join(lines(printed(state, width=80), width=80, height=99))


def test_printing_shows_every_row() -> None:
    """`--once` has no height to fit into."""
    tenants = [tenant(f"tenant-{i}") for i in range(40)]
    text = "\n".join(lines(printed(known(tenants=tenants), width=160), width=160, height=999))
    assert all(f"tenant-{i} " in text for i in range(40))


class Scripted:
    """A client whose live view is a list; then it breaks off."""

    def __init__(self, bodies: list[bytes]) -> None:
        self.bodies = bodies

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @contextmanager
    def frames(self) -> Iterator[Iterator[bytes]]:
        def told() -> Iterator[bytes]:
            yield from self.bodies
            raise HeadgateError("it broke off")

        yield told()


def test_frames_add_up_and_a_full_one_begins_anew() -> None:
    """Steps and decisions of later frames go behind those of earlier ones; after a reconnect nothing is there twice."""
    follower = Follower(lambda: Scripted([]))  # type: ignore[arg-type, return-value]
    follower.take(msgspec.json.encode(frame(steps=[step(1)], decisions=[refusal(1)])))
    follower.take(msgspec.json.encode(frame(full=False, steps=[step(2)], decisions=[])))
    assert [row.number for row in follower.known().steps] == [1, 2]
    assert [row.sequence for row in follower.known().decisions] == [1]
    follower.take(msgspec.json.encode(frame(steps=[step(2)], decisions=[refusal(1)])))
    assert [row.number for row in follower.known().steps] == [2]
    with pytest.raises(HeadgateError, match="another version"):
        follower.take(b'{"at": 1}')


def test_a_stream_that_breaks_off_is_followed_again() -> None:
    """With a client made anew; meanwhile what went wrong is known."""
    made: list[Scripted] = []

    def connect() -> Any:
        made.append(Scripted([msgspec.json.encode(frame())]))
        return made[-1]

    follower = Follower(connect)
    follower.start()
    try:
        assert follower.wait(5.0)
        while not follower.known().trouble:
            assert follower.wait(5.0)
        assert follower.known().trouble == "it broke off"
        while len(made) < 2:
            assert follower.wait(5.0)
        assert follower.known().frame is not None
    finally:
        follower.stop()


def test_strokes_are_as_long_as_their_amounts() -> None:
    """Bars to an eighth of a character; sparklines of the last values; shares below the aim in red."""
    assert bar(0.5, width=4) == "██  "
    assert bar(2.0, width=4) == "████"
    assert bar(0.15625, width=4) == "▋   "
    assert sparkline([9, 0, 1, 4, 8], width=4, most=8) == " ▂▅█"
    assert sparkline([0, 0], width=4, most=0) == "  "
    line = share_line([None, 1.0, 0.6], width=3, aim=0.95)
    assert (line.plain[0], line.plain[1]) == ("·", "█")
    assert [str(span.style) for span in line.spans] == ["dim", "green", "red"]
    stacked = stacked_bar([(2, "cyan"), (2, "blue")], width=8, most=8)
    assert (stacked.plain, [(span.start, span.end) for span in stacked.spans]) == ("████    ", [(0, 2), (2, 4)])
