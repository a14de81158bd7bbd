"""The clients of the rehearsal: tenants made through the operators' port, requests by the `openai` client through the
clients' port, streamed and not, one that is refused for its tenant's limit, one for its contract, one that leaves.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from deploy.rehearsal.stage import Stage

__all__ = ["Answer", "Traffic", "wait_until"]

#: Contracts that a CPU keeps, one that nothing keeps, and a limit of one request at once.
_TENANTS: dict[str, dict[str, Any]] = {
    "acme": {"tier": "priority", "ttft_ms": 5000, "tpot_ms": 1000, "attainment": 0.9, "weight": 4},
    "burst": {"tier": "default", "rpm": 1},
    "impatient": {"tier": "priority", "ttft_ms": 0.01, "tpot_ms": 0.01, "attainment": 0.9},
}
_PROMPT = "count: 1 to 12"
_LONG_PROMPT = "count: 1 to 96"
_LONG_ANSWER = " ".join(map(str, range(1, 97)))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client received. `arrivals`: of the events of a stream, seconds after it asked. `status`: of a refusal."""

    tenant: str
    kind: str
    trace: str
    output_tokens: int = 0
    finish: str = ""
    arrivals: tuple[float, ...] = ()
    status: int = 0
    code: str = ""
    is_right: bool = True


class Traffic:
    """`wave` sends one of each kind; `keep_going` does so until `stop`, since rates need more than one sample."""

    def __init__(self, stage: Stage) -> None:
        self._base_url = stage.url("proxy", 8080)
        self._http = openai.DefaultHttpxClient(trust_env=False)
        self.answers: list[Answer] = []
        self._keys = _make_tenants(stage.url("proxy", 8081), stage.secret("admin-key"))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def wave(self) -> list[Answer]:
        """One of each kind, one after the other."""
        wave = [self.stream(), self.whole(), self.leave(), self.refused("burst"), self.refused("impatient")]
        self.answers += wave
        return wave

    def keep_going(self, every_s: float = 2.0) -> None:
        def run() -> None:
            try:
                while not self._stop.wait(every_s):
                    self.wave()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="traffic")
        self._thread.start()

    def stop(self) -> None:
        """Idempotent. :raises BaseException: what ended the traffic early."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    def stream(self, *, begun: threading.Event | None = None, retries: int = 0) -> Answer:
        """A stream to its end. `begun` is set when its first event is there. `retries`: of refusals."""
        began = time.monotonic()
        raw = self._client("acme", retries=retries).chat.completions.with_raw_response.create(
            model="headgate-demo",
            messages=[{"role": "user", "content": _LONG_PROMPT}],
            stream=True,
            stream_options={"include_usage": True},
            temperature=0,
            max_tokens=512,
        )
        arrivals, tokens, finish, text = [], 0, "", ""
        for chunk in raw.parse():
            arrivals.append(time.monotonic() - began)
            if begun is not None:
                begun.set()
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
            finish = next((choice.finish_reason for choice in chunk.choices if choice.finish_reason), finish)
        trace, is_right = _trace(raw.headers), text == _LONG_ANSWER
        return Answer("acme", "stream", trace, tokens, finish, tuple(arrivals), is_right=is_right)

    def whole(self) -> Answer:
        """An answer in one piece."""
        raw = self._client("acme").chat.completions.with_raw_response.create(
            model="headgate-demo", messages=[{"role": "user", "content": _PROMPT}], temperature=0, max_tokens=64
        )
        parsed = raw.parse()
        assert parsed.usage is not None
        finish = str(parsed.choices[0].finish_reason)
        return Answer("acme", "whole", _trace(raw.headers), parsed.usage.completion_tokens, finish)

    def leave(self) -> Answer:
        """A client that goes away after the first event."""
        raw = self._client("acme").chat.completions.with_raw_response.create(
            model="headgate-demo",
            messages=[{"role": "user", "content": _LONG_PROMPT}],
            stream=True,
            max_tokens=1500,
            extra_body={"ignore_eos": True},
        )
        stream = raw.parse()
        next(iter(stream))
        stream.close()
        return Answer("acme", "leave", _trace(raw.headers))

    def refused(self, tenant: str) -> Answer:
        """A request that is not served. `burst` may have one in a minute: the first of all is served."""
        for _ in range(2):
            try:
                self._client(tenant).chat.completions.create(
                    model="headgate-demo", messages=[{"role": "user", "content": _PROMPT}], max_tokens=8
                )
                self.answers.append(Answer(tenant, "first", ""))
            except openai.APIStatusError as error:
                trace = _trace(error.response.headers)
                return Answer(tenant, "refused", trace, status=error.status_code, code=str(error.code))
        raise AssertionError(f"{tenant} was served twice")

    def _client(self, tenant: str, *, retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self._base_url}/v1",
            api_key=self._keys[tenant],
            max_retries=retries,
            timeout=60.0,
            http_client=self._http,
        )


def wait_until(condition: Any, *, timeout_s: float, what: str, every_s: float = 0.25) -> Any:
    """The first true value of `condition()`. :raises TimeoutError: with `what`, if there is none in time."""
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)
    return value


def _make_tenants(admin_url: str, admin_key: str) -> dict[str, str]:
    headers = {"authorization": f"Bearer {admin_key}"}
    keys = {}
    with httpx.Client(base_url=f"{admin_url}/admin/v1/", headers=headers, trust_env=False) as admin:
        for name, fields in _TENANTS.items():
            admin.post("tenants", json={"name": name, **fields}).raise_for_status()
            keys[name] = str(admin.post("keys", json={"tenant": name}).raise_for_status().json()["key"])
    return keys


def _trace(headers: Any) -> str:
    return str(headers.get("traceparent", "--")).split("-")[1]
