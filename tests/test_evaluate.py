"""Metrics are scikit-learn's, and intervals cover."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
)

from topwork.evaluate import calibration, calibration_error, metrics, reliability
from topwork.records import Metrics
from topwork.statistics import Z95, wilson

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def judged(scores: Floats, labels: Ints, **given: Any) -> Metrics:
    names = tuple(f"class {i}" for i in range(scores.shape[1]))
    return metrics(scores, labels, names, **{"temperature": 1.0, "on": "test folder"} | given)


def some(n: int = 80, classes: int = 4, seed: int = 0, signal: float = 1.0) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return rng.normal(size=(n, classes)) + signal * np.eye(classes)[labels], labels


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), classes=st.integers(2, 5), seed=st.integers(0, 1000), temperature=st.floats(0.2, 5))
def test_metrics_are_scikit_learns(n: int, classes: int, seed: int, temperature: float) -> None:
    scores, labels = some(n, classes, seed)
    m, predicted, every = judged(scores, labels, temperature=temperature), scores.argmax(axis=1), range(classes)
    confusion = confusion_matrix(labels, predicted, labels=every)
    np.testing.assert_array_equal(m.confusion, confusion)
    assert m.accuracy.value == m.naive_accuracy == pytest.approx(accuracy_score(labels, predicted))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0
    )  # of nothing, 0; of precision here: None
    for i, c in enumerate(m.per_class):
        assert (c.name, c.n, c.predicted) == (f"class {i}", support[i], (predicted == i).sum())
        assert (c.recall, c.f1) == pytest.approx((recall[i], f1[i]))
        assert c.precision == (pytest.approx(precision[i]) if c.predicted else None)
        assert (c.recall_low, c.recall_high) == wilson(c.recall, c.n)
        bounds = (None, None) if c.precision is None else wilson(c.precision, c.predicted)
        assert (c.precision_low, c.precision_high) == bounds
    probabilities = softmax(scores / temperature, axis=1)
    assert m.log_loss == pytest.approx(log_loss(labels, probabilities, labels=every))
    assert 0 <= m.calibration_error <= calibration_error(probabilities, labels) + 1e-9
    assert (m.calibration_error, m.calibration_low, m.calibration_high) == calibration(probabilities, labels)
    assert m.reliability == reliability(probabilities, labels, len(labels))
    if set(predicted) <= set(labels) != {labels[0]}:  # scikit-learn warns otherwise
        assert m.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert (m.accuracy.n, m.accuracy.on, m.balanced_accuracy.on) == (n, "test folder", "test folder")


def test_a_class_without_images_or_predictions_counts_in_no_mean() -> None:
    """Recalls 1/2 and 1; the third class is predicted once, the fourth never."""
    labels = np.array([0, 0, 1, 1, 1])
    m = judged(np.eye(4)[[0, 2, 1, 1, 1]], labels)
    assert m.balanced_accuracy.value == pytest.approx(0.75)
    absent, never = m.per_class[2:]
    assert (absent.n, absent.recall, absent.recall_low, absent.recall_high, absent.precision) == (0, 0, 0, 1, 0)
    assert (never.n, never.predicted, never.precision, never.precision_low, never.f1) == (0, 0, None, None, 0)


def test_a_certain_mistake_has_a_finite_loss() -> None:
    m = judged(np.array([[0.0, 1e4], [0.0, 1e4]]), np.array([0, 1]))
    assert m.log_loss == pytest.approx(-np.log(1e-12) / 2)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 400), seed=st.integers(0, 1000))
def test_calibration_error_by_hand(n: int, seed: int) -> None:
    """Oracle: walk through the images by rising confidence, in bins whose sizes differ by at most one: as many as
    hold 20 images each, but at least one and at most 15."""
    scores, labels = some(n, 3, seed)
    probabilities = softmax(scores, axis=1)
    ordered = sorted(range(n), key=lambda i: probabilities[i].max())
    total, start = 0.0, 0
    bins = min(max(n // 20, 1), 15)
    for b in range(bins):
        size = n // bins + (b < n % bins)
        members = ordered[start : start + size]
        start += size
        confident = sum(probabilities[i].max() for i in members)
        right = sum(int(probabilities[i].argmax() == labels[i]) for i in members)
        total += abs(confident - right)
    assert calibration_error(probabilities, labels) == pytest.approx(total / n)


def answers(p: np.ndarray, rng: np.random.Generator, off: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of two classes, and labels that the likelier one is right in p - off of the cases."""
    return np.stack([1 - p, p], axis=1), (rng.random(len(p)) < p - off).astype(np.int64)


@pytest.mark.parametrize("off", [0.0, 0.08])
def test_the_interval_holds_the_calibration_error_that_is_there(off: float) -> None:
    rng = np.random.default_rng(3)
    found = np.array([calibration(*answers(rng.uniform(0.6, 1, 300), rng, off)) for _ in range(100)])
    held = ((found[:, 1] <= off) & (off <= found[:, 2])).mean()
    assert held >= 0.88  # 95% but for chance: 100 trials
    assert found[:, 0].mean() == pytest.approx(off, abs=0.025)  # as it is commonly given: 0.05 and 0.09
    assert np.all((found[:, 1] <= found[:, 0]) & (found[:, 0] <= found[:, 2]))


