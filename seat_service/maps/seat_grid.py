"""A layout as bits: one integer is a set of seats, row by row."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

from skyhigh.seat.v1.seat_service_pb2 import Seat

from seat_service.layouts.cabin_layouts import AISLE_SEAT, CENTRE_SEAT, EXIT_ROW, WINDOW_SEAT, Layout, LayoutSeat

# PADIS codes of the drawbacks, their cost and their words. An exit row is comfortable, but not every adult is eligible.
_DRAWBACKS = (
    ({"1"}, 4, "restricted by the airline"),
    ({EXIT_ROW}, 3, "in an exit row, only for adults able and willing to help"),
    ({"7"}, 3, "near a toilet"),
    ({"6"}, 2, "near a galley"),
    ({"1D", "29", "30"}, 2, "little or no recline"),
    ({"B"}, 2, "at a place for a bassinet"),
)
# Codes of seats at the wall without a window: they do not meet a wish for a window seat.
_NO_VIEW = {"4", "1W"}


@dataclass(frozen=True, slots=True)
class Section:
    """A cabin as a grid of bits; each row begins `columns` bits after the row before."""

    cabin: int
    columns: int
    aisles: frozenset[int]
    row_starts: int
    places: int
    """A mask of all bits of the section."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A layout as bits; the integers without another comment are masks of seats."""

    sections: tuple[Section, ...]
    seats: tuple[LayoutSeat | None, ...]
    """The seat of each bit; None if the cabin has no seat there."""
    ranks: tuple[int, ...]
    """The rank of each bit's row, counted from the nose without gaps."""
    bits: tuple[int, ...]
    """The mask of each seat, by its ordinal."""
    joined: int
    """Places with another place directly at their right, without an aisle between."""
    cabins: dict[int, int]
    positions: dict[int, int]
    exits: int
    maskless: int
    """Seats without an oxygen mask for an infant on the lap."""
    drawbacks: tuple[tuple[int, int, str], ...]

    def named(self, numbers: Collection[str]) -> int:
        """Returns the mask of the seats with these numbers."""
        return sum(1 << bit for bit, seat in enumerate(self.seats) if seat is not None and seat.seat_number in numbers)


@lru_cache(maxsize=64)
def grid_of(layout: Layout) -> Grid:
    """Returns the grid of a layout; the process builds it once."""
    sections: list[Section] = []
    seats: list[LayoutSeat | None] = []
    ranks: list[int] = []
    joined = 0
    for cabin in layout.cabins:
        columns = len(cabin.letters)
        first_bit = len(seats)
        row_starts = 0
        for row in cabin.rows:
            row_starts |= 1 << len(seats)
            rank = ranks[-1] + 1 if ranks else 0
            for letter in cabin.letters:
                if letter != cabin.letters[-1] and letter not in cabin.aisles:
                    joined |= 1 << len(seats)
                seats.append(layout.by_number.get(f"{row}{letter}"))
                ranks.append(rank)
        aisles = frozenset(index for index, letter in enumerate(cabin.letters) if letter in cabin.aisles)
        places = (1 << len(seats)) - (1 << first_bit)
        sections.append(Section(cabin.cabin, columns, aisles, row_starts, places))

    def having(codes: Iterable[str], but: Iterable[str] = ()) -> int:
        return sum(
            1 << bit
            for bit, seat in enumerate(seats)
            if seat and not set(codes).isdisjoint(seat.characteristics) and set(but).isdisjoint(seat.characteristics)
        )

    present = [(bit, seat) for bit, seat in enumerate(seats) if seat]
    return Grid(
        sections=tuple(sections),
        seats=tuple(seats),
        ranks=tuple(ranks),
        bits=tuple(1 << bit for bit, _ in present),
        joined=joined,
        cabins={
            cabin: sum(1 << bit for bit, seat in present if seat.cabin == cabin)
            for cabin in sorted({section.cabin for section in sections})
        },
        positions={
            Seat.WINDOW: having({WINDOW_SEAT}, but=_NO_VIEW),
            Seat.MIDDLE: having({CENTRE_SEAT}),
            Seat.AISLE: having({AISLE_SEAT}),
        },
        exits=having({EXIT_ROW}),
        maskless=sum(1 << bit for bit, seat in present if not seat.infant_allowed),
        drawbacks=tuple((having(codes), cost, words) for codes, cost, words in _DRAWBACKS),
    )


def runs_of(grid: Grid, seats: int) -> list[list[int]]:
    """Splits seats into the longest runs side by side, row by row.

    A run is a list of bit numbers.
    """
    runs: list[list[int]] = []
    while seats:
        bit = (seats & -seats).bit_length() - 1
        seats &= seats - 1
        if runs and runs[-1][-1] == bit - 1 and grid.joined >> (bit - 1) & 1:
            runs[-1].append(bit)
        else:
            runs.append([bit])
    return runs


def lone_seats(grid: Grid, seats: int) -> int:
    """Returns those of the seats that have no other one of them directly beside."""
    has_right = seats & (seats >> 1) & grid.joined
    return seats & ~(has_right | has_right << 1)


def seats_in(grid: Grid, mask: int) -> list[LayoutSeat]:
    """Returns the seats of a mask, row by row."""
    return [seat for bit, seat in enumerate(grid.seats) if seat and mask >> bit & 1]
