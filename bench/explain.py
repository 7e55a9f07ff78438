"""Is the map right about where it looked, and which flat map keeps neighbours together?

First: mosaics of four new images of four classes, each at its full size (Boehle et al., CVPR 2021; Arias-Duart et al.,
2022). A map for one of the four classes should lie in its quarter; chance is 25%. Beside Grad-CAM by autograd at the
last depth that the head reads, parts of the map alone, and what ignores the model. Second: what other weights do to the
maps (Adebayo et al., NeurIPS 2018). Third: seconds and neighbours kept of flat maps of the features.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import spearmanr
from sklearn.manifold import TSNE, SpectralEmbedding, trustworthiness
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

import common
import topwork
from topwork import embedding, explained, explanation, images, model, records
from topwork.answers import Seen
from topwork.engine import pool
from topwork.known import Known

SETS = [("flowers17", 160), ("trashnet", 96), ("dtd10", 96), ("emoji_google", 96)]
MOSAICS = 60
Maps = NDArray[np.float64]  # (b, rows, columns)


class Part:
    """A model with some of its head's weights at zero."""

    def __init__(self, whole: model.Model, keep: str, facts: records.ModelFacts | None = None) -> None:
        weight, bias = whole.head
        mask, at = np.zeros((len(weight), 1), dtype=np.float32), 0
        self.facts = facts or whole.facts
        for tap in whole.facts.taps:
            c = whole._backbone.cuts[whole._backbone.index(tap)].channels
            mask[at : at + c], mask[at + c : at + 2 * c] = keep != "maximum", keep != "average"
            at += 2 * c
        self.head = weight * mask, bias
        self.see, self.known = whole.see, whole.known


def grad_cam(m: model.Model, seen: Seen, which: NDArray[np.int64]) -> Maps:
    """At the deepest map: the channels weighted by their mean gradient, what is negative cut off."""
    x = torch.from_numpy(seen.maps[-1].copy()).requires_grad_()
    weight = torch.from_numpy(m.head[0][-2 * x.shape[1] :].copy())
    score = (pool(x) @ weight)[torch.arange(len(x)), torch.from_numpy(which)].sum()
    score.backward()
    alpha = x.grad.mean((2, 3), keepdim=True)
    return torch.relu((alpha * x).sum(1)).detach().double().numpy()


def at_the_maximum(m: model.Model, seen: Seen, which: NDArray[np.int64]) -> Maps:
    """Each maximum as a whole in the place where it is, instead of its Shapley values."""

    def whole(x: Maps) -> Maps:
        there = x == x.max(axis=-1, keepdims=True)
        return there * x.max(axis=-1, keepdims=True) / there.sum(axis=-1, keepdims=True)

    before, explanation.shares_of_maximum = explanation.shares_of_maximum, whole
    try:
        return explanation.places(m, seen, which)[0]
    finally:
        explanation.shares_of_maximum = before


def edges(pixels: NDArray[np.uint8]) -> Maps:
    return np.stack([ndimage.gaussian_gradient_magnitude(p.mean(axis=2), 2) for p in pixels])


def centre(pixels: NDArray[np.uint8]) -> Maps:
    t = np.linspace(-1, 1, pixels.shape[1])
    return np.tile(np.exp(-2 * (t[:, None] ** 2 + t**2)), (len(pixels), 1, 1))


