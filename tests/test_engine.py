"""The prepared engine computes the network's own function: folding and memory layout change nothing but rounding."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from topwork.engine import FLOAT16_MAX, Engine, device, exact_arithmetic, normalisation, pool, prepare
from topwork.errors import UsageError
from topwork.zoo import Backbone
from topwork.zoo.cuts import chain
from topwork.zoo.sources import find

SIZE_PX = 64
NETWORKS = ["resnet18", "googlenet", "timm:tf_efficientnet_lite0"]


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Statistics, scales and shifts that matter: fresh BatchNorm layers would fold into nearly nothing."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.7, 1.3)
            module.bias.uniform_(-0.2, 0.2)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")


@cache
def backbone(name: str) -> Backbone:
    source = find(name)
    network = source.build()
    randomise(network)
    preprocessing = source.preprocessing.at(SIZE_PX)
    return Backbone(name, "random", "none", preprocessing, 1000, chain(network, SIZE_PX))


@cache
def engine(name: str) -> Engine:
    return Engine(backbone(name).chain.segments, backbone(name).preprocessing)


def batch() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def pixels(name: str) -> Tensor:
    """The textbook formula, in double precision: (x / 255 - mean) / std."""
    preprocessing = backbone(name).preprocessing
    x = (batch().astype(np.float64) / 255 - preprocessing.mean) / preprocessing.std
    return torch.from_numpy(x).permute(0, 3, 1, 2).float().contiguous()


def near(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((got.cpu() - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_prepared_segment_equals_the_plain_one(name: str) -> None:
    x = pixels(name)
    with torch.inference_mode():
        for k, segment in enumerate(backbone(name).chain.segments):
            expected = segment(x)
            got = prepare(segment)(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x)
            assert near(got, expected, 1e-4), k
            x = expected


@pytest.mark.parametrize(("name", "left"), [("resnet18", 0), ("googlenet", 0)])
def test_no_batch_norm_is_left(name: str, left: int) -> None:
    assert any(isinstance(m, nn.BatchNorm2d) for s in backbone(name).chain.segments for m in s.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for s in engine(name).segments for m in s.modules()) == left


@pytest.mark.parametrize("name", ["resnet18", "timm:tf_efficientnet_lite0"])
def test_pixels_are_normalised_by_the_formula(name: str) -> None:
    """Both the ImageNet mean and std and the -1..1 of TensorFlow's networks."""
    got = engine(name).pixels(batch())
    assert got.shape == (3, 3, SIZE_PX, SIZE_PX)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.cpu(), pixels(name), rtol=1e-5, atol=2e-6)


def test_normalisation_maps_black_and_white_to_the_stated_range() -> None:
    scale, shift = normalisation(find("timm:tf_efficientnet_lite0").preprocessing)
    torch.testing.assert_close(0 * scale + shift, torch.full((3,), -1.0))
    torch.testing.assert_close(255 * scale + shift, torch.full((3,), 1.0))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_seen_is_mean_and_maximum_of_the_unfolded_network(name: str) -> None:
    """To float16's 11 bits: 2^-11 of each value, and folding's rounding on top."""
    seen = engine(name).see(batch(), logits=True)
    x = pixels(name)
    cuts = backbone(name).cuts
    assert len(seen.pooled) == len(cuts)
    with torch.inference_mode():
        for cut, got in zip(cuts, seen.pooled, strict=True):
            maps = backbone(name).prefix(cut.name)(x)
            by_hand = np.concatenate([maps.mean((2, 3)).numpy(), maps.amax((2, 3)).numpy()], axis=1)
            assert got.dtype == np.float16
            assert got.shape == (3, 2 * cut.channels)
            np.testing.assert_allclose(got, by_hand, rtol=1e-3, atol=1e-3 * np.abs(by_hand).max(), err_msg=cut.name)
        logits = backbone(name).suffix(cuts[-1].name)(maps).numpy()
    assert seen.logits is not None
    np.testing.assert_allclose(seen.logits, logits, rtol=1e-3, atol=1e-3 * np.abs(logits).max())


