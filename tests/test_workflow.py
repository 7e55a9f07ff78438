"""From a folder of labelled images to a saved model: whole, honest, repeatable, and never half done."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import topwork
from conftest import CLASSES, SIZE_PX, Finished, Log, write_photos
from topwork import measurement, zoo
from topwork.errors import DataError, TopworkError, UsageError
from topwork.records import Options, RunRecord, Spending

RUN_FILES = {
    "run.json",
    "report.html",
    "known.parquet",
    "predictions.parquet",
    "split.parquet",
    "explained.parquet",
    "embedding.parquet",
    "model/model.json",
    "model/model.safetensors",
    "model/model.onnx",
    "model/known.safetensors",
    "model/README.md",
}

HALF = 2e-3
"""Probabilities from the cache against those of the saved model: features are kept as float16, with 2^-11
relative rounding each, and a calibrated head sharpens them."""


loaded = functools.cache(zoo.load)


@pytest.fixture(autouse=True)
def one_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same backbone is loaded once for the whole file: a second of every fit."""
    monkeypatch.setattr(zoo, "load", loaded)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests that do not ask what is in it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def fit(tmp_path: Path, cache: Path) -> Callable[..., topwork.Run]:
    """The quickest fit: new layers alone, at 32 px."""

    def fitted(folder: Path, out: str = "run", **options: Any) -> topwork.Run:
        return topwork.fit(
            folder, out=tmp_path / out, **{"size": 32, "strategy": "head", "cache": cache, **options}
        )  # fmt: skip

    return fitted


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """train/ and test/ folders."""
    write_photos(tmp_path / "split" / "train", per_class=6)
    write_photos(tmp_path / "split" / "test", per_class=4, seed=1)
    return tmp_path / "split"


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def table(run: topwork.Run) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = parquet.read_table(run.path / "predictions.parquet").to_pydict()
    return rows


def timeless(record: RunRecord) -> RunRecord:
    """A record less its clock, its name, and what was in the cache before."""
    model = replace(record.model, latency_ms=0.0, whole_latency_ms=0.0)
    onnx = (
        None if record.onnx is None else replace(record.onnx, seconds=0.0, bytes=0)
    )  # model.json is in it, cost and all
    return replace(record, created="", name="", model=model, onnx=onnx, spending=Spending({}, 0, 0, 0, 0, 0))


def free_of_cost(value: Any) -> str:
    """A record as text, without measured seconds: costs in fields, and where they are quoted in words."""
    text = re.sub(r"(kept_cost|cost_share|cost_ms|forward_ms)=[0-9.e-]+", r"\1", repr(value))
    return re.sub(r"[0-9]+% of the (backbone's )?cost", "", text)


def weights(run: topwork.Run) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(run.path / "model" / "model.safetensors")
    return found


# ---------------------------------------------------------------------------------------------- what is left behind


def test_a_run_is_these_files_and_no_other(finished: Finished) -> None:
    assert files(finished.run.path) == RUN_FILES
    assert {p.name for p in finished.run.path.parent.iterdir()} == {"photos", "run", "cache"}


def test_nothing_in_a_run_is_pickled(finished: Finished) -> None:
    """Opening somebody's run must not run somebody's code: JSON, parquet of plain columns, bare tensors."""
    path = finished.run.path
    json.loads((path / "run.json").read_bytes())
    json.loads((path / "model" / "model.json").read_bytes())
    with safe_open(path / "model" / "model.safetensors", framework="np") as tensors:
        assert "head.weight" in set(tensors.keys())
    schema = parquet.read_schema(path / "predictions.parquet")
    assert {str(t) for t in schema.types} <= {"string", "double", "list<element: double>", "list<item: double>"}
    assert set(schema.metadata or {}) == {b"classes", b"on"}


def test_the_saved_predictions_are_those_of_the_metrics(finished: Finished) -> None:
    """Accuracy, confusion, log-loss and every class's numbers, counted anew from predictions.parquet."""
    rows, m, classes = table(finished.run), finished.run.metrics, finished.run.model.classes
    assert sorted(rows["path"]) == sorted(
        p.relative_to(finished.folder).as_posix() for p in finished.folder.rglob("*.*g")
    )
    assert rows["label"] == [path.split("/")[0] for path in rows["path"]]
    for i in range(len(rows["path"])):
        shares = rows["probabilities"][i]
        assert sum(shares) == pytest.approx(1)
        assert rows["probability"][i] == max(shares)
        assert rows["predicted"][i] == classes[int(np.argmax(shares))]
    right = [a == b for a, b in zip(rows["label"], rows["predicted"], strict=True)]
    assert m.naive_accuracy == pytest.approx(np.mean(right))
    pairs = list(zip(rows["label"], rows["predicted"], strict=True))
    assert [list(row) for row in m.confusion] == [[pairs.count((a, b)) for b in classes] for a in classes]
    own = [shares[classes.index(label)] for label, shares in zip(rows["label"], rows["probabilities"], strict=True)]
    assert m.log_loss == pytest.approx(-np.log(np.maximum(own, 1e-12)).mean())


