"""Whether what the training images look like is kept, and found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from topwork.errors import DataError
from topwork.known import FILE, Known, sample


def features(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 6)) @ rng.normal(size=(6, d)) + rng.normal(size=(n, d))).astype(np.float32)


def test_the_nearest_are_those_of_a_search_through_all() -> None:
    x, new = features(70, 40), features(9, 40, seed=1)
    known = Known.of(x)
    rows, similarity = known.nearest(new, 5)
    all_of_them = known.reduced(new) @ known.features.astype(np.float32).T
    assert rows.tolist() == np.argsort(-all_of_them, axis=1, kind="stable")[:, :5].tolist()
    np.testing.assert_allclose(similarity, np.sort(all_of_them, axis=1)[:, ::-1][:, :5], rtol=1e-6)


def test_an_image_is_nearest_to_itself_and_more_neighbours_than_images_are_all_of_them() -> None:
    x = features(12, 30)
    rows, similarity = Known.of(x).nearest(x, 50)
    assert rows.shape == (12, 12)
    assert rows[:, 0].tolist() == list(range(12))
    assert similarity[:, 0] == pytest.approx(1, abs=1e-3)
    assert np.all(np.diff(similarity, axis=1) <= 0)


def test_images_of_a_group_do_not_vouch_for_each_other() -> None:
    x = features(40, 30)
    twice = np.concatenate([x, x, x + 1e-4])
    groups = np.tile(np.arange(40), 3)
    known = Known.of(twice)
    assert np.all(known.apart(np.arange(120)) < 0.01)
    assert np.median(known.apart(groups)) > 0.1
    one = Known.of(x).apart(np.zeros(40, dtype=np.int64))
    assert one.tolist() == [1.0] * 40  # nobody is left to vouch


def test_what_was_saved_says_the_same(tmp_path: Path) -> None:
    known, new = Known.of(features(30, 50)), features(5, 50, seed=2)
    known.save(tmp_path)
    again = Known.load(tmp_path)
    assert again is not None
    assert again.scores(new).tolist() == known.scores(new).tolist()
    assert again.nearest(new, 3)[0].tolist() == known.nearest(new, 3)[0].tolist()


def test_a_model_without_it_has_none_and_a_damaged_one_says_so(tmp_path: Path) -> None:
    assert Known.load(tmp_path) is None
    Known.of(features(10, 8)).save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"known\.safetensors: damaged"):
        Known.load(tmp_path)


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
