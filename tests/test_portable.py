"""What is written for other runtimes answers what PyTorch answers, or is not there, and says why."""

from __future__ import annotations

import io
import json
import pickletools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax

from conftest import Finished, as_backbone, tiny_network
from test_model import CLASSES, made, pictures, pixels
from topwork import model, portable, runtime
from topwork.engine import graph
from topwork.model import Model
from topwork.records import ModelFacts, decode
from topwork.zoo import Backbone

TINY = as_backbone(tiny_network())

MODELS: dict[str, Callable[[Backbone], Model]] = {
    "one depth": lambda lite: made(lite, lite.cuts[3].name),
    "several depths": lambda lite: made(lite, *(lite.cuts[k].name for k in (0, 2, 5))),
    "to the end": lambda lite: made(lite, lite.cuts[-1].name),
    "several labels": lambda lite: made(lite, lite.cuts[3].name, multi_label=True, thresholds=(0.3, 0.5, 0.6)),
    "residual": lambda _: made(TINY, "two", "four"),
}


@pytest.fixture(scope="module", params=MODELS)
def kept(request: pytest.FixtureRequest, lite: Backbone) -> Model:
    return MODELS[request.param](lite)


@pytest.fixture(scope="module")
def file(kept: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("portable") / "model.onnx"
    found = portable.write(kept, target, pixels(kept, pictures(5)))
    assert found.reason == ""
    return target


def run(file: Path, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, {"pixels": batch}), strict=True))


@pytest.mark.parametrize("count", [1, 3, 16])
def test_it_gives_what_the_model_gives_for_any_number_of_images(kept: Model, file: Path, count: int) -> None:
    """Raw outputs, by ONNX Runtime alone: other images than it was compared on."""
    batch = pixels(kept, pictures(count, seed=count))
    expected, got = kept.see(batch), run(file, batch)
    assert list(got) == ["scores", "probabilities", "features", *(f"map_{k}" for k in range(len(kept.facts.taps)))]
    np.testing.assert_allclose(got["scores"], expected.scores, atol=1e-4 * max(1, np.abs(expected.scores).max()))
    np.testing.assert_allclose(got["features"], expected.pooled, atol=1e-4 * np.abs(expected.pooled).max())
    for k, maps in enumerate(expected.maps):
        np.testing.assert_allclose(got[f"map_{k}"], maps, atol=1e-4 * np.abs(maps).max())
    calm = expected.scores.astype(float) / kept.facts.temperature
    shares = expit(calm) if kept.facts.multi_label else softmax(calm, axis=1)
    np.testing.assert_allclose(got["probabilities"], shares, atol=1e-5)


def test_it_holds_all_of_model_json_and_says_its_opset(kept: Model, file: Path, tmp_path: Path) -> None:
    stored = {p.key: p.value for p in onnx.load(file).metadata_props}
    kept.save(tmp_path / "model")
    assert stored["model.json"] == (tmp_path / "model" / "model.json").read_text()
    assert decode(stored["model.json"].encode(), ModelFacts, where="") == kept.facts
    assert [o.version for o in onnx.load(file).opset_import] == [int(stored["opset"])] == [graph.OPSET]


def test_it_is_a_sound_graph_of_standard_operations_and_no_pickle(file: Path) -> None:
    loaded = onnx.load(file)
    onnx.checker.check_model(loaded, full_check=True)
    assert {n.domain for n in loaded.graph.node} == {""}
    assert not any(t.external_data for t in loaded.graph.initializer)
    with pytest.raises(ValueError, match=r".*"):
        list(pickletools.genops(io.BytesIO(file.read_bytes())))


def test_where_it_is_found_depends_on_nothing_of_the_images(kept: Model, file: Path, tmp_path: Path) -> None:
    """What is compared does not get in: two runs on other images write the same bytes."""
    portable.write(kept, tmp_path / "other.onnx", pixels(kept, pictures(2, seed=9)))
    assert (tmp_path / "other.onnx").read_bytes() == file.read_bytes()


# ---- where it is not equal


@pytest.fixture
def small() -> Model:
    return made(TINY, "two", "four")


