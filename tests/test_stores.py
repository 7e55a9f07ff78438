"""Bytes come out as they went in, wherever they lie; and no list leads where it must not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from topwork import images, stores
from topwork.errors import DataError, ImageError, LostError, MissingError, UsageError
from topwork.stores import opened

CONTENTS = [f"content {i} ".encode() * (i + 1) for i in range(300)]


def kind(read: Callable[[], bytes]) -> str:
    with pytest.raises(ImageError) as caught:
        read()
    assert caught.value.detail
    return caught.value.kind


def packed(path: Path, contents: list[bytes | None], *, group_rows: int = 100, compression: str = "snappy") -> str:
    parquet.write_table(
        pa.table({"image": contents, "n": range(len(contents))}), path, row_group_size=group_rows,
        compression=compression,
    )  # fmt: skip
    return f"{path}#image"


def saved(folder: Path, contents: list[bytes | None]) -> str:
    from test_listing import IMAGE, save_to_disk

    cells = [{"bytes": c, "path": None} for c in contents]
    save_to_disk(folder, pa.table({"image": pa.array(cells, IMAGE), "label": ["a"] * len(cells)}))
    return f"{folder}#image"


@pytest.fixture(params=["folder", "memory", "file URL", "Parquet", "Hugging Face"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[list[bytes]], tuple[str, list[str]]]:
    """Puts contents somewhere; says the root, and the path of each."""

    def put(contents: list[bytes]) -> tuple[str, list[str]]:
        names = [f"in/{i}.jpg" for i in range(len(contents))]
        rows = [stores.row_path(i) for i in range(len(contents))]
        if request.param == "Parquet":
            return packed(tmp_path / "x.parquet", list(contents)), rows
        if request.param == "Hugging Face":
            return saved(tmp_path / "saved", list(contents)), rows
        if request.param == "memory":
            for name, content in zip(names, contents, strict=True):
                fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/{name}", content)
            return f"memory://{tmp_path.name}", names
        (tmp_path / "in").mkdir()
        for name, content in zip(names, contents, strict=True):
            (tmp_path / name).write_bytes(content)
        return f"file://{tmp_path}" if request.param == "file URL" else str(tmp_path), names

    return put


Place = Callable[[list[bytes]], tuple[str, list[str]]]


def test_what_went_in_comes_out(place: Place) -> None:
    root, paths = place(CONTENTS[:50])
    store = opened(root)
    assert [store.read(p) for p in paths] == CONTENTS[:50]
    assert store.state(paths[3]) == store.state(paths[3]) is not None
    assert paths[0] in store.where(paths[0])


def test_nothing_is_no_image_and_what_is_not_there_is_unreadable(place: Place) -> None:
    root, paths = place([b"", b"x"])
    assert kind(lambda: opened(root).read(paths[0])) == "empty"
    assert kind(lambda: opened(root).read(paths[1].replace("1", "7"))) == "unreadable"
    assert kind(lambda: opened(root).read("row x")) == "unreadable"


def test_what_is_too_large_is_not_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    root, paths = place([b"x" * 2000, b"x" * 1000])
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    for module, name in [(images, "_whole"), (type(fsspec.filesystem("memory")), "cat_file")]:
        real = getattr(module, name)

        def guarded(*arguments: Any, real: Any = real, **options: Any) -> Any:
            content = real(*arguments, **options)
            assert len(content) <= 1000, "was read"
            return content

        monkeypatch.setattr(module, name, guarded)
    assert kind(lambda: opened(root).read(paths[0])) == "too large"
    assert opened(root).read(paths[1]) == b"x" * 1000


def test_threads_may_share_a_store(place: Place) -> None:
    """In any order, also against that of the file."""
    root, paths = place(CONTENTS)
    order = list(range(len(CONTENTS))) * 2
    random.Random(0).shuffle(order)
    store = opened(root)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: store.read(paths[i]) == CONTENTS[i], order)) == [True] * len(order)


# Parquet


@pytest.mark.parametrize("group_rows", [1, 7, 64, 100, 1000])
@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_row_groups_of_any_size(tmp_path: Path, group_rows: int, compression: str) -> None:
    root = packed(tmp_path / "x.parquet", list(CONTENTS), group_rows=group_rows, compression=compression)
    order = [299, 0, 150, *range(300), *range(299, -1, -37)]
    assert [opened(root).read(f"row {i}") for i in order] == [CONTENTS[i] for i in order]


@pytest.mark.parametrize("group_rows", [50, 1000])
def test_a_pass_in_order_reads_a_row_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int
) -> None:
    """Going back to its start for every row would be quadratic."""
    monkeypatch.setattr(stores, "KEPT_BYTES", 400_000)
    store = opened(packed(tmp_path / "x.parquet", list(CONTENTS), group_rows=group_rows))
    assert isinstance(store, stores.Packed)
    begun: list[Any] = []
    real = store._parquet

    class Counted:
        def iter_batches(self, *arguments: Any, **options: Any) -> Iterator[Any]:
            begun.append(options)
            return iter(real.iter_batches(*arguments, **options))

    monkeypatch.setattr(store, "_parquet", Counted())
    near = sorted(range(300), key=lambda i: i + random.Random(i).uniform(0, 30))
    assert [store.read(f"row {i}") for i in near] == [CONTENTS[i] for i in near]
    assert len(begun) == -(-300 // group_rows)
    assert sum(piece.nbytes for piece in store._pieces.values()) == store._taken <= 400_000
    assert len(store._pieces) >= stores.KEPT


def test_a_row_without_bytes_is_empty(tmp_path: Path) -> None:
    for root in (packed(tmp_path / "x.parquet", [None, b"x"]), saved(tmp_path / "saved", [None, b"x"])):
        assert kind(lambda root=root: opened(root).read("row 0")) == "empty"
        assert opened(root).read("row 1 (a name (with brackets).jpg)") == b"x"


def test_a_file_that_was_written_anew_is_opened_anew(tmp_path: Path) -> None:
    root = packed(tmp_path / "x.parquet", [b"old"])
    before = opened(root)
    assert opened(root) is before
    packed(tmp_path / "x.parquet", [b"new", b"newer"])
    assert opened(root).read("row 0") == b"new"


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    for name in ("a#b", "x.parquet#image"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"x")
        assert opened(str(tmp_path / name)).read("1.png") == b"x"
    assert opened(packed(tmp_path / "a#b" / "x.parquet", [b"y"])).read("row 0") == b"y"


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"text" * 100])
def test_a_broken_parquet_file_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as Parquet"):
        opened(f"{tmp_path / 'x.parquet'}#image")


def test_a_parquet_file_cut_short_meanwhile_is_a_fault(tmp_path: Path) -> None:
    noise = [random.Random(i).randbytes(20_000) for i in range(300)]
    store = opened(packed(tmp_path / "x.parquet", list(noise), compression="none"))
    assert store.read("row 0") == noise[0]
    with (tmp_path / "x.parquet").open("r+b") as file:
        file.truncate(1000)
    assert kind(lambda: store.read("row 299")) == "unreadable"


# Addresses


@pytest.mark.parametrize(
    "path",
    [
        "../outside.jpg", "a/../../outside.jpg", "a\\..\\..\\outside.jpg", "memory://elsewhere/x.jpg",
        "memory://lists", "file:///etc/hostname", "https://127.0.0.1/x.jpg", "s3://bucket/x.jpg",
        "simplecache::memory://lists/in/x.jpg",
    ],
)  # fmt: skip
def test_a_list_from_elsewhere_leads_nowhere_else(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to this machine's files nor to other hosts."""
    monkeypatch.setattr(stores, "MEMORY", "none://")  # as a store of any other protocol
    fs = fsspec.filesystem("memory")
    for place in ("/outside.jpg", "/lists/in/x.jpg", "/elsewhere/x.jpg"):
        fs.pipe_file(place, b"x")
    store = stores.Remote("memory://lists/in")
    assert store.read("x.jpg") == store.read("/x.jpg") == store.read("memory://lists/in/x.jpg") == b"x"
    assert kind(lambda: store.read(path)) == "unreadable"


