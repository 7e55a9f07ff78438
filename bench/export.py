"""Is what leaves topwork equal, small and fast: model.onnx, the runtime without PyTorch, many images, 8 bits?

For EfficientNet-Lite0 and ResNet-50 at their deepest cut, on real photographs: what writing and comparing model.onnx
adds to a fit (bound 5 s), the largest difference of a score; what a fresh process takes to the first answer without
PyTorch (bound 1 s of its own time); images per second of `predict --out` over a bare loop of ONNX Runtime and Pillow
with as many threads; what asking for features and maps beside the scores costs.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import common

NETWORKS = (("efficientnet_lite0", None), ("resnet50", "resnet50_features.fp16.safetensors"))
FIRST = """
import os, sys, time
began = time.perf_counter()
from topwork import runtime
runtime.load(sys.argv[1]).predict(sys.argv[2])
t = os.times()
print(t.user + t.system, time.perf_counter() - began)
"""


def main() -> None:
    quick = common.arguments(__doc__ or "").quick
    common.need_sets()
    figures = {name: one(name, weights, quick) for name, weights in NETWORKS[: 1 if quick else None]}
    common.finish({"bench": "export", "quick": quick, "networks": figures})


def one(name: str, weights: str | None, quick: bool) -> dict[str, object]:
    from topwork import batch, model, portable, runtime, zoo
    from topwork.records import SCHEMA, Estimate, ModelFacts

    backbone = zoo.load(name, weights=common.WEIGHTS / weights if weights else None)
    tap, classes = backbone.cuts[-1], tuple(f"class {k}" for k in range(17))
    facts = ModelFacts(
        SCHEMA, "bench", backbone.name, backbone.fingerprint, tap.name, (tap.name,), backbone.preprocessing, classes,
        1.0, tap.channels, "ridge", 1.0, Estimate(0.9, 0.8, 0.95, 99, "bench"), {},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    head = (rng.normal(size=(2 * tap.channels, len(classes))) / np.sqrt(2 * tap.channels)).astype(np.float32)
    kept = model.create(facts, backbone, head, np.zeros(len(classes), np.float32))
    files = sorted((common.SETS / "flowers17").rglob("*.jpg"))[:: 6 if quick else 2]
    pixels = np.stack([kept.load(f) for f in files[:: len(files) // portable.IMAGES][: portable.IMAGES]])
    with tempfile.TemporaryDirectory() as home:
        place = Path(home) / "model"
        kept.save(place)
        before = time.process_time()
        made = portable.write(kept, place / runtime.FILE, pixels)
        writing = time.process_time() - before
        print(f"{name}: model.onnx {made.bytes / 1e6:.1f} MB beside {(place / model.FILE).stat().st_size / 1e6:.1f} MB")
        print(f"  written and compared in {made.seconds:.1f} s ({writing:.1f} s of processor time)")
        print(f"  scores up to {made.largest:.3g} differ by at most {made.difference:.2g}; {made.reason or 'equal'}")
        first = [
            tuple(float(x) for x in fresh(FIRST, str(place), str(files[0])).split()) for _ in range(3 if quick else 7)
        ]
        own, clock = (statistics.median(x[k] for x in first) for k in (0, 1))
        print(f"  first answer in a fresh process: {own:.2f} s of its own time, {clock:.2f} s by the clock")
        loaded = runtime.load(place, threads=1)
        found = batch.of([str(f) for f in files])
        ratios, speeds = [], []
        for k in range(3 if quick else 5):
            bare = timed(lambda: alone(loaded, files))
            ours = timed(lambda k=k: batch.write(loaded, found, Path(home) / f"{k}.csv", model="bench"))
            ratios.append(bare / ours)
            speeds.append(len(files) / ours)
        print(
            f"  {len(files)} photographs into CSV: {statistics.median(speeds):.1f} images/s,"
            f" {statistics.median(ratios):.2f} times a bare loop ({', '.join(f'{r:.2f}' for r in ratios)})"
        )
        batch_ = pixels[:8]
        extra = [timed(lambda: loaded.see(batch_)) / timed(lambda: loaded.logits(batch_)) for _ in range(9)]
        print(f"  features and maps beside the scores: {statistics.median(extra):.2f} times the time")
    return {
        "seconds": made.seconds, "processor_s": writing, "difference": made.difference, "largest": made.largest,
        "first_own_s": own, "first_s": clock, "images_s": statistics.median(speeds),
        "over_bare": statistics.median(ratios), "see_over_scores": statistics.median(extra),
    }  # fmt: skip


def fresh(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout


def timed(work: object) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alone(loaded: object, files: list[Path]) -> None:
    """ONNX Runtime and the same decoding, batches side by side, nothing else."""

    def work(some: list[Path]) -> object:
        return loaded._session.run(["scores"], {"pixels": np.stack([loaded.load(f) for f in some])})

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, [files[i : i + 16] for i in range(0, len(files), 16)]):
            pass


if __name__ == "__main__":
    main()
