"""What is known of an image before it is looked at?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from topwork.records import Columns, Fault, Part

PARTS: dict[str, Part] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names that tools in use give to the parts of a split, lower case: of folders, and in a split column."""

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jp2",
    ".heic", ".heif", ".avif",
)  # fmt: skip
"""Endings that say image: a file with one that is none is a broken one, and a column of such names is one of paths."""


GUESSED = Columns()
"""No column is named."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image: its path in the listing's root, the names of its labels, its part and group."""

    path: str
    labels: tuple[str, ...]  # one, unless the listing has several labels
    part: Part = "train"
    group: str = ""
    row: str = ""  # where a table names it, for messages


@dataclass(frozen=True)
class Listing:
    """What a source names."""

    root: str  # what stores.opened takes
    layout: str  # how it was read, as the user is told
    items: Sequence[Item]
    faults: Sequence[Fault]
    part_word: str = "part"  # what a part is called in it
    several: bool = False  # an image may have several labels, or none
