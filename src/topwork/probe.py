"""How well do these features tell the classes apart, exactly?

Ridge regression on centred one-hot targets, features standardised, solved for a whole path of
penalties by one eigendecomposition, with exact leave-one-out and leave-group-out predictions.
Everything is float64; each fast path is held against its brute-force oracle in tests/test_probe.py.

Where an image may have several labels, its targets are multi-hot, and how right it is predicted is a number from 0
to 1 (ranking.rightness) instead of yes or no. Everything else is the same.

Notation: X (n, d) standardised features, Y (n, C) centred one-hot targets, U (n, r) the left
singular vectors of X, s (r,) the squared singular values, w = s / (s + lambda). Where images weigh
differently (a_i, of mean 1), means are weighted, and rows of X and Y are multiplied by sqrt(a_i) first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from topwork.ranking import rightness

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Labels = NDArray[Any]
"""Of n images: (n,) the class of each, in 0..classes-1; or (n, C) bool
which labels each one has, several or none."""
Right = NDArray[Any]
"""How right answers are: bool, or where images may have several labels float, 0..1."""

FORMULA = "3"
"""Raised by every change that can change a number here; results kept under another one are not read."""

PENALTIES = 10.0 ** np.linspace(-5, 2, 15)
"""Ridge penalties as multiples of trace(X'X) / d, the mean squared singular value."""

RANK_TOLERANCE = 1e-10
"""Eigenvalues below this share of the largest are rounding of float64 and are dropped."""

LEVERAGE_MAX = 1 - 1e-9
"""A row with leverage 1 is interpolated whatever its label: left out, it could be anything."""

KEPT_SCORES = 2_000_000
"""Scores up to which those of every penalty are kept (120 MB as float32); above, the best penalty's are
computed once more."""

GIVEN = 0.5
"""Ridge score from which on a label counts as given where an image has none: half-way between the targets 0 and 1."""

CHUNK = 4096
"""Rows worked on at a time where n > d, so that memory beyond the features stays flat."""

BLOCK = 1_000_000
"""Values worked on at a time (8 MB): scores of as many penalties, or rows of as many groups."""

KEPT_ROWS = 4_000_000
"""Values up to which U is kept where n > d (32 MB as float64); of more it is computed by chunks, when asked for."""

SURE = 1e-4
"""Smallest over largest diagonal of a Cholesky factor from which on a system is solved as it stands: its condition is
then far from the one at which least squares would drop a direction."""


class Table(Protocol):
    """Features as the probes read them: an (n, d) float32 array, or what gives such rows when it is asked for them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Standardised:
    """Column means and scales. Columns that do not vary get scale infinity, hence value 0."""

    mean: Floats  # (d,)
    scale: Floats  # (d,)

    @staticmethod
    def of(x: Table, importance: Floats | None = None) -> Standardised:  # x: (n, d)
        """Moments of the columns, in float64, by chunks of rows; each row counts `importance` times (mean 1)."""
        n, d = x.shape
        a = np.ones(n) if importance is None else importance
        mean = sum((a[rows] @ x[rows] for rows in _slices(n)), np.zeros(d)) / n
        square = sum((a[rows] @ (x[rows] - mean) ** 2 for rows in _slices(n)), np.zeros(d)) / n
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

    s: Floats  # (r,) in rising order
    v: Floats | None  # (d, r) where n > d
    u: Floats | None  # (n, r) where n <= d, or where it is small
    unit: float  # trace(X'X) / d
    root: Floats  # (n,) sqrt of each row's importance

    @property
    def full(self) -> bool:
        """Whether U spans everything but the mean: then U U' + root root' / n is the identity."""
        return self.v is None and len(self.s) == len(self.root) - 1

    def left(self, x: Table, standard: Standardised, rows: slice | Ints) -> Floats:  # x: (n, d)
        """U of these rows: (m, r)."""
        if self.u is not None:
            return self.u[rows]
        assert self.v is not None
        return self.root[rows, None] * (standard(x[rows]) @ self.v) / np.sqrt(self.s)


@dataclass(frozen=True)
class Probe:
    """What ridge says at one cut, out of sample (leave-one-out, or leave-group-out)."""

    penalties: Floats  # (L,) multiples of trace(X'X) / d
    best: int  # index of the penalty with the least squared error
    squared: NDArray[np.float32]  # (n, L) squared error per image, summed over classes
    correct: Right  # (n, L) whether the arg-max is the label; of several labels how
    # right their ranking is, 0..1
    scores: NDArray[np.float32]  # (n, C) at the best penalty: one-hot scale


def factor(x: Table, standard: Standardised, importance: Floats | None = None) -> Factors:  # x: (n, d)
    """One eigendecomposition: of X'X where n > d, else of XX' (eigh beats SVD here, method.md section 2)."""
    n, d = x.shape
    root = np.ones(n) if importance is None else np.sqrt(importance)
    if n > d:
        gram = np.zeros((d, d))
        for rows in _slices(n):
            z = root[rows, None] * standard(x[rows])
            gram += z.T @ z
    else:
        z = root[:, None] * standard(x[:])
        gram = z @ z.T
    unit = float(np.trace(gram)) / d
    if not np.isfinite(unit):
        raise ValueError("features must not contain infs or NaNs")
    s, vectors = np.linalg.eigh(gram)  # the same LAPACK as SciPy's, which holds Python's lock meanwhile
    keep = s > max(s[-1], 0.0) * RANK_TOLERANCE
    if unit <= 0 or not keep.any():  # no feature varies
        return Factors(np.ones(1), np.zeros((d, 1)) if n > d else None, None if n > d else np.zeros((n, 1)), 1.0, root)
    s, vectors = s[keep], vectors[:, keep]
    if n <= d:
        return Factors(s, None, vectors, unit, root)
    u = (z @ vectors) / np.sqrt(s) if n <= CHUNK and n * len(s) <= KEPT_ROWS else None  # one chunk: z is all rows
    return Factors(s, vectors, u, unit, root)


def probe(
    x: Table,  # (n, d) pooled features
    labels: Labels,
    classes: int,
    *,
    groups: Ints | None = None,  # (n,) rows of one group are predicted without any of them
    importance: Floats | None = None,  # (n,) how much each row weighs, of mean 1
    penalties: Floats = PENALTIES,
    standard: Standardised | None = None,
    factors: Factors | None = None,
) -> Probe:
    """Exact out-of-sample ridge scores for every penalty.

    Leave-one-out: r_i = (Y - Yhat)_i / (1 - h_i), h_i = sum_k U_ik^2 w_k + a_i/n (Allen, 1974; centring
    costs the a_i/n). Leave-group-out: r_I = (I - H_II)^-1 (Y - Yhat)_I. The scale of the columns is taken
    from all rows; the means are refitted exactly. The penalty is chosen by squared error.
    """
    n = len(x)
    standard = standard or Standardised.of(x, importance)
    factors = factors or factor(x, standard, importance)
    targets = _targets(labels, classes, factors.root)
    projected = np.zeros((len(factors.s), classes))
    for rows in _slices(n):
        projected += factors.left(x, standard, rows).T @ targets(rows)
    squared = np.empty((n, len(penalties)), dtype=np.float32)
    correct = np.empty((n, len(penalties)), dtype=bool if labels.ndim == 1 else np.float32)
    kept = np.empty((n, len(penalties), classes), dtype=np.float32) if n * classes <= KEPT_SCORES else None

    def record(ks: slice, rows: slice | Ints, r: Floats) -> None:
        # Left out, a row is scored y - r: both are centred by the same mean, which cancels here.
        scores = one_hot(labels[rows], classes)[:, None] - r
        squared[rows, ks] = np.einsum("mkc,mkc->mk", r, r)
        if labels.ndim == 1:
            correct[rows, ks] = scores.argmax(axis=2) == labels[rows, None]
        else:
            for i, k in enumerate(range(ks.start, ks.stop)):
                correct[rows, k] = right(scores[:, i], labels[rows], GIVEN)
        if kept is not None:
            kept[rows, ks] = scores

    _residuals(x, standard, factors, targets, projected, _members(groups, n), penalties, record)
    weight = factors.root[:, None] ** 2
    best = int((weight * squared).mean(axis=0, dtype=np.float64).argmin())
    if kept is not None:
        own = kept[:, best].copy()  # a view would hold those of every penalty
        return Probe(penalties, best, squared, correct, own)
    scores = np.empty((n, classes), dtype=np.float32)

    def score(ks: slice, rows: slice | Ints, r: Floats) -> None:
        scores[rows] = one_hot(labels[rows], classes) - r[:, 0]

    _residuals(x, standard, factors, targets, projected, _members(groups, n), penalties[best : best + 1], score)
    return Probe(penalties, best, squared, correct, scores)


def _residuals(
    x: Table, standard: Standardised, factors: Factors, targets: Callable[[slice | Ints], Floats],
    projected: Floats, members: list[Ints], penalties: Floats, record: Callable[[slice, slice | Ints, Floats], None],
) -> None:  # fmt: skip
    """Out-of-sample residuals (m, l, C) of rows for l penalties, block by block: of single rows, then of groups."""
    n, root = len(x), factors.root
    ridges = penalties * factors.unit
    weights: Floats = factors.s[:, None] / (factors.s[:, None] + ridges)  # (r, L)
    # 1 - w, without its cancellation: where U spans everything, 1 - h and Y - Yhat are made of it alone.
    rest: Floats = ridges / (factors.s[:, None] + ridges)
    full = factors.full and bool((penalties > 0).all())

    def fitted(u: Floats, y: Floats, ks: slice) -> Floats:
        """Y - Yhat of these rows: (m, l, C). One product for all penalties."""
        shares = rest if full else weights
        product = u @ (shares[:, ks, None] * projected[:, None]).reshape(len(projected), -1)
        plain = product.reshape(len(u), -1, projected.shape[1])
        return plain if full else y[:, None] - plain

    def blocks(rows: int) -> Iterator[slice]:
        step = max(1, BLOCK // (rows * projected.shape[1]))
        return (slice(k, min(k + step, len(penalties))) for k in range(0, len(penalties), step))

    grouped = np.zeros(n, dtype=bool)
    for member in members:
        grouped[member] = True
    for rows in _slices(n):
        if grouped[rows].all():
            continue
        u, y, t = factors.left(x, standard, rows), targets(rows), root[rows, None]
        spared = u**2 @ rest if full else np.maximum(1 - u**2 @ weights - t**2 / n, 1 - LEVERAGE_MAX)
        inverse = 1 / (spared * t)  # (m, L)
        for ks in blocks(len(u)):
            record(ks, rows, fitted(u, y, ks) * inverse[:, ks, None])
    for together in _alike(members, len(factors.s)):
        count, m = together.shape
        index = together.ravel()
        u, y, t = factors.left(x, standard, index), targets(index), root[index, None]
        each, one = u.reshape(count, 1, m, -1), t.reshape(count, 1, m, 1)
        for ks in blocks(len(index) * max(1, max(m, u.shape[1]) // projected.shape[1])):
            plain = fitted(u, y, ks).reshape(count, m, ks.stop - ks.start, -1).transpose(0, 2, 1, 3)  # (g, l, m, C)
            if full:
                solved = _solved((each * rest.T[ks, None]) @ each.transpose(0, 1, 3, 2), plain)
            else:
                shrunk = each * np.sqrt(weights.T[ks, None])  # (g, l, m, r)
                centre = np.broadcast_to(one / np.sqrt(n), (*shrunk.shape[:3], 1))
                solved = _left_out(np.concatenate([shrunk, centre], axis=3), plain)
            record(ks, index, solved.transpose(0, 2, 1, 3).reshape(len(index), ks.stop - ks.start, -1) / t[:, None])


def _left_out(a: Floats, plain: Floats) -> Floats:
    """(I - A A')^-1 e for the parts A (..., m, r) of groups of the hat matrix's factor; by Woodbury where m > r."""
    m, r = a.shape[-2:]
    across = np.swapaxes(a, -1, -2)
    if m <= r:
        return _solved(np.eye(m) - a @ across, plain)
    return plain + a @ _solved(np.eye(r) - across @ a, across @ plain)


def weights(
    x: Table,  # (n, d)
    labels: Labels,
    classes: int,
    penalty: float,  # multiple of trace(X'X) / d
    standard: Standardised,
    factors: Factors,
) -> tuple[Floats, Floats]:  # (d, C), (C,)
    """The ridge head on standardised features: scores = z @ W + b, on the one-hot scale."""
    n, root = len(x), factors.root
    targets = _targets(labels, classes, root)
    shrunk = 1 / (factors.s + penalty * factors.unit)
    xty = np.zeros((x.shape[1], classes))
    if factors.v is not None:
        for rows in _slices(n):
            xty += (root[rows, None] * standard(x[rows])).T @ targets(rows)
        return factors.v @ (shrunk[:, None] * (factors.v.T @ xty)), _mean(labels, classes, root)
    assert factors.u is not None
    alpha = factors.u @ (shrunk[:, None] * (factors.u.T @ targets(slice(None))))
    for rows in _slices(n):
        xty += (root[rows, None] * standard(x[rows])).T @ alpha[rows]
    return xty, _mean(labels, classes, root)


def neighbours(x: Table, labels: Labels, *, k: int = 5, most: int = 2000, seed: int = 0) -> float:
    """Leave-one-out accuracy of the k nearest neighbours by cosine of standardised features.

    Over at most `most` images, drawn at random: it is a description, not a decision.
    """
    n, labels_of = len(x), labels
    chosen = np.arange(n) if n <= most else np.random.default_rng(seed).choice(n, most, replace=False)
    x, labels = x[chosen], labels_of[chosen]
    z = Standardised.of(x)(x).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True) + 1e-12
    near = z @ z.T
    np.fill_diagonal(near, -np.inf)
    k = min(k, len(x) - 1)
    nearest = np.argpartition(-near, k - 1, axis=1)[:, :k]
    rows = np.arange(len(x))
    if labels.ndim == 2:
        weight = 1 + 1e-3 * np.take_along_axis(near, nearest, axis=1)
        several = (weight[:, :, None] * labels[nearest]).sum(axis=1)
        return float(rightness(several, labels.astype(bool), k / 2).mean())
    votes = np.zeros((len(x), int(labels.max()) + 1), dtype=np.float64)
    for j in range(k):  # by similarity, so that a tie of counts goes to the nearer
        votes[rows, labels[nearest[:, j]]] += 1 + 1e-3 * near[rows, nearest[:, j]]
    return float((votes.argmax(axis=1) == labels).mean())


def one_hot(labels: Labels, classes: int) -> Floats:
    """Targets: (n, C), multi-hot where images may have several labels."""
    if labels.ndim == 2:
        return labels.astype(np.float64)
    result: Floats = np.eye(classes)[labels]
    return result


def right(scores: Floats, labels: Labels, boundary: float) -> Right:  # (n, C)
    """How right scores are, (n,): whether the arg-max is the label; of several labels their ranking, 0..1.

    `boundary`: the score from which on a label counts as given, which decides about images that have none.
    """
    if labels.ndim == 2:
        return rightness(scores, labels.astype(bool, copy=False), boundary)
    result: NDArray[np.bool_] = scores.argmax(axis=1) == labels
    return result


def _mean(labels: Labels, classes: int, root: Floats) -> Floats:
    """Weighted mean of the targets: (C,)."""
    if labels.ndim == 2:
        shares: Floats = (root**2) @ labels / len(labels)
        return shares
    return np.bincount(labels, weights=root**2, minlength=classes) / len(labels)


def _targets(labels: Labels, classes: int, root: Floats) -> Callable[[slice | Ints], Floats]:
    """Rows of Y: centred targets times the root of the importance."""
    mean = _mean(labels, classes, root)
    return lambda rows: root[rows, None] * (one_hot(labels[rows], classes) - mean)


def _solved(left: Floats, right: Floats) -> Floats:  # (..., m, m) symmetric, (..., m, C)
    """(..., m, C) solutions; by least squares where one is not definite.

    I - H of a group whose rows are interpolated whatever their labels is singular.
    """
    try:
        diagonal = np.diagonal(np.linalg.cholesky(left), axis1=-2, axis2=-1)
        if (diagonal.min(axis=-1) > SURE * diagonal.max(axis=-1)).all():
            return np.asarray(np.linalg.solve(left, right), dtype=np.float64)
    except np.linalg.LinAlgError:
        pass
    if left.ndim == 2:
        return np.asarray(np.linalg.lstsq(left, right, rcond=1e-12)[0], dtype=np.float64)
    return np.stack([_solved(one, its) for one, its in zip(left, right, strict=True)])


def _alike(members: list[Ints], rank: int) -> Iterator[Ints]:
    """Groups of equal size beside each other, (g, m) row indices, as many as BLOCK holds rows of U (`rank` values)."""
    sizes: dict[int, list[Ints]] = {}
    for index in members:
        sizes.setdefault(len(index), []).append(index)
    for m, found in sizes.items():
        step = max(1, BLOCK // (m * max(m, rank)))
        for start in range(0, len(found), step):
            yield np.stack(found[start : start + step])


def _members(groups: Ints | None, n: int) -> list[Ints]:
    """Row indices of every group of two or more."""
    if groups is None:
        return []
    order = np.argsort(groups, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(groups[order])) + 1, n)
    starts = np.append(0, ends[:-1])
    several = ends - starts > 1
    return [order[start:end] for start, end in zip(starts[several], ends[several], strict=True)]


def _slices(n: int) -> Iterator[slice]:
    return (slice(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK))
