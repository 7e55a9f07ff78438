"""What do the training images look like to the model; is an image like any of them, and which are nearest? NumPy alone.

Pooled features are reduced to a few directions and brought to unit length; what is near is what points the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from topwork.errors import DataError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

FILE = "known.safetensors"

MOST = 3000
"""Training images that are kept: 128 directions of so many take 0.8 MB, and a look through all of them 1 ms."""

DIRECTIONS = 128
"""Directions at most: those in which the training images differ most."""

FITTED = 1000
"""Images that the directions are found from: a decomposition of so many takes a second, and more changes little."""

NEIGHBOUR = 2
"""An image is as strange as its similarity to the image that is the second-nearest of those learnt from."""

ROWS = 512  # images looked up at once: their similarities to all kept ones then take 6 MB


@dataclass(frozen=True)
class Known:
    """Reduced features of some training images, and how features are reduced."""

    mean: Floats  # (d,) of the pooled features
    basis: Floats  # (d, r) from centred pooled features to directions
    features: NDArray[np.float16]  # (n, r) of unit length

    @classmethod
    def of(cls, pooled: Floats, *, seed: int = 0) -> Known:  # (n, d)
        """From the pooled features of the images that are to be kept (`sample` says which)."""
        x = pooled.astype(np.float32)
        rng = np.random.default_rng(seed)
        some = x if len(x) <= FITTED else x[np.sort(rng.choice(len(x), FITTED, replace=False))]
        mean, spread = some.mean(axis=0), some.std(axis=0)
        scale = np.where(spread > 1e-6 * max(float(spread.max()), 1e-30), spread, np.inf).astype(np.float32)
        basis = (_directions((some - mean) / scale) / scale[:, None]).astype(np.float32)
        return cls(mean, basis, _unit((x - mean) @ basis).astype(np.float16))

    def reduced(self, pooled: Floats) -> Floats:  # (b, d)
        """Unit-length features of images: (b, r)."""
        return _unit((pooled.astype(np.float32) - self.mean) @ self.basis)

    def nearest(self, pooled: Floats, k: int) -> tuple[Ints, Floats]:  # (b, d)
        """Rows of the k most similar images that are kept, the most similar first, and their similarities in -1..1.

        Two arrays (b, k), k at most the number of images that are kept.
        """
        return self._nearest(self.reduced(pooled), k, None, None)

    def scores(self, pooled: Floats) -> Floats:  # (b, d)
        """How unlike the training images each image is, 0..2: (b,). Rises the less it is like them."""
        return self._strange(self.reduced(pooled), None, None)

    def apart(self, groups: Ints) -> Floats:  # (n,) of the kept images
        """The scores of the kept images themselves, each against those of other groups alone: (n,)."""
        return self._strange(self.features.astype(np.float32), groups, groups)

    def save(self, folder: Path) -> None:
        """Write known.safetensors into the model's folder."""
        half = {"mean": self.mean, "basis": self.basis, "features": self.features}
        save_file({name: np.ascontiguousarray(a) for name, a in half.items()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Known | None:
        """Read it back; None where a model has none. Raises DataError where the file is damaged."""
        file = folder / FILE
        if not file.is_file():
            return None
        try:
            found = load_file(file)
            mean, basis, features = found["mean"], found["basis"], found["features"]
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(f"{file}: damaged: {error!r}; copy the model's folder anew, or fit again") from error
        if basis.ndim != 2 or mean.shape != basis.shape[:1] or features.shape[1:] != basis.shape[1:]:
            raise DataError(
                f"{file}: damaged: mean {mean.shape}, basis {basis.shape} and features {features.shape} do not fit"
                " each other; copy the model's folder anew, or fit again"
            )
        return cls(mean, basis, features)

    def _strange(self, unit: Floats, own: Ints | None, groups: Ints | None) -> Floats:
        """1 - similarity to the nearest but NEIGHBOUR - 1; 1 where there is none of another group."""
        _, similarity = self._nearest(unit, min(NEIGHBOUR, len(self.features)), own, groups)
        last = similarity[:, -1]
        strange: Floats = np.where(np.isfinite(last), 1 - last, 1).astype(np.float32)
        return strange

    def _nearest(self, unit: Floats, k: int, own: Ints | None, groups: Ints | None) -> tuple[Ints, Floats]:
        kept = self.features.astype(np.float32).T
        k = min(k, kept.shape[1])
        rows, found = np.empty((len(unit), k), dtype=np.int64), np.empty((len(unit), k), dtype=np.float32)
        for start in range(0, len(unit), ROWS):
            part = slice(start, start + ROWS)
            similarity = unit[part] @ kept
            if own is not None and groups is not None:
                similarity[own[part, None] == groups[None]] = -np.inf
            top = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
            near = np.take_along_axis(similarity, top, axis=1)
            order = np.lexsort((top, -near), axis=1)  # of equal ones the first
            rows[part] = np.take_along_axis(top, order, axis=1)
            found[part] = np.take_along_axis(near, order, axis=1)
        return rows, found


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


def _directions(z: Floats) -> Floats:  # (n, d) standardised
    """Where standardised features spread most, as they spread: (d, r)."""
    small = z @ z.T if len(z) <= z.shape[1] else z.T @ z
    values, vectors = np.linalg.eigh(small)
    r = int(min(DIRECTIONS, max(1, (values > 1e-6 * max(float(values[-1]), 1e-30)).sum())))
    values, vectors = np.maximum(values[::-1][:r], 1e-12), vectors[:, ::-1][:, :r]
    if len(z) <= z.shape[1]:
        vectors = z.T @ (vectors / np.sqrt(values))
    directions: Floats = vectors.astype(np.float32)
    return directions


def _unit(x: Floats) -> Floats:
    length = np.sqrt((x * x).sum(axis=1, keepdims=True))
    unit: Floats = x / np.maximum(length, np.float32(1e-12))
    return unit
