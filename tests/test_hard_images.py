"""Broken and odd files, made here: each becomes the right pixels, or an ImageError of a known kind; nothing else.

References are computed without the code under test: by numpy from the formulas, or known from how the file was made.
"""

from __future__ import annotations

import colorsys
import random
import signal
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from topwork import data as door
from topwork import images
from topwork.errors import ImageError
from topwork.records import Preprocessing
from topwork.sketches import Sketches

Pixels = NDArray[np.uint8]
WHOLE = Preprocessing(10_000, 10_000, "bicubic", (0, 0, 0), (1, 1, 1))
"""So large that nothing is decoded at a reduced scale."""

NETWORK = Preprocessing(32, 32, "bicubic", (0, 0, 0), (1, 1, 1))
KINDS = {
    "empty", "too large", "too many pixels", "not an image", "unreadable", "truncated", "damaged", "needs pillow-heif",
    "needs a newer Pillow",
}  # fmt: skip


def seen(source: bytes | Image.Image | Path) -> NDArray[np.int64]:
    """Upright RGB at full size."""
    return np.asarray(images.decode(source, WHOLE).convert("RGB")).astype(np.int64)


def encoded(picture: Image.Image | Pixels, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, format, **options)
    return buffer.getvalue()


def blocks(height: int = 32, width: int = 48) -> Pixels:
    """Six flat colours on a grid of 16 px: JPEG keeps them, and any turn, flip or channel mistake shows."""
    colours = [[(220, 40, 40), (40, 200, 60), (50, 60, 210)], [(240, 240, 240), (20, 20, 20), (200, 180, 40)]]
    return np.array(colours, np.uint8).repeat(height // 2, axis=0).repeat(width // 3, axis=1)


def fine(height: int = 24, width: int = 40, channels: int = 3) -> Pixels:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def as_rgb(grey: NDArray[Any]) -> NDArray[np.float64]:
    return np.repeat(np.asarray(grey, dtype=np.float64)[..., None], 3, axis=2)


def over_white(rgb: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.float64]:
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


# ------------------------------------------------------------------------------------------------- files by hand


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, depth: int, colour: int, rows: list[bytes], *, interlace: int = 0, extra: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def adam7(pixels: Pixels) -> bytes:
    """An interlaced PNG: seven passes of ever finer grids."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = [row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx] if row.size]
    return png(pixels.shape[1], pixels.shape[0], 8, 2, rows, interlace=1)


def packed(grey: NDArray[np.int64], depth: int) -> list[bytes]:
    """Rows of a few bits per pixel."""
    bits = (grey[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return [np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in bits]


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def icc(space: bytes, pcs: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    """A colour profile, version 2 (ICC.1:2001-04)."""
    tags = {b"desc": b"desc\0\0\0\0\0\0\0\5test\0" + bytes(78), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    white = fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    head = (
        bytes(8) + b"\x02\x40\0\0" + kind + space + pcs + struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    )
    head += white
    head += bytes(128 - len(head))
    size = 128 + len(table) + len(body)
    return struct.pack(">I", size) + head[4:] + table + body


def xyz(values: NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(fixed(v) for v in values)


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


D50 = np.array([0.9642, 1.0, 0.8249])
SRGB = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
P3 = np.array([[0.515102, 0.291965, 0.157153], [0.241182, 0.692236, 0.0665819], [-0.00104941, 0.0418818, 0.784378]])
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
"""XYZ of the primaries under D50, by B. Lindbloom's tables and the published Display P3 profile."""

GAMMA = 563 / 256  # 2.2 as a profile writes it


def rgb_profile(primaries: NDArray[np.float64], gamma: float = GAMMA) -> bytes:
    tags = {b"wtpt": xyz(D50)}
    for i, name in enumerate("rgb"):
        tags[f"{name}XYZ".encode()] = xyz(primaries[:, i])
        tags[f"{name}TRC".encode()] = curve(gamma)
    return icc(b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    return icc(b"GRAY", b"XYZ ", {b"wtpt": xyz(D50), b"kTRC": curve(gamma)})


def to_srgb(linear_xyz: NDArray[np.float64]) -> NDArray[np.float64]:  # (..., 3)
    """XYZ under D50 to sRGB in 0..255 (IEC 61966-2-1)."""
    linear = np.clip(linear_xyz @ np.linalg.inv(SRGB).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def managed(rgb: NDArray[Any], primaries: NDArray[np.float64], gamma: float = GAMMA) -> NDArray[np.float64]:
    return to_srgb((np.asarray(rgb) / 255) ** gamma @ primaries.T)


def managed_grey(grey: NDArray[Any], gamma: float) -> NDArray[np.float64]:
    return to_srgb((np.asarray(grey) / 255)[..., None] ** gamma * D50)


def lab_to_srgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], axis=-1)
    return to_srgb(D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)))


LABS = np.array(
    [
        [100 - 20 * i / 3, (i * 7) % 17 - 8 if 0 < i < 15 else 0, (i * 5) % 17 - 8 if 0 < i < 15 else 0]
        for i in range(16)
    ]
)
"""What sixteen mixtures of full inks look like on an imagined press: all within sRGB, and together they are black."""


def press_profile() -> bytes:
    """CMYK by a table of its sixteen corners."""
    identity = bytes(range(256))
    table = np.rint(np.stack([LABS[:, 0] * 255 / 100, LABS[:, 1] + 128, LABS[:, 2] + 128], axis=1)).astype(np.uint8)
    matrix = b"".join(fixed(v) for v in np.eye(3).ravel())
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + 4 * identity + table.tobytes() + 3 * identity
    return icc(b"CMYK", b"Lab ", {b"wtpt": xyz(D50), b"A2B0": lut}, b"prtr")


def inks() -> Pixels:  # (4, 4, 4)
    corners = [[255 * ((i >> (3 - k)) & 1) for k in range(4)] for i in range(16)]
    return np.array(corners, np.uint8).reshape(4, 4, 4)


def cmyk(pixels: Pixels) -> Image.Image:
    return Image.frombytes("CMYK", (pixels.shape[1], pixels.shape[0]), np.ascontiguousarray(pixels).tobytes())


