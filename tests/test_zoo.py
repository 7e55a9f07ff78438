"""Backbones are found by name, prepared as their library says, and filled with the right weights or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models
from torchvision.transforms import InterpolationMode

from conftest import random_weights
from topwork import images, zoo
from topwork.engine import Engine, normalisation
from topwork.errors import UsageError
from topwork.records import Preprocessing
from topwork.zoo import weights

SHARED = Path(__file__).parents[2] / "shared"
REAL = SHARED / "weights"
NOWHERE = "http://127.0.0.1:9/"
"""Port 9 (discard) is closed on every machine of today: a connection is refused at once."""

Tensors = dict[str, Tensor]
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real weights of ../shared are not here")


# ---- names


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "timm:convnext_atto", "timm:resnet18.a1_in1k"])
def test_a_backbone_is_found_by_its_name(name: str) -> None:
    assert zoo.find(name).name == name


def test_the_embedded_one_is_the_default_and_always_at_hand() -> None:
    assert zoo.EMBEDDED == "efficientnet_lite0"
    assert zoo.find(zoo.EMBEDDED).at_hand()


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("resnet5O", "resnet50"),
        ("ResNet50", "resnet50"),
        ("vgg-16", "vgg16"),
        ("efficientnet-lite0", "efficientnet_lite0"),
        ("tf_efficientnet_lite0", "efficientnet_lite0"),
        ("timm:hrnet_w18_smal", "timm:hrnet_w18_small"),
        ("timm:convnext_ato", "timm:convnext_atto"),
    ],
)
def test_a_wrong_name_is_answered_with_near_ones(wrong: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        zoo.find(wrong)
    assert wrong.removeprefix("timm:") in str(caught.value)
    assert near in str(caught.value)


@pytest.mark.parametrize("wrong", ["", "timm:", "xyzzy", "timm:xyzzy", "vit_b_16", "timm:resnet18.xyzzy"])
def test_a_name_with_nothing_near_still_says_what_to_do(wrong: str) -> None:
    """torchvision's transformers are among them: they have no map to cut at."""
    with pytest.raises(UsageError) as caught:
        zoo.find(wrong)
    assert wrong.removeprefix("timm:") in str(caught.value)


def test_every_torchvision_name_is_found() -> None:
    """And every CNN that torchvision classifies with is among them."""
    names = zoo.torchvision_names()
    for name in names:
        found = zoo.find(name)
        assert found.weights.endswith(tuple(w.name for w in models.get_model_weights(name)))
    transformers = {n for n in models.list_models(module=models) if n.startswith(("vit", "swin", "maxvit"))}
    assert set(names) == set(models.list_models(module=models)) - transformers


# ---- preprocessing


