"""Whatever says which images there are, and wherever they lie: the same images are the same data set."""

from __future__ import annotations

import csv
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from conftest import Log, write_photos
from topwork import cleaned, cli, data, images, judging, listing, stores, workflow
from topwork.errors import DataError, UsageError
from topwork.records import Columns, Dataset

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
        split = parts[0] if parts[0] in {"train", "val", "test"} else ""
        found.append({"file": "/".join(parts), "label": parts[bool(split)], "split": split or "train"})
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


ODD = {
    "a b/1.png": 1, "a b/2%.png": 2, "a b/#3?.png": 3, "ü/日本 語.png": 4, "ü/x\u0301.png": 5, "ü/deep/er/6.png": 6,
    "кот/it's, \"quoted\".png": 7, "кот/line\nbreak.png": 8, "|;\t/9.png": 9, "|;\t/10.png": 10,
}  # fmt: skip
"""Names in any script, with every sign that some list or address might take for one of its own."""


def test_names_of_any_kind_come_through_every_way(tmp_path: Path) -> None:
    root = write(tmp_path / "photos", ODD)
    wanted = data.read(root)
    assert len(wanted.examples) == len(ODD)
    for name, arguments in ways(root, tmp_path / "ways").items():
        source, columns = listing.given(*arguments)
        assert facts_of(data.read(source, columns)) == facts_of(wanted), name


def test_a_folder_and_a_table_on_a_server(tmp_path: Path, server: Callable[[Path], str]) -> None:
    pytest.importorskip("aiohttp")
    root = write(tmp_path / "photos", {**SPLIT, "train/a/b%#.png": 7, "val/ü/c d.png": 8})
    wanted = facts_of(data.read(root))
    as_csv(root, [r for r in rows_of(root) if not r["file"].startswith("list")])
    url = server(root)
    assert facts_of(data.read(f"{url}/list.csv")) == wanted
    (root / "list.csv").unlink()
    assert facts_of(data.read(url)) == wanted
    packed = [
        {"image": (root / r["file"]).read_bytes(), "label": r["label"], "split": r["split"]} for r in rows_of(root)
    ]
    as_parquet(root, packed, group_rows=7)
    assert facts_of(data.read(f"{url}/list.parquet")) == wanted


@pytest.mark.slow
def test_a_folder_a_table_and_bytes_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a server of this machine that speaks as S3 does."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    for key, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        root = write(tmp_path / "photos", {**SPLIT, "train/a/#1 ä.png": 7})
        wanted = facts_of(data.read(root))
        rows = rows_of(root)
        as_csv(tmp_path / "lists", [{**r, "file": f"photos/{r['file']}"} for r in rows])
        as_bytes = [{"image": (root / r["file"]).read_bytes(), "label": r["label"], "split": r["split"]} for r in rows]
        as_parquet(tmp_path / "lists", as_bytes)
        fs = fsspec.filesystem("s3", skip_instance_cache=True)
        fs.mkdir("images")
        fs.put(str(root), "images/photos", recursive=True)
        for name in ("list.csv", "list.parquet"):
            fs.put(str(tmp_path / "lists" / name), f"images/{name}")
        fs.pipe_file("images/photos/train/a/empty.png", b"")
        fs.pipe_file("images/photos/train/.ipynb_checkpoints/x.png", b"x")
        found = data.read("s3://images/photos")
        assert facts_of(found) == wanted
        assert {f.path: f.kind for f in found.faults} == {
            "train/a/empty.png": "empty", "train/.ipynb_checkpoints": "hidden"
        }  # fmt: skip
        assert facts_of(data.read("s3://images/list.csv")) == wanted
        assert facts_of(data.read("s3://images/list.parquet")) == wanted
        with pytest.raises(DataError, match="s3://images/none"):
            data.read("s3://images/none")
    finally:
        running.stop()


# Which columns


def table(rows: Sequence[Row]) -> Any:
    return listing.tables.Rows("list.csv", 2, {c: [r.get(c) for r in rows] for c in rows[0]})


