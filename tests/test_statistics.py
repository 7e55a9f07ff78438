"""Intervals hold what they promise: against scipy, against the formulas by hand, and in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.utils.class_weight import compute_class_weight

from topwork.statistics import Z90, Z95, class_weights, independent, paired_errors, wilson


def test_the_quantiles_are_the_normals() -> None:
    """Two-sided 95%, one-sided 90%."""
    assert pytest.approx(norm.ppf(0.975), abs=1e-6) == Z95
    assert pytest.approx(norm.ppf(0.9), abs=1e-6) == Z90


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 5000), data=st.data())
def test_wilsons_interval_is_scipys(n: int, data: st.DataObject) -> None:
    k = data.draw(st.one_of(st.integers(0, n), st.sampled_from([0, n])))
    expected = binomtest(k, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson(k / n, n), (expected.low, expected.high), atol=1e-7)


def test_nothing_seen_is_nothing_known() -> None:
    assert wilson(0.5, 0) == (0, 1)


@settings(max_examples=200, deadline=None)
@given(share=st.floats(0, 1), n=st.floats(0.1, 1e9))
def test_an_interval_is_within_0_and_1_and_around_its_share(share: float, n: float) -> None:
    low, high = wilson(share, n)
    assert 0 <= low <= share <= high <= 1
    assert wilson(1 - share, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@given(share=st.floats(0, 1), n=st.integers(1, 1000))
def test_more_images_narrow_the_interval(share: float, n: int) -> None:
    few, many = wilson(share, n), wilson(share, 2 * n)
    assert many[1] - many[0] < few[1] - few[0]


@pytest.mark.parametrize("truth", [0.02, 0.3, 0.85, 0.99])
@pytest.mark.parametrize("n", [10, 30, 300])
def test_wilsons_interval_covers_the_truth(n: int, truth: float) -> None:
    """Exactly, by summing the binomial: on average about 95%, and never much less (Brown et al., 2001: 0.83 at
    shares within 1/n of 0 or 1)."""
    k = np.arange(n + 1)
    inside = np.array([low <= truth <= high for low, high in (wilson(i / n, n) for i in k)])
    coverage = float(np.sum([binomial(n, truth)[i] for i in k[inside]]))
    assert coverage > (0.9 if min(truth, 1 - truth) * n > 1 else 0.83)


def binomial(n: int, p: float) -> list[float]:
    from scipy.stats import binom

    return [float(v) for v in binom.pmf(range(n + 1), n, p)]


def test_wilson_covers_95_percent_on_average_over_shares() -> None:
    n, shares = 40, np.linspace(0.005, 0.995, 199)
    intervals = [wilson(k / n, n) for k in range(n + 1)]
    coverage = [
        sum(p for p, (low, high) in zip(binomial(n, s), intervals, strict=True) if low <= s <= high) for s in shares
    ]
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)


def differences(n: int = 50, k: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], p=[0.2, 0.5, 0.3], size=(n, k))


def test_the_error_of_independent_images_is_sd_over_root_n() -> None:
    d = differences()
    np.testing.assert_allclose(paired_errors(d), d.std(axis=0, ddof=1) / np.sqrt(50), rtol=1e-12)


def test_the_error_between_groups_by_hand() -> None:
    """Differences 1, 1, 0, -1, 0, 0 with mean 1/6 in groups of 2, 3 and 1 images.

    Centred sums 2 - 2/6, -1 - 3/6, 0 - 1/6: squares (100 + 81 + 1) / 36; times 3/2; root; over 6.
    """
    d = np.array([[1.0], [1.0], [0.0], [-1.0], [0.0], [0.0]])
    groups = np.array([5, 5, 2, 2, 2, 9])
    assert paired_errors(d, groups)[0] == pytest.approx(np.sqrt(1.5 * 182 / 36) / 6, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 30))
def test_groups_of_one_change_nothing_nor_do_their_numbers_and_the_order(seed: int, n: int) -> None:
    d, rng = differences(n, seed=seed), np.random.default_rng(seed)
    np.testing.assert_allclose(paired_errors(d, rng.permutation(n) - 5), paired_errors(d), rtol=1e-12)
    groups, order = rng.integers(0, 4, n), rng.permutation(n)
    np.testing.assert_allclose(paired_errors(d[order], -7 * groups[order]), paired_errors(d, groups), rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 30), copies=st.integers(2, 5))
def test_copies_in_the_same_group_add_no_certainty(seed: int, n: int, copies: int) -> None:
    """As images of their own they would: by the root of their number."""
    d = differences(n, seed=seed)
    plain = paired_errors(d)
    again = np.tile(d, (copies, 1))
    np.testing.assert_allclose(paired_errors(again, np.tile(np.arange(n), copies)), plain, rtol=1e-9, atol=1e-12)
    shrunk = plain * np.sqrt((n - 1) / (n * copies - 1))
    np.testing.assert_allclose(paired_errors(again), shrunk, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "groups"), [(1, None), (0, None), (4, np.zeros(4, int))])
def test_one_independent_image_says_nothing(n: int, groups: np.ndarray | None) -> None:
    d = np.zeros((n, 2))
    np.testing.assert_array_equal(paired_errors(d, groups), [np.inf, np.inf])


@pytest.mark.parametrize("correlated", [False, True])
def test_paired_intervals_cover_the_true_difference(correlated: bool) -> None:
    """1,000 samples: 95%, less 2 points for the normal quantile at 60 groups and 2 for chance (3 sd)."""
    rng, covered, truth = np.random.default_rng(0), 0, 0.1
    groups = np.repeat(np.arange(60), 4)
    for _ in range(1000):
        draws = rng.choice([-1.0, 0.0, 1.0], p=[0.2, 0.5, 0.3], size=60 if correlated else 240)
        d = (draws[groups] if correlated else draws)[:, None]
        error = paired_errors(d, groups if correlated else None)[0]
        covered += abs(d.mean() - truth) <= Z95 * error
    assert 0.91 < covered / 1000 < 0.98


def test_ignoring_groups_would_not_cover() -> None:
    """The same samples of four alike images each, taken as independent: the reason why groups are asked for."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        d = np.repeat(rng.choice([-1.0, 0.0, 1.0], p=[0.2, 0.5, 0.3], size=60), 4)[:, None]
        covered += abs(d.mean() - 0.1) <= Z95 * paired_errors(d)[0]
    assert covered / 300 < 0.8


