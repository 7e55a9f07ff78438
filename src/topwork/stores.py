"""Where do the bytes of an image lie?

In a folder, at a remote address, inside a Parquet file or a Hugging Face folder, or in this process's memory: `opened`
makes of a plain string, such as a run keeps for --resume, what gives out bytes by the path of an example.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from topwork import images
from topwork.errors import DataError, ImageError, LostError, MissingError, UsageError

TRIES = 3
"""How often a remote file is asked for before it counts as unreadable: one lost answer among ten thousand must not
change the data. What is certain (no such file, no permission) is not asked again."""

WAIT_S = 0.5
"""Seconds before the second try; twice as many before the third."""

LOST = 16
"""Images in a row that a remote place may fail to give before it counts as lost: so many by chance, each asked for
TRIES times, are no chance, and a model of the others would be no model of the data."""

ROWS = 16
"""Rows of a Parquet file that are read at once. A pass reads in nearly the order of the rows."""

KEPT_BYTES = 128 * 2**20
"""Of such pieces that are kept, the last ones read; but at least KEPT of them, for threads are as far apart."""

KEPT = 4
_SHIPPED = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
_ROW = re.compile(r"(?:(?P<split>[^/]+)/)?row (?P<row>\d+)(?: \(.*\))?", re.DOTALL)
LOCAL = "file://"
"""How a table that was made of a list of paths, in memory, names a file on this machine."""

MEMORY = "memory://"
HTTP = ("http://", "https://")


class Store(Protocol):
    """Gives out the bytes of images by their paths. Threads may share it."""

    def read(self, path: str) -> bytes:
        """All bytes of one image. Raises ImageError ("unreadable", "empty", "too large") with the reason."""

    def state(self, path: str) -> tuple[int, int] | None:
        """What changes when the image may have changed (bytes and time in ns); None where it is not there."""

    def where(self, path: str) -> str:
        """The path in full, for messages."""


def opened(root: str) -> Store:
    """The store of a root: a folder, a URL, or FILE#COLUMN of a Parquet file or a Hugging Face folder.

    Raises MissingError where a package is needed for it, DataError where it cannot be opened.
    """
    if is_url(root):
        file, mark, column = root.rpartition("#")
        return _packed(file, column, None) if mark and file.endswith(".parquet") else _remote(root)
    file, mark, column = root.rpartition("#")
    if mark and not Path(root).exists() and (state := _state(file)) is not None:
        return _packed(file, column, state)
    return Local(Path(root))


def is_url(source: str) -> bool:
    """Whether a source is an address of fsspec's rather than a path."""
    return "://" in source or "::" in source


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it.

    Raises MissingError naming what to install, UsageError for an unknown protocol, DataError where it will not open.
    """
    import fsspec  # noqa: PLC0415 (0.1 s to import, and most images lie in a folder)

    protocol = re.split(r"://|::", url)[0]
    try:
        fs, path = fsspec.url_to_fs(url)
    except ImportError as error:
        extra = _SHIPPED.get(url.rpartition("::")[2].partition("://")[0], "")
        command = f"pip install 'topwork[{extra}]'" if extra else "install the package that it names"
        raise MissingError(f"{url}: needs a package that is not installed ({error}): {command}") from error
    except ValueError as error:
        raise UsageError(
            f"{url}: {protocol} is no protocol that fsspec knows ({error}); such as s3, gs, https"
        ) from error
    except Exception as error:  # each file system raises its own
        raise DataError(f"{url}: cannot be opened ({reason(error)})") from error
    return fs, str(path)


def reason(error: BaseException) -> str:
    """What an error of a file system says, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


class Local:
    """A folder on this machine; absolute paths and URLs are read where they lead, for the table is the user's own."""

    def __init__(self, root: Path) -> None:
        self.root, self._folder = root, str(root)

    def read(self, path: str) -> bytes:
        """The bytes of a file."""
        if is_url(path):
            return _elsewhere(path).read("")
        return images.read_bytes(os.path.join(self._folder, path))  # noqa: PTH118 (a Path takes a tenth of the reading)

    def state(self, path: str) -> tuple[int, int] | None:
        """Size and time of the last change."""
        return (0, 0) if is_url(path) else _state(self.root / path)

    def where(self, path: str) -> str:
        """The file's path."""
        return path if is_url(path) else str(self.root / path)


