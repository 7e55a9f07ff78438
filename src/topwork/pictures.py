"""What do the depth curves look like? Drawn from records, computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topwork.errors import UsageError
from topwork.files import write as write_whole
from topwork.records import CutScore, Plan, Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

SIZE_IN = (11.0, 5.6)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's (2008), which people with any colour vision tell apart; each goes with a marker of its own, and with
the next one where there are more curves than colours."""

MARKERS = "osD^vPX*"
LOG_FROM = 20  # ratio of costs from which cheap cuts would lie on each other on an even scale
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "svg.fonttype": "none", "svg.hashsalt": "topwork", "text.parse_math": False,
}  # fmt: skip
"""Text stays text, letter by letter, to be searched and read aloud; the same records give the same bytes."""


def write(path: Path, standings: Sequence[Standing], decided: Plan) -> None:
    """Write the depth curves into a new SVG file. Raises UsageError where it exists or cannot be made."""
    if path.exists():
        raise UsageError(f"--picture {path}: exists already and is not overwritten; name another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, depth(standings, decided))
    except OSError as error:
        raise UsageError(f"--picture {path}: cannot be written there ({error.strerror}); name another file") from error


def depth(standings: Sequence[Standing], decided: Plan) -> bytes:
    """Accuracy of every cut against what it costs per image, a curve per backbone: an SVG picture."""
    from matplotlib import rc_context  # noqa: PLC0415 (1 s to import)
    from matplotlib.figure import Figure  # noqa: PLC0415

    drawn = [s for s in standings if s.scores]
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE_IN, layout="constrained")
        axes, curves, labels = figure.add_subplot(), [], []
        for i, s in enumerate(drawn):
            colour, marker = look(i)
            most = max(c.images for c in s.scores)
            labels.append(_label(s))
            curves += _curve(
                axes, [c for c in s.scores if c.images == most], color=colour, marker=marker,
                linestyle="--" if s.fate == "stopped" else "-",
            )  # fmt: skip
            early = [c for c in s.scores if c.images < most]
            if early:  # measured on fewer images: not joined to the others, and with hollow marks
                curves += _curve(axes, early, color=colour, marker=marker, linestyle=":", markerfacecolor="none")
                labels.append(_early_label(s, early))
        _mark(axes, standings, decided)
        costs = [c.cost_ms for s in drawn for c in s.scores]
        if max(costs) > LOG_FROM * min(costs):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda ms, _: f"{ms:g}")
        axes.set_xlabel("measured forward time of the kept layers, ms per image")
        axes.set_ylabel("accuracy, leave-one-out, %")
        axes.set_title("Accuracy at every cut, with 95% intervals", loc="left")
        # Handles and labels by hand: a label that begins with _ would otherwise be left out.
        figure.legend(curves, labels, frameon=False, loc="outside right upper")
        out = BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Title": "Depth curves", "Creator": "topwork"})
    return out.getvalue()


def look(i: int) -> tuple[str, str]:
    """Colour and marker of curve i: no two of len(COLOURS) x len(MARKERS) curves have both in common."""
    return COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def _curve(axes: Axes, scores: Sequence[CutScore], color: str, **look: str) -> list[Line2D]:
    """Accuracy over cost, with its interval as a band."""
    cost = [c.cost_ms for c in scores]
    low, high = [100 * c.low for c in scores], [100 * c.high for c in scores]
    axes.fill_between(cost, low, high, color=color, alpha=0.08, linewidth=0)
    accuracy = [100 * c.accuracy for c in scores]
    return axes.plot(cost, accuracy, color=color, markersize=4, linewidth=1.4, **look)  # type: ignore[arg-type]


def _mark(axes: Axes, standings: Sequence[Standing], decided: Plan) -> None:
    """A ring with its name around the chosen place."""
    score = next(c for c in standings[0].scores if c.cut == decided.cut)
    point = score.cost_ms, 100 * score.accuracy
    axes.plot(*point, marker="o", markersize=13, markerfacecolor="none", markeredgecolor="black", markeredgewidth=1.6)
    axes.annotate(f"chosen: {decided.cut}", point, xytext=(0, 14), textcoords="offset points", ha="center")


def _label(s: Standing) -> str:
    name = f"{s.backbone}, {s.size_px} px"
    return f"{name} (stopped at {s.n} images)" if s.fate == "stopped" else name


def _early_label(s: Standing, early: Sequence[CutScore]) -> str:
    """Of the cuts that a sample alone was passed up to: how many images it had, or from how many to how many."""
    least, most = min(c.images for c in early), max(c.images for c in early)
    return f"{s.backbone}, {s.size_px} px, measured on {f'{least:,} to ' if least < most else ''}{most:,} images"
