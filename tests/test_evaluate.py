"""Metrics are scikit-learn's, intervals cover, and choosing by the same images is paid for."""

from __future__ import annotations

from dataclasses import replace
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

from topwork import head, plan
from topwork.evaluate import Selected, calibration, calibration_error, corrected_accuracy, metrics, reliability
from topwork.probe import Probe, probe
from topwork.records import HeadFacts, Metrics
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


def candidates(
    n: int, cuts: int, penalties: int, *, seed: int, tried: int = 0, groups: Ints | None = None,
    importance: Floats | None = None, delta: float = 0.01,
) -> Selected:  # fmt: skip
    """Everything that was chosen from, made up: a few good ones among many, alike within groups."""
    rng = np.random.default_rng(seed)
    member = np.arange(n) if groups is None else groups

    def right(share: float) -> NDArray[np.bool_]:
        return (rng.random(member.max() + 1) < share)[member]

    probes = []
    for share in rng.uniform(0.6, 0.8, cuts):
        correct = np.stack([right(share) for _ in range(penalties)], axis=1)
        squared = (rng.random((n, penalties)) + ~correct).astype(np.float32)
        best = int(np.average(squared.astype(np.float64), axis=0, weights=importance).argmin())
        probes.append(Probe(np.arange(1.0, penalties + 1), best, squared, correct, np.zeros((n, 2), np.float32)))
    columns = np.stack([p.correct[:, p.best] for p in probes], axis=1)
    chosen = plan.cheapest(plan.deficits(columns, groups, importance).high, delta)
    logistic = np.stack([right(0.75) for _ in range(tried)], axis=1) if tried else np.zeros((n, 0), bool)
    ridge = right(0.7)
    made = head.Head(
        np.zeros((1, 2), np.float32), np.zeros(2, np.float32), 1.0,
        HeadFacts("ridge", 1.0, 1.0, 0.7, None, ""), np.zeros((n, 2)), ridge, ridge,
        logistic, (rng.random((n, tried)) + ~logistic).astype(np.float32),
    )  # fmt: skip
    return Selected(tuple(probes), made, chosen, delta, groups, importance=importance)


def by_hand(selected: Selected, *, seed: int, replicates: int) -> float:
    """Oracle: BBC-CV image by image. The rules are the plan's and the head's, on the drawn images alone.

    Images drawn twice are two images; a group drawn twice is two groups. Choices weigh the images; those that
    were left out count alike.
    """
    n = len(selected.probes[0].squared)
    member = np.arange(n) if selected.groups is None else np.unique(selected.groups, return_inverse=True)[1]
    groups = sorted(set(member.tolist()))
    a = np.ones(n) if selected.importance is None else selected.importance
    rng, shares = np.random.default_rng(seed), []
    for _ in range(replicates):
        drawn = rng.integers(0, len(groups), len(groups))
        rows = [(i, copy) for copy, g in enumerate(drawn) for i in range(n) if member[i] == g]
        kept = [i for i, _ in rows]
        out = [i for i in range(n) if member[i] not in drawn]
        if not out:
            continue
        right = []
        for p in selected.probes:
            errors = [sum(a[i] * float(p.squared[i, k]) for i in kept) for k in range(p.squared.shape[1])]
            right.append(p.correct[:, int(np.argmin(errors))])
        correct = np.array([[column[i] for column in right] for i in kept])
        copies = None if selected.groups is None else np.array([copy for _, copy in rows])
        cut = plan.cheapest(plan.deficits(correct, copies, a[kept] / a[kept].mean()).high, selected.delta)
        final = right[cut]
        h = selected.head
        if cut == selected.chosen and h.loss.shape[1]:
            losses = [sum(a[i] * float(h.loss[i, k]) for i in kept) for k in range(h.loss.shape[1])]
            logistic = h.correct[:, int(np.argmin(losses))]
            if sum(a[i] * logistic[i] for i in kept) > sum(a[i] * h.ridge_folds[i] for i in kept):
                final = logistic
        shares.append(np.mean([final[i] for i in out]))
    return float(np.mean(shares))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("cuts", "penalties", "tried"), [(1, 1, 0), (1, 1, 4), (4, 3, 0), (5, 4, 3)])
