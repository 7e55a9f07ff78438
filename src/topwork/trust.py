"""When has a model to say that it does not know, and how many classes must it name to be right as often as promised?

Both are order statistics of images that the model did not learn from (split conformal prediction: Vovk, Gammerman and
Shafer, 2005), so they hold for any model. Pure: scores in, records out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.answers import among
from topwork.records import Coverage, Estimate, Sets, Unknown
from topwork.statistics import percent, promised, wilson

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FALSE_ALARM = 0.05
"""Share of images of the classes that may be taken for none of them, unless asked otherwise."""

LEVELS = (0.8, 0.9, 0.95, 0.99)
"""Levels of prediction sets whose coverage is measured."""


def unknown(
    scores: NDArray[
        Any
    ],  # (n,) of images of the classes, out of sample; rise the less an image is like those learnt from
    fold: Ints,  # (n,) images of one fold set no threshold for each other
    judged: NDArray[Any] | None = None,  # (m,) of locked images, if there are any
    *,
    method: str,
    groups: Ints | None = None,  # (n,) images that belong together
    on: str,
    independent: float,  # independent images that the judging ones are worth: the m, else the n
    false_alarm: float = FALSE_ALARM,
) -> Unknown | None:
    """From which score on an image is taken for none of the classes; None where too few images can promise it.

    The share of false alarms is measured on the locked images, else on each fold by a threshold of the others.
    """
    alone = _count(groups, len(scores))
    if (alone + 1) * false_alarm < 1 - 1e-9:
        return None
    place = percent(1 - false_alarm)
    values = promised(scores, groups)
    values = np.where(np.isfinite(values), values, scores.max())
    flagged = _crossed(scores, fold, groups, place) if judged is None else judged > values[place]
    share, n = float(flagged.mean()), len(flagged)
    measured = Estimate(share, *wilson(share, independent), n, on)
    return Unknown(method, false_alarm, float(values[place]), tuple(float(v) for v in values), alone, measured)


def _crossed(scores: NDArray[Any], fold: Ints, groups: Ints | None, place: int) -> Bools:
    """Whether each is above the threshold that the other folds set."""
    found = np.zeros(len(scores), dtype=bool)
    for k in np.unique(fold):
        rest = fold != k
        found[~rest] = scores[~rest] > promised(scores[rest], None if groups is None else groups[rest])[place]
    return found


def _count(groups: Ints | None, n: int) -> int:
    """Images that stand for themselves: groups, where there are any."""
    return n if groups is None else len(np.unique(groups))


def sets(
    probabilities: Floats,  # (n, C) calibrated, out of sample
    labels: Ints,  # (n,)
    fold: Ints,  # (n,) images of one fold set no threshold for each other
    judged: tuple[Floats, Ints] | None = None,  # (m, C) and (m,) of locked images, if there are any
    *,
    groups: Ints | None = None,  # (n,) images that belong together
    on: str,
    independent: float,  # independent images that the judging ones are worth: the m, else the n
) -> Sets:
    """What prediction sets rest on, and how often they hold: on the locked images, else on each fold by the others."""
    missed = _missed(probabilities, labels)
    values = bounds(missed, groups)
    found = []
    for level in LEVELS:
        place = percent(level)
        if judged is None:
            bound = np.ones(len(labels))
            for k in np.unique(fold):
                rest = fold != k
                bound[~rest] = bounds(missed[rest], None if groups is None else groups[rest])[place]
            found.append(_coverage(probabilities, labels, bound, level, on, independent))
        else:
            found.append(_coverage(*judged, np.full(len(judged[1]), values[place]), level, on, independent))
    return Sets(tuple(float(v) for v in values), _count(groups, len(labels)), tuple(found))


def coverage(given: Sets, probabilities: Floats, labels: Ints, *, on: str, independent: float) -> tuple[Coverage, ...]:
    """How often the sets of a model hold on images that it has not seen: (n, C) probabilities, (n,) labels."""
    return tuple(
        _coverage(probabilities, labels, np.full(len(labels), given.quantiles[percent(level)]), level, on, independent)
        for level in LEVELS
    )


def bounds(missed: Floats, groups: Ints | None = None) -> Floats:  # (n,) 1 - probability of the true class
    """For 0%, ... 100%: up to which 1 - probability a class is in the set; 1, all classes, where n is too small."""
    values: Floats = np.minimum(promised(missed, groups), 1.0)
    return values


def _missed(probabilities: Floats, labels: Ints) -> Floats:
    missed: Floats = 1 - probabilities[np.arange(len(labels)), labels]
    return missed


def _coverage(
    probabilities: Floats, labels: Ints, bound: Floats, level: float, on: str, independent: float
) -> Coverage:
    inside = among(probabilities, bound[:, None])
    share = float(inside[np.arange(len(labels)), labels].mean())
    return Coverage(
        level, Estimate(share, *wilson(share, independent), len(labels), on), float(inside.sum(axis=1).mean())
    )
