"""How good is it, and how sure are we?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr, softmax

from topwork.ranking import Order, average_precision, rightness
from topwork.records import ClassMetrics, Estimate, LabelMetrics, Metrics, MultiLabelMetrics, ReliabilityBin
from topwork.sigmoid import losses
from topwork.statistics import Z95, wilson
from topwork.statistics import independent as worth_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

RESAMPLES = 200
"""Bootstrap samples of average precision and F1: the spread of so many is known to a twentieth of itself."""

BINS, PER_BIN = 15, 20
"""Bins of the calibration error, of equal count (Nixon et al., 2019: equal-width bins are mostly empty), and
images that each should hold: with fewer, a perfectly calibrated model seems not to be."""

DRAWN_BINS = 10
"""Bins of the reliability diagram at most: more hide each other's intervals."""


def metrics(
    scores: Floats,  # (n, C) logits before the temperature
    labels: Ints,
    classes: tuple[str, ...],
    *,
    temperature: float,
    on: str,
    corrected: float | None = None,  # accuracy less what picking the best of many added to it
    independent: float | None = None,  # independent images that they are worth (statistics.py); default n
    groups: Ints | None = None,  # (n,) images that are not independent
    seed: int = 0,
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
    error, error_low, error_high = calibration(probabilities, labels, groups, seed=seed)
    return Metrics(
        Estimate(accuracy, *wilson(accuracy, effective), n, on),
        Estimate(balanced, max(0.0, balanced - half), min(1.0, balanced + half), n, on),
        naive,
        float(-np.log(top).mean()) + 0.0,  # no -0.0
        error,
        tuple(_class_metrics(name, i, confusion, effective / n) for i, name in enumerate(classes)),
        tuple(tuple(int(v) for v in row) for row in confusion),
        calibration_low=error_low,
        calibration_high=error_high,
        reliability=reliability(probabilities, labels, effective),
    )


def several(
    log_odds: Floats,  # (n, C)
    truth: Bools,  # (n, C)
    classes: tuple[str, ...],
    *,
    decided: Bools,  # (n, C) labels given, by thresholds that these images had no say in
    thresholds: Floats,  # (C,) of the model, as probabilities
    on: str,
    corrected: float | None = None,  # as for metrics
    groups: Ints | None = None,  # (n,) images that are not independent
    independent: float | None = None,  # independent images that they are worth
    seed: int = 0,
) -> Metrics:
    """The metrics where images may have several labels: average precision, F1, calibration, label by label.

    Accuracy is label-ranking average precision, with Wilson's interval: of values in 0..1 none varies more than a
    share of the same mean does. Other intervals are of RESAMPLES bootstrap samples of images or groups, as 1.96 times
    their spread; to it what one image of each label could change is added in quadrature.
    """
    n = len(truth)
    effective = n if independent is None else independent
    worth = effective / n
    naive = float(rightness(log_odds, truth, 0.0).mean())
    accuracy = naive if corrected is None else min(corrected, naive)
    off = naive - accuracy
    precisions = average_precision(log_odds, truth)
    spread = _spread(log_odds, truth, decided, groups, seed)
    has, given, hit = truth.sum(axis=0), decided.sum(axis=0), (truth & decided).sum(axis=0)
    present = has > 0
    one = 1 / np.maximum(1.0, has * worth)  # what one image could change at each label
    one_of_all = float(np.sqrt((one[present] ** 2).sum()) / max(1, present.sum()))

    def estimate(value: float, sd: float, least: float) -> Estimate:
        half = Z95 * float(np.hypot(sd, least))
        return Estimate(value, max(0.0, value - half), min(1.0, value + half), n, on)

    mean = estimate(max(0.0, _mean(precisions) - off), spread.mean_precision, one_of_all)
    probabilities = expit(log_odds)
    errors = [_label_calibration(p, t) for p, t in zip(probabilities.T, truth.T, strict=True)]
    exact = float((truth == decided).all(axis=1).mean())
    labels = []
    for i, name in enumerate(classes):
        value, half = float(precisions[i]), Z95 * float(np.hypot(spread.precisions[i], one[i]))
        found = LabelMetrics(name, None, None, None, float(thresholds[i]), errors[i])
        if present[i]:
            low, high = max(0.0, value - half), min(1.0, value + half)
            found = replace(found, average_precision=value, average_precision_low=low, average_precision_high=high)
        labels.append(found)
    several_ = MultiLabelMetrics(
        mean,
        estimate(_micro(has.sum(), given.sum(), hit.sum()), spread.micro, 1 / effective),
        estimate(_mean(_f1(has, given, hit)), spread.macro, one_of_all),
        Estimate(exact, *wilson(exact, effective), n, on),
        float(truth.sum(axis=1).mean()),
        int((~truth.any(axis=1)).sum()),
        tuple(labels),
    )
    per_class = tuple(_shares(name, int(has[i]), int(given[i]), int(hit[i]), worth) for i, name in enumerate(classes))
    return Metrics(
        Estimate(accuracy, *wilson(accuracy, effective), n, on), mean, naive,
        float(losses(log_odds, truth).mean()), float(np.mean(errors)), per_class, (), several_,
    )  # fmt: skip


@dataclass(frozen=True)
class _Spread:
    """Standard deviations over bootstrap samples."""

    precisions: Floats  # (C,)
    mean_precision: float
    micro: float
    macro: float


def _spread(log_odds: Floats, truth: Bools, decided: Bools, groups: Ints | None, seed: int) -> _Spread:
    """Of average precisions and F1. Scores are sorted once; every sample is a sum over them."""
    n = len(truth)
    member = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    order = Order.of(log_odds.T, truth.T)
    found = []
    for _ in range(RESAMPLES):
        drawn = np.bincount(rng.integers(0, count, count), minlength=count)[member].astype(np.float64)
        precisions = order.average_precision(drawn)
        has, given, hit = drawn @ truth, drawn @ decided, drawn @ (truth & decided)
        found.append(
            np.array(
                [*precisions, _mean(precisions), _micro(has.sum(), given.sum(), hit.sum()), _mean(_f1(has, given, hit))]
            )
        )
    samples = np.array(found)
    counts = (~np.isnan(samples)).sum(axis=0)
    total = np.where(np.isnan(samples), 0.0, samples).sum(axis=0)
    centred = np.where(np.isnan(samples), 0.0, samples - total / np.maximum(1, counts))
    sd = np.sqrt((centred**2).sum(axis=0) / np.maximum(1, counts - 1))
    return _Spread(sd[:-3], float(sd[-3]), float(sd[-2]), float(sd[-1]))


def _f1(has: NDArray[Any], given: NDArray[Any], hit: NDArray[Any]) -> Floats:
    """Of each label; NaN where no image has it, which no decision can find."""
    result: Floats = np.where(has > 0, 2 * hit / np.maximum(has + given, 1e-12), np.nan)
    return result


def _micro(has: float, given: float, hit: float) -> float:
    """F1 over all answers; 1 where nothing is to be found and nothing was given."""
    return float(2 * hit / (has + given)) if has + given else 1.0


def _mean(values: Floats) -> float:
    """Over those that are known; 0 where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def _label_calibration(probability: Floats, truth: Bools) -> float:  # (n,)
    """The same distance as of `calibration` between the probability and the share that has the label."""
    bins = _bins(probability, BINS)
    share = np.array([len(b) / len(truth) for b in bins])
    chance = np.array([np.sqrt((probability[b] * (1 - probability[b])).sum()) / len(b) for b in bins])
    off = np.array([abs(probability[b].mean() - truth[b].mean()) for b in bins])
    return _beyond_chance(float(share @ off), share, chance)


def calibration_error(probabilities: Floats, labels: Ints) -> float:  # (n, C)
    """Expected calibration error of the top probability as commonly given: mean |confidence - accuracy| over bins.

    Of a perfectly calibrated model it is above 0; `calibration` takes that off.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = _bins(confidence, BINS)
    return float(sum(len(b) * abs(confidence[b].mean() - right[b].mean()) for b in bins) / len(labels))


def calibration(
    probabilities: Floats,  # (n, C)
    labels: Ints,
    groups: Ints | None = None,  # (n,) images that are not independent
    *,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Calibration error of the top probability less what chance alone would show, and its 95% interval.

    Bins of a perfectly calibrated model are off by chance, and only ever upwards. So the error is taken as the one
    distance between confidence and accuracy, the same in all bins, under which the bins would be expected to be off as
    much as they are; the interval is of the same distances at 1.96 standard deviations (bootstrap over images or
    groups) below and above.
    """
    confidence = probabilities.max(axis=1)
    gap = confidence - (probabilities.argmax(axis=1) == labels)
    bins = _bins(confidence, BINS)
    share = np.array([len(b) / len(labels) for b in bins])
    chance = np.array([np.sqrt((confidence[b] * (1 - confidence[b])).sum()) / len(b) for b in bins])
    member = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(member.max()) + 1
    if count < len(labels):  # photos that belong together are off together
        chance *= np.sqrt(len(labels) / worth_of(member, len(labels)))
    sums = np.zeros((count, len(bins)))
    place = np.empty(len(labels), dtype=np.int64)
    for i, b in enumerate(bins):
        place[b] = i
    np.add.at(sums, (member, place), gap)
    plain = float(np.abs(sums.sum(axis=0)).sum() / len(labels))
    rng = np.random.default_rng(seed)
    drawn = [np.bincount(rng.integers(0, count, count), minlength=count) @ sums for _ in range(RESAMPLES)]
    spread = float(np.hypot((np.abs(drawn).sum(axis=1) / len(labels)).std(), 1 / count))  # one could change as much
    low, value, high = (_beyond_chance(plain + z * spread, share, chance) for z in (-Z95, 0.0, Z95))
    return value, low, high


def _beyond_chance(error: float, share: Floats, chance: Floats) -> float:
    """The distance d between confidence and accuracy in every bin, at which sum share E|N(d, chance)| is the error."""
    chance = np.maximum(chance, 1e-9)

    def expected(d: float) -> float:
        r = d / chance
        return float((share * (chance * np.sqrt(2 / np.pi) * np.exp(-(r**2) / 2) + d * (1 - 2 * ndtr(-r)))).sum())

    if error <= expected(0.0):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < error else (low, middle)
    return high


def reliability(probabilities: Floats, labels: Ints, independent: float) -> tuple[ReliabilityBin, ...]:  # (n, C)
    """Answers of about the same probability together, as many in each bin, with how often they are right."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    found = []
    for b in _bins(confidence, DRAWN_BINS):
        share = float(right[b].mean())
        low, high = wilson(share, len(b) * independent / len(labels))
        found.append(ReliabilityBin(float(confidence[b].mean()), share, low, high, len(b)))
    return tuple(found)


def _bins(confidence: Floats, most: int) -> list[Ints]:
    """Rows in bins of equal count, rising in confidence."""
    order = np.argsort(confidence, kind="stable")
    return [b for b in np.array_split(order, int(np.clip(len(order) // PER_BIN, 1, most))) if len(b)]


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
    return _shares(name, int(confusion[i].sum()), int(confusion[:, i].sum()), int(confusion[i, i]), worth)


def _shares(name: str, n: int, predicted: int, right: int, worth: float) -> ClassMetrics:
    """Of a class with n images, of which `right` are among the `predicted` ones."""
    recall = right / n if n else 0.0
    low, high = wilson(recall, n * worth)
    f1 = 2 * right / (n + predicted) if n + predicted else 0.0
    if not predicted:
        return ClassMetrics(name, n, predicted, recall, low, high, None, f1)
    precision = right / predicted
    return ClassMetrics(name, n, predicted, recall, low, high, precision, f1, *wilson(precision, predicted * worth))
