"""The wire: what an envelope looks like, how it may evolve, and what travels with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from runtime_stage import Done, Note, Stage, play

from actors.runtime import Actor, Context, Message, MessageTooLarge, Record, handles
from actors.runtime.memory_store import MemoryStream
from actors.runtime.message import Failure, Kind, Meta, decode_envelope, pack, tag_of, wire_tag
from actors.runtime.tracing import extract, inject, is_sampled

META = Meta(Kind.TELL, "gateway.g0", 7, 1)
SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = SAMPLED[:-1] + "0"


class Point(Message, frozen=True, tag="point"):
    x: int


class WiderPoint(Message, frozen=True, tag="point"):
    x: int
    y: int = 0


class Traced(Message, frozen=True, tag="traced"):
    trace = True


class Untraced(Message, frozen=True, tag="untraced"):
    pass


def test_an_envelope_is_two_arrays() -> None:
    """`[meta, body]`, and the body's first element is its tag: what another implementation would have to read."""
    wire = msgspec.msgpack.decode(pack(META, Point(3), limit_bytes=1000))
    assert wire == [[0, "gateway.g0", 7, 1, None, "", 0, "", 0, ""], ["point", 3]]


def test_fields_may_be_appended() -> None:
    """An older reader skips what it does not know, a newer one fills in what is not there: in messages and meta."""
    new = decode_envelope(pack(META, WiderPoint(1, 2), limit_bytes=1000))
    assert msgspec.msgpack.decode(new.body, type=Point) == Point(1)
    old = decode_envelope(pack(META, Point(1), limit_bytes=1000))
    assert msgspec.msgpack.decode(old.body, type=WiderPoint) == WiderPoint(1, 0)
    longer = msgspec.msgpack.encode([[0, "a.b", 1, 2, None, "", 0, "", 0, "", "from the future"], ["point", 3]])
    assert decode_envelope(longer).meta == Meta(0, "a.b", 1, 2)
    shorter = msgspec.msgpack.encode([[0, "a.b", 1, 2], ["point", 3]])
    assert decode_envelope(shorter).meta == Meta(0, "a.b", 1, 2)


def test_a_message_is_capped_when_packed() -> None:
    """The error names the type and both sizes."""
    with pytest.raises(MessageTooLarge, match=r"Point packs to \d+ bytes, at most 10"):
        pack(META, Point(1), limit_bytes=10)


def test_the_tag_is_the_verb() -> None:
    """It can be read without knowing the type."""
    assert tag_of(Point) == "point"
    assert wire_tag(decode_envelope(pack(META, Point(1), limit_bytes=1000)).body) == "point"
    assert wire_tag(msgspec.Raw(msgspec.msgpack.encode([1, 2]))) is None
    assert wire_tag(msgspec.Raw(b"\xc1")) is None


def test_failures_survive_the_wire() -> None:
    """Each error comes out as it went in."""
    for failure in (Failure("busy"), Failure("deadline", "", "x"), Failure("failed", "why", "x", 2.5)):
        body = decode_envelope(pack(META, failure, limit_bytes=1000)).body
        error = msgspec.msgpack.decode(body, type=Failure).error()
        assert Failure.of(error).code == failure.code


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "garbage",
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        SAMPLED.upper(),
        SAMPLED + "-extra",
    ],
)
def test_a_malformed_traceparent_is_no_trace(wrong: str) -> None:
    """As the W3C rules have it."""
    assert extract(wrong) is None


def test_a_later_version_of_traceparent_may_be_longer() -> None:
    """The known part is used."""
    remote = extract("01" + SAMPLED[2:] + "-what-the-future-brings")
    assert remote is not None
    assert remote.trace_flags.sampled


def test_the_sampled_flag_is_read() -> None:
    """It decides who records."""
    assert is_sampled(SAMPLED)
    assert not is_sampled(UNSAMPLED)
    assert not is_sampled("")


class Tracing(Actor):
    role = "doer"

    def __init__(self) -> None:
        self.inside: list[str] = []

    @handles
    async def traced(self, msg: Traced, ctx: Context) -> Done:
        self.inside.append(inject())
        return Done()

    @handles
    async def untraced(self, msg: Untraced, ctx: Context) -> Done:
        self.inside.append(inject())
        return Done()


