"""Where did it look: maps add up to scores, come from the model and nothing else, and show what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.stats import spearmanr
from torch import nn

from conftest import as_backbone, tiny_network
from test_architecture import loaded_by
from topwork import explanation, images
from topwork.answers import Seen
from topwork.errors import ImageError, UsageError
from topwork.explanation import FOR, GRID, explain, moved, places
from topwork.model import Model, create
from topwork.records import Estimate, ModelFacts, Preprocessing
from topwork.zoo import Backbone

PLAIN = Preprocessing(32, 32, "bilinear", (0.45, 0.45, 0.45), (0.25, 0.25, 0.25))
CLASSES = ("ash", "beech", "cedar")


def facts(backbone: str = "made", taps: tuple[str, ...] = ("one",), channels: int = 4, **changes: Any) -> ModelFacts:
    given = ModelFacts(
        1, "0", backbone, "0", taps[-1], taps, PLAIN, CLASSES, 1.0, channels, "ridge", 1.0,
        Estimate(0.5, 0.4, 0.6, 10, "test"), {},
    )  # fmt: skip
    return replace(given, **changes)


def pooled(maps: tuple[NDArray[np.float32], ...]) -> NDArray[np.float32]:
    return np.concatenate([f(x, axis=(2, 3)) for x in maps for f in (np.mean, np.max)], axis=1)


@dataclass
class Made:
    """A model without a network: it sees whatever it was given."""

    facts: ModelFacts
    head: tuple[NDArray[np.float32], NDArray[np.float32]]
    maps: tuple[NDArray[np.float32], ...]
    known: None = None

    def see(self, batch: NDArray[np.uint8]) -> Seen:
        both = pooled(self.maps)
        return Seen(both @ self.head[0] + self.head[1], both, self.maps)


def made(seed: int, shapes: list[tuple[int, int, int]], images: int = 2, **changes: Any) -> Made:
    rng = np.random.default_rng(seed)
    maps = tuple(np.maximum(rng.normal(size=(images, *shape)), 0).astype(np.float32) for shape in shapes)
    width = 2 * sum(shape[0] for shape in shapes)
    head = rng.normal(size=(width, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    return Made(facts(channels=width // 2, **changes), head, maps)


SEEN = np.zeros((2, 32, 32, 3), dtype=np.uint8)
shapes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 33), st.integers(1, 33)), min_size=1, max_size=3)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 99), shapes=shapes, several=st.booleans(), which=st.integers(0, 2))
def test_a_map_and_its_bias_are_the_score(
    seed: int, shapes: list[tuple[int, int, int]], several: bool, which: int
) -> None:
    """At one depth or at several, of any sizes; against the mean over the classes where an image has one label."""
    model = made(seed, shapes, multi_label=several)
    seen = model.see(SEEN)
    maps, bias = places(model, seen, np.array([which, 2 - which]))
    scores = seen.scores - (0 if several else seen.scores.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(
        maps.sum(axis=(1, 2)) + bias, scores[[0, 1], [which, 2 - which]], atol=2e-5 * max(1, np.abs(scores).max())
    )
    assert maps.shape[1:] == tuple(min(GRID, max(s[i] for s in shapes)) for i in (1, 2))


def slow(x: NDArray[np.float32], average: NDArray[Any], largest: NDArray[Any]) -> NDArray[np.float64]:
    """One image's map by Shapley's definition: what each place adds, mean over all orders in which they may come."""
    channels, h, w = x.shape
    places = list(range(h * w))
    orders = list(permutations(places))
    total = np.zeros(h * w)
    for c in range(channels):
        values = x[c].ravel()

        def score(there: tuple[int, ...], values: NDArray[Any] = values, c: int = c) -> float:
            """Of the head on this channel, where these places alone are there."""
            found = values[list(there)]
            return float(average[c] * found.sum() / (h * w) + largest[c] * found.max()) if there else 0.0

        for order in orders:
            for i, place in enumerate(order):
                total[place] += (score(order[: i + 1]) - score(order[:i])) / len(orders)
    return total.reshape(h, w)


def test_a_map_is_what_its_definition_says() -> None:
    model = made(3, [(4, 2, 3)], multi_label=True)
    model.maps[0][0, 2] = 1.5  # the same everywhere: the maximum is in all places
    model.maps[0][1, 1] -= 2.0  # networks without a ReLU before the cut have negative ones
    maps, _ = places(model, model.see(SEEN), np.array([1, 2]))
    for i, k in enumerate((1, 2)):
        weight = model.head[0][:, k]
        np.testing.assert_allclose(maps[i], slow(model.maps[0][i], weight[:4], weight[4:]), atol=1e-6)


def test_several_depths_are_their_sum() -> None:
    model = made(4, [(3, 8, 8), (5, 4, 4)])
    which = np.array([0, 2])
    both, _ = places(model, model.see(SEEN), which)
    alone = []
    for k, rows in ((0, slice(0, 6)), (1, slice(6, 16))):
        part = Made(model.facts, (model.head[0][rows], model.head[1]), (model.maps[k],))
        alone.append(places(part, part.see(SEEN), which)[0])
    np.testing.assert_allclose(both, alone[0] + np.kron(alone[1], np.full((2, 2), 0.25)), atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), step=st.integers(0, 6))
def test_what_moves_in_the_image_moves_in_the_map(seed: int, step: int) -> None:
    model = made(seed, [(4, 7, 7)])
    which = np.array([0, 1])
    rolled = Made(model.facts, model.head, (np.roll(model.maps[0], step, axis=3),))
    before, after = (places(m, m.see(SEEN), which)[0] for m in (model, rolled))
    np.testing.assert_allclose(np.roll(before, step, axis=2), after, atol=1e-6)


def test_without_weights_there_is_nothing_to_see() -> None:
    model = made(5, [(3, 4, 4), (2, 2, 2)])
    nothing = Made(model.facts, (np.zeros_like(model.head[0]), model.head[1]), model.maps)
    maps, bias = places(nothing, nothing.see(SEEN), np.array([0, 1]))
    assert not maps.any()
    np.testing.assert_allclose(bias, (model.head[1] - model.head[1].mean())[[0, 1]], atol=1e-6)


def test_what_speaks_for_all_classes_alike_changes_no_map() -> None:
    model = made(6, [(3, 4, 4)])
    more = model.head[0] + np.random.default_rng(0).normal(size=(6, 1)).astype(np.float32), model.head[1] + 7
    which = np.array([0, 1])
    moved_ = Made(model.facts, more, model.maps)
    for a, b in zip(places(model, model.see(SEEN), which), places(moved_, moved_.see(SEEN), which), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 99), h=st.integers(1, 40), w=st.integers(1, 40), rows=st.integers(1, 40),
    columns=st.integers(1, 40),
)  # fmt: skip
def test_another_grid_holds_as_much_and_keeps_it_where_it_was(
    seed: int, h: int, w: int, rows: int, columns: int
) -> None:
    maps = np.random.default_rng(seed).normal(size=(2, h, w))
    there = moved(maps, (rows, columns))
    np.testing.assert_allclose(there.sum(axis=(1, 2)), maps.sum(axis=(1, 2)), atol=1e-9)
    even = moved(np.full((1, h, w), 1 / (h * w)), (rows, columns))
    np.testing.assert_allclose(even, 1 / (rows * columns))
    np.testing.assert_allclose(moved(moved(maps, (3 * h, 2 * w)), (h, w)), maps, atol=1e-12)


# ----------------------------------------------------------------------------------------- with networks


def kept(backbone: Backbone, taps: tuple[str, ...], seed: int = 0, **changes: Any) -> Model:
    """A model with a random head at these cuts."""
    channels = sum(backbone.cuts[backbone.index(t)].channels for t in taps)
    rng = np.random.default_rng(seed)
    head = rng.normal(0, 0.3, (2 * channels, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    told = facts(backbone.name, taps, channels, preprocessing=backbone.preprocessing, **changes)
    return create(told, backbone, *head)


@pytest.mark.parametrize("taps", [("stem",), ("two",), ("four",), ("one", "four"), ("stem", "two", "four")])
def test_it_holds_for_a_network_cut_anywhere(taps: tuple[str, ...]) -> None:
    model = kept(as_backbone(tiny_network()), taps)
    batch = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    seen, which = model.see(batch), np.array([2, 0, 1])
    maps, bias = places(model, seen, which)
    scores = seen.scores - seen.scores.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)) + bias, scores[range(3), which], rtol=1e-4, atol=1e-4)


def picture(seed: int, side: int = 96) -> Image.Image:
    """Blobs and edges on several scales, and no two alike."""
    rng = np.random.default_rng(seed)
    layers = [ndimage.zoom(rng.normal(size=(n, n, 3)), (side / n, side / n, 1), order=1) for n in (3, 6, 12, 24)]
    return Image.fromarray(np.clip(127 + 45 * sum(layers), 0, 255).astype(np.uint8))


PICTURES = [picture(seed) for seed in range(8)]


def edges(model: Model, source: Image.Image, cls: str) -> NDArray[np.float64]:
    """What is no explanation: where the image has edges, whatever the model."""
    grey = np.asarray(source.convert("L"), dtype=float)
    return moved(ndimage.gaussian_gradient_magnitude(grey, 2)[None], (8, 8))[0]


def looked(model: Model, source: Image.Image, cls: str) -> NDArray[np.float64]:
    return explain(model, source, cls)[0].map.astype(float)


Looked = Callable[[Model, Image.Image, str], NDArray[np.float64]]


def likeness(before: Model, after: Model, how: Looked) -> float:
    """Spearman's rank correlation between the maps of two models, mean over images and classes."""
    return float(
        np.mean(
            [
                spearmanr(how(before, p, c).ravel(), how(after, p, c).ravel()).statistic
                for p in PICTURES
                for c in CLASSES
            ]
        )
    )


