"""The story: from labelled images to a saved model, in the order it happens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax
from threadpoolctl import threadpool_limits

from topwork import budget as budgets
from topwork import (
    cleaned,
    correction,
    data,
    doubts,
    evaluate,
    explained,
    faults,
    head,
    listing,
    memo,
    model,
    plan,
    portable,
    ranking,
    runs,
    stores,
    survey,
    trust,
    tune,
    zoo,
)
from topwork import known as alike
from topwork.asking import BATCH
from topwork.errors import DataError, ImageError, LostError, UsageError
from topwork.measurement import Frozen, Measured, cache_folder, frozen_head
from topwork.records import (
    SCHEMA,
    Coverage,
    Dataset,
    Estimate,
    Example,
    Fault,
    Growth,
    Metrics,
    ModelFacts,
    ModelSize,
    Options,
    Plan,
    RunRecord,
    Sets,
    Shortcut,
    Spending,
    Strategy,
    Suspects,
    Tuning,
    Unknown,
)
from topwork.runs import Run
from topwork.sketches import Sketches
from topwork.statistics import wilson
from topwork.watch import SILENT, Clock, Watch

STRATEGIES = ("auto", "head", "suffix", "full", "surgical")


def fit(
    source: Any,
    labels: Any = None,
    groups: Any = None,
    *,
    splits: Any = None,
    image_column: str | None = None,
    label_separator: str | None = None,
    backbone: str | Sequence[str] = zoo.EMBEDDED,
    weights: str | Path | None = None,
    size: int | Literal["auto"] | Sequence[int | Literal["auto"]] | None = None,
    strategy: Literal["auto"] | Strategy = "auto",
    cut: str | None = None,
    unfreeze: str | None = None,
    lr: float | None = None,
    epochs: int | None = None,
    flip: bool = True,
    balance: bool = False,
    several_depths: bool = True,
    bursts: bool = True,
    split_of: str | Path | None = None,
    pictures: bool = True,
    budget: str | float | None = None,
    delta: float = plan.DELTA,
    seed: int = 0,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    watch: Watch = SILENT,
) -> Run:
    """Measure every cut of one or more pretrained backbones on labelled images, decide, train, judge and save.

    `source`: a path or an address of folders per class (train/ plus val/ and test/ of such), of a table (CSV, TSV, JSON
    Lines, Parquet) or of a Hugging Face folder; then `labels`, `groups`, `splits` and `image_column` name columns, and
    `label_separator` splits several labels in one cell. Or images: a uint8 array (n, h, w), (n, h, w, 3) or
    (n, h, w, 4), or a list of arrays, Pillow images, bytes and paths; then `labels`, `groups` and `splits` have one
    entry for each. `backbone`: a name, several of them, or
    "auto" for all whose weights are at hand. `weights`: a file, or a folder of such. `size`: input sizes in px, or
    "auto" for the backbone's own and half of it.
    `strategy`: "head" trains new layers alone; "suffix" the kept layers from `unfreeze` on; "full" all of
    them; "surgical" the first block alone; "auto" finds out which is worth it within the `budget`
    (seconds, or text such as "10m" or "40fe"). `cut`, `unfreeze`, `lr` (of AdamW, for the last stage) and
    `epochs` are taken as given. `flip=False` where left and right matter. `balance`: classes weigh alike.
    `several_depths`: the head may read more than one cut, where that is shown to be better.
    `bursts`: photos of one scene are found and kept on one side. `split_of`: an earlier run (or its split.parquet)
    whose parts and groups are taken. `pictures=False` leaves out the run's page and what is computed for it alone.
    `delta`: accuracy (0..1) that a cheaper cut may cost. `out`: the run's folder (default runs/NAME, or
    runs/NAME-2 where that exists). Raises UsageError, DataError, MissingError.
    """
    source, columns = listing.given(
        source, labels, groups, splits, image_column=image_column, label_separator=label_separator
    )
    target = runs.free_folder(source, out)
    options = Options(
        _absolute(source), tuple(survey.listed(backbone)), None if weights is None else _absolute(weights),
        tuple(survey.listed(size)), strategy, cut, unfreeze, lr, epochs, flip, balance, several_depths,
        None if budget is None else str(budget), delta, seed, None if cache is None else _absolute(cache),
        bursts, None if split_of is None else _absolute(split_of), columns, pictures,
    )  # fmt: skip
    return _fit(options, target, source, watch)


def resume(run: str | Path, *, watch: Watch = SILENT) -> Run:
    """Go on with an interrupted fit from its last step, to the same result. Raises DataError where none waits."""
    options = runs.unfinished(Path(run))
    return _fit(options, Path(run), options.folder, watch)


def check(
    source: Any,
    labels: Any = None,
    groups: Any = None,
    *,
    splits: Any = None,
    image_column: str | None = None,
    label_separator: str | None = None,
    fix: str | Path | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    watch: Watch = SILENT,
) -> tuple[Dataset, str]:
    """Only look at the data, decoding every pixel: the dataset with its findings, and what its result would rest on.

    `source` and what goes with it: as in fit. `fix`: a new .csv or .parquet file for the cleaned list of images, which
    `fit` reads; no image is touched. Raises UsageError where it exists or cannot be such a list, DataError where there
    is nothing to learn from.
    """
    source, columns = listing.given(
        source, labels, groups, splits, image_column=image_column, label_separator=label_separator
    )
    if fix is not None:
        cleaned.allowed(Path(fix))  # before the decoding
    store = Sketches.under(cache_folder(cache))
    dataset = data.read(source, columns, sketches=store, watch=watch)
    pixels, missing = store.get([e.digest for e in dataset.examples])
    found = faults.ranked((*faults.before(dataset), *faults.after(dataset, pixels, missing)))
    if fix is not None:
        kept, gone = faults.clean(dataset, pixels, missing)
        cleaned.write(Path(fix), dataset, kept)
        watch.show("cleaned", (str(fix), len(kept), gone))
    dataset, locked = data.lock(replace(dataset, findings=found), seed)
    return dataset, locked


def judge(
    run: str | Path,
    source: Any,
    labels: Any = None,
    groups: Any = None,
    *,
    splits: Any = None,
    image_column: str | None = None,
    label_separator: str | None = None,
    watch: Watch = SILENT,
) -> tuple[Metrics, Dataset]:
    """Evaluate a saved model on labelled images that it has not seen. `source` and what goes with it: as in fit."""
    source, columns = listing.given(
        source, labels, groups, splits, image_column=image_column, label_separator=label_separator
    )
    loaded = model.load(Path(run))
    held_out = data.read_held_out(source, loaded.classes, columns, watch=watch)
    store = stores.opened(held_out.root)

    def content(example: Example) -> bytes | ImageError:
        try:
            return store.read(example.path)
        except ImageError as error:
            return error

    if held_out.multi_label and not loaded.facts.multi_label:
        raise DataError(f"{source}: its images may have several labels; the model in {run} gives one to each")
    watch.begin("predict", len(held_out.examples))
    logits, judged, unread, strange = [], [], [], []
    with ThreadPoolExecutor() as workers:
        for start in range(0, len(held_out.examples), BATCH):
            batch = held_out.examples[start : start + BATCH]
            contents = list(workers.map(content, batch))
            unread += [
                Fault(e.path, c.kind, c.detail)
                for e, c in zip(batch, contents, strict=True)
                if isinstance(c, ImageError)
            ]
            there = [(e, c) for e, c in zip(batch, contents, strict=True) if not isinstance(c, ImageError)]
            for (example, _), answer in zip(there, loaded.predict([c for _, c in there]), strict=True):
                if answer.error is None:
                    logits.append([answer.probabilities[c] for c in loaded.classes])
                    judged.append(example)
                    strange.append(answer.unknown)
                else:
                    kind, _, detail = answer.error.partition(": ")
                    unread.append(Fault(example.path, kind, detail))
            watch.advance(len(batch))
    watch.end()
    if not judged:
        raise DataError(f"{source}: none of its {len(held_out.examples)} images could be decoded")
    held_out = replace(held_out, examples=tuple(judged), faults=(*held_out.faults, *unread))
    if loaded.facts.multi_label:
        shares, thresholds = np.array(logits), np.array(loaded.facts.thresholds)
        metrics = evaluate.several(
            logit(np.clip(shares, 1e-12, 1 - 1e-12)),
            ranking.multi_hot([held_out.labels_of(e) for e in judged], len(loaded.classes)), loaded.classes,
            decided=shares >= thresholds, thresholds=thresholds, on=source,
            groups=data.together(judged),
            independent=data.independent(judged),
        )  # fmt: skip
        return replace(metrics, unknown=_flagged(strange, source, judged)), held_out
    shares, truth, worth = np.array(logits), np.array([e.label for e in judged]), data.independent(judged)
    metrics = evaluate.metrics(
        np.log(np.maximum(shares, 1e-12)), truth, loaded.classes, temperature=1.0, on=source, independent=worth,
        groups=data.together(judged),
    )  # fmt: skip
    covered: tuple[Coverage, ...] = ()
    if loaded.facts.sets is not None:
        covered = trust.coverage(loaded.facts.sets, shares, truth, on=source, independent=worth)
    return replace(metrics, unknown=_flagged(strange, source, judged), coverage=covered), held_out


def _flagged(strange: Sequence[bool | None], on: str, judged: Sequence[Example]) -> Estimate | None:
    """The share of images that is taken for none of the classes; None where the model cannot tell."""
    known = [s for s in strange if s is not None]
    if not known:
        return None
    share = sum(known) / len(known)
    return Estimate(share, *wilson(share, data.independent(judged)), len(known), on)


@dataclass(frozen=True)
class _Outcome:
    """What is to be saved: the model's parts, and the scores that its metrics rest on."""

    m: Measured
    backbone: zoo.Backbone  # with the trained layers in place, where some were
    taps: tuple[str, ...]  # cuts that the head reads; the last one is where the network is cut
    weight: NDArray[np.float32]  # (d, C) on pooled features
    bias: NDArray[np.float32]
    head: str
    temperature: float
    metrics: Metrics
    rows: NDArray[np.int64]  # of the judged images
    scores: NDArray[np.float64]  # (len(rows), C) before the temperature
    fold_rows: NDArray[np.int64]  # of images of the training whose scores are out of sample
    fold_scores: NDArray[np.float64]  # (len(fold_rows), C) before the temperature, judged by that of other folds
    thresholds: tuple[float, ...] = ()  # of several labels: probability from which on each is given
    decided: NDArray[np.bool_] | None = None  # (len(rows), C) labels that were given, where there may be several