def test_the_record_agrees_with_itself(finished: Finished) -> None:
    r = finished.run.record
    m, counts = r.metrics, {c.name: c.train + c.val + c.test for c in r.data.classes}
    assert counts == dict.fromkeys(CLASSES, 8)
    assert [c.name for c in m.per_class] == list(counts)
    assert [c.n for c in m.per_class] == [sum(row) for row in m.confusion] == list(counts.values())
    assert [c.predicted for c in m.per_class] == [sum(column) for column in zip(*m.confusion, strict=True)]
    assert m.accuracy.n == sum(map(sum, m.confusion)) == 24
    assert m.accuracy.on == r.data.locked == "out-of-sample"
    for share in (m.accuracy, m.balanced_accuracy):
        assert 0 <= share.low <= share.value <= share.high <= 1
    cuts = {s.cut: s for s in r.scores}
    assert list(cuts) == [c.name for c in r.backbone.cuts]
    assert r.plan.kept_cost == cuts[r.plan.cut].cost_share
    assert cuts[r.plan.best_cut].accuracy == max(s.accuracy for s in r.scores) == r.plan.similarity.best_accuracy
    assert r.plan.similarity.last_accuracy == r.scores[-1].accuracy
    assert cuts[r.plan.cut].deficit_high <= r.plan.delta == r.options.delta
    shares = [s.cost_share for s in r.scores]
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] <= 1
    assert [s.dims for s in r.scores] == [2 * c.channels for c in r.backbone.cuts]  # average and maximum of each


def test_the_record_says_what_made_it(finished: Finished) -> None:
    r = finished.run.record
    assert r.topwork == version("topwork")
    assert r.versions["torch"] == torch.__version__.split("+")[0] or r.versions["torch"] == version("torch")
    assert r.versions.keys() >= {"python", "torch", "torchvision", "timm", "numpy", "pillow"}
    assert r.backbone.fingerprint == zoo.load(size_px=SIZE_PX).fingerprint
    assert re.fullmatch(r"[0-9a-f]{32}", r.data.fingerprint)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", r.created)
    assert r.name == finished.run.path.name
    assert r.options == Options(
        str(finished.folder), ("efficientnet_lite0",), sizes=(SIZE_PX,), cache=str(finished.cache), strategy="head"
    )
    spent = r.spending
    assert spent.cost_fe == pytest.approx(spent.total_seconds / spent.fe_seconds)
    assert sum(spent.seconds.values()) <= spent.total_seconds
    assert spent.images_passed == 24


def test_the_model_says_what_the_run_says(finished: Finished) -> None:
    facts, r = finished.run.model.facts, finished.run.record
    assert facts.classes == tuple(c.name for c in r.data.classes)
    assert (facts.backbone, facts.cut, facts.fingerprint) == (r.backbone.name, r.plan.cut, r.backbone.fingerprint)
    assert (facts.preprocessing, facts.kept_cost) == (r.backbone.preprocessing, r.plan.kept_cost)
    assert (facts.temperature, facts.head, facts.accuracy) == (r.head.temperature, r.head.kind, r.metrics.accuracy)
    assert (facts.topwork, facts.versions) == (r.topwork, r.versions)


