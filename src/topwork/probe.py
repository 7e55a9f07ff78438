"""How well do these features tell the classes apart, exactly?

Ridge regression on centred one-hot targets, features standardised, solved for a whole path of
penalties by one eigendecomposition, with exact leave-one-out and leave-group-out predictions.
Everything is float64; each fast path is held against its brute-force oracle in tests/test_probe.py.

Notation: X (n, d) standardised features, Y (n, C) centred one-hot targets, U (n, r) the left
singular vectors of X, s (r,) the squared singular values, w = s / (s + lambda).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FORMULA = "1"
"""Raised by every change that can change a number here; results kept under another one are not read."""

PENALTIES = 10.0 ** np.linspace(-5, 2, 15)
"""Ridge penalties as multiples of trace(X'X) / d, the mean squared singular value."""

RANK_TOLERANCE = 1e-10
"""Eigenvalues below this share of the largest are rounding of float64 and are dropped."""

LEVERAGE_MAX = 1 - 1e-9
"""A row with leverage 1 is interpolated whatever its label: left out, it could be anything."""

CHUNK = 4096
"""Rows worked on at a time where n > d, so that memory beyond the features stays flat."""


@dataclass(frozen=True)
class Standardised:
    """Column means and scales. Columns that do not vary get scale infinity, hence value 0."""

    mean: Floats  # (d,)
    scale: Floats  # (d,)

    @staticmethod
    def of(x: NDArray[np.float32]) -> Standardised:  # x: (n, d)
        """Moments of the columns, in float64, by chunks of rows."""
        n = len(x)
        mean = sum((c.sum(axis=0, dtype=np.float64) for c in _chunks(x)), np.zeros(x.shape[1])) / n
        square = sum((((c - mean) ** 2).sum(axis=0) for c in _chunks(x)), np.zeros(x.shape[1])) / n
        scale = np.sqrt(square)
        # float16 features: what varies less than their rounding does not vary.
        scale[scale <= 1e-6 * (np.abs(mean) + 1e-12)] = np.inf
        return Standardised(mean, scale)

    def __call__(self, x: NDArray[np.float32]) -> Floats:
        """Standardise rows: (m, d) to (m, d)."""
        return (x - self.mean) / self.scale


@dataclass(frozen=True)
class Factors:
    """The eigendecomposition that all penalties share. X V = U sqrt(s)."""

    s: Floats  # (r,) descending importance is not implied
    v: Floats | None  # (d, r) where n > d
    u: Floats | None  # (n, r) where n <= d
    unit: float  # trace(X'X) / d

    def left(self, x: Floats, rows: slice) -> Floats:  # x: (m, d) standardised rows `rows`
        """U of these rows: (m, r)."""
        if self.u is not None:
            return self.u[rows]
        assert self.v is not None
        return (x @ self.v) / np.sqrt(self.s)


@dataclass(frozen=True)
class Probe:
    """What ridge says at one cut, out of sample (leave-one-out, or leave-group-out)."""

    penalties: Floats  # (L,) multiples of trace(X'X) / d
    best: int  # index of the penalty with the least squared error
    squared: NDArray[np.float32]  # (n, L) squared error per image, summed over classes
    correct: NDArray[np.bool_]  # (n, L) whether the arg-max is the label
    scores: NDArray[np.float32]  # (n, C) at the best penalty: one-hot scale


def factor(x: NDArray[np.float32], standard: Standardised) -> Factors:  # x: (n, d)
    """One eigendecomposition: of X'X where n > d, else of XX' (eigh beats SVD here, method.md section 2)."""
    n, d = x.shape
    if n > d:
        gram = sum((z.T @ z for z in map(standard, _chunks(x))), np.zeros((d, d)))
    else:
        z = standard(x)
        gram = z @ z.T
    unit = float(np.trace(gram)) / d
    s, vectors = eigh(gram, driver="evd", overwrite_a=True, check_finite=True)
    keep = s > max(s[-1], 0.0) * RANK_TOLERANCE
    if unit <= 0 or not keep.any():  # no feature varies
        return Factors(np.ones(1), np.zeros((d, 1)) if n > d else None, None if n > d else np.zeros((n, 1)), 1.0)
    s, vectors = s[keep], vectors[:, keep]
    return Factors(s, vectors, None, unit) if n > d else Factors(s, None, vectors, unit)


def probe(
    x: NDArray[np.float32],  # (n, d) pooled features
    labels: Ints,  # (n,) in 0..classes-1
    classes: int,
    *,
    groups: Ints | None = None,  # (n,) rows of one group are predicted without any of them
    penalties: Floats = PENALTIES,
    standard: Standardised | None = None,
    factors: Factors | None = None,
) -> Probe:
    """Exact out-of-sample ridge scores for every penalty.

    Leave-one-out: r_i = (Y - Yhat)_i / (1 - h_i), h_i = sum_k U_ik^2 w_k + 1/n (Allen, 1974; centring
    costs the 1/n). Leave-group-out: r_I = (I - H_II)^-1 (Y - Yhat)_I. The scale of the columns is taken
    from all rows; the means are refitted exactly. The penalty is chosen by squared error.
    """
    n = len(x)
    standard = standard or Standardised.of(x)
    factors = factors or factor(x, standard)
    y_mean: Floats = np.bincount(labels, minlength=classes) / n
    weights = factors.s[:, None] / (factors.s[:, None] + penalties * factors.unit)  # (r, L)
    projected = np.zeros((len(factors.s), classes))
    for rows, u in _lefts(x, standard, factors):
        projected += u.T @ (np.eye(classes)[labels[rows]] - y_mean)
    squared = np.empty((n, len(penalties)), dtype=np.float32)
    correct = np.empty((n, len(penalties)), dtype=bool)
    residuals = np.empty((n, len(penalties), classes), dtype=np.float32) if n * classes <= 2_000_000 else None
    members = _members(groups, n)
    for rows, u in _lefts(x, standard, factors):
        y = np.eye(classes)[labels[rows]] - y_mean
        inverse: Floats = 1 / np.maximum(1 - (u**2 @ weights + 1 / n), 1 - LEVERAGE_MAX)  # (m, L)
        for k in range(len(penalties)):
            r = (y - u @ (weights[:, k, None] * projected)) * inverse[:, k, None]
            _record(squared, correct, residuals, k, rows, r, labels[rows], y_mean)
    for index in members:
        u = _left_of(x, standard, factors, index)
        y = np.eye(classes)[labels[index]] - y_mean
        for k in range(len(penalties)):
            hat = (u * weights[:, k]) @ u.T + 1 / n
            plain = y - u @ (weights[:, k, None] * projected)
            r = _solved(np.eye(len(index)) - hat, plain)
            _record(squared, correct, residuals, k, index, r, labels[index], y_mean)
    best = int(squared.mean(axis=0, dtype=np.float64).argmin())
    if residuals is not None:
        one_hot = np.eye(classes, dtype=np.float32)[labels]
        return Probe(penalties, best, squared, correct, one_hot - residuals[:, best])
    if len(penalties) == 1:
        raise AssertionError("unreachable: one penalty always fits the bound or is asked for below")
    # Too many scores to keep for every penalty: once more, at the best alone.
    scores = _scores(x, labels, classes, standard, factors, members, float(penalties[best]), projected, y_mean)
    return Probe(penalties, best, squared, correct, scores)


def weights(
    x: NDArray[np.float32],  # (n, d)
    labels: Ints,
    classes: int,
    penalty: float,  # multiple of trace(X'X) / d
    standard: Standardised,
    factors: Factors,
) -> tuple[Floats, Floats]:  # (d, C), (C,)
    """The ridge head on standardised features: scores = z @ W + b, on the one-hot scale."""
    n = len(x)
    b = np.bincount(labels, minlength=classes) / n
    shrunk = 1 / (factors.s + penalty * factors.unit)
    xty = np.zeros((x.shape[1], classes))
    if factors.v is not None:
        for rows in _slices(n):
            xty += standard(x[rows]).T @ (np.eye(classes)[labels[rows]] - b)
        return factors.v @ (shrunk[:, None] * (factors.v.T @ xty)), b
    assert factors.u is not None
    alpha = factors.u @ (shrunk[:, None] * (factors.u.T @ (np.eye(classes)[labels] - b)))
    for rows in _slices(n):
        xty += standard(x[rows]).T @ alpha[rows]
    return xty, b


def neighbours(x: NDArray[np.float32], labels: Ints, *, k: int = 5, most: int = 2000, seed: int = 0) -> float:
    """Leave-one-out accuracy of the k nearest neighbours by cosine of standardised features.

    Over at most `most` images, drawn at random: it is a description, not a decision.
    """
    if len(x) > most:
        chosen = np.random.default_rng(seed).choice(len(x), most, replace=False)
        x, labels = x[chosen], labels[chosen]
    z = Standardised.of(x)(x).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True) + 1e-12
    near = z @ z.T
    np.fill_diagonal(near, -np.inf)
    k = min(k, len(x) - 1)
    nearest = np.argpartition(-near, k - 1, axis=1)[:, :k]
    votes = np.zeros((len(x), int(labels.max()) + 1), dtype=np.float64)
    rows = np.arange(len(x))
    for j in range(k):  # by similarity, so that a tie of counts goes to the nearer
        votes[rows, labels[nearest[:, j]]] += 1 + 1e-3 * near[rows, nearest[:, j]]
    return float((votes.argmax(axis=1) == labels).mean())


