"""So what should be done, and why?

A pure function of measurements: no files, no clock, no network. Backbones and their cuts are compared as
one list of places, all on the same images. The choice is the cheapest place whose paired deficit to the
best has a 95% upper bound of at most delta; where the data cannot tell, the plan says so, and how many
more images would.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.records import CutScore, Plan, Similarity, Tuning, Verdict
from topwork.statistics import Z95, independent, paired_errors, wilson

Floats = NDArray[np.float64]
Right = NDArray[Any]
"""Whether each image is right, bool; where it may have several labels, how right their ranking is, 0..1."""

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


SEVERAL = (
    "Images may have several labels: accuracy, and the share on which a head is right, is label-ranking average"
    " precision here, the mean over the images of how far up their own labels stand."
)

HEAD_ONLY = "Head only: the kept layers stay as they were learnt, so each image passes through them once."
HEAD_ALONE = "Head only: the kept layers stay as they were learnt; training them is for images of one label each."

Z99 = 2.575829
"""Two-sided 99% quantile of the normal distribution: a backbone or a cut is given up early only where hardly any doubt
is left, since its accuracy, too, grows with the images."""


@dataclass(frozen=True)
class Evidence:
    """What was measured of one backbone. Cuts in order from input to output; n images, K cuts."""

    backbone: str
    size_px: int  # of its input
    cuts: tuple[str, ...]
    cost_shares: tuple[float, ...]  # (K,) of the whole backbone's forward time, rising
    mac_shares: tuple[float, ...]  # (K,) of its multiply-adds, rising
    forward_ms: float  # of the whole backbone for one image
    correct: Right  # (n, K) leave-one-out, each cut at its own penalty; where images may have several labels, 0..1
    groups: NDArray[np.int64] | None = None  # (n,) images that are not independent
    importance: Floats | None = None  # (n,) how much each image weighs, of mean 1: accuracies are then balanced
    neighbour_accuracy: float = math.nan
    source_confidence: float | None = None
    source_spread: float | None = None
    whole: Evidence | None = None  # of all its cuts, on a sample, where the other images passed up to the last one here

    def cost_ms(self, k: int) -> float:
        """Forward time of the layers up to cut k, for one image."""
        return self.cost_shares[k] * self.forward_ms

    def cost(self, cut: str) -> tuple[float, float]:
        """The share and the forward time up to any cut of the backbone, scored on all images or on the sample."""
        source = self if cut in self.cuts or self.whole is None else self.whole
        k = source.cuts.index(cut)
        return source.cost_shares[k], source.cost_ms(k)


@dataclass(frozen=True)
class Deficits:
    """Accuracy of the best cut minus each cut's, on the same images, with 95% bounds: (K,) each."""

    best: int
    value: Floats
    low: Floats
    high: Floats
    error: Floats


def deficits(correct: Right, groups: NDArray[np.int64] | None = None, importance: Floats | None = None) -> Deficits:
    """Paired comparison of every cut with the best one; the earlier one where two are equally good.

    One image of difference is added to the standard error: that n images agree does not mean that all would
    (as a share of 0 among n is no certainty either). The best cut's deficit to itself is certain.
    """
    weight = np.ones((len(correct), 1)) if importance is None else importance[:, None]
    accuracy = (weight * correct).mean(axis=0)
    best = int(np.flatnonzero(accuracy >= accuracy.max() - 1e-9)[0])  # sums of weights are rounded
    value, error = _against(correct, best, groups, importance)
    return Deficits(best, value, value - Z95 * error, value + Z95 * error, error)


def cheapest(high: Floats, delta: float) -> int:
    """The first cut whose deficit is at most delta with 95% confidence (the best one always is)."""
    return int(np.flatnonzero(high <= delta + 1e-12)[0])


def places(evidences: Sequence[Evidence], cut: str | None = None) -> list[tuple[int, int]]:
    """(backbone, cut) by their indices, the cheapest first; only those cuts of this name, where one is given.

    A place is a backbone with a cut. Of equally dear ones the backbone that was named first comes first.
    """
    found = [(e, k) for e, evidence in enumerate(evidences) for k, name in enumerate(evidence.cuts)]
    found = [(e, k) for e, k in found if cut is None or evidences[e].cuts[k] == cut]
    return sorted(found, key=lambda place: evidences[place[0]].cost_ms(place[1]))


