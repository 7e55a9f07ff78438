"""What tells the classes apart without looking at the thing is named, and nothing else is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork import shortcuts
from topwork.records import FileFacts, Shortcut

N, CLASSES = 240, 3
LABELS = np.arange(N) % CLASSES
MACS = (0.03, 0.4, 1.0)
PHOTO = FileFacts("JPEG", "RGB", 640, 480, 50_000)


def network(seed: int = 0, accuracies: Sequence[float] = (0.5, 0.8, 0.95), n: int = N) -> np.ndarray:
    """(n, K) where each cut is right, the better ones also where the worse ones are."""
    level = np.random.default_rng(seed).permutation(n) / n
    return np.stack([level < a for a in accuracies], axis=1)


def files(seed: int = 0) -> list[FileFacts]:
    """Photos of three sizes, two formats and two cameras, none of which has anything to do with the class."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([320, 640, 1280], N)
    return [
        replace(
            PHOTO, width_px=int(w), height_px=int(w * h), bytes=int(b), camera=str(c), format=str(f),
        )
        for w, h, b, c, f in zip(
            sizes, rng.uniform(0.6, 0.8, N), rng.integers(30_000, 90_000, N), rng.choice(["A", "B"], N),
            rng.choice(["JPEG", "PNG"], N), strict=True,
        )
    ]  # fmt: skip


def of(numbers: dict[str, np.ndarray], **options: object) -> dict[str, Shortcut]:
    found = shortcuts.measure(numbers, LABELS, CLASSES, network(), MACS, **options)  # type: ignore[arg-type]
    return {s.kind: s for s in found}


def of_files(found: list[FileFacts]) -> dict[str, Shortcut]:
    return of(shortcuts.facts(found))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("size and format", lambda f, y: replace(f, width_px=320 + 320 * y, height_px=240 + 240 * y)),
        ("size and format", lambda f, y: replace(f, width_px=int(f.height_px * (1 + 0.3 * y)))),
        ("size and format", lambda f, y: replace(f, format="PNG" if y else "JPEG")),
        ("size and format", lambda f, y: replace(f, mode="L" if y == 1 else "RGB")),
        ("camera", lambda f, y: replace(f, camera=f"maker {y}")),
        ("file size", lambda f, y: replace(f, bytes=int(f.width_px * f.height_px * (0.1 + 0.1 * y)))),
    ],
)
def test_it_warns_where_files_differ_by_class(kind: str, change) -> None:  # type: ignore[no-untyped-def]
    """The class in the middle, too, is told by its numbers; a tenth of the files does not keep to it."""
    keeps = np.random.default_rng(1).random(N) < 0.9
    found = of_files([change(f, int(y)) if k else f for f, y, k in zip(files(), LABELS, keeps, strict=True)])
    assert found[kind].warned
    assert "may be learning the camera, not the thing" in found[kind].detail
    assert f"{found[kind].accuracy:.1%}" in found[kind].detail
    others = [s for name, s in found.items() if name not in {kind, "first layers", "file size"}]
    assert not any(s.warned for s in others)


def test_it_warns_where_the_colour_differs_by_class_and_says_when_that_is_fine() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 180, (N, 16, 16, 3))
    pixels[..., 1] += 25 * LABELS[:, None, None]
    found = of(shortcuts.colours(pixels.astype(np.uint8)))["colour"]
    assert found.warned
    assert "Unless that is what sets the classes apart" in found.detail
    plain = of(shortcuts.colours(rng.integers(0, 180, (N, 16, 16, 3)).astype(np.uint8)))["colour"]
    assert not plain.warned
    assert "learning the camera" not in plain.detail


