"""What the probes say of features whose worth is known, and when a head may read more than one depth of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from topwork import measurement, plan
from topwork.measurement import Frozen, Measured, fitted_head, frozen_head, probed
from topwork.records import Dataset, Example, Preprocessing
from topwork.statistics import paired_gain

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Written:
    """Features that are written down instead of measured."""

    columns: tuple[Floats, ...]  # one per cut
    logits: None = None

    @property
    def cuts(self) -> tuple[str, ...]:
        return tuple(f"layer{k + 1}" for k in range(len(self.columns)))

    @property
    def cost_shares(self) -> tuple[float, ...]:
        return tuple((k + 1) / len(self.columns) for k in range(len(self.columns)))

    @property
    def forward_seconds(self) -> float:
        return 1e-3 * len(self.columns)

    @property
    def seconds(self) -> NDArray[np.float64]:
        return np.full(1 + len(self.columns), 1e-3)

    def at(self, k: int, rows: NDArray[np.int64] | None = None) -> Floats:
        return self.columns[k] if rows is None else self.columns[k][rows]

    def read(self, k: int, rows: NDArray[np.int64] | None = None) -> Any:
        return Pieces(self.at(k, rows))


class Pieces:
    """Rows that are given when they are asked for, and nothing else that an array can."""

    def __init__(self, x: Floats) -> None:
        self._x, self.shape = x, x.shape

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, rows: Any) -> Floats:
        return self._x[rows]


def backbone(cuts: int) -> Any:
    return SimpleNamespace(
        name="written", fingerprint="0", preprocessing=Preprocessing(32, 32, "bilinear", (0, 0, 0), (1, 1, 1)),
        index=lambda cut: int(cut.removeprefix("layer")) - 1, chain=SimpleNamespace(macs=10 * cuts),
        cuts=tuple(SimpleNamespace(macs=10 * (k + 1)) for k in range(cuts)),
    )  # fmt: skip


def measured(
    columns: list[Floats], labels: NDArray[np.int64], cache: Path, *, locked: int = 0, balance: bool = False
) -> Measured:
    """`locked`: that many of the last images are locked."""
    n, classes = len(labels), int(labels.max()) + 1
    examples = tuple(
        Example(f"{i}.png", int(label), "test" if i >= n - locked else "train", f"{i:032x}")
        for i, label in enumerate(labels)
    )
    dataset = Dataset("written", "a folder per class", tuple(f"c{c}" for c in range(classes)), examples, (), ())
    kept = tuple(c.astype(np.float16).astype(np.float32) for c in columns)
    return probed(
        dataset, "test folder" if locked else "out-of-sample", backbone(len(columns)), Written(kept),  # type: ignore[arg-type]
        balance=balance, seed=0, cache=cache,
    )  # fmt: skip


def shows(labels: NDArray[np.int64], groups: list[list[int]], seed: int, noise: float = 0.6) -> Floats:
    """Features that tell groups of classes apart, and nothing inside a group."""
    rng = np.random.default_rng(seed)
    group = np.array([next(g for g, members in enumerate(groups) if c in members) for c in range(labels.max() + 1)])
    signal = np.repeat(np.eye(len(groups))[group[labels]], 3, axis=1)
    return (signal + noise * rng.normal(size=signal.shape)).astype(np.float32)


LABELS = np.random.default_rng(0).permutation(np.arange(320) % 4)


def complementary(*, first: bool = True) -> list[Floats]:
    """One depth tells {0, 1} from {2, 3}, the other {0, 2} from {1, 3}: together they tell all four."""
    pair = [shows(LABELS, [[0, 1], [2, 3]], 1), shows(LABELS, [[0, 2], [1, 3]], 2)]
    return pair if first else pair[::-1]


def heads(m: Measured, chosen: int, *, delta: float = 0.01, several: bool = True) -> Frozen:
    return frozen_head(m, chosen, 0, several=several, delta=delta)


def test_features_that_are_read_in_pieces_give_the_very_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for many in (measurement.IN_MEMORY, 0):
        monkeypatch.setattr(measurement, "IN_MEMORY", many)
        m = measured(complementary(), LABELS, tmp_path / str(many))
        found.append((m, heads(m, 1)))
    (a, one), (b, other) = found
    for p, q in zip(a.probes, b.probes, strict=True):
        np.testing.assert_array_equal(p.scores, q.scores)
    np.testing.assert_array_equal(one.head.weight, other.head.weight)
    np.testing.assert_array_equal(fitted_head(a, 1, 0).weight, fitted_head(b, 1, 0).weight)


@pytest.mark.parametrize("balance", [False, True])
def test_where_two_depths_know_different_things_the_head_reads_both(tmp_path: Path, balance: bool) -> None:
    m = measured(complementary(), LABELS, tmp_path, balance=balance)
    one = fitted_head(m, 1, 0)
    both = heads(m, 1)
    assert one.right.mean() < 0.6  # a guess between two classes is right one time in two
    assert both.head.right.mean() > 0.8
    assert both.taps == (0, 1)
    assert both.head.facts.kind == "several depths"
    assert both.head.weight.shape == (12, 4)
    gain, low = paired_gain(both.head.right, one.right, None, m.importance)
    assert both.head.facts.reason.startswith("several depths (layer1 ")
    assert f"{100 * gain:+.1f} points against the head of one depth" in both.head.facts.reason
    assert f"(lower 90% bound {100 * low:+.1f})" in both.head.facts.reason
    (tried,) = both.tried
    np.testing.assert_array_equal(tried[0], both.head.right)
    assert tried[1] == 0.0  # up to the chosen cut any gain counts


def test_without_being_asked_the_head_reads_one_depth(tmp_path: Path) -> None:
    m = measured(complementary(), LABELS, tmp_path)
    found = heads(m, 1, several=False)
    assert (found.taps, found.tried) == ((1,), ())
    np.testing.assert_array_equal(found.head.weight, fitted_head(m, 1, 0).weight)


def test_where_scores_are_too_many_to_keep_the_head_reads_one_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "FOLD_SCORES", 2 * 4 * 320 - 1)
    m = measured(complementary(), LABELS, tmp_path)
    assert m.by_fold is None
    assert heads(m, 1).taps == (1,)
    monkeypatch.setattr(measurement, "FOLD_SCORES", 2 * 4 * 320)
    assert heads(measured(complementary(), LABELS, tmp_path), 1).taps == (0, 1)


def test_a_deeper_cut_undoes_the_choice_of_a_cheaper_one_only_for_more_than_delta(tmp_path: Path) -> None:
    """The first cut is chosen; the lower bound of what the second adds is on either side of delta."""
    m = measured(complementary(), LABELS, tmp_path)
    free = heads(m, 0, delta=0.0)
    assert free.taps == (0, 1)
    _, low = paired_gain(free.head.right, fitted_head(m, 0, 0).right)
    assert 0.05 < low < 0.9
    assert heads(m, 0, delta=low - 1e-6).taps == (0, 1)
    stays = heads(m, 0, delta=low + 1e-6)
    assert stays.taps == (0,)
    (tried,) = stays.tried
    assert tried[1] == low + 1e-6
    np.testing.assert_array_equal(tried[0], free.head.right)


def test_where_deeper_ones_are_not_worth_it_earlier_ones_may_still_be(tmp_path: Path) -> None:
    """Cut 2 of three is chosen: with all three four classes are told best, but two suffice and cost nothing more."""
    columns = [*complementary(), shows(LABELS, [[0], [1], [2], [3]], 3, noise=0.9)]
    m = measured(columns, LABELS, tmp_path)
    assert heads(m, 1, delta=0.0).taps[-1] == 2
    found = heads(m, 1, delta=0.9)
    assert found.taps == (0, 1)
    assert [least for _, least in found.tried] == [0.9, 0.0]


def test_noise_beside_a_good_depth_is_mostly_left_alone(tmp_path: Path) -> None:
    """Twenty sets of 120 images, three depths of noise before a good one: a test at 90% would let two through."""
    kept = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(120) % 3)
        noise = [rng.normal(size=(120, 8)).astype(np.float32) for _ in range(3)]
        m = measured([*noise, shows(labels, [[0], [1], [2]], seed, noise=0.8)], labels, tmp_path / str(seed))
        kept += len(heads(m, 3).taps) > 1
    assert kept <= 2


def test_on_images_that_nothing_has_seen_the_head_is_the_sum_of_its_ridge_heads(tmp_path: Path) -> None:
    """Oracle: each depth's ridge regression, solved from its normal equations, weighed by the stack's shares."""
    m = measured(complementary(), LABELS, tmp_path, locked=80)
    found = heads(m, 1)
    assert found.taps == (0, 1)
    rows, train = m.locked_rows, m.rows
    assert len(rows) == 80
    got = found.scores(m, rows)
    weight = measurement.stack.stack(
        [s.astype(np.float32) for s in m.by_fold or ()], m.labels[train], 4,
        measurement.head.folds(m.labels[train], None, 0),
    ).weights  # fmt: skip
    expected, y = np.zeros((80, 4)), np.eye(4)[m.labels[train]]
    for k in (0, 1):
        x, new = m.features.at(k, train).astype(np.float64), m.features.at(k, rows).astype(np.float64)
        mean, scale = x.mean(axis=0), x.std(axis=0)
        x, new = (x - mean) / scale, (new - mean) / scale
        penalty = m.ridges[k] * np.trace(x.T @ x) / x.shape[1]
        w = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - y.mean(axis=0)))
        expected += weight[k] * (new @ w + y.mean(axis=0))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    right = (got.argmax(axis=1) == m.labels[rows]).mean()
    # 80 images at about 85%: a standard error of 4 points; out of fold is a fifth fewer images to learn from.
    assert right == pytest.approx(found.head.right.mean(), abs=0.12)


def test_a_head_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = measured(complementary(), LABELS, tmp_path)
    first = heads(m, 1)
    monkeypatch.setattr(measurement.stack, "fit", lambda *_, **__: pytest.fail("fitted anew"))
    monkeypatch.setattr(measurement.probe, "probe", lambda *_, **__: pytest.fail("probed anew"))
    again = heads(measured(complementary(), LABELS, tmp_path), 1)
    np.testing.assert_array_equal(first.head.weight, again.head.weight)
    assert first.head.facts == again.head.facts


def test_scores_out_of_fold_have_not_seen_their_fold(tmp_path: Path) -> None:
    """Oracle: the ridge head at the same penalty, fitted on the other folds, applied to this one."""
    m = measured(complementary(), LABELS, tmp_path)
    fold = measurement.head.folds(LABELS, None, 0)
    assert m.by_fold is not None
    x, y = m.features.at(0).astype(np.float64), np.eye(4)[LABELS]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    penalty = m.ridges[0] * np.trace(x.T @ x) / x.shape[1]
    for f in np.unique(fold):
        inside, out = fold == f, fold != f
        mx, my = x[out].mean(axis=0), y[out].mean(axis=0)
        c = x[out] - mx
        w = np.linalg.solve(c.T @ c + penalty * np.eye(x.shape[1]), c.T @ (y[out] - my))
        expected = (x[inside] - mx) @ w + my
        np.testing.assert_allclose(m.by_fold[0][inside], expected, atol=2e-3)  # float16


# ---- where not all images were passed up to every cut


def shortened(columns: list[Floats], cache: Path, depth: int, sample: int) -> Measured:
    """All cuts were scored on the first images alone, the first cuts on all."""
    whole = measured([c[:sample] for c in columns], LABELS[:sample], cache)
    return replace(measured(columns[:depth], LABELS, cache), whole=whole)


def test_a_cut_is_looked_up_where_it_was_scored(tmp_path: Path) -> None:
    m = shortened(complementary(), tmp_path, 1, 80)
    rows = np.arange(60, 300)
    here, found = m.scored_at(0, rows)
    assert here is m
    np.testing.assert_array_equal(found, rows)
    there, found = m.scored_at(1, rows)
    assert there is m.whole
    np.testing.assert_array_equal(found, np.arange(60, 80))


def test_what_a_training_depends_on_names_the_sample_and_is_empty_without_one(tmp_path: Path) -> None:
    m = measured(complementary(), LABELS, tmp_path)
    short, other = shortened(complementary(), tmp_path, 1, 80), shortened(complementary(), tmp_path, 1, 160)
    assert m.shortened == ""
    assert len({m.shortened, short.shortened, other.shortened}) == 3


def test_the_pass_goes_as_deep_as_a_head_of_several_depths_that_may_win(tmp_path: Path) -> None:
    both = complementary()
    noise = np.random.default_rng(3).normal(size=both[0].shape).astype(np.float32)
    # Together the first and the third tell all; the choice for one depth is the first of equals.
    m = measured([both[0], noise, both[1], noise + 1], LABELS, tmp_path / "both")
    assert plan.decide(m.evidence, delta=0.3).cut == "layer1"
    assert measurement.reach(m, 0, delta=0.3) in {3, 4}  # noise has weight, or none
    assert measurement.reach(m, 0, delta=0.9) == 0  # so much it cannot gain
    alone = measured([shows(LABELS, [[0], [1], [2], [3]], 1, 0.3), noise, noise + 1], LABELS, tmp_path / "alone")
    assert measurement.reach(alone, 0, delta=0.01) == 0


def test_where_scores_out_of_fold_are_not_kept_no_stack_keeps_the_pass_deep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "FOLD_SCORES", 1)
    assert measurement.reach(measured(complementary(), LABELS, tmp_path), 0, delta=0.0) == 0