class Remote:
    """What lies under a URL. A list that came from there leads nowhere else: neither here nor to another host."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/") if not root.endswith("://") else root
        self._fs, self._base = filesystem(root)

    def read(self, path: str) -> bytes:
        """The bytes of an object. Raises LostError where the place has not answered LOST times in a row."""
        if self.root.startswith(MEMORY) and is_url(path):  # a list that this process itself made
            return images.read_bytes(Path(path[len(LOCAL) :])) if path.startswith(LOCAL) else _elsewhere(path).read("")
        place = self._place(path)
        for again in range(TRIES):
            try:
                found = self._once(place)
                _answers(self.root)
                return found
            except (FileNotFoundError, PermissionError, IsADirectoryError, ValueError) as error:
                _answers(self.root)
                raise ImageError("unreadable", _plain(error)) from error
            except ImageError:
                _answers(self.root)
                raise
            except Exception as error:  # each file system raises its own
                if again == TRIES - 1:
                    _silent(self.root, error)
                    raise ImageError("unreadable", f"{reason(error)} (tried {TRIES} times)") from error
                time.sleep(WAIT_S * 2**again)
        raise AssertionError("unreachable")

    def state(self, path: str) -> tuple[int, int] | None:
        """Always the same: to ask would take as long as to read, and what was read is known by its digest."""
        if self.root.startswith(MEMORY) and path.startswith(LOCAL):
            return _state(path.removeprefix(LOCAL))
        return 0, 0

    def where(self, path: str) -> str:
        """The URL."""
        return path if is_url(path) else f"{self.root}/{path}" if path else self.root

    def _place(self, path: str) -> str:
        """Where a path lies in the file system. Raises ImageError where it leads out of its host or bucket."""
        if "::" in path or (is_url(path) and not path.startswith(_home(self.root))):
            raise ImageError("unreadable", f"a list under {_home(self.root)} may not lead to other places")
        if is_url(path):
            return str(self._fs._strip_protocol(path))
        if ".." in re.split(r"[/\\]", path):
            raise ImageError("unreadable", "a path with .. is not followed in a remote list")
        if self._base.startswith(HTTP):
            path = quote(path)  # a # or a % in a name is none of the address
        return f"{self._base.rstrip('/')}/{path.lstrip('/')}" if path else self._base

    def _once(self, place: str) -> bytes:
        size = self._fs.info(place).get("size")
        if size is not None and size > images.MAX_BYTES:
            raise ImageError("too large", f"{size:,} bytes; at most {images.MAX_BYTES:,} are read")
        if size == 0:
            raise ImageError("empty", "0 bytes")
        if size is None:  # a server that does not say
            with self._fs.open(place, "rb") as file:
                found = bytes(file.read(images.MAX_BYTES + 1))
        else:
            found = bytes(self._fs.cat_file(place))
        return _sized(found)


class Packed:
    """Images inside a Parquet file, one a row: paths are "row N" or "row N (name)"."""

    def __init__(self, file: str, column: str) -> None:
        self.file, self.column = file, column
        self._lock = threading.Lock()
        self._pieces: OrderedDict[tuple[int, int], Any] = OrderedDict()  # row group, piece: an Arrow column
        self._taken = 0  # bytes of these
        # Of the row groups read last: the next piece, and the rest of it.
        self._cursors: OrderedDict[int, tuple[int, Iterator[Any]]] = OrderedDict()
        self._parquet: Any = parquet(file)
        metadata = self._parquet.metadata
        counts = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        self._starts = [sum(counts[:g]) for g in range(len(counts))]
        self._rows = sum(counts)
        self._changed = None if is_url(file) else _state(file)

    def read(self, path: str) -> bytes:
        """The bytes in a row."""
        row = _row(path, self._rows)[1]
        group = max(g for g, start in enumerate(self._starts) if start <= row)
        piece, at = divmod(row - self._starts[group], ROWS)
        try:
            with self._lock:
                found = self._piece(group, piece)
        except Exception as error:  # Arrow raises its own
            if is_url(self.file):
                _silent(self.file, error)
            raise ImageError("unreadable", f"its rows cannot be read from the file ({reason(error)})") from error
        if is_url(self.file):
            _answers(self.file)
        return _cell(found, at)

    def state(self, path: str) -> tuple[int, int] | None:
        """That of the whole file."""
        return (0, 0) if is_url(self.file) else _state(self.file)

    def where(self, path: str) -> str:
        """The file and the row."""
        return f"{self.file}: {path}"

    def _piece(self, group: int, piece: int) -> Any:
        """ROWS rows of a row group, kept for a while: the file is read onwards, and from the start only to go back."""
        if (group, piece) not in self._pieces:
            at, batches = self._cursors.pop(group, (piece + 1, iter(())))
            if at > piece:
                at = 0
                batches = self._parquet.iter_batches(ROWS, row_groups=[group], columns=[self.column], use_threads=False)
            while at <= piece:
                self._keep((group, at), next(batches).column(0))
                at += 1
            self._cursors[group] = at, batches
            if len(self._cursors) > KEPT:
                self._cursors.popitem(last=False)
        self._pieces.move_to_end((group, piece))
        return self._pieces[group, piece]

    def _keep(self, key: tuple[int, int], piece: Any) -> None:
        known = self._pieces.pop(key, None)
        self._pieces[key] = piece
        self._taken += piece.nbytes - (0 if known is None else known.nbytes)
        while self._taken > KEPT_BYTES and len(self._pieces) > KEPT:
            self._taken -= self._pieces.popitem(last=False)[1].nbytes


class Arrow:
    """Images in the Arrow files of a folder that Hugging Face's `datasets` saved: "row N" or "SPLIT/row N"."""

    def __init__(self, folder: str, column: str) -> None:
        self.folder = folder
        self._columns = {split: table.column(column) for split, table in arrow_tables(Path(folder)).items()}

    def read(self, path: str) -> bytes:
        """The bytes in a row, which Arrow maps from the file."""
        split = _row(path, 0)[0]
        if split not in self._columns:
            raise ImageError("unreadable", f"no split {split!r} in it")
        column = self._columns[split]
        row = _row(path, len(column))[1]
        for chunk in column.chunks:
            if row < len(chunk):
                return _cell(chunk, row, Path(self.folder))
            row -= len(chunk)
        raise AssertionError("unreachable")

    def state(self, path: str) -> tuple[int, int] | None:
        """That of the folder, which is written once."""
        return _state(self.folder)

    def where(self, path: str) -> str:
        """The folder and the row."""
        return f"{self.folder}: {path}"


