"""What do the images say of their labels? Wrong labels found again, shortcuts, and how far a learning curve can be
trusted, on every real set.

Wrong labels: a share of the labels is replaced by another class at random, and looked for. Shortcuts: what trivial
numbers and the first layers know, on every set; and how often numbers that are dealt out at random raise a warning.
Growth: the curve of half of a set says what twice as many images bring; the whole set tells whether it is so.
Prints tables in Markdown. Compared with cleanlab, where it is installed (it is no dependency).
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from threadpoolctl import threadpool_limits

import common
from topwork import growth, head, measurement, plan, probe, shortcuts, survey, suspects
from topwork.sketches import Sketches

SIZE_PX = 96  # what fits 2 cores
SETS = (
    "flowers17", "dtd10", "neu6", "trashnet", "wbc5", "xray3", "potato_blight", "ants_bees", "brain_mri",
    "emoji_google", "mnist5k", "spoken_digits",
)  # fmt: skip
PLANTED_IN = ("flowers17", "dtd10", "neu6", "trashnet", "wbc5", "xray3")
PLANTED = 0.05
SHUFFLES = 20


def main() -> None:
    options = common.arguments(__doc__ or "", seeds=3, halves=4)
    common.need_sets()
    quick = options.quick
    sets = ("potato_blight", "neu6") if quick else SETS
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1, "blas"):
        seen = {name: survey.measure(common.SETS / name, size=SIZE_PX, cache=folder).measured[0] for name in sets}
        planted = _planted(seen, ("neu6",) if quick else PLANTED_IN, 1 if quick else options.seeds, Path(folder))
        trivial = _shortcuts(seen, Path(folder))
        curves = _growth(seen, 1 if quick else options.halves)
    common.finish({"bench": "labels", "quick": quick, "planted": planted, "shortcuts": trivial, "growth": curves})


def _table(*columns: str) -> None:
    print("\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns), flush=True)


# ------------------------------------------------------------------------------------------------- wrong labels


def _planted(
    seen: dict[str, measurement.Measured], sets: tuple[str, ...], seeds: int, cache: Path
) -> list[dict[str, Any]]:
    """Precision and recall of what is planted. What was wrong before counts as a false alarm."""
    rivals = ["cleanlab"] if importlib.util.find_spec("cleanlab") else []
    _table(
        "set", "planted", "looks wrong", "precision", "recall", "listed", "of list planted", "recall of list",
        "precision of as many as planted", "listed with no label planted",
        *(f"{r}: {what}" for r in rivals for what in ("listed", "precision", "recall", "precision of as many")),
    )  # fmt: skip
    rows = []
    for name in sets:
        m = seen[name]
        none = _suspected(m, m.labels[m.rows], cache)[0]
        found = []
        for seed in range(seeds):
            labels, at = _wrong(m.labels[m.rows], len(m.dataset.classes), seed)
            f, p = _suspected(m, labels, cache)
            wrong = f.rows[f.label_probability <= suspects.RARE]
            one = {
                "planted": len(at), "wrong": len(wrong), "precision": _share(wrong, at), "recall": _share(at, wrong),
                "listed": len(f.rows), "list_precision": _share(f.rows, at), "list_recall": _share(at, f.rows),
                "top_precision": _share(f.rows[: len(at)], at),
            }  # fmt: skip
            for rival in rivals:
                issues, order = _cleanlab(labels, p)
                one |= {
                    f"{rival}_listed": len(issues), f"{rival}_precision": _share(issues, at),
                    f"{rival}_recall": _share(at, issues), f"{rival}_top": _share(order[: len(at)], at),
                }  # fmt: skip
            found.append(one)
        mean = {key: float(np.nanmean([one[key] for one in found])) for key in found[0]}
        row = {"set": name, "seeds": seeds, **mean, "listed_unplanted": len(none.rows)}
        rows.append(row)
        cells = [f"{mean[k]:.0f}" if k in {"planted", "wrong", "listed"} else f"{mean[k]:.2f}" for k in list(mean)[:8]]
        tail = [f"{mean[k]:.0f}" if k.endswith("listed") else f"{mean[k]:.2f}" for k in list(mean)[8:]]
        print("| " + " | ".join([name, *cells, str(len(none.rows)), *tail]) + " |", flush=True)
    return rows


def _wrong(labels: np.ndarray, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels with a twentieth replaced by another class each, and where."""
    rng = np.random.default_rng(seed)
    at = rng.choice(len(labels), round(PLANTED * len(labels)), replace=False)
    wrong = labels.copy()
    wrong[at] = (labels[at] + rng.integers(1, classes, len(at))) % classes
    return wrong, at


