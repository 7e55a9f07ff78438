"""What is drawn at a terminal is what the records say: numbers, proportions, names, within the width."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from conftest import CLASSES, Finished
from topwork import evaluate, terminal
from topwork.records import (
    CutScore,
    Dataset,
    Estimate,
    Example,
    Fault,
    GroupCount,
    Grouped,
    Growth,
    GrowthPoint,
    Metrics,
    Plan,
    Recipe,
    RunRecord,
    Shortcut,
    Standing,
    Suspect,
    Suspects,
    Trial,
)

WIDTHS = [20, 40, 80, 200]
BAR_CELLS = "█▉▊▋▌▍▎▏"  # from eight eighths to one


def console(width: int = 80) -> Console:
    return Console(record=True, width=width, file=io.StringIO(), force_terminal=False, emoji=terminal.paper()._emoji)


def drawn(draw: str, *facts: object, width: int = 80) -> str:
    """What a function of the room puts on a console."""
    paper = console(width)
    getattr(terminal, draw)(paper, *facts)
    return paper.export_text()


def unwrapped(text: str) -> str:
    """The words alone: where a line is broken depends on the width."""
    return " ".join(text.split())


def scores_of(accuracies: list[float]) -> tuple[CutScore, ...]:
    """A depth table with these accuracies, intervals of 4 points around them."""
    count = len(accuracies)
    return tuple(
        CutScore(
            f"layer{k}", (k + 1) / count, 10 * (k + 1) / count, a, max(0.0, a - 0.02), min(1.0, a + 0.02),
            max(accuracies) - a, 0.0, 0.1,
            64, 1e-2, 300,
        )
        for k, a in enumerate(accuracies)
    )  # fmt: skip


def metrics_of(classes: tuple[str, ...], *, seed: int = 0, n: int = 60, on: str = "test folder") -> Metrics:
    """Metrics of random scores, a third of them right by more than chance."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), n)
    scores = rng.normal(size=(n, len(classes))) + 1.5 * np.eye(len(classes))[labels]
    return evaluate.metrics(scores, labels, classes, temperature=1.0, on=on)


def dataset_of(
    classes: tuple[str, ...],
    *,
    each: int = 3,
    root: str = "photos",
    faults: tuple[Fault, ...] = (),
    warnings: tuple[str, ...] = (),
) -> Dataset:
    examples = [
        Example(f"{name}/{j}.png", i, "train" if j else "test", f"{i}-{j}")
        for i, name in enumerate(classes)
        for j in range(each + i)
    ]
    return Dataset(root, "a folder per class", classes, tuple(examples), faults, warnings)


def many_faults(count: int) -> tuple[Fault, ...]:
    return tuple(Fault(f"bark/{i:03d}.jpg", "unreadable", f"ends after {i} bytes") for i in range(count))


def eighths(row: str) -> int:
    return sum(8 - BAR_CELLS.index(cell) for cell in row if cell in BAR_CELLS)


def depth_rows(text: str) -> list[str]:
    """The rows of the depth table, one per cut."""
    return [line for line in text.splitlines() if re.match(r"\s*(layer\d|blocks\.|bn\d)", line)]


@pytest.fixture(scope="module")
def record(finished: Finished) -> RunRecord:
    return finished.run.record


@pytest.fixture
def plan(record: RunRecord) -> Plan:
    return record.plan


# ---------------------------------------------------------------------------------------------- the depth table


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_bars_are_as_long_as_their_cuts_are_right(finished: Finished, accuracies: list[float]) -> None:
    """Length is linear in accuracy: every pair of bars differs as their accuracies do."""
    scores = scores_of(accuracies)
    decided = replace(finished.run.plan, cut="layer0", best_cut="layer0")
    rows = depth_rows(drawn("depth", scores, decided))
    assert len(rows) == len(scores)
    lengths = [eighths(row) for row in rows]
    assert max(lengths) <= 8 * terminal.BAR
    floor = max(0.0, min(s.low for s in scores) - 0.02)  # what the last line says, less its rounding
    per_accuracy = 8 * terminal.BAR / (max(s.high for s in scores) - floor)
    for (one, other), (short, long) in zip(pairwise(accuracies), pairwise(lengths), strict=True):
        assert abs((long - short) - per_accuracy * (other - one)) <= 1.01  # each is rounded to an eighth


