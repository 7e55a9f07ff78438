"""Without PyTorch: the same answers, in the same words, and nothing heavy is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from conftest import Finished
from test_model import answers, rewrite
from topwork import model, runtime
from topwork.errors import DataError, MissingError, TopworkError
from topwork.records import SCHEMA, encode

HEAVY = ("torch", "torchvision", "timm", "sklearn", "scipy", "pyarrow", "matplotlib", "onnx", "pandas", "safetensors")

BLOCKED = f"""
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split(".")[0])

sys.meta_path.insert(0, Blocked())
"""


def blocked(code: str, *arguments: str, but: str = "") -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that has none of them; `but` one."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED.replace(repr(but), "''") + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.run.path / "model", tmp_path / "model"))


def files(finished: Finished) -> list[Any]:
    return sorted(finished.folder.rglob("*.*"))


# ---- what it answers


def test_it_answers_what_the_model_answers(finished: Finished) -> None:
    sources = [*files(finished), b"no image", finished.folder / "absent.png"]
    wanted, got = model.load(finished.run.path).predict(sources), runtime.load(finished.run.path).predict(sources)
    assert [(p.source, p.label, p.labels, p.error) for p in wanted] == [
        (p.source, p.label, p.labels, p.error) for p in got
    ]
    np.testing.assert_allclose(answers(got[:-2]), answers(wanted[:-2]), atol=1e-4)


def test_it_sees_what_the_model_sees(finished: Finished) -> None:
    a, b = model.load(finished.run.path), runtime.load(finished.run.path, threads=1)
    batch = np.stack([a.load(f) for f in files(finished)[:5]])
    wanted, got = a.see(batch), b.see(batch)
    for x, y in [(wanted.scores, got.scores), (wanted.pooled, got.pooled), *zip(wanted.maps, got.maps, strict=True)]:
        np.testing.assert_allclose(y, x, atol=1e-4 * np.abs(x).max())
    np.testing.assert_array_equal(b.logits(batch), got.scores)
    np.testing.assert_allclose(b.probabilities(batch), a.probabilities(batch), atol=1e-4)
    assert (b.classes, b.facts) == (a.classes, a.facts)


def test_a_file_alone_is_enough(copied: Path, finished: Finished, tmp_path: Path) -> None:
    """Under any name, anywhere, without the model.json that it came with; beside another's, even."""
    alone = copied / "leaves.onnx"
    (copied / "model.onnx").rename(alone)
    rewrite(copied, temperature=9.0)
    loaded = runtime.load(alone)
    assert loaded.facts == finished.run.model.facts
    assert loaded.predict(files(finished)[:1])[0].error is None


def test_run_and_model_folder_load_alike(finished: Finished) -> None:
    one, two = (runtime.load(p).predict(files(finished)[:3]) for p in (finished.run.path, finished.run.path / "model"))
    assert one == two


# ---- without PyTorch

ASK = """
from topwork import runtime
from topwork.records import encode
sys.stdout.write(encode(runtime.load(sys.argv[1]).predict(sys.argv[2:])).decode())
"""


def test_it_runs_where_none_of_the_heavy_libraries_is(finished: Finished) -> None:
    some = [str(f) for f in files(finished)[:3]]
    ran = blocked(ASK, str(finished.run.path), *some)
    assert ran.returncode == 0, ran.stderr
    here = runtime.load(finished.run.path).predict(some)
    assert [p["label"] for p in json.loads(ran.stdout)] == [p.label for p in here]
    for there, own in zip(json.loads(ran.stdout), here, strict=True):
        assert there["probabilities"] == pytest.approx(asdict(own)["probabilities"], abs=1e-5)


def test_only_these_are_loaded(finished: Finished) -> None:
    """Whatever else is installed: what is not loaded costs no time."""
    tail = "\nprint(' '.join({m.split('.')[0] for m in sys.modules}))"
    code = f"import sys\nfrom topwork import runtime\nruntime.load(sys.argv[1]).predict([]){tail}"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(finished.run.path)], capture_output=True, text=True, check=True
    )
    assert not set(ran.stdout.split()) & (set(HEAVY) | {"typer", "rich", "fsspec", "jinja2"})


SERVE = """
from pathlib import Path
from starlette.testclient import TestClient
from topwork import runtime, serve
from topwork.serve.run import named
with TestClient(serve.create(named(sys.argv[1:2], runtime.load))) as client:
    sys.stdout.write(client.post("/predict?heat_map=true", content=Path(sys.argv[2]).read_bytes()).text)
"""