def columns_of(header: Sequence[str], row: Sequence[Any], columns: Columns = listing.GUESSED) -> Any:
    return listing.tables.choose(table([dict(zip(header, row, strict=True))] * 3), columns)


@pytest.mark.parametrize(
    ("header", "row", "image", "label", "split", "group"),
    [
        (["image", "label"], ["1.png", "cat"], "image", "label", None, None),
        (["File Name", "Class-Name"], ["1.png", "cat"], "File Name", "Class-Name", None, None),
        (["label", "label_name", "path"], ["0", "cat", "1.jpg"], "path", "label_name", None, None),
        (["image", "filename", "species"], ["17", "1.jpg", "cat"], "filename", "species", None, None),  # 17 is no name
        (["x", "what"], ["1.JPEG", "cat"], "x", "what", None, None),  # by its content; what is left
        (["file", "kind", "split", "patient_id"], ["1.gif", "b", "Train", 7], "file", "kind", "split", "patient_id"),
        (["file", "label", "part"], ["1.png", "cat", "leaf"], "file", "label", None, None),  # of a plant
        (["file", "label", "part"], ["1.png", "cat", "val"], "file", "label", "part", None),
        (["file", "label", "burst"], ["1.png", "cat", 7], "file", "label", None, "burst"),
        (["id", "label"], ["1.png", "2.png"], "id", "label", None, None),
    ],
)  # fmt: skip
def test_columns_are_guessed_and_it_is_said(
    header: list[str], row: list[Any], image: str, label: str, split: str | None, group: str | None
) -> None:
    found = columns_of(header, row)
    assert (found.image, found.labels, found.split, found.group) == (image, (label,), split, group)
    assert f"images from column {image!r} (guessed), labels from column {label!r} (guessed)" in found.said
    assert (f"parts from column {split!r} (guessed)" in found.said) == (split is not None)
    named = columns_of(header, row, Columns(image, (label,), split, group))
    assert (named.image, named.labels) == (image, (label,))
    assert "images from column" in named.said
    assert f"{label!r} (guessed)" not in named.said


