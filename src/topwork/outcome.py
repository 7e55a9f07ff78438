"""How good is the model that comes of it, on what, and when must it say that it does not know?

Asks evaluate, correction and trust of what was measured, whichever method made the model.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from topwork import correction, data, evaluate, head, memo, plan, portable, stores, trust, zoo
from topwork import known as alike
from topwork.asking import BATCH
from topwork.errors import ImageError, LostError
from topwork.measurement import Frozen, Measured
from topwork.model import Model
from topwork.records import Dataset, Metrics, Options, Plan, Sets, Unknown
from topwork.survey import Survey
from topwork.tune import TrainedModel


@dataclass(frozen=True)
class Outcome:
    """The model's parts, and the scores that its metrics rest on."""

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


def frozen_layers(seen: Survey, m: Measured, frozen: Frozen, decided: Plan, o: Options) -> Outcome:
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
        return Outcome(
            m, m.backbone, taps, fitted.weight, fitted.bias, fitted.facts.kind, fitted.temperature, metrics, rows,
            scores, m.rows, fold_scores, tuple(float(t) for t in thresholds), decided_,
        )  # fmt: skip
    metrics = evaluate.metrics(
        scores, m.labels[rows], classes, temperature=fitted.temperature, on=m.locked, corrected=corrected,
        independent=_independent(m, rows), groups=_together(m, rows), seed=o.seed,
    )  # fmt: skip
    return Outcome(
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


def trained_layers(found: TrainedModel, seed: int) -> Outcome:
    """The trained layers, judged on what is locked, else on the folds that chose nothing."""
    m, rows = found.m, found.fold_rows
    fold_scores = head.fair(found.fold_scores, m.labels[rows], _folds(m, rows, seed), found.temperature)
    scores = found.scores if m.locked != "out-of-sample" else fold_scores
    metrics = evaluate.metrics(
        scores, m.labels[found.rows], m.dataset.classes, temperature=found.temperature, on=m.locked,
        independent=_independent(m, found.rows), groups=_together(m, found.rows), seed=seed,
    )  # fmt: skip
    return Outcome(
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
class Trust:
    """When the model has to say that it does not know, and how many classes it must name."""

    known: alike.Known
    rows: NDArray[np.int64]  # of the images in it
    unknown: Unknown | None
    sets: Sets | None


def trusted(outcome: Outcome, kept: Model, seed: int) -> Trust:
    """What is measured of the model beyond its classes. Features are those of the pass, but where layers were trained.

    Images that layers were trained on are no strangers to them: then the locked images alone set the threshold, each
    fold of them for the others.
    """
    m, trained = outcome.m, outcome.head == "trained"
    most = min(alike.MOST_TRAINED if trained else alike.MOST, max(1, alike.VALUES // (2 * kept.facts.channels)))
    rows, pooled = _pooled(outcome, kept, m.rows[alike.sample(m.labels[m.rows], most, seed=seed)])
    known = alike.Known.of(pooled, seed=seed)
    judging, fold = rows, _folds(m, rows, seed)
    scores, judged = None if trained else known.apart(pooled, fold), None
    if m.locked != "out-of-sample":
        sample = alike.sample(m.labels[m.locked_rows], most, seed=seed)
        judging, pooled = _pooled(outcome, kept, m.locked_rows[sample])
        judged = known.scores(pooled)
        if trained:
            scores, judged, fold = judged, None, head.folds(m.labels[judging], _together(m, judging), seed)
    unknown = None
    if scores is not None:
        unknown = trust.unknown(
            scores, fold, judged, method="distance", groups=_together(m, judging if trained else rows), on=m.locked,
            independent=_independent(m, judging),
        )  # fmt: skip
    return Trust(known, rows, unknown, None if m.dataset.multi_label else _sets(outcome, seed))


def _sets(outcome: Outcome, seed: int) -> Sets:
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


def _pooled(outcome: Outcome, kept: Model, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
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


def named(dataset: Dataset, rows: NDArray[np.int64]) -> tuple[list[str], list[str]]:
    """Paths and labels of these images; of several labels, with a bar between."""
    examples = [dataset.examples[i] for i in rows]
    labels = ["|".join(dataset.classes[k] for k in dataset.labels_of(e)) for e in examples]
    return [e.path for e in examples], labels


def pixels(m: Measured, kept: Model, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
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
