"""How do numbers look? SVG figures, drawn from records; nothing is computed but where things stand.

Every figure is text and shapes that take their colours from the page's style sheet, so that it is right in light and
dark, sharp in print, and can be searched. Points carry their numbers as titles, which browsers show on hover. Figures
with scales are drawn twice, for a desktop and for a telephone: text that is scaled down with its figure is not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from markupsafe import Markup, escape

from topwork.records import CutScore, Growth, Plan, ReliabilityBin, Standing, Trial, Unknown
from topwork.report.looks import Point

WIDTH, NARROW = 760.0, 380.0
"""Units of a figure's width; the page scales it to the column, so that one unit is about one px on a desktop, and on a
telephone."""

TICK = 58.0  # units from one number below a figure to the next, at least

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
    width: float = WIDTH
    log_x: bool = False
    left: float = 58.0
    right: float = 24.0
    top: float = 14.0
    bottom: float = 46.0
    parts: list[Markup] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point stands in the picture."""
        return self.left + self._share(x) * (self.width - self.left - self.right), self.top + (
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
                curve % CURVES, SHAPES[curve % len(SHAPES)], _short(cx), _short(cy), said
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

    def grid(
        self, x_name: str, y_name: str, *, percent_x: bool = False, percent_y: bool = True, names: Sequence[str] = ()
    ) -> None:
        """Both scales with their names. `names`: words that stand at 0, 1, 2, ... instead of numbers."""
        for v in ticks(*self.y):
            _, y = self.at(self.x[0], v)
            self.add("line", x1=self.left, x2=self.width - self.right, y1=y, y2=y, class_="grid")
            self.add(
                "text", f"{100 * v:.4g}%" if percent_y else f"{v:.4g}", x=self.left - 8, y=y + 4, class_="tick end"
            )
        below = [(v, f"{100 * v:.4g}%" if percent_x else f"{v:.4g}") for v in self._numbers()]
        for v, said in [*enumerate(names)] if names else below:
            x, _ = self.at(v, self.y[0])
            self.add("text", said, x=x, y=self.height - self.bottom + 18, class_="tick middle")
        base = self.height - self.bottom
        self.add("line", x1=self.left, x2=self.width - self.right, y1=base, y2=base, class_="axis")
        if x_name:
            self.add(
                "text", x_name, x=(self.left + self.width - self.right) / 2, y=self.height - 8, class_="name middle"
            )
        self.add("text", y_name, x=0, y=0, class_="name middle",
                 transform=f"translate(13 {_short((self.top + base) / 2)}) rotate(-90)")  # fmt: skip

    def _numbers(self) -> list[float]:
        """Round numbers below the figure, as many as there is room for."""
        room = int((self.width - self.left - self.right) / TICK)
        if not self.log_x:
            return ticks(*self.x, about=min(6, room))
        every = log_ticks(*self.x)
        few = [v for v in every if abs(math.log10(v) - round(math.log10(v))) < 1e-9]
        return few if len(every) > room and len(few) > 1 else every

    def svg(self) -> Markup:
        """The whole figure."""
        return Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>'
        ).format(
            _short(self.width),
            _short(self.height),
            f"{self.title}. {self.about}",
            self.title,
            Markup("").join(self.parts),
        )


SHAPES = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",  # circle
    "M-3.6,-3.6h7.2v7.2h-7.2z",  # square
    "M0,-4.8L4.4,3.4H-4.4z",  # triangle
    "M0,-5L5,0L0,5L-5,0z",  # diamond
    "M0,4.8L4.4,-3.4H-4.4z",
    "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",  # plus
)


def both(draw: Callable[[float], Markup]) -> Markup:
    """A figure for wide and for narrow windows: the style sheet shows one of them."""
    return Markup('<div class="broad">{}</div><div class="slim">{}</div>').format(draw(WIDTH), draw(NARROW))


