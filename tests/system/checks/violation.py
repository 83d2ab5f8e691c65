"""What a check finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.system.history import Operation


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that a client saw, and the ledger or another client contradicts."""

    check: str
    text: str
    operations: Sequence[Operation] = ()
    """The operations that show it, as few as possible."""

    def __str__(self) -> str:
        return "\n    ".join([f"{self.check}: {self.text}", *map(str, self.operations)])
