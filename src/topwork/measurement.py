"""What do one backbone's features say at every cut, before anything is decided?"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import platformdirs
from numpy.typing import NDArray
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from topwork import features, head, memo, plan, probe, stack, zoo
from topwork.records import Dataset, HeadFacts, encode
from topwork.statistics import class_weights
from topwork.watch import SILENT, Watch


@dataclass(frozen=True)
class Measured:
    """All that one pass through a backbone and the probes say, before anything is decided."""

    dataset: Dataset
    locked: str
    backbone: zoo.Backbone
    features: features.Features
    rows: NDArray[np.int64]  # of the images that the choice is made with, among the features'
    labels: NDArray[np.int64]  # of all rows
    groups: NDArray[np.int64] | None  # of the chosen-with rows: images of the same content
    importance: NDArray[np.float64] | None  # of the chosen-with rows, of mean 1: where classes are to weigh alike
    probes: tuple[probe.Probe, ...]
    cache: Path
    evidence: plan.Evidence

    @property
    def ridges(self) -> tuple[float, ...]:
        """The penalty chosen at each cut."""
        return tuple(float(p.penalties[p.best]) for p in self.probes)

    @property
    def locked_rows(self) -> NDArray[np.int64]:
        """Rows of the images that the result is measured on, where some are locked."""
        return np.flatnonzero([e.part == "test" for e in self.dataset.examples])


def fitted_head(m: Measured, chosen: int, seed: int) -> head.Head:
    """The head at the chosen cut."""
    labels = m.labels[m.rows]

    def compute() -> memo.Arrays:
        x = m.features.at(chosen, m.rows)
        found = head.fit(
            x, labels, len(m.dataset.classes), m.probes[chosen], groups=m.groups, seed=seed, importance=m.importance
        )
        return {**memo.arrays(found), "facts": np.frombuffer(encode(found.facts), np.uint8)}

    found: dict[str, Any] = memo.remembered(m.cache / "heads", _inputs(m, (chosen,), seed), compute)
    facts = msgspec.json.decode(found["facts"].tobytes(), type=HeadFacts)
    return head.Head(**{**found, "facts": facts, "temperature": facts.temperature})


@dataclass(frozen=True)
class Frozen:
    """The head that goes on frozen layers, and the cuts that it reads."""

    head: head.Head
    taps: tuple[int, ...]  # positions of the cuts, rising; the last one is where the network is cut
    gain: tuple[float, float] | None  # of reading several depths, with its lower 90% bound; None where not tested
    rival: NDArray[np.bool_] | None  # (n,) where the head of several depths is right out of fold, where it was tested
    plain: NDArray[np.bool_]  # (n,) where the head of one depth is

    def features(self, m: Measured, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the head reads of these images: the pooled features of its cuts, one after the other."""
        return np.concatenate([m.features.at(k, rows) for k in self.taps], axis=1)


def frozen_head(m: Measured, chosen: int, seed: int, *, several: bool) -> Frozen:
    """The head at the chosen cut; or, where a paired test says that it is better, one that reads `several` depths.

    The weights of the depths are fitted to the cuts' leave-one-out scores. Only where the sum is shown to beat the
    chosen cut's own leave-one-out scores is it tested again against the head itself, both out of the same folds.
    """
    fitted = fitted_head(m, chosen, seed)
    alone = Frozen(fitted, (chosen,), None, None, fitted.right)
    if not several or len(m.probes) < 2:
        return alone
    labels, classes = m.labels[m.rows], len(m.dataset.classes)
    fold = head.folds(labels, m.groups, seed)
    first = stack.stack([p.scores for p in m.probes], labels, classes, fold, importance=m.importance)
    probe_right = m.probes[chosen].scores.argmax(axis=1) == labels
    if len(first.used) < 2 or stack.gain(first.right, probe_right, m.groups, m.importance)[1] <= 0:
        return alone
    used = first.used

    def compute() -> memo.Arrays:
        by_fold = [
            probe.probe(
                m.features.at(k, m.rows), labels, classes, groups=fold, importance=m.importance,
                penalties=m.probes[k].penalties[[m.probes[k].best]],
            ).scores
            for k in used
        ]  # fmt: skip
        again = stack.stack(by_fold, labels, classes, fold, importance=m.importance)
        w, b = stack.fit(
            (m.features.at(k, m.rows) for k in used), labels, classes, [m.probes[k] for k in used],
            first.weights[list(used)], importance=m.importance,
        )  # fmt: skip
        return {"scores": again.scores, "right": again.right, "weight": w, "bias": b}

    found = memo.remembered(m.cache / "heads", ["several depths", stack.FORMULA, *_inputs(m, used, seed)], compute)
    right = found["right"].astype(bool)
    gain = stack.gain(right, fitted.right, m.groups, m.importance)
    if gain[1] <= 0:
        return replace(alone, gain=gain, rival=right)
    shares = first.weights[list(used)] / first.weights.sum()
    parts = ", ".join(f"{m.features.cuts[k]} {share:.0%}" for k, share in zip(used, shares, strict=True))
    accuracy = float(np.average(right, weights=m.importance))
    facts = replace(
        fitted.facts, kind="several depths", temperature=head.temperature(found["scores"], labels),
        reason=f"several depths ({parts}): right on {accuracy:.1%} out of fold, {100 * gain[0]:+.1f} points against the"
        f" head of one depth on the same folds (lower 90% bound {100 * gain[1]:+.1f}); that one was {fitted.facts.reason}",
    )  # fmt: skip
    several_head = replace(
        fitted, weight=found["weight"], bias=found["bias"], temperature=facts.temperature, facts=facts,
        scores=found["scores"], right=right,
    )  # fmt: skip
    return Frozen(several_head, used, gain, right, fitted.right)


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
        np.zeros(0) if m.importance is None else m.importance,
    ]


