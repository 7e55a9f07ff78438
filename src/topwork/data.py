"""Which images, which labels, which split, and what is wrong with them?

From whatever names the images (listing/), read from wherever they lie (stores.py). Every image is looked at before
anything is computed; what cannot be used is listed with its reason and left out.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from topwork import images, listing, statistics, stores
from topwork.errors import DataError, ImageError
from topwork.listing import GUESSED, Item, Listing
from topwork.records import ClassCount, Columns, DataFacts, Dataset, Example, Fault, FileFacts, Part
from topwork.stores import Store
from topwork.watch import SILENT, Watch

LOCK_FROM = 2000
"""Images from which a part is locked for the result (method.md section 6): from here on a held-out
fifth gives an interval under 2 points, and what is left is enough to choose by."""

LOCK_SHARE = 0.2
LOCK_MIN_PER_CLASS = 10  # a class with fewer would be left with a test of one image


def read(source: str | Path, columns: Columns = GUESSED, *, decode: bool = False, watch: Watch = SILENT) -> Dataset:
    """Look at every image that a source names or holds, with its labels.

    `source`: folders, a table, a packed file, or an address (docs/data.md). `columns`: which of a table's count.
    `decode=True` decodes every pixel (topwork check); otherwise damage that only decoding shows is found later, in the
    pass, and treated alike. Images with the very same content in training and test are left out of training. Raises
    DataError where there is nothing to learn from, UsageError where the columns do not fit.
    """
    found = listing.listed(str(source), columns)
    good, faults = _usable(found.root, found.items, decode=decode, watch=watch)
    return _labelled(str(source), found, good, [*found.faults, *faults])


def read_folder(root: Path, *, decode: bool = False, watch: Watch = SILENT) -> Dataset:
    """The same without columns."""
    return read(root, decode=decode, watch=watch)


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
    good, more = _usable(found.root, items, decode=False, watch=watch)
    examples = _examples(
        [(replace(item, part="test"), digest, facts) for item, digest, facts in good], index, found.several
    )
    if not examples:
        raise DataError(f"{source}: no usable image of the classes {', '.join(classes)}" + _fault_lines(faults + more))
    return Dataset(found.root, found.layout, classes, examples, (*faults, *more), (), found.several)


def without(dataset: Dataset, faults: tuple[Fault, ...]) -> Dataset:
    """The dataset less the files that proved unusable later. Raises DataError as read_folder does."""
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
    Neither: from 2,000 images on a stratified fifth is held out, images of the same content
    together; below, the result is out-of-sample over all images ("out-of-sample").
    """
    parts = {e.part for e in dataset.examples}
    if "test" in parts:
        return _moved(dataset, {"val": "train"}), "test folder"
    if "val" in parts:
        return _moved(dataset, {"val": "test"}), "val folder"
    contents = Counter(i for e in {e.digest: e for e in dataset.examples}.values() for i in dataset.labels_of(e))
    fewest = min(contents[i] for i in range(len(dataset.classes)))
    if len(dataset.examples) < LOCK_FROM or fewest < LOCK_MIN_PER_CLASS:
        return dataset, "out-of-sample"
    chosen = _stratified(dataset, seed)
    examples = tuple(replace(e, part="test") if e.digest in chosen else e for e in dataset.examples)
    return replace(dataset, examples=examples), "held-out part"


def independent(examples: Sequence[Example]) -> float:
    """How many independent images these are worth: copies of one content are no more than one."""
    _, groups = np.unique([e.digest for e in examples], return_inverse=True)
    return statistics.independent(groups, len(examples))


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
    return DataFacts(dataset.root, dataset.layout, classes, dataset.faults, locked, seed, print_)


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


def _usable(root: str, items: Sequence[Item], *, decode: bool, watch: Watch) -> tuple[list[_Seen], list[Fault]]:
    """Look at images in threads: the usable ones with their digests, and what is wrong with the others."""
    good: list[_Seen] = []
    faults: list[Fault] = []
    store = stores.opened(root)
    watch.begin("look", len(items))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for item, seen in zip(items, pool.map(lambda i: _looked_at(store, i, decode), items), strict=True):
            if isinstance(seen, Fault):
                faults.append(seen)
            else:
                good.append((item, *seen))
            watch.advance()
    watch.end()
    return good, faults


def _looked_at(store: Store, item: Item, decode: bool) -> tuple[str, FileFacts] | Fault:
    """The digest of a usable image and what it says of itself, or what is wrong with it."""
    try:
        data = store.read(item.path)
        facts = images.look(data, decode=decode)
    except ImageError as error:
        kind = error.kind
        if kind == "not an image" and item.path.lower().endswith(listing.IMAGE_SUFFIXES):
            kind = "unreadable"  # it claims to be one
        return Fault(item.path, kind, error.detail + (f"; {item.row}" if item.row else ""))
    return images.digest(data), facts


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
            faults.append(Fault(item.path, "class not in training", f"no training image of {unknown!r}"))
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


def _stratified(dataset: Dataset, seed: int) -> set[str]:
    """Digests of a fifth of the images, class by class."""
    from sklearn.model_selection import train_test_split  # noqa: PLC0415 (1.6 s to import)

    label_of = {e.digest: e.label for e in dataset.examples}
    digests = sorted(label_of)
    labels = [label_of[d] for d in digests]
    if dataset.multi_label:  # the rarest label of each image: few images may be left to a frequent one
        counts = Counter(labels)
        (most, _), *_ = counts.most_common(1)
        labels = [i if counts[i] >= LOCK_MIN_PER_CLASS else most for i in labels]
    _, chosen = train_test_split(digests, test_size=LOCK_SHARE, random_state=seed, stratify=labels)
    return set(chosen)
