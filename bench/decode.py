"""What does it cost to get from a file to pixels, step by step, and what does a kept thumbnail save?

Large files are made of real photographs, enlarged, with a sensor's noise; small ones are the real ones. CPU
milliseconds of one thread, the least of several turns. Bounds: large JPEG photographs go through at least 2.5 times
faster than by full decoding, and differ by less than 1 grey level of 255 on average after resizing.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

import common
from topwork import data, images, thumbnails, views
from topwork.records import Augmentation, Preprocessing

PREPROCESSING = Preprocessing(256, 224, "bicubic", (0, 0, 0), (1, 1, 1))
PREPROCESSINGS = {px: Preprocessing(px * 8 // 7, px, "bicubic", (0, 0, 0), (1, 1, 1)) for px in (96, 160, 224, 384)}
LARGE = (4000, 3000)
NOISE = 4.0  # grey levels: brings a photograph at quality 90 to 2.5 to 4 MB, as cameras write


def main() -> None:
    quick = common.arguments(__doc__ or "").quick
    common.need_sets()
    turns = 3 if quick else 7
    photos = sorted((common.SETS / "ants_bees").rglob("*.jpg"))[3::40][: 2 if quick else 5]
    steps_of, kept = {}, {}
    print(f"{'CPU ms':28} {'MB':>6} {'decoded to':>11} " + " ".join(f"{k:>7}" for k in STEPS))
    for name, content in files(enlarged(photos[0])).items():
        steps_of[name] = steps(content, turns)
        image = images.decode(content, PREPROCESSING)
        size = image.width * image.height * len(image.getbands())
        kept[name] = thumbnails.repays(steps_of[name]["decode"] / 1000, size, thumbnails.USES)
        side = "x".join(map(str, images.decoded_size(content, PREPROCESSING)))
        row = " ".join(f"{steps_of[name][k]:7.2f}" for k in STEPS)
        print(f"{name:28} {len(content) / 1e6:6.2f} {side:>11} {row}", flush=True)
    forward = forward_ms(turns)
    shares_of = {name: shares(ms, forward) for name, ms in steps_of.items()}
    print(f"reading, digest and decoding as a share of a pass (forward {forward:.1f} ms an image), and of a view:")
    for name, (in_pass, in_view, kept_view) in shares_of.items():
        print(
            f"  {name:26} {in_pass:4.0%} {in_view:4.0%}; a view with a thumbnail over one without {kept_view:.2f}, "
            f"{'kept' if kept[name] else 'not kept'}"
        )
    large = [reduced(encoded(enlarged(path), "JPEG", quality=90), turns) for path in photos]
    speedups, differences = [a for a, _ in large], [b for _, b in large]
    print(
        f"{len(large)} photographs of {LARGE[0]}x{LARGE[1]}, from bytes to pixels: full decoding takes"
        f" {min(speedups):.1f} to {max(speedups):.1f} times as long; mean difference after resizing at most"
        f" {max(differences):.2f} grey levels"
    )
    forms = lossless(images.decode(encoded(enlarged(photos[0]), "JPEG", quality=90), PREPROCESSING), turns)
    others = shared_scales(encoded(enlarged(photos[0]), "JPEG", quality=90))
    ratio = training(photos, views_each=4)
    alone, beside = lock(photos[0], seconds=1.0 if quick else 3.0)
    looks = looking(quick)
    common.finish(
        {
            "bench": "decode", "quick": quick, "cpu_ms": steps_of, "speedup_of_reduced_scale": speedups,
            "mean_difference": differences, "lossless_ms": forms, "values_that_differ_if_scales_were_shared": others,
            "forward_ms": forward, "shares": shares_of, "kept": kept,
            "views_with_thumbnails_over_without": ratio, "threads": {"2 over 1": alone, "beside a busy one": beside},
            "look_ms_per_file": looks,
        }
    )  # fmt: skip


@lru_cache(maxsize=8)
def enlarged(path: Path, size: tuple[int, int] = LARGE) -> Image.Image:
    """A large photograph with detail down to its pixels: a small one, and a sensor's noise."""
    with Image.open(path) as photo:
        pixels = np.asarray(photo.convert("RGB").resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    grain = np.random.default_rng(0).normal(0, NOISE, pixels.shape[:2]).astype(np.int16)
    return Image.fromarray(np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def files(photo: Image.Image) -> dict[str, bytes]:
    """Large ones of every kind, and real small ones."""
    grey = photo.convert("L")
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    return {
        "JPEG 4000x3000": encoded(photo, "JPEG", quality=90),
        "JPEG 4000x3000 progressive": encoded(photo, "JPEG", quality=90, progressive=True),
        "JPEG 4000x3000 grey": encoded(grey, "JPEG", quality=90),
        "JPEG 2000x1500": encoded(photo.resize((2000, 1500)), "JPEG", quality=90),
        "JPEG 1024x768": encoded(photo.resize((1024, 768)), "JPEG", quality=90),
        "PNG 4000x3000": encoded(photo, "PNG", compress_level=3),
        "PNG 4000x3000, 16-bit grey": encoded(sixteen, "PNG", compress_level=3),
        "WebP 4000x3000": encoded(photo, "WEBP", quality=90, method=0),
        **{
            f"real: {name}": min((common.SETS / name).rglob(f"*.{suffix}")).read_bytes()
            for name, suffix in (("flowers17", "jpg"), ("mnist5k", "png"))
        },
    }  # fmt: skip


STEPS = ("read", "digest", "look", "full", "decode", "frame", "view", "keep", "fetch")


def steps(content: bytes, turns: int) -> dict[str, float]:
    """Milliseconds of each step; `view` is a random crop without its decoding, `fetch` reads a kept thumbnail."""
    name, image = images.digest(content), images.decode(content, PREPROCESSING)
    numbers = iter(range(1, 10**6))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        kept = thumbnails.Thumbnails(Path(folder) / "kept")
        size = images.decoded_size(content, PREPROCESSING)
        kept._keep(name, size, image)
        todo: dict[str, Callable[[], object]] = {
            "read": lambda: images.read_bytes(path),
            "digest": lambda: images.digest(content),
            "look": lambda: images.look(content),
            "full": lambda: images.upright(images._decoded(images._open(content))),
            "decode": lambda: images.decode(content, PREPROCESSING),
            "frame": lambda: images.frame(image, PREPROCESSING),
            "view": lambda: views.view_of(image, next(numbers), PREPROCESSING, Augmentation(), digest=name, seed=0),
            "keep": lambda: kept._keep(name, size, image),
            "fetch": lambda: kept._read(name, size),
        }
        return {step: cpu_ms(work, turns) for step, work in todo.items()}


def cpu_ms(work: Callable[[], object], turns: int) -> float:
    """The least of several turns, after one to warm up."""
    work()
    found = []
    for _ in range(turns):
        start = time.thread_time()
        work()
        found.append(time.thread_time() - start)
    return 1000 * min(found)


def forward_ms(turns: int) -> float:
    """CPU milliseconds per image of the embedded backbone at 224 px, one thread."""
    import torch

    from topwork import zoo
    from topwork.engine import Engine

    torch.set_num_threads(1)
    backbone = zoo.load()
    engine = Engine(backbone.chain.segments, backbone.preprocessing)
    pixels = np.zeros((16, 224, 224, 3), np.uint8)
    return cpu_ms(lambda: engine.see(pixels, logits=False), turns) / 16


def shares(ms: dict[str, float], forward: float) -> tuple[float, float, float]:
    """What reading and decoding take of a pass, and of a view's pixels; a view's with a thumbnail over without."""
    reading = ms["read"] + ms["digest"] + ms["decode"]
    view = reading + ms["view"]
    return reading / (reading + ms["frame"] + forward), reading / view, (ms["fetch"] + ms["view"]) / view


def reduced(content: bytes, turns: int) -> tuple[float, float]:
    """How much longer full decoding takes from bytes to pixels, and the mean difference of the pixels."""

    def full() -> np.ndarray:
        return images.frame(images.upright(images._decoded(images._open(content))), PREPROCESSING)

    difference = np.abs(full().astype(int) - images.load(content, PREPROCESSING)).mean()
    ratios = [cpu_ms(full, 1) / cpu_ms(lambda: images.load(content, PREPROCESSING), 1) for _ in range(turns)]
    return statistics.median(ratios), float(difference)


def lossless(image: Image.Image, turns: int) -> dict[str, dict[str, float]]:
    """Writing to and reading from memory in every lossless form at hand."""
    pixels = np.asarray(image)

    def rows() -> bytes:
        differences = pixels.copy()
        differences[1:] -= pixels[:-1]
        return zlib.compress(differences.tobytes(), 1)

    def rows_back(kept: bytes) -> object:
        return np.cumsum(np.frombuffer(zlib.decompress(kept), np.uint8).reshape(pixels.shape), axis=0, dtype=np.uint8)

    def pillow(format: str, **options: object) -> tuple[Callable[[], bytes], Callable[[bytes], object]]:
        return lambda: encoded(image, format, **options), lambda kept: Image.open(BytesIO(kept)).load()

    forms: dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]] = {
        "raw": (image.tobytes, lambda kept: Image.frombytes(image.mode, image.size, kept)),
        "raw + CRC-32": (
            lambda: zlib.crc32(image.tobytes()).to_bytes(4, "big") + image.tobytes(),
            lambda kept: (zlib.crc32(kept[4:]), Image.frombytes(image.mode, image.size, kept[4:])),
        ),
        "raw + BLAKE2b": (
            lambda: hashlib.blake2b(image.tobytes()).digest() + image.tobytes(),
            lambda kept: (hashlib.blake2b(kept[64:]), Image.frombytes(image.mode, image.size, kept[64:])),
        ),
        "row differences, deflate": (rows, rows_back),
        "PNG level 1": pillow("PNG", compress_level=1),
        "WebP lossless, fastest": pillow("WEBP", lossless=True, method=0, quality=0),
        "TIFF zstd": pillow("TIFF", compression="zstd"),
        "TIFF LZW": pillow("TIFF", compression="tiff_lzw"),
    }
    found: dict[str, dict[str, float]] = {}
    for name, (write, read) in forms.items():
        try:
            kept = write()
        except (OSError, ValueError) as error:  # a Pillow without this codec
            print(f"  {name}: {error}")
            continue
        found[name] = {"MB": len(kept) / 1e6, "write": cpu_ms(write, turns), "read": cpu_ms(lambda: read(kept), turns)}  # noqa: B023
    for name, f in found.items():
        print(f"  {name:26} {f['MB']:5.2f} MB  write {f['write']:6.1f} ms  read {f['read']:5.1f} ms", flush=True)
    return found