def test_a_run_opened_again_is_the_run(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (finished.run.path, str(finished.run.path)):
        again = topwork.load_run(path)
        assert again.record == finished.run.record
        assert (again.plan, again.metrics, again.scores) == (
            again.record.plan, again.record.metrics, again.record.scores
        )  # fmt: skip
    monkeypatch.chdir(finished.run.path)
    assert topwork.load_run(".").record == finished.run.record


@pytest.mark.parametrize("where", ["nowhere", "photos", "run/model"])
def test_what_is_no_run_is_refused(finished: Finished, where: str) -> None:
    with pytest.raises(DataError, match=r"no run in it .no run\.json.*topwork fit"):
        topwork.load_run(finished.run.path.parent / where)


def test_the_saved_model_knows_what_it_was_taught(finished: Finished) -> None:
    pictures = sorted(finished.folder.rglob("*.*g"))
    assert [p.label for p in finished.run.model.predict(pictures)] == [p.parent.name for p in pictures]


def test_the_model_folder_can_be_copied_anywhere(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs neither the run, nor the images, nor the original weights."""
    shutil.copytree(finished.run.path / "model", tmp_path / "elsewhere")
    monkeypatch.setattr("topwork.zoo.weights.read", lambda *_: pytest.fail("the original weights were read"))
    picture = finished.folder / "sand" / "000.png"
    (there,), (here,) = topwork.load(tmp_path / "elsewhere").predict(picture), finished.run.model.predict(picture)
    assert there == here


# ---------------------------------------------------------------------------------------------- again


def test_the_same_question_costs_no_pass_and_gives_the_same_answer(
    fit: Callable[..., topwork.Run], photos: Path
) -> None:
    one, two = fit(photos, "one"), fit(photos, "two")
    assert two.record.spending.images_passed == 0
    assert timeless(one.record) == timeless(two.record)
    assert table(one) == table(two)
    assert (one.path / "model/model.safetensors").read_bytes() == (two.path / "model/model.safetensors").read_bytes()


def test_a_fresh_pass_gives_the_same_answer_but_for_its_times(
    fit: Callable[..., topwork.Run], photos: Path, tmp_path: Path
) -> None:
    one, two = fit(photos, "one", cache=tmp_path / "1"), fit(photos, "two", cache=tmp_path / "2")
    assert two.record.spending.images_passed == 24
    no_cache = [replace(r.record, options=replace(r.record.options, cache=None)) for r in (one, two)]
    assert free_of_cost(timeless(no_cache[0])) == free_of_cost(timeless(no_cache[1]))
    assert table(one) == table(two)


def test_the_seed_deals_the_folds(fit: Callable[..., topwork.Run], photos: Path) -> None:
    """Another seed: other folds and another bootstrap, the same images, features and depth table."""
    one, two = fit(photos, "one").record, fit(photos, "two", seed=7).record
    assert one.data.fingerprint == two.data.fingerprint
    assert [s.accuracy for s in one.scores] == [s.accuracy for s in two.scores]
    assert (one.data.seed, two.data.seed) == (0, 7)


# ---------------------------------------------------------------------------------------------- what is locked


def swapped(test: Path) -> None:
    """Every test image gets another label."""
    first, *others = [test / name for name in CLASSES]
    first.rename(test / "aside")
    for here, there in zip(others, [first, *others[:-1]], strict=True):
        here.rename(there)
    (test / "aside").rename(others[-1])


def replaced(test: Path) -> None:
    """Every test image becomes another one."""
    shutil.rmtree(test)
    write_photos(test, per_class=2, seed=99, classes=tuple(reversed(CLASSES)))


@pytest.mark.parametrize(
    "change",
    [
        swapped,
        replaced,
    ],
)  # fmt: skip
def test_no_test_image_has_a_say_in_any_choice(
    fit: Callable[..., topwork.Run], split: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Other labels or other pictures in test/: other metrics, but the same plan and the same tensors."""
    other = shutil.copytree(split, tmp_path / "other")
    change(other / "test")
    topwork.measure(split, size=32, cache=tmp_path / "cache")  # all is passed first, so that costs are the same
    two = fit(other, "two", cache=tmp_path / "cache")
    one = fit(split, "one", cache=tmp_path / "cache")
    assert one.record.data.fingerprint != two.record.data.fingerprint
    assert one.metrics != two.metrics
    assert one.scores == two.scores
    assert one.record.head == two.record.head
    assert one.model.facts.temperature == two.model.facts.temperature
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(two)[name]), name
    assert one.plan == two.plan


def test_the_result_is_measured_on_the_test_folder_alone(fit: Callable[..., topwork.Run], split: Path) -> None:
    run = fit(split)
    assert run.record.data.locked == run.metrics.accuracy.on == "test folder"
    assert run.metrics.accuracy.n == 12
    assert run.metrics.naive_accuracy == run.metrics.accuracy.value  # nothing was chosen by it: nothing to take off
    rows = table(run)
    assert sorted(rows["path"]) == sorted(f"test/{name}" for name in files(split / "test"))
    for path, answer in zip(rows["path"], run.model.predict([split / p for p in rows["path"]]), strict=True):
        i = rows["path"].index(path)
        assert answer.label == rows["predicted"][i]
        assert list(answer.probabilities.values()) == pytest.approx(rows["probabilities"][i], abs=HALF)


def test_judging_the_test_folder_again_gives_the_runs_metrics(fit: Callable[..., topwork.Run], split: Path) -> None:
    run = fit(split)
    for folder in (split, split / "test"):  # of train/ and test/, only test/ is read
        judged, held_out = topwork.judge(run.path, folder)
        assert len(held_out.examples) == 12
        assert judged.confusion == run.metrics.confusion
        assert judged.per_class == run.metrics.per_class
        assert replace(judged.accuracy, on="") == replace(run.metrics.accuracy, on="")
        assert judged.log_loss == pytest.approx(run.metrics.log_loss, abs=0.02)  # float16 features, as HALF
        assert judged.calibration_error == pytest.approx(run.metrics.calibration_error, abs=0.02)


def test_judging_lists_what_it_could_not_decode(finished: Finished, photos: Path, damaged_png: bytes) -> None:
    (photos / "bark" / "broken.png").write_bytes(damaged_png)
    metrics, held_out = topwork.judge(finished.run.path, photos)
    assert metrics.accuracy.n == len(held_out.examples) == 24
    assert [f.path for f in held_out.faults] == ["bark/broken.png"]


def test_judging_nothing_that_can_be_decoded_is_an_error(
    finished: Finished, tmp_path: Path, damaged_png: bytes
) -> None:
    (tmp_path / "held" / "bark").mkdir(parents=True)
    (tmp_path / "held" / "bark" / "broken.png").write_bytes(damaged_png)
    with pytest.raises(DataError, match="none of its 1 images could be decoded"):
        topwork.judge(finished.run.path, tmp_path / "held")


# ---------------------------------------------------------------------------------------------- nothing is overwritten


@pytest.mark.parametrize("kind", ["folder", "file", "run"])
def test_what_exists_is_never_overwritten(finished: Finished, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "mine"
    if kind == "file":
        out.write_text("precious")
    else:
        shutil.copytree(finished.run.path, out) if kind == "run" else out.mkdir()
    before = {p: p.read_bytes() if p.is_file() else b"" for p in tmp_path.rglob("*")}
    with pytest.raises(UsageError, match=r"--out .*mine: exists already and is not overwritten; name another"):
        topwork.fit(finished.folder, size=SIZE_PX, out=out, cache=finished.cache)
    assert {p: p.read_bytes() if p.is_file() else b"" for p in tmp_path.rglob("*")} == before


def test_without_a_name_runs_are_numbered(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [
        str(topwork.fit(finished.folder, size=SIZE_PX, cache=finished.cache, strategy="head").path) for _ in range(2)
    ]
    assert names == ["runs/photos", "runs/photos-2"]
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"photos", "photos-2"}
    assert topwork.load_run("runs/photos-2").record.name == "photos-2"


class Meddler(Log):
    """A watch that does something when a fact is shown."""

    def __init__(self, when: str, what: Callable[[], object]) -> None:
        super().__init__()
        self.when, self.what = when, what

    def show(self, what: str, fact: object) -> None:
        super().show(what, fact)
        if what == self.when:
            self.what()


def test_a_folder_made_meanwhile_is_not_overwritten(
    fit: Callable[..., topwork.Run], photos: Path, tmp_path: Path
) -> None:
    def make() -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "mine.txt").write_text("precious")

    with pytest.raises(UsageError, match="made by something else meanwhile and is not overwritten"):
        fit(photos, watch=Meddler("plan", make))
    assert {p.name for p in tmp_path.iterdir()} == {"photos", "run"}
    assert files(tmp_path / "run") == {"mine.txt"}


# ---------------------------------------------------------------------------------------------- when it goes wrong


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("refused", ["topwork.model.save_file", "pyarrow.parquet.write_table"])
def test_a_full_disk_leaves_no_half_written_run_and_loses_nothing(
    fit: Callable[..., topwork.Run], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(refused, full_disk)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            fit(photos)
    assert {p.name for p in tmp_path.iterdir()} == {"photos", ".run.resume"}
    with pytest.raises(UsageError, match=r"an interrupted run waits there; go on with `topwork fit --resume "):
        fit(photos)
    run = topwork.resume(tmp_path / "run")
    assert run.record.spending.images_passed == 0
    assert files(run.path) == RUN_FILES
    assert {p.name for p in tmp_path.iterdir()} == {"photos", "run"}
    assert timeless(fit(photos, "whole").record) == timeless(run.record)


@pytest.mark.parametrize("when", ["data", "standings", "plan"])
def test_an_interruption_anywhere_can_be_resumed(
    fit: Callable[..., topwork.Run], photos: Path, tmp_path: Path, when: str
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(photos, seed=3, cut="blocks.1.0", watch=Meddler(when, interrupt))
    assert {p.name for p in tmp_path.iterdir()} == {"photos", ".run.resume"}
    run = topwork.resume(tmp_path / "run")
    assert (run.record.options.seed, run.plan.cut) == (3, "blocks.1.0")
    assert {p.name for p in tmp_path.iterdir()} == {"photos", "run"}


def test_an_error_that_would_only_come_again_leaves_nothing(
    fit: Callable[..., topwork.Run], photos: Path, tmp_path: Path
) -> None:
    calls: list[Callable[[], object]] = [
        lambda: fit(photos, backbone="resnet19"),
        lambda: fit(photos, cut="layer9"),
        lambda: fit(photos / "bark"),
        lambda: fit(tmp_path / "nowhere"),
        lambda: fit(photos, size=5),
        lambda: fit(photos, strategy="prayer"),
        lambda: topwork.resume(tmp_path / "run"),
    ]
    for call in calls:
        with pytest.raises(TopworkError):
            call()
    assert {p.name for p in tmp_path.iterdir()} == {"photos"}


def test_a_wrong_cut_is_told_before_the_pass(fit: Callable[..., topwork.Run], photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no cut 'layer9'; it has: bn1, blocks\.0\.0, "):
        fit(photos, cut="layer9", cache=tmp_path / "new")
    assert not (tmp_path / "new").exists()


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"strategy": "prayer"}, r"--strategy prayer: expected auto, head, suffix, full or surgical"),
    ({"delta": 1.0}, r"--delta 1\.0: expected a share of accuracy from 0 to below 1"),
    ({"delta": -0.01}, r"--delta -0\.01: expected"),
    ({"delta": float("nan")}, r"--delta nan: expected"),
    ({"lr": 0.0, "strategy": "auto"}, r"--lr 0\.0: expected a rate above 0"),
    ({"epochs": 0, "strategy": "auto"}, r"--epochs 0: expected 1 to 1000"),
    ({"budget": "soon", "strategy": "auto"}, r"--budget soon: expected seconds"),
    ({"budget": 0, "strategy": "auto"}, r"--budget 0: expected seconds"),
    ({"unfreeze": "bn1", "strategy": "full"}, r"--unfreeze bn1: --strategy full begins at the first block"),
    ({"unfreeze": "bn1"}, r"--unfreeze trains kept layers, which --strategy head leaves as they are"),
    ({"size": 31}, r"--size 31: expected 32 to 1024 px"),
    ({"backbone": "resnet19"}, r"'resnet19'; did you mean resnet18"),
    ({"seed": -1}, r"--seed -1: expected"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_an_option_out_of_range_is_refused_with_what_was_expected(
    fit: Callable[..., topwork.Run], photos: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fit(photos, **options)


def test_all_wrong_options_are_told_at_once(fit: Callable[..., topwork.Run], photos: Path) -> None:
    with pytest.raises(UsageError) as refused:
        fit(photos, strategy="auto", lr=-1.0, epochs=5000, budget="later")
    for part in ("--lr -1.0", "--epochs 5000", "--budget later"):
        assert part in str(refused.value)


# ---------------------------------------------------------------------------------------------- all sorts of folders


@pytest.mark.parametrize("count", [2, 17])
def test_any_number_of_classes_works(fit: Callable[..., topwork.Run], tmp_path: Path, count: int) -> None:
    names = tuple(f"kind {i:02d}" for i in range(count))
    run = fit(write_photos(tmp_path / "many", classes=names, per_class=3))
    assert run.model.classes == names
    assert len(run.metrics.confusion) == count
    assert run.metrics.accuracy.n == 3 * count
    assert topwork.load_run(run.path).record == run.record
    (answer,) = run.model.predict(tmp_path / "many" / names[-1] / "000.png")
    assert tuple(answer.probabilities) == names
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-6)


def test_a_class_of_two_images_among_larger_ones_works(fit: Callable[..., topwork.Run], photos: Path) -> None:
    write_photos(photos, classes=("rare",), per_class=2, seed=9)
    run = fit(photos)
    rare = run.metrics.per_class[run.model.classes.index("rare")]
    assert rare.n == 2
    assert topwork.load_run(run.path).record == run.record


@pytest.mark.parametrize("classes", [("bark", "sand"), CLASSES])
def test_two_images_a_class_are_enough_to_begin(
    fit: Callable[..., topwork.Run], tmp_path: Path, classes: tuple[str, ...]
) -> None:
    run = fit(write_photos(tmp_path / "few", classes=classes, per_class=2))
    assert topwork.load_run(run.path).record == run.record
    assert run.metrics.accuracy.high - run.metrics.accuracy.low > 0.3  # four to six images say little, and it is said


def test_faulty_files_are_left_out_and_listed(
    fit: Callable[..., topwork.Run], photos: Path, damaged_png: bytes
) -> None:
    """Those that a look shows, and those that only decoding shows."""
    (photos / "bark" / "broken inside.png").write_bytes(damaged_png)
    (photos / "bark" / "empty.jpg").touch()
    (photos / "sand" / "notes.txt").write_text("no picture")
    (photos / "weave" / ".hidden.png").write_bytes(b"")
    run = fit(photos)
    faults = {f.path: f for f in topwork.load_run(run.path).record.data.faults}
    assert faults.keys() == {"bark/broken inside.png", "bark/empty.jpg", "sand/notes.txt", "weave/.hidden.png"}
    assert all(f.kind and f.detail for f in faults.values())
    assert run.metrics.accuracy.n == 24
    assert not set(table(run)["path"]) & faults.keys()


def test_copies_are_told_and_count_once(fit: Callable[..., topwork.Run], photos: Path) -> None:
    """A copy in training would give its twin away: each is judged by a head that saw neither."""
    single = fit(photos, "single")
    for name in CLASSES:
        for i in range(4):
            original = photos / name / f"{2 * i:03d}.png"
            shutil.copy(original, photos / name / f"copy of {i}.png")
    run = fit(photos, "doubled")
    assert run.record.spending.images_passed == 0  # nothing in it is new
    (warning,) = run.record.warnings
    assert warning.startswith("12 images")
    assert run.metrics.accuracy.n == 36
    width = run.metrics.accuracy.high - run.metrics.accuracy.low
    if run.metrics.accuracy.value == single.metrics.accuracy.value:
        assert width >= single.metrics.accuracy.high - single.metrics.accuracy.low


def test_one_picture_over_and_over_is_nothing_to_learn_from(
    fit: Callable[..., topwork.Run], photos: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / "same" / name).mkdir(parents=True)
        for i in range(3):
            shutil.copy(photos / "bark" / "000.png", tmp_path / "same" / name / f"{i}.png")
    with pytest.raises(DataError):
        fit(tmp_path / "same")


def test_a_file_whose_name_is_no_text_ends_nothing(fit: Callable[..., topwork.Run], photos: Path) -> None:
    """Old archives unpack to such names."""
    name = os.fsdecode(b"caf\xe9.png")
    try:
        shutil.copy(photos / "bark" / "000.png", photos / "bark" / name)
    except OSError:
        pytest.skip("this file system takes only names that are text")
    run = fit(photos)
    assert topwork.load_run(run.path).record == run.record


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: [shutil.rmtree(p / c) for c in CLASSES[1:]], r"two classes are needed, 1 found \(only 'bark'\)"),
        (lambda p: [shutil.rmtree(p / c) for c in CLASSES], "two classes are needed, 0 found"),
        (lambda p: [f.unlink() for f in (p / "sand").glob("00[1-9]*")], "class 'sand' has 1 usable training image,"),
        (lambda p: [f.write_bytes(b"") for f in (p / "sand").iterdir()], "sand/000.png: empty"),
        (shutil.rmtree, "no such folder"),
    ],
    ids=["one class", "no class", "one image", "empty files", "no folder"],
)
def test_too_little_to_learn_from_is_told(
    fit: Callable[..., topwork.Run], photos: Path, spoil: Callable[[Path], object], message: str
) -> None:
    if "sand/000" in message:  # two classes are left: it works without the third
        spoil(photos)
        run = fit(photos)
        assert run.model.classes == ("bark", "weave")
        assert len(run.record.data.faults) == 8
        return
    spoil(photos)
    with pytest.raises(DataError, match=message) as refused:
        fit(photos)
    assert str(photos) in str(refused.value)


