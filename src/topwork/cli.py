"""The front door: `topwork COMMAND`. Every room is imported when a command needs it, not before."""

from __future__ import annotations

import codecs
import errno
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from topwork.errors import MissingError, TopworkError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from topwork.asking import Asked
    from topwork.records import Metrics
    from topwork.runs import Run
    from topwork.watch import Watch

app = typer.Typer(
    name="topwork",
    help="Image classifiers from pretrained CNNs: measures where to cut the network and how sure the answer is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


IMAGES, NETWORK, TRAINING = "Images", "Network", "Training"
"""Panels of a command's help, so that thirty options are not one list."""


class Strategy(StrEnum):
    """How the kept layers are treated."""

    auto = "auto"
    head = "head"
    suffix = "suffix"
    full = "full"
    surgical = "surgical"


class Format(StrEnum):
    """In which a model can be written."""

    onnx = "onnx"
    pt2 = "pt2"
    openvino = "openvino"
    litert = "litert"
    coreml = "coreml"
    int8 = "int8"


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""

FOUND = 5
"""Exit code of `check --strict` where a fault or a warning was found."""

Images = typer.Argument(
    metavar="FOLDER",
    help="Images: one folder per class, or train/ plus val/ and test/ of such; a CSV, TSV, JSON Lines or Parquet table;"
    " a Hugging Face folder; or an address such as s3://...",
    show_default=False,
)
Folder = Annotated[str, Images]
ImageColumn = Annotated[
    str | None,
    typer.Option(
        "--image-column",
        metavar="NAME",
        rich_help_panel=IMAGES,
        help="A table's column of paths or of image bytes (else guessed).",
    ),
]
LabelColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--label-column",
        metavar="NAME",
        rich_help_panel=IMAGES,
        help="A table's column of labels (else guessed). Given several times: a class each, with 0 or 1.",
    ),
]
LabelSeparator = Annotated[
    str | None,
    typer.Option(
        "--label-separator",
        metavar="SIGN",
        rich_help_panel=IMAGES,
        help="What stands between several labels in one cell.",
    ),
]
SplitColumn = Annotated[
    str | None,
    typer.Option(
        "--split-column", metavar="NAME", rich_help_panel=IMAGES, help="A table's column of train, val and test."
    ),
]
GroupColumn = Annotated[
    str | None,
    typer.Option(
        "--group-column",
        metavar="NAME",
        rich_help_panel=IMAGES,
        help="A table's column of what belongs together (patient, burst).",
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or the model/ inside it.")]
BackboneNames = Annotated[
    list[str],
    typer.Option(
        "--backbone",
        metavar="NAME",
        rich_help_panel=NETWORK,
        help="Pretrained network: `topwork backbones` lists them; timm's as timm:NAME. Several may be given;"
        " auto: all whose weights are at hand.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="PATH",
        rich_help_panel=NETWORK,
        help="Weights: a safetensors or state dict file (whole or features only), or a folder.",
    ),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        metavar="PX|auto",
        rich_help_panel=NETWORK,
        help="Input size in px (default: the backbone's own). Several may be given; auto: its own and half of it.",
    ),
]
Bursts = Annotated[
    bool,
    typer.Option(
        "--bursts/--no-bursts",
        rich_help_panel=IMAGES,
        help="Whether photos of one scene are looked for and kept on one side.",
    ),
]
SplitOf = Annotated[
    Path | None,
    typer.Option(
        "--split-of",
        metavar="RUN",
        rich_help_panel=IMAGES,
        help="Take the parts and groups of this earlier run (or split.parquet).",
    ),
]
Balance = Annotated[
    bool,
    typer.Option("--balance", rich_help_panel=TRAINING, help="Classes weigh alike, however many images they have."),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="TIME",
        rich_help_panel=TRAINING,
        help="Time for training, and for passes of --backbone auto: seconds, or 90s, 10m, 1h, 40fe.",
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="NUMBER", help="Decides all that is left to chance: the same gives the same.")
]
Delta = Annotated[
    float,
    typer.Option(
        "--delta", metavar="SHARE", rich_help_panel=NETWORK, help="Accuracy, 0 to 1, that a cheaper cut may cost."
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FOLDER",
        help="Where what was computed is kept (default: TOPWORK_CACHE or the user's cache).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def main() -> None:
    """Run the command line; a TopworkError ends it with its message and its own exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a letter that the terminal does not know ends nothing
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken EXIF and the like: what matters of it is a fault
    try:
        code = app(standalone_mode=False)
    except TopworkError as error:
        sys.stderr.write(f"topwork: {error}\n")
        raise SystemExit(error.exit_code) from error
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except ModuleNotFoundError as error:
        _not_installed(error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _disk_full(error)
        _usage_or_raise(error)
    if code == INTERRUPTED:  # typer gives it back for Ctrl-C instead of raising
        sys.stderr.write(
            "topwork: interrupted; what was computed is kept. A fit goes on with: topwork fit --resume RUN\n"
        )
    raise SystemExit(code or 0)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("topwork")
        except PackageNotFoundError:
            found = f"{version('topwork-runtime')} (runtime)"
        typer.echo(f"topwork {found}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which topwork this is.")
    ] = False,
) -> None:
    """Image classifiers from pretrained CNNs: measures where to cut the network and how sure the answer is."""


@app.command()
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
    console, watch = _screen(json)
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
        _print_json(_summary(run))
        return
    from topwork import terminal

    terminal.outcome(console, run.record, str(run.path))


@app.command()
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
    console, watch = _screen(json)
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
        _print_json(
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


@app.command()
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
    console, watch = _screen(json)
    from topwork import data, faults, terminal, workflow

    dataset, locked = workflow.check(
        folder, label_column, group_column, splits=split_column, image_column=image_column,
        label_separator=label_separator, fix=fix, seed=seed, cache=cache, watch=watch,
    )  # fmt: skip
    out = faults.left_out(dataset.faults)
    if json:
        _print_json(data.facts(dataset, locked=locked, seed=seed))
    else:
        terminal.dataset(console, dataset, left_out=False)
        terminal.findings(console, faults.ranked((*out, *dataset.findings)))
        console.print(f"      Ready: the result will be measured {_on_what(locked)}.")
    if strict and any(f.severity != "note" for f in (*out, *dataset.findings)):
        raise typer.Exit(FOUND)


@app.command()
def predict(
    run: RunFolder,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Image files, folders of them, or one table.")
    ],
    image_column: ImageColumn = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write a new .csv, .jsonl or .parquet file; the same call goes on after an interruption.",
        ),
    ] = None,
    sets: Annotated[
        float | None,
        typer.Option("--sets", metavar="LEVEL", help="Also name the classes it may be, so that this share is right."),
    ] = None,
    false_alarm: Annotated[
        float | None,
        typer.Option(
            "--false-alarm",
            metavar="RATE",
            help="Share of images of the classes that may be taken for none of these (default: as fitted, 0.05).",
        ),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="CSV on standard output.")] = False,
    json: Json = False,
) -> None:
    """Classes and probabilities of new images. A file that is no image gets a row with its error."""
    from topwork import batch
    from topwork.answers import Rule

    if out is not None:
        if csv or json:
            raise UsageError(f"--out {out} says the format by its ending; leave out {'--csv' if csv else '--json'}")
        batch.allowed(out)
    found = batch.of(images, image_column)
    loaded, content = _asked(run, many=len(found.names) > 1)
    rule = Rule.of(loaded.facts, sets=sets, false_alarm=false_alarm)
    if out is not None:
        console, watch = _screen(True)
        done = batch.write(loaded, found, out, model=content(), rule=rule, watch=watch)
        went_on = f"; {done.before:,} of them were done before" if done.before else ""
        console.print(
            f"{out}: {done.images:,} images, {done.errors:,} without an answer{went_on}", highlight=False,
            soft_wrap=True, markup=False,
        )  # fmt: skip
        return
    answers = batch.answers(loaded, found, rule=rule)
    if json:
        _print_json({"model": str(run), "classes": loaded.classes, "predictions": list(answers)})
    elif csv:
        import csv as writer

        rows = writer.writer(_utf8())
        rows.writerow(batch.header(loaded.classes))
        rows.writerows(batch.cells(a, loaded.classes) for a in answers)
    else:
        console, _ = _screen(json)
        from rich.markup import escape

        width = max(map(len, found.names))
        for a in answers:
            given = ", ".join(f"[bold]{escape(c)}[/]  {a.probabilities[c]:.1%}" for c in a.labels)
            answer = f"[red]{escape(a.error)}[/]" if a.error else given or "no label"
            ranked = sorted(a.probabilities.items(), key=lambda kv: -kv[1])
            second = [] if a.error else [(c, p) for c, p in ranked if c not in a.labels][:2]
            also = ", ".join(f"{escape(c)} {p:.1%}" for c, p in second)
            if a.unknown:
                answer = "[yellow]none of these[/]"
                also = f"unlike the images learnt from ({a.unknown_score:.2f}, over {rule.limit:.2f}); else {given}"
            if a.prediction_set is not None:
                also += f"{', ' if also else ''}one of: {escape(', '.join(a.prediction_set))}"
            console.print(
                f"{escape(a.source.ljust(width))}  {answer}" + (f"  [dim]{also}[/]" if also else ""),
                highlight=False, soft_wrap=True,
            )  # fmt: skip


@app.command()
def export(
    run: RunFolder,
    to: Annotated[
        Format,
        typer.Option(
            help="onnx: one graph; pt2: torch.export; openvino; litert; coreml; int8: ONNX in 8 bits, a quarter of the"
            " size."
        ),
    ] = Format.onnx,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The new file (default: the run's name, here).")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FOLDER", help="Where the run's images lie now, if not where they lay."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep int8 even where it costs more than a point of accuracy.")
    ] = False,
) -> None:
    """Write the model in another format, compared with PyTorch on the run's own images."""
    console, _ = _screen(False)
    from topwork import elsewhere, terminal

    terminal.exported(console, elsewhere.export(run, to=to.value, out=out, data=data, force=force))


@app.command()
def evaluate(
    run: RunFolder,
    folder: Folder,
    image_column: ImageColumn = None,
    label_column: LabelColumns = None,
    label_separator: LabelSeparator = None,
    split_column: SplitColumn = None,
    group_column: GroupColumn = None,
    json: Json = False,
) -> None:
    """Judge a saved model on labelled images that it has not seen."""
    console, watch = _screen(json)
    from topwork import judging, terminal

    metrics, held_out = judging.judge(
        run, folder, label_column, group_column, splits=split_column, image_column=image_column,
        label_separator=label_separator, watch=watch,
    )  # fmt: skip
    if json:
        _print_json(metrics)
        return
    terminal.faults(console, held_out.faults)
    _show_metrics(console, metrics)


@app.command()
def explain(
    run: RunFolder,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="Image files, or folders of them; or one table.")
    ],
    class_: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="The class to explain (default: the answer).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE|FOLDER", help="A new .png file, or a folder (default: the current one)."),
    ] = None,
    json: Json = False,
) -> None:
    """Where the model looked: a picture of each image with what speaks for the class and against it."""
    console, _ = _screen(json)
    from topwork import batch

    asked = batch.of(images)
    files = asked.names
    if out is not None and out.suffix.lower() == ".png" and not out.is_dir():
        if out.exists():
            raise UsageError(f"--out {out}: exists already and is not overwritten; name another file")
        if len(files) > 1:
            raise UsageError(f"--out {out}: one file for {len(files)} images; name a folder")
    from rich.markup import escape

    from topwork import explained
    from topwork.errors import ImageError

    said: list[dict[str, Any]] = []
    for file, found in zip(files, explained.each(run, files, class_, asked.read), strict=True):
        if isinstance(found, ImageError):
            said.append({"source": file, "error": str(found)})
            if not json:
                console.print(f"{escape(file)}  [red]{escape(str(found))}[/]", highlight=False, soft_wrap=True)
            continue
        picture = explained.draw(found, file, out)
        said.append(explained.told(found, picture))
        if not json:
            given = ", ".join(f"[bold]{escape(c)}[/]  {found.prediction.probabilities[c]:.1%}" for c in
                              found.prediction.labels) or "no label"  # fmt: skip
            strange = "  [yellow]unlike the images learnt from[/]" if found.prediction.unknown else ""
            also = f"  (explained: {escape(found.cls)}  {found.probability:.1%})" if class_ is not None else ""
            console.print(f"{escape(file)}  {given}{also}{strange}", highlight=False, soft_wrap=True)
            console.print(f"  picture  {escape(str(picture))}", highlight=False, soft_wrap=True)
            for n in found.nearest:
                console.print(f"  like     {escape(n.path)}  {escape(n.label)}  [dim]{n.similarity:.2f}[/]",
                              highlight=False, soft_wrap=True)  # fmt: skip
    if json:
        _print_json({"model": str(run), "explanations": said})


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there (default: report.html in the run).")
    ] = None,
) -> None:
    """Draw a run's page again: one HTML file that needs nothing else. Every fit leaves one."""
    console, _ = _screen(False)
    if out is not None and out.exists():
        raise UsageError(f"--out {out}: exists already and is not overwritten; name another file")
    from topwork import report as page

    console.print(str(page.write(run, out)), highlight=False, soft_wrap=True)


