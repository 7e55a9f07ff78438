"""Any file becomes the right upright RGB pixels, or an ImageError that says why not."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from topwork import images
from topwork.errors import ImageError
from topwork.records import FileFacts, Preprocessing

Pixels = NDArray[np.uint8]


def plain(side_px: int = 32, resize_px: int | None = None, **other: Any) -> Preprocessing:
    """Preprocessing that leaves a square picture of this side as it is."""
    given = {"interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1)} | other
    return Preprocessing(resize_px or side_px, side_px, **given)


def noise(height: int = 32, width: int = 32, channels: int = 3) -> Pixels:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(picture: Image.Image | Pixels, format: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def one_colour(source: bytes | Image.Image, side_px: int = 32) -> tuple[int, ...]:
    """The colour of a picture that has only one."""
    colours = np.unique(images.load(source, plain(side_px)).reshape(-1, 3), axis=0)
    assert len(colours) == 1
    return tuple(int(c) for c in colours[0])


def quadrants(height: int, width: int) -> Pixels:
    """Four flat colours, no two symmetric: JPEG keeps them, and any turn or flip shows."""
    picture = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    picture[:h, :w], picture[:h, w:] = (230, 30, 30), (30, 230, 30)
    picture[h:, :w], picture[h:, w:] = (30, 30, 230), (240, 240, 240)
    return picture


# What row 0 and column 0 of the stored picture are in the upright one, from the EXIF 2.32 table of tag 0x0112.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda u: u,  # top, left
    2: lambda u: u[:, ::-1],  # top, right
    3: lambda u: u[::-1, ::-1],  # bottom, right
    4: lambda u: u[::-1],  # bottom, left
    5: lambda u: u.swapaxes(0, 1),  # left, top
    6: lambda u: u.swapaxes(0, 1)[::-1],  # right, top
    7: lambda u: u.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda u: u.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("format", "tolerance"), [("PNG", 0), ("WEBP", 0), ("JPEG", 3)])
def test_every_exif_orientation_gives_the_upright_picture(format: str, tolerance: int, orientation: int) -> None:
    upright = quadrants(48, 64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    data = encoded(np.ascontiguousarray(STORED[orientation](upright)), format, exif=exif, **options)

    got = images.load(data, plain(48)).astype(int)

    assert np.abs(got - upright[:, 8:56].astype(int)).max() <= tolerance


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",  # a directory beyond the end
        b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0\x06",  # five entries announced, none whole
    ],
)
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_broken_exif_block_does_not_cost_the_picture(format: str, exif: bytes) -> None:
    data = encoded(quadrants(32, 32), format, exif=exif)
    assert images.look(data).format == format
    assert np.abs(images.load(data, plain()).astype(int) - quadrants(32, 32)).mean() < 5


def palette(transparent: bool) -> bytes:
    picture = Image.new("P", (32, 32), 1)
    picture.putpalette([255, 0, 0, 10, 20, 30])
    return encoded(picture, **({"transparency": 1} if transparent else {}))


def sixteen(value: int, mode: str = "I;16") -> Image.Image:
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    return Image.frombytes(mode, (32, 32), np.full((32, 32), value, kind).tobytes())


COLOURS: dict[str, tuple[bytes | Image.Image, tuple[int, int, int]]] = {
    "RGB": (encoded(Image.new("RGB", (32, 32), (1, 2, 3))), (1, 2, 3)),
    "RGB, its colour declared transparent": (
        encoded(Image.new("RGB", (32, 32), (1, 2, 3)), transparency=(1, 2, 3)),
        (255, 255, 255),
    ),
    "L": (encoded(Image.new("L", (32, 32), 77)), (77, 77, 77)),
    "L, its grey declared transparent": (encoded(Image.new("L", (32, 32), 77), transparency=77), (255, 255, 255)),
    "1 black": (encoded(Image.new("1", (32, 32), 0)), (0, 0, 0)),
    "1 white": (encoded(Image.new("1", (32, 32), 1)), (255, 255, 255)),
    "P": (palette(transparent=False), (10, 20, 30)),
    "P with transparency": (palette(transparent=True), (255, 255, 255)),
    "LA opaque": (encoded(Image.new("LA", (32, 32), (77, 255))), (77, 77, 77)),
    "LA clear": (encoded(Image.new("LA", (32, 32), (0, 0))), (255, 255, 255)),
    "RGBA clear": (encoded(Image.new("RGBA", (32, 32), (0, 0, 0, 0))), (255, 255, 255)),
    "RGBA a fifth opaque, over white": (
        encoded(Image.new("RGBA", (32, 32), (0, 100, 255, 51))),
        (204, 224, 255),  # 0.2 c + 0.8 255
    ),
    "CMYK cyan and black ink": (
        encoded(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "TIFF"),
        (0, 255, 255),
    ),
    "16 bit, least": (encoded(sixteen(0)), (0, 0, 0)),
    "16 bit, 100/255 of its range": (encoded(sixteen(25_700)), (100, 100, 100)),
    "16 bit, most": (encoded(sixteen(65_535)), (255, 255, 255)),
    "16 bit TIFF": (encoded(sixteen(25_700), "TIFF"), (100, 100, 100)),
    "16 bit, big-endian": (sixteen(25_700, "I;16B"), (100, 100, 100)),
    "32 bit integers hold 16-bit values": (encoded(sixteen(25_700, "I"), "TIFF"), (100, 100, 100)),
    "32 bit integers above 16 bits are white": (encoded(sixteen(70_000, "I"), "TIFF"), (255, 255, 255)),
    "32 bit integers below zero are black": (encoded(sixteen(-5, "I"), "TIFF"), (0, 0, 0)),
    "F in 0..1": (encoded(Image.new("F", (32, 32), 0.4), "TIFF"), (102, 102, 102)),
    "F in 0..255": (encoded(Image.new("F", (32, 32), 99.6), "TIFF"), (100, 100, 100)),
    "F not a number": (encoded(Image.new("F", (32, 32), float("nan")), "TIFF"), (0, 0, 0)),
}


@pytest.mark.parametrize("case", COLOURS)
def test_every_mode_gives_its_rgb_colour(case: str) -> None:
    source, expected = COLOURS[case]
    assert one_colour(source) == expected


def test_ycbcr_follows_bt601() -> None:
    y, cb, cr = 120, 100, 160
    expected = (y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128))
    assert one_colour(Image.new("YCbCr", (32, 32), (y, cb, cr))) == pytest.approx(expected, abs=1)


def test_a_cmyk_jpeg_is_not_inverted() -> None:
    """CMYK JPEGs store their inks inverted (Adobe's marker); cyan must stay cyan."""
    data = encoded(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "JPEG", quality=100)
    assert one_colour(data) == pytest.approx((0, 255, 255), abs=3)


def test_a_gif_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (32, 32), c) for c in ("#ff0000", "#0000ff")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert one_colour(data) == (255, 0, 0)


