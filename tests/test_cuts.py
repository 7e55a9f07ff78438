"""One contract over every family of CNNs: each cut splits the network exactly, and costs are counted right."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
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

ALIKE = 1e-5
"""Relative to the output's largest magnitude: the same layers in the same order round alike."""

BIG = {"vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn",
       "resnet101", "resnet152", "timm:densenet121", "timm:regnety_002", "timm:hrnet_w18_small",
       "timm:nf_regnet_b0", "timm:repvgg_a0", "timm:tf_efficientnet_lite0", "timm:mobilenetv4_conv_small",
       "timm:convnext_atto", "timm:resnetv2_50", "googlenet", "inception_v3", "resnet50"}  # fmt: skip
"""More than about two seconds, most of it building and tracing."""

SIZES_PX = {"inception_v3": 75}  # its least; 64 for all others, AlexNet's least

FAMILIES = [
    "alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn",
    "googlenet", "inception_v3", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small",
    "timm:tf_efficientnet_lite0", "timm:convnext_atto", "timm:regnety_002", "timm:mobilenetv4_conv_small",
    "timm:densenet121", "timm:nf_regnet_b0", "timm:repvgg_a0", "timm:hrnet_w18_small", "timm:resnetv2_50",
]  # fmt: skip


def unfilled(name: str) -> nn.Module:
    """The network as the zoo builds it. torchvision's on no memory at first: its own initialisation is slow."""
    if name.startswith("timm:"):
        return find(name).build()
    with torch.device("meta"):
        network = find(name).build()
    return network.to_empty(device="cpu")


@torch.no_grad()
def randomise(network: nn.Module) -> nn.Module:
    """Weights that pass the signal on, and scales, shifts and statistics that matter in every norm layer.

    (torch's own initialisation lets the signal fade over depth; many a library's starts blocks at zero.)
    """
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.dim() >= 2:
            bound = (6 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound)
        elif name.endswith("bias"):
            parameter.uniform_(-0.1, 0.1)
        else:
            parameter.uniform_(0.7, 1.3)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
        elif name.endswith("num_batches_tracked"):
            buffer.zero_()
    return network.eval()


@dataclass(frozen=True)
class Case:
    name: str
    size_px: int
    network: nn.Module
    backbone: Backbone
    x: Tensor
    output: Tensor


def case(name: str) -> Case:
    size_px = SIZES_PX.get(name, 64)
    network = randomise(unfilled(name))
    whole = chain(network, size_px)
    backbone = Backbone(name, "random", "none", find(name).preprocessing.at(size_px), 1000, whole)
    x = torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return Case(name, size_px, network, backbone, x, network(x))


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=[pytest.mark.slow] if n in BIG else []) for n in FAMILIES]
)
def family(request: pytest.FixtureRequest) -> Iterator[Case]:
    """One network at a time in memory: pytest groups the tests by it."""
    yield case(request.param)


def test_every_cut_splits_the_network_exactly(family: Case) -> None:
    """suffix(prefix(x)) is the whole network's output, and prefix(x) has the shape that the cut states."""
    largest = family.output.abs().max()
    assert torch.isfinite(largest)
    # The output depends on the image, so a wrong prefix could not hide behind constants.
    assert (family.output[0] - family.output[1]).abs().max() > 1e-3 * largest
    for cut in family.backbone.cuts:
        with torch.inference_mode():
            maps = family.backbone.prefix(cut.name)(family.x)
            assert tuple(maps.shape) == (2, cut.channels, cut.height, cut.width), cut.name
            output = family.backbone.suffix(cut.name)(maps)
        assert (output - family.output).abs().max() <= ALIKE * largest, cut.name


def test_costs_grow_with_depth(family: Case) -> None:
    """Later cuts keep no fewer weights and do more work; the whole network no less than the last."""
    cuts = family.backbone.cuts
    for earlier, later in pairwise(cuts):
        assert earlier.params <= later.params
        assert earlier.macs < later.macs
    assert cuts[0].params > 0
    assert cuts[0].macs > 0
    assert cuts[-1].params <= family.backbone.chain.params
    assert cuts[-1].macs <= family.backbone.chain.macs


def test_cuts_have_names_of_their_own_that_say_where_they_are(family: Case) -> None:
    """Unique, and each is a module of the network, or a graph node where no module is around it."""
    names = [cut.name for cut in family.backbone.cuts]
    assert len(set(names)) == len(names) >= 4
    modules = dict(family.network.named_modules())
    strangers = [n for n in names if n not in modules]
    assert len(strangers) <= 1, strangers
    assert [family.backbone.index(n) for n in names] == list(range(len(names)))


def test_no_layer_exists_twice(family: Case) -> None:
    """The segments share the network's own tensors, and every tensor that the output needs is in them."""
    own = {id(p) for p in family.network.parameters()}
    used = {id(p) for segment in family.backbone.chain.segments for p in segment.parameters()}
    assert used <= own
    auxiliary = {id(p) for n, p in family.network.named_parameters() if n.lower().startswith("aux")}
    assert own - used == auxiliary
    last = len(family.backbone.chain.segments)
    assert last == len(family.backbone.cuts) + 1


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
