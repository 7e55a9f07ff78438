"""What is worth seeing of a finished run: where did it look, what is an image like, which images lie together?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork import embedding, explanation, images, known, model, splits, stores
from topwork.errors import ImageError, UsageError
from topwork.explanation import Explanation, Floats
from topwork.files import write as write_whole
from topwork.images import Source
from topwork.learnt import Learnt, columns_of
from topwork.model import Model
from topwork.runs import Run
from topwork.watch import SILENT, Watch

EXPLAINED, EMBEDDING = "explained.parquet", "embedding.parquet"
PREDICTIONS = "predictions.parquet"

MISTAKES, SHOWN = 24, 36
"""Judged images of a run whose maps are kept: the surest mistakes, and up to how many with right answers, one of each
class in turn. Nobody looks at more, and a pass over so many takes a second or two."""

MAPPED = 1000
"""Images on the map of a run: more would hide each other, and it takes a second or two for these (bench/explain.py)."""

BATCH = 12  # images at once: of all their maps at full resolution, some 100 MB at cuts near the input


def explain(run: Run | str | Path, image: Source, cls: str | None = None) -> Explanation:
    """Where a run's model looked in an image, and which training images are like it.

    `run`: a run, its folder, or the model folder inside it. `image`: a path, encoded bytes, a Pillow image or a uint8
    RGB array. `cls`: the class to explain; default: the one that the model answers. Raises ImageError where it is no
    usable image, UsageError where the model has no such class, DataError where there is no model.
    """
    found = next(each(run, [image], cls))
    if isinstance(found, ImageError):
        raise found
    return found


def each(
    run: Run | str | Path,
    sources: Sequence[Source],
    cls: str | None = None,
    read: Callable[[str], Source] | None = None,
) -> Iterator[Explanation | ImageError]:
    """Like explain, one by one; what is no usable image gives its error and does not end the others.

    `read`: gives what stands for the image of a source, which is its name then.
    """
    loaded = run.model if isinstance(run, Run) else model.load(Path(run))
    explanation.checked(loaded.facts, cls)
    near = Learnt.of(run.path if isinstance(run, Run) else Path(run), loaded.known)
    for source in sources:
        try:
            found, seen = explanation.explain(loaded, source if read is None else read(str(source)), cls)
        except ImageError as error:
            yield error
            continue
        if read is not None:
            found = replace(found, prediction=replace(found.prediction, source=str(source)))
        yield replace(found, nearest=near.nearest(seen.pooled)[0]) if near is not None else found


def draw(found: Explanation, name: str, out: Path | None) -> Path:
    """Write the picture of an explanation into a new PNG file; gives its place.

    `out`: the file, or a folder, in which it is called after `name`, with a number where there is such a file already;
    default: the current folder. Raises UsageError where the file exists or cannot be made.
    """
    folder = out is None or out.is_dir() or out.suffix.lower() != ".png"
    target = (out or Path()) / f"{Path(name).stem}-explained.png" if folder else Path(out or name)
    number, first = 1, target
    while folder and target.exists():
        number += 1
        target = first.with_stem(f"{first.stem}-{number}")
    content = BytesIO()
    found.overlay().save(content, "PNG")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise UsageError(f"--out {target}: exists already and is not overwritten; name another file")
        write_whole(target, content.getvalue())
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written there ({error.strerror}); name another place") from error
    return target


def told(found: Explanation, picture: Path) -> dict[str, Any]:
    """All that an explanation says, as plain values."""
    return {
        "source": found.prediction.source, "label": found.prediction.label, "labels": found.prediction.labels,
        "unknown": found.prediction.unknown, "class": found.cls, "probability": found.probability,
        "score": found.score, "bias": found.bias, "seen": found.seen, "map": found.map.tolist(),
        "nearest": found.nearest, "picture": str(picture), "error": None,
    }  # fmt: skip


def write(
    run: Run, kept: Model, pooled: Callable[[Sequence[str]], Floats] | None = None, watch: Watch = SILENT
) -> None:
    """Write explained.parquet and embedding.parquet into a finished run's folder, each whole or not at all.

    `pooled`: gives the model's pooled features (n, d) of images by their paths, where they are there already; else
    what the run remembers of its training images is taken, and the others pass through the model. Raises DataError,
    MissingError where the images are out of reach.
    """
    learnt = Learnt.of(run.path, kept.known)
    store = stores.opened(run.record.data.root)
    mapped = _mapped(run, learnt)
    chosen = _chosen(run.path, kept.classes)
    passing = [] if pooled is not None else [p for p in mapped[0] if learnt is None or p not in learnt.rows]
    watch.begin("explain", len(chosen) + len(passing))
    try:
        _write_explained(run.path / EXPLAINED, chosen, kept, store, learnt, watch)
        if pooled is not None:
            features = embedding.standard(pooled(mapped[0]))
        else:
            features = _remembered(mapped[0], kept, store, learnt, watch)
        _write_embedding(run.path / EMBEDDING, *mapped, features)
    finally:
        watch.end()


def worth_seeing(
    shares: NDArray[np.float64],  # (n, C) probabilities of judged images
    truth: NDArray[np.bool_],  # (n, C)
    given: NDArray[np.bool_],  # (n, C)
) -> list[tuple[int, int]]:
    """Rows of judged images and the class to explain in each: mistakes, the surest first, then right answers.

    Of a mistake it is the class that it was taken for; where none was given falsely, the one that was missed.
    """
    if not len(shares):
        return []
    false = given & ~truth
    missed = truth & ~given & ~false.any(axis=1, keepdims=True)
    off = np.where(false, shares, np.where(missed, 1 - shares, -1.0))
    wrong = off.max(axis=1) >= 0
    which = np.where(wrong, off.argmax(axis=1), shares.argmax(axis=1))
    sure = np.where(wrong, off.max(axis=1), shares.max(axis=1))
    order = [int(i) for i in np.argsort(-sure, kind="stable")]
    turns: Counter[int] = Counter()
    right = []
    for i in order:  # the surest of each class, then the second of each
        if not wrong[i]:
            label = int(truth[i].argmax()) if truth[i].any() else -1
            right.append((turns[label], i))
            turns[label] += 1
    mistakes = [i for i in order if wrong[i]][:MISTAKES]
    rest = [i for _, i in sorted(right, key=lambda r: r[0])]
    return [(i, int(which[i])) for i in [*mistakes, *rest][:SHOWN]]


def _chosen(folder: Path, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Paths of the judged images that are worth seeing, and the class to explain in each."""
    columns = columns_of(folder / PREDICTIONS)
    number = {name: k for k, name in enumerate(classes)}
    shares = np.array(columns["probabilities"], dtype=np.float64).reshape(-1, len(classes))
    sides = []
    for one, several in (("label", "labels"), ("predicted", "predicted")):
        marked = np.zeros(shares.shape, dtype=bool)
        for i, names in enumerate(columns[several] if "labels" in columns else columns[one]):
            marked[i, [number[name] for name in ([names] if isinstance(names, str) else names)]] = True
        sides.append(marked)
    return [(columns["path"][i], classes[k]) for i, k in worth_seeing(shares, *sides)]


