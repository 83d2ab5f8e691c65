"""The finding of a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.system.history import Operation


@dataclass(frozen=True, slots=True)
class Violation:
    """What a client saw, in contradiction to the databases or to another client."""

    check: str
    text: str
    operations: Sequence[Operation] = ()
    """The operations that show it, as few as possible."""

    def __str__(self) -> str:
        return "\n    ".join([f"{self.check}: {self.text}", *map(str, self.operations)])
