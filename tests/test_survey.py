"""Several backbones are measured on the same images; `auto` takes what the budget pays for and stops who is out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import Log, broken_inside_png, write_photos
from topwork import data, features, plan, search, survey, workflow, zoo
from topwork.errors import BackboneError, DataError, MissingError, UsageError
from topwork.records import Dataset, Example, Preprocessing, Recipe, Tuning
from topwork.survey import Survey
from topwork.zoo import Backbone
from topwork.zoo.cuts import chain
from topwork.zoo.weights import fingerprint

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE_PX = 32
LEAST = 20
"""Images of the sample in these tests, in place of survey.LEAST_SAMPLE: pictures have to be drawn and passed."""


def network(seed: int, width: int = 4, *, blind: bool = False) -> nn.Module:
    """Two blocks with random weights; the more channels the dearer. A blind one sees nothing in any picture."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 5),
        ).eval()  # fmt: skip
    if blind:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.zero_()
    return made


@dataclass
class Shelf:
    """A zoo of networks that are made here: what find, load and at_hand give instead of the libraries' own."""

    networks: dict[str, Callable[[], nn.Module]] = field(default_factory=dict)
    top1: dict[str, float] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)  # cannot be loaded
    odd: dict[str, Exception] = field(default_factory=dict)  # cannot even be found out about
    least_px: dict[str, int] = field(default_factory=dict)  # smaller inputs leave no map
    hidden: set[str] = field(default_factory=set)  # not at hand
    loads: list[tuple[str, int | None]] = field(default_factory=list)

    def add(self, name: str, width: int = 4, *, blind: bool = False, top1: float | None = None, seed: int = 0) -> None:
        self.networks[name] = lambda: network(seed, width, blind=blind)
        if top1 is not None:
            self.top1[name] = top1

    def find(self, name: str, weights: Path | None = None) -> Any:
        if name not in self.networks:
            raise UsageError(f"no backbone is called {name!r}")
        if name in self.odd:
            raise self.odd[name]
        preprocessing = Preprocessing(36, SIZE_PX, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        return SimpleNamespace(name=name, preprocessing=preprocessing, top1=self.top1.get(name))

    def load(
        self, name: str, *, weights: Path | None = None, size_px: int | None = None, watch: object = None
    ) -> Backbone:
        self.loads.append((name, size_px))
        preprocessing = self.find(name, weights).preprocessing
        if size_px is not None:
            preprocessing = preprocessing.at(size_px)
        if name in self.broken:
            raise self.broken[name]
        if preprocessing.crop_px < self.least_px.get(name, 0):
            raise BackboneError(f"{name} leaves no map at {preprocessing.crop_px} px")
        made = self.networks[name]()
        return Backbone(
            name, "made here", fingerprint(made.state_dict(), name), preprocessing, 5,
            chain(made, preprocessing.crop_px),
        )  # fmt: skip

    def at_hand(self, weights: Path | None = None) -> list[str]:
        return [name for name in self.networks if name not in self.hidden]


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Of one small and one large network, the larger one dearer."""
    made = Shelf()
    made.add("small", 4, seed=1)
    made.add("large", 16, seed=2)
    for name in ("find", "load", "at_hand"):
        monkeypatch.setattr(zoo, name, getattr(made, name))
    monkeypatch.setattr(zoo, "MIN_SIZE_PX", 16)
    return made


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "LEAST_SAMPLE", LEAST)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of forty pictures."""
    return write_photos(tmp_path_factory.mktemp("many") / "photos", per_class=40)


def names(seen: Survey) -> list[str]:
    return [m.backbone.name for m in seen.measured]


def fates(seen: Survey) -> dict[str, str]:
    return {s.backbone: s.fate for s in seen.standings(seen.plan())}


# ---- what was named


def test_all_that_were_named_are_measured_in_full_on_the_same_images(
    shelf: Shelf, photos: Path, tmp_path: Path
) -> None:
    seen = survey.measure(photos, backbone=["large", "small"], cache=tmp_path / "cache")
    assert names(seen) == ["small", "large"]  # the cheapest first
    first, second = seen.measured
    assert first.dataset == second.dataset
    np.testing.assert_array_equal(first.rows, second.rows)
    assert {len(e.correct) for e in seen.evidences} == {24}
    assert [m.features.passed for m in seen.measured] == [24, 24]
    assert seen.dropped == ()
    assert seen.spent_seconds == 0  # of the budget nothing: these passes were asked for
    assert seen.passed == 48


def test_a_backbone_is_measured_beside_others_as_it_is_alone(shelf: Shelf, photos: Path, tmp_path: Path) -> None:
    both = survey.measure(photos, backbone=["small", "large"], cache=tmp_path / "both")
    for together in both.measured:
        (alone,) = survey.measure(photos, backbone=together.backbone.name, cache=tmp_path / "alone").measured
        np.testing.assert_array_equal(together.evidence.correct, alone.evidence.correct)
        assert together.ridges == alone.ridges


def test_a_name_that_is_given_twice_is_measured_once(shelf: Shelf, photos: Path, tmp_path: Path) -> None:
    seen = survey.measure(photos, backbone=["small", "small"], size=[SIZE_PX, SIZE_PX], cache=tmp_path / "cache")
    assert names(seen) == ["small"]
    assert shelf.loads == [("small", SIZE_PX)]


def test_the_own_size_written_out_is_no_second_contender(shelf: Shelf, photos: Path, tmp_path: Path) -> None:
    seen = survey.measure(photos, backbone="small", size=["auto", SIZE_PX], cache=tmp_path / "cache")
    assert [m.backbone.preprocessing.crop_px for m in seen.measured] == [16, 32]


def test_a_name_that_auto_finds_too_is_measured_once_and_as_named(
    shelf: Shelf, many: Path, tmp_path: Path, small_sample: None
) -> None:
    """`blind` would be stopped, had it not been named."""
    shelf.add("blind", 6, blind=True)
    seen = survey.measure(many, backbone=["auto", "blind"], cache=tmp_path / "cache")
    assert Counter(names(seen)) == Counter(["small", "blind", "large"])


def test_every_name_goes_with_every_size(shelf: Shelf, photos: Path, tmp_path: Path) -> None:
    seen = survey.measure(photos, backbone=["small", "large"], size=[24, 40], cache=tmp_path / "cache")
    pairs = {(m.backbone.name, m.backbone.preprocessing.crop_px) for m in seen.measured}
    assert pairs == {("small", 24), ("small", 40), ("large", 24), ("large", 40)}
    macs = [m.backbone.chain.macs for m in seen.measured]
    assert macs == sorted(macs)


# ---- what is refused, and when


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"backbone": ["small", "lage"]}, "no backbone is called 'lage'"),
        ({"backbone": []}, "--backbone: expected at least one name, or auto"),
        ({"backbone": "small", "size": "big"}, "--size big: expected a number of px, or auto"),
        ({"backbone": "small", "size": [32, True]}, "--size True: expected a number of px"),
        ({"backbone": ["small", "large"], "cuts": ("0",)}, "--cut and --unfreeze name layers of one backbone"),
        ({"backbone": "auto", "cuts": (None, "0")}, "--cut and --unfreeze name layers of one backbone"),
        ({"backbone": "small", "delta": 1.0}, "--delta 1.0: expected"),
    ],
)
def test_a_wrong_call_is_told_before_any_file_is_looked_at(
    shelf: Shelf, tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    """The folder does not exist: nobody looked."""
    with pytest.raises(UsageError) as caught:
        survey.measure(tmp_path / "nowhere", cache=tmp_path / "cache", **given)
    assert words in str(caught.value)
    assert shelf.loads == []


@pytest.mark.parametrize("backbone", [["small", "large"], "auto"])
def test_one_file_of_weights_is_not_for_several_backbones(shelf: Shelf, tmp_path: Path, backbone: Any) -> None:
    file = tmp_path / "small.safetensors"
    file.touch()
    with pytest.raises(UsageError, match="a file is of one backbone; name one, or give a folder of weights"):
        survey.measure(tmp_path / "nowhere", backbone=backbone, weights=file)


def test_the_folder_is_looked_at_before_any_backbone_is_loaded(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        survey.measure(tmp_path / "nowhere", backbone="small")
    assert shelf.loads == []


def test_a_wrong_cut_is_told_before_the_pass(shelf: Shelf, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="small has no cut 'layer9'"):
        survey.measure(photos, backbone="small", cuts=("layer9", None), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# ---- what auto leaves out


def test_auto_takes_all_that_are_at_hand(shelf: Shelf, photos: Path, tmp_path: Path) -> None:
    shelf.add("elsewhere", 8)
    shelf.hidden = {"elsewhere"}
    seen = survey.measure(photos, backbone="auto", cache=tmp_path / "cache")
    assert names(seen) == ["small", "large"]
    assert seen.dropped == ()


@pytest.mark.parametrize("how", ["broken", "odd"])
@pytest.mark.parametrize(
    "error", [BackboneError("it cannot be cut"), MissingError("no weights"), UsageError("two files")]
)
def test_auto_leaves_out_what_cannot_be_loaded_with_its_reason(
    shelf: Shelf, photos: Path, tmp_path: Path, error: Exception, how: str, log: Log
) -> None:
    shelf.add("bad", 8)
    getattr(shelf, how)["bad"] = error
    seen = survey.measure(photos, backbone="auto", cache=tmp_path / "cache", watch=log)
    assert names(seen) == ["small", "large"]
    (standing,) = seen.dropped
    assert (standing.backbone, standing.fate, standing.reason) == ("bad", "left out", str(error))
    assert (standing.n, standing.scores, standing.facts, standing.forward_ms) == (0, (), None, None)
    assert log.shown["dropped"] == standing


def test_what_was_named_and_cannot_be_loaded_ends_it(shelf: Shelf, photos: Path, tmp_path: Path) -> None:
    shelf.broken["large"] = BackboneError("it cannot be cut")
    with pytest.raises(BackboneError, match="it cannot be cut"):
        survey.measure(photos, backbone=["auto", "large"], cache=tmp_path / "cache")


def test_where_none_can_be_loaded_every_reason_is_told(shelf: Shelf, photos: Path, tmp_path: Path) -> None:
    shelf.broken = {"small": MissingError("first reason"), "large": BackboneError("second reason")}
    with pytest.raises(UsageError, match=r"(?s)none of those at hand .*first reason\nsecond reason"):
        survey.measure(photos, backbone="auto", cache=tmp_path / "cache")


PRICES = {"small": 1.0, "middle": 2.0, "large": 4.0, "best": 8.0}
"""Seconds per image, as if tried."""


@pytest.fixture
def priced(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Four networks of known prices; the dearest ranks best on ImageNet."""
    shelf.add("middle", 8, seed=3, top1=0.7)
    shelf.add("best", 24, seed=4, top1=0.8)
    monkeypatch.setattr(features, "price", lambda b, **_: PRICES[b.name])
    return shelf


@pytest.mark.parametrize(
    ("backbone", "budget", "measured"),
    [
        # 24 images: 24, 48, 96 and 192 s; half of the budget may be spent.
        (["auto"], "2000s", {"small", "middle", "large", "best"}),
        (["auto"], "720s", {"small", "middle", "large", "best"}),  # 24 + 192 + 48 + 96 = 360, just
        (["auto"], "719s", {"small", "middle", "best"}),
        (["auto"], "527s", {"small", "best"}),
        (
            ["auto"],
            "431s",
            {"small", "middle", "large"},
        ),  # 24 + 192 > 215: the best is too dear, the cheap ones are not
        (["auto"], "1s", {"small"}),  # the cheapest in any case
        (["auto", "large"], "1s", {"large"}),  # what was named stands for it, and costs the budget nothing
        (["auto", "large"], "48s", {"large", "small"}),
        (["auto", "best"], "720s", {"small", "middle", "large", "best"}),
    ],
)
def test_auto_takes_what_half_the_budget_pays_for(
    priced: Shelf, photos: Path, tmp_path: Path, backbone: list[str], budget: str, measured: set[str]
) -> None:
    seen = survey.measure(photos, backbone=backbone, budget=budget, cache=tmp_path / "cache")
    assert set(names(seen)) == measured
    assert {s.backbone for s in seen.dropped} == PRICES.keys() - measured
    for standing in seen.dropped:
        assert (standing.fate, standing.n, standing.scores) == ("left out", 0, ())
        assert standing.forward_ms == 1000 * PRICES[standing.backbone]  # predicted
        assert standing.facts is not None


def test_what_the_budget_does_not_pay_for_is_told_with_the_numbers(priced: Shelf, photos: Path, tmp_path: Path) -> None:
    seen = survey.measure(photos, backbone="auto", budget="527s", cache=tmp_path / "cache")
    reasons = {s.backbone: s.reason for s in seen.dropped}
    assert reasons["middle"] == (
        "its pass would take about 48 s; 48 s are left of the 264 s that may go into passes;"
        " give more with --budget, or name it with --backbone"
    )
    assert "about 96 s; 48 s are left of the 264 s" in reasons["large"]


def test_forward_equivalents_are_of_the_cheapest_one(priced: Shelf, photos: Path, tmp_path: Path) -> None:
    """18 FE of 24 s are 432 s, of which half pays for all but the middle and the large one: 24 + 192."""
    seen = survey.measure(photos, backbone="auto", budget="18fe", cache=tmp_path / "cache")
    assert set(names(seen)) == {"small", "best"}


def test_what_was_seen_before_costs_nothing(priced: Shelf, photos: Path, tmp_path: Path) -> None:
    survey.measure(photos, backbone=["large", "best"], cache=tmp_path / "cache")
    seen = survey.measure(photos, backbone="auto", budget="1s", cache=tmp_path / "cache")
    assert set(names(seen)) == {"small", "large", "best"}
    (left_out,) = seen.dropped
    assert left_out.backbone == "middle"
    assert "0 s are left" in left_out.reason


def test_without_auto_no_price_is_asked(priced: Shelf, photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(features, "price", lambda *_, **__: pytest.fail("asked"))
    seen = survey.measure(photos, backbone=["small", "best"], budget="1s", cache=tmp_path / "cache")
    assert names(seen) == ["small", "best"]


def test_a_price_is_the_time_of_a_forward_pass(shelf: Shelf) -> None:
    backbone = shelf.load("small")
    assert 0 < features.price(backbone) < 1


# ---- who is stopped


def test_a_backbone_that_is_shown_to_be_out_of_the_running_is_stopped(
    shelf: Shelf, many: Path, tmp_path: Path, small_sample: None, log: Log
) -> None:
    shelf.add("blind", 6, blind=True)
    seen = survey.measure(many, backbone="auto", cache=tmp_path / "cache", watch=log)
    assert names(seen) == ["small", "large"]
    (stopped,) = seen.dropped
    sample = int(survey.SAMPLE * 120)
    assert (stopped.backbone, stopped.fate, stopped.n) == ("blind", "stopped", sample)
    assert stopped.reason.startswith(f"stopped after {sample} images: its best cut")
    assert len(stopped.scores) == 2
    assert stopped.facts is not None
    assert log.shown["dropped"] == stopped
    assert seen.passed == 120 + 120 + sample  # the sample's images are passed once and counted once
    kept = shelf.load("blind")
    assert features.unseen(kept, seen.measured[0].dataset.examples, cache=tmp_path / "cache") == 120 - sample
    assert [len(m.rows) for m in seen.measured] == [120, 120]  # the others in full


def test_nobody_is_stopped_where_no_difference_is_planted(
    shelf: Shelf, many: Path, tmp_path: Path, small_sample: None
) -> None:
    """The same network under another name, and one with a channel more."""
    shelf.add("twin", 4, seed=1)
    shelf.add("sister", 5, seed=1)
    del shelf.networks["large"]
    seen = survey.measure(many, backbone="auto", cache=tmp_path / "cache")
    assert set(names(seen)) == {"small", "twin", "sister"}


@pytest.mark.parametrize("why", ["named", "ranked"])
def test_named_ones_and_the_best_ranked_one_are_never_stopped(
    shelf: Shelf, many: Path, tmp_path: Path, small_sample: None, why: str
) -> None:
    shelf.add("blind", 6, blind=True, top1=0.9 if why == "ranked" else 0.1)
    shelf.top1["large"] = 0.5
    asked = ["auto", "blind"] if why == "named" else "auto"
    seen = survey.measure(many, backbone=asked, cache=tmp_path / "cache")
    assert set(names(seen)) == {"small", "large", "blind"}


def test_a_second_survey_stops_the_same_and_passes_nothing(
    shelf: Shelf, many: Path, tmp_path: Path, small_sample: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add("blind", 6, blind=True)
    first = survey.measure(many, backbone="auto", cache=tmp_path / "cache")
    monkeypatch.setattr(features, "Engine", lambda *_: pytest.fail("passed"))
    monkeypatch.setattr(features, "price", lambda *_, **__: 1e-3)
    second = survey.measure(many, backbone="auto", cache=tmp_path / "cache")
    assert second.dropped == first.dropped
    assert (second.spent_seconds, second.passed) == (0, 0)
    assert second.scores == first.scores


def test_what_auto_passed_is_of_the_budget_and_what_was_named_is_not(
    shelf: Shelf, many: Path, tmp_path: Path, small_sample: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that passed times the measured seconds of a forward pass, the sample's and the rest's."""
    shelf.add("blind", 6, blind=True)
    expected, real = 0.0, features.measure

    def noted(backbones: Any, root: Path, examples: Any, **options: Any) -> Any:
        nonlocal expected
        found = real(backbones, root, examples, **options)
        expected += sum(
            f.passed * f.seconds[1:].sum() for b, f in zip(backbones, found, strict=True) if b.name != "small"
        )
        return found

    monkeypatch.setattr(features, "measure", noted)
    seen = survey.measure(many, backbone=["auto", "small"], cache=tmp_path / "cache")
    assert seen.spent_seconds == pytest.approx(expected)
    assert seen.spent_seconds > 0


# ---- the sample


def labelled(counts: list[int], *, parts: tuple[str, ...] = ("train",)) -> Dataset:
    examples = [
        Example(f"{label}/{i}", label, parts[i % len(parts)], f"{label:016x}{i:016x}")  # type: ignore[arg-type]
        for label, count in enumerate(counts)
        for i in range(count)
    ]
    return Dataset("photos", "a folder per class", tuple(f"c{i}" for i in range(len(counts))), tuple(examples), (), ())


@pytest.mark.parametrize("counts", [[400, 400], [1000, 200, 40], [300, 300, 300, 300], [801, 1]])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_sample_has_its_share_of_every_class(counts: list[int], seed: int) -> None:
    given = labelled(counts)
    wanted = max(survey.LEAST_SAMPLE, int(survey.SAMPLE * sum(counts)))
    assert survey._rungs(given) == [wanted]
    sample = survey._sample(given, seed, wanted)
    assert len(sample) == wanted == len(set(sample))
    found = Counter(e.label for e in sample)
    for label, count in enumerate(counts):
        assert abs(found[label] - wanted * count / sum(counts)) <= 1
    order = [given.examples.index(e) for e in sample]
    assert order == sorted(order)  # as the images stand in the data set


def test_the_sample_is_the_seeds_own() -> None:
    given = labelled([500, 500])
    assert survey._sample(given, 3, 250) == survey._sample(given, 3, 250)
    assert survey._sample(given, 3, 250) != survey._sample(given, 4, 250)


def test_nothing_that_is_locked_is_in_the_sample() -> None:
    given = labelled([1000, 1000], parts=("train", "test"))
    (wanted,) = survey._rungs(given)
    sample = survey._sample(given, 0, wanted)
    assert {e.part for e in sample} == {"train"}
    assert len(sample) == 250


@pytest.mark.parametrize(("n", "taken"), [(399, False), (400, True), (1000, True)])
def test_there_is_no_sample_where_it_would_spare_less_than_a_half(n: int, taken: bool) -> None:
    assert bool(survey._rungs(labelled([n // 2, n - n // 2]))) is taken


def test_the_locked_part_has_no_say_in_who_is_stopped(
    shelf: Shelf, many: Path, tmp_path: Path, small_sample: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(dataset: Dataset, seed: int) -> tuple[Dataset, str]:
        examples = tuple(replace(e, part="test" if i % 4 == 0 else "train") for i, e in enumerate(dataset.examples))
        return replace(dataset, examples=examples), "held-out part"

    monkeypatch.setattr(data, "lock", locked)
    shelf.add("blind", 6, blind=True)
    passed: list[set[str]] = []
    real = features.measure

    def noted(backbones: Any, root: Path, examples: Any, **options: Any) -> Any:
        passed.append({e.part for e in examples})
        return real(backbones, root, examples, **options)

    monkeypatch.setattr(features, "measure", noted)
    seen = survey.measure(many, backbone="auto", cache=tmp_path / "cache")
    assert passed == [{"train"}, {"train", "test"}]
    (stopped,) = seen.dropped
    assert stopped.n == int(survey.SAMPLE * 90)
    assert [len(m.rows) for m in seen.measured] == [90, 90]


# ---- many images: a sample passes first, the others as deep as is needed

FIRST = 40
"""Images of the first sample in these tests; 120 count as many."""


def half_blind(seed: int = 1) -> nn.Module:
    """What the first block sees is good; the second one forgets it."""
    made = network(seed, 8)
    with torch.no_grad():
        for parameter in made[3].parameters():
            parameter.zero_()
    return made


@pytest.fixture
def large(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A hundred images are many; one network whose last cut is no good."""
    monkeypatch.setattr(survey, "LARGE", 100)
    monkeypatch.setattr(survey, "FIRST", FIRST)
    monkeypatch.setattr(survey, "PER_CLASS", 1)
    shelf.networks["short"] = half_blind
    return shelf


def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int | None]]]:
    """Images and depths of every pass to come."""
    seen, real = [], features.measure

    def noted(backbones: Any, root: Path, examples: Any, **options: Any) -> Any:
        seen.append((len(examples), list(options["depths"])))
        return real(backbones, root, examples, **options)

    monkeypatch.setattr(features, "measure", noted)
    return seen


def unlimited(folder: Path, cache: Path, **options: Any) -> Survey:
    """As if no number of images were many: all of them pass all cuts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "LARGE", 10**9)
        return survey.measure(folder, cache=cache, **options)


def test_the_others_pass_up_to_the_deepest_cut_that_can_win(
    large: Shelf, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = passes(monkeypatch)
    seen = survey.measure(many, backbone="short", cache=tmp_path / "cache")
    assert noted == [(FIRST, [None]), (120, [1])]
    assert seen.passed == 120
    (m,) = seen.measured
    assert (len(m.features.cuts), len(m.rows)) == (1, 120)
    assert m.whole is not None
    assert len(m.whole.features.cuts) == 2
    (table,) = seen.scores
    assert [s.images for s in table] == [120, FIRST]
    assert [s.cut for s in table] == [c.name for c in m.backbone.cuts]


def test_what_was_decided_is_what_all_images_decide(large: Shelf, many: Path, tmp_path: Path) -> None:
    seen = survey.measure(many, backbone="short", cache=tmp_path / "cache")
    plain = unlimited(many, tmp_path / "plain", backbone="short")
    (spared,), (full,) = seen.scores, plain.scores
    for ours, theirs in zip(spared[:1], full[:1], strict=True):
        assert replace(ours, cost_share=0, cost_ms=0) == replace(theirs, cost_share=0, cost_ms=0)
    assert seen.plan().cut == plain.plan().cut
    np.testing.assert_array_equal(seen.measured[0].features.at(0), plain.measured[0].features.at(0))


def test_early_rows_are_those_of_the_sample(large: Shelf, many: Path, tmp_path: Path) -> None:
    seen = survey.measure(many, backbone="short", cache=tmp_path / "cache")
    (m,) = seen.measured
    assert m.whole is not None
    (sampled,) = plan.scores([m.whole.evidence], [m.whole.features.widths], [m.whole.ridges])
    row = seen.scores[0][1]
    assert row == sampled[1]
    assert row.high - row.low > seen.scores[0][0].high - seen.scores[0][0].low
    assert seen.plan().similarity == plan.decide(m.whole.evidence).similarity


def test_the_plan_says_what_was_not_passed(large: Shelf, many: Path, tmp_path: Path) -> None:
    seen = survey.measure(many, backbone="short", cache=tmp_path / "cache")
    *_, told, last = seen.plan().reasons
    share = f"{seen.measured[0].features.cost_shares[0]:.0%}"
    assert told == (
        f"The last 80 images passed only up to {seen.measured[0].features.cuts[0]} ({share} of the cost): after 40"
        " images no deeper cut could win (99%)."
    )
    assert last.startswith("Head only")


def test_where_every_cut_may_win_all_images_pass_all_of_it(
    large: Shelf, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "needed", lambda evidences, _: [len(e.cuts) for e in evidences])
    noted = passes(monkeypatch)
    seen = survey.measure(many, backbone="short", cache=tmp_path / "cache")
    assert noted == [(FIRST, [None]), (120, [None])]
    plain = unlimited(many, tmp_path / "plain", backbone="short")
    same = [replace(s, cost_share=0, cost_ms=0) for s in seen.scores[0]]
    assert same == [replace(s, cost_share=0, cost_ms=0) for s in plain.scores[0]]
    assert seen.notes == ()


def test_few_images_pass_once_and_all_the_way(
    large: Shelf, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = passes(monkeypatch)
    seen = survey.measure(photos, backbone="short", cache=tmp_path / "cache", enough=True)
    assert noted == [(24, [None])]
    assert (seen.notes, seen.early, seen.measured[0].whole) == ((), ((),), None)


def test_a_cut_that_was_asked_for_is_how_far_the_others_pass(
    large: Shelf, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sample says: here the first cut is no good, and it is the last that is blind."""
    noted = passes(monkeypatch)
    first, last = (c.name for c in large.load("small").cuts)
    seen = survey.measure(many, backbone="small", cut=first, cache=tmp_path / "cache")
    assert noted == [(FIRST, [None]), (120, [1])]
    decided = seen.plan(cut=first)
    assert decided.cut == first
    assert "as asked; deeper cuts were scored on 40 images." in decided.reasons[-2]
    assert [s.images for s in seen.scores[0]] == [120, FIRST]
    noted.clear()
    survey.measure(many, backbone="small", cut=last, cache=tmp_path / "other")
    assert noted == [(FIRST, [None]), (120, [None])]


def test_named_ones_are_never_dropped_but_pass_no_further_than_they_can_win(
    large: Shelf, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large.add("blind", 6, blind=True)
    noted = passes(monkeypatch)
    seen = survey.measure(many, backbone=["short", "blind"], cache=tmp_path / "cache", several_depths=False)
    assert set(names(seen)) == {"short", "blind"}
    assert noted[-1] == (120, [1, 1])
    assert {len(m.rows) for m in seen.measured} == {120}
    blind = next(s for s in seen.standings(seen.plan()) if s.backbone == "blind")
    assert (blind.fate, blind.n, [s.images for s in blind.scores]) == ("measured", 120, [120, FIRST])
    assert "Through blind at 32 px the last 80 images passed only up to" in " ".join(seen.plan().reasons)


def test_a_larger_sample_may_spare_what_the_first_one_could_not(
    large: Shelf, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "FIRST", 15)
    noted, real = passes(monkeypatch), plan.needed
    monkeypatch.setattr(
        plan, "needed", lambda es, delta: real(es, delta) if len(es[0].correct) > 15 else (len(es[0].cuts),)
    )
    seen = survey.measure(many, backbone="short", cache=tmp_path / "cache", several_depths=False)
    assert noted == [(15, [None]), (60, [None]), (120, [1])]
    assert [s.images for s in seen.scores[0]] == [120, 60]


def test_there_is_no_larger_sample_where_it_could_spare_nothing(
    large: Shelf, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass ends at the best cut already."""
    monkeypatch.setattr(survey, "FIRST", 15)
    monkeypatch.setattr(plan, "needed", lambda es, _: (1,) * len(es))
    noted = passes(monkeypatch)
    survey.measure(many, backbone="short", cache=tmp_path / "cache", several_depths=False)
    assert noted == [(15, [None]), (120, [1])]


def test_a_head_of_several_depths_that_may_win_keeps_the_pass_deep(
    large: Shelf, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "reach", lambda *_, **__: 2)
    noted = passes(monkeypatch)
    survey.measure(many, backbone="short", cache=tmp_path / "deep")
    survey.measure(many, backbone="short", cache=tmp_path / "shallow", several_depths=False)
    assert [depths for _, depths in noted] == [[None], [None], [None], [1]]


def test_a_plan_stops_at_the_sample_that_decides_and_a_fit_finds_all_of_it(
    large: Shelf, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = passes(monkeypatch)
    planned = survey.measure(many, backbone="short", delta=0.3, cache=tmp_path / "cache", enough=True)
    assert noted == [(FIRST, [None])]
    assert (planned.passed, planned.images) == (FIRST, 120)
    assert len(planned.measured[0].rows) == FIRST
    decided = planned.plan(delta=0.3)
    (told,) = [r for r in decided.reasons if r.startswith("Planned on 40 of 120 images, which are enough to decide")]
    score = planned.scores[0][[s.cut for s in planned.scores[0]].index(decided.cut)]
    assert f"is known to {50 * (score.high - score.low):.1f} points either way (95%)" in told
    full = survey.measure(many, backbone="short", delta=0.3, cache=tmp_path / "cache")
    assert full.passed == 80
    assert full.plan(delta=0.3).cut == decided.cut
    assert not any(r.startswith("Planned on") for r in full.plan(delta=0.3).reasons)


@pytest.mark.parametrize(
    ("decided", "more", "stops"), [(True, None, True), (False, None, True), (False, 81, True), (False, 80, False)]
)
def test_a_plan_goes_on_where_the_images_at_hand_would_decide(
    large: Shelf, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decided: bool, more: int, stops: bool
) -> None:
    real = plan.decide
    monkeypatch.setattr(
        plan, "decide", lambda *e, **options: replace(real(*e, **options), decided=decided, more_images=more)
    )
    seen = survey.measure(many, backbone="short", delta=0.9, cache=tmp_path / "cache", enough=True)
    assert len(seen.measured[0].rows) == (FIRST if stops else 120)


def test_a_second_survey_of_many_images_decides_alike_and_passes_nothing(
    large: Shelf, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = survey.measure(many, backbone="short", cache=tmp_path / "cache")
    monkeypatch.setattr(features, "Engine", lambda *_: pytest.fail("passed"))
    second = survey.measure(many, backbone="short", cache=tmp_path / "cache")
    assert (second.passed, second.scores, second.notes) == (0, first.scores, first.notes)


def test_what_is_in_the_cache_has_no_say_in_how_deep_images_pass(large: Shelf, many: Path, tmp_path: Path) -> None:
    """A cache with all images at all cuts: the same is decided, read from there."""
    full = unlimited(many, tmp_path / "cache", backbone="short")
    seen = survey.measure(many, backbone="short", cache=tmp_path / "cache")
    fresh = survey.measure(many, backbone="short", cache=tmp_path / "fresh")
    assert full.passed == 120
    assert seen.passed == 0
    assert len(seen.measured[0].features.cuts) == len(fresh.measured[0].features.cuts) == 1
    assert seen.plan().cut == fresh.plan().cut


def test_an_interrupted_survey_of_many_images_goes_on_to_the_same(
    large: Shelf, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(Log):
        def advance(self, steps: int = 1) -> None:
            super().advance(steps)
            if self.stages[-1] == ("pass", 80) and self.steps > FIRST + 120 + 20:
                raise KeyboardInterrupt

    monkeypatch.setattr(features, "BATCH", 8)
    with pytest.raises(KeyboardInterrupt):
        survey.measure(many, backbone="short", cache=tmp_path / "cache", watch=Stopping())
    seen = survey.measure(many, backbone="short", cache=tmp_path / "cache")
    assert 0 < seen.passed < 80
    fresh = survey.measure(many, backbone="short", cache=tmp_path / "fresh")
    np.testing.assert_array_equal(seen.measured[0].evidence.correct, fresh.measured[0].evidence.correct)
    assert seen.plan().cut == fresh.plan().cut


def test_seconds_of_a_short_pass_are_those_of_its_layers(
    large: Shelf, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What auto chose is of the budget: forty images all the way, eighty up to the first cut."""
    monkeypatch.setattr(plan, "needed", lambda es, _: (1,) * len(es))
    monkeypatch.setattr(plan, "hopeless", lambda es, _: (None,) * len(es))
    for name in ("large", "short"):
        del large.networks[name]
    large.add("other", 6, seed=4)
    large.hidden = {"other"}
    expected, real = 0.0, features.measure

    def noted(backbones: Any, root: Path, examples: Any, **options: Any) -> Any:
        nonlocal expected
        found = real(backbones, root, examples, **options)
        ours = next(i for i, b in enumerate(backbones) if b.name == "small")
        expected += found[ours].passed * found[ours].seconds[1:][: options["depths"][ours]].sum()
        return found

    monkeypatch.setattr(features, "measure", noted)
    seen = survey.measure(
        many, backbone=["auto", "other"], budget="1000s", cache=tmp_path / "cache", several_depths=False
    )
    assert seen.spent_seconds == pytest.approx(expected)
    assert seen.passed == 240


def test_a_training_may_end_at_a_cut_that_only_the_sample_passed(
    large: Shelf, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last cut is always tried; its head starts from the sample's features."""
    monkeypatch.setattr(search, "LEAST_ERRORS", 0)
    run = workflow.fit(
        many, backbone="short", budget="60s", epochs=1, out=tmp_path / "run", cache=tmp_path / "cache"
    )  # fmt: skip
    assert run.record.tuning is not None
    last = run.record.backbone.cuts[-1].name
    assert last in {t.recipe.cut for t in run.record.tuning.trials}
    assert [s.images for s in run.scores] == [120, FIRST]
    assert any(r.startswith("The last 80 images passed only up to") for r in run.plan.reasons)
    assert run.record.spending.images_passed == 120


def test_of_a_training_that_ends_behind_the_pass_cost_and_likeness_are_the_samples(
    large: Shelf, many: Path, tmp_path: Path
) -> None:
    seen = survey.measure(many, backbone="short", cache=tmp_path / "cache")
    m = seen.measured[0]
    last = m.backbone.cuts[-1].name
    tuning = Tuning(
        1.0, 1.0, (), "short", SIZE_PX, Recipe("full", last, m.backbone.cuts[0].name), 0.1, 0.05, 120, replaced=True,
        reason="it is better.",
    )  # fmt: skip
    decided = plan.tuned(seen.plan(), tuning, seen.evidences)
    assert (decided.cut, decided.kept_cost) == (last, seen.scores[0][1].cost_share)
    assert decided.similarity == seen.plan().similarity


def test_samples_lie_inside_each_other() -> None:
    given = labelled([3000, 900, 100])
    samples = [set(survey._sample(given, 0, wanted)) for wanted in (1000, 2000, 4000)]
    assert samples[0] < samples[1] < samples[2]
    assert samples[0] == set(survey._sample(given, 0, 1000))


def test_a_sample_of_many_images_has_some_of_every_class() -> None:
    given = labelled([4000, 2000, 40, 3, 1])
    sample = survey._sample(given, 0, 500)
    found = Counter(e.label for e in sample)
    assert len(sample) == 500
    assert (found[2], found[3], found[4]) == (survey.LEAST_PER_CLASS, 3, 1)
    assert found[0] == pytest.approx(2 * found[1], abs=2)


def test_where_some_of_every_class_are_more_than_the_sample_it_has_them_all() -> None:
    given = labelled([20] * 200)
    sample = survey._sample(given, 0, 100)
    assert Counter(e.label for e in sample) == dict.fromkeys(range(200), survey.LEAST_PER_CLASS)


def test_copies_are_in_the_sample_together_or_not_at_all() -> None:
    given = labelled([3000, 3000])
    copies = tuple(replace(e, digest=f"{i // 3:032x}") for i, e in enumerate(given.examples))
    sample = survey._sample(replace(given, examples=copies), 0, 1000)
    assert set(Counter(e.digest for e in sample).values()) == {3}
    assert 1000 <= len(sample) <= 1002


@pytest.mark.parametrize(
    ("n", "classes", "sizes"),
    [
        (1999, 2, [499]),
        (2000, 2, [1000]),
        (7999, 2, [1000]),
        (8000, 2, [1000, 4000]),
        (50000, 10, [1000, 4000, 16000]),
        (8000, 200, [4000]),
        (7999, 200, []),
    ],
)
def test_samples_grow_fourfold_up_to_half_of_the_images(n: int, classes: int, sizes: list[int]) -> None:
    counts = [n // classes] * (classes - 1)
    assert survey._rungs(labelled([*counts, n - sum(counts)])) == sizes


# ---- sizes


def test_auto_sizes_are_its_own_and_half_of_it(shelf: Shelf, photos: Path, tmp_path: Path) -> None:
    seen = survey.measure(photos, backbone="small", size="auto", cache=tmp_path / "cache")
    assert [m.backbone.preprocessing.crop_px for m in seen.measured] == [16, 32]
    assert [m.backbone.preprocessing.resize_px for m in seen.measured] == [18, 36]
    assert len({features.key(m.backbone) for m in seen.measured}) == 2


def test_half_is_never_below_the_least_size(shelf: Shelf, photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(zoo, "MIN_SIZE_PX", 24)
    seen = survey.measure(photos, backbone="small", size="auto", cache=tmp_path / "cache")
    assert [m.backbone.preprocessing.crop_px for m in seen.measured] == [24, 32]
    monkeypatch.setattr(zoo, "MIN_SIZE_PX", 32)
    seen = survey.measure(photos, backbone="small", size="auto", cache=tmp_path / "cache")
    assert [m.backbone.preprocessing.crop_px for m in seen.measured] == [32]


def test_a_half_size_that_a_network_cannot_run_on_is_left_out(shelf: Shelf, photos: Path, tmp_path: Path) -> None:
    shelf.least_px["large"] = 20
    seen = survey.measure(photos, backbone=["small", "large"], size="auto", cache=tmp_path / "cache")
    pairs = [(m.backbone.name, m.backbone.preprocessing.crop_px) for m in seen.measured]
    assert set(pairs) == {("small", 16), ("small", 32), ("large", 32)}
    (left_out,) = seen.dropped
    assert (left_out.backbone, left_out.size_px, left_out.fate) == ("large", 16, "left out")
    assert left_out.reason == "large leaves no map at 16 px"


def test_a_size_that_was_written_down_is_not_left_out(shelf: Shelf, photos: Path, tmp_path: Path) -> None:
    shelf.least_px["large"] = 20
    with pytest.raises(BackboneError, match="no map at 16 px"):
        survey.measure(photos, backbone="large", size=[16, 32], cache=tmp_path / "cache")


# ---- files that cannot be used


def broken(folder: Path, count: int) -> list[str]:
    """That many pictures that show only when decoded that they are none."""
    for i in range(count):
        (folder / "bark" / f"broken{i}.png").write_bytes(broken_inside_png(40 + i))
    return [f"bark/broken{i}.png" for i in range(count)]


def test_a_file_that_one_backbone_cannot_use_is_used_by_none(
    shelf: Shelf, photos: Path, tmp_path: Path, log: Log
) -> None:
    paths = broken(photos, 2)
    seen = survey.measure(photos, backbone=["small", "large"], cache=tmp_path / "cache", watch=log)
    for m in seen.measured:
        assert len(m.rows) == len(m.evidence.correct) == 24
        assert not {e.path for e in m.dataset.examples} & set(paths)
        assert {f.path for f in m.dataset.faults} == set(paths)
    assert {f.path for f in log.shown["faults"]} == set(paths)  # type: ignore[attr-defined]


def test_broken_files_in_the_sample_are_left_out_of_it_and_told_once(
    shelf: Shelf, tmp_path: Path, small_sample: None
) -> None:
    shelf.add("blind", 6, blind=True)
    folder = write_photos(tmp_path / "photos", per_class=40)
    paths = broken(folder, 24)
    seen = survey.measure(folder, backbone="auto", cache=tmp_path / "cache")
    (stopped,) = seen.dropped
    given = data.read(folder)
    sampled = survey._sample(given, 0, *survey._rungs(given))
    good = [e for e in sampled if e.path not in paths]
    assert len(good) < len(sampled)
    assert stopped.n == len(good)
    faults = [f.path for f in seen.measured[0].dataset.faults]
    assert sorted(faults) == sorted(paths)


def test_where_most_of_the_sample_is_broken_nobody_is_stopped_by_the_rest(
    shelf: Shelf, tmp_path: Path, small_sample: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the sample but two."""
    shelf.add("blind", 6, blind=True)
    folder = write_photos(tmp_path / "photos", per_class=40)
    given = data.read(folder)
    sample = survey._sample(given, 0, *survey._rungs(given))
    for i, e in enumerate(sample[2:]):
        (folder / e.path).write_bytes(broken_inside_png(20 + i))
    broken_sample = {e.path for e in sample}
    monkeypatch.setattr(
        survey, "_sample", lambda d, *_: tuple(e for e in d.examples if e.path in broken_sample)
    )  # fmt: skip
    seen = survey.measure(folder, backbone="auto", cache=tmp_path / "cache")
    assert set(names(seen)) == {"small", "large", "blind"}
    assert [len(m.rows) for m in seen.measured] == [120 - len(sample) + 2] * 3


# ---- how they stand


@pytest.fixture
def three(shelf: Shelf, photos: Path, tmp_path: Path) -> Survey:
    """Measured: a blind one between two that see; and one that could not be loaded."""
    shelf.add("blind", 6, blind=True, top1=0.6)
    shelf.add("bad", 8)
    shelf.broken["bad"] = MissingError("no weights")
    return survey.measure(photos, backbone="auto", cache=tmp_path / "cache")


def test_standings_begin_with_the_chosen_one_and_end_with_those_left_out(three: Survey) -> None:
    decided = three.plan()
    rows = three.standings(decided)
    assert [s.fate for s in rows] == ["chosen", "measured", "measured", "left out"]
    assert (rows[0].backbone, rows[0].size_px) == (decided.backbone, decided.size_px)
    accuracies = [s.best.accuracy for s in rows[1:3] if s.best is not None]
    assert accuracies == sorted(accuracies, reverse=True)
    assert rows[2].backbone == "blind"
    assert rows[3].best is None
    for s in rows[:3]:
        m = next(m for m in three.measured if m.backbone.name == s.backbone)
        assert s.scores == three.scores[three.measured.index(m)]
        assert (s.n, s.forward_ms, s.facts) == (24, m.evidence.forward_ms, m.backbone.facts)
    assert {s.backbone: s.top1 for s in rows} == {"small": None, "large": None, "blind": 0.6, "bad": None}


def test_a_measured_ones_reason_has_its_paired_interval(three: Survey) -> None:
    blind = next(s for s in three.standings(three.plan()) if s.backbone == "blind")
    best = blind.best
    assert best is not None
    assert blind.reason == (
        f"its best cut, {best.cut}, is right on {best.accuracy:.1%}; {100 * best.deficit:.1f} points less than the"
        f" best place (95% interval {100 * best.deficit_low:.1f} to {100 * best.deficit_high:.1f})"
    )


def test_the_backbone_of_the_best_place_is_not_said_to_be_less_than_itself(three: Survey) -> None:
    """Where a cheaper place was chosen, the best one's own backbone comes second."""
    decided = three.plan(delta=0.99)
    best = next(s for s in three.standings(decided) if s.backbone == decided.best_backbone)
    other = next(m for m in three.measured if m.backbone.name != decided.best_backbone)
    forced = replace(decided, backbone=other.backbone.name, size_px=SIZE_PX)
    again = next(s for s in three.standings(forced) if s.backbone == best.backbone)
    assert again.fate == "measured"
    assert again.best is not None
    assert again.reason == (
        f"its cut {again.best.cut} is the best place, right on {again.best.accuracy:.1%}; a cheaper one was chosen"
    )


def test_the_planned_backbones_measurements_are_found(three: Survey) -> None:
    for m in three.measured:
        decided = replace(three.plan(), backbone=m.backbone.name, size_px=SIZE_PX)
        assert three.of(decided) is m


@pytest.mark.parametrize(
    ("top1", "chosen", "rival"),
    [
        # Accuracies of the best cuts: small 0.9, large 0.8, blind 0.3 (below).
        ((None, None, None), "small", "large"),  # the next most accurate
        ((None, None, None), "large", "small"),
        ((0.5, 0.6, 0.7), "small", "blind"),  # the one that ranks best, however poor its probe
        ((0.5, 0.6, 0.7), "blind", "small"),  # that one is planned: the most accurate of the others
        ((None, None, 0.1), "small", "blind"),
        ((0.5, 0.7, 0.7), "small", "large"),  # equal ranks: the more accurate one
        ((0.5, 0.7, 0.7), "large", "small"),
    ],
)
def test_the_rival_is_the_best_ranked_one_else_the_next_most_accurate(
    three: Survey, top1: tuple[float | None, ...], chosen: str, rival: str
) -> None:
    order = ["small", "large", "blind"]
    accuracy = {"small": 0.9, "large": 0.8, "blind": 0.3}
    by_name = {m.backbone.name: m for m in three.measured}
    scores = tuple(
        tuple(replace(s, accuracy=accuracy[name]) for s in three.scores[three.measured.index(by_name[name])])
        for name in order
    )
    seen = Survey(tuple(by_name[name] for name in order), (), top1, 0.0, 0)
    seen.__dict__["scores"] = scores  # in place of the measured ones
    found = seen.rival(replace(three.plan(), backbone=chosen, size_px=SIZE_PX))
    assert found is not None
    assert found.backbone.name == rival


def test_one_backbone_alone_has_no_rival(shelf: Shelf, photos: Path, tmp_path: Path) -> None:
    seen = survey.measure(photos, backbone="small", cache=tmp_path / "cache")
    assert seen.rival(seen.plan()) is None


def test_the_plan_is_decided_over_all_places(three: Survey) -> None:
    assert three.plan(delta=0.05) == plan.decide(*three.evidences, delta=0.05)
    places = plan.places(three.evidences)
    assert len(places) == 6
