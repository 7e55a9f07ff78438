"""Several depths are added up as least squares without negative weights says, judged on images that set no weight,
and are one linear head in the end."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import binom

from topwork import stack as room
from topwork.head import folds, temperature
from topwork.probe import Probe, Standardised, factor, probe
from topwork.probe import weights as ridge
from topwork.stack import LEAST_SHARE, Stacked, fit, gain, stack

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Scores = list[NDArray[np.float32]]


def some(n: int, classes: int, cuts: int, seed: int = 0) -> tuple[Scores, Ints, Ints]:
    """Scores of cuts that know the classes more or less, errors that they share, labels, folds."""
    rng = np.random.default_rng((seed, n, classes, cuts))
    labels = rng.permutation(np.arange(n) % classes)
    shared = rng.normal(size=(n, classes))
    scores = [
        (rng.uniform(0.1, 1) * np.eye(classes)[labels] + 0.3 * shared + 0.3 * rng.normal(size=(n, classes)))
        for _ in range(cuts)
    ]
    return [s.astype(np.float32) for s in scores], labels, folds(labels, None, seed)


def problem(scores: Scores, labels: Ints, classes: int, a: Floats | None = None) -> tuple[Floats, Floats]:
    """The least-squares problem written out: (n C, K) and (n C,)."""
    root = np.ones(len(labels)) if a is None else np.sqrt(a)
    columns = [(root[:, None] * s.astype(np.float64)).ravel() for s in scores]
    return np.stack(columns, axis=1), (root[:, None] * np.eye(classes)[labels]).ravel()


def by_trying_all(x: Floats, y: Floats) -> Floats:
    """Non-negative least squares: of all sets of columns, the best free fit that happens to have no negative weight."""
    best, least = np.zeros(x.shape[1]), float(y @ y)
    for size in range(1, x.shape[1] + 1):
        for chosen in combinations(range(x.shape[1]), size):
            w = np.linalg.lstsq(x[:, chosen], y, rcond=None)[0]
            error = float(((x[:, chosen] @ w - y) ** 2).sum())
            if (w >= 0).all() and error < least:
                best, least = np.zeros(x.shape[1]), error
                best[list(chosen)] = w
    return best


def by_hand(scores: Scores, labels: Ints, classes: int, a: Floats | None = None) -> Floats:
    """With the least cut left out and the others fitted anew while one has less than its share."""
    x, y = problem(scores, labels, classes, a)
    used = list(range(len(scores)))
    while True:
        w = nnls(x[:, used], y)[0]
        if w.min() > 0 and w.min() >= LEAST_SHARE * w.sum():
            break
        del used[int(w.argmin())]
    result = np.zeros(len(scores))
    result[used] = w
    return result


SHAPES = [(40, 3, 1), (60, 2, 2), (75, 5, 4), (200, 3, 9)]


@pytest.mark.parametrize(("n", "classes", "cuts"), SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_weights_are_those_of_the_problem_written_out(n: int, classes: int, cuts: int, seed: int) -> None:
    scores, labels, fold = some(n, classes, cuts, seed)
    found = stack(scores, labels, classes, fold)
    np.testing.assert_allclose(found.weights, by_hand(scores, labels, classes), atol=1e-9)
    assert found.used == tuple(k for k in range(cuts) if found.weights[k] > 0)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.integers(1, 5))
def test_without_a_least_share_no_other_weights_without_a_negative_one_fit_better(seed: int, cuts: int) -> None:
    """Against all sets of cuts, and by the conditions of Karush, Kuhn and Tucker: where a weight is above 0 the
    gradient is 0; where it is 0, more of the cut would not help."""
    scores, labels, fold = some(30, 3, cuts, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "LEAST_SHARE", 0.0)
        w = stack(scores, labels, 3, fold).weights
    x, y = problem(scores, labels, 3)
    np.testing.assert_allclose(w, by_trying_all(x, y), atol=1e-8)
    gradient = x.T @ (x @ w - y)
    assert (w >= 0).all()
    np.testing.assert_allclose(gradient[w > 0], 0, atol=1e-8)
    assert (gradient[w == 0] > -1e-8).all()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.integers(1, 12))
def test_every_cut_that_counts_has_its_share_and_the_best_fit_among_them(seed: int, cuts: int) -> None:
    scores, labels, fold = some(30, 3, cuts, seed)
    found = stack(scores, labels, 3, fold)
    used = list(found.used)
    moments = [float((np.eye(3)[labels] * one).sum()) for one in scores]
    assert bool(used) == (max(moments) > 0)  # scores that point away from the labels, by chance, get no weight
    assert not used or (found.weights[used] >= LEAST_SHARE * found.weights.sum()).all()
    if used:
        x, y = problem([scores[k] for k in used], labels, 3)
        np.testing.assert_allclose(x.T @ (x @ found.weights[used] - y), 0, atol=1e-8)


@pytest.mark.parametrize(("weak", "expected"), [(0.06, [1.0, 0.06]), (0.04, [1.005, 0.0]), (0.0, [1.0, 0.0])])
def test_a_cut_with_too_small_a_share_is_left_out_and_the_others_are_fitted_anew(
    weak: float, expected: list[float]
) -> None:
    """By hand: S1'S1 = 8, S1'S2 = 1, S2'S2 = 1, and Y = S1 + weak S2. Alone, S1 weighs S1'Y / 8 = 1 + weak / 8."""
    gram = np.array([[8.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(room._fitted(gram, gram @ [1.0, weak]), expected, atol=1e-12)


@pytest.mark.parametrize("position", [0, 2, 4])
def test_a_cut_among_noise_takes_all_the_weight(position: int) -> None:
    """Chance gives noise a weight of about 1 / sqrt(9,000): five times less than the share that is needed."""
    rng = np.random.default_rng(position)
    labels = rng.permutation(np.arange(3000) % 3)
    scores = [(0.2 * rng.normal(size=(3000, 3))).astype(np.float32) for _ in range(5)]
    scores[position] = (np.eye(3)[labels] + 0.2 * rng.normal(size=(3000, 3))).astype(np.float32)
    found = stack(scores, labels, 3, folds(labels, None, 0))
    assert found.used == (position,)
    assert found.weights[position] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize(("n", "classes", "cuts"), SHAPES)
def test_scores_are_those_of_weights_fitted_by_hand_on_the_other_folds(
    n: int, classes: int, cuts: int, weighed: bool
) -> None:
    scores, labels, fold = some(n, classes, cuts)
    a = np.random.default_rng(0).uniform(0.2, 3, n) if weighed else None
    found = stack(scores, labels, classes, fold, importance=a)
    expected = np.empty((n, classes))
    for k in np.unique(fold):
        out, inside = fold != k, fold == k
        w = by_hand([s[out] for s in scores], labels[out], classes, None if a is None else a[out])
        expected[inside] = sum(v * s[inside] for v, s in zip(w, scores, strict=True))
    assert found.scores.shape == (n, classes)
    np.testing.assert_allclose(found.scores, expected, atol=1e-9)
    np.testing.assert_array_equal(found.right, expected.argmax(axis=1) == labels)


def test_a_rows_own_label_has_no_say_in_its_scores() -> None:
    """Nor has any of its fold: with labels there changed at random, these rows' scores stay, and others' move."""
    scores, labels, fold = some(60, 3, 3)
    changed = labels.copy()
    changed[fold == 2] = np.random.default_rng(1).integers(0, 3, (fold == 2).sum())
    a, b = stack(scores, labels, 3, fold), stack(scores, changed, 3, fold)
    np.testing.assert_array_equal(a.scores[fold == 2], b.scores[fold == 2])
    assert (a.scores[fold != 2] != b.scores[fold != 2]).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.integers(2, 7))
def test_the_order_of_cuts_rows_and_classes_changes_nothing(seed: int, cuts: int) -> None:
    scores, labels, fold = some(45, 3, cuts, seed)
    plain = stack(scores, labels, 3, fold)
    rng = np.random.default_rng(seed)
    order, rows, names = rng.permutation(cuts), rng.permutation(45), rng.permutation(3)
    new_labels = np.argsort(names)[labels][rows]
    turned = stack([scores[k][rows][:, names] for k in order], new_labels, 3, 7 - fold[rows])
    np.testing.assert_allclose(turned.weights, plain.weights[order], atol=1e-9)
    np.testing.assert_allclose(turned.scores, plain.scores[rows][:, names], atol=1e-9)


def test_the_same_twice_is_the_same_to_the_bit() -> None:
    scores, labels, fold = some(75, 5, 4)
    a, b = stack(scores, labels, 5, fold), stack(scores, labels, 5, fold)
    np.testing.assert_array_equal(a.weights, b.weights)
    np.testing.assert_array_equal(a.scores, b.scores)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_row_that_weighs_as_a_whole_number_is_that_many_rows(seed: int) -> None:
    scores, labels, fold = some(40, 3, 3, seed)
    times = np.random.default_rng(seed).integers(1, 5, 40)
    times[0] = 2 if (times == times[0]).all() else times[0]
    weighed = stack(scores, labels, 3, fold, importance=times * 40 / times.sum())
    again = np.repeat(np.arange(40), times)
    repeated = stack([s[again] for s in scores], labels[again], 3, fold[again])
    np.testing.assert_allclose(weighed.weights, repeated.weights, atol=1e-9)
    np.testing.assert_allclose(weighed.scores[again], repeated.scores, atol=1e-9)


def test_more_rows_than_are_worked_on_at_a_time_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels, fold = some(75, 5, 4)
    whole = stack(scores, labels, 5, fold)
    monkeypatch.setattr(room, "CHUNK", 4)
    np.testing.assert_allclose(stack(scores, labels, 5, fold).weights, whole.weights, atol=1e-12)


def test_cuts_with_the_same_scores_count_as_one() -> None:
    """Together they weigh what one of them would."""
    scores, labels, fold = some(60, 2, 1)
    one, three = stack(scores, labels, 2, fold), stack(scores * 3, labels, 2, fold)
    assert three.weights.sum() == pytest.approx(one.weights.sum())
    np.testing.assert_allclose(three.scores, one.scores, atol=1e-9)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1, 0, 2], [1] * 8], ids=str)
def test_a_fold_may_lack_a_class_or_all_images_of_one(labels: list[int]) -> None:
    """The only image of a class in one fold; a class that is nowhere; folds of one class each."""
    given_ = np.array(labels)
    rng = np.random.default_rng(0)
    scores = [(np.eye(4)[given_] + 0.1 * rng.normal(size=(8, 4))).astype(np.float32) for _ in range(2)]
    for fold in (np.arange(8) // 2, np.arange(8) % 2, np.arange(8)):
        found = stack(scores, given_, 4, fold)
        assert found.right.all()
        assert np.isfinite(found.scores).all()


def test_all_images_in_one_fold_leave_nothing_to_fit_on() -> None:
    scores, labels, _ = some(20, 2, 2)
    np.testing.assert_array_equal(stack(scores, labels, 2, np.zeros(20, dtype=np.int64)).scores, 0)


def test_where_no_scores_point_to_the_labels_nothing_counts() -> None:
    scores, labels, fold = some(30, 3, 2)
    against = [-np.abs(s) for s in scores]
    found = stack(against, labels, 3, fold)
    assert found.used == ()
    np.testing.assert_array_equal(found.scores, 0)


# ---- what it is compared by


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), weighed=st.booleans(), grouped=st.booleans())
def test_the_gain_is_that_of_the_textbook(seed: int, weighed: bool, grouped: bool) -> None:
    """Mean paired difference, its cluster-robust error with one image of difference, 1.28 of them below."""
    rng, n = np.random.default_rng(seed), 40
    right, base = rng.random(n) < 0.8, rng.random(n) < 0.7
    a = rng.uniform(0.2, 3, n) if weighed else np.ones(n)
    groups = rng.integers(0, 15, n) if grouped else np.arange(n)
    value, low = gain(right, base, groups if grouped else None, a if weighed else None)
    a = a * n / a.sum()
    d = a * (right.astype(float) - base)
    sums = np.array([(d - d.mean())[groups == g].sum() for g in np.unique(groups)])
    held = np.array([a[groups == g].sum() for g in np.unique(groups)])
    error = np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum() / n**2 + ((held**2).sum() / n**2) ** 2)
    assert value == pytest.approx(d.mean())
    assert low == pytest.approx(d.mean() - 1.281552 * error)


def test_heads_that_agree_are_not_shown_to_differ() -> None:
    right = np.arange(50) % 3 > 0
    assert gain(right, right)[0] == 0
    assert gain(right, right)[1] < 0


# ---- features of several depths


def depths(n: int, seed: int, kind: str) -> tuple[list[NDArray[np.float32]], Ints]:
    """Pooled features of three cuts, four classes.

    "halves": the first cut tells classes 0 and 1 apart, the second 2 and 3, both the pairs; the third nothing.
    "nothing more": the first cut knows something, the second the same under noise, the third nothing.
    """
    rng = np.random.default_rng((seed, n))
    labels = rng.permutation(np.arange(n) % 4)
    noise = [rng.normal(size=(n, 8)) for _ in range(3)]
    pair, first, second = labels // 2, labels == 1, labels == 3
    if kind == "halves":
        for x, told in zip(noise, (first, second), strict=False):
            x[:, 0] += 5 * pair
            x[:, 1] += 3 * told
    else:
        noise[0] += 0.7 * rng.permutation(np.eye(8))[labels] * np.sqrt(8)
        noise[1] += noise[0]
    return [(3 * x + 1).astype(np.float32) for x in noise], labels


def tried(x: list[NDArray[np.float32]], labels: Ints, **options: Any) -> tuple[list[Probe], Stacked, int]:
    """Leave-one-out probes of every cut, what stacks them, and the best single cut."""
    probes = [probe(one, labels, 4, **options) for one in x]
    fold = folds(labels, options.get("groups"), 0)
    found = stack([p.scores for p in probes], labels, 4, fold, importance=options.get("importance"))
    return probes, found, int(np.argmax([p.correct[:, p.best].mean() for p in probes]))


@pytest.mark.parametrize("seed", range(3))
def test_depths_that_know_half_of_the_classes_each_are_shown_to_be_better_together(seed: int) -> None:
    x, labels = depths(200, seed, "halves")
    probes, found, best = tried(x, labels)
    assert found.used == (0, 1)
    value, low = gain(found.right, probes[best].correct[:, probes[best].best])
    assert value > 0.1
    assert low > 0


@pytest.mark.slow
def test_depths_that_add_nothing_are_rarely_kept() -> None:
    """200 sets of 100 images: where nothing is to be gained, a one-sided 90% bound is passed one time in ten at most.
    More than 34 of 200 would happen by chance one time in a thousand."""
    kept, runs = 0, 200
    for seed in range(runs):
        x, labels = depths(100, seed, "nothing more")
        probes, found, _ = tried(x, labels)
        kept += gain(found.right, probes[0].correct[:, probes[0].best])[1] > 0
    assert kept <= binom.ppf(0.999, runs, 0.1) == 34


def ridge_scores(x: NDArray[np.float32], labels: Ints, found: Probe, a: Floats | None = None) -> Floats:
    """In double precision, on standardised features."""
    standard = Standardised.of(x, a)
    w, b = ridge(x, labels, 4, float(found.penalties[found.best]), standard, factor(x, standard, a))
    return standard(x) @ w + b


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("n", [12, 200])  # more features than images, and fewer
def test_the_head_on_raw_features_is_the_weighted_sum_of_the_ridge_heads(n: int, weighed: bool) -> None:
    x, labels = depths(n, 0, "halves")
    x[1] = x[1][:, :5]  # of another width
    x[2][:, 3] = 4  # a feature that does not vary
    a = np.random.default_rng(0).uniform(0.2, 3, n) if weighed else None
    a = None if a is None else a * n / a.sum()
    probes = [probe(one, labels, 4, importance=a) for one in x]
    shares = np.array([0.7, 0.1, 0.4])
    weight, bias = fit(iter(x), labels, 4, probes, shares, importance=a)
    assert (weight.shape, bias.shape) == ((8 + 5 + 8, 4), (4,))
    assert (weight.dtype, bias.dtype) == (np.float32, np.float32)
    expected = sum(s * ridge_scores(one, labels, p, a) for s, one, p in zip(shares, x, probes, strict=True))
    np.testing.assert_allclose(np.hstack(x) @ weight + bias, expected, atol=1e-5)  # float32 rounding
    np.testing.assert_array_equal(weight[8 + 5 + 3], 0)


def test_one_cut_alone_is_its_ridge_head() -> None:
    x, labels = depths(60, 0, "nothing more")
    probes, _, _ = tried(x, labels)
    weight, bias = fit(x[:1], labels, 4, probes[:1], [1.0])
    np.testing.assert_allclose(x[0] @ weight + bias, ridge_scores(x[0], labels, probes[0]), atol=1e-5)


def test_cuts_penalties_and_weights_must_be_as_many() -> None:
    x, labels = depths(40, 0, "halves")
    probes, _, _ = tried(x, labels)
    with pytest.raises(ValueError, match="shorter"):
        fit(x, labels, 4, probes, [1.0, 1.0])


def test_the_head_is_about_as_right_on_new_images_as_its_scores_said() -> None:
    """Weights, heads and temperature from 200 images, judged on 2,000 others: 3 errors of a share of 200."""
    x, labels = depths(200, 0, "halves")
    probes, found, _ = tried(x, labels)
    used = list(found.used)
    weight, bias = fit([x[k] for k in used], labels, 4, [probes[k] for k in used], found.weights[used])
    new, truth = depths(2000, 1, "halves")
    scores = np.hstack([new[k] for k in used]) @ weight + bias
    right = float((scores.argmax(axis=1) == truth).mean())
    assert right == pytest.approx(found.right.mean(), abs=3 * np.sqrt(0.25 / 200))
    p = scores / temperature(found.scores, labels)
    p = np.exp(p - p.max(axis=1, keepdims=True))
    sure = float((p / p.sum(axis=1, keepdims=True)).max(axis=1).mean())
    assert sure == pytest.approx(right, abs=0.1)


def test_images_that_belong_together_stay_in_one_fold() -> None:
    """Copies of each image: neither a ridge score nor a weight that judges one was fitted on another."""
    x, labels = depths(60, 0, "nothing more")
    groups = np.repeat(np.arange(60), 3)
    probes, found, _ = tried([one[groups] for one in x], labels[groups], groups=groups)
    for g in range(60):
        assert np.ptp(found.scores[groups == g], axis=0).max() < 1e-5
    value, low = gain(found.right, probes[0].correct[:, probes[0].best], groups)
    assert low < value - 1.28 / 60
