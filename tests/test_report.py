"""The page of a run: nothing from outside, nothing that a name can break, and what is clicked is what is shown."""

from __future__ import annotations

import json
import math
import re
import sys
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

import made_runs
import topwork
from conftest import CLASSES, SIZE_PX, Finished
from topwork import report, workflow
from topwork.errors import DataError
from topwork.records import ClassCount, ClassMetrics, Preprocessing, RunRecord, decode, encode
from topwork.report import charts, judged, looks, page
from topwork.report.changes import changes
from topwork.report.judged import Judged

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Checked(HTMLParser):
    """Reads a page strictly: every element is closed in its turn; collects ids, addresses and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: dict[str, int] = {}
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"href", "src", "action", "data", "poster", "srcset"}:
                self.addresses.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def facts(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def seen(finished: Finished) -> Judged:
    return judged.read(finished.run.path / "predictions.parquet")


def test_every_fit_leaves_a_page_that_needs_nothing_from_outside(finished: Finished) -> None:
    text = (finished.run.path / "report.html").read_text()
    read = Checked(text)
    assert all(a.startswith("#") and a[1:] in read.ids for a in read.addresses)
    assert len(set(read.ids)) == len(read.ids)
    assert "default-src 'none'" in text
    assert "url(" not in text and "@import" not in text and "http" not in text.replace("http-equiv", "")
    assert len(text.encode()) < 5e6
    words = " ".join(" ".join(read.text).split())
    for said in (
        *CLASSES,
        finished.run.plan.cut,
        *finished.run.plan.reasons,
        f"{finished.run.metrics.accuracy.value:.1%}",
    ):
        assert said in words


def test_the_page_is_the_same_however_often_it_is_drawn(finished: Finished, tmp_path: Path) -> None:
    first = report.write(finished.run.path, tmp_path / "again.html")
    assert first.read_bytes() == (finished.run.path / "report.html").read_bytes()


def test_without_the_room_everything_else_works(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(topwork, "report", raising=False)
    for name in [n for n in sys.modules if n.startswith("topwork.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "topwork.report", None)
    run = workflow.fit(finished.folder, size=SIZE_PX, strategy="head", out=tmp_path / "run", cache=finished.cache)
    assert not (run.path / "report.html").exists()
    assert run.metrics.accuracy == finished.run.metrics.accuracy


NASTY = "</script><script>alert(1)</script><!-- & \" ' <b> \u2028"


def test_no_name_breaks_the_page(finished: Finished, seen: Judged) -> None:
    record = decode(encode(finished.run.record), RunRecord, where="here")
    classes = (NASTY, *seen.classes[1:])
    metrics = replace(
        record.metrics, per_class=(replace(record.metrics.per_class[0], name=NASTY), *record.metrics.per_class[1:])
    )
    counts = (replace(record.data.classes[0], name=NASTY), *record.data.classes[1:])
    record = replace(record, name=NASTY, metrics=metrics, data=replace(record.data, classes=counts), warnings=(NASTY,))
    shown = replace(seen, classes=classes, paths=tuple(f"{NASTY}/{p}" for p in seen.paths))
    text = page.html(record, shown)
    read = Checked(text)
    assert read.tags["script"] == 2
    assert "b" not in read.tags or "<b> \u2028" not in text
    assert facts(text)["classes"] == list(classes)
    assert NASTY in "".join(read.text)


def test_a_page_of_many_classes_and_images_is_small(finished: Finished) -> None:
    rng, n, c = np.random.default_rng(0), 10_000, 200
    names = tuple(f"a class with a rather long name {i}"[-30:] for i in range(c))
    label = rng.integers(0, c, n)
    given_ = np.where(rng.random(n) < 0.8, label, rng.integers(0, c, n))
    share = rng.random(n)
    many = Judged(
        names, tuple(f"{names[k]}/image-{i:05d}.jpg" for i, k in enumerate(label)), label, given_, share, share
    )
    confusion = np.zeros((c, c), dtype=int)
    np.add.at(confusion, (label, given_), 1)
    record = finished.run.record
    record = replace(
        record,
        data=replace(record.data, classes=tuple(ClassCount(name, 50, 0, 0) for name in names)),
        metrics=replace(
            record.metrics,
            per_class=tuple(ClassMetrics(name, 50, 50, 0.8, 0.7, 0.9, 0.8, 0.8) for name in names),
            confusion=tuple(map(tuple, confusion.tolist())),
        ),
    )
    text = page.html(record, many)
    assert 'id="matrix"' not in text
    assert len(text.encode()) < 5e6 - judged.PICTURE_BYTES  # what as many pictures may add
    Checked(text)


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run in it.*topwork fit"):
        report.write(tmp_path)
    (tmp_path / "predictions.parquet").write_bytes(b"none")
    with pytest.raises(DataError, match="no predictions of a run"):
        judged.read(tmp_path / "predictions.parquet")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 300), c=st.integers(1, 6))
def test_what_is_worth_seeing_comes_first(seed: int, n: int, c: int) -> None:
    rng = np.random.default_rng(seed)
    label, predicted, share = rng.integers(0, c, n), rng.integers(0, c, n), rng.random(n)
    found = Judged(tuple(map(str, range(c))), tuple(map(str, range(n))), label, predicted, share, share)
    order = judged.worth_seeing(found)
    assert sorted(order) == list(range(n))
    wrong = int(found.wrong.sum())
    assert found.wrong[order[:wrong]].all()
    assert (np.diff(share[order[:wrong]]) <= 0).all()
    first = order[wrong : wrong + len(set(label[~found.wrong].tolist()))]
    assert len(set(label[first].tolist())) == len(first)  # one of each class before a second of any


@given(low=st.floats(-1e3, 1e3), size=st.floats(1e-3, 1e3))
def test_ticks_are_round_and_inside(low: float, size: float) -> None:
    found = charts.ticks(low, low + size)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-6 * size <= v <= low + size * (1 + 1e-6) for v in found)
    steps = np.diff(found)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6, atol=1e-9)
    assert round(steps[0] / 10 ** math.floor(math.log10(steps[0] * (1 + 1e-9))), 6) in {1, 2, 5}


def test_points_stand_where_their_numbers_say() -> None:
    axes = charts.Axes("t", "a", (1.0, 100.0), (0.0, 1.0), log_x=True)
    left, bottom = axes.at(1.0, 0.0)
    right, top = axes.at(100.0, 1.0)
    assert (left, right) == (axes.left, charts.WIDTH - axes.right)
    assert (top, bottom) == (axes.top, axes.height - axes.bottom)
    assert axes.at(10.0, 0.5) == (pytest.approx((left + right) / 2), pytest.approx((top + bottom) / 2))


def test_what_an_older_run_lacks_is_left_out(finished: Finished, tmp_path: Path) -> None:
    """Each file may be missing, or lack a column; what is damaged is told."""
    run = made_runs.make(finished.run.record, tmp_path, classes=["ants", "bees"], images=30, files=False)
    text = report.write(run).read_text()
    assert all(f'id="{section}"' in text for section in ("map", "believe", "change", "heat"))
    assert facts(text)["near"]
    (run / "known.parquet").unlink()
    assert looks.explained(run)[0].nearest[0][1] == ""
    parquet.write_table(parquet.read_table(run / "explained.parquet").drop_columns(["map"]), run / "explained.parquet")
    (run / "embedding.parquet").unlink()
    record = replace(decode((run / "run.json").read_bytes(), RunRecord, where="here"), unknown=None, sets=None)
    (run / "run.json").write_bytes(encode(replace(record, metrics=replace(record.metrics, reliability=()))))
    text = report.write(run).read_text()
    Checked(text)
    assert not any(f'id="{section}"' in text for section in ("map", "believe", "heat"))
    assert 'id="change"' in text
    (run / "explained.parquet").write_bytes(b"none")
    with pytest.raises(DataError, match=r"explained\.parquet: damaged"):
        report.write(run)


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), scale=st.floats(1e-3, 1e3))
def test_heat_keeps_signs_and_order_whatever_the_scale(values: list[float], scale: float) -> None:
    steps = np.frombuffer(b64decode(looks._steps(values)), np.int8).astype(int)
    assert (steps * np.array(values) >= 0).all()
    order = np.argsort(values)
    assert (np.diff(steps[order]) >= 0).all()
    again = np.frombuffer(b64decode(looks._steps([scale * v for v in values])), np.int8)
    assert abs(again - steps).max() <= 1  # of rounding


def test_something_would_always_change_the_answer(finished: Finished, tmp_path: Path) -> None:
    record = finished.run.record
    bare = replace(record, growth=None, groups=None, tuning=None, suspects=None, shortcuts=())
    assert [name for name, _ in changes(bare)][:2] == ["More images", "Another cut"]
    run = made_runs.make(record, tmp_path, classes=["a", "b"], images=30, files=False)
    full = dict(changes(decode((run / "run.json").read_bytes(), RunRecord, where="here")))
    assert {"More images", "Another budget", "Better labels", "Other photographs", "New scenes"} <= full.keys()
    assert all(full.values())


@given(seed=st.integers(0, 1000), letters=st.integers(1, 40), c=st.integers(1, 30))
def test_names_on_the_map_hide_no_other_and_stay_inside(seed: int, letters: int, c: int) -> None:
    rng = np.random.default_rng(seed)
    places = {f"{k}" + letters * "n": [tuple(rng.uniform(0, 400, 2))] for k in range(c)}
    found = re.findall(r'<text class="place( fine)?" x="([^"]+)" y="([^"]+)">([^<]*)', charts._names(places))
    assert bool(found) == (c <= charts.NAMED)
    half, line = charts.SMALL_LETTER / 2, charts.SMALL_LINE
    boxes = [(float(x) - half * len(n), float(y), float(x) + half * len(n), float(y) + line) for _, x, y, n in found]
    assert all(a[0] >= -0.1 and a[2] <= charts.MAP[0] + 0.1 for a in boxes)
    shrunk = [(a + 0.2, b + 0.2, c - 0.2, d - 0.2) for a, b, c, d in boxes]  # places are rounded
    assert not any(charts._meet(a, b) for i, a in enumerate(shrunk) for b in shrunk[:i])


def test_pictures_keep_within_their_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, seen = np.random.default_rng(0), Preprocessing(64, 64, "bilinear", (0.0,) * 3, (1.0,) * 3)
    paths = [f"{i}.jpg" for i in range(8)]
    for i, path in enumerate(paths):
        made_runs.photo(tmp_path / path, i, rng, 80)
    whole = judged.thumbnails(str(tmp_path), ["gone.jpg", *paths], paths[:1], seen)
    assert list(whole) == paths
    widths = [Image.open(BytesIO(b64decode(v))).width for v in whole.values()]
    assert widths == [judged.LARGE_PX, *[judged.SMALL_PX] * 7]
    monkeypatch.setattr(judged, "PICTURE_BYTES", sum(map(len, [*whole.values()][:3])))
    assert list(judged.thumbnails(str(tmp_path), paths, paths[:1], seen)) == paths[:3]
    monkeypatch.undo()
    monkeypatch.setattr(judged, "BLOCK", 2)
    monkeypatch.setattr(judged, "READ_BYTES", 1)
    assert list(judged.thumbnails(str(tmp_path), paths, [], seen)) == paths[:2]


def test_more_images_than_there_is_room_for_keep_the_mistakes(finished: Finished, seen: Judged,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    wrong = replace(seen, predicted=np.where(np.arange(len(seen.paths)) == 5, (seen.label + 1) % 3, seen.label))
    monkeypatch.setattr(page, "ROW_BYTES", 60)
    rows = facts(page.html(finished.run.record, wrong))["images"]
    assert isinstance(rows, list)
    assert [r[0] for r in rows] == [seen.paths[5]]
