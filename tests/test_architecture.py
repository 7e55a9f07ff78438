"""Imports point one way, and importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import topwork

HOUSE = Path(topwork.__file__).parent

LEAVES = {"errors", "records", "watch"}
"""What every room may import."""

ALLOWED: dict[str, set[str]] = {
    # room: the rooms it may import besides the leaves
    "images": set(),
    "zoo": set(),  # the whole package; what its modules import of each other is their own affair
    "engine": set(),
    "statistics": set(),
    "memo": set(),
    "ahead": set(),
    "views": {"images"},
    "stores": {"images"},
    "listing": {"images", "stores"},
    "thumbnails": {"images", "files", "stores"},
    "activations": {"images", "stores", "views", "thumbnails", "zoo", "engine", "ahead"},
    "speed": {"zoo", "engine"},
    "catalogue": {"zoo", "speed"},
    "terminal": set(),  # draws records, computes nothing
    "demo": set(),
    "budget": set(),
    "files": set(),
    "pictures": {"files"},
    "trackers": set(),
    "groups": set(),
    "splits": {"groups"},
    "data": {"groups", "images", "listing", "sketches", "statistics", "stores"},
    "shards": set(),
    "features": {"images", "zoo", "engine", "ahead", "shards", "sketches", "stores", "thumbnails"},
    "sketches": set(),
    "faults": {"sketches"},
    "cleaned": {"files"},
    "ranking": set(),
    "sigmoid": {"ranking"},
    "probe": {"ranking"},
    "plan": {"statistics"},
    "logistic": {"probe"},
    "head": {"logistic", "probe", "sigmoid"},
    "stack": {"probe", "statistics"},
    "evaluate": {"statistics", "ranking", "sigmoid"},
    "correction": {"head", "probe", "statistics"},
    "answers": {"statistics"},
    "trust": {"answers", "statistics"},
    "known": {"files"},
    "asking": {"answers", "images", "known"},
    "runtime": {"answers", "asking", "known"},
    "batch": {"answers", "asking", "images", "listing", "stores"},
    "model": {"answers", "asking", "known", "zoo", "engine"},
    "portable": {"answers", "engine", "model", "runtime"},
    "explanation": {"answers", "images", "known"},  # NumPy alone: whatever computed the scores
    "embedding": set(),
    "learnt": {"explanation", "known"},
    "explained": {"embedding", "explanation", "files", "images", "known", "learnt", "model", "runs", "splits"}
    | {"stores"},
    "feed": set(),
    "replay": set(),
    "search": {"train", "head", "statistics", "memo"},
    "tune": {"statistics", "measurement", "activations", "features", "head", "search", "train", "zoo"},
    "train": {"activations", "engine", "feed", "replay", "zoo", "head", "statistics"},
    "measurement": {"statistics", "zoo", "features", "groups", "memo", "probe", "head", "stack", "plan", "ranking"},
    "sides": {"data", "faults", "features", "groups", "images", "memo", "sketches", "stores", "zoo"},
    "survey": {"budget", "data", "faults", "features", "listing", "measurement", "plan", "statistics", "zoo"}
    | {"groups", "sides", "splits"},
    "suspects": {"head", "plan"},
    "shortcuts": {"head", "probe", "statistics"},
    "growth": {"head", "probe", "statistics"},
    "doubts": {"survey", "measurement", "features", "memo", "plan", "probe", "sketches"}
    | {"suspects", "shortcuts", "growth"},
    "elsewhere": {
        "answers",
        "engine",
        "images",
        "model",
        "portable",
        "runs",
        "runtime",
        "splits",
        "statistics",
        "stores",
    },
    "card": set(),  # drawn from the record
    "comparison": {"card", "files", "groups", "ranking", "runs", "statistics"},
    "runs": {"card", "files", "model", "pictures", "portable", "runtime", "splits"},
    "serve": {"answers", "asking", "explanation", "images"},
    "report": {"files", "images", "stores"},
    "outcome": {"asking", "correction", "data", "evaluate", "head", "known", "measurement", "memo", "model", "plan"}
    | {"portable", "stores", "survey", "trust", "tune", "zoo"},
    "judging": {"asking", "data", "evaluate", "listing", "model", "ranking", "statistics", "stores", "trust"},
    "workflow": {
        "budget",
        "cleaned",
        "data",
        "doubts",
        "explained",
        "faults",
        "head",
        "listing",
        "measurement",
        "model",
    }
    | {"outcome", "plan", "runs", "sketches", "stores", "survey", "tune", "zoo"}
    | {"report"},  # where it is there
    # the front door reads, it computes nothing
    "cli": {
        "workflow",
        "judging",
        "survey",
        "doubts",
        "runs",
        "model",
        "terminal",
        "trackers",
        "demo",
        "zoo",
        "data",
        "pictures",
    }
    | {"answers", "asking", "batch", "catalogue", "comparison", "elsewhere", "explained"}
    | {"faults", "images", "learnt", "report", "runtime", "serve"},
    "__main__": {"cli"},
    "__init__": {"workflow", "judging", "survey", "runs", "model", "answers", "catalogue", "zoo"}  # lazily
    | {"comparison", "elsewhere", "explained", "explanation", "records"},
    # among the leaves
    "errors": set(),
    "records": {"errors"},
    "watch": set(),
}


def rooms() -> dict[str, list[Path]]:
    """Every room with its files: a module, or a package with all its modules."""
    found = {path.stem: [path] for path in HOUSE.glob("*.py")}
    return found | {path.parent.name: sorted(path.parent.rglob("*.py")) for path in HOUSE.glob("*/__init__.py")}


def arrows(source: str, package: str = "topwork") -> set[str]:
    """The rooms that this code imports, at any depth, also those for type checking alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "topwork" else [module]
        else:
            continue
        found.update(name.split(".")[1] for name in names if name.startswith("topwork."))
    return found & rooms().keys()  # `from topwork import fit` names a function, not a room


