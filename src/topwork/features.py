"""What does the backbone see in the images, at every cut?

One forward pass per image, ever, as deep as it is needed. Pooled features of the cuts are appended as float16 to
shards on disk (shards.py), under a key of backbone, weights and preprocessing, and found again by the content of a
file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from topwork import engine, images, shards, stores, thumbnails
from topwork.ahead import AHEAD, flow
from topwork.engine import Engine, Pending, graph
from topwork.errors import ImageError
from topwork.records import EngineFacts, Example, Fault, Preprocessing
from topwork.sketches import Sketches, sketch
from topwork.stores import Store
from topwork.thumbnails import Thumbnails
from topwork.watch import SILENT, Watch
from topwork.zoo import Backbone

BATCH = 8
"""Images per batch on a CPU: larger gained nothing, and at the end of a pass a lane waits for the others for as long as
a batch takes."""

BATCH_GPU = 64

AHEAD_BYTES = 32 * 2**20
"""Pixels that are decoded while the network is still being set up, and ahead of it later: 200 images of 224 px, about
as many as one core decodes in the time that this takes."""

_FORMAT = "2"  # of the shards, and of what images.decode makes of a file's bytes; part of the key


@dataclass(frozen=True)
class Features:
    """Pooled features of n images at the backbone's cuts, read from the shards on demand."""

    cuts: tuple[str, ...]  # those that were asked for, from the input on
    widths: tuple[int, ...]  # values per image at each cut
    logits: NDArray[np.float32] | None  # (n, source_classes); None where the pass stops at a cut
    cost_shares: tuple[float, ...]  # measured seconds up to each cut over those of the whole backbone
    forward_seconds: float  # those of the whole backbone for one image; both over the images that ran all of it
    seconds: NDArray[np.float64]  # (1 + segments,) per image, as measured in the pass: decoding, then each segment,
    # over the images that it was run for; where it never was, from its multiply-adds
    fe_seconds: float  # decoding plus one forward pass of the whole backbone over the n images
    pass_seconds: float  # the same as far as each of the n images went; the same number where none was stopped early
    passed: int  # images that went through the backbone now; the others were found
    bytes_per_image: int  # on disk, on average
    faults: tuple[Fault, ...]
    engine: EngineFacts  # what most of the images went through
    _shards: tuple[shards.Shard, ...]
    _places: NDArray[np.int64]  # (n, 2) shard and row

    def at(self, k: int, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Features at cut k of the given images (default all): (n, width) float32."""
        return self.read(k, rows)[:]

    def read(self, k: int, rows: NDArray[np.int64] | None = None) -> shards.Rows:
        """The same without a place in memory: what is looked at is read from the shards, each time."""
        places = self._places if rows is None else self._places[rows]
        return shards.Rows(self._shards, places, k, self.widths[k])

    def of(self, rows: NDArray[np.int64]) -> Features:
        """Those of these images alone; what the pass took stays what it was."""
        return replace(self, logits=None if self.logits is None else self.logits[rows], _places=self._places[rows])


def measure(
    backbones: Sequence[Backbone],
    root: str | Path,
    examples: Sequence[Example],
    *,
    depths: Sequence[int | None] | None = None,
    cache: Path,
    watch: Watch = SILENT,
) -> tuple[Features, ...]:
    """Features of all examples for each backbone, from the cache where they are, from one forward pass where not.

    `root`: where the images lie (stores.opened).
    The passes of several backbones are made together: a file is read once, and decoded once for all that need it
    at one scale. Files that any of them cannot use come back as faults of all; their examples have no row, and
    the caller drops them (data.without) in the same order. Memory does not grow with the number of images.
    `depths`: how many cuts of each backbone are wanted, from the input on, 1..K; nothing after them is run.
    None (default): all, and the old task's logits.
    """
    deep = [None] * len(backbones) if depths is None else list(depths)
    missing = [_missing(b, examples, _folder(cache, b), d) for b, d in zip(backbones, deep, strict=True)]
    faults = _pass(backbones, stores.opened(str(root)), examples, missing, cache, deep, watch) if any(missing) else {}
    return tuple(
        _found(b, examples, _folder(cache, b), len(m - faults.keys()), faults, d)
        for b, m, d in zip(backbones, missing, deep, strict=True)
    )


def unseen(backbone: Backbone, examples: Sequence[Example], *, depth: int | None = None, cache: Path) -> int:
    """How many different images of these a pass up to cut `depth` would still have to send through the backbone."""
    return len(_missing(backbone, examples, _folder(cache, backbone), depth))


def price(backbone: Backbone, *, batch: int = 2) -> float:
    """Seconds of one image's forward pass here, tried on a few grey images: to know a pass's cost before it."""
    tried = Engine(backbone.chain.segments, backbone.preprocessing)
    side = backbone.preprocessing.crop_px
    grey = np.full((batch, side, side, 3), 127, dtype=np.uint8)
    with engine.lanes(tried.device) as lanes:
        tried.see(grey, logits=backbone.source_classes > 0)  # the first run also sets the kernels up
        seconds = tried.see(grey, logits=backbone.source_classes > 0).seconds.sum()
    return float(seconds) / batch / lanes.count


def _widths(backbone: Backbone, depth: int | None = None) -> list[int]:
    """Values per image at the first `depth` cuts; None: at each cut, and last of the old task's logits if any."""
    if depth is not None:
        return [2 * c.channels for c in backbone.cuts[:depth]]
    return [2 * c.channels for c in backbone.cuts] + ([backbone.source_classes] if backbone.source_classes else [])


def _missing(backbone: Backbone, examples: Sequence[Example], folder: Path, depth: int | None) -> set[str]:
    """Digests of the images that no shard holds as deep as they are wanted."""
    columns = len(_widths(backbone, depth))
    held = (shard for shard in shards.opened(folder, _widths(backbone)) if len(shard.widths) >= columns)
    known = {digest for shard in held for digest in shard.digests}
    return {e.digest for e in examples if bytes.fromhex(e.digest) not in known}


def _found(
    backbone: Backbone, examples: Sequence[Example], folder: Path, passed: int, faults: dict[str, Fault],
    depth: int | None,
) -> Features:  # fmt: skip
    widths, n_cuts = _widths(backbone, depth), len(backbone.cuts) if depth is None else depth
    every = shards.opened(folder, _widths(backbone))
    held = tuple(shard for shard in every if len(shard.widths) >= len(widths))
    where = {d: (i, row) for i, shard in enumerate(held) for row, d in enumerate(shard.digests)}
    kept = [e for e in examples if e.digest not in faults]
    places = np.array([where[bytes.fromhex(e.digest)] for e in kept], dtype=np.int64).reshape(-1, 2)
    timing, whole = _per_segment(backbone, every)
    run = np.array([timing[: len(shard.timing)].sum() for shard in held])  # seconds of one image in each shard
    columns = np.array([sum(shard.widths) for shard in held])
    return Features(
        tuple(c.name for c in backbone.cuts[:n_cuts]),
        tuple(widths[:n_cuts]),
        shards.gather(held, places, n_cuts, widths[n_cuts]) if len(widths) > n_cuts else None,
        tuple(float(s) for s in np.cumsum(whole)[:n_cuts] / whole.sum()),
        float(whole.sum()),
        timing,
        float(timing.sum() * len(kept)),
        float(run[places[:, 0]].sum()) if kept else 0.0,
        passed,
        (round(2 * columns[places[:, 0]].mean()) if kept else 2 * sum(widths)) + shards.RECORD,
        tuple(Fault(e.path, faults[e.digest].kind, faults[e.digest].detail) for e in examples if e.digest in faults),
        shards.engine(every),
        held,
        places,
    )


def _per_segment(
    backbone: Backbone, held: Sequence[shards.Shard]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # (1 + segments,), (segments,)
    """Seconds per image of decoding and each segment, and of each segment over the images that ran all of them.

    The latter are of one and the same images, so that their shares are no mixture of busy and of quiet times, and stay
    as they are when other images pass less far. Where no image ran all, they are those of all images, and what was
    never run is taken from the multiply-adds.
    """
    segments = len(backbone.chain.segments)
    timing = shards.timing(held, segments)
    if held and np.isnan(timing).any():
        work = np.diff([0, *(c.macs for c in backbone.cuts), backbone.chain.macs])
        forward = timing[1:]  # a view
        never = np.isnan(forward)
        forward[never] = work[never] * (forward[~never].sum() / work[~never].sum())
        if not backbone.source_classes:
            forward[-1] = 0.0  # without the classifier, nothing runs after the last cut
    full = [shard for shard in held if len(shard.timing) == 1 + segments]
    return timing, shards.timing(full, segments)[1:] if full else timing[1:]


def _folder(cache: Path, backbone: Backbone) -> Path:
    return cache / "features" / key(backbone)


def key(backbone: Backbone) -> str:
    """The name under which a backbone's features are kept: weights, graph and preprocessing decide it."""
    parts = [_FORMAT, backbone.fingerprint, msgspec.json.encode(backbone.preprocessing).decode()]
    return f"{backbone.name.replace(':', '-')}-{images.digest('|'.join(parts).encode())}"


def _pass(
    backbones: Sequence[Backbone], store: Store, examples: Sequence[Example], missing: Sequence[set[str]],
    cache: Path, depths: Sequence[int | None], watch: Watch,
) -> dict[str, Fault]:  # fmt: skip
    """Send images through every backbone that misses them, once, and append what each sees to a shard of its own.

    Decoding, the networks and the writing run beside each other: decoding in threads, batches in lanes, writing here.
    """
    todo = list({e.digest: e for e in examples if any(e.digest in m for m in missing)}.values())
    at_work = [i for i, m in enumerate(missing) if m]
    engines = {i: Engine(backbones[i].chain.segments, backbones[i].preprocessing) for i in at_work}
    on = engines[at_work[0]].device
    kept, sketches = thumbnails.under(cache), Sketches.under(cache)
    batch = BATCH if on.type == "cpu" else BATCH_GPU

    def prepared(example: Example) -> dict[int, _Prepared] | Fault:
        wanted = [i for i in at_work if example.digest in missing[i]]
        found = _pixels(store, example, [backbones[i].preprocessing for i in wanted], kept, sketches)
        return found if isinstance(found, Fault) else dict(zip(wanted, found, strict=True))

    def work(group: _Group) -> _Worked:
        """What each backbone was given of a batch, the seconds of its decoding, and what will be seen."""
        found = []
        for i in at_work:
            mine = [(e, x[i]) for e, x in group if not isinstance(x, Fault) and i in x]
            if mine:
                pixels = np.stack([x.pixels for _, x in mine])
                found.append((i, [e for e, _ in mine], sum(x.seconds for _, x in mine), chosen[i].submit(pixels)))
        return found

    faults: dict[str, Fault] = {}
    watch.begin("pass", sum(map(len, missing)))
    with ExitStack() as stack:
        lanes = stack.enter_context(engine.lanes(on))
        side = max(backbones[i].preprocessing.crop_px for i in at_work)
        ahead = max(AHEAD, AHEAD_BYTES // (len(at_work) * batch * 3 * side**2))
        begun: list[Iterator[tuple[_Group, _Worked]]] = []

        def begin() -> None:
            begun.append(flow(todo, prepared, work, batch, lanes=lanes.count, ahead=ahead, at_once=on.type != "cpu"))

        chosen = {
            i: engine.choose(
                engines[i], len(missing[i]),
                partial(_sample, store, kept, backbones[i], [e for e in todo if e.digest in missing[i]]),
                classifier=backbones[i].source_classes > 0, depth=depths[i], batch=batch, lanes=lanes,
                home=cache / "engines" / f"{key(backbones[i])}-{graph.FORMAT}",
                meanwhile=begin if i == at_work[-1] else lambda: None,
            )
            for i in at_work
        }  # fmt: skip
        if not begun:
            begin()
        for c in chosen.values():
            watch.show("engine", c.facts)
        writers = {
            i: stack.enter_context(
                shards.Writer(_folder(cache, backbones[i]), _widths(backbones[i], depths[i]), chosen[i].facts)
            )
            for i in at_work
        }
        last = time.perf_counter()
        for group, results in begun[0]:
            faults.update({e.digest: x for e, x in group if isinstance(x, Fault)})
            done = {i: (mine, decode, pending.result()) for i, mine, decode, pending in results}
            now = time.perf_counter()
            # What was measured in threads beside each other, brought to what it took all together.
            measured = sum(decode + seen.seconds.sum() for _, decode, seen in done.values())
            scale, last = (now - last) / measured if measured else 1.0, now
            for i in at_work:
                if i in done:
                    mine, decode, seen = done[i]
                    rows = [*seen.pooled, *([seen.logits] if seen.logits is not None else [])]
                    digests = [bytes.fromhex(e.digest) for e in mine]
                    writers[i].append(digests, rows, scale * decode, scale * seen.seconds)
                watch.advance(sum(e.digest in missing[i] for e, _ in group))
    watch.end()
    sketches.flush()
    return faults


def _sample(
    store: Store, kept: Thumbnails, backbone: Backbone, examples: Sequence[Example]
) -> NDArray[np.uint8]:  # (b, h, w, 3)
    """The first few usable images, for the race; none where the first ones are broken."""
    found = (_pixels(store, e, [backbone.preprocessing], kept) for e in examples[: 2 * engine.SAMPLE])
    pixels = [x[0].pixels for x in found if not isinstance(x, Fault)][: engine.SAMPLE]
    side = backbone.preprocessing.crop_px
    return np.stack(pixels) if pixels else np.zeros((0, side, side, 3), dtype=np.uint8)


@dataclass(frozen=True)
class _Prepared:
    """One image's pixels for one backbone, and the seconds that they would have taken for it alone."""

    pixels: NDArray[np.uint8]
    seconds: float


_Group = list[tuple[Example, dict[int, _Prepared] | Fault]]
_Worked = list[tuple[int, list[Example], float, Pending]]


def _pixels(
    store: Store, example: Example, preprocessings: Sequence[Preprocessing], kept: Thumbnails,
    sketches: Sketches | None = None,
) -> list[_Prepared] | Fault:  # fmt: skip
    """One image for each preprocessing, or what is wrong with it; read once, decoded once per scale, sketched once."""
    try:
        start = time.perf_counter()
        data = store.read(example.path)
        if images.digest(data) != example.digest:
            raise ImageError("changed", "the file changed while topwork was reading the folder")
        read = time.perf_counter() - start
        decoded: dict[object, tuple[Image, float]] = {}
        framed: dict[object, _Prepared] = {}  # mean and std belong to the network: they change no pixel
        for p in preprocessings:
            frame = (p.resize_px, p.crop_px, p.interpolation, p.squash)
            if frame in framed:
                continue
            scale = images.decoded_size(data, p) if len(preprocessings) > 1 else None
            if scale not in decoded:
                start = time.perf_counter()
                image = kept.decode(data, example.digest, p)
                decoded[scale] = image, time.perf_counter() - start
            image, seconds = decoded[scale]
            if sketches is not None and example.digest not in sketches:
                sketches.put(example.digest, sketch(image))
            start = time.perf_counter()
            pixels = images.frame(image, p)
            framed[frame] = _Prepared(pixels, read + seconds + time.perf_counter() - start)
        return [framed[p.resize_px, p.crop_px, p.interpolation, p.squash] for p in preprocessings]
    except ImageError as error:
        return Fault(example.path, error.kind, error.detail)
