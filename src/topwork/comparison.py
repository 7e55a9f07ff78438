"""Which of these runs is better, and do their images tell?

Runs side by side, from what they left on disk. Where two are judged on the same images, the difference between them is
measured image by image. The first run is the reference.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from topwork.card import escaped
from topwork.errors import DataError, UsageError
from topwork.files import write as write_whole
from topwork.groups import Union
from topwork.ranking import rightness
from topwork.records import (
    ClassContrast,
    Compared,
    Comparison,
    Contrast,
    Disagreement,
    Estimate,
    Pair,
    RunRecord,
    decode,
)
from topwork.statistics import Z95, independent, paired_errors

if TYPE_CHECKING:
    from topwork.runs import Run

Floats = NDArray[np.float64]

Verdict = Literal["better", "worse", "cannot tell"]

MISS = 0.05
"""Chance that any of the intervals of all pairs misses: each pair takes its share of it (Bonferroni), since whoever
looks at four differences is fooled by one of them more easily than by one alone."""

MOST_MORE = 100
"""More than this many times the images at hand is no advice (as in plan.py)."""

GIVEN = 0.5  # probability from which on a label counts as given where an image has none, as in evaluate.py

OPTIONS = {
    "backbones": "--backbone", "weights": "--weights", "sizes": "--size", "strategy": "--strategy", "cut": "--cut",
    "unfreeze": "--unfreeze", "lr": "--lr", "epochs": "--epochs", "flip": "--flip", "balance": "--balance",
    "several_depths": "--several-depths", "budget": "--budget", "delta": "--delta", "seed": "--seed",
    "bursts": "--bursts", "split_of": "--split-of",
}  # fmt: skip
"""Fields of Options that can change a result, by what they are called at the command line."""


@dataclass(frozen=True)
class _Judged:
    """The images that a run's result rests on, one by one, and those that it learnt from."""

    several: bool
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    digests: tuple[str, ...]  # of the contents; empty where the run has no split.parquet
    labels: tuple[tuple[str, ...], ...]
    answers: tuple[tuple[str, ...], ...]
    sure: tuple[float | None, ...]  # probability of the answer; None where there may be several
    right: Floats  # (n,) 0 or 1; where there may be several labels, how right their ranking is
    groups: tuple[int, ...]
    learnt: frozenset[str]  # digests of images that were learnt from and are not judged


def compare(runs: Sequence[str | Path | Run], *, disagreements: int = 0) -> Comparison:
    """Two or more runs side by side; each of the others is measured against the first.

    `disagreements`: how many images each pair lists that are answered differently. Raises UsageError where there are
    fewer than two runs, DataError where one is none or cannot be read.
    """
    if isinstance(runs, str | Path) or len(runs) < 2:
        raise UsageError("two or more runs are compared; name their folders, the one to compare with first")
    if disagreements < 0:
        raise UsageError(f"--disagreements {disagreements}: expected 0 or more")
    homes = [Path(run) if isinstance(run, str | Path) else run.path for run in runs]
    records = [_record(home) for home in homes]
    names = _names(homes)
    judged = [_judged(home, record) for home, record in zip(homes, records, strict=True)]
    z = NormalDist().inv_cdf(1 - MISS / (2 * (len(runs) - 1)))
    same, differences = _contrasts(records)
    return Comparison(
        tuple(_compared(n, h, r) for n, h, r in zip(names, homes, records, strict=True)),
        same,
        differences,
        tuple(
            _pair((names[0], names[i]), (records[0], records[i]), (judged[0], judged[i]), z, disagreements)
            for i in range(1, len(runs))
        ),
    )


