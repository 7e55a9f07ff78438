"""What does the backbone see in the images, at every cut?

One forward pass per image, ever. Pooled features of all cuts are appended as float16 to shards on
disk, under a key of backbone, weights and preprocessing, and found again by the content of a file.
A row counts once its index record is written, so an interrupted pass goes on where it stopped, and
several processes may write at once, each its own shard.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from topwork import images
from topwork.ahead import batches
from topwork.engine import Engine
from topwork.errors import ImageError, UsageError
from topwork.records import Example, Fault, Preprocessing
from topwork.watch import SILENT, Watch
from topwork.zoo import Backbone

BATCH = 16
"""Images per forward pass on a CPU: larger gained nothing on 2 cores, and VGG's first maps at 224 px
take 13 MB per image."""

BATCH_GPU = 64
_FORMAT = "1"  # of the shards; part of the key
_RECORD = 20  # bytes per index record: 16 of the digest, 4 of the row's CRC-32


@dataclass(frozen=True)
class Features:
    """Pooled features of n images at every cut, read from the shards on demand."""

    cuts: tuple[str, ...]
    widths: tuple[int, ...]  # values per image at each cut
    logits: NDArray[np.float32] | None  # (n, source_classes)
    cost_shares: tuple[float, ...]  # measured seconds up to each cut over those of the whole backbone
    seconds: NDArray[np.float64]  # (1 + segments,) per image, as measured in the pass: decoding, then each segment
    fe_seconds: float  # decoding plus one forward pass over the n images, as measured in the pass
    passed: int  # images that went through the backbone now; the others were found
    bytes_per_image: int
    faults: tuple[Fault, ...]
    _shards: tuple[_Shard, ...]
    _places: NDArray[np.int64]  # (n, 2) shard and row

    def at(self, k: int, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Features at cut k of the given images (default all): (n, width) float32."""
        places = self._places if rows is None else self._places[rows]
        return _gather(self._shards, places, k, self.widths[k])


def measure(
    backbone: Backbone,
    root: Path,
    examples: Sequence[Example],
    *,
    cache: Path,
    watch: Watch = SILENT,
) -> Features:
    """Features of all examples, from the cache where they are, from one forward pass where not.

    Files that cannot be decoded after all come back as faults; their examples have no row, and the
    caller drops them (data.without) in the same order. Memory does not grow with the number of images.
    """
    with_logits = backbone.source_classes > 0
    widths = [2 * c.channels for c in backbone.cuts] + ([backbone.source_classes] if with_logits else [])
    folder = cache / "features" / key(backbone)
    shards = _open_shards(folder, widths)
    known = {digest for shard in shards for digest in shard.digests}
    missing = list({e.digest: e for e in examples if bytes.fromhex(e.digest) not in known}.values())
    faults: dict[str, Fault] = {}
    if missing:
        faults = _pass(backbone, root, missing, folder, widths, with_logits, watch)
        shards = _open_shards(folder, widths)
    where = {d: (i, row) for i, shard in enumerate(shards) for row, d in enumerate(shard.digests)}
    kept = [e for e in examples if e.digest not in faults]
    places = np.array([where[bytes.fromhex(e.digest)] for e in kept], dtype=np.int64).reshape(-1, 2)
    n_cuts = len(backbone.cuts)
    timing = _timing(shards, len(backbone.chain.segments))
    forward = timing[1:]
    return Features(
        tuple(c.name for c in backbone.cuts),
        tuple(widths[:n_cuts]),
        _gather(shards, places, n_cuts, widths[n_cuts]) if with_logits else None,
        tuple(float(s) for s in np.cumsum(forward)[:n_cuts] / forward.sum()),
        timing,
        float(timing.sum() * len(kept)),
        len(missing) - len(faults),
        2 * sum(widths) + _RECORD,
        tuple(Fault(e.path, faults[e.digest].kind, faults[e.digest].detail) for e in examples if e.digest in faults),
        shards,
        places,
    )


def key(backbone: Backbone) -> str:
    """The name under which a backbone's features are kept: weights, graph and preprocessing decide it."""
    parts = [_FORMAT, backbone.fingerprint, msgspec.json.encode(backbone.preprocessing).decode()]
    return f"{backbone.name.replace(':', '-')}-{images.digest('|'.join(parts).encode())}"


def _pass(
    backbone: Backbone, root: Path, missing: Sequence[Example], folder: Path,
    widths: Sequence[int], with_logits: bool, watch: Watch,
) -> dict[str, Fault]:  # fmt: skip
    """Send images through the backbone once and append what it sees to a new shard."""
    engine = Engine(backbone.chain.segments, backbone.preprocessing)
    batch = BATCH if engine.device.type == "cpu" else BATCH_GPU
    faults: dict[str, Fault] = {}
    watch.begin("pass", len(missing))
    with _Writer(folder, widths) as writer:
        for group in batches(missing, _decoder(root, backbone.preprocessing), batch):
            good = [(e, x) for e, (x, _) in group if not isinstance(x, Fault)]
            faults.update({e.digest: x for e, (x, _) in group if isinstance(x, Fault)})
            decode_seconds = sum(seconds for _, (_, seconds) in group)
            if good:
                seen = engine.see(np.stack([x for _, x in good]), logits=with_logits)
                rows = [*seen.pooled, *([seen.logits] if seen.logits is not None else [])]
                writer.append([bytes.fromhex(e.digest) for e, _ in good], rows, decode_seconds, seen.seconds)
            watch.advance(len(group))
    watch.end()
    return faults


