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
from functools import lru_cache
from itertools import pairwise

from skyhigh.seat.v1 import seat_service_pb2
from skyhigh.seat.v1.seat_service_pb2 import PassengerProfile, Seat, SuggestSeatsResponse

from seat_service.layouts.cabin_layouts import AISLE_SEAT, CENTRE_SEAT, EXIT_ROW, WINDOW_SEAT, Layout, LayoutSeat
from seat_service.rules import eligibility
from seat_service.rules.entitlements import Passenger

MAX_SUGGESTIONS = 5
FREE = "A"

# The best and the worst score of each kind of suggestion.
_SIDE_BY_SIDE = (100, 61)
_NEAR = (60, 31)
_APART = (30, 1)

# The caller named the wished position, so that missing it costs more than to leave an orphan, which is hard to sell.
_WISH_MISSED = 18
# The first orphan, a single free seat that is left between taken ones, costs more than the usual drawbacks of a place
# together, so that one is left only if each place leaves one.
_FIRST_ORPHAN = 13
_FURTHER_ORPHAN = 3
_UNWISHED_MIDDLE = 4
_FURTHER_ROW = 6
_ALONE_IN_ROW = 5
_AISLE_BETWEEN = 4
_FURTHER_PIECE = 4
# A shape with more rows than this is not "near".
_MAX_DEPTH = 5
_MAX_PARTY = 9

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

# Row, column and key of a seat; the key is its offset in a shape, or the number of its bit.
_Place = tuple[int, int, int]

_COUNT = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_POSITION: dict[int, str] = {Seat.WINDOW: "window", Seat.MIDDLE: "middle", Seat.AISLE: "aisle"}


@dataclass(frozen=True, slots=True)
class _Section:
    """A cabin as a grid of bits; each row begins `columns` bits after the row before."""

    cabin: int
    columns: int
    aisles: frozenset[int]
    row_starts: int
    places: int
    """A mask of all bits of the section."""


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """A layout as bits; the integers without another comment are masks of seats."""

    sections: tuple[_Section, ...]
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


@dataclass(frozen=True, slots=True)
class _Shape:
    """An arrangement of a party's seats.

    The offsets count from the first place of the row in which the shape begins.
    """

    offsets: tuple[int, ...]
    mask: int
    adults: int
    """The mask of the adults' seats; 0 if the party has no children or no adults."""
    far_children: int
    """The number of children who sit beside no adult, but at most one row away from one."""
    side_by_side: bool
    cost: int


@dataclass(frozen=True, slots=True)
class _Candidate:
    taken: int
    adults: int
    far_children: int
    cost: int
    orphans: int


@dataclass(frozen=True, slots=True)
class _Party:
    size: int
    children: int
    wishes: tuple[int, ...]

    @property
    def adults(self) -> int:
        return self.size - self.children


@dataclass(frozen=True, slots=True)
class _Search:
    grid: _Grid
    party: _Party
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
    party = _Party(
        size=party_size,
        children=min(children, party_size),
        wishes=tuple(sorted(set(positions) - {Seat.POSITION_UNSPECIFIED})),
    )
    grid = _grid(layout)
    free = sum(bit for bit, state in zip(grid.bits, states, strict=True) if state == FREE)
    usable = free & (grid.cabins.get(cabin, 0) if cabin else -1)
    if party.children or infants:
        usable &= ~grid.exits
    if infants:
        usable &= ~grid.maskless
    if excluded:
        usable &= ~grid.named(excluded)

    search = _Search(grid, party, free, usable, _lone(grid, free))
    for band, candidates in _by_kind(search):
        if candidates:
            return [_suggestion(grid, party, candidate, band) for candidate in _best(candidates)]
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


def _by_kind(search: _Search) -> Iterator[tuple[tuple[int, int], list[_Candidate]]]:
    """Yields the band of scores and the candidates of each kind, the best kind first.

    A kind is searched only when the caller asks for it.
    """
    yield _SIDE_BY_SIDE, _in_shapes(search, side_by_side=True)
    yield _NEAR, _in_shapes(search, side_by_side=False)
    yield _APART, list(_in_pieces(search))


def _best(candidates: Iterable[_Candidate]) -> list[_Candidate]:
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


def _disjoint(ranked: Sequence[_Candidate]) -> dict[int, _Candidate]:
    """Picks at most five candidates that share no seat; returns them by index.

    They are picked in their order. Only candidates with as few children away from an adult as the first one are picked.
    """
    chosen: dict[int, _Candidate] = {}
    used = 0
    for index, each in enumerate(ranked):
        if len(chosen) == MAX_SUGGESTIONS or each.far_children > ranked[0].far_children:
            break
        if not each.taken & used:
            chosen[index] = each
            used |= each.taken
    return chosen


