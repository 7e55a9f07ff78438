"""A sketch is what area averaging gives; the store keeps what was written whole, whoever else writes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from topwork import sketches
from topwork.sketches import Sketches, hashed, sketch

Pixels = NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scene(seed: int, height: int = 240, width: int = 320) -> Image.Image:
    """1/f noise, as photographs have."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=(3, height, width)))
    fy, fx = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width
    soft = np.fft.irfft2(spectrum / np.maximum(1, np.hypot(fy, fx)), s=(height, width))
    soft /= soft.std()
    return Image.fromarray(np.clip(127 + 45 * soft, 0, 255).astype(np.uint8).transpose(1, 2, 0))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 48), (480, 640), (1024, 512)])
def test_a_sketch_is_the_mean_of_each_area(height: int, width: int) -> None:
    pixels = np.asarray(scene(1, height, width))
    expected = pixels.reshape(16, height // 16, 16, width // 16, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(sketch(Image.fromarray(pixels)), expected, atol=1)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (17, 31)])
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (17, 31), (341, 256), (1000, 65), (20_000, 2)])
def test_a_sketch_is_near_the_exact_mean_whatever_the_size(size: tuple[int, int]) -> None:
    """Each pixel counts in an area by what of it lies inside."""

    def inside(n: int) -> NDArray[np.float64]:
        edges = np.linspace(0, n, 17)
        low, high = np.maximum(edges[:-1, None], np.arange(n)), np.minimum(edges[1:, None], np.arange(1, n + 1))
        share = np.clip(high - low, 0, None)
        return share / share.sum(axis=1, keepdims=True)

    pixels = np.asarray(scene(2, size[1], size[0]) if min(size) > 2 else Image.fromarray(noise(size[1], size[0])))
    expected = np.einsum("ay,yxc,bx->abc", inside(size[1]), pixels.astype(float), inside(size[0]))
    assert np.abs(sketch(Image.fromarray(pixels)) - expected).mean() <= 1


def test_any_proportions_can_be_sketched(size: tuple[int, int]) -> None:
    found = sketch(Image.new("L", size, 90))
    assert found.shape == (16, 16, 3)
    assert (found == 90).all()


def changed(picture: Image.Image) -> dict[str, Image.Image]:
    width, height = picture.size
    saved = BytesIO()
    picture.save(saved, "JPEG", quality=50)
    cut = (width // 100, height // 100, width - width // 100, height - height // 100)
    return {
        "saved again": Image.open(saved).convert("RGB"),
        "half the size": picture.resize((width // 2, height // 2), Image.Resampling.BILINEAR),
        "brighter": picture.point(lambda v: min(255, int(v * 1.1 + 5))),
        "cropped": picture.crop(cut),
    }


def test_what_looks_the_same_has_nearly_the_same_hash() -> None:
    scenes = [scene(seed) for seed in range(20)]
    hashes = hashed(np.stack([sketch(s) for s in scenes]))
    for i, picture in enumerate(scenes):
        for name, other in changed(picture).items():
            bits = [bin(int(hashed(sketch(other)[None])[0] ^ h)).count("1") for h in hashes]
            assert bits[i] <= 10, name
            assert min(bits[:i] + bits[i + 1 :]) > 10, name


def test_hashes_are_of_each_image_alone() -> None:
    many = np.stack([noise(16, 16, seed) for seed in range(9)])
    np.testing.assert_array_equal(hashed(many), np.concatenate([hashed(one[None]) for one in many]))
    assert len(set(hashed(many).tolist())) == 9
    assert hashed(many[:0]).shape == (0,)


def names(n: int) -> list[str]:
    return [f"{i:032x}" for i in range(n)]


def filled(folder: Path, n: int, first: int = 0) -> tuple[Sketches, NDArray[np.uint8]]:
    store, pixels = Sketches(folder), np.stack([noise(16, 16, seed) for seed in range(n)])
    for name, one in list(zip(names(n), pixels, strict=True))[first:]:
        store.put(name, one)
    return store, pixels


def test_what_was_put_is_found_again(tmp_path: Path) -> None:
    """Before it is written, after it, and by the next process."""
    store, pixels = filled(tmp_path, sketches.FLUSH + 3)
    for found in (store, store):
        got, missing = found.get([*names(len(pixels)), "f" * 32])
        np.testing.assert_array_equal(got[:-1], pixels)
        assert missing.tolist() == [False] * len(pixels) + [True]
        assert not got[-1].any()
        store.flush()
    np.testing.assert_array_equal(Sketches(tmp_path).get(names(len(pixels)))[0], pixels)
    assert names(1)[0] in store
    assert "f" * 32 not in store


def test_two_writers_see_what_the_other_wrote(tmp_path: Path) -> None:
    one, pixels = filled(tmp_path, 10)
    two, _ = filled(tmp_path, 20, first=10)
    one.flush()
    two.flush()
    for store in (one, two):
        assert not store.get(names(20))[1].any()
    np.testing.assert_array_equal(two.get(names(10))[0], pixels)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("lost", [1, 300, 800])
def test_a_torn_end_is_not_believed(tmp_path: Path, lost: int) -> None:
    store, pixels = filled(tmp_path, 5)
    store.flush()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-lost])
    got, missing = Sketches(tmp_path).get(names(5))
    kept = 4 if lost < 788 else 3
    assert missing.tolist() == [False] * kept + [True] * (5 - kept)
    np.testing.assert_array_equal(got[:kept], pixels[:kept])


def test_a_record_with_a_wrong_byte_is_not_believed(tmp_path: Path) -> None:
    store, _ = filled(tmp_path, 5)
    store.flush()
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[3 * 788 + 100] ^= 1
    path.write_bytes(bytes(data))
    assert Sketches(tmp_path).get(names(5))[1].tolist() == [False] * 3 + [True] * 2


def test_a_folder_that_cannot_be_written_costs_only_the_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store, pixels = filled(tmp_path / "file" / "inside", 3)
    store.flush()
    np.testing.assert_array_equal(store.get(names(3))[0], pixels)


def test_a_cache_has_one_store(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert Sketches.under(Path("cache")) is Sketches.under(tmp_path / "cache")
