"""How is it shown to a person at a terminal? Reads records, computes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from topwork.records import (
    BackboneFacts,
    Comparison,
    Coverage,
    CutScore,
    Dataset,
    EngineFacts,
    Estimate,
    Exported,
    Fault,
    Finding,
    Grouped,
    Growth,
    Metrics,
    MultiLabelMetrics,
    Plan,
    RunRecord,
    Sets,
    Shortcut,
    Standing,
    Suspects,
    Trial,
    Unknown,
)

STAGES = {
    "look": "Looking at the files",
    "pass": "Passing images through the backbone",
    "sketch": "Looking again at images whose sketches are gone",
    "probe": "Scoring every cut",
    "views": "Passing views through the frozen layers",
    "train": "Training",
    "predict": "Predicting",
    "explain": "Looking where the model looked",
    "pull": "Downloading weights",
    "list": "Looking at the networks",
}
LOCKED = ("test folder", "val folder", "held-out part")
"""Parts of the data that a result can be measured on; any other name is a folder's."""

LINKS = {
    "copy": "the same content",
    "given": "of one given group",
    "near-duplicate": "nearly the same picture",
    "burst": "photos of one scene",
}
"""What images that belong together are, by the kind of their link."""

BAR = 24  # characters of an accuracy bar
WITH_BARS = 78  # columns of a terminal from which bars leave room for the numbers beside them
WITH_COLUMNS = 78  # columns from which the ranking of backbones is a table; below, a line per backbone
WITH_INTERVALS = 100  # columns from which the ranking of backbones has room for each one's own interval
SHOWN_FAULTS = 12
SHOWN_PATHS = 4  # of each finding
SEVERITIES = {"fault": "red", "warning": "yellow", "note": "dim"}
SHOWN_CLASSES = 20
SHOWN_SUSPECTS = 5
SHOWN_LEVELS = (0.9, 0.99)  # of prediction sets
SHOWN_DIFFERENCES = 5  # classes of each comparison


class _Speed(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="dim")


def paper(*, stderr: bool = False) -> Console:
    """The console that everything here is drawn for: a user's names are printed letter by letter."""
    return Console(stderr=stderr, emoji=False)


