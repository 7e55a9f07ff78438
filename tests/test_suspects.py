"""Labels that are wrong are found, labels that are right are left alone, and nobody vouches for himself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from topwork import suspects
from topwork.head import temperature
from topwork.probe import probe

CLASSES = 4


def blobs(seed: int, *, n: int = 160, apart: float = 4.0, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Features of classes that lie apart, and their true labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    centres = rng.normal(size=(CLASSES, d))
    centres *= apart / np.linalg.norm(centres, axis=1, keepdims=True)
    return (centres[labels] + rng.normal(size=(n, d))).astype(np.float32), labels


def planted(labels: np.ndarray, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels with `count` of them wrong, and where."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.choice(len(labels), count, replace=False))
    wrong = labels.copy()
    wrong[at] = (labels[at] + rng.integers(1, CLASSES, count)) % CLASSES
    return wrong, at


def voters(x: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> list[np.ndarray]:
    """Out-of-sample scores on all features, and on a part of them."""
    return [probe(part, labels, CLASSES, groups=groups).scores for part in (x, x[:, :9])]


def slowly(scores: list[np.ndarray], labels: np.ndarray) -> dict[int, tuple[int, float, float]]:
    """The rule in its own words, image by image: row to likely class, its probability, the label's."""
    p = [softmax(s.astype(float) / temperature(s.astype(float), labels), axis=1) for s in scores]
    found = {}
    for i, label in enumerate(labels):
        if label in {int(s[i].argmax()) for s in scores}:
            continue
        means = [float(np.mean([q[i, j] for q in p])) for j in range(CLASSES)]
        mean, likely = max((m, j) for j, m in enumerate(means) if j != label)
        usual = np.mean([q[k, likely] for q in p for k in range(len(labels)) if labels[k] == likely])
        if mean > means[label] and (mean >= usual or means[label] <= suspects.RARE):
            found[i] = (likely, mean, means[label])
    return found


@pytest.mark.parametrize("seed", range(4))
def test_planted_errors_are_found_and_hardly_anything_else(seed: int) -> None:
    x, labels = blobs(seed, apart=10.0)
    wrong, at = planted(labels, seed, 8)
    found = suspects.find(voters(x, wrong), wrong, CLASSES)
    hit = np.isin(found.rows, at)
    assert hit.mean() >= 0.9
    assert np.isin(at, found.rows).mean() >= 0.75
    assert (found.likely[hit] == labels[found.rows[hit]]).mean() >= 0.9


@given(st.integers(0, 50), st.floats(1.5, 5))
@settings(max_examples=15, deadline=None)
def test_the_rule_is_the_one_that_is_stated(seed: int, apart: float) -> None:
    x, labels = blobs(seed, n=80, apart=apart)
    wrong, _ = planted(labels, seed, 6)
    scores = voters(x, wrong)
    found = suspects.find(scores, wrong, CLASSES)
    expected = slowly(scores, wrong)
    assert set(found.rows.tolist()) == set(expected)
    for row, likely, confidence, own in zip(
        found.rows, found.likely, found.confidence, found.label_probability, strict=True
    ):
        assert expected[int(row)] == pytest.approx((likely, confidence, own))
    assert (np.diff(found.label_probability) >= 0).all(), "the most suspicious come first"


def test_the_order_of_the_images_and_the_scale_of_the_scores_do_not_matter() -> None:
    x, labels = blobs(3, apart=3.0)
    wrong, _ = planted(labels, 3, 8)
    scores = [s.astype(np.float64) for s in voters(x, wrong)]
    found = suspects.find(scores, wrong, CLASSES)
    assert len(found.rows) > 3
    order = np.random.default_rng(0).permutation(len(wrong))
    mixed = suspects.find([3 * s[order] for s in scores], wrong[order], CLASSES)
    assert order[mixed.rows].tolist() == found.rows.tolist()
    assert mixed.label_probability == pytest.approx(found.label_probability, rel=1e-2)


