"""One contract over every family of CNNs: whatever torchvision or timm calls it, it is cut, pooled, kept and trained.

Weights are random, but such that the signal passes and every normalisation layer matters.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from topwork import activations, engine, head, model, train
from topwork.records import SCHEMA, Estimate, ModelFacts, Recipe
from topwork.zoo import Backbone
from topwork.zoo.cuts import chain
from topwork.zoo.sources import find

pytestmark = pytest.mark.usefixtures("one_thread")

ALIKE = 1e-5
"""Relative to the output's largest magnitude: the same layers in the same order round alike."""

FOLDED = 1e-4
"""Likewise, where BatchNorm is folded and the memory lies otherwise: other sums round otherwise."""

SIZES_PX = {
    "inception_v3": 75, "timm:inception_v3": 75, "timm:inception_v4": 75, "timm:inception_resnet_v2": 75,
    "timm:efficientformerv2_s0": 224,
}  # fmt: skip
"""Where it is not 64, AlexNet's least: these take no less, or one size alone."""

TORCHVISION = [
    "alexnet", "vgg11_bn", "vgg16",
    "googlenet", "resnet18", "resnet50",
    "inception_v3", "squeezenet1_1", "densenet121", "resnext50_32x4d", "wide_resnet50_2", "shufflenet_v2_x0_5",
    "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf",
    "regnet_y_400mf", "convnext_tiny",
]  # fmt: skip
"""Every family, its smallest member; of VGG and ResNet also the one that courses teach."""

# At least one small member of every module of timm that holds convolutional networks.
TIMM = [f"timm:{name}" for name in (
    "tf_efficientnet_lite0", "test_efficientnet", "gc_efficientnetv2_rw_t", "mobilenetv2_035", "mixnet_s",
    "mnasnet_small", "semnasnet_050", "spnasnet_100", "fbnetc_100", "tinynet_e", "mobilenet_edgetpu_v2_xs",
    "mobilenetv3_small_050", "lcnet_035", "mobilenetv4_conv_small", "hardcorenas_a", "ghostnet_050",
    "repghostnet_050", "lcnetv2_small", "rexnet_100", "starnet_s050", "fasternet_t0",
    "convnext_zepto_rms", "convnextv2_atto", "convnext_atto", "inception_next_atto", "mambaout_femto",
    "poolformer_s12", "convformer_s18", "focalnet_tiny_srf", "rdnet_tiny",
    "resnet10t", "seresnet18", "resnetblur18", "resnetv2_18", "legacy_seresnet18", "res2net50_48w_2s", "resnest14d",
    "skresnet18", "regnetx_002", "regnety_002", "regnetz_005", "resnext26ts", "gernet_s", "repvgg_a0", "mobileone_s1",
    "nf_regnet_b0", "test_nfnet", "densenet121", "densenetblur121d", "dla46x_c", "dpn48b", "hrnet_w18_small",
    "cspresnet50", "darknet17", "cs3darknet_focus_s", "cspnext_tiny", "hgnetv2_b0", "ese_vovnet19b_slim_dw",
    "selecsls42", "lambda_resnet26t", "legacy_xception", "inception_v3", "inception_v4", "inception_resnet_v2",
    "repvit_m1", "fastvit_t8", "edgenext_xx_small", "efficientvit_b0", "efficientvit_m0", "mobilevit_xxs",
    "nextvit_small", "swiftformer_xs", "shvit_s1", "lowformer_b0", "iformer_t", "cpubone_nano", "efficientformerv2_s0",
)]  # fmt: skip

EXCLUDED = {
    # name of the network or of timm's module: why it is not held to the contract
    "nasnetalarge": "two cuts: each cell reads the two cells before it",
    "pnasnet5large": "two cuts: each cell reads the two cells before it",
    "levit": "cuts in its stem alone: behind it are tokens",
    "efficientvim": "cuts in its first stage alone: behind it are tokens",
}
"""Transformers (ViT, Swin and the like) are out of scope, and in none of these lists."""


class Unfilled(TorchFunctionMode):
    """Leaves out the libraries' own initialisation, which is slow and is written over; all else is built."""

    DRAWS = frozenset({
        "uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_",
        "xavier_normal_", "orthogonal_",
    })  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """No initialisation at all. The truncated normal draws until every value lies within its bounds: for ever, where
    nothing is drawn."""
    with pytest.MonkeyPatch.context() as patch, Unfilled():
        patch.setattr(nn.init, "_no_grad_trunc_normal_", lambda tensor, *_, **__: tensor)
        yield


def built(name: str) -> nn.Module:
    with unfilled():
        return find(name).build()


