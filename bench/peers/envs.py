"""Where does each peer live? One virtual environment per peer, made from the pinned list in requirements/.

torch, torchvision and what they need, some 5 GB, are installed once, in an environment `base` that the others see by a
.pth file after their own packages. A peer whose list names another torch has that one for itself, and sees it first.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEFAULT = Path.home() / ".cache" / "topwork-bench" / "envs"
BASE = "base"
MARK = ".made-from"


def python(envs: Path, name: str) -> Path:
    """The environment's interpreter."""
    return envs / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def made(envs: Path, name: str) -> bool:
    """Whether the environment is there, from this very list."""
    mark = envs / name / MARK
    return mark.is_file() and mark.read_text() == _wanted(name)


def make(envs: Path, name: str) -> None:
    """Make the environment where it is not there yet. Raises CalledProcessError where pip fails."""
    if name != BASE:
        make(envs, BASE)
    if made(envs, name):
        return
    print(f"making {envs / name} ...", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(envs / name)], check=True)
    if name != BASE:
        (_packages(envs, name) / "zz-base.pth").write_text(f"{_packages(envs, BASE)}\n")
    listed = HERE / "requirements" / f"{name}.txt"
    command = [str(python(envs, name)), "-m", "pip", "install", "--quiet", "--requirement", str(listed)]
    subprocess.run(command, check=True, cwd=ROOT, env=_clean())  # "-e ." in topwork's list is this checkout
    (envs / name / MARK).write_text(_wanted(name))


def _packages(envs: Path, name: str) -> Path:
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python(envs, name), "-c", query], check=True, capture_output=True, text=True)
    return Path(found.stdout.strip())


def _wanted(name: str) -> str:
    """What an environment is made from: the interpreter, the list, base's list, and for topwork where it lies."""
    lists = dict.fromkeys((BASE, name))
    text = sys.version + "".join((HERE / "requirements" / f"{n}.txt").read_text() for n in lists)
    if name == "topwork":
        text += str(ROOT) + (ROOT / "pyproject.toml").read_text()
    return hashlib.sha256(text.encode()).hexdigest()


def _clean() -> dict[str, str]:
    """The environment's variables without what would let packages in from elsewhere."""
    return {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