UNLIKE = 0.3
"""Likeness up to which two maps are taken for unrelated."""


@torch.no_grad()
def scrambled() -> Backbone:
    """The same network, the weights of each convolution shuffled."""
    network, draw = tiny_network(), torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            shuffled = module.weight.flatten()[torch.randperm(module.weight.numel(), generator=draw)]
            module.weight.copy_(shuffled.reshape(module.weight.shape))
    return as_backbone(network)


def likenesses(how: Looked) -> tuple[float, float, float]:
    """Between a model and itself; and one with another head; and one with other layers (Adebayo et al., 2018)."""
    backbone = as_backbone(tiny_network())
    model = kept(backbone, ("two",))
    return (
        likeness(model, kept(backbone, ("two",)), how),
        likeness(model, kept(backbone, ("two",), seed=1), how),
        likeness(model, kept(scrambled(), ("two",)), how),
    )


def test_a_map_comes_from_the_head_and_from_the_kept_layers() -> None:
    same, head, layers = likenesses(looked)
    assert same > 0.999
    assert abs(head) < UNLIKE and abs(layers) < UNLIKE


def test_this_finds_out_what_comes_from_the_image_alone() -> None:
    same, head, layers = likenesses(edges)
    assert same > 0.999
    assert not (abs(head) < UNLIKE or abs(layers) < UNLIKE)


