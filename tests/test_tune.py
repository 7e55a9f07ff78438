"""Two backbones may be trained: each gets its share of the budget, and the better or the cheaper one is taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import Log
from topwork import plan, tune, workflow
from topwork.plan import Evidence
from topwork.records import Options, Recipe, Tuning
from topwork.tune import Arm, Tuned

Right = NDArray[np.bool_]
N = 200
LABELS = np.arange(N) % 2
RECIPE = Recipe("full", "b", "a")


def found(
    name: str, *, replaced: bool, recipe: Recipe | None = RECIPE, reason: str = "", spent: float = 10.0
) -> Tuning:
    said = reason or f"what {name} came to."
    return Tuning(50.0, spent, (), name, 32, recipe, 0.1, 0.05, N, replaced, said)


def arm(name: str, cost_ms: float = 1.0, **given: Any) -> Arm:
    m = SimpleNamespace(
        groups=given.get("groups"), importance=given.get("importance"),
        evidence=SimpleNamespace(cost=lambda cut: (0.5, cost_ms * (1 + ["a", "b"].index(cut)))),
        backbone=SimpleNamespace(index=["a", "b"].index),
        features=SimpleNamespace(fe_seconds=2.0),
    )  # fmt: skip
    decided = SimpleNamespace(backbone=name, size_px=32)
    return Arm(m, decided)  # type: ignore[arg-type]


@dataclass
class Course:
    """A search that is over: which images its trained model gets right."""

    name: str
    right: Right
    rows: NDArray[np.int64] = field(default_factory=lambda: np.arange(N))
    spent: float = 0.0
    finished: list[Path] = field(default_factory=list)
    task: Any = field(default_factory=lambda: SimpleNamespace(labels=LABELS))

    def out_of_fold(self, recipe: Recipe) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        answer = np.where(self.right, LABELS, 1 - LABELS)
        return self.rows, np.eye(2)[answer][self.rows]


def right(errors: int, start: int = 0) -> Right:
    """Right but on so many images from `start` on."""
    place = np.arange(N)
    return ~((place >= start) & (place < start + errors))


def better(
    first: Right, second: Right, *, costs: tuple[float, float], rows: tuple[Any, Any] = (None, None), **given: Any
) -> tuple[str, str]:
    """Whose outcome counts, and the reason, where both are better than the frozen model."""
    courses = [
        Course(name, r) if where is None else Course(name, r, where)
        for name, r, where in zip("xy", (first, second), rows, strict=True)
    ]
    pairs = [
        (arm(c.name, cost, **given), c, found(c.name, replaced=True))
        for c, cost in zip(courses, costs, strict=True)
    ]  # fmt: skip
    taken, course, tuning = tune._better(pairs[0], pairs[1])  # type: ignore[arg-type]
    assert taken.decided.backbone == course.name == tuning.backbone  # type: ignore[attr-defined]
    return tuning.backbone, tuning.reason


def test_the_one_that_is_shown_to_be_better_is_taken_whatever_it_costs() -> None:
    """40 errors against 10 of the same: a difference of 15 points on 200 images."""
    worse, good = right(40), right(10)
    said = "y at 32 px is shown to be better than x at 32 px, trained too; what y came to."
    assert better(worse, good, costs=(1, 9)) == ("y", said)
    assert better(worse, good, costs=(9, 1)) == ("y", said)
    said = "x at 32 px is shown to be better than y at 32 px, trained too; what x came to."
    assert better(good, worse, costs=(1, 9)) == ("x", said)
    assert better(good, worse, costs=(9, 1)) == ("x", said)


def test_of_two_that_are_not_told_apart_the_cheaper_one_is_taken() -> None:
    """20 errors each, on other images."""
    one, other = right(20), right(20, 100)
    cheaper = "is cheaper and not shown to be worse"
    assert better(one, other, costs=(1, 9)) == (
        "x", f"x at 32 px {cheaper} than y at 32 px, trained too; what x came to."
    )  # fmt: skip
    assert better(one, other, costs=(9, 1)) == (
        "y", f"y at 32 px {cheaper} than x at 32 px, trained too; what y came to."
    )  # fmt: skip


def test_of_two_alike_in_all_the_planned_one_stays() -> None:
    assert better(right(20), right(20, 100), costs=(3, 3)) == (
        "x", "x at 32 px is not shown to be worse than y at 32 px, trained too; what x came to."
    )  # fmt: skip


def test_only_images_that_both_were_judged_on_count() -> None:
    """On the others the second would be far better."""
    first, second = right(60, 140), right(0)
    assert better(first, second, costs=(1, 9))[0] == "y"
    assert better(first, second, costs=(1, 9), rows=(np.arange(N), np.arange(140)))[0] == "x"
    shuffled = np.random.default_rng(0).permutation(140)
    assert better(first, second, costs=(1, 9), rows=(np.arange(N), shuffled))[0] == "x"


def test_copies_are_one_witness_and_classes_may_weigh_alike() -> None:
    """12 images of one content are no proof; nor are 12 that hardly weigh."""
    first, second = right(12), right(0)
    assert better(first, second, costs=(1, 9))[0] == "y"
    groups = np.maximum(np.arange(N), 11)
    assert better(first, second, costs=(1, 9), groups=groups)[0] == "x"
    weight = np.where(np.arange(N) < 12, 0.01, 1.0)
    assert better(first, second, costs=(1, 9), importance=weight)[0] == "x"


def outcome(one: Tuning, other: Tuning) -> Tuning:
    pairs = [(arm(t.backbone), Course(t.backbone, right(0)), t) for t in (one, other)]
    return tune._better(pairs[0], pairs[1])[2]  # type: ignore[arg-type]


def test_the_one_that_replaces_the_frozen_model_counts() -> None:
    x, y = found("x", replaced=True), found("y", replaced=False)
    assert outcome(x, y).backbone == "x"
    assert outcome(x, y).reason == "what x came to. Of y at 32 px, what y came to."
    x, y = found("x", replaced=False), found("y", replaced=True)
    assert outcome(x, y).backbone == "y"
    assert outcome(x, y).reason == "what y came to. Of x at 32 px, what x came to."


@pytest.mark.parametrize("recipe", [RECIPE, None])
def test_where_neither_replaces_it_both_reasons_are_told(recipe: Recipe | None) -> None:
    got = outcome(found("x", replaced=False, recipe=recipe), found("y", replaced=False, recipe=recipe))
    assert (got.backbone, got.replaced) == ("x", False)
    assert got.reason == "what x came to. Of y at 32 px, what y came to."


# ---- what each may spend


@dataclass
class Play:
    """Searches with written outcomes; what they were given is noted."""

    outcomes: list[Tuning]
    rights: list[Right]
    budgets: list[float] = field(default_factory=list)
    journals: list[str | None] = field(default_factory=list)

    def search(
        self, which: Arm, right: Right, o: Options, budget: float, cache: Path, journal: Path | None, watch: Any
    ) -> Any:
        i = len(self.budgets)
        self.budgets.append(budget)
        self.journals.append(None if journal is None else journal.name)
        course = Course(self.outcomes[i].backbone, self.rights[i], finished=[Path(f"left-{i}")])

        def final(recipe: Recipe) -> str:
            course.spent += 5.0
            return f"trained {course.name}"

        course.choose = course.by_hand = lambda recipes: self.outcomes[i]  # type: ignore[attr-defined]
        course.final = final  # type: ignore[attr-defined]
        return course


def tuned(play: Play, monkeypatch: pytest.MonkeyPatch, *, arms: int = 2, budget: float = 100.0) -> Tuned:
    monkeypatch.setattr(tune, "_search", play.search)
    monkeypatch.setattr(tune, "_views", lambda *_: 3)
    monkeypatch.setattr(tune, "_candidates", lambda *_: [RECIPE])
    monkeypatch.setattr(tune, "_kept", lambda m, course, recipe, trained, o, cache: trained)
    given = [arm(t.backbone) for t in play.outcomes[:arms]]
    o = Options("photos", ("x", "y"))
    return tune.tune(given, right(9), o, budget=budget, cache=Path(), journal=Path("run/journal"), watch=Log())


def test_each_gets_half_of_the_budget_and_the_second_what_the_first_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play([found("x", replaced=False, spent=12.0), found("y", replaced=False, spent=30.0)], [right(0)] * 2)
    got = tuned(play, monkeypatch)
    assert play.budgets == [50.0, 88.0]
    assert play.journals == ["journal", "journal-1"]
    assert (got.tuning.budget_seconds, got.tuning.spent_seconds) == (100.0, 42.0)
    assert got.model is None
    assert got.leftovers == (Path("left-0"), Path("left-1"))


def test_one_backbone_alone_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play([found("x", replaced=True, spent=12.0)], [right(0)])
    got = tuned(play, monkeypatch, arms=1)
    assert (play.budgets, play.journals) == ([100.0], ["journal"])
    assert got.tuning.spent_seconds == 17.0  # with the final training
    assert got.model == "trained x"
    assert got.tuning.reason == "what x came to."


def test_only_the_winner_is_trained_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play([found("x", replaced=True), found("y", replaced=True)], [right(60), right(0)])
    got = tuned(play, monkeypatch)
    assert got.model == "trained y"
    assert got.tuning.backbone == "y"
    assert got.tuning.spent_seconds == 25.0
    assert got.leftovers == (Path("left-0"), Path("left-1"))


# ---- which backbones these are


def field_of(name: str, cuts: tuple[str, ...], accuracies: tuple[float, ...], ms: float) -> Any:
    place = np.arange(1000)[:, None]
    correct = place < 1000 * np.array(accuracies)
    shares = tuple((k + 1) / len(cuts) for k in range(len(cuts)))
    return SimpleNamespace(evidence=Evidence(name, 32, cuts, shares, shares, ms, correct))


def test_a_backbone_is_trained_from_its_own_best_cut() -> None:
    """The best place of all is the other backbone's, whose cuts have other names."""
    planned = field_of("planned", ("p1", "p2", "p3"), (0.88, 0.896, 0.89), 1.0)
    rival = field_of("rival", ("r1", "r2"), (0.5, 0.9), 50.0)
    decided = plan.decide(planned.evidence, rival.evidence, delta=0.05)
    assert (decided.backbone, decided.best_backbone, decided.best_cut) == ("planned", "rival", "r2")
    seen: Any = SimpleNamespace(rival=lambda _: rival)
    first, second = workflow._arms(seen, planned, decided, Options("photos", ("planned", "rival")))
    assert first.m is planned
    assert (first.decided.cut, first.decided.best_cut, first.decided.best_backbone) == (decided.cut, "p2", "planned")
    assert second.m is rival
    assert (second.decided.backbone, second.decided.cut, second.decided.best_cut) == ("rival", "r2", "r2")


@pytest.mark.parametrize("strategy", ["suffix", "full", "surgical"])
def test_a_strategy_by_hand_is_for_the_planned_backbone_alone(strategy: Any) -> None:
    planned = field_of("planned", ("p1", "p2"), (0.8, 0.9), 1.0)
    seen: Any = SimpleNamespace(rival=lambda _: field_of("rival", ("r1",), (0.9,), 9.0))
    decided = plan.decide(planned.evidence)
    assert len(workflow._arms(seen, planned, decided, Options("photos", ("a", "b"), strategy=strategy))) == 1
    assert len(workflow._arms(seen, planned, decided, Options("photos", ("a", "b")))) == 2
    alone: Any = SimpleNamespace(rival=lambda _: None)
    assert len(workflow._arms(alone, planned, decided, Options("photos", ("a",)))) == 1
