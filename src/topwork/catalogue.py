"""Which backbones could be used here, what do they cost, and where are their weights?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from topwork import speed, zoo
from topwork.errors import MissingError, UsageError
from topwork.watch import SILENT, Watch


@dataclass(frozen=True, slots=True)
class Entry:
    """One backbone in the list. A fact that is not known, or was not asked for, is None."""

    name: str
    family: str | None = None
    year: int | None = None  # of the family's paper
    params: int | None = None
    gflops: float | None = None  # 10^9 multiply-adds per image at the input size
    input_px: int | None = None  # side of the square that the network sees
    top1: float | None = None  # 0..1, ImageNet-1k, as its library states it
    weights: str | None = None  # what they are called
    at_hand: bool = False
    origin: str | None = None  # where the weights come from
    licence: str | None = None  # of the weights
    ms_per_image: float | None = None  # on this machine, in batches of speed.BATCH
    ms_single: float | None = None  # of one image alone
    problem: str | None = None  # why the network cannot be used


def backbones(
    names: str | Sequence[str] = (),
    *,
    timm: str = "",
    weights: str | Path | None = None,
    at_hand: bool = False,
    measure: bool = False,
    watch: Watch = SILENT,
) -> list[Entry]:
    """All that is known of the backbones asked for, else of all, those at hand first.

    `timm` is a pattern for names of timm's; `at_hand` leaves out what would have to be downloaded. `measure`
    times those at hand, and those asked for by name. Raises UsageError where there is none of a name, or no such
    folder of weights.
    """
    names = [names] if isinstance(names, str) else names
    folder = None if weights is None else Path(weights)
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--weights {folder}: no such folder; expected one that holds files of weights")
    here = zoo.at_hand(folder)
    known = [zoo.find(name, folder).name for name in names]
    if not names:
        known = [*here, *(name for name in zoo.names() if name not in here)]
    if timm:
        matching = (f"timm:{name}" for name in zoo.timm_names() if fnmatchcase(name, timm))
        known += [name for name in matching if name not in known]
    if at_hand:
        known = [name for name in known if name in here or (name in names and zoo.find(name, folder).at_hand())]
    watch.begin("list", len(known))
    found = []
    for name in known:
        found.append(_entry(name, folder, measure=measure and (name in here or bool(names))))
        watch.advance()
    watch.end()
    return found


def _entry(name: str, weights: Path | None, *, measure: bool) -> Entry:
    """A network that cannot be used is an entry that says why."""
    try:
        source = zoo.find(name, weights)
    except UsageError as error:
        return Entry(name, problem=str(error))
    params, gflops, problem = source.params, source.gflops, None
    timed: speed.Speed | None = None
    try:
        params, gflops = zoo.cost(source)
        if measure:
            timed = speed.measure(_network(source, weights))
    except (UsageError, MissingError) as error:
        problem = str(error)
    return Entry(
        source.name, source.family, source.year, params, gflops, source.preprocessing.crop_px, source.top1,
        source.weights, source.at_hand(), source.origin, source.licence,
        timed.ms_per_image if timed else None, timed.ms_single if timed else None, problem,
    )  # fmt: skip


def _network(source: zoo.Source, weights: Path | None) -> zoo.Backbone:
    """What is timed: with its weights where they are at hand; they make no difference to the time."""
    if source.at_hand():
        return zoo.load(source.name, weights=weights)
    return zoo.skeleton(source.name, source.preprocessing)


def show(console: Console, entries: Sequence[Entry]) -> None:
    """Draw the list: a heading per family, a line per backbone; what cannot be used is named below with the reason."""
    timed = any(e.ms_per_image is not None for e in entries)
    columns = ["", "M par.", "GFLOPs", "px", "top-1", *(["ms", "ms alone"] if timed else []), "weights", "licence"]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(
            column, justify="left" if column in {"", "weights", "licence"} else "right", no_wrap=column != "",
            overflow="fold",
        )  # fmt: skip
    heading = None
    for e in entries:
        if e.problem:
            continue
        if heading != (e.family, e.year):
            heading = e.family, e.year
            table.add_row(f"[bold]{escape(e.family or '')}[/]" + (f" [dim]{e.year}[/]" if e.year else ""))
        times = [_number(e.ms_per_image, 1), _number(e.ms_single, 1)] if timed else []
        table.add_row(
            escape(e.name), _number(e.params and e.params / 1e6, 1), _number(e.gflops, 2), str(e.input_px),
            _number(e.top1 and e.top1 * 100, 1), *times, "[green]at hand[/]" if e.at_hand else _from(e),
            escape(e.licence or ""),
        )  # fmt: skip
    console.print(table)
    if timed:
        console.print(f"\nms: per image in batches of {speed.BATCH}, and of one image alone, on this machine.")
    for e in entries:
        if e.problem:
            console.print(f"[yellow]{escape(e.name)}[/]: {escape(e.problem)}", highlight=False)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _from(e: Entry) -> str:
    """Where weights come from, in a word; --json has the whole address."""
    host = urlparse(e.origin or "").hostname
    return escape(host.removeprefix("download.") if host else (e.origin or "").split("/")[0].split(" ")[0])
