"""The front door: `topwork COMMAND`. Every room is imported when a command needs it, not before."""

from topwork.cli.front import INTERRUPTED, app, main
from topwork.cli.options import FOUND

__all__ = ["FOUND", "INTERRUPTED", "app", "main"]