def test_independent_images_by_hand() -> None:
    """Groups of 3, 2 and 1: 36 / 14. Five of 20 and 100 of one: 200^2 / 2,100."""
    assert independent(np.array([4, -1, 4, 9, -1, 4]), 6) == pytest.approx(36 / 14)
    uneven = np.concatenate([np.repeat(np.arange(5), 20), np.arange(5, 105)])
    assert independent(uneven, 200) == pytest.approx(200**2 / 2100)


@given(count=st.integers(1, 30), size=st.integers(1, 9))
def test_groups_of_one_size_are_worth_one_image_each(count: int, size: int) -> None:
    assert independent(np.tile(np.arange(count), size), count * size) == pytest.approx(count)
    assert independent(None, count) == count


@given(groups=st.lists(st.integers(-5, 5), min_size=1, max_size=60))
def test_images_in_groups_are_worth_between_one_and_the_number_of_groups(groups: list[int]) -> None:
    worth = independent(np.array(groups), len(groups))
    assert worth >= 1 - 1e-12
    assert worth <= len(set(groups)) + 1e-9
    assert independent(np.repeat(groups, 3), 3 * len(groups)) == pytest.approx(worth)


def test_class_weights_by_hand() -> None:
    """Of 10 images 6, 3, 0 and 1: 10 / (3 * 6), 10 / (3 * 3), nothing, 10 / 3."""
    labels = np.repeat([0, 1, 3], [6, 3, 1])
    np.testing.assert_allclose(class_weights(labels, 5), [10 / 18, 10 / 9, 0, 10 / 3, 0], rtol=1e-12)


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=80), seed=st.integers(0, 100))
def test_class_weights_make_classes_weigh_alike_and_the_average_image_one(labels: list[int], seed: int) -> None:
    """In any order of the images; scikit-learn calls them balanced."""
    ordered = np.array(labels)
    weights = class_weights(ordered, 5)
    assert weights.shape == (5,)
    assert weights[ordered].mean() == pytest.approx(1)
    present = np.unique(ordered)
    totals = [weights[ordered[ordered == label]].sum() for label in present]
    np.testing.assert_allclose(totals, len(ordered) / len(present), rtol=1e-9)
    np.testing.assert_array_equal(np.flatnonzero(weights), present)
    np.testing.assert_allclose(
        weights[present], compute_class_weight("balanced", classes=present, y=ordered), rtol=1e-12
    )
    shuffled = np.random.default_rng(seed).permutation(ordered)
    np.testing.assert_array_equal(class_weights(shuffled, 5), weights)


@given(count=st.integers(1, 9), size=st.integers(1, 9))
def test_classes_of_one_size_weigh_one(count: int, size: int) -> None:
    np.testing.assert_allclose(class_weights(np.tile(np.arange(count), size), count), np.ones(count), rtol=1e-12)
