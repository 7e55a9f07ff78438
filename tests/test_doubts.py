"""What a survey has measured is asked in the right way: which images, which voters, found again, left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import SIZE_PX, Finished, write_photos
from topwork import doubts, growth, plan, survey, suspects
from topwork.measurement import Frozen, Measured, frozen_head
from topwork.records import Plan, RunRecord, decode, encode
from topwork.sketches import Sketches

MOVED = {"sand/moved.png", "bark/moved.png"}


@dataclass(frozen=True)
class Seen:
    survey: survey.Survey
    m: Measured
    plan: Plan
    frozen: Frozen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Three classes of 20 pictures, each of another size, and a test folder; two pictures lie in the wrong class."""
    home = tmp_path_factory.mktemp("doubts")
    write_photos(home / "photos" / "train", per_class=20)
    write_photos(home / "photos" / "test", per_class=3, seed=1)
    train = home / "photos" / "train"
    (train / "bark" / "000.png").rename(train / "sand" / "moved.png")
    (train / "weave" / "000.png").rename(train / "bark" / "moved.png")
    for name, side in [("sand", 80), ("weave", 64)]:
        for path in sorted((train / name).iterdir()):
            with Image.open(path) as picture:
                larger = picture.resize((side, side))
            larger.save(path)
    found = survey.measure(home / "photos", size=SIZE_PX, cache=home / "cache")
    decided = found.plan()
    m = found.of(decided)
    return Seen(found, m, decided, frozen_head(m, m.backbone.index(decided.cut), 0, several=False, delta=plan.DELTA))


def test_labels_in_the_wrong_class_are_found_among_the_images_to_learn_from(seen: Seen) -> None:
    found = doubts.suspected(seen.survey, seen.m, seen.frozen, plan.DELTA)
    assert found is not None
    assert {s.path.removeprefix("train/") for s in found.listed[:2]} == MOVED
    assert {(s.label, s.likely) for s in found.listed[:2]} == {("sand", "bark"), ("bark", "weave")}
    assert found.images == 60
    good = suspects.good(seen.m.evidence.correct, delta=plan.DELTA)
    assert found.voters == len(good) + 1


def test_pictures_of_another_size_in_each_class_are_a_shortcut(seen: Seen) -> None:
    found = {s.kind: s for s in doubts.shortcut(seen.m)}
    assert "colour" in found
    assert "camera" not in found, "no file names one"
    assert found["size and format"].accuracy == 1
    assert found["size and format"].warned
    assert not found["colour"].warned


def test_the_curve_goes_through_the_accuracy_at_the_planned_cut(seen: Seen) -> None:
    found = doubts.grown(seen.m, seen.plan, 0)
    assert found is not None
    k = seen.m.features.cuts.index(seen.plan.cut)
    assert found.points[-1].accuracy == pytest.approx(float(seen.m.evidence.correct[:, k].mean()))
    assert [p.images for p in found.points] == [7.5, 15, 30, 60]


def test_what_was_fitted_is_found_again_and_other_inputs_are_not_mistaken_for_it(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = doubts.grown(seen.m, seen.plan, 0)

    def again(*_: object, **__: object) -> None:
        raise RuntimeError("fitted again")

    monkeypatch.setattr(growth, "measure", again)
    assert doubts.grown(seen.m, seen.plan, 0) == first
    other = seen.m.features.cuts[0] if seen.plan.cut != seen.m.features.cuts[0] else seen.m.features.cuts[1]
    weight = np.linspace(0.5, 1.5, 60)
    for m, decided, seed in [
        (seen.m, seen.plan, 1),
        (seen.m, replace(seen.plan, cut=other), 0),
        (replace(seen.m, importance=weight), seen.plan, 0),
        (replace(seen.m, groups=np.arange(60) // 1), seen.plan, 0),
    ]:
        with pytest.raises(RuntimeError, match="fitted again"):
            doubts.grown(m, decided, seed)


def test_classes_that_weigh_alike_are_borne(seen: Seen) -> None:
    weight = np.linspace(0.5, 1.5, 60)
    m = replace(seen.m, importance=weight / weight.mean())
    found = doubts.grown(m, seen.plan, 0)
    assert found is not None and 0 <= found.twice_low <= found.twice_high
    assert doubts.suspected(seen.survey, m, seen.frozen, plan.DELTA) is not None
    assert doubts.shortcut(m)


def test_of_several_labels_per_image_nothing_is_said(seen: Seen) -> None:
    m = replace(seen.m, dataset=replace(seen.m.dataset, multi_label=True))
    assert doubts.suspected(seen.survey, m, seen.frozen, plan.DELTA) is None
    assert doubts.shortcut(m) == ()
    assert doubts.grown(m, seen.plan, 0) is None


def test_without_sketches_or_facts_only_the_layers_speak(seen: Seen, tmp_path: Path) -> None:
    examples = tuple(replace(e, facts=None) for e in seen.m.dataset.examples)
    m = replace(seen.m, cache=tmp_path, dataset=replace(seen.m.dataset, examples=examples))
    assert {s.kind for s in doubts.shortcut(m)} <= {"first layers"}


def test_one_missing_sketch_does_not_silence_the_others(seen: Seen, tmp_path: Path) -> None:
    kept = Sketches.under(tmp_path)
    digests = [seen.m.dataset.examples[i].digest for i in seen.m.rows]
    pixels, missing = Sketches.under(seen.m.cache).get(digests)
    assert not missing.any()
    for digest, one in list(zip(digests, pixels, strict=True))[1:]:
        kept.put(digest, one)
    whole = {s.kind: s for s in doubts.shortcut(seen.m)}["colour"]
    less = {s.kind: s for s in doubts.shortcut(replace(seen.m, cache=tmp_path))}["colour"]
    assert less.accuracy == pytest.approx(whole.accuracy, abs=0.05)


def test_a_run_keeps_what_was_said_and_a_record_without_it_is_read(finished: Finished) -> None:
    """Of 24 images, labels and growth say nothing; runs of older versions know none of the three."""
    record = finished.run.record
    assert record.suspects is None and record.growth is None
    assert {s.kind for s in record.shortcuts} >= {"colour", "size and format"}
    assert {"suspects", "shortcuts", "growth"} <= finished.log.shown.keys()
    assert decode(encode(record), RunRecord, where="here") == record
    older = encode(replace(record, shortcuts=())).replace(b'"suspects"', b'"once"').replace(b'"growth"', b'"then"')
    assert decode(older, RunRecord, where="here").suspects is None
