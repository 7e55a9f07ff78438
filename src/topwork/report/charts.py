"""How do numbers look? SVG figures, drawn from records; nothing is computed but where things stand.

Every figure is text and shapes that take their colours from the page's style sheet, so that it is right in light and
dark, sharp in print, and can be searched. Points carry their numbers as titles, which browsers show on hover.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from topwork.records import CutScore, Growth, Plan, Standing, Trial

WIDTH = 760.0
"""Units of a figure's width; the page scales it to the column, so that one unit is about one px on a desktop."""

CURVES = 8  # colours and shapes that the style sheet has; where there are more curves, they come round again
LOG_FROM = 20.0  # ratio of costs from which cheap cuts would lie on each other on an even scale


@dataclass
class Axes:
    """A frame with two scales, and what is drawn into it."""

    title: str
    about: str  # what it shows, for those who do not see it
    x: tuple[float, float]
    y: tuple[float, float]
    height: float = 340.0
    log_x: bool = False
    left: float = 56.0
    right: float = 16.0
    top: float = 14.0
    bottom: float = 46.0
    parts: list[Markup] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point stands in the picture."""
        return self.left + self._share(x) * (WIDTH - self.left - self.right), self.top + (
            1 - (y - self.y[0]) / (self.y[1] - self.y[0])
        ) * (self.height - self.top - self.bottom)

    def _share(self, x: float) -> float:
        low, high = self.x
        if self.log_x:
            low, high, x = math.log(low), math.log(high), math.log(x)
        return (x - low) / (high - low)

    def add(self, tag: str, text: str | None = None, **attributes: object) -> None:
        """One element; `class_` becomes class, other underscores dashes."""
        said = "".join(
            f' {k.rstrip("_").replace("_", "-")}="{escape(_short(v))}"' for k, v in attributes.items() if v is not None
        )
        self.parts.append(Markup(f"<{tag}{said}>{escape(text) if text else ''}</{tag}>"))  # noqa: S704 (escaped above)

    def point(self, x: float, y: float, said: str, curve: int) -> None:
        """A mark with its numbers as a title."""
        cx, cy = self.at(x, y)
        self.parts.append(
            Markup('<path class="mark c{}" d="{}" transform="translate({} {})"><title>{}</title></path>').format(
                curve % CURVES, _SHAPES[curve % len(_SHAPES)], _short(cx), _short(cy), said
            )
        )

    def line(self, points: Sequence[tuple[float, float]], class_: str) -> None:
        """Points joined."""
        if len(points) > 1:
            self.add("polyline", points=" ".join(f"{_short(a)},{_short(b)}" for a, b in (self.at(*p) for p in points)),
                     class_=class_)  # fmt: skip

    def band(self, x: Sequence[float], low: Sequence[float], high: Sequence[float], class_: str) -> None:
        """The area between two curves."""
        edge = [*zip(x, high, strict=True), *reversed(list(zip(x, low, strict=True)))]
        self.add("polygon", points=" ".join(f"{_short(a)},{_short(b)}" for a, b in (self.at(*p) for p in edge)),
                 class_=class_)  # fmt: skip

    def bar(self, x: float, low: float, high: float, class_: str) -> None:
        """An interval: a line from low to high."""
        (a, b), (_, c) = self.at(x, low), self.at(x, high)
        self.add("line", x1=a, x2=a, y1=b, y2=c, class_=class_)

    def grid(self, x_name: str, y_name: str, *, percent_x: bool = False, percent_y: bool = True) -> None:
        """Both scales with their names."""
        for v in ticks(*self.y):
            _, y = self.at(self.x[0], v)
            self.add("line", x1=self.left, x2=WIDTH - self.right, y1=y, y2=y, class_="grid")
            self.add(
                "text", f"{100 * v:.4g}%" if percent_y else f"{v:.4g}", x=self.left - 8, y=y + 4, class_="tick end"
            )
        for v in log_ticks(*self.x) if self.log_x else ticks(*self.x):
            x, _ = self.at(v, self.y[0])
            self.add("text", f"{100 * v:.4g}%" if percent_x else f"{v:.4g}", x=x, y=self.height - self.bottom + 18,
                     class_="tick middle")  # fmt: skip
        base = self.height - self.bottom
        self.add("line", x1=self.left, x2=WIDTH - self.right, y1=base, y2=base, class_="axis")
        self.add("text", x_name, x=(self.left + WIDTH - self.right) / 2, y=self.height - 8, class_="name middle")
        self.add("text", y_name, x=0, y=0, class_="name middle",
                 transform=f"translate(13 {_short((self.top + base) / 2)}) rotate(-90)")  # fmt: skip

    def svg(self) -> Markup:
        """The whole figure."""
        return Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>'
        ).format(
            _short(WIDTH), _short(self.height), f"{self.title}. {self.about}", self.title, Markup("").join(self.parts)
        )


_SHAPES = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",  # circle
    "M-3.6,-3.6h7.2v7.2h-7.2z",  # square
    "M0,-4.8L4.4,3.4H-4.4z",  # triangle
    "M0,-5L5,0L0,5L-5,0z",  # diamond
    "M0,4.8L4.4,-3.4H-4.4z",
    "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",  # plus
)


def depth(standings: Sequence[Standing], decided: Plan, *, several: bool = False) -> Markup:
    """Accuracy of every cut, with its interval, against what it costs per image; a curve per backbone.

    `several`: images may have several labels, and what is measured is how well they are ranked.
    """
    drawn = [s for s in standings if s.scores]
    every = [c for s in drawn for c in s.scores]
    costs = [c.cost_ms for c in every]
    log_x = max(costs) > LOG_FROM * min(costs)
    spread = max(costs) - min(costs) or max(costs) or 1.0
    x = (min(costs) / 1.15, max(costs) * 1.15) if log_x else (0.0, max(costs) + 0.04 * spread)
    chosen = next(c for c in standings[0].scores if c.cut == decided.cut)
    axes = Axes(
        "Accuracy at every cut", f"The chosen cut, {decided.cut}, is right on {chosen.accuracy:.1%} of the images.",
        x, span([c.low for c in every], [c.high for c in every]), log_x=log_x, height=360.0, top=38.0,
    )  # fmt: skip
    axes.grid(
        "forward time of the kept layers, ms per image",
        "average precision, leave-one-out" if several else "accuracy, leave-one-out",
    )
    for i, s in enumerate(drawn):
        most = max(c.images for c in s.scores)
        for rows, style in (
            ([c for c in s.scores if c.images == most], "dashed" if s.fate == "stopped" else ""),
            ([c for c in s.scores if c.images < most], "dotted"),
        ):
            if rows:
                at = [c.cost_ms for c in rows]
                axes.band(at, [c.low for c in rows], [c.high for c in rows], f"band c{i % CURVES}")
                axes.line([(c.cost_ms, c.accuracy) for c in rows], f"curve c{i % CURVES} {style}".strip())
        for c in s.scores:
            axes.point(c.cost_ms, c.accuracy, _said(s, c), i)
    cx, cy = axes.at(chosen.cost_ms, chosen.accuracy)
    axes.add("circle", cx=cx, cy=cy, r=9, class_="ring")
    side = "label end" if cx > WIDTH * 0.8 else "label" if cx < WIDTH * 0.2 else "label middle"
    axes.add("text", f"chosen: {decided.cut}", x=cx, y=cy - 26, class_=side)
    return axes.svg()


def _said(s: Standing, c: CutScore) -> str:
    return (
        f"{s.backbone} {s.size_px} px, {c.cut}: {c.accuracy:.1%} ({100 * c.low:.1f} to {100 * c.high:.1f}),"
        f" {c.cost_ms:.3g} ms, {c.cost_share:.0%} of the forward time"
    )


def reliability(bins: Sequence[tuple[float, float, float, float, int]]) -> Markup:
    """How often an answer of a stated probability is right: (probability, share right, low, high, images) per bin."""
    axes = Axes("Calibration", "How often the answer is right, against the probability that it was given.",
                (0.0, 1.0), (0.0, 1.0), height=320.0)  # fmt: skip
    axes.grid("probability that the model gave its answer", "share that is right", percent_x=True)
    axes.line([(0.0, 0.0), (1.0, 1.0)], "reference")
    for probability, right, low, high, n in bins:
        axes.bar(probability, low, high, "interval")
        axes.point(
            probability, right, f"{n} answers given {probability:.0%}: {right:.0%} right ({low:.0%} to {high:.0%})", 0
        )
    return axes.svg()


def training(trials: Sequence[Trial]) -> Markup:
    """Mean training loss of each epoch, a curve per trial."""
    longest = max(len(t.losses) for t in trials)
    losses = [v for t in trials for v in t.losses if math.isfinite(v)]
    scale = span([min(losses)], [max(losses)], within=(0.0, math.inf))
    axes = Axes(
        "Training loss", "Mean loss of each epoch, one curve for each training that was tried.",
        (1.0, float(max(2, longest))), scale, height=280.0,
    )  # fmt: skip
    axes.grid("epoch", "loss", percent_y=False)
    for i, t in enumerate(trials):
        points = [(e + 1.0, v) for e, v in enumerate(t.losses) if math.isfinite(v)]
        axes.line(points, f"curve c{i % CURVES}")
        for e, v in points[-1:]:
            axes.point(
                e, v, f"{t.rung}, {t.recipe.strategy} from {t.recipe.unfreeze}, rate {t.recipe.lr:.2g}: loss {v:.3g}", i
            )
    return axes.svg()


def growth(found: Growth) -> Markup:
    """Accuracy out of sample against the number of images: as measured, as fitted, and on to four times as many."""
    n, most = float(found.images), 4.0 * found.images
    first = found.points[0].images
    measured = [(p.images, p.accuracy) for p in found.points]
    now = found.a - found.b * n**-found.c
    ahead = [(2 * n, found.twice, found.twice_low, found.twice_high)]
    ahead.append((most, found.four_times, found.four_times_low, found.four_times_high))
    low = [now, *(now + a for _, _, a, _ in ahead)]
    high = [now, *(now + b for _, _, _, b in ahead)]
    axes = Axes(
        "Learning curve", found.reason, (first / 1.1, most * 1.1),
        span([*low, *(a for _, a in measured)], [*high, *(a for _, a in measured)]), log_x=True, height=300.0,
    )  # fmt: skip
    axes.grid("images to learn from", "accuracy, out of sample")
    axes.band([n, 2 * n, most], low, high, "band c1")
    steps = [first * (most / first) ** (i / 60) for i in range(61)]
    axes.line([(x, found.a - found.b * x**-found.c) for x in [*(x for x in steps if x < n), n]], "curve c1")
    axes.line([(n, now), *((x, now + gain) for x, gain, _, _ in ahead)], "curve c1 dashed")
    for x, accuracy in measured:
        axes.point(x, accuracy, f"{x:,.0f} images: {accuracy:.1%}", 0)
    for x, gain, a, b in ahead:
        said = f"{x:,.0f} images: {100 * gain:+.1f} points (95%: {100 * a:+.1f} to {100 * b:+.1f})"
        axes.point(x, now + gain, said, 1)
    return axes.svg()


def span(low: Sequence[float], high: Sequence[float], within: tuple[float, float] = (0.0, 1.0)) -> tuple[float, float]:
    """A scale from a little below the least to a little above the largest."""
    a, b = min(low), max(high)
    room = 0.06 * ((b - a) or 0.1)
    return max(within[0], a - room), min(within[1], b + room)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from low to high, some `about` of them: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]


def _short(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
