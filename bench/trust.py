"""Does a model know what it does not know, and do its promises hold? Measured at 96 px with the embedded backbone.

Each set is split into 70% and 30% by groups, several times; the head and what is known of the images are of the 70%.
None of these: every other set is the unknown. AUROC of each score, the share of unknown images found at a threshold
for 5% false alarms, and the false alarms there are on the 30%. Prediction sets: the share of the 30% whose class is in
the set. Calibration: the error of the 30% and the temperature, judged by the images that fitted it and by others;
the interval of the calibration error on simulated answers whose true error is known.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, logsumexp, softmax
from scipy.stats import rankdata

import common

SETS = (
    "ants_bees", "neu6", "flowers17", "dtd10", "trashnet", "wbc5", "potato_blight", "emoji_google", "spoken_digits",
    "xray3", "mnist5k",
)  # fmt: skip
SEEDS = 5
PARTS, HELD_OUT = 10, 3
UNKNOWN = 150  # images of each other set
SIMULATED = 200


@dataclass(frozen=True)
class Labelled:
    """Features of a set at every cut."""

    cuts: tuple[NDArray[np.float32], ...]
    chosen: int
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    classes: int


def main() -> None:
    given = common.arguments(__doc__ or "", seeds=SEEDS)
    common.need_sets()
    names = ("neu6", "potato_blight", "ants_bees") if given.quick else SETS
    with tempfile.TemporaryDirectory() as cache:
        sets = {name: measured(name, Path(cache)) for name in names}
    rows = [
        {"set": name, "seed": seed, **one(name, sets, seed)}
        for name in names
        for seed in range(1 if given.quick else given.seeds)
    ]
    strangers, pairs = unknown(rows, names)
    figures = {
        "unknown": strangers, "pairs": pairs, "coverage": covered(rows, names), "temperature": temperatures(rows, names)
    }  # fmt: skip
    common.finish({"bench": "trust", "quick": given.quick, **figures, "interval": simulated(given.quick)})


def measured(name: str, cache: Path) -> Labelled:
    from topwork import data, survey

    seen = survey.measure(common.SETS / name, size=(96,), cache=cache, enough=False)
    plan = seen.plan(delta=0.01)
    m = seen.of(plan)
    cuts = tuple(m.features.at(k) for k in range(len(m.features.cuts)))
    chosen = m.features.cuts.index(plan.cut)
    return Labelled(cuts, chosen, m.labels, data.together(m.dataset.examples), len(m.dataset.classes))


def one(name: str, sets: dict[str, Labelled], seed: int) -> dict[str, Any]:
    """Everything of one split of one set."""
    from topwork import evaluate, head, probe, trust
    from topwork.known import Known, _unit
    from topwork.statistics import independent, percent, promised

    s = sets[name]
    k, held = s.chosen, head.folds(s.labels, s.groups, seed, PARTS) < HELD_OUT
    x, y, g = s.cuts[k][~held], s.labels[~held], s.groups[~held]
    shared = g if len(np.unique(g)) < len(g) else None
    fold = head.folds(y, shared, seed)
    loo = probe.probe(x, y, s.classes, groups=shared)
    fitted = head.fit(x, y, s.classes, loo, groups=shared, seed=seed)
    known, t = Known.of(x), fitted.temperature
    fair = head.fair(fitted.scores, y, fold, t)
    others = {
        n: o.cuts[k][np.random.default_rng(seed).permutation(len(o.labels))[:UNKNOWN]]
        for n, o in sets.items()
        if n != name
    }

    def logits(a: NDArray[np.float32]) -> NDArray[np.float64]:
        return (a @ fitted.weight + fitted.bias).astype(np.float64) / t

    def near(a: NDArray[np.float32]) -> NDArray[Any]:
        return 1 - known.nearest(a, 2)[1][:, 1]

    unit = _unit(known.folded(x))
    alike = unit @ unit.T
    alike[g[:, None] == g[None]] = -1
    by_score = {  # of the training images, out of sample; of any others
        "distance": (known.apart(x, fold), known.scores),
        "second-nearest": (1 - np.sort(alike, axis=1)[:, -2], near),
        "top probability": (1 - softmax(fair / t, axis=1).max(axis=1), lambda a: 1 - softmax(logits(a), 1).max(1)),
        "highest logit": (-fair.max(axis=1) / t, lambda a: -logits(a).max(axis=1)),
        "energy": (-logsumexp(fair / t, axis=1), lambda a: -logsumexp(logits(a), axis=1)),
    }
    found = {}
    for kind, (own, score) in by_score.items():
        limit = promised(np.asarray(own, np.float64), g)[percent(1 - trust.FALSE_ALARM)]
        inside = score(s.cuts[k][held])
        strange = {n: score(a) for n, a in others.items()}
        found[kind] = {
            "auroc": {n: auroc(inside, v) for n, v in strange.items()},
            "found": {n: float((v > limit).mean()) for n, v in strange.items()},
            "false": float((inside > limit).mean()),
        }
    p, truth = softmax(logits(s.cuts[k][held]), axis=1), s.labels[held]
    worth = independent(s.groups[held], int(held.sum()))
    sets_ = trust.sets(softmax(fair / t, 1), y, fold, (p, truth), groups=shared, on="held out", independent=worth)
    crossed = trust.sets(softmax(fair / t, 1), y, fold, groups=shared, on="out of sample", independent=len(y))
    losses = {
        kind: -float(np.log(np.maximum(softmax(z / t, axis=1)[np.arange(len(y)), y], 1e-12)).mean())
        for kind, z in (("same", fitted.scores), ("others", fair))
    }
    return {
        "unknown": found,
        "n": worth,
        "coverage": [(c.level, c.covered.value, c.size) for c in sets_.coverage],
        "crossed": [(c.level, c.covered.value, c.size) for c in crossed.coverage],
        "loss": losses,
        "held": -float(np.log(np.maximum(p[np.arange(len(truth)), truth], 1e-12)).mean()),
        "calibration": evaluate.calibration(p, truth, s.groups[held]),
        "plain": evaluate.calibration_error(p, truth),
    }


def auroc(known: NDArray[Any], unknown: NDArray[Any]) -> float:
    """How often an unknown image has the higher score; ties count half."""
    ranks = rankdata(np.concatenate([known, unknown]))
    n, m = len(known), len(unknown)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def unknown(rows: list[dict[str, Any]], names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Means over splits, then over pairs; and those of each pair by the score that is used."""
    print("\nNone of these: AUROC, share found at 5% false alarms, false alarms on held-out images")
    means: dict[str, Any] = {}
    for kind in rows[0]["unknown"]:
        each = [r["unknown"][kind] for r in rows]
        means[kind] = {
            "auroc": float(np.mean([np.mean(list(e["auroc"].values())) for e in each])),
            "lowest_auroc": min(min(e["auroc"].values()) for e in each),
            "found": float(np.mean([np.mean(list(e["found"].values())) for e in each])),
            "false_alarms": float(np.mean([e["false"] for e in each])),
        }
        m = means[kind]
        print(
            f"  {kind:<16} {m['auroc']:.3f} (lowest {m['lowest_auroc']:.2f})  {m['found']:.1%}  {m['false_alarms']:.1%}"
        )
    pairs: dict[str, Any] = {}
    for name in names:
        mine = [r["unknown"]["distance"] for r in rows if r["set"] == name]
        pairs[name] = {
            "false_alarms": float(np.mean([m["false"] for m in mine])),
            "auroc": {n: float(np.mean([m["auroc"][n] for m in mine])) for n in names if n != name},
            "found": {n: float(np.mean([m["found"][n] for m in mine])) for n in names if n != name},
        }
        told = ", ".join(f"{n} {v:.2f}/{pairs[name]['found'][n]:.0%}" for n, v in pairs[name]["auroc"].items())
        print(f"  {name}: false alarms {pairs[name]['false_alarms']:.1%}; AUROC/found {told}")
    return means, pairs


