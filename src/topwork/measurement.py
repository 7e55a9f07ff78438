"""What do one backbone's features say at every cut, before anything is decided?"""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import platformdirs
from numpy.typing import NDArray
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from topwork import features, groups, head, memo, plan, probe, ranking, stack, zoo
from topwork.records import Dataset, Grouped, HeadFacts, encode
from topwork.statistics import Z95, class_weights, independent, paired_errors
from topwork.watch import SILENT, Watch

FOLD_SCORES = 100_000_000
"""Images x classes x cuts up to which scores out of fold are kept for a head of several depths: 200 MB as float16."""


IN_MEMORY = 8192
"""Images up to which the features of a cut are held in memory, 10 KB of each at the widest cut of EfficientNet-Lite0;
those of more are read from the disk's cache in pieces, some five times."""


FACTORS_BYTES = 64 * 2**20
"""Decompositions of cuts that are kept for the head: all of EfficientNet-Lite0's up to some 1,000 images."""


class Decomposed:
    """Standardised features of cuts, decomposed: of what a probe took apart, a head is made without doing it again."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[probe.Standardised, probe.Factors]] = {}
        self._bytes, self._lock = 0, threading.Lock()

    def at(
        self, k: int, x: probe.Table, importance: NDArray[np.float64] | None
    ) -> tuple[probe.Standardised, probe.Factors]:
        """Of cut k, whose features are x: (n, d)."""
        kept = self._found.get(k)
        if kept is not None:
            return kept
        standard = probe.Standardised.of(x, importance)
        made = standard, probe.factor(x, standard, importance)
        size = sum(vectors.nbytes for vectors in (made[1].u, made[1].v) if vectors is not None)
        with self._lock:
            if self._bytes + size <= FACTORS_BYTES:
                self._found[k] = made
                self._bytes += size
        return made


@dataclass(frozen=True)
class Measured:
    """All that one pass through a backbone and the probes say, before anything is decided."""

    dataset: Dataset
    locked: str
    backbone: zoo.Backbone
    features: features.Features
    rows: NDArray[np.int64]  # of the images that the choice is made with, among the features'
    labels: NDArray[np.int64]  # of all rows
    groups: NDArray[np.int64] | None  # of the chosen-with rows: images that belong together
    importance: NDArray[np.float64] | None  # of the chosen-with rows, of mean 1: where classes are to weigh alike
    probes: tuple[probe.Probe, ...]
    by_fold: tuple[NDArray[np.float16], ...] | None  # per cut (n, C) ridge scores out of fold; None where too many
    cache: Path
    evidence: plan.Evidence
    whole: Measured | None = None  # of all cuts, on a sample: where the other images passed up to the last one here
    factors: Decomposed = field(default_factory=Decomposed)  # of the chosen-with rows

    @property
    def ridges(self) -> tuple[float, ...]:
        """The penalty chosen at each cut."""
        return tuple(float(p.penalties[p.best]) for p in self.probes)

    @cached_property
    def truth(self) -> probe.Labels:
        """What heads are fitted to, of all rows: the labels, or where images may have several, (N, C) multi-hot."""
        return _truth(self.dataset, self.labels)

    @property
    def locked_rows(self) -> NDArray[np.int64]:
        """Rows of the images that the result is measured on, where some are locked."""
        return np.flatnonzero([e.part == "test" for e in self.dataset.examples])

    def scored_at(self, k: int, rows: NDArray[np.int64]) -> tuple[Measured, NDArray[np.int64]]:
        """The measurement that has cut k, and where in its `rows` those of these images stand that it has seen.

        That is this one with all of them; or for a cut that not all images were passed up to, that of the sample.
        """
        if k < len(self.features.cuts) or self.whole is None:
            return self, rows
        wanted = {self.dataset.examples[i].path for i in self.rows[rows]}
        paths = [self.whole.dataset.examples[i].path for i in self.whole.rows]
        return self.whole, np.flatnonzero([path in wanted for path in paths])

    @property
    def shortened(self) -> str:
        """What else a training depends on where cuts were scored on a sample: its name; empty where none was."""
        if self.whole is None:
            return ""
        sample = " ".join(self.whole.dataset.examples[i].digest for i in self.whole.rows)
        return f" {len(self.features.cuts)} cuts, all of them of {memo.name([sample])}"


def fitted_head(m: Measured, chosen: int, seed: int) -> head.Head:
    """The head at the chosen cut."""

    def compute() -> memo.Arrays:
        x = _table(m.features, chosen, m.rows)
        standard, factors = m.factors.at(chosen, x, m.importance)
        found = head.fit(
            x, m.truth[m.rows], len(m.dataset.classes), m.probes[chosen], groups=m.groups, seed=seed,
            importance=m.importance, strata=m.labels[m.rows], standard=standard, factors=factors,
        )  # fmt: skip
        return {**memo.arrays(found), "facts": np.frombuffer(encode(found.facts), np.uint8)}

    found: dict[str, Any] = memo.remembered(m.cache / "heads", _inputs(m, (chosen,), seed), compute)
    facts = msgspec.json.decode(found["facts"].tobytes(), type=HeadFacts)
    return head.Head(**{**found, "facts": facts, "temperature": facts.temperature})


@dataclass(frozen=True)
class Frozen:
    """The head that goes on frozen layers, and the cuts that it reads."""

    head: head.Head
    taps: tuple[int, ...]  # positions of the cuts, rising; the last one is where the network is cut
    tried: tuple[tuple[NDArray[Any], float], ...]  # heads of several depths in order: (n,) where each is right
    # out of fold, and the gain over one depth that it must be shown to exceed

    def scores(self, m: Measured, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The head's logits of these images, before the temperature: (n, C). It reads the cuts one after the other."""
        parts = [rows[i : i + probe.CHUNK] for i in range(0, len(rows), probe.CHUNK)]
        found = [
            np.concatenate([m.features.at(k, part) for k in self.taps], axis=1) @ self.head.weight + self.head.bias
            for part in parts
        ]
        return np.concatenate(found).astype(np.float64)


