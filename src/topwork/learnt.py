"""Which training images does a run remember, and which of them are like an image? Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from topwork import known
from topwork.errors import DataError
from topwork.explanation import Floats, Neighbour
from topwork.known import Known

KNOWN = "known.parquet"

NEAREST = 5
"""Training images that are shown with an explanation."""


class Learnt:
    """The training images that a run remembers: what they look like to its model, and which they are."""

    def __init__(self, features: Known, paths: Sequence[str], labels: Sequence[str]) -> None:
        self.features, self.paths, self.labels = features, tuple(paths), tuple(labels)
        self.rows = {path: row for row, path in enumerate(self.paths)}

    @classmethod
    def of(cls, folder: Path, features: Known | None) -> Learnt | None:
        """Of a run's folder, or of the model folder inside it; None where it does not say which images they are.

        Raises DataError where what it remembers is damaged.
        """
        home = folder if (folder / "model").is_dir() else folder.absolute().parent
        file = home / KNOWN
        if features is None or not file.is_file():
            return None
        columns = columns_of(file, "path", "label")
        if len(columns["path"]) != len(features.features):
            raise DataError(
                f"{file}: {len(columns['path'])} images, expected {len(features.features)} as {known.FILE} has; copy"
                " the run's folder anew, or fit again"
            )
        return cls(features, columns["path"], columns["label"])

    def nearest(self, pooled: Floats, but: Sequence[str] = ()) -> list[tuple[Neighbour, ...]]:  # (b, d)
        """The NEAREST of these to each of b images, the most similar first; without `but`, the images' own paths."""
        rows, similarity = self.features.nearest(pooled, NEAREST + bool(but))
        own = but or [""] * len(rows)
        return [
            tuple(
                Neighbour(self.paths[r], self.labels[r], float(s))
                for r, s in zip(row, near, strict=True)
                if self.paths[r] != path
            )[:NEAREST]
            for row, near, path in zip(rows, similarity, own, strict=True)
        ]


def columns_of(file: Path, *names: str) -> dict[str, list[Any]]:
    """Columns of a Parquet file of a run, by default all. Raises DataError where they are not there."""
    from pyarrow import ArrowException, parquet  # noqa: PLC0415

    try:
        found: dict[str, list[Any]] = parquet.read_table(file, columns=list(names) or None).to_pydict()
    except (OSError, ArrowException) as error:
        raise DataError(f"{file}: cannot be read ({error}); copy the run's folder anew, or fit again") from error
    if missing := set(names) - found.keys():
        raise DataError(f"{file}: no column {', '.join(sorted(missing))}; copy the run's folder anew, or fit again")
    return found
