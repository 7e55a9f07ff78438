"""How do facts get out of a command: to a person, or to a program?"""

from __future__ import annotations

import codecs
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from topwork.watch import Watch


def screen(json: bool) -> tuple[Console, Watch]:
    """A console for facts (standard error where standard output is for JSON) and a watch that draws on it."""
    from topwork.terminal import TerminalWatch, paper

    console = paper(stderr=json)
    return console, TerminalWatch(console)


def print_json(facts: Any) -> None:
    """One JSON object on standard output."""
    from topwork.records import encode

    out = utf8()
    out.write(encode(facts).decode())
    out.flush()


def utf8() -> TextIO:
    """Standard output for programs: UTF-8 whatever the terminal takes (RFC 8259)."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        return sys.stdout
    sys.stdout.flush()
    writer: Any = codecs.getwriter("utf-8")
    stream: TextIO = writer(buffer, errors="backslashreplace")
    return stream
