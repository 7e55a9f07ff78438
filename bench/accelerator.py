"""What does an accelerator bring, how near is it to what it could do, and does it compute the same?

1. The frozen layers, images in memory: topwork's pass (every cut pooled and brought back) over a bare loop of the same
   prepared network in half precision (nothing pooled, nothing brought back); the race between runtimes; the largest
   difference to the CPU at any cut, over the largest value there (bound 0.001).
2. Training: an epoch from the stored views over its bare forward and backward passes on tensors that lie on the device.
   Beside it the same passes replayed as one recorded graph: what launching each operation by itself costs.
3. A whole `fit` beside the same on the CPU, engine known: seconds until the answer, what was answered, and FE: decoding
   on all cores beside the bare loop.
Without an accelerator it says so and ends. Medians; everything in one process, in turn.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import common
import fine_tuning
from topwork import activations, data, features, images, train, zoo
from topwork.ahead import batches
from topwork.engine import Engine, choose, lanes
from topwork.engine.race import SAME, difference
from topwork.head import Exact
from topwork.records import Augmentation, Recipe, RunRecord
from topwork.watch import Silent

ROUNDS = 3
NETWORKS = ("efficientnet_lite0", "resnet50")
SETS = ("ants_bees", "flowers17")
BATCH = features.BATCH_GPU


def main() -> None:
    given = common.arguments(__doc__ or "", rounds=ROUNDS, size=224, images=2048)
    if not torch.accelerator.is_available():
        print("no accelerator that PyTorch finds: nothing to measure")
        common.finish({"bench": "accelerator", "quick": given.quick, "device": None})
        return
    os.environ["TOPWORK_DEVICE"] = "auto"
    on = torch.accelerator.current_accelerator()
    name = (
        torch.get_device_module(on).get_device_name() if hasattr(torch.get_device_module(on), "get_device_name") else ""
    )
    print(f"{on.type} {name}, {os.cpu_count()} cores, PyTorch {torch.__version__}", flush=True)
    figures: dict[str, Any] = {"device": f"{on.type} {name}"}
    for network in NETWORKS[: 1 if given.quick else None]:
        backbone = calm(fine_tuning.random_backbone(network, given.size))
        figures[f"{network} pass"] = frozen(backbone, 256 if given.quick else given.images, given.rounds)
        figures[f"{network} training"] = training(backbone, 256 if given.quick else 1024, given.rounds)
    for name in SETS[: 1 if given.quick else None]:
        if (common.SETS / name).is_dir():
            figures[f"{name} fit"] = fits(common.SETS / name, given.size, given.rounds)
    bounds = [(f"{kind}: difference", f["difference"], SAME, f["difference"] <= SAME)
              for kind, f in figures.items() if kind.endswith(" pass")]  # fmt: skip
    common.finish({"bench": "accelerator", "quick": given.quick, **figures}, bounds)


def calm(backbone: zoo.Backbone) -> zoo.Backbone:
    """Random weights grow from layer to layer until half precision overflows: statistics as training leaves them."""
    if backbone.weights != "random":
        return backbone
    whole = nn.Sequential(*backbone.chain.segments).train()
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        whole(torch.randn(16, 3, backbone.preprocessing.crop_px, backbone.preprocessing.crop_px))
    whole.eval()
    return backbone


def wait() -> None:
    torch.accelerator.synchronize()


def timed(work: Callable[[], object]) -> float:
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def bare(engine: Engine) -> Callable[[Iterable[NDArray[np.uint8]]], None]:
    """The network alone in half precision; nothing is pooled or brought back."""

    def run(chunks: Iterable[NDArray[np.uint8]]) -> None:
        with torch.inference_mode(), torch.autocast(engine.device.type, torch.float16):
            for chunk in chunks:
                x = engine.pixels(chunk)
                for segment in engine.segments:
                    x = segment(x)

    return run


def frozen(backbone: zoo.Backbone, count: int, rounds: int) -> dict[str, object]:
    side = backbone.preprocessing.crop_px
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    chunks = [pixels[i : i + BATCH] for i in range(0, count, BATCH)]
    engine = Engine(backbone.chain.segments, backbone.preprocessing)
    classifier = backbone.source_classes > 0
    with tempfile.TemporaryDirectory() as home, lanes(engine.device) as shared:
        chosen = choose(engine, 10**6, lambda: pixels[:4], classifier=classifier, batch=BATCH, lanes=shared,
                        home=Path(home), compiler=None)  # fmt: skip

        def whole() -> None:
            with ThreadPoolExecutor(1) as lane:
                ahead = []
                for chunk in chunks:
                    ahead.append(lane.submit(chosen.submit, chunk))
                    if len(ahead) > 1:
                        ahead.pop(0).result().result()
                for pending in ahead:
                    pending.result().result()

        loop = bare(engine)
        whole(), loop(chunks)
        took = [(timed(whole), timed(lambda: loop(chunks))) for _ in range(rounds)]
        here = Engine(backbone.chain.segments, backbone.preprocessing, on=torch.device("cpu"))
        apart = difference(chosen.submit(pixels[:4]).result(), here.see(pixels[:4], logits=classifier))
    speeds = [count / statistics.median(t[i] for t in took) for i in (0, 1)]
    ratio = statistics.median(a / b for a, b in took)
    print(
        f"{backbone.name} at {side} px: {speeds[0]:.0f} images/s with every cut pooled ({chosen.facts.name}), bare loop"
        f" {speeds[1]:.0f}: {ratio:.2f} times its time; difference to the CPU {apart:.1e}"
    )
    for tried in chosen.facts.tried:
        print(
            f"  {tried.name}: {tried.ms_per_image or 0:.2f} ms, {tried.difference or 0:.1e}, {tried.outcome}",
            flush=True,
        )
    return {"images_s": speeds[0], "bare_images_s": speeds[1], "ratio": ratio, "difference": apart,
            "engine": chosen.facts.name}  # fmt: skip


def training(backbone: zoo.Backbone, count: int, rounds: int) -> dict[str, object]:
    """Of the whole network and of its last stage."""
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = common.SETS / SETS[0]
        dataset = data.read(root)
        examples = [dataset.examples[i % len(dataset.examples)] for i in range(count)]
        labels = np.array([e.label for e in examples])
        store = activations.store(backbone, features.key(backbone), root, examples, augmentation=Augmentation(), seed=0,
                                  cache=Path(folder))  # fmt: skip
        task, rows, classes = train.Task(store, labels, len(dataset.classes)), np.arange(count), len(dataset.classes)
        width = 2 * backbone.cuts[-1].channels
        start = Exact(np.zeros(width), np.ones(width), np.zeros((width, classes)), np.zeros(classes))
        stage, names = train.stages(backbone.cuts), [c.name for c in backbone.cuts]
        for strategy, first in (("suffix", names[stage.index(stage[-1])]), ("full", names[0])):
            recipe = Recipe(strategy, names[-1], first, epochs=2, views=1)
            one = train.train(task, recipe, rows, start, seed=0)
            assert one is not None
            views = one.view_seconds
            ratios, replayed, epoch = [], [], []
            for _ in range(rounds):
                one = train.train(task, recipe, rows, start, seed=0)
                assert one is not None
                seconds = one.curve[-1].seconds
                plain, graph = bare_epochs(one.network, store, labels, recipe)
                epoch.append(seconds), ratios.append(seconds / plain), replayed.append(plain / graph)
            print(
                f"{backbone.name}, {strategy} from {first}: {count / statistics.median(epoch):.0f} images/s, an epoch"
                f" costs {statistics.median(ratios):.2f} bare passes; these would be {statistics.median(replayed):.2f}"
                f" times as fast as one recorded graph; the views took {count / views:.0f} images/s",
                flush=True,
            )
            found[strategy] = {"images_s": count / statistics.median(epoch), "over_bare": statistics.median(ratios),
                               "graph": statistics.median(replayed)}  # fmt: skip
    return found


def bare_epochs(
    network: train.Network, store: activations.Store, labels: NDArray[np.int64], recipe: Recipe
) -> tuple[float, float]:
    """Seconds of one epoch's forward and backward passes, launched one by one and as a recorded graph."""
    network = network.train()
    on, size = next(network.parameters()).device, recipe.batch
    stored = torch.from_numpy(np.array(store.mapped(network.point, 1))).to(on)
    there = torch.from_numpy(labels).to(on)
    half = train._half(on)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(on.type, half or torch.bfloat16, enabled=half is not None, cache_enabled=False):
            logits = network(x)
        nn.functional.cross_entropy(logits.float(), y).backward()

    parts = [(stored[i : i + size], there[i : i + size]) for i in range(0, len(stored) - size + 1, size)]
    for x, y in parts[:3]:
        step(x, y)
    plain = timed(lambda: [step(x, y) for x, y in parts])
    if on.type != "cuda":
        return plain, plain
    x, y = parts[0][0].clone(), parts[0][1].clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(x, y)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    network.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step(x, y)

    def replay() -> None:
        for part, truth in parts:
            x.copy_(part), y.copy_(truth)
            graph.replay()

    replay()
    return plain, timed(replay)


