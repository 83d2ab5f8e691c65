"""The message of a suggestion: its seats, its score and its explanation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from skyhigh.seat.v1 import seat_service_pb2
from skyhigh.seat.v1.seat_service_pb2 import Seat, SuggestSeatsResponse

from seat_service.maps.seat_grid import Grid, runs_of, seats_in

# The best and the worst score of each kind of suggestion.
SIDE_BY_SIDE = (100, 61)
NEAR = (60, 31)
APART = (30, 1)
_COUNT = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_POSITION: dict[int, str] = {Seat.WINDOW: "window", Seat.MIDDLE: "middle", Seat.AISLE: "aisle"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """Seats that the search found for a party; `taken` and `adults` are masks of seats."""

    taken: int
    adults: int
    far_children: int
    cost: int
    orphans: int


@dataclass(frozen=True, slots=True)
class Party:
    """The party that asks: its size, its children and the wished positions."""

    size: int
    children: int
    wishes: tuple[int, ...]

    @property
    def adults(self) -> int:
        """The members of the party who are not children."""
        return self.size - self.children


def suggestion(
    grid: Grid, party: Party, candidate: Candidate, band: tuple[int, int]
) -> seat_service_pb2.SuggestSeatsResponse.Suggestion:
    """Returns the message of a candidate; `band` has the best and the worst score of its kind."""
    best, worst = band
    adults = seats_in(grid, candidate.adults)
    others = seats_in(grid, candidate.taken & ~candidate.adults)
    return SuggestSeatsResponse.Suggestion(
        seat_numbers=[seat.seat_number for seat in (*adults, *others)],
        score=max(worst, best - candidate.cost),
        explanation="; ".join(_reasons(grid, party, candidate, band)),
    )


def _reasons(grid: Grid, party: Party, candidate: Candidate, band: tuple[int, int]) -> Iterator[str]:
    yield _where(grid, party, candidate, band)
    missed = [_POSITION[wish] for wish in party.wishes if not candidate.taken & grid.positions[wish]]
    if party.size > 1 and missed:
        yield f"no {' and no '.join(missed)} seat among them"
    elif party.size == 1 and len(missed) == len(party.wishes) > 0:
        yield "not the wished position"
    if candidate.adults:
        yield _children(grid, party, candidate)
    if candidate.orphans == 0:
        yield "no single seat is left over"
    else:
        yield f"{_COUNT[candidate.orphans]} single seat{'s are' if candidate.orphans > 1 else ' is'} left over"
    for mask, _, words in grid.drawbacks:
        if candidate.taken & mask:
            yield words


def _where(grid: Grid, party: Party, candidate: Candidate, band: tuple[int, int]) -> str:
    seats = seats_in(grid, candidate.taken)
    rows = sorted({seat.row for seat in seats})
    count = _COUNT[party.size]
    if party.size == 1:
        kinds = [name for kind, name in _POSITION.items() if candidate.taken & grid.positions[kind]]
        kind = " and ".join(kinds) or "windowless"
        return f"{'an' if kind[0] == 'a' else 'a'} {kind} seat in row {rows[0]}"
    if band == APART:
        pieces = [sum(1 << bit for bit in run) for run in runs_of(grid, candidate.taken)]
        where = _listed([" ".join(seat.seat_number for seat in seats_in(grid, piece)) for piece in pieces])
        return f"{count} seats, not together: {where}"
    window = ", a window among them" if candidate.taken & grid.positions[Seat.WINDOW] else ""
    if band == SIDE_BY_SIDE:
        return f"{count} seats side by side in row {rows[0]}{window}"
    if len(rows) == 1:
        return f"{count} seats in row {rows[0]}, across the aisle{window}"
    return f"{count} seats close together in rows {_listed([str(row) for row in rows])}{window}"


def _children(grid: Grid, party: Party, candidate: Candidate) -> str:
    numbers = _listed([seat.seat_number for seat in seats_in(grid, candidate.adults)])
    adults = f"with the adult{'s' if party.adults > 1 else ''} in {numbers}"
    if not candidate.far_children:
        return f"{'each' if party.children > 1 else 'the'} child sits beside an adult, {adults}"
    beside = party.children - candidate.far_children
    some = f"{_COUNT[beside]} of {_COUNT[party.children]} children sit{'s' if beside == 1 else ''} beside an adult"
    rest = f"the other{'s' if candidate.far_children > 1 else ''} at most one row away"
    return f"{some}, {rest}, {adults}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
