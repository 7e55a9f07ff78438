"""What stands on the page, and in which order?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from topwork.errors import DataError
from topwork.files import write as write_whole
from topwork.records import Estimate, RunRecord, decode
from topwork.report import charts, judged, looks
from topwork.report.changes import changes

NAME = "report.html"
MATRIX = 40
"""Classes up to which the confusion matrix is a table to be clicked; more are told by their commonest mistakes."""

ROW_BYTES = 1_200_000
"""What the list of judged images may take in a page, which should stay below 5 MB: ten thousand images. Mistakes come
first; beyond it, a number of the matrix still counts all of its images, and shows those that are there."""

SHOWN_FAULTS, SHOWN_PAIRS, SHOWN_CANDIDATES, SHOWN_MISTAKES, SHOWN_SUSPECTS = 200, 60, 8, 24, 12
LONG = 30  # rows from which a table has a window of its own to be scrolled in


@dataclass(frozen=True)
class Beside:
    """What stands beside the record and the predictions; in older runs nothing does."""

    explained: tuple[looks.Explained, ...] = ()
    points: tuple[looks.Point, ...] = ()

    @property
    def near(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """Training images that are most like an explained one, with their labels, by its path."""
        return {e.path: e.nearest for e in self.explained if e.nearest}


def write(run: Path, out: Path | None = None) -> Path:
    """Draw the page of a finished run; default: report.html in its folder, made anew. Gives its place.

    Raises DataError where there is no run.
    """
    file = run / "run.json"
    if not file.is_file():
        raise DataError(f"{run}: no run in it (no run.json); `topwork fit FOLDER --out {run}` makes one")
    record = decode(file.read_bytes(), RunRecord, where=str(file))
    beside = Beside(looks.explained(run), looks.embedding(run))
    target = out or run / NAME
    write_whole(target, html(record, judged.read(run / "predictions.parquet"), beside).encode())
    return target


def html(record: RunRecord, found: judged.Judged | judged.JudgedLabels, beside: Beside | None = None) -> str:
    """The page as text."""
    beside = beside or Beside()
    order, wrong, one = judged.worth_seeing(found), found.wrong, isinstance(found, judged.Judged)
    suspects = (
        [] if record.suspects is None else [*record.suspects.listed[: max(SHOWN_SUSPECTS, record.suspects.wrong)]]
    )
    mistakes = [i for i in order[:SHOWN_MISTAKES] if wrong[i]]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("topwork.report", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(percent=_percent, estimate=_estimate, seconds=_seconds, count=_count)
    closely = list(dict.fromkeys([*(s.path for s in suspects), *(found.paths[i] for i in mistakes)]))
    return environment.get_template("page.html").render(
        r=record, plan=record.plan, similarity=record.plan.similarity, metrics=record.metrics,
        style=Markup(_text("page.css")), script=Markup(_text("page.js")),  # noqa: S704 (our own files)
        suspects=suspects, one=one, mistakes=mistakes, judged=found, images=len(found.paths),
        wrong=int(wrong.sum()), pairs=_pairs(record), matrix=one and len(found.classes) <= MATRIX,
        has_val=any(c.val for c in record.data.classes), has_test=any(c.test for c in record.data.classes),
        shown_faults=SHOWN_FAULTS, curves=charts.CURVES, shapes=charts.SHAPES, long=LONG, beside=beside,
        changes=changes(record), data=_data(record, found, beside, order, closely), **_figures(record, found, beside),
    )  # fmt: skip


def _figures(record: RunRecord, found: judged.Judged | judged.JudgedLabels, beside: Beside) -> dict[str, Any]:
    """Every figure by name; None where there is nothing to draw."""
    several = isinstance(found, judged.JudgedLabels)
    every = [] if record.tuning is None else record.tuning.trials
    number = charts.candidates(every)
    shown = {c: i for c, i in number.items() if i < SHOWN_CANDIDATES}
    trials = [t for t in every if charts.candidate(t) in shown]
    learnt = [t for t in trials if t.losses]
    metrics, growth, unknown = record.metrics, record.growth, record.unknown
    said = {path: (found.given_to(i), bool(found.wrong[i])) for i, path in enumerate(found.paths)}
    return {
        "depth": charts.both(partial(charts.depth, record.backbones, record.plan, several=several)),
        "reliability": charts.both(partial(charts.reliability, metrics.reliability)) if metrics.reliability else None,
        "growth_curve": None if growth is None else charts.both(partial(charts.growth, growth)),
        "training": charts.both(partial(charts.training, learnt, shown)) if learnt else None,
        "rungs": charts.both(partial(charts.rungs, trials, shown)) if trials else None,
        "candidates": list(shown),
        "more_candidates": len(number) - len(shown),
        "unknown_curve": charts.both(partial(charts.unknown, unknown)) if unknown and unknown.quantiles else None,
        "embedding": charts.embedding(beside.points, found.classes, said) if beside.points else None,
    }


def _data(
    record: RunRecord, found: judged.Judged | judged.JudgedLabels, beside: Beside, order: list[int], closely: list[str]
) -> Markup:
    """What the page's script needs, as JSON that may stand inside HTML. `closely`: paths whose pictures are large."""
    near = beside.near
    examples = [[found.paths[i] for i in rows] for rows in judged.examples(found)]
    paths = dict.fromkeys(closely)
    paths |= dict.fromkeys(p for path in closely for p, _ in near.get(path, ()))
    paths |= dict.fromkeys(p for own in zip(*_filled(examples), strict=True) for p in own if p)
    paths |= dict.fromkeys(found.paths[i] for i in order if found.wrong[i])
    paths |= dict.fromkeys([*(p.path for p in beside.points), *(found.paths[i] for i in order)])
    seen = record.backbone.preprocessing.at(record.plan.size_px)
    facts = {
        "classes": found.classes,
        "images": _rows(found, order) if isinstance(found, judged.Judged) else [],
        "examples": examples,
        "thumbs": judged.thumbnails(record.data.root, list(paths), closely, seen),
        "points": [p.path for p in beside.points],
        "labels": [p.label for p in beside.points],
        "answers": _answers(found, beside.points),
        "maps": {e.path: [e.rows, e.columns, e.shown, e.map] for e in beside.explained},
        "near": near,
    }
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))  # noqa: S704


