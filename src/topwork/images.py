"""How does a file become the pixels that the network was trained on?

One implementation for training, prediction and evaluation: `load` is the only way in.
It reads bytes, never trusts the file's name, and returns uint8 RGB; the division by 255 and
the normalisation belong to the network (engine.py, model.py), so that no two paths can differ.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import stat
import threading
import warnings
import zlib
from collections import OrderedDict
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps, JpegImagePlugin, PngImagePlugin, features

from topwork.errors import ImageError
from topwork.records import FileFacts, Preprocessing

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
"""Decoded pixels above which a file is refused: Pillow's own bomb limit, 268 MB as RGB."""

MAX_BYTES = 512 * 2**20
"""File size above which a file is not even read: no photo within MAX_PIXELS comes near it."""

DRAFT_MARGIN = 2
"""A JPEG is decoded at reduced scale only while both sides keep this many times the resize target:
the resize then still filters from twice the pixels it needs (tests/test_images.py pins the difference)."""

SIGHT_PX = 32
"""Pixels of the shorter side, at least, at which a JPEG that is only looked at is decoded: two for each of a sketch."""

FULL_RANGE_16 = 257.0
"""65535 / 255. 16-bit grey is scaled by its type's full range, not by its content: two files of one
scanner must stay comparable, and training and prediction must agree on a file alone."""

MAX_PROFILE_BYTES = 8 * 2**20
"""Colour profiles above this size are ignored: those of printing presses, the largest in use, have up to 3 MB."""

PROFILES = 64
"""Profiles whose transforms are kept: one camera writes the same one into all its photos."""

SAME_COLOURS = 1
"""Grey levels within which a profile is taken for sRGB itself: then the pixels stay as they are stored. The sRGB
profiles in use differ from each other by no more."""

MAX_CAMERA = 80
"""Letters of a camera's name that are kept: EXIF allows 64 kB of them."""

INFLATED_BYTES = 64 * 2**20
"""Of a PNG's rows and of its file, up to which it is inflated at once: twice the rows are in memory then. No effect on
the result."""

_GREY_16 = np.rint(np.arange(2**16) / FULL_RANGE_16).astype(np.uint8)  # looked up: half the time of the formula

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_JPEG, _SCAN = b"\xff\xd8\xff", b"\xff\xda"
_PNG = b"\x89PNG\r\n\x1a\n"
_PLAIN = {b"\xff\xd8\xff": ("JPEG",), b"\x89PN": ("PNG",)}  # by how they begin: no other format needs to be tried
_JPEGS = {"JPEG", "MPO"}  # a telephone's .jpg often holds a second picture (depth, gain map): Pillow's MPO
_WALKED = {"GIF", "TIFF"}
_BINARY = getattr(os, "O_BINARY", 0)  # on Windows alone
Source = bytes | str | Path | Image.Image | NDArray[np.uint8]
"""What may stand for one image: encoded bytes, a path, a Pillow image or a uint8 array."""

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_PROGRAMS = {"EPS"}  # PostScript: Pillow would hand it to an interpreter
_BLOCK = 2**16 - 1  # bytes that a block of deflate stores, at most
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # what a profile calls the colours of a mode
_Way = ImageCms.ImageCmsTransform | tuple[list[int], ...] | None  # a transform, or a table for each channel
_profiles: OrderedDict[str, _Way] = OrderedDict()  # by mode and digest; None: as it is
_profiling = threading.Lock()
_opening = threading.Lock()  # warnings.catch_warnings is not thread-safe; opening reads only the header


def _fast_zlib() -> Any:
    """Intel's; None where there is none for the processor: Pillow alone takes longer to the same pixels."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:
        return None


_fast = _fast_zlib()
_crc32 = (_fast or zlib).crc32


def digest(data: bytes) -> str:
    """Name the content of a file: the first 128 bits of SHA-256, hexadecimal (collisions are out of reach).

    Processors have instructions for it: less than half the time of BLAKE2b (bench/LOG.md).
    """
    return hashlib.sha256(data).hexdigest()[:32]


def read_bytes(path: str | Path) -> bytes:
    """Read one file whole.

    Raises ImageError ("unreadable", "empty", "too large") with the reason.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 (a Path takes a tenth of the reading)
        if not stat.S_ISREG(found.st_mode):  # reading a pipe that nobody writes to would never end
            raise ImageError("unreadable", "no regular file")
        size = found.st_size
        if size > MAX_BYTES:
            raise ImageError("too large", f"{size:,} bytes; at most {MAX_BYTES:,} are read")
        data = _whole(path, size)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ImageError("unreadable", getattr(error, "strerror", None) or str(error)) from error
    if not data:
        raise ImageError("empty", "0 bytes")
    return data


