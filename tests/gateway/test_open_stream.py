"""What the reader of a stream is given, however slowly it reads."""

from __future__ import annotations

from gateway.open_stream import OpenStream
from gateway.stream import Stream
from policies.vocabulary import Finish, Request, Sampling, pack_tokens


async def never(stream: OpenStream, finish: Finish) -> None:
    raise AssertionError("nobody closes it here")


async def test_a_busy_reader_gets_what_came_meanwhile() -> None:
    """The stream ends while its reader is at work on the first token: the rest and the reason still come."""
    request = Request(
        id="r",
        attempt=1,
        tenant="t",
        model="m",
        gateway="g",
        prompt=pack_tokens([1, 2]),
        max_tokens=3,
        sampling=Sampling(temperature=0.0),
    )
    opened = OpenStream(Stream(request, 0.0, None), finish=never)
    opened.stream.take(1, 0, 10, Finish.none, None, 1.0)
    opened.wake()
    got = []
    async for delivery in opened.deliveries():
        got.append((delivery.tokens, delivery.finish))
        if len(got) == 1:
            opened.stream.take(1, 1, 11, Finish.none, None, 2.0)
            opened.stream.take(1, 2, 12, Finish.length, None, 2.0)
            opened.wake()
    assert got == [([10], Finish.none), ([11, 12], Finish.length)]
