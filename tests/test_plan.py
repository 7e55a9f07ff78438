"""The plan follows from written-down measurements: every verdict, every sentence, every number by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score

from topwork.plan import (
    Evidence,
    cheapest,
    decide,
    deficits,
    hopeless,
    needed,
    places,
    scores,
    settled,
    spared,
    stacked,
    tuned,
)
from topwork.records import CutScore, Plan, Recipe, Tuning
from topwork.statistics import Z95, class_weights

Answers = NDArray[np.bool_]


def answers(n: int, right: int, *others: tuple[int, int]) -> Answers:
    """Correctness (n, K): the last cut right on `right` images; each cut before it loses and gains that many."""
    best = np.arange(n) < right
    columns = []
    for loses, gains in others:
        column = best.copy()
        column[:loses] = False
        column[right : right + gains] = True
        columns.append(column)
    return np.stack([*columns, best], axis=1)


def evidence(correct: Answers, **given: Any) -> Evidence:
    k = correct.shape[1]
    names = tuple(f"layer{i + 1}" for i in range(k))
    shares = tuple((i + 1) / k for i in range(k))
    return Evidence("resnet18", 224, names, shares, shares, 10.0, correct, **given)


def table(seen: Evidence, dims: tuple[int, ...], ridges: tuple[float, ...]) -> tuple[CutScore, ...]:
    """The depth table of one backbone alone."""
    (rows,) = scores([seen], [dims], [ridges])
    return rows


@st.composite
def measurements(draw: st.DrawFn) -> Answers:
    n, k = draw(st.integers(2, 60)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    return rng.random((n, k)) < rng.uniform(0.3, 1, k)


def cut_reason(plan: Plan) -> str:
    return plan.reasons[0]


def test_the_cheapest_cut_within_delta_is_chosen_and_the_sentence_has_its_numbers() -> None:
    """Deficit 10 of 10,000; sd^2 = (30 - 10,000 * 0.001^2) / 9,999; bound 0.1% + 1.96 hypot(sd / 100, 1 / 10,000),
    which is 0.21%."""
    plan = decide(evidence(answers(10_000, 9000, (400, 0), (20, 10), (9, 9))))
    assert (plan.cut, plan.best_cut) == ("layer2", "layer3")  # of two equally good ones the earlier is the best
    assert (plan.backbone, plan.strategy, plan.delta, plan.kept_cost) == ("resnet18", "head", 0.01, 0.5)
    assert (plan.decided, plan.more_images) == (True, None)
    assert cut_reason(plan) == (
        "Cut after layer2: the cheapest place within 1.0 point of the best (layer3, 90.0%); it is right on 89.9%,"
        " and its deficit of 0.1 points is at most 0.2 points with 95% confidence. It keeps 50% of the backbone's cost."
    )
    assert len(plan.reasons) == 3
    assert plan.reasons[-1].startswith("Head only")


def test_where_all_cheaper_cuts_are_shown_to_be_worse_the_best_is_chosen_and_that_is_decided() -> None:
    plan = decide(evidence(answers(1000, 900, (300, 0), (100, 0))))
    assert (plan.cut, plan.best_cut, plan.decided, plan.more_images) == ("layer3", "layer3", True, None)
    assert cut_reason(plan) == (
        "Cut after layer3: the best place, 90.0% right leave-one-out, at 100% of the backbone's cost."
        " No cheaper cut is shown to be within 1.0 point of it."
    )


def test_the_first_cut_as_the_best_has_no_cheaper_one_to_speak_of() -> None:
    plan = decide(evidence(answers(1000, 900, (0, 50))))
    assert (plan.cut, plan.best_cut, plan.decided) == ("layer1", "layer1", True)
    assert cut_reason(plan) == (
        "Cut after layer1: the best place, 95.0% right leave-one-out, at 50% of the backbone's cost."
    )


def test_an_open_question_is_said_with_the_number_of_images_that_would_tell() -> None:
    """20 lost and 12 gained of 400: deficit 0.02, sd^2 = (32 - 400 * 0.02^2) / 399 = 0.07980, sd / 20 = 0.01412; with
    one image of 400 in quadrature the error is 0.01434, the interval 0.02 -+ 0.02811. Half-width |0.01 - 0.02| needs
    400 * (0.02811 / 0.01)^2 = 3,162 images: 2,762 more."""
    plan = decide(evidence(answers(400, 340, (20, 12))))
    assert (plan.cut, plan.decided, plan.more_images) == ("layer2", False, 2800)
    assert plan.reasons[1] == (
        "Undecided whether a cheaper cut would do: layer1 may be within 1.0 point or not"
        " (deficit of layer1 2.0 points, 95% interval -0.8 points to 4.8 points); about 2800 more images would tell."
    )


def test_that_many_more_images_of_the_same_kind_do_decide() -> None:
    """Eight times the images of the case above are 2,800 more, and enough; twice are not."""
    few = answers(400, 340, (20, 12))
    assert not decide(evidence(np.tile(few, (2, 1)))).decided
    assert decide(evidence(np.tile(few, (8, 1)))).decided


def test_a_cheaper_cut_may_be_open_behind_a_chosen_one() -> None:
    plan = decide(evidence(answers(400, 340, (20, 12), (1, 0))))
    assert (plan.cut, plan.best_cut, plan.decided) == ("layer2", "layer3", False)
    assert "layer1 may be within" in plan.reasons[1]


def test_a_cut_that_lies_on_the_border_cannot_be_told() -> None:
    """Deficit 4 of 400, just delta: no number of images decides."""
    plan = decide(evidence(answers(400, 340, (20, 16))))
    assert (plan.decided, plan.more_images) == (False, None)
    assert plan.reasons[1].endswith("; no realistic number of images would tell.")


@pytest.mark.parametrize(("open_ones", "names"), [(1, "layer1 may"), (3, "layer3 and 2 others may")])
def test_of_several_open_cuts_the_one_that_is_soonest_decided_is_named(open_ones: int, names: str) -> None:
    """The further from delta, the sooner; equally far with fewer disagreements, too."""
    plan = decide(evidence(answers(400, 340, *[(20, 12), (20, 13), (9, 1)][:open_ones])))
    assert names in plan.reasons[1]


def test_one_other_open_cut_is_one_other() -> None:
    plan = decide(evidence(answers(400, 340, (20, 12), (20, 13))))
    assert "layer1 and 1 other may be" in plan.reasons[1]


@pytest.mark.parametrize("groups", [None, np.zeros(6, np.int64)])
def test_one_independent_image_cannot_tell_cuts_apart(groups: NDArray[np.int64] | None) -> None:
    correct = answers(6, 5, (2, 0)) if groups is not None else np.array([[False, True]])
    plan = decide(evidence(correct, groups=groups))
    assert (plan.cut, plan.decided, plan.more_images) == ("layer2", False, None)
    assert plan.reasons[1] == "Undecided: one independent image cannot tell cuts apart."


def test_nothing_is_never_minus_nothing() -> None:
    """4 lost of 10,000: low is 0.0004 - 1.96 * hypot(2, 1) / 10,000 = -0.00004, which is no -0.0 points."""
    plan = decide(evidence(answers(10_000, 9000, (4, 0))), delta=0.0005)
    assert "(deficit of layer1 0.0 points, 95% interval 0.0 points to 0.1 points)" in plan.reasons[1]


def binomial(n: int, k: int, p: float) -> float:
    from scipy.stats import binom

    return float(binom.pmf(k, n, p))


def test_delta_0_takes_the_best_unless_nothing_is_lost() -> None:
    assert decide(evidence(answers(10_000, 9000, (20, 10))), delta=0).cut == "layer2"
    assert decide(evidence(answers(10_000, 9000, (0, 0))), delta=0).cut == "layer1"


def test_equally_good_cuts_give_the_earliest() -> None:
    plan = decide(evidence(answers(200, 150, (30, 30), (10, 10))))
    assert (plan.cut, plan.best_cut, plan.decided) == ("layer1", "layer1", True)


def test_alike_images_count_as_one() -> None:
    """400 images that decide would not if they were 40 groups of ten; the error is then that of 40."""
    one_each = answers(40, 34, (1, 0))
    correct = np.repeat(one_each, 10, axis=0)
    groups = np.repeat(np.arange(40), 10)
    apart, together = deficits(correct), deficits(correct, groups)
    np.testing.assert_allclose(together.error, deficits(one_each).error, rtol=1e-12)
    assert together.error[0] > 3 * apart.error[0]
    loose = decide(evidence(correct), delta=0.05)
    tied = decide(evidence(correct, groups=groups), delta=0.05)
    assert (loose.cut, tied.cut) == ("layer1", "layer2")
    assert not tied.decided


def test_a_cut_that_was_asked_for_is_taken_and_the_sentence_says_so() -> None:
    """Nothing was left to decide, so nothing is undecided."""
    plan = decide(evidence(answers(400, 340, (20, 12))), cut="layer1")
    assert (plan.cut, plan.best_cut, plan.kept_cost) == ("layer1", "layer2", 0.5)
    assert (plan.decided, plan.more_images) == (True, None)
    assert cut_reason(plan) == (
        "Cut after layer1, as asked: 83.0% right leave-one-out, at 50% of the backbone's cost;"
        " the best cut, layer2, is right on 85.0%."
    )
    assert len(plan.reasons) == 3


def tried(cut: str, *, replaced: bool) -> Tuning:
    recipe = Recipe("suffix", cut, "layer2")
    return Tuning(60, 50, (), "resnet18", 224, recipe, 0.04, 0.02, 100, replaced, "4.0 points better.")


def test_a_plan_whose_trained_model_won_is_that_models() -> None:
    seen = evidence(answers(400, 340, (200, 0), (100, 0)))
    frozen = decide(seen)
    plan = tuned(frozen, tried("layer2", replaced=True), [seen])
    assert (plan.cut, plan.strategy, plan.kept_cost) == ("layer2", "suffix", pytest.approx(2 / 3))
    assert plan.recipe == Recipe("suffix", "layer2", "layer2")
    assert plan.reasons == (
        *frozen.reasons[:-1],
        "The trained model replaces the frozen one: 4.0 points better. It is cut after layer2 and keeps 67% of the"
        " cost.",
    )
    same = tuned(frozen, tried("layer3", replaced=True), [seen])
    assert same.reasons[-1] == "The trained model replaces the frozen one: 4.0 points better."


def test_a_plan_whose_trained_model_lost_stays_as_it_was_and_says_why() -> None:
    seen = evidence(answers(400, 340, (200, 0), (100, 0)))
    frozen = decide(seen)
    plan = tuned(frozen, tried("layer2", replaced=False), [seen])
    why = "The kept layers stay as they were learnt; 4.0 points better."
    assert plan == replace(frozen, reasons=(*frozen.reasons[:-1], why))


def test_deficits_by_hand() -> None:
    d = deficits(answers(400, 340, (20, 12)))
    error = np.sqrt((32 - 400 * 0.02**2) / 399 / 400 + (1 / 400) ** 2)
    assert d.best == 1
    np.testing.assert_allclose(d.value, [0.02, 0], atol=1e-15)
    np.testing.assert_allclose(d.error, [error, 0], rtol=1e-12)
    np.testing.assert_allclose(d.low, [0.02 - Z95 * error, 0], rtol=1e-12)
    np.testing.assert_allclose(d.high, [0.02 + Z95 * error, 0], rtol=1e-12)


def test_cuts_that_agree_on_every_image_may_still_differ_by_one() -> None:
    """Standard error 1/n: with 24 images an upper bound of 8 points, with 200 one of 1 point."""
    d = deficits(answers(24, 20, (3, 0), (0, 0)))
    assert d.best == 1
    np.testing.assert_allclose(d.error[1:], [0, 1 / 24], rtol=1e-12)
    assert d.high[2] == pytest.approx(Z95 / 24)


# The first cut is right on four images that weigh little, the second on one of them and on the one that weighs much.
WEIGHED = np.array([[True, True], [True, False], [True, False], [True, False], [False, True]])
IMPORTANCE = np.array([0.5, 0.5, 0.5, 0.5, 3.0])


def test_weighted_deficits_by_hand() -> None:
    """Accuracies 2/5 and 3.5/5. Weighted differences 0, three times -0.5, and 3: mean 0.3, squares around it
    9 + 0.75 - 5 * 0.09 = 9.3, over 4 and over 5; one image in quadrature, of (3 + 4 * 0.5)^2 / (9 + 4 * 0.25) = 2.5."""
    d = deficits(WEIGHED, None, IMPORTANCE)
    assert (d.best, deficits(WEIGHED).best) == (1, 0)
    np.testing.assert_allclose(d.value, [0.3, 0], atol=1e-15)
    np.testing.assert_allclose(d.error, [np.sqrt(9.3 / 4 / 5 + 0.4**2), 0], rtol=1e-12)
    np.testing.assert_allclose(d.high, d.value + Z95 * d.error, rtol=1e-12)
    np.testing.assert_allclose(d.low, d.value - Z95 * d.error, rtol=1e-12)


def test_weighted_deficits_between_groups_by_hand() -> None:
    """Centred -0.3, three times -0.8, and 2.7; groups' sums 2.4, -1.6, -0.8: squares 8.96, times 3/2, over 5^2.
    Groups that weigh 3.5, 1 and 0.5 are worth 25 / 13.5 independent images."""
    d = deficits(WEIGHED, np.array([7, 3, 3, 0, 7]), IMPORTANCE)
    np.testing.assert_allclose(d.error, [np.sqrt(8.96 * 1.5 / 25 + 0.54**2), 0], rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), min_size=2, max_size=4), cuts=st.integers(1, 4), seed=st.integers(0, 1000))
def test_where_classes_weigh_alike_every_accuracy_is_balanced_accuracy(sizes: list[int], cuts: int, seed: int) -> None:
    rng, c = np.random.default_rng(seed), len(sizes)
    labels = rng.permutation(np.repeat(np.arange(c), sizes))
    correct = rng.random((len(labels), cuts)) < rng.uniform(0.3, 1, cuts)
    balanced = [correct[:, k][labels == i].mean() for k in range(cuts) for i in range(c)]
    balanced = np.reshape(balanced, (cuts, c)).mean(axis=1)
    wrong = (labels + 1) % c
    for k in range(cuts):
        said = np.where(correct[:, k], labels, wrong)
        assert balanced[k] == pytest.approx(balanced_accuracy_score(labels, said))
    seen = evidence(correct, importance=class_weights(labels, c)[labels])
    rows, similarity = table(seen, (1,) * cuts, (1.0,) * cuts), decide(seen).similarity
    assert [row.accuracy for row in rows] == pytest.approx(list(balanced))
    assert [row.deficit for row in rows] == pytest.approx(list(balanced.max() - balanced), abs=1e-12)
    assert similarity.best_accuracy == pytest.approx(balanced.max())
    assert similarity.last_accuracy == pytest.approx(balanced[-1])


def test_where_images_weigh_differently_the_sentences_say_the_weighted_shares() -> None:
    """Ten of 100 images make up half. The first cut is wrong on five of them: (1 + 1/2) / 2; the second on 30 of the
    other 90: (2/3 + 1) / 2."""
    labels = np.repeat([0, 1], [90, 10])
    correct = np.stack([np.arange(100) < 95, np.arange(100) >= 30], axis=1)
    seen = evidence(correct, importance=class_weights(labels, 2)[labels])
    plan = decide(seen, cut="layer1")
    assert plan.best_cut == "layer2"
    assert decide(replace(seen, importance=None)).best_cut == "layer1"
    assert "75.0% right leave-one-out" in plan.reasons[0]
    assert "layer2, is right on 83.3%" in plan.reasons[0]
    alike = (
        "Classes weigh alike: cuts are compared by balanced accuracy, 75.0% at layer1; counting every image alike it"
    )
    assert f"{alike} is 95.0%." in plan.reasons
    assert not any("weigh alike" in r for r in decide(replace(seen, importance=None)).reasons)


@settings(max_examples=50, deadline=None)
@given(correct=measurements(), delta=st.floats(0, 0.5), grouped=st.booleans())
def test_importance_of_one_each_changes_nothing(correct: Answers, delta: float, grouped: bool) -> None:
    n, k = correct.shape
    plain = evidence(correct, groups=np.arange(n) // 2 if grouped else None, neighbour_accuracy=0.5)
    ones = replace(plain, importance=np.ones(n))
    weighed = decide(ones, delta=delta)
    assert any("weigh alike" in reason for reason in weighed.reasons)  # it was asked for, and is told
    kept = tuple(reason for reason in weighed.reasons if "weigh alike" not in reason)
    assert replace(weighed, reasons=kept) == decide(plain, delta=delta)
    assert table(ones, (1,) * k, (1.0,) * k) == table(plain, (1,) * k, (1.0,) * k)


def test_similarity_weighs_images_as_the_accuracies_that_it_tells_do() -> None:
    """Of 90 and 10 images: the first cut is wrong on 20 of the many, the last on all of the few. Balanced, accuracy
    falls from 88.9% to 50.0%, although half of the errors are gone."""
    labels = np.repeat([0, 1], [90, 10])
    i = np.arange(100)
    correct = np.stack([i >= 20, i >= 20, i < 90], axis=1)
    similarity = decide(evidence(correct, importance=class_weights(labels, 2)[labels])).similarity
    assert similarity.verdict == "different"
    assert "accuracy falls between layer1 (88.9%) and the last cut (50.0%)" in similarity.reason


def test_of_cuts_that_are_equally_good_but_for_rounding_the_earlier_one_is_the_best() -> None:
    """Two cuts, each wrong on one image of the same class, whichever: they are as good as each other."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [5, 11, 40]))
    importance = class_weights(labels, 3)[labels]
    for i, j in itertools.permutations(np.flatnonzero(labels == 2), 2):
        correct = np.ones((56, 2), dtype=bool)
        correct[[i, j], [0, 1]] = False
        assert deficits(correct, None, importance).best == 0


