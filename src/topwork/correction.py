"""What did choosing by the same images add to their accuracy?

BBC-CV (Tsamardinos, Greasidou and Borboudakis, Machine Learning 2018): in each bootstrap sample the choice is made
anew, penalty, place and head, by the rules that made it, and the chosen one is judged on the images that the sample
left out. Needs no further training. Where a sample chooses another cut, its ridge head stands for it: logistic
regression was fitted at the chosen cut alone.

All samples are computed at once, as products of how often each group of images was drawn with sums over the groups;
tests/test_correction.py holds them against the same done image by image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.head import Head
from topwork.probe import Probe
from topwork.statistics import Z90, Z95

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FORMULA = "2"
"""Raised by every change that can change it; one kept under another is not read."""

REPLICATES = 500
"""Bootstrap samples: the Monte-Carlo error of the mean is then 1/22 of one sample's spread."""

AT_ONCE = 4_000_000
"""Values of one product (32 MB), so that memory stays flat: fewer samples at once where there are more images."""

TIE = 1e-9  # weighed counts this close are equal but for rounding


@dataclass(frozen=True)
class Selected:
    """Out-of-sample correctness of everything that the plan chose from."""

    probes: tuple[Probe, ...]  # one per place, the cheapest first
    head: Head  # of one depth
    chosen: int  # index of the chosen place
    delta: float
    groups: Ints | None
    fixed: bool = False  # the cut was given, not chosen
    importance: Floats | None = None  # (n,) how much each image weighed in the choice
    several: tuple[tuple[NDArray[Any], float], ...] = ()  # heads of several depths that were tested, in order:
    # (n,) where each is right, and the gain that it must be shown to exceed


