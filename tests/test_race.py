"""Whatever runtime computes the frozen layers, it gives what plain PyTorch gives, or it is not used."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from test_engine import backbone, randomise
from topwork.engine import Chosen, Engine, Lanes, Seen, choose, lanes, normalisation, race, runtimes
from topwork.engine.graph import ends, export, names, planar, write
from topwork.engine.lanes import shared
from topwork.engine.race import LEAST, SAME, difference
from topwork.records import Preprocessing
from topwork.zoo.cuts import Chain, chain

NETWORKS = ["resnet18", "googlenet", "timm:tf_efficientnet_lite0"]
ONE = Lanes(1, 1)
MANY = 10**9
"""Images to come that repay anything."""


class Small(nn.Module):
    """Three cuts, with everything that engines fold and pool, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 6, 10, 14]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )
        self.classifier = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((2, 3)))


@cache
def small() -> tuple[Chain, Preprocessing]:
    network = Small()
    randomise(network)
    return chain(network, 64), backbone("resnet18").preprocessing


def pixels(n: int = 4, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)


def plain(name: str | None = None) -> Engine:
    split, preprocessing = small() if name is None else (backbone(name).chain, backbone(name).preprocessing)
    return Engine(split.segments, preprocessing, on=torch.device("cpu"))


def raced(home: Path, engine: Engine | None = None, images: int = MANY, **options: Any) -> Chosen:
    """A race without torch.compile, which takes seconds; "eager" captures its graph and runs that as it is."""
    given: dict[str, Any] = {"classifier": True, "batch": 4, "lanes": ONE, "home": home, "compiler": None}
    return choose(engine or plain(), images, pixels, **given | options)


def outcomes(chosen: Chosen) -> dict[str, str]:
    return {t.name: t.outcome for t in chosen.facts.tried}


def equal(seen: Seen, expected: Seen) -> None:
    assert (seen.logits is None) == (expected.logits is None)
    assert len(seen.pooled) == len(expected.pooled)
    assert difference(seen, expected) <= SAME
    assert seen.seconds.shape == expected.seconds.shape
    assert all(p.dtype == np.float16 for p in seen.pooled)


