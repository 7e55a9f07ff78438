"""Whatever says which images there are, and wherever they lie: the same images are the same data set."""

from __future__ import annotations

import csv
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from conftest import WritePhotos, write_photos
from topwork import data, images, listing, stores, workflow
from topwork.errors import DataError, TopworkError, UsageError
from topwork.records import Columns, Dataset, Example, Part

Row = dict[str, Any]
Content = int | bytes


def picture(number: int) -> bytes:
    """A picture of four by four pixels; another number gives another content."""
    buffer = BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256 % 256, 77)).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, files: Mapping[str, Content]) -> Path:
    root.mkdir(exist_ok=True, parents=True)
    for relative, content in files.items():
        (root / relative).parent.mkdir(parents=True, exist_ok=True)
        (root / relative).write_bytes(picture(content) if isinstance(content, int) else content)
    return root


def facts_of(dataset: Dataset) -> list[tuple[Any, ...]]:
    """What must not depend on the way in: content, labels by name, part and group, in any order."""
    return sorted(
        (
            e.digest, dataset.classes[e.label] if e.label < len(dataset.classes) else "",
            tuple(dataset.classes[k] for k in e.labels), e.part, e.group,
        )
        for e in dataset.examples
    )  # fmt: skip


# Every way in: rows of (path of the file, label, part) become a source


def as_csv(home: Path, rows: Sequence[Row], suffix: str = ".csv", delimiter: str = ",") -> str:
    home.mkdir(parents=True, exist_ok=True)
    with (home / f"list{suffix}").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(home / f"list{suffix}")


def as_jsonl(home: Path, rows: Sequence[Row]) -> str:
    home.mkdir(parents=True, exist_ok=True)
    (home / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(home / "list.jsonl")


def as_parquet(home: Path, rows: Sequence[Row], group_rows: int = 100) -> str:
    home.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(list(rows)), home / "list.parquet", row_group_size=group_rows)
    return str(home / "list.parquet")


def save_to_disk(folder: Path, table: pa.Table, names: Sequence[str] | None = None, pieces: int = 2) -> None:
    """What `datasets` 2 and 3 write: Arrow streams, state.json, dataset_info.json."""
    folder.mkdir(parents=True)
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"dtype": "string", "_type": "Value"}}
    if names is not None:
        features["label"] = {"names": list(names), "_type": "ClassLabel"}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    files, size = [], -(-len(table) // pieces)
    for i in range(pieces):
        name = f"data-{i:05d}-of-{pieces:05d}.arrow"
        part = table.slice(i * size, size)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as stream:
            stream.write_table(part, max_chunksize=3)
        files.append({"filename": name})
    state = {"_data_files": files, "_fingerprint": "0", "_format_columns": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hugging_face(home: Path, root: Path, rows: Sequence[Row], names: Sequence[str] | None = None) -> str:
    """A folder per split, or one table where all is for training."""

    def table(part: str) -> pa.Table:
        mine = [r for r in rows if r["split"] == part]
        cells = [{"bytes": (root / r["file"]).read_bytes(), "path": Path(r["file"]).name} for r in mine]
        labels = [r["label"] if names is None else names.index(r["label"]) for r in mine]
        return pa.table({"image": pa.array(cells, IMAGE), "label": labels})

    parts = sorted({r["split"] for r in rows})
    if parts == ["train"]:
        save_to_disk(home, table("train"), names)
    else:
        for part in parts:
            save_to_disk(home / part, table(part), names)
        (home / "dataset_dict.json").write_text(json.dumps({"splits": parts}))
    return str(home)


def in_memory(root: Path, name: str) -> str:
    fs = fsspec.filesystem("memory")
    for path in root.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"/{name}/{path.relative_to(root).as_posix()}", path.read_bytes())
    return f"memory://{name}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    """Serves a folder on this machine over HTTP."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    running: list[ThreadingHTTPServer] = []

    def serve(folder: Path) -> str:
        running.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_address[1]}"

    yield serve
    for one in running:
        one.shutdown()
        one.server_close()


def rows_of(root: Path) -> list[Row]:
    """A table of what lies in train/, val/ and test/ folders, or in a folder per class."""
    found = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        parts = path.relative_to(root).parts
        split = parts[0] if len(parts) == 3 else "train"
        found.append({"file": "/".join(parts), "label": parts[-2], "split": split})
    return found


def ways(root: Path, home: Path) -> dict[str, tuple[Any, ...]]:
    """The arguments of `listing.given` for the very images of a folder, by each way in."""
    rows = rows_of(root)
    absolute = [{**r, "file": str(root / r["file"])} for r in rows]
    as_bytes = [{"image": (root / r["file"]).read_bytes(), "label": r["label"], "split": r["split"]} for r in rows]
    cells = [{**r, "image": {"bytes": r["image"], "path": "x.png"}} for r in as_bytes]
    names = sorted({r["label"] for r in rows}, reverse=True)
    as_csv(root.parent / "beside", [{**r, "file": f"../{root.name}/{r['file']}"} for r in rows])
    labels, splits = [r["label"] for r in rows], [r["split"] for r in rows]
    memory = in_memory(root, f"{home.parent.name}-{home.name}")
    return {
        "absolute paths": (as_csv(home / "absolute", absolute),),
        "relative paths": (str(root.parent / "beside" / "list.csv"),),
        "semicolons": (as_csv(home / "semicolons", absolute, delimiter=";"),),
        "tabs": (as_csv(home / "tabs", absolute, ".tsv", "\t"),),
        "JSON Lines": (as_jsonl(home / "json", absolute),),
        "Parquet of paths": (as_parquet(home / "paths", absolute),),
        "Parquet of bytes": (as_parquet(home / "bytes", as_bytes, group_rows=5),),
        "Parquet of images": (as_parquet(home / "cells", cells),),
        "Hugging Face": (hugging_face(home / "hf", root, rows),),
        "Hugging Face, numbered": (hugging_face(home / "hf-n", root, rows, names),),
        "memory": (memory,),
        "file URL": (f"file://{root}",),
        "bytes in a list": ([r["image"] for r in as_bytes], labels, None, splits),
        "paths in a list": ([root / r["file"] for r in rows], labels, None, splits),
        "mixed in a list": (
            [r["image"] if i % 2 else str(root / rows[i]["file"]) for i, r in enumerate(as_bytes)], labels, None, splits
        ),
    }  # fmt: skip


SPLIT: dict[str, Content] = {
    f"{part}/{c}/{i}.png": 100 * p + 10 * k + i
    for p, part in enumerate(["train", "val", "test"])
    for k, c in enumerate(["a", "ü"])
    for i in range(4)
}
LAYOUTS: dict[str, dict[str, Content]] = {
    "parts": SPLIT,
    "classes": {path.removeprefix("train/"): n for path, n in SPLIT.items() if path.startswith("train/")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_images_are_the_same_data_by_every_way_in(tmp_path: Path, layout: str) -> None:
    root = write(tmp_path / "photos", LAYOUTS[layout])
    wanted = data.read(root)
    assert wanted.faults == ()
    for name, arguments in ways(root, tmp_path / "ways").items():
        source, columns = listing.given(*arguments)
        found = data.read(source, columns)
        assert found.classes == wanted.classes, name
        assert facts_of(found) == facts_of(wanted), name
        assert found.faults == found.warnings == (), name
        store = stores.opened(found.root)
        for example in found.examples:
            assert images.digest(store.read(example.path)) == example.digest, name
