"""Nothing is spent that was not granted, nothing replaces what it is not shown to beat, and all can be resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conftest import Log, as_backbone, labelled, tiny_network, write_photos
from topwork import activations, head, records, search, tune
from topwork.errors import UsageError
from topwork.records import Augmentation, Cut, Options, Recipe, Tuning
from topwork.search import LEAST_ERRORS, RATE_STEP, SHORT, SLACK, Baseline, Journal, Prices, Search, candidates
from topwork.train import Epoch, Task, Trained, stages

pytestmark = pytest.mark.usefixtures("one_thread")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

N, CLASSES = 300, 4
LABELS = np.arange(N) % CLASSES
FOLD = head.folds(LABELS, None, 0)
LUCK = np.random.default_rng(0).permutation(N) / N
"""Of every image: a model of accuracy q is right where it is below q, so that better ones are right on more."""


def right(accuracy: float) -> NDArray[np.bool_]:
    return np.less(LUCK, accuracy)


BACKBONE = as_backbone(tiny_network())
DECODE, FORWARD = 1e-3, np.array([1, 2, 3, 2, 2, 1]) * 1e-3  # seconds per image

VIEWS = Recipe("suffix", "", "").views

Quality = Callable[[Recipe], float]


@dataclass
class Clock:
    """Time that passes only by what is done; something may happen at a given moment."""

    now: float = 0.0
    alarm: float = math.inf

    def spend(self, seconds: float) -> None:
        if self.now + seconds >= self.alarm:
            self.now, self.alarm = self.alarm, math.inf
            raise KeyboardInterrupt
        self.now += float(seconds)

    def perf_counter(self) -> float:
        return self.now


@dataclass
class Views:
    """A store that knows only which views are there, and what making one costs."""

    clock: Clock
    there: set[tuple[int, int]] = field(default_factory=set)
    dearer: float = 1.0  # than predicted
    backbone = BACKBONE

    def ensure(self, points: Sequence[int], number: int, watch: object = None) -> int:
        missing = {(p, number) for p in points} - self.there
        if not missing:
            return 0
        deepest = max(p for p, _ in missing)
        self.clock.spend(self.dearer * N * 1.5 * (DECODE + FORWARD[:deepest].sum()))
        self.there |= missing
        return N

    def held(self, point: int, numbers: Iterable[int]) -> set[int]:
        return {k for k in numbers if (point, k) in self.there}


@dataclass
class Stage:
    """Stands in for training: each candidate has a quality and a price, and time is only counted."""

    cache: Path
    quality: Quality = lambda recipe: 0.5
    dearer: float = 1.0  # a training than predicted
    clock: Clock = field(default_factory=Clock)
    trained: list[tuple[Recipe, Ints]] = field(default_factory=list)  # that were carried through
    begun: list[Recipe] = field(default_factory=list)
    checkpoints: dict[str, int] | None = None  # epochs done, by name; without it nothing is gone on with
    views: Views = field(init=False)

    def __post_init__(self) -> None:
        self.views = Views(self.clock)

    def train(self, task: Task, recipe: Recipe, rows: Ints, start: Any, **how: Any) -> Trained | None:
        first, last = BACKBONE.index(recipe.unfreeze), BACKBONE.index(recipe.cut)
        seconds, view_seconds = self.dearer * len(rows) * 4 * float(FORWARD[first : last + 1].sum()), 0.0
        self.begun.append(recipe)
        kept = {} if self.checkpoints is None else self.checkpoints
        for epoch in range(kept.get(how["checkpoint"].name, 0), recipe.epochs):
            before = self.clock.now
            self.views.ensure([first], search.view_number(recipe, epoch))
            view_seconds += self.clock.now - before
            self.clock.spend(seconds)
            kept[how["checkpoint"].name] = epoch + 1
            if how.get("give_up", lambda *_: False)(epoch + 1, view_seconds + seconds * (epoch + 1)):
                return None
        self.trained.append((recipe, rows))
        curve = tuple(Epoch(1 / (e + 1), seconds) for e in range(recipe.epochs))
        return Trained(recipe, curve, view_seconds)  # type: ignore[arg-type]

    def predict(self, recipe: Recipe, store: Views, rows: Ints) -> Floats:
        """Sure and right, or as sure and wrong; a touch of luck, so that no two rates are equally sure."""
        right = LUCK[rows] < self.quality(recipe)
        answer = np.where(right, LABELS[rows], (LABELS[rows] + 1) % CLASSES)
        return 4 * np.eye(CLASSES)[answer] + np.random.default_rng(len(rows)).normal(0, 0.1, (len(rows), CLASSES))

    def search(self, budget: float, *, frozen: float = 0.5, journal: Path | None = None, **other: Any) -> Search:
        """`frozen`: the accuracy of the frozen model's head."""
        return Search(
            Task(self.views, LABELS, CLASSES),  # type: ignore[arg-type]
            lambda cut, rows: None,  # type: ignore[arg-type,return-value]
            Baseline(FOLD, other.pop("correct", right(frozen)), other.pop("groups", None)),
            Prices(DECODE, FORWARD), budget, 0, self.cache, "these images", Journal.opened(journal), **other,
        )  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return set_up(tmp_path / "cache", monkeypatch)


