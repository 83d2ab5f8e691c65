"""A field has one rule: the same in every contract, in SQL and in the commands."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.type.money_pb2 import Money
from skyhigh.booking.v1 import booking_service_pb2 as booking
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin
from skyhigh.flight.v1 import flight_service_pb2 as flight
from skyhigh.gateway.v1 import gateway_admin_pb2 as gateway
from skyhigh.payment.v1 import payment_service_pb2 as payment
from skyhigh.seat.v1 import seat_service_pb2 as seat
from skyhigh.waitlist.v1 import waitlist_service_pb2 as waitlist
from skyhigh.weight.v1 import weight_service_pb2 as weight

from checkin_service.boarding import bcbp
from checkin_service.check_ins.fares import load_fares
from flight_service.aircraft import AIRCRAFT, fares
from flight_service.itineraries import MOST_FLIGHTS
from seat_service.layouts import cabin_layouts
from services.proto import pattern_of
from services.validation import violations_of
from tests.instances import connected

if TYPE_CHECKING:
    from tests.conftest import World

CONTRACTS: Final[tuple[FileDescriptor, ...]] = tuple(
    module.DESCRIPTOR for module in (seat, checkin, waitlist, payment, flight, booking, gateway, weight)
)
# Fields with another name for the same thing.
SAME_AS: Final = {
    "flight_ids": "flight_id",
    "passenger_ids": "passenger_id",
    "accompanying_passenger_id": "passenger_id",
    "seat_numbers": "seat_number",
    "excluded_seats": "seat_number",
    "destination": "origin",
    "departure_date": "date",
    "given_name": "last_name",
    **dict.fromkeys(
        ("hold_id", "checkin_id", "booking_id", "entry_id", "intent_id", "block_id"),
        "request_id",
    ),
}
# Fields with the same name for another thing.
OTHER_THINGS: Final = {
    # The PNR as a passenger types it: in any case, with spaces around it (tests/checkin/test_create_session.py).
    "skyhigh.checkin.v1.CreateSessionRequest.pnr",
    # A sentence for the audit log, not a code for a ledger.
    "skyhigh.gateway.v1.LiftBlockRequest.reason",
    # A caller, such as `customer:4711`, not an airport.
    "skyhigh.gateway.v1.ListIncidentsRequest.source",
    "skyhigh.gateway.v1.ListBlocksRequest.source",
    # A reference of another company's scales.
    "skyhigh.weight.v1.WeighBagsRequest.reference",
}


def messages(contract: FileDescriptor) -> Iterator[Descriptor]:
    """Yields every message of a contract, including nested ones."""
    waiting = list(contract.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        yield message
        waiting += message.nested_types


def fields() -> Iterator[FieldDescriptor]:
    """Yields every field of every contract."""
    for contract in CONTRACTS:
        for message in messages(contract):
            yield from message.fields


def rule_of(field: FieldDescriptor) -> bytes:
    """Returns the rule for a value of the field, regardless of whether the field is required.

    Empty for a field without a rule.
    """
    rules = field.GetOptions().Extensions[validate_pb2.field]
    rule = validate_pb2.FieldRules()
    rule.CopyFrom(rules.repeated.items if field.is_repeated else rules)
    rule.ClearField("ignore")
    rule.ClearField("required")
    return rule.SerializeToString(deterministic=True)


def test_texts_of_one_name_have_the_same_rule() -> None:
    rules: dict[str, dict[bytes, list[str]]] = defaultdict(lambda: defaultdict(list))
    for field in fields():
        rule = rule_of(field)
        if field.type == FieldDescriptor.TYPE_STRING and rule and field.full_name not in OTHER_THINGS:
            rules[SAME_AS.get(field.name, field.name)][rule].append(field.full_name)
    assert {name: list(found.values()) for name, found in rules.items() if len(found) > 1} == {}
    assert len(rules["flight_id"]) == len(rules["seat_number"]) == 1


def test_every_listed_exception_still_exists() -> None:
    known = {field.full_name: field for field in fields()}
    assert known.keys() >= OTHER_THINGS
    names = {field.name for field in fields()}
    assert SAME_AS.keys() <= names


def pattern(message: Descriptor, name: str) -> str:
    """Returns the contract's regular expression for a field, without its anchors."""
    found = pattern_of(message.fields_by_name[name])
    assert found.startswith("^")
    assert found.endswith("$")
    return found[1:-1]


FLIGHT_ID: Final = pattern(seat.SeatAssignment.DESCRIPTOR, "flight_id")
SEAT_NUMBER: Final = pattern(seat.SeatAssignment.DESCRIPTOR, "seat_number")
AIRPORT: Final = pattern(flight.SearchFlightsRequest.DESCRIPTOR, "source")


