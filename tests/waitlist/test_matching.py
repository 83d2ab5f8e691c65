"""Matching, compared with the rule itself: no older entry is overtaken."""

from __future__ import annotations

from dataclasses import replace
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
def test_no_entry_is_passed_by_a_younger_one(line: list[Wishes], freed: list[FreedSeat]) -> None:
    matched = match(line, freed, certain=NUMBERS).seats
    for place, younger in enumerate(line):
        seat = matched.get(younger.entry_id)
        if seat is None:
            continue
        for older in line[:place]:
            assert older.entry_id in matched or not older.can_get(seat)


@given(lines, seats)
def test_each_seat_serves_one_eligible_entry(line: list[Wishes], freed: list[FreedSeat]) -> None:
    matched = match(line, freed, certain=NUMBERS).seats
    assert len({seat.seat_number for seat in matched.values()}) == len(matched)
    by_id = {entry.entry_id: entry for entry in line}
    for entry_id, seat in matched.items():
        assert seat in freed
        assert by_id[entry_id].can_get(seat)


@given(lines, seats)
def test_no_wanted_seat_is_left_over(line: list[Wishes], freed: list[FreedSeat]) -> None:
    matched = match(line, freed, certain=NUMBERS).seats
    left = [seat for seat in freed if seat not in matched.values()]
    for entry in line:
        assert entry.entry_id in matched or not any(entry.can_get(seat) for seat in left)


@given(lines, seats)
def test_each_entry_gets_its_most_preferred_remaining_seat(line: list[Wishes], freed: list[FreedSeat]) -> None:
    matched, left = match(line, freed, certain=NUMBERS).seats, list(freed)
    for entry in line:
        dearest = entry.best_of(left)
        assert matched.get(entry.entry_id) == dearest
        if dearest is not None:
            left.remove(dearest)


@given(lines, seats, st.frozensets(st.integers(1, 10)), st.frozensets(st.sampled_from(NUMBERS)))
def test_seats_are_kept_for_entries_with_undecided_claims(
    line: list[Wishes], freed: list[FreedSeat], judged: frozenset[int], certain: frozenset[str]
) -> None:
    line = [replace(entry, claiming=entry.entry_id.int in judged) for entry in line]
    found = match(line, freed, certain=certain)
    numbers = sorted([seat.seat_number for seat in (*found.seats.values(), *found.left)] + list(found.kept))
    assert numbers == sorted(seat.seat_number for seat in freed), "each seat is given, kept or left"
    for place, entry in enumerate(line):
        seat = found.seats.get(entry.entry_id)
        if seat is not None:
            assert not entry.claiming
            for older in line[:place]:
                its_own = found.seats.get(older.entry_id)
                uncertain = its_own is not None and its_own.seat_number not in certain
                assert not (older.claiming or uncertain) or not older.can_get(seat)


@given(st.sampled_from(["ADULT", "CHILD", "INFANT"]), st.frozensets(st.sampled_from(["INFT", "WCHR", "VGML"])), seats)
def test_no_entry_is_matched_with_a_forbidden_seat(
    kind: str, special_services: frozenset[str], freed: list[FreedSeat]
) -> None:
    freed = [
        replace(seat, exit_row=seat.ordinal % 2 == 0, infant_allowed=seat.ordinal % 3 != 0, cabin="ECONOMY")
        for seat in freed
    ]
    entry = Wishes(UUID(int=1), "ECONOMY", [], [], type=kind, special_services=special_services)
    for seat in match([entry], freed, certain=NUMBERS).seats.values():
        assert not seat.exit_row or (kind == "ADULT" and not special_services & {"INFT", "WCHR"})
        assert seat.infant_allowed or (kind != "INFANT" and "INFT" not in special_services)


def test_preferences_are_ranked_in_the_given_order() -> None:
    freed = [FreedSeat("20A", 0, "ECONOMY", "WINDOW"), FreedSeat("20C", 2, "ECONOMY", "AISLE")]
    aisle_first = Wishes(UUID(int=1), "ECONOMY", ["AISLE", "WINDOW"], [])
    assert match([aisle_first], freed, certain=NUMBERS).seats[UUID(int=1)].seat_number == "20C"
    exact = Wishes(UUID(int=2), "ECONOMY", [], ["20C", "20A"])
    assert match([exact], freed, certain=NUMBERS).seats[UUID(int=2)].seat_number == "20C"