def set_up(cache: Path, patch: pytest.MonkeyPatch, **facts: Any) -> Stage:
    made = Stage(cache, **facts)
    patch.setattr(search, "train", made.train)
    patch.setattr(search, "predict", made.predict)
    patch.setattr(search, "time", made.clock)
    return made


def everything(epochs: int = 15, **other: Any) -> list[Recipe]:
    given: dict[str, Any] = {"lr": 1e-3, "balance": False} | other
    return candidates(BACKBONE.cuts, "two", "three", epochs=epochs, **given)


PLENTY = 1e6


# ---- what is worth a try


def cuts_of(heights: Sequence[int]) -> tuple[Cut, ...]:
    return tuple(Cut(f"c{i}", 8, h, h, 0, 0) for i, h in enumerate(heights))


@given(data=st.data(), heights=st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_candidates_make_sense_for_any_cuts(data: st.DataObject, heights: list[int]) -> None:
    """None twice, none that begins after its cut; both kinds of everything and the first block are among them."""
    cuts = cuts_of(sorted(heights, reverse=True))
    names = [c.name for c in cuts]
    chosen, best = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
    found = candidates(cuts, chosen, best, epochs=7, lr=0.01, balance=True)
    assert len(set(found)) == len(found)
    assert all(names.index(r.unfreeze) <= names.index(r.cut) for r in found)
    assert {r.cut for r in found} == {chosen, best, names[-1]}
    assert all((r.epochs, r.balance) == (7, True) for r in found)
    reached = [(r.cut, r.unfreeze, r.lr) for r in found]
    assert (best, names[0], 0.01) in reached  # everything
    assert (names[-1], names[0], 0.01 * RATE_STEP) in reached  # everything, far
    first_block = [(best, names[0], 0.01)] if best != names[0] else []  # there it is everything
    assert [(r.cut, r.unfreeze, r.lr) for r in found if r.strategy == "surgical"] == first_block
    stage = stages(cuts)
    for cut in {chosen, best, names[-1]}:  # the last stage from its first block on
        first = names[stage.index(stage[names.index(cut)])]
        assert (cut, first, 0.01) in reached


def test_no_candidate_is_another_one_by_a_different_name() -> None:
    """What is trained, at which rates, under which cut: were two alike, one would be trained for nothing."""
    cuts = cuts_of([8, 8, 4])
    found = candidates(cuts, "c0", "c0", epochs=7, lr=0.01, balance=False)
    assert len({(r.cut, r.unfreeze, r.lr) for r in found}) == len(found)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_lite0"])
def test_candidates_of_real_networks(name: str) -> None:
    """The cheapest start, the last stage of the whole network, comes first; a search tries eight or fewer."""
    from topwork.zoo import skeleton
    from topwork.zoo.sources import find

    cuts = skeleton(name, find(name).preprocessing.at(64)).cuts
    found = candidates(cuts, cuts[len(cuts) // 2].name, cuts[-2].name, epochs=15, lr=1e-3, balance=False)
    stage = stages(cuts)
    assert found[0].cut == cuts[-1].name
    assert found[0].unfreeze == cuts[stage.index(stage[-1])].name
    assert 5 <= len(found) <= 9
    assert {r.strategy for r in found} == {"suffix", "full", "surgical"}


# ---- whether to try at all


@pytest.mark.parametrize("errors", range(LEAST_ERRORS + 1))
def test_a_head_with_next_to_no_errors_is_left_alone(stage: Stage, errors: int) -> None:
    correct = np.ones(N, bool)
    correct[:errors] = False
    found = stage.search(PLENTY, correct=correct).choose(everything())
    if errors == LEAST_ERRORS:
        assert stage.begun
        return
    assert (stage.begun, stage.clock.now, found.spent_seconds) == ([], 0, 0)
    assert (found.recipe, found.gain, found.n, found.replaced, found.trials) == (None, None, 0, False, ())
    assert f"makes {errors} error{'' if errors == 1 else 's'} on {N} images" in found.reason


def test_a_budget_that_is_too_small_starts_nothing_and_says_what_it_would_take(stage: Stage) -> None:
    """Just what it names is enough for one, tested and finished."""
    stage.quality = lambda recipe: 0.9
    found = stage.search(5.0).choose(everything())
    assert (stage.begun, stage.clock.now) == ([], 0)
    assert not found.replaced
    assert found.trials == ()
    assert "budget of 5 s" in found.reason and "--budget" in found.reason
    named = float(found.reason.split("takes about ")[1].split(" s")[0])

    recipes = everything()
    costs = [
        2 * (240 * 15 * 4 * part(r) + (1 + VIEWS) * N * view_cost(r))
        + 300 * 15 * 4 * part(r)
        + (1 + VIEWS) * N * view_cost(r)
        for r in recipes
    ]
    assert named == pytest.approx(min(costs), abs=0.5)  # by hand: all its views thrice, since none is there
    assert not stage.search(0.9 * named).choose(recipes).trials
    assert stage.search(1.3 * named).choose(recipes).trials  # with the short training before it


def part(r: Recipe) -> float:
    return float(FORWARD[BACKBONE.index(r.unfreeze) : BACKBONE.index(r.cut) + 1].sum())


def view_cost(r: Recipe) -> float:
    return 1.5 * (DECODE + float(FORWARD[: BACKBONE.index(r.unfreeze)].sum()))


# ---- what it spends


@settings(max_examples=30, deadline=None)
@given(budget=st.floats(10, 4000), epochs=st.integers(1, 20), seed=st.integers(0, 999), frozen=st.floats(0.2, 0.95))
def test_it_never_spends_more_than_it_may(
    tmp_path_factory: pytest.TempPathFactory, budget: float, epochs: int, seed: int, frozen: float
) -> None:
    """Where costs come as predicted: at most a tenth over, the final training counted. The clock is the judge."""
    rng = np.random.default_rng(seed)
    luck: dict[Recipe, float] = {}

    def quality(recipe: Recipe) -> float:
        return luck.setdefault(replace(recipe, epochs=1), float(rng.uniform(0.1, 1)))

    with pytest.MonkeyPatch.context() as patch:
        stage = set_up(tmp_path_factory.mktemp("budget"), patch, quality=quality)
        course = stage.search(budget, frozen=frozen)
        found = course.choose(everything(epochs))
        if found.replaced:
            assert found.recipe is not None
            course.final(found.recipe)
    assert stage.clock.now <= (1 + SLACK) * budget
    assert found.spent_seconds <= course.spent
    assert course.spent >= stage.clock.now - 1e-6  # nothing goes unnoticed


def test_views_that_serve_all_candidates_are_paid_once(stage: Stage) -> None:
    course = stage.search(PLENTY)
    short = [replace(r, epochs=SHORT) for r in everything()]
    course._rung("short", short, everything())
    assert len(stage.trained) == len(short)
    assert course.spent == pytest.approx(stage.clock.now)


@pytest.mark.parametrize("dearer", [3.0, 30.0])
def test_trainings_that_prove_dearer_are_given_up(stage: Stage, dearer: float) -> None:
    """Prices are learnt from what was done; one under way is ended when it would overrun."""
    stage.dearer, stage.quality = dearer, lambda recipe: 0.9
    budget = 600.0
    course = stage.search(budget)
    found = course.choose(everything())
    one_epoch = dearer * N * 4 * FORWARD.sum()
    if found.replaced:
        assert found.recipe is not None
        course.final(found.recipe)
    assert stage.clock.now <= (1 + SLACK) * budget + one_epoch
    carried = [r for r, _ in stage.trained]
    assert {t.recipe for t in found.trials} <= set(carried)


def test_what_is_given_up_is_not_kept(stage: Stage) -> None:
    """Neither as a result nor as a checkpoint; the next one is tried."""
    stage.dearer = 100.0
    found = stage.search(400.0).choose(everything())
    given_up = set(stage.begun) - {r for r, _ in stage.trained}
    assert given_up
    assert not given_up & {t.recipe for t in found.trials}
    kept = list((stage.cache / "trials").glob("*")) if (stage.cache / "trials").exists() else []
    assert len(kept) == len(stage.trained)


def test_what_is_too_dear_is_passed_over_while_cheaper_ones_go_on(stage: Stage) -> None:
    """A budget that pays for the last stage but not for the whole network."""
    recipes = everything()
    needs = {r: 3 * (300 * 15 * 4 * part(r) + (1 + VIEWS) * N * view_cost(r)) for r in recipes}
    cheap, dear = min(needs.values()), max(needs.values())
    assert dear > 2 * cheap
    found = stage.search(1.4 * cheap).choose(recipes)
    tried = {replace(t.recipe, epochs=15) for t in found.trials if t.rung == "short"}
    assert tried
    assert tried < set(recipes)
    assert all(needs[r] < dear for r in tried)


def test_the_budget_covers_the_first_rung_before_the_second(stage: Stage) -> None:
    """With plenty, everything is tried short, the best two and two other rates in full, and the winner in the test."""
    stage.quality = lambda recipe: 0.8 if recipe.strategy == "full" else 0.6
    found = stage.search(PLENTY, frozen=0.55).choose(everything())
    rungs = [t.rung for t in found.trials]
    assert rungs == sorted(rungs, key=["short", "long", "test"].index)
    assert {replace(t.recipe, epochs=15) for t in found.trials if t.rung == "short"} == set(everything())
    assert all(t.recipe.epochs == SHORT for t in found.trials if t.rung == "short")
    long = [t.recipe for t in found.trials if t.rung == "long"]
    assert all(r.epochs == 15 for r in long)
    rates = sorted({r.lr for r in long if (r.strategy, r.cut) == (long[0].strategy, long[0].cut)})
    assert rates[0] * RATE_STEP**2 == pytest.approx(rates[-1])
    assert {t.recipe for t in found.trials if t.rung == "test"} == {found.recipe}


def test_no_candidate_is_tried_twice_on_one_fold(stage: Stage) -> None:
    """The high-rate arm is what a neighbouring rate of the plain one comes to."""
    stage.quality = lambda r: 0.9 if r.strategy == "full" and r.cut == "four" else 0.3
    found = stage.search(PLENTY).choose(candidates(BACKBONE.cuts, "four", "four", epochs=15, lr=1e-3, balance=False))
    assert len({(t.recipe, t.fold) for t in found.trials}) == len(found.trials)


def test_a_training_that_is_remembered_is_paid_once(stage: Stage) -> None:
    """With few epochs, the short training is the long one."""
    course = stage.search(PLENTY)
    course.choose(everything(epochs=SHORT))
    assert course.spent == pytest.approx(stage.clock.now)


def test_views_are_made_for_all_candidates_at_once(stage: Stage) -> None:
    """One pass per view of the short trainings, whatever the number of places where training may begin."""
    calls: list[list[int]] = []
    ensure = stage.views.ensure

    def counted(points: Sequence[int], number: int, watch: object = None) -> int:
        passed = ensure(points, number)
        if passed:
            calls.append(list(points))
        return passed

    stage.views.ensure = counted  # type: ignore[method-assign]
    stage.search(PLENTY).choose(everything())
    together = [points for points in calls if len(points) > 1]
    assert together == [sorted({BACKBONE.index(r.unfreeze) for r in everything()})] * (min(SHORT, VIEWS) + 1)


# ---- prices


def test_prices_are_learnt(stage: Stage) -> None:
    """A measured candidate costs what it took; the others are as much dearer than predicted as it was."""
    prices = Prices(DECODE, FORWARD)
    one, other = Recipe("suffix", "four", "three"), Recipe("full", "four", "stem")
    assert prices.epoch(BACKBONE.cuts, one) == pytest.approx(4 * 0.004)
    assert prices.views(2) == pytest.approx(1.5 * 0.004)
    assert prices.views(0) == pytest.approx(1.5 * 0.001)
    prices.learn(BACKBONE.cuts, one, 0.04)
    assert prices.epoch(BACKBONE.cuts, replace(one, lr=1.0, epochs=3)) == 0.04
    assert prices.epoch(BACKBONE.cuts, other) == pytest.approx(10 * 0.010)
    prices.learn(BACKBONE.cuts, other, 0.02)
    assert prices.epoch(BACKBONE.cuts, other) == 0.02
    assert prices.epoch(BACKBONE.cuts, Recipe("suffix", "two", "two")) == pytest.approx((10 + 2) / 2 * 0.003)


def test_views_that_are_there_cost_nothing(stage: Stage) -> None:
    recipe, course = Recipe("suffix", "four", "three", epochs=3, views=2), stage.search(PLENTY)
    training = 3 * 240 * 4 * part(recipe)
    assert course.price(recipe) == pytest.approx(training + 3 * N * view_cost(recipe))
    stage.views.there = {(3, 1)}
    assert course.price(recipe) == pytest.approx(training + 2 * N * view_cost(recipe))
    stage.views.there = {(3, 0), (3, 1), (3, 2), (2, 3)}
    assert course.price(recipe) == pytest.approx(training)
    assert course.price(recipe, final=True) == pytest.approx(training * 300 / 240)


# ---- what it decides


def test_the_winner_is_tested_where_nothing_was_chosen(stage: Stage) -> None:
    """The rungs train on all folds but the first and are judged there; the test leaves that one out."""
    stage.quality = lambda recipe: 0.75
    found = stage.search(PLENTY, frozen=0.6).choose(everything())
    for trial in found.trials:
        assert (trial.fold == 0) == (trial.rung != "test")
        assert trial.n == (trial.fold == FOLD).sum()
        assert trial.head_accuracy == pytest.approx((LUCK < 0.6)[trial.fold == FOLD].mean())
        assert trial.accuracy == pytest.approx((LUCK < 0.75)[trial.fold == FOLD].mean())
    folds = {tuple(np.setdiff1d(np.arange(N), rows)) for _, rows in stage.trained}
    assert folds <= {tuple(np.flatnonzero(k == FOLD)) for k in range(5)}
    tests = [t.fold for t in found.trials if t.rung == "test"]
    assert tests == list(range(1, 1 + len(tests)))
    tested = np.isin(FOLD, tests)
    assert found.n == tested.sum()
    assert found.gain == pytest.approx(((LUCK < 0.75)[tested]).mean() - ((LUCK < 0.6)[tested]).mean())


def test_the_best_of_the_long_rung_is_tested_not_of_the_short_one(stage: Stage) -> None:
    """A candidate that starts slowly may still come furthest."""
    slow, fast = everything()[0], everything()[2]

    def quality(r: Recipe) -> float:
        long = r.epochs == 15
        if replace(r, epochs=15) == slow:
            return 0.95 if long else 0.7
        return 0.8 if replace(r, epochs=15) == fast else 0.3

    stage.quality = quality
    found = stage.search(PLENTY, frozen=0.5).choose(everything())
    assert found.recipe == slow
    assert found.replaced


@settings(max_examples=40, deadline=None)
@given(frozen=st.floats(0.05, 0.9), trained=st.floats(0.05, 1.0))
@example(frozen=0.5, trained=0.504)  # right on one or two more: too few to show
def test_it_replaces_only_what_it_is_shown_to_beat(
    tmp_path_factory: pytest.TempPathFactory, frozen: float, trained: float
) -> None:
    """By hand: mean paired difference less 1.28 standard errors, one image of difference added to them."""
    with pytest.MonkeyPatch.context() as patch:
        stage = set_up(tmp_path_factory.mktemp("decide"), patch, quality=lambda recipe: trained)
        found = stage.search(PLENTY, frozen=frozen).choose(everything())
    rows = np.isin(FOLD, [t.fold for t in found.trials if t.rung == "test"])
    d = (right(trained).astype(float) - right(frozen))[rows]
    error = math.hypot(np.std(d, ddof=1) / math.sqrt(len(d)), 1 / len(d))
    low = d.mean() - 1.281552 * error
    assert found.gain == pytest.approx(d.mean())
    assert found.gain_low == pytest.approx(low)
    assert found.replaced == (low > 0)
    would = not found.replaced and d.mean() > 0  # what would change the answer, where more images would
    assert found.reason.endswith(" more such images." if would else ").")
    assert f"{100 * d.mean():+.1f} points" in found.reason
    assert ("not shown to be better" in found.reason) != found.replaced


def test_images_that_belong_together_are_one_witness(stage: Stage) -> None:
    """Six copies of each picture: the interval is that of the pictures, not of the copies."""
    stage.quality = lambda recipe: 0.62
    groups = np.arange(N) // 6
    alone = stage.search(PLENTY, frozen=0.55)
    together = stage.search(PLENTY, frozen=0.55, groups=groups)
    recipe = everything()[0]
    for course in (alone, together):
        course.tested(recipe, folds=5)
    rows, _ = together.out_of_fold(recipe)
    d = (LUCK < 0.62).astype(float)[rows] - (LUCK < 0.55)[rows]
    sums = np.array([(d - d.mean())[groups[rows] == g].sum() for g in np.unique(groups[rows])])
    error = math.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(d)
    sizes = np.unique(groups[rows], return_counts=True)[1]
    error = math.hypot(error, (sizes**2).sum() / sizes.sum() ** 2)
    value, low, _ = together.gain(recipe)
    assert low == pytest.approx(value - 1.281552 * error)


@pytest.mark.parametrize(("trained", "folds"), [(0.1, 1), (1.0, 1), (0.53, 4)])
def test_a_test_ends_when_it_is_settled(stage: Stage, trained: float, folds: int) -> None:
    """Far worse or far better shows on one fold; a small difference takes them all."""
    stage.quality = lambda recipe: trained
    course = stage.search(PLENTY, frozen=0.5)
    course.tested(everything()[0])
    assert [t.fold for t in course.trials] == list(range(1, 1 + folds))


def test_a_training_that_went_wrong_does_not_win(stage: Stage) -> None:
    """Numbers that are none, after a rate that was too high, are worse than anything."""
    stage.quality = lambda recipe: 0.8
    predict = stage.predict

    def some_nan(recipe: Recipe, store: Views, rows: Ints) -> Floats:
        logits = predict(recipe, store, rows)
        return logits * np.nan if replace(recipe, epochs=15) == everything()[0] else logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "predict", some_nan)
        found = stage.search(PLENTY).choose(everything())
    assert found.recipe is not None
    assert replace(found.recipe, lr=1e-3) != everything()[0]
    assert found.replaced
    records.decode(records.encode(found), Tuning, where="run.json")  # and what is told of it can be read back


def test_a_machine_that_becomes_slow_before_the_test_ends_it_in_words(stage: Stage) -> None:
    stage.quality = lambda recipe: 0.8
    train = stage.train

    def slower(task: Task, recipe: Recipe, rows: Ints, start: Any, **how: Any) -> Trained | None:
        if (FOLD[rows] == 0).any():  # no rung, the test
            stage.dearer = 100.0
        return train(task, recipe, rows, start, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "train", slower)
        found = stage.search(400.0).choose(everything())
    assert (found.replaced, found.gain, found.n) == (False, None, 0)
    assert found.recipe is not None
    assert "--budget" in found.reason


# ---- by hand


def test_what_was_asked_for_is_done_and_measured(stage: Stage) -> None:
    """Whatever the budget, and however bad it is: one fold tells the user so."""
    stage.quality = lambda recipe: 0.2
    recipe = everything()[0]
    found = stage.search(1.0).by_hand(recipe)
    assert found.replaced
    assert found.recipe == recipe
    assert [t.fold for t in found.trials] == [1]
    assert found.gain is not None and found.gain < 0
    assert f"{100 * found.gain:+.1f} points" in found.reason


def test_by_hand_more_folds_are_measured_where_the_budget_allows(stage: Stage) -> None:
    stage.quality = lambda recipe: 0.53
    found = stage.search(PLENTY).by_hand(everything()[0])
    assert [t.fold for t in found.trials] == [1, 2, 3, 4]
    assert found.n == (FOLD != 0).sum()


def test_the_final_training_sees_every_image(stage: Stage) -> None:
    course = stage.search(PLENTY)
    course.final(everything()[0])
    ((recipe, rows),) = stage.trained
    assert recipe == everything()[0]
    np.testing.assert_array_equal(rows, np.arange(N))
    assert course.spent == pytest.approx(stage.clock.now)


@pytest.mark.parametrize("recipe", everything(), ids=lambda r: f"{r.strategy} {r.unfreeze}-{r.cut} {r.lr}")
def test_a_candidate_in_words_says_what_is_trained_and_how(recipe: Recipe) -> None:
    text = search.describe(recipe)
    assert recipe.cut in text
    assert recipe.unfreeze in text or "everything" in text
    assert f"{recipe.lr:g}" in text and f"{recipe.epochs} epochs" in text


# ---- the journal, and going on


def test_a_journal_gives_back_what_it_was_told(tmp_path: Path) -> None:
    """What something took the first time, and once: whatever is asked for again is paid already."""
    journal = Journal.opened(tmp_path / "journal")
    assert journal.pay("a", 1.5) == 1.5
    assert journal.pay("b", 0.25) == 0.25
    assert journal.pay("a", 9.0) == 0
    again = Journal.opened(tmp_path / "journal")
    assert again.seconds == {"a": 1.5, "b": 0.25}
    assert again.pay("b", 7.0) == 0.25
    assert again.pay("b", 7.0) == 0
    assert Journal.opened(None).pay("a", 2.0) == 2.0
    assert Journal.opened(tmp_path / "none").seconds == {}


def cut_short(tmp_path: Path, last_bytes: int) -> Path:
    journal = Journal.opened(tmp_path / "journal")
    for name in "abc":
        journal.pay(name, 1.0)
    whole = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(whole[:-last_bytes])
    return tmp_path / "journal"


@pytest.mark.parametrize("lost", range(1, 11))
def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path, lost: int) -> None:
    """At any byte of it: `["c",1.0]` and its newline."""
    assert Journal.opened(cut_short(tmp_path, lost)).seconds == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("lost", range(1, 11))
def test_what_is_written_after_a_cut_off_line_is_read_again(tmp_path: Path, lost: int) -> None:
    """A second interruption."""
    path = cut_short(tmp_path, lost)
    journal = Journal.opened(path)
    journal.pay("d", 4.0)
    journal.pay("e", 5.0)
    assert Journal.opened(path).seconds == {"a": 1.0, "b": 1.0, "d": 4.0, "e": 5.0}


def story(found: Tuning) -> tuple[object, ...]:
    trials = [replace(t, seconds=round(t.seconds, 6)) for t in found.trials]  # a clock's sums round
    return found.recipe, found.replaced, found.reason, trials, round(found.spent_seconds, 6)


def differing(recipe: Recipe) -> float:
    return {"suffix": 0.7, "full": 0.72, "surgical": 0.6}[recipe.strategy] + BACKBONE.index(recipe.cut) / 100


def uninterrupted(cache: Path, budget: float) -> tuple[Tuning, float]:
    with pytest.MonkeyPatch.context() as patch:
        stage = set_up(cache, patch, quality=differing)
        stage.views.dearer = 1.3
        return stage.search(budget, frozen=0.6).choose(everything()), stage.clock.now


def interrupted(
    cache: Path, journal: Path, budget: float, moments: Sequence[float], checkpoints: dict[str, int] | None = None
) -> Tuning:
    """The same, stopped at these moments and gone on with each time."""
    there: set[tuple[int, int]] = set()
    for moment in [*moments, math.inf]:
        with pytest.MonkeyPatch.context() as patch:
            stage = set_up(cache, patch, quality=differing, clock=Clock(alarm=moment), checkpoints=checkpoints)
            stage.views.there, stage.views.dearer = there, 1.3
            try:
                return stage.search(budget, frozen=0.6, journal=journal).choose(everything())
            except KeyboardInterrupt:
                continue
    raise AssertionError("the last one is not interrupted")


@pytest.mark.parametrize("budget", [250.0, 1200.0])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.97])
def test_a_resumed_search_tries_and_spends_what_an_uninterrupted_one_does(
    tmp_path: Path, share: float, budget: float
) -> None:
    """Stopped at a share of its time: while views are made, or in a training of any rung."""
    whole, seconds = uninterrupted(tmp_path / "a", budget)
    resumed = interrupted(tmp_path / "b", tmp_path / "journal", budget, [share * seconds])
    assert seconds > 0
    assert story(resumed) == story(whole)


