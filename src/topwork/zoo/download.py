"""How does a file get here whole, also over a connection that breaks?

What has come stands aside as FILE.part until all of it is there and its hash is right; the next attempt
asks only for the rest, and only if the server's file is still the same.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from http.client import HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock

from topwork.watch import SILENT, Watch

CHUNK_BYTES = 1 << 20  # one step of the progress bar; smaller ones are no faster to interrupt
TIMEOUT_S = 30  # of silence, not of the whole download


def receive(url: str, target: Path, watch: Watch = SILENT) -> None:
    """Download a file to `target`, going on where an earlier attempt stopped.

    A hash in its name, as in `resnet50-11ad3fa6.pth`, is checked before the file gets its name. Raises
    OSError or HTTPException where the download fails: what came is kept; ValueError where all came and the
    hash is wrong: nothing is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f"{target.name}.lock")
    try:
        with FileLock(lock):  # two processes would write into the same file
            if not target.is_file():
                _receive(url, target, watch)
    finally:
        lock.unlink(missing_ok=True)  # whoever still waits for it finds the file there, or begins anew


def partial(target: Path) -> Path:
    """Where the bytes of an unfinished download stand."""
    return target.with_name(f"{target.name}.part")


def _receive(url: str, target: Path, watch: Watch) -> None:
    part, mark = partial(target), target.with_name(f"{target.name}.part.etag")
    try:
        _rest(url, part, mark, watch)
    except BaseException:
        if not mark.is_file():
            part.unlink(missing_ok=True)  # the next attempt could not tell of which file these bytes are
        raise
    expected = re.search(r"-([0-9a-f]{8,})\.", target.name)
    got = sha256(part)
    if expected and not got.startswith(expected[1]):
        part.unlink()
        mark.unlink(missing_ok=True)
        raise ValueError(f"its SHA-256 begins with {got[: len(expected[1])]}, expected {expected[1]}")
    part.replace(target)
    mark.unlink(missing_ok=True)


def _rest(url: str, part: Path, mark: Path, watch: Watch) -> None:
    """Bring `part` to its whole length. `mark` holds what names the server's version of it."""
    # Without a mark nothing says that the bytes here and those there are of one file.
    done = part.stat().st_size if part.is_file() and mark.is_file() else 0
    headers = {"User-Agent": "topwork", "Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": mark.read_text()}
    try:
        answer: HTTPResponse = urlopen(Request(url, headers=headers), timeout=TIMEOUT_S)  # noqa: S310 (libraries' own addresses)
    except HTTPError as error:
        error.close()
        if error.code != 416 or not done:  # 416: there is nothing from there on
            raise
        if error.headers.get("Content-Range") != f"bytes */{done}":
            part.unlink()
            _rest(url, part, mark, watch)
        return
    with answer:
        if answer.status != 206 or not (answer.headers.get("Content-Range") or "").startswith(f"bytes {done}-"):
            if answer.status == 206:
                raise OSError(f"the server sent {answer.headers.get('Content-Range')}, asked for bytes {done}-")
            done = 0  # a server without ranges, or another file than last time: all of it comes
        name = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if not done:
            part.unlink(missing_ok=True)
            mark.unlink(missing_ok=True)
            if name and not name.startswith("W/"):  # a weak one does not vouch for the bytes (RFC 9110, 13.1.5)
                mark.write_text(name)
        _write(answer, part, done, watch)


def _write(answer: HTTPResponse, part: Path, done: int, watch: Watch) -> None:
    length = answer.headers.get("Content-Length")
    total = done + int(length) if length else 0
    free = shutil.disk_usage(part.parent).free
    if free < total - done:
        raise OSError(f"{part.parent} has {free / 1e6:.0f} MB free, {(total - done) / 1e6:.0f} MB are to come")
    watch.begin("pull", total)
    try:
        watch.advance(done)
        with part.open("ab") as file:
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                watch.advance(len(chunk))
    finally:
        watch.end()
    if total and part.stat().st_size != total:
        raise OSError(f"the connection ended after {part.stat().st_size} of {total} bytes")


def sha256(path: Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
