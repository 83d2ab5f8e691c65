"""The checks of a run (`CHECKS`, `run`).

They compare what its clients saw with the histories and the state at rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from tests.system.checks import (
    acknowledged,
    atomicity,
    departures,
    idempotency,
    lifecycles,
    linearizability,
    money,
    refusals,
    rights,
    versions,
    waitlist,
    watches,
)
from tests.system.checks.violation import Violation
from tests.system.history import History
from tests.system.truth import Truth

__all__ = ["CHECKS", "Violation", "run"]

CHECKS: Final[Mapping[str, Callable[[History, Truth], list[Violation]]]] = {
    module.CHECK: module.check
    for module in (
        linearizability,
        lifecycles,
        atomicity,
        idempotency,
        acknowledged,
        refusals,
        versions,
        watches,
        waitlist,
        rights,
        departures,
        money,
    )
}


def run(history: History, truth: Truth) -> list[Violation]:
    """Runs all checks; returns what they find."""
    return [violation for check in CHECKS.values() for violation in check(history, truth)]