@pytest.mark.parametrize("share", [0.5, 0.65])
def test_a_training_that_was_interrupted_costs_what_it_took_in_all(tmp_path: Path, share: float) -> None:
    """Where it goes on from its checkpoint: before and after the interruption, to an epoch."""
    whole, seconds = uninterrupted(tmp_path / "a", 1200.0)
    resumed = interrupted(tmp_path / "b", tmp_path / "journal", 1200.0, [share * seconds], {})
    assert [round(t.seconds, 6) for t in resumed.trials] == [round(t.seconds, 6) for t in whole.trials]


def test_what_was_given_up_is_not_begun_again(tmp_path: Path) -> None:
    """A resumed search decides as the first one did, and loses no time on it."""
    begun = []
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            stage = set_up(tmp_path / "cache", patch, dearer=100.0)
            stage.search(400.0, journal=tmp_path / "journal").choose(everything())
            begun.append(stage.begun)
    assert begun[0]
    assert begun[1] == []


# ---- a real one


@pytest.fixture
def real(tmp_path: Path) -> Search:
    """Twelve pictures, a tiny network, nothing stood in for."""
    folder = write_photos(tmp_path / "photos", per_class=5, size_px=32)
    examples, backbone = labelled(folder), as_backbone(tiny_network())
    store = activations.store(
        backbone, "k", folder, examples, augmentation=Augmentation(), seed=0, cache=tmp_path / "cache"
    )
    labels = np.array([e.label for e in examples])
    dims = {c.name: 2 * c.channels for c in backbone.cuts}

    def start(cut: str, rows: Ints) -> head.Exact:
        rng = np.random.default_rng(0)
        d = dims[cut]
        return head.Exact(np.zeros(d), np.ones(d), rng.normal(0, 0.1, (d, 3)), np.zeros(3))

    return Search(
        Task(store, labels, 3), start, Baseline(head.folds(labels, None, 0), np.zeros(15, bool), None),
        Prices(DECODE, FORWARD), PLENTY, 0, tmp_path / "cache", "x", Journal.opened(None), Log(),
    )  # fmt: skip


