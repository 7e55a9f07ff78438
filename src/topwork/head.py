"""Which linear head goes on the chosen cut?

Ridge is there already, in closed form. Multinomial logistic regression is fitted on the same
features and the same folds, and kept only where it is right more often. A temperature, fitted on
out-of-fold scores, makes either one's scores probabilities.

Where an image may have several labels, each is a question of its own: one-vs-rest logistic regression, fitted to all
labels at once, is held against ridge scores that are calibrated label by label.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax

from topwork import sigmoid
from topwork.probe import (
    Factors,
    Floats,
    Ints,
    Labels,
    Probe,
    Right,
    Standardised,
    Table,
    factor,
    probe,
    right,
    weights,
)
from topwork.records import HeadFacts

FORMULA = "4"
"""Raised by every change that can change a number here; results kept under another one are not read."""

FOLDS = 5
LOGISTIC_PENALTIES = 10.0 ** np.arange(0.5, -4.1, -0.5)
"""Multiples of trace(X'X) / d, strong to weak, each started from the one before. The path ends where
the out-of-fold loss rises: it is a valley."""

CURVATURE = 0.1
"""Typical p (1 - p) of a fitted softmax; only sets the preconditioner, so the speed, never the result."""

LOGISTIC_VALUES = 40_000_000
"""n x d above which only ridge is fitted: each of a few hundred steps reads all of it several times."""

FAIR_VALUES = 2_000_000
"""Scores up to which the temperature that judges a fold is fitted to the others: five fits of so many take a second,
and of 1,500 images it already changes the log-loss by 0.003 at most (bench/LOG.md)."""

MAX_STEPS = 100  # L-BFGS steps per penalty; warm starts rarely need 20
BIG = 60.0  # distance in logits to a class that a fold has never seen


@dataclass(frozen=True)
class Head:
    """A linear head on raw pooled features x: logits = (x @ weight + bias) / temperature."""

    weight: NDArray[np.float32]  # (d, C)
    bias: NDArray[np.float32]  # (C,)
    temperature: float
    facts: HeadFacts
    scores: Floats  # (n, C) out-of-fold logits before the temperature, for honest metrics
    right: Right  # (n,) whether the kept head is right out of fold (`folds` with the same seed)
    ridge_folds: Right  # (n,) ridge's out-of-fold correctness on the same folds
    correct: Right  # (n, P) out-of-fold, one column per penalty that logistic tried
    loss: NDArray[np.float32]  # (n, P) their log-losses; P = 0 where only ridge was fitted
    # Of several labels alone, else empty:
    ridge_loss: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))  # (n,) ridge's, calibrated
    thresholds: Floats = field(default_factory=lambda: np.zeros(0))  # (C,) log-odds from which on a label is given
    decided: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))  # (n, C) labels given out of fold, by
    # thresholds of the other folds

    @property
    def several(self) -> bool:
        """Whether an image may have several labels: then sigmoid(logits) are their probabilities."""
        return self.thresholds.size > 0


@dataclass(frozen=True)
class Exact:
    """The ridge head, scaled to be a softmax's logits: ((x - mean) / scale) @ weight + bias."""

    mean: Floats  # (d,) of the pooled features
    scale: Floats  # (d,) infinite for features that do not vary
    weight: Floats  # (d, C)
    bias: Floats  # (C,)


def exact(
    x: NDArray[np.float32], labels: Ints, classes: int, penalty: float, groups: Ints | None,
    importance: Floats | None = None,
) -> Exact:  # fmt: skip
    """The head that training starts from, in closed form, its temperature fitted leave-one-out."""
    standard = Standardised.of(x, importance)
    factors = factor(x, standard, importance)
    alone = np.array([penalty])
    loo = probe(x, labels, classes, groups=groups, penalties=alone, standard=standard, factors=factors)
    t = temperature(loo.scores.astype(np.float64), labels)
    w, b = weights(x, labels, classes, penalty, standard, factors)
    return Exact(standard.mean, standard.scale, w / t, b / t)


def folds(labels: Ints, groups: Ints | None, seed: int, k: int = FOLDS) -> Ints:
    """A fold number per image: stratified, a group whole in one fold, the same for the same seed.

    Within each class its groups, shuffled, are dealt out in turn, going on where the last class ended.
    """
    n = len(labels)
    groups = np.arange(n) if groups is None else groups
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    rng = np.random.default_rng(seed)
    dealt = np.empty(len(first), dtype=np.int64)
    start = 0
    for label in np.unique(labels[first]):
        mine = rng.permutation(np.flatnonzero(labels[first] == label))
        dealt[mine] = (start + np.arange(len(mine))) % k
        start += len(mine)
    result: Ints = dealt[member]
    return result


def fit(
    x: Table,  # (n, d) pooled features at the chosen cut
    labels: Labels,
    classes: int,
    loo: Probe,  # of the same features
    *,
    groups: Ints | None,
    seed: int,
    importance: Floats | None = None,  # (n,) how much each image weighs, of mean 1
    strata: Ints | None = None,  # (n,) what folds are stratified by; default: the labels, where there is one each
    standard: Standardised | None = None,
    factors: Factors | None = None,
) -> Head:
    """Fit ridge and, where it is affordable, logistic regression; keep the one that is right more often.

    Of several labels, the one of less log-loss.
    """
    standard = standard or Standardised.of(x, importance)
    factors = factors or factor(x, standard, importance)
    a = factors.root**2
    penalty = float(loo.penalties[loo.best])
    fold = folds(labels if strata is None else strata, groups, seed)
    if labels.ndim == 2:
        return _several(x, labels.astype(bool), penalty, fold, standard, factors)
    alone = np.array([penalty])
    ridge = probe(x, labels, classes, groups=fold, penalties=alone, standard=standard, factors=factors)
    ridge_accuracy = float(a @ ridge.correct[:, 0]) / len(x)
    path = _path(x, labels, classes, fold, standard, factors) if math.prod(x.shape) <= LOGISTIC_VALUES else None
    if path is None:
        reason = f"ridge: logistic regression is not tried on more than {LOGISTIC_VALUES:,} feature values"
    else:
        best = int((a @ path.loss).argmin())
        accuracy = float(a @ path.correct[:, best]) / len(x)
        if accuracy > ridge_accuracy + 1e-9:  # weighed shares this close are equal but for rounding
            reason = (
                f"logistic regression: right on {accuracy:.1%} out of fold, ridge on {ridge_accuracy:.1%}"
                " of the same folds"
            )
            logistic_penalty = float(LOGISTIC_PENALTIES[best])
            w, b = _refit(x, labels, classes, best, standard, factors, path.near)
            facts = HeadFacts("logistic", logistic_penalty, 1.0, ridge_accuracy, accuracy, reason)
            return _head(
                w, b, standard, path.scores[best], labels, facts, path.correct[:, best], ridge.correct[:, 0], path
            )
        reason = (
            f"ridge: right on {ridge_accuracy:.1%} out of fold, logistic regression on {accuracy:.1%} of the same folds"
        )
    w, b = weights(x, labels, classes, penalty, standard, factors)
    facts = HeadFacts("ridge", penalty, 1.0, ridge_accuracy, None if path is None else accuracy, reason)
    right = ridge.correct[:, 0]
    return _head(w, b, standard, loo.scores.astype(np.float64), labels, facts, right, right, path)


def temperature(scores: Floats, labels: Ints) -> float:  # (n, C)
    """The T that minimises the log-loss of softmax(scores / T) (Guo et al., ICML 2017).

    One image more is counted that is of each class alike: n right answers out of n are no certainty.
    """
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        log_p = log_softmax(scores / np.exp(log_t), axis=1)
        return -float(log_p[rows, labels].mean() + log_p.mean() / len(labels))

    # Ridge scores live on 0..1 and want T near 0.1; logits of an overfitted head want T of a few.
    found = minimize_scalar(loss, bounds=(np.log(1e-3), np.log(1e2)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def fair(scores: Floats, labels: Ints, fold: Ints, t: float) -> Floats:  # (n, C), (n,), (n,)
    """Out-of-fold scores such that, divided by t, each fold is as calm as the temperature of the others makes it.

    Where the same scores fit the temperature and judge it. Of very many the temperature is so sure that it is left.
    """
    if scores.size > FAIR_VALUES:
        return scores
    result = scores.copy()
    for k in np.unique(fold):
        rest = fold != k
        if rest.any():
            result[~rest] *= t / temperature(scores[rest], labels[rest])
    return result


def _several(
    x: Table, truth: NDArray[np.bool_], penalty: float, fold: Ints, standard: Standardised,
    factors: Factors,
) -> Head:  # fmt: skip
    """The head of several labels. All that judges or compares is out of fold, slopes and thresholds included."""
    n, classes = truth.shape
    alone = np.array([penalty])
    ridge = probe(x, truth, classes, groups=fold, penalties=alone, standard=standard, factors=factors)
    raw = ridge.scores.astype(np.float64)
    scores = sigmoid.calibrated(raw, truth, fold)
    ridge_loss = sigmoid.losses(scores, truth)
    ridge_folds = right(scores, truth, 0.0)
    path = _path(x, truth, classes, fold, standard, factors) if math.prod(x.shape) <= LOGISTIC_VALUES else None
    reason = f"ridge: logistic regression is not tried on more than {LOGISTIC_VALUES:,} feature values"
    kind, t, kept, accuracy = "ridge", 1.0, ridge_folds, None
    if path is not None:
        means = path.loss.mean(axis=0, dtype=np.float64)
        best = int(means.argmin())
        accuracy = float(path.correct[:, best].mean())
        words = (
            f"one-vs-rest logistic regression: log-loss {means[best]:.4f} per label out of fold",
            f"ridge, calibrated label by label: {ridge_loss.mean():.4f}",
        )
        if means[best] < ridge_loss.mean() - 1e-9:
            kind, penalty = "logistic", float(LOGISTIC_PENALTIES[best])
            scores, kept = path.scores[best], path.correct[:, best]
            t = sigmoid.temperature(scores, truth)
        reason = "; ".join(words if kind == "logistic" else reversed(words)) + ", on the same folds"
    if path is not None and kind == "logistic":
        w, b = _refit(x, truth, classes, best, standard, factors, path.near)
    else:
        slope, offset = sigmoid.platt(raw, truth)
        w, b = weights(x, truth, classes, penalty, standard, factors)
        w, b = w * slope, b * slope + offset
    folded = w / standard.scale[:, None]
    log_odds = scores / t
    return Head(
        folded.astype(np.float32),
        (b - standard.mean @ folded).astype(np.float32),
        t,
        HeadFacts(kind, penalty, t, float(ridge_folds.mean()), accuracy, reason),  # type: ignore[arg-type]
        scores,
        kept,
        ridge_folds,
        np.zeros((n, 0)) if path is None else path.correct,
        np.zeros((n, 0), dtype=np.float32) if path is None else path.loss,
        ridge_loss.astype(np.float32),
        sigmoid.thresholds(log_odds, truth),
        sigmoid.decided(log_odds, truth, fold),
    )


@dataclass(frozen=True)
class _Path:
    scores: list[Floats]  # per penalty (n, C) out-of-fold logits
    correct: Right  # (n, P)
    loss: NDArray[np.float32]  # (n, P)
    near: tuple[Floats, Floats]  # the folds' mean (W, b) at the penalty of least loss: from there it is not far


def _path(x: Table, labels: Labels, classes: int, fold: Ints, standard: Standardised, factors: Factors) -> _Path:
    """Out-of-fold logits along the penalties."""
    u, a = _left(x, standard, factors), factors.root**2
    n, rows = len(labels), np.arange(len(labels))
    walks = []
    for k in range(FOLDS):
        train = np.flatnonzero(fold != k)
        walks.append(_walk(u[train], factors.s, labels[train], a[train], classes, factors.unit * len(train) / n))
    scores: list[Floats] = []
    losses: list[Floats] = []
    near = np.zeros(0), np.zeros(0)
    with ThreadPoolExecutor(min(FOLDS, os.cpu_count() or 1)) as pool:  # what a step computes, it computes unlocked
        for _ in LOGISTIC_PENALTIES:
            out = np.empty((n, classes))
            found = list(pool.map(next, walks))
            for k, (w, b) in enumerate(found):
                out[fold == k] = u[fold == k] @ (np.sqrt(factors.s)[:, None] * w) + b
            scores.append(out)
            several = labels.ndim == 2
            losses.append(sigmoid.losses(out, labels) if several else -log_softmax(out, axis=1)[rows, labels])
            means = [float(a @ loss) for loss in losses]
            if means[-1] == min(means):
                # A class that one fold lacks has an offset of its own there: not the mean of these.
                near = np.mean([w for w, _ in found], axis=0), np.median([b for _, b in found], axis=0)
            if len(means) >= 2 and means[-1] > means[-2]:
                break
    correct = np.stack([right(s, labels, 0.0) for s in scores], axis=1)
    return _Path(scores, correct, np.stack(losses, axis=1).astype(np.float32), near)


def _walk(
    u: NDArray[np.float32], s: Floats, labels: Labels, importance: Floats, classes: int, unit: float, *,
    penalties: Floats = LOGISTIC_PENALTIES, near: tuple[Floats, Floats] | None = None,
) -> Iterator[tuple[Floats, Floats]]:  # fmt: skip
    """(W, b) for each penalty in turn, each started from the last, the first from `near`; W in the coordinates
    U sqrt(s).

    Minimises sum_i a_i log-loss_i + penalty * unit / 2 * ||W||^2, the bias free, by L-BFGS in coordinates
    in which the curvature is about the same everywhere. Classes that have no row here are left out
    of the fit and scored far below the others. Of several labels the loss is the sum of their binary ones; labels that
    no row has here, or every row, have an offset alone.
    """
    n, r, a = len(u), u.shape[1], importance.astype(np.float32)
    if labels.ndim == 2:
        has = labels.sum(axis=0)
        present = np.flatnonzero((has > 0) & (has < n))
        absent = np.log((has + 1) / (n - has + 1))  # no certainty either, where all agree
        step, b = _each(labels[:, present], importance), absent[present]
    else:
        present, column = np.unique(labels, return_inverse=True)
        absent = np.full(classes, -BIG)
        step, b = _one_of(column, importance), np.log(np.bincount(column, weights=a, minlength=len(present)) / n)
    c = len(present)
    w = np.zeros((r, c))
    if near is not None:
        w, b = near[0][:, present], near[1][present]

    def loss(theta: Floats, stretch: Floats, ridge: Floats) -> tuple[float, Floats]:
        v, bias = theta[: r * c].reshape(r, c), theta[r * c :]
        wrong, delta = step(u @ (stretch * v).astype(np.float32) + bias.astype(np.float32))
        value = wrong + float((ridge * v**2).sum()) / 2
        gradient = stretch * (u.T @ delta) + ridge * v
        return value / n, np.concatenate([gradient.ravel(), delta.sum(axis=0)]).astype(np.float64) / n

    for penalty in penalties:
        strength = penalty * unit
        even = np.sqrt(CURVATURE * s + strength)[:, None]  # W = V / even
        found = minimize(
            loss, np.concatenate([(w * even).ravel(), b]), jac=True, method="L-BFGS-B",
            args=(np.sqrt(s)[:, None] / even, strength / even**2),
            options={"maxiter": MAX_STEPS, "gtol": 1e-4, "ftol": 1e-6},
        )  # fmt: skip
        w, b = found.x[: r * c].reshape(r, c) / even, found.x[r * c :]
        whole_w, whole_b = np.zeros((r, classes)), absent.copy()
        whole_w[:, present], whole_b[present] = w, b
        yield whole_w, whole_b


Step = Callable[[NDArray[np.float32]], tuple[float, NDArray[np.float32]]]
"""From logits (n, C), which it may write over, the weighed loss and its gradient by them."""


def _one_of(column: Ints, weight: Floats) -> Step:
    """Softmax: each row has one class."""
    each, a = np.arange(len(column)), weight.astype(np.float32)

    def step(z: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        z -= z.max(axis=1, keepdims=True)
        shares = np.exp(z)
        total = shares.sum(axis=1, keepdims=True)
        losses = np.log(total[:, 0]) - z[each, column]
        shares /= total
        shares[each, column] -= 1
        return float(losses.dot(weight)), a[:, None] * shares

    return step


def _each(truth: NDArray[np.bool_], weight: Floats) -> Step:
    """Sigmoids: each row has any of the labels."""
    targets, a = truth.astype(np.float32), weight.astype(np.float32)

    def step(z: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        losses = (np.logaddexp(np.float32(0), z) - targets * z).sum(axis=1, dtype=np.float64)
        return float(losses.dot(weight)), a[:, None] * (expit(z) - targets)

    return step


def _refit(
    x: Table, labels: Labels, classes: int, best: int, standard: Standardised, factors: Factors,
    near: tuple[Floats, Floats],
) -> tuple[Floats, Floats]:  # fmt: skip
    """At the chosen penalty, from what the folds found there: a tenth of the steps of a walk from the strongest one."""
    w, b = next(
        _walk(
            _left(x, standard, factors), factors.s, labels, factors.root**2, classes, factors.unit,
            penalties=LOGISTIC_PENALTIES[best : best + 1], near=near,
        )
    )  # fmt: skip
    if factors.v is not None:
        return factors.v @ w, b
    assert factors.u is not None
    rows = factors.root[:, None] * standard(x[:])
    return rows.T @ (factors.u @ (w / np.sqrt(factors.s)[:, None])), b  # X' U / sqrt(s) = V


def _left(x: Table, standard: Standardised, factors: Factors) -> NDArray[np.float32]:
    """X V / sqrt(s): the rows in at most n coordinates. L2 penalties do not see the rotation: the fit is the same."""
    return (factors.left(x, standard, slice(None)) / factors.root[:, None]).astype(np.float32)


def _head(
    w: Floats, b: Floats, standard: Standardised, scores: Floats, labels: Ints, facts: HeadFacts,
    right: NDArray[np.bool_], ridge_folds: NDArray[np.bool_], path: _Path | None,
) -> Head:  # fmt: skip
    n = len(labels)
    t = temperature(scores, labels)
    folded = w / standard.scale[:, None]
    return Head(
        folded.astype(np.float32),
        (b - standard.mean @ folded).astype(np.float32),
        t,
        HeadFacts(facts.kind, facts.penalty, t, facts.ridge_accuracy, facts.logistic_accuracy, facts.reason),
        scores,
        right,
        ridge_folds,
        np.zeros((n, 0), dtype=bool) if path is None else path.correct,
        np.zeros((n, 0), dtype=np.float32) if path is None else path.loss,
    )