@dataclass(frozen=True)
class _Doubts:
    """What speaks against the data; whatever becomes of the kept layers."""

    suspects: Suspects | None
    shortcuts: tuple[Shortcut, ...]
    growth: Growth | None


def _fit(options: Options, target: Path, source: str, watch: Watch) -> Run:
    clock, started, o = Clock(), time.perf_counter(), options
    _validate(o)
    with runs.resumable(target, o) as waiting:
        watch.show("target", target)
        several = o.several_depths and o.cut is None and o.strategy in {"auto", "head"}
        seen = survey.measure(
            source, o.columns.labels, o.columns.group, splits=o.columns.split, image_column=o.columns.image,
            label_separator=o.columns.separator, backbone=o.backbones, weights=o.weights, size=o.sizes,
            seed=o.seed, delta=o.delta, balance=o.balance, cache=o.cache, budget=o.budget, cuts=(o.unfreeze,),
            cut=o.cut, several_depths=several, bursts=o.bursts, split_of=o.split_of, one_label=_of_training(o),
            watch=watch, clock=clock,
        )  # fmt: skip
        with clock.time("plan"):
            one_depth = seen.plan(delta=o.delta, cut=o.cut)
            m = seen.of(one_depth)
        frozen, decided, of_data = _headed(seen, m, one_depth, o, clock, watch, several=several)
        watch.show("suspects", of_data.suspects)
        watch.show("shortcuts", of_data.shortcuts)
        tuning: Tuning | None = None
        outcome: _Outcome | None = None
        arms: list[tune.Arm] = []
        leftovers: tuple[Path, ...] = ()
        if o.strategy != "head" and not m.dataset.multi_label:
            arms = _arms(seen, m, one_depth, o)
            with clock.time("train"):
                budget = budgets.seconds(o.budget, m.features.fe_seconds, m.features.engine.faster) - seen.spent_seconds
                tuned = tune.tune(
                    arms, frozen.head.right, o, budget=max(0.0, budget), cache=cache_folder(o.cache),
                    journal=waiting / "journal", watch=watch,
                )  # fmt: skip
            tuning, leftovers = tuned.tuning, tuned.leftovers
            decided = plan.tuned(decided, tuning, seen.evidences, asked=o.strategy != "auto")
            watch.show("tuning", decided)
            outcome = None if tuned.model is None else _trained(tuned.model, o.seed)
        if outcome is None:
            with clock.time("evaluate"), threadpool_limits(1, "blas"):
                outcome = _frozen(seen, m, frozen, one_depth, o)
        watch.show("answer", outcome.metrics)
        # What follows does not change it: what more images would bring, and what is written for later.
        with clock.time("doubts"):
            of_data = replace(of_data, growth=doubts.grown(m, one_depth, o.seed))
        watch.show("growth", of_data.growth)
        with clock.time("trust"), threadpool_limits(1, "blas"):
            kept = _model(decided, outcome)
            trusted = _trusted(outcome, kept, o)
            kept.known, kept.facts = trusted.known, replace(kept.facts, unknown=trusted.unknown, sets=trusted.sets)
        with clock.time("save"):
            run = _saved(
                seen, one_depth, decided, frozen.head, outcome, kept, trusted, tuning, of_data, clock, started, target,
                o,
            )  # fmt: skip
        tune.clean(arms, o, cache_folder(o.cache), leftovers)
    if o.pictures:
        _looked(run, kept, outcome, watch)
        _drawn(run, watch)
    watch.show("run", run)
    return run


