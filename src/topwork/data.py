"""Which images, which labels, which split, and what is wrong with them?

From whatever names the images (listing/), read from wherever they lie (stores.py). Every image is looked at before
anything is computed; what cannot be used is listed with its reason and left out.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from topwork import groups, images, listing, statistics, stores
from topwork.errors import DataError, ImageError
from topwork.listing import GUESSED, Item, Listing
from topwork.records import ClassCount, Columns, DataFacts, Dataset, Example, Fault, FileFacts, Part
from topwork.sketches import Sketches, sketch
from topwork.stores import Store
from topwork.watch import SILENT, Watch

LOCK_FROM = 2000
"""Images from which a part is locked for the result (method.md section 6): from here on a held-out
fifth gives an interval under 2 points, and what is left is enough to choose by."""

TOGETHER = 8
"""Files that a thread looks at before it hands over: one by one, small ones take longer to hand over than to read."""

LOCK_SHARE = 0.2
LOCK_MIN_PER_CLASS = 10  # a class with fewer would be left with a test of one image

LEAST_GROUPS = 2
"""Groups of training images that a class keeps, whatever else is like its locked ones: each is predicted by the
others."""


def read(
    source: str | Path, columns: Columns = GUESSED, *, sketches: Sketches | None = None,
    watch: Watch = SILENT,
) -> Dataset:  # fmt: skip
    """Look at every image that a source names or holds, with its labels.

    `source`: folders, a table, a packed file, or an address (docs/data.md). `columns`: which of a table's count.
    A store of `sketches` has every pixel decoded (topwork check) and takes what the images look like; otherwise damage
    that only decoding shows is found later, in the pass, and treated alike. Images with the very same content in
    training and test are left out of training. Raises DataError where there is nothing to learn from, UsageError where
    the columns do not fit.
    """
    found = listing.listed(str(source), columns)
    good, faults = _usable(found.root, found.items, sketches=sketches, watch=watch)
    return _labelled(str(source), found, good, [*found.faults, *faults])


def read_held_out(
    source: str | Path, classes: tuple[str, ...], columns: Columns = GUESSED, *, watch: Watch = SILENT
) -> Dataset:
    """Labelled images for judging a model that knows `classes`; the labels keep the model's order.

    Reads any source; of one with parts, the one that fit would lock. Images of other classes are left out and listed.
    Raises DataError where nothing is left.
    """
    found = listing.listed(str(source), columns)
    judging = _judging({item.part for item in found.items})
    items = [item for item in found.items if judging in {None, item.part}]
    index = {name: i for i, name in enumerate(classes)}
    faults = list(found.faults)
    unknown = sorted({name for item in items for name in item.labels} - index.keys())
    faults += [Fault(name, "class unknown to the model", f"it knows {', '.join(classes)}") for name in unknown]
    items = [item for item in items if all(name in index for name in item.labels)]
    good, more = _usable(found.root, items, watch=watch)
    examples = _examples(
        [(replace(item, part="test"), digest, facts) for item, digest, facts in good], index, found.several
    )
    if not examples:
        raise DataError(f"{source}: no usable image of the classes {', '.join(classes)}" + _fault_lines(faults + more))
    return Dataset(found.root, found.layout, classes, examples, (*faults, *more), (), found.several)


def without(dataset: Dataset, faults: tuple[Fault, ...]) -> Dataset:
    """The dataset less the files that proved unusable later. Raises DataError as read does."""
    gone = {fault.path for fault in faults}
    judging = _judging({e.part for e in dataset.examples})
    if judging and all(e.path in gone for e in dataset.part(judging)):
        raise DataError(
            f"{dataset.root}: none of the {len(dataset.part(judging))} images that the result would be measured on"
            f" ({judging}) can be decoded" + _fault_lines(faults)
        )
    kept = replace(
        dataset,
        examples=tuple(e for e in dataset.examples if e.path not in gone),
        faults=(*dataset.faults, *faults),
    )
    check(kept)
    return kept


def lock(dataset: Dataset, seed: int) -> tuple[Dataset, str]:
    """Set aside what the result is measured on; says what that is.

    A test folder is locked as it is; without one, a val folder is. Both given: val joins training.
    Neither: from 2,000 images on a stratified fifth is held out, images of the same content or
    group together; below, the result is out-of-sample over all images ("out-of-sample").
    """
    parts = {e.part for e in dataset.examples}
    if "test" in parts:
        return _moved(dataset, {"val": "train"}), "test folder"
    if "val" in parts:
        return _moved(dataset, {"val": "test"}), "val folder"
    index = groups.known(dataset.examples)
    one_of = dict(zip(index.tolist(), dataset.examples, strict=True))  # of images that belong together, one counts
    contents = Counter(i for e in one_of.values() for i in dataset.labels_of(e))
    fewest = min(contents[i] for i in range(len(dataset.classes)))
    if len(dataset.examples) < LOCK_FROM or fewest < LOCK_MIN_PER_CLASS:
        return dataset, "out-of-sample"
    chosen = _stratified(dataset, index, seed)
    examples = tuple(
        replace(e, part="test") if g in chosen else e for e, g in zip(dataset.examples, index, strict=True)
    )
    return replace(dataset, examples=examples), "held-out part"


def one_side(dataset: Dataset, chosen_by: Collection[str], seed: int) -> tuple[Dataset, int]:
    """Move images so that no group stands on both sides of a part that was drawn here; how many were moved.

    `chosen_by`: digests of images that something was chosen by already: their groups join training. Of the other
    groups, drawn in turn, each class has as many images locked as it had, as near as groups allow.
    """
    index = groups.known(dataset.examples)
    members: dict[int, list[int]] = defaultdict(list)
    for i, g in enumerate(index):
        members[int(g)].append(i)
    torn = [m for m in members.values() if len({dataset.examples[i].part for i in m}) > 1]
    if not torn:
        return dataset, 0
    mixed = {i for m in torn for i in m}
    wanted = Counter(dataset.examples[i].label for i in mixed if dataset.examples[i].part == "test")
    parts: dict[int, Part] = {}
    for turn in np.random.default_rng(seed).permutation(len(torn)):
        group = torn[turn]
        label = dataset.examples[group[0]].label
        free = not any(dataset.examples[i].digest in chosen_by for i in group)
        locked = free and len(group) <= 2 * wanted[label]
        wanted[label] -= len(group) if locked else 0
        parts.update(dict.fromkeys(group, "test" if locked else "train"))
    moved = sum(dataset.examples[i].part != part for i, part in parts.items())
    examples = tuple(replace(e, part=parts.get(i, e.part)) for i, e in enumerate(dataset.examples))
    return replace(dataset, examples=examples), moved


def like_locked(
    dataset: Dataset, locked: str, alike: NDArray[np.int64] | None = None
) -> tuple[tuple[Fault, ...], tuple[str, ...], int]:
    """Training images that look like locked ones, as faults; warnings; how many others show the scene of a locked one.

    `locked`: what is, in words. `alike`: (n,) groups without photos of one scene; default: all that is known. A class
    that would be left with fewer than two groups keeps its images, and photos of one scene stay, since the split is
    the user's: warnings say so.
    """
    scenes = groups.known(dataset.examples)
    index = scenes if alike is None else alike
    first = _first_locked(dataset, index)
    pairs = [(e, int(g)) for e, g in zip(dataset.examples, index, strict=True) if e.part == "train"]
    left = Counter(label for label, _ in {(e.label, g) for e, g in pairs if g not in first})
    kind = "nearly the same in val" if locked == "val folder" else "nearly the same in test"
    faults = tuple(
        Fault(e.path, kind, f"one picture or one scene with {first[g]}")
        for e, g in pairs
        if g in first and left[e.label] >= LEAST_GROUPS
    )

    def named(label: int) -> str:  # images without any of several labels are a class of their own
        return dataset.classes[label] if label < len(dataset.classes) else "no label"

    locked_scenes = _first_locked(dataset, scenes)
    shared = [
        (e.path, locked_scenes[int(s)])
        for e, g, s in zip(dataset.examples, index, scenes, strict=True)
        if e.part == "train" and int(g) not in first and int(s) in locked_scenes
    ]
    kept = Counter(named(e.label) for e, g in pairs if g in first and left[e.label] < LEAST_GROUPS)
    warnings = tuple(
        f"{n} training image{'' if n == 1 else 's'} of class {name!r} belong together with locked ones and stay: too"
        " little else is there to learn from. The result is too good for this class."
        for name, n in sorted(kept.items())
    )
    if shared:
        own, other = shared[0]
        part = "val" if locked == "val folder" else "test"
        warnings += (
            f"{len(shared):,} training images seem to show a scene that your {part} part shows, too, such as {own} and"
            f" {other}. They stay, since the split is yours; on new scenes the result may be too good.",
        )
    return faults, warnings, len(shared)


def _first_locked(dataset: Dataset, index: NDArray[np.int64]) -> dict[int, str]:
    """Of each group that has any, the path of its first locked image."""
    first: dict[int, str] = {}
    for e, g in zip(dataset.examples, index, strict=True):
        if e.part == "test":
            first.setdefault(int(g), e.path)
    return first


def independent(examples: Sequence[Example]) -> float:
    """How many independent images these are worth: those that belong together are no more than one."""
    return statistics.independent(groups.known(examples), len(examples))


def together(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Images that are known to belong together have the same number: (n,)."""
    return groups.known(examples)