@app.command()
def serve(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs' folders; NAME=RUN calls a model by another name.")
    ],
    host: Annotated[str, typer.Option("--host", help="Where to listen; 0.0.0.0: for all who reach this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", help="0: any that is free.", min=0, max=65535)] = 8000,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", envvar="TOPWORK_KEY", help="What every request must send as `X-API-Key` (better: TOPWORK_KEY)."
        ),
    ] = None,
    max_bytes: Annotated[
        int, typer.Option("--max-bytes", metavar="BYTES", help="Of one image; a request may have twice as many.", min=1)
    ] = 32 * 2**20,
    max_pixels: Annotated[int, typer.Option("--max-pixels", metavar="PIXELS", help="Of one image.", min=1)] = (
        50_000_000
    ),
    max_images: Annotated[int, typer.Option("--max-images", help="Of one request.", min=1)] = 64,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", help="Images under way; what comes then is told to try again.", min=1)
    ] = 256,
    log: Annotated[bool, typer.Option("--log", help="A line for each request, on standard error.")] = False,
) -> None:
    """Answer over HTTP, and on a web page, what models say of images. Ctrl-C ends it, once what it took is answered."""
    console, _ = _screen(False)
    try:
        from topwork import serve as server
    except ModuleNotFoundError as error:
        raise MissingError(f"serve needs {error.name}; install it with: pip install 'topwork[serve]'") from error

    if key is not None and not (key.isascii() and key.isprintable() and key.strip()):
        raise UsageError("--key: expected letters, digits and signs of ASCII; HTTP headers hold no others")
    limits = server.Limits(
        request_bytes=2 * max_bytes, image_bytes=max_bytes, pixels=max_pixels, images=max_images, waiting=max_waiting
    )

    def ready(address: str) -> None:
        console.print(f"{address}   (Ctrl-C ends it)", highlight=False, soft_wrap=True)
        if host not in server.LOOPBACK and key is None:
            console.print("[yellow]Whoever reaches this machine can ask; --key asks for a key.[/]", soft_wrap=True)

    server.serve(
        runs, lambda folder: _asked(folder, many=False)[0], _remembered, host=host, port=port, key=key, limits=limits,
        ready=ready, log="info" if log else "warning",
    )  # fmt: skip


