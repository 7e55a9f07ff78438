"""How long does a network take on this machine?"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from topwork.engine import Engine
from topwork.zoo import Backbone

BATCH = 16  # images at once; more gain little on a CPU
PASSES = 3  # measured after one to warm up; their median, since other programs only ever slow one down


@dataclass(frozen=True, slots=True)
class Speed:
    """Forward time of a whole network as topwork runs it, at its own input size."""

    ms_per_image: float  # in batches of BATCH
    ms_single: float  # of one image alone


def measure(backbone: Backbone) -> Speed:
    """Time a network on random pixels; decoding and pooling are not counted."""
    engine = Engine(backbone.chain.segments, backbone.preprocessing)
    size_px = backbone.preprocessing.crop_px
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, size_px, size_px, 3), dtype=np.uint8)

    def ms(images: int) -> float:
        passes = [float(engine.see(pixels[:images], logits=True).seconds.sum()) for _ in range(1 + PASSES)]
        return statistics.median(passes[1:]) * 1000 / images

    return Speed(ms(BATCH), ms(1))
