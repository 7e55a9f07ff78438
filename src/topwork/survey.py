"""Which backbones are measured, how far, and how do they stand?

Those that were named are all measured in full, in one joint pass. Of those that `auto` finds at hand, as many are
measured as the budget pays for, the cheapest first; and one that is shown on a part of the images to be out of the
running is spared the rest. The one that ranks best on ImageNet is never given up early: a probe cannot see what
training would make of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from topwork import budget as budgets
from topwork import data, features, plan, zoo
from topwork.errors import MissingError, TopworkError, UsageError
from topwork.measurement import Measured, cache_folder, probed
from topwork.records import CutScore, Dataset, Example, Fate, Plan, Standing
from topwork.watch import SILENT, Clock, Watch

AUTO = "auto"

AUTO_SHARE = 0.5
"""Of the budget that `auto` may spend on passes: what is left still pays for training."""

SAMPLE, LEAST_SAMPLE = 0.25, 200
"""Share and least number of the images on which backbones are compared first: with fewer than 200, differences of a
few points are not shown, and hardly any backbone would be stopped."""


@dataclass(frozen=True)
class Survey:
    """Every backbone that was measured, on the same images, the cheapest first; and what became of the others."""

    measured: tuple[Measured, ...]
    dropped: tuple[Standing, ...]
    top1: tuple[float | None, ...]  # of the measured ones, on ImageNet, as stated
    spent_seconds: float  # of the budget: what `auto` chose to pass took so long
    passed: int  # images that went through a backbone now, each counted once per backbone; the others were known

    @property
    def evidences(self) -> tuple[plan.Evidence, ...]:
        """What a decision rests on, one per measured backbone."""
        return tuple(m.evidence for m in self.measured)

    @cached_property
    def scores(self) -> tuple[tuple[CutScore, ...], ...]:
        """The depth tables, one per measured backbone."""
        return plan.scores(
            self.evidences, [m.features.widths for m in self.measured], [m.ridges for m in self.measured]
        )

    def plan(self, *, delta: float = plan.DELTA, cut: str | None = None) -> Plan:
        """Which backbone, cut where, for a head on frozen layers."""
        return plan.decide(*self.evidences, delta=delta, cut=cut)

    def of(self, decided: Plan) -> Measured:
        """The planned backbone's measurements."""
        return self.measured[self._index(decided)]

    def rival(self, decided: Plan) -> Measured | None:
        """The second candidate for training: the one that ranks best on ImageNet, else the next most accurate."""
        others = [i for i in range(len(self.measured)) if i != self._index(decided)]
        if not others:
            return None
        ranked = max((t for t in self.top1 if t is not None), default=None)
        best = [i for i in others if ranked is not None and self.top1[i] == ranked]
        if best and self.top1[self._index(decided)] != ranked:
            others = best
        return self.measured[max(others, key=lambda i: max(s.accuracy for s in self.scores[i]))]

    def standings(self, decided: Plan) -> tuple[Standing, ...]:
        """What became of every backbone: the planned one, then the others by accuracy, then those left out."""
        chosen = self._index(decided)
        rows = [
            Standing(
                m.backbone.name, m.backbone.preprocessing.crop_px, "chosen" if i == chosen else "measured",
                "its place was chosen" if i == chosen else _against(self.scores[i]), self.top1[i], len(m.rows),
                m.evidence.forward_ms, m.backbone.facts, self.scores[i],
            )
            for i, m in enumerate(self.measured)
        ]  # fmt: skip
        order = {"chosen": 0, "measured": 1, "stopped": 2, "left out": 3}
        accuracy = {id(s): 0.0 if s.best is None else s.best.accuracy for s in (*rows, *self.dropped)}
        return tuple(sorted([*rows, *self.dropped], key=lambda s: (order[s.fate], -accuracy[id(s)])))

    def _index(self, decided: Plan) -> int:
        names = [(e.backbone, e.size_px) for e in self.evidences]
        return names.index((decided.backbone, decided.size_px))