def without_adobe(jpeg: bytes) -> bytes:
    """A JPEG without its APP14 segment."""
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def jpeg_of_size(width: int, height: int) -> bytes:
    data = encoded(blocks(), "JPEG")
    return patched(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def png_of_size(width: int, height: int) -> bytes:
    return png(width, height, 8, 2, [b"\0" * 9] * 3)


def with_exif(picture: Image.Image | Pixels, format: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture, format, exif=exif, **options)


# ------------------------------------------------------------------------------------------- what has to be readable

Case = tuple[Callable[[], bytes | Image.Image], Callable[[], NDArray[Any]]]


def hsv(pixels: Pixels) -> NDArray[np.float64]:
    return 255 * np.array([[colorsys.hsv_to_rgb(*(p / 255)) for p in row] for row in pixels])


def ycbcr(pixels: Pixels) -> NDArray[np.float64]:
    y, cb, cr = (pixels[..., i].astype(float) for i in range(3))
    cb, cr = cb - 128, cr - 128
    return np.clip(np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1), 0, 255)


def from_bytes(mode: str, pixels: NDArray[Any]) -> Image.Image:
    return Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), np.ascontiguousarray(pixels).tobytes())


RGB, RGBA, GREY = fine(), fine(channels=4), fine(channels=1)
WIDE = np.random.default_rng(8).integers(0, 2**16, (24, 40)).astype(np.uint16)
SOFT = np.clip(np.rint(127 + 60 * np.sin(np.arange(24)[:, None] / 9 + np.arange(40)[None] / 13)), 0, 255).astype(
    np.uint8
)
PALETTE = np.random.default_rng(9).integers(0, 256, (256, 3), dtype=np.uint8)


def palette(**options: Any) -> bytes:
    picture = Image.fromarray(GREY, mode="L").copy()
    picture.putpalette(PALETTE.tobytes())
    return encoded(picture, "PNG", **options)


def premultiplied() -> Image.Image:
    return Image.fromarray(RGBA).convert("RGBa")


def premultiplied_over_white() -> NDArray[np.float64]:
    stored = np.frombuffer(premultiplied().tobytes(), np.uint8).reshape(24, 40, 4)
    return stored[..., :3] + 255.0 - stored[..., 3:]


