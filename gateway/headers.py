"""Headers of requests and answers: what a client may say about itself, and what it is always told."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable

from actors.messages import Decision, Quota

__all__ = ["ClientHints", "decision_headers", "duration", "hints", "quota_headers", "request_id"]

Headers = list[tuple[bytes, bytes]]

_MOST_RETRIES = 100


def request_id() -> str:
    """`req-` and a UUIDv7-like id: 48 bits of milliseconds, then 80 random ones. Ids of one process sort by time."""
    return f"req-{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def duration(seconds: float) -> str:
    """A time as Go and the OpenAI API write it: `12ms`, `6.5s`, `6m0s`, `1h0m0s`."""
    milliseconds = max(round(seconds * 1000), 0)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes}m{rest / 1000:g}s"
    return f"{hours}h{text}" if hours else text


def quota_headers(quota: Quota) -> Headers:
    """x-ratelimit-{limit,remaining,reset}-{requests,tokens}, for the limits that the tenant has."""
    headers: Headers = []
    for name, limit, left, reset_s in (
        ("requests", quota.requests_limit, quota.requests_left, quota.requests_reset_s),
        ("tokens", quota.tokens_limit, quota.tokens_left, quota.tokens_reset_s),
    ):
        if limit is None:
            continue
        headers += [
            (f"x-ratelimit-limit-{name}".encode(), b"%d" % limit),
            (f"x-ratelimit-remaining-{name}".encode(), b"%d" % max(left or 0, 0)),
            (f"x-ratelimit-reset-{name}".encode(), duration(reset_s).encode()),
        ]
    return headers


def decision_headers(decisions: Iterable[Decision], deadline_ms: float | None) -> Headers:
    """x-headgate-*: of several choices the worst, since the answer is over with the last of them."""
    found = list(decisions)
    if not found:
        return []
    queue_ms = max(decision.deferred_s for decision in found) * 1000
    if any(decision.outcome == "refused" for decision in found):
        outcome = b"refused"
    else:
        outcome = b"deferred" if queue_ms > 0 else b"admitted"
    headers: Headers = [(b"x-headgate-decision", outcome), (b"x-headgate-queue-ms", b"%.3f" % queue_ms)]
    predicted = [decision.predicted_ttft_s for decision in found if decision.predicted_ttft_s is not None]
    if predicted:
        headers.append((b"x-headgate-predicted-ttft-ms", b"%.1f" % (max(predicted) * 1000)))
    if deadline_ms is not None:
        headers.append((b"x-headgate-deadline-ms", b"%.0f" % deadline_ms))
    quota = next((decision.quota for decision in reversed(found) if decision.quota is not None), None)
    return headers + quota_headers(quota) if quota is not None else headers


class ClientHints:
    """What the openai client says of itself. Anything malformed counts as absent: these are hints."""

    __slots__ = ("read_timeout_s", "retries")

    def __init__(self, retries: int = 0, read_timeout_s: float | None = None) -> None:
        self.retries = retries
        self.read_timeout_s = read_timeout_s


def hints(headers: Iterable[tuple[bytes, bytes]]) -> ClientHints:
    """x-stainless-retry-count and x-stainless-read-timeout."""
    found = ClientHints()
    for name, value in headers:
        if name == b"x-stainless-retry-count":
            if value.isdigit() and len(value) < 9:
                found.retries = min(int(value), _MOST_RETRIES)
        elif name == b"x-stainless-read-timeout":
            try:
                seconds = float(value)
            except ValueError:
                continue
            if 0.0 < seconds < 86_400.0:
                found.read_timeout_s = seconds
    return found
