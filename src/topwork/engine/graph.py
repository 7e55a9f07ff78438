"""How does the network become one graph that other runtimes run?

One ONNX graph: uint8 pixels in, the pooled features of every cut and the old task's logits out. Normalisation is part
of it. It is written once per backbone and input size, and kept.
"""

from __future__ import annotations

import logging
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from topwork.engine.pytorch import Engine

OPSET = 17
"""Of ONNX: every runtime of the last years knows it."""


class _Tapped(nn.Module):
    """The whole chain with all its outputs: (b, h, w, 3) uint8 to pooled features (b, 2 c) per cut, then logits."""

    def __init__(self, engine: Engine, logits: bool) -> None:
        super().__init__()
        self.segments = nn.ModuleList(engine.segments[: None if logits else -1])
        self.cuts = len(engine.segments) - 1
        self.scale, self.shift = engine._scale, engine._shift

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = (pixels.float() * self.scale + self.shift).permute(0, 3, 1, 2)
        found = []
        for k, segment in enumerate(self.segments):
            x = segment(x)
            found.append(pool(x) if k < self.cuts else x)
        return found


def pool(maps: Tensor) -> Tensor:
    """What pytorch.pool gives, written with the operations that runtimes know as global pooling."""
    mean, largest = nn.functional.adaptive_avg_pool2d(maps, 1), nn.functional.adaptive_max_pool2d(maps, 1)
    return torch.cat([mean, largest], dim=1).flatten(1)


def names(cuts: int, logits: bool) -> list[str]:
    """What the graph's outputs are called, in order."""
    return [f"pooled_{k}" for k in range(cuts)] + ["logits"] * logits


def export(engine: Engine, example: NDArray[np.uint8], file: Path, *, logits: bool) -> None:
    """Write the graph of a CPU engine; `example`: (b, h, w, 3) pixels. Raises what PyTorch's exporter raises."""
    write(_Tapped(engine, logits), example, file, names(len(engine.segments) - 1, logits))


def write(network: nn.Module, example: NDArray[np.uint8], file: Path, outputs: Sequence[str]) -> None:
    """Write a network's graph, from `pixels` like `example` (b, h, w, 3) to its named outputs; any b will do.

    Raises what PyTorch's exporter raises. That is the old one, which traces: 1.5 s for EfficientNet-Lite0. What it
    writes is compared with PyTorch by whoever uses it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{uuid.uuid4().hex}")
    try:
        with torch.inference_mode(), _quiet():
            torch.onnx.export(
                network.eval(), (torch.from_numpy(example),), str(aside), dynamo=False, opset_version=OPSET,
                input_names=["pixels"], output_names=list(outputs),
                dynamic_axes={n: {0: "b"} for n in ["pixels", *outputs]},
            )  # fmt: skip
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def ends(file: Path, outputs: Sequence[str]) -> bytes:
    """The graph with these of its outputs alone: what only the others need is not computed.

    Raises ValueError where it lacks one, and what onnx raises where the file holds no graph.
    """
    import onnx  # noqa: PLC0415 (only where a graph is used)

    model = onnx.load(file)
    kept = [o for o in model.graph.output if o.name in set(outputs)]
    if [o.name for o in kept] != list(outputs):
        raise ValueError(f"{file} gives {[o.name for o in model.graph.output]}, expected {list(outputs)}")
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return bytes(model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own age and of every shape that it takes for constant; the outputs are compared."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
