"""Where are the weights, and are they the right ones?

Weights come from a file that the user names, from a package, or from the libraries' own caches and
downloads. Nothing is unpickled beyond tensors (`weights_only=True`).
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from topwork.errors import MissingError, UsageError
from topwork.watch import SILENT, Watch
from topwork.zoo.download import partial, receive, sha256

_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema")
"""Keys under which training scripts put the network's tensors beside their own state."""


def read(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or from a PyTorch file.

    Raises MissingError where the file is not there, UsageError where it holds no state dict.
    """
    if not path.is_file():
        raise MissingError(f"--weights {path}: no such file; expected a .safetensors or a PyTorch state dict")
    try:
        loaded = load_file(path) if _is_safetensors(path) else _unpickled(path)
    except UnpicklingError as error:
        # Not passed on: torch's text, which advises to switch its safety off.
        raise UsageError(
            f"--weights {path}: holds more than tensors, which is not loaded for safety;"
            " save the network's state_dict() alone"
        ) from error
    except Exception as error:  # nonsense makes the readers raise a dozen types
        raise UsageError(
            f"--weights {path}: cannot be read: {_first_line(error)}; expected a .safetensors or a PyTorch state dict"
        ) from error
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, Mapping) else {}
    if not tensors:
        raise UsageError(f"--weights {path}: no state dict in it (expected names mapped to tensors)")
    return {_renamed(k): v for k, v in tensors.items()}


def _is_safetensors(path: Path) -> bool:
    """By content, whatever the name: 8 bytes of length, then a JSON object."""
    with path.open("rb") as file:
        return path.suffix.lower() == ".safetensors" or file.read(9)[8:] == b"{"


def _unpickled(path: Path) -> object:
    """What a PyTorch file holds, tensors and plain values only."""
    with path.open("rb") as file:
        start = file.read(2)
    if start not in {b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}:  # zip; pickle protocols 2 to 5
        raise ValueError("neither safetensors nor a PyTorch file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a pickle protocol that is not torch's own
        return torch.load(path, map_location="cpu", weights_only=True)


_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


def _renamed(name: str) -> str:
    """Without DataParallel's prefix; DenseNet's `norm.1` of torchvision's files is `norm1` in its networks."""
    return _DENSE_LAYER.sub(r"\1\2.", name.removeprefix("module."))


def fill(network: nn.Module, tensors: Mapping[str, Tensor], *, needed: set[str], used: set[str], where: str) -> bool:
    """Load tensors into a network; says whether they fill all that its output is computed from.

    `needed` are the names of the layers up to the last cut: they must all be there. `used` adds the
    old task's classifier, which may be missing (weights of the features only); what only training
    uses, such as GoogLeNet's auxiliary heads, is in neither. Raises UsageError naming what differs.
    """
    own = network.state_dict()
    # Weights of the features only may come with a classifier of NaN (torchvision's VGG16 IMAGENET1K_FEATURES).
    fits = {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape and bool(v.isfinite().all())}
    counters = {k for k in own if k.endswith("num_batches_tracked")}  # absent from older files
    missing = sorted(needed - fits.keys() - counters)
    if missing:
        there = [k for k in missing if k in tensors]
        shapes = [k for k in there if tensors[k].shape != own[k].shape]
        what = (
            f"{shapes[0]} is {tuple(tensors[shapes[0]].shape)}, expected {tuple(own[shapes[0]].shape)}"
            if shapes
            else f"{there[0]} holds values that are not finite"
            if there
            else f"no {missing[0]}" + (f" (it has {next(iter(sorted(tensors)))}, ...)" if tensors else "")
        )
        raise UsageError(
            f"{where}: these weights are not for {type(network).__name__}: {len(missing)} of {len(needed)} tensors"
            f" of its features do not fit; {what}"
        )
    state = OrderedDict(fits)
    # MNASNet refuses a state dict that does not say its version; shapes fit, so it is this one.
    state._metadata = own._metadata  # type: ignore[attr-defined]
    network.load_state_dict(state, strict=False)
    return not (used - fits.keys() - counters)


def fingerprint(tensors: Mapping[str, Tensor], architecture: str) -> str:
    """Name a network by all that decides its outputs: its graph's code and its tensors. 128 bits.

    Only tensors that came from the weights may go in: what stays at its random initial value (a
    missing classifier) would give another name, and so another feature cache, at every start.
    """
    hasher = hashlib.blake2b(architecture.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.detach().cpu().contiguous().numpy().data)
    return hasher.hexdigest()


def cached_download(url: str) -> Path:
    """Where torch.hub keeps the file of this address (TORCH_HOME moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def pull(url: str, backbone: str, watch: Watch = SILENT) -> Path:
    """The file of this address in torch.hub's cache, downloaded where it is not there yet.

    An interrupted download goes on; the hash in the file's name is checked. Raises MissingError naming the
    file, its source and its place where it cannot be had.
    """
    target = cached_download(url)
    if target.is_file():
        return target
    try:
        receive(url, target, watch)
    except (OSError, ValueError, HTTPException) as error:
        # URLError is an OSError; a wrong hash a ValueError; an answer that is no HTTP, or ends early, the last
        part = partial(target)
        kept = f"What came, {part.stat().st_size / 1e6:.1f} MB, is kept.\n" if part.is_file() else ""
        raise MissingError(
            f"the weights of {backbone} are not at hand and could not be fetched ({_first_line(error)}).\n"
            f"  file   {target.name}\n  from   {url}\n  to     {target}\n"
            f"{kept}Put the file there (TORCH_HOME moves the folder), or name another with --weights FILE."
        ) from error
    return target


def read_download(path: Path, url: str, backbone: str) -> dict[str, Tensor]:
    """Read a downloaded file. Raises MissingError, with what to do, where it is damaged."""
    try:
        return read(path)
    except UsageError as error:
        raise MissingError(
            f"the weights of {backbone} in {path} are damaged; delete that file, and they are fetched again"
            f" from {url}, or name another with --weights FILE ({error})"
        ) from error


def check_blob(path: Path) -> None:
    """Compare a file of the Hugging Face cache with the SHA-256 that its blob is called by, where it is.

    Raises ValueError where they differ; the blob is deleted then.
    """
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and sha256(blob) != blob.name:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise ValueError(f"SHA-256 of {path.name} is not the stated one; it was deleted")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