def test_the_depth_tables_intervals_cover_where_images_weigh_differently() -> None:
    """Ten of 200 images make up half of the accuracy: its error is sqrt(0.24 / 10 + 0.09 / 190) / 2 = 0.08, not the
    0.03 of 200 images alike. 300 samples; 95%, less 5 points for a normal interval over ten images and 4 for chance."""
    rng, covered = np.random.default_rng(0), 0
    labels = np.repeat([0, 1], [190, 10])
    importance = class_weights(labels, 2)[labels]
    for _ in range(300):
        correct = rng.random((200, 1)) < np.array([0.9, 0.6])[labels][:, None]
        row = table(evidence(correct, importance=importance), (1,), (1,))[0]
        covered += row.low <= 0.75 <= row.high
    assert covered / 300 > 0.86


def test_cheapest_is_the_first_within_delta() -> None:
    high = np.array([0.2, 0.011, 0.01, 0.0, 0.005])
    assert [cheapest(high, delta) for delta in (0, 0.005, 0.01, 0.011, 0.5)] == [3, 3, 2, 1, 0]


@settings(max_examples=100, deadline=None)
@given(correct=measurements(), deltas=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)))
def test_who_may_lose_more_never_pays_more(correct: Answers, deltas: tuple[float, float]) -> None:
    strict, loose = (decide(evidence(correct), delta=d) for d in sorted(deltas))
    assert loose.kept_cost <= strict.kept_cost
    assert strict.best_cut == loose.best_cut


