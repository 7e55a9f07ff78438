"""What belongs together is found, nothing else is, and it never stands on two sides of anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO, StringIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from pyarrow import parquet
from rich.console import Console

from conftest import SIZE_PX, Log
from topwork import data, faults, groups, head, memo, runs, splits, survey, terminal, workflow
from topwork.errors import DataError
from topwork.measurement import inflated
from topwork.records import Dataset, Example, FileFacts, Grouped, Part

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def example(i: int, label: int = 0, **more: str) -> Example:
    return Example(f"{label}/img_{i}.jpg", label, "train", f"{i:032x}", **more)  # type: ignore[arg-type]


def dataset(examples: Sequence[Example], classes: int = 2) -> Dataset:
    return Dataset("here", "a folder per class", tuple(f"c{k}" for k in range(classes)), tuple(examples), (), ())


def same(index: Ints) -> set[tuple[int, int]]:
    """The pairs that are in one group."""
    return {(i, j) for i, j in combinations(range(len(index)), 2) if index[i] == index[j]}


def at(columns: Sequence[Floats]) -> Callable[[int, Ints], Floats]:
    return lambda k, rows: columns[k][rows]


# --- what needs no looking

stated = st.lists(st.tuples(*(st.sampled_from(["", "a", "b", "c", "d"]) for _ in range(3))), max_size=12)


@given(stated)
def test_known_groups_are_the_closure_of_what_images_share(rows: list[tuple[str, str, str]]) -> None:
    examples = [
        Example(str(i), 0, "train", digest or f"own {i}", group, scene=scene)
        for i, (digest, group, scene) in enumerate(rows)
    ]
    n = len(rows)
    linked = np.eye(n, dtype=bool)
    for i, j in combinations(range(n), 2):
        linked[i, j] = linked[j, i] = any(a == b != "" for a, b in zip(rows[i], rows[j], strict=True))
    for _ in range(n):  # to the closure, by brute force
        linked = linked | (linked.astype(int) @ linked.astype(int) > 0)
    index = groups.known(examples)
    assert same(index) == {(i, j) for i, j in combinations(range(n), 2) if linked[i, j]}
    assert sorted(set(index.tolist())) == list(range(len(set(index.tolist()))))


def test_names_are_ordered_as_people_count() -> None:
    names = ["img_10.jpg", "IMG_9.jpg", "img_2.jpg", "img_.jpg", "img_²3.jpg"]
    assert sorted(names, key=groups.natural)[:3] == ["img_2.jpg", "IMG_9.jpg", "img_10.jpg"]


# --- what looks the same


@given(st.integers(2, 15), st.integers(0, 2**32 - 1))
def test_candidates_are_all_pairs_of_close_hashes(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**62, n, dtype=np.uint64)
    hashes[1] = hashes[0] ^ np.uint64(2 ** rng.integers(1, 3 * groups.HASH_BITS // 2) - 1)
    expected = {
        (i, j) for i, j in combinations(range(n), 2) if int(hashes[i] ^ hashes[j]).bit_count() <= groups.HASH_BITS
    }
    assert {(int(i), int(j)) for i, j in groups._candidates(hashes)} == expected


@given(st.integers(0, 70), st.integers(0, 2**32 - 1), st.sampled_from([1, 90, 2**20]))
def test_of_many_close_hashes_the_nearest_are_taken_however_many_are_compared_at_once(
    n: int, seed: int, together: int
) -> None:
    """By brute force: each one's nearest, of those as near the first."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**62, 2, dtype=np.uint64)[rng.integers(0, 2, n)]
    hashes = centres ^ rng.integers(0, 2**6, n, dtype=np.uint64)
    expected = set()
    for i in range(n):
        close = [(int(hashes[i] ^ hashes[j]).bit_count(), j) for j in range(n) if j != i]
        near = sorted(c for c in close if c[0] <= groups.HASH_BITS)[: groups.MOST_CANDIDATES]
        expected |= {(min(i, j), max(i, j)) for _, j in near}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "TOGETHER", together)
        assert {(int(i), int(j)) for i, j in groups._candidates(hashes)} == expected


