"""Which images, which labels, which split, and what is wrong with them?

A folder per class, or train/ plus val/ and test/ folders of such. Every file is looked at before
anything is computed; what cannot be used is listed with its reason and left out.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from topwork import groups, images, statistics
from topwork.errors import DataError, ImageError
from topwork.records import ClassCount, DataFacts, Dataset, Example, Fault, FileFacts, Part
from topwork.sketches import Sketches, sketch
from topwork.watch import SILENT, Watch

_PARTS: dict[str, Part] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Folder names that tools in use give to the parts of a split, lower case."""

_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx", "ehthumbs.db"}
_IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jp2",
}  # fmt: skip

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


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    relative: str
    label: str
    part: Part


_Seen = tuple[_File, str, FileFacts]  # a usable file, its digest and what it says of itself


def read_folder(
    root: Path, *, decode: bool = False, sketches: Sketches | None = None, watch: Watch = SILENT
) -> Dataset:
    """Look at every file under `root` and label it by its folder.

    `decode=True` decodes every pixel (topwork check), and so does a store of `sketches`, into which goes what they look
    like; otherwise damage that only decoding shows is found later, in the pass, and treated alike. Images with the
    very same content in training and test are left out of training. Raises DataError where there is nothing to learn
    from.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one folder per class, or train/ and test/ of such")
    files, faults, layout = _listed(root)
    good, more = _usable(files, decode=decode, sketches=sketches, watch=watch)
    return _labelled(root, layout, good, faults + more)


def read_held_out(root: Path, classes: tuple[str, ...], *, watch: Watch = SILENT) -> Dataset:
    """Labelled images for judging a model that knows `classes`; the labels keep the model's order.

    Reads a folder per class, or of train/, val/ and test/ folders the one that fit would lock. Folders of other
    classes are left out and listed. Raises DataError where nothing is left.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one folder per class")
    files, faults, layout = _listed(root)
    judging = _judging({f.part for f in files})
    files = [f for f in files if judging in {None, f.part}]
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted({f.label for f in files} - index.keys())
    faults += [Fault(name, "class unknown to the model", f"it knows {', '.join(classes)}") for name in unknown]
    files = [f for f in files if f.label in index]
    good, more = _usable(files, decode=False, sketches=None, watch=watch)
    examples = tuple(Example(f.relative, index[f.label], "test", d, facts=facts) for f, d, facts in good)
    if not examples:
        raise DataError(f"{root}: no usable image of the classes {', '.join(classes)}" + _fault_lines(faults + more))
    return Dataset(str(root), layout, classes, examples, (*faults, *more), ())


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
    Neither: from 2,000 images on a stratified fifth is held out, images of the same content or
    group together; below, the result is out-of-sample over all images ("out-of-sample").
    """
    parts = {e.part for e in dataset.examples}
    if "test" in parts:
        return _moved(dataset, {"val": "train"}), "test folder"
    if "val" in parts:
        return _moved(dataset, {"val": "test"}), "val folder"
    index = groups.known(dataset.examples)
    contents = Counter(_labels(dataset, index).values())
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


def like_locked(dataset: Dataset, locked: str) -> tuple[tuple[Fault, ...], tuple[str, ...]]:
    """Training images that belong together with locked ones, as faults; and warnings. `locked`: what is, in words.

    A class that would be left with fewer than two groups keeps its images, which a warning says.
    """
    index = groups.known(dataset.examples)
    first: dict[int, str] = {}
    for e, g in zip(dataset.examples, index, strict=True):
        if e.part == "test":
            first.setdefault(int(g), e.path)
    pairs = [(e, int(g)) for e, g in zip(dataset.examples, index, strict=True) if e.part == "train"]
    left = Counter(label for label, _ in {(e.label, g) for e, g in pairs if g not in first})
    kind = "nearly the same in val" if locked == "val folder" else "nearly the same in test"
    faults = tuple(
        Fault(e.path, kind, f"one picture or one scene with {first[g]}")
        for e, g in pairs
        if g in first and left[e.label] >= LEAST_GROUPS
    )
    kept = Counter(dataset.classes[e.label] for e, g in pairs if g in first and left[e.label] < LEAST_GROUPS)
    warnings = tuple(
        f"{n} training image{'' if n == 1 else 's'} of class {name!r} belong together with locked ones and stay: too"
        " little else is there to learn from. The result is too good for this class."
        for name, n in sorted(kept.items())
    )
    return faults, warnings


def independent(examples: Sequence[Example]) -> float:
    """How many independent images these are worth: those that belong together are no more than one."""
    return statistics.independent(groups.known(examples), len(examples))


def facts(dataset: Dataset, *, locked: str, seed: int) -> DataFacts:
    """What run.json keeps of the data."""
    counts = Counter((e.label, e.part) for e in dataset.examples)
    classes = tuple(
        ClassCount(name, counts[i, "train"], counts[i, "val"], counts[i, "test"])
        for i, name in enumerate(dataset.classes)
    )
    lines = sorted(f"{e.digest} {dataset.classes[e.label]} {e.part}" for e in dataset.examples)
    print_ = images.digest("\n".join(lines).encode())
    return DataFacts(dataset.root, dataset.layout, classes, dataset.faults, locked, seed, print_, dataset.findings)


def check(dataset: Dataset) -> None:
    """Raise DataError unless there are two classes of two training images each; lists every reason."""
    judging = _judging({e.part for e in dataset.examples})
    # Copies of one image are one: what is left out could not be told from what is kept.
    counts = Counter(label for label, _ in {(e.label, e.digest) for e in dataset.examples if e.part != judging})
    problems = []
    if len(dataset.classes) < 2:
        found = f" (only {dataset.classes[0]!r})" if dataset.classes else ""
        problems.append(f"at least two classes are needed, {len(dataset.classes)} found{found}")
    files = Counter(e.label for e in dataset.examples if e.part != judging)
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
            + "\nExpected one folder per class with its images inside."
            + _fault_lines(dataset.faults)
        )


def _fault_lines(faults: Sequence[Fault], most: int = 10) -> str:
    if not faults:
        return ""
    shown = [f"  {f.path}: {f.kind} ({f.detail})" for f in faults[:most]]
    more = [f"  ... and {len(faults) - most} more"] if len(faults) > most else []
    return "\n".join([f"\nLeft out ({len(faults)}):", *shown, *more])


def _listed(root: Path) -> tuple[list[_File], list[Fault], str]:
    """Every file below `root` with the label and part of its folder, in a stable order."""
    folders = sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: p.name)
    parts = {p: _PARTS[p.name.lower()] for p in folders if p.name.lower() in _PARTS}
    split = "train" in parts.values() and any(c.is_dir() and not _hidden(c) for p in parts for c in p.iterdir())
    files: list[_File] = []
    faults: list[Fault] = []
    for entry in sorted(root.iterdir(), key=lambda p: p.name):
        name = entry.name
        if _hidden(entry):
            faults.append(Fault(name, "hidden", "hidden and system files are not data"))
        elif not entry.is_dir():
            faults.append(Fault(name, "outside any class", "a file's class is the folder it lies in"))
        elif split and entry not in parts:
            faults.append(Fault(name, "outside any part", f"beside {', '.join(sorted(p.name for p in parts))}"))
        elif split:
            if not any(child.is_dir() and not _hidden(child) for child in entry.iterdir()):
                faults.append(Fault(name, "empty folder", "no class folder in it"))
            for child in sorted(entry.iterdir(), key=lambda p: p.name):
                relative = child.relative_to(root).as_posix()
                if _hidden(child):
                    faults.append(Fault(relative, "hidden", "hidden and system files are not data"))
                elif not child.is_dir():
                    faults.append(Fault(relative, "outside any class", "a file's class is the folder it lies in"))
                else:
                    _list_class(root, child, child.name, parts[entry], files, faults)
        else:
            _list_class(root, entry, name, "train", files, faults)
    layout = "/, ".join(p.name for p in sorted(parts)) + "/ folders" if split else "a folder per class"
    return files, faults, layout


def _list_class(root: Path, folder: Path, label: str, part: Part, files: list[_File], faults: list[Fault]) -> None:
    before = len(files)
    for path in _walk(folder):
        relative = path.relative_to(root).as_posix()
        if any(_hidden(p) for p in [path, *path.relative_to(folder).parents][:-1]) or _hidden(path):
            faults.append(Fault(relative, "hidden", "hidden and system files are not data"))
        elif not _is_text(relative):
            faults.append(Fault(_as_text(relative), "unreadable", "its name is no UTF-8 text; rename it"))
        else:
            files.append(_File(path, relative, label, part))
    if len(files) == before:
        faults.append(Fault(folder.relative_to(root).as_posix(), "empty folder", "no files in it"))


def _is_text(name: str) -> bool:
    """Whether a name can be written down; names from old archives may hold bytes that are no letters."""
    return _as_text(name) == name


def _as_text(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, sorted; linked folders are followed, each real folder once."""
    seen: set[str] = set()
    for top, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(top) / name for name in sorted(names))


