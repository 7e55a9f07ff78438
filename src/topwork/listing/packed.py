"""Which images are in a folder that Hugging Face's `datasets` saved?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from topwork import stores
from topwork.errors import DataError
from topwork.listing import tables
from topwork.listing.items import PARTS, Item, Listing
from topwork.records import Columns, Fault


def listed(folder: Path, columns: Columns) -> Listing:
    """The rows of its table, or of the table of each split; splits that are no part are left out and said.

    Raises DataError where it cannot be read, UsageError where a column is missing or cannot be guessed.
    """
    found = stores.arrow_tables(folder)
    alone = next(iter(found)) if len(found) == 1 else None
    faults: list[Fault] = []
    items: list[Item] = []
    parts = {split: PARTS[split.lower()] for split in found if split.lower() in PARTS}
    if alone is not None:
        parts.setdefault(alone, "train")
    said, image, several = "", "", False
    for split, content in found.items():
        if split not in parts:
            faults.append(Fault(split, "outside any part", f"beside {', '.join(sorted(parts)) or 'no part'}"))
            continue
        table = tables.Typed(f"{folder.name}/{split}" if split else folder.name, content, _features(folder / split))
        chosen = tables.choose(table, columns)
        if image and chosen.image != image:
            raise DataError(f"{folder}: its splits name their images differently: {image!r} and {chosen.image!r}")
        image, said = chosen.image, chosen.said
        if table.kind(image) != "bytes":
            raise DataError(f"{folder}: column {image!r} holds no images; expected bytes, as `datasets` saves an Image")
        several = several or tables.several(table, chosen, columns)
        if len(content):
            part = parts[split] if split else None
            items += tables.rows(table, chosen, columns, faults, part=part, split=split)
    if not items and not faults:
        raise DataError(f"{folder}: it has no rows")
    layout = f"Hugging Face folder: {said}" + (f", parts {', '.join(sorted(parts))}" if any(parts) else "")
    return Listing(f"{folder}#{image}", layout, items, faults, several=several)


def _features(folder: Path) -> Mapping[str, Any]:
    """What dataset_info.json says of the columns; nothing where it is not there or says something else."""
    try:
        features = msgspec.json.decode((folder / "dataset_info.json").read_bytes())["features"]
    except (OSError, KeyError, TypeError, msgspec.DecodeError, RecursionError):
        return {}
    return features if isinstance(features, Mapping) else {}