def test_images_that_prove_undecodable_in_the_pass_can_leave_too_little(
    fit: Callable[..., topwork.Run], tmp_path: Path, damaged_png: bytes
) -> None:
    photos = write_photos(tmp_path / "few", classes=("bark", "sand"), per_class=2)
    (photos / "sand" / "000.png").write_bytes(damaged_png)
    with pytest.raises(DataError, match=r"(?s)class 'sand' has 1 usable.*sand/000\.png: "):
        fit(photos)
    assert {p.name for p in tmp_path.iterdir()} == {"few"}


def test_check_decodes_every_pixel_and_saves_nothing(photos: Path, tmp_path: Path, damaged_png: bytes) -> None:
    (photos / "bark" / "broken.png").write_bytes(damaged_png)
    before = files(tmp_path)
    dataset, locked = topwork.check(photos)
    assert [f.path for f in dataset.faults] == ["bark/broken.png"]
    assert len(dataset.examples) == 24
    assert locked == "out-of-sample"
    assert files(tmp_path) == before


def test_a_fit_says_and_keeps_what_is_wrong_with_its_images(fit: Callable[..., topwork.Run], photos: Path) -> None:
    """Before the pass what needs no decoding, after it the rest; and check says the same."""
    (photos / "sand" / "copy.png").write_bytes((photos / "bark" / "000.png").read_bytes())
    Image.new("RGB", (48, 48), (9, 9, 9)).save(photos / "bark" / "black.png")
    run = fit(photos, strategy="head")
    found = {f.kind: f.paths for f in run.record.data.findings}
    assert found["contradicting labels"] == ("bark/000.png", "sand/copy.png")
    assert found["one colour"] == ("bark/black.png",)
    dataset, _ = topwork.check(photos)
    assert {f.kind for f in dataset.findings} == found.keys()