def test_the_floor_of_the_bars_is_told(plan: Plan) -> None:
    """Bars that do not start at zero exaggerate: whoever reads must know."""
    assert "bars start at 66%" in drawn("depth", scores_of([0.7, 0.8, 0.9]), plan)
    assert "bars start at 0%" in drawn("depth", scores_of([0.02, 0.9]), plan)


def test_the_depth_table_shows_the_records_numbers(record: RunRecord) -> None:
    rows = depth_rows(drawn("depth", record.scores, record.plan))
    assert len(rows) == len(record.scores)
    for row, score in zip(rows, record.scores, strict=True):
        assert row.split()[0] == score.cut
        accuracy, low, high, cost = map(float, re.findall(r"(\S+)%\s+(\S+)-(\S+)\s+(\S+)%", row)[0])
        assert accuracy == pytest.approx(100 * score.accuracy, abs=0.051)
        assert (low, high) == pytest.approx((100 * score.low, 100 * score.high), abs=0.051)
        assert cost == pytest.approx(100 * score.cost_share, abs=0.51)


def test_numbers_outlive_the_bars_in_a_narrow_terminal(record: RunRecord) -> None:
    text = drawn("depth", record.scores, record.plan, width=60)
    for score in record.scores:
        assert f"{100 * score.accuracy:.1f}%" in text


def test_the_chosen_and_the_best_cut_are_marked(plan: Plan) -> None:
    decided = replace(plan, cut="layer1", best_cut="layer2")
    rows = depth_rows(drawn("depth", scores_of([0.5, 0.895, 0.9]), decided))
    assert [row.partition("<- ")[2].strip() for row in rows] == ["", "chosen", "best"]
    rows = depth_rows(drawn("depth", scores_of([0.5, 0.895, 0.9]), replace(decided, cut="layer2")))
    assert [row.partition("<- ")[2].strip() for row in rows] == ["", "", "chosen"]


def test_cuts_that_were_measured_on_a_sample_are_marked(plan: Plan) -> None:
    decided = replace(plan, cut="layer0", best_cut="layer0")
    *most, last = scores_of([0.9, 0.8, 0.7])
    text = drawn("depth", (*most, replace(last, images=100)), decided)
    assert [row.rpartition("%")[2].strip() for row in depth_rows(text)] == ["<- chosen", "", "of 100"]
    assert "of N: measured on N of 300 images; the others did not pass up to there" in unwrapped(text)
    assert "of N" not in drawn("depth", scores_of([0.9, 0.8, 0.7]), decided)


def test_no_accuracy_at_all_is_no_crash(plan: Plan) -> None:
    assert len(depth_rows(drawn("depth", scores_of([0.0, 0.0]), plan))) == 2


# ---------------------------------------------------------------------------------------------- plan and training


def test_every_reason_of_the_plan_is_told(plan: Plan) -> None:
    said = unwrapped(drawn("plan", plan))
    for reason in plan.reasons:
        assert f"- {unwrapped(reason)}" in said
    assert "undecided" not in drawn("plan", replace(plan, decided=True, reasons=()))
    assert "undecided" in drawn("plan", replace(plan, decided=False, reasons=()))


@pytest.mark.parametrize("strategy", ["suffix", "full", "surgical"])
def test_a_trial_shows_its_numbers(strategy: str) -> None:
    recipe = Recipe(strategy, "layer4", "layer2", lr=0.003, epochs=12)  # type: ignore[arg-type]
    tried = Trial("resnet18", 224, recipe, "short", 1, 40, 0.876, 0.4321, 0.821, 12.4, (1.0, 0.5))
    said = unwrapped(drawn("trial", tried))
    for part in ("short", "layer4", "0.003", "12 epochs", "87.6%", "82.1%", "12 s"):
        assert part in said
    if strategy != "full":
        assert "layer2" in said


@pytest.mark.parametrize(("seconds", "shown"), [(45.0, "45 s"), (119.0, "119 s"), (600.0, "10 min")])
def test_what_training_may_cost_is_said_before_it_starts(seconds: float, shown: str) -> None:
    said = unwrapped(drawn("budget", seconds, 40.0))
    assert shown in said
    assert "40 FE" in said


