"""The command line: what a user types, what is printed where, and how it ends."""

from __future__ import annotations

import csv
import dataclasses
import errno
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from sklearn import datasets

import topwork
from conftest import CLASSES, SIZE_PX, Finished, WritePhotos
from topwork import cli, features, survey, zoo
from topwork.shards import Writer

COMMANDS = ("fit", "plan", "check", "predict", "evaluate", "explain", "report", "backbones", "demo")


@dataclass(frozen=True)
class Ended:
    """One call of the command line: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """Everything that was said, whatever the width."""
        return " ".join((self.out + " " + self.err).split())


Call = Callable[..., Ended]


def ended() -> int:
    """Run the front door as the installed script does."""
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


loaded = functools.cache(zoo.load)


@pytest.fixture(autouse=True)
def one_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same backbone is loaded once for the whole file: a second of every call."""
    monkeypatch.setattr(zoo, "load", loaded)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Type `topwork ARGUMENTS` in an empty folder, at 80 columns."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("TOPWORK_CACHE", str(tmp_path / "cache"))

    def typed(*arguments: object, columns: int = 80) -> Ended:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["topwork", *map(str, arguments)])
        capsys.readouterr()
        code = ended()
        seen = capsys.readouterr()
        return Ended(code, seen.out, seen.err)

    return typed


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No weights at hand and none to be had: a proxy that refuses. Gives where torch would look for weights."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nothing listens
    # urllib keeps the opener that it made first, with the proxies of then: neither into this test nor out of it.
    monkeypatch.setattr("urllib.request._opener", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def one_object(text: str) -> Any:
    """The one JSON object that this text is; anything before or after it is an error."""
    assert text.startswith("{")
    assert text.endswith("}\n")
    return json.loads(text)


def head(finished: Finished, *more: object) -> list[object]:
    """The quickest fit there is: of pictures that the cache knows."""
    return ["fit", finished.folder, "--size", SIZE_PX, "--cache", finished.cache, "--strategy", "head", *more]


# ---------------------------------------------------------------------------------------------- help


def test_no_command_is_untested() -> None:
    assert {c.callback.__name__ for c in cli.app.registered_commands if c.callback} == set(COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_the_first_help_lists_every_command(call: Call, arguments: list[str]) -> None:
    said = call(*arguments)
    assert said.code in {0, 2}  # without a command, click calls the help a usage error
    for command in COMMANDS:
        assert re.search(rf"\b{command} ", said.out + said.err)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_names_every_argument_and_option(call: Call, command: str) -> None:
    said = call(command, "--help", columns=120)
    assert said.code == 0
    for parameter in typer.main.get_command(cli.app).commands[command].params:  # type: ignore[attr-defined]
        names = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar or parameter.name]
        for name in names:
            assert name.rstrip(".").lower() in said.out.lower(), name
        assert parameter.help, parameter.name
    assert said.err == ""


@pytest.mark.parametrize("columns", [40, 80])
def test_help_fits_the_terminal(call: Call, columns: int) -> None:
    for arguments in [["--help"], *([c, "--help"] for c in COMMANDS)]:
        lines = call(*arguments, columns=columns).out.splitlines()
        assert max(map(len, lines)) <= columns


def test_python_m_topwork_is_topwork() -> None:
    run = subprocess.run([sys.executable, "-m", "topwork", "--help"], capture_output=True, text=True, check=True)
    assert "evaluate" in run.stdout
    wrong = subprocess.run([sys.executable, "-m", "topwork", "frobnicate"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2


# ---------------------------------------------------------------------------------------------- fit


def test_fit_prints_the_whole_story(call: Call, finished: Finished) -> None:
    """Data, backbone, depth table, plan, result, cost, files, next steps: in that order, on standard output."""
    said = call(*head(finished, "--out", "mine"))
    assert said.code == 0
    run = topwork.load_run("mine")
    end = 0
    story = ["Data", "Backbone", "Accuracy at every cut", "<- chosen", "Plan", "Result", "Confusion", "Cost", "Head"]
    for part in [*story, "Model", "Files", "Next"]:
        end = said.out.find(part, end)
        assert end >= 0, part
    assert f"accuracy {100 * run.metrics.accuracy.value:.1f}%" in said.words
    assert f"Cut after {run.plan.cut}" in said.words
    assert "topwork predict mine" in said.out
    assert said.err.strip() == ""  # no terminal, no progress


def test_fit_json_prints_one_object_and_nothing_else(call: Call, finished: Finished) -> None:
    said = call(*head(finished, "--out", "mine", "--json"))
    assert said.code == 0
    record, got = topwork.load_run("mine").record, one_object(said.out)
    accuracy = record.metrics.accuracy
    assert got == {
        "run": "mine",
        "backbone": record.backbone.name,
        "size_px": SIZE_PX,
        "cut": record.plan.cut,
        "kept_cost": record.plan.kept_cost,
        "cost_ms": record.plan.cost_ms,
        "strategy": "head",
        "accuracy": {"value": accuracy.value, "low": accuracy.low, "high": accuracy.high, "on": accuracy.on},
        "multi_label": None,
        "cost_fe": record.spending.cost_fe,
        "seconds": record.spending.total_seconds,
        "warnings": [],
    }
    assert "Accuracy at every cut" in said.err  # the story goes on where people look


def test_fit_json_tells_what_was_left_out(
    call: Call, make_photos: WritePhotos, tmp_path: Path, damaged_png: bytes
) -> None:
    photos = make_photos(tmp_path / "photos", per_class=2)
    (photos / "bark" / "broken.png").write_bytes(damaged_png)
    shutil.copy(photos / "bark" / "000.png", photos / "bark" / "again.png")
    said = call("fit", photos, "--size", 32, "--strategy", "head", "--json")
    assert said.code == 0
    got = one_object(said.out)
    assert got["run"] == "runs/photos"
    assert len(got["warnings"]) == 2
    assert "very same content" in got["warnings"][0]
    assert got["warnings"][1].startswith("1 file")
    assert Path("runs/photos/run.json").is_file()


def test_every_option_of_fit_arrives(call: Call, finished: Finished) -> None:
    arguments = {
        "--size": SIZE_PX, "--strategy": "head", "--cut": "blocks.1.0", "--delta": 0.2, "--seed": 3, "--out": "mine",
        "--cache": finished.cache, "--split-of": finished.run.path,
    }  # fmt: skip
    flags = ["--no-flip", "--balance", "--one-depth", "--no-bursts", "--no-pictures"]
    said = call("fit", finished.folder, *flags, *[x for pair in arguments.items() for x in pair])
    assert said.code == 0
    got = dataclasses.asdict(topwork.load_run("mine").record.options)
    assert got == {
        "folder": str(finished.folder), "backbones": ("efficientnet_lite0",), "weights": None, "sizes": (SIZE_PX,),
        "strategy": "head", "cut": "blocks.1.0", "unfreeze": None, "lr": None, "epochs": None, "flip": False,
        "balance": True, "several_depths": False, "budget": None, "delta": 0.2, "seed": 3, "cache": str(finished.cache),
        "columns": {"image": None, "labels": (), "split": None, "group": None, "separator": None},
        "bursts": False, "split_of": str(finished.run.path), "pictures": False,
    }  # fmt: skip
    assert topwork.load_run("mine").plan.cut == "blocks.1.0"
    assert not any((Path("mine") / name).exists() for name in ("report.html", "explained.parquet", "embedding.parquet"))


# ---------------------------------------------------------------------------------------------- several backbones

LITE = "efficientnet_lite0"
BOTH = ("--backbone", LITE, "--size", SIZE_PX, "--backbone", LITE, "--size", 48)
"""One network at two input sizes: two contenders."""


def test_fit_with_several_tells_how_they_stand_and_keeps_it(call: Call, finished: Finished) -> None:
    options = [*BOTH, "--cache", finished.cache, "--strategy", "head", "--out", "mine"]
    said = call("fit", finished.folder, *options, columns=120)
    assert said.code == 0
    run = topwork.load_run("mine")
    record, plan = run.record, run.plan
    assert (record.options.backbones, record.options.sizes) == ((LITE, LITE), (SIZE_PX, 48))
    assert sorted((s.backbone, s.size_px) for s in record.backbones) == [(LITE, 48), (LITE, SIZE_PX)]
    assert [s.fate for s in record.backbones] == ["chosen", "measured"]
    assert (plan.backbone, plan.size_px) == (record.backbones[0].backbone, record.backbones[0].size_px)
    assert run.model.facts.preprocessing.crop_px == plan.size_px
    assert {len(s.scores) for s in record.backbones} == {len(finished.run.scores)}
    end = 0
    for part in ["Data", "at 48 px", f"at {SIZE_PX} px", "Accuracy at every cut", "Backbones, each at", "Plan", "Next"]:
        end = said.out.find(part, end)
        assert end >= 0, part
    table = said.out[said.out.index("Backbones, each at") : said.out.index("Plan")]
    for s in record.backbones:
        assert s.best is not None
        (row,) = [line for line in table.splitlines() if f"{LITE} {s.size_px} px" in line]
        assert f"{s.best.accuracy:.1%}" in row
        assert ("<- chosen" in row) is (s.fate == "chosen")
    assert "The best place of each backbone" in said.words
    picture = Path("mine/depth.svg").read_text()
    assert f"{LITE}, {SIZE_PX} px" in picture
    assert f"{LITE}, 48 px" in picture
    pictures = sorted(finished.folder.rglob("*.png"))
    answers = run.model.predict(pictures)
    assert [a.label for a in answers] == [p.parent.name for p in pictures]  # which the model has seen


def test_several_are_one_json_object_too(call: Call, finished: Finished) -> None:
    options = [*BOTH, "--cache", finished.cache]
    fitted = call("fit", finished.folder, *options, "--strategy", "head", "--out", "mine", "--json")
    planned = call("plan", finished.folder, *options, "--json")
    assert (fitted.code, planned.code) == (0, 0)
    got, run = one_object(fitted.out), topwork.load_run("mine")
    assert (got["size_px"], got["cut"], got["cost_ms"]) == (run.plan.size_px, run.plan.cut, run.plan.cost_ms)
    backbones = one_object(planned.out)["backbones"]
    assert {b["size_px"] for b in backbones} == {SIZE_PX, 48}
    measured = {s.size_px: [c.accuracy for c in s.scores] for s in run.record.backbones}
    assert {b["size_px"]: [c["accuracy"] for c in b["scores"]] for b in backbones} == measured


def test_plan_draws_a_picture_of_its_own_and_no_other_file(call: Call, finished: Finished) -> None:
    options = [*BOTH, "--cache", finished.cache, "--balance", "--picture", "depth.svg"]
    said = call("plan", finished.folder, *options)
    assert said.code == 0
    assert "1 FE of each backbone" in said.words
    picture = Path("depth.svg").read_bytes()
    assert picture.startswith(b"<?xml")
    assert f"{LITE}, {SIZE_PX} px".encode() in picture
    assert [p.name for p in Path.cwd().iterdir()] == ["depth.svg"]
    again = call("plan", finished.folder, *options)
    assert again.code == 2
    assert Path("depth.svg").read_bytes() == picture


def test_auto_is_what_is_at_hand(call: Call, finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache holds the one size; the budget does not pay for the other."""
    monkeypatch.setattr(zoo, "at_hand", lambda weights: [LITE])
    options = ["--backbone", "auto", "--size", SIZE_PX, "--size", 128, "--cache", finished.cache, "--budget", "0.001s"]
    said = call("plan", finished.folder, *options)
    assert said.code == 0
    assert f"Left out {LITE} at 128 px: its pass would take about" in said.words
    said = call("fit", finished.folder, *options, "--strategy", "head", "--out", "mine", "--json")
    assert said.code == 0
    record = topwork.load_run("mine").record
    assert [(s.size_px, s.fate) for s in record.backbones] == [(SIZE_PX, "chosen"), (128, "left out")]
    assert not Path("mine/depth.svg").exists()  # a picture of one curve would add nothing to the table
    assert one_object(said.out)["size_px"] == SIZE_PX


@pytest.mark.slow
def test_a_plan_of_many_images_stops_where_it_is_decided_and_all_images_goes_on(
    call: Call, make_photos: WritePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty count as many here; with so wide a delta, twenty decide."""
    folder = make_photos(tmp_path / "photos", per_class=20)
    monkeypatch.setattr(survey, "LARGE", 60)
    monkeypatch.setattr(survey, "FIRST", 20)
    monkeypatch.setattr(survey, "PER_CLASS", 1)
    options = ["--size", SIZE_PX, "--cache", tmp_path / "cache", "--delta", 0.9]
    said = call("plan", folder, *options)
    assert said.code == 0
    assert "Planned on 20 of 60 images, which are enough to decide" in said.words
    assert "Images 20 of 60 were enough; --all-images measures all." in said.words
    everything = call("plan", folder, *options, "--all-images", "--json")
    facts = json.loads(everything.out)
    assert facts["backbones"][0]["n"] == 60
    assert not any(reason.startswith("Planned on") for reason in facts["plan"]["reasons"])
    shorter = [s["images"] for s in facts["backbones"][0]["scores"]]
    assert set(shorter) <= {20, 60}
    assert shorter == sorted(shorter, reverse=True)
    again = call("plan", folder, *options, "--all-images")
    if 20 in shorter:
        assert "The last 40 images passed only up to" in again.words
        assert re.search(r"about \d+ s \(0\.\d\d FE\)", again.words)


@pytest.mark.slow
def test_two_are_trained_where_a_search_is_asked_for(call: Call, finished: Finished, tmp_path: Path) -> None:
    """Pictures in any class: enough errors that trainings are tried."""
    mixed = tmp_path / "mixed"
    for i, path in enumerate(sorted(finished.folder.rglob("*.*g"))):
        label = mixed / ("one", "two")[i * i % 7 % 2]
        label.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, label / f"{i}{path.suffix}")
    said = call("fit", mixed, *BOTH, "--epochs", 1, "--budget", "60s", "--out", "mine")
    assert said.code == 0
    record = topwork.load_run("mine").record
    assert record.tuning is not None
    assert {t.size_px for t in record.tuning.trials} == {SIZE_PX, 48}
    sizes = [t.size_px for t in record.tuning.trials]
    assert sizes == sorted(sizes, key=lambda s: s != sizes[0])  # one after the other
    assert record.tuning.spent_seconds >= sum(t.seconds for t in record.tuning.trials) - 1e-6


# ---------------------------------------------------------------------------------------------- how it ends

WRONG: list[tuple[list[object], int, list[str]]] = [
    # what is typed, the exit code, what the message must say
    (["frobnicate"], 2, ["frobnicate", "--help"]),
    (["fit"], 2, ["folder of images", "--resume", "--help"]),
    (["fit", "{photos}", "--frobnicate"], 2, ["--frobnicate", "--help"]),
    (["fit", "{photos}", "--strategy", "prayer"], 2, ["--strategy", "prayer", "auto", "suffix"]),
    (["fit", "{photos}", "--size", "large"], 2, ["--size large", "px", "auto"]),
    (["fit", "{photos}", "--size", "²"], 2, ["--size ²", "px", "auto"]),
    (["fit", "{photos}", "--size", 48, "--size", 5], 2, ["--size 5", "32", "1024"]),
    (["fit", "{photos}", "--backbone", "auto", "--cut", "bn1"], 2, ["--cut", "one backbone", "--backbone"]),
    (["fit", "{photos}", "--backbone", "auto", "--weights", "{run}/run.json"], 2, [
        "--weights", "one backbone", "folder"]),
    (["plan", "{photos}", "--backbone", "auto", "--budget", "soon"], 2, ["--budget soon", "10m", "40fe"]),
    (["plan", "{photos}", "--budget", "10m"], 2, ["--budget", "--backbone auto"]),
    (["plan", "{photos}", "--picture", "{run}/run.json"], 2, ["--picture {run}/run.json", "exists already", "another"]),
    (["fit", "{photos}", "--size", 5], 2, ["--size 5", "32", "1024"]),
    (["fit", "{photos}", "--delta", 2], 2, ["--delta 2", "from 0 to below 1"]),
    (["plan", "{photos}", "--delta", -0.1], 2, ["--delta -0.1", "from 0 to below 1"]),
    (["fit", "{photos}", "--lr", 7], 2, ["--lr 7", "up to 1"]),
    (["fit", "{photos}", "--budget", "soon"], 2, ["--budget soon", "10m", "40fe"]),
    (["fit", "{photos}", "--strategy", "head", "--epochs", 3], 2, ["--epochs", "--strategy head"]),
    (["fit", "{photos}", "--backbone", "resnet19"], 2, ["resnet19", "did you mean resnet18", "topwork backbones"]),
    (["fit", "{photos}", "--size", 64, "--cut", "layer9"], 2, ["'layer9'", "blocks.1.0"]),
    (["fit", "{photos}", "--out", "{run}"], 2, ["--out {run}", "exists already", "another folder"]),
    (["fit", "{photos}", "--resume", "{run}"], 2, ["either", "--resume"]),
    (["predict", "{run}"], 2, ["IMAGES", "--help"]),
    (["predict", "{run}", "{empty}"], 2, ["{empty}", "no files"]),
    (["predict", "{run}", "{photos}", "--out", "a.xlsx"], 2, ["--out a.xlsx", ".csv, .jsonl, .parquet"]),
    (["predict", "{run}", "{photos}", "--out", "a.csv", "--json"], 2, ["--out a.csv", "--json"]),
    (["predict", "{run}", "{photos}", "--image-column", "x"], 2, ["--image-column", "table"]),
    (["fit", "nowhere"], 3, ["nowhere", "no such folder", "one folder per class"]),
    (["plan", "nowhere"], 3, ["nowhere", "no such folder", "one folder per class"]),
    (["check", "nowhere"], 3, ["nowhere", "no such folder", "one folder per class"]),
    (["fit", "{one}"], 3, ["{one}", "two classes", "1 found", "'bark'", "one folder per class"]),
    (["check", "{empty}"], 3, ["{empty}", "two classes", "0 found"]),
    (["fit", "{one}/bark"], 3, ["{one}/bark", "000.png", "outside any class", "folder"]),
    (["fit", "--resume", "nowhere"], 3, ["--resume nowhere", "no interrupted run", "topwork fit"]),
    (["fit", "--resume", "{run}"], 3, ["--resume {run}", "finished", "topwork predict"]),
    (["predict", "nowhere", "{photos}"], 3, ["nowhere", "no model", "model.json"]),
    (["evaluate", "nowhere", "{photos}"], 3, ["nowhere", "no model", "model.json"]),
    (["evaluate", "{run}", "nowhere"], 3, ["nowhere", "no such folder", "one folder per class"]),
    (["evaluate", "{run}", "{strange}"], 3, ["{strange}", "bark, sand, weave", "moss"]),
    (["fit", "{photos}", "--weights", "none.pth"], 4, ["--weights", "none.pth", "no such file", ".safetensors"]),
    (["fit", "{photos}", "--backbone", "resnet18"], 4, [
        "resnet18", "resnet18-f37072fd.pth", "https://download.pytorch.org/", "TORCH_HOME", "--weights FILE"]),
]  # fmt: skip


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("arguments", "code", "parts"), WRONG, ids=[" ".join(map(str, a)) for a, *_ in WRONG])
def test_a_call_that_cannot_be_carried_out_says_why_and_what_to_do(
    call: Call, finished: Finished, tmp_path: Path, arguments: list[object], code: int, parts: list[str]
) -> None:
    """The message names what came, what was expected and what to do; nothing is computed, no trace is shown."""
    places = {"photos": finished.folder, "run": finished.run.path}
    for name, inside in {"one": "bark", "strange": "moss", "empty": ""}.items():
        places[name] = tmp_path / name
        places[name].mkdir()
        if inside:
            shutil.copytree(finished.folder / "bark", places[name] / inside)
    said = call(*[str(a).format(**places) for a in arguments])
    assert said.code == code
    for part in parts:
        assert part.format(**places) in " ".join(said.err.split()), part
    assert "Traceback" not in said.err
    assert [p.name for p in Path.cwd().iterdir()] in ([], ["runs"])
    assert not list(Path.cwd().glob("runs/*"))


def test_a_place_that_cannot_be_written_is_named(call: Call, finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = call(*head(finished, "--out", tmp_path / "file" / "run"))
    assert said.code in {1, 2}
    assert f"--out {tmp_path / 'file' / 'run'}" in said.err


def test_a_cache_that_cannot_be_written_is_named(call: Call, finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = call("plan", finished.folder, "--size", 32, "--cache", tmp_path / "file")
    assert said.code in {1, 2}
    assert str(tmp_path / "file") in said.err
    assert "--cache" in said.err
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_seed_that_no_generator_takes_is_refused(call: Call, finished: Finished) -> None:
    said = call(*head(finished, "--seed", -1))
    assert said.code == 2
    assert "--seed -1" in said.err


def test_a_bug_shows_its_trace(call: Call, monkeypatch: pytest.MonkeyPatch, finished: Finished) -> None:
    """Nobody can mend what is hidden."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("topwork.workflow.fit", broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        call("fit", finished.folder)


def test_a_full_disk_is_told_in_words(
    call: Call, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "000.f16"))

    monkeypatch.setattr(Writer, "append", full)
    end = call("plan", photos, "--size", SIZE_PX)
    assert end.code == 1
    assert f"no space is left on the disk for {tmp_path / '000.f16'}" in end.words
    assert "--cache" in end.words and "Traceback" not in end.words


# ---------------------------------------------------------------------------------------------- Ctrl-C


def interrupt_at(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C when this batch of the pass has gone through the backbone, before it is kept."""
    append, seen = Writer.append, []

    def interrupted(self: Writer, *arguments: Any) -> None:
        seen.append(1)
        if len(seen) == batch:
            signal.raise_signal(signal.SIGINT)
        append(self, *arguments)

    monkeypatch.setattr(Writer, "append", interrupted)


def test_ctrl_c_ends_with_130_and_a_message(
    call: Call, monkeypatch: pytest.MonkeyPatch, finished: Finished, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        interrupt_at(1, patched)
        said = call("plan", finished.folder, "--size", 32, "--cache", tmp_path / "new")
    assert said.code == 130
    assert "interrupted" in said.err
    assert "Traceback" not in said.err


def test_after_ctrl_c_the_rest_is_passed_and_no_more(
    call: Call, monkeypatch: pytest.MonkeyPatch, finished: Finished, tmp_path: Path
) -> None:
    """The first batch is kept; the fit goes on with --resume, to the result of one that was never interrupted."""
    options = ["--size", SIZE_PX, "--cache", tmp_path / "new", "--strategy", "head", "--out", "mine"]
    with monkeypatch.context() as patched:
        interrupt_at(2, patched)
        call("fit", finished.folder, *options)
    assert not Path("mine").exists()
    again = call("fit", finished.folder, *options)
    assert again.code == 2
    assert "topwork fit --resume mine" in again.err
    assert call("fit", "--resume", "mine").code == 0
    record, whole = topwork.load_run("mine").record, finished.run.record
    assert record.spending.images_passed == 3 * 8 - features.BATCH
    assert record.metrics == whole.metrics
    assert [s.accuracy for s in record.scores] == [s.accuracy for s in whole.scores]
    assert [p.name for p in Path.cwd().iterdir()] == ["mine"]


@pytest.mark.slow
def test_a_program_that_gets_sigint_ends_with_130(finished: Finished, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from topwork.engine import Engine
submit = Engine.submit
def interrupted(self, *arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return submit(self, *arguments, **options)
Engine.submit = interrupted
sys.argv = ["topwork", "fit", {str(finished.folder)!r}, "--size", "32", "--cache", "new", "--out", "mine"]
from topwork.cli import main
main()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 130
    assert "interrupted" in run.stderr
    assert "--resume" in run.stderr
    assert "Traceback" not in run.stderr


# ---------------------------------------------------------------------------------------------- predict


@pytest.fixture
def mixed(finished: Finished, tmp_path: Path) -> list[Path]:
    """Two good pictures, a file that is none, and one that is not there."""
    (tmp_path / "notes.txt").write_text("no picture")
    good = [finished.folder / "bark" / "000.png", finished.folder / "weave" / "001.jpg"]
    return [good[0], tmp_path / "notes.txt", good[1], tmp_path / "gone.png"]


def test_predict_json_is_what_the_model_says(call: Call, finished: Finished, mixed: list[Path]) -> None:
    said = call("predict", finished.run.path, *mixed, "--json")
    assert said.code == 0  # one bad file ends nothing
    got = one_object(said.out)
    assert got["model"] == str(finished.run.path)
    assert got["classes"] == list(CLASSES)
    wanted = [dataclasses.asdict(p) for p in finished.run.model.predict(mixed)]
    for said_, own in zip(got["predictions"], json.loads(json.dumps(wanted)), strict=True):
        for field in ("probabilities", "probability", "unknown_score"):  # ONNX Runtime sums in another order
            own[field] = pytest.approx(own[field], abs=1e-4)
        assert said_ == own
    assert [p["source"] for p in got["predictions"]] == [str(f) for f in mixed]
    assert [p["error"] is None for p in got["predictions"]] == [True, False, True, False]


def test_predict_says_what_is_none_of_these_and_names_prediction_sets(
    call: Call, finished: Finished, tmp_path: Path
) -> None:
    known = finished.folder / "bark" / "000.png"
    strange = tmp_path / "strange.png"
    y, x = np.mgrid[:48, :48]
    Image.fromarray(np.where((x + y) % 2, 255, 0).astype(np.uint8)).convert("RGB").save(strange)
    said = one_object(call("predict", finished.run.path, known, strange, "--sets", "0.5", "--json").out)
    ours, theirs = said["predictions"]
    limit = finished.run.record.unknown
    assert limit is not None
    assert (ours["unknown"], theirs["unknown"]) == (False, True)
    assert ours["unknown_score"] < limit.threshold < theirs["unknown_score"]
    assert ours["label"] == ours["prediction_set"][0]
    told = call("predict", finished.run.path, known, strange).out
    assert "none of these" not in told.splitlines()[0]
    assert "none of these" in told
    cells = list(
        csv.DictReader(io.StringIO(call("predict", finished.run.path, strange, "--sets", "0.99", "--csv").out))
    )
    assert cells[0]["unknown"] == "true"
    assert cells[0]["prediction_set"].count("|") == 2  # 24 images promise no 99%: all three classes


@pytest.mark.parametrize("option", [("--sets", "1"), ("--false-alarm", "0.001")])
def test_predict_refuses_what_its_images_cannot_promise(
    call: Call, finished: Finished, option: tuple[str, str]
) -> None:
    said = call("predict", finished.run.path, finished.folder / "bark" / "000.png", *option)
    assert said.code == 2
    assert "expected a share" in said.err


def test_a_model_of_an_earlier_topwork_says_nothing_of_unknown_images(
    call: Call, finished: Finished, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(finished.run.path / "model", tmp_path / "model"))
    (home / "known.safetensors").unlink()
    said = one_object(call("predict", home, finished.folder / "bark" / "000.png", "--json").out)
    assert said["predictions"][0]["unknown"] is None
    assert said["predictions"][0]["label"] == "bark"


def test_predict_csv_has_a_row_for_every_file(call: Call, finished: Finished, mixed: list[Path]) -> None:
    said = call("predict", finished.run.path / "model", *mixed, "--csv")
    assert said.code == 0
    rows = list(csv.DictReader(io.StringIO(said.out)))
    beside = ["unknown", "unknown_score", "prediction_set"]
    assert list(rows[0]) == ["path", "label", "probability", "error", *beside, *CLASSES]
    for row, answer in zip(rows, finished.run.model.predict(mixed), strict=True):
        assert row["path"] == answer.source
        assert row["label"] == (answer.label or "")
        assert row["error"] == (answer.error or "")
        if answer.error is None:
            assert re.fullmatch(r"[01]\.\d{6}", row["probability"])
            assert float(row["probability"]) == pytest.approx(answer.probability, abs=1e-4)
            for name, share in answer.probabilities.items():
                assert float(row[name]) == pytest.approx(share, abs=1e-4)
        else:
            assert {row["probability"], *(row[c] for c in CLASSES)} == {""}


def test_predict_prints_a_line_for_every_file(call: Call, finished: Finished, mixed: list[Path]) -> None:
    said = call("predict", finished.run.path, *mixed, columns=40)
    assert said.code == 0
    lines = said.out.splitlines()
    for line, answer in zip(lines, finished.run.model.predict(mixed), strict=True):
        assert line.startswith(answer.source)
        if answer.error is None:
            found = re.search(rf"{answer.label}  ([\d.]+)%", line)
            assert found
            assert float(found.group(1)) == pytest.approx(100 * (answer.probability or 0), abs=0.06)
        else:
            assert answer.error in line


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_predict_writes_a_file_and_not_twice(
    call: Call, finished: Finished, mixed: list[Path], tmp_path: Path, ending: str
) -> None:
    out = tmp_path / f"answers{ending}"
    said = call("predict", finished.run.path, *mixed, "--out", out)
    assert said.code == 0
    assert said.out == ""
    assert "4 images, 2 without an answer" in said.err
    content = out.read_bytes()
    again = call("predict", finished.run.path, *mixed, "--out", out)
    assert again.code == 2
    assert "not overwritten" in again.err
    assert out.read_bytes() == content


def test_predict_reads_a_table_of_images(call: Call, finished: Finished, mixed: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("photo\n" + "".join(f"{p}\n" for p in mixed))
    plain, listed = (call("predict", finished.run.path, *a, "--csv").out for a in (mixed, [table]))
    assert listed == plain
    named = call("predict", finished.run.path, table, "--image-column", "photo", "--csv").out
    assert named == plain


def test_a_run_without_model_onnx_predicts_in_pytorch(
    call: Call, finished: Finished, mixed: list[Path], tmp_path: Path
) -> None:
    """Runs of earlier versions, and those that could not be proved equal."""
    shutil.copytree(finished.run.path / "model", tmp_path / "model")
    (tmp_path / "model" / "model.onnx").unlink()
    got = one_object(call("predict", tmp_path / "model", *mixed, "--json").out)["predictions"]
    assert [p["label"] for p in got] == [p.label for p in finished.run.model.predict(mixed)]


def test_a_folder_stands_for_the_files_in_it(call: Call, finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    shutil.copytree(finished.folder, folder)
    (folder / ".hidden").mkdir()
    for hidden in (folder / ".DS_Store", folder / ".hidden" / "x.png"):
        hidden.write_bytes(b"not for us")
    got = one_object(call("predict", finished.run.path, folder, "--json").out)["predictions"]
    assert [p["source"] for p in got] == [str(f) for f in sorted(folder.rglob("*.*g")) if ".hidden" not in f.parts]
    assert [p["label"] for p in got] == [Path(p["source"]).parent.name for p in got]  # as it was taught


# ---------------------------------------------------------------------------------------------- the other commands


def test_evaluate_shows_what_judge_measures(call: Call, finished: Finished, make_photos: WritePhotos) -> None:
    unseen = make_photos(Path("unseen"), seed=5, per_class=3)
    metrics, _ = topwork.judge(finished.run.path, unseen)
    said = call("evaluate", finished.run.path, unseen, "--json")
    assert said.code == 0
    assert one_object(said.out) == json.loads(json.dumps(dataclasses.asdict(metrics)))
    said = call("evaluate", finished.run.path, unseen)
    assert said.code == 0
    assert f"accuracy {100 * metrics.accuracy.value:.1f}%" in said.words
    assert "Confusion" in said.out


def test_evaluate_lists_what_it_left_out(
    call: Call, finished: Finished, make_photos: WritePhotos, damaged_png: bytes
) -> None:
    unseen = make_photos(Path("unseen"), seed=5, per_class=2, classes=(*CLASSES, "moss"))
    (unseen / "bark" / "notes.txt").write_text("no picture")
    (unseen / "sand" / "broken.png").write_bytes(damaged_png)
    said = call("evaluate", finished.run.path, unseen)
    assert said.code == 0
    assert "moss" in said.out
    assert "bark/notes.txt" in said.out
    assert "(6 images)" in said.words or "6 images of" in said.words


def test_evaluate_lists_what_could_not_be_decoded(
    call: Call, finished: Finished, make_photos: WritePhotos, damaged_png: bytes
) -> None:
    unseen = make_photos(Path("unseen"), seed=5, per_class=2)
    (unseen / "sand" / "broken.png").write_bytes(damaged_png)
    assert "sand/broken.png" in call("evaluate", finished.run.path, unseen).out


def test_check_lists_every_fault(call: Call, photos: Path, damaged_png: bytes) -> None:
    faults = {
        "bark/.hidden.png": "hidden",
        "bark/cut.png": "truncated",
        "bark/empty.png": "empty",
        "sand/notes.txt": "not an image",
        "moss": "empty folder",
        "readme.md": "outside any class",
    }
    (photos / "moss").mkdir()
    for name in faults.keys() - {"moss"}:
        (photos / name).write_bytes(damaged_png if name == "bark/cut.png" else b"" if "empty" in name else b"text")
    said = call("check", photos)
    assert said.code == 0
    for name, kind in faults.items():
        assert re.search(
            rf"^ +(Fault|Warning|Note)  {kind}: 1 left out: \S.*\n(.*\n)? +{re.escape(name)}$", said.out, re.M
        ), name
    assert "Ready" in said.out
    got = one_object(call("check", photos, "--json").out)
    assert {f["path"] for f in got["faults"]} == faults.keys()
    assert all(f["kind"] and f["detail"] for f in got["faults"])
    assert got["locked"] == "out-of-sample"


def test_check_groups_what_it_finds_the_most_severe_first(call: Call, photos: Path) -> None:
    data = (photos / "bark" / "000.png").read_bytes()
    (photos / "sand" / "copy.jpg").write_bytes(data)
    said = call("check", photos)
    torn, suffix = said.words.index("Fault contradicting labels"), said.words.index("Note wrong suffix")
    assert torn < suffix
    assert "bark/000.png" in said.words[torn:suffix]
    found = one_object(call("check", photos, "--json").out)["findings"]
    assert {(f["kind"], f["severity"]) for f in found} >= {("contradicting labels", "fault"), ("wrong suffix", "note")}


def test_check_strict_ends_with_its_own_code(call: Call, make_photos: WritePhotos) -> None:
    photos = make_photos(Path("good"), per_class=12)
    assert call("check", photos, "--strict").code == 0
    (photos / "bark" / "empty.png").touch()
    assert call("check", photos).code == 0
    assert call("check", photos, "--strict").code == 5
    assert call("check", photos, "--strict", "--json").code == 5


def test_check_writes_a_cleaned_list_once(call: Call, photos: Path) -> None:
    (photos / "bark" / "empty.png").touch()
    said = call("check", photos, "--fix", "list.csv")
    assert said.code == 0
    assert "Cleaned list" in said.out
    rows = Path("list.csv").read_text().splitlines()
    assert rows[0] == "path,label"
    assert len(rows) == 25
    for arguments, expected in (
        (["--fix", "list.csv"], "not overwritten"),
        (["--fix", "list.txt"], ".csv or .parquet"),
        (["--fix", "nowhere/list.csv"], "no folder"),
    ):
        wrong = call("check", photos, *arguments)
        assert wrong.code == 2
        assert expected in wrong.err + wrong.out
    assert Path("list.csv").read_text().splitlines() == rows


def test_check_says_what_the_result_will_rest_on(call: Call, make_photos: WritePhotos) -> None:
    make_photos(Path("split/train"), per_class=3)
    make_photos(Path("split/test"), per_class=2, seed=1)
    assert "on the test folder, which is locked" in call("check", "split").words
    make_photos(Path("plain"), per_class=3)
    assert "out of sample on all images" in call("check", "plain").words


def test_plan_is_what_fit_would_do(call: Call, finished: Finished) -> None:
    """Its costs are measured anew with every pass that the cache sees; the rest is the same."""
    options = ["--size", SIZE_PX, "--cache", finished.cache]
    said = call("plan", finished.folder, *options, "--json")
    assert said.code == 0
    got, run = one_object(said.out), finished.run
    assert got.keys() == {"plan", "backbones", "groups", "shortcuts", "growth"}
    for name in ("cut", "best_cut", "delta", "decided", "more_images", "strategy"):
        assert got["plan"][name] == getattr(run.plan, name)
    assert [(s["cut"], s["accuracy"]) for s in got["backbones"][0]["scores"]] == [
        (s.cut, s.accuracy) for s in run.scores
    ]
    said = call("plan", finished.folder, *options)
    assert said.code == 0
    assert f"Cut after {run.plan.cut}" in said.words
    assert "1 FE" in said.words
    assert list(Path.cwd().iterdir()) == []  # it saves no run


def test_explain_draws_a_picture_of_every_image_and_names_what_is_like_it(
    call: Call, finished: Finished, mixed: list[Path]
) -> None:
    said = call("explain", finished.run.path, *mixed, "--out", "seen")
    assert said.code == 0  # one bad file ends nothing
    names = ["000-explained.png", "001-explained.png"]
    assert sorted(p.name for p in Path("seen").iterdir()) == names
    for name, file in zip(names, (mixed[0], mixed[2]), strict=True):
        with Image.open(Path("seen") / name) as drawn:
            assert drawn.format == "PNG" and drawn.mode == "RGB"
        near = topwork.explain(finished.run, file).nearest
        assert f"{near[1].path} {near[1].label} {near[1].similarity:.2f}" in said.words
        assert str(Path("seen") / name) in said.words
    assert "not an image" in said.words and "No such file" in said.words
    again = call("explain", finished.run.path, mixed[0], "--out", "seen", "--class", "weave")
    assert again.code == 0 and "explained: weave" in again.words
    assert (Path("seen") / "000-explained-2.png").exists()


def test_explain_json_is_what_python_gives(call: Call, finished: Finished, mixed: list[Path]) -> None:
    said = call("explain", finished.run.path, *mixed, "--json", "--out", "seen", "--class", "sand")
    got = one_object(said.out)
    assert got["model"] == str(finished.run.path)
    assert [e["source"] for e in got["explanations"]] == [str(f) for f in mixed]
    assert [e["error"] is None for e in got["explanations"]] == [True, False, True, False]
    for file, e in zip(mixed[::2], got["explanations"][::2], strict=True):
        wanted = topwork.explain(finished.run, file, "sand")
        assert (e["class"], e["label"], e["probability"]) == ("sand", wanted.prediction.label, wanted.probability)
        assert np.sum(e["map"]) + e["bias"] == pytest.approx(e["score"], abs=1e-3)
        assert [n["path"] for n in e["nearest"]] == [n.path for n in wanted.nearest]
        assert Path(e["picture"]).is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--class", "wool"], "--class wool: the model has no such class; expected"),
        (["--out", "there.png"], "--out there.png: exists already and is not overwritten"),
        (["--out", "new.png"], "--out new.png: one file for 4 images; name a folder"),
    ],
)
def test_explain_refuses_what_it_cannot_do(
    call: Call, finished: Finished, mixed: list[Path], options: list[str], words: str
) -> None:
    Path("there.png").write_text("mine")
    said = call("explain", finished.run.path, *mixed, *options)
    assert said.code == 2 and words in said.words
    assert Path("there.png").read_text() == "mine"
    assert not list(Path().glob("*explained*"))


def test_a_report_is_drawn_again_and_elsewhere_and_over_nothing(call: Call, finished: Finished, tmp_path: Path) -> None:
    said = call("report", finished.run.path, "--out", tmp_path / "page.html")
    assert (said.code, said.out.strip()) == (0, str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_bytes() == (finished.run.path / "report.html").read_bytes()
    refused = call("report", finished.run.path, "--out", tmp_path / "page.html")
    assert refused.code == 2
    assert "exists already and is not overwritten" in refused.words
    none = call("report", tmp_path)
    assert none.code == 3
    assert "no run in it" in none.words


@pytest.mark.slow
def test_the_demo_shows_the_main_job(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the first 150 digits, for time; the demo itself takes all 1797."""
    digits = datasets.load_digits()
    monkeypatch.setattr(
        datasets, "load_digits", lambda: SimpleNamespace(images=digits.images[:150], target=digits.target[:150])
    )
    said = call("demo", "--size", 32)
    assert said.code == 0
    assert "150 handwritten digits" in said.words
    files = sorted(Path("topwork-demo/digits").rglob("*.png"))
    assert [int(f.parent.name) for f in files] == sorted(digits.target[:150])
    pixels = np.asarray(Image.open(files[0])).astype(float)
    np.testing.assert_allclose(pixels, digits.images[int(files[0].stem)] * 255 / 16, atol=0.5)  # whole grey levels
    record = topwork.load_run("topwork-demo/run").record
    assert record.metrics.accuracy.low > 0.2  # chance is 0.1
    again = call("demo", "--size", 32, "--json")
    assert one_object(again.out)["run"] == "topwork-demo/run-2"
    assert topwork.load_run("topwork-demo/run-2").record.spending.images_passed == 0


def test_the_demo_leaves_other_peoples_files_alone(call: Call) -> None:
    mine = Path("mine/digits/letters")
    mine.mkdir(parents=True)
    said = call("demo", "--folder", "mine")
    assert said.code == 2
    assert "mine/digits" in said.err
    assert "another folder" in said.err
    assert [p for p in Path("mine").rglob("*") if p.is_file()] == []


# ---------------------------------------------------------------------------------------------- odd names and terminals


@dataclass(frozen=True)
class Odd:
    """A finished run with markup and letters beyond ASCII in all its names."""

    photos: Path
    run: Path
    cache: Path


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Odd:
    from conftest import write_photos

    home = tmp_path_factory.mktemp("odd") / "[" / "]x"  # its path has [/] in it, which closes markup
    photos = write_photos(home / "photos [red]", classes=("[red]", "Bärlauch", "[bold]x"), per_class=3)
    (photos / "[red]" / "[link].png").write_text("no picture")
    run = topwork.fit(photos, size=32, strategy="head", out=home / "run [b]", cache=home / "cache")
    return Odd(photos, run.path, home / "cache")


def calls(odd: Odd, out: Path) -> list[list[object]]:
    known = ["--size", 32, "--cache", odd.cache]
    return [
        ["check", odd.photos],
        ["plan", odd.photos, *known],
        ["fit", odd.photos, *known, "--strategy", "head", "--out", out / "again [i]"],
        ["predict", odd.run, odd.photos],
        ["evaluate", odd.run, odd.photos],
    ]


def test_markup_in_names_is_printed_as_it_is(call: Call, odd: Odd, tmp_path: Path) -> None:
    for arguments in calls(odd, tmp_path):
        said = call(*arguments)
        assert said.code == 0, arguments
        for name in ("[red]", "[bold]x", "Bärlauch"):
            assert name in said.out, arguments
    missing = call("check", odd.photos / "[blue]")
    assert missing.code == 3
    assert "[blue]: no such folder" in missing.err


def test_no_name_turns_into_a_picture(call: Call, make_photos: WritePhotos, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "signs", classes=(":car:", "oak"), per_class=2)
    assert ":car: 2, oak 2" in call("check", photos).out


def test_a_narrow_terminal_is_no_reason_to_fail(call: Call, odd: Odd, tmp_path: Path) -> None:
    for arguments in calls(odd, tmp_path):
        said = call(*arguments, columns=30)
        assert said.code == 0, arguments
        if arguments[0] != "predict":  # a line a file, to be cut up by other programs
            assert max(map(len, said.out.splitlines())) <= 30


@pytest.fixture
def ascii_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[object]], tuple[int, bytes]]:
    """Type `topwork ARGUMENTS` where standard output takes nothing but ASCII (PYTHONIOENCODING=ascii)."""

    def typed(arguments: Sequence[object]) -> tuple[int, bytes]:
        raw = io.BytesIO()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
            patched.setattr(sys, "argv", ["topwork", *map(str, arguments)])
            return ended(), raw.getvalue()

    return typed


@pytest.mark.parametrize("k", range(5), ids=["check", "plan", "fit", "predict", "evaluate"])
def test_a_terminal_without_such_letters_is_no_reason_to_fail(
    ascii_out: Callable[[Sequence[object]], tuple[int, bytes]], odd: Odd, tmp_path: Path, k: int
) -> None:
    code, out = ascii_out(calls(odd, tmp_path)[k])
    assert code == 0
    assert b"rlauch" in out


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_what_programs_read_is_utf8_whatever_the_terminal(
    ascii_out: Callable[[Sequence[object]], tuple[int, bytes]], odd: Odd, form: str
) -> None:
    """RFC 8259: JSON between systems is UTF-8. No name may lose a letter on the way."""
    code, out = ascii_out(["predict", odd.run, odd.photos / "Bärlauch" / "000.png", form])
    assert code == 0
    text = out.decode("utf-8")
    named = json.loads(text)["classes"] if form == "--json" else next(csv.reader([text.splitlines()[0]]))
    assert "Bärlauch" in named


@pytest.mark.slow
def test_pythonioencoding_ascii_is_no_reason_to_fail(odd: Odd, tmp_path: Path) -> None:
    arguments = [str(a) for a in calls(odd, tmp_path)[1]]
    run = subprocess.run(
        [sys.executable, "-m", "topwork", *arguments], capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr.decode()
    assert b"chosen" in run.stdout


def test_a_resumed_fit_takes_no_other_options(call: Call, tmp_path: Path) -> None:
    """They would be ignored without a word."""
    said = call("fit", "--resume", tmp_path / "run", "--lr", 0.1, "--epochs", 3)
    assert said.code == 2
    assert "--epochs, --lr cannot be changed" in said.err


def test_the_version_is_told(call: Call) -> None:
    from importlib.metadata import version

    assert call("--version").out.strip() == f"topwork {version('topwork')}"