def test_an_itinerary_id_consists_of_airports_and_flight_ids() -> None:
    expected = f"CF_{AIRPORT}_{AIRPORT}(_{FLIGHT_ID}){{1,{MOST_FLIGHTS}}}"
    assert pattern(flight.GetItineraryRequest.DESCRIPTOR, "itinerary_id") == expected
    assert pattern(booking.CreateBookingRequest.DESCRIPTOR, "itinerary_id") == expected


def test_boarding_pass_patterns_equal_the_contracts() -> None:
    flight_number = pattern(flight.CreateFlightRequest.DESCRIPTOR, "flight_number")
    assert re.sub("[()]", "", bcbp._SEAT.pattern) == SEAT_NUMBER
    assert re.sub("[()]", "", bcbp._FLIGHT_NUMBER.pattern) == flight_number


def test_layout_ids_and_seats_match_the_contract() -> None:
    assert cabin_layouts._LAYOUT_ID.pattern == pattern(seat.ProvisionSeatsRequest.DESCRIPTOR, "layout_id")
    for layout in cabin_layouts.load_layouts().values():
        assert all(re.fullmatch(SEAT_NUMBER, number) for number in layout.by_number)


# The rules of SQL columns, by the column's name.
COLUMNS: Final = {
    "reserved_pnr": pattern(checkin.ManifestPassenger.DESCRIPTOR, "pnr"),
    "pnr": pattern(checkin.ManifestPassenger.DESCRIPTOR, "pnr"),
    "flight_id": FLIGHT_ID,
    "flight_number": pattern(flight.CreateFlightRequest.DESCRIPTOR, "flight_number"),
    "origin": AIRPORT,
    "destination": AIRPORT,
    "payment_code": pattern(booking.PayBookingRequest.DESCRIPTOR, "payment_code"),
    "limit_id": pattern(gateway.SetLimitRequest.DESCRIPTOR, "limit_id"),
}
# Columns that no caller writes: digests and keys of our own, and a currency, whose list is in `services/money.py`.
OUR_OWN: Final = {"booking", "digest", "edition", "currency"}


@pytest.mark.parametrize("service", ["seat", "checkin", "waitlist", "payment", "flight", "booking", "gateway"])
async def test_a_sql_check_equals_the_contracts_rule(world: World, service: str) -> None:
    async with connected(world.servers.database_url(service)) as database:
        rows = await database.fetch(
            """
            SELECT pg_get_constraintdef(oid) AS rule FROM pg_constraint
            WHERE contype = 'c' AND connamespace = $1::regnamespace
            """,
            service,
        )
    written = re.compile(r"CHECK \(\((\w+) ~ '\^(.+)\$'::text\)\)")
    checks = [found.groups() for row in rows if (found := written.fullmatch(row["rule"]))]
    assert checks, "the checks are written otherwise now"
    for column, rule in checks:
        assert column in COLUMNS.keys() | OUR_OWN, f"{service}: say which field of the contract {column} is"
        assert rule == COLUMNS.get(column, rule), f"{service}.{column}"


def test_the_largest_booking_fits_into_a_payment() -> None:
    """A payment accepts the total of the most expensive booking.

    It has nine passengers on the longest itinerary, in the dearest cabin, at the highest fare of CreateFlight.
    """
    highest = max(
        units
        for units in range(0, 100_001, 10_000)
        if not any(
            each.field == "price"
            for each in violations_of(flight.CreateFlightRequest(price=Money(currency_code="USD", units=units)))
        )
    )
    cents = max(max(fares(name, highest * 100).values()) for name in AIRCRAFT) * 9 * MOST_FLIGHTS
    assert highest == 20_000
    total = Money(currency_code="USD", units=int(Decimal(cents) / 100))
    request = payment.CreatePaymentIntentRequest(reference="booking/1", amount=total, owner="customer:demo")
    assert violations_of(request) == []


def test_the_weight_service_accepts_all_declarable_bags() -> None:
    declared = checkin.DeclareBaggageRequest.DESCRIPTOR.fields_by_name["bags"]
    weighed = weight.WeighBagsRequest.DESCRIPTOR.fields_by_name["declared_grams"]
    limits = [field.GetOptions().Extensions[validate_pb2.field].repeated for field in (declared, weighed)]
    grams = checkin.CheckIn.Bag.DESCRIPTOR.fields_by_name["weight_grams"].GetOptions().Extensions[validate_pb2.field]
    assert {limit.max_items for limit in limits} == {each.most_pieces for each in load_fares().values()}
    assert (limits[1].items.int32.gte, limits[1].items.int32.lte) == (grams.int32.gte, grams.int32.lte)
    assert all(each.piece_limit_grams <= grams.int32.lte for each in load_fares().values())
