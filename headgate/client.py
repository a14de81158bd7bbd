"""The admin API of a running stack, for commands: find it, ask it, and say in one line what went wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from headgate.errors import HeadgateError

__all__ = ["ENDPOINTS_FILE", "AdminClient", "Endpoints", "read_endpoints"]

ENDPOINTS_FILE = "endpoints.json"
_ADMIN_KEY_FILE = "admin.key"
_DEFAULT_ADMIN_URL = "http://127.0.0.1:8081"
_TIMEOUT_S = 15.0
#: Frames come every second at least.
_FRAME_TIMEOUT_S = 5.0
_DATA = "data:"


class Endpoints(msgspec.Struct, frozen=True):
    """`<data>/endpoints.json`, written by `serve` when it is ready."""

    api: str
    admin: str


def read_endpoints(data: Path) -> Endpoints | None:
    """Where the stack of this data directory listens, or did; None if it was never ready."""
    try:
        return msgspec.json.decode((data / ENDPOINTS_FILE).read_bytes(), type=Endpoints)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise HeadgateError(f"{data / ENDPOINTS_FILE} cannot be read: {error}") from error


class AdminClient:
    """Use it as a context manager. Every failure is a HeadgateError."""

    def __init__(self, *, data: Path, admin_url: str | None = None) -> None:
        """Finds the stack: `admin_url`, else `<data>/endpoints.json`, else the default port of this machine.

        The key is HEADGATE_ADMIN_KEY, else in the file HEADGATE_ADMIN_KEY_FILE, else in `<data>/admin.key`.
        """
        self._data = data
        endpoints = None if admin_url else read_endpoints(data)
        self.url = (admin_url or (endpoints.admin if endpoints else _DEFAULT_ADMIN_URL)).rstrip("/")
        self._named = admin_url is not None
        key = self._key()
        try:
            # Proxies of the environment are for the world outside; the admin port is inside.
            self._http = httpx.Client(
                base_url=f"{self.url}/admin/v1/",
                headers={"authorization": f"Bearer {key}"},
                timeout=_TIMEOUT_S,
                trust_env=False,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise HeadgateError(f"the admin URL {self.url!r} is not a URL: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int | None) -> dict[str, Any]:
        return self._ask("GET", path, params={name: value for name, value in query.items() if value not in (None, "")})

    @contextmanager
    def frames(self) -> Iterator[Iterator[bytes]]:
        """The live view, frame by frame as JSON, until the stack ends it. Both the context and the iterator raise
        HeadgateError where there is none, or it breaks off."""
        try:
            with self._http.stream("GET", "live", timeout=_FRAME_TIMEOUT_S) as answer:
                if not answer.is_success:
                    answer.read()
                    self._read(answer)
                yield self._data_of(answer)
        except httpx.ConnectError as error:
            if self._named:
                raise HeadgateError(f"no stack answers at {self.url}: {error}") from error
            raise self._not_running() from error
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise HeadgateError(f"the stack at {self.url} gave no answer: {what}") from error

    def _data_of(self, answer: httpx.Response) -> Iterator[bytes]:
        try:
            for line in answer.iter_lines():
                if line.startswith(_DATA):
                    yield line.removeprefix(_DATA).strip().encode()
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise HeadgateError(f"the stack at {self.url} broke off: {what}") from error

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._ask("POST", path, json=body or {})

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._ask("PATCH", path, json=body)

    def delete(self, path: str) -> dict[str, Any]:
        return self._ask("DELETE", path)

    def _key(self) -> str:
        from_environment = os.environ.get("HEADGATE_ADMIN_KEY")
        if from_environment:
            return self._checked(from_environment, "HEADGATE_ADMIN_KEY")
        mounted = os.environ.get("HEADGATE_ADMIN_KEY_FILE")
        path = Path(mounted) if mounted else self._data / _ADMIN_KEY_FILE
        try:
            return self._checked(path.read_text(), str(path))
        except FileNotFoundError:
            if self._named or mounted:
                raise HeadgateError(
                    f"there is no admin key: {path} is missing, and HEADGATE_ADMIN_KEY is not set"
                ) from None
            raise self._not_running() from None
        except (OSError, UnicodeDecodeError) as error:
            raise HeadgateError(f"the admin key {path} cannot be read: {error}") from error

    @staticmethod
    def _checked(text: str, source: str) -> str:
        key = text.strip()
        if not key or not key.isascii() or not key.isprintable():
            raise HeadgateError(f"{source} does not hold an admin key, which looks like sk-hg-admin-...")
        return key

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.ConnectError as error:
            if self._named:
                raise HeadgateError(f"no stack answers at {self.url}: {error}") from error
            raise self._not_running() from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            what = str(error) or type(error).__name__
            raise HeadgateError(f"the stack at {self.url} gave no answer: {what}") from error
        return self._read(answer)

    def _read(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            content = answer.json()
            if answer.is_success:
                return dict(content)
            message = str(content["error"]["message"])
        except (ValueError, KeyError, TypeError):
            raise HeadgateError(
                f"{self.url} answered {answer.status_code}, and not as the admin API of a stack does"
            ) from None
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise HeadgateError(f"{self.url} does not take the admin key of {self._key_source()}: {message}")
        raise HeadgateError(message)

    def _key_source(self) -> str:
        if os.environ.get("HEADGATE_ADMIN_KEY"):
            return "HEADGATE_ADMIN_KEY"
        return os.environ.get("HEADGATE_ADMIN_KEY_FILE") or str(self._data / _ADMIN_KEY_FILE)

    def _not_running(self) -> HeadgateError:
        return HeadgateError(f"no stack is running for --data {self._data}: start one with `headgate serve`")
