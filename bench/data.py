"""How fast are images listed, looked at and decoded on the way in, and what does a perceptual hash take for the same?

`check` against Pillow decoding the same files in a bare loop, with as many worker threads, in turn: at least 85% as
many images per second. Large photographs through `images.load` against full decoding: 2.5 times, less than 1 grey
level. Where one of these is missed, the status is 1. Listing 20,000 files. `--near` instead: how often copies of real
images, saved again, halved, brightened or cropped, are taken for the same, and how often different ones are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import common
import decode
from topwork import data, faults, images, sketches
from topwork.listing import GUESSED, listed
from topwork.sketches import Sketches, sketch

FILES = 20_000
BOUND = 0.85
SPEEDUP = 2.5  # of large photographs
LEVEL = 1.0
NEAR_SETS = ("flowers17", "trashnet", "dtd10", "xray3", "neu6", "emoji_google", "mnist5k", "spoken_digits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 60 s on 2 cores")
    parser.add_argument("--near", action="store_true", help="only the perceptual hash")
    given = parser.parse_args()
    common.need_sets()
    if given.near:
        common.finish({"near": {name: near(name, given.quick) for name in NEAR_SETS[: 3 if given.quick else None]}})
        return
    rounds = 3 if given.quick else 7
    ratios = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, folder in sets(Path(temporary), given.quick).items():
            ratios[name] = checked(name, folder, rounds)
        listed = listing(Path(temporary) / "many", FILES // 10 if given.quick else FILES)
    photos = sorted((common.SETS / "ants_bees").rglob("*.jpg"))[3::40][: 1 if given.quick else 3]
    large = [decode.reduced(decode.encoded(decode.enlarged(p), "JPEG", quality=90), rounds) for p in photos]
    speedup, difference = statistics.median(a for a, _ in large), max(b for _, b in large)
    print(
        f"4000x3000 through images.load: {speedup:.1f} times faster than full decoding, off by {difference:.2f} levels"
    )
    common.finish(
        {"check_over_bare": ratios, "listed_per_s": listed, "large_speedup": speedup, "large_difference": difference},
        [
            *((f"check over bare, {k}", r["clock"], BOUND, r["clock"] >= BOUND) for k, r in ratios.items()),
            ("4000x3000 over full decoding", speedup, SPEEDUP, speedup >= SPEEDUP),
            ("difference in levels", difference, LEVEL, difference < LEVEL),
        ],
    )


def sets(temporary: Path, quick: bool) -> dict[str, Path]:
    """Real photographs of 384x256 px; the same at 1600x1200; as PNG."""
    source = sorted((common.SETS / "ants_bees").rglob("*.jpg"))
    found = {"JPEG 384x256": common.SETS / "ants_bees"}
    for name, size, format, count in (("JPEG 1600x1200", (1600, 1200), "JPEG", 60), ("PNG 384x256", None, "PNG", 360)):
        folder = temporary / name.replace(" ", "-")
        for i, path in enumerate(source[: count // 3 if quick else count]):
            target = folder / "ab"[i % 2] / f"{i}.{format.lower()}"
            target.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.open(path).convert("RGB")
            (picture if size is None else picture.resize(size)).save(target, format, quality=90)
        found[name] = folder
    return found


def bare(paths: list[Path]) -> None:
    """Pillow decodes every file, in as many threads."""

    def one(path: Path) -> None:
        Image.open(BytesIO(path.read_bytes())).load()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, paths))


def checked(name: str, folder: Path, rounds: int) -> dict[str, float]:
    """The bare loop's seconds over those of `check` with a new cache, by the clock and of CPU; medians of rounds."""
    paths = [folder / e.path for e in data.read(folder).examples]
    found, ratios, of_cpu = [], [], []
    for _ in range(rounds):
        start, cpu = time.perf_counter(), time.process_time()
        bare(paths)
        loop, cpu_loop = time.perf_counter() - start, time.process_time() - cpu
        with tempfile.TemporaryDirectory() as cache:
            start, cpu = time.perf_counter(), time.process_time()
            store = Sketches(Path(cache) / "sketches")
            dataset = data.read(folder, sketches=store)
            faults.before(dataset)
            faults.after(dataset, *store.get([e.digest for e in dataset.examples]))
            ours, cpu_ours = time.perf_counter() - start, time.process_time() - cpu
        found.append((len(paths) / loop, len(paths) / ours))
        ratios.append(loop / ours)
        of_cpu.append(cpu_loop / cpu_ours)
    a, b = (statistics.median(f[i] for f in found) for i in (0, 1))
    ratio, work = statistics.median(ratios), statistics.median(of_cpu)
    rounded = " ".join(f"{r:.2f}" for r in ratios)
    print(f"{name}: bare {a:.0f}/s, check {b:.0f}/s, {ratio:.2f} ({rounded}); of CPU time {work:.2f}", flush=True)
    return {"clock": ratio, "cpu": work}


