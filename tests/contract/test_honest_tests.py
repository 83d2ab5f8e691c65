"""Tests do not depend on the date or on timing.

No literal date near today, and no sleep outside tests/waiting.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).resolve().parents[1]
WAITING: Final = TESTS / "waiting.py"
# A test about dates that injects its own clock uses years outside this span; all other tests use tests/dates.py.
NEAR_TODAY: Final = range(2020, 2060)
DATE: Final = re.compile(r"(?<!\d)(20\d\d)-(?:0\d|1[0-2])-[0-3]\d(?!\d)")
DATE_TYPES: Final = {"date", "datetime"}


def faults(source: str) -> Iterator[str]:
    """Yields each literal date near today and each sleep in a module of tests, with its line."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=str(text)):
                if any(int(found[1]) in NEAR_TODAY for found in DATE.finditer(text)):
                    yield f"{node.lineno}: literal date {text!r}; tests/dates.py has days that move with the calendar"
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=int(year)), *_]
            ) if name in DATE_TYPES and year in NEAR_TODAY:
                yield f"{node.lineno}: literal date in {year}; tests/dates.py has days that move with the calendar"
            case ast.Call(func=ast.Name(id="sleep") | ast.Attribute(attr="sleep")):
                yield f"{node.lineno}: a sleep; tests/waiting.py waits for conditions and moments"


FOLDERS: Final = sorted({path.relative_to(TESTS).parts[0] for path in TESTS.rglob("*.py")} - {WAITING.name})


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_test_sleeps_or_has_a_near_date(folder: str) -> None:
    paths = [TESTS / folder] if folder.endswith(".py") else (TESTS / folder).rglob("*.py")
    assert [f"{path.relative_to(TESTS)}:{fault}" for path in paths for fault in faults(path.read_text())] == []


# Not one literal, because the test above would find it in this module.
YEAR: Final = "2026"
PLANTED: Final = {
    "a date in a string": f"DAY = '{YEAR}-12-01'",
    "a date in a flight id": f"await agent.hold('SH101-{YEAR}-12-01', '12A')",
    "a date in the fixed part of an f-string": f"f'SH{{number}}-{YEAR}-12-01'",
    "a date that is constructed": f"datetime({YEAR}, 12, 1, tzinfo=UTC)",
    "a sleep": "async def test_it() -> None:\n    await asyncio.sleep(0.5)",
    "a sleep by its own name": "from time import sleep\nsleep(0.5)",
}


@pytest.mark.parametrize("source", PLANTED.values(), ids=PLANTED)
def test_a_planted_sleep_or_date_is_found(source: str) -> None:
    assert len(list(faults(source))) == 1


def test_computed_days_and_distant_years_are_no_faults() -> None:
    assert list(faults("flight_id('SH101', day(2)); date(1999, 12, 31); '2010-01-02'; await eventually(holds)")) == []