def facts(dataset: Dataset, *, locked: str, seed: int) -> DataFacts:
    """What run.json keeps of the data."""
    counts = Counter((i, e.part) for e in dataset.examples for i in dataset.labels_of(e))
    classes = tuple(
        ClassCount(name, counts[i, "train"], counts[i, "val"], counts[i, "test"])
        for i, name in enumerate(dataset.classes)
    )
    lines = sorted(
        f"{e.digest} {'|'.join(dataset.classes[i] for i in dataset.labels_of(e))} {e.part}" for e in dataset.examples
    )
    print_ = images.digest("\n".join(lines).encode())
    return DataFacts(dataset.root, dataset.layout, classes, dataset.faults, locked, seed, print_, dataset.findings)


def check(dataset: Dataset) -> None:
    """Raise DataError unless there are two classes of two training images each; lists every reason."""
    judging = _judging({e.part for e in dataset.examples})
    # Copies of one image are one: what is left out could not be told from what is kept.
    learnt = [(i, e.digest) for e in dataset.examples if e.part != judging for i in dataset.labels_of(e)]
    counts = Counter(label for label, _ in set(learnt))
    problems = []
    if len(dataset.classes) < 2:
        found = f" (only {dataset.classes[0]!r})" if dataset.classes else ""
        problems.append(f"at least two classes are needed, {len(dataset.classes)} found{found}")
    files = Counter(label for label, _ in learnt)
    problems += [
        f"class {name!r} has {counts[i]} usable training image{'' if counts[i] == 1 else 's'}, at least two are needed"
        + (" (copies of one count once)" if files[i] > counts[i] else "")
        for i, name in enumerate(dataset.classes)
        if counts[i] < 2
    ]
    if problems:
        raise DataError(
            f"{dataset.root}: cannot be learnt from:\n  "
            + "\n  ".join(problems)
            + "\nExpected one folder per class with its images inside, or a table of images and labels."
            + _fault_lines(dataset.faults)
        )


