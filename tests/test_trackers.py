"""What TensorBoard reads back is what the trainings gave."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from topwork.errors import MissingError
from topwork.records import Recipe, Trial
from topwork.trackers import TensorBoardWatch


def trial(rung: str, fold: int, losses: tuple[float, ...], accuracy: float) -> Trial:
    recipe = Recipe("suffix", "layer4", "layer3", epochs=len(losses))
    return Trial("resnet18", 224, recipe, rung, fold, 10, accuracy, 0.5, 0.6, 1.0, losses)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own imports
def test_losses_and_accuracies_are_read_back(tmp_path: Path, log: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch = TensorBoardWatch(tmp_path, log)
    watch.begin("train", 3)
    watch.advance(2)
    watch.end()
    tries = [trial("short", 0, (0.9, 0.5), 0.7), trial("test", 1, (0.8, 0.4, 0.25), 0.75)]
    for one in tries:
        watch.show("tried", one)
    watch.show("run", None)
    found = EventAccumulator(str(tmp_path)).Reload()
    for one in tries:
        name = f"{one.rung}/suffix layer3 to layer4 at 0.001, fold {one.fold}"
        assert [e.value for e in found.Scalars(f"loss/{name}")] == pytest.approx(one.losses)
        assert [e.value for e in found.Scalars(f"accuracy/{name}")] == pytest.approx([one.accuracy])
    assert [e.value for e in found.Scalars("accuracy/in order of trial")] == pytest.approx([0.7, 0.75])
    assert (log.stages, log.steps, log.shown["tried"]) == ([("train", 3)], 2, tries[-1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own imports
def test_trainings_of_a_second_backbone_do_not_mix_with_the_firsts(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch = TensorBoardWatch(tmp_path)
    one = trial("short", 0, (0.9, 0.5), 0.7)
    other = replace(one, size_px=112, losses=(0.8, 0.4))
    for each in (one, other):
        watch.show("tried", each)
    watch.show("run", None)
    found = EventAccumulator(str(tmp_path)).Reload()
    name = "loss/short/suffix layer3 to layer4 at 0.001, fold 0"
    assert [e.value for e in found.Scalars(name)] == pytest.approx(one.losses)
    assert [e.value for e in found.Scalars(f"{name}, resnet18 at 112 px")] == pytest.approx(other.losses)


def test_without_the_package_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refusing(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(MissingError, match=r"pip install 'topwork\[tensorboard\]'"):
        TensorBoardWatch(tmp_path)
