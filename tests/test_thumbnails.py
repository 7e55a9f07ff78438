"""A kept image is the decoded one, pixel by pixel, or is not used; keeping it takes time and a share of the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import labelled, write_photos
from test_images import encoded, noise, plain
from topwork import images, stores, thumbnails
from topwork.activations import store
from topwork.errors import DataError, ImageError
from topwork.records import Augmentation, Preprocessing
from topwork.thumbnails import DISK_SHARE, FILE_S, RATE, Thumbnails, repays, under
from topwork.zoo import Backbone

SMALL = plain(14, 16)  # a JPEG of 100 px is decoded to 50

SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6

FILES = {
    "JPEG": encoded(noise(100, 140), "JPEG"),
    "grey JPEG": encoded(noise(100, 140, 1)[..., 0], "JPEG"),
    "JPEG on its side": encoded(noise(100, 140), "JPEG", exif=SIDEWAYS),
    "PNG": encoded(noise(30, 50)),
    "PNG with alpha": encoded(noise(30, 50, 4)),
    "PNG of 16 bit": encoded(Image.fromarray(noise(30, 50, 1)[..., 0].astype(np.uint16) * 256)),
    "PNG in black and white": encoded(Image.fromarray(noise(30, 50)).convert("1")),
}


@pytest.fixture
def keen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is kept, whatever it saves."""
    monkeypatch.setattr(thumbnails, "repays", lambda seconds, size, uses: True)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What has been decoded."""
    found: list[bytes] = []
    decode = images.decode

    def counting(source: Any, preprocessing: Preprocessing) -> Image.Image:
        found.append(source)
        return decode(source, preprocessing)

    monkeypatch.setattr(images, "decode", counting)
    return found  # type: ignore[return-value]


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes()


def through(kept: Thumbnails, data: bytes, preprocessing: Preprocessing = SMALL) -> Image.Image:
    return kept.decode(data, images.digest(data), preprocessing, uses=3)


def kept_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


# ---- the same pixels


@pytest.mark.usefixtures("keen")
@pytest.mark.parametrize("name", FILES)
def test_what_is_read_back_is_what_was_decoded(name: str, tmp_path: Path, counted: list[bytes]) -> None:
    data = FILES[name]
    expected = images.decode(data, SMALL)
    counted.clear()
    kept = Thumbnails(tmp_path)
    assert same(through(kept, data), expected)
    assert same(through(kept, data), expected)
    assert same(through(Thumbnails(tmp_path), data), expected)  # a later run
    assert counted == [data]
    assert len(kept_files(tmp_path)) == 1


@pytest.mark.usefixtures("keen")
def test_another_size_finds_it_if_it_is_decoded_to_the_same_scale(tmp_path: Path, counted: list[bytes]) -> None:
    data, kept = FILES["JPEG"], Thumbnails(tmp_path)
    through(kept, data, plain(14, 16))
    through(kept, data, plain(20, 22, interpolation="bilinear"))  # 100 px are halved for both: 44 are wanted
    assert len(counted) == 1
    for other in (plain(9, 10), plain(28, 30)):  # a quarter; in full
        assert same(through(kept, data, other), images.decode(data, other))
    assert len(kept_files(tmp_path)) == 3


@pytest.mark.usefixtures("keen")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_one_is_decoded_anew_and_mended(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, cut: bool
) -> None:
    """A flipped bit or an early end, wherever it lies."""
    data, folder = FILES["PNG"], tmp_path_factory.mktemp("kept")
    expected = through(Thumbnails(folder), data)
    (file,) = kept_files(folder)
    whole = file.read_bytes()
    broken = bytearray(whole)
    broken[int(place * len(whole))] ^= 1 << bit
    file.write_bytes(whole[: int(place * len(whole))] if cut else broken)
    assert same(through(Thumbnails(folder), data), expected)
    assert file.read_bytes() == whole


@pytest.mark.usefixtures("keen")
def test_one_that_stands_under_anothers_name_is_not_believed(tmp_path: Path) -> None:
    kept, data, other = Thumbnails(tmp_path), encoded(noise(30, 50)), encoded(noise(50, 30).reshape(30, 50, 3))
    through(kept, data)
    (file,) = kept_files(tmp_path)
    file.rename(file.with_name(file.name.replace(images.digest(data), images.digest(other))))
    assert same(through(Thumbnails(tmp_path), other), images.decode(other, SMALL))


@pytest.mark.usefixtures("keen")
def test_it_may_be_deleted_at_any_time(tmp_path: Path, counted: list[bytes]) -> None:
    kept, data = Thumbnails(tmp_path / "t"), FILES["JPEG"]
    first = through(kept, data)
    shutil.rmtree(tmp_path / "t")
    assert same(through(kept, data), first)
    assert same(through(kept, data), first)
    assert len(counted) == 2


def test_other_decoders_are_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of Pillow may round otherwise."""
    assert under(tmp_path) is under(tmp_path)
    before = under(tmp_path).folder
    monkeypatch.setattr(thumbnails.PIL, "__version__", "0")
    thumbnails._under.cache_clear()
    assert under(tmp_path).folder != before
    assert under(tmp_path).folder.parent == before.parent
    thumbnails._under.cache_clear()


