"""Every file under a folder becomes a labelled image or a listed fault, and what judges is not learnt from."""

from __future__ import annotations

import os
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import Log, WritePhotos
from topwork import data, images
from topwork.errors import DataError
from topwork.records import Dataset, Example, Fault, Part
from topwork.sketches import Sketches

Content = int | bytes
"""A number stands for the picture of that number; bytes are written as they are."""


def picture(number: int, format: str = "PNG") -> bytes:
    """A picture of four by four pixels; another number gives another content."""
    buffer = BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256 % 256, 77)).save(buffer, format)
    return buffer.getvalue()


def write(root: Path, files: Mapping[str, Content]) -> Path:
    """Files by relative path; a path that ends in a slash is an empty folder."""
    root.mkdir(exist_ok=True)
    for relative, content in files.items():
        path = root / relative
        if relative.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(content) if isinstance(content, int) else content)
    return root


TWO = {"a/1.png": 1, "a/2.png": 2, "b/1.png": 3, "b/2.png": 4}
"""The least that can be learnt from."""


def paths(dataset: Dataset, *parts: Part) -> dict[str, str]:
    """Class by path, of the given parts (default all)."""
    return {e.path: dataset.classes[e.label] for e in dataset.examples if not parts or e.part in parts}


def kinds(dataset: Dataset) -> dict[str, str]:
    """Kind of fault by path; no path is listed twice."""
    found = {f.path: f.kind for f in dataset.faults}
    assert len(found) == len(dataset.faults)
    assert all(f.detail for f in dataset.faults)
    return found


# What is an image, of which class


def test_a_folder_per_class(tmp_path: Path) -> None:
    dataset = data.read_folder(write(tmp_path, {**TWO, "a/deep/er/3.png": 5}))
    assert dataset.classes == ("a", "b")
    assert paths(dataset, "train") == {
        "a/1.png": "a", "a/2.png": "a", "a/deep/er/3.png": "a", "b/1.png": "b", "b/2.png": "b",
    }  # fmt: skip
    facts = images.look(picture(1))
    assert dataset.examples[0] == Example("a/1.png", 0, "train", images.digest(picture(1)), facts=facts)
    assert (dataset.root, dataset.layout) == (str(tmp_path), "a folder per class")
    assert dataset.faults == dataset.warnings == ()


@pytest.mark.parametrize(
    ("folder", "part"),
    [(name, "val") for name in ("val", "valid", "validation", "dev", "Val", "VALIDATION")]
    + [(name, "test") for name in ("test", "testing", "Test", "TESTING")],
)
@pytest.mark.parametrize("training", ["train", "Training", "TRAIN"])
def test_the_parts_of_a_split_by_any_of_their_names(tmp_path: Path, training: str, folder: str, part: Part) -> None:
    files = {f"{training}/{path}": content for path, content in TWO.items()}
    dataset = data.read_folder(write(tmp_path, {**files, f"{folder}/a/9.png": 9}))
    assert dataset.classes == ("a", "b")
    assert paths(dataset, "train") == {path: path.split("/")[1] for path in files}
    assert paths(dataset, part) == {f"{folder}/a/9.png": "a"}
    assert dataset.layout == f"{', '.join(f'{name}/' for name in sorted([training, folder]))} folders"


def test_without_a_training_folder_the_names_of_parts_are_classes(tmp_path: Path) -> None:
    dataset = data.read_folder(write(tmp_path, {"test/1.png": 1, "test/2.png": 2, "val/1.png": 3, "val/2.png": 4}))
    assert dataset.classes == ("test", "val")
    assert {e.part for e in dataset.examples} == {"train"}


def test_train_and_test_without_folders_in_them_are_classes(tmp_path: Path) -> None:
    """Photos of trains, and of tests."""
    files: dict[str, Content] = {"train/1.png": 1, "train/2.png": 2, "test/1.png": 3, "test/2.png": 4}
    dataset = data.read_folder(write(tmp_path, {**files, "train/.hidden/x.png": 5}))
    assert dataset.classes == ("test", "train")
    assert {e.part for e in dataset.examples} == {"train"}


