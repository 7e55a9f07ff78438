"""A run's folder as large as is wanted, made from a small run's record: nothing is looked at, nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from topwork import records
from topwork.records import ClassCount, ClassMetrics, Estimate, RunRecord

GRID = 7
EXPLAINED = 30
DRAWN = 4


def names(n: int, letters: int) -> list[str]:
    """So many class names of so many letters."""
    return [f"{i} {'a name that goes on and on and on and on'}"[:letters].ljust(letters, "x") for i in range(n)]


def make(
    record: RunRecord,
    home: Path,
    *,
    classes: Sequence[str],
    images: int,
    several: bool = False,
    size_px: int = 48,
    seed: int = 0,
    files: bool = True,
) -> Path:
    """HOME/run with everything that a page can show, of pictures in HOME/images; gives the run's folder."""
    rng = np.random.default_rng(seed)
    run, root = home / "run", home / "images"
    run.mkdir(parents=True)
    c = len(classes)
    label = np.arange(images) % c
    given = np.where(rng.random(images) < 0.8, label, rng.integers(0, c, images))
    paths = [f"{classes[k]}/photo-{i:05d}.jpg" for i, k in enumerate(label)]
    if files:
        drawn: dict[tuple[int, int], Path] = {}  # a few of each class; the others are copies
        for i, (path, k) in enumerate(zip(paths, label, strict=True)):
            first = drawn.setdefault((int(k), i // c % DRAWN), root / path)
            if first == root / path:
                photo(first, int(k), rng, size_px)
            else:
                (root / path).write_bytes(first.read_bytes())
    share = rng.random((images, c)).astype(np.float32)
    share[np.arange(images), given] += 3.0
    share /= share.sum(axis=1, keepdims=True)
    whole = _several(record, classes, rng) if several else _single(record, classes, label, given, paths)
    whole = replace(whole, name="made", data=replace(whole.data, root=str(root), classes=_counts(classes, label)))
    (run / "run.json").write_bytes(records.encode(whole))
    said: dict[str, Any] = {"path": paths, "probabilities": pa.array(list(share))}
    if several:
        own = [
            [classes[k] for k in sorted({int(k), int(j)})]
            for k, j in zip(label, rng.integers(0, c, images), strict=True)
        ]
        said |= {"labels": own, "predicted": [[classes[k]] for k in given]}
    else:
        said |= {"label": [classes[k] for k in label], "predicted": [classes[k] for k in given]}
        said |= {"probability": share.max(axis=1)}
    metadata = {b"classes": records.encode(list(classes)), b"on": b"out-of-sample"}
    parquet.write_table(pa.table(said).replace_schema_metadata(metadata), run / "predictions.parquet")
    _beside(run, paths, [classes[k] for k in label], [classes[k] for k in given], share.max(axis=1), rng)
    return run


def photo(path: Path, k: int, rng: np.random.Generator, size_px: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:size_px, :size_px] / size_px
    tint = np.random.default_rng(k).uniform(60, 190, 3)
    waves = np.sin(2 * np.pi * (x * (k % 5 + 1) + y * (k % 3) + rng.random()))
    noisy = tint + 40 * waves[..., None] + rng.normal(0, 20, (size_px, size_px, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def _beside(
    run: Path, paths: list[str], labels: list[str], given: list[str], sure: np.ndarray, rng: np.random.Generator
) -> None:
    wrong = [i for i in np.argsort(-sure) if labels[i] != given[i]][:EXPLAINED]
    maps = rng.normal(size=(len(wrong), GRID * GRID)).astype(np.float32)
    near = [[paths[j] for j in rng.integers(0, len(paths), 5)] for _ in wrong]
    told = {
        "path": [paths[i] for i in wrong], "class": [given[i] for i in wrong], "rows": [GRID] * len(wrong),
        "columns": [GRID] * len(wrong), "map": pa.array(list(maps), pa.list_(pa.float32())),
        "nearest": pa.array(near, pa.list_(pa.string())), "similarity": [[0.9, 0.8, 0.7, 0.6, 0.5]] * len(wrong),
    }  # fmt: skip
    parquet.write_table(pa.table(told), run / "explained.parquet")
    parquet.write_table(pa.table({"path": paths, "label": labels}), run / "known.parquet")
    some = np.sort(rng.choice(len(paths), min(1000, len(paths)), replace=False))
    order = sorted(set(labels))
    centre = {name: rng.normal(0, 1, 2) for name in order}
    at = np.array([centre[labels[i]] for i in some]) + rng.normal(0, 0.15, (len(some), 2))
    points = {"path": [paths[i] for i in some], "label": [labels[i] for i in some]}
    points |= {"x": at[:, 0].astype(np.float32), "y": at[:, 1].astype(np.float32)}
    parquet.write_table(pa.table(points), run / "embedding.parquet")


def _counts(classes: Sequence[str], label: np.ndarray) -> tuple[ClassCount, ...]:
    return tuple(ClassCount(name, int((label == k).sum()), 0, 0) for k, name in enumerate(classes))


def _single(
    record: RunRecord, classes: Sequence[str], label: np.ndarray, given: np.ndarray, paths: list[str]
) -> RunRecord:
    c, n = len(classes), len(label)
    confusion = np.zeros((c, c), dtype=int)
    np.add.at(confusion, (label, given), 1)
    hit, size, taken = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    per_class = tuple(
        ClassMetrics(
            name, int(size[k]), int(taken[k]), float(hit[k] / max(size[k], 1)), 0.6, 1.0,
            float(hit[k] / taken[k]) if taken[k] else None, 0.8,
            0.5 if taken[k] else None, 1.0 if taken[k] else None,
        )
        for k, name in enumerate(classes)
    )  # fmt: skip
    share = Estimate(float((label == given).mean()), 0.75, 0.85, n, "out-of-sample")
    bins = tuple(records.ReliabilityBin(p, min(1.0, p + 0.03), p - 0.05, min(1.0, p + 0.1), n // 5)
                 for p in (0.35, 0.55, 0.75, 0.9, 0.98))  # fmt: skip
    metrics = replace(
        record.metrics, accuracy=share, balanced_accuracy=share, naive_accuracy=share.value + 0.01,
        per_class=per_class, confusion=tuple(map(tuple, confusion.tolist())), calibration_error=0.03,
        calibration_low=0.02, calibration_high=0.05, reliability=bins,
    )  # fmt: skip
    doubtful = [i for i in range(n) if label[i] != given[i]][:14]
    suspects = records.Suspects(
        n, 5, 20, 6,
        tuple(records.Suspect(paths[i], classes[label[i]], classes[given[i]], 0.9, 0.02) for i in doubtful),
    )  # fmt: skip
    return _common(replace(record, metrics=metrics, suspects=suspects), paths, n)


def _several(record: RunRecord, classes: Sequence[str], rng: np.random.Generator) -> RunRecord:
    e = Estimate(0.8, 0.75, 0.85, 100, "out-of-sample")
    label = tuple(records.LabelMetrics(name, 0.7, 0.6, 0.8, 0.5, 0.02) for name in classes)
    per_class = tuple(ClassMetrics(name, 20, 21, 0.8, 0.7, 0.9, 0.75, 0.77, 0.6, 0.85) for name in classes)
    metrics = replace(
        record.metrics, accuracy=e, balanced_accuracy=e, per_class=per_class, confusion=(),
        multi_label=records.MultiLabelMetrics(e, e, e, e, 1.7, 0, label), reliability=(),
        calibration_low=0.02, calibration_high=0.05,
    )  # fmt: skip
    return replace(record, metrics=metrics, suspects=None, shortcuts=(), growth=None, sets=None)


def _common(record: RunRecord, paths: list[str], n: int) -> RunRecord:
    """What a small run is too small for."""
    e = Estimate(0.9, 0.87, 0.93, n, "out-of-sample")
    recipe = records.Recipe("suffix", record.plan.cut, record.scores[0].cut)
    trials = tuple(
        records.Trial(
            record.plan.backbone, record.plan.size_px, replace(recipe, lr=lr, strategy=how), rung, 0, 50,
            0.8 + 0.02 * i, 0.5, 0.8, 12.0, tuple(2.0 / (e + 1) + 0.1 * i for e in range(epochs)),
        )
        for i, (lr, how) in enumerate(((1e-3, "suffix"), (3e-3, "suffix"), (1e-3, "full"), (1e-2, "surgical")))
        for rung, epochs in (("short", 3), ("long", 8), ("test", 15))[: 3 - i % 3]
    )  # fmt: skip
    tuning = records.Tuning(
        600.0, 421.0, trials, record.plan.backbone, record.plan.size_px, recipe, 0.012, -0.004, 50, False,
        "The head alone is kept: training from the second block on gained 1.2 points, which chance may be.",
    )  # fmt: skip
    growth = records.Growth(
        n, tuple(records.GrowthPoint(n / k, 0.9 - 0.02 * k) for k in (8, 4, 2, 1)), 0.92, 0.5, 0.6, 0.01, 0.002, 0.02,
        0.02, 0.004, 0.035, True, "Twice the images would bring about +1.0 points (95%: +0.2 to +2.0).",
    )  # fmt: skip
    shortcut = records.Shortcut("colour", 0.5, 0.45, 0.55, 0.1, 0.9, 0.6, 0.5, True, "colour alone tells half of it.")
    grouped = records.Grouped(
        n, n - 4, 6, (records.GroupCount("near-duplicate", 4, 6, ((paths[0], paths[1]),)),), ((paths[0], paths[1]),),
        (2,), 0.5, 0.0, 1, 0, 2, record.plan.cut, 0.85, 0.9, 0.05, 0.02, 0.08,
    )  # fmt: skip
    finding = records.Finding("dark", "warning", "some are nearly black", tuple(paths[:5]))
    data = replace(record.data, faults=(records.Fault("a/b.jpg", "truncated", "ends early"),), findings=(finding,))
    quantiles = tuple(float(v) for v in np.linspace(0.1, 1.0, 101) ** 2)
    coverage = tuple(records.Coverage(level, replace(e, value=level), 1 + 2 * level) for level in (0.8, 0.9, 0.95))
    return replace(
        record, data=data, tuning=tuning, growth=growth, shortcuts=(shortcut,), groups=grouped,
        warnings=("9 images of one class look alike.",),
        unknown=_unknown(quantiles, e), sets=records.Sets(quantiles, n, coverage),
    )  # fmt: skip


def _unknown(quantiles: tuple[float, ...], e: Estimate) -> records.Unknown:
    """A score whose threshold lets 5% of the known images go."""
    return records.Unknown("distance", 0.05, quantiles[95], quantiles, 500, replace(e, value=0.06, low=0.04, high=0.08))
