"""Where did it look? NumPy alone, whatever computed the scores.

The head is linear on the averages and maxima of channels, so a score is a sum over places: to an average each gives its
value over their number (class activation maps, Zhou et al., CVPR 2016), to a maximum its Shapley value, which has a
closed form. Together these are the Shapley values of the places for the whole score: nothing is approximated and
nothing left out, a map and its bias add up to it.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from topwork import answers, images
from topwork.answers import Prediction, Rule, Seen
from topwork.errors import UsageError
from topwork.images import Source
from topwork.known import Known
from topwork.records import ModelFacts

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

GRID = 28
"""Places a side at most: finer maps, of cuts near the input, are summed to them. Finer ones cannot be told apart in a
picture, and 28 is the side of the last maps at a stride of 8 px, as networks have half-way."""

PANEL_PX = 480  # of the longer side of a picture, twice of which are put side by side
OPAQUE = 0.8  # of the place that counts most; others in proportion
FOR, AGAINST = (213, 94, 0), (0, 114, 178)
"""Vermilion and blue of Okabe and Ito (2008), which people with any colour vision tell apart; over grey alone."""

PAPER, INK, FAINT = (255, 255, 255), (25, 25, 25), (110, 110, 110)
GAP_PX, LINE_PX, TEXT_PX = 12, 24, 16
SHOWN_LETTERS = 60  # of a class's name in the legend, per line


class Model(Protocol):
    """What can be explained: whatever computes scores with a linear head on pooled maps."""

    facts: ModelFacts
    known: Known | None

    @property
    def head(self) -> tuple[Floats, Floats]:
        """Weight (2 channels of all taps, C) and bias (C,)."""

    def see(self, batch: NDArray[np.uint8], /) -> Seen:
        """Scores, pooled features and maps of (b, h, w, 3) pixels."""


@dataclass(frozen=True)
class Neighbour:
    """A training image, and how like an image it looks to the model: the cosine of their features, up to 1."""

    path: str  # as in the run's split.parquet: relative to the data's root
    label: str
    similarity: float


@dataclass(frozen=True)
class Explanation:
    """Where a model looked in one image, for one class. Score = bias + the sum of the map, to rounding.

    Where an image has one label, score and map say by how much the class exceeds the mean of all classes, before the
    temperature; where it may have several, they are the class's own.
    """

    prediction: Prediction
    cls: str  # the class that is explained
    map: Floats  # (rows, columns) contribution of every place of what the network saw, from the top left on
    bias: float
    score: float
    image: Image.Image  # upright, in its own proportions; perhaps smaller than the file's
    seen: tuple[float, float, float, float]  # left, top, right, bottom of what the network saw, as shares of the image
    nearest: tuple[Neighbour, ...] = ()  # training images, the most similar first; empty where there is no run

    @property
    def probability(self) -> float:
        """Of the class that is explained."""
        return self.prediction.probabilities[self.cls]

    def overlay(self) -> Image.Image:
        """The image beside itself with the map over it: RGB, with a legend."""
        return _drawn(self)


def explain(
    model: Model, source: Source, cls: str | None = None, nearest: tuple[Neighbour, ...] = ()
) -> tuple[Explanation, Seen]:
    """Where a model looked in one image; default: for the class that it answers. Gives what the model saw, too.

    Raises ImageError where it is no usable image, UsageError where there is no such class.
    """
    checked(model.facts, cls)
    image = images.decode(source, model.facts.preprocessing)
    seen = model.see(np.stack([images.frame(image, model.facts.preprocessing)]))
    shares = answers.probabilities(seen.scores, model.facts)[0]
    told = model.known is not None and model.facts.unknown is not None
    strange = float(model.known.scores(seen.pooled)[0]) if told and model.known is not None else None
    prediction = answers.answer(source, shares, model.facts, strange, Rule.of(model.facts))
    named = cls or prediction.label or model.facts.classes[int(shares.argmax())]
    maps, bias = places(model, seen, np.array([model.facts.classes.index(named)]))
    part = images.seen_part(image.size, model.facts.preprocessing)
    score = float(bias[0] + maps[0].sum(dtype=np.float64))
    return Explanation(prediction, named, maps[0], float(bias[0]), score, image, part, nearest), seen


def checked(facts: ModelFacts, cls: str | None) -> None:
    """Raises UsageError where a class is none of the model's."""
    if cls is None or cls in facts.classes:
        return
    like = get_close_matches(cls, facts.classes, n=3) or list(facts.classes[:5])
    more = ", ..." if len(facts.classes) > len(like) else ""
    raise UsageError(f"--class {cls}: the model has no such class; expected {', '.join(like)}{more}")