def row_path(row: int, name: str | None = None, split: str = "") -> str:
    """How an example in a packed file is called."""
    return (f"{split}/" if split else "") + f"row {row}" + (f" ({name})" if name else "")


def parquet(file: str) -> Any:
    """A Parquet file, opened so that it is read in pieces, whatever the size of its row groups. Raises DataError."""
    from pyarrow import parquet as pq  # noqa: PLC0415 (0.3 s to import)

    try:
        if is_url(file):
            fs, path = filesystem(file)
            return pq.ParquetFile(fs.open(path, "rb"), buffer_size=2**20)
        return pq.ParquetFile(file, buffer_size=2**20)  # not mapped: a file cut short meanwhile would end the process
    except (UsageError, MissingError, DataError):
        raise
    except Exception as error:  # Arrow raises its own, and each file system too
        raise DataError(f"{file}: cannot be read as Parquet ({reason(error)})") from error


def is_arrow_folder(folder: Path) -> bool:
    """Whether `datasets` saved this folder: one table, or a folder of such for each split."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def arrow_tables(folder: Path) -> dict[str, Any]:
    """The tables of a folder that `datasets` saved, mapped and not read, by split ("" where there are none).

    Raises DataError where its files are not what `save_to_disk` writes.
    """
    import json  # noqa: PLC0415

    import pyarrow as pa  # noqa: PLC0415 (0.3 s to import)

    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
            return {str(split): arrow_tables(folder / split)[""] for split in splits}
        state = json.loads((folder / "state.json").read_text("utf-8"))
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise DataError(
                f"{folder}: its rows are in an order of their own; save it once more with `datasets` 2 or later"
            )
        pieces = []
        for entry in state["_data_files"]:
            with pa.memory_map(str(folder / entry["filename"])) as source:
                pieces.append(pa.ipc.open_stream(source).read_all())
        return {"": pa.concat_tables(pieces)}
    except (OSError, KeyError, TypeError, AttributeError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{folder}: cannot be read as what `datasets` saves to disk ({reason(error)})") from error


def _cell(column: Any, at: int, beside: Path | None = None) -> bytes:
    """The image in one cell of bytes, or of bytes and path. Raises ImageError."""
    cell = column[at]
    if hasattr(cell.type, "num_fields") and cell.type.num_fields and cell.is_valid:
        if not cell["bytes"].is_valid and beside is not None and cell["path"].is_valid:
            return images.read_bytes(beside / cell["path"].as_py())
        cell = cell["bytes"]
    if not cell.is_valid:
        raise ImageError("empty", "no bytes in this row")
    size = cell.as_buffer().size
    if size > images.MAX_BYTES:
        raise ImageError("too large", f"{size:,} bytes; at most {images.MAX_BYTES:,} are read")
    return _sized(bytes(cell.as_buffer()))


def _row(path: str, rows: int) -> tuple[str, int]:
    """Split and row of a packed path; a row beyond the last one is no image, unless `rows` is 0."""
    found = _ROW.fullmatch(path)
    if found is None or (rows and int(found["row"]) >= rows):
        raise ImageError("unreadable", f"no such row; there are {rows:,}")
    return found["split"] or "", int(found["row"])


def _sized(data: bytes) -> bytes:
    if not data:
        raise ImageError("empty", "0 bytes")
    if len(data) > images.MAX_BYTES:
        raise ImageError("too large", f"more than {images.MAX_BYTES:,} bytes are not read")
    return data


def _state(path: str | Path) -> tuple[int, int] | None:
    """Bytes and time of the last change, in ns; None where there is no such file."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