def kind_of_fault(call: Callable[[], object]) -> str:
    with pytest.raises(ImageError) as caught:
        call()
    assert caught.value.exit_code == 3
    assert caught.value.detail
    return caught.value.kind


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_file_that_ends_early_is_truncated(format: str, share: float) -> None:
    """`look` finds it without decoding; `load` finds it too."""
    whole = encoded(noise(64, 64), format)
    images.look(whole)
    data = whole[: int(share * len(whole))]
    assert kind_of_fault(lambda: images.look(data)) == "truncated"
    assert kind_of_fault(lambda: images.look(data, decode=True)) == "truncated"
    assert kind_of_fault(lambda: images.load(data, plain())) == "truncated"


def with_thumbnail(data: bytes) -> bytes:
    """A JPEG whose EXIF block holds a whole small JPEG, with its own end marker."""
    block = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + encoded(noise(8, 8), "JPEG")
    return data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]


def test_the_end_marker_of_a_thumbnail_is_not_the_pictures_own() -> None:
    whole = with_thumbnail(encoded(noise(64, 64), "JPEG"))
    assert images.look(whole).width_px == 64
    assert kind_of_fault(lambda: images.look(whole[:-200])) == "truncated"


def two_pictures(picture: Image.Image | Pixels) -> bytes:
    """As telephones write them: a .jpg with a smaller picture behind the first."""
    second = Image.fromarray(noise(16, 16))
    return encoded(picture, "MPO", save_all=True, append_images=[second], quality=90)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "MPO"])