def _whole(path: str | Path, size: int) -> bytes:
    """All bytes of a file. Straight from the system: each call lets another thread have the interpreter and waits for
    its turn anew, and a Python file makes nine where four will do."""
    descriptor = os.open(path, os.O_RDONLY | _BINARY)
    try:
        data = os.read(descriptor, size + 1)
        if len(data) == size:
            return data
        pieces = [data]  # it is growing, or a call that was cut short
        while piece := os.read(descriptor, 2**20):
            pieces.append(piece)
            if sum(map(len, pieces)) > MAX_BYTES:
                raise ImageError("too large", f"at most {MAX_BYTES:,} bytes are read")
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def look(data: bytes, *, decode: bool = False) -> FileFacts:
    """Say what a file is, or raise ImageError with what is wrong with it.

    Reads the header, checks the pixel limit, and finds files that end early (JPEG without its end marker, PNG with a
    broken or missing chunk, WebP shorter than it says) without decoding; `decode=True` decodes every pixel. Formats
    other than these carry no such mark and are always decoded.
    """
    if decode:
        return sight(data)[0]
    facts, image = _looked(data)
    if facts.format not in {*_JPEGS, "PNG", "WEBP"}:  # opening finds a WebP that ends early
        _decoded(image)
    return facts


def sight(data: bytes) -> tuple[FileFacts, Image.Image]:
    """What a file is and how it looks: decoded whole, upright RGB or L. Raises ImageError.

    A large JPEG is read to its end, and only its pixels are computed at a reduced scale: what is broken shows all the
    same, in the stream of coefficients.
    """
    facts, image = _looked(data)
    if facts.format in _JPEGS:
        scale = min(image.size) // SIGHT_PX
        if scale > 1 and image.mode in {"RGB", "L"}:
            image.draft(None, (image.width // scale, image.height // scale))
        _in_one_piece(image, data)
    return facts, upright(_inks(_decoded(image, data)))


def _looked(data: bytes) -> tuple[FileFacts, Image.Image]:
    """What can be said of a file without decoding it."""
    image = _open(data)
    facts = _facts(image, data)
    if facts.format in _JPEGS and not _jpeg_ends(data):
        raise ImageError("truncated", "the JPEG data stops before its end marker")
    if facts.format == "PNG" and (wrong := _png_wrong(data)):
        raise ImageError("truncated", wrong)
    return facts, image


def load(
    source: Source,
    preprocessing: Preprocessing,
) -> NDArray[np.uint8]:  # (crop_px, crop_px, 3) RGB
    """Turn one image into the network's pixels: right side up, RGB, resized and centre-cropped.

    `source` is encoded bytes, a path, a Pillow image, or an (h, w), (h, w, 3) or (h, w, 4) uint8 array.
    Raises ImageError where there is no usable image.
    """
    return frame(decode(source, preprocessing), preprocessing)


def decode(source: Source, preprocessing: Preprocessing) -> Image.Image:
    """Turn one image into upright RGB, or L where it is grey all over, in full or at a reduced scale.

    The scale is one that still has DRAFT_MARGIN times the resize target. Raises ImageError.
    """
    if isinstance(source, (str, Path)):
        source = read_bytes(Path(source))
    if isinstance(source, bytes):
        image = _decoded(_reduced(_open(source), source, DRAFT_MARGIN * preprocessing.resize_px), source)
    elif isinstance(source, np.ndarray):
        image = _from_array(source)
    else:
        image = _inks(_decoded(source)).copy()  # the caller's image stays as it is
    return upright(_inks(_decoded(image)))


def decoded_size(data: bytes, preprocessing: Preprocessing) -> tuple[int, int]:
    """(width, height) in px at which `decode` decodes these bytes, read from the header alone.

    Preprocessings of one decoded size share one decoding, to the very same pixels. Raises ImageError.
    """
    return _reduced(_open(data), data, DRAFT_MARGIN * preprocessing.resize_px).size


def size(data: bytes) -> tuple[int, int]:
    """(width, height) in px as the header states them; nothing is decoded. Raises ImageError."""
    return _open(data).size


def upright(image: Image.Image) -> Image.Image:
    """Bring any Pillow mode to upright 8-bit sRGB; or to L, a third of the work, where all channels would be one.

    Orientation from EXIF; an embedded colour profile is applied; alpha (also a palette's) over white; 16-bit grey by
    its full range; 32-bit integers are taken for 16-bit values, as scanners and microscopes store them; floats count
    as 0..1 where they stay within it, else as 0..255. Raises ImageError where Pillow knows no way to RGB.
    """
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):  # else it would be copied for nothing
            image = ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about orientation; the pixels are fine
        image.getexif().clear()
    mode, profile = image.mode, image.info.get("icc_profile")
    if mode in {"RGB", "L"} and "transparency" not in image.info:
        return _managed(image, profile)
    if mode.startswith("I"):
        values = np.asarray(image)
        wide = values if values.itemsize == 2 else values.clip(0, 2**16 - 1)
        return _managed(Image.fromarray(_GREY_16.take(wide)), profile)
    if mode == "F":
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64))
        scale = 255.0 if grey.size and grey.min() >= 0 and grey.max() <= 1 else 1.0
        return Image.fromarray(np.rint(np.clip(grey * scale, 0, 255)).astype(np.uint8))
    try:
        return _converted(image, profile)
    except (ValueError, ImageCms.PyCMSError) as error:  # a conversion that Pillow does not know
        raise ImageError("damaged", _reason(error)) from error