def bent(monkeypatch: pytest.MonkeyPatch, by: Callable[[Any], Any]) -> None:
    """What the other runtime gives is changed before it is compared."""
    real = runtime.Runtime.see
    monkeypatch.setattr(runtime.Runtime, "see", lambda self, batch: by(real(self, batch)))


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (lambda s: replace(s, scores=s.scores + 0.01), "scores differ by 0.01"),
        (lambda s: replace(s, scores=s.scores * np.nan), "finite"),
        (lambda s: replace(s, scores=s.scores[:, :2]), "expected"),
        (lambda s: replace(s, pooled=s.pooled * 1.1), "features differ"),
        (lambda s: replace(s, maps=(s.maps[0] * 1.1, s.maps[1])), "two differ"),
    ],
)
def test_what_differs_is_not_left_there(
    small: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: Callable[[Any], Any], said: str
) -> None:
    bent(monkeypatch, by)
    found = portable.write(small, tmp_path / "model.onnx", pixels(small, pictures(4)))
    assert said in found.reason
    assert found.bytes == 0
    assert not list(tmp_path.iterdir())


def test_another_class_is_told_even_within_the_tolerance(small: Model) -> None:
    """Two scores that are almost alike, the other one first."""
    batch = pixels(small, pictures(1))
    seen = small.see(batch)
    a, b = (replace(seen, scores=np.array([s], np.float32)) for s in ([0, 1, 1.00001], [0, 1.00001, 1]))
    difference, largest, wrong = portable.compared(lambda _: a, lambda _: b, small.facts, batch)
    assert difference == pytest.approx(1e-5, rel=0.1)
    assert largest == pytest.approx(1, abs=1e-4)
    assert wrong == "1 of 1 images get another class"


def test_a_label_more_is_told(small: Model) -> None:
    """Where an image may have several, each is one of its own."""
    facts = replace(small.facts, multi_label=True, thresholds=(0.5, 0.5, 0.5), temperature=1.0)
    seen = small.see(pixels(small, pictures(1)))
    a, b = (replace(seen, scores=np.array([[1, s, -1]], np.float32)) for s in (-1e-6, 1e-6))
    assert portable.compared(lambda _: a, lambda _: b, facts, pixels(small, pictures(1)))[2].startswith("1 of 1")
    assert portable.compared(lambda _: a, lambda _: a, facts, pixels(small, pictures(1)))[2] == ""


def test_large_scores_may_differ_in_proportion(small: Model) -> None:
    batch = pixels(small, pictures(1))
    seen = small.see(batch)
    a = replace(seen, scores=np.array([[50.0, 0, -100]], np.float32))
    for step, fine in [(0.009, True), (0.011, False)]:
        b = replace(a, scores=a.scores + np.float32(step))
        assert (portable.compared(lambda _: a, lambda _, b=b: b, small.facts, batch)[2] == "") is fine


def test_an_exporter_that_fails_ends_nothing(small: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operation\nand a long story")

    monkeypatch.setattr(graph, "write", broken)
    found = portable.write(small, tmp_path / "model.onnx", pixels(small, pictures(2)))
    assert found.reason == "could not be written: RuntimeError: no such operation"
    assert not list(tmp_path.iterdir())


def test_without_an_image_nothing_is_claimed(small: Model, tmp_path: Path) -> None:
    found = portable.write(small, tmp_path / "model.onnx", np.empty((0, 32, 32, 3), np.uint8))
    assert "no image" in found.reason
    assert not list(tmp_path.iterdir())


# ---- in a run


def test_every_run_has_one_that_is_proved_on_its_own_images(finished: Finished) -> None:
    facts = finished.run.record.onnx
    assert facts is not None
    assert facts.reason == ""
    assert facts.images == portable.IMAGES
    assert facts.difference is not None
    assert facts.difference <= portable.SAME
    assert facts.bytes == (finished.run.path / "model" / "model.onnx").stat().st_size
    assert json.loads((finished.run.path / "run.json").read_text())["onnx"]["opset"] == graph.OPSET
    files = sorted(finished.folder.rglob("*.*"))
    a, b = model.load(finished.run.path).predict(files), runtime.load(finished.run.path).predict(files)
    assert [x.label for x in a] == [x.label for x in b]
    assert finished.run.model.classes != CLASSES
