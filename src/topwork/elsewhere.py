"""How does a model run elsewhere: in which other formats can it be written, and does it answer the same there?

What is written is read back and asked about real images; where the answers differ from PyTorch's it is not left there.
Formats that cannot be run on this machine are written only where somebody asks for them, and say so.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from topwork import images, model, portable, runs, runtime, stores
from topwork.answers import Seen, answer, probabilities
from topwork.engine import pool
from topwork.errors import DataError, ImageError, MissingError, UsageError
from topwork.records import Exported, ModelFacts, RunRecord, encode
from topwork.splits import NAME as SPLIT
from topwork.statistics import Z95

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml", "litert": ".tflite", "coreml": ".mlpackage",
           "int8": ".int8.onnx"}  # fmt: skip
"""What `to` may be, and how the file's name ends."""

CALIBRATION = 200
"""Training images at most, whose activations say how wide the 8-bit steps are. They pass one by one."""

JUDGED = 1000
"""Judged images at most on which int8 is compared: their interval is narrow, and they are decoded once."""

WORST = 0.01
"""Accuracy that int8 may cost; where it costs more, it is written only on demand."""

QUANTISED = ("Conv", "Add", "Clip", "Relu", "MaxPool")
"""Operations that compute in 8 bits. The head stays in float32: it is small, and its scores are what is compared."""

TIMED = 5  # runs whose median is the speed

Pixels = NDArray[np.uint8]
See = Callable[[Pixels], Seen]


def export(
    run: str | Path,
    *,
    to: str = "onnx",
    out: str | Path | None = None,
    data: str | Path | None = None,
    force: bool = False,
) -> Exported:
    """Write a run's model in another format into a new file, compared with PyTorch on the run's own images.

    `to`: "onnx", "pt2" (torch.export), "openvino", "litert", "coreml", or "int8" (ONNX in 8 bits). `out`: default is
    the run's name with the format's ending, in the working folder. `data`: where the run's images lie now. `force`:
    int8 even where it costs more accuracy than WORST. Raises UsageError where `out` exists, MissingError without the
    format's package, DataError where the images are gone or the answers differ.
    """
    if to not in FORMATS:
        raise UsageError(f"--to {to}: expected one of {', '.join(FORMATS)}")
    if force and to != "int8":
        raise UsageError(f"--force is of int8; what differs in {to} is not equal, whatever it is wanted for")
    source = _Source(Path(run), data)
    target = Path(f"{source.name}{FORMATS[to]}") if out is None else Path(out)
    if not target.name.endswith(FORMATS[to].rpartition(".")[2]):
        raise UsageError(f"--out {target}: expected a name that ends in {FORMATS[to]}")
    beside = [target, target.with_suffix(".bin")] if to == "openvino" else [target]
    for file in beside:
        if os.path.lexists(file):
            raise UsageError(f"--out {file}: exists already and is not overwritten; name another file")
    if not target.parent.is_dir():
        raise UsageError(f"--out {target}: there is no folder {target.parent}; make it first")
    aside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        found = _WRITERS[to](source, aside / target.name, force)
        for file in sorted(aside.iterdir(), reverse=True):  # .xml after .bin: it is what is looked for
            if os.path.lexists(target.parent / file.name):
                raise UsageError(f"--out {file.name}: was made by something else meanwhile and is not overwritten")
            file.rename(target.parent / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return replace(found, file=str(target))


class _Source:
    """A run, its model, and its images."""

    def __init__(self, run: Path, data: str | Path | None) -> None:
        self.run, self._data = run, data
        folder = run if run.is_dir() else run.parent
        self.home = folder if (folder / "run.json").is_file() else folder.parent
        self.name = self.home.resolve().name if (self.home / "run.json").is_file() else folder.resolve().name

    @cached_property
    def model(self) -> model.Model:
        """In PyTorch."""
        return model.load(self.run)

    @cached_property
    def facts(self) -> ModelFacts:
        """All but its tensors."""
        return self.model.facts if runtime.found(self.run) is None else runtime.load(self.run).facts

    def pixels(self, judged: bool, most: int) -> tuple[Pixels, list[Any]]:
        """(n, h, w, 3) of images that were judged, or trained on, spread over all of them; and their labels.

        Raises DataError where there is no run around the model, or none of its images can be read.
        """
        if not (self.home / "run.json").is_file():
            raise DataError(f"{self.run}: a model alone; expected the run's folder, which says where its images lie")
        record: RunRecord = runs.load_run(self.home).record
        rows = _rows(self.home, judged)
        chosen = np.unique(np.linspace(0, max(0, len(rows) - 1), min(most, len(rows))).round().astype(int))
        root = str(self._data) if self._data is not None else record.data.root
        store = stores.opened(root)
        found, labels = [], []
        for i in chosen:
            path, label = rows[i]
            try:
                found.append(images.load(store.read(path), self.facts.preprocessing))
            except ImageError:
                continue
            labels.append(label)
        if not found:
            raise DataError(
                f"{self.run}: none of its {len(rows):,} images can be read under {root}; say with --data FOLDER where"
                " they lie now. What is written is compared on them"
            )
        return np.stack(found), labels


def _rows(home: Path, judged: bool) -> list[tuple[str, Any]]:
    """(path, label or labels) of the judged images, or (path, "") of those that were learnt from."""
    from pyarrow import parquet  # noqa: PLC0415 (0.3 s to import)

    if judged:
        table = parquet.read_table(home / "predictions.parquet").to_pydict()
        return list(zip(table["path"], table.get("label", table.get("labels", [])), strict=True))
    table = parquet.read_table(home / SPLIT, columns=["path", "part"]).to_pydict()
    return [(path, "") for path, part in zip(table["path"], table["part"], strict=True) if part == "train"]


def _compared(source: _Source, to: str, file: Path, see: See) -> Exported:
    """Raises DataError where it answers otherwise than PyTorch."""
    pixels, _ = source.pixels(judged=True, most=portable.IMAGES)
    difference, _, wrong = portable.compared(source.model.see, see, source.facts, pixels)
    if wrong:
        raise DataError(f"{to} of {source.run} is not equal to the model in PyTorch, and was not kept: {wrong}")
    size = sum(f.stat().st_size for f in file.parent.rglob("*") if f.is_file())
    return Exported(str(file), to, size, len(pixels), difference)


def _onnx(source: _Source, file: Path, _: bool) -> Exported:
    own = runtime.found(source.run)
    if own is not None:
        shutil.copyfile(own, file)
        record = runs.load_run(source.home).record if (source.home / "run.json").is_file() else None
        if (
            record is not None and record.onnx is not None and not record.onnx.reason
        ):  # it was compared when it was made
            runtime.load(file)
            o = record.onnx
            return Exported(str(file), "onnx", file.stat().st_size, o.images, o.difference)
        return _compared(source, "onnx", file, runtime.load(file).see)
    pixels, _labels = source.pixels(judged=True, most=portable.IMAGES)
    found = portable.write(source.model, file, pixels)
    if found.reason:
        raise DataError(f"onnx of {source.run} was not kept: {found.reason}")
    return Exported(str(file), "onnx", found.bytes, found.images, found.difference)


def _pt2(source: _Source, file: Path, _: bool) -> Exported:
    network = portable.Network(source.model, pool).eval()
    batch = torch.export.Dim("b", min=1, max=4096)
    with torch.no_grad(), _quiet():
        program = torch.export.export(network, (_noise(source.facts, 2),), dynamic_shapes=({0: batch},))
        program.example_inputs = None  # the rest is tensors and JSON
        torch.export.save(program, str(file), extra_files={runtime.FACTS: encode(source.facts).decode()})
        loaded = torch.export.load(str(file)).module()

    def see(pixels: Pixels) -> Seen:
        with torch.inference_mode():
            return _seen([x.numpy() for x in loaded(torch.from_numpy(pixels))])

    found = _compared(source, "pt2", file, see)
    return replace(found, note="torch.export.load may run code that a file brings: load only files that you trust")


def _openvino(source: _Source, file: Path, _: bool) -> Exported:
    openvino = _needed("openvino", "pip install 'topwork[openvino]'")
    with _as_onnx(source, file) as graph:
        converted = openvino.convert_model(str(graph))
    converted.set_rt_info(encode(source.facts).decode(), [runtime.FACTS])
    openvino.save_model(converted, str(file), compress_to_fp16=False)
    # Else processors with bfloat16 use it.
    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = runtime.outputs(source.facts)
    return _compared(source, "openvino", file, lambda x: _seen([compiled({"pixels": x})[n] for n in names]))


def _litert(source: _Source, file: Path, _: bool) -> Exported:
    """Images go one by one: the converter fixes their number."""
    litert = _needed("litert_torch", "pip install litert-torch")
    interpreter = _needed("ai_edge_litert.interpreter", "pip install ai-edge-litert")
    network = portable.Network(source.model, pool).eval()
    with torch.no_grad(), _quiet():
        litert.convert(network, (_noise(source.facts, 1),)).export(str(file))
    running = interpreter.Interpreter(str(file))
    signature = running.get_signature_runner()
    (given,) = signature.get_input_details()

    def see(pixels: Pixels) -> Seen:
        each = [signature(**{given: x[None]}) for x in pixels]
        names = sorted(each[0], key=lambda n: int(n.rpartition("_")[2]))  # output_0, output_1, ...
        return _seen([np.concatenate([one[n] for one in each]) for n in names])

    found = _compared(source, "litert", file, see)
    return replace(
        found, note="one image at a time; its outputs are in the order of model.onnx; model.json is not inside"
    )


def _coreml(source: _Source, file: Path, _: bool) -> Exported:
    """Written, and not run: only Apple's systems can. Pixels are float32, one image: it knows no bytes as numbers."""
    tools = _needed("coremltools", "pip install coremltools")
    network = portable.Network(source.model, pool).eval()
    with torch.no_grad(), _quiet():
        program = torch.export.export(network, (_noise(source.facts, 1).float(),)).run_decompositions({})
        converted = tools.convert(program, convert_to="mlprogram", compute_precision=tools.precision.FLOAT32)
        spec = converted.get_spec()
        given = [o.name for o in spec.description.output]
        for old, new in zip(given, runtime.outputs(source.facts), strict=True):
            tools.utils.rename_feature(spec, old, new)
        named = tools.models.MLModel(spec, weights_dir=converted.weights_dir)
    named.user_defined_metadata[runtime.FACTS] = encode(source.facts).decode()
    named.save(str(file))
    size = sum(f.stat().st_size for f in file.rglob("*") if f.is_file())
    return Exported(
        str(file), "coreml", size, 0, None,
        "written and not run: Core ML runs on Apple's systems alone. Compare it there before you rely on it",
    )  # fmt: skip


def _int8(source: _Source, file: Path, force: bool) -> Exported:
    with _as_onnx(source, file) as graph:
        learnt, _ = source.pixels(judged=False, most=CALIBRATION)
        judged, labels = source.pixels(judged=True, most=JUDGED)
        _quantise(graph, file, learnt)
        whole, small = (runtime.load(f, threads=1) for f in (graph, file))
        sizes = graph.stat().st_size, file.stat().st_size
    a, b = (_answers(r, judged) for r in (whole, small))
    change, low, high = paired(_right(a, labels, source.facts), _right(b, labels, source.facts))
    scores = [np.concatenate([r.logits(judged[i : i + 16]) for i in range(0, len(judged), 16)]) for r in (whole, small)]
    difference = float(np.abs(scores[0] - scores[1]).max())
    if change < -WORST and not force:
        raise DataError(
            f"int8 of {source.run} costs {-100 * change:.1f} points of accuracy on {len(judged):,} images"
            f" (95%: {-100 * high:.1f} to {-100 * low:.1f}); more than {100 * WORST:.0f} is not kept. --force keeps it"
        )
    agreement = float(np.mean([x == y for x, y in zip(a, b, strict=True)]))
    return Exported(
        str(file), "int8", sizes[1], len(judged), difference,
        f"calibrated on {len(learnt):,} training images", change, low, high, agreement,
        _ms(whole, judged) / _ms(small, judged), sizes[0] / sizes[1],
    )  # fmt: skip


def _quantise(graph: Path, file: Path, learnt: Pixels) -> None:
    """Static, per channel: the kept layers in 8 bits between normalisation and pooling."""
    import onnx  # noqa: PLC0415 (only where a graph is written)
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType  # noqa: PLC0415
    from onnxruntime.quantization import quantize_static as quantise  # noqa: PLC0415

    class Learnt(CalibrationDataReader):  # type: ignore[misc]
        """The training images, one by one."""

        def __init__(self) -> None:
            self.left = iter(learnt)

        def get_next(self) -> dict[str, Pixels] | None:
            """The next one."""
            one = next(self.left, None)
            return None if one is None else {"pixels": one[None]}

    loaded = onnx.load(graph)
    with _quiet():
        # Without reduce_range sums of products overflow on processors without VNNI (bench/LOG.md).
        quantise(
            loaded, str(file), Learnt(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=_outside(loaded),
        )  # fmt: skip
    written = onnx.load(file)
    kept = {p.key: p.value for p in loaded.metadata_props}
    onnx.helper.set_model_props(written, {**kept, "int8": json.dumps({"calibrated_on": len(learnt)})})
    onnx.save(written, file)


def _outside(loaded: Any) -> list[str]:
    """Nodes before the first convolution and after the first pooling to one value: normalisation and head.

    And those that compute with sizes (padding), which no rounding may touch.
    """
    kinds = [n.op_type for n in loaded.graph.node]
    first = kinds.index("Conv")
    pooled: set[str] = set()
    after = []
    for node in loaded.graph.node:  # in the order in which they run
        if node.op_type.startswith("Global") or pooled & set(node.input):
            pooled |= set(node.output)
            after.append(node.name)
    inside = {n.name for n in loaded.graph.node if n.op_type == "Conv"}  # of squeeze and excitation, too
    sizes: set[str] = set()
    constant = {t.name for t in loaded.graph.initializer}
    for node in loaded.graph.node:
        if node.op_type == "Constant":
            constant |= set(node.output)
        elif node.op_type == "Shape" or (sizes & set(node.input) and set(node.input) <= sizes | constant | {""}):
            sizes |= set(node.output)
            after.append(node.name)
    return [n.name for n in loaded.graph.node[:first]] + [n for n in after if n not in inside]


def paired(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean of b - a with its 95% interval; a, b: (n,) whether each image is right, or the share of its labels.

    Agresti and Min (2005): half an image is added to each kind of answer, so that it is no point where nothing changed.
    """
    d, n = b - a, len(a) + 2
    mean = float(d.sum() / n)
    half = Z95 * float(np.sqrt(max(0.0, (d**2).sum() + 1 - n * mean**2))) / n
    return float(d.mean()), max(-1.0, mean - half), min(1.0, mean + half)


def _answers(asked: runtime.Runtime, pixels: Pixels) -> list[tuple[str, ...]]:
    """The labels that each image gets."""
    found: list[tuple[str, ...]] = []
    for i in range(0, len(pixels), portable.IMAGES):
        shares = probabilities(asked.logits(pixels[i : i + portable.IMAGES]), asked.facts)
        found += [tuple(sorted(answer("", row, asked.facts).labels)) for row in shares]
    return found


def _right(given: Sequence[tuple[str, ...]], labels: Sequence[Any], facts: ModelFacts) -> NDArray[np.float64]:
    """Of each image the share of labels that are right: 0 or 1 where it has one."""
    if not facts.multi_label:
        return np.array([float(g == (label,)) for g, label in zip(given, labels, strict=True)])
    wrong = [len(set(g) ^ set(label)) for g, label in zip(given, labels, strict=True)]
    return 1 - np.array(wrong) / len(facts.classes)


def _ms(asked: runtime.Runtime, pixels: Pixels) -> float:
    """Milliseconds of one thread for one image."""
    took = []
    for _ in range(TIMED + 1):
        start = time.process_time()
        asked.logits(pixels[:8])
        took.append(1000 * (time.process_time() - start) / len(pixels[:8]))
    return float(np.median(took[1:]))


@contextmanager
def _as_onnx(source: _Source, file: Path) -> Iterator[Path]:
    """The model as a graph, beside the file that is made of it."""
    graph = file.parent / f".{uuid.uuid4().hex}.onnx"
    try:
        _onnx(source, graph, False)
        yield graph
    finally:
        graph.unlink(missing_ok=True)


def _noise(facts: ModelFacts, count: int) -> torch.Tensor:
    side = facts.preprocessing.crop_px
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)


def _seen(arrays: Sequence[NDArray[np.float32]]) -> Seen:
    scores, _, pooled, *maps = arrays
    return Seen(scores, pooled, tuple(maps))


def _needed(name: str, how: str) -> Any:
    from importlib import import_module  # noqa: PLC0415

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingError(f"{name.partition('.')[0]} is needed for this format and is not installed: {how}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn, in two ways, of what is compared afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


_WRITERS: dict[str, Callable[[_Source, Path, bool], Exported]] = {
    "onnx": _onnx, "pt2": _pt2, "openvino": _openvino, "litert": _litert, "coreml": _coreml, "int8": _int8,
}  # fmt: skip