class Answered(Silent):
    """A watch that notes when the answer is there."""

    at = 0.0

    def show(self, what: str, fact: object) -> None:
        """A finished fact."""
        if what == "answer":
            self.at = time.perf_counter()


def fits(folder: Path, size: int, rounds: int) -> dict[str, object]:
    backbone = zoo.load(size_px=size)
    engine = Engine(backbone.chain.segments, backbone.preprocessing)
    paths = [folder / e.path for e in data.read(folder).examples]
    loop = bare(engine)

    def floor() -> None:
        decoded = batches(paths, lambda p: images.load(p, backbone.preprocessing), BATCH, at_once=True)
        loop(np.stack([x for _, x in group]) for group in decoded)

    floor()
    fe = statistics.median(timed(floor) for _ in range(rounds))
    told: dict[str, object] = {}
    for strategy, kind in (("head", "auto"), ("head", "cpu"), ("full", "auto")):
        os.environ["TOPWORK_DEVICE"] = kind
        runs = [fit(folder, size, strategy) for _ in range(rounds + 1 if strategy == "head" else 1)]
        answer, whole = (statistics.median(r[i] for r in runs[len(runs) > 1 :]) for i in (0, 1))  # the first one races
        record = runs[-1][2]
        accuracy, where = record.metrics.accuracy.value, record.engine
        parts = ", ".join(f"{k} {v:.2f}" for k, v in record.spending.seconds.items())
        print(
            f"{folder.name}, {strategy}, {where.device} ({where.name}): answer after {answer:.2f} s"
            f" ({answer / fe:.2f} FE of {fe:.2f} s; the first time {runs[0][0]:.2f} s), all written {whole:.2f} s,"
            f" accuracy {100 * accuracy:.1f}%; last: {parts}",
            flush=True,
        )
        told[f"{strategy} {where.device}"] = {"answer_s": answer, "fe": answer / fe, "written_s": whole,
                                              "accuracy": accuracy}  # fmt: skip
    os.environ["TOPWORK_DEVICE"] = "auto"
    return told


def fit(folder: Path, size: int, strategy: str) -> tuple[float, float, RunRecord]:
    """Seconds until the answer and until all is written, loading left out; the engine is known from the second on."""
    import topwork

    cache, watch = _cache(os.environ["TOPWORK_DEVICE"]), Answered()
    with tempfile.TemporaryDirectory() as home:
        began = time.perf_counter()
        run = topwork.fit(folder, size=size, strategy=strategy, out=Path(home) / "run", cache=cache, watch=watch)  # type: ignore[arg-type]
        whole, load = time.perf_counter() - began, run.record.spending.seconds["load"]
    for kept in ("features", "probes", "heads", "trials", "activations"):
        shutil.rmtree(cache / kept, ignore_errors=True)
    return watch.at - began - load, whole - load, run.record


_HOMES: dict[str, tempfile.TemporaryDirectory[str]] = {}


def _cache(kind: str) -> Path:
    """A cache of this process's own for each device: the engine is known from the second fit on."""
    return Path(_HOMES.setdefault(kind, tempfile.TemporaryDirectory()).name)


if __name__ == "__main__":
    main()