def test_the_correction_is_bbc_cv_by_hand(cuts: int, penalties: int, tried: int, seed: int) -> None:
    selected = candidates(30, cuts, penalties, seed=seed, tried=tried, delta=0.1)
    fast = corrected_accuracy(selected, seed=seed, replicates=40)
    assert fast == pytest.approx(by_hand(selected, seed=seed, replicates=40), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("groups", [None, np.arange(32) // 2])
def test_the_choice_in_each_sample_weighs_images_by_their_importance(seed: int, groups: Ints | None) -> None:
    """Weights of 1/4 and 7/4, whose sums are exact, so that ties are ties in any order of summation."""
    importance = np.where(np.random.default_rng(seed).permutation(32) % 2, 0.25, 1.75)
    selected = candidates(32, 4, 3, seed=seed, tried=3, groups=groups, importance=importance, delta=0.2)
    fast = corrected_accuracy(selected, seed=seed, replicates=40)
    assert fast == pytest.approx(by_hand(selected, seed=seed, replicates=40), abs=1e-12)
    assert fast != corrected_accuracy(replace(selected, importance=None), seed=seed, replicates=40)


@pytest.mark.parametrize("groups", [None, np.arange(40) // 2])
def test_importance_of_one_each_changes_no_correction(groups: Ints | None) -> None:
    selected = candidates(40, 4, 3, seed=1, tried=3, groups=groups, delta=0.1)
    ones = replace(selected, importance=np.ones(40))
    assert corrected_accuracy(ones, seed=0, replicates=40) == corrected_accuracy(selected, seed=0, replicates=40)


def test_a_cut_that_was_given_is_chosen_in_no_sample() -> None:
    """Alone among the candidates it gives the same."""
    selected = candidates(40, 4, 3, seed=1, tried=2, delta=0.1)
    alone = replace(selected, probes=selected.probes[selected.chosen :][:1], chosen=0)
    given_one = corrected_accuracy(replace(selected, fixed=True), seed=0, replicates=40)
    assert given_one == corrected_accuracy(alone, seed=0, replicates=40)
    assert given_one != corrected_accuracy(selected, seed=0, replicates=40)


GROUPS = np.repeat(np.arange(30), 4)


@pytest.mark.parametrize("tried", [0, 3])
def test_whole_groups_are_drawn(tried: int) -> None:
    """With one cut no interval is involved: only which images are in and which are out."""
    selected = candidates(120, 1, 5, seed=1, tried=tried, groups=GROUPS * 7 - 3, delta=0.1)
    fast = corrected_accuracy(selected, seed=2, replicates=40)
    assert fast == pytest.approx(by_hand(selected, seed=2, replicates=40), abs=1e-12)


def test_in_each_sample_the_cut_is_chosen_by_the_rule_that_chose_it() -> None:
    selected = candidates(120, 5, 2, seed=3, groups=GROUPS, delta=0.2)
    fast = corrected_accuracy(selected, seed=2, replicates=40)
    assert fast == pytest.approx(by_hand(selected, seed=2, replicates=40), abs=1e-12)


def test_without_a_choice_the_correction_is_nothing_but_chance() -> None:
    """One cut, one penalty, ridge alone: the images left out are right as often as all are."""
    selected = candidates(200, 1, 1, seed=0)
    naive = selected.probes[0].correct.mean()
    # 500 samples, each of about 74 images left out: sd 0.05 / sqrt(500), times 4
    assert corrected_accuracy(selected, seed=0) == pytest.approx(naive, abs=0.01)


def test_the_same_seed_gives_the_same_correction() -> None:
    selected = candidates(60, 3, 3, seed=0, tried=2)
    first, again = (corrected_accuracy(selected, seed=3, replicates=30) for _ in range(2))
    assert first == again
    assert corrected_accuracy(selected, seed=4, replicates=30) != first


def test_the_best_of_many_that_know_nothing_is_corrected_to_chance() -> None:
    """15 sets of pure noise, eight cuts each, chosen among as in a real run: looks better than 50%, and is not."""
    naive, corrected = [], []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(60) % 2)
        cuts = [rng.normal(size=(60, 20)).astype(np.float32) for _ in range(8)]
        probes = tuple(probe(x, labels, 2) for x in cuts)
        correct = np.stack([p.correct[:, p.best] for p in probes], axis=1)
        chosen = plan.cheapest(plan.deficits(correct).high, 0.01)
        made = head.fit(cuts[chosen], labels, 2, probes[chosen], groups=None, seed=seed)
        naive.append((made.scores.argmax(axis=1) == labels).mean())
        selected = Selected(probes, made, chosen, 0.01, None)
        corrected.append(corrected_accuracy(selected, seed=seed, replicates=100))
    assert np.mean(naive) > 0.56
    assert np.mean(corrected) < np.mean(naive) - 0.04
    # A single set's accuracy has a standard error of 6.5 points; the mean of 15 one of 1.7, and BBC-CV is
    # known to correct a little too much.
    assert 0.44 < np.mean(corrected) < 0.54


def test_a_real_advantage_survives_the_correction() -> None:
    """One cut is right on 90%, seven on half: choosing it was no luck, and costs less than a point."""
    rng = np.random.default_rng(0)
    truth = [0.5] * 7 + [0.9]
    probes = tuple(
        Probe(
            np.ones(1), 0, np.ones((300, 1), np.float32), (rng.random((300, 1)) < share), np.zeros((300, 2), np.float32)
        )
        for share in truth
    )
    selected = Selected(probes, candidates(300, 1, 1, seed=0).head, 7, 0.01, None)
    assert corrected_accuracy(selected, seed=0) == pytest.approx(probes[-1].correct.mean(), abs=0.01)


def test_a_head_of_several_depths_is_chosen_anew_by_the_gain_that_it_had_to_show() -> None:
    """Right everywhere, it is taken in every sample; where it must gain more than anything can, in none."""
    plain = replace(candidates(200, 1, 1, seed=0), fixed=True)
    everywhere, nowhere = np.ones(200, bool), np.zeros(200, bool)

    def corrected(*several: tuple[NDArray[np.bool_], float]) -> float:
        return corrected_accuracy(replace(plain, several=several), seed=0, replicates=40)

    alone = corrected()
    assert alone < 0.8
    assert corrected((everywhere, 0.0)) == 1
    assert corrected((everywhere, 1.0)) == alone
    assert corrected((nowhere, 0.0)) == alone
    assert corrected((nowhere, 0.01), (everywhere, 0.0)) == 1  # the second one, where the first is not taken
    assert corrected((everywhere, 0.0), (nowhere, -2.0)) == 1  # the first one, where both would be


def test_several_depths_count_only_where_the_chosen_place_is_chosen_again() -> None:
    """In samples that choose another place, that one's ridge head stands for it."""
    free = candidates(60, 4, 1, seed=1)
    several = ((np.ones(60, bool), 0.0),)
    everything = corrected_accuracy(replace(free, several=several, fixed=True), seed=0, replicates=60)
    some_of_it = corrected_accuracy(replace(free, several=several), seed=0, replicates=60)
    none = corrected_accuracy(free, seed=0, replicates=60)
    assert everything == 1
    assert none < some_of_it < 1
