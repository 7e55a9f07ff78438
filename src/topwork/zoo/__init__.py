"""Which backbones are there, where are their weights, and where can they be cut?"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from topwork.errors import BackboneError, UsageError
from topwork.records import BackboneFacts, Cut, Preprocessing
from topwork.watch import SILENT, Watch
from topwork.zoo import weights as _weights
from topwork.zoo.cuts import Chain, chain
from topwork.zoo.folder import MAX_SIZE_PX, MIN_SIZE_PX
from topwork.zoo.names import EMBEDDED, names, timm_names, torchvision_names
from topwork.zoo.sources import Source, at_hand, find

__all__ = [
    "EMBEDDED", "MIN_SIZE_PX", "Backbone", "Source", "at_hand", "cost", "find", "load", "names", "pull", "skeleton",
    "timm_names", "torchvision_names",
]  # fmt: skip


@dataclass(frozen=True)
class Backbone:
    """A pretrained CNN with its preprocessing and its weights' fingerprint, split at every cut."""

    name: str
    weights: str
    fingerprint: str
    preprocessing: Preprocessing
    source_classes: int  # 0 where the weights came without the classifier
    chain: Chain
    licence: str | None = None  # of the weights, as their library states it
    origin: str = ""  # where the weights come from, as in Source

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The legal cuts, from the input to the output."""
        return self.chain.cuts

    def index(self, cut: str) -> int:
        """Position of a cut by name. Raises UsageError listing the names."""
        names = [c.name for c in self.cuts]
        if cut not in names:
            raise UsageError(f"{self.name} has no cut {cut!r}; it has: {', '.join(names)}")
        return names.index(cut)

    def prefix(self, cut: str) -> nn.Sequential:
        """The layers up to and with the cut: (b, 3, h, w) normalised pixels to (b, c, h', w')."""
        return _sequence(self.chain.segments[: self.index(cut) + 1])

    def suffix(self, cut: str) -> nn.Sequential:
        """The layers after the cut, to the network's output: (b, c, h', w') to (b, source_classes)."""
        return _sequence(self.chain.segments[self.index(cut) + 1 :])

    @property
    def facts(self) -> BackboneFacts:
        """What run.json keeps of it."""
        return BackboneFacts(
            self.name, self.weights, self.fingerprint, self.preprocessing,
            self.chain.params, self.chain.macs, self.source_classes, self.cuts, self.licence, self.origin,
        )  # fmt: skip


def load(
    name: str = EMBEDDED, *, weights: Path | None = None, size_px: int | None = None, watch: Watch = SILENT
) -> Backbone:
    """Load a backbone by name with its pretrained weights, cut everywhere.

    `weights` goes before the library's own: a file (safetensors or a state dict, whole network or features
    only), or a folder in which the backbone's file is looked for. `size_px` replaces the input size. A download
    is told to `watch`. Raises UsageError, BackboneError, MissingError.
    """
    source = find(name, weights)
    preprocessing = _sized(source.preprocessing, size_px)
    network = source.build()
    whole = chain(network, preprocessing.crop_px)
    tensors = source.fetch(watch)
    kept, used = _names(network, whole.segments[:-1]), _names(network, whole.segments)
    full = _weights.fill(network, tensors, needed=kept, used=used, where=str(weights or source.weights))
    filled = {k: v for k, v in network.state_dict().items() if k in (used if full else kept)}
    code = "\n".join(str(segment.code) for segment in whole.segments)
    return Backbone(
        source.name,
        source.weights,
        _weights.fingerprint(filled, f"{source.name}\n{code}"),
        preprocessing,
        _outputs(network) if full else 0,
        whole,
        source.licence,
        source.origin,
    )


def skeleton(name: str, preprocessing: Preprocessing) -> Backbone:
    """The same backbone without weights: for loading a saved model, which brings its own."""
    network = find(name).build()
    return Backbone(name, "none", "none", preprocessing, 0, chain(network, preprocessing.crop_px))


def pull(name: str, watch: Watch = SILENT) -> Path:
    """The file of a backbone's weights, downloaded where it is not at hand. Raises UsageError, MissingError.

    `watch` is told of the bytes. A download that was interrupted goes on, and its hash is checked.
    """
    return find(name).pull(watch)


def cost(source: Source) -> tuple[int, float]:
    """(parameters, 10^9 multiply-adds per image at its input size) as its library states them, else as built.

    Raises BackboneError where the network cannot be built or run.
    """
    if source.params is not None and source.gflops is not None:
        return source.params, source.gflops
    size_px = source.preprocessing.crop_px
    try:
        with torch.device("meta"), torch.no_grad():  # shapes only: nothing is computed, no memory is taken
            network = source.build().eval()
            with FlopCounterMode(display=False) as counter:
                network(torch.empty(1, 3, size_px, size_px))
    except Exception as error:  # whatever the network's own code raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"{source.name} cannot be built or run: {reason}") from error
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() / 2e9


def _sized(preprocessing: Preprocessing, size_px: int | None) -> Preprocessing:
    if size_px is None:
        return preprocessing
    if not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
        raise UsageError(f"--size {size_px}: expected {MIN_SIZE_PX} to {MAX_SIZE_PX} px")
    return preprocessing.at(size_px)


def _names(network: nn.Module, segments: tuple[nn.Module, ...]) -> set[str]:
    """Names of the network's own tensors that these segments use; auxiliary heads are in none."""
    return {name for segment in segments for name in segment.state_dict()} & network.state_dict().keys()


def _outputs(network: nn.Module) -> int:
    """Width of the last weighted layer: the number of classes of the old task."""
    widths = [p.shape[0] for p in network.parameters() if p.dim() >= 2]
    return int(widths[-1]) if widths else 0


def _sequence(segments: tuple[nn.Module, ...]) -> nn.Sequential:
    return nn.Sequential(OrderedDict((f"segment{i}", s) for i, s in enumerate(segments)))
