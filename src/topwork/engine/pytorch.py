"""The prepared network in PyTorch, on the CPU or on an accelerator."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from topwork.errors import UsageError
from topwork.records import Preprocessing

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Seen:
    """What one batch gave. pooled[k]: (b, 2 c_k) float16, average then maximum over the map of cut k."""

    pooled: list[NDArray[np.float16]]
    logits: NDArray[np.float16] | None  # (b, source_classes) of the whole network
    seconds: NDArray[np.float64]  # (segments that were asked for,) spent in each, pooling not counted


class Pending(Protocol):
    """A batch on its way: an accelerator is still at work while the next batch is handed over."""

    def result(self) -> Seen:
        """Wait for it."""


def device() -> torch.device:
    """Where networks run here: the accelerator that PyTorch finds (CUDA, MPS, XPU), else the CPU.

    TOPWORK_DEVICE=cpu leaves an accelerator alone. Raises UsageError where it names a device that is not here.
    """
    found: torch.device | None = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here, asked = found or torch.device("cpu"), os.environ.get("TOPWORK_DEVICE") or "auto"
    if asked == "cpu":
        return torch.device("cpu")
    if asked not in ("auto", here.type):
        raise UsageError(f"TOPWORK_DEVICE is {asked!r}, expected auto, cpu or {here.type}, which is what PyTorch finds")
    return here


def exact_arithmetic(on: torch.device) -> AbstractContextManager[Any]:
    """Within it float32 is float32: CUDA's convolutions would round their inputs to 10 bits (TF32)."""
    if on.type != "cuda":
        return nullcontext()
    now = torch.backends.cudnn  # what is not named here would be taken from flags' own defaults: cuDNN switched off
    return torch.backends.cudnn.flags(
        enabled=now.enabled, benchmark=now.benchmark, benchmark_limit=now.benchmark_limit,
        deterministic=now.deterministic, allow_tf32=False,
    )  # fmt: skip


