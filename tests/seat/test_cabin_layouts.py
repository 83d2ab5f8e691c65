"""Cabin layouts as data (SEAT-1): the six aircraft, and errors in a layout file."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from skyhigh.seat.v1.seat_service_pb2 import Seat, SeatMap

from seat_service.layouts import cabin_layouts
from seat_service.layouts.cabin_layouts import Layout, LayoutError, LayoutSeat, load_layouts, parse_layout

Facility = SeatMap.Cabin.Facility

SEATS_BY_CABIN = {
    "A320-180Y": {Seat.ECONOMY: 180},
    "B738-189Y": {Seat.ECONOMY: 189},
    "A321-16C": {Seat.BUSINESS: 16, Seat.ECONOMY: 170},
    "E190-100Y": {Seat.ECONOMY: 100},
    "AT72-70Y": {Seat.ECONOMY: 70},
    "B789-3C": {Seat.BUSINESS: 32, Seat.PREMIUM_ECONOMY: 35, Seat.ECONOMY: 219},
}


@pytest.fixture(params=sorted(SEATS_BY_CABIN))
def layout(request: pytest.FixtureRequest) -> Layout:
    return load_layouts()[request.param]


def small(**changes: Any) -> dict[str, Any]:
    """Returns a correct layout of eleven seats, with changes to its only cabin."""
    cabin = {"cabin": "ECONOMY", "rows": "1-2", "letters": "ABC DEF", "missing": "1A"} | changes
    return {"layout_id": "TEST-11Y", "aircraft": "Test", "total_seats": 11, "cabins": [cabin]}


def read(data: dict[str, Any]) -> Layout:
    return parse_layout(json.dumps(data))


def rows_with(layout: Layout, code: str) -> set[int]:
    return {seat.row for seat in layout.seats if code in seat.characteristics}


def test_six_layouts_are_known_and_read_once() -> None:
    """SEAT-1."""
    assert set(load_layouts()) == set(SEATS_BY_CABIN)
    assert load_layouts() is load_layouts()


def test_each_cabin_has_its_seats(layout: Layout) -> None:
    """SEAT-1."""
    assert Counter(seat.cabin for seat in layout.seats) == SEATS_BY_CABIN[layout.layout_id]


def test_seat_ordinals_follow_rows_without_gap_or_repeat(layout: Layout) -> None:
    assert [seat.ordinal for seat in layout.seats] == list(range(len(layout.seats)))
    assert [(seat.row, seat.letter) for seat in layout.seats] == sorted(
        (seat.row, seat.letter) for seat in layout.seats
    )
    assert len(layout.by_number) == len(layout.seats)
    for seat in layout.seats:
        assert seat.seat_number == f"{seat.row}{seat.letter}"
        assert layout.by_number[seat.seat_number] is seat
        assert re.fullmatch(r"[1-9][0-9]{0,2}[A-HJ-NP-Z]", seat.seat_number)


def test_position_codes_agree_with_the_position_of_each_seat(layout: Layout) -> None:
    codes = {Seat.WINDOW: "W", Seat.MIDDLE: "9", Seat.AISLE: "A"}
    for seat in layout.seats:
        assert codes[seat.position] in seat.characteristics
        if seat.position == Seat.MIDDLE:
            assert not {"W", "A"} & set(seat.characteristics)


def test_exit_rows_are_marked_and_take_no_infants() -> None:
    """SEAT-1, SEAT-11."""
    exit_rows = {name: rows_with(layout, "E") for name, layout in load_layouts().items()}
    assert exit_rows == {
        "A320-180Y": {12, 13},
        "B738-189Y": {16, 17},
        "A321-16C": {11, 25},
        "E190-100Y": {12},
        "AT72-70Y": {1},
        "B789-3C": {32},
    }
    for layout in load_layouts().values():
        for seat in layout.seats:
            assert seat.exit_row == (seat.row in exit_rows[layout.layout_id])
            assert not (seat.exit_row and seat.infant_allowed)


def test_rows_beside_exit_rows_accept_no_infants_either() -> None:
    """SEAT-11."""
    refused = {seat.row for seat in load_layouts()["A320-180Y"].seats if not seat.infant_allowed}
    assert refused == {11, 12, 13, 14}


def test_an_exit_row_has_an_exit_beside_it(layout: Layout) -> None:
    exits = {
        row
        for cabin in layout.cabins
        for facility in cabin.facilities
        if facility.kind == Facility.EXIT
        for row in range(facility.first_row, facility.last_row + 1)
    }
    assert rows_with(layout, "E") <= exits


def test_wing_and_bassinet_codes_agree_with_the_facilities(layout: Layout) -> None:
    for code, kind in (("OW", Facility.WING), ("B", Facility.BASSINET)):
        beside = {
            row
            for cabin in layout.cabins
            for facility in cabin.facilities
            if facility.kind == kind
            for row in range(facility.first_row, facility.last_row + 1)
            if row in cabin.rows
        }
        assert rows_with(layout, code) in (beside, set())


def test_row_13_is_skipped_by_some_layouts() -> None:
    """SEAT-1."""
    with_13 = {name for name, layout in load_layouts().items() if any(13 in cabin.rows for cabin in layout.cabins)}
    assert with_13 == {"A320-180Y"}


def test_letters_skip_i_and_o_and_may_have_gaps() -> None:
    """SEAT-1."""
    assert {seat.letter for seat in load_layouts()["B789-3C"].seats} == set("ABCDEFGHJK")
    assert {seat.letter for seat in load_layouts()["E190-100Y"].seats} == set("ACDF")


def test_window_seats_are_missing_where_a_door_stands() -> None:
    """SEAT-1."""
    layout = load_layouts()["A321-16C"]
    assert [seat.seat_number for seat in layout.seats if seat.row == 11] == ["11B", "11C", "11D", "11E"]
    assert "4" in layout.by_number["11B"].characteristics
    assert layout.by_number["11B"].position == Seat.MIDDLE


def test_one_side_of_a_row_may_have_no_seats() -> None:
    assert [seat.letter for seat in load_layouts()["B738-189Y"].seats if seat.row == 1] == ["A", "B", "C"]
    assert [seat.letter for seat in load_layouts()["AT72-70Y"].seats if seat.row == 19] == ["C", "D"]


def test_a_one_seat_block_is_window_and_aisle() -> None:
    suite = load_layouts()["B789-3C"].by_number["1A"]
    assert suite.position == Seat.WINDOW
    assert {"W", "A"} <= set(suite.characteristics)


def test_a_class_may_change_its_letters_towards_the_tail() -> None:
    layout = load_layouts()["B789-3C"]
    assert ["".join(cabin.letters) for cabin in layout.cabins] == ["ADGK", "ACDEFHK", "ABCDEFHJK", "ACDEFHK"]
    assert layout.cabins[2].cabin == layout.cabins[3].cabin == Seat.ECONOMY


def test_the_map_shows_rows_letters_aisles_and_facilities() -> None:
    """SEAT-1, SEAT-12."""
    (cabin,) = load_layouts()["B738-189Y"].cabins_message()
    assert cabin.cabin == Seat.ECONOMY
    assert list(cabin.rows) == [*range(1, 13), *range(14, 34)]
    assert list(cabin.letters) == list("ABCDEF")
    assert list(cabin.aisles) == ["C"]
    assert Facility(kind=Facility.EXIT, first_row=16, last_row=17) in cabin.facilities
    assert Facility(kind=Facility.WING, first_row=11, last_row=22) in cabin.facilities
    kinds = Counter(facility.kind for facility in cabin.facilities)
    assert kinds[Facility.LAVATORY] == 3
    assert [list(each.aisles) for each in load_layouts()["B789-3C"].cabins_message()][:3] == [
        ["A", "G"],
        ["C", "F"],
        ["C", "F"],
    ]


def as_message(seat: LayoutSeat) -> Seat:
    return Seat(
        seat_number=seat.seat_number, cabin=seat.cabin, position=seat.position, characteristics=seat.characteristics
    )


def test_characteristics_survive_the_round_trip_through_message_and_json(layout: Layout) -> None:
    """SEAT-1."""
    for seat in layout.seats:
        sent = Seat.FromString(as_message(seat).SerializeToString())
        assert tuple(json_format.Parse(json_format.MessageToJson(sent), Seat()).characteristics) == seat.characteristics


def test_vendor_codes_are_kept_beside_standard_codes() -> None:
    """SEAT-1."""
    assert "1A_AQC_PREMIUM_SEAT" in load_layouts()["A320-180Y"].by_number["1A"].characteristics
    assert "1A_AQC_PREMIUM_SEAT" not in load_layouts()["A320-180Y"].by_number["20A"].characteristics


@given(
    codes=st.sets(st.from_regex(r"[!-~]{1,64}", fullmatch=True).filter(lambda code: code not in {"W", "A", "9", "E"}))
)
def test_unknown_codes_are_kept_as_a_set(codes: set[str]) -> None:
    """SEAT-1."""
    layout = read(small(characteristics=dict.fromkeys(codes, "2B")))
    assert layout.by_number["2B"].characteristics == tuple(sorted(codes | {"9"}))
    assert layout.by_number["2C"].characteristics == ("A",)


def test_a_selector_names_rows_runs_letters_and_single_seats() -> None:
    layout = read(small(characteristics={"L": "1", "OW": "1-2AF", "2": "CD", "B": "2E 1E"}))
    having = {
        code: {seat.seat_number for seat in layout.seats if code in seat.characteristics}
        for code in ("L", "OW", "2", "B")
    }
    assert having == {
        "L": {"1B", "1C", "1D", "1E", "1F"},
        "OW": {"2A", "1F", "2F"},
        "2": {"1C", "1D", "2C", "2D"},
        "B": {"1E", "2E"},
    }


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cabin": "STEERAGE"}, "cabin 'STEERAGE' is unknown"),
        ({"cabin": "CABIN_UNSPECIFIED"}, "cabin 'CABIN_UNSPECIFIED' is unknown"),
        ({"cabin": 4}, "cabin must be a string"),
        ({"rows": ""}, "names no row"),
        ({"rows": "0-2"}, "'0-2' is no run of rows"),
        ({"rows": "1-1000"}, "'1-1000' is no run of rows"),
        ({"rows": "2-1"}, "ends before it begins"),
        ({"rows": "1-2 2"}, "row 2 does not come after row 2"),
        ({"letters": "ABC DEI"}, "letters but I and O"),
        ({"letters": "ABC  DEF"}, "one blank for an aisle"),
        ({"letters": "abc"}, "letters but I and O"),
        ({"letters": "ABC DEA"}, "no letter twice"),
        ({"letters": "ACB DEF"}, "must ascend"),
        ({"missing": "3A"}, "names row 3, which the cabin lacks"),
        ({"missing": "1G"}, "names letter G, which the cabin lacks"),
        ({"missing": "1A 1"}, "row 1 has no seat"),
        ({"missing": "A1"}, "'A1' is no selector"),
        ({"characteristics": {"L": "1A"}}, "'1A' names no seat"),
        ({"characteristics": {"W": "1B"}}, "W is computed"),
        ({"characteristics": {"no code": "1B"}}, "'no code' is no code"),
        ({"characteristics": {"E": "2"}}, "2A is in an exit row and lacks 1A"),
        ({"characteristics": {"L": 2}}, "must map names to strings"),
        ({"characteristics": ["L"]}, "must map names to strings"),
        ({"facilities": {"BAR": "1"}}, "kind 'BAR' is unknown"),
        ({"facilities": {"GALLEY": "7"}}, "names row 7, which the cabin lacks"),
        ({"seats": "1A"}, "'seats' is no key of a layout"),
    ],
)
def test_a_wrong_cabin_is_refused_with_its_place(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(LayoutError, match=re.escape(told)) as refusal:
        read(small(**changes))
    assert "TEST-11Y: cabins[0]" in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layout_id": "no/path"}, "layout_id 'no/path' is malformed"),
        ({"total_seats": 12}, "total_seats is 12, the cabins have 11"),
        ({"cabins": {}}, "cabins must be a list"),
        ({"cabins": small()["cabins"] * 2}, "cabins[1]: row 1 does not come after row 2"),
        ({"cabins": ["ECONOMY"]}, "cabins[0] must be an object"),
        ({"cabins": [{"cabin": "ECONOMY", "rows": "1"}]}, "'letters' is missing"),
    ],
)
def test_a_wrong_layout_is_refused_with_its_place(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(LayoutError, match=re.escape(told)):
        read(small() | changes)


@pytest.mark.parametrize(("text", "told"), [("{", "not JSON"), ("[]", "must be an object"), ('{"a":1,"a":2}', "twice")])
def test_a_text_that_is_no_layout_is_refused(text: str, told: str) -> None:
    with pytest.raises(LayoutError, match=told):
        parse_layout(text)


def test_a_file_is_named_after_its_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "layouts").mkdir()
    (tmp_path / "layouts" / "OTHER.json").write_text(json.dumps(small()))
    monkeypatch.setattr(cabin_layouts, "files", lambda package: tmp_path)
    with pytest.raises(LayoutError, match=r"OTHER\.json: holds layout TEST-11Y"):
        load_layouts.__wrapped__()
