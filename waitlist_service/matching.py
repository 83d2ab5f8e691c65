"""Who gets which of the freed seats: pure, so that it can be tried against every other way to do it.

Entries choose in order of joining, each its best among the seats that it wants and that are left. So a seat goes to the
oldest entry that wants it, unless that one took another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID


@dataclass(frozen=True, slots=True)
class FreedSeat:
    """A seat that can be claimed. `ordinal` is its place in the cabin layout."""

    seat_number: str
    ordinal: int
    cabin: str
    position: str


@dataclass(frozen=True, slots=True)
class Wishes:
    """An entry that waits: what it wants, the dearest first, and what it was refused."""

    entry_id: UUID
    cabin: str
    positions: Sequence[str]
    seat_numbers: Sequence[str]
    skipped: Collection[str] = field(default=())

    def wants(self, seat: FreedSeat) -> bool:
        """Whether a seat meets every wish."""
        return (
            seat.cabin == self.cabin
            and (not self.positions or seat.position in self.positions)
            and (not self.seat_numbers or seat.seat_number in self.seat_numbers)
        )

    def can_get(self, seat: FreedSeat) -> bool:
        """Whether a wanted seat was not refused to it."""
        return self.wants(seat) and seat.seat_number not in self.skipped

    def best_of(self, seats: Iterable[FreedSeat]) -> FreedSeat | None:
        """Returns the dearest of the seats that it wants and can get; None where there is none."""
        return min((seat for seat in seats if self.can_get(seat)), key=self._rank, default=None)

    def _rank(self, seat: FreedSeat) -> tuple[int, int, int]:
        return (
            self.seat_numbers.index(seat.seat_number) if self.seat_numbers else 0,
            self.positions.index(seat.position) if self.positions else 0,
            seat.ordinal,
        )


def match(entries: Sequence[Wishes], seats: Sequence[FreedSeat]) -> dict[UUID, FreedSeat]:
    """Returns the seat of each entry that gets one; `entries` are in order of joining."""
    left = {seat.seat_number: seat for seat in seats}
    matched: dict[UUID, FreedSeat] = {}
    for entry in entries:
        best = entry.best_of(left.values())
        if best is not None:
            matched[entry.entry_id] = left.pop(best.seat_number)
    return matched
