"""A file is there whole or not at all, and what was there before goes only when the new one is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from topwork import files


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    files.write(tmp_path / "a.json", b"first")
    files.write(tmp_path / "a.json", b"second")
    assert (tmp_path / "a.json").read_bytes() == b"second"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_until_it_is_whole_the_old_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the renaming, the file is the old one and the new one lies beside it, whole."""
    path, seen = tmp_path / "a.json", []
    files.write(path, b"old")
    real = Path.replace

    def watched(aside: Path, target: Path) -> Path:
        seen.append((path.read_bytes(), aside.read_bytes(), aside.parent == path.parent, aside.name.startswith(".")))
        return real(aside, target)

    monkeypatch.setattr(Path, "replace", watched)
    files.write(path, b"new")
    assert seen == [(b"old", b"new", True, True)]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_failure_leaves_the_old_one_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.json"
    files.write(path, b"old")
    real = getattr(Path, step)

    def full(aside: Path, *given: bytes) -> None:
        if step == "write_bytes":
            real(aside, given[0][:1])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, full)
        with pytest.raises(OSError, match="No space left"):
            files.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