@settings(max_examples=100, deadline=None)
@given(correct=measurements(), delta=st.floats(0, 0.5), copies=st.integers(2, 5))
def test_more_of_the_same_narrows_the_intervals_unless_it_is_grouped(
    correct: Answers, delta: float, copies: int
) -> None:
    n = len(correct)
    plain, more = deficits(correct), deficits(np.tile(correct, (copies, 1)))
    varies = plain.error > 0
    assert (more.error[varies] < plain.error[varies]).all()
    assert (more.high <= plain.high + 1e-12).all()
    groups = np.tile(np.arange(n), copies)
    same = deficits(np.tile(correct, (copies, 1)), groups)
    np.testing.assert_allclose(same.error, plain.error, atol=1e-12)
    before, after = decide(evidence(correct), delta=delta), decide(evidence(np.tile(correct, (copies, 1))), delta=delta)
    assert after.kept_cost <= before.kept_cost


@settings(max_examples=150, deadline=None)
@given(correct=measurements(), delta=st.floats(0, 0.5))
def test_every_plan_is_consistent(correct: Answers, delta: float) -> None:
    """The choice is no dearer than the best, within delta of it, and decided exactly if no cheaper one is open."""
    plan, d = decide(evidence(correct), delta=delta), deficits(correct)
    names = [f"layer{i + 1}" for i in range(correct.shape[1])]
    chosen, best = names.index(plan.cut), names.index(plan.best_cut)
    assert chosen <= best
    assert correct[:, best].sum() == correct.sum(axis=0).max()
    assert d.value[chosen] <= delta + 1e-9
    undecided = any(d.low[k] <= delta for k in range(chosen))
    assert plan.decided is not undecided
    assert (len(plan.reasons) == 4) is undecided
    assert all(reason.endswith(".") for reason in plan.reasons)
    if plan.more_images is not None:
        assert plan.more_images >= 1