def covered(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    """Mean coverage and size over the splits, and in how many splits the level lies inside the 95% interval."""
    from topwork.statistics import wilson

    print("\nPrediction sets on held-out images: mean coverage, classes; splits whose 95% interval holds the level")
    found: dict[str, Any] = {}
    for name in names:
        mine = [r for r in rows if r["set"] == name]
        for i, (level, _, _) in enumerate(mine[0]["coverage"]):
            got = [r["coverage"][i][1] for r in mine]
            # Where the likeliest class alone is right more often than asked, more are covered: no set is empty.
            inside = [wilson(v, r["n"])[1] >= level for v, r in zip(got, mine, strict=True)]
            found.setdefault(name, {})[f"{level:.2f}"] = {
                "coverage": float(np.mean(got)), "size": float(np.mean([r["coverage"][i][2] for r in mine])),
                "crossed": float(np.mean([r["crossed"][i][1] for r in mine])), "inside": float(np.mean(inside)),
            }  # fmt: skip
        print(
            f"  {name}: "
            + "; ".join(
                f"{level} {v['coverage']:.1%} (crossed {v['crossed']:.1%}), {v['size']:.2f}, inside {v['inside']:.0%}"
                for level, v in found[name].items()
            )
        )
    for level in found[names[0]]:
        print(f"  all at {level}: {np.mean([found[n][level]['coverage'] for n in names]):.1%}")
    return found


def temperatures(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    """Log-loss out of sample by the temperature of the same scores, and by that of the other folds."""
    print("\nTemperature: log-loss by that of the same scores, of other folds, on held-out images; calibration error")
    found = {}
    for name in names:
        mine = [r for r in rows if r["set"] == name]
        found[name] = {
            "same": float(np.mean([r["loss"]["same"] for r in mine])),
            "others": float(np.mean([r["loss"]["others"] for r in mine])),
            "held_out": float(np.mean([r["held"] for r in mine])),
            "plain": float(np.mean([r["plain"] for r in mine])),
            "error": float(np.mean([r["calibration"][0] for r in mine])),
        }
        f = found[name]
        print(
            f"  {name}: {f['same']:.4f}, {f['others']:.4f}, {f['held_out']:.4f}; {100 * f['error']:.1f} points"
            f" (as commonly given {100 * f['plain']:.1f})"
        )
    return found


def simulated(quick: bool) -> list[dict[str, float]]:
    """How often the interval of the calibration error holds the true one, where that is known."""
    from topwork import evaluate

    print("\nInterval of the calibration error on simulated answers: true, mean estimate, as commonly given, held")
    rng, found = np.random.default_rng(0), []
    for slope, offset in ((1.0, 0.0), (0.8, 0.0), (0.6, 0.0), (1.0, -0.3)):
        for n in (120, 400, 2000):

            def drawn(count: int, slope: float = slope, offset: float = offset) -> tuple[NDArray[Any], NDArray[Any]]:
                p = 0.5 + rng.beta(8, 1.5, count) / 2
                return p, np.maximum(expit(slope * logit(p) + offset), 1e-9)

            many, right = drawn(200_000)
            bins = evaluate._bins(many, int(np.clip(n // evaluate.PER_BIN, 1, evaluate.BINS)))
            true = sum(abs((many[b] - right[b]).sum()) for b in bins) / len(many)
            got = []
            for _ in range(40 if quick else SIMULATED):
                p, right = drawn(n)
                shares, labels = np.stack([p, 1 - p], axis=1), (rng.random(n) >= right).astype(np.int64)
                got.append((*evaluate.calibration(shares, labels), evaluate.calibration_error(shares, labels)))
            value, low, high, plain = np.array(got).T
            held = float(((low <= true + 1e-9) & (true <= high)).mean())
            found.append({"n": n, "true": true, "mean": value.mean(), "plain": plain.mean(), "held": held})
            print(
                f"  slope {slope}, offset {offset}, n {n}: {true:.3f} {value.mean():.3f} {plain.mean():.3f} {held:.0%}"
            )
    return found


if __name__ == "__main__":
    main()
