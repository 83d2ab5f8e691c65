"""Matching against the rule itself, said in the plainest way: seat by seat nobody older is overtaken."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from waitlist_service.matching import FreedSeat, Wishes, match

POSITIONS = ("WINDOW", "MIDDLE", "AISLE")
CABINS = ("ECONOMY", "BUSINESS")
NUMBERS = [f"{row}{letter}" for row in (1, 2, 20, 21) for letter in "ABC"]

seats = st.lists(st.sampled_from(NUMBERS), unique=True, max_size=8).map(
    lambda numbers: [
        FreedSeat(number, NUMBERS.index(number), CABINS[len(number) == 2], POSITIONS["ABC".index(number[-1])])
        for number in numbers
    ]
)
wishes = st.builds(
    lambda cabin, positions, numbers, skipped: (cabin, positions, numbers, skipped),
    st.sampled_from(CABINS),
    st.lists(st.sampled_from(POSITIONS), unique=True, max_size=3),
    st.lists(st.sampled_from(NUMBERS), unique=True, max_size=3),
    st.frozensets(st.sampled_from(NUMBERS), max_size=3),
)
lines = st.lists(wishes, max_size=10).map(
    lambda line: [Wishes(UUID(int=n), *each) for n, each in enumerate(line, start=1)]
)


@given(lines, seats)
def test_nobody_older_who_wants_a_seat_is_overtaken(line: list[Wishes], freed: list[FreedSeat]) -> None:
    matched = match(line, freed)
    for place, younger in enumerate(line):
        seat = matched.get(younger.entry_id)
        if seat is None:
            continue
        for older in line[:place]:
            assert older.entry_id in matched or not older.can_get(seat)


@given(lines, seats)
def test_each_seat_serves_one_entry_that_wants_it(line: list[Wishes], freed: list[FreedSeat]) -> None:
    matched = match(line, freed)
    assert len({seat.seat_number for seat in matched.values()}) == len(matched)
    by_id = {entry.entry_id: entry for entry in line}
    for entry_id, seat in matched.items():
        assert seat in freed
        assert by_id[entry_id].can_get(seat)


@given(lines, seats)
def test_no_seat_is_left_that_somebody_left_wants(line: list[Wishes], freed: list[FreedSeat]) -> None:
    matched = match(line, freed)
    left = [seat for seat in freed if seat not in matched.values()]
    for entry in line:
        assert entry.entry_id in matched or not any(entry.can_get(seat) for seat in left)


@given(lines, seats)
def test_each_gets_its_dearest_of_what_the_older_left(line: list[Wishes], freed: list[FreedSeat]) -> None:
    matched, left = match(line, freed), list(freed)
    for entry in line:
        dearest = entry.best_of(left)
        assert matched.get(entry.entry_id) == dearest
        if dearest is not None:
            left.remove(dearest)


def test_wishes_are_ranked_in_the_order_in_which_they_are_named() -> None:
    freed = [FreedSeat("20A", 0, "ECONOMY", "WINDOW"), FreedSeat("20C", 2, "ECONOMY", "AISLE")]
    aisle_first = Wishes(UUID(int=1), "ECONOMY", ["AISLE", "WINDOW"], [])
    assert match([aisle_first], freed)[UUID(int=1)].seat_number == "20C"
    exact = Wishes(UUID(int=2), "ECONOMY", [], ["20C", "20A"])
    assert match([exact], freed)[UUID(int=2)].seat_number == "20C"
