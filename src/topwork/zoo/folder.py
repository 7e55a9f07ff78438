"""Which file of a user's folder holds a backbone's weights, and what is stated beside it?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import msgspec

from topwork.errors import UsageError
from topwork.records import Preprocessing
from topwork.zoo.names import is_exactly, owner

MIN_SIZE_PX, MAX_SIZE_PX = 32, 1024
"""Input sizes that are accepted: below 32 px most networks have no map left, above 1024 no memory."""

FIELDS = tuple(f.name for f in fields(Preprocessing))
CONFIG = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
"""What timm's `pretrained_cfg` says of the preprocessing."""


def owned(folder: Path) -> dict[str, list[Path]]:
    """Files of weights in a folder, by the backbone that each one's name names (names.owner)."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        name = owner(path.name) if path.is_file() and not path.name.startswith(".") else None
        if name:
            found.setdefault(name, []).append(path)
    return found


def chosen(weights: Path | None, name: str) -> Path | None:
    """The file that holds a backbone's weights; None where a folder has none for it, or nothing was named.

    A file that was named is taken as it is. Of several in a folder, the one called just by the backbone's name
    is meant. Raises UsageError naming the files where there is no such one.
    """
    if weights is None or not weights.is_dir():
        return weights
    files = owned(weights).get(name, [])
    exact = [f for f in files if is_exactly(f.name, name)]
    best = exact or files
    if len(best) > 1:
        raise UsageError(
            f"--weights {weights}: {' and '.join(f.name for f in best)} are both for {name}; expected one:"
            f" call it {name}{best[0].suffix}, or name the file itself"
        )
    return best[0] if best else None


def stated(weights: Path, library: Preprocessing) -> Preprocessing:
    """The preprocessing for a file of weights: what a JSON file beside it states, else as its library says.

    WEIGHTS.json (the file's name with another suffix) holds any of Preprocessing's fields, or timm's
    `pretrained_cfg`. Raises UsageError naming the field, what came and what was expected.
    """
    path = weights.with_suffix(".json")
    if not path.is_file():
        return library
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: expected a JSON object that states the preprocessing: {error}") from error
    if not isinstance(facts, dict):
        raise UsageError(f"{path}: expected a JSON object with fields of the preprocessing, not {facts!r:.40}")
    config = facts.get("pretrained_cfg")
    try:
        if isinstance(config, dict):
            return from_config(config, library)
        return _from_fields(facts, library)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def from_config(config: Mapping[str, Any], library: Preprocessing | None = None) -> Preprocessing:
    """timm's configuration as a record; what it lacks is as in `library`.

    Raises ValueError where it states what topwork does not do.
    """
    facts: dict[str, Any] = asdict(library) if library else {}
    given = {k: config[k] for k in CONFIG if config.get(k) is not None}
    if "input_size" in given:
        size = given["input_size"]
        if not isinstance(size, list | tuple) or len(size) != 3 or size[0] != 3 or size[1] != size[2]:
            raise ValueError(f"input_size: expected [3, side, side], got {size!r}")
        facts |= _sizes(size[1], library)
    if "crop_pct" in given:
        share = given["crop_pct"]
        if not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"crop_pct: expected a share above 0 and up to 1, got {share!r}")
        facts["resize_px"] = int(facts["crop_px"] / share)  # as timm rounds it
    if "crop_mode" in given:
        if given["crop_mode"] not in {"center", "squash"}:
            raise ValueError(f"crop_mode: expected center or squash, got {given['crop_mode']!r}")
        facts["squash"] = given["crop_mode"] == "squash"
    return checked(facts | {k: given[k] for k in ("interpolation", "mean", "std") if k in given})


def checked(facts: Mapping[str, Any]) -> Preprocessing:
    """Fields as a record. Raises ValueError naming the first that is wrong."""
    try:
        preprocessing = msgspec.convert(dict(facts), Preprocessing)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    p = preprocessing
    if not MIN_SIZE_PX <= p.crop_px <= MAX_SIZE_PX:
        raise ValueError(f"crop_px: expected {MIN_SIZE_PX} to {MAX_SIZE_PX} px, got {p.crop_px}")
    if not p.crop_px <= p.resize_px <= 4 * MAX_SIZE_PX:
        raise ValueError(f"resize_px: expected at least crop_px ({p.crop_px}), got {p.resize_px}")
    if not all(math.isfinite(m) and 0 <= m <= 1 for m in p.mean):
        raise ValueError(f"mean: expected three numbers from 0 to 1 (pixels are scaled to 0..1), got {list(p.mean)}")
    if not all(math.isfinite(s) and s > 0 for s in p.std):
        raise ValueError(f"std: expected three numbers above 0, got {list(p.std)}")
    return preprocessing


def _from_fields(facts: Mapping[str, Any], library: Preprocessing) -> Preprocessing:
    unknown = sorted(facts.keys() - set(FIELDS))
    if unknown:
        raise ValueError(
            f"unknown field {unknown[0]!r}; expected some of {', '.join(FIELDS)}, or timm's pretrained_cfg"
        )
    sizes = _sizes(facts["crop_px"], library) if "crop_px" in facts else {}
    return checked(asdict(library) | sizes | dict(facts))


def _sizes(crop_px: Any, library: Preprocessing | None) -> dict[str, Any]:
    """Sizes where only the crop's is given: the margin around it stays in proportion."""
    if library is None or not isinstance(crop_px, int) or crop_px < 1:
        return {"crop_px": crop_px}
    return {"crop_px": crop_px, "resize_px": library.at(crop_px).resize_px}
