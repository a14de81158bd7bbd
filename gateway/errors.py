"""What the edge answers when it cannot serve: one exception a row of the error table, all of them OpenAI-shaped.

`ApiError` knows its status, its JSON body and whether coming back helps; nothing else in the gateway builds an error
body.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from actors.messages import Decision
from policies.admission.reasons import Reason, http_error

__all__ = [
    "ApiError",
    "BadRequest",
    "BodyTooLarge",
    "ContextTooLong",
    "GatewayError",
    "ModelNotFound",
    "ModelTextError",
    "Overloaded",
    "Unauthorized",
    "error_body",
    "refusal",
]

#: Above this the openai client does not retry at all, so it is told not to.
LONGEST_RETRY_S = 120.0


class GatewayError(Exception):
    """Base of everything that the gateway raises by itself."""


class ModelTextError(GatewayError):
    """The text files of a model directory (tokenizer, template, configuration) cannot be used."""


class ApiError(GatewayError):
    """An answer other than 200. `headers` are added to those that every answer has.

    `should_retry` None leaves the decision to the status; `retry_after_s` None means that waiting does not help.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",  # noqa: A002 - the wire's word
        code: str | None = "invalid_value",
        param: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        decision: Decision | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry
        self.headers = headers
        self.decision = decision

    def body(self) -> bytes:
        """The JSON that the openai client unwraps."""
        return error_body(self.message, type=self.type, code=self.code, param=self.param)

    def retry_headers(self) -> list[tuple[bytes, bytes]]:
        """`retry-after`, `retry-after-ms` and `x-should-retry`, as far as they apply."""
        headers = []
        should_retry = self.should_retry
        if self.retry_after_s is not None:
            seconds = max(self.retry_after_s, 0.001)
            headers.append((b"retry-after", b"%d" % math.ceil(seconds)))
            headers.append((b"retry-after-ms", b"%d" % math.ceil(seconds * 1000)))
            if seconds > LONGEST_RETRY_S:
                should_retry = False
        if should_retry is not None:
            headers.append((b"x-should-retry", b"true" if should_retry else b"false"))
        return headers


class BadRequest(ApiError):
    """400: `param` names the field, the message its value and what would be right."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message, param=param, code=code)


class ContextTooLong(ApiError):
    """400: prompt and output cannot fit into the model's context."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class BodyTooLarge(ApiError):
    """413. The connection is closed after it, because the rest of the body is not read."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"The body is larger than {limit_bytes} bytes, the most that is taken.",
            status=413,
            code="request_too_large",
            headers=((b"connection", b"close"),),
        )


class Unauthorized(ApiError):
    """401: the key is bad, missing, revoked or expired. The message never repeats the key."""

    def __init__(self, message: str = "A valid API key is needed: send `Authorization: Bearer sk-hg-...`.") -> None:
        super().__init__(
            message,
            status=401,
            code="invalid_api_key",
            should_retry=False,
            headers=((b"www-authenticate", b"Bearer"),),
        )


class ModelNotFound(ApiError):
    """404: unknown, or not in the key's scope; which of both is not told."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The model `{name[:100]}` does not exist or this key may not use it: GET /v1/models lists what it may.",
            status=404,
            code="model_not_found",
            param="model",
            should_retry=False,
        )


class Overloaded(ApiError):
    """503: this gateway process is at one of its own bounds (connections, tokenising)."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(
            message,
            status=503,
            type="service_unavailable_error",
            code="overloaded",
            retry_after_s=retry_after_s,
        )


class _Detail(msgspec.Struct, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class _Body(msgspec.Struct):
    error: _Detail


def error_body(message: str, *, type: str, code: str | None, param: str | None = None) -> bytes:  # noqa: A002
    """`{"error": {message, type, param, code}}`, as JSON."""
    return msgspec.json.encode(_Body(_Detail(message=message, type=type, param=param, code=code)))


def refusal(decision: Decision) -> ApiError:
    """The error of a request that admission refused, by the table of `policies.admission.reasons`."""
    try:
        row = http_error(Reason(decision.reason))
    except ValueError:  # a newer admission knows a reason that this gateway does not: it is still a refusal
        row = None
    options: dict[str, Any] = {"retry_after_s": decision.retry_after_s, "decision": decision}
    message = decision.message or f"The request was refused: {decision.reason or 'no reason was given'}."
    if row is None:
        return ApiError(message, status=503, type="service_unavailable_error", code=decision.reason or None, **options)
    # Nothing to wait for, or nothing that waiting improves: the client is told not to come back by itself.
    should_retry = None if row.retry and decision.retry_after_s is not None else False
    return ApiError(message, status=row.status, type=row.type, code=row.code, should_retry=should_retry, **options)
