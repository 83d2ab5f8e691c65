"""The result of a check, and the rows that break an invariant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

SAMPLES: Final = 5

Offender: TypeAlias = Mapping[str, Any]
Offenders: TypeAlias = tuple[int, list[Offender]]
"""The number of offenders, and the first few of them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of the check of one invariant."""

    number: int
    """3 means rule 11.3."""
    name: str
    violations: int
    samples: Sequence[Offender]
    """The first few offenders: their ids and the values that disagree."""
    milliseconds: float
    not_checked: str | None = None
    """Why the invariant could not be checked; None if it was."""

    def __str__(self) -> str:
        found = self.not_checked or f"{self.violations} violations"
        return "\n    ".join([f"{self.number} {self.name}: {found}", *map(text_of, self.samples)])


def text_of(offender: Offender) -> str:
    """Returns an offender as one line: its names and values, without those that are null."""
    return "  ".join(f"{name}={_value(value)}" for name, value in offender.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_value, value))
    return value.isoformat() if isinstance(value, datetime) else str(value)