@pytest.mark.usefixtures("keen")
def test_threads_and_others_who_keep_the_same_do_no_harm(tmp_path: Path) -> None:
    mine, theirs = Thumbnails(tmp_path), Thumbnails(tmp_path)
    todo = [(kept, data) for _ in range(5) for kept in (mine, theirs) for data in FILES.values()]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda t: through(*t), todo))
    assert all(same(image, images.decode(data, SMALL)) for image, (_, data) in zip(got, todo, strict=True))
    assert len(kept_files(tmp_path)) == len(FILES)


# ---- a file that may change


@pytest.mark.usefixtures("keen")
def test_a_file_is_read_once_and_again_only_when_it_was_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data, kept = tmp_path / "a.jpg", FILES["JPEG"], Thumbnails(tmp_path / "t")
    path.write_bytes(data)
    read: list[Path] = []
    read_bytes = images.read_bytes
    monkeypatch.setattr(images, "read_bytes", lambda p: (read.append(p), read_bytes(p))[1])

    def look(preprocessing: Preprocessing = SMALL) -> Image.Image:
        return kept.decode_file(stores.opened(str(tmp_path)), "a.jpg", images.digest(data), preprocessing, uses=3)

    first = look()
    assert same(look(), first)
    assert len(read) == 1
    os.utime(path, ns=(1, 1))
    assert same(look(), first)
    assert len(read) == 2
    assert same(look(plain(28, 30)), images.decode(data, plain(28, 30)))  # another scale: what is there does not serve
    assert len(read) == 3
    path.write_bytes(FILES["PNG"])
    with pytest.raises(ImageError, match="changed"):
        look()
    path.unlink()
    with pytest.raises(ImageError, match="unreadable"):
        look()


# ---- whether it repays


@given(seconds=st.floats(0, 10), size=st.integers(0, 10**9), uses=st.integers(0, 50))
def test_it_is_kept_where_that_saves_time(seconds: float, size: int, uses: int) -> None:
    """Against the sum itself: decoding every time, or writing once and reading every time."""
    without, with_it = uses * seconds, (1 + uses) * (FILE_S + size / RATE)
    if abs(without - with_it) > 1e-9:
        assert repays(seconds, size, uses) == (without > with_it)
    assert not repays(seconds, size, 0)


