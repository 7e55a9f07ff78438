"""What is refused before anything is computed: too much, too slow, too many, the wrong host, no key?

Pure ASGI: it sees a request before its body is read, so that what is refused costs next to nothing.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from topwork.serve.metrics import Counted

DRAINED = 2**20
"""Bytes up to which the body of a refused request is read and thrown away, so that the connection can be used on.
After more it is closed."""

DRAIN_SECONDS = 1.0  # that this may take

OPEN = {"/", "/page.css", "/page.js", "/health", "/ready"}
"""What needs no key: the page (which asks for it) and whether the server lives."""


SAFE = (
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
     b" connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)  # fmt: skip
"""Sent with every answer: a browser shall run nothing but the page's own script, and keep nothing."""

GONE = 499
"""Status that is counted for whoever hung up (nobody reads it; the number is nginx's)."""


@dataclass(frozen=True)
class Limits:
    """What one request, and all together, may take."""

    request_bytes: int = 64 * 2**20  # of a whole request
    image_bytes: int = 32 * 2**20  # of each image
    pixels: int = 50_000_000  # of each image, as its header states them: no telephone takes more
    images: int = 64  # in one request
    requests: int = 128  # at once; those are held in memory
    waiting: int = 256  # images of one model that are decoded, wait or are computed
    held_bytes: int = 512 * 2**20  # of all requests at once
    read_seconds: float = 30.0  # until a request has come whole
    answer_seconds: float = 60.0  # until it is answered, once it has


class Refused(Exception):  # noqa: N818 (it is an answer, not a fault)
    """A request that is not served: status and what to do about it."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


def problem(status: int, detail: str) -> dict[str, Any]:
    """What is sent with every error (RFC 9457)."""
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}


class Guard:
    """Around the application: counts requests and bytes, keeps time, asks for the key."""

    def __init__(
        self, app: ASGIApp, limits: Limits, counted: Counted, *, key: str | None = None,
        hosts: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self.app, self.limits = app, limits
        self._counted, self._key, self._hosts = counted, key, hosts
        self.requests = self.held = 0  # requests that send images, and their bytes, now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, entered, body = time.perf_counter(), GONE, False, _Body(self, receive)

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *SAFE]}
            await send(message)

        try:
            self._allowed(scope)
            if scope["method"] == "POST":
                self._room(Headers(scope=scope))
                self.requests += 1
                entered = True
            await self.app(scope, body if entered else receive, sent)
        except Refused as refused:
            if status == GONE:
                await _refuse(scope, body, sent, refused)
        finally:
            self.requests -= entered
            self.held -= body.bytes
            route = getattr(scope.get("route"), "path", "other")
            self._counted.request(route, status, time.perf_counter() - start)

    def _allowed(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._hosts and _name(headers.get("host", "")) not in self._hosts:
            # A page of another site that lets its own name point here (DNS rebinding) asks by that name.
            raise Refused(421, f"this server answers to {', '.join(sorted(self._hosts))} alone")
        if self._key is None or scope["path"] in OPEN:
            return
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(given.encode("latin-1"), self._key.encode()):
            raise Refused(
                401, "send the server's key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                **{"www-authenticate": "Bearer"},
            )  # fmt: skip

    def _room(self, headers: Headers) -> None:
        if self.requests >= self.limits.requests:
            raise Refused(503, f"{self.requests} requests are under way; try again in a moment", **{"retry-after": "1"})
        stated = headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > self.limits.request_bytes:
            raise self.too_large()
        if stated.isdecimal() and self.held + int(stated) > self.limits.held_bytes:
            raise self.too_much()

    def too_large(self) -> Refused:
        """For one request of too many bytes."""
        return Refused(413, f"a request may have {self.limits.request_bytes:,} bytes; send fewer or smaller images")

    def too_much(self) -> Refused:
        """For too many bytes of all requests."""
        return Refused(503, f"{self.held:,} bytes are being worked on; try again in a moment", **{"retry-after": "1"})


class _Body:
    """The body of one request as it comes: counted and timed."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self._guard, self._receive = guard, receive
        self.bytes = 0
        self._whole = False
        self._until = asyncio.get_running_loop().time() + guard.limits.read_seconds

    async def drained(self, scope: Scope) -> bool:
        """Throw away what is left of a small body: whether it came whole, so that the connection may be used on."""
        stated = Headers(scope=scope).get("content-length", "0" if scope["method"] in {"GET", "HEAD"} else "")
        if not stated.isdecimal() or int(stated) > DRAINED:
            return False
        left = int(stated) > 0 and not self._whole
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while left:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        return False
                    left = message.get("more_body", False)
        except TimeoutError:
            return False
        return True

    async def __call__(self) -> Message:
        if self._whole:  # what comes now is the end of the connection
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise Refused(
                408, f"the request had not come whole after {self._guard.limits.read_seconds:g} s", connection="close"
            ) from None
        came = len(message.get("body", b""))
        self.bytes += came
        self._guard.held += came
        if self.bytes > self._guard.limits.request_bytes:
            raise self._guard.too_large()
        if self._guard.held > self._guard.limits.held_bytes:
            raise self._guard.too_much()
        self._whole = not message.get("more_body", False)
        return message


def _name(host: str) -> str:
    """A Host header without its port."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdecimal() else host).lower()


async def _refuse(scope: Scope, body_: _Body, send: Send, refused: Refused) -> None:
    headers = dict(refused.headers)
    if "connection" not in headers and not await body_.drained(scope):
        headers["connection"] = "close"
    body = json.dumps(problem(refused.status, refused.detail)).encode()
    sent = {"content-type": "application/problem+json", "content-length": str(len(body)), **headers}
    await send(
        {"type": "http.response.start", "status": refused.status,
         "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in sent.items()]}
    )  # fmt: skip
    await send({"type": "http.response.body", "body": body})