def scores(
    evidences: Sequence[Evidence], dims: Sequence[Sequence[int]], ridges: Sequence[Sequence[float]]
) -> tuple[tuple[CutScore, ...], ...]:
    """The depth tables: one per backbone, one row per cut; deficits are to the best place of all."""
    field = _field(evidences)
    n = independent(evidences[0].groups, len(evidences[0].correct), evidences[0].importance)
    rows: dict[tuple[int, int], CutScore] = {}
    for p, (e, k) in enumerate(field.places):
        accuracy = float(field.accuracy[p])
        low, high = wilson(accuracy, n)
        rows[e, k] = CutScore(
            evidences[e].cuts[k], evidences[e].cost_shares[k], evidences[e].cost_ms(k), accuracy, low, high,
            float(field.d.value[p]), float(field.d.low[p]), float(field.d.high[p]), dims[e][k], ridges[e][k],
            len(field.correct),
        )  # fmt: skip
    return tuple(tuple(rows[e, k] for k in range(len(evidence.cuts))) for e, evidence in enumerate(evidences))


def decide(*evidences: Evidence, delta: float = DELTA, cut: str | None = None) -> Plan:
    """Backbone, cut and strategy, each with the measurement behind it. `cut` is one that was asked for.

    All evidences are of the same images. Raises ValueError where none has the cut.
    """
    field = _field(evidences)
    allowed = [field.places.index(place) for place in places(evidences, cut)]
    if not allowed:
        raise ValueError(f"no backbone has a cut {cut!r}")
    own = deficits(field.correct[:, allowed], evidences[0].groups, evidences[0].importance)
    chosen = allowed[cheapest(own.high, delta)]
    e, k = field.places[chosen]
    evidence, best = evidences[e], field.places[field.d.best]
    similarity = _similarity(evidence)
    undecided = _undecided(field, chosen, delta) if cut is None else None
    reasons = [_cut_reason(field, chosen, delta) if cut is None else _asked_reason(field, chosen)]
    if len(evidences) > 1:
        reasons.append(_ranking_reason(field))
    if undecided is not None:
        reasons.append(undecided[1])
    if evidence.correct.dtype != bool:
        reasons.append(SEVERAL)
    if evidence.importance is not None:
        reasons.append(
            f"Classes weigh alike: cuts are compared by balanced accuracy, {field.accuracy[chosen]:.1%} at"
            f" {field.name(chosen)}; counting every image alike it is {field.correct[:, chosen].mean():.1%}."
        )
    reasons.append(similarity.reason)
    reasons.append(HEAD_ONLY if evidence.correct.dtype == bool else HEAD_ALONE)
    return Plan(
        evidence.backbone, evidence.size_px, evidence.cuts[k],
        evidences[best[0]].backbone, evidences[best[0]].size_px, evidences[best[0]].cuts[best[1]],
        "head", None, delta, undecided is None, None if undecided is None else undecided[0],
        evidence.cost_shares[k], evidence.cost_ms(k), similarity, tuple(reasons),
    )  # fmt: skip


def hopeless(evidences: Sequence[Evidence], delta: float) -> tuple[str | None, ...]:
    """For each backbone: why it cannot be chosen any more, or None while it can.

    It cannot where each of its cuts is shown, beyond a doubt of 1%, to lie more than delta below the best place.
    """
    field = _field(evidences)
    low = field.d.value - Z99 * field.d.error
    found: list[str | None] = []
    for e, evidence in enumerate(evidences):
        mine = [p for p, place in enumerate(field.places) if place[0] == e]
        best = max(mine, key=lambda p: field.accuracy[p])
        if (low[mine] > delta).all():
            found.append(
                f"stopped after {len(evidence.correct)} images: its best cut, {evidence.cuts[field.places[best][1]]},"
                f" is right on {field.accuracy[best]:.1%}, {field.name(field.d.best)} on"
                f" {field.accuracy[field.d.best]:.1%}, at least {_points(float(low[best]))} more (99%)"
            )
        else:
            found.append(None)
    return tuple(found)