def _usable(
    files: list[_File], *, decode: bool, sketches: Sketches | None, watch: Watch
) -> tuple[list[_Seen], list[Fault]]:
    """Look at files in threads: the usable ones with their digests, and what is wrong with the others."""
    good: list[_Seen] = []
    faults: list[Fault] = []
    watch.begin("look", len(files))
    groups = [files[i : i + TOGETHER] for i in range(0, len(files), TOGETHER)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        looks = pool.map(lambda group: [_looked_at(f, decode, sketches) for f in group], groups)
        for group, looked in zip(groups, looks, strict=True):
            for file, seen in zip(group, looked, strict=True):
                if isinstance(seen, Fault):
                    faults.append(seen)
                else:
                    good.append((file, *seen))
            watch.advance(len(group))
    watch.end()
    if sketches is not None:
        sketches.flush()
    return good, faults


def _hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES


def _looked_at(file: _File, decode: bool, sketches: Sketches | None) -> tuple[str, FileFacts] | Fault:
    """The digest of a usable file and what it says of itself, or what is wrong with it."""
    try:
        data = images.read_bytes(file.path)
        digest = images.digest(data)
        if sketches is None:
            return digest, images.look(data, decode=decode)
        facts, image = images.sight(data)
        sketches.put(digest, sketch(image))
        return digest, facts
    except ImageError as error:
        kind = error.kind
        if kind == "not an image" and file.path.suffix.lower() in _IMAGE_SUFFIXES:
            kind = "unreadable"  # it claims to be one
        return Fault(file.relative, kind, error.detail)


def _labelled(root: Path, layout: str, seen: list[_Seen], faults: list[Fault]) -> Dataset:
    learnt = {file.label for file, *_ in seen if file.part != "test"}
    # A test folder of unknown classes alone judges nothing.
    judging = _judging({file.part for file, *_ in seen if file.part != "test" or file.label in learnt})
    trained = {file.label for file, *_ in seen if file.part not in {"test", judging}}
    classes = tuple(sorted(trained))
    index = {name: i for i, name in enumerate(classes)}
    locked = {digest for file, digest, _ in seen if file.part == judging}
    examples: list[Example] = []
    warnings: list[str] = []
    labels_of: dict[str, set[str]] = defaultdict(set)
    for file, digest, file_facts in seen:
        if file.label not in index:
            meant = [name for name in classes if name.casefold().strip() == file.label.casefold().strip()]
            perhaps = f"; {' or '.join(map(repr, meant))} is meant?" if meant else ""
            faults.append(
                Fault(file.relative, "class not in training", f"no training image of {file.label!r}{perhaps}")
            )
        elif file.part != judging and digest in locked:
            kind = "also in test" if judging == "test" else "also in val"
            faults.append(Fault(file.relative, kind, f"the same content lies in the {judging} folder"))
        else:
            examples.append(Example(file.relative, index[file.label], file.part, digest, facts=file_facts))
            labels_of[digest].add(file.label)
    copies = len(examples) - len(labels_of)
    if copies:
        warnings.append(f"{copies} images have the very same content as another; copies are kept on one side.")
    torn = [names for names in labels_of.values() if len(names) > 1]
    if torn:
        warnings.append(
            f"{len(torn)} images lie in more than one class, for example in {' and '.join(sorted(torn[0]))};"
            " at most one of these labels can be right."
        )
    dataset = Dataset(str(root), layout, classes, tuple(examples), tuple(faults), tuple(warnings))
    check(dataset)
    return dataset


def _judging(parts: set[Part]) -> Part | None:
    """The part that the result will be measured on, where the user gave one: test, else val."""
    return "test" if "test" in parts else "val" if "val" in parts else None


def _moved(dataset: Dataset, moves: dict[Part, Part]) -> Dataset:
    return replace(dataset, examples=tuple(replace(e, part=moves.get(e.part, e.part)) for e in dataset.examples))


def _labels(dataset: Dataset, index: NDArray[np.int64]) -> dict[int, int]:
    """The class that each group counts for: where copies contradict each other, the last one's."""
    return {int(g): e.label for e, g in zip(dataset.examples, index, strict=True)}


def _stratified(dataset: Dataset, index: NDArray[np.int64], seed: int) -> set[int]:
    """A fifth of the groups, class by class; the same one whatever the order of the files."""
    from sklearn.model_selection import train_test_split  # noqa: PLC0415 (1.6 s to import)

    name: dict[int, str] = {}
    for e, g in zip(dataset.examples, index, strict=True):
        name[int(g)] = min(e.digest, name.get(int(g), e.digest))
    label_of = _labels(dataset, index)
    order = sorted(name, key=lambda g: name[g])
    _, chosen = train_test_split(order, test_size=LOCK_SHARE, random_state=seed, stratify=[label_of[g] for g in order])
    return set(chosen)