def frozen_head(m: Measured, chosen: int, seed: int, *, several: bool, delta: float) -> Frozen:
    """The head at the chosen cut; or, where a paired test says that it is better, one that reads `several` depths.

    Both sides are out of the same folds. Depths up to the chosen cut cost nothing more, so any gain that is shown
    counts; deeper ones undo the choice of a cheaper cut, so they must be shown to gain more than `delta`.
    """
    fitted = fitted_head(m, chosen, seed)
    if not several or m.by_fold is None:
        return Frozen(fitted, (chosen,), ())
    deepest = len(m.by_fold) - 1
    tried: tuple[tuple[NDArray[np.bool_], float], ...] = ()
    labels, classes = m.labels[m.rows], len(m.dataset.classes)
    fold = head.folds(labels, m.groups, seed)
    for last, least in (*([(deepest, delta)] if deepest > chosen else []), (chosen, 0.0)):
        scores = [m.by_fold[k].astype(np.float32) for k in range(last + 1)]
        found = stack.stack(scores, labels, classes, fold, importance=m.importance)
        if len(found.used) < 2 or (last > chosen and found.used[-1] <= chosen):
            continue
        gain, low = stack.gain(found.right, fitted.right, m.groups, m.importance)
        tried = (*tried, (found.right, least))
        if low > least:
            return Frozen(_stacked(m, fitted, found, (gain, low), seed), found.used, tried)
    return Frozen(fitted, (chosen,), tried)


def reach(m: Measured, seed: int, *, delta: float) -> int:
    """Up to which cut, 1..K, images have to pass for the head of several depths that may still win; 0: none may.

    It may unless it is shown, by the bound that it would be kept by, to gain no more than the delta that it must.
    """
    if m.by_fold is None:
        return 0
    chosen = m.backbone.index(plan.decide(m.evidence, delta=delta).cut)
    labels = m.labels[m.rows]
    scores = [s.astype(np.float32) for s in m.by_fold]
    fold = head.folds(labels, m.groups, seed)
    found = stack.stack(scores, labels, len(m.dataset.classes), fold, importance=m.importance)
    if len(found.used) < 2 or found.used[-1] <= chosen:
        return 0
    value, low = stack.gain(found.right, scores[chosen].argmax(axis=1) == labels, m.groups, m.importance)
    return found.used[-1] + 1 if 2 * value - low > delta else 0


def keeps_scores(images: int, classes: int, cuts: int) -> bool:
    """Whether scores out of fold of so many are kept, which a head of several depths is made from."""
    return images * classes * cuts <= FOLD_SCORES


def _stacked(m: Measured, fitted: head.Head, found: stack.Stacked, gain: tuple[float, float], seed: int) -> head.Head:
    """The head that reads several depths."""
    labels, classes, used = m.labels[m.rows], len(m.dataset.classes), found.used
    weights = found.weights[list(used)]

    def compute() -> memo.Arrays:
        x_by_cut = (_table(m.features, k, m.rows) for k in used)
        w, b = stack.fit(
            x_by_cut, labels, classes, [m.probes[k] for k in used], weights, importance=m.importance,
            decomposed=lambda i, x: m.factors.at(used[i], x, m.importance),
        )  # fmt: skip
        return {"weight": w, "bias": b}

    arrays = memo.remembered(
        m.cache / "heads", ["several depths", stack.FORMULA, weights, *_inputs(m, used, seed)], compute
    )
    parts = ", ".join(f"{m.features.cuts[k]} {w / weights.sum():.0%}" for k, w in zip(used, weights, strict=True))
    accuracy = float(np.average(found.right, weights=m.importance))
    reason = (
        f"several depths ({parts}): right on {accuracy:.1%} out of fold, {100 * gain[0]:+.1f} points against the head"
        f" of one depth on the same folds (lower 90% bound {100 * gain[1]:+.1f})"
    )
    t = head.temperature(found.scores, labels)
    return replace(
        fitted, weight=arrays["weight"], bias=arrays["bias"], temperature=t, scores=found.scores, right=found.right,
        facts=replace(fitted.facts, kind="several depths", temperature=t, reason=reason),
    )  # fmt: skip


