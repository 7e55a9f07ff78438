"""Freeze or retrain? Head only, last stage, everything, first block, and what topwork chose by itself.

Every set is split once, stratified: 70% to learn from, 30% to judge by, which nothing else reads. The four
strategies by hand train on all of the 70% with the defaults; `auto` decides from the 70% alone, within its
default budget. Regret: the best of the five on the judging part, minus what was chosen. With 60 to 200 judging
images that is a noisy number: the best of several equal ones is ahead of each by luck alone; the column
"noise" is the standard error of a paired difference of the size of the regret, sqrt(regret / n) at least.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

import common
import topwork

RUNS = [("ants_bees", 96), ("flowers17", 96), ("trashnet", 96), ("dtd10", 96), ("neu6", 96), ("wbc5", 96)]
BY_HAND = ("head", "suffix", "full", "surgical")
ALL = (*BY_HAND, "auto")
COLUMNS = (
    "set",
    "learn",
    "judge",
    *BY_HAND,
    "auto",
    "chosen",
    "regret",
    "noise",
    *(f"FE {s}" for s in BY_HAND),
    "FE auto",
)


def main() -> None:
    quick = common.arguments(__doc__ or "").quick
    common.need_sets()
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    for name, size in [("wbc5", 32)] if quick else RUNS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(judged(name, size, Path(folder), quick=quick))
    regrets = [row["regret"] for row in rows]
    faster = [row["fe"]["full"] / row["fe"]["head"] for row in rows]
    better = [row["accuracy"]["full"] - row["accuracy"]["head"] for row in rows]
    print(
        f"\nmean regret {100 * np.mean(regrets):.1f} points, largest {100 * np.max(regrets):.1f};"
        f" 'freezing is faster': retraining everything costs {np.median(faster):.0f} times as much (median);"
        f" 'retraining is better': by {100 * np.median(better):+.1f} points (median),"
        f" from {100 * np.min(better):+.1f} to {100 * np.max(better):+.1f}"
    )
    common.finish(
        {
            "bench": "strategies", "quick": quick, "sets": rows, "mean_regret": float(np.mean(regrets)),
            "largest_regret": float(np.max(regrets)), "full_over_head_cost": float(np.median(faster)),
            "full_minus_head": float(np.median(better)),
        }
    )  # fmt: skip


def judged(name: str, size: int, folder: Path, *, quick: bool) -> dict[str, object]:
    common.split(common.SETS / name, folder / "data")
    flip = {"flip": name != "spoken_digits"}
    accuracy, fe, chosen, n = {}, {}, "", 0
    learn = 0
    for strategy in ALL:
        options: dict[str, object] = {} if strategy == "head" else dict(flip)
        if strategy in BY_HAND[1:]:
            options["epochs"] = 2 if quick else None
            options["budget"] = "1"  # the least: one fold is judged beside the final training
        elif strategy == "auto" and quick:
            options |= {"budget": "10", "epochs": 2}
        began = time.perf_counter()
        run = topwork.fit(
            folder / "data", size=size, strategy=strategy, out=folder / strategy, cache=folder / f"cache-{strategy}",
            **options,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        accuracy[strategy] = run.metrics.accuracy.value
        fe[strategy] = seconds / run.record.spending.fe_seconds
        n, learn = run.metrics.accuracy.n, sum(c.train for c in run.record.data.classes)
        chosen = f"{run.plan.strategy} at {run.plan.cut}"
    regret = max(accuracy.values()) - accuracy["auto"]
    noise = float(np.sqrt(max(regret, 1 / n) / n))
    cells = [
        name, str(learn), str(n), *(f"{100 * accuracy[s]:.1f}" for s in ALL), chosen, f"{100 * regret:.1f}",
        f"{100 * noise:.1f}", *(f"{fe[s]:.0f}" for s in ALL),
    ]  # fmt: skip
    print("| " + " | ".join(cells) + " |", flush=True)
    return {
        "set": name, "size_px": size, "learn": learn, "judge": n, "accuracy": accuracy, "fe": fe, "chosen": chosen,
        "regret": regret,
    }  # fmt: skip


if __name__ == "__main__":
    main()
