"""A run that was killed goes on from where it stood, and ends with the very bytes of one that was not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import topwork
from conftest import Log, write_photos
from topwork import cli, outcome, records, report, runs, stores
from topwork.errors import DataError, LostError, UsageError
from topwork.records import Options

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SIZE, EPOCHS, BUDGET = 32, 3, "1h"  # what the budget allows does not depend on how busy this machine is
PATIENCE_S = 120


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of six."""
    return write_photos(tmp_path_factory.mktemp("resume") / "photos", per_class=6, size_px=40)


def fit(photos: Path, home: Path, watch: Log | None = None) -> runs.Run:
    return topwork.fit(
        photos, strategy="suffix", epochs=EPOCHS, size=SIZE, budget=BUDGET, out=home / "run", cache=home / "cache",
        watch=watch or Log(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(photos: Path, one_thread: None) -> bytes:
    """The model of a run that nothing interrupted."""
    return tensors(fit(photos, photos.parent / "whole").path)


def tensors(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def left_over(home: Path) -> list[str]:
    """What a finished run should have cleaned away: checkpoints, views, anything hidden."""
    cache = [*(home / "cache" / "trials").glob("*.now"), *(home / "cache" / "activations").glob("*")]
    return [str(p) for p in [*cache, *home.glob(".*")]]


@pytest.fixture
def begun(photos: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, under way in a process of its own, with tmp_path/run and tmp_path/cache."""
    command = [
        sys.executable, "-m", "topwork", "fit", str(photos), "--strategy", "suffix", "--epochs", str(EPOCHS),
        "--size", str(SIZE), "--budget", BUDGET, "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"),
    ]  # fmt: skip
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    process = subprocess.Popen(
        command, env={**os.environ, **one}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert process.poll() is None, f"it ended before it could be interrupted: {process.communicate()[1]}"
        assert time.monotonic() < end, "it has not come there"
        time.sleep(0.02)  # a look at the folder, until another process has written to it


def command(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The front door's exit code."""
    monkeypatch.setattr(sys, "argv", ["topwork", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_a_killed_run_goes_on_to_the_same_bytes(
    whole: bytes, begun: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Killed in the middle of its first training: no warning, nothing that could tidy up."""
    run, waiting = tmp_path / "run", tmp_path / ".run.resume"
    wait_for(lambda: any((tmp_path / "cache" / "trials").glob("*.now")), begun)
    begun.send_signal(signal.SIGKILL)
    assert begun.wait(PATIENCE_S) == -signal.SIGKILL
    assert not run.exists()
    assert (waiting / "options.json").is_file()

    assert command("fit", str(tmp_path), "--out", str(run), monkeypatch=monkeypatch) == 2
    assert f"--resume {run}" in capsys.readouterr().err
    assert waiting.is_dir()  # the refused call took nothing away

    assert command("fit", "--resume", str(run), monkeypatch=monkeypatch) == 0
    assert tensors(run) == whole
    assert left_over(tmp_path) == []
    assert topwork.load_run(run).record.options.epochs == EPOCHS


def test_ctrl_c_ends_with_130_says_what_to_do_and_python_goes_on(
    whole: bytes, begun: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Interrupted after a first training is done, as the journal shows."""
    run = tmp_path / "run"
    wait_for((tmp_path / ".run.resume" / "journal").exists, begun)
    begun.send_signal(signal.SIGINT)
    _, err = begun.communicate(timeout=PATIENCE_S)
    assert begun.returncode == 130
    assert "--resume" in err
    assert "Traceback" not in err
    assert not run.exists()

    found = topwork.resume(run)
    assert found.path == run
    assert tensors(run) == whole
    assert left_over(tmp_path) == []

    assert command("fit", "--resume", str(run), monkeypatch=monkeypatch) == 3
    message = capsys.readouterr().err
    assert str(run) in message and "finished" in message


class Interrupting(Log):
    """A watch that is interrupted so many steps into the n-th time that a stage is entered."""

    def __init__(self, stage: str, time: int, step: int) -> None:
        super().__init__()
        self.stage, self.time, self.step, self.left = stage, time, step, -1

    def begin(self, stage: str, total: int) -> None:
        super().begin(stage, total)
        here = stage == self.stage and [s for s, _ in self.stages].count(stage) == self.time
        self.left = self.step + (stage == "train") if here else -1

    def advance(self, steps: int = 1) -> None:
        super().advance(steps)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("stage", "time", "step"), [("look", 1, 1), ("pass", 1, 1), ("probe", 1, 1), ("train", 1, 1), ("train", 2, 2)]
)
def test_it_goes_on_from_wherever_it_stopped(
    photos: Path, whole: bytes, tmp_path: Path, stage: str, time: int, step: int
) -> None:
    """While it looked, passed, probed, or trained for the first or another time."""
    with pytest.raises(KeyboardInterrupt):
        fit(photos, tmp_path, Interrupting(stage, time, step))
    assert not (tmp_path / "run").exists()
    assert topwork.resume(tmp_path / "run").path == tmp_path / "run"
    assert tensors(tmp_path / "run") == whole
    assert left_over(tmp_path) == []


def test_what_was_there_before_the_training_is_a_whole_run_until_the_training_is_done(
    photos: Path, whole: bytes, tmp_path: Path
) -> None:
    """Interrupted twice while it trains: each time the frozen layers' model lies beside, the one of --strategy head.

    It lies there, too, while a resumed run is not as far yet.
    """
    plain = topwork.fit(
        photos, strategy="head", several_depths=False, size=SIZE, out=tmp_path / "plain", cache=tmp_path / "cache",
        watch=(untrained := Log()),
    )  # fmt: skip
    assert "so far" not in untrained.shown
    images = sorted(photos.rglob("*.png"))
    for log in (Interrupting("train", 1, 1), Interrupting("train", 2, 1)):
        with pytest.raises(KeyboardInterrupt):
            if (tmp_path / ".run.resume").is_dir():
                topwork.resume(tmp_path / "run", watch=log)
            else:
                fit(photos, tmp_path, log)
        place, metrics = log.shown["so far"]  # type: ignore[misc]
        found = topwork.load_run(place)
        assert place.is_relative_to(tmp_path / ".run.resume")
        assert tensors(place) == tensors(plain.path) != whole
        assert found.metrics == metrics == plain.metrics
        assert found.record.tuning is None and found.plan.strategy == "head"
        assert found.record.name == "run" and found.record.unknown == plain.record.unknown
        assert found.model.predict(images) == plain.model.predict(images)
        assert report.write(place).is_file()
    with pytest.raises(KeyboardInterrupt):
        topwork.resume(tmp_path / "run", watch=Interrupting("probe", 1, 1))
    assert tensors(place) == tensors(plain.path)
    assert [p for p in place.parent.iterdir() if p.name.startswith(".so-far")] == []
    assert tensors(topwork.resume(tmp_path / "run").path) == whole
    assert left_over(tmp_path) == []


def test_more_than_one_interruption_is_no_harm(photos: Path, whole: bytes, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(photos, tmp_path, Interrupting("pass", 1, 1))
    for nth in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            topwork.resume(tmp_path / "run", watch=Interrupting("train", nth, 1))
    topwork.resume(tmp_path / "run")
    assert tensors(tmp_path / "run") == whole


def test_a_place_that_answers_no_more_in_the_middle_of_a_pass_ends_the_run_which_can_be_resumed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than training on the rest, with a fault for every other image."""
    fs = fsspec.filesystem("memory")
    for path in photos.rglob("*.*"):
        fs.pipe_file(f"/{tmp_path.name}/{path.relative_to(photos).as_posix()}", path.read_bytes())
    monkeypatch.setattr(stores, "WAIT_S", 0.0)
    monkeypatch.setattr(stores, "LOST", 4)
    last, passing = max(p.name for p in photos.iterdir()), []

    class Passing(Log):
        def begin(self, stage: str, total: int) -> None:
            passing.extend([stage] if stage == "pass" else [])
            super().begin(stage, total)

    def cut_off(self: Any, path: str, *rest: Any, **options: Any) -> bytes:
        if passing and f"/{last}/" in path:
            raise ConnectionError("reset by peer")
        return bytes(real(self, path, *rest, **options))

    real = type(fs).cat_file
    monkeypatch.setattr(type(fs), "cat_file", cut_off)
    with pytest.raises(LostError, match="answers no more: the last 4 images"):
        topwork.fit(
            f"memory://{tmp_path.name}", strategy="head", size=SIZE, out=tmp_path / "run", cache=tmp_path / "cache",
            watch=Passing(),
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(type(fs), "cat_file", real)
    run = topwork.resume(tmp_path / "run")
    assert run.record.data.faults == ()
    assert left_over(tmp_path) == []


def test_images_that_are_gone_once_layers_are_trained_lose_no_training(
    photos: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked at once more, for what they look like to the trained layers."""
    mine, away = Path(shutil.copytree(photos, tmp_path / "photos")), tmp_path / "away"
    real = outcome.trained_layers

    def unplugged(*given: Any) -> Any:
        if mine.exists():
            mine.rename(away)
        return real(*given)

    monkeypatch.setattr(outcome, "trained_layers", unplugged)
    with pytest.raises(LostError, match=r"none of its images can be read any more.*--resume"):
        fit(mine, tmp_path)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(outcome, "trained_layers", real)
    away.rename(mine)
    assert tensors(topwork.resume(tmp_path / "run").path) == whole
    assert left_over(tmp_path) == []


def test_the_same_command_elsewhere_goes_on_too(photos: Path, whole: bytes, tmp_path: Path) -> None:
    """What was computed lies in the cache, under names of what it was computed from; the interrupted run waits on."""
    with pytest.raises(KeyboardInterrupt):
        fit(photos, tmp_path, Interrupting("train", 2, 1))
    log = Log()
    run = topwork.fit(
        photos, strategy="suffix", epochs=EPOCHS, size=SIZE, budget=BUDGET, out=tmp_path / "other",
        cache=tmp_path / "cache", watch=log,
    )  # fmt: skip
    assert tensors(run.path) == whole
    assert "pass" not in [stage for stage, _ in log.stages]
    assert (tmp_path / ".run.resume").is_dir()


def test_with_no_place_named_an_interrupted_run_keeps_its_own(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        topwork.fit(photos, strategy="head", size=SIZE, cache="cache", watch=Interrupting("pass", 1, 1))
    other = topwork.fit(photos, strategy="head", size=SIZE, cache="cache")
    assert other.path == Path("runs/photos-2")
    assert topwork.resume("runs/photos").path == Path("runs/photos")


def test_it_goes_on_from_another_folder(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of the call were relative to where it was made; those of the images and the cache are kept whole."""
    monkeypatch.chdir(photos.parent)
    with pytest.raises(KeyboardInterrupt):
        topwork.fit(
            "photos", strategy="head", size=SIZE, out=tmp_path / "run", cache=tmp_path / "cache",
            watch=Interrupting("probe", 1, 1),
        )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    log = Log()
    assert topwork.resume("run", watch=log).path == Path("run")
    assert "pass" not in [stage for stage, _ in log.stages]


# ---- what cannot be resumed


def test_an_unknown_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("fit", "--resume", str(tmp_path / "nothing"), monkeypatch=monkeypatch) == 3
    message = capsys.readouterr().err
    assert f"--resume {tmp_path / 'nothing'}: no interrupted run waits there" in message
    assert "topwork fit" in message
    with pytest.raises(DataError, match="no interrupted run"):
        topwork.resume(tmp_path / "nothing")


def test_options_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / ".run.resume").mkdir()
    (tmp_path / ".run.resume" / "options.json").write_text('{"folder": 3}')
    with pytest.raises(DataError, match=r"options\.json"):
        topwork.resume(tmp_path / "run")


def test_a_folder_and_a_run_to_resume_are_not_given_together(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("fit", str(photos), "--resume", str(tmp_path / "run"), monkeypatch=monkeypatch) == 2
    assert "either a folder of images or --resume RUN" in capsys.readouterr().err


def test_an_error_that_would_only_come_again_leaves_nothing_to_resume(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        topwork.fit(tmp_path / "empty", out=tmp_path / "run", cache=tmp_path / "cache")
    with pytest.raises(UsageError):
        topwork.fit(tmp_path / "empty", out=tmp_path / "run", epochs=0)
    assert not list(tmp_path.glob(".*"))


def test_a_resumed_run_that_fails_can_be_resumed_again(photos: Path, whole: bytes, tmp_path: Path) -> None:
    """The drive with the images was not there: nothing of the interrupted run is lost by asking."""
    moved = shutil.copytree(photos, tmp_path / "photos")
    with pytest.raises(KeyboardInterrupt):
        fit(moved, tmp_path, Interrupting("train", 2, 1))
    moved.rename(tmp_path / "unplugged")
    with pytest.raises(DataError):
        topwork.resume(tmp_path / "run")
    (tmp_path / "unplugged").rename(moved)
    assert (tmp_path / ".run.resume" / "journal").is_file()
    topwork.resume(tmp_path / "run")
    assert tensors(tmp_path / "run") == whole


def test_what_waits_is_the_whole_call(photos: Path, tmp_path: Path) -> None:
    """Every option that has a say in the result, as it was given."""
    given = Options(
        str(photos), ("efficientnet_lite0",), sizes=(SIZE,), strategy="suffix", lr=0.01, epochs=2, flip=False,
        balance=True, budget="1h", delta=0.03, seed=4, cache=str(tmp_path / "cache"),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        topwork.fit(
            photos, size=SIZE, strategy="suffix", lr=0.01, epochs=2, flip=False, balance=True, budget="1h", delta=0.03,
            seed=4, out=tmp_path / "run", cache=tmp_path / "cache", watch=Interrupting("look", 1, 1),
        )  # fmt: skip
    kept = records.decode((tmp_path / ".run.resume" / "options.json").read_bytes(), Options, where="options.json")
    assert kept == given
    assert runs.unfinished(tmp_path / "run") == given


def test_a_survey_that_was_interrupted_goes_on_with_all_its_backbones(photos: Path, tmp_path: Path) -> None:
    """Names and sizes are read back as they were given."""

    class Stopping(Log):
        def show(self, what: str, fact: object) -> None:
            if what == "plan":
                raise KeyboardInterrupt

    home = tmp_path / "run"

    def fit(out: Path, watch: Log) -> runs.Run:
        return topwork.fit(
            photos, size=[32, 40], strategy="head", several_depths=False, out=out, cache=tmp_path / "cache", watch=watch
        )

    with pytest.raises(KeyboardInterrupt):
        fit(home, Stopping())
    log = Log()
    resumed = topwork.resume(home, watch=log)
    assert log.steps == sum(total for stage, total in log.stages)
    assert dict(log.stages).get("pass", 0) == 0  # what was passed is kept
    whole = fit(tmp_path / "whole", Log())
    assert resumed.record.options.sizes == whole.record.options.sizes == (32, 40)
    assert not resumed.record.options.several_depths
    assert [(s.size_px, s.fate) for s in resumed.record.backbones] == [
        (s.size_px, s.fate) for s in whole.record.backbones
    ]
    assert tensors(resumed.path) == tensors(whole.path)
