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
Doubles = NDArray[np.float64]
Kind = Literal["copy", "given", "near-duplicate", "burst"]
At = Callable[[int, Ints], Floats]  # features at a cut of these rows: (m, d) float32

FORMULA = "2"
"""Raised by every change that can change a group; groups kept under another one are not read."""

KINDS: tuple[Kind, ...] = ("copy", "given", "near-duplicate", "burst")

DEPTHS = (0.25, 0.5, 0.75, 1.0)
"""Where in the list of cuts images are compared: one depth alone takes what is alike to it (a colour, a kind of thing)
for one scene; the mean over four parts scenes better than any of them (bench/LOG.md)."""

NEAR, WIDE = 10, 40
"""Whose distance an image's others are measured by: its 10th neighbour in its class, which a burst of up to 10 photos
does not reach, and its 40th for longer ones; never one beyond the half, or the quarter, of its class."""

BLOCK = 1024
"""Images of one class that are compared with each other: classes that are larger are cut, by name, into blocks of as
many, so that memory and time per image stay as they are."""

PHOTOS_SPREAD = 7.0
"""Dimensions in which images of a class spread around each other, from which on a distance counts in full: photographs
and X-rays have 7 to 16 (bench/groups.py prints them). In fewer, the nearest is nearer by chance."""

LEAST_WEIGHT = 0.02  # images that hardly differ are no scenes, however near

KEPT = 2**23
"""Pairs of images whose distances are kept in memory (64 MiB); blocks beyond are compared once more where they hold
scenes."""

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

LEAST_IN_ORDER = 4  # images of a class from which their order can say anything
MOST_FAR = 20_000  # pairs of a block that say what is usual: enough for a share of 5%

TIME_S = 3600.0
"""Seconds between two photos up to which neighbours by capture time are one visit."""

LARGEST = 0.5
"""Share of a class that one burst may take: something must be left to tell it from."""

HASH_BITS = 16
"""Of 64, in which the hashes of near-duplicates may differ to be looked at closer."""

MOST_CANDIDATES = 20
"""Near-duplicates looked for per image, the nearest hashes first: of images that are all alike there would be n^2."""

TOGETHER = 2**20
"""Pairs of hashes that are compared at once (9 MiB). All pairs are: 16 bits of 64 are too many for a search by equal
pieces of the hash, each of which would let through a sixth of all pairs (bench/LOG.md). No effect on the result."""

ALIKE = 0.7
"""Mean distance over that to the neighbours up to which two such images are nearly the same. bench/groups.py prints
what it finds, and what it takes for the same by mistake."""

TINY = 1e-6  # squared distance that counts as none


@dataclass(frozen=True)
class Found:
    """A group for each image, and why."""

    index: Ints  # (n,) the same number for what belongs together, 0.. in order of the first image
    pairs: Ints  # (m, 2) rows that were linked
    kinds: Ints  # (m,) of KINDS
    near: Ints  # (p, 2) near-duplicates, the smaller row first, whatever else joins them
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
    at_cuts = depths(cuts)
    scales = [_moments(at, k, n, seed) for k in at_cuts]
    limits, near = (0.0, 0.0), list[tuple[int, int]]()
    if n:
        labels = np.zeros(n, dtype=np.int64) if one_class else np.array([e.label for e in examples])
        blocks = list(_seen(examples, labels, lambda rows: _block(rows, at, at_cuts, scales), seed, orders=bursts))
        weight = _weight(blocks)
        if hashes is not None:
            usable = np.arange(n) if hashed is None else np.flatnonzero(hashed)
            reach = np.zeros((n, len(at_cuts)), np.float32)
            for s in blocks:
                reach[s.rows] = s.reach
            alike = ALIKE ** (1 / weight)
            near = _near(usable, hashes[usable], reach, at, at_cuts, scales, alike)
            for i, j in near:
                link(i, j, KINDS.index("near-duplicate"))
        if bursts:
            sizes = np.bincount(labels)[labels]
            limits = _bursts(blocks, lambda rows: _block(rows, at, at_cuts, scales), union, link, sizes, weight)
    array = np.array(links, dtype=np.int64).reshape(-1, 3)
    pairs = np.array(near, dtype=np.int64).reshape(-1, 2)
    return Found(union.index(), array[:, :2], array[:, 2], pairs, limits)


def depths(cuts: int) -> list[int]:
    """At which of `cuts` cuts images are compared: their indices."""
    return sorted({max(0, round(d * cuts) - 1) for d in DEPTHS})