READABLE: dict[str, Case] = {
    # every mode of Pillow's that a file or a program can bring
    "mode 1": (lambda: Image.fromarray(GREY > 99), lambda: as_rgb(255 * (GREY > 99))),
    "mode L": (lambda: Image.fromarray(GREY), lambda: as_rgb(GREY)),
    "mode LA": (
        lambda: from_bytes("LA", RGBA[..., 2:]),
        lambda: over_white(as_rgb(RGBA[..., 2]), RGBA[..., 3]),
    ),
    "mode P": (palette, lambda: PALETTE[GREY]),
    "mode P, an entry transparent": (
        lambda: palette(transparency=5),
        lambda: np.where((GREY == 5)[..., None], 255, PALETTE[GREY]),
    ),
    "mode P, alpha for each entry": (
        lambda: palette(transparency=bytes(range(256))),
        lambda: over_white(PALETTE[GREY], GREY),
    ),
    "mode RGB": (lambda: Image.fromarray(RGB), lambda: RGB),
    "mode RGBA": (lambda: Image.fromarray(RGBA), lambda: over_white(RGBA[..., :3], RGBA[..., 3])),
    "mode RGBa": (premultiplied, premultiplied_over_white),
    "mode RGBX": (lambda: from_bytes("RGBX", RGBA), lambda: RGBA[..., :3]),
    "mode CMYK": (
        lambda: cmyk(RGBA),
        lambda: 255 * (1 - RGBA[..., :3] / 255) * (1 - RGBA[..., 3:] / 255),
    ),
    "mode YCbCr": (lambda: from_bytes("YCbCr", RGB), lambda: ycbcr(RGB)),
    "mode HSV": (lambda: from_bytes("HSV", RGB), lambda: hsv(RGB)),
    "mode LAB": (
        lambda: from_bytes(
            "LAB",
            (np.stack([LABS[:, 0] * 2.55, LABS[:, 1] % 256, LABS[:, 2] % 256], axis=1))
            .round()
            .astype(np.uint8)
            .reshape(4, 4, 3),
        ),
        lambda: lab_to_srgb(LABS.reshape(4, 4, 3)),
    ),
    "mode I": (lambda: Image.fromarray(WIDE.astype(np.int32)), lambda: as_rgb(WIDE / 257)),
    "mode I;16": (lambda: Image.fromarray(WIDE), lambda: as_rgb(WIDE / 257)),
    "mode I;16B": (lambda: from_bytes("I;16B", WIDE.astype(">u2")), lambda: as_rgb(WIDE / 257)),
    "mode F": (lambda: Image.fromarray(WIDE.astype(np.float32) / 65535), lambda: as_rgb(WIDE / 257)),
    # PNG
    "PNG interlaced": (lambda: adam7(RGB), lambda: RGB),
    "PNG interlaced, 1 x 1": (lambda: adam7(RGB[:1, :1]), lambda: RGB[:1, :1]),
    "PNG, 16 bits a colour": (
        lambda: png(40, 24, 16, 2, [row.astype(">u2").tobytes() for row in RGB.astype(np.uint16) * 257]),
        lambda: RGB,
    ),
    "PNG, 16 bits with alpha": (
        lambda: png(40, 24, 16, 6, [row.astype(">u2").tobytes() for row in RGBA.astype(np.uint16) * 257]),
        lambda: over_white(RGBA[..., :3], RGBA[..., 3]),
    ),
    "PNG, 16 bits grey with alpha": (
        lambda: png(40, 24, 16, 4, [row.astype(">u2").tobytes() for row in RGBA[..., 2:].astype(np.uint16) * 257]),
        lambda: over_white(as_rgb(RGBA[..., 2]), RGBA[..., 3]),
    ),
    "PNG, 1 bit": (lambda: png(40, 24, 1, 0, packed(GREY.astype(int) >> 7, 1)), lambda: as_rgb(255 * (GREY >> 7))),
    "PNG, 2 bits": (lambda: png(40, 24, 2, 0, packed(GREY.astype(int) >> 6, 2)), lambda: as_rgb(85 * (GREY >> 6))),
    "PNG, 4 bits": (lambda: png(40, 24, 4, 0, packed(GREY.astype(int) >> 4, 4)), lambda: as_rgb(17 * (GREY >> 4))),
    "PNG, a colour declared transparent": (
        lambda: encoded(RGB, "PNG", transparency=tuple(int(v) for v in RGB[3, 4])),
        lambda: np.where((RGB[3, 4] == RGB).all(axis=2, keepdims=True), 255, RGB),
    ),
    "PNG, animated": (
        lambda: encoded(RGB, "PNG", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
        lambda: RGB,
    ),
    "PNG with an unknown chunk and a gamma": (
        lambda: png(
            40,
            24,
            8,
            2,
            [r.tobytes() for r in RGB],
            extra=chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"twRk", b"whatever"),
        ),
        lambda: RGB,
    ),
    "PNG, bytes behind its end": (lambda: encoded(RGB, "PNG") + b"tail" * 99, lambda: RGB),
    # JPEG
    "JPEG, progressive": (lambda: encoded(blocks(), "JPEG", quality=100, progressive=True, subsampling=0), blocks),
    "JPEG, restart markers": (
        lambda: encoded(blocks(), "JPEG", quality=100, restart_marker_blocks=1, subsampling=0),
        blocks,
    ),
    "JPEG, colours at a quarter": (
        lambda: encoded(blocks(96, 144), "JPEG", quality=100, subsampling="4:2:0"),
        lambda: blocks(96, 144),
    ),
    "JPEG, RGB as it is": (lambda: encoded(blocks(), "JPEG", quality=100, keep_rgb=True), blocks),
    "JPEG, bytes behind its end": (
        lambda: encoded(blocks(), "JPEG", quality=100, subsampling=0) + b"\0\1\2" * 99,
        blocks,
    ),
    "JPEG, fill bytes before a marker": (
        lambda: b"\xff\xd8\xff\xff\xff" + encoded(blocks(), "JPEG", quality=100, subsampling=0)[2:],
        blocks,
    ),
    "JPEG, CMYK as Adobe writes it": (
        lambda: encoded(cmyk(np.dstack([255 - blocks(), np.zeros((32, 48), np.uint8)])), "JPEG", quality=100),
        blocks,
    ),
    "JPEG, CMYK without Adobe's marker": (
        # inks as they are: what Pillow writes inverted is written inverted once more
        lambda: without_adobe(
            encoded(cmyk(255 - np.dstack([255 - blocks(), np.zeros((32, 48), np.uint8)])), "JPEG", quality=100)
        ),
        blocks,
    ),
    # others
    "GIF, interlaced": (lambda: encoded(Image.fromarray(GREY), "GIF", interlace=1), lambda: as_rgb(GREY)),
    "GIF, animated": (
        lambda: encoded(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.new("L", (40, 24))]),
        lambda: as_rgb(GREY),
    ),
    "GIF, transparent": (
        lambda: encoded(Image.fromarray(GREY), "GIF", transparency=5),
        lambda: as_rgb(np.where(GREY == 5, 255, GREY)),
    ),
    "TIFF, LZW": (lambda: encoded(RGB, "TIFF", compression="tiff_lzw"), lambda: RGB),
    "TIFF, deflated": (lambda: encoded(RGB, "TIFF", compression="tiff_adobe_deflate"), lambda: RGB),
    "TIFF, PackBits": (lambda: encoded(RGB, "TIFF", compression="packbits"), lambda: RGB),
    "TIFF, fax": (
        lambda: encoded(Image.fromarray(GREY > 99), "TIFF", compression="group4"),
        lambda: as_rgb(255 * (GREY > 99)),
    ),
    "TIFF, several pages": (
        lambda: encoded(RGB, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
        lambda: RGB,
    ),
    "TIFF, 16 bit": (lambda: encoded(Image.fromarray(WIDE), "TIFF"), lambda: as_rgb(WIDE / 257)),
    "TIFF, 16 bit big-endian": (
        lambda: encoded(from_bytes("I;16B", WIDE.astype(">u2")), "TIFF"),
        lambda: as_rgb(WIDE / 257),
    ),
    "TIFF, floats": (
        lambda: encoded(Image.fromarray(WIDE.astype(np.float32) / 65535), "TIFF"),
        lambda: as_rgb(WIDE / 257),
    ),
    "TIFF, BigTIFF": (lambda: encoded(RGB, "TIFF", big_tiff=True), lambda: RGB),
    "TIFF, CMYK": (
        lambda: encoded(cmyk(RGBA), "TIFF"),
        lambda: 255 * (1 - RGBA[..., :3] / 255) * (1 - RGBA[..., 3:] / 255),
    ),
    "WebP, lossless with alpha": (
        lambda: encoded(RGBA, "WEBP", lossless=True, exact=True),
        lambda: over_white(RGBA[..., :3], RGBA[..., 3]),
    ),
    "WebP, animated": (
        lambda: encoded(RGB, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (40, 24))]),
        lambda: RGB,
    ),
    "BMP, 1 bit": (lambda: encoded(Image.fromarray(GREY > 99), "BMP"), lambda: as_rgb(255 * (GREY > 99))),
    "BMP, 8 bits": (lambda: encoded(Image.fromarray(GREY), "BMP"), lambda: as_rgb(GREY)),
    "BMP, 24 bits": (lambda: encoded(RGB, "BMP"), lambda: RGB),
    "PPM": (lambda: encoded(RGB, "PPM"), lambda: RGB),
    "PGM in words": (
        lambda: b"P2\n# by hand\n40 24\n255\n" + b" ".join(str(v).encode() for v in GREY.ravel()),
        lambda: as_rgb(GREY),
    ),
    "PGM, 16 bit": (
        lambda: b"P5 40 24 65535\n" + WIDE.astype(">u2").tobytes(),
        lambda: as_rgb(WIDE / 257),
    ),
    "TGA": (lambda: encoded(RGB, "TGA"), lambda: RGB),
    "PCX": (lambda: encoded(RGB, "PCX"), lambda: RGB),
    "SGI": (lambda: encoded(RGB, "SGI"), lambda: RGB),
    "ICO": (lambda: encoded(fine(32, 32), "ICO", sizes=[(32, 32)]), lambda: fine(32, 32)),
    "JPEG 2000, lossless": (lambda: encoded(RGB, "JPEG2000", irreversible=False), lambda: RGB),
    # sizes
    "1 x 1": (lambda: encoded(RGB[:1, :1], "PNG"), lambda: RGB[:1, :1]),
    "1 x 20,000": (lambda: encoded(fine(20_000, 1), "PNG"), lambda: fine(20_000, 1)),
    "20,000 x 1": (lambda: encoded(fine(1, 20_000), "PNG"), lambda: fine(1, 20_000)),
    # colour profiles
    "Display P3 in a PNG": (
        lambda: encoded(RGB, "PNG", icc_profile=rgb_profile(P3)),
        lambda: managed(RGB, P3),
    ),
    "Adobe RGB in a TIFF": (
        lambda: encoded(RGB, "TIFF", icc_profile=rgb_profile(ADOBE)),
        lambda: managed(RGB, ADOBE),
    ),
    "linear light in a PNG": (
        lambda: encoded(RGB, "PNG", icc_profile=rgb_profile(SRGB, 1.0)),
        lambda: managed(RGB, SRGB, 1.0),
    ),
    "Display P3 under alpha": (
        lambda: encoded(RGBA, "PNG", icc_profile=rgb_profile(P3)),
        lambda: over_white(managed(RGBA[..., :3], P3), RGBA[..., 3]),
    ),
    "Display P3 in a palette": (lambda: palette(icc_profile=rgb_profile(P3)), lambda: managed(PALETTE[GREY], P3)),
    "Display P3 in a palette with alpha": (
        lambda: palette(icc_profile=rgb_profile(P3), transparency=bytes(range(256))),
        lambda: over_white(managed(PALETTE[GREY], P3), GREY),
    ),
    "linear grey": (
        lambda: encoded(GREY, "PNG", icc_profile=grey_profile(1.0)),
        lambda: managed_grey(GREY, 1.0),
    ),
    "linear grey under alpha": (
        lambda: encoded(from_bytes("LA", RGBA[..., 2:]), "PNG", icc_profile=grey_profile(1.0)),
        lambda: over_white(managed_grey(RGBA[..., 2], 1.0), RGBA[..., 3]),
    ),
    "16-bit grey with a gamma": (
        lambda: encoded(Image.fromarray(SOFT.astype(np.uint16) * 257), "TIFF", icc_profile=grey_profile(1.8)),
        lambda: managed_grey(SOFT, 461 / 256),
    ),
    "CMYK of a press in a TIFF": (
        lambda: encoded(cmyk(inks()), "TIFF", icc_profile=press_profile()),
        lambda: lab_to_srgb(LABS).reshape(4, 4, 3),
    ),
    "CMYK of a press in a JPEG": (
        lambda: encoded(
            cmyk(inks().repeat(16, axis=0).repeat(16, axis=1)), "JPEG", quality=100, icc_profile=press_profile()
        ),
        lambda: lab_to_srgb(LABS).reshape(4, 4, 3).repeat(16, axis=0).repeat(16, axis=1),
    ),
    "a broken profile": (lambda: encoded(RGB, "PNG", icc_profile=b"no profile at all" * 20), lambda: RGB),
    "a profile cut short": (lambda: encoded(RGB, "PNG", icc_profile=rgb_profile(P3)[:200]), lambda: RGB),
    "a profile of other colours": (lambda: encoded(RGB, "PNG", icc_profile=press_profile()), lambda: RGB),
    "a grey profile in colours": (lambda: encoded(RGB, "PNG", icc_profile=grey_profile(1.0)), lambda: RGB),
    "sRGB's own profile": (
        lambda: encoded(RGB, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        lambda: RGB,
    ),
}
EXACT = {"a broken profile", "a profile cut short", "a profile of other colours", "sRGB's own profile", "mode RGB"}


