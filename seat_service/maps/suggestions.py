"""Suggestions of the best free seats for a party (SEAT-14).

The functions are pure: they use neither a clock nor the database. The seats of a layout are the bits of one integer,
row by row. A shape (an arrangement of seats, such as three side by side and two behind them) is a few bits, too. To
find all places of a shape at once, the free seats are shifted by each of its offsets, and the results are combined with
AND.

All suggestions are of the best kind for which the cabin has room. The score lies in the band of the kind:

- 61 to 100: side by side, no aisle between;
- 31 to 60: near, in one row across an aisle or one behind the other;
- 1 to 30: apart.

Within the band each drawback costs points. Children come first: no child gets a seat in an exit row, and as many
children as the shapes of the cabin permit get a seat beside an adult.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from skyhigh.seat.v1 import seat_service_pb2
from skyhigh.seat.v1.seat_service_pb2 import PassengerProfile, Seat

from seat_service.layouts.cabin_layouts import Layout
from seat_service.maps.party_shapes import place_adults, shapes_of
from seat_service.maps.seat_grid import Grid, grid_of, lone_seats, runs_of
from seat_service.maps.suggestion_texts import APART, NEAR, SIDE_BY_SIDE, Candidate, Party, suggestion
from seat_service.rules import eligibility
from seat_service.rules.entitlements import Passenger

MAX_SUGGESTIONS = 5
FREE = "A"
# The caller named the wished position, so that missing it costs more than to leave an orphan, which is hard to sell.
_WISH_MISSED = 18
# The first orphan, a single free seat that is left between taken ones, costs more than the usual drawbacks of a place
# together, so that one is left only if each place leaves one.
_FIRST_ORPHAN = 13
_FURTHER_ORPHAN = 3
_UNWISHED_MIDDLE = 4
_FURTHER_PIECE = 4
_MAX_PARTY = 9


@dataclass(frozen=True, slots=True)
class _Search:
    grid: Grid
    party: Party
    free: int
    usable: int
    """The free seats that are eligible for this party."""
    lone: int
    """The free seats without a free neighbour, before the party takes any."""


def suggest(
    layout: Layout,
    states: str,
    *,
    party_size: int,
    cabin: seat_service_pb2.Seat.Cabin.ValueType = Seat.CABIN_UNSPECIFIED,
    positions: Collection[seat_service_pb2.Seat.Position.ValueType] = (),
    children: int = 0,
    infants: int = 0,
    excluded: Collection[str] = (),
) -> list[seat_service_pb2.SuggestSeatsResponse.Suggestion]:
    """Returns at most five suggestions, best first; none if the party finds no room.

    `states` has one letter for each seat, by ordinal; only `A` is free. A party is never split over two classes, and
    `cabin` limits it to one class. Each of `positions` should occur at least once in the party, for any member.
    `excluded` seats are not suggested. A party with children gets no exit row; one with infants on laps gets neither an
    exit row nor a row without oxygen masks for infants. Children without an adult have no further rule.

    `seat_numbers` of a suggestion are row by row; in a party with children the adults' seats come first. Raises
    `ValueError` if `states` has another number of seats than the layout, or if `party_size` or `children` is invalid.
    """
    if len(states) != len(layout.seats):
        raise ValueError(f"{len(states)} states for the {len(layout.seats)} seats of {layout.layout_id}")
    if not 1 <= party_size <= _MAX_PARTY or children < 0:
        raise ValueError(f"a party of {party_size} with {children} children")
    party = Party(
        size=party_size,
        children=min(children, party_size),
        wishes=tuple(sorted(set(positions) - {Seat.POSITION_UNSPECIFIED})),
    )
    grid = grid_of(layout)
    free = sum(bit for bit, state in zip(grid.bits, states, strict=True) if state == FREE)
    usable = free & (grid.cabins.get(cabin, 0) if cabin else -1)
    if party.children or infants:
        usable &= ~grid.exits
    if infants:
        usable &= ~grid.maskless
    if excluded:
        usable &= ~grid.named(excluded)

    search = _Search(grid, party, free, usable, lone_seats(grid, free))
    for band, candidates in _by_kind(search):
        if candidates:
            return [suggestion(grid, party, candidate, band) for candidate in _best(candidates)]
    return []


def suggest_to_party(
    layout: Layout, states: str, request: seat_service_pb2.SuggestSeatsRequest, party: Sequence[Passenger]
) -> list[seat_service_pb2.SuggestSeatsResponse.Suggestion]:
    """Returns the suggestions for a request.

    `party` has the passengers of the manifest whom the request or the session names; it may be empty. The seats are in
    the cabins of these passengers. A seat is suggested only if it fits each of them, because the party decides later
    which passenger takes which seat.
    """
    seated = [each.person for each in party if each.person.type != PassengerProfile.INFANT]
    cabins = {person.cabin for person in seated} - {Seat.CABIN_UNSPECIFIED}
    needs = [replace(person, cabin=Seat.CABIN_UNSPECIFIED) for person in seated]
    unfit = {
        seat.seat_number
        for seat in layout.seats
        if (cabins and seat.cabin not in cabins) or not all(eligibility.fits(person, seat) for person in needs)
    }
    children = sum(person.type == PassengerProfile.CHILD for person in seated) if request.passenger_ids else 0
    return suggest(
        layout,
        states,
        party_size=request.party_size,
        cabin=request.cabin,
        positions=list(request.positions),
        children=min(max(request.children, children), request.party_size),
        infants=max(request.infants, len(party) - len(seated)),
        excluded=unfit.union(request.excluded_seats),
    )


def _by_kind(search: _Search) -> Iterator[tuple[tuple[int, int], list[Candidate]]]:
    """Yields the band of scores and the candidates of each kind, the best kind first.

    A kind is searched only when the caller asks for it.
    """
    yield SIDE_BY_SIDE, _in_shapes(search, side_by_side=True)
    yield NEAR, _in_shapes(search, side_by_side=False)
    yield APART, list(_in_pieces(search))


def _best(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Returns the at most five best candidates.

    Candidates that share no seat are preferred: if another caller takes a seat, only one suggestion is lost. The best
    first.
    """
    # The search for pieces may find the same seats several times.
    unique = {each.taken: each for each in candidates}.values()
    ranked = sorted(unique, key=lambda each: (each.far_children, each.cost, each.taken & -each.taken, each.taken))
    chosen = _disjoint(ranked)
    for index, each in enumerate(ranked):
        if len(chosen) == MAX_SUGGESTIONS or each.far_children > ranked[0].far_children:
            break
        chosen.setdefault(index, each)
    return [each for _, each in sorted(chosen.items())]


