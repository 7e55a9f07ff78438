"""The docs say what the code says: every command, option, field, fault, public name and constant, and no other.

Nothing is listed here by hand that the code can be asked for, so that whatever is added must be documented.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import shlex
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from pyarrow import parquet
from safetensors import safe_open

import topwork
from conftest import Finished, write_photos
from test_architecture import HOUSE, arrows, rooms
from topwork import cli, data, errors, faults, listing
from topwork.records import Augmentation, ModelFacts, Recipe, RunRecord

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NEEDED = [ROOT / "README.md", *(DOCS / f"{n}.md" for n in ("architecture", "command-line", "data", "method", "python"))]
PAGES = sorted({*NEEDED, *DOCS.glob("*.md")})

Row = dict[str, str]


# ---------------------------------------------------------------------------------------------- reading Markdown


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, the line it starts at, why it is not run (if so)."""

    language: str
    text: str
    line: int
    not_run: str | None


def page(name: str) -> str:
    path = DOCS / name
    assert path.is_file(), f"docs/{name} is missing"
    return path.read_text()


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    lines, before, i = text.split("\n"), "", 0
    while i < len(lines):
        if lines[i].startswith("```"):
            start, language = i, lines[i].removeprefix("```").strip()
            i += 1
            while not lines[i].startswith("```"):
                i += 1
                assert i < len(lines), f"the block that starts at line {start + 1} does not end"
            reason = re.fullmatch(r"<!-- not run: (.+) -->", before)
            found.append(
                Block(language, "\n".join(lines[start + 1 : i]), start + 2, reason.group(1) if reason else None)
            )
        if lines[i].strip():
            before = lines[i].strip()
        i += 1
    return found


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```\s*?$", "", text, flags=re.MULTILINE | re.DOTALL)


def sections(text: str) -> dict[str, str]:
    """What stands under each heading, up to the next one of any level. Backticks are no part of a heading's name."""
    pieces = re.split(r"^#{1,6} +(.+)$", prose(text), flags=re.MULTILINE)
    return {name.replace("`", "").strip(): body for name, body in zip(pieces[1::2], pieces[2::2], strict=True)}


