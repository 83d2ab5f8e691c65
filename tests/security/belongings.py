"""One owner with one resource of each kind, and a stranger.

The stranger is on the same flight and has an equally valid session.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from google.type import money_pb2
from skyhigh.booking.v1 import booking_service_pb2 as booking
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin
from skyhigh.flight.v1 import flight_service_pb2 as flight
from skyhigh.payment.v1 import payment_service_pb2 as payment
from skyhigh.waitlist.v1 import waitlist_service_pb2 as waitlist

from services.auth import Role
from tests.callers import Caller, seat
from tests.checkin.airport import facts, new_pnr
from tests.dates import new_flight_id
from tests.security.messages import valid
from tests.security.system import System

# The request fields that identify a resource with an owner.
KEYS: Final = ("hold_id", "checkin_id", "entry_id", "booking_id", "intent_id", "pnr", "passenger_id")
LAST_NAME: Final = "Lovelace"
# Seats of the AT72: the owner's are taken, the stranger's is free.
OWNERS_SEAT, CHECKED_IN_SEAT, CUSTOMERS_SEAT, WANTED_SEAT, STRANGERS_SEAT = "10A", "10C", "11A", "12A", "15A"


@dataclass(frozen=True)
class Belongings:
    """The owner's resources as requests name them, and the tokens of both; by role."""

    values: Mapping[Role, Mapping[str, str]]
    owner: Mapping[Role, str]
    stranger: Mapping[Role, str]
    strangers_own: Mapping[str, str]
    """The values that the stranger may use in requests."""


def missing(key: str) -> str:
    """Returns an id of the same format that does not exist."""
    named = {"pnr": new_pnr(), "passenger_id": "P0", "flight_id": new_flight_id()}
    return named.get(key) or str(uuid4())


async def acquire(system: System) -> Belongings:
    """Creates one resource of each kind, on two flights.

    The waitlist entry is for a seat of the second one.
    """
    flight_id, wanted_flight = await fly(system), await fly(system)
    pnr, strangers_pnr = new_pnr(), new_pnr()
    passengers = [("P1", pnr), ("P2", strangers_pnr), ("P3", pnr)]
    for each in (flight_id, wanted_flight):
        await (
            system.callers["checkin"]
            .operations()
            .ImportManifest(
                checkin.ImportManifestRequest(
                    flight_id=each,
                    flight=facts(),
                    passengers=[
                        checkin.ManifestPassenger(passenger_id=who, pnr=whose, given_name="Ada", last_name=LAST_NAME)
                        for who, whose in passengers
                    ],
                )
            )
        )

    def session(service: str, whose: str) -> Caller:
        named = [f"{who}:{each}" for who, owner in passengers if owner == whose for each in (flight_id, wanted_flight)]
        return system.callers[service].passenger(*named, pnr=whose)

    customer_id = secrets.token_hex(6)
    passenger, customer = session("seat", pnr), system.callers["seat"].customer(customer_id)
    held = await passenger.hold(flight_id, OWNERS_SEAT, "P1")
    to_check_in = await passenger.hold(flight_id, CHECKED_IN_SEAT, "P3")
    started = await session("checkin", pnr).StartCheckIn(
        checkin.StartCheckInRequest(flight_id=flight_id, passenger_id="P3", hold_id=to_check_in.hold_id)
    )
    agent = system.callers["seat"].agent()
    await agent.confirm(await agent.hold(wanted_flight, WANTED_SEAT, "P9"))
    entry = await session("waitlist", pnr).JoinWaitlist(
        waitlist.JoinWaitlistRequest(
            flight_id=wanted_flight,
            passenger_id="P1",
            preferences=waitlist.SeatPreferences(seat_numbers=[WANTED_SEAT]),
        )
    )
    customers_hold = await customer.hold_seats(seat(flight_id, CUSTOMERS_SEAT, "C1"), purpose="BOOKING")
    booked = (
        await system.callers["booking"]
        .customer(customer_id)
        .CreateBooking(valid(booking.CreateBookingRequest(), {"flight_id": flight_id}))
    )
    return Belongings(
        values={
            Role.PASSENGER: {
                "flight_id": flight_id,
                "passenger_id": "P1",
                "pnr": pnr,
                "hold_id": held.hold_id,
                "checkin_id": started.checkin_id,
                "entry_id": entry.entry_id,
                "intent_id": await _intent(system, passenger.name),
            },
            Role.CUSTOMER: {
                "flight_id": flight_id,
                "passenger_id": "C1",
                "hold_id": customers_hold.hold_id,
                "booking_id": booked.booking_id,
                "intent_id": await _intent(system, customer.name),
            },
        },
        owner={Role.PASSENGER: passenger.token, Role.CUSTOMER: customer.token},
        stranger={
            Role.PASSENGER: session("seat", strangers_pnr).token,
            Role.CUSTOMER: system.token(Role.CUSTOMER),
        },
        strangers_own={
            "flight_id": flight_id,
            "passenger_id": "P2",
            "pnr": strangers_pnr,
            "seat_number": STRANGERS_SEAT,
        },
    )


async def fly(system: System) -> str:
    """Creates a flight on which all seats are free."""
    flight_id = new_flight_id()
    await system.callers["flight"].operations().CreateFlight(valid(flight.CreateFlightRequest(flight_id=flight_id)))
    return flight_id


async def _intent(system: System, owner: str) -> str:
    made: payment.PaymentIntent = (
        await system.callers["payment"]
        .service()
        .CreatePaymentIntent(
            payment.CreatePaymentIntentRequest(
                reference=f"test/{secrets.token_hex(6)}",
                amount=money_pb2.Money(currency_code="USD", units=10),
                owner=owner,
            )
        )
    )
    return made.intent_id
