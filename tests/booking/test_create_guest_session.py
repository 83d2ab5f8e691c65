"""CreateGuestSession: a customer without an account."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any, Final

from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.flight.v1 import flight_service_pb2 as flight_pb
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from tests.booking.agency import Agency, Customer, state_of
from tests.callers import refused

DAY_SECONDS: Final = 86_400


async def session(agency: Agency) -> pb.GuestSession:
    """Returns a new guest session."""
    opened: pb.GuestSession = await agency.bookings.anybody("").CreateGuestSession(pb.CreateGuestSessionRequest())
    return opened


def claims(token: str) -> dict[str, Any]:
    """Returns the claims of a token."""
    body = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))))


async def test_a_guest_can_book_and_read_the_booking(agency: Agency) -> None:
    opened = await session(agency)
    booked = await Customer(agency, agency.bookings.anybody(opened.token)).book(await agency.flight())
    later = Customer(agency, agency.bookings.anybody(opened.token))
    assert state_of(await later.get(booked)) == "SEATS_RESERVED"
    assert (await agency.row(booked))["owner"] == f"customer:{opened.customer_id}"


async def test_a_session_lasts_a_day(agency: Agency) -> None:
    before = int(time.time())
    opened = await session(agency)
    end = opened.expire_time.ToNanoseconds() / 1e9
    assert before + DAY_SECONDS <= end <= time.time() + DAY_SECONDS
    assert int(end) == claims(opened.token)["exp"]


async def test_a_guest_has_only_the_customer_role(agency: Agency) -> None:
    opened = await session(agency)
    told = claims(opened.token)
    assert (told["role"], told["sub"]) == ("customer", opened.customer_id)
    assert told.keys() == {"iss", "aud", "sub", "role", "iat", "exp"}
    with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
        await agency.flights.anybody(opened.token).CancelFlight(flight_pb.CancelFlightRequest(flight_id="SH101"))


async def test_each_session_is_another_customer(agency: Agency) -> None:
    opened = await asyncio.gather(*(session(agency) for _ in range(50)))
    assert len({each.customer_id for each in opened}) == 50
    one, other = (Customer(agency, agency.bookings.anybody(each.token)) for each in opened[:2])
    booked = await one.book(await agency.flight())
    with refused("NOT_FOUND", "BOOKING_NOT_FOUND"):
        await other.get(booked)


async def test_any_token_is_ignored_for_a_new_session(agency: Agency, customer: Customer) -> None:
    for caller in (customer.desk, agency.bookings.agent(), agency.bookings.anybody("nonsense")):
        opened = await caller.CreateGuestSession(pb.CreateGuestSessionRequest())
        assert claims(opened.token)["role"] == "customer"
        assert f"customer:{opened.customer_id}" != customer.name


async def test_only_the_booking_service_changes_a_guests_hold(agency: Agency) -> None:
    """The guest can read the hold, but only the booking service changes it."""
    token = (await session(agency)).token
    booked = await Customer(agency, agency.bookings.anybody(token)).book(await agency.flight())
    seats = agency.seats.anybody(token)
    assert (await seats.GetHold(seat_pb.GetHoldRequest(hold_id=booked.hold_id))).state == seat_pb.Hold.HELD
    with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
        await seats.ConfirmHold(seat_pb.ConfirmHoldRequest(hold_id=booked.hold_id))
    for refusal in (
        seats.ExtendHold(seat_pb.ExtendHoldRequest(hold_id=booked.hold_id)),
        seats.CancelHold(seat_pb.CancelHoldRequest(hold_id=booked.hold_id)),
    ):
        with refused("FAILED_PRECONDITION", "HOLD_MANAGED"):
            await refusal
    assert await agency.hold_state(booked.hold_id) == "HELD"