def test_a_place_that_answers_no_more_is_lost_and_one_that_answers_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WAIT_S", 0.0)
    fsspec.filesystem("memory").pipe_file("/lost/x.jpg", b"x")
    store = stores.Remote("memory://lost")
    real, broken = store._fs.cat_file, [True]

    def cut_off(place: str) -> bytes:
        if broken[0]:
            raise ConnectionError("reset by peer")
        return bytes(real(place))

    monkeypatch.setattr(store._fs, "cat_file", cut_off)
    for good in (lambda: store.read("x.jpg") == b"x", lambda: kind(lambda: store.read("no such.jpg")) == "unreadable"):
        for _ in range(stores.LOST - 1):
            assert kind(lambda: store.read("x.jpg")) == "unreadable"
        broken[0] = False
        assert good()  # an answer, if only that there is no such file
        broken[0] = True
    for _ in range(stores.LOST - 1):
        assert kind(lambda: store.read("x.jpg")) == "unreadable"
    with pytest.raises(LostError, match=r"memory://lost/ answers no more: the last 16 .*reset by peer.*--resume"):
        store.read("x.jpg")


def test_a_list_of_ones_own_leads_anywhere(tmp_path: Path) -> None:
    """A local table, and what came from Python."""
    (tmp_path / "here").mkdir()
    (tmp_path / "x.jpg").write_bytes(b"x")
    fsspec.filesystem("memory").pipe_file("/own/y.jpg", b"y")
    local = opened(str(tmp_path / "here"))
    assert local.read("../x.jpg") == local.read(str(tmp_path / "x.jpg")) == b"x"
    assert local.read(f"file://{tmp_path / 'x.jpg'}") == b"x"
    assert local.read("memory://own/y.jpg") == b"y"
    memory = opened("memory://lists")
    assert memory.read(f"file://{tmp_path / 'x.jpg'}") == b"x"
    assert memory.read("memory://own/y.jpg") == b"y"
    os_state = (tmp_path / "x.jpg").stat()
    assert memory.state(f"file://{tmp_path / 'x.jpg'}") == (1, os_state.st_mtime_ns)


