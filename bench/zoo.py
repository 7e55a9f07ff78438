"""Which backbone, cut where? Every backbone at hand on every set, and whether the choice was right.

Each set is split once, stratified: 70% to choose by, 30% to judge by, which nothing else reads. Every backbone at
hand is measured at every cut on the 70%; a ridge head at every one of these places is judged on the 30%: the whole
grid. Regret: the best of the grid on the judging part, minus the chosen place. The best of a hundred equal places is
ahead by luck alone, so the regret of the place that is best on the 70% (whatever it costs) stands beside it: what
choosing by the last cut of the backbone that ranks best on ImageNet, as other tools do, would have lost, too.

Then: what planning over several backbones costs, against the sum of their single passes (decoding and a fused forward
pass, nothing else), in turn in one process, as a median of ratios; loading the networks is counted in neither; bound
1.15. And where the classic networks are
worth cutting: by measurement where their weights are at hand, by their multiply-adds where not.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

import common
import topwork
from topwork import data, images, probe, zoo
from topwork.engine import Engine
from topwork.measurement import Measured
from topwork.survey import Survey
from topwork.watch import Clock

SETS = (
    "ants_bees", "flowers17", "trashnet", "dtd10", "emoji_google", "potato_blight", "neu6", "xray3", "wbc5",
    "brain_mri", "mnist5k", "spoken_digits",
)  # fmt: skip
SIZE_PX = 96
CLASSIC = ("alexnet", "vgg16", "vgg19", "googlenet", "resnet18", "resnet50")
PRICED = ("squeezenet1_1", "mobilenet_v2", "efficientnet_lite0", "resnet50")
ROUNDS = 3


def main() -> None:
    quick = common.arguments(__doc__ or "").quick
    common.need_sets()
    names = ["efficientnet_lite0", "mobilenet_v2"] if quick else zoo.at_hand(common.WEIGHTS)
    rows: list[dict[str, object]] = []
    curves: dict[str, list[np.ndarray]] = {}
    print(f"## Every backbone at hand, {32 if quick else SIZE_PX} px, accuracy on the judging part\n")
    print("| set | learn | judge | backbone | last cut % | best cut (by the 70%) | % | kept cost |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in ("wbc5",) if quick else SETS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(judged(name, names, Path(folder), 32 if quick else SIZE_PX, curves))
    print("\n| set | chosen place | % | kept cost | ms | best by the 70% | % | last cut of the best-ranked | %"
          " | best of the grid | % | regret | regret of the best | regret of the last cut |")  # fmt: skip
    print("|" + " --- |" * 14)
    for r in rows:
        print(
            f"| {r['set']} | {r['chosen']} | {r['chosen_accuracy']:.1f} | {r['kept_cost']:.0%} | {r['ms']:.2g}"
            f" | {r['best']} | {r['best_accuracy']:.1f} | {r['last']} | {r['last_accuracy']:.1f}"
            f" | {r['grid']} | {r['grid_accuracy']:.1f} | {r['regret']:.1f} | {r['regret_best']:.1f}"
            f" | {r['regret_last']:.1f} |"
        )
    means = {k: float(np.mean([r[k] for r in rows])) for k in ("regret", "regret_best", "regret_last")}
    print(f"\nmean regret: chosen {means['regret']:.1f}, best by the 70% {means['regret_best']:.1f}, last cut of the"
          f" best-ranked {means['regret_last']:.1f} points")  # fmt: skip
    classics(curves)
    ratio = price(quick=quick)
    common.finish(
        {"bench": "zoo", "quick": quick, "backbones": names, "sets": rows, **means, "planning_over_passes": ratio}
    )


def judged(
    name: str, names: list[str], folder: Path, size_px: int, curves: dict[str, list[np.ndarray]]
) -> dict[str, object]:
    common.split(common.SETS / name, folder / "data")
    survey = topwork.measure(
        folder / "data", backbone=names, weights=common.WEIGHTS, size=size_px, cache=folder / "cache"
    )
    grid = {m.backbone.name: on_test(m) for m in survey.measured}
    learn, judge = len(survey.measured[0].rows), len(survey.measured[0].locked_rows)
    for m, table in zip(survey.measured, survey.scores, strict=True):
        accuracy = [s.accuracy for s in table]
        best = int(np.argmax(accuracy))
        curves.setdefault(m.backbone.name, []).append(np.array([[s.cost_share, s.accuracy] for s in table]))
        print(
            f"| {name} | {learn} | {judge} | {m.backbone.name} | {grid[m.backbone.name][-1]:.1f}"
            f" | {table[best].cut} | {grid[m.backbone.name][best]:.1f} | {table[best].cost_share:.0%} |",
            flush=True,
        )
    return {"set": name, "learn": learn, "judge": judge, **choice(survey, grid), "grid_all": grid}


def choice(survey: Survey, grid: dict[str, list[float]]) -> dict[str, object]:
    """The chosen place, the best by the 70%, the last cut of the best-ranked, and the best of the grid."""
    plan = survey.plan()

    def place(backbone: str, cut: str) -> tuple[str, float]:
        m = next(m for m in survey.measured if m.backbone.name == backbone)
        return f"{backbone} {cut}", grid[backbone][m.backbone.index(cut)]

    chosen, best = place(plan.backbone, plan.cut), place(plan.best_backbone, plan.best_cut)
    ranked = max((t, i) for i, t in enumerate(survey.top1) if t is not None)[1]
    last = place(survey.measured[ranked].backbone.name, survey.measured[ranked].backbone.cuts[-1].name)
    top = max(
        (place(m.backbone.name, c.name) for m in survey.measured for c in m.backbone.cuts), key=lambda pair: pair[1]
    )
    return {
        "chosen": chosen[0], "chosen_accuracy": chosen[1], "kept_cost": plan.kept_cost, "ms": plan.cost_ms,
        "best": best[0], "best_accuracy": best[1], "last": last[0], "last_accuracy": last[1],
        "grid": top[0], "grid_accuracy": top[1], "regret": top[1] - chosen[1], "regret_best": top[1] - best[1],
        "regret_last": top[1] - last[1],
    }  # fmt: skip


def on_test(m: Measured) -> list[float]:
    """Accuracy in % of a ridge head at every cut, fitted on the 70%, on the judging part."""
    found, labels = [], m.labels[m.rows]
    for k, p in enumerate(m.probes):
        x = m.features.at(k, m.rows)
        standard = probe.Standardised.of(x)
        w, b = probe.weights(
            x, labels, len(m.dataset.classes), float(p.penalties[p.best]), standard, probe.factor(x, standard)
        )
        right = (standard(m.features.at(k, m.locked_rows)) @ w + b).argmax(axis=1) == m.labels[m.locked_rows]
        found.append(100 * float(right.mean()))
    return found


def classics(curves: dict[str, list[np.ndarray]]) -> None:
    """Where are the classic networks worth cutting?"""
    print("\n## The classic networks, cut by cut\n")
    print("Multiply-adds and parameters at the network's own input size. Points: accuracy (leave-one-out) minus that of"
          " the network's best cut, mean over the sets; best: on how many sets this cut is the best.\n")  # fmt: skip
    for name in CLASSIC:
        backbone = zoo.skeleton(name, zoo.find(name).preprocessing)
        tables = curves.get(name)
        print(f"### {name}\n\n| cut | channels | map | multiply-adds | parameters | time | points | best |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for k, cut in enumerate(backbone.cuts):
            measured = "| | |"
            if tables:
                time_share = np.median([t[k, 0] for t in tables])
                points = 100 * np.mean([t[k, 1] - t[:, 1].max() for t in tables])
                best = sum(int(t[:, 1].argmax()) == k for t in tables)
                measured = f"{time_share:.0%} | {points:.1f} | {best} of {len(tables)}"
            print(
                f"| {cut.name} | {cut.channels} | {cut.height} x {cut.width} | {cut.macs / backbone.chain.macs:.0%}"
                f" | {cut.params / backbone.chain.params:.0%} | {measured} |"
            )
        print()


def price(*, quick: bool) -> float:
    """Planning over several backbones, over the sum of their single passes: median of ratios."""
    names = PRICED[1:3] if quick else PRICED
    root = common.SETS / ("wbc5" if quick else "flowers17")
    size = 64 if quick else None
    examples = data.read(root).examples
    backbones = [zoo.load(n, weights=None if n == zoo.EMBEDDED else common.WEIGHTS, size_px=size) for n in names]
    ratios = []
    for _ in range(1 if quick else ROUNDS):
        start = time.perf_counter()
        for b in backbones:
            engine = Engine(b.chain.segments, b.preprocessing)
            for i in range(0, len(examples), 16):
                batch = np.stack([images.load(root / e.path, b.preprocessing) for e in examples[i : i + 16]])
                bare(engine, batch)
        alone = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as cache:
            start, clock = time.perf_counter(), Clock()
            topwork.measure(root, backbone=names, weights=common.WEIGHTS, size=size, cache=cache, clock=clock).plan()
            together = time.perf_counter() - start - clock.seconds["load"]
        ratios.append(together / alone)
        print(f"planning over {', '.join(names)}: {together:.1f} s; single passes {alone:.1f} s; {ratios[-1]:.2f}")
    ratio = float(np.median(ratios))
    print(f"planning over {len(names)} backbones costs {ratio:.2f} times the sum of their single passes (bound 1.15)")
    return ratio


def bare(engine: Engine, batch: np.ndarray) -> None:
    """The forward pass alone: no pooling, nothing written."""
    import torch

    with torch.inference_mode():
        x = engine.pixels(batch)
        for segment in engine.segments:
            x = segment(x)


if __name__ == "__main__":
    main()