def _mapped(run: Run, learnt: Learnt | None) -> tuple[list[str], list[str]]:
    """Paths and labels of the images on the map: those that were judged, then the others; of too many, by class.

    Among the judged ones, and among the others, those that are remembered come first.
    """
    columns = columns_of(run.path / splits.NAME, "path", "label")
    judged = set(columns_of(run.path / PREDICTIONS, "path")["path"])
    _, labels = np.unique(np.array(columns["label"], dtype=np.str_), return_inverse=True)
    rank = np.array([2 * (p not in judged) + (learnt is None or p not in learnt.rows) for p in columns["path"]], int)
    rows = np.zeros(0, dtype=np.int64)
    for k in range(4):
        there = np.flatnonzero(rank == k)
        if room := MAPPED - len(rows):
            rows = np.concatenate([rows, there[known.sample(labels[there], room)]])
    rows.sort()
    return [columns["path"][i] for i in rows], [columns["label"][i] for i in rows]


def _remembered(
    paths: Sequence[str], kept: Model, store: stores.Store, learnt: Learnt | None, watch: Watch
) -> Floats:  # fmt: skip
    """Features of unit length (n, r) of images, remembered or seen now; zeros of those that cannot be read any more."""
    new = [i for i, path in enumerate(paths) if learnt is None or path not in learnt.rows]
    pooled = np.zeros((len(new), 2 * kept.facts.channels), dtype=np.float32)
    read = np.zeros(len(new), dtype=bool)
    for rows, batch in _batches([paths[i] for i in new], kept, store, watch):
        pooled[rows], read[rows] = kept.see(batch).pooled, True
    if learnt is None:
        found = np.zeros_like(pooled)
        found[read] = embedding.standard(pooled[read])
        return found
    found = np.zeros((len(paths), learnt.features.features.shape[1]), dtype=np.float32)
    for i, path in enumerate(paths):
        if path in learnt.rows:
            found[i] = learnt.features.features[learnt.rows[path]]
    folded = learnt.features.folded(pooled[read])
    found[np.array(new, dtype=np.int64)[read]] = embedding.unit(folded)
    return found


