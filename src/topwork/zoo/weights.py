"""Where are the weights, and are they the right ones?

Weights come from a file that the user names, from a package, or from the libraries' own caches and
downloads. Nothing is unpickled beyond tensors (`weights_only=True`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from topwork.errors import MissingError, UsageError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema")
"""Keys under which training scripts put the network's tensors beside their own state."""


def read(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or from a PyTorch file.

    Raises MissingError where the file is not there, UsageError where it holds no state dict.
    """
    if not path.is_file():
        raise MissingError(f"--weights {path}: no such file; expected a .safetensors or a PyTorch state dict")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UsageError(f"--weights {path}: cannot be read: {_first_line(error)}") from error
    except Exception as error:  # torch's unpickler raises its own type on anything but tensors
        raise UsageError(
            f"--weights {path}: holds more than tensors, which is not loaded for safety ({_first_line(error)});"
            " save the network's state_dict() alone"
        ) from error
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, Mapping) else {}
    if not tensors:
        raise UsageError(f"--weights {path}: no state dict in it (expected names mapped to tensors)")
    return {k.removeprefix("module."): v for k, v in tensors.items()}  # DataParallel's prefix


def fill(network: nn.Module, tensors: Mapping[str, Tensor], *, needed: set[str], used: set[str], where: str) -> bool:
    """Load tensors into a network; says whether they fill all that its output is computed from.

    `needed` are the names of the layers up to the last cut: they must all be there. `used` adds the
    old task's classifier, which may be missing (weights of the features only); what only training
    uses, such as GoogLeNet's auxiliary heads, is in neither. Raises UsageError naming what differs.
    """
    own = network.state_dict()
    fits = {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}
    counters = {k for k in own if k.endswith("num_batches_tracked")}  # absent from older files
    missing = sorted(needed - fits.keys() - counters)
    if missing:
        shapes = [k for k in missing if k in tensors]
        what = (
            f"{shapes[0]} is {tuple(tensors[shapes[0]].shape)}, expected {tuple(own[shapes[0]].shape)}"
            if shapes
            else f"no {missing[0]}" + (f" (it has {next(iter(sorted(tensors)))}, ...)" if tensors else "")
        )
        raise UsageError(
            f"{where}: these weights are not for {type(network).__name__}: {len(missing)} of {len(needed)} tensors"
            f" of its features do not fit; {what}"
        )
    network.load_state_dict(fits, strict=False)
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


def download(url: str, backbone: str) -> dict[str, Tensor]:
    """Take a state dict from torch.hub's cache, or download it there, checking the hash in its name.

    Raises MissingError naming the file, its source and its place where neither is possible.
    """
    target = cached_download(url)
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True, progress=False
        )
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        # URLError is an OSError; a wrong hash a RuntimeError; the others come of a broken file in the cache
        raise MissingError(
            f"the weights of {backbone} are not at hand and could not be fetched ({_first_line(error)}).\n"
            f"  file   {target.name}\n  from   {url}\n  to     {target}\n"
            f"Put the file there (TORCH_HOME moves the folder), or name another with --weights FILE."
        ) from error
    return state


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
