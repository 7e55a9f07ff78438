"""The story: from a folder of labelled images to a saved model, in the order it happens."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from topwork import data, engine, evaluate, head, model, plan, runs, zoo
from topwork.errors import DataError, UsageError
from topwork.measurement import Measured, fitted_head, measure
from topwork.records import SCHEMA, Dataset, Metrics, ModelFacts, Plan, RunRecord, Spending
from topwork.runs import Run
from topwork.watch import SILENT, Clock, Watch

STRATEGIES = ("head",)


def fit(
    folder: str | Path,
    *,
    backbone: str = zoo.EMBEDDED,
    weights: str | Path | None = None,
    size: int | None = None,
    strategy: str = "head",
    delta: float = plan.DELTA,
    seed: int = 0,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    watch: Watch = SILENT,
) -> Run:
    """Measure every cut of a pretrained backbone on labelled images, decide, train, judge and save.

    `folder`: one folder per class, or train/ plus val/ and test/ of such. `size`: input size in px.
    `delta`: accuracy (0..1) that a cheaper cut may cost. `out`: the run's folder (default
    runs/NAME, or runs/NAME-2 where that exists). Raises UsageError, DataError, MissingError.
    """
    clock, started = Clock(), time.perf_counter()
    if strategy not in STRATEGIES:
        raise UsageError(f"--strategy {strategy}: expected {' or '.join(STRATEGIES)}")
    target = runs.free_folder(Path(folder), out)
    measured = measure(
        folder, backbone=backbone, weights=weights, size=size, seed=seed, delta=delta, cache=cache, watch=watch,
        clock=clock,
    )  # fmt: skip
    with clock.time("plan"):
        decided = plan.decide(measured.evidence, delta=delta)
    watch.show("plan", decided)
    m = measured
    with clock.time("head"), threadpool_limits(1, "blas"):
        chosen = m.backbone.index(decided.cut)
        fitted = fitted_head(m, chosen, seed)
    with clock.time("evaluate"), threadpool_limits(1, "blas"):
        metrics, scored, scores = _judged(m, fitted, chosen, delta, seed)
    with clock.time("save"):
        kept = model.create(_model_facts(m, decided, fitted, metrics), m.backbone, fitted.weight, fitted.bias)
        record = _record(m, decided, fitted, metrics, clock, time.perf_counter() - started, target.name, seed)
        paths = [m.dataset.examples[i].path for i in scored]
        run = runs.save(target, record, kept, paths, m.labels[scored], scores)
    watch.show("run", run)
    return run


def check(folder: str | Path, *, seed: int = 0, watch: Watch = SILENT) -> tuple[Dataset, str]:
    """Only look at the data, decoding every pixel: the dataset, and what its result would rest on."""
    return data.lock(data.read_folder(Path(folder), decode=True, watch=watch), seed)


def judge(run: str | Path, folder: str | Path, *, watch: Watch = SILENT) -> tuple[Metrics, Dataset]:
    """Evaluate a saved model on labelled images that it has not seen."""
    loaded = model.load(Path(run))
    held_out = data.read_held_out(Path(folder), loaded.classes, watch=watch)
    watch.begin("predict", len(held_out.examples))
    logits, labels = [], []
    for start in range(0, len(held_out.examples), model.BATCH):
        batch = held_out.examples[start : start + model.BATCH]
        answers = loaded.predict([Path(folder) / e.path for e in batch])
        for example, answer in zip(batch, answers, strict=True):
            if answer.error is None:
                logits.append([answer.probabilities[c] for c in loaded.classes])
                labels.append(example.label)
        watch.advance(len(batch))
    watch.end()
    if not labels:
        raise DataError(f"{folder}: none of its {len(held_out.examples)} images could be decoded")
    scores = np.log(np.maximum(np.array(logits), 1e-12))
    on = str(folder)
    return evaluate.metrics(scores, np.array(labels), loaded.classes, temperature=1.0, on=on), held_out


def _judged(
    m: Measured, fitted: head.Head, chosen: int, delta: float, seed: int
) -> tuple[Metrics, NDArray[np.int64], NDArray[np.float64]]:
    """Metrics on what is locked, else out of sample; with the rows and scores that they rest on."""
    classes = m.dataset.classes
    if m.locked != "out-of-sample":
        rows = np.flatnonzero([e.part == "test" for e in m.dataset.examples])
        scores = (m.features.at(chosen, rows) @ fitted.weight + fitted.bias).astype(np.float64)
        metrics = evaluate.metrics(scores, m.labels[rows], classes, temperature=fitted.temperature, on=m.locked)
        return metrics, rows, scores
    selected = evaluate.Selected(m.probes, fitted, chosen, delta, m.groups)
    metrics = evaluate.metrics(
        fitted.scores, m.labels[m.rows], classes,
        temperature=fitted.temperature, on=m.locked,
        corrected=evaluate.corrected_accuracy(selected, seed=seed),
        independent=len(m.rows) if m.groups is None else len(np.unique(m.groups)),
    )  # fmt: skip
    return metrics, m.rows, fitted.scores


def _model_facts(m: Measured, decided: Plan, fitted: head.Head, metrics: Metrics) -> ModelFacts:
    k = m.backbone.index(decided.cut)
    return ModelFacts(
        SCHEMA, version("topwork"), m.backbone.name, m.backbone.fingerprint, decided.cut, m.backbone.preprocessing,
        m.dataset.classes, fitted.temperature, m.backbone.cuts[k].channels, fitted.facts.kind,
        decided.kept_cost, metrics.accuracy, runs.versions(),
    )  # fmt: skip


def _record(
    m: Measured, decided: Plan, fitted: head.Head, metrics: Metrics, clock: Clock, total: float, name: str, seed: int
) -> RunRecord:
    spending = Spending(
        {k: round(v, 4) for k, v in clock.seconds.items()}, total, m.features.fe_seconds,
        total / m.features.fe_seconds, m.features.passed, m.features.bytes_per_image,
    )  # fmt: skip
    return RunRecord(
        SCHEMA, version("topwork"), datetime.now(UTC).isoformat(timespec="seconds"), name,
        data.facts(m.dataset, locked=m.locked, seed=seed), m.backbone.facts, m.scores, decided, fitted.facts,
        metrics, spending, engine.NAME, runs.versions(), m.dataset.warnings,
    )  # fmt: skip
