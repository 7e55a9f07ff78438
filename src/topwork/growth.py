"""How many more images?

A head on the chosen cut is fitted to an eighth, a quarter, half and all of the images, and each time every image is
judged by a head that has not seen it. Through these accuracies goes a power law, a - b n^-c (Hestness et al., 2017),
which is followed to twice and four times the images, with an interval: no more is claimed than the curve shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.head import folds
from topwork.probe import RANK_TOLERANCE, Factors, Floats, Ints, Standardised, probe
from topwork.records import Growth, GrowthPoint
from topwork.statistics import independent

FORMULA = "1"
"""Raised by every change that can change a number here; results kept under another one are not read."""

PARTS = 8
"""Parts that the images are dealt into, classes in proportion, groups whole. Heads are fitted to each part, to pairs of
them, to halves: all images are judged at each size, by 8, 4 and 2 heads."""

ROUNDS, ONE_ROUND_FROM = 2, 1000
"""Times that they are dealt out; once from so many images on: more images need fewer draws, and a fit to half of them
costs more than in proportion."""

LARGEST = 2048
"""Images that parts are made of at most: four times as many would cost 64 times as much. The accuracy with all images
is known anyway, and the curve goes through it."""

LEAST_IMAGES, LEAST_PER_CLASS = 40, 4
"""Different images below which no curve is drawn, and per class on average: an eighth of fewer holds most classes
not even once."""

RATES = np.geomspace(0.1, 2.0, 14)
"""Exponents c that are thought possible: learning curves of image classifiers have been seen to fall with 0.1 to 0.7
(Hestness et al., 2017); steeper ones are those of a task that is soon learnt."""

REPLICATES = 400
"""Bootstrap samples over images, groups whole, and over the draws: each end of the interval rests on ten of them."""

NARROW = 0.04
"""Width of the interval up to which it says something: over four points, "+2" may as well be nothing."""

SPREAD = 0.01
"""Standard error that is added to each size's accuracy: a real curve is no exact power law."""


@dataclass(frozen=True)
class Measured:
    """Where heads on parts of the images were right, out of sample."""

    sizes: Floats  # (S,) images that they were fitted to, rising; the last one is all
    right: tuple[NDArray[np.bool_], ...]  # S of (draws, n)