def measure(
    folder: str | Path,
    *,
    backbone: str | Sequence[str] = zoo.EMBEDDED,
    weights: str | Path | None = None,
    size: int | Literal["auto"] | Sequence[int | Literal["auto"]] | None = None,
    seed: int = 0,
    delta: float = plan.DELTA,
    cache: str | Path | None = None,
    balance: bool = False,
    budget: str | float | None = None,
    cuts: Sequence[str | None] = (),
    watch: Watch = SILENT,
    clock: Clock | None = None,
) -> Survey:
    """Look at the data, pass every image through each backbone once, and score every cut of each.

    `backbone`: one name or several; "auto" stands for all whose weights are at hand. `weights`: a file, or a folder
    of such. `size`: input sizes in px; "auto" stands for the backbone's own and half of it. `balance`: every class
    weighs alike, whatever the number of its images; accuracies of cuts are then balanced. `budget`: of which a half
    may go into passes that "auto" asked for. `cuts` are names that must be cuts of the backbone: a wrong one is told
    before the pass, not after it. Raises UsageError, DataError, MissingError.
    """
    clock = clock or Clock()
    if not 0 <= delta < 1:
        raise UsageError(f"--delta {delta}: expected a share of accuracy from 0 to below 1, such as 0.01")
    if budget is not None:
        budgets.seconds(str(budget), 1.0)  # a wrong one is told now, not after the looking and loading
    root, home, path = Path(folder), cache_folder(cache), None if weights is None else Path(weights)
    wanted = asked(listed(backbone), path, listed(size), any(c is not None for c in cuts))
    with clock.time("look"):
        dataset = data.read_folder(root, watch=watch)
        dataset, locked = data.lock(dataset, seed)
    watch.show("data", dataset)
    with clock.time("load"):
        contenders, dropped = _loaded(wanted, path, watch)
    for c in contenders:
        for name in cuts:
            if name is not None:
                c.loaded.index(name)
        watch.show("backbone", c.loaded.facts)
    spent, passed = 0.0, 0
    if len(contenders) > 1 and not all(c.named for c in contenders):
        with clock.time("pass"):
            contenders, left_out = _affordable(contenders, dataset, home, None if budget is None else str(budget))
            dropped += left_out
        sample = _sample(dataset, seed)
        if sample is not None and len(contenders) > 1:
            part = replace(dataset, examples=sample)
            with clock.time("pass"):
                seen, spent = _passed(contenders, part, home, watch)
                passed = sum(f.passed for f in seen)
            gone = {fault.path for fault in seen[0].faults}
            part = replace(part, examples=tuple(e for e in sample if e.path not in gone))
            if len(part.examples) > len(sample) / 2:  # else the files are the trouble: the whole pass says so
                with clock.time("probe"):
                    tried = _probed(contenders, part, locked, seen, balance, seed, home, watch)
                    contenders, stopped = _still_in(contenders, tried, delta)
                    dropped += stopped
    for standing in dropped:
        watch.show("dropped", standing)
    with clock.time("pass"):
        seen, more = _passed(contenders, dataset, home, watch)
        if seen[0].faults:
            dataset = data.without(dataset, seen[0].faults)
            watch.show("faults", seen[0].faults)
    with clock.time("probe"):
        measured = _probed(contenders, dataset, locked, seen, balance, seed, home, watch)
    passed += sum(f.passed for f in seen)
    return Survey(measured, tuple(dropped), tuple(c.top1 for c in contenders), spent + more, passed)


@dataclass(frozen=True)
class Asked:
    """One backbone at one input size, before it is loaded."""

    name: str
    size: int | Literal["auto"] | None
    named: bool  # by the user; else found by `auto`


@dataclass(frozen=True)
class _Contender:
    """A backbone in the running."""

    loaded: zoo.Backbone
    top1: float | None
    named: bool

    def dropped(
        self, fate: Fate, reason: str, forward_ms: float, n: int = 0, scores: tuple[CutScore, ...] = ()
    ) -> Standing:
        """What is kept of it when it is out of the running."""
        name, size_px = self.loaded.name, self.loaded.preprocessing.crop_px
        return Standing(name, size_px, fate, reason, self.top1, n, forward_ms, self.loaded.facts, scores)


def listed(given: Any) -> list[Any]:
    """One thing or several, as a list; none for None."""
    if given is None:
        return []
    return [given] if isinstance(given, (str, int)) else list(given)


