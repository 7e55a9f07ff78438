"""Which labels are probably wrong?

Confident learning (Northcutt, Jiang and Chuang, Journal of Artificial Intelligence Research 2021) on scores that are
there already: the exact out-of-sample scores of every good cut, and the head's. Groups are left out whole in all of
them, so copies and bursts cannot vouch for each other's label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from topwork.head import temperature
from topwork.plan import deficits
from topwork.records import Suspect, Suspects

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_IMAGES, LEAST_PER_CLASS = 50, 5
"""Different images below which nobody is suspected, and in a class: with fewer, a probe hardly knows the class from the
others that it has seen of it, and would doubt all of them."""

RARE = 0.03
"""Probability of its own label up to which an image looks wrong: at a planted twentieth of wrong labels, most of those
that look wrong are on all sets tried; without this bound less than a third on the hardest (bench/labels.py)."""

LISTED = 1000
"""Suspects that are kept: nobody looks at more."""


@dataclass(frozen=True)
class Found:
    """Suspected rows, the most suspicious first; of all that confident learning counts."""

    rows: Ints  # (m,)
    likely: Ints  # (m,) the class that the voters take them for
    confidence: Floats  # (m,) probability of it, mean over the voters
    label_probability: Floats  # (m,) that of the label


def good(
    correct: NDArray[np.bool_],  # (n, P) out of sample, of each place, the cheapest first
    groups: Ints | None = None,
    importance: Floats | None = None,
    *,
    delta: float,
) -> list[int]:
    """The places that are not shown to be worse than the best one by more than delta (95%)."""
    return [int(p) for p in np.flatnonzero(deficits(correct, groups, importance).low <= delta)]


def find(
    voters: Iterable[Floats | NDArray[np.float32]],  # each (n, C) scores, out of sample, on any scale
    labels: Ints,  # (n,) in 0..classes-1
    classes: int,
    groups: Ints | None = None,  # (n,) rows of one group are no more than one image
) -> Found:
    """Images that every voter takes for another class, with as much confidence as is usual in that class.

    Each voter's scores become probabilities by the temperature that suits them best; p is their mean. Where no voter
    names the label, p of the likeliest other class j is compared with t_j, its mean over the images labelled j: the
    threshold of confident learning. In a class that is easy, half of the images that rightly belong there lie below
    it, so an image whose label has a probability of at most RARE is suspected in any case. Ranked by the probability
    of the label, the lowest first: it puts more planted errors on top than the margin does (bench/LOG.md). Classes of
    fewer than LEAST_PER_CLASS different images are left out, as label and as likely class.
    """
    n = len(labels)
    rows = np.arange(n)
    total = np.zeros((n, classes))
    doubted = np.ones(n, dtype=bool)
    count = 0
    for scores in voters:
        s = scores.astype(np.float64)
        total += softmax(s / temperature(s, labels), axis=1)
        doubted &= s.argmax(axis=1) != labels
        count += 1
    if not count:
        return _nobody()
    p = total / count
    others = p.copy()
    others[rows, labels] = -1
    likely = others.argmax(axis=1)
    known = np.array([_different(labels == j, groups) >= LEAST_PER_CLASS for j in range(classes)])
    if _different(known[labels], groups) < LEAST_IMAGES:
        return _nobody()
    threshold = np.array([p[labels == j, j].mean() if known[j] else 1.0 for j in range(classes)])
    own, other = p[rows, labels], p[rows, likely]
    confident = (other >= threshold[likely]) | (own <= RARE)
    found = np.flatnonzero(doubted & known[labels] & known[likely] & (other > own) & confident)
    found = found[np.lexsort((found, -other[found], own[found]))]
    return Found(found, likely[found], other[found], own[found])


def judged(labels: Ints, classes: int, groups: Ints | None = None) -> bool:
    """Whether there are images enough for anybody to be suspected."""
    known = np.array([_different(labels == j, groups) >= LEAST_PER_CLASS for j in range(classes)])
    return _different(known[labels], groups) >= LEAST_IMAGES


def record(found: Found, paths: Sequence[str], labels: Ints, classes: Sequence[str], voters: int) -> Suspects:
    """The facts, with names: `paths` (n,) are those of the rows."""
    listed = tuple(
        Suspect(paths[i], classes[labels[i]], classes[likely], float(confidence), float(own))
        for i, likely, confidence, own in zip(
            found.rows[:LISTED], found.likely, found.confidence, found.label_probability, strict=False
        )
    )
    return Suspects(
        len(labels), voters, len(found.rows), int((found.label_probability <= RARE).sum()), listed
    )  # fmt: skip


def _different(mask: NDArray[np.bool_], groups: Ints | None) -> int:
    """How many different images these are."""
    return int(mask.sum()) if groups is None else len(np.unique(groups[mask]))


def _nobody() -> Found:
    return Found(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