class TerminalWatch:
    """Draws progress on standard error and facts on the given console as they come."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._lines = paper(stderr=True)
        self._standings: Sequence[Standing] = ()
        self._training = ""  # whose layers are trained
        self._several = False  # whether an image may have several labels

    def begin(self, stage: str, total: int) -> None:
        """Start a progress bar."""
        done, speed = (DownloadColumn(), TransferSpeedColumn()) if stage == "pull" else (MofNCompleteColumn(), _Speed())
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(BAR), done, speed, TimeRemainingColumn(),
            console=self._lines, transient=True, disable=not self._lines.is_terminal,
        )  # fmt: skip
        self._progress.start()
        self._progress.add_task(STAGES.get(stage, stage), total=total or None)  # 0: how much, nobody said

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0], steps)

    def end(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def show(self, what: str, fact: object) -> None:
        """Print a finished fact."""
        if what == "target":
            self._console.print(f"[bold]Run[/]  {escape(str(fact))}", highlight=False)
        elif isinstance(fact, Dataset):
            self._several = fact.multi_label
            dataset(self._console, fact)
        elif what == "answer" and isinstance(fact, Metrics):
            answer(self._console, fact)
        elif type(fact) in _DRAWN:
            _DRAWN[type(fact)](self._console, fact)
        elif what in _LISTS and isinstance(fact, tuple):
            _LISTS[what](self._console, fact)
        elif what == "dropped" and isinstance(fact, Standing):
            dropped(self._console, fact)
        elif what == "standings" and isinstance(fact, tuple):
            self._standings = fact
        elif what in _PAIRS and isinstance(fact, tuple):
            _PAIRS[what](self._console, *fact)
        elif isinstance(fact, Trial):
            which = f"{fact.backbone} at {fact.size_px} px"
            if which != self._training and sum(s.fate in {"chosen", "measured"} for s in self._standings) > 1:
                self._console.print(f"  of {escape(which)}:", highlight=False)
            self._training = which
            trial(self._console, fact)
        elif what == "tuning" and isinstance(fact, Plan):
            self._console.print(f"  - {escape(fact.reasons[-1])}", highlight=False)
        elif isinstance(fact, Plan):
            depth(self._console, self._standings[0].scores, fact, several=self._several)
            ranking(self._console, self._standings)
            plan(self._console, fact)


def dataset(console: Console, facts: Dataset, *, left_out: bool = True) -> None:
    """What came in: classes, counts, and what is left out or odd unless it is told elsewhere."""
    parts = Counter(e.part for e in facts.examples)
    counts = Counter((i, e.part) for e in facts.examples for i in facts.labels_of(e))
    console.print(
        f"[bold]Data[/]  {len(facts.examples):,} images in {len(facts.classes)} classes"
        f" under {escape(facts.root)} ({escape(facts.layout)})"
    )
    if len(parts) > 1:
        console.print("      " + ", ".join(f"{n:,} {part}" for part, n in sorted(parts.items())))
    shown = [
        f"{escape(name)} {sum(counts[i, p] for p in parts):,}" for i, name in enumerate(facts.classes[:SHOWN_CLASSES])
    ]
    more = f", and {len(facts.classes) - SHOWN_CLASSES} more" if len(facts.classes) > SHOWN_CLASSES else ""
    console.print("      " + ", ".join(shown) + more, highlight=False)
    if facts.multi_label:
        each = sum(counts.values()) / max(1, len(facts.examples))
        none = sum(not e.labels for e in facts.examples)
        without = f"; {none:,} images have none" if none else ""
        console.print(f"      several labels per image: {each:.1f} on average{without}", highlight=False)
    if left_out:
        faults(console, facts.faults)
    for warning in facts.warnings if left_out else ():
        console.print(f"      [yellow]{escape(warning)}[/]")


def faults(console: Console, found: Sequence[Fault]) -> None:
    """Every file that is left out, with its reason."""
    if not found:
        return
    kinds = Counter(f.kind for f in found)
    console.print(
        f"      [yellow]{len(found):,} left out[/]: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    )
    for fault in found[:SHOWN_FAULTS]:
        console.print(f"        {escape(fault.path)}  [dim]{escape(fault.kind)}: {escape(fault.detail)}[/]")
    if len(found) > SHOWN_FAULTS:
        console.print(f"        [dim]and {len(found) - SHOWN_FAULTS} more; `topwork check --json` lists them all[/]")


def grouped(console: Console, facts: Grouped) -> None:
    """Which images belong together; nothing where all stand alone."""
    if not facts.together:
        return
    own = " but for your own split" if facts.across else ""
    console.print(
        f"[bold]Groups[/]  {facts.together:,} of {facts.images:,} images belong together with another and stay on one"
        f" side{own}, in {facts.groups - facts.images + facts.together:,} groups of up to {max(facts.sizes):,}",
        highlight=False,
    )
    for count in facts.counts:
        first, second = count.examples[0]
        console.print(
            f"      {LINKS[count.kind]}: {count.images:,} images, such as {escape(first)} and {escape(second)}",
            highlight=False,
        )
    if facts.moved:
        console.print(f"      {facts.moved:,} changed sides for it", highlight=False)


def warnings(console: Console, found: Sequence[str]) -> None:
    """What the pass has brought to light about the data, in sentences."""
    for warning in found:
        console.print(f"      [yellow]{escape(warning)}[/]", highlight=False)


def findings(console: Console, found: Sequence[Finding]) -> None:
    """What is wrong with the images, most severe first, each with some of its paths."""
    for finding in found:
        colour = SEVERITIES[finding.severity]
        console.print(
            f"      [{colour}]{finding.severity.capitalize()}[/]  [bold]{escape(finding.kind)}[/]:"
            f" {escape(finding.detail)}",
            highlight=False,
        )
        for path in finding.paths[:SHOWN_PATHS]:
            console.print(f"        {escape(path)}", highlight=False, soft_wrap=True)
        if len(finding.paths) > SHOWN_PATHS:
            more = len(finding.paths) - SHOWN_PATHS
            console.print(f"        [dim]and {more:,} more; `topwork check --json` lists them all[/]")


def cleaned(console: Console, path: str, kept: int, gone: Sequence[str]) -> None:
    """Where the cleaned list went."""
    console.print(
        f"[bold]Cleaned list[/]  {kept:,} images in {escape(path)}; {len(gone):,} that contradict another or show what"
        " is judged on are not in it, nor is what cannot be used. No image was touched.",
        highlight=False,
    )


def backbone(console: Console, facts: BackboneFacts) -> None:
    """Which network measures."""
    console.print(
        f"[bold]Backbone[/]  {escape(facts.name)} ({escape(facts.weights)}), {facts.params / 1e6:.1f} M parameters,"
        f" {facts.macs / 1e9:.2f} G multiply-adds at {facts.preprocessing.crop_px} px, {len(facts.cuts)} cuts"
    )


def engine(console: Console, facts: EngineFacts) -> None:
    """What the frozen layers run in; nothing where it is what everybody expects."""
    if facts.name == "pytorch":
        return
    console.print(
        f"[bold]Engine[/]  {escape(facts.name)}: {facts.faster:.1f} times as fast as PyTorch on these images, the same"
        f" features",
        highlight=False,
    )


def dropped(console: Console, standing: Standing) -> None:
    """A backbone that is out of the running, and why."""
    name = f"{standing.backbone} at {standing.size_px} px" if standing.size_px else standing.backbone
    console.print(
        f"[yellow]{standing.fate.capitalize()}[/]  {escape(name)}: {escape(standing.reason)}", highlight=False
    )


def ranking(console: Console, standings: Sequence[Standing]) -> None:
    """The backbones by their best cuts, where there are several."""
    ranked = [s for s in standings if s.best is not None]
    if len(ranked) < 2:
        return
    several = len({s.backbone for s in ranked}) < len(ranked)
    wide, intervals = console.width >= WITH_COLUMNS, console.width >= WITH_INTERVALS
    table = Table(box=None, padding=(0, 1))
    table.add_column("backbone", overflow="fold", min_width=10)
    table.add_column("best cut", overflow="fold", min_width=8)
    for name in ("accuracy", *(["95%"] if intervals else []), "ms", "behind (95%)"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    console.print("\nBackbones, each at its best cut: ms per image up to it, points behind the best", style="italic")
    for s in ranked:
        best = s.best
        assert best is not None
        name = f"{s.backbone} {s.size_px} px" if several else s.backbone
        between = f"{100 * best.deficit_low + 0.0:.1f} to {100 * best.deficit_high + 0.0:.1f}"
        behind = "" if best.deficit_high <= 0 else f"{100 * best.deficit + 0.0:.1f} ({between})"
        note = "<- chosen" if s.fate == "chosen" else f"stopped at {s.n}" if s.fate == "stopped" else ""
        style = "bold green" if s.fate == "chosen" else ""
        if wide:
            table.add_row(
                escape(name), escape(best.cut), f"{best.accuracy:.1%}",
                *([f"{100 * best.low:.1f}-{100 * best.high:.1f}"] if intervals else []), f"{best.cost_ms:.3g}",
                behind, note, style=style,
            )  # fmt: skip
        else:
            facts = [f"{best.accuracy:.1%}", f"{best.cost_ms:.3g} ms", *([f"{behind} behind"] if behind else [])]
            line = f"{name} {best.cut}: {', '.join(facts)} {note}"
            console.print(f"  {escape(line.rstrip())}", style=style, highlight=False, overflow="fold")
    if wide:
        console.print(table)


def depth(console: Console, scores: Sequence[CutScore], decided: Plan, *, several: bool = False) -> None:
    """The depth curve: a bar per cut, its interval beside it, and what it costs."""
    floor = max(0.0, min(s.low for s in scores) - 0.02)
    top = max(s.high for s in scores)
    drawn = console.width >= WITH_BARS
    table = Table(box=None, padding=(0, 1))
    columns = [("cut", "left"), ("", "left"), ("accuracy", "right"), ("95%", "left"), ("cost", "right")]
    for name, side in [column for column in columns if column[0] or drawn]:
        table.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("", no_wrap=True)
    most = max(s.images for s in scores)
    for score in scores:
        chosen = score.cut == decided.cut
        own = (decided.backbone, decided.size_px) == (decided.best_backbone, decided.best_size_px)
        note = "chosen" if chosen else "best" if own and score.cut == decided.best_cut else ""
        note = f"<- {note}" if note else f"of {score.images:,}" if score.images < most else ""
        bar = _bar((score.accuracy - floor) / max(1e-9, top - floor), plain=console.options.ascii_only)
        table.add_row(
            escape(score.cut), *([bar] if drawn else []),
            f"{score.accuracy:.1%}", f"{100 * score.low:.1f}-{100 * score.high:.1f}", f"{score.cost_share:.0%}",
            note, style="bold green" if chosen else "dim" if score.images < most else "",
        )  # fmt: skip
    measured = "Label-ranking average precision" if several else "Accuracy"
    console.print(f"\n{measured} at every cut (leave-one-out)", style="italic")
    console.print(table)
    start = f"bars start at {floor:.0%}; " if drawn else ""
    console.print(f"  [dim]{start}cost is the share of the backbone's forward time[/]")
    if any(s.images < most for s in scores):
        console.print(f"  [dim]of N: measured on N of {most:,} images; the others did not pass up to there[/]")


def plan(console: Console, decided: Plan) -> None:
    """The decision in sentences."""
    console.print("\n[bold]Plan[/]" + ("" if decided.decided else "  [yellow]undecided in part[/]"))
    for reason in decided.reasons:
        console.print(f"  - {escape(reason)}", highlight=False)


def suspects(console: Console, found: Suspects) -> None:
    """Labels that are probably wrong: how many, and the most suspicious ones. Nothing where nobody is suspected."""
    if not found.estimated:
        return
    look = f"{found.wrong:,} label{' looks' if found.wrong == 1 else 's look'} wrong"
    console.print(
        f"\n[bold]Labels[/]  [yellow]{look}[/], {found.estimated:,} of {found.images:,} are doubtful: all"
        f" {found.voters} votes, out of sample, are for another class. The most suspicious:",
        highlight=False,
    )
    for s in found.listed[:SHOWN_SUSPECTS]:
        console.print(
            f"  {escape(s.path)}  {escape(s.label)} [dim]({s.label_probability:.0%})[/], likely {escape(s.likely)}"
            f" [dim]({s.confidence:.0%})[/]",
            highlight=False,
        )
    if found.estimated > SHOWN_SUSPECTS:
        console.print("  [dim]all of them are in run.json, under suspects[/]")


def shortcuts(console: Console, found: Sequence[Shortcut]) -> None:
    """What the model may be learning instead of the thing. Nothing where nothing warns."""
    for s in found:
        if s.warned:
            console.print(f"\n[bold]Shortcut?[/]  [yellow]{escape(s.detail)}[/]", highlight=False)


def growth(console: Console, found: Growth) -> None:
    """What more images would bring."""
    console.print(f"\n[bold]More images[/]  {escape(found.reason)}", highlight=False)


def budget(console: Console, seconds: float, cost_fe: float) -> None:
    """What training may cost, said before it starts."""
    console.print(
        f"\n[bold]Training[/]  up to {_time(seconds)} ({cost_fe:.0f} FE) to find out whether training the kept layers"
        " is worth it; Ctrl-C loses nothing (topwork fit --resume RUN), --strategy head skips it",
        highlight=False,
    )


def trial(console: Console, tried: Trial) -> None:
    """One training that is done."""
    r = tried.recipe
    part = {
        "suffix": f"{r.unfreeze} to {r.cut}",
        "full": f"all up to {r.cut}",
        "surgical": f"{r.unfreeze} alone, {r.cut}",
    }
    console.print(
        f"  {tried.rung:<5}  {escape(part.get(r.strategy, r.strategy)):<26} rate {r.lr:<7.2g} {r.epochs:>3} epochs"
        f"  {tried.accuracy:.1%} (head {tried.head_accuracy:.1%}), {tried.seconds:.0f} s",
        highlight=False,
    )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def so_far(console: Console, folder: Path, found: Metrics) -> None:
    """What can be used already while the kept layers are trained."""
    console.print(
        f"\n[bold]So far[/]  [bold]{_estimate(found.accuracy)}[/] right with the layers as they are, {_on(found)};"
        f" until the run is done: topwork predict {escape(str(folder))} IMAGE",
        highlight=False,
    )


def answer(console: Console, found: Metrics) -> None:
    """The result in a line, as soon as it is known."""
    of = "label-ranking average precision" if found.multi_label is not None else "right"
    console.print(
        f"\n[bold]Answer[/]  [bold]{_estimate(found.accuracy)}[/] {of}, {_on(found)}; the model and its page are being"
        " written",
        highlight=False,
    )


def metrics(console: Console, found: Metrics) -> None:
    """Accuracy with its interval, and the classes."""
    if found.multi_label is not None:
        _several(console, found, found.multi_label)
        return
    console.print(f"\n[bold]Result[/]  accuracy [bold]{_estimate(found.accuracy)}[/] {_on(found)}", highlight=False)
    console.print(
        f"        balanced accuracy {_estimate(found.balanced_accuracy)},"
        f" calibration error {100 * found.calibration_error:.1f} points{_between(found)}, log-loss"
        f" {found.log_loss:.3f}",
        highlight=False,
    )
    table = Table(box=None, padding=(0, 1))
    for name, side in [("class", "left"), ("images", "right"), ("recall", "right"), ("95%", "left")]:
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    table.add_column("precision", justify="right")
    table.add_column("most often taken for")
    rows = list(enumerate(found.per_class))
    if len(rows) > SHOWN_CLASSES:
        rows = sorted(rows, key=lambda row: row[1].recall)[:SHOWN_CLASSES]
    for i, c in rows:
        others = [(n, j) for j, n in enumerate(found.confusion[i]) if j != i and n]
        worst = max(others, default=None, key=lambda pair: pair[0])
        table.add_row(
            escape(c.name), str(c.n), f"{c.recall:.0%}" if c.n else "-",
            f"{100 * c.recall_low:.0f}-{100 * c.recall_high:.0f}" if c.n else "-",
            "-" if c.precision is None else f"{c.precision:.0%}",
            f"{escape(found.per_class[worst[1]].name)} ({worst[0]})" if worst else "",
        )  # fmt: skip
    console.print(table)
    if len(found.per_class) > SHOWN_CLASSES:
        console.print(f"  [dim]the {SHOWN_CLASSES} classes of lowest recall of {len(found.per_class)}[/]")


def _between(found: Metrics) -> str:
    """The interval of the calibration error, in points; nothing in records of an earlier topwork."""
    if found.calibration_low is None or found.calibration_high is None:
        return ""
    return f" (95%: {100 * found.calibration_low:.1f} to {100 * found.calibration_high:.1f})"


def trust(console: Console, unknown: Unknown | None, sets: Sets | None) -> None:
    """Which images are taken for none of the classes, and what prediction sets are worth."""
    lines = []
    if unknown is not None:
        lines.append(
            f"{unknown.measured.value:.1%} (95%: {100 * unknown.measured.low:.1f} to {100 * unknown.measured.high:.1f})"
            f" of {unknown.measured.n:,} images of the classes are taken for none of them; asked for:"
            f" {unknown.false_alarm:.0%}"
        )
    if sets is not None:
        lines.append(covered(sets.coverage))
    for i, line in enumerate(lines):
        console.print(("[bold]Trust[/] " if i == 0 else "      ") + f" {line}", highlight=False)


def judged_trust(console: Console, found: Metrics) -> None:
    """The same of images that were judged later. Nothing where the model cannot tell."""
    if found.unknown is not None:
        console.print(f"Taken for none of the classes: {_estimate(found.unknown)}", highlight=False)
    if found.coverage:
        console.print(covered(found.coverage), highlight=False)


def covered(found: Sequence[Coverage]) -> str:
    """How often prediction sets hold, at each level that is asked for most."""
    parts = [
        f"{c.level:.0%}: {c.covered.value:.1%} ({100 * c.covered.low:.1f} to {100 * c.covered.high:.1f}),"
        f" {c.size:.1f} classes"
        for c in found
        if c.level in SHOWN_LEVELS
    ]
    return f"Prediction sets hold, of {'; of '.join(parts)} on average" if parts else ""


def _several(console: Console, found: Metrics, labels: MultiLabelMetrics) -> None:
    """The result where images may have several labels: no confusion, but a threshold for each label."""
    console.print(
        f"\n[bold]Result[/]  mean average precision [bold]{_estimate(labels.mean_average_precision)}[/] {_on(found)}",
        highlight=False,
    )
    console.print(
        f"        label-ranking average precision {_estimate(found.accuracy)}\n"
        f"        F1 micro {_estimate(labels.micro_f1)}, macro {_estimate(labels.macro_f1)}\n"
        f"        all labels right {_estimate(labels.subset_accuracy)}; calibration error"
        f" {100 * found.calibration_error:.1f} points, log-loss {found.log_loss:.3f} per label",
        highlight=False,
    )
    table = Table(box=None, padding=(0, 1))
    table.add_column("label")
    for name in ("images", "average precision", "recall", "precision", "F1", "from"):
        table.add_column(name, justify="right")
    rows = list(zip(found.per_class, labels.per_label, strict=True))
    if len(rows) > SHOWN_CLASSES:
        rows = sorted(rows, key=lambda row: 2.0 if row[1].average_precision is None else row[1].average_precision)
    for c, label in rows[:SHOWN_CLASSES]:
        known = label.average_precision is not None
        table.add_row(
            escape(c.name), str(c.n), f"{label.average_precision:.0%}" if known else "-",
            f"{c.recall:.0%}" if c.n else "-", "-" if c.precision is None else f"{c.precision:.0%}",
            f"{c.f1:.0%}" if known else "-", f"{label.threshold:.0%}",
        )  # fmt: skip
    console.print(table)
    console.print("  [dim]from: the probability from which on the model gives the label[/]")
    if len(rows) > SHOWN_CLASSES:
        console.print(f"  [dim]the {SHOWN_CLASSES} labels of lowest average precision of {len(rows)}[/]")


def confusion(console: Console, found: Metrics) -> None:
    """The confusion matrix, where it fits a terminal: rows are true classes, columns predicted ones."""
    if found.multi_label is not None or len(found.per_class) > SHOWN_CLASSES:
        return
    console.print("Confusion (rows true, columns predicted)", style="italic")
    table = Table(box=None, padding=(0, 1))
    table.add_column("")
    for i, _ in enumerate(found.per_class):
        table.add_column(str(i), justify="right")
    for i, row in enumerate(found.confusion):
        cells = [f"[bold]{n}[/]" if i == j else str(n) if n else "[dim].[/]" for j, n in enumerate(row)]
        table.add_row(f"{i} {escape(found.per_class[i].name)}", *cells)
    console.print(table)


def comparison(
    console: Console, found: Comparison, rows: Sequence[tuple[str, tuple[str, ...]]], common: str, together: str
) -> None:
    """Runs side by side, what is common told once; then each against the first, in words."""
    console.print(f"[bold]Compared with[/]  {escape(found.runs[0].name)}", highlight=False)
    if common:
        console.print(f"The same in all: {escape(common)}", highlight=False)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    for run in found.runs:
        table.add_column(escape(run.name), overflow="fold", min_width=8)
    for what, values in rows:
        table.add_row(escape(what), *(escape(v) for v in values))
    console.print()
    console.print(table)
    for pair in found.pairs:
        colour = {"better": "green", "worse": "red"}.get(pair.verdict, "yellow")
        verdict, colon, why = pair.reason.partition(": ")
        console.print(f"\n[{colour}]{escape(verdict)}[/]{colon}{escape(why)}", highlight=False)
        differing = [c for c in pair.classes if c.difference][:SHOWN_DIFFERENCES]
        if differing:
            console.print("  Classes that differ most:", highlight=False)
        for c in differing:
            console.print(
                f"    {escape(c.name)}  {c.reference:.0%} -> {c.other:.0%} of {c.n:,}"
                f" [dim](95%: {100 * c.low:+.0f} to {100 * c.high:+.0f} points)[/]",
                highlight=False,
            )
        for note in pair.notes:
            console.print(f"  [yellow]{escape(note)}[/]", highlight=False)
        if pair.disagreements:
            console.print(f"  They answer {pair.disagreed:,} images differently; the surest:", highlight=False)
        for d in pair.disagreements:
            console.print(
                f"    {escape(d.path)}  [bold]{escape(d.label)}[/]: {escape(found.runs[0].name)}"
                f" {_answer(d.reference, d.reference_probability)},"
                f" {escape(pair.name)} {_answer(d.other, d.other_probability)}",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
    if together:
        console.print(f"\n[dim]{escape(together)}[/]", highlight=False)


def _answer(given: str, probability: float | None) -> str:
    return (escape(given) or "no label") + ("" if probability is None else f" [dim]{probability:.0%}[/]")


def outcome(console: Console, record: RunRecord, folder: str) -> None:
    """The end of a fit: result, cost, files, what to do next."""
    metrics(console, record.metrics)
    confusion(console, record.metrics)
    trust(console, record.unknown, record.sets)
    spent = record.spending
    page = "report.html (open it), " if record.options.pictures else ""
    picture = ", depth.svg" if sum(bool(s.scores) for s in record.backbones) > 1 else ""
    console.print(
        f"\n[bold]Cost[/]  {spent.total_seconds:.1f} s = {spent.cost_fe:.2f} FE (1 FE = decoding and one forward pass"
        f" of the whole backbone over these images: {spent.fe_seconds:.1f} s);"
        f" {spent.images_passed:,} images passed now, the rest were known",
        highlight=False,
    )
    console.print(f"[bold]Head[/]  {escape(record.head.reason)}", highlight=False)
    console.print(
        f"[bold]Model[/] {_size(record)}{_onnx(record)}\n"
        f"\n[bold]Files[/] {escape(folder)}/  {page}model/ (copy it anywhere), run.json,"
        f" predictions.parquet{picture}\n"
        f"[bold]Next[/]  topwork predict {escape(folder)} NEW/*.jpg\n"
        f"      topwork explain {escape(folder)} NEW.jpg\n"
        f"      topwork evaluate {escape(folder)} HELD-OUT-FOLDER",
        highlight=False,
    )


def _size(record: RunRecord) -> str:
    """What the saved model takes, beside its whole backbone."""
    m = record.model
    return (
        f"keeps {m.params / 1e6:.2f} of {m.whole_params / 1e6:.2f} M parameters, {m.file_bytes / 1e6:.1f} MB;"
        f" {record.plan.kept_cost:.0%} of the forward time; one image {m.latency_ms:.0f} ms, the whole backbone"
        f" {m.whole_latency_ms:.0f} ms"
    )


def exported(console: Console, found: Exported) -> None:
    """What was written in another format, and how it compares."""
    lines = [f"{escape(found.file)}  {found.bytes / 1e6:.1f} MB"]
    if found.accuracy_change is not None and found.change_low is not None and found.change_high is not None:
        lines.append(
            f"accuracy {100 * found.accuracy_change:+.1f} points (95%: {100 * found.change_low:+.1f} to"
            f" {100 * found.change_high:+.1f}) on {found.images:,} judged images, {found.agreement:.1%} get the same"
            f" answer; {found.smaller:.1f} times smaller, {found.faster:.1f} times as fast here"
        )
    elif found.images:
        lines.append(f"equal to PyTorch on {found.images} of the run's images: scores differ by {found.difference:.1g}")
    if found.note:
        lines.append(escape(found.note))
    console.print("\n      ".join(lines), highlight=False, soft_wrap=True)


def _onnx(record: RunRecord) -> str:
    """Whether the model runs without PyTorch, or why not."""
    o = record.onnx
    if o is None:
        return ""
    if o.reason:
        return f"\n      [yellow]no model.onnx[/]: {escape(o.reason)}; predictions need PyTorch"
    return (
        f"\n      model.onnx ({o.bytes / 1e6:.1f} MB) runs without PyTorch; its scores differ by at most"
        f" {o.difference:.1g} on {o.images} of these images"
    )


_DRAWN: dict[type, Callable[[Console, Any], None]] = {
    BackboneFacts: backbone, EngineFacts: engine, Grouped: grouped,
    Suspects: suspects, Growth: growth,
}  # fmt: skip
"""Facts that are drawn as they come, whatever they are called."""

_LISTS: dict[str, Callable[[Console, Any], None]] = {
    "faults": faults, "findings": findings, "warnings": warnings, "shortcuts": shortcuts,
}  # fmt: skip
"""Facts that come as tuples, by what they are called."""

_PAIRS: dict[str, Callable[..., None]] = {"budget": budget, "cleaned": cleaned, "so far": so_far}
"""Facts that come as pairs."""


def _estimate(e: Estimate) -> str:
    return f"{e.value:.1%} (95%: {100 * e.low:.1f} to {100 * e.high:.1f})"


def _on(found: Metrics) -> str:
    e = found.accuracy
    if e.on in LOCKED:
        return f"on the {e.on} ({e.n:,} images)"
    if e.on != "out-of-sample":
        return f"on the {e.n:,} images of {escape(e.on)}"
    gain = 100 * (found.naive_accuracy - e.value)
    taken = f", after taking off {gain:.1f} points for having chosen by them" if gain >= 0.05 else ""
    return f"out of sample over {e.n:,} images{taken}"


def _bar(share: float, *, plain: bool) -> str:
    """A bar in eighths of a character; in whole ones where the terminal knows no others."""
    if plain:
        return "#" * round(max(0.0, min(1.0, share)) * BAR)
    eighths = round(max(0.0, min(1.0, share)) * BAR * 8)
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