def _suspected(m: measurement.Measured, labels: np.ndarray, cache: Path) -> tuple[suspects.Found, np.ndarray]:
    """As a fit would on these labels; and the mean probabilities of all voters, for others to judge by."""
    examples = list(m.dataset.examples)
    for row, label in zip(m.rows, labels, strict=True):
        examples[row] = replace(examples[row], label=int(label))
    again = measurement.probed(
        replace(m.dataset, examples=tuple(examples)), m.locked, m.backbone, m.features, balance=False, seed=0,
        cache=cache,
    )  # fmt: skip
    cut = again.backbone.index(plan.decide(again.evidence).cut)
    fitted = measurement.fitted_head(again, cut, 0)
    places = suspects.good(again.evidence.correct, again.groups, delta=plan.DELTA)
    voters = [*(again.probes[k].scores.astype(np.float64) for k in places), fitted.scores]
    found = suspects.find(voters, labels, len(m.dataset.classes), again.groups)
    p = np.mean([softmax(v / head.temperature(v, labels), axis=1) for v in voters], axis=0)
    return found, p


def _cleanlab(labels: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What cleanlab lists by default of the same probabilities, and its order of all."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    return np.flatnonzero(find_label_issues(labels, p, n_jobs=1)), np.argsort(get_label_quality_scores(labels, p))


def _share(some: np.ndarray, others: np.ndarray) -> float:
    """How many of some are among the others; NaN where there are none."""
    return float(np.isin(some, others).mean()) if len(some) else float("nan")


# ---------------------------------------------------------------------------------------------------- shortcuts


def _shortcuts(seen: dict[str, measurement.Measured], cache: Path) -> list[dict[str, Any]]:
    """What is known without looking at the thing; and by numbers of the same images in random order."""
    _table("set", "what", "accuracy", "best cut", "share", "at least", "warns", f"warnings of {SHUFFLES} shuffles")
    rows = []
    for name, m in seen.items():
        examples = [m.dataset.examples[i] for i in m.rows]
        sketches, missing = Sketches.under(cache).get([e.digest for e in examples])
        assert not missing.any(), "every image was just passed"
        facts = [e.facts for e in examples if e.facts is not None]
        numbers = {**shortcuts.facts(facts), **shortcuts.colours(sketches)}
        labels, classes = m.labels[m.rows], len(m.dataset.classes)

        def measured(numbers: dict[str, Any], m: measurement.Measured = m) -> tuple[Any, ...]:
            return shortcuts.measure(
                numbers, m.labels[m.rows], len(m.dataset.classes), m.evidence.correct, m.evidence.mac_shares, m.groups
            )

        false = dict.fromkeys(numbers, 0)
        rng = np.random.default_rng(0)
        for _ in range(SHUFFLES):
            order = rng.permutation(len(labels))
            for s in measured({kind: x[order] for kind, x in numbers.items()}):
                if s.kind in false:
                    false[s.kind] += s.warned
        for s in measured(numbers):
            shuffled = false.get(s.kind)
            rows.append(
                {"set": name, "classes": classes, "kind": s.kind, "accuracy": s.accuracy, "best": s.best,
                 "share": s.share, "share_low": s.share_low, "warned": s.warned, "false": shuffled}
            )  # fmt: skip
            print(
                f"| {name} | {s.kind} | {s.accuracy:.2f} | {s.best:.2f} | {s.share:.2f} | {s.share_low:.2f}"
                f" | {'yes' if s.warned else ''} | {'' if shuffled is None else shuffled} |",
                flush=True,
            )
    return rows


# ------------------------------------------------------------------------------------------------------- growth


def _growth(seen: dict[str, measurement.Measured], halves: int) -> list[dict[str, Any]]:
    """The gain that half of a set foretells, beside the one that the whole set brings on average over many halves."""
    _table("set", "half", "foretold", "95%", "came", "inside", "process time / FE of that half")
    rows = []
    for name, m in seen.items():
        labels, classes = m.labels[m.rows], len(m.dataset.classes)
        truth: dict[int, float] = {}
        for half, inside in _halves(labels, m.groups, halves):
            if not growth.enough(labels[inside], classes):
                continue
            correct = np.stack([_probed(m, k, inside) for k in range(len(m.probes))], axis=1)
            k = m.backbone.index(plan.decide(replace(m.evidence, correct=correct, groups=_of(m.groups, inside))).cut)
            if k not in truth:
                whole = growth.measure(
                    m.features.at(k, m.rows), labels, classes, m.evidence.correct[:, k], groups=m.groups
                )
                points = [float(r.mean()) for r in whole.right]
                truth[k] = points[-1] - points[-2]
            start = time.process_time()
            x = m.features.at(k, m.rows[inside])
            found = growth.measure(x, labels[inside], classes, correct[:, k], groups=_of(m.groups, inside))
            said = growth.follow(found, groups=_of(m.groups, inside))
            cost = (time.process_time() - start) / (m.features.fe_seconds * len(inside) / len(m.dataset.examples))
            came = truth[k]
            row = {
                "set": name, "half": half, "images": len(inside), "foretold": said.twice, "low": said.twice_low,
                "high": said.twice_high, "came": came, "inside": said.twice_low <= came <= said.twice_high,
                "tells": said.tells, "cost_fe": cost,
            }  # fmt: skip
            rows.append(row)
            print(
                f"| {name} | {half} | {100 * said.twice:+.1f} | {100 * said.twice_low:+.1f} to"
                f" {100 * said.twice_high:+.1f} | {100 * came:+.1f} | {'yes' if row['inside'] else 'no'}"
                f" | {cost:.3f} |",
                flush=True,
            )
    if rows:
        inside = [row["inside"] for row in rows]
        error = [abs(row["foretold"] - row["came"]) for row in rows]
        bias = [row["foretold"] - row["came"] for row in rows]
        print(
            f"\nCame inside the interval: {sum(inside)} of {len(inside)}; mean error {100 * np.mean(error):.2f} points,"
            f" foretold less what came {100 * np.mean(bias):+.2f}; mean width"
            f" {100 * np.mean([row['high'] - row['low'] for row in rows]):.1f}"
        )
    return rows


def _halves(labels: np.ndarray, groups: np.ndarray | None, count: int) -> Iterator[tuple[int, np.ndarray]]:
    for seed in range(-(-count // 2)):
        fold = head.folds(labels, groups, 100 + seed, 2)
        yield from ((2 * seed + k, np.flatnonzero(fold == k)) for k in range(min(2, count - 2 * seed)))


def _of(groups: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if groups is None else groups[rows]


def _probed(m: measurement.Measured, k: int, inside: np.ndarray) -> np.ndarray:
    labels = m.labels[m.rows[inside]]
    found = probe.probe(m.features.at(k, m.rows[inside]), labels, len(m.dataset.classes), groups=_of(m.groups, inside))
    return found.correct[:, found.best]


if __name__ == "__main__":
    main()
