"""How are very many images asked, and how does it go on where it was interrupted?

Several batches at once, each decoded and computed by one thread, in the order of the images; memory does not grow with
their number. Answers go into a journal beside the file that was asked for. At the end the file is made of it and
renamed; until then the same call goes on where the journal ends.
"""

from __future__ import annotations

import csv
import json
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import msgspec

from topwork import images, listing, stores
from topwork.answers import Prediction, Rule
from topwork.asking import BATCH, Asked
from topwork.errors import ImageError, UsageError
from topwork.images import Source
from topwork.watch import SILENT, Watch

SUFFIXES = (".csv", ".jsonl", ".parquet")

WAITING = 2
"""Batches per lane that are begun and not yet written: one at work, one done before its turn."""

ROWS = 4096
"""Rows that are written to Parquet at once."""

SEPARATOR = "|"  # between several labels in one cell of a CSV file


@dataclass(frozen=True)
class Images:
    """What is asked about: how each image is called, in order, and what gives it."""

    names: Sequence[str]
    read: Callable[[str], Source]  # a path, or bytes; raises ImageError


@dataclass(frozen=True)
class Written:
    """What a file of answers came to."""

    images: int
    errors: int  # images without an answer; each has its row
    before: int  # that an interrupted call had done


def of(given: Sequence[Path | str], image_column: str | None = None) -> Images:
    """The images of files and folders (all files in them but hidden ones), or of one table.

    Raises UsageError where there are none, and what listing.named raises for a table.
    """
    if len(given) == 1 and listing.is_table(str(given[0])):
        root, paths = listing.named(str(given[0]), image_column)
        return Images(paths, stores.opened(root).read)
    if image_column is not None:
        raise UsageError("--image-column is of a table; expected one .csv, .tsv, .jsonl or .parquet file of images")
    names: list[str] = []
    for path in map(Path, given):
        if path.is_dir():
            inside = (Path(top) / name for top, _, found in os.walk(path) for name in found)
            names += sorted(str(p) for p in inside if not any(s.startswith(".") for s in p.relative_to(path).parts))
        else:
            names.append(str(path))
    if not names:
        raise UsageError(f"{', '.join(map(str, given))}: no files in it")
    return Images(names, lambda name: name)


def answers(
    asked: Asked, found: Images, *, rule: Rule | None = None, lanes: int | None = None, start: int = 0
) -> Iterator[Prediction]:
    """An answer per image, in order, from the image `start` on. `lanes`: batches at once (default: one per core)."""
    for chunk in _chunks(asked, found, rule, lanes or os.cpu_count() or 1, start):
        yield from chunk


def _chunks(asked: Asked, found: Images, rule: Rule | None, lanes: int, start: int) -> Iterator[list[Prediction]]:
    def work(names: Sequence[str]) -> list[Prediction]:
        loaded = []
        for name in names:
            try:
                loaded.append(asked.load(found.read(name)))
            except ImageError as error:
                loaded.append(error)
        return asked.answered(names, loaded, rule)

    waiting: deque[Future[list[Prediction]]] = deque()
    pool = ThreadPoolExecutor(lanes)
    try:
        for at in range(start, len(found.names), BATCH):
            waiting.append(pool.submit(work, found.names[at : at + BATCH]))
            if len(waiting) >= WAITING * lanes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def allowed(out: Path) -> None:
    """Raise UsageError unless answers may be written there."""
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {out}: expected a name that ends in {', '.join(SUFFIXES)}")
    if os.path.lexists(out):
        raise UsageError(f"--out {out}: exists already and is not overwritten; name another file")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first")


def write(
    asked: Asked, found: Images, out: str | Path, *, model: str, rule: Rule | None = None, lanes: int | None = None,
    watch: Watch = SILENT,
) -> Written:  # fmt: skip
    """Write an answer per image into a new .csv, .jsonl or .parquet file; go on where an earlier call was interrupted.

    `model` names the model's content: answers of another are not continued. Raises UsageError where `out` exists, has
    another ending, or an interrupted call with other images or another model waits there.
    """
    out = Path(out)
    allowed(out)
    journal = out.with_name(f".{out.name}.part")
    asked_for = [] if rule is None else [rule.limit, rule.bound]
    header = {
        "model": model, "images": images.digest("\0".join(found.names).encode()), "count": len(found.names),
        "rule": asked_for,
    }  # fmt: skip
    with _opened(journal) as file:
        before = _resumed(file, header, journal, out)
        watch.begin("predict", len(found.names))
        watch.advance(before)
        for chunk in _chunks(asked, found, rule, lanes or os.cpu_count() or 1, before):
            file.write(b"".join(_line(p) for p in chunk))
            file.flush()
            watch.advance(len(chunk))
        watch.end()
        file.seek(0)
        file.readline()
        errors = _finished(file, asked.classes, out)
    journal.unlink()
    return Written(len(found.names), errors, before)


def _line(p: Prediction) -> bytes:
    """A row of the journal: the probabilities without the names of the classes, which are always the same."""
    return msgspec.json.encode([replace(p, probabilities={}), list(p.probabilities.values())]) + b"\n"


