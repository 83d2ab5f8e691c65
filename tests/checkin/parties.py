"""Bookings, as the events of the booking service describe them."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

from skyhigh.booking.v1 import booking_service_pb2 as booking_pb
from skyhigh.booking.v1 import events_pb2
from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from tests.checkin.airport import HOUR, Airport, Traveller, new_pnr
from tests.dates import DAY


@dataclass
class Party:
    """A booking of an adult, her infant and a child, and the events about it."""

    confirmed: events_pb2.BookingConfirmed
    cancelled: events_pb2.BookingCancelled

    def traveller(self, airport: Airport, number: int) -> Traveller:
        """Returns a passenger of the booking as a caller, on the airport's flight."""
        each = self.confirmed.passengers[number]
        return airport.as_caller(
            pb.ManifestPassenger(passenger_id=each.passenger_id, pnr=self.confirmed.pnr, last_name=each.last_name)
        )


def booked(
    flight_id: str, *, departs_in_seconds: float = 6 * HOUR, number: str = "SH101"
) -> events_pb2.BookingConfirmed.BookedFlight:
    """Returns a flight of a booking, whose check-in is open by default."""
    flight = events_pb2.BookingConfirmed.BookedFlight(
        flight_id=flight_id,
        flight_number=number,
        origin="FRA",
        destination="LIS",
        departure_date=DAY,
        gate="B7",
    )
    departure = int(time.time() + departs_in_seconds)
    flight.departure_time.FromSeconds(departure)
    flight.arrival_time.FromSeconds(departure + 2 * HOUR)
    flight.check_in_opens_before.FromTimedelta(timedelta(hours=30))
    flight.check_in_closes_before.FromTimedelta(timedelta(minutes=50))
    flight.boarding_before.FromTimedelta(timedelta(minutes=35))
    return flight


def party(*flights: events_pb2.BookingConfirmed.BookedFlight, cabin: str = "ECONOMY") -> Party:
    """Returns a booking of these flights; its events are not published yet."""
    booking_id, pnr = str(uuid4()), new_pnr()
    adult, infant, child = (f"{booking_id.replace('-', '')[:16]}-{n}" for n in range(3))
    confirmed = events_pb2.BookingConfirmed(
        booking_id=booking_id,
        pnr=pnr,
        flights=flights,
        passengers=[
            booking_pb.Passenger(passenger_id=adult, given_name="Zoë", last_name="Müller", type=booking_pb.ADULT),
            booking_pb.Passenger(
                passenger_id=infant,
                given_name="Ada",
                last_name="Müller",
                type=booking_pb.INFANT,
                accompanying_passenger_id=adult,
            ),
            booking_pb.Passenger(passenger_id=child, given_name="Max", last_name="Muster", type=booking_pb.CHILD),
        ],
        cabin=booking_pb.Cabin.Value(cabin),
        contact_email=f"{secrets.token_hex(4)}@example.com",
    )
    confirmed.confirm_time.GetCurrentTime()
    cancelled = events_pb2.BookingCancelled(
        booking_id=booking_id,
        pnr=pnr,
        flight_ids=[each.flight_id for each in flights],
        passenger_ids=[adult, infant, child],
        reason="CHANGED_MIND",
    )
    cancelled.cancel_time.GetCurrentTime()
    return Party(confirmed, cancelled)


async def log_in(airport: Airport, pnr: str, last_name: str) -> pb.Trip:
    """Creates a session; returns the trip."""
    anybody = airport.checkin.anybody("")
    session: pb.Session = await anybody.CreateSession(pb.CreateSessionRequest(pnr=pnr, last_name=last_name))
    return session.trip
