"""What does a finished run's folder hold, and how does it get there unharmed?

A folder is written beside its place and renamed at the end: whoever looks finds a whole run or none,
and nothing that exists is ever overwritten.
"""

from __future__ import annotations

import platform
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from topwork import card, model, pictures, portable, runtime, splits
from topwork.errors import DataError, LostError, TopworkError, UsageError
from topwork.files import write
from topwork.records import CutScore, Dataset, Metrics, ModelSize, Options, Plan, RunRecord, decode, encode

RUNS = Path("runs")
"""Where runs go that were given no folder."""


class Run:
    """A finished run: its folder, every fact, and the model."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        self.path = path
        self.record = record

    @property
    def plan(self) -> Plan:
        """What was decided, and why."""
        return self.record.plan

    @property
    def metrics(self) -> Metrics:
        """How good it is, with intervals."""
        return self.record.metrics

    @property
    def scores(self) -> tuple[CutScore, ...]:
        """The depth table."""
        return self.record.scores

    @property
    def card(self) -> str:
        """The model card as it is drawn from the record: Markdown, with metadata as the Hugging Face hub reads it."""
        return card.text(self.record)

    @cached_property
    def model(self) -> model.Model:
        """The saved model, loaded from the run's folder."""
        return model.load(self.path)


def load_run(path: str | Path) -> Run:
    """Open a finished run. Raises DataError where there is none."""
    file = Path(path) / "run.json"
    if not file.is_file():
        raise DataError(f"{path}: no run in it (no run.json); `topwork fit FOLDER --out {path}` makes one")
    return Run(Path(path), decode(file.read_bytes(), RunRecord, where=str(file)))


def waiting(target: Path) -> Path:
    """Where an unfinished run keeps what --resume needs: its options and the journal of its training."""
    return target.with_name(f".{target.name}.resume")


def so_far(target: Path) -> Path:
    """Where a run that trains kept layers writes what it has before: a whole run, there until that one is done."""
    return waiting(target) / "so-far"


@contextmanager
def resumable(target: Path, options: Options) -> Iterator[Path]:
    """Keep the options beside the run's place while it is under way, so that it can be resumed.

    Whatever ends it, but success or an error that would only come again, leaves them there.
    """
    folder = waiting(target)
    fresh = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {target}: cannot be made there ({error.strerror}); name another folder") from error
    write(folder / "options.json", encode(options))
    try:
        yield folder
    except TopworkError as error:
        # What an earlier interruption left is not lost because its images are out of reach today.
        if fresh and not isinstance(error, LostError):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def unfinished(target: Path) -> Options:
    """The options of an interrupted run. Raises DataError where there is none, or where it is finished."""
    file = waiting(target) / "options.json"
    if target.exists():
        raise DataError(f"--resume {target}: that run is finished; `topwork predict {target} ...` uses it")
    if not file.is_file():
        raise DataError(f"--resume {target}: no interrupted run waits there (no {file}); start it with `topwork fit`")
    return decode(file.read_bytes(), Options, where=str(file))


def free_folder(source: str, out: str | Path | None) -> Path:
    """Where a run goes: `out`, or runs/NAME after the images' folder or table; never a folder that exists."""
    if out is not None:
        target = Path(out)
        if target.exists():
            raise UsageError(f"--out {target}: exists already and is not overwritten; name another folder")
        if waiting(target).exists():
            raise UsageError(
                f"--out {target}: an interrupted run waits there; go on with `topwork fit --resume {target}`,"
                f" name another folder, or delete {waiting(target)}"
            )
        return target
    path = Path(source)
    if "://" in source:
        path = Path(source.rpartition("://")[2])
    elif path.is_dir():
        path = path.resolve()
    name = (path.name if path.is_dir() else path.stem) or "run"
    target, count = RUNS / name, 1
    while target.exists() or waiting(target).exists():
        count += 1
        target = RUNS / f"{name}-{count}"
    return target


