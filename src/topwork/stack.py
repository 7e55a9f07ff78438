"""Would a head that reads several depths be better?

Each cut's exact ridge scores are inputs, added up with weights that cannot be negative (stacking:
Wolpert, 1992; Breiman, 1996): no gradient descent, and K numbers to fit. The weights are judged on
images that they were not fitted on. What comes out is one linear head on the pooled features of the
cuts that count, so it costs what the deepest of them costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import nnls

from topwork.probe import CHUNK, Factors, Floats, Ints, Probe, Standardised, Table, factor
from topwork.probe import weights as ridge
from topwork.statistics import paired_gain

FORMULA = "1"
"""Raised by every change that can change a number here; results kept under another one are not read."""

LEAST_SHARE = 0.05
"""Share of all weight below which a cut is left out: it moves scores by a twentieth of their range at most, and
each cut that is read adds its channels to the head and a pooling to every prediction."""


@dataclass(frozen=True)
class Stacked:
    """Ridge scores of K cuts, added up."""

    weights: Floats  # (K,) from 0, fitted on all rows; 0 for cuts that are left out
    scores: Floats  # (n, C) cross-fitted: each row by the weights of the other folds
    right: NDArray[np.bool_]  # (n,) whether their arg-max is the label

    @property
    def used(self) -> tuple[int, ...]:
        """Positions of the cuts that count, in the order in which they were given."""
        return tuple(int(k) for k in np.flatnonzero(self.weights))


def stack(
    scores: Sequence[NDArray[np.float32]],  # K of (n, C), one-hot scale, each row out of sample (Probe.scores)
    labels: Ints,  # (n,) in 0..classes-1
    classes: int,
    fold: Ints,  # (n,) as from head.folds, which keeps groups whole
    *,
    importance: Floats | None = None,  # (n,) how much each row weighs, of mean 1
) -> Stacked:
    """Weigh cuts by non-negative least squares of their scores against the one-hot labels.

    Minimises sum_i a_i ||Y_i - sum_k w_k S_k,i||^2 over w >= 0; cuts below LEAST_SHARE of all weight go, the
    least first, and the others are fitted anew. Fitted on all rows for `weights`, and for each fold on
    the rows outside it, in the same way, for `scores`. The fits need sums over rows alone: K x K and K numbers.
    """
    n, count = len(labels), len(scores)
    names, place = np.unique(fold, return_inverse=True)
    gram, moment = np.zeros((len(names), count, count)), np.zeros((len(names), count))
    for k in range(len(names)):
        members = np.flatnonzero(place == k)
        for start in range(0, len(members), CHUNK):
            rows = members[start : start + CHUNK]
            root = np.ones(len(rows)) if importance is None else np.sqrt(importance[rows])
            s: Floats = np.stack([(root[:, None] * one[rows]).ravel() for one in scores])  # (K, rows * C)
            gram[k] += s @ s.T
            moment[k] += s @ (root[:, None] * np.eye(classes)[labels[rows]]).ravel()
    mixed = np.zeros((n, classes))
    for k in range(len(names)):
        inside, outside = np.flatnonzero(place == k), np.arange(len(names)) != k
        for one, weight in zip(scores, _fitted(gram[outside].sum(axis=0), moment[outside].sum(axis=0)), strict=True):
            mixed[inside] += weight * one[inside]
    weights = _fitted(gram.sum(axis=0), moment.sum(axis=0))
    return Stacked(weights, mixed, mixed.argmax(axis=1) == labels)


def gain(
    right: NDArray[np.bool_],  # (n,) Stacked.right
    baseline: NDArray[np.bool_],  # (n,) of the head that would be replaced
    groups: Ints | None = None,
    importance: Floats | None = None,
) -> tuple[float, float]:
    """Accuracy over the baseline's and its lower one-sided 90% bound: the stack is kept where that is above 0.

    Both sides must be of one kind, leave-one-out or out of the same folds: one and the same head is not right equally
    often in both, and the difference would count as a gain or a loss of stacking.
    """
    return paired_gain(right, baseline, groups, importance)


def fit(
    x_by_cut: Iterable[Table],  # of each cut that counts: (n, d_k) pooled features
    labels: Ints,
    classes: int,
    probes: Sequence[Probe],  # of the same cuts: their penalties
    weights: Sequence[float] | Floats,  # of the same cuts
    *,
    importance: Floats | None = None,
    decomposed: Callable[[int, Table], tuple[Standardised, Factors]] | None = None,  # of the i-th cut
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # (sum d_k, C), (C,)
    """The weighted ridge heads as one linear head: scores = concatenated raw features @ weight + bias.

    Features are read one cut at a time, so `x_by_cut` may load them when asked.
    """
    parts, bias = [], np.zeros(classes)
    for i, (x, found, share) in enumerate(zip(x_by_cut, probes, weights, strict=True)):
        if decomposed is None:
            standard = Standardised.of(x, importance)
            factors = factor(x, standard, importance)
        else:
            standard, factors = decomposed(i, x)
        w, b = ridge(x, labels, classes, float(found.penalties[found.best]), standard, factors)
        raw = w / standard.scale[:, None]  # on features as they are: the standardisation goes into w and b
        parts.append(share * raw)
        bias += share * (b - standard.mean @ raw)
    return np.concatenate(parts).astype(np.float32), bias.astype(np.float32)


def _fitted(gram: Floats, moment: Floats) -> Floats:  # (K, K), (K,)
    """Weights of the cuts: (K,). All are 0 where no cut's scores point to the labels, or there are no rows."""
    weights = np.zeros(len(moment))
    used = np.arange(len(moment))
    found = _non_negative(gram, moment)
    while True:
        used, found = used[found > 0], found[found > 0]  # without the others, the sum is the same
        if not len(used):
            break
        least = int(found.argmin())
        if found[least] >= LEAST_SHARE * found.sum():
            weights[used] = found
            break
        used = np.delete(used, least)
        found = _non_negative(gram[np.ix_(used, used)], moment[used])
    return weights


def _non_negative(gram: Floats, moment: Floats) -> Floats:
    """The w >= 0 that minimises w'Gw - 2 w'm, by the least-squares problem A'A = G, A'b = m."""
    s, v = eigh(gram)
    keep = (
        s > max(s[-1], 0.0) * len(s) * np.finfo(np.float64).eps
    )  # cuts with the same scores: a direction without sums
    if not keep.any():
        return np.zeros(len(moment))
    root = np.sqrt(s[keep])
    found: Floats = nnls(root[:, None] * v[:, keep].T, (v[:, keep].T @ moment) / root)[0]
    return found
