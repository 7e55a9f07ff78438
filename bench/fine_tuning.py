"""What does training from the cache cost, against the bare arithmetic, and against training without it?

1. One epoch of suffix training from the cache, over the bare forward and backward passes of the same
   suffix on tensors that are in memory already (no optimiser, no average, no reading). Bound: 1.15.
2. Ten epochs of the last stage, the views that the default stores made on the way, against the same
   training through the whole network with the prefix's gradients off: every image decoded and augmented
   in every epoch, ahead of the network in threads, as everybody does it. Bound: 2.5 times faster.
Both in one process, in turn; medians of ratios.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import common
from topwork import activations, data, features, train, zoo
from topwork.ahead import batches
from topwork.head import Exact
from topwork.records import Augmentation, Recipe
from topwork.views import view
from topwork.zoo.cuts import chain

ROUNDS, EPOCHS = 3, 10  # rounds of single epochs; ten epochs without a cache take minutes and are run once
SET = "flowers17"  # 612 photographs


def main() -> None:
    quick = common.arguments(__doc__ or "").quick
    common.need_sets()
    figures = {}
    for name in ("efficientnet_lite0",) if quick else ("efficientnet_lite0", "resnet18"):
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = measured(name, 96 if quick else 224, Path(folder), quick=quick)
    common.finish({"bench": "fine_tuning", "quick": quick, "set": SET, "backbones": figures})


def measured(name: str, size: int, folder: Path, *, quick: bool) -> dict[str, object]:
    backbone = random_backbone(name, size)
    root = common.SETS / SET
    dataset = data.read(root)
    examples = dataset.examples[::3] if quick else dataset.examples
    labels = np.array([e.label for e in examples])
    classes = len(dataset.classes)
    stage, names = train.stages(backbone.cuts), [c.name for c in backbone.cuts]
    recipe = Recipe("suffix", names[-1], names[stage.index(stage[-1])], epochs=EPOCHS)
    width = 2 * backbone.cuts[-1].channels
    start = Exact(np.zeros(width), np.ones(width), np.zeros((width, classes)), np.zeros(classes))
    rows = np.arange(len(examples))

    def task(where: str) -> train.Task:
        store = activations.store(
            backbone, features.key(backbone), root, examples, augmentation=Augmentation(), seed=0, cache=folder / where
        )
        return train.Task(store, labels, classes)

    warm = task("warm")
    train.train(warm, replace(recipe, epochs=1), rows, start, seed=0)
    epochs = [epoch_ratio(warm, recipe, rows, start) for _ in range(1 if quick else ROUNDS)]
    whole = []
    for turn in range(1):
        began = time.perf_counter()
        train.train(task(f"turn{turn}"), recipe, rows, start, seed=0)
        cached = time.perf_counter() - began
        began = time.perf_counter()
        through_everything(task("unused"), recipe, start)
        uncached = time.perf_counter() - began
        whole.append(uncached / cached)
        print(
            f"{name} at {size} px: {EPOCHS} epochs {cached:.1f} s from the cache, {uncached:.1f} s without", flush=True
        )
    print(
        f"{name} at {size} px, {len(examples)} images, {recipe.unfreeze} to {recipe.cut}: an epoch from the cache costs"
        f" {statistics.median(epochs):.2f} bare passes; {EPOCHS} epochs are {statistics.median(whole):.2f} times faster"
        f" than through the whole network (backbone with random weights: the arithmetic is the same)",
        flush=True,
    )
    return {
        "size_px": size, "images": len(examples), "unfreeze": recipe.unfreeze, "cut": recipe.cut, "views": recipe.views,
        "epoch_over_bare": statistics.median(epochs), "faster_than_uncached": statistics.median(whole),
    }  # fmt: skip


def random_backbone(name: str, size: int) -> zoo.Backbone:
    if name == zoo.EMBEDDED:
        return zoo.load(name, size_px=size)
    source = zoo.find(name)
    torch.manual_seed(0)
    network = source.build()
    preprocessing = source.preprocessing.at(size)
    return zoo.Backbone(name, "random", f"random-{size}", preprocessing, 0, chain(network, size))


def epoch_ratio(task: train.Task, recipe: Recipe, rows: np.ndarray, start: Exact) -> float:
    """Seconds of one epoch over those of its bare forward and backward passes, batch by batch in turn."""
    one = train.train(task, replace(recipe, epochs=1), rows, start, seed=0)
    assert one is not None
    network = one.network.train()
    stored = torch.from_numpy(np.array(task.store.mapped(network.point, 1))).float()
    labels = torch.from_numpy(task.labels)
    began = time.perf_counter()
    for i in range(0, len(rows), recipe.batch):
        network.zero_grad(set_to_none=True)
        x, y = stored[i : i + recipe.batch], labels[i : i + recipe.batch]
        nn.functional.cross_entropy(network(x), y).backward()
    bare = time.perf_counter() - began
    return one.curve[0].seconds / bare


def through_everything(task: train.Task, recipe: Recipe, start: Exact) -> None:
    """The same training without a cache: the usual loop."""
    store, backbone = task.store, task.store.backbone
    preprocessing = backbone.preprocessing
    network = train.Network(backbone, recipe, start).train()
    prefix = backbone.prefix(backbone.cuts[network.point - 1].name).eval().requires_grad_(False)
    prefix.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.lr, fused=True)
    labels = torch.from_numpy(task.labels)
    mean, std = torch.tensor(preprocessing.mean).view(3, 1, 1), torch.tensor(preprocessing.std).view(3, 1, 1)
    for epoch in range(recipe.epochs):
        order = np.random.default_rng([0, epoch]).permutation(len(store.examples))

        def pixels(i: int, epoch: int = epoch) -> np.ndarray:
            example = store.examples[i]
            return view(
                store.root / example.path, train.view_number(recipe, epoch), preprocessing, store.augmentation,
                digest=example.digest, seed=0,
            )  # fmt: skip

        for group in batches(order.tolist(), pixels, recipe.batch):
            x = torch.from_numpy(np.stack([p for _, p in group])).permute(0, 3, 1, 2).float() / 255
            with torch.no_grad():
                maps = prefix(((x - mean) / std).contiguous(memory_format=torch.channels_last))
            optimiser.zero_grad(set_to_none=True)
            y = labels[torch.tensor([i for i, _ in group])]
            nn.functional.cross_entropy(network(maps.permute(0, 2, 3, 1)), y, label_smoothing=0.1).backward()
            optimiser.step()


if __name__ == "__main__":
    main()