def tables(text: str) -> list[list[Row]]:
    """Every table as rows from column name to cell."""
    found: list[list[Row]] = []
    for table in re.findall(r"(?:^\|.*\|[ ]*\n)+", text + "\n", flags=re.MULTILINE):
        cells = [
            [c.strip().replace(r"\|", "|") for c in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
            for line in table.splitlines()
        ]
        found.append([dict(zip(cells[0], row, strict=True)) for row in cells[2:]])
    return found


def table(text: str, *columns: str) -> list[Row]:
    """The rows of all the tables that begin with these columns."""
    rows = [row for rows in tables(text) for row in rows if tuple(row)[: len(columns)] == columns]
    assert rows, f"no table with the columns {' | '.join(columns)}"
    return rows


def names(cell: str) -> list[str]:
    """What is written in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


# ------------------------------------------------------------------------------------------------------ the pages


@pytest.mark.parametrize("path", NEEDED, ids=lambda p: p.name)
def test_the_page_is_there(path: Path) -> None:
    assert path.is_file(), f"{path.relative_to(ROOT)} is missing"


@pytest.mark.parametrize("path", [p for p in PAGES if p.is_file()], ids=lambda p: p.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file) if file else path
        assert place.exists(), f"{path.name} links to {target}, which is not there"
        if anchor:
            headings = [slug(name) for name in sections(place.read_text())]
            assert anchor in headings, f"{path.name} links to {target}; {place.name} has no such heading"


@pytest.mark.parametrize("path", [p for p in PAGES if p.is_file()], ids=lambda p: p.name)
def test_nothing_is_left_to_be_written(path: Path) -> None:
    assert "TODO" not in path.read_text()


@pytest.mark.parametrize("path", [p for p in PAGES if p.is_file()], ids=lambda p: p.name)
def test_examples_are_marked_so_that_they_are_seen(path: Path) -> None:
    """Commands stand in `console` blocks, Python in `python` ones: under another name they would escape the tests."""
    for block in blocks(path.read_text()):
        assert block.language in {"console", "python", "json", "text", "mermaid"}, (
            f"{path.name}:{block.line}: a block of {block.language or 'no language'}"
        )


# ----------------------------------------------------------------------------------------------- the command line


def commands() -> dict[str, Any]:
    return dict(typer.main.get_command(cli.app).commands)


def options() -> dict[tuple[str, str], Any]:
    """Every option by its command and its longest name."""
    return {
        (name, max(p.opts, key=len)): p
        for name, command in commands().items()
        for p in command.params
        if p.param_type_name == "option" and "--help" not in p.opts
    }


def written_default(value: object) -> str:
    """Of an option that may be given several times, the one value that it has without being given."""
    if isinstance(value, list):
        (value,) = value
    return str(value.value) if isinstance(value, Enum) else str(value)


def test_every_command_has_its_section() -> None:
    documented = {h.removeprefix("topwork ") for h in sections(page("command-line.md")) if h.startswith("topwork ")}
    assert documented == commands().keys()


def test_every_command_is_shown_in_an_example() -> None:
    shown = {
        match.group(1)
        for block in blocks(page("command-line.md"))
        if block.language == "console"
        for match in re.finditer(r"^\$ (?:\w+=\S+ )*topwork ([\w-]+)", block.text, flags=re.MULTILINE)
    }
    assert shown >= commands().keys()


def test_every_option_of_every_command_is_documented_and_no_other() -> None:
    rows = table(page("command-line.md"), "option", "commands", "default", "meaning")
    documented = [(command, names(row["option"])[0].split()[0]) for row in rows for command in names(row["commands"])]
    assert len(documented) == len(set(documented)), "an option of a command is documented twice"
    real = options()
    assert set(documented) == real.keys()
    for row in rows:
        option, *opposites = [name.split()[0] for name in names(row["option"])]
        assert row["meaning"], option
        for command in names(row["commands"]):
            assert opposites == real[command, option].secondary_opts, f"how to switch off {option} of {command}"


def test_the_documented_defaults_are_the_real_ones() -> None:
    real = options()
    for row in table(page("command-line.md"), "option", "commands", "default", "meaning"):
        option = names(row["option"])[0].split()[0]
        for command in names(row["commands"]):
            default = real[command, option].default
            if isinstance(default, bool):
                assert row["default"] == ("on" if default else "off"), f"{option} of {command}"
            elif default is None or default == "":
                assert not names(row["default"]), f"{option} of {command} has no fixed default"
            else:
                assert names(row["default"]) == [written_default(default)], f"{option} of {command}"


def choices() -> Iterator[tuple[str, str, str]]:
    """(command, parameter, value) for every option that offers a choice."""
    for info in cli.app.registered_commands:
        assert info.callback is not None
        for parameter, hint in typing.get_type_hints(info.callback).items():
            for kind in (hint, *typing.get_args(hint)):
                if inspect.isclass(kind) and issubclass(kind, Enum):
                    yield from ((info.name or info.callback.__name__, parameter, str(v.value)) for v in kind)


def test_the_choices_of_an_option_are_all_explained() -> None:
    rows = table(page("command-line.md"), "option", "commands", "default", "meaning")
    for command, parameter, value in choices():
        option = next(o for (c, o), p in options().items() if c == command and p.name == parameter)
        meanings = [
            row["meaning"]
            for row in rows
            if command in names(row["commands"]) and names(row["option"])[0].split()[0] == option
        ]
        assert f"`{value}`" in meanings[0], f"{option} {value} of {command} is not explained"


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_argument_stands_in_the_first_line_of_its_command(name: str) -> None:
    """The synopsis names the arguments in their order, in capitals."""
    synopsis = names(sections(page("command-line.md"))[f"topwork {name}"])[0].split()
    arguments = [p for p in commands()[name].params if p.param_type_name == "argument"]
    wanted = [p.metavar or p.name.upper() for p in arguments]
    optional = [word if p.required else f"[{word}]" for p, word in zip(arguments, wanted, strict=True)]
    assert synopsis == ["topwork", name, *optional, "[options]"]


def test_every_exit_code_is_documented_with_its_error() -> None:
    """0, 1, 2, 5 and 130 come from the command line itself, the others from the tree of errors."""
    rows = table(page("command-line.md"), "code", "error", "meaning")
    documented = {(int(row["code"]), name) for row in rows for name in names(row["error"])}
    raised = {(e.exit_code, n) for n, e in vars(errors).items() if isinstance(e, type) and hasattr(e, "exit_code")}
    assert documented == raised
    assert {int(row["code"]) for row in rows} == {code for code, _ in raised} | {0, 1, 2, cli.FOUND, 130}


def test_every_environment_variable_is_documented() -> None:
    """Those that the code reads, and those that its messages tell the user of."""
    source = "\n".join(path.read_text() for path in HOUSE.rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get\(|\[)\s*\"(\w+)\"", source)) | set(re.findall(r"\b[A-Z]+_HOME\b", source))
    read |= set(re.findall(r"envvar=\"(\w+)\"", source))
    documented = {n for row in table(page("command-line.md"), "variable", "meaning") for n in names(row["variable"])}
    assert read <= documented
    assert {n for n in documented if n.startswith("TOPWORK_")} <= read


def test_every_folder_of_the_cache_is_named() -> None:
    source = "\n".join(path.read_text() for room in in_the_main_job() for path in rooms()[room])
    made = set(re.findall(r"\bcache / \"([\w-]+)\"", source))
    assert made
    documented = {n for row in table(page("command-line.md"), "folder", "holds") for n in names(row["folder"])}
    assert documented == {f"{name}/" for name in made}


WHOLE = "the object itself"


JSON_CALLS = {
    "fit": "fit {photos} --size 64 --out {out} --cache {cache}",
    "plan": "plan {photos} --size 64 --cache {cache}",
    "check": "check {photos}",
    "predict": "predict {run} {photos}",
    "evaluate": "evaluate {run} {photos}",
    "explain": "explain {run} {photos} --out {out}",
    "backbones": "backbones",
}
"""A call of each command that prints JSON of its own, on what a finished run has left."""


def leaves(value: Any, path: str, documented: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Paths into a JSON value, down to what is documented as a whole, else down to plain values."""
    if (path or WHOLE) in documented:
        yield path or WHOLE, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key, documented)
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        yield from leaves(value[0], f"{path}[]", documented)
    else:
        yield path, value


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["topwork", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_every_command_that_prints_json_is_asked_for_it() -> None:
    """`demo` is `fit` on other images; its section refers to it. `compare` needs several runs (test_comparison.py)."""
    assert {command for command, option in options() if option == "--json"} == {*JSON_CALLS, "demo", "compare"}
    assert "(#topwork-fit)" in sections(page("command-line.md"))["topwork demo"]


@pytest.mark.slow
@pytest.mark.parametrize("command", JSON_CALLS)
def test_the_json_of_a_command_is_documented_field_by_field(
    command: str,
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A field that links to a record holds that record's fields; any other holds a plain value."""
    rows = table(sections(page("command-line.md"))[f"topwork {command}"], "field of --json", "meaning")
    documented = {(names(row["field of --json"]) or [WHOLE])[0]: row["meaning"] for row in rows}
    words = {"photos": finished.folder, "run": finished.run.path, "cache": finished.cache, "out": tmp_path / "run"}
    assert call([*(w.format(**words) for w in JSON_CALLS[command].split()), "--json"], monkeypatch) == 0
    printed = dict(leaves(json.loads(capsys.readouterr().out), "", documented))
    assert printed.keys() == documented.keys()
    kinds = {kind.__name__: kind for kind in records()}
    for path, value in printed.items():
        linked = re.search(r"\[(\w+)\]\(run-json\.md#\w+\)", documented[path])
        one = value[0] if isinstance(value, list) and value else value
        if one is None:
            assert "null" in documented[path], path
        elif linked:
            assert list(one) == [f.name for f in dataclasses.fields(kinds[linked.group(1)])], path
        else:
            opaque = path == "predictions[].probabilities"  # one entry per class: its keys are the user's own
            assert opaque or not isinstance(one, dict), f"{path} has fields of its own, which are not documented"


# ------------------------------------------------------------------------------------------------------ run.json


def hints(kind: type) -> dict[str, Any]:
    return {f.name: typing.get_type_hints(kind)[f.name] for f in dataclasses.fields(kind)}


def inside(hint: Any, suffix: str = "") -> Iterator[tuple[type, str]]:
    """The records that a type mentions, and what a path needs to reach them: [] into a list, .NAME into an object."""
    if dataclasses.is_dataclass(hint):
        yield hint, suffix
    step = {tuple: "[]", list: "[]", dict: ".NAME"}.get(typing.get_origin(hint), "")
    for part in typing.get_args(hint):
        yield from inside(part, suffix + step)


def records() -> list[type]:
    """Every record that run.json or model.json can hold."""
    found: list[type] = []
    todo: list[type] = [RunRecord, ModelFacts]
    while todo:
        kind = todo.pop(0)
        if kind not in found:
            found.append(kind)
            todo += [inner for hint in hints(kind).values() for inner, _ in inside(hint)]
    return found


def places(kind: type, start: type, prefix: str = "") -> Iterator[str]:
    """Where a record stands in the file that starts with another one, as dotted paths."""
    for name, hint in hints(start).items():
        for inner, suffix in inside(hint):
            path = f"{prefix}{name}{suffix}"
            if inner is kind:
                yield path
            yield from places(kind, inner, f"{path}.")


PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false"}


def written(hint: Any, *, many: bool = False) -> str:
    """A type in the words of docs/run-json.md."""
    if hint in PLAIN:
        return PLAIN[hint] + ("s" if many and hint in {int, float} else "")
    if dataclasses.is_dataclass(hint):
        return f"[{hint.__name__}](#{slug(hint.__name__)})"
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f'`"{value}"`' for value in parts)
    if origin in {types.UnionType, typing.Union}:
        return " or ".join("null" if part is types.NoneType else written(part) for part in parts)
    if origin in {tuple, list}:
        fixed = origin is tuple and parts[-1] is not Ellipsis
        return f"list{'s' if many else ''} of {f'{len(parts)} ' if fixed else ''}{written(parts[0], many=True)}"
    if origin is dict:
        return f"object of {written(parts[1], many=True)}"
    raise AssertionError(f"no words yet for the type {hint}")


@pytest.mark.parametrize("kind", records(), ids=lambda kind: kind.__name__)
def test_every_field_of_a_record_is_documented_with_its_type_and_place(kind: type) -> None:
    body = sections(page("run-json.md")).get(kind.__name__)
    assert body is not None, f"docs/run-json.md has no section {kind.__name__}"
    rows = table(body, "field", "type", "unit", "meaning")
    assert [(names(row["field"])[0], row["type"]) for row in rows] == [
        (name, written(hint)) for name, hint in hints(kind).items()
    ]
    assert all(row["unit"] and row["meaning"] for row in rows)
    for file, start in [("run.json", RunRecord), ("model.json", ModelFacts)]:
        stated = re.search(rf"\*\*{re.escape(file)}\*\*: ([^.]*(?:\.[\w\[][^.]*)*)\.", body)
        assert set(names(stated.group(1) if stated else "")) == set(places(kind, start)), f"in {file}"


def test_no_record_is_documented_that_is_gone() -> None:
    """A section with a table of fields is a record."""
    documented = {
        name
        for name, body in sections(page("run-json.md")).items()
        if any(tuple(row)[:2] == ("field", "type") for rows in tables(body) for row in rows)
    }
    assert documented == {kind.__name__ for kind in records()}


def test_every_column_of_the_predictions_is_documented(finished: Finished) -> None:
    schema = parquet.read_schema(finished.run.path / "predictions.parquet")
    rows = table(page("run-json.md"), "column", "type", "meaning")
    arrow = {"text": "string", "number": "double", "list of numbers": "list<element: double>"}
    assert [(names(r["column"])[0], arrow[r["type"]]) for r in rows] == [(f.name, str(f.type)) for f in schema]
    kept = {names(row["key"])[0] for row in table(page("run-json.md"), "key", "meaning")}
    assert kept == {key.decode() for key in schema.metadata}


@pytest.mark.parametrize("name", ["split", "explained", "embedding"])
def test_every_column_of_the_other_tables_is_documented(finished: Finished, name: str) -> None:
    rows = table(page("run-json.md"), f"{name} column", "holds")
    schema = parquet.read_schema(finished.run.path / f"{name}.parquet")
    assert [names(row[f"{name} column"])[0] for row in rows] == schema.names


def test_every_tensor_of_a_model_is_documented(finished: Finished) -> None:
    rows = table(page("run-json.md"), "tensor", "shape", "meaning")
    documented = {names(row["tensor"])[0] for row in rows}
    with safe_open(finished.run.path / "model" / "model.safetensors", "np") as file:
        stored = {re.sub(r"^layers\..*", "layers.NAME", name) for name in file.keys()}  # noqa: SIM118
    assert documented == stored


def test_every_file_of_a_run_is_documented(finished: Finished) -> None:
    home = finished.run.path
    made = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    made.add("depth.svg")  # of several backbones (tests/test_cli.py); this run has one
    assert {names(row["file"])[0] for row in table(page("run-json.md"), "file", "holds")} == made


# ------------------------------------------------------------------------------------------------------- the data


def texts(node: ast.expr, function: ast.AST) -> set[str] | None:
    """The strings that an expression can be; None where the code does not say, or passes another's on."""
    if isinstance(node, ast.Constant):
        return {str(node.value)}
    if isinstance(node, ast.IfExp):
        return (texts(node.body, function) or set()) | (texts(node.orelse, function) or set())
    if isinstance(node, ast.Name):
        values = [
            n.value
            for n in ast.walk(function)
            if isinstance(n, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in n.targets)
        ]
        return set().union(*(texts(value, function) or set() for value in values)) if values else None
    return None


def passed_on(kind: ast.expr, function: ast.AST) -> bool:
    """Whether a kind was made elsewhere: `x.kind`, or the first part of an answer's error, "kind: detail"."""
    if isinstance(kind, ast.Attribute):
        return kind.attr == "kind"
    bound = [
        ast.unparse(n.value)
        for n in ast.walk(function)
        if isinstance(n, ast.Assign)
        for target in n.targets
        if isinstance(target, ast.Tuple) and ast.unparse(target.elts[0]) == ast.unparse(kind)
    ]
    return bool(bound) and all(re.fullmatch(r"\w+\.error\.partition\(': '\)", value) for value in bound)


def raised_kinds() -> dict[str, str]:
    """Every kind that an ImageError or a Fault is made with: kind to file and line."""
    found: dict[str, str] = {}
    for path in sorted(HOUSE.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)):
                    continue
                at = {"ImageError": 0, "Fault": 1}.get(ast.unparse(node.func).rpartition(".")[2])
                if at is None:
                    continue
                given = {k.arg: k.value for k in node.keywords}
                kind = given.get("kind") or node.args[at]
                kinds = texts(kind, function)
                where = f"{path.name}:{node.lineno}"
                assert kinds or passed_on(kind, function), f"{where}: this test cannot see which kind is meant"
                found |= dict.fromkeys(kinds or (), where)
    return found