def shared_scales(content: bytes) -> dict[str, float]:
    """Share of the values that would be others if a smaller size were made from a larger size's decoding."""
    found = {}
    for a, small in PREPROCESSINGS.items():
        for b, large in PREPROCESSINGS.items():
            sizes = [images.decoded_size(content, p) for p in (small, large)]
            if a < b and sizes[0] != sizes[1]:
                own, lent = images.load(content, small), images.frame(images.decode(content, large), small)
                found[f"{a} from {b}"] = float((own != lent).mean())
    print("  values that differ if scales were shared: " + ", ".join(f"{k} {v:.0%}" for k, v in found.items()))
    return found


def training(photos: list[Path], views_each: int) -> float:
    """Wall time of all views of large photographs, with thumbnails over without: writing them counted."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / path.name for path in photos]
        for path, photo in zip(paths, photos, strict=True):
            path.write_bytes(encoded(enlarged(photo), "JPEG", quality=90))
        digests = [images.digest(path.read_bytes()) for path in paths]
        ratios = []
        for turn in range(3):
            seconds = []
            for uses in (0, thumbnails.USES):
                kept, start = thumbnails.Thumbnails(Path(folder) / f"kept-{turn}-{uses}"), time.perf_counter()
                for number in range(views_each):
                    for path, name in zip(paths, digests, strict=True):
                        image = kept.decode_file(path, name, PREPROCESSING, uses=uses)
                        views.view_of(image, number, PREPROCESSING, Augmentation(), digest=name, seed=0)
                seconds.append(time.perf_counter() - start)
            ratios.append(seconds[1] / seconds[0])
    ratio = statistics.median(ratios)
    print(f"{views_each} views of each large photograph, with thumbnails over without: {ratio:.2f}")
    return ratio


def lock(photo: Path, seconds: float) -> tuple[float, float]:
    """What is left of the interpreter's lock: images/s of two threads over one; and beside a busy thread over alone."""
    content = encoded(enlarged(photo), "JPEG", quality=90)

    def rate(threads: int) -> float:
        end = time.perf_counter() + seconds

        def work(_: int) -> int:
            done = 0
            while time.perf_counter() < end:
                images.load(content, PREPROCESSING)
                done += 1
            return done

        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(work, range(threads))) / seconds

    one, two = rate(1), rate(2)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            sum(range(500))

    other = threading.Thread(target=busy)
    other.start()
    try:
        beside = rate(1)
    finally:
        stop.set()
        other.join()
    print(
        f"large JPEG: two threads over one {two / one:.2f}; beside a busy Python thread over alone {beside / one:.2f}"
    )
    return two / one, beside / one


def looking(quick: bool) -> dict[str, float]:
    """Wall milliseconds per file of reading a folder (bytes, header, end marker, digest), and of its parts alone."""
    folder = common.SETS / ("neu6" if quick else "flowers17")
    start = time.perf_counter()
    seen = data.read(folder)
    whole = 1000 * (time.perf_counter() - start) / len(seen.examples)
    contents = [images.read_bytes(folder / e.path) for e in seen.examples]
    parts = {
        "read": cpu_ms(lambda: [images.read_bytes(folder / e.path) for e in seen.examples], 2),
        "look": cpu_ms(lambda: [images.look(c) for c in contents], 2),
        "digest": cpu_ms(lambda: [images.digest(c) for c in contents], 2),
    }
    each = {name: ms / len(contents) for name, ms in parts.items()}
    print(
        f"reading a folder of {len(contents)} small files: {whole:.3f} ms per file, of which (CPU) "
        + ", ".join(f"{k} {v:.3f}" for k, v in each.items())
    )
    return {"whole": whole, **each}


if __name__ == "__main__":
    main()
