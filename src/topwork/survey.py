"""Which backbones are measured, how far, and how do they stand?

Those that were named are all measured in full, in one joint pass. Of those that `auto` finds at hand, as many are
measured as the budget pays for, the cheapest first; and one that is shown on a part of the images to be out of the
running is spared the rest. The one that ranks best on ImageNet is never given up early: a probe cannot see what
training would make of it. Where there are many images, a sample of them passes all of each backbone first, and the
others pass up to the deepest cut that can still win.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from topwork import budget as budgets
from topwork import data, faults, features, groups, listing, plan, sides, zoo
from topwork.errors import MissingError, TopworkError, UsageError
from topwork.measurement import Measured, cache_folder, inflated, keeps_scores, parted, probed, reach
from topwork.records import CutScore, Dataset, Example, Fate, Grouped, Part, Plan, Standing
from topwork.splits import applied
from topwork.statistics import wilson
from topwork.watch import SILENT, Clock, Watch

AUTO = "auto"

AUTO_SHARE = 0.5
"""Of the budget that `auto` may spend on passes: what is left still pays for training."""

SAMPLE, LEAST_SAMPLE = 0.25, 200
"""Share and least number of the images on which backbones are compared first: with fewer than 200, differences of a
few points are not shown, and hardly any backbone would be stopped."""

LARGE = 2000
"""Images that choices are made with, from which some pass first and the others only as deep as is needed: with fewer
there is little to spare, and what is measured at every cut of all of them says more."""

FIRST, STEP = 1000, 4
"""Images of the first such sample, and how many times as many the next one has. On fewer, no deep cut is shown to be
worse by a few points; four times as many halve every interval, and a sample is no more than half of the images."""

PER_CLASS, LEAST_PER_CLASS = 20, 5
"""Images that the first sample has for each class on average at least, and that each class has in it in any case: with
fewer, deep cuts, which have the most features, would look worse than they will be."""


@dataclass(frozen=True)
class Survey:
    """Every backbone that was measured, on the same images, the cheapest first; and what became of the others."""

    measured: tuple[Measured, ...]
    dropped: tuple[Standing, ...]
    top1: tuple[float | None, ...]  # of the measured ones, on ImageNet, as stated
    spent_seconds: float  # of the budget: what `auto` chose to pass took so long
    passed: int  # images that went through a backbone now, each counted once per backbone; the others were known
    early: tuple[tuple[CutScore, ...], ...] = ()  # of each measured one: cuts that were scored on a sample alone
    notes: tuple[str, ...] = ()  # what a plan says of images that did not pass all the way
    images: int = 0  # that a choice could be made with; more than were measured where a sample was enough
    grouped: Grouped | None = None  # which images belong together

    @property
    def evidences(self) -> tuple[plan.Evidence, ...]:
        """What a decision rests on, one per measured backbone."""
        return tuple(m.evidence for m in self.measured)

    @cached_property
    def scores(self) -> tuple[tuple[CutScore, ...], ...]:
        """The depth tables, one per measured backbone."""
        found = plan.scores(
            self.evidences, [m.features.widths for m in self.measured], [m.ridges for m in self.measured]
        )
        early = self.early or ((),) * len(found)
        return tuple(table + rows for table, rows in zip(found, early, strict=True))

    def plan(self, *, delta: float = plan.DELTA, cut: str | None = None) -> Plan:
        """Which backbone, cut where, for a head on frozen layers."""
        decided = plan.decide(*self.evidences, delta=delta, cut=cut)
        notes, m = list(self.notes), self.of(decided)
        if self.images > len(m.rows):
            score = next(s for s in self.scores[self._index(decided)] if s.cut == decided.cut)
            low, high = wilson(score.accuracy, self.images)
            why = "which are enough to decide" if decided.decided else "since all of them would hardly decide more"
            notes.append(
                f"Planned on {len(m.rows):,} of {self.images:,} images, {why}: accuracy at {decided.cut} is known to"
                f" {100 * (score.high - score.low) / 2:.1f} points either way (95%), on all images it would be to"
                f" {100 * (high - low) / 2:.1f}."
            )
        grouped = self.parted(decided)
        if grouped is not None and (word := inflated(grouped)):
            notes.append(word)
        return plan.spared(decided, notes) if notes else decided

    def parted(self, decided: Plan) -> Grouped | None:
        """Which images belong together, with what it makes at the planned cut that they stand on one side."""
        m = self.of(decided)
        if self.grouped is None or decided.cut not in m.features.cuts:
            return self.grouped
        return parted(m, m.features.cuts.index(decided.cut), self.grouped)

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
        return self.measured[max(others, key=lambda i: _best(self.scores[i]).accuracy)]

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
    source: Any,
    labels: Any = None,
    groups: Any = None,
    *,
    splits: Any = None,
    image_column: str | None = None,
    label_separator: str | None = None,
    backbone: str | Sequence[str] = zoo.EMBEDDED,
    weights: str | Path | None = None,
    size: int | Literal["auto"] | Sequence[int | Literal["auto"]] | None = None,
    seed: int = 0,
    delta: float = plan.DELTA,
    cache: str | Path | None = None,
    balance: bool = False,
    budget: str | float | None = None,
    cuts: Sequence[str | None] = (),
    cut: str | None = None,
    several_depths: bool = True,
    bursts: bool = True,
    split_of: str | Path | None = None,
    enough: bool = False,
    one_label: Sequence[str] = (),
    watch: Watch = SILENT,
    clock: Clock | None = None,
) -> Survey:
    """Look at the data, pass every image through each backbone once, and score every cut of each.

    `source`, `labels`, `groups`, `splits`, `image_column`, `label_separator`: as in workflow.fit.
    From LARGE images on, a sample passes first, and the others only up to the deepest cut that can still win.

    `backbone`: one name or several; "auto" stands for all whose weights are at hand. `weights`: a file, or a folder
    of such. `size`: input sizes in px; "auto" stands for the backbone's own and half of it. `balance`: every class
    weighs alike, whatever the number of its images; accuracies of cuts are then balanced. `budget`: of which a half
    may go into passes that "auto" asked for. `cuts` are names that must be cuts of the backbone: a wrong one is told
    before the pass, not after it. `cut`: the one that is asked for, up to which the others pass then.
    `several_depths=False`: no image passes deeper for the sake of a head that reads several depths.
    `bursts=False`: photos of one scene are not looked for. `split_of`: an earlier run, whose parts are taken.
    `enough`: of LARGE images or more, only a sample is measured, as soon as one decides, or all would not either.
    `one_label`: what was asked for that is of use where each image has one label: told before the pass where it may
    have several. So is `balance`.
    Raises UsageError, DataError, MissingError.
    """
    clock = clock or Clock()
    if not 0 <= delta < 1:
        raise UsageError(f"--delta {delta}: expected a share of accuracy from 0 to below 1, such as 0.01")
    if budget is not None:
        budgets.seconds(str(budget), 1.0)  # a wrong one is told now, not after the looking and loading
    source, columns = listing.given(
        source, labels, groups, splits, image_column=image_column, label_separator=label_separator
    )
    home, path = cache_folder(cache), None if weights is None else Path(weights)
    wanted = asked(listed(backbone), path, listed(size), any(c is not None for c in (*cuts, cut)))
    with clock.time("look"):
        dataset = data.read(source, columns, watch=watch)
        given = dataset  # its parts are the user's own
        dataset = replace(dataset, findings=faults.before(dataset))
        dataset, locked = data.lock(dataset, seed) if split_of is None else applied(dataset, split_of)
    watch.show("data", dataset)
    watch.show("findings", dataset.findings)
    if dataset.multi_label:
        refused = [*one_label, *(["--balance"] if balance else [])]
        if refused:
            raise UsageError(
                f"{', '.join(refused)}: for one label per image, and in {source} an image may have several; leave"
                f" {'them' if refused[1:] else 'it'} out: a head alone is trained there (--strategy head), and each"
                " label has its own threshold"
            )
    with clock.time("load"):
        contenders, dropped = _loaded(wanted, path, watch)
    for c in contenders:
        for name in (*cuts, cut):
            if name is not None:
                c.loaded.index(name)
        watch.show("backbone", c.loaded.facts)
    auto = len(contenders) > 1 and not all(c.named for c in contenders)
    if auto:
        with clock.time("pass"):
            contenders, left_out = _affordable(contenders, dataset, home, None if budget is None else str(budget))
            dropped += left_out
    for standing in dropped:
        watch.show("dropped", standing)
    race = _Race(
        contenders, dropped, locked, delta, cut, several_depths, enough, auto, balance, bursts, split_of is not None,
        seed, home, watch, clock, sum(e.part == "train" for e in dataset.examples),
        {e.path: e.part for e in given.examples},
    )  # fmt: skip
    return race.decided_early(dataset) or race.whole(dataset)


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
    depth: int | None = None  # cuts up to which the images to come pass; None: all
    early: tuple[CutScore, ...] = ()  # of the cuts behind them, as they were scored last
    whole: Measured | None = None  # the last sample that passed all cuts, where not all images do
    after: int = 0  # images of the sample after which the pass was shortened last

    @property
    def name(self) -> str:
        """As a sentence names it."""
        return f"{self.loaded.name} at {self.loaded.preprocessing.crop_px} px"

    def dropped(
        self, fate: Fate, reason: str, forward_ms: float, n: int = 0, scores: tuple[CutScore, ...] = ()
    ) -> Standing:
        """What is kept of it when it is out of the running."""
        name, size_px = self.loaded.name, self.loaded.preprocessing.crop_px
        return Standing(name, size_px, fate, reason, self.top1, n, forward_ms, self.loaded.facts, scores)


@dataclass
class _Race:
    """Contenders that meet on the same images: on samples first, where there are enough, then on all of them."""

    contenders: list[_Contender]
    dropped: list[Standing]
    locked: str
    delta: float
    cut: str | None  # that was asked for
    several: bool  # a head may read several depths
    enough: bool  # a sample will do, once it decides as much as all images would
    auto: bool  # those that were not named may be stopped
    balance: bool
    bursts: bool  # photos of one scene are looked for
    given: bool  # the parts are those of an earlier run: what is locked stays
    seed: int
    cache: Path
    watch: Watch
    clock: Clock
    images: int  # that choices can be made with
    parts: dict[str, Part]  # by path, as the user gave them
    spent: float = 0.0
    passed: int = 0
    chosen_by: set[str] = field(default_factory=set)  # digests of the images of all samples

    @property
    def large(self) -> bool:
        """Whether images may be spared the layers that cannot win."""
        return self.images >= LARGE

    def decided_early(self, dataset: Dataset) -> Survey | None:
        """Let the contenders meet on samples, each several times the last, while there is something to be spared.

        The survey of the first one that all images would hardly add to, where that is enough; else None.
        """
        going = self.large or (self.auto and len(self.contenders) > 1)
        for wanted in _rungs(dataset) if going else ():
            sample = _sample(dataset, self.seed, wanted)
            part = replace(dataset, examples=sample)
            seen = self._passed(part)
            gone = {fault.path for fault in seen[0].faults}
            part = replace(part, examples=tuple(e for e in sample if e.path not in gone))
            if len(part.examples) <= len(sample) / 2:  # the files are the trouble: the whole pass says so
                break
            self.chosen_by.update(e.digest for e in part.examples)
            with self.clock.time("group"):
                marked = self._grouped(part, seen[0])
                part = marked.dataset
            with self.clock.time("probe"):
                tried = self._probed(part, seen)
                if self.auto:
                    tried = self._stop(tried)
                found = self._survey(tried)
                decided = found.plan(delta=self.delta, cut=self.cut)
                if self.large and self.enough and plan.settled(decided, found.evidences, self.images):
                    return replace(found, grouped=marked.grouped)
                spares = self.large and self._shorten(found)
            if not (spares or self.enough or (self.auto and len(self.contenders) > 1)):
                break
        return None

    def whole(self, dataset: Dataset) -> Survey:
        """All images, each as deep as is needed."""
        seen = self._passed(dataset)
        if seen[0].faults:
            dataset = data.without(dataset, seen[0].faults)
            self.watch.show("faults", seen[0].faults)
        with self.clock.time("group"):
            marked = self._grouped(dataset, seen[0])
        with self.clock.time("look"):
            marked = sides.seen_through(marked, self.parts, self.cache, self.watch)
        with self.clock.time("group"):
            dataset, seen, grouped = sides.one_side(
                marked, seen, self.locked, given=self.given, chosen_by=self.chosen_by,
                seed=self.seed, watch=self.watch,
            )  # fmt: skip
        self.watch.show("groups", grouped)
        with self.clock.time("probe"):
            measured = self._probed(dataset, seen)
        self.images = len(measured[0].rows)
        return replace(self._survey(measured), grouped=grouped)

    def _grouped(self, dataset: Dataset, seen: features.Features) -> sides.Marked:
        """What belongs together, by the features of the cheapest backbone."""
        return sides.grouped(
            dataset, self.contenders[0].loaded, seen, bursts=self.bursts, seed=self.seed, cache=self.cache,
            watch=self.watch,
        )  # fmt: skip

    def _passed(self, dataset: Dataset) -> tuple[features.Features, ...]:
        """The features of all contenders, as deep as each has to; seconds that nobody named are of the budget."""
        depths, root = [c.depth for c in self.contenders], dataset.root
        with self.clock.time("pass"):
            before = [
                features.unseen(c.loaded, dataset.examples, depth=c.depth, cache=self.cache) for c in self.contenders
            ]
            seen = features.measure(
                [c.loaded for c in self.contenders], root, dataset.examples, depths=depths, cache=self.cache,
                watch=self.watch,
            )  # fmt: skip
        for c, f, n in zip(self.contenders, seen, before, strict=True):
            self.spent += 0.0 if c.named else n * float(f.seconds[1:][: c.depth].sum())
            self.passed += f.passed
        return seen

    def _probed(self, dataset: Dataset, seen: Sequence[features.Features]) -> tuple[Measured, ...]:
        found = []
        for c, f in zip(self.contenders, seen, strict=True):
            m = probed(
                dataset, self.locked, c.loaded, f, balance=self.balance, seed=self.seed, cache=self.cache,
                watch=self.watch,
            )  # fmt: skip
            if c.whole is not None:
                m = replace(m, whole=c.whole, evidence=replace(m.evidence, whole=c.whole.evidence))
            found.append(m)
        return tuple(found)

    def _stop(self, tried: Sequence[Measured]) -> tuple[Measured, ...]:
        """Keep those that may still be chosen, were named, or rank best on ImageNet; stop the others."""
        evidences = [m.evidence for m in tried]
        reasons = plan.hopeless(evidences, self.delta)
        tables = plan.scores(evidences, [m.features.widths for m in tried], [m.ridges for m in tried])
        ranked = _best_ranked(self.contenders)
        kept, still = [], []
        for c, m, reason, table in zip(self.contenders, tried, reasons, tables, strict=True):
            if reason is None or c.named or c is ranked:
                kept.append(c)
                still.append(m)
            else:
                row = c.dropped("stopped", reason, m.evidence.forward_ms, len(m.rows), table + c.early)
                self.watch.show("dropped", row)
                self.dropped.append(row)
        self.contenders = kept
        return tuple(still)

    def _shorten(self, found: Survey) -> bool:
        """Say up to which cut the images to come pass; whether a larger sample could spare them more.

        That is the one that was asked for; else the last one that can be chosen, or that a head of several depths of
        all images may read.
        """
        needed, more, after = plan.needed(found.evidences, self.delta), False, []
        for c, m, table, last in zip(self.contenders, found.measured, found.scores, needed, strict=True):
            own, depth = len(m.features.cuts), last
            if self.cut is not None:
                depth = min(own, c.loaded.index(self.cut) + 1)
            elif self.several and keeps_scores(self.images, len(m.dataset.classes), own):
                depth = max(depth, reach(m, self.seed, delta=self.delta))
            best = max(range(own), key=lambda k: table[k].accuracy)
            more |= self.cut is None and depth > 1 + best
            if depth < own:
                c = replace(c, depth=depth, early=table[depth:], whole=c.whole or m, after=len(m.rows))  # noqa: PLW2901
            after.append(c)
        self.contenders = after
        return more

    def _survey(self, measured: Sequence[Measured]) -> Survey:
        """What was measured of each contender, and what samples told of the cuts that not all images passed up to."""
        notes = []
        for c, m in zip(self.contenders, measured, strict=True):
            if c.depth is None:
                continue
            who = "The" if len(self.contenders) == 1 else f"Through {c.name} the"
            why = f": after {c.after:,} images no deeper cut could win (99%)"
            if self.cut is not None:
                why = f", as asked; deeper cuts were scored on {c.after:,} images"
            notes.append(
                f"{who} last {len(m.dataset.examples) - c.after:,} images passed only up to {m.features.cuts[-1]}"
                f" ({m.features.cost_shares[-1]:.0%} of the cost){why}."
            )
        return Survey(
            tuple(measured), tuple(self.dropped), tuple(c.top1 for c in self.contenders), self.spent, self.passed,
            tuple(c.early for c in self.contenders), tuple(notes), self.images,
        )  # fmt: skip


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


def _rungs(dataset: Dataset) -> list[int]:
    """How many images each sample has that choices are made with, before all images pass; none is more than a half."""
    images = sum(e.part == "train" for e in dataset.examples)
    if images < LARGE:
        wanted = max(LEAST_SAMPLE, int(SAMPLE * images))
        return [wanted] if 2 * wanted <= images else []
    found, wanted = [], max(FIRST, PER_CLASS * len(dataset.classes))
    while 2 * wanted <= images:
        found.append(wanted)
        wanted *= STEP
    return found


def _sample(dataset: Dataset, seed: int, wanted: int) -> tuple[Example, ...]:
    """A stratified part of the images that choices are made with; a smaller one lies inside a larger one.

    Of LARGE images, those of one content or given group stay together, and every class has LEAST_PER_CLASS of them
    where it can.
    """
    rows = [e for e in dataset.examples if e.part == "train"]
    large = len(rows) >= LARGE
    contents: dict[int, list[Example]] = {}
    for e, g in zip(rows, groups.known(rows) if large else range(len(rows)), strict=True):
        contents.setdefault(int(g), []).append(e)
    units = list(contents.values())
    rng = np.random.default_rng(seed)
    shuffled = [units[i] for i in rng.permutation(len(units))]
    turn: dict[int, int] = {}  # the how manieth of its class each one is
    ranks = []
    for label in (unit[0].label for unit in shuffled):
        turn[label] = turn.get(label, 0) + 1
        ranks.append(turn[label])
    # After the loop, turn is the number of them in each class.
    share = np.array([(rank - 0.5) / turn[unit[0].label] for rank, unit in zip(ranks, shuffled, strict=True)])
    first = large & (np.array(ranks) <= LEAST_PER_CLASS)
    order = np.argsort(np.where(first, share - 1, share), kind="stable")
    before = np.cumsum([0, *(len(shuffled[i]) for i in order)])[:-1]
    chosen = {e for i, seen in zip(order, before, strict=True) if seen < wanted or first[i] for e in shuffled[i]}
    return tuple(e for e in dataset.examples if e in chosen)


def _best_ranked(contenders: list[_Contender]) -> _Contender | None:
    """The one of highest accuracy on ImageNet as stated; at the largest of its input sizes."""
    ranked = [c for c in contenders if c.top1 is not None]
    return max(ranked, key=lambda c: (c.top1, c.loaded.preprocessing.crop_px), default=None)


def _best(scores: Sequence[CutScore]) -> CutScore:
    """The most accurate cut of those that were scored on most images: what a sample says is not held against them."""
    return max(scores, key=lambda s: (s.images, s.accuracy))


def _against(scores: tuple[CutScore, ...]) -> str:
    """How a backbone that was measured and not chosen stands to the best place."""
    best = _best(scores)
    if best.deficit_low == best.deficit_high == 0:  # of the best place alone: any other's is uncertain
        return f"its cut {best.cut} is the best place, right on {best.accuracy:.1%}; a cheaper one was chosen"
    low, high = 100 * best.deficit_low + 0.0, 100 * best.deficit_high + 0.0
    return (
        f"its best cut, {best.cut}, is right on {best.accuracy:.1%}; {100 * best.deficit + 0.0:.1f} points less than"
        f" the best place (95% interval {low:.1f} to {high:.1f})"
    )