def test_the_search_for_kinds_sees_every_way_to_write_one() -> None:
    function = ast.parse(
        'def f():\n    kind = "a" if x in "no" else "b"\n    kind = other.kind\n    g(kind, "c", made())'
    )
    call_ = next(n for n in ast.walk(function) if isinstance(n, ast.Call))
    assert [texts(a, function) for a in call_.args] == [{"a", "b"}, {"c"}, None]


@pytest.mark.parametrize(
    ("body", "elsewhere"),
    [
        ("g(e.kind)", True),
        ("kind, _, detail = answer.error.partition(': '); g(kind)", True),
        ("kind, _, detail = line.partition(': '); g(kind)", False),
        ("_, kind, detail = answer.error.partition(': '); g(kind)", False),
        ("kind = made(); g(kind)", False),
    ],
)
def test_a_kind_is_passed_on_only_where_another_made_it(body: str, elsewhere: bool) -> None:
    function = ast.parse(f"def f():\n    {body}")
    call_ = next(n for n in ast.walk(function) if isinstance(n, ast.Call) and ast.unparse(n.func) == "g")
    assert passed_on(call_.args[0], function) is elsewhere


def test_every_kind_of_fault_is_documented_and_no_other() -> None:
    rows = table(page("data.md"), "kind", "meaning", "what to do")
    documented = [names(row["kind"])[0] for row in rows]
    assert sorted(documented) == sorted(raised_kinds())
    assert all(row["meaning"] and row["what to do"] for row in rows)


