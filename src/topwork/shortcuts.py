"""Is it learning the camera instead of the thing?

Numbers that say nothing of what is in an image, such as its size, or hardly anything, such as its mean colour, are
given to the same probe as the features. Where they alone reach most of what the network knows of the classes, the
network may be learning them. A warning is no proof: where colour is what sets the classes apart, it is none at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from topwork.head import folds
from topwork.probe import CHUNK, Floats, Ints, probe
from topwork.records import FileFacts, Shortcut
from topwork.statistics import Z95, class_weights, independent, paired_errors, wilson

FORMULA = "1"
"""Raised by every change that can change a number here; results kept under another one are not read."""

SHARE = {"size and format": 0.25, "camera": 0.25, "file size": 0.5, "colour": 0.5, "first layers": 0.9}
"""Of what the network knows of the classes, how much is shown (lower 95% bound) to be known without looking at the
thing where it warns. Size, format and camera are no part of what is shown, so a quarter is too much; colour and
the bytes that a picture takes are in part, so half of it; the first layers see colours and edges, and on most sets they
reach two thirds. By these bounds the one set with a known shortcut warns, and none of the others (bench/labels.py)."""

FIRST = 0.05
"""Share of the multiply-adds up to which layers are the first ones: they see patches of a few pixels."""

FOLDS = 10
"""Each head has seen nine tenths of the images. The cuts' have seen all but one: on so few numbers that is the same."""

CATEGORIES = 16
"""Formats, colour modes or cameras that count each by itself, the most frequent ones: rarer ones say nothing."""


def facts(found: Sequence[FileFacts]) -> dict[str, Floats]:
    """Numbers of what files say of themselves: kind to (n, d). Kinds in which all images agree are left out.

    Sizes as logarithms of width, height, proportions and pixels; the file's size as bytes and bytes per pixel.
    """
    width = np.array([max(1, f.width_px) for f in found], dtype=np.float64)
    height = np.array([max(1, f.height_px) for f in found], dtype=np.float64)
    size = np.log(np.stack([width, height, width / height, width * height], axis=1))
    formats = _categories([f"{f.format} {f.mode}" for f in found])
    heavy = np.array([max(1, f.bytes) for f in found], dtype=np.float64)
    kinds = {
        "size and format": np.concatenate([size, formats], axis=1),
        "file size": np.log(np.stack([heavy, heavy / (width * height)], axis=1)),
        "camera": _categories([f.camera for f in found]),
    }
    return {kind: x for kind, x in kinds.items() if x.shape[1] and (np.ptp(x, axis=0) > 0).any()}


def colours(sketches: NDArray[np.uint8]) -> dict[str, Floats]:  # (n, 16, 16, 3)
    """Mean and standard deviation of red, green and blue over the whole image: (n, 6)."""
    found = np.zeros((len(sketches), 6))
    for start in range(0, len(sketches), CHUNK):  # as numbers of eight bytes, all at once would take a lot of memory
        pixels = sketches[start : start + CHUNK].reshape(-1, 16 * 16, 3).astype(np.float64)
        found[start : start + CHUNK] = np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)
    return {"colour": found}


def measure(
    numbers: Mapping[str, Floats],  # kind to (n, d)
    labels: Ints,  # (n,) in 0..classes-1
    classes: int,
    correct: NDArray[np.bool_],  # (n, K) out of sample, at each cut from input to output
    mac_shares: Sequence[float],  # (K,) of the multiply-adds, rising
    groups: Ints | None = None,  # (n,) rows of one group are predicted without any of them
    importance: Floats | None = None,  # (n,) how much each row weighed in the cuts' probes, of mean 1
) -> tuple[Shortcut, ...]:
    """How much of what the best cut knows each kind of numbers, and the first layers, know.

    All out of sample, by the same probe, groups whole. What is right is counted with classes weighing alike: then
    one class for all is right on 1/C, whichever it is, and being right on that class alone is no knowledge. A kind's
    share is (its accuracy - 1/C) / (best accuracy - 1/C); it warns where the paired difference shows that the share is
    above SHARE, and the kind itself to be above 1/C.
    """
    weight = class_weights(labels, classes)[labels]
    chance = 1 / len(np.unique(labels))
    accuracy = (weight[:, None] * correct).mean(axis=0)
    best = int(accuracy.argmax())
    found = [
        _judged(kind, _right(x, labels, classes, groups, importance), correct[:, best], chance, weight, groups)
        for kind, x in numbers.items()
    ]
    first = [k for k, share in enumerate(mac_shares) if share <= FIRST]
    if first:
        k = max(first, key=lambda k: accuracy[k])
        found.append(_judged("first layers", correct[:, k], correct[:, best], chance, weight, groups))
    return tuple(found)