def _converted(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB or L of the modes that Pillow converts."""
    mode = image.mode
    if mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        return _over_white(image, profile)
    if mode == "LAB" and image.width and image.height:
        return _from_lab(image)
    managed = _managed(image, profile) if mode == "CMYK" else image
    if managed is not image:
        return managed
    return _managed(image.convert("L" if mode == "1" else "RGB"), profile if mode == "P" else None)


def _over_white(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The colours over white by their alpha; the profile is of the colours, not of what they become over white."""
    # RGBa and La (premultiplied) know no direct way to RGBA but through their own family.
    opaque = image.convert("RGBA") if image.mode != "La" else image.convert("LA").convert("RGBA")
    if profile:
        # A grey profile fits no RGB: it is applied to one of three channels that are alike.
        colours = opaque.getchannel("R") if image.mode in {"L", "LA", "La"} else opaque.convert("RGB")
        managed = _managed(colours, profile)
        if managed is not colours:
            alpha = opaque.getchannel("A")
            opaque = managed.convert("RGBA")
            opaque.putalpha(alpha)
    canvas = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
    canvas.alpha_composite(opaque)
    return canvas.convert("RGB")


def _managed(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB, L or CMYK brought to sRGB by its profile: RGB or L; or the very same image where there is nothing to do."""
    if not profile or len(profile) > MAX_PROFILE_BYTES or not image.width or not image.height:
        return image
    way = _way(image.mode, profile)
    if way is None:
        return image
    if isinstance(way, tuple):
        channels = [image.point(table) for table in way]
        return channels[0] if len(channels) == 1 else Image.merge("RGB", channels)
    result = Image.new("RGB", image.size)
    way.apply(image, result)
    result.info.pop("icc_profile", None)  # it is sRGB now, which is what no profile means
    return result


def _way(mode: str, profile: bytes) -> _Way:
    """From a profile to sRGB; None where it is broken, of other colours than the image, or sRGB itself."""
    key = f"{mode} {digest(profile)}"
    with _profiling:
        if key in _profiles:
            _profiles.move_to_end(key)
            return _profiles[key]
    found = _built(mode, profile)
    with _profiling:
        _profiles[key] = found
        while len(_profiles) > PROFILES:
            _profiles.popitem(last=False)
    return found


def _built(mode: str, profile: bytes) -> _Way:
    try:
        given = ImageCms.ImageCmsProfile(BytesIO(profile))
        if given.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        # Threads share it. What littlecms optimises is off by 10 levels in dark greys: each grey is asked for once.
        flags = ImageCms.Flags.NOCACHE | (ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE)
        way = ImageCms.buildTransform(
            given, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL, flags
        )
        if mode == "CMYK":
            return way
        steps = np.arange(0, 256, 17 if mode == "RGB" else 1, dtype=np.uint8)
        grid = np.stack(np.meshgrid(*[steps] * len(mode), indexing="ij"), axis=-1).reshape(1, -1, len(mode))
        became = np.asarray(way.apply(Image.fromarray(grid if mode == "RGB" else grid[..., 0]))).astype(int)
        if np.abs(became - grid).max() <= SAME_COLOURS:
            return None
        if mode == "RGB":
            return way
        tables = became[0].T.tolist()
        return (tables[1],) if np.ptp(became, axis=2).max() <= SAME_COLOURS else tuple(tables)
    except Exception:  # littlecms could not make anything of it, or this Pillow was built without it
        return None


def _from_lab(image: Image.Image) -> Image.Image:
    """Lab to sRGB, exactly: Pillow's own way is off by up to 4 levels."""
    way = ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB",
        flags=ImageCms.Flags.NOCACHE | ImageCms.Flags.NOOPTIMIZE,
    )  # fmt: skip
    result = Image.new("RGB", image.size)
    way.apply(image, result)
    return result


def _inks(image: Image.Image) -> Image.Image:
    """A CMYK JPEG as its writer meant it. Pillow takes all of them for Adobe's, which are inverted and marked so."""
    if image.mode == "CMYK" and image.format in _JPEGS and "adobe" not in image.info:
        meant = ImageChops.invert(image)
        meant.info = image.info
        return meant
    return image


def frame(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize the shorter side (or squash both) and cut the centre, as torchvision and timm round it, to RGB.

    Raises ImageError for a picture without pixels, and for a strip so long that its resized form
    would exceed MAX_PIXELS.
    """
    width, height = image.size
    if not width or not height:
        raise ImageError("empty", f"{width} x {height} pixels")
    size, box = _framed(image.size, preprocessing)
    if size[0] * size[1] > MAX_PIXELS:  # a file of 1 x 100,000 px would become 20 GB here
        resized = f"{width} x {height} resized to {size[0]} x {size[1]}"
        raise ImageError("too many pixels", f"{resized}; at most {MAX_PIXELS:,}")
    if size != image.size:
        image = image.resize(size, _RESAMPLING[preprocessing.interpolation])
    return np.asarray(image.crop(box).convert("RGB"))


def seen_part(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[float, float, float, float]:
    """What the network sees of a picture of (width, height) px: left, top, right and bottom of the crop as its shares.

    Below 0 or above 1 where the crop is larger than the resized picture; there is black around it then.
    """
    (width, height), (left, top, right, bottom) = _framed(size, preprocessing)
    return left / width, top / height, right / width, bottom / height


def _framed(
    size: tuple[int, int], preprocessing: Preprocessing
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:  # fmt: skip
    """The size to which a picture is resized, and the crop in it, in px."""
    resize, crop = preprocessing.resize_px, preprocessing.crop_px
    width, height = size
    if preprocessing.squash:
        size = (resize, resize)
    elif width <= height:
        size = (resize, max(resize, int(resize * height / width)))
    else:
        size = (max(resize, int(resize * width / height)), resize)
    left, top = round((size[0] - crop) / 2.0), round((size[1] - crop) / 2.0)
    return size, (left, top, left + crop, top + crop)


def _open(data: bytes) -> Image.Image:
    _decoder_for(data)
    try:
        image = _plain(data)
        if image is None:
            with _opening, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's bomb warning: the limit below is stricter
                image = Image.open(BytesIO(data), formats=_PLAIN.get(data[:3]))
    except Image.DecompressionBombError as error:
        raise ImageError("too many pixels", f"more than {MAX_PIXELS:,}") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError("not an image", f"{len(data):,} bytes in no image format") from error
    except Exception as error:  # Pillow's plugins raise a dozen types on broken headers
        raise ImageError("damaged", _reason(error)) from error
    if image.format in _PROGRAMS:
        raise ImageError("not an image", f"{image.format}: a program that would draw one")
    if image.width * image.height > MAX_PIXELS:
        raise ImageError("too many pixels", f"{image.width} x {image.height}; at most {MAX_PIXELS:,}")
    return image


def _plain(data: bytes) -> Image.Image | None:
    """A JPEG or PNG by its own plugin, where that warns of nothing: threads need not wait for each other then.

    None where it may (EXIF, several pictures, animations), and for what is broken: Pillow's way says how.
    """
    try:
        if data.startswith(_JPEG):
            if b"Exif" in data[: data.find(_SCAN)]:
                return None
            image = JpegImagePlugin.JpegImageFile(BytesIO(data))
            return None if "mp" in image.info or "exif" in image.info else image
        if data.startswith(_PNG) and b"acTL" not in data[: data.find(b"IDAT")]:
            return PngImagePlugin.PngImageFile(BytesIO(data))
    except Exception:  # Pillow's plugins raise a dozen types on broken headers
        return None
    return None


def _facts(image: Image.Image, data: bytes) -> FileFacts:
    """What the header says; `image` is opened and not decoded. What is broken in EXIF counts as not stated."""
    taken = camera = ""
    try:
        # Pillow would decode a whole PNG to look for EXIF behind the pixels.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else None
        if exif:
            details = exif.get_ifd(ExifTags.IFD.Exif)
            taken = _time(
                details.get(ExifTags.Base.DateTimeOriginal)
                or details.get(ExifTags.Base.DateTimeDigitized)
                or exif.get(ExifTags.Base.DateTime)
            )
            camera = _camera(exif.get(ExifTags.Base.Make), exif.get(ExifTags.Base.Model))
    except Exception:  # Pillow's EXIF reader raises a dozen types
        taken = camera = ""
    format = image.format or "?"
    return FileFacts(format, image.mode, *image.size, len(data), _frames(image, data), taken, camera)


def _frames(image: Image.Image, data: bytes) -> int:
    """How many pictures the file holds. Only the first counts, so what is broken after it is not looked at."""
    try:
        if image.format in _WALKED:  # their counting moves through the file: not through the one to be decoded
            image = _open(data)
        return max(1, int(getattr(image, "n_frames", 1)))
    except Exception:
        return 1


def _time(value: object) -> str:
    """EXIF's "2024:05:06 07:08:09" as ISO 8601; "" where it is none (zeros and blanks are common)."""
    try:
        return datetime.strptime(str(value).strip("\0 ")[:19], "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return ""


def _camera(make: object, model: object) -> str:
    """Make and model, the make once: many models begin with it."""
    texts = [str(t or "").strip("\0 ") for t in (make, model)]
    if texts[0] and texts[1].lower().startswith(texts[0].lower()):
        texts = texts[1:]
    text = " ".join(t for t in texts if t)[:MAX_CAMERA]
    return text.encode("utf-8", "replace").decode()


def _decoder_for(data: bytes) -> None:
    """Have Pillow know HEIC and AVIF, once a file says that it is one. Raises ImageError where they cannot be read."""
    if data[4:8] != b"ftyp":
        return
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[i : i + 4] for i in range(16, size - 3, 4))}
    if brands & _AVIF_BRANDS and data[8:12] in _AVIF_BRANDS | {b"mif1", b"msf1"}:
        if not features.check("avif"):
            raise ImageError("needs a newer Pillow", "an AVIF; pip install --upgrade 'pillow>=11.3' reads it")
    elif brands & _HEIF_BRANDS:
        with _opening:
            try:
                importlib.import_module("pillow_heif").register_heif_opener()
            except ImportError as error:
                raise ImageError("needs pillow-heif", "a HEIC; pip install 'topwork[heif]' reads it") from error


def _decoded(image: Image.Image, data: bytes = b"") -> Image.Image:
    whole = isinstance(image, PngImagePlugin.PngImageFile) and bool(data) and _inflated(image, data)
    try:
        image.load()
    except Exception as error:  # Pillow's plugins raise a dozen types on broken data
        kind = "truncated" if "truncated" in str(error) else "damaged"
        raise ImageError(kind, _reason(error)) from error
    if image.format == "PNG" and data and not whole and not _has_all_rows(image, data):
        raise ImageError("truncated", "the PNG's stream ends before its last row")
    return image


def _inflated(image: PngImagePlugin.PngImageFile, data: bytes) -> bool:
    """Have the decoder of an opened PNG get its stream inflated, in blocks that are only stored: whether it does.

    Pillow inflates row by row, and half as fast (bench/LOG.md). Only a stream that ends with its last row and has the
    right check sum is taken; whatever is odd (animations, two headers) or broken is left to Pillow, which says how.
    """
    if _fast is None or image.is_animated or len(image.tile) != 1:
        return False
    start = image.tile[0][2]  # of the data in the first chunk of the stream
    if data[12:16] != b"IHDR" or data.count(b"IHDR", 0, start) != 1:
        return False
    expected = _stream_bytes(image, data)
    if max(expected, len(data)) > INFLATED_BYTES:
        return False
    view, pieces, at = memoryview(data), [], start - 8
    while data[at + 4 : at + 8] == b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        pieces.append(view[at + 8 : at + 8 + length])
        at += 12 + length
    stream = _fast.decompressobj()
    try:
        rows = stream.decompress(b"".join(pieces), expected + 1)
    except _fast.error:
        return False
    if len(rows) != expected or not stream.eof:
        return False
    left = [_stored(rows)]
    image.load_read = lambda read_bytes: left.pop() if left else b""  # type: ignore[method-assign]
    return True


def _stored(rows: bytes) -> bytes:
    """A zlib stream of blocks that are not compressed (RFC 1950, RFC 1951 3.2.4), without its end: none is read."""
    pieces: list[bytes | memoryview] = [b"\x78\x01"]
    view = memoryview(rows)
    for at in range(0, len(rows), _BLOCK):
        block = view[at : at + _BLOCK]
        pieces += [b"\0" + len(block).to_bytes(2, "little") + (_BLOCK - len(block)).to_bytes(2, "little"), block]
    return b"".join(pieces)


def _has_all_rows(image: Image.Image, data: bytes) -> bool:
    """Whether a PNG's stream is as long as its rows. Pillow leaves what is missing at zero, without a word.

    Only where the last two rows (with interlacing, the last pass is every second one) are zero is there anything to
    find out, and the stream is taken apart once more.
    """
    last = image.height - 1
    if all(np.any(image.getpixel((image.width // 2, y))) for y in {max(0, last - 1), last}):  # nearly always
        return True
    end = np.asarray(image.crop((0, max(0, last - 1), image.width, last + 1)))
    if end[-1:].any() and end[:1].any():
        return True
    expected = _stream_bytes(image, data)
    stream, at, length = zlib.decompressobj(), 8, 0
    try:
        while at + 12 <= len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            if data[at + 4 : at + 8] == b"IDAT":
                left = data[at + 8 : at + 8 + size]
                while left and length < expected:
                    length += len(stream.decompress(left, 2**20))
                    left = stream.unconsumed_tail
            at += 12 + size
    except zlib.error:
        return False
    return length >= expected


def _stream_bytes(image: Image.Image, data: bytes) -> int:
    """Bytes of a PNG's rows, each with its filter's number before it."""
    depth, colour, _, _, interlaced = data[24:29]
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 0)
    grids = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(image.width - x) // dx), -(-(image.height - y) // dy)) for x, y, dx, dy in grids]
    return sum(h * (1 + (w * bits + 7) // 8) for w, h in sizes if w > 0 and h > 0)


def _reduced(image: Image.Image, data: bytes, wanted_px: int) -> Image.Image:
    """Let the JPEG decoder skip the detail that a resize to as many px a side would throw away."""
    if image.format in _JPEGS:
        if min(image.size) > wanted_px and image.mode in {"RGB", "L"}:
            shrink = wanted_px / min(image.size)
            # None keeps the mode: asking for RGB would change how a grey file is decoded.
            image.draft(None, (round(image.width * shrink), round(image.height * shrink)))
        _in_one_piece(image, data)
    return image


def _in_one_piece(image: Image.Image, data: bytes) -> None:
    """Decoded in pieces, each would wait for the interpreter's lock anew."""
    image.decodermaxblock = len(data)  # type: ignore[attr-defined]


def _from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in {2, 3} or (pixels.ndim == 3 and pixels.shape[2] not in {3, 4}):
        raise ImageError(
            "not an image",
            f"array of {pixels.dtype} {pixels.shape}; expected uint8 (h, w), (h, w, 3) or (h, w, 4)",
        )
    return Image.fromarray(pixels)


def _png_wrong(data: bytes) -> str:
    """What is wrong with the chunks of a PNG up to its end mark, as Pillow's verify finds it; empty where nothing is.

    Pillow's own leaves an image that cannot be decoded, so that the file would have to be opened twice.
    """
    at, end, view = len(_PNG), len(data), memoryview(data)
    while at + 8 <= end:
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IEND":
            return ""
        stop = at + 8 + length
        if stop + 4 > end:
            break
        if not kind.isalpha():
            return f"broken PNG file (no chunk is called {kind!r})"
        if _crc32(view[at + 4 : stop]) != int.from_bytes(data[stop : stop + 4], "big"):
            return f"broken PNG file (bad check sum of chunk {kind!r})"
        at = stop + 4
    return "the PNG data stops before its end mark"


def _jpeg_ends(data: bytes) -> bool:
    """Whether an end marker follows the scan. Markers are walked, since an EXIF thumbnail has its own."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:  # start of scan: inside it 0xFF is always followed by 0x00 or a restart
            return data.rfind(b"\xff\xd9", at) != -1  # from the end, where it is
        if marker in {0xFF, 0x01} or 0xD0 <= marker <= 0xD8:  # fill bytes and bare markers
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.rfind(b"\xff\xd9", at) != -1  # an odd stream: leave the verdict to the decoder's own reading


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