# ---------------------------------------------------------------------------------------------- data and faults


def test_the_data_are_counted_by_class_and_part() -> None:
    said = drawn("dataset", dataset_of(("ash", "oak"), each=3, warnings=("Two are alike.",)))
    assert "7 images in 2 classes under photos" in said
    assert "ash 3, oak 4" in said
    assert "2 test, 5 train" in said
    assert "Two are alike." in said


def test_thousands_are_set_apart() -> None:
    said = drawn("dataset", dataset_of(("ash", "oak"), each=1000))
    assert "2,001 images" in said
    assert "ash 1,000, oak 1,001" in said


def test_more_classes_than_fit_are_counted() -> None:
    names = tuple(f"kind{i:02d}" for i in range(23))
    said = unwrapped(drawn("dataset", dataset_of(names)))
    assert "in 23 classes" in said
    assert "kind19" in said
    assert "kind20" not in said
    assert "and 3 more" in said


@pytest.mark.parametrize("count", [0, 1, 12, 13, 40])
def test_faults_are_listed_or_counted_never_dropped(count: int) -> None:
    said = drawn("faults", many_faults(count))
    listed = re.findall(r"bark/\d{3}\.jpg +unreadable: ends after (\d+) bytes", said)
    assert [int(n) for n in listed] == list(range(min(count, terminal.SHOWN_FAULTS)))
    assert (f"{count} left out" in said) == (count > 0)
    hidden = count - len(listed)
    assert (f"and {hidden} more" in said) == (hidden > 0)


# ---------------------------------------------------------------------------------------------- the result


def test_the_class_table_shows_the_records_numbers(record: RunRecord) -> None:
    found = metrics_of(("ash", "oak", "yew", "elm"))
    said = drawn("metrics", found)
    for i, c in enumerate(found.per_class):
        row = re.search(rf"^ {c.name} +(\d+) +(\d+)% +(\d+)-(\d+) +(\d+)% +(\w+) \((\d+)\) *$", said, re.MULTILINE)
        assert row is not None, c.name
        n, recall, low, high, precision = (int(v) for v in row.groups()[:5])
        assert n == c.n
        assert (recall, low, high) == pytest.approx(
            [100 * v for v in (c.recall, c.recall_low, c.recall_high)], abs=0.51
        )
        assert c.precision is not None
        assert precision == pytest.approx(100 * c.precision, abs=0.51)
        other = found.confusion[i][("ash", "oak", "yew", "elm").index(row[6])]
        assert other == int(row[7]) == max(v for j, v in enumerate(found.confusion[i]) if j != i)


def test_the_result_shows_its_interval_and_what_it_was_measured_on() -> None:
    found = metrics_of(("ash", "oak", "yew"))
    said = unwrapped(drawn("metrics", found))
    for estimate in (found.accuracy, found.balanced_accuracy):
        shown = f"{100 * estimate.value:.1f}% (95%: {100 * estimate.low:.1f} to {100 * estimate.high:.1f})"
        assert f"accuracy {shown}" in said
    assert "on the test folder (60 images)" in said
    assert f"log-loss {found.log_loss:.3f}" in said
    assert f"calibration error {100 * found.calibration_error:.1f} points" in said


def test_the_correction_for_choosing_is_told() -> None:
    found = metrics_of(("ash", "oak"))
    corrected = replace(found, naive_accuracy=0.84, accuracy=Estimate(0.815, 0.7, 0.9, 60, "out-of-sample"))
    said = unwrapped(drawn("metrics", corrected))
    assert "accuracy 81.5% (95%: 70.0 to 90.0) out of sample over 60 images, after taking off 2.5 points" in said


@pytest.mark.parametrize("on", ["held-out/photos", "photos"])  # fmt: skip
def test_a_judged_folder_is_named_as_one(on: str) -> None:
    assert f"on the 60 images of {on}" in unwrapped(drawn("metrics", metrics_of(("ash", "oak"), on=on)))


