"""Which runtime computes the frozen layers fastest here, and does it compute the same?

A short race on real images, in which every runtime must give what plain PyTorch gives. What takes long to set up is
only tried where the images to come repay it. What was found is remembered beside the exported graph, so that the next
pass through the same network on this machine begins with the winner.
"""

from __future__ import annotations

import copy
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import util
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from topwork.engine import graph, runtimes
from topwork.engine.lanes import Lanes
from topwork.engine.pytorch import Engine, Pending, Seen
from topwork.records import EngineFacts, EngineTry

SAME = 1e-3
"""Largest difference to plain PyTorch at any cut, over the largest value there: float16, as which features are kept,
rounds by half of that."""

SAMPLE = 4
"""Images in the race: enough that the time of one call is no accident, few enough to be decoded twice."""

AGAIN = 2
"""Images on which the runtime that won before is compared with PyTorch, each time."""

LEAST = 64
"""Images to come below which nothing is tried: no runtime repays even its being loaded."""

WORTH = {
    "onnxruntime": 0.4, "openvino": 0.1, "torch.compile": 0.1, "pytorch, recorded": 0.6, "pytorch, float16": 1.0,
}  # fmt: skip
"""Share of the time which the images to come would take that may go into trying it. ONNX Runtime took a third to
almost a half of it off where it was measured (bench/engine.py), recording on CUDA two thirds (bench/accelerator.py);
the others are a bet; half precision costs nothing to set up."""

SET_UP_S = {
    "onnxruntime": 1.0, "openvino": 4.0, "torch.compile": 40.0, "pytorch, recorded": 0.1, "pytorch, float16": 0.0,
}  # fmt: skip
"""Seconds to set it up before anybody has measured it here; with the graph already there, KNOWN_S."""

KNOWN_S = 0.3

FROM_GRAPH = {"onnxruntime", "openvino"}
"""Runtimes that are at once as fast as they will be, on any number of images."""

REFERENCE, FASTER = "reference", "faster"

Submit = Callable[[NDArray[np.uint8]], Pending]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Chosen:
    """The runtime that won: `submit` takes (b, h, w, 3) uint8 pixels, from any number of threads at once."""

    submit: Submit
    facts: EngineFacts


class _Memory(msgspec.Struct):
    """What was found on this machine, one entry per runtime."""

    machine: str
    tried: dict[str, EngineTry]
    reference: EngineTry | None = None  # what PyTorch took
    shares: list[float] = []  # of that, of each segment


def choose(
    engine: Engine, images: int, some: Callable[[], NDArray[np.uint8]], *, classifier: bool, depth: int | None = None,
    batch: int, lanes: Lanes, home: Path, compiler: str | None = "inductor",
    meanwhile: Callable[[], object] = lambda: None,
) -> Chosen:  # fmt: skip
    """Let the runtimes that may repay themselves over so many `images` run on `some` (b, h, w, 3), within lanes.

    `engine` is the prepared network in PyTorch, the reference; its last segment is the old task's `classifier`, or
    nothing that is wanted. `depth` counts the cuts that are wanted; None: all, and the classifier's logits. Batches
    will be of `batch` images. `home` is the folder of this network alone in which graph and result are kept.
    `compiler` is torch.compile's backend; None leaves that out. `meanwhile` is called where nothing is timed: whatever
    else there is to compute may begin. Whatever goes wrong in a runtime puts that one out of
    the race, with the reason in the facts; PyTorch stays.
    """
    cuts = len(engine.given) - 1
    wanted = _Wanted(cuts if depth is None else depth, classifier and depth is None, depth)

    def plain(pixels: NDArray[np.uint8]) -> Pending:
        return engine.submit(pixels, depth, logits=wanted.logits)

    def chosen(submit: Submit, winner: str, tried: dict[str, EngineTry]) -> Chosen:
        return Chosen(
            submit, EngineFacts(winner, engine.device.type, lanes.count, lanes.threads, tuple(tried.values()))
        )

    if images < LEAST or not len(sample := some()):
        return chosen(plain, engine.name, {})
    if engine.device.type != "cpu":  # a few images take it as long as a batch
        sample = np.resize(sample, (batch, *sample.shape[1:]))
    memory = _remembered(home, engine, lanes)
    clock = time.process_time if engine.device.type == "cpu" else time.perf_counter

    def contenders(shares: NDArray[np.float64], as_kept: bool = False) -> Iterator[tuple[str, Callable[[], Submit]]]:
        return _contenders(engine, sample, shares, wanted, classifier, batch, lanes, home, compiler, as_kept)

    def unworthy(name: str, seconds: float) -> EngineTry | None:
        known = memory.tried.get(name)
        if known is not None and known.outcome != FASTER:
            return known
        to_come = images * seconds / (lanes.count * lanes.threads)
        cost = SET_UP_S[name] if known is None else min(known.set_up_s, KNOWN_S)
        if cost <= WORTH[name] * to_come:
            return None
        return EngineTry(name, cost, None, None, f"not tried: {to_come:.1f} s to come do not repay it")

    if (again := _again(memory, engine, sample, wanted, contenders, unworthy, meanwhile)) is not None:
        return chosen(*again)
    expected = plain(sample).result()  # also warms it up
    seconds, seen = _timed(plain, sample, clock)
    shares = seen.seconds / seen.seconds.sum()
    best = EngineTry(engine.name, 0.0, 1000 * seconds, 0.0, REFERENCE)
    tried: dict[str, EngineTry] = {engine.name: best}
    if depth is None:
        memory.reference, memory.shares = best, shares.tolist()
    submit: Submit = plain
    for name, make in contenders(shares):
        if (spared := unworthy(name, seconds)) is not None:
            tried[name] = spared
            continue
        found, run = _tried(name, make, sample, expected, best, clock, memory.tried.get(name))
        tried[name] = memory.tried[name] = found
        if run is not None and found.ms_per_image is not None:
            best, submit, seconds = found, run, found.ms_per_image / 1000
    _remember(home, memory)
    return chosen(submit, best.name, tried)