def _table(seen: features.Features, k: int, rows: NDArray[np.int64]) -> probe.Table:
    """The features at cut k, in memory where they are few."""
    return seen.at(k, rows) if len(rows) <= IN_MEMORY else seen.read(k, rows)


def _inputs(m: Measured, cuts: tuple[int, ...], seed: int) -> list[memo.Input]:
    """All that a head on these cuts depends on."""
    return [
        head.FORMULA,
        probe.FORMULA,
        features.key(m.backbone),
        *(m.features.cuts[k] for k in cuts),
        " ".join(m.dataset.examples[i].digest for i in m.rows),
        str(seed),
        m.labels[m.rows],
        *([m.truth[m.rows]] if m.dataset.multi_label else []),
        np.zeros(0) if m.importance is None else m.importance,
        np.zeros(0) if m.groups is None else m.groups,
    ]


def parted(m: Measured, chosen: int, grouped: Grouped) -> Grouped:
    """What it makes at a cut that photos of one scene stand on one side: both accuracies, on the same images.

    Leave-group-out over all groups against leave-one-out over those that need no looking (copies and given groups);
    each at the penalty that suits it best. Unchanged where no other groups were found.
    """
    truth, classes = m.truth[m.rows], len(m.dataset.classes)
    mixed = groups.known([replace(m.dataset.examples[i], scene="") for i in m.rows])
    if m.groups is None or mixed.max() == m.groups.max():
        return grouped
    stated = mixed if len(np.unique(mixed)) < len(mixed) else None

    def compute() -> memo.Arrays:
        x = _table(m.features, chosen, m.rows)
        with threadpool_limits(1, "blas"):  # as for the probes (probed)
            standard, factors = m.factors.at(chosen, x, m.importance)
            found = probe.probe(
                x, truth, classes, groups=stated, importance=m.importance, standard=standard, factors=factors
            )
        return {"right": found.correct[:, found.best]}

    inputs = ["mixed", *_inputs(m, (chosen,), 0), mixed]
    right = memo.remembered(m.cache / "probes", inputs, compute)["right"]
    apart = m.evidence.correct[:, chosen]
    weight = np.ones(len(m.rows)) if m.importance is None else m.importance
    difference = (weight * (right.astype(np.float64) - apart))[:, None]
    value = float(difference.mean())
    error = float(np.hypot(paired_errors(difference, m.groups)[0], 1 / independent(m.groups, len(m.rows), weight)))
    return replace(
        grouped, cut=m.features.cuts[chosen], accuracy_apart=float(np.average(apart, weights=weight)),
        accuracy_mixed=float(np.average(right, weights=weight)), inflation=value, inflation_low=value - Z95 * error,
        inflation_high=value + Z95 * error,
    )  # fmt: skip


def inflated(grouped: Grouped) -> str:
    """The sentence that says how much photos of one scene on both sides would feign; empty where none is shown."""
    apart, mixed, low, high = (
        grouped.accuracy_apart, grouped.accuracy_mixed, grouped.inflation_low, grouped.inflation_high
    )  # fmt: skip
    if apart is None or mixed is None or low is None or high is None or low <= 0:
        return ""
    return (
        f"{mixed:.1%} right at {grouped.cut} if photos of one scene may stand on both sides, {apart:.1%} on new scenes"
        f" (95% interval of the difference {100 * low:.1f} to {100 * high:.1f} points); the second is what to expect."
        f" {grouped.together} of {grouped.images} images belong together with another, in"
        f" {grouped.groups - grouped.images + grouped.together} groups."
    )


def cache_folder(given: str | Path | None = None) -> Path:
    """Where features are kept: TOPWORK_CACHE, or the user's cache folder. May be deleted at any time."""
    return Path(given or os.environ.get("TOPWORK_CACHE") or platformdirs.user_cache_dir("topwork"))