def test_one_voter_that_holds_to_the_label_is_enough_for_it() -> None:
    x, labels = blobs(0, apart=6.0)
    wrong, _ = planted(labels, 0, 8)
    scores = voters(x, wrong)
    row = int(suspects.find(scores, wrong, CLASSES).rows[0])
    scores[1] = scores[1].copy()
    scores[1][row, wrong[row]] = scores[1][row].max() + 0.1
    assert row not in suspects.find(scores, wrong, CLASSES).rows


def test_copies_do_not_vouch_for_each_other() -> None:
    """An image of another class that lies there five times over: seen alone, each copy confirms the others' label."""
    x, labels = blobs(1, apart=6.0, d=60)
    at = int(np.flatnonzero(labels == 0)[0])
    x, wrong = np.concatenate([x, np.repeat(x[[at]], 5, axis=0)]), np.concatenate([labels, np.full(5, 2)])
    wrong[at] = 2
    copies = np.array([at, *range(len(labels), len(wrong))])
    groups = np.arange(len(wrong))
    groups[copies] = at
    together = suspects.find(voters(x, wrong, groups), wrong, CLASSES, groups)
    assert set(copies) <= set(together.rows)
    assert not set(copies) & set(suspects.find(voters(x, wrong), wrong, CLASSES).rows)


def test_a_class_of_few_images_is_left_alone() -> None:
    x, labels = blobs(2, apart=2.0)
    few = np.flatnonzero(labels == 3)[: suspects.LEAST_PER_CLASS - 1]
    keep = np.sort(np.concatenate([np.flatnonzero(labels != 3), few]))
    x, labels = x[keep], labels[keep]
    found = suspects.find(voters(x, labels), labels, CLASSES)
    assert len(found.rows)
    assert not (labels[found.rows] == 3).any()
    assert not (found.likely == 3).any()


def test_among_too_few_images_nobody_is_suspected() -> None:
    x, labels = blobs(0, n=suspects.LEAST_IMAGES - 1)
    wrong, _ = planted(labels, 0, 5)
    assert not suspects.judged(wrong, CLASSES)
    assert not len(suspects.find(voters(x, wrong), wrong, CLASSES).rows)
    assert suspects.judged(np.arange(suspects.LEAST_IMAGES) % CLASSES, CLASSES)
    copies = np.arange(200) // 5
    assert not suspects.judged(np.arange(200) // 5 % CLASSES, CLASSES, copies), "copies of 40 images are 40 images"
    assert not len(suspects.find([], wrong, CLASSES).rows)


def test_good_places_are_those_that_may_be_the_best() -> None:
    rng = np.random.default_rng(0)
    best = rng.random(400) < 0.9
    same = best ^ (rng.random(400) < 0.02)
    worse = best & (rng.random(400) < 0.8)
    assert suspects.good(np.stack([worse, same, best], axis=1), delta=0.01) == [1, 2]
    assert suspects.good(np.stack([worse, same, best], axis=1), delta=0.5) == [0, 1, 2]


def test_the_record_names_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = suspects.Found(
        np.array([4, 0, 2]), np.array([1, 0, 2]), np.array([0.9, 0.8, 0.5]), np.array([0.01, suspects.RARE, 0.2])
    )
    labels = np.array([2, 0, 0, 1, 0])
    names = ("ash", "birch", "cedar")
    record = suspects.record(found, [f"{i}.png" for i in range(5)], labels, names, 7)
    assert (record.images, record.voters, record.estimated, record.wrong) == (5, 7, 3, 2)
    assert [(s.path, s.label, s.likely) for s in record.listed] == [
        ("4.png", "ash", "birch"), ("0.png", "cedar", "ash"), ("2.png", "ash", "cedar"),
    ]  # fmt: skip
    monkeypatch.setattr(suspects, "LISTED", 1)
    short = suspects.record(found, [f"{i}.png" for i in range(5)], labels, names, 7)
    assert (len(short.listed), short.estimated, short.wrong) == (1, 3, 2)
