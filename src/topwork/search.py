"""Is training the kept layers worth it, which part of them, and how hard?

Candidates differ in the cut, in where training begins and in the rate. They meet on one fold: a short
training each, then a long one for the best (successive halving). The one that came furthest is then
tested on folds that chose nothing, paired with the frozen model's head on the same images. Each
training is priced before it is started, and only started where what must follow still fits the budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from topwork import memo
from topwork.errors import UsageError
from topwork.head import FOLDS, Exact, temperature
from topwork.records import Cut, Recipe, Trial, Tuning
from topwork.statistics import paired_gain
from topwork.train import Task, Trained, predict, stages, train, view_number
from topwork.watch import SILENT, Watch

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FORMULA = "2"
"""Raised by every change that can change a training's outcome; results kept under another one are not read."""

SHORT = 4
"""Epochs of the first rung: enough to tell a wrong rate or place from a good one (bench/LOG.md)."""

LONG_ARMS = 2  # candidates of the first rung that are trained in full
RATE_STEP = 3.0  # a neighbouring rate; the best one differs by orders of magnitude between tasks (Li et al., 2020)
LEAST_ERRORS = 3
"""Errors of the frozen head below which nothing is tried: a training that made none could still not be shown to
be better (2 images of difference, plus the one that is added, are 1.15 standard errors, and 1.28 are asked for)."""

SLACK = 0.1  # share of the budget by which a training under way may overrun it


@dataclass(frozen=True)
class Baseline:
    """The frozen model's head on the same folds, and what it is compared by."""

    fold: Ints  # (n,) the fold in which each image is left out
    correct: NDArray[np.bool_]  # (n,) out of fold
    groups: Ints | None
    importance: Floats | None = None  # (n,) how much each image weighs, of mean 1


@dataclass
class Prices:
    """What a training costs in seconds, predicted from the pass, and learnt from every training."""

    decode: float  # seconds per image
    forward: Floats  # (segments,) seconds per image of the prepared, frozen network
    view_factor: float = 1.5  # of a view over decoding and prefix: random crops and colour come on top
    train_factor: float = 4.0  # of a training step over the frozen forward pass of the trained part
    seen: dict[tuple[str, str, str], float] = field(default_factory=dict)  # per image and epoch

    def epoch(self, cuts: Sequence[Cut], recipe: Recipe) -> float:
        """Per image trained on."""
        key = (recipe.strategy, recipe.cut, recipe.unfreeze)
        return self.seen.get(key, self.train_factor * self._part(cuts, recipe))

    def views(self, point: int) -> float:
        """Per image and view."""
        return self.view_factor * (self.decode + float(self.forward[:point].sum()))

    def learn(self, cuts: Sequence[Cut], recipe: Recipe, per_image: float) -> None:
        """Take a measured epoch over for this candidate, and its ratio for the ones not yet tried."""
        self.seen[recipe.strategy, recipe.cut, recipe.unfreeze] = per_image
        ratios = [v / self._part(cuts, replace(recipe, cut=c, unfreeze=u)) for (_, c, u), v in self.seen.items()]
        self.train_factor = float(np.median(ratios))

    def _part(self, cuts: Sequence[Cut], recipe: Recipe) -> float:
        names = [c.name for c in cuts]
        return float(self.forward[names.index(recipe.unfreeze) : names.index(recipe.cut) + 1].sum())


@dataclass
class Journal:
    """Seconds of everything that was done, so that a resumed run spends and decides as an uninterrupted one."""

    path: Path | None
    seconds: dict[str, float] = field(default_factory=dict)
    paid: set[str] = field(default_factory=set)

    @staticmethod
    def opened(path: Path | None) -> Journal:
        """A journal with what an interrupted run wrote; a last line that was cut off is taken away."""
        seconds: dict[str, float] = {}
        if path is not None and path.exists():
            whole = b""
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    name, spent = msgspec.json.decode(line, type=tuple[str, float])
                except msgspec.DecodeError:
                    break
                if not line.endswith(b"\n"):
                    break
                seconds[name] = spent
                whole += line
            if whole != path.read_bytes():
                aside = path.with_name(f"{path.name}.new")
                aside.write_bytes(whole)
                aside.replace(path)
        return Journal(path, seconds)

    def pay(self, name: str, seconds: float) -> float:
        """Note what something took; gives back what is to be spent for it: what it took the first time, once."""
        if name not in self.seconds:
            self.seconds[name] = seconds
            if self.path is not None:
                with self.path.open("ab") as file:
                    file.write(msgspec.json.encode((name, seconds)) + b"\n")
        if name in self.paid:
            return 0.0
        self.paid.add(name)
        return self.seconds[name]