def test_where_all_look_alike_few_pairs_are_looked_at() -> None:
    n = 400
    pairs = groups._candidates(np.zeros(n, dtype=np.uint64))
    assert len(pairs) <= groups.MOST_CANDIDATES * n
    assert set(pairs.ravel().tolist()) == set(range(n))


def independent_features(n: int, seed: int, width: int = 24, cuts: int = 4) -> list[Floats]:
    """Views of independent images: one cut sees much of what another does."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n, width))
    return [(base + rng.normal(size=(n, width))).astype(np.float32) for _ in range(cuts)]


def test_near_duplicates_need_both_the_hash_and_the_features() -> None:
    columns = independent_features(60, 0)
    for x in columns:
        x[1] = x[0] + 0.05  # the same picture
        x[41] = x[0] + 0.02  # and in another class
        x[2] = x[3] + 0.05  # the same features
    hashes = np.random.default_rng(1).integers(0, 2**63, 60, dtype=np.uint64)
    hashes[[1, 41]] = hashes[0] ^ np.uint64(5)
    hashes[5] = hashes[4]  # the same hash
    examples = [example(i, int(i >= 40)) for i in range(60)]
    found = groups.find(examples, at(columns), 4, hashes=hashes, bursts=False)
    assert same(found.index) == {(0, 1), (0, 41), (1, 41)}
    assert [groups.KINDS[k] for k in found.kinds] == ["near-duplicate"] * 2
    without = groups.find(examples, at(columns), 4, hashes=hashes, hashed=np.arange(60) != 1, bursts=False)
    assert same(without.index) == {(0, 41)}


# --- photos of one scene


@pytest.mark.parametrize("seed", range(20))
def test_independent_images_are_not_grouped(seed: int) -> None:
    """The order of names is believed by chance once in SHUFFLES + 1 times."""
    examples = [example(i, i % 3) for i in range(120)]
    found = groups.find(examples, at(independent_features(120, seed)), 4, seed=seed)
    assert not same(found.index)
    assert found.limits == (groups.EXTREME, 0.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dimensions", [1, 2, 4])
def test_images_that_differ_in_little_are_no_scenes_because_some_are_near(dimensions: int, seed: int) -> None:
    """Features that all follow a colour: the nearest is very near, by chance."""
    rng = np.random.default_rng(seed)
    colour = rng.uniform(size=(120, dimensions))
    columns = [np.tanh(colour @ rng.normal(size=(dimensions, 24))).astype(np.float32) for _ in range(4)]
    found = groups.find([example(i, i % 3) for i in range(120)], at(columns), 4)
    assert len(same(found.index)) <= 1


def scenes(n: int, size: int, noise: float, seed: int = 0) -> tuple[list[Floats], Ints]:
    """Features of n scenes of `size` photos each, in turn; which scene each is of."""
    rng = np.random.default_rng(seed)
    scene = np.repeat(np.arange(n), size)
    columns = [x[scene] + noise * rng.normal(size=(n * size, x.shape[1])) for x in independent_features(n, seed)]
    return [x.astype(np.float32) for x in columns], scene


def truth(scene: Ints) -> set[tuple[int, int]]:
    return same(scene)


def shuffled_names(examples: Sequence[Example]) -> list[Example]:
    names = np.random.default_rng(5).permutation(len(examples))
    return [replace(e, path=f"{e.label}/{k}.jpg") for e, k in zip(examples, names, strict=True)]


def test_bursts_are_found_whatever_their_names() -> None:
    columns, scene = scenes(24, 4, 0.4)
    examples = shuffled_names([example(i, int(s % 2)) for i, s in enumerate(scene)])
    found = groups.find(examples, at(columns), 4)
    assert same(found.index) == truth(scene)
    assert {groups.KINDS[k] for k in found.kinds} == {"burst"}
    assert not same(groups.find(examples, at(columns), 4, bursts=False).index)


def faint() -> tuple[list[Floats], list[Example], Ints]:
    """Photos of one scene that are too different to be found by their looks alone."""
    columns, scene = scenes(40, 3, 1.5, seed=3)
    return columns, [example(i, int(s % 2)) for i, s in enumerate(scene)], scene


def test_names_in_order_tell_more_than_looks_alone() -> None:
    columns, examples, scene = faint()
    named = same(groups.find(examples, at(columns), 4).index)
    alone = same(groups.find(shuffled_names(examples), at(columns), 4).index)
    expected = truth(scene)
    assert len(named & expected) > 0.6 * len(expected)
    assert len(named - expected) < 0.15 * len(named)
    assert not alone


def test_capture_times_tell_what_names_do_not() -> None:
    columns, examples, scene = faint()
    where = np.random.default_rng(0).permutation(40)
    taken = [f"2026-05-{1 + where[s] // 2:02d}T1{where[s] % 2}:00:{i % 60:02d}" for i, s in enumerate(scene)]
    timed = [
        replace(e, facts=FileFacts("JPEG", "RGB", 8, 8, taken=t))
        for e, t in zip(shuffled_names(examples), taken, strict=True)
    ]
    found = same(groups.find(timed, at(columns), 4).index)
    assert len(found & truth(scene)) > 0.6 * len(truth(scene))
    broken = [replace(e, facts=replace(e.facts, taken="yesterday")) for e in timed if e.facts]
    assert groups.find(broken, at(columns), 4).limits[1] == 0.0


def test_a_chain_of_likenesses_does_not_take_the_class() -> None:
    """A film: each image is close to the next, and none to one far away."""
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.normal(size=(120, 24)), axis=0)
    columns = [(steps + 0.1 * rng.normal(size=steps.shape)).astype(np.float32) for _ in range(4)]
    examples = [example(i) for i in range(120)]
    found = groups.find(examples, at(columns), 4)
    assert len(same(found.index)) > 0
    assert np.bincount(found.index).max() <= groups.LARGEST * 120


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(36)), st.integers(0, 5))
def test_groups_do_not_depend_on_the_order_of_the_images(order: list[int], seed: int) -> None:
    columns, scene = scenes(12, 3, 0.5, seed)
    examples = [example(i, int(s % 2)) for i, s in enumerate(scene)]
    plain = same(groups.find(examples, at(columns), 4).index)
    moved = groups.find([examples[i] for i in order], at([x[order] for x in columns]), 4).index
    assert {tuple(sorted((order[i], order[j]))) for i, j in same(moved)} == plain


def test_blocks_beyond_the_room_are_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, scene = scenes(24, 4, 0.4)
    examples = [example(i, int(s % 2)) for i, s in enumerate(scene)]
    kept = groups.find(examples, at(columns), 4)
    monkeypatch.setattr(groups, "KEPT", 0)
    assert (groups.find(examples, at(columns), 4).index == kept.index).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5])
def test_hardly_any_images_are_no_trouble(n: int) -> None:
    columns = [np.ones((n, 3), np.float32), np.zeros((n, 2), np.float32)]
    found = groups.find([example(i) for i in range(n)], at(columns), 2, hashes=np.arange(n, dtype=np.uint64) << 40)
    assert len(found.index) == n


def test_facts_count_every_kind_and_name_examples() -> None:
    examples = [
        example(0),
        replace(example(1), digest=f"{0:032x}"),
        example(2, group="p"),
        example(3, group="p"),
        example(4),
    ]
    found = groups.find(examples, at(independent_features(5, 0)), 4, bursts=False)
    facts = groups.facts(examples, found)
    assert (facts.images, facts.groups, facts.together, facts.sizes) == (5, 3, 4, (2, 2))
    assert [(c.kind, c.links, c.images) for c in facts.counts] == [("copy", 1, 2), ("given", 1, 2)]
    assert facts.counts[1].examples == (("0/img_2.jpg", "0/img_3.jpg"),)


# --- on one side


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_a_given_group_is_on_one_side_of_the_lock_and_of_every_fold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    many = dataset([example(i, i % 2, group=f"g{rng.integers(700)}") for i in range(data.LOCK_FROM)])
    locked, word = data.lock(many, seed % 1000)
    assert word == "held-out part"
    index = groups.known(locked.examples)
    sides = {(int(g), e.part) for g, e in zip(index, locked.examples, strict=True)}
    assert len(sides) == index.max() + 1
    share = sum(e.part == "test" for e in locked.examples) / data.LOCK_FROM
    assert abs(share - data.LOCK_SHARE) < 0.05
    assert data.lock(many, seed % 1000)[0] == locked
    rows = [e for e in locked.examples if e.part == "train"]
    index = groups.known(rows)
    fold = head.folds(np.array([e.label for e in rows]), index, 0)
    assert len({*zip(index.tolist(), fold.tolist(), strict=True)}) == len(np.unique(index))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_what_is_found_later_is_brought_to_one_side(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts: list[Part] = ["test" if t else "train" for t in rng.random(300) < 0.2]
    given_ = dataset(
        [replace(example(i, i // 150, scene=f"s{i // 150}{rng.integers(30)}"), part=p) for i, p in enumerate(parts)]
    )
    chosen_by = {e.digest for e in given_.examples[::7] if e.part == "train"}
    moved, count = data.one_side(given_, chosen_by, 0)
    index = groups.known(moved.examples)
    assert len({(int(g), e.part) for g, e in zip(index, moved.examples, strict=True)}) == index.max() + 1
    assert not [e for e in moved.examples if e.digest in chosen_by and e.part == "test"]
    assert count == sum(a.part != b.part for a, b in zip(given_.examples, moved.examples, strict=True))
    for label in (0, 1):
        before, after = (sum(e.part == "test" and e.label == label for e in d.examples) for d in (given_, moved))
        assert after <= before + 15  # half a group
    alone = replace(given_, examples=tuple(replace(e, scene="") for e in given_.examples))
    assert data.one_side(alone, set(), 0) == (alone, 0)


def test_training_images_like_locked_ones_are_left_out_unless_a_class_would_be_empty() -> None:
    def of(i: int, label: int, part: Part, scene: str = "") -> Example:
        return replace(example(i, label, scene=scene), part=part)

    given_ = dataset(
        [of(0, 0, "train", "s"), of(1, 0, "train"), of(2, 0, "train"), of(3, 0, "test", "s"),
         of(4, 1, "train", "t"), of(5, 1, "train"), of(6, 1, "test", "t")]
    )  # fmt: skip
    faults, warnings, across = data.like_locked(given_, "test folder")
    assert across == 0
    assert [(f.path, f.kind) for f in faults] == [("0/img_0.jpg", "nearly the same in test")]
    assert "img_3" in faults[0].detail
    assert len(warnings) == 1
    assert "'c1'" in warnings[0]
    assert data.like_locked(given_, "val folder")[0][0].kind == "nearly the same in val"


def test_photos_of_one_scene_on_both_sides_of_the_users_split_stay_and_are_told() -> None:
    """Eight images of two classes; the first pair is one picture, the second pair one scene."""
    parts: list[Part] = ["train", "test", "train", "test", "train", "train", "train", "train"]
    scenes = ["a", "a", "b", "b", "", "", "", ""]
    rows = [replace(example(i, i % 2, scene=scenes[i]), part=parts[i]) for i in range(8)]
    kinds = np.array([groups.KINDS.index("near-duplicate"), groups.KINDS.index("burst")])
    found = groups.Found(groups.known(rows), np.array([[0, 1], [2, 3]]), kinds, np.array([[0, 1]]), (0.5, 0.0))
    faults, warnings, across = data.like_locked(dataset(rows), "test folder", groups.alike(found))
    assert [f.path for f in faults] == [rows[0].path]
    assert across == 1
    assert len(warnings) == 1
    assert rows[2].path in warnings[0]
    assert rows[3].path in warnings[0]
    assert "your test part" in warnings[0]


def test_images_of_one_group_are_no_independent_witnesses() -> None:
    rows = [example(i, group=f"g{i // 4}") for i in range(20)]
    assert data.independent(rows) == pytest.approx(5)


# --- written down


def test_a_split_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = dataset(
        [replace(example(i, i % 2, group=f"g{i // 4}"), part="test" if i < 4 else "train") for i in range(12)]
    )
    splits.write(tmp_path / splits.NAME, written, "held-out part")
    fresh = dataset([replace(e, part="train", group="") for e in (*written.examples, example(99))])
    back, locked = splits.applied(fresh, tmp_path)
    assert locked == "held-out part"
    assert [e.part for e in back.examples] == [e.part for e in written.examples] + ["train"]
    assert same(groups.known(back.examples)) == same(groups.known(written.examples))
    assert "1 images are new" in back.warnings[0]
    renamed = dataset([replace(e, path=f"else/{i}") for i, e in enumerate(fresh.examples)])
    assert [e.part for e in splits.applied(renamed, tmp_path / splits.NAME)[0].examples] == [
        e.part for e in back.examples
    ]


def test_a_split_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    some = dataset([example(i, i % 2) for i in range(4)])
    with pytest.raises(DataError, match="no split there"):
        splits.applied(some, tmp_path)
    (tmp_path / splits.NAME).write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as a split"):
        splits.applied(some, tmp_path)
    splits.write(tmp_path / splits.NAME, dataset([example(i + 50, i % 2) for i in range(4)]), "test folder")
    with pytest.raises(DataError, match="names none of the 4 images"):
        splits.applied(dataset([replace(e, path=f"x{e.path}") for e in some.examples]), tmp_path)
    splits.write(tmp_path / "train.parquet", some, "test folder")
    with pytest.raises(DataError, match="none of the images that it locks"):
        splits.applied(some, tmp_path / "train.parquet")


# --- from pictures to the result


def scene_picture(rng: np.random.Generator) -> Image.Image:
    """A large picture of coloured clouds: no two are alike, and none tells its class."""
    coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((150, 150), Image.Resampling.BICUBIC)


def write_bursts(
    folder: Path, *, per_class: int, shots: int = 4, seed: int = 0, shift: int = 7, turn: float = 3
) -> Path:
    """Photos of scenes, by a hand that moves by up to `shift` px either way and turns by so many degrees."""
    rng = np.random.default_rng(seed)
    for name in ("left", "right"):
        (folder / name).mkdir(parents=True)
        for s in range(per_class):
            picture = scene_picture(rng)
            for k in range(shots):
                x, y = rng.integers(25 - shift, 25 + shift, 2)
                shot = picture.crop((x, y, x + 100, y + 100)).rotate(rng.uniform(-turn, turn))
                shot = ImageEnhance.Brightness(shot).enhance(rng.uniform(0.9, 1.1))
                shot.save(folder / name / f"IMG_{s * shots + k:04d}_of{s}.jpg", quality=90)
    return folder


@pytest.fixture(scope="module")
def burst_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[runs.Run, Path, Path]:
    home = tmp_path_factory.mktemp("bursts")
    folder = write_bursts(home / "photos", per_class=14)
    run = workflow.fit(folder, size=SIZE_PX, strategy="head", out=home / "run", cache=home / "cache")
    return run, folder, home


def grouped(run: runs.Run) -> Grouped:
    assert run.record.groups is not None
    return run.record.groups


def test_photos_of_one_scene_feign_what_is_not_there(burst_run: tuple[runs.Run, Path, Path]) -> None:
    """No picture tells its class: leave-one-out says that it does, and is found out."""
    run, _, _ = burst_run
    g = grouped(run)
    assert g.together > 0.9 * g.images
    assert max(g.sizes) <= 8
    assert g.accuracy_mixed is not None
    assert g.accuracy_apart is not None
    assert g.inflation_low is not None
    assert g.accuracy_mixed > 0.8
    assert g.accuracy_apart < 0.75
    assert g.inflation_low > 0
    assert run.metrics.accuracy.value < 0.75
    assert inflated(g) in run.plan.reasons
    assert "the second is what to expect" in inflated(g)
    assert run.metrics.accuracy.high - run.metrics.accuracy.low > 0.25  # 28 scenes, not 112 photos


def test_the_split_is_written_down_and_taken_again(burst_run: tuple[runs.Run, Path, Path], log: Log) -> None:
    run, folder, home = burst_run
    rows = parquet.read_table(run.path / splits.NAME).to_pylist()
    assert len(rows) == 112
    scene = {f"{r['label']}{r['path'].split('_of')[1]}" for r in rows}
    assert len(scene) == 28
    again = workflow.fit(
        folder, size=SIZE_PX, strategy="head", out=home / "again", cache=home / "cache", split_of=run.path,
        bursts=False, watch=log,
    )  # fmt: skip
    assert parquet.read_table(again.path / splits.NAME).to_pylist() == rows
    assert grouped(again).limit == 0.0
    assert again.record.options.split_of == str(run.path)


def test_a_repeated_fit_groups_nothing_anew(
    burst_run: tuple[runs.Run, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder, home = burst_run

    def never(*_: object, **__: object) -> None:
        raise AssertionError("was found before")

    monkeypatch.setattr(groups, "find", never)
    again = survey.measure(folder, size=SIZE_PX, cache=home / "cache")
    assert again.parted(again.plan()) == grouped(run)


def test_without_bursts_they_are_not_looked_for(burst_run: tuple[runs.Run, Path, Path]) -> None:
    run, folder, home = burst_run
    seen = survey.measure(folder, size=SIZE_PX, cache=home / "cache", bursts=False)
    assert seen.grouped is not None
    assert seen.grouped.together < grouped(run).together
    assert "burst" not in {c.kind for c in seen.grouped.counts}


def test_a_scene_is_on_one_side_of_what_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "LOCK_FROM", 60)
    folder = write_bursts(tmp_path / "photos", per_class=12)
    run = workflow.fit(folder, size=SIZE_PX, strategy="head", out=tmp_path / "run", cache=tmp_path / "cache")
    rows = parquet.read_table(run.path / splits.NAME).to_pylist()
    assert run.record.data.locked == "held-out part"
    assert grouped(run).moved > 0
    assert len({(r["group"], r["part"]) for r in rows}) == len({r["group"] for r in rows})
    assert 8 <= sum(r["part"] == "test" for r in rows) <= 30
    again = workflow.fit(folder, size=SIZE_PX, strategy="head", out=tmp_path / "again", cache=tmp_path / "cache")
    assert parquet.read_table(again.path / splits.NAME).to_pylist() == rows
    taken = workflow.fit(
        folder,
        size=SIZE_PX,
        strategy="head",
        out=tmp_path / "taken",
        cache=tmp_path / "cache",
        split_of=run.path,
        seed=5,
    )
    assert [r["part"] for r in parquet.read_table(taken.path / splits.NAME).to_pylist()] == [r["part"] for r in rows]


def test_a_picture_saved_again_does_not_leak_into_the_users_test_folder(tmp_path: Path, photos: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        for part, n in (("train", 12), ("test", 3)):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(n):
                scene_picture(rng).save(tmp_path / "data" / part / name / f"{i}.png")
    buffer = BytesIO()
    with Image.open(tmp_path / "data/test/left/0.png") as image:
        image.resize((140, 140)).save(buffer, "JPEG", quality=60)
    (tmp_path / "data/train/left/leak.jpg").write_bytes(buffer.getvalue())
    seen = survey.measure(tmp_path / "data", size=SIZE_PX, cache=tmp_path / "cache")
    kinds = {f.path: f.kind for f in seen.measured[0].dataset.faults}
    assert kinds == {"train/left/leak.jpg": "nearly the same in test"}
    assert "train/left/leak.jpg" not in {e.path for e in seen.measured[0].dataset.examples}
    assert len(seen.measured[0].features.at(0)) == 30
    assert seen.grouped is not None
    assert seen.grouped.left_out == 1


@pytest.fixture(scope="module")
def split_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[runs.Run, Path, Path, str]:
    """A user's own split that cuts through scenes, and a test photo saved again for training; what was printed."""
    home = tmp_path_factory.mktemp("split")
    folder = write_bursts(home / "all", per_class=12, shift=16, turn=8)
    for name in ("left", "right"):
        for part in ("train", "test"):
            (home / "photos" / part / name).mkdir(parents=True)
        for path in sorted((folder / name).iterdir()):
            scene = int(path.stem.split("_of")[1])
            shot = int(path.stem.split("_")[1]) % 4
            part = "test" if scene >= 10 or (scene < 3 and shot == 3) else "train"
            path.rename(home / "photos" / part / name / path.name)
    again = BytesIO()
    with Image.open(next((home / "photos/test/left").glob("*_of11.jpg"))) as image:
        image.resize((94, 94), Image.Resampling.LANCZOS).save(again, "JPEG", quality=60)
    (home / "photos/train/left/saved_again.jpg").write_bytes(again.getvalue())
    paper = Console(record=True, width=200, file=StringIO())
    run = workflow.fit(
        home / "photos", size=SIZE_PX, strategy="head", out=home / "run", cache=home / "cache",
        watch=terminal.TerminalWatch(paper),
    )  # fmt: skip
    return run, home / "photos", home / "cache", " ".join(paper.export_text().split())