def test_a_class_without_images_or_answers_has_no_share() -> None:
    found = evaluate.metrics(
        np.array([[2.0, 1.0, 0.0]] * 4),
        np.array([0, 0, 0, 1]),
        ("ash", "oak", "yew"),
        temperature=1.0,
        on="test folder",
    )
    said = drawn("metrics", found)
    assert re.search(r"^ oak +1 +0% +\d+-\d+ +- +ash \(1\) *$", said, re.MULTILINE)
    assert re.search(r"^ yew +0 +- +- +- *$", said, re.MULTILINE)


def test_of_many_classes_the_worst_are_shown() -> None:
    found = metrics_of(tuple(f"kind{i:02d}" for i in range(30)), n=400)
    said = drawn("metrics", found)
    shown = re.findall(r"^ (kind\d\d) ", said, re.MULTILINE)
    recalls = {c.name: c.recall for c in found.per_class}
    assert len(shown) == terminal.SHOWN_CLASSES
    assert max(recalls[name] for name in shown) <= min(r for name, r in recalls.items() if name not in shown)
    assert f"the {terminal.SHOWN_CLASSES} classes of lowest recall of 30" in said
    assert drawn("confusion", found) == ""  # thirty columns fit no terminal


def test_the_confusion_matrix_is_the_records() -> None:
    found = metrics_of(("ash", "oak", "yew", "elm"))
    said = drawn("confusion", found)
    rows = re.findall(r"^ (\d) (\w+) +([\d. ]+?) *$", said, re.MULTILINE)
    assert [name for _, name, _ in rows] == ["ash", "oak", "yew", "elm"]
    matrix = [[0 if cell == "." else int(cell) for cell in cells.split()] for _, _, cells in rows]
    assert matrix == [list(row) for row in found.confusion]


def test_what_rows_and_columns_are_is_said_in_one_line() -> None:
    assert "Confusion (rows true, columns predicted)" in drawn("confusion", metrics_of(("a", "b")))


def test_a_loss_of_zero_has_no_sign() -> None:
    sure = evaluate.metrics(
        np.array([[900.0, 0.0], [0.0, 900.0]]), np.array([0, 1]), ("a", "b"), temperature=1.0, on="test folder"
    )
    assert "log-loss 0.000" in drawn("metrics", sure)


def test_the_end_of_a_fit_says_what_it_cost_and_what_to_do_next(record: RunRecord) -> None:
    said = unwrapped(drawn("outcome", record, "runs/mine"))
    spent = record.spending
    assert f"{spent.total_seconds:.1f} s = {spent.cost_fe:.2f} FE" in said
    assert f"{spent.images_passed} images passed now" in said
    m = record.model
    assert f"keeps {m.params / 1e6:.2f} of {m.whole_params / 1e6:.2f} M parameters" in said
    assert f"{m.file_bytes / 1e6:.1f} MB; {100 * record.plan.kept_cost:.0f}% of the forward time" in said
    assert f"one image {m.latency_ms:.0f} ms, the whole backbone {m.whole_latency_ms:.0f} ms" in said
    assert unwrapped(record.head.reason) in said
    assert "topwork predict runs/mine " in said
    assert "topwork evaluate runs/mine " in said
    assert "topwork explain runs/mine " in said
    assert "report.html" in said
    without = replace(record, options=replace(record.options, pictures=False))
    assert "report.html" not in drawn("outcome", without, "runs/mine")
    assert all(name in said for name in CLASSES)


# ---------------------------------------------------------------------------------------------- several backbones


def standing(name: str, accuracies: list[float], fate: str = "measured", **given: Any) -> Standing:
    best = max(accuracies)
    scores = tuple(
        replace(s, deficit=0.97 - s.accuracy, deficit_low=0.96 - s.accuracy, deficit_high=0.98 - s.accuracy)
        for s in scores_of(accuracies)
    )
    if best == 0.97:
        scores = tuple(
            replace(s, deficit=0, deficit_low=0, deficit_high=0) if s.accuracy == best else s for s in scores
        )
    facts = {"size_px": 224, "reason": "why", "top1": None, "n": 300, "forward_ms": 9.0, "facts": None} | given
    return Standing(name, fate=fate, scores=scores, **facts)  # type: ignore[arg-type]