def few(**changes: Any) -> list[Recipe]:
    return [replace(r, batch=6, views=1, **changes) for r in everything(epochs=2)]


def test_trying_one_candidate_changes_nothing_of_another(real: Search, tmp_path: Path) -> None:
    """Nor of the backbone: in either order, the same logits, and the learnt weights bit for bit."""
    backbone = real.task.store.backbone
    before = [{k: t.clone() for k, t in s.state_dict().items()} for s in backbone.chain.segments]
    recipes = few()
    other = replace(real, cache=tmp_path / "other", trials=[], logits={}, prices=Prices(DECODE, FORWARD))
    for course, order in ((real, recipes), (other, recipes[::-1])):
        for recipe in order:
            course.tested(recipe, folds=2)
    assert len(real.logits) == len(recipes)
    for key, logits in real.logits.items():
        np.testing.assert_array_equal(logits, other.logits[key])
    assert len({logits.tobytes() for logits in real.logits.values()}) == len(recipes)  # each its own
    for state, segment in zip(before, backbone.chain.segments, strict=True):
        assert all(torch.equal(t, segment.state_dict()[k]) for k, t in state.items())


def test_what_was_tried_is_remembered(real: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """By recipe, fold and seed; no checkpoint is left."""
    recipe = few()[0]
    real.tested(recipe, folds=3)
    assert {p.suffix for p in (real.cache / "trials").iterdir()} == {".npz"}
    begun = []

    def counted(*_: object, **__: object) -> None:
        begun.append(1)

    monkeypatch.setattr(search, "train", counted)
    again = replace(real, trials=[], logits={}, prices=Prices(DECODE, FORWARD))
    again.tested(recipe, folds=3)
    assert begun == []
    for key, logits in real.logits.items():
        np.testing.assert_array_equal(again.logits[key], logits)
    assert again.trials == real.trials
    for other in (replace(again, seed=1), replace(again, identity="other images")):
        other._trial("test", recipe, 1, limit=PLENTY)
    again._trial("test", replace(recipe, lr=0.5), 1, limit=PLENTY)
    again._trial("test", recipe, 4, limit=PLENTY)
    assert len(begun) == 4


def test_a_whole_search_runs(real: Search) -> None:
    """On a head that is always wrong, something is better, and the final training gives its network."""
    found = real.choose(few(lr=1e-2))
    assert found.replaced
    assert found.recipe is not None
    trained = real.final(found.recipe)
    assert real.spent >= found.spent_seconds
    assert len(trained.curve) == found.recipe.epochs
    assert list((real.cache / "trials").glob("*.now")) == real.finished  # the final one goes when the run is saved
    assert isinstance(real.watch, Log)
    assert {"trial", "tried"} <= set(real.watch.shown)


# ---- the recipe that was asked for


def measured() -> Any:
    return SimpleNamespace(backbone=BACKBONE)


def decided(cut: str = "three", best: str = "three") -> Any:
    @dataclass(frozen=True)
    class Decided:
        cut: str
        best_cut: str

    return Decided(cut, best)


def options(strategy: str, **given: Any) -> Options:
    return Options("folder", ("tiny",), strategy=strategy, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (options("suffix"), Recipe("suffix", "three", "two")),  # the last stage of what is kept
        (options("suffix", unfreeze="one"), Recipe("suffix", "three", "one")),
        (options("suffix", unfreeze="three"), Recipe("suffix", "three", "three")),
        (options("full"), Recipe("full", "three", "stem")),
        (options("surgical"), Recipe("surgical", "three", "stem")),
        (options("suffix", lr=0.1, epochs=2, balance=True),
         Recipe("suffix", "three", "two", lr=0.1, epochs=2, balance=True)),
    ],
)  # fmt: skip
def test_what_was_not_asked_for_is_measured_or_a_default(given: Options, expected: Recipe) -> None:
    assert tune.asked(measured(), decided(), given) == expected


