"""Whether what is promised of images that the model has not seen is kept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from topwork.answers import Rule, among, answer
from topwork.errors import ImageError, UsageError
from topwork.records import SCHEMA, Estimate, ModelFacts, Preprocessing
from topwork.statistics import percent, promised
from topwork.trust import FALSE_ALARM, LEVELS, bounds, coverage, sets, unknown

FOLDS = 5


def fake_facts(classes: tuple[str, ...], **more: Any) -> ModelFacts:
    """A model's facts, of which only what is asked here counts."""
    pixels = Preprocessing(64, 64, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    estimate = Estimate(0.9, 0.8, 1.0, 10, "test folder")
    return ModelFacts(
        SCHEMA, "0", "net", "0" * 16, "cut", ("cut",), pixels, classes, 1.0, 4, "ridge", 0.5, estimate, {}, **more
    )


def seen(n: int, rng: np.random.Generator, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of images of one kind."""
    labels = rng.integers(0, classes, n)
    scores = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    return softmax(scores, axis=1), labels


# ---- the promise itself


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.integers(0, 100))
def test_the_promised_score_is_that_of_the_conformal_rank(scores: list[float], share: int) -> None:
    values = promised(np.array(scores))
    rank = max(1, math.ceil((len(scores) + 1) * share / 100 - 1e-9))
    assert values[share] == (sorted(scores)[rank - 1] if rank <= len(scores) else math.inf)
    assert np.all(values[1:] >= values[:-1])


@pytest.mark.parametrize(("share", "place"), [(0.9, 90), (0.905, 91), (1 - 0.05, 95), (0.29, 29), (0.999, 100)])
def test_a_share_is_taken_at_the_whole_percent_that_is_at_least_it(share: float, place: int) -> None:
    assert percent(share) == place


@pytest.mark.parametrize("n", [30, 99, 400])
def test_one_more_image_stays_below_as_often_as_promised(n: int) -> None:
    """Over many draws of everything: at least as often, and by no more than 1 / (n + 1) more often."""
    rng = np.random.default_rng(n)
    draws = rng.gumbel(size=(4000, n + 1))
    for share in (0.8, 0.95):
        kept = np.mean([d[-1] <= promised(d[:-1])[percent(share)] for d in draws])
        error = 4 * math.sqrt(share * (1 - share) / len(draws))
        assert share - error <= kept <= share + 1 / (n + 1) + error


def test_images_that_belong_together_count_as_one() -> None:
    rng = np.random.default_rng(0)
    scores = rng.gumbel(size=50)
    each = np.arange(50)
    assert promised(scores, each).tolist() == promised(scores).tolist()
    assert promised(np.repeat(scores, 3), np.repeat(each, 3)).tolist() == promised(scores).tolist()
    # One scene of a thousand photos does not outweigh 49 of one.
    many = np.repeat(scores, np.where(each == 0, 1000, 1))
    assert promised(many, np.repeat(each, np.where(each == 0, 1000, 1))).tolist() == promised(scores).tolist()


# ---- none of these


def test_false_alarms_are_as_many_as_were_asked_for() -> None:
    rng = np.random.default_rng(0)
    found = [unknown(rng.gumbel(size=200), np.arange(200) % FOLDS, method="distance", on="x", independent=200)
             for _ in range(200)]  # fmt: skip
    shares = [u.measured.value for u in found if u is not None]
    assert len(shares) == 200
    assert np.mean(shares) == pytest.approx(FALSE_ALARM, abs=0.01)
    rates = [(rng.gumbel(size=500) > u.threshold).mean() for u in found if u is not None]
    assert np.mean(rates) == pytest.approx(FALSE_ALARM, abs=0.006)


def test_locked_images_judge_a_threshold_that_they_did_not_set() -> None:
    scores, locked = np.linspace(0, 1, 100), np.array([0.5, 0.96, 2.0, 0.1])
    u = unknown(scores, np.arange(100) % FOLDS, locked, method="distance", on="test folder", independent=3.0)
    assert u is not None
    assert u.threshold == u.quantiles[95] == sorted(scores)[95]
    assert (u.measured.value, u.measured.n, u.measured.on) == (0.5, 4, "test folder")
    assert u.n == 100


def test_a_fold_does_not_set_its_own_threshold() -> None:
    """One fold lies far out: each of its images is above what the others allow, and none of the others is."""
    scores, fold = np.concatenate([np.linspace(0, 1, 80), np.full(20, 9.0)]), np.repeat(np.arange(5), 20)
    u = unknown(scores, fold, method="distance", on="x", independent=100)
    assert u is not None
    assert u.measured.value == pytest.approx(0.2)


@pytest.mark.parametrize(("n", "told"), [(18, False), (19, True)])
def test_too_few_images_promise_no_threshold(n: int, told: bool) -> None:
    scores = np.arange(float(n))
    u = unknown(scores, np.arange(n) % FOLDS, method="distance", on="x", independent=n)
    assert (u is not None) == told
    if u is not None:
        assert all(math.isfinite(q) for q in u.quantiles)


# ---- prediction sets


@pytest.mark.parametrize("groups", [1, 4])
def test_sets_hold_as_often_as_promised(groups: int) -> None:
    """Judged on folds that did not set them, and on new images: at every level, over many draws of all images."""
    rng = np.random.default_rng(groups)
    crossed, fresh = [], []
    for _ in range(60):
        p, labels = seen(240 // groups, rng)
        p, labels = np.repeat(p, groups, axis=0), np.repeat(labels, groups)
        fold = np.arange(240) // groups % FOLDS  # what belongs together is on one side
        found = sets(p, labels, fold, groups=np.arange(240) // groups, on="x", independent=240 / groups)
        crossed.append([c.covered.value for c in found.coverage])
        fresh.append([c.covered.value for c in coverage(found, *seen(400, rng), on="y", independent=400)])
    for measured in (np.mean(crossed, axis=0), np.mean(fresh, axis=0)):
        assert np.all(measured >= np.array(LEVELS) - 0.012)
        assert np.all(measured <= np.array(LEVELS) + 0.02 + groups / 240)


def test_higher_levels_take_more_classes_and_no_set_is_empty() -> None:
    p, labels = seen(300, np.random.default_rng(0))
    found = sets(p, labels, np.arange(300) % FOLDS, on="x", independent=300)
    sizes = [c.size for c in found.coverage]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 1
    assert among(p, 0.0).sum(axis=1).tolist() == [1] * 300
    assert np.all(among(p, 0.0).argmax(axis=1) == p.argmax(axis=1))


def test_too_few_images_for_a_level_take_all_classes() -> None:
    p, labels = seen(40, np.random.default_rng(0))
    found = sets(p, labels, np.arange(40) % FOLDS, on="x", independent=40)
    last = found.coverage[-1]
    assert (last.level, last.covered.value, last.size) == (0.99, 1.0, 6.0)
    assert found.quantiles[99] == 1.0
    assert bounds(np.zeros(0)).tolist() == [1.0] * 101


def test_one_fold_alone_takes_all_classes() -> None:
    p, labels = seen(12, np.random.default_rng(0))
    found = sets(p, labels, np.zeros(12, dtype=np.int64), on="x", independent=12)
    assert {c.size for c in found.coverage} == {6.0}


def test_locked_images_judge_sets_that_they_did_not_set() -> None:
    rng = np.random.default_rng(0)
    p, labels = seen(200, rng)
    locked = seen(50, rng)
    found = sets(p, labels, np.arange(200) % FOLDS, locked, on="test folder", independent=50)
    assert found.coverage == coverage(found, *locked, on="test folder", independent=50)
    assert found.n == 200


# ---- answers


def trusting(n: int = 200, classes: tuple[str, ...] = ("a", "b", "c")) -> ModelFacts:
    rng = np.random.default_rng(0)
    fold = np.arange(n) % FOLDS
    u = unknown(np.linspace(0, 2, n), fold, method="distance", on="x", independent=n)
    return fake_facts(classes, unknown=u, sets=sets(*seen(n, rng, len(classes)), fold, on="x", independent=n))


def test_an_answer_says_whether_the_image_is_like_those_learnt_from() -> None:
    facts = trusting()
    rule, p = Rule.of(facts), np.array([0.7, 0.2, 0.1], dtype=np.float32)
    assert answer("x", p, facts, 1.95, rule).unknown is True
    assert answer("x", p, facts, 1.0, rule).unknown is False
    assert answer("x", p, facts, 1.0, rule).unknown_score == 1.0
    assert answer("x", p, facts, 1.95, Rule.of(facts, false_alarm=0.01)).unknown is False
    without = answer("x", p, facts, None, rule)
    assert (without.unknown, without.unknown_score, without.prediction_set) == (None, None, None)
    assert answer("x", ImageError("broken", "no"), facts, None, rule).unknown is None


def test_a_prediction_set_is_ordered_and_holds_the_answer() -> None:
    facts, p = trusting(), np.array([0.1, 0.55, 0.35], dtype=np.float32)
    assert answer("x", p, facts, None, Rule(bound=0.7)).prediction_set == ("b", "c")
    assert answer("x", p, facts, None, Rule(bound=0.1)).prediction_set == ("b",)
    assert answer("x", p, facts, None, Rule(bound=1.0)).prediction_set == ("b", "c", "a")
    small, large = (answer("x", p, facts, None, Rule.of(facts, sets=s)).prediction_set for s in (0.5, 0.99))
    assert small is not None
    assert large is not None
    assert set(small) <= set(large)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"sets": 0.0}, "above 0 and up to 0.99"),
        ({"sets": 0.995}, "above 0 and up to 0.99"),
        ({"sets": 90}, "above 0 and up to 0.99"),
        ({"false_alarm": 0.0}, "expected a share from"),
        ({"false_alarm": 0.001}, "the 200 images behind it can promise no less"),
        ({"false_alarm": 1.0}, "expected a share from"),
    ],
)
def test_what_cannot_be_promised_is_refused(asked: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Rule.of(trusting(), **asked)


def test_a_model_of_an_earlier_topwork_promises_nothing() -> None:
    old = fake_facts(("a", "b"))
    assert Rule.of(old) == Rule(None, None)
    with pytest.raises(UsageError, match="has none; fit again"):
        Rule.of(old, sets=0.9)
    with pytest.raises(UsageError, match="no scores"):
        Rule.of(old, false_alarm=0.05)
    with pytest.raises(UsageError, match="several labels"):
        Rule.of(fake_facts(("a", "b"), multi_label=True, thresholds=(0.5, 0.5)), sets=0.9)
