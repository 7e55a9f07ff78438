"""Whatever a model is written as answers the same, or is refused in words; nothing is overwritten."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topwork
from conftest import Finished
from test_model import made, pixels
from test_model import pictures as some_pictures
from topwork import elsewhere, portable, runtime
from topwork.errors import DataError, MissingError, TopworkError, UsageError
from topwork.records import Exported
from topwork.zoo import Backbone


@pytest.fixture
def pictures(finished: Finished) -> list[Any]:
    return sorted(finished.folder.rglob("*.*"))


def refused(kind: type[TopworkError], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(kind) as caught:
        topwork.export(*args, **kwargs)
    return str(caught.value)


def test_onnx_is_the_runs_own_file(finished: Finished, tmp_path: Path) -> None:
    found = topwork.export(finished.run.path, out=tmp_path / "leaves.onnx")
    assert (tmp_path / "leaves.onnx").read_bytes() == (finished.run.path / "model" / "model.onnx").read_bytes()
    record = finished.run.record.onnx
    assert record is not None
    assert (found.images, found.difference, found.bytes) == (record.images, record.difference, record.bytes)
    assert [p.name for p in tmp_path.iterdir()] == ["leaves.onnx"]


def test_a_run_without_one_gets_it_compared_anew(finished: Finished, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished.run.path, tmp_path / "run"))
    (run / "model" / "model.onnx").unlink()
    found = topwork.export(run, out=tmp_path / "model.onnx")
    assert found.images == portable.IMAGES
    assert found.difference is not None
    assert found.difference <= portable.SAME
    assert runtime.load(tmp_path / "model.onnx").facts == finished.run.model.facts


@pytest.mark.slow
@pytest.mark.parametrize("to", ["pt2", "openvino"])
def test_it_answers_the_same_there(finished: Finished, tmp_path: Path, to: str) -> None:
    """It was compared before it was kept; compared once more, by the files that are left."""
    if to == "openvino":
        pytest.importorskip("openvino")
    target = tmp_path / f"model{elsewhere.FORMATS[to]}"
    found = topwork.export(finished.run.path, to=to, out=target)
    assert found.images == portable.IMAGES
    assert found.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    kept = finished.run.model
    batch = np.stack([kept.load(f) for f in sorted(finished.folder.rglob("*.*"))[:3]])
    np.testing.assert_allclose(asked(to, target, batch), kept.logits(batch), atol=1e-4)
    np.testing.assert_allclose(asked(to, target, batch[:1]), kept.logits(batch[:1]), atol=1e-4)


def asked(to: str, file: Path, batch: Any) -> Any:
    if to == "pt2":
        import torch

        extra = {"model.json": ""}
        loaded = torch.export.load(str(file), extra_files=extra).module()
        assert '"classes"' in extra["model.json"]
        with torch.no_grad():
            return loaded(torch.from_numpy(batch))[0].numpy()
    import openvino

    model = openvino.Core().read_model(str(file))
    assert '"classes"' in str(model.get_rt_info(["model.json"]).value)
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"pixels": batch})["scores"]


def bend(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other format gives is not what PyTorch gives."""
    real = elsewhere._seen
    monkeypatch.setattr(elsewhere, "_seen", lambda arrays: replace(real(arrays), scores=real(arrays).scores + 0.5))


