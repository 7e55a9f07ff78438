"""How is the server started, and how does it stop?"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from topwork.asking import Asked
from topwork.errors import UsageError
from topwork.serve.app import create
from topwork.serve.batching import LANES, MOST
from topwork.serve.desk import Learnt, Served
from topwork.serve.guard import Limits

LOOPBACK = ("127.0.0.1", "::1", "localhost")
HEAD_SECONDS = 10.0
"""In which a request's head must have come: whoever sends a letter a minute holds a connection no longer."""

BACKLOG = 2048  # connections that wait to be accepted

STOP_SECONDS = 30  # that requests under way have to end, once the server is told to stop


Remember = Callable[[Path, Asked], Learnt | None]
"""From a run's folder and its model to the training images that it remembers."""


class _Timed(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with a limit on how long the head of a request may take."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _head_came(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()


def serve(
    runs: Sequence[str | Path], load: Callable[[Path], Asked], remember: Remember = lambda _, __: None, *,
    host: str = LOOPBACK[0], port: int = 8000, key: str | None = None, limits: Limits | None = None,
    ready: Callable[[str], None] | None = None, log: str = "warning", batch: int = MOST,
    lanes: int = LANES,
) -> None:  # fmt: skip
    """Serve the models of runs until it is told to stop (Ctrl-C, SIGTERM); what was taken is answered first.

    `runs`: folders, or NAME=FOLDER; else a model is called as its folder is. `load`: how a model is read from its
    folder; `remember`: which training images the folder and its model remember. `host`: loopback by default, so that
    nothing outside the machine can ask. `ready` is told the address. `batch`: images computed together at most;
    `lanes`: batches of one model at once.
    Raises UsageError where two models have one name or the port is taken, DataError where a folder holds no model.
    """
    listening = _listening(host, port)  # before the models are loaded
    try:
        served = named(runs, load, remember)
        hosts = frozenset({*LOOPBACK, "[::1]"}) if host in LOOPBACK else frozenset()
        app = create(served, limits=limits, key=key, hosts=hosts, batch=batch, lanes=lanes)
        config = uvicorn.Config(
            app, http=_Timed, ws="none", log_level=log, access_log=log == "info", lifespan="on",
            timeout_graceful_shutdown=STOP_SECONDS, server_header=False,
        )  # fmt: skip
        _Server(config, ready).run([listening])
    finally:
        listening.close()


def _listening(host: str, port: int) -> socket.socket:
    """A socket at this address. Raises UsageError where it is taken, or none of this machine's."""
    listening = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Only of sockets that say TCP, asyncio switches off the waiting for acknowledgements: 40 ms for each answer.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        if listening is not None:
            listening.close()
        raise UsageError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror or error}); --port 0 takes one that"
            " is free"
        ) from error
    return listening


class _Server(uvicorn.Server):
    """uvicorn's, which says when it listens, and where."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[str], None] | None) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started and self._ready is not None:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")


def named(
    runs: Sequence[str | Path], load: Callable[[Path], Asked], remember: Remember = lambda _, __: None
) -> dict[str, Served]:
    """Models by name. Raises UsageError where two have the same one."""
    found: dict[str, Served] = {}
    for given in runs:
        name, sign, folder = str(given).partition("=")
        path = Path(folder if sign else given)
        if not sign:
            home = path.resolve()
            name = home.parent.name if home.name == "model" else home.name
        if name in found:
            raise UsageError(f"{given}: two models are called {name}; name one of them: {name}-2={path}")
        if not name or "/" in name:
            raise UsageError(f"{given}: a model's name may have no slash in it; write NAME=FOLDER")
        model = load(path)
        found[name] = Served(name, fingerprint(path), model, remember(path, model))
    if not found:
        raise UsageError("no model to serve; name a run's folder")
    return found


def fingerprint(folder: Path) -> str:
    """Digest of a model's files: 64-bit BLAKE2b of names and contents, hexadecimal."""
    home = folder if (folder / "model.json").is_file() else folder / "model"
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(home.glob("model.*")):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()
