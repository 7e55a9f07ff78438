"""Folds that are fitted beside each other are logistic regression, each on its own rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from topwork import head as heads
from topwork import logistic
from topwork.logistic import BIG, Fit, walk
from topwork.probe import Standardised, factor, probe

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PENALTIES = np.array([1.0, 0.1, 0.01])


@pytest.fixture
def to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits go on until single precision ends them."""
    monkeypatch.setattr(logistic, "FLAT", 0.0)
    monkeypatch.setattr(logistic, "STEEP", 1e-7)


class World:
    """n images of d features in the coordinates of a probe, in folds."""

    def __init__(self, n: int = 60, d: int = 8, classes: int = 3, seed: int = 0, signal: float = 1.0) -> None:
        rng = np.random.default_rng((seed, n, d))
        self.labels = rng.permutation(np.arange(n) % classes)
        self.x = (rng.normal(size=(n, d)) + signal * rng.normal(size=(classes, d))[self.labels]).astype(np.float32)
        self.standard = Standardised.of(self.x)
        self.factors = factor(self.x, self.standard)
        self.u = heads._left(self.x, self.standard, self.factors)
        self.s, self.classes = self.factors.s, classes
        self.fold = heads.folds(self.labels, None, seed)
        self.inside = (self.fold != np.arange(heads.FOLDS)[:, None]).astype(np.float64)

    def walked(self, importance: Floats, labels: Any = None, **options: Any) -> list[Fit]:
        unit = self.factors.unit * (importance > 0).mean(axis=1)
        given = self.labels if labels is None else labels
        return list(walk(self.u, self.s, given, self.classes, importance, unit, PENALTIES, **options))


SHAPES = [(60, 8), (40, 90)]


@pytest.mark.usefixtures("to_the_end")
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_each_fold_is_scikit_learns_fit_of_its_rows(n: int, d: int) -> None:
    w = World(n, d)
    z = w.standard(w.x)
    for penalty, found in zip(PENALTIES, w.walked(w.inside), strict=True):
        for f in range(heads.FOLDS):
            train = w.fold != f
            strength = penalty * w.factors.unit * train.mean()
            theirs = LogisticRegression(C=1 / strength, tol=1e-9, max_iter=20_000).fit(z[train], w.labels[train])
            mine = softmax(found.logits(f, w.u, w.s), axis=1)
            np.testing.assert_allclose(mine, theirs.predict_proba(z), atol=2e-4)


@pytest.mark.parametrize("several", [False, True])
def test_folds_beside_each_other_are_what_they_are_alone(several: bool) -> None:
    """None of them sees the others: what differs is the rounding of a wider product."""
    w = World()
    labels = np.eye(3, dtype=bool)[w.labels] | (np.arange(60)[:, None] % 7 == np.arange(3)) if several else None
    together = w.walked(w.inside, labels)
    for f in range(heads.FOLDS):
        for beside, alone in zip(together, w.walked(w.inside[[f]], labels), strict=True):
            np.testing.assert_allclose(beside.logits(f, w.u, w.s), alone.logits(0, w.u, w.s), atol=5e-3)


@pytest.mark.usefixtures("to_the_end")
def test_where_it_starts_makes_no_difference() -> None:
    w = World()
    far = w.walked(w.inside)[-1]
    unit = w.factors.unit * w.inside.mean(axis=1)
    rng = np.random.default_rng(0)
    near = rng.normal(size=(w.u.shape[1], 3)), rng.normal(size=3)
    (again,) = walk(w.u, w.s, w.labels, 3, w.inside, unit, PENALTIES[-1:], near)
    for f in range(heads.FOLDS):
        mine, theirs = (softmax(found.logits(f, w.u, w.s), axis=1) for found in (again, far))
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


@pytest.mark.usefixtures("to_the_end")
def test_rows_that_weigh_two_are_two_rows() -> None:
    w = World()
    weight = np.where(np.arange(60) % 3 == 0, 2.0, 1.0)
    rows = np.repeat(np.arange(60), weight.astype(int))
    unit = np.array([w.factors.unit])
    weighed = list(walk(w.u, w.s, w.labels, 3, weight[None], unit, PENALTIES))
    twice = list(walk(w.u[rows], w.s, w.labels[rows], 3, np.ones((1, len(rows))), unit, PENALTIES))
    for one, other in zip(weighed, twice, strict=True):
        mine, theirs = (softmax(found.logits(0, w.u, w.s), axis=1) for found in (one, other))
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