class Engine:
    """A chain of segments, prepared once, run on batches of uint8 pixels.

    `segments`: the last one may be the old task's classifier; any number of first ones will do. `on`: the device,
    by default the fastest there is. `precision`: of autocast, such as torch.float16; None computes in float32.
    """

    def __init__(
        self, segments: Sequence[fx.GraphModule], preprocessing: Preprocessing, *, on: torch.device | None = None,
        precision: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.device = on or device()
        self.precision = precision
        self.given = list(segments)
        self._scale, self._shift = (t.to(self.device) for t in normalisation(preprocessing))

    @cached_property
    def segments(self) -> list[fx.GraphModule]:
        """Prepared when they are first asked for: where another runtime is known to be faster, nobody does."""
        return [prepare(s).to(self.device) for s in self.given]

    @property
    def name(self) -> str:
        """As run.json names it."""
        return "pytorch" if self.precision is None else f"pytorch, {str(self.precision).removeprefix('torch.')}"

    def pixels(self, batch: NDArray[np.uint8]) -> Tensor:  # batch: (b, h, w, 3)
        """Normalised (b, 3, h, w) float32, channels-last in memory, without a copy of the layout."""
        x = torch.from_numpy(batch)
        if self.device.type == "cuda":  # from pinned memory the copy runs beside what the device computes
            x = x.pin_memory()
        return self.normalised(x.to(self.device, non_blocking=True))

    def normalised(self, raw: Tensor) -> Tensor:  # (b, h, w, 3) uint8 on the device
        """(b, 3, h, w) float32, channels-last in memory."""
        return (raw.float() * self._scale + self._shift).permute(0, 3, 1, 2)

    def see(self, batch: NDArray[np.uint8], depth: int | None = None, *, logits: bool = False) -> Seen:
        """Like submit, and wait for it."""
        return self.submit(batch, depth, logits=logits).result()

    def submit(self, batch: NDArray[np.uint8], depth: int | None = None, *, logits: bool = False) -> Pending:
        """Pooled features of (b, h, w, 3) pixels at the first `depth` cuts, and nothing runs after them; None: at all.

        `logits`: also the old task's, where every cut is asked for and the last segment is its classifier. Nothing
        here waits for the device.
        """
        cuts = len(self.segments) - 1 if depth is None else depth
        classify = logits and depth is None
        results: list[Tensor] = []
        marks: list[tuple[Mark, Mark]] = []
        with torch.inference_mode(), self.arithmetic():
            begun = self._mark()
            x = self.pixels(batch)
            for k, segment in enumerate(self.segments[: cuts + classify]):
                x = segment(x)
                marks.append((begun, self._mark()))
                results.append(self._fetched(pool(x) if k < cuts else x))
                begun = self._mark()
        return _Submitted(results, marks, begun, len(self.segments) if depth is None else depth, classify)

    def arithmetic(self) -> AbstractContextManager[Any]:
        """How it computes: float32 as it is, or autocast."""
        if self.precision is None:
            return exact_arithmetic(self.device)
        return torch.autocast(self.device.type, dtype=self.precision)

    def _fetched(self, x: Tensor) -> Tensor:
        """On its way to the CPU as float16."""
        half = limited(x)
        if self.device.type != "cuda":
            return half.to("cpu", non_blocking=True)
        host = torch.empty(half.shape, dtype=half.dtype, pin_memory=True)
        return host.copy_(half, non_blocking=True)

    def _mark(self) -> Mark:
        return _Moment() if self.device.type == "cpu" else Event(self.device)


class Mark(Protocol):
    """A point in the order of what is computed."""

    def wait(self) -> None:
        """Until the device got there."""

    def until(self, later: Any) -> float:
        """Seconds between the two."""


class _Moment:
    """On the CPU everything is done when the call returns."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def wait(self) -> None:
        """Nothing to wait for."""

    def until(self, later: _Moment) -> float:
        return later.at - self.at


class Event:
    """On an accelerator: recorded by the device when it gets there."""

    def __init__(self, on: torch.device) -> None:
        self._event = torch.Event(on, enable_timing=True)
        self._event.record()

    def wait(self) -> None:
        """Until it is reached."""
        self._event.synchronize()

    def until(self, later: Event) -> float:
        """Seconds; both must have been reached."""
        return float(self._event.elapsed_time(later._event)) / 1000


@dataclass(frozen=True)
class _Submitted:
    results: list[Tensor]
    marks: list[tuple[Mark, Mark]]
    end: Mark
    segments: int
    logits: bool

    def result(self) -> Seen:
        self.end.wait()
        seconds = np.zeros(self.segments)
        seconds[: len(self.marks)] = [begun.until(done) for begun, done in self.marks]
        arrays: list[NDArray[np.float16]] = [r.numpy() for r in self.results]
        return Seen(arrays[:-1], arrays[-1], seconds) if self.logits else Seen(arrays, None, seconds)


def prepare(segment: fx.GraphModule) -> fx.GraphModule:
    """A frozen copy of a segment: BatchNorm folded into the convolution before it, channels last."""
    frozen = copy.deepcopy(segment).eval()
    modules = dict(frozen.named_modules())
    for node in list(frozen.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op != "call_module" or len(before.users) != 1 or type(modules[before.target]) is not nn.Conv2d:
            continue
        if sum(n.op == "call_module" and n.target in {before.target, node.target} for n in frozen.graph.nodes) > 2:
            continue  # a layer that is used twice cannot take one of its followers in
        conv, norm = modules[before.target], modules[node.target]
        _replace(frozen, before.target, fuse_conv_bn_eval(conv, norm))
        # timm's BatchNormAct2d carries its activation inside; what is left of it is just that.
        _replace(frozen, node.target, getattr(norm, "act", nn.Identity()))
    frozen.requires_grad_(False)
    channels_last(frozen)
    return frozen


def channels_last(module: nn.Module) -> None:
    """Lay its four-dimensional tensors out channels last, in place.

    (`Module.to` would do the same with the five-dimensional ones of a 3-D convolution, for which there is no such way.)
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def limited(x: Tensor) -> Tensor:
    """As float16, held at its limits: no infinity may enter the features."""
    return x.clamp(-FLOAT16_MAX, FLOAT16_MAX).half()


def pool(maps: Tensor) -> Tensor:  # (b, c, h, w)
    """Average and maximum over the map: (b, 2 c)."""
    # The maximum by rows, then of these: in one step it was six times slower on channels-last maps, and all the
    # pooling of EfficientNet-Lite0's cuts took 7% of its forward pass instead of 2%.
    rows = maps.permute(0, 2, 3, 1)
    return torch.cat([rows.mean((1, 2)), rows.amax(1).amax(1)], dim=1)


def normalisation(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """(scale, shift) per channel, so that uint8 * scale + shift = (uint8 / 255 - mean) / std."""
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return 1 / (255 * std), -mean / std


def _replace(graph_module: fx.GraphModule, target: str, module: nn.Module) -> None:
    parent, _, name = target.rpartition(".")
    setattr(graph_module.get_submodule(parent), name, module)