@pytest.mark.parametrize("case", READABLE)
def test_an_odd_file_gives_the_right_pixels(case: str) -> None:
    """Within 2 grey levels of the reference: of JPEG, which is lossy, on average, of all others at every pixel."""
    make, reference = READABLE[case]
    source = make()
    got, expected = seen(source), reference()
    assert got.shape == expected.shape
    difference = np.abs(got - np.asarray(expected, dtype=np.float64))
    worst = difference.mean() if "JPEG" in case and "2000" not in case else difference.max()
    assert worst <= (0 if case in EXACT else 2), worst
    if isinstance(source, bytes):
        facts, picture = images.sight(source)
        assert (facts.width_px, facts.height_px) == (got.shape[1], got.shape[0])
        if picture.width == got.shape[1]:
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), got)
        else:  # a JPEG at a reduced scale
            smaller = Image.fromarray(got.astype(np.uint8)).resize(picture.size, Image.Resampling.BOX)
            assert np.abs(np.asarray(picture.convert("RGB"), dtype=float) - np.asarray(smaller)).mean() <= 2


def test_there_are_more_than_sixty_kinds() -> None:
    assert len(READABLE) + len(BROKEN) + len(NO_FILES) >= 60


TURNS: dict[int, Callable[[Pixels], Pixels]] = {  # from the upright picture to the stored one
    1: lambda u: u,
    2: lambda u: u[:, ::-1],
    3: lambda u: u[::-1, ::-1],
    4: lambda u: u[::-1],
    5: lambda u: u.swapaxes(0, 1),
    6: lambda u: u.swapaxes(0, 1)[::-1],
    7: lambda u: u.swapaxes(0, 1)[::-1, ::-1],
    8: lambda u: u.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_every_orientation_with_a_profile_is_upright_and_managed(format: str, orientation: int) -> None:
    stored = np.ascontiguousarray(TURNS[orientation](blocks()))
    options = {"quality": 98, "subsampling": 0} if format == "JPEG" else {}
    data = with_exif(stored, format, orientation, icc_profile=rgb_profile(P3), **options)
    assert np.abs(seen(data) - managed(blocks(), P3)).mean() <= 2


def test_a_reduced_decoding_is_colour_managed_too() -> None:
    large = blocks(640, 960)
    data = encoded(large, "JPEG", quality=100, icc_profile=rgb_profile(P3))
    small = Preprocessing(64, 64, "bicubic", (0, 0, 0), (1, 1, 1))
    assert images.decoded_size(data, small)[0] < 960
    expected = images.frame(Image.fromarray(np.rint(managed(large, P3)).astype(np.uint8)), small).astype(int)
    assert np.abs(images.load(data, small).astype(int) - expected).mean() <= 2
    assert np.abs(np.asarray(images.sight(data)[1])[5, 5] - managed(large, P3)[5, 5]).max() <= 3


def test_without_a_profile_nothing_changes() -> None:
    """Bit for bit what Pillow decodes."""
    for format in ("JPEG", "PNG", "WEBP"):
        data = encoded(fine(64, 64), format)
        np.testing.assert_array_equal(seen(data), np.asarray(Image.open(BytesIO(data)).convert("RGB")))


def test_threads_may_share_a_profile() -> None:
    profiles = [rgb_profile(P3), rgb_profile(ADOBE), grey_profile(1.0), rgb_profile(SRGB, 1.5)]
    files = [encoded(GREY if i == 2 else RGB, "PNG", icc_profile=p) for i, p in enumerate(profiles)]
    alone = [seen(f) for f in files]
    images._profiles.clear()
    with ThreadPoolExecutor(8) as pool:
        for i, got in enumerate(pool.map(seen, files * 25)):
            np.testing.assert_array_equal(got, alone[i % 4])


def test_few_transforms_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "PROFILES", 3)
    for i in range(6):
        seen(encoded(RGB, "PNG", icc_profile=rgb_profile(P3, 1.5 + i / 8)))
    assert len(images._profiles) == 3


