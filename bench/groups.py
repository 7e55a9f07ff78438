"""Which images belong together: what is found, what is taken for it by mistake, and what it makes?

Four questions. Near-duplicates (saved again, half the size, cut by 5%, brighter, flatter) of 60 images of each set
beside it, against all pairs of different images of it. The sets as they are, which hold no near-duplicates as far as
thumbnails tell: how many images get grouped. Bursts made from one larger photo each, as if moved by hand (cut-outs,
shifts, rotation, brightness), with names in order, with shuffled names, with shuffled names and capture times: share of
the pairs of one scene that are found, pairs of different scenes among those grouped. And what it makes: accuracy
leave-one-out, leave-group-out, and on new scenes as truth. With each, the cost over that of a pass (process time).

`--many N` instead: seconds (process time) and memory of the grouping of N, twice N and four times N made-up images, a
twentieth of them near-duplicates of others.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

import common
import large
import topwork
from topwork import data, faults, features, groups, judging, sketches, zoo
from topwork.records import Example, FileFacts

SIZE = 96
CALM = ("flowers17", "neu6", "xray3", "trashnet", "ants_bees", "potato_blight", "wbc5", "mnist5k")
"""Sets without bursts, whose nearest neighbours are what is usual (groups.USUAL_NEAR)."""
OTHERS = ("dtd10", "brain_mri", "emoji_google", "spoken_digits")
NEAR_SETS = ("flowers17", "neu6", "mnist5k", "xray3", "dtd10", "trashnet")
BURSTS = ("flowers17", "trashnet", "dtd10")
SCENES, SHOTS, NEW = 6, 5, 30


def main() -> None:
    given = common.arguments(__doc__ or "", many=0)
    if given.many:
        common.finish({"bench": "groups", "many": [many(given.many * k) for k in (1, 2, 4)]})
        return
    quick = given.quick
    common.need_sets()
    backbone = zoo.load(size_px=SIZE)
    figures: dict[str, object] = {"bench": "groups", "quick": quick}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        figures["sets"] = [calm(n, backbone, home) for n in (("wbc5",) if quick else CALM + OTHERS)]
        figures["near"] = [near(n, backbone, home) for n in (("trashnet",) if quick else NEAR_SETS)]
        figures["bursts"] = [
            burst(n, backbone, home, strong) for n in (BURSTS[1:2] if quick else BURSTS) for strong in (False, True)
        ]
    common.finish(figures)


def many(n: int) -> dict[str, object]:
    """What grouping costs: features of 4 cuts and sketches, made up, of 20 classes; every 20th image a copy of the last
    one, changed a little."""
    rng, side, depth = np.random.default_rng(0), sketches.SIDE, 24
    base = rng.normal(size=(n, depth)).astype(np.float32)
    soft = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    copies = np.arange(20, n, 20)
    base[copies] = base[copies - 1] + 0.05 * rng.normal(size=(len(copies), depth))
    soft[copies] = np.clip(soft[copies - 1].astype(int) + rng.integers(-3, 4, soft[copies].shape), 0, 255)
    mixing = [rng.normal(size=(depth, width)).astype(np.float32) for width in (48, 112, 192, 320)]
    labels = np.arange(n) // 20 % 20
    examples = [Example(f"{label}/{i:07d}.jpg", int(label), "train", f"{i:032x}") for i, label in enumerate(labels)]
    start, seconds, before = time.process_time(), {}, large.peak_bytes()
    hashes = sketches.hashed(soft)
    groups._candidates(hashes)
    seconds["hashes"] = time.process_time() - start
    start = time.process_time()
    found = groups.find(examples, lambda k, rows: base[rows] @ mixing[k], len(mixing), hashes=hashes)
    seconds["all"] = time.process_time() - start
    hit = float((found.index[copies] == found.index[copies - 1]).mean())
    start = time.process_time()
    faults.near(soft)
    seconds["by sketches"] = time.process_time() - start
    grown = large.peak_bytes() - before
    times = ", ".join(f"{k} {v:.1f} s" for k, v in seconds.items())
    print(f"{n:,} images: {times}; {hit:.1%} of the copies found; {grown / 2**20:.0f} MiB more memory", flush=True)
    return {"images": n, "seconds": seconds, "found": hit, "memory_bytes": grown}


def near(name: str, backbone: zoo.Backbone, home: Path) -> dict[str, object]:
    """Pairs of an image and its variant that are linked as near-duplicates; pairs of different images that are."""
    dataset = data.read(common.SETS / name)
    n, rng, target = len(dataset.examples), np.random.default_rng(0), home / f"near-{name}"
    for i in rng.permutation(n)[:60]:
        example = dataset.examples[i]
        with Image.open(common.SETS / name / example.path) as image:
            for kind, variant, quality in variants(image.convert("RGB")):
                path = target / dataset.classes[example.label] / f"{i}-{kind}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                variant.save(path, quality=quality)
    made = data.read(target)
    old, new = (
        features.measure([backbone], root, d.examples, cache=home / "cache")[0]
        for root, d in ((common.SETS / name, dataset), (target, made))
    )
    seen = sketches.Sketches.under(home / "cache")
    different = groups.find(
        dataset.examples, old.at, len(old.cuts), hashes=_hashes(seen, dataset.examples), bursts=False
    )
    kinds = ("again", "half", "cut", "brighter", "flatter")
    found = dict.fromkeys(kinds, 0)
    for kind in kinds:  # each kind beside the whole set, as it would be met
        rows = [r for r, e in enumerate(made.examples) if e.path.endswith(f"-{kind}.jpg")]
        examples = (*dataset.examples, *(made.examples[r] for r in rows))
        # Other rows of the same class keep their order; labels agree because the classes are the same folders.
        label = {c: k for k, c in enumerate(dataset.classes)}
        examples = tuple(e if p < n else replace(e, label=label[made.classes[e.label]]) for p, e in enumerate(examples))

        def at(k: int, wanted: np.ndarray, rows: list[int] = rows) -> np.ndarray:
            first = wanted < n
            out = np.empty((len(wanted), old.widths[k]), np.float32)
            out[first] = old.at(k, wanted[first])
            out[~first] = new.at(k, np.array(rows)[wanted[~first] - n])
            return out

        got = groups.find(examples, at, len(old.cuts), hashes=_hashes(seen, examples), bursts=False)
        sources = [int(Path(made.examples[r].path).name.split("-")[0]) for r in rows]
        found[kind] = sum(int(got.index[n + p] == got.index[s]) for p, s in enumerate(sources))
    false = int((different.kinds == groups.KINDS.index("near-duplicate")).sum())
    print(f"{name}: found of 60 each {found}; links between different images {false} of {n * (n - 1) // 2} pairs")
    return {"set": name, "found_of_60": found, "false_links": false, "images": n}


def variants(image: Image.Image) -> Iterator[tuple[str, Image.Image, int]]:
    w, h = image.size
    yield "again", image, 40
    yield "half", image.resize((max(16, w // 2), max(16, h // 2)), Image.Resampling.LANCZOS), 92
    yield "cut", image.crop((w // 20, h // 20, w - w // 20, h - h // 20)), 92
    yield "brighter", ImageEnhance.Brightness(image).enhance(1.2), 92
    yield "flatter", ImageEnhance.Contrast(image).enhance(0.8), 92


def calm(name: str, backbone: zoo.Backbone, home: Path) -> dict[str, object]:
    """How many images of a set get grouped as it is, and how near the nearest are."""
    dataset = data.read(common.SETS / name)
    start = time.process_time()
    seen = features.measure([backbone], common.SETS / name, dataset.examples, cache=home / "cache")[0]
    passed = time.process_time() - start
    sketched = sketches.Sketches.under(home / "cache")
    start = time.process_time()
    hashes = _hashes(sketched, dataset.examples)
    found = groups.find(dataset.examples, seen.at, len(seen.cuts), hashes=hashes)
    spent = time.process_time() - start
    facts = groups.facts(dataset.examples, found)
    near, wide, spread = nearest(dataset.examples, seen)
    n = facts.images
    print(
        f"{name}: {facts.together} of {n} images grouped ({facts.together / n:.1%}), largest"
        f" {max(facts.sizes, default=1)}, limits {facts.limit} and {facts.limit_in_order},"
        f" {[(c.kind, c.images) for c in facts.counts]}; nearest within"
        f" {(groups.EXTREME, *groups.LOOSER)}: {near} and {wide};"
        f" {spread:.1f} dimensions; {spent:.2f} s, the pass {passed:.1f} s",
        flush=True,
    )
    return {
        "set": name, "images": n, "together": facts.together, "limits": [facts.limit, facts.limit_in_order],
        "near": near, "wide": wide, "spread": spread, "seconds": spent, "pass_seconds": passed,
    }  # fmt: skip


def nearest(examples: tuple[Example, ...], seen: features.Features) -> tuple[list[float], list[float], float]:
    """Share of the images whose nearest is within each limit, by the 10th and by the 40th neighbour; dimensions."""
    labels = np.array([e.label for e in examples])
    depths = groups.depths(len(seen.cuts))
    scales = [groups._moments(seen.at, k, len(examples), 0) for k in depths]
    blocks = [groups._block(rows, seen.at, depths, scales) for rows in groups._blocks(examples, labels)]
    limits = (groups.EXTREME, *groups.LOOSER)
    by = [np.concatenate([d.min(axis=1) for d in ds]) for ds in ([b.near for b in blocks], [b.wide for b in blocks])]
    near, wide = ([round(float((d <= x).mean()), 4) for x in limits] for d in by)
    return near, wide, groups._spread(np.concatenate([b.dimensions for b in blocks]))


def burst(name: str, backbone: zoo.Backbone, home: Path, strong: bool) -> dict[str, object]:
    """Bursts of SHOTS photos of SCENES scenes a class: what is found of them, and what it makes."""
    target = home / f"burst-{name}-{strong}"
    write_bursts(common.SETS / name, target, strong)
    dataset = data.read(target / "old")
    seen = features.measure([backbone], target / "old", dataset.examples, cache=home / "cache")[0]
    scene = np.array([re.sub(r"IMG_\d+_(\d+)-\d+", r"\1", e.path) for e in dataset.examples])
    rng = np.random.default_rng(0)
    names = rng.permutation(len(scene))
    shuffled = [replace(e, path=f"{e.label}/{k}") for e, k in zip(dataset.examples, names, strict=True)]
    hour = {s: k for k, s in enumerate(rng.permutation(np.unique(scene)))}  # scenes in no order, some in one hour
    taken = [
        replace(e, facts=FileFacts("JPEG", "RGB", 1, 1, taken=f"2026-01-{1 + hour[s] // 96:02d}T"
                f"{hour[s] // 4 % 24:02d}:{hour[s] % 4 * 15:02d}:{p % SHOTS * 7:02d}"))
        for p, (e, s) in enumerate(zip(shuffled, scene, strict=True))
    ]  # fmt: skip
    upper = np.triu_indices(len(scene), 1)
    same = (scene[:, None] == scene)[upper]
    row: dict[str, object] = {"set": name, "strong": strong}
    for how, examples in (("ordered", dataset.examples), ("shuffled", shuffled), ("taken", taken)):
        found = groups.find(
            examples, seen.at, len(seen.cuts),
            hashes=_hashes(sketches.Sketches.under(home / "cache"), dataset.examples),
        )  # fmt: skip
        grouped = (found.index[:, None] == found.index)[upper]
        row[how] = round(float(grouped[same].mean()), 3)
        row[f"{how}_false"] = round(float((grouped & ~same).sum() / max(1, grouped.sum())), 3)
    run = topwork.fit(
        target / "old", size=SIZE, strategy="head", out=home / f"run-{name}-{strong}", cache=home / "cache"
    )
    metrics, _ = judging.judge(run.path, target / "new")
    g = run.record.groups
    assert g is not None
    row |= {
        "leave_one_out": g.accuracy_mixed, "leave_group_out": g.accuracy_apart,
        "difference": [g.inflation, g.inflation_low, g.inflation_high],
        "result": run.metrics.accuracy.value, "new_scenes": metrics.accuracy.value,
    }  # fmt: skip
    print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return row


def write_bursts(source: Path, target: Path, strong: bool) -> None:
    """old/ with SCENES x SHOTS photos a class, numbered as a camera does, and new/ with one photo of other scenes."""
    rng, count = np.random.default_rng(0), 0
    source = source / "train" if (source / "train").is_dir() else source
    for folder in sorted(p for p in source.iterdir() if p.is_dir()):
        files = sorted(folder.iterdir())
        for part in ("old", "new"):
            (target / part / folder.name).mkdir(parents=True)
        for turn, i in enumerate(rng.permutation(len(files))[: SCENES + NEW]):
            with Image.open(files[i]) as opened:
                image = opened.convert("RGB")
            for shot in range(SHOTS if turn < SCENES else 1):
                part = "old" if turn < SCENES else "new"
                path = target / part / folder.name / f"IMG_{count:04d}_{turn}-{shot}.jpg"
                cut_out(image, rng, strong).save(path, quality=int(rng.integers(80, 96)))
                count += 1


def cut_out(image: Image.Image, rng: np.random.Generator, strong: bool) -> Image.Image:
    """One photo of a scene: a part of a larger one, moved, turned and lit a little otherwise."""
    w, h = image.size
    side = rng.uniform(0.5 if strong else 0.62, 0.8) * min(w, h)
    shift, turn = (0.2, 12) if strong else (0.1, 6)
    x = float(np.clip(w / 2 + rng.uniform(-shift, shift) * w, side / 2, w - side / 2))
    y = float(np.clip(h / 2 + rng.uniform(-shift, shift) * h, side / 2, h - side / 2))
    turned = image.rotate(rng.uniform(-turn, turn), resample=Image.Resampling.BICUBIC, center=(x, y))
    part = turned.crop((int(x - side / 2), int(y - side / 2), int(x + side / 2), int(y + side / 2)))
    return ImageEnhance.Contrast(ImageEnhance.Brightness(part).enhance(rng.uniform(0.8, 1.25))).enhance(
        rng.uniform(0.85, 1.2)
    )


def _hashes(seen: sketches.Sketches, examples: tuple[Example, ...]) -> np.ndarray:
    found, missing = seen.get([e.digest for e in examples])
    assert not missing.any(), "the pass leaves a sketch of every image"
    return sketches.hashed(found)


if __name__ == "__main__":
    main()
