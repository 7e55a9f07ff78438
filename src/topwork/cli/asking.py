"""Commands that ask a model, or hand it on: predict, evaluate, explain, export, serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from topwork.cli.options import (
    Folder,
    Format,
    GroupColumn,
    ImageColumn,
    Json,
    LabelColumns,
    LabelSeparator,
    RunFolder,
    SplitColumn,
)
from topwork.cli.output import print_json, screen, utf8
from topwork.errors import MissingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from topwork.asking import Asked
    from topwork.records import Metrics


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
        console, watch = screen(True)
        done = batch.write(loaded, found, out, model=content(), rule=rule, watch=watch)
        went_on = f"; {done.before:,} of them were done before" if done.before else ""
        console.print(
            f"{out}: {done.images:,} images, {done.errors:,} without an answer{went_on}", highlight=False,
            soft_wrap=True, markup=False,
        )  # fmt: skip
        return
    answers = batch.answers(loaded, found, rule=rule)
    if json:
        print_json({"model": str(run), "classes": loaded.classes, "predictions": list(answers)})
    elif csv:
        import csv as writer

        rows = writer.writer(utf8())
        rows.writerow(batch.header(loaded.classes))
        rows.writerows(batch.cells(a, loaded.classes) for a in answers)
    else:
        console, _ = screen(json)
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
    console, watch = screen(json)
    from topwork import judging, terminal

    metrics, held_out = judging.judge(
        run, folder, label_column, group_column, splits=split_column, image_column=image_column,
        label_separator=label_separator, watch=watch,
    )  # fmt: skip
    if json:
        print_json(metrics)
        return
    terminal.faults(console, held_out.faults)
    _show_metrics(console, metrics)


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
    console, _ = screen(json)
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
        print_json({"model": str(run), "explanations": said})


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
    console, _ = screen(False)
    from topwork import elsewhere, terminal

    terminal.exported(console, elsewhere.export(run, to=to.value, out=out, data=data, force=force))


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
    console, _ = screen(False)
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


def _show_metrics(console: Console, metrics: Metrics) -> None:
    from topwork import terminal

    terminal.metrics(console, metrics)
    terminal.confusion(console, metrics)
    terminal.judged_trust(console, metrics)