def test_a_class_without_a_row_in_a_fold_is_never_predicted_there_and_others_are_fitted_without_it() -> None:
    w = World()
    labels = np.where(w.labels == 2, 0, w.labels)
    labels[7] = 2  # the only one
    found = w.walked(w.inside, labels)[-1]
    without = np.delete(np.arange(60), 7)
    for f in range(heads.FOLDS):
        logits = found.logits(f, w.u, w.s)
        if w.fold[7] == f:
            assert (logits[:, 2] <= logits[:, :2].max(axis=1) - BIG / 2).all()
            np.testing.assert_array_equal(found.weight[f, :, 2], 0)
        else:
            assert softmax(logits[7])[2] > softmax(logits[without], axis=1)[:, 2].mean()


@pytest.mark.parametrize("all_of_them", [False, True])
def test_a_label_that_no_row_has_or_every_one_has_its_share_for_all(all_of_them: bool) -> None:
    """It is no certainty: of n alike, one more that is not is counted."""
    w = World()
    truth = np.eye(3, dtype=bool)[w.labels]
    truth[:, 1] = all_of_them
    found = w.walked(np.ones((1, 60)), truth)[-1]
    share = expit(found.logits(0, w.u, w.s)[:, 1])
    np.testing.assert_allclose(share, 61 / 62 if all_of_them else 1 / 62, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), folds=st.integers(1, 4), size=st.integers(1, 12), spread=st.floats(0, 1.5))
def test_the_lowest_point_of_any_bowl_is_found(seed: int, folds: int, size: int, spread: float) -> None:
    """Quadratics, one for each fold, of curvatures from 10^-spread to 10^spread; one that is there is asked no more."""
    rng = np.random.default_rng(seed)
    bowls, lowest = [], rng.normal(size=(folds, size))
    for _ in range(folds):
        q, _ = np.linalg.qr(rng.normal(size=(size, size)))
        bowls.append(q @ np.diag(10 ** rng.uniform(-spread, spread, size)) @ q.T)
    start = rng.normal(size=(folds, size))
    start[0] = lowest[0]
    asked: list[Ints] = []

    def loss(x: Floats, active: Ints) -> tuple[Floats, Floats]:
        asked.append(active)
        away = x - lowest[active]
        gradient = np.einsum("aij,aj->ai", np.stack([bowls[a] for a in active]), away)
        return np.einsum("ai,ai->a", gradient, away) / 2, gradient

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logistic, "FLAT", 0.0)
        found = logistic._minimised(loss, start, np.ones(folds, dtype=np.int64))
    assert np.array_equal(asked[0], np.arange(folds))
    assert all(0 not in active for active in asked[1:])
    value, _ = loss(found, np.arange(folds))
    assert (value <= 1e-5).all()  # where no part of the gradient exceeds 1e-4, at curvatures of 0.03 and more


@pytest.mark.usefixtures("to_the_end")
@pytest.mark.parametrize("several", [False, True])
def test_folds_in_several_products_and_threads_give_the_same_head(
    several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = World(90, 8, signal=0.5)
    labels: Any = np.eye(3, dtype=bool)[w.labels] if several else w.labels
    strata = w.labels if several else None

    def fitted() -> heads.Head:
        return heads.fit(w.x, labels, 3, probe(w.x, labels, 3), groups=None, seed=0, strata=strata)

    whole = fitted()
    monkeypatch.setattr(heads, "SMALL", 0)
    threads = fitted()
    monkeypatch.setattr(heads, "BESIDE", 1)
    one_by_one = fitted()
    for other in (threads, one_by_one):
        assert other.facts.kind == whole.facts.kind
        assert other.loss.shape == whole.loss.shape
        np.testing.assert_allclose(other.loss, whole.loss, atol=5e-3)
        np.testing.assert_allclose(other.scores, whole.scores, atol=5e-3)
