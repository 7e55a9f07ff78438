"""Whether what the training images look like is kept, and found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from topwork.errors import DataError
from topwork.known import FILE, FOLDED, SHRINKAGE, Known, sample


def features(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 6)) @ rng.normal(size=(6, d)) + rng.normal(size=(n, d))).astype(np.float32)


def test_the_nearest_are_those_of_a_search_through_all() -> None:
    x, new = features(70, 40), features(9, 40, seed=1)
    known = Known.of(x)
    rows, similarity = known.nearest(new, 5)
    one = known.folded(new)
    all_of_them = one / np.linalg.norm(one, axis=1, keepdims=True) @ known.features.astype(np.float32).T
    assert rows.tolist() == np.argsort(-all_of_them, axis=1, kind="stable")[:, :5].tolist()
    np.testing.assert_allclose(similarity, np.sort(all_of_them, axis=1)[:, ::-1][:, :5], rtol=1e-5)


def test_an_image_is_nearest_to_itself_and_more_neighbours_than_images_are_all_of_them() -> None:
    x = features(12, 30)
    rows, similarity = Known.of(x).nearest(x, 50)
    assert rows.shape == (12, 12)
    assert rows[:, 0].tolist() == list(range(12))
    assert similarity[:, 0] == pytest.approx(1, abs=1e-3)
    assert np.all(np.diff(similarity, axis=1) <= 0)


def test_folding_adds_or_takes_every_standardised_feature_once() -> None:
    x = features(20, 700)
    known = Known.of(x)
    by_hand = np.zeros((20, FOLDED))
    for j in range(700):
        by_hand[:, known.place[j]] += known.sign[j] * (x[:, j] - x[:, j].mean()) / x[:, j].std()
    np.testing.assert_allclose(known.folded(x), by_hand, atol=1e-4)


def test_the_score_is_the_distance_from_the_middle_by_the_shrunk_covariance() -> None:
    x, new = features(50, 30), features(8, 30, seed=1)
    known = Known.of(x)
    f, g = known.folded(x).astype(np.float64), known.folded(new)
    covariance = np.cov(f.T)
    covariance += SHRINKAGE * np.trace(covariance) / 30 * np.eye(30)
    apart = g - f.mean(axis=0)
    by_hand = np.sqrt(np.einsum("ij,jk,ik->i", apart, np.linalg.inv(covariance), apart) / 30)
    np.testing.assert_allclose(known.scores(new), by_hand, rtol=1e-3)


def test_the_farther_from_the_middle_the_stranger() -> None:
    x = features(50, 30)
    known = Known.of(x)
    away = x.mean(axis=0) + np.linspace(0, 9, 10)[:, None].astype(np.float32) * (x[0] - x.mean(axis=0))
    assert np.all(np.diff(known.scores(away)) > 0)


def test_an_image_is_judged_by_those_of_other_folds_alone() -> None:
    x = features(60, 30)
    x[:12] += 5 * features(1, 30, seed=3)  # one scene, unlike all else
    fold = np.arange(60) // 12
    known = Known.of(x)
    apart = known.apart(x, fold)
    assert apart[:12].min() > 1.3 * known.scores(x)[:12].max()  # its photos do not vouch for each other
    alone = Known.of(x[12:])
    rest = Known(
        known.mean, known.scale, known.place, known.sign, *_of(known.folded(x[12:])), known.features
    )  # the same folding, of the other folds alone
    np.testing.assert_allclose(apart[:12], rest.scores(x[:12]), rtol=1e-3)
    assert alone.features.shape == (48, 30)
    assert known.apart(x, np.zeros(60, dtype=np.int64)).tolist() == [1.0] * 60  # nobody is left to vouch


def _of(folded: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    covariance = np.cov(folded.astype(np.float64).T)
    covariance += SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    white = np.linalg.inv(np.linalg.cholesky(covariance)).T
    return folded.mean(axis=0), white.astype(np.float32)


def test_what_was_saved_says_the_same(tmp_path: Path) -> None:
    known, new = Known.of(features(30, 50)), features(5, 50, seed=2)
    known.save(tmp_path)
    again = Known.load(tmp_path, 50)
    assert again is not None
    assert again.scores(new).tolist() == known.scores(new).tolist()
    assert again.nearest(new, 3)[0].tolist() == known.nearest(new, 3)[0].tolist()


def test_a_model_without_it_has_none_and_a_damaged_one_says_so(tmp_path: Path) -> None:
    assert Known.load(tmp_path, 8) is None
    Known.of(features(10, 8)).save(tmp_path)
    with pytest.raises(DataError, match=r"known\.safetensors: mean is \(8,\), expected \(9,\)"):
        Known.load(tmp_path, 9)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"known\.safetensors: damaged"):
        Known.load(tmp_path, 8)


@pytest.mark.parametrize("x", [np.zeros((6, 4)), np.ones((1, 4)), np.tile(np.arange(4.0), (5, 1))])
def test_features_that_do_not_differ_end_nothing(x: NDArray[np.float64]) -> None:
    known = Known.of(x.astype(np.float32))
    assert np.isfinite(known.scores(x.astype(np.float32) + 1)).all()


def test_a_sample_has_every_class_and_its_share() -> None:
    labels = np.repeat([0, 1, 2], [900, 99, 1])
    rows = sample(labels, 100)
    assert len(rows) == 100
    assert np.all(np.diff(rows) > 0)
    assert np.bincount(labels[rows]).tolist() == pytest.approx([90, 10, 1], abs=2)
    assert sample(labels, 5000).tolist() == list(range(1000))
