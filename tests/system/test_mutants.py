"""Each planted bug still applies to the present code, changes it, and leaves valid Python."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.system import checks
from tests.system.mutants.__main__ import found_in
from tests.system.mutants.catalogue import MUTANTS, UNREST, VERIFY, Mutant
from tests.system.mutants.planting import REPOSITORY, planted

LEAST = 30


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: str(mutant.name))
def test_mutant_applies(mutant: Mutant) -> None:
    before = (REPOSITORY / mutant.file).read_text()
    after = planted(mutant, before)
    assert after != before
    ast.parse(after)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: str(mutant.name))
def test_mutant_lists_the_tests_that_catch_it(mutant: Mutant) -> None:
    assert set(mutant.checks) <= {*checks.CHECKS, VERIFY, UNREST}
    assert mutant.checks or mutant.tests
    for name in mutant.tests:
        path, _, test = name.partition("::")
        assert not test or f"def {test}(" in (REPOSITORY / path).read_text()
        assert (REPOSITORY / path).is_file()


def test_there_are_enough_mutants_in_every_service() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= LEAST
    packages = {Path(mutant.file).parts[0] for mutant in MUTANTS}
    assert packages >= {f"{name}_service" for name in ("seat", "checkin", "waitlist", "payment", "flight", "booking")}
    assert "services" in packages


def test_ambiguous_or_missing_text_is_refused_for_a_mutant() -> None:
    for source in ("", "one one"):
        with pytest.raises(ValueError, match="occurs"):
            planted(Mutant("twice", "a.py", (("one", "two"),)), source)


REPORT = """seed 5: 900 operations in 42.0 s, 21 operations/s
at rest 8.0 s after the last call
3 violations in the history
  waitlist: 2
  money: 1

waitlist: seat 8D of SH4 went to entry 4; entry 3 had asked for it
    #317 passenger:JVF7T6 JoinWaitlist flight_id=SH4 passenger_id=JVF7T6-1 [1.000, 2.000] ok
"""


@pytest.mark.parametrize(
    ("rest", "found"),
    [
        ("skyhigh verify: All 119 invariants hold (3342 ms).", set()),
        ("skyhigh verify ended with 1:\n  8 no older entry is overtaken: 1", {VERIFY}),
        # An invariant that could not be checked reveals no bug.
        ("skyhigh verify ended with 2:\n  11 the cached maps: no cache", set()),
        ("the system did not come to rest: booking B is CREATED", {UNREST}),
    ],
)
def test_report_lists_the_checks_that_found_something(rest: str, found: set[str]) -> None:
    assert found_in(REPORT + rest) == {"waitlist", "money"} | found
