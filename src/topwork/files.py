"""How does a file get to its place so that whoever reads finds it whole?"""

from __future__ import annotations

import uuid
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Write a file aside and rename it: whoever reads finds the old one or the new one, whole."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