def needed(evidences: Sequence[Evidence], delta: float) -> tuple[int, ...]:
    """For each backbone: up to which of its cuts, 1..K, more images have to pass, so that the choice stays the same.

    A place cannot be chosen any more where it is shown, beyond a doubt of 1%, to lie more than delta below the best
    place, or to lie below a cheaper one: that one would be taken first, and would be the better reference too. What
    lies behind the last place that can be chosen is not needed. Of one backbone, less is, where the choice is made:
    all cuts before one are out, and none is more than delta better than it. The best cut of each backbone so far and
    the place that would be chosen now stay in any case.
    """
    field = _field(evidences)
    groups, importance = evidences[0].groups, evidences[0].importance
    out = field.d.value - Z99 * field.d.error > delta
    for p in range(len(field.places)):
        value, error = _against(field.correct, p, groups, importance)
        out |= (value - Z99 * error > 0) & (np.arange(len(out)) > p)
    out[cheapest(field.d.high, delta)] = False
    found = []
    for e in range(len(evidences)):
        mine = [p for p, place in enumerate(field.places) if place[0] == e]
        best = max(mine, key=lambda p: field.accuracy[p])
        found.append(1 + max(field.places[p][1] for p in mine if p == best or not out[p]))
    first = int(np.flatnonzero(~out)[0])
    value, error = _against(field.correct, first, groups, importance)
    if len(evidences) == 1 and (Z99 * error - value <= delta).all():
        found = [1 + max(first, field.d.best)]
    return tuple(found)


def settled(plan: Plan, evidences: Sequence[Evidence], images: int) -> bool:
    """Whether all `images` would, as far as these tell, lead to the same place as the part that was measured.

    No other place may be more than delta better than the planned one (95%), and each cheaper one must be decided, or
    stay undecided on all of them too.
    """
    field = _field(evidences)
    names = [(evidences[e].backbone, evidences[e].size_px, evidences[e].cuts[k]) for e, k in field.places]
    chosen = names.index((plan.backbone, plan.size_px, plan.cut))
    value, error = _against(field.correct, chosen, evidences[0].groups, evidences[0].importance)
    if (Z95 * error - value > plan.delta).any():
        return False
    return plan.decided or plan.more_images is None or len(field.correct) + plan.more_images > images


def _against(
    correct: Right, p: int, groups: NDArray[np.int64] | None, importance: Floats | None
) -> tuple[Floats, Floats]:
    """Accuracy of place p minus that of each one on the same images, and its error as in `deficits`: (P,) each."""
    weight = np.ones((len(correct), 1)) if importance is None else importance[:, None]
    difference = weight * (correct[:, [p]].astype(np.float64) - correct)
    error = np.hypot(paired_errors(difference, groups), 1 / independent(groups, len(correct), importance))
    error[p] = 0.0
    return difference.mean(axis=0), error


def spared(plan: Plan, sentences: Sequence[str]) -> Plan:
    """The plan with what it says of images that did not pass, or not all the way."""
    *reasons, last = plan.reasons
    return replace(plan, reasons=(*reasons, *sentences, last))


def stacked(plan: Plan, evidence: Evidence, cut: str, reason: str) -> Plan:
    """The plan where the head reads several depths, up to `cut`: that is what it costs."""
    k = evidence.cuts.index(cut)
    *reasons, last = plan.reasons
    text = (
        f"The head reads {reason}. The deepest one, {cut}, is what counts for the cost: {evidence.cost_shares[k]:.0%}."
    )
    return replace(
        plan, cut=cut, kept_cost=evidence.cost_shares[k], cost_ms=evidence.cost_ms(k), reasons=(*reasons, text, last)
    )


