"""What training reads is what the frozen prefix gives, view by view, made once, whole or not there."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from conftest import Log, as_backbone, labelled, tiny_network, write_photos
from topwork import activations, images
from topwork.activations import BATCH, DISK_SHARE, Store, half, store
from topwork.errors import DataError
from topwork.records import Augmentation
from topwork.views import view
from topwork.zoo import Backbone

pytestmark = pytest.mark.usefixtures("one_thread")

POINTS = range(6)  # the pixels, and the output of each of the five blocks
CLASSES = ("bark", "sand")
PER_CLASS = 10  # 20 images: one whole batch and a part of one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that tests here do not change."""
    return write_photos(tmp_path_factory.mktemp("photos") / "p", classes=CLASSES, per_class=PER_CLASS, size_px=40)


def kept(backbone: Backbone, folder: Path, cache: Path, *, seed: int = 0, **changes: float) -> Store:
    return store(
        backbone, "key", folder, labelled(folder), augmentation=Augmentation(**changes), seed=seed, cache=cache
    )


def files(where: Store) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in where.folder.iterdir()} if where.folder.exists() else {}


def blocks(network: nn.Module) -> list[nn.Module]:
    """The network's own, as they were before any tracing or folding."""
    return list(network.children())[:-1]


def by_hand(where: Store, point: int, number: int, dtype: torch.dtype = torch.float64) -> NDArray[np.float64]:
    """Each view decoded, normalised and sent through the network's own layers: (n, h, w, c)."""
    mean, std = (np.array(v) for v in (where.backbone.preprocessing.mean, where.backbone.preprocessing.std))
    network, found = copy.deepcopy(tiny_network()).to(dtype), []
    for e in where.examples:
        data = (where.root / e.path).read_bytes()
        pixels = view(data, number, where.backbone.preprocessing, where.augmentation, digest=e.digest, seed=where.seed)
        x = torch.from_numpy((pixels / 255 - mean) / std).to(dtype).permute(2, 0, 1)[None].contiguous()
        with torch.inference_mode():
            for block in blocks(network)[:point]:
                x = block(x)
        found.append(x[0].permute(1, 2, 0).double().numpy())
    return np.stack(found)


# ---- the right values


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("point", POINTS[1:])
def test_they_are_what_the_prefix_gives(
    tiny: Backbone, folder: Path, tmp_path: Path, point: int, dtype: torch.dtype
) -> None:
    """To float16 rounding, half a unit in the eleventh bit, and the folding's float32 rounding of sums."""
    where = kept(tiny, folder, tmp_path)
    for number in (0, 3):
        where.ensure([point], number)
        expected, got = by_hand(where, point, number, dtype), where.mapped(point, number)
        assert expected.std() > 0.1
        assert got.dtype == np.float16
        np.testing.assert_allclose(got.astype(np.float64), expected, rtol=2**-11, atol=1e-5 * np.abs(expected).max())


def test_point_0_is_the_pixels(tiny: Backbone, folder: Path, tmp_path: Path) -> None:
    where = kept(tiny, folder, tmp_path)
    where.ensure([0], 0)
    expected = np.stack([images.load(folder / e.path, tiny.preprocessing) for e in where.examples])
    np.testing.assert_array_equal(where.mapped(0, 0), expected)
    where.ensure([0], 2)
    mean, std = (np.array(v) for v in (tiny.preprocessing.mean, tiny.preprocessing.std))
    np.testing.assert_allclose((where.mapped(0, 2) / 255 - mean) / std, by_hand(where, 0, 2), atol=1e-12)


def test_several_points_in_one_pass_are_those_of_one_pass_each(tiny: Backbone, folder: Path, tmp_path: Path) -> None:
    together, alone = kept(tiny, folder, tmp_path / "a"), kept(tiny, folder, tmp_path / "b")
    assert together.ensure(POINTS, 1) == 2 * PER_CLASS
    for point in POINTS:
        assert alone.ensure([point], 1) == 2 * PER_CLASS
    assert len(files(together)) == len(POINTS)
    assert files(together) == files(alone)


def test_points_may_come_in_any_order_and_twice(tiny: Backbone, folder: Path, tmp_path: Path) -> None:
    one, other = kept(tiny, folder, tmp_path / "a"), kept(tiny, folder, tmp_path / "b")
    one.ensure([4, 0, 2, 4], 0)
    other.ensure([0, 2, 4], 0)
    assert files(one) == files(other)
    assert one.ensure([], 0) == 0


