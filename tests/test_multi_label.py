"""Several labels per image: exact heads are exact, what is judged is out of sample, and the story runs to its end."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    label_ranking_average_precision_score,
    log_loss,
    precision_recall_fscore_support,
)

from conftest import SIZE_PX, Finished, Log
from topwork import cli, data, head, judging, logistic, plan, probe, runs, sigmoid, statistics, terminal, workflow
from topwork import model as models
from topwork.correction import Selected, corrected_accuracy
from topwork.errors import DataError, UsageError
from topwork.evaluate import several
from topwork.ranking import average_precision, multi_hot, rightness
from topwork.records import Dataset, Example, Metrics, ModelFacts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def tagged(n: int = 60, d: int = 12, classes: int = 4, seed: int = 0, noise: float = 0.5) -> tuple[Any, Bools]:
    """Features that tell most labels, of which an image has none to all."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    score = x @ rng.normal(size=(d, classes)) / np.sqrt(d) + noise * rng.normal(size=(n, classes))
    return x, score > rng.uniform(-0.2, 0.7, classes)


# ------------------------------------------------------------------------------------------------------ exact heads


@pytest.mark.parametrize(("n", "d"), [(40, 8), (15, 30)])
def test_leave_one_out_is_exact_with_several_labels(n: int, d: int) -> None:
    """Oracle: fit ridge without each image, by its normal equations, scales taken from all rows."""
    x, truth = tagged(n, d)
    penalties = np.array([1e-3, 0.1, 10.0])
    found = probe.probe(x, truth, 4, penalties=penalties)
    z = probe.Standardised.of(x)(x)
    unit = float((z**2).sum()) / d
    y = truth.astype(np.float64)
    for j, penalty in enumerate(penalties):
        scores = np.empty((n, 4))
        for i in range(n):
            rest = np.arange(n) != i
            a, b = z[rest].mean(axis=0), y[rest].mean(axis=0)
            w = np.linalg.solve(
                (z[rest] - a).T @ (z[rest] - a) + penalty * unit * np.eye(d), (z[rest] - a).T @ (y[rest] - b)
            )
            scores[i] = (z[i] - a) @ w + b
        np.testing.assert_allclose(found.squared[:, j], ((y - scores) ** 2).sum(axis=1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.correct[:, j], rightness(scores, truth, probe.GIVEN), atol=1e-6)
        if j == found.best:
            np.testing.assert_allclose(found.scores, scores, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), wide=st.booleans(), grouped=st.booleans())
