"""One thing that always holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Invariant:
    """One thing that always holds. `number` 3 is rule 11.3; `name` says what is so."""

    number: int
    name: str
    offenders: str
    """A query for the rows that break it, with the ids that name them."""
    needs_service: bool = False
    """True for what a running service brings about in a moment, and a stopped one does not."""
    schemas: tuple[str, ...] = ("seat",)
    """The services that it is about."""