def test_training_that_would_begin_after_the_cut_names_both() -> None:
    with pytest.raises(UsageError, match=r"--unfreeze four .* three"):
        tune.asked(measured(), decided(), options("suffix", unfreeze="four"))


def test_a_given_place_leaves_only_what_has_it() -> None:
    m = measured()
    assert {r.cut for r in tune._candidates(m, decided("two"), options("auto", cut="two"))} == {"two"}
    found = tune._candidates(m, decided("two", "three"), options("auto", unfreeze="three"))
    assert {(r.unfreeze, r.cut) for r in found} == {("three", "three"), ("three", "four")}
    rates = {r.lr for r in tune._candidates(m, decided(), options("auto", lr=0.5))}
    assert rates == {0.5, 0.5 * RATE_STEP}
    assert {r.epochs for r in tune._candidates(m, decided(), options("auto", epochs=3))} == {3}
    assert all(r.balance for r in tune._candidates(m, decided(), options("auto", balance=True)))


def test_without_a_strategy_too_training_that_would_begin_after_the_cut_names_both() -> None:
    with pytest.raises(UsageError, match=r"--unfreeze four .* two"):
        tune._candidates(measured(), decided("two"), options("auto", cut="two", unfreeze="four"))


def test_with_a_given_cut_the_whole_network_is_still_a_candidate() -> None:
    """That cut stands where the best one would."""
    found = tune._candidates(measured(), decided("two", "three"), options("auto", cut="two"))
    assert {r.strategy for r in found} >= {"surgical"}
    assert any(r.unfreeze == "stem" and r.strategy != "surgical" for r in found)


@pytest.mark.parametrize(
    ("gain", "low", "n", "more"), [(0.02, -0.02, 100, 300), (0.05, -0.001, 400, 16), (0.0, -0.1, 9, None)]
)
def test_what_would_change_the_answer_is_told(gain: float, low: float, n: int, more: int | None) -> None:
    """Twice the error that would just do needs four times the images: 300 more than 100."""
    said = search._more(gain, low, n)
    assert (f"about {more} more" in said) if more else said == ""
