"""The usage and audit streams: names, subjects and the form of a usage record. Shared by who writes and who folds
them."""

from __future__ import annotations

import msgspec

from actors.messages import UsageOpened, UsageSettled

__all__ = [
    "AUDIT_STREAM",
    "AUDIT_SUBJECT",
    "OPENED_SUBJECT",
    "SETTLED_SUBJECT",
    "USAGE_STREAM",
    "UsageRecord",
    "decode_usage",
    "encode_usage",
]

USAGE_STREAM = "usage"
OPENED_SUBJECT = "hg.usage.opened"
SETTLED_SUBJECT = "hg.usage.settled"
AUDIT_STREAM = "audit"
AUDIT_SUBJECT = "hg.audit.changes"

UsageRecord = UsageOpened | UsageSettled

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[UsageRecord] = msgspec.msgpack.Decoder(UsageRecord)


def encode_usage(record: UsageRecord) -> bytes:
    """A usage record as it lies in the stream."""
    return _encoder.encode(record)


def decode_usage(payload: bytes) -> UsageRecord:
    """Raises msgspec.DecodeError for what is no usage record."""
    return _decoder.decode(payload)
