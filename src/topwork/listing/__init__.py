"""What says which images there are, and which labels they have?

`listed` takes whatever the user has (folders, a table, a packed file, a Hugging Face folder, an address) and gives one
listing: every image with its labels, part and group, before any is looked at. `given` brings what comes from Python
into the same form.
"""

from __future__ import annotations

from pathlib import Path

from topwork import stores
from topwork.errors import DataError, UsageError
from topwork.listing.arrays import given
from topwork.listing.folders import listed as _folders
from topwork.listing.items import GUESSED, IMAGE_SUFFIXES, PARTS, Item, Listing
from topwork.listing.packed import listed as _packed
from topwork.listing.tables import SUFFIXES, named
from topwork.listing.tables import listed as _table
from topwork.records import Columns

__all__ = ["GUESSED", "IMAGE_SUFFIXES", "PARTS", "Item", "Listing", "given", "is_table", "listed", "named"]


def listed(source: str, columns: Columns) -> Listing:
    """Every image of a source, in a stable order; what cannot be one is among the faults.

    Raises DataError where the source is not there or says nothing of labels, UsageError where the columns do not fit
    it, MissingError where a package is needed for it.
    """
    if stores.is_url(source):
        if source.lower().endswith(SUFFIXES):
            return _table(source, columns)
    else:
        path = Path(source)
        if path.is_file():
            if not source.lower().endswith(SUFFIXES):
                raise DataError(f"{source}: not a table of images; expected a file ending in {', '.join(SUFFIXES)}")
            return _table(source, columns)
        if not path.is_dir():
            raise DataError(
                f"{source}: no such folder; expected one folder per class, train/ and test/ of such, or a table"
                f" ({', '.join(SUFFIXES)})"
            )
        if stores.is_arrow_folder(path):
            return _packed(path, columns)
    if columns != GUESSED:
        raise UsageError(
            f"{source}: columns are named, but a folder of images has none; its folders say the labels. Leave out the"
            f" columns, or give a table ({', '.join(SUFFIXES)})"
        )
    return _folders(source)


def is_table(source: str) -> bool:
    """Whether a source is a table by its ending."""
    return source.lower().endswith(SUFFIXES)