@pytest.mark.slow
def test_what_differs_is_not_kept(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bend(monkeypatch)
    assert "not equal" in refused(DataError, finished.run.path, to="pt2", out=tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


# ---- int8


@pytest.mark.slow
def test_int8_says_what_it_costs(finished: Finished, tmp_path: Path, pictures: list[Any]) -> None:
    found = topwork.export(finished.run.path, to="int8", out=tmp_path / "small.int8.onnx", force=True)
    whole = (finished.run.path / "model" / "model.onnx").stat().st_size
    assert found.smaller == whole / found.bytes == whole / (tmp_path / "small.int8.onnx").stat().st_size
    assert found.images == len(pictures)
    assert None not in (found.accuracy_change, found.change_low, found.change_high)
    assert found.change_low < found.accuracy_change < found.change_high  # type: ignore[operator]
    small = runtime.load(tmp_path / "small.int8.onnx")
    assert small.facts == finished.run.model.facts
    same = [
        a.label == b.label for a, b in zip(small.predict(pictures), finished.run.model.predict(pictures), strict=True)
    ]
    assert np.mean(same) == found.agreement
    kinds = {n.op_type for n in onnx.load(tmp_path / "small.int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert {d.name for d in onnx.load(tmp_path / "small.int8.onnx").graph.input} == {"pixels"}


@pytest.mark.slow
def test_int8_takes_a_third_and_keeps_the_outer_layers_as_they_are(lite: Backbone, tmp_path: Path) -> None:
    """Of a whole network; of a few first layers the steps' own sizes weigh as much as is spared."""
    kept = made(lite, lite.cuts[-1].name)
    batch = pixels(kept, some_pictures(16))
    graph, small = tmp_path / "model.onnx", tmp_path / "small.onnx"
    assert portable.write(kept, graph, batch).reason == ""
    elsewhere._quantise(graph, small, batch)
    assert small.stat().st_size < graph.stat().st_size / 3
    a, b = (runtime.load(f).logits(batch) for f in (graph, small))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.95
    nodes = onnx.load(small).graph.node
    inside = {n.op_type for n in nodes if any(x.endswith("DequantizeLinear_Output") for x in n.input)}
    assert inside <= {*elsewhere.QUANTISED, "QuantizeLinear", "GlobalAveragePool", "GlobalMaxPool", "Shape", "Pad"}


@pytest.fixture
def broken_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 8 bits it always gives the same class."""

    def quantise(graph: Path, file: Path, learnt: Any) -> None:
        loaded = onnx.load(graph)
        for node in loaded.graph.node:
            for k, name in enumerate(node.output):
                if name == "scores":
                    node.output[k] = "before"
        for node in loaded.graph.node:
            for k, name in enumerate(node.input):
                if name == "scores":
                    node.input[k] = "before"
        loaded.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1e6, 0, 0], np.float32), "bent"))
        loaded.graph.node.append(onnx.helper.make_node("Add", ["before", "bent"], ["scores"]))
        onnx.save(loaded, file)

    monkeypatch.setattr(elsewhere, "_quantise", quantise)


def test_int8_that_costs_more_than_a_point_is_refused(finished: Finished, tmp_path: Path, broken_int8: None) -> None:
    said = refused(DataError, finished.run.path, to="int8", out=tmp_path / "small.int8.onnx")
    assert "points of accuracy on 24 images" in said
    assert "--force" in said
    assert not list(tmp_path.iterdir())
    found = topwork.export(finished.run.path, to="int8", out=tmp_path / "small.int8.onnx", force=True)
    assert found.accuracy_change is not None
    assert found.accuracy_change < -0.5
    assert (tmp_path / "small.int8.onnx").is_file()


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_the_paired_interval_is_of_the_difference(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (np.array([float(p[k]) for p in pairs]) for k in (0, 1))
    change, low, high = elsewhere.paired(a, b)
    assert change == pytest.approx(b.mean() - a.mean())
    assert -1 <= low < high <= 1
    back = elsewhere.paired(b, a)
    assert back == pytest.approx((-change, -high, -low))
    assert elsewhere.paired(np.tile(a, 50), np.tile(b, 50))[2] - change <= high - change + 1e-9


def test_where_nothing_changes_the_interval_is_no_point() -> None:
    """Agresti and Min by hand: 98 images, none changed: 1.96 sqrt(1) / 100."""
    right = np.ones(98)
    assert elsewhere.paired(right, right) == pytest.approx((0, -0.01959964, 0.01959964))


# ---- what is refused


def test_nothing_is_overwritten(finished: Finished, tmp_path: Path) -> None:
    for ending in (".onnx", ".bin"):
        (tmp_path / f"mine{ending}").write_text("mine")
    assert "not overwritten" in refused(UsageError, finished.run.path, out=tmp_path / "mine.onnx")
    assert "not overwritten" in refused(UsageError, finished.run.path, to="openvino", out=tmp_path / "mine.xml")
    assert all(p.read_text() == "mine" for p in tmp_path.iterdir())


def test_what_is_no_format_or_no_name_is_told(finished: Finished, tmp_path: Path) -> None:
    assert "onnx, pt2" in refused(UsageError, finished.run.path, to="tensorrt")
    assert ".onnx" in refused(UsageError, finished.run.path, out=tmp_path / "model.pt2")
    assert "make it first" in refused(UsageError, finished.run.path, out=tmp_path / "nowhere" / "model.onnx")
    assert "--force" in refused(UsageError, finished.run.path, out=tmp_path / "m.onnx", force=True)


def test_a_missing_package_is_named_with_its_command(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    said = refused(MissingError, finished.run.path, to="litert", out=tmp_path / "model.tflite")
    assert "pip install litert-torch" in said
    assert not list(tmp_path.iterdir())


def test_images_that_are_gone_are_asked_for(finished: Finished, tmp_path: Path) -> None:
    """What cannot be compared is not written; where they lie now can be said."""
    run = Path(shutil.copytree(finished.run.path, tmp_path / "run"))
    (run / "model" / "model.onnx").unlink()
    said = refused(DataError, run, out=tmp_path / "m.onnx", data=tmp_path)
    assert "--data FOLDER" in said
    found = topwork.export(run, out=tmp_path / "m.onnx", data=finished.folder)
    assert isinstance(found, Exported)


def test_a_model_alone_says_that_its_run_is_needed(finished: Finished, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(finished.run.path / "model", tmp_path / "model"))
    (alone / "model.onnx").unlink()
    assert "the run's folder" in refused(DataError, alone, out=tmp_path / "m.onnx")