def _batches(
    paths: Sequence[str], kept: Model, store: stores.Store, watch: Watch
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """Positions and pixels of the images that can be read."""
    for start in range(0, len(paths), BATCH):
        rows, pixels = [], []
        for i in range(start, min(start + BATCH, len(paths))):
            try:
                pixels.append(images.load(store.read(paths[i]), kept.facts.preprocessing))
                rows.append(i)
            except ImageError:  # gone or changed since
                continue
            finally:
                watch.advance()
        if rows:
            yield rows, np.stack(pixels)


def _write_explained(
    file: Path, chosen: Sequence[tuple[str, str]], kept: Model, store: stores.Store, learnt: Learnt | None, watch: Watch
) -> None:
    rows: dict[str, list[Any]] = {name: [] for name in ("path", "class", "rows", "columns", "map")}
    rows |= {"nearest": [], "similarity": []}
    for places, batch in _batches([path for path, _ in chosen], kept, store, watch):
        seen = kept.see(batch)
        paths, names = zip(*(chosen[i] for i in places), strict=True)
        maps, _ = explanation.places(kept.facts, kept.head, seen, np.array([kept.classes.index(c) for c in names]))
        near = [()] * len(paths) if learnt is None else learnt.nearest(seen.pooled, paths)
        for path, name, found, neighbours in zip(paths, names, maps, near, strict=True):
            rows["path"].append(path)
            rows["class"].append(name)
            rows["rows"].append(found.shape[0])
            rows["columns"].append(found.shape[1])
            rows["map"].append(found.ravel())
            rows["nearest"].append([n.path for n in neighbours])
            rows["similarity"].append([n.similarity for n in neighbours])
    import pyarrow as pa  # noqa: PLC0415 (0.3 s to import)

    numbers = pa.list_(pa.field("element", pa.float32()))
    types = {
        "path": pa.string(), "class": pa.string(), "rows": pa.int32(), "columns": pa.int32(), "map": numbers,
        "nearest": pa.list_(pa.field("element", pa.string())), "similarity": numbers,
    }  # fmt: skip
    _write_table(file, pa.table(rows, schema=pa.schema(types)))


def _write_embedding(file: Path, paths: Sequence[str], labels: Sequence[str], features: Floats) -> None:
    import pyarrow as pa  # noqa: PLC0415

    there = [int(i) for i in np.flatnonzero(features.any(axis=1))]  # without those that could not be read any more
    flat = embedding.flat(features[there])
    columns = {
        "path": [paths[i] for i in there], "label": [labels[i] for i in there], "x": flat[:, 0], "y": flat[:, 1],
    }  # fmt: skip
    types = {"path": pa.string(), "label": pa.string(), "x": pa.float32(), "y": pa.float32()}
    _write_table(file, pa.table(columns, schema=pa.schema(types)))


def _write_table(file: Path, table: Any) -> None:
    from pyarrow import parquet  # noqa: PLC0415

    out = BytesIO()
    parquet.write_table(table, out)
    write_whole(file, out.getvalue())
