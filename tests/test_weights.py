"""Weights are read without running anything, fill all of a network or none of it, and name what they are."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import GARBAGE, Malicious, Tensors, features_only, random_weights
from topwork import zoo
from topwork.errors import MissingError, UsageError
from topwork.zoo import weights

pytestmark = pytest.mark.usefixtures("loopback_only")


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
