"""Backbones are found by name, prepared as their library says, and filled with the right weights or none."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision import models
from torchvision.transforms import InterpolationMode

from topwork import images, zoo
from topwork.engine import Engine, normalisation
from topwork.errors import MissingError, TopworkError, UsageError
from topwork.records import Preprocessing
from topwork.zoo import weights

SHARED = Path(__file__).parents[2] / "shared"
REAL = SHARED / "weights"
NOWHERE = "http://127.0.0.1:9/"
"""Port 9 (discard) is closed on every machine of today: a connection is refused at once."""

Tensors = dict[str, Tensor]
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real weights of ../shared are not here")


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of this file may leave the machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6} and address[0] not in {"127.0.0.1", "::1"}:
            raise OSError(f"this test may not reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", local_names(socket.getaddrinfo))


def local_names(resolve: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in {"127.0.0.1", "::1", "localhost"}:
            raise socket.gaierror(f"this test may not look up {host}")
        return resolve(host, *args, **kwargs)

    return guarded


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for torch.hub's downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@cache
def random_weights(name: str, seed: int = 0) -> Tensors:
    """A state dict for a network: every float random, small, and none of them the network's own start value."""
    with torch.device("meta"):
        network = zoo.find(name).build()
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.rand(v.shape, generator=generator) * 0.1 + 0.01 if v.is_floating_point() else torch.tensor(7)
        for k, v in network.state_dict().items()
    }


def features_only(name: str, classifier: str) -> Tensors:
    return {k: v for k, v in random_weights(name).items() if not k.startswith(classifier)}


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
    monkeypatch.setattr(weights, "download", lambda *_: pytest.fail("fetched"))
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


# ---- reading files


WRAPPERS = ["state_dict", "model_state_dict", "model", "state_dict_ema"]


def write(kind: str, tensors: Tensors, folder: Path) -> Path:
    """The same tensors as every kind of file that people have."""
    if kind == "safetensors":
        save_file(tensors, folder / "w.safetensors")
        return folder / "w.safetensors"
    path = folder / "w.pth"
    if kind in WRAPPERS:
        torch.save({"epoch": 3, kind: tensors, "optimizer": {"state": {}}}, path)
    elif kind == "DataParallel":
        torch.save({f"module.{k}": v for k, v in tensors.items()}, path)
    elif kind == "PyTorch 1.5 and older":
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "DataParallel", "PyTorch 1.5 and older", *WRAPPERS])
def test_every_kind_of_file_gives_the_same_tensors(kind: str, tmp_path: Path) -> None:
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "module_list.0.bias": torch.ones(2, dtype=torch.float16)}
    got = weights.read(write(kind, tensors, tmp_path))
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)