def depth(standings: Sequence[Standing], decided: Plan, width: float = WIDTH, *, several: bool = False) -> Markup:
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
        x, span([c.low for c in every], [c.high for c in every]), log_x=log_x, height=360.0, top=38.0, width=width,
    )  # fmt: skip
    axes.grid(
        "forward time of the kept layers, ms per image" if width == WIDTH else "ms per image, kept layers",
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
    side = "label end" if cx > width * 0.7 else "label" if cx < width * 0.3 else "label middle"
    axes.add("text", f"chosen: {decided.cut}", x=cx, y=cy - 26, class_=side)
    return axes.svg()


def _said(s: Standing, c: CutScore) -> str:
    return (
        f"{s.backbone} {s.size_px} px, {c.cut}: {c.accuracy:.1%} ({100 * c.low:.1f} to {100 * c.high:.1f}),"
        f" {c.cost_ms:.3g} ms, {c.cost_share:.0%} of the forward time"
    )


def reliability(bins: Sequence[ReliabilityBin], width: float = WIDTH) -> Markup:
    """How often an answer of a stated probability is right."""
    axes = Axes("Calibration", "How often the answer is right, against the probability that it was given.",
                (0.0, 1.0), (0.0, 1.0), height=320.0, width=width)  # fmt: skip
    axes.grid("probability that was given", "share that is right", percent_x=True)
    axes.line([(0.0, 0.0), (1.0, 1.0)], "reference")
    for b in bins:
        axes.bar(b.probability, b.low, b.high, "interval")
        said = f"{b.n:,} answers given {b.probability:.0%}: {b.right:.0%} right ({b.low:.0%} to {b.high:.0%})"
        axes.point(b.probability, b.right, said, 0)
    return axes.svg()


def unknown(found: Unknown, width: float = WIDTH) -> Markup:
    """Which share of images of the classes lies above a threshold, against the threshold."""
    share = [1 - i / (len(found.quantiles) - 1) for i in range(len(found.quantiles))]
    low, high = min(*found.quantiles, found.threshold), max(*found.quantiles, found.threshold)
    room = 0.03 * ((high - low) or 1.0)
    axes = Axes(
        "Taken for none of the classes",
        f"Share of images of the classes above each threshold; at {found.threshold:.3g} it is {found.false_alarm:.1%}.",
        (low - room, high + room), (0.0, 1.0), height=260.0, width=width, top=26.0,
    )  # fmt: skip
    axes.grid("threshold" if width < WIDTH else f"threshold of the {found.method}",
              "taken for none of them")  # fmt: skip
    axes.line(list(zip(found.quantiles, share, strict=True)), "curve c0")
    axes.bar(found.threshold, 0.0, 1.0, "reference")
    axes.point(found.threshold, found.false_alarm, f"threshold {found.threshold:.3g}: {found.false_alarm:.1%}", 0)
    x, y = axes.at(found.threshold, 1.0)
    axes.add("text", "threshold", x=x, y=y - 8, class_="label end" if x > width / 2 else "label")
    return axes.svg()


Candidate = tuple[str, int, str, str, str, float]
"""What tells one candidate of the search from another: backbone, size, strategy, unfreeze point, cut, rate."""


def candidates(trials: Sequence[Trial]) -> dict[Candidate, int]:
    """The candidates in the order in which they were tried, numbered."""
    return {c: i for i, c in enumerate(dict.fromkeys(map(candidate, trials)))}


def candidate(t: Trial) -> Candidate:
    """Whose training it was."""
    return t.backbone, t.size_px, t.recipe.strategy, t.recipe.unfreeze, t.recipe.cut, t.recipe.lr


def training(trials: Sequence[Trial], number: dict[Candidate, int], width: float = WIDTH) -> Markup:
    """Mean training loss of each epoch, a curve per trial in its candidate's colour."""
    longest = max(len(t.losses) for t in trials)
    losses = [v for t in trials for v in t.losses if math.isfinite(v)]
    scale = span([min(losses)], [max(losses)], within=(0.0, math.inf))
    axes = Axes(
        "Training loss", "Mean loss of each epoch, one curve for each training that was tried.",
        (1.0, float(max(2, longest))), scale, height=280.0, width=width,
    )  # fmt: skip
    axes.grid("epoch", "loss", percent_y=False)
    for t in trials:
        i = number[candidate(t)]
        points = [(e + 1.0, v) for e, v in enumerate(t.losses) if math.isfinite(v)]
        axes.line(
            points, f"curve c{i % CURVES}{'' if t.rung == 'test' else ' dashed' if t.rung == 'long' else ' dotted'}"
        )
        for e, v in points[-1:]:
            said = f"{t.rung}, {t.recipe.strategy} from {t.recipe.unfreeze}, rate {t.recipe.lr:.2g}: loss {v:.3g}"
            axes.point(e, v, said, i)
    return axes.svg()


RUNGS = ("short", "long", "test")
_STROKES = {"short": "dotted", "long": "dashed"}


def rungs(trials: Sequence[Trial], number: dict[Candidate, int], width: float = WIDTH) -> Markup:
    """What each candidate gained over the frozen model's head at each rung; those that went on are joined."""
    there = [r for r in RUNGS if any(t.rung == r for t in trials)]
    gains = [t.accuracy - t.head_accuracy for t in trials]
    low, high = span([*gains, 0.0], [*gains, 0.0], within=(-1.0, 1.0))
    axes = Axes(
        "Rungs of the search", "Gain of each candidate over the frozen model's head, in points, at each rung.",
        (-0.5, len(there) - 0.5), (100 * low, 100 * high), height=260.0, width=width, bottom=34.0,
    )  # fmt: skip
    axes.grid("", "gain in points", percent_y=False, names=there)
    axes.line([(-0.5, 0.0), (len(there) - 0.5, 0.0)], "reference")
    for own, i in number.items():
        aside = 0.5 * ((i + 0.5) / len(number) - 0.5)  # beside each other, not on each other
        at = {r: [t for t in trials if t.rung == r and candidate(t) == own] for r in there}
        joined = [
            (there.index(r) + aside, 100 * fmean(t.accuracy - t.head_accuracy for t in at[r])) for r in there if at[r]
        ]
        axes.line(joined, f"curve thin c{i % CURVES}")
        for r in there:
            for t in at[r]:
                gain = 100 * (t.accuracy - t.head_accuracy)
                said = f"{r}: {t.recipe.strategy} from {t.recipe.unfreeze}, rate {t.recipe.lr:.2g}: {gain:+.1f} points"
                axes.point(there.index(r) + aside, gain, f"{said} on {t.n} images", i)
    return axes.svg()


def growth(found: Growth, width: float = WIDTH) -> Markup:
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
        width=width,
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


MAP = (600.0, 460.0)  # units of the map's width and height: much the same on a desktop and on a telephone
NAMED = 24  # classes up to which their names stand on the map: more would cover it, and are found by pointing
LETTERS = 18  # of a name that stands there
LETTER, SMALL_LETTER = 10.0, 6.2  # units that a letter takes on a telephone, on a desktop: about, to keep names apart
LINE, SMALL_LINE = 20.0, 12.0  # and a line


def embedding(points: Sequence[Point], classes: Sequence[str], answers: dict[str, tuple[str, bool]]) -> Markup:
    """Images as marks in two dimensions, in the colour and shape of their class; wrong answers stand out.

    `answers`: what was said of an image, and whether that was wrong, by path. Each mark is an option of a list box:
    the page's script moves through them by arrow keys. In the order of `points`.
    """
    number = {name: i for i, name in enumerate(classes)}
    x, y = (span(v, v, within=(-math.inf, math.inf)) for v in ([p.x for p in points], [p.y for p in points]))
    axes = Axes("Map of the images", "", x, y, height=MAP[1], width=MAP[0], left=10, right=10, top=10, bottom=10)
    places: dict[str, list[tuple[float, float]]] = {}
    for p in points:
        at, k = axes.at(p.x, p.y), number.get(p.label, CURVES - 1)
        places.setdefault(p.label, []).append(at)
        answer, wrong = answers.get(p.path, ("", False))
        said = f"{p.path}, labelled {p.label or 'with none'}"
        if answer:
            said = f"{said}, answered {answer}{', wrong' if wrong else ''}"
        axes.parts.append(
            Markup(
                '<path role="option" aria-selected="false" class="mark c{}{}" d="{}" transform="translate({} {})"'
                ' aria-label="{}"></path>'
            ).format(
                k % CURVES, " missed" if wrong else "", SHAPES[k % len(SHAPES)], *map(_short, at),
                said,
            )
        )  # fmt: skip
    return Markup(
        '<svg class="chart map" viewBox="0 0 {} {}" role="group" aria-label="Map of the images"><g role="listbox"'
        ' aria-label="{} images; arrow keys go to the next one in that direction">{}</g><g aria-hidden="true">{}</g>'
        "</svg>"
    ).format(*map(_short, MAP), f"{len(points):,}", Markup("").join(axes.parts), _names(places))


def _names(places: dict[str, list[tuple[float, float]]]) -> Markup:
    """Names of classes in the midst of their images, the largest first, where they hide no other name."""
    taken: list[tuple[float, float, float, float]] = []  # as large as names are on a telephone
    small: list[tuple[float, float, float, float]] = []
    found = []
    if len(places) > NAMED:
        return Markup("")
    for label, at in sorted(places.items(), key=lambda item: -len(item[1])):
        name = label if len(label) <= LETTERS else f"{label[: LETTERS - 1]}…"
        half = LETTER * len(name) / 2  # it stays inside the map
        x, y = median(a for a, _ in at), median(b for _, b in at)
        x = min(max(x, half), MAP[0] - half)
        fine = _box(name, x, y, SMALL_LETTER, SMALL_LINE)
        if not name or any(_meet(fine, other) for other in small):
            continue
        small.append(fine)
        large = _box(name, x, y, LETTER, LINE)
        narrow = not any(_meet(large, other) for other in taken)
        taken += [large] if narrow else []
        found.append(
            Markup('<text class="place{}" x="{}" y="{}">{}</text>').format(
                "" if narrow else " fine", _short(x), _short(y + 4), name
            )
        )
    return Markup("").join(found)


def _box(name: str, x: float, y: float, letter: float, line: float) -> tuple[float, float, float, float]:
    """What a name takes: left, top, right, bottom."""
    half = letter * len(name) / 2
    return x - half, y - line / 2, x + half, y + line / 2


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


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
