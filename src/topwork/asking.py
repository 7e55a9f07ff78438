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
from topwork.answers import Prediction, Rule, Seen, answer
from topwork.errors import ImageError
from topwork.images import Source
from topwork.known import Known
from topwork.records import ModelFacts

BATCH = 16
"""Images that are computed at once, as in features.py: more gain nothing on a CPU."""

Pixels = NDArray[np.uint8]


class Asked(ABC):
    """What can be asked of a model. `facts` say all but its tensors."""

    facts: ModelFacts
    known: Known | None = None  # what the training images look like; None in models of an earlier topwork

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

    def glance(self, batch: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # batch: (b, h, w, 3)
        """Scores (b, C) and pooled features (b, 2 channels of all taps) alone."""
        seen = self.see(batch)
        return seen.scores, seen.pooled

    def predict(
        self, sources: Source | Sequence[Source], *, sets: float | None = None, false_alarm: float | None = None
    ) -> list[Prediction]:
        """Classes and calibrated probabilities of images, in order.

        A source is a path, encoded bytes, a Pillow image or a uint8 RGB array. A file that is no
        usable image gets a Prediction with `error`; it never ends the others.
        `sets`: share of images (up to 0.99) whose class is to be in the prediction set that each then gets.
        `false_alarm`: share of images of the classes that may be taken for unknown (default: what the model was
        fitted with). Raises UsageError where the model cannot promise it.
        """
        one = isinstance(sources, (bytes, str, Path, Image.Image, np.ndarray))
        several: Sequence[Source] = [sources] if one else sources  # type: ignore[list-item, assignment]
        return list(self.stream(several, sets=sets, false_alarm=false_alarm))

    def stream(
        self, sources: Sequence[Source], *, sets: float | None = None, false_alarm: float | None = None
    ) -> Iterator[Prediction]:
        """Like predict, one by one, so that any number of images fits in memory."""
        return self._stream(sources, Rule.of(self.facts, sets=sets, false_alarm=false_alarm))  # what is wrong, at once

    def _stream(self, sources: Sequence[Source], rule: Rule) -> Iterator[Prediction]:
        with ThreadPoolExecutor() as workers:

            def begun(start: int) -> tuple[Sequence[Source], list[Future[Pixels | ImageError]]]:
                chunk = sources[start : start + BATCH]
                return chunk, [workers.submit(self.load, s) for s in chunk]

            ahead = begun(0)
            for start in range(0, len(sources), BATCH):
                (chunk, loading), ahead = ahead, begun(start + BATCH)  # decoded beside what is computed
                yield from self.answered(chunk, [f.result() for f in loading], rule)

    def answered(
        self, sources: Sequence[Source], loaded: Sequence[Pixels | ImageError], rule: Rule | None = None
    ) -> list[Prediction]:
        """The answers for one batch of images, each loaded as pixels (h, w, 3) or with what is wrong with it.

        `rule`: what is asked beside the classes (default: whether the image is unknown, as the model was fitted).
        """
        rule = Rule.of(self.facts) if rule is None else rule
        good = [x for x in loaded if not isinstance(x, ImageError)]
        rows = iter(self._told(np.stack(good)) if good else ())
        found = []
        for source, x in zip(sources, loaded, strict=True):
            result, strange = (x, None) if isinstance(x, ImageError) else next(rows)
            found.append(answer(source, result, self.facts, strange, rule))
        return found

    def _told(self, batch: Pixels) -> list[tuple[NDArray[np.float32], float | None]]:
        """Of each image its probabilities, and how unlike the training images it is, where that can be told."""
        if self.known is None or self.facts.unknown is None:
            return [(p, None) for p in self.probabilities(batch)]
        scores, pooled = self.glance(batch)
        shares, strange = answers.probabilities(scores, self.facts), self.known.scores(pooled)
        return [(p, float(s)) for p, s in zip(shares, strange, strict=True)]

    def load(self, source: Source) -> Pixels | ImageError:  # (h, w, 3)
        """The pixels of one image as the network was trained on them, or what is wrong with it."""
        try:
            return images.load(source, self.facts.preprocessing)
        except ImageError as error:
            return error
