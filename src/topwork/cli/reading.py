"""Commands that read what is there: report, compare, backbones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from topwork.cli.options import (
    Json,
)
from topwork.cli.output import print_json, screen
from topwork.errors import UsageError

if TYPE_CHECKING:
    pass


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there (default: report.html in the run).")
    ] = None,
) -> None:
    """Draw a run's page again: one HTML file that needs nothing else. Every fit leaves one."""
    console, _ = screen(False)
    if out is not None and out.exists():
        raise UsageError(f"--out {out}: exists already and is not overwritten; name another file")
    from topwork import report as page

    console.print(str(page.write(run, out)), highlight=False, soft_wrap=True)


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Folders of two or more runs; the first is the reference.")
    ],
    disagreements: Annotated[
        int,
        typer.Option(
            "--disagreements", metavar="N", help="List N images that each run answers differently from the first."
        ),
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Also write it into this new file: .md or .csv.")
    ] = None,
    json: Json = False,
) -> None:
    """Runs side by side, and which is better where they are judged on the same images."""
    console, _ = screen(json)
    from topwork import comparison, terminal

    if out is not None:
        comparison.check(out)
    found = comparison.compare(runs, disagreements=disagreements)
    if out is not None:
        comparison.write(out, found)
    if json:
        print_json(found)
        return
    terminal.comparison(console, found, comparison.rows(found), comparison.common(found), comparison.together(found))


def backbones(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAMES...", help="Only these.", show_default=False)
    ] = None,
    timm: Annotated[
        str, typer.Option("--timm", metavar="PATTERN", help="Also list timm's networks that match, such as '*resnet*'.")
    ] = "",
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FOLDER", help="A folder in which weights are looked for first.")
    ] = None,
    at_hand: Annotated[bool, typer.Option("--at-hand", help="Only those that need no download.")] = False,
    pull: Annotated[
        list[str] | None, typer.Option("--pull", metavar="NAME", help="Download the weights of this one; repeatable.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time those at hand and those named, here.")] = False,
    json: Json = False,
) -> None:
    """List the pretrained networks, what they cost and where their weights are; download or time them."""
    console, watch = screen(json)
    from topwork import catalogue, zoo

    for name in pull or ():
        zoo.pull(name, watch)
    found = catalogue.backbones(
        [*(names or ()), *(pull or ())], timm=timm, weights=weights, at_hand=at_hand, measure=measure, watch=watch
    )
    if json:
        print_json({"backbones": found})
        return
    catalogue.show(console, found)
    if not (timm or names or pull or at_hand):
        console.print("\nAnd timm's CNNs as timm:NAME; `topwork backbones --timm '*convnext*'` lists those that match.")