def deep(early: int, last: int, n: int = 1000) -> Answers:
    """Three cuts: errors at the first (early), at the second, and at the last; those of a better cut are a part."""
    return np.stack([np.arange(n) >= early, np.arange(n) >= max(early, last), np.arange(n) >= last], axis=1)


SIMILARITIES: list[tuple[Answers, str, float | None, str]] = [
    (deep(100, 70), "similar", 0.3, "its deep layers, between layer1 (90.0%) and the last cut (93.0%), remove 30% of"),
    (deep(100, 71), "in between", 0.29, "remove 29% of the errors"),
    (deep(100, 90), "in between", 0.1, "remove 10% of the errors"),
    (deep(100, 91), "different", 0.09, "remove 9% of the errors"),
    (deep(100, 100), "different", 0.0, "remove none of the errors"),
    # One error more is within chance, fifty are not: 50 / (sqrt(50) * 1.96) > 1.
    (deep(100, 101), "different", -0.01, "remove none of the errors"),
    (deep(100, 150), "different", -0.5, "serve the old task; accuracy falls between layer1 (90.0%) and the last cut"),
    (deep(9, 3), "cannot tell", 2 / 3, "layer1 makes 9 errors already"),
    (deep(0, 0), "cannot tell", None, "layer1 makes no errors already"),
    (deep(2, 50), "different", -24.0, "serve the old task"),
]


@pytest.mark.parametrize(("correct", "verdict", "gain", "words"), SIMILARITIES)
@pytest.mark.parametrize("confidence", [None, 0.2, 0.9])
def test_similarity_is_what_deep_layers_still_add(
    correct: Answers, verdict: str, gain: float | None, words: str, confidence: float | None
) -> None:
    """The share of the early errors that the last cut removes decides; the backbone's confidence is only told."""
    beginnings = {
        "similar": "The task is similar to what the backbone was trained for: ",
        "in between": "The task lies in between, neither like the backbone's own nor far from it: ",
        "different": "The task is different from what the backbone was trained for: ",
        "cannot tell": "How similar the task is to the backbone's own cannot be told: ",
    }
    seen = evidence(correct, neighbour_accuracy=0.7, source_confidence=confidence, source_spread=0.25)
    plan = decide(seen)
    similarity = plan.similarity
    assert similarity.verdict == verdict
    assert similarity.deep_gain == (gain if gain is None else pytest.approx(gain))
    assert similarity.reason.startswith(beginnings[verdict])
    assert words in similarity.reason
    assert similarity.reason in plan.reasons
    told = "the backbone gives one of its own classes" in similarity.reason
    assert told is (confidence is not None)
    if confidence is not None:
        assert similarity.reason.endswith(f"classes {confidence:.0%} on average and uses 25% of them.")
    accuracy = correct.mean(axis=0)
    assert (similarity.early_cut, similarity.early_accuracy) == ("layer1", accuracy[0])
    assert (similarity.last_accuracy, similarity.best_accuracy) == (accuracy[-1], accuracy.max())
    assert similarity.last_deficit == pytest.approx(accuracy.max() - accuracy[-1])
    assert similarity.last_deficit_low <= similarity.last_deficit <= similarity.last_deficit_high
    assert (similarity.neighbour_accuracy, similarity.source_confidence) == (0.7, confidence)
    assert similarity.source_spread == 0.25


