"""The same view of an image is the same pixels, whoever asks and when; what a view may change is bounded."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from topwork import ahead, images
from topwork.errors import ImageError
from topwork.records import Augmentation, Preprocessing
from topwork.views import TRIES, _crop, view

Pixels = NDArray[np.uint8]

PLAIN = Preprocessing(32, 32, "bilinear", (0, 0, 0), (1, 1, 1))
DEFAULT = Augmentation()
STILL = Augmentation(least_area=1, stretch=1, flip=False, colour=0)
"""Changes nothing of a square picture."""


def png(pixels: Pixels) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def noise(height: int = 48, width: int = 40, seed: int = 0) -> bytes:
    return png(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def marked(side: int = 48) -> bytes:
    """Black, with a white left third that every allowed crop still touches."""
    picture = np.zeros((side, side, 3), np.uint8)
    picture[:, : side // 3] = 255
    return png(picture)


def seen(data: bytes, number: int, augmentation: Augmentation = DEFAULT, *, seed: int = 0) -> Pixels:
    return view(data, number, PLAIN, augmentation, digest=images.digest(data), seed=seed)


# ---- the same pixels, whoever asks


def test_view_0_is_what_prediction_sees() -> None:
    for augmentation, seed in ((DEFAULT, 0), (STILL, 3)):
        np.testing.assert_array_equal(seen(noise(), 0, augmentation, seed=seed), images.load(noise(), PLAIN))


def test_a_view_is_the_same_in_any_order_and_in_any_thread() -> None:
    data = noise()
    first = [seen(data, k) for k in range(12)]
    backwards = [seen(data, k) for k in reversed(range(12))][::-1]
    with ThreadPoolExecutor(4) as pool:
        threads = list(pool.map(lambda k: seen(data, k), range(12)))
    np.testing.assert_array_equal(first, backwards)
    np.testing.assert_array_equal(first, threads)


@pytest.mark.slow
def test_a_view_is_the_same_in_another_process() -> None:
    code = """
import sys
from topwork import images
from topwork.records import Augmentation, Preprocessing
from topwork.views import view
data = sys.stdin.buffer.read()
plain = Preprocessing(32, 32, "bilinear", (0, 0, 0), (1, 1, 1))
sys.stdout.buffer.write(view(data, 5, plain, Augmentation(), digest=images.digest(data), seed=7).tobytes())
"""
    run = subprocess.run([sys.executable, "-c", code], input=noise(), capture_output=True, check=True)
    assert run.stdout == seen(noise(), 5, seed=7).tobytes()


def test_no_two_views_are_alike() -> None:
    """Neither of two numbers, nor of two seeds, nor of two contents under one number."""
    data = noise()
    pictures = [seen(data, k) for k in range(20)] + [seen(data, k, seed=1) for k in range(1, 20)]
    assert len({p.tobytes() for p in pictures}) == 39
    assert (view(data, 1, PLAIN, DEFAULT, digest="0" * 32, seed=0) != seen(data, 1)).any()


def test_copies_of_a_picture_have_the_same_views(tmp_path: Path) -> None:
    """The name of the file does not matter, only its content."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(noise())
    one, other = (
        view(tmp_path / name, 3, PLAIN, DEFAULT, digest=images.digest(noise()), seed=0) for name in ("a.png", "b.png")
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_every_view_has_the_networks_size_and_three_channels(interpolation: str, squash: bool, mode: str) -> None:
    preprocessing = replace(PLAIN, interpolation=interpolation, squash=squash, crop_px=24)
    grey = np.random.default_rng(0).integers(0, 256, (40, 60))
    buffer = BytesIO()
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(np.uint8(grey))
    (picture if mode == "I;16" else picture.convert(mode)).save(buffer, "PNG")
    for number in range(4):
        pixels = view(buffer.getvalue(), number, preprocessing, DEFAULT, digest="f" * 32, seed=0)
        assert (pixels.shape, pixels.dtype) == ((24, 24, 3), np.uint8)


def test_views_of_a_grey_picture_are_those_of_the_same_picture_in_colour() -> None:
    """It travels in one channel as far as it may."""
    grey = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    one, three = png(grey), png(np.repeat(grey[..., None], 3, axis=2))
    for number in range(8):
        a, b = (view(data, number, PLAIN, DEFAULT, digest="f" * 32, seed=0) for data in (one, three))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (40, 1), (2, 3), (7, 300)])
def test_the_oddest_pictures_have_views(height: int, width: int) -> None:
    for number in range(6):
        assert seen(noise(height, width), number).shape == (32, 32, 3)


