"""Backbones are found by name, prepared as their library says, and filled with the right weights or none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
from topwork.watch import SILENT
from topwork.zoo import weights
from topwork.zoo.families import family
from topwork.zoo.names import owner

SHARED = Path(__file__).parents[2] / "shared"
REAL = SHARED / "weights"
Tensors = dict[str, Tensor]
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real weights of ../shared are not here")

pytestmark = pytest.mark.usefixtures("loopback_only")


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


# ---- tags


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "regnet_y_16gf", "vgg16"])
def test_every_tag_is_a_backbone_with_its_own_weights_and_preprocessing(name: str) -> None:
    for weights_of_it in models.get_model_weights(name):
        found, recipe = zoo.find(f"{name}.{weights_of_it.name}"), weights_of_it.transforms()
        assert (found.weights, found.origin) == (str(weights_of_it), weights_of_it.url)
        p = found.preprocessing
        assert (p.resize_px, p.crop_px) == (recipe.resize_size[0], recipe.crop_size[0])
        assert (p.mean, p.std) == (tuple(recipe.mean), tuple(recipe.std))
        assert p.interpolation == recipe.interpolation.value


def test_a_tag_is_the_same_in_upper_and_lower_case_and_the_defaults_is_left_out() -> None:
    """One backbone, one name: else its features would be kept twice."""
    assert zoo.find("resnet50.IMAGENET1K_V1").name == "resnet50.imagenet1k_v1"
    assert zoo.find("resnet50.imagenet1k_v2").name == "resnet50"
    assert zoo.find("resnet50").weights == "ResNet50_Weights.IMAGENET1K_V2"


@pytest.mark.parametrize("wrong", ["resnet50.v1", "resnet50.", "resnet50.a1_in1k", "resnet50.imagenet1k"])
def test_a_wrong_tag_is_answered_with_those_that_exist(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"resnet50\.imagenet1k_v1, resnet50\.imagenet1k_v2"):
        zoo.find(wrong)


def test_every_listed_name_is_found_under_itself_and_no_weights_are_listed_twice() -> None:
    found = [zoo.find(name) for name in zoo.names()]
    assert [s.name for s in found] == zoo.names()
    assert len({s.weights for s in found}) == len(found)
    assert sum(len(models.get_model_weights(n)) for n in zoo.torchvision_names()) + len(LITE_NAMES) == len(found)


def test_a_skeleton_of_a_tagged_one_has_the_same_cuts() -> None:
    """What a saved model asks for."""
    tagged = zoo.find("resnet18.imagenet1k_v1")
    one = zoo.skeleton("resnet18.imagenet1k_v1", tagged.preprocessing.at(64))
    assert one.cuts == zoo.skeleton("resnet18", tagged.preprocessing.at(64)).cuts


# ---- facts


LITE_NAMES = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]


def test_the_facts_of_torchvisions_are_its_own() -> None:
    found = zoo.find("resnet50.imagenet1k_v1")
    assert (found.family, found.year, found.params, found.gflops) == ("ResNet", 2015, 25_557_032, 4.089)
    assert found.top1 == pytest.approx(0.7613)
    assert found.licence is None
    assert zoo.find("regnet_y_16gf.imagenet1k_swag_e2e_v1").licence == "cc-by-nc-4.0"


def test_an_accuracy_that_is_not_a_number_is_none() -> None:
    """torchvision lists VGG16's features, whose classifier is empty, with NaN."""
    assert zoo.find("vgg16.imagenet1k_features").top1 is None


@pytest.mark.parametrize("name", LITE_NAMES)
def test_the_written_facts_of_the_lites_are_those_of_the_built_network(name: str) -> None:
    source = zoo.find(name)
    whole = zoo.skeleton(name, source.preprocessing).chain
    assert source.params == whole.params
    assert source.gflops == pytest.approx(whole.macs / 1e9, abs=0.0006)
    assert 0.75 < source.top1 < 0.78


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:mobilenetv3_small_050", "timm:convnext_atto"])
def test_the_cost_of_others_is_counted_as_the_cuts_count_it(name: str) -> None:
    source = zoo.find(name)
    assert (source.params, source.gflops, source.top1) == (None, None, None)
    whole = zoo.skeleton(name, source.preprocessing).chain
    params, gflops = zoo.cost(source)
    assert params == sum(p.numel() for p in source.build().parameters())
    assert gflops == pytest.approx(whole.macs / 1e9, rel=1e-6)


