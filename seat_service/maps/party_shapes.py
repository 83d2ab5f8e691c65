"""The shapes in which a party sits together, with its adults' seats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from seat_service.maps.seat_grid import Grid, Section

_FURTHER_ROW = 6
_ALONE_IN_ROW = 5
_AISLE_BETWEEN = 4
# A shape with more rows than this is not "near".
_MAX_DEPTH = 5
# Row, column and key of a seat; the key is its offset in a shape, or the number of its bit.
Place = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Shape:
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


@lru_cache(maxsize=2048)
def shapes_of(grid: Grid, party_size: int, children: int, side_by_side: bool) -> tuple[tuple[Shape, Section], ...]:
    """Returns the shapes of all sections, the cheapest first, each with its section."""
    shapes = [
        (shape, section)
        for section in grid.sections
        for shape in _shapes(section.columns, section.aisles, party_size, children)
        if shape.side_by_side is side_by_side
    ]
    return tuple(sorted(shapes, key=lambda each: (each[0].far_children, each[0].cost)))


@lru_cache(maxsize=1024)
def _shapes(columns: int, aisles: frozenset[int], party_size: int, children: int) -> tuple[Shape, ...]:
    """Returns the shapes of a party.

    They are blocks of seats; the first or the last row may be shorter.
    """
    shapes: dict[int, Shape] = {}
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
) -> Shape | None:
    """Builds a shape from its columns in each row.

    Returns None if a child would be too far from every adult.
    """
    pieces: list[list[Place]] = []
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
    adults, far_children = place_adults(pieces, adult_count, children)
    if far_children:
        adult_places = [divmod(adult, columns) for adult in adults]
        for row, taken_columns in enumerate(rows):
            if all(abs(row - adult_row) > 1 for adult_row, _ in adult_places):
                return None
            for column in taken_columns:
                steps = min(abs(row - adult_row) + abs(column - place) for adult_row, place in adult_places)
                cost += max(0, steps - 1)
    return Shape(
        offsets=offsets,
        mask=sum(1 << offset for offset in offsets),
        adults=sum(1 << adult for adult in adults),
        far_children=far_children,
        side_by_side=len(pieces) == 1,
        cost=cost,
    )


def place_adults(pieces: Sequence[Sequence[Place]], adult_count: int, children: int) -> tuple[list[int], int]:
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

    def off_middle(place: Place) -> tuple[float, float]:
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
