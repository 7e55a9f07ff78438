"""How does the frozen backbone run fastest here?

Frozen means outside the training graph: evaluation mode, inference mode, BatchNorm folded into the
convolution before it, channels-last memory. What it computes is the network's own function to
float32 rounding (tests/test_engine.py).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from topwork.records import Preprocessing

NAME = "pytorch, batch norm folded, channels last"
FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Seen:
    """What one batch gave. pooled[k]: (b, 2 c_k) float16, average then maximum over the map of cut k."""

    pooled: list[NDArray[np.float16]]
    logits: NDArray[np.float16] | None  # (b, source_classes) of the whole network
    seconds: NDArray[np.float64]  # (segments that were asked for,) spent in each, pooling not counted


class Engine:
    """A chain of segments, prepared once, run on batches of uint8 pixels."""

    def __init__(self, segments: Sequence[fx.GraphModule], preprocessing: Preprocessing) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.segments = [prepare(s).to(self.device) for s in segments]
        self._scale, self._shift = (t.to(self.device) for t in normalisation(preprocessing))

    def pixels(self, batch: NDArray[np.uint8]) -> Tensor:  # batch: (b, h, w, 3)
        """Normalised (b, 3, h, w) float32, channels-last in memory, without a copy of the layout."""
        x = torch.from_numpy(batch).to(self.device).float()
        return (x * self._scale + self._shift).permute(0, 3, 1, 2)

    def see(
        self,
        batch: NDArray[np.uint8],  # (b, h, w, 3)
        depth: int | None = None,
        *,
        logits: bool = False,
    ) -> Seen:
        """Pooled features at the first `depth` cuts, and nothing runs after them; None: at every cut.

        `logits`: also the old task's, where every cut is asked for and the last segment is its classifier.
        """
        pooled: list[NDArray[np.float16]] = []
        run = self.segments if depth is None else self.segments[:depth]
        logits = logits and depth is None
        seconds = np.zeros(len(run))
        with torch.inference_mode():
            start = time.perf_counter()
            x = self.pixels(batch)
            for k, segment in enumerate(run):
                if k + 1 == len(self.segments) and not logits:
                    break
                x = segment(x)
                self._wait()
                seconds[k] = time.perf_counter() - start
                if k + 1 < len(self.segments):
                    pooled.append(_half(pool(x)))
                start = time.perf_counter()
        return Seen(pooled, _half(x) if logits else None, seconds)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


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
    return frozen.to(memory_format=torch.channels_last)


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


def _half(x: Tensor) -> NDArray[np.float16]:
    half: NDArray[np.float16] = x.clamp(-FLOAT16_MAX, FLOAT16_MAX).half().cpu().numpy()
    return half


def _replace(graph_module: fx.GraphModule, target: str, module: nn.Module) -> None:
    parent, _, name = target.rpartition(".")
    setattr(graph_module.get_submodule(parent), name, module)