def _record(
    squared: NDArray[np.float32], correct: NDArray[np.bool_], residuals: NDArray[np.float32] | None,
    k: int, rows: slice | Ints, r: Floats, labels: Ints, y_mean: Floats,
) -> None:  # fmt: skip
    y = np.eye(len(y_mean))[labels]
    squared[rows, k] = (r**2).sum(axis=1)
    # Left out, a row is scored y - r: both are centred by the same mean, which cancels here.
    correct[rows, k] = (y - r).argmax(axis=1) == labels
    if residuals is not None:
        residuals[rows, k] = r


def _scores(
    x: NDArray[np.float32], labels: Ints, classes: int, standard: Standardised, factors: Factors,
    members: list[Ints], penalty: float, projected: Floats, y_mean: Floats,
) -> NDArray[np.float32]:  # fmt: skip
    n = len(x)
    w = factors.s / (factors.s + penalty * factors.unit)
    out = np.empty((n, classes), dtype=np.float32)
    for rows, u in _lefts(x, standard, factors):
        y = np.eye(classes)[labels[rows]]
        inverse = 1 / np.maximum(1 - (u**2 @ w + 1 / n), 1 - LEVERAGE_MAX)
        out[rows] = y - (y - y_mean - u @ (w[:, None] * projected)) * inverse[:, None]
    for index in members:
        u, y = _left_of(x, standard, factors, index), np.eye(classes)[labels[index]]
        plain = y - y_mean - u @ (w[:, None] * projected)
        out[index] = y - _solved(np.eye(len(index)) - (u * w) @ u.T - 1 / n, plain)
    return out