def probed(
    dataset: Dataset, locked: str, loaded: zoo.Backbone, seen: features.Features, *, balance: bool, seed: int,
    cache: Path, watch: Watch = SILENT,
) -> Measured:  # fmt: skip
    """Every cut's exact leave-one-out scores, cuts side by side, one BLAS thread each.

    `balance`: every class weighs alike, whatever the number of its images; accuracies of cuts are then balanced.
    One thread each, because BLAS threads that wait for each other spin: with another process on
    the machine that cost a factor of ten.
    """
    labels = np.array([e.label for e in dataset.examples])
    truth = _truth(dataset, labels)
    rows = np.flatnonzero([e.part == "train" for e in dataset.examples])
    digests = [dataset.examples[i].digest for i in rows]
    index = groups.known([dataset.examples[i] for i in rows])
    shared = index if len(np.unique(index)) < len(index) else None
    classes = len(dataset.classes)
    importance = class_weights(labels[rows], classes)[labels[rows]] if balance else None
    weight = np.zeros(0) if importance is None else importance

    fold = head.folds(labels[rows], shared, seed)
    with_folds = keeps_scores(len(rows), classes, len(seen.cuts)) and not dataset.multi_label

    decomposed = Decomposed()

    def compute(k: int) -> memo.Arrays:
        x = _table(seen, k, rows)
        standard, factors = decomposed.at(k, x, importance)
        result = probe.probe(
            x, truth[rows], classes, groups=shared, importance=importance, standard=standard, factors=factors
        )
        found = memo.arrays(result if locked == "out-of-sample" else _thinned(result))
        if with_folds:
            by_fold = probe.probe(
                x, labels[rows], classes, groups=fold, importance=importance,
                penalties=result.penalties[[result.best]], standard=standard, factors=factors,
            )  # fmt: skip
            found["by_fold"] = by_fold.scores.astype(np.float16)
        return found

    def one(k: int) -> tuple[probe.Probe, NDArray[np.float16] | None]:
        inputs: list[memo.Input] = [
            probe.FORMULA,
            features.key(loaded),
            seen.cuts[k],
            " ".join(digests),
            locked,
            truth[rows],
            weight,
            np.zeros(0) if shared is None else shared,
            fold if with_folds else np.zeros(0),  # what was kept without scores out of fold is not what has them
        ]
        found: dict[str, Any] = memo.remembered(cache / "probes", inputs, lambda: compute(k))
        by_fold = found.pop("by_fold", None)
        return probe.Probe(**{**found, "best": int(found["best"])}), by_fold

    watch.begin("probe", len(seen.cuts))
    probes: list[probe.Probe] = []
    by_fold: list[NDArray[np.float16]] = []
    # Features at one cut are the largest thing in memory; four at a time bound it on large machines.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        every = len(seen.cuts) == len(loaded.cuts)  # else what the last one here says is no word of the last layers
        near = pool.submit(
            lambda: probe.neighbours(seen.read(len(seen.cuts) - 1, rows), truth[rows]) if every else math.nan
        )
        for result, scores in pool.map(one, range(len(seen.cuts))):
            probes.append(result)
            if scores is not None:
                by_fold.append(scores)
            watch.advance()
        # Only of the images that the choice is made with: what is locked has no say in anything.
        confidence, spread = _source(None if seen.logits is None else seen.logits[rows])
    watch.end()
    correct = np.stack([p.correct[:, p.best if p.correct.shape[1] > 1 else 0] for p in probes], axis=1)
    work = tuple(c.macs / loaded.chain.macs for c in loaded.cuts[: len(seen.cuts)])
    evidence = plan.Evidence(
        loaded.name, loaded.preprocessing.crop_px, seen.cuts, seen.cost_shares, work,
        1000 * seen.forward_seconds, correct, shared, importance, near.result(), confidence, spread,
    )  # fmt: skip
    return Measured(
        dataset, locked, loaded, seen, rows, labels, shared, importance, tuple(probes),
        tuple(by_fold) if with_folds else None, cache, evidence, factors=decomposed,
    )  # fmt: skip


def _truth(dataset: Dataset, labels: NDArray[np.int64]) -> probe.Labels:
    """(N,) labels as they are; (N, C) multi-hot where images may have several."""
    if not dataset.multi_label:
        return labels
    return ranking.multi_hot([e.labels for e in dataset.examples], len(dataset.classes))


def _thinned(p: probe.Probe) -> probe.Probe:
    """Only the best penalty's column: the others serve the selection correction alone."""
    one = slice(p.best, p.best + 1)
    return replace(p, squared=p.squared[:, one].copy(), correct=p.correct[:, one].copy())


def _source(logits: NDArray[np.float32] | None) -> tuple[float | None, float | None]:
    """How confident, and how spread over its own classes, the backbone is on these images."""
    if logits is None:
        return None, None
    probabilities = softmax(logits.astype(np.float64), axis=1)
    mean = probabilities.mean(axis=0)
    entropy = -float((mean * np.log(np.maximum(mean, 1e-300))).sum())
    return float(probabilities.max(axis=1).mean()), float(np.exp(entropy) / logits.shape[1])