def test_every_torchvision_network_has_a_family_with_a_year() -> None:
    for name in zoo.names():
        found = zoo.find(name)
        assert found.year is not None, name
        assert 2012 <= found.year <= 2022, name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("efficientnet_b0", ("EfficientNet", 2019)),
        ("efficientnet_v2_s", ("EfficientNetV2", 2021)),
        ("timm:tf_efficientnet_lite3.in1k", ("EfficientNet-Lite", 2020)),
        ("timm:tf_efficientnetv2_b0", ("EfficientNetV2", 2021)),
        ("wide_resnet50_2", ("Wide ResNet", 2016)),
        ("timm:resnext50_32x4d.a1_in1k", ("ResNeXt", 2016)),
        ("timm:resnetv2_50x1_bit", ("ResNet V2", 2016)),
        ("timm:seresnet50.a1_in1k", ("SENet", 2017)),
        ("timm:legacy_senet154", ("SENet", 2017)),
        ("timm:xyz_small", ("xyz", None)),
        ("timm:7up", ("7up", None)),
    ],
)
def test_a_family_is_read_from_the_longest_beginning_that_fits(name: str, expected: tuple[str, int | None]) -> None:
    assert family(name) == expected


# ---- folders of weights


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("resnet50.pth", "resnet50"),
        ("ResNet50.SAFETENSORS", "resnet50"),
        ("resnet50_features.fp16.safetensors", "resnet50"),
        ("resnet50-mine.pt", "resnet50"),
        ("resnet50.imagenet1k_v1.bin", "resnet50.imagenet1k_v1"),
        ("resnet50.imagenet1k_v2.bin", "resnet50"),
        ("resnet50-0676ba61.pth", "resnet50.imagenet1k_v1"),  # as torchvision publishes them
        ("resnet50-11ad3fa6.pth", "resnet50"),
        ("vgg16_features-amdegroot-88682ab5.pth", "vgg16.imagenet1k_features"),
        ("vgg16_bn-mine.pth", "vgg16_bn"),
        ("vgg16-mine.pth", "vgg16"),
        ("wide_resnet50_2-mine.pth", "wide_resnet50_2"),
        ("efficientnet-lite1-77cc7160.pth", "efficientnet_lite1"),  # as in its package
        ("timm-resnet18.a1_in1k.fp16.safetensors", "timm:resnet18.a1_in1k"),
        ("timm:resnet18.pth", "timm:resnet18.a1_in1k"),  # its default
        ("timm-resnet18d.pth", "timm:resnet18d.ra2_in1k"),
        ("resnet50d.pth", None),
        ("myresnet50.pth", None),
        ("resnet50.txt", None),
        ("resnet50", None),
        ("timm-xyzzy.pth", None),
        ("notes.pth", None),
    ],
)
def test_a_files_name_says_whose_weights_it_holds(file: str, expected: str | None) -> None:
    assert owner(file) == expected


def test_official_names_are_their_own_backbones() -> None:
    for name in zoo.names():
        assert owner(Path(zoo.find(name).origin).name) in {name, None if name in LITE_NAMES else name}
        assert owner(f"{name}.safetensors") == name


def test_a_folder_serves_the_backbones_whose_files_it_holds(tmp_path: Path, torch_home: Path) -> None:
    save_file(random_weights("squeezenet1_1"), tmp_path / "squeezenet1_1.mine.safetensors")
    by_folder = zoo.load("squeezenet1_1", weights=tmp_path, size_px=64)
    by_file = zoo.load("squeezenet1_1", weights=tmp_path / "squeezenet1_1.mine.safetensors", size_px=64)
    assert (by_folder.weights, by_folder.fingerprint) == (by_file.weights, by_file.fingerprint)
    found = zoo.find("squeezenet1_1", tmp_path)
    assert found.at_hand()
    assert (found.weights, found.licence) == ("squeezenet1_1.mine.safetensors", None)
    # Another network is still its library's.
    assert zoo.find(zoo.EMBEDDED, tmp_path).weights == zoo.find(zoo.EMBEDDED).weights
    assert not zoo.find("resnet18", tmp_path).at_hand()