@pytest.mark.parametrize("number", [0, 1])
def test_a_file_that_is_no_picture_is_told(number: int) -> None:
    with pytest.raises(ImageError, match="not an image"):
        seen(b"no picture", number)


# ---- what a view may change


def test_a_view_that_may_change_nothing_is_the_picture() -> None:
    """A square one; others are cut to one of the network's shape."""
    square = noise(48, 48)
    for number in range(1, 9):
        picture = Image.open(BytesIO(square)).resize((32, 32), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(seen(square, number, STILL), np.asarray(picture))


def is_mirrored(pixels: Pixels) -> bool:
    """Of `marked`: whether the bright side is on the right."""
    half = pixels.shape[1] // 2
    return bool(pixels[:, half:].mean() > pixels[:, :half].mean())


def test_left_stays_left_where_it_matters() -> None:
    pictures = [seen(marked(), k, replace(DEFAULT, flip=False, least_area=0.6)) for k in range(1, 60)]
    assert not any(is_mirrored(p) for p in pictures)


def test_every_other_view_is_mirrored_and_else_the_same() -> None:
    """The draw of the flip is used or not: all else stays, so that --no-flip changes nothing but flips."""
    on, off = ([seen(marked(), k, replace(DEFAULT, flip=f, least_area=0.6)) for k in range(1, 61)] for f in (1, 0))
    mirrored = [is_mirrored(p) for p in on]
    assert 15 <= sum(mirrored) <= 45  # 60 fair draws: outside once in 10,000
    for a, b, flipped in zip(on, off, mirrored, strict=True):
        np.testing.assert_array_equal(a[:, ::-1] if flipped else a, b)


def test_without_colour_no_colour_is_new() -> None:
    """A picture of one colour keeps it in every view; with colour, brightness stays within its share."""
    flat = png(np.full((40, 40, 3), (100, 150, 50), np.uint8))
    for number in range(1, 20):
        assert (seen(flat, number, replace(DEFAULT, colour=0)) == (100, 150, 50)).all()
    grey = png(np.full((40, 40, 3), 100, np.uint8))  # neither contrast nor saturation moves one grey
    means = [seen(grey, k, replace(DEFAULT, colour=0.3)).mean() for k in range(1, 60)]
    assert min(means) >= 69  # 100 * (1 - 0.3), rounded down once by each of three operations at most
    assert max(means) <= 130
    assert min(means) < 80 and max(means) > 120  # the whole range is used, not its middle


def test_brightness_contrast_and_saturation_each_move() -> None:
    """Each by what only it can do: the brightest goes down, black goes up, a red's purity changes."""
    data, still = marked(), replace(STILL, colour=0.4)
    bright = np.array([seen(data, k, still).max() for k in range(1, 40)])
    dark = np.array([seen(data, k, still).min() for k in range(1, 40)])
    assert bright.min() < 235  # brightness
    assert dark.max() > 10  # contrast: black is lifted towards the mean
    red = png(np.full((40, 40, 3), (200, 100, 100), np.uint8))
    spread = [
        float(np.ptp(seen(red, k, still).astype(float).mean((0, 1)))) / seen(red, k, still).max() for k in range(1, 40)
    ]
    assert max(spread) - min(spread) > 0.1  # saturation: the share of red over grey


# ---- the crop


@given(
    height=st.integers(1, 500), width=st.integers(1, 500), least=st.floats(0.05, 1), stretch=st.floats(1, 3),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_a_crop_lies_within_the_picture(height: int, width: int, least: float, stretch: float, seed: int) -> None:
    top, left, h, w = _crop(height, width, Augmentation(least, stretch), np.random.default_rng(seed))
    assert min(top, left) >= 0
    assert 1 <= h <= height - top
    assert 1 <= w <= width - left


@given(
    side=st.integers(40, 500), proportions=st.floats(0.8, 1.25), least=st.floats(0.1, 0.6), stretch=st.floats(1, 2),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_a_crop_keeps_its_share_and_its_proportions(
    side: int, proportions: float, least: float, stretch: float, seed: int
) -> None:
    """Of a picture that is nearly square: within half a pixel of rounding on each side."""
    height, width = side, round(side * proportions)
    _, _, h, w = _crop(height, width, Augmentation(least, stretch), np.random.default_rng(seed))
    assert (h + 0.5) * (w + 0.5) >= least * height * width
    assert (w + 0.5) / (h - 0.5) >= 1 / stretch
    assert (w - 0.5) / (h + 0.5) <= stretch


def test_crops_are_spread_evenly() -> None:
    """Areas are uniform between the bounds, places reach every edge, tall and wide are as frequent."""
    rng, augmentation = np.random.default_rng(0), Augmentation(0.3, 4 / 3)
    crops = np.array([_crop(200, 200, augmentation, rng) for _ in range(2000)])
    top, left, h, w = crops.T
    area = h * w / 200**2
    # Large and stretched ones do not fit and are drawn again: below 0.75 = 1 / stretch all fit.
    low = area[area < 0.74]
    assert abs(np.mean(low) - (0.3 + 0.74) / 2) < 0.02  # 5 standard errors of a uniform share
    assert top.min() == left.min() == 0
    assert (top + h).max() == (left + w).max() == 200
    assert abs(np.mean(np.log(w / h))) < 0.02  # 5 standard errors at a spread of 0.17


class NoLuck:
    """Draws the largest area and the widest proportions every time."""

    def __init__(self) -> None:
        self.draws = 0

    def uniform(self, low: float, high: float) -> float:
        self.draws += 1
        return high

    def integers(self, low: int, high: int) -> int:
        raise AssertionError("nothing fits, so no place is drawn")


@pytest.mark.parametrize(("height", "width"), [(100, 100), (60, 100)])
def test_where_no_draw_fits_the_crop_is_centred_and_tries_end(height: int, width: int) -> None:
    luck = NoLuck()
    top, left, h, w = _crop(height, width, Augmentation(0.5, 2.0), luck)  # type: ignore[arg-type]
    assert luck.draws == 2 * TRIES
    assert (top, left) == ((height - h) // 2, (width - w) // 2)


@pytest.mark.parametrize(("height", "width"), [(100, 120), (120, 100), (100, 300), (300, 100)])
def test_where_no_draw_fits_the_largest_crop_is_taken(height: int, width: int) -> None:
    """As torchvision's RandomResizedCrop does: the whole picture, less what its proportions exceed `stretch` by."""
    _, _, h, w = _crop(height, width, Augmentation(1.0, 2.0), NoLuck())  # type: ignore[arg-type]
    assert (h, w) == (min(height, 2 * width), min(width, 2 * height))


# ---- batches made ready ahead


def test_batches_come_in_order_with_what_was_made() -> None:
    items = list(range(23))
    got = list(ahead.batches(items, lambda i: i * i, 5))
    assert [len(group) for group in got] == [5, 5, 5, 5, 3]
    assert [pair for group in got for pair in group] == [(i, i * i) for i in items]


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_few_items_or_none_are_no_special_case(count: int) -> None:
    got = list(ahead.batches(range(count), str, 4))
    assert [pair for group in got for pair in group] == [(i, str(i)) for i in range(count)]


def test_order_holds_when_the_first_is_the_slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead.os, "cpu_count", lambda: 8)  # several threads, whatever this machine has
    second_is_made = Event()

    def make(i: int) -> int:
        if i == 0:
            assert second_is_made.wait(timeout=60)
        if i == 1:
            second_is_made.set()
        return -i

    assert [p for g in ahead.batches(range(8), make, 2) for p in g] == [(i, -i) for i in range(8)]


def test_what_is_raised_comes_out_where_it_belongs() -> None:
    def make(i: int) -> int:
        if i == 7:
            raise ImageError("damaged", "seven")
        return i

    got = ahead.batches(range(20), make, 3)
    assert [next(got)[0][0] for _ in range(2)] == [0, 3]
    with pytest.raises(ImageError, match="seven"):
        next(got)
    assert list(got) == []


class Counted:
    """Counts what was made."""

    def __init__(self) -> None:
        self.lock, self.made = Lock(), 0

    def __call__(self, i: int) -> int:
        with self.lock:
            self.made += 1
        return i


@pytest.mark.parametrize("taken", [1, 2, 5])
def test_nothing_far_ahead_is_made_when_the_consumer_stops(taken: int) -> None:
    counted = Counted()
    got = ahead.batches(range(1000), counted, 2)
    for _ in range(taken):
        next(got)
    got.close()  # type: ignore[attr-defined]  # waits for what is being made
    assert 2 * taken <= counted.made <= 2 * (taken + ahead.AHEAD)


def test_nothing_is_made_before_the_first_batch_is_asked_for() -> None:
    counted = Counted()
    ahead.batches(range(10), counted, 2)
    assert counted.made == 0


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 40), size=st.integers(1, 12))
def test_batches_are_full_but_the_last(count: int, size: int) -> None:
    groups = list(ahead.batches(list(range(count)), lambda i: i, size))
    assert [i for g in groups for i, _ in g] == list(range(count))
    assert all(len(a) == size for a, _ in pairwise(groups))
