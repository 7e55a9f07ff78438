"""Small labelled folders, and one finished run, for every test that needs them."""

from __future__ import annotations

import csv
import importlib.util
import os
import pickle
import shutil
import socket
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from topwork import images, runs, workflow, zoo
from topwork.engine import Engine
from topwork.records import Example, Preprocessing
from topwork.zoo import Backbone
from topwork.zoo.cuts import chain

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = importlib.util.find_spec("axe_playwright_python")  # brings Playwright; of its own only the file of axe is used

in_a_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian: apt install chromium)"),
    pytest.mark.skipif(AXE is None, reason="needs axe (pip install -e '.[dev]')"),
]
"""Marks of tests that open a page."""

os.environ["TOPWORK_DEVICE"] = "cpu"  # oracles compute there; tests/test_accelerator.py takes what it finds

CLASSES = ("bark", "sand", "weave")
SIZE_PX = 64  # of the backbone's input: a pass over a few dozen images takes a second

WritePhotos = Callable[..., Path]


def _photo(label: int, rng: np.random.Generator, size_px: int) -> np.ndarray:
    """One picture: stripes across, stripes along, or a checked weave, in a random colour under noise."""
    period, phase = rng.uniform(6, 9), rng.uniform(0, 6)
    y, x = np.mgrid[:size_px, :size_px] + phase
    waves = (np.sin(2 * np.pi * y / period), np.sin(2 * np.pi * x / period))
    pattern = (waves[0], waves[1], waves[0] * waves[1])[label % 3]
    tint = rng.uniform(60, 190, size=3)
    noisy = tint + 45 * pattern[..., None] + rng.normal(0, 25, (size_px, size_px, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def write_photos(
    folder: Path, *, classes: Sequence[str] = CLASSES, per_class: int = 8, seed: int = 0, size_px: int = 48
) -> Path:
    """A folder per class of small pictures, PNG and JPEG in turn; every picture differs."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            picture = Image.fromarray(_photo(label, rng, size_px))
            if i % 2:
                picture.save(folder / name / f"{i:03d}.jpg", quality=95)
            else:
                picture.save(folder / name / f"{i:03d}.png")
    return folder


def broken_inside_png(size_px: int = 48) -> bytes:
    """A PNG whose chunks are all sound but whose pixels stop half-way: only decoding shows it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.random.default_rng(0).integers(0, 256, (size_px, 1 + 3 * size_px), dtype=np.uint8)
    rows[:, 0] = 0  # filter type of each row: none
    packed = zlib.compress(rows.tobytes())
    header = struct.pack(">IIBBBBB", size_px, size_px, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed[: len(packed) // 2]) + chunk(b"IEND", b"")
    )


class Log:
    """A Watch that keeps what it was told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.steps = 0
        self.shown: dict[str, object] = {}

    def begin(self, stage: str, total: int) -> None:
        self.stages.append((stage, total))

    def advance(self, steps: int = 1) -> None:
        self.steps += steps

    def end(self) -> None:
        pass

    def show(self, what: str, fact: object) -> None:
        self.shown[what] = fact


@dataclass(frozen=True)
class Finished:
    """One run of fit on small pictures: what went in, what came out, and the cache it left."""

    run: runs.Run
    folder: Path
    cache: Path
    log: Log


@pytest.fixture
def make_photos() -> WritePhotos:
    """The writer of labelled folders."""
    return write_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of eight pictures each."""
    return write_photos(tmp_path / "photos")


@pytest.fixture
def damaged_png() -> bytes:
    """A PNG that only fails when its pixels are decoded."""
    return broken_inside_png()


@pytest.fixture
def log() -> Log:
    """A watch to look into afterwards."""
    return Log()


@pytest.fixture(scope="session")
def lite() -> Backbone:
    """The embedded backbone at a small input size."""
    return zoo.load(size_px=SIZE_PX)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run over three classes of eight pictures."""
    home = tmp_path_factory.mktemp("finished")
    folder, log = write_photos(home / "photos"), Log()
    run = workflow.fit(folder, size=SIZE_PX, strategy="head", out=home / "run", cache=home / "cache", watch=log)
    return Finished(run, folder, home / "cache", log)


@pytest.fixture
def imagenet_top1() -> Callable[[Backbone], float]:
    """Share of the 250 photographs in ../shared whose ImageNet class a backbone names first."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "imagenet_samples"
    if not folder.is_dir():
        pytest.skip("the photographs of ../shared are not here")

    def top1(backbone: Backbone) -> float:
        rows = list(csv.DictReader((folder / "labels.csv").read_text().splitlines()))
        engine = Engine(backbone.chain.segments, backbone.preprocessing)
        right = 0
        for start in range(0, len(rows), 25):
            chunk = rows[start : start + 25]
            batch = np.stack([images.load(folder / row["file"], backbone.preprocessing) for row in chunk])
            best = engine.see(batch, logits=True).logits.argmax(axis=1)
            right += sum(int(b) == int(row["ilsvrc_index"]) for b, row in zip(best, chunk, strict=True))
        return right / len(rows)

    return top1


class Residual(nn.Module):
    """Two convolutions with normalisation beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(dropout)
        self.shortcut = nn.Conv2d(before, after, 1, stride) if (before, stride) != (after, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(self.relu(self.norm1(self.conv1(x))))
        return self.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class Tiny(nn.Module):
    """A CNN of five blocks in three stages: cuts stem, one, two, three, four."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.one, self.two = Residual(8, 8, 1, dropout), Residual(8, 12, 2, dropout)
        self.three, self.four = Residual(12, 12, 1, dropout), Residual(12, 16, 2, dropout)
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.four(self.three(self.two(self.one(self.stem(x)))))
        return self.classifier(x.mean((2, 3)))


@torch.no_grad()
def tiny_network(dropout: float = 0.0) -> Tiny:
    """With weights that pass the signal on, and scales, shifts and statistics that matter in every norm layer."""
    network, draw = Tiny(dropout), torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, (1.5 / parameter[0].numel()) ** 0.5, generator=draw)
        else:
            parameter.uniform_(-0.1, 0.1, generator=draw).add_(0.0 if name.endswith("bias") else 1.0)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=draw)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=draw)
    return network.eval()


