"""What is spared where there are many images, does it change the answer, and what grows faster than their number?

Sets of ../shared, made large by copies with other noise, brightness and quality of JPEG (so every file is another
content; copies are alike, so accuracies on them are too high, and rise steeply with their number). Of each: a whole
`fit --strategy head` without samples and with, in turn, each with a cache of its own, and a `plan` alone. Then growth:
`fit` in a process of its own over more and more images at a small size, seconds per image stage by stage, and memory.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import common

MADE_LARGE = (("neu6", 96), ("xray3", 96), ("spoken_digits", 96))
IMAGES = 5000
GROWTH = (500, 5_000, 50_000)
GROWTH_PX = 32
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}


def main() -> None:
    given = common.arguments(__doc__ or "", sets=len(MADE_LARGE), most=GROWTH[-1])
    quick = given.quick
    common.need_sets()
    from topwork import survey

    if quick:  # so that a few hundred images count as many
        survey.LARGE, survey.FIRST = 1000, 400
    rows = []
    for name, size in (("mnist5k", 32),) if quick else MADE_LARGE[: given.sets]:
        with tempfile.TemporaryDirectory() as folder:
            many = Path(folder) / name
            enlarge(name, many, 1300 if quick else IMAGES)
            rows.append({"set": name, "size_px": size, **compared(many, size, Path(folder))})
    growth = [grown(n) for n in ((150, 400) if quick else GROWTH) if n <= given.most]
    for row in growth:
        per_image = ", ".join(f"{k} {1000 * v / row['images']:.2f}" for k, v in row["seconds"].items())
        print(
            f"{row['images']:>6} images at {GROWTH_PX} px: {1000 * row['total_s'] / row['images']:.1f} ms per image"
            f" ({per_image}), peak memory {row['peak_bytes'] / 2**20:.0f} MiB",
            flush=True,
        )
    common.finish({"bench": "large", "quick": quick, "spared": rows, "growth": growth})


def compared(many: Path, size: int, folder: Path) -> dict[str, object]:
    """`fit` with samples, without, and `plan`, over one set."""
    import topwork
    from topwork import survey

    seconds, runs, large = {}, {}, survey.LARGE
    for how in ("all", "needed"):
        survey.LARGE = large if how == "needed" else sys.maxsize
        start = time.perf_counter()
        runs[how] = topwork.fit(
            many, size=size, strategy="head", out=folder / f"run-{how}", cache=folder / f"cache-{how}"
        )
        seconds[how] = time.perf_counter() - start
    survey.LARGE = large
    start = time.perf_counter()
    seen = topwork.measure(many, size=size, enough=True, cache=folder / "cache-plan")
    seconds["plan"] = time.perf_counter() - start
    decided = seen.plan()
    row: dict[str, object] = {"planned_on": len(seen.of(decided).rows), "plan_cut": decided.cut}
    fe = runs["all"].record.spending.fe_seconds  # of both: the one that is measured over all images
    for how, run in runs.items():
        spent, metrics = run.record.spending, run.metrics.accuracy
        images = sum(c.train + c.test for c in run.record.data.classes)
        row[how] = {
            "seconds": seconds[how], "fe": seconds[how] / fe, "pass_s": spent.seconds["pass"], "cut": run.plan.cut,
            "accuracy": metrics.value, "low": metrics.low, "high": metrics.high, "images": images,
        }  # fmt: skip
        print(
            f"{many.name} at {size} px, {images} images, {how}: {seconds[how]:.1f} s ({seconds[how] / fe:.2f} FE), of"
            f" it pass {spent.seconds['pass']:.1f}, probes {spent.seconds['probe']:.1f}; {run.plan.cut},"
            f" {metrics.value:.1%} ({metrics.low:.1%} to {metrics.high:.1%})",
            flush=True,
        )
    told = [r for r in runs["needed"].plan.reasons if "passed only up to" in r]
    row["told"] = told[0] if told else None
    print(f"  {told[0] if told else 'no cut was out: all images passed all of it'}")
    print(
        f"  plan: {seconds['plan']:.1f} s ({seconds['plan'] / fe:.2f} FE) on {row['planned_on']} of {seen.images}"
        f" images: {decided.cut}",
        flush=True,
    )
    return {**row, "plan_s": seconds["plan"], "plan_fe": seconds["plan"] / fe}


def enlarge(name: str, target: Path, count: int, size: int | None = None) -> None:
    """A set made of changed copies, class by class in proportion; `size`: resized to so many px."""
    from PIL import Image

    from topwork import data

    source, rng = common.SETS / name, np.random.default_rng(0)
    dataset = data.read(source)
    order = rng.permutation(len(dataset.examples))
    for i in range(count):
        example = dataset.examples[order[i % len(order)]]
        with Image.open(source / example.path) as image:
            picture = image.convert("RGB") if size is None else image.convert("RGB").resize((size, size))
        pixels = np.asarray(picture, dtype=np.float32) * rng.uniform(0.85, 1.15)
        pixels += rng.normal(0, 6, pixels.shape)
        path = target / dataset.classes[example.label] / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=int(rng.integers(80, 96)))


def grown(count: int) -> dict[str, object]:
    """A fit over so many images, in a process of its own: its peak memory and seconds are its own."""
    with tempfile.TemporaryDirectory() as folder:
        enlarge("mnist5k", Path(folder) / "data", count, GROWTH_PX)
        done = subprocess.run([sys.executable, __file__, "--fit", folder], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the fit over {count} images ended with {done.returncode}:\n{done.stderr}")
    return {"images": count, **json.loads(done.stdout.splitlines()[-1])}


def fitted(folder: Path) -> None:
    import topwork
    from topwork import workflow  # noqa: F401 (imports are counted apart)

    start = time.perf_counter()
    run = topwork.fit(folder / "data", size=GROWTH_PX, strategy="head", out=folder / "run", cache=folder / "cache")
    seconds = {k: v for k, v in run.record.spending.seconds.items() if k != "load"}
    total = time.perf_counter() - start - run.record.spending.seconds["load"]
    print(json.dumps({"total_s": total, "seconds": seconds, "peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Peak resident bytes of this process alone, as in main_job.py: getrusage's count starts at the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    if "--fit" in sys.argv:
        fitted(Path(sys.argv[-1]))
    else:
        main()