def asked(names: list[str], weights: Path | None, sizes: list[Any], cuts: bool) -> list[Asked]:
    """Everything that was asked for, once each; names that do not exist are told before any file is looked at."""
    if not names:
        raise UsageError("--backbone: expected at least one name, or auto")
    for size in sizes:
        if size != AUTO and (isinstance(size, bool) or not isinstance(size, int)):
            raise UsageError(f"--size {size}: expected a number of px, or auto")
    if weights is not None and not weights.exists():
        raise MissingError(
            f"--weights {weights}: no such file or folder; expected a .safetensors or a PyTorch state dict, or a folder"
            " of such"
        )
    named = [zoo.find(name, weights).name for name in names if name != AUTO]
    several = len(set(named)) > 1 or AUTO in names
    if several and weights is not None and weights.is_file():
        raise UsageError(f"--weights {weights}: a file is of one backbone; name one, or give a folder of weights")
    if several and cuts:
        raise UsageError("--cut and --unfreeze name layers of one backbone; name that one with --backbone")
    found = zoo.at_hand(weights) if AUTO in names else []
    everything = [(name, True) for name in named] + [(name, False) for name in found if name not in named]
    once = list(dict.fromkeys(sizes)) or [None]
    return [Asked(name, size, by_user) for name, by_user in dict.fromkeys(everything) for size in once]


