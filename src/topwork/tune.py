"""How is the second method, training the kept layers, carried out on what was measured: by hand or by search?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from topwork import activations, features, head, search, train
from topwork.errors import UsageError
from topwork.measurement import Measured
from topwork.records import Augmentation, Options, Plan, Recipe, Strategy, Tuning
from topwork.statistics import class_weights, paired_gain
from topwork.watch import Watch
from topwork.zoo import Backbone

VIEWS_SHARE = 0.1
"""Of the budget that may go into views."""

_DEFAULT = Recipe("suffix", "", "")


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, and scores of it, or of its like, on images that it was not trained on."""

    m: Measured  # of the backbone, before training
    backbone: Backbone  # with the trained layers in place
    cut: str
    weight: NDArray[np.float32]  # (d, C) of the head on pooled features
    bias: NDArray[np.float32]  # (C,)
    temperature: float
    rows: NDArray[np.int64]  # of all images of the data set
    scores: NDArray[np.float64]  # (len(rows), C) before the temperature
    fold_rows: NDArray[np.int64]  # of the images that were held out of a training in full
    fold_scores: NDArray[np.float64]  # (len(fold_rows), C) out of fold


@dataclass(frozen=True)
class Tuned:
    """What was tried, and the model where it replaces the frozen one."""

    tuning: Tuning
    model: TrainedModel | None
    leftovers: tuple[Path, ...] = ()  # files that nothing needs once the run is saved


@dataclass(frozen=True)
class Arm:
    """A backbone whose layers may be trained, with the plan for it alone."""

    m: Measured
    decided: Plan


def tune(
    arms: Sequence[Arm],
    right: NDArray[np.bool_],
    o: Options,
    *,
    budget: float,
    cache: Path,
    journal: Path | None,
    watch: Watch,
) -> Tuned:
    """Search for the training that is worth its cost, or carry out the one that was asked for.

    The first arm is the planned backbone; where there is a second one, each gets half of the `budget` (seconds), and
    the second what the first leaves. `right` (n,) says where the frozen model is right, out of fold.
    """
    first = arms[0].m
    watch.show("budget", (budget, budget / first.features.fe_seconds))
    spent, found = 0.0, []
    for i, arm in enumerate(arms):
        share = (budget - spent) / (len(arms) - i)
        with threadpool_limits(1, "blas"):
            course = _search(arm, right, o, share, cache, _numbered(journal, i), watch)
        views = _views(course, o.epochs or _DEFAULT.epochs)
        if o.strategy == "auto":
            tuning = course.choose([replace(r, views=views) for r in _candidates(arm.m, arm.decided, o)])
        else:
            tuning = course.by_hand(replace(asked(arm.m, arm.decided, o), views=views))
        spent += tuning.spent_seconds
        found.append((arm, course, tuning))
    arm, course, tuning = found[0] if len(found) == 1 else _better(found[0], found[1])
    trials = tuple(t for _, _, each in found for t in each.trials)
    tuning = replace(tuning, budget_seconds=budget, spent_seconds=spent, trials=trials)
    if not tuning.replaced or tuning.recipe is None:
        return Tuned(tuning, None, tuple(path for _, c, _ in found for path in c.finished))
    before = course.spent
    trained = course.final(tuning.recipe)
    kept = _kept(arm.m, course, tuning.recipe, trained, o, cache)
    leftovers = tuple(path for _, c, _ in found for path in c.finished)
    return Tuned(replace(tuning, spent_seconds=spent + course.spent - before), kept, leftovers)


def _numbered(journal: Path | None, i: int) -> Path | None:
    """Each arm's own journal: journal, journal-1."""
    return journal.with_name(f"{journal.name}-{i}") if journal is not None and i else journal


Found = tuple[Arm, search.Search, Tuning]