def _disjoint(ranked: Sequence[Candidate]) -> dict[int, Candidate]:
    """Picks at most five candidates that share no seat; returns them by index.

    They are picked in their order. Only candidates with as few children away from an adult as the first one are picked.
    """
    chosen: dict[int, Candidate] = {}
    used = 0
    for index, each in enumerate(ranked):
        if len(chosen) == MAX_SUGGESTIONS or each.far_children > ranked[0].far_children:
            break
        if not each.taken & used:
            chosen[index] = each
            used |= each.taken
    return chosen


def _in_shapes(search: _Search, *, side_by_side: bool) -> list[Candidate]:
    """Finds the places of the shapes, cheapest first.

    Stops when no further shape can be among the best.
    """
    party = search.party
    found: list[Candidate] = []
    bound = (0, 0)
    for shape, section in shapes_of(search.grid, party.size, party.children, side_by_side):
        if (shape.far_children, shape.cost) != bound:
            bound = (shape.far_children, shape.cost)
            settled = [each for each in found if (each.far_children, each.cost) <= bound]
            if len(_disjoint(settled)) == MAX_SUGGESTIONS or (found and found[0].far_children < shape.far_children):
                break
        usable = search.usable & section.places
        places = section.row_starts
        for offset in shape.offsets:
            places &= usable >> offset
        while places:
            place = (places & -places).bit_length() - 1
            places &= places - 1
            taken, adults = shape.mask << place, shape.adults << place
            found.append(_priced(search, taken, adults, shape.far_children, shape.cost))
    return found


def _in_pieces(search: _Search) -> Iterator[Candidate]:
    """Yields candidates for a party that cannot sit together.

    They have few pieces, close to each other, with each child beside an adult.
    """
    grid, party = search.grid, search.party
    for cabin_mask in grid.cabins.values():
        runs = runs_of(grid, search.usable & cabin_mask)
        for shortest in sorted({min(len(run), party.size) for run in runs}, reverse=True):
            long = [run for run in runs if len(run) >= shortest]
            short = sorted((run for run in runs if len(run) < shortest), key=len, reverse=True)
            for first in range(len(long)):
                pieces = _pieces([*long[first:], *short] if first == 0 else long[first:], party.size)
                if not pieces:
                    break
                adults, far_children = place_adults(
                    [[(grid.ranks[bit], bit, bit) for bit in piece] for piece in pieces], party.adults, party.children
                )
                if far_children:
                    continue
                ranks = [grid.ranks[piece[0]] for piece in pieces]
                cost = _FURTHER_PIECE * (len(pieces) - 1) + max(ranks) - min(ranks)
                taken = sum(1 << bit for piece in pieces for bit in piece)
                yield _priced(search, taken, sum(1 << bit for bit in adults), 0, cost)


def _pieces(runs: Iterable[list[int]], size: int) -> list[list[int]]:
    """Takes whole runs, and a part of the last one.

    Returns no piece if the runs do not suffice.
    """
    pieces = []
    for run in runs:
        pieces.append(run[:size])
        size -= len(pieces[-1])
        if not size:
            return pieces
    return []


def _priced(search: _Search, taken: int, adults: int, far_children: int, cost: int) -> Candidate:
    """Returns a candidate with the cost of its shape and of its place."""
    grid, party = search.grid, search.party
    orphans = (lone_seats(grid, search.free & ~taken) & ~search.lone).bit_count()
    if orphans:
        cost += _FIRST_ORPHAN + _FURTHER_ORPHAN * (orphans - 1)
    if party.wishes:
        met = sum(1 for wish in party.wishes if taken & grid.positions[wish])
        cost += _WISH_MISSED * max(0, min(party.size, len(party.wishes)) - met)
    elif party.size == 1 and taken & grid.positions[Seat.MIDDLE]:
        cost += _UNWISHED_MIDDLE
    for mask, penalty, _ in grid.drawbacks:
        if taken & mask:
            cost += penalty
    return Candidate(taken, adults, far_children, cost, orphans)
