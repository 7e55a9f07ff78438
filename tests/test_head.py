"""The head is the better of two fits on the same folds, and its logits on raw features are those of the fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from topwork import head as room
from topwork.head import FOLDS, LOGISTIC_PENALTIES, Head, exact, fit, folds, temperature
from topwork.probe import Probe, Standardised, factor, probe, weights

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def some(n: int, d: int, classes: int = 3, signal: float = 0.8, seed: int = 0) -> tuple[NDArray[np.float32], Ints]:
    rng = np.random.default_rng((seed, n, d))
    labels = rng.permutation(np.arange(n) % classes)
    x = rng.normal(size=(n, d)) + signal * rng.normal(size=(classes, d))[labels]
    return (3 * x + 1).astype(np.float32), labels


def fitted(x: NDArray[np.float32], labels: Ints, classes: int, **options: Any) -> tuple[Head, Probe]:
    loo = probe(x, labels, classes, groups=options.get("groups"), importance=options.get("importance"))
    return fit(x, labels, classes, loo, **{"groups": None, "seed": 0} | options), loo


def unit(x: NDArray[np.float32]) -> float:
    """trace(Z'Z) / d of the standardised features: n times the share of columns that vary."""
    return factor(x, Standardised.of(x)).unit


def logistic(z: Floats, labels: Ints, strength: float, importance: Floats | None = None) -> LogisticRegression:
    """Minimises sum_i a_i log-loss_i + strength / 2 ||W||^2, to convergence.

    Of two classes scikit-learn fits one column w = w_1 - w_0, and ||W||^2 = w^2 / 2.
    """
    c = (2 if len(np.unique(labels)) == 2 else 1) / strength
    return LogisticRegression(C=c, tol=1e-9, max_iter=20_000).fit(z, labels, sample_weight=importance)


SETS = [(90, 8, 3), (40, 60, 3), (80, 200, 4), (150, 30, 2)]


@pytest.mark.parametrize(("n", "d", "classes"), SETS)
def test_logistic_regression_out_of_fold_is_scikit_learns(n: int, d: int, classes: int) -> None:
    """The same objective on the same folds, along the whole path of penalties.

    Loss per image to 0.002 nats on average where the penalty is above 0.02. Below, training loss
    is nearly 0 and steps of 1e-6 end the fit early: 0.02 nats.
    """
    x, labels = some(n, d, classes)
    result, _ = fitted(x, labels, classes)
    z, fold = Standardised.of(x)(x), folds(labels, None, 0)
    tried = result.loss.shape[1]
    assert tried >= 2
    for penalty, loss, correct in zip(LOGISTIC_PENALTIES[:tried], result.loss.T, result.correct.T, strict=True):
        log_p = np.empty((n, classes))
        for k in range(FOLDS):
            train = fold != k
            log_p[~train] = logistic(z[train], labels[train], penalty * unit(x) * train.mean()).predict_log_proba(
                z[~train]
            )
        expected = -log_p[np.arange(n), labels]
        assert loss.mean() == pytest.approx(expected.mean(), abs=2e-3 if penalty > 0.02 else 2e-2)
        ordered = np.sort(np.exp(log_p), axis=1)
        clear = ordered[:, -1] - ordered[:, -2] > 0.1  # twice what early stopping may move a probability by
        np.testing.assert_array_equal(correct[clear], (log_p.argmax(axis=1) == labels)[clear])


@pytest.mark.parametrize(("n", "d", "classes"), SETS)
def test_the_path_of_penalties_ends_where_the_loss_has_risen(n: int, d: int, classes: int) -> None:
    x, labels = some(n, d, classes)
    means = fitted(x, labels, classes)[0].loss.mean(axis=0, dtype=np.float64)
    assert (np.diff(means)[:-1] <= 0).all()
    assert np.diff(means)[-1] > 0 or len(means) == len(LOGISTIC_PENALTIES)


def uneven(n: int, d: int, classes: int, seed: int = 0) -> tuple[NDArray[np.float32], Ints, Floats]:
    """Images that weigh between 0.2 and 3, of mean 1, whatever their class."""
    x, labels = some(n, d, classes, signal=0.5, seed=seed)
    importance = np.random.default_rng(seed).uniform(0.2, 3, n)
    return x, labels, importance * n / importance.sum()


@pytest.mark.parametrize(("n", "d", "classes"), SETS)
def test_logistic_regression_of_images_that_weigh_differently_is_scikit_learns(n: int, d: int, classes: int) -> None:
    """As above with sample_weight, where the fit is not ended early: at penalties above 0.02. Moments, trace and the
    mean loss that ends the path are weighted, too."""
    x, labels, a = uneven(n, d, classes)
    result, _ = fitted(x, labels, classes, importance=a)
    mean = a @ x.astype(np.float64) / n
    z = (x - mean) / np.sqrt(a @ (x - mean) ** 2 / n)
    trace, fold = float(a @ (z**2).sum(axis=1)) / d, folds(labels, None, 0)
    tried = result.loss.shape[1]
    assert tried >= 2
    for p in np.flatnonzero(LOGISTIC_PENALTIES[:tried] > 0.02):
        penalty, loss, correct = LOGISTIC_PENALTIES[p], result.loss[:, p], result.correct[:, p]
        log_p = np.empty((n, classes))
        for k in range(FOLDS):
            train = fold != k
            model = logistic(z[train], labels[train], penalty * trace * train.mean(), a[train])
            log_p[~train] = model.predict_log_proba(z[~train])
        expected = -log_p[np.arange(n), labels]
        assert loss.mean() == pytest.approx(expected.mean(), abs=2e-3)
        ordered = np.sort(np.exp(log_p), axis=1)
        clear = ordered[:, -1] - ordered[:, -2] > 0.1  # twice what early stopping may move a probability by
        np.testing.assert_array_equal(correct[clear], (log_p.argmax(axis=1) == labels)[clear])
    means = a @ result.loss.astype(np.float64)
    assert (np.diff(means)[:-1] <= 0).all()
    assert np.diff(means)[-1] > 0 or tried == len(LOGISTIC_PENALTIES)


def test_of_images_that_weigh_differently_the_head_that_is_right_on_more_weight_is_kept() -> None:
    """Over many sets both win somewhere, and weights turn some of the verdicts around."""
    kinds, turned = set(), 0
    for seed in range(24):
        x, labels = curved(60, 5, seed) if seed % 2 else some(60, 5, 2, signal=0.2, seed=seed)
        a = np.where(np.random.default_rng(seed).permutation(60) % 2, 0.25, 1.75)  # sums are exact: ties are ties
        result, loo = fitted(x, labels, 2, importance=a)
        ridge = a @ result.ridge_folds / 60
        best = (a @ result.loss.astype(np.float64)).argmin()
        other = a @ result.correct[:, best] / 60
        facts = result.facts
        assert facts.kind == ("logistic" if other > ridge else "ridge")
        assert (facts.ridge_accuracy, facts.logistic_accuracy) == pytest.approx((ridge, other))
        np.testing.assert_array_equal(
            result.right, result.ridge_folds if facts.kind == "ridge" else result.correct[:, best]
        )
        assert facts.penalty == (loo.penalties[loo.best] if facts.kind == "ridge" else LOGISTIC_PENALTIES[best])
        kinds.add(facts.kind)
        turned += (result.correct[:, best].mean() > result.ridge_folds.mean()) is not (other > ridge)
    assert kinds == {"ridge", "logistic"}
    assert turned


@pytest.mark.parametrize(("n", "d"), [(60, 8), (30, 60)])
def test_importance_of_one_each_changes_no_head(n: int, d: int) -> None:
    x, labels = some(n, d, signal=0.3)
    plain, ones = fitted(x, labels, 3)[0], fitted(x, labels, 3, importance=np.ones(n))[0]
    for name in ("weight", "bias", "temperature", "scores", "right", "correct", "loss", "ridge_folds"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(ones, name))
    assert plain.facts == ones.facts


def curved(n: int, d: int, seed: int = 0) -> tuple[NDArray[np.float32], Ints]:
    """Most images far out on the right side, where least squares is pulled and logistic regression is not."""
    rng = np.random.default_rng((seed, n, d))
    x = rng.normal(size=(n, d))
    x[:, 0] = rng.normal(size=n)
    labels = (x[:, 0] + 0.1 * rng.normal(size=n) > 0).astype(np.int64)
    x[labels == 1, 0] += rng.exponential(8, (labels == 1).sum()) * (rng.random((labels == 1).sum()) < 0.3)
    return x.astype(np.float32), labels


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize(("n", "d"), [(120, 4), (40, 50)])
def test_the_winning_logistic_head_is_scikit_learns_on_all_images(n: int, d: int, weighed: bool) -> None:
    """Refitted at the chosen penalty: probabilities before the temperature to 0.01."""
    a = uneven(n, 1, 2)[2] if weighed else np.ones(n)
    for seed in range(20):
        x, labels = curved(n, d, seed)
        result, _ = fitted(x, labels, 2, importance=a)
        if result.facts.kind == "logistic":
            break
    assert result.facts.kind == "logistic"
    mean = a @ x.astype(np.float64) / n
    z = (x - mean) / np.sqrt(a @ (x - mean) ** 2 / n)
    trace = float(a @ (z**2).sum(axis=1)) / d
    reference = logistic(z, labels, result.facts.penalty * trace, a)
    mine = softmax(x @ result.weight + result.bias, axis=1)
    np.testing.assert_allclose(mine, reference.predict_proba(z), atol=0.01)
    best = int(np.flatnonzero(np.isclose(LOGISTIC_PENALTIES, result.facts.penalty))[0])
    # The scores that it is judged by are those out of fold, not of the fit on all images.
    np.testing.assert_allclose(
        -log_softmax(result.scores, axis=1)[np.arange(n), labels], result.loss[:, best], atol=1e-4
    )


@pytest.mark.parametrize(("n", "d", "classes"), SETS)
@pytest.mark.parametrize("grouped", [False, True])
def test_ridge_out_of_fold_is_refitting_without_the_fold(n: int, d: int, classes: int, grouped: bool) -> None:
    x, labels = some(n, d, classes)
    groups = np.arange(n) // 2 if grouped else None
    result, loo = fitted(x, labels, classes, groups=groups)
    z, fold, one_hot = Standardised.of(x)(x), folds(labels, groups, 0), np.eye(classes)[labels]
    scores = np.empty((n, classes))
    for k in range(FOLDS):
        train = fold != k
        z_mean, y_mean = z[train].mean(axis=0), one_hot[train].mean(axis=0)
        centred = z[train] - z_mean
        moments = centred.T @ centred + loo.penalties[loo.best] * unit(x) * np.eye(d)
        w = np.linalg.solve(moments, centred.T @ (one_hot[train] - y_mean))
        scores[~train] = (z[~train] - z_mean) @ w + y_mean
    np.testing.assert_array_equal(result.ridge_folds, scores.argmax(axis=1) == labels)


def test_the_head_that_is_right_more_often_out_of_fold_is_kept_and_the_reason_says_so() -> None:
    """Over many sets both win somewhere, and a tie goes to ridge."""
    outcomes = set()
    for seed in range(12):
        x, labels = curved(60, 5, seed) if seed % 2 else some(60, 5, 2, signal=0.2, seed=seed)
        result, loo = fitted(x, labels, 2)
        ridge = result.ridge_folds.mean()
        other = result.correct[:, result.loss.mean(axis=0, dtype=np.float64).argmin()].mean()
        facts = result.facts
        assert facts.kind == ("logistic" if other > ridge else "ridge")
        assert facts.ridge_accuracy == pytest.approx(ridge)
        assert facts.logistic_accuracy == pytest.approx(other)
        assert f"{ridge:.1%}" in facts.reason
        assert f"{other:.1%}" in facts.reason
        assert facts.reason.startswith("ridge" if facts.kind == "ridge" else "logistic regression")
        assert facts.temperature == result.temperature
        best = result.loss.mean(axis=0, dtype=np.float64).argmin()
        kept = result.ridge_folds if facts.kind == "ridge" else result.correct[:, best]
        np.testing.assert_array_equal(result.right, kept)
        if facts.kind == "ridge":
            assert facts.penalty == loo.penalties[loo.best]
            np.testing.assert_array_equal(result.scores, loo.scores)
        outcomes.add((facts.kind, bool(other == ridge)))
    assert {k for k, _ in outcomes} == {"ridge", "logistic"}


def test_a_tie_goes_to_ridge() -> None:
    x, labels = some(40, 6, 2, signal=8)
    result, _ = fitted(x, labels, 2)
    assert (result.facts.kind, result.facts.ridge_accuracy, result.facts.logistic_accuracy) == ("ridge", 1, 1)


def test_beyond_the_bound_only_ridge_is_fitted_and_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = some(40, 6)
    with_both, _ = fitted(x, labels, 3)
    monkeypatch.setattr(room, "LOGISTIC_VALUES", 40 * 6 - 1)
    result, _ = fitted(x, labels, 3)
    assert result.facts.kind == "ridge"
    assert result.facts.logistic_accuracy is None
    assert "not tried on more than 239 feature values" in result.facts.reason
    assert result.loss.shape == result.correct.shape == (40, 0)
    np.testing.assert_array_equal(result.ridge_folds, with_both.ridge_folds)


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize(("n", "d"), [(60, 8), (20, 50)])
def test_weights_folded_for_raw_features_give_the_standardised_logits(
    n: int, d: int, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To float32, in which x @ weight + bias cancels sums that are offset / scale times larger."""
    x, labels = some(n, d, 3, signal=0.3)
    x = x + np.float32(offset)
    x[:, 1] = 7  # does not vary
    monkeypatch.setattr(room, "LOGISTIC_VALUES", 0)  # ridge, whichever would win
    result, loo = fitted(x, labels, 3)
    assert result.weight.dtype == result.bias.dtype == np.float32
    standard = Standardised.of(x)
    w, b = weights(x, labels, 3, loo.penalties[loo.best], standard, factor(x, standard))
    new = some(30, d, 3, seed=1)[0] + np.float32(offset)
    expected = standard(new) @ w + b
    np.testing.assert_array_equal(result.weight[1], 0)
    np.testing.assert_allclose(new @ result.weight + result.bias, expected, atol=1e-6 * (10 + offset))


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize(("n", "d"), [(60, 8), (20, 50)])
def test_the_head_that_training_starts_from_is_ridge_over_its_temperature(n: int, d: int, weighed: bool) -> None:
    x, labels, uneven_ones = uneven(n, d, 3)
    a = uneven_ones if weighed else None
    groups = np.arange(n) // 2
    start = exact(x, labels, 3, 0.1, groups, a)
    standard = Standardised.of(x, a)
    w, b = weights(x, labels, 3, 0.1, standard, factor(x, standard, a))
    loo = probe(x, labels, 3, groups=groups, importance=a, penalties=np.array([0.1]))
    t = temperature(loo.scores.astype(np.float64), labels)
    logits = (x - start.mean) / start.scale @ start.weight + start.bias
    np.testing.assert_allclose(logits, (standard(x) @ w + b) / t, atol=1e-9 / t)


def test_the_same_seed_gives_the_same_head_and_other_folds_another_seed() -> None:
    x, labels = some(50, 10, signal=0.3)
    one, again = (fitted(x, labels, 3, seed=4)[0] for _ in range(2))
    for name in ("weight", "bias", "scores", "correct", "loss", "ridge_folds"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
    assert one.facts == again.facts
    assert not np.array_equal(fitted(x, labels, 3, seed=5)[0].ridge_folds, one.ridge_folds)


@pytest.mark.parametrize(("n", "d"), [(31, 6), (21, 40)])
def test_a_class_that_a_fold_never_saw_is_finite_and_never_right_there(n: int, d: int) -> None:
    """One image of its class: whatever the fit, it is learnt without it."""
    x, labels = some(n, d, 2)
    labels[7] = 2
    result, _ = fitted(x, labels, 3)
    assert not result.correct[7].any()
    assert not result.ridge_folds[7]
    assert np.isfinite(result.loss).all()
    assert np.isfinite(result.weight).all()
    assert np.isfinite(result.bias).all()


def test_all_images_of_a_class_in_one_group() -> None:
    """They leave together: then one class alone is left to fit, and none of them is right."""
    x, labels = some(20, 5, 2)
    groups = np.where(labels == 1, 100, np.arange(20))
    result, _ = fitted(x, labels, 2, groups=groups)
    assert not result.ridge_folds[labels == 1].any()
    assert not result.correct[labels == 1].any()
    assert np.isfinite(result.weight).all()


@settings(max_examples=150, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=st.integers(0, 5), k=st.integers(2, 6))
def test_folds_are_balanced_as_a_whole_and_within_each_class(labels: list[int], seed: int, k: int) -> None:
    """No two folds differ by more than one image, of any class and in all."""
    fold = folds(np.array(labels), None, seed, k)
    assert len(fold) == len(labels)
    assert fold.min() >= 0
    for label in {None, *labels}:
        mine = fold if label is None else fold[np.array(labels) == label]
        counts = np.bincount(mine, minlength=k)
        assert len(counts) == k
        assert counts.max() - counts.min() <= 1


@settings(max_examples=150, deadline=None)
@given(data=st.data(), n=st.integers(1, 50), seed=st.integers(0, 5))
def test_groups_stay_whole_and_are_dealt_out_evenly(data: st.DataObject, n: int, seed: int) -> None:
    groups = np.array(data.draw(st.lists(st.integers(-9, 9), min_size=n, max_size=n)))
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    fold = folds(labels, groups, seed)
    unique, first = np.unique(groups, return_index=True)
    for group in unique:
        assert len(np.unique(fold[groups == group])) == 1
    for label in {None, *labels[first]}:
        mine = fold[first] if label is None else fold[first][labels[first] == label]
        counts = np.bincount(mine, minlength=FOLDS)
        assert counts.max() - counts.min() <= 1


def test_folds_are_the_same_for_a_seed_and_shuffled_by_it() -> None:
    labels = np.arange(40) % 4
    np.testing.assert_array_equal(folds(labels, None, 3), folds(labels, None, 3))
    assert not np.array_equal(folds(labels, None, 3), folds(labels, None, 4))
    # Images often come sorted by how they were taken; the neighbours of one fold must not be neighbours there.
    assert not np.array_equal(np.sort(folds(np.zeros(40, int), None, 3)), folds(np.zeros(40, int), None, 3))


@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_the_temperature_minimises_the_log_loss(scale: float) -> None:
    """Oracle: a grid of 4001 temperatures over the same range, one image counted that is of each class alike."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    scores = scale * (rng.normal(size=(200, 4)) + np.eye(4)[labels])

    def loss(t: float) -> float:
        log_p = log_softmax(scores / t, axis=1)
        return -float(log_p[np.arange(200), labels].sum() + log_p.mean(axis=1).mean())

    grid = np.geomspace(1e-3, 1e2, 4001)
    best = grid[np.argmin([loss(t) for t in grid])]
    found = temperature(scores, labels)
    assert found == pytest.approx(best, rel=3e-3)  # the grid's step
    assert loss(found) <= loss(best) + 1e-9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_temperature_follows_the_scores_scale_and_ignores_their_offset(seed: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 60)
    scores = rng.normal(size=(60, 3)) + np.eye(3)[labels]
    moved = temperature(scale * scores + shift * rng.normal(size=(60, 1)), labels)
    assert moved == pytest.approx(scale * temperature(scores, labels), rel=1e-3)


def test_two_dozen_right_answers_are_no_certainty() -> None:
    """24 of 24 right leave a few percent of doubt (rule of succession: 1/26), not less than one in 10,000."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    scores = 0.1 * rng.normal(size=(24, 3)) + 0.8 * np.eye(3)[labels]
    assert (scores.argmax(axis=1) == labels).all()
    top = softmax(scores / temperature(scores, labels), axis=1).max(axis=1)
    assert top.mean() < 0.9999
