"""Closed-form ridge says exactly what refitting without each image, or each group of images, would say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from topwork import probe as room
from topwork.probe import PENALTIES, Factors, Probe, Standardised, factor, neighbours, probe, weights

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXACT = 1e-8
"""Relative to the largest score: float64 on both sides, at condition numbers up to about 1e7."""

STORED = 1e-6
"""Relative: Probe keeps scores and squared errors as float32, whose rounding is 6e-8; the rest is headroom."""

SHAPES = [(40, 1), (40, 7), (41, 39), (40, 40), (40, 41), (12, 60), (2, 3)]
"""(n, d): X'X where n > d, XX' otherwise; both sides of the border."""

Predict = Callable[..., tuple[Floats, Probe]]


def some(n: int, d: int, classes: int = 3, seed: int = 0) -> tuple[NDArray[np.float32], Ints]:
    """Features that say something about the label, on columns of very different mean and scale."""
    rng = np.random.default_rng((seed, n, d))
    labels = rng.permutation(np.arange(n) % classes)
    x = rng.normal(size=(n, d)) + rng.normal(size=(classes, d))[labels]
    return (x * 10.0 ** rng.uniform(-2, 2, d) + rng.uniform(-5, 5, d)).astype(np.float32), labels


def refitted(
    x: NDArray[Any], labels: Ints, classes: int, *, groups: Ints | None = None, penalties: Floats = PENALTIES
) -> Floats:  # (n, L, C)
    """Oracle: for every group, ridge by the normal equations on all other rows, then predict the group.

    The columns' scale and the penalty's unit are those of all rows; both means are those of the rows left.
    """
    x = x.astype(np.float64)
    n, d = x.shape
    groups = np.arange(n) if groups is None else groups
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    unit = (z**2).sum() / d
    one_hot = np.eye(classes)[labels]
    out = np.empty((n, len(penalties), classes))
    for group in np.unique(groups):
        left = groups == group
        z_mean, y_mean = z[~left].mean(axis=0), one_hot[~left].mean(axis=0)
        centred = z[~left] - z_mean
        for k, penalty in enumerate(penalties):
            moments = centred.T @ centred + penalty * unit * np.eye(d)
            w = np.linalg.solve(moments, centred.T @ (one_hot[~left] - y_mean))
            out[left, k] = (z[left] - z_mean) @ w + y_mean
    return out


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch) -> Predict:
    """probe(), with the out-of-sample scores of every penalty in float64, as they were before storing."""

    def run(x: NDArray[Any], labels: Ints, classes: int, **options: Any) -> tuple[Floats, Probe]:
        penalties = options.get("penalties", PENALTIES)
        residuals = np.full((len(x), len(penalties), classes), np.nan)
        compute = room._residuals

        def computed(*given: Any) -> None:
            *inputs, store = given

            def record(ks: slice, rows: Any, r: Floats) -> None:
                if len(inputs[-1]) == len(penalties):  # a second round computes the best penalty alone
                    residuals[rows, ks] = r
                store(ks, rows, r)

            compute(*inputs, record)

        with monkeypatch.context() as patch:
            patch.setattr(room, "_residuals", computed)
            result = probe(x, labels, classes, **options)
        return np.eye(classes)[labels][:, None] - residuals, result

    return run


def assert_same(a: NDArray[Any], b: NDArray[Any], tolerance: float = EXACT) -> None:
    """Within this share of the largest value."""
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


def assert_stored(result: Probe, scores: Floats, labels: Ints) -> None:
    """What the Probe keeps follows from these scores (n, L, C)."""
    n, _, classes = scores.shape
    squared = ((np.eye(classes)[labels][:, None] - scores) ** 2).sum(axis=2)
    np.testing.assert_allclose(result.squared, squared, rtol=STORED, atol=STORED)
    ordered = np.sort(scores, axis=2)
    clear = ordered[..., -1] - ordered[..., -2] > 1e-6  # rounding may turn a tie
    np.testing.assert_array_equal(result.correct[clear], (scores.argmax(axis=2) == labels[:, None])[clear])
    assert clear.mean() > 0.5
    mean = squared.mean(axis=0)
    assert mean[result.best] <= mean.min() * (1 + STORED)
    assert_same(result.scores, scores[:, result.best], STORED)
    assert result.squared.shape == result.correct.shape == (n, len(result.penalties))


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_leave_one_out_is_what_refitting_without_each_image_gives(n: int, d: int, predict: Predict) -> None:
    x, labels = some(n, d, classes=min(3, n))
    scores, result = predict(x, labels, min(3, n))
    expected = refitted(x, labels, min(3, n))
    for k in range(len(PENALTIES)):
        assert_same(scores[:, k], expected[:, k])
    assert_stored(result, expected, labels)


@pytest.mark.parametrize(("n", "d"), [(40, 1), (40, 7), (40, 39), (40, 41), (12, 60)])
def test_leave_group_out_is_what_refitting_without_each_group_gives(n: int, d: int, predict: Predict) -> None:
    """Groups of one to four images, of mixed classes, scattered over the rows, with arbitrary numbers."""
    x, labels = some(n, d)
    rng = np.random.default_rng(n)
    groups = rng.permutation(
        np.repeat([7, -3, 100, 5, 6, 8, 9, 11, 12, 13, 20], [4, 3, 2, 1, 1, 1, 4, 4, 4, 4, 20])[:n]
    )
    scores, result = predict(x, labels, 3, groups=groups)
    expected = refitted(x, labels, 3, groups=groups)
    for k in range(len(PENALTIES)):
        assert_same(scores[:, k], expected[:, k])
    assert_stored(result, expected, labels)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(4, 14), d=st.integers(1, 16), classes=st.integers(2, 4))
def test_any_data_in_any_groups_is_scored_as_by_refitting(data: st.DataObject, n: int, d: int, classes: int) -> None:
    """Also classes of one image and of none, and more features than rows. Stored precision."""
    x, _ = some(n, d, seed=data.draw(st.integers(0, 99)))
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)))
    groups = np.array(data.draw(st.lists(st.integers(0, n), min_size=n, max_size=n)))
    groups[0], groups[1] = -1, -2  # at least two
    penalties = np.array([1e-3, 1.0])
    result = probe(x, labels, classes, groups=groups, penalties=penalties)
    expected = refitted(x, labels, classes, groups=groups, penalties=penalties)
    squared = ((np.eye(classes)[labels][:, None] - expected) ** 2).sum(axis=2)
    # With 2 or 3 rows left and a small penalty, scores of far-off rows reach hundreds.
    assert_same(result.squared, squared, 1e-5)
    assert_same(result.scores, expected[:, result.best], 1e-5)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_groups_of_single_images_are_leave_one_out(n: int, d: int, predict: Predict) -> None:
    x, labels = some(n, d, classes=2)
    alone, _ = predict(x, labels, 2)
    grouped, _ = predict(x, labels, 2, groups=np.random.default_rng(0).permutation(n) * 3 - 50)
    np.testing.assert_array_equal(grouped, alone)


@pytest.mark.parametrize(("n", "d"), [(30, 8), (12, 40)])
def test_a_group_of_one_and_its_formula_agree(
    n: int, d: int, predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single images through the groups' formula, (I - H_II)^-1, give what 1 / (1 - h) gives."""
    x, labels = some(n, d)
    alone, _ = predict(x, labels, 3)
    monkeypatch.setattr(room, "_members", lambda groups, n: [np.array([i]) for i in range(n)])
    grouped, _ = predict(x, labels, 3)
    assert_same(grouped, alone)


