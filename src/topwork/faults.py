"""What is wrong with images that can be used?

What cannot be used is left out by data.py. Here are those that can be read, and yet make a worse model or a result
that is too good: said with their paths, and none of it ends a run. Some of it needs no decoding (`before`), the rest
what decoding leaves behind (`after`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from topwork import sketches
from topwork.records import Dataset, Example, Fault, Finding, Part, Severity

ONE_COLOUR = 2
"""Levels of 255 by which the pixels of a sketch may differ in any channel before the image shows something: JPEG's own
error on an even picture."""

TINY_PX = 16
"""Pixels of the shorter side below which an image is tiny: as many as a sketch has."""

ODD_PROPORTIONS = 3.0
"""Longer side over shorter from which less than a third of an image is in the centre that the network sees."""

IMBALANCE = 10.0
"""Images of the largest class over those of the smallest from which accuracy says little about the small one."""

FEW_IMAGES = 10
"""Different training images of a class below which its recall is known to no better than 30 points."""

NEAR_BITS = 10
"""Bits of 64 in which the hashes of near-duplicates may differ: few pairs of different photos come within it, nearly
all copies that were saved again, halved or brightened do (bench/data.py --near)."""

NEAR_LIKENESS = 0.98
"""Correlation of two sketches from which they show the same: what shares only a background, as X-rays do, stays below
it, and so do crops by more than one or two percent a side (bench/data.py --near)."""

EVEN = 3.0
"""Standard deviation (of 255) of a sketch below which nothing can be compared: fog resembles fog."""

UNCONFIRMED = " (to 16 x 16 pixels; fit asks the network)"  # where near-duplicates were told by sketches alone
_TOGETHER = 2**20  # pairs of hashes that are compared at once: 9 MB
_SKETCHES = 4096  # sketches that are held as floating-point numbers at once: 13 MB
_CANDIDATES = 50_000  # pairs that are looked at before those are dropped that need it no more
_SEVERITIES: tuple[Severity, ...] = ("fault", "warning", "note")
_SEVERAL = {"GIF", "TIFF", "WEBP", "PNG", "AVIF", "HEIF"}  # not MPO: a telephone's depth map is no second picture
_SUFFIXES = {
    "JPEG": "jpg jpeg jpe jfif", "MPO": "jpg jpeg jpe jfif mpo", "PNG": "png apng", "GIF": "gif", "BMP": "bmp dib",
    "TIFF": "tif tiff", "WEBP": "webp", "PPM": "ppm pgm pbm pnm pfm", "JPEG2000": "jp2 j2k jpx jpc j2c jpf",
    "AVIF": "avif avifs heic heif", "HEIF": "heic heif hif heics heifs",
}  # fmt: skip
_NOTES = {"hidden", "outside any class", "outside any part"}
_WARNINGS = {"empty folder", "class unknown to the model"}


def before(dataset: Dataset) -> tuple[Finding, ...]:
    """What can be told without decoding: copies, contradictions, classes, names, sizes. Most severe first."""
    found = [
        *_copies(dataset), *_classes(dataset), *_names(dataset.classes), *_files(dataset.examples),
    ]  # fmt: skip
    return ranked(found)


def after(
    dataset: Dataset,
    pixels: NDArray[np.uint8],  # (n, 16, 16, 3) sketches of the examples
    missing: NDArray[np.bool_],  # (n,) those that have none
    confirmed: NDArray[np.int64] | None = None,  # (pairs, 2) rows that the features show to be nearly the same
) -> tuple[Finding, ...]:
    """What the sketches tell besides: images of one colour, near-duplicates, on two sides, of different classes.

    Without `confirmed`, near-duplicates are what the sketches alone show, and the findings say so.
    """
    even = one_colour(pixels) & ~missing
    found = [_finding("one colour", "warning", "{n} of one even colour", _at(dataset, np.flatnonzero(even)))]
    rows = unlike(dataset.examples, ~missing)
    if confirmed is None:
        pairs = rows[near(pixels[rows])]
    else:
        first = _first(dataset.examples)[confirmed]
        pairs = first[first[:, 0] != first[:, 1]]
    found += _near(dataset, pairs, "" if confirmed is not None else UNCONFIRMED)
    return ranked(f for f in found if f is not None)


def ranked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Most severe first, and of these the ones with the most images."""
    return tuple(sorted(findings, key=lambda f: (_SEVERITIES.index(f.severity), -len(f.paths), f.kind)))


def left_out(faults: Sequence[Fault]) -> tuple[Finding, ...]:
    """What data.py left out, to be shown with the rest: one finding per kind, with the details that differ."""
    by_kind: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        by_kind[fault.kind].append(fault)
    found = []
    for kind, of in by_kind.items():
        severity: Severity = "note" if kind in _NOTES else "warning" if kind in _WARNINGS else "fault"
        one = len({f.detail for f in of}) == 1
        paths = tuple(f.path if one else f"{f.path} ({f.detail})" for f in of)
        found.append(Finding(kind, severity, f"{len(of):,} left out" + (f": {of[0].detail}" if one else ""), paths))
    return ranked(found)