def test_one_label_each_gives_the_ridge_of_single_labels(seed: int, wide: bool, grouped: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 50 if wide else 6)).astype(np.float32)
    labels = rng.integers(0, 3, 30)
    groups = rng.integers(0, 12, 30) if grouped else None
    one = probe.probe(x, labels, 3, groups=groups)
    several_ = probe.probe(x, np.eye(3, dtype=bool)[labels], 3, groups=groups)
    assert one.best == several_.best
    np.testing.assert_allclose(several_.scores, one.scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(several_.squared, one.squared, rtol=1e-5, atol=1e-6)
    assert one.correct.dtype == bool
    assert ((several_.correct == 1) == one.correct).mean() > 0.999  # but for scores that are equal up to rounding
    standard = probe.Standardised.of(x)
    factors = probe.factor(x, standard)
    for mine, theirs in zip(
        probe.weights(x, np.eye(3, dtype=bool)[labels], 3, 0.1, standard, factors),
        probe.weights(x, labels, 3, 0.1, standard, factors),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-9)


def test_scores_that_are_computed_once_more_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, truth = tagged()
    kept = probe.probe(x, truth, 4)
    monkeypatch.setattr(probe, "KEPT_SCORES", 0)
    np.testing.assert_allclose(probe.probe(x, truth, 4).scores, kept.scores, atol=1e-6)


def test_neighbours_vote_for_each_label() -> None:
    """Two clusters with labels {0, 1} and {2}: neighbours rank them right; an image without labels is near nothing."""
    rng = np.random.default_rng(0)
    centres = np.repeat(np.array([[5.0] * 8, [-5.0] * 4 + [5.0] * 4]), 10, axis=0)
    x = (centres + rng.normal(size=(20, 8))).astype(np.float32)
    truth = np.repeat(np.array([[True, True, False], [False, False, True]]), 10, axis=0)
    assert probe.neighbours(x, truth) == 1
    assert probe.neighbours(x, np.roll(truth, 1, axis=1)) == 1  # whatever the names
    assert probe.neighbours(x, truth & (np.arange(20) < 10)[:, None]) == 1


# --------------------------------------------------------------------------------------------------------- the head


def fitted(x: Any, truth: Bools, *, groups: Ints | None = None) -> head.Head:
    loo = probe.probe(x, truth, truth.shape[1], groups=groups)
    return head.fit(x, truth, truth.shape[1], loo, groups=groups, seed=0, strata=rarest(truth))


def rarest(truth: Bools) -> Ints:
    order = np.argsort(truth.sum(axis=0), kind="stable")
    return np.where(truth.any(axis=1), order[truth[:, order].argmax(axis=1)], -1)


def test_the_walk_is_one_vs_rest_logistic_regression() -> None:
    """Oracle: scikit-learn's, label by label, on the same coordinates. Steps end where the loss is flat to 1e-6, so
    probabilities are held to 0.01."""
    x, truth = tagged(150, 10, noise=1.0)
    standard = probe.Standardised.of(x)
    factors = probe.factor(x, standard)
    u = head._left(x, standard, factors)
    penalties = head.LOGISTIC_PENALTIES[:6]
    walk = logistic.walk(u, factors.s, truth, 4, np.ones((1, len(x))), np.array([factors.unit]), penalties)
    for penalty, found in zip(penalties, walk, strict=True):
        mine = expit(found.logits(0, u, factors.s))
        for k in range(4):
            theirs = LogisticRegression(C=1 / (penalty * factors.unit), tol=1e-8, max_iter=1000)
            theirs.fit(standard(x), truth[:, k])
            np.testing.assert_allclose(mine[:, k], theirs.predict_proba(standard(x))[:, 1], atol=0.01)


@pytest.mark.parametrize("logistic", [True, False])
def test_the_head_is_what_was_judged(logistic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On raw features, the saved weights give log-odds that rank as the kept kind's own do; the thresholds are those
    of all out-of-fold scores, and nothing is decided by its own fold."""
    if not logistic:
        monkeypatch.setattr(head, "LOGISTIC_VALUES", 0)
    x, truth = tagged(200, 10)
    found = fitted(x, truth)
    fold = head.folds(rarest(truth), None, 0)
    assert found.several
    assert found.facts.kind == ("logistic" if logistic else "ridge")
    log_odds = found.scores / found.temperature
    np.testing.assert_allclose(found.thresholds, sigmoid.thresholds(log_odds, truth))
    np.testing.assert_array_equal(found.decided, sigmoid.decided(log_odds, truth, fold))
    np.testing.assert_allclose(found.right, rightness(found.scores, truth, 0.0))
    own = (x @ found.weight + found.bias) / found.temperature
    assert np.corrcoef(own.ravel(), log_odds.ravel())[0, 1] > 0.97  # in sample and out of it
    assert log_loss(truth.ravel(), expit(own).ravel()) < log_loss(truth.ravel(), expit(log_odds).ravel()) < 0.6
    if not logistic:
        standard = probe.Standardised.of(x)
        factors = probe.factor(x, standard)
        w, b = probe.weights(x, truth, 4, found.facts.penalty, standard, factors)
        raw = probe.probe(x, truth, 4, groups=fold, penalties=np.array([found.facts.penalty])).scores
        slope, offset = sigmoid.platt(raw.astype(np.float64), truth)
        np.testing.assert_allclose(own, (standard(x) @ w + b) * slope + offset, atol=1e-4)
        np.testing.assert_allclose(found.scores, sigmoid.calibrated(raw.astype(np.float64), truth, fold))


def test_the_kept_head_is_the_one_of_less_loss() -> None:
    x, truth = tagged(200, 10)
    found = fitted(x, truth)
    best = found.loss.mean(axis=0).min()
    assert (found.facts.kind == "logistic") == (best < found.ridge_loss.mean())
    assert f"{best:.4f}" in found.facts.reason
    assert f"{found.ridge_loss.mean():.4f}" in found.facts.reason


def test_copies_are_out_of_fold_together() -> None:
    """A picture that is there twice is never scored by a head that has seen its copy: as unsure as without it."""
    x, truth = tagged(80, 30, noise=3.0)
    twice, labels = np.concatenate([x, x]), np.concatenate([truth, truth])
    groups = np.tile(np.arange(80), 2)
    together, alone = fitted(twice, labels, groups=groups), fitted(twice, labels)
    assert together.right.mean() < alone.right.mean() - 0.05


@pytest.mark.parametrize("has", [0, 1, 2, 120])
def test_labels_that_hardly_any_or_all_images_have_are_no_trouble(has: int) -> None:
    x, truth = tagged(120, 10)
    truth[:, 0] = np.arange(120) < has
    found = fitted(x, truth)
    for array in (found.weight, found.bias, found.scores, found.thresholds, found.loss):
        assert np.isfinite(array).all()
    assert found.loss.max() < 10
    others = fitted(x, truth[:, 1:])
    assert np.abs(found.right.mean() - others.right.mean()) < 0.2


def test_images_without_any_label_count_as_right_where_none_is_given() -> None:
    x, truth = tagged(150, 10)
    truth[100:] = False
    x[100:, 0] += 20  # and that can be seen
    found = fitted(x, truth)
    given = (found.scores[100:] >= 0).any(axis=1)
    np.testing.assert_array_equal(found.right[100:] == 1, ~given)
    assert given.mean() < 0.2


# --------------------------------------------------------------------------------------------------------- the plan


def evidence(correct: NDArray[Any]) -> plan.Evidence:
    cuts = correct.shape[1]
    shares = tuple((k + 1) / cuts for k in range(cuts))
    return plan.Evidence("net", 64, tuple(f"cut{k}" for k in range(cuts)), shares, shares, 10.0, correct)


def test_the_plan_compares_values_between_0_and_1() -> None:
    """Of yes or no, written as numbers, it makes the same plan; it says what accuracy means, and why only a head."""
    rng = np.random.default_rng(0)
    right = rng.random((300, 4)) < [0.5, 0.7, 0.9, 0.9]
    as_numbers = plan.decide(evidence(right.astype(np.float32)))
    yes_or_no = plan.decide(evidence(right))
    assert as_numbers.cut == yes_or_no.cut
    assert as_numbers.similarity == yes_or_no.similarity
    assert "label-ranking average precision" in " ".join(as_numbers.reasons)
    assert "label-ranking" not in " ".join(yes_or_no.reasons)
    assert "one label each" in as_numbers.reasons[-1]
    values = np.clip(rng.normal([0.5, 0.7, 0.9, 0.9], 0.1, (300, 4)), 0, 1).astype(np.float32)
    (table,) = plan.scores([evidence(values)], [[1] * 4], [[0.1] * 4])
    np.testing.assert_allclose([s.accuracy for s in table], values.mean(axis=0), rtol=1e-6)
    assert plan.decide(evidence(values), delta=0.05).cut == "cut2"  # the two are equal to 0.02 with 95%


def test_wilsons_interval_is_wide_enough_for_values_between_0_and_1() -> None:
    """Over 2,000 draws of 60 values, the mean of all lies inside in no less than 95%: values vary less than shares."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        low, high = statistics.wilson(float(rng.beta(4, 2, 60).mean()), 60)
        inside += low <= 4 / 6 <= high
    assert inside / 2000 >= 0.95


# ------------------------------------------------------------------------------------------------------ the metrics


def judged(log_odds: Floats, truth: Bools, decided: Bools | None = None, **given: Any) -> Metrics:
    c = truth.shape[1]
    return several(
        log_odds, truth, tuple(f"label {i}" for i in range(c)), decided=log_odds >= 0 if decided is None else decided,
        thresholds=np.full(c, 0.5), **{"on": "test folder"} | given,
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 60), classes=st.integers(2, 5), seed=st.integers(0, 1000))
def test_metrics_are_scikit_learns(n: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((n, classes)) < 0.4
    truth[np.arange(classes) % n, np.arange(classes)] = True  # each label occurs
    log_odds = rng.normal(size=(n, classes)) + truth
    decided = log_odds >= 0
    m = judged(log_odds, truth)
    found = m.multi_label
    assert found is not None
    assert m.confusion == ()
    precisions = [average_precision_score(truth[:, k], log_odds[:, k]) for k in range(classes)]
    assert [label.average_precision for label in found.per_label] == pytest.approx(precisions)
    assert found.mean_average_precision.value == pytest.approx(np.mean(precisions))
    assert m.balanced_accuracy == found.mean_average_precision
    assert found.micro_f1.value == pytest.approx(f1_score(truth, decided, average="micro", zero_division=0))
    assert found.macro_f1.value == pytest.approx(f1_score(truth, decided, average="macro", zero_division=0))
    assert found.subset_accuracy.value == pytest.approx(accuracy_score(truth, decided))
    precision, recall, f1, support = precision_recall_fscore_support(truth, decided, zero_division=0)
    for k, c in enumerate(m.per_class):
        assert (c.n, c.predicted) == (support[k], decided[:, k].sum())
        assert (c.recall, c.f1) == pytest.approx((recall[k], f1[k]))
        assert c.precision == (pytest.approx(precision[k]) if c.predicted else None)
    assert m.log_loss == pytest.approx(log_loss(truth.ravel(), expit(log_odds).ravel(), labels=[False, True]))
    labelled = truth.any(axis=1)
    assert found.without_label == (~labelled).sum()
    assert found.labels_per_image == pytest.approx(truth.sum(axis=1).mean())
    if labelled.all():
        assert m.accuracy.value == pytest.approx(label_ranking_average_precision_score(truth, log_odds))
    for e in (m.accuracy, found.mean_average_precision, found.micro_f1, found.macro_f1, found.subset_accuracy):
        assert 0 <= e.low <= e.value <= e.high <= 1
        assert (e.n, e.on) == (n, "test folder")


def test_a_label_that_no_image_has_counts_in_no_mean() -> None:
    truth = np.array([[True, False, False], [False, True, False]])
    m = judged(np.where(truth, 2.0, -2.0), truth)
    assert m.multi_label is not None
    assert m.multi_label.mean_average_precision.value == m.multi_label.macro_f1.value == 1
    assert m.multi_label.per_label[2].average_precision is None
    assert m.per_class[2].n == 0


def test_no_image_with_any_label_has_finite_metrics() -> None:
    truth = np.zeros((4, 2), dtype=bool)
    m = judged(np.full((4, 2), -1.0), truth)
    assert m.multi_label is not None
    assert m.accuracy.value == m.multi_label.subset_accuracy.value == m.multi_label.micro_f1.value == 1
    assert m.multi_label.mean_average_precision.value == 0


def test_intervals_cover_and_copies_widen_them() -> None:
    """The mean average precision of 60 sets of 100 images lies in the interval of each in 90% at least (a bootstrap
    of so few is a little optimistic, what one image could change makes up for it); four copies of 25 images are worth
    25."""
    rng = np.random.default_rng(0)

    def draw(n: int) -> tuple[Floats, Bools]:
        truth = rng.random((n, 3)) < [0.2, 0.4, 0.5]
        return rng.normal(size=(n, 3)) + 1.5 * truth, truth

    expected = float(average_precision(*draw(100_000)).mean())
    inside = 0
    for _ in range(60):
        e = judged(*draw(100)).balanced_accuracy
        inside += e.low <= expected <= e.high
    assert inside >= 54
    log_odds, truth = draw(25)
    copies = judged(np.tile(log_odds, (4, 1)), np.tile(truth, (4, 1)), groups=np.tile(np.arange(25), 4), independent=25)
    alone, ignored = judged(log_odds, truth), judged(np.tile(log_odds, (4, 1)), np.tile(truth, (4, 1)))
    assert copies.balanced_accuracy.value == pytest.approx(alone.balanced_accuracy.value)
    wide = copies.balanced_accuracy.high - copies.balanced_accuracy.low
    assert wide == pytest.approx(alone.balanced_accuracy.high - alone.balanced_accuracy.low, rel=0.2)
    assert wide > 1.5 * (ignored.balanced_accuracy.high - ignored.balanced_accuracy.low)


def test_a_perfect_answer_is_no_certainty() -> None:
    truth = np.array([[True, False], [False, True]] * 10)
    m = judged(np.where(truth, 2.0, -2.0), truth)
    assert m.multi_label is not None
    assert m.multi_label.mean_average_precision.low < 0.95
    assert m.multi_label.per_label[0].average_precision_low == pytest.approx(1 - statistics.Z95 / 10)


def test_what_choosing_added_is_taken_off_everything_that_ranks() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((50, 3)) < 0.4
    log_odds = rng.normal(size=(50, 3)) + truth
    naive = judged(log_odds, truth)
    lower = judged(log_odds, truth, corrected=naive.accuracy.value - 0.03)
    assert lower.naive_accuracy == naive.accuracy.value
    assert naive.accuracy.value - lower.accuracy.value == pytest.approx(0.03)
    assert naive.balanced_accuracy.value - lower.balanced_accuracy.value == pytest.approx(0.03)
    assert judged(log_odds, truth, corrected=1.0).accuracy == naive.accuracy


def test_the_best_of_many_that_know_nothing_is_corrected() -> None:
    """Twenty places of noise: the best one's value is too high by luck, the corrected one lies at chance."""
    rng = np.random.default_rng(0)
    n, places = 80, 20
    truth = rng.random((n, 4)) < 0.3
    truth[:, 0] |= ~truth.any(axis=1)
    scores = [rng.normal(size=(n, 4)) for _ in range(places)]
    values = np.stack([rightness(s, truth, 0.5) for s in scores], axis=1).astype(np.float32)
    chance = np.mean([rightness(rng.normal(size=(n, 4)), truth, 0.5).mean() for _ in range(200)])
    one = np.array([1.0])
    probes = tuple(
        probe.Probe(one, 0, np.ones((n, 1), np.float32), values[:, [k]], scores[k].astype(np.float32))
        for k in range(places)
    )
    best = int(values.mean(axis=0).argmax())
    x, _ = tagged(n)
    made = replace(
        fitted(x, truth), right=values[:, best], ridge_folds=values[:, best], correct=np.zeros((n, 0)),
        loss=np.zeros((n, 0), np.float32),
    )  # fmt: skip
    corrected = corrected_accuracy(Selected(probes, made, best, 0.0, None), seed=0, replicates=200)
    naive = float(values[:, best].mean())
    assert naive - chance > 0.04
    assert abs(corrected - chance) < abs(naive - chance)


# -------------------------------------------------------------------------------------------- from pictures to a model

TAGS = ("across", "along", "checks", "rings")


def write_patterns(folder: Path, count: int, *, seed: int = 0, size_px: int = 64) -> list[tuple[str, tuple[int, ...]]]:
    """Pictures of a noisy ground with none to three patterns in quarters of them; paths with their labels, rising."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    half = size_px // 2
    y, x = np.mgrid[:half, :half]
    rows = []
    for i in range(count):
        picture = rng.uniform(70, 180, 3) + rng.normal(0, 30, (size_px, size_px, 3))
        if i < 2:  # "rings" are rare
            labels: tuple[int, ...] = (0, 3)
        else:
            labels = tuple(sorted(rng.choice(3, [0, 1, 1, 2, 2, 3][i % 6], replace=False).tolist()))
        for label, quarter in zip(labels, rng.permutation(4), strict=False):
            period, phase = rng.uniform(6, 8), rng.uniform(0, 6)
            across, along = np.sin(2 * np.pi * (y + phase) / period), np.sin(2 * np.pi * (x + phase) / period)
            rings = np.sin(2 * np.pi * np.hypot(x - half / 2, y - half / 2) / period)
            top, left = (quarter // 2) * half, (quarter % 2) * half
            pattern = (across, along, across * along, rings)[label]
            picture[top : top + half, left : left + half] += 14 * pattern[..., None]
        name = f"{i:03d}.png"
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / name)
        rows.append((name, labels))
    return rows


def write_table(file: Path, rows: Sequence[tuple[str, tuple[int, ...]]], splits: Sequence[str] = ()) -> Path:
    """A CSV of them; of several labels, a | stands between."""
    with file.open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["path", "tags", *(["split"] if splits else [])])
        for i, (name, labels) in enumerate(rows):
            table.writerow([name, "|".join(TAGS[k] for k in labels), *([splits[i]] if splits else [])])
    return file


SEVERAL: dict[str, Any] = {"labels": "tags", "label_separator": "|"}


@pytest.fixture(scope="module")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 72 pictures."""
    folder = tmp_path_factory.mktemp("patterns") / "pictures"
    return write_table(folder / "table.csv", write_patterns(folder, 72))


@pytest.fixture(scope="module")
def done(patterns: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run over them, with --strategy auto."""
    home, log = tmp_path_factory.mktemp("several"), Log()
    run = workflow.fit(patterns, **SEVERAL, size=SIZE_PX, out=home / "run", cache=home / "cache", watch=log)
    return Finished(run, patterns.parent, home / "cache", log)


def test_the_story_with_several_labels(done: Finished) -> None:
    record = done.run.record
    found = record.metrics.multi_label
    assert found is not None
    assert record.plan.strategy == "head"
    assert record.tuning is None
    assert "one label each" in " ".join(record.plan.reasons)
    assert record.metrics.accuracy.value > 0.75
    assert found.mean_average_precision.value > 0.5
    assert found.micro_f1.value > 0.6
    assert found.subset_accuracy.value < 1  # hard enough that what is decided matters
    assert found.without_label == 12 - 1  # a sixth, the first of them has "rings"
    assert [c.n for c in record.metrics.per_class] == [c.train for c in record.data.classes]
    assert record.metrics.per_class[3].n == 2
    assert all(0 < label.threshold < 1 for label in found.per_label)
    assert runs.load_run(done.run.path).record == record


def test_the_loaded_model_gives_labels_by_its_thresholds(done: Finished) -> None:
    loaded = models.load(done.run.path)
    assert loaded.facts.multi_label
    names = sorted(p.name for p in done.folder.glob("*.png"))[:12]
    answers = loaded.predict([done.folder / n for n in names])
    for answer in answers:
        over = {c for c, t in zip(TAGS, loaded.facts.thresholds, strict=True) if answer.probabilities[c] >= t}
        assert set(answer.labels) == over
        shares = [answer.probabilities[c] for c in answer.labels]
        assert shares == sorted(shares, reverse=True)
        assert answer.label == (answer.labels[0] if answer.labels else None)
        assert answer.probability == (shares[0] if shares else None)
    assert any(len(a.labels) > 1 for a in answers)
    assert any(abs(sum(a.probabilities.values()) - 1) > 0.1 for a in answers)
    again = done.folder.parent / "copy"
    loaded.save(again)
    assert models.load(again).predict([done.folder / n for n in names]) == answers
    (broken,) = loaded.predict([b"no image"])
    assert (broken.label, broken.labels, broken.probabilities) == (None, (), {})
    assert broken.error is not None


def test_the_predictions_are_those_that_the_metrics_rest_on(done: Finished) -> None:
    table = parquet.read_table(done.run.path / "predictions.parquet").to_pylist()
    facts = done.run.metrics
    assert facts.multi_label is not None
    truth = np.array([[c in row["labels"] for c in TAGS] for row in table])
    given_ = np.array([[c in row["predicted"] for c in TAGS] for row in table])
    shares = np.array([row["probabilities"] for row in table])
    assert len(table) == facts.accuracy.n
    assert facts.multi_label.micro_f1.value == pytest.approx(f1_score(truth, given_, average="micro"))
    naive = rightness(np.log(shares / (1 - shares)), truth, 0.0).mean()
    assert facts.naive_accuracy == pytest.approx(naive)
    assert facts.accuracy.value <= facts.naive_accuracy


def test_a_held_out_table_is_judged(done: Finished, tmp_path: Path) -> None:
    rows = write_patterns(tmp_path / "new", 24, seed=7)
    table = write_table(tmp_path / "new" / "table.csv", rows)
    metrics, _ = judging.judge(done.run.path, table, **SEVERAL)
    found = metrics.multi_label
    assert found is not None
    answers = done.run.model.predict([tmp_path / "new" / name for name, _ in rows])
    truth = multi_hot([labels for _, labels in rows], 4)
    given_ = np.array([[c in a.labels for c in TAGS] for a in answers])
    shares = np.array([[a.probabilities[c] for c in TAGS] for a in answers])
    assert found.micro_f1.value == pytest.approx(f1_score(truth, given_, average="micro"))
    assert metrics.log_loss == pytest.approx(log_loss(truth.ravel(), shares.ravel().astype(np.float64)), rel=1e-4)
    assert [label.threshold for label in found.per_label] == list(done.run.model.facts.thresholds)
    # A folder per class says one label of each.
    for tag in TAGS:
        (tmp_path / "one" / tag).mkdir(parents=True)
    for name, labels in rows:
        if labels:
            (tmp_path / "new" / name).rename(tmp_path / "one" / TAGS[labels[-1]] / name)
    metrics, _ = judging.judge(done.run.path, tmp_path / "one")
    assert [c.n for c in metrics.per_class] == [sum(labels[-1:] == (k,) for _, labels in rows) for k in range(4)]


def test_a_model_of_one_label_each_is_not_judged_on_several(finished: Finished, tmp_path: Path) -> None:
    rows = write_patterns(tmp_path / "new", 6)
    table = tmp_path / "new" / "table.csv"
    table.write_text("path,tags\n" + "\n".join(f"{name},bark|sand" for name, _ in rows))
    with pytest.raises(DataError, match="several labels"):
        judging.judge(finished.run.path, table, **SEVERAL)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"strategy": "suffix"}, "--strategy suffix"),
        ({"strategy": "full"}, "--strategy full"),
        ({"strategy": "surgical", "epochs": 3}, "--strategy surgical, --epochs"),
        ({"lr": 0.01}, "--lr"),
        ({"budget": "10s"}, "--budget"),
        ({"balance": True}, "--balance"),
    ],
)
def test_what_needs_one_label_each_is_refused_before_the_pass(
    asked: dict[str, Any], named: str, patterns: Path, tmp_path: Path
) -> None:
    log = Log()
    with pytest.raises(UsageError, match=f"^{named}: for one label per image"):
        workflow.fit(
            patterns, **SEVERAL, size=SIZE_PX, out=tmp_path / "run", cache=tmp_path / "cache", watch=log, **asked
        )
    assert "pass" not in [stage for stage, _ in log.stages]
    assert not (tmp_path / "run").exists()


def test_a_test_part_is_judged_by_thresholds_of_the_training(done: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    rows = write_patterns(folder, 72)
    table = write_table(folder / "table.csv", rows, [("train", "train", "test")[i % 3] for i in range(72)])
    run = workflow.fit(table, **SEVERAL, size=SIZE_PX, strategy="head", out=tmp_path / "run", cache=done.cache)
    assert run.metrics.accuracy.on == "test folder"
    assert run.metrics.accuracy.n == 24
    assert run.metrics.naive_accuracy == run.metrics.accuracy.value
    written = parquet.read_table(run.path / "predictions.parquet").to_pylist()
    for row in written:
        shares = zip(TAGS, row["probabilities"], run.model.facts.thresholds, strict=True)
        assert row["predicted"] == [c for c, p, t in shares if p >= t]
    answers = run.model.predict([folder / row["path"] for row in written])
    np.testing.assert_allclose(
        [[a.probabilities[c] for c in TAGS] for a in answers], [row["probabilities"] for row in written], atol=0.02
    )


# ------------------------------------------------------------------------------------------------ the lock, the facts


def many(labels: Sequence[tuple[int, ...]]) -> Dataset:
    counts = np.bincount([i for mine in labels for i in mine], minlength=4)
    examples = tuple(
        Example(f"{k}.png", min(mine, key=lambda i: counts[i], default=4), "train", f"{k:032x}", labels=mine)
        for k, mine in enumerate(labels)
    )
    return Dataset("somewhere", "a table", TAGS, examples, (), (), multi_label=True)


def test_a_fifth_is_locked_also_where_a_label_is_never_the_rarest() -> None:
    """Every image has the first label, so it stratifies none; one image is all that one stratum has."""
    rng = np.random.default_rng(0)
    labels = [(0, *sorted({int(rng.integers(1, 4))})) for _ in range(2500)] + [()]
    found, locked = data.lock(many(labels), 0)
    assert locked == "held-out part"
    share = sum(e.part == "test" for e in found.examples) / 2501
    assert share == pytest.approx(0.2, abs=0.001)
    for i in range(1, 4):
        mine = [e.part == "test" for e in found.examples if i in e.labels]
        assert np.mean(mine) == pytest.approx(0.2, abs=0.01)


def test_a_label_of_few_images_keeps_all_of_them_in_the_choice() -> None:
    labels = [(0, 1, 2)] * 2500 + [(3,)] * 5
    assert data.lock(many(labels), 0)[1] == "out-of-sample"


def test_the_facts_count_every_label_and_their_fingerprint_sees_it() -> None:
    labels = [(0, 1), (1,), (), (0, 2), (2, 3), (3,)]
    facts = data.facts(many(labels), locked="out-of-sample", seed=0)
    assert [c.train for c in facts.classes] == [2, 2, 2, 2]
    assert facts.fingerprint != data.facts(many([(0,), *labels[1:]]), locked="out-of-sample", seed=0).fingerprint


# ----------------------------------------------------------------------------------------------------- what is shown


def test_the_terminal_shows_labels_and_no_confusion(done: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    console, read = terminal.paper(), done.log.shown["data"]
    assert isinstance(read, Dataset)
    terminal.dataset(console, read)
    terminal.outcome(console, done.run.record, "runs/patterns")
    shown = capsys.readouterr().out
    assert "several labels per image" in shown
    assert "images have none" in shown
    assert "mean average precision" in shown
    assert "Confusion" not in shown
    for tag in TAGS:
        assert tag in shown
    watch = terminal.TerminalWatch(console)
    watch.show("data", read)
    watch.show("standings", done.run.record.backbones)
    watch.show("plan", done.run.plan)
    assert "Label-ranking average precision at every cut" in capsys.readouterr().out


def answer_of(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["topwork", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code
    return capsys.readouterr().out


def test_predict_writes_several_labels(
    done: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new").mkdir()
    names = sorted(p.name for p in done.folder.glob("*.png"))[:12]
    for name in names:
        (tmp_path / "new" / name).write_bytes((done.folder / name).read_bytes())
    (tmp_path / "new" / "zz.png").write_bytes(b"no image")
    call = ["predict", str(done.run.path), str(tmp_path / "new")]
    answers = done.run.model.predict([tmp_path / "new" / n for n in names])
    rows = list(csv.DictReader(io.StringIO(answer_of([*call, "--csv"], monkeypatch, capsys))))
    assert [row["label"] for row in rows] == ["|".join(a.labels) for a in answers] + [""]
    assert rows[-1]["error"]
    printed = json.loads(answer_of([*call, "--json"], monkeypatch, capsys))
    assert [p["labels"] for p in printed["predictions"]] == [list(a.labels) for a in answers] + [[]]
    text = answer_of(call, monkeypatch, capsys).splitlines()
    for line, answer in zip(text, answers, strict=False):
        assert all(label in line for label in answer.labels)
        assert answer.labels or "no label" in line


def test_thresholds_that_do_not_fit_the_classes_are_refused(done: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    done.run.model.save(folder)
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**facts, "thresholds": facts["thresholds"][:-1]}))
    with pytest.raises(DataError, match="thresholds are 3, expected 4"):
        models.load(folder)


def test_a_model_from_before_there_were_several_labels_still_loads(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    finished.run.model.save(folder)
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(
        json.dumps({k: v for k, v in facts.items() if k not in {"multi_label", "thresholds"}})
    )
    assert models.load(folder).facts == finished.run.model.facts
    assert isinstance(models.load(folder).facts, ModelFacts)
