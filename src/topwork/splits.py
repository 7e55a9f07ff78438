"""Which images stood on which side, so that another run can do the same?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from topwork import groups
from topwork.errors import DataError
from topwork.records import Dataset, Example, Part

NAME = "split.parquet"
COLUMNS = ("path", "digest", "label", "part", "group")


def write(path: Path, dataset: Dataset, locked: str) -> None:
    """One row per usable image: path, digest of the content, class, part, number of its group."""
    import pyarrow as pa  # noqa: PLC0415 (0.3 s to import)
    from pyarrow import parquet  # noqa: PLC0415

    examples = dataset.examples
    columns: dict[str, Sequence[object]] = {
        "path": [e.path for e in examples],
        "digest": [e.digest for e in examples],
        "label": ["|".join(dataset.classes[i] for i in dataset.labels_of(e)) for e in examples],
        "part": [e.part for e in examples],
        "group": groups.known(examples),  # type: ignore[dict-item]
    }
    parquet.write_table(pa.table(columns, metadata={"locked": locked}), path)


def applied(dataset: Dataset, split: str | Path) -> tuple[Dataset, str]:
    """The dataset with the parts and groups of an earlier run, given by its folder or its split.parquet.

    Images are found again by their content, else by their path. New ones are learnt from. Raises DataError where
    there is no split, or it is of other images.
    """
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    given = Path(split)
    file = given / NAME if given.is_dir() else given
    if not file.is_file():
        raise DataError(f"--split {split}: no split there; expected a finished run's folder, or its {NAME}")
    try:
        table = parquet.read_table(file, columns=list(COLUMNS))
        rows = table.to_pylist()
        locked = (table.schema.metadata or {})[b"locked"].decode()
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"--split {split}: {file} cannot be read as a split ({error})") from error
    if not all(row["part"] in {"train", "val", "test"} for row in rows):
        raise DataError(f"--split {split}: a part is none of train, val and test; expected what topwork wrote")
    by_digest = {row["digest"]: row for row in rows}
    by_path = {row["path"]: row for row in rows}
    several = {group for group, images in Counter(row["group"] for row in rows).items() if images > 1}
    new = 0
    examples: list[Example] = []
    for e in dataset.examples:
        row = by_digest.get(e.digest) or by_path.get(e.path)
        if row is None:
            new += 1
            examples.append(replace(e, part="train"))
            continue
        part: Part = row["part"]
        scene = f"split {row['group']}" if row["group"] in several else ""
        examples.append(replace(e, part=part, scene=scene))
    if new == len(examples):
        raise DataError(f"--split {split}: it names none of the {new} images in {dataset.root}")
    if locked != "out-of-sample" and not any(e.part == "test" for e in examples):
        raise DataError(f"--split {split}: none of the images that it locks are in {dataset.root}")
    word = f"{new} images are new to the split of {split}: they are learnt from."
    warnings = (*dataset.warnings, *([word] if new else []))
    return replace(dataset, examples=tuple(examples), warnings=warnings), locked