def alike(found: Found) -> Ints:
    """The groups without bursts: copies, given groups and near-duplicates alone, (n,)."""
    union = Union(len(found.index))
    for i, j in found.pairs[found.kinds < KINDS.index("burst")]:  # they were linked before any burst was
        union.join(int(i), int(j))
    return union.index()


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
        round(found.limits[0], 3), round(found.limits[1], 3),
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
    rows: Ints,
    hashes: NDArray[np.uint64],
    reach: Floats,
    at: At,
    depths: Sequence[int],
    scales: Sequence[Moments],
    alike: float,
) -> list[tuple[int, int]]:  # reach: (n, cuts) distance of each image to its NEAR-th neighbour
    """Near-duplicates: pairs whose hashes are close, and whose features are, over those of their neighbours."""
    pairs = rows[_candidates(hashes)]
    distance = np.zeros(len(pairs))
    for which, (k, moments) in enumerate(zip(depths, scales, strict=True)):  # the shortest features first
        for start in range(0, len(pairs), BLOCK):
            part = slice(start, start + BLOCK)
            i, j = pairs[part].T
            d = np.linalg.norm(_unit(at(k, i), moments) - _unit(at(k, j), moments), axis=1)
            distance[part] += d / np.sqrt(np.maximum(reach[i, which] * reach[j, which], TINY)) / len(depths)
        pairs, distance = pairs[distance <= alike], distance[distance <= alike]
    return [(int(i), int(j)) for i, j in pairs]


