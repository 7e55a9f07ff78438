"""How many seconds may it take?"""

from __future__ import annotations

import re

from topwork.errors import UsageError

BUDGET_FE = 100.0
LEAST_BUDGET_S, MOST_BUDGET_S = 60.0, 900.0
"""Default budget: 100 FE pay for trying every candidate on a few hundred images (bench/strategies.py); a
minute is no wait, and more than a quarter of an hour is asked for with --budget."""

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def seconds(text: str | None, fe_seconds: float, faster: float = 1.0) -> float:
    """A budget in seconds: a number of them, or such as 90s, 10m, 1h, 40fe (forward equivalents); None: the default.

    `faster`: how many times faster than PyTorch the pass ran. Training cannot, so the default is of PyTorch's FE.
    Raises UsageError for anything else.
    """
    if text is None:
        return min(MOST_BUDGET_S, max(LEAST_BUDGET_S, BUDGET_FE * faster * fe_seconds))
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|m|h|fe|)\s*", text.lower())
    if match is None or float(match[1]) <= 0:
        raise UsageError(
            f"--budget {text}: expected seconds above 0, or a number with s, m, h or fe, such as 10m or 40fe"
        )
    return float(match[1]) * (fe_seconds if match[2] == "fe" else _UNITS[match[2]])