@app.command()
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
    console, _ = _screen(json)
    from topwork import comparison, terminal

    if out is not None:
        comparison.check(out)
    found = comparison.compare(runs, disagreements=disagreements)
    if out is not None:
        comparison.write(out, found)
    if json:
        _print_json(found)
        return
    terminal.comparison(console, found, comparison.rows(found), comparison.common(found), comparison.together(found))


@app.command()
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
    console, watch = _screen(json)
    from topwork import catalogue, zoo

    for name in pull or ():
        zoo.pull(name, watch)
    found = catalogue.backbones(
        [*(names or ()), *(pull or ())], timm=timm, weights=weights, at_hand=at_hand, measure=measure, watch=watch
    )
    if json:
        _print_json({"backbones": found})
        return
    catalogue.show(console, found)
    if not (timm or names or pull or at_hand):
        console.print("\nAnd timm's CNNs as timm:NAME; `topwork backbones --timm '*convnext*'` lists those that match.")


@app.command()
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


def _screen(json: bool) -> tuple[Console, Watch]:
    """A console for facts (standard error where standard output is for JSON) and a watch that draws on it."""
    from topwork.terminal import TerminalWatch, paper

    console = paper(stderr=json)
    return console, TerminalWatch(console)


def _show_metrics(console: Console, metrics: Metrics) -> None:
    from topwork import terminal

    terminal.metrics(console, metrics)
    terminal.confusion(console, metrics)
    terminal.judged_trust(console, metrics)


