"""What does a model say of an image, once its scores are there? NumPy alone: whatever computed the scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.errors import ImageError
from topwork.records import ModelFacts

Floats = NDArray[np.float32]


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


def answer(source: Any, result: ImageError | Floats, facts: ModelFacts) -> Prediction:  # (C,) probabilities
    """What is said of one image, or what was wrong with it."""
    name = str(source) if isinstance(source, (str, Path)) else f"<{type(source).__name__}>"
    if isinstance(result, ImageError):
        return Prediction(name, None, None, {}, str(result))
    shares = {c: float(p) for c, p in zip(facts.classes, result, strict=True)}
    best = [int(result.argmax())]
    if facts.multi_label:
        order = np.argsort(-result, kind="stable")
        best = [int(k) for k in order if float(result[k]) >= facts.thresholds[k]]
    if not best:
        return Prediction(name, None, None, shares)
    labels = tuple(facts.classes[k] for k in best)
    return Prediction(name, labels[0], float(result[best[0]]), shares, labels=labels)