def cache_folder(given: str | Path | None = None) -> Path:
    """Where features are kept: TOPWORK_CACHE, or the user's cache folder. May be deleted at any time."""
    return Path(given or os.environ.get("TOPWORK_CACHE") or platformdirs.user_cache_dir("topwork"))


def probed(
    dataset: Dataset, locked: str, loaded: zoo.Backbone, seen: features.Features, *, balance: bool, cache: Path,
    watch: Watch = SILENT,
) -> Measured:  # fmt: skip
    """Every cut's exact leave-one-out scores, cuts side by side, one BLAS thread each.

    `balance`: every class weighs alike, whatever the number of its images; accuracies of cuts are then balanced.
    One thread each, because BLAS threads that wait for each other spin: with another process on
    the machine that cost a factor of ten.
    """
    labels = np.array([e.label for e in dataset.examples])
    rows = np.flatnonzero([e.part == "train" for e in dataset.examples])
    digests = [dataset.examples[i].digest for i in rows]
    _, groups = np.unique(digests, return_inverse=True)
    shared = groups if len(set(digests)) < len(digests) else None
    classes = len(dataset.classes)
    importance = class_weights(labels[rows], classes)[labels[rows]] if balance else None
    weight = np.zeros(0) if importance is None else importance

    def compute(k: int) -> memo.Arrays:
        result = probe.probe(seen.at(k, rows), labels[rows], classes, groups=shared, importance=importance)
        return memo.arrays(result if locked == "out-of-sample" else _thinned(result))

    def one(k: int) -> probe.Probe:
        inputs: list[memo.Input] = [
            probe.FORMULA,
            features.key(loaded),
            seen.cuts[k],
            " ".join(digests),
            locked,
            labels[rows],
            weight,
        ]
        found: dict[str, Any] = memo.remembered(cache / "probes", inputs, lambda: compute(k))
        return probe.Probe(**{**found, "best": int(found["best"])})

    watch.begin("probe", len(seen.cuts))
    probes = []
    # Features at one cut are the largest thing in memory; four at a time bound it on large machines.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for result in pool.map(one, range(len(seen.cuts))):
            probes.append(result)
            watch.advance()
        # Only of the images that the choice is made with: what is locked has no say in anything.
        confidence, spread = _source(None if seen.logits is None else seen.logits[rows])
        near = probe.neighbours(seen.at(len(seen.cuts) - 1, rows), labels[rows])
    watch.end()
    correct = np.stack([p.correct[:, p.best if p.correct.shape[1] > 1 else 0] for p in probes], axis=1)
    work = tuple(c.macs / loaded.chain.macs for c in loaded.cuts)
    evidence = plan.Evidence(
        loaded.name, loaded.preprocessing.crop_px, seen.cuts, seen.cost_shares, work,
        1000 * float(seen.seconds[1:].sum()), correct, shared, importance, near, confidence, spread,
    )  # fmt: skip
    return Measured(dataset, locked, loaded, seen, rows, labels, shared, importance, tuple(probes), cache, evidence)


def _thinned(p: probe.Probe) -> probe.Probe:
    """Only the best penalty's column: the others serve the selection correction alone."""
    one = slice(p.best, p.best + 1)
    return replace(p, squared=p.squared[:, one], correct=p.correct[:, one])


def _source(logits: NDArray[np.float32] | None) -> tuple[float | None, float | None]:
    """How confident, and how spread over its own classes, the backbone is on these images."""
    if logits is None:
        return None, None
    probabilities = softmax(logits.astype(np.float64), axis=1)
    mean = probabilities.mean(axis=0)
    entropy = -float((mean * np.log(np.maximum(mean, 1e-300))).sum())
    return float(probabilities.max(axis=1).mean()), float(np.exp(entropy) / logits.shape[1])
