"""Which image, which label, which part and which group does a row name, and in which columns do they stand?

CSV, TSV, JSON Lines and Parquet. Columns are named by the user, or guessed from their names and contents; then what
was guessed is said. One row is one image.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from topwork import stores
from topwork.errors import DataError, ImageError, UsageError
from topwork.listing.items import IMAGE_SUFFIXES, PARTS, Item, Listing
from topwork.records import Columns, Fault, Part

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

IMAGE_NAMES = (
    "image", "imagepath", "imagefile", "imagefilename", "imagename", "imageurl", "img", "imgpath", "path", "filepath",
    "filename", "file", "photo", "picture", "url",
)  # fmt: skip
LABEL_NAMES = (
    "labelname", "classname", "label", "labels", "class", "classes", "category", "categories", "species", "target",
    "tag", "tags", "y",
)  # fmt: skip
SPLIT_NAMES = ("split", "subset", "partition", "part", "set")
GROUP_NAMES = (
    "group", "groupid", "patient", "patientid", "subject", "subjectid", "burst", "burstid", "sequenceid", "sceneid",
)  # fmt: skip
"""Names by which columns are guessed, the likeliest first; case, spaces, dashes and underscores do not count."""

_LOOKED_AT = 50  # values of a column from which its content is guessed
_SHOWN = 5  # wrong values that a message quotes
_DELIMITERS = (",", ";", "\t", "|")  # what spreadsheets write; in a draw, the first
_INDICES = ("__index_level_", "Unnamed: ")  # what pandas calls the numbers of its rows
_YES, _NO = {"1", "true", "yes"}, {"0", "false", "no"}


class Table(Protocol):
    """Columns of values."""

    name: str  # for messages
    first: int  # the number of the first row, as whoever made the table counts them

    def columns(self) -> tuple[str, ...]:
        """Their names, in order."""

    def kind(self, column: str) -> str:
        """ "bytes" for encoded images, "list" for several values a row, else "plain"."""

    def values(self, column: str) -> list[Any]:
        """One value per row; of a column of bytes, the names of the images or None."""

    def classes(self, column: str) -> Sequence[str] | None:
        """The names that the numbers in a column stand for, where the table says them."""

    def wrong(self, row: int) -> str:
        """Why a row could not be read; nothing where it could."""


@dataclass(frozen=True)
class Chosen:
    """The columns that count, and how that is said."""

    image: str
    labels: tuple[str, ...]
    split: str | None
    group: str | None
    said: str


@dataclass
class Rows:
    """A table in memory."""

    name: str
    first: int
    content: dict[str, list[Any]]
    broken: dict[int, str] = field(default_factory=dict)  # rows that could not be read, and why

    def columns(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(self.content)

    def kind(self, column: str) -> str:
        """A list where any row has one."""
        return "list" if any(isinstance(v, list) for v in self.content[column]) else "plain"

    def values(self, column: str) -> list[Any]:
        """One value per row."""
        return self.content[column]

    def classes(self, column: str) -> Sequence[str] | None:
        """Text says itself."""
        return None

    def wrong(self, row: int) -> str:
        """What was found in reading."""
        return self.broken.get(row, "")


class Typed:
    """An Arrow table or a Parquet file, of which a column is read when it is asked for."""

    def __init__(self, name: str, source: Any, features: Mapping[str, Any] | None = None) -> None:
        self.name, self.first = name, 0
        self._source = source
        self._schema = source.schema_arrow if hasattr(source, "schema_arrow") else source.schema
        self._features = _features(self._schema.metadata) or features or {}

    def columns(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(self._schema.names)

    def kind(self, column: str) -> str:
        """By the type of the column."""
        from pyarrow import types as t  # noqa: PLC0415 (0.3 s to import)

        of = self._schema.field(column).type
        if t.is_struct(of):
            return "bytes" if of.get_field_index("bytes") >= 0 and _is_bytes(of.field("bytes").type) else "plain"
        if t.is_list(of) or t.is_large_list(of) or t.is_fixed_size_list(of):
            return "list"
        return "bytes" if _is_bytes(of) else "plain"

    def values(self, column: str) -> list[Any]:
        """One value per row."""
        from pyarrow import compute  # noqa: PLC0415

        try:
            rows = self._source.metadata.num_rows if hasattr(self._source, "schema_arrow") else self._source.num_rows
            if self.kind(column) == "bytes":
                of = self._schema.field(column).type
                if not of.num_fields or of.get_field_index("path") < 0:
                    return [None] * rows
                if hasattr(self._source, "schema_arrow"):
                    found = self._source.read(columns=[f"{column}.path"]).column(0)
                else:
                    found = self._source.column(column)
                names: list[Any] = compute.struct_field(found, "path").to_pylist()
                return names
            read = self._source.read(columns=[column]) if hasattr(self._source, "schema_arrow") else self._source
            values: list[Any] = read.column(column).to_pylist()
        except Exception as error:  # Arrow raises its own
            raise DataError(f"{self.name}: column {column!r} cannot be read ({stores.reason(error)})") from error
        return values

    def classes(self, column: str) -> Sequence[str] | None:
        """Those of a ClassLabel, which `datasets` writes beside the columns."""
        feature = self._features.get(column)
        while isinstance(feature, Mapping) and "names" not in feature:
            feature = feature.get("feature")  # a list of such
        if isinstance(feature, list) and len(feature) == 1 and isinstance(feature[0], Mapping):
            feature = feature[0]
        names = feature.get("names") if isinstance(feature, Mapping) else None
        return [str(name) for name in names] if isinstance(names, list) else None

    def wrong(self, row: int) -> str:
        """Nothing: Arrow gives a column whole or not at all."""
        return ""


def listed(source: str, columns: Columns) -> Listing:
    """The images that a table names or holds.

    Paths are relative to the table's folder, or absolute. Raises DataError where it cannot be read or a split is none,
    UsageError where a column is missing or cannot be guessed.
    """
    faults: list[Fault] = []
    table, folder, name = _opened(source)
    chosen = choose(table, columns)
    packed = table.kind(chosen.image) == "bytes"
    if packed and "#" in chosen.image:
        raise UsageError(f"{source}: the column {chosen.image!r} of the images has a # in its name; rename it")
    items = list(rows(table, chosen, columns, faults))
    layout = f"{name}: {chosen.said}"
    root = f"{source}#{chosen.image}" if packed else folder
    return Listing(root, layout, items, faults, several=several(table, chosen, columns))


def named(source: str, column: str | None = None) -> tuple[str, list[str]]:
    """(root for stores.opened, path of each row's image) of a table; no label is asked for.

    `column`: of the images, else guessed. A row without an image has an empty path. Raises as listed does.
    """
    table, folder, _ = _opened(source)
    if column is not None and column not in table.columns():
        raise UsageError(f"--image-column {column}: {table.name} has no such column; it has {_list(table.columns())}")
    chosen = column or _image(table, set())
    names = [text(v).strip() for v in table.values(chosen)]
    if table.kind(chosen) != "bytes":
        return folder, names
    if "#" in chosen:
        raise UsageError(f"{source}: the column {chosen!r} of the images has a # in its name; rename it")
    return f"{source}#{chosen}", [stores.row_path(i, name or None) for i, name in enumerate(names)]


def _opened(source: str) -> tuple[Table, str, str]:
    """A table, the folder it lies in, and its name."""
    url = stores.is_url(source)
    folder, _, name = source.rpartition("/") if url else (str(Path(source).parent), "", Path(source).name)
    table: Table
    if source.lower().endswith(".parquet"):
        table = Typed(name, stores.parquet(source))
    else:
        try:
            data = stores.opened(folder).read(name)
        except ImageError as error:
            if source.startswith(stores.MEMORY):
                raise DataError(
                    f"{source}: these images were in the memory of a process that has ended; give them to topwork.fit"
                    " again (what was computed of them is found by their content)"
                ) from error
            raise DataError(f"{source}: not a table of images: {error}") from error
        is_json = source.lower().endswith((".jsonl", ".ndjson"))
        table = _json_lines(name, data) if is_json else _separated(name, data, source)
    return table, folder, name


def choose(table: Table, columns: Columns) -> Chosen:
    """The columns of images, labels, parts and groups. Raises UsageError that lists the columns."""
    have = table.columns()
    for option, wanted in [
        ("image", (columns.image,)), ("label", columns.labels), ("split", (columns.split,)), ("group", (columns.group,))
    ]:  # fmt: skip
        for column in wanted:
            if column is not None and column not in have:
                raise UsageError(f"--{option}-column {column}: {table.name} has no such column; it has {_list(have)}")
    image = columns.image or _image(table, {columns.split, columns.group, *columns.labels})
    group = columns.group or _first(have, GROUP_NAMES, {image, *columns.labels})
    split = columns.split or _split(table, {image, group, *columns.labels})
    labels = columns.labels or (_label(table, {image, group, split}),)
    taken = [c for c in (image, *labels, split, group) if c is not None]
    twice = sorted({c for c in taken if taken.count(c) > 1})
    if twice:
        raise UsageError(f"{table.name}: column {twice[0]!r} cannot be two things; it has {_list(have)}")
    if any(table.kind(c) == "bytes" for c in taken if c != image):
        raise UsageError(f"{table.name}: a column of bytes can only be the images; it has {_list(have)}")
    said = [
        _said("images", (image,), columns.image is None),
        _said("labels", labels, not columns.labels),
        *([_said("parts", (split,), columns.split is None)] if split else []),
        *([_said("groups", (group,), columns.group is None)] if group else []),
    ]
    return Chosen(image, labels, split, group, ", ".join(said))


def several(table: Table, chosen: Chosen, columns: Columns) -> bool:
    """Whether an image may have several labels: a list, a separator, or a column for each."""
    return len(chosen.labels) > 1 or table.kind(chosen.labels[0]) == "list" or columns.separator is not None


def rows(
    table: Table, chosen: Chosen, columns: Columns, faults: list[Fault], *, part: Part | None = None, split: str = ""
) -> Iterator[Item]:
    """The image of each row; rows that name none, or no label, go to the faults.

    `part`: of all rows, where the table is one split's; `split`: its name. Raises DataError for unknown parts.
    """
    packed = table.kind(chosen.image) == "bytes"
    read = _labels(table, chosen, columns)
    images = table.values(chosen.image)
    if not images:
        raise DataError(f"{table.name}: the table has no rows")
    parts = [part or "train"] * len(images) if chosen.split is None else _parts(table, chosen.split)
    groups = table.values(chosen.group) if chosen.group else [""] * len(images)
    for i, (name, of, group) in enumerate(zip(images, parts, groups, strict=True)):
        row = f"row {i + table.first}"
        named = text(name).strip()
        path = stores.row_path(i, named or None, split) if packed else named
        if not path:
            detail = table.wrong(i) or f"no image in column {chosen.image!r}"
            faults.append(Fault(f"{table.name}, {row}", "not a row", detail))
            continue
        labels = read(i)
        if isinstance(labels, str):
            faults.append(Fault(path, "no label", f"{labels}; {row} of {table.name}"))
            continue
        yield Item(path, labels, of, text(group), "" if packed else f"{row} of {table.name}")


def text(value: Any) -> str:
    """A cell as text: whole numbers without a point, nothing for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():  # pandas makes such of integers beside a gap
        return str(int(value))
    return str(value)


class _Read(Protocol):
    def __call__(self, row: int) -> tuple[str, ...] | str:
        """The names of a row's labels, or what is wrong with it."""


def _labels(table: Table, chosen: Chosen, columns: Columns) -> _Read:
    """How the labels of a row are read."""
    if len(chosen.labels) > 1:
        if columns.separator is not None:
            raise UsageError("--label-separator splits one label column; several are one class each, with 0 or 1")
        flags = {c: table.values(c) for c in chosen.labels}
        return lambda row: _flagged({c: text(v[row]).strip().lower() for c, v in flags.items()})
    column = chosen.labels[0]
    values, names = table.values(column), table.classes(column)
    if table.kind(column) == "list":
        if columns.separator is not None:
            raise UsageError(f"--label-separator: column {column!r} of {table.name} holds lists already; leave it out")
        return lambda row: _many(values[row], names)
    if columns.separator is not None:
        if not columns.separator:
            raise UsageError("--label-separator: expected a sign, such as '|'")
        return lambda row: _many(text(values[row]).split(columns.separator), None)
    return lambda row: _one(values[row], names, column)


def _one(value: Any, names: Sequence[str] | None, column: str) -> tuple[str, ...] | str:
    label = _name(value, names)
    return (label,) if label.strip() else f"nothing in column {column!r}"


def _many(values: Any, names: Sequence[str] | None) -> tuple[str, ...] | str:
    if values is None:
        return "null, which is not the same as an empty list"
    found = (_name(v, names).strip() for v in (values if isinstance(values, list) else [values]))
    return tuple(sorted({label for label in found if label}))


def _flagged(cells: Mapping[str, str]) -> tuple[str, ...] | str:
    values = {column: value.removesuffix(".0") for column, value in cells.items()}
    wrong = [c for c, v in values.items() if v not in _YES | _NO]
    if wrong:
        return f"{values[wrong[0]]!r} in column {wrong[0]!r}, expected 0 or 1"
    return tuple(sorted(c for c, v in values.items() if v in _YES))


def _name(value: Any, names: Sequence[str] | None) -> str:
    """The label of a cell; a number that no name belongs to (-1 where it is unknown) is none."""
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else ""
    return text(value)


def _parts(table: Table, column: str) -> list[Part]:
    """The part of each row. Raises DataError with what is none, and what would be."""
    values = [text(v).strip() for v in table.values(column)]
    unknown = sorted({v for v in values if v.lower() not in PARTS})
    if unknown:
        shown = ", ".join(map(repr, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
        first = next(i for i, v in enumerate(values) if v.lower() not in PARTS)
        raise DataError(
            f"{table.name}: column {column!r} has parts that are none: {shown}, first in row {first + table.first};"
            f" expected {', '.join(PARTS)}"
        )
    return [PARTS[v.lower()] for v in values]


def _image(table: Table, taken: set[str | None]) -> str:
    """The column of the images. Raises UsageError where it cannot be guessed."""
    have = table.columns()
    if any(c.lower().endswith(IMAGE_SUFFIXES) for c in have):
        raise UsageError(
            f"{table.name}: its first line looks like a row; expected a line with the columns' names first"
        )
    labels = {_first(have, LABEL_NAMES, taken), *taken}
    like = [c for c in have if c not in labels and _like_images(table, c)]
    by_name = _first(like, IMAGE_NAMES, set())
    if by_name is None and len(like) == 1:
        by_name = like[0]
    if by_name is None and not like:
        by_name = _first(have, IMAGE_NAMES, taken)
    if by_name is not None:
        return by_name
    raise UsageError(
        f"{table.name}: which column names the images? "
        + (f"{_list(like)} could; " if like else "")
        + f"say it with --image-column; it has {_list(have)}"
    )


def _like_images(table: Table, column: str) -> bool:
    """Whether a column holds bytes, or mostly names that end like an image's."""
    if table.kind(column) != "plain":
        return table.kind(column) == "bytes"
    filled = [v for v in table.values(column) if v is not None][:_LOOKED_AT]
    named = sum(isinstance(v, str) and v.strip().lower().endswith(IMAGE_SUFFIXES) for v in filled)
    return 2 * named > len(filled)


def _label(table: Table, taken: set[str | None]) -> str:
    """The column of the labels. Raises UsageError where it cannot be guessed."""
    have = table.columns()
    by_name = _first(have, LABEL_NAMES, taken)
    if by_name is not None:
        return by_name
    left = [c for c in have if c not in taken and not c.startswith(_INDICES) and table.kind(c) != "bytes"]
    if len(left) == 1:
        return left[0]
    raise UsageError(f"{table.name}: which column holds the labels? say it with --label-column; it has {_list(have)}")


def _split(table: Table, taken: set[str | None]) -> str | None:
    """The column of the parts, if any: whatever is called split, or a likely one that holds nothing but parts."""
    for name in SPLIT_NAMES:
        column = _first(table.columns(), (name,), taken)
        if column is not None and table.kind(column) == "plain":
            values = {text(v).strip().lower() for v in table.values(column)}
            if name == "split" or values <= PARTS.keys():
                return column
    return None


def _first(columns: Sequence[str], names: Sequence[str], taken: set[str | None]) -> str | None:
    """The column of the likeliest name."""
    plain = {re.sub(r"[^a-z0-9]", "", c.lower()): c for c in reversed(columns) if c not in taken}
    return next((plain[name] for name in names if name in plain), None)


def _said(what: str, columns: Sequence[str], guessed: bool) -> str:
    named = f"column{'s' if len(columns) > 1 else ''} {_list(columns)}"
    return f"{what} from {named}" + (" (guessed)" if guessed else "")


def _list(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns)) or "none"


def _separated(name: str, data: bytes, source: str) -> Rows:
    """CSV or TSV with a line of names first; the first row below it is row 2, as spreadsheets count."""
    content = _decoded(name, data)
    delimiter = "\t" if source.lower().endswith(".tsv") else _delimiter(content)
    try:
        lines = list(csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, skipinitialspace=True))
    except csv.Error as error:
        raise DataError(f"{name}: cannot be read as a table ({error})") from error
    header, *below = lines or [[]]
    header = [c.strip() for c in header]
    if not any(header):
        raise DataError(f"{name}: the table is empty; expected a line with the columns' names, then a line per image")
    twice = sorted({c for c in header if c and header.count(c) > 1})
    if twice:
        raise DataError(f"{name}: two columns are called {twice[0]!r}; rename one")
    while below and not any(c.strip() for c in below[-1]):  # spreadsheets end with such
        below.pop()
    width = len(header)
    broken = {i: f"{len(row)} cells, {width} names of columns" for i, row in enumerate(below) if len(row) > width}
    # A line of too many cells has a separator in it that is none: which one, nobody knows.
    cells = [[""] * width if i in broken else row + [""] * (width - len(row)) for i, row in enumerate(below)]
    # A column without a name numbers the rows.
    return Rows(name, 2, {c: [row[i] for row in cells] for i, c in enumerate(header) if c}, broken)


def _delimiter(content: str) -> str:
    line = content.split("\n", 1)[0]
    return max(_DELIMITERS, key=lambda d: len(next(csv.reader([line], delimiter=d), [])))


def _json_lines(name: str, data: bytes) -> Rows:
    """An object a line, counted from 1."""
    found: list[dict[str, Any]] = []
    broken: dict[int, str] = {}
    lines = _decoded(name, data).split("\n")  # splitlines would also split at signs that JSON takes inside a text
    while lines and not lines[-1].strip():
        lines.pop()
    for i, line in enumerate(lines):
        value: Any = None
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            broken[i] = f"no JSON: {error}"
        if not isinstance(value, dict):
            broken.setdefault(i, "no JSON object")
        found.append(value if isinstance(value, dict) else {})
    columns = list(dict.fromkeys(key for row in found for key in row))
    if not columns:
        raise DataError(f"{name}: the table is empty; expected an object with a path and a label in each line")
    return Rows(name, 1, {c: [row.get(c) for row in found] for c in columns}, broken)


def _decoded(name: str, data: bytes) -> str:
    encoding = "utf-16" if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text (byte {error.start:,}); save it as UTF-8") from error


def _features(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Any]:
    """What `datasets` says of the columns, beside them."""
    try:
        features = msgspec.json.decode((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, msgspec.DecodeError, RecursionError):
        return {}
    return features if isinstance(features, Mapping) else {}


def _is_bytes(of: Any) -> bool:
    from pyarrow import types as t  # noqa: PLC0415

    return bool(t.is_binary(of) or t.is_large_binary(of) or t.is_fixed_size_binary(of))
