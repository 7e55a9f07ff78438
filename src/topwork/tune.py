"""How is the second method, training the kept layers, carried out on what was measured: by hand or by search?"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from topwork import activations, features, head, search, train
from topwork.errors import UsageError
from topwork.measurement import Measured
from topwork.records import Augmentation, Options, Plan, Recipe, Strategy, Tuning
from topwork.statistics import class_weights
from topwork.watch import Watch
from topwork.zoo import Backbone

BUDGET_FE = 100.0
LEAST_BUDGET_S, MOST_BUDGET_S = 60.0, 900.0
"""Default budget: 100 FE pay for trying every candidate on a few hundred images (bench/strategies.py); a
minute is no wait, and more than a quarter of an hour is asked for with --budget."""

VIEWS_SHARE = 0.1
"""Of the budget that may go into views."""

_DEFAULT = Recipe("suffix", "", "")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, and scores of it, or of its like, on images that it was not trained on."""

    backbone: Backbone  # with the trained layers in place
    weight: NDArray[np.float32]  # (d, C) of the head on pooled features
    bias: NDArray[np.float32]  # (C,)
    temperature: float
    rows: NDArray[np.int64]  # of all images of the data set
    scores: NDArray[np.float64]  # (len(rows), C) before the temperature


@dataclass(frozen=True)
class Tuned:
    """What was tried, and the model where it replaces the frozen one."""

    tuning: Tuning
    model: TrainedModel | None
    leftovers: tuple[Path, ...] = ()  # files that nothing needs once the run is saved


def budget_seconds(text: str | None, fe_seconds: float) -> float:
    """A budget in seconds: a number of them, or such as 90s, 10m, 1h, 40fe (forward equivalents).

    Raises UsageError for anything else.
    """
    if text is None:
        return min(MOST_BUDGET_S, max(LEAST_BUDGET_S, BUDGET_FE * fe_seconds))
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|m|h|fe|)\s*", text.lower())
    if match is None or float(match[1]) <= 0:
        raise UsageError(
            f"--budget {text}: expected seconds above 0, or a number with s, m, h or fe, such as 10m or 40fe"
        )
    return float(match[1]) * (fe_seconds if match[2] == "fe" else _UNITS[match[2]])


def tune(
    m: Measured, decided: Plan, fitted: head.Head, o: Options, cache: Path, journal: Path | None, watch: Watch
) -> Tuned:
    """Search for the training that is worth its cost, or carry out the one that was asked for."""
    with threadpool_limits(1, "blas"):
        course = _search(m, fitted, o, cache, journal, watch)
    budget = course.budget
    watch.show("budget", (budget, budget / m.features.fe_seconds))
    views = _views(course, o.epochs or _DEFAULT.epochs)
    if o.strategy == "auto":
        tuning = course.choose([replace(r, views=views) for r in _candidates(m, decided, o)])
    else:
        tuning = course.by_hand(replace(asked(m, decided, o), views=views))
    if not tuning.replaced or tuning.recipe is None:
        return Tuned(tuning, None)
    trained = course.final(tuning.recipe)
    kept = _kept(m, course, tuning.recipe, trained, o, cache)
    return Tuned(replace(tuning, spent_seconds=course.spent), kept, tuple(course.finished))


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


def clean(m: Measured, o: Options, cache: Path, leftovers: tuple[Path, ...]) -> None:
    """Delete what a finished run needs no more: its views, the largest thing on disk, and its last checkpoint."""
    for path in leftovers:
        path.unlink(missing_ok=True)
    if o.strategy != "head":
        _store(m, o, cache, m.rows).drop()


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
    m: Measured, fitted: head.Head, o: Options, cache: Path, journal: Path | None, watch: Watch
) -> search.Search:
    labels, classes = m.labels[m.rows], len(m.dataset.classes)

    def start(cut: str, rows: NDArray[np.int64]) -> head.Exact:
        k = m.backbone.index(cut)
        penalty = float(m.probes[k].penalties[m.probes[k].best])
        groups = None if m.groups is None else m.groups[rows]
        importance = class_weights(labels[rows], classes)[labels[rows]] if o.balance else None
        with threadpool_limits(1, "blas"):
            return head.exact(m.features.at(k, m.rows[rows]), labels[rows], classes, penalty, groups, importance)

    timing = m.features.seconds
    store = _store(m, o, cache, m.rows)
    return search.Search(
        train.Task(store, labels, classes),
        start,
        search.Baseline(head.folds(labels, m.groups, o.seed), fitted.right, m.groups, m.importance),
        search.Prices(float(timing[0]), timing[1:]),
        budget_seconds(o.budget, m.features.fe_seconds),
        o.seed,
        cache,
        f"{store.folder.name} {store.augmentation} {labels.tolist()}",
        search.Journal.opened(journal),
        watch,
    )


def _store(m: Measured, o: Options, cache: Path, rows: NDArray[np.int64]) -> activations.Store:
    examples = [m.dataset.examples[i] for i in rows]
    return activations.store(
        m.backbone, features.key(m.backbone), Path(m.dataset.root), examples,
        augmentation=Augmentation(flip=o.flip), seed=o.seed, cache=cache,
    )  # fmt: skip


def _kept(
    m: Measured, course: search.Search, recipe: Recipe, trained: train.Trained, o: Options, cache: Path
) -> TrainedModel:
    """The model to save, with the scores that its metrics rest on: the locked part's, else out of fold."""
    rows, scores = course.out_of_fold(recipe)
    t = head.temperature(scores, course.task.labels[rows])
    rows = m.rows[rows]
    if m.locked != "out-of-sample":
        rows = m.locked_rows
        locked = _store(m, o, cache, rows)
        try:
            scores = train.predict(trained.network, locked, np.arange(len(rows)))
        finally:
            locked.drop()
    weight, bias = train.raw_head(trained.network)
    return TrainedModel(train.grafted(m.backbone, recipe, trained.network), weight, bias, t, rows, scores)