def candidates(cuts: Sequence[Cut], chosen: str, best: str, *, epochs: int, lr: float, balance: bool) -> list[Recipe]:
    """What is worth a try, the most promising for its cost first.

    Cuts: the best frozen one and the last one, since a layer that misleads a frozen head can learn.
    Trained parts: the last stage, the last two, everything, the first block alone. Everything also at a
    high rate: probes cannot see gains that need features to move far.
    """
    names = [c.name for c in cuts]
    stage = stages(cuts)

    def begin(cut: str, back: int) -> str:
        wanted = max(0, stage[names.index(cut)] - back)
        return names[stage.index(wanted)]

    recipe = Recipe("suffix", best, best, lr=lr, epochs=epochs, balance=balance)
    found = []
    for cut in dict.fromkeys([names[-1], best, chosen]):
        found += [replace(recipe, cut=cut, unfreeze=begin(cut, back)) for back in (0, 1)]
    found.append(replace(recipe, strategy="full", unfreeze=names[0]))
    found.append(replace(recipe, strategy="full", unfreeze=names[0], cut=names[-1], lr=lr * RATE_STEP))
    if best != names[0]:  # there, the first block alone is everything
        found.append(replace(recipe, strategy="surgical", unfreeze=names[0]))
    # Where the cut lies in the first stage, the last stage is everything.
    unique: dict[tuple[object, ...], Recipe] = {}
    for r in found:
        unique.setdefault((r.cut, r.unfreeze, r.lr, r.strategy == "surgical"), r)
    return [
        r if r.strategy != "suffix" or r.unfreeze != names[0] else replace(r, strategy="full") for r in unique.values()
    ]