def _right(x: Floats, labels: Ints, classes: int, groups: Ints | None, importance: Floats | None) -> NDArray[np.bool_]:
    """(n,) where ridge on these numbers and their squares is right, out of sample.

    Squares, because a class in the middle of the others cannot be told by a line. Folds with classes in proportion
    instead of leave-one-out: an image that is left out makes its class the rarer one, and where numbers say nothing of
    two classes, each image would be given to the other (right on 33% instead of 67% where one class of three is known).
    """
    scale = x.std(axis=0)
    z = (x - x.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    both = np.concatenate([z, z**2], axis=1).astype(np.float32)
    result = probe(both, labels, classes, groups=folds(labels, groups, 0, FOLDS), importance=importance)
    right: NDArray[np.bool_] = result.correct[:, result.best]
    return right


def _judged(
    kind: str, right: NDArray[np.bool_], best: NDArray[np.bool_], chance: float, weight: Floats, groups: Ints | None
) -> Shortcut:
    accuracy, top = (min(1.0, float((weight * r).mean())) for r in (right, best))  # sums of weights are rounded
    n = independent(groups, len(right), weight)
    low, high = wilson(accuracy, n)
    knows = top - chance
    share = (accuracy - chance) / knows if knows > 0 else math.nan
    # d = right - s best - (1 - s) / C is above 0 where the share is above s: linear in s, so the bound is found by
    # halving; the error has an image of difference added, as everywhere (plan.deficits).
    share_low = _least_share(right, best, chance, weight, groups, n) if knows > 0 else 0.0
    warned = knows > 0 and share_low > SHARE[kind] and low > chance
    share = float(np.clip(share, 0, 1)) if knows > 0 else 0.0
    return Shortcut(
        kind, accuracy, low, high, chance, top, share, float(np.clip(share_low, 0, 1)), warned,
        _sentence(kind, accuracy, low, high, chance, top, warned),
    )  # fmt: skip


def _least_share(
    right: NDArray[np.bool_], best: NDArray[np.bool_], chance: float, weight: Floats, groups: Ints | None, n: float
) -> float:
    """The lower 95% bound of the share, from 0: the largest s at which right - s best - (1 - s) / C is above 0."""
    a, b = weight * (right - chance), weight * (best - chance)

    def above(s: float) -> bool:
        d = (a - s * b)[:, None]
        return float(d.mean()) - Z95 * math.hypot(float(paired_errors(d, groups)[0]), 1 / n) > 0

    low, high = 0.0, 1.0
    if not above(low):
        return 0.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return low


_WHAT = {
    "size and format": "The size, proportions and file format of an image alone",
    "file size": "The number of bytes of a file alone",
    "camera": "The camera that a file names alone",
    "colour": "The mean colour and contrast of the whole image alone",
    "first layers": "The first layers, which see little but colours, edges and noise,",
}


def _sentence(kind: str, accuracy: float, low: float, high: float, chance: float, top: float, warned: bool) -> str:
    told = "tells" if kind in {"camera", "file size"} else "tell"
    evidence = (
        f"{_WHAT[kind]} {told} the classes apart on {accuracy:.1%} (95%: {100 * low:.1f} to {100 * high:.1f}; one class"
        f" for all: {chance:.1%}; the best cut: {top:.1%})"
    )
    if not warned:
        return f"{evidence}."
    if kind in {"colour", "first layers"}:
        doubt = "Unless that is what sets the classes apart"
    elif kind == "file size":
        doubt = "Unless the classes differ that much in detail"
    else:
        doubt = "Where new images will not differ in that way"
    return f"{evidence}. {doubt}, the model may be learning the camera, not the thing."


def _categories(names: Sequence[str]) -> Floats:
    """(n, k) one column for each of the most frequent names that are not shared by all images."""
    most = [name for name, count in Counter(names).most_common(CATEGORIES) if count < len(names)]
    return np.array([[float(name == other) for other in most] for name in names]).reshape(len(names), len(most))
