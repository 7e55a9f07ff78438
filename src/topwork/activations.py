"""What comes out of the frozen prefix, view by view, for the trained part to learn from?

The prefix is run once per view and never again: its output is kept on disk as float16 and mapped into
memory, whatever is trained on it, however often. A *point* is where the trained part begins: point 0
is the input (the pixels themselves, uint8), point p the output of segment p - 1, that is cut p - 1.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from topwork import images, stores
from topwork.ahead import flow
from topwork.engine import FLOAT16_MAX, Engine, lanes
from topwork.errors import DataError, ImageError
from topwork.records import Augmentation, Example
from topwork.thumbnails import USES, Thumbnails, under
from topwork.views import view_of
from topwork.watch import SILENT, Watch
from topwork.zoo import Backbone

BATCH, BATCH_GPU = 8, 64  # as in features.py

DISK_SHARE = 0.25
"""Of the free disk space that the views of one run may take; they are deleted when it is done."""


@dataclass(frozen=True)
class Store:
    """The views of n images at every point asked for, in one folder."""

    backbone: Backbone
    root: str | Path  # where the images lie
    examples: tuple[Example, ...]
    augmentation: Augmentation
    seed: int
    folder: Path
    thumbnails: Thumbnails

    def shape(self, point: int) -> tuple[int, int, int]:
        """(height, width, channels) of one image at a point."""
        if point == 0:
            side = self.backbone.preprocessing.crop_px
            return side, side, 3
        cut = self.backbone.cuts[point - 1]
        return cut.height, cut.width, cut.channels

    def bytes_per_image(self, point: int) -> int:
        """On disk, for one view."""
        return int(np.prod(self.shape(point))) * self._dtype(point).itemsize

    def affordable_views(self, point: int, wanted: int) -> int:
        """How many of the wanted augmented views fit the disk beside the plain one, at least one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        room = DISK_SHARE * shutil.disk_usage(self.folder).free
        each = self.bytes_per_image(point) * len(self.examples)
        return max(1, min(wanted, int(room / each) - 1))

    def ensure(self, points: Sequence[int], number: int, watch: Watch = SILENT) -> int:
        """See to it that view `number` is there at these points, all in one pass; says how many images passed.

        A view is written aside and renamed, so an interrupted one is made again, with the same result.
        Raises DataError where a file is no longer what it was.
        """
        missing = sorted(p for p in set(points) if not self._there(p, number))
        if not missing:
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = {p: self.folder / f".{uuid.uuid4().hex}" for p in missing}
        files = {p: path.open("wb") for p, path in aside.items()}
        engine = Engine(self.backbone.chain.segments[: missing[-1]], self.backbone.preprocessing)

        def work(group: list[tuple[Example, NDArray[np.uint8]]]) -> list[tuple[int, NDArray[np.generic]]]:
            return self._tapped(engine, np.stack([x for _, x in group]), missing)

        watch.begin("views", len(self.examples))
        try:
            apart = engine.device.type != "cpu"
            batch = BATCH_GPU if apart else BATCH
            with lanes(engine.device) as shared:
                passed = flow(
                    self.examples, lambda e: self._pixels(e, number), work, batch, lanes=shared.count, at_once=apart
                )
                for group, blocks in passed:
                    for point, block in blocks:
                        files[point].write(block.tobytes())
                    watch.advance(len(group))
            for point in missing:
                files[point].close()
                aside[point].replace(self._file(point, number))
        finally:
            for point in missing:
                files[point].close()
                aside[point].unlink(missing_ok=True)
        watch.end()
        return len(self.examples)

    def held(self, point: int, numbers: Iterable[int]) -> set[int]:
        """Which of these views are there at a point."""
        return {number for number in numbers if self._there(point, number)}

    def mapped(self, point: int, number: int) -> NDArray[np.generic]:
        """All images' activations at a point: (n, h, w, c), mapped, float16 (uint8 at point 0)."""
        shape = (len(self.examples), *self.shape(point))
        return np.memmap(self._file(point, number), dtype=self._dtype(point), mode="r", shape=shape)

    def drop(self) -> None:
        """Delete every view."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _tapped(
        self, engine: Engine, pixels: NDArray[np.uint8], points: Sequence[int]
    ) -> list[tuple[int, NDArray[np.generic]]]:
        """The activations of one batch at each point: (b, h, w, c)."""
        found: list[tuple[int, NDArray[np.generic]]] = [(0, pixels)] if 0 in points else []
        with torch.inference_mode():
            x = engine.pixels(pixels)
            for k, segment in enumerate(engine.segments):
                x = segment(x)
                if k + 1 in points:
                    found.append((k + 1, half(x)))
        return found

    def _pixels(self, example: Example, number: int) -> NDArray[np.uint8]:
        try:
            preprocessing = self.backbone.preprocessing
            image = self.thumbnails.decode_file(self._images, example.path, example.digest, preprocessing, uses=USES)
            return view_of(image, number, preprocessing, self.augmentation, digest=example.digest, seed=self.seed)
        except ImageError as error:
            where = self._images.where(example.path)
            raise DataError(f"{where}: {error}; put it back, or start again without it") from error

    @cached_property
    def _images(self) -> stores.Store:
        return stores.opened(str(self.root))

    def _there(self, point: int, number: int) -> bool:
        """Whether a view is whole: a power cut may leave a renamed file shorter than it was."""
        file = self._file(point, number)
        return file.exists() and file.stat().st_size == self.bytes_per_image(point) * len(self.examples)

    def _dtype(self, point: int) -> np.dtype[np.generic]:
        return np.dtype(np.float16 if point else np.uint8)

    def _file(self, point: int, number: int) -> Path:
        kind = "plain" if number == 0 else msgspec.json.encode([self.augmentation, self.seed, number]).decode()
        return self.folder / f"{images.digest(f'{point} {kind}'.encode())}.f16"


def store(
    backbone: Backbone, features_key: str, root: str | Path, examples: Sequence[Example],
    *, augmentation: Augmentation, seed: int, cache: Path,
) -> Store:  # fmt: skip
    """The store of these images under `cache`; its name is made of the backbone and the images' contents."""
    content = images.digest(" ".join(e.digest for e in examples).encode())
    folder = cache / "activations" / f"{features_key}-{content}"
    return Store(backbone, root, tuple(examples), augmentation, seed, folder, under(cache))


def half(maps: Tensor) -> NDArray[np.float16]:  # (b, c, h, w)
    """As it is stored: (b, h, w, c) float16, held at its limits, without a copy of a channels-last layout."""
    stored: NDArray[np.float16] = (
        maps.clamp(-FLOAT16_MAX, FLOAT16_MAX).half().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    )
    return stored
