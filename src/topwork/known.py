"""What do the training images look like to the model; is an image like any of them, and which are nearest? NumPy alone.

Pooled features are standardised and folded into a few numbers (a count sketch: each is added to one of them, or taken
from it, by a coin tossed once). Of these the covariance is known, so it can be said how far an image lies from the
middle, in units of how far training images lie; and they are few enough to be compared with each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from topwork.errors import DataError
from topwork.files import write

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

FILE = "known.safetensors"

MOST = 3000
"""Training images that are kept: 1.5 MB, and a look through all of them takes 2 ms."""

MOST_TRAINED = 1000
"""The same where layers were trained: the images have to pass through them once more."""

VALUES = 15_000_000
"""Pooled features (images x features) that are read for it: 60 MB. Of very wide heads fewer images are kept."""

FOLDED = 256
"""Numbers that an image is folded into. 128 found as many unknown images (bench/LOG.md), but worse neighbours."""

SHRINKAGE = 0.3
"""Of the mean variance, added to every direction of the covariance: what few images do not show is not impossible.
From 0.03 to 1 nothing changed by more than 2 points (bench/LOG.md)."""

ROWS = 512  # images folded or looked up at once: their similarities to all kept ones then take 6 MB


KINDS = {"float32": "F32", "float16": "F16", "int16": "I16", "int8": "I8"}  # as a safetensors file names them


class _Tensor(msgspec.Struct, frozen=True):
    """Where an array lies in a safetensors file; read here, since prediction without PyTorch needs no other library."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    def read(self, data: bytes) -> NDArray[Any]:
        kind = {v: k for k, v in KINDS.items()}[self.dtype]
        start, end = self.data_offsets
        if not 0 <= start <= end <= len(data):
            raise ValueError(f"bytes {start} to {end} of {len(data)}")
        return np.frombuffer(data[start:end], dtype=kind).reshape(self.shape)