# ------------------------------------------------------------------------------------------ of one image


@pytest.fixture(scope="module")
def model() -> Model:
    return kept(as_backbone(tiny_network()), ("two",))


def test_it_explains_the_answer_unless_asked_for_another_class(model: Model, tmp_path: Path) -> None:
    PICTURES[0].save(tmp_path / "a.png")
    (said,) = model.predict(tmp_path / "a.png")
    own, _ = explain(model, tmp_path / "a.png")
    assert own.prediction == said
    assert own.cls == said.label
    assert own.probability == said.probability
    other = next(c for c in CLASSES if c != said.label)
    asked, seen = explain(model, tmp_path / "a.png", other)
    assert asked.prediction == said
    assert asked.probability == said.probabilities[other]
    assert asked.score < own.score
    centred = seen.scores[0] - seen.scores[0].mean()
    assert asked.score == pytest.approx(centred[CLASSES.index(other)], abs=1e-4)
    assert asked.score == pytest.approx(asked.bias + asked.map.sum(), abs=1e-4)


def test_all_classes_together_speak_for_nothing(model: Model) -> None:
    maps = [explain(model, PICTURES[0], c)[0].map for c in CLASSES]
    np.testing.assert_allclose(sum(maps), 0, atol=1e-5)


def test_of_several_labels_the_most_probable_is_explained_though_it_was_not_given() -> None:
    strict = kept(as_backbone(tiny_network()), ("two",), multi_label=True, thresholds=(1.0, 1.0, 1.0))
    found, seen = explain(strict, PICTURES[0])
    assert found.prediction.labels == ()
    best = int(seen.scores[0].argmax())
    assert found.cls == CLASSES[best]
    assert found.score == pytest.approx(seen.scores[0, best], abs=1e-4)
    assert "no label" in " ".join(line for line, _ in explanation._legend(found, True))


def test_a_class_that_is_not_there_is_told_with_those_that_are_like_it(model: Model) -> None:
    with pytest.raises(UsageError, match="--class beach: the model has no such class; expected beech"):
        explain(model, PICTURES[0], "beach")


def test_what_is_no_image_is_told(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(ImageError):
        explain(model, tmp_path / "a.jpg")


# ------------------------------------------------------------------------------------------- the picture


def preprocessing(resize: int, crop: int, *, squash: bool = False) -> Preprocessing:
    return Preprocessing(resize, crop, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), squash)