@pytest.mark.parametrize(("n", "d"), [(40, 7), (30, 30), (12, 60)])
@pytest.mark.parametrize("grouped", [False, True])
def test_primal_and_dual_agree(n: int, d: int, grouped: bool, predict: Predict) -> None:
    """From X'X = V diag(s) V' or from XX' = U diag(s) U': the same scores and the same head."""
    x, labels = some(n, d)
    groups = np.arange(n) // 3 if grouped else None
    standard = Standardised.of(x)
    u, root, vt = np.linalg.svd(standard(x), full_matrices=False)
    keep = root > 1e-6 * root[0]
    s, unit = root[keep] ** 2, float((root**2).sum() / d)
    primal, dual = Factors(s, vt[keep].T, None, unit, np.ones(n)), Factors(s, None, u[:, keep], unit, np.ones(n))
    scores = [predict(x, labels, 3, groups=groups, standard=standard, factors=f)[0] for f in (primal, dual)]
    assert_same(scores[0], scores[1])
    assert_same(scores[0], predict(x, labels, 3, groups=groups)[0])
    heads = [weights(x, labels, 3, 1e-3, standard, f) for f in (primal, dual)]
    assert_same(heads[0][0], heads[1][0])
    assert_same(heads[0][1], heads[1][1])


@pytest.mark.parametrize(("n", "d"), [(40, 7), (12, 60)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_no_number_is_refused(n: int, d: int, value: float) -> None:
    x, _ = some(n, d)
    x[3, 2] = value
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="infs or NaNs"):
        factor(x, Standardised(np.zeros(d), np.ones(d)))


def test_a_probe_holds_its_own_scores_alone() -> None:
    """Not, by a view, those of every penalty: 15 times as much for each cut of 50,000 images."""
    x, labels = some(40, 7)
    found = probe(x, labels, 3)
    assert found.scores.base is None
    assert found.scores.nbytes == 40 * 3 * 4


def test_many_features_and_few_images_are_exact_too(predict: Predict) -> None:
    """As wide as average, maximum and grid of a 2048-channel cut. Oracle: the dual form on the rows left."""
    n, d, penalty = 24, 8192, PENALTIES[0]
    x, labels = some(n, d)
    scores, _ = predict(x, labels, 3, penalties=np.array([penalty]))
    z = (x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)) / x.std(axis=0, dtype=np.float64)
    one_hot = np.eye(3)[labels]
    for i in range(n):
        left = np.arange(n) != i
        z_mean, y_mean = z[left].mean(axis=0), one_hot[left].mean(axis=0)
        centred = z[left] - z_mean
        kernel = centred @ centred.T + penalty * (z**2).sum() / d * np.eye(n - 1)
        alpha = np.linalg.solve(kernel, one_hot[left] - y_mean)
        assert_same(scores[i, 0], (z[i] - z_mean) @ centred.T @ alpha + y_mean)