@dataclass(frozen=True)
class Known:
    """The training images, folded; and how others are."""

    mean: Floats  # (d,) of the pooled features
    scale: Floats  # (d,) infinite for features that do not vary
    place: NDArray[np.int16]  # (d,) which of the r numbers a feature is added to
    sign: NDArray[np.int8]  # (d,) 1 or -1
    middle: Floats  # (r,) of the folded features
    spread: Floats  # (r, r) what makes their covariance, shrunk, that of r independent numbers of variance 1
    features: NDArray[np.float16]  # (n, r) folded, of unit length

    @classmethod
    def of(cls, pooled: Floats, *, seed: int = 0) -> Known:  # (n, d)
        """From the pooled features of the images that are to be kept (`sample` says which)."""
        mean, spread = pooled.mean(axis=0, dtype=np.float32), pooled.std(axis=0, dtype=np.float32)
        varies = spread > 1e-6 * max(float(spread.max()), 1e-30)
        d, rng = pooled.shape[1], np.random.default_rng(seed)
        place = (rng.permutation(d) % min(d, FOLDED)).astype(np.int16)
        sign = rng.choice(np.array([-1, 1], dtype=np.int8), d)
        scale = np.where(varies, spread, np.inf).astype(np.float32)
        none = np.zeros(0, dtype=np.float32)
        alone = cls(mean, scale, place, sign, none, none, np.zeros((0, 0), dtype=np.float16))
        folded = alone.folded(pooled)
        middle, white = _whitening(len(folded), folded.sum(axis=0), folded.T @ folded)
        return cls(mean, scale, place, sign, middle, white, _unit(folded).astype(np.float16))

    def folded(self, pooled: Floats) -> Floats:  # (b, d)
        """Features folded, of any length: (b, r)."""
        order = np.argsort(self.place, kind="stable")
        first = np.searchsorted(self.place[order], np.arange(int(self.place.max()) + 1))
        shift, factor = self.mean[order], self.sign[order] / self.scale[order]
        parts = [pooled[i : i + ROWS] for i in range(0, len(pooled), ROWS)]
        found = [np.add.reduceat((part[:, order] - shift) * factor, first, axis=1) for part in parts]
        folded: Floats = np.concatenate(found).astype(np.float32) if found else np.zeros((0, len(first)), np.float32)
        return folded

    def scores(self, pooled: Floats) -> Floats:  # (b, d)
        """How unlike the training images each image is: (b,). Of a training image it is about 1."""
        return _distance(self.folded(pooled), self.middle, self.spread)

    def apart(self, pooled: Floats, fold: Ints) -> Floats:  # (n, d) of the kept images, (n,)
        """The scores of the kept images themselves, each by those of other folds alone: (n,)."""
        folded = self.folded(pooled)
        total, squared = folded.sum(axis=0), folded.T @ folded
        found = np.ones(len(folded), dtype=np.float32)
        for k in np.unique(fold):
            mine = folded[fold == k]
            if len(mine) < len(folded):
                rest = _whitening(len(folded) - len(mine), total - mine.sum(axis=0), squared - mine.T @ mine)
                found[fold == k] = _distance(mine, *rest)
        return found

    def nearest(self, pooled: Floats, k: int) -> tuple[Ints, Floats]:  # (b, d)
        """Rows of the k most similar kept images, the most similar first, and their similarities (cosines, -1..1).

        Two arrays (b, k), k at most the number of kept images. Images that belong together are not told apart here.
        """
        kept, unit = self.features.astype(np.float32).T, _unit(self.folded(pooled))
        k = min(k, kept.shape[1])
        rows, found = np.empty((len(unit), k), dtype=np.int64), np.empty((len(unit), k), dtype=np.float32)
        for start in range(0, len(unit), ROWS):
            part = slice(start, start + ROWS)
            similarity = unit[part] @ kept
            top = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
            near = np.take_along_axis(similarity, top, axis=1)
            order = np.lexsort((top, -near), axis=1)  # of equal ones the first
            rows[part] = np.take_along_axis(top, order, axis=1)
            found[part] = np.clip(np.take_along_axis(near, order, axis=1), -1, 1)
        return rows, found

    def save(self, folder: Path) -> None:
        """Write known.safetensors into the model's folder."""
        header, start = {}, 0
        arrays = {name: np.ascontiguousarray(a) for name, a in vars(self).items()}
        for name, a in arrays.items():
            header[name] = _Tensor(KINDS[a.dtype.name], a.shape, (start, start + a.nbytes))
            start += a.nbytes
        head = msgspec.json.encode(header)
        head += b" " * (-len(head) % 8)
        write(folder / FILE, b"".join([len(head).to_bytes(8, "little"), head, *(a.tobytes() for a in arrays.values())]))

    @classmethod
    def load(cls, folder: Path, width: int) -> Known | None:
        """Read it back, for pooled features of this width; None where a model has none.

        Raises DataError where the file is damaged, or does not fit.
        """
        file = folder / FILE
        if not file.is_file():
            return None
        try:
            content = file.read_bytes()
            size = int.from_bytes(content[:8], "little")
            tensors = msgspec.json.decode(content[8 : 8 + size], type=dict[str, _Tensor])
            found = {name: tensors[name].read(content[8 + size :]) for name in cls.__dataclass_fields__}
        except (OSError, KeyError, ValueError, msgspec.MsgspecError) as error:
            raise DataError(f"{file}: damaged ({error!r}); copy the model's folder anew, or fit again") from error
        known = cls(**found)
        wrong = known._wrong(width)
        if wrong:
            raise DataError(f"{file}: {wrong}; copy the model's folder anew, or fit again")
        return known

    def _wrong(self, width: int) -> str:
        """What does not fit; empty where all does."""
        r = len(self.middle)
        shapes = {
            "mean": (width,), "scale": (width,), "place": (width,), "sign": (width,), "middle": (r,), "spread": (r, r),
            "features": (len(self.features), r),
        }  # fmt: skip
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                return f"{name} is {getattr(self, name).shape}, expected {shape}"
        if width == 0 or not np.array_equal(np.unique(self.place), np.arange(r)):
            return f"its places are not those of {r} numbers"
        return ""


def sample(labels: Ints, most: int = MOST, *, seed: int = 0) -> Ints:
    """Which images are kept, in rising order: all, or `most` of them, of each class its share and at least one."""
    n = len(labels)
    if n <= most:
        return np.arange(n)
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    order = order[np.argsort(labels[order], kind="stable")]
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(n) - np.repeat(first, counts)  # within the class, at random
    share = (rank + 0.5) / np.repeat(counts, counts)
    share[rank == 0] = -1  # one of each class before any second one
    return np.sort(order[np.argsort(share, kind="stable")[:most]])


def _whitening(n: int, total: Floats, squared: Floats) -> tuple[Floats, Floats]:
    """Middle and whitening of n folded images, from their sum and the sum of their outer products."""
    middle = total.astype(np.float64) / n
    covariance = (squared - n * np.outer(middle, middle)) / max(1, n - 1)
    ridge = max(float(np.trace(covariance)) / len(middle), 1e-12)
    lower = np.linalg.cholesky(covariance + SHRINKAGE * ridge * np.eye(len(middle)))
    white = np.linalg.inv(lower).T
    return middle.astype(np.float32), white.astype(np.float32)


def _distance(folded: Floats, middle: Floats, white: Floats) -> Floats:
    """Root mean square of the whitened numbers: (b,)."""
    apart = (folded - middle) @ white
    distance: Floats = np.sqrt((apart * apart).mean(axis=1))
    return distance


def _unit(x: Floats) -> Floats:
    length = np.sqrt((x * x).sum(axis=1, keepdims=True))
    unit: Floats = x / np.maximum(length, np.float32(1e-12))
    return unit
