"""How do images from Python become a source like any other?

They are put, losslessly, into this process's memory under their content's digest (fsspec's memory://), beside a table
of their labels: whatever reads a source reads them, and the same images are the same source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from topwork import images, stores
from topwork.errors import UsageError
from topwork.listing.items import GUESSED
from topwork.listing.tables import text
from topwork.records import Columns

_HOME = f"{stores.MEMORY}topwork/"
_LOSSLESS = {"1", "L", "LA", "RGB", "RGBA", "I;16"}  # Pillow modes that PNG keeps as they are


def given(
    source: Any,
    labels: Any = None,
    groups: Any = None,
    splits: Any = None,
    *,
    image_column: str | None = None,
    label_separator: str | None = None,
) -> tuple[str, Columns]:
    """A source's name, and its columns. What is no path or address is put into memory first.

    `source`: a path or an address; then labels, groups and splits are names of columns (labels also several). Or
    images: a uint8 array (n, h, w), (n, h, w, 3) or (n, h, w, 4), or a list of arrays, Pillow images, encoded bytes and
    paths; then labels, groups and splits have one entry per image, a label being text, a number, or a list of such.
    Raises UsageError where they do not fit each other.
    """
    if isinstance(source, (str, Path)):
        names = (labels,) if isinstance(labels, str) else tuple(labels or ())
        wrong = [n for n in (*names, groups, splits) if n is not None and not isinstance(n, str)]
        if wrong:
            raise UsageError(
                f"{source}: labels, groups and splits of a path are names of columns, not {type(wrong[0]).__name__};"
                " one entry per image belongs to a list of images"
            )
        path = str(source) if stores.is_url(str(source)) else str(Path(source))
        return path, Columns(image_column, names, splits, groups, label_separator)
    if image_column is not None or label_separator is not None:
        raise UsageError("images from Python have no columns; give labels, groups and splits as lists")
    return _put(source, labels, groups, splits), GUESSED


def _put(source: Any, labels: Any, groups: Any, splits: Any) -> str:
    """Write images and their table into memory; the table's address."""
    if not isinstance(source, np.ndarray) and not isinstance(source, Sequence):
        raise UsageError(
            f"expected a path, an array (n, h, w), (n, h, w, 3) or (n, h, w, 4) of uint8, or a list of images;"
            f" came {type(source).__name__}"
        )
    if labels is None:
        raise UsageError(f"{len(source):,} images came without labels; give one for each: labels=[...]")
    if isinstance(labels, np.ndarray) and labels.ndim == 2:  # a column for each class, with 0 or 1
        labels = [np.flatnonzero(row).tolist() for row in labels]
    count = len(source)
    for name, values in [("labels", labels), ("groups", groups), ("splits", splits)]:
        if values is not None and (isinstance(values, str) or not hasattr(values, "__len__")):
            raise UsageError(f"{name}: expected one per image, came {type(values).__name__}")
        if values is not None and len(values) != count:
            raise UsageError(f"{name}: expected one per image, {count:,}; came {len(values):,}")
    fs, _ = stores.filesystem(_HOME)
    rows, digest = [], hashlib.blake2b(digest_size=16)
    contents: dict[str, bytes] = {}
    for i, image in enumerate(_each(source)):
        path: str
        if isinstance(image, Path):
            path = stores.LOCAL + str(image.absolute())
        elif isinstance(image, str):
            path = image
        else:
            path = f"{i:0{len(str(count))}d}{'' if isinstance(image, bytes) else '.png'}"
            contents[path] = _encoded(image, i)
        row: dict[str, Any] = {"image": path, "label": _plain(labels[i])}
        row |= {"group": text(_plain(groups[i]))} if groups is not None else {}
        row |= {"split": text(_plain(splits[i]))} if splits is not None else {}
        rows.append(row)
        digest.update(images.digest(contents.get(path, b"")).encode())
    table = b"\n".join(map(msgspec.json.encode, rows)) + b"\n"
    digest.update(table)
    home = f"{_HOME}{digest.hexdigest()}"
    for path, content in contents.items():
        fs.pipe_file(f"{home}/{path}", content)
    fs.pipe_file(f"{home}/images.jsonl", table)
    return f"{home}/images.jsonl"


def _each(source: Any) -> Iterator[Any]:
    """Every image: an array, a Pillow image, bytes, or a Path."""
    if isinstance(source, np.ndarray) and source.dtype == object:
        source = list(source)
    if isinstance(source, np.ndarray):
        if source.dtype.kind in "US":  # paths
            source = [str(path) for path in source]
        elif source.dtype != np.uint8 or source.ndim not in {3, 4}:
            raise UsageError(
                f"array of {source.dtype} {source.shape}; expected uint8 (n, h, w), (n, h, w, 3) or (n, h, w, 4):"
                " one image after another, 0 to 255, channels last"
            )
    for image in source:
        yield Path(image) if isinstance(image, str) and not stores.is_url(image) else image


def _encoded(image: Any, number: int) -> bytes:
    """A file's bytes that decode to the very same pixels; bytes as they are."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        pixels = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        if (
            pixels.dtype != np.uint8
            or pixels.ndim not in {2, 3}
            or (pixels.ndim == 3 and pixels.shape[2] not in {3, 4})
        ):
            raise UsageError(
                f"image {number}: array of {image.dtype} {image.shape}; expected uint8 (h, w), (h, w, 3) or (h, w, 4)"
            )
        image = Image.fromarray(pixels)
    if not isinstance(image, Image.Image):
        raise UsageError(f"image {number}: {type(image).__name__}; expected an array, a Pillow image, bytes or a path")
    if image.mode not in _LOSSLESS or image.info.get("transparency") is not None or image.getexif():
        image = images.upright(image.copy())  # as it would be read
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    """A label as JSON can hold it: numpy's numbers as Python's."""
    if isinstance(value, (np.ndarray, set, frozenset, tuple, list)):
        return [_plain(v) for v in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return value.item() if isinstance(value, np.generic) else value
