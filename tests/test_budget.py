"""A budget is read in any of its units, bounded where none was asked for, and told what is wrong with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topwork import budget
from topwork.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), (" 90 S ", 90), ("1.5m", 90), ("10m", 600), ("2h", 7200), ("40fe", 100), ("0.5 FE", 1.25),
     ("90.5", 90.5), (str(600.0), 600), (str(45), 45)],
)  # fmt: skip
def test_a_budget_is_read(text: str, seconds: float) -> None:
    """One forward equivalent takes 2.5 s here."""
    assert budget.seconds(text, 2.5) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "0", "0fe", "-3", "ten", "10 d", "10ms", "1,5m", "m", "1e3", "nan", "inf", "3 4", "²"]
)
def test_no_budget_is_told(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        budget.seconds(text, 2.5)
    assert f"--budget {text}" in str(caught.value)
    assert "10m or 40fe" in str(caught.value)


@given(st.floats(1e-4, 1e5))
def test_the_budget_without_being_asked_is_bounded(fe_seconds: float) -> None:
    """A hundred forward equivalents, but at least a minute, and at most a quarter of an hour."""
    assert budget.seconds(None, fe_seconds) == sorted([60.0, 100 * fe_seconds, 900.0])[1]