def one_colour(
    pixels: NDArray[np.uint8],  # (n, 16, 16, 3)
) -> NDArray[np.bool_]:  # (n,)
    """Which sketches show nothing at all."""
    rows = pixels.reshape(len(pixels), sketches.SIDE, -1)  # first down, 48 values at once, then across
    most, least = (of.reshape(len(pixels), sketches.SIDE, 3) for of in (rows.max(axis=1), rows.min(axis=1)))
    spread: NDArray[np.bool_] = (most.max(axis=1) - least.min(axis=1)).max(axis=1) <= ONE_COLOUR
    return spread


def _first(examples: Sequence[Example]) -> NDArray[np.int64]:  # (n,)
    """The first row of each one's content."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(e.digest, i) for i, e in enumerate(examples)], dtype=np.int64)


def unlike(
    examples: Sequence[Example],
    usable: NDArray[np.bool_],  # (n,)
) -> NDArray[np.int64]:
    """One row for each content, of those that are usable."""
    first: dict[str, int] = {}
    for i, example in enumerate(examples):
        if usable[i]:
            first.setdefault(example.digest, i)
    return np.array(list(first.values()), dtype=np.int64)


def near(
    pixels: NDArray[np.uint8],  # (n, 16, 16, 3)
    *,
    likeness: float = NEAR_LIKENESS,
) -> NDArray[np.int64]:  # (pairs, 2), the smaller row first
    """Near-duplicates: hashes within NEAR_BITS of each other, sketches that correlate by `likeness` or more.

    All hashes are compared with all: exact, and 50,000 images take seconds. Of the pairs, as many come back as join
    all that belong together. Memory beside the sketches stays as it is.
    """
    told = _told(pixels)
    n, links = len(told), np.zeros((0, 2), dtype=np.int64)
    if n < 2:
        return links
    pixels = pixels.reshape(len(pixels), -1)
    hashes = sketches.hashed(pixels.reshape(-1, sketches.SIDE, sketches.SIDE, 3)[told])
    group = np.arange(n)  # which are joined by now
    width = max(1, _TOGETHER // n)
    different, bits = np.empty(width * n, np.uint64), np.empty(width * n, np.uint8)
    for top in range(0, n, width):
        rows, others = hashes[top : top + width, None], hashes[None, top:]
        shape = len(rows), others.shape[1]
        x, b = (of[: shape[0] * shape[1]].reshape(shape) for of in (different, bits))
        np.bitwise_count(np.bitwise_xor(rows, others, out=x), out=b)
        i, j = np.divmod(np.flatnonzero(b <= NEAR_BITS), shape[1])
        new = (i < j) & (group[top + i] != group[top + j])
        if new.any():
            before = len(links)
            links = _linked(links, np.stack([i[new], j[new]], axis=1) + top, pixels, told, likeness)
            group = joined(links, n) if len(links) > before else group
    found: NDArray[np.int64] = told[links]
    return found


def _told(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Rows of the sketches that show enough to be compared."""
    norms = [_centred(pixels[s : s + _SKETCHES])[1] for s in range(0, len(pixels), _SKETCHES)]
    least = EVEN * np.sqrt(3 * sketches.SIDE**2)
    return np.flatnonzero(np.concatenate([np.zeros(0, np.float32), *norms]) >= least)