def test_the_early_cut_is_the_best_within_a_third_of_the_work() -> None:
    correct = np.stack([np.arange(100) >= errors for errors in (40, 30, 35, 10, 20)], axis=1)
    shares = (0.1, 0.2, 0.33, 0.34, 1.0)
    seen = Evidence("resnet18", 224, ("a", "b", "c", "d", "e"), shares, shares, 10.0, correct)
    assert decide(seen).similarity.early_cut == "b"
    late = replace(seen, mac_shares=(0.5, 0.6, 0.7, 0.8, 1.0))
    assert decide(late).similarity.early_cut == "a"


def test_a_peak_before_the_last_cut_is_told() -> None:
    correct = np.stack([np.arange(400) >= errors for errors in (200, 20, 80)], axis=1)
    assert "accuracy peaks at layer2 (95.0%)" in decide(evidence(correct)).similarity.reason


def test_the_depth_table_has_every_cut_with_its_intervals() -> None:
    correct = answers(400, 340, (20, 12))
    first, last = table(evidence(correct), (64, 512), (0.1, 1e-3))
    assert (first.cut, first.cost_share, first.dims, first.ridge) == ("layer1", 0.5, 64, 0.1)
    assert (last.cut, last.cost_share, last.dims, last.ridge) == ("layer2", 1, 512, 1e-3)
    for row, right in ((first, 332), (last, 340)):
        wilsons = binomtest(right, 400).proportion_ci(method="wilson")
        assert row.accuracy == right / 400
        assert (row.low, row.high) == pytest.approx((wilsons.low, wilsons.high), abs=1e-7)
    d = deficits(correct)
    assert (first.deficit, first.deficit_low, first.deficit_high) == (d.value[0], d.low[0], d.high[0])
    assert (last.deficit, last.deficit_low, last.deficit_high) == (0, 0, 0)


def test_the_depth_tables_intervals_rest_on_groups_of_alike_images() -> None:
    correct = np.repeat(answers(50, 40, (5, 0)), 4, axis=0)
    seen = evidence(correct, groups=np.repeat(np.arange(50), 4))
    row = table(seen, (1, 1), (1, 1))[1]
    wilsons = binomtest(40, 50).proportion_ci(method="wilson")
    assert (row.low, row.high) == pytest.approx((wilsons.low, wilsons.high), abs=1e-7)
    alone = table(replace(seen, groups=None), (1, 1), (1, 1))[1]
    assert alone.high - alone.low < row.high - row.low


def test_the_depth_tables_intervals_cover_where_groups_are_uneven() -> None:
    """Five images of 20 copies each and 100 others: (sum m)^2 / sum m^2 = 19 independent ones, not 105. 300 samples."""
    rng, covered = np.random.default_rng(0), 0
    groups = np.concatenate([np.repeat(np.arange(5), 20), np.arange(5, 105)])
    for _ in range(300):
        correct = (rng.random(105) < 0.8)[groups][:, None]
        row = table(evidence(correct, groups=groups), (1,), (1,))[0]
        covered += row.low <= 0.8 <= row.high
    assert covered / 300 > 0.9


# ---- several backbones


def of(name: str, forward_ms: float, correct: Answers, *, size_px: int = 224, **given: Any) -> Evidence:
    return replace(evidence(correct, **given), backbone=name, forward_ms=forward_ms, size_px=size_px)


def test_places_are_all_cuts_of_all_backbones_the_cheapest_first() -> None:
    """a costs 10 and 20 ms, b 5, 10 and 15; of two equally dear ones the first backbone's comes first."""
    a, b = of("a", 20.0, answers(10, 5, (0, 0))), of("b", 15.0, answers(10, 5, (0, 0), (0, 0)))
    assert places([a, b]) == [(1, 0), (0, 0), (1, 1), (1, 2), (0, 1)]
    assert places([b, a]) == [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1)]
    assert places([a, b], "layer2") == [(1, 1), (0, 1)]
    assert places([a, b], "layer3") == [(1, 2)]
    assert places([a, b], "layer4") == []


def test_a_cheaper_backbone_within_delta_is_chosen_and_every_sentence_has_its_numbers() -> None:
    """10,000 images: big is right on 9,000 at its last cut and 8,000 at the first; small on 8,980 and 8,500.

    small's deficit of 20 with nothing gained: sd^2 = 20 / 10,000 - 0.002^2 (n / (n - 1)), error
    hypot(0.000447, 0.0001) = 0.000458, bounds 0.2 -+ 0.09 points.
    """
    big = of("big", 40.0, answers(10_000, 9000, (1000, 0)))
    base = np.arange(10_000) < 9000
    near, far = base.copy(), base.copy()
    near[:20], far[:500] = False, False
    small = of("small", 10.0, np.stack([far, near], axis=1))
    plan = decide(small, big)
    assert (plan.backbone, plan.cut, plan.best_backbone, plan.best_cut) == ("small", "layer2", "big", "layer2")
    assert (plan.kept_cost, plan.cost_ms, plan.decided) == (1.0, 10.0, True)
    assert plan.reasons[:2] == (
        "Cut after small layer2: the cheapest place within 1.0 point of the best (big layer2, 90.0%); it is right on"
        " 89.8%, and its deficit of 0.2 points is at most 0.3 points with 95% confidence. It keeps 10 ms per image"
        " (100% of the backbone's cost).",
        "The best place of each backbone: big layer2 90.0%; small layer2 89.8% (0.2 points less, 95% interval 0.1"
        " points to 0.3 points, shown to be worse).",
    )
    strict = decide(small, big, delta=0.001)
    assert (strict.backbone, strict.cut, strict.cost_ms) == ("big", "layer2", 40.0)
    assert strict.reasons[0] == (
        "Cut after big layer2: the best place, 90.0% right leave-one-out, at 40 ms per image (100% of the backbone's"
        " cost). No cheaper place is shown to be within 0.1 points of it."
    )


