"""How does a file become the pixels that the network was trained on?

One implementation for training, prediction and evaluation: `load` is the only way in.
It reads bytes, never trusts the file's name, and returns uint8 RGB; the division by 255 and
the normalisation belong to the network (engine.py, model.py), so that no two paths can differ.
"""

from __future__ import annotations

import hashlib
import stat
import threading
import warnings
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from topwork.errors import ImageError
from topwork.records import FileFacts, Preprocessing

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
"""Decoded pixels above which a file is refused: Pillow's own bomb limit, 268 MB as RGB."""

MAX_BYTES = 512 * 2**20
"""File size above which a file is not even read: no photo within MAX_PIXELS comes near it."""

DRAFT_MARGIN = 2
"""A JPEG is decoded at reduced scale only while both sides keep this many times the resize target:
the resize then still filters from twice the pixels it needs (tests/test_images.py pins the difference)."""

FULL_RANGE_16 = 257.0
"""65535 / 255. 16-bit grey is scaled by its type's full range, not by its content: two files of one
scanner must stay comparable, and training and prediction must agree on a file alone."""

MAX_CAMERA = 80
"""Letters of a camera's name that are kept: EXIF allows 64 kB of them."""

_GREY_16 = np.rint(np.arange(2**16) / FULL_RANGE_16).astype(np.uint8)  # looked up: half the time of the formula

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_JPEGS = {"JPEG", "MPO"}  # a telephone's .jpg often holds a second picture (depth, gain map): Pillow's MPO
_WALKED = {"GIF", "TIFF"}
Source = bytes | str | Path | Image.Image | NDArray[np.uint8]
"""What may stand for one image: encoded bytes, a path, a Pillow image or a uint8 array."""

_opening = threading.Lock()  # warnings.catch_warnings is not thread-safe; opening reads only the header


def digest(data: bytes) -> str:
    """Name the content of a file: 128-bit BLAKE2b, hexadecimal (collisions are out of reach)."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_bytes(path: Path) -> bytes:
    """Read one file whole.

    Raises ImageError ("unreadable", "empty", "too large") with the reason.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe that nobody writes to would never end
            raise ImageError("unreadable", "no regular file")
        size = found.st_size
        if size > MAX_BYTES:
            raise ImageError("too large", f"{size:,} bytes; at most {MAX_BYTES:,} are read")
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ImageError("unreadable", getattr(error, "strerror", None) or str(error)) from error
    if not data:
        raise ImageError("empty", "0 bytes")
    return data


def look(data: bytes, *, decode: bool = False) -> FileFacts:
    """Say what a file is, or raise ImageError with what is wrong with it.

    Reads the header, checks the pixel limit, and finds files that end early (JPEG without its end marker, PNG with a
    broken or missing chunk, WebP shorter than it says) without decoding; `decode=True` decodes every pixel. Formats
    other than these carry no such mark and are always decoded.
    """
    image = _open(data)
    facts = _facts(image, data)
    if facts.format in _JPEGS and not _jpeg_ends(data):
        raise ImageError("truncated", "the JPEG data stops before its end marker")
    if facts.format == "PNG":
        try:
            image.verify()
        except Exception as error:  # Pillow's plugins raise a dozen types on broken files
            raise ImageError("truncated", _reason(error)) from error
        if decode:
            image = _open(data)  # verify leaves an image that cannot be decoded
    if decode or facts.format not in {*_JPEGS, "PNG", "WEBP"}:  # opening finds a WebP that ends early
        _decoded(image)
    return facts


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
        image = _open(source)
        _draft(image, preprocessing)
        if image.format in _JPEGS:  # in one piece: every piece waits for the interpreter's lock anew
            image.decodermaxblock = len(source)  # type: ignore[attr-defined]
    elif isinstance(source, np.ndarray):
        image = _from_array(source)
    else:
        image = _decoded(source).copy()  # the caller's image stays as it is
    return upright(_decoded(image))


def decoded_size(data: bytes, preprocessing: Preprocessing) -> tuple[int, int]:
    """(width, height) in px at which `decode` decodes these bytes, read from the header alone.

    Preprocessings of one decoded size share one decoding, to the very same pixels. Raises ImageError.
    """
    image = _open(data)
    _draft(image, preprocessing)
    return image.size


