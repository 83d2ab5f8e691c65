"""The best free seats for a party (SEAT-14), compared with a slow, plain version."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skyhigh.seat.v1.seat_service_pb2 import Seat, SuggestSeatsResponse

from seat_service.layouts.cabin_layouts import Layout, LayoutSeat, load_layouts, parse_layout
from seat_service.maps.suggestions import suggest

Suggestion = SuggestSeatsResponse.Suggestion

LAYOUTS = load_layouts()
A320, E190, ATR = LAYOUTS["A320-180Y"], LAYOUTS["E190-100Y"], LAYOUTS["AT72-70Y"]


@st.composite
def flights(draw: st.DrawFn) -> tuple[str, str]:
    """Draws a layout id and its seat states, from empty to nearly full."""
    layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    taken_percent = draw(st.sampled_from([0, 10, 40, 70, 90, 97]))
    random = draw(st.randoms(use_true_random=False))
    states = "".join(random.choice("HCOB") if random.randrange(100) < taken_percent else "A" for _ in layout.seats)
    return layout.layout_id, states


def with_free(layout: Layout, *free: str) -> str:
    """Returns states in which only these seats are free."""
    assert set(free) <= set(layout.by_number)
    return "".join("A" if seat.seat_number in free else "C" for seat in layout.seats)


def all_free(layout: Layout, *taken: str) -> str:
    return "".join("C" if seat.seat_number in taken else "A" for seat in layout.seats)


@cache
def blocks(layout: Layout) -> list[list[LayoutSeat]]:
    """Returns runs of adjacent seats, without an aisle or a gap between them."""
    result: list[list[LayoutSeat]] = []
    for cabin in layout.cabins:
        for row in cabin.rows:
            result.append([])
            for letter in cabin.letters:
                seat = layout.by_number.get(f"{row}{letter}")
                if seat:
                    result[-1].append(seat)
                if letter in cabin.aisles or not seat:
                    result.append([])
    return [block for block in result if block]


@cache
def beside(layout: Layout) -> set[frozenset[str]]:
    return {
        frozenset((left.seat_number, right.seat_number)) for block in blocks(layout) for left, right in pairwise(block)
    }


def windows(layout: Layout, free: Collection[str], size: int) -> list[set[str]]:
    """Returns all sets of `size` adjacent free seats."""
    return [
        numbers
        for block in blocks(layout)
        for start in range(len(block) - size + 1)
        if (numbers := {seat.seat_number for seat in block[start : start + size]}) <= set(free)
    ]


def single(layout: Layout, free: Collection[str]) -> set[str]:
    """Returns the free seats with no free seat beside them."""
    paired = set().union(*(pair for pair in beside(layout) if pair <= set(free)))
    return set(free) - paired


def orphans(layout: Layout, free: Collection[str], taken: Collection[str]) -> int:
    return len(single(layout, set(free) - set(taken)) - single(layout, free))


def free_numbers(layout: Layout, states: str) -> set[str]:
    return {seat.seat_number for seat in layout.seats if states[seat.ordinal] == "A"}


def numbers_of(suggestions: Sequence[Suggestion]) -> list[list[str]]:
    return [list(suggestion.seat_numbers) for suggestion in suggestions]


def position_wishes() -> st.SearchStrategy[list[Seat.Position.ValueType]]:
    return st.lists(st.sampled_from([Seat.WINDOW, Seat.MIDDLE, Seat.AISLE]), max_size=3, unique=True)


@given(flight=flights(), size=st.integers(1, 9), children=st.integers(0, 8), positions=position_wishes())
def test_suggestions_are_free_complete_ranked_and_in_one_cabin(
    flight: tuple[str, str], size: int, children: int, positions: list[Seat.Position.ValueType]
) -> None:
    """SEAT-14."""
    layout, states = LAYOUTS[flight[0]], flight[1]
    suggestions = suggest(layout, states, party_size=size, children=children, positions=positions)
    assert len(suggestions) <= 5
    assert len({frozenset(suggestion.seat_numbers) for suggestion in suggestions}) == len(suggestions)
    scores = [suggestion.score for suggestion in suggestions]
    assert scores == sorted(scores, reverse=True)
    for suggestion in suggestions:
        assert len(suggestion.seat_numbers) == len(set(suggestion.seat_numbers)) == size
        assert set(suggestion.seat_numbers) <= free_numbers(layout, states)
        assert len({layout.by_number[number].cabin for number in suggestion.seat_numbers}) == 1
        assert 1 <= suggestion.score <= 100
        assert suggestion.explanation


@given(flight=flights(), size=st.integers(1, 9), children=st.integers(0, 8))
def test_the_same_request_gets_the_same_suggestions(flight: tuple[str, str], size: int, children: int) -> None:
    """SEAT-14."""
    layout, states = LAYOUTS[flight[0]], flight[1]
    again = parse_layout_again(layout)
    assert suggest(layout, states, party_size=size, children=children) == suggest(
        again, states, party_size=size, children=children
    )


def parse_layout_again(layout: Layout) -> Layout:
    """Returns an equal layout that is in no cache."""
    return Layout(layout.layout_id, layout.aircraft, layout.cabins, layout.seats, layout.by_number, layout.digest)


@given(flight=flights(), size=st.integers(1, 4))
def test_a_party_gets_adjacent_seats_if_possible(flight: tuple[str, str], size: int) -> None:
    """SEAT-14: adjacent if possible."""
    layout, states = LAYOUTS[flight[0]], flight[1]
    possible = windows(layout, free_numbers(layout, states), size)
    suggestions = suggest(layout, states, party_size=size)
    assert [set(suggestion.seat_numbers) in possible for suggestion in suggestions] == [bool(possible)] * len(
        suggestions
    )
    assert all((suggestion.score > 60) is bool(possible) for suggestion in suggestions)
    assert len(suggestions) == 5 or len(possible) < 5


@given(flight=flights(), size=st.integers(1, 9))
def test_adults_get_seats_if_one_cabin_has_enough(flight: tuple[str, str], size: int) -> None:
    """SEAT-14."""
    layout, states = LAYOUTS[flight[0]], flight[1]
    free = [layout.by_number[number].cabin for number in free_numbers(layout, states)]
    assert bool(suggest(layout, states, party_size=size)) is any(free.count(cabin) >= size for cabin in set(free))


@given(flight=flights(), size=st.integers(1, 3))
def test_no_single_seat_is_left_over_if_avoidable(flight: tuple[str, str], size: int) -> None:
    """SEAT-14: no orphan left."""
    layout, states = LAYOUTS[flight[0]], flight[1]
    free = free_numbers(layout, states)
    possible = windows(layout, free, size)
    if possible:
        first = suggest(layout, states, party_size=size)[0]
        fewest = min(orphans(layout, free, window) for window in possible)
        assert (orphans(layout, free, first.seat_numbers) == 0) is (fewest == 0)


@given(flight=flights(), size=st.integers(1, 9), children=st.integers(0, 8))
def test_the_explanation_counts_single_seats_left_over(flight: tuple[str, str], size: int, children: int) -> None:
    """SEAT-14."""
    layout, states = LAYOUTS[flight[0]], flight[1]
    words = ["no single seat is", "one single seat is", "two single seats are", "three single seats are"]
    words += [f"{count} single seats are" for count in ("four", "five", "six", "seven", "eight", "nine")]
    for suggestion in suggest(layout, states, party_size=size, children=children):
        left = orphans(layout, free_numbers(layout, states), suggestion.seat_numbers)
        assert f"; {words[left]} left over" in suggestion.explanation


@given(flight=flights(), size=st.integers(1, 9), children=st.integers(1, 9))
def test_children_never_sit_in_an_exit_row(flight: tuple[str, str], size: int, children: int) -> None:
    """SEAT-14, SEAT-11."""
    layout, states = LAYOUTS[flight[0]], flight[1]
    for suggestion in suggest(layout, states, party_size=size, children=children):
        assert not any(layout.by_number[number].exit_row for number in suggestion.seat_numbers)


@settings(max_examples=200)
@given(flight=flights(), party=st.tuples(st.integers(1, 8), st.integers(1, 8)).filter(lambda party: sum(party) <= 9))
def test_children_sit_beside_an_adult_as_the_suggestion_says(flight: tuple[str, str], party: tuple[int, int]) -> None:
    """SEAT-14: each child is beside an adult, or the explanation counts the others.

    The adults' seats come first.
    """
    layout, states = LAYOUTS[flight[0]], flight[1]
    adults, children = party
    rows = {row: index for index, row in enumerate(row for cabin in layout.cabins for row in cabin.rows)}
    for suggestion in suggest(layout, states, party_size=adults + children, children=children):
        of_adults, of_children = suggestion.seat_numbers[:adults], suggestion.seat_numbers[adults:]
        far = [
            child
            for child in of_children
            if not any(frozenset((child, adult)) in beside(layout) for adult in of_adults)
        ]
        claims_all = "each child sits" in suggestion.explanation or "the child sits" in suggestion.explanation
        assert claims_all is (not far)
        assert all(number in suggestion.explanation for number in of_adults)
        for child in far:
            row = rows[layout.by_number[child].row]
            assert any(abs(rows[layout.by_number[adult].row] - row) <= 1 for adult in of_adults)


@given(flight=flights(), party=st.sampled_from([(1, 1), (2, 1), (1, 2)]))
def test_a_child_gets_a_seat_beside_an_adult(flight: tuple[str, str], party: tuple[int, int]) -> None:
    """SEAT-14."""
    layout, states = LAYOUTS[flight[0]], flight[1]
    adults, children = party
    free = {number for number in free_numbers(layout, states) if not layout.by_number[number].exit_row}
    if windows(layout, free, adults + children):
        suggestions = suggest(layout, states, party_size=adults + children, children=children)
        assert suggestions
        assert all(" beside an adult, with" in suggestion.explanation for suggestion in suggestions)


def test_a_child_is_never_apart_from_the_only_adult() -> None:
    """SEAT-14: two separate single seats do not suit a parent and a child."""
    states = with_free(A320, "3A", "9C", "20F")
    assert suggest(A320, states, party_size=2)
    assert suggest(A320, states, party_size=2, children=1) == []


def test_two_families_split_with_an_adult_each() -> None:
    """SEAT-14."""
    states = with_free(A320, "3A", "3B", "9C", "20E", "20F", "25A")
    (suggestion,) = suggest(A320, states, party_size=4, children=2)
    assert set(suggestion.seat_numbers) == {"3A", "3B", "20E", "20F"}
    assert suggestion.score <= 30
    assert "not together: 3A 3B and 20E 20F" in suggestion.explanation


def test_children_without_a_neighbouring_adult_stay_near() -> None:
    """SEAT-14: in a 2-2 cabin one child sits beside the parent, one across the aisle."""
    first = suggest(E190, all_free(E190), party_size=3, children=2)[0]
    assert list(first.seat_numbers) == ["2C", "2A", "2D"]
    assert "one of two children sits beside an adult, the other at most one row away" in first.explanation


def test_children_without_adults_avoid_exit_rows_only() -> None:
    states = with_free(A320, "12A", "12B", "20A", "20B")
    assert numbers_of(suggest(A320, states, party_size=2, children=2)) == [["20A", "20B"]]


def test_three_get_a_whole_row_with_a_window() -> None:
    """SEAT-14: the reason in words."""
    first = suggest(A320, with_free(A320, "14A", "14B", "14C"), party_size=3)[0]
    assert list(first.seat_numbers) == ["14A", "14B", "14C"]
    assert first.score == 100
    assert first.explanation == ("three seats side by side in row 14, a window among them; no single seat is left over")


def test_a_pair_fills_a_gap_of_two() -> None:
    """SEAT-14: no orphan left."""
    first = suggest(A320, all_free(A320, "20A"), party_size=2)[0]
    assert list(first.seat_numbers) == ["20B", "20C"]


def test_one_passenger_gets_the_preferred_position() -> None:
    """SEAT-14."""
    for wish in (Seat.WINDOW, Seat.MIDDLE, Seat.AISLE):
        for suggestion in suggest(A320, all_free(A320), party_size=1, positions=[wish]):
            assert A320.by_number[suggestion.seat_numbers[0]].position == wish


def test_an_unmet_preference_costs_points_and_is_explained() -> None:
    """SEAT-14."""
    states = with_free(A320, "20B", "20C")
    (one, _) = suggest(A320, states, party_size=1, positions=[Seat.WINDOW])
    assert "not the wished position" in one.explanation
    (two,) = suggest(A320, states, party_size=2, positions=[Seat.WINDOW, Seat.AISLE])
    (easy,) = suggest(A320, states, party_size=2, positions=[Seat.AISLE])
    assert "no window seat among them" in two.explanation
    assert two.score < easy.score


def test_a_windowless_seat_meets_no_window_preference() -> None:
    """SEAT-14: 11A of a 737-800 has no window."""
    layout = LAYOUTS["B738-189Y"]
    suggestions = suggest(layout, with_free(layout, "11A", "30A"), party_size=1, positions=[Seat.WINDOW])
    assert numbers_of(suggestions) == [["30A"], ["11A"]]
    assert suggestions[1].explanation.startswith("a windowless seat in row 11; not the wished position")


def test_a_one_seat_block_meets_window_and_aisle_preferences() -> None:
    layout = LAYOUTS["B789-3C"]
    first = suggest(
        layout, with_free(layout, "3A", "3D"), party_size=1, positions=[Seat.WINDOW, Seat.AISLE], cabin=Seat.BUSINESS
    )[0]
    assert first.explanation.startswith("a window and aisle seat in row 3")


@pytest.mark.parametrize("cabin", [Seat.BUSINESS, Seat.PREMIUM_ECONOMY, Seat.ECONOMY])
def test_a_requested_cabin_is_the_only_one_used(cabin: Seat.Cabin.ValueType) -> None:
    layout = LAYOUTS["B789-3C"]
    suggestions = suggest(layout, all_free(layout), party_size=2, cabin=cabin)
    assert len(suggestions) == 5
    for suggestion in suggestions:
        assert {layout.by_number[number].cabin for number in suggestion.seat_numbers} == {cabin}


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("layout_id", ["A321-16C", "B789-3C"])
def test_no_party_is_split_between_cabins(layout_id: str, size: int) -> None:
    """Rows 4 and 5 of the A321 are adjacent, but belong to different cabins."""
    layout = LAYOUTS[layout_id]
    borders = {
        row
        for ahead, behind in pairwise(layout.cabins)
        if ahead.cabin != behind.cabin
        for row in (*ahead.rows[-2:], *behind.rows[:2])
    }
    states = with_free(layout, *(seat.seat_number for seat in layout.seats if seat.row in borders))
    for suggestion in suggest(layout, states, party_size=size):
        assert len({layout.by_number[number].cabin for number in suggestion.seat_numbers}) == 1


def test_a_missing_cabin_gets_no_suggestion() -> None:
    assert suggest(A320, all_free(A320), party_size=1, cabin=Seat.FIRST) == []


def test_a_full_flight_gets_no_suggestion() -> None:
    """SEAT-14."""
    for state in "HCOB":
        assert suggest(A320, state * 180, party_size=1) == []


def test_four_get_a_row_across_the_aisle() -> None:
    """SEAT-14: across the aisle, with a lower score, if no row has adjacent seats."""
    first = suggest(E190, all_free(E190), party_size=4)[0]
    assert list(first.seat_numbers) == ["2A", "2C", "2D", "2F"]
    assert first.score <= 60
    assert first.explanation.startswith("four seats in row 2, across the aisle")


def test_a_big_party_fills_consecutive_rows() -> None:
    """SEAT-14."""
    first = suggest(ATR, all_free(ATR), party_size=9)[0]
    assert {ATR.by_number[number].row for number in first.seat_numbers} == {2, 3, 4}
    assert first.explanation.startswith("nine seats close together in rows 2, 3 and 4")


@pytest.mark.parametrize("size", [2, 4, 7])
def test_suggestions_share_no_seat_if_possible(size: int) -> None:
    """If another caller takes the seats of one suggestion, the others stay possible."""
    suggestions = numbers_of(suggest(A320, all_free(A320), party_size=size))
    assert len({number for numbers in suggestions for number in numbers}) == 5 * size


def test_no_seats_are_suggested_twice() -> None:
    """The algorithm can reach the same nine scattered seats in several ways."""
    free = ["1A", "1B", "4D", "7F", "9A", "9B", "9C", "20E", "22F"]
    assert [set(numbers) for numbers in numbers_of(suggest(A320, with_free(A320, *free), party_size=9))] == [set(free)]


def test_overlapping_suggestions_are_made_if_unavoidable() -> None:
    suggestions = numbers_of(suggest(A320, with_free(A320, "20A", "20B", "20C"), party_size=2))
    assert suggestions == [["20A", "20B"], ["20B", "20C"]]


def test_exit_rows_rank_after_equal_seats() -> None:
    """SEAT-11: an exit row is never the first choice: adults may be unfit to help."""
    first, second = suggest(A320, with_free(A320, "13A", "13B", "20A", "20B"), party_size=2)
    assert list(first.seat_numbers) == ["20A", "20B"]
    assert "in an exit row, only for adults able and willing to help" in second.explanation


def test_drawbacks_are_explained() -> None:
    (suggestion,) = suggest(A320, with_free(A320, "30A", "30B"), party_size=2)
    for words in ("near a toilet", "near a galley", "little or no recline"):
        assert words in suggestion.explanation


def test_a_missing_seat_separates_neighbours() -> None:
    """A seat that does not exist separates its neighbours."""
    layout = parse_layout(
        json.dumps(
            {
                "layout_id": "GAP-5Y",
                "aircraft": "Test",
                "total_seats": 5,
                "cabins": [{"cabin": "ECONOMY", "rows": "1-2", "letters": "ABC", "missing": "1B"}],
            }
        )
    )
    (suggestion,) = suggest(layout, with_free(layout, "1A", "1C"), party_size=2)
    assert suggestion.score <= 30
    assert suggestion.explanation.startswith("two seats, not together: 1A and 1C")


@pytest.mark.parametrize(
    ("states", "size", "children"), [("A", 1, 0), ("A" * 180, 0, 0), ("A" * 180, 10, 0), ("A" * 180, 1, -1)]
)
def test_invalid_arguments_are_refused(states: str, size: int, children: int) -> None:
    with pytest.raises(ValueError, match=r"states for the 180 seats|a party of"):
        suggest(A320, states, party_size=size, children=children)


def test_a_party_with_an_infant_gets_allowed_seats() -> None:
    exits = {seat.seat_number for seat in A320.seats if seat.exit_row}
    maskless = {seat.seat_number for seat in A320.seats if not seat.infant_allowed}
    forbidden = sorted(exits | maskless)
    assert forbidden
    assert suggest(A320, with_free(A320, *forbidden), party_size=1)
    assert suggest(A320, with_free(A320, *forbidden), party_size=1, infants=1) == []


def test_excluded_seats_are_not_suggested() -> None:
    states = with_free(A320, "14A", "14B", "20A", "20B")
    (_, _) = suggest(A320, states, party_size=2)
    (left,) = suggest(A320, states, party_size=2, excluded={"14A"})
    assert set(left.seat_numbers) == {"20A", "20B"}