def _again(
    memory: _Memory, engine: Engine, sample: NDArray[np.uint8], wanted: _Wanted,
    contenders: Callable[[NDArray[np.float64], bool], Iterator[tuple[str, Callable[[], Submit]]]],
    unworthy: Callable[[str, float], EngineTry | None], meanwhile: Callable[[], object],
) -> tuple[Submit, str, dict[str, EngineTry]] | None:  # fmt: skip
    """The winner of an earlier race, where nothing else would be tried now and it still gives what PyTorch gives.

    Nothing is timed, and PyTorch computes AGAIN images with the segments as they are: to prepare them would take
    longer.
    """
    best, shares = memory.reference, np.array(memory.shares)
    if best is None or best.ms_per_image is None or wanted.given is not None:
        return None
    tried, make = {best.name: best}, None
    for name, makes in contenders(shares, True):
        spared = unworthy(name, (best.ms_per_image or 0.0) / 1000)
        if spared is not None:
            tried[name] = spared
        elif name in memory.tried and name in FROM_GRAPH:
            tried[name], best, make = memory.tried[name], memory.tried[name], makes
        else:
            return None
    if make is None:
        return None
    meanwhile()
    as_given, few = copy.copy(engine), sample[:AGAIN]
    as_given.segments = engine.given
    try:
        run = make()
        apart = difference(run(few).result(), as_given.see(few, logits=wanted.logits))
    except Exception:  # a damaged graph, or anything else: the whole race says what it is
        return None
    if not apart <= SAME:
        return None
    tried[best.name] = replace(best, difference=apart)
    return run, best.name, tried


def difference(seen: Seen, expected: Seen) -> float:
    """The largest difference at any cut or in the logits, over the largest magnitude there; infinite where a value is
    none or the shapes differ.
    """
    pairs = list(zip(seen.pooled, expected.pooled, strict=True))
    if expected.logits is not None and seen.logits is not None:
        pairs.append((seen.logits, expected.logits))
    worst = 0.0
    for got, wanted in pairs:
        a, b = got.astype(np.float64), wanted.astype(np.float64)
        if a.shape != b.shape or not np.isfinite(a).all():
            return float("inf")
        worst = max(worst, float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-12)))
    return worst


@dataclass(frozen=True)
class _Wanted:
    depth: int
    logits: bool
    given: int | None  # as it was asked for: None for everything