def photo(height_px: int, width_px: int) -> Image.Image:
    """Waves of all lengths and a sharp edge: resizing with the wrong filter shows in every pixel."""
    y, x = np.mgrid[:height_px, :width_px] / 100
    waves = [
        np.sin(2 * np.pi * k * (x * (1 + c) + y)) + np.sin(2 * np.pi * k * (x - y)) for c, k in enumerate((3, 9, 27))
    ]
    pixels = 127 + 50 * np.stack(waves, axis=-1)
    pixels[height_px // 3 : height_px // 2, width_px // 4 :] = (250, 5, 120)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def normalised(picture: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """topwork's own way from a picture to the network's input: (3, h, w)."""
    scale, shift = normalisation(preprocessing)
    return (torch.from_numpy(images.load(picture, preprocessing).copy()).float() * scale + shift).permute(2, 0, 1)


GREY_LEVELS = 1.0
"""Both sides resize by Pillow, so the pixels agree; one level is left for rounding on either side."""


def apart(picture: Image.Image, preprocessing: Preprocessing, oracle: Callable[[Image.Image], Tensor]) -> float:
    """Largest difference in grey levels of 255 between topwork's input and the library's own."""
    ours, theirs = normalised(picture, preprocessing), oracle(picture)
    assert ours.shape == theirs.shape
    return float(((ours - theirs).abs() * 255 * torch.tensor(preprocessing.std)[:, None, None]).max())


@pytest.mark.parametrize(
    ("name", "interpolation"),
    [
        ("resnet50", "bilinear"),  # V2 weights: resize 232
        ("alexnet", "bilinear"),
        ("inception_v3", "bilinear"),  # 342, 299
        ("efficientnet_b0", "bicubic"),
        ("efficientnet_b4", "bicubic"),  # 384, 380
        ("efficientnet_v2_l", "bicubic"),  # mean and std 0.5
    ],
)
@pytest.mark.parametrize("size", [(300, 401), (613, 400)])
def test_torchvisions_preprocessing_is_its_weights_own(name: str, interpolation: str, size: tuple[int, int]) -> None:
    recipe = models.get_model_weights(name).DEFAULT.transforms()
    assert recipe.interpolation == InterpolationMode(interpolation)
    assert apart(photo(*size), zoo.find(name).preprocessing, recipe) <= GREY_LEVELS


@pytest.mark.parametrize(
    "name",
    [
        "resnet50.a1_in1k",  # crop_pct 0.95, bicubic
        "mobilenetv3_small_100.lamb_in1k",
        "tf_efficientnet_lite0.in1k",  # mean and std 0.5
        "inception_v3.tf_in1k",  # 299 / 0.875 is no whole number
        "convnext_tiny.in12k_ft_in1k_384",  # squash
        "dm_nfnet_f0.dm_in1k",  # squash with a margin: 192 / 0.9
        "hrnet_w18_small.ms_in1k",  # bilinear
    ],
)
@pytest.mark.parametrize("size", [(300, 401), (613, 400)])
def test_timms_preprocessing_is_its_weights_own(name: str, size: tuple[int, int]) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    oracle = create_transform(**config, is_training=False)
    preprocessing = zoo.find(f"timm:{name}").preprocessing
    assert preprocessing.squash == (config["crop_mode"] == "squash")
    assert apart(photo(*size), preprocessing, oracle) <= GREY_LEVELS


def test_the_embedded_ones_preprocessing_is_timms_for_the_same_network() -> None:
    """timm's weights of tf_efficientnet_lite0 come from the same TensorFlow checkpoint."""
    assert zoo.find(zoo.EMBEDDED).preprocessing == zoo.find("timm:tf_efficientnet_lite0.in1k").preprocessing


def test_another_filter_would_be_noticed() -> None:
    """The oracle tells bilinear from bicubic: the tolerance above is no free pass."""
    from dataclasses import replace

    recipe = models.get_model_weights("alexnet").DEFAULT.transforms()
    wrong = replace(zoo.find("alexnet").preprocessing, interpolation="bicubic")
    assert apart(photo(300, 401), wrong, recipe) > 5


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_googles_networks_are_built_as_with_their_weights(name: str) -> None:
    """Their weights expect inputs on -1..1: the network itself changes the scale, as torchvision builds it."""
    assert zoo.find(name).build().transform_input is True


# ---- input size


@pytest.mark.parametrize(("size_px", "resize_px"), [(64, 73), (224, 256), (448, 512)])
def test_the_input_size_keeps_the_margin_in_proportion(size_px: int, resize_px: int, tmp_path: Path) -> None:
    save_file(random_weights("squeezenet1_1"), tmp_path / "w.safetensors")
    backbone = zoo.load("squeezenet1_1", weights=tmp_path / "w.safetensors", size_px=size_px)
    assert (backbone.preprocessing.crop_px, backbone.preprocessing.resize_px) == (size_px, resize_px)
    assert backbone.cuts[0].height == (size_px - 3) // 2 + 1  # its first layer: 3 x 3, stride 2, no border


@pytest.mark.parametrize("size_px", [-1, 0, 31, 1025, 10**9])
def test_a_size_out_of_bounds_is_refused_before_any_weights_are_read(size_px: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"--size {size_px}: expected 32 to 1024 px"):
        zoo.load(size_px=size_px, weights=tmp_path / "absent.pth")


@pytest.mark.parametrize("size_px", [32, 1024])
def test_the_bounds_themselves_are_legal(size_px: int) -> None:
    assert zoo._sized(zoo.find("resnet18").preprocessing, size_px).crop_px == size_px


def test_a_network_that_is_too_deep_for_the_size_says_so(tmp_path: Path) -> None:
    """AlexNet's last pooling has nothing left at 32 px."""
    with pytest.raises(UsageError, match=r"AlexNet does not run on images of 32 x 32 px.*another --size"):
        zoo.load("alexnet", weights=tmp_path / "not-even-looked-at.pth", size_px=32)


# ---- the skeleton of a saved model


def test_a_skeleton_has_the_cuts_of_the_whole_and_no_weights(lite: zoo.Backbone) -> None:
    bare = zoo.skeleton(lite.name, lite.preprocessing)
    assert bare.cuts == lite.cuts
    assert bare.preprocessing == lite.preprocessing
    assert (bare.source_classes, bare.fingerprint) == (0, "none")
    name = lite.cuts[-1].name
    assert bare.prefix(name).state_dict().keys() == lite.prefix(name).state_dict().keys()
    assert not torch.equal(next(bare.prefix(name).parameters()), next(lite.prefix(name).parameters()))


def test_a_skeleton_fetches_nothing(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "pull", lambda *_: pytest.fail("fetched"))
    assert zoo.skeleton("resnet18", zoo.find("resnet18").preprocessing.at(64)).cuts
    assert not torch_home.exists()


def test_a_cut_that_is_not_there_is_answered_with_those_that_are(lite: zoo.Backbone) -> None:
    with pytest.raises(UsageError) as caught:
        lite.prefix("layer9")
    assert all(cut.name in str(caught.value) for cut in lite.cuts)


def test_the_facts_are_the_backbones_own(lite: zoo.Backbone) -> None:
    facts = lite.facts
    assert (facts.name, facts.fingerprint, facts.cuts) == (lite.name, lite.fingerprint, lite.cuts)
    assert facts.params == sum(p.numel() for p in zoo.find(lite.name).build().parameters())
    assert facts.source_classes == 1000


# ---- real weights


CLASSIFIERS = [
    # Top-1 on the 250 images, from ../shared/weights/PROVENANCE.md.
    ("mobilenet_v2", "mobilenet_v2.fp16.safetensors", 0.764),
    ("squeezenet1_1", "squeezenet1_1.safetensors", 0.620),
]
FEATURES = [
    ("vgg19", "vgg19_features.fp16.safetensors"),
    ("resnet50", "resnet50_features.fp16.safetensors"),
]


@real
@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(("name", "file", "expected"), CLASSIFIERS)
def test_real_weights_classify_as_well_as_stated(
    name: str, file: str, expected: float, imagenet_top1: Callable[[zoo.Backbone], float]
) -> None:
    """Within a point. Measured there with Pillow's bicubic resize; torchvision states bilinear for these two,
    and the weights are other people's: so the filter is set here, and the rest is the zoo's own."""
    from dataclasses import replace

    backbone = zoo.load(name, weights=REAL / file)
    assert backbone.source_classes == 1000
    stated = replace(backbone.preprocessing, resize_px=256, interpolation="bicubic")
    assert imagenet_top1(replace(backbone, preprocessing=stated)) == pytest.approx(expected, abs=0.01)


@real
@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(("name", "file"), FEATURES)
def test_real_features_fill_every_layer_before_the_classifier(name: str, file: str) -> None:
    backbone = zoo.load(name, weights=REAL / file)
    assert backbone.source_classes == 0
    state = backbone.prefix(backbone.cuts[-1].name).state_dict()
    own = {k.split(".", 1)[1]: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    with safe_open(REAL / file, "pt") as stored:
        assert own.keys() == {k for k in stored.keys() if not k.endswith("num_batches_tracked")}  # noqa: SIM118
        for tensor, value in own.items():
            assert torch.equal(value, stored.get_tensor(tensor).float()), tensor
    batch = np.stack([images.load(photo(300, 401), backbone.preprocessing)])
    seen = Engine(backbone.chain.segments, backbone.preprocessing).see(batch, logits=False)
    for pooled in seen.pooled:
        assert np.isfinite(pooled.astype(np.float32)).all()
        assert np.ptp(pooled.astype(np.float32)) > 0
