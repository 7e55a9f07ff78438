"""What do one pass over the images and the probes of every cut say, before anything is decided?"""

from __future__ import annotations

import os
from collections.abc import Sequence
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

from topwork import data, features, head, memo, plan, probe, zoo
from topwork.errors import UsageError
from topwork.records import CutScore, Dataset, HeadFacts, encode
from topwork.statistics import class_weights
from topwork.watch import SILENT, Clock, Watch


@dataclass(frozen=True)
class Measured:
    """All that one pass and the probes say, before anything is decided."""

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
    scores: tuple[CutScore, ...]

    @property
    def locked_rows(self) -> NDArray[np.int64]:
        """Rows of the images that the result is measured on, where some are locked."""
        return np.flatnonzero([e.part == "test" for e in self.dataset.examples])


def measure(
    folder: str | Path,
    *,
    backbone: str = zoo.EMBEDDED,
    weights: str | Path | None = None,
    size: int | None = None,
    seed: int = 0,
    delta: float = plan.DELTA,
    cache: str | Path | None = None,
    balance: bool = False,
    cuts: Sequence[str | None] = (),
    watch: Watch = SILENT,
    clock: Clock | None = None,
) -> Measured:
    """Look at the data, pass every image through the backbone once, and score every cut.

    `balance`: every class weighs alike, whatever the number of its images; accuracies of cuts are then balanced.
    `cuts` are names that must be cuts of the backbone: a wrong one is told before the pass, not after it.
    """
    clock = clock or Clock()
    if not 0 <= delta < 1:
        raise UsageError(f"--delta {delta}: expected a share of accuracy from 0 to below 1, such as 0.01")
    root = Path(folder)
    with clock.time("look"):
        dataset = data.read_folder(root, watch=watch)
        dataset, locked = data.lock(dataset, seed)
    watch.show("data", dataset)
    with clock.time("load"):
        loaded = zoo.load(backbone, weights=Path(weights) if weights else None, size_px=size)
    for name in cuts:
        if name is not None:
            loaded.index(name)
    watch.show("backbone", loaded.facts)
    with clock.time("pass"):
        home = cache_folder(cache)
        seen = features.measure(loaded, root, dataset.examples, cache=home, watch=watch)
        if seen.faults:
            dataset = data.without(dataset, seen.faults)
            watch.show("faults", seen.faults)
    with clock.time("probe"):
        measured = _probed(dataset, locked, loaded, seen, balance, home, watch)
    watch.show("scores", measured.scores)
    return measured


def fitted_head(m: Measured, chosen: int, seed: int) -> head.Head:
    """The head at the chosen cut."""
    labels = m.labels[m.rows]

    def compute() -> memo.Arrays:
        x = m.features.at(chosen, m.rows)
        found = head.fit(
            x, labels, len(m.dataset.classes), m.probes[chosen], groups=m.groups, seed=seed, importance=m.importance
        )
        return {**memo.arrays(found), "facts": np.frombuffer(encode(found.facts), np.uint8)}

    digests = " ".join(m.dataset.examples[i].digest for i in m.rows)
    inputs: list[memo.Input] = [
        head.FORMULA,
        probe.FORMULA,
        features.key(m.backbone),
        m.features.cuts[chosen],
        digests,
        str(seed),
        labels,
        np.zeros(0) if m.importance is None else m.importance,
    ]
    found: dict[str, Any] = memo.remembered(m.cache / "heads", inputs, compute)
    facts = msgspec.json.decode(found["facts"].tobytes(), type=HeadFacts)
    return head.Head(**{**found, "facts": facts, "temperature": facts.temperature})


def cache_folder(given: str | Path | None = None) -> Path:
    """Where features are kept: TOPWORK_CACHE, or the user's cache folder. May be deleted at any time."""
    return Path(given or os.environ.get("TOPWORK_CACHE") or platformdirs.user_cache_dir("topwork"))


def _probed(
    dataset: Dataset, locked: str, loaded: zoo.Backbone, seen: features.Features, balance: bool, cache: Path,
    watch: Watch,
) -> Measured:  # fmt: skip
    """Every cut's exact leave-one-out scores, cuts side by side, one BLAS thread each.

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
        loaded.name, seen.cuts, seen.cost_shares, work, correct, shared, importance, near, confidence, spread
    )
    ridges = tuple(float(p.penalties[p.best]) for p in probes)
    scores = plan.scores(evidence, seen.widths, ridges)
    return Measured(
        dataset, locked, loaded, seen, rows, labels, shared, importance, tuple(probes), cache, evidence, scores
    )


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
