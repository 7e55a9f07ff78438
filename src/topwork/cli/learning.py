"""Commands that learn from labelled images, or look at them: fit, plan, check, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from topwork.cli.options import (
    FOUND,
    NETWORK,
    TRAINING,
    BackboneNames,
    Balance,
    Budget,
    Bursts,
    Cache,
    Delta,
    Folder,
    GroupColumn,
    ImageColumn,
    Images,
    Json,
    LabelColumns,
    LabelSeparator,
    Seed,
    Sizes,
    SplitColumn,
    SplitOf,
    Strategy,
    Weights,
)
from topwork.cli.output import print_json, screen
from topwork.errors import UsageError

if TYPE_CHECKING:
    from topwork.runs import Run


def fit(
    context: typer.Context,
    folder: Annotated[str | None, Images] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumns = None,
    label_separator: LabelSeparator = None,
    split_column: SplitColumn = None,
    group_column: GroupColumn = None,
    backbone: BackboneNames = ["efficientnet_lite0"],  # noqa: B006 (typer copies it)
    weights: Weights = None,
    size: Sizes = None,
    strategy: Annotated[
        Strategy,
        typer.Option(
            metavar="NAME",
            rich_help_panel=TRAINING,
            help="head: new layers alone; suffix: the kept layers from --unfreeze on; full: all of them;"
            " surgical: the first block alone; auto: whichever is shown to be worth it.",
        ),
    ] = Strategy.auto,
    cut: Annotated[
        str | None,
        typer.Option(
            "--cut", metavar="NAME", rich_help_panel=NETWORK, help="Where to cut, instead of the measured place."
        ),
    ] = None,
    unfreeze: Annotated[
        str | None,
        typer.Option("--unfreeze", metavar="NAME", rich_help_panel=TRAINING, help="The first block that is trained."),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="RATE", rich_help_panel=TRAINING, help="Learning rate (AdamW) of the last stage."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", metavar="NUMBER", rich_help_panel=TRAINING, help="Epochs of a training in full."),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip/--no-flip", rich_help_panel=TRAINING, help="Whether left and right may be swapped.")
    ] = True,
    balance: Balance = False,
    several_depths: Annotated[
        bool,
        typer.Option(
            "--several-depths/--one-depth",
            rich_help_panel=NETWORK,
            help="Whether the head may read more than one cut, where that is better.",
        ),
    ] = True,
    bursts: Bursts = True,
    split_of: SplitOf = None,
    budget: Budget = None,
    delta: Delta = 0.01,
    seed: Seed = 0,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Whether the page is drawn, and what is looked at for it.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="The run's folder (default: runs/NAME).")
    ] = None,
    cache: Cache = None,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", metavar="FOLDER", help="Also log every training for TensorBoard.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted fit, all else as it was.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure, decide, train, judge and save: the main job.

    A pretrained network ends where its later layers no longer help on these images, and gets a new last layer.

    No option is needed: topwork fit photos/
    """
    if (folder is None) == (resume is None):
        raise UsageError("expected either a folder of images or --resume RUN; `topwork fit --help` shows both")
    if resume is not None:
        given = sorted(n for n in context.params if n not in {"resume", "json", "tensorboard"} and _typed(context, n))
        if given:
            raise UsageError(f"--resume goes on with the options of {resume}; --{', --'.join(given)} cannot be changed")
    console, watch = screen(json)
    from topwork import workflow

    if tensorboard is not None:
        from topwork.trackers import TensorBoardWatch

        watch = TensorBoardWatch(tensorboard, watch)
    if resume is not None:
        run = workflow.resume(resume, watch=watch)
    else:
        assert folder is not None
        run = workflow.fit(
            folder, label_column, group_column, splits=split_column, image_column=image_column,
            label_separator=label_separator, backbone=backbone, weights=weights, size=_sizes(size),
            strategy=strategy.value, cut=cut, unfreeze=unfreeze, lr=lr, epochs=epochs, flip=flip, balance=balance,
            several_depths=several_depths, bursts=bursts, split_of=split_of, pictures=pictures, budget=budget,
            delta=delta, seed=seed, out=out, cache=cache, watch=watch,
        )  # fmt: skip
    if json:
        print_json(_summary(run))
        return
    from topwork import terminal

    terminal.outcome(console, run.record, str(run.path))


