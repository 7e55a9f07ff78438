"""Is there a copy of this photograph at the size it is decoded to, so that it need not be decoded again?

A large JPEG takes tens of milliseconds to decode even at reduced scale, and training needs every image several times.
Where decoding takes longer than reading, what `images.decode` gave is kept on disk, uncompressed, under the content of
the file, the decoded size and the decoder's version: the pixels are the very same with it and without it. Every
lossless compression at hand took at least twice as long to read and ten times as long to write (bench/decode.py).
Deleting the folder costs only time.
"""

from __future__ import annotations

import os
import shutil
import struct
import threading
import time
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import PIL
from PIL import Image
from PIL.features import version

from topwork import files, images
from topwork.errors import ImageError
from topwork.records import Preprocessing
from topwork.stores import Store

RATE = 400e6
"""Bytes per second at which thumbnails are believed to be written, and read and checked: a SATA solid-state disk. What
the system still holds in memory comes three times faster (bench/decode.py), but nobody knows whether it does."""

FILE_S = 0.001
"""Seconds that writing or reading a file is believed to take however small it is. A digit of 28 px is decoded in 0.06
ms; its thumbnail took 0.4 ms to write."""

USES = 2
"""How often a view's image is needed again, at least: a training sees the plain view and three others."""

DISK_SHARE = 0.1
"""Of the disk space that is free or taken by thumbnails, what they may take."""

_FORMAT = "2"  # of the file, and of what images.decode makes of a file's bytes
_HEADER = struct.Struct("<4sBIII")  # mark, channels, width, height, CRC-32 of these, the digest and the pixels
_MARK = b"twt" + _FORMAT.encode()
_MODES = {1: "L", 3: "RGB"}


class Thumbnails:
    """The decoded images in one folder. Threads may share it, and processes may share the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        self._digests = {name.partition("-")[0] for name in self._names}
        # Of files seen by this object whose thumbnail is there: bytes and time of change, and the decoded size.
        self._seen: dict[tuple[str, str, int], tuple[tuple[int, int], tuple[int, int]]] = {}
        self._lock = threading.Lock()
        self._taken: int | None = None  # bytes on disk; counted when the first is written
        self._oldest: list[tuple[int, Path, int]] = []  # those from before: last use, path, bytes; the oldest last

    def decode(self, data: bytes, digest: str, preprocessing: Preprocessing, *, uses: int = 0) -> Image.Image:
        """What `images.decode` gives for these bytes, of this digest: read back where it was kept.

        Kept now where that saves time if it is needed `uses` more times. Raises ImageError.
        """
        size = None
        if digest in self._digests:
            size = images.decoded_size(data, preprocessing)
            image = self._read(digest, size)
            if image is not None:
                return image
        began = time.thread_time()  # of this thread alone: others share the cores
        image = images.decode(data, preprocessing)
        if repays(time.thread_time() - began, image.width * image.height * len(image.getbands()), uses):
            self._keep(digest, size or images.decoded_size(data, preprocessing), image)
        return image

    def decode_file(
        self, store: Store, path: str, digest: str, preprocessing: Preprocessing, *, uses: int = 0
    ) -> Image.Image:
        """The same for a stored image, which is not read where its thumbnail is there and it was not touched since.

        Raises ImageError; "changed" where the file's content is no longer that of the digest.
        """
        state, key = store.state(path), (store.where(path), digest, preprocessing.resize_px)
        before = self._seen.get(key)
        if before is not None and before[0] == state:
            image = self._read(digest, before[1])
            if image is not None:
                return image
        data = store.read(path)
        if images.digest(data) != digest:
            raise ImageError("changed", "its content is not what it was when topwork read the folder")
        image = self.decode(data, digest, preprocessing, uses=uses)
        if state is not None and digest in self._digests:
            self._seen[key] = state, images.decoded_size(data, preprocessing)
        return image

    def _read(self, digest: str, size: tuple[int, int]) -> Image.Image | None:
        """A kept image, or None where there is none or it is damaged."""
        path = self._path(digest, size)
        if path.name not in self._names:
            return None
        try:
            with path.open("rb") as file:
                mark, channels, width, height, check = _HEADER.unpack(file.read(_HEADER.size))
                pixels = file.read()
            with suppress(OSError):  # a folder that may only be read serves all the same
                os.utime(path)  # when it was last used: the oldest go first
        except (OSError, struct.error):
            return None
        if mark != _MARK or check != _check(digest, channels, (width, height), pixels):
            return None
        return Image.frombytes(_MODES[channels], (width, height), pixels)

    def _keep(self, digest: str, size: tuple[int, int], image: Image.Image) -> None:
        path, pixels = self._path(digest, size), image.tobytes()
        channels = len(image.getbands())
        header = _HEADER.pack(_MARK, channels, *image.size, _check(digest, channels, image.size, pixels))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._has_room(len(header) + len(pixels)):
                files.write(path, header + pixels)
                self._names.add(path.name)
                self._digests.add(digest)
        except OSError:  # a full disk or a read-only folder costs only the time
            pass

    def _has_room(self, size: int) -> bool:
        """Take note of so many bytes more, if they may be taken; what is from earlier runs and oldest goes for them.

        What this object has written or read stays: on a set that is too large, each would drive out the next.
        """
        with self._lock:
            if self._taken is None:
                found = [(p, p.stat()) for p in self.folder.parent.rglob("*") if p.is_file()]
                self._oldest = sorted(((s.st_mtime_ns, p, s.st_size) for p, s in found), reverse=True)
                self._taken = sum(s.st_size for _, s in found)
            most = DISK_SHARE * (shutil.disk_usage(self.folder).free + self._taken)
            while self._taken + size > most and self._oldest:
                used, path, freed = self._oldest.pop()
                state = _state(path)
                if state is not None and state[1] == used:  # not used since, by whomever
                    path.unlink(missing_ok=True)
                    self._names.discard(path.name)
                    self._taken -= freed
            if self._taken + size > most:
                return False
            self._taken += size
            return True

    def _path(self, digest: str, size: tuple[int, int]) -> Path:
        return self.folder / f"{digest}-{size[0]}x{size[1]}"


def under(cache: Path) -> Thumbnails:
    """Those of a cache that these versions of the decoders made: one object for all in this process who ask."""
    return _under(cache.absolute())


@lru_cache(maxsize=8)
def _under(cache: Path) -> Thumbnails:
    libraries = [
        PIL.__version__,
        *(version(name) for name in ("libjpeg_turbo", "jpg", "jpg_2000", "webp", "littlecms2")),
    ]
    return Thumbnails(cache / "thumbnails" / images.digest(f"{_FORMAT} {libraries}".encode())[:12])


def repays(
    seconds: float,  # of decoding once
    size: int,  # bytes as kept
    uses: int,  # still to come
) -> bool:
    """Whether keeping a decoded image saves time: what later uses save is more than what writing costs."""
    once = FILE_S + size / RATE
    return uses * (seconds - once) > once


def _check(digest: str, channels: int, size: tuple[int, int], pixels: bytes) -> int:
    return zlib.crc32(pixels, zlib.crc32(f"{digest} {channels} {size} {len(pixels)}".encode()))


def _state(path: Path) -> tuple[int, int] | None:
    """Bytes and time of the last change, in ns; None where there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns
