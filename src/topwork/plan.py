"""So what should be done, and why?

A pure function of measurements: no files, no clock, no network. The choice is the cheapest cut whose
paired deficit to the best has a 95% upper bound of at most delta; where the data cannot tell, the
plan says so, and how many more images would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from topwork.records import CutScore, Plan, Similarity, Tuning, Verdict
from topwork.statistics import Z95, independent, paired_errors, wilson

Floats = NDArray[np.float64]

DELTA = 0.01
"""Accuracy that a cheaper model may cost: one point."""

EARLY = 1 / 3
"""Share of the multiply-adds up to which a cut counts as early."""

SIMILAR_FROM, DIFFERENT_BELOW = 0.3, 0.1
"""Share of the errors at the best early cut that the last cut removes: a task is similar from the one on,
different below the other. Of four measures tried, only this one put the sets of bench/depth.py into the order
that people would; the backbone's confidence in its own classes did not (bench/LOG.md)."""

LEAST_ERRORS = 10  # at the early cut; a share of fewer errors says nothing

MOST_MORE = 100
"""More than this many times the images at hand is no advice; then the plan says that they are equal."""


@dataclass(frozen=True)
class Evidence:
    """What was measured. Cuts in order from input to output; n images, K cuts."""

    backbone: str
    cuts: tuple[str, ...]
    cost_shares: tuple[float, ...]  # (K,) of the whole backbone's forward time, rising
    mac_shares: tuple[float, ...]  # (K,) of its multiply-adds, rising
    correct: NDArray[np.bool_]  # (n, K) leave-one-out, each cut at its own penalty
    groups: NDArray[np.int64] | None = None  # (n,) images that are not independent
    importance: Floats | None = None  # (n,) how much each image weighs, of mean 1: accuracies are then balanced
    neighbour_accuracy: float = math.nan
    source_confidence: float | None = None
    source_spread: float | None = None


@dataclass(frozen=True)
class Deficits:
    """Accuracy of the best cut minus each cut's, on the same images, with 95% bounds: (K,) each."""

    best: int
    value: Floats
    low: Floats
    high: Floats
    error: Floats


def deficits(
    correct: NDArray[np.bool_], groups: NDArray[np.int64] | None = None, importance: Floats | None = None
) -> Deficits:
    """Paired comparison of every cut with the best one; the earlier one where two are equally good.

    One image of difference is added to the standard error: that n images agree does not mean that all would
    (as a share of 0 among n is no certainty either). The best cut's deficit to itself is certain.
    """
    weight = np.ones((len(correct), 1)) if importance is None else importance[:, None]
    accuracy = (weight * correct).mean(axis=0)
    best = int(np.flatnonzero(accuracy >= accuracy.max() - 1e-9)[0])  # sums of weights are rounded
    difference = weight * (correct[:, [best]].astype(np.float64) - correct)
    value = difference.mean(axis=0)
    error = np.hypot(paired_errors(difference, groups), 1 / independent(groups, len(correct), importance))
    error[best] = 0.0
    return Deficits(best, value, value - Z95 * error, value + Z95 * error, error)


def cheapest(high: Floats, delta: float) -> int:
    """The first cut whose deficit is at most delta with 95% confidence (the best one always is)."""
    return int(np.flatnonzero(high <= delta + 1e-12)[0])


def scores(evidence: Evidence, dims: tuple[int, ...], ridges: tuple[float, ...]) -> tuple[CutScore, ...]:
    """The depth table: one row per cut."""
    d = deficits(evidence.correct, evidence.groups, evidence.importance)
    shares = _accuracy(evidence)
    n = independent(evidence.groups, len(evidence.correct), evidence.importance)
    rows = []
    for k, cut in enumerate(evidence.cuts):
        accuracy = float(shares[k])
        low, high = wilson(accuracy, n)
        rows.append(
            CutScore(
                cut, evidence.cost_shares[k], accuracy, low, high,
                float(d.value[k]), float(d.low[k]), float(d.high[k]), dims[k], ridges[k],
            )
        )  # fmt: skip
    return tuple(rows)