def tuned(plan: Plan, tuning: Tuning, evidences: Sequence[Evidence], *, asked: bool = False) -> Plan:
    """The plan after training was tried: what replaced the frozen model, or why nothing did."""
    *reasons, _ = plan.reasons  # the last one says that the kept layers stay as they are
    if not tuning.replaced or tuning.recipe is None:
        why = f"The kept layers stay as they were learnt; {tuning.reason}"
        return replace(plan, reasons=(*reasons, why))
    recipe = tuning.recipe
    evidence = next(e for e in evidences if (e.backbone, e.size_px) == (tuning.backbone, tuning.size_px))
    kept, cost_ms = evidence.cost(recipe.cut)
    same = (plan.backbone, plan.size_px) == (tuning.backbone, tuning.size_px)
    cost = ""
    if not same:
        cost = f" It is {_label(evidence, evidences)}, cut after {recipe.cut}, at {cost_ms:.3g} ms per image."
    elif recipe.cut != plan.cut:
        cost = f" It is cut after {recipe.cut} and keeps {kept:.0%} of the cost."
    similarity = plan.similarity if same else _similarity(evidence)
    reasons = [similarity.reason if r == plan.similarity.reason else r for r in reasons]  # each backbone has its own
    how = "Trained as asked" if asked else "The trained model replaces the frozen one"
    return replace(
        plan, backbone=evidence.backbone, size_px=evidence.size_px, cut=recipe.cut, strategy=recipe.strategy,
        recipe=recipe, kept_cost=kept, cost_ms=cost_ms,
        similarity=similarity,
        reasons=(*reasons, f"{how}: {tuning.reason}{cost}"),
    )  # fmt: skip


@dataclass(frozen=True)
class _Field:
    """All places of all backbones on the same images, the cheapest first; P places."""

    evidences: Sequence[Evidence]
    places: list[tuple[int, int]]
    correct: Right  # (n, P)
    accuracy: Floats  # (P,)
    d: Deficits

    @property
    def word(self) -> str:
        """What a place is called: of one backbone, places are its cuts."""
        return "cut" if len(self.evidences) == 1 else "place"

    def name(self, p: int) -> str:
        """A cut's name; with its backbone's, where there are several."""
        e, k = self.places[p]
        cut = self.evidences[e].cuts[k]
        return cut if len(self.evidences) == 1 else f"{_label(self.evidences[e], self.evidences)} {cut}"

    def cost(self, p: int) -> str:
        """In words: a share where there is one backbone, else also in milliseconds."""
        e, k = self.places[p]
        share = f"{self.evidences[e].cost_shares[k]:.0%} of the backbone's cost"
        if len(self.evidences) == 1:
            return share
        return f"{self.evidences[e].cost_ms(k):.3g} ms per image ({share})"


def _field(evidences: Sequence[Evidence]) -> _Field:
    order = places(evidences)
    correct = np.stack([evidences[e].correct[:, k] for e, k in order], axis=1)
    accuracy = _shares(correct, evidences[0].importance)
    return _Field(evidences, order, correct, accuracy, deficits(correct, evidences[0].groups, evidences[0].importance))


def _label(evidence: Evidence, evidences: Sequence[Evidence]) -> str:
    """A backbone's name; with its input size where it was measured at several."""
    several = Counter(e.backbone for e in evidences)[evidence.backbone] > 1
    return f"{evidence.backbone} at {evidence.size_px} px" if several else evidence.backbone


def _asked_reason(field: _Field, chosen: int) -> str:
    best = field.d.best
    return (
        f"Cut after {field.name(chosen)}, as asked: {field.accuracy[chosen]:.1%} right leave-one-out, at"
        f" {field.cost(chosen)}; the best cut, {field.name(best)}, is right on {field.accuracy[best]:.1%}."
    )