def places(
    model: Model,
    seen: Seen,  # of b images
    which: NDArray[np.int64],  # (b,) the class to explain in each
) -> tuple[Floats, Doubles]:
    """Contribution of every place to the score of a class: (b, rows, columns), and the bias: (b,).

    Where an image has one label, it is taken against the mean over all classes, which changes no probability: what
    speaks for all classes alike speaks for none.
    """
    weight, bias = (x.astype(np.float64) for x in model.head)
    own, base = weight[:, which].T, bias[which]
    if not model.facts.multi_label:
        own, base = own - weight.mean(axis=1), base - bias.mean()
    shape = tuple(min(GRID, max(x.shape[i] for x in seen.maps)) for i in (2, 3))
    total, at = np.zeros((len(which), *shape)), 0
    for x in seen.maps:
        channels = x.shape[1]
        average, largest = own[:, at : at + channels], own[:, at + channels : at + 2 * channels]
        at += 2 * channels
        total += moved(_spread(x, average, largest), shape)
    return total.astype(np.float32), base


def moved(maps: Doubles, shape: tuple[int, ...]) -> Doubles:  # (b, h, w), (rows, columns)
    """Maps on another grid over the same square: every cell is shared out by area, so that sums stay as they are."""
    _, h, w = maps.shape
    down, across = _overlap(h, shape[0]), _overlap(w, shape[1])
    result: Doubles = down @ maps @ across.T
    return result


def _spread(x: Floats, average: Doubles, largest: Doubles) -> Doubles:  # (b, c, h, w), (b, c), (b, c) to (b, h, w)
    """What every place of a map gives to a weighted sum of the channels' averages and maxima."""
    b, c, h, w = x.shape
    flat = x.reshape(b, c, h * w).astype(np.float64)
    found = average[:, None, :] @ flat / (h * w) + largest[:, None, :] @ shares_of_maximum(flat)
    result: Doubles = found.reshape(b, h, w)
    return result


def shares_of_maximum(x: Doubles) -> Doubles:  # (..., n)
    """Shapley values of n values for their maximum: (..., n), which add up to it.

    In rising order, every step from one value to the next is shared by those that are at least as large as the next
    (Littlechild and Owen, Management Science 1973: the runway that the largest aeroplane needs).
    """
    order = np.argsort(x, axis=-1, kind="stable")
    rising = np.take_along_axis(x, order, axis=-1)
    steps = np.diff(rising, axis=-1, prepend=0.0) / np.arange(x.shape[-1], 0, -1)
    shares = np.empty_like(rising)
    np.put_along_axis(shares, order, np.cumsum(steps, axis=-1), axis=-1)
    return shares


def _overlap(before: int, after: int) -> Doubles:
    """(after, before): the share of every old cell along a side that lies in every new one."""
    old, new = np.arange(before + 1) / before, np.arange(after + 1) / after
    inside = np.minimum(old[None, 1:], new[1:, None]) - np.maximum(old[None, :-1], new[:-1, None])
    share: Doubles = np.maximum(inside, 0.0) * before
    return share


# ------------------------------------------------------------------------------------------------ the picture


def _drawn(e: Explanation) -> Image.Image:
    scale = PANEL_PX / max(e.image.size)
    size = max(1, round(e.image.width * scale)), max(1, round(e.image.height * scale))
    plain = e.image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    box = tuple(round(share * side) for share, side in zip(e.seen, (*size, *size), strict=True))
    whole = box[0] <= 0 and box[1] <= 0 and box[2] >= size[0] and box[3] >= size[1]
    panels = [_marked(p, box) for p in (plain, coloured(plain, e.map, box))]
    lines = _legend(e, whole)
    font = _font(TEXT_PX)
    width = max(2 * size[0] + GAP_PX, *(round(font.getlength(line)) for line, _ in lines), 420) + 2 * GAP_PX
    canvas = Image.new("RGB", (width, size[1] + (len(lines) + 1) * LINE_PX + 3 * GAP_PX), PAPER)
    for i, panel in enumerate(panels):
        canvas.paste(panel, (GAP_PX + i * (size[0] + GAP_PX), GAP_PX))
    draw, y = ImageDraw.Draw(canvas), size[1] + 2 * GAP_PX
    for line, colour in lines:
        draw.text((GAP_PX, y), line, fill=colour, font=font)
        y += LINE_PX
    _scale(canvas, draw, y)
    return canvas