def test_dataparallels_prefix_is_taken_off_safetensors_too(tmp_path: Path) -> None:
    save_file({"module.a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert weights.read(tmp_path / "w.safetensors").keys() == {"a"}


@pytest.mark.parametrize("name", ["w.SAFETENSORS", "pytorch_model.bin"])
def test_safetensors_are_known_by_their_content(name: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / name)
    assert weights.read(tmp_path / name).keys() == {"a"}


class Malicious:
    """An object whose unpickling would write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("inside", ["torch file", "beside tensors", "plain pickle", "old torch file"])
def test_a_malicious_pickle_is_not_run(inside: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "was-here", tmp_path / "evil.pth"
    evil = Malicious(marker)
    if inside == "plain pickle":
        path.write_bytes(pickle.dumps(evil))
    elif inside == "beside tensors":
        torch.save({"state_dict": {"a": torch.ones(2)}, "extra": evil}, path)
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=inside == "torch file")
    with pytest.raises(UsageError, match=r"evil\.pth: holds more than tensors.*state_dict\(\) alone"):
        weights.read(path)
    assert not marker.exists()
    if inside == "plain pickle":  # the trap itself works
        pickle.loads(path.read_bytes())
        assert marker.exists()


def test_a_malicious_file_in_torchs_cache_is_not_run(torch_home: Path, tmp_path: Path) -> None:
    torch_home.mkdir(parents=True)
    torch.save({"a": Malicious(tmp_path / "was-here")}, torch_home / "net-00000000.pth")
    with pytest.raises(MissingError):
        weights.download(NOWHERE + "net-00000000.pth", "net")
    assert not (tmp_path / "was-here").exists()


def test_nobody_is_told_to_switch_the_safety_off(tmp_path: Path) -> None:
    """torch's own message recommends weights_only=False, and colours it with escape codes."""
    torch.save({"a": Malicious(tmp_path / "was-here")}, tmp_path / "evil.pth")
    with pytest.raises(UsageError) as caught:
        weights.read(tmp_path / "evil.pth")
    assert "will likely succeed" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"--weights .*absent\.pth: no such file") as caught:
        zoo.load(weights=tmp_path / "absent.pth", size_px=64)
    assert caught.value.exit_code == 4


def noise(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def whole(tensors: Tensors) -> bytes:
    buffer = BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


GARBAGE: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\x80",
    "page": b"<html>404 Not Found</html>",
    "text": b"to be or not to be " * 50,
    "noise": noise(5000),
    "cut short": whole({"a": torch.ones(99)})[:300],
    "pickle cut short": pickle.dumps({"a": [1.0] * 99})[:50],
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_is_a_usage_error(case: str, suffix: str, tmp_path: Path) -> None:
    path = (tmp_path / "w").with_suffix(suffix)
    path.write_bytes(GARBAGE[case])
    with pytest.raises(UsageError) as caught:
        weights.read(path)
    assert str(caught.value).startswith(f"--weights {path}: ")


@pytest.mark.parametrize("case", ["page", "text", "noise", "git-lfs pointer"])
def test_garbage_is_not_called_unsafe(case: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(GARBAGE[case])
    with pytest.raises(UsageError, match="cannot be read"):
        weights.read(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2], {"epoch": 3}, {}, {"state_dict": {}}], ids=str)
def test_a_file_without_named_tensors_is_a_usage_error(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="no state dict in it"):
        weights.read(tmp_path / "w.pth")


# ---- filling


def test_whole_weights_fill_the_whole_network(tmp_path: Path) -> None:
    path = write("safetensors", random_weights("squeezenet1_1"), tmp_path)
    backbone = zoo.load("squeezenet1_1", weights=path, size_px=64)
    assert backbone.source_classes == 1000
    assert backbone.weights == "w.safetensors"
    got = {k.split(".", 1)[1]: v for k, v in zoo._sequence(backbone.chain.segments).state_dict().items()}
    assert got.keys() == random_weights("squeezenet1_1").keys()
    for name, tensor in random_weights("squeezenet1_1").items():
        assert torch.equal(got[name], tensor), name


def test_features_alone_will_do(tmp_path: Path) -> None:
    path = write("safetensors", features_only("squeezenet1_1", "classifier"), tmp_path)
    backbone = zoo.load("squeezenet1_1", weights=path, size_px=64)
    assert backbone.source_classes == 0
    full = zoo.load("squeezenet1_1", weights=write("state dict", random_weights("squeezenet1_1"), tmp_path), size_px=64)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    last = full.cuts[-1].name
    with torch.inference_mode():
        assert torch.equal(backbone.prefix(last)(x), full.prefix(last)(x))


def test_a_classifier_of_another_task_is_left_out(tmp_path: Path) -> None:
    """Someone's own resnet18 with five classes: its features are used, its classes are not ImageNet's."""
    tensors = random_weights("resnet18") | {"fc.weight": torch.ones(5, 512), "fc.bias": torch.ones(5)}
    assert zoo.load("resnet18", weights=write("state dict", tensors, tmp_path), size_px=64).source_classes == 0


def test_auxiliary_heads_may_be_missing(tmp_path: Path) -> None:
    """Only training uses GoogLeNet's: without them the classifier is still whole."""
    backbone = zoo.load(
        "googlenet", weights=write("safetensors", features_only("googlenet", "aux"), tmp_path), size_px=64
    )
    assert backbone.source_classes == 1000


def test_half_precision_is_widened(tmp_path: Path) -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in random_weights("squeezenet1_1").items()}
    backbone = zoo.load("squeezenet1_1", weights=write("safetensors", halves, tmp_path), size_px=64)
    first = next(backbone.chain.segments[0].parameters())
    assert first.dtype == torch.float32
    assert torch.equal(first, halves["features.0.weight"].float())


def test_batch_counters_may_be_missing(tmp_path: Path) -> None:
    """Files from before PyTorch 0.4.1 have none, and inference uses none."""
    older = {k: v for k, v in random_weights("resnet18").items() if not k.endswith("num_batches_tracked")}
    assert zoo.load("resnet18", weights=write("safetensors", older, tmp_path), size_px=64).source_classes == 1000