def dealt(labels: Ints, groups: Ints | None, seed: int) -> Ints:
    """Rows that are dealt out: all, or of more than LARGEST a part with classes in proportion, groups whole."""
    n = len(labels)
    if n <= LARGEST:
        return np.arange(n)
    return np.flatnonzero(folds(labels, groups, seed, -(-n // LARGEST)) == 0)


def measure(
    x: NDArray[np.float32],  # (n, d) pooled features at the chosen cut, of those that are dealt out
    labels: Ints,  # (n,) in 0..classes-1
    classes: int,
    whole: NDArray[np.bool_],  # (n,) where the probe of all images is right, leave-group-out
    *,
    groups: Ints | None = None,  # (n,) rows of one group are in one part
    importance: Floats | None = None,  # (n,) how much each row weighs, of mean 1
    images: int | None = None,  # that the probe behind `whole` was fitted to; default n
    seed: int = 0,
) -> Measured:
    """Ridge on an eighth, a quarter and half of the images, as on all: the penalty chosen by leave-one-out.

    Inside a part, images are judged leave-group-out; all others by the head on the part. All fits share one matrix of
    scalar products: a subset costs an eigendecomposition of its own size.
    """
    n = len(labels)
    weight = np.ones(n) if importance is None else importance
    standard = Standardised.of(x, weight / weight.mean())
    z = standard(x)
    gram = z @ z.T
    rounds = ROUNDS if n < ONE_ROUND_FROM else 1
    sizes, right = [], []
    for together in (1, 2, 4):
        drawn = []
        for round_ in range(rounds):
            part = folds(labels, groups, seed + round_, PARTS)
            for first in range(0, PARTS, together):
                inside = np.flatnonzero((part >= first) & (part < first + together))
                drawn.append(_right(gram, x.shape[1], labels, classes, inside, groups, weight))
        sizes.append(n * together / PARTS)
        right.append(np.stack(drawn))
    return Measured(np.array([*sizes, float(images or n)]), (*right, whole[None]))


def _right(
    gram: Floats, d: int, labels: Ints, classes: int, inside: Ints, groups: Ints | None, weight: Floats
) -> NDArray[np.bool_]:
    """(n,) where ridge fitted to the rows `inside` is right, on them leave-group-out."""
    n, m = len(labels), len(inside)
    right = np.zeros(n, dtype=bool)
    outside = np.setdiff1d(np.arange(n), inside, assume_unique=True)
    a = weight[inside] / weight[inside].mean()
    share = a / m
    root = np.sqrt(a)
    towards = gram[:, inside] @ share  # each row's product with the part's mean: centring without the features
    centred = gram[:, inside] - towards[:, None] - towards[inside] + share @ towards[inside]
    k = root[:, None] * centred[inside] * root
    unit = float(np.trace(k)) / d
    s, u = np.linalg.eigh(k)
    keep = s > max(s[-1], 0.0) * RANK_TOLERANCE
    if unit <= 0 or not keep.any():
        right[:] = labels == np.bincount(labels[inside], weights=a, minlength=classes).argmax()
        return right
    s, u = s[keep], u[:, keep]
    factors = Factors(s, None, u, unit, root)
    nothing = np.broadcast_to(np.float32(0), (m, d))  # U is all that the probe needs of the features
    standard = Standardised(np.zeros(d), np.ones(d))
    of_part = None if groups is None else groups[inside]
    found = probe(nothing, labels[inside], classes, groups=of_part, importance=a, standard=standard, factors=factors)
    right[inside] = found.correct[:, found.best]
    mean = np.bincount(labels[inside], weights=a, minlength=classes) / m
    targets = root[:, None] * (np.eye(classes)[labels[inside]] - mean)
    alpha = root[:, None] * (u @ ((u.T @ targets) / (s + found.penalties[found.best] * unit)[:, None]))
    right[outside] = (centred[outside] @ alpha + mean).argmax(axis=1) == labels[outside]
    return right


def follow(
    found: Measured,
    *,
    groups: Ints | None = None,  # (n,) of the judged rows
    importance: Floats | None = None,  # (n,) of the judged rows
    seed: int = 0,
) -> Growth:
    """The power law through the accuracies, and what it promises, with intervals over images, draws and exponents.

    Each bootstrap sample draws images and draws anew and takes an exponent as likely as its curve fits; so the interval
    also holds what four points cannot tell. a is at most 1, b at least 0: more images never harm.
    """
    n = found.right[0].shape[1]
    weight = np.ones(n) if importance is None else importance
    rng = np.random.default_rng(seed)
    member = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(member.max()) + 1
    drawn = np.stack([np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(REPLICATES)])
    by_image = drawn[:, member] * weight
    by_image /= by_image.sum(axis=1, keepdims=True)
    points = np.array([float((r @ weight).mean() / weight.sum()) for r in found.right])
    again = np.stack([_drawn(by_image @ r.T, rng) for r in found.right], axis=1)  # (REPLICATES, S)
    # What sets the sizes apart is far surer than where they all lie: the errors are those about the common level.
    error = np.hypot((again - again.mean(axis=1, keepdims=True)).std(axis=0), SPREAD)
    _, b, fits = _curves(found.sizes, again, error)
    size = found.sizes[-1]
    chosen = _likely(fits, rng)
    b_one, c_one = b[np.arange(len(b)), chosen], RATES[chosen]
    # One image of difference is added, as for cuts (plan.deficits): that n images agree is no certainty.
    image = rng.normal(0, 1 / independent(groups, n, weight), REPLICATES)
    twice, four = (np.maximum(0.0, b_one * (size**-c_one - (k * size) ** -c_one) + image) for k in (2.0, 4.0))
    own_a, own_b, own_fits = _curves(found.sizes, points[None], error)
    odds = np.exp(-(own_fits[0] - own_fits[0].min()) / 2)
    odds /= odds.sum()
    best = int(odds.argmax())
    promised = [
        _promised(float((odds * own_b[0] * (size**-RATES - (k * size) ** -RATES)).sum()), drawn_gains)
        for k, drawn_gains in ((2.0, twice), (4.0, four))
    ]
    tells = promised[0][2] - promised[0][1] <= NARROW
    measured = tuple(GrowthPoint(float(s), float(p)) for s, p in zip(found.sizes, points, strict=True))
    (gain, low, high), (gain4, low4, high4) = promised
    return Growth(
        round(size), measured, float(own_a[0, best]), float(own_b[0, best]), float(RATES[best]),
        gain, low, high, gain4, low4, high4, tells, _sentence(promised, tells=tells),
    )  # fmt: skip


def _promised(gain: float, drawn: Floats) -> tuple[float, float, float]:
    """A gain with its 95% interval, which holds it."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return gain, min(float(low), gain), max(float(high), gain)


def enough(labels: Ints, classes: int, groups: Ints | None = None) -> bool:
    """Whether there are different images enough for a curve."""
    different = len(labels) if groups is None else len(np.unique(groups))
    return different >= max(LEAST_IMAGES, LEAST_PER_CLASS * classes)


def _drawn(accuracy: Floats, rng: np.random.Generator) -> Floats:  # (REPLICATES, draws)
    """Each row's mean over draws that are drawn again."""
    chosen = rng.integers(0, accuracy.shape[1], accuracy.shape)
    result: Floats = np.take_along_axis(accuracy, chosen, axis=1).mean(axis=1)
    return result


def _curves(sizes: Floats, points: Floats, error: Floats) -> tuple[Floats, Floats, Floats]:  # (S,), (R, S), (S,)
    """For each row of points and each of RATES, the a <= 1 and b >= 0 of least weighted squares, and that: (R, C)."""
    w = 1 / error**2
    basis = sizes[:, None] ** -RATES  # (S, C)
    mean_x, mean_y = w @ basis / w.sum(), points @ w / w.sum()
    x = basis - mean_x
    b = np.maximum(0.0, -(points @ (w[:, None] * x)) / (w @ x**2))
    a = mean_y[:, None] + b * mean_x
    over = a > 1
    b = np.where(over, np.maximum(0.0, ((1 - points) @ (w[:, None] * basis)) / (w @ basis**2)), b)
    a = np.minimum(a, 1.0)
    residual = points[:, :, None] - (a[:, None] - b[:, None] * basis)
    return a, b, np.einsum("s,rsc->rc", w, residual**2)


def _likely(fits: Floats, rng: np.random.Generator) -> Ints:  # (R, C)
    """One exponent per row, drawn as likely as it fits."""
    odds = np.exp(-(fits - fits.min(axis=1, keepdims=True)) / 2)
    cumulated = odds.cumsum(axis=1)
    result: Ints = (cumulated < rng.random((len(fits), 1)) * cumulated[:, -1:]).sum(axis=1)
    return result


def _sentence(promised: Sequence[tuple[float, float, float]], *, tells: bool) -> str:
    (twice, low, high), (four, low4, high4) = [[100 * v for v in one] for one in promised]
    if not tells:
        return (
            f"How much more images would bring cannot be told: twice as many, {low:+.1f} to {high:+.1f} points (95%)."
        )
    return (
        f"Twice the images would bring about {twice:+.1f} points (95%: {low:+.1f} to {high:+.1f}), four times"
        f" {four:+.1f} ({low4:+.1f} to {high4:+.1f})."
    )