def test_the_file_called_just_as_the_backbone_goes_before_others(tmp_path: Path) -> None:
    for file in ("resnet18-old.pth", "resnet18.pth", "resnet18_best.safetensors"):
        (tmp_path / file).touch()
    assert zoo.find("resnet18", tmp_path).weights == "resnet18.pth"
    (tmp_path / "resnet18.bin").touch()
    with pytest.raises(UsageError, match=r"resnet18\.bin and resnet18\.pth are both for resnet18"):
        zoo.find("resnet18", tmp_path)
    assert zoo.find("resnet34", tmp_path).weights.startswith("ResNet34_Weights")  # not concerned


def test_one_of_timms_without_a_tag_takes_the_file_of_its_default_tag(tmp_path: Path) -> None:
    (tmp_path / "timm-resnet18.a1_in1k.pth").touch()
    assert zoo.find("timm:resnet18", tmp_path).weights == "timm-resnet18.a1_in1k.pth"
    assert zoo.find("timm:resnet18.a1_in1k", tmp_path).weights == "timm-resnet18.a1_in1k.pth"
    assert zoo.find("timm:resnet18.a2_in1k", tmp_path).weights == "resnet18.a2_in1k"


def test_a_lites_file_may_be_called_and_filled_by_either_librarys_names(tmp_path: Path) -> None:
    """The package's own file, and the same tensors under timm's names."""
    source = zoo.find("efficientnet_lite1")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "efficientnet-lite1-77cc7160.pth").symlink_to(source.pull(SILENT))
    save_file({k: v.contiguous() for k, v in source.fetch().items()}, tmp_path / "efficientnet_lite1.safetensors")
    names = {
        zoo.load("efficientnet_lite1", weights=place, size_px=64).fingerprint
        for place in (None, tmp_path, tmp_path / "package")
    }
    assert len(names) == 1


def test_weights_that_are_not_numbers_are_no_weights(tmp_path: Path) -> None:
    """In the classifier (as in torchvision's VGG16 features) it is left out; anywhere else the file is refused."""
    tensors = random_weights("squeezenet1_1")
    last = {k: torch.full_like(v, torch.nan) for k, v in tensors.items() if k.startswith("classifier")}
    save_file(tensors | last, tmp_path / "w.safetensors")
    assert zoo.load("squeezenet1_1", weights=tmp_path / "w.safetensors", size_px=64).source_classes == 0
    save_file(tensors | {"features.0.bias": torch.full((64,), torch.inf)}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"features\.0\.bias holds values that are not finite"):
        zoo.load("squeezenet1_1", weights=tmp_path / "w.safetensors", size_px=64)


# ---- what is at hand


def test_at_hand_are_packages_caches_and_the_folder(
    tmp_path: Path, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub, mine = tmp_path / "hub", tmp_path / "mine"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    assert zoo.at_hand() == LITE_NAMES
    torch_home.mkdir(parents=True)
    for file in ("resnet50-0676ba61.pth", "vgg11-8a719046.pth", "resnet18-f37072fd.pth.part"):
        (torch_home / file).touch()
    for repo in ("models--timm--resnet18.a1_in1k", "models--someone--resnet18"):
        snapshot = hub / repo / "snapshots" / ("0" * 8)
        snapshot.mkdir(parents=True)
        (hub / repo / "refs").mkdir()
        (hub / repo / "refs" / "main").write_text("0" * 8)
        (snapshot / "model.safetensors").touch()
    (hub / "models--timm--resnet34.a1_in1k").mkdir()  # begun, without weights
    mine.mkdir()
    for file in ("mobilenet_v2.pth", "timm-resnet26.pth", "PROVENANCE.md", ".resnet34.pth"):
        (mine / file).touch()
    assert zoo.at_hand() == [*LITE_NAMES, "resnet50.imagenet1k_v1", "vgg11", "timm:resnet18.a1_in1k"]
    listed = zoo.at_hand(mine)
    assert set(listed) - set(zoo.at_hand()) == {"mobilenet_v2", "timm:resnet26.bt_in1k"}
    assert all(zoo.find(name, mine).at_hand() for name in listed)


@pytest.mark.slow
def test_what_is_at_hand_is_said_without_importing_timm(tmp_path: Path) -> None:
    program = "import sys; from topwork import zoo; zoo.at_hand(); print('timm' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"HF_HOME": str(tmp_path)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert said.stdout.strip() == "False"


# ---- preprocessing stated beside the weights


def beside(folder: Path, facts: object, name: str = "resnet50") -> Preprocessing:
    (folder / f"{name}.mine.pth").touch()
    (folder / f"{name}.mine.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    return zoo.find(name, folder).preprocessing


def test_fields_beside_the_weights_replace_the_librarys(tmp_path: Path) -> None:
    from dataclasses import asdict, replace

    library = zoo.find("resnet50").preprocessing  # 232, 224, bilinear
    assert beside(tmp_path, {}) == library
    assert beside(tmp_path, {"interpolation": "bicubic"}) == replace(library, interpolation="bicubic")
    assert beside(tmp_path, {"crop_px": 112}) == library.at(112)
    other = Preprocessing(300, 280, "lanczos", (0.1, 0.2, 0.3), (1.0, 0.5, 0.25), squash=True)
    assert beside(tmp_path, asdict(other)) == other
    assert zoo.find("resnet50", tmp_path / "resnet50.mine.pth").preprocessing == other


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "dm_nfnet_f0.dm_in1k", "inception_v3.tf_in1k"])
def test_timms_own_config_beside_the_weights_is_understood(name: str, tmp_path: Path) -> None:
    """As config.json in its repositories has it, among much else."""
    import timm

    config = {k: v for k, v in timm.get_pretrained_cfg(name).to_dict().items() if v is not None}
    got = beside(tmp_path, {"architecture": "resnet50", "num_classes": 1000, "pretrained_cfg": config})
    assert got == zoo.find(f"timm:{name}").preprocessing


