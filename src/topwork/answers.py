"""What does a model say of an image, once its scores are there? NumPy alone: whatever computed the scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.errors import ImageError, UsageError
from topwork.records import ModelFacts
from topwork.statistics import percent

Floats = NDArray[np.float32]

ROUNDING = 1e-6
"""Probabilities of float32 that are this close are the same."""

MOST_LEVEL = 0.99
"""Of prediction sets: they rest on scores at whole percents, and 100% takes all classes."""


@dataclass(frozen=True)
class Seen:
    """What a model sees in b images."""

    scores: Floats  # (b, C) before the temperature
    pooled: Floats  # (b, 2 channels of all taps): tap by tap the average of each channel, then the maximum of each
    maps: tuple[Floats, ...]  # (b, c, h, w) of each tap


@dataclass(frozen=True)
class Prediction:
    """The answer for one image. `error` says why there is none; then the rest is empty.

    Where an image may have several labels, `label` is the most probable of those that were given.
    """

    source: str
    label: str | None  # None, too, where an image may have several labels and has none
    probability: float | None  # of `label`
    probabilities: dict[str, float]
    error: str | None = None
    labels: tuple[
        str, ...
    ] = ()  # all that were given, the most probable first; at most one unless there may be several
    unknown: bool | None = None  # whether it is like none of the images learnt from; None where that cannot be told
    unknown_score: float | None = None  # how unlike them it is: theirs are about 1
    prediction_set: tuple[str, ...] | None = None  # where one was asked for: the classes it may be, likeliest first


def probabilities(scores: Floats, facts: ModelFacts) -> Floats:  # (b, C) before the temperature
    """Calibrated probabilities: (b, C). Rows sum to 1, unless an image may have several labels."""
    calm = scores / np.float32(facts.temperature)
    return sigmoid(calm) if facts.multi_label else softmax(calm)


def softmax(scores: Floats) -> Floats:  # (b, C)
    """Shares of each row that sum to 1."""
    grown = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Floats = grown / grown.sum(axis=1, keepdims=True)
    return shares


def sigmoid(scores: Floats) -> Floats:
    """1 / (1 + e^-x), where e^x would overflow, too."""
    shrunk = np.exp(-np.abs(scores))
    shares: Floats = np.where(scores >= 0, np.float32(1), shrunk) / (1 + shrunk)
    return shares


def among(shares: NDArray[Any], bound: Any) -> NDArray[np.bool_]:  # (n, C) and a number, or (n, 1)
    """Which classes are in each prediction set: those whose 1 - probability is up to the bound, and the likeliest."""
    inside: NDArray[np.bool_] = shares >= 1 - np.asarray(bound) - ROUNDING
    inside[np.arange(len(shares)), shares.argmax(axis=1)] = True
    return inside


@dataclass(frozen=True)
class Rule:
    """From which score on an image is unknown, and which classes are in its set. None: not told."""

    limit: float | None = None
    bound: float | None = None

    @classmethod
    def of(cls, facts: ModelFacts, *, sets: float | None = None, false_alarm: float | None = None) -> Rule:
        """By what the model was fitted with, and what is asked of it. Raises UsageError where it cannot be given."""
        return cls(_limit(facts, false_alarm), _bound(facts, sets))


def _limit(facts: ModelFacts, false_alarm: float | None) -> float | None:
    found = facts.unknown
    if false_alarm is None:
        return None if found is None else found.threshold
    if found is None:
        raise UsageError(f"a rate of false alarms of {false_alarm}: this model has no scores to take a threshold from")
    if not 0 < false_alarm < 1 or (found.n + 1) * false_alarm < 1:
        raise UsageError(
            f"a rate of false alarms of {false_alarm}: expected a share from {1 / (found.n + 1):.2g} (the {found.n}"
            " images behind it can promise no less) to 1, such as 0.05"
        )
    return found.quantiles[percent(1 - false_alarm)]


def _bound(facts: ModelFacts, level: float | None) -> float | None:
    if level is None:
        return None
    if facts.sets is None:
        raise UsageError(
            f"prediction sets at {level}: this model has none"
            + (", since an image may have several labels" if facts.multi_label else "; fit again")
        )
    if not 0 < level <= MOST_LEVEL:
        raise UsageError(f"prediction sets at {level}: expected a share above 0 and up to {MOST_LEVEL}, such as 0.9")
    return facts.sets.quantiles[percent(level)]


def answer(
    source: Any,
    result: ImageError | Floats,  # (C,) probabilities
    facts: ModelFacts,
    score: float | None = None,  # how unlike the training images it is, where that can be told
    rule: Rule = Rule(),
) -> Prediction:
    """What is said of one image, or what was wrong with it."""
    name = str(source) if isinstance(source, (str, Path)) else f"<{type(source).__name__}>"
    if isinstance(result, ImageError):
        return Prediction(name, None, None, {}, str(result))
    shares = {c: float(p) for c, p in zip(facts.classes, result, strict=True)}
    strange = None if score is None or rule.limit is None else bool(score > rule.limit)
    inside = None
    if rule.bound is not None:
        mask = among(result[None], rule.bound)[0]
        inside = tuple(facts.classes[k] for k in np.argsort(-result, kind="stable") if mask[k])
    more = {"unknown": strange, "unknown_score": None if strange is None else score, "prediction_set": inside}
    best = [int(result.argmax())]
    if facts.multi_label:
        order = np.argsort(-result, kind="stable")
        best = [int(k) for k in order if float(result[k]) >= facts.thresholds[k]]
    if not best:
        return Prediction(name, None, None, shares, **more)  # type: ignore[arg-type]
    labels = tuple(facts.classes[k] for k in best)
    return Prediction(name, labels[0], float(result[best[0]]), shares, labels=labels, **more)  # type: ignore[arg-type]