def wrong(room: str, imported: set[str]) -> set[str]:
    leaves = set() if room in LEAVES else LEAVES
    return imported - ALLOWED[room] - leaves - {room}


@pytest.mark.parametrize("room", sorted(rooms()))
def test_no_arrow_points_the_wrong_way(room: str) -> None:
    assert room in ALLOWED, f"{room}: a new room needs a place in the house (tests/test_architecture.py, ALLOWED)"
    for path in rooms()[room]:
        package = "topwork" if path.parent == HOUSE else f"topwork.{path.parent.name}"
        bad = wrong(room, arrows(path.read_text(), package))
        assert not bad, f"{path.relative_to(HOUSE)} imports {', '.join(sorted(bad))}"


def test_the_plan_of_the_house_has_no_circle() -> None:
    inside = {room: allowed | (set() if room in LEAVES else LEAVES) for room, allowed in ALLOWED.items()}
    assert set(TopologicalSorter(inside).static_order()) == ALLOWED.keys()


@pytest.mark.parametrize(
    "line",
    [
        "import topwork.workflow",
        "from topwork import workflow",
        "from topwork.workflow import fit",
        "from . import workflow",
        "from .workflow import fit",
        "def late():\n    from topwork import workflow",
        "if TYPE_CHECKING:\n    from topwork.workflow import Run",
    ],
)
def test_every_way_to_write_an_import_is_seen(line: str) -> None:
    assert wrong("images", arrows(line)) == {"workflow"}


def test_public_names_live_in_init_alone() -> None:
    """Every name is offered once, is found where it is said to live, and nothing else is."""
    assert sorted(topwork.__all__) == sorted(topwork._HOMES)
    assert dir(topwork) == sorted(topwork.__all__)
    for name in topwork.__all__:
        assert getattr(topwork, name).__module__ == f"topwork.{topwork._HOMES[name]}"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        topwork.nothing  # noqa: B018


def loaded_by(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has loaded after this code."""
    tail = "\nimport sys\nprint('\\n' + ' '.join({m.split('.')[0] for m in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


HEAVY = {"torch", "torchvision", "numpy", "timm", "scipy", "sklearn", "PIL", "pyarrow", "safetensors"}


def test_importing_topwork_imports_nothing_heavy() -> None:
    assert not loaded_by("import topwork") & HEAVY


def test_records_and_errors_are_plain() -> None:
    """Whoever reads run.json needs no torch."""
    assert not loaded_by("import topwork.records, topwork.errors, topwork.watch") & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"]])
def test_help_answers_without_anything_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ['topwork', *{arguments!r}]
from topwork.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    assert not loaded_by(code) & HEAVY