def test_classes_are_sorted_and_name_the_folders_as_they_are(tmp_path: Path) -> None:
    names = ["Zebra", "ant", "straße", "a b", "10", "9"]
    files = {f"{name}/{i}.png": 10 * n + i for n, name in enumerate(names) for i in range(2)}
    dataset = data.read_folder(write(tmp_path, files))
    assert dataset.classes == ("10", "9", "Zebra", "a b", "ant", "straße")
    assert paths(dataset) == {path: path.split("/")[0] for path in files}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a/3.jpg", picture(9, "PNG")),  # its content counts, not its name
        ("a/3.txt", picture(9, "JPEG")),
        ("a/3", picture(9, "BMP")),
        ("a/3.gif", picture(9, "GIF")),
        ("a/3.png", picture(9, "WEBP")),
        ("a/3.tiff", picture(9, "TIFF")),
        ("a/ä ö ü.png", 9),
    ],
)
def test_a_file_is_what_it_holds_whatever_its_name(tmp_path: Path, name: str, content: Content) -> None:
    dataset = data.read_folder(write(tmp_path, {**TWO, name: content}))
    assert paths(dataset) == {**{path: path[0] for path in TWO}, name: "a"}
    assert dataset.faults == ()


# What is wrong with it


def test_all_faults_are_listed_together(tmp_path: Path, damaged_png: bytes) -> None:
    """One of each kind; what is good is kept."""
    jpeg = BytesIO()
    Image.effect_noise((64, 64), 90).save(jpeg, "JPEG")
    files: dict[str, Content] = {
        **TWO,
        "loose.png": 10,
        ".hidden/x.png": 11,
        ".DS_Store": b"system",
        "Thumbs.db": b"system",
        "__MACOSX/a/x.png": 12,
        "a/.3.png": 13,
        "a/.cache/deep/x.png": 14,
        "a/DESKTOP.INI": b"system",
        "a/notes.txt": b"not an image",
        "a/page.jpg": b"<html>not found</html>",
        "a/none.jpg": b"",
        "a/cut.jpg": jpeg.getvalue()[:-100],
        "a/cut.png": picture(15)[:-30],
        "a/inside.png": damaged_png,
        "empty/": b"",
        "hollow/inner/": b"",
        "only_hidden/.x.png": 16,
    }
    write(tmp_path, files)
    (tmp_path / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    expected = {
        "loose.png": "outside any class",
        ".hidden": "hidden",
        ".DS_Store": "hidden",
        "Thumbs.db": "hidden",
        "__MACOSX": "hidden",
        "a/.3.png": "hidden",
        "a/.cache": "hidden",
        "a/DESKTOP.INI": "hidden",
        "a/notes.txt": "not an image",
        "a/page.jpg": "unreadable",  # its name says image
        "a/none.jpg": "empty",
        "a/cut.jpg": "truncated",
        "a/cut.png": "truncated",
        "b/gone.png": "unreadable",
        "empty": "empty folder",
        "hollow": "empty folder",
        "only_hidden": "empty folder",
        "only_hidden/.x.png": "hidden",
    }
    dataset = data.read_folder(tmp_path)
    assert kinds(dataset) == expected
    assert paths(dataset) == {**{path: path[0] for path in TWO}, "a/inside.png": "a"}
    assert dataset.classes == ("a", "b")  # a folder without an image is no class
    decoded = data.read(tmp_path, sketches=Sketches.under(tmp_path.with_name("cache")))
    assert kinds(decoded) == {**expected, "a/inside.png": "truncated"}
    assert paths(decoded) == {path: path[0] for path in TWO}


@pytest.mark.parametrize(
    "format",
    ["PNG", "JPEG"],
)
def test_decoding_finds_all_that_looking_finds(tmp_path: Path, format: str) -> None:
    """What `topwork check` calls good, `topwork fit` must take: a file cut anywhere in its last bytes."""
    whole = picture(9, format)
    root = write(tmp_path, {**TWO, **{f"a/less {n}.x": whole[:-n] for n in range(1, 25)}})
    looked = kinds(data.read(root))
    decoded = kinds(data.read(root, sketches=Sketches.under(tmp_path.with_name("cache"))))
    assert len(looked) >= 20
    assert looked.keys() <= decoded.keys()


def test_what_lies_beside_or_between_the_parts_is_a_fault(tmp_path: Path) -> None:
    files: dict[str, Content] = {f"train/{path}": content for path, content in TWO.items()}
    strays: dict[str, Content] = {
        "loose.png": 10,
        "c/1.png": 11,
        "train/loose.png": 12,
        "train/.x.png": 13,
        "train/empty/": b"",
        "test/.DS_Store": b"system",
        "test/a/x.txt": b"no image",
    }
    dataset = data.read_folder(write(tmp_path, {**files, "test/a/1.png": 20, **strays}))
    assert kinds(dataset) == {
        "loose.png": "outside any class",
        "c": "outside any part",
        "train/loose.png": "outside any class",
        "train/.x.png": "hidden",
        "train/empty": "empty folder",
        "test/.DS_Store": "hidden",
        "test/a/x.txt": "not an image",
    }
    assert {f.detail for f in dataset.faults if f.kind == "outside any part"} == {"beside test, train"}


def test_a_part_without_a_class_is_told(tmp_path: Path) -> None:
    """Who made a test folder believes that the result is measured on it."""
    files: dict[str, Content] = {f"train/{path}": content for path, content in TWO.items()}
    assert kinds(data.read_folder(write(tmp_path, {**files, "test/": b""}))) == {"test": "empty folder"}


def test_a_class_missing_in_training_cannot_be_judged(tmp_path: Path) -> None:
    """It is left out with its images; a class that has none for testing stays."""
    files: dict[str, Content] = {f"train/{path}": content for path, content in TWO.items()}
    dataset = data.read_folder(write(tmp_path, {**files, "test/a/1.png": 9, "test/c/1.png": 10, "test/c/2.png": 11}))
    assert dataset.classes == ("a", "b")
    assert kinds(dataset) == {"test/c/1.png": "class not in training", "test/c/2.png": "class not in training"}
    assert all("'c'" in f.detail for f in dataset.faults)
    assert paths(dataset, "test") == {"test/a/1.png": "a"}


def test_a_class_whose_training_images_are_all_faulty_is_missing_in_training(tmp_path: Path) -> None:
    files: dict[str, Content] = {f"train/{path}": content for path, content in TWO.items()}
    dataset = data.read_folder(write(tmp_path, {**files, "train/c/1.png": b"", "test/c/1.png": 10}))
    assert dataset.classes == ("a", "b")
    assert kinds(dataset) == {"train/c/1.png": "empty", "test/c/1.png": "class not in training"}


def test_a_pipe_in_the_folder_is_a_fault_and_is_not_waited_for(tmp_path: Path) -> None:
    """Reading a pipe that nobody writes to never ends."""
    pipe = write(tmp_path, TWO) / "a" / "pipe.png"
    os.mkfifo(pipe)
    opened = threading.Event()

    def let_go() -> None:  # whoever reads the pipe is set free by this writer, and is found out
        os.close(os.open(pipe, os.O_WRONLY))
        opened.set()

    writer = threading.Thread(target=let_go)
    writer.start()
    try:
        assert kinds(data.read_folder(tmp_path)) == {"a/pipe.png": "unreadable"}
        assert not opened.is_set()
    finally:
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        writer.join()
        os.close(reader)


# Links


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    store = write(tmp_path / "store", {"1.png": 10, "in/2.png": 11})
    root = write(tmp_path / "photos", TWO)
    (root / "c").symlink_to(store)
    (root / "a" / "more").symlink_to(store / "in")
    (root / "b" / "link.png").symlink_to(store / "1.png")
    dataset = data.read_folder(root)
    assert dataset.classes == ("a", "b", "c")
    assert paths(dataset) == {
        **{path: path[0] for path in TWO},
        "a/more/2.png": "a", "b/link.png": "b", "c/1.png": "c", "c/in/2.png": "c",
    }  # fmt: skip


@pytest.mark.parametrize(("link", "target"), [("a/deep/up", "a"), ("a/again", "a/deep")], ids=["circle", "twice"])
def test_a_folder_counts_once_however_links_lead_to_it(tmp_path: Path, link: str, target: str) -> None:
    root = write(tmp_path / "photos", {**TWO, "a/deep/3.png": 5})
    (root / link).symlink_to(root / target)
    dataset = data.read_folder(root)
    assert Counter(Path(path).name for path in paths(dataset)) == {"1.png": 2, "2.png": 2, "3.png": 1}
    assert dataset.faults == dataset.warnings == ()


# The same content twice


def test_copies_within_a_class_stay_and_are_told(tmp_path: Path) -> None:
    dataset = data.read_folder(write(tmp_path, {**TWO, "a/copy.png": 1, "a/copy 2.png": 1}))
    assert len(dataset.examples) == 6
    assert len({e.digest for e in dataset.examples}) == 4
    assert dataset.faults == ()
    (warning,) = dataset.warnings
    assert warning.startswith("2 images have the very same content")


def test_the_same_content_in_two_classes_is_told(tmp_path: Path) -> None:
    dataset = data.read_folder(write(tmp_path, {**TWO, "b/of a.png": 1}))
    assert paths(dataset)["a/1.png"] == "a"
    assert paths(dataset)["b/of a.png"] == "b"
    copies, torn = dataset.warnings
    assert copies.startswith("1 images")
    assert torn.startswith("1 images lie in more than one class, for example in a and b;")


@pytest.mark.parametrize(
    "held",
    ["test", "val"],
)
@pytest.mark.parametrize("label", ["a", "b"])  # also under another label it has been seen
def test_what_judges_is_not_learnt_from(tmp_path: Path, held: Part, label: str) -> None:
    """The training image leaves, whatever part is locked; what is left can be learnt from."""
    files: dict[str, Content] = {f"train/{path}": content for path, content in TWO.items()}
    root = write(tmp_path, {**files, f"train/{label}/leak.png": 9, f"{held}/a/1.png": 9, f"{held}/b/1.png": 10})
    dataset, locked = data.lock(data.read_folder(root), seed=0)
    assert locked == f"{held} folder"
    assert paths(dataset, "train") == {path: path.split("/")[1] for path in files}
    assert paths(dataset, "test") == {f"{held}/a/1.png": "a", f"{held}/b/1.png": "b"}
    assert kinds(dataset) == {f"train/{label}/leak.png": f"also in {held}"}


def test_a_validation_image_that_also_lies_in_test_leaves(tmp_path: Path) -> None:
    files: dict[str, Content] = {f"train/{path}": content for path, content in TWO.items()}
    root = write(tmp_path, {**files, "val/a/1.png": 9, "val/a/2.png": 8, "test/a/1.png": 9})
    dataset = data.read_folder(root)
    assert paths(dataset, "val") == {"val/a/2.png": "a"}
    assert kinds(dataset) == {"val/a/1.png": "also in test"}


CONTENTS = st.one_of(st.integers(0, 5), st.sampled_from([b"", b"no image", picture(1)[:-30]]))
NAMES = st.builds(
    "/".join,
    st.one_of(
        st.tuples(st.sampled_from(["train", "val", "test"]), st.sampled_from("abc"), st.sampled_from("123")),
        st.tuples(st.sampled_from(["train", "test", "other"]), st.sampled_from(["x.png", ".x.png", "a/.b/x"])),
        st.tuples(st.sampled_from(["stray.png", ".stray"])),
    ),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(files=st.dictionaries(NAMES, CONTENTS, max_size=14))
def test_no_file_is_lost_and_none_is_read_twice(files: dict[str, Content]) -> None:
    """Every file is one example or lies at, or below, one fault. No content is on both sides.

    (A class of nothing but hidden files is listed as empty beside them.)
    """
    start: dict[str, Content] = {f"train/{c}/{i}.png": 100 + 10 * n + i for n, c in enumerate("abc") for i in range(2)}
    with TemporaryDirectory() as folder:
        dataset = data.read_folder(write(Path(folder), {**start, **files}))
    faulty = {path for path, kind in kinds(dataset).items() if kind != "empty folder"}
    good = paths(dataset)
    assert len(good) == len(dataset.examples)
    for path in {**start, **files}:
        covering = {path, *(p.as_posix() for p in Path(path).parents)} & faulty
        assert len(covering) + (path in good) == 1, path
    tested = {e.digest for e in dataset.part("test")}
    assert not tested & {e.digest for e in dataset.part("train", "val")}


def test_reading_again_gives_the_same(tmp_path: Path, make_photos: WritePhotos) -> None:
    root = make_photos(tmp_path / "photos", per_class=20, size_px=8)
    assert data.read_folder(root) == data.read_folder(root)


def test_progress_is_told_file_by_file(tmp_path: Path, log: Log) -> None:
    data.read_folder(write(tmp_path, {**TWO, "a/x.txt": b"no image", "a/.x": b"hidden"}), watch=log)
    assert log.stages == [("look", 5)]
    assert log.steps == 5


# What cannot be learnt from


def refused(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        data.read_folder(root)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for name, wanted in {"absent": "expected one folder per class", "file": "not a table of images"}.items():
        assert str(tmp_path / name) in refused(tmp_path / name)
        assert wanted in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "reasons"),
    [
        ({}, ["at least two classes are needed, 0 found"]),
        ({"1.png": 1, "2.png": 2}, ["0 found", "1.png: outside any class (a file's class is the folder it lies in)"]),
        ({"a/1.png": 1, "a/2.png": 2}, ["at least two classes are needed, 1 found (only 'a')"]),
        ({**TWO, "c/1.png": 9}, ["class 'c' has 1 usable training image, at least two are needed"]),
        (
            {"a/1.png": 1, "a/2.png": b""},
            ["1 found (only 'a')", "class 'a' has 1 usable training image,", "a/2.png: empty (0 bytes)"],
        ),
        (
            {"a/1.png": 1, "b/1.png": 2, "c/": b""},
            ["class 'a' has 1 usable", "class 'b' has 1 usable", "c: empty folder"],
        ),
        (
            {"train/a/1.png": 1, "train/b/1.png": 2, "test/a/1.png": 1, "test/b/1.png": 3, "test/a/2.png": 4},
            ["class 'a' has 0 usable training images, at", "class 'b' has 1 usable training image,", "also in test"],
        ),
    ],
    ids=["nothing", "no folders", "one class", "one image", "faulty", "two classes", "in test"],
)  # fmt: skip
def test_too_little_to_learn_from_lists_every_reason(
    tmp_path: Path, files: dict[str, Content], reasons: list[str]
) -> None:
    message = refused(write(tmp_path / "photos", files))
    assert message.startswith(f"{tmp_path / 'photos'}: cannot be learnt from:\n")
    assert "Expected one folder per class with its images inside, or a table" in message
    for reason in reasons:
        assert reason in message


def test_a_long_list_of_faults_is_cut_short(tmp_path: Path) -> None:
    message = refused(write(tmp_path, {f"a/{i:02d}.png": b"" for i in range(14)}))
    assert "Left out (14):" in message
    assert "a/09.png" in message
    assert "a/10.png" not in message
    assert message.endswith("... and 4 more")


def test_two_copies_of_one_image_are_one(tmp_path: Path) -> None:
    """Copies leave together, and a class of one content could only be judged by what has never seen it."""
    message = refused(write(tmp_path, {**TWO, "c/1.png": 9, "c/2.png": 9}))
    assert "class 'c' has 1 usable training image, at least two are needed (copies of one count once)" in message
    assert "class 'a'" not in message


VAL_ALONE: dict[str, Content] = {
    **{f"train/{path}": content for path, content in TWO.items()},
    "val/a/1.png": 10, "val/c/1.png": 11, "val/c/2.png": 12, "val/c/3.png": 13,
}  # fmt: skip
"""Without a test folder, val is locked: what lies there is not learnt from."""


def test_a_class_that_lies_in_the_locked_val_folder_alone_is_not_in_training(tmp_path: Path) -> None:
    dataset, locked = data.lock(data.read_folder(write(tmp_path, VAL_ALONE)), seed=0)
    assert locked == "val folder"
    assert dataset.classes == ("a", "b")
    assert kinds(dataset) == dict.fromkeys(["val/c/1.png", "val/c/2.png", "val/c/3.png"], "class not in training")


def test_images_in_the_locked_val_folder_do_not_count_as_training(tmp_path: Path) -> None:
    message = refused(write(tmp_path, {**VAL_ALONE, "train/c/1.png": 9}))
    assert "class 'c' has 1 usable training image, at least two are needed" in message


def test_beside_a_test_folder_val_joins_training(tmp_path: Path) -> None:
    root = write(tmp_path, {**VAL_ALONE, "test/a/1.png": 20, "test/c/1.png": 21})
    dataset, locked = data.lock(data.read_folder(root), seed=0)
    assert locked == "test folder"
    assert dataset.classes == ("a", "b", "c")
    assert paths(dataset, "test") == {"test/a/1.png": "a", "test/c/1.png": "c"}
    assert paths(dataset, "train") == {p: p.split("/")[1] for p in VAL_ALONE}


def test_where_no_class_of_the_test_folder_can_be_judged_val_is_locked_cleanly(tmp_path: Path) -> None:
    """The test folder is left out whole, so val judges, and what it judges by is not learnt from."""
    root = write(tmp_path, {**VAL_ALONE, "train/a/leak.png": 10, "test/other/1.png": 20})
    dataset, locked = data.lock(data.read_folder(root), seed=0)
    assert locked == "val folder"
    assert dataset.classes == ("a", "b")
    assert paths(dataset, "test") == {"val/a/1.png": "a"}
    assert "train/a/leak.png" not in paths(dataset)


# Which part is locked


def records(labels: list[int], digests: list[str] | None = None, parts: list[Part] | None = None) -> Dataset:
    """A dataset without files. Every image its own content, and for training, unless said otherwise."""
    digests = digests or [f"{i:032x}" for i in range(len(labels))]
    parts = parts or ["train"] * len(labels)
    examples = [Example(f"{i}.png", *rest) for i, rest in enumerate(zip(labels, parts, digests, strict=True))]
    return Dataset("root", "layout", tuple("abcdefgh"[: max(labels) + 1]), tuple(examples), (), ())


def many(counts: list[int]) -> list[int]:
    return [label for label, n in enumerate(counts) for _ in range(n)]


@pytest.mark.parametrize(
    ("given", "after", "name"),
    [
        (["train", "train", "test"], ["train", "train", "test"], "test folder"),
        (["train", "val", "test"], ["train", "train", "test"], "test folder"),
        (["train", "train", "val"], ["train", "train", "test"], "val folder"),
    ],
)
@pytest.mark.parametrize("times", [1, 1000])  # folders are locked as they are, however many images there are
def test_given_parts_are_locked_as_they_are(given: list[Part], after: list[Part], name: str, times: int) -> None:
    dataset, locked = data.lock(records([0, 1, 0] * times, parts=given * times), seed=0)
    assert locked == name
    assert [e.part for e in dataset.examples] == after * times


@pytest.mark.parametrize(
    ("counts", "locked"),
    [
        ([1000, 999], "out-of-sample"),
        ([1000, 1000], "held-out part"),
        ([1991, 9], "out-of-sample"),  # a fifth of 9 is not even two
        ([1990, 10], "held-out part"),
    ],
)
def test_a_part_is_held_out_from_2000_images_and_10_a_class_on(counts: list[int], locked: str) -> None:
    dataset, name = data.lock(records(many(counts)), seed=0)
    assert name == locked
    assert bool(dataset.part("test")) == (locked == "held-out part")


@settings(max_examples=15, deadline=None)
@given(
    counts=st.lists(st.integers(300, 1500), min_size=2, max_size=5).filter(lambda c: sum(c) >= 2000),
    copies=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_the_held_out_part_is_a_stratified_fifth_with_copies_together(
    counts: list[int], copies: int, seed: int
) -> None:
    """Of every class, a fifth of its contents to one content; all images of a content are on one side."""
    labels = many(counts)
    within = [i - labels.index(label) for i, label in enumerate(labels)]
    # Every tenth content has copies, next to each other within its class.
    contents = [f"{label:016x}{i // copies if i % 10 < copies else 10_000 + i:016x}" for label, i in
                zip(labels, within, strict=True)]  # fmt: skip
    given_ = records(labels, contents)
    dataset, locked = data.lock(given_, seed)
    assert locked == "held-out part"
    assert [replace(e, part="train") for e in dataset.examples] == list(given_.examples)
    sides: dict[str, set[str]] = defaultdict(set)
    for e in dataset.examples:
        sides[e.digest].add(e.part)
    assert all(len(side) == 1 for side in sides.values())
    for label in range(len(counts)):
        own = [side for digest, side in sides.items() if int(digest[:16], 16) == label]
        assert sum(side == {"test"} for side in own) == pytest.approx(data.LOCK_SHARE * len(own), abs=1)


def test_the_held_out_part_follows_the_seed_and_the_content_alone() -> None:
    """Neither names nor order of the files matter, so the same images are locked on every machine."""
    dataset = records(many([1200, 800]))

    def chosen(given_: Dataset, seed: int) -> set[str]:
        return {e.digest for e in data.lock(given_, seed)[0].part("test")}

    order = np.random.default_rng(0).permutation(2000)
    other = replace(dataset, examples=tuple(replace(dataset.examples[i], path=f"x/{i}") for i in order))
    assert chosen(dataset, 3) == chosen(dataset, 3) == chosen(other, 3)
    assert chosen(dataset, 3) != chosen(dataset, 4)


def test_a_class_that_is_one_image_many_times_over_does_not_break_the_lock() -> None:
    """It has images enough, but no second content to be judged by."""
    labels = many([2000, 12])
    dataset, locked = data.lock(records(labels, [f"{i if i < 2000 else 2000:032x}" for i in range(2012)]), seed=0)
    assert locked == "out-of-sample"
    assert not dataset.part("test")


def test_a_class_whose_images_lie_in_another_class_too_does_not_break_the_lock() -> None:
    """Ten images, but nine of them are also the other class's: their side is drawn there."""
    contents = [*range(10), *range(9), *range(10, 2001)]
    dataset, locked = data.lock(records(many([10, 2000]), [f"{i:032x}" for i in contents]), seed=0)
    sides = defaultdict(set)
    for e in dataset.examples:
        sides[e.digest].add(e.part)
    assert all(len(side) == 1 for side in sides.values())
    assert locked == "out-of-sample"


@pytest.mark.slow
def test_2000_files_are_read_and_a_fifth_is_locked(tmp_path: Path) -> None:
    files: dict[str, Content] = {f"{'ab'[i % 2]}/{i}.png": i for i in range(2000)}
    dataset, locked = data.lock(data.read_folder(write(tmp_path, files)), seed=0)
    assert locked == "held-out part"
    assert Counter(paths(dataset, "test").values()) == {"a": 200, "b": 200}
    assert dataset.faults == dataset.warnings == ()


# Less what proved unusable later


def test_without_leaves_the_faulty_out_and_lists_them_last(tmp_path: Path) -> None:
    dataset = data.read_folder(write(tmp_path, {**TWO, "a/3.png": 9, "a/x.txt": b"no image"}))
    late = Fault("a/1.png", "truncated", "only decoding shows it")
    less = data.without(dataset, (late,))
    assert less.examples == tuple(e for e in dataset.examples if e.path != "a/1.png")
    assert less.faults == (*dataset.faults, late)
    assert less.classes == dataset.classes
    assert data.without(dataset, ()) == dataset


def test_without_refuses_what_can_no_longer_be_learnt_from(tmp_path: Path) -> None:
    dataset = data.read_folder(write(tmp_path, TWO))
    with pytest.raises(DataError, match=r"(?s)class 'b' has 1 usable training image,.*b/2\.png: damaged \(broken\)"):
        data.without(dataset, (Fault("b/2.png", "damaged", "broken"),))


def test_without_refuses_to_lose_all_that_the_result_is_measured_on() -> None:
    dataset, _ = data.lock(records([0, 0, 1, 1, 0, 1], parts=["train"] * 4 + ["test"] * 2), seed=0)
    with pytest.raises(DataError, match="test"):
        data.without(dataset, (Fault("4.png", "damaged", "broken"), Fault("5.png", "damaged", "broken")))


# What the record keeps


def fingerprint(dataset: Dataset) -> str:
    return data.facts(dataset, locked="out-of-sample", seed=0).fingerprint


@pytest.fixture
def some() -> Dataset:
    """Three classes, all parts, one content twice."""
    parts: list[Part] = ["train", "train", "val", "test"]
    contents = [f"{i if i else 1:032x}" for i in range(12)]
    return records([i // 4 for i in range(12)], contents, parts * 3)


def test_facts_count_every_class_in_every_part(some: Dataset) -> None:
    facts = data.facts(replace(some, faults=(Fault("x", "empty", "0 bytes"),)), locked="test folder", seed=7)
    assert [(c.name, c.train, c.val, c.test) for c in facts.classes] == [(name, 2, 1, 1) for name in "abc"]
    assert facts.faults == (Fault("x", "empty", "0 bytes"),)
    assert (facts.root, facts.layout, facts.locked, facts.seed) == ("root", "layout", "test folder", 7)


def test_the_fingerprint_does_not_depend_on_place_names_or_order(some: Dataset) -> None:
    other = replace(
        some,
        root="elsewhere",
        examples=tuple(replace(e, path=f"other/{e.path}") for e in reversed(some.examples)),
        faults=(Fault("x", "empty", "0 bytes"),),
    )
    assert fingerprint(other) == fingerprint(some)


def test_the_fingerprint_depends_on_the_names_of_the_classes_not_on_their_numbers(some: Dataset) -> None:
    turned = tuple(replace(e, label=2 - e.label) for e in some.examples)
    assert fingerprint(replace(some, classes=("c", "b", "a"), examples=turned)) == fingerprint(some)
    assert fingerprint(replace(some, classes=("a", "b", "other"))) != fingerprint(some)


@pytest.mark.parametrize(
    "change",
    [{"digest": f"{99:032x}"}, {"label": 1}, {"part": "test"}, {"part": "val"}],
    ids=["content", "label", "test", "val"],
)
def test_the_fingerprint_changes_with_any_content_label_or_part(some: Dataset, change: dict[str, str | int]) -> None:
    first, *rest = some.examples
    assert fingerprint(replace(some, examples=(replace(first, **change), *rest))) != fingerprint(some)


def test_the_fingerprint_counts_copies(some: Dataset) -> None:
    assert some.examples[0].digest == some.examples[1].digest
    assert fingerprint(replace(some, examples=some.examples[1:])) != fingerprint(some)


def test_a_copied_folder_has_the_same_fingerprint(tmp_path: Path) -> None:
    one = data.read_folder(write(tmp_path / "one", TWO))
    other = data.read_folder(write(tmp_path / "other", dict(reversed(TWO.items()))))
    changed = data.read_folder(write(tmp_path / "changed", {**TWO, "a/1.png": 9}))
    assert one.root != other.root
    assert fingerprint(one) == fingerprint(other) != fingerprint(changed)


# Images to judge a model by


def test_held_out_images_take_the_models_order_of_classes(tmp_path: Path) -> None:
    held_out = data.read_held_out(write(tmp_path, TWO), ("b", "absent", "a"))
    assert held_out.classes == ("b", "absent", "a")
    assert {e.path: e.label for e in held_out.examples} == {"a/1.png": 2, "a/2.png": 2, "b/1.png": 0, "b/2.png": 0}
    assert {e.part for e in held_out.examples} == {"test"}
    assert held_out.faults == ()


def test_a_class_unknown_to_the_model_is_told_once_and_left_out(tmp_path: Path) -> None:
    held_out = data.read_held_out(write(tmp_path, {**TWO, "c/1.png": 8, "c/2.png": 9}), ("a", "b"))
    assert paths(held_out) == {path: path[0] for path in TWO}
    assert held_out.faults == (Fault("c", "class unknown to the model", "it knows a, b"),)


@pytest.mark.parametrize("parts", [["train", "test"], ["train", "val", "test"]])
def test_of_a_split_only_the_test_part_judges(tmp_path: Path, parts: list[str]) -> None:
    files: dict[str, Content] = {
        f"{part}/{path}": 10 * i + number for i, part in enumerate(parts) for path, number in TWO.items()
    }
    held_out = data.read_held_out(write(tmp_path, {**files, "train/only/1.png": 99}), ("a", "b"))
    assert paths(held_out) == {f"test/{path}": path[0] for path in TWO}
    assert held_out.faults == ()


def test_of_a_split_without_a_test_part_the_validation_part_judges(tmp_path: Path) -> None:
    """It is what fit locks; the training images would flatter."""
    files: dict[str, Content] = {
        f"{part}/{path}": 10 * i + number for i, part in enumerate(["train", "val"]) for path, number in TWO.items()
    }
    assert paths(data.read_held_out(write(tmp_path, files), ("a", "b"))) == {f"val/{path}": path[0] for path in TWO}


def test_one_held_out_image_is_enough_and_faulty_ones_are_listed(tmp_path: Path) -> None:
    held_out = data.read_held_out(write(tmp_path, {"a/1.png": 1, "a/2.png": b"", "b/x.txt": b"no"}), ("a", "b"))
    assert paths(held_out) == {"a/1.png": "a"}
    assert kinds(held_out) == {"a/2.png": "empty", "b/x.txt": "not an image"}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no usable image of the classes a, b"),
        ({"A/1.png": 1}, "A: class unknown to the model (it knows a, b)"),
        ({"a/1.png": b""}, "a/1.png: empty (0 bytes)"),
        ({"1.png": 1}, "1.png: outside any class"),
        ({"train/a/1.png": 1, "test/": b"", "test/c/1.png": 2}, "c: class unknown to the model"),
    ],
    ids=["nothing", "other class", "faulty", "no folders", "test part"],
)  # fmt: skip
def test_nothing_to_judge_by_says_why(tmp_path: Path, files: dict[str, Content], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        data.read_held_out(write(tmp_path / "new", files), ("a", "b"))
    assert str(caught.value).startswith(f"{tmp_path / 'new'}: no usable image")
    assert reason in str(caught.value)


def test_held_out_images_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such folder; expected one folder per class"):
        data.read_held_out(tmp_path / "absent", ("a", "b"))
