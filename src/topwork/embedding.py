"""How do images lie to each other, on paper? A map in which neighbours stay neighbours; distances mean little.

t-SNE (van der Maaten and Hinton, Journal of Machine Learning Research 2008), started from the first two principal
components and with the rates that keep what is far apart apart (Kobak and Berens, Nature Communications 2019). Forces
of repulsion are exact, those of attraction act between neighbours alone. Nothing is drawn by lot.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix
from threadpoolctl import threadpool_limits

Floats = NDArray[np.float32]

PERPLEXITY = 30.0
"""Neighbours that count, as nearly everywhere; a third of the images where there are fewer."""

STEPS, PUSHED = 150, 50
"""Steps in all, and first ones in which attraction is exaggerated."""

EXAGGERATION = 12.0
MOMENTUM = (0.5, 0.8)  # while it is exaggerated, and afterwards
DIRECTIONS = 50  # principal components that neighbours are looked for in
FARTHEST = np.float32(10)  # that a position may move in a step; maps are some tens wide
START = 1e-4  # spread of the first positions: small, so that forces decide


def flat(x: Floats) -> Floats:  # (n, d)
    """Positions (n, 2), centred, the longer side from about -1 to 1. The same features give the same positions."""
    n = len(x)
    if n < 4:  # too few to have neighbours
        return np.stack([np.linspace(-1, 1, n) if n > 1 else np.zeros(n), np.zeros(n)], axis=1).astype(np.float32)
    with threadpool_limits(1, "blas"):  # its rounding depends on the number of threads
        z = components(x, DIRECTIONS)
        y = z[:, :2] if z.shape[1] > 1 else np.pad(z, ((0, 0), (0, 2 - z.shape[1])))
        y = (y * (START / max(float(y[:, 0].std()), 1e-30))).astype(np.float32)
        y = _settled(_affinities(z, min(PERPLEXITY, (n - 1) / 3)), y)
    placed: Floats = y / np.float32(max(float(np.abs(y).max()), 1e-30))
    return placed


def standard(pooled: Floats) -> Floats:  # (n, d)
    """Features that all count alike, each image's brought to unit length: (n, d)."""
    if not len(pooled):
        return pooled
    spread = pooled.std(axis=0)
    scale = np.where(spread > 1e-6 * max(float(spread.max()), 1e-30), spread, np.inf).astype(np.float32)
    return unit((pooled - pooled.mean(axis=0)) / scale)


def unit(x: Floats) -> Floats:  # (n, d)
    """Rows brought to length 1; those of zeros stay."""
    length = np.sqrt((x * x).sum(axis=1, keepdims=True))
    found: Floats = x / np.maximum(length, np.float32(1e-12))
    return found


def components(x: Floats, most: int) -> Floats:  # (n, d)
    """Coordinates along the first principal components: (n, r), r at most `most`; signs are fixed."""
    z = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    small = z @ z.T if len(z) <= z.shape[1] else z.T @ z
    values, vectors = np.linalg.eigh(small)
    r = max(1, min(most, int((values > 1e-10 * max(values[-1], 1e-300)).sum())))
    values, vectors = np.maximum(values[::-1][:r], 0.0), vectors[:, ::-1][:, :r]
    found = vectors * np.sqrt(values) if len(z) <= z.shape[1] else z @ vectors
    found *= np.where(found[np.abs(found).argmax(axis=0), np.arange(r)] < 0, -1.0, 1.0)
    coordinates: Floats = found.astype(np.float32)
    return coordinates


def _affinities(z: Floats, perplexity: float) -> csr_matrix:
    """Symmetric shares of attraction between neighbours: (n, n), 1 in all."""
    n = len(z)
    k = min(n - 1, int(3 * perplexity))
    square = (z * z).sum(axis=1)
    far = np.maximum(square[:, None] + square[None] - 2 * z @ z.T, 0.0)
    np.fill_diagonal(far, np.inf)
    near = np.argpartition(far, k - 1, axis=1)[:, :k]
    d = np.take_along_axis(far, near, axis=1).astype(np.float64)
    d -= d.min(axis=1, keepdims=True)
    low, high = np.full(n, -30.0), np.full(n, 30.0)  # of the logarithm of the precision, over the mean distance
    d /= max(float(d.mean()), 1e-30)
    for _ in range(40):
        middle = (low + high) / 2
        p = np.exp(-d * np.exp(middle)[:, None])
        p /= p.sum(axis=1, keepdims=True)
        entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(axis=1)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    one_way = coo_matrix((p.ravel(), (np.repeat(np.arange(n), k), near.ravel())), shape=(n, n)).tocsr()
    both = (one_way + one_way.T) / (2 * n)
    return csr_matrix(both, dtype=np.float32)


def _settled(p: csr_matrix, y: Floats) -> Floats:
    """Gradient descent with momentum and a gain for each coordinate (Jacobs 1988)."""
    n = len(y)
    rows, columns, weight = np.repeat(np.arange(n), np.diff(p.indptr)), p.indices, p.data
    speed, gain = np.zeros_like(y), np.ones_like(y)
    rate = np.float32(max(n / EXAGGERATION, 10.0))
    near, ones = np.empty((n, n), dtype=np.float32), np.ones((n, 1), dtype=np.float32)
    for step in range(STEPS):
        pushed = step < PUSHED
        between = y[rows] - y[columns]
        pull = weight / (1 + (between * between).sum(axis=1))
        pull = csr_matrix((pull, p.indices, p.indptr), shape=(n, n))
        attraction = np.asarray(pull.sum(axis=1)) * y - pull @ y
        # 1 / (1 + squared distance) of all pairs in one product, one addition and one division
        square = (y * y).sum(axis=1, keepdims=True)
        np.matmul(np.hstack([-2 * y, ones, square]), np.hstack([y, square + 1, ones]).T, out=near)
        np.maximum(near, np.float32(1), out=near)  # rounding could bring it below
        np.reciprocal(near, out=near)
        total = float(near.sum(dtype=np.float64)) - n  # without each with itself
        np.multiply(near, near, out=near)
        held = near @ np.hstack([y, ones])
        repulsion = (held[:, 2:] * y - held[:, :2]) / np.float32(max(total, 1e-6 * n))  # what is below is rounding
        slope = 4 * ((EXAGGERATION if pushed else 1.0) * attraction - repulsion)
        against = np.sign(slope) != np.sign(speed)
        gain = np.maximum(np.where(against, gain + 0.2, gain * 0.8), 0.01).astype(np.float32)
        speed = (MOMENTUM[not pushed] * speed - rate * gain * slope).astype(np.float32)
        # A few images far from all others would throw each other out of all numbers.
        speed *= np.minimum(1, FARTHEST / np.maximum(np.sqrt((speed * speed).sum(axis=1, keepdims=True)), FARTHEST))
        y = y + speed
        y = y - y.mean(axis=0)
    return y