def _headed(
    seen: survey.Survey, m: Measured, one_depth: Plan, o: Options, clock: Clock, watch: Watch, *, several: bool
) -> tuple[Frozen, Plan, _Doubts]:
    """The head on the frozen layers, the plan with it, and what speaks against the data.

    Shortcuts are looked for beside the head, on one BLAS thread each; the limit is set out here, since it is the
    process's own. What more images would bring is asked once the answer is there.
    """
    decided = one_depth
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(1) as beside:
        trivial = beside.submit(doubts.shortcut, m)
        with clock.time("head"):
            frozen = frozen_head(m, m.backbone.index(decided.cut), o.seed, several=several, delta=o.delta)
            if len(frozen.taps) > 1:
                deepest = m.features.cuts[frozen.taps[-1]]
                decided = plan.stacked(decided, m.evidence, deepest, frozen.head.facts.reason)
        watch.show("standings", seen.standings(decided))
        watch.show("plan", decided)
        with clock.time("doubts"):
            suspected = doubts.suspected(seen, m, frozen, o.delta)
            return frozen, decided, _Doubts(suspected, trivial.result(), None)


def _looked(run: Run, kept: model.Model, outcome: _Outcome, watch: Watch) -> None:
    """What is worth seeing of a run. It is on disk already: whatever goes wrong here does not lose it."""
    m, where = outcome.m, {e.path: i for i, e in enumerate(outcome.m.dataset.examples)}
    taps = [m.backbone.index(tap) for tap in outcome.taps]

    def pooled(paths: Sequence[str]) -> NDArray[np.float32]:
        rows = np.array([where[path] for path in paths], dtype=np.int64)
        return np.concatenate([m.features.at(k, rows) for k in taps], axis=1)

    try:
        explained.write(run, kept, None if outcome.head == "trained" else pooled, watch)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        watch.show("warnings", (f"Where the model looked is not in the report ({said}); the run itself is whole.",))


