"""What can go wrong between actors, as exceptions that a caller can tell apart.

An `ask` ends in exactly one of: a reply, `Busy` (the callee's mailbox is full, try elsewhere or later),
`DeadlineExceeded` (time ran out here or there), `Crashed` (the callee died on this message), `NoRoute` (nobody
listens), or `Failed` (the callee refused, with a reason for machines). A handler refuses by raising `Failed`; that
never ends its actor.
"""

from __future__ import annotations

__all__ = (
    "ActorError",
    "Busy",
    "Conflict",
    "Crashed",
    "DeadlineExceeded",
    "Disconnected",
    "Failed",
    "Forbidden",
    "Gap",
    "LeaseLost",
    "MessageTooLarge",
    "NoRoute",
    "StoreUnavailable",
)


class ActorError(Exception):
    """Base of everything the runtime raises on purpose. Raised in a handler it is answered, and the actor lives on."""


class Busy(ActorError):
    """The mailbox of the callee is full; the message was not looked at."""


class DeadlineExceeded(ActorError):
    """The time given to the call ran out, on either side. Whether the work was done is not known."""


class Crashed(ActorError):
    """The callee raised something it did not expect, and was torn down. Whether the work was done is not known."""


class NoRoute(ActorError):
    """Nobody is subscribed to the destination."""


class Forbidden(NoRoute):
    """The server's permissions do not let this role use the subject."""


class Disconnected(NoRoute):
    """The connection is closed, or away while the buffer for what waits to be sent is full."""


class Gap(ActorError):
    """A streaming reply lost an item.

    `expected` is the index that did not come, `got` the one that did (None: the end).
    """

    def __init__(self, expected: int, got: int | None) -> None:
        super().__init__(f"stream item {expected} is missing, got {'nothing more' if got is None else got}")
        self.expected = expected
        self.got = got


class Failed(ActorError):
    """A refusal with a reason for machines (`draining`, `unknown-message`, `stale-epoch`, or an actor's own)."""

    def __init__(self, reason: str, detail: str = "", *, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s


class MessageTooLarge(ActorError):
    """A packed message exceeds what the transport takes; sending it would cost the whole connection."""

    def __init__(self, name: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"{name} packs to {size_bytes} bytes, at most {limit_bytes} can be sent: split it")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class Conflict(ActorError):
    """A compare-and-set found another revision than the one expected."""


class StoreUnavailable(ActorError):
    """The key-value store or the stream did not answer in time, or refused. Whether a write was done is not known."""


class LeaseLost(ActorError):
    """The lease is no longer ours: somebody else holds it, or it could not be renewed in time."""