_LINE = msgspec.json.Decoder(tuple[Prediction, list[float]])


def _opened(journal: Path) -> IO[bytes]:
    """The journal, for this process alone where the system can promise that."""
    try:
        file = journal.open("r+b") if journal.exists() else journal.open("x+b")
    except OSError as error:
        raise UsageError(f"--out: {journal} cannot be written there ({error.strerror}); name another file") from error
    try:
        import fcntl  # noqa: PLC0415 (not on Windows)

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError as error:
        file.close()
        raise UsageError(f"--out: another process is writing {journal}; name another file") from error
    return file


def _resumed(file: IO[bytes], header: dict[str, Any], journal: Path, out: Path) -> int:
    """How many images are done; the journal ends behind them.

    Whole batches, so that what is still to come is computed in the same company: the answers are the same to the bit.
    """
    first = file.readline()
    if first.endswith(b"\n"):
        try:
            known = msgspec.json.decode(first)
        except msgspec.DecodeError:
            known = None
        if known != header:
            raise UsageError(
                f"--out {out}: an interrupted call with other images or another model, or other options, waits in"
                f" {journal}; name another file, or delete that one"
            )
    else:
        file.seek(0)
        file.write(json.dumps(header).encode() + b"\n")
    end = file.tell()  # of the last batch that is whole
    rows, done, at = 0, 0, end
    for line in file:
        try:
            _LINE.decode(line)
        except msgspec.DecodeError:
            break
        if not line.endswith(b"\n"):
            break
        rows, at = rows + 1, at + len(line)
        if rows % BATCH == 0 or rows == header["count"]:
            done, end = rows, at
    file.seek(end)
    file.truncate()
    return done


def _finished(journal: IO[bytes], classes: Sequence[str], out: Path) -> int:
    """Make the file of the journal's rows, aside, and rename it; how many rows are of errors."""
    counted = [0]

    def rows() -> Iterator[Prediction]:
        for line in journal:
            p, shares = _LINE.decode(line)
            counted[0] += p.error is not None
            yield replace(p, probabilities=dict(zip(classes, shares, strict=True)) if shares else {})

    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        _WRITERS[out.suffix.lower()](rows(), classes, aside)
        if os.path.lexists(out):
            raise UsageError(f"--out {out}: was made by something else meanwhile and is not overwritten")
        aside.rename(out)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return counted[0]


def header(classes: Sequence[str]) -> list[str]:
    """The first row of a CSV file of answers."""
    return ["path", "label", "probability", "error", "unknown", "unknown_score", "prediction_set", *classes]


def cells(p: Prediction, classes: Sequence[str]) -> list[str]:
    """One answer as a row of a CSV file."""
    shares = [f"{p.probabilities[c]:.6f}" if p.error is None else "" for c in classes]
    share = "" if p.probability is None else f"{p.probability:.6f}"
    strange = "" if p.unknown is None else str(p.unknown).lower()
    score = "" if p.unknown_score is None else f"{p.unknown_score:.6f}"
    inside = SEPARATOR.join(p.prediction_set or ())
    return [p.source, SEPARATOR.join(p.labels), share, p.error or "", strange, score, inside, *shares]


def _csv(rows: Iterator[Prediction], classes: Sequence[str], file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as out:
        writer = csv.writer(out)
        writer.writerow(header(classes))
        writer.writerows(cells(p, classes) for p in rows)


def _jsonl(rows: Iterator[Prediction], _: Sequence[str], file: Path) -> None:
    with file.open("wb") as out:
        for p in rows:
            out.write(msgspec.json.encode(p) + b"\n")


def _parquet(rows: Iterator[Prediction], classes: Sequence[str], file: Path) -> None:
    """Columns as in predictions.parquet; the names of the classes stand in the metadata."""
    import pyarrow as pa  # noqa: PLC0415 (0.3 s to import)
    from pyarrow import parquet  # noqa: PLC0415

    schema = pa.schema(
        {
            "path": pa.string(), "label": pa.string(), "probability": pa.float64(), "error": pa.string(),
            "labels": pa.list_(pa.string()), "probabilities": pa.list_(pa.float64()), "unknown": pa.bool_(),
            "unknown_score": pa.float64(), "prediction_set": pa.list_(pa.string()),
        }, metadata={"classes": msgspec.json.encode(list(classes)).decode()},
    )  # fmt: skip

    def table(some: list[Prediction]) -> Any:
        return pa.table(
            {
                "path": [p.source for p in some], "label": [p.label for p in some],
                "probability": [p.probability for p in some], "error": [p.error for p in some],
                "labels": [list(p.labels) for p in some],
                "probabilities": [list(p.probabilities.values()) for p in some],
                "unknown": [p.unknown for p in some], "unknown_score": [p.unknown_score for p in some],
                "prediction_set": [None if p.prediction_set is None else list(p.prediction_set) for p in some],
            }, schema=schema,
        )  # fmt: skip

    with parquet.ParquetWriter(file, schema) as writer:
        some: list[Prediction] = []
        for p in rows:
            some.append(p)
            if len(some) == ROWS:
                writer.write_table(table(some))
                some = []
        if some:
            writer.write_table(table(some))


_WRITERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
