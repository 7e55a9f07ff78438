"""How far up do scores put the labels that are true?

Average precision: going down from the highest score, the share of what is true among what was passed, averaged over
what is true. Of one image over its labels it says how right an answer of several labels is; of one label over the
images, how well the label is found. Equal scores are passed together, as scikit-learn does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


FEW = 4.0
"""Labels per image up to which comparing each one with all is quicker than sorting them. No effect on the result."""


def multi_hot(labels: Sequence[Sequence[int]], classes: int) -> Bools:
    """Which labels each image has: (n, C), from the indices of its labels."""
    truth = np.zeros((len(labels), classes), dtype=bool)
    for row, mine in zip(truth, labels, strict=True):
        row[list(mine)] = True
    return truth


@dataclass(frozen=True)
class Order:
    """Rows of scores (m, k), each sorted from the highest down, with what is true."""

    order: NDArray[np.int64]  # (m, k)
    true: Bools  # (m, k) in that order
    end: NDArray[np.int64]  # (m, k) the last place that has the same score

    @staticmethod
    def of(scores: NDArray[np.floating], truth: Bools) -> Order:  # (m, k) each
        """Sort every row once; averages with any weights then cost sums alone."""
        order = np.argsort(-scores, axis=1, kind="stable")
        ranked = np.take_along_axis(scores, order, axis=1)
        last = np.ones(scores.shape, dtype=bool)
        last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
        width = scores.shape[1]
        ends = np.where(last, np.arange(width), width)
        end = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
        return Order(order, np.take_along_axis(truth, order, axis=1), end)

    def average_precision(self, weight: Floats | None = None) -> Floats:  # weight: (k,)
        """Of each row: (m,). NaN where nothing that is true has any weight."""
        w = np.ones(self.order.shape) if weight is None else weight[self.order]
        true = w * self.true
        passed = np.take_along_axis(np.cumsum(w, axis=1), self.end, axis=1)
        found = np.take_along_axis(np.cumsum(true, axis=1), self.end, axis=1)
        total = true.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(true > 0, true * (found / passed), 0.0).sum(axis=1)
            result: Floats = np.where(total > 0, share / total, np.nan)
        return result


def rightness(scores: NDArray[np.floating], truth: Bools, boundary: float) -> Floats:  # (n, C) each
    """How right the ranking of an image's labels is, 0..1: (n,). Its mean is label-ranking average precision.

    An image without labels has one that is called "none", as it were, with the score `boundary`, from which on a label
    counts as given: 1 where no label reaches it, 1/2 where one does, 1/3 where two do.
    """
    has = truth.sum(axis=1)
    if has.sum() <= FEW * len(truth):
        image, label = np.nonzero(truth)
        passed = scores[image] >= scores[image, label][:, None]
        share = (passed & truth[image]).sum(axis=1) / passed.sum(axis=1)
        found = np.bincount(image, weights=share, minlength=len(truth)) / np.maximum(1, has)
    else:
        found = Order.of(scores, truth).average_precision()
    none = 1 / (1 + (scores >= boundary).sum(axis=1))
    result: Floats = np.where(has > 0, found, none)
    return result


def average_precision(scores: NDArray[np.floating], truth: Bools) -> Floats:  # (n, C) each
    """Of each label over the images: (C,). NaN for a label that no image has."""
    return Order.of(scores.T, truth.T).average_precision()
