"""The rules by which a network is cut; tests/test_contract.py holds whole families of networks to them."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from topwork.errors import BackboneError, UsageError
from topwork.zoo import Backbone
from topwork.zoo.cuts import _post_dominators, chain
from topwork.zoo.sources import find


def names(backbone: str) -> list[str]:
    with torch.device("meta"):
        network = find(backbone).build()
    return [cut.name for cut in chain(network.to_empty(device="cpu"), 64).cuts]


def test_resnet18_is_cut_at_its_blocks() -> None:
    assert names("resnet18") == ["relu", *(f"layer{s}.{b}" for s in (1, 2, 3, 4) for b in (0, 1))]


def test_alexnet_is_cut_at_its_activations() -> None:
    assert names("alexnet") == ["features.1", "features.4", "features.7", "features.9", "features.11"]


def test_vgg16_is_cut_at_its_13_activations() -> None:
    assert names("vgg16") == [f"features.{i}" for i in (1, 3, 6, 8, 11, 13, 15, 18, 20, 22, 25, 27, 29)]


def test_googlenet_is_cut_at_its_inceptions() -> None:
    inceptions = [f"inception{i}" for i in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
    assert names("googlenet") == ["conv1", "conv2", "conv3", *inceptions]


def test_squeezenets_classifier_is_no_cut() -> None:
    """Its classifier is a convolution, so it gives a map; but nothing is learnt after it."""
    assert names("squeezenet1_1")[-1] == "features.12"


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "googlenet", "squeezenet1_1"])
def test_the_whole_costs_what_torchvision_states(name: str) -> None:
    """Weights exactly (GoogLeNet's published count leaves its auxiliary heads out), multiply-adds to 1%
    (theirs are rounded to three digits)."""
    from torchvision import models

    published = models.get_model_weights(name).DEFAULT.meta
    with torch.device("meta"):
        network = find(name).build()
    whole = chain(network.to_empty(device="cpu"), 224)
    assert whole.params == published["num_params"]
    assert whole.macs / 1e9 == pytest.approx(published["_ops"], rel=0.01)


def test_costs_follow_the_textbook() -> None:
    """First cut of AlexNet at 224 px: 64 filters of 11 x 11 x 3 plus bias, at 55 x 55 places."""
    with torch.device("meta"):
        network = find("alexnet").build()
    first = chain(network.to_empty(device="cpu"), 224).cuts[0]
    assert (first.channels, first.height, first.width) == (64, 55, 55)
    assert first.params == 64 * (11 * 11 * 3 + 1)
    assert first.macs == 64 * 11 * 11 * 3 * 55 * 55


@settings(max_examples=150, deadline=None)
@given(data=st.data(), size=st.integers(1, 9))
def test_post_dominators_are_what_cannot_be_removed(data: st.DataObject, size: int) -> None:
    """Oracle: a node is one exactly if taking it out leaves no path from the input to the output."""
    graph = fx.Graph()
    entry = graph.placeholder("x")
    # A constant that the graph also uses: it carries nothing of the image.
    nodes = [entry, graph.get_attr("constant")] if data.draw(st.booleans()) else [entry]
    for _ in range(size):
        args = data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=2))
        nodes.append(graph.call_function(operator.neg if len(args) == 1 else operator.add, tuple(args)))
    output = graph.output(nodes[-1])
    graph.eliminate_dead_code()

    def connected(without: fx.Node | None) -> bool:
        seen, todo = {without}, [output]  # backwards from the output
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo.extend(node.all_input_nodes)
        return entry in seen

    inner = [n for n in graph.nodes if n.op == "call_function"]
    assert _post_dominators(graph) == [n for n in inner if connected(None) and not connected(n)]


class Block(nn.Module):
    """A residual block: nothing inside it carries everything onward."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x).relu())


def small(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def test_a_residual_block_is_cut_only_at_its_end() -> None:
    assert [c.name for c in chain(small(nn.Conv2d(3, 8, 3), Block(8), Block(8)), 32).cuts] == ["0", "1", "2"]


def test_a_cut_lies_after_the_activation_and_before_the_pooling() -> None:
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    cuts = chain(small(*first, nn.Conv2d(8, 8, 3), nn.ReLU()), 32).cuts
    assert [(c.name, c.height) for c in cuts] == [("2", 32), ("5", 14)]


class Patches(nn.Module):
    """As in a ViT: no feature map at any place, only tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.classify = nn.Linear(48, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return self.classify(self.mix(self.embed(tokens)).mean(1))


class Undecided(nn.Module):
    """Which layers run depends on the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x) if x.sum() > 0 else x


def test_a_network_of_tokens_has_no_cut() -> None:
    with pytest.raises(BackboneError, match="Patches has no place"):
        chain(Patches(), 32)


def test_a_network_that_decides_by_its_pixels_cannot_be_traced() -> None:
    with pytest.raises(BackboneError, match="Undecided cannot be traced"):
        chain(Undecided(), 32)


@torch.no_grad()
def test_what_a_module_keeps_of_the_run_that_cuts_does_not_outlive_the_weights() -> None:
    """timm's attention keeps biases that it computed from its weights; a network is cut before it gets these."""
    torch.manual_seed(0)
    source = find("timm:efficientvit_m0")
    network, filled = source.build(), source.build().eval()
    for parameter in filled.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    maps = x = torch.randn(1, 3, source.preprocessing.crop_px, source.preprocessing.crop_px)
    segments = chain(network, source.preprocessing.crop_px).segments
    network.load_state_dict(filled.state_dict())
    for segment in segments:
        maps = segment(maps)
    torch.testing.assert_close(maps, filled(x), rtol=1e-5, atol=1e-5)


def test_an_input_too_small_for_the_network_names_the_option() -> None:
    with pytest.raises(BackboneError, match=r"32 x 32 px.*--size"):
        with torch.device("meta"):
            network = find("alexnet").build()
        chain(network.to_empty(device="cpu"), 32)


def test_an_unknown_cut_lists_the_names() -> None:
    network = small(nn.Conv2d(3, 8, 3), Block(8))
    backbone = Backbone("small", "none", "none", find("resnet18").preprocessing, 5, chain(network, 32))
    with pytest.raises(UsageError, match=r"small has no cut 'layer9'; it has: 0, 1"):
        backbone.prefix("layer9")