def _contenders(
    engine: Engine, sample: NDArray[np.uint8], shares: NDArray[np.float64], wanted: _Wanted, classifier: bool,
    batch: int, lanes: Lanes, home: Path, compiler: str | None, as_kept: bool = False,
) -> Iterator[tuple[str, Callable[[], Submit]]]:  # fmt: skip
    """Each runtime that is installed and runs on the device, with what sets it up; the most promising first.

    `as_kept`: the graph goes to the runtime as it was kept, where all of its outputs are wanted; a runtime that cannot
    read it, or that lacks one of them, fails.
    """
    outputs = graph.names(wanted.depth, wanted.logits)

    def exported() -> bytes:
        file = home / "graph.onnx"
        if as_kept and wanted.given is None:
            return file.read_bytes()
        if file.exists():
            try:
                return graph.ends(file, outputs)
            except Exception:  # damaged, or written by another version: made anew below
                file.unlink(missing_ok=True)
        graph.export(engine, sample, file, logits=classifier)
        return graph.ends(file, outputs)

    if engine.device.type == "cpu":
        if util.find_spec("onnx") and util.find_spec("onnxruntime"):
            yield "onnxruntime", lambda: runtimes.OnnxRuntime(exported(), outputs, shares, lanes.threads).submit
        if util.find_spec("onnx") and util.find_spec("openvino"):
            yield "openvino", lambda: runtimes.OpenVino(exported(), outputs, shares, lanes).submit
    else:
        if engine.device.type == "cuda":
            side = (sample.shape[1], sample.shape[2])
            yield (
                "pytorch, recorded",
                lambda: runtimes.Recorded(engine, batch, shares, side, logits=wanted.logits, depth=wanted.given).submit,
            )
        half = copy.copy(engine)
        half.precision = torch.float16
        yield half.name, lambda: lambda x: half.submit(x, wanted.given, logits=wanted.logits)
    if compiler is not None:
        yield (
            "torch.compile",
            lambda: runtimes.Compiled(engine, batch, logits=wanted.logits, depth=wanted.given, backend=compiler).submit,
        )


def _tried(
    name: str,
    make: Callable[[], Submit],
    sample: NDArray[np.uint8],
    expected: Seen,
    best: EngineTry,
    clock: Clock, known: EngineTry | None,
) -> tuple[EngineTry, Submit | None]:  # fmt: skip
    """What a runtime is worth; and the runtime, where it is the best so far and right.

    One that is known to be the fastest is not timed again; that it is right is seen each time.
    """
    begun = time.perf_counter()
    try:
        run = make()
        apart = difference(run(sample).result(), expected)
        set_up = time.perf_counter() - begun
        if known is None or known.ms_per_image is None:
            run(sample).result()  # ONNX Runtime's second run lays out its memory, and takes twice as long as the third
            seconds = _timed(run, sample, clock)[0]
        else:
            set_up, seconds = known.set_up_s, known.ms_per_image / 1000
    except Exception as error:  # every library has its own; none of them may end a pass that PyTorch can make
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return EngineTry(name, time.perf_counter() - begun, None, None, f"failed: {reason[:200]}"), None
    took = EngineTry(name, set_up, 1000 * seconds, apart, FASTER)
    if apart > SAME:
        return replace(took, outcome=f"differs: by {apart:.2g} of the largest value, at most {SAME:.2g} may be"), None
    if took.ms_per_image is None or best.ms_per_image is None or took.ms_per_image >= best.ms_per_image:
        return replace(took, outcome=f"slower than {best.name}"), None
    return took, run


def _timed(run: Submit, sample: NDArray[np.uint8], clock: Clock) -> tuple[float, Seen]:
    """Seconds per image of one lane, by a clock that on the CPU counts what is computed and not what is waited for:
    whatever else keeps the machine busy, the same runtime wins.
    """
    begun = clock()
    seen = run(sample).result()
    return (clock() - begun) / len(sample), seen


def _machine(engine: Engine, lanes: Lanes) -> str:
    """What the result of a race holds for: the processor, the lanes, the versions of what ran."""
    where = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        where = next(
            (x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), where
        )
    libraries = [f"{n} {version(n)}" for n in ("torch", "onnxruntime", "openvino") if util.find_spec(n)]
    on = engine.device
    named = str(on) if on.type == "cpu" else _named(on)
    return "; ".join([where, named, f"{lanes.count} x {lanes.threads} threads", *libraries])


def _named(on: torch.device) -> str:
    """An accelerator and its model, where PyTorch knows it."""
    ask = getattr(torch.get_device_module(on), "get_device_name", None)
    return f"{on.type} {ask(on)}" if ask is not None else on.type


def _remembered(home: Path, engine: Engine, lanes: Lanes) -> _Memory:
    machine = _machine(engine, lanes)
    try:
        memory = msgspec.json.decode((home / "race.json").read_bytes(), type=_Memory)
    except (OSError, msgspec.MsgspecError):
        return _Memory(machine, {})
    return memory if memory.machine == machine else _Memory(machine, {})


def _remember(home: Path, memory: _Memory) -> None:
    """Kept where it can be; a folder that cannot be written costs the next race, no more."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        aside = home / f".{uuid.uuid4().hex}"
        aside.write_bytes(msgspec.json.encode(memory))
        aside.replace(home / "race.json")
    except OSError:
        return
