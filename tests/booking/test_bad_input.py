"""Bad input is refused with the field's name, and changes nothing.

The rule is docs/rules.md section 12.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from uuid import uuid4

import grpc
import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb

from tests.booking.agency import Agency, Customer, people
from tests.callers import Caller, refused
from tests.dates import flight_id

FLIGHT: Final = flight_id("SH101")
ITINERARY: Final = f"CF_LHR_ATH_{FLIGHT}_{flight_id('SH202')}"
UUID: Final = str(uuid4())

# Malformed values by kind of field.
BAD: Final[dict[str, list[Any]]] = {
    "flight_id": [
        "SH",
        "S" * 41,
        "S" * 10_240,
        "SH101 2026",
        "SH101/2026",
        "SH101\n",
        "SH101\x00",
        "ＳＨ１０１",  # noqa: RUF001
        "SН101-2026",  # a Cyrillic letter  # noqa: RUF001
        "SH101\u202e2026",
        "'; DROP TABLE bookings; --",
    ],
    "itinerary_id": [
        "CF",
        "CF_LHR_ATH",
        f"CF_lhr_ATH_{FLIGHT}",
        f"XX_LHR_ATH_{FLIGHT}",
        f"CF_LHR_ATH_{FLIGHT}_",
        f"CF_LHR_ATH_{FLIGHT}\n",
        "CF_LHR_ATH_SH101\x00",
        f"CF_LHR_ATH{f'_{FLIGHT}' * 5}",
        f"CF_LHR_ATH_{'S' * 41}",
        "CF_" * 3_500,
    ],
    "seat_number": [
        "",
        "0A",
        "012A",
        "12",
        "A12",
        "12I",
        "12a",
        "1234A",
        "12A\n",
        "12\x00A",
        "12А",  # Cyrillic  # noqa: RUF001
        "１２A",  # noqa: RUF001
        "12A" * 3_500,
    ],
    "passenger_id": ["", "P 1", "P/1", "P\x00", "P\n", "Pé", "P" * 65, "P" * 10_240, "P1;--"],
    "given_name": [
        "",
        " ",
        "-",
        "A\x00da",
        "Ada\n",
        "A\u202eda",
        "A\u200bda",
        "Ada2",
        "Ada@",
        "<b>Ada</b>",
        "A" * 61,
        "A" * 10_240,
        "\u0308",
    ],
    "last_name": ["", "\x00", "Love\tlace", "Love\x1b[31mlace", "Robert'); DROP TABLE bookings;--", "A" * 10_240],
    "contact_email": [
        "ada",
        "ada@",
        "@example.org",
        "ada example.org",
        "ada@exa mple.org",
        "ada@example.org\n",
        "ada@example.org\x00",
        "ada@example.org, eve@example.org",
        "Ada <ada@example.org>",
        f"{'a' * 250}@example.org",
        f"{'a' * 10_240}@example.org",
    ],
    "booking_id": ["", "1", "no-uuid", UUID[:-1], UUID + "0", UUID.replace("-", "_"), UUID + "\n", "0" * 10_240],
    "payment_code": ["", "0000", "000000", "0000a", "00000\x00", "0" * 10_240],
    "reason": ["\n", " X", "A\x00B", "A\x1b[31m", "A" * 121, "A" * 10_240, "Grund für", "<script>"],
    "request_id": ["1", "no-uuid", "0" * 10_240, UUID + "\x00"],
    "type": [-1, 4, 2_147_483_647],
    "cabin": [-1, 5, 2_147_483_647],
    "passenger_index": [-1, 9, 2_147_483_647, -2_147_483_648],
}
# A valid request of each method. The tests replace one field at a time with a malformed value.
GOOD: Final[dict[str, Any]] = {
    "CreateBooking": pb.CreateBookingRequest(
        flight_id=FLIGHT,
        passengers=people("ADULT", "CHILD"),
        seats=[pb.CreateBookingRequest.NamedSeat(flight_id=FLIGHT, seat_number="10A", passenger_index=1)],
        contact_email="ada@example.org",
        cabin=pb.ECONOMY,
        request_id=UUID,
    ),
    "GetBooking": pb.GetBookingRequest(booking_id=UUID),
    "WatchBooking": pb.WatchBookingRequest(booking_id=UUID),
    "ChangeBookingSeats": pb.ChangeBookingSeatsRequest(
        booking_id=UUID,
        seats=[pb.BookedSeat(flight_id=FLIGHT, seat_number="10A", passenger_id="P1")],
        request_id=UUID,
    ),
    "PayBooking": pb.PayBookingRequest(booking_id=UUID, payment_code="00000", request_id=UUID),
    "CancelBooking": pb.CancelBookingRequest(booking_id=UUID, reason="R", request_id=UUID),
}
ITINERARY_REQUEST: Final = pb.CreateBookingRequest(itinerary_id=ITINERARY, passengers=people("ADULT"))


def spoilt(request: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields requests with one malformed field each, also in repeated fields.

    Each item is the path of the field, the request and the malformed value.
    """
    for field in request.DESCRIPTOR.fields:
        if field.message_type is not None:
            for index, part in enumerate(getattr(request, field.name)):
                for inner, wrong, value in spoilt(part, f"{field.name}[{index}]."):
                    whole = type(request)()
                    whole.CopyFrom(request)
                    getattr(whole, field.name)[index].CopyFrom(wrong)
                    yield inner, whole, value
        elif getattr(request, field.name) or field.name == "type":
            for value in BAD[field.name]:
                wrong = type(request)()
                wrong.CopyFrom(request)
                setattr(wrong, field.name, value)
                yield f"{path}{field.name}", wrong, value


