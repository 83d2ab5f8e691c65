"""The factor of all time limits."""

from __future__ import annotations

import pytest

from services import db, time_limits
from services.auth import Effect
from services.time_limits import FACTOR, factor


@pytest.mark.parametrize(("value", "number"), [("1", 1.0), ("2.5", 2.5), ("60", 60.0)])
def test_factor_is_a_number_from_1_to_60(value: str, number: float) -> None:
    assert factor(value) == number


@pytest.mark.parametrize("value", ["0.9", "61", "nan", "inf", "-2", "two"])
def test_other_value_is_refused_with_the_name_of_the_variable(value: str) -> None:
    with pytest.raises(ValueError, match=rf"{time_limits.VARIABLE}: '{value}'"):
        factor(value)


def test_calls_and_statements_get_the_same_factor() -> None:
    assert FACTOR > 1, "tests/patience.py sets it before the services are imported"
    assert (Effect.READ.value, Effect.WRITE.value) == (2 * FACTOR, 5 * FACTOR)
    assert Effect.WRITE.value > db.STATEMENT_TIMEOUT_SECONDS