def test_every_finding_is_documented_with_its_severity_and_no_other() -> None:
    rows = table(page("data.md"), "finding", "severity", "meaning", "what to do")
    documented = {names(row["finding"])[0]: row["severity"] for row in rows}
    made = {}
    for node in ast.walk(ast.parse(inspect.getsource(faults))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"_finding", "Finding"}:
            kind, severity = node.args[:2]
            if isinstance(kind, ast.Constant) and isinstance(severity, ast.Constant):
                made[kind.value] = severity.value
    assert documented == made


def test_every_name_of_a_part_is_documented() -> None:
    rows = table(page("data.md"), "part", "folder names", "read as")
    documented = {name: names(row["part"])[0] for row in rows for name in names(row["folder names"])}
    assert documented == listing.PARTS


def test_every_name_by_which_a_column_is_guessed_is_documented_in_its_order() -> None:
    rows = table(page("data.md"), "column", "guessed by these names, the likeliest first", "else")
    documented = [
        [re.sub("[^a-z]", "", name) for name in names(row["guessed by these names, the likeliest first"])]
        for row in rows
    ]
    t = listing.tables
    assert documented == [list(t.IMAGE_NAMES), list(t.LABEL_NAMES), list(t.SPLIT_NAMES), list(t.GROUP_NAMES)]


