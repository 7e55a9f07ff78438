"""Was this computed before, from the very same inputs?

Arrays that cost seconds and depend on nothing but their inputs are kept under a name made of those
inputs, so that the same question is never answered twice. Deleting the folder costs only time.
"""

from __future__ import annotations

import threading
import uuid
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 256 * 2**20
"""Results above this size are computed anew: with that many images, writing and reading would be the cost."""

Input = str | NDArray[Any]
Arrays = dict[str, NDArray[Any]]


_reading = threading.Lock()
"""One file at a time: numpy parses headers with `ast`, which in CPython 3.11 now and then ends with a SystemError
("recursion depth mismatch") where several threads are at it."""


def remembered(folder: Path, inputs: Sequence[Input], compute: Callable[[], Arrays]) -> Arrays:
    """The arrays that `compute` gives, read back where the same inputs were seen before.

    `inputs` must hold everything that the result depends on, the version of its formula included. A file
    that cannot be read, or not be written (a full disk, a read-only folder), only costs the time.
    No arrays at all mean that there was no answer, which is not kept.
    """
    path = folder / f"{name(inputs)}.npz"
    try:
        with _reading, path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return dict(kept)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        found = compute()
    if found and sum(a.nbytes for a in found.values()) <= MAX_BYTES:
        _keep(path, found)
    return found


def arrays(record: object) -> Arrays:
    """The fields of a dataclass as arrays; numbers become arrays without a dimension."""
    return {name: np.asarray(value) for name, value in vars(record).items()}


def _keep(path: Path, found: Arrays) -> None:
    aside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(aside, allow_pickle=False, **found)
        aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink()


def name(inputs: Sequence[Input]) -> str:
    """What these inputs are called: 128 bits."""
    hasher = blake2b(digest_size=16)
    for part in inputs:
        if isinstance(part, str):
            hasher.update(f"text {len(part.encode())}\n{part}".encode())
        else:
            hasher.update(f"array {part.dtype.str} {part.shape}\n".encode())
            hasher.update(np.ascontiguousarray(part).tobytes())
    return hasher.hexdigest()
