"""How good is it, and how sure are we?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from topwork.head import Head
from topwork.plan import cheapest, deficits
from topwork.probe import Probe
from topwork.records import ClassMetrics, Estimate, Metrics
from topwork.statistics import Z95, paired_gain, wilson

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

REPLICATES = 500
"""Bootstrap samples: the Monte-Carlo error of the mean is then 1/22 of one replicate's spread."""

TIE = 1e-9  # weighed counts this close are equal but for rounding

BINS, PER_BIN = 15, 20
"""Bins of the calibration error, of equal count (Nixon et al., 2019: equal-width bins are mostly empty), and
images that each should hold: with fewer, a perfectly calibrated model seems not to be."""


@dataclass(frozen=True)
class Selected:
    """Out-of-sample correctness of everything that the plan chose from, for the correction below."""

    probes: tuple[Probe, ...]  # one per place, the cheapest first
    head: Head  # of one depth
    chosen: int  # index of the chosen place
    delta: float
    groups: Ints | None
    fixed: bool = False  # the cut was given, not chosen
    importance: Floats | None = None  # (n,) how much each image weighed in the choice
    several: tuple[tuple[NDArray[np.bool_], float], ...] = ()  # heads of several depths that were tested, in order:
    # (n,) where each is right, and the gain that it must be shown to exceed


def metrics(
    scores: Floats,  # (n, C) logits before the temperature
    labels: Ints,
    classes: tuple[str, ...],
    *,
    temperature: float,
    on: str,
    corrected: float | None = None,  # accuracy less what picking the best of many added to it
    independent: float | None = None,  # independent images that they are worth (statistics.py); default n
) -> Metrics:
    """Accuracy and balanced accuracy with 95% intervals, per-class table, confusion, calibration.

    Intervals of shares are Wilson's; that of balanced accuracy sums the classes' variances. A correction
    never adds: what other choices would have reached is not this model's.
    """
    n, c = scores.shape
    effective = n if independent is None else independent
    probabilities = softmax(scores / temperature, axis=1)
    predicted = scores.argmax(axis=1)
    confusion = np.zeros((c, c), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    naive = float((predicted == labels).mean())
    accuracy = naive if corrected is None else min(corrected, naive)
    balanced, half = _balanced(confusion)
    half *= float(np.sqrt(n / effective))
    balanced = float(np.clip(balanced - (naive - accuracy), 0, 1))
    top = np.maximum(probabilities[np.arange(n), labels], 1e-12)
    return Metrics(
        Estimate(accuracy, *wilson(accuracy, effective), n, on),
        Estimate(balanced, max(0.0, balanced - half), min(1.0, balanced + half), n, on),
        naive,
        float(-np.log(top).mean()) + 0.0,  # no -0.0
        calibration_error(probabilities, labels),
        tuple(_class_metrics(name, i, confusion, effective / n) for i, name in enumerate(classes)),
        tuple(tuple(int(v) for v in row) for row in confusion),
    )


def calibration_error(probabilities: Floats, labels: Ints) -> float:  # (n, C)
    """Expected calibration error of the top probability: mean |confidence - accuracy| over bins."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    order = np.argsort(confidence, kind="stable")
    bins = [b for b in np.array_split(order, int(np.clip(len(labels) // PER_BIN, 1, BINS))) if len(b)]
    return float(sum(len(b) * abs(confidence[b].mean() - right[b].mean()) for b in bins) / len(labels))


def corrected_accuracy(selected: Selected, *, seed: int, replicates: int = REPLICATES) -> float:
    """Accuracy of the whole procedure, less what choosing by the same images added to it.

    BBC-CV (Tsamardinos, Greasidou and Borboudakis, Machine Learning 2018): in each bootstrap sample
    the choice is made anew, penalty, place and head, by the rules that made it, and the chosen one is
    judged on the images that the sample left out. Needs no further training. Where a sample chooses
    another cut, its ridge head stands for it: logistic regression was fitted at the chosen cut alone.
    """
    squared = np.stack([p.squared for p in selected.probes], axis=1)  # (n, K, L)
    correct = np.stack([p.correct for p in selected.probes], axis=1)
    n, cuts, _ = squared.shape
    rng = np.random.default_rng(seed)
    a, groups = selected.importance, selected.groups
    _, member = (None, np.arange(n)) if groups is None else np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1
    flat = squared.reshape(n, -1).astype(np.float64)
    shares = []
    for _ in range(replicates):
        drawn = np.bincount(rng.integers(0, count, count), minlength=count)[member]
        out = drawn == 0
        if not out.any():
            continue
        weighed = drawn if a is None else drawn * a
        penalty = (weighed @ flat).reshape(cuts, -1).argmin(axis=1)
        at_penalty = correct[:, np.arange(cuts), penalty]  # (n, K)
        rows = np.repeat(np.arange(n), drawn)
        weight = None if a is None else a[rows] / a[rows].mean()
        again = None if groups is None else _drawn_again(member[rows], drawn)
        cut = selected.chosen
        if not selected.fixed:
            cut = cheapest(deficits(at_penalty[rows], again, weight).high, selected.delta)
        right = at_penalty[:, cut]
        if cut == selected.chosen:
            folds = selected.head.ridge_folds
            if selected.head.loss.shape[1]:
                best = int((weighed @ selected.head.loss).argmin())
                logistic = selected.head.correct[:, best]
                if weighed @ logistic > weighed @ folds + TIE:
                    right = folds = logistic
            for several, least in selected.several:
                if paired_gain(several[rows], folds[rows], again, weight)[1] > least:
                    right = several
                    break
        shares.append(right[out].mean())
    return float(np.mean(shares))


def _drawn_again(member: Ints, drawn: Ints) -> Ints:  # (m,) group of each drawn row, (n,) times each was drawn
    """Groups of a bootstrap sample: a group that is drawn twice is two groups."""
    copy = np.arange(len(member)) - np.repeat(np.cumsum(drawn) - drawn, drawn)
    result: Ints = member * len(member) + copy
    return result


def _balanced(confusion: Ints) -> tuple[float, float]:
    """Mean recall over the classes that occur, and the half-width of its 95% interval."""
    n = confusion.sum(axis=1)
    present = n > 0
    right = np.diag(confusion)[present]
    recall = right / n[present]
    smooth = (right + 1) / (n[present] + 2)  # a class with all right has no variance otherwise
    variance = (smooth * (1 - smooth) / n[present]).sum() / present.sum() ** 2
    return float(recall.mean()), float(Z95 * np.sqrt(variance))


def _class_metrics(name: str, i: int, confusion: Ints, worth: float) -> ClassMetrics:
    n, predicted, right = int(confusion[i].sum()), int(confusion[:, i].sum()), int(confusion[i, i])
    recall = right / n if n else 0.0
    low, high = wilson(recall, n * worth)
    f1 = 2 * right / (n + predicted) if n + predicted else 0.0
    return ClassMetrics(name, n, predicted, recall, low, high, right / predicted if predicted else None, f1)