def test_what_a_result_can_rest_on_is_documented() -> None:
    """The words of `lock` are those of the table."""
    tree = ast.parse(inspect.getsource(data.lock))
    said = {str(n.value.elts[1].value) for n in ast.walk(tree) if isinstance(n, ast.Return)}
    documented = {n for row in table(page("data.md"), "what you have", "result") for n in names(row["result"])}
    assert documented == said


# -------------------------------------------------------------------------------------------------- the constants

SPEED_ONLY = {"card", "shards", "ahead", "asking", "engine", "features", "memo", "model", "pictures", "records"}
SPEED_ONLY |= {"explanation", "embedding", "explained", "learnt"}  # looks, of a result that is on disk already
"""Rooms of the main job whose constants decide time, memory, file formats or looks, never a number in the result."""


def in_the_main_job() -> set[str]:
    """Rooms that workflow imports, directly or not."""
    found, todo = set(), ["workflow"]
    while todo:
        room = todo.pop()
        if room not in found:
            found.add(room)
            for path in rooms()[room]:
                package = "topwork" if path.parent == HOUSE else f"topwork.{path.parent.name}"
                todo += arrows(path.read_text(), package)
    return found


def numbers(room: str) -> dict[str, Any]:
    """The public numeric constants that a room itself defines."""
    here = {
        t.id
        for path in rooms()[room]
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for t in ast.walk(target)
        if isinstance(t, ast.Name) and t.id.isupper() and not t.id.startswith("_")
    }
    module = importlib.import_module(f"topwork.{room}")
    values = {name: getattr(module, name, None) for name in here}
    return {name: v for name, v in values.items() if np.issubdtype(np.asarray(v).dtype, np.number)}


