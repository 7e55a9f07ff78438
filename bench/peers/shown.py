"""How did they do? Tables and the picture, from the runs that were recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from topwork.pictures import COLOURS, STYLE

MINUTES = (1, 2, 4, 8)
FASTER = 8  # the target: so many times less wall time than fastai's default, at equal or better accuracy
OURS, THEIRS = "topwork", "fastai"
PANEL_IN, COLUMNS = (5.4, 3.6), 2
FIRST_S = 4.0  # where the picture's logarithmic axis begins
DEEP = 40.0  # points below the best end at which a panel is cut off
APART = 0.047  # of a panel's height: labels closer than this are moved apart


def show(rows: Sequence[dict[str, Any]], *, order: Sequence[str], picture: Path) -> dict[str, object]:
    """Print a table per set and the comparison; write the picture; the figures, for the last line of JSON."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    figures = {name: _set(name, [r for r in rows if r["set"] == name], order) for name in sets}
    against = _against(figures)
    if rows:
        _draw(figures, rows, order, picture)
        print(f"\npicture: {picture.with_suffix('.svg')}, {picture.with_suffix('.png')}")
    return {"sets": figures, "against_fastai": against, "ahead_of_topwork": _ahead(figures)}


def reached(row: dict[str, Any], seconds: float) -> float | None:
    """Accuracy of a run's last answer by then; None before the first, and after the run was stopped."""
    if not row["finished"] and seconds > row["limit_s"]:
        return None
    return next((p["accuracy"] for p in reversed(row["points"]) if p["seconds"] <= seconds), None)


def _middle(values: Sequence[float | None]) -> float | None:
    """The median; None where half of the runs or more have no value."""
    there = [v for v in values if v is not None]
    return median(there) if 2 * len(there) > len(values) else None


