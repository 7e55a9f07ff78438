"""Every fact goes into JSON and comes back the same; what does not fit is refused, and the field is named."""

from __future__ import annotations

import json
import math
import re
import types
import typing
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Finished
from test_architecture import HEAVY, loaded_by
from topwork import records
from topwork.errors import DataError
from topwork.records import SCHEMA, ModelFacts, Preprocessing, RunRecord, decode, encode

KINDS = sorted((k for k in vars(records).values() if is_dataclass(k)), key=lambda kind: kind.__name__)

PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(2**53), 2**53),  # what every JSON reader keeps exactly
    float: st.floats(allow_nan=False, allow_infinity=False),  # JSON has no others
    str: st.text(max_size=8),
    type(None): st.none(),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a record's type; a type that is not plain is an error."""
    if kind in PLAIN:
        return PLAIN[kind]
    if is_dataclass(kind):
        return st.builds(kind, **{name: values(hint) for name, hint in typing.get_type_hints(kind).items()})
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return st.sampled_from(inside)
    if origin in {typing.Union, types.UnionType}:
        return st.one_of([values(k) for k in inside])
    if origin is tuple:
        one = inside[-1] is not Ellipsis
        return st.tuples(*map(values, inside)) if one else st.lists(values(inside[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(values(inside[0]), values(inside[1]), max_size=2)
    raise TypeError(f"{kind} is no plain value")


@pytest.fixture(scope="module")
def run_json(finished: Finished) -> dict[str, Any]:
    """run.json of a finished run, as any other program reads it."""
    found: dict[str, Any] = json.loads((finished.run.path / "run.json").read_bytes())
    return found


def bytes_of(facts: Any) -> bytes:
    return json.dumps(facts).encode()


def refusal(facts: Any, kind: type = RunRecord) -> str:
    with pytest.raises(DataError) as refused:
        decode(facts if isinstance(facts, bytes) else bytes_of(facts), kind, where="runs/x/run.json")
    return str(refused.value)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_record_comes_back_as_it_went_out(kind: type) -> None:
    # A generated `schema` says nothing of a version here: one that can be read is put in its place.
    readable = {"schema": SCHEMA} if "schema" in {f.name for f in fields(kind)} else {}

    @settings(max_examples=20, deadline=None)
    @given(values(kind))
    def holds(generated: Any) -> None:
        record = replace(generated, **readable)
        again = decode(encode(record), kind, where="here")
        assert again == record
        assert type(again) is kind

    holds()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_record_can_be_changed(kind: type) -> None:
    record = kind(*[None] * len(fields(kind)))
    with pytest.raises((FrozenInstanceError, TypeError)):  # TypeError: slots of a frozen class, Python 3.11
        setattr(record, fields(kind)[0].name, 1)
    assert not hasattr(record, "__dict__")


def test_any_program_can_read_what_is_written(finished: Finished, run_json: dict[str, Any]) -> None:
    """Plain JSON, UTF-8, indented for the eye, with the fields in the order of the record."""
    raw = (finished.run.path / "run.json").read_bytes()
    assert raw.endswith(b"}\n")
    assert raw.count(b"\n") > 100
    assert list(run_json) == [f.name for f in fields(RunRecord)]
    assert run_json["plan"]["cut"] == finished.run.plan.cut
    assert run_json["metrics"]["confusion"] == [list(row) for row in finished.run.metrics.confusion]


def test_names_in_any_script_stay_readable() -> None:
    assert "Bärlauch 熊".encode() in encode({"class": "Bärlauch 熊"})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_becomes_null(value: float) -> None:
    assert json.loads(encode({"x": value, "y": [value, 1.5]})) == {"x": None, "y": [None, 1.5]}


WRONG: list[tuple[tuple[str | int, ...], Any, str]] = [
    # where, what is put there, how the field is called in the message
    (("name",), 7, "$.name"),
    (("plan", "delta"), "little", "$.plan.delta"),
    (("plan", "strategy"), "prayer", "$.plan.strategy"),
    (("data", "classes", 1, "train"), 2.5, "$.data.classes[1].train"),
    (("backbones", 0, "facts", "preprocessing", "mean"), [0.5, 0.5], "$.backbones[0].facts.preprocessing.mean"),
    (("metrics", "confusion"), [[1, "2"]], "$.metrics.confusion[0][1]"),
    (("spending", "seconds"), [1.0], "$.spending.seconds"),
    (("metrics", "accuracy", "value"), None, "$.metrics.accuracy.value"),
    (("versions", "torch"), 2.6, "$.versions[...]"),
]


@pytest.mark.parametrize(("path", "value", "named"), WRONG, ids=[named for *_, named in WRONG])
def test_a_wrong_type_is_refused_with_the_file_and_the_field(
    run_json: dict[str, Any], path: tuple[str | int, ...], value: Any, named: str
) -> None:
    facts = json.loads(json.dumps(run_json))
    place = facts
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    said = refusal(facts)
    assert said.startswith("runs/x/run.json: ")
    assert "RunRecord" in said
    assert f"`{named}`" in said or f"`{re.sub('[0-9]+', '...', named)}`" in said  # msgspec 0.18 names no positions


@pytest.mark.parametrize("gone", ["name", "plan", "metrics", "versions"])
def test_a_missing_field_is_named(run_json: dict[str, Any], gone: str) -> None:
    assert f"`{gone}`" in refusal({k: v for k, v in run_json.items() if k != gone})


def test_a_newer_file_is_refused_and_the_upgrade_named(run_json: dict[str, Any]) -> None:
    """Also where the newer one has fields that this one cannot read: the version is what matters."""
    said = refusal({**run_json, "schema": SCHEMA + 1, "plan": "of another kind"})
    assert said.startswith("runs/x/run.json: ")
    assert f"schema {SCHEMA + 1}" in said
    assert f"up to {SCHEMA}" in said
    assert "pip install --upgrade topwork" in said


@pytest.mark.parametrize(
    "content", [b"", b"{", b"no json", b"[]", b"7", b"null", b'"text"', b"{}", b"\xff\xfe", b'{"schema": 1}']
)
def test_what_is_no_record_at_all_is_refused(content: bytes) -> None:
    assert refusal(content).startswith("runs/x/run.json: ")
    assert refusal(content, ModelFacts).startswith("runs/x/run.json: ")


@pytest.mark.parametrize(
    "content",
    [
        b'{"schema": "1"}',
        b'{"schema": null}',
        b'{"schema": [1]}',
        b"[" * 100_000,
    ],
    ids=["text", "null", "list", "nested without end"],
)  # fmt: skip
def test_a_schema_that_is_no_number_is_refused_like_any_wrong_field(content: bytes) -> None:
    assert refusal(content).startswith("runs/x/run.json: ")


def test_whoever_reads_a_run_needs_nothing_heavy(finished: Finished) -> None:
    file = finished.run.path / "run.json"
    code = f"""
from pathlib import Path
from topwork.records import RunRecord, decode
record = decode(Path({str(file)!r}).read_bytes(), RunRecord, where="run.json")
assert record.name == {finished.run.record.name!r}
"""
    assert not loaded_by(code) & HEAVY


def test_the_part_of_a_dataset_keeps_its_order() -> None:
    examples = tuple(records.Example(f"{i}.png", i % 2, part, str(i)) for i, part in enumerate(("test", "train") * 3))
    whole = records.Dataset("root", "layout", ("a", "b"), examples, (), ())
    assert whole.part("test") == examples[::2]
    assert whole.part("val") == ()
    assert whole.part("train", "test") == examples


@given(resize_px=st.integers(32, 600), crop_px=st.integers(32, 600), at_px=st.integers(32, 1024))
def test_another_input_size_keeps_the_margin_around_the_crop(resize_px: int, crop_px: int, at_px: int) -> None:
    own = Preprocessing(resize_px, crop_px, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), squash=True)
    other = own.at(at_px)
    assert own.at(crop_px) == own
    assert other.crop_px == at_px
    assert abs(other.resize_px - at_px * resize_px / crop_px) <= 0.5  # whole pixels
    assert replace(other, resize_px=resize_px, crop_px=crop_px) == own