@pytest.mark.parametrize(
    ("header", "row", "columns", "said"),
    [
        (["file", "x", "y1"], ["1.png", "a", "b"], {}, "holds the labels.*--label-column.*'file', 'x', 'y1'"),
        (["a", "b"], ["x", "y"], {}, "which column names the images.*--image-column; it has 'a', 'b'"),
        (["a", "b", "label"], ["1.png", "2.png", "c"], {}, "'a', 'b' could;"),
        (["1.png", "cat"], ["2.png", "dog"], {}, "a line with the columns' names first"),
        (["file", "label"], ["1.png", "a"], {"labels": ("lable",)}, "--label-column lable.*no such.*'file', 'label'"),
        (["file", "label"], ["1.png", "a"], {"image": "img"}, "--image-column img"),
        (["file", "label"], ["1.png", "a"], {"split": "s"}, "--split-column s"),
        (["file", "label"], ["1.png", "a"], {"group": "g"}, "--group-column g"),
        (["file", "label"], ["1.png", "a"], {"image": "label", "labels": ("label",)}, "'label' cannot be two things"),
    ],
)  # fmt: skip
def test_what_cannot_be_guessed_or_is_not_there_lists_the_columns(
    header: list[str], row: list[Any], columns: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        columns_of(header, row, Columns(**columns))


def test_columns_of_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder of images has none"):
        data.read(write(tmp_path, LAYOUTS["classes"]), Columns(labels=("species",)))


# What a table may hold


def four(**more: Sequence[Any]) -> list[Row]:
    """Rows for four images of two classes, with more columns."""
    rows: list[Row] = [{"file": f"{i}.png", "label": "ab"[i // 2]} for i in range(4)]
    return [{**row, **{name: values[i] for name, values in more.items()}} for i, row in enumerate(rows)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Four images, and whatever lies beside them."""
    return write(tmp_path / "home", {f"{i}.png": i for i in range(8)})


def read(source: str, **columns: Any) -> Dataset:
    return data.read(source, Columns(**columns))


def labels_of(dataset: Dataset) -> dict[str, str]:
    return {e.path: dataset.classes[e.label] for e in dataset.examples}


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: (text + "\n\n ,\n").encode(),  # as spreadsheets end
        lambda text: text.replace(",", ", ").encode(),
        lambda text: text.replace("0.png", '"0.png"').encode(),
    ],
    ids=["BOM", "UTF-16", "CRLF", "empty lines", "spaces", "quotes"],
)
def test_csv_however_it_was_saved(home: Path, encode: Callable[[str], bytes]) -> None:
    (home / "x.csv").write_bytes(encode("file,label\n0.png,ä\n1.png,ä\n2.png,b\n3.png,b\n"))
    found = read(str(home / "x.csv"))
    assert labels_of(found) == {"0.png": "ä", "1.png": "ä", "2.png": "b", "3.png": "b"}
    assert found.faults == ()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", b"", "empty: 0 bytes"),
        ("x.csv", b"\n\n", "the table is empty"),
        ("x.csv", b"file,label\n", "has no rows"),
        ("x.csv", "file,label\n0.png,ä\n".encode("latin-1"), r"not UTF-8 text \(byte 17\)"),
        ("x.csv", b"file,label,label\n0.png,a,b\n", "two columns are called 'label'"),
        ("x.csv", b'file,label\n"' + b"x" * 200_000 + b'",b\n', "cannot be read as a table"),
        ("x.jsonl", b"", "empty: 0 bytes"),
        ("x.jsonl", b"[1, 2]\nnull\n", "the table is empty"),
        ("x.parquet", b"none", "cannot be read as Parquet"),
        ("x.txt", b"file,label\n", "not a table of images; expected a file ending in .csv"),
        ("x.csv/", b"", "cannot be learnt from"),
    ],
)
def test_what_is_no_table_is_said(home: Path, name: str, content: bytes, said: str) -> None:
    if name.endswith("/"):
        (home / name).mkdir()
    else:
        (home / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read(str(home / name.rstrip("/")))


def test_rows_that_cannot_be_used_are_faults_with_their_numbers(home: Path) -> None:
    (home / "text.png").write_text("no image")
    rows = [*four(), *({"file": f, "label": k} for f, k in [
        ("gone.png", "a"), ("", "a"), ("4.png", " "), ("text.png", "b"), ("dir", "a"), ("5.png", "b")
    ])]  # fmt: skip
    (home / "dir").mkdir()
    for source, first in [(as_csv(home, rows), 2), (as_jsonl(home, rows), 1), (as_parquet(home, rows), 0)]:
        name = Path(source).name
        found = read(source)
        assert labels_of(found) == {"0.png": "a", "1.png": "a", "2.png": "b", "3.png": "b", "5.png": "b"}
        assert {(f.path, f.kind) for f in found.faults} == {
            ("gone.png", "unreadable"), (f"{name}, row {5 + first}", "not a row"), ("4.png", "no label"),
            ("text.png", "unreadable"), ("dir", "unreadable"),
        }  # fmt: skip
        details = {f.path: f.detail for f in found.faults}
        assert details["gone.png"].endswith(f"; row {4 + first} of {name}")
        assert details["4.png"] == f"nothing in column 'label'; row {6 + first} of {name}"


def test_broken_lines_are_faults(home: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in four())
    (home / "x.jsonl").write_text('{"file": \n' + text + "[" * 100_000 + "\n7\n\n")
    found = read(str(home / "x.jsonl"))
    assert len(found.examples) == 4
    assert [f.path for f in found.faults] == [f"x.jsonl, row {n}" for n in (1, 6, 7)]
    assert all(f.detail.startswith("no JSON") for f in found.faults)
    (home / "x.csv").write_text("file,label\n" + "".join(f"{r['file']},{r['label']}\n" for r in four()) + "4.png,a,c\n")
    found = read(str(home / "x.csv"))
    assert [(f.path, f.kind, f.detail) for f in found.faults] == [
        ("x.csv, row 6", "not a row", "3 cells, 2 names of columns")
    ]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0, 0, 1, 1], "0011"),
        ([0.0, 0.0, 1.0, 1.0], "0011"),
        ([True, True, False, False], ["True", "True", "False", "False"]),
        ([0.5, 0.5, 1.0, 1.0], ["0.5", "0.5", "1", "1"]),
        (["01", "01", "1", "1"], ["01", "01", "1", "1"]),
    ],
)
def test_labels_that_are_no_text_become_text(home: Path, values: list[Any], wanted: Sequence[str]) -> None:
    rows = [{"file": f"{i}.png", "label": v} for i, v in enumerate(values)]
    for source in (as_jsonl(home, rows), as_parquet(home, rows)):
        assert list(labels_of(read(source)).values()) == list(wanted)


def test_the_numbers_of_the_rows_are_no_labels(home: Path) -> None:
    """However pandas left them there."""
    for first in ("", "Unnamed: 0"):
        rows = [{first: i, "file": r["file"], "kind": r["label"]} for i, r in enumerate(four())]
        assert set(labels_of(read(as_csv(home, rows))).values()) == {"a", "b"}
    rows = [{"file": r["file"], "kind": r["label"], "__index_level_0__": i} for i, r in enumerate(four())]
    assert set(labels_of(read(as_parquet(home, rows))).values()) == {"a", "b"}


def test_integers_beside_a_gap_are_integers(home: Path) -> None:
    """pandas makes floats of them."""
    rows = [{"file": f"{i}.png", "label": v} for i, v in enumerate([0.0, 0.0, 1.0, 1.0, float("nan"), None])]
    found = read(as_parquet(home, rows))
    assert list(labels_of(found).values()) == ["0", "0", "1", "1"]
    assert [f.kind for f in found.faults] == ["no label", "no label"]


def test_parts_that_are_none_are_listed_with_those_that_are(home: Path) -> None:
    with pytest.raises(DataError, match=r"'fold1', 'fold2', first in row 3; expected train, training, val"):
        read(as_csv(home, four(split=["train", "fold1", "fold2", "test"])))
    with pytest.raises(DataError, match="''"):
        read(as_csv(home, four(fold=["train", "", "train", "test"])), split="fold")


def test_the_users_split_is_locked_as_folders_are(home: Path) -> None:
    rows = [
        {"file": f"{i}.png", "label": "ab"[i % 2], "set": ["train", "Training", "TEST", "dev"][i // 2]}
        for i in range(8)
    ]
    dataset, locked = data.lock(read(as_csv(home, rows)), seed=0)
    assert locked == "test folder"
    assert [e.part for e in dataset.examples] == ["train"] * 4 + ["test"] * 2 + ["train"] * 2


def test_groups_are_read_as_text(home: Path) -> None:
    for values in ([7, 7, 8, 8], ["p 1", "p 1", "", ""]):
        found = read(as_jsonl(home, four(patient=values)))
        assert [e.group for e in found.examples] == [str(v) for v in values]
        assert "groups from column 'patient' (guessed)" in found.layout


def test_the_same_image_in_two_rows_is_a_copy(home: Path) -> None:
    found = read(as_csv(home, [*four(), {"file": "0.png", "label": "a"}, {"file": "2.png", "label": "a"}]))
    assert len(found.examples) == 6
    copies, torn = found.warnings
    assert copies.startswith("2 images")
    assert torn.startswith("1 images lie in more than one class, for example in a and b")


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELLS.filter(str.strip), CELLS.filter(str.strip), CELLS), min_size=1, max_size=8))
def test_any_text_survives_any_table(
    rows: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Labels and groups come out as they were written; of a path, only spaces around it are lost."""
    home = tmp_path_factory.mktemp("any")
    made = [{"file": f, "label": k, "group": g} for f, k, g in rows]
    for source in (as_jsonl(home, made), as_parquet(home, made), as_csv(home, made)):
        found = listing.listed(source, Columns("file", ("label",), None, "group"))
        assert found.faults == []
        csv_ = source.endswith(".csv")  # in which spaces after a comma count for nothing, unless quoted
        keep = str.strip if csv_ else str
        assert [(i.path, keep(i.labels[0]), keep(i.group)) for i in found.items] == [
            (f.strip(), keep(k), keep(g)) for f, k, g in rows
        ]


# Several labels


SEVERAL: list[list[str]] = [["x", "y"], ["x"], ["y"], ["x", "z"], [], ["z", "y"]]


def several_ways(home: Path) -> dict[str, tuple[Any, ...]]:
    rows = [{"file": f"{i}.png", "label": labels} for i, labels in enumerate(SEVERAL)]
    flags = [{"file": r["file"], **{c: int(c in r["label"]) for c in "xyz"}} for r in rows]
    joined = [{"file": r["file"], "label": " | ".join(r["label"])} for r in rows]
    paths = [home / r["file"] for r in rows]
    hot = np.array([[c in labels for c in "xyz"] for labels in SEVERAL])
    cells = pa.array([{"bytes": p.read_bytes(), "path": None} for p in paths], IMAGE)
    save_to_disk(home / "hf", pa.table({"image": cells, "label": pa.array(SEVERAL, pa.list_(pa.string()))}), None)
    return {
        "JSON Lines": listing.given(as_jsonl(home, rows)),
        "Parquet": listing.given(as_parquet(home, rows)),
        "separator": listing.given(as_csv(home, joined), label_separator="|"),
        "flags": listing.given(as_csv(home, flags, ".tsv", "\t"), ["x", "y", "z"]),
        "Python": listing.given(paths, SEVERAL),
        "Python's sets": listing.given(paths, [set(labels) for labels in SEVERAL]),
        "Hugging Face": listing.given(str(home / "hf")),
        "numbers": listing.given(paths, hot),
    }


def test_several_labels_are_the_same_by_every_way_in(home: Path) -> None:
    for name, (source, columns) in several_ways(home).items():
        found = data.read(source, columns)
        assert found.multi_label, name
        assert found.classes == (("0", "1", "2") if name == "numbers" else ("x", "y", "z")), name
        assert [e.labels for e in found.examples] == [(0, 1), (0,), (1,), (0, 2), (), (1, 2)], name
        # z is the rarest; an image of none is of a class of its own
        assert [e.label for e in found.examples] == [0, 0, 1, 2, 3, 2], name
        assert found.faults == found.warnings == (), name
        counts = data.facts(found, locked="out-of-sample", seed=0).classes
        assert [c.train for c in counts] == [3, 3, 2], name


def test_a_cell_that_is_no_flag_and_a_null_are_faults(home: Path) -> None:
    flags = [{"file": f"{i}.png", "x": x, "y": y} for i, (x, y) in enumerate(
        [(1, 0), ("true", "FALSE"), (0, "1.0"), (0, 1), ("", 1), (2, 0), ("yes", "no")]
    )]  # fmt: skip
    found = read(as_csv(home, flags), labels=("x", "y"))
    assert [e.labels for e in found.examples] == [(0,), (0,), (1,), (1,), (0,)]
    assert {f.path: f.kind for f in found.faults} == {"4.png": "no label", "5.png": "no label"}
    rows = [{"file": f"{i}.png", "label": v} for i, v in enumerate([["x"], ["x"], ["y"], ["y"], None])]
    (fault,) = read(as_jsonl(home, rows)).faults
    assert (fault.path, fault.kind) == ("4.png", "no label")


@pytest.mark.parametrize(
    ("labels", "separator", "said"),
    [(("x", "y"), "|", "several are one class each"), (("tags",), "|", "holds lists already"), (("x",), "", "a sign")],
)
def test_a_separator_where_it_splits_nothing_is_refused(
    home: Path, labels: tuple[str, ...], separator: str, said: str
) -> None:
    rows = [{"file": f"{i}.png", "x": 1, "y": 0, "tags": ["a"]} for i in range(4)]
    with pytest.raises(UsageError, match=said):
        read(as_jsonl(home, rows), labels=labels, separator=separator)


def test_of_images_of_several_labels_those_with_an_unknown_one_are_left_out(home: Path) -> None:
    source = as_jsonl(home, [{"file": f"{i}.png", "label": labels} for i, labels in enumerate(SEVERAL)])
    held_out = data.read_held_out(source, ("y", "x"))
    assert [(e.path, e.labels) for e in held_out.examples] == [
        ("0.png", (0, 1)), ("1.png", (1,)), ("2.png", (0,)), ("4.png", ())
    ]  # fmt: skip
    assert [(f.path, f.kind) for f in held_out.faults] == [("z", "class unknown to the model")]
    assert held_out.multi_label


# Hugging Face


def test_splits_that_are_no_part_and_rows_without_a_label_are_told(tmp_path: Path) -> None:
    def saved(split: str, labels: list[int]) -> None:
        cells = [{"bytes": picture(hash(split) % 99 * 100 + i), "path": "x.png"} for i in range(len(labels))]
        save_to_disk(
            tmp_path / "hf" / split, pa.table({"image": pa.array(cells, IMAGE), "label": labels}), ["no", "yes"]
        )

    saved("train", [0, 0, 1, 1, -1, 2])
    saved("unsupervised", [-1, -1])
    (tmp_path / "hf" / "dataset_dict.json").write_text('{"splits": ["train", "unsupervised"]}')
    found = data.read(tmp_path / "hf")
    assert [found.classes[e.label] for e in found.examples] == ["no", "no", "yes", "yes"]
    assert {f.path: f.kind for f in found.faults} == {
        "train/row 4 (x.png)": "no label", "train/row 5 (x.png)": "no label", "unsupervised": "outside any part"
    }  # fmt: skip
    assert "Hugging Face folder" in found.layout


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (b"no JSON", "cannot be read as what `datasets` saves"),
        (b"[]", "cannot be read as what `datasets` saves"),
        (b'{"_data_files": [{"filename": "none.arrow"}]}', "cannot be read as what `datasets` saves"),
        (b'{"_data_files": [{"filename": "state.json"}]}', "cannot be read as what `datasets` saves"),
        (b'{"_data_files": []}', "cannot be read as what `datasets` saves"),
        (b'{"_data_files": [], "_indices_data_files": [{}]}', "an order of their own"),
    ],
)
def test_a_broken_folder_of_datasets_is_said(tmp_path: Path, state: bytes, said: str) -> None:
    (tmp_path / "state.json").write_bytes(state)
    with pytest.raises(DataError, match=said):
        data.read(tmp_path)


# From Python


def pixels_of(dataset: Dataset) -> list[np.ndarray]:
    store = stores.opened(dataset.root)
    return [
        np.asarray(images.upright(Image.open(BytesIO(store.read(e.path)))).convert("RGB")) for e in dataset.examples
    ]


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 3), (6, 5, 4, 1), (6, 5, 4, 4)])
@pytest.mark.parametrize("whole", [True, False])
def test_arrays_are_kept_pixel_by_pixel(shape: tuple[int, ...], whole: bool) -> None:
    array = np.random.default_rng(len(shape)).integers(0, 256, shape, dtype=np.uint8)
    if shape[-1] == 4 and len(shape) == 4:
        array[..., 3] = 255
    source, columns = listing.given(array if whole else list(array), np.array([0, 1] * 3), groups=np.arange(6))
    found = data.read(source, columns)
    wanted = np.repeat(array.reshape(6, 5, 4, 1), 3, -1) if array[0].size == 20 else array[..., :3]
    assert all(np.array_equal(a, b) for a, b in zip(pixels_of(found), wanted, strict=True))
    assert found.classes == ("0", "1")
    assert [e.group for e in found.examples] == list("012345")
    assert listing.given(array if whole else list(array), [0, 1] * 3, groups=list(range(6)))[0] == source
    assert listing.given(array, [1, 0] * 3)[0] != source


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_pillow_images_of_any_mode_are_read_as_predict_reads_them(mode: str) -> None:
    rng = np.random.default_rng(0)
    base = [Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)) for _ in range(4)]
    given_ = [p.convert("L").convert(mode) if mode in {"I", "I;16", "F"} else p.convert(mode) for p in base]
    source, columns = listing.given(given_, list("aabb"))
    for found, image in zip(pixels_of(data.read(source, columns)), given_, strict=True):
        assert np.array_equal(found, np.asarray(images.upright(image.copy()).convert("RGB")))


