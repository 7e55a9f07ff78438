"""What does topwork do? Shown on data that comes with a dependency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from topwork.errors import UsageError


def write_digits(folder: Path) -> int:
    """Write scikit-learn's 1797 handwritten digits (8 x 8 px, grey) as PNG files, a folder per digit.

    Returns how many. Files that are there already are kept as they are; a folder that holds anything
    else is refused.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 (1.6 s to import)

    digits = load_digits()
    names = {str(d) for d in range(10)}
    if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - names):
        raise UsageError(f"{folder}: holds something else; name another folder for the demo's images")
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{i:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8)).save(path)
    return len(digits.images)
