# What stands before the application: request id and log line, security headers, Host, Origin, API key, body limits.
# Entry points: Gate (ASGI middleware), GateRules.
# The whole body is read here, within a size and a time, so that no route ever waits for a slow client.
"""The gate of the server."""

from __future__ import annotations

import asyncio
import hmac
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hildanext.api.replies import error_reply

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "testserver"})
OPEN_PATHS = frozenset({"/", "/fill", "/health", "/live", "/favicon.ico"})
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    ("content-security-policy", POLICY), ("x-content-type-options", "nosniff"), ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"), ("cross-origin-resource-policy", "same-origin"),
)  # fmt: skip


@dataclass(frozen=True)
class GateRules:
    """Limits and keys. key: None when none is asked for; hosts: Host names answered to, empty for any."""

    body_bytes: int
    body_seconds: float
    key: str | None = None
    hosts: frozenset[str] = frozenset()


class Refused(Exception):
    """A request that ends at the gate."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class Gate:
    """ASGI middleware. note(method, route, status) counts the answer; log(line) writes one JSON line per request;
    closing(): whether connections are to end with their answer, as before the server stops."""

    app: ASGIApp
    rules: GateRules
    note: Callable[[str, str, int], None]
    log: Callable[[str], None] = field(default=lambda line: print(line, file=sys.stderr, flush=True))
    closing: Callable[[], bool] = lambda: False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an HTTP request on, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, uuid4().hex[:12], self.closing())
        scope["log"] = answer.fields
        try:
            _check(scope, self.rules)
            body = await _read(scope, receive, self.rules)
            await self.app(scope, _Replay(body, receive), answer)
        except Refused as refusal:
            await error_reply(refusal.status, str(refusal), headers=refusal.headers)(scope, receive, answer)
        finally:
            self._finish(scope, answer)

    def _finish(self, scope: Scope, answer: _Answer) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self.note(_known_method(scope["method"]), route, answer.status)
        line = {
            "time": round(time.time(), 3),
            "id": answer.number,
            "method": scope["method"],
            "path": scope["path"][:200],
        }
        seconds = round(time.monotonic() - answer.started, 4)
        with suppress(OSError, ValueError):  # a log that cannot be written fails no request
            self.log(json.dumps(line | {"status": answer.status, "seconds": seconds} | answer.fields))


def _known_method(method: str) -> str:
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"


@dataclass
class _Answer:
    send: Send
    number: str
    closing: bool = False
    status: int = 499
    started: float = field(default_factory=time.monotonic)
    fields: dict[str, Any] = field(default_factory=dict)

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [(name.encode(), value.encode()) for name, value in (*HEADERS, ("x-request-id", self.number))]
            extra += [(b"connection", b"close")] if self.closing else []
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await self.send(message)


@dataclass
class _Replay:
    body: bytes
    receive: Receive
    given: bool = False

    async def __call__(self) -> Message:
        if self.given:
            return await self.receive()
        self.given = True
        return {"type": "http.request", "body": self.body, "more_body": False}


def _check(scope: Scope, rules: GateRules) -> None:
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    host = _hostname(headers.get(b"host", ""))
    if rules.hosts and host not in rules.hosts:
        raise Refused(403, f"host: this server does not answer to {host[:80]!r}; add the name to serve.hosts")
    origin = headers.get(b"origin")
    if (
        origin is not None
        and scope["method"] not in ("GET", "HEAD")
        and urlsplit(origin).netloc != headers.get(b"host")
    ):
        raise Refused(403, "origin: requests from other web pages are refused")
    if rules.key is not None and scope["path"] not in OPEN_PATHS and not scope["path"].startswith("/static/"):
        _check_key(headers, rules.key)


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _check_key(headers: dict[bytes, str], key: str) -> None:
    kind, _, bearer = headers.get(b"authorization", "").partition(" ")
    given = bearer.strip() if kind.lower() == "bearer" else headers.get(b"x-api-key", "")
    if not hmac.compare_digest(given.encode("latin-1", "replace"), key.encode()):
        raise Refused(
            401, "API key missing or wrong; send it as 'Authorization: Bearer KEY'", www_authenticate="Bearer"
        )


async def _read(scope: Scope, receive: Receive, rules: GateRules) -> bytes:
    announced = [value for name, value in scope["headers"] if name == b"content-length"]
    if announced and announced[0].isdigit() and int(announced[0]) > rules.body_bytes:
        raise Refused(413, f"body: {int(announced[0])} bytes, at most {rules.body_bytes} are read", connection="close")
    try:
        return await asyncio.wait_for(_collect(receive, rules.body_bytes), rules.body_seconds)
    except TimeoutError:
        text = f"body: not complete after {rules.body_seconds:g} seconds"
        raise Refused(408, text, connection="close") from None


async def _collect(receive: Receive, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "body: the client went away")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise Refused(413, f"body: more than {most} bytes, at most that many are read", connection="close")
        if not message.get("more_body", False):
            return b"".join(parts)