def _loaded(wanted: list[Asked], weights: Path | None, watch: Watch) -> tuple[list[_Contender], list[Standing]]:
    """The contenders, the cheapest first; of those that `auto` found, what cannot be loaded or cut is left out."""
    contenders: dict[tuple[str, int], _Contender] = {}
    dropped = []
    for a in wanted:
        try:
            source = zoo.find(a.name, weights)
        except TopworkError as error:
            if a.named:
                raise
            dropped.append(_unloaded(a.name, a.size if isinstance(a.size, int) else 0, error))
            continue
        own = source.preprocessing.crop_px
        half = max(zoo.MIN_SIZE_PX, own // 2)
        sizes: tuple[int | None, ...] = (None, half) if a.size == AUTO else (a.size,)  # type: ignore[assignment]
        for size in sizes:
            try:
                loaded = zoo.load(a.name, weights=weights, size_px=size, watch=watch)
            except TopworkError as error:
                if a.named and (a.size != AUTO or size is None):
                    raise
                dropped.append(_unloaded(a.name, size or own, error))
            else:
                contender = _Contender(loaded, source.top1, a.named)
                contenders.setdefault((a.name, loaded.preprocessing.crop_px), contender)
    if not contenders:
        raise UsageError("--backbone auto: none of those at hand can be used:\n" + "\n".join(d.reason for d in dropped))
    return sorted(contenders.values(), key=lambda c: c.loaded.chain.macs), dropped


def _unloaded(name: str, size_px: int, error: TopworkError) -> Standing:
    """What is kept of a backbone that cannot be loaded or cut; size_px is 0 where not even that is known."""
    return Standing(name, size_px, "left out", str(error), None, 0, None, None, ())


def _affordable(
    contenders: list[_Contender], dataset: Dataset, cache: Path, budget: str | None
) -> tuple[list[_Contender], list[Standing]]:
    """Those that were named, the cheapest, and of the others as many as half the budget pays for.

    The one that ranks best on ImageNet is asked first, then the cheapest ones. What the cache holds costs nothing.
    """
    price = {id(c): features.price(c.loaded) for c in contenders}
    cost = {id(c): price[id(c)] * features.unseen(c.loaded, dataset.examples, cache=cache) for c in contenders}
    limit = AUTO_SHARE * budgets.seconds(budget, min(price.values()) * len(dataset.examples))
    free = [c for c in contenders if c.named] or contenders[:1]
    ranked = _best_ranked(contenders)
    spent, kept, left_out = sum(cost[id(c)] for c in free if not c.named), list(free), []
    for c in sorted(contenders, key=lambda c: c is not ranked):  # stable: after it, the cheapest first
        if any(c is k for k in kept):
            continue
        if not cost[id(c)] or spent + cost[id(c)] <= limit:
            spent += cost[id(c)]
            kept.append(c)
        else:
            reason = (
                f"its pass would take about {cost[id(c)]:.0f} s; {max(0.0, limit - spent):.0f} s are left of the"
                f" {limit:.0f} s that may go into passes; give more with --budget, or name it with --backbone"
            )
            left_out.append(c.dropped("left out", reason, 1000 * price[id(c)]))
    return [c for c in contenders if any(c is k for k in kept)], left_out


def _sample(dataset: Dataset, seed: int) -> tuple[Example, ...] | None:
    """A stratified part of the images that choices are made with; None where it would spare less than a half."""
    rows = [e for e in dataset.examples if e.part == "train"]
    wanted = max(LEAST_SAMPLE, int(SAMPLE * len(rows)))
    if 2 * wanted > len(rows):
        return None
    rng = np.random.default_rng(seed)
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    turn: dict[int, int] = {}  # the how manieth of its class each image is
    ranks = []
    for e in shuffled:
        turn[e.label] = turn.get(e.label, 0) + 1
        ranks.append(turn[e.label])
    # After the loop, turn is the number of images of each class.
    share = [(rank - 0.5) / turn[e.label] for rank, e in zip(ranks, shuffled, strict=True)]
    chosen = {shuffled[i] for i in np.argsort(share, kind="stable")[:wanted]}
    return tuple(e for e in dataset.examples if e in chosen)


def _passed(
    contenders: list[_Contender], dataset: Dataset, cache: Path, watch: Watch
) -> tuple[tuple[features.Features, ...], float]:
    """The features of all contenders, and the seconds of forward passes that nobody named."""
    before = [features.unseen(c.loaded, dataset.examples, cache=cache) for c in contenders]
    seen = features.measure(
        [c.loaded for c in contenders], Path(dataset.root), dataset.examples, cache=cache, watch=watch
    )
    seconds = [float(f.seconds[1:].sum()) for f in seen]
    return seen, sum(n * s for c, n, s in zip(contenders, before, seconds, strict=True) if not c.named)


def _probed(
    contenders: list[_Contender], dataset: Dataset, locked: str, seen: Sequence[features.Features], balance: bool,
    seed: int, cache: Path, watch: Watch,
) -> tuple[Measured, ...]:  # fmt: skip
    return tuple(
        probed(dataset, locked, c.loaded, f, balance=balance, seed=seed, cache=cache, watch=watch)
        for c, f in zip(contenders, seen, strict=True)
    )


def _still_in(
    contenders: list[_Contender], tried: Sequence[Measured], delta: float
) -> tuple[list[_Contender], list[Standing]]:
    """Those that may still be chosen, were named, or rank best on ImageNet; and those that are stopped."""
    evidences = [m.evidence for m in tried]
    reasons = plan.hopeless(evidences, delta)
    tables = plan.scores(evidences, [m.features.widths for m in tried], [m.ridges for m in tried])
    ranked, kept, stopped = _best_ranked(contenders), [], []
    for c, m, reason, table in zip(contenders, tried, reasons, tables, strict=True):
        if reason is None or c.named or c is ranked:
            kept.append(c)
        else:
            stopped.append(c.dropped("stopped", reason, m.evidence.forward_ms, len(m.rows), table))
    return kept, stopped


def _best_ranked(contenders: list[_Contender]) -> _Contender | None:
    """The one of highest accuracy on ImageNet as stated; at the largest of its input sizes."""
    ranked = [c for c in contenders if c.top1 is not None]
    return max(ranked, key=lambda c: (c.top1, c.loaded.preprocessing.crop_px), default=None)


def _against(scores: tuple[CutScore, ...]) -> str:
    """How a backbone that was measured and not chosen stands to the best place."""
    best = max(scores, key=lambda s: s.accuracy)
    if best.deficit_low == best.deficit_high == 0:  # of the best place alone: any other's is uncertain
        return f"its cut {best.cut} is the best place, right on {best.accuracy:.1%}; a cheaper one was chosen"
    low, high = 100 * best.deficit_low + 0.0, 100 * best.deficit_high + 0.0
    return (
        f"its best cut, {best.cut}, is right on {best.accuracy:.1%}; {100 * best.deficit + 0.0:.1f} points less than"
        f" the best place (95% interval {low:.1f} to {high:.1f})"
    )