def test_weights_of_another_network_name_a_tensor_that_is_missing(tmp_path: Path) -> None:
    path = write("safetensors", random_weights("squeezenet1_1"), tmp_path)
    with pytest.raises(UsageError) as caught:
        zoo.load("resnet18", weights=path, size_px=64)
    message = str(caught.value)
    assert message.startswith(f"{path}: these weights are not for ResNet: 100 of 120 tensors")
    assert "no bn1.bias" in message
    assert "it has classifier.1.bias" in message


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = random_weights("resnet18") | {"layer2.0.conv1.weight": torch.zeros(128, 64, 1, 1)}
    with pytest.raises(UsageError) as caught:
        zoo.load("resnet18", weights=write("state dict", tensors, tmp_path), size_px=64)
    assert "layer2.0.conv1.weight is (128, 64, 1, 1), expected (128, 64, 3, 3)" in str(caught.value)
    assert "1 of 120 tensors" in str(caught.value)


def test_one_missing_tensor_of_the_features_is_an_error(tmp_path: Path) -> None:
    """Left at its random start value, it would spoil everything without a word."""
    tensors = {k: v for k, v in random_weights("resnet18").items() if k != "layer4.1.bn2.running_var"}
    with pytest.raises(UsageError, match=r"no layer4\.1\.bn2\.running_var"):
        zoo.load("resnet18", weights=write("state dict", tensors, tmp_path), size_px=64)


def test_mnasnet_takes_its_weights(tmp_path: Path) -> None:
    """torchvision's MNASNet refuses a state dict that does not say its version."""
    path = tmp_path / "w.pth"
    torch.save(zoo.find("mnasnet0_5").build().state_dict(), path)
    assert zoo.load("mnasnet0_5", weights=path, size_px=64).source_classes == 1000


def densenets_file() -> Tensors:
    """Names as in torchvision's densenet121-a639ec97.pth: `norm.1` where the network of today has `norm1`.

    (torchvision/models/densenet.py, _load_state_dict, renames them on the way in.)
    """
    import re

    layer = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])\.")
    return {layer.sub(r"\1.\2.", k): v for k, v in random_weights("densenet121").items()}


@pytest.mark.slow
def test_densenet_takes_its_official_names(tmp_path: Path) -> None:
    path = write("safetensors", densenets_file(), tmp_path)
    assert "features.denseblock1.denselayer1.norm.1.weight" in load_file(path)
    assert zoo.load("densenet121", weights=path, size_px=64).source_classes == 1000


@pytest.mark.parametrize(
    "name", ["alexnet", "vgg11", "googlenet", "squeezenet1_1", "mobilenet_v3_small", "timm:repvgg_a0", "timm:resnet18d"]
)
def test_source_classes_is_the_width_of_the_output(name: str) -> None:
    with torch.device("meta"):
        network = zoo.find(name).build().eval()
        assert network(torch.empty(1, 3, 64, 64)).shape == (1, zoo._outputs(network))


# ---- fingerprints


def test_the_same_weights_have_the_same_name_at_every_start(tmp_path: Path) -> None:
    """Also in another process, where hashing and random numbers start differently."""
    save_file(random_weights("squeezenet1_1"), tmp_path / "whole.safetensors")
    save_file(features_only("squeezenet1_1", "classifier"), tmp_path / "features.safetensors")
    program = (
        "import sys; from pathlib import Path; from topwork import zoo\n"
        "for p in sys.argv[1:]: print(zoo.load('squeezenet1_1', weights=Path(p), size_px=64).fingerprint)"
    )
    paths = [tmp_path / "whole.safetensors", tmp_path / "features.safetensors"]
    here = [zoo.load("squeezenet1_1", weights=p, size_px=64).fingerprint for p in paths]
    again = [zoo.load("squeezenet1_1", weights=p, size_px=64).fingerprint for p in paths]
    there = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)],
        env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert here == again == there.stdout.split()
    assert here[0] != here[1]


def test_the_files_kind_and_name_do_not_matter(tmp_path: Path) -> None:
    names = set()
    for kind in ("safetensors", "DataParallel", "model"):
        (tmp_path / kind).mkdir()
        path = write(kind, random_weights("squeezenet1_1"), tmp_path / kind)
        names.add(zoo.load("squeezenet1_1", weights=path, size_px=64).fingerprint)
    assert len(names) == 1


def test_any_tensor_changes_the_fingerprint() -> None:
    tensors = dict(random_weights("squeezenet1_1"))
    names = {weights.fingerprint(tensors, "net")}
    for name, tensor in tensors.items():
        changed = tensor.clone()
        changed.view(-1)[-1] += 1e-6
        names.add(weights.fingerprint(tensors | {name: changed}, "net"))
    assert len(names) == 1 + len(tensors)


