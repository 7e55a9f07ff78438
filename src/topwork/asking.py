"""How is a model asked, whatever computes what it sees?

From images to answers: the same pixels, the same batches, the same words, in PyTorch (model.py) and without it
(runtime.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from topwork import answers, images
from topwork.answers import Prediction, Seen, answer
from topwork.errors import ImageError
from topwork.images import Source
from topwork.records import ModelFacts

BATCH = 16
"""Images that are computed at once, as in features.py: more gain nothing on a CPU."""

Pixels = NDArray[np.uint8]


class Asked(ABC):
    """What can be asked of a model. `facts` say all but its tensors."""

    facts: ModelFacts

    @abstractmethod
    def see(self, batch: Pixels) -> Seen:  # batch: (b, h, w, 3)
        """Scores, pooled features and the maps at every tap."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the scores."""
        return self.facts.classes

    def logits(self, batch: Pixels) -> NDArray[np.float32]:  # batch: (b, h, w, 3)
        """Scores before the temperature: (b, C)."""
        return self.see(batch).scores

    def probabilities(self, batch: Pixels) -> NDArray[np.float32]:  # batch: (b, h, w, 3)
        """Calibrated probabilities: (b, C). Rows sum to 1, unless an image may have several labels."""
        return answers.probabilities(self.logits(batch), self.facts)

    def predict(self, sources: Source | Sequence[Source]) -> list[Prediction]:
        """Classes and calibrated probabilities of images, in order.

        A source is a path, encoded bytes, a Pillow image or a uint8 RGB array. A file that is no
        usable image gets a Prediction with `error`; it never ends the others.
        """
        one = isinstance(sources, (bytes, str, Path, Image.Image, np.ndarray))
        return list(self.stream([sources] if one else sources))  # type: ignore[list-item, arg-type]

    def stream(self, sources: Sequence[Source]) -> Iterator[Prediction]:
        """Like predict, one by one, so that any number of images fits in memory."""
        with ThreadPoolExecutor() as workers:

            def begun(start: int) -> tuple[Sequence[Source], list[Future[Pixels | ImageError]]]:
                chunk = sources[start : start + BATCH]
                return chunk, [workers.submit(self.load, s) for s in chunk]

            ahead = begun(0)
            for start in range(0, len(sources), BATCH):
                (chunk, loading), ahead = ahead, begun(start + BATCH)  # decoded beside what is computed
                yield from self.answered(chunk, [f.result() for f in loading])

    def answered(self, sources: Sequence[Source], loaded: Sequence[Pixels | ImageError]) -> list[Prediction]:
        """The answers for one batch of images, each loaded as pixels (h, w, 3) or with what is wrong with it."""
        good = [x for x in loaded if not isinstance(x, ImageError)]
        rows = iter(self.probabilities(np.stack(good)) if good else ())
        return [
            answer(source, x if isinstance(x, ImageError) else next(rows), self.facts)
            for source, x in zip(sources, loaded, strict=True)
        ]

    def load(self, source: Source) -> Pixels | ImageError:  # (h, w, 3)
        """The pixels of one image as the network was trained on them, or what is wrong with it."""
        try:
            return images.load(source, self.facts.preprocessing)
        except ImageError as error:
            return error