LEFT_OUT = Standing("gone", 96, "left out", "its pass would take about 90 s", 0.8, 0, 12.0, None, ())
RANKED = (
    standing("resnet18", [0.8, 0.93], "chosen"), standing("convnext_tiny", [0.9, 0.97]),
    standing("vgg11", [0.7, 0.6], "stopped", n=200), LEFT_OUT,
)  # fmt: skip


def test_the_ranking_shows_the_records_numbers() -> None:
    rows = drawn("ranking", RANKED, width=120).splitlines()
    for s in RANKED[:3]:
        (row,) = [row for row in rows if s.backbone in row]
        best = s.best
        assert best is not None
        cells = [best.cut, f"{100 * best.accuracy:.1f}%", f"{100 * best.low:.1f}-{100 * best.high:.1f}"]
        cells.append(f"{best.cost_ms:.3g}")
        if best.deficit:
            cells.append(
                f"{100 * best.deficit:.1f} ({100 * best.deficit_low:.1f} to {100 * best.deficit_high:.1f})"
            )  # fmt: skip
        cells.append({"chosen": "<- chosen", "stopped": "stopped at 200", "measured": ""}[s.fate])
        place = 0
        for cell in cells:
            assert cell in row[place:], (cell, row)
            place = row.index(cell, place) + len(cell)
    assert not any("gone" in row for row in rows)
    assert [next(i for i, row in enumerate(rows) if s.backbone in row) for s in RANKED[:3]] == [3, 4, 5]


def test_one_backbone_is_no_ranking() -> None:
    assert drawn("ranking", RANKED[:1]) == ""
    assert drawn("ranking", (RANKED[0], LEFT_OUT)) == ""