def listing(root: Path, count: int) -> float:
    """Files per second that are found in folders of classes, before any of them is opened."""
    for label in range(20):
        (root / f"class {label}").mkdir(parents=True)
        for i in range(count // 20):
            (root / f"class {label}" / f"{i:06}.jpg").touch()
    start = time.perf_counter()
    files = listed(str(root), GUESSED).items
    seconds = time.perf_counter() - start
    print(f"listing {len(files):,} files in 20 folders: {seconds:.2f} s, {len(files) / seconds:,.0f} files/s")
    return len(files) / seconds


def near(name: str, quick: bool) -> dict[str, float]:
    """Shares of copies that are found, and pairs of different images that are taken for the same."""
    pictures = [images.decode(p, decode.PREPROCESSING).convert("RGB") for p in files(common.SETS / name)]
    pixels = np.stack([sketch(p) for p in pictures])
    pairs = len(pixels) * (len(pixels) - 1) // 2
    close, same = together(pixels, pixels)
    upper = np.triu_indices(len(pixels), 1)
    figures = {"pairs": pairs, "within the bits": int(close[upper].sum()), "taken for the same": int(same[upper].sum())}
    for change, change_of in CHANGES.items():
        few = range(0, len(pictures), max(1, len(pictures) // (40 if quick else 150)))
        found = [together(pixels[i : i + 1], sketch(change_of(pictures[i]))[None])[1][0, 0] for i in few]
        figures[change] = float(np.mean(found))
    print(f"{name}: " + ", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v:,}" for k, v in figures.items()))
    return figures


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png", ".bmp"})


def together(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pairs have hashes near each other, and which of these also look the same."""
    bits = [np.unpackbits(sketches.hashed(x).view(np.uint8).reshape(-1, 8), axis=1).astype(int) for x in (a, b)]
    close = (bits[0][:, None] != bits[1][None]).sum(axis=2) <= faults.NEAR_BITS
    flat = [x.reshape(len(x), -1).astype(float) for x in (a, b)]
    flat = [x - x.mean(axis=1, keepdims=True) for x in flat]
    flat = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in flat]
    return close, close & (flat[0] @ flat[1].T >= faults.NEAR_LIKENESS)


def saved(picture: Image.Image, quality: int) -> Image.Image:
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def halved(picture: Image.Image) -> Image.Image:
    return picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)), Image.Resampling.BILINEAR)


def cropped(picture: Image.Image, share: float) -> Image.Image:
    x, y = int(picture.width * share), int(picture.height * share)
    return picture.crop((x, y, picture.width - x, picture.height - y))


CHANGES = {
    "saved at quality 50": lambda p: saved(p, 50),
    "halved": halved,
    "brighter by a tenth": lambda p: p.point(lambda v: min(255, int(v * 1.1 + 5))),
    "cropped by 1% a side": lambda p: cropped(p, 0.01),
    "cropped by 2% a side": lambda p: cropped(p, 0.02),
}

if __name__ == "__main__":
    main()
