"""What can be said to more than one command, or as one of a few words."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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