SPOILT: Final = [
    (method, field, request)
    for method, good in [*GOOD.items(), ("CreateBooking", ITINERARY_REQUEST)]
    for field, request, _ in spoilt(good)
]


async def ask(caller: Caller, method: str, request: Any) -> None:
    """Calls the method; reads the first message of a stream."""
    answer = getattr(caller, method)(request)
    await (answer.read() if method == "WatchBooking" else answer)


def test_every_request_field_is_tested() -> None:
    assert {field.split(".")[-1] for _, field, _ in SPOILT} == BAD.keys()


@pytest.mark.parametrize("method", GOOD)
async def test_a_wrong_field_is_named_and_nothing_is_written(agency: Agency, customer: Customer, method: str) -> None:
    before = await agency.written()
    for spoilt_method, field, request in SPOILT:
        if spoilt_method == method:
            with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
                await ask(customer.desk, method, request)
            assert field in refusal.fields, (field, refusal.fields)
    assert await agency.written() == before


@pytest.mark.parametrize("size", [0, 10, 100])
async def test_a_party_has_one_to_nine_passengers(agency: Agency, customer: Customer, size: int) -> None:
    before = await agency.written()
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await customer.desk.CreateBooking(pb.CreateBookingRequest(flight_id=FLIGHT, passengers=people("ADULT") * size))
    assert refusal.fields == ["passengers"]
    assert await agency.written() == before


@pytest.mark.parametrize(("flight_id", "itinerary_id"), [("", ""), (FLIGHT, ITINERARY)])
async def test_either_flight_id_or_itinerary_id_is_required(
    customer: Customer, flight_id: str, itinerary_id: str
) -> None:
    request = pb.CreateBookingRequest(flight_id=flight_id, itinerary_id=itinerary_id, passengers=people("ADULT"))
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await customer.desk.CreateBooking(request)
    assert refusal.fields == ["flight_id"]


async def test_at_most_36_seats_can_be_named(customer: Customer) -> None:
    letters = [f"{row}{letter}" for row in range(1, 10) for letter in "ABCDE"]
    seats = [
        pb.CreateBookingRequest.NamedSeat(flight_id=f"SH{n}", seat_number=number)
        for n, number in enumerate(letters[:37], start=100)
    ]
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await customer.desk.CreateBooking(
            pb.CreateBookingRequest(flight_id=FLIGHT, passengers=people("ADULT"), seats=seats)
        )
    assert refusal.fields == ["seats"]


@pytest.mark.parametrize("body", [b"\x0a\x05SH1\xff1", b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 50, b"\x1a" * 1_001])
async def test_bytes_that_are_not_a_request_are_refused(agency: Agency, customer: Customer, body: bytes) -> None:
    before = await agency.written()
    async with grpc.aio.insecure_channel(agency.bookings.address) as channel:
        call: Any = channel.unary_unary("/skyhigh.booking.v1.BookingService/CreateBooking")
        with refused("INVALID_ARGUMENT", "INVALID_FIELD"):
            await call(body, metadata=(("authorization", f"Bearer {customer.desk.token}"),), timeout=20)
    assert await agency.written() == before
