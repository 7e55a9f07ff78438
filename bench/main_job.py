"""What does a whole `fit` cost, in forward equivalents and in memory?

1 FE = decoding and one forward pass of the whole backbone over the same images at the same size, in the fastest
engine at hand, already set up, on all cores, no pooling, nothing kept: the floor. ONNX Runtime runs the graph that
topwork writes; what a fit takes of a pass through the graph that PyTorch's exporter makes of the same network is
printed beside it. FE and fit run in one process, in turn; medians of ratios. Imports and model loading are counted
apart. What counts is when the answer is told (plan, wrong labels, shortcuts, accuracy); beside it stands when all is
told and written: what more images would bring, the model, its proof in ONNX Runtime, its pictures, its page.
A fit is made three times: the very first one with this backbone on this machine (it exports the network and lets the
engines race), one with another cache of features that finds the engine, and a repeated one that finds everything.
Bounds: 1.15 FE, repeated 0.1 FE. `--backbone` and `--weights` as of `topwork fit`: what does not shrink with the
network weighs less beside a larger one. Peak memory is always of the embedded backbone.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import common
from topwork.watch import Silent

ROUNDS = 3
SETS = (("ants_bees", None), ("flowers17", None), ("dtd10", None), ("neu6", None), ("trashnet", None))
BATCH = 8
BOUNDS = {"engine known": 1.15, "repeated": 0.1}  # FE until the answer


def main() -> None:
    given = common.arguments(__doc__ or "", rounds=ROUNDS, sets=len(SETS), backbone="", weights="")
    quick = given.quick
    common.need_sets()
    start = time.perf_counter()
    import timm  # noqa: F401
    from sklearn import model_selection  # noqa: F401

    import topwork
    from topwork import workflow  # noqa: F401
    from topwork.zoo import EMBEDDED

    imports = time.perf_counter() - start
    network = {"backbone": given.backbone or EMBEDDED, "weights": given.weights or None}
    ratios: dict[str, list[float]] = {}
    floors: dict[str, list[float]] = {}
    for name, size in (("neu6", 96),) if quick else SETS[: given.sets]:
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(1 if quick else given.rounds):
                fe, engines = forward_equivalent(common.SETS / name, size, Path(folder) / "floor", network)
                for engine, seconds in engines.items():
                    floors.setdefault(engine, []).append(seconds / fe)
                cache = Path(folder) / f"cache-{turn}"
                took = {"first": timed(topwork, name, size, Path(folder) / f"run-{turn}-0", cache, network)}
                for kept in ("features", "probes", "heads"):
                    shutil.rmtree(cache / kept)
                took["engine known"] = timed(topwork, name, size, Path(folder) / f"run-{turn}-1", cache, network)
                took["repeated"] = timed(topwork, name, size, Path(folder) / f"run-{turn}-2", cache, network)
                assert took["repeated"][2].record.spending.images_passed == 0
                for kind, (seconds, whole, run) in took.items():
                    ratios.setdefault(f"{name} {kind}", []).append(seconds / fe)
                    ratios.setdefault(f"{name} {kind}, all written", []).append(whole / fe)
                    parts = ", ".join(f"{k} {v:.2f}" for k, v in run.record.spending.seconds.items())
                    print(
                        f"{name}, round {turn}, {kind}: {seconds / fe:.3f} FE of {fe:.2f} s ({run.record.engine.name}),"
                        f" {seconds / engines['onnxruntime, as exported']:.3f} of the network as exported,"
                        f" all written {whole / fe:.3f}; {parts}",
                        flush=True,
                    )
                shutil.rmtree(cache)
    bounds: list[common.Bound] = []
    medians = {kind: statistics.median(values) for kind, values in ratios.items()}
    for kind in (k + more for k in ("first", "engine known", "repeated") for more in ("", ", all written")):
        values = [v for k, v in medians.items() if k.endswith(kind)]
        middle = statistics.median(values)
        print(f"{kind}: median {middle:.3f} FE, from {min(values):.3f} to {max(values):.3f}")
        if kind in BOUNDS and not quick:
            bounds.append((kind, middle, BOUNDS[kind], middle <= BOUNDS[kind]))
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
            "bench": "main_job", "quick": quick, "backbone": network["backbone"], "fe": medians, "imports_s": imports,
            "engines_fe": {k: statistics.median(v) for k, v in floors.items()},
            "peak_bytes": dict(zip(map(str, images), peaks, strict=True)), "peak_bytes_per_image": per_image,
            "cache_bytes_per_image": run.record.spending.cache_bytes_per_image,
        },
        bounds,
    )  # fmt: skip


class Answered(Silent):
    """A watch that notes when the answer is there."""

    at = 0.0

    def show(self, what: str, fact: object) -> None:
        """A finished fact."""
        if what == "answer":
            self.at = time.perf_counter()


def timed(
    topwork: object, name: str, size: int | None, out: Path, cache: Path, network: dict[str, str | None]
) -> tuple[float, float, object]:
    """Seconds until the answer is told and until all is written, but for the loading of the backbone."""
    watch = Answered()
    start = time.perf_counter()
    run = topwork.fit(common.SETS / name, size=size, strategy="head", out=out, cache=cache, watch=watch, **network)  # type: ignore[attr-defined]
    whole, load = time.perf_counter() - start, run.record.spending.seconds["load"]
    return watch.at - start - load, whole - load, run


def forward_equivalent(
    folder: Path, size: int | None, home: Path, network: dict[str, str | None]
) -> tuple[float, dict[str, float]]:
    """Seconds of decoding and one forward pass over every image in the fastest engine, and in each one."""
    import onnxruntime

    from topwork import data, images, zoo
    from topwork.engine import Engine, graph, lanes

    file = network["weights"]
    backbone = zoo.load(network["backbone"], weights=None if file is None else Path(file), size_px=size)
    engine = Engine(backbone.chain.segments, backbone.preprocessing)
    paths = [folder / e.path for e in data.read(folder).examples]
    if not (home / "graph.onnx").exists():
        side = backbone.preprocessing.crop_px
        grey = np.zeros((2, side, side, 3), dtype=np.uint8)
        graph.export(engine, grey, home / "graph.onnx", logits=True)
        with torch.inference_mode(), graph._quiet():  # as PyTorch's exporter writes the network when nothing is done
            torch.onnx.export(
                _Whole(engine), (torch.from_numpy(grey),), str(home / "exported.onnx"), dynamo=False,
                opset_version=graph.OPSET, input_names=["pixels"], output_names=["logits"],
                dynamic_axes={n: {0: "b"} for n in ("pixels", "logits")},
            )  # fmt: skip

    def plain(pixels: NDArray[np.uint8]) -> object:
        with torch.inference_mode():
            x = engine.pixels(pixels)
            for segment in engine.segments:
                x = segment(x)
        return x

    found = {}
    with lanes(engine.device) as shared:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = shared.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session, exported = (
            onnxruntime.InferenceSession(graph.ends(file, ["logits"]), options, providers=["CPUExecutionProvider"])
            for file in (home / "graph.onnx", home / "exported.onnx")
        )
        for name, run in (
            ("pytorch", plain),
            ("onnxruntime", lambda x: session.run(None, {"pixels": x})),
            ("onnxruntime, as exported", lambda x: exported.run(None, {"pixels": x})),
        ):

            def batch(i: int, run: Callable[[NDArray[np.uint8]], object] = run) -> None:
                run(np.stack([images.load(p, backbone.preprocessing) for p in paths[i : i + BATCH]]))

            batch(0)
            with ThreadPoolExecutor(shared.count) as pool:
                start = time.perf_counter()
                for _ in pool.map(batch, range(0, len(paths), BATCH)):
                    pass
                found[name] = time.perf_counter() - start
    return min(found.values()), found


class _Whole(torch.nn.Module):
    """The whole network, from uint8 pixels to logits."""

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self.segments = torch.nn.ModuleList(engine.segments)
        self.scale, self.shift = engine._scale, engine._shift

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = (pixels.float() * self.scale + self.shift).permute(0, 3, 1, 2)
        for segment in self.segments:
            x = segment(x)
        return x


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