@pytest.fixture(autouse=True)
def _no_openvino(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """It takes seconds to load; one test asks for it."""
    if "openvino" not in request.node.name:
        find = race.util.find_spec
        monkeypatch.setattr(race.util, "find_spec", lambda name: None if name == "openvino" else find(name))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make one runtime the winner, whatever the time is."""

    def to_win(winner: str) -> None:
        def timed(run: Any, sample: Any, clock: Any) -> tuple[float, Seen]:
            seen = run(sample).result()
            name = getattr(getattr(run, "__self__", None), "name", "pytorch")
            return (0.001 if name == winner else 1.0), seen

        monkeypatch.setattr(race, "_timed", timed)

    return to_win


@pytest.mark.parametrize(("name", "depth"), [(None, 1), (None, 2), *((name, None) for name in NETWORKS)])
def test_onnx_runtime_sees_what_pytorch_sees(
    name: str | None, depth: int | None, tmp_path: Path, always: Callable[..., None]
) -> None:
    always("onnxruntime")
    chosen = raced(tmp_path, plain(name), depth=depth)
    assert chosen.facts.name == "onnxruntime"
    for n in (1, 4, 7):  # any number of images
        other = pixels(n, seed=n)
        equal(chosen.submit(other).result(), plain(name).see(other, depth, logits=True))


@pytest.mark.slow
def test_openvino_sees_what_pytorch_sees(tmp_path: Path, always: Callable[..., None]) -> None:
    pytest.importorskip("openvino")
    always("openvino")
    chosen = raced(tmp_path)
    assert chosen.facts.name == "openvino", outcomes(chosen)
    equal(chosen.submit(pixels(3)).result(), plain().see(pixels(3), logits=True))
    with ThreadPoolExecutor(4) as pool:
        for seed, seen in enumerate(pool.map(lambda s: chosen.submit(pixels(2, s)).result(), range(8))):
            equal(seen, plain().see(pixels(2, seed), logits=True))


@pytest.mark.parametrize("depth", [None, 2])
def test_compiled_code_sees_what_pytorch_sees(depth: int | None, tmp_path: Path, always: Callable[..., None]) -> None:
    """A batch that is not full is filled up, and the filling is taken off again."""
    always("torch.compile")
    chosen = raced(tmp_path, depth=depth, compiler="eager")
    assert chosen.facts.name == "torch.compile", outcomes(chosen)
    for n in (1, 3, 4):
        equal(chosen.submit(pixels(n)).result(), plain().see(pixels(n), depth, logits=True))


@pytest.mark.slow
def test_compiled_for_real(tmp_path: Path) -> None:
    """The inductor, with the weights frozen into the code, on one segment (a compiler is needed)."""
    engine = plain()
    run = runtimes.Compiled(engine, 4, logits=False, depth=1)
    try:
        seen = run.submit(pixels(3)).result()
    except Exception as error:
        if "ompiler" in str(error):
            pytest.skip(f"no C++ compiler: {error}")
        raise
    equal(seen, engine.see(pixels(3), 1))


def test_where_there_is_no_classifier_there_are_no_logits(tmp_path: Path, always: Callable[..., None]) -> None:
    always("onnxruntime")
    chosen = raced(tmp_path, classifier=False)
    seen = chosen.submit(pixels()).result()
    assert seen.logits is None
    equal(seen, plain().see(pixels()))


def test_any_number_of_threads_may_ask(tmp_path: Path, always: Callable[..., None]) -> None:
    always("onnxruntime")
    chosen = raced(tmp_path)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda s: chosen.submit(pixels(2, s)).result(), range(24)))
    for seed, seen in enumerate(found):
        equal(seen, plain().see(pixels(2, seed), logits=True))


def test_few_images_are_not_raced_for(tmp_path: Path) -> None:
    chosen = raced(tmp_path, images=LEAST - 1)
    assert (chosen.facts.name, chosen.facts.tried, chosen.facts.faster) == ("pytorch", (), 1.0)
    assert not list(tmp_path.iterdir())
    equal(chosen.submit(pixels()).result(), plain().see(pixels(), logits=True))


def test_what_the_images_to_come_do_not_repay_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "_timed", lambda run, sample, clock: (0.01, run(sample).result()))
    few = raced(
        tmp_path, images=200, compiler="eager"
    )  # 2 s to come: of which 40% do not pay for 1 s, and 10% not for 40 s
    assert [o.split(":")[0] for o in outcomes(few).values()] == ["reference", "not tried", "not tried"]
    more = raced(tmp_path, images=300, compiler="eager")
    assert [o.split(":")[0] for o in outcomes(more).values()] == ["reference", "slower than pytorch", "not tried"]


def test_twice_the_lanes_leave_half_the_time_to_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "_timed", lambda run, sample, clock: (0.01, run(sample).result()))
    assert outcomes(raced(tmp_path, images=450, lanes=Lanes(2, 1)))["onnxruntime"].startswith("not tried")
    assert outcomes(raced(tmp_path, images=550, lanes=Lanes(2, 1)))["onnxruntime"].startswith("slower")


def wrong(make: Any, change: Callable[[Seen], Seen]) -> Any:
    """A runtime whose answers are changed."""

    class Wrong(make):  # type: ignore[misc]
        def submit(self, batch: NDArray[np.uint8]) -> Any:
            return runtimes.Done(change(super().submit(batch).result()))

    return Wrong


def off_by(share: float) -> Callable[[Seen], Seen]:
    """One value of one cut is off by a share of the cut's largest."""

    def change(seen: Seen) -> Seen:
        pooled = [p.copy() for p in seen.pooled]
        pooled[2][1, 5] += np.float16(share * float(np.abs(pooled[2]).max()))
        return Seen(pooled, seen.logits, seen.seconds)

    return change


def not_a_number(seen: Seen) -> Seen:
    pooled = [p.copy() for p in seen.pooled]
    pooled[-1][0, 0] = np.nan
    return Seen(pooled, seen.logits, seen.seconds)


def other_logits(seen: Seen) -> Seen:
    assert seen.logits is not None
    return Seen(seen.pooled, seen.logits[:, ::-1], seen.seconds)


@pytest.mark.parametrize("change", [off_by(0.01), not_a_number, other_logits])
def test_a_runtime_that_computes_something_else_is_not_used(
    change: Callable[[Seen], Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: Callable[..., None]
) -> None:
    always("onnxruntime")
    monkeypatch.setattr(runtimes, "OnnxRuntime", wrong(runtimes.OnnxRuntime, change))
    chosen = raced(tmp_path)
    assert chosen.facts.name != "onnxruntime"
    assert outcomes(chosen)["onnxruntime"].startswith("differs")
    equal(chosen.submit(pixels()).result(), plain().see(pixels(), logits=True))


@pytest.mark.parametrize("where", ["set up", "run"])
def test_a_runtime_that_fails_is_out_and_the_reason_is_kept(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        name = "onnxruntime"

        def __init__(self, *_: Any) -> None:
            if where == "set up":
                raise RuntimeError("no such kernel\nand more")

        def submit(self, batch: NDArray[np.uint8]) -> Any:
            raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(runtimes, "OnnxRuntime", Broken)
    assert outcomes(raced(tmp_path))["onnxruntime"] == "failed: no such kernel"


def test_what_was_found_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: Callable[..., None]
) -> None:
    """The graph is not exported again, and what lost is not tried again; the winner is compared again."""
    always("onnxruntime")
    first = raced(tmp_path, compiler="eager")
    assert outcomes(first)["torch.compile"] == "slower than onnxruntime"
    monkeypatch.setattr(race.graph, "export", lambda *_, **__: pytest.fail("exported again"))
    monkeypatch.setattr(runtimes, "Compiled", lambda *_, **__: pytest.fail("compiled again"))
    again = raced(tmp_path, compiler="eager")
    assert (again.facts.name, outcomes(again)) == ("onnxruntime", outcomes(first))
    monkeypatch.setattr(runtimes, "OnnxRuntime", wrong(runtimes.OnnxRuntime, not_a_number))
    assert raced(tmp_path).facts.name == "pytorch"


def test_what_won_before_is_not_timed_again_and_other_work_may_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: Callable[..., None]
) -> None:
    """The network is not even prepared in PyTorch. While something is timed, nothing else is begun."""
    always("onnxruntime")
    begun: list[str] = []
    first = raced(tmp_path, meanwhile=lambda: begun.append("first"))
    assert not begun
    monkeypatch.setattr(race, "_timed", lambda *_: pytest.fail("timed again"))
    engine = plain()
    again = raced(tmp_path, engine, meanwhile=lambda: begun.append("again"))
    assert begun == ["again"]
    assert "segments" not in vars(engine)
    assert outcomes(again) == outcomes(first)
    equal(again.submit(pixels(3)).result(), plain().see(pixels(3), logits=True))


def test_on_another_machine_it_is_raced_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: Callable[..., None]
) -> None:
    always("pytorch")
    assert outcomes(raced(tmp_path))["onnxruntime"] == "slower than pytorch"
    always("onnxruntime")
    assert raced(tmp_path).facts.name == "pytorch"
    monkeypatch.setattr(race, "_machine", lambda *_: "another")
    assert raced(tmp_path).facts.name == "onnxruntime"