# ---------------------------------------------------------------------------------------------- what may be asked for


def test_weights_without_the_classifier_are_enough(
    fit: Callable[..., topwork.Run], photos: Path, tmp_path: Path, lite: zoo.Backbone
) -> None:
    """The same cuts give the same accuracies; only what the old classes would tell of the task is missing."""
    whole = {n: t for s in lite.chain.segments for n, t in s.state_dict().items()}
    save_file({n: t.contiguous() for n, t in whole.items() if "classifier" not in n}, tmp_path / "features.safetensors")
    run, full = fit(photos, "own", weights=tmp_path / "features.safetensors"), fit(photos, "full")
    assert run.record.backbone.weights == "features.safetensors"
    assert run.record.backbone.source_classes == 0
    assert run.record.backbone.fingerprint != full.record.backbone.fingerprint
    assert (run.plan.similarity.source_confidence, run.plan.similarity.source_spread) == (None, None)
    assert full.plan.similarity.source_confidence is not None
    assert [s.accuracy for s in run.scores] == [s.accuracy for s in full.scores]
    assert fit(photos, "again", weights=tmp_path / "features.safetensors").record.spending.images_passed == 0


def test_a_given_cut_is_taken(fit: Callable[..., topwork.Run], photos: Path) -> None:
    run = fit(photos, cut="blocks.2.0")
    assert run.plan.cut == run.model.facts.cut == "blocks.2.0"
    assert run.plan.kept_cost == next(s.cost_share for s in run.scores if s.cut == "blocks.2.0")
    assert run.plan.decided
    assert any("as asked" in reason for reason in run.plan.reasons)
    assert not [name for name in weights(run) if name.startswith("layers.blocks.3")]  # nothing after the cut is kept


