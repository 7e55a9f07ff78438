"""Which backbones are there, where are their weights, and where can they be cut?"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from topwork.errors import UsageError
from topwork.records import BackboneFacts, Cut, Preprocessing
from topwork.zoo import weights as _weights
from topwork.zoo.cuts import Chain, chain
from topwork.zoo.sources import EMBEDDED, Source, find, torchvision_names

__all__ = ["EMBEDDED", "Backbone", "Source", "find", "load", "skeleton", "torchvision_names"]

MIN_SIZE_PX, MAX_SIZE_PX = 32, 1024
"""Input sizes that are accepted: below 32 px most networks have no map left, above 1024 no memory."""


@dataclass(frozen=True)
class Backbone:
    """A pretrained CNN with its preprocessing and its weights' fingerprint, split at every cut."""

    name: str
    weights: str
    fingerprint: str
    preprocessing: Preprocessing
    source_classes: int  # 0 where the weights came without the classifier
    chain: Chain

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
            self.chain.params, self.chain.macs, self.source_classes, self.cuts,
        )  # fmt: skip


def load(name: str = EMBEDDED, *, weights: Path | None = None, size_px: int | None = None) -> Backbone:
    """Load a backbone by name with its pretrained weights, cut everywhere.

    `weights` replaces the library's own (safetensors or a state dict, whole network or features only);
    `size_px` its input size. Raises UsageError, BackboneError, MissingError.
    """
    source = find(name)
    preprocessing = _sized(source.preprocessing, size_px)
    network = source.build()
    whole = chain(network, preprocessing.crop_px)
    tensors = _weights.read(weights) if weights else source.fetch()
    kept, used = _names(network, whole.segments[:-1]), _names(network, whole.segments)
    full = _weights.fill(network, tensors, needed=kept, used=used, where=str(weights or source.weights))
    filled = {k: v for k, v in network.state_dict().items() if k in (used if full else kept)}
    code = "\n".join(str(segment.code) for segment in whole.segments)
    return Backbone(
        name,
        weights.name if weights else source.weights,
        _weights.fingerprint(filled, f"{name}\n{code}"),
        preprocessing,
        _outputs(network) if full else 0,
        whole,
    )


def skeleton(name: str, preprocessing: Preprocessing) -> Backbone:
    """The same backbone without weights: for loading a saved model, which brings its own."""
    network = find(name).build()
    return Backbone(name, "none", "none", preprocessing, 0, chain(network, preprocessing.crop_px))


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