def decide(evidence: Evidence, *, delta: float = DELTA, cut: str | None = None) -> Plan:
    """Backbone, cut and strategy, each with the measurement behind it. `cut` is one that was asked for."""
    d = deficits(evidence.correct, evidence.groups, evidence.importance)
    chosen = cheapest(d.high, delta) if cut is None else evidence.cuts.index(cut)
    similarity = _similarity(evidence, d)
    undecided = _undecided(evidence, d, chosen, delta) if cut is None else None
    reasons = [_cut_reason(evidence, d, chosen, delta) if cut is None else _asked_reason(evidence, d, chosen)]
    if undecided is not None:
        reasons.append(undecided[1])
    if evidence.importance is not None:
        reasons.append(
            f"Classes weigh alike: cuts are compared by balanced accuracy, {_accuracy(evidence)[chosen]:.1%} at"
            f" {evidence.cuts[chosen]}; counting every image alike it is {evidence.correct[:, chosen].mean():.1%}."
        )
    reasons.append(similarity.reason)
    reasons.append("Head only: the kept layers stay as they were learnt, so each image passes through them once.")
    return Plan(
        evidence.backbone, evidence.cuts[chosen], evidence.cuts[d.best], "head", None, delta,
        undecided is None, None if undecided is None else undecided[0],
        evidence.cost_shares[chosen], similarity, tuple(reasons),
    )  # fmt: skip


def tuned(plan: Plan, tuning: Tuning, evidence: Evidence, *, asked: bool = False) -> Plan:
    """The plan after training was tried: what replaced the frozen model, or why nothing did."""
    *reasons, _ = plan.reasons  # the last one says that the kept layers stay as they are
    if not tuning.replaced or tuning.recipe is None:
        why = f"The kept layers stay as they were learnt; {tuning.reason}"
        return replace(plan, reasons=(*reasons, why))
    recipe = tuning.recipe
    kept = evidence.cost_shares[evidence.cuts.index(recipe.cut)]
    cost = "" if recipe.cut == plan.cut else f" It is cut after {recipe.cut} and keeps {kept:.0%} of the cost."
    how = "Trained as asked" if asked else "The trained model replaces the frozen one"
    return replace(
        plan, cut=recipe.cut, strategy=recipe.strategy, recipe=recipe, kept_cost=kept,
        reasons=(*reasons, f"{how}: {tuning.reason}{cost}"),
    )  # fmt: skip


def _asked_reason(evidence: Evidence, d: Deficits, chosen: int) -> str:
    accuracy = _accuracy(evidence)
    return (
        f"Cut after {evidence.cuts[chosen]}, as asked: {accuracy[chosen]:.1%} right leave-one-out, at"
        f" {evidence.cost_shares[chosen]:.0%} of the backbone's cost; the best cut, {evidence.cuts[d.best]}, is right"
        f" on {accuracy[d.best]:.1%}."
    )


def _cut_reason(evidence: Evidence, d: Deficits, chosen: int, delta: float) -> str:
    name, best = evidence.cuts[chosen], evidence.cuts[d.best]
    accuracy = _accuracy(evidence)
    cost = f"{evidence.cost_shares[chosen]:.0%} of the backbone's cost"
    if chosen == d.best:
        text = f"Cut after {name}: the best place, {accuracy[chosen]:.1%} right leave-one-out, at {cost}."
        if chosen:
            text += f" No cheaper cut is shown to be within {_points(delta)} of it."
        return text
    return (
        f"Cut after {name}: the cheapest place within {_points(delta)} of the best ({best}, {accuracy[d.best]:.1%});"
        f" it is right on {accuracy[chosen]:.1%}, and its deficit of {_points(d.value[chosen])} is at most"
        f" {_points(d.high[chosen])} with 95% confidence. It keeps {cost}."
    )


def _undecided(evidence: Evidence, d: Deficits, chosen: int, delta: float) -> tuple[int | None, str] | None:
    """How many more images would decide, and the sentence; None where the data can tell.

    Open are the cheaper cuts that are neither shown to be within delta nor shown to be worse. Of these
    the one that would be decided soonest is quoted: an interval of half-width |delta - deficit| needs
    (1.96 sd / |delta - deficit|)^2 images, which is method.md's (1.96 sd / delta)^2 at no deficit.
    """
    n = len(evidence.correct)
    still_open = [k for k in range(chosen) if d.low[k] <= delta < d.high[k]]
    if not still_open:
        return None
    if not np.isfinite(d.error[still_open]).all():
        return None, "Undecided: one independent image cannot tell cuts apart."
    margin = np.abs(delta - d.value[still_open])
    with np.errstate(divide="ignore"):
        more = (Z95 * d.error[still_open] * math.sqrt(n) / margin) ** 2 - n
    pick = int(np.argmin(more))
    k = still_open[pick]
    others = len(still_open) - 1
    names = evidence.cuts[k] + (f" and {others} other{'s' if others > 1 else ''}" if others else "")
    text = (
        f"Undecided whether a cheaper cut would do: {names} may be within {_points(delta)} or not"
        f" (deficit of {evidence.cuts[k]} {_points(d.value[k])}, 95% interval {_points(d.low[k])} to"
        f" {_points(d.high[k])})"
    )
    if more[pick] > MOST_MORE * n:
        return None, text + "; no realistic number of images would tell."
    count = _rounded(max(1.0, float(more[pick])))
    return count, text + f"; about {count} more images would tell."