def corrected_accuracy(selected: Selected, *, seed: int, replicates: int = REPLICATES) -> float:
    """Accuracy of the whole procedure, less what choosing by the same images added to it."""
    squared = np.stack([p.squared for p in selected.probes], axis=1)  # (n, K, L)
    n = len(squared)
    member = np.arange(n) if selected.groups is None else np.unique(selected.groups, return_inverse=True)[1]
    count = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(replicates)])
    sums = _Sums.of(member, count, np.ones(n) if selected.importance is None else selected.importance)
    # All that the samples need of the images is summed over their groups here, once.
    errors = sums(squared.reshape(n, -1))
    correct = np.stack([p.correct for p in selected.probes], axis=1).astype(np.float64)
    right = sums(correct.reshape(n, -1))
    step = max(1, AT_ONCE // max(count, right.shape[1]))
    shares = [
        _judged(selected, _Drawn(drawn[i : i + step].astype(np.float64), sums), errors, right, correct)
        for i in range(0, replicates, step)
    ]
    return float(np.concatenate(shares).mean())


@dataclass(frozen=True)
class _Sums:
    """Sums over the groups of images that are drawn together: (n, J) to (G, J)."""

    member: Ints  # (n,) in 0..G-1
    order: Ints  # (n,) rows, group by group
    starts: Ints  # (G,) where in it each group begins
    size: Floats  # (G,) images
    importance: Floats  # (n,)
    weight: Floats  # (G,) their importance

    @staticmethod
    def of(member: Ints, count: int, importance: Floats) -> _Sums:
        order = np.argsort(member, kind="stable")
        size = np.bincount(member, minlength=count)
        starts = np.cumsum(size) - size
        weight = np.bincount(member, weights=importance, minlength=count).astype(np.float64)
        return _Sums(member, order, starts, size.astype(np.float64), importance, weight)

    def __call__(self, values: NDArray[Any]) -> Floats:
        """Each row weighed by its importance."""
        weighed: Floats = self.importance[:, None] * values
        if (self.member == np.arange(len(values))).all():  # each row is its own group, in their order
            return weighed
        summed: Floats = np.add.reduceat(weighed[self.order], self.starts, axis=0)
        return summed


@dataclass(frozen=True)
class _Drawn:
    """Bootstrap samples: how often each holds each group, (R, G). A group that is drawn twice is two groups."""

    times: Floats
    sums: _Sums

    def picked(self, rows: NDArray[Any]) -> _Drawn:
        """Only these samples."""
        return _Drawn(self.times[rows], self.sums)

    def shares(self, right: Floats) -> Floats:
        """(R, J) weighed shares of sums over groups (G, J)."""
        result: Floats = self.times @ right / (self.times @ self.sums.weight)[:, None]
        return result

    def gains(self, difference: Floats) -> tuple[Floats, Floats]:
        """(R, J) means and standard errors of paired differences, given as sums over groups (G, J).

        As of statistics.paired_errors, with one image of difference added (plan.deficits).
        """
        images, groups = self.times @ self.sums.size, self.times.sum(axis=1)
        scale = images / (self.times @ self.sums.weight)  # importance of mean 1 in each sample
        mean = self.shares(difference)
        around = scale[:, None] ** 2 * (self.times @ difference**2)
        around -= 2 * scale[:, None] * mean * ((self.times * self.sums.size) @ difference)
        around += mean**2 * (self.times @ self.sums.size**2)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.sqrt((groups / (groups - 1))[:, None] * np.maximum(around, 0)) / images[:, None]
        spread[groups < 2] = np.inf
        one = (self.times @ self.sums.weight**2) / (self.times @ self.sums.weight) ** 2
        return mean, np.hypot(spread, one[:, None])


def _judged(selected: Selected, drawn: _Drawn, errors: Floats, right: Floats, correct: Floats) -> Floats:
    """The share that each sample's choice has right of the images that are not in it; of the samples that lack some."""
    n, places, penalties = correct.shape
    penalty = (drawn.times @ errors).reshape(-1, places, penalties).argmin(axis=2)  # (R, K)
    column = np.arange(places) * penalties + penalty  # of the flattened (K, L)
    cut = np.full(len(column), selected.chosen)
    if not selected.fixed:
        cut = _cuts(drawn, right, column, selected.delta)
    column = np.take_along_axis(column, cut[:, None], axis=1)[:, 0]
    flat = correct.reshape(n, -1)
    out = (drawn.times == 0)[:, drawn.sums.member]
    left = out.sum(axis=1)
    found: Floats = np.zeros(len(column))

    def judge(samples: Ints, hit: Floats) -> None:
        found[samples] = (out[samples] @ hit) / np.maximum(1, left[samples])

    def ridge(samples: Ints) -> None:
        for one in np.unique(column[samples]):
            judge(samples[column[samples] == one], flat[:, one])

    ridge(np.flatnonzero(cut != selected.chosen))
    fitted, again = selected.head, np.flatnonzero(cut == selected.chosen)
    logistic = _logistic(fitted, drawn.picked(again))
    for one in np.unique(logistic):
        samples = again[logistic == one]
        baseline = (fitted.ridge_folds if one < 0 else fitted.correct[:, one]).astype(np.float64)
        for several, least in selected.several:
            gain, error = drawn.picked(samples).gains(drawn.sums((several - baseline)[:, None]))
            taken = gain[:, 0] - Z90 * error[:, 0] > least
            judge(samples[taken], several.astype(np.float64))
            samples = samples[~taken]
        if one >= 0 or fitted.several:  # of several labels calibrated label by label, which changes their order
            judge(samples, baseline)
        else:
            ridge(samples)
    judged: Floats = found[left > 0]
    return judged


def _cuts(drawn: _Drawn, right: Floats, column: Ints, delta: float) -> Ints:
    """The place that each sample chooses, (R,), by the rule of plan.cheapest: each at its penalty's column (R, K)."""
    accuracy = np.take_along_axis(drawn.shares(right), column, axis=1)
    best = (accuracy >= accuracy.max(axis=1, keepdims=True) - TIE).argmax(axis=1)
    reference = np.take_along_axis(column, best[:, None], axis=1)[:, 0]
    within = np.zeros(column.shape, dtype=bool)
    for one in np.unique(reference):
        samples = np.flatnonzero(reference == one)
        of_best = right[:, [one]] - right
        mean, error = (
            np.take_along_axis(values, column[samples], axis=1) for values in drawn.picked(samples).gains(of_best)
        )
        within[samples] = mean + Z95 * error <= delta + 1e-12
    within[np.arange(len(best)), best] = True  # its deficit to itself is certain
    first: Ints = within.argmax(axis=1)
    return first


def _logistic(fitted: Head, drawn: _Drawn) -> Ints:
    """The penalty at which each sample keeps logistic regression instead of ridge, (R,); -1 where it does not."""
    none = np.full(len(drawn.times), -1)
    if not fitted.loss.shape[1]:
        return none
    losses = drawn.shares(drawn.sums(fitted.loss))
    best = losses.argmin(axis=1)
    mine = np.arange(len(best)), best
    if fitted.several:
        better = losses[mine] < drawn.shares(drawn.sums(fitted.ridge_loss[:, None]))[:, 0]
    else:
        accuracy = drawn.shares(drawn.sums(fitted.correct))
        better = accuracy[mine] > drawn.shares(drawn.sums(fitted.ridge_folds[:, None]))[:, 0] + TIE
    kept: Ints = np.where(better, best, none)
    return kept
