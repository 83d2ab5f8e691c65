"""The class of an invariant."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Invariant:
    """A statement that is always true. `number` 3 means rule 11.3; `name` is the statement."""

    number: int
    name: str
    offenders: str
    """A query for the rows that break the invariant, with their ids."""
    needs_service: bool = False
    """True if the invariant holds only while the services run, because they restore it."""
    schemas: tuple[str, ...] = ("seat",)
    """The schemas that the query reads; each is named after its service."""
