"""The story: from a folder of labelled images to a saved model, in the order it happens."""

from __future__ import annotations

import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import platformdirs
from numpy.typing import NDArray
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from topwork import data, engine, evaluate, features, head, memo, model, plan, probe, zoo
from topwork.errors import DataError, UsageError
from topwork.records import (
    SCHEMA,
    CutScore,
    Dataset,
    HeadFacts,
    Metrics,
    ModelFacts,
    Plan,
    RunRecord,
    Spending,
    decode,
    encode,
)
from topwork.watch import SILENT, Watch

STRATEGIES = ("head",)


@dataclass
class Clock:
    """Wall-clock seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add what happens inside to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


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
    probes: tuple[probe.Probe, ...]
    cache: Path
    evidence: plan.Evidence
    scores: tuple[CutScore, ...]


class Run:
    """A finished run: its folder, every fact, and the model."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        self.path = path
        self.record = record

    @property
    def plan(self) -> Plan:
        """What was decided, and why."""
        return self.record.plan

    @property
    def metrics(self) -> Metrics:
        """How good it is, with intervals."""
        return self.record.metrics

    @property
    def scores(self) -> tuple[CutScore, ...]:
        """The depth table."""
        return self.record.scores

    @cached_property
    def model(self) -> model.Model:
        """The saved model, loaded from the run's folder."""
        return model.load(self.path)


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
    target = _free_folder(Path(folder), out)
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
        fitted = _fitted(m, chosen, seed)
    with clock.time("evaluate"), threadpool_limits(1, "blas"):
        metrics, scored, scores = _judged(m, fitted, chosen, delta, seed)
    with clock.time("save"):
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        facts = _model_facts(m, decided, fitted, metrics)
        saved = model.create(facts, m.backbone, fitted.weight, fitted.bias)
        aside.mkdir(parents=True)
        try:
            saved.save(aside / "model")
            _write_predictions(aside / "predictions.parquet", m, scored, scores, fitted.temperature)
            record = _record(m, decided, fitted, metrics, clock, time.perf_counter() - started, target.name, seed)
            (aside / "run.json").write_bytes(encode(record))
            _rename(aside, target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    run = Run(target, record)
    watch.show("run", run)
    return run


def measure(
    folder: str | Path,
    *,
    backbone: str = zoo.EMBEDDED,
    weights: str | Path | None = None,
    size: int | None = None,
    seed: int = 0,
    delta: float = plan.DELTA,
    cache: str | Path | None = None,
    watch: Watch = SILENT,
    clock: Clock | None = None,
) -> Measured:
    """Look at the data, pass every image through the backbone once, and score every cut."""
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
    watch.show("backbone", loaded.facts)
    with clock.time("pass"):
        home = Path(cache) if cache else cache_folder()
        seen = features.measure(loaded, root, dataset.examples, cache=home, watch=watch)
        if seen.faults:
            dataset = data.without(dataset, seen.faults)
            watch.show("faults", seen.faults)
    with clock.time("probe"):
        measured = _probed(dataset, locked, loaded, seen, home, watch)
    watch.show("scores", measured.scores)
    return measured


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


def load_run(path: str | Path) -> Run:
    """Open a finished run. Raises DataError where there is none."""
    file = Path(path) / "run.json"
    if not file.is_file():
        raise DataError(f"{path}: no run in it (no run.json); `topwork fit FOLDER --out {path}` makes one")
    return Run(Path(path), decode(file.read_bytes(), RunRecord, where=str(file)))


def cache_folder() -> Path:
    """Where features are kept: TOPWORK_CACHE, or the user's cache folder. May be deleted at any time."""
    return Path(os.environ.get("TOPWORK_CACHE") or platformdirs.user_cache_dir("topwork"))


def _probed(
    dataset: Dataset, locked: str, loaded: zoo.Backbone, seen: features.Features, cache: Path, watch: Watch
) -> Measured:
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

    def compute(k: int) -> memo.Arrays:
        result = probe.probe(seen.at(k, rows), labels[rows], classes, groups=shared)
        return memo.arrays(result if locked == "out-of-sample" else _thinned(result))

    def one(k: int) -> probe.Probe:
        inputs: list[memo.Input] = [
            probe.FORMULA,
            features.key(loaded),
            seen.cuts[k],
            " ".join(digests),
            locked,
            labels[rows],
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
        confidence, spread = _source(seen.logits)
        near = probe.neighbours(seen.at(len(seen.cuts) - 1, rows), labels[rows])
    watch.end()
    correct = np.stack([p.correct[:, p.best if p.correct.shape[1] > 1 else 0] for p in probes], axis=1)
    evidence = plan.Evidence(loaded.name, seen.cuts, seen.cost_shares, correct, shared, near, confidence, spread)
    ridges = tuple(float(p.penalties[p.best]) for p in probes)
    scores = plan.scores(evidence, seen.widths, ridges)
    return Measured(dataset, locked, loaded, seen, rows, labels, shared, tuple(probes), cache, evidence, scores)


def _fitted(m: Measured, chosen: int, seed: int) -> head.Head:
    """The head at the chosen cut."""
    labels = m.labels[m.rows]

    def compute() -> memo.Arrays:
        x = m.features.at(chosen, m.rows)
        found = head.fit(x, labels, len(m.dataset.classes), m.probes[chosen], groups=m.groups, seed=seed)
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
    ]
    found: dict[str, Any] = memo.remembered(m.cache / "heads", inputs, compute)
    facts = msgspec.json.decode(found["facts"].tobytes(), type=HeadFacts)
    return head.Head(**{**found, "facts": facts, "temperature": facts.temperature})


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
        decided.kept_cost, metrics.accuracy, _versions(),
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
        metrics, spending, engine.NAME, _versions(), m.dataset.warnings,
    )  # fmt: skip


def _versions() -> dict[str, str]:
    names = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _write_predictions(
    path: Path, m: Measured, rows: Sequence[int] | NDArray[np.int64], scores: NDArray[np.float64], temperature: float
) -> None:
    """One row per judged image: path, label, predicted class, its probability, all probabilities."""
    import pyarrow as pa  # noqa: PLC0415 (0.3 s to import)
    from pyarrow import parquet  # noqa: PLC0415

    probabilities = softmax(scores / temperature, axis=1)
    best = scores.argmax(axis=1)
    names = m.dataset.classes
    table = pa.table(
        {
            "path": [m.dataset.examples[i].path for i in rows],
            "label": [names[m.labels[i]] for i in rows],
            "predicted": [names[k] for k in best],
            "probability": probabilities[np.arange(len(best)), best],
            "probabilities": list(probabilities),
        },
        metadata={"classes": encode(names).decode(), "on": m.locked},
    )
    parquet.write_table(table, path)


def _free_folder(source: Path, out: str | Path | None) -> Path:
    """Where the run goes; never a folder that exists."""
    if out is not None:
        target = Path(out)
        if target.exists():
            raise UsageError(f"--out {target}: exists already and is not overwritten; name another folder")
        return target
    name = source.resolve().name or "run"
    target, count = Path("runs") / name, 1
    while target.exists():
        count += 1
        target = Path("runs") / f"{name}-{count}"
    return target


def _rename(aside: Path, target: Path) -> None:
    if target.exists():  # made by someone else meanwhile
        raise UsageError(f"--out {target}: exists by now and is not overwritten; name another folder")
    aside.rename(target)