@pytest.mark.parametrize(
    ("error", "asked", "said"),
    [
        (ConnectionError("reset"), stores.TRIES, r"reset \(tried 3 times\)"),
        (RuntimeError("of a library"), stores.TRIES, "of a library"),
        (TimeoutError(), stores.TRIES, "TimeoutError"),
        (FileNotFoundError("/x"), 1, "no such file"),
        (PermissionError(13, "denied"), 1, "denied"),
    ],
)
def test_a_lost_answer_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception, asked: int, said: str
) -> None:
    monkeypatch.setattr(stores, "WAIT_S", 0.0)
    fsspec.filesystem("memory").pipe_file("/flaky/x.jpg", b"x")
    store = stores.Remote("memory://flaky")
    real, calls = store._fs.cat_file, []

    def failing(path: str, fails: int) -> bytes:
        calls.append(path)
        if len(calls) <= fails:
            raise error
        return bytes(real(path))

    class Flaky:
        def __init__(self, fails: int) -> None:
            self.fails = fails

        def info(self, path: str) -> dict[str, int]:
            return {"size": 1}

        def cat_file(self, path: str) -> bytes:
            return failing(path, self.fails)

    store._fs = Flaky(99)
    with pytest.raises(ImageError, match=said):
        store.read("x.jpg")
    assert len(calls) == asked
    if asked > 1:
        calls.clear()
        store._fs = Flaky(asked - 1)
        assert store.read("x.jpg") == b"x"


def test_a_server_that_does_not_say_the_size_is_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe_file("/silent/x.jpg", b"x" * 1001)
    store = stores.Remote("memory://silent")
    real = store._fs

    class Silent:
        def info(self, path: str) -> dict[str, None]:
            return {"size": None}

        def open(self, path: str, mode: str) -> Any:
            return real.open(path, mode)

    store._fs = Silent()
    assert store.read("x.jpg") == b"x" * 1001
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    assert kind(lambda: store.read("x.jpg")) == "too large"


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    for url, extra in [("s3://bucket/photos", "s3"), ("gs://bucket", "gcs"), ("simplecache::https://host/x", "http")]:
        with pytest.raises(MissingError, match=rf"pip install 'topwork\[{extra}\]'"):
            opened(url)
    with pytest.raises(MissingError, match="install the package that it names"):
        opened("abfs://container")


def test_an_unknown_protocol_is_said() -> None:
    with pytest.raises(UsageError, match="nonsense is no protocol"):
        opened("nonsense://bucket")
