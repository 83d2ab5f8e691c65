"""Matching: decides which waiting entry gets which released seat.

It is a pure function, so that tests can try all cases. Entries choose in order of joining. Each gets the seat that it
prefers among those that it wants and that are left. So a seat goes to the oldest entry that wants it and has not chosen
another one. The claim of a seat that may be taken already can fail. Until its result is known, the other seats that its
entry wants are kept from younger entries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from waitlist_service import eligibility


@dataclass(frozen=True, slots=True)
class FreedSeat:
    """A seat that can be claimed. `ordinal` is its index in the cabin layout."""

    seat_number: str
    ordinal: int
    cabin: str
    position: str
    exit_row: bool = False
    infant_allowed: bool = True


@dataclass(frozen=True, slots=True)
class Wishes:
    """A waiting entry: passenger, preferences, and the seats it was refused.

    `positions` and `seat_numbers` have the most preferred first; an empty list permits all. `skipped` are seats that it
    was refused and does not try at present, `refused` those that it never tries again. `claiming` is true while the
    result of a claim is unknown whose seat may be taken already.
    """

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
        """Returns True if a seat meets all preferences."""
        return (
            seat.cabin == self.cabin
            and (not self.positions or seat.position in self.positions)
            and (not self.seat_numbers or seat.seat_number in self.seat_numbers)
        )

    def forbidden(self, seat: FreedSeat) -> str | None:
        """Returns the reason why the passenger is not eligible for a seat.

        None if the passenger is eligible.
        """
        return eligibility.forbidden(
            self.type, self.special_services, exit_row=seat.exit_row, infant_allowed=seat.infant_allowed
        )

    def wants(self, seat: FreedSeat) -> bool:
        """Returns True if the seat is preferred, eligible and not refused for ever."""
        return self.wishes(seat) and seat.seat_number not in self.refused and self.forbidden(seat) is None

    def can_get(self, seat: FreedSeat) -> bool:
        """Returns True if the entry wants a seat and does not skip it at present."""
        return self.wants(seat) and seat.seat_number not in self.skipped

    def best_of(self, seats: Iterable[FreedSeat]) -> FreedSeat | None:
        """Returns the most preferred of the seats that the entry can get, or None."""
        return min((seat for seat in seats if self.can_get(seat)), key=self._rank, default=None)

    def _rank(self, seat: FreedSeat) -> tuple[int, int, int]:
        return (
            self.seat_numbers.index(seat.seat_number) if self.seat_numbers else 0,
            self.positions.index(seat.position) if self.positions else 0,
            seat.ordinal,
        )


@dataclass(frozen=True, slots=True)
class Matches:
    """The result of matching.

    `seats` has the seat of each matched entry. `kept` are seats that older entries may still want when the result of
    their claim is known. `left` are the other seats.
    """

    seats: dict[UUID, FreedSeat]
    kept: set[str]
    left: list[FreedSeat]


def match(entries: Iterable[Wishes], seats: Iterable[FreedSeat], *, certain: Collection[str]) -> Matches:
    """Matches seats with entries, which are in order of joining.

    `certain` are those of the seats that no other caller can have taken.
    """
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
