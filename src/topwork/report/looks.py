"""Where did the model look, and how do the images lie to each other? Read from what stands beside a run's record."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from topwork.errors import DataError

STEPS = 127  # of a heat map's values on either side of 0: finer than the eye, and a byte
STRONG = 0.97
"""Share of the places up to whose strength colours tell one from another; the few that are stronger look alike. A
maximum stands in one place: in proportion to that, all others would be invisible at a thumbnail's size."""

NEAREST = 3  # training images beside an explained one


@dataclass(frozen=True)
class Explained:
    """Where the model looked in one image, and which training images are most like it."""

    path: str
    shown: str  # the class whose evidence the map shows
    rows: int
    columns: int
    map: str  # base 64 of a signed byte per place, row by row: what it says for the class, or against it; up to STEPS
    nearest: tuple[tuple[str, str], ...]  # path and label, the most similar first


@dataclass(frozen=True)
class Point:
    """An image on the map of all."""

    path: str
    label: str
    x: float
    y: float


def explained(run: Path) -> tuple[Explained, ...]:
    """Of the judged images that were explained; empty where none was. Raises DataError where a file is damaged."""
    found = _columns(run / "explained.parquet", "path", "class", "rows", "columns", "map")
    if found is None:
        return ()
    known = _columns(run / "known.parquet", "path", "label") or {"path": [], "label": []}
    label = dict(zip(known["path"], (_text(v) for v in known["label"]), strict=True))
    near = found.get("nearest") or [()] * len(found["path"])
    return tuple(
        Explained(
            path, shown, rows, columns, _steps(values), tuple((p, label.get(p, "")) for p in (like or ())[:NEAREST])
        )
        for path, shown, rows, columns, values, like in zip(
            *(found[c] for c in ("path", "class", "rows", "columns", "map")), near, strict=True
        )
        if len(values) == rows * columns
    )  # fmt: skip


def embedding(run: Path) -> tuple[Point, ...]:
    """The images in two dimensions; empty where they were not drawn. Raises DataError where the file is damaged."""
    found = _columns(run / "embedding.parquet", "path", "label", "x", "y")
    if found is None:
        return ()
    return tuple(
        Point(path, _text(label), x, y)
        for path, label, x, y in zip(*(found[c] for c in ("path", "label", "x", "y")), strict=True)
        if np.isfinite([x, y]).all()
    )


def _columns(file: Path, *needed: str) -> dict[str, list[Any]] | None:
    """Every column by name; None where there is no such file, or where it lacks one that is needed."""
    from pyarrow import ArrowException, parquet  # noqa: PLC0415 (0.3 s to import)

    if not file.is_file():
        return None
    try:
        table = parquet.read_table(file)
    except (OSError, ArrowException) as error:
        raise DataError(f"{file}: damaged ({error}); delete it to draw the page without it, or fit again") from error
    if not set(needed) <= set(table.column_names):
        return None
    found: dict[str, list[Any]] = table.to_pydict()
    return found


def _steps(values: list[float]) -> str:
    """A strong value at STEPS, and what is stronger."""
    v = np.nan_to_num(np.array(values, dtype=np.float64))
    strength = np.abs(v)
    most = (float(np.quantile(strength, STRONG)) or float(strength.max())) if len(v) else 0.0
    return b64encode(np.rint(np.clip(v / (most or 1.0), -1, 1) * STEPS).astype(np.int8).tobytes()).decode()


def _text(label: Any) -> str:
    """A label, or several of them, in words."""
    return label if isinstance(label, str) else ", ".join(map(str, label or ()))