@pytest.mark.parametrize(("seconds", "files"), [(1e-9, 0), (1.0, 1)])
def test_what_decodes_faster_than_it_is_read_is_not_kept(
    seconds: float, files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the seconds that this thread spends on decoding."""
    clock = iter([5.0, 5.0 + seconds])
    monkeypatch.setattr(thumbnails.time, "thread_time", lambda: next(clock))
    through(Thumbnails(tmp_path), FILES["PNG"])
    assert len(kept_files(tmp_path)) == files


# ---- what the disk can take


@pytest.mark.usefixtures("keen")
def test_they_take_no_more_than_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of free space and their own; what a run has kept itself does not drive itself out."""
    pictures = [encoded(np.full((20, 20, 3), k, np.uint8)) for k in range(9)]
    each = 20 * 20 * 3 + thumbnails._HEADER.size
    total = int(4.5 * each / DISK_SHARE)

    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=total - sum(p.stat().st_size for p in kept_files(tmp_path)))

    monkeypatch.setattr(thumbnails.shutil, "disk_usage", usage)
    kept = Thumbnails(tmp_path / "t")
    for data in pictures:
        through(kept, data)
    first = kept_files(tmp_path)
    assert len(first) == 4
    assert {p.name.partition("-")[0] for p in first} == {images.digest(d) for d in pictures[:4]}

    for age, data in enumerate(pictures[:4]):  # a day later: the first is the oldest
        (file,) = (tmp_path / "t").glob(f"{images.digest(data)}-*")
        os.utime(file, ns=(age + 1, age + 1))
    later = Thumbnails(tmp_path / "t")
    through(later, pictures[0])  # used again: it stays
    for data in pictures[4:6]:
        through(later, data)
    left = {p.name.partition("-")[0] for p in kept_files(tmp_path)}
    assert left == {images.digest(pictures[k]) for k in (0, 3, 4, 5)}
    for data in pictures:
        assert same(through(later, data), images.decode(data, SMALL))
    assert len(kept_files(tmp_path)) <= 4


@pytest.mark.usefixtures("keen")
def test_a_folder_that_may_only_be_read_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[bytes]
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError

    data = FILES["JPEG"]
    first = through(Thumbnails(tmp_path), data)
    monkeypatch.setattr(thumbnails.os, "utime", refused)
    assert same(through(Thumbnails(tmp_path), data), first)
    assert len(counted) == 1


@pytest.mark.usefixtures("keen")
def test_a_disk_that_takes_nothing_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(thumbnails.files, "write", full)
    kept, data = Thumbnails(tmp_path), FILES["JPEG"]
    for _ in range(2):
        assert same(through(kept, data), images.decode(data, SMALL))
    (tmp_path / "file").touch()
    monkeypatch.undo()
    assert same(through(Thumbnails(tmp_path / "file" / "t"), data), images.decode(data, SMALL))


# ---- in training


@pytest.mark.usefixtures("one_thread")
def test_views_are_the_same_with_thumbnails_and_decoded_once(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[bytes]
) -> None:
    folder = write_photos(tmp_path / "photos", classes=("bark", "sand"), per_class=3, size_px=200)
    examples, views = labelled(folder), range(4)
    found = {}
    for name, keeping in (("with", True), ("without", False)):
        monkeypatch.setattr(thumbnails, "repays", lambda *a, keeping=keeping: keeping)
        where = store(tiny, "k", folder, examples, augmentation=Augmentation(), seed=0, cache=tmp_path / name)
        counted.clear()
        for number in views:
            where.ensure([0, 2], number)
        found[name] = [where.mapped(point, number).tobytes() for point in (0, 2) for number in views]
        assert len(counted) == len(examples) * (1 if keeping else len(views))
    assert found["with"] == found["without"]
    assert not kept_files(tmp_path / "without" / "thumbnails")

    shutil.copy(folder / examples[0].path, folder / examples[1].path)
    monkeypatch.setattr(thumbnails, "repays", lambda *a: True)
    where = store(tiny, "k", folder, examples, augmentation=Augmentation(), seed=1, cache=tmp_path / "with")
    with pytest.raises(DataError, match="changed"):
        where.ensure([0], 1)
    assert replace(where, seed=2).thumbnails is where.thumbnails  # two trainings share them