def test_what_may_be_lost_decides_how_early_the_cut_is(fit: Callable[..., topwork.Run], photos: Path) -> None:
    names = [s.cut for s in fit(photos, "none", delta=0.0).scores]
    cuts = [fit(photos, f"d{delta}", delta=delta).plan.cut for delta in (0.0, 0.3, 0.99)]
    places = [names.index(cut) for cut in cuts]
    assert places == sorted(places, reverse=True)
    assert places[-1] == 0


def test_the_watch_is_told_the_facts_in_the_order_they_come(finished: Finished) -> None:
    told = list(finished.log.shown)
    assert [t for t in told if t in {"data", "backbone", "standings", "plan", "run"}] == [
        "data", "backbone", "standings", "plan", "run"
    ]  # fmt: skip
    assert finished.log.shown["standings"] == finished.run.record.backbones
    assert finished.log.shown["run"] is finished.run
    stages = [stage for stage, _ in finished.log.stages]
    assert stages[:3] == ["look", "pass", "probe"]
    assert finished.log.steps == sum(total for _, total in finished.log.stages)


def test_measure_gives_what_fit_decides_by(finished: Finished) -> None:
    survey = topwork.measure(finished.folder, size=SIZE_PX, cache=finished.cache)
    (measured,), (scores,) = survey.measured, survey.scores
    assert [(s.cut, s.accuracy, s.ridge) for s in scores] == [(s.cut, s.accuracy, s.ridge) for s in finished.run.scores]
    assert measured.features.passed == 0
    for k, score in enumerate(scores):
        assert measured.features.at(k).shape == (24, score.dims)
        assert measured.evidence.correct[:, k].mean() == score.accuracy


