"""Which labels does an image have, and how sure is that?

Scores of several labels, each on its own, become log-odds (Platt, 1999) and decisions. Labels with few images say
little about their own slope and threshold, so both are drawn towards what all labels have in common.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from topwork.ranking import Order

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

COMMON = 10.0
"""Images of a label that weigh as much as what all labels have in common: ten place a threshold to a third of
their own spread, one or two say nothing."""

LEAST_SLOPE = 0.1
"""Share of the common slope below which no label's slope goes: one that is turned around by a few odd images would
rank the label's other images upside down."""


def losses(log_odds: Floats, truth: Bools) -> Floats:  # (n, C) each
    """Binary log-loss of each image, mean over the labels: (n,)."""
    result: Floats = (np.logaddexp(0.0, log_odds) - truth * log_odds).mean(axis=1)
    return result


def temperature(scores: Floats, truth: Bools) -> float:  # (n, C) each
    """The T that minimises the log-loss of sigmoid(scores / T), one for all labels.

    One image more is counted whose labels are each as true as not: n right answers out of n are no certainty.
    """

    def loss(log_t: float) -> float:
        z = scores / np.exp(log_t)
        wrong = np.logaddexp(0.0, z)
        return float((wrong - truth * z).mean() + (wrong - z / 2).mean() / len(z))

    found = minimize_scalar(loss, bounds=(np.log(1e-3), np.log(1e2)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def platt(scores: Floats, truth: Bools) -> tuple[Floats, Floats]:  # (n, C) each; (C,), (C,)
    """Slope and offset of each label: log-odds = scores * slope + offset (Platt, 1999).

    Minimises the log-loss against Platt's smoothed targets, (n_c + 1) / (n_c + 2) and 1 / (n - n_c + 2), plus
    COMMON / 2 * (slope / common - 1)^2, where the common slope is fitted first, to all labels together.
    """
    n, c = scores.shape
    has = truth.sum(axis=0)
    target = np.where(truth, (has + 1) / (has + 2), 1 / (n - has + 2))
    spread = float(scores.std()) or 1.0
    z = scores / spread
    start = np.log((has + 1) / (n - has + 1))
    one = _minimised(z, target, np.concatenate([[1.0], start]), least=1e-3, drawn=0.0)
    common = one[0]
    found = _minimised(common * z, target, np.concatenate([np.ones(c), one[1:]]), least=LEAST_SLOPE, drawn=COMMON)
    slope: Floats = found[:c] * common / spread
    return slope, found[c:]


def calibrated(scores: Floats, truth: Bools, fold: Ints) -> Floats:  # (n, C) each, (n,)
    """Log-odds of each image, by slopes and offsets that were fitted on the other folds: (n, C)."""
    found = np.empty_like(scores)
    for k in np.unique(fold):
        inside = fold == k
        slope, offset = platt(scores[~inside], truth[~inside])
        found[inside] = scores[inside] * slope + offset
    return found


def thresholds(log_odds: Floats, truth: Bools) -> Floats:  # (n, C) each
    """From which log-odds on an image is given each label: (C,), for the best F1.

    Each label's own best is drawn towards the best that one threshold for all labels has (F1 over all answers): the
    mean of both, the own weighing as much as the images that have the label, the common one COMMON images.
    """
    has = truth.sum(axis=0)
    common = _best_f1(log_odds.reshape(1, -1), truth.reshape(1, -1))[0]
    own = np.where(has > 0, _best_f1(log_odds.T, truth.T), common)
    result: Floats = (has * own + COMMON * common) / (has + COMMON)
    return result


def decided(log_odds: Floats, truth: Bools, fold: Ints) -> Bools:  # (n, C) each, (n,)
    """Which labels each image is given, by thresholds that were chosen on the other folds: (n, C)."""
    found = np.empty_like(truth)
    for k in np.unique(fold):
        inside = fold == k
        found[inside] = log_odds[inside] >= thresholds(log_odds[~inside], truth[~inside])
    return found


def _best_f1(log_odds: Floats, truth: Bools) -> Floats:  # (m, k) each
    """The threshold of best F1 of each row: (m,), half-way to the next lower score; the highest of equals."""
    order = Order.of(log_odds, truth)
    m, k = log_odds.shape
    ranked = np.take_along_axis(log_odds, order.order, axis=1)
    f1 = 2 * np.cumsum(order.true, axis=1) / (np.arange(1, k + 1) + truth.sum(axis=1, keepdims=True))
    best = np.where(order.end == np.arange(k), f1, -1.0).argmax(axis=1)
    lower = np.hstack([ranked[:, 1:], ranked[:, -1:] - 1.0])
    rows = np.arange(m)
    result: Floats = (ranked[rows, best] + lower[rows, best]) / 2
    return result


def _minimised(z: Floats, target: Floats, start: Floats, *, least: float, drawn: float) -> Floats:
    """Slopes (one for all labels, or one each) and offsets of the least log-loss."""
    n, c = z.shape
    s = len(start) - c

    def loss(theta: Floats) -> tuple[float, Floats]:
        slope, offset = theta[:s], theta[s:]
        logits = z * slope + offset
        delta = expit(logits) - target
        value = float((np.logaddexp(0.0, logits) - target * logits).sum() + drawn / 2 * ((slope - 1) ** 2).sum())
        steep = (z * delta).sum(axis=0)
        by_slope = (steep if s > 1 or c == 1 else steep.sum(keepdims=True)) + drawn * (slope - 1)
        return value / n, np.concatenate([by_slope, delta.sum(axis=0)]) / n

    bounds = [(least, None)] * s + [(None, None)] * c
    found: Floats = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200}).x
    return found