def test_a_profile_of_many_bytes_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(RGB, "PNG", icc_profile=rgb_profile(P3))
    monkeypatch.setattr(images, "MAX_PROFILE_BYTES", 100)
    np.testing.assert_array_equal(seen(data), RGB)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
@pytest.mark.parametrize("orientation", [1, 6])
def test_avif_is_read(orientation: int) -> None:
    data = with_exif(np.ascontiguousarray(TURNS[orientation](blocks(64, 96))), "AVIF", orientation, quality=100)
    assert images.look(data).format == "AVIF"
    assert np.abs(seen(data) - blocks(64, 96)).mean() <= 2


def test_heic_is_read_by_its_extra() -> None:
    """Turned by its own boxes, if at all, as the format demands: what EXIF says of it is not for the reader."""
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = encoded(blocks(64, 96), "HEIF", quality=95)
    assert images.look(data).format == "HEIF"
    assert np.abs(seen(data) - blocks(64, 96)).mean() <= 2


HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
AVIF_HEAD = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"


def test_without_the_extra_a_heic_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"topwork\[heif\]") as caught:
        images.look(HEIC_HEAD + bytes(100))
    assert caught.value.kind == "needs pillow-heif"


def test_without_avif_in_pillow_a_file_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ImageError, match="pillow") as caught:
        images.look(AVIF_HEAD + bytes(100))
    assert caught.value.kind == "needs a newer Pillow"


# -------------------------------------------------------------------------------------------- what cannot be readable


def circular_tiff() -> bytes:
    """A directory of no entries whose successor is itself."""
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 0) + struct.pack("<I", 8) + bytes(8)