def _in_shapes(search: _Search, *, side_by_side: bool) -> list[_Candidate]:
    """Finds the places of the shapes, cheapest first.

    Stops when no further shape can be among the best.
    """
    party = search.party
    found: list[_Candidate] = []
    bound = (0, 0)
    for shape, section in _shapes_of(search.grid, party.size, party.children, side_by_side):
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


def _in_pieces(search: _Search) -> Iterator[_Candidate]:
    """Yields candidates for a party that cannot sit together.

    They have few pieces, close to each other, with each child beside an adult.
    """
    grid, party = search.grid, search.party
    for cabin_mask in grid.cabins.values():
        runs = _runs(grid, search.usable & cabin_mask)
        for shortest in sorted({min(len(run), party.size) for run in runs}, reverse=True):
            long = [run for run in runs if len(run) >= shortest]
            short = sorted((run for run in runs if len(run) < shortest), key=len, reverse=True)
            for first in range(len(long)):
                pieces = _pieces([*long[first:], *short] if first == 0 else long[first:], party.size)
                if not pieces:
                    break
                adults, far_children = _place_adults(
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


def _priced(search: _Search, taken: int, adults: int, far_children: int, cost: int) -> _Candidate:
    """Returns a candidate with the cost of its shape and of its place."""
    grid, party = search.grid, search.party
    orphans = (_lone(grid, search.free & ~taken) & ~search.lone).bit_count()
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
    return _Candidate(taken, adults, far_children, cost, orphans)


def _lone(grid: _Grid, seats: int) -> int:
    """Returns those of the seats that have no other one of them directly beside."""
    has_right = seats & (seats >> 1) & grid.joined
    return seats & ~(has_right | has_right << 1)


def _runs(grid: _Grid, seats: int) -> list[list[int]]:
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


@lru_cache(maxsize=64)
def _grid(layout: Layout) -> _Grid:
    sections: list[_Section] = []
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
        sections.append(_Section(cabin.cabin, columns, aisles, row_starts, places))

    def having(codes: Iterable[str], but: Iterable[str] = ()) -> int:
        return sum(
            1 << bit
            for bit, seat in enumerate(seats)
            if seat and not set(codes).isdisjoint(seat.characteristics) and set(but).isdisjoint(seat.characteristics)
        )

    present = [(bit, seat) for bit, seat in enumerate(seats) if seat]
    return _Grid(
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


@lru_cache(maxsize=2048)
def _shapes_of(grid: _Grid, party_size: int, children: int, side_by_side: bool) -> tuple[tuple[_Shape, _Section], ...]:
    """Returns the shapes of all sections, the cheapest first, each with its section."""
    shapes = [
        (shape, section)
        for section in grid.sections
        for shape in _shapes(section.columns, section.aisles, party_size, children)
        if shape.side_by_side is side_by_side
    ]
    return tuple(sorted(shapes, key=lambda each: (each[0].far_children, each[0].cost)))


@lru_cache(maxsize=1024)
def _shapes(columns: int, aisles: frozenset[int], party_size: int, children: int) -> tuple[_Shape, ...]:
    """Returns the shapes of a party.

    They are blocks of seats; the first or the last row may be shorter.
    """
    shapes: dict[int, _Shape] = {}
    for width in range(1, min(columns, party_size) + 1):
        depth = -(-party_size // width)
        short = party_size - width * (depth - 1)
        if depth > _MAX_DEPTH:
            continue
        for column in range(columns - width + 1):
            for short_row in {0, depth - 1}:
                for shift in {0, width - short}:
                    rows = [range(column, column + width)] * depth
                    rows[short_row] = range(column + shift, column + shift + short)
                    shape = _shape(columns, aisles, rows, party_size - children, children)
                    if shape is not None:
                        shapes.setdefault(shape.mask, shape)
    return tuple(shapes.values())


def _shape(
    columns: int, aisles: frozenset[int], rows: Sequence[range], adult_count: int, children: int
) -> _Shape | None:
    """Builds a shape from its columns in each row.

    Returns None if a child would be too far from every adult.
    """
    pieces: list[list[_Place]] = []
    aisles_between = 0
    for row, taken_columns in enumerate(rows):
        pieces.append([])
        for column in taken_columns:
            pieces[-1].append((row, column, row * columns + column))
            if column in aisles and column + 1 in taken_columns:
                aisles_between += 1
                pieces.append([])
    offsets = tuple(offset for piece in pieces for _, _, offset in piece)
    alone = sum(1 for piece in pieces if len(piece) == 1) if len(offsets) > 1 else 0
    cost = _FURTHER_ROW * (len(rows) - 1) + _AISLE_BETWEEN * aisles_between + _ALONE_IN_ROW * alone
    adults, far_children = _place_adults(pieces, adult_count, children)
    if far_children:
        adult_places = [divmod(adult, columns) for adult in adults]
        for row, taken_columns in enumerate(rows):
            if all(abs(row - adult_row) > 1 for adult_row, _ in adult_places):
                return None
            for column in taken_columns:
                steps = min(abs(row - adult_row) + abs(column - place) for adult_row, place in adult_places)
                cost += max(0, steps - 1)
    return _Shape(
        offsets=offsets,
        mask=sum(1 << offset for offset in offsets),
        adults=sum(1 << adult for adult in adults),
        far_children=far_children,
        side_by_side=len(pieces) == 1,
        cost=cost,
    )


def _place_adults(pieces: Sequence[Sequence[_Place]], adult_count: int, children: int) -> tuple[list[int], int]:
    """Chooses the adults' seats for a party with children.

    As many children as possible get a seat beside an adult. Returns the keys of the adults' seats, and the number of
    children who sit beside no adult.

    A piece is divided into threes. An adult in the middle of each three leaves no child without an adult beside it. If
    there are too few adults, the largest groups come first, and of these the ones nearest to the middle of the party.
    """
    if not children or not adult_count:
        return [], 0
    places = [place for piece in pieces for place in piece]
    middle_row = (places[0][0] + places[-1][0]) / 2
    middle_column = sum(column for _, column, _ in places) / len(places)

    def off_middle(place: _Place) -> tuple[float, float]:
        return abs(place[0] - middle_row), abs(place[1] - middle_column)

    threes = [piece[start : start + 3] for piece in pieces for start in range(0, len(piece), 3)]
    heads = [(len(three), three[1] if len(three) == 3 else min(three, key=off_middle)) for three in threes]
    heads.sort(key=lambda head: (-head[0], off_middle(head[1]), head[1]))
    adults = [name for _, (_, _, name) in heads[:adult_count]]
    spare = [name for _, _, name in places if name not in adults]
    adults += spare[: adult_count - len(adults)]
    beside = set()
    for piece in pieces:
        for (_, _, left), (_, _, right) in pairwise(piece):
            if (left in adults) != (right in adults):
                beside.add(right if left in adults else left)
    return sorted(adults), children - len(beside)


def _suggestion(
    grid: _Grid, party: _Party, candidate: _Candidate, band: tuple[int, int]
) -> seat_service_pb2.SuggestSeatsResponse.Suggestion:
    best, worst = band
    adults = _seats(grid, candidate.adults)
    others = _seats(grid, candidate.taken & ~candidate.adults)
    return SuggestSeatsResponse.Suggestion(
        seat_numbers=[seat.seat_number for seat in (*adults, *others)],
        score=max(worst, best - candidate.cost),
        explanation="; ".join(_reasons(grid, party, candidate, band)),
    )


def _seats(grid: _Grid, mask: int) -> list[LayoutSeat]:
    return [seat for bit, seat in enumerate(grid.seats) if seat and mask >> bit & 1]


def _reasons(grid: _Grid, party: _Party, candidate: _Candidate, band: tuple[int, int]) -> Iterator[str]:
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


def _where(grid: _Grid, party: _Party, candidate: _Candidate, band: tuple[int, int]) -> str:
    seats = _seats(grid, candidate.taken)
    rows = sorted({seat.row for seat in seats})
    count = _COUNT[party.size]
    if party.size == 1:
        kinds = [name for kind, name in _POSITION.items() if candidate.taken & grid.positions[kind]]
        kind = " and ".join(kinds) or "windowless"
        return f"{'an' if kind[0] == 'a' else 'a'} {kind} seat in row {rows[0]}"
    if band == _APART:
        pieces = [sum(1 << bit for bit in run) for run in _runs(grid, candidate.taken)]
        where = _listed([" ".join(seat.seat_number for seat in _seats(grid, piece)) for piece in pieces])
        return f"{count} seats, not together: {where}"
    window = ", a window among them" if candidate.taken & grid.positions[Seat.WINDOW] else ""
    if band == _SIDE_BY_SIDE:
        return f"{count} seats side by side in row {rows[0]}{window}"
    if len(rows) == 1:
        return f"{count} seats in row {rows[0]}, across the aisle{window}"
    return f"{count} seats close together in rows {_listed([str(row) for row in rows])}{window}"


def _children(grid: _Grid, party: _Party, candidate: _Candidate) -> str:
    numbers = _listed([seat.seat_number for seat in _seats(grid, candidate.adults)])
    adults = f"with the adult{'s' if party.adults > 1 else ''} in {numbers}"
    if not candidate.far_children:
        return f"{'each' if party.children > 1 else 'the'} child sits beside an adult, {adults}"
    beside = party.children - candidate.far_children
    some = f"{_COUNT[beside]} of {_COUNT[party.children]} children sit{'s' if beside == 1 else ''} beside an adult"
    rest = f"the other{'s' if candidate.far_children > 1 else ''} at most one row away"
    return f"{some}, {rest}, {adults}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