def test_auto_tells_what_it_found_out_about_training(fit: Callable[..., topwork.Run], photos: Path) -> None:
    """Whether or not anything was trained: the record says what was tried and why it was left or taken."""
    run = fit(photos, strategy="auto", budget="1s")
    tuning = run.record.tuning
    assert tuning is not None
    assert tuning.reason
    assert tuning.budget_seconds == 1
    assert tuning.replaced == (run.plan.strategy != "head")
    assert any(tuning.reason.rstrip(".") in reason for reason in run.plan.reasons)
    assert fit(photos, "head").record.tuning is None


@pytest.mark.slow
def test_a_trained_run_is_judged_on_what_it_never_saw(
    fit: Callable[..., topwork.Run], split: Path, tmp_path: Path, lite: zoo.Backbone
) -> None:
    """The saved model is the judged one; its frozen layers are the backbone's, its trained ones are not."""
    run = fit(split, strategy="suffix", cut="blocks.2.1", unfreeze="blocks.2.0", epochs=2, lr=0.01)
    assert (run.plan.strategy, run.plan.cut) == ("suffix", "blocks.2.1")
    assert run.plan.recipe is not None
    assert (run.plan.recipe.unfreeze, run.plan.recipe.epochs, run.plan.recipe.lr) == ("blocks.2.0", 2, 0.01)
    assert run.record.tuning is not None
    assert run.record.tuning.replaced
    rows = table(run)
    assert {path.split("/")[0] for path in rows["path"]} == {"test"}
    judged, _ = topwork.judge(run.path, split)
    assert judged.confusion == run.metrics.confusion
    for answer, shares in zip(run.model.predict([split / p for p in rows["path"]]), rows["probabilities"], strict=True):
        assert list(answer.probabilities.values()) == pytest.approx(shares, abs=0.02)  # activations are float16 too
    own = {f"layers.{n}": t for s in lite.chain.segments for n, t in s.state_dict().items()}
    saved = weights(run)
    changed = {n for n in saved.keys() & own.keys() if n.endswith("weight") and not torch.equal(saved[n], own[n])}
    assert changed
    assert all(n.startswith("layers.blocks.2.") for n in changed)
    assert files(run.path) == RUN_FILES
    assert {p.name for p in tmp_path.iterdir()} == {"split", "run"}


