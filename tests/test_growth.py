"""A learning curve is measured as by brute force, a known one is recovered, and no more is promised than it shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork import growth
from topwork.probe import Standardised, factor, probe, weights
from topwork.records import Growth


def blobs(n: int, classes: int = 3, d: int = 20, seed: int = 0, apart: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = rng.normal(size=(classes, d)) * apart / np.sqrt(d)
    return (centres[labels] + rng.normal(size=(n, d))).astype(np.float32), labels


def measured(x: np.ndarray, labels: np.ndarray, **options: object) -> growth.Measured:
    classes = int(labels.max()) + 1
    groups, importance = options.get("groups"), options.get("importance")
    whole = probe(x, labels, classes, groups=groups, importance=importance)  # type: ignore[arg-type]
    return growth.measure(x, labels, classes, whole.correct[:, whole.best], **options)  # type: ignore[arg-type]


def drawn(a: float, b: float, c: float, *, n: int, images: int, seed: int = 0) -> growth.Measured:
    """Answers whose shares of right ones follow a known curve, on the same images at every size."""
    sizes = np.array([n / 8, n / 4, n / 2, n])
    level = np.random.default_rng(seed).permutation(images) / images
    right = [
        np.stack([np.roll(level, 7 * k) < a - b * size**-c for k in range(draws)])
        for size, draws in zip(sizes, (16, 8, 4, 1), strict=True)
    ]
    return growth.Measured(sizes, tuple(right))


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("d", [5, 60])
def test_a_part_is_judged_as_by_brute_force(d: int, *, weighed: bool) -> None:
    """The head on a part, fitted to its features; the shared products of all images must give the same answers."""
    x, labels = blobs(60, d=d, seed=d)
    groups = np.arange(60)
    groups[[3, 9, 12]] = 3  # copies of one content
    weight = np.where(labels == 0, 2.0, 0.5) if weighed else np.ones(60)
    inside = np.flatnonzero((np.arange(60) // 6) % 2 == 0)
    standard = Standardised.of(x, weight / weight.mean())
    z = standard(x)
    found = growth._right(z @ z.T, d, labels, 3, inside, groups, weight)

    a = weight[inside] / weight[inside].mean()
    own = Standardised(a @ z[inside] / len(inside), np.ones(d))
    part = z[inside].astype(np.float32)
    factors = factor(part, own, a)
    p = probe(part, labels[inside], 3, groups=groups[inside], importance=a, standard=own, factors=factors)
    w, b = weights(part, labels[inside], 3, float(p.penalties[p.best]), own, factors)
    expected = (own(z.astype(np.float32)) @ w + b).argmax(axis=1) == labels
    expected[inside] = p.correct[:, p.best]
    assert (found == expected).mean() >= 1 - 1 / 60  # a tie may fall either way


def test_every_image_is_judged_at_every_size() -> None:
    x, labels = blobs(96)
    found = measured(x, labels)
    assert found.sizes.tolist() == [12, 24, 48, 96]
    assert [r.shape for r in found.right] == [(16, 96), (8, 96), (4, 96), (1, 96)]
    accuracy = [float(r.mean()) for r in found.right]
    assert accuracy[0] < accuracy[2] < accuracy[3] + 0.03, "more images, better heads"


def test_copies_are_on_one_side() -> None:
    """Labels at random, every image three times over: whoever sees a copy knows the answer."""
    rng = np.random.default_rng(0)
    again = np.repeat(np.arange(60), 3)
    x = rng.normal(size=(60, 40)).astype(np.float32)[again]
    labels = rng.permutation(np.arange(60) % 2)[again]
    honest, leaky = measured(x, labels, groups=again), measured(x, labels)
    assert all(float(r.mean()) < 0.62 for r in honest.right)
    assert float(leaky.right[2].mean()) > 0.7


def test_of_many_images_a_part_is_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "LARGEST", 64)
    x, labels = blobs(240)
    groups = np.arange(240) // 6  # two of each class
    rows = growth.dealt(labels, groups, 0)
    assert 0 < len(rows) <= 64
    assert np.bincount(labels[rows]).tolist() == [len(rows) / 3] * 3
    assert (np.bincount(groups)[groups[rows]] == np.bincount(groups[rows])[groups[rows]]).all(), "groups are whole"
    whole = np.ones(len(rows), dtype=bool)
    found = growth.measure(x[rows], labels[rows], 3, whole, groups=groups[rows], images=240)
    assert found.sizes.tolist() == [len(rows) / 8, len(rows) / 4, len(rows) / 2, 240]
    assert growth.follow(found).images == 240
    assert growth.dealt(labels[:64], None, 0).tolist() == list(range(64))


@pytest.mark.parametrize("n", [999, 1001])
def test_more_images_need_fewer_rounds(n: int) -> None:
    x, labels = blobs(n, d=3)
    assert len(measured(x, labels).right[0]) == growth.PARTS * (2 if n < growth.ONE_ROUND_FROM else 1)


@pytest.mark.parametrize(("a", "b", "c"), [(0.95, 2.0, 0.5), (0.9, 1.0, 0.4), (1.0, 3.0, 0.7), (0.99, 5.0, 0.9)])
def test_a_known_curve_is_recovered(a: float, b: float, c: float) -> None:
    n = 800
    found = growth.follow(drawn(a, b, c, n=n, images=4000))
    for times, gain, low, high in [
        (2, found.twice, found.twice_low, found.twice_high),
        (4, found.four_times, found.four_times_low, found.four_times_high),
    ]:
        truth = b * (n**-c - (times * n) ** -c)
        assert low <= truth <= high
        assert gain == pytest.approx(truth, abs=0.006 * times)
    assert [p.accuracy for p in found.points] == pytest.approx([a - b * s**-c for s in (100, 200, 400, 800)], abs=1e-3)


def test_a_flat_curve_promises_nothing() -> None:
    found = growth.follow(drawn(0.9, 0.0, 1.0, n=800, images=2000))
    assert found.twice == pytest.approx(0, abs=0.004)
    assert found.twice_low == pytest.approx(0, abs=1e-3)
    assert found.tells


def test_few_images_cannot_tell() -> None:
    found = growth.follow(drawn(0.9, 1.5, 0.5, n=40, images=40))
    assert not found.tells
    assert "cannot be told" in found.reason


def test_the_sentence_says_the_numbers() -> None:
    found = growth.follow(drawn(0.95, 2.0, 0.5, n=800, images=4000))
    assert f"{100 * found.twice:+.1f} points" in found.reason
    assert f"{100 * found.twice_low:+.1f} to {100 * found.twice_high:+.1f}" in found.reason


@given(st.integers(0, 10_000), st.integers(8, 60), st.lists(st.floats(0, 1), min_size=4, max_size=4))
@settings(max_examples=40, deadline=None)
def test_more_images_never_harm_and_nothing_is_right_more_often_than_always(
    seed: int, images: int, shares: list[float]
) -> None:
    """Whatever the answers: falling curves, all right, all wrong."""
    rng = np.random.default_rng(seed)
    right = tuple(rng.random((draws, images)) < share for draws, share in zip((8, 4, 2, 1), shares, strict=True))
    found = growth.follow(growth.Measured(np.array([5.0, 10, 20, 40]), right))
    assert 0 <= found.twice_low <= found.twice <= found.twice_high
    assert found.twice <= found.four_times + 1e-12
    assert 0 <= found.four_times_low <= found.four_times <= found.four_times_high
    assert found.a <= 1 and found.b >= 0
    assert float(growth.RATES[0]) <= found.c <= float(growth.RATES[-1])
    assert [p.accuracy for p in found.points] == pytest.approx([float(r.mean()) for r in right])


def test_copies_make_it_no_surer() -> None:
    found = drawn(0.9, 2.0, 0.5, n=400, images=200)
    again = np.repeat(np.arange(200), 5)
    copied = growth.Measured(found.sizes, tuple(r[:, again] for r in found.right))

    def width(one: Growth) -> float:
        return one.twice_high - one.twice_low

    assert width(growth.follow(copied, groups=again)) == pytest.approx(width(growth.follow(found)), rel=0.2)


def test_weights_count_in_the_points() -> None:
    x, labels = blobs(90)
    weight = np.where(labels == 0, 2.5, 0.25)
    found = measured(x, labels, importance=weight / weight.mean())
    points = growth.follow(found, importance=weight).points
    expected = [float(np.average(r.mean(axis=0), weights=weight)) for r in found.right]
    assert [p.accuracy for p in points] == pytest.approx(expected)


def test_tiny_classes_and_features_that_do_not_vary_are_borne() -> None:
    x, labels = blobs(60)
    labels[:2] = 3
    assert growth.follow(measured(x, labels)).images == 60
    flat = measured(np.ones((60, 4), dtype=np.float32), np.array([0] * 45 + [1] * 15))
    assert all(float(r.mean()) == pytest.approx(0.75) for r in flat.right[:3])


def test_the_same_seed_gives_the_same_curve() -> None:
    x, labels = blobs(80)
    one, other = (growth.follow(measured(x, labels, seed=3), seed=3) for _ in range(2))
    assert one == other


def test_how_many_images_are_enough() -> None:
    assert growth.enough(np.arange(40) % 2, 2)
    assert not growth.enough(np.arange(39) % 2, 2)
    assert not growth.enough(np.arange(60) % 20, 20), "three of a class"
    assert not growth.enough(np.arange(60) % 2, 2, np.arange(60) // 2), "30 contents"