GOOD_PNG, GOOD_JPEG = encoded(fine(64, 64), "PNG"), encoded(fine(64, 64), "JPEG")
BROKEN: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "nothing but a JPEG's magic": (lambda: b"\xff\xd8\xff", {"not an image", "truncated", "damaged"}),
    "nothing but a PNG's magic": (lambda: GOOD_PNG[:8], {"not an image", "truncated", "damaged"}),
    "nothing but a GIF's magic": (lambda: b"GIF89a", {"not an image", "damaged"}),
    "nothing but a TIFF's magic": (lambda: b"II*\0\x08\0\0\0", {"not an image", "damaged"}),
    "nothing but a WebP's magic": (lambda: b"RIFF\x10\0\0\0WEBPVP8 ", {"not an image", "damaged"}),
    "nothing but a BMP's magic": (lambda: b"BM", {"not an image", "damaged"}),
    "nothing but a HEIC's head": (lambda: HEIC_HEAD, {"not an image", "damaged", "truncated", "needs pillow-heif"}),
    "nothing but an AVIF's head": (lambda: AVIF_HEAD, {"not an image", "damaged", "truncated", "needs a newer Pillow"}),
    "one byte": (lambda: b"x", {"not an image"}),
    "zeros": (lambda: bytes(5000), {"not an image", "damaged"}),
    "text": (lambda: b"a,b\n1,2\n" * 50, {"not an image"}),
    "a web page": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", {"not an image"}),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", {"not an image"}),
    "PDF": (lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", {"not an image"}),
    "PostScript": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        {"not an image"},
    ),
    "a film": (lambda: b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(500), {"not an image"}),
    "a ZIP": (lambda: b"PK\3\4" + bytes(200), {"not an image"}),
    "a PNG with a wrong magic": (lambda: b"\x89PNF" + GOOD_PNG[4:], {"not an image"}),
    "a PNG whose line ends were changed": (
        lambda: GOOD_PNG.replace(b"\r\n", b"\n"),
        {"not an image", "damaged", "truncated"},
    ),
    "a PNG with a pixel's bit flipped": (
        lambda: patched(GOOD_PNG, 3000, bytes([GOOD_PNG[3000] ^ 1])),
        {"truncated"},
    ),
    "a PNG without its end": (lambda: GOOD_PNG[:-12], {"truncated"}),
    "a PNG without pixels": (lambda: GOOD_PNG[:33] + GOOD_PNG[-12:], {"truncated", "damaged"}),
    "a PNG whose pixels are no stream": (
        lambda: GOOD_PNG[:33] + chunk(b"IDAT", b"rubbish" * 50) + GOOD_PNG[-12:],
        {"truncated", "damaged"},
    ),
    "a PNG with too few rows": (lambda: png(40, 240, 8, 2, [r.tobytes() for r in RGB]), {"truncated", "damaged"}),
    "a PNG of no width": (lambda: png_of_size(0, 9), {"not an image", "damaged", "empty", "truncated"}),
    "a PNG of an unknown depth": (lambda: png(8, 8, 3, 2, [bytes(24)] * 8), {"not an image", "damaged", "truncated"}),
    "a PNG bomb": (lambda: png_of_size(60_000, 60_000), {"too many pixels"}),
    "a PNG bomb just over the limit": (lambda: png_of_size(9_460, 9_460), {"too many pixels"}),
    "a JPEG bomb": (lambda: jpeg_of_size(65_000, 65_000), {"too many pixels"}),
    "a GIF bomb": (
        lambda: b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(40),
        {"too many pixels", "not an image", "damaged"},
    ),
    "a BMP bomb": (
        lambda: patched(encoded(RGB, "BMP"), 18, struct.pack("<ii", 50_000, 50_000)),
        {"too many pixels"},
    ),
    "a TIFF bomb": (
        lambda: encoded(RGB, "TIFF").replace(
            struct.pack("<HHII", 256, 4, 1, 40), struct.pack("<HHII", 256, 4, 1, 2**31 - 1)
        ),
        {"too many pixels", "damaged", "not an image", "truncated"},
    ),
    "a compressed text of a PNG that would be huge": (
        lambda: png(
            40, 24, 8, 2, [r.tobytes() for r in RGB], extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**27)))
        ),
        {"damaged", "truncated", "not an image"},
    ),
    "a JPEG without its end": (lambda: GOOD_JPEG[:-2], {"truncated"}),
    "a JPEG without tables": (
        lambda: GOOD_JPEG.replace(b"\xff\xdb", b"\xff\xfe"),
        {"damaged", "truncated"},
    ),
    "a JPEG of an unknown kind": (
        lambda: GOOD_JPEG.replace(b"\xff\xc0", b"\xff\xcb", 1),
        {"damaged", "truncated", "not an image"},
    ),
    "a GIF without a picture": (lambda: b"GIF89a\x09\0\x09\0\0\0\0;", {"not an image", "damaged", "truncated"}),
    "a GIF that ends in its picture": (lambda: encoded(Image.fromarray(GREY), "GIF")[:900], {"truncated", "damaged"}),
    "a TIFF whose directory is beyond its end": (
        lambda: b"II*\0" + struct.pack("<I", 10**9) + bytes(64),
        {"not an image", "damaged", "truncated"},
    ),
    "a TIFF whose directory is itself the next": (circular_tiff, {"not an image", "damaged", "truncated"}),
    "a TIFF whose strips are missing": (
        lambda: encoded(fine(64, 64), "TIFF")[:4000],
        {"truncated", "damaged", "not an image"},
    ),
    "a BMP cut short": (lambda: encoded(RGB, "BMP")[:999], {"truncated", "damaged"}),
    "a PPM cut short": (lambda: encoded(RGB, "PPM")[:999], {"truncated", "damaged"}),
    "a PPM of words": (lambda: b"P3 9 9 255 one two three", {"truncated", "damaged", "not an image"}),
    "a WebP with a wrong length": (
        lambda: patched(encoded(RGB, "WEBP"), 4, b"\xff\xff\0\0"),
        {"damaged", "not an image"},
    ),
}


SUMMED = {"a PNG with a pixel's bit flipped", "a PNG without its end"}
"""Only looking sums up the pixels and looks for the end; decoding alone gives a picture."""


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_told_by_its_kind(case: str) -> None:
    """The same by looking, by looking closely and by loading, so that fit, predict and a server say the same."""
    make, kinds = BROKEN[case]
    data = make()
    assert kinds <= KINDS
    for way in (lambda: images.sight(data), lambda: images.load(data, NETWORK)):
        with pytest.raises(ImageError) as caught:
            images.look(data) if case in SUMMED else way()
        assert caught.value.kind in kinds, caught.value
        assert caught.value.detail


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000", "AVIF", "progressive"]
)
def test_a_file_cut_anywhere_is_an_error_or_whole(format: str) -> None:
    """At forty places; what still opens shows the very same picture (a trailer alone was missing)."""
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    options = {"progressive": True} if format == "progressive" else {}
    whole = encoded(fine(40, 40), "JPEG" if options else format, **options)
    right = seen(whole)
    for share in np.linspace(0, 1, 40, endpoint=False):
        cut = whole[: int(share * len(whole))]
        try:
            images.sight(cut)
        except ImageError as error:
            assert error.kind in KINDS
        else:
            np.testing.assert_array_equal(seen(cut), right)


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder named x.jpg": (lambda p: p.mkdir(), "unreadable"),
    "a link to nothing": (lambda p: p.symlink_to(p.with_name("nothing")), "unreadable"),
    "a link to itself": (lambda p: p.symlink_to(p), "unreadable"),
    "a device": (lambda p: p.symlink_to("/dev/zero"), "unreadable"),
    "0 bytes": (lambda p: p.touch(), "empty"),
    "nothing": (lambda p: None, "unreadable"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("case", NO_FILES)
def test_what_is_no_file_is_told(tmp_path: Path, case: str) -> None:
    make, kind = NO_FILES[case]
    make(tmp_path / "x.jpg")
    with pytest.raises(ImageError) as caught:
        images.load(tmp_path / "x.jpg", NETWORK)
    assert caught.value.kind == kind


def test_the_name_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(encoded(RGB, "PNG"))
    np.testing.assert_array_equal(seen(tmp_path / "x.jpg"), RGB)


def test_no_odd_file_ends_a_reading(tmp_path: Path) -> None:
    """All of them in one folder: the good ones are examples with facts and sketches, the others faults."""
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "photos" / label / f"{i}.png").write_bytes(encoded(np.roll(RGB, ord(label) + i, 0), "PNG"))
    for i, case in enumerate(READABLE):
        made = READABLE[case][0]()
        if isinstance(made, bytes):
            (tmp_path / "photos" / "a" / f"good {i}.jpg").write_bytes(made)
    for i, case in enumerate(BROKEN):
        (tmp_path / "photos" / "b" / f"broken {i}.jpg").write_bytes(BROKEN[case][0]())
    store = Sketches(tmp_path / "sketches")
    found = door.read(tmp_path / "photos", sketches=store)
    assert {e.path for e in found.examples} == {p for p in listing(tmp_path / "photos") if "broken" not in p}
    assert {f.path for f in found.faults} == {p for p in listing(tmp_path / "photos") if "broken" in p}
    assert not store.get([e.digest for e in found.examples])[1].any()