def _centred(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # (m, 768), (m,)
    """Sketches less their means, and their lengths."""
    flat = pixels.reshape(len(pixels), 3 * sketches.SIDE**2).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat, np.linalg.norm(flat, axis=1)


def _same(
    pixels: NDArray[np.uint8], told: NDArray[np.int64], pairs: NDArray[np.int64], likeness: float
) -> NDArray[np.bool_]:
    """Whether the sketches of each pair of told rows correlate by so much."""
    found = [np.zeros(0, dtype=bool)]
    for start in range(0, len(pairs), _SKETCHES):
        (a, length), (b, other) = (_centred(pixels[told[of]]) for of in pairs[start : start + _SKETCHES].T)
        found.append(np.einsum("nd,nd->n", a / length[:, None], b / other[:, None]) >= likeness)
    return np.concatenate(found)


def _linked(
    links: NDArray[np.int64], todo: NDArray[np.int64], pixels: NDArray[np.uint8], told: NDArray[np.int64],
    likeness: float,
) -> NDArray[np.int64]:  # fmt: skip
    """The links with those of the candidates that join what is not joined yet."""
    _, first = np.unique(todo[:, 1], return_index=True)  # where all are alike, these already join all
    batch, todo = todo[first], np.delete(todo, first, axis=0)
    while len(batch):
        links = np.concatenate([links, batch[_same(pixels, told, batch, likeness)]])
        if len(todo):
            groups = joined(links, len(told))
            todo = todo[groups[todo[:, 0]] != groups[todo[:, 1]]]
        batch, todo = todo[:_CANDIDATES], todo[_CANDIDATES:]
    return links


def joined(pairs: NDArray[np.int64], n: int) -> NDArray[np.int64]:  # (n,)
    """Which of n rows belong together by these pairs: the number of each one's group."""
    graph = coo_matrix((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    groups: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def clean(
    dataset: Dataset,
    pixels: NDArray[np.uint8],  # (n, 16, 16, 3)
    missing: NDArray[np.bool_],  # (n,)
) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """The examples of a cleaned list with their groups, and the paths of those that were left out of it.

    Left out: all copies of an image that has different labels, and training images that look like one of the part
    that is judged on. Copies and near-duplicates are given one group; the user's own groups stay, joined where such a
    pair joins them.
    """
    examples = dataset.examples
    torn, judging = {e.path for copies in _torn(examples) for e in copies}, _judging(examples)
    rows = unlike(examples, ~missing)
    same = _copy_pairs(examples)
    alike = np.concatenate([same, rows[near(pixels[rows])]])
    groups = joined(alike, len(examples))
    judged = {int(g) for g, e in zip(groups, examples, strict=True) if e.part == judging}
    leaking = {
        e.path for g, e in zip(groups, examples, strict=True) if judging and e.part != judging and int(g) in judged
    }
    own = _own_pairs(examples)
    together = joined(np.concatenate([alike, own]), len(examples))
    kept = [i for i, e in enumerate(examples) if e.path not in torn | leaking]
    members: dict[int, list[int]] = defaultdict(list)
    for i in kept:
        members[int(together[i])].append(i)
    names, numbers = dict[int, str](), count(1)
    for group, of in members.items():
        given = sorted({examples[i].group for i in of} - {""})
        # A name of the user's own would be another group's, if it were not all of this one.
        names[group] = "+".join(given) if given else f"alike-{next(numbers)}" if len(of) > 1 else ""
    listed = tuple(replace(examples[i], group=names[int(together[i])]) for i in kept)
    return listed, tuple(e.path for e in examples if e.path in torn | leaking)


def _at(dataset: Dataset, rows: NDArray[np.int64] | Sequence[int]) -> tuple[str, ...]:
    return tuple(dataset.examples[i].path for i in rows)


def _finding(kind: str, severity: Severity, detail: str, paths: Sequence[str]) -> Finding | None:
    """A finding about these images, or none where there are none; {n} in its detail is how many."""
    n = f"{len(paths):,} image" + ("" if len(paths) == 1 else "s")
    return Finding(kind, severity, detail.replace("{n}", n), tuple(paths)) if paths else None


def _judging(examples: Iterable[Example]) -> Part | None:
    """The part that the result is measured on, where the user gave one."""
    parts = {e.part for e in examples}
    return "test" if "test" in parts else "val" if "val" in parts else None


def _labels(example: Example) -> tuple[int, ...]:
    return example.labels or (example.label,)


def _contents(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples of one content, where there is more than one."""
    by_digest: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_digest[example.digest].append(example)
    return [of for of in by_digest.values() if len(of) > 1]


def _torn(examples: Sequence[Example]) -> list[list[Example]]:
    """Copies of one image that have different labels."""
    return [of for of in _contents(examples) if len({_labels(e) for e in of}) > 1]


def _copy_pairs(examples: Sequence[Example]) -> NDArray[np.int64]:
    return _chains(e.digest for e in examples)


def _own_pairs(examples: Sequence[Example]) -> NDArray[np.int64]:
    return _chains(e.group for e in examples)


def _chains(keys: Iterable[str]) -> NDArray[np.int64]:  # (pairs, 2)
    """Each row with the one before it of the same key; an empty key is none."""
    last: dict[str, int] = {}
    pairs = []
    for i, key in enumerate(keys):
        if key in last:
            pairs.append((last[key], i))
        if key:
            last[key] = i
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _copies(dataset: Dataset) -> list[Finding]:
    torn = [e.path for of in _torn(dataset.examples) for e in of]
    copies = [e.path for of in _contents(dataset.examples) if len({_labels(e) for e in of}) == 1 for e in of]
    found = [
        _finding(
            "contradicting labels", "fault",
            "{n} with the very same content as another of a different label: at most one can be right", torn,
        ),
        _finding("copies", "note", "{n} with the very same content as another: kept on one side", copies),
    ]  # fmt: skip
    return [f for f in found if f is not None]


def _classes(dataset: Dataset) -> list[Finding]:
    """Classes with few training images, or with many times fewer than another."""
    judging = _judging(dataset.examples)
    seen = {(label, e.digest) for e in dataset.examples if e.part != judging for label in _labels(e)}
    counts = Counter(label for label, _ in seen)
    numbers = {name: counts[i] for i, name in enumerate(dataset.classes)}
    found = []
    few = [f"{name} {n}" for name, n in numbers.items() if n < FEW_IMAGES]
    if few:
        found.append(
            Finding("few images", "warning", f"classes of fewer than {FEW_IMAGES} images: {_list(few)}", ())
        )  # fmt: skip
    if len(numbers) > 1:
        least, most = min(numbers, key=numbers.__getitem__), max(numbers, key=numbers.__getitem__)
        if numbers[most] >= IMBALANCE * max(1, numbers[least]):
            detail = f"{numbers[most]:,} images of {most}, {numbers[least]:,} of {least}; --balance weighs them alike"
            found.append(Finding("imbalance", "warning", detail, ()))
    return found


def alike(names: Iterable[str]) -> list[list[str]]:
    """Names of classes that differ only in case, spaces, hyphens, underscores or the way letters are composed."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        by_key[re.sub(r"[\s_\-]+", "", folded) or name].append(name)
    return [of for of in by_key.values() if len(of) > 1]


def _names(classes: Sequence[str]) -> list[Finding]:
    groups = [" and ".join(ascii(n) if unicodedata.normalize("NFC", n) != n else repr(n) for n in of)
              for of in alike(classes)]  # fmt: skip
    if not groups:
        return []
    detail = f"classes whose names differ only in case, spaces or composed letters: {_list(groups)}"
    return [Finding("names alike", "warning", detail, ())]


def _files(examples: Sequence[Example]) -> list[Finding]:
    """What the files say of themselves."""
    tiny, odd, suffix, several = [], [], [], []
    wrong: Counter[str] = Counter()
    for e in examples:
        if e.facts is None:
            continue
        short, long = sorted((e.facts.width_px, e.facts.height_px))
        if short < TINY_PX:
            tiny.append(e.path)
        if long >= ODD_PROPORTIONS * short:
            odd.append(e.path)
        said = _suffix_says(e.path)
        if said and e.facts.format not in said:
            suffix.append(e.path)
            wrong[f"{e.facts.format} as .{e.path.rpartition('.')[2]}"] += 1
        if e.facts.frames > 1 and e.facts.format in _SEVERAL:
            several.append(e.path)
    kinds = _list([f"{n:,} {what}" for what, n in wrong.most_common()])
    found = [
        _finding("tiny", "warning", f"{{n}} with a side below {TINY_PX} px", tiny),
        _finding(
            "odd proportions", "warning",
            f"{{n}} at least {ODD_PROPORTIONS:g} times as long as wide: the network sees the centre alone", odd,
        ),
        _finding("wrong suffix", "note", f"{{n}} of another format than named ({kinds}): read all the same", suffix),
        _finding("several pictures", "note", "{n} of several pictures (frames, pages): the first one counts", several),
    ]  # fmt: skip
    return [f for f in found if f is not None]


def _suffix_says(path: str) -> set[str]:
    """The formats that a file's name stands for; none where it says nothing about it."""
    suffix = path.rpartition(".")[2].lower()
    return {format for format, suffixes in _SUFFIXES.items() if suffix in suffixes.split()}


def _near(dataset: Dataset, pairs: NDArray[np.int64], doubt: str) -> list[Finding | None]:
    """Near-duplicates by what they do: leak into what is judged, contradict each other, or only count twice."""
    examples, judging = dataset.examples, _judging(dataset.examples)
    members: dict[int, list[int]] = defaultdict(list)
    groups = joined(pairs, len(examples))
    for i in np.unique(pairs).tolist():
        members[int(groups[i])].append(i)
    across, torn, other = list[int](), list[int](), list[int]()
    for of in members.values():
        if len({examples[i].part == judging for i in of}) > 1:
            across += of
        elif len({_labels(examples[i]) for i in of}) > 1:
            torn += of
        else:
            other += of
    return [
        _finding(
            "near-duplicates across parts", "fault",
            f"{{n}} that look alike on both sides of the {judging} part: the result would be too good{doubt}",
            _at(dataset, sorted(across)),
        ),
        _finding(
            "near-duplicates of different classes", "warning",
            "{n} that look like one of a different label: at most one can be right" + doubt,
            _at(dataset, sorted(torn)),
        ),
        _finding(
            "near-duplicates", "warning", "{n} that look like another: they count as one" + doubt,
            _at(dataset, sorted(other)),
        ),
    ]  # fmt: skip


def _list(texts: Sequence[str], most: int = 8) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