@dataclass
class Search:
    """A search under way: what it may spend, what it has tried."""

    task: Task
    start: Callable[[str, Ints], Exact]  # the exact head at a cut, from these rows
    baseline: Baseline
    prices: Prices
    budget: float  # seconds
    seed: int
    cache: Path
    identity: str  # names the backbone and the images
    journal: Journal
    watch: Watch = SILENT
    spent: float = 0.0
    trials: list[Trial] = field(default_factory=list)
    logits: dict[tuple[Recipe, int], Floats] = field(default_factory=dict)
    finished: list[Path] = field(default_factory=list)  # checkpoints that nothing needs once the run is saved

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The backbone's."""
        return self.task.store.backbone.cuts

    def choose(self, recipes: Sequence[Recipe]) -> Tuning:
        """Try candidates and decide between the one that comes furthest and the frozen model."""
        wrong = int((~self.baseline.correct).sum())
        if wrong < LEAST_ERRORS:
            return self._kept(
                f"its head makes {wrong} error{'' if wrong == 1 else 's'} on {len(self.baseline.correct)} images out of"
                " fold, too few for any training to be shown better"
            )
        short = self._rung("short", [replace(r, epochs=min(SHORT, r.epochs)) for r in recipes], recipes)
        if not short:
            cheapest = min(self._needs(r) for r in recipes)
            return self._kept(
                f"no training fits the budget of {self.budget:.3g} s: the cheapest one, with its test and the final"
                f" training, takes about {cheapest:.0f} s; give more with --budget"
            )
        best = short[0]
        rates = [replace(best, lr=best.lr * RATE_STEP), replace(best, lr=best.lr / RATE_STEP)]
        long = self._rung("long", [*short[:LONG_ARMS], *rates], None)
        if not long:
            return self._kept("the budget ended before a candidate was trained in full; give more with --budget", best)
        return self._tested(long[0])

    def by_hand(self, recipe: Recipe) -> Tuning:
        """The candidate that was asked for, with what the budget allows to measure of it: at least one fold."""
        first = self._trial("test", recipe, 1, limit=float("inf"))
        if first is None or first.log_loss is None:
            raise UsageError(f"--lr {recipe.lr:g}: the weights grew beyond all numbers; choose a lower rate")
        self.tested(recipe)
        gain, low, n = self.gain(recipe)
        against = f"{100 * gain:+.1f} points against the frozen model's head, lower 90% bound {100 * low:+.1f}"
        shown = "shown" if low > 0 else "not shown"
        reason = f"{describe(recipe)}: {against}, on {n} images left out of training; {shown} to be better"
        return self._result(recipe, (gain, low, n), replaced=True, reason=reason)

    def tested(self, recipe: Recipe, *, folds: int = FOLDS) -> None:
        """Train a candidate on all folds but one and judge it there, fold after fold while the budget lasts."""
        for fold in range(1, folds):
            if (recipe, fold) in self.logits:
                continue
            final = self.price(recipe, final=True)
            if fold > 1 and (self._settled(recipe) or self._left() < self.price(recipe) + final):
                break
            if self._trial("test", recipe, fold, limit=self._left() - final + SLACK * self.budget) is None:
                break

    def final(self, recipe: Recipe) -> Trained:
        """The candidate trained on every image."""
        rows = np.arange(len(self.task.labels))
        path = self.cache / "trials" / f"{memo.name([FORMULA, self.identity, _text(recipe), str(self.seed)])}.now"
        trained = train(
            self.task, recipe, rows, self.start(recipe.cut, rows), seed=self.seed, checkpoint=path, watch=self.watch
        )
        assert trained is not None, "only give_up ends a training"
        self.spent += self.journal.pay(
            f"final {path.stem}", trained.view_seconds + sum(e.seconds for e in trained.curve)
        )
        self.finished.append(path)  # it goes when the run is saved: until then it is all that an interruption leaves
        return trained

    def out_of_fold(self, recipe: Recipe) -> tuple[Ints, Floats]:
        """Rows and logits of all test folds of a candidate, in order."""
        folds = sorted(fold for r, fold in self.logits if r == recipe and fold > 0)
        rows = np.concatenate([np.flatnonzero(self.baseline.fold == fold) for fold in folds])
        return rows, np.concatenate([self.logits[recipe, fold] for fold in folds])

    def price(self, recipe: Recipe, *, final: bool = False) -> float:
        """Seconds that one training of this candidate will take, its missing views counted."""
        n = len(self.task.labels)
        learnt = n if final else int((self.baseline.fold != 0).sum())
        views = self._missing_views(recipe) * n * self.prices.views(self._point(recipe))
        return recipe.epochs * learnt * self.prices.epoch(self.cuts, recipe) + views

    def _needs(self, recipe: Recipe) -> float:
        """Seconds from a candidate's first training to a tested, finished model: two trainings and the final one."""
        return 2 * self.price(recipe) + self.price(recipe, final=True)

    def _rung(self, rung: str, tries: Sequence[Recipe], full: Sequence[Recipe] | None) -> list[Recipe]:
        """Train these on all folds but the first while the budget lasts; best first, with their full epochs."""
        scores: dict[Recipe, float] = {}
        points = sorted({self._point(r) for r in tries})
        for i, recipe in enumerate(dict.fromkeys(tries)):
            goal = full[i] if full is not None else recipe
            reserve = self._needs(goal) if full is not None else self.price(goal) + self.price(goal, final=True)
            if self._left() < self.price(recipe) + reserve:
                continue
            if full is not None:
                self._ensure(points, recipe)
            trial = self._trial(rung, recipe, 0, limit=self._left() - reserve + SLACK * self.budget)
            if trial is not None and trial.log_loss is not None:
                scores[goal] = trial.log_loss
        return sorted(scores, key=lambda r: scores[r])

    def _trial(self, rung: str, recipe: Recipe, fold: int, *, limit: float) -> Trial | None:
        """One training, judged on the fold that it did not see; None where it would take more than `limit` seconds."""
        held, rows = np.flatnonzero(self.baseline.fold == fold), np.flatnonzero(self.baseline.fold != fold)
        inputs: list[memo.Input] = [FORMULA, self.identity, _text(recipe), str(self.seed), rows]
        path = self.cache / "trials" / f"{memo.name(inputs)}.now"
        given_up = f"given up {path.stem}"

        def compute() -> memo.Arrays:
            trained = train(
                self.task, recipe, rows, self.start(recipe.cut, rows), seed=self.seed, checkpoint=path,
                watch=self.watch, give_up=lambda done, seconds: seconds / done * recipe.epochs > limit,
            )  # fmt: skip
            if trained is None:
                return {}
            logits = predict(trained.network, self.task.store, held)
            curve = np.array([[e.loss, e.seconds] for e in trained.curve])
            return {"logits": logits, "curve": curve, "views": np.array(trained.view_seconds)}

        began = time.perf_counter()
        self.watch.show("trial", (rung, recipe, fold))
        found = {} if given_up in self.journal.seconds else memo.remembered(self.cache / "trials", inputs, compute)
        path.unlink(missing_ok=True)
        if not found:
            self.spent += self.journal.pay(given_up, time.perf_counter() - began)
            return None
        # What it took in all, before an interruption too, and in an earlier run: so every run decides alike.
        seconds = float(found["curve"][:, 1].sum() + found["views"])
        self.spent += self.journal.pay(path.stem, seconds)
        per_image = float(np.median(found["curve"][:, 1])) / len(rows)
        self.prices.learn(self.cuts, recipe, per_image)
        logits, labels = found["logits"], self.task.labels[held]
        loss = None
        if np.isfinite(logits).all():  # else the rate was too high, and the weights are no numbers any more
            log_p = log_softmax(logits / temperature(logits, labels), axis=1)
            loss = float(-log_p[np.arange(len(held)), labels].mean())
        backbone = self.task.store.backbone
        trial = Trial(
            backbone.name, backbone.preprocessing.crop_px, recipe, rung, fold, len(held),
            float((logits.argmax(axis=1) == labels).mean()), loss,
            float(self.baseline.correct[held].mean()), seconds,
            tuple(round(float(v), 4) for v in found["curve"][:, 0]),
        )  # fmt: skip
        self.trials.append(trial)
        self.logits[recipe, fold] = logits
        self.watch.show("tried", trial)
        return trial

    def _tested(self, recipe: Recipe) -> Tuning:
        self.tested(recipe)
        if not any(r == recipe and fold for r, fold in self.logits):
            return self._kept(
                "the budget ended before the best candidate could be tested; give more with --budget", recipe
            )
        gain, low, n = self.gain(recipe)
        what = describe(recipe)
        size = (
            f"{100 * gain:+.1f} points on {n} images that had no part in choosing it (lower 90% bound {100 * low:+.1f})"
        )
        if low > 0:
            return self._result(
                recipe, (gain, low, n), replaced=True, reason=f"{what} is better than the frozen model's head: {size}"
            )
        return self._result(
            recipe, (gain, low, n), replaced=False,
            reason=f"{what} is not shown to be better: {size}{_more(gain, low, n)}",
        )  # fmt: skip

    def gain(self, recipe: Recipe) -> tuple[float, float, int]:
        """Accuracy over the frozen model's on the test folds, its lower 90% bound, and the images behind it."""
        rows, logits = self.out_of_fold(recipe)
        right = logits.argmax(axis=1) == self.task.labels[rows]
        groups, importance = self.baseline.groups, self.baseline.importance
        value, low = paired_gain(
            right, self.baseline.correct[rows],
            None if groups is None else groups[rows], None if importance is None else importance[rows],
        )  # fmt: skip
        return value, low, len(rows)

    def _settled(self, recipe: Recipe) -> bool:
        """Whether the folds so far tell: even the upper bound is no gain, or a gain is beyond doubt.

        Twice the usual bound for the latter, since a test that is looked at after every fold is passed
        by chance more often.
        """
        value, low, _ = self.gain(recipe)
        return 2 * value - low <= 0 or 2 * low - value > 0

    def _kept(self, reason: str, recipe: Recipe | None = None) -> Tuning:
        return self._result(recipe, None, replaced=False, reason=reason)

    def _result(
        self, recipe: Recipe | None, gain: tuple[float, float, int] | None, *, replaced: bool, reason: str
    ) -> Tuning:
        value, low, n = gain if gain is not None else (None, None, 0)
        backbone = self.task.store.backbone
        return Tuning(
            self.budget, self.spent, tuple(self.trials), backbone.name, backbone.preprocessing.crop_px,
            recipe, value, low, n, replaced, reason + ".",
        )  # fmt: skip

    def _left(self) -> float:
        return self.budget - self.spent

    def _point(self, recipe: Recipe) -> int:
        return self.task.store.backbone.index(recipe.unfreeze)

    def _missing_views(self, recipe: Recipe) -> int:
        wanted = _views(recipe)
        return len(wanted) - len(self.task.store.held(self._point(recipe), wanted))

    def _ensure(self, points: Sequence[int], recipe: Recipe) -> None:
        """The views of a short training, at every candidate's point in one pass over the images each."""
        for number in sorted(_views(recipe)):
            began = time.perf_counter()
            passed = self.task.store.ensure(points, number, self.watch)
            name = f"view {number} {points}"
            self.spent += self.journal.pay(name, time.perf_counter() - began if passed else 0.0)
            took = self.journal.seconds[name]
            if took:
                predicted = len(self.task.labels) * self.prices.views(points[-1]) / self.prices.view_factor
                self.prices.view_factor = took / max(predicted, 1e-9)


def _more(gain: float, low: float, n: int) -> str:
    """What would change the answer: images until a gain of this size would be shown, its error falling as 1/sqrt(n)."""
    if gain <= 0:
        return ""
    more = n * ((gain - low) / gain) ** 2 - n
    return f"; a gain of this size would be shown with about {max(1, round(more))} more such images"


def describe(recipe: Recipe) -> str:
    """A candidate in words."""
    part = {
        "suffix": f"training from {recipe.unfreeze} to {recipe.cut}",
        "full": f"training everything up to {recipe.cut}",
        "surgical": f"training the first block {recipe.unfreeze} alone under {recipe.cut}",
        "head": f"a head on {recipe.cut}",
    }[recipe.strategy]
    return f"{part} (rate {recipe.lr:g}, {recipe.epochs} epoch{'' if recipe.epochs == 1 else 's'})"


def _views(recipe: Recipe) -> set[int]:
    """Numbers of the views that a training and its judgement need."""
    return {0, *(view_number(recipe, epoch) for epoch in range(recipe.epochs))}


def _text(recipe: Recipe) -> str:
    return msgspec.json.encode(recipe).decode()
