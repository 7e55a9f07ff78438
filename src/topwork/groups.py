"""Which images belong together?

Copies, images that the user gave one group, near-duplicates, and several photos of one scene (bursts). What belongs
together is never on two sides of anything. A pure room: examples, hashes and features in, a group for each image out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from topwork.records import Example, GroupCount, Grouped

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Kind = Literal["copy", "given", "near-duplicate", "burst"]
At = Callable[[int, Ints], Floats]  # features at a cut of these rows: (m, d) float32

FORMULA = "1"
"""Raised by every change that can change a group; groups kept under another one are not read."""

KINDS: tuple[Kind, ...] = ("copy", "given", "near-duplicate", "burst")

DEPTHS = (0.25, 0.5, 0.75, 1.0)
"""Where in the list of cuts images are compared: one depth alone takes what is alike to it (a colour, a kind of thing)
for one scene; the mean over four parts scenes twice as well (bench/LOG.md)."""

NEAR, WIDE = 10, 40
"""Whose distance an image's others are measured by: its 10th neighbour in its class, which a burst of up to 10 photos
does not reach, and its 40th for longer ones; never one beyond the half, or the quarter, of its class."""

BLOCK = 2048
"""Images of one class that are compared with each other: classes that are larger are cut, by name, into blocks of as
many, so that memory and time per image stay as they are."""

EXTREME = 0.5
"""Mean distance over that to the neighbours up to which two images are one scene whatever the others do: of the seven
sets in bench/groups.py without bursts, 0.1% of the images have another so near."""

LOOSER = (0.55, 0.6, 0.65, 0.7, 0.75)
USUAL_NEAR = (0.0133, 0.022, 0.03, 0.057, 0.115)
USUAL_WIDE = (0.026, 0.049, 0.114, 0.178, 0.305)
"""Share of the images that have another so near, by the 10th and by the 40th neighbour: the most that any of eight sets
without bursts shows (bench/groups.py prints them)."""

FALSE_SHARE = 0.2
"""Share of the grouped images that may be there by chance: a limit is loosened only where so many more images are that
near than usual. A group of two that is none costs hardly anything; scenes that are missed cost the truth."""

SHUFFLES = 1999
"""Orders that the order of names is held against. Only where none of them brings images that are as alike next to each
other (p = 1/2000), names are believed."""

STEP, APART = 3, 10
"""How far apart in the order of names photos of one burst may be, and from which distance on two images say what is
usual: half a class at most."""

FALSE_IN_ORDER, LOOSEST = 0.05, 0.85
"""Share of the links between neighbours by name that may be there by chance, and the largest distance at which any is
made."""

TIME_S = 3600.0
"""Seconds between two photos up to which neighbours by capture time are one visit."""

LARGEST = 0.5
"""Share of a class that one burst may take: something must be left to tell it from."""

HASH_BITS = 10
"""Of 64, in which the hashes of near-duplicates may differ to be looked at closer."""

MOST_CANDIDATES = 20
"""Near-duplicates looked for per image, the nearest hashes first: of images that are all alike there would be n^2."""

ALIKE_EARLY, ALIKE_DEEP = 0.9, 0.9
"""Least cosine of the standardised features of near-duplicates at a quarter and at the end of the cuts."""


@dataclass(frozen=True)
class Found:
    """A group for each image, and why."""

    index: Ints  # (n,) the same number for what belongs together, 0.. in order of the first image
    pairs: Ints  # (m, 2) rows that were linked
    kinds: Ints  # (m,) of KINDS
    limits: tuple[float, float]  # distance up to which images are one scene: whatever their names, and in their order


def known(examples: Sequence[Example]) -> Ints:
    """The group of each image before anything is computed: same content, same given group, found together before."""
    union = Union(len(examples))
    for i, j, _ in _stated(examples):
        union.join(i, j)
    return union.index()


def find(
    examples: Sequence[Example],
    at: At,
    cuts: int,
    *,
    hashes: NDArray[np.uint64] | None = None,  # (n,) perceptual; None where no image was hashed
    hashed: NDArray[np.bool_] | None = None,  # (n,) whether each one was; None: all
    one_class: bool = False,  # images may have several labels: all are compared with all
    bursts: bool = True,
    seed: int = 0,
) -> Found:
    """What belongs together, by content, by the user's word, by looks, and by scene.

    `at`: features at one of `cuts` cuts. Near-duplicates are found in all images, bursts within a class.
    """
    n = len(examples)
    union = Union(n)
    links: list[tuple[int, int, int]] = []

    def link(i: int, j: int, kind: int) -> None:
        if union.join(i, j):
            links.append((i, j, kind))

    for i, j, kind in _stated(examples):
        link(i, j, kind)
    depths = sorted({max(0, round(d * cuts) - 1) for d in DEPTHS})
    scales = [_moments(at, k, n, seed) for k in depths]
    if hashes is not None:
        usable = np.arange(n) if hashed is None else np.flatnonzero(hashed)
        for i, j in _near(usable, hashes[usable], at, depths, scales):
            link(i, j, 2)
    limits = (0.0, 0.0)
    if bursts and n:
        labels = np.zeros(n, dtype=np.int64) if one_class else np.array([e.label for e in examples])
        blocks = [_block(rows, at, depths, scales) for rows in _blocks(examples, labels)]
        limits = _bursts(blocks, examples, union, link, np.bincount(labels)[labels], seed)
    array = np.array(links, dtype=np.int64).reshape(-1, 3)
    return Found(union.index(), array[:, :2], array[:, 2], limits)


def facts(examples: Sequence[Example], found: Found, *, most: int = 5) -> Grouped:
    """What run.json keeps of the groups: how many of each kind, and the largest."""
    members = defaultdict(list)
    for e, g in zip(examples, found.index, strict=True):
        members[int(g)].append(e.path)
    several = sorted((m for m in members.values() if len(m) > 1), key=lambda m: (-len(m), m))
    counts = []
    for kind, name in enumerate(KINDS):
        of = found.pairs[found.kinds == kind]
        if len(of):
            counts.append(GroupCount(name, len(of), len(np.unique(of)), _examples(examples, of)))
    return Grouped(
        len(examples), len(members), sum(map(len, several)), tuple(counts),
        tuple(tuple(m[:most]) for m in several[:most]), tuple(len(m) for m in several[:most]),
        *(round(x, 3) for x in found.limits),
    )  # fmt: skip


class Union:
    """Components that grow: which rows are one by now."""

    def __init__(self, n: int) -> None:
        self._root = list(range(n))
        self._members: dict[int, list[int]] = {}

    def root(self, i: int) -> int:
        """The row that stands for i's component."""
        while self._root[i] != i:
            self._root[i] = self._root[self._root[i]]
            i = self._root[i]
        return i

    def members(self, i: int) -> list[int]:
        """The rows of i's component."""
        return self._members.get(self.root(i), [self.root(i)])

    def join(self, i: int, j: int) -> bool:
        """Make two components one; whether they were not yet."""
        a, b = self.root(i), self.root(j)
        if a == b:
            return False
        one, other = self.members(a), self.members(b)
        if len(one) < len(other):
            a, b = b, a
        self._root[b] = a
        self._members[a] = [*self.members(a), *self._members.pop(b, [b])]
        return True

    def index(self) -> Ints:
        """A number for each row's component, 0.. in order of the first row."""
        seen: dict[int, int] = {}
        return np.array([seen.setdefault(self.root(i), len(seen)) for i in range(len(self._root))], dtype=np.int64)