def test_an_open_question_names_the_other_backbones_place() -> None:
    """The numbers of one backbone's open cut (above), at another backbone."""
    correct = answers(400, 340, (20, 12))
    plan = decide(of("cheap", 1.0, correct[:, :1]), of("dear", 10.0, correct[:, 1:]))
    assert (plan.backbone, plan.decided, plan.more_images) == ("dear", False, 2800)
    assert plan.reasons[2] == (
        "Undecided whether a cheaper place would do: cheap layer1 may be within 1.0 point or not (deficit of cheap"
        " layer1 2.0 points, 95% interval -0.8 points to 4.8 points); about 2800 more images would tell."
    )
    assert (
        "cheap layer1 83.0% (2.0 points less, 95% interval -0.8 points to 4.8 points, not shown to be worse)"
        in (plan.reasons[1])
    )


def test_one_network_at_two_sizes_is_named_with_its_size() -> None:
    correct = answers(1000, 900, (300, 0))
    plan = decide(of("net", 10.0, correct, size_px=112), of("net", 40.0, correct, size_px=224))
    assert (plan.backbone, plan.size_px, plan.cost_ms) == ("net", 112, 10.0)
    assert plan.reasons[0].startswith("Cut after net at 112 px layer2: the best place")
    assert "net at 224 px layer2 90.0% (0.0 points less" in plan.reasons[1]


def test_a_cut_that_was_asked_for_is_taken_at_the_cheaper_of_two_sizes_that_will_do() -> None:
    """Of layer1 at both sizes the smaller is within delta of the larger; the best of all is layer2 at 224."""
    small, large = answers(10_000, 9000, (1010, 0)), answers(10_000, 9000, (1000, 0))
    seen = of("net", 10.0, small, size_px=112), of("net", 40.0, large, size_px=224)
    plan = decide(*seen, cut="layer1")
    assert (plan.size_px, plan.cut, plan.decided, plan.more_images) == (112, "layer1", True, None)
    assert plan.reasons[0] == (
        "Cut after net at 112 px layer1, as asked: 79.9% right leave-one-out, at 5 ms per image (50% of the backbone's"
        " cost); the best cut, net at 112 px layer2, is right on 90.0%."
    )
    poor = of("net", 10.0, answers(10_000, 9000, (3000, 0)), size_px=112)
    assert decide(poor, seen[1], cut="layer1").size_px == 224
    with pytest.raises(ValueError, match="no backbone has a cut 'layer7'"):
        decide(*seen, cut="layer7")


def test_the_depth_tables_deficits_are_to_the_best_place_of_all() -> None:
    small, big = of("small", 10.0, answers(1000, 800, (300, 0))), of("big", 40.0, answers(1000, 900, (200, 0)))
    first, second = scores([small, big], [(8, 16), (24, 32)], [(0.1, 0.2), (0.3, 0.4)])
    assert [s.deficit for s in first] == pytest.approx([0.4, 0.1])
    assert [s.deficit for s in second] == pytest.approx([0.2, 0.0])
    assert [(s.dims, s.ridge, s.cost_ms) for s in (*first, *second)] == [
        (8, 0.1, 5.0), (16, 0.2, 10.0), (24, 0.3, 20.0), (32, 0.4, 40.0),
    ]  # fmt: skip
    assert (second[1].deficit_low, second[1].deficit_high) == (0, 0)


@settings(max_examples=80, deadline=None)
@given(correct=measurements(), delta=st.floats(0, 0.3), dearer=st.floats(1.01, 50), first=st.booleans())
def test_of_the_same_backbone_twice_the_cheaper_one_is_chosen(
    correct: Answers, delta: float, dearer: float, first: bool
) -> None:
    cheap, dear = of("cheap", 10.0, correct), of("dear", 10.0 * dearer, correct)
    plan = decide(*([cheap, dear] if first else [dear, cheap]), delta=delta)
    alone = decide(cheap, delta=delta)
    assert (plan.backbone, plan.best_backbone) == ("cheap", "cheap")
    assert (plan.cut, plan.best_cut) == (alone.cut, alone.best_cut)


@settings(max_examples=80, deadline=None)
@given(correct=measurements(), delta=st.floats(0, 0.3), cost=st.floats(0.1, 100))
def test_a_backbone_that_is_never_right_changes_nothing_but_the_ranking(
    correct: Answers, delta: float, cost: float
) -> None:
    """Where chance has made none of the others right either, everything is equal."""
    if correct.mean(axis=0).max() - 1.96 * 0.5 / len(correct) ** 0.5 - 2.5 / len(correct) <= delta:
        return  # so few images that never right may still be within delta
    real, wrong = of("real", 10.0, correct), of("wrong", cost, np.zeros_like(correct))
    alone, plan = decide(real, delta=delta), decide(real, wrong, delta=delta)
    ranking = [r for r in plan.reasons if r.startswith("The best place of each backbone")]
    assert len(ranking) == 1
    assert "wrong layer1 0.0%" in ranking[0]
    assert replace(plan, reasons=()) == replace(alone, reasons=())


def test_the_ranking_is_by_accuracy_with_the_best_first() -> None:
    seen = [of(name, 10.0, np.arange(1000)[:, None] < right) for name, right in (("c", 500), ("a", 900), ("b", 700))]
    (said,) = [r for r in decide(*seen).reasons if r.startswith("The best place of each")]
    order = [said.index(f" {name} layer1") for name in ("a", "b", "c")]
    assert order == sorted(order)


# ---- who is out of the running


def test_hopeless_is_who_lies_beyond_delta_whatever_chance_did() -> None:
    """200 images; d of them lost and none gained: low = d / 200 - 2.5758 hypot(sd / sqrt(200), 1 / 200).

    d = 12: 0.06 - 2.5758 hypot(0.016835, 0.005) = 0.01476; d = 11: 0.055 - 2.5758 hypot(0.016162, 0.005) = 0.01142;
    d = 10: 0.05 - 2.5758 hypot(0.015450, 0.005) = 0.00817, which is within a point.
    """
    best = of("best", 20.0, np.ones((200, 1), bool))

    def loses(d: int) -> str | None:
        return hopeless([of("other", 10.0, (np.arange(200) >= d)[:, None]), best], 0.01)[0]

    assert loses(10) is None
    assert loses(11) == (
        "stopped after 200 images: its best cut, layer1, is right on 94.5%, best layer1 on 100.0%,"
        " at least 1.1 points more (99%)"
    )
    assert loses(12) is not None
    assert hopeless([best, best], 0.01) == (None, None)