def _similarity(evidence: Evidence, d: Deficits) -> Similarity:
    """In words: do the deep layers, which know the old task's classes, still help to tell the new ones apart?"""
    accuracy = _accuracy(evidence)
    last = len(evidence.cuts) - 1
    early = _early(evidence)
    weight = np.ones(len(evidence.correct)) if evidence.importance is None else evidence.importance
    worse = weight[:, None] * (evidence.correct[:, [early]].astype(np.float64) - evidence.correct[:, [last]])
    shown_worse = float(worse.mean()) - Z95 * float(paired_errors(worse, evidence.groups)[0]) > 0
    errors = int((~evidence.correct[:, early]).sum())
    missed = weight @ ~evidence.correct  # (K,)
    gain = float((missed[early] - missed[last]) / missed[early]) if errors else None
    there = f"{evidence.cuts[early]} ({accuracy[early]:.1%}) and the last cut ({accuracy[last]:.1%})"
    if shown_worse:
        verdict: Verdict = "different"
        text = f"its deep layers serve the old task; accuracy falls between {there}"
    elif gain is None or errors < LEAST_ERRORS:
        verdict = "cannot tell"
        text = (
            f"{evidence.cuts[early]} makes {errors or 'no'} error{'' if errors == 1 else 's'} already, which leaves"
            " little for deep layers to correct"
        )
    else:
        verdict = "similar" if gain >= SIMILAR_FROM else "different" if gain < DIFFERENT_BELOW else "in between"
        removed = f"remove {gain:.0%} of the errors" if gain > 0 else "remove none of the errors"
        text = f"its deep layers, between {there}, {removed}"
    if d.low[last] > 0 and d.best not in {early, last}:
        text += f"; accuracy peaks at {evidence.cuts[d.best]} ({accuracy[d.best]:.1%})"
    confidence, spread = evidence.source_confidence, evidence.source_spread
    if confidence is not None and spread is not None:
        text += f"; the backbone gives one of its own classes {confidence:.0%} on average and uses {spread:.0%} of them"
    reason = {
        "similar": "The task is similar to what the backbone was trained for",
        "in between": "The task lies in between, neither like the backbone's own nor far from it",
        "different": "The task is different from what the backbone was trained for",
        "cannot tell": "How similar the task is to the backbone's own cannot be told",
    }[verdict]
    return Similarity(
        verdict, f"{reason}: {text}.", evidence.cuts[early], float(accuracy[early]), float(accuracy[d.best]),
        float(accuracy[last]), gain, float(d.value[last]), float(d.low[last]), float(d.high[last]),
        evidence.neighbour_accuracy, confidence, spread,
    )  # fmt: skip


def _early(evidence: Evidence) -> int:
    """The best of the cuts that keep at most a third of the multiply-adds; the first one where none does."""
    early = [k for k, share in enumerate(evidence.mac_shares) if share <= EARLY] or [0]
    return early[int(_accuracy(evidence)[early].argmax())]


def _accuracy(evidence: Evidence) -> Floats:
    """Share of right answers at each cut, images weighed by their importance: (K,)."""
    weight = np.ones(len(evidence.correct)) if evidence.importance is None else evidence.importance
    shares: Floats = weight @ evidence.correct / len(evidence.correct)
    return shares


def _points(share: float) -> str:
    points = round(100 * share, 1) + 0.0  # no -0.0
    return f"{points:.1f} point{'' if abs(points - 1) < 0.05 else 's'}"


def _rounded(count: float) -> int:
    """Two significant digits: more would pretend."""
    digits = max(0, math.floor(math.log10(count)) - 1)
    return int(math.ceil(count / 10**digits) * 10**digits)
