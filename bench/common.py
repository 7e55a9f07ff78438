"""What every bench shares: where the sets are, the machine's description, the last line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
SETS = SHARED / "data"
WEIGHTS = SHARED / "weights"
HELD_OUT = 3  # of 10 folds


def arguments(description: str, **options: int | str) -> argparse.Namespace:
    """--quick, and an option --NAME for each of `options`, with its default; "" stands for none."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="under 60 s on 2 cores")
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"(default {default or 'none'})")
    return parser.parse_args()


def need_sets() -> None:
    if not SETS.is_dir():
        raise SystemExit(f"{SETS}: the labelled sets that this bench runs on are not here")


def machine() -> dict[str, object]:
    return {
        "cpu": next(
            (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
        ),
        "cores": os.cpu_count(),
        **{name: _version(name) for name in ("topwork", "torch", "timm", "numpy", "pillow", "isal")},
    }


Bound = tuple[str, float, float, bool]
"""What is bounded, its figure, the bound, and whether it is kept."""


def finish(figures: dict[str, object], bounds: Sequence[Bound] = ()) -> None:
    """The last line; before it the bounds that are missed, with which the bench ends as failed (status 1)."""
    missed = [name for name, *_, kept in bounds if not kept]
    for name, value, bound, kept in bounds:
        if not kept:
            print(f"missed: {name}: {value:.3g}, bound {bound:g}")
    print(json.dumps({**figures, **({"missed": missed} if bounds else {}), "machine": machine()}))
    if missed:
        raise SystemExit(1)


def split(source: Path, target: Path) -> None:
    """train/ (70%) and test/ folders of links, stratified; a published split is put together first, so that all
    sets are alike."""
    import numpy as np

    from topwork import data, head

    examples = data.read(source)
    labels = np.array([e.label for e in examples.examples])
    _, groups = np.unique([e.digest for e in examples.examples], return_inverse=True)
    fold = head.folds(labels, groups, 0, 10)
    for example, part in zip(examples.examples, fold < HELD_OUT, strict=True):
        path = target / ("test" if part else "train") / examples.classes[example.label] / example.path.replace("/", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source / example.path)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
