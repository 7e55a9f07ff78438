"""What is worth seeing of a run: chosen rightly, written whole, and never at the run's cost."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

import topwork
from conftest import SIZE_PX, Finished, Log, WritePhotos
from topwork import explained, explanation, images, runs, workflow
from topwork.errors import DataError, ImageError, UsageError
from topwork.explained import BATCH, MISTAKES, SHOWN, worth_seeing
from topwork.learnt import NEAREST, Learnt
from topwork.runs import Run


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 999), n=st.integers(0, 90), classes=st.integers(2, 5), accuracy=st.floats(0, 1))
def test_the_surest_mistakes_come_first_then_each_class_in_turn(
    seed: int, n: int, classes: int, accuracy: float
) -> None:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(classes, 0.3), n)
    given_ = np.eye(classes, dtype=bool)[shares.argmax(axis=1)]
    label = np.where(rng.random(n) < accuracy, shares.argmax(axis=1), rng.integers(0, classes, n))
    truth = np.eye(classes, dtype=bool)[label]
    found = worth_seeing(shares, truth, given_)
    rows = [i for i, _ in found]
    assert len(set(rows)) == len(rows) <= SHOWN
    assert all(k == shares[i].argmax() for i, k in found)
    wrong = [i for i in rows if label[i] != shares[i].argmax()]
    right = [i for i in rows if label[i] == shares[i].argmax()]
    assert rows == wrong + right
    assert len(wrong) == min(MISTAKES, int((label != shares.argmax(axis=1)).sum()))
    sure = shares.max(axis=1)
    assert list(sure[wrong]) == sorted(sure[wrong], reverse=True)
    others = [i for i in range(n) if label[i] != shares[i].argmax() and i not in wrong]
    assert not others or sure[others].max() <= sure[wrong].min()
    turns = Counter(int(label[i]) for i in right)
    there = Counter(int(k) for i, k in enumerate(label) if k == shares[i].argmax())
    for a in turns:  # no class has two more than another that has some left
        for b in there:
            assert turns[a] <= turns[b] + 1 or turns[b] == there[b]


def test_of_several_labels_what_was_given_falsely_comes_before_what_was_missed() -> None:
    shares = np.array([[0.9, 0.2, 0.1], [0.6, 0.7, 0.02], [0.1, 0.2, 0.05], [0.8, 0.7, 0.9]])
    given_ = shares > 0.5
    truth = np.array([[1, 0, 0], [1, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=bool)
    # The first is right; the second was given 1 (70%); the third misses 1 (80% off); the last was given 2 (90%).
    assert worth_seeing(shares, truth, given_) == [(3, 2), (2, 1), (1, 1), (0, 0)]


# -------------------------------------------------------------------------------------------- of a run


def table(run: Run, name: str) -> dict[str, list[object]]:
    found: dict[str, list[object]] = parquet.read_table(run.path / name).to_pydict()
    return found


def test_every_fit_leaves_maps_of_what_is_worth_seeing(finished: Finished) -> None:
    run = finished.run
    found = table(run, "explained.parquet")
    assert list(found) == ["path", "class", "rows", "columns", "map", "nearest", "similarity"]
    judged = table(run, "predictions.parquet")
    answer = dict(zip(judged["path"], judged["predicted"], strict=True))
    assert len(found["path"]) == min(SHOWN, len(answer)) > BATCH  # more than one batch of them
    for i, path in enumerate(found["path"]):
        assert found["class"][i] == answer[path]
        said = topwork.explain(run, finished.folder / str(path), answer[path])
        flat = np.array(found["map"][i])
        assert (found["rows"][i], found["columns"][i]) == said.map.shape
        np.testing.assert_allclose(flat.reshape(said.map.shape), said.map, atol=1e-4 * np.abs(said.map).max())
        assert path not in found["nearest"][i]


def test_every_fit_leaves_a_flat_map_of_its_images(finished: Finished) -> None:
    found = table(finished.run, "embedding.parquet")
    split = table(finished.run, "split.parquet")
    assert list(found) == ["path", "label", "x", "y"]
    assert dict(zip(found["path"], found["label"], strict=True)) == dict(
        zip(split["path"], split["label"], strict=True)
    )
    assert max(map(abs, [*found["x"], *found["y"]])) == pytest.approx(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("remembers", [True, False])
def test_written_again_it_is_the_same(finished: Finished, tmp_path: Path, remembers: bool) -> None:
    """From the run's folder alone, as for a trained model: what it does not remember passes through it once more."""
    copy = Run(Path(shutil.copytree(finished.run.path, tmp_path / "run")), finished.run.record)
    before, maps = table(copy, "embedding.parquet"), table(copy, "explained.parquet")
    kept, log = copy.model, Log()
    if not remembers:
        kept.known = None
    explained.write(copy, kept, watch=log)
    after, again = table(copy, "embedding.parquet"), table(copy, "explained.parquet")
    assert after["path"] == before["path"]
    for name in ("path", "class", "map") if not remembers else maps:
        assert again[name] == maps[name]
    explained.write(copy, kept)
    assert table(copy, "embedding.parquet") == after
    assert log.stages == [("explain", len(maps["path"]) + (0 if remembers else len(after["path"])))]
    assert log.steps == log.stages[0][1]


