"""Who gets which of the freed seats: pure, so that it can be tried against every other way to do it.

Entries choose in order of joining, each its best among the seats that it wants and that are left. So a seat goes to the
oldest entry that wants it, unless that one took another. A claim of a seat that may be gone can come to nothing: until
it is judged, nobody younger gets what its entry might want then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from waitlist_service import eligibility


@dataclass(frozen=True, slots=True)
class FreedSeat:
    """A seat that can be claimed. `ordinal` is its place in the cabin layout."""

    seat_number: str
    ordinal: int
    cabin: str
    position: str
    exit_row: bool = False
    infant_allowed: bool = True


@dataclass(frozen=True, slots=True)
class Wishes:
    """An entry that waits: who, what it wants, the dearest first, and what it was refused, for a while or for ever."""

    entry_id: UUID
    cabin: str
    positions: Sequence[str]
    seat_numbers: Sequence[str]
    skipped: Collection[str] = field(default=())
    refused: Collection[str] = field(default=())
    type: str = "ADULT"
    special_services: Collection[str] = field(default=())
    claiming: bool = False

    def wishes(self, seat: FreedSeat) -> bool:
        """Whether a seat meets every wish."""
        return (
            seat.cabin == self.cabin
            and (not self.positions or seat.position in self.positions)
            and (not self.seat_numbers or seat.seat_number in self.seat_numbers)
        )

    def forbidden(self, seat: FreedSeat) -> str | None:
        """Returns why the rules for people keep it off a seat; None where they don't."""
        return eligibility.forbidden(
            self.type, self.special_services, exit_row=seat.exit_row, infant_allowed=seat.infant_allowed
        )

    def wants(self, seat: FreedSeat) -> bool:
        """Whether a seat meets every wish, and it may ever sit there."""
        return self.wishes(seat) and seat.seat_number not in self.refused and self.forbidden(seat) is None

    def can_get(self, seat: FreedSeat) -> bool:
        """Whether a wanted seat was not refused to it a moment ago."""
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


@dataclass(frozen=True, slots=True)
class Matches:
    """The seat of each entry that gets one, the seats kept for entries that are being judged, and what is left."""

    seats: dict[UUID, FreedSeat]
    kept: set[str]
    left: list[FreedSeat]


def match(entries: Iterable[Wishes], seats: Iterable[FreedSeat], *, certain: Collection[str]) -> Matches:
    """Returns who gets what; `entries` are in order of joining, `certain` those of the seats that can't be gone."""
    left = {seat.seat_number: seat for seat in seats}
    matched: dict[UUID, FreedSeat] = {}
    kept: set[str] = set()
    for entry in entries:
        best = None if entry.claiming else entry.best_of(left.values())
        if best is not None:
            matched[entry.entry_id] = left.pop(best.seat_number)
        if entry.claiming or (best is not None and best.seat_number not in certain):
            wanted = {seat.seat_number for seat in left.values() if entry.can_get(seat)}
            kept |= wanted
            for seat_number in wanted:
                del left[seat_number]
    return Matches(matched, kept, list(left.values()))
