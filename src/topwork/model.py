"""What is kept: save, load, predict.

A model folder holds the kept layers and the head, nothing after the cut: model.json and
model.safetensors. It can be copied anywhere and needs none of the original weights. The head reads the
pooled features of one cut or of several (taps); the deepest of them is where the network ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from topwork.answers import Seen
from topwork.asking import Asked
from topwork.engine import device, exact_arithmetic, normalisation, pool, prepare
from topwork.errors import DataError, UsageError
from topwork.known import Known
from topwork.records import ModelFacts, ModelSize, decode, encode
from topwork.zoo import Backbone, skeleton

TIMED = 3  # passes whose median is the latency, after one that warms caches and kernels up
FILE = "model.safetensors"
LAYERS, WEIGHT, BIAS = "layers.", "head.weight", "head.bias"


class Model(Asked):
    """Kept layers and head, ready to predict on `on`: by default the accelerator that is here, else the CPU."""

    def __init__(
        self, facts: ModelFacts, backbone: Backbone, weight: Tensor, bias: Tensor, known: Known | None = None,
        *, on: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.facts = facts
        self.known = known
        self.device = on or device()
        self._backbone = backbone
        self._taps = {backbone.index(tap) for tap in facts.taps}
        self._segments = [prepare(s).to(self.device) for s in backbone.chain.segments[: max(self._taps) + 1]]
        self._weight, self._bias = (t.float().to(self.device) for t in (weight, bias))
        self._scale, self._shift = (t.to(self.device) for t in normalisation(facts.preprocessing))

    def to(self, on: torch.device) -> Model:
        """The same model on another device; itself where it is there already."""
        if on == self.device:
            return self
        return Model(self.facts, self._backbone, self._weight, self._bias, self.known, on=on)

    @property
    def head(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight (2 channels of all taps, C) and bias (C,); the order of the rows is that of Seen.pooled."""
        return self._weight.cpu().numpy(), self._bias.cpu().numpy()

    def see(self, batch: NDArray[np.uint8]) -> Seen:  # batch: (b, h, w, 3)
        """Scores, pooled features and the maps at every tap."""
        scores, pooled, maps = self._run(batch)
        return Seen(scores.cpu().numpy(), pooled.cpu().numpy(), tuple(x.cpu().numpy() for x in maps))

    def glance(self, batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores (b, C) and pooled features (b, 2 channels of all taps) alone: no map leaves an accelerator."""
        scores, pooled, _ = self._run(batch)
        return scores.cpu().numpy(), pooled.cpu().numpy()

    def logits(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:  # batch: (b, h, w, 3)
        """Scores before the temperature: (b, C)."""
        return self.glance(batch)[0]

    def _run(self, batch: NDArray[np.uint8]) -> tuple[Tensor, Tensor, list[Tensor]]:
        with torch.inference_mode(), exact_arithmetic(self.device):
            x, maps = self._pixels(batch), []
            for k, segment in enumerate(self._segments):
                x = segment(x)
                if k in self._taps:
                    maps.append(x)
            pooled = torch.cat([pool(x) for x in maps], dim=1)
            return pooled @ self._weight + self._bias, pooled, maps

    def save(self, folder: Path) -> None:
        """Write model.json, model.safetensors and known.safetensors into a folder that must not exist yet."""
        folder.mkdir(parents=True)
        prefix = self._backbone.prefix(self.facts.cut)
        tensors = {LAYERS + name: t for name, t in _own_names(prefix.state_dict()).items()}
        tensors |= {WEIGHT: self._weight.cpu(), BIAS: self._bias.cpu()}
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / FILE)
        (folder / "model.json").write_bytes(encode(self.facts))
        if self.known is not None:
            self.known.save(folder)

    def _pixels(self, batch: NDArray[np.uint8]) -> Tensor:  # (b, h, w, 3) to (b, 3, h, w)
        return (torch.from_numpy(batch).to(self.device).float() * self._scale + self._shift).permute(0, 3, 1, 2)


def create(facts: ModelFacts, backbone: Backbone, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Model:
    """A model from a backbone and a head: weight (2 channels of all taps, C), bias (C,).

    Rows of the weight are tap by tap, from the input on: the average of each channel, then the maximum of each.
    Raises UsageError where taps, weight and bias do not fit the backbone.
    """
    wrong = _wrong_taps(facts, backbone) or _wrong_head(facts, {WEIGHT: weight.shape, BIAS: bias.shape})
    if wrong:
        raise UsageError(wrong)
    return Model(facts, backbone, torch.from_numpy(weight), torch.from_numpy(bias))


def size(model: Model, folder: Path) -> ModelSize:
    """What a model that was saved in `folder` takes, and what its whole backbone would.

    Both latencies are of one image and take the same way: prepared segments on the CPU, as many threads as are set.
    """
    model = model.to(torch.device("cpu"))
    backbone = model._backbone
    kept = len(model._segments)
    rest = [prepare(s) for s in backbone.chain.segments[kept:]]
    side = model.facts.preprocessing.crop_px
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)

    def whole() -> None:
        with torch.inference_mode():
            x = model._pixels(image)
            for segment in (*model._segments, *rest):
                x = segment(x)

    return ModelSize(
        backbone.cuts[kept - 1].params + model._weight.numel() + model._bias.numel(),
        backbone.chain.params,
        (folder / FILE).stat().st_size,
        _median_ms(lambda: model.logits(image)),
        _median_ms(whole),
    )


def load(folder: Path) -> Model:
    """Load a model from its folder, or from the run's folder around it.

    Raises DataError where the folder holds no model, or one that does not fit together.
    """
    folder = Path(folder)
    home = folder if (folder / "model.json").is_file() else folder / "model"
    try:
        facts = decode((home / "model.json").read_bytes(), ModelFacts, where=str(home / "model.json"))
        tensors = load_file(home / FILE)
    except OSError as error:
        raise DataError(
            f"{folder}: no model in it ({error}); expected a run's folder, or the model"
            " folder inside it, with model.json and model.safetensors"
        ) from error
    except SafetensorError as error:
        raise DataError(f"{home / FILE}: damaged: {error}") from error
    try:
        backbone = skeleton(facts.backbone, facts.preprocessing)
        prefix, wrong = backbone.prefix(facts.cut), _wrong_taps(facts, backbone)
    except UsageError as error:
        raise DataError(f"{home / 'model.json'}: {error}; written with {facts.versions}") from error
    if wrong:
        raise DataError(f"{home / 'model.json'}: {wrong}")
    own = prefix.state_dict()
    named = _own_names(own)
    for name, tensor in named.items():
        stored = tensors.get(LAYERS + name)
        if stored is None or stored.shape != tensor.shape:
            raise DataError(
                f"{home / FILE}: {name} is {'missing' if stored is None else tuple(stored.shape)},"
                f" expected {tuple(tensor.shape)} for {facts.backbone} up to {facts.cut}; written with"
                f" {facts.versions}, which library version differs here?"
            )
        tensor.copy_(stored)
    wrong = _wrong_head(facts, {name: tuple(t.shape) for name, t in tensors.items()})
    if wrong:
        raise DataError(f"{home / FILE}: {wrong}")
    return Model(facts, backbone, tensors[WEIGHT], tensors[BIAS], Known.load(home, 2 * facts.channels))


def _wrong_taps(facts: ModelFacts, backbone: Backbone) -> str | None:
    """What is wrong with the cuts that the head reads. Raises UsageError where one is none of the backbone's."""
    places = [backbone.index(tap) for tap in facts.taps]
    if not places or places != sorted(set(places)) or facts.taps[-1] != facts.cut:
        return f"taps are {list(facts.taps)}, expected cuts of {facts.backbone} from the input on, {facts.cut} last"
    channels = sum(backbone.cuts[k].channels for k in places)
    if facts.channels != channels:
        return f"channels is {facts.channels}, expected {channels}, the sum over {', '.join(facts.taps)}"
    return None


def _wrong_head(facts: ModelFacts, found: Mapping[str, tuple[int, ...]]) -> str | None:
    """What is wrong with the shapes of a head's tensors, or with its thresholds."""
    classes = len(facts.classes)
    wanted = classes if facts.multi_label else 0
    if len(facts.thresholds) != wanted:
        return f"thresholds are {len(facts.thresholds)}, expected {wanted} for {classes} classes"
    for name, shape in ((WEIGHT, (2 * facts.channels, classes)), (BIAS, (classes,))):
        if found.get(name) != shape:
            return (
                f"{name} is {found.get(name, 'missing')}, expected {shape} for {classes} classes"
                f" at {', '.join(facts.taps)}"
            )
    return None


def _median_ms(work: Callable[[], object]) -> float:
    """Milliseconds that it takes, once it is warm."""
    work()
    took = []
    for _ in range(TIMED):
        start = time.perf_counter()
        work()
        took.append(1000 * (time.perf_counter() - start))
    return float(np.median(took))


def _own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the chain's `segmentN.`: tensors are stored under the network's own names."""
    return {name.split(".", 1)[1]: tensor for name, tensor in state.items()}