def test_shape_type_name_and_architecture_change_the_fingerprint() -> None:
    """Bytes alone would not do: these all hold the same ones."""
    zeros = torch.zeros(4)
    variants = [
        weights.fingerprint({"a": zeros}, "net"),
        weights.fingerprint({"a": zeros.reshape(2, 2)}, "net"),
        weights.fingerprint({"a": zeros.to(torch.int32)}, "net"),
        weights.fingerprint({"b": zeros}, "net"),
        weights.fingerprint({"a": zeros}, "other"),
    ]
    assert len(set(variants)) == len(variants)


def test_order_and_memory_layout_do_not_change_the_fingerprint() -> None:
    a, b = torch.randn(2, 3, 4, 5), torch.randn(3)
    first = weights.fingerprint({"a": a, "b": b}, "net")
    assert weights.fingerprint({"b": b, "a": a.to(memory_format=torch.channels_last)}, "net") == first
    assert len(first) == 32


def test_another_networks_fingerprint_differs_with_the_same_tensors(tmp_path: Path) -> None:
    """resnet50 and wide variants differ in shape; vgg16's features are a part of no other. Name and code go in."""
    one = zoo.load("resnet18", weights=write("safetensors", random_weights("resnet18"), tmp_path), size_px=64)
    two = zoo.load("timm:resnet18", weights=tmp_path / "w.safetensors", size_px=64)
    assert one.fingerprint != two.fingerprint


# ---- downloads


class Server(SimpleNamespace):
    """A local server: what it serves, and what it was asked for."""

    url: str
    files: dict[str, bytes]
    asked: list[str]
    fault: str | None


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server(files={}, asked=[], fault=None)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            body = served.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            if served.fault == "no HTTP":
                self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
                return
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            if served.fault == "chunk cut short":
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n" % len(body) + body[: len(body) // 2])
            else:
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if served.fault == "cut short" else body)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        served.url = f"http://127.0.0.1:{http.server_port}"
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield served
        http.shutdown()
        thread.join()


WANTED = whole({"a": torch.arange(5000.0)})
RIGHT = f"/net-{hashlib.sha256(WANTED).hexdigest()[:8]}.pth"


def test_a_download_with_the_right_hash_is_kept_and_used_again(server: Server, torch_home: Path) -> None:
    server.files[RIGHT] = WANTED
    assert torch.equal(weights.download(server.url + RIGHT, "net")["a"], torch.arange(5000.0))
    assert weights.cached_download(server.url + RIGHT) == torch_home / RIGHT[1:]
    assert (torch_home / RIGHT[1:]).read_bytes() == WANTED
    assert [p.name for p in torch_home.iterdir()] == [RIGHT[1:]]

    server.files.clear()
    assert weights.download(server.url + RIGHT, "net").keys() == {"a"}
    assert weights.download(NOWHERE + RIGHT[1:], "net").keys() == {"a"}  # offline
    assert server.asked == [RIGHT]