_Pixels = NDArray[np.uint8]


def _decoder(root: Path, preprocessing: Preprocessing) -> Callable[[Example], tuple[_Pixels | Fault, float]]:
    """Decodes one image; gives its pixels, or what is wrong with it, and the seconds that it took."""

    def one(example: Example) -> tuple[_Pixels | Fault, float]:
        start = time.perf_counter()
        try:
            data = images.read_bytes(root / example.path)
            if images.digest(data) != example.digest:
                raise ImageError("changed", "the file changed while topwork was reading the folder")
            pixels = images.load(data, preprocessing)
        except ImageError as error:
            return Fault(example.path, error.kind, error.detail), time.perf_counter() - start
        return pixels, time.perf_counter() - start

    return one


@dataclass(frozen=True)
class _Shard:
    """One finished or interrupted stretch of a pass: a file per cut, and the index of its rows."""

    folder: Path
    digests: tuple[bytes, ...]
    timing: NDArray[np.float64]  # seconds: decoding, then each segment
    widths: tuple[int, ...]

    def column(self, k: int) -> NDArray[np.float16]:
        """All rows at cut k, memory-mapped: (rows, width)."""
        shape = (len(self.digests), self.widths[k])
        return np.memmap(self.folder / f"{k:03d}.f16", dtype=np.float16, mode="r", shape=shape)


class _Timing(msgspec.Struct, frozen=True):
    """Seconds of all rows so far: decoding, then each segment."""

    rows: int
    seconds: list[float]


class _Writer:
    """Appends rows to a shard of its own; closing it, also on an error, keeps what is complete."""

    def __init__(self, folder: Path, widths: Sequence[int]) -> None:
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
        self._rows = 0

    def __enter__(self) -> _Writer:
        return self

    def append(
        self, digests: list[bytes], rows: list[NDArray[np.float16]], decode: float, forward: NDArray[np.float64]
    ) -> None:
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
        aside = self.folder / "timing.json.new"
        aside.write_bytes(msgspec.json.encode(_Timing(self._rows, self._timing.tolist())))
        aside.replace(self.folder / "timing.json")  # a kill in between must not cost the shard

    def __exit__(self, kind: object, *_: object) -> None:
        for file in [*self._columns, self._index]:
            os.fsync(file.fileno())
            file.close()
        if self._rows == 0:  # nothing was seen: nothing is left behind
            shutil.rmtree(self.folder, ignore_errors=True)
        elif kind is None:
            (self.folder / "complete").touch()


def _open_shards(folder: Path, widths: Sequence[int]) -> tuple[_Shard, ...]:
    found = (_open_shard(path, widths) for path in sorted(folder.glob("shard-*")))
    return tuple(shard for shard in found if shard is not None)


def _open_shard(folder: Path, widths: Sequence[int]) -> _Shard | None:
    try:
        index = (folder / "index").read_bytes()
        timing = msgspec.json.decode((folder / "timing.json").read_bytes(), type=_Timing)
        sizes = [(folder / f"{k:03d}.f16").stat().st_size // (2 * w) for k, w in enumerate(widths)]
    except (OSError, msgspec.DecodeError):  # interrupted before its first row was complete
        return None
    n = min(len(index) // _RECORD, *sizes)
    if n == 0:
        return None
    records = [index[i * _RECORD : (i + 1) * _RECORD] for i in range(n)]
    shard = _Shard(
        folder, tuple(r[:16] for r in records), np.array(timing.seconds) / max(1, timing.rows), tuple(widths)
    )
    if (folder / "complete").exists():
        return shard  # its rows were written whole; checking them anew would read all of them at every start
    # Interrupted, perhaps by a power cut: rows are believed up to the first that fails its check.
    checks = [0] * n
    for k in range(len(widths)):
        checks = [zlib.crc32(row.tobytes(), c) for row, c in zip(shard.column(k), checks, strict=True)]
    good = [r[16:] == c.to_bytes(4, "big") for r, c in zip(records, checks, strict=True)]
    n = good.index(False) if False in good else n
    return _Shard(folder, shard.digests[:n], shard.timing, shard.widths) if n else None


def _gather(shards: Sequence[_Shard], places: NDArray[np.int64], k: int, width: int) -> NDArray[np.float32]:
    out = np.empty((len(places), width), dtype=np.float32)
    for i, shard in enumerate(shards):
        mine = np.flatnonzero(places[:, 0] == i)
        if len(mine):
            out[mine] = shard.column(k)[places[mine, 1]]
    return out


def _timing(shards: Sequence[_Shard], segments: int) -> NDArray[np.float64]:
    """Seconds per image over all shards, weighted by their rows: decoding, then each segment."""
    if not shards:  # no image could be decoded; the caller says so
        return np.full(1 + segments, np.nan)
    rows = np.array([len(s.digests) for s in shards], dtype=np.float64)
    mean: NDArray[np.float64] = np.average(np.stack([s.timing for s in shards]), axis=0, weights=rows)
    return mean
