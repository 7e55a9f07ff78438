"""What does an image look like in 16 x 16 pixels?

A sketch is the upright image by area averaging. Every decoding leaves one behind, so that what looks the same can be
found without decoding anything twice. Sketches are kept under the content of the file, in files that are only ever
appended to, one per process: two processes never write the same one, and a record that is not whole is not believed.
"""

from __future__ import annotations

import threading
import uuid
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
"""Pixels of a side: eight cycles each way, which is what a 64-bit hash holds, and 768 bytes per image."""

REDUCED = 64
"""Pixels of a side, or some more, to which larger images are first reduced by whole factors: the fastest way.
Four for each of a sketch: with two or three, means of areas that cut them are off by more than a level."""

FLUSH = 64
"""Sketches that are gathered before they are written: more would be lost to a power cut, fewer cost a system call each
time."""

TOGETHER = 4096
"""Sketches that are hashed at once, as floating-point numbers: 8 MB. No effect on the result."""

_FORMAT = "2"  # of the records, and of what is sketched
_PIXELS = SIDE * SIDE * 3
_RECORD = np.dtype([("digest", "V16"), ("pixels", "u1", (_PIXELS,)), ("check", "<u4")])


def sketch(image: Image.Image) -> NDArray[np.uint8]:  # (16, 16, 3) RGB
    """The mean of each area, whatever the proportions. `image` is RGB or L, as `images.decode` gives it."""
    across, down = (max(1, n // REDUCED) for n in image.size)
    small = image if across == down == 1 else image.reduce((across, down))
    pixels = np.frombuffer(small.tobytes(), np.uint8).astype(np.float32).reshape(small.height, -1)
    rows = _means(image.height, down) @ pixels
    means = _means(image.width, across) @ rows.reshape(SIDE, small.width, -1)  # of each row of areas
    whole: NDArray[np.uint8] = np.rint(means, out=means).astype(np.uint8)
    return whole if whole.shape[2] == 3 else whole.repeat(3, axis=2)


@lru_cache(maxsize=256)
def _means(n: int, factor: int) -> NDArray[np.float32]:  # (16, ceil(n / factor))
    """What each of n pixels, taken together by `factor`, has in the mean of each sixteenth of them."""
    blocks = np.minimum(np.arange(0, n + factor, factor), n).astype(np.float64)
    areas = np.arange(SIDE + 1) * n / SIDE
    starts = np.maximum(areas[:-1, None], blocks[None, :-1])
    ends = np.minimum(areas[1:, None], blocks[None, 1:])
    shared = np.clip(ends - starts, 0, None)
    means: NDArray[np.float32] = (shared / shared.sum(axis=1, keepdims=True)).astype(np.float32)
    return means


def grey(
    sketches: NDArray[np.uint8],  # (n, 16, 16, 3)
) -> NDArray[np.float32]:  # (n, 16, 16) in 0..255
    """Luma by BT.601, as Pillow's L."""
    return sketches.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def hashed(
    sketches: NDArray[np.uint8],  # (n, 16, 16, 3)
) -> NDArray[np.uint64]:  # (n,)
    """Perceptual hashes: the signs of the 64 lowest frequencies (DCT-II) of the grey sketch, from the lowest bit on.

    Two images that look the same differ in few bits. The mean is left out: brightness says nothing about what is
    seen. The same bits are low in every hash, so that stretches of it can be compared alone.
    """
    waves, rows, columns = _waves()
    bits = np.empty((len(sketches), len(rows)), dtype=bool)
    for start in range(0, len(sketches), TOGETHER):
        part = slice(start, start + TOGETHER)
        bits[part] = (waves @ grey(sketches[part]) @ waves.T)[:, rows, columns] > 0
    packed: NDArray[np.uint64] = np.packbits(bits, axis=1, bitorder="little").view("<u8").ravel().astype(np.uint64)
    return packed


@lru_cache(maxsize=1)
def _waves() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:  # (16, 16), (64,), (64,)
    """The DCT-II of 16 points, and which pairs of frequencies are lowest by their length, the mean left out."""
    k = np.arange(SIDE)
    waves = np.cos(np.pi * k[:, None] * (2 * k[None] + 1) / (2 * SIDE)).astype(np.float32)
    lengths = (k[:, None] ** 2 + k[None] ** 2).ravel()
    lowest = np.argsort(lengths, kind="stable")[1:65]
    return waves, lowest // SIDE, lowest % SIDE


class Sketches:
    """The sketches in one folder. Threads may share it, and processes may share the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mine = folder / f"shard-{uuid.uuid4().hex}"
        self._lock = threading.Lock()
        self._blocks: list[NDArray[np.uint8]] = []  # (rows, 768) each
        self._where: dict[bytes, tuple[int, int]] = {}  # digest: block and row
        self._read: dict[str, int] = {}  # bytes read so far of each file
        self._fresh: dict[bytes, NDArray[np.uint8]] = {}  # put here and not yet in a block
        self._unwritten = 0
        with self._lock:
            self._refresh()

    @staticmethod
    def under(cache: Path) -> Sketches:
        """Those of a cache: one object for all in this process who ask."""
        return _under(cache.absolute())

    def __contains__(self, digest: str) -> bool:
        key = bytes.fromhex(digest)
        return key in self._fresh or key in self._where

    def put(self, digest: str, pixels: NDArray[np.uint8]) -> None:
        """Keep one sketch, (16, 16, 3); one that is there already stays. What cannot be written costs only the time."""
        key = bytes.fromhex(digest)
        with self._lock:
            if key in self._fresh or key in self._where:
                return
            self._fresh[key] = np.ascontiguousarray(pixels).reshape(_PIXELS)
            if len(self._fresh) >= FLUSH:
                self._write()

    def flush(self) -> None:
        """Write what was put and is not on disk yet."""
        with self._lock:
            self._write()

    def get(
        self, digests: Sequence[str]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:  # (n, 16, 16, 3), (n,) true where there is none
        """The sketches of these files, black where there is none, and which are missing."""
        keys = [bytes.fromhex(d) for d in digests]
        out = np.zeros((len(keys), _PIXELS), dtype=np.uint8)
        missing = np.zeros(len(keys), dtype=bool)
        with self._lock:
            if any(k not in self._fresh and k not in self._where for k in keys):
                self._refresh()  # another process may have written since
            for i, key in enumerate(keys):
                if key in self._fresh:
                    out[i] = self._fresh[key]
                elif key in self._where:
                    block, row = self._where[key]
                    out[i] = self._blocks[block][row]
                else:
                    missing[i] = True
        return out.reshape(-1, SIDE, SIDE, 3), missing

    def _write(self) -> None:
        if not self._fresh:
            return
        rows = np.zeros(len(self._fresh), dtype=_RECORD)
        rows["digest"] = np.frombuffer(b"".join(self._fresh), dtype="V16")
        rows["pixels"] = np.stack(list(self._fresh.values()))
        rows["check"] = [_check(key, pixels) for key, pixels in self._fresh.items()]
        data = rows.tobytes()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._mine.open("ab") as file:
                file.write(data)
        except OSError:  # a full disk or a read-only folder: they serve as long as this process lives
            self._mine = self.folder / f"shard-{uuid.uuid4().hex}"  # the old one may end in half a record
        else:
            self._read[self._mine.name] = self._read.get(self._mine.name, 0) + len(data)
        self._take(rows)
        self._fresh.clear()

    def _refresh(self) -> None:
        """Read what was appended since, by whomever."""
        try:
            found = sorted(self.folder.glob("shard-*"))
        except OSError:
            return
        for path in found:
            before = self._read.get(path.name, 0)
            with suppress(OSError), path.open("rb") as file:
                file.seek(before)
                data = file.read()
                rows = np.frombuffer(data, dtype=_RECORD, count=len(data) // _RECORD.itemsize)
                good = [_check(r["digest"].tobytes(), r["pixels"]) == r["check"] for r in rows]
                whole = good.index(False) if False in good else len(good)  # a writer may be in the middle of it
                self._read[path.name] = before + whole * _RECORD.itemsize
                self._take(rows[:whole])

    def _take(self, rows: NDArray[np.void]) -> None:
        if len(rows):
            self._where.update((r.tobytes(), (len(self._blocks), i)) for i, r in enumerate(rows["digest"]))
            self._blocks.append(rows["pixels"].copy())


@lru_cache(maxsize=8)
def _under(cache: Path) -> Sketches:
    return Sketches(cache / "sketches" / _FORMAT)


def _check(digest: bytes, pixels: NDArray[np.uint8]) -> int:
    return zlib.crc32(np.ascontiguousarray(pixels).data, zlib.crc32(digest))