# ---------------------------------------------------------------------------------------------- several depths


def test_a_head_of_several_depths_answers_on_locked_images_as_it_was_judged(
    fit: Callable[..., topwork.Run], split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On these pictures one depth is as good, so the test of its gain is passed by hand. Then: what is saved stands
    for what was measured, image by image, and the plan says what it costs."""
    monkeypatch.setattr(measurement.stack, "gain", lambda *_: (0.5, 0.4))
    run = fit(split)
    facts, plan = run.model.facts, run.plan
    assert run.record.head.kind == facts.head == "several depths"
    assert len(facts.taps) > 1
    assert facts.taps[-1] == facts.cut == plan.cut
    score = next(s for s in run.scores if s.cut == plan.cut)
    assert (plan.kept_cost, plan.cost_ms) == (score.cost_share, score.cost_ms)
    assert any(f"The deepest one, {plan.cut}, is what counts for the cost" in r for r in plan.reasons)
    rows = table(run)
    answers = run.model.predict([split / path for path in rows["path"]])
    assert len(answers) == 12
    for answer, label, shares in zip(answers, rows["predicted"], rows["probabilities"], strict=True):
        np.testing.assert_allclose(list(answer.probabilities.values()), shares, atol=5 * HALF)
        assert answer.label == label or sorted(shares)[-1] - sorted(shares)[-2] < 10 * HALF


def test_one_depth_is_one_depth(fit: Callable[..., topwork.Run], split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement.stack, "gain", lambda *_: (0.5, 0.4))
    for n, options in enumerate(({"several_depths": False}, {"cut": "bn1"})):
        run = fit(split, f"run{n}", **options)
        assert run.model.facts.taps == (run.plan.cut,)
        assert run.record.head.kind != "several depths"