@pytest.mark.parametrize(("n", "d"), [(40, 7), (12, 60)])
def test_the_order_of_images_classes_and_features_changes_nothing(n: int, d: int, predict: Predict) -> None:
    x, labels = some(n, d)
    rng = np.random.default_rng(1)
    rows, columns, names = rng.permutation(n), rng.permutation(d), np.array([2, 0, 1])
    groups = np.arange(n) // 2
    for kept in (None, groups):
        scores, result = predict(x, labels, 3, groups=kept)
        moved, again = predict(x[rows][:, columns], names[labels[rows]], 3, groups=None if kept is None else kept[rows])
        assert_same(moved[:, :, names], scores[rows])
        assert again.best == result.best
        np.testing.assert_array_equal(again.correct, result.correct[rows])


@pytest.mark.parametrize(("n", "d"), [(40, 7), (12, 60)])
def test_units_and_offsets_of_features_change_nothing(n: int, d: int, predict: Predict) -> None:
    x, labels = some(n, d)
    scores, _ = predict(x, labels, 3)
    # In float64: rounding the moved features to float32 would itself be a change.
    moved, _ = predict(x.astype(np.float64) * np.linspace(-3, 7, d) + 2, labels, 3)
    assert_same(moved, scores)


@pytest.mark.parametrize(("n", "d"), [(30, 8), (20, 40), (10, 15)])
def test_copies_of_every_image_in_one_group_each_change_nothing(n: int, d: int, predict: Predict) -> None:
    """(2 X'X + 2 lambda)^-1 2 X'Y: leaving both copies out is leaving the one image out of the plain set."""
    x, labels = some(n, d)
    scores, _ = predict(x, labels, 3)
    twice, _ = predict(np.concatenate([x, x]), np.tile(labels, 2), 3, groups=np.tile(np.arange(n), 2))
    assert_same(twice[:n], scores)
    assert_same(twice[n:], scores)