def test_sizes_are_told_where_a_backbone_has_several() -> None:
    both = (standing("resnet18", [0.9], "chosen", size_px=112), standing("resnet18", [0.97], size_px=224))
    said = drawn("ranking", both, width=120)
    assert "resnet18 112 px" in said
    assert "resnet18 224 px" in said
    assert "px" not in drawn("ranking", RANKED, width=120).split("behind", 1)[1]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_ranking_keeps_its_numbers_in_any_terminal(width: int) -> None:
    """Names are folded; numbers are never cut. Below a certain width it is no table, but a line per backbone."""
    long = tuple(replace(s, backbone=f"timm:{s.backbone}.a_tag_of_many_words_in22k_ft_in1k") for s in RANKED)
    text = drawn("ranking", long, width=width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    squeezed = unwrapped(text).replace(" ", "")
    for s in long[:3]:
        best = s.best
        assert best is not None
        assert f"{best.accuracy:.1%}" in squeezed
        assert f"{best.cost_ms:.3g}" in squeezed
        if best.deficit:
            assert f"{100 * best.deficit:.1f}({100 * best.deficit_low:.1f}to{100 * best.deficit_high:.1f})" in squeezed


@pytest.mark.parametrize(("fate", "word"), [("left out", "Left out"), ("stopped", "Stopped")])
def test_who_is_out_of_the_running_is_told_with_the_reason(fate: Any, word: str) -> None:
    said = unwrapped(drawn("dropped", replace(LEFT_OUT, fate=fate)))
    assert said == f"{word} gone at 96 px: its pass would take about 90 s"
    assert unwrapped(drawn("dropped", replace(LEFT_OUT, size_px=0))).startswith("Left out gone: ")


# ---------------------------------------------------------------------------------------------- names and widths

ODD = ["[red]", "[/]", "[bold]x[/bold]", "back\\", "[link=http://x]y", "Bärlauch 熊", "a  b", "{x}", "%s"]


def named(record: RunRecord, name: str) -> dict[str, str]:
    """Everything that is drawn with somebody else's name in it."""
    odd = metrics_of((name, "oak"))
    return {
        "classes": drawn("dataset", dataset_of((name, "oak"))),
        "root": drawn("dataset", dataset_of(("ash", "oak"), root=name)),
        "warning": drawn("dataset", dataset_of(("ash", "oak"), warnings=(f"{name} is odd",))),
        "faulty file": drawn("faults", (Fault(name, "unreadable", "empty"),)),
        "fault's detail": drawn("faults", (Fault("x.png", "unreadable", name),)),
        "weights": drawn("backbone", replace(record.backbone, weights=name)),
        "cut": drawn("depth", [replace(record.scores[0], cut=name)], record.plan),
        "reason": drawn("plan", replace(record.plan, reasons=(f"Cut after {name}.",))),
        "class table": drawn("metrics", odd),
        "confusion": drawn("confusion", odd),
        "run's folder": drawn("outcome", record, name),
        "backbone": drawn("ranking", (replace(RANKED[0], backbone=name), RANKED[1]), width=120),
        "best cut": drawn(
            "ranking", (replace(RANKED[0], scores=(replace(RANKED[0].scores[1], cut=name),)), RANKED[1]), width=120
        ),
        "dropped backbone": drawn("dropped", replace(LEFT_OUT, backbone=name)),
        "why it was": drawn("dropped", replace(LEFT_OUT, reason=name)),
    }  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_names_are_printed_letter_by_letter(record: RunRecord, name: str) -> None:
    """Markup in a user's own names neither styles, nor vanishes, nor ends the program."""
    for what, said in named(record, name).items():
        assert name in said, what


def test_the_name_of_what_was_judged_is_printed_letter_by_letter() -> None:
    assert "[red]" in drawn("metrics", metrics_of(("ash", "oak"), on="[red]"))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_terminal(record: RunRecord, width: int) -> None:
    wide = ("a class with a name longer than a line of a terminal, as somebody will surely have one, 熊", "oak")
    everything = [
        drawn("dataset", dataset_of(wide, root="/a/folder/" * 12, warnings=("word " * 40,)), width=width),
        drawn("faults", (Fault("bark/" * 30, "unreadable", "ends early " * 10),), width=width),
        drawn("backbone", record.backbone, width=width),
        drawn("depth", record.scores, record.plan, width=width),
        drawn("plan", record.plan, width=width),
        drawn("metrics", metrics_of(wide), width=width),
        drawn("confusion", metrics_of(tuple(f"kind{i}" for i in range(terminal.SHOWN_CLASSES))), width=width),
        drawn("outcome", record, "runs/" + "deep/" * 30, width=width),
        drawn("ranking", RANKED, width=width),
        drawn("dropped", LEFT_OUT, width=width),
    ]
    for text in everything:
        assert text.strip()
        assert max(cell_len(line) for line in text.splitlines()) <= width


# ---------------------------------------------------------------------------------------------- as things happen


def shown(*facts: tuple[str, object]) -> str:
    paper = console()
    watch = terminal.TerminalWatch(paper)
    for what, fact in facts:
        watch.show(what, fact)
    return paper.export_text()


def test_every_fact_is_drawn_as_it_comes(record: RunRecord) -> None:
    """The watch draws what the functions draw, in the order in which it is told."""
    assert "Backbones, each at its best cut" in shown(("standings", RANKED), ("plan", record.plan))
    data, tried = dataset_of(("ash", "oak")), Trial(
        "resnet18", 224, Recipe("full", "bn2", "bn1"), "long", 0, 9, 0.5, 1.0, 0.4, 3.0, ()
    )  # fmt: skip
    said = shown(
        ("data", data), ("backbone", record.backbone), ("dropped", LEFT_OUT), ("faults", many_faults(2)),
        ("standings", record.backbones),
        ("plan", record.plan), ("budget", (90.0, 30.0)), ("tried", tried), ("tuning", record.plan),
    )  # fmt: skip
    parts = [
        drawn("dataset", data), drawn("backbone", record.backbone), drawn("dropped", LEFT_OUT),
        drawn("faults", many_faults(2)),
        drawn("depth", record.scores, record.plan), drawn("plan", record.plan), drawn("budget", 90.0, 30.0),
        drawn("trial", tried), f"  - {record.plan.reasons[-1].split()[0]}",
    ]  # fmt: skip
    places, end = [], 0
    for part in parts:
        end = said.find(part, end)
        places.append(end)
    assert -1 not in places


def test_what_crosses_the_users_own_split_is_told() -> None:
    together = Grouped(
        10, 9, 2, (GroupCount("burst", 1, 2, (("a/1.png", "a/2.png"),)),), (("a/1.png", "a/2.png"),), (2,), 0.5, 0.0
    )
    said = " ".join(shown(("groups", together), ("warnings", ("One scene stands on both sides.",))).split())
    assert "stay on one side, in 1 groups" in said
    assert "One scene stands on both sides." in said
    crossed = " ".join(shown(("groups", replace(together, across=1))).split())
    assert "stay on one side but for your own split" in crossed


def test_facts_that_nobody_draws_are_passed_over(finished: Finished) -> None:
    assert shown(("run", finished.run), ("trial", ("short", None, 0)), ("something new", 7)) == ""


def test_progress_goes_to_standard_error_alone(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then draws as on a terminal
    watch = terminal.TerminalWatch(console())
    for stage in [*terminal.STAGES, "a stage without a text"]:
        watch.begin(stage, 3)
        watch.advance()
        watch.advance(2)
        watch.end()
    watch.advance()  # a late step of a stage that has ended
    watch.end()
    seen = capfd.readouterr()
    assert seen.out == ""
    for text in [*terminal.STAGES.values(), "a stage without a text"]:
        assert text in seen.err
    assert "3/3" in seen.err


def test_a_download_is_told_in_bytes(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    watch = terminal.TerminalWatch(console())
    for total, said in ((4_000_000, "3.0/4.0 MB"), (0, "3.0/? MB")):  # 0: the server does not say how much comes
        watch.begin("pull", total)
        watch.advance(3_000_000)
        watch.end()
        assert said in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capfd.readouterr().err)


def test_every_stage_that_is_announced_has_a_text(finished: Finished) -> None:
    assert {stage for stage, _ in finished.log.stages} <= terminal.STAGES.keys()


# --------------------------------------------------------------------------------------- what speaks against the data


def suspected(count: int, wrong: int) -> Suspects:
    listed = tuple(Suspect(f"[a]/{i}.png", "ash", "birch", 0.97, 0.012 + i / 100) for i in range(count))
    return Suspects(300, 6, count, wrong, listed)


@pytest.mark.parametrize("width", WIDTHS)
def test_suspects_are_counted_and_the_first_ones_named(width: int) -> None:
    text = unwrapped(drawn("suspects", suspected(terminal.SHOWN_SUSPECTS + 4, 3), width=width))
    assert "3 labels look wrong, 9 of 300 are doubtful" in text
    assert text.count("likely birch") == terminal.SHOWN_SUSPECTS
    assert "ash (1%), likely birch (97%)" in text
    assert "run.json" in text
    if width >= 40:
        assert "[a]/0.png" in text


def test_few_suspects_are_all_shown_and_none_are_not_spoken_of() -> None:
    assert "run.json" not in drawn("suspects", suspected(2, 1))
    assert "1 label looks wrong" in unwrapped(drawn("suspects", suspected(2, 1)))
    assert drawn("suspects", suspected(0, 0)) == ""


def test_only_shortcuts_that_warn_are_shown() -> None:
    quiet = Shortcut("colour", 0.3, 0.2, 0.4, 0.25, 0.9, 0.1, 0.0, False, "Colours say little.")
    loud = replace(quiet, kind="camera", warned=True, detail="The camera [x] says it all.")
    text = drawn("shortcuts", (quiet, loud))
    assert "The camera [x] says it all." in text
    assert "Colours" not in text
    assert drawn("shortcuts", (quiet,)) == ""


def test_what_comes_of_the_data_is_shown_as_it_comes() -> None:
    paper = console(200)
    watch = terminal.TerminalWatch(paper)
    points = (GrowthPoint(10.0, 0.5), GrowthPoint(20.0, 0.6))
    grown = Growth(20, points, 0.9, 1.0, 0.5, 0.02, 0.0, 0.04, 0.03, 0.0, 0.06, True, "Twice brings +2.0 points.")
    for what, fact in [
        ("suspects", suspected(1, 1)), ("shortcuts", ()), ("growth", grown), ("suspects", None), ("growth", None),
    ]:  # fmt: skip
        watch.show(what, fact)
    text = paper.export_text()
    assert "More images  Twice brings +2.0 points." in text
    assert text.count("Labels") == 1
