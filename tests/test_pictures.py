"""The picture of the depth curves shows every record as it is, in text that can be read, and overwrites nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from topwork import pictures, plan
from topwork.errors import UsageError
from topwork.plan import Evidence
from topwork.records import CutScore, Plan, Standing

NAMES = ("small", "large", "huge")


def measured(names: tuple[str, ...] = NAMES, cuts: tuple[str, ...] = ("layer1", "layer2")) -> list[Evidence]:
    rng = np.random.default_rng(0)
    return [
        Evidence(name, 224, cuts, (0.4, 1.0), (0.4, 1.0), 5.0 * (i + 1), rng.random((60, 2)) < (0.6, 0.8))
        for i, name in enumerate(names)
    ]


def standings(evidences: list[Evidence]) -> tuple[tuple[Standing, ...], Plan]:
    """As a survey gives them: the chosen one first; one that was left out at the end."""
    decided = plan.decide(*evidences)
    tables = plan.scores(evidences, [(8, 16)] * len(evidences), [(0.1, 0.1)] * len(evidences))
    rows = [
        Standing(e.backbone, e.size_px, "chosen" if e.backbone == decided.backbone else "measured", "", None, 60,
                 e.forward_ms, None, table)
        for e, table in zip(evidences, tables, strict=True)
    ]  # fmt: skip
    rows.sort(key=lambda s: s.fate)
    left_out = Standing("forgotten", 96, "left out", "no weights", None, 0, None, None, ())
    return (*rows, left_out), decided


def texts(picture: bytes) -> list[str]:
    """All text in an SVG, element by element."""
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(e.itertext()).strip() for e in root.iter("{http://www.w3.org/2000/svg}text")]


def test_every_measured_backbone_and_the_chosen_cut_are_named_in_text() -> None:
    rows, decided = standings(measured())
    said = texts(pictures.depth(rows, decided))
    for name in NAMES:
        assert f"{name}, 224 px" in said
    assert f"chosen: {decided.cut}" in said
    assert not any("forgotten" in text for text in said)


def test_a_stopped_one_is_drawn_and_said_to_be_one() -> None:
    rows, decided = standings(measured())
    stopped = Standing("weak", 96, "stopped", "it was", 0.5, 200, 3.0, None, rows[1].scores)
    said = texts(pictures.depth((*rows[:2], stopped), decided))
    assert "weak, 96 px (stopped at 200 images)" in said


def test_cuts_that_were_measured_on_a_sample_are_a_curve_of_their_own() -> None:
    rows, decided = standings(measured())
    table = rows[1].scores
    short = replace(rows[1], scores=(*table[:-1], replace(table[-1], images=20)))
    said = texts(pictures.depth((rows[0], short), decided))
    assert f"{short.backbone}, 224 px" in said
    assert f"{short.backbone}, 224 px, measured on 20 images" in said


@pytest.mark.parametrize(
    "name", ["<&>", 'a"b', "a'b", "x < y & z", "timm:conv_next.fb_in1k", "$x^2$", "_hidden", "Bär"]
)
def test_names_are_written_letter_by_letter(name: str) -> None:
    rows, decided = standings(measured((name, "other"), ("stage.0", "$a$ <b>")))
    said = texts(pictures.depth(rows, decided))
    assert f"{name}, 224 px" in said
    assert f"chosen: {decided.cut}" in said


def test_a_cut_with_signs_of_mathematics_is_written_letter_by_letter() -> None:
    rows, decided = standings(measured(("one", "two"), ("$a$ <b>", "$c_1$ & d")))
    assert decided.cut.startswith("$")
    assert f"chosen: {decided.cut}" in texts(pictures.depth(rows, decided))


def test_the_same_records_give_the_same_bytes() -> None:
    rows, decided = standings(measured())
    assert pictures.depth(rows, decided) == pictures.depth(rows, decided)


def test_other_numbers_give_another_picture() -> None:
    rows, decided = standings(measured())
    moved = [CutScore(*(0.5 if f == "accuracy" else getattr(s, f) for f in s.__slots__)) for s in rows[0].scores]
    changed = (
        Standing(*(tuple(moved) if f == "scores" else getattr(rows[0], f) for f in rows[0].__slots__)),
        *rows[1:],
    )
    assert pictures.depth(changed, decided) != pictures.depth(rows, decided)


def test_more_curves_than_colours_look_different_still() -> None:
    """Sixteen backbones: no two of the same colour and marker."""
    names = tuple(f"net{i}" for i in range(2 * len(pictures.COLOURS)))
    rows, decided = standings(measured(names))
    said = texts(pictures.depth(rows, decided))
    assert {f"{name}, 224 px" for name in names} <= set(said)
    n, m = len(pictures.COLOURS), len(pictures.MARKERS)
    looks = {pictures.look(i) for i in range(n * m)}
    assert len(looks) == n * m


def test_costs_far_apart_are_drawn_on_an_uneven_scale() -> None:
    near, far = measured(("a", "b")), measured(("a", "b"))
    far[1] = Evidence("b", 224, far[1].cuts, (0.4, 1.0), (0.4, 1.0), 500.0, far[1].correct)
    assert "100" not in texts(pictures.depth(*standings(near)))
    assert "100" in texts(pictures.depth(*standings(far)))  # a power of ten is marked


def test_a_file_is_written_whole_and_never_over_another(tmp_path: Path) -> None:
    rows, decided = standings(measured())
    path = tmp_path / "new" / "depth.svg"
    pictures.write(path, rows, decided)
    assert path.read_bytes() == pictures.depth(rows, decided)
    assert [p.name for p in path.parent.iterdir()] == ["depth.svg"]
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already and is not overwritten"):
        pictures.write(path, rows, decided)
    assert path.read_bytes() == b"mine"


def test_a_place_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    rows, decided = standings(measured())
    with pytest.raises(UsageError, match=r"--picture .* cannot be written there"):
        pictures.write(tmp_path / "file" / "depth.svg", rows, decided)
