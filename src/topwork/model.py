"""What is kept: save, load, predict.

A model folder holds the kept layers and the head, nothing after the cut: model.json and
model.safetensors. It can be copied anywhere and needs none of the original weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from topwork import images
from topwork.engine import normalisation, pool, prepare
from topwork.errors import DataError, ImageError, UsageError
from topwork.images import Source
from topwork.records import ModelFacts, decode, encode
from topwork.zoo import Backbone, skeleton

BATCH = 16  # as in features.py: larger gains nothing on a CPU
LAYERS, WEIGHT, BIAS = "layers.", "head.weight", "head.bias"


@dataclass(frozen=True)
class Prediction:
    """The answer for one image. `error` says why there is none; then the rest is empty."""

    source: str
    label: str | None
    probability: float | None
    probabilities: dict[str, float]
    error: str | None = None


class Model:
    """Kept layers and head, ready to predict."""

    def __init__(self, facts: ModelFacts, backbone: Backbone, weight: Tensor, bias: Tensor) -> None:
        self.facts = facts
        self._backbone = backbone
        k = backbone.index(facts.cut)
        self._segments = [prepare(s) for s in backbone.chain.segments[: k + 1]]
        self._weight, self._bias = weight.float(), bias.float()
        self._scale, self._shift = normalisation(facts.preprocessing)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the scores."""
        return self.facts.classes

    def logits(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:  # batch: (b, h, w, 3)
        """Scores before the temperature: (b, C)."""
        with torch.inference_mode():
            x = (torch.from_numpy(batch).float() * self._scale + self._shift).permute(0, 3, 1, 2)
            for segment in self._segments:
                x = segment(x)
            scores: NDArray[np.float32] = (pool(x) @ self._weight + self._bias).numpy()
        return scores

    def predict(self, sources: Source | Sequence[Source]) -> list[Prediction]:
        """Classes and calibrated probabilities of images, in order.

        A source is a path, encoded bytes, a Pillow image or a uint8 RGB array. A file that is no
        usable image gets a Prediction with `error`; it never ends the others.
        """
        one = isinstance(sources, (bytes, str, Path, Image.Image, np.ndarray))
        return list(self.stream([sources] if one else sources))  # type: ignore[list-item, arg-type]

    def stream(self, sources: Sequence[Source]) -> Iterator[Prediction]:
        """Like predict, one by one, so that any number of images fits in memory."""
        with ThreadPoolExecutor() as workers:
            for start in range(0, len(sources), BATCH):
                chunk = sources[start : start + BATCH]
                loaded = list(workers.map(self._load, chunk))
                good = [x for x in loaded if not isinstance(x, ImageError)]
                rows = iter(self.probabilities(np.stack(good)) if good else ())
                for source, x in zip(chunk, loaded, strict=True):
                    yield self._answer(source, x if isinstance(x, ImageError) else next(rows))

    def probabilities(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:  # batch: (b, h, w, 3)
        """Calibrated probabilities: (b, C), rows sum to 1."""
        logits = torch.from_numpy(self.logits(batch)) / self.facts.temperature
        result: NDArray[np.float32] = logits.softmax(dim=1).numpy()
        return result

    def save(self, folder: Path) -> None:
        """Write model.json and model.safetensors into a folder that must not exist yet."""
        folder.mkdir(parents=True)
        prefix = self._backbone.prefix(self.facts.cut)
        tensors = {LAYERS + name: t for name, t in _own_names(prefix.state_dict()).items()}
        tensors |= {WEIGHT: self._weight, BIAS: self._bias}
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors")
        (folder / "model.json").write_bytes(encode(self.facts))

    def _load(self, source: Source) -> NDArray[np.uint8] | ImageError:
        try:
            return images.load(source, self.facts.preprocessing)
        except ImageError as error:
            return error

    def _answer(self, source: Source, result: ImageError | NDArray[np.float32]) -> Prediction:
        name = str(source) if isinstance(source, (str, Path)) else f"<{type(source).__name__}>"
        if isinstance(result, ImageError):
            return Prediction(name, None, None, {}, str(result))
        best = int(result.argmax())
        return Prediction(
            name, self.classes[best], float(result[best]),
            {c: float(p) for c, p in zip(self.classes, result, strict=True)},
        )  # fmt: skip


def create(facts: ModelFacts, backbone: Backbone, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Model:
    """A model from a backbone and a head: weight (2 channels, C), bias (C,)."""
    return Model(facts, backbone, torch.from_numpy(weight), torch.from_numpy(bias))


def load(folder: Path) -> Model:
    """Load a model from its folder, or from the run's folder around it.

    Raises DataError where the folder holds no model, or one that does not fit together.
    """
    folder = Path(folder)
    home = folder if (folder / "model.json").is_file() else folder / "model"
    try:
        facts = decode((home / "model.json").read_bytes(), ModelFacts, where=str(home / "model.json"))
        tensors = load_file(home / "model.safetensors")
    except OSError as error:
        raise DataError(
            f"{folder}: no model in it ({error}); expected a run's folder, or the model"
            " folder inside it, with model.json and model.safetensors"
        ) from error
    except SafetensorError as error:
        raise DataError(f"{home / 'model.safetensors'}: damaged: {error}") from error
    try:
        backbone = skeleton(facts.backbone, facts.preprocessing)
        prefix = backbone.prefix(facts.cut)
    except UsageError as error:
        raise DataError(f"{home / 'model.json'}: {error}; written with {facts.versions}") from error
    own = prefix.state_dict()
    named = _own_names(own)
    for name, tensor in named.items():
        stored = tensors.get(LAYERS + name)
        if stored is None or stored.shape != tensor.shape:
            raise DataError(
                f"{home / 'model.safetensors'}: {name} is {'missing' if stored is None else tuple(stored.shape)},"
                f" expected {tuple(tensor.shape)} for {facts.backbone} up to {facts.cut}; written with"
                f" {facts.versions}, which library version differs here?"
            )
        tensor.copy_(stored)
    channels, classes = backbone.cuts[backbone.index(facts.cut)].channels, len(facts.classes)
    for name, shape in ((WEIGHT, (2 * channels, classes)), (BIAS, (classes,))):
        stored = tensors.get(name)
        if stored is None or stored.shape != shape:
            raise DataError(
                f"{home / 'model.safetensors'}: {name} is {'missing' if stored is None else tuple(stored.shape)},"
                f" expected {shape} for {classes} classes at {facts.cut}"
            )
    return Model(facts, backbone, tensors[WEIGHT], tensors[BIAS])


def _own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the chain's `segmentN.`: tensors are stored under the network's own names."""
    return {name.split(".", 1)[1]: tensor for name, tensor in state.items()}