@pytest.mark.parametrize(
    ("size", "given", "part"),
    [
        ((100, 100), preprocessing(32, 32), (0, 0, 1, 1)),
        ((200, 100), preprocessing(32, 32), (0.25, 0, 0.75, 1)),
        ((100, 200), preprocessing(64, 32), (0.25, 0.375, 0.75, 0.625)),
        ((300, 100), preprocessing(40, 40, squash=True), (0, 0, 1, 1)),
        ((100, 100), preprocessing(32, 64), (-0.5, -0.5, 1.5, 1.5)),
    ],
)  # fmt: skip
def test_what_the_network_sees_is_where_the_crop_is(
    size: tuple[int, int], given: Preprocessing, part: tuple[float, ...]
) -> None:
    assert images.seen_part(size, given) == pytest.approx(part)


@pytest.mark.parametrize("size", [(97, 40), (40, 97), (64, 64), (33, 200)])
def test_the_part_that_is_seen_gives_the_same_pixels(size: tuple[int, int]) -> None:
    """White within it, black around it: the network sees white alone."""
    given = preprocessing(20, 16)
    left, top, right, bottom = images.seen_part(size, given)
    canvas = np.zeros((size[1], size[0]), dtype=np.uint8)
    canvas[round(top * size[1]) : round(bottom * size[1]), round(left * size[0]) : round(right * size[0])] = 255
    seen = images.frame(Image.fromarray(canvas), given)
    assert seen[2:-2, 2:-2].min() == 255
    canvas = 255 - canvas
    assert images.frame(Image.fromarray(canvas), given)[2:-2, 2:-2].max() == 0


def test_what_speaks_for_it_is_orange_and_what_speaks_against_it_is_blue() -> None:
    grey = Image.new("RGB", (80, 80), (128, 128, 128))
    values = np.zeros((4, 4), dtype=np.float32)
    values[0, 0], values[3, 3] = 2.0, -1.0
    found = np.asarray(explanation.coloured(grey, values, (0, 0, 80, 80))).astype(int)
    assert found[0, 0, 0] - found[0, 0, 2] > 100
    assert found[79, 79, 2] - found[79, 79, 0] > 50
    assert np.ptp(found[40, 0]) == 0 or abs(found[40, 40]).ptp() < 20  # nothing there: grey
    assert np.abs(found[0, 0] - np.array(FOR)).max() < np.abs(found[0, 0] - 128).max()


@pytest.mark.parametrize("size", [(300, 200), (50, 400), (8, 8), (1000, 3)])
@pytest.mark.parametrize("cls", ["beech", "a class whose name is " + "very " * 30 + "long", "Ünïcode 木 بلوط"])
def test_every_image_and_every_name_makes_a_picture(model: Model, size: tuple[int, int], cls: str) -> None:
    classes = (CLASSES[0], cls, CLASSES[2])
    named = kept(as_backbone(tiny_network()), ("two",), classes=classes)
    drawn = explain(named, PICTURES[1].resize(size), cls)[0].overlay()
    assert drawn.mode == "RGB"
    assert drawn.width < 1100 and drawn.height < 800
    longer = max(size)
    panel = tuple(max(1, round(s * explanation.PANEL_PX / longer)) for s in size)
    assert drawn.width >= 2 * panel[0] and drawn.height > panel[1]


def test_what_was_not_seen_is_faded_and_the_rest_is_as_it_was(model: Model) -> None:
    wide = PICTURES[2].resize((960, 480))
    found = explain(model, wide)[0]
    left, gap = np.asarray(found.overlay()), explanation.GAP_PX
    panel = left[gap : gap + 240, gap : gap + 480].astype(int)
    plain = np.asarray(wide.resize((480, 240), Image.Resampling.BICUBIC)).astype(int)
    np.testing.assert_array_equal(panel[5:-5, 125:-125], plain[5:-5, 125:-125])
    assert (panel[:, :115] >= plain[:, :115]).all() and panel[:, :115].mean() > 190


def test_maps_and_pictures_need_no_pytorch() -> None:
    """What predicts without it can explain without it."""
    assert not loaded_by("import topwork.explanation") & {"torch", "torchvision", "timm", "sklearn", "scipy", "pyarrow"}


def test_the_model_need_not_be_of_pytorch() -> None:
    """Anything with facts, a head and what it sees."""
    made_ = made(7, [(4, 6, 6)], images=1)
    found, _ = explain(made_, PICTURES[0])
    assert found.map.shape == (6, 6)
