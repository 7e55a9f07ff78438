"""Which images was the result measured on, and what was said of each? Read from predictions.parquet."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from topwork import images, stores
from topwork.errors import DataError, TopworkError
from topwork.records import Preprocessing
from topwork.statistics import wilson

THUMBNAIL_PX = 64  # of photographs 256 px high, half the scale is decoded
THUMBNAILS = 500
"""Pictures in a page: at some 2 KB each it stays far below 5 MB. Mistakes come first, the surest before others."""

PER_BIN, MOST_BINS = 20, 10  # answers in a bin of the calibration figure at least, and bins at most
_SMALL = Preprocessing(THUMBNAIL_PX, THUMBNAIL_PX, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


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


def bins(judged: Judged) -> list[tuple[float, float, float, float, int]]:
    """Answers of about the same probability together, as many in each: mean probability, share right, 95%, answers."""
    n = len(judged.paths)
    order = np.argsort(judged.probability, kind="stable")
    found = []
    for part in np.array_split(order, int(np.clip(n // PER_BIN, 1, MOST_BINS))):
        right = float((~judged.wrong[part]).mean())
        found.append((float(judged.probability[part].mean()), right, *wilson(right, len(part)), len(part)))
    return found


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


def thumbnails(root: str, paths: Sequence[str]) -> dict[str, str]:
    """Small pictures as data addresses, by path; none of a file that is gone or broken."""
    wanted = paths[:THUMBNAILS]
    try:
        store = stores.opened(root)
    except TopworkError:  # what was a folder is gone, or its address cannot be reached from here
        return {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda path: _thumbnail(store, path), wanted)
        return {path: small for path, small in zip(wanted, made, strict=True) if small is not None}


def _thumbnail(store: stores.Store, path: str) -> str | None:
    try:
        pixels = images.load(store.read(path), _SMALL)
    except DataError:
        return None
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{b64encode(out.getvalue()).decode()}"