def write(path: Path, found: Comparison) -> None:
    """Into a new file: a table and sentences as Markdown (.md), or a row for each run (.csv)."""
    check(path)
    text = markdown(found) if path.suffix.lower() == ".md" else _csv(found)
    try:
        write_whole(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UsageError(f"--out {path}: cannot be written there ({error.strerror}); name another place") from error


def check(path: Path) -> None:
    """Raise UsageError unless a comparison can be written into this file."""
    if path.suffix.lower() not in {".md", ".csv"}:
        raise UsageError(f"--out {path}: expected a name that ends in .md or .csv")
    if path.exists():
        raise UsageError(f"--out {path}: exists already and is not overwritten; name another file")


def rows(found: Comparison) -> list[tuple[str, tuple[str, ...]]]:
    """What is shown side by side: what differs, then every measure; a text for each run."""

    def each(what: str, values: Iterable[str]) -> tuple[str, tuple[str, ...]]:
        return what, tuple(values)

    runs = found.runs
    measure = "ranking" if all(r.multi_label for r in runs) else "accuracy"
    balanced = "mean precision" if all(r.multi_label for r in runs) else "balanced"
    return [
        *((c.what, c.values) for c in found.differences),
        each(measure, (f"{r.accuracy.value:.1%}" for r in runs)),
        each("  95%", (_between(r.accuracy) for r in runs)),
        each(balanced, (f"{r.balanced_accuracy.value:.1%}" for r in runs)),
        each("  95%", (_between(r.balanced_accuracy) for r in runs)),
        each("judged on", (f"{r.accuracy.n:,} images" for r in runs)),
        each("calibration", (f"{100 * r.calibration_error:.1f} points" for r in runs)),
        each("log-loss", (f"{r.log_loss:.3f}" for r in runs)),
        each("one image", (f"{r.latency_ms:.3g} ms" for r in runs)),
        each("parameters", (f"{r.params / 1e6:.2f} M" for r in runs)),
        each("file", (f"{r.file_bytes / 1e6:.1f} MB" for r in runs)),
        each("it took", (f"{r.seconds:.0f} s" for r in runs)),
        each("  in FE", (f"{r.cost_fe:.2f}" for r in runs)),
    ]


def common(found: Comparison) -> str:
    """What all runs have in common, in a sentence; empty where that is nothing."""
    return ", ".join(f"{c.what} {c.values[0]}" for c in found.same)


def together(found: Comparison) -> str:
    """How the intervals of several pairs are to be read; empty where there is one."""
    k = len(found.pairs)
    if k < 2:
        return ""
    return f"Each is compared with {found.runs[0].name} alone. The intervals of these {k} comparisons hold together."


def markdown(found: Comparison) -> str:
    """The comparison as Markdown."""
    lines = [f"# Compared with {escaped(found.runs[0].name)}", ""]
    if found.same:
        lines += [f"The same in all: {escaped(common(found))}.", ""]
    lines += [f"| | {' | '.join(escaped(r.name) for r in found.runs)} |", "| --- " * (len(found.runs) + 1) + "|"]
    lines += [f"| {escaped(what.strip())} | {' | '.join(map(escaped, values))} |" for what, values in rows(found)]
    for pair in found.pairs:
        lines += ["", f"## {escaped(pair.name)}", "", escaped(pair.reason)]
        lines += [*([""] if pair.notes else []), *(f"- {escaped(note)}" for note in pair.notes)]
        differing = [c for c in pair.classes if c.difference]
        if differing:
            lines += ["", "| class | images | difference | 95% |", "| --- | --- | --- | --- |"]
            lines += [
                f"| {escaped(c.name)} | {c.n:,} | {points(c.difference)} | {points(c.low)} to {points(c.high)} |"
                for c in differing
            ]
        if pair.disagreements:
            lines += ["", f"| image | label | {escaped(found.runs[0].name)} | {escaped(pair.name)} |"]
            lines += ["| --- | --- | --- | --- |"]
            lines += [
                f"| {escaped(d.path)} | {escaped(d.label)} | {escaped(d.reference)} | {escaped(d.other)} |"
                for d in pair.disagreements
            ]
    return "\n".join([*lines, *(["", escaped(together(found))] if len(found.pairs) > 1 else [])]) + "\n"


def points(share: float) -> str:
    """A difference in points, with its sign."""
    return f"{100 * share + 0.0:+.1f}"


def _csv(found: Comparison) -> str:
    plain = [f.name for f in fields(Compared) if not f.name.endswith("accuracy")]
    paired = ("shared", "difference", "low", "high", "verdict", "more_images")
    shares = ("accuracy", "balanced_accuracy")
    out = io.StringIO()
    sheet = csv.writer(out)
    sheet.writerow(
        [*plain, "measured_on", "judged", *(f"{s}{end}" for s in shares for end in ("", "_low", "_high")), *paired]
    )
    for run, pair in zip(found.runs, (None, *found.pairs), strict=True):
        estimates = [getattr(run, s) for s in shares]
        sheet.writerow(
            [
                *(getattr(run, name) for name in plain), run.accuracy.on, run.accuracy.n,
                *(v for e in estimates for v in (e.value, e.low, e.high)),
                *("" if pair is None else getattr(pair, name) for name in paired),
            ]
        )  # fmt: skip
    return out.getvalue()


def _record(home: Path) -> RunRecord:
    """Read without the rest of runs.py, which needs torch."""
    file = home / "run.json"
    if not file.is_file():
        raise DataError(f"{home}: no run in it (no run.json); `topwork fit FOLDER --out {home}` makes one")
    return decode(file.read_bytes(), RunRecord, where=str(file))


def _names(homes: Sequence[Path]) -> list[str]:
    """The last part of each path, where that tells them apart; one that is given twice has its place behind it."""
    last = [home.absolute().name or str(home) for home in homes]
    count = Counter(last)
    names = [name if count[name] == 1 else str(home) for name, home in zip(last, homes, strict=True)]
    return [name if names.index(name) == i else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _compared(name: str, home: Path, r: RunRecord) -> Compared:
    m = r.metrics
    return Compared(
        name, str(home), r.backbone.name, r.plan.size_px, r.plan.cut, r.plan.strategy, _head(r), r.data.root,
        r.data.fingerprint, _images(r), len(r.data.classes), m.multi_label is not None, m.accuracy,
        m.balanced_accuracy, m.log_loss, m.calibration_error, r.model.latency_ms, r.model.params, r.model.file_bytes,
        r.spending.total_seconds, r.spending.cost_fe,
    )  # fmt: skip


def _contrasts(records: Sequence[RunRecord]) -> tuple[tuple[Contrast, ...], tuple[Contrast, ...]]:
    """What all runs have in common, and what they have not. Options and versions are told only where they differ."""
    facts: dict[str, list[str]] = {
        "backbone": [r.backbone.name for r in records],
        "weights": [r.backbone.weights for r in records],
        "size": [f"{r.plan.size_px} px" for r in records],
        "cut": [r.plan.cut for r in records],
        "strategy": [r.plan.strategy for r in records],
        "head": [_head(r) for r in records],
        "data": _places([r.data.root for r in records]),
        "images": [f"{_images(r):,}" for r in records],
        "classes": [str(len(r.data.classes)) for r in records],
        "result on": [r.data.locked for r in records],
        "fingerprint": [r.data.fingerprint[:12] for r in records],
    }
    options = {flag: [_said(getattr(r.options, field)) for r in records] for field, flag in OPTIONS.items()}
    recipes = {
        f"recipe: {name}": [_said(r.plan.recipe and getattr(r.plan.recipe, name)) for r in records]
        for name in ("unfreeze", "lr", "epochs", "views")
    }
    libraries = [{"topwork": r.topwork, **r.versions} for r in records]
    versions = {
        name: [version.get(name, "-") for version in libraries]
        for name in dict.fromkeys(k for v in libraries for k in v)
    }
    if len(set(facts["fingerprint"])) > 1 and len(set(facts["images"])) > 1:
        del facts["fingerprint"]  # of other images it is another, whatever else
    if _alike(facts["weights"], facts["backbone"]):
        del facts["weights"]
    same = [Contrast(what, (values[0],)) for what, values in facts.items() if len(set(values)) == 1]
    differ = [
        Contrast(what, tuple(values))
        for what, values in {**facts, **options, **recipes, **versions}.items()
        if len(set(values)) > 1 and (what in facts or values != facts.get(what.removeprefix("--")))
    ]
    return tuple(same), tuple(differ)


def _alike(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether one tells no more than the other: a name each for every name."""
    return len(set(zip(a, b, strict=True))) == len(set(b)) == len(set(a))


def _places(roots: list[str]) -> list[str]:
    """Where images lay: by the last part of the path, where that tells the places apart."""
    last = [root.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or root for root in roots]
    return last if _alike(last, roots) else roots


def _pair(
    names: tuple[str, str], records: tuple[RunRecord, RunRecord], sides: tuple[_Judged | None, _Judged | None],
    z: float, listed: int,
) -> Pair:  # fmt: skip
    a, b = sides
    missing = [name for name, side in zip(names, sides, strict=True) if side is None]
    if a is None or b is None:
        return _none(names, f"{' and '.join(missing)} kept no predictions.parquet: nothing is paired.")
    if a.several != b.several:
        return _none(names, "one gives an image one label, the other several: their numbers mean different things.")
    if a.several and set(a.classes) != set(b.classes):
        return _none(
            names, "their lists of labels differ; how right a ranking of labels is depends on what is ranked.",
        )  # fmt: skip
    i, j, notes = _matched(a, b, names)
    notes += _crossed(a, b, names)
    if not i:
        return _none(
            names,
            "they are judged on no image in common, so the difference of their accuracies may be that of the images."
            f" A run on the same ones comes from `topwork fit ... --split-of {names[0]}`.",
            notes,
        )
    notes += _unequal(a, b, names, records)
    right, other = a.right[i], b.right[j]
    d = other - right
    groups = _joined([a.groups[k] for k in i], [b.groups[k] for k in j])
    error = _error(d, groups)
    value = float(d.mean())
    low, high = max(-1.0, value - z * error), min(1.0, value + z * error)
    verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else "cannot tell"
    more = _more(value, d, groups, z) if verdict == "cannot tell" else None
    only = int((d < 0).sum()), int((d > 0).sum())
    differ = [k for k in range(len(i)) if set(a.answers[i[k]]) != set(b.answers[j[k]])]
    surest = sorted(differ, key=lambda k: -((a.sure[i[k]] or 0.0) + (b.sure[j[k]] or 0.0)))
    return Pair(
        names[1], verdict,
        _sentence(names, verdict, value, (low, high), len(i), only, more, several=a.several),
        tuple(notes), len(i), float(right.mean()), float(other.mean()), value, low, high, *only, more, len(differ),
        _by_class(a, b, i, j, groups),
        tuple(
            Disagreement(
                a.paths[i[k]], "|".join(a.labels[i[k]]), "|".join(a.answers[i[k]]), a.sure[i[k]],
                "|".join(b.answers[j[k]]), b.sure[j[k]],
            )
            for k in surest[:listed]
        ),
    )  # fmt: skip


def _none(names: tuple[str, str], reason: str, notes: Sequence[str] = ()) -> Pair:
    reason = f"{names[1]} is not compared with {names[0]}: {reason}"
    return Pair(names[1], "not compared", reason, tuple(notes), 0, *(None,) * 5, 0, 0, None, 0, (), ())


def _sentence(
    names: tuple[str, str], verdict: str, value: float, between: tuple[float, float], n: int, only: tuple[int, int],
    more: int | None, *, several: bool,
) -> str:  # fmt: skip
    a, b = names
    what = "more right" if several else "right"
    counts = (
        f"On the {n:,} images that both are judged on, {b} alone is {what} on {only[1]:,}, {a} alone on {only[0]:,}"
    )
    interval = f"{points(value)} points (95%: {points(between[0])} to {points(between[1])})"
    if verdict != "cannot tell":
        return f"{b} is {verdict} than {a}: {interval}. {counts}."
    if more is not None:
        would = f" About {_round(more):,} more images would tell, if the difference stayed as it is."
    elif value:
        would = " No realistic number of images would tell so small a difference."
    else:
        would = ""
    return f"Cannot tell whether {b} or {a} is better: {interval}. {counts}.{would}"


def _round(count: int) -> int:
    """To two digits: no more of them mean anything."""
    return round(count, min(0, 2 - len(str(count))))


def _matched(a: _Judged, b: _Judged, names: tuple[str, str]) -> tuple[list[int], list[int], list[str]]:
    """Rows of the same image in both, in the order of the reference, and what is to be said of them."""
    notes = []
    pairs = _meet(_by_content(a), _by_content(b)) if a.digests and b.digests else []
    if not pairs:
        pairs = _meet({p: k for k, p in enumerate(a.paths)}, {p: k for k, p in enumerate(b.paths)})
        if pairs:
            why = "no content is the same" if a.digests and b.digests else "one of them kept no digests"
            notes.append(f"Images are taken for the same by their paths: {why}.")
    kept = [(i, j) for i, j in pairs if set(a.labels[i]) == set(b.labels[j])]
    if len(kept) < len(pairs):
        notes.append(f"{len(pairs) - len(kept):,} images have another label in {names[1]}, and are left out.")
    return [i for i, _ in kept], [j for _, j in kept], notes


def _by_content(side: _Judged) -> dict[Hashable, int]:
    """Row by content; of copies the first by label and path, the second, and so on."""
    order = sorted(range(len(side.paths)), key=lambda k: (side.labels[k], side.paths[k]))
    seen: Counter[str] = Counter()
    found: dict[Hashable, int] = {}
    for k in order:
        digest = side.digests[k]
        found[digest, seen[digest]] = k
        seen[digest] += 1
    return found


def _meet(a: dict[Any, int], b: dict[Any, int]) -> list[tuple[int, int]]:
    return sorted((row, b[key]) for key, row in a.items() if key in b)


def _crossed(a: _Judged, b: _Judged, names: tuple[str, str]) -> list[str]:
    """What one is judged on and the other has learnt from."""
    notes = []
    for mine, others, judged, learnt in ((a, b, *names), (b, a, *names[::-1])):
        crossed = len(set(mine.digests) & others.learnt)
        if crossed:
            notes.append(
                f"Not fair: {learnt} has learnt from {crossed:,} of the images that {judged} is judged on. They are not"
                f" compared here; do not judge {learnt} on them. `--split-of` keeps the sides as they are."
            )
    return notes


def _unequal(a: _Judged, b: _Judged, names: tuple[str, str], records: tuple[RunRecord, RunRecord]) -> list[str]:
    """Whatever makes the two less than comparable, in sentences."""
    notes = []
    for i, j in ((0, 1), (1, 0)):
        mine, others = (a, b)[i], (a, b)[j]
        lacking = sorted(set(mine.classes) - set(others.classes))
        if lacking:
            more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
            notes.append(
                f"{names[j]} does not know {', '.join(lacking[:5])}{more}, so it has fewer classes to choose from;"
                " images of these are not compared."
            )
    locked = [r.data.locked for r in records]
    if (locked[0] == "out-of-sample") != (locked[1] == "out-of-sample"):
        chose, kept = names if locked[0] == "out-of-sample" else names[::-1]
        notes.append(
            f"{chose} chose with these images, out of sample, and {kept} had them locked away: a small advantage for"
            f" {chose}."
        )
    off = [r.metrics.naive_accuracy - r.metrics.accuracy.value for r in records]
    if abs(off[0] - off[1]) >= 0.0005:  # half of what is printed
        notes.append(
            f"For having chosen by the same images, {100 * off[0]:.1f} points are taken off the accuracy of {names[0]},"
            f" {100 * off[1]:.1f} off that of {names[1]}; none off the difference."
        )
    return notes


def _joined(a: Sequence[int], b: Sequence[int]) -> NDArray[np.int64]:
    """Images that belong together in either run are one draw: (n,)."""
    union = Union(len(a))
    for side in (a, b):
        first: dict[int, int] = {}
        for row, group in enumerate(side):
            union.join(first.setdefault(group, row), row)
    return union.index()


def _error(d: Floats, groups: NDArray[np.int64]) -> float:
    """Standard error of the mean difference as for cuts: with one image of difference added to it."""
    return float(np.hypot(paired_errors(d[:, None], groups)[0], 1 / independent(groups, len(d))))


def _more(value: float, d: Floats, groups: NDArray[np.int64], z: float) -> int | None:
    """About how many more images would show this difference, were it to stay: z error(f n) = |value|."""
    spread, one = float(paired_errors(d[:, None], groups)[0]) ** 2, 1 / independent(groups, len(d))
    wanted = (value / z) ** 2
    if not wanted or not math.isfinite(spread):
        return None
    times = (spread + math.sqrt(spread**2 + 4 * wanted * one**2)) / (2 * wanted)
    return math.ceil((times - 1) * len(d)) if 1 < times <= MOST_MORE else None


def _by_class(
    a: _Judged, b: _Judged, i: Sequence[int], j: Sequence[int], groups: NDArray[np.int64]
) -> tuple[ClassContrast, ...]:
    """How often each class is found, those first of which most images are found by one run alone."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for k, row in enumerate(i):
        for name in a.labels[row]:
            rows[name].append(k)
    found = []
    for name, mine in rows.items():
        one = np.array([name in a.answers[i[k]] for k in mine], dtype=np.float64)
        two = np.array([name in b.answers[j[k]] for k in mine], dtype=np.float64)
        value, error = float((two - one).mean()), _error(two - one, groups[mine])
        low, high = max(-1.0, value - Z95 * error), min(1.0, value + Z95 * error)
        found.append(ClassContrast(name, len(mine), float(one.mean()), float(two.mean()), value, low, high))
    return tuple(sorted(found, key=lambda c: (-abs(c.difference * c.n), c.name)))


def _judged(home: Path, record: RunRecord) -> _Judged | None:
    """Read predictions.parquet and split.parquet; None where there are no predictions."""
    import pyarrow as pa  # noqa: PLC0415 (0.3 s to import)
    from pyarrow import parquet  # noqa: PLC0415

    file, split = home / "predictions.parquet", home / "split.parquet"
    if not file.is_file():
        return None
    try:
        table = parquet.read_table(file)
        columns = table.to_pydict()
        classes = tuple(json.loads(table.schema.metadata[b"classes"]))
        sides = parquet.read_table(split).to_pylist() if split.is_file() else []
        by_path = {row["path"]: row for row in sides}
        paths = tuple(columns["path"])
        known = all(path in by_path for path in paths)
        several = "labels" in columns
        if several:
            labels, answers = (tuple(map(tuple, columns[c])) for c in ("labels", "predicted"))
            index = {name: k for k, name in enumerate(classes)}
            truth = np.zeros((len(paths), len(classes)), dtype=bool)
            for row, names in zip(truth, labels, strict=True):
                row[[index[name] for name in names]] = True
            right = rightness(np.array(columns["probabilities"]).reshape(truth.shape), truth, GIVEN)
            sure: tuple[float | None, ...] = (None,) * len(paths)
        else:
            labels, answers = (tuple((name,) for name in columns[c]) for c in ("label", "predicted"))
            right = np.array([x == y for x, y in zip(labels, answers, strict=True)], dtype=np.float64)
            sure = tuple(columns["probability"])
        digests = tuple(by_path[p]["digest"] for p in paths) if known else ()
        learnt = {row["digest"] for row in sides if row["part"] != "test"}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{home}: its predictions or split cannot be read ({error}); was it copied whole?") from error
    groups = tuple(by_path[p]["group"] for p in paths) if known else tuple(range(len(paths)))
    return _Judged(
        several, classes, paths, digests, labels, answers, sure, right, groups, frozenset(learnt - set(digests))
    )


def _head(r: RunRecord) -> str:
    return "trained" if r.plan.recipe is not None else r.head.kind


def _images(r: RunRecord) -> int:
    return sum(c.train + c.val + c.test for c in r.data.classes)


def _between(e: Estimate) -> str:
    return f"{100 * e.low:.1f}-{100 * e.high:.1f}"


def _said(value: Any) -> str:
    """An option's value as it would be typed."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
