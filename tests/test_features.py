"""Every image is seen once, what was seen is found again, and nothing half-written is believed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from conftest import SIZE_PX, Log, write_photos
from topwork import data, features, images, probe, shards, zoo
from topwork.ahead import shrinking
from topwork.errors import DataError, TopworkError
from topwork.features import Features
from topwork.records import Example, Preprocessing
from topwork.zoo import Backbone
from topwork.zoo.cuts import chain
from topwork.zoo.weights import fingerprint

BATCH = 4
"""Of the passes here: 24 pictures are then six batches, enough to be interrupted between two."""

PREPROCESSING = Preprocessing(36, 32, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def tiny(seed: int = 0, preprocessing: Preprocessing = PREPROCESSING, *, classifier: bool = True) -> Backbone:
    """A network of two cuts that passes a picture in a millisecond; another seed gives other weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 10, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5),
        ).eval()  # fmt: skip
    return Backbone(
        "tiny", "random", fingerprint(network.state_dict(), "tiny"), preprocessing,
        5 if classifier else 0, chain(network, preprocessing.crop_px),
    )  # fmt: skip


TINY = tiny()


def measure(backbone: Backbone, *args: Any, **options: Any) -> Features:
    """The features of one backbone alone."""
    (found,) = features.measure([backbone], *args, **options)
    return found


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCH", BATCH)
    monkeypatch.setattr(features, "BATCH_GPU", BATCH)


def examples(root: Path) -> tuple[Example, ...]:
    return data.read(root).examples


def by_hand(backbone: Backbone, root: Path, given: Sequence[Example]) -> list[NDArray[np.float32]]:
    """Pooled features at every cut, then the old task's output, by the network as it is: nothing fused or kept."""
    p = backbone.preprocessing
    pixels = np.stack([images.load(root / e.path, p) for e in given]) / 255.0
    x = torch.from_numpy((pixels - p.mean) / p.std).float().permute(0, 3, 1, 2).contiguous()
    seen = []
    with torch.inference_mode():
        for cut in backbone.cuts:
            maps = backbone.prefix(cut.name).eval()(x)
            seen.append(np.concatenate([maps.mean((2, 3)).numpy(), maps.amax((2, 3)).numpy()], axis=1))
        if backbone.source_classes:
            seen.append(backbone.suffix(backbone.cuts[-1].name).eval()(maps).numpy())
    return seen


def seen_at_every_cut(found: Features) -> list[NDArray[np.float32]]:
    logits = [] if found.logits is None else [found.logits]
    return [*(found.at(k) for k in range(len(found.cuts))), *logits]


def same(got: Features, expected: Sequence[NDArray[np.float32]]) -> None:
    """Equal to the rounding of float16 (2^-11 of each value), and of float32 in a fused network, on top."""
    columns = seen_at_every_cut(got)
    assert [c.shape for c in columns] == [e.shape for e in expected]
    for column, wanted in zip(columns, expected, strict=True):
        assert column.dtype == np.float32
        np.testing.assert_allclose(column, wanted, rtol=1e-3, atol=1e-3 * max(np.abs(wanted).max(initial=0), 1e-9))


def identical(one: Features, other: Features) -> None:
    for a, b in zip(seen_at_every_cut(one), seen_at_every_cut(other), strict=True):
        np.testing.assert_array_equal(a, b)


def shard_folders(cache: Path) -> list[Path]:
    return sorted((cache / "features").glob("*/shard-*"))


class Never:
    """In the engine's place: whoever builds one has not found what was kept."""

    def __init__(self, *_: Any) -> None:
        pytest.fail("an engine was built")


class Stop(Exception):
    """The pass is interrupted."""


class Interrupting(Log):
    """A watch that does something after so many batches."""

    def __init__(self, batches: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.batches, self.act = batches, act

    def advance(self, steps: int = 1) -> None:
        super().advance(steps)
        self.batches -= 1
        if self.batches == 0:
            self.act()


def stop() -> None:
    raise Stop


# What is seen


@dataclass(frozen=True)
class Measured:
    root: Path
    examples: tuple[Example, ...]
    cache: Path
    found: Features


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, lite: Backbone) -> Measured:
    """The embedded backbone over three classes of four pictures."""
    home = tmp_path_factory.mktemp("real")
    root = write_photos(home / "photos", per_class=4)
    given = examples(root)
    return Measured(root, given, home / "cache", measure(lite, root, given, cache=home / "cache"))


@pytest.mark.slow
def test_features_are_the_plain_networks_own(real: Measured, lite: Backbone) -> None:
    """Average and maximum over the map of each cut, and the old task's output."""
    assert real.found.cuts == tuple(c.name for c in lite.cuts)
    assert real.found.widths == tuple(2 * c.channels for c in lite.cuts)
    assert real.found.passed == len(real.examples)
    assert real.found.faults == ()
    same(real.found, by_hand(lite, real.root, real.examples))


