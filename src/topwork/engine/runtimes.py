"""The prepared network in runtimes other than plain PyTorch; each sees what engine.Engine sees."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from topwork.engine.lanes import Lanes
from topwork.engine.pytorch import FLOAT16_MAX, Engine, Event, Pending, Seen, limited, pool

WARM_UPS = 2
"""Batches before recording: libraries make their workspaces in the first ones."""

Shares = NDArray[np.float64]
"""(segments,) of the forward time, as PyTorch spends it: a runtime that fuses operations has no times of its own for
them."""


@dataclass(frozen=True)
class Done:
    """What was computed when it was asked for."""

    seen: Seen

    def result(self) -> Seen:
        """There is nothing to wait for."""
        return self.seen


class OnnxRuntime:
    """ONNX Runtime on the CPU. `graph`: serialised, with just the outputs that are wanted, in order."""

    name = "onnxruntime"

    def __init__(self, graph: bytes, outputs: Sequence[str], shares: Shares, threads: int) -> None:
        import onnxruntime  # noqa: PLC0415 (only where it runs)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Threads that spin while they wait take the cores from the decoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._outputs, self._shares = list(outputs), shares

    def submit(self, batch: NDArray[np.uint8]) -> Pending:
        """Computed at once; any number of threads may call it."""
        begun = time.perf_counter()
        arrays = self._session.run(self._outputs, {"pixels": batch})
        return _done(arrays, self._outputs, self._shares * (time.perf_counter() - begun))


class OpenVino:
    """OpenVINO on the CPU, from the same graph."""

    name = "openvino"

    def __init__(self, graph: bytes, outputs: Sequence[str], shares: Shares, lanes: Lanes) -> None:
        import openvino  # noqa: PLC0415 (only where it is installed)

        core = openvino.Core()
        settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": lanes.count,
            "INFERENCE_NUM_THREADS": lanes.threads * lanes.count,
            "INFERENCE_PRECISION_HINT": "f32",  # else processors with bfloat16 use it
        }
        self._compiled = core.compile_model(core.read_model(graph), "CPU", settings)
        self._outputs, self._shares = list(outputs), shares

    def submit(self, batch: NDArray[np.uint8]) -> Pending:
        """Computed at once; each call has a request of its own, so any number of threads may call it."""
        begun = time.perf_counter()
        request = self._compiled.create_infer_request()
        request.infer({"pixels": batch})
        arrays = [request.get_tensor(name).data.copy() for name in self._outputs]
        return _done(arrays, self._outputs, self._shares * (time.perf_counter() - begun))


class Compiled:
    """torch.compile, segment by segment. Batches are filled up to one size, for which it is compiled once."""

    name = "torch.compile"

    def __init__(
        self, engine: Engine, batch: int, *, logits: bool, depth: int | None, backend: str = "inductor"
    ) -> None:
        # On the CPU the weights are frozen into the code, laid out as its kernels want them.
        options: dict[str, Any] = {"options": {"freezing": True}} if backend == "inductor" else {}
        compiled: list[Any] = [torch.compile(x, dynamic=False, backend=backend, **options) for x in engine.segments]
        self._engine = copy.copy(engine)
        self._engine.segments = compiled
        self._batch, self._logits, self._depth = batch, logits, depth

    def submit(self, batch: NDArray[np.uint8]) -> Pending:
        """The first call compiles, and must have ended before several threads call it."""
        full = batch
        if len(batch) < self._batch:
            full = np.zeros((self._batch, *batch.shape[1:]), dtype=np.uint8)
            full[: len(batch)] = batch
        return _Trimmed(self._engine.submit(full, self._depth, logits=self._logits), len(batch))


class Recorded:
    """PyTorch on CUDA, its operations recorded once and launched together: launching them one by one took three times
    as long as computing them (bench/accelerator.py). Batches are filled up to the one size that was recorded.
    """

    name = "pytorch, recorded"

    def __init__(
        self, engine: Engine, batch: int, shares: Shares, side: tuple[int, int], *, logits: bool, depth: int | None
    ) -> None:
        cuts = len(engine.segments) - 1 if depth is None else depth
        self._engine, self._shares, self._logits = engine, shares, logits
        self._lock = threading.Lock()
        self._pixels = torch.zeros((batch, *side, 3), dtype=torch.uint8, device=engine.device)

        def run() -> list[Tensor]:
            x, found = engine.normalised(self._pixels), []
            for k, segment in enumerate(engine.segments[: cuts + logits]):
                x = segment(x)
                found.append(limited(pool(x) if k < cuts else x))
            return found

        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), engine.arithmetic():
            apart = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            apart.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(apart):
                for _ in range(WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(apart)
            with torch.cuda.graph(self._graph):
                found = run()
                self._found = torch.cat(found, dim=1)  # one copy to the CPU instead of one per cut
        self._widths = np.cumsum([x.shape[1] for x in found])[:-1]

    def submit(self, batch: NDArray[np.uint8]) -> Pending:
        """Handed over one by one, whichever threads call it; nothing here waits for the device."""
        pinned = torch.from_numpy(batch).pin_memory()
        host = torch.empty(self._found.shape, dtype=torch.float16, pin_memory=True)
        with self._lock, torch.inference_mode():
            begun = Event(self._engine.device)
            self._pixels[: len(batch)].copy_(pinned, non_blocking=True)
            self._graph.replay()
            host.copy_(self._found, non_blocking=True)
            end = Event(self._engine.device)
        return _Launched(host, begun, end, len(batch), self)

    def seen(self, found: NDArray[np.float16], seconds: float) -> Seen:
        """The rows of a batch, taken apart."""
        arrays = [np.ascontiguousarray(x) for x in np.split(found, self._widths, axis=1)]
        return Seen(arrays[:-1] if self._logits else arrays, arrays[-1] if self._logits else None,
                    self._shares * seconds)  # fmt: skip


@dataclass(frozen=True)
class _Launched:
    host: Tensor
    begun: Event
    end: Event
    rows: int
    by: Recorded

    def result(self) -> Seen:
        self.end.wait()
        return self.by.seen(self.host.numpy()[: self.rows], self.begun.until(self.end))


@dataclass(frozen=True)
class _Trimmed:
    """The first rows of a batch that was filled up."""

    pending: Pending
    rows: int

    def result(self) -> Seen:
        seen = self.pending.result()
        logits = None if seen.logits is None else seen.logits[: self.rows]
        return Seen([p[: self.rows] for p in seen.pooled], logits, seen.seconds)


def _done(arrays: Sequence[NDArray[np.float32]], outputs: Sequence[str], seconds: NDArray[np.float64]) -> Done:
    halves = [np.clip(a, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16) for a in arrays]
    with_logits = outputs[-1] == "logits"
    return Done(Seen(halves[:-1] if with_logits else halves, halves[-1] if with_logits else None, seconds))
