"""How does the network become one graph that other runtimes run?

One ONNX graph: uint8 pixels in, the pooled features of every cut and the old task's logits out. Normalisation is part
of it, channel by channel (`planar`); padding that depends on an image's size is stated as numbers (`_sized`). It is
written once per backbone and input size, and kept.
"""

from __future__ import annotations

import logging
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from topwork.engine.pytorch import Engine

OPSET = 17
"""Of ONNX: every runtime of the last years knows it."""

FORMAT = "2"
"""Raised by every change that makes graphs better: those in the cache are made anew then, and raced anew."""


class _Tapped(nn.Module):
    """The whole chain with all its outputs: (b, h, w, 3) uint8 to pooled features (b, 2 c) per cut, then logits."""

    def __init__(self, engine: Engine, logits: bool) -> None:
        super().__init__()
        self.segments = nn.ModuleList(engine.segments[: None if logits else -1])
        self.cuts = len(engine.segments) - 1
        self.scale, self.shift = engine._scale, engine._shift

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = planar(pixels, self.scale, self.shift)
        found = []
        for k, segment in enumerate(self.segments):
            x = segment(x)
            found.append(pool(x) if k < self.cuts else x)
        return found


def planar(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:  # (b, h, w, 3), (3,), (3,)
    """Normalised (b, 3, h, w). Scaled when it lies channel by channel: with the channels innermost, ONNX Runtime took a
    tenth of EfficientNet-Lite0's forward pass for these two steps."""
    return pixels.permute(0, 3, 1, 2).float() * scale[:, None, None] + shift[:, None, None]


def pool(maps: Tensor) -> Tensor:
    """What pytorch.pool gives, written with the operations that runtimes know as global pooling."""
    mean, largest = nn.functional.adaptive_avg_pool2d(maps, 1), _Largest.apply(maps)
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
        with torch.inference_mode(), _quiet(), _sized(network):
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


class _Largest(torch.autograd.Function):
    """The maximum over the map. Where sizes are known, the exporter would write it as a pooling with a window."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        """(b, c, h, w) to (b, c, 1, 1)."""
        return nn.functional.adaptive_max_pool2d(maps, 1)

    @staticmethod
    def symbolic(g: Any, maps: Any) -> Any:
        """The operation in the graph."""
        return g.op("GlobalMaxPool", maps)


class _Conv(torch.autograd.Function):
    """A convolution that pads each side by its own number, which PyTorch's cannot: one operation of ONNX."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, conv: nn.Conv2d, pads: list[int]) -> Tensor:
        """pads: top, left, bottom, right."""
        top, left, bottom, right = pads
        padded = nn.functional.pad(x, [left, right, top, bottom])
        return nn.functional.conv2d(padded, weight, bias, conv.stride, 0, conv.dilation, conv.groups)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, conv: nn.Conv2d, pads: list[int]) -> Any:
        """The operation in the graph."""
        stride, dilation = list(conv.stride), list(conv.dilation)
        return g.op(
            "Conv", x, weight, bias, pads_i=pads, strides_i=stride, dilations_i=dilation, group_i=conv.groups
        )  # fmt: skip


@contextmanager
def _sized(network: nn.Module) -> Iterator[None]:
    """Within it, timm's convolutions of TensorFlow's "same" padding are traced with the padding of the input's size.

    As timm writes them the graph computes how much to pad, and pads in an operation of its own, in another layout of
    memory than the convolutions': with EfficientNet-Lite0, a fifth of the forward pass in ONNX Runtime.
    """
    found = [m for m in network.modules() if type(m).__name__ == "Conv2dSame" and isinstance(m, nn.Conv2d)]
    for conv in found:
        conv.forward = partial(_same, conv)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for conv in found:
            del conv.forward


def _same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """As many places as the input has, over the stride; of an odd number of zeros, one more after than before."""
    before, after = [], []
    for size, kernel, stride, dilation in zip(x.shape[-2:], conv.kernel_size, conv.stride, conv.dilation, strict=True):
        places = -(-int(size) // stride)
        zeros = max(0, (places - 1) * stride + (kernel - 1) * dilation + 1 - int(size))
        before.append(zeros // 2)
        after.append(zeros - zeros // 2)
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias  # the exporter crashes on None
    found: Tensor = _Conv.apply(x, conv.weight, bias, conv, [*before, *after])
    return found


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