def _better(first: Found, second: Found) -> Found:
    """Which of two backbones' outcomes counts: the one that is shown to be better; else the cheaper trained model."""
    (one, course, a), (two, other, b) = first, second
    if not (a.replaced and b.replaced and a.recipe is not None and b.recipe is not None):
        if b.replaced:
            return two, other, replace(b, reason=_with(b.reason, one, a))
        return one, course, replace(a, reason=_with(a.reason, two, b))
    rows, logits = course.out_of_fold(a.recipe)
    others, rival = other.out_of_fold(b.recipe)
    common = np.intersect1d(rows, others)
    labels = course.task.labels[common]

    def right(of: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        where = {row: i for i, row in enumerate(of)}
        answers: NDArray[np.bool_] = scores[[where[row] for row in common]].argmax(axis=1) == labels
        return answers

    groups = None if one.m.groups is None else one.m.groups[common]
    weight = None if one.m.importance is None else one.m.importance[common]
    mine, theirs = right(rows, logits), right(others, rival)
    _, low = paired_gain(theirs, mine, groups, weight)
    _, back = paired_gain(mine, theirs, groups, weight)
    saved = _cost_ms(one, a.recipe) - _cost_ms(two, b.recipe)
    if low > 0 or (saved > 0 and back <= 0):
        reason = f"{_named(two)} {_why(low, saved)} {_named(one)}, trained too; {b.reason}"
        return two, other, replace(b, reason=reason)
    return one, course, replace(a, reason=f"{_named(one)} {_why(back, -saved)} {_named(two)}, trained too; {a.reason}")


def _why(low: float, saved: float) -> str:
    """Why one of two trained models is taken: the lower bound of its gain over the other, and what it costs less."""
    if low > 0:
        return "is shown to be better than"
    return "is cheaper and not shown to be worse than" if saved > 0 else "is not shown to be worse than"


def _with(reason: str, rival: Arm, tuning: Tuning) -> str:
    """Both outcomes in one sentence."""
    return f"{reason} Of {_named(rival)}, {tuning.reason}"


def _named(arm: Arm) -> str:
    return f"{arm.decided.backbone} at {arm.decided.size_px} px"


def _cost_ms(arm: Arm, recipe: Recipe) -> float:
    return arm.m.evidence.cost(recipe.cut)[1]


def asked(m: Measured, decided: Plan, o: Options) -> Recipe:
    """The recipe of a strategy by hand: what was not given is the plan's cut, its last stage, and defaults."""
    names = [c.name for c in m.backbone.cuts]
    cut = decided.cut
    if o.strategy == "suffix":
        stage = train.stages(m.backbone.cuts)
        begin = o.unfreeze or names[stage.index(stage[names.index(cut)])]
    else:
        begin = names[0]
    if names.index(begin) > names.index(cut):
        raise UsageError(
            f"--unfreeze {begin} lies after the cut {cut}: nothing would be trained; choose an earlier one"
        )
    strategy: Strategy = "suffix" if o.strategy == "auto" else o.strategy
    return replace(
        _DEFAULT, strategy=strategy, cut=cut, unfreeze=begin, lr=o.lr or _DEFAULT.lr,
        epochs=o.epochs or _DEFAULT.epochs, balance=o.balance,
    )  # fmt: skip


def clean(arms: Sequence[Arm], o: Options, cache: Path, leftovers: tuple[Path, ...]) -> None:
    """Delete what a finished run needs no more: its views, the largest thing on disk, and its last checkpoint."""
    for path in leftovers:
        path.unlink(missing_ok=True)
    for arm in arms:
        _store(arm.m, o, cache, arm.m.rows).drop()


def _views(course: search.Search, epochs: int) -> int:
    """Augmented views per image: a new one every epoch where a tenth of the budget and the disk pay for it.

    Never fewer than the default: two to eight were about as good (bench/LOG.md), one would be learnt by heart.
    """
    whole = len(course.task.labels) * course.prices.views(len(course.cuts))
    affordable = int(VIEWS_SHARE * course.budget / whole)
    return course.task.store.affordable_views(0, max(_DEFAULT.views, min(epochs, affordable)))


def _candidates(m: Measured, decided: Plan, o: Options) -> list[Recipe]:
    """What the search may try: all of it, or what the given cut and unfreeze point leave."""
    found = search.candidates(
        m.backbone.cuts, decided.cut, o.cut or decided.best_cut,
        epochs=o.epochs or _DEFAULT.epochs, lr=o.lr or _DEFAULT.lr, balance=o.balance,
    )  # fmt: skip
    if o.cut is not None:
        found = [r for r in found if r.cut == o.cut]
    if o.unfreeze is not None:
        cuts = list(dict.fromkeys(r.cut for r in found))
        begin = m.backbone.index(o.unfreeze)
        # Where no cut lies after it, the first one says so.
        cuts = [cut for cut in cuts if begin <= m.backbone.index(cut)] or cuts[:1]
        found = [asked(m, replace(decided, cut=cut), replace(o, strategy="suffix")) for cut in cuts]
    return found


def _search(
    arm: Arm, right: NDArray[np.bool_], o: Options, budget: float, cache: Path, journal: Path | None, watch: Watch
) -> search.Search:
    m = arm.m
    labels, classes = m.labels[m.rows], len(m.dataset.classes)

    def start(cut: str, rows: NDArray[np.int64]) -> head.Exact:
        k = m.backbone.index(cut)
        seen, rows = m.scored_at(k, rows)
        y = seen.labels[seen.rows[rows]]
        penalty = float(seen.probes[k].penalties[seen.probes[k].best])
        groups = None if seen.groups is None else seen.groups[rows]
        importance = class_weights(y, classes)[y] if o.balance else None
        with threadpool_limits(1, "blas"):
            return head.exact(seen.features.at(k, seen.rows[rows]), y, classes, penalty, groups, importance)

    timing = m.features.seconds
    store = _store(m, o, cache, m.rows)
    return search.Search(
        train.Task(store, labels, classes),
        start,
        search.Baseline(head.folds(labels, m.groups, o.seed), right, m.groups, m.importance),
        search.Prices(float(timing[0]), m.features.engine.faster * timing[1:]),  # training runs in PyTorch
        budget,
        o.seed,
        cache,
        f"{store.folder.name} {store.augmentation} {labels.tolist()}{m.shortened}",
        search.Journal.opened(journal),
        watch,
    )


def _store(m: Measured, o: Options, cache: Path, rows: NDArray[np.int64]) -> activations.Store:
    examples = [m.dataset.examples[i] for i in rows]
    return activations.store(
        m.backbone, features.key(m.backbone), m.dataset.root, examples,
        augmentation=Augmentation(flip=o.flip), seed=o.seed, cache=cache,
    )  # fmt: skip


def _kept(
    m: Measured, course: search.Search, recipe: Recipe, trained: train.Trained, o: Options, cache: Path
) -> TrainedModel:
    """The model to save, with the scores that its metrics rest on: the locked part's, else out of fold."""
    rows, scores = course.out_of_fold(recipe)
    t = head.temperature(scores, course.task.labels[rows])
    rows = fold_rows = m.rows[rows]
    fold_scores = scores
    if m.locked != "out-of-sample":
        rows = m.locked_rows
        locked = _store(m, o, cache, rows)
        try:
            scores = train.predict(trained.network, locked, np.arange(len(rows)))
        finally:
            locked.drop()
    weight, bias = train.raw_head(trained.network)
    backbone = train.grafted(m.backbone, recipe, trained.network)
    return TrainedModel(m, backbone, recipe.cut, weight, bias, t, rows, scores, fold_rows, fold_scores)
