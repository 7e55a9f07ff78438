"""Average precision is scikit-learn's; log-odds and thresholds are what their formulas say, and bend to few images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, label_ranking_average_precision_score

from topwork import ranking, sigmoid
from topwork.ranking import Order, average_precision, multi_hot, rightness

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def some(n: int, classes: int, seed: int, *, ties: bool = False) -> tuple[Floats, Bools]:
    """Scores that know a little, and labels of which each image has none to all."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, classes)) < rng.uniform(0.1, 0.6, classes)
    scores = rng.normal(size=(n, classes)) + truth
    return (np.round(scores) if ties else scores), truth


def images(seeds: int = 1000) -> st.SearchStrategy[tuple[int, int, int, bool]]:
    return st.tuples(st.integers(1, 40), st.integers(2, 6), st.integers(0, seeds), st.booleans())


@settings(max_examples=80, deadline=None)
@given(images())
def test_the_mean_over_images_is_label_ranking_average_precision(drawn: tuple[int, int, int, bool]) -> None:
    n, classes, seed, ties = drawn
    scores, truth = some(n, classes, seed, ties=ties)
    labelled = truth.any(axis=1)
    if labelled.any():
        found = rightness(scores, truth, 0.0)[labelled].mean()
        assert found == pytest.approx(label_ranking_average_precision_score(truth[labelled], scores[labelled]))


@settings(max_examples=40, deadline=None)
@given(images())
def test_few_labels_and_many_are_compared_alike(drawn: tuple[int, int, int, bool]) -> None:
    n, classes, seed, ties = drawn
    scores, truth = some(n, classes, seed, ties=ties)
    by_pairs = rightness(scores, truth, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "FEW", -1.0)
        np.testing.assert_allclose(rightness(scores, truth, 0.0), by_pairs)


@settings(max_examples=80, deadline=None)
@given(images())
def test_a_labels_average_precision_is_scikit_learns(drawn: tuple[int, int, int, bool]) -> None:
    n, classes, seed, ties = drawn
    scores, truth = some(n, classes, seed, ties=ties)
    for k, found in enumerate(average_precision(scores, truth)):
        if truth[:, k].any():
            assert found == pytest.approx(average_precision_score(truth[:, k], scores[:, k]))
        else:
            assert np.isnan(found)


@settings(max_examples=40, deadline=None)
@given(images())
def test_weights_are_repetitions(drawn: tuple[int, int, int, bool]) -> None:
    """What a bootstrap sample gives is what its images, written out, would give."""
    n, classes, seed, ties = drawn
    scores, truth = some(n, classes, seed, ties=ties)
    times = np.random.default_rng(seed).integers(0, 3, n)
    rows = np.repeat(np.arange(n), times)
    weighed = Order.of(scores.T, truth.T).average_precision(times.astype(np.float64))
    written_out = average_precision(scores[rows], truth[rows]) if len(rows) else np.full(classes, np.nan)
    np.testing.assert_allclose(weighed, written_out)


def test_an_image_without_labels_is_right_where_none_is_given() -> None:
    scores = np.array([[0.1, 0.2, 0.3], [0.1, 0.9, 0.3], [0.7, 0.9, 0.5]])
    nothing = np.zeros((3, 3), dtype=bool)
    np.testing.assert_allclose(rightness(scores, nothing, 0.5), [1, 1 / 2, 1 / 4])


def test_one_label_each_that_ranks_first_is_right() -> None:
    """With one label per image the value is one over its rank: 1 exactly where the arg-max is the label."""
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    value = rightness(scores, multi_hot(labels[:, None].tolist(), 4), 0.5)
    np.testing.assert_array_equal(value == 1, scores.argmax(axis=1) == labels)
    rank = (scores >= scores[np.arange(50), labels][:, None]).sum(axis=1)
    np.testing.assert_allclose(value, 1 / rank)


def test_multi_hot() -> None:
    assert multi_hot([(0, 2), (), (1,)], 3).tolist() == [[True, False, True], [False] * 3, [False, True, False]]


# ------------------------------------------------------------------------------------------- log-odds and decisions


def well_known(n: int = 4000, classes: int = 3, seed: int = 0) -> tuple[Floats, Bools, Floats, Floats]:
    """Scores whose log-odds are a known line of each label's own."""
    rng = np.random.default_rng(seed)
    slope, offset = rng.uniform(3, 6, classes), rng.uniform(-3, -1, classes)
    scores = rng.normal(0.3, 0.4, (n, classes))
    return scores, rng.random((n, classes)) < expit(scores * slope + offset), slope, offset


def test_slopes_and_offsets_are_found() -> None:
    """Of 4,000 images with hundreds of each label; their standard errors are about 0.15 and 0.08."""
    scores, truth, slope, offset = well_known()
    found = sigmoid.platt(scores, truth)
    np.testing.assert_allclose(found[0], slope, atol=0.6)
    np.testing.assert_allclose(found[1], offset, atol=0.35)
    for k in range(3):  # the smoothed targets and the pull to the common slope are worth a few images of thousands
        own = LogisticRegression(C=np.inf, tol=1e-8).fit(scores[:, [k]], truth[:, k])
        assert found[0][k] == pytest.approx(own.coef_[0, 0], rel=0.05)
        assert found[1][k] == pytest.approx(own.intercept_[0], rel=0.05)


