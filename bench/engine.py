"""In what do the frozen layers run fastest here, what does setting it up cost, and does it compute the same?

Every runtime sees the same real photographs, already decoded, in turn, as topwork runs it: with the pooled features of
every cut and the old task's logits as outputs. "eager" is the network as its library builds it, in PyTorch, without
anything of that. Speed in images per second and as the median of ratios to the prepared PyTorch; the set-up until the
first answer; the largest difference at any cut over the largest value there (bound 0.001). Last: the same with another
program on the machine, which is where lanes part from operations that are shared among threads.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import common

NETWORKS = (
    ("efficientnet_lite0", None), ("mobilenet_v2", "mobilenet_v2.fp16.safetensors"),
    ("resnet50", "resnet50_features.fp16.safetensors"),
)  # fmt: skip
BATCH = 8
Run = Callable[[NDArray[np.uint8]], object]


def main() -> None:
    quick = common.arguments(__doc__ or "").quick
    common.need_sets()
    from topwork import zoo

    figures: dict[str, object] = {}
    for name, weights in NETWORKS[: 1 if quick else None]:
        backbone = zoo.load(name, weights=common.WEIGHTS / weights if weights else None, size_px=128 if quick else None)
        figures[backbone.name] = one(backbone, images=48 if quick else 96, rounds=3 if quick else 5, compile=not quick)
    common.finish({"bench": "engine", "quick": quick, "networks": figures})


def one(backbone: object, *, images: int, rounds: int, compile: bool) -> dict[str, object]:
    from topwork.engine import Engine, lanes
    from topwork.engine.race import difference

    pixels = photographs(backbone, images)
    classifier = backbone.source_classes > 0
    engine = Engine(backbone.chain.segments, backbone.preprocessing)
    expected = engine.see(pixels[:BATCH], logits=classifier)
    size_px, cores = backbone.preprocessing.crop_px, torch.get_num_threads()
    print(f"\n{backbone.name} at {size_px} px, {len(backbone.cuts)} cuts, {cores} cores")
    with tempfile.TemporaryDirectory() as home, lanes(engine.device) as shared:
        ways = runtimes(backbone, engine, Path(home), pixels, shared, compile)
        kinds = {
            "eager": (eager(backbone), 1, cores),
            "pytorch, one lane": (lambda x: engine.see(x, logits=classifier), 1, cores),
            **{way: (waited(run), shared.count, shared.threads) for way, (run, _) in ways.items()},
        }  # fmt: skip
        speeds: dict[str, list[float]] = {k: [] for k in kinds}
        for run, _, _ in kinds.values():
            run(pixels[:BATCH])
        for _ in range(rounds):
            for kind, (run, count, threads) in kinds.items():
                speeds[kind].append(speed(run, pixels, count, threads))
        busy: dict[str, list[float]] = {"pytorch, one lane": [], "pytorch": [], "onnxruntime": []}
        for _ in range(rounds):
            with other_program():
                for kind, values in busy.items():
                    run, count, threads = kinds[kind]
                    values.append(speed(run, pixels, count, threads))
    result: dict[str, object] = {}
    print(f"{'':<20}{'images/s':>9}{'x pytorch':>11}{'set up s':>10}{'difference':>12}")
    for kind, values in speeds.items():
        ratio = statistics.median(v / p for v, p in zip(values, speeds["pytorch"], strict=True))
        set_up = ways[kind][1] if kind in ways else 0.0
        compared = kind in ways and kind != "onnx, no pooling"
        apart = difference(ways[kind][0](pixels[:BATCH]).result(), expected) if compared else None
        shown = "" if apart is None else f"{apart:.1e}"
        print(f"{kind:<20}{statistics.median(values):>9.1f}{ratio:>11.2f}{set_up:>10.1f}{shown:>12}")
        result[kind] = {"images_s": statistics.median(values), "ratio": ratio, "set_up_s": set_up, "difference": apart}
    for kind, values in busy.items():
        ratio = statistics.median(v / p for v, p in zip(values, busy["pytorch, one lane"], strict=True))
        print(
            f"beside another program: {kind:<20}{statistics.median(values):>6.1f} images/s, {ratio:.2f} times one lane"
        )
        result[f"busy {kind}"] = {"images_s": statistics.median(values), "ratio": ratio}
    return result


def waited(run: Run) -> Run:
    return lambda x: run(x).result()


def runtimes(
    backbone: object, engine: object, home: Path, pixels: NDArray[np.uint8], shared: object, compile: bool
) -> dict[str, tuple[Run, float]]:
    """Each with the seconds until its first answer."""
    from topwork.engine import graph, runtimes

    classifier, cuts = backbone.source_classes > 0, len(backbone.cuts)
    seen = engine.see(pixels[:BATCH], logits=classifier)
    shares, outputs, file = seen.seconds / seen.seconds.sum(), graph.names(cuts, classifier), home / "graph.onnx"
    found: dict[str, tuple[Run, float]] = {}

    def add(name: str, make: Callable[[], Run], extra: float = 0.0) -> None:
        start = time.perf_counter()
        try:
            run = make()
            run(pixels[:BATCH]).result()
        except Exception as error:  # what is not installed, or does not run here, is told and left out
            print(f"{name}: {str(error).splitlines()[0][:100]}")
            return
        found[name] = run, extra + time.perf_counter() - start

    add("pytorch", lambda: lambda x: engine.submit(x, logits=classifier))
    start = time.perf_counter()
    graph.export(engine, pixels[:2], file, logits=classifier)
    exporting = time.perf_counter() - start
    add("onnxruntime", lambda: runtimes.OnnxRuntime(graph.ends(file, outputs), outputs, shares, shared.threads).submit,
        exporting)  # fmt: skip
    if classifier:
        add("onnx, no pooling", lambda: _last(runtimes, graph.ends(file, ["logits"]), shared.threads), exporting)
    add("openvino", lambda: runtimes.OpenVino(graph.ends(file, outputs), outputs, shares, shared).submit, exporting)
    if compile:
        add("torch.compile", lambda: runtimes.Compiled(engine, BATCH, logits=classifier, depth=None).submit)
    return found


def _last(runtimes: object, graph: bytes, threads: int) -> Run:
    """The network alone, without the cuts: what the pooling costs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    from topwork.engine import Seen

    def run(x: NDArray[np.uint8]) -> object:
        (logits,) = session.run(None, {"pixels": x})
        return runtimes.Done(Seen([], logits.astype(np.float16), np.zeros(1)))

    return run


def eager(backbone: object) -> Run:
    """As its library builds it: nothing folded, channels first."""
    from topwork.engine import normalisation

    scale, shift = normalisation(backbone.preprocessing)
    network = torch.nn.Sequential(*backbone.chain.segments).eval()

    def run(x: NDArray[np.uint8]) -> object:
        with torch.inference_mode():
            return network((torch.from_numpy(x).float() * scale + shift).permute(0, 3, 1, 2).contiguous())

    return run


def speed(run: Run, pixels: NDArray[np.uint8], count: int, threads: int) -> float:
    """Images per second with `count` batches at once, each on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        batches = [pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH)]
        with ThreadPoolExecutor(count) as pool:
            start = time.perf_counter()
            for _ in pool.map(run, batches):
                pass
            return len(pixels) / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)


class other_program:  # noqa: N801 (used as a function)
    """A process that keeps one core busy."""

    def __enter__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "while True: pass"])

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def photographs(backbone: object, count: int) -> NDArray[np.uint8]:
    from topwork import images

    files = sorted((common.SETS / "flowers17").rglob("*.jpg"))[:: 612 // count][:count]
    return np.stack([images.load(f, backbone.preprocessing) for f in files])


if __name__ == "__main__":
    main()