def plan(
    folder: Folder,
    image_column: ImageColumn = None,
    label_column: LabelColumns = None,
    label_separator: LabelSeparator = None,
    split_column: SplitColumn = None,
    group_column: GroupColumn = None,
    backbone: BackboneNames = ["efficientnet_lite0"],  # noqa: B006 (typer copies it)
    weights: Weights = None,
    size: Sizes = None,
    balance: Balance = False,
    bursts: Bursts = True,
    split_of: SplitOf = None,
    budget: Budget = None,
    delta: Delta = 0.01,
    seed: Seed = 0,
    cache: Cache = None,
    all_images: Annotated[
        bool, typer.Option("--all-images", help="Measure all of many images, even where a sample decides.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw the depth curves into this new file (SVG).")
    ] = None,
    json: Json = False,
) -> None:
    """Only measure and recommend: the depth table, the similarity, the plan, its cost."""
    console, watch = screen(json)
    from topwork import doubts, survey

    if budget is not None and survey.AUTO not in backbone:
        raise UsageError("--budget limits the passes of --backbone auto; what is named is measured whatever it takes")
    if picture is not None and picture.exists():
        raise UsageError(f"--picture {picture}: exists already and is not overwritten; name another file")
    seen = survey.measure(
        folder, label_column, group_column, splits=split_column, image_column=image_column,
        label_separator=label_separator, backbone=backbone, weights=weights, size=_sizes(size), bursts=bursts,
        split_of=split_of, seed=seed, delta=delta, balance=balance, budget=budget, cache=cache, enough=not all_images,
        watch=watch,
    )  # fmt: skip
    decided = seen.plan(delta=delta)
    standings = seen.standings(decided)
    warned, more = doubts.shortcut(seen.of(decided)), doubts.grown(seen.of(decided), decided, seed)
    if picture is not None:
        from topwork import pictures

        pictures.write(picture, standings, decided)
    if json:
        print_json(
            {
                "plan": decided, "backbones": standings, "groups": seen.parted(decided), "shortcuts": warned,
                "growth": more,
            }
        )  # fmt: skip
        return
    watch.show("standings", standings)
    watch.show("plan", decided)
    watch.show("shortcuts", warned)
    watch.show("growth", more)
    seconds = sum(m.features.pass_seconds for m in seen.measured)
    passes, cost = ("pass", "1 FE") if len(seen.measured) == 1 else ("passes", "1 FE of each backbone")
    if any(m.whole is not None for m in seen.measured):  # most images did not go all the way
        share = seconds / sum(m.features.fe_seconds for m in seen.measured)
        cost = f"{share:.2f} FE" + (" of each backbone, on average" if len(seen.measured) > 1 else "")
    if seen.images > (used := len(seen.of(decided).rows)):
        console.print(
            f"\n[bold]Images[/]  {used:,} of {seen.images:,} were enough; --all-images measures all.", highlight=False
        )
    console.print(
        f"\n[bold]Cost[/]  The {passes} over these images took about {seconds:.0f} s ({cost}), and what was seen is"
        " kept: `topwork fit` with the same options will not repeat it.",
        highlight=False,
    )


def check(
    folder: Folder,
    image_column: ImageColumn = None,
    label_column: LabelColumns = None,
    label_separator: LabelSeparator = None,
    split_column: SplitColumn = None,
    group_column: GroupColumn = None,
    fix: Annotated[
        Path | None,
        typer.Option("--fix", metavar="OUT", help="Write the cleaned list of images: a new .csv or .parquet file."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help=f"Exit code {FOUND} where a fault or a warning was found.")
    ] = False,
    seed: Seed = 0,
    cache: Cache = None,
    json: Json = False,
) -> None:
    """Only look at the data: decode every file, list what cannot be used and what is wrong with the rest."""
    console, watch = screen(json)
    from topwork import data, faults, terminal, workflow

    dataset, locked = workflow.check(
        folder, label_column, group_column, splits=split_column, image_column=image_column,
        label_separator=label_separator, fix=fix, seed=seed, cache=cache, watch=watch,
    )  # fmt: skip
    out = faults.left_out(dataset.faults)
    if json:
        print_json(data.facts(dataset, locked=locked, seed=seed))
    else:
        terminal.dataset(console, dataset, left_out=False)
        terminal.findings(console, faults.ranked((*out, *dataset.findings)))
        console.print(f"      Ready: the result will be measured {_on_what(locked)}.")
    if strict and any(f.severity != "note" for f in (*out, *dataset.findings)):
        raise typer.Exit(FOUND)


def demo(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Option("--folder", metavar="FOLDER", help="Where the demo's images and run go.")
    ] = Path("topwork-demo"),
    size: Annotated[int, typer.Option("--size", metavar="PX", help="Input size in px.")] = 96,
    json: Json = False,
) -> None:
    """The main job on scikit-learn's handwritten digits, written out as image files."""
    from topwork.demo import write_digits

    images = folder / "digits"
    count = write_digits(images)
    if not json:
        print(f"{count:,} handwritten digits as image files in {images}/; now: topwork fit {images} --size {size}\n")  # noqa: T201
    number, out = 1, folder / "run"
    while out.exists():
        number += 1
        out = folder / f"run-{number}"
    # New layers alone: a minute's work, and digits turned around are other digits.
    fit(context, str(images), size=[str(size)], strategy=Strategy.head, out=out, cache=folder / "cache", json=json)


def _sizes(given: list[str] | None) -> list[Any] | None:
    """Numbers of px as numbers; what is none goes on as it is, to be told what is wrong with it."""
    return None if given is None else [int(s) if s.removeprefix("-").isdecimal() else s for s in given]


def _typed(context: typer.Context, name: str) -> bool:
    """Whether an option was given, rather than left at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _summary(run: Run) -> dict[str, Any]:
    """What `fit --json` prints."""
    r = run.record
    accuracy, several = r.metrics.accuracy, r.metrics.multi_label
    return {
        "run": str(run.path), "backbone": r.backbone.name, "size_px": r.plan.size_px, "cut": r.plan.cut,
        "kept_cost": r.plan.kept_cost, "cost_ms": r.plan.cost_ms, "strategy": r.plan.strategy,
        "accuracy": {"value": accuracy.value, "low": accuracy.low, "high": accuracy.high, "on": accuracy.on},
        "multi_label": None if several is None else {
            "mean_average_precision": several.mean_average_precision.value, "micro_f1": several.micro_f1.value,
            "macro_f1": several.macro_f1.value,
        },
        "cost_fe": r.spending.cost_fe, "seconds": r.spending.total_seconds,
        "warnings": [*r.warnings, *_left_out(len(r.data.faults))],
    }  # fmt: skip


def _left_out(count: int) -> list[str]:
    return [f"{count} files were left out; run.json lists them under data.faults"] if count else []


def _on_what(locked: str) -> str:
    return "out of sample on all images" if locked == "out-of-sample" else f"on the {locked}, which is locked"