def listing(root: Path) -> list[str]:
    return [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]


# ------------------------------------------------------------------------------------------------------ what EXIF says


def test_files_say_when_and_by_what_they_were_taken() -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0132] = "ACME", "ACME Cam 3", "2021:01:01 00:00:00"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    for format in ("JPEG", "PNG", "WEBP"):
        facts = images.look(encoded(RGB, format, exif=exif))
        assert (facts.taken, facts.camera, facts.frames) == ("2024-05-06T07:08:09", "ACME Cam 3", 1)


@pytest.mark.parametrize(
    "taken", ["0000:00:00 00:00:00", "    :  :     :  :  ", "yesterday", "", "2024:13:40 99:99:99"]
)
def test_a_time_that_is_none_is_not_stated(taken: str) -> None:
    exif = Image.Exif()
    exif[0x0132], exif[0x010F] = taken, "Acme\0\0"
    facts = images.look(encoded(RGB, "JPEG", exif=exif))
    assert (facts.taken, facts.camera) == ("", "Acme")


@pytest.mark.parametrize(("format", "frames"), [("GIF", 3), ("TIFF", 3), ("WEBP", 3), ("PNG", 3), ("JPEG", 1)])
def test_files_say_how_many_pictures_they_hold(format: str, frames: int) -> None:
    more = [Image.fromarray(np.roll(GREY, i, 0)) for i in (3, 9)]
    options = {"save_all": True, "append_images": more} if frames > 1 else {}
    assert images.look(encoded(Image.fromarray(GREY), format, **options)).frames == frames


# ------------------------------------------------------------------------------------------------------------ fuzzing

SEED = 20_240_506


def seeds() -> dict[str, bytes]:
    small = fine(24, 24)
    found = {
        "JPEG": with_exif(small, "JPEG", 6, icc_profile=rgb_profile(P3)),
        "progressive": encoded(small, "JPEG", progressive=True),
        "CMYK": encoded(cmyk(fine(24, 24, 4)), "JPEG", icc_profile=press_profile()),
        "PNG": with_exif(small, "PNG", 3, icc_profile=rgb_profile(ADOBE)),
        "palette": palette(transparency=bytes(range(256))),
        "interlaced": adam7(small),
        "GIF": READABLE["GIF, animated"][0](),
        "TIFF": with_exif(small, "TIFF", 5, compression="tiff_lzw"),
        "pages": READABLE["TIFF, several pages"][0](),
        "WEBP": with_exif(small, "WEBP", 8, icc_profile=rgb_profile(P3)),
        "BMP": encoded(small, "BMP"),
        "PPM": encoded(small, "PPM"),
        "JPEG2000": encoded(small, "JPEG2000"),
        "ICO": encoded(fine(32, 32), "ICO", sizes=[(32, 32)]),
    }
    if features.check("avif"):
        found["AVIF"] = encoded(small, "AVIF")
    assert all(isinstance(data, bytes) for data in found.values())
    return found  # type: ignore[return-value]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flipped bits, overwritten numbers, cuts, doubled and removed stretches; a few at once."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = (
            rng.randrange(max(1, len(changed))) if rng.random() < 0.5 else rng.randrange(min(200, max(1, len(changed))))
        )
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\1"])
            case 2:
                del changed[at:]
            case 3:
                changed[at:at] = changed[at : at + rng.randrange(1, 64)]
            case 4:
                del changed[at : at + rng.randrange(1, 64)]
            case _:
                changed[at : at + 1] = bytes([changed[at] ^ (1 << rng.randrange(8))]) if at < len(changed) else b""
    return bytes(changed)


@pytest.fixture
def no_hang() -> Iterator[None]:
    """A minute for what takes seconds: a decoder that never comes back fails its test instead of stopping all."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def give_up(*_: object) -> None:
        raise RuntimeError("a decoder did not come back")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fuzz(kind: str, rounds: int, seed: int) -> None:
    rng, whole = random.Random(f"{seed} {kind}"), seeds()[kind]
    for number in range(rounds):
        data = mutated(whole, rng)
        for way in (images.look, images.sight, lambda d: images.load(d, NETWORK)):
            try:
                got: Any = way(data)
            except ImageError as error:
                assert error.kind in KINDS, (kind, number)
                assert error.detail
            else:
                if isinstance(got, np.ndarray):
                    assert (got.shape, got.dtype) == ((32, 32, 3), np.uint8)


@pytest.mark.parametrize("kind", seeds())
def test_a_mutated_file_gives_pixels_or_an_image_error(kind: str, no_hang: None) -> None:
    fuzz(kind, 25, SEED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", seeds())
def test_many_mutated_files_give_pixels_or_image_errors(kind: str, no_hang: None) -> None:
    fuzz(kind, 600, SEED + 1)


def test_the_chunks_of_a_png_are_judged_as_pillows_verify_judges_them() -> None:
    """Oracle: Pillow's own, on files cut anywhere and with bytes changed anywhere behind the signature (seed 0)."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8))
    whole = []
    for picture in (*(colours.convert(mode) for mode in ("RGB", "L", "P", "RGBA", "1", "LA")),
                    Image.fromarray(rng.integers(0, 60000, (20, 30)).astype(np.uint16))):  # fmt: skip
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        whole.append(buffer.getvalue())
    verdicts = []
    for k in range(1400):
        data = bytearray(whole[k % len(whole)])
        if k % 3 == 0:
            data = data[: rng.integers(8, len(data))]
        for _ in range(k % 3):
            data[rng.integers(8, len(data))] = rng.integers(256)
        try:
            opened = images._open(bytes(data))
        except ImageError:
            continue
        try:
            opened.verify()
        except Exception:  # Pillow raises a dozen types
            broken = True
        else:
            broken = False
        assert bool(images._png_wrong(bytes(data))) == broken, k
        verdicts.append(broken)
    assert 200 < sum(verdicts) < len(verdicts) > 400