def test_copies_in_different_groups_leak() -> None:
    """What groups are for: of labels by chance, a copy left in tells the answer."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 60)).astype(np.float32), rng.integers(0, 2, 40)
    x, labels = np.concatenate([x, x]), np.tile(labels, 2)
    apart = probe(x, labels, 2, groups=np.tile(np.arange(40), 2))
    leaking = probe(x, labels, 2)
    assert leaking.correct[:, leaking.best].mean() == 1
    assert apart.correct[:, apart.best].mean() < 0.75


@pytest.mark.parametrize(("n", "d", "constant"), [(40, 7, 5), (40, 7, 100), (12, 60, 3)])
def test_constant_features_count_in_the_penaltys_unit_alone(n: int, d: int, constant: int, predict: Predict) -> None:
    """Also where they turn the primal form into the dual one, and where rounding of the mean makes them vary."""
    x, labels = some(n, d)
    flat = np.broadcast_to(np.linspace(-1, 1000.1, constant, dtype=np.float32), (n, constant))
    with_them = np.concatenate([x, flat], axis=1)
    scores, _ = predict(x, labels, 3)
    same, _ = predict(with_them, labels, 3, penalties=PENALTIES * (d + constant) / d)
    assert_same(same, scores)


@pytest.mark.parametrize(("n", "d"), [(9, 4), (9, 20)])
def test_without_any_varying_feature_the_shares_of_the_other_images_remain(n: int, d: int) -> None:
    labels = np.arange(n) % 2
    result = probe(np.full((n, d), 3.25, np.float32), labels, 2)
    others = (np.bincount(labels) - np.eye(2)[labels]) / (n - 1)
    np.testing.assert_allclose(result.scores, others, atol=STORED)


@pytest.mark.parametrize(("n", "d"), [(40, 7), (12, 60)])
def test_an_endless_penalty_leaves_the_shares_of_the_other_images(n: int, d: int) -> None:
    x, labels = some(n, d)
    result = probe(x, labels, 3, penalties=np.array([1e12]))
    others = (np.bincount(labels) - np.eye(3)[labels]) / (n - 1)
    np.testing.assert_allclose(result.scores, others, atol=STORED)


@pytest.mark.parametrize(("n", "d"), [(30, 6), (12, 40)])
def test_an_image_that_alone_has_a_feature_is_scored_without_it(n: int, d: int, predict: Predict) -> None:
    """Its leverage is within 1e-4 of 1 at the smallest penalty; left out, the feature is constant."""
    x, labels = some(n, d)
    x[:, 0] = 0
    x[4, 0] = 50
    scores, _ = predict(x, labels, 3)
    assert_same(scores, refitted(x, labels, 3))
    without, _ = predict(np.delete(x, 0, axis=1), labels, 3)  # the unit is the same: 1 for each column
    assert_same(scores[4], without[4])


@pytest.mark.parametrize(("n", "d"), [(30, 6), (12, 40)])
def test_full_leverage_gives_finite_scores(n: int, d: int) -> None:
    """Without a penalty, an image that alone has a feature (or any, where n <= d) is interpolated."""
    x, labels = some(n, d)
    x[:, 0] = 0
    x[4, 0] = 50
    for groups in (None, np.arange(n) // 2):
        result = probe(x, labels, 3, groups=groups, penalties=np.array([0.0]))
        assert np.isfinite(result.scores).all()
        assert np.isfinite(result.squared).all()


@pytest.mark.parametrize(("n", "d"), [(25, 6), (12, 40)])
def test_the_only_image_of_its_class_scores_0_there_and_is_never_right(n: int, d: int, predict: Predict) -> None:
    x, labels = some(n, d, classes=2)
    labels[3] = 2
    scores, result = predict(x, labels, 3)
    assert_same(scores[3, :, 2], np.zeros(len(PENALTIES)))
    assert not result.correct[3].any()


@pytest.mark.parametrize(("n", "d"), [(40, 7), (12, 60)])
def test_scores_of_an_image_sum_to_one(n: int, d: int, predict: Predict) -> None:
    """One-hot targets do, and ridge is linear in them."""
    x, labels = some(n, d)
    scores, _ = predict(x, labels, 3, groups=np.arange(n) // 2)
    np.testing.assert_allclose(scores.sum(axis=2), 1, atol=EXACT)


WIDE = 101  # classes; times 20,001 images: just over the bound below which scores of every penalty are kept


def many() -> tuple[NDArray[np.float32], Ints]:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 20_001)
    return (rng.normal(size=(20_001, 4)) + np.eye(3, 4)[labels]).astype(np.float32), labels


@pytest.mark.parametrize(
    "penalties",
    [
        np.array([1e-3, 1.0, 1e2]),
        np.array([1.0]),
    ],
    ids=["a path", "one penalty"],
)
def test_too_many_scores_to_keep_for_every_penalty_are_still_exact(penalties: Floats) -> None:
    """Classes without any image only add columns of 0: three classes of the same labels are the oracle."""
    x, labels = many()
    groups = np.arange(len(x))
    groups[:9] = [0, 0, 0, 3, 3, 5, 5, 5, 5]
    few = probe(x, labels, 3, groups=groups, penalties=penalties)
    assert len(x) * 3 < 2_000_000 < len(x) * WIDE
    result = probe(x, labels, WIDE, groups=groups, penalties=penalties)
    assert result.best == few.best
    assert_same(result.squared, few.squared, STORED)
    np.testing.assert_array_equal(result.correct, few.correct)
    assert_same(result.scores[:, :3], few.scores, STORED)
    assert_same(result.scores[:, 3:], np.zeros((len(x), WIDE - 3)), STORED)


@pytest.mark.parametrize(("n", "d"), [(40, 7), (12, 60)])
@pytest.mark.parametrize("chunk", [1, 7])
def test_by_chunks_of_rows_is_the_same_as_whole(
    n: int, d: int, chunk: int, predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels = some(n, d)
    groups = np.arange(n) // 3
    standard = Standardised.of(x)
    scores, result = predict(x, labels, 3, groups=groups)
    w, b = weights(x, labels, 3, 0.01, standard, factor(x, standard))
    monkeypatch.setattr(room, "CHUNK", chunk)
    by_parts = Standardised.of(x)
    np.testing.assert_allclose(by_parts.mean, standard.mean, rtol=1e-12)
    np.testing.assert_allclose(by_parts.scale, standard.scale, rtol=1e-12)
    chunked, again = predict(x, labels, 3, groups=groups)
    assert_same(chunked, scores)
    assert again.best == result.best
    w_by_parts, b_by_parts = weights(x, labels, 3, 0.01, by_parts, factor(x, by_parts))
    assert_same(w_by_parts, w)
    assert_same(b_by_parts, b)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("penalty", [PENALTIES[0], 0.1, PENALTIES[-1]])
def test_the_head_is_the_direct_solution(n: int, d: int, penalty: float) -> None:
    """(Z'Z + lambda I) W = Z'Y with unpenalised intercept, on images that the fit has not seen."""
    x, labels = some(n, d, classes=2)
    standard = Standardised.of(x)
    w, b = weights(x, labels, 2, penalty, standard, factor(x, standard))
    z = (x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)) / x.std(axis=0, dtype=np.float64)
    y = np.eye(2)[labels]
    direct = np.linalg.solve(z.T @ z + penalty * (z**2).sum() / d * np.eye(d), z.T @ (y - y.mean(axis=0)))
    new, _ = some(5, d, seed=9)
    moved = (new - x.mean(axis=0, dtype=np.float64)) / x.std(axis=0, dtype=np.float64)
    assert_same(standard(new) @ w + b, moved @ direct + y.mean(axis=0))


def test_the_penalty_with_the_least_squared_error_is_chosen() -> None:
    """Noise wants much shrinkage, a clear signal little."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    noise = rng.normal(size=(60, 20)).astype(np.float32)
    signal = noise * 0.01 + np.where(labels, 1, -1)[:, None]
    for x in (noise, signal):
        result = probe(x, labels, 2)
        expected = ((refitted(x, labels, 2) - np.eye(2)[labels][:, None]) ** 2).sum(axis=2).mean(axis=0)
        assert result.best == expected.argmin()
    assert probe(noise, labels, 2).best > probe(signal, labels, 2).best


def test_features_that_are_not_numbers_are_refused() -> None:
    x, labels = some(20, 5)
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"(?i)nan"):
        probe(x, labels, 3)