@pytest.mark.slow
def test_the_embedded_backbone_passes_no_image_twice(
    real: Measured, lite: Backbone, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr(features, "Engine", Never)
    again = measure(lite, real.root, real.examples, cache=real.cache, watch=log)
    assert again.passed == 0
    assert log.stages == []
    identical(again, real.found)


@pytest.mark.slow
def test_the_embedded_backbone_at_another_size_or_with_other_weights_is_another(
    real: Measured, lite: Backbone, tmp_path: Path
) -> None:
    """The keys differ, so nothing of it is found. (That a pass follows is tested on the tiny network.)"""
    other_size = zoo.load(size_px=SIZE_PX + 32)
    tensors = {k: v.clone(memory_format=torch.contiguous_format) for k, v in zoo.find(zoo.EMBEDDED).fetch().items()}
    first = next(k for k, v in tensors.items() if v.dim() == 4)
    tensors[first][0, 0, 0, 0] += 1e-3
    save_file(tensors, tmp_path / "other.safetensors")
    other_weights = zoo.load(weights=tmp_path / "other.safetensors", size_px=SIZE_PX)
    keys = [features.key(b) for b in (lite, other_size, other_weights, zoo.load(size_px=SIZE_PX))]
    assert len(set(keys)) == 3
    assert keys[0] == keys[3]  # a fresh load, in another process say, finds it again


def test_rows_follow_the_examples(photos: Path, tmp_path: Path) -> None:
    """In their order, and as often as they come."""
    given = examples(photos)
    order = np.random.default_rng(0).integers(0, len(given), 40)
    assert len(set(order)) < 40
    mixed = [given[i] for i in order]
    found = measure(TINY, photos, mixed, cache=tmp_path)
    assert found.passed == len(set(order))
    same(found, by_hand(TINY, photos, mixed))
    found = measure(TINY, photos, mixed[::-1], cache=tmp_path)
    assert found.passed == 0
    same(found, by_hand(TINY, photos, mixed[::-1]))


def test_copies_pass_once(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "bark" / "000.png", photos / "bark" / "zzz.png")
    given = examples(photos)
    found = measure(TINY, photos, given, cache=tmp_path)
    assert len(given) == 25
    assert found.passed == 24
    same(found, by_hand(TINY, photos, given))


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, 11), max_size=20), k=st.integers(0, 1))
def test_some_rows_are_those_of_all(rows: list[int], k: int, few: Features) -> None:
    wanted = np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(few.at(k, wanted), few.at(k)[wanted])


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, 11), max_size=20), some=st.slices(20), k=st.integers(0, 1))
def test_what_is_read_in_pieces_is_the_same(rows: list[int], some: slice, k: int, few: Features) -> None:
    wanted = np.array(rows, dtype=np.int64)
    table, whole = few.read(k, wanted), few.at(k, wanted)
    assert table.shape == whole.shape and len(table) == len(whole)
    np.testing.assert_array_equal(table[some], whole[some])


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Features:
    """Twelve pictures, their rows spread over two shards."""
    home = tmp_path_factory.mktemp("few")
    root = write_photos(home / "photos", per_class=4)
    given = examples(root)
    measure(TINY, root, given[1::2], cache=home / "cache")
    found = measure(TINY, root, given, cache=home / "cache")
    assert len(shard_folders(home / "cache")) == 2
    assert found.passed == 6
    return found


def test_without_a_classifier_there_are_no_logits(photos: Path, tmp_path: Path) -> None:
    backbone = tiny(classifier=False)
    found = measure(backbone, photos, examples(photos), cache=tmp_path)
    assert found.logits is None
    assert found.cost_shares[-1] == 1  # nothing runs after the last cut
    same(found, by_hand(backbone, photos, examples(photos)))


# What it costs


def test_costs_rise_from_cut_to_cut(few: Features) -> None:
    """Shares of the whole backbone's seconds; the classifier is left for the last."""
    assert few.seconds.shape == (1 + 3,)  # decoding, two cuts, the classifier
    assert (few.seconds > 0).all()
    assert 0 < few.cost_shares[0] < few.cost_shares[1] < 1
    np.testing.assert_allclose(few.cost_shares, np.cumsum(few.seconds[1:])[:2] / few.seconds[1:].sum())


def test_one_fe_is_decoding_and_a_pass_over_the_images(few: Features) -> None:
    assert few.fe_seconds == pytest.approx(12 * few.seconds.sum())


def test_costs_of_what_was_found_are_those_measured_when_it_passed(photos: Path, tmp_path: Path) -> None:
    first = measure(TINY, photos, examples(photos), cache=tmp_path)
    again = measure(TINY, photos, examples(photos), cache=tmp_path)
    np.testing.assert_array_equal(again.seconds, first.seconds)
    assert again.cost_shares == first.cost_shares
    assert again.fe_seconds == first.fe_seconds


def test_costs_over_several_passes_weigh_by_their_images(photos: Path, tmp_path: Path) -> None:
    given = examples(photos)
    one = measure(TINY, photos, given[:4], cache=tmp_path / "one").seconds
    shutil.copytree(tmp_path / "one", tmp_path / "both")
    other = measure(TINY, photos, given[4:], cache=tmp_path / "other").seconds
    (source,), (target,) = shard_folders(tmp_path / "other"), (tmp_path / "both" / "features").iterdir()
    shutil.copytree(source, target / source.name)
    both = measure(TINY, photos, given, cache=tmp_path / "both")
    assert both.passed == 0
    np.testing.assert_allclose(both.seconds, (4 * one + 20 * other) / 24)


def test_bytes_per_image_are_those_on_the_disk(photos: Path, tmp_path: Path) -> None:
    found = measure(TINY, photos, examples(photos), cache=tmp_path)
    (shard,) = shard_folders(tmp_path)
    kept = sum(f.stat().st_size for f in shard.iterdir() if f.suffix == ".f16" or f.name == "index")
    assert found.bytes_per_image * 24 == kept


# What is found again