def test_of_many_images_a_part_of_every_class_is_mapped_and_judged_ones_first(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Run(Path(shutil.copytree(finished.run.path, tmp_path / "run")), finished.run.record)
    judged = parquet.read_table(copy.path / "predictions.parquet")
    parquet.write_table(judged.take([0, 9]), copy.path / "predictions.parquet")
    monkeypatch.setattr(explained, "MAPPED", 8)
    paths, labels = explained._mapped(copy, None)
    assert len(paths) == 8 and set(judged["path"].take([0, 9]).to_pylist()) <= set(paths)
    assert sorted(Counter(labels).values())[0] >= 2
    monkeypatch.setattr(explained, "MAPPED", 1)
    assert set(explained._mapped(copy, None)[0]) <= set(judged["path"].take([0, 9]).to_pylist())


def test_images_that_are_gone_are_left_out(finished: Finished, tmp_path: Path) -> None:
    from dataclasses import replace

    folder = Path(shutil.copytree(finished.folder, tmp_path / "photos"))
    record = replace(finished.run.record, data=replace(finished.run.record.data, root=str(folder)))
    copy = Run(Path(shutil.copytree(finished.run.path, tmp_path / "run")), record)
    gone = str(table(copy, "explained.parquet")["path"][0])
    (folder / gone).unlink()
    kept = copy.model
    kept.known = None
    explained.write(copy, kept)
    for name in ("explained.parquet", "embedding.parquet"):
        assert gone not in table(copy, name)["path"]
        assert len(table(copy, name)["path"]) == len(table(finished.run, name)["path"]) - 1


@pytest.mark.parametrize("pictures", [True, False])
def test_no_failure_here_loses_the_run_and_nothing_is_made_unasked(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: bool
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(explanation, "places", broken)
    log = Log()
    run = workflow.fit(
        finished.folder, size=SIZE_PX, strategy="head", out=tmp_path / "run", cache=finished.cache, watch=log,
        pictures=pictures,
    )  # fmt: skip
    assert run.metrics.accuracy == finished.run.metrics.accuracy
    assert (run.path / "report.html").exists() == pictures
    assert not (run.path / "explained.parquet").exists() and not (run.path / "embedding.parquet").exists()
    assert run.record.options.pictures == pictures
    assert not list(run.path.glob(".*"))
    told = str(log.shown.get("warnings", ""))
    assert ("RuntimeError: no luck" in told) == pictures


def test_a_page_that_cannot_be_drawn_loses_nothing(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("topwork.report.write", broken)
    log = Log()
    run = workflow.fit(
        finished.folder, size=SIZE_PX, strategy="head", out=tmp_path / "run", cache=finished.cache, watch=log
    )
    assert run.metrics.accuracy == finished.run.metrics.accuracy
    assert (run.path / "explained.parquet").exists()
    assert "OSError: no space" in str(log.shown["warnings"]) and f"topwork report {run.path}" in str(log.shown)


def test_images_from_memory_are_mapped_and_explained(tmp_path: Path) -> None:
    pixels, labels = made_images()
    log = Log()
    run = workflow.fit(
        pixels, labels, size=SIZE_PX, strategy="head", out=tmp_path / "run", cache=tmp_path / "cache", watch=log
    )
    assert "looked" not in str(log.shown.get("warnings", ""))
    assert len(table(run, "explained.parquet")["path"]) == len(table(run, "embedding.parquet")["path"]) == len(labels)


def made_images() -> tuple[np.ndarray, list[str]]:
    """Dark and light noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 120, (16, 40, 40, 3), dtype=np.uint8)
    pixels[8:] += 120
    return pixels, ["dark"] * 8 + ["light"] * 8


def test_a_trained_model_is_explained_too(make_photos: WritePhotos, tmp_path: Path) -> None:
    run = workflow.fit(
        make_photos(tmp_path / "photos", per_class=6), size=SIZE_PX, strategy="suffix", cut="blocks.1.1",
        unfreeze="blocks.1.1", epochs=1, out=tmp_path / "run", cache=tmp_path / "cache",
    )  # fmt: skip
    assert run.record.head.kind and run.model.facts.head == "trained"
    assert len(table(run, "embedding.parquet")["path"]) == 18
    assert set(table(run, "explained.parquet")["path"]) <= set(table(run, "predictions.parquet")["path"])
    found = topwork.explain(run, tmp_path / "photos" / "bark" / "000.png")
    pixels = images.load(tmp_path / "photos" / "bark" / "000.png", run.model.facts.preprocessing)
    scores = run.model.logits(np.stack([pixels]))
    scores = scores - scores.mean()
    assert found.score == pytest.approx(scores[0, run.model.classes.index(found.cls)], abs=1e-3)


# --------------------------------------------------------------------------------------------- neighbours


@pytest.fixture
def remembering(finished: Finished, tmp_path: Path) -> Run:
    """A copy of the run that may be changed."""
    return Run(Path(shutil.copytree(finished.run.path, tmp_path / "run")), finished.run.record)


def test_a_training_image_is_most_like_itself(remembering: Run, finished: Finished) -> None:
    for path, label in list(zip(*(table(remembering, "known.parquet")[k] for k in ("path", "label")), strict=True))[
        ::5
    ]:
        near = topwork.explain(remembering, finished.folder / str(path)).nearest
        assert (near[0].path, near[0].label) == (path, label)
        assert near[0].similarity == pytest.approx(1, abs=2e-3)
        assert len(near) == NEAREST
        assert [n.similarity for n in near] == sorted((n.similarity for n in near), reverse=True)


def test_the_files_hold_neighbours_other_than_the_image_itself(remembering: Run) -> None:
    explained.write(remembering, remembering.model)
    found = table(remembering, "explained.parquet")
    for path, near, similarity in zip(found["path"], found["nearest"], found["similarity"], strict=True):
        assert len(near) == len(similarity) == NEAREST  # type: ignore[arg-type]
        assert path not in near  # type: ignore[operator]


def test_by_the_run_by_its_folder_or_by_its_model_it_is_the_same(remembering: Run, finished: Finished) -> None:
    image = finished.folder / "bark" / "000.png"
    one, two, three = (topwork.explain(r, image) for r in (remembering, remembering.path, remembering.path / "model"))
    assert one.nearest == two.nearest == three.nearest != ()
    np.testing.assert_array_equal(one.map, three.map)


def test_a_model_without_its_run_has_maps_but_no_neighbours(
    remembering: Run, finished: Finished, tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(remembering.path / "model", tmp_path / "elsewhere" / "copied"))
    found = topwork.explain(alone, finished.folder / "bark" / "000.png")
    assert found.map.any() and found.nearest == ()


def test_what_it_remembers_of_other_images_is_refused(remembering: Run) -> None:
    parquet.write_table(parquet.read_table(remembering.path / "known.parquet")[:-1], remembering.path / "known.parquet")
    with pytest.raises(DataError, match="23 images, expected 24"):
        Learnt.of(remembering.path, remembering.model.known)
    (remembering.path / "known.parquet").write_text("no table")
    with pytest.raises(DataError, match="cannot be read"):
        Learnt.of(remembering.path, remembering.model.known)


def test_what_cannot_be_explained_is_told(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ImageError):
        topwork.explain(finished.run, tmp_path / "a.png")
    with pytest.raises(UsageError, match="no such class; expected bark"):
        topwork.explain(finished.run, tmp_path / "a.png", "bork")
    with pytest.raises(DataError, match="no model in it"):
        topwork.explain(tmp_path, tmp_path / "a.png")


# ---------------------------------------------------------------------------------------------- pictures


def test_a_picture_never_goes_over_another(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = topwork.explain(finished.run, finished.folder / "bark" / "000.png")
    places = [explained.draw(found, "x/leaf.jpg", out) for out in (None, None, Path("new"), Path("new"))]
    names = ["leaf-explained.png", "leaf-explained-2.png", "new/leaf-explained.png", "new/leaf-explained-2.png"]
    assert [str(p) for p in places] == names
    for place in places:
        with Image.open(place) as opened:
            assert opened.format == "PNG"
    explained.draw(found, "leaf.jpg", Path("mine.PNG"))
    with pytest.raises(UsageError, match="exists already"):
        explained.draw(found, "leaf.jpg", Path("mine.PNG"))
    with pytest.raises(UsageError, match="cannot be written"):
        explained.draw(found, "leaf.jpg", Path("mine.PNG/inside"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "leaf-explained-2.png",
        "leaf-explained.png",
        "mine.PNG",
        "new",
    ]
    assert runs.load_run(finished.run.path).record == finished.run.record
