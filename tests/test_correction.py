"""Choosing by the same images is paid for: as image by image, in a fraction of the time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from topwork import correction, head, plan
from topwork.correction import Selected, corrected_accuracy
from topwork.probe import Probe, probe
from topwork.records import HeadFacts
from topwork.statistics import paired_gain

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def candidates(
    n: int, cuts: int, penalties: int, *, seed: int, tried: int = 0, groups: Ints | None = None,
    importance: Floats | None = None, delta: float = 0.01,
) -> Selected:  # fmt: skip
    """Everything that was chosen from, made up: a few good ones among many, alike within groups."""
    rng = np.random.default_rng(seed)
    member = np.arange(n) if groups is None else groups

    def right(share: float) -> NDArray[np.bool_]:
        return (rng.random(member.max() + 1) < share)[member]

    probes = []
    for share in rng.uniform(0.6, 0.8, cuts):
        correct = np.stack([right(share) for _ in range(penalties)], axis=1)
        squared = (rng.random((n, penalties)) + ~correct).astype(np.float32)
        best = int(np.average(squared.astype(np.float64), axis=0, weights=importance).argmin())
        probes.append(Probe(np.arange(1.0, penalties + 1), best, squared, correct, np.zeros((n, 2), np.float32)))
    columns = np.stack([p.correct[:, p.best] for p in probes], axis=1)
    chosen = plan.cheapest(plan.deficits(columns, groups, importance).high, delta)
    logistic = np.stack([right(0.75) for _ in range(tried)], axis=1) if tried else np.zeros((n, 0), bool)
    ridge = right(0.7)
    made = head.Head(
        np.zeros((1, 2), np.float32), np.zeros(2, np.float32), 1.0,
        HeadFacts("ridge", 1.0, 1.0, 0.7, None, ""), np.zeros((n, 2)), ridge, ridge,
        logistic, (rng.random((n, tried)) + ~logistic).astype(np.float32),
    )  # fmt: skip
    return Selected(tuple(probes), made, chosen, delta, groups, importance=importance)


def by_hand(selected: Selected, *, seed: int, replicates: int) -> float:
    """Oracle: BBC-CV image by image. The rules are the plan's and the head's, on the drawn images alone.

    Images drawn twice are two images; a group drawn twice is two groups. Choices weigh the images; those that
    were left out count alike.
    """
    n = len(selected.probes[0].squared)
    member = np.arange(n) if selected.groups is None else np.unique(selected.groups, return_inverse=True)[1]
    groups = sorted(set(member.tolist()))
    a = np.ones(n) if selected.importance is None else selected.importance
    rng, shares = np.random.default_rng(seed), []
    for _ in range(replicates):
        drawn = rng.integers(0, len(groups), len(groups))
        rows = [(i, copy) for copy, g in enumerate(drawn) for i in range(n) if member[i] == g]
        kept = [i for i, _ in rows]
        out = [i for i in range(n) if member[i] not in drawn]
        if not out:
            continue
        right = []
        for p in selected.probes:
            errors = [sum(a[i] * float(p.squared[i, k]) for i in kept) for k in range(p.squared.shape[1])]
            right.append(p.correct[:, int(np.argmin(errors))])
        correct = np.array([[column[i] for column in right] for i in kept])
        copies = None if selected.groups is None else np.array([copy for _, copy in rows])
        cut = plan.cheapest(plan.deficits(correct, copies, a[kept] / a[kept].mean()).high, selected.delta)
        final = right[cut]
        h, base = selected.head, selected.head.ridge_folds
        if cut == selected.chosen and h.loss.shape[1]:
            losses = [sum(a[i] * float(h.loss[i, k]) for i in kept) for k in range(h.loss.shape[1])]
            logistic = h.correct[:, int(np.argmin(losses))]
            if sum(a[i] * logistic[i] for i in kept) > sum(a[i] * h.ridge_folds[i] for i in kept):
                final = base = logistic
        for several, least in selected.several if cut == selected.chosen else ():
            if paired_gain(several[kept], base[kept], copies, a[kept])[1] > least:
                final = several
                break
        shares.append(np.mean([final[i] for i in out]))
    return float(np.mean(shares))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("cuts", "penalties", "tried"), [(1, 1, 0), (1, 1, 4), (4, 3, 0), (5, 4, 3)])
def test_the_correction_is_bbc_cv_by_hand(cuts: int, penalties: int, tried: int, seed: int) -> None:
    selected = candidates(30, cuts, penalties, seed=seed, tried=tried, delta=0.1)
    fast = corrected_accuracy(selected, seed=seed, replicates=40)
    assert fast == pytest.approx(by_hand(selected, seed=seed, replicates=40), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("groups", [None, np.arange(32) // 2])
def test_the_choice_in_each_sample_weighs_images_by_their_importance(seed: int, groups: Ints | None) -> None:
    """Weights of 1/4 and 7/4, whose sums are exact, so that ties are ties in any order of summation."""
    importance = np.where(np.random.default_rng(seed).permutation(32) % 2, 0.25, 1.75)
    selected = candidates(32, 4, 3, seed=seed, tried=3, groups=groups, importance=importance, delta=0.2)
    fast = corrected_accuracy(selected, seed=seed, replicates=40)
    assert fast == pytest.approx(by_hand(selected, seed=seed, replicates=40), abs=1e-12)
    assert fast != corrected_accuracy(replace(selected, importance=None), seed=seed, replicates=40)


@pytest.mark.parametrize("groups", [None, np.arange(40) // 2])
def test_importance_of_one_each_changes_no_correction(groups: Ints | None) -> None:
    selected = candidates(40, 4, 3, seed=1, tried=3, groups=groups, delta=0.1)
    ones = replace(selected, importance=np.ones(40))
    assert corrected_accuracy(ones, seed=0, replicates=40) == corrected_accuracy(selected, seed=0, replicates=40)


def test_a_cut_that_was_given_is_chosen_in_no_sample() -> None:
    """Alone among the candidates it gives the same."""
    selected = candidates(40, 4, 3, seed=1, tried=2, delta=0.1)
    alone = replace(selected, probes=selected.probes[selected.chosen :][:1], chosen=0)
    given_one = corrected_accuracy(replace(selected, fixed=True), seed=0, replicates=40)
    assert given_one == corrected_accuracy(alone, seed=0, replicates=40)
    assert given_one != corrected_accuracy(selected, seed=0, replicates=40)


GROUPS = np.repeat(np.arange(30), 4)


@pytest.mark.parametrize("tried", [0, 3])
def test_whole_groups_are_drawn(tried: int) -> None:
    """With one cut no interval is involved: only which images are in and which are out."""
    selected = candidates(120, 1, 5, seed=1, tried=tried, groups=GROUPS * 7 - 3, delta=0.1)
    fast = corrected_accuracy(selected, seed=2, replicates=40)
    assert fast == pytest.approx(by_hand(selected, seed=2, replicates=40), abs=1e-12)


def test_in_each_sample_the_cut_is_chosen_by_the_rule_that_chose_it() -> None:
    selected = candidates(120, 5, 2, seed=3, groups=GROUPS, delta=0.2)
    fast = corrected_accuracy(selected, seed=2, replicates=40)
    assert fast == pytest.approx(by_hand(selected, seed=2, replicates=40), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("groups", [None, np.arange(40) // 2])
@pytest.mark.parametrize("tried", [0, 3])
def test_heads_of_several_depths_are_tested_again_in_each_sample(seed: int, groups: Ints | None, tried: int) -> None:
    selected = candidates(40, 3, 2, seed=seed, tried=tried, groups=groups, delta=0.2)
    rng = np.random.default_rng(seed)
    member = np.arange(40) if groups is None else groups
    several = tuple(((rng.random(40) < share)[member], least) for share, least in ((0.75, 0.02), (0.8, -0.1)))
    selected = replace(selected, several=several)
    fast = corrected_accuracy(selected, seed=seed, replicates=40)
    assert fast == pytest.approx(by_hand(selected, seed=seed, replicates=40), abs=1e-12)


def test_it_does_not_matter_how_many_samples_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    selected = candidates(120, 5, 3, seed=3, groups=GROUPS, tried=3, delta=0.2)
    together = corrected_accuracy(selected, seed=2, replicates=40)
    monkeypatch.setattr(correction, "AT_ONCE", 1)
    assert corrected_accuracy(selected, seed=2, replicates=40) == pytest.approx(together, abs=1e-12)


@pytest.mark.parametrize("groups", [np.arange(30)[::-1].copy(), np.random.default_rng(0).permutation(30)])
def test_groups_of_single_images_may_be_numbered_in_any_order(groups: Ints) -> None:
    selected = replace(candidates(30, 4, 3, seed=1, tried=3, delta=0.1), groups=groups)
    fast = corrected_accuracy(selected, seed=1, replicates=40)
    assert fast == pytest.approx(by_hand(selected, seed=1, replicates=40), abs=1e-12)


def test_samples_that_lack_no_image_judge_nothing() -> None:
    """Two groups: half of the samples hold both; what counts are the others, each of one group twice."""
    selected = candidates(8, 2, 2, seed=0, groups=np.arange(8) % 2, delta=0.2)
    fast = corrected_accuracy(selected, seed=0, replicates=40)
    assert fast == pytest.approx(by_hand(selected, seed=0, replicates=40), abs=1e-12)


def test_without_a_choice_the_correction_is_nothing_but_chance() -> None:
    """One cut, one penalty, ridge alone: the images left out are right as often as all are."""
    selected = candidates(200, 1, 1, seed=0)
    naive = selected.probes[0].correct.mean()
    # 500 samples, each of about 74 images left out: sd 0.05 / sqrt(500), times 4
    assert corrected_accuracy(selected, seed=0) == pytest.approx(naive, abs=0.01)


def test_the_same_seed_gives_the_same_correction() -> None:
    selected = candidates(60, 3, 3, seed=0, tried=2)
    first, again = (corrected_accuracy(selected, seed=3, replicates=30) for _ in range(2))
    assert first == again
    assert corrected_accuracy(selected, seed=4, replicates=30) != first


def test_the_best_of_many_that_know_nothing_is_corrected_to_chance() -> None:
    """15 sets of pure noise, eight cuts each, chosen among as in a real run: looks better than 50%, and is not."""
    naive, corrected = [], []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(60) % 2)
        cuts = [rng.normal(size=(60, 20)).astype(np.float32) for _ in range(8)]
        probes = tuple(probe(x, labels, 2) for x in cuts)
        correct = np.stack([p.correct[:, p.best] for p in probes], axis=1)
        chosen = plan.cheapest(plan.deficits(correct).high, 0.01)
        made = head.fit(cuts[chosen], labels, 2, probes[chosen], groups=None, seed=seed)
        naive.append((made.scores.argmax(axis=1) == labels).mean())
        selected = Selected(probes, made, chosen, 0.01, None)
        corrected.append(corrected_accuracy(selected, seed=seed, replicates=100))
    assert np.mean(naive) > 0.56
    assert np.mean(corrected) < np.mean(naive) - 0.04
    # A single set's accuracy has a standard error of 6.5 points; the mean of 15 one of 1.7, and BBC-CV is
    # known to correct a little too much.
    assert 0.44 < np.mean(corrected) < 0.54


def test_a_real_advantage_survives_the_correction() -> None:
    """One cut is right on 90%, seven on half: choosing it was no luck, and costs less than a point."""
    rng = np.random.default_rng(0)
    truth = [0.5] * 7 + [0.9]
    probes = tuple(
        Probe(
            np.ones(1), 0, np.ones((300, 1), np.float32), (rng.random((300, 1)) < share), np.zeros((300, 2), np.float32)
        )
        for share in truth
    )
    selected = Selected(probes, candidates(300, 1, 1, seed=0).head, 7, 0.01, None)
    assert corrected_accuracy(selected, seed=0) == pytest.approx(probes[-1].correct.mean(), abs=0.01)


def test_a_head_of_several_depths_is_chosen_anew_by_the_gain_that_it_had_to_show() -> None:
    """Right everywhere, it is taken in every sample; where it must gain more than anything can, in none."""
    plain = replace(candidates(200, 1, 1, seed=0), fixed=True)
    everywhere, nowhere = np.ones(200, bool), np.zeros(200, bool)

    def corrected(*several: tuple[NDArray[np.bool_], float]) -> float:
        return corrected_accuracy(replace(plain, several=several), seed=0, replicates=40)

    alone = corrected()
    assert alone < 0.8
    assert corrected((everywhere, 0.0)) == 1
    assert corrected((everywhere, 1.0)) == alone
    assert corrected((nowhere, 0.0)) == alone
    assert corrected((nowhere, 0.01), (everywhere, 0.0)) == 1  # the second one, where the first is not taken
    assert corrected((everywhere, 0.0), (nowhere, -2.0)) == 1  # the first one, where both would be


def test_several_depths_count_only_where_the_chosen_place_is_chosen_again() -> None:
    """In samples that choose another place, that one's ridge head stands for it."""
    free = candidates(60, 4, 1, seed=1)
    several = ((np.ones(60, bool), 0.0),)
    everything = corrected_accuracy(replace(free, several=several, fixed=True), seed=0, replicates=60)
    some_of_it = corrected_accuracy(replace(free, several=several), seed=0, replicates=60)
    none = corrected_accuracy(free, seed=0, replicates=60)
    assert everything == 1
    assert none < some_of_it < 1