def _candidates(hashes: NDArray[np.uint64]) -> Ints:
    """Pairs (i < j) whose hashes differ in at most HASH_BITS, the nearest MOST_CANDIDATES of each image: (m, 2)."""
    found, n = [np.zeros((0, 2), dtype=np.int64)], len(hashes)
    width = max(1, TOGETHER // max(1, n))
    different, bits = np.empty((width, n), np.uint64), np.empty((width, n), np.uint8)  # made once: the most of the time
    for start in range(0, n, width):
        m = min(width, n - start)
        np.bitwise_count(np.bitwise_xor(hashes[start : start + m, None], hashes, out=different[:m]), out=bits[:m])
        bits[np.arange(m), start + np.arange(m)] = 255
        i, j = np.divmod(np.flatnonzero(bits[:m] <= HASH_BITS), n)
        for row in np.flatnonzero(np.bincount(i, minlength=m) > MOST_CANDIDATES):
            near = j[i == row]
            near = near[np.argsort(bits[row, near], kind="stable")[:MOST_CANDIDATES]]
            i, j = np.append(i[i != row], np.full(len(near), row)), np.append(j[i != row], near)
        found.append(np.stack([i + start, j], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs, axis=0)


@dataclass(frozen=True)
class _Block:
    """Images of one class in the order of their names, and how near each is to each."""

    rows: Ints  # (m,)
    near: Floats  # (m, m) mean over the cuts of the distance over that to the NEAR-th neighbours; inf to itself
    wide: Floats  # the same by the WIDE-th
    reach: Floats  # (m, cuts) distance of each to its NEAR-th neighbour
    dimensions: Floats  # (m, cuts) in which the images spread around each, by its NEAR-th and a farther neighbour


def _blocks(examples: Sequence[Example], labels: Ints) -> Iterator[Ints]:
    """The rows of each class in the order of their names, at most BLOCK at a time."""
    keys = [natural(e.path) for e in examples]
    for label in np.unique(labels):
        rows = np.array(sorted(np.flatnonzero(labels == label), key=lambda i: (keys[i], i)), dtype=np.int64)
        yield from np.array_split(rows, -(-len(rows) // BLOCK))


def _block(rows: Ints, at: At, depths: Sequence[int], scales: Sequence[Moments]) -> _Block:
    m = len(rows)
    near, wide = np.zeros((m, m), np.float32), np.zeros((m, m), np.float32)
    reach = np.zeros((m, len(depths)), np.float32)
    dimensions = reach + np.inf
    if m < 3:  # each is the other's nearest, however far it is
        return _Block(rows, near + np.inf, wide + np.inf, reach, reach + np.inf)
    tenth, fortieth = _neighbour(NEAR, m, 2), _neighbour(WIDE, m, 4)
    outer = max(tenth + 1, min(WIDE, (m - 1) * 3 // 4) - 1)
    for which, (k, moments) in enumerate(zip(depths, scales, strict=True)):
        z = _unit(at(k, rows), moments)
        d = np.sqrt(np.maximum(2 - 2 * (z @ z.T), 0))
        np.fill_diagonal(d, np.inf)
        order = np.partition(d, sorted({tenth, fortieth, min(outer, m - 1)}), axis=1)
        reach[:, which] = order[:, tenth]
        if outer < m - 1:  # volumes grow by the ratio of distances to the power of the dimensions
            growth = np.log(np.maximum(order[:, outer], TINY) / np.maximum(order[:, tenth], TINY))
            dimensions[:, which] = np.log((outer + 1) / (tenth + 1)) / np.maximum(growth, TINY)
        d /= np.float32(len(depths))
        for total, position in ((near, tenth), (wide, fortieth)):
            scale = np.sqrt(np.maximum(order[:, position], TINY))
            np.add(total, d / (scale[:, None] * scale), out=total)
    return _Block(rows, near, wide, reach, dimensions)


def _neighbour(k: int, m: int, part: int) -> int:
    """Position, from 0, of the neighbour that m images are measured by."""
    return max(1, min(k, (m - 1) // part)) - 1


Order = list[Ints]  # positions in a block, one list for each run of images that follow each other


@dataclass(frozen=True)
class _Told:
    """What an order of a block's images says."""

    order: Order
    seen: float  # sum of the ranks of the distances between neighbours in it
    shuffled: Doubles  # (SHUFFLES,) the same in other orders
    beside: Ints  # (2, p) positions of the images at most STEP apart in it, the smaller one first
    near: Floats  # (p,) their distances
    far: Floats  # distances between some images far apart in it


@dataclass(frozen=True)
class _Seen:
    """What is kept of every block: enough to set the limits."""

    rows: Ints
    nearest: tuple[Floats, Floats]  # (m,) distance to the nearest, by near and by wide
    reach: Floats  # (m, cuts), as in the block
    dimensions: Floats
    told: tuple[_Told, ...]  # by name and by capture time; none where orders are not asked
    block: _Block | None  # itself, while there is room


def _seen(
    examples: Sequence[Example], labels: Ints, make: Callable[[Ints], _Block], seed: int, *, orders: bool
) -> Iterator[_Seen]:
    """Look at every block once."""
    room = KEPT
    for b, rows in enumerate(_blocks(examples, labels)):
        block = make(rows)
        room -= len(rows) ** 2
        nearest = (block.near.min(axis=1, initial=np.inf), block.wide.min(axis=1, initial=np.inf))
        rng = np.random.default_rng([seed, b])
        told = tuple(_told(block, order, rng) for order in ([np.arange(len(rows))], _by_time(rows, examples)) if orders)
        yield _Seen(rows, nearest, block.reach, block.dimensions, told, block if room >= 0 else None)


def _bursts(
    blocks: Sequence[_Seen], make: Callable[[Ints], _Block], union: Union, link: Callable[[int, int, int], None],
    sizes: Ints, weight: float,
) -> tuple[float, float]:  # fmt: skip
    """Link photos of one scene; the distances up to which two are one, whatever their names, and in their order."""
    n = len(sizes)
    limits = (
        _limit([s.nearest[0] for s in blocks], USUAL_NEAR, n, weight),
        _limit([s.nearest[1] for s in blocks], USUAL_WIDE, n, weight),
    )  # fmt: skip
    in_order = tuple(_limit_in_order([s.told[which] for s in blocks], weight) for which in (0, 1))
    loosest = (max(*limits, *in_order) + 1) / 2
    for s in blocks:
        if (
            any((nearest <= most).any() for nearest, most in zip(s.nearest, limits, strict=True))
            or any((told.near <= most).any() for told, most in zip(s.told, in_order, strict=True))
        ):  # fmt: skip
            _link(s, s.block or make(s.rows), limits, in_order, loosest, union, link, sizes)
    return max(limits), max(in_order)


def _link(
    s: _Seen, block: _Block, limits: tuple[float, float], in_order: tuple[float, ...], loosest: float, union: Union,
    link: Callable[[int, int, int], None], sizes: Ints,
) -> None:  # fmt: skip
    """Link what is near enough in a block, the nearest first."""
    pairs: list[tuple[float, int, int]] = []
    for distance, most in zip((block.near, block.wide), limits, strict=True):
        i, j = np.nonzero(np.triu(distance <= most, 1))
        pairs += zip(distance[i, j].tolist(), i.tolist(), j.tolist(), strict=True)
    for told, most in zip(s.told, in_order, strict=True):
        close = told.near <= most
        pairs += zip(told.near[close].tolist(), *told.beside[:, close].tolist(), strict=True)
    place = {int(row): p for p, row in enumerate(s.rows)}
    for _, first, second in sorted(set(pairs)):
        one, other = int(s.rows[first]), int(s.rows[second])
        if union.root(one) == union.root(other):
            continue
        mine, theirs = ([place[r] for r in union.members(row) if r in place] for row in (one, other))
        if len(mine) + len(theirs) > max(2, LARGEST * sizes[one]):
            continue
        # Not the nearest two alone: chains of images that are each like the next would take the whole class.
        if np.minimum(block.near, block.wide)[np.ix_(mine, theirs)].mean() <= loosest:
            link(one, other, KINDS.index("burst"))


def _spread(dimensions: Floats) -> float:  # (n, cuts)
    """In how many dimensions the images of a class spread around each other; infinite where too few are there."""
    found = dimensions[np.isfinite(dimensions).all(axis=1)]
    # Harmonic: a cut that tells nothing apart has no say.
    return 1 / float((1 / np.median(found, axis=0)).mean()) if len(found) else np.inf


def _weight(blocks: Sequence[_Seen]) -> float:
    """What a distance counts: 1 where images spread in as many dimensions as photos do, less where in fewer.

    Of images that differ in little (a colour, a slope), the nearest is very near by chance: c counts as c^weight.
    """
    spread = _spread(np.concatenate([s.dimensions for s in blocks]))
    return float(np.clip((spread / PHOTOS_SPREAD) ** 2, LEAST_WEIGHT, 1))


def _limit(nearest: Sequence[Floats], usual: Sequence[float], n: int, weight: float) -> float:
    """Up to which distance images are one scene: looser where far more of them have another so near than usual."""
    found, best = np.concatenate(nearest) ** weight, EXTREME
    for limit, share in zip(LOOSER, usual, strict=True):
        if share <= FALSE_SHARE * (found <= limit).sum() / n:
            best = limit
    return float(best ** (1 / weight))


def _told(block: _Block, order: Order, rng: np.random.Generator) -> _Told:
    """What an order of some of the block's images says: whether neighbours in it are alike, and how much."""
    members = np.concatenate([np.zeros(0, dtype=np.int64), *order])
    m, shuffled, seen = len(members), np.zeros(SHUFFLES), 0.0
    part = block.wide[np.ix_(members, members)]
    if m >= LEAST_IN_ORDER:
        upper = np.triu_indices(m, 1)
        rising = part[upper].argsort(kind="stable")
        place = np.empty(len(rising), np.float32)
        place[rising] = np.arange(len(rising), dtype=np.float32) / len(rising)
        ranks = np.zeros((m, m), np.float32)
        ranks[upper] = place
        ranks += ranks.T
        inside = np.setdiff1d(np.arange(m - 1), np.cumsum([len(run) for run in order])[:-1] - 1)
        seen = float(ranks[inside, inside + 1].sum())
        for start in range(0, SHUFFLES, 100):
            some = min(100, SHUFFLES - start)
            drawn = rng.permuted(np.tile(np.arange(m), (some, 1)), axis=1)
            shuffled[start : start + some] = ranks[drawn[:, inside], drawn[:, inside + 1]].sum(axis=1)
    steps = [np.stack([run[:-s], run[s:]]) for run in order for s in range(1, STEP + 1) if len(run) > s]
    beside = np.sort(np.concatenate([np.zeros((2, 0), dtype=np.int64), *steps], axis=1), axis=0)
    i, j = np.triu_indices(m, max(1, min(max(APART, m // 4), m // 2)))
    far = part[i, j]
    return _Told(order, seen, shuffled, beside, block.wide[tuple(beside)], far[:: 1 + len(far) // MOST_FAR])


def _limit_in_order(told: Sequence[_Told], weight: float) -> float:
    """Up to which distance neighbours in an order are one scene; 0 where the order says nothing.

    If it said nothing (images of a class are exchangeable), the chance that no other order brings images as alike next
    to each other is 1 / (SHUFFLES + 1). Where it says something, neighbours are believed as far as few of those that
    near would be so by chance; what chance does is seen on images that are far apart in the order.
    """
    if sum(t.seen for t in told) >= np.sum([t.shuffled for t in told], axis=0).min(initial=np.inf):
        return 0.0
    near = np.sort(np.concatenate([t.near for t in told]))
    usual = np.sort(np.concatenate([t.far for t in told]))
    chance = (np.searchsorted(usual, near, side="right") + 1) / (len(usual) + 1)
    good = (near <= LOOSEST ** (1 / weight)) & (chance * len(near) <= FALSE_IN_ORDER * np.arange(1, len(near) + 1))
    return float(near[good].max(initial=0.0))


def _by_time(rows: Ints, examples: Sequence[Example]) -> Order:
    """Positions of the images whose files say when they were taken, in that order; a run ends where an hour passes."""
    times = sorted((t, p) for p, row in enumerate(rows) if (t := _taken(examples[row])) is not None)
    at = np.array([p for _, p in times], dtype=np.int64)
    gaps = np.flatnonzero(np.diff([t for t, _ in times]) > TIME_S) + 1
    return [run for run in np.split(at, gaps) if len(run)]


def _taken(example: Example) -> float | None:
    """Capture time in seconds; None where the file does not say it."""
    if example.facts is None or not example.facts.taken:
        return None
    try:
        taken = datetime.fromisoformat(example.facts.taken).replace(tzinfo=None)
        return (taken - datetime(1970, 1, 1)).total_seconds()
    except ValueError:
        return None
