"""How are features kept on disk, and which of their rows may be believed?

A shard is one stretch of a pass: a file of float16 per cut and an index with the digest and the checksum of each
row. A row counts once its index record is written, so an interrupted pass keeps what it had, and several processes may
write at once, each its own shard. A pass that stops at an early cut writes a shard of fewer files.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from topwork.errors import UsageError
from topwork.records import EngineFacts

PLAIN = EngineFacts("pytorch", "cpu", 1, 1, ())
"""What shards were filled with before anything else could be chosen."""

RECORD = 20  # bytes per index record: 16 of the digest, 4 of the row's CRC-32


TIMED_S = 1.0
"""Seconds between two writings of the timing: a file that is renamed after every batch took 3% of a fit
of 8,000 images."""


@dataclass(frozen=True)
class Shard:
    """One finished or interrupted stretch of a pass: a file per cut, and the index of its rows."""

    folder: Path
    digests: tuple[bytes, ...]
    timing: NDArray[np.float64]  # seconds: decoding, then each segment that was run
    widths: tuple[int, ...]  # of the columns that it holds: fewer than there are cuts where the pass stopped earlier
    engine: EngineFacts = PLAIN

    def column(self, k: int) -> NDArray[np.float16]:
        """All rows at cut k, memory-mapped: (rows, width)."""
        shape = (len(self.digests), self.widths[k])
        return np.memmap(self.folder / f"{k:03d}.f16", dtype=np.float16, mode="r", shape=shape)


class _Timing(msgspec.Struct, frozen=True):
    """Seconds of all rows so far: decoding, then each segment; and what they were seen with."""

    rows: int
    seconds: list[float]
    engine: EngineFacts = PLAIN


class Writer:
    """Appends rows to a shard of its own; closing it, also on an error, keeps what is complete."""

    def __init__(self, folder: Path, widths: Sequence[int], engine: EngineFacts = PLAIN) -> None:
        self.folder = folder / f"shard-{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise UsageError(
                f"the features cannot be kept in {folder} ({error.strerror}); name a folder that can be written with"
                " --cache or TOPWORK_CACHE"
            ) from error
        self._columns: list[BinaryIO] = [(self.folder / f"{k:03d}.f16").open("wb") for k in range(len(widths))]
        self._index = (self.folder / "index").open("wb")
        self._timing: NDArray[np.float64] | None = None
        self._rows, self._engine = 0, engine
        self._timed = -float("inf")

    def __enter__(self) -> Writer:
        return self

    def append(
        self, digests: list[bytes], rows: list[NDArray[np.float16]], decode: float, forward: NDArray[np.float64]
    ) -> None:
        """Rows (b, width) for every column, and the seconds that they took: decoding, then (segments,)."""
        checks = [0] * len(digests)
        for file, block in zip(self._columns, rows, strict=True):
            file.write(np.ascontiguousarray(block).tobytes())
            file.flush()
            checks = [zlib.crc32(np.ascontiguousarray(row).tobytes(), c) for row, c in zip(block, checks, strict=True)]
        for digest, check in zip(digests, checks, strict=True):
            self._index.write(digest + check.to_bytes(4, "big"))
        self._index.flush()
        timing = np.concatenate([[decode], forward])
        self._rows += len(digests)
        self._timing = timing if self._timing is None else self._timing + timing
        now = time.monotonic()
        if now - self._timed > TIMED_S:
            self._keep_timing()
            self._timed = now

    def _keep_timing(self) -> None:
        assert self._timing is not None
        aside = self.folder / "timing.json.new"
        aside.write_bytes(msgspec.json.encode(_Timing(self._rows, self._timing.tolist(), self._engine)))
        aside.replace(self.folder / "timing.json")  # a kill in between must not cost the shard

    def __exit__(self, kind: object, *_: object) -> None:
        if self._rows:
            self._keep_timing()
        for file in [*self._columns, self._index]:
            os.fsync(file.fileno())
            file.close()
        if self._rows == 0:  # nothing was seen: nothing is left behind
            shutil.rmtree(self.folder, ignore_errors=True)
        elif kind is None:
            (self.folder / "complete").touch()


def opened(folder: Path, widths: Sequence[int]) -> tuple[Shard, ...]:
    """All shards in a folder that hold at least one whole row, in the order of their names.

    `widths`: of every column that a shard can hold; a shard of a shorter pass holds the first ones.
    """
    found = (_open(path, widths) for path in sorted(folder.glob("shard-*")))
    return tuple(shard for shard in found if shard is not None)


def _open(folder: Path, widths: Sequence[int]) -> Shard | None:
    try:
        index = (folder / "index").read_bytes()
        timing = msgspec.json.decode((folder / "timing.json").read_bytes(), type=_Timing)
        held = next((k for k in range(len(widths)) if not (folder / f"{k:03d}.f16").exists()), len(widths))
        widths = widths[:held]
        sizes = [(folder / f"{k:03d}.f16").stat().st_size // (2 * w) for k, w in enumerate(widths)]
    except (OSError, msgspec.DecodeError):  # interrupted before its first row was complete
        return None
    n = min(len(index) // RECORD, *sizes) if sizes else 0
    if n == 0:
        return None
    records = [index[i * RECORD : (i + 1) * RECORD] for i in range(n)]
    per_image = np.array(timing.seconds) / max(1, timing.rows)
    shard = Shard(folder, tuple(r[:16] for r in records), per_image, tuple(widths), timing.engine)
    if (folder / "complete").exists():
        return shard  # its rows were written whole; checking them anew would read all of them at every start
    # Interrupted, perhaps by a power cut: rows are believed up to the first that fails its check.
    checks = [0] * n
    for k in range(len(widths)):
        checks = [zlib.crc32(row.tobytes(), c) for row, c in zip(shard.column(k), checks, strict=True)]
    good = [r[16:] == c.to_bytes(4, "big") for r, c in zip(records, checks, strict=True)]
    n = good.index(False) if False in good else n
    return replace(shard, digests=shard.digests[:n]) if n else None


def gather(shards: Sequence[Shard], places: NDArray[np.int64], k: int, width: int) -> NDArray[np.float32]:
    """Column k of the rows at `places`, (n, 2) shard and row: (n, width)."""
    out = np.empty((len(places), width), dtype=np.float32)
    for i, shard in enumerate(shards):
        mine = np.flatnonzero(places[:, 0] == i)
        if len(mine):
            out[mine] = shard.column(k)[places[mine, 1]]
    return out


class Rows:
    """Column k of the rows at `places`, as an (n, width) float32 array of which only what is looked at is read."""

    def __init__(self, shards: Sequence[Shard], places: NDArray[np.int64], k: int, width: int) -> None:
        self._shards, self._places, self._k = shards, places, k
        self.shape = (len(places), width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        return gather(self._shards, self._places[rows], self._k, self.shape[1])


def timing(shards: Sequence[Shard], segments: int) -> NDArray[np.float64]:
    """Seconds per image: decoding, then each segment, (1 + segments,), over all rows that it was run for.

    NaN where no row has run it; everywhere, where no image could be decoded (the caller says so).
    """
    seconds, rows = np.zeros(1 + segments), np.zeros(1 + segments)
    for shard in shards:
        run = min(len(shard.timing), 1 + segments)
        seconds[:run] += len(shard.digests) * shard.timing[:run]
        rows[:run] += len(shard.digests)
    mean: NDArray[np.float64] = np.full(1 + segments, np.nan)
    np.divide(seconds, rows, out=mean, where=rows > 0)
    return mean


def engine(shards: Sequence[Shard]) -> EngineFacts:
    """What most of the rows were seen with."""
    return max(shards, key=lambda s: len(s.digests)).engine if shards else PLAIN