def as_backbone(network: nn.Module, size_px: int = 32) -> Backbone:
    """Any network as a backbone, cut everywhere."""
    preprocessing = Preprocessing(size_px, size_px, "bilinear", (0.45, 0.45, 0.45), (0.25, 0.25, 0.25))
    return Backbone(type(network).__name__.lower(), "made here", "0", preprocessing, 0, chain(network, size_px))


@pytest.fixture
def tiny() -> Backbone:
    """A network that is trained in a moment; each test has its own."""
    return as_backbone(tiny_network())


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks on one core: on a busy machine, threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def labelled(folder: Path) -> list[Example]:
    """Every picture of a labelled folder, classes in the order of their names."""
    classes = sorted(p.name for p in folder.iterdir())
    return [
        Example(str(f.relative_to(folder)), label, "train", images.digest(f.read_bytes()))
        for label, name in enumerate(classes)
        for f in sorted((folder / name).iterdir())
    ]


Tensors = dict[str, Tensor]


@pytest.fixture
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that uses this may not leave the machine."""
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


def whole(tensors: Tensors) -> bytes:
    buffer = BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def noise(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


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


class Malicious:
    """An object whose unpickling would write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


def barriers(page: Any, within: str | None = None) -> list[tuple[Any, ...]]:
    """What axe complains of on a page."""
    assert AXE is not None
    assert AXE.origin is not None
    page.evaluate(Path(AXE.origin).with_name("axe.min.js").read_text())
    found = page.evaluate("s => axe.run(s || document, {resultTypes: ['violations']})", within)
    return [
        (v["id"], v["help"], len(v["nodes"]), v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"][:300])
        for v in found["violations"]
    ]
