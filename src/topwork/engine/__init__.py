"""How does the frozen backbone run fastest here?

Frozen means outside the training graph: evaluation mode, inference mode, BatchNorm folded into the
convolution before it, channels-last memory. What it computes is the network's own function to
float32 rounding (tests/test_engine.py), whichever runtime computes it.
"""

from __future__ import annotations

from topwork.engine.lanes import Lanes, lanes
from topwork.engine.pytorch import (
    FLOAT16_MAX,
    Engine,
    Pending,
    Seen,
    channels_last,
    device,
    exact_arithmetic,
    normalisation,
    pool,
    prepare,
)
from topwork.engine.race import SAMPLE, Chosen, choose

__all__ = [
    "FLOAT16_MAX", "SAMPLE", "Chosen", "Engine", "Lanes", "Pending", "Seen", "channels_last", "choose", "device",
    "exact_arithmetic", "lanes", "normalisation", "pool", "prepare",
]  # fmt: skip