def _drawn(run: Run, watch: Watch) -> None:
    """The run's page, where the room that draws it is there. Nothing that goes wrong in it loses the run."""
    try:
        from topwork import report  # noqa: PLC0415 (0.2 s to import; nothing else needs it)
    except ModuleNotFoundError:
        return
    try:
        report.write(run.path)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        watch.show("warnings", (f"The page was not drawn ({said}); `topwork report {run.path}` draws it.",))


def _arms(seen: survey.Survey, m: Measured, decided: Plan, o: Options) -> list[tune.Arm]:
    """The backbones whose layers may be trained: the planned one, and where the search decides, its rival.

    The best cut of all may be another backbone's; what is trained here begins at this one's own best.
    """
    alone = plan.decide(m.evidence, delta=o.delta, cut=o.cut)
    own = replace(
        decided, best_backbone=alone.best_backbone, best_size_px=alone.best_size_px, best_cut=alone.best_cut
    )  # fmt: skip
    arms = [tune.Arm(m, own)]
    rival = seen.rival(decided)
    if rival is not None and o.strategy == "auto":
        arms.append(tune.Arm(rival, plan.decide(rival.evidence, delta=o.delta, cut=o.cut)))
    return arms


def _of_training(o: Options) -> list[str]:
    """The options that were given and ask for a training of the kept layers."""
    given = [f"--{name}" for name in ("unfreeze", "lr", "epochs") if getattr(o, name) is not None]
    if o.budget is not None and survey.AUTO not in o.backbones:
        given.append("--budget")
    return given if o.strategy in {"auto", "head"} else [f"--strategy {o.strategy}", *given]