def test_every_constant_that_decides_is_documented_with_its_value_and_reason() -> None:
    rows = [row for name in ("method.md", "data.md") for row in table(page(name), "constant", "value", "why")]
    documented = {names(row["constant"])[0]: row for row in rows}
    assert len(documented) == len(rows), "a constant is documented twice"
    real = {f"{room}.{name}": v for room in in_the_main_job() - SPEED_ONLY for name, v in numbers(room).items()}
    assert documented.keys() == real.keys()
    for name, row in documented.items():
        value = eval(names(row["value"])[0], {"np": np})
        assert np.array_equal(value, real[name]), f"{name} is {real[name]}, documented as {value}"
        assert row["why"]


@pytest.mark.parametrize("kind", [Recipe, Augmentation], ids=lambda kind: kind.__name__)
def test_every_default_of_training_is_documented_with_its_value_and_reason(kind: type) -> None:
    rows = [row for row in table(page("method.md"), "setting", "default", "why") if kind.__name__ in row["setting"]]
    documented = {names(row["setting"])[0]: eval(names(row["default"])[0]) for row in rows}
    assert len(documented) == len(rows), "a setting is documented twice"
    real = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    assert documented == {f"{kind.__name__}.{name}": value for name, value in real.items()}
    assert all(row["why"] for row in rows)