def test_a_part_of_timms_config_leaves_the_rest_to_the_library(tmp_path: Path) -> None:
    library = zoo.find("resnet50").preprocessing
    assert beside(tmp_path, {"pretrained_cfg": {"input_size": [3, 448, 448]}}) == library.at(448)
    got = beside(tmp_path, {"pretrained_cfg": {"crop_pct": 0.875}})
    assert (got.resize_px, got.crop_px) == (256, 224)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ("not JSON", "expected a JSON object"),
        ([1, 2], "expected a JSON object"),
        ({"resize": 256}, "unknown field 'resize'"),
        ({"resize_px": "256"}, "resize_px"),
        ({"crop_px": True}, "crop_px"),
        ({"crop_px": 8}, "crop_px: expected 32 to 1024"),
        ({"resize_px": 100}, "resize_px: expected at least crop_px"),
        ({"mean": [0.5, 0.5]}, "mean"),
        ({"mean": [123.7, 116.3, 103.5]}, "scaled to 0..1"),
        ({"std": [0, 1, 1]}, "std: expected three numbers above 0"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"squash": 1}, "squash"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode: expected center or squash"),
        ({"pretrained_cfg": {"crop_pct": 0}}, "crop_pct: expected a share"),
        ({"pretrained_cfg": {"crop_pct": "0.9"}}, "crop_pct: expected a share"),
        ({"pretrained_cfg": {"input_size": [3, 224, 192]}}, "input_size: expected"),
        ({"pretrained_cfg": {"input_size": 224}}, "input_size: expected"),
        ({"pretrained_cfg": {"input_size": [3, "224", "224"]}}, "crop_px"),
        ({"pretrained_cfg": {"interpolation": "random"}}, "interpolation"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_file_and_field(facts: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        beside(tmp_path, facts)
    assert str(caught.value).startswith(f"{tmp_path / 'resnet50.mine.json'}: ")
    assert reason in str(caught.value)


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
    name: str, file: str, expected: float, imagenet_top1: Callable[[zoo.Backbone], float], tmp_path: Path
) -> None:
    """Within a point. Measured there with resize 256 and Pillow's bicubic; torchvision states another filter for
    its own weights of these two. These are other people's: their preprocessing stands beside them."""
    (tmp_path / file).symlink_to(REAL / file)
    (tmp_path / file).with_suffix(".json").write_text('{"interpolation": "bicubic", "resize_px": 256}')
    backbone = zoo.load(name, weights=tmp_path)
    assert backbone.source_classes == 1000
    assert imagenet_top1(backbone) == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(("name", "expected"), [("efficientnet_lite1", 0.888), ("efficientnet_lite2", 0.888)])
def test_the_packages_weights_classify_as_measured(
    name: str, expected: float, imagenet_top1: Callable[[zoo.Backbone], float]
) -> None:
    """For all 1000 photographs 89.9 and 90.8% are stated (PROVENANCE.md). The 250 that are here are a sample of
    them, with a standard error of 2 points: what was measured on them is held to within a point."""
    backbone = zoo.load(name)
    assert backbone.source_classes == 1000
    assert imagenet_top1(backbone) == pytest.approx(expected, abs=0.01)


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
