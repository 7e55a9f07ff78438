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
from threadpoolctl import threadpool_limits

from topwork import budget as budgets
from topwork import (
    cleaned,
    data,
    doubts,
    explained,
    faults,
    head,
    listing,
    model,
    plan,
    runs,
    stores,
    survey,
    tune,
    zoo,
)
from topwork import outcome as outcomes
from topwork.errors import UsageError
from topwork.measurement import Frozen, Measured, cache_folder, frozen_head
from topwork.records import (
    SCHEMA,
    Dataset,
    Growth,
    ModelFacts,
    ModelSize,
    Options,
    Plan,
    RunRecord,
    Shortcut,
    Spending,
    Strategy,
    Suspects,
    Tuning,
)
from topwork.runs import Run
from topwork.sketches import Sketches
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
        with clock.time("evaluate"), threadpool_limits(1, "blas"):
            outcome = outcomes.frozen_layers(seen, m, frozen, one_depth, o)
        tuning: Tuning | None = None
        arms: list[tune.Arm] = []
        leftovers: tuple[Path, ...] = ()
        parts = _Parts(seen, one_depth, frozen.head, target.name, o, clock, started)
        if o.strategy != "head" and not m.dataset.multi_label:
            so_far, _ = _saved(parts, decided, outcome, None, of_data, runs.so_far(target), so_far=True)
            watch.show("so far", (so_far.path, outcome.metrics))
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
            if tuned.model is not None:
                outcome = outcomes.trained_layers(tuned.model, o.seed)
        watch.show("answer", outcome.metrics)
        # What follows does not change it: what more images would bring, and what is written for later.
        with clock.time("doubts"):
            of_data = replace(of_data, growth=doubts.grown(m, one_depth, o.seed))
        watch.show("growth", of_data.growth)
        run, kept = _saved(parts, decided, outcome, tuning, of_data, target)
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


def _looked(run: Run, kept: model.Model, outcome: outcomes.Outcome, watch: Watch) -> None:
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


def _model(decided: Plan, outcome: outcomes.Outcome) -> model.Model:
    """What is kept."""
    m = outcome.m
    channels = sum(c.channels for c in m.backbone.cuts if c.name in outcome.taps)
    facts = ModelFacts(
        SCHEMA, version("topwork"), m.backbone.name, m.backbone.fingerprint, decided.cut, outcome.taps,
        m.backbone.preprocessing, m.dataset.classes, outcome.temperature, channels, outcome.head, decided.kept_cost,
        outcome.metrics.accuracy, runs.versions(), m.dataset.multi_label, outcome.thresholds,
    )  # fmt: skip
    return model.create(facts, outcome.backbone, outcome.weight, outcome.bias)


@dataclass(frozen=True)
class _Parts:
    """What a run's record tells besides its outcome."""

    seen: survey.Survey
    planned: Plan  # of one depth
    head: head.Head  # on the frozen layers
    name: str
    options: Options
    clock: Clock
    started: float  # by time.perf_counter


def _saved(
    parts: _Parts, decided: Plan, outcome: outcomes.Outcome, tuning: Tuning | None, of_data: _Doubts, place: Path, *,
    so_far: bool = False,
) -> tuple[Run, model.Model]:  # fmt: skip
    """Make the model and write its run into `place`, as one ONNX graph, too.

    `so_far`: of a run that goes on; without that graph, and in place of what an interrupted one left there.
    """
    m, features, seen, clock = outcome.m, outcome.m.features, parts.seen, parts.clock
    with clock.time("trust"), threadpool_limits(1, "blas"):
        kept = _model(decided, outcome)
        trusted = outcomes.trusted(outcome, kept, parts.options.seed)
        kept.known, kept.facts = trusted.known, replace(kept.facts, unknown=trusted.unknown, sets=trusted.sets)

    def complete(size: ModelSize) -> RunRecord:
        total = time.perf_counter() - parts.started
        spending = Spending(
            {k: round(v, 4) for k, v in clock.seconds.items()}, total, features.fe_seconds, total / features.fe_seconds,
            seen.passed, features.bytes_per_image,
        )  # fmt: skip
        return RunRecord(
            SCHEMA, version("topwork"), datetime.now(UTC).isoformat(timespec="seconds"), parts.name, parts.options,
            data.facts(m.dataset, locked=m.locked, seed=parts.options.seed), seen.standings(decided), decided,
            parts.head.facts, outcome.metrics, tuning, size, spending, features.engine, runs.versions(),
            m.dataset.warnings, of_data.suspects, of_data.shortcuts, of_data.growth, seen.parted(parts.planned),
            trusted.unknown, trusted.sets,
        )  # fmt: skip

    with clock.time("save"):
        paths = [m.dataset.examples[i].path for i in outcome.rows]
        run = runs.save(
            place, complete, kept, paths, m.truth[outcome.rows], outcome.scores, m.dataset, decided=outcome.decided,
            pixels=None if so_far else outcomes.pixels(m, kept, outcome.rows), anew=so_far,
            alike=outcomes.named(m.dataset, trusted.rows),
        )  # fmt: skip
    return run, kept


def _absolute(path: str | Path) -> str:
    return str(path) if stores.is_url(str(path)) else str(Path(path).absolute())