FAULTS = [
    "wrong hash",
    "not found",
    "cut short",
    "refused",
    "chunk cut short",
    "no HTTP",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_download_names_file_address_and_place_and_leaves_nothing(
    fault: str, server: Server, torch_home: Path
) -> None:
    path = "/net-00000000.pth" if fault == "wrong hash" else RIGHT
    server.files = {} if fault == "not found" else {path: WANTED}
    server.fault = fault
    url = (NOWHERE.rstrip("/") if fault == "refused" else server.url) + path
    with pytest.raises(MissingError) as caught:
        weights.download(url, "the-net")
    close(caught.value)
    message = str(caught.value)
    assert message.startswith("the weights of the-net are not at hand and could not be fetched (")
    assert f"file   {path[1:]}\n" in message
    assert f"from   {url}\n" in message
    assert f"to     {torch_home / path[1:]}\n" in message
    assert "--weights FILE" in message
    assert list(torch_home.iterdir()) == []  # neither the file nor a part of it


def close(error: BaseException) -> None:
    """urllib leaves the answer open in the error that tells of it."""
    if isinstance(error.__cause__, HTTPError):
        error.__cause__.close()


def test_the_reason_is_in_the_message(server: Server, torch_home: Path) -> None:
    with pytest.raises(MissingError, match="404") as caught:
        weights.download(server.url + RIGHT, "net")
    close(caught.value)
    with pytest.raises(MissingError, match="refused"):
        weights.download(NOWHERE + RIGHT[1:], "net")
    server.files["/net-00000000.pth"] = WANTED
    with pytest.raises(MissingError, match=r'invalid hash value .expected "00000000"'):
        weights.download(server.url + "/net-00000000.pth", "net")


@pytest.mark.parametrize("case", GARBAGE)
def test_a_broken_file_in_the_cache_is_missing_weights(case: str, torch_home: Path) -> None:
    torch_home.mkdir(parents=True)
    (torch_home / RIGHT[1:]).write_bytes(GARBAGE[case])
    with pytest.raises(MissingError, match=RIGHT[1:]):
        weights.download(NOWHERE + RIGHT[1:], "net")


def test_a_broken_file_in_the_cache_is_said_to_be_broken(torch_home: Path) -> None:
    """Putting it there is no help: it is there. It has to go first."""
    torch_home.mkdir(parents=True)
    (torch_home / RIGHT[1:]).write_bytes(WANTED[:300])
    with pytest.raises(MissingError, match=r"(?i)delete|remove"):
        weights.download(NOWHERE + RIGHT[1:], "net")


def test_a_download_leaves_standard_output_alone(
    server: Server, torch_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That is where --json goes."""
    server.files[RIGHT] = WANTED
    weights.download(server.url + RIGHT, "net")
    assert capsys.readouterr().out == ""


def test_a_torchvision_backbone_without_weights_is_missing(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = models.get_model_weights("resnet18").DEFAULT
    assert official.url.startswith("https://download.pytorch.org/")
    monkeypatch.setattr(official, "_value_", _moved(official.value, NOWHERE + "resnet18-f37072fd.pth"))
    assert not zoo.find("resnet18").at_hand()
    with pytest.raises(MissingError) as caught:
        zoo.load("resnet18", size_px=64)
    assert caught.value.exit_code == 4
    for part in ("resnet18-f37072fd.pth", NOWHERE, str(torch_home)):
        assert part in str(caught.value)


def _moved(value: Any, url: str) -> Any:
    from dataclasses import replace

    return replace(value, url=url)


def test_a_torchvision_backbone_takes_the_file_that_was_put_there(torch_home: Path) -> None:
    """As the message asks for: no network is touched then."""
    torch_home.mkdir(parents=True)
    torch.save(random_weights("resnet18"), torch_home / "resnet18-f37072fd.pth")
    assert zoo.find("resnet18").at_hand()
    backbone = zoo.load("resnet18", size_px=64)
    assert backbone.weights == "ResNet18_Weights.IMAGENET1K_V1"
    assert backbone.source_classes == 1000
    assert torch.equal(next(backbone.chain.segments[0].parameters()), random_weights("resnet18")["conv1.weight"])


def test_a_download_of_a_backbone_fills_it(server: Server, torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = whole(random_weights("squeezenet1_1"))
    path = f"/squeezenet1_1-{hashlib.sha256(body).hexdigest()[:8]}.pth"
    server.files[path] = body
    official = models.get_model_weights("squeezenet1_1").DEFAULT
    monkeypatch.setattr(official, "_value_", _moved(official.value, server.url + path))
    first = zoo.load("squeezenet1_1", size_px=64)
    assert zoo.find("squeezenet1_1").at_hand()
    assert zoo.load("squeezenet1_1", size_px=64).fingerprint == first.fingerprint
    assert server.asked == [path]


def test_a_timm_backbone_without_weights_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through timm and the hub's own client, which finds neither a cache nor a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert not zoo.find("timm:mobilenetv3_small_050").at_hand()
    with pytest.raises(MissingError) as caught:
        zoo.load("timm:mobilenetv3_small_050", size_px=64)
    for part in (
        "timm:mobilenetv3_small_050", "model.safetensors", "hf.co/timm/mobilenetv3_small_050.lamb_in1k",
        "the Hugging Face cache (HF_HOME moves it)", "--weights FILE",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_a_timm_backbone_is_at_hand_once_it_is_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is then loaded without a network. The folder is laid out as huggingface_hub does it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--timm--mobilenetv3_small_050.lamb_in1k"
    (home / "snapshots" / ("0" * 8)).mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 8)
    tensors = random_weights("timm:mobilenetv3_small_050")
    save_file(tensors, home / "snapshots" / ("0" * 8) / "model.safetensors")
    assert zoo.find("timm:mobilenetv3_small_050").at_hand()
    backbone = zoo.load("timm:mobilenetv3_small_050", size_px=64)
    assert backbone.source_classes == 1000
    assert backbone.weights == "mobilenetv3_small_050.lamb_in1k"
    assert torch.equal(next(backbone.chain.segments[0].parameters()), tensors["conv_stem.weight"])


def test_a_timm_network_without_published_weights_says_so() -> None:
    with pytest.raises(TopworkError, match=r"(?i)no pretrained weights") as caught:
        zoo.load("timm:mobilenetv3_large_075", size_px=64)
    assert "None" not in str(caught.value)


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
