"""Bounds of the edge. Nothing that a client can make large is without one."""

from __future__ import annotations

import msgspec

__all__ = ["EdgeSettings"]


class EdgeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits and times of the HTTP side of one gateway process."""

    gateway: str = "gateway-0"  # instance name: owns the streams, travels in every Request

    max_body_bytes: int = 4 * 1024 * 1024
    max_headers: int = 100
    max_header_bytes: int = 64 * 1024
    max_json_depth: int = 32
    max_messages: int = 1024
    max_requests: int = 1024  # HTTP requests under way at once; above: 503
    max_connections: int = 4096  # open sockets, idle ones included; above: 503 and close
    body_timeout_s: float = 30.0  # to read a whole body
    header_timeout_s: float = 15.0  # from connect, or the first byte of a later request, to the end of the headers
    write_timeout_s: float = 60.0  # a reader that takes nothing for so long is gone

    max_choices: int = 64  # prompts x n of one request
    max_n: int = 16
    max_logprobs: int = 20
    max_logit_bias: int = 1024
    max_stop: int = 4
    max_stop_chars: int = 256
    default_max_tokens: int = 4096  # where the request has none: at most so many, and what is left of the context

    patience_s: float = 30.0  # wait for admission of a request without a deadline
    ping_interval_s: float = 15.0  # silence after which a stream gets a comment line

    # Up to so many characters are tokenised in the event loop: 0.3 ms, less than the way to a thread and back takes.
    tokenise_inline_chars: int = 2048
    tokenise_threads: int = 2
    tokenise_queue: int = 256  # texts waiting or under way; above: 503