def upright(image: Image.Image) -> Image.Image:
    """Bring any Pillow mode to upright 8-bit RGB; or to L, a third of the work, where all channels would be one.

    Orientation from EXIF; alpha (also a palette's) over white; 16-bit grey by its full range;
    32-bit integers are taken for 16-bit values, as scanners and microscopes store them; floats
    count as 0..1 where they stay within it, else as 0..255.
    """
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):  # else it would be copied for nothing
            image = ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about orientation; the pixels are fine
        image.getexif().clear()
    mode = image.mode
    if mode in {"RGB", "L"} and "transparency" not in image.info:
        return image
    if mode.startswith("I"):
        values = np.asarray(image)
        return Image.fromarray(_GREY_16.take(values if values.itemsize == 2 else values.clip(0, 2**16 - 1)))
    if mode == "F":
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64))
        scale = 255.0 if grey.size and grey.min() >= 0 and grey.max() <= 1 else 1.0
        return Image.fromarray(np.rint(np.clip(grey * scale, 0, 255)).astype(np.uint8))
    if mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        # RGBa and La (premultiplied) know no direct way to RGBA but through their own family.
        opaque = image.convert("RGBA") if mode != "La" else image.convert("LA").convert("RGBA")
        canvas = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        canvas.alpha_composite(opaque)
        return canvas.convert("RGB")
    return image.convert("L" if mode == "1" else "RGB")


def frame(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize the shorter side (or squash both) and cut the centre, as torchvision and timm round it, to RGB.

    Raises ImageError for a picture without pixels, and for a strip so long that its resized form
    would exceed MAX_PIXELS.
    """
    resize, crop = preprocessing.resize_px, preprocessing.crop_px
    width, height = image.size
    if not width or not height:
        raise ImageError("empty", f"{width} x {height} pixels")
    if preprocessing.squash:
        size = (resize, resize)
    elif width <= height:
        size = (resize, max(resize, int(resize * height / width)))
    else:
        size = (max(resize, int(resize * width / height)), resize)
    if size[0] * size[1] > MAX_PIXELS:  # a file of 1 x 100,000 px would become 20 GB here
        resized = f"{width} x {height} resized to {size[0]} x {size[1]}"
        raise ImageError("too many pixels", f"{resized}; at most {MAX_PIXELS:,}")
    if size != image.size:
        image = image.resize(size, _RESAMPLING[preprocessing.interpolation])
    left, top = round((size[0] - crop) / 2.0), round((size[1] - crop) / 2.0)
    return np.asarray(image.crop((left, top, left + crop, top + crop)).convert("RGB"))


def _open(data: bytes) -> Image.Image:
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb warning: the limit below is stricter
            image = Image.open(BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError("too many pixels", f"more than {MAX_PIXELS:,}") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError("not an image", f"{len(data):,} bytes in no image format") from error
    except Exception as error:  # Pillow's plugins raise a dozen types on broken headers
        raise ImageError("damaged", _reason(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError("too many pixels", f"{image.width} x {image.height}; at most {MAX_PIXELS:,}")
    return image


def _facts(image: Image.Image, data: bytes) -> FileFacts:
    """What the header says; `image` is opened and not decoded. What is broken in EXIF counts as not stated."""
    taken = camera = ""
    try:
        exif = image.getexif()
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


def _decoded(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except Exception as error:  # Pillow's plugins raise a dozen types on broken data
        kind = "truncated" if "truncated" in str(error) else "damaged"
        raise ImageError(kind, _reason(error)) from error
    return image


def _draft(image: Image.Image, preprocessing: Preprocessing) -> None:
    """Let the JPEG decoder skip the detail that the resize would throw away."""
    wanted = DRAFT_MARGIN * preprocessing.resize_px
    if image.format in _JPEGS and min(image.size) > wanted and image.mode in {"RGB", "L"}:
        shrink = wanted / min(image.size)
        # None keeps the mode: asking for RGB would change how a grey file is decoded.
        image.draft(None, (round(image.width * shrink), round(image.height * shrink)))


def _from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in {2, 3} or (pixels.ndim == 3 and pixels.shape[2] not in {3, 4}):
        raise ImageError(
            "not an image",
            f"array of {pixels.dtype} {pixels.shape}; expected uint8 (h, w), (h, w, 3) or (h, w, 4)",
        )
    return Image.fromarray(pixels)


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
