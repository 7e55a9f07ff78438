"""On an accelerator: the CPU's numbers to its own rounding, nothing waited for in a loop, the same end after a stop.

Runs where PyTorch finds one; the rest of the suite computes on the CPU (conftest.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import topwork
from conftest import Log, labelled, tiny_network, write_photos
from test_train import FULL, LAST, SURGICAL, World, same, weights, world
from topwork import engine, features, replay, train, zoo
from topwork.engine import Engine, device, runtimes
from topwork.engine.race import SAME, difference

HERE = torch.accelerator.is_available()

pytestmark = [
    pytest.mark.skipif(not HERE, reason="needs an accelerator that PyTorch finds"),
    pytest.mark.usefixtures("there"),
]

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA tells when it is waited for")


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPWORK_DEVICE", "auto")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("accelerator") / "photos", per_class=16, size_px=64)


@pytest.fixture
def small(home: Path, tmp_path: Path) -> World:
    return world(tiny_network(), home, tmp_path / "cache")


@pytest.fixture
def unwaiting() -> Iterator[None]:
    """Whatever waits for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def pixels(n: int = 4, side: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("logits", [False, True])
def test_the_network_gives_the_cpus_features(logits: bool) -> None:
    backbone = zoo.load(size_px=64)
    there = Engine(backbone.chain.segments, backbone.preprocessing)
    here = Engine(backbone.chain.segments, backbone.preprocessing, on=torch.device("cpu"))
    assert there.device.type != "cpu"
    assert difference(there.see(pixels(), logits=logits), here.see(pixels(), logits=logits)) < SAME


@on_cuda
@pytest.mark.parametrize(("depth", "logits"), [(None, True), (None, False), (3, False)])
def test_a_recorded_batch_is_what_its_operations_give(depth: int | None, logits: bool) -> None:
    """Full batches and part of one, from several threads at once."""
    backbone = zoo.load(size_px=64)
    plain = Engine(backbone.chain.segments, backbone.preprocessing)
    segments = len(backbone.chain.segments) if depth is None else depth
    shares = np.full(segments, 1 / segments)
    recorded = runtimes.Recorded(plain, 8, shares, (64, 64), logits=logits, depth=depth)
    batches = [pixels(n, seed=n) for n in (8, 5, 1, 8, 7)]
    with ThreadPoolExecutor(3) as threads:
        pending = list(threads.map(recorded.submit, batches))
    for batch, p in zip(batches, pending, strict=True):
        seen = p.result()
        assert len(seen.pooled) == (len(backbone.cuts) if depth is None else depth)
        assert (seen.logits is not None) == logits
        assert difference(seen, plain.see(batch, depth, logits=logits)) < SAME / 2
        assert seen.seconds.shape == (segments,) and (seen.seconds > 0).all()


def test_a_batch_is_handed_over_without_waiting(request: pytest.FixtureRequest) -> None:
    backbone = zoo.load(size_px=64)
    found = Engine(backbone.chain.segments, backbone.preprocessing, precision=torch.float16)
    expected = found.see(pixels(), logits=True)
    if torch.cuda.is_available():
        request.getfixturevalue("unwaiting")
    pending = [found.submit(pixels(), logits=True) for _ in range(3)]
    torch.cuda.set_sync_debug_mode("default") if torch.cuda.is_available() else None
    for p in pending:
        seen = p.result()
        assert difference(seen, expected) == 0
        assert (seen.seconds > 0).all()


def test_a_pass_says_where_it_ran_and_gives_the_cpus_features(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, examples = zoo.load(size_px=64), labelled(home)
    log = Log()
    (there,) = features.measure([backbone], home, examples, cache=tmp_path / "there", watch=log)
    monkeypatch.setenv("TOPWORK_DEVICE", "cpu")
    (here,) = features.measure([backbone], home, examples, cache=tmp_path / "here")
    assert there.engine is not None and there.engine.device == torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    for k in range(len(backbone.cuts)):
        a, b = there.at(k), here.at(k)
        assert np.abs(a - b).max() <= 2 * SAME * np.abs(b).max(), backbone.cuts[k].name


@pytest.mark.parametrize("recipe", [LAST, FULL, SURGICAL], ids=lambda r: r.strategy)
def test_training_goes_where_the_cpus_goes(small: World, recipe: train.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    there = small.train(recipe)
    assert next(there.network.parameters()).device.type == device().type != "cpu"
    monkeypatch.setenv("TOPWORK_DEVICE", "cpu")
    here = small.train(recipe)
    for one, other in zip(there.curve, here.curve, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.05, abs=0.02)  # bfloat16 on the one, float32 on the other
    a = train.predict(there.network, small.task.store, small.rows)
    b = train.predict(here.network, small.task.store, small.rows)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99


def test_what_was_trained_there_is_the_cpus_in_evaluation(small: World) -> None:
    trained = small.train(FULL).network
    scores = train.predict(trained, small.task.store, small.rows)
    on_cpu = train.predict(trained.cpu(), small.task.store, small.rows)
    np.testing.assert_allclose(scores, on_cpu, rtol=1e-3, atol=1e-3 * float(np.abs(on_cpu).max()))


@on_cuda
@pytest.mark.parametrize("share", [0.25, 0.0], ids=["views held", "views streamed"])
def test_training_waits_for_nothing_within_an_epoch(
    small: World, share: float, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("topwork.feed.HELD_SHARE", share)
    small.train(FULL)  # kernels are set up, views are there
    learn = train._Course._learn

    def watched(course: train._Course, *batch: torch.Tensor) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            learn(course, *batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(train._Course, "_learn", watched)
    assert len(small.train(FULL).curve) == FULL.epochs


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_interrupted_training_ends_as_if_it_had_not_been(home: Path, tmp_path: Path, dropout: float) -> None:
    forgetful = world(tiny_network(dropout=dropout), home, tmp_path / "cache")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = forgetful.train(LAST)
        checkpoint = tmp_path / "checkpoint"
        start = forgetful.start(LAST.cut, forgetful.rows)
        stopped = train.train(
            forgetful.task, LAST, forgetful.rows, start, seed=0, checkpoint=checkpoint, give_up=lambda n, _: n == 1
        )
        assert stopped is None
        torch.manual_seed(99)
        resumed = forgetful.train(LAST, checkpoint=checkpoint)
    finally:
        torch.use_deterministic_algorithms(False)
    assert same(weights(whole), weights(resumed))
    assert [e.loss for e in whole.curve] == [e.loss for e in resumed.curve]


@on_cuda
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("recipe", [LAST, FULL, SURGICAL], ids=lambda r: r.strategy)
def test_a_recorded_step_learns_what_its_operations_learn(
    home: Path, tmp_path: Path, recipe: train.Recipe, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of both batch sizes, the rates of each step, dropout's draws."""
    small = world(tiny_network(dropout=dropout), home, tmp_path / "cache")
    longer = replace(recipe, epochs=12)
    recorded: list[int] = []
    made = train._Course._record

    def counted(course: train._Course, x: torch.Tensor, y: torch.Tensor) -> replay.Replay | None:
        recorded.append(len(x))
        return made(course, x, y)

    monkeypatch.setattr(train._Course, "_record", counted)
    at_once = small.train(longer)
    assert sorted(recorded) == [len(small.rows) % recipe.batch, recipe.batch]
    monkeypatch.setattr(replay, "possible", lambda on: False)
    one_by_one = small.train(longer)
    assert len(recorded) == 2
    for one, other in zip(at_once.curve, one_by_one.curve, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.02, abs=0.005)
    a, b = (train.predict(t.network, small.task.store, small.rows) for t in (at_once, one_by_one))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("strategy", ["head", "full"])
def test_a_fit_there_hands_over_a_model_that_runs_anywhere(
    strategy: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"budget": 30.0} if strategy == "full" else {}
    run = topwork.fit(
        home,
        size=64,
        strategy=strategy,
        out=tmp_path / "run",
        cache=tmp_path / "cache",
        pictures=False,
        **options,  # type: ignore[arg-type]
    )
    assert run.record.engine is not None and run.record.engine.device != "cpu"
    assert run.record.onnx is not None and not run.record.onnx.reason  # equal to the model, see portable.py
    paths = sorted(home.rglob("*.*"))
    there = topwork.load(tmp_path / "run")
    assert there.device.type != "cpu"
    monkeypatch.setenv("TOPWORK_DEVICE", "cpu")
    here = topwork.load(tmp_path / "run")
    for one, other in zip(there.predict(paths), here.predict(paths), strict=True):
        assert one.label == other.label
        assert one.probability == pytest.approx(other.probability, abs=2e-3)


def test_the_cpu_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.device().type == torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    monkeypatch.setenv("TOPWORK_DEVICE", "cpu")
    assert engine.device() == torch.device("cpu")