def _set(name: str, rows: Sequence[dict[str, Any]], order: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = {}
    print(f"\n{name}: {rows[0]['train']} training images, {rows[0]['test']} test images, {rows[0]['size_px']} px\n")
    columns = ["peer", "runs", "accuracy %", "wall s", "CPU s", "peak MiB", *(f"{m} min" for m in MINUTES)]
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for peer in (p for p in order if any(r["peer"] == p for r in rows)):
        own = [r for r in rows if r["peer"] == peer]
        row = {
            "runs": len(own), "finished": sum(r["finished"] for r in own),
            "accuracy": _middle([reached(r, r["limit_s"]) for r in own]),
            "wall_s": median(r["wall_s"] for r in own), "cpu_s": median(r["cpu_s"] for r in own),
            "peak_mib": median(r["peak_mib"] for r in own),
            "after": {str(m): _middle([reached(r, 60 * m) for r in own]) for m in MINUTES},
            "failed": sum(not r["finished"] and not r["stopped"] for r in own),
        }  # fmt: skip
        found[peer] = row
        sign = "" if 2 * row["finished"] > row["runs"] else "> "
        cells = [
            peer, str(row["runs"]) + (f", {row['failed']} failed" if row["failed"] else ""), _percent(row["accuracy"]),
            f"{sign}{row['wall_s']:.1f}", f"{row['cpu_s']:.0f}", f"{row['peak_mib']:.0f}",
            *(_percent(v) for v in row["after"].values()),
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    return found


def _against(figures: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """topwork's ways against fastai's default, set by set."""
    found = []
    for name, peers in figures.items():
        theirs = peers.get(THEIRS)
        for peer, ours in peers.items():
            if theirs and peer.startswith(OURS) and None not in (ours["accuracy"], theirs["accuracy"]):
                found.append(
                    {
                        "set": name, "peer": peer, "times_faster": theirs["wall_s"] / ours["wall_s"],
                        "at_least": 2 * theirs["finished"] <= theirs["runs"],  # it was stopped before its end
                        "points": 100 * (ours["accuracy"] - theirs["accuracy"]),
                    }
                )  # fmt: skip
    if found:
        print(f"\nagainst {THEIRS} (its default): wall time over ours, accuracy minus theirs in points\n")
        print("| set | way | times faster | points | target |\n| --- | --- | --- | --- | --- |")
        for f in found:
            met = "met" if f["times_faster"] >= FASTER and f["points"] >= 0 else "missed"
            sign = ">= " if f["at_least"] else ""
            print(f"| {f['set']} | {f['peer']} | {sign}{f['times_faster']:.1f} | {f['points']:+.1f} | {met} |")
    return found


def _ahead(figures: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Where a peer stands above topwork: after the same minutes, on the same set, for each of topwork's ways."""
    found = []
    for name, peers in figures.items():
        for way in (p for p in peers if p.startswith(OURS)):
            for m in map(str, MINUTES):
                ours = peers[way]["after"][m]
                for peer, row in peers.items():
                    theirs = row["after"][m]
                    if not peer.startswith(OURS) and theirs is not None and (ours is None or theirs > ours):
                        lead = None if ours is None else 100 * (theirs - ours)
                        found.append({"set": name, "way": way, "minutes": int(m), "peer": peer, "points": lead})
    if found:
        print("\npeers above topwork, at the same minute\n")
        print("| set | way | minutes | peers, points ahead |\n| --- | --- | --- | --- |")
        keys = dict.fromkeys((f["set"], f["way"], f["minutes"]) for f in found)
        for key in keys:
            those = [f for f in found if (f["set"], f["way"], f["minutes"]) == key]
            none = those[0]["points"] is None
            text = ", ".join(f["peer"] + ("" if none else f" {f['points']:+.1f}") for f in those)
            text = f"no answer of ours yet; {len(those)} peers have one" if none else text
            print(f"| {key[0]} | {key[1]} | {key[2]} | {text} |")
    return found


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


# ---- the picture


def _draw(
    figures: dict[str, dict[str, dict[str, Any]]], rows: Sequence[dict[str, Any]], order: Sequence[str], picture: Path
) -> None:
    """Accuracy reached against time, a panel per set, each curve named at its end."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    families = list(dict.fromkeys(p.partition("-")[0] for p in order))
    end = max((r["limit_s"] for r in rows), default=480.0)
    height = -(-len(figures) // COLUMNS)
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMNS * PANEL_IN[0], height * PANEL_IN[1]), layout="constrained")
        panels = list(figure.subplots(height, COLUMNS, squeeze=False).flat)
        for axes, (name, peers) in zip(panels, figures.items(), strict=False):
            ends = []
            for peer in peers:
                x, y = _curve([r for r in rows if r["set"] == name and r["peer"] == peer], end)
                if not x:
                    continue
                colour = COLOURS[families.index(peer.partition("-")[0]) % len(COLOURS)]
                ours = peer.startswith(OURS)
                axes.step(
                    x, y, where="post", color=colour, linewidth=2.4 if ours else 1.2, zorder=3 if ours else 2,
                    linestyle="--" if "-" in peer else "-",
                )  # fmt: skip
                axes.plot(x[:1], y[:1], "o", color=colour, markersize=5 if ours else 3, zorder=4)
                ends.append((y[-1], peer, colour))
            first = next(r for r in rows if r["set"] == name)
            axes.set_title(f"{name}, {first['train']} training images", loc="left")
            axes.set_xscale("log")
            axes.set_xlim(FIRST_S, end)
            ticks = [t for t in (5, 10, 20, 60, 120, 240, 480, 960) if FIRST_S <= t <= end]
            axes.set_xticks(ticks, [f"{t} s" if t < 60 else f"{t // 60} min" for t in ticks])
            axes.minorticks_off()
            axes.set_ylabel("accuracy on the test part, %")
            if ends:
                axes.set_ylim(bottom=max(axes.get_ylim()[0], max(y for y, *_ in ends) - DEEP))
            _labels(axes, ends)
        for axes in panels[len(figures) :]:
            axes.set_visible(False)
        figure.suptitle("Accuracy reached, against time since the process was started (medians)", x=0.01, ha="left")
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture.with_suffix(".svg"), metadata={"Date": None, "Title": "Accuracy against time"})
        figure.savefig(picture.with_suffix(".png"), dpi=110)


def _curve(runs: Sequence[dict[str, Any]], end: float) -> tuple[list[float], list[float]]:
    """The median over runs of what was reached, at every time at which one of them changes, up to `end`."""
    times = sorted({p["seconds"] for row in runs for p in row["points"] if p["seconds"] <= end})
    pairs = [(t, _middle([reached(row, t) for row in runs])) for t in times]
    kept = [(t, 100 * v) for t, v in pairs if v is not None]
    if not kept:
        return [], []
    last = end if all(row["finished"] for row in runs) else min(row["limit_s"] for row in runs if not row["finished"])
    return [t for t, _ in kept] + [max(last, kept[-1][0])], [v for _, v in kept] + [kept[-1][1]]


def _labels(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names right of the curves' ends, in the order of their heights, moved apart where they would overlap."""
    if not ends:
        return
    low, high = axes.get_ylim()
    wanted = sorted((max(0.0, (y - low) / (high - low)), y, peer, colour) for y, peer, colour in ends)
    places: list[float] = []
    for height, *_ in wanted:
        places.append(max(height, places[-1] + APART) if places else height)
    over = max(0.0, places[-1] - 1.0)
    for i in reversed(range(len(places))):  # back down where they ran out of the top
        ceiling = places[i + 1] - APART if i + 1 < len(places) else places[i] - over
        places[i] = min(places[i], ceiling)
    for place, (height, y, peer, colour) in zip(places, wanted, strict=True):
        axes.annotate(
            f"{peer} {y:.1f}", xy=(1, height), xycoords="axes fraction", xytext=(1.06, place),
            textcoords="axes fraction", color=colour, fontsize=8, va="center",
            fontweight="bold" if peer.startswith(OURS) else "normal",
            arrowprops={
                "arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5),
            },
        )  # fmt: skip