def test_no_image_passes_twice(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    first = measure(TINY, photos, examples(photos), cache=tmp_path, watch=log)
    assert first.passed == 24
    assert log.stages == [("pass", 24)]
    assert log.steps == 24
    monkeypatch.setattr(features, "Engine", Never)
    monkeypatch.setattr(images, "load", lambda *_: pytest.fail("decoded"))
    for part in (examples(photos), examples(photos)[5:9], ()):
        again = measure(tiny(), photos, part, cache=tmp_path, watch=log)
        assert again.passed == 0
        same(again, [c[:0] if not part else c for c in by_index(first, examples(photos), part)])
    assert log.stages == [("pass", 24)]


def by_index(found: Features, all_: Sequence[Example], part: Sequence[Example]) -> list[NDArray[np.float32]]:
    rows = [all_.index(e) for e in part]
    return [column[rows] for column in seen_at_every_cut(found)]


def test_the_same_content_is_found_under_any_name(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder, other names and other classes: only the content counts."""
    first = measure(TINY, photos, examples(photos), cache=tmp_path / "cache")
    other = tmp_path / "other"
    for i, e in enumerate(examples(photos)):
        target = other / f"class {i % 2}" / f"{99 - i}.dat"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / e.path, target)
    shutil.rmtree(photos)
    monkeypatch.setattr(features, "Engine", Never)
    renamed = examples(other)
    again = measure(TINY, other, renamed, cache=tmp_path / "cache")
    assert again.passed == 0
    same(again, by_hand(TINY, other, renamed))
    assert sorted(map(tuple, again.at(1))) == sorted(map(tuple, first.at(1)))


def test_new_and_changed_images_pass_and_no_others(photos: Path, tmp_path: Path) -> None:
    measure(TINY, photos, examples(photos), cache=tmp_path)
    Image.new("RGB", (40, 40), "red").save(photos / "sand" / "new.png")
    (photos / "bark" / "000.png").write_bytes((photos / "bark" / "000.png").read_bytes() + b"a single byte")
    found = measure(TINY, photos, examples(photos), cache=tmp_path)
    assert found.passed == 2
    same(found, by_hand(TINY, photos, examples(photos)))


@pytest.mark.parametrize(
    "other",
    [
        tiny(1),
        tiny(preprocessing=replace(PREPROCESSING, crop_px=36, resize_px=40)),
        tiny(preprocessing=replace(PREPROCESSING, resize_px=40)),
        tiny(preprocessing=replace(PREPROCESSING, interpolation="nearest")),
        tiny(preprocessing=replace(PREPROCESSING, mean=(0.5, 0.4, 0.4))),
        tiny(preprocessing=replace(PREPROCESSING, std=(0.2, 0.3, 0.3))),
        tiny(preprocessing=replace(PREPROCESSING, squash=True)),
    ],
    ids=["weights", "size", "margin", "interpolation", "mean", "std", "squash"],
)
def test_another_network_or_preprocessing_passes_again(photos: Path, tmp_path: Path, other: Backbone) -> None:
    """And finds nothing of the first one's, nor disturbs it."""
    for e in examples(photos):  # not square, so that squashing matters
        Image.open(photos / e.path).resize((60, 48)).save(photos / e.path)
    given = examples(photos)
    first = measure(TINY, photos, given, cache=tmp_path)
    found = measure(other, photos, given, cache=tmp_path)
    assert found.passed == 24
    same(found, by_hand(other, photos, given))
    assert not np.allclose(found.at(1), first.at(1), rtol=1e-3)
    again = measure(TINY, photos, given, cache=tmp_path)
    assert again.passed == 0
    identical(again, first)


# What is not needed


def test_a_pass_that_stops_at_a_cut_gives_the_very_same_there(photos: Path, tmp_path: Path) -> None:
    given = examples(photos)
    whole = measure(TINY, photos, given, cache=tmp_path / "whole")
    for depth in (1, 2):
        short = measure(TINY, photos, given, depths=[depth], cache=tmp_path / str(depth))
        assert short.cuts == whole.cuts[:depth]
        assert short.widths == whole.widths[:depth]
        assert short.logits is None
        assert short.passed == 24
        for k in range(depth):
            np.testing.assert_array_equal(short.at(k), whole.at(k))
        (shard,) = shard_folders(tmp_path / str(depth))
        assert len(list(shard.glob("*.f16"))) == depth
        kept = sum(f.stat().st_size for f in shard.iterdir() if f.suffix == ".f16" or f.name == "index")
        assert short.bytes_per_image * 24 == kept


def test_what_lies_behind_the_cut_is_not_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(features.Engine):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            for segment in self.segments[1:]:
                segment.forward = lambda *_: pytest.fail("run")  # type: ignore[assignment]

    monkeypatch.setattr(features, "Engine", Watched)
    assert measure(TINY, photos, examples(photos), depths=[1], cache=tmp_path).passed == 24


def test_images_that_are_held_too_shallow_pass_again_and_only_they(photos: Path, tmp_path: Path) -> None:
    given = examples(photos)
    measure(TINY, photos, given[:5], cache=tmp_path)
    measure(TINY, photos, given[5:12], depths=[1], cache=tmp_path)
    assert [features.unseen(TINY, given, depth=d, cache=tmp_path) for d in (1, 2, None)] == [12, 19, 19]
    short = measure(TINY, photos, given, depths=[1], cache=tmp_path)
    assert short.passed == 12
    deeper = measure(TINY, photos, given, depths=[2], cache=tmp_path)
    assert deeper.passed == 19
    whole = measure(TINY, photos, given, cache=tmp_path)
    assert whole.passed == 19  # the old task's logits were not among the cuts
    same(whole, by_hand(TINY, photos, given))
    for depth, found in ((1, short), (2, deeper)):
        again = measure(TINY, photos, given, depths=[depth], cache=tmp_path)
        assert again.passed == 0
        for k in range(depth):
            np.testing.assert_allclose(again.at(k), whole.at(k), rtol=1e-3)
            np.testing.assert_allclose(found.at(k), whole.at(k), rtol=1e-3)


def test_a_row_that_is_held_twice_is_read_where_it_is_deep_enough(photos: Path, tmp_path: Path) -> None:
    """Whichever shard comes first by name."""
    given = examples(photos)
    for turn in range(4):
        cache = tmp_path / str(turn)
        measure(TINY, photos, given, depths=[1], cache=cache)
        found = measure(TINY, photos, given, cache=cache)
        assert found.passed == 24
        same(found, by_hand(TINY, photos, given))


def test_several_backbones_stop_at_cuts_of_their_own(photos: Path, tmp_path: Path) -> None:
    given = examples(photos)
    one, other = features.measure([TINY, tiny(1)], photos, given, depths=[1, None], cache=tmp_path)
    assert (len(one.cuts), len(other.cuts)) == (1, 2)
    same(other, by_hand(tiny(1), photos, given))
    np.testing.assert_array_equal(one.at(0), measure(TINY, photos, given, cache=tmp_path / "alone").at(0))


def test_costs_are_over_the_images_that_each_segment_was_run_for(photos: Path, tmp_path: Path) -> None:
    given = examples(photos)
    first = measure(TINY, photos, given[:4], cache=tmp_path / "whole")
    short = measure(TINY, photos, given[4:], depths=[1], cache=tmp_path / "short")
    (source,), (target,) = shard_folders(tmp_path / "short"), (tmp_path / "whole" / "features").iterdir()
    shutil.copytree(source, target / source.name)
    both = measure(TINY, photos, given, depths=[1], cache=tmp_path / "whole")
    assert both.passed == 0
    np.testing.assert_allclose(both.seconds[:2], (4 * first.seconds[:2] + 20 * short.seconds[:2]) / 24)
    np.testing.assert_array_equal(both.seconds[2:], first.seconds[2:])
    assert both.cost_shares == first.cost_shares[:1]  # of the whole backbone, as the four ran it
    assert both.forward_seconds == first.forward_seconds == pytest.approx(first.seconds[1:].sum())
    assert both.fe_seconds == pytest.approx(24 * both.seconds.sum())
    assert both.pass_seconds == pytest.approx(4 * both.seconds.sum() + 20 * both.seconds[:2].sum())
    assert first.pass_seconds == pytest.approx(first.fe_seconds)


def test_where_no_image_ran_all_of_it_costs_are_told_by_the_multiply_adds(photos: Path, tmp_path: Path) -> None:
    found = measure(TINY, photos, examples(photos), depths=[1], cache=tmp_path)
    work = np.diff([0, *(c.macs for c in TINY.cuts), TINY.chain.macs])
    np.testing.assert_allclose(found.seconds[2:] / found.seconds[1], work[1:] / work[0])
    assert found.cost_shares == pytest.approx((TINY.cuts[0].macs / TINY.chain.macs,))


def test_an_interrupted_short_pass_goes_on_where_it_stopped(photos: Path, tmp_path: Path) -> None:
    given = examples(photos)
    with pytest.raises(Stop):
        measure(TINY, photos, given, depths=[1], cache=tmp_path, watch=Interrupting(2, stop))
    found = measure(TINY, photos, given, depths=[1], cache=tmp_path)
    assert found.passed == 24 - 2 * BATCH
    np.testing.assert_allclose(found.at(0), by_hand(TINY, photos, given)[0], rtol=1e-3, atol=1e-3)


# What is interrupted


@pytest.mark.usefixtures("one_thread")  # puts the number of threads back
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("batches", [1, 3, 6])
def test_an_interrupted_pass_goes_on_where_it_stopped(
    photos: Path, tmp_path: Path, batches: int, error: type[BaseException], lanes: int, log: Log
) -> None:
    """With several lanes batches get smaller, by what is left to do: what goes on has the same ones."""
    torch.set_num_threads(lanes)
    given = examples(photos)
    whole = measure(TINY, photos, given, cache=tmp_path / "whole")

    def interrupt() -> None:
        raise error

    with pytest.raises(error):
        measure(TINY, photos, given, cache=tmp_path / "cache", watch=Interrupting(batches, interrupt))
    found = measure(TINY, photos, given, cache=tmp_path / "cache", watch=log)
    assert found.passed == 24 - sum(list(shrinking(24, BATCH, lanes))[:batches])
    assert lanes > 1 or found.passed == 24 - BATCH * batches
    assert log.steps == found.passed
    identical(found, whole)  # the batches are the same


def test_an_error_in_the_network_keeps_what_was_seen_before(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, calls = examples(photos), []

    class Failing(features.Engine):
        def submit(self, batch: NDArray[np.uint8], *args: Any, **options: Any) -> Any:
            calls.append(len(batch))
            if len(calls) == 3:
                raise MemoryError
            return super().submit(batch, *args, **options)

    monkeypatch.setattr(features, "Engine", Failing)
    with pytest.raises(MemoryError):
        measure(TINY, photos, given, cache=tmp_path)
    monkeypatch.undo()
    found = measure(TINY, photos, given, cache=tmp_path)
    assert found.passed == 24 - 2 * BATCH
    same(found, by_hand(TINY, photos, given))


PASS = """
import os, signal, sys
from pathlib import Path
from topwork import data, features, zoo

root, cache, size_px, batch, kill_after = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])

class Killing:
    batches = 0
    def begin(self, stage, total): pass
    def end(self): pass
    def show(self, what, fact): pass
    def advance(self, steps=1):
        self.batches += 1
        if self.batches == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

features.BATCH = features.BATCH_GPU = batch
examples = data.read(root).examples
print(features.measure([zoo.load(size_px=size_px)], root, examples, cache=cache, watch=Killing())[0].passed)
"""
"""A pass of the embedded backbone in a process of its own, killed after so many batches (0: never)."""


def start(root: Path, cache: Path, *, kill_after: int = 0) -> subprocess.Popen[str]:
    arguments = [str(root), str(cache), str(SIZE_PX), str(BATCH), str(kill_after)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads of two processes would wait for each other
    return subprocess.Popen([sys.executable, "-c", PASS, *arguments], stdout=subprocess.PIPE, text=True, env=one_thread)


@pytest.mark.slow
def test_a_killed_process_loses_nothing_that_it_had_seen(real: Measured, lite: Backbone, tmp_path: Path) -> None:
    """kill -9 leaves no time to close a file."""
    process = start(real.root, tmp_path, kill_after=2)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (shard,) = shard_folders(tmp_path)
    assert not (shard / "complete").exists()
    found = measure(lite, real.root, real.examples, cache=tmp_path)
    assert found.passed == len(real.examples) - 2 * BATCH
    same(found, seen_at_every_cut(real.found))


@pytest.mark.slow
def test_two_processes_may_write_at_once(real: Measured, lite: Backbone, tmp_path: Path) -> None:
    """Each writes a shard of its own; together they have seen everything, and nothing is mixed up."""
    passed = []
    for process in [start(real.root, tmp_path), start(real.root, tmp_path)]:
        out, _ = process.communicate()
        assert process.returncode == 0
        passed.append(int(out))
    assert sum(passed) >= len(real.examples)
    found = measure(lite, real.root, real.examples, cache=tmp_path)
    assert found.passed == 0
    same(found, seen_at_every_cut(real.found))


def test_a_pass_inside_a_pass(photos: Path, tmp_path: Path) -> None:
    """Another pass begins when this one has seen two batches: it finds these, and sees the others itself."""
    given, inner = examples(photos), []
    act = lambda: inner.append(measure(TINY, photos, given, cache=tmp_path))  # noqa: E731
    outer = measure(TINY, photos, given, cache=tmp_path, watch=Interrupting(2, act))
    assert inner[0].passed == 24 - 2 * BATCH
    assert outer.passed == 24
    for found in (outer, *inner, measure(TINY, photos, given, cache=tmp_path)):
        same(found, by_hand(TINY, photos, given))


# What is damaged on the disk


def cut_off(name: str, left: int) -> Callable[[Path], None]:
    return lambda shard: os.truncate(shard / name, left)


def flip(name: str, at: int) -> Callable[[Path], None]:
    def act(shard: Path) -> None:
        content = bytearray((shard / name).read_bytes())
        content[at] ^= 0x10
        (shard / name).write_bytes(content)

    return act


def rewrite(name: str, content: bytes | None) -> Callable[[Path], None]:
    return lambda shard: (shard / name).unlink() if content is None else void((shard / name).write_bytes(content))


def void(_: object) -> None:
    pass


ROW_1 = 2 * 20  # bytes per row at cut 1: ten channels, average and maximum
SHORTENED = {
    "index": (cut_off("index", 20 * 5 + 7), 5),
    "first cut": (cut_off("000.f16", 24 * 3 + 1), 3),
    "last cut": (cut_off("001.f16", ROW_1 * 6 - 1), 5),
    "logits": (cut_off("002.f16", 0), 0),
    "no index": (rewrite("index", None), 0),
    "no cut": (rewrite("001.f16", None), 0),
    "no timing": (rewrite("timing.json", None), 0),
    "timing empty": (rewrite("timing.json", b""), 0),
    "timing cut off": (rewrite("timing.json", b'{"rows":8,"seco'), 0),
    "timing zeroed": (rewrite("timing.json", bytes(60)), 0),
    "timing without its fields": (rewrite("timing.json", b"{}"), 0),
}
FLIPPED = {
    "a row's value": (flip("000.f16", 24 * 6 + 3), 6),
    "a row's last byte": (flip("001.f16", ROW_1 * 3 - 1), 2),
    "a row's logits": (flip("002.f16", 0), 0),
    "a row's name": (flip("index", 20 * 4 + 2), 7),  # nobody asks for the wrong name; the others stay
    "a row's check": (flip("index", 20 * 4 + 19), 4),
}
"""What is done to a shard of eight rows, and how many rows are still good before the damage."""


def cases(*, complete: bool) -> list[Any]:
    """Of a completed shard the rows' checks are not read any more: that would read all of it at every start."""
    damage = SHORTENED | ({"a row's name": FLIPPED["a row's name"]} if complete else FLIPPED)
    return [pytest.param(act, good, id=name) for name, (act, good) in damage.items()]


def damaged(photos: Path, cache: Path, act: Callable[[Path], None], *, complete: bool) -> Features:
    """A pass over all pictures after the shard of the first eight was damaged."""
    given = examples(photos)
    if complete:
        measure(TINY, photos, given[:8], cache=cache)
    else:
        with pytest.raises(Stop):
            measure(TINY, photos, given, cache=cache, watch=Interrupting(2, stop))
    (shard,) = shard_folders(cache)
    assert (shard / "complete").exists() == complete
    act(shard)
    return measure(TINY, photos, given, cache=cache)


@pytest.mark.parametrize(("act", "good"), cases(complete=False))
def test_an_interrupted_shard_is_believed_up_to_its_first_damage(
    photos: Path, tmp_path: Path, act: Callable[[Path], None], good: int
) -> None:
    found = damaged(photos, tmp_path, act, complete=False)
    assert found.passed == 24 - good
    same(found, by_hand(TINY, photos, examples(photos)))


@pytest.mark.parametrize(("act", "good"), cases(complete=True))
def test_a_completed_shard_that_was_damaged_later_is_not_believed(
    photos: Path, tmp_path: Path, act: Callable[[Path], None], good: int
) -> None:
    """How many rows are still taken is its own affair; wrong ones never are."""
    found = damaged(photos, tmp_path, act, complete=True)
    assert 16 < found.passed <= 24 - good
    same(found, by_hand(TINY, photos, examples(photos)))


def test_strange_files_in_the_cache_are_passed_over(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "features" / features.key(TINY)
    (folder / "shard-empty").mkdir(parents=True)
    (folder / "shard-file").write_text("no folder")
    (folder / "notes.txt").write_text("not ours")
    assert measure(TINY, photos, examples(photos), cache=tmp_path).passed == 24
    assert measure(TINY, photos, examples(photos), cache=tmp_path).passed == 0
    assert (folder / "notes.txt").exists()


WIDTHS = (3, 1, 2)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    lengths=st.lists(st.integers(0, 100), min_size=4, max_size=4),
    wrong=st.none() | st.tuples(st.integers(0, 3), st.integers(0, 400)),
)
def test_of_any_interrupted_shard_the_first_rows_are_right(
    sizes: list[int], lengths: list[int], wrong: tuple[int, int] | None
) -> None:
    """Each of its files may end anywhere (percent of its length), and a byte of one may be wrong."""
    n, rng = sum(sizes), np.random.default_rng(len(sizes))
    rows = [rng.normal(size=(n, w)).astype(np.float16) for w in WIDTHS]
    digests = [rng.bytes(16) for _ in range(n)]
    with TemporaryDirectory() as home:
        with pytest.raises(Stop), shards.Writer(Path(home), WIDTHS) as writer:
            row = 0
            for size in sizes:
                part = slice(row, row + size)
                writer.append(digests[part], [r[part] for r in rows], 0.1, np.ones(4))
                row += size
            raise Stop
        names = ["000.f16", "001.f16", "002.f16", "index"]
        for name, length in zip(names, lengths, strict=True):
            os.truncate(writer.folder / name, (writer.folder / name).stat().st_size * length // 100)
        if wrong is not None and (size_ := (writer.folder / names[wrong[0]]).stat().st_size):
            flip(names[wrong[0]], wrong[1] % size_)(writer.folder)
        found = shards.opened(Path(home), WIDTHS)
        taken = len(found[0].digests) if found else 0
        whole = min(n * length // 100 for length in lengths)
        assert taken <= whole if wrong is not None else taken == whole
        if taken:
            # A wrong byte in a row's name makes it one that nobody asks for; every other row is right.
            renamed = sum(a != b for a, b in zip(found[0].digests, digests, strict=False))
            assert renamed <= (wrong is not None and names[wrong[0]] == "index")
            for k, column in enumerate(rows):
                np.testing.assert_array_equal(np.array(found[0].column(k)), column[:taken])


def test_a_cache_that_cannot_be_written_names_the_option(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TopworkError, match=r"file.*(?s:.*)--cache"):
        measure(TINY, photos, examples(photos), cache=tmp_path / "file")


# What cannot be decoded after all


def test_files_that_break_only_on_decoding_become_faults_and_shift_no_row(
    photos: Path, tmp_path: Path, damaged_png: bytes, log: Log
) -> None:
    """At the start, inside a batch, a whole batch, and at the end; the dataset without them has the same rows."""
    for n, path in enumerate(["bark/000.png", "bark/005.jpg", *(f"sand/{i:03d}.x" for i in range(8, 14)), "weave/z"]):
        (photos / path).write_bytes(damaged_png + bytes([n]))  # each its own content
    dataset = data.read(photos)
    assert len(dataset.examples) == 31
    found = measure(TINY, photos, dataset.examples, cache=tmp_path, watch=log)
    broken = [e.path for e in dataset.examples if e.path not in {p.path for p in kept_of(dataset, found)}]
    assert len(broken) == 9
    assert [f.path for f in found.faults] == broken
    assert {f.kind for f in found.faults} == {"truncated"}
    assert all(f.detail for f in found.faults)
    assert found.passed == 22
    assert found.fe_seconds == pytest.approx(22 * found.seconds.sum())
    assert log.steps == 31
    same(found, by_hand(TINY, photos, kept_of(dataset, found)))
    again = measure(TINY, photos, dataset.examples, cache=tmp_path)
    assert again.faults == found.faults
    assert again.passed == 0
    identical(again, found)


def kept_of(dataset: data.Dataset, found: Features) -> tuple[Example, ...]:
    return data.without(dataset, found.faults).examples


def test_every_copy_of_a_broken_file_is_listed_under_its_own_path(
    photos: Path, tmp_path: Path, damaged_png: bytes
) -> None:
    for path in ("bark/z.png", "sand/000.png"):
        (photos / path).write_bytes(damaged_png)
    dataset = data.read(photos)
    found = measure(TINY, photos, dataset.examples, cache=tmp_path)
    assert [f.path for f in found.faults] == ["bark/z.png", "sand/000.png"]
    same(found, by_hand(TINY, photos, kept_of(dataset, found)))


def test_a_file_that_changes_after_it_was_looked_at_is_a_fault(photos: Path, tmp_path: Path) -> None:
    """Its new content must not be kept under the name of the old one."""
    dataset = data.read(photos)
    shutil.copy(photos / "sand" / "000.png", photos / "bark" / "000.png")
    (photos / "weave" / "007.jpg").unlink()
    found = measure(TINY, photos, dataset.examples, cache=tmp_path)
    assert [(f.path, f.kind) for f in found.faults] == [("bark/000.png", "changed"), ("weave/007.jpg", "unreadable")]
    same(found, by_hand(TINY, photos, kept_of(dataset, found)))
    changed = data.read(photos)
    same(measure(TINY, photos, changed.examples, cache=tmp_path), by_hand(TINY, photos, changed.examples))


def test_where_nothing_can_be_decoded_all_are_faults(tmp_path: Path, damaged_png: bytes) -> None:
    for n, name in enumerate(["a/1", "a/2", "b/1", "b/2"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged_png + bytes([n]))
    dataset = data.read(tmp_path / "photos")
    found = measure(TINY, tmp_path / "photos", dataset.examples, cache=tmp_path / "cache")
    assert (found.passed, len(found.faults)) == (0, 4)
    assert [c.shape for c in seen_at_every_cut(found)] == [(0, 12), (0, 20), (0, 5)]
    with pytest.raises(DataError, match="a/1: truncated"):
        data.without(dataset, found.faults)


def test_a_pass_that_sees_nothing_leaves_nothing_behind(photos: Path, tmp_path: Path, damaged_png: bytes) -> None:
    """A broken file is tried again in every run: the cache must not grow by it."""
    (photos / "bark" / "z.png").write_bytes(damaged_png)
    for _ in range(3):
        measure(TINY, photos, examples(photos), cache=tmp_path)
    assert len(shard_folders(tmp_path)) == 1


# What is read


def test_one_cut_is_read_without_the_others(few: Features, tmp_path: Path) -> None:
    folders = [shutil.copytree(s.folder, tmp_path / s.folder.name) for s in few._shards]
    moved = replace(few, _shards=tuple(replace(s, folder=f) for s, f in zip(few._shards, folders, strict=True)))
    for folder in folders:
        (folder / "000.f16").unlink()
        (folder / "index").unlink()
    np.testing.assert_array_equal(moved.at(1), few.at(1))
    with pytest.raises(FileNotFoundError):
        moved.at(0)


def test_a_few_rows_of_a_large_shard_take_little_memory(few: Features, tmp_path: Path) -> None:
    """A gigabyte of float16 on the disk (a file with holes); 100 rows of it are 1 MB as float32."""
    n, width = 200_000, 2560
    with (tmp_path / "000.f16").open("wb") as file:
        file.truncate(2 * n * width)
        file.seek(2 * width * 150_000)
        file.write(np.ones(width, np.float16).tobytes())
    shard = shards.Shard(tmp_path, (b"",) * n, np.ones(4), (width,))
    large = replace(
        few, widths=(width,), _shards=(shard,), _places=np.stack([np.zeros(n), np.arange(n)], 1).astype(int)
    )
    rows = np.arange(149_950, 150_050)
    tracemalloc.start()
    found = large.at(0, rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6
    np.testing.assert_array_equal(found.sum(axis=1), np.where(rows == 150_000, width, 0))


def test_a_probe_that_reads_in_pieces_holds_no_cut_in_memory(
    few: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 rows of 512 values are 41 MB as float32."""
    n, width = 20_000, 512
    rng = np.random.default_rng(0)
    rng.standard_normal((n, width), dtype=np.float32).astype(np.float16).tofile(tmp_path / "000.f16")
    shard = shards.Shard(tmp_path, (b"",) * n, np.ones(4), (width,))
    many = replace(few, widths=(width,), _shards=(shard,), _places=np.stack([np.zeros(n), np.arange(n)], 1).astype(int))
    monkeypatch.setattr(probe, "CHUNK", 512)
    x = many.read(0)
    tracemalloc.start()
    standard = probe.Standardised.of(x)
    factors = probe.factor(x, standard)
    found = probe.weights(x, rng.integers(0, 3, n), 3, 1.0, standard, factors)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 25e6
    assert np.isfinite(found[0]).all()


# Several backbones in one pass

OTHER_SIZE = Preprocessing(54, 48, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
OTHER_NUMBERS = replace(PREPROCESSING, mean=(0.1, 0.2, 0.3))
SQUASHED = replace(PREPROCESSING, squash=True)


def shelf() -> list[Backbone]:
    """Weights, input size, normalisation and proportions differ in turn; one has no classifier."""
    return [
        tiny(0), tiny(1, classifier=False), tiny(2, OTHER_SIZE), tiny(3, OTHER_NUMBERS), tiny(4, SQUASHED),
    ]  # fmt: skip


def large_photos(folder: Path) -> Path:
    """Two classes of four JPEGs, so large that they are decoded at a reduced scale: 1/8 for 36 px, 1/4 for 54 px."""
    rng = np.random.default_rng(5)
    for label in ("one", "two"):
        (folder / label).mkdir(parents=True)
        for i in range(4):
            coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
            coarse.resize((800, 600)).save(folder / label / f"{i}.jpg", quality=90)
    return folder


@pytest.mark.parametrize("kind", ["small", "large"])
def test_a_joint_pass_sees_what_each_backbone_sees_alone_bit_for_bit(kind: str, photos: Path, tmp_path: Path) -> None:
    root = photos if kind == "small" else large_photos(tmp_path / "large")
    given = examples(root)
    together = features.measure(shelf(), root, given, cache=tmp_path / "together")
    for i, (backbone, found) in enumerate(zip(shelf(), together, strict=True)):
        alone = measure(backbone, root, given, cache=tmp_path / f"alone{i}")
        identical(found, alone)
        assert found.passed == alone.passed == len(given)
        same(found, by_hand(backbone, root, given))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often files were read and decoded."""
    counted = {"read_bytes": 0, "decode": 0}
    for name in counted:
        real = getattr(images, name)

        def count(*given: Any, name: str = name, real: Callable[..., Any] = real) -> Any:
            counted[name] += 1
            return real(*given)

        monkeypatch.setattr(images, name, count)
    return counted


def test_a_file_is_read_once_and_decoded_once_for_all(photos: Path, tmp_path: Path, calls: dict[str, int]) -> None:
    """Small files have one scale whatever the input size."""
    given = examples(photos)
    calls.update(read_bytes=0)
    features.measure(shelf(), photos, given, cache=tmp_path)
    assert calls == {"read_bytes": 24, "decode": 24}


def test_a_large_jpeg_is_decoded_once_per_scale(tmp_path: Path, calls: dict[str, int]) -> None:
    """600 px on the short side keep twice 36 at 1/8 (75 px) and twice 54 at 1/4 (150 px): two scales for five."""
    root = large_photos(tmp_path / "large")
    given = examples(root)
    sizes = {images.decoded_size((root / given[0].path).read_bytes(), b.preprocessing) for b in shelf()}
    assert sizes == {(100, 75), (200, 150)}
    calls.update(read_bytes=0)
    features.measure(shelf(), root, given, cache=tmp_path / "cache")
    assert calls == {"read_bytes": 8, "decode": 16}


def test_the_decoded_size_is_the_decoded_images(tmp_path: Path, photos: Path) -> None:
    root = large_photos(tmp_path / "large")
    for path in [*root.rglob("*.jpg"), *photos.rglob("*.*g")]:
        for p in (PREPROCESSING, OTHER_SIZE, SQUASHED):
            assert images.decoded_size(path.read_bytes(), p) == images.decode(path, p).size


def test_each_backbone_passes_only_what_it_misses(
    photos: Path, tmp_path: Path, log: Log, calls: dict[str, int]
) -> None:
    given, (first, second, third) = examples(photos), shelf()[:3]
    measure(first, photos, given, cache=tmp_path)
    measure(second, photos, given[:10], cache=tmp_path)
    measure(third, photos, given[4:6], cache=tmp_path)
    calls.update(read_bytes=0, decode=0)
    found = features.measure([first, second, third], photos, given, cache=tmp_path, watch=log)
    assert [f.passed for f in found] == [0, 14, 22]
    assert log.stages == [("pass", 36)]
    assert log.steps == 36
    assert calls["read_bytes"] == 22  # an image that all have seen is not even read
    for backbone, each in zip([first, second, third], found, strict=True):
        same(each, by_hand(backbone, photos, given))
    assert [features.unseen(b, given, cache=tmp_path) for b in (first, second, third, tiny(9))] == [0, 0, 0, 24]


def test_a_joint_pass_that_was_interrupted_goes_on_where_it_stopped(photos: Path, tmp_path: Path) -> None:
    """Ended between the second batch of the first backbone and that of the others."""
    given, backbones = examples(photos), shelf()[:3]
    with pytest.raises(Stop):
        features.measure(backbones, photos, given, cache=tmp_path, watch=Interrupting(4, stop))
    missing = [features.unseen(b, given, cache=tmp_path) for b in backbones]
    assert missing == [16, 20, 20]
    log = Log()
    found = features.measure(backbones, photos, given, cache=tmp_path, watch=log)
    assert [f.passed for f in found] == missing
    assert log.stages == [("pass", sum(missing))]
    assert log.steps == sum(missing)
    for backbone, each in zip(backbones, found, strict=True):
        same(each, by_hand(backbone, photos, given))


def test_a_fault_is_a_fault_of_all(photos: Path, tmp_path: Path, damaged_png: bytes, log: Log) -> None:
    (photos / "bark" / "bad.png").write_bytes(damaged_png)
    given, backbones = examples(photos), shelf()
    found = features.measure(backbones, photos, given, cache=tmp_path, watch=log)
    good = [e for e in given if e.path != "bark/bad.png"]
    assert len(good) == len(given) - 1 == 24
    for backbone, each in zip(backbones, found, strict=True):
        assert [f.path for f in each.faults] == ["bark/bad.png"]
        assert each.passed == 24
        same(each, by_hand(backbone, photos, good))
    assert log.stages == [("pass", 125)]
    assert log.steps == 125


def test_what_one_backbone_cannot_frame_none_uses(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strip whose resized form is too large for the larger input alone; seen before by the smaller one."""
    Image.fromarray(np.full((2, 60, 3), 90, np.uint8)).save(photos / "bark" / "strip.png")
    given, (small, large) = examples(photos), (tiny(0), tiny(2, OTHER_SIZE))
    monkeypatch.setattr(images, "MAX_PIXELS", 36 * 1080)
    assert measure(small, photos, given, cache=tmp_path).faults == ()
    found = features.measure([small, large], photos, given, cache=tmp_path)
    for each in found:
        assert [(f.path, f.kind) for f in each.faults] == [("bark/strip.png", "too many pixels")]
        assert each.at(0).shape[0] == 24
    assert [f.passed for f in found] == [0, 24]


def test_seconds_of_a_joint_pass_are_each_backbones_own(photos: Path, tmp_path: Path) -> None:
    """Decoding counts in full for each, as if it had passed alone; the forward passes are its own segments'."""
    small, large = features.measure([tiny(0), tiny(2, OTHER_SIZE)], photos, examples(photos), cache=tmp_path)
    assert small.seconds.shape == large.seconds.shape == (4,)
    assert (small.seconds > 0).all()
    assert (large.seconds > 0).all()
    assert large.fe_seconds == pytest.approx(24 * large.seconds.sum())