def _validate(o: Options) -> None:
    """Every option that can be checked before any work; gathers all problems."""
    problems = []
    if o.strategy not in STRATEGIES:
        problems.append(f"--strategy {o.strategy}: expected {', '.join(STRATEGIES[:-1])} or {STRATEGIES[-1]}")
    if o.lr is not None and not 0 < o.lr <= 1:
        problems.append(f"--lr {o.lr}: expected a rate above 0 and up to 1, such as 0.001")
    if not 0 <= o.seed < 2**32:
        problems.append(f"--seed {o.seed}: expected a whole number from 0 to {2**32 - 1}")
    if o.epochs is not None and not 1 <= o.epochs <= 1000:
        problems.append(f"--epochs {o.epochs}: expected 1 to 1000")
    if o.strategy == "head":
        given = [n for n in ("unfreeze", "lr", "epochs") if getattr(o, n) is not None]
        if o.budget is not None and survey.AUTO not in o.backbones:
            given.append("budget")
        problems += [f"--{name} trains kept layers, which --strategy head leaves as they are" for name in given]
    if o.unfreeze is not None and o.strategy in {"full", "surgical"}:
        problems.append(f"--unfreeze {o.unfreeze}: --strategy {o.strategy} begins at the first block; use suffix")
    if o.budget is not None:
        try:
            budgets.seconds(o.budget, 1.0)
        except UsageError as error:
            problems.append(str(error))
    try:
        cuts = o.cut is not None or o.unfreeze is not None
        survey.asked(list(o.backbones), None if o.weights is None else Path(o.weights), list(o.sizes), cuts)
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))