def _cut_reason(field: _Field, chosen: int, delta: float) -> str:
    d, name, best = field.d, field.name(chosen), field.name(field.d.best)
    if chosen == d.best:
        text = f"Cut after {name}: the best place, {field.accuracy[chosen]:.1%} right leave-one-out, at"
        text += f" {field.cost(chosen)}."
        if chosen:
            text += f" No cheaper {field.word} is shown to be within {_points(delta)} of it."
        return text
    return (
        f"Cut after {name}: the cheapest place within {_points(delta)} of the best ({best},"
        f" {field.accuracy[d.best]:.1%}); it is right on {field.accuracy[chosen]:.1%}, and its deficit of"
        f" {_points(d.value[chosen])} is at most {_points(d.high[chosen])} with 95% confidence. It keeps"
        f" {field.cost(chosen)}."
    )


def _ranking_reason(field: _Field) -> str:
    """The backbones by their best places, each with its paired interval to the best of all."""
    best: dict[int, int] = {}
    for p, (e, _) in enumerate(field.places):
        if e not in best or field.accuracy[p] > field.accuracy[best[e]] + 1e-9:
            best[e] = p
    parts = []
    for p in sorted(best.values(), key=lambda p: (p != field.d.best, -field.accuracy[p])):
        part = f"{field.name(p)} {field.accuracy[p]:.1%}"
        if p != field.d.best:
            shown = "shown to be worse" if field.d.low[p] > 0 else "not shown to be worse"
            between = f"{_points(float(field.d.low[p]))} to {_points(float(field.d.high[p]))}"
            part += f" ({_points(float(field.d.value[p]))} less, 95% interval {between}, {shown})"
        parts.append(part)
    return f"The best place of each backbone: {'; '.join(parts)}."


def _undecided(field: _Field, chosen: int, delta: float) -> tuple[int | None, str] | None:
    """How many more images would decide, and the sentence; None where the data can tell.

    Open are the cheaper places that are neither shown to be within delta nor shown to be worse. Of these
    the one that would be decided soonest is quoted: an interval of half-width |delta - deficit| needs
    (1.96 sd / |delta - deficit|)^2 images, which is method.md's (1.96 sd / delta)^2 at no deficit.
    """
    n, d = len(field.correct), field.d
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
    names = field.name(k) + (f" and {others} other{'s' if others > 1 else ''}" if others else "")
    text = (
        f"Undecided whether a cheaper {field.word} would do: {names} may be within {_points(delta)} or not"
        f" (deficit of {field.name(k)} {_points(d.value[k])}, 95% interval {_points(d.low[k])} to"
        f" {_points(d.high[k])})"
    )
    if more[pick] > MOST_MORE * n:
        return None, text + "; no realistic number of images would tell."
    count = _rounded(max(1.0, float(more[pick])))
    return count, text + f"; about {count} more images would tell."


def _similarity(evidence: Evidence) -> Similarity:
    """In words: do the deep layers, which know the old task's classes, still help to tell the new ones apart?"""
    evidence = evidence.whole or evidence  # the deep layers are the very ones that not all images pass
    d = deficits(evidence.correct, evidence.groups, evidence.importance)
    accuracy = _accuracy(evidence)
    last = len(evidence.cuts) - 1
    early = _early(evidence)
    weight = np.ones(len(evidence.correct)) if evidence.importance is None else evidence.importance
    worse = weight[:, None] * (evidence.correct[:, [early]].astype(np.float64) - evidence.correct[:, [last]])
    shown_worse = float(worse.mean()) - Z95 * float(paired_errors(worse, evidence.groups)[0]) > 0
    wrong = 1.0 - evidence.correct  # of several labels, what is missing to a right ranking
    errors = round(float(wrong[:, early].sum()))
    missed = weight @ wrong  # (K,)
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
    return _shares(evidence.correct, evidence.importance)


def _shares(correct: Right, importance: Floats | None) -> Floats:  # (n, P) to (P,)
    weight = np.ones(len(correct)) if importance is None else importance
    shares: Floats = weight @ correct / len(correct)
    return shares


def _points(share: float) -> str:
    points = round(100 * share, 1) + 0.0  # no -0.0
    return f"{points:.1f} point{'' if abs(points - 1) < 0.05 else 's'}"


def _rounded(count: float) -> int:
    """Two significant digits: more would pretend."""
    digits = max(0, math.floor(math.log10(count)) - 1)
    return int(math.ceil(count / 10**digits) * 10**digits)
