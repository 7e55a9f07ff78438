"""The commands in their order, and how the command line ends."""

from __future__ import annotations

import errno
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from topwork.cli import asking, learning, reading
from topwork.errors import MissingError, TopworkError

app = typer.Typer(
    name="topwork",
    help="Image classifiers from pretrained CNNs: measures where to cut the network and how sure the answer is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""


def main() -> None:
    """Run the command line; a TopworkError ends it with its message and its own exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a letter that the terminal does not know ends nothing
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken EXIF and the like: what matters of it is a fault
    try:
        code = app(standalone_mode=False)
    except TopworkError as error:
        sys.stderr.write(f"topwork: {error}\n")
        raise SystemExit(error.exit_code) from error
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except ModuleNotFoundError as error:
        _not_installed(error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _disk_full(error)
        _usage_or_raise(error)
    if code == INTERRUPTED:  # typer gives it back for Ctrl-C instead of raising
        sys.stderr.write(
            "topwork: interrupted; what was computed is kept. A fit goes on with: topwork fit --resume RUN\n"
        )
    raise SystemExit(code or 0)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("topwork")
        except PackageNotFoundError:
            found = f"{version('topwork-runtime')} (runtime)"
        typer.echo(f"topwork {found}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which topwork this is.")
    ] = False,
) -> None:
    """Image classifiers from pretrained CNNs: measures where to cut the network and how sure the answer is."""


for _command in (
    learning.fit, learning.plan, learning.check, asking.predict, asking.export, asking.evaluate, asking.explain,
    reading.report, asking.serve, reading.compare, reading.backbones, learning.demo,
):  # fmt: skip
    app.command()(_command)


def _disk_full(error: OSError) -> NoReturn:
    where = f" for {error.filename}" if error.filename else ""
    sys.stderr.write(
        f"topwork: no space is left on the disk{where}; what was computed is kept. Free some, or keep features"
        " elsewhere with --cache and runs with --out, and start the same command again\n"
    )
    raise SystemExit(1) from error


def _not_installed(error: ModuleNotFoundError) -> NoReturn:
    """topwork-runtime comes without what training needs; a missing room of our own is a bug."""
    name = (error.name or "").partition(".")[0]
    if name in {"", "topwork"}:
        raise error
    sys.stderr.write(
        f"topwork: this needs {name}, which is not installed here (topwork-runtime leaves out what only training and"
        f" judging need): pip install topwork\n"
    )
    raise SystemExit(MissingError.exit_code) from error


def _usage_or_raise(error: Exception) -> NoReturn:
    """typer's own complaints about a call end with 2; anything else is a bug and shows its trace."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if show is None or code is None:
        raise error
    show()
    raise SystemExit(code) from error
