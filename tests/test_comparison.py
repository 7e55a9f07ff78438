"""Runs side by side: the paired difference is the textbook's, fair, and the same whichever way it is looked at."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import typing
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pyarrow import parquet
from scipy.stats import binom, norm
from sklearn.metrics import label_ranking_average_precision_score

import topwork
from conftest import CLASSES, Finished
from test_architecture import loaded_by
from test_docs import call, leaves, page, sections, table
from test_docs import names as in_backticks
from test_terminal import console
from topwork import comparison, evaluate, terminal
from topwork.errors import DataError, UsageError
from topwork.records import Comparison, Contrast, Estimate, Pair, RunRecord, encode

Answers = Sequence[tuple[str, str]]
"""(label, answer) of each judged image."""


def write_run(
    home: Path,
    record: RunRecord,
    answers: Answers,
    *,
    paths: Sequence[str] | None = None,
    digests: Sequence[str] | None = None,  # () leaves split.parquet out
    groups: Sequence[int] | None = None,
    learnt: Sequence[str] = (),  # digests of images that are not judged
    locked: str = "out-of-sample",
    classes: Sequence[str] = CLASSES,
) -> Path:
    """A run's folder with just what a comparison reads."""
    home.mkdir(parents=True)
    n = len(answers)
    paths = [f"{i:05d}.jpg" for i in range(n)] if paths is None else paths
    digests = [f"d{i}" for i in range(n)] if digests is None else digests
    record = replace(record, data=replace(record.data, locked=locked))
    (home / "run.json").write_bytes(encode(record))
    probabilities = [[0.9 if c == answer else 0.1 / (len(classes) - 1) for c in classes] for _, answer in answers]
    judged = {
        "path": list(paths), "label": [x for x, _ in answers], "predicted": [y for _, y in answers],
        "probability": [0.9] * n, "probabilities": probabilities,
    }  # fmt: skip
    metadata = {"classes": json.dumps(list(classes)), "on": locked}
    parquet.write_table(pa.table(judged, metadata=metadata), home / "predictions.parquet")
    if len(digests):
        split = {
            "path": [*paths, *(f"more/{d}" for d in learnt)], "digest": [*digests, *learnt],
            "label": ["" for _ in range(n + len(learnt))],
            "part": ["train" if locked == "out-of-sample" else "test"] * n + ["train"] * len(learnt),
            "group": [*(range(n) if groups is None else groups), *range(10**6, 10**6 + len(learnt))],
        }  # fmt: skip
        parquet.write_table(pa.table(split, metadata={"locked": locked}), home / "split.parquet")
    return home


def answered(right: Sequence[bool]) -> list[tuple[str, str]]:
    """Images of the classes in turn, answered rightly or with the next class."""
    return [(CLASSES[i % 3], CLASSES[(i + (not ok)) % 3]) for i, ok in enumerate(right)]