def _frozen(seen: survey.Survey, m: Measured, frozen: Frozen, decided: Plan, o: Options) -> _Outcome:
    """The head on the frozen layers, judged on what is locked, else out of sample."""
    fitted, classes = frozen.head, m.dataset.classes
    corrected, decided_ = None, fitted.decided
    fold_scores = fitted.scores
    if not fitted.several:
        fold_scores = head.fair(fitted.scores, m.labels[m.rows], _folds(m, m.rows, o.seed), fitted.temperature)
    if m.locked != "out-of-sample":
        rows = m.locked_rows
        scores = frozen.scores(m, rows)
        if fitted.several:
            decided_ = scores / fitted.temperature >= fitted.thresholds
    else:
        rows, scores = m.rows, fold_scores
        order = plan.places(seen.evidences, o.cut)
        selected = correction.Selected(
            tuple(seen.measured[e].probes[k] for e, k in order), fitted,
            order.index((seen.measured.index(m), m.backbone.index(decided.cut))), o.delta, m.groups,
            fixed=len(order) == 1, importance=m.importance, several=frozen.tried,
        )  # fmt: skip
        corrected = _corrected(selected, m.cache, o.seed)
    taps = tuple(m.features.cuts[k] for k in frozen.taps)
    if fitted.several:
        thresholds = expit(fitted.thresholds)
        metrics = evaluate.several(
            scores / fitted.temperature, m.truth[rows], classes, decided=decided_, thresholds=thresholds, on=m.locked,
            corrected=corrected,
            groups=data.together([m.dataset.examples[i] for i in rows]),
            independent=_independent(m, rows), seed=o.seed,
        )  # fmt: skip
        return _Outcome(
            m, m.backbone, taps, fitted.weight, fitted.bias, fitted.facts.kind, fitted.temperature, metrics, rows,
            scores, m.rows, fold_scores, tuple(float(t) for t in thresholds), decided_,
        )  # fmt: skip
    metrics = evaluate.metrics(
        scores, m.labels[rows], classes, temperature=fitted.temperature, on=m.locked, corrected=corrected,
        independent=_independent(m, rows), groups=_together(m, rows), seed=o.seed,
    )  # fmt: skip
    return _Outcome(
        m, m.backbone, taps, fitted.weight, fitted.bias, fitted.facts.kind, fitted.temperature, metrics, rows, scores,
        m.rows, fold_scores,
    )  # fmt: skip


def _corrected(selected: correction.Selected, cache: Path, seed: int) -> float:
    """The accuracy less what choosing added to it, found again where the same was chosen from the same."""
    fitted, nothing = selected.head, np.zeros(0)
    inputs: list[memo.Input] = [
        "corrected", correction.FORMULA, str(seed),
        f"{selected.chosen} {selected.delta!r} {selected.fixed}",
        *(part for p in selected.probes for part in (p.squared, p.correct)),
        fitted.ridge_folds, fitted.correct, fitted.loss, fitted.ridge_loss, str(fitted.several),
        nothing if selected.groups is None else selected.groups,
        nothing if selected.importance is None else selected.importance,
        *(part for right, least in selected.several for part in (right, repr(least))),
    ]  # fmt: skip
    kept = memo.remembered(
        cache / "probes", inputs, lambda: {"accuracy": np.array(correction.corrected_accuracy(selected, seed=seed))}
    )
    return float(kept["accuracy"])


def _trained(found: tune.TrainedModel, seed: int) -> _Outcome:
    """The trained layers, judged on what is locked, else on the folds that chose nothing."""
    m, rows = found.m, found.fold_rows
    fold_scores = head.fair(found.fold_scores, m.labels[rows], _folds(m, rows, seed), found.temperature)
    scores = found.scores if m.locked != "out-of-sample" else fold_scores
    metrics = evaluate.metrics(
        scores, m.labels[found.rows], m.dataset.classes, temperature=found.temperature, on=m.locked,
        independent=_independent(m, found.rows), groups=_together(m, found.rows), seed=seed,
    )  # fmt: skip
    return _Outcome(
        m, found.backbone, (found.cut,), found.weight, found.bias, "trained", found.temperature, metrics, found.rows,
        scores, rows, fold_scores,
    )  # fmt: skip