# ------------------------------------------------------------------------------- PNG streams that are inflated at once


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def stream(data: bytes) -> bytes:
    return b"".join(body for kind, body in chunks(data) if kind == b"IDAT")


def with_stream(data: bytes, pieces: list[bytes]) -> bytes:
    """The same PNG with other chunks of pixels, all check sums of chunks right, and a comment behind the pixels."""
    others = list(chunks(data))
    first = [kind for kind, _ in others].index(b"IDAT")
    before = [chunk(kind, body) for kind, body in others[:first]]
    after = [chunk(kind, body) for kind, body in others[first:] if kind != b"IDAT"]
    pixels = [chunk(b"IDAT", piece) for piece in pieces]
    return b"".join([data[:8], *before, *pixels, chunk(b"tEXt", b"Comment\0behind"), *after])


def smooth() -> bytes:
    """A photograph's kind of rows: every filter is of use, and they are longer than a block that deflate stores."""
    x = np.add.outer(np.arange(150), np.arange(170))[..., None] + np.arange(3) * 40
    return encoded(((x + fine(150, 170) % 5) % 256).astype(np.uint8), "PNG")


@lru_cache(maxsize=1)
def pngs() -> dict[str, bytes]:
    made = {case: way() for case, (way, _) in READABLE.items() if case.startswith("PNG")}
    found = {case: data for case, data in made.items() if isinstance(data, bytes) and b"acTL" not in data}
    return {**found, "interlaced": adam7(fine(19, 21)), "one pixel": encoded(fine(1, 1), "PNG"), "smooth": smooth()}


@pytest.mark.parametrize("case", pngs())
@pytest.mark.parametrize("size", [None, 7])
def test_a_png_inflated_at_once_is_what_pillow_makes_of_it(case: str, size: int | None) -> None:
    """Pixels, mode and what stands behind the pixels; in one chunk, and in many with an empty one among them."""
    pytest.importorskip("isal")
    data = pngs()[case]
    if size is not None:
        whole = stream(data)
        data = with_stream(data, [b"", *(whole[i : i + size] for i in range(0, len(whole), size)), b""])
    opened, bare = images._open(data), Image.open(BytesIO(data))
    assert images._inflated(opened, data)  # type: ignore[arg-type]
    opened.load()
    bare.load()
    assert (opened.mode, opened.size, opened.info) == (bare.mode, bare.size, bare.info)
    assert opened.tobytes() == bare.tobytes()
    assert opened.convert("RGBA").tobytes() == bare.convert("RGBA").tobytes()  # a palette's colours, too


def odd_streams(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """Ends too early or too late, a check sum that is wrong, none, something behind it; other bytes anywhere."""
    whole = stream(data)
    rows = zlib.decompress(whole)
    yield from (zlib.compress(rows[:-1]), zlib.compress(rows[: len(rows) // 2]), zlib.compress(rows + b"\0"))
    yield from (zlib.compress(rows + rows), zlib.compress(rows, 0), zlib.compress(b"\7" + rows[1:]), b"", whole[:1])
    yield from (whole[:-1], whole[:-4], whole[:-5], whole[:-4] + b"wrng", whole + b"more", whole + whole, rows)
    yield from (mutated(whole, rng) for _ in range(25))


@pytest.mark.parametrize("case", pngs())
def test_an_odd_stream_is_judged_as_without_inflating_at_once(
    case: str, monkeypatch: pytest.MonkeyPatch, no_hang: None
) -> None:
    """Oracle: Pillow's own decoding row by row, told no more than that the chunks are whole."""
    pytest.importorskip("isal")

    def verdict(data: bytes) -> tuple[object, ...]:
        try:
            facts, image = images.sight(data)
        except ImageError as error:
            return error.kind, error.detail
        return facts, image.mode, image.tobytes()

    verdicts, rng = set(), random.Random(f"{SEED} {case}")
    for number, odd in enumerate(odd_streams(pngs()[case], rng)):
        at = rng.randrange(len(odd) + 1)
        data = with_stream(pngs()[case], [odd[:at], odd[at:]])
        ours = verdict(data)
        with monkeypatch.context() as patch:
            patch.setattr(images, "_fast", None)
            assert verdict(data) == ours, number
        verdicts.add(str(ours[0]))
    assert {"truncated", "damaged"} <= verdicts
    assert len(verdicts) > 2


def test_rows_of_many_bytes_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = smooth()
    monkeypatch.setattr(images, "INFLATED_BYTES", 1000)
    assert not images._inflated(images._open(data), data)  # type: ignore[arg-type]
    assert (seen(data) == np.asarray(Image.open(BytesIO(data)))).all()


def test_a_png_of_two_headers_is_left_to_pillow() -> None:
    whole = encoded(fine(8, 8), "PNG")
    other = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    data = whole[:8] + other + whole[8:]
    assert not images._inflated(images._open(data), data)  # type: ignore[arg-type]
    assert (seen(data) == fine(8, 8)).all()


def test_a_stream_of_far_more_rows_than_the_header_says_takes_no_memory() -> None:
    """No more than the rows that the header says are ever inflated."""
    pytest.importorskip("isal")
    whole = encoded(fine(8, 8), "PNG")
    bomb = with_stream(whole, [zlib.compress(zlib.decompress(stream(whole)) + bytes(20_000_000))])
    tracemalloc.start()
    try:
        assert (seen(bomb) == fine(8, 8)).all()
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
