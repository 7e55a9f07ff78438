"""How is a training step handed to the device at once, instead of operation by operation?

A step of a small network is hundreds of operations that take a graphics card microseconds each, and the processor
longer to ask for. Recorded once as a CUDA graph and replayed, they cost what the card takes (bench/accelerator.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS = 2
"""Steps before recording, on the stream that is recorded: libraries make their workspaces in the first ones."""

REPAYS = 10
"""Steps to come below which nothing is recorded: warming up and recording take some four."""

Step = Callable[[Tensor, Tensor], Tensor]


def possible(on: torch.device) -> bool:
    """Whether steps can be recorded there."""
    return on.type == "cuda"


class Replay:
    """A step recorded for batches like x (b, ...) and y (b,): called with the next ones, it gives what `step` gave.

    `step` must change nothing but `state`, ask the device for nothing, and draw from the device's own generator alone.
    Recording leaves the state as it was. `beside`: an earlier recording, whose memory this one may share, since they
    never run at once. Raises RuntimeError where memory does not suffice, or an operation cannot be recorded.
    """

    def __init__(
        self, step: Step, x: Tensor, y: Tensor, state: Sequence[Tensor], *, beside: Replay | None = None
    ) -> None:
        self._x, self._y = x.clone(), y.clone()
        before, drawn = [t.detach().clone() for t in state], torch.cuda.get_rng_state(x.device)
        self._graph = torch.cuda.CUDAGraph()
        try:
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    step(self._x, self._y)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self._graph, pool=None if beside is None else beside._graph.pool()):
                self._told = step(self._x, self._y)
        finally:
            with torch.no_grad():
                for t, value in zip(state, before, strict=True):
                    t.copy_(value)
            torch.cuda.set_rng_state(drawn, x.device)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """One step with a batch of the recorded size."""
        self._x.copy_(x)
        self._y.copy_(y)
        self._graph.replay()
        return self._told.clone()