def test_values_beyond_float16_are_held_at_its_limits() -> None:
    maps = torch.tensor([1e9, -1e9, 65504.0, 1.5, 0.0]).reshape(1, 5, 1, 1)
    np.testing.assert_array_equal(half(maps)[0, 0, 0], np.float16([65504, -65504, 65504, 1.5, 0]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_in_memory_does_not_matter(layout: torch.memory_format) -> None:
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    got = half(maps.contiguous(memory_format=layout))
    assert got.shape == (2, 4, 5, 3)
    for b, c, y, x in np.ndindex(2, 3, 4, 5):
        assert got[b, y, x, c] == np.float16(maps[b, c, y, x])


def test_a_small_input_size_and_the_embedded_backbone_work_the_same(
    lite: Backbone, folder: Path, tmp_path: Path
) -> None:
    """Real layers with real weights, against the whole prefix in double precision."""
    point = 5
    where = store(
        lite, "lite", folder, labelled(folder)[:4], augmentation=Augmentation(), seed=0, cache=tmp_path
    )  # fmt: skip
    where.ensure([point], 0)
    mean, std = (np.array(v) for v in (lite.preprocessing.mean, lite.preprocessing.std))
    pixels = np.stack([images.load(folder / e.path, lite.preprocessing) for e in where.examples])
    x = torch.from_numpy((pixels / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        expected = copy.deepcopy(lite.prefix(lite.cuts[point - 1].name)).double().eval()(x).permute(0, 2, 3, 1).numpy()
    got = where.mapped(point, 0).astype(np.float64)
    np.testing.assert_allclose(got, expected, rtol=2**-11, atol=1e-5 * np.abs(expected).max())


# ---- made once


def test_a_view_is_made_once(tiny: Backbone, folder: Path, tmp_path: Path, log: Log) -> None:
    """The second time not even the pictures are looked at."""
    photos = shutil.copytree(folder, tmp_path / "photos")
    where = kept(tiny, photos, tmp_path / "cache")
    assert where.ensure([2, 3], 1, log) == 2 * PER_CLASS
    assert log.stages == [("views", 2 * PER_CLASS)]
    assert log.steps == 2 * PER_CLASS
    shutil.rmtree(photos)
    assert where.ensure([2, 3], 1, log) == 0
    assert where.ensure([3], 1, log) == 0
    assert len(log.stages) == 1


def test_only_what_is_missing_is_made(tiny: Backbone, folder: Path, tmp_path: Path) -> None:
    where = kept(tiny, folder, tmp_path)
    where.ensure([2], 1)
    (before,) = where.folder.iterdir()
    stamp = before.stat()
    assert where.ensure([1, 2, 3], 1) == 2 * PER_CLASS
    assert len(files(where)) == 3
    assert (before.stat().st_ino, before.stat().st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)


def test_it_says_which_views_are_there(tiny: Backbone, folder: Path, tmp_path: Path) -> None:
    where = kept(tiny, folder, tmp_path)
    assert where.held(2, range(5)) == set()
    where.ensure([2], 0)
    where.ensure([2, 3], 4)
    assert where.held(2, range(6)) == {0, 4}
    assert where.held(2, [1, 4]) == {4}
    assert where.held(3, range(6)) == {4}


def test_dropping_takes_every_view_of_this_store_and_no_other(tiny: Backbone, folder: Path, tmp_path: Path) -> None:
    where = kept(tiny, folder, tmp_path)
    other = replace(where, folder=where.folder.with_name("other"))
    for each in (where, other):
        each.ensure([1], 0)
    where.drop()
    assert not where.folder.exists()
    assert len(files(other)) == 1
    where.drop()  # nothing there is no error
    assert where.ensure([1], 0) == 2 * PER_CLASS
    assert files(where) == files(other)


def test_stored_views_cannot_be_written_to(tiny: Backbone, folder: Path, tmp_path: Path) -> None:
    where = kept(tiny, folder, tmp_path)
    where.ensure([1], 0)
    with pytest.raises(ValueError, match="read-only"):
        where.mapped(1, 0)[0] = 0


@pytest.mark.parametrize("point", POINTS)
def test_sizes_are_those_of_the_files(tiny: Backbone, folder: Path, tmp_path: Path, point: int) -> None:
    where = kept(tiny, folder, tmp_path)
    where.ensure([point], 0)
    (file,) = files(where).values()
    assert where.mapped(point, 0).shape == (2 * PER_CLASS, *where.shape(point))
    assert len(file) == 2 * PER_CLASS * where.bytes_per_image(point)


# ---- under a name of their own


def test_other_views_seeds_and_augmentations_are_other_files(tiny: Backbone, folder: Path, tmp_path: Path) -> None:
    """In one folder, since the pictures are the same; the plain view is the same for all."""
    stores = [
        kept(tiny, folder, tmp_path),
        kept(tiny, folder, tmp_path, seed=1),
        kept(tiny, folder, tmp_path, flip=False),
        kept(tiny, folder, tmp_path, colour=0.1),
        kept(tiny, folder, tmp_path, least_area=0.5),
        kept(tiny, folder, tmp_path, stretch=1.1),
    ]
    assert len({s.folder for s in stores}) == 1
    for each in stores:
        assert each.held(1, [1, 2]) == set()
        each.ensure([1], 1)
        each.ensure([1], 2)
    assert len(set(files(stores[0]).values())) == 12  # no two alike in content either
    stores[0].ensure([1], 0)
    assert all(s.held(1, [0]) == {0} for s in stores)


def test_other_pictures_another_order_or_another_backbone_are_another_folder(
    tiny: Backbone, folder: Path, tmp_path: Path
) -> None:
    def at(examples: Sequence[object], key: str = "key") -> Path:
        return store(
            tiny, key, folder, examples, augmentation=Augmentation(), seed=0, cache=tmp_path  # type: ignore[arg-type]
        ).folder  # fmt: skip

    examples = labelled(folder)
    changed = [replace(examples[0], digest="0" * 32), *examples[1:]]
    assert len({at(examples), at(examples[1:]), at(examples[::-1]), at(changed), at(examples, "other")}) == 5
    moved = [replace(e, path=f"elsewhere/{e.path}", label=9) for e in examples]
    assert at(moved) == at(examples)  # neither the name of a file nor its label changes what it looks like


# ---- whole or not there


class Interrupting(Log):
    """A watch that is interrupted after the first batch."""

    def advance(self, steps: int = 1) -> None:
        super().advance(steps)
        raise KeyboardInterrupt


def test_an_interrupted_pass_leaves_nothing_and_is_made_again(tiny: Backbone, folder: Path, tmp_path: Path) -> None:
    where, whole = kept(tiny, folder, tmp_path / "a"), kept(tiny, folder, tmp_path / "b")
    watch = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        where.ensure([1, 3], 2, watch)
    assert watch.steps == BATCH  # something had been written by then
    assert files(where) == {}
    assert where.held(1, [2]) == set()
    where.ensure([1, 3], 2)
    whole.ensure([1, 3], 2)
    assert files(where) == files(whole)


@pytest.mark.parametrize("what", ["other content", "no picture", "gone", "empty"])
def test_a_file_that_is_no_longer_what_it_was_is_named(tiny: Backbone, folder: Path, tmp_path: Path, what: str) -> None:
    photos = shutil.copytree(folder, tmp_path / "photos")
    where = kept(tiny, photos, tmp_path / "cache")
    victim = photos / where.examples[-1].path
    if what == "gone":
        victim.unlink()
    else:
        other = (photos / where.examples[0].path).read_bytes()
        victim.write_bytes({"other content": other, "no picture": b"text", "empty": b""}[what])
    with pytest.raises(DataError, match="put it back") as caught:
        where.ensure([0, 2], 1)
    assert str(victim) in str(caught.value)
    assert files(where) == {}


def test_two_who_make_the_same_view_at_once_do_not_harm_each_other(
    tiny: Backbone, folder: Path, tmp_path: Path
) -> None:
    where, alone = kept(tiny, folder, tmp_path / "a"), kept(tiny, folder, tmp_path / "b")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: where.ensure([1, 2], 1), range(3)))
    alone.ensure([1, 2], 1)
    assert files(where) == files(alone)


def test_a_view_that_a_power_cut_shortened_is_made_again(tiny: Backbone, folder: Path, tmp_path: Path) -> None:
    """A rename may reach the disk before the content does."""
    where = kept(tiny, folder, tmp_path)
    where.ensure([2], 1)
    (file,) = where.folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert where.held(2, [1]) == set()
    assert where.ensure([2], 1) == 2 * PER_CLASS
    assert where.mapped(2, 1).tobytes() == whole


# ---- what the disk can take


@given(free=st.integers(0, 10**9), wanted=st.integers(1, 20), point=st.sampled_from(POINTS))
def test_no_more_views_are_wanted_than_the_disk_takes(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, free: int, wanted: int, point: int
) -> None:
    """As many as fit a share of the free space beside the plain one, but one in any case."""
    where = kept(_TINY, folder, tmp_path_factory.getbasetemp() / "disk")
    each = len(where.examples) * where.bytes_per_image(point)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations.shutil, "disk_usage", lambda path: SimpleNamespace(total=10**12, used=0, free=free))
        views = where.affordable_views(point, wanted)
    assert 1 <= views <= wanted
    assert views == 1 or (views + 1) * each <= DISK_SHARE * free
    assert views == wanted or (views + 2) * each > DISK_SHARE * free


_TINY = as_backbone(tiny_network())
