"""Messages and the envelope they travel in.

A message is a frozen msgspec Struct, encoded as an array whose first element is its tag; the tag is the verb. On the
wire it is the second half of an envelope `[meta, body]`. The body stays raw until its reader is known, so that a node
can refuse, fence or route a message without knowing its type. What other systems put in headers (deadline, trace,
epoch) is in `meta`: NATS headers cost 39 % of the receive throughput, two more array elements cost a third of a
microsecond.

Wire version 1: fields of messages and of `Meta` are only ever appended, with defaults. Older readers skip what they do
not know, newer ones fill in what they do not find.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar, TypeVar

import msgspec

from actors.runtime.errors import (
    ActorError,
    Busy,
    Crashed,
    DeadlineExceeded,
    Failed,
    MessageTooLarge,
    NoRoute,
)

__all__ = ("Envelope", "Failure", "Kind", "Message", "Meta", "decode_envelope", "pack", "tag_of", "wire_tag")

M = TypeVar("M", bound="Message")


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of everything actors say to each other.

    Subclasses give a tag: `class Step(Message, frozen=True, tag="step")`. `gc=False` keeps the collector from visiting
    them: they may hold containers, but must not be part of a cycle.
    """

    #: Handling this message opens a span (if its trace is sampled). Never set it on what is sent per step or per token.
    trace: ClassVar[bool] = False
    #: Receivers drop this message when they have seen a higher epoch of the sender's lease.
    fenced: ClassVar[bool] = True


class Kind(IntEnum):
    """What an envelope is for."""

    TELL = 0
    ASK = 1
    STREAM = 2  # an ask for many; `index` is the first credit
    REPLY = 3
    ITEM = 4  # `index` counts from 1
    END = 5  # `index` is the number of items sent
    ERROR = 6  # the body is a Failure
    CANCEL = 7  # give up the call whose reply subject is in `call`
    CREDIT = 8  # items up to `index` of the stream in `call` may be sent


class Meta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """About a message: who, which, and for how long.

    `sequence` counts the messages from this run of the sender to this destination. `remaining_s` is time left when the
    message was sent, never an instant: the receiver anchors it to its own clock. `fence` and `epoch` are the lease that
    the sender holds ("" and 0: none).
    """

    kind: int
    sender: str
    run: int
    sequence: int
    remaining_s: float | None = None
    fence: str = ""
    epoch: int = 0
    traceparent: str = ""
    index: int = 0
    call: str = ""


class Envelope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message whose body has not been decoded yet."""

    meta: Meta
    body: msgspec.Raw


class Failure(Message, frozen=True, tag="failure"):
    """The wire form of an `ActorError`."""

    code: str
    reason: str = ""
    detail: str = ""
    retry_after_s: float = 0.0

    @staticmethod
    def of(error: ActorError) -> Failure:
        """The failure that tells a caller about `error`. What went wrong further down is told as `Failed`."""
        if isinstance(error, Failed):
            return Failure("failed", error.reason, error.detail, error.retry_after_s)
        if isinstance(error, Busy):
            return Failure("busy", "", str(error))
        if isinstance(error, DeadlineExceeded):
            return Failure("deadline", "", str(error))
        if isinstance(error, Crashed):
            return Failure("crashed", "", str(error))
        reason = "no-route" if isinstance(error, NoRoute) else type(error).__name__.lower()
        return Failure("failed", reason, str(error))

    def error(self) -> ActorError:
        """The exception to raise at the caller."""
        if self.code == "busy":
            return Busy(self.detail)
        if self.code == "deadline":
            return DeadlineExceeded(self.detail)
        if self.code == "crashed":
            return Crashed(self.detail)
        return Failed(self.reason, self.detail, retry_after_s=self.retry_after_s)


_encoder = msgspec.msgpack.Encoder()
_envelopes = msgspec.msgpack.Decoder(Envelope)
_anything = msgspec.msgpack.Decoder()


def pack(meta: Meta, body: Message | None, *, limit_bytes: int) -> bytes:
    """Encode an envelope.

    :raises MessageTooLarge: if it has more than `limit_bytes`.
    """
    payload = _encoder.encode((meta, body))
    if len(payload) > limit_bytes:
        raise MessageTooLarge(type(body).__name__, len(payload), limit_bytes)
    return payload


def decode_envelope(payload: bytes) -> Envelope:
    """Decode the meta half.

    :raises msgspec.MsgspecError: if the bytes are not an envelope.
    """
    return _envelopes.decode(payload)


def tag_of(message_type: Any) -> str:
    """The tag a message type was declared with.

    :raises TypeError: if it is not a `Message` with a string tag.
    """
    if not isinstance(message_type, type) or not issubclass(message_type, Message):
        raise TypeError(f"{message_type!r} is not a Message type")
    tag = message_type.__struct_config__.tag
    if not isinstance(tag, str):
        raise TypeError(f'{message_type.__name__} has no tag: declare it with tag="..."')
    return tag


def wire_tag(body: msgspec.Raw) -> str | None:
    """The tag of an encoded message, or None if this is not a tagged message at all."""
    try:
        value = _anything.decode(body)
    except msgspec.MsgspecError:
        return None
    match value:
        case [str() as tag, *_]:
            return tag
    return None