def _solved(left: Floats, right: Floats) -> Floats:
    """Least squares: I - H of a group whose rows are interpolated whatever their labels is singular."""
    return np.linalg.lstsq(left, right, rcond=1e-12)[0].astype(np.float64, copy=False)


def _left_of(x: NDArray[np.float32], standard: Standardised, factors: Factors, index: Ints) -> Floats:
    if factors.u is not None:
        return factors.u[index]
    return factors.left(standard(x[index]), slice(0))


def _members(groups: Ints | None, n: int) -> list[Ints]:
    """Row indices of every group of two or more."""
    if groups is None:
        return []
    order = np.argsort(groups, kind="stable")
    bounds = np.flatnonzero(np.diff(groups[order])) + 1
    return [index for index in np.split(order, bounds) if len(index) > 1]


def _slices(n: int) -> Iterator[slice]:
    return (slice(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK))


def _chunks(x: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (x[rows] for rows in _slices(len(x)))


def _lefts(x: NDArray[np.float32], standard: Standardised, factors: Factors) -> Iterator[tuple[slice, Floats]]:
    """U by chunks of rows; where it is already there, without touching the features."""
    for rows in _slices(len(x)):
        yield rows, factors.u[rows] if factors.u is not None else factors.left(standard(x[rows]), rows)