def test_the_server_runs_there_too(finished: Finished) -> None:
    ran = blocked(SERVE, str(finished.run.path), str(files(finished)[0]), but="safetensors")
    assert ran.returncode == 0, ran.stderr
    [one] = json.loads(ran.stdout)["results"]
    assert one["label"] == runtime.load(finished.run.path).predict(files(finished)[:1])[0].label
    assert one["heat_map"].startswith("data:image/jpeg")


COMMAND = "sys.argv = ['topwork', *sys.argv[1:]]\nfrom topwork.cli import main\nmain()\n"


def test_the_command_line_predicts_without_pytorch(finished: Finished) -> None:
    ran = blocked(COMMAND, "predict", str(finished.run.path), str(finished.folder), "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["predictions"]
    assert len(found) == len(files(finished))
    assert all(p["error"] is None for p in found)


def test_what_needs_pytorch_says_so(finished: Finished) -> None:
    ran = blocked(COMMAND, "fit", str(finished.folder))
    assert ran.returncode == MissingError.exit_code
    assert "pip install topwork" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_small_distribution_is_the_same_one_with_fewer_dependencies() -> None:
    """runtime/pyproject.toml: same version, same command, the same bounds, and nothing that only training needs."""
    root = Path(__file__).parents[1]
    whole, small = (tomllib.loads((root / p / "pyproject.toml").read_text())["project"] for p in (".", "runtime"))
    for field in ("version", "requires-python", "license", "scripts"):
        assert small[field] == whole[field]
    assert set(small["dependencies"]) <= set(whole["dependencies"])
    names = {d.partition(">")[0] for d in small["dependencies"]}
    assert names == {"numpy", "pillow", "onnxruntime", "msgspec", "typer", "rich"}
    assert not names & set(HEAVY)


# ---- what is no model


def refusal(place: Path, kind: type[TopworkError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        runtime.load(place)
    return str(caught.value)


def test_a_folder_without_one_says_how_to_make_one(copied: Path, tmp_path: Path) -> None:
    (copied / "model.onnx").unlink()
    for place in (copied, tmp_path / "nowhere"):
        assert "no model.onnx in it" in refusal(place)
        assert "--to onnx" in refusal(place)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_one_that_ends_early_is_damaged(copied: Path, share: float) -> None:
    file = copied / "model.onnx"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    message = refusal(copied)
    assert str(file) in message
    assert "damaged" in message or "not written by topwork" in message


def test_nonsense_is_damaged(copied: Path) -> None:
    (copied / "model.onnx").write_bytes(np.random.default_rng(0).bytes(9999))
    assert "damaged" in refusal(copied)


def test_one_of_another_model_is_refused(copied: Path) -> None:
    """Its classes would be called by the other's names."""
    rewrite(copied, classes=["a", "b", "c"])
    assert "of another model" in refusal(copied)


def test_anothers_graph_is_refused(copied: Path) -> None:
    loaded = onnx.load(copied / "model.onnx")
    del loaded.metadata_props[:]
    onnx.save(loaded, copied / "model.onnx")
    assert "not written by topwork" in refusal(copied)


@pytest.mark.parametrize("change", [{"classes": ("a", "b")}, {"channels": 1}], ids=str)
def test_a_graph_that_does_not_fit_its_own_words_is_refused(
    copied: Path, finished: Finished, change: dict[str, Any]
) -> None:
    from dataclasses import replace

    facts = replace(finished.run.model.facts, **change)
    loaded = onnx.load(copied / "model.onnx")
    onnx.helper.set_model_props(loaded, {"model.json": encode(facts).decode()})
    onnx.save(loaded, copied / "other.onnx")
    assert "expected any number of" in refusal(copied / "other.onnx")


def test_a_newer_schema_says_to_upgrade(copied: Path) -> None:
    loaded = onnx.load(copied / "model.onnx")
    onnx.helper.set_model_props(loaded, {"model.json": json.dumps({"schema": SCHEMA + 1})})
    onnx.save(loaded, copied / "newer.onnx")
    assert "pip install --upgrade topwork" in refusal(copied / "newer.onnx")


def test_without_onnxruntime_it_says_what_to_install(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install onnxruntime" in refusal(finished.run.path, MissingError)