def _asked(run: Path, *, many: bool) -> tuple[Asked, Callable[[], str]]:
    """The model in ONNX Runtime, which is there in a moment, else in PyTorch; and what names its content.

    `many` images: each batch has one thread, since there are several batches at once.
    """
    from topwork import images, runtime

    file = runtime.found(run)
    if file is not None:
        return runtime.load(run, threads=1 if many else None), lambda: images.digest(file.read_bytes())
    from topwork import model
    from topwork.records import encode

    loaded = model.load(run)
    return loaded, lambda: images.digest(encode(loaded.facts))


def _remembered(run: Path, loaded: Asked) -> Any:
    """The training images that a run remembers, where they can be read."""
    from topwork.learnt import Learnt

    try:
        return Learnt.of(run, loaded.known)
    except ModuleNotFoundError:  # topwork-runtime without Parquet
        return None


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


def _print_json(facts: Any) -> None:
    from topwork.records import encode

    out = _utf8()
    out.write(encode(facts).decode())
    out.flush()


def _utf8() -> TextIO:
    """Standard output for programs: UTF-8 whatever the terminal takes (RFC 8259)."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        return sys.stdout
    sys.stdout.flush()
    writer: Any = codecs.getwriter("utf-8")
    stream: TextIO = writer(buffer, errors="backslashreplace")
    return stream


def _disk_full(error: OSError) -> NoReturn:
    where = f" for {error.filename}" if error.filename else ""
    sys.stderr.write(
        f"topwork: no space is left on the disk{where}; what was computed is kept. Free some, or keep features"
        " elsewhere with --cache and runs with --out, and start the same command again\n"
    )
    raise SystemExit(1) from error


def _not_installed(error: ModuleNotFoundError) -> NoReturn:
    """topwork-runtime comes without what training needs; a missing room of our own is a bug."""
    name = (error.name or "").partition(".")[0]
    if name in {"", "topwork"}:
        raise error
    sys.stderr.write(
        f"topwork: this needs {name}, which is not installed here (topwork-runtime leaves out what only training and"
        f" judging need): pip install topwork\n"
    )
    raise SystemExit(MissingError.exit_code) from error


def _usage_or_raise(error: Exception) -> NoReturn:
    """typer's own complaints about a call end with 2; anything else is a bug and shows its trace."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if show is None or code is None:
        raise error
    show()
    raise SystemExit(code) from error