_failures: dict[str, int] = {}  # of each host or bucket, since it last answered: a table may name addresses on it
_counting = threading.Lock()


def _answers(root: str) -> None:
    """A place has answered, if only that there is no such file."""
    _failures.pop(_home(root), None)


def _silent(root: str, error: Exception) -> None:
    """A place has not answered. Raises LostError where it has not for LOST images in a row."""
    home = _home(root)
    with _counting:
        _failures[home] = _failures.get(home, 0) + 1
        if _failures[home] < LOST:
            return
        _failures.pop(home)  # who tries again later gets as many tries
    raise LostError(
        f"{home} answers no more: the last {LOST} images could not be read ({reason(error)}). What was computed is"
        " kept: give the same command again once it answers, or resume the run with --resume"
    ) from error


def _home(root: str) -> str:
    """Protocol and host (or bucket) of a URL, with a slash at its end."""
    protocol, _, rest = root.rpartition("::")[2].partition("://")
    return f"{protocol}://{rest.split('/')[0]}/"


def _plain(error: Exception) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else reason(error)


@lru_cache(maxsize=64)
def _remote(root: str) -> Remote:
    return Remote(root)


@lru_cache(maxsize=1024)
def _elsewhere(url: str) -> Remote:
    return Remote(url)


@lru_cache(maxsize=8)
def _packed(file: str, column: str, _: tuple[int, int] | None) -> Store:
    """One store for all in this process who ask, until the file changes."""
    return Packed(file, column) if is_url(file) or not Path(file).is_dir() else Arrow(file, column)