def _together(m: Measured, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Images that belong together have the same number."""
    return data.together([m.dataset.examples[i] for i in rows])


def _folds(m: Measured, rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The folds of the heads, for some of the images that the choice is made with."""
    return head.folds(m.labels[m.rows], m.groups, seed)[np.searchsorted(m.rows, rows)]


@dataclass(frozen=True)
class _Trust:
    """When the model has to say that it does not know, and how many classes it must name."""

    known: alike.Known
    rows: NDArray[np.int64]  # of the images in it
    unknown: Unknown | None
    sets: Sets | None


def _trusted(outcome: _Outcome, kept: model.Model, o: Options) -> _Trust:
    """What is measured of the model beyond its classes. Features are those of the pass, but where layers were trained.

    Images that layers were trained on are no strangers to them: then the locked images alone set the threshold, each
    fold of them for the others.
    """
    m, trained = outcome.m, outcome.head == "trained"
    most = min(alike.MOST_TRAINED if trained else alike.MOST, max(1, alike.VALUES // (2 * kept.facts.channels)))
    rows, pooled = _pooled(outcome, kept, m.rows[alike.sample(m.labels[m.rows], most, seed=o.seed)])
    known = alike.Known.of(pooled, seed=o.seed)
    judging, fold = rows, _folds(m, rows, o.seed)
    scores, judged = None if trained else known.apart(pooled, fold), None
    if m.locked != "out-of-sample":
        sample = alike.sample(m.labels[m.locked_rows], most, seed=o.seed)
        judging, pooled = _pooled(outcome, kept, m.locked_rows[sample])
        judged = known.scores(pooled)
        if trained:
            scores, judged, fold = judged, None, head.folds(m.labels[judging], _together(m, judging), o.seed)
    unknown = None
    if scores is not None:
        unknown = trust.unknown(
            scores, fold, judged, method="distance", groups=_together(m, judging if trained else rows), on=m.locked,
            independent=_independent(m, judging),
        )  # fmt: skip
    return _Trust(known, rows, unknown, None if m.dataset.multi_label else _sets(outcome, o.seed))


def _sets(outcome: _Outcome, seed: int) -> Sets:
    """What prediction sets rest on: images out of sample, judged by the locked ones where there are any."""
    m, t, rows = outcome.m, outcome.temperature, outcome.fold_rows
    judged = None
    if m.locked != "out-of-sample":
        judged = softmax(outcome.scores / t, axis=1), m.labels[outcome.rows]
    return trust.sets(
        softmax(outcome.fold_scores / t, axis=1), m.labels[rows], _folds(m, rows, seed), judged,
        groups=_together(m, rows), on=m.locked,
        independent=_independent(m, rows if judged is None else outcome.rows),
    )  # fmt: skip


def _pooled(
    outcome: _Outcome, kept: model.Model, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Pooled features (n, d) of these images as the model sees them; and the rows of those that can still be read."""
    m = outcome.m
    if outcome.head != "trained":
        parts = [m.features.at(m.features.cuts.index(tap), rows) for tap in outcome.taps]
        return rows, parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    store = stores.opened(m.dataset.root)

    def pixels(row: int) -> NDArray[np.uint8] | ImageError:
        try:
            return kept.load(store.read(m.dataset.examples[row].path))
        except ImageError as error:  # gone since it was looked at
            return error

    found, there = [], []
    with ThreadPoolExecutor() as workers:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            loaded = list(workers.map(pixels, batch))
            there += [row for row, x in zip(batch, loaded, strict=True) if not isinstance(x, ImageError)]
            good = [x for x in loaded if not isinstance(x, ImageError)]
            if good:
                found.append(kept.see(np.stack(good)).pooled)
    if not found:
        raise LostError(
            f"{m.dataset.root}: none of its images can be read any more; the trained layers look at them once again."
            " What was computed is kept: give the same command again once they are back, or resume the run with"
            " --resume"
        )
    return np.array(there, dtype=np.int64), np.concatenate(found)


def _independent(m: Measured, rows: NDArray[np.int64]) -> float:
    """Images of the same content are no independent witnesses."""
    return data.independent([m.dataset.examples[i] for i in rows])


def _model(decided: Plan, outcome: _Outcome) -> model.Model:
    """What is kept."""
    m = outcome.m
    channels = sum(c.channels for c in m.backbone.cuts if c.name in outcome.taps)
    facts = ModelFacts(
        SCHEMA, version("topwork"), m.backbone.name, m.backbone.fingerprint, decided.cut, outcome.taps,
        m.backbone.preprocessing, m.dataset.classes, outcome.temperature, channels, outcome.head, decided.kept_cost,
        outcome.metrics.accuracy, runs.versions(), m.dataset.multi_label, outcome.thresholds,
    )  # fmt: skip
    return model.create(facts, outcome.backbone, outcome.weight, outcome.bias)


def _saved(
    seen: survey.Survey, planned: Plan, decided: Plan, fitted: head.Head, outcome: _Outcome, kept: model.Model,
    trusted: _Trust, tuning: Tuning | None, of_data: _Doubts, clock: Clock, started: float, target: Path, o: Options,
) -> Run:  # fmt: skip
    m, features = outcome.m, outcome.m.features

    def complete(size: ModelSize) -> RunRecord:
        total = time.perf_counter() - started
        spending = Spending(
            {k: round(v, 4) for k, v in clock.seconds.items()}, total, features.fe_seconds, total / features.fe_seconds,
            seen.passed, features.bytes_per_image,
        )  # fmt: skip
        return RunRecord(
            SCHEMA, version("topwork"), datetime.now(UTC).isoformat(timespec="seconds"), target.name, o,
            data.facts(m.dataset, locked=m.locked, seed=o.seed), seen.standings(decided), decided, fitted.facts,
            outcome.metrics, tuning, size, spending, features.engine, runs.versions(), m.dataset.warnings,
            of_data.suspects, of_data.shortcuts, of_data.growth, seen.parted(planned), trusted.unknown, trusted.sets,
        )  # fmt: skip

    paths = [m.dataset.examples[i].path for i in outcome.rows]
    return runs.save(
        target, complete, kept, paths, m.truth[outcome.rows], outcome.scores, m.dataset, decided=outcome.decided,
        pixels=_some(m, kept, outcome.rows), alike=_named(m.dataset, trusted.rows),
    )  # fmt: skip


def _named(dataset: Dataset, rows: NDArray[np.int64]) -> tuple[list[str], list[str]]:
    """Paths and labels of these images; of several labels, with a bar between."""
    examples = [dataset.examples[i] for i in rows]
    labels = ["|".join(dataset.classes[k] for k in dataset.labels_of(e)) for e in examples]
    return [e.path for e in examples], labels


def _some(m: Measured, kept: model.Model, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Pixels (n, h, w, 3) of a few of the judged images, spread over all of them; those that can still be read."""
    store, side = stores.opened(m.dataset.root), kept.facts.preprocessing.crop_px
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, portable.IMAGES).round().astype(int))]
    found = []
    for i in chosen:
        try:
            found.append(kept.load(store.read(m.dataset.examples[i].path)))
        except ImageError:  # gone since it was looked at
            continue
    good = [x for x in found if not isinstance(x, ImageError)]
    return np.stack(good) if good else np.empty((0, side, side, 3), dtype=np.uint8)


def _absolute(path: str | Path) -> str:
    return str(path) if stores.is_url(str(path)) else str(Path(path).absolute())