def test_standardised_columns_have_mean_0_and_variance_1() -> None:
    """Of float32 columns with a large mean: the moments are float64, in two passes."""
    x = np.random.default_rng(0).normal([0, 1e3, -1e4], size=(9000, 3)).astype(np.float32)
    z = Standardised.of(x)(x)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(z.var(axis=0), 1, rtol=1e-9)


def test_a_column_that_hardly_varies_is_0_everywhere_also_for_other_images() -> None:
    x = np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]], np.float32)
    standard = Standardised.of(x)
    assert standard.scale[1] == np.inf
    np.testing.assert_array_equal(standard(np.array([[3.0, 1e6]], np.float32))[:, 1], 0)


def test_one_ulp_of_float16_in_one_of_many_images_varies() -> None:
    """The least that stored features can differ by: 1/1024 of the value, in one image of ten thousand."""
    x = np.full((10_000, 1), 1.0, np.float16)
    x[0] = np.nextafter(x[0], np.float16(2))
    assert np.isfinite(Standardised.of(x.astype(np.float32)).scale).all()


@pytest.mark.parametrize("k", [1, 5, 100])
def test_neighbours_vote_as_sorted_cosines_say(k: int) -> None:
    """Oracle: sort the others by cosine of standardised features; most votes, ties to the more similar."""
    x, labels = some(50, 6)
    z = (x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)) / x.std(axis=0, dtype=np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    right = 0
    for i in range(len(x)):
        others = np.delete(np.arange(len(x)), i)
        nearest = others[np.argsort(-(z[others] @ z[i]))][:k]
        votes = [(np.sum(labels[nearest] == c), (z[nearest[labels[nearest] == c]] @ z[i]).sum()) for c in range(3)]
        right += max(range(3), key=votes.__getitem__) == labels[i]
    assert neighbours(x, labels, k=k) == pytest.approx(right / len(x))


def test_neighbours_of_many_images_are_sampled_the_same_way_each_time() -> None:
    x, labels = some(200, 4)
    assert neighbours(x, labels, most=50) == neighbours(x, labels, most=50)
    values = {neighbours(x, labels, most=50, seed=seed) for seed in range(5)}
    assert len(values) > 1
    assert neighbours(x, labels, most=200) == neighbours(x, labels)


def test_neighbours_find_clusters_and_do_not_count_the_image_itself() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    clusters = (rng.normal(size=(40, 3)) * 0.1 + np.where(labels, 1, -1)[:, None]).astype(np.float32)
    assert neighbours(clusters, labels) == 1
    assert neighbours(clusters, np.arange(40), k=1) == 0


def weighed(x: NDArray[Any], labels: Ints, classes: int, importance: Floats, penalties: Floats) -> Floats:
    """Oracle: for each image, weighted ridge on all others, from scratch; scores (n, L, C)."""
    n, d = x.shape
    mean = importance @ x / n
    scale = np.sqrt(importance @ (x - mean) ** 2 / n)
    z, one_hot = (x - mean) / scale, np.eye(classes)[labels]
    unit = float(importance @ (z**2).sum(axis=1)) / d
    out = np.empty((n, len(penalties), classes))
    for i in range(n):
        left = np.arange(n) != i
        a = importance[left, None]
        z_mean, y_mean = (a * z[left]).sum(axis=0) / a.sum(), (a * one_hot[left]).sum(axis=0) / a.sum()
        centred = z[left] - z_mean
        for k, penalty in enumerate(penalties):
            moments = centred.T @ (a * centred) + penalty * unit * np.eye(d)
            w = np.linalg.solve(moments, centred.T @ (a * (one_hot[left] - y_mean)))
            out[i, k] = (z[i] - z_mean) @ w + y_mean
    return out


@pytest.mark.parametrize(("n", "d"), [(40, 7), (30, 30), (12, 60)])
def test_leave_one_out_of_images_that_weigh_differently_is_exact(n: int, d: int, predict: Predict) -> None:
    x, labels = some(n, d)
    importance = np.random.default_rng(5).uniform(0.2, 3, n)
    importance *= n / importance.sum()
    scores, result = predict(x, labels, 3, importance=importance)
    assert_same(scores, weighed(x.astype(np.float64), labels, 3, importance, PENALTIES))
    squared = (importance[:, None] * result.squared).mean(axis=0)
    assert squared[result.best] <= squared.min() * (1 + STORED)


@pytest.mark.parametrize(("n", "d"), [(40, 7), (12, 60)])
def test_an_image_of_twice_the_weight_is_as_good_as_two(n: int, d: int) -> None:
    """The same head, whether an image is there twice or counts twice (weights of mean 1; the penalty scales along)."""
    x, labels = some(n, d)
    doubled = np.concatenate([np.arange(n), [0, 1, 2]])
    counts = np.bincount(doubled, minlength=n).astype(np.float64)
    importance = counts * n / counts.sum()
    standard, twice = Standardised.of(x, importance), Standardised.of(x[doubled])
    assert_same(standard.mean, twice.mean)
    assert_same(standard.scale, twice.scale)
    one = weights(x, labels, 3, 0.01, standard, factor(x, standard, importance))
    other = weights(x[doubled], labels[doubled], 3, 0.01, twice, factor(x[doubled], twice))
    assert_same(one[0], other[0], 1e-7)  # float32 features; the sums run in another order
    assert_same(one[1], other[1])