# ---------------------------------------------------------------------------------------------------- from Python


def public(kind: type) -> set[str]:
    """Fields, methods, properties, and the attributes that methods set; also those of a base class of our own."""
    found: set[str] = set()
    for own in (k for k in kind.__mro__ if k.__module__.startswith("topwork")):
        source = ast.parse(textwrap.dedent(inspect.getsource(own)))
        found |= {n.attr for n in ast.walk(source) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
        found |= {f.name for f in dataclasses.fields(own)} if dataclasses.is_dataclass(own) else set()
        found |= set(vars(own))
    return {name for name in found if not name.startswith("_")}


def test_every_public_name_is_documented_and_no_other() -> None:
    documented = {h.removeprefix("topwork.") for h in sections(page("python.md")) if h.startswith("topwork.")}
    errors_ = {n for row in table(page("python.md"), "error", "when") for n in names(row["error"])}
    assert documented | errors_ == set(topwork.__all__)
    assert not documented & errors_


@pytest.mark.parametrize("name", [n for n in topwork.__all__ if inspect.isfunction(getattr(topwork, n))])
def test_every_parameter_of_a_function_is_documented(name: str) -> None:
    rows = table(page("python.md"), "parameter", "of", "default", "meaning")
    mine = {names(row["parameter"])[0]: row for row in rows if name in names(row["of"])}
    parameters = inspect.signature(getattr(topwork, name)).parameters
    hidden = {"clock"}  # how fit lets measure write into its own clock
    assert mine.keys() == parameters.keys() - hidden
    for parameter, row in mine.items():
        default = parameters[parameter].default
        if isinstance(default, str | int | float):
            assert names(row["default"]) == [repr(default)], parameter
        else:
            assert not names(row["default"]), parameter


@pytest.mark.parametrize(
    "name",
    [n for n in topwork.__all__ if inspect.isclass(k := getattr(topwork, n)) and not issubclass(k, Exception)],
)
def test_every_member_of_a_class_is_documented(name: str) -> None:
    rows = table(sections(page("python.md"))[f"topwork.{name}"], "member", "meaning")
    assert {names(row["member"])[0].split("(")[0] for row in rows} == public(getattr(topwork, name))


def test_every_public_name_is_used_in_an_example() -> None:
    code = "\n".join(b.text for b in blocks(page("python.md")) if b.language == "python" and b.not_run is None)
    used = {name for name in topwork.__all__ if re.search(rf"\b{name}\b", code)}
    assert used == set(topwork.__all__)


# --------------------------------------------------------------------------------------------------- the examples


@pytest.fixture(scope="session")
def examples_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all the pages: their images are the same."""
    return tmp_path_factory.mktemp("examples") / "cache"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples_cache: Path) -> Path:
    """Where the examples run: photos/ and photos.csv to learn from, held-out/ to judge on, new/ and new.jpg."""
    write_photos(tmp_path / "photos")
    listed = [f"photos/{p.parent.name}/{p.name},{p.parent.name}\n" for p in sorted((tmp_path / "photos").rglob("*.*"))]
    (tmp_path / "photos.csv").write_text("file,species\n" + "".join(listed))
    write_photos(tmp_path / "held-out", per_class=4, seed=1)
    write_photos(tmp_path / "unsorted", per_class=2, seed=2)
    (tmp_path / "new").mkdir()
    for i, path in enumerate(sorted((tmp_path / "unsorted").rglob("*.*"))):
        path.rename(tmp_path / "new" / f"{i}{path.suffix}")
    (tmp_path / "new.jpg").write_bytes((tmp_path / "new" / "1.jpg").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOPWORK_CACHE", str(examples_cache))
    return tmp_path


def lines_of(block: Block) -> Iterator[tuple[int, str]]:
    """The commands of a console block: lines behind `$ `, with those that continue them."""
    number, command = 0, ""
    for i, line in enumerate(block.text.split("\n")):
        if line.startswith("$ "):
            number, command = block.line + i, line.removeprefix("$ ")
        elif command:
            command += line
        if command.endswith("\\"):
            command = command.removesuffix("\\") + " "
        elif command:
            yield number, command
            command = ""


def run_command(
    line: str, where: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a shell would: variables before the command, * in names, > into a file."""
    words = shlex.split(line, comments=True)
    with monkeypatch.context() as patch:
        while words and re.fullmatch(r"\w+=.*", words[0]):
            patch.setenv(*words.pop(0).split("=", 1))
        assert words and words[0] == "topwork", (
            f"{where}: {line!r} is not run; write `<!-- not run: REASON -->` on the line before the block"
        )
        into = words.index(">") if ">" in words else len(words)
        found = [sorted(str(p.relative_to(home)) for p in home.glob(w)) or [w] if "*" in w else [w] for w in words]
        arguments = [a for group in found[1:into] for a in group]
        code = call(arguments, patch)
    out, err = capsys.readouterr()
    assert code == 0, f"{where}: {line!r} ended with {code}:\n{err}"
    if into < len(words):
        Path(words[into + 1]).write_text(out)


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_the_examples_run(
    path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From top to bottom, each page in a folder of its own; what one block makes, the next ones find."""
    if not path.is_file():
        pytest.fail(f"{path.name} is missing")
    names_: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(path.read_text()):
        if block.not_run is not None:
            continue
        where = f"{path.name}:{block.line}"
        if block.language == "console":
            for number, line in lines_of(block):
                run_command(line, f"{path.name}:{number}", workspace, monkeypatch, capsys)
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(path), "exec"), names_)
            capsys.readouterr()
        assert Path.cwd() == workspace, f"{where} left the folder"


# ------------------------------------------------------------------------------------------------------ the house


def test_every_room_is_in_the_picture_of_the_house() -> None:
    text = page("architecture.md")
    wanted = {f"{p.name}/" if p.is_dir() else p.name for p in HOUSE.iterdir()
              if p.suffix == ".py" or (p / "__init__.py").is_file()}  # fmt: skip
    missing = {name for name in wanted if not re.search(rf"(?<![\w/]){re.escape(name)}", text)}
    assert not missing


def test_no_room_is_in_the_picture_that_is_gone() -> None:
    named = set(re.findall(r"(?<![\w/.])([a-z_]\w*\.py)\b", page("architecture.md")))
    real = {p.name for folder in ("src", "tests", "bench") for p in (ROOT / folder).rglob("*.py")}
    assert named <= real