def _fault_lines(faults: Sequence[Fault], most: int = 10) -> str:
    if not faults:
        return ""
    shown = [f"  {f.path}: {f.kind} ({f.detail})" for f in faults[:most]]
    more = [f"  ... and {len(faults) - most} more"] if len(faults) > most else []
    return "\n".join([f"\nLeft out ({len(faults)}):", *shown, *more])


_Seen = tuple[Item, str, FileFacts]  # a usable image, the digest of its content, what it says of itself


def _usable(
    root: str, items: Sequence[Item], *, sketches: Sketches | None = None, watch: Watch
) -> tuple[list[_Seen], list[Fault]]:
    """Look at images in threads: the usable ones with their digests, and what is wrong with the others."""
    good: list[_Seen] = []
    faults: list[Fault] = []
    store = stores.opened(root)
    watch.begin("look", len(items))
    workers = os.cpu_count() or 1
    bundles = _bundles(items, workers)
    with ThreadPoolExecutor(workers) as pool:
        looks = pool.map(lambda bundle: [_looked_at(store, item, sketches) for item in bundle], bundles)
        for bundle, looked in zip(bundles, looks, strict=True):
            for item, seen in zip(bundle, looked, strict=True):
                if isinstance(seen, Fault):
                    faults.append(seen)
                else:
                    good.append((item, *seen))
            watch.advance(len(bundle))
    watch.end()
    if sketches is not None:
        sketches.flush()
    return good, faults