def test_one_cut_that_may_do_keeps_a_backbone_in() -> None:
    best = of("best", 20.0, np.ones((200, 1), bool))
    poor, fair = np.arange(200) >= 100, np.arange(200) >= 5
    assert hopeless([of("a", 10.0, np.stack([poor, poor], axis=1)), best], 0.01)[0] is not None
    assert hopeless([of("a", 10.0, np.stack([poor, fair], axis=1)), best], 0.01)[0] is None


@settings(max_examples=60, deadline=None)
@given(one=measurements(), seed=st.integers(0, 999), delta=st.floats(0, 0.5))
def test_who_is_hopeless_is_not_the_best_and_not_chosen(one: Answers, seed: int, delta: float) -> None:
    other = np.random.default_rng(seed).random(one.shape) < 0.4
    seen = [of("a", 10.0, one), of("b", 20.0, other)]
    plan, found = decide(*seen, delta=delta), dict(zip(("a", "b"), hopeless(seen, delta), strict=True))
    assert found[plan.best_backbone] is None
    assert found[plan.backbone] is None


# ---- the plan after it


def test_a_head_of_several_depths_costs_its_deepest() -> None:
    small, big = of("small", 10.0, answers(1000, 900, (0, 0))), of("big", 40.0, answers(1000, 900, (300, 0)))
    plan = decide(small, big)
    assert (plan.backbone, plan.cut) == ("small", "layer1")
    after = stacked(plan, small, "layer2", "several depths (layer1 60%, layer2 40%)")
    assert (after.cut, after.kept_cost, after.cost_ms) == ("layer2", 1.0, 10.0)
    assert after.reasons == (
        *plan.reasons[:-1],
        "The head reads several depths (layer1 60%, layer2 40%). The deepest one, layer2, is what counts for the cost:"
        " 100%.",
        plan.reasons[-1],
    )


def tuning(backbone: str, size_px: int, *, replaced: bool, cut: str = "layer1") -> Tuning:
    recipe = Recipe("suffix", cut, cut)
    return Tuning(60.0, 9.0, (), backbone, size_px, recipe, 0.05, 0.01, 100, replaced, "what was found.")


def test_where_another_backbones_training_wins_the_plan_is_its() -> None:
    small = of("small", 10.0, answers(1000, 900, (0, 0)), source_confidence=0.3, source_spread=0.1)
    big = of("big", 40.0, answers(1000, 900, (300, 0)), source_confidence=0.6, source_spread=0.2)
    plan = decide(small, big)
    after = tuned(plan, tuning("big", 224, replaced=True), [small, big])
    assert (plan.backbone, after.backbone) == ("small", "big")
    assert (after.cut, after.strategy, after.kept_cost, after.cost_ms) == ("layer1", "suffix", 0.5, 20.0)
    assert (plan.similarity.source_confidence, after.similarity.source_confidence) == (0.3, 0.6)
    assert (after.best_backbone, after.best_cut) == (plan.best_backbone, plan.best_cut)
    assert after.reasons == (
        *plan.reasons[:-2],
        after.similarity.reason,
        "The trained model replaces the frozen one: what was found. It is big, cut after layer1, at 20 ms per image.",
    )


def test_where_the_same_network_at_another_size_wins_its_size_is_said() -> None:
    correct = answers(1000, 900, (0, 0))
    seen = [of("net", 10.0, correct, size_px=112), of("net", 40.0, correct, size_px=224)]
    after = tuned(decide(*seen), tuning("net", 224, replaced=True, cut="layer2"), seen)
    assert (after.size_px, after.cost_ms) == (224, 40.0)
    assert after.reasons[-1].endswith("It is net at 224 px, cut after layer2, at 40 ms per image.")


def test_where_no_training_wins_the_plan_stays() -> None:
    seen = [of("small", 10.0, answers(1000, 900, (0, 0))), of("big", 40.0, answers(1000, 900, (300, 0)))]
    plan = decide(*seen)
    after = tuned(plan, tuning("big", 224, replaced=False), seen)
    assert replace(after, reasons=()) == replace(plan, reasons=())
    assert after.reasons[-1] == "The kept layers stay as they were learnt; what was found."


# ---- how deep more images have to pass


def drawn_with(shares: list[float], n: int, rng: np.random.Generator, noise: float = 0.5) -> Answers:
    """Right answers at every cut, as often as the shares say; the higher the noise the less cuts agree."""
    ease = rng.normal(size=(n, 1)) + noise * rng.normal(size=(n, len(shares)))
    spread = np.sqrt(1 + noise**2)
    return ease < spread * np.array([NormalDist().inv_cdf(s) for s in shares])


def first(seen: Evidence, k: int) -> Evidence:
    """What was measured, had the pass stopped after k cuts."""
    return replace(
        seen, cuts=seen.cuts[:k], cost_shares=seen.cost_shares[:k], mac_shares=seen.mac_shares[:k],
        correct=seen.correct[:, :k],
    )  # fmt: skip


def test_deep_cuts_that_are_clearly_worse_are_not_needed() -> None:
    correct = drawn_with([0.6, 0.9, 0.8, 0.75], 1000, np.random.default_rng(0))
    assert needed([evidence(correct)], 0.01) == (2,)


def test_a_deep_cut_that_may_be_the_best_is_needed() -> None:
    correct = drawn_with([0.6, 0.9, 0.8, 0.91], 1000, np.random.default_rng(0))
    assert needed([evidence(correct)], 0.01) == (4,)


def test_a_place_that_lies_below_a_cheaper_one_is_not_needed_though_it_is_within_delta() -> None:
    """1.5 points behind an earlier cut, and both wrong nowhere else: with a delta of 5 it could never be taken."""
    best = np.arange(4000) < 3600
    worse = best & (np.arange(4000) >= 60)
    assert needed([evidence(np.stack([best, worse], axis=1))], 0.05) == (1,)
    assert needed([evidence(np.stack([worse, best], axis=1))], 0.05) == (2,)  # the best one is what it is held against