def test_look_does_not_decode(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_decoded", lambda image: pytest.fail("decoded"))
    data = two_pictures(noise(64, 48)) if format == "MPO" else encoded(noise(64, 48), format)
    assert images.look(data) == FileFacts(format, "RGB", 48, 64, len(data), frames=2 if format == "MPO" else 1)
    with pytest.raises(ImageError, match="damaged" if format == "WEBP" else "truncated"):
        images.look(data[: len(data) // 2])


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, 3000), format=st.sampled_from(["WEBP", "MPO"]))
def test_what_looks_whole_can_be_decoded_wherever_the_file_ends(cut: int, format: str) -> None:
    whole = two_pictures(noise(40, 40)) if format == "MPO" else encoded(noise(40, 40), format)
    data = whole[: max(1, len(whole) - cut)]
    try:
        images.look(data)
    except ImageError:
        return
    assert format == "MPO"  # the cut went through its second picture, which nobody needs
    np.testing.assert_array_equal(images.load(data, plain()), images.load(whole, plain()))


def test_a_telephones_two_pictures_are_a_jpeg_like_any_other() -> None:
    """The first one counts, at the same reduced scale."""
    scene = photo(1200, 1600)
    alone, both, preprocessing = encoded(scene, "JPEG", quality=90), two_pictures(scene), plain(224, 256)
    assert images.look(both).format == "MPO"
    assert images.decoded_size(both, preprocessing) == images.decoded_size(alone, preprocessing) == (800, 600)
    np.testing.assert_array_equal(images.load(both, preprocessing), images.load(alone, preprocessing))


def test_damaged_pixels_show_when_decoded() -> None:
    """A PNG whose compressed data is nonsense under a right checksum: the header cannot know."""
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    header = (8).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"nonsense" * 9) + chunk(b"IEND", b"")
    images.look(data)
    assert kind_of_fault(lambda: images.look(data, decode=True)) in {"damaged", "truncated"}
    assert kind_of_fault(lambda: images.load(data, plain())) in {"damaged", "truncated"}


def test_files_that_are_no_images_say_so(tmp_path: Path) -> None:
    text, empty = tmp_path / "text.jpg", tmp_path / "empty.jpg"
    text.write_text("to be or not to be " * 99)
    empty.touch()
    assert kind_of_fault(lambda: images.load(text, plain())) == "not an image"
    assert kind_of_fault(lambda: images.look(text.read_bytes())) == "not an image"
    assert kind_of_fault(lambda: images.load(empty, plain())) == "empty"
    assert kind_of_fault(lambda: images.load(tmp_path, plain())) == "unreadable"
    assert kind_of_fault(lambda: images.load(tmp_path / "absent.jpg", plain())) == "unreadable"


def test_a_file_above_the_byte_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise()))
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    assert kind_of_fault(lambda: images.read_bytes(tmp_path / "a.png")) == "too large"


def test_a_picture_above_the_pixel_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(32, 32))
    monkeypatch.setattr(images, "MAX_PIXELS", 1024)
    images.look(data)
    monkeypatch.setattr(images, "MAX_PIXELS", 1023)
    assert kind_of_fault(lambda: images.look(data)) == "too many pixels"
    assert kind_of_fault(lambda: images.load(data, plain())) == "too many pixels"


@pytest.mark.parametrize("pillows_limit", [100, 1000])  # above twice its limit Pillow raises, below it warns
def test_pillows_own_bomb_limit_is_told_the_same_way(pillows_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_limit)
    assert kind_of_fault(lambda: images.look(encoded(noise(32, 32)))) == "too many pixels"


def test_a_strip_whose_resized_form_is_beyond_the_limit_is_refused() -> None:
    """1 x 100,000 px is a small file; its shorter side resized to 256 would make it 6.5 gigapixels."""
    strip = encoded(Image.new("L", (100_000, 1)))
    assert kind_of_fault(lambda: images.load(strip, plain(224, 256))) == "too many pixels"


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((8, 8), np.uint16),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_an_array_that_is_no_picture_is_refused(wrong: Any) -> None:
    assert kind_of_fault(lambda: images.load(wrong, plain())) == "not an image"


