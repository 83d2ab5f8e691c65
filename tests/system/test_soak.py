"""The soak names quantities that grow, and measures the latency of the calls that were answered."""

from __future__ import annotations

import pytest

from tests.system.history import Operation, Outcome
from tests.system.soak import Sample, growths, latencies

SAMPLES = 41
SECONDS = 400.0


def samples(name: str, *values: float) -> list[Sample]:
    """Returns samples over SECONDS with these values, each for an equal part of the time."""
    return [
        Sample(number * SECONDS / (SAMPLES - 1), {name: values[number * len(values) // SAMPLES]})
        for number in range(SAMPLES)
    ]


def operation(invoked: float, seconds: float, outcome: Outcome = "ok", call: str = "HoldSeat") -> Operation:
    return Operation(0, "c", "", call, {}, None, invoked, invoked + seconds, outcome)


@pytest.mark.parametrize(
    ("name", "values", "flat"),
    [
        ("MB of seat", (50, 90, 92, 94), True),
        ("MB of seat", (50, 90, 100, 120), False),
        ("% of rows are dead in seat", (0, 10, 3, 14), True),
        ("% of rows are dead in seat", (0, 10, 20, 30), False),
        ("waiting: due timers of seat", (0, 3, 0, 9), True),
        ("waiting: due timers of seat", (0, 30, 60, 90), False),
    ],
)
def test_growth_beyond_the_allowance_is_named(name: str, values: tuple[float, ...], flat: bool) -> None:
    assert {growth.name: growth.flat for growth in growths(samples(name, *values), [])}[name] is flat


@pytest.mark.parametrize(("last", "flat"), [(4000, True), (8000, False)])
def test_stored_rows_are_compared_per_operation(last: float, flat: bool) -> None:
    # The second quarter adds 1,000 rows for 100 operations.
    read = [
        Sample(at, {"rows of outbox": rows}) for at, rows in ((0, 0), (100, 0), (200, 1000), (300, 3000), (400, last))
    ]
    operations = [operation(each, 0.01) for each in range(400)]
    (found,) = [growth for growth in growths(read, operations) if growth.name.endswith("outbox")]
    assert found.before == 10
    assert found.flat is flat


def test_p99_counts_answered_calls_of_each_quarter() -> None:
    calm = [operation(each, 0.010) for each in range(400)]
    slow = [operation(350 + each / 100, 0.5) for each in range(10)]
    left_out = [operation(10, 9.0, "unknown"), operation(10, 90.0, call="WatchSeatMap"), operation(500, 9.0)]
    assert latencies([*calm, *slow, *left_out], 0.0, SECONDS) == pytest.approx([0.01, 0.01, 0.01, 0.5])
