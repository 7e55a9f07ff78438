"""What is wrong with usable images is found, said with its paths, and ends nothing; the cleaned list is without it."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from test_sketches import changed, scene
from topwork import cleaned, faults
from topwork.errors import UsageError
from topwork.records import Dataset, Example, Fault, FileFacts, Finding
from topwork.sketches import sketch

Pixels = NDArray[np.uint8]
PLAIN = FileFacts("JPEG", "RGB", 640, 480, 50_000)


def example(path: str, label: int, digest: str = "", **other: Any) -> Example:
    return Example(path, label, other.pop("part", "train"), digest or path, **{"facts": PLAIN} | other)


def dataset(*examples: Example, classes: tuple[str, ...] = ("ant", "bee"), **other: Any) -> Dataset:
    return Dataset("root", "a folder per class", classes, examples, (), (), **other)


def ordinary(n: int = 12) -> list[Example]:
    """So many of each class, nothing wrong with them."""
    return [example(f"{name}/{i}.jpg", label) for label, name in enumerate(("ant", "bee")) for i in range(n)]


def by_kind(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    found = {f.kind: f for f in findings}
    assert len(found) == len(findings)
    assert all(f.detail and "{" not in f.detail for f in findings)
    return found


def with_facts(path: str, **facts: Any) -> Example:
    return example(path, 0, facts=replace(PLAIN, **facts))


def test_ordinary_images_have_nothing_wrong() -> None:
    assert faults.before(dataset(*ordinary())) == ()


CASES: dict[str, tuple[list[Example], list[str]]] = {
    "contradicting labels": (
        [example("ant/x.jpg", 0, "d"), example("bee/x.jpg", 1, "d"), example("bee/y.jpg", 1, "e")],
        ["ant/x.jpg", "bee/x.jpg"],
    ),
    "copies": ([example("ant/x.jpg", 0, "d"), example("ant/y.jpg", 0, "d")], ["ant/x.jpg", "ant/y.jpg"]),
    "tiny": (
        [with_facts("ant/x.jpg", width_px=15, height_px=20), with_facts("ant/y.jpg", width_px=16, height_px=16)],
        ["ant/x.jpg"],
    ),
    "odd proportions": (
        [with_facts("ant/x.jpg", width_px=1440), with_facts("ant/y.jpg", width_px=1439)],
        ["ant/x.jpg"],
    ),
    "wrong suffix": (
        [
            with_facts("ant/x.jpg", format="PNG"),
            with_facts("ant/y.JPEG", format="MPO"),
            with_facts("ant/no suffix", format="PNG"),
            with_facts("ant/z.heic", format="AVIF"),
            with_facts("ant/.hidden.png", format="GIF"),
        ],
        ["ant/x.jpg", "ant/.hidden.png"],
    ),
    "several pictures": (
        [with_facts("ant/x.gif", format="GIF", frames=3), with_facts("ant/y.jpg", format="MPO", frames=2)],
        ["ant/x.gif"],
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_what_needs_no_decoding_is_found(kind: str) -> None:
    more, paths = CASES[kind]
    found = by_kind(faults.before(dataset(*ordinary(), *more)))
    assert found.keys() == {kind}
    assert found[kind].paths == tuple(paths)


def test_images_without_facts_are_taken_as_they_are() -> None:
    assert faults.before(dataset(*(replace(e, facts=None) for e in ordinary()))) == ()


def test_classes_of_few_images_are_named() -> None:
    """Copies count once, and what is judged on does not count at all."""
    copies = [example(f"bee/{i}.jpg", 1, "same") for i in range(20)]
    judged = [example(f"test/{i}.jpg", 1, part="test") for i in range(20)]
    found = by_kind(faults.before(dataset(*ordinary()[:12], *copies, *judged)))
    assert "bee 1" in found["few images"].detail
    assert "ant" not in found["few images"].detail
    assert "--balance" in found["imbalance"].detail


@pytest.mark.parametrize(
    "names",
    [("Ant", "ant"), ("red ant", "red_ant"), ("red ant", "redant "), ("caf\u00e9", "cafe\u0301"), ("ﬁsh", "fish")],
)
def test_names_that_differ_only_to_a_machine_are_found(names: tuple[str, str]) -> None:
    found = by_kind(faults.before(dataset(*ordinary(), classes=names)))
    assert found.keys() == {"names alike"}


@pytest.mark.parametrize("names", [("ant", "ants"), ("1", "11"), ("_", "-"), ("猫", "犬")])
def test_other_names_are_other_classes(names: tuple[str, str]) -> None:
    assert faults.before(dataset(*ordinary(), classes=names)) == ()


SCENES = np.stack([sketch(scene(seed)) for seed in range(24)])


def alike(of: int, how: str = "saved again") -> Pixels:
    return sketch(changed(scene(of))[how])


def none_missing(n: int) -> NDArray[np.bool_]:
    return np.zeros(n, dtype=bool)


@pytest.mark.parametrize("how", ["saved again", "half the size", "brighter"])
@pytest.mark.parametrize(
    ("other", "kind"),
    [
        (example("ant/again.jpg", 0), "near-duplicates"),
        (example("bee/again.jpg", 1), "near-duplicates of different classes"),
        (example("test/again.jpg", 0, part="test"), "near-duplicates across parts"),
    ],
)
def test_near_duplicates_are_found_by_what_they_do(other: Example, kind: str, how: str) -> None:
    given = dataset(*ordinary(), other)
    pixels = np.concatenate([SCENES, alike(3, how)[None]])
    found = by_kind(faults.after(given, pixels, none_missing(25)))
    assert found.keys() == {kind}
    assert set(found[kind].paths) == {"ant/3.jpg", other.path}


def test_an_image_of_one_colour_is_found_and_like_no_other() -> None:
    pixels = SCENES.copy()
    pixels[2], pixels[5], pixels[7] = 90, 91, np.random.default_rng(0).integers(90, 93, (16, 16, 3))
    found = by_kind(faults.after(dataset(*ordinary()), pixels, none_missing(24)))
    assert found.keys() == {"one colour"}
    assert found["one colour"].paths == ("ant/2.jpg", "ant/5.jpg", "ant/7.jpg")


def test_what_was_not_sketched_is_not_judged() -> None:
    pixels, missing = SCENES.copy(), none_missing(24)
    pixels[[2, 5]], missing[[2, 5]] = 0, True
    assert faults.after(dataset(*ordinary()), pixels, missing) == ()
    assert faults.after(dataset(*ordinary()), np.zeros_like(SCENES), ~none_missing(24)) == ()


def textbook(pixels: Pixels) -> set[frozenset[int]]:
    """Groups by comparing every pair in plain words."""
    from topwork.sketches import hashed

    hashes = [int(h) for h in hashed(pixels)]
    flat = pixels.reshape(len(pixels), -1).astype(float)
    pairs = [
        (i, j)
        for i in range(len(pixels))
        for j in range(i + 1, len(pixels))
        if bin(hashes[i] ^ hashes[j]).count("1") <= faults.NEAR_BITS
        and np.corrcoef(flat[i], flat[j])[0, 1] >= faults.NEAR_LIKENESS
    ]
    groups = {i: frozenset([i]) for i in range(len(pixels))}
    for i, j in pairs:
        both = groups[i] | groups[j]
        groups.update(dict.fromkeys(both, both))
    return set(groups.values())


@pytest.mark.parametrize("block", [5, 2**20])
@pytest.mark.parametrize("candidates", [7, 50_000])
def test_near_duplicates_are_those_of_the_textbook(
    block: int, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_TOGETHER", block)
    monkeypatch.setattr(faults, "_SKETCHES", 11)
    monkeypatch.setattr(faults, "_CANDIDATES", candidates)
    rng = np.random.default_rng(0)
    copies = SCENES[rng.integers(0, 24, 60)].astype(int) + rng.normal(
        0, rng.uniform(0, 25, (60, 1, 1, 1)), (60, 16, 16, 3)
    )
    pixels = np.concatenate([SCENES, np.clip(copies, 0, 255).astype(np.uint8)])
    groups = faults.joined(faults.near(pixels), len(pixels))
    found = {frozenset(np.flatnonzero(groups == g).tolist()) for g in np.unique(groups)}
    assert found == textbook(pixels)
    assert 24 < len(found) < 84


def test_thousands_of_the_same_are_joined_by_few_links() -> None:
    pixels = np.clip(SCENES[:1] + np.random.default_rng(0).integers(-2, 3, (3000, 16, 16, 3)), 0, 255).astype(np.uint8)
    links = faults.near(pixels)
    assert len(links) < 4 * 3000
    assert len(np.unique(faults.joined(links, 3000))) == 1


def test_no_images_have_no_duplicates() -> None:
    assert faults.near(SCENES[:0]).shape == faults.near(SCENES[:1]).shape == (0, 2)


def test_what_is_left_out_is_said_by_kind_the_most_severe_first() -> None:
    given = [
        Fault("a", "hidden", "h"),
        Fault("b", "truncated", "x"),
        Fault("c", "empty folder", "e"),
        Fault("d", "truncated", "y"),
    ]
    found = faults.left_out(given)
    assert [(f.kind, f.severity) for f in found] == [
        ("truncated", "fault"), ("empty folder", "warning"), ("hidden", "note"),
    ]  # fmt: skip
    assert found[0].paths == ("b (x)", "d (y)")
    assert found[1].detail == "1 left out: e"


# ----------------------------------------------------------------------------------------------------- a cleaned list


def test_the_cleaned_list_is_without_contradictions_and_leaks() -> None:
    given = dataset(
        *ordinary(),
        example("ant/again.jpg", 0),  # looks like ant/3
        example("test/again.jpg", 0, part="test"),  # looks like ant/5
        example("ant/torn.jpg", 0, "torn"),
        example("bee/torn.jpg", 1, "torn"),
        example("bee/copy.jpg", 1, "bee/4.jpg"),
    )
    extra = np.stack([alike(3), alike(5), *[sketch(scene(99))] * 2, SCENES[16]])
    kept, gone = faults.clean(given, np.concatenate([SCENES, extra]), none_missing(29))
    assert set(gone) == {"ant/5.jpg", "ant/torn.jpg", "bee/torn.jpg"}
    assert {e.path for e in kept} == {e.path for e in given.examples} - set(gone)
    groups = {e.path: e.group for e in kept if e.group}
    assert groups["ant/3.jpg"] == groups["ant/again.jpg"] != groups["bee/4.jpg"] == groups["bee/copy.jpg"]
    assert groups.keys() == {"ant/3.jpg", "ant/again.jpg", "bee/4.jpg", "bee/copy.jpg"}


def test_given_groups_stay_and_are_joined_by_what_looks_the_same() -> None:
    given = ordinary()
    for i, group in ((0, "p1"), (1, "p1"), (2, "p2"), (6, "p3")):
        given[i] = replace(given[i], group=group)
    pixels = SCENES.copy()
    pixels[2], pixels[7] = alike(1), alike(6)
    kept, gone = faults.clean(dataset(*given), pixels, none_missing(24))
    groups = [e.group for e in kept]
    assert not gone
    assert groups[0] == groups[1] == groups[2] == "p1+p2"
    assert groups[6] == groups[7] == "p3"
    assert not any(groups[i] for i in range(24) if i not in {0, 1, 2, 6, 7})


def test_a_list_is_read_from_where_it_lies(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "ant, red").mkdir(parents=True)
    (root / "ant, red" / 'ä "1".jpg').touch()
    (tmp_path / "lists").mkdir()
    first = example('ant, red/ä "1".jpg', 0, part="test", group="g")
    given = replace(dataset(first, example("bee/2.jpg", 1), classes=("ant, red", "bee")), root=str(root))
    cleaned.write(tmp_path / "lists" / "a.csv", given, given.examples)
    cleaned.write(tmp_path / "lists" / "a.parquet", given, given.examples)
    with (tmp_path / "lists" / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == pq.read_table(tmp_path / "lists" / "a.parquet").to_pylist()
    assert rows[0] == {"path": '../photos/ant, red/ä "1".jpg', "label": "ant, red", "split": "test", "group": "g"}
    assert (tmp_path / "lists" / rows[0]["path"]).is_file()


def test_only_the_columns_that_say_something_are_written(tmp_path: Path) -> None:
    given = replace(dataset(*ordinary()), root=str(tmp_path))
    cleaned.write(tmp_path / "a.csv", given, given.examples)
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "path,label"


def test_several_labels_are_a_list_or_separated(tmp_path: Path) -> None:
    several = dataset(example("1.jpg", 0, labels=(0, 1)), example("2.jpg", 1, labels=()), multi_label=True)
    given = replace(several, root=str(tmp_path))
    cleaned.write(tmp_path / "a.csv", given, given.examples)
    cleaned.write(tmp_path / "a.parquet", given, given.examples)
    assert (tmp_path / "a.csv").read_text().splitlines()[1:] == ["1.jpg,ant|bee", "2.jpg,"]
    assert pq.read_table(tmp_path / "a.parquet")["label"].to_pylist() == [["ant", "bee"], []]


def test_addresses_stay_addresses(tmp_path: Path) -> None:
    given = replace(dataset(*ordinary(1)), root="s3://bucket/photos")
    cleaned.write(tmp_path / "a.csv", given, given.examples)
    assert "s3://bucket/photos/ant/0.jpg,ant" in (tmp_path / "a.csv").read_text()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("mine")
    (tmp_path / "b.csv").symlink_to(tmp_path / "nothing")
    given = replace(dataset(*ordinary()), root=str(tmp_path))
    for name in ("a.csv", "b.csv", "c.txt", "no/c.csv"):
        with pytest.raises(UsageError):
            cleaned.write(tmp_path / name, given, given.examples)
    with pytest.raises(UsageError, match="are none"):
        cleaned.write(tmp_path / "c.csv", replace(given, root=str(tmp_path / "x.parquet#image")), given.examples)
    assert (tmp_path / "a.csv").read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", "b.csv"}
