"""Many images in one call: in order, one row each, and where it was interrupted it goes on to the very same file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from conftest import as_backbone, tiny_network
from test_model import made, pictures
from topwork import batch
from topwork.answers import Prediction
from topwork.asking import BATCH
from topwork.errors import ImageError, UsageError
from topwork.images import Source
from topwork.model import Model

COUNT = 2 * BATCH + 5


@pytest.fixture(scope="module")
def asked() -> Model:
    return made(as_backbone(tiny_network()), "two", "four")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than two batches; every seventh file is no image."""
    home = tmp_path_factory.mktemp("many")
    for i, picture in enumerate(pictures(COUNT)):
        place = home / ("a" if i % 2 else "b") / f"{i:02d}.png"
        place.parent.mkdir(exist_ok=True)
        if i % 7:
            Image.fromarray(picture).save(place)
        else:
            place.write_text("no image")
    (home / ".hidden").mkdir()
    (home / ".hidden" / "x.png").write_text("not looked at")
    return home


@pytest.fixture
def found(folder: Path) -> batch.Images:
    return batch.of([folder])


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(asked: Model, found: batch.Images, out: Path, lanes: int = 2) -> batch.Written:
    return batch.write(asked, found, out, model="m", lanes=lanes)


# ---- what is written


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_every_image_has_its_row_in_order(asked: Model, found: batch.Images, tmp_path: Path, lanes: int) -> None:
    done = write(asked, found, tmp_path / "out.jsonl", lanes)
    expected = asked.predict(list(found.names))
    got = rows(tmp_path / "out.jsonl")
    assert [r["source"] for r in got] == list(found.names) == [p.source for p in expected]
    assert [(r["label"], r["error"]) for r in got] == [(p.label, p.error) for p in expected]
    for row, p in zip(got, expected, strict=True):
        assert row["probabilities"] == pytest.approx(p.probabilities)
    assert done == batch.Written(COUNT, sum(p.error is not None for p in expected), 0)
    assert done.errors == len(range(0, COUNT, 7))
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_the_three_formats_say_the_same(asked: Model, found: batch.Images, tmp_path: Path) -> None:
    for ending in batch.SUFFIXES:
        write(asked, found, tmp_path / f"out{ending}")
    lines = rows(tmp_path / "out.jsonl")
    with (tmp_path / "out.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "out.parquet")
    columns = table.to_pylist()
    assert json.loads(table.schema.metadata[b"classes"]) == list(asked.classes)
    for line, cell, column in zip(lines, cells, columns, strict=True):
        assert line["source"] == cell["path"] == column["path"]
        assert (line["label"] or "") == cell["label"]
        assert line["label"] == column["label"]
        assert (line["error"] or "") == cell["error"]
        assert line["error"] == column["error"]
        assert list(line["probabilities"].values()) == column["probabilities"]
        shares = [float(cell[c]) for c in asked.classes if cell[c]]
        assert shares == pytest.approx(column["probabilities"], abs=1e-6)


def test_of_a_table_the_images_alone_count(asked: Model, folder: Path, tmp_path: Path) -> None:
    """Without a label, in the table's order, twice where it names one twice."""
    names = [str(p) for p in sorted(folder.glob("a/*.png"))]
    listed = [*names[::-1], names[0], ""]
    (tmp_path / "list.csv").write_text("photo,note\n" + "".join(f"{n},x\n" for n in listed))
    parquet.write_table(pa.table({"photo": listed}), tmp_path / "list.parquet")
    data = [Path(n).read_bytes() for n in names]
    parquet.write_table(pa.table({"image": data, "id": list(range(len(data)))}), tmp_path / "bytes.parquet")

    expected = asked.predict(names)
    for table in ("list.csv", "list.parquet"):
        got = list(batch.answers(asked, batch.of([tmp_path / table], "photo")))
        assert [p.label for p in got[: len(names)]] == [p.label for p in expected][::-1]
        assert got[-2].label == expected[0].label
        assert got[-1].error is not None
    got = list(batch.answers(asked, batch.of([str(tmp_path / "bytes.parquet")])))
    assert [p.label for p in got] == [p.label for p in expected]
    assert got[1].source == "row 1"


def test_memory_does_not_grow_with_the_images(asked: Model, found: batch.Images) -> None:
    """Images that are begun and not yet answered stay few, however slow the reader."""
    begun = [0]

    def read(name: str) -> Source:
        begun[0] += 1
        return np.zeros((8, 8, 3), np.uint8)

    many = batch.Images([str(i) for i in range(40 * BATCH)], read)
    taken = 0
    for _ in batch.answers(asked, many, lanes=2):
        taken += 1
        assert begun[0] - taken <= (2 * batch.WAITING + 1) * BATCH
    assert taken == 40 * BATCH


# ---- going on


class Stopped(Exception):
    pass


def stopping(found: batch.Images, after: int) -> batch.Images:
    """The process ends at this image."""
    place = {name: i for i, name in enumerate(found.names)}

    def read(name: str) -> Source:
        if place[name] >= after:
            raise Stopped
        return found.read(name)

    return batch.Images(found.names, read)


@pytest.fixture(scope="module")
def whole(asked: Model, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "out.csv"
    write(asked, batch.of([folder]), out)
    return out.read_bytes()


@pytest.mark.parametrize("after", range(0, COUNT + 1, 3))
def test_it_goes_on_from_any_image_to_the_very_same_file(
    asked: Model, found: batch.Images, whole: bytes, tmp_path: Path, after: int
) -> None:
    out = tmp_path / "out.csv"
    if after < COUNT:
        with pytest.raises(Stopped):
            write(asked, stopping(found, after), out, lanes=1)
        assert not out.exists()
    done = write(asked, found, out)
    assert out.read_bytes() == whole
    assert done.before == (after // BATCH * BATCH if after < COUNT else 0)


def test_a_journal_cut_anywhere_is_gone_on_from(
    asked: Model, found: batch.Images, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every row and inside it, with noise behind it, too: what a machine leaves that lost its power."""
    out, journal = tmp_path / "out.csv", tmp_path / ".out.csv.part"
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_finished", stop)
        with pytest.raises(Stopped):
            write(asked, found, out)
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    assert len(lines) == 1 + COUNT
    ends = np.cumsum([len(line) for line in lines])
    for end in {0, 5, *ends[::4], *(e - 3 for e in ends[::5]), len(content)}:
        for tail in (b"", b"\0" * 40):
            if end == 0 and tail:
                continue
            journal.write_bytes(content[:end] + tail)
            if end < ends[0] and tail:  # not even the first line is whole: nothing is known of it
                continue
            write(asked, found, out)
            assert out.read_bytes() == whole
            out.unlink()


def stop(*_: Any) -> int:
    raise Stopped


def test_what_is_done_is_not_computed_again(asked: Model, found: batch.Images, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(Stopped):
        write(asked, stopping(found, BATCH + 3), out, lanes=1)
    read: list[str] = []

    def noted(name: str) -> Source:
        read.append(name)
        return found.read(name)

    write(asked, batch.Images(found.names, noted), out, lanes=1)
    assert read == list(found.names[BATCH:])


@pytest.mark.parametrize("what", ["images", "model"])
def test_other_images_or_another_model_do_not_go_on(
    asked: Model, found: batch.Images, tmp_path: Path, what: str
) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(Stopped):
        write(asked, stopping(found, BATCH + 3), out, lanes=1)
    before = (tmp_path / ".out.csv.part").read_bytes()
    fewer = batch.Images(found.names[:-1], found.read)
    with pytest.raises(UsageError, match=r"other images or another model.* waits in .*\.out\.csv\.part"):
        batch.write(asked, fewer if what == "images" else found, out, model="m" if what == "images" else "other")
    assert (tmp_path / ".out.csv.part").read_bytes() == before


def test_two_at_once_do_not_mix(asked: Model, found: batch.Images, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "out.csv"
    caught: list[str] = []

    def read(name: str) -> Source:
        if not caught:
            with pytest.raises(UsageError) as error:
                write(asked, found, out)
            caught.append(str(error.value))
        return found.read(name)

    write(asked, batch.Images(found.names, read), out, lanes=1)
    assert "another process is writing" in caught[0]
    assert len(out.read_text().splitlines()) == 1 + COUNT


# ---- what is refused


def refused(out: Path) -> str:
    with pytest.raises(UsageError) as caught:
        batch.allowed(out)
    return str(caught.value)


def test_nothing_is_overwritten(asked: Model, found: batch.Images, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    assert "not overwritten" in refused(out)
    out.unlink()
    real = batch.allowed

    def meanwhile(path: Path) -> None:
        real(path)
        path.write_text("mine")

    monkeypatch.setattr(batch, "allowed", meanwhile)
    with pytest.raises(UsageError, match="meanwhile"):
        write(asked, found, out)
    assert out.read_text() == "mine"


def test_other_endings_and_missing_folders_are_refused(tmp_path: Path) -> None:
    assert ".csv, .jsonl, .parquet" in refused(tmp_path / "out.xlsx")
    assert "make it first" in refused(tmp_path / "nowhere" / "out.csv")


def test_a_column_needs_a_table(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--image-column is of a table"):
        batch.of([folder], "photo")
    (tmp_path / "list.csv").write_text("photo\na.png\n")
    with pytest.raises(UsageError, match="no such column; it has 'photo'"):
        batch.of([tmp_path / "list.csv"], "picture")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no files"):
        batch.of([tmp_path])


def test_an_error_of_the_store_is_a_row(asked: Model) -> None:
    def read(name: str) -> Source:
        raise ImageError("unreadable", "gone")

    (one,) = batch.answers(asked, batch.Images(["x"], read))
    assert one == Prediction("x", None, None, {}, "unreadable: gone")


def test_leaving_early_leaves_no_threads(asked: Model, found: batch.Images) -> None:
    import threading

    before = threading.active_count()
    stream: Iterator[Prediction] = batch.answers(asked, found, lanes=2)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