def test_colour_that_helps_a_little_does_not_warn() -> None:
    """A third of what the network knows is no reason to doubt it; the number is in the record all the same."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(N, 6)) + 0.45 * LABELS[:, None] * np.array([1, 0, 0, 0, 0, 0])
    found = of({"colour": x})["colour"]
    assert 0.05 < found.share < 0.5
    assert not found.warned


def test_numbers_that_mean_nothing_hardly_ever_warn() -> None:
    """Two-sided 95% bounds: at most one in forty; in fact far fewer, since nothing is far from a quarter."""
    rng = np.random.default_rng(0)
    warned = 0
    for trial in range(60):
        numbers = {kind: rng.normal(size=(N, 4)) for kind in ("size and format", "camera", "file size", "colour")}
        found = shortcuts.measure(numbers, LABELS, CLASSES, network(trial), MACS)
        warned += sum(s.warned for s in found)
    assert warned <= 60 * 4 / 40


def test_where_the_network_knows_nothing_there_is_no_shortcut_to_it() -> None:
    rng = np.random.default_rng(0)
    warned = 0
    for trial in range(40):
        found = shortcuts.measure(
            {"size and format": rng.normal(size=(N, 4))}, LABELS, CLASSES, network(trial, (0.33, 0.3, 0.32)), MACS
        )
        warned += sum(s.warned for s in found)
    assert warned <= 1


def test_the_first_layers_warn_where_they_are_nearly_as_good_as_the_best() -> None:
    def first(accuracies: Sequence[float], macs: Sequence[float] = MACS) -> Shortcut | None:
        found = shortcuts.measure({}, LABELS, CLASSES, network(0, accuracies), macs)
        return found[0] if found else None

    strong, weak = first((0.985, 0.99, 0.99)), first((0.7, 0.9, 0.99))
    assert strong is not None and strong.warned
    assert weak is not None and not weak.warned
    assert first((0.985, 0.99, 0.99), (0.2, 0.4, 1.0)) is None, "none of the layers is a first one"


@given(st.integers(0, 1000), st.floats(0.4, 1), st.floats(0.5, 1))
@settings(max_examples=25, deadline=None)
def test_the_bound_is_where_the_difference_stops_being_shown(seed: int, right: float, best: float) -> None:
    """Against a search over a grid; the share lies above its bound."""
    pair = network(seed, (right, best))[np.random.default_rng(seed).permutation(N)]
    pair[:, 0] = np.roll(pair[:, 0], seed % N)
    a, b = pair[:, 0] - 1 / CLASSES, pair[:, 1] - 1 / CLASSES
    grid = np.linspace(0, 1, 1001)
    d = a[:, None] - grid * b[:, None]
    error = np.hypot(d.std(axis=0, ddof=1) / np.sqrt(N), 1 / N)
    shown = d.mean(axis=0) - 1.959964 * error > 0
    expected = grid[shown].max() if shown[0] else 0.0
    found = shortcuts._least_share(pair[:, 0], pair[:, 1], 1 / CLASSES, np.ones(N), None, N)
    assert found == pytest.approx(expected, abs=2e-3)
    assert found <= max(0.0, a.mean() / b.mean()) + 1e-9


def test_copies_make_it_no_surer() -> None:
    x = np.random.default_rng(2).normal(size=(N, 2)) + LABELS[:, None]
    alone = shortcuts.measure({"colour": x}, LABELS, CLASSES, network(), MACS)
    again = np.repeat(np.arange(N), 4)
    copied = shortcuts.measure(
        {"colour": x[again]}, LABELS[again], CLASSES, network()[again], MACS, groups=again.astype(np.int64)
    )
    for one, other in zip(alone, copied, strict=True):
        assert other.accuracy == pytest.approx(one.accuracy, abs=0.02)
        assert other.high - other.low == pytest.approx(one.high - one.low, rel=0.05)
        assert other.share_low <= one.share_low + 0.03


def test_being_right_on_the_largest_class_alone_is_no_knowledge() -> None:
    labels = (np.arange(N) % 10 == 0).astype(np.int64)
    found = shortcuts.measure({"colour": np.zeros((N, 2))}, labels, 2, network(), MACS)[0]
    assert found.accuracy == pytest.approx(0.5)
    assert (found.majority, found.share, found.warned) == (0.5, 0.0, False)


def test_one_class_that_is_told_is_as_much_as_it_is_worth() -> None:
    """The two others are right half of the time; left out one by one, they would always be wrong."""
    found = of({"size and format": (LABELS[:, None] == 0).astype(float)})["size and format"]
    assert found.accuracy == pytest.approx(2 / 3, abs=0.1)
    assert found.warned


def test_weights_of_classes_and_tiny_classes_are_borne() -> None:
    labels = np.array([0] * 20 + [1] * 18 + [2] * 2)
    weight = np.where(labels == 2, 5.0, 1.0)
    x = np.random.default_rng(0).normal(size=(40, 3))
    found = shortcuts.measure(
        {"colour": x}, labels, 3, network(n=40), MACS, importance=weight / weight.mean()
    )  # fmt: skip
    for s in found:
        assert 0 <= s.low <= s.accuracy <= s.high <= 1
        assert 0 <= s.share_low <= 1


def test_what_all_files_share_is_left_out() -> None:
    assert shortcuts.facts([PHOTO] * 5) == {}
    cameras = [replace(PHOTO, camera=c) for c in "AABBC"]
    assert list(shortcuts.facts(cameras)) == ["camera"]
    assert shortcuts.facts(cameras)["camera"].sum(axis=1).tolist() == [1.0] * 5
    many = [replace(PHOTO, camera=str(i // 2)) for i in range(100)]
    assert shortcuts.facts(many)["camera"].shape == (100, shortcuts.CATEGORIES)
    assert shortcuts.facts([replace(PHOTO, width_px=0), PHOTO])["size and format"].shape[0] == 2


def test_colours_are_means_and_deviations() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    found = shortcuts.colours(pixels)["colour"]
    for image, row in zip(pixels, found, strict=True):
        channels = [image[..., c].astype(float).ravel() for c in range(3)]
        assert row == pytest.approx([*(c.mean() for c in channels), *(c.std() for c in channels)])
