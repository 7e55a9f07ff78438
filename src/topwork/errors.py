"""What can go wrong, and what to do then.

TopworkError                 exit code 1: something unforeseen, but ours to say
├── UsageError               2: the call cannot be carried out as written
│   └── BackboneError        2: this network cannot be cut
├── DataError                3: the images or labels cannot be learnt from
│   ├── ImageError           3: one file that is no usable image (collected, never fatal in a run)
│   └── LostError            3: the place where the images lie answers no more; a run can be resumed
└── MissingError             4: weights or an optional package that are not at hand
"""

from __future__ import annotations


class TopworkError(Exception):
    """Base of every error that topwork raises on purpose; its text is written for the user."""

    exit_code = 1


class UsageError(TopworkError):
    """The call cannot be carried out as written; the text names the option and the legal values."""

    exit_code = 2


class BackboneError(UsageError):
    """The network has no legal cut, or its graph cannot be traced."""


class DataError(TopworkError):
    """The images or labels cannot be learnt from; the text lists every reason found."""

    exit_code = 3


class ImageError(DataError):
    """One file is no usable image. `kind` is one of the fault kinds listed in docs/data.md."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class LostError(DataError):
    """The place where the images lie answers no more; the text names it and says how to go on."""


class MissingError(TopworkError):
    """Weights or an optional package are not at hand; the text says where they come from and go to."""

    exit_code = 4
