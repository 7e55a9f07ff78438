"""The main job on every real set: where is the best cut, which one is chosen, how good is it there?

Baseline: the last cut, which is where every other tool puts its head. Prints a table in Markdown.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import common
import topwork

# 96 px, but where the objects are tiny: what fits 2 cores; sets in order of likeness to ImageNet.
RUNS = [
    ("ants_bees", 160), ("flowers17", 96), ("trashnet", 96), ("dtd10", 96), ("emoji_google", 96),
    ("potato_blight", 96), ("neu6", 96), ("xray3", 96), ("wbc5", 96), ("brain_mri", 96), ("mnist5k", 96),
    ("spoken_digits", 96),
]  # fmt: skip

COLUMNS = (
    "set", "images", "px", "best cut", "%", "chosen cut", "%", "last cut %", "kept cost", "result % (95%) on",
    "similarity", "deep gain", "source confidence", "FE", "s",
)  # fmt: skip


def main() -> None:
    quick = common.arguments(__doc__ or "").quick
    common.need_sets()
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        for name, size in [("neu6", 96), ("wbc5", 96)] if quick else RUNS:
            start = time.perf_counter()
            run = topwork.fit(
                common.SETS / name, size=size, strategy="head", out=Path(folder) / name, cache=Path(folder) / "cache"
            )
            wall = time.perf_counter() - start
            by_name = {s.cut: s for s in run.scores}
            best, chosen, last = by_name[run.plan.best_cut], by_name[run.plan.cut], run.scores[-1]
            a, s = run.metrics.accuracy, run.plan.similarity
            n = sum(c.train + c.val + c.test for c in run.record.data.classes)
            print(
                f"| {name} | {n} | {size} | {best.cut} | {100 * best.accuracy:.1f} | {chosen.cut}"
                f" | {100 * chosen.accuracy:.1f} | {100 * last.accuracy:.1f} | {run.plan.kept_cost:.0%}"
                f" | {100 * a.value:.1f} ({100 * a.low:.1f}-{100 * a.high:.1f}) {a.on} | {s.verdict}"
                f" | {'' if s.deep_gain is None else f'{s.deep_gain:.2f}'}"
                f" | {s.source_confidence:.2f} | {run.record.spending.cost_fe:.2f} | {wall:.0f} |",
                flush=True,
            )
            rows.append(
                {
                    "set": name, "images": n, "size_px": size, "best_cut": best.cut, "best": best.accuracy,
                    "chosen_cut": chosen.cut, "chosen": chosen.accuracy, "last": last.accuracy,
                    "kept_cost": run.plan.kept_cost, "accuracy": a.value, "on": a.on, "similarity": s.verdict,
                    "deep_gain": s.deep_gain,
                    "source_confidence": s.source_confidence, "source_spread": s.source_spread,
                    "neighbours": s.neighbour_accuracy, "cost_fe": run.record.spending.cost_fe,
                }
            )  # fmt: skip
    common.finish({"bench": "depth", "quick": quick, "sets": rows})


if __name__ == "__main__":
    main()