def save(
    target: Path,
    complete: Callable[[ModelSize], RunRecord],
    kept: model.Model,
    paths: Sequence[str],  # (n,) of the judged images
    labels: NDArray[Any],  # (n,), or (n, C) bool where an image may have several
    scores: NDArray[np.float64],  # (n, C) out of sample, before the temperature
    dataset: Dataset,  # all usable images, with their parts and groups
    *,
    decided: NDArray[np.bool_] | None = None,  # (n, C) labels that were given, where there may be several
    alike: tuple[Sequence[str], Sequence[str]] | None = None,  # paths and labels of the images that it knows, in order
    pixels: NDArray[np.uint8] | None = None,  # (some, h, w, 3) of real images; None: no model.onnx
    anew: bool = False,  # in place of the run that is there, which is one of the same
) -> Run:
    """Write everything aside, then rename. `complete` gives the record once the saved model's size is known.

    model.onnx goes into the model's folder where on `pixels` it gives what the model gives.
    Raises UsageError where the folder exists by now, unless `anew`.
    """
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    before = aside.with_name(f"{aside.name}.before")
    aside.mkdir(parents=True)
    try:
        kept.save(aside / "model")
        onnx = None if pixels is None else portable.write(kept, aside / "model" / runtime.FILE, pixels)
        record = replace(complete(model.size(kept, aside / "model")), onnx=onnx)
        _write_predictions(aside / "predictions.parquet", kept, paths, labels, scores, decided, on=record.data.locked)
        splits.write(aside / splits.NAME, dataset, record.data.locked)
        if alike is not None:
            _write_known(aside / "known.parquet", *alike)
        (aside / "model" / card.NAME).write_text(card.text(record), encoding="utf-8", newline="\n")
        (aside / "run.json").write_bytes(encode(record))
        if sum(bool(s.scores) for s in record.backbones) > 1:
            pictures.write(aside / "depth.svg", record.backbones, record.plan)
        if target.exists() and not anew:  # made by someone else meanwhile
            raise UsageError(
                f"--out {target}: was made by something else meanwhile and is not overwritten; name another folder"
            )
        if target.exists():
            target.rename(before)
        aside.rename(target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if before.exists() and not target.exists():
            before.rename(target)
        raise
    shutil.rmtree(before, ignore_errors=True)
    return Run(target, record)


def versions() -> dict[str, str]:
    """Of Python and of every library that has a say in the numbers."""
    names = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _write_predictions(
    path: Path, kept: model.Model, paths: Sequence[str], labels: NDArray[Any], scores: NDArray[np.float64],
    decided: NDArray[np.bool_] | None, *, on: str,
) -> None:  # fmt: skip
    """One row per judged image: path, label, predicted class, its probability, all probabilities.

    Where images may have several labels: path, labels, labels that were given, all probabilities.
    """
    import pyarrow as pa  # noqa: PLC0415 (0.3 s to import)
    from pyarrow import parquet  # noqa: PLC0415

    metadata = {"classes": encode(kept.classes).decode(), "on": on}
    if decided is not None:
        columns = {
            "path": list(paths), "labels": _named(kept.classes, labels), "predicted": _named(kept.classes, decided),
            "probabilities": list(expit(scores / kept.facts.temperature)),
        }  # fmt: skip
        words = pa.list_(pa.field("element", pa.string()))
        schema = pa.schema(
            {
                "path": pa.string(), "labels": words, "predicted": words,
                "probabilities": pa.list_(pa.field("element", pa.float64())),
            }, metadata=metadata,
        )  # fmt: skip
        parquet.write_table(pa.table(columns, schema=schema), path)
        return
    probabilities = softmax(scores / kept.facts.temperature, axis=1)
    best = scores.argmax(axis=1)
    table = pa.table(
        {
            "path": list(paths),
            "label": [kept.classes[k] for k in labels],
            "predicted": [kept.classes[k] for k in best],
            "probability": probabilities[np.arange(len(best)), best],
            "probabilities": list(probabilities),
        },
        metadata=metadata,
    )
    parquet.write_table(table, path)


def _write_known(path: Path, paths: Sequence[str], labels: Sequence[str]) -> None:
    """One row per training image in model/known.safetensors, in its order: path, label."""
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    parquet.write_table(pa.table({"path": list(paths), "label": list(labels)}), path)


def _named(classes: tuple[str, ...], which: NDArray[np.bool_]) -> list[list[str]]:  # which: (n, C)
    return [[classes[k] for k in np.flatnonzero(row)] for row in which]
