"""`topwork backbones` says what there is, what it costs and where its weights are; it downloads and times."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from conftest import Log, random_weights
from topwork import catalogue, cli, speed, zoo
from topwork.errors import UsageError

LITES = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
Call = Callable[..., SimpleNamespace]

pytestmark = pytest.mark.usefixtures("loopback_only", "empty_caches")


@pytest.fixture
def empty_caches(torch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing downloaded yet, by either library; gives where torch keeps what it downloads."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return torch_home


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Type `topwork backbones ARGUMENTS`."""

    def typed(*arguments: object, columns: int = 80) -> SimpleNamespace:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["topwork", "backbones", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return typed


def rows(said: SimpleNamespace) -> dict[str, dict[str, Any]]:
    assert said.code == 0, said.err
    return {row["name"]: row for row in json.loads(said.out)["backbones"]}


def test_it_lists_every_backbone_once_those_at_hand_first(call: Call, empty_caches: Path) -> None:
    empty_caches.mkdir(parents=True)
    (empty_caches / "resnet18-f37072fd.pth").touch()
    got = rows(call("--json"))
    assert sorted(got) == sorted(zoo.names())
    here = [*LITES, "resnet18"]
    assert list(got)[:4] == here
    assert [name for name, row in got.items() if row["at_hand"]] == here
    assert all(row["problem"] is None and row["ms_per_image"] is None for row in got.values())
    assert (got["efficientnet_lite0"]["input_px"], got["efficientnet_lite0"]["licence"]) == (224, "apache-2.0")


@pytest.mark.parametrize("columns", [80, 120])
def test_it_can_be_read_at_this_width(columns: int, call: Call) -> None:
    """No line is wider; every name can be read, and all but the longest can be copied, also at 80 columns."""
    said = call(columns=columns)
    assert said.code == 0
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= columns
    shown = {line.split()[0] for line in lines if line.strip()}
    short = {name for name in zoo.names() if columns > 80 or len(name) <= 30}
    assert short <= shown
    line = next(line for line in lines if line.startswith("resnet50 "))
    assert line.split() == ["resnet50", "25.6", "4.09", "224", "80.9", "pytorch.org"]
    heading = next(line for line in lines if line.startswith("ResNet "))
    assert heading.split() == ["ResNet", "2015"]


def test_no_network_is_built_for_the_list(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "get_model", lambda *_, **__: pytest.fail("built"))
    assert call("--json").code == 0
    assert call("--at-hand").code == 0


def test_names_restrict_the_list_and_tags_are_backbones(call: Call) -> None:
    got = rows(call("resnet50", "resnet50.IMAGENET1K_V1", "--json"))
    assert list(got) == ["resnet50", "resnet50.imagenet1k_v1"]
    assert got["resnet50"]["top1"] != got["resnet50.imagenet1k_v1"]["top1"]


def test_a_wrong_name_is_a_wrong_call(call: Call) -> None:
    said = call("resnet5O")
    assert said.code == 2
    assert "did you mean resnet50" in said.err


def test_timms_are_listed_on_demand_with_what_building_tells(call: Call) -> None:
    got = rows(call("--timm", "resnet18.a*", "--json"))
    assert {"resnet18", "timm:resnet18.a1_in1k"} <= got.keys()
    row = got["timm:resnet18.a1_in1k"]
    assert row["params"] == sum(p.numel() for p in models.resnet18().parameters())
    with FlopCounterMode(display=False) as counter:
        models.resnet18()(torch.zeros(1, 3, 224, 224))
    assert row["gflops"] == pytest.approx(counter.get_total_flops() / 2e9)
    assert (row["licence"], row["origin"], row["family"]) == ("apache-2.0", "hf.co/timm/resnet18.a1_in1k", "ResNet")
    assert "timm:" not in "".join(rows(call("--json")))


def test_at_hand_leaves_out_what_would_be_downloaded(call: Call, tmp_path: Path) -> None:
    save_file(random_weights("squeezenet1_1"), tmp_path / "squeezenet1_1.safetensors")
    got = rows(call("--at-hand", "--weights", tmp_path, "--json"))
    assert list(got) == [*LITES, "squeezenet1_1"]
    assert got["squeezenet1_1"]["origin"] == str(tmp_path / "squeezenet1_1.safetensors")
    assert list(rows(call("resnet50", "efficientnet_lite0", "--at-hand", "--json"))) == ["efficientnet_lite0"]


def test_pull_downloads_and_lists_just_these(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: list[str] = []
    monkeypatch.setattr(zoo, "pull", lambda name, watch: pulled.append(name))
    got = rows(call("--pull", "resnet18", "--pull", "vgg11", "--json"))
    assert pulled == list(got) == ["resnet18", "vgg11"]


def test_pull_without_a_network_says_where_the_weights_come_from(call: Call) -> None:
    said = call("--pull", "resnet18")
    assert said.code == 4
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in said.err


def test_measure_times_what_is_named_also_without_weights(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure", lambda backbone: speed.Speed(len(backbone.cuts), 1.5))
    got = rows(call("squeezenet1_1", "--measure", "--json"))["squeezenet1_1"]
    assert (got["at_hand"], got["ms_single"]) == (False, 1.5)
    assert got["ms_per_image"] == len(zoo.skeleton("squeezenet1_1", zoo.find("squeezenet1_1").preprocessing).cuts)
    said = call("squeezenet1_1", "--measure")
    assert "ms alone" in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_measure_leaves_out_what_is_neither_named_nor_at_hand(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    timed: list[str] = []
    monkeypatch.setattr(catalogue, "_network", lambda source, _: timed.append(source.name))
    monkeypatch.setattr(speed, "measure", lambda _: speed.Speed(1.0, 1.0))
    found = catalogue.backbones(measure=True, watch=log)
    assert timed == LITES
    assert (log.stages, log.steps) == ([("list", len(found))], len(found))


def test_what_cannot_be_used_is_listed_with_the_reason(call: Call, tmp_path: Path) -> None:
    """Weights of another network in the file, a network without cuts, images that topwork does not prepare."""
    save_file({"a": torch.ones(2)}, tmp_path / "squeezenet1_1.safetensors")
    said = call("squeezenet1_1", "--weights", tmp_path, "--measure", "--json")
    assert "not for SqueezeNet" in rows(said)["squeezenet1_1"]["problem"]
    got = rows(call("timm:vit_tiny_patch16_224", "--measure", "--json"))["timm:vit_tiny_patch16_224"]
    assert "no place where one feature map" in got["problem"]
    matching = rows(call("--timm", "vit_base_patch16_sapiens2*", "--json"))
    assert "does not prepare" in matching["timm:vit_base_patch16_sapiens2.fb"]["problem"]
    said = call("squeezenet1_1", "--weights", tmp_path, "--measure")
    assert said.code == 0
    assert "squeezenet1_1: " in said.out.replace("\n", " ")


def test_one_name_is_asked_for_like_a_list_of_one() -> None:
    assert catalogue.backbones("alexnet") == catalogue.backbones(["alexnet"])
    assert [e.name for e in catalogue.backbones("alexnet")] == ["alexnet"]


@pytest.mark.parametrize("name", ["nowhere", "weights.pth"])
def test_weights_that_are_no_folder_are_a_wrong_call(name: str, tmp_path: Path) -> None:
    """A file would pass for the weights of every network in the list."""
    (tmp_path / "weights.pth").touch()
    with pytest.raises(UsageError, match=rf"--weights .*{name}: no such folder"):
        catalogue.backbones(weights=tmp_path / name)


def test_two_files_for_one_backbone_are_a_wrong_call(tmp_path: Path) -> None:
    for file in ("resnet18-a.pth", "resnet18-b.pth"):
        (tmp_path / file).touch()
    with pytest.raises(UsageError, match=r"resnet18-a\.pth and resnet18-b\.pth are both for resnet18"):
        catalogue.backbones(["resnet18"], weights=tmp_path)


def test_the_time_is_the_middle_one_of_the_passes_after_the_first(
    lite: zoo.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first pass that is slow, and one that another program slowed down, leave the figure alone."""
    passes = {speed.BATCH: iter([9.0, 0.8, 5.0, 0.6]), 1: iter([9.0, 0.3, 0.1, 0.2])}

    class Timed:
        def __init__(self, segments: object, preprocessing: object) -> None:
            pass

        def see(self, batch: Any, *, logits: bool) -> SimpleNamespace:
            assert logits
            assert batch.shape[1:] == (lite.preprocessing.crop_px, lite.preprocessing.crop_px, 3)
            return SimpleNamespace(seconds=torch.tensor([next(passes[len(batch)])]))

    monkeypatch.setattr(speed, "Engine", Timed)
    measured = speed.measure(lite)
    assert measured.ms_per_image == pytest.approx(800 / speed.BATCH)
    assert measured.ms_single == pytest.approx(200)


def test_a_real_network_is_timed(lite: zoo.Backbone) -> None:
    measured = speed.measure(lite)
    assert measured.ms_per_image > 0
    assert measured.ms_single > 0
