"""What does a model take along to run without PyTorch, and does it answer the same there?

model.onnx: one graph, from pixels as they are loaded to scores, probabilities, pooled features and the maps that the
head reads, with all of model.json inside. It is written only where ONNX Runtime gives what PyTorch gives on real
images.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from topwork import runtime
from topwork.answers import Seen, answer, probabilities
from topwork.engine import graph
from topwork.model import Model
from topwork.records import ModelFacts, OnnxFacts, encode

SAME = 1e-4
"""Largest difference of a score to PyTorch's; where scores exceed 1, over the largest of them. Sums of float32 in
another order differ by a tenth of it."""

SAME_MAPS = 1e-3
"""The same for features and maps, over the largest value: as near as features are kept by the pass (race.py)."""

IMAGES = 8
"""Real images on which it is compared. Every score of every class counts; twice as many took ResNet-50 beyond 5 s."""

MOST_BYTES = 2**31 - 1
"""What one ONNX file can hold."""


class Network(nn.Module):
    """The model as one module: pixels (b, h, w, 3) uint8 to what runtime.outputs names, in that order.

    `pool`: of maps (b, c, h, w) to average and maximum (b, 2 c), in operations that the target knows.
    """

    def __init__(self, kept: Model, pool: Callable[[Tensor], Tensor] = graph.pool) -> None:
        super().__init__()
        self.pool, kept = pool, kept.to(torch.device("cpu"))
        self.segments, self.taps = nn.ModuleList(kept._segments), kept._taps
        self.scale, self.shift = kept._scale, kept._shift
        self.weight, self.bias = kept._weight, kept._bias
        self.temperature, self.multi_label = kept.facts.temperature, kept.facts.multi_label

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Scores, probabilities, pooled features, and the map at every tap."""
        x, maps = graph.planar(pixels, self.scale, self.shift), []
        for k, segment in enumerate(self.segments):
            x = segment(x)
            if k in self.taps:
                maps.append(x)
        pooled = torch.cat([self.pool(m) for m in maps], dim=1)
        scores = pooled @ self.weight + self.bias
        calm = scores / self.temperature
        shares = torch.sigmoid(calm) if self.multi_label else torch.softmax(calm, dim=1)
        return scores, shares, pooled, *maps


def write(kept: Model, file: Path, pixels: NDArray[np.uint8]) -> OnnxFacts:  # pixels: (n, h, w, 3), real ones
    """Write a model's graph, where on these images it gives what the model gives; else say why there is none.

    Whatever goes wrong in exporter or runtime ends nothing: the model is there without it.
    """
    began = time.perf_counter()
    found = OnnxFacts(0, graph.OPSET, len(pixels), None, None, 0.0, "")
    try:
        found = _written(kept, file, pixels, found)
    except Exception as error:  # every library has its own
        text = (str(error).strip().splitlines() or [""])[0]
        found = replace(found, reason=f"could not be written: {type(error).__name__}: {text[:200]}")
    if found.reason:
        file.unlink(missing_ok=True)
    return replace(found, seconds=time.perf_counter() - began)


def _written(kept: Model, file: Path, pixels: NDArray[np.uint8], found: OnnxFacts) -> OnnxFacts:
    if not len(pixels):
        return replace(found, reason="no image could be read to compare it on")
    # Two images of noise, so that nothing of the user's own gets into what is traced.
    example = np.random.default_rng(0).integers(0, 256, (2, *pixels.shape[1:]), dtype=np.uint8)
    graph.write(Network(kept), example, file, runtime.outputs(kept.facts))
    _describe(file, kept.facts)
    found = replace(found, bytes=file.stat().st_size)
    if found.bytes > MOST_BYTES:
        return replace(found, bytes=0, reason=f"{found.bytes:,} bytes; one ONNX file holds {MOST_BYTES:,}")
    difference, largest, wrong = compared(kept.see, runtime.load(file).see, kept.facts, pixels)
    return replace(found, bytes=0 if wrong else found.bytes, difference=difference, largest=largest, reason=wrong)


See = Callable[[NDArray[np.uint8]], Seen]


def compared(
    wanted: See, given: See, facts: ModelFacts, pixels: NDArray[np.uint8], *, same: float = SAME
) -> tuple[float, float, str]:  # fmt: skip
    """The largest difference of a score, the largest score, and what is too different; nothing where all is alike.

    The images go through together, and the first one once more alone.
    """
    expected, got, alone = wanted(pixels), given(pixels), given(pixels[:1])
    a, b = expected.scores.astype(np.float64), got.scores.astype(np.float64)
    largest = float(np.abs(a).max())
    if a.shape != b.shape or not np.isfinite(b).all():
        return float("inf"), largest, f"scores are {b.shape}, expected {a.shape} of finite numbers"
    difference = float(max(np.abs(a - b).max(), np.abs(a[:1] - alone.scores).max()))
    if difference > same * max(1.0, largest):
        return difference, largest, f"scores differ by {difference:.2g}; at most {same * max(1.0, largest):.2g} may be"
    for name, x, y in zip(
        ("features", *facts.taps), (expected.pooled, *expected.maps), (got.pooled, *got.maps), strict=True
    ):
        apart = float(np.abs(x - y).max() / max(float(np.abs(x).max()), 1e-12)) if x.shape == y.shape else float("inf")
        if not apart <= max(same, SAME_MAPS):
            return difference, largest, f"{name} differ by {apart:.2g} of the largest value"
    said = [[answer("", p, facts).labels for p in probabilities(s, facts)] for s in (expected.scores, got.scores)]
    changed = sum(x != y for x, y in zip(*said, strict=True))
    return difference, largest, f"{changed} of {len(pixels)} images get another class" if changed else ""


def _describe(file: Path, facts: ModelFacts) -> None:
    """Put model.json into the file, and what its outputs are."""
    import onnx  # noqa: PLC0415 (only where a graph is written)

    model = onnx.load(file)
    model.producer_name, model.producer_version = "topwork", facts.topwork
    model.doc_string = (
        "pixels: uint8 RGB (b, h, w, 3), resized and cropped as preprocessing in model.json (metadata) says;"
        " normalisation is inside. scores: before the temperature. probabilities: calibrated, in the order of classes."
        " features: of each tap the average of each channel, then the maximum of each. map_K: at tap K."
    )
    onnx.helper.set_model_props(model, {runtime.FACTS: encode(facts).decode(), "opset": str(graph.OPSET)})
    onnx.save(model, file)