def test_a_sampled_trace_goes_on_in_a_span_of_the_handler() -> None:
    """A CONSUMER span, child of the asker's; an unsampled trace is passed on; other types do not take part."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def scene(stage: Stage) -> None:
        node = await stage.node("doer", "d0")
        node.tracer = provider.get_tracer("test")
        actor = Tracing()
        await stage.serve(node, actor)
        asker = await stage.node()
        with provider.get_tracer("test").start_as_current_span("asking") as asking:
            await asker.ask("doer.d0", Traced(), want=Done)
            await asker.ask("doer.d0", Untraced(), want=Done)
        await asker.ask("doer.d0", Traced(), want=Done, traceparent=UNSAMPLED)
        await asker.ask("doer.d0", Traced(), want=Done)
        handling, asked = exporter.get_finished_spans()
        assert (handling.name, handling.kind) == ("doer traced", trace.SpanKind.CONSUMER)
        assert handling.parent is not None
        assert handling.parent.span_id == asking.get_span_context().span_id
        assert asked.name == "asking"
        assert handling.context is not None
        own = f"00-{asking.get_span_context().trace_id:032x}-{handling.context.span_id:016x}"
        assert actor.inside[0].rpartition("-")[0] == own
        assert is_sampled(actor.inside[0])
        assert actor.inside[1:] == ["", UNSAMPLED, ""]

    play(scene)
    provider.shutdown()


def test_memory_streams_redeliver_what_is_not_acknowledged() -> None:
    """As JetStream: by message id once, after the ack wait again, to each durable consumer apart."""

    async def scene(stage: Stage) -> None:
        transport = (await stage.node()).transport
        await transport.ensure_stream("usage", ["hg.usage.>"])
        with pytest.raises(LookupError):
            await transport.append("hg.audit.x", b"", message_id="1")
        assert await transport.append("hg.usage.a", b"1", message_id="1")
        assert not await transport.append("hg.usage.a", b"1", message_id="1")
        assert await transport.append("hg.usage.b", b"2", message_id="2")
        batches = transport.consume("usage", "ledger", ack_wait_s=5.0)
        first = await anext(batches)
        assert [(record.subject, record.payload) for record in first] == [("hg.usage.a", b"1"), ("hg.usage.b", b"2")]
        await first[0].ack()
        again = await anext(batches)
        assert [(record.payload, record.deliveries) for record in again] == [(b"2", 2)]
        assert asyncio.get_running_loop().time() == pytest.approx(5.0)
        other = await anext(transport.consume("usage", "audit"))
        assert len(other) == 2

    play(scene)


def test_a_memory_consumer_waits_for_news() -> None:
    """Without records it sleeps until one is appended."""

    async def scene(stage: Stage) -> None:
        stream = MemoryStream(["s"])
        batches: AsyncIterator[list[Record]] = stream.consume("d", batch=1, ack_wait_s=60.0)
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(10)
        assert not waiting.done()
        stream.append("s", b"x", "1")
        assert [record.payload for record in await waiting] == [b"x"]

    play(scene)


def test_a_memory_watch_tells_the_latest_last() -> None:
    """Changes are told in order, whatever order the loop runs what is ready in."""

    async def scene(stage: Stage) -> None:
        bucket = await (await stage.node()).transport.bucket("b")
        await bucket.put("k", b"0")
        told: list[tuple[str, bytes | None]] = []
        watch = await bucket.watch(lambda *change: told.append(change))
        for n in range(1, 20):
            await bucket.put("k", str(n).encode())
        await bucket.delete("k")
        await asyncio.sleep(0.1)
        assert told == [("k", str(n).encode()) for n in range(20)] + [("k", None)]
        await watch.close()
        await bucket.put("k", b"x")
        await asyncio.sleep(0.1)
        assert len(told) == 21

    for seed in range(5):
        play(scene, seed=seed)


def test_a_backlog_keeps_order_and_is_bounded() -> None:
    """What does not fit into the transport's buffer waits in order; more than the bound is dropped and counted."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        doer.mailbox = 10_000  # type: ignore[misc]
        asker = await stage.node()
        transport = asker.transport
        publish_now = transport.publish_now
        transport.publish_now = lambda *args: False  # type: ignore[method-assign]

        async def publish(subject: str, payload: bytes, reply: str = "") -> None:
            await asyncio.sleep(0.001)
            publish_now(subject, payload, reply)

        transport.publish = publish  # type: ignore[method-assign]
        for n in range(1500):
            asker.tell_soon("doer.d0", Note(n))
        await asker.tell("doer.d0", Note(9999))
        await asyncio.sleep(5)
        await asker.tell("doer.d0", Note(5000))
        await asyncio.sleep(1)
        assert doer.diary == ["start", *range(1024), 5000]
        assert asker.dead_letters["unsent"] == 1500 - 1024 + 1

    play(scene)
