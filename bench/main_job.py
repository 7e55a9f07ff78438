"""What does a whole `fit` cost, in forward equivalents and in memory?

1 FE = decoding plus one fused, channels-last forward pass of the whole backbone over the same images
at the same size, no pooling, one after the other. FE and fit run in one process, in turn; medians of
ratios. Imports and model loading are counted apart. Bounds: fit 1.3 FE, everything after the pass
0.25 FE, a repeated fit 0.1 FE.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import common

ROUNDS = 3


def main() -> None:
    quick = common.arguments(__doc__ or "").quick
    common.need_sets()
    start = time.perf_counter()
    import timm  # noqa: F401
    from sklearn import model_selection  # noqa: F401

    import topwork
    from topwork import workflow  # noqa: F401

    imports = time.perf_counter() - start
    name, size = ("neu6", 96) if quick else ("flowers17", None)  # 600 and 612 images
    whole, after, repeated, loads = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(1 if quick else ROUNDS):
            fe = forward_equivalent(common.SETS / name, size)
            cache = Path(folder) / f"cache-{turn}"
            first, run = timed(topwork, name, size, Path(folder) / f"run-{turn}-0", cache)
            again, rerun = timed(topwork, name, size, Path(folder) / f"run-{turn}-1", cache)
            assert rerun.record.spending.images_passed == 0
            seconds = run.record.spending.seconds
            load, load_again = seconds["load"], rerun.record.spending.seconds["load"]
            whole.append((first - load) / fe)
            repeated.append((again - load_again) / fe)
            after.append(sum(v for k, v in seconds.items() if k not in {"look", "load", "pass"}) / fe)
            loads.append(load)
            print(
                f"round {turn}: FE {fe:.2f} s; fit {whole[-1]:.3f} FE (probes to saving {after[-1]:.3f} FE), again"
                f" {repeated[-1]:.3f} FE; loading the backbone {load:.2f} s more; " + ", ".join(
                    f"{k} {v:.2f}" for k, v in seconds.items()),
                flush=True,
            )  # fmt: skip
            shutil.rmtree(cache)
    images = (3000, 4500) if quick else (6000, 12000)  # more than features, and some locked: one regime
    peaks = [peak_memory(n) for n in images]
    per_image = (peaks[1] - peaks[0]) / (images[1] - images[0])
    print(
        f"peak memory: {peaks[0] / 2**20:.0f} MiB at {images[0]} images, {peaks[1] / 2**20:.0f} MiB at {images[1]}:"
        f" {per_image / 1024:.1f} KiB per image;"
        f" on disk {run.record.spending.cache_bytes_per_image} bytes per image"
    )
    common.finish(
        {
            "bench": "main_job", "quick": quick, "set": name, "size_px": size or 224,
            "fit_fe": statistics.median(whole), "after_pass_fe": statistics.median(after),
            "repeated_fe": statistics.median(repeated), "imports_s": imports, "load_s": statistics.median(loads),
            "peak_bytes": dict(zip(map(str, images), peaks, strict=True)), "peak_bytes_per_image": per_image,
            "cache_bytes_per_image": run.record.spending.cache_bytes_per_image,
        }
    )  # fmt: skip


def timed(topwork: object, name: str, size: int | None, out: Path, cache: Path) -> tuple[float, object]:
    start = time.perf_counter()
    run = topwork.fit(common.SETS / name, size=size, strategy="head", out=out, cache=cache)  # type: ignore[attr-defined]
    return time.perf_counter() - start, run


def forward_equivalent(folder: Path, size: int | None) -> float:
    """Seconds of decoding plus one prepared forward pass over every image, one after the other."""
    from topwork import data, images, zoo
    from topwork.engine import Engine
    from topwork.features import BATCH

    backbone = zoo.load(size_px=size)
    engine = Engine(backbone.chain.segments, backbone.preprocessing)
    paths = [folder / e.path for e in data.read_folder(folder).examples]
    start = time.perf_counter()
    with torch.inference_mode():
        for i in range(0, len(paths), BATCH):
            x = engine.pixels(np.stack([images.load(p, backbone.preprocessing) for p in paths[i : i + BATCH]]))
            for segment in engine.segments:
                x = segment(x)
    return time.perf_counter() - start


def peak_memory(count: int) -> int:
    """Peak resident bytes of a process that fits `count` generated images at 32 px."""
    done = subprocess.run([sys.executable, __file__, "--peak", str(count)], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def _peak_bytes() -> int:
    """Peak resident bytes of this process alone: getrusage's count starts at the parent's, across exec."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fit_generated(count: int) -> None:
    from PIL import Image

    import topwork

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            path = Path(folder) / "data" / f"class{i % 4}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 200, (32, 32, 3), dtype=np.uint8) + np.uint8(10 * (i % 4))
            Image.fromarray(pixels).save(path)
        topwork.fit(
            Path(folder) / "data", size=32, strategy="head", out=Path(folder) / "run", cache=Path(folder) / "cache"
        )
    print(_peak_bytes())


if __name__ == "__main__":
    if "--peak" in sys.argv:
        fit_generated(int(sys.argv[-1]))
    else:
        main()