def test_scenes_across_the_users_own_split_stay_and_are_told_and_near_duplicates_are_left_out(
    split_run: tuple[runs.Run, Path, Path, str],
) -> None:
    """From folders to record, terminal and page."""
    run, _, _, printed = split_run
    left_out = {f.path: f.kind for f in run.record.data.faults}
    assert set(left_out.values()) == {"nearly the same in test"}
    assert "train/left/saved_again.jpg" in left_out
    g = grouped(run)
    assert g.left_out == len(left_out) <= 9  # of scenes on both sides, those that hardly moved
    assert 5 <= g.across <= 18  # the three other photos of six scenes
    assert sum(c.train for c in run.record.data.classes) + len(left_out) == 75
    told = f"{g.across} training images seem to show a scene that your test part shows"
    assert told in printed
    assert any(told in w for w in run.record.warnings)
    assert "saved_again.jpg" in printed
    page = " ".join((run.path / "report.html").read_text("utf-8").split())
    assert f"{g.across} training images seem to show a scene that your own test part shows" in page
    assert f"{len(left_out)} were left out of training" in page


def test_findings_about_near_duplicates_are_those_that_the_features_confirm(
    split_run: tuple[runs.Run, Path, Path, str],
) -> None:
    run, photos, cache, _ = split_run
    found = {f.kind: f for f in run.record.data.findings}
    across = found["near-duplicates across parts"]
    assert "train/left/saved_again.jpg" in across.paths
    assert faults.UNCONFIRMED not in across.detail
    dataset, _ = workflow.check(photos, cache=cache)
    unconfirmed = [f for f in dataset.findings if f.kind.startswith("near-duplicates")]
    assert unconfirmed
    assert all(f.detail.endswith(faults.UNCONFIRMED) for f in unconfirmed)


def test_sketches_that_are_gone_are_made_again(
    split_run: tuple[runs.Run, Path, Path, str], log: Log, tmp_path: Path
) -> None:
    """Features alone are left: the same groups and findings, from another process's cache."""
    run, photos, cache, _ = split_run
    copy = tmp_path / "cache"
    shutil.copytree(cache / "features", copy / "features")
    seen = survey.measure(photos, size=SIZE_PX, cache=copy, watch=log)
    assert seen.passed == 0
    assert ("sketch", 97) in log.stages
    m = seen.measured[0].dataset
    assert m.faults == run.record.data.faults
    assert {f.kind for f in m.findings} == {f.kind for f in run.record.data.findings}


def test_what_is_grouped_is_part_of_what_is_remembered() -> None:
    """Other groups are other inputs."""
    one, other = np.array([0, 0, 1]), np.array([0, 1, 1])
    assert memo.name(["probe", one]) != memo.name(["probe", other])