@torch.no_grad()
def randomise(network: nn.Module, x: Tensor) -> nn.Module:  # x: the images that it will see
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
    network.eval()
    hooks = [m.register_forward_pre_hook(settle) for m in network.modules() if isinstance(m, _BatchNorm)]
    network(x)
    for hook in hooks:
        hook.remove()
    return network


def settle(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    """Statistics near what comes in, else the signal would grow with every residual block; no two channels alike."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    scale = inputs[0].std()
    norm.running_mean.normal_().mul_(0.1 * scale).add_(inputs[0].mean())
    norm.running_var.uniform_(0.5, 1.5).mul_(scale**2)
    norm.num_batches_tracked.zero_()


@dataclass(frozen=True)
class Case:
    """A network, cut, and what it itself gives for two images."""

    name: str
    network: nn.Module
    backbone: Backbone
    batch: NDArray[np.uint8]  # (2, h, w, 3)
    x: Tensor  # the same, normalised by the textbook formula
    output: Tensor
    macs: int  # of one image, as counted in the network itself

    def near(self, got: Tensor, tolerance: float) -> bool:
        return bool((got - self.output).abs().max() <= tolerance * self.output.abs().max())


def case(name: str) -> Case:
    preprocessing = find(name).preprocessing.at(SIZES_PX.get(name, 64))
    size_px = preprocessing.crop_px
    batch = np.random.default_rng(1).integers(0, 256, (2, size_px, size_px, 3), dtype=np.uint8)
    pixels = (batch / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous()
    network = randomise(built(name), x)
    backbone = Backbone(name, "random", "none", preprocessing, 1000, chain(network, size_px))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x[:1])
    macs, rest = divmod(counter.get_total_flops(), 2)
    assert rest == 0
    with torch.no_grad():
        output = network(x)
    return Case(name, network, backbone, batch, x, output, macs)


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.slow) for n in TORCHVISION + TIMM])
def family(request: pytest.FixtureRequest) -> Iterator[Case]:
    """One network at a time in memory: pytest groups the tests by it."""
    yield case(request.param)


def test_every_cut_splits_the_network_exactly(family: Case) -> None:
    """suffix(prefix(x)) is the whole network's output, and prefix(x) has the shape that the cut states.

    Prefixes and suffixes are the very segments up to a cut and after it, so running these once is running all of them.
    """
    largest = family.output.abs().max()
    assert torch.isfinite(largest)
    # The output depends on the image, so a wrong prefix could not hide behind constants.
    assert (family.output[0] - family.output[1]).abs().max() > 1e-3 * largest
    segments, maps = family.backbone.chain.segments, family.x
    with torch.inference_mode():
        for k, cut in enumerate(family.backbone.cuts):
            assert (*family.backbone.prefix(cut.name), *family.backbone.suffix(cut.name)) == segments, cut.name
            assert len(family.backbone.prefix(cut.name)) == k + 1
            maps = segments[k](maps)
            assert tuple(maps.shape) == (2, cut.channels, cut.height, cut.width), cut.name
        assert family.near(segments[-1](maps), ALIKE)
        middle = family.backbone.cuts[len(family.backbone.cuts) // 2].name
        assert family.near(family.backbone.suffix(middle)(family.backbone.prefix(middle)(family.x)), ALIKE)


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


def test_the_whole_costs_what_the_network_itself_counts(family: Case) -> None:
    """Weights without those of auxiliary heads, which only training uses."""
    own = sum(p.numel() for n, p in family.network.named_parameters() if not n.lower().startswith("aux"))
    assert family.backbone.chain.params == own
    assert family.backbone.chain.macs == family.macs


def test_cuts_have_names_of_their_own_that_say_where_they_are(family: Case) -> None:
    """Unique, and each is a module of the network, or a graph node where no module is around it."""
    names = [cut.name for cut in family.backbone.cuts]
    assert len(set(names)) == len(names) >= 4
    assert all(cut.height == cut.width for cut in family.backbone.cuts)  # else its channels are taken for a side
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
    assert len(family.backbone.chain.segments) == len(family.backbone.cuts) + 1


def test_the_engine_computes_the_networks_own_function(family: Case) -> None:
    """Folded, channels last, in inference mode: to float32 rounding; what is kept of it, to float16's 11 bits.

    Segment by segment: random weights can blow the last bit of the first segment up to a share of the output.
    """
    prepared = engine.Engine(family.backbone.chain.segments, family.backbone.preprocessing)
    maps, x = family.x, prepared.pixels(family.batch)
    expected = []
    with torch.inference_mode():
        for k, (plain, segment) in enumerate(zip(family.backbone.chain.segments, prepared.segments, strict=True)):
            got = segment(x.new_tensor(maps.numpy()).contiguous(memory_format=torch.channels_last)).cpu()
            maps = plain(maps)
            assert (got - maps).abs().max() <= FOLDED * maps.abs().max(), k
            x = segment(x)
            expected.append(x.cpu() if x.dim() == 2 else engine.pool(x).cpu())
    seen = prepared.see(family.batch, logits=True)
    assert seen.logits is not None
    for cut, pooled, ours in zip([*family.backbone.cuts, None], [*seen.pooled, seen.logits], expected, strict=True):
        kept = ours.clamp(-engine.FLOAT16_MAX, engine.FLOAT16_MAX).numpy()
        assert cut is None or pooled.shape == (2, 2 * cut.channels)
        assert np.isfinite(pooled).all(), cut
        np.testing.assert_allclose(pooled, kept, rtol=1e-3, atol=1e-3 * np.abs(kept).max(), err_msg=str(cut))
        assert np.ptp(pooled.astype(np.float32), axis=0).max() > 1e-3 * np.abs(pooled).max(), cut


def facts(backbone: Backbone, place: int) -> ModelFacts:
    cut = backbone.cuts[place]
    return ModelFacts(
        SCHEMA, "0", backbone.name, "none", cut.name, (cut.name,), backbone.preprocessing, ("one", "two"), 1.0,
        cut.channels, "ridge", 0.5, Estimate(0.9, 0.8, 0.95, 99, "out-of-sample"), {"torch": "9.9"},
    )  # fmt: skip


def test_a_model_cut_in_the_middle_predicts_the_same_after_loading(family: Case) -> None:
    """From a file that holds the kept layers and the head, and nothing else."""
    place = len(family.backbone.cuts) // 2
    cut = family.backbone.cuts[place]
    weight = np.random.default_rng(0).normal(size=(2 * cut.channels, 2)).astype(np.float32)
    kept = model.create(facts(family.backbone, place), family.backbone, weight, np.zeros(2, np.float32))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        kept.save(folder)
        with safe_open(folder / "model.safetensors", "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        with unfilled():
            again = model.load(folder)
    np.testing.assert_array_equal(again.logits(family.batch), kept.logits(family.batch))
    layers = {n.removeprefix("layers."): math.prod(s) for n, s in shapes.items() if n.startswith("layers.")}
    assert shapes.keys() - {"head.weight", "head.bias"} == {f"layers.{n}" for n in layers}
    assert layers.keys() <= family.network.state_dict().keys()
    parameters = {n for n, _ in family.network.named_parameters()}
    assert sum(size for n, size in layers.items() if n in parameters) == cut.params


def test_every_kept_layer_can_be_trained(family: Case) -> None:
    """One step from the input to the last cut moves every block, and the grafted backbone gives what was trained.

    A small one: steps of AdamW all push the same way, and random layers in a row multiply that.
    """
    backbone = family.backbone
    recipe = Recipe(
        "full", backbone.cuts[-1].name, backbone.cuts[0].name, lr=1e-5, epochs=1, batch=2, views=0, warm_up=0
    )
    width = 2 * backbone.cuts[-1].channels
    weight = np.random.default_rng(0).normal(size=(width, 2)) / width
    start = head.Exact(np.zeros(width), np.ones(width), weight, np.zeros(2))
    store = SimpleNamespace(
        backbone=backbone, ensure=lambda points, number: 0, mapped=lambda point, number: family.batch
    )
    task = train.Task(cast(activations.Store, store), np.array([0, 1]), 2)
    found = train.train(task, recipe, np.array([0, 1]), start, seed=0)
    assert found is not None
    assert math.isfinite(found.curve[0].loss)
    for cut, learnt, trained in zip(backbone.cuts, backbone.chain.segments, found.network.segments, strict=False):
        before, after = dict(learnt.named_parameters()), dict(trained.named_parameters())
        assert before.keys() == after.keys()
        assert all(torch.isfinite(p).all() for p in after.values()), cut.name
        # A block may have nothing to learn: a blurring pool has a fixed filter.
        assert not before or any(not torch.equal(before[n], after[n]) for n in before), cut.name
    grafted = train.grafted(backbone, recipe, found.network)
    kept_weight, kept_bias = train.raw_head(found.network)
    kept = model.create(facts(grafted, len(backbone.cuts) - 1), grafted, kept_weight, kept_bias)
    expected = train.predict(found.network, cast(activations.Store, store), np.array([0, 1]))
    np.testing.assert_allclose(kept.logits(family.batch), expected, atol=FOLDED * np.abs(expected).max())


def test_the_page_names_the_networks_of_the_lists_and_no_other() -> None:
    text = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text(encoding="utf-8")
    section = text.split("## Which networks work", 1)[1].split("\n## ", 1)[0]
    tried, excluded = section.split("### Not held to it", 1)
    assert set(re.findall(r"`([\w:]+)`", tried)) == {*TORCHVISION, *TIMM}
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", excluded, re.M)
    assert dict(rows) == EXCLUDED