@pytest.mark.parametrize("has", [0, 1, 2])
def test_a_label_of_few_images_has_a_slope_near_the_common_one(has: int) -> None:
    """Even where its images happen to have the lowest scores: the ranking of others is not turned around."""
    scores, truth, slope, _ = well_known()
    truth[:, 0] = False
    truth[scores[:, 0].argsort()[:has], 0] = True
    found, _ = sigmoid.platt(scores, truth)
    common = slope[1:].mean()
    assert sigmoid.LEAST_SLOPE * 0.5 * common <= found[0] <= 2 * common


def test_labels_that_all_or_none_have_get_no_certainty() -> None:
    scores, truth, _, _ = well_known(200)
    truth[:, 0], truth[:, 1] = True, False
    slope, offset = sigmoid.platt(scores, truth)
    shares = expit(scores * slope + offset)
    assert np.isfinite(shares).all()
    assert 0.9 < shares[:, 0].mean() < 1
    assert 0 < shares[:, 1].mean() < 0.1


def test_the_temperature_undoes_a_factor() -> None:
    scores, truth, slope, offset = well_known(20_000)
    log_odds = scores * slope + offset
    assert sigmoid.temperature(log_odds, truth) == pytest.approx(1, abs=0.05)
    assert sigmoid.temperature(7 * log_odds, truth) == pytest.approx(7, rel=0.05)


def test_a_perfect_separation_is_no_certainty() -> None:
    truth = np.array([[True, False]] * 10 + [[False, True]] * 10)
    log_odds = np.where(truth, 1.0, -1.0)
    assert sigmoid.temperature(log_odds, truth) > 0.1
    assert np.abs(sigmoid.calibrated(log_odds, truth, np.arange(20) % 5)).max() < 10


def test_log_loss_by_hand() -> None:
    log_odds, truth = np.array([[0.0, 2.0]]), np.array([[True, False]])
    assert sigmoid.losses(log_odds, truth) == pytest.approx([(np.log(2) + np.log(1 + np.exp(2))) / 2])


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 30), seed=st.integers(0, 1000), ties=st.booleans())
def test_each_labels_own_threshold_has_the_best_f1(n: int, seed: int, ties: bool) -> None:
    """Oracle: scikit-learn's F1 at every score."""
    scores, truth = some(n, 3, seed, ties=ties)
    for k, found in enumerate(sigmoid._best_f1(scores.T, truth.T)):
        if truth[:, k].any():
            best = max(f1_score(truth[:, k], scores[:, k] >= s) for s in scores[:, k])
            assert f1_score(truth[:, k], scores[:, k] >= found) == pytest.approx(best)


def test_a_rare_labels_threshold_is_near_the_common_one() -> None:
    """The mean of its own and the common one, its images against COMMON."""
    scores, truth = some(500, 4, 0)
    truth[:, 0] = False
    none = sigmoid.thresholds(scores, truth)
    truth[scores[:, 0].argmax(), 0] = True
    rare = sigmoid.thresholds(scores, truth)
    common = sigmoid._best_f1(scores.reshape(1, -1), truth.reshape(1, -1))[0]
    own = sigmoid._best_f1(scores.T, truth.T)
    assert none[0] == pytest.approx(
        sigmoid._best_f1(scores[:, 1:].reshape(1, -1), truth[:, 1:].reshape(1, -1))[0], abs=0.2
    )
    has = truth.sum(axis=0)
    np.testing.assert_allclose(rare, (has * own + sigmoid.COMMON * common) / (has + sigmoid.COMMON))
    assert abs(rare[0] - common) < abs(own[0] - common) / 10


def test_decisions_of_other_folds_promise_what_new_images_show() -> None:
    """F1 by thresholds that were chosen on the very images is too high; by those of the other folds it is, on average
    over 60 sets of 60 images with a rare label, that of the thresholds on new images, to a standard error of 0.004."""
    rng = np.random.default_rng(0)
    flattered, promised, shown = [], [], []

    def draw(n: int) -> tuple[Floats, Bools]:
        truth = rng.random((n, 5)) < [0.05, 0.1, 0.2, 0.3, 0.5]
        return rng.normal(-1, 1, (n, 5)) + 2 * truth, truth

    def f1(decided: Bools, truth: Bools) -> float:
        return float(2 * (decided & truth).sum() / (decided.sum() + truth.sum()))

    for _ in range(60):
        (scores, truth), (others, wanted) = draw(60), draw(1000)
        chosen = sigmoid.thresholds(scores, truth)
        flattered.append(f1(scores >= sigmoid._best_f1(scores.T, truth.T), truth))
        promised.append(f1(sigmoid.decided(scores, truth, np.arange(60) % 5), truth))
        shown.append(f1(others >= chosen, wanted))
    assert np.mean(flattered) > np.mean(shown) + 0.04
    assert np.mean(promised) == pytest.approx(np.mean(shown), abs=0.02)


def test_decisions_are_by_thresholds_of_the_other_folds() -> None:
    """Brute force; and an image's own labels have no say in what it is given."""
    scores, truth = some(60, 3, 1)
    fold = np.arange(60) % 5
    found = sigmoid.decided(scores, truth, fold)
    log_odds = sigmoid.calibrated(scores, truth, fold)
    for k in range(5):
        inside, others = fold == k, fold != k
        np.testing.assert_array_equal(
            found[inside], scores[inside] >= sigmoid.thresholds(scores[others], truth[others])
        )
        slope, offset = sigmoid.platt(scores[others], truth[others])
        np.testing.assert_allclose(log_odds[inside], scores[inside] * slope + offset)
    other = truth.copy()
    other[fold == 2] = ~other[fold == 2]
    np.testing.assert_array_equal(sigmoid.decided(scores, other, fold)[fold == 2], found[fold == 2])
