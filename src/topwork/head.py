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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from topwork import logistic, sigmoid
from topwork.probe import (
    CHUNK,
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

FORMULA = "5"
"""Raised by every change that can change a number here; results kept under another one are not read."""

FOLDS = 5
LOGISTIC_PENALTIES = 10.0 ** np.arange(0.5, -4.1, -0.5)
"""Multiples of trace(X'X) / d, strong to weak, each started from the one before. The path ends where
the out-of-fold loss rises: it is a valley."""

LOGISTIC_VALUES = 40_000_000
"""n x d above which only ridge is fitted: each of a few hundred steps reads all of it several times."""

FAIR_VALUES = 2_000_000
"""Scores up to which the temperature that judges a fold is fitted to the others: five fits of so many take a second,
and of 1,500 images it already changes the log-loss by 0.003 at most (bench/LOG.md)."""

SMALL = 20_000_000
"""Images x features x classes up to which one thread walks all folds."""

BESIDE = 16_000_000
"""Values of the folds that are walked in one product (64 MB as float32)."""


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
    inside = (fold != np.arange(FOLDS)[:, None]).astype(np.float64)  # (FOLDS, n)
    parts, threads = _parts(u, classes)
    walks = [
        logistic.walk(
            u, factors.s, labels, classes, a * inside[part], factors.unit * inside[part].mean(axis=1),
            LOGISTIC_PENALTIES,
        )
        for part in parts
    ]  # fmt: skip
    scores: list[Floats] = []
    losses: list[Floats] = []
    near = np.zeros(0), np.zeros(0)
    with ThreadPoolExecutor(threads) as pool:
        for _ in LOGISTIC_PENALTIES:
            out = np.empty((n, classes))
            found = list(pool.map(next, walks))
            for part, fit in zip(parts, found, strict=True):
                for f, k in enumerate(part):
                    out[fold == k] = fit.logits(f, u[fold == k], factors.s)
            scores.append(out)
            several = labels.ndim == 2
            losses.append(sigmoid.losses(out, labels) if several else -log_softmax(out, axis=1)[rows, labels])
            means = [float(a @ loss) for loss in losses]
            if means[-1] == min(means):
                # A class that one fold lacks has an offset of its own there: not the mean of these.
                weight, bias = (np.concatenate([getattr(f, name) for f in found]) for name in ("weight", "bias"))
                near = weight.mean(axis=0), np.median(bias, axis=0)
            if len(means) >= 2 and means[-1] > means[-2]:
                break
    correct = np.stack([right(s, labels, 0.0) for s in scores], axis=1)
    return _Path(scores, correct, np.stack(losses, axis=1).astype(np.float32), near)


def _parts(u: NDArray[np.float32], classes: int) -> tuple[list[Ints], int]:
    """Which folds are walked beside each other in one product, and in how many threads: one where they are small,
    since its steps are then mostly Python's own."""
    n, r = u.shape
    threads = min(FOLDS, os.cpu_count() or 1) if n * r * classes > SMALL else 1
    most = max(1, BESIDE // (classes * (n + 2 * logistic.PAIRS * r)))
    return np.array_split(np.arange(FOLDS), max(threads, -(-FOLDS // most))), threads


def _refit(
    x: Table, labels: Labels, classes: int, best: int, standard: Standardised, factors: Factors,
    near: tuple[Floats, Floats],
) -> tuple[Floats, Floats]:  # fmt: skip
    """At the chosen penalty, from what the folds found there: a tenth of the steps of a walk from the strongest one."""
    found = next(
        logistic.walk(
            _left(x, standard, factors), factors.s, labels, classes, factors.root[None] ** 2, np.array([factors.unit]),
            LOGISTIC_PENALTIES[best : best + 1], near,
        )
    )  # fmt: skip
    w, b = found.weight[0], found.bias[0]
    if factors.v is not None:
        return factors.v @ w, b
    assert factors.u is not None
    rows = factors.root[:, None] * standard(x[:])
    return rows.T @ (factors.u @ (w / np.sqrt(factors.s)[:, None])), b  # X' U / sqrt(s) = V


def _left(x: Table, standard: Standardised, factors: Factors) -> NDArray[np.float32]:
    """X V / sqrt(s): the rows in at most n coordinates. L2 penalties do not see the rotation: the fit is the same."""
    u = np.empty((len(x), len(factors.s)), dtype=np.float32)
    for start in range(0, len(x), CHUNK):  # in double precision only so many at a time
        rows = slice(start, start + CHUNK)
        u[rows] = factors.left(x, standard, rows) / factors.root[rows, None]
    return u


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
