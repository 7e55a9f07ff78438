"""Where did the model look, and how do the images lie to each other? Read from what stands beside a run's record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from topwork.errors import DataError

STEPS = 99  # of a heat map's values on either side of 0: finer than a screen's colours
NEAREST = 4  # training images beside an explained one


@dataclass(frozen=True)
class Explained:
    """Where the model looked in one image, and which training images are most like it."""

    path: str
    shown: str  # the class whose evidence the map shows
    rows: int
    columns: int
    map: tuple[int, ...]  # row by row, -STEPS..STEPS: what each place says for the class, or against it
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


def _steps(values: list[float]) -> tuple[int, ...]:
    """Whole numbers, the largest value at STEPS."""
    v = np.nan_to_num(np.array(values, dtype=np.float64))
    most = float(np.abs(v).max(initial=0.0))
    return tuple(np.rint(v * (STEPS / most if most else 0.0)).astype(int).tolist())


def _text(label: Any) -> str:
    """A label, or several of them, in words."""
    return label if isinstance(label, str) else ", ".join(map(str, label or ()))