def coloured(picture: Image.Image, values: Floats, box: tuple[int, ...]) -> Image.Image:
    """A picture in grey with a map over its box (left, top, right, bottom in px): orange for, blue against the class.

    How opaque a place is tells how much it counts, in proportion to the one that counts most.
    """
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] * 0.7 + 60
    most = float(np.abs(values).max()) or 1.0
    size = max(1, box[2] - box[0]), max(1, box[3] - box[1])
    smooth = np.asarray(Image.fromarray(values / np.float32(most)).resize(size, Image.Resampling.BILINEAR))
    field = np.zeros(grey.shape[:2], dtype=np.float32)
    left, top = max(0, box[0]), max(0, box[1])
    inside = field[top : max(0, box[3]), left : max(0, box[2])]
    from_top, from_left = top - box[1], left - box[0]
    inside[:] = smooth[from_top : from_top + inside.shape[0], from_left : from_left + inside.shape[1]]
    return Image.fromarray(_tinted(grey, field))


def _tinted(grey: Floats, field: Floats) -> NDArray[np.uint8]:  # (h, w, 1) of 0..255, (h, w) of -1..1
    colour = np.where(field[..., None] > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    alpha = np.float32(OPAQUE) * np.abs(field)[..., None].clip(0, 1)
    mixed: NDArray[np.uint8] = np.rint((1 - alpha) * grey + alpha * colour).astype(np.uint8)
    return mixed


def _marked(picture: Image.Image, box: tuple[int, ...]) -> Image.Image:
    """What the network did not see is faded, and a frame stands around the rest."""
    faded = Image.blend(picture, Image.new("RGB", picture.size, PAPER), 0.7)
    left, top, right, bottom = max(0, box[0]), max(0, box[1]), min(picture.width, box[2]), min(picture.height, box[3])
    inside = (left, top, right, bottom)
    faded.paste(picture.crop(inside), inside)
    if inside != (0, 0, *picture.size):
        ImageDraw.Draw(faded).rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=INK, width=2)
    return faded


def _legend(e: Explanation, whole: bool) -> list[tuple[str, tuple[int, int, int]]]:
    """Lines and their colours."""
    of = "Why" if e.cls in e.prediction.labels else "What speaks for"
    named = textwrap.wrap(f"{of} {e.cls}, {e.probability:.1%}", SHOWN_LETTERS, max_lines=3, placeholder=" ...")
    lines = [(line, INK) for line in named]
    if e.cls not in e.prediction.labels:
        said = ", ".join(f"{c}, {e.prediction.probabilities[c]:.1%}" for c in e.prediction.labels) or "no label"
        lines += [
            (line, INK) for line in textwrap.wrap(f"Answer: {said}", SHOWN_LETTERS, max_lines=3, placeholder=" ...")
        ]
    if not whole:
        lines.append(("What is faded lies outside the frame: the model did not see it.", FAINT))
    return lines


def _scale(canvas: Image.Image, draw: ImageDraw.ImageDraw, y: int) -> None:
    """The bar of colours with what it means."""
    font, length, height = _font(TEXT_PX), 140, 14
    before, after = "against it ", " for it"
    left = GAP_PX + round(font.getlength(before))
    draw.text((GAP_PX, y), before, fill=INK, font=font)
    field = np.tile(np.linspace(-1, 1, length, dtype=np.float32), (height, 1))
    bar = Image.fromarray(_tinted(np.full((height, length, 1), 165, dtype=np.float32), field))
    canvas.paste(bar, (left, y + 3))
    draw.text((left + length, y), after, fill=INK, font=font)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which comes with matplotlib and knows most alphabets; else Pillow's own."""
    found = find_spec("matplotlib")
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        try:
            return ImageFont.truetype(str(file), size)
        except OSError:
            pass
    return ImageFont.load_default(size)
