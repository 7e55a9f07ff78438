"""What does the pass show to belong together, and on which side of what is locked does it go?

What the features of one backbone find (groups.py) is marked in the dataset, brought to one side, and kept for the next
time. The findings that decoding brings to light are told with it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from topwork import data, faults, features, groups, images, memo, sketches, stores
from topwork.errors import ImageError
from topwork.records import Dataset, Example, Grouped, Part
from topwork.sketches import Sketches
from topwork.watch import Watch
from topwork.zoo import Backbone

_GROUPED_BY = ("path", "digest", "group", "scene")  # fields of an example that groups depend on, besides its label


@dataclass(frozen=True)
class Marked:
    """A dataset whose examples know which others they belong to."""

    dataset: Dataset
    grouped: Grouped  # what is said of it
    alike: NDArray[np.int64]  # (n,) groups without photos of one scene
    near: NDArray[np.int64]  # (p, 2) rows that are nearly the same


def grouped(
    dataset: Dataset, backbone: Backbone, seen: features.Features, *, bursts: bool, seed: int, cache: Path, watch: Watch
) -> Marked:
    """Mark what belongs together by the features `seen` of all examples; with bursts, photos of one scene, too."""
    examples = dataset.examples
    sketched, missing = sketched_all(dataset, cache, watch)
    hashes = sketches.hashed(sketched)
    taken = ["" if e.facts is None else e.facts.taken for e in examples]
    cuts = len(seen.cuts)

    def compute() -> memo.Arrays:
        found = groups.find(
            examples, seen.at, cuts, hashes=hashes, hashed=~missing, one_class=dataset.multi_label, bursts=bursts,
            seed=seed,
        )  # fmt: skip
        return {**memo.arrays(found), "limits": np.array(found.limits)}

    inputs: list[memo.Input] = [
        groups.FORMULA, features.key(backbone), *seen.cuts, str(bursts), str(dataset.multi_label), str(seed),
        *("\n".join([getattr(e, name) for e in examples]) for name in _GROUPED_BY), "\n".join(taken),
        np.array([e.label for e in examples]), hashes, missing,
    ]  # fmt: skip
    kept = memo.remembered(cache / "groups", inputs, compute)
    limit, in_order = (float(x) for x in kept["limits"])
    found = groups.Found(kept["index"], kept["pairs"], kept["kinds"], kept["near"], (limit, in_order))
    sizes = np.bincount(found.index)
    marked = tuple(replace(e, scene=str(g) if sizes[g] > 1 else "") for e, g in zip(examples, found.index, strict=True))
    return Marked(replace(dataset, examples=marked), groups.facts(examples, found), groups.alike(found), found.near)


def one_side(
    marked: Marked, seen: tuple[features.Features, ...], locked: str, *, given: bool, chosen_by: set[str], seed: int,
    watch: Watch,
) -> tuple[Dataset, tuple[features.Features, ...], Grouped]:  # fmt: skip
    """No group on both sides of what is `locked`, by moving images where the part was drawn here.

    Of a user's own split what looks alike is left out of training, and photos of one scene are told. `given`: the parts
    are those of an earlier run. `chosen_by`: digests of images that something was chosen by already.
    """
    dataset, grouped = marked.dataset, marked.grouped
    if locked == "out-of-sample":
        return dataset, seen, grouped
    if locked == "held-out part" and not given:
        dataset, moved = data.one_side(dataset, chosen_by, seed)
        return dataset, seen, replace(grouped, moved=moved)
    left, warnings, across = data.like_locked(dataset, locked, marked.alike)
    dataset = replace(dataset, warnings=(*dataset.warnings, *warnings))
    grouped = replace(grouped, across=across)
    if warnings:
        watch.show("warnings", warnings)
    if not left:
        return dataset, seen, grouped
    gone = {fault.path for fault in left}
    rows = np.flatnonzero([e.path not in gone for e in dataset.examples])
    watch.show("faults", left)
    seen = tuple(f.of(rows) for f in seen)
    return data.without(dataset, left), seen, replace(grouped, left_out=len(left))


def seen_through(marked: Marked, parts: dict[str, Part], cache: Path, watch: Watch) -> Marked:
    """With the findings that the pass has brought to light; near-duplicates are those that the features confirm.

    `parts`: by path, as the user gave them.
    """
    dataset = marked.dataset
    given = replace(dataset, examples=tuple(replace(e, part=parts[e.path]) for e in dataset.examples))
    found = faults.after(given, *Sketches.under(cache).get([e.digest for e in given.examples]), marked.near)
    watch.show("findings", found)
    return replace(marked, dataset=replace(dataset, findings=faults.ranked((*dataset.findings, *found))))


def sketched_all(
    dataset: Dataset, cache: Path, watch: Watch
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:  # (n, 16, 16, 3), (n,) true where there is none
    """The sketches of all images; those that the cache lost are made again, at a reduced scale.

    Every pass leaves sketches behind, so there is something to do only where features were kept without them. What
    cannot be read any more, or has changed since, stays without.
    """
    kept, digests = Sketches.under(cache), [e.digest for e in dataset.examples]
    sketched, missing = kept.get(digests)
    if not missing.any():
        return sketched, missing
    store = stores.opened(dataset.root)
    todo = list({dataset.examples[i].digest: dataset.examples[i] for i in np.flatnonzero(missing)}.values())

    def make(example: Example) -> None:
        with suppress(ImageError):
            content = store.read(example.path)
            if images.digest(content) == example.digest:
                kept.put(example.digest, sketches.sketch(images.sight(content)[1]))

    watch.begin("sketch", len(todo))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(make, todo):
            watch.advance()
    watch.end()
    kept.flush()
    return kept.get(digests)
