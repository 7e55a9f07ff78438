"""How sure can one be of a share, or of the difference of two?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959964
"""Two-sided 95% quantile of the normal distribution."""


Z90 = 1.281552
"""One-sided 90% quantile of the normal distribution."""


def wilson(share: float, n: float) -> tuple[float, float]:
    """95% interval of a share of n independent images (Wilson, 1927): holds near 0 and 1, and for small n.

    `share` need not be a multiple of 1/n. Returns (low, high); (0, 1) for n = 0.
    """
    if n <= 0:
        return 0.0, 1.0
    z2 = Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def independent(groups: NDArray[np.int64] | None, n: int, importance: NDArray[np.float64] | None = None) -> float:
    """How many independent images n images in groups are worth: (sum g)^2 / sum g^2 over what the groups weigh.

    Kish's effective number; that of the groups where they are of one size.
    """
    weights = np.ones(n) if importance is None else importance
    if groups is not None:
        weights = np.bincount(np.unique(groups, return_inverse=True)[1], weights=weights).astype(np.float64)
    return float(weights.sum() ** 2 / (weights**2).sum())


def promised(
    scores: NDArray[np.float64],  # (n,)
    groups: NDArray[np.int64] | None = None,  # (n,) images that belong together
) -> NDArray[np.float64]:
    """For 0%, 1%, ... 100%: the score that one more, drawn like the others, stays at or below with such a chance.

    The score of rank ceil((n + 1) share) from below, which holds for any n and any distribution (Vovk, Gammerman and
    Shafer, 2005). Of groups each weighs alike, so that it holds for an image of a new group (Lee, Barber and Willett,
    2023). Infinite where there are too few for it: 101 numbers.
    """
    order = np.argsort(scores, kind="stable")
    member = np.arange(len(scores)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(member)
    ordered = np.concatenate([scores[order].astype(np.float64), [np.inf]])
    # In images where each is alone: whole numbers, so that no rounding moves a rank.
    reached = np.concatenate([np.cumsum(1 / sizes[member[order]]), [np.inf]])
    wanted = np.arange(101) * (len(sizes) + 1) / 100
    result: NDArray[np.float64] = ordered[np.searchsorted(reached, wanted - 1e-9)]
    return result


def percent(share: float) -> int:
    """The whole percent that is at least this share: where in `promised` it stands."""
    return math.ceil(100 * share - 1e-9)


def paired_errors(
    differences: NDArray[np.float64],  # (n, k) per image, for each of k comparisons
    groups: NDArray[np.int64] | None = None,  # (n,) images of one group count as one draw
) -> NDArray[np.float64]:  # (k,) standard error of each mean
    """Standard error of a mean of paired differences: sd(d) / sqrt(n), between groups where there are any.

    With groups: the cluster-robust error, sqrt(G/(G-1) sum_g (sum_{i in g} d_i - mean)^2) / n.
    """
    n = len(differences)
    if n < 2:
        return np.full(differences.shape[1], np.inf)
    centred = differences - differences.mean(axis=0)
    if groups is None or len(np.unique(groups)) == n:
        sums, count = centred, n
    else:
        _, index = np.unique(groups, return_inverse=True)
        count = int(index.max()) + 1
        sums = np.zeros((count, differences.shape[1]))
        np.add.at(sums, index, centred)
    if count < 2:
        return np.full(differences.shape[1], np.inf)
    result: NDArray[np.float64] = np.sqrt(count / (count - 1) * (sums**2).sum(axis=0)) / n
    return result


def paired_gain(
    right: NDArray[Any],  # (n,) of the challenger, on images that neither side has seen
    baseline: NDArray[Any],  # (n,) of what it would replace
    groups: NDArray[np.int64] | None = None,  # (n,) images of one group count as one draw
    importance: NDArray[np.float64] | None = None,  # (n,) how much each image weighs, of any mean
) -> tuple[float, float]:
    """Accuracy over the baseline's on the same images, and its lower one-sided 90% bound: better is what is above 0.

    As for cuts (plan.deficits), one image of difference is added to the error: that n images agree is no certainty.
    """
    n = len(right)
    weight = np.ones(n) if importance is None else importance / importance.mean()
    difference = (weight * (right.astype(np.float64) - baseline))[:, None]
    value = float(difference.mean())
    error = float(np.hypot(paired_errors(difference, groups)[0], 1 / independent(groups, n, weight)))
    return value, value - Z90 * error


def class_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """n / (C n_c), so that classes weigh alike and an average image weighs 1: (C,). Absent classes weigh 0."""
    counts = np.bincount(labels, minlength=classes)
    present = counts > 0
    weights = np.zeros(classes)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights
