"""How is a model asked without PyTorch?

ONNX Runtime, NumPy and Pillow alone (tests/test_runtime.py): model.onnx from a model's folder, the same pixels by the
same function, the same words. A file holds a graph and no code.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.answers import Seen
from topwork.asking import Asked
from topwork.errors import DataError, MissingError
from topwork.known import Known
from topwork.records import ModelFacts, decode

FILE = "model.onnx"

FACTS = "model.json"
"""The key in the file's metadata under which all of model.json stands."""


def outputs(facts: ModelFacts) -> list[str]:
    """What a model's graph gives, in order."""
    return ["scores", "probabilities", "features", *(f"map_{k}" for k in range(len(facts.taps)))]


class Runtime(Asked):
    """A model in ONNX Runtime, ready to predict. Threads may share it."""

    def __init__(self, facts: ModelFacts, session: Any, known: Known | None = None) -> None:
        self.facts = facts
        self.known = known
        self._session = session
        self._seen = ["scores", "features", *outputs(facts)[3:]]

    def see(self, batch: NDArray[np.uint8]) -> Seen:  # batch: (b, h, w, 3)
        """Scores, pooled features and the maps at every tap."""
        scores, pooled, *maps = self._session.run(self._seen, {"pixels": batch})
        return Seen(scores, pooled, tuple(maps))

    def glance(self, batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores (b, C) and pooled features (b, 2 channels of all taps) alone, of a batch (b, h, w, 3)."""
        scores, pooled = self._session.run(["scores", "features"], {"pixels": batch})
        return scores, pooled

    def logits(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:  # batch: (b, h, w, 3)
        """Scores before the temperature: (b, C). What only the others need is not brought out."""
        scores: NDArray[np.float32] = self._session.run(["scores"], {"pixels": batch})[0]
        return scores


def found(folder: str | Path) -> Path | None:
    """The graph of a run, of a model's folder, or the file itself; None where there is none."""
    folder = Path(folder)
    places = [folder] if folder.is_file() else [folder / FILE, folder / "model" / FILE]
    return next((p for p in places if p.is_file()), None)


def load(folder: str | Path, *, threads: int | None = None) -> Runtime:
    """Load model.onnx from a model's folder, from the run's folder around it, or from a file that was exported.

    `threads`: of one batch (default: as many as there are cores). Raises DataError where there is none, or one that is
    damaged or belongs to another model.json; MissingError without onnxruntime.
    """
    folder, file = Path(folder), found(folder)
    if file is None:
        raise DataError(
            f"{folder}: no {FILE} in it; expected a run's folder, or the model folder inside it. Where PyTorch is"
            f" installed, `topwork export {folder} --to onnx` makes one"
        )
    session = _session(file, threads)
    stored = session.get_modelmeta().custom_metadata_map.get(FACTS)
    if stored is None:
        raise DataError(f"{file}: not written by topwork (no {FACTS} in its metadata)")
    facts = decode(stored.encode(), ModelFacts, where=f"{file}, metadata")
    beside = file.with_name("model.json")
    if not folder.is_file() and beside.is_file():
        own = decode(beside.read_bytes(), ModelFacts, where=str(beside))
        if own != facts:
            raise DataError(f"{file}: of another model than {beside}; copy both from one run")
    wrong = _wrong(facts, session)
    if wrong:
        raise DataError(f"{file}: {wrong}")
    return Runtime(facts, session, None if folder.is_file() else Known.load(file.parent, 2 * facts.channels))


def _session(file: Path, threads: int | None) -> Any:
    try:
        import onnxruntime  # noqa: PLC0415 (so that its absence is told)
    except ImportError as error:
        raise MissingError(f"{file}: needs ONNX Runtime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.log_severity_level = 4  # what is wrong is raised
    # Threads that spin while they wait take the cores from the decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a dozen types of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file}: damaged, or not an ONNX file: {reason[:200]}") from error


def _wrong(facts: ModelFacts, session: Any) -> str | None:
    """What of the graph does not fit what the file says of itself."""
    side, channels = facts.preprocessing.crop_px, 2 * facts.channels
    wanted: dict[str, list[int]] = {"pixels": [side, side, 3], "scores": [len(facts.classes)], "features": [channels]}
    found = {x.name: x for x in (*session.get_inputs(), *session.get_outputs())}
    missing = [name for name in ["pixels", *outputs(facts)] if name not in found]
    if missing:
        return f"lacks {', '.join(missing)}"
    for name, shape in wanted.items():
        if list(found[name].shape[1:]) != shape:
            return f"{name} is {found[name].shape}, expected any number of {shape}"
    return None
