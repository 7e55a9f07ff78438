"""Who answers a request: from the bytes of its images to what the model says of them?"""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from topwork import answers, explanation, images
from topwork.answers import Rule, Seen
from topwork.asking import Asked
from topwork.errors import ImageError, UsageError
from topwork.explanation import Neighbour
from topwork.records import ModelFacts
from topwork.serve.batching import LANES, MOST, Batcher, FullError
from topwork.serve.guard import Limits, Refused
from topwork.serve.metrics import Counted
from topwork.serve.schema import About, Answer, Answers, Like

Pixels = NDArray[np.uint8]

HEAT_PX = 480  # of a heat map's longer side


class Learnt(Protocol):
    """Training images that are remembered."""

    def nearest(self, pooled: NDArray[np.float32], /) -> Sequence[Sequence[Neighbour]]:
        """Those most alike to each of b images, the most similar first."""
        ...


@dataclass(frozen=True)
class Served:
    """A model, what it is called, and which one it is."""

    name: str
    version: str  # digest of its files: another model, another version
    model: Asked
    learnt: Learnt | None = None  # the training images that it remembers


@dataclass(frozen=True)
class Wanted:
    """What a request asks for beside the class."""

    top: int | None = None  # only so many classes, the most probable ones
    sets: float | None = None  # level of prediction sets
    false_alarm: float | None = None  # default: what the model was fitted with
    heat_map: bool = False
    nearest: int = 0  # training images


@dataclass(frozen=True)
class Sent:
    """One image as it came."""

    name: str | None
    data: bytes


class Desk:
    """The models, a queue for each, and the threads that decode."""

    def __init__(
        self, served: Mapping[str, Served], limits: Limits, counted: Counted, *, batch: int = MOST, lanes: int = LANES
    ) -> None:
        self.served, self._limits, self._counted, self._batch, self._lanes = served, limits, counted, batch, lanes
        self.batchers: dict[str, Batcher] = {}
        self._decoders: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Begin to take images; each model sees a black one, since the first is slow."""
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        for name, s in self.served.items():
            batcher = Batcher(
                s.model.see,
                room=self._limits.waiting,
                most=self._batch,
                lanes=self._lanes,
                told=partial(self._counted.batch, name),
            )
            side = s.model.facts.preprocessing.crop_px
            await batcher.see(np.zeros((side, side, 3), dtype=np.uint8))
            self.batchers[name] = batcher

    async def close(self) -> None:
        """End all threads."""
        for batcher in self.batchers.values():
            await batcher.close()
        self.batchers.clear()
        if self._decoders is not None:
            self._decoders.shutdown(wait=True)

    def chosen(self, name: str | None) -> Served:
        """The model of this name, or the first one. Raises Refused."""
        found = next(iter(self.served.values())) if name is None else self.served.get(name)
        if found is None:
            raise Refused(404, f"no model of this name; there are {', '.join(self.served)}")
        return found

    def full(self) -> list[str]:
        """Models that have no room for one more image."""
        return [n for n, b in self.batchers.items() if b.taken >= self._limits.waiting]

    async def answer(self, name: str | None, sent: Sequence[Sent], wanted: Wanted) -> Answers:
        """What a model says of each image. Raises Refused: 413, 422, 503, 504."""
        s = self.chosen(name)
        batcher = self.batchers[s.name]
        try:
            rule = Rule.of(s.model.facts, sets=wanted.sets, false_alarm=wanted.false_alarm)
        except UsageError as error:
            raise Refused(422, str(error)) from error
        try:
            batcher.take(len(sent))
        except FullError:
            self._counted.full(s.name)
            raise Refused(
                503, f"{batcher.taken} images are waiting; try again in a moment", **{"retry-after": "1"}
            ) from None
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                found = await asyncio.gather(*(self._one(s, one, wanted, rule) for one in sent))
        except TimeoutError:
            raise Refused(504, f"there was no answer within {self._limits.answer_seconds:g} s") from None
        finally:
            batcher.give_back(len(sent))
        for a in found:
            self._counted.image(s.name, "answered" if a.error is None else "unusable")
        if len(found) == 1 and found[0].error is not None:
            too_large = found[0].error.startswith(("too many pixels", "too large"))
            raise Refused(413 if too_large else 422, found[0].error)
        return Answers(model=s.name, version=s.version, results=found)

    async def _one(self, s: Served, sent: Sent, wanted: Wanted, rule: Rule) -> Answer:
        """One image, from its bytes to its answer."""
        facts, beside = s.model.facts, asyncio.get_running_loop().run_in_executor
        loaded = await beside(self._decoders, self._pixels, sent.data, facts)
        heat, near = None, None
        if isinstance(loaded, ImageError):
            said = answers.answer(sent.name or "", loaded, facts)
        else:
            seen = await self.batchers[s.name].see(loaded)
            shares = answers.probabilities(seen.scores, facts)[0]
            known = s.model.known if rule.limit is not None else None
            strange = None if known is None else float(known.scores(seen.pooled)[0])
            said = answers.answer(sent.name or "", shares, facts, strange, rule)
            if wanted.heat_map:
                heat = await beside(self._decoders, _heat_map, s.model, sent.data, seen, int(shares.argmax()))
            if wanted.nearest and s.learnt is not None:
                found = s.learnt.nearest(seen.pooled)[0][: wanted.nearest]
                near = [Like(label=n.label, similarity=n.similarity) for n in found]
        ranked = sorted(said.probabilities.items(), key=lambda kv: -kv[1])[: wanted.top]
        return Answer(
            name=sent.name, label=said.label, labels=list(said.labels), probability=said.probability,
            probabilities=dict(ranked), unknown=said.unknown, unknown_score=said.unknown_score,
            prediction_set=None if said.prediction_set is None else list(said.prediction_set), heat_map=heat,
            nearest=near, error=said.error,
        )  # fmt: skip

    def _pixels(self, data: bytes, facts: ModelFacts) -> Pixels | ImageError:
        """The network's pixels, or what is wrong with the file."""
        limits = self._limits
        try:
            if len(data) > limits.image_bytes:
                raise ImageError("too large", f"{len(data):,} bytes; at most {limits.image_bytes:,} are read")
            width, height = images.size(data)
            if width * height > limits.pixels:
                raise ImageError("too many pixels", f"{width} x {height}; at most {limits.pixels:,}")
            return images.load(data, facts.preprocessing)
        except ImageError as error:
            return error


def _heat_map(model: Asked, data: bytes, seen: Seen, which: int) -> str | None:
    """Where the model looked for a class, over the upright image in grey; None where its head is not at hand."""
    if model.head is None:
        return None
    facts = model.facts
    image = images.decode(data, facts.preprocessing).convert("RGB")
    image.thumbnail((HEAT_PX, HEAT_PX))
    maps, _ = explanation.places(facts, model.head, seen, np.array([which]))
    part = images.seen_part(image.size, facts.preprocessing)
    box = tuple(round(share * side) for share, side in zip(part, (*image.size, *image.size), strict=True))
    out = BytesIO()
    explanation.marked(explanation.coloured(image, maps[0], box), box).save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{b64encode(out.getvalue()).decode()}"


def about(s: Served) -> About:
    """What a model is."""
    f = s.model.facts
    return About(
        name=s.name, version=s.version, backbone=f.backbone, cut=f.cut, classes=list(f.classes),
        several_labels=f.multi_label, size_px=f.preprocessing.crop_px, accuracy=f.accuracy.value,
        accuracy_low=f.accuracy.low, accuracy_high=f.accuracy.high, measured_on=f.accuracy.on,
    )  # fmt: skip
