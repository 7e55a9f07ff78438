"""How is a cleaned list of images written?

A table that `topwork fit` reads like any other: the path of each image from where the list lies, its label, and its
part and group where there are such. It is a new file; the images stay as and where they are.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path

from topwork import files
from topwork.errors import UsageError
from topwork.records import Dataset, Example

SUFFIXES = (".csv", ".parquet")
SEPARATOR = "|"
"""Between several labels in one cell of a CSV file; Parquet holds them as a list."""


def allowed(path: Path) -> None:
    """Raise UsageError unless a cleaned list may be written there."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--fix {path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if os.path.lexists(path):
        raise UsageError(f"--fix {path}: exists already and is not overwritten; name another file")
    if not path.parent.is_dir():
        raise UsageError(f"--fix {path}: there is no folder {path.parent}; make it first")


def write(path: Path, dataset: Dataset, examples: Sequence[Example]) -> None:
    """Write the list of these examples of a dataset. Raises UsageError where `allowed` does, or they are no files."""
    allowed(path)
    columns: dict[str, list[str]] = {"path": [_path(dataset.root, e.path, path.parent) for e in examples]}
    labels = [[dataset.classes[i] for i in (e.labels if dataset.multi_label else (e.label,))] for e in examples]
    columns["label"] = [SEPARATOR.join(of) for of in labels]
    if len({e.part for e in examples}) > 1:
        columns["split"] = [e.part for e in examples]
    if any(e.group for e in examples):
        columns["group"] = [e.group for e in examples]
    if path.suffix.lower() == ".csv":
        text = StringIO(newline="")
        rows = csv.writer(text)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))
        files.write(path, text.getvalue().encode())
        return
    import pyarrow as pa  # noqa: PLC0415 (half a second to import)
    import pyarrow.parquet as pq  # noqa: PLC0415

    table = pa.table({**columns, "label": labels} if dataset.multi_label else columns)
    buffer = BytesIO()
    pq.write_table(table, buffer)
    files.write(path, buffer.getvalue())


def _path(root: str, path: str, home: Path) -> str:
    """An image's path from the folder of the list; an address stays one."""
    if "://" in path:
        return path.removeprefix("file://")
    if ("://" in root or "::" in root) and not root.startswith("memory://") and "#" not in root:
        return f"{root.rstrip('/')}/{path}"
    if not Path(root).is_dir():
        raise UsageError(f"--fix lists files, and the images of {root} are none; save them into a folder first")
    whole = (Path(root) / path).absolute()
    try:
        return Path(os.path.relpath(whole, home.absolute())).as_posix()
    except ValueError:  # another drive of Windows
        return whole.as_posix()