def counted(both: int, a: int, b: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Which of two is right: both, the first alone, the second alone, none."""
    n = both + a + b + neither
    order = np.random.default_rng(n).permutation(n)
    one = np.repeat([True, True, False, False], [both, a, b, neither])[order]
    two = np.repeat([True, False, True, False], [both, a, b, neither])[order]
    return one.tolist(), two.tolist()


class Maker:
    """Makes runs of one record, in folders of their own."""

    def __init__(self, home: Path, record: RunRecord) -> None:
        self.home, self.record, self.made = home, record, 0

    def __call__(self, answers: Answers, record: RunRecord | None = None, **given: Any) -> Path:
        self.made += 1
        return write_run(self.home / f"run{self.made}", record or self.record, answers, **given)

    def pair(self, one: Path, two: Path, **given: Any) -> Pair:
        (pair,) = comparison.compare([one, two], **given).pairs
        return pair


@pytest.fixture
def make(tmp_path: Path, finished: Finished) -> Maker:
    return Maker(tmp_path / "runs", finished.run.record)


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory, finished: Finished) -> Maker:
    """The same for tests that draw many examples."""
    return Maker(tmp_path_factory.mktemp("drawn"), finished.run.record)


COUNTS = st.integers(0, 40)


@settings(deadline=None, max_examples=30)
@given(both=st.integers(0, 150), a=COUNTS, b=COUNTS, neither=st.integers(20, 60))
def test_the_difference_is_the_textbooks(maker: Maker, both: int, a: int, b: int, neither: int) -> None:
    """Wald's interval of a paired difference, with one image more in its error; McNemar's test says the same."""
    one, two = counted(both, a, b, neither)
    n = len(one)
    pair = maker.pair(maker(answered(one)), maker(answered(two)))
    assert (pair.shared, pair.only_reference, pair.only_other) == (n, a, b)
    assert pair.difference == pytest.approx((b - a) / n)
    error = math.sqrt((a + b - (b - a) ** 2 / n) / (n * (n - 1)) + 1 / n**2)
    half = norm.ppf(0.975) * error
    assert pair.low == pytest.approx(max(-1, (b - a) / n - half))
    assert pair.high == pytest.approx(min(1, (b - a) / n + half))
    exact = min(1.0, 2 * binom.cdf(min(a, b), a + b, 0.5)) if a + b else 1.0
    mid = exact - binom.pmf(min(a, b), a + b, 0.5) if a != b else 1.0
    if pair.verdict in {"better", "worse"}:
        assert mid < 0.06
        assert (pair.verdict == "better") == (b > a)
    else:
        assert exact > 0.01


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=3, max_size=40), st.randoms(use_true_random=False))
def test_swapping_turns_the_sign_and_no_order_matters(maker: Maker, right: list[tuple[bool, bool]], draw: Any) -> None:
    one, two = (answered([r[k] for r in right]) for k in (0, 1))
    paths, digests = [f"{i}.jpg" for i in range(len(one))], [f"d{i}" for i in range(len(one))]
    order = list(range(len(one)))
    draw.shuffle(order)
    first, second = maker(one, paths=paths, digests=digests), maker(two, paths=paths, digests=digests)
    other = maker(
        [two[i] for i in order], paths=[f"moved/{paths[i]}" for i in order], digests=[digests[i] for i in order]
    )
    there, back, moved = maker.pair(first, second), maker.pair(second, first), maker.pair(first, other)
    assert (there.difference, there.low, there.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert {there.verdict, back.verdict} in ({"better", "worse"}, {"cannot tell"})
    assert (there.only_reference, there.only_other) == (back.only_other, back.only_reference)
    assert replace(moved, name="", reason="") == replace(there, name="", reason="")
    assert moved.notes == there.notes == ()


def test_a_run_beside_itself_differs_in_nothing(finished: Finished) -> None:
    run = finished.run
    found = topwork.compare([run, str(run.path)], disagreements=5)
    (pair,) = found.pairs
    assert (pair.difference, pair.only_reference, pair.only_other, pair.disagreed) == (0, 0, 0, 0)
    assert pair.shared == run.metrics.accuracy.n
    assert (pair.verdict, pair.more_images) == ("cannot tell", None)
    assert found.differences == ()
    assert pair.low == -pair.high < 0
    assert {c.difference for c in pair.classes} == {0.0}
    assert pair.reference == pytest.approx(run.metrics.naive_accuracy)
    recalls = {c.name: c.recall for c in run.metrics.per_class}
    assert {c.name: c.reference for c in pair.classes} == pytest.approx(recalls)
    assert len({r.name for r in found.runs}) == 2
    assert found.runs[0].accuracy == run.metrics.accuracy


def test_images_that_belong_together_are_one_draw(make: Maker) -> None:
    """Five copies of every image tell what one of each would; a group in either run is enough."""
    one, two = counted(50, 4, 14, 12)
    single = make.pair(make(answered(one)), make(answered(two)))
    many = [np.repeat(x, 5).tolist() for x in (one, two)]
    groups = np.repeat(np.arange(len(one)), 5).tolist()
    plain = [make([(CLASSES[0], CLASSES[0 if ok else 1]) for ok in x]) for x in many]
    grouped = make([(CLASSES[0], CLASSES[0 if ok else 1]) for ok in many[1]], groups=groups)
    apart, together = make.pair(plain[0], plain[1]), make.pair(plain[0], grouped)
    assert (together.difference, together.low, together.high) == pytest.approx(
        (single.difference, single.low, single.high)
    )
    assert apart.low is not None and together.low is not None and apart.low > together.low


def test_the_intervals_of_several_pairs_hold_together(make: Maker) -> None:
    one, two = counted(50, 4, 14, 12)
    reference, other = make(answered(one)), make(answered(two))
    (alone,) = comparison.compare([reference, other]).pairs
    four = comparison.compare([reference, other, other, other, other])
    assert [p.difference for p in four.pairs] == [alone.difference] * 4
    wider = norm.ppf(1 - 0.05 / 8) / norm.ppf(0.975)
    assert alone.high is not None and alone.difference is not None
    for pair in four.pairs:
        assert pair.high == pytest.approx(alone.difference + wider * (alone.high - alone.difference))
    assert "hold together" in comparison.together(four)
    assert len({r.name for r in four.runs}) == 5


def test_as_many_images_as_it_says_would_tell(make: Maker) -> None:
    one, two = counted(80, 5, 10, 5)
    pair = make.pair(make(answered(one)), make(answered(two)))
    assert pair.verdict == "cannot tell" and pair.more_images is not None
    times = 1 + pair.more_images / pair.shared
    for factor, decided in ((math.ceil(times), True), (math.floor(times), False)):
        assert factor != times
        more = make.pair(make(answered(one) * factor), make(answered(two) * factor))
        assert (more.verdict == "better") is decided


def test_a_difference_that_no_number_of_images_would_show_is_said(make: Maker) -> None:
    one, two = counted(80, 5, 5, 10)
    assert make.pair(make(answered(one)), make(answered(two))).more_images is None
    one, two = counted(4000, 300, 301, 100)
    pair = make.pair(make(answered(one)), make(answered(two)))
    assert pair.more_images is None and "No realistic number" in pair.reason


def test_classes_that_differ_most_come_first(make: Maker) -> None:
    a, b, c = CLASSES
    one = [(a, a)] * 10 + [(b, b)] * 10 + [(c, c)] * 10
    two = [(a, a)] * 9 + [(a, b)] + [(b, c)] * 6 + [(b, b)] * 4 + [(c, c)] * 10
    pair = make.pair(make(one), make(two))
    assert [(x.name, x.n, x.reference, x.other) for x in pair.classes] == [
        (b, 10, 1.0, 0.4), (a, 10, 1.0, 0.9), (c, 10, 1.0, 1.0)
    ]  # fmt: skip
    assert pair.disagreed == 7


def test_disagreements_are_those_that_were_asked_for(make: Maker) -> None:
    a, b, c = CLASSES
    one, two = make([(a, a), (a, b), (b, c)]), make([(a, a), (a, c), (b, b)])
    pair = make.pair(one, two, disagreements=5)
    assert pair.disagreed == 2  # also where both are wrong
    assert {(d.path, d.label, d.reference, d.other) for d in pair.disagreements} == {
        ("00001.jpg", a, b, c), ("00002.jpg", b, c, b)
    }  # fmt: skip
    assert len(make.pair(one, two, disagreements=1).disagreements) == 1
    assert make.pair(one, two).disagreements == ()


def test_copies_of_one_image_are_paired_one_by_one(make: Maker) -> None:
    a, b, _ = CLASSES
    one = make([(a, a), (a, a), (b, b)], digests=["x", "x", "x"], paths=["1", "2", "3"])
    two = make([(b, a), (a, a)], digests=["x", "x"], paths=["9", "8"])
    pair = make.pair(one, two)
    assert pair.shared == 1  # (a, a); the second copy's label is another
    assert "1 images have another label" in pair.notes[0]


def test_without_the_same_contents_paths_count_and_that_is_said(make: Maker) -> None:
    answers = answered([True, False, True])
    one = make(answers)
    for digests in (["p", "q", "r"], []):
        pair = make.pair(one, make(answers, digests=digests))
        assert pair.shared == 3
        assert "by their paths" in pair.notes[0]


def test_what_one_has_learnt_from_and_the_other_is_judged_on_is_not_fair(make: Maker) -> None:
    answers = answered([True] * 6)
    one = make(answers, locked="test folder")
    two = make(answers[:3], digests=["d0", "d1", "z"], learnt=["d4", "d5"], locked="test folder")
    pair = make.pair(one, two)
    assert pair.shared == 2
    (note,) = pair.notes
    assert note.startswith("Not fair: run2 has learnt from 2 of the images that run1 is judged on")
    (note,) = make.pair(two, one).notes
    assert note.startswith("Not fair: run2 has learnt from 2 of the images that run1 is judged on")


def test_no_image_in_common_is_no_comparison(make: Maker) -> None:
    answers = answered([True, False, True])
    two = make(answers, digests=["p", "q", "r"], paths=["p", "q", "r"])
    pair = make.pair(make(answers), two)
    assert (pair.verdict, pair.shared, pair.difference, pair.low) == ("not compared", 0, None, None)
    assert "no image in common" in pair.reason


def test_out_of_sample_beside_locked_is_said(make: Maker) -> None:
    answers = answered([True, False, True, True])
    pair = make.pair(make(answers), make(answers[:2], locked="test folder"))
    assert pair.shared == 2
    assert any(n.startswith("run1 chose with these images") for n in pair.notes)


def test_other_classes_are_said(make: Maker) -> None:
    a, b, c = CLASSES
    one = make([(a, a), (b, c), (c, c)])
    two = make([(a, a), (b, b)], digests=["d0", "d1"], classes=[a, b])
    pair = make.pair(one, two)
    assert (pair.shared, pair.difference) == (2, 0.5)
    assert any(n.startswith(f"run2 does not know {c}") for n in pair.notes)


def several_run(home: Path, record: RunRecord, odds: Any, truth: Any, classes: Sequence[str] = CLASSES) -> Path:
    """A run whose images have several labels."""
    home.mkdir(parents=True)
    half = np.full(len(classes), 0.5)
    m = evaluate.several(odds, truth, tuple(classes), decided=odds > 0, thresholds=half, on="out-of-sample")
    (home / "run.json").write_bytes(encode(replace(record, metrics=m)))
    named = [[[c for c, x in zip(classes, row, strict=True) if x] for row in w] for w in (truth, odds > 0)]
    judged = {
        "path": [f"{i}.jpg" for i in range(len(truth))], "labels": named[0], "predicted": named[1],
        "probabilities": (1 / (1 + np.exp(-odds))).tolist(),
    }  # fmt: skip
    metadata = {"classes": json.dumps(list(classes)), "on": "out-of-sample"}
    parquet.write_table(pa.table(judged, metadata=metadata), home / "predictions.parquet")
    return home


def test_several_labels_are_compared_by_how_right_their_ranking_is(make: Maker) -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((60, 3)) < 0.4
    truth[:, 0] |= ~truth.any(axis=1)
    good, bad = (rng.normal(size=truth.shape) + by * truth for by in (3, 0.5))
    one, two = (several_run(make.home / n, make.record, x, truth) for n, x in (("good", good), ("bad", bad)))
    pair = make.pair(one, two)
    oracle = [label_ranking_average_precision_score(truth, x) for x in (good, bad)]
    assert (pair.reference, pair.other) == pytest.approx(oracle)
    assert pair.verdict == "worse"
    assert "more right" in pair.reason
    back = make.pair(two, one)
    assert (back.difference, back.verdict) == (pytest.approx(oracle[0] - oracle[1]), "better")
    others = several_run(make.home / "others", make.record, good, truth, ("x", "y", "z"))
    assert "lists of labels differ" in make.pair(one, others).reason
    assert make.pair(one, make(answered([True]))).verdict == "not compared"


def test_what_differs_is_told_and_what_is_the_same_once(make: Maker) -> None:
    r, answers = make.record, answered([True, True, False])
    other = replace(r, options=replace(r.options, seed=7, balance=True), plan=replace(r.plan, cut="elsewhere"))
    found = comparison.compare([make(answers), make(answers, other)])
    assert {c.what: c.values for c in found.differences} == {
        "cut": (r.plan.cut, "elsewhere"), "--seed": ("0", "7"), "--balance": ("no", "yes")
    }  # fmt: skip
    assert {c.what for c in found.same} >= {"backbone", "size", "strategy", "data", "images", "fingerprint"}
    newer = replace(r, versions={**r.versions, "torch": "9.9"})
    found = comparison.compare([make(answers), make(answers, newer)])
    assert found.differences == (Contrast("torch", (r.versions["torch"], "9.9")),)


def test_points_that_were_taken_off_are_not_off_the_difference(make: Maker) -> None:
    r, answers = make.record, answered([True, True, False])
    e = r.metrics.accuracy
    m = replace(r.metrics, naive_accuracy=e.value + 0.03)
    pair = make.pair(make(answers, replace(r, metrics=m)), make(answers))
    assert any("3.0 points are taken off the accuracy of run1" in n for n in pair.notes)


def test_a_run_that_lacks_something_is_told(make: Maker, tmp_path: Path) -> None:
    one, two = make(answered([True])), make(answered([True]))
    with pytest.raises(UsageError, match="two or more"):
        comparison.compare([one])
    with pytest.raises(UsageError, match="two or more"):
        comparison.compare(str(one))
    with pytest.raises(UsageError, match="--disagreements -1"):
        comparison.compare([one, two], disagreements=-1)
    with pytest.raises(DataError, match="no run in it"):
        comparison.compare([one, tmp_path / "nothing"])
    (two / "predictions.parquet").unlink()
    assert "run2 kept no predictions.parquet" in make.pair(one, two).reason
    (two / "predictions.parquet").write_bytes(b"PAR1 rubbish")
    with pytest.raises(DataError, match="copied whole"):
        comparison.compare([one, two])


# ------------------------------------------------------------------------------------------------------ how it looks


@pytest.fixture
def five(make: Maker) -> Comparison:
    """Five runs of odd and of long names."""
    r, answers = make.record, answered([True, False, True] * 20)
    paths = []
    for i, name in enumerate(["plain", "[bold]x", "|a|*b*", "a_run_whose_name_is_rather_long", "e"]):
        cut = replace(r.plan, cut=f"features.{i}.very.long.name")
        right = [ok != (k < 3 * i) for k, (ok) in enumerate([True, False, True] * 20)]
        paths.append(write_run(make.home / name, replace(r, plan=cut), answered(right) if i else answers))
    return comparison.compare(paths, disagreements=2)


def drawn(found: Comparison, width: int) -> str:
    paper = console(width)
    terminal.comparison(
        paper, found, comparison.rows(found), comparison.common(found), comparison.together(found)
    )  # fmt: skip
    return paper.export_text()


def test_five_runs_fit_a_terminal_and_are_named_letter_by_letter(five: Comparison) -> None:
    text = drawn(five, 80)
    assert all(len(line) <= 80 for line in text.splitlines())
    for run in five.runs:
        assert run.name[:10] in text
    for run in five.runs:  # numbers are not broken
        assert f"{run.accuracy.value:.1%}" in text
    two = drawn(replace(five, runs=five.runs[:2], pairs=five.pairs[:1], same=(), differences=()), 80)
    assert "hold together" not in two


def test_markdown_holds_a_column_for_each_run(five: Comparison, tmp_path: Path) -> None:
    comparison.write(tmp_path / "x.md", five)
    tokens = MarkdownIt("commonmark").enable("table").parse((tmp_path / "x.md").read_text(encoding="utf-8"))
    text = ["".join(c.content for c in t.children or ()) for t in tokens if t.type == "inline"]
    heads = ["".join(c.content for c in t.children or ()) for b, t in pairwise(tokens) if b.type == "th_open"]
    assert heads[:6] == ["", *(r.name for r in five.runs)]
    assert all(p.reason in text for p in five.pairs)
    assert all(d.path in text for p in five.pairs for d in p.disagreements)


def test_csv_holds_a_row_for_each_run(five: Comparison, tmp_path: Path) -> None:
    comparison.write(tmp_path / "x.csv", five)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text(encoding="utf-8"))))
    assert [row["name"] for row in rows] == [r.name for r in five.runs]
    assert [float(row["accuracy"]) for row in rows] == [r.accuracy.value for r in five.runs]
    assert [row["verdict"] for row in rows] == ["", *(p.verdict for p in five.pairs)]
    assert [row["difference"] for row in rows[1:]] == [str(p.difference) for p in five.pairs]


def test_nothing_is_overwritten(five: Comparison, tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        comparison.write(tmp_path / "x.md", five)
    with pytest.raises(UsageError, match=r"ends in \.md or \.csv"):
        comparison.write(tmp_path / "x.txt", five)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x.md"]


def test_comparing_needs_no_torch() -> None:
    assert not loaded_by("from topwork import comparison") & {"torch", "timm", "torchvision", "sklearn", "PIL"}


def documented(kind: type, prefix: str) -> set[str]:
    """Paths of a record's fields, down to what is a record of run.json or a plain value."""
    found: set[str] = set()
    for field, hint in typing.get_type_hints(kind).items():
        inner = [t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t) and t is not Estimate]
        many = "[]" if typing.get_origin(hint) is tuple and inner else ""
        path = f"{prefix}{field}{many}"
        found |= documented(typing.cast("type", inner[0]), f"{path}.") if inner else {path}
    return found