def natural(path: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts names as people count: img_2 before img_10."""
    parts = re.split(r"(\d+)", path.lower())
    return tuple((0, int(p), "") if p.isdecimal() and p.isascii() else (1, 0, p) for p in parts)


def _stated(examples: Sequence[Example]) -> Iterator[tuple[int, int, int]]:
    """Links that need no looking: each image to the first of the same content, given group, or group found before."""
    first: dict[tuple[int, str], int] = {}
    for i, e in enumerate(examples):
        for kind, name in ((0, e.digest), (1, e.group), (3, e.scene)):
            if name:
                j = first.setdefault((kind, name), i)
                if j != i:
                    yield j, i, kind


def _examples(examples: Sequence[Example], pairs: Ints, most: int = 3) -> tuple[tuple[str, str], ...]:
    return tuple((examples[i].path, examples[j].path) for i, j in pairs[:most])


Moments = tuple[NDArray[np.float32], NDArray[np.float32]]  # mean and scale of each column


def _moments(at: At, k: int, n: int, seed: int, most: int = BLOCK) -> Moments:
    """Mean and spread of the features at a cut, over a sample. What does not vary gets no weight."""
    rows = np.arange(n) if n <= most else np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
    x = at(k, rows)
    if not len(x):
        return np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale <= 1e-6 * (np.abs(mean) + 1e-12)] = np.inf
    return mean, scale


def _unit(x: Floats, moments: Moments) -> Floats:
    """Rows standardised, of length 1."""
    z = (x - moments[0]) / moments[1]
    z /= np.linalg.norm(z, axis=1, keepdims=True) + 1e-12
    return z.astype(np.float32, copy=False)


def _near(
    rows: Ints, hashes: NDArray[np.uint64], at: At, depths: Sequence[int], scales: Sequence[Moments]
) -> list[tuple[int, int]]:
    """Near-duplicates: pairs whose hashes are close and whose features are, early and deep."""
    pairs = rows[_candidates(hashes)]
    good = np.ones(len(pairs), dtype=bool)
    for which, least in ((0, ALIKE_EARLY), (-1, ALIKE_DEEP)):
        for start in range(0, len(pairs), BLOCK):
            part = slice(start, start + BLOCK)
            a, b = (_unit(at(depths[which], pairs[part, side]), scales[which]) for side in (0, 1))
            good[part] &= (a * b).sum(axis=1) >= least
    return [(int(i), int(j)) for i, j in pairs[good]]


def _candidates(hashes: NDArray[np.uint64]) -> Ints:
    """Pairs (i < j) whose hashes differ in at most HASH_BITS, the nearest MOST_CANDIDATES of each image: (m, 2)."""
    found, n = [np.zeros((0, 2), dtype=np.int64)], len(hashes)
    width = max(1, 2**22 // max(1, n))
    for start in range(0, n, width):
        bits = np.bitwise_count(hashes[start : start + width, None] ^ hashes)
        bits[np.arange(len(bits)), start + np.arange(len(bits))] = 255
        if n > MOST_CANDIDATES:
            nearest = np.partition(bits, MOST_CANDIDATES, axis=1)[:, MOST_CANDIDATES]
            bits[bits > np.minimum(nearest, HASH_BITS)[:, None]] = 255
        i, j = np.nonzero(bits <= HASH_BITS)
        if n > MOST_CANDIDATES:  # ties: the first ones
            turn = np.arange(len(i)) - np.searchsorted(i, i)
            i, j = i[turn < 2 * MOST_CANDIDATES], j[turn < 2 * MOST_CANDIDATES]
        found.append(np.stack([i + start, j], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs, axis=0)


@dataclass(frozen=True)
class _Block:
    """Images of one class in the order of their names, and how near each is to each."""

    rows: Ints  # (m,)
    near: Floats  # (m, m) mean over the cuts of the distance over that to the NEAR-th neighbours; inf to itself
    wide: Floats  # the same by the WIDE-th


def _blocks(examples: Sequence[Example], labels: Ints) -> Iterator[Ints]:
    """The rows of each class in the order of their names, at most BLOCK at a time."""
    keys = [natural(e.path) for e in examples]
    for label in np.unique(labels):
        rows = np.array(sorted(np.flatnonzero(labels == label), key=lambda i: (keys[i], i)), dtype=np.int64)
        yield from np.array_split(rows, -(-len(rows) // BLOCK))


def _block(rows: Ints, at: At, depths: Sequence[int], scales: Sequence[Moments]) -> _Block:
    m = len(rows)
    near, wide = np.zeros((m, m), np.float32), np.zeros((m, m), np.float32)
    for k, moments in zip(depths, scales, strict=True):
        if m < 3:
            break
        z = _unit(at(k, rows), moments)
        d = np.sqrt(np.maximum(2 - 2 * (z @ z.T), 0))
        np.fill_diagonal(d, np.inf)
        order = np.partition(d, sorted({_neighbour(NEAR, m, 2), _neighbour(WIDE, m, 4)}), axis=1)
        for total, position in ((near, _neighbour(NEAR, m, 2)), (wide, _neighbour(WIDE, m, 4))):
            scale = np.sqrt(np.maximum(order[:, position], 1e-6))
            total += d / (scale[:, None] * scale)
    if m < 3:
        near[:], wide[:] = np.inf, np.inf
    return _Block(rows, near / len(depths), wide / len(depths))


def _neighbour(k: int, m: int, part: int) -> int:
    """Position, from 0, of the neighbour that m images are measured by."""
    return max(1, min(k, (m - 1) // part)) - 1


def _bursts(
    blocks: Sequence[_Block], examples: Sequence[Example], union: Union, link: Callable[[int, int, int], None],
    sizes: Ints, seed: int,
) -> tuple[float, float]:  # fmt: skip
    """Link photos of one scene; the distances up to which two are one, whatever their names, and in their order."""
    n = len(examples)
    limit = [_limit([b.near for b in blocks], USUAL_NEAR, n), _limit([b.wide for b in blocks], USUAL_WIDE, n)]
    in_order = 0.0
    pairs: list[tuple[float, int, int, int]] = []  # distance, block, two positions in it
    for b, block in enumerate(blocks):
        for distance, most in ((block.near, limit[0]), (block.wide, limit[1])):
            i, j = np.nonzero(np.triu(distance <= most, 1))
            pairs += zip(distance[i, j].tolist(), [b] * len(i), i.tolist(), j.tolist(), strict=True)
    for orders in (_by_name(blocks), _by_time(blocks, examples)):
        if not any(len(o) > 1 for order in orders for o in order) or not _follows(blocks, orders, seed):
            continue
        beside = [_beside(block, order) for block, order in zip(blocks, orders, strict=True)]
        most = _limit_in_order(blocks, orders, beside)
        in_order = max(in_order, most)
        for b, (block, (i, j)) in enumerate(zip(blocks, beside, strict=True)):
            distance = block.wide[i, j]
            close = distance <= most
            pairs += zip(distance[close].tolist(), [b] * int(close.sum()), i[close].tolist(), j[close].tolist(),
                         strict=True)  # fmt: skip
    loosest = (max(*limit, in_order) + 1) / 2
    place = [{int(row): p for p, row in enumerate(block.rows)} for block in blocks]
    for _, b, i, j in sorted(set(pairs)):
        block, (one, other) = blocks[b], (int(blocks[b].rows[p]) for p in (i, j))
        if union.root(one) == union.root(other):
            continue
        mine, theirs = ([place[b][r] for r in union.members(row) if r in place[b]] for row in (one, other))
        if len(mine) + len(theirs) > max(2, LARGEST * sizes[one]):
            continue
        # Not the nearest two alone: chains of images that are each like the next would take the whole class.
        if np.minimum(block.near, block.wide)[np.ix_(mine, theirs)].mean() <= loosest:
            link(one, other, 3)
    return max(limit), in_order


def _limit(distances: Sequence[Floats], usual: Sequence[float], n: int) -> float:
    """Up to which distance images are one scene: looser where far more of them have another so near than usual."""
    nearest = np.concatenate([d.min(axis=1, initial=np.inf) for d in distances])
    best = EXTREME
    for limit, share in zip(LOOSER, usual, strict=True):
        if share <= FALSE_SHARE * (nearest <= limit).sum() / n:
            best = limit
    return best


Order = list[Ints]  # positions in a block, one list for each run of images that follow each other


def _by_name(blocks: Sequence[_Block]) -> list[Order]:
    """Blocks are in the order of names."""
    return [[np.arange(len(block.rows))] for block in blocks]


def _by_time(blocks: Sequence[_Block], examples: Sequence[Example]) -> list[Order]:
    """The images whose files say when they were taken, in that order; a run ends where an hour passes."""
    found = []
    for block in blocks:
        times = [(t, p) for p, row in enumerate(block.rows) if (t := _taken(examples[row])) is not None]
        times.sort()
        at = np.array([p for _, p in times], dtype=np.int64)
        gaps = np.flatnonzero(np.diff([t for t, _ in times]) > TIME_S) + 1
        found.append([run for run in np.split(at, gaps) if len(run)])
    return found


def _taken(example: Example) -> float | None:
    """Capture time in seconds; None where the file does not say it."""
    if example.facts is None or not example.facts.taken:
        return None
    try:
        return (datetime.fromisoformat(example.facts.taken).replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()  # noqa: DTZ001
    except ValueError:
        return None


def _follows(blocks: Sequence[_Block], orders: Sequence[Order], seed: int) -> bool:
    """Whether neighbours in the order are more alike than in any of SHUFFLES orders.

    If the order said nothing (images of a class are exchangeable), the chance of that is 1 / (SHUFFLES + 1).
    """
    rng = np.random.default_rng(seed)
    seen, shuffled = 0.0, np.zeros(SHUFFLES)
    for block, order in zip(blocks, orders, strict=True):
        m = sum(map(len, order))
        if m < 3:
            continue
        members = np.concatenate(order)
        part = block.wide[np.ix_(members, members)]
        upper = np.triu_indices(m, 1)
        ranks = np.zeros((m, m), np.float32)
        ranks[upper] = part[upper].argsort(kind="stable").argsort(kind="stable") / len(upper[0])
        ranks += ranks.T
        ends = np.cumsum([len(o) for o in order])[:-1] - 1
        inside = np.setdiff1d(np.arange(m - 1), ends)
        seen += float(ranks[inside, inside + 1].sum())
        for start in range(0, SHUFFLES, 100):
            some = min(100, SHUFFLES - start)
            drawn = rng.permuted(np.tile(np.arange(m), (some, 1)), axis=1)
            shuffled[start : start + some] += ranks[drawn[:, inside], drawn[:, inside + 1]].sum(axis=1)
    return bool((shuffled > seen).all())


def _beside(block: _Block, order: Order) -> tuple[Ints, Ints]:
    """Positions of the images that are at most STEP apart in an order, the smaller one first."""
    pairs = [np.stack([run[:-s], run[s:]]) for run in order for s in range(1, STEP + 1) if len(run) > s]
    both = np.sort(np.concatenate([np.zeros((2, 0), dtype=np.int64), *pairs], axis=1), axis=0)
    return both[0], both[1]


def _limit_in_order(blocks: Sequence[_Block], orders: Sequence[Order], beside: Sequence[tuple[Ints, Ints]]) -> float:
    """Up to which distance neighbours in an order are one scene: few of those who are not so near by chance.

    What is usual by chance is what images show that are far apart in the order.
    """
    near = np.sort(np.concatenate([block.wide[i, j] for block, (i, j) in zip(blocks, beside, strict=True)]))
    far = [np.zeros(0, np.float32)]
    for block, order in zip(blocks, orders, strict=True):
        members = np.concatenate(order) if order else np.zeros(0, dtype=np.int64)
        m = len(members)
        i, j = np.triu_indices(m, min(max(APART, m // 4), max(1, m // 2)))
        far.append(block.wide[members[i], members[j]])
    usual = np.sort(np.concatenate(far))
    if not len(usual) or not len(near):
        return 0.0
    count = np.arange(1, len(near) + 1)
    chance = (np.searchsorted(usual, near, side="right") + 1) / (len(usual) + 1)
    good = (near <= LOOSEST) & (chance * len(near) <= FALSE_IN_ORDER * count)
    return float(near[good].max(initial=0.0))