def test_without_logits_the_classifier_does_not_run() -> None:
    seen = engine("resnet18").see(batch(), logits=False)
    assert seen.logits is None
    assert seen.seconds[-1] == 0
    assert (seen.seconds[:-1] > 0).all()
    with_logits = engine("resnet18").see(batch(), logits=True)
    for one, other in zip(seen.pooled, with_logits.pooled, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_image_is_seen_alike_in_any_batch(name: str) -> None:
    """Evaluation mode: no statistic of the batch enters. Other batch sizes may round otherwise."""
    together = engine(name).see(batch(), logits=False).pooled[-1].astype(np.float32)
    alone = engine(name).see(batch()[1:2], logits=False).pooled[-1].astype(np.float32)
    np.testing.assert_allclose(alone[0], together[1], rtol=2e-3, atol=1e-3 * np.abs(together).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_backbones_own_tensors_do_not_move(name: str) -> None:
    segments = backbone(name).chain.segments
    before = [{k: v.clone() for k, v in s.state_dict().items()} for s in segments]
    graphs = [s.code for s in segments]
    Engine(segments, backbone(name).preprocessing).see(batch(), logits=True)
    for segment, was, code in zip(segments, before, graphs, strict=True):
        now = segment.state_dict()
        assert now.keys() == was.keys()
        assert all(torch.equal(now[k], was[k]) for k in was)
        assert segment.code == code
        assert all(p.requires_grad for p in segment.parameters())


def test_the_frozen_copy_asks_for_no_gradient_and_is_in_evaluation_mode() -> None:
    for segment in engine("resnet18").segments:
        assert not segment.training
        assert not any(p.requires_grad for p in segment.parameters())


def test_pool_is_average_then_maximum() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[-1.0, -1.0], [-1.0, -5.0]]]])
    torch.testing.assert_close(pool(maps), torch.tensor([[3.0, -2.0, 6.0, -1.0]]))


class Shared(nn.Module):
    """One convolution and one BatchNorm, each used twice: neither can take the other in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.end, self.classify = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        branches = self.norm(self.conv(x)) + self.norm(self.conv(x.flip(3)))  # in one segment: no cut lies between
        return self.classify(self.end(branches.relu()).mean((2, 3)))


class Branching(nn.Module):
    """The convolution's own output is used beside its BatchNorm: folding would change it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.end, self.classify = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.classify(self.end(x + self.norm(x)).mean((2, 3)))


class Backwards(nn.Module):
    """BatchNorm before the convolution, as in DenseNet: there is none before it to fold into."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.end, self.classify = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.end(self.norm(x).relu()).mean((2, 3)))


@pytest.mark.parametrize("kind", [Shared, Branching, Backwards])
def test_layers_that_cannot_be_folded_stay(kind: type[nn.Module]) -> None:
    network = kind()
    randomise(network)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = chain(network, 32)
    with torch.inference_mode():
        expected = got = x
        for segment in whole.segments:
            got = prepare(segment)(got)
        expected = network.eval()(x)
    assert near(got, expected, 1e-5)
    assert any(isinstance(m, nn.BatchNorm2d) for s in whole.segments for m in prepare(s).modules())


def test_activations_beyond_float16_are_held_at_its_limit() -> None:
    """No infinity may enter the features: standardising would turn it into NaN."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[0].bias.copy_(torch.tensor([1e6, -1e6, 0.0, 1.0]))
    seen = Engine(chain(network, 32).segments, backbone("resnet18").preprocessing).see(
        batch()[:, :32, :32], logits=True
    )
    assert seen.pooled[0].max() == FLOAT16_MAX
    assert seen.pooled[0].min() == -FLOAT16_MAX


def test_float32_is_float32_on_cuda_and_cudnn_stays_on() -> None:
    """flags' own defaults switch cuDNN off: that made everything three times as slow."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with exact_arithmetic(torch.device("cuda")):
            assert torch.backends.cudnn.enabled
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        with exact_arithmetic(torch.device("cpu")):
            assert torch.backends.cudnn.allow_tf32  # nothing of CUDA's is touched
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_where_networks_run_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = "mps"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(found))
    for asked in ("", "auto", "mps"):
        monkeypatch.setenv("TOPWORK_DEVICE", asked)
        assert device() == torch.device("mps")
    monkeypatch.setenv("TOPWORK_DEVICE", "cpu")
    assert device() == torch.device("cpu")
    monkeypatch.setenv("TOPWORK_DEVICE", "cuda")
    with pytest.raises(UsageError, match="TOPWORK_DEVICE is 'cuda', expected auto, cpu or mps"):
        device()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("TOPWORK_DEVICE")
    assert device() == torch.device("cpu")