def test_the_command_prints_and_writes_what_python_gives(
    make: Maker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one, two = make(answered([True, True, False])), make(answered([True, False, False]))
    assert call(["compare", str(one), str(two), "--disagreements", "1", "--json"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert printed == encode(comparison.compare([one, two], disagreements=1)).decode()
    whole = {
        "runs[].accuracy": "",
        "runs[].balanced_accuracy": "",
        "differences[].what": "",
        "differences[].values": "",
    }
    paths = {path for path, _ in leaves(json.loads(printed), "", whole)}
    assert documented(Comparison, "") - paths <= whole.keys()
    out = str(tmp_path / "x.md")
    assert call(["compare", str(one), str(two), "--out", out], monkeypatch) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert comparison.compare([one, two]).pairs[0].reason in shown
    assert call(["compare", str(one), str(two), "--out", out], monkeypatch) == 2
    assert "not overwritten" in capsys.readouterr().err
    assert call(["compare", str(one)], monkeypatch) == 2
    assert call(["compare", str(one), str(tmp_path)], monkeypatch) == 3


def test_every_field_of_a_comparison_is_documented() -> None:
    body, list_ = sections(page("command-line.md"))["topwork compare"], "pairs[].disagreements"
    rows = {in_backticks(row["field of --json"])[0] for row in table(body, "field of --json", "meaning")}
    listed = table(body, "field of a disagreement", "meaning")
    rows |= {f"{list_}[].{in_backticks(row['field of a disagreement'])[0]}" for row in listed}
    assert rows - {list_} == documented(Comparison, "")