@pytest.mark.parametrize(
    ("source", "labels", "said"),
    [
        (np.zeros((4, 5, 5), np.float32), [0, 1, 0, 1], "expected uint8"),
        (np.zeros((5, 5), np.uint8), [0] * 5, "expected uint8"),
        (np.zeros((4, 3, 5, 5), np.uint8), [0, 1, 0, 1], r"image 0: array of uint8 \(3, 5, 5\)"),
        ([object()], [0], "image 0: object; expected"),
        ([b"x", b"y"], [0], "labels: expected one per image, 2; came 1"),
        ([b"x"], None, "1 images came without labels"),
        ([b"x"], "species", "labels: expected one per image, came str"),
        (7, [0], "came int"),
        ({"a": 1}, [0], "came dict"),
        ("photos.csv", [0, 1], "names of columns, not int"),
    ],
)
def test_what_python_gives_wrongly_is_said(source: Any, labels: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        listing.given(source, labels)


def test_images_in_memory_are_gone_with_their_process() -> None:
    with pytest.raises(DataError, match="in the memory of a process that has ended"):
        data.read("memory://topwork/00000000/images.jsonl")


# Folders that no one may read, and names that are none


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_a_fault(tmp_path: Path) -> None:
    root = write(tmp_path / "photos", {**LAYOUTS["classes"], "a/closed/9.png": 9})
    (root / "a" / "closed").chmod(0)
    try:
        found = data.read(root)
    finally:
        (root / "a" / "closed").chmod(0o700)
    assert [(f.path, f.kind) for f in found.faults] == [("a/closed", "unreadable")]
    assert len(found.examples) == 8


def test_a_folder_whose_reading_fails_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever the user is."""
    root = write(tmp_path / "photos", {**LAYOUTS["classes"], "a/closed/9.png": 9, "closed/1.png": 8})
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = data.read(root)
    assert {(f.path, f.kind, f.detail) for f in found.faults} == {
        ("a/closed", "unreadable", "the folder: Permission denied"),
        ("closed", "unreadable", "the folder: Permission denied"),
    }
    assert len(found.examples) == 8


def test_names_that_are_no_text_are_faults(tmp_path: Path) -> None:
    root = write(tmp_path / "photos", LAYOUTS["classes"])
    for name in (b"a/\xff.png", b"\xfe/1.png"):
        path = os.fsencode(root) + b"/" + name
        try:
            Path(os.fsdecode(path)).parent.mkdir(exist_ok=True)
            Path(os.fsdecode(path)).write_bytes(picture(1))
        except OSError:
            pytest.skip("this file system takes no such names")
    found = data.read(root)
    assert {(f.path, f.kind) for f in found.faults} == {("a/\\udcff.png", "unreadable"), ("\\udcfe", "unreadable")}


def test_a_hidden_folder_is_told_once(tmp_path: Path) -> None:
    root = write(tmp_path / "photos", {
        **LAYOUTS["classes"], **{f"a/.ipynb_checkpoints/{i}-checkpoint.png": i for i in range(50)}, "a/Thumbs.db": b"x"
    })  # fmt: skip
    assert {f.path for f in data.read(root).faults} == {"a/.ipynb_checkpoints", "a/Thumbs.db"}


# From beginning to end


@pytest.mark.slow
def test_a_run_from_any_way_in_is_the_run_from_folders(tmp_path: Path) -> None:
    """To the last bit of the model, trained kept layers and all, each with an empty cache."""
    root = write_photos(tmp_path / "photos", per_class=4)
    chosen = ["absolute paths", "Parquet of bytes", "Hugging Face", "memory", "mixed in a list"]
    given_ = ways(root, tmp_path / "ways")
    models = {}
    for name, arguments in {"folders": (root,), **{n: given_[n] for n in chosen}}.items():
        run = workflow.fit(
            *arguments[:3], splits=arguments[3] if len(arguments) > 3 else None, size=64, strategy="suffix", epochs=1,
            out=tmp_path / name, cache=tmp_path / f"cache {name}",
        )  # fmt: skip
        models[name] = (run.path / "model" / "model.safetensors").read_bytes()
        metrics, held_out = judging.judge(run.path, *arguments[:2])
        assert metrics.accuracy.n == len(held_out.examples) == 12, name
    assert all(model == models["folders"] for model in models.values()), [
        name for name, model in models.items() if model != models["folders"]
    ]


class Stopping(Log):
    def show(self, what: str, fact: object) -> None:
        if what == "plan":
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_from_a_table_is_resumed_with_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named from another folder, relatively."""
    monkeypatch.chdir(tmp_path)
    root = write_photos(tmp_path / "photos")
    rows = [{"x": f"photos/{r['file']}", "label": "wrong", "kind": r["label"]} for r in rows_of(root)]
    as_csv(tmp_path, rows)
    with pytest.raises(KeyboardInterrupt):
        workflow.fit(
            "list.csv", "kind", image_column="x", size=64, strategy="head", out="run", cache="cache", watch=Stopping()
        )
    monkeypatch.chdir(tmp_path / "photos")
    run = workflow.resume(tmp_path / "run")
    assert run.model.classes == ("bark", "sand", "weave")
    assert run.record.options.columns == Columns("x", ("kind",))
    assert run.record.options.folder == str(tmp_path / "list.csv")


def test_the_command_line_takes_the_columns(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"x": r["file"], "kind": r["label"], "note": "z", "who": str(i % 2)} for i, r in enumerate(four())]
    source = as_csv(home, rows)
    arguments = ["check", source, "--label-column", "kind", "--group-column", "who", "--json"]
    monkeypatch.setattr("sys.argv", ["topwork", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    printed = json.loads(capsys.readouterr().out)
    assert [(c["name"], c["train"]) for c in printed["classes"]] == [("a", 2), ("b", 2)]
    assert printed["layout"] == (
        "list.csv: images from column 'x' (guessed), labels from column 'kind', groups from column 'who'"
    )


def test_a_cleaned_list_names_what_can_be_read_again(home: Path) -> None:
    """Addresses in a table of one's own and paths from Python stay what they are; images in memory are no files."""
    for i in range(4):
        fsspec.filesystem("memory").pipe_file(f"/clean/{i}.png", picture(i))
    by_address = data.read(as_csv(home, [{"file": f"memory://clean/{i}.png", "label": "ab"[i // 2]} for i in range(4)]))
    by_path = data.read(listing.given([home / f"{i}.png" for i in range(4)], list("aabb"))[0])
    for name, found in {"address": by_address, "path": by_path}.items():
        cleaned.write(home / f"{name}.csv", found, found.examples)
        assert facts_of(data.read(home / f"{name}.csv")) == facts_of(found)
    in_memory_ = data.read(listing.given([picture(i) for i in range(4)], list("aabb"))[0])
    with pytest.raises(UsageError, match="save them into a folder first"):
        cleaned.write(home / "memory.csv", in_memory_, in_memory_.examples)
