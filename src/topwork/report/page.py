"""What stands on the page, and in which order?"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from topwork.errors import DataError
from topwork.files import write as write_whole
from topwork.records import Estimate, RunRecord, decode
from topwork.report import charts, judged

NAME = "report.html"
MATRIX = 40
"""Classes up to which the confusion matrix is a table to be clicked; more are told by their commonest mistakes."""

SHOWN_FAULTS, SHOWN_PAIRS, SHOWN_CURVES, SHOWN_MISTAKES, SHOWN_SUSPECTS = 200, 60, 8, 24, 12


def write(run: Path, out: Path | None = None) -> Path:
    """Draw the page of a finished run; default: report.html in its folder, made anew. Gives its place.

    Raises DataError where there is no run.
    """
    file = run / "run.json"
    if not file.is_file():
        raise DataError(f"{run}: no run in it (no run.json); `topwork fit FOLDER --out {run}` makes one")
    record = decode(file.read_bytes(), RunRecord, where=str(file))
    target = out or run / NAME
    write_whole(target, html(record, judged.read(run / "predictions.parquet")).encode())
    return target


def html(record: RunRecord, found: judged.Judged | judged.JudgedLabels) -> str:
    """The page as text."""
    order, wrong, one = judged.worth_seeing(found), found.wrong, isinstance(found, judged.Judged)
    suspects = (
        [] if record.suspects is None else [*record.suspects.listed[: max(SHOWN_SUSPECTS, record.suspects.wrong)]]
    )
    growth = record.growth
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("topwork.report", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(percent=_percent, estimate=_estimate, seconds=_seconds, points=_points)
    trials = [] if record.tuning is None else [t for t in record.tuning.trials if t.losses]
    return environment.get_template("page.html").render(
        r=record, plan=record.plan, similarity=record.plan.similarity, metrics=record.metrics,
        style=Markup(_text("page.css")), script=Markup(_text("page.js")),  # noqa: S704 (our own files)
        depth=charts.depth(record.backbones, record.plan, several=not one),
        reliability=charts.reliability(judged.bins(found)) if isinstance(found, judged.Judged) else None,
        growth_curve=None if growth is None else charts.growth(growth), suspects=suspects, one=one,
        training=charts.training(trials[:SHOWN_CURVES]) if trials else None, trials=trials,
        mistakes=[i for i in order[:SHOWN_MISTAKES] if wrong[i]], judged=found, images=len(found.paths),
        wrong=int(wrong.sum()), pairs=_pairs(record), matrix=one and len(found.classes) <= MATRIX,
        has_val=any(c.val for c in record.data.classes), has_test=any(c.test for c in record.data.classes),
        shown_faults=SHOWN_FAULTS, data=_data(record, found, order, [s.path for s in suspects]), curves=charts.CURVES,
    )  # fmt: skip


def _data(record: RunRecord, found: judged.Judged | judged.JudgedLabels, order: list[int], first: list[str]) -> Markup:
    """What the page's script needs, as JSON that may stand inside HTML. `first`: paths whose pictures come first."""
    rows: list[list[Any]] = []
    if isinstance(found, judged.Judged):
        rows = [
            [found.paths[i], int(found.label[i]), int(found.predicted[i]), round(float(found.probability[i]), 4),
             round(float(found.own[i]), 4)]
            for i in order
        ]  # fmt: skip
    paths = list(dict.fromkeys([*first, *(found.paths[i] for i in order)]))
    facts = {"classes": found.classes, "images": rows, "thumbs": judged.thumbnails(record.data.root, paths)}
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))  # noqa: S704


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


def _points(value: float) -> str:
    return f"{100 * value + 0.0:+.1f}"
