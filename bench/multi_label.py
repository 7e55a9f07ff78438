"""Several labels per image: is what a fit promises what new images show, and what are thresholds of each label worth?

Mosaics of none to three handwritten digits in quarters of a grey ground, each picture used once; two of the digits are
rare. Promised: out of sample, over the mosaics that were learnt from. Shown: on 400 others. At 1/2: decisions by one
half.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import common
import topwork

SOURCE, PX, HELD_OUT = common.SETS / "mnist5k", 96, 400
RARE = (8, 9)  # digits that one mosaic in forty has
COLUMNS = ("draw", "mosaics", "head", "measure", "promised % (95%)", "shown %")


def mosaics(folder: Path, names: list[str], photos: list[list[Path]], count: int, rng: np.random.Generator) -> Path:
    """`count` of them with a table: paths and labels with | between."""
    folder.mkdir()
    half = PX // 2
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "tags"])
        for i in range(count):
            picture = Image.fromarray(np.clip(rng.normal(128, 12, (PX, PX, 3)), 0, 255).astype(np.uint8))
            labels = rng.choice(8, rng.integers(0, 4), replace=False).tolist()
            labels[:1] = [int(rng.choice(RARE))] if i % 20 == 0 else labels[:1]
            for label, quarter in zip(labels, rng.permutation(4), strict=False):
                with Image.open(photos[label].pop()) as photo:
                    picture.paste(
                        photo.convert("RGB").resize((half, half)), (int(quarter % 2) * half, int(quarter // 2) * half)
                    )
            picture.save(folder / f"{i:04d}.png")
            table.writerow([f"{i:04d}.png", "|".join(names[label] for label in labels)])
    return folder / "table.csv"


def main() -> None:
    quick = common.arguments(__doc__ or "").quick
    common.need_sets()
    folders = sorted(p for p in SOURCE.iterdir() if p.is_dir())
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    with tempfile.TemporaryDirectory() as home:
        for draw in range(1 if quick else 4):
            rng = np.random.default_rng(draw)
            count = 100 if quick else 240
            photos = [[p for _, p in sorted((rng.random(), p) for p in folder.iterdir())] for folder in folders]
            tables = [
                mosaics(Path(home) / f"{part}{draw}", [folder.name for folder in folders], photos, n, rng)
                for part, n in [("train", count), ("new", 100 if quick else HELD_OUT)]
            ]
            asked = {"labels": "tags", "label_separator": "|"}
            run = topwork.fit(
                tables[0], **asked, size=PX, strategy="head", out=Path(home) / f"run{draw}", cache=Path(home) / "cache"
            )
            found, _ = topwork.judge(run.path, tables[1], **asked)
            promised, shown = run.metrics, found
            pairs = [
                ("label-ranking average precision", promised.accuracy, shown.accuracy),
                ("mean average precision", promised.balanced_accuracy, shown.balanced_accuracy),
                ("micro F1", promised.multi_label.micro_f1, shown.multi_label.micro_f1),
                ("macro F1", promised.multi_label.macro_f1, shown.multi_label.macro_f1),
                ("all labels right", promised.multi_label.subset_accuracy, shown.multi_label.subset_accuracy),
            ]
            for name, p, s in pairs:
                print(
                    f"| {draw} | {count} | {run.record.head.kind} | {name}"
                    f" | {100 * p.value:.1f} ({100 * p.low:.1f}-{100 * p.high:.1f}) | {100 * s.value:.1f} |",
                    flush=True,
                )
                rows.append({"draw": draw, "measure": name, "promised": p.value, "low": p.low, "high": p.high,
                             "shown": s.value})  # fmt: skip
            with tables[1].open(newline="") as file:
                new = list(csv.DictReader(file))
            answers = run.model.predict([tables[1].parent / row["path"] for row in new])
            truth = np.array([[c in row["tags"].split("|") for c in run.model.classes] for row in new])
            half = np.array([[a.probabilities[c] >= 0.5 for c in run.model.classes] for a in answers])
            hit, both = (truth & half).sum(axis=0), truth.sum(axis=0) + half.sum(axis=0)
            micro, macro = 2 * hit.sum() / both.sum(), (2 * hit / np.maximum(1, both)).mean()
            print(f"| {draw} | {count} | {run.record.head.kind} | micro F1 at 1/2 | | {100 * micro:.1f} |")
            print(f"| {draw} | {count} | {run.record.head.kind} | macro F1 at 1/2 | | {100 * macro:.1f} |", flush=True)
            rows.append({"draw": draw, "measure": "F1 at 1/2", "micro": micro, "macro": macro})
    inside = [r["low"] <= r["shown"] <= r["high"] for r in rows if "shown" in r]
    print(f"\nShown within the promised interval: {sum(inside)} of {len(inside)}")
    common.finish({"bench": "multi_label", "quick": quick, "rows": rows})


if __name__ == "__main__":
    main()