def _filled(lists: list[list[str]]) -> list[list[str]]:
    """All as long as the longest, so that the first of each come before any second one."""
    most = max(map(len, lists), default=0)
    return [[*own, *[""] * (most - len(own))] for own in lists]


def _rows(found: judged.Judged, order: list[int]) -> list[list[Any]]:
    """Path, true class, answer, its probability, the true class's; as many as there is room for."""
    rows: list[list[Any]] = []
    left = ROW_BYTES
    for i in order:
        row = [
            found.paths[i], int(found.label[i]), int(found.predicted[i]), round(float(found.probability[i]), 3),
            round(float(found.own[i]), 3),
        ]  # fmt: skip
        left -= len(found.paths[i].encode()) + 24
        if left < 0:
            break
        rows.append(row)
    return rows


def _answers(found: judged.Judged | judged.JudgedLabels, points: Sequence[looks.Point]) -> list[list[Any] | None]:
    """Of each image of the map: what was answered, with which probability (where it has one label), whether wrong."""
    number = {path: i for i, path in enumerate(found.paths)}
    answers: list[list[Any] | None] = []
    for p in points:
        i = number.get(p.path)
        sure = round(float(found.probability[i]), 3) if i is not None and isinstance(found, judged.Judged) else None
        answers.append(None if i is None else [found.given_to(i), sure, int(found.wrong[i])])
    return answers


def _pairs(record: RunRecord) -> list[dict[str, Any]]:
    """Commonest mistakes: true class, what it was taken for, how often, of how many."""
    found = [
        {"true": i, "given": j, "n": n, "of": record.metrics.per_class[i].n}
        for i, row in enumerate(record.metrics.confusion)
        for j, n in enumerate(row)
        if i != j and n
    ]
    return sorted(found, key=lambda p: -p["n"])[:SHOWN_PAIRS]


def _text(name: str) -> str:
    return resources.files("topwork.report").joinpath(name).read_text(encoding="utf-8")


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def _estimate(e: Estimate) -> str:
    return f"{e.value:.1%} (95%: {100 * e.low:.1f} to {100 * e.high:.1f})"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def _count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"