def judged(maps: Maps, quarter: int) -> list[tuple[float, float]]:
    """(share of what is positive that lies in the quarter, whether the largest place does) of each map."""
    fine = explanation.moved(np.maximum(maps, 0).astype(float), (56, 56))
    rows, columns = divmod(quarter, 2)
    inside = fine[:, 28 * rows : 28 * rows + 28, 28 * columns : 28 * columns + 28]
    whole = fine.sum(axis=(1, 2))
    share = np.where(whole > 0, inside.sum(axis=(1, 2)) / np.where(whole > 0, whole, 1), 0.25)
    h, w = maps.shape[1:]
    best = maps.reshape(len(maps), -1).argmax(axis=1)
    y, x = (best // w + 0.5) / h, (best % w + 0.5) / w
    right = np.abs((y > 0.5) == rows) & ((x > 0.5) == columns)
    return list(zip(share.tolist(), right.astype(float).tolist(), strict=True))


def painted(pixels: NDArray[np.uint8], quarter: int, m: model.Model) -> NDArray[np.uint8]:
    """With one quarter in the colour that the network takes for the mean."""
    side, (y, x) = pixels.shape[1] // 2, divmod(quarter, 2)
    copy = pixels.copy()
    copy[:, y * side : (y + 1) * side, x * side : (x + 1) * side] = np.rint(
        255 * np.array(m.facts.preprocessing.mean)
    ).astype(np.uint8)
    return copy


def mosaics(m: model.Model, folder: Path, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(count, 2 s, 2 s, 3) pixels, and the class of each quarter (count, 4)."""
    rng, side = np.random.default_rng(0), m.facts.preprocessing.crop_px
    files = {k: sorted((folder / c).iterdir()) for k, c in enumerate(m.classes) if (folder / c).is_dir()}
    pixels, which = np.zeros((count, 2 * side, 2 * side, 3), np.uint8), np.zeros((count, 4), np.int64)
    for i in range(count):
        for q, k in enumerate(rng.choice(list(files), 4, replace=len(files) < 4)):
            y, x = divmod(q, 2)
            chosen = files[k][rng.integers(len(files[k]))]
            pixels[i, y * side : (y + 1) * side, x * side : (x + 1) * side] = images.load(chosen, m.facts.preprocessing)
            which[i, q] = k
    return pixels, which


def game(m: model.Model, folder: Path, count: int) -> dict[str, tuple[float, ...]]:
    """Of each way to make a map: share of the positive in its quarter, share with the largest place there, and the
    correlation of the quarters' sums with what the score loses where that quarter is painted in the mean colour."""
    from dataclasses import replace

    pixels, which = mosaics(m, folder, count)
    absolute = replace(m.facts, multi_label=True)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for start in range(0, count, 10):
        part = slice(start, start + 10)
        seen = m.see(pixels[part])
        ways: dict[str, Callable[[NDArray[np.int64]], Maps]] = {
            "map": lambda k, s=seen: explanation.places(m, s, k)[0],
            "averages alone (CAM)": lambda k, s=seen: explanation.places(Part(m, "average"), s, k)[0],
            "maxima alone": lambda k, s=seen: explanation.places(Part(m, "maximum"), s, k)[0],
            "not against the mean class": lambda k, s=seen: explanation.places(Part(m, "both", absolute), s, k)[0],
            "maxima where they are": lambda k, s=seen: at_the_maximum(m, s, k),
            "Grad-CAM": lambda k, s=seen: grad_cam(m, s, k),
            "edges": lambda k, p=pixels[part]: edges(p),
            "centre": lambda k, p=pixels[part]: centre(p),
        }
        covered = [m.see(painted(pixels[part], q, m)).scores for q in range(4)]
        rows = np.arange(len(seen.scores))
        for q in range(4):
            k = which[part, q]
            score, *others = (s[rows, k] - s.mean(axis=1) for s in (seen.scores, *covered))
            lost = np.stack([score - o for o in others], axis=1)  # (b, 4)
            for name, way in ways.items():
                maps = way(k)
                sums = explanation.moved(maps.astype(float), (2, 2)).reshape(len(maps), 4)
                agree = [np.corrcoef(a, b)[0, 1] if np.ptp(a) > 1e-9 else 0.0 for a, b in zip(sums, lost, strict=True)]
                found.setdefault(name, []).extend((*j, a) for j, a in zip(judged(maps, q), agree, strict=True))
    return {name: tuple(np.mean(values, axis=0).tolist()) for name, values in found.items()}


def sanity(m: model.Model, folder: Path, count: int) -> dict[str, float]:
    """Mean rank correlation of the maps of single images with those after weights were shuffled."""
    rng = np.random.default_rng(1)
    files = [sorted((folder / c).iterdir())[0] for c in m.classes if (folder / c).is_dir()][:count]
    pixels = np.stack([images.load(f, m.facts.preprocessing) for f in files])
    seen = m.see(pixels)
    which = seen.scores.argmax(axis=1)
    own = explanation.places(m, seen, which)[0]

    def like(maps: Maps, others: Maps) -> float:
        return float(np.mean([spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(maps, others, strict=True)]))

    weight, bias = m.head
    shuffled = model.create(m.facts, m._backbone, rng.permutation(weight), bias)
    with torch.no_grad():
        kept = model.create(m.facts, m._backbone, weight, bias)
        for segment in kept._segments:
            for p in segment.parameters():
                if p.dim() == 4:
                    p.copy_(p.flatten()[torch.from_numpy(rng.permutation(p.numel()))].reshape(p.shape))
    return {
        "the same": like(own, explanation.places(m, m.see(pixels), which)[0]),
        "head shuffled": like(own, explanation.places(shuffled, seen, which)[0]),
        "layers shuffled": like(own, explanation.places(kept, kept.see(pixels), which)[0]),
        "another image of the same model": like(own, np.roll(own, 1, axis=0)),
    }


def stepped(steps: int, pushed: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    def way(z: NDArray[np.float32]) -> NDArray[np.float32]:
        before = embedding.STEPS, embedding.PUSHED
        embedding.STEPS, embedding.PUSHED = steps, pushed
        try:
            return embedding.flat(z)
        finally:
            embedding.STEPS, embedding.PUSHED = before

    return way


def sk(steps: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda z: TSNE(init="pca", random_state=0, max_iter=steps).fit_transform(embedding.components(z, 50))


WAYS = {
    "first two principal components": lambda z: embedding.components(z, 2),
    "spectral (scikit-learn)": lambda z: SpectralEmbedding(n_neighbors=15, random_state=0).fit_transform(z),
    "t-SNE (scikit-learn), 300 steps": sk(300),
    "t-SNE (scikit-learn), 500 steps": sk(500),
    "embedding.flat": embedding.flat,
    "embedding.flat of folded features": lambda z: embedding.flat(folded(z)),
    "the same, 50 steps": stepped(50, 25),
    "the same, 250 steps": stepped(250, 80),
}


def folded(z: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a run remembers of its training images (known.py)."""
    return Known.of(z).features.astype(np.float32)


def kept_neighbours(a: NDArray[np.float32], b: NDArray[np.float32], k: int = 10) -> float:
    """Share of each point's k nearest that are among its k nearest on the map."""
    near = [NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False) for x in (a, b)]
    return float(np.mean([len(set(p) & set(q)) / k for p, q in zip(*near, strict=True)]))


def flat_maps(features: NDArray[np.float32]) -> None:
    unit = embedding.standard(features)
    for name, way in WAYS.items():
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start, cpu = time.perf_counter(), time.process_time()
            y = way(unit)
            took, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(
            f"| {len(unit)} | {name} | {took:.2f} | {cpu:.2f} | {trustworthiness(unit, y, n_neighbors=10):.3f}"
            f" | {kept_neighbours(unit, y):.2f} |",
            flush=True,
        )


def main() -> None:
    quick = common.arguments(__doc__ or "").quick
    common.need_sets()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        print("| set | map | % of the positive in its quarter | % with the largest place there | correlation with what")
        print("painting a quarter over takes from the score |\n|---|---|---|---|---|")
        for name, size in SETS[1:2] if quick else SETS:
            common.split(common.SETS / name, home / name)
            run = topwork.fit(
                home / name / "train", size=size, strategy="head", out=home / f"{name}-run", cache=home / "cache",
                pictures=False,
            )  # fmt: skip
            found = game(run.model, home / name / "test", 10 if quick else MOSAICS)
            for way, (share, right, agree) in found.items():
                print(
                    f"| {name}, cut {run.plan.cut} | {way} | {100 * share:.0f} | {100 * right:.0f} | {agree:.2f} |",
                    flush=True,
                )
            likeness = sanity(run.model, home / name / "test", 5 if quick else 17)
            print("rank correlation: " + ", ".join(f"{k} {v:+.2f}" for k, v in likeness.items()), flush=True)
            figures[name] = {"mosaics": found, "likeness": likeness}
        print(
            "| images | flat map | s | CPU s | trustworthiness (10) | neighbours kept (10) |\n|---|---|---|---|---|---|"
        )
        for name, size in SETS[1:2] if quick else SETS[:3]:
            seen = topwork.measure(home / name / "train", size=size, cache=home / "cache")
            m = seen.measured[0]
            rows = m.rows[: explained.MAPPED]
            flat_maps(m.features.at(m.backbone.index(seen.plan().cut), rows))
    common.finish({"bench": "explain", "quick": quick, **figures})


if __name__ == "__main__":
    main()