def test_where_the_choice_is_made_what_is_as_good_behind_it_is_not_needed() -> None:
    n = 4000
    rng = np.random.default_rng(0)
    good = np.arange(n) < 3800
    flips = rng.permutation(n)
    other = good.copy()
    other[flips[:4]] = ~other[flips[:4]]
    early = good & (np.arange(n) >= 400)
    assert needed([evidence(np.stack([early, good, other, other], axis=1))], 0.01) == (2,)
    nearly = good & (np.arange(n) >= 40)  # a point less: whether it will do is open, so all stay that may be the best
    assert needed([evidence(np.stack([nearly, good, other, other], axis=1))], 0.01) == (4,)


def test_few_images_rule_nothing_out() -> None:
    correct = drawn_with([0.7, 0.9, 0.86, 0.85], 40, np.random.default_rng(1))
    assert needed([evidence(correct)], 0.01) == (4,)


@settings(max_examples=200, deadline=None)
@given(correct=measurements(), delta=st.sampled_from([0.0, 0.01, 0.1]))
def test_the_choice_stays_without_what_is_not_needed(correct: Answers, delta: float) -> None:
    seen = evidence(correct)
    (k,) = needed([seen], delta)
    plan, shorter = decide(seen, delta=delta), decide(first(seen, k), delta=delta)
    assert (shorter.cut, shorter.best_cut) == (plan.cut, plan.best_cut)


@settings(max_examples=100, deadline=None)
@given(one=measurements(), seed=st.integers(0, 1000), delta=st.sampled_from([0.0, 0.01, 0.1]))
def test_of_several_backbones_the_choice_stays_too(one: Answers, seed: int, delta: float) -> None:
    other = np.random.default_rng(seed).random((len(one), 3)) < (0.5, 0.8, 0.9)
    both = [evidence(one), replace(evidence(other), backbone="other", forward_ms=7.0)]
    cuts = needed(both, delta)
    plan, shorter = decide(*both, delta=delta), decide(*map(first, both, cuts), delta=delta)
    assert (shorter.backbone, shorter.cut) == (plan.backbone, plan.cut)
    for seen, k in zip(both, cuts, strict=True):
        assert k >= 1 + seen.correct.mean(axis=0).argmax()


def test_a_cut_that_is_the_best_of_all_images_is_hardly_ever_given_up_on_a_sample() -> None:
    """The last cut is better by a point and a half, more than delta; one sample in 200 may look otherwise by chance."""
    rng = np.random.default_rng(0)
    lost = sum(needed([evidence(drawn_with([0.5, 0.8, 0.885, 0.9], 1000, rng))], 0.01)[0] < 4 for _ in range(200))
    assert lost <= 4  # a binomial count of 200 at 1/200 exceeds it one time in 300


def test_classes_that_weigh_alike_and_copies_count_in_what_is_needed() -> None:
    correct = drawn_with([0.9, 0.85], 600, np.random.default_rng(2))
    assert needed([evidence(correct)], 0.01) == (1,)
    one_content = np.repeat(np.arange(6), 100)  # six pictures, a hundred times each
    assert needed([evidence(correct, groups=one_content)], 0.01) == (2,)
    rare = np.r_[np.full(594, 6 / 594 * 0.5), np.full(6, 99.5)]
    assert needed([evidence(correct, importance=rare / rare.mean())], 0.01) == (2,)


def test_costs_of_a_cut_that_only_the_sample_passed_are_the_samples() -> None:
    whole = evidence(np.ones((20, 4), dtype=bool))
    seen = replace(first(evidence(np.ones((80, 4), dtype=bool)), 2), whole=whole)
    assert seen.cost("layer2") == (0.5, 5.0)
    assert seen.cost("layer4") == (1.0, 10.0)
    plan = tuned(decide(seen), tuning_of("layer4"), [seen])
    assert (plan.cut, plan.kept_cost, plan.cost_ms) == ("layer4", 1.0, 10.0)


def tuning_of(cut: str) -> Tuning:
    recipe = Recipe("full", cut, "layer1")
    return Tuning(100.0, 50.0, (), "resnet18", 224, recipe, 0.05, 0.01, 80, replaced=True, reason="it is better.")


def test_similarity_is_told_by_the_sample_that_passed_all_layers() -> None:
    whole = evidence(drawn_with([0.9, 0.93, 0.6], 300, np.random.default_rng(0)), neighbour_accuracy=0.5)
    seen = replace(first(evidence(drawn_with([0.9, 0.93, 0.6], 900, np.random.default_rng(1))), 2), whole=whole)
    found = decide(seen)
    assert found.similarity == decide(whole).similarity
    assert found.similarity.verdict == "different"
    assert found.best_cut == "layer2"


def test_what_was_spared_is_told_before_the_last_sentence() -> None:
    plan = decide(evidence(answers(100, 90, (5, 5))))
    told = spared(plan, ["This.", "That."])
    assert told.reasons == (*plan.reasons[:-1], "This.", "That.", plan.reasons[-1])
    assert replace(told, reasons=plan.reasons) == plan


def test_a_plan_is_not_settled_where_another_place_may_be_more_than_delta_better() -> None:
    """The best of few images is chosen for want of a better one; what lies behind it may well be that."""
    rng = np.random.default_rng(0)
    few, many = (evidence(drawn_with([0.5, 0.905, 0.9], n, rng, 0.2)) for n in (100, 20_000))
    assert not settled(decide(few), [few], 10**6)
    assert settled(decide(many), [many], 10**6)


def test_what_is_open_settles_where_all_images_would_not_decide_it() -> None:
    seen = evidence(answers(2000, 1800, (18, 0)))  # 0.9 points less: at most delta, or not
    plan = decide(seen)
    assert not plan.decided
    assert plan.more_images is not None
    enough = 2000 + plan.more_images
    assert [settled(plan, [seen], n) for n in (enough - 1, enough)] == [True, False]
    assert settled(replace(plan, more_images=None), [seen], enough)
    assert settled(replace(plan, decided=True), [seen], enough)