def test_photos_that_belong_together_widen_the_interval_of_the_calibration_error() -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = answers(np.round(rng.uniform(0.6, 1, 60), 2), rng, 0.1)
    many, groups = np.repeat(probabilities, 8, axis=0), np.repeat(np.arange(60), 8)
    _, low, high = calibration(many, np.repeat(labels, 8), groups)
    _, sure_low, sure_high = calibration(many, np.repeat(labels, 8))
    assert high - low > 1.5 * (sure_high - sure_low)


def test_reliability_bins_hold_every_answer_once_and_rise() -> None:
    rng = np.random.default_rng(1)
    probabilities, labels = answers(rng.uniform(0.5, 1, 137), rng)
    bins = reliability(probabilities, labels, 137)
    assert sum(b.n for b in bins) == 137
    assert len(bins) == 137 // 20
    stated = [b.probability for b in bins]
    assert stated == sorted(stated)
    assert sum(b.right * b.n for b in bins) == pytest.approx((probabilities.argmax(axis=1) == labels).sum())
    assert all((b.low, b.high) == wilson(b.right, b.n) for b in bins)
    assert all(b.low <= w.low for b, w in zip(reliability(probabilities, labels, 60), bins, strict=True))


def test_calibration_error_of_known_cases() -> None:
    """Right as often as said: near 0 (15 bins of 2,000: chance gives about 0.8 * sqrt(p (1 - p) / 2,000) = 0.008).
    Always sure and right in 60%: 0.4."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 30_000)
    honest = np.stack([p, 1 - p], axis=1)
    assert calibration_error(honest, (rng.random(30_000) > p).astype(int)) < 0.012
    sure = np.tile([1.0, 0.0], (150, 1))
    # No bin is right more often than it says, so however the wrong ones are spread, it is the whole's difference.
    assert calibration_error(sure, (np.arange(150) % 5 < 2).astype(int)) == pytest.approx(0.4)


def test_accuracys_interval_rests_on_the_independent_images() -> None:
    scores, labels = some()
    m = judged(scores, labels, independent=20)
    assert (m.accuracy.low, m.accuracy.high) == wilson(m.naive_accuracy, 20)
    assert m.accuracy.n == 80


def test_every_interval_rests_on_the_independent_images() -> None:
    """A quarter of the images is independent: balanced accuracy's interval is twice as wide, and each class's
    recall is that of a quarter of its images."""
    scores, labels = some()
    one_each, alike = judged(scores, labels), judged(scores, labels, independent=20)
    balanced, wide = one_each.balanced_accuracy, alike.balanced_accuracy
    assert 0 < wide.low < wide.high < 1  # neither end is cut off
    assert wide.value == balanced.value
    assert wide.high - wide.value == pytest.approx(2 * (balanced.high - balanced.value))
    assert wide.value - wide.low == pytest.approx(2 * (balanced.value - balanced.low))
    for c in alike.per_class:
        assert (c.recall_low, c.recall_high) == wilson(c.recall, c.n / 4)


def test_balanced_accuracys_interval_by_hand() -> None:
    """Recalls 3/4 and 1 of 4 and 6: variances p (1 - p) / n of (3 + 1) / 6 and (6 + 1) / 8, summed, over 2^2."""
    labels = np.repeat([0, 1], [4, 6])
    m = judged(np.eye(2)[[0, 0, 0, 1, 1, 1, 1, 1, 1, 1]], labels)
    half = Z95 * np.sqrt((4 / 6 * 2 / 6 / 4 + 7 / 8 * 1 / 8 / 6) / 4)
    assert m.balanced_accuracy.value == pytest.approx(0.875)
    assert m.balanced_accuracy.low == pytest.approx(0.875 - half)
    assert m.balanced_accuracy.high == min(1, 0.875 + half)


def test_balanced_accuracys_interval_covers_the_truth() -> None:
    """1,000 samples of classes of 60, 20 and 10 images with recalls 0.9, 0.7 and 0.5: 95%, give or take 3 points
    (chance is 0.7 points a standard deviation; the rest is what smoothing adds)."""
    rng, covered = np.random.default_rng(0), 0
    labels = np.repeat([0, 1, 2], [60, 20, 10])
    recall = np.array([0.9, 0.7, 0.5])
    for _ in range(1000):
        right = rng.random(90) < recall[labels]
        m = judged(np.eye(3)[np.where(right, labels, (labels + 1) % 3)], labels)
        covered += m.balanced_accuracy.low <= recall.mean() <= m.balanced_accuracy.high
    assert 0.92 <= covered / 1000 <= 0.98


def test_the_correction_is_taken_off_both_accuracies_and_the_interval_moves_along() -> None:
    scores, labels = some()
    plain = judged(scores, labels)
    m = judged(scores, labels, corrected=plain.naive_accuracy - 0.1)
    assert m.accuracy.value == pytest.approx(plain.accuracy.value - 0.1)
    assert (m.accuracy.low, m.accuracy.high) == wilson(m.accuracy.value, 80)
    assert m.balanced_accuracy.value == pytest.approx(plain.balanced_accuracy.value - 0.1)
    assert m.naive_accuracy == plain.naive_accuracy
    assert (m.confusion, m.per_class, m.log_loss) == (plain.confusion, plain.per_class, plain.log_loss)


def test_a_correction_never_adds() -> None:
    """The model that is handed over is the chosen one; other choices' accuracy is not its own."""
    scores, labels = some()
    plain = judged(scores, labels)
    assert judged(scores, labels, corrected=plain.naive_accuracy + 0.05) == plain