def test_a_picture_without_pixels_is_empty() -> None:
    assert kind_of_fault(lambda: images.load(np.zeros((0, 5, 3), np.uint8), plain())) == "empty"
    assert kind_of_fault(lambda: images.load(Image.new("RGB", (5, 0)), plain())) == "empty"


def test_bytes_path_picture_and_array_give_the_same_pixels(tmp_path: Path) -> None:
    pixels = noise(40, 50)
    data = encoded(pixels)
    (tmp_path / "a.png").write_bytes(data)
    sources = [data, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels]
    first, *rest = [images.load(source, plain(24, 30)) for source in sources]
    assert first.shape == (24, 24, 3)
    assert first.dtype == np.uint8
    for other in rest:
        np.testing.assert_array_equal(first, other)


def test_grey_and_four_channel_arrays_are_pictures() -> None:
    grey = noise(32, 32, 1)[..., 0]
    np.testing.assert_array_equal(images.load(grey, plain()), np.repeat(grey[..., None], 3, axis=2))
    opaque = np.concatenate([noise(), np.full((32, 32, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(images.load(opaque, plain()), noise())


def test_the_callers_picture_is_not_changed() -> None:
    picture = Image.new("RGBA", (40, 40), (1, 2, 3, 4))
    before = picture.copy()
    images.load(picture, plain(24, 30))
    assert picture == before
    assert picture.size == (40, 40)


def test_a_truncated_pillow_picture_is_an_image_error() -> None:
    data = encoded(noise(64, 64), "JPEG")
    assert kind_of_fault(lambda: images.load(Image.open(BytesIO(data[:1000])), plain())) == "truncated"


@settings(max_examples=120, deadline=None)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    resize=st.integers(8, 64),
    margin=st.integers(0, 40),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
    squash=st.booleans(),
)
def test_frame_equals_torchvisions_resize_and_centre_crop(
    width: int, height: int, resize: int, margin: int, interpolation: Any, squash: bool
) -> None:
    crop = max(1, resize - margin)
    picture = Image.fromarray(noise(height, width))
    oracle = Compose(
        [Resize((resize, resize) if squash else resize, InterpolationMode(interpolation)), CenterCrop(crop)]
    )
    got = images.frame(picture, plain(crop, resize, interpolation=interpolation, squash=squash))
    np.testing.assert_array_equal(got, np.asarray(oracle(picture)))


def textbook(data: bytes, preprocessing: Preprocessing) -> Image.Image:
    """The slow way to upright RGB: everything turned by Pillow, three channels from the start, 16 bit by formula."""
    image = Image.open(BytesIO(data))
    images._reduced(image, data, images.DRAFT_MARGIN * preprocessing.resize_px)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Image.fromarray(np.rint(np.clip(np.asarray(image) / 257, 0, 255)).astype(np.uint8)).convert("RGB")
    if image.mode in {"LA", "RGBA"} or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")


KINDS = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "1", "P", "LA", "RGBA", "I;16"),
    "TIFF": ("RGB", "L", "I;16", "I", "CMYK"),
    "WEBP": ("RGB",),
    "BMP": ("RGB", "L", "1", "P"),
    "GIF": ("P", "L"),
}


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([(format, mode) for format, modes in KINDS.items() for mode in modes]),
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    resize=st.integers(8, 64),
    orientation=st.integers(0, 9),
    transparent=st.booleans(),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_the_fast_way_gives_the_pixels_of_the_slow_one(
    kind: tuple[str, str], width: int, height: int, resize: int, orientation: int, transparent: bool, interpolation: Any
) -> None:
    """Grey pictures travel in one channel, unturned ones are not copied, 16 bit is looked up: no pixel tells."""
    format, mode = kind
    pixels = noise(height, width)
    if mode.startswith("I"):
        wide = pixels[..., 0].astype(np.int64) * 256 + pixels[..., 1]
        picture = Image.fromarray(wide.astype(np.uint16) if mode == "I;16" else (wide * 2 - 20_000).astype(np.int32))
    else:
        picture = Image.fromarray(pixels).convert(mode)
    options: dict[str, Any] = {}
    if format in {"JPEG", "PNG", "WEBP", "TIFF"}:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    if transparent and format == "PNG" and mode in {"L", "P"}:
        options["transparency"] = int(pixels[0, 0, 0])
    data = encoded(picture, format, **options)
    preprocessing = plain(resize - 3, resize, interpolation=interpolation)
    expected = textbook(data, preprocessing)
    decoded = images.decode(data, preprocessing)
    np.testing.assert_array_equal(np.asarray(decoded.convert("RGB")), np.asarray(expected))
    np.testing.assert_array_equal(images.load(data, preprocessing), images.frame(expected, preprocessing))


def test_every_16_bit_value_is_rounded_as_the_formula_says() -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    for picture in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        np.testing.assert_array_equal(np.asarray(images.upright(picture)), expected)


@given(cut=st.integers(2, 20_000))
@settings(max_examples=60, deadline=None)
def test_a_jpeg_that_ends_early_is_told_wherever_it_ends(cut: int) -> None:
    """The end marker is looked for from the end, and the data is given to the decoder in one piece."""
    data = JPEG[: max(700, len(JPEG) - cut)]
    assert kind_of_fault(lambda: images.look(data)) == "truncated"
    assert kind_of_fault(lambda: images.load(data, plain())) == "truncated"


JPEG = encoded(noise(100, 100), "JPEG")


def photo(height: int, width: int) -> Image.Image:
    """A smooth scene with edges, and detail down to a few pixels: 1/f, as in photographs."""
    y, x = np.mgrid[:height, :width] / height
    rng = np.random.default_rng(0)
    scene = np.zeros((height, width, 3))
    for cycles in (1, 2, 5, 11, 23, 47, 97, 197):
        for c in range(3):
            angle, phase = rng.uniform(0, 2 * np.pi, 2)
            scene[..., c] += np.sin(2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)) + phase) / cycles
    scene[(x - 0.6) ** 2 + (y - 0.5) ** 2 < 0.09] += 0.7
    return Image.fromarray(np.clip(127 + 60 * scene, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decoding_a_large_jpeg_at_reduced_scale_changes_little(mode: str) -> None:
    """Mean difference below 1 grey level of 255 after resizing: less than JPEG's own loss at quality 90."""
    data = encoded(photo(1200, 1600).convert(mode), "JPEG", quality=90)
    preprocessing = plain(224, 256)
    with Image.open(BytesIO(data)) as drafted:
        images._reduced(drafted, data, images.DRAFT_MARGIN * preprocessing.resize_px)
        assert drafted.size == (800, 600)  # at least twice the 256 px wanted
    with Image.open(BytesIO(data)) as picture:
        whole = images.load(picture, preprocessing)  # a Pillow picture is decoded in full
    difference = np.abs(images.load(data, preprocessing).astype(int) - whole.astype(int))
    assert 0 < difference.mean() < 1


def test_a_jpeg_near_the_wanted_size_is_decoded_in_full() -> None:
    data = encoded(photo(120, 160), "JPEG")
    with Image.open(BytesIO(data)) as picture:
        np.testing.assert_array_equal(images.load(data, plain(56, 64)), images.load(picture, plain(56, 64)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "JPEG with EXIF", "two pictures", "animation"])
def test_the_short_way_to_open_a_file_says_what_pillows_own_says(kind: str) -> None:
    """And what may make Pillow warn takes the long one."""
    picture, saved = Image.fromarray(noise(30, 40)), BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "maker"
    options: dict[str, Any] = {
        "JPEG with EXIF": {"exif": exif},
        "two pictures": {"save_all": True, "append_images": [picture]},
        "animation": {"save_all": True, "append_images": [picture.rotate(180)]},
    }.get(kind, {})
    format = {"two pictures": "MPO", "animation": "PNG"}.get(kind, kind[:4].strip())
    picture.save(saved, format, **options)
    data = saved.getvalue()
    assert (images._plain(data) is not None) == (kind in {"JPEG", "PNG"})
    image, expected = images._open(data), Image.open(BytesIO(data))
    assert (image.format, image.mode, image.size) == (expected.format, expected.mode, expected.size)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_a_file_that_grows_while_it_is_read_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(256)) * 9)
    assert images._whole(path, 100) == images._whole(path, 2304) == images._whole(path, 5000) == path.read_bytes()


def test_the_digest_names_the_content() -> None:
    assert images.digest(b"a") == images.digest(b"a") != images.digest(b"b")
    assert len(images.digest(b"")) == 32