def _bundles(items: Sequence[Item], workers: int) -> list[Sequence[Item]]:
    """TOGETHER at once, and fewer towards the end, where a thread waits for the others as long as a bundle takes."""
    bundles, at = [], 0
    while at < len(items):
        many = max(1, min(TOGETHER, (len(items) - at) // (4 * workers)))
        bundles.append(items[at : at + many])
        at += many
    return bundles


def _looked_at(store: Store, item: Item, sketches: Sketches | None) -> tuple[str, FileFacts] | Fault:
    """The digest of a usable image and what it says of itself, or what is wrong with it."""
    try:
        data = store.read(item.path)
        digest = images.digest(data)
        if sketches is None:
            return digest, images.look(data)
        facts, image = images.sight(data)
        sketches.put(digest, sketch(image))
        return digest, facts
    except ImageError as error:
        kind = error.kind
        if kind == "not an image" and item.path.lower().endswith(listing.IMAGE_SUFFIXES):
            kind = "unreadable"  # it claims to be one
        return Fault(item.path, kind, error.detail + (f"; {item.row}" if item.row else ""))


def _labelled(source: str, found: Listing, seen: list[_Seen], faults: list[Fault]) -> Dataset:
    learnt = {name for item, *_ in seen if item.part != "test" for name in item.labels}
    # A test folder of unknown classes alone judges nothing.
    judging = _judging({item.part for item, *_ in seen if item.part != "test" or learnt.issuperset(item.labels)})
    trained = {name for item, *_ in seen if item.part not in {"test", judging} for name in item.labels}
    classes = tuple(sorted(trained))
    index = {name: i for i, name in enumerate(classes)}
    locked = {digest for item, digest, _ in seen if item.part == judging}
    kept: list[_Seen] = []
    warnings: list[str] = []
    labels_of: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for item, digest, facts in seen:
        unknown = next((name for name in item.labels if name not in index), None)
        if unknown is not None:
            meant = [name for name in classes if name.casefold().strip() == unknown.casefold().strip()]
            perhaps = f"; {' or '.join(map(repr, meant))} is meant?" if meant else ""
            faults.append(Fault(item.path, "class not in training", f"no training image of {unknown!r}{perhaps}"))
        elif item.part != judging and digest in locked:
            kind = "also in test" if judging == "test" else "also in val"
            faults.append(Fault(item.path, kind, f"the same content lies in the {judging} {found.part_word}"))
        else:
            kept.append((item, digest, facts))
            labels_of[digest].add(item.labels)
    copies = len(kept) - len(labels_of)
    if copies:
        warnings.append(f"{copies} images have the very same content as another; copies are kept on one side.")
    torn = [sorted(" + ".join(names) or "no label" for names in sets) for sets in labels_of.values() if len(sets) > 1]
    if torn:
        lie = "have different labels" if found.several else "lie in more than one class"
        warnings.append(
            f"{len(torn)} images {lie}, for example in {' and '.join(torn[0])};"
            " at most one of these labels can be right."
        )
    examples = _examples(kept, index, found.several)
    dataset = Dataset(found.root, found.layout, classes, examples, tuple(faults), tuple(warnings), found.several)
    check(dataset)
    return dataset


def _examples(seen: Sequence[_Seen], index: dict[str, int], several: bool) -> tuple[Example, ...]:
    """Usable images as examples. Of several labels, the rarest stands for the image: it is the one that a split loses.

    An image without any is of a class of its own, C, when images are drawn class by class.
    """
    if not several:
        return tuple(
            Example(item.path, index[item.labels[0]], item.part, digest, item.group, facts=facts)
            for item, digest, facts in seen
        )
    counts = Counter(name for item, *_ in seen for name in item.labels)
    return tuple(
        Example(
            item.path, min(((counts[name], index[name]) for name in item.labels), default=(0, len(index)))[1],
            item.part, digest, item.group, tuple(sorted(index[name] for name in item.labels)), facts,
        )
        for item, digest, facts in seen
    )  # fmt: skip


def _judging(parts: set[Part]) -> Part | None:
    """The part that the result will be measured on, where the user gave one: test, else val."""
    return "test" if "test" in parts else "val" if "val" in parts else None


def _moved(dataset: Dataset, moves: dict[Part, Part]) -> Dataset:
    return replace(dataset, examples=tuple(replace(e, part=moves.get(e.part, e.part)) for e in dataset.examples))


def _stratified(dataset: Dataset, index: NDArray[np.int64], seed: int) -> set[int]:
    """A fifth of the groups, class by class; the same one whatever the order of the files."""
    from sklearn.model_selection import train_test_split  # noqa: PLC0415 (1.6 s to import)

    name: dict[int, str] = {}
    for e, g in zip(dataset.examples, index, strict=True):
        name[int(g)] = min(e.digest, name.get(int(g), e.digest))
    label_of = {int(g): e.label for e, g in zip(dataset.examples, index, strict=True)}
    order = sorted(name, key=lambda g: name[g])
    labels = [label_of[g] for g in order]  # where copies contradict each other, the last one's
    if dataset.multi_label:  # the rarest label of each image: few images may be left to a frequent one
        counts = Counter(labels)
        (most, _), *_ = counts.most_common(1)
        labels = [i if counts[i] >= LOCK_MIN_PER_CLASS else most for i in labels]
    _, chosen = train_test_split(order, test_size=LOCK_SHARE, random_state=seed, stratify=labels)
    return set(chosen)
