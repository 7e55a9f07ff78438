"""Which images was the result measured on, and what was said of each? Read from predictions.parquet."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from topwork import images, stores
from topwork.errors import DataError, TopworkError
from topwork.records import Preprocessing

SMALL_PX, LARGE_PX = 64, 128  # sides of pictures: in rows and on the map; of what is to be looked at closely
PICTURES = 1000  # in a page, at most; mistakes come first

READ_BYTES, BLOCK = 300_000_000, 50
"""What may be read for them, looked at after each block of so many: a hundred photographs of 12 megapixels. They take
tens of milliseconds each, photographs of 256 px one or two (bench/report.py)."""

PICTURE_BYTES = 2_400_000
"""What all pictures may take in a page, which should stay below 5 MB; those that come last are left out beyond it."""

EXAMPLES, ALL_EXAMPLES = 6, 300  # of each class beside its name at most, and of all classes


@dataclass(frozen=True)
class Judged:
    """The images of the result, in the order of the file; each has one label."""

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    label: NDArray[np.int64]  # (n,)
    predicted: NDArray[np.int64]  # (n,)
    probability: NDArray[np.float64]  # (n,) of the predicted class
    own: NDArray[np.float64]  # (n,) of the true class

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which were answered wrongly."""
        found: NDArray[np.bool_] = self.label != self.predicted
        return found

    def labels_of(self, row: int) -> tuple[str, ...]:
        """Its true class."""
        return (self.classes[int(self.label[row])],)

    def given_to(self, row: int) -> str:
        """What was answered, in words."""
        return self.classes[int(self.predicted[row])]


@dataclass(frozen=True)
class JudgedLabels:
    """The same where an image may have several labels."""

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    predicted: tuple[tuple[str, ...], ...]  # in the order of the classes, as the labels

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which were not given exactly their labels."""
        return np.array([a != b for a, b in zip(self.labels, self.predicted, strict=True)], dtype=bool)

    def labels_of(self, row: int) -> tuple[str, ...]:
        """Its true labels."""
        return self.labels[row]

    def given_to(self, row: int) -> str:
        """What was answered, in words."""
        return ", ".join(self.predicted[row]) or "no label"


def read(file: Path) -> Judged | JudgedLabels:
    """Raises DataError where the file is missing or is none of ours."""
    from pyarrow import ArrowException, parquet  # noqa: PLC0415 (0.3 s to import)

    try:
        table = parquet.read_table(file)
        classes = msgspec.json.decode((table.schema.metadata or {})[b"classes"], type=tuple[str, ...])
        if "labels" in table.column_names:
            labels, given = (tuple(map(tuple, table[name].to_pylist())) for name in ("labels", "predicted"))
            return JudgedLabels(classes, tuple(table["path"].to_pylist()), labels, given)
        number = {name: i for i, name in enumerate(classes)}
        label, predicted = (
            np.array([number[v] for v in table[c].to_pylist()], np.int64) for c in ("label", "predicted")
        )
        shares = np.array(table["probabilities"].to_pylist(), dtype=np.float64).reshape(-1, len(classes))
        rows = np.arange(len(label))
        return Judged(
            classes, tuple(table["path"].to_pylist()), label, predicted, shares[rows, predicted], shares[rows, label]
        )
    except (OSError, KeyError, ArrowException, msgspec.MsgspecError) as error:
        raise DataError(f"{file}: no predictions of a run ({error}); `topwork fit` writes them") from error


def worth_seeing(judged: Judged | JudgedLabels) -> list[int]:
    """Rows in the order in which they get a picture: mistakes, the surest first, then one of each class in turn."""
    if isinstance(judged, JudgedLabels):
        return [int(i) for i in np.argsort(~judged.wrong, kind="stable")]
    wrong = np.flatnonzero(judged.wrong)
    first = wrong[np.argsort(-judged.probability[wrong], kind="stable")].tolist()
    right = np.flatnonzero(~judged.wrong)
    turn = np.zeros(len(judged.classes), dtype=np.int64)
    rank = np.empty(len(right), dtype=np.int64)
    for i, k in enumerate(judged.label[right]):
        rank[i] = turn[k]
        turn[k] += 1
    return [*first, *right[np.argsort(rank, kind="stable")].tolist()]


def examples(judged: Judged | JudgedLabels) -> list[list[int]]:
    """A few rows of each class, answered rightly where there are such: what the class looks like."""
    most = max(1, min(EXAMPLES, ALL_EXAMPLES // len(judged.classes)))
    found: dict[str, list[int]] = {name: [] for name in judged.classes}
    for i in np.argsort(judged.wrong, kind="stable").tolist():
        for name in judged.labels_of(i):
            if len(found[name]) < most:
                found[name].append(i)
    return list(found.values())


def thumbnails(root: str, paths: Sequence[str], large: Sequence[str], seen: Preprocessing) -> dict[str, str]:
    """Small pictures, JPEG in base 64, by path; none of a file that is gone or broken.

    `large`: those shown at LARGE_PX. A picture shows what the model sees of an image (`seen`): its middle, or all.
    """
    wanted, closely = paths[:PICTURES], set(large)
    try:
        store = stores.opened(root)
    except TopworkError:  # what was a folder is gone, or its address cannot be reached from here
        return {}
    small, big = (
        replace(seen.at(px), interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3) for px in (SMALL_PX, LARGE_PX)
    )
    found: dict[str, str] = {}
    room, to_read = PICTURE_BYTES, READ_BYTES
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(wanted), BLOCK):
            block = wanted[start : start + BLOCK]
            made = pool.map(lambda path: _thumbnail(store, path, big if path in closely else small), block)
            for path, (read, picture) in zip(block, made, strict=True):
                to_read -= read
                room -= len(picture)
                if picture and room >= 0:
                    found[path] = picture
            if to_read < 0 or room < 0:
                break
    return found


def _thumbnail(store: stores.Store, path: str, preprocessing: Preprocessing) -> tuple[int, str]:
    """Bytes that were read, and the picture; "" where there is none."""
    data = b""
    try:
        data = store.read(path)
        pixels = images.load(data, preprocessing)
    except DataError:
        return len(data), ""
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=70, optimize=True)
    return len(data), b64encode(out.getvalue()).decode()