@pytest.mark.parametrize("file", ["graph.onnx", "race.json"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * len(b)])
def test_damaged_files_are_made_anew(
    file: str, damage: Callable[[bytes], bytes], tmp_path: Path, always: Callable[..., None]
) -> None:
    always("onnxruntime")
    raced(tmp_path)
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    chosen = raced(tmp_path)
    assert chosen.facts.name == "onnxruntime", outcomes(chosen)
    equal(chosen.submit(pixels()).result(), plain().see(pixels(), logits=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["graph.onnx", "race.json"]


def test_a_folder_that_cannot_be_written_costs_the_runtimes_that_need_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    chosen = raced(tmp_path / "file" / "below")
    assert outcomes(chosen)["onnxruntime"].startswith("failed")
    equal(chosen.submit(pixels()).result(), plain().see(pixels(), logits=True))


def test_the_graph_ends_where_it_is_asked_to(tmp_path: Path) -> None:
    """What only other outputs need is not in it any more: fewer outputs, and once it is loaded, fewer weights."""
    import onnxruntime

    export(plain(), pixels(), tmp_path / "g.onnx", logits=True)
    whole, short = (ends(tmp_path / "g.onnx", names(k, k == 3)) for k in (3, 1))
    session = onnxruntime.InferenceSession(short, providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["pooled_0"]
    assert len(whole) >= len(short)


@pytest.mark.parametrize("side", [17, 18, 33])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (2, 3, 1), (3, 2, 2), (3, 4, 1)])
def test_padding_that_depends_on_the_size_is_stated_as_numbers(
    side: int, kernel: int, stride: int, dilation: int, tmp_path: Path
) -> None:
    """TensorFlow's "same", an odd zero more after than before; and the network is as it was."""
    import onnx
    import onnxruntime
    from timm.layers import Conv2dSame

    conv = Conv2dSame(3, 4, kernel, stride, dilation=dilation, bias=side == 17)
    network = nn.Sequential(Planar(), conv, nn.ReLU())
    shown = np.random.default_rng(0).integers(0, 256, (2, side, side + 1, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = network(torch.from_numpy(shown)).numpy()
    write(network, shown, tmp_path / "g.onnx", ["y"])
    assert {n.op_type for n in onnx.load(tmp_path / "g.onnx").graph.node}.isdisjoint({"Pad", "Shape"})
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    got = session.run(None, {"pixels": np.concatenate([shown, shown])})[0]
    np.testing.assert_allclose(got, np.concatenate([expected, expected]), rtol=1e-4, atol=1e-5)
    assert "forward" not in vars(conv)


class Planar(nn.Module):
    """Pixels as networks want them."""

    def forward(self, pixels: Tensor) -> Tensor:
        return planar(pixels, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([-1.0, 0.0, 1.0]))


def test_pixels_of_the_graph_are_those_of_the_engine() -> None:
    got = planar(torch.from_numpy(pixels()), *normalisation(small()[1]))
    torch.testing.assert_close(got, plain().pixels(pixels()), rtol=0, atol=0)


def test_the_race_says_how_much_faster(tmp_path: Path, always: Callable[..., None]) -> None:
    always("onnxruntime")
    facts = raced(tmp_path).facts
    assert facts.faster == pytest.approx(1000)
    assert (facts.device, facts.lanes, facts.threads) == ("cpu", 1, 1)


def test_a_difference_is_over_the_largest_value_of_its_cut() -> None:
    expected = plain().see(pixels(), logits=True)
    assert difference(expected, expected) == 0
    changed = off_by(0.25)(expected)
    assert difference(changed, expected) == pytest.approx(0.25, rel=0.01)
    short = Seen([p[:, :-1] for p in expected.pooled], expected.logits, expected.seconds)
    assert difference(short, expected) == float("inf")


@pytest.mark.parametrize(("cores", "expected"), [(1, (1, 1)), (2, (2, 1)), (8, (8, 1)), (64, (8, 8)), (12, (8, 1))])
def test_lanes_share_the_cores(cores: int, expected: tuple[int, int]) -> None:
    assert shared(cores) == Lanes(*expected)


def test_pytorch_computes_with_a_lanes_threads_and_afterwards_as_before() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt), lanes(torch.device("cpu")) as found:
            seen: list[int] = []
            thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            assert (found, torch.get_num_threads(), seen) == (Lanes(2, 1), 1, [1])
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 2
        with lanes(torch.device("meta")) as found:  # an accelerator computes by itself
            assert (found, torch.get_num_threads()) == (Lanes(1, 2), 2)
    finally:
        torch.set_num_threads(before)


class FakeEvent:
    """An accelerator's event: what it marks is reached some time after it was recorded, or when somebody waits."""

    waited = 0
    now = 0.0

    def __init__(self, device: torch.device, *, enable_timing: bool) -> None:
        assert enable_timing
        self.reached = False

    def record(self) -> None:
        FakeEvent.now += 1
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        FakeEvent.waited += 1
        self.reached = True

    def elapsed_time(self, later: FakeEvent) -> float:
        assert FakeEvent.waited, "nobody waited for the device"
        return 1000 * (later.at - self.at)


class Accelerated(Engine):
    """The way an accelerator goes, on the CPU: events instead of a clock, and half precision by autocast."""

    def _mark(self) -> Any:
        from topwork.engine import pytorch

        return pytorch.Event(self.device)


def accelerated(monkeypatch: pytest.MonkeyPatch, precision: torch.dtype | None = None) -> Accelerated:
    monkeypatch.setattr(torch, "Event", FakeEvent)
    monkeypatch.setattr(FakeEvent, "waited", 0)
    return Accelerated(small()[0].segments, small()[1], on=torch.device("cpu"), precision=precision)


def test_an_accelerator_is_waited_for_once_per_batch_and_not_before_its_result_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = accelerated(monkeypatch)
    pending = [engine.submit(pixels(2, s), logits=True) for s in range(3)]
    assert FakeEvent.waited == 0
    for s, p in enumerate(pending):
        seen = p.result()
        assert FakeEvent.waited == s + 1
        equal(seen, plain().see(pixels(2, s), logits=True))
        np.testing.assert_array_equal(seen.seconds, 1.0)  # one event before and one after each segment


def test_autocast_computes_in_half_precision_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = accelerated(monkeypatch, torch.bfloat16)
    assert engine.name == "pytorch, bfloat16"
    apart = difference(engine.see(pixels(), logits=True), plain().see(pixels(), logits=True))
    assert SAME < apart < 0.1  # bfloat16 has 8 bits: near, and refused by the race


class Elsewhere:
    """An accelerator that is none."""

    type = "cuda"


def test_on_an_accelerator_half_precision_runs_for_the_others(tmp_path: Path) -> None:
    engine = plain()
    engine.device = Elsewhere()  # type: ignore[assignment]
    wanted = race._Wanted(1, False, 1)
    found = dict(race._contenders(engine, pixels(), np.ones(1), wanted, False, 4, ONE, tmp_path, "eager"))
    assert list(found) == ["pytorch, recorded", "pytorch, float16", "torch.compile"]
    half = found["pytorch, float16"].__closure__
    assert half is not None
    engines = [c.cell_contents for c in half if isinstance(c.cell_contents, Engine)]
    assert [e.precision for e in engines] == [torch.float16]
    assert engine.precision is None
