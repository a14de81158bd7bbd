"""An OpenAI backend that does no work: 64 tokens at once, streamed one chunk a write, or whole.

What a proxy adds is what it takes longer than this. Raw sockets, so that it takes little of the core that it shares
with the client.

    python -m benchmarks._fake_backend PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import uvloop

__all__ = ["MODEL", "TOKENS"]

TOKENS = 64
MODEL = "fake"
_CHUNK = {"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
_USAGE = {"prompt_tokens": 40, "completion_tokens": TOKENS, "total_tokens": 40 + TOKENS}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _event(delta: dict[str, str], finish: str | None) -> bytes:
    chunk = {**_CHUNK, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    event = f"data: {_json(chunk)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


_EVENTS = [
    *(_event({"role": "assistant", "content": f"tok{i} "}, None) for i in range(TOKENS)),
    _event({}, "length"),
    b"e\r\ndata: [DONE]\n\n\r\n",
    b"0\r\n\r\n",
]
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_WHOLE_BODY = _json(
    {
        "id": "chatcmpl-x",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(f"tok{i} " for i in range(TOKENS))},
                "finish_reason": "length",
            }
        ],
        "usage": _USAGE,
    }
).encode()
_WHOLE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_WHOLE_BODY) + _WHOLE_BODY
)


class _Backend(asyncio.Protocol):
    """One connection; requests one after another."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's have not that base
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return
        self._received = body[length:]
        if not json.loads(body[:length] or b"{}").get("stream"):
            self._transport.write(_WHOLE)
            return
        self._transport.write(_STREAM_HEAD)
        for event in _EVENTS:
            self._transport.write(event)


async def _main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Backend, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1])))
